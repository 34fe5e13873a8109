"""The gate against a model of git: random histories, and the promises checked after each step.

`notice`, `fold`, `line_up` and `decide` are forge's own; commits, merges and jobs are a few lines of Python here, so that
thousands of histories can be tried. What the engine does between them is done here by the same rules.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from forge import (
    POST,
    PRE,
    Blame,
    Facts,
    Job,
    Merge,
    Merged,
    Push,
    Queue,
    Refs,
    State,
    at_time,
    decide,
    fold,
    notice,
    pairs,
    queue_job,
)

BRANCHES = ("a", "b", "c", "d", "e")
APP = "app"


class Commit(NamedTuple):
    """A commit of the model: its tree is a set of (file, text); `auto` is the trailer."""

    tree: frozenset[tuple[str, str]]
    parents: tuple[str, ...] = ()
    auto: bool = False


class World:
    """One repo, its journal, and jobs that end when told to."""

    def __init__(self, places: int = 2) -> None:
        self.commits: dict[str, Commit] = {}
        self.heads: dict[str, str] = {}
        self.records: list[dict[str, Any]] = []
        self.state = State()
        self.clock = 1_800_000_000.0
        self.places = places
        self.broken: set[frozenset[str]] = set()  # files that must not be there together
        self.direct: list[str] = []
        self.merged: list[str] = []
        self.heads["main"] = self.commit(frozenset())
        self.look()

    # -- git ------------------------------------------------------------------

    def commit(self, tree: frozenset[tuple[str, str]], parents: tuple[str, ...] = (), auto: bool = False) -> str:
        name = f"{len(self.commits):040x}"
        self.commits[name] = Commit(tree, parents, auto)
        return name

    def history(self, commit: str) -> set[str]:
        seen: set[str] = set()
        todo = [commit]
        while todo:
            one = todo.pop()
            if one not in seen:
                seen.add(one)
                todo += self.commits[one].parents
        return seen

    def merge(self, base: str, head: str) -> frozenset[tuple[str, str]] | None:
        """The merged tree, or None when both set a file to different texts."""
        both = self.commits[base].tree | self.commits[head].tree
        return both if len({file for file, _ in both}) == len(both) else None

    def passes(self, tree: frozenset[tuple[str, str]]) -> bool:
        files = {file for file, _ in tree}
        return not any(group <= files for group in self.broken)

    def refs(self) -> Refs:
        there = self.history(self.heads["main"])
        ahead = frozenset(name for name, head in self.heads.items() if head not in there)
        return Refs("main", dict(sorted(self.heads.items())), ahead)

    # -- the journal --------------------------------------------------------------

    def record(self, *events: tuple[str, dict[str, Any]]) -> None:
        for event, values in events:
            record = {"seq": len(self.records) + 1, "at": at_time(self.clock), "event": event, **values}
            self.records.append(record)
            fold(self.state, record)

    def look(self) -> None:
        push = Push()
        if self.state.repos.get(APP) is None:
            self.record(("repo.found", {"repo": APP, "base": "main", "tip": self.heads["main"]}))
        self.record(*notice(APP, self.state, self.refs(), push, self.state.last_job + 1))
        for job in self.state.live_jobs(APP):
            if job.kind == POST:
                self.record(("job.finished", asdict(replace(job, status="passed"))))
            elif job.stopping:
                self.end(job, *job.stopping)

    # -- what the engine does ---------------------------------------------------------

    def chain(self, tip: str, heads: tuple[tuple[str, str], ...]) -> tuple[list[tuple[str, str]], list[list[str]]]:
        done, chain = [], []
        for branch, head in heads:
            tree = self.merge(tip, head)
            if tree is not None:
                tip = self.commit(tree, (tip, head))
                done.append((branch, head))
                chain.append([tip, str(sorted(tree))])
        return done, chain

    def start(self) -> None:
        """Fill the free places, tests of the queue first."""
        live = sorted(self.state.live_jobs(APP), key=lambda job: (job.is_first, job.id))
        free = self.places - sum(job.status == "running" for job in live)
        for job in [job for job in live if job.status == "pending"][:free]:
            facts: dict[str, Any] = {"base": job.base, "tested": job.tested, "tree": job.tree, "chain": job.chain}
            if job.is_first:
                tip = self.heads["main"]
                _, chain = self.chain(tip, pairs(job.heads))
                tested = chain[-1] if chain else [job.commit, str(sorted(self.commits[job.commit].tree))]
                facts = {"base": tip, "tested": tested[0], "tree": tested[1], "chain": chain}
            self.record(("job.started", {"id": job.id, "started_at": at_time(self.clock), **facts}))

    def end(self, job: Job, status: str, reason: str | None = None) -> None:
        ended = replace(job, status=status, reason=reason, duration=1.0, stopping=None)
        self.record(("job.finished", asdict(ended)))

    def finish(self, job: Job) -> None:
        self.clock += 0.3
        passed = self.passes(self.commits[job.tested or ""].tree)
        self.end(job, "passed" if passed else "failed", None if passed else "exit code 1")

    def step(self) -> None:
        """Let the gate decide and do it, until it wants nothing more."""
        for _ in range(100):
            self.look()
            refs = self.refs()
            known = self.state.repos[APP]
            facts = {}
            for branch in known.branches.values():
                tree = self.merge(self.heads["main"], branch.head)
                merged = Merged(None, ("file",)) if tree is None else Merged(str(sorted(tree)))
                facts[branch.head] = Facts(self.commits[branch.head].auto, merged)
            action = decide(known, refs, self.state.jobs, facts, self.clock)
            if action is None:
                return
            self.perform(refs, action)
        raise AssertionError("the gate does not come to rest")

    def perform(self, refs: Refs, action: Queue | Merge | Blame) -> None:
        new = self.state.last_job + 1
        if isinstance(action, Blame):
            tree = self.merge(self.heads["main"], action.head)
            assert tree is not None and not self.passes(tree), "blamed for what it does not do on base as it is"
            others = {"repo": APP, "branch": action.branch, "head": action.head, "job": action.job, "others": []}
            self.record(("head.blamed", others))
        elif isinstance(action, Queue) and action.cause == "rerun":
            self.record(queue_job(new, APP, PRE, action.heads, "rerun", retry_of=action.retry_of))
        elif isinstance(action, Queue):
            done, chain = self.chain(refs.tip or "", action.heads)
            candidate = {"base": refs.tip, "tested": chain[-1][0], "tree": chain[-1][1], "chain": chain}
            self.record(queue_job(new, APP, PRE, done, "retest", retry_of=action.retry_of, **candidate))
        else:
            self.land(refs, action)

    def land(self, refs: Refs, action: Merge) -> None:
        job, parent = action.job, refs.tip
        assert job.status == "passed" and self.heads["main"] == job.base, "merged on an old base"
        assert self.passes(self.commits[job.chain[-1][0]].tree), "base is not a tested tree"
        for (branch, head), (commit, tree) in zip(pairs(job.heads), job.chain, strict=True):
            assert self.heads.get(branch) == head, f"{branch} merged on an old verdict"
            assert branch not in [r["branch"] for r in self.records if r["event"] == "merged" and r["head"] == head]
            about = {"repo": APP, "base": "main", "branch": branch, "head": head, "merge_commit": commit, "parent": parent}
            self.record(("merged", {**about, "tree": tree, "job": job.id, "how": "auto", "begun": 0}))
            parent = commit
            del self.heads[branch]
            self.merged.append(branch)
        self.heads["main"] = parent or ""

    def push_many(self, count: int) -> None:
        """Branches b00, b01… in one push, each with a file of its own (f00, f01…), which merge by themselves."""
        root = self.heads["main"]
        for number in range(count):
            self.heads[f"b{number:02}"] = self.commit(frozenset({(f"f{number:02}", "")}), (root,), True)

    def to_the_end(self, choose: Callable[[list[Job]], Job] = lambda running: running[0]) -> None:
        """Let everything run until nothing is left to do; `choose` says which job ends next."""
        for _ in range(500):
            self.step()
            self.start()
            running = [job for job in self.state.live_jobs(APP) if job.status == "running"]
            if not running:
                return
            self.finish(choose(running))
        raise AssertionError("it does not come to rest")

    def first_tests(self) -> int:
        return sum(r["event"] == "job.queued" and r["kind"] == PRE and r["cause"] == "push" for r in self.records)

    def pre_jobs(self) -> int:
        return sum(r["event"] == "job.queued" and r["kind"] == PRE for r in self.records)

    def ready(self) -> list[str]:
        """The branches in the order in which they passed for the first time."""
        passed = [r for r in self.records if r["event"] == "job.finished" and r["kind"] == PRE and r["status"] == "passed"]
        return list(dict.fromkeys(r["branch"] for r in passed if r["cause"] == "push"))


class Gate(RuleBasedStateMachine):
    """Random pushes, verdicts, deletions, direct pushes and crashes."""

    files = st.sampled_from(["f1", "f2", "f3", "f4", "f5", "f6"])
    branches = st.sampled_from(BRANCHES)

    @initialize(pairs=st.sets(st.frozensets(files, min_size=1, max_size=2), max_size=3), places=st.integers(1, 3))
    def begin(self, pairs: set[frozenset[str]], places: int) -> None:
        self.world = World(places)
        self.world.broken = pairs
        self.pushes = itertools.count()

    @rule(branch=branches, file=files, auto=st.booleans(), anew=st.booleans())
    def push(self, branch: str, file: str, auto: bool, anew: bool) -> None:
        """A new branch, a new commit on it, or a forced push."""
        world = self.world
        start = world.heads["main"] if anew or branch not in world.heads else world.heads[branch]
        text = "" if next(self.pushes) % 4 else "other"  # sometimes two that conflict
        tree = frozenset(item for item in world.commits[start].tree if item[0] != file) | {(file, text)}
        if tree != world.commits[start].tree:
            world.heads[branch] = world.commit(tree, (start,), auto)

    @rule(branch=branches)
    def amend(self, branch: str) -> None:
        """The same tree under another message, with the trailer."""
        if branch in self.world.heads:
            old = self.world.commits[self.world.heads[branch]]
            self.world.heads[branch] = self.world.commit(old.tree, old.parents, True)

    @rule(branch=branches)
    def delete(self, branch: str) -> None:
        self.world.heads.pop(branch, None)

    @rule(number=st.integers(0, 99))
    def direct_push(self, number: int) -> None:
        world = self.world
        tip = world.heads["main"]
        world.heads["main"] = world.commit(world.commits[tip].tree | {(f"direct-{number}", "")}, (tip,))
        world.direct.append(world.heads["main"])

    @rule()
    def look(self) -> None:
        self.world.look()

    @rule()
    def step(self) -> None:
        self.world.step()

    @rule()
    def start(self) -> None:
        self.world.look()
        self.world.start()

    @rule(choice=st.integers(0, 9))
    def finish(self, choice: int) -> None:
        running = [job for job in self.world.state.live_jobs(APP) if job.status == "running"]
        if running:
            self.world.finish(running[choice % len(running)])

    @rule(choice=st.integers(0, 9))
    def interrupt(self, choice: int) -> None:
        """The processes of a job are gone: a reboot."""
        running = [job for job in self.world.state.live_jobs(APP) if job.status == "running"]
        if running:
            self.world.end(running[choice % len(running)], "failed", "interrupted: a reboot")

    @rule(choice=st.integers(0, 9))
    def cancel(self, choice: int) -> None:
        live = [job for job in self.world.state.live_jobs(APP) if job.kind == PRE]
        if live:
            self.world.end(live[choice % len(live)], "canceled", "somebody")

    @rule(branch=branches)
    def ask(self, branch: str) -> None:
        known = self.world.state.repos[APP].branches.get(branch)
        if known:
            asked = {"repo": APP, "branch": branch, "head": known.head, "how": "manual"}
            self.world.record(("merge.asked", asked))

    @rule(seconds=st.integers(1, 10))
    def wait(self, seconds: int) -> None:
        self.world.clock += seconds

    @precondition(lambda self: hasattr(self, "world"))
    @rule()
    def crash(self) -> None:
        """The next server knows what is in the journal, and nothing else."""
        again = State()
        for record in self.world.records:
            fold(again, record)
        assert again == self.world.state
        self.world.state = again

    @invariant()
    def no_direct_push_is_lost(self) -> None:
        if hasattr(self, "world"):
            assert set(self.world.direct) <= self.world.history(self.world.heads["main"])

    @invariant()
    def each_head_has_one_live_job_at_most(self) -> None:
        if hasattr(self, "world"):
            live = [head for job in self.world.state.live_jobs(APP) if job.stoppable for head in pairs(job.heads)]
            assert len(live) == len(set(live))

    def teardown(self) -> None:
        """When everything has run, nothing that should be merged is left, and nothing was thrown out without a reason."""
        if not hasattr(self, "world"):
            return
        world = self.world
        world.to_the_end()
        known = world.state.repos[APP]
        for name, branch in known.branches.items():
            job = world.state.newest_job(APP, name)
            assert job and not job.live
            tree = world.merge(world.heads["main"], branch.head)
            wished = branch.asked or world.commits[branch.head].auto
            assert not (wished and branch.passed is not None and tree is not None), f"{name} passed and was left behind"
            if branch.fault is not None:
                assert job.status != "passed"


TestGate = Gate.TestCase
TestGate.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@given(
    st.integers(1, 24),
    st.integers(1, 6),
    st.sets(st.frozensets(st.integers(0, 23), min_size=2, max_size=2), max_size=3),
    st.randoms(use_true_random=False),
)
@settings(max_examples=300, deadline=None)
def test_what_a_push_of_many_costs(count: int, places: int, bad: set[frozenset[int]], random: Any) -> None:
    world = World(places)
    world.broken = {frozenset(f"f{number:02}" for number in pair) for pair in bad if max(pair) < count}
    world.push_many(count)
    world.to_the_end(random.choice)
    left = set(world.heads) - {"main"}
    fault = len(left)
    assert fault <= len(world.broken)
    assert world.merged == [name for name in world.ready() if name not in left]
    assert world.pre_jobs() <= count + 2 + 2 * fault * max(1, math.ceil(math.log2(count)))
    assert world.first_tests() == count
