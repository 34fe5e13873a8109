"""A job's checkout: the bytes that a fresh clone has, whatever was there before, and a .git that git works in."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from conftest import AUTO, Server, Work, clean_environ, wait_for
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import forge

Entry = tuple[str, bytes]  # the mode as git has it, and the content, a link's target or a submodule's commit
Seen = dict[str, tuple[str, bytes]]


QUICK = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "core.fsync", "GIT_CONFIG_VALUE_0": "none"}


@dataclass
class Store:
    """A bare repo with the places that checkouts need, without a server."""

    root: Path
    format: str = "sha1"
    made: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        forge.make_plain_dirs(self.root / "git")
        self.trash.mkdir(parents=True)
        self.run("git", "init", "-q", "--bare", "-b", "main", f"--object-format={self.format}", str(self.repo))

    @property
    def repo(self) -> Path:
        return self.root / "repos/app.git"

    @property
    def slot(self) -> Path:
        return self.root / "work/app/1"

    @property
    def trash(self) -> Path:
        return self.root / "trash"

    def run(self, *command: str, text: bytes = b"", check: bool = True) -> str:
        done = subprocess.run(command, env=clean_environ() | QUICK, input=text, capture_output=True, timeout=60)
        assert not check or done.returncode == 0, (command, done.stderr)
        return (done.stdout + (b"" if check else done.stderr)).decode(errors="replace").strip()

    def git(self, *args: str, text: bytes = b"") -> str:
        return self.run("git", "-C", str(self.repo), *args, text=text)

    def commits(self, *trees: dict[str, Entry]) -> list[str]:
        """Commits with these trees, one after the other on main; their ids."""
        lines = [b"feature done\n"]
        for tree in trees:
            self.made += 1
            parent = b"" if self.made == 1 else b"from refs/heads/main^0\n" if tree is trees[0] else b""
            lines.append(b"commit refs/heads/main\nmark :%d\ncommitter Ada <ada@localhost> %d +0000\n" % (self.made, self.made))
            lines.append(b"data 0\n" + parent + b"deleteall\n")
            for path, (mode, content) in tree.items():
                if mode == "160000":
                    lines.append(b"M 160000 %s %s\n" % (content, path.encode()))
                else:
                    lines.append(b"M %s inline %s\ndata %d\n%s\n" % (mode.encode(), path.encode(), len(content), content))
        self.git("fast-import", "--quiet", "--force", text=b"".join(lines) + b"done\n")
        return self.git("rev-list", "--reverse", f"--max-count={len(trees)}", "main").split()

    def check_out(self, commit: str, origin: forge.Origin = forge.NO_ORIGIN) -> Path:
        """A checkout as a job gets it: in the place of the one before."""
        forge.tidy_checkout(self.slot, self.trash, self.repo)
        tree = forge.fill_checkout(self.slot, self.trash, self.repo, commit, origin=origin)
        # a few files are written within one tick of the clock, and count as a job's: let them be older, as most of many are
        index = self.slot / "index"
        os.utime(index)
        wait_for(lambda: changed_at(self.trash) > index.stat().st_mtime_ns, "a tick of the clock")
        return tree

    def fresh(self, commit: str) -> Seen:
        """What a fresh clone and checkout of a commit hold."""
        with tempfile.TemporaryDirectory(dir=self.root) as place:
            self.run("git", "clone", "-q", "--shared", "--no-checkout", str(self.repo), f"{place}/clone")
            self.run("git", "-C", f"{place}/clone", "checkout", "-q", "--detach", commit)
            return look(Path(place, "clone"))

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["rm", "-rf", str(self.root)], check=True)


def look(tree: Path) -> Seen:
    """Everything in a checkout but its .git: mode, and bytes or a link's target."""
    found: Seen = {}
    for folder, folders, files in os.walk(tree):
        if folder == str(tree):
            folders.remove(".git")
        for name in folders + files:
            path = Path(folder, name)
            facts = path.lstat()
            content = os.fsencode(os.readlink(path)) if path.is_symlink() else b"" if path.is_dir() else path.read_bytes()
            found[str(path.relative_to(tree))] = (oct(facts.st_mode), content)
    return found


