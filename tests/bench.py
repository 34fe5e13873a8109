"""How fast forge is, beside the same commands called by a script: ``make bench``.

A benchmark and no test: nothing fails for being slow. Each bench is a function from a Lab (a temporary folder with a clean
environment) to rows; ``BENCHES`` lists them. Where there is a bare side, forge and it take turns in one loop, each
round with commits of its own, so that a noisy moment hits both and neither finds what the other one left in a cache.
The bare side works in a copy of the same bare repo, with the same configuration but without hooks; ``BARE`` holds what
it runs. A machine that does something else meanwhile makes all of it slow, and forge, which has more threads, most.

Options: ``--quick`` (3 rounds), ``--only NAME`` (as often as wanted), ``--budget SECONDS``. The temporary folders are
made where ``TMPDIR`` says; what kind of disk that is matters.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from floods import FLOODS, Flood, Source, Watch, left_over

FORGE = Path(__file__).resolve().parent.parent / "forge.py"
POLL = 0.0005  # seconds between two looks at a ref
PATIENCE = 60.0  # seconds that anything waited for may take
MEGABYTE = 1e6


class Broken(Exception):
    """A bench cannot go on; the message says why."""


###############################################################################
# rows: what was measured, and how it is shown
###############################################################################


@dataclass
class Series:
    """The measurements of one thing: milliseconds, unless `unit` says something else."""

    values: list[float] = field(default_factory=list)
    unit: str = "ms"

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def __str__(self) -> str:
        low, high = min(self.values), max(self.values)
        return f"{spell(self.median)} ({spell(low)}–{spell(high)}) {self.unit}"


@dataclass
class Row:
    """One line of the table. `met` is None where there is no goal."""

    what: str
    forge: Series
    bare: Series | None = None
    compared: str = ""
    goal: str = ""
    met: bool | None = None

    def cells(self) -> tuple[str, ...]:
        verdict = {True: "met", False: "missed", None: ""}[self.met]
        bare = str(self.bare) if self.bare else ""
        return (self.what, str(len(self.forge.values)), str(self.forge), bare, self.compared, self.goal, verdict)


HEADINGS = ("what", "rounds", "forge: median (range)", "bare: median (range)", "compared", "goal", "verdict")
WIDTHS = (46, 6, 25, 25, 10, 10, 7)


def line_of(cells: Iterable[str]) -> str:
    """A line of the table; cells that are missing at its end stay empty."""
    return " | ".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=False)).rstrip()


def spell(number: float) -> str:
    """A number with as many digits as are of use."""
    return f"{number:.0f}" if abs(number) >= 100 else f"{number:.1f}" if abs(number) >= 1 else f"{number:.2f}"


def row_by_ratio(what: str, forge: Series, bare: Series, most: float) -> Row:
    """forge may take `most` times as long as the bare sequence."""
    ratio = forge.median / bare.median
    return Row(what, forge, bare, f"{ratio:.2f} ×", f"≤ {most:g} ×", ratio <= most)


def row_by_difference(what: str, forge: Series, bare: Series, most: float) -> Row:
    """forge may take `most` more than the bare sequence."""
    more = forge.median - bare.median
    return Row(what, forge, bare, f"{more:+.1f} {forge.unit}", f"≤ +{most:g} {forge.unit}", more <= most)


def row_by_limit(what: str, forge: Series, most: float, bare: Series | None = None) -> Row:
    """forge may take `most`; the bare side is there to look at."""
    compared = f"{forge.median / bare.median:.2f} ×" if bare else ""
    return Row(what, forge, bare, compared, f"≤ {most:g} {forge.unit}", forge.median <= most)


###############################################################################
# the lab: a folder, an environment, processes that end with it
###############################################################################

IDENTITY = {
    f"GIT_{who}_{what}": text for who in ("AUTHOR", "COMMITTER") for what, text in (("NAME", "B"), ("EMAIL", "b@localhost"))
}
# A store of its own, so that no other is filled and no daemon is in the way.
NIX_CONFIG = "experimental-features = nix-command flakes\nsandbox = false\nbuild-users-group =\nsubstitute = false"


class Lab:
    """A temporary folder for one bench, and the environment of all that runs in it."""

    def __init__(self, root: Path, rounds: int, deadline: float):
        """`rounds` is the most that a bench may do of anything; no new round begins after `deadline` (monotonic seconds)."""
        self.root, self.most, self.deadline = root, rounds, deadline
        foreign = ("FORGE_", "GIT_", "LISTEN_", "NOTIFY_", "CREDENTIALS_")
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        self.environ |= {**IDENTITY, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, "LC_ALL": "C"}
        self.environ |= {"NIX_CONFIG": NIX_CONFIG, "HOME": str(self.folder("home"))}
        for name in ("STORE", "STATE", "LOG", "CONF"):
            self.environ[f"NIX_{name}_DIR"] = str(self.folder(f"nix/{name.lower()}"))

    def folder(self, name: str) -> Path:
        """A folder of this lab, made if it is not there."""
        path = self.root / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def rounds(self, wanted: int = 15) -> Iterator[tuple[int, tuple[str, str]]]:
        """Yield (number, sides in the order of this round): at most `wanted`, at least one, as long as there is time."""
        for number in range(min(wanted, self.most)):
            if number and time.monotonic() > self.deadline:
                return
            yield number, ("forge", "bare") if number % 2 else ("bare", "forge")

    def run(self, *command: str | Path, text: str | None = None, where: Path | None = None) -> str:
        """Run a command and return what it prints. Raises Broken when it fails."""
        try:
            done = subprocess.run(
                command,
                input=text or "",
                cwd=where or self.root,
                env=self.environ,
                capture_output=True,
                text=True,
                timeout=PATIENCE,
            )
        except subprocess.TimeoutExpired:
            raise Broken(f"{command[0]} did not end within {PATIENCE:.0f} s") from None
        if done.returncode:
            raise Broken(f"{command[0]} ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-500:]}")
        return done.stdout

    @contextlib.contextmanager
    def running(self, *command: str | Path, output: Any = subprocess.DEVNULL) -> Iterator[subprocess.Popen[bytes]]:
        """A command that runs beside us; it has ended well when the block is left, or Broken is raised."""
        said = self.root / "said"
        with open(said, "wb") as errors:
            process = subprocess.Popen(
                command, cwd=self.root, env=self.environ, stdin=subprocess.DEVNULL, stdout=output, stderr=errors
            )
        try:
            yield process
            if wait_for_end(process):
                raise Broken(f"{command[0]} ended with {process.returncode}: {said.read_text('utf-8', 'replace').strip()[-500:]}")
        finally:
            if process.poll() is None:
                end_tree(process.pid)
                process.wait()

    def remove(self) -> None:
        """Remove the folder, with what a Nix store made read-only."""
        for path, _, _ in os.walk(self.root / "nix"):
            with contextlib.suppress(OSError):
                os.chmod(path, 0o700)
        subprocess.run(["rm", "-rf", self.root])  # Python's own gives up on folders that are very deep


def end_tree(pid: int) -> None:
    """End a process that was started here, and what it started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for one in [*process.children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


def wait_until(done: Callable[[], bool], what: str, step: float = POLL, patience: float = PATIENCE) -> float:
    """Look every `step` seconds until `done`, and return when that was (perf_counter). Raises Broken after `patience`."""
    last = time.perf_counter() + patience
    while not done():
        if time.perf_counter() > last:
            raise Broken(f"{what} did not happen within {patience:.0f} s")
        time.sleep(step)
    return time.perf_counter()


def wait_for_end(process: subprocess.Popen[bytes]) -> int:
    """The exit code of a process; ``Popen.wait`` with a timeout looks ever more seldom, and would measure that."""
    wait_until(lambda: process.poll() is not None, "the end of a process")
    return int(process.returncode)


class Server:
    """A real ``forge serve`` on a free port of the loopback, with a data directory in the lab."""

    def __init__(self, lab: Lab, name: str = "data", command: tuple[str | Path, ...] = (sys.executable, FORGE)):
        self.lab, self.data = lab, lab.folder(name)
        lab.environ |= {"FORGE_DATA_DIR": str(self.data), "FORGE_HOST": "127.0.0.1", "FORGE_PORT": "0"}
        self.errors = lab.root / f"{name}.err"
        with open(self.errors, "wb") as errors:
            self.began = time.perf_counter()
            self.process = subprocess.Popen(
                [*command, "serve"],
                cwd=lab.root,
                env=lab.environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        self.watched = psutil.Process(self.process.pid)
        self.jobs: dict[int, dict[str, Any]] = {}
        self._read = 0
        assert self.process.stdout
        self.url = self.process.stdout.readline().decode().strip().rpartition(" ")[2]
        if not self.url.startswith("http://127.0.0.1:"):
            self.close()
            raise Broken(f"the server did not start: {self.errors.read_text('utf-8', 'replace').strip()[-500:]}")

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the server, and the jobs that would outlive it."""
        with contextlib.suppress(psutil.NoSuchProcess):
            left = self.watched.children(recursive=True)
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(15)
            for process in left:
                if process.is_running():
                    end_tree(process.pid)
        end_tree(self.process.pid)
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()

    def healthy(self) -> bool:
        """Whether /healthz says so."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self.url}/healthz", timeout=10) as answer:
            return bool(answer.status == 200)

    def time_page(self, path: str) -> float:
        """Milliseconds of the quickest of five answers to a browser."""
        return min(self.time_pages([path] * 5))

    def time_pages(self, paths: Iterable[str]) -> list[float]:
        """Milliseconds of each answer to a browser."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        took = []
        for path in paths:
            request = urllib.request.Request(self.url + path, headers={"Accept": "text/html"})
            began = time.perf_counter()
            with opener.open(request, timeout=60) as answer:
                answer.read()
            took.append(1000 * (time.perf_counter() - began))
        return took

    def page_bytes(self, path: str) -> int:
        """The size of a page."""
        request = urllib.request.Request(self.url + path, headers={"Accept": "text/html"})
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
            return len(answer.read())

    def cpu(self) -> float:
        """Seconds of processor time that the server itself has had."""
        times = self.watched.cpu_times()
        return times.user + times.system

    def look(self) -> bool:
        """Bring `jobs` up to date with the journal, and return whether there was anything new."""
        journal = self.data / "jobs.jsonl"
        if journal.stat().st_size == self._read:
            return False
        with open(journal, "rb") as stream:
            stream.seek(self._read)
            text = stream.read()
        whole = text[: text.rfind(b"\n") + 1]
        for line in whole.splitlines():
            record = json.loads(line)
            if record["event"].startswith("job."):
                self.jobs.setdefault(record["id"], {}).update(record)
        self._read += len(whole)
        return True

    def settle(self) -> None:
        """Wait until no job is left and the server has had nothing to do for a while, so that it disturbs nobody."""
        last, quiet = self.cpu(), time.perf_counter()

        def still() -> bool:
            nonlocal last, quiet
            spent = self.cpu()
            if self.look() or spent != last or any(job["event"] != "job.finished" for job in self.jobs.values()):
                last, quiet = spent, time.perf_counter()
            return time.perf_counter() - quiet > 0.06

        wait_until(still, "a server with nothing to do", 0.01)

    def job_of(self, branch: str) -> dict[str, Any]:
        """What the journal says of the newest job of a branch."""
        self.look()
        return next(
            (job for _, job in sorted(self.jobs.items(), reverse=True) if job["branch"] == branch), {"event": "", "status": ""}
        )

    def log_of(self, branch: str, repo: str) -> Path:
        """The log of the newest job of a branch."""
        return self.data / "logs" / repo / f"{self.job_of(branch)['id']}.log"


###############################################################################
# repos: where commits come from, and the two places they are pushed to
###############################################################################


class Commit(NamedTuple):
    """A commit to be made: on top of the commit `parent`, or without one. Files below .forge/ are executable."""

    branch: str
    files: dict[str, str]
    message: str = "A change"
    parent: str = ""


AUTO = "A change that merges by itself\n\nAuto-Merge: yes\n"

FLAKE = """{
  outputs = { self }:
    let
      system = "%(system)s";
      # a program from a derivation: it needs nothing but /bin/sh, and no nixpkgs
      program = name: derivation {
        inherit name system;
        text = "#!/bin/sh\\necho ${name} passed";
        builder = "/bin/sh";
        args = [ "-c" "echo \\"$text\\" > $out; chmod +x $out" ];
        PATH = "/bin:/usr/bin";
        preferLocalBuild = true;
        allowSubstitutes = false;
      };
      app = name: { type = "app"; program = "${program name}"; };
    in {
      apps.${system} = { pre-merge = app "pre-merge"; post-merge = app "post-merge"; };
    };
}
"""
SCRIPT = "#!/bin/sh\necho passed\n"
WITH_SCRIPT = {".forge/pre-merge": SCRIPT, ".forge/post-merge": SCRIPT}
WITH_NIX_COMMAND = ("nix", "run", ".#pre-merge")
WITH_SCRIPT_COMMAND = ("./.forge/pre-merge",)


def with_nix() -> dict[str, str]:
    """The files of a repo whose jobs are flake apps."""
    machine = platform.machine()
    system = f"{'aarch64' if machine == 'arm64' else machine}-{platform.system().lower()}"
    return {"flake.nix": FLAKE % {"system": system}}


def why_no_nix(lab: Lab) -> str | None:
    """Why nothing can be said of Nix here, or None: a real run tells."""
    if not shutil.which("nix"):
        return "no nix"
    flake = lab.folder("probe")
    for name, text in with_nix().items():
        (flake / name).write_text(text)
    try:
        lab.run("nix", "run", f"path:{flake}#pre-merge")
    except Broken as error:
        return f"nix does not work here: {error}"
    return None


class Pair:
    """A source of commits, and two bare repos to push them to: forge's, and a copy that has no hooks."""

    def __init__(self, lab: Lab, server: Server, files: dict[str, str], name: str = "repo"):
        self.lab, self.server, self.name = lab, server, name
        self.source = lab.root / f"{name}.source"
        created = lab.run(sys.executable, FORGE, "create", name, "--base", "main").strip()
        self.repos = {"forge": Path(created), "bare": lab.root / f"{name}.bare"}
        lab.run("git", "init", "--quiet", "--bare", "--initial-branch=main", self.source)
        self.make([Commit("main", {"README": "a repo of the benchmark\n", **files})])
        shutil.copytree(self.repos["forge"], self.repos["bare"])
        shutil.rmtree(self.repos["bare"] / "hooks")
        subprocess.run(["git", "-C", self.repos["bare"], "config", "--unset", "receive.procReceiveRefs"], check=True)
        for side in self.repos:
            self.push(side, ["main"])
        server.settle()

    def make(self, commits: Iterable[Commit]) -> dict[str, str]:
        """Put commits into the source; returns all its branches with their ids."""
        stream = "".join(map(as_import, commits))
        self.lab.run("git", "-C", self.source, "fast-import", "--quiet", text=stream)
        form = "--format=%(refname:lstrip=2) %(objectname)"
        listing = self.lab.run("git", "-C", self.source, "for-each-ref", form, "refs/heads/")
        return dict(line.split(" ") for line in listing.splitlines())

    def changes(self, side: str, names: Iterable[object], message: str) -> dict[str, str]:
        """Make a branch for each name on top of the present base, as people do; returns their ids.

        The n-th of them writes the n-th file, so that they merge with each other, and the repo does not grow.
        """
        self.lab.run("git", "-C", self.source, "fetch", "--quiet", self.repos[side], f"+refs/heads/main:refs/remotes/{side}/main")
        parent = self.tip(side).strip()
        branches = [f"{side}-{name}" for name in names]
        files = [{f"changes/{number}": f"{branch}\n"} for number, branch in enumerate(branches)]
        made = self.make(Commit(branch, its, message, parent) for branch, its in zip(branches, files, strict=True))
        return {branch: made[branch] for branch in branches}

    def advance(self, side: str) -> str:
        """A commit on top of the present base that is no branch of forge's."""
        return self.changes(side, ["base"], "Base moves on")[f"{side}-base"]

    def push_command(self, side: str, branches: Iterable[str]) -> tuple[str | Path, ...]:
        """What pushes branches to one of the repos."""
        return "git", "-C", self.source, "push", self.repos[side], *(f"refs/heads/{name}:refs/heads/{name}" for name in branches)

    def push(self, side: str, branches: Iterable[str]) -> None:
        """Push branches, and wait until git says that it has been done."""
        self.lab.run(*self.push_command(side, branches))

    def delete(self, side: str, branches: Iterable[str]) -> None:
        """Delete branches by a push."""
        self.lab.run("git", "-C", self.source, "push", self.repos[side], *(f":refs/heads/{name}" for name in branches))

    def tip(self, side: str) -> str:
        """The commit of base, from its ref file."""
        return (self.repos[side] / "refs/heads/main").read_text()

    def time_merge(self, side: str, names: Iterable[object], job: tuple[str, ...]) -> float:
        """Milliseconds from the start of a push until base has moved and all its branches are gone, on either side."""
        heads = self.changes(side, names, AUTO)
        files = [self.repos[side] / "refs/heads" / branch for branch in heads]
        before = self.tip(side)
        command = self.push_command(side, heads)
        trees = self.lab.folder("trees")
        if side == "bare":
            words = (self.source, self.repos[side], trees, before.strip(), " ".join(job))
            command = ("sh", "-c", BARE["merge"], "bare", *words, *(word for pair in heads.items() for word in pair))

        def merged() -> bool:
            if process.poll():  # it failed; zero or None is fine
                return True
            return self.tip(side) != before and not any(map(os.path.exists, files))

        began = time.perf_counter()
        with self.lab.running(*command) as process:
            ended = wait_until(merged, f"the merge of {', '.join(heads)}")
        shutil.rmtree(trees)
        self.lab.run("git", "-C", self.repos["bare"], "worktree", "prune")
        self.server.settle()
        return 1000 * (ended - began)


def as_import(commit: Commit) -> str:
    """A commit in the language of git fast-import."""
    who = f"B <b@localhost> {int(time.time())} +0000"
    parts = [f"commit refs/heads/{commit.branch}\ncommitter {who}\n{as_data(commit.message)}"]
    if commit.parent:
        parts.append(f"from {commit.parent}\n")
    for path, text in commit.files.items():
        parts.append(f"M {'100755' if path.startswith('.forge/') else '100644'} inline {path}\n{as_data(text)}")
    return "".join(parts) + "\n"


def as_data(text: str) -> str:
    """A text in the language of git fast-import."""
    return f"data {len(text.encode())}\n{text}\n"


# The bare sequences: what a person would script with the same commands, and no more. Nothing is removed in the measured time.
BARE = {
    # push, then for each branch: candidate, checkout, job, one ref transaction
    "merge": r"""
set -e
source=$1 repo=$2 trees=$3 base=$4 job=$5
shift 5
refs=
number=0
for word; do
    number=$((number + 1))
    [ $((number % 2)) -eq 0 ] || refs="$refs refs/heads/$word:refs/heads/$word"
done
git -C "$source" push "$repo" $refs
cd "$repo"
while [ $# -gt 0 ]; do
    branch=$1 head=$2
    shift 2
    tree=$(git merge-tree --write-tree "$base" "$head")
    commit=$(git commit-tree "$tree" -p "$base" -p "$head" -m "Merge $branch")
    git worktree add -q --detach "$trees/$branch" "$commit"
    (cd "$trees/$branch" && exec $job)
    printf '%s\n' start "update refs/heads/main $commit $base" "delete refs/heads/$branch $head" prepare commit |
        git update-ref --stdin
    base=$commit
done
""",
    # push, bring a checkout that is there to the commit, clean it, run the job
    "again": r"""
set -e
source=$1 repo=$2 tree=$3 branch=$4
git -C "$source" push "$repo" "refs/heads/$branch:refs/heads/$branch"
cd "$tree"
git checkout -q --force --detach "refs/heads/$branch"
git clean -ffdxq
exec ./.forge/pre-merge
""",
    # clone, look, lock the input to a commit, commit, push, look again
    "bump": r"""
set -e
configs=$1 clone=$2 url=$3 commit=$4 before=$5
nix --version
git merge-base --is-ancestor "$before" "$commit"
git clone -q --depth=1 --no-single-branch --no-local --no-tags --template= "$configs" "$clone"
cd "$clone"
git for-each-ref refs/remotes/origin/
echo HEAD:flake.lock | git cat-file --batch
nix flake lock --update-input app --override-input app "$url"
git commit -q -m "Bump app" -- flake.lock
git push origin "HEAD:refs/heads/deploy-app-$(echo "$commit" | cut -c1-8)"
git fetch -q --prune --depth=1 origin
git for-each-ref refs/remotes/origin/
echo HEAD:flake.lock | git cat-file --batch
""",
}


###############################################################################
# the benches: a small function each
###############################################################################


def bench_merge_nix(lab: Lab) -> Iterator[Row]:
    """From the start of a push to its merge; the job is a flake's app."""
    yield row_by_ratio("push → merged, nix run .#pre-merge", *time_merges(lab, with_nix(), WITH_NIX_COMMAND), 1.3)


def bench_merge_script(lab: Lab) -> Iterator[Row]:
    """From the start of a push to its merge; the job is a script."""
    yield row_by_ratio("push → merged, .forge/pre-merge", *time_merges(lab, WITH_SCRIPT, WITH_SCRIPT_COMMAND), 1.3)


def time_merges(lab: Lab, files: dict[str, str], job: tuple[str, ...]) -> tuple[Series, Series]:
    """Single merges on both sides, after one that is not counted."""
    took = {"forge": Series(), "bare": Series()}
    with Server(lab) as server:
        pair = Pair(lab, server, files)
        for side in took:
            pair.time_merge(side, ["first"], job)
        for number, sides in lab.rounds():
            for side in sides:
                took[side].values.append(pair.time_merge(side, [number], job))
    return took["forge"], took["bare"]


def bench_push(lab: Lab) -> Iterator[Row]:
    """The push itself: until git gives the prompt back."""
    with Server(lab) as server:
        pair = Pair(lab, server, WITH_SCRIPT)
        for count in (1, 20):
            what = f"git push of {count} branch{'es' if count > 1 else ''}"
            yield row_by_difference(what, *time_pushes(lab, server, pair, count), 15)
        helpers = [process.memory_full_info().uss for process in server.watched.children(recursive=True)]
        yield Row("… the server's memory after these jobs (RSS)", Series([server.watched.memory_info().rss / MEGABYTE], "MB"))
        yield Row("… what its helper processes add (USS)", Series([sum(helpers) / MEGABYTE], "MB"))


def time_pushes(lab: Lab, server: Server, pair: Pair, count: int) -> tuple[Series, Series]:
    """Pushes of `count` new branches on both sides; they are removed after each round."""
    took = {"forge": Series(), "bare": Series()}
    for number, sides in lab.rounds():
        for side in sides:
            branches = pair.changes(side, [f"{count}-{number}-{one}" for one in range(count)], "A change that waits")
            began = time.perf_counter()
            with lab.running(*pair.push_command(side, branches)) as process:
                wait_for_end(process)
                took[side].values.append(1000 * (time.perf_counter() - began))
            server.settle()
            pair.delete(side, branches)
            server.settle()
    return took["forge"], took["bare"]


def bench_rollback(lab: Lab) -> Iterator[Row]:
    """From the click that rolls back until the deployment has begun; each round goes to the other of two trees that passed."""
    took = Series()
    with Server(lab) as server:
        pair = Pair(lab, server, WITH_SCRIPT)
        lab.run(
            "git", "config", "--file", pair.repos["forge"] / "config", "forge.postMerge", 'git rev-parse HEAD > "$HOME/begun"'
        )
        begun = server.data / "home" / pair.name / "post-merge" / "begun"
        targets = []
        for name in ("first", "second"):
            pair.time_merge("forge", [name], WITH_SCRIPT_COMMAND)
            server.settle()
            targets.append(pair.tip("forge").strip())
        for number, _ in lab.rounds():
            began, before = time.perf_counter(), pair.tip("forge")
            lab.run(sys.executable, FORGE, "rollback", pair.name, targets[number % 2])
            ended = wait_until(lambda: pair.tip("forge") != before and begun.read_text() == pair.tip("forge"), "a deployment")  # noqa: B023
            took.values.append(1000 * (ended - began))
            server.settle()
    yield row_by_limit("rollback → its deployment has begun", took, 1000)


def bench_many_nix(lab: Lab) -> Iterator[Row]:
    """Twenty branches in one push, all of which merge by themselves; twenty of forge's own single merges are beside it."""
    single, took = Series(), {"forge": Series(), "bare": Series()}
    with Server(lab) as server:
        pair = Pair(lab, server, with_nix())
        for side in took:
            pair.time_merge(side, ["first"], WITH_NIX_COMMAND)
        for number, sides in lab.rounds(3):
            for one in range(5):
                single.values.append(pair.time_merge("forge", [f"{number}-single-{one}"], WITH_NIX_COMMAND))
            for side in sides:
                names = [f"{number}-{one}" for one in range(20)]
                took[side].values.append(pair.time_merge(side, names, WITH_NIX_COMMAND))
    ratio = took["forge"].median / single.median
    yield row_by_limit("20 branches in one push → all merged, nix", took["forge"], 2000, took["bare"])
    yield Row("… in single merges", single, None, f"{ratio:.1f} ×", "≤ 20 ×", ratio <= 20)


def input_repos(lab: Lab, app: Path, configs: Path, files: dict[str, str]) -> Path:
    """Give `configs`, a bare repo, a flake whose input is `app`, with its lock and more files; a clone of it."""
    tree = lab.root / "configs.tree"
    lab.run("git", "clone", "-q", configs, tree)
    flake = '{ inputs.app = { url = "git+file://%s?ref=main"; flake = false; }; outputs = _: { }; }' % app
    for name, text in {"flake.nix": flake, **files}.items():
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).write_text(text)
        (tree / name).chmod(0o755 if name.startswith(".forge/") else 0o644)
    lab.run("git", "add", "-A", where=tree)
    lab.run("nix", "flake", "lock", where=tree)
    lab.run("git", "commit", "-qam", "Take app", where=tree)
    lab.run("git", "push", "-q", "origin", "HEAD:main", where=tree)
    return tree


