"""The pure halves: what is new, what is to be done, what keeps a branch from merging."""

from __future__ import annotations

from dataclasses import replace

import pytest

from forge import (
    POST,
    PRE,
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
    verdict_of,
    why_blocked,
    why_name_refused,
    why_no_retry,
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
    assert events[1][1]["base"] is None


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
