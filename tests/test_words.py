"""Foreign words: no name, path, subject or error becomes a line of ours, or reaches a terminal or a program as it is not."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import pytest
from conftest import FORGE, Server, Work, clean_environ, wait_for

import forge

FORGED = "forge: merged app/evil: 0123456789abcdef0123456789abcdef01234567"
EVIL = f"a\n{FORGED}\x1b]0;pwned\x07\x9b31m\u202eb\u2028c\x85d"
SUBJECT = "Fix \x1b]0;pwned\x07\x9b31m\u202ethings\u2028\x7f\u200b"
LATIN = b"caf\xe9.txt"
# by what a terminal, a reader of lines or a person is led astray; a line break is looked for as a line of its own
ODD = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def is_clean(text: str) -> bool:
    """Whether a text has nothing that leads astray, and no line that a foreign word has made up."""
    assert not ODD.search(text), ascii(text)
    assert not re.search(f"(?m)^(remote: )?{FORGED}", text), text
    return True


def tree_of(repo: Path, start: str | None, entries: bytes) -> str:
    """A tree with these entries, as git has them in an index, beside those of a commit."""
    environ = clean_environ() | {"GIT_INDEX_FILE": str(repo / f"index-of-{os.getpid()}")}

    def git(*args: str, text: bytes = b"") -> str:
        done = subprocess.run(["git", *args], cwd=repo, env=environ, input=text, capture_output=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode().strip()

    git("read-tree", start or "--empty")
    git("update-index", "-z", "--index-info", text=entries)
    return git("write-tree", "--missing-ok")


def commit_of(work: Work, parents: tuple[str, ...], paths: dict[bytes, str], message: str, author: str = "Ada") -> str:
    """A commit in the clone with files of any names, beside those of its first parent."""
    blobs = {path: work.git("hash-object", "-w", "--stdin", text=content) for path, content in paths.items()}
    entries = b"".join(f"100644 {blob}\t".encode() + path + b"\0" for path, blob in blobs.items())
    tree = tree_of(work.tree, parents[0] if parents else None, entries)
    environ = clean_environ() | {"GIT_AUTHOR_NAME": author}
    words = ["git", "commit-tree", tree, *(word for parent in parents for word in ("-p", parent))]
    done = subprocess.run(words, cwd=work.tree, env=environ, input=message.encode(), capture_output=True, check=True)
    return done.stdout.decode().strip()


def push_conflict(work: Work, path: bytes, branch: str = "topic", options: tuple[str, ...] = ()) -> str:
    """Push a branch that conflicts with base in a file of this name; what the pusher reads of it."""
    first = work.git("rev-parse", "origin/main")
    base = commit_of(work, (first,), {path: "base\n"}, SUBJECT, f"Ada{SUBJECT}")
    head = commit_of(work, (first,), {path: "head\n"}, f"{SUBJECT}\n\nAuto-Merge: yes\n", f"Ada{SUBJECT}")
    work.push(f"{base}:refs/heads/main")
    return work.push(f"{head}:refs/heads/{branch}", options=options)


@pytest.fixture(scope="module")
def stage(shared: Server) -> Iterator[tuple[Work, str]]:
    """A repo with a branch that conflicts in an evil path, and what its pusher read until the end of the job."""
    work = shared.repo("stage")
    said = push_conflict(work, EVIL.encode(), options=("wait",))
    shared.idle()
    yield work, said


def test_the_pusher_reads_a_forged_line_as_part_of_a_sentence(stage: tuple[Work, str]) -> None:
    work, said = stage
    assert is_clean(said) and "conflicts with main in a␊forge: merged app/evil" in said
    again = commit_of(work, (work.git("rev-parse", "origin/main"),), {}, SUBJECT)
    said = work.push(f"{again}:refs/heads/odd", options=(f"mer\u202ege{SUBJECT}",))
    assert is_clean(said) and "is not known" in said


@pytest.mark.parametrize("ref", ["refs/x/\x9b31m", "refs/heads/a\u202eb", "refs/tags/a\u2028b"])
def test_a_ref_that_is_refused_is_spelled_out(stage: tuple[Work, str], ref: str) -> None:
    work, _ = stage
    said = work.push(f"main:{ref}", check=False)
    lines = [line for line in said.splitlines() if line.startswith("remote: ")]
    assert any("is refused" in line for line in lines) and is_clean("\n".join(lines))


def test_the_servers_log_has_a_line_for_a_sentence(stage: tuple[Work, str]) -> None:
    work, _ = stage
    (line,) = [line for line in work.server.log.split("\n") if "auto-merge not attempted for stage/topic" in line]
    assert is_clean(work.server.log) and "in a␊forge: merged app/evil: 0123" in line and "␛]0;pwned␇" in line
    assert not any(line.startswith(FORGED) for line in work.server.log.splitlines())


@pytest.mark.parametrize(
    "words",
    [
        ("why", "stage", "topic"),
        ("status", "stage", "topic"),
        ("wait", "stage", "topic"),
        ("merge", "stage", "topic"),
        ("jobs", "--repo", "stage"),
        ("audit", "stage"),
        ("repos",),
        ("hold", "stage"),
        ("doctor",),
        ("jobs", "--branch", EVIL),
        ("why", "stage", EVIL),
        ("why", EVIL, "topic"),
        ("audit", EVIL),
        ("delete", EVIL, "--yes"),
        ("jobs", EVIL),
        (EVIL,),
        ("jobs", f"--{EVIL}"),
    ],
    ids=lambda words: ascii("-".join(words))[1:40],
)
def test_the_command_line_shows_what_would_not_be_seen(stage: tuple[Work, str], words: tuple[str, ...]) -> None:
    work, _ = stage
    done = work.server.cli(*words, check=False)
    assert is_clean(done.stdout) and is_clean(done.stderr) and done.stderr.count("\n") <= 1
    if words[0] == "why" and EVIL not in words:
        assert done.stdout.count("\n") == 1
    if words[0] == "audit" and EVIL not in words:
        assert "Fix ␛]0;pwned␇⟨U+009B⟩31m⟨U+202E⟩things" in done.stdout


def test_a_job_in_the_terminal_has_only_its_own_lines(stage: tuple[Work, str]) -> None:
    work, _ = stage
    for job in work.server.get("/jobs?repo=stage")["jobs"]:
        assert is_clean(work.server.cli("job", str(job["id"])).stdout)
    shown = {"branch": EVIL, "reason": EVIL, "digest": f"failed\n\n  {SUBJECT}", "heads": [{"branch": EVIL}]}
    printable = forge.printable(shown)
    assert "\n" not in printable["branch"] + printable["reason"] + printable["heads"][0]["branch"]
    assert printable["digest"].count("\n") == 2 and is_clean(printable["digest"])
    assert forge.printable(printable) == printable


def test_programs_get_names_exactly_and_sentences_visibly(stage: tuple[Work, str]) -> None:
    work, _ = stage
    view = work.mr("topic")
    assert view["conflicts"] == [EVIL] and view["subject"] == re.sub("\n", " ", SUBJECT) and "conflicts_b64" not in view
    for said in (view["why"], *view["blockers"], work.server.act("/r/stage/mr/topic/merge").json["error"]):
        assert is_clean(said) and "\n" not in said and "a␊forge: merged" in said
    plain = work.server.act("/r/stage/mr/topic/merge").text
    assert is_clean(plain)
    refused = work.server.ask("/r/stage/mr/topic/merge", {"password": "correct horse"}, Accept="text/plain").text
    assert is_clean(refused) and refused.count("\n") == 1


@pytest.mark.parametrize(
    "path",
    ["/", "/jobs", "/r/stage", "/r/stage/mr/topic", "/r/stage/history", "/r/stage/deployments", "/search?q=x"]
    + ["/r/stage/feed.atom", "/metrics", "/r/stage/badge.svg", "/r/stage/mr/nothing%C2%9B", "/r/x%E2%80%AE"]
    + ["/jobs/x%E2%80%A8", "/x%E2%80%A8", "/r/stage/mr/topic?view=%E2%80%A8", "/jobs?status=%E2%80%AE"],
)
def test_pages_show_what_would_not_be_seen(stage: tuple[Work, str], path: str) -> None:
    work, _ = stage
    answer = work.server.ask(path, Accept="text/html")
    assert is_clean(answer.text)


def test_pages_of_jobs_and_deployments_too(stage: tuple[Work, str]) -> None:
    work, _ = stage
    for job in work.server.get("/jobs?repo=stage")["jobs"]:
        kinds = ("jobs", "r/stage/deployments") if job["kind"] == "post-merge" else ("jobs",)
        assert all(is_clean(work.server.ask(f"/{kind}/{job['id']}", Accept="text/html").text) for kind in kinds)


def test_an_error_of_git_about_such_a_path_is_one_line(stage: tuple[Work, str]) -> None:
    work, _ = stage
    server, entry = work.server, f"100644 {'1' * 40}\t{EVIL.replace('a', 'b', 1)}\0"  # there is no such blob
    tree = tree_of(work.path, "main", entry.encode())
    head = work.bare("commit-tree", tree, "-p", "main", "-m", SUBJECT)
    work.bare("update-ref", "refs/heads/broken", head)
    (job,) = server.hook(json.dumps({"repo": "stage", "updates": [
        {"ref": "refs/heads/broken", "oldrev": "0" * 40, "newrev": head}]}).encode()).json["jobs"]  # fmt: skip
    reason = server.ended(job["id"])["reason"]
    assert "could not be prepared" in reason and "b" in reason and is_clean(reason)
    server.idle()
    ways = [server.cli("job", str(job["id"])).stdout, server.cli("why", "stage", "broken").stdout, server.log]
    ways += [server.ask(path, Accept="text/html").text for path in (f"/jobs/{job['id']}", "/r/stage/mr/broken")]
    ways += [server.ask("/r/stage/feed.atom").text]
    assert all(map(is_clean, ways))
    work.bare("update-ref", "-d", "refs/heads/broken")
    server.hook(b'{"repo": "stage", "updates": []}')


def test_odd_names_of_branches_in_a_repo_that_was_copied_in(shared: Server) -> None:
    """Nobody can push such a name, but git has no objection to it."""
    work = shared.repo("copied")
    name = "ev\u202eil\u2028\x9b31m"
    head = work.branch("plain", run=f"echo error: {SUBJECT}; exit 1\n")
    work.push(f"{head}:refs/heads/plain")
    work.bare("update-ref", f"refs/heads/{name}", head)
    work.bare("update-ref", b"refs/heads/caf\xe9".decode(errors="surrogateescape"), head)
    shared.hook(b'{"repo": "copied", "updates": []}')
    shared.idle()
    views = {view["branch"]: view for view in shared.get("/r/copied")["merge_requests"]}
    assert set(views) == {"plain", name, "caf\ufffd"}
    assert base64.b64decode(views["caf\ufffd"]["branch_b64"]) == b"caf\xe9" and "branch_b64" not in views[name]
    for words in (("jobs", "--repo", "copied"), ("repos",), ("why", "copied", "zzz")):
        done = shared.cli(*words, check=False)
        assert is_clean(done.stdout) and is_clean(done.stderr)
    for path in ("/", "/jobs", "/r/copied", "/r/copied/feed.atom", "/metrics", f"/r/copied/mr/{quote(name)}"):
        assert is_clean(shared.ask(path, Accept="text/html").text), path
    entries = ElementTree.fromstring(shared.ask("/r/copied/feed.atom").body).iter("{http://www.w3.org/2005/Atom}title")
    assert any("ev⟨U+202E⟩il" in str(title.text) for title in entries)
    assert is_clean(shared.log)


# -- one exit for each medium ----------------------------------------------------------------------------


def test_what_is_visible_stays_as_it_is() -> None:
    every = "".join(map(chr, [*range(0x3000), *range(0xD800, 0xE000), 0x3164, 0xFEFF, 0xFFA0, 0xE0041, 0x1D173]))
    once = forge.visible(every)
    assert forge.visible(once) == once and is_clean(once)
    for char in "\u115f\u3164\uffa0\u034f\u180b\ufeff\U0001d173\xad":
        assert forge.visible(char) == f"⟨U+{ord(char):04X}⟩"


def test_the_log_is_a_line_a_sentence_and_marks_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    error = forge.GitError(("merge-tree",), 128, f"fatal: unable to read {EVIL}")
    forge.log(f"app: {error}: {EVIL}")
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and is_clean(said)
    forge.log("stumbled", f"Traceback:\n  ValueError: {EVIL}\n{FORGED}\n")
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["forge: stumbled", "forge: | Traceback:"] and len(lines) > 3
    assert all(line.startswith("forge: | ") for line in lines[1:]) and is_clean("\n".join(lines))


def test_a_crash_within_a_request_is_told_without_its_foreign_words(make_server: Callable[..., Server]) -> None:
    server = make_server()
    script = f"""import sys; sys.path.insert(0, {str(Path(forge.__file__).parent)!r}); import forge, threading