def bench_bump(lab: Lab) -> Iterator[Row]:
    """A bump of a small flake, beside its own git and Nix commands. No server is there."""
    took = {"forge": Series(), "bare": Series()}
    app, configs, tree = lab.root / "app.git", lab.root / "configs.git", lab.root / "app"
    for bare in (app, configs):
        lab.run("git", "init", "-q", "--bare", "--initial-branch=main", bare)
    lab.run("git", "clone", "-q", app, tree)

    def advance() -> str:
        lab.run("git", "commit", "-q", "--allow-empty", "-m", "A change", where=tree)
        lab.run("git", "push", "-q", "origin", "HEAD:main", where=tree)
        return lab.run("git", "rev-parse", "HEAD", where=tree).strip()

    forge = lab.root / "forge"  # as jobs have it
    forge.write_text(
        lab.run(sys.executable, "-c", "import forge; print(forge.own_command(forge.load_config({})))", where=FORGE.parent)
    )
    forge.chmod(0o755)
    before = advance()
    input_repos(lab, app, configs, {})
    for number, sides in lab.rounds():
        for side in sides:
            commit = advance()
            clone = lab.root / f"clone-{number}"
            url = f"git+file://{app}?ref=main&rev={commit}"
            command: tuple[str | Path, ...] = (forge, "bump", configs, "app")
            if side == "bare":
                command = ("sh", "-c", BARE["bump"], "bare", configs, clone, url, commit, before)
            began = time.perf_counter()
            lab.run(*command, where=tree)
            took[side].values.append(1000 * (time.perf_counter() - began))
            lab.run("git", "-C", configs, "update-ref", "-d", f"refs/heads/deploy-app-{commit[:8]}")
    yield row_by_difference("forge bump, a small flake", took["forge"], took["bare"], 1000)