def changed_at(folder: Path) -> int:
    """The time (ns) by which the file system marks what changes there now."""
    with tempfile.NamedTemporaryFile(dir=folder) as new:
        return os.stat(new.name).st_ctime_ns


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def text(content: str | bytes, mode: str = "100644") -> Entry:
    return mode, content if isinstance(content, bytes) else content.encode()


# -- random histories ------------------------------------------------------------------------------

CONTENTS = [b"", b"one\ntwo\n", b"one\r\ntwo\r\n", b"mixed\r\nends\n", b"$Id$\nx\n", b"$Id: of another $\n", b"$Id: 0123 $ \n"]
CONTENTS += [b"caf\xe9\n", "¡olé!\n".encode(), b"\0binary\n\r\n", "\ufeffmark\n".encode("utf-16"), b"lone\rreturn\n"]
STATES = [
    "text",
    "-text",
    "!text",
    "text=auto",
    "eol=crlf",
    "eol=lf",
    "text eol=crlf",
    "text=auto eol=crlf",
    "crlf",
    "crlf=input",
]
STATES += ["ident", "-ident", "binary", "mine", "-mine", "filter=evil", "export-subst", "export-ignore"]
STATES += [f"working-tree-encoding={name}" for name in ("UTF-16", "UTF-16LE-BOM", "UTF-16BE", "ISO-8859-1", "UTF-8", "odd")]
PATTERNS = ["*", "*.txt", "a*", "/a.txt", "sub/**", "sub/deep/", "**/c.txt", "d.sh", "[attr]mine"]
FILES = ["a.txt", "b.bin", "d.sh", "sub/a.txt", "sub/deep/c.txt", "sub/deep/e", "other/d.sh"]
RULES = ["", "sub/", "sub/deep/", "other/"]

lines_of_rules = st.lists(st.builds("{} {}\n".format, st.sampled_from(PATTERNS), st.sampled_from(STATES)), max_size=3)
rules = st.builds(
    lambda mode, lines: text("".join(lines) or "\n", mode), st.sampled_from(["100644"] * 4 + ["120000"]), lines_of_rules
)
plain = st.builds(text, st.sampled_from(CONTENTS), st.sampled_from(["100644"] * 3 + ["100755"]))
odd = st.sampled_from([text("a.txt", "120000"), text("sub", "120000"), text("1" * 40, "160000")])
entries = st.one_of(plain, plain, plain, odd)
# a step of a history: what becomes of some paths (None: it goes), a folder in the place of the attributes or not
changes = st.dictionaries(st.sampled_from(FILES), st.none() | entries, max_size=3)
attributes = st.dictionaries(st.sampled_from(RULES), st.none() | rules | st.just("a folder"), max_size=2)
DEEDS = ["rewrite", "rewrite", "permissions", "remove", "grow", "folder", "attributes", "settings"]
deeds = st.lists(st.tuples(st.sampled_from(DEEDS), st.integers(0, 20)), max_size=2)
histories = st.lists(st.tuples(changes, attributes, deeds), min_size=2, max_size=4)
FIRST = {path: text(CONTENTS[number % len(CONTENTS)]) for number, path in enumerate(FILES)}


def trees_of(history: list[tuple[dict[str, Entry | None], dict[str, Entry | str | None], object]]) -> list[dict[str, Entry]]:
    """The trees of a history, each what the one before was but for the step's changes."""
    files: dict[str, Entry | None] = dict(FIRST)
    held: dict[str, Entry | str | None] = {}
    trees = []
    for changed, ruled, _ in history:
        files, held = files | changed, held | ruled
        tree = {path: entry for path, entry in files.items() if entry}
        for folder, rule in held.items():
            if isinstance(rule, tuple):
                tree[f"{folder}.gitattributes"] = rule
            elif rule:
                tree[f"{folder}.gitattributes/README"] = text("no attributes\n")
        trees.append(tree)
    return trees