def crash(*_, **__):
    raise RuntimeError({EVIL!r})
forge.Web.badge = crash
sys.exit(forge.main(["serve"]))"""
    server.stop()
    with open(server.data.with_suffix(".err2"), "w+") as errors:
        process = subprocess.Popen([FORGE[0], "-c", script], env=server.environ, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert process.stdout
        server.url = process.stdout.readline().split()[-1]
        assert server.ask("/r/app/badge.svg").status == 500
        process.terminate()
        assert process.wait(timeout=20) == 0
        process.stdout.close()
        errors.seek(0)
        said = errors.read()
    assert "Traceback" in said and "RuntimeError" in said and is_clean(said)
    assert all(line.startswith("forge: ") for line in said.splitlines())


def test_forms_keep_what_was_typed(shared: Server) -> None:
    odd = "x\u200by"
    for path, name in ((f"/search?q={quote(odd)}", "q"), (f"/jobs?branch={quote(odd)}", "branch")):
        assert re.search(f'name="{name}" value="{odd}"', shared.ask(path, Accept="text/html").text), path


# -- JSON is valid Unicode -------------------------------------------------------------------------------


def strings(value: Any) -> Iterator[str]:
    """All texts in JSON, keys too."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)
    elif isinstance(value, str):
        yield value