def bench_gitops(lab: Lab) -> Iterator[Row]:
    """From a push to one repo until the base of another has moved to take it. In brackets: what the system before this took."""
    whole, opening, checking, merging = Series(), Series(), Series(), Series()
    with Server(lab) as server:
        configs = Path(lab.run(sys.executable, FORGE, "create", "configs", "--base", "main").strip())
        pair = Pair(lab, server, with_nix(), "app")
        lab.run("git", "-C", pair.repos["forge"], "config", "forge.postMerge", f"forge bump {configs} app")
        input_repos(lab, pair.repos["forge"], configs, {".forge/pre-merge": "#!/bin/sh\nexec nix flake show\n"})
        server.settle()
        base, heads = configs / "refs/heads/main", configs / "refs/heads"
        for number, _ in lab.rounds():
            before = base.read_text()
            branches = pair.changes("forge", [number], AUTO)
            began = time.perf_counter()
            pair.push("forge", branches)
            ended = wait_until(
                lambda before=before: base.read_text() != before and os.listdir(heads) == ["main"], "the merge of the bump"
            )
            whole.values.append(1000 * (ended - began))
            server.settle()
            bump, test = (
                max((job for job in server.jobs.values() if (job["repo"], job["kind"]) == which), key=lambda job: job["id"])
                for which in (("app", "post-merge"), ("configs", "pre-merge"))
            )
            opening.values.append(1000 * bump["duration"])
            checking.values.append(1000 * test["duration"])
            merge = json.loads((server.data / "merges.jsonl").read_text().splitlines()[-1])
            verdict, landed = (datetime.fromisoformat(at.replace("Z", "+00:00")) for at in (test["at"], merge["merged_at"]))
            merging.values.append(1000 * (landed - verdict).total_seconds())
    yield row_by_limit("push to app → configs has it (15–20 s)", whole, 3000)
    yield Row("… opening the merge request (2–3 s)", opening)
    yield Row("… its check, nix flake show (5–10 s)", checking)
    yield row_by_limit("… the merge after the verdict (< 1 s)", merging, 100)