def rewrite(path: Path) -> None:
    """Change a file as a job would that wants it kept: as large as it was, in the same second, with the time it had."""
    facts, was = path.stat(), path.read_bytes()
    if was[:2] in (b"\xff\xfe", b"\xfe\xff"):
        new = b"".join(was[at : at + 2][::-1] for at in range(0, len(was), 2))  # the other order of UTF-16's bytes
    elif b"$Id: " in was:
        new = was.replace(was[was.index(b"$Id: ") + 5 :][:1], b"z")
    else:
        new = was[:-1] + b"!" if was else b""
    with open(path, "r+b") as stream:
        stream.write(new)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def do(tree: Path, deed: str, number: int) -> None:
    """What a job does in its checkout."""
    files = sorted(path for path in tree.rglob("*") if path.is_file() and not path.is_symlink() and ".git" not in path.parts)
    if deed == "attributes":
        (tree / RULES[number % len(RULES)] / "x").parent.mkdir(exist_ok=True, parents=True)
        place = tree / RULES[number % len(RULES)] / ".gitattributes"
        if not place.is_dir():
            place.unlink(missing_ok=True)
            place.write_text("* text eol=crlf ident\n")
    elif deed == "settings":
        (tree / ".git/info").mkdir(exist_ok=True)
        (tree / ".git/info/attributes").write_text("* text eol=crlf ident\n")
        (tree / ".git/config").write_text("[core]\n\tautocrlf = true\n")
    elif files:
        path = files[number % len(files)]
        if deed == "rewrite":
            rewrite(path)
        elif deed == "permissions":
            path.chmod(0o600)
        elif deed == "grow":
            path.write_bytes(path.read_bytes() + b"more\n")
        else:
            path.unlink()
            if deed == "folder":
                path.mkdir()


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(history=histories, large=st.booleans(), order=st.randoms(use_true_random=False))
def test_a_checkout_holds_what_a_fresh_clone_holds_whatever_was_there_before(history, large, order) -> None:  # type: ignore[no-untyped-def]
    with Store(Path(tempfile.mkdtemp()) / "store") as store, pytest.MonkeyPatch.context() as patch:
        number = list(forge.GIT_SETTINGS).index("core.bigFileThreshold")
        patch.setitem(forge.GIT_ENVIRONMENT, f"GIT_CONFIG_VALUE_{number}", "1" if large else forge.BIG_FILE)
        hostile(store.repo)
        commits = store.commits(*trees_of(history))
        visits = list(zip(commits, history, strict=True))
        visits += [order.choice(visits), order.choice(visits)]  # back to what was there before
        fresh = {commit: store.fresh(commit) for commit in commits}
        for commit, (_, _, done) in visits:
            tree = store.check_out(commit)
            assert look(tree) == fresh[commit]
            for deed, at in done:
                do(tree, deed, at)


def hostile(repo: Path) -> None:
    """What a copied repo may say of conversions."""
    (repo / "info").mkdir(exist_ok=True)
    (repo / "info/attributes").write_text("* text eol=crlf ident filter=evil\n")
    with open(repo / "config", "a") as stream:
        stream.write("[core]\n\tautocrlf = true\n\teol = crlf\n\tsymlinks = false\n\tfileMode = false\n")
        stream.write('[filter "evil"]\n\tsmudge = sed s/./X/\n\trequired = true\n')


# -- what a random history seldom comes to ---------------------------------------------------------------


def test_what_a_job_changes_within_the_second_of_the_checkout_is_gone(store: Store) -> None:
    """Git compares whole seconds, and then what a conversion makes of the bytes: a job could have its own bytes kept."""
    files = {"id": text("$Id$\n"), "wide": text("wide\n"), "plain": text("plain\n")}
    rules = {".gitattributes": text("id ident\nwide working-tree-encoding=UTF-16\n")}
    (commit,) = store.commits(files | rules)
    expected = store.fresh(commit)
    while True:
        tree = store.check_out(commit)
        assert look(tree) == expected
        rewrite(tree / "id")
        rewrite(tree / "wide")
        (tree / "plain").chmod(0o600)
        facts, written = (tree / "plain").stat(), (store.slot / "index").stat()
        if int(facts.st_ctime) == int(written.st_mtime):  # else the second was over, and git itself sees it
            break
    assert {path for path, seen in look(tree).items() if seen != expected[path]} == {"id", "wide", "plain"}
    assert look(store.check_out(commit)) == expected


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_folder_that_a_job_gave_to_another_user_is_made_anew(store: Store) -> None:
    (commit,) = store.commits({"sub/a.txt": text("one\n")})
    os.chown(store.check_out(commit) / "sub", 1234, 1234)
    assert (store.check_out(commit) / "sub").stat().st_uid == 0