def is_unicode(text: str) -> Any:
    """The value of some JSON, in which no text has half of a pair of UTF-16."""
    value = json.loads(text)
    for one in strings(value):
        one.encode("utf-8")
    return value


def test_json_has_no_lone_surrogates_and_names_are_exact_beside_it(work: Work) -> None:
    push_conflict(work, LATIN)
    work.server.idle()
    page = f"/r/{work.name}"
    view = is_unicode(work.server.ask(f"{page}/mr/topic").text)
    assert view["conflicts"] == ["caf\ufffd.txt"] and [base64.b64decode(one) for one in view["conflicts_b64"]] == [LATIN]
    assert "caf\ufffd.txt" in view["blockers"][0]
    for path in (page, "/", f"/jobs?repo={work.name}", f"{page}/history", f"{page}/deployments"):
        is_unicode(work.server.ask(path).text)
    is_unicode(work.server.act(f"{page}/mr/topic/merge").text)
    for words in (("why", work.name, "topic"), ("status", work.name, "topic"), ("audit",), ("jobs",), ("doctor",)):
        is_unicode(work.server.cli(*words, "--json", check=False).stdout)
    assert "caf⟨E9⟩.txt" in work.server.ask(f"{page}/mr/topic", Accept="text/html").text
    assert "caf⟨E9⟩.txt" in work.server.log