def bench_queue(lab: Lab) -> Iterator[Row]:
    """Forty independent branches in one push whose job takes 0.2 s; the bare side tests and merges one at a time."""
    count, seconds = 40, 0.2
    files = {**WITH_SCRIPT, ".forge/pre-merge": f"#!/bin/sh\nsleep {seconds}\n"}
    took = {"forge": Series(), "bare": Series()}
    with Server(lab) as server:
        pair = Pair(lab, server, files)
        for number, sides in lab.rounds(3):
            for side in sides:
                took[side].values.append(pair.time_merge(side, [f"{number}-{one}" for one in range(count)], WITH_SCRIPT_COMMAND))
    most = 1000 * (1.5 * count * seconds / (os.cpu_count() or 1) + 2)
    yield row_by_limit("40 branches in one push → all merged, 0.2 s a job", took["forge"], most, took["bare"])


def bench_large(lab: Lab) -> Iterator[Row]:
    """From the start of a push until the job runs, in a repo of 20,000 files; the checkout is there from the job before."""
    files = {f"{n % 200:03d}/{n:05d}.txt": f"the text of file {n}\n" * 20 for n in range(20000)}
    files[".forge/pre-merge"] = "#!/bin/sh\ndate +%s.%N\n"
    took = {"forge": Series(), "bare": Series()}
    with Server(lab) as server:
        pair = Pair(lab, server, files, "large")
        lab.run("git", "-C", pair.repos["bare"], "worktree", "add", "--quiet", "--detach", lab.root / "tree", "main")
        for side in took:
            time_start(lab, server, pair, side, "first")
        for number, sides in lab.rounds(5):
            for side in sides:
                took[side].values.append(time_start(lab, server, pair, side, number))
    yield row_by_limit("push → job runs, 20,000 files, checkout there", took["forge"], 300, took["bare"])