RULED = {"a": text("a\n"), "sub/b": text("b\n"), "sub/deep/c": text("c\n"), "wide": text("wide\n"), "id": text("$Id$\n")}
CHANGES = {
    "they come": ({}, {".gitattributes": text("* text eol=crlf\n")}),
    "they go": ({".gitattributes": text("* text eol=crlf\n")}, {}),
    "a folder's": ({"sub/.gitattributes": text("* text eol=crlf\n")}, {"sub/.gitattributes": text("* -text\n")}),
    "deep ones": ({}, {"sub/deep/.gitattributes": text("c text eol=crlf\n")}),
    "a macro": ({".gitattributes": text("[attr]mine text\n* mine eol=lf\n")}, {".gitattributes": text("* mine eol=crlf\n")}),
    "a link": ({}, {".gitattributes": text("* text eol=crlf", "120000")}),
    "from a link to a file": ({".gitattributes": text("* ident\n", "120000")}, {".gitattributes": text("* ident\n")}),
    "a folder in their place": ({".gitattributes": text("* text eol=crlf\n")}, {".gitattributes/a": text("* text eol=crlf\n")}),
    "encodings": ({".gitattributes": text("wide working-tree-encoding=UTF-16\n")}, {".gitattributes": text("a text\n")}),
    "idents": ({".gitattributes": text("id ident\n")}, {".gitattributes": text("id -ident\n")}),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_commit_that_changes_only_attributes_changes_the_bytes(store: Store, change: tuple[dict[str, Entry], ...]) -> None:
    for commit in store.commits(*(RULED | rules for rules in change)):
        assert look(store.check_out(commit)) == store.fresh(commit)


def test_what_has_the_same_attributes_is_not_written_again(store: Store) -> None:
    """Else a small change in a large tree would cost a whole checkout."""
    rules = {".gitattributes": text("*.txt text eol=crlf\n"), "sub/.gitattributes": text("* -text\n")}
    one, two = store.commits(FIRST | rules, FIRST | rules | {"d.sh": text("other\n")})
    tree = store.check_out(one)
    before = {path: (tree / path).stat().st_ctime_ns for path in FIRST}
    (tree / "b.bin").write_text("a job's\n")
    store.check_out(two)
    after = {path: (tree / path).stat().st_ctime_ns for path in FIRST}
    assert {path for path in FIRST if before[path] == after[path]} == FIRST.keys() - {"d.sh", "b.bin"}
    assert look(tree) == store.fresh(two)


def test_a_branch_that_was_never_merged_changes_nothing_of_what_base_deploys(make_server: Callable[..., Server]) -> None:
    server = make_server(FORGE_MAX_JOBS="1")
    work = server.repo()
    work.write("deploy.sh", "#!/bin/sh\necho deployed\n", executable=True)
    work.branch("main", deploy="./deploy.sh", **{"deploy.sh": "#!/bin/sh\necho deployed\n"})
    work.push("HEAD:main")
    server.idle()
    script = (work.tree / "deploy.sh").read_text()
    work.branch("evil", **{".gitattributes": "*.sh text eol=crlf\n", "deploy.sh": "#!/bin/sh\necho evil\n"})
    server.ended(work.push_job("evil"))
    work.commit("Base's own script again", **{"deploy.sh": script})
    assert server.ended(work.push_job("evil"))["status"] == "passed"
    work.branch("main", other="file")
    deployed = server.ended(int(work.push("HEAD:main").split("/jobs/")[1].split()[0]))
    assert (deployed["kind"], deployed["status"]) == ("post-merge", "passed")
    assert server.job_log(deployed["id"]) == b"deployed\n"


def test_a_branch_that_changes_only_attributes_is_tested_with_the_new_bytes(work: Work) -> None:
    work.branch("main", run="od -c data.txt | head -n 1\n", **{"data.txt": "one\n"})
    work.push("HEAD:main")
    work.branch("before", other="file")
    first = work.server.ended(work.push_job("before"))
    work.branch("after", **{".gitattributes": "data.txt text eol=crlf\n"})
    second = work.server.ended(work.push_job("after"))
    assert [work.server.job_log(job["id"]).decode().split()[1:] for job in (first, second)] == [
        ["o", "n", "e", "\\n"],
        ["o", "n", "e", "\\r", "\\n"],
    ]


# -- the .git of a checkout ----------------------------------------------------------------------------------


def tag(store: Store, name: str, commit: str, annotated: bool) -> None:
    store.git("tag", *(["-a", "-m", name] if annotated else []), name, commit)


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "loose"])
@pytest.mark.parametrize("kind", ["sha1", "sha256"])
def test_git_describe_knows_the_tags_of_the_repo(tmp_path: Path, kind: str, packed: bool) -> None:
    store = Store(tmp_path / "store", kind)
    one, two, three = store.commits(*({"file": text(f"{number}\n")} for number in range(3)))
    tag(store, "v1", one, True)
    tag(store, "releases/2", two, False)
    if packed:
        store.git("pack-refs", "--all")
        tag(store, "v1.1", one, True)  # that one comes later, and the other moves
        store.git("tag", "-f", "-a", "-m", "again", "v1", two)
    tree = store.check_out(three)
    assert store.run("git", "-C", str(tree), "describe") == f"v1-{1 if packed else 2}-g{three[:7]}"
    assert store.run("git", "-C", str(tree), "describe", "--tags", two) == ("v1" if packed else "releases/2")
    assert store.run("git", "-C", str(tree), "for-each-ref", "refs/tags") == store.git("for-each-ref", "refs/tags")
    assert store.run("git", "-C", str(tree), "status", "--porcelain") == ""
    tag(store, "v3", three, True)
    assert store.run("git", "-C", str(store.check_out(three)), "describe", "--exact-match") == "v3"