def test_json_of_whatever_there_is() -> None:
    names = ["a", b"\xff\xfe/x".decode("utf-8", "surrogateescape")]
    half, pair = "\ud83d", "\ud83d" + "\ude00"  # a real pair must not arise from two halves
    given = {"conflicts": names, "name": half, "x": pair, "heads": [{"branch": names[1], "commit": "c"}], "n": [1, None, 2.5]}
    made = is_unicode(forge.json_text({**given, "t": (half,), half: {}}))
    assert made["conflicts"] == ["a", "\ufffd\ufffd/x"]
    assert [base64.b64decode(one) for one in made["conflicts_b64"]] == [b"a", b"\xff\xfe/x"]
    assert made["name"] == "\ufffd" and made["x"] == "\ufffd\ufffd" and made["t"] == ["\ufffd"] and made["n"] == [1, None, 2.5]
    assert base64.b64decode(made["heads"][0]["branch_b64"]) == b"\xff\xfe/x"
    assert "conflicts_b64" not in is_unicode(forge.json_text({"conflicts": ["ü", "a"]}))
    assert is_unicode(forge.json_text(made)) == made


def test_a_notice_is_valid_unicode(make_server: Callable[..., Server], tmp_path: Path) -> None:
    heard = tmp_path / "heard"
    server = make_server(FORGE_NOTIFY=f"cat >>{heard}")
    work = server.repo()
    head = work.branch("plain", run="exit 1\n")
    work.push(f"{head}:refs/heads/plain")
    work.bare("update-ref", b"refs/heads/caf\xe9".decode(errors="surrogateescape"), head)
    server.hook(b'{"repo": "app", "updates": []}')
    told = wait_for(lambda: heard.exists() and "caf" in heard.read_text() and heard.read_text(), "the notice")
    pieces = [is_unicode(line) for line in told.splitlines()]
    (piece,) = (piece for piece in pieces if "caf\ufffd" in piece.get("branches", []))
    assert [base64.b64decode(one) for one in piece["branches_b64"]] == [b"caf\xe9"]