def time_start(lab: Lab, server: Server, pair: Pair, side: str, name: object) -> float:
    """Milliseconds from the start of a push to the time that its job prints."""
    (branch,) = pair.changes(side, [name], "A change in a large repo")
    command = pair.push_command(side, [branch])
    log = lab.root / "bare.log"
    if side == "bare":
        command = ("sh", "-c", BARE["again"], "bare", pair.source, pair.repos[side], lab.root / "tree", branch)
    with open(log, "wb") as output:
        began = time.time()
        with lab.running(*command, output=output):
            pass
    server.settle()
    if side == "forge":
        log = server.log_of(branch, pair.name)
    return 1000 * (float(log.read_text().split()[-1]) - began)


def bench_chatty(lab: Lab) -> Iterator[Row]:
    """A job that prints 200 MB, from its start to its verdict in the journal, against the same command into a file."""
    chatty = f"#!/bin/sh\nyes '{'a line of a chatty job ' * 4}' | head -c 200000000\n"
    took, cpu, rss = {"forge": Series(), "bare": Series()}, Series(unit="s"), Series(unit="MB")
    script = lab.root / "chatty"
    script.write_text(chatty)
    script.chmod(0o755)
    with Server(lab) as server:
        pair = Pair(lab, server, {".forge/pre-merge": chatty})
        watch_chatty(lab, server, pair, "first")
        time_into_file(lab, script)
        for number, sides in lab.rounds(9):
            for side in sides:
                if side == "bare":
                    took[side].values.append(time_into_file(lab, script))
                else:
                    figures = watch_chatty(lab, server, pair, number)
                    for series, value in zip((took[side], cpu, rss), figures, strict=True):
                        series.values.append(value)
    yield row_by_ratio("a job that prints 200 MB", took["forge"], took["bare"], 1.1)
    yield row_by_limit("… the server's processor time meanwhile", cpu, 0.05)
    yield row_by_limit("… the growth of its memory (RSS)", rss, 2)


def time_into_file(lab: Lab, script: Path) -> float:
    """Milliseconds that a command takes whose output goes into a file."""
    log = lab.root / "chatty.log"
    with open(log, "ab") as output:
        began = time.perf_counter()
        with lab.running(script, output=output) as process:
            wait_for_end(process)
            took = 1000 * (time.perf_counter() - began)
    log.unlink()
    return took


def watch_chatty(lab: Lab, server: Server, pair: Pair, name: object) -> tuple[float, float, float]:
    """(milliseconds from the start of the job to its end, the server's processor seconds, its growth in MB) of one job."""
    (branch,) = pair.changes("forge", [name], "A change that is talked about")
    most = 0

    def ended() -> bool:
        nonlocal most
        most = max(most, server.watched.memory_info().rss)
        return bool(server.job_of(branch)["event"] == "job.finished")

    rss = server.watched.memory_info().rss
    with lab.running(*pair.push_command("forge", [branch])):
        began = wait_until(
            lambda: bool(server.job_of(branch)["event"] in ("job.started", "job.finished")), f"the start of {branch}"
        )
        cpu = server.cpu()
        took = 1000 * (wait_until(ended, f"the end of {branch}", 0.002) - began)
        cpu = server.cpu() - cpu
    server.settle()
    log = server.log_of(branch, pair.name)
    if server.job_of(branch)["status"] != "passed" or log.stat().st_size != 200_000_000:
        raise Broken(f"the job of {branch} did not print what it should: {server.job_of(branch)}")
    log.unlink()
    return took, cpu, (most - rss) / MEGABYTE


def bench_sandbox(lab: Lab) -> Iterator[Row]:
    """From the start of a push to the verdict of its job, which does nothing: in the sandbox, and beside it without one."""
    took = {"forge": Series(), "bare": Series()}
    pairs = {}
    with contextlib.ExitStack() as stack:
        for side, setting in (("forge", "bwrap"), ("bare", "none")):
            lab.environ["FORGE_SANDBOX"] = setting
            pairs[side] = Pair(lab, stack.enter_context(Server(lab, f"data-{setting}")), WITH_SCRIPT, setting)
            time_verdict(lab, pairs[side], "first")
        for number, sides in lab.rounds():
            for one, side in enumerate(sides * 2):
                took[side].values.append(time_verdict(lab, pairs[side], f"{number}-{one}"))
    yield row_by_difference("push → verdict, sandbox against none", took["forge"], took["bare"], 20)


