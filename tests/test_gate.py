"""The pure halves: what is new, what is to be done, what keeps a branch from merging."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
from test_model import World

from forge import (
    POST,
    PRE,
    Blame,
    Branch,
    Facts,
    Job,
    Merge,
    Merged,
    Push,
    Queue,
    Refs,
    Repo,
    State,
    Update,
    asks_for_merge,
    choose_base,
    decide,
    fold,
    is_repo_name,
    notice,
    seconds_of,
    verdict_of,
    why_blocked,
    why_name_refused,
    why_no_retry,
    why_unheard,
    why_unwanted,
)

A, B, C, T = ("a" * 40), ("b" * 40), ("c" * 40), ("d" * 40)
NULL = "0" * 40
MOMENT = "2026-01-01T00:00:00.000Z"


def a_job(status: str, **values: object) -> Job:
    job = Job(1, "app", "topic", PRE, B, [{"branch": "topic", "commit": B}], MOMENT, base=A, tested=T, chain=[[T, "tree"]])
    return replace(job, status=status, **values)


def decision(
    job: Job, refs: Refs | None = None, auto: bool = True, asked: str | None = None, merged: Merged | None = None
) -> object:
    passed = 1 if job.status == "passed" else None
    known = Repo("main", A, {"topic": Branch(B, 1, asked, passed=passed, passed_at=MOMENT)})
    refs = refs or Refs("main", {"main": A, "topic": B}, frozenset({"topic"}))
    return decide(known, refs, {1: job}, {B: Facts(auto, merged or Merged(T))})


OPEN = Refs("main", {"main": A, "topic": B}, frozenset({"topic"}))
MOVED_BASE = Refs("main", {"main": C, "topic": B}, frozenset({"topic"}))
MOVED_HEAD = Refs("main", {"main": A, "topic": C}, frozenset({"topic"}))
GONE = Refs("main", {"main": A})
CONFLICT = Merged(None, ("file",))


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ({"job": a_job("passed")}, Merge),
        ({"job": a_job("passed"), "auto": False}, type(None)),
        ({"job": a_job("passed"), "auto": False, "asked": "manual"}, Merge),
        ({"job": a_job("passed"), "auto": False, "asked": "auto"}, Merge),
        ({"job": a_job("passed"), "refs": MOVED_BASE}, Queue),
        ({"job": a_job("passed"), "refs": MOVED_BASE, "auto": False}, type(None)),
        ({"job": a_job("passed"), "refs": MOVED_HEAD}, type(None)),
        ({"job": a_job("passed"), "refs": GONE}, type(None)),
        ({"job": a_job("passed"), "merged": CONFLICT}, type(None)),
        ({"job": a_job("passed"), "merged": Merged(None, unrelated=True)}, type(None)),
        ({"job": a_job("passed", tested=B, chain=[])}, Queue),  # the head was tested, since there was a conflict then
        ({"job": a_job("pending")}, type(None)),
        ({"job": a_job("running")}, type(None)),
        ({"job": a_job("failed", reason="exit code 1")}, type(None)),
        ({"job": a_job("failed", reason="interrupted: a reboot")}, Queue),
        ({"job": a_job("failed", reason="interrupted: a reboot", cause="rerun")}, type(None)),
        ({"job": a_job("skipped")}, type(None)),
        ({"job": a_job("canceled")}, type(None)),
        ({"job": a_job("timeout")}, type(None)),
    ],
)
def test_what_is_done_next(what: dict[str, object], expected: type) -> None:
    assert isinstance(decision(**what), expected)  # type: ignore[arg-type]


def test_who_asked_is_how_it_merges() -> None:
    asked = decision(a_job("passed"), auto=False, asked="manual")
    by_trailer = decision(a_job("passed"))
    assert isinstance(asked, Merge) and asked.how == ("manual",)
    assert isinstance(by_trailer, Merge) and by_trailer.how == ("auto",)


@pytest.mark.parametrize(
    ("refs", "job", "merged", "words"),
    [
        (OPEN, a_job("passed"), Merged(T), None),
        (OPEN, a_job("passed"), CONFLICT, "conflicts with main in file"),
        (OPEN, a_job("passed"), Merged(None, unrelated=True), "no common history"),
        (OPEN, a_job("pending"), Merged(T), "waits for its turn"),
        (OPEN, a_job("running"), Merged(T), "job 1 is running"),
        (OPEN, a_job("failed", reason="exit code 3"), Merged(T), "exit code 3"),
        (OPEN, a_job("skipped", reason="add a justfile"), Merged(T), "nothing was tested: add a justfile"),
        (OPEN, None, Merged(T), "not been tested"),
        (Refs("main", {"main": A, "topic": B}), None, None, "nothing to merge"),
        (Refs("main", {"topic": B}), None, None, "HEAD names main, which does not exist"),
    ],
)
def test_what_keeps_a_branch_is_said(refs: Refs, job: Job | None, merged: Merged | None, words: str | None) -> None:
    passed = 1 if job and job.status == "passed" else None
    blockers = why_blocked("topic", refs, Repo("main", A, {"topic": Branch(B, 1, passed=passed)}), job, merged)
    assert (blockers == []) if words is None else any(words in blocker for blocker in blockers)


@pytest.mark.parametrize(
    ("old", "refs", "live", "words"),
    [
        (a_job("failed"), OPEN, [], None),
        (a_job("failed"), MOVED_BASE, [], None),
        (a_job("running"), OPEN, [], "has not ended"),
        (a_job("failed"), MOVED_HEAD, [], f"is at {C[:12]} now"),
        (a_job("failed"), GONE, [], "is gone"),
        (a_job("passed"), Refs("main", {"main": A, "topic": B}), [], "has nothing to merge"),
        (a_job("failed"), OPEN, [a_job("pending", id=2)], "job 2 is pending"),
        (a_job("failed"), OPEN, [a_job("pending", id=2, heads=[{"branch": "other", "commit": B}])], None),
        (
            a_job("failed", cause="retest"),
            OPEN,
            [a_job("pending", id=2, heads=[], cause="retest")],
            "job 2 is pending for the queue",
        ),
        (a_job("failed", kind=POST, branch="main"), Refs("main", {"main": B}), [], None),
        (a_job("failed", kind=POST, branch="main"), OPEN, [], "roll back instead"),
        (a_job("failed", kind=POST, branch="main"), Refs("main", {}), [], "base is at nothing"),
    ],
)
def test_why_a_job_is_not_run_again(old: Job, refs: Refs, live: list[Job], words: str | None) -> None:
    reason = why_no_retry(old, refs, live)
    assert reason is None if words is None else words in str(reason)


@pytest.mark.parametrize(
    ("job", "code", "skipped", "trouble", "status", "words"),
    [
        (a_job("running"), 0, None, None, "passed", None),
        (a_job("running"), 1, None, None, "failed", "exit code 1"),
        (a_job("running"), 137, None, None, "failed", "SIGKILL"),
        (a_job("running"), 127, None, None, "failed", "was not found"),
        (a_job("running"), 0, "add an app", None, "skipped", "add an app"),
        (a_job("running"), 1, "add an app", None, "failed", "exit code 1"),
        (a_job("running"), None, None, None, "failed", "interrupted"),
        (a_job("pending"), None, None, "no checkout", "failed", "no checkout"),
        (a_job("running", stopping=["canceled", "somebody"]), 0, None, None, "canceled", "somebody"),
        (a_job("running", stopping=["timeout", "too long"]), None, None, None, "timeout", "too long"),
    ],
)
def test_how_a_job_has_ended(job: Job, code: int, skipped: str, trouble: str, status: str, words: str | None) -> None:
    found, reason = verdict_of(job, code, "just pre-merge", skipped, trouble)
    assert found == status and (reason is None if words is None else words in str(reason))


def state_with(*events: tuple[str, dict[str, object]]) -> State:
    state = State()
    for number, (name, values) in enumerate(events, 1):
        fold(state, {"seq": number, "at": "2026-01-01T00:00:00.000Z", "event": name, **values})
    return state


def kinds(events: list[tuple[str, dict[str, object]]]) -> list[str]:
    return [f"{name}:{values['kind']}" if name == "job.queued" else name for name, values in events]


FOUND = ("repo.found", {"repo": "app", "base": "main", "tip": A})
EMPTY = ("repo.found", {"repo": "app", "base": "main", "tip": None})


def test_a_copied_repo_starts_from_what_it_holds() -> None:
    events = notice("app", State(), OPEN, Push(), 1)
    assert kinds(events) == ["repo.found", f"job.queued:{PRE}"]


def test_the_first_push_to_base_is_deployed() -> None:
    events = notice("app", state_with(EMPTY), Refs("main", {"main": A}), Push(), 1)
    assert kinds(events) == ["base.moved", f"job.queued:{POST}"]
    assert "base" not in events[1][1]


def test_a_head_gets_one_job_whoever_sees_it_first() -> None:
    state = state_with(FOUND, *notice("app", state_with(FOUND), OPEN, Push(), 1))
    push = Push((Update(NULL, B, "refs/heads/topic"),), (), "2030-01-01T00:00:00.000Z")
    assert notice("app", state, OPEN, Push(), 2) == []
    assert notice("app", state, OPEN, push, 2) == []


def test_a_branch_deleted_and_pushed_again_is_new_even_when_both_are_told_late() -> None:
    state = state_with(FOUND, *notice("app", state_with(FOUND), OPEN, Push(), 1))
    push = Push((Update(B, NULL, "refs/heads/topic"),), (), "2030-01-01T00:00:00.000Z")
    assert kinds(notice("app", state, OPEN, push, 2)) == ["job.finished", "branch.gone", f"job.queued:{PRE}"]
    told_before_the_job = push._replace(at="2020-01-01T00:00:00.000Z")
    assert notice("app", state, OPEN, told_before_the_job, 2) == []


def test_a_newer_push_supersedes() -> None:
    state = state_with(FOUND, *notice("app", state_with(FOUND), OPEN, Push(), 1))
    pending = notice("app", state, MOVED_HEAD, Push(), 2)
    assert kinds(pending) == ["job.finished", f"job.queued:{PRE}"] and pending[0][1]["status"] == "superseded"
    state.jobs[1].status = "running"
    running = notice("app", state, MOVED_HEAD, Push(), 2)
    assert kinds(running) == ["job.stopping", f"job.queued:{PRE}"]


def test_waiting_deployments_collapse_to_the_newest_which_includes_them() -> None:
    state = state_with(FOUND, *notice("app", state_with(FOUND), Refs("main", {"main": B}), Push(), 1))
    events = notice("app", state, Refs("main", {"main": C}), Push(), 2)
    assert kinds(events) == ["base.moved", "job.finished", f"job.queued:{POST}"]
    assert events[1][1]["status"] == "superseded" and events[2][1]["base"] == A


def test_deleting_a_branch_cancels_its_job() -> None:
    state = state_with(FOUND, *notice("app", state_with(FOUND), OPEN, Push(), 1))
    events = notice("app", state, GONE, Push(), 2)
    assert kinds(events) == ["job.finished", "branch.gone"] and events[0][1]["status"] == "canceled"


def test_a_branch_without_news_for_base_gets_no_job() -> None:
    assert notice("app", state_with(FOUND), Refs("main", {"main": A, "old": A}), Push(), 1) == []


def test_the_merge_option_counts_for_the_head_it_was_pushed_with() -> None:
    push = Push((Update(NULL, B, "refs/heads/topic"),), ("merge",), "")
    events = notice("app", state_with(FOUND), OPEN, push, 1)
    assert kinds(events) == [f"job.queued:{PRE}", "merge.asked"]
    state = state_with(FOUND, *events)
    assert state.repos["app"].branches["topic"].asked == "auto"
    state = state_with(FOUND, *events, *notice("app", state, MOVED_HEAD, Push(), 2))
    assert state.repos["app"].branches["topic"].asked is None


@pytest.mark.parametrize(
    ("heads", "pushed", "expected"),
    [
        (["topic"], ["topic"], "topic"),
        (["main", "topic"], ["main", "topic"], "main"),
        (["master", "topic"], ["master", "topic"], "master"),
        (["one", "two"], ["one", "two"], None),
        (["one", "two", "three"], ["three"], "three"),
        (["one"], [], "one"),
    ],
)
def test_which_branch_becomes_base(heads: list[str], pushed: list[str], expected: str | None) -> None:
    push = Push(tuple(Update(NULL, A, f"refs/heads/{name}") for name in pushed))
    refs = Refs("trunk", dict.fromkeys(heads, A))
    assert choose_base(refs, push, born=False) == expected
    assert choose_base(refs, push, born=True) == (expected if pushed else None)


@pytest.mark.parametrize(
    ("trailers", "expected"),
    [
        ("Auto-Merge: yes", True),
        ("auto-merge: TRUE", True),
        ("Forge-Auto-Merge: true", True),
        ("forge-auto-merge: Yes", True),
        ("Auto-Merge: no", False),
        ("Auto-Merge: yes please", False),
        ("Signed-off-by: a\nAuto-Merge: yes", True),
        ("Merge: yes", False),
        ("", False),
    ],
)
def test_trailers(trailers: str, expected: bool) -> None:
    assert asks_for_merge(trailers) is expected


@pytest.mark.parametrize(
    ("trailers", "said"),
    [
        ("Auto-Merge: on", "its trailer Auto-Merge says 'on', but only yes and true count; write "),
        ("Forge-Auto-Merge: yes please", "says 'yes please', but only"),
        ("Auto-Merge: on\nAuto-Merge: yes", ""),
        ("Auto-Merge: no", ""),
        ("forge-cause: x", ""),
    ],
)
def test_a_trailer_that_asks_for_nothing_is_explained(trailers: str, said: str) -> None:
    why = why_unheard(f"Subject\n\n{trailers}\n", trailers)
    assert why == said == "" or (said and said in why)


@pytest.mark.parametrize(
    ("name", "fine"),
    [
        *[
            (name, True)
            for name in ("topic", 'a"b$(x)', "a'b", "é", "e\u0301", "refs/heads/master", "a%2Fb", "x" * 200, "Master", "a@b")
        ],
        *[
            (name, False)
            for name in ("-x", "HEAD", "@", "a" * 40, "A" * 40, "f" * 64, "x" * 201, "é" * 101, "a\u200bb", "a\u2028b", "a\x85b")
        ],
        ("a\udcffb", False),
    ],
)
def test_ref_names(name: str, fine: bool) -> None:
    assert (why_name_refused(f"refs/heads/{name}") is None) is fine
    assert (why_name_refused(f"refs/tags/{name}") is None) is fine
    assert why_name_refused(f"refs/notes/{name}") is not None


@pytest.mark.parametrize(
    ("name", "fine"),
    [("app", True), ("A.b_c-1", True), ("a" * 100, True)]
    + [
        (name, False) for name in ("", "-x", ".x", "../x", "/etc", "x.git", "x.lock", "a" * 101, "a b", "ä", None, 5, True, ["x"])
    ],
)
def test_repo_names(name: object, fine: bool) -> None:
    assert is_repo_name(name) is fine


# -- the line: one (at B) passed before two (at C), both on base A ------------------------------------------------

TWO = Refs("main", {"main": A, "one": B, "two": C}, frozenset({"one", "two"}))
BOTH = [{"branch": "one", "commit": B}, {"branch": "two", "commit": C}]
LATER = "2026-01-01T00:01:00.000Z"


def the_chain(status: str, **values: object) -> Job:
    """Job 3, which tests both together."""
    job = Job(3, "app", "two", PRE, C, BOTH, MOMENT, cause="retest", base=A, tested=T, chain=[[A, "tree"], [T, "tree"]])
    return replace(job, status=status, **values)


def a_line(
    *jobs: Job, refs: Refs = TWO, moment: str = MOMENT, auto: bool = True, apart: set[str] | None = None, **values: object
) -> object:
    """What is decided when both wait in line and these are the jobs; the newest is that of its heads."""
    branches = {
        "two": Branch(C, 2, passed=20, passed_at=MOMENT, took=10.0),
        "one": Branch(B, 1, passed=10, passed_at=MOMENT, took=10.0),
    }
    olds = [a_job("passed", id=1, branch="one", base="old"), a_job("passed", id=2, branch="two", commit=C, base="old")]
    known = {job.id: job for job in (*olds, *jobs)}
    for job in jobs:
        for head in job.heads:
            if head["branch"] in branches:
                branches[head["branch"]].job = job.id
    queue_jobs = [job.id for job in jobs if job.cause == "retest"]
    repo = Repo("main", A, branches, queue_job=queue_jobs[-1] if queue_jobs else None)
    facts = {head: Facts(auto, Merged(T)) for head in (A, B, C)}
    return decide(replace(repo, **values), refs, known, facts, seconds_of(moment), apart or ())  # type: ignore[arg-type]


def another(status: str, number: int) -> Job:
    """A first test of another branch."""
    return a_job(status, id=number, branch="third", heads=[{"branch": "third", "commit": T}])


BY_PLACE = Queue((("one", B), ("two", C)), "retest")


@pytest.mark.parametrize(
    ("jobs", "values", "expected"),
    [
        ([], {}, BY_PLACE),
        ([another("pending", 9)], {}, None),  # first tests go before
        ([another("running", 9)], {}, None),
        ([another("passed", 9)], {}, BY_PLACE),
        ([another("pending", 9)], {"moment": LATER}, BY_PLACE),  # overdue
        ([another("pending", 9)], {"moment": LATER, "early_job": 10}, None),  # but once for what was pushed before
        ([another("pending", 11)], {"moment": LATER, "early_job": 10}, BY_PLACE),
        ([a_job("running", id=9, heads=BOTH[:1], cause="retry")], {"moment": LATER}, Queue((("two", C),), "retest")),
        ([the_chain("pending")], {}, None),
        ([the_chain("running")], {}, None),
        ([the_chain("superseded")], {}, BY_PLACE),
        ([the_chain("passed")], {}, "merge"),
        ([the_chain("passed", base="old")], {}, BY_PLACE),
        ([the_chain("failed", reason="interrupted: a reboot")], {}, Queue((("one", B), ("two", C)), "retest", 3)),
        (
            [the_chain("failed", reason="interrupted: a reboot", retry_of=3)],
            {"suspects": BOTH, "suspects_on": A},
            Queue((("one", B),), "retest"),
        ),
        ([the_chain("failed")], {"suspects": BOTH, "suspects_on": A}, Queue((("one", B),), "retest")),
        (
            [the_chain("failed")],
            {"suspects": BOTH, "suspects_on": "old"},
            BY_PLACE,
        ),  # base has moved on: they may go together now
        ([the_chain("failed")], {"suspects": BOTH[1:], "suspects_on": A}, Blame("two", C, 3)),
        (  # nobody is at fault for what was interrupted twice: it is tested by itself
            [the_chain("failed", reason="interrupted: a reboot", retry_of=3)],
            {"suspects": BOTH[1:], "suspects_on": A},
            Queue((("two", C),), "retest"),
        ),
        ([], {"apart": {B}}, Queue((("two", C),), "retest")),  # what cannot be merged for a reason of its own holds up nobody
        ([the_chain("passed")], {"apart": {B}}, Queue((("two", C),), "retest")),
        ([the_chain("failed")], {"suspects": [{"branch": "gone", "commit": B}, *BOTH], "suspects_on": A}, BY_PLACE),
        ([the_chain("passed")], {"auto": False}, None),
    ],
)
def test_what_is_done_with_the_line(jobs: list[Job], values: dict[str, object], expected: object) -> None:
    found = a_line(*jobs, **values)  # type: ignore[arg-type]
    if expected == "merge":
        assert isinstance(found, Merge) and (found.job.id, found.how) == (3, ("auto", "auto"))
    else:
        assert found == expected


@pytest.mark.parametrize(
    "refs",
    [
        Refs("main", {"main": A, "one": B, "two": T}, frozenset({"one", "two"})),
        Refs("main", {"main": A, "one": B}, frozenset({"one"})),
        Refs("main", {"main": A, "one": B, "two": C}, frozenset({"one"})),
    ],
    ids=["new head", "deleted", "nothing to merge"],
)
def test_a_chain_of_which_one_has_changed_does_not_land(refs: Refs) -> None:
    assert a_line(the_chain("passed"), refs=refs) == Queue((("one", B),), "retest")


@pytest.mark.parametrize(
    ("job", "refs", "expected"),
    [
        (the_chain("running"), TWO, None),
        (the_chain("running"), Refs("main", {"main": T, "one": B, "two": C}, frozenset({"one", "two"})), "superseded"),
        (the_chain("running"), Refs("main", {"main": A, "one": B, "two": T}, frozenset({"one", "two"})), "superseded"),
        (the_chain("running"), Refs("main", {"main": A, "two": C}, frozenset({"two"})), "superseded"),
        (a_job("running"), OPEN, None),
        (a_job("running"), MOVED_BASE, None),  # its verdict counts
        (a_job("running"), MOVED_HEAD, "superseded"),
        (a_job("running"), GONE, "canceled"),
        (a_job("running"), Refs("main", {"main": A, "topic": B}), "canceled"),
        (a_job("running", kind=POST), GONE, None),
    ],
)
def test_which_jobs_are_ended_before_their_time(job: Job, refs: Refs, expected: str | None) -> None:
    found = why_unwanted(job, refs, set())
    assert (found and found[0]) == expected


def test_a_second_interruption_counts_as_a_failure_of_the_chain() -> None:
    reason = "interrupted: a reboot"
    for retry_of, suspects in ((None, []), (2, BOTH)):
        chain = the_chain("running", retry_of=retry_of)
        state = state_with(FOUND)
        state.repos["app"].branches = {"one": Branch(B, 3, passed=10), "two": Branch(C, 3, passed=20)}
        state.jobs[3] = chain
        finished = asdict(replace(chain, status="failed", reason=reason))
        fold(state, {"seq": 30, "at": MOMENT, "event": "job.finished", **finished})
        assert state.repos["app"].suspects == suspects
        assert [branch.passed for branch in state.repos["app"].branches.values()] == [10, 20]


def test_whoever_is_found_at_fault_by_halving_costs_a_logarithm() -> None:
    """One bad pair among 64 branches: halves, not one after the other."""
    world = World(64)
    world.broken = {frozenset({"f32", "f63"})}
    world.push_many(64)
    world.to_the_end()
    assert set(world.heads) == {"main", "b63"} and world.pre_jobs() <= 64 + 2 + 2 * 6