def test_tags_of_every_kind_break_no_job(store: Store) -> None:
    one, two = store.commits({"file": text("1\n")}, {"file": text("2\n")})
    tag(store, "v1", one, True)
    tag(store, "of-a-tag", "v1", True)
    tag(store, "of-a-tree", f"{one}^{{tree}}", True)
    tag(store, "of-a-file", f"{one}:file", False)
    tag(store, "füße/🎉", one, True)
    store.git("symbolic-ref", "refs/tags/a-link", "refs/tags/v1")
    store.git("pack-refs", "--all")
    hollow = b"object %s\ntype commit\ntag hollow\ntagger Ada <ada@localhost> 1 +0000\n\n" % (b"3" * 40)
    tags = store.repo / "refs/tags"
    for name, content in {
        "missing": "1" * 40,
        "of-what-is-missing": store.git("hash-object", "-w", "-t", "tag", "--literally", "--stdin", text=hollow),
        "zero": "0" * 40,
        "rubbish": "no id",
        "empty": "",
        "v1.lock": one,
        "a..b": one,
        "new\nline": one,
        "dangling": "ref: refs/heads/none",
    }.items():
        (tags / name).write_text(f"{content}\n" if content else "")
    (tags / "loop").symlink_to("loop")
    with open(store.repo / "packed-refs", "a") as stream:
        stream.write(f"{'2' * 40} refs/tags/zzz\n")
    tree = store.check_out(two)
    git = ("git", "-C", str(tree))
    assert store.run(*git, "describe", "--match", "v*") == f"v1-1-g{two[:7]}"
    assert set(store.run(*git, "-c", "core.quotePath=false", "tag").split("\n")) == {
        *("v1", "of-a-tag", "of-a-tree", "of-a-file", "füße/🎉", "a-link")
    }
    for command in ("log --oneline --decorate --all", "fsck --connectivity-only", "gc --quiet", "describe --tags", "status"):
        store.run(*git, *command.split())