def time_verdict(lab: Lab, pair: Pair, name: object) -> float:
    """Milliseconds from the start of a push until its job has ended."""
    (branch,) = pair.changes("forge", [name], "A change to be judged")
    began = time.perf_counter()
    with lab.running(*pair.push_command("forge", [branch])):
        ended = wait_until(lambda: bool(pair.server.job_of(branch)["event"] == "job.finished"), f"the verdict on {branch}")
    pair.server.settle()
    if pair.server.job_of(branch)["status"] != "passed":
        raise Broken(f"the job of {branch} did not pass: {pair.server.job_of(branch)}")
    return 1000 * (ended - began)


def bench_idle(lab: Lab) -> Iterator[Row]:
    """Start to first answer, and what a server with nothing to do takes: the script, and one whose bytecode is kept."""
    with Server(lab) as server:
        installed = server.data / "bin/forge"
    lab.environ |= {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(lab.folder("bytecode"))}
    for what, command in (("", (sys.executable, FORGE)), (", installed", (installed,))):
        started, rss = Series(), Series(unit="MB")
        for number, _ in lab.rounds():
            with Server(lab, f"data-{number}", command) as server:
                wait_until(server.healthy, "an answer", 0)
                started.values.append(1000 * (time.perf_counter() - server.began))
                time.sleep(0.5)
                rss.values.append(server.watched.memory_info().rss / MEGABYTE)
        yield row_by_limit(f"start of the server{what} → first answer", started, 350)
        yield row_by_limit(f"memory of an idle server{what} (RSS)", rss, 40)


def bench_start(lab: Lab) -> Iterator[Row]:
    """Start to first answer with a journal of 100,000 jobs, and what pages that look for jobs take beside 100 jobs."""
    for name, jobs in (("few", 100), ("many", 100_000)):
        lab.environ |= {"FORGE_DATA_DIR": str(lab.folder(name))}
        for number in range(5):
            lab.run(sys.executable, FORGE, "create", f"repo-{number}", "--base", "main")
        lab.run(sys.executable, Path(__file__).with_name("history.py"), lab.folder(name), str(jobs))
    kept, cold, rss = Series(), Series(), Series(unit="MB")
    for number, _ in lab.rounds(7):
        for series in (cold, kept):
            if series is cold:
                (lab.folder("many") / "snapshot").unlink(missing_ok=True)
            with Server(lab, "many") as server:
                wait_until(server.healthy, "an answer", 0)
                series.values.append(1000 * (time.perf_counter() - server.began))
                if series is cold and number == 0:
                    wait_until((lab.folder("many") / "snapshot").exists, "a snapshot", 0.01)
                rss.values.append(server.watched.memory_info().rss / MEGABYTE)
    yield row_by_limit("a journal of 100,000 jobs: start → first answer", kept, 1500)
    yield Row("… without the snapshot", cold)
    yield row_by_limit("… memory after it (RSS)", rss, 120)
    with Server(lab, "few") as few, Server(lab, "many") as many:
        for path in (
            "/jobs",
            "/jobs?repo=repo-1&limit=10",
            "/jobs?status=timeout",
            "/jobs?repo=repo-2&branch=feature/7-of-a-person",
            "/",
        ):
            took = {few: Series(), many: Series()}
            for number, _ in lab.rounds():
                for server in (few, many) if number % 2 else (many, few):
                    took[server].values.append(server.time_page(path))
            yield row_by_ratio(f"… {path}, against 100 jobs", took[many], took[few], 1.2)


def bench_mr_page(lab: Lab) -> Iterator[Row]:
    """The page of a merge request with a large diff. Of it git's short answers are kept; of 500 files none is short."""
    shapes = {
        "a diff of 100,000 lines in 20 files": {f"{n}.txt": f"a line of file {n}\n" * 5000 for n in range(20)},
        "a diff of 100,000 lines in 500 files": {f"{n}.txt": f"a line of file {n}\n" * 200 for n in range(500)},
        "a diff of 100,000 lines in 1 file": {"one.txt": "".join(f"line {n}\n" for n in range(100_000))},
        "a diff of 100,000 lines in 5,000 files": {f"{n % 50}/{n}.txt": f"a line of file {n}\n" * 20 for n in range(5000)},
    }
    with Server(lab) as server:
        pair = Pair(lab, server, WITH_SCRIPT)
        for number, (shape, files) in enumerate(shapes.items()):
            branch, took = f"shape-{number}", Series()
            pair.make([Commit(branch, files, parent=pair.tip("forge").strip())])
            pair.push("forge", [branch])
            server.settle()
            page = f"/r/{pair.name}/mr/{branch}"
            began = time.perf_counter()
            size = Series([server.page_bytes(page) / MEGABYTE], "MB")
            first = Series([1000 * (time.perf_counter() - began)])
            for _ in lab.rounds():
                took.values.append(server.time_page(page))
            yield row_by_limit(f"merge request page, {shape}", took, 500)
            yield row_by_limit("… the first time", first, 500)
            yield row_by_limit("… its size", size, 1)


def bench_log_page(lab: Lab) -> Iterator[Row]:
    """The page of a job whose log has 100 MB in colour, and what the server keeps of it."""
    line = "\\033[3%dmcompiling\\033[0m the \\033[1mfile number %d\\033[0m of many that are compiled\\n"
    script = f"""#!/bin/sh
i=0; while [ $i -lt 2000 ]; do i=$((i+1)); printf '{line}' $((i % 8)) $i; done > lines
size=100000000; case $FORGE_BRANCH in *small) size=1000000; esac
while cat lines; do :; done | head -c $size
"""
    took, size, rss, screen = Series(), Series(unit="kB"), Series(unit="MB"), Series()
    with Server(lab) as server:
        pair = Pair(lab, server, {".forge/pre-merge": script})
        small, branch = pair.changes("forge", ["small", "large"], "A change with a long log")
        pair.push("forge", [small, branch])
        server.settle()
        path = f"/jobs/{server.job_of(branch)['id']}"
        if server.log_of(branch, pair.name).stat().st_size != 100_000_000:
            raise Broken(f"the job did not print what it should: {server.job_of(branch)}")
        for _ in range(10):  # so that each thread has what it needs for a page of that size
            server.time_page(f"/jobs/{server.job_of(small)['id']}")
        before = server.watched.memory_info().rss
        for _ in lab.rounds():
            began = time.perf_counter()
            with urllib.request.urlopen(urllib.request.Request(server.url + path, headers={"Accept": "text/html"})) as answer:
                size.values.append(len(answer.read()) / 1000)
            took.values.append(1000 * (time.perf_counter() - began))
            rss.values.append((server.watched.memory_info().rss - before) / MEGABYTE)
        screen.values += time_screens(lab, server.url + path)
    yield row_by_limit("page of a coloured log of 100 MB", took, 100)
    yield row_by_limit("… its size", size, 300)
    yield row_by_limit("… the growth of the server's memory (RSS)", rss, 2)
    if screen.values:
        yield row_by_limit("… first coloured screen in Chromium", screen, 1000)