# -- dates of commits ------------------------------------------------------------------------------------

DATES = {
    "east": ("1700000000 +0200", "2023-11-14T22:13:20.000Z"),
    "odd-zone": ("1700000000 +9999", "2023-11-14T22:13:20.000Z"),
    "west": ("1700000000 -1130", "2023-11-14T22:13:20.000Z"),
    "epoch": ("0 +0000", "1970-01-01T00:00:00.000Z"),
    "last": ("253402300799 -1200", "9999-12-31T23:59:59.000Z"),
    "year-10000": ("253402300800 +0000", None),
    "beyond-64-bits": ("99999999999999999999999999 +0000", None),
    "past-63-bits": ("9223372036854775808 +0000", None),
    "long": ("1" * 5000 + " +0000", None),
    "negative": ("-5 +0000", None),
    "no-number": ("yesterday", None),
    "no-zone": ("1700000000", None),
    "nothing": ("", None),
    "no-author": (None, None),
}


def odd_commit(repo: Path, date: str | None, parent: str, message: str = "A change") -> str:
    """A commit whose author has a date as it stands here, or without an author."""
    about = f"tree {forge.git(repo, 'rev-parse', f'{parent}^{{tree}}').strip()}\nparent {parent}\n"
    about += "" if date is None else f"author Ada <ada@localhost> {date}\n"
    text = f"{about}committer Ada <ada@localhost> {date or 'never'}\n\n{message}\n"
    return forge.git(repo, "hash-object", "-t", "commit", "-w", "--stdin", "--literally", text=text).strip()


def test_dates_of_commits_are_utc_or_none(work: Work) -> None:
    tip = work.bare("rev-parse", "main")
    for name, (date, _) in DATES.items():
        work.bare("update-ref", f"refs/heads/{name}", odd_commit(work.path, date, tip))
    work.server.hook(json.dumps({"repo": work.name, "updates": []}).encode())
    views = {view["branch"]: view["authored_at"] for view in work.server.get(f"/r/{work.name}")["merge_requests"]}
    assert views == {name: seen for name, (_, seen) in DATES.items()}
    for name, (_, seen) in DATES.items():
        assert work.mr(name)["authored_at"] == seen, name
        page = work.server.ask(f"/r/{work.name}/mr/{name}", Accept="text/html")
        assert page.status == 200 and "%aI" not in page.text and ("no date" in page.text) == (seen is None), name
    rows = work.server.ask(f"/r/{work.name}", Accept="text/html").text
    assert "%aI" not in rows and "+99:99" not in rows and "no date" in rows


