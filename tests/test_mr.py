"""The page of a merge request: what git says of its changes, read exactly, and shown within bounds."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from conftest import AUTO, Server, Work, clean_environ, wait_for
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import forge

FILE, PROGRAM, LINK, MODULE, NONE = "100644", "100755", "120000", "160000", "000000"
ID, OTHER, NULL = "a" * 40, "b" * 40, "0" * 40


# -- values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("M", "a", "a", FILE, FILE, ID, OTHER), "changed"),
        (("A", "a", "a", NONE, FILE, NULL, ID), "added"),
        (("D", "a", "a", FILE, NONE, ID, NULL), "deleted"),
        (("R", "old", "new", FILE, FILE, ID, ID), "renamed from old"),
        (("C", "old", "new", FILE, PROGRAM, ID, ID), "copied from old, mode changed 100644 → 100755"),
        (("M", "a", "a", PROGRAM, FILE, ID, ID), "mode changed 100755 → 100644"),
        (("M", "a", "a", MODULE, MODULE, ID, OTHER), "submodule aaaaaaaa → bbbbbbbb"),
        (("A", "a", "a", NONE, MODULE, NULL, ID), "added, submodule aaaaaaaa"),
        (("D", "a", "a", MODULE, NONE, ID, NULL), "deleted, submodule aaaaaaaa"),
        (("A", "a", "a", NONE, LINK, NULL, ID), "added, symlink"),
        (("D", "a", "a", LINK, NONE, ID, NULL), "deleted, symlink"),
        (("T", "a", "a", FILE, LINK, ID, OTHER), "file became a symlink"),
        (("M", "a", "a", FILE, FILE, ID, OTHER, None, None, True), "changed, binary"),
    ],
)
def test_what_happened_to_a_file_in_words(change: tuple[Any, ...], words: str) -> None:
    assert forge.Change(*change).words == words


def test_a_listing_that_is_cut_loses_only_what_is_cut() -> None:
    entry = f":{FILE} {FILE} {ID} {OTHER} M\0a\tb\0".encode()
    moved = f":{FILE} {FILE} {ID} {ID} R100\0old\0new\n\0".encode()
    counts = b"3\t4\ta\tb\x000\t0\t\0old\0new\n\0"
    whole = [("a\tb", 3, 4), ("new\n", 0, 0)]
    assert [(c.path, c.added, c.deleted) for c in forge.parse_changes(entry + moved + counts)] == whole
    for end in range(len(entry + moved + counts)):
        found = forge.parse_changes((entry + moved + counts)[:end])
        assert [c.path for c in found] == [path for path, _, _ in whole][: len(found)]
        assert all(c.added in (None, number) for c, (_, number, _) in zip(found, whole, strict=False))


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("plain\tü", "plain\tü"),
        ("a\x1b[31m\r\x7f", "a␛[31m␍␡"),
        ("\u202etxt.exe\u2066", "⟨U+202E⟩txt.exe⟨U+2066⟩"),
        ("zero\u200bwidth\ufeff", "zero⟨U+200B⟩width⟨U+FEFF⟩"),
        (b"caf\xe9".decode("utf-8", "surrogateescape"), "caf⟨E9⟩"),
        ("\ud800\U000e0041", "⟨U+D800⟩⟨U+E0041⟩"),
    ],
)
def test_what_cannot_be_seen_is_spelled_out(text: str, seen: str) -> None:
    assert forge.visible(text) == seen


def test_a_long_line_is_cut_and_says_so() -> None:
    assert forge.spell_line(b"x" * 2000) == "x" * 2000
    assert forge.spell_line(b"x" * 3500) == "x" * 2000 + "…"
    assert forge.spell_line("ü".encode() * 3000) == "ü" * 2000 + "…"


def test_what_was_taken_out_is_beside_what_replaced_it() -> None:
    patch = b"x\n@@ -1,4 +1,4 @@ f()\n a\n-b\n-c\n+B\n d\n\\ No newline at end of file\n"
    rows = [tuple(side and side.sign + side.text for side in row) for row in forge.side_by_side(forge.parse_patch(patch))]
    hunk, note = "@@@ -1,4 +1,4 @@ f()", "\\\\ No newline at end of file"
    assert rows == [(hunk, hunk), (" a", " a"), ("-b", "+B"), ("-c", None), (" d", " d"), (note, None)]


def test_a_page_lists_what_fits_and_at_least_one_file() -> None:
    file = forge.Change("M", "a", "a", FILE, FILE, ID, OTHER, 1, 1)
    many = [file._replace(path=f"file-{number}") for number in range(2000)]
    first = forge.files_of_page(many, 0)
    assert 500 < len(first) < 1000 and forge.files_of_page(many, len(first))[0].path == f"file-{len(first)}"
    assert len(forge.files_of_page([file._replace(path="x" * 500_000)] * 2, 0)) == 1
    assert forge.files_of_page(many, 2000) == []


def test_before_a_pending_job_are_the_queue_then_older_first_tests() -> None:
    job = forge.Job(5, "app", "b", forge.PRE, ID, [{"branch": "b", "commit": ID}], forge.now())
    others = [
        replace(job, id=9, status="running"),
        replace(job, id=8, cause="retest"),
        replace(job, id=4),
        replace(job, id=6),
        replace(job, id=3, kind=forge.POST),
    ]
    assert [other.id for other in forge.jobs_ahead(job, [*others, job])] == [9, 8, 4]


# -- against git ------------------------------------------------------------------------------------

PATHS = ["a", "a/b", "c", "a b", 'q"\\', "tab\t", "line\nbreak", "diff --git a b", "é", "\udcff", "<img>", "-x", ":(top)c", "*"]
LINES = [
    "one",
    "two",
    "diff --git a/c b/c",
    "@@ -1 +1 @@",
    "--- a/c",
    "+++ b/c",
    "",
    "\\ No newline at end of file",
    "\r",
    "é\udcff",
]
TEXTS = st.builds(
    lambda lines, end: "\n".join(lines) + end, st.lists(st.sampled_from(LINES), max_size=12), st.sampled_from(["", "\n"])
)
ENTRIES = st.tuples(st.sampled_from([FILE, FILE, FILE, PROGRAM, LINK, MODULE]), st.one_of(TEXTS, TEXTS, st.just("b\0in")))
TREES = st.dictionaries(st.sampled_from(PATHS), ENTRIES, max_size=8)


def as_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def import_trees(repo: Path, *trees: dict[str, tuple[str, str]]) -> list[str]:
    """Commits with these trees; a file in the place of a directory leaves the directory out."""
    stream = []
    for number, tree in enumerate(trees):
        stream.append(b"commit refs/heads/t%d\ncommitter a <a> 1 +0000\ndata 0\ndeleteall\n" % number)
        for path, (mode, text) in tree.items():
            name = b'"' + b"".join(b"\\%03o" % byte for byte in as_bytes(path)) + b'"'
            if mode == MODULE:
                stream.append(b"M 160000 %s %s\n" % (forge.hashlib.sha1(as_bytes(text)).hexdigest().encode(), name))
            else:
                stream.append(b"M %s inline %s\ndata %d\n%s\n" % (mode.encode(), name, len(as_bytes(text)), as_bytes(text)))
    subprocess.run(
        ["git", "-C", repo, "fast-import", "--quiet", "--force"], input=b"".join(stream), env=clean_environ(), check=True
    )
    return [forge.git(repo, "rev-parse", f"refs/heads/t{number}").strip() for number in range(len(trees))]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[forge.Engine]:
    """An engine whose threads were never started, with an empty repo."""
    made = forge.Engine(forge.Config(tmp_path_factory.mktemp("engine"), sandbox="none"))
    forge.create_repo(made.config, "app", "main")
    yield made
    made.stop()


def contents(tree: dict[str, tuple[str, str]], change_path: str) -> list[str]:
    mode, text = tree[change_path]
    if mode == MODULE:
        return [f"Subproject commit {forge.hashlib.sha1(as_bytes(text)).hexdigest()}"]
    return text.removesuffix("\n").split("\n") if text else []


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(TREES, TREES)
def test_each_line_is_given_to_its_file_with_its_number(
    engine: forge.Engine, before: dict[str, tuple[str, str]], after: dict[str, tuple[str, str]]
) -> None:
    """Whatever paths and lines look like: each line is where the file has it, and they are as many as git counts."""
    before, after = ({p: e for p, e in tree.items() if not (p == "a" and "a/b" in tree)} for tree in (before, after))
    old, new = import_trees(engine.config.repo("app"), before, after)
    changes, whole = forge.changes_of(engine, "app", old, new)
    renamed = {change.old_path for change in changes if change.status == "R"}
    assert whole and {c.path for c in changes} | renamed == {p for p in {*before, *after} if before.get(p) != after.get(p)}
    at_once = forge.lines_of(engine, "app", old, new, changes, 1 << 20, b"")[0]
    for change in changes:
        lines = forge.lines_of(engine, "app", old, new, [change], 1 << 20, b"")[0].get(change.path, [])
        if not any(c.status in "RC" for c in changes):
            assert at_once.get(change.path, []) == lines
        assert bool(lines) != change.quiet or change.status == "T"
        assert (
            change.binary
            or change.status == "T"
            or (change.added, change.deleted) == tuple(sum(line.sign == s for line in lines) for s in "+-")
        )
        for line in lines:
            if line.old:
                assert line.text == forge.visible(contents(before, change.old_path)[line.old - 1])
            if line.new:
                assert line.text == forge.visible(contents(after, change.path)[line.new - 1])


def test_what_is_cut_is_never_shown_as_whole(engine: forge.Engine) -> None:
    tree = {f"f{number}": (FILE, "a line\n" * 20) for number in range(10)}
    old, new = import_trees(engine.config.repo("app"), {}, tree)
    changes, _ = forge.changes_of(engine, "app", old, new)
    for most in range(500, 4000, 97):
        found, _ = forge.lines_of(engine, "app", old, new, changes, most, b"\ndiff --git ")
        assert all(len(lines) == 21 for lines in found.values()) and list(found) == [c.path for c in changes][: len(found)]
    found, whole = forge.lines_of(engine, "app", old, new, changes[:1], 300, b"\n")
    assert not whole and 0 < len(found["f0"]) < 21 and {line.text for line in found["f0"][1:]} == {"a line"}


def test_what_git_did_not_pair_among_many_is_not_paired_among_few(engine: forge.Engine) -> None:
    """More files than git compares: what has moved counts as deleted and added, on every page."""
    before = {f"old-{number}": (FILE, f"{number}\n" * 9) for number in range(110)}
    after = {f"new-{number}": (FILE, f"{number}\n" * 9 + "more\n") for number in range(110)}
    old, new = import_trees(engine.config.repo("app"), before, after)
    changes, _ = forge.changes_of(engine, "app", old, new)
    assert {change.status for change in changes} == {"A", "D"}
    mixed = changes[:50] + changes[110:160]
    assert list(forge.unfolded(engine, "app", old, new, mixed)) == [change.path for change in mixed]


def test_only_what_is_short_is_kept(engine: forge.Engine) -> None:
    tree = {f"f{number}": (FILE, "a line\n" * 20) for number in range(100)}
    old, new = import_trees(engine.config.repo("app"), {}, {**tree, "small": (FILE, "x")})
    forge.changes_of(engine, "app", old, new)
    assert not [key for key in engine._cache if key[0] == "output" and new in key]
    (small,) = (change for change in forge.changes_of(engine, "app", old, new)[0] if change.path == "small")
    forge.lines_of(engine, "app", old, new, [small], 1000, b"\n")
    assert len([key for key in engine._cache if key[0] == "output" and new in key]) == 1


def test_what_git_cannot_count_in_time_is_listed_without_counts(engine: forge.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = import_trees(engine.config.repo("app"), {"f": (FILE, "a\n" * 9)}, {"f": (FILE, "b\n" * 9)})
    asked = forge.git_beginning
    monkeypatch.setattr(forge, "git_beginning", lambda *args: (b":", False) if "--numstat" in args else asked(*args))
    for _ in range(2):
        changes, whole = forge.changes_of(engine, "app", old, new)
        assert whole and [(change.path, change.added, change.quiet) for change in changes] == [("f", None, False)]
    assert forge.unfolded(engine, "app", old, new, changes) == {}


def test_a_git_that_takes_too_long_or_too_much_is_ended(engine: forge.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = import_trees(engine.config.repo("app"), {}, {"f": (FILE, "a line\n" * 100_000)})
    repo = engine.config.repo("app")
    found, whole = forge.git_beginning(repo, 1000, *forge.DIFF, "--patch", old, new)
    assert (len(found), whole) == (1000, False)
    with pytest.raises(forge.GitError):
        forge.git_beginning(repo, 1000, "cat-file", "-p", "f" * 40)
    os.mkfifo(repo / "never")
    monkeypatch.setattr(forge, "READING_SECONDS", 0.05)
    assert forge.git_beginning(repo, 1000, "hash-object", "never") == (b"", False)


# -- the page ---------------------------------------------------------------------------------------


def html(work: Work, path: str) -> str:
    answer = work.server.ask(f"/r/{work.name}/mr/{path}", Accept="text/html")
    assert answer.status == 200 and len(answer.body) < 1_000_000, (path, answer.status, len(answer.body))
    return answer.text


def words(page: str) -> str:
    """What a page says."""
    return " ".join(unescape(re.sub("<[^>]*>", "", page)).split())


def summaries(page: str) -> list[str]:
    """What the page says of each file."""
    found = re.findall(r"<summary>(<code>.*?)</summary>", page, re.DOTALL)
    return [words(text) for text in found]


def test_every_kind_of_change_is_named(work: Work) -> None:
    text = "".join(f"line {number}\n" for number in range(20))
    work.branch("start", **{"gone": "x\n", "old-name": text, "program": "x\n", "kind": "x\n", "source": text, "plain": "x\n"})
    for path in ("picture", "module"):
        (work.tree / path).write_bytes(b"\0picture")
    work.git("add", "-A")
    work.git("update-index", "--add", "--cacheinfo", f"160000,{ID},lib")
    work.git("commit", "-q", "--amend", "--no-edit")
    work.git("push", "-q", "origin", "start:main")
    work.server.idle()
    work.git("rm", "-q", "--cached", "gone")
    work.git("mv", "old-name", "new <b>\"name'\n\u202e")
    work.write("copy", f"{text}copied\n")
    work.write("source", f"{text}more\n")
    work.write("plain", "y\n")
    work.git("add", "copy", "source", "plain")
    work.git("update-index", "--chmod=+x", "program")
    (work.tree / "picture").write_bytes(b"\0another")
    (work.tree / "kind").unlink()
    (work.tree / "kind").symlink_to("plain")
    (work.tree / "link").symlink_to("plain")
    with open(os.fsencode(work.tree) + b"/latin-\xe9", "wb") as stream:
        stream.write(b"\xe9\n")
    work.git("add", "picture", "kind", "link", "latin-*")
    work.git("update-index", "--cacheinfo", f"160000,{OTHER},lib")
    work.git("checkout", "-q", "--no-track", "-b", "topic")
    work.git("commit", "-q", "-m", "Everything\n\nAt once.")
    work.push("topic")
    page = html(work, "topic")
    assert sorted(summaries(page)) == sorted(
        [
            "copy copied from source +1 −0",
            "gone deleted +0 −1",
            "kind file became a symlink +1 −1",
            "latin-⟨E9⟩ added +1 −0",
            f"lib submodule {ID[:8]} → {OTHER[:8]} +1 −1",
            "link added, symlink +1 −0",
            "new <b>\"name'␊⟨U+202E⟩ renamed from old-name",
            "picture changed, binary",
            "plain changed +1 −1",
            "program mode changed 100644 → 100755",
            "source changed +1 −0",
        ]
    )
    assert "11 files" in page and "+7</span>" in page and "−4</span>" in page and "At once." in page
    assert f"+Subproject commit {OTHER}" in page and "+⟨E9⟩" in page and "it is binary" in page
    for path in ("latin-%E9", quote("new <b>\"name'\n\u202e"), "kind"):
        alone = html(work, f"topic?file={path}")
        assert len(summaries(alone)) == 1 and "<b>" not in alone
    assert "+⟨E9⟩" in html(work, "topic?file=latin-%E9&view=split")
    work.server.idle()


def test_commits_are_listed_newest_first_and_bounded(work: Work) -> None:
    work.branch("topic", "First <i>")
    stream = "".join(
        f"commit refs/heads/topic\ncommitter A <a@b> {1700000000 + number} +0000\ndata <<.\nNumber {number}\n.\n\n"
        + ("from refs/heads/topic^0\n" if not number else "")
        for number in range(120)
    )
    work.git("fast-import", "--quiet", text=stream)
    work.push("topic")
    page = html(work, "topic")
    assert page.count('data-key="commit-') == 100 and "the newest 100 of 121 commits" in page and "Number 119" in page
    work.branch("few", "First <i>\u202e")
    work.commit("Second")
    work.push("few")
    page = html(work, "few")
    assert page.index("Second</td>") < page.index("First &lt;i&gt;⟨U+202E⟩</td>") and "the newest" not in page
    work.server.idle()


def test_conflicts_and_foreign_histories_are_named(work: Work) -> None:
    work.branch("topic", **{"a file": "one\n", "b": "one\n"})
    work.push("topic")
    work.branch("other", **{"a file": "two\n", "b": "two\n"})
    work.git("push", "-q", "origin", "other:main")
    work.git("checkout", "-q", "--orphan", "foreign")
    work.commit("From nowhere", n="n\n")
    work.push("foreign")
    work.server.idle()
    page = html(work, "topic")
    assert re.search(r"<h2>Conflicts</h2>\s*<ul class=\"paths\">\s*<li><code>a file</code></li>\s*<li><code>b</code></li>", page)
    assert "no common history with main" in html(work, "foreign")


def test_both_views_show_the_same_lines_and_are_kept_in_links(work: Work) -> None:
    work.branch("topic", **{"a/text": "one\ntwo\nthree\n"})
    work.commit("Second", **{"a/text": "one\n2 & <b>\nthree\nfour\n"})
    work.push("topic")
    unified, split = html(work, "topic"), html(work, "topic?view=split")
    mark = re.findall(r'<details class="file" id="(d[0-9a-f]{10})" open>', unified)
    assert len(mark) == 1 and f'id="{mark[0]}"' in split
    for page in (unified, split):
        assert "+2 &amp; &lt;b&gt;" in page and f'<td id="{mark[0]}R4"><a href="#{mark[0]}R4">4</a></td>' in page
    assert re.search(r'href="[^"]*\?view=split" *>side by side', unified) and "unified</a>" in split
    alone = html(work, "topic?file=a/text&view=split")
    assert f'id="{mark[0]}R4"' in alone and "view=split#d" in alone
    assert work.server.ask(f"/r/{work.name}/mr/topic?file=nope", Accept="text/html").status == 404
    assert work.server.ask(f"/r/{work.name}/mr/topic?from=x", Accept="text/html").status == 400
    work.server.idle()


def test_a_huge_diff_is_folded_and_bounded(work: Work) -> None:
    files = {f"many/{number:04}": f"{number}\n" for number in range(1500)}
    files |= {"huge": "'<&>\"\n" * 30_000, "long": "x" * 3_000_000, "quotes": "'" * 1900 + "\n"}
    files |= {f"quoted-{number}": f"{'&' * 1900}\n" * 30 for number in range(30)}
    work.branch("topic", **files)
    work.push("topic")
    page = html(work, "topic")
    folded = page.count('class="fetch"')
    assert "1533 files" in page
    assert folded > 300 and 'class="del"' not in page
    assert f"{'x' * 2000}…<" in html(work, "topic?file=long")
    alone = html(work, "topic?file=huge")
    assert alone.count('class="add"') > 2000 and "The rest is not shown here" in alone and "git diff" in alone
    seen = set(re.findall(r'<details class="file" id="(\w+)"', page))
    while more := re.search(r'href="[^"]*(\?from=\d+)#changes">the next files', page):
        page = html(work, f"topic{more[1]}")
        seen |= set(re.findall(r'<details class="file" id="(\w+)"', page))
    assert len(seen) == len(files)
    assert work.server.ask(f"/r/{work.name}/mr/topic?from=9999", Accept="text/html").status == 404
    long = {f"{'&' * 240}/{number}-{'&' * 200}": "1\n" for number in range(45)}
    work.git("checkout", "-q", "-B", "base", "origin/main")
    work.git("push", "-q", "origin", f"{work.commit('Base', **long)}:refs/heads/main")
    work.git("checkout", "-q", "-B", "long", "origin/main~1")
    for path in long:
        work.write(path, "2\n")
    work.git("add", "-A")
    work.git("commit", "-q", "-F", "-", text=f"{'&' * 1_500_000}\n\n{'&' * 1_500_000}\n")
    work.push("long")
    assert "…" in html(work, "long")
    work.server.idle()


def test_objects_that_are_gone_are_told_in_words(work: Work) -> None:
    head = work.branch("topic")
    work.push("topic")
    work.server.idle()
    tree = work.bare("rev-parse", f"{head}^{{tree}}")
    (work.path / "objects" / tree[:2] / tree[2:]).unlink()
    assert "What it changes cannot be shown: git diff-tree ended with" in html(work, "topic")
    assert work.server.ask(f"/r/{work.name}/mr/topic?file=x", Accept="text/html").status in (404, 409)


QUEUED = """#!/bin/sh
until_there() { until [ -e "$HOME/$1" ]; do sleep 0.02; done; }
if [ -f one ] && [ -f two ]; then until_there both
elif [ -f one ] || [ -f two ]; then until_there go
elif [ -f zero ]; then until_there zero
fi
"""


def test_the_order_of_the_queue_is_told(make_server: Callable[..., Server]) -> None:
    """Two branches pass on a base that has moved on, since another one was merged, and are tested together then."""
    server = make_server(FORGE_MAX_JOBS="3")
    work = server.repo(script=QUEUED)
    zero, go, both = map(work.gate, ("zero", "go", "both"))
    jobs = []
    for name in ("zero", "one", "two"):
        work.branch(name, AUTO, **{name: "x"})
        jobs.append(work.push_job(name))
    for job in jobs:
        server.running(job)
    assert ">Cancel</button>" in html(work, "one") and "Before it" not in html(work, "one")
    work.branch("late")
    work.push("late")
    before = " ".join(f"job {job} runs: app / {name}" for job, name in zip(jobs, ("zero", "one", "two"), strict=True))
    assert f"Before it: {before} Checks" in words(html(work, "late"))
    zero.touch()
    work.landed("zero")
    go.touch()
    chained = wait_for_chain(server)
    assert re.search(r"to be merged in this order: (one|two) \w{10} (one|two) \w{10} ", words(html(work, "two")))
    both.touch()
    work.landed("one", "two")
    gone = server.ask("/r/app/mr/two", Accept="text/html")
    assert gone.status == 404 and "by itself" in gone.text and f'href="/jobs/{chained}#log"' in gone.text
    merge = next(merge for merge in work.merges() if merge["branch"] == "two")
    assert merge["merge_commit"] in gone.text and "/r/app/history" in gone.text
    server.idle()


def wait_for_chain(server: Server) -> int:
    """The job that tests two heads together, once it runs."""

    def look() -> Any:
        return next((job for job in server.get("/jobs")["jobs"] if len(job["heads"]) > 1 and job["status"] == "running"), None)

    return int(wait_for(look, "a job of two heads")["id"])
