"""The soak: people push while the server is killed again and again, and then every promise is looked at. ``make soak``.

A run is made of rounds. In each a few new repos get pushes of all kinds (PLAYS) for some seconds, while the server is ended
by SIGKILL at random moments, by SIGTERM, and inside its own git calls (a `git` first on its PATH, see faulty_git.py). Then it
is left alone until all has settled (or too long), and `Soak.broken` compares what was pushed with git, the journal,
the logs, the files and the processes. The seed decides what is done, not how the machine interleaves it.

Options: ``--seconds N`` (default 900), ``--seed S``, ``--keep`` (do not remove the directory of a run without a fault).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from conftest import AUTO, FORGE, Server, Work, clean_environ

import forge

MAX_JOBS = 2
REPOS = 3  # in each round
OPEN = 14  # branches in a repo; whoever pushes waits while there are more
PLAIN = "A change"
TRANSACTION = "update-ref:-z"  # a verb, or one with its first argument: here what moves base and removes branches
VERBS = [TRANSACTION, "update-ref", "merge-tree", "merge-tree", "hash-object", "hash-object", "read-tree", "read-tree"]
VERBS += ["for-each-ref", "for-each-ref", "log", "ls-files", "config", "merge-base", "rev-parse"]
PRE = """#!/bin/sh
echo "begin $FORGE_JOB_ID"
sleep 0.$((FORGE_JOB_ID % 6))
code=0
for file in bad/*; do [ ! -e "$file" ] || code=1; done
for file in pair/*-1; do [ ! -e "${file%-1}-2" ] || code=1; done
echo "end $FORGE_JOB_ID"
exit $code
"""
POST = """#!/bin/sh
echo "begin $FORGE_JOB_ID"
sleep 0.1
echo "end $FORGE_JOB_ID"
"""
WRAPPER = """#!/bin/sh
read -r verb count when whom pid ticks delay number 2>/dev/null <{here}/plan
if { [ "$1" = "$verb" ] || [ "$1:$2" = "$verb" ]; } && [ "$PPID" = "$pid" ]; then
    nth=1
    while [ $nth -le "$count" ] && ! (set -C; : >{here}/claim-$number-$nth) 2>/dev/null; do nth=$((nth + 1)); done
    [ $nth -ne "$count" ] || exec {python} -I -S {faulty} {real} $when $whom $pid $ticks $delay {here}/fired-$number "$@"
fi
exec {real} "$@"
"""


class Broken(Exception):
    """Promises that were broken, a line each."""


@dataclass
class Push:
    """A head that was pushed, and what is to become of it."""

    repo: str
    branch: str
    head: str
    kind: str
    fate: str = "lands"  # or "never"; "one" of the two of a pair; "before": only if that was begun until `until`
    until: str = ""
    stays: bool = False  # whether the branch is to be there at the end, at this head
    bad: bool = False  # its check fails
    mate: str | None = None  # the other branch of a pair


@dataclass
class Figures:
    """What a run did."""

    kills: int = 0
    faults: int = 0
    stops: int = 0
    starts: int = 0
    pushes: int = 0
    branches: int = 0
    merges: int = 0
    jobs: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        return (
            f"soak: {self.kills} kills ({self.faults} inside a git call), {self.stops} stops, {self.starts} starts, "
            f"{self.pushes} pushes, {self.branches} branches, {self.merges} merges, {self.jobs} jobs, {self.seconds:.0f} seconds"
        )


class Soak:
    """A data directory, the server on it that is ended and started, and everything that was pushed."""

    def __init__(self, root: Path, seed: int, patience: float = 120):
        """`patience` is how many seconds a round has to settle; a scan may take 45."""
        self.root = root
        self.patience = patience
        self.seed = seed
        self.random = random.Random(f"{seed}-faults")
        self.figures = Figures()
        self.pushed: list[Push] = []
        self.direct: list[tuple[str, str]] = []
        self.refused: list[str] = []
        self.repos: list[str] = []
        self.lock = threading.Lock()  # guards the four above and the figures
        self.plans = 0
        self.began = time.monotonic()
        self.faults = root / "faults"
        self.faults.mkdir(parents=True)
        (self.faults / "bin").mkdir()
        self.server = Server(root / "data", {"FORGE_MAX_JOBS": str(MAX_JOBS), "PATH": f"{self.faults}/bin:{os.environ['PATH']}"})
        real = shutil.which("git")
        faulty = Path(__file__).with_name("faulty_git.py")
        wrapper = self.faults / "bin/git"
        text = WRAPPER.replace("{here}", str(self.faults)).replace("{real}", str(real))
        wrapper.write_text(text.replace("{python}", sys.executable).replace("{faulty}", str(faulty)))
        wrapper.chmod(0o755)
        self.disarm()

    def note(self, text: str) -> None:
        """A line in the run's own log, for who looks for the reason of a fault."""
        with open(self.root / "soak.log", "a") as stream:
            stream.write(f"{time.strftime('%H:%M:%S', time.gmtime())}.{int(time.time() * 1000) % 1000:03d} {text}\n")

    # -- the server, started and ended -----------------------------------------

    @property
    def alive(self) -> bool:
        return self.server.process is not None and self.server.process.poll() is None

    def start(self, *plan: str) -> None:
        """Start the server, with a fault waiting for it if one is given. It may die of that before it listens."""
        self.reap()
        with open(self.server.data.with_suffix(".err"), "a") as errors:
            self.server.process = subprocess.Popen(
                [*FORGE, "serve"], env=self.server.environ, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        process = self.server.process
        if plan:
            self.arm(*plan)
        assert process.stdout
        waiting = select.poll()
        waiting.register(process.stdout, select.POLLIN)
        line = process.stdout.readline() if waiting.poll(60_000) else ""
        if line:
            self.server.url = line.split()[-1]
            self.figures.starts += 1
            self.note(f"started {process.pid}")
        elif not plan or self.fired() is None:
            raise Broken(f"the server did not start: {self.server.log[-1000:]}")

    def reap(self) -> None:
        """Take note of a server that has ended; nothing is armed against its pid any more."""
        self.disarm()
        if self.server.process:
            self.figures.kills += self.server.process.wait(timeout=20) == -signal.SIGKILL
            assert self.server.process.stdout
            self.server.process.stdout.close()
            self.server.process = None

    def end(self, number: int) -> None:
        """End the server by a signal. After SIGTERM it has to be gone soon, with code 0."""
        if not self.server.process:
            return
        process, moment = self.server.process, time.monotonic()
        process.send_signal(number)
        try:
            code = process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            raise Broken("the server did not end within 20 seconds of SIGTERM") from None
        self.note(f"signal {number} ended {process.pid} with {code} after {time.monotonic() - moment:.1f} s")
        self.figures.stops += number == signal.SIGTERM
        if number == signal.SIGTERM and code != 0 and self.fired() is None:
            raise Broken(f"after SIGTERM the server ended with {code}: {self.server.log[-1000:]}")
        self.reap()

    def arm(self, verb: str, count: str, when: str, whom: str, delay: str) -> None:
        """Have the `count`-th git call of that verb go wrong."""
        assert self.server.process
        pid = self.server.process.pid
        with contextlib.suppress(OSError):
            ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
            self.plans += 1
            self._plan(f"{verb} {count} {when} {whom} {pid} {ticks} {delay} {self.plans}")

    def disarm(self) -> None:
        """Let every git call be."""
        self._plan("-")

    def _plan(self, text: str) -> None:
        (self.faults / "plan.new").write_text(text + "\n")
        (self.faults / "plan.new").rename(self.faults / "plan")

    def fired(self) -> str | None:
        """What the last plan did, once it has."""
        with contextlib.suppress(OSError):
            return (self.faults / f"fired-{self.plans}").read_text().strip()
        return None

    def invent(self) -> tuple[str, ...]:
        """A fault: the verb, which of its calls, when, whom, a delay."""
        pick = self.random
        verb = pick.choices(VERBS, [10 if verb == TRANSACTION else 1 for verb in VERBS])[0]
        ways = ["before", "middle", "after", *(["locked", "moved", "late"] * 2 if verb == TRANSACTION else [])]
        when = pick.choice(ways)
        whom = "git" if verb == TRANSACTION and when in ("locked", "moved", "middle") and pick.random() < 0.3 else "server"
        return verb, str(pick.choice([1, 1, 2, 3])), when, whom, f"{pick.uniform(0, 0.8):.4f}"

    def hurt(self, seconds: float) -> None:
        """End and start the server for so many seconds."""
        end, pick = time.monotonic() + seconds, self.random
        while time.monotonic() < end:
            if not self.alive:
                if pick.random() < 0.3:
                    time.sleep(pick.uniform(0.1, 2))  # people push meanwhile; the hook must keep it
                self.start(*(self.invent() if pick.random() < 0.25 else ()))
            way = pick.choices(["fault", "kill", "stop"], [7, 3, 1])[0]
            if way == "fault":
                self.strike(self.invent())
            else:
                time.sleep(pick.uniform(0, 1.5))
                if self.alive:
                    self.end(signal.SIGKILL if way == "kill" else signal.SIGTERM)
        self.disarm()
        if not self.alive:
            self.start()

    def strike(self, plan: tuple[str, ...]) -> bool:
        """Wait for a fault to happen, for a while; whether it did."""
        if self.alive:
            self.arm(*plan)
        until = time.monotonic() + 3
        while time.monotonic() < until and self.alive and not self.fired():
            time.sleep(0.01)
        fired = self.fired()
        if fired:
            self.note(f"fault {self.plans}: {fired} ({' '.join(plan)})")
            while "server" in fired and self.alive and time.monotonic() < until + 5:
                time.sleep(0.005)
        self.disarm()
        return fired is not None

    # -- the people who push --------------------------------------------------------

    def play(self, work: Work, seconds: float, number: int) -> None:
        """Push to one repo for so many seconds, then do what is still to follow; a thread runs it."""
        person = Person(self, work, random.Random(f"{self.seed}-{number}-{work.name}"))
        try:
            person.play(seconds)
        except Exception as error:
            with self.lock:
                self.refused.append(f"{work.name}: nobody could push any more: {error!r}")

    # -- what was promised ------------------------------------------------------------

    def records(self) -> list[dict[str, Any]]:
        """All whole lines of the journal, by seq."""
        found = []
        for name in ("jobs", "merges"):
            text = (self.server.data / f"{name}.jsonl").read_bytes()
            found += [json.loads(line) for line in text[: text.rfind(b"\n") + 1].split(b"\n") if line]
        return sorted(found, key=lambda record: record["seq"])

    def git(self, repo: str, *args: str) -> str:
        """The real git in a repo of the server."""
        path = self.server.data / "repos" / f"{repo}.git"
        done = subprocess.run(["git", *args], cwd=path, env=clean_environ(), capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise Broken(f"{repo}: git {args[0]}: {done.stderr}")
        return done.stdout

    def refs(self, repo: str) -> dict[str, str]:
        """The branches of a repo."""
        lines = self.git(repo, "for-each-ref", "--format=%(refname:lstrip=2) %(objectname)", "refs/heads/").split("\n")
        return dict(line.split() for line in lines if line)

    def unsettled(self, repos: list[str]) -> list[str]:
        """What has not come about yet, as far as it could still come."""
        records = self.records()
        ended = {record["id"]: record for record in records if record["event"] == "job.finished"}
        queued = {record["id"]: record for record in records if record["event"] == "job.queued"}
        open_jobs = sorted(queued.keys() - ended.keys())
        found = [f"job {job} ({queued[job]['repo']}/{queued[job]['branch']}) has no verdict" for job in open_jobs]
        merged = Counter((record["repo"], record["branch"]) for record in records if record["event"] == "merged")
        seen = {record["repo"]: record["new"] for record in records if record["event"] == "base.moved"}
        newest = {(job["repo"], job["branch"], head["commit"]): job for job in ended.values() for head in job["heads"]}
        for repo in repos:
            refs = self.refs(repo)
            expected = {"main"}
            found += [f"{repo}: nobody has noticed that base is at {refs['main']}"] if seen.get(repo) != refs["main"] else []
            for push in self.pushed:
                if push.repo != repo:
                    continue
                about = f"{repo}/{push.branch} ({push.kind}, {push.head[:12]})"
                stays = push.stays
                if push.fate == "one":
                    sides = sum(merged[repo, branch] for branch in (push.branch, str(push.mate)))
                    stays = not merged[repo, push.branch]
                    found += [f"{about}: {sides} of the two have landed"] if sides != 1 else []
                elif push.fate == "lands" and not merged[repo, push.branch]:
                    found.append(f"{about} has not landed")
                if stays:
                    expected.add(push.branch)
                    verdict = newest.get((repo, push.branch, push.head), {"status": "none"})
                    wanted = "failed" if push.bad or push.fate == "one" else "passed"
                    if refs.get(push.branch) != push.head:
                        found.append(f"{about} is at {refs.get(push.branch)}")
                    elif verdict["status"] != wanted:
                        found.append(f"{about} has the verdict {verdict['status']}, not {wanted}")
            found += [f"{repo}/{name} is still there" for name in sorted(refs.keys() - expected)]
        return found

    def broken(self) -> list[str]:
        """The promises that do not hold now that all has settled, in words."""
        records = self.records()
        found = list(self.refused)
        seqs = Counter(record["seq"] for record in records)
        found += [f"seq {seq} is there {times} times" for seq, times in seqs.items() if times > 1]
        found += [f"no record has the seq {seq}" for seq in range(1, len(records) + 1) if seq not in seqs]
        for repo in self.repos:
            found += self._broken_base(repo, [record for record in records if record.get("repo") == repo])
        found += self._broken_jobs(records)
        found += self.left_over()
        done = self.server.cli("audit", check=False)
        if done.returncode:
            found += [
                f"audit: {line}" for line in (done.stdout + done.stderr).split("\n") if "broken" in line or "record" in line
            ]
            found.append(f"audit ends with {done.returncode}")
        found += ["the server's log has a traceback"] if "Traceback" in self.server.log else []
        return found

    def _broken_base(self, repo: str, records: list[dict[str, Any]]) -> list[str]:
        """What is wrong with a base, its merges and their records."""
        merged = [record for record in records if record["event"] == "merged"]
        begun = [(merge["head"], r["at"]) for r in reversed(records) if r["event"] == "merge.begun" for merge in r["merges"]]
        begun_at = dict(begun)  # the first time
        form = "--format=%H%x00%P%x00%s"
        lines = [
            line.split("\0") for line in self.git(repo, "log", "--first-parent", "--reverse", form, "main").split("\n") if line
        ]
        by_forge = [(commit, parents.split()[1]) for commit, parents, subject in lines if subject.startswith("Forge Merge: ")]
        told = [(record["merge_commit"], record["head"]) for record in merged]
        found = []
        if by_forge != told:
            lost = [f"{commit} of {head} without a record" for commit, head in by_forge if (commit, head) not in told]
            extra = [f"a record of {commit} that is not in base" for commit, head in told if (commit, head) not in by_forge]
            found += [f"{repo}: {text}" for text in lost + extra] or [f"{repo}: merges.jsonl has another order than base"]
        times, in_line = Counter(head for _, head in by_forge), {commit for commit, _, _ in lines}
        for push in self.pushed:
            count = times[push.head] if push.repo == repo else 0
            in_time = push.fate != "before" or begun_at.get(push.head, "") < push.until
            if count > (push.fate != "never" and in_time):
                found.append(
                    f"{repo}/{push.branch} ({push.kind}, {push.head[:12]}) is in base {count} times, but its fate is {push.fate}"
                )
        found += [f"{repo}: the direct push {head} is lost" for name, head in self.direct if name == repo and head not in in_line]
        return found

    def _broken_jobs(self, records: list[dict[str, Any]]) -> list[str]:
        """What is wrong with verdicts and logs."""
        found, heads = [], {push.head: push for push in self.pushed}
        verdicts = Counter(record["id"] for record in records if record["event"] == "job.finished")
        found += [f"job {job} has {times} verdicts" for job, times in verdicts.items() if times > 1]
        firsts = Counter(
            (r["repo"], r["branch"], r["commit"], r["kind"])
            for r in records
            if r["event"] == "job.queued" and r["cause"] == "push"
        )
        found += [
            f"{repo}/{branch} at {commit[:12]} was queued {n} times" for (repo, branch, commit, _), n in firsts.items() if n > 1
        ]
        for job in (record for record in records if record["event"] == "job.finished"):
            whose = f"{job['repo']}/{job['branch']}, {job['kind']}, {job['cause']}"
            about = f"job {job['id']} ({whose}) {job['status']}: {job.get('reason')}"
            tested = [heads[head["commit"]] for head in job["heads"] if head["commit"] in heads]
            blamed = any(push.bad or push.fate == "one" for push in tested)
            if job["status"] not in ("passed", "failed", "superseded", "canceled"):
                found.append(about)
            elif job["status"] == "failed" and (not blamed or job.get("exit_code") != 1):
                found.append(f"{about}, but nothing in it fails")
            elif job["status"] == "passed" and any(push.bad for push in tested):
                found.append(f"{about}, but its check fails")
            log = self.server.data / "logs" / job["repo"] / f"{job['id']}.log"
            text = log.read_text().split("\n") if log.exists() else []
            whole = [f"begin {job['id']}", f"end {job['id']}", ""]
            ran = job["status"] in ("passed", "failed") and not job.get("reused_from")
            if text not in ([whole] if ran else [[], [""], [whole[0], ""], whole]):
                found.append(f"{about}: its log is {text}")
        return found

    def left_over(self) -> list[str]:
        """Files and processes that should not be there."""
        found, data = [], self.server.data
        for name in ("running", "trash", "incoming"):
            left = [path.name for path in (data / name).iterdir()]
            found += [f"{name}/ holds {', '.join(sorted(left)[:5])}"] if left else []
        for place in ("repos", "work"):
            found += [f"{path} is left" for path in (data / place).rglob("*.lock")]
        for folder in (data / "work").iterdir():
            found += [f"{slot} is a checkout too many" for slot in folder.iterdir() if int(slot.name) > MAX_JOBS + 1]
        found += [f"process {line} is left" for line in self.processes()]
        return found

    def processes(self) -> list[str]:
        """What runs under the data directory beside the server, its launcher and ourselves."""
        found, mark = [], str(self.root).encode()
        server = self.server.process.pid if self.server.process else -1
        for process in psutil.process_iter(["pid", "ppid", "name"]):
            pid = process.info["pid"]
            with contextlib.suppress(OSError, psutil.NoSuchProcess):
                words = Path(f"/proc/{pid}/environ").read_bytes() + Path(f"/proc/{pid}/cmdline").read_bytes()
                if mark in words and server not in (pid, process.info["ppid"]) and pid != os.getpid():
                    found.append(f"{pid} ({process.info['name']})")
        return found

    def settle(self, repos: list[str]) -> None:
        """Wait until all that must come has come, with nothing left over. Raises Broken."""
        end = time.monotonic() + self.patience
        while True:
            late = self.unsettled(repos) or self.left_over()
            if not late:
                return
            if time.monotonic() > end or not self.alive:
                raise Broken("\n".join([*late, *(["the server has died by itself"] if not self.alive else [])]))
            time.sleep(0.2)

    def look(self, repos: list[str], found: list[str] | None = None) -> None:
        """Settle, then look at every promise. Raises Broken."""
        found = list(found or [])
        try:
            self.settle(repos)
        except Broken as error:
            found.append(str(error))
        found += self.broken()
        if found:
            raise Broken("\n".join(dict.fromkeys("\n".join(found).split("\n"))))

    # -- a run ----------------------------------------------------------------------------

    def round(self, number: int, seconds: float) -> None:
        """Push and hurt for so many seconds, settle, look. Raises Broken."""
        if not self.alive:
            self.start()
        works = [self.new_repo(f"r{number}-{letter}") for letter in "abc"[:REPOS]]
        people = [threading.Thread(target=self.play, args=(work, seconds, number), daemon=True) for work in works]
        for person in people:
            person.start()
        self.hurt(seconds)
        for person in people:
            person.join(timeout=self.patience)
        if any(person.is_alive() for person in people):
            raise Broken("\n".join([*self.refused, "somebody could not end what was begun"]))
        self.look([work.name for work in works])
        for work in works:
            shutil.rmtree(work.tree)

    def drill(self, plan: tuple[str, ...]) -> None:
        """One auto-merge branch and one fault, then all that a round looks at. Raises Broken, also when there was no fault."""
        self.start()
        try:
            work = self.new_repo("drill")
            self.settle(["drill"])
            pushing = threading.Thread(target=Person(self, work, self.random).lands)
            pushing.start()
            happened = self.strike(plan)
            pushing.join(timeout=60)
            if not self.alive:
                self.start()
            self.look(["drill"], [] if happened else [f"there was no such call: {' '.join(plan)}"])
        finally:
            self.clear()

    def new_repo(self, name: str) -> Work:
        """A repo whose base has moved on since its first commit, which some branches start from."""
        path = Path(self.server.cli("create", name, "--base", "main").stdout.strip())
        work = Work(self.server, name, path, self.root / "people" / name)
        work.tree.mkdir(parents=True)
        work.git("init", "-q", "-b", "main")
        work.git("remote", "add", "origin", str(path))
        work.write(".forge/pre-merge", PRE, executable=True)
        work.write(".forge/post-merge", POST, executable=True)
        work.commit("First commit", shared="first\n")
        work.git("tag", "first")
        work.commit("Second commit", shared="second\n")
        work.push("main")
        with self.lock:
            self.repos.append(name)
        return work

    def run(self, seconds: float) -> Figures:
        """Rounds until the time is over. Raises Broken."""
        try:
            number = 0
            while number == 0 or time.monotonic() - self.began < seconds - 10:
                number += 1
                left = seconds - (time.monotonic() - self.began)
                self.round(number, min(25.0, max(5.0, left - 5)))
                self.note(str(self.count()))
            self.end(signal.SIGTERM)
            left_over = self.processes()
            found = self.broken() + [f"process {line} is left after the end" for line in left_over]
            if found:
                raise Broken("\n".join(found))
            return self.count()
        finally:
            self.clear()

    def count(self) -> Figures:
        """The figures as of now."""
        records = self.records()
        self.figures.merges = sum(record["event"] == "merged" for record in records)
        self.figures.jobs = sum(record["event"] == "job.queued" for record in records)
        self.figures.branches = len({(push.repo, push.branch) for push in self.pushed})
        self.figures.faults = sum(1 for _ in self.faults.glob("fired-*"))
        self.figures.seconds = time.monotonic() - self.began
        return self.figures

    def clear(self) -> None:
        """End the server and the jobs that are left, by their own ids."""
        self.disarm()
        if self.server.process:
            self.server.process.kill()
            self.reap()
        for run in (self.server.data / "running").glob("*/pid"):
            with contextlib.suppress(OSError, ValueError, IndexError):
                os.killpg(int(run.read_text().split()[0]), signal.SIGKILL)