def time_screens(lab: Lab, url: str) -> list[float]:
    """Milliseconds until Chromium shows the end of a log in colour, each time in a fresh profile; none without Chromium."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return []
    chromium, took = shutil.which("chromium"), []
    if not chromium:
        return []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for _ in lab.rounds(5):
            page = browser.new_page()
            began = time.perf_counter()
            page.goto(url, wait_until="commit")
            page.wait_for_selector("#log .line:last-child .ansi-red-fg, #log .line .ansi-green-fg", state="visible")
            took.append(1000 * (time.perf_counter() - began))
            page.close()
        browser.close()
    return took


VIEWERS, VIEWED_SECONDS = 100, 8
TICKING = f"""#!/bin/sh
i=0; while [ $i -lt {VIEWED_SECONDS * 10} ]; do
  i=$((i+1)); now=$(date +%s.%N)
  for line in 0 1 2 3 4 5 6 7 8 9; do echo "$now is when this line number $i$line of a log was written by a job"; done
  sleep 0.09
done
"""


def bench_viewers(lab: Lab) -> Iterator[Row]:
    """100 viewers of a job that writes 100 lines a second, asking as log.js does; and `/` for somebody else meanwhile."""
    late, sent, page = Series(), Series(unit="× log"), Series()
    with Server(lab) as server:
        pair = Pair(lab, server, {".forge/pre-merge": TICKING})
        for number, _ in lab.rounds(3):
            (branch,) = pair.changes("forge", [number], "A change that is watched")
            pair.push("forge", [branch])
            wait_until(lambda branch=branch: bool(server.job_of(branch)["event"] == "job.started"), "the start of a job")  # type: ignore[misc]
            delays, received, pages = asyncio.run(watch_together(server.url, server.job_of(branch)["id"]))
            server.settle()
            late.values.append(1000 * percentile(delays, 95))
            sent.values.append(max(received) / server.log_of(branch, pair.name).stat().st_size)
            page.values.append(1000 * percentile(pages, 95))
    yield row_by_limit("line → received by 100 viewers, 95 %", late, 1000)
    yield row_by_limit("… sent to the one who got most, with headers", sent, 1.5)
    yield row_by_limit("… / meanwhile, 95 %", page, 200)


def percentile(values: list[float], percent: int) -> float:
    """The value that so many percent of the others do not exceed."""
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


async def watch_together(url: str, job: int) -> tuple[list[float], list[float], list[float]]:
    """(seconds from each line to its receipt, bytes that each viewer was sent, seconds of each look at `/`)."""
    delays: list[float] = []
    pages: list[float] = []

    async def look() -> None:
        while True:
            began = time.perf_counter()
            channel = await connect(url)
            await fetch(channel, "/", "text/html")
            channel[1].close()
            pages.append(time.perf_counter() - began)
            await asyncio.sleep(0.2)

    looking = asyncio.create_task(look())
    received = await asyncio.gather(*(view_log(url, job, number / VIEWERS / 2, delays) for number in range(VIEWERS)))
    looking.cancel()
    return delays, list(received), pages


async def view_log(url: str, job: int, start: float, delays: list[float]) -> float:
    """Ask for what is new in a log every half second until its job has ended, and every ten times for the facts above it."""
    await asyncio.sleep(start)
    channel, offset, rest, total, live, asked = await connect(url), 0, b"", 0, True, 0
    while live:
        head, body = await fetch(channel, f"/jobs/{job}/log?offset={offset}", "text/plain")
        now = time.time()
        total, offset, asked = total + len(head) + len(body), offset + len(body), asked + 1
        *lines, rest = (rest + body).split(b"\n")
        delays += [now - float(line.split(b" ", 1)[0]) for line in lines]
        live = bool(body) or b"X-Job-Status: running" in head
        if asked % 10 == 0:
            total += sum(map(len, await fetch(channel, f"/jobs/{job}?facts=1", "text/html")))
        await asyncio.sleep(0.5)
    channel[1].close()
    return float(total)


Channel = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def connect(url: str) -> Channel:
    """A connection to a server that is kept."""
    host, _, port = url.removeprefix("http://").partition(":")
    return await asyncio.open_connection(host, int(port))


async def fetch(channel: Channel, path: str, accept: str) -> tuple[bytes, bytes]:
    """The head and the body of an answer."""
    reader, writer = channel
    writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: {accept}\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    size = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return head, await reader.readexactly(int(size.partition(b":")[2]))


def bench_repo_page(lab: Lab) -> Iterator[Row]:
    """The page of a repo with 200 open branches, half of them behind base: by a server that knows nothing, then again."""
    calls, wrapper = lab.root / "calls", lab.folder("bin") / "git"
    wrapper.write_text(f'#!/bin/sh\necho "$1" >>{calls}\nexec {shutil.which("git")} "$@"\n')
    wrapper.chmod(0o755)
    with Server(lab) as server:
        # what has failed is of no interest to the gate: nothing is known of it but from a page
        pair = Pair(lab, server, {".forge/pre-merge": "#!/bin/sh\nexit 1\n"})
        for half in ("behind", "level"):
            branches = pair.changes("forge", [f"{half}-{number}" for number in range(100)], f"A change that is {half}")
            lab.run(*pair.push_command("forge", branches))
            server.settle()
            if half == "behind":
                lab.run("git", "-C", pair.source, "push", pair.repos["forge"], f"{pair.advance('forge')}:refs/heads/main")
                server.settle()
    path, cold, anew, warm = f"/r/{pair.name}", Series(), Series(), Series()
    for _ in lab.rounds(7):
        with Server(lab) as server:
            wait_until(server.healthy, "an answer", 0)
            server.settle()
            cold.values += server.time_pages([path])
            anew.values += server.time_pages(f"{path}?{number}" for number in range(3))
            warm.values += server.time_pages([path] * 3)
    yield row_by_limit("200 branches, half behind: the repo's page, first", cold, 120)
    yield row_by_limit("… again, made anew", anew, 15)
    yield row_by_limit("… again, when nothing has changed", warm, 15)
    lab.environ["PATH"] = f"{wrapper.parent}:{lab.environ['PATH']}"
    with Server(lab) as server:
        server.settle()
        for name in ("first", "again"):
            calls.write_text("")
            server.time_pages([path])
            count = Series([float(len(calls.read_text().splitlines()))], "")
            yield (
                row_by_limit("… its git processes, then", count, 0) if name == "again" else Row("… git processes at first", count)
            )


def bench_clone(lab: Lab) -> Iterator[Row]:
    """A clone of 200 MB over http beside one by git's protocol over the repo's path, and what it takes of the server."""
    took, bare, grown = Series(), Series(), Series(unit="MB")
    with Server(lab) as server:
        pair = Pair(lab, server, WITH_SCRIPT)
        lab.run("git", "-C", pair.repos["forge"], "config", "core.bigFileThreshold", "1m")  # it is to be sent, not compressed
        large = lab.root / "large"
        large.write_bytes(os.urandom(200_000_000))
        tree = lab.folder("tree")
        setting = ("-c", "core.compression=0", "-c", "core.bigFileThreshold=1m")
        lab.run("git", *setting, "clone", "--quiet", pair.repos["forge"], tree)
        large.rename(tree / "large")
        lab.run("git", *setting, "-C", tree, "add", "large")
        lab.run("git", "-C", tree, "commit", "--quiet", "--message", "Something large")
        lab.run("git", *setting, "-C", tree, "push", "--quiet", "origin", "HEAD:main")
        server.settle()
        before = server.watched.memory_info().rss
        sources = {"forge": f"{server.url}/r/{pair.name}.git", "bare": f"file://{pair.repos['forge']}"}
        for _, sides in lab.rounds(5):
            for side in sides:
                copy = lab.root / "copy"
                began = time.perf_counter()
                lab.run("git", "clone", "--quiet", "--bare", sources[side], copy)
                (took if side == "forge" else bare).values.append(1000 * (time.perf_counter() - began))
                shutil.rmtree(copy)
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        peak = int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) * 1024
        grown.values.append((peak - before) / MEGABYTE)
    yield row_by_ratio("clone of 200 MB over http", took, bare, 2)
    yield row_by_limit("… what it adds to the server's memory", grown, 50)


def bench_jobs_page(lab: Lab) -> Iterator[Row]:
    """The newest jobs out of 100,000, for one reader and, where wrk is installed, for eight that ask without a pause."""
    for number in range(5):
        lab.environ |= {"FORGE_DATA_DIR": str(lab.folder("data"))}
        lab.run(sys.executable, FORGE, "create", f"repo-{number}", "--base", "main")
    lab.run(sys.executable, Path(__file__).with_name("history.py"), lab.folder("data"), "100000")
    with Server(lab) as server:
        server.settle()
        anew = Series(server.time_pages(f"/jobs?limit={100 + number}" for number, _ in lab.rounds())[1:])
        yield row_by_limit("/jobs of 100,000 jobs, made anew", anew, 10)
        yield row_by_limit("… again", Series(server.time_pages(["/jobs"] * len(anew.values))), 10)
        for kind in ("text/html", "application/json") if shutil.which("wrk") else ():
            many = Series(unit="/s")
            for _ in lab.rounds(3):
                said = lab.run("wrk", "-c", "8", "-t", "1", "-d", "3", "-H", f"Accept: {kind}", f"{server.url}/jobs")
                many.values.append(float(said.partition("Requests/sec:")[2].split()[0]))
            yield Row(f"… requests, 8 at a time, {kind}", many, None, "", "≥ 1000 /s", many.median >= 1000)


def bench_floods(lab: Lab) -> Iterator[Row]:
    """Floods of their whole size, each once: what the server's memory and answers are meanwhile, and that all is cleaned up."""
    lab.environ |= {"FORGE_LOG_LIMIT": str(1 << 30), "FORGE_JOB_TIMEOUT": "150"}
    with Server(lab) as server:
        other = Pair(lab, server, {}, "other")
        for name, flood in FLOODS.items():
            watch, cleaned = let_loose(lab, server, other, name, flood)
            slow = f"{watch.slow_page}, {len(watch.wrong)} wrong" if watch.wrong else watch.slow_page
            yield row_by_limit(f"{flood.what}: memory", Series([watch.own / MEGABYTE], "MB"), 150)
            beside = f"git {spell(watch.git / MEGABYTE)} MB, launcher {spell(watch.launcher / MEGABYTE)} MB"
            yield Row(f"… {beside}", Series([cleaned], "s to the end"))
            yield row_by_limit(f"… slowest answer: {slow}", Series([1000 * watch.slowest]), 1000)