def test_dates_of_what_was_pushed_to_base_are_utc_or_none_in_deployments_and_audit(work: Work) -> None:
    tip = work.bare("rev-parse", "main")
    for date, _ in DATES.values():
        tip = odd_commit(work.path, date, tip, f"date {date or ''}"[:40])
    work.bare("update-ref", "refs/heads/main", tip)
    (job,) = work.server.hook(json.dumps({"repo": work.name, "updates": [
        {"ref": "refs/heads/main", "oldrev": work.bare("rev-parse", f"{tip}~{len(DATES)}"), "newrev": tip}]}).encode()
    ).json["jobs"]  # fmt: skip
    work.server.ended(job["id"])
    expected = [seen for _, seen in DATES.values()][::-1]
    deployment = work.server.get(f"/r/{work.name}/deployments")["deployments"][0]
    for brought in (deployment["commits"], deployment["pushed"]):
        assert [commit["authored_at"] for commit in brought] == expected
    (audited,) = json.loads(work.server.cli("audit", work.name, "--json").stdout)["repos"]
    assert [commit["authored_at"] for commit in audited["direct"]][: len(expected)] == expected
    said = work.server.cli("audit", work.name).stdout
    assert "%aI" not in said and "  no date     date yesterday" in said
    for page in (f"deployments/{job['id']}", "deployments"):
        assert "%aI" not in work.server.ask(f"/r/{work.name}/{page}", Accept="text/html").text


@pytest.mark.parametrize("name", ["odd-zone", "year-10000", "beyond-64-bits", "negative", "nothing", "no-author"])
def test_a_bump_with_any_date_is_made_anew(name: str, tmp_path: Path) -> None:
    repo = forge.create_repo(forge.load_config({"FORGE_DATA_DIR": str(tmp_path)}), "app", "main")
    tree = forge.git(repo, "mktree").strip()
    first = forge.commit_tree(repo, tree, (), "First")
    made = forge.commit_again(repo, odd_commit(repo, DATES[name][0], first, "Bump"), tree, first)
    assert forge.read_commit(repo, made).subject == "Bump"


# -- a trailer that is none ------------------------------------------------------------------------------

CO = "Co-authored-by: Bob <bob@localhost>"
WISHES = {
    "above": (f"Subject\n\nAuto-Merge: yes\n\n{CO}", "not in the last paragraph, where git looks for trailers"),
    "above-spaces": (f"Subject\n\nAuto-Merge: yes\n \n{CO}\nSigned-off-by: x", "not in the last paragraph"),
    "middle": ("Subject\n\ntext\n\nForge-Auto-Merge: TRUE\n\nmore text", "'Forge-Auto-Merge: TRUE' is in the message"),
    "subject": ("Auto-Merge: yes", "is in its subject; a blank line"),
    "under-subject": ("Subject\nAuto-Merge: yes", "is in its subject; a blank line"),
    "indented": ("Subject\n\n  Auto-Merge: yes", "is indented"),
    "goes-on": ("Subject\n\nSigned-off-by: x\n Auto-Merge: yes", "is indented"),
    "listed": ("Subject\n\n- Auto-Merge: yes", "does not begin its line"),
    "among": ("Subject\n\nSome text here\nAuto-Merge: yes", "stands among lines that are no trailers"),
    "equals": ("Subject\n\nAuto-Merge=yes", "lacks the colon"),
    "bare": ("Subject\n\nAuto-Merge yes", "lacks the colon"),
    "spelled": ("Subject\n\nAutoMerge: yes", "is not spelled Auto-Merge"),
    "spelled-too": ("Subject\n\nAuto_Merge: yes", "is not spelled Auto-Merge"),
    "value": ("Subject\n\nAuto-Merge: on", "says 'on', but only yes and true count"),
    "value-goes-on": ("Subject\n\nAuto-Merge: yes\n  please\x1b[31m", "says 'yes please\\x1b[31m', but only"),
    "dashes": ("Subject\n\ntext\n\nAuto-Merge: yes\n---\nstuff", "stands among lines"),
    "counts": (f"Subject\n\nAuto-Merge : yes\n{CO}", None),
    "counts-crlf": ("Subject\r\n\r\nAuto-Merge: yes\r", None),
    "counts-conflicts": ("Subject\n\nAuto-Merge: yes\n\nConflicts:\n\tfile", None),
    "counts-twice": (f"Subject\n\nAuto-Merge: yes\n\nmore\n\nAuto-Merge: yes\n{CO}", None),
    "says-no": ("Subject\n\nAuto-Merge: no", ""),
    "prose": ("Subject\n\nWith the trailer Auto-Merge: yes it merges.\nAuto-merge is fine.", ""),
    "nothing": ("Subject", ""),
}