class Person:
    """Somebody who pushes to one repo."""

    def __init__(self, soak: Soak, work: Work, pick: random.Random):
        self.soak, self.work, self.pick = soak, work, pick
        self.count = 0
        self.later: list[tuple[float, Callable[[], None]]] = []

    def play(self, seconds: float) -> None:
        """Begin new things for so many seconds, then do what is to follow."""
        end = time.monotonic() + seconds
        while self.later or time.monotonic() < end:
            due = sorted((item for item in self.later if item[0] <= time.monotonic()), key=lambda item: item[0])
            if due:
                self.later.remove(due[0])
                due[0][1]()
            elif time.monotonic() < end and len(self.soak.refs(self.work.name)) < OPEN + self.staying():
                self.pick.choices([play for play, _ in PLAYS], [weight for _, weight in PLAYS])[0](self)
            else:
                time.sleep(0.05)

    def staying(self) -> int:
        """How many branches are to stay."""
        return sum(push.stays for push in self.soak.pushed if push.repo == self.work.name)

    def then(self, act: Callable[[], None], most: float = 1.5) -> None:
        """Do something a little later: while the branch waits, is tested, or is merged."""
        self.later.append((time.monotonic() + self.pick.uniform(0, most), act))

    def name(self, kind: str) -> str:
        """A new name for a branch."""
        self.count += 1
        return f"{kind}-{self.count}"

    def make(self, name: str, message: str, start: str | None = None, **files: str) -> str:
        """A commit on a branch of that name, from base or from the first commit; its id."""
        start = start or self.pick.choice(["origin/main", "origin/main", "first"])
        return self.work.branch(name, message, start, **(files or {f"f/{name}": name}))

    def push(self, *refspecs: str, options: tuple[str, ...] = ()) -> list[str] | None:
        """Push, again and again while somebody is quicker; what git says happened to each ref, None when it cannot be."""
        end = time.monotonic() + 30
        words = [word for option in options for word in ("-o", option)]
        while True:
            said = self.work.git("push", "--porcelain", *words, "origin", *refspecs, check=False)
            flags = [line[0] for line in said.split("\n") if line[1:2] == "\t"]
            with self.soak.lock:
                self.soak.figures.pushes += 1
            if len(flags) == len(refspecs) and "!" not in flags:
                return flags
            if "remote ref does not exist" in said or "non-fast-forward" in said or "fetch first" in said:
                return None
            if time.monotonic() > end:
                with self.soak.lock:
                    self.soak.refused.append(f"{self.work.name}: for 30 seconds no push of {refspecs} is taken: {said}")
                return None
            time.sleep(0.2)

    def told(self, branch: str, head: str, kind: str, **about: Any) -> Push:
        """Note what was pushed and what is to become of it."""
        push = Push(self.work.name, branch, head, kind, **about)
        with self.soak.lock:
            self.soak.pushed.append(push)
        return push

    # each of these is one thing that people do

    def lands(self) -> None:
        name = self.name("auto")
        head = self.make(name, AUTO)
        if self.push(name):
            self.told(name, head, "auto")

    def fails(self) -> None:
        name = self.name("fails")
        head = self.make(name, AUTO, **{f"bad/{name}": ""})
        if self.push(name):
            self.told(name, head, "fails", fate="never", stays=True, bad=True)

    def waits(self) -> None:
        name = self.name("waits")
        head = self.make(name, PLAIN)
        if self.push(name):
            self.told(name, head, "waits", fate="never", stays=True)

    def conflicts(self) -> None:
        name = self.name("conflicts")
        head = self.make(name, AUTO, "first", shared=f"{name}\n")
        if self.push(name):
            self.told(name, head, "conflicts", fate="never", stays=True)

    def asks(self) -> None:
        """Merged by command."""
        name = self.name("asks")
        head = self.make(name, PLAIN)
        if not self.push(name):
            return
        push = self.told(name, head, "asks")

        def ask() -> None:
            done = self.work.server.cli("merge", self.work.name, name, check=False)
            if done.returncode and "it was merged as" not in done.stderr:
                push.kind = f"asks, told: {done.stderr.strip()}"
                self.then(ask)

        self.then(ask)

    def option(self) -> None:
        """Merged for its push option."""
        name = self.name("option")
        head = self.make(name, PLAIN)
        if self.push(name, options=("merge",)):
            self.told(name, head, "option")

    def several(self) -> None:
        """Many at once."""
        names = [self.name("several") for _ in range(self.pick.randint(2, 5))]
        heads = [self.make(name, AUTO) for name in names]
        if self.push(*names):
            for name, head in zip(names, heads, strict=True):
                self.told(name, head, "several")

    def pair(self) -> None:
        """Each of two passes alone, together they break base."""
        names = [self.name("pair"), self.name("pair")]
        heads = [self.make(name, AUTO, **{f"pair/{names[0]}-{number}": ""}) for number, name in enumerate(names, 1)]
        if self.push(*names):
            for name, head, mate in zip(names, heads, reversed(names), strict=True):
                self.told(name, head, "pair", fate="one", mate=mate)

    def again(self) -> None:
        """A second push, on top of the first or instead of it; the newer one may fail."""
        name, forced, bad = self.name("again"), self.pick.random() < 0.5, self.pick.random() < 0.3
        first = self.make(name, AUTO)
        if not self.push(name):
            return
        old = self.told(name, first, "again, first")

        def newer() -> None:
            path = f"bad/{name}" if bad else f"f/{name}-newer"
            head = self.work.branch(name, AUTO, f"{first}^" if forced else first, **{path: "newer"})
            flags = self.push(f"+{name}" if forced else name)
            if not flags:
                return
            # gone when the second one came: it had been merged; else it may have been, if git was killed before it removed it
            old.fate, old.until = "lands" if flags == ["*"] else "before", forge.now()
            self.told(name, head, f"again, second, {flags}", fate="never" if bad else "lands", stays=bad, bad=bad)

        self.then(newer)

    def amends(self) -> None:
        """The same tree with another message: now it is to be merged."""
        name = self.name("amends")
        first = self.make(name, PLAIN)
        if not self.push(name):
            return
        old = self.told(name, first, "amends, first", fate="never", stays=True)

        def amend() -> None:
            self.work.git("checkout", "-q", "-B", name, first)
            self.work.git("commit", "-q", "--amend", "--allow-empty", "-m", AUTO)
            head = self.work.git("rev-parse", "HEAD")
            if self.push(f"+{name}"):
                old.stays = False
                self.told(name, head, "amends, second")

        self.then(amend)

    def deletes(self) -> None:
        """Deleted at any moment."""
        name = self.name("deletes")
        head = self.make(name, AUTO)
        if not self.push(name):
            return
        push = self.told(name, head, "deletes")

        def delete() -> None:
            if self.push(f":{name}"):  # by its full name, git would "delete" what is not there
                push.fate, push.until = "before", forge.now()

        self.then(delete, 1.0)

    def straight(self) -> None:
        """A direct push to base."""
        name = self.name("straight")
        for _ in range(30):
            head = self.make(name, "Straight to base", "origin/main")
            if self.push(f"{head}:refs/heads/main"):
                with self.soak.lock:
                    self.soak.direct.append((self.work.name, head))
                return


PLAYS: list[tuple[Callable[[Person], None], int]] = [
    (Person.lands, 8),
    (Person.fails, 2),
    (Person.waits, 1),
    (Person.conflicts, 1),
    (Person.asks, 2),
    (Person.option, 3),
    (Person.several, 3),
    (Person.pair, 2),
    (Person.again, 5),
    (Person.amends, 2),
    (Person.deletes, 3),
    (Person.straight, 3),
]


def main() -> int:
    """Run the soak; 1 with what was broken, and the directory is kept then."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=900.0)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--keep", action="store_true")
    args = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="forge-soak-"))
    print(f"soak: seed {args.seed}, {args.seconds:.0f} seconds, in {root}", flush=True)
    soak = Soak(root, args.seed)
    try:
        print(soak.run(args.seconds))
    except Broken as error:
        print(f"{soak.count()}\nbroken promises (seed {args.seed}, all is kept in {root}):\n{error}")
        return 1
    if not args.keep:
        shutil.rmtree(root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