def test_unreadable_tags_are_left_out(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    (commit,) = store.commits({"file": text("1\n")})
    with open(store.repo / "packed-refs", "w") as stream:
        stream.write(f"# pack-refs with: peeled fully-peeled sorted \n{commit} refs/heads/main\n{commit} refs/tags/v1\nrubbish\n")
    tree = store.check_out(commit, forge.Origin("http://localhost/r/app.git", "main", commit))
    assert store.run("git", "-C", str(tree), "for-each-ref", "--format=%(refname)") == "\n".join(
        ("refs/remotes/origin/HEAD", "refs/remotes/origin/main")
    )
    assert "jobs see no tags: git for-each-ref ended with 128: fatal: unexpected line in" in capsys.readouterr().err


def test_tens_of_thousands_of_tags_cost_a_moment(store: Store) -> None:
    (commit,) = store.commits({"file": text("1\n")})
    lines = "".join(f"{commit} refs/tags/v{number:05}\n" for number in range(50_000))
    (store.repo / "packed-refs").write_text(f"# pack-refs with: peeled fully-peeled sorted \n{lines}")
    began = time.monotonic()
    tree = store.check_out(commit)
    assert time.monotonic() - began < 10
    assert store.run("git", "-C", str(tree), "describe", "--tags", "--match", "v00001") == "v00001"
    assert store.run("git", "-C", str(tree), "tag", "--list", "v49999") == "v49999"


def test_a_repo_without_tags_costs_no_git_more(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    (commit,) = store.commits({"file": text("1\n")})
    started: list[str] = []
    start = forge.git_process
    monkeypatch.setattr(
        forge, "git_process", lambda repo, args, *rest, **env: (started.append(args[0]), start(repo, args, *rest, **env))[1]
    )
    store.check_out(commit)
    assert started == ["read-tree"]
    tag(store, "v1", commit, False)
    store.check_out(commit)
    assert sorted(started[1:]) == ["cat-file", "diff-index", "for-each-ref", "ls-files", "read-tree"]


@pytest.mark.parametrize(
    "url", ["http://localhost:8080/r/app.git", "https://git.example/a#b;c/r/app.git", 'http://o"dd\\/r/app.git']
)
def test_a_checkout_knows_where_it_comes_from(store: Store, url: str) -> None:
    base, head = store.commits({"file": text("1\n")}, {"file": text("2\n"), "lib": text("1" * 40, "160000")})
    tree = store.check_out(head, forge.Origin(url, "trunk/füße", base))
    git = partial(store.run, "git", "-C", str(tree))
    assert git("remote", "get-url", "origin") == url
    assert git("rev-parse", "origin/trunk/füße", "origin", "HEAD", "origin/HEAD").split() == [base, base, head, base]
    assert git("log", "--format=%H", "origin..").split() == [head]
    assert git("symbolic-ref", "refs/remotes/origin/HEAD") == "refs/remotes/origin/trunk/füße"
    assert git("branch", "--show-current") == "" and git("status", "--porcelain") == ""


def test_a_checkout_of_a_repo_without_base_has_no_branch_of_it(store: Store) -> None:
    (head,) = store.commits({"file": text("1\n")})
    tree = store.check_out(head, forge.Origin("http://localhost/r/app.git", "main"))
    assert store.run("git", "-C", str(tree), "for-each-ref") == ""
    assert store.run("git", "-C", str(tree), "remote") == "origin"


GIT_LOOK = """git describe; git describe --tags; git remote get-url origin; git rev-parse origin/main origin/HEAD HEAD
git log --format=%s | tail -n 1; git rev-list --count HEAD
git push -q origin HEAD:refs/tags/evil 2>&1 | tail -n 1
"""


def test_a_job_and_a_deployment_work_with_git(work: Work) -> None:
    server = work.server
    work.branch("main", deploy=GIT_LOOK, run=GIT_LOOK)
    base = work.git("rev-parse", "HEAD")
    work.git("tag", "-a", "-m", "One", "v1")
    said = work.push("HEAD:main", "v1")
    deployed = server.ended(int(said.split("/jobs/")[1].split()[0]))
    url = f"{server.url}/r/{work.name}.git"
    refused = f"fatal: unable to access '{url}/': The requested URL returned error: 403"
    lines = ["v1", "v1", url, base, base, base, "First commit", "2", refused]
    assert server.job_log(deployed["id"]).decode().splitlines() == lines
    head = work.branch("topic", file="x")
    tested = server.ended(work.push_job("topic"))
    candidate = tested["tested"]
    lines = [f"v1-2-g{candidate[:7]}"] * 2 + [url, base, base, candidate, "First commit", "4", refused]
    assert candidate != head and server.job_log(tested["id"]).decode().splitlines() == lines
    assert "evil" not in work.bare("tag")
    work.branch("next", other="y")  # what base was when it was tested, whatever comes then
    work.push("HEAD:main")
    server.idle()
    newest = work.bare("rev-parse", "main")
    deployed = next(job for job in server.get("/jobs")["jobs"] if job["kind"] == "post-merge" and job["commit"] == newest)
    assert server.job_log(deployed["id"]).decode().splitlines()[3:6] == [newest] * 3


def test_a_job_fetches_and_has_relative_submodules(shared: Server) -> None:
    lib, app = shared.repo("lib"), shared.repo("app")
    lib.branch("main", answer="42\n")
    lib.push("HEAD:main")
    app.branch(
        "main", run="git submodule status; git submodule update --init -q && cat lib/answer; git fetch origin && git branch -r\n"
    )
    app.git("submodule", "--quiet", "add", "--name", "lib", f"{shared.url}/r/lib.git", "lib")
    app.write(".gitmodules", '[submodule "lib"]\n\tpath = lib\n\turl = ../lib.git\n')
    app.commit("A submodule")
    app.push("HEAD:main")
    app.branch("topic", file="x")
    for _ in range(2):  # in a new place, and in one where it was
        job = shared.ended(app.push_job("topic", force=True))
        lines = [line.strip() for line in shared.job_log(job["id"]).decode().splitlines()]
        assert lines[:2] == [f"-{lib.bare('rev-parse', 'main')} lib", "42"]
        assert lines[-3:] == ["origin/HEAD -> origin/main", "origin/main", "origin/topic"]
        app.branch("topic", file="y")


# -- shallow and borrowing repos -----------------------------------------------------------------------------


def test_a_job_of_a_shallow_repo_works_with_what_there_is_of_its_history(
    make_server: Callable[..., Server], tmp_path: Path
) -> None:
    server = make_server()
    origin = server.repo("origin")
    for number in range(3):
        origin.branch(
            "main",
            f"Commit {number}",
            run="git log --format=%s; git describe; git fsck --no-dangling; git status -s\n",
            n=str(number),
        )
        origin.push("HEAD:main")
    origin.git("tag", "-a", "-m", "One", "v1")
    origin.push("v1")
    server.idle()
    clone = ["git", "clone", "-q", "--bare", "--depth=1", f"file://{origin.path}", str(tmp_path / "copy")]
    subprocess.run(clone, check=True, env=clean_environ())
    (tmp_path / "copy").rename(server.data / "repos/copy.git")
    copy = Work(server, "copy", server.data / "repos/copy.git", tmp_path / "work")
    subprocess.run(["git", "clone", "-q", f"file://{copy.path}", str(copy.tree)], check=True, env=clean_environ())
    server.stop()
    server.start()  # looks at it at once
    wait_for((copy.path / "hooks/post-receive").exists, "the hooks")
    head = copy.branch("topic", AUTO, file="x")
    said = copy.push("topic", options=("wait",))
    assert "merged into main as" in said
    job = server.ended(int(said.split("/jobs/")[1].split()[0]))
    merged, changed, cut, described = server.job_log(job["id"]).decode().splitlines()
    assert (merged, changed, cut) == ("Forge Merge: topic", "A change", "Commit 2")
    assert described.startswith("v1-2-g") and job["heads"][0]["commit"] == head
    server.idle()


@pytest.mark.parametrize("planted", ["a link", "a pipe", "rubbish"])
def test_what_lies_in_the_place_of_shallow_tells_a_job_nothing(store: Store, planted: str) -> None:
    (commit,) = store.commits({"file": text("1\n")})
    (store.root / "token").write_text("2" * 40 + "\nsecret\n")
    place = store.repo / "shallow"
    tree = store.check_out(commit)
    if planted == "a pipe":
        os.mkfifo(place)
    elif planted == "a link":
        place.symlink_to(store.root / "token")
    else:
        place.write_text(f"secret\n{commit}\n{commit} secret\n")
    forge.write_git_dir(store.root / "new", store.repo, commit, store.slot / "index", forge.NO_ORIGIN, "")
    kept = (store.root / "new/shallow").read_text() if (store.root / "new/shallow").exists() else ""
    assert tree.exists() and kept == (f"{commit}\n" if planted == "rubbish" else "")


def borrow(objects: Path, *lines: str) -> None:
    (objects / "info").mkdir(exist_ok=True, parents=True)
    (objects / "info/alternates").write_text("".join(f"{line}\n" for line in lines))


def test_a_checkout_of_a_repo_that_borrows_objects_finds_all(store: Store) -> None:
    """Also from one that borrows itself, by relative paths, and with lines that git passes over."""
    one, two = store.commits({"file": text("1\n")}, {"file": text("2\n")})
    first, second, third = (store.root / f"repos/{name}.git" for name in ("first", "second", "third"))
    store.repo.rename(first)
    (store.root / "repos/linked.git").symlink_to(first)  # what follows it is beside what it leads to
    for repo in (second, third):
        store.run("git", "init", "-q", "--bare", str(repo))
    borrow(second / "objects", "# a comment", "", "../../first.git/objects/")
    borrow(third / "objects", str(store.root / "repos/./linked.git/../second.git/objects"), '"quoted"', "../../third.git/objects")
    assert set(forge.borrowed_from(third)) == {first / "objects", second / "objects", third / "objects"}
    assert forge.why_not_borrowed(third, "third") is None
    tree = forge.fill_checkout(store.slot, store.trash, third, two)
    assert store.run("git", "-C", str(tree), "log", "--format=%H").split() == [two, one]


def test_paths_relative_to_a_repo_that_is_a_link_are_relative_to_where_it_leads(store: Store) -> None:
    (store.root / "big/lender.git/objects").mkdir(parents=True)
    store.repo.rename(store.root / "big/app.git")
    store.repo.symlink_to(store.root / "big/app.git")
    borrow(store.repo / "objects", "../../lender.git/objects")
    assert set(forge.borrowed_from(store.repo)) == {store.root / "big/lender.git/objects"}


MISSING = {
    "absolute": ("{root}/gone/objects", "{root}/gone/objects, which does not exist"),
    "relative": ("../../gone.git/objects", "{root}/repos/gone.git/objects, which does not exist"),
    "not a folder": ("{root}/file", "{root}/file, which the server cannot read"),
    "by way of another": ("../../other.git/objects", "{root}/gone/objects, which does not exist"),
    "odd": ("{root}/go\tne\x1b]0;pwned\x07", "{root}/go\tne␛]0;pwned␇, which does not exist"),
}


@pytest.mark.parametrize(("line", "named"), MISSING.values(), ids=MISSING.keys())
def test_a_place_that_a_repo_borrows_from_and_that_is_gone_is_named(store: Store, line: str, named: str) -> None:
    (store.root / "file").touch()
    borrow(store.root / "repos/other.git/objects", f"{store.root}/gone/objects")
    borrow(store.repo / "objects", line.format(root=store.root))
    listing = store.root / f"repos/{'other' if 'other' in line else 'app'}.git/objects/info/alternates"
    way = f"bring it back, or take its line out of {listing} if no object is missing without it"
    assert forge.why_not_borrowed(store.repo, "app") == f"app borrows objects from {named.format(root=store.root)}; {way}"


def test_jobs_wait_while_objects_that_their_repo_borrows_are_gone(make_server: Callable[..., Server], tmp_path: Path) -> None:
    server = make_server(FORGE_MAX_JOBS="1", FORGE_SANDBOX="none")
    work = server.repo()
    gate = work.gate("open")
    work.branch("first", run=f"until [ -e {gate} ]; do sleep 0.05; done\n")
    first = work.push_job("first")
    server.running(first)
    work.branch("second")
    second = work.push_job("second")
    borrow(work.path / "objects", f"{tmp_path}/gone")
    gate.touch()
    assert server.ended(first)["status"] == "passed"
    words = f"app borrows objects from {tmp_path}/gone, which does not exist; bring it back, or take its line out of"
    wait_for(lambda: (server.get("/")["repos"][0]["trouble"] or "").startswith(words), "the words")
    assert words in work.push("first:third"), "the pusher is told, too"
    assert words in server.cli("doctor", check=False).stdout
    assert server.get(f"/jobs/{second}")["status"] == "pending"
    (tmp_path / "gone").mkdir()
    look_at(server, "app")
    assert server.ended(second)["status"] == "passed"
    assert server.get("/")["repos"][0]["trouble"] is None
    assert "third" in [request["branch"] for request in server.get("/r/app")["merge_requests"]]


def look_at(server: Server, name: str) -> None:
    """Let the server look at a repo, as a hook would."""
    assert server.hook(json.dumps({"repo": name, "updates": []}).encode(), Content_Type="application/json").status == 202
