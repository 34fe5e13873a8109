"""Floods: pushes and jobs that try to fill memory, disk or time, and what watches a server meanwhile.

Each flood is a function that writes into a source repo and names the refs to push; its size says how much of it there is.
``tests/test_floods.py`` lets loose small ones, ``tests/bench.py`` large ones.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import psutil

Environ = dict[str, str]


class Source:
    """A bare repo in which hostile objects are made, on top of a base."""

    def __init__(self, path: Path, environ: Environ):
        self.path, self.environ = path, environ

    def git(self, *args: str, text: str | bytes = b"") -> str:
        given = text.encode() if isinstance(text, str) else text
        done = subprocess.run(["git", "-C", self.path, *args], input=given, env=self.environ, capture_output=True, timeout=300)
        if done.returncode:
            raise RuntimeError(f"git {args[0]}: {done.stderr.decode(errors='replace')[-500:]}")
        return done.stdout.decode().strip()

    def write(self, kind: str, content: bytes) -> str:
        """Write an object that git would not make by itself."""
        return self.git("hash-object", "-t", kind, "-w", "--stdin", "--literally", text=content)

    def tree(self, entries: Iterable[tuple[str, str, str]], beside: str = "") -> str:
        """A tree of (mode, name, id), beside what another tree has."""
        names = {name for _, name, _ in entries}
        listed = self.git("ls-tree", beside).splitlines() if beside else []
        kept = [line for line in listed if line.partition("\t")[2] not in names]
        kinds = {"040000": "tree"}
        return self.git(
            "mktree", text="\n".join([*kept, *(f"{mode} {kinds.get(mode, 'blob')} {oid}\t{name}" for mode, name, oid in entries)])
        )

    def commit(self, ref: str, tree: str, message: bytes = b"A change\n", author: bytes = b"Eve", parent: str = "main") -> None:
        """Put a commit under a ref; its message and author may be of any size."""
        parents = f"parent {self.git('rev-parse', parent)}\n" if parent else ""
        who = b" <eve@localhost> 1700000000 +0000\n"
        head = f"tree {tree}\n{parents}".encode() + b"author " + author + who + b"committer Eve" + who
        self.git("update-ref", f"refs/heads/{ref}", self.write("commit", head + b"\n" + message))

    def push(self, repo: Path, refs: list[str]) -> None:
        """Push branches, or refs with their whole name."""
        whole = [ref if "/" in ref else f"refs/heads/{ref}" for ref in refs]
        self.git("push", "--quiet", str(repo), *(f"{ref}:{ref}" for ref in whole))

    def file(self, ref: str, name: str, content: bytes, mode: str = "100644") -> None:
        """A branch that sets one file."""
        self.commit(ref, self.tree([(mode, name, self.write("blob", content))], "main"))


def runs(script: str) -> Callable[[Source, int], list[str]]:
    """A flood that a job makes; SIZE in its script is how much of it."""

    def make(source: Source, size: int) -> list[str]:
        source.file("flood", "run", script.replace("SIZE", str(size)).encode())
        return ["flood"]

    return make


def branches(source: Source, size: int) -> list[str]:
    """So many branches in one push, all of which conflict with each other."""
    names = [f"flood-{number}" for number in range(size)]
    form = "commit refs/heads/{0}\ncommitter Eve <e> 1700000000 +0000\ndata 1\nx\nfrom refs/heads/main^0\n"
    form += "M 644 inline one\ndata <<E\n{0}\nE\n\n"
    parts = map(form.format, names)
    source.git("fast-import", "--quiet", text="".join(parts))
    return names


def files(source: Source, size: int) -> list[str]:
    """A diff of so many files."""
    blob = source.write("blob", b"x\n")
    folders = [
        (
            "040000",
            f"d{at}",
            source.git("mktree", text="".join(f"100644 blob {blob}\tfile-{n}\n" for n in range(at, min(size, at + 1000)))),
        )
        for at in range(0, size, 1000)
    ]
    source.commit("flood", source.tree(folders, "main"))
    return ["flood"]


def message(source: Source, size: int) -> list[str]:
    """A message of so many bytes in one line, an author of a tenth, and another with trailers by the thousand."""
    tree = source.git("rev-parse", "main^{tree}")
    source.commit("flood", tree, b"x" * size, b"E" * (size // 10))
    source.commit("flood-trailers", tree, b"A change\n\n" + b"Auto-Merge: no\n" * (size // 30))
    return ["flood", "flood-trailers"]


def bomb(source: Source, size: int) -> list[str]:
    """A tree of ten to the power of `size` files, which weighs next to nothing."""
    oid, mode = source.write("blob", b"boom\n"), "100644"
    for _ in range(size):
        oid, mode = source.tree([(mode, f"f{number}", oid) for number in range(10)]), "040000"
    source.commit("flood", source.tree([(mode, "bomb", oid)], "main"))
    return ["flood"]


def blob(source: Source, size: int) -> list[str]:
    """A file of so many zeros: where base has changed it too, as flake.lock, and a thousand times in one tree."""
    oid = source.git("hash-object", "-w", "--stdin", text=bytes(size))
    source.commit("flood", source.tree([("100644", "run", oid)], "main"))
    source.commit("flood-lock", source.tree([("100644", "flake.lock", oid)], "main"))
    source.commit("flood-many", source.tree([("100644", f"f{number}", oid) for number in range(1000)], "main"))
    return ["flood", "flood-lock", "flood-many"]


def lock(source: Source, size: int) -> list[str]:
    """A flake.lock of so many bytes."""
    source.file("flood", "flake.lock", b'{"nodes": {' + b'"a": {}, ' * (size // 9) + b'"z": {}}}')
    return ["flood"]


def tags(source: Source, size: int) -> list[str]:
    """So many tags."""
    head = source.git("rev-parse", "main")
    source.git("update-ref", "--stdin", text="".join(f"create refs/tags/flood-{number} {head}\n" for number in range(size)))
    return ["refs/tags/*"]


def history(source: Source, size: int) -> list[str]:
    """So many commits that base lacks."""
    first = "from refs/heads/main^0\n"
    parts = (
        f"commit refs/heads/flood\ncommitter Eve <e> {1700000000 + n} +0000\ndata 1\nx\n{'' if n else first}\n"
        for n in range(size)
    )
    source.git("fast-import", "--quiet", text="".join(parts))
    return ["flood"]


def paths(source: Source, size: int) -> list[str]:
    """Folders so deep, and a file whose name has so many times two hundred bytes."""
    oid, mode = source.write("blob", b"deep\n"), "100644"
    for _ in range(size):
        oid, mode = source.write("tree", b"%o d\0" % int(mode, 8) + bytes.fromhex(oid)), "40000"
    long = source.write("tree", b"100644 " + b"n" * size * 200 + b"\0" + bytes.fromhex(source.write("blob", b"long\n")))
    source.commit("flood", source.tree([("040000", "deep", oid)], "main"))
    source.commit("flood-long", source.tree([("040000", "long", long)], "main"))
    return ["flood", "flood-long"]


LITTER = """mkdir -p many locked/inner links
(cd many && seq 1 SIZE | xargs touch) ; seq 1 SIZE | sed 's/^/top-/' | xargs touch
touch locked/inner/file; chmod 0 locked/inner; chmod 500 locked
ln -s / links/root; ln -s /etc/passwd links/file; ln -s ../../../../.. links/up
i=0; while [ $i -lt 3000 ]; do mkdir d && cd d || break; i=$((i+1)); done
"""


class Flood(NamedTuple):
    """A flood, and how much of it is small or large."""

    make: Callable[[Source, int], list[str]]
    small: int
    large: int
    what: str


FLOODS = {
    "log": Flood(runs("yes\n"), 0, 0, "a job that prints without end"),
    "line": Flood(runs("head -c SIZE /dev/zero | tr '\\0' x\n"), 50_000_000, 1_000_000_000, "one line of 1 GB"),
    "hole": Flood(runs("truncate -s SIZE /dev/stdout; sleep 60\n"), 1 << 42, 1 << 42, "a log that is a hole of 4 TB"),
    "litter": Flood(runs(LITTER), 2000, 500_000, "a million files left behind, locked, deep, linked"),
    "branches": Flood(branches, 60, 500, "500 branches in one push"),
    "files": Flood(files, 5000, 100_000, "a diff of 100,000 files"),
    "message": Flood(message, 2_000_000, 10_000_000, "a message of 10 MB, an author of 1 MB"),
    "bomb": Flood(bomb, 8, 10, "a tree of 10^10 files"),
    "blob": Flood(blob, 70_000_000, 2_000_000_000, "files of 2 GB that weigh 2 MB"),
    "lock": Flood(lock, 10_000_000, 100_000_000, "a flake.lock of 100 MB"),
    "tags": Flood(tags, 1000, 20_000, "20,000 tags"),
    "history": Flood(history, 20_000, 300_000, "300,000 commits"),
    "paths": Flood(paths, 700, 5000, "folders 5,000 deep, a name of 1 MB"),
}


@dataclass
class Watch:
    """Asks a server for pages as long as a flood lasts, and looks at its memory and at that of what it runs."""

    url: str
    process: psutil.Process
    pages: list[str]
    slowest: float = 0.0  # seconds
    slow_page: str = ""
    wrong: list[str] = field(default_factory=list)
    own: int = 0  # bytes at most, of the server
    launcher: int = 0
    git: int = 0  # of the largest git it started
    over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Watch:
        self.began = self.own = self.process.memory_info().rss
        self.threads = [threading.Thread(target=target) for target in (self._ask, self._measure)]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join()

    def _ask(self) -> None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while True:
            for page in self.pages:
                began = time.perf_counter()
                try:
                    with opener.open(self.url + page, timeout=60) as answer:
                        answer.read()
                except urllib.error.HTTPError as error:
                    with error:
                        if (
                            error.code != 404 or "/mr/" not in page
                        ):  # a branch is not there before it is pushed, and after it merged
                            self.wrong.append(f"{page}: {error}")
                except OSError as error:
                    self.wrong.append(f"{page}: {error}")
                took = time.perf_counter() - began
                if took > self.slowest:
                    self.slowest, self.slow_page = took, page
                if self.over.wait(0.05):
                    return

    def _measure(self) -> None:
        while not self.over.wait(0.02):
            self.own = max(self.own, self.process.memory_info().rss)
            for child in self.process.children():
                with contextlib.suppress(psutil.Error):
                    rss = child.memory_info().rss
                    if child.name() == "git":
                        self.git = max(self.git, rss)
                    elif "-c" in child.cmdline():  # one that is just being started looks like us
                        self.launcher = max(self.launcher, rss)


def left_over(data: Path, process: psutil.Process) -> list[str]:
    """What should be gone when all is done: rubbish, running jobs, processes beside the launcher."""
    left = [str(path) for folder in ("trash", "running") for path in (data / folder).iterdir()]
    for child in process.children():
        with contextlib.suppress(psutil.NoSuchProcess):
            left += [f"process {child.pid} {child.name()}"] if not child.name().startswith("python") else []
    left += [str(path) for path in (data / "repos").glob("*/forge-note-*")]
    return left