@pytest.mark.parametrize("name", WISHES)
def test_what_looks_like_the_trailer_is_judged_as_git_does_and_explained(name: str, tmp_path: Path) -> None:
    message, said = WISHES[name]
    repo = forge.create_repo(forge.load_config({"FORGE_DATA_DIR": str(tmp_path)}), "app", "main")
    facts = forge.read_commit(repo, forge.commit_tree(repo, forge.git(repo, "mktree").strip(), (), message))
    assert facts.auto_merge == (said is None) and bool(facts.unheard) == bool(said)
    assert (said or "") in facts.unheard and "\n" not in facts.unheard
    assert not said or "git commit --amend" in facts.unheard


def test_a_trailer_above_the_last_paragraph_is_told_everywhere(work: Work) -> None:
    gate = work.gate("gate")
    run = f'while [ ! -e "$HOME/{gate.name}" ]; do sleep 0.05; done\n'
    work.branch("topic", WISHES["above"][0], run=run)
    pushed = work.push("topic")
    words = "'Auto-Merge: yes' is in the message of its head commit, but is not in the last paragraph, where git looks"
    assert f"forge: topic does not merge by itself: {words}" in pushed and "git commit --amend" in pushed
    view = work.mr("topic")
    assert not view["mergeable"] and "job" in view["blockers"][0] and words in view["blockers"][1] and words in view["why"]
    gate.touch()
    wait_for(lambda: work.mr("topic")["job"]["status"] == "passed", "the test")
    line = f"auto-merge not attempted for {work.name}/topic: it passed, and merges when somebody asks: {words}"
    wait_for(lambda: line in work.server.log, "the line in the log")
    view = work.mr("topic")
    assert view["mergeable"] and not view["auto_merge"] and words in view["blockers"][0] and view["settled"]
    assert work.server.cli("why", work.name, "topic").stdout == f"{view['why']}\n" and words in view["why"]
    page = work.server.ask(f"/r/{work.name}/mr/topic", Accept="text/html").text
    assert "where git looks for trailers" in page and ">Merge</button>" in page
    work.branch("asked", WISHES["subject"][0])
    assert "by itself" not in work.push("asked", options=("merge",))
    work.landed("asked")
    assert work.server.act(f"/r/{work.name}/mr/topic/merge").status in (200, 202)


def test_who_waits_and_who_pushes_many_hear_of_it(work: Work) -> None:
    for name in ("subject", "value"):
        work.branch(name, WISHES[name][0])
    said = work.push("subject", "value")
    assert "forge: subject does not merge by itself: 'Auto-Merge: yes' is in" in said and "value does not merge by itself" in said
    work.branch("waits", WISHES["indented"][0])
    waited = work.push("waits", options=("wait",))
    assert "passed" in waited and "merges when somebody asks: 'Auto-Merge: yes' is in the message" in waited