def let_loose(lab: Lab, server: Server, other: Pair, name: str, flood: Flood) -> tuple[Watch, float]:
    """One flood: its Watch, and the seconds until all was done and cleaned up. Raises Broken."""
    pair = Pair(lab, server, {".forge/pre-merge": "#!/bin/sh\n[ ! -f run ] || . ./run\n", "run": "true\n"}, name)
    source = Source(pair.source, lab.environ)
    refs = flood.make(source, flood.large)
    (beside,) = other.changes("forge", [f"beside-{name}"], "A change beside a flood")
    pages = ["/", "/jobs", f"/r/{name}", "/r/other"]
    pages += [f"/r/{name}/mr/{ref}" for ref in refs[:3] if "/" not in ref]
    began = time.perf_counter()

    def over() -> bool:
        server.look()
        return all(job["event"] == "job.finished" for job in server.jobs.values()) and not left_over(server.data, server.watched)

    with Watch(server.url, server.watched, pages) as watch:
        source.push(pair.repos["forge"], refs)
        other.push("forge", [beside])
        wait_until(over, f"the end of {name}", 0.1, 240)
        cleaned = time.perf_counter() - began
    return watch, cleaned


class Bench(NamedTuple):
    """A bench as the table has it."""

    run: Callable[[Lab], Iterator[Row]]
    needs_nix: bool = False
    needs_bwrap: bool = False


BENCHES: dict[str, Bench] = {
    "merge-nix": Bench(bench_merge_nix, needs_nix=True),
    "merge-script": Bench(bench_merge_script),
    "push": Bench(bench_push),
    "rollback": Bench(bench_rollback),
    "many-nix": Bench(bench_many_nix, needs_nix=True),
    "bump": Bench(bench_bump, needs_nix=True),
    "gitops": Bench(bench_gitops, needs_nix=True),
    "queue": Bench(bench_queue),
    "large": Bench(bench_large),
    "chatty": Bench(bench_chatty),
    "sandbox": Bench(bench_sandbox, needs_bwrap=True),
    "idle": Bench(bench_idle),
    "start": Bench(bench_start),
    "mr-page": Bench(bench_mr_page),
    "log-page": Bench(bench_log_page),
    "viewers": Bench(bench_viewers),
    "repo-page": Bench(bench_repo_page),
    "jobs-page": Bench(bench_jobs_page),
    "clone": Bench(bench_clone),
    "floods": Bench(bench_floods),
}


###############################################################################
# the command
###############################################################################


def run_bench(name: str, rounds: int, deadline: float) -> bool:
    """Run one bench in a lab of its own and print its rows. Returns whether it came to its end."""
    lab = Lab(Path(tempfile.mkdtemp(prefix="forge-bench-")), rounds, deadline)
    try:
        trouble = why_no_nix(lab) if BENCHES[name].needs_nix else None
        if BENCHES[name].needs_bwrap and not shutil.which("bwrap"):
            trouble = "no bwrap"
        if trouble:
            print(line_of((name, "", f"skipped: {trouble}")), flush=True)
            return True
        for row in BENCHES[name].run(lab):
            print(line_of(row.cells()), flush=True)
        return True
    except Broken as error:
        print(line_of((name, "", f"broken: {error}")), flush=True)
        return False
    finally:
        lab.remove()


def versions() -> str:
    """What this ran on, in one line."""
    found = [f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}", f"Python {platform.python_version()}"]
    for command in ("git", "nix"):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            found.append(subprocess.run([command, "--version"], capture_output=True, text=True, timeout=10).stdout.strip())
    return " · ".join(found)


def main() -> int:
    """Run the benches that were asked for; 1 when one of them broke, whatever the others found."""
    parser = argparse.ArgumentParser(description="How fast forge is, beside the same commands called by a script.")
    parser.add_argument("--quick", action="store_true", help="3 rounds instead of 15")
    parser.add_argument("--only", action="append", choices=BENCHES, metavar="NAME", help=f"one of {', '.join(BENCHES)}")
    parser.add_argument(
        "--budget", type=float, default=200, metavar="SECONDS", help="begin no new round after that (default: 200)"
    )
    args = parser.parse_args()
    began = time.monotonic()
    print(f"{versions()}\n\n{line_of(HEADINGS)}\n{'-+-'.join('-' * width for width in WIDTHS)}", flush=True)
    try:
        well = [run_bench(name, 3 if args.quick else 15, began + args.budget) for name in args.only or BENCHES]
    except KeyboardInterrupt:
        return 130
    print(f"\n{time.monotonic() - began:.0f} s in all")
    return 0 if all(well) else 1


if __name__ == "__main__":
    sys.exit(main())
