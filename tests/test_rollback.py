"""The way back: deployments with what they brought, rollbacks, and holds on what was rolled back."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import AUTO, NIX_CONFIG, Server, Work, needs_nix, wait_for

import forge
from forge import POST, PRE, Branch, Facts, Held, Hold, Job, Landed, Merge, Merged, Push, Queue, Refs, Repo, State, fold, notice

A, B, C, D = ("a" * 40), ("b" * 40), ("c" * 40), ("d" * 40)
MOMENT = "2026-01-01T00:00:00.000Z"

###############################################################################
# the pure parts
###############################################################################


def lock(**inputs: str) -> str:
    """A flake.lock with inputs at commits."""
    nodes: dict[str, Any] = {name: {"locked": {"rev": rev, "type": "git", "url": "file:///x"}} for name, rev in inputs.items()}
    nodes["root"] = {"inputs": {name: name for name in inputs}}
    return json.dumps({"nodes": nodes, "root": "root", "version": 7}, indent=2)


def test_the_inputs_of_a_lock_are_those_of_its_root() -> None:
    assert forge.locked_inputs(forge.parse_lock(lock(app=A, lib=B))) == {"app": A, "lib": B}
    nodes = {"root": {"inputs": {"app": "app_2", "lib": ["app", "lib"], "tree": "tree"}}, "app_2": {"locked": {"rev": A}}}
    nodes |= {"tree": {"locked": {"narHash": "x"}}, "lib": {"locked": {"rev": B}}}
    nodes["root"]["inputs"] |= {"\x1b[31m": "app_2", "n" * 101: "app_2"}
    assert forge.locked_inputs({"nodes": nodes, "root": "root"}) == {"app": A}
    assert forge.bumped_inputs({"app": A, "lib": B}, {"app": C, "lib": B, "new": D}) == {"app": C, "new": D}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "null",
        "{",
        '{"nodes": 1, "root": "root", "version": 7}',
        '{"nodes": {"root": []}, "root": "root", "version": 7}',
        '{"nodes": {"root": {"inputs": [1]}}, "root": "root", "version": 7}',
        '{"nodes": {"root": {"inputs": {"a": "b"}}}, "root": "root", "version": 7}',
        '{"nodes": {"root": {"inputs": {"a": "root"}}}, "root": ["root"], "version": 7}',
        '{"nodes": {"root": {"inputs": {"a": "b"}}, "b": {"locked": {"rev": "<script>"}}}, "root": "root", "version": 7}',
        '{"nodes": {"root": {"inputs": {"\\u001b[31m": "b"}}, "b": {"locked": {"rev": "'
        + A
        + '"}}}, "root": "root", "version": 7}',
        "[" * 200_000,
        "9" * 200_000,
        "\ud800",
    ],
)
def test_a_lock_that_is_none_brings_nothing(text: str) -> None:
    with contextlib.suppress(forge.LockTrouble):
        assert forge.locked_inputs(forge.parse_lock(text)) == {}


def landed(commit: str, parent: str, tree: str = "", rollback_to: str = "") -> Landed:
    subject = "Forge Rollback: x" if rollback_to else "Forge Merge: x"
    return Landed(commit, tree or f"tree-{commit[0]}", parent, "", subject, "x", "", "1", rollback_to)


def test_what_a_rollback_puts_on_hold() -> None:
    locks = {A: {"app": A}, B: {"app": B}, C: {"app": B, "lib": C}, D: {"app": A}}
    placed = forge.holds_of([landed(B, A), landed(C, B)], "tree-a", locks, locks[A])
    assert [(hold["commit"], hold["tree"], hold["inputs"]) for hold in placed] == [
        (B, "tree-b", [{"input": "app", "commit": B}]),
        (C, "tree-c", [{"input": "lib", "commit": C}]),
    ]
    assert forge.holds_of([landed(D, C, "tree-a", A)], "tree-b", locks, locks[B]) == []  # a rollback brought nothing
    assert forge.holds_of([landed(D, C, "tree-a")], "tree-a", locks, locks[A]) == []  # base has that tree again


def test_what_was_brought_again_is_taken_back_with_the_rollback_that_brought_it() -> None:
    back, forth, more = ("1" * 40), ("2" * 40), ("3" * 40)
    line = [landed(more, forth), landed(forth, back, rollback_to=B), landed(back, B, rollback_to=A), landed(B, A), landed(A, "")]
    known = {one.commit: one for one in line}

    def taken(tip: str, target: str) -> list[str]:
        return [one.commit for one in forge.taken_back(known, tip, target)]

    assert taken(more, back) == taken(more, A) == [B, forth, more]
    assert taken(more, forth) == [more]
    assert taken(back, B) == [back]  # what that went back to is what B was built on


def test_a_rollback_that_somebody_else_made_is_called_by_its_name() -> None:
    (said,) = forge.why_unproved(landed(B, A, rollback_to=A), [], {}, None)  # type: ignore[arg-type]
    assert said.startswith(f"this rollback to {A[:12]} has no records")


def test_rolling_forward_lifts_what_that_commit_was_built_on() -> None:
    holds = [Hold(commit, f"tree-{commit[0]}", [], "", "", back) for commit, back in ((D, "r0"), (A, "r1"), (B, "r1"), (C, "r1"))]
    assert forge.lifted_by(holds, B, "tree-b") == [A, B]
    assert forge.lifted_by(holds, "other", "tree-c") == [A, B, C]
    assert forge.lifted_by([replace(hold, rollback=None) for hold in holds], B, "tree-b") == [B]


def test_what_a_hold_stops() -> None:
    holds = [Hold(B, "tree-b", [{"input": "app", "commit": B}], "it was rolled back", MOMENT)]
    by_tree = forge.held_by("configs", holds, "tree-b", {}, {})
    by_input = forge.held_by("configs", holds, "tree-x", {"app": A}, {"app": B})
    assert by_tree and by_input and by_tree.commit == by_input.commit == B
    assert f"the tree of {B[:12]}" in by_tree.words and f"the input app at {B[:12]}" in by_input.words
    assert "since 2026-01-01 00:00 UTC (it was rolled back)" in by_input.words
    assert f"forge hold configs {B[:12]} --lift" in by_input.words
    assert forge.held_by("configs", holds, "tree-x", {"app": A}, {"app": C}) is None  # a newer commit passes
    assert forge.held_by("configs", holds, "tree-x", {"app": B}, {"app": B}) is None  # base has it anyway


OPEN = Refs("main", {"main": A, "topic": B}, frozenset({"topic"}))


def passed_topic(**values: Any) -> tuple[Repo, dict[int, Job]]:
    job = Job(1, "app", "topic", PRE, B, [{"branch": "topic", "commit": B}], MOMENT, "passed", base=A, chain=[[D, "tree"]])
    return Repo("main", A, {"topic": Branch(B, 1, passed=1, passed_at=MOMENT)}, **values), {1: job}


def rollback_job(status: str, **values: Any) -> Job:
    heads = [{"branch": "main", "commit": C}]
    job = Job(2, "app", "main", PRE, C, heads, MOMENT, status, cause="rollback", base=A, tested=D, tree="t", chain=[[D, "t"]])
    return replace(job, **values)


def test_a_head_on_hold_leaves_the_line_to_the_others() -> None:
    known, jobs = passed_topic()
    free, held = Facts(True, Merged("tree")), Facts(True, Merged("tree"), Held(C, "it is on hold"))
    assert isinstance(forge.decide(known, OPEN, jobs, {B: free}), Merge)
    assert forge.decide(known, OPEN, jobs, {B: held}) is None
    assert forge.why_blocked("topic", OPEN, known, jobs[1], Merged("tree"), held.held) == ["it is on hold"]


def test_heads_that_come_to_a_held_tree_together_do_not_land_together() -> None:
    heads = [{"branch": name, "commit": commit} for name, commit in (("one", B), ("two", C))]
    job = Job(3, "app", "two", PRE, C, heads, MOMENT, "passed", "retest", base=A, chain=[[D, "t1"], [D, "t2"]])
    branches = {name: Branch(commit, 3, passed=1, passed_at=MOMENT) for name, commit in (("one", B), ("two", C))}
    refs = Refs("main", {"main": A, "one": B, "two": C}, frozenset({"one", "two"}))
    facts = {commit: Facts(True, Merged("t")) for commit in (B, C)}
    known = Repo("main", A, branches, queue_job=3)
    assert isinstance(forge.decide(known, refs, {3: job}, facts), Merge)
    known.holds[D] = Hold(D, "t2", [], "", MOMENT)
    assert isinstance(forge.decide(known, refs, {3: job}, facts), Queue)  # what is chained then leaves out the second


@pytest.mark.parametrize(
    ("rollback", "kind", "cause"),
    [
        (rollback_job("pending"), type(None), ""),
        (rollback_job("running"), type(None), ""),
        (rollback_job("passed"), Merge, "rollback"),
        (rollback_job("failed", reason="interrupted: a reboot"), Queue, "rollback"),
    ],
)
def test_nothing_lands_before_a_rollback(rollback: Job, kind: type, cause: str) -> None:
    known, jobs = passed_topic(rollback=2)
    action = forge.decide(known, OPEN, {**jobs, 2: rollback}, {B: Facts(True, Merged("tree"))})
    assert isinstance(action, kind)
    assert not cause or (action.how if isinstance(action, Merge) else action.cause) in (cause, (cause,))  # type: ignore[union-attr]
    assert "job 2 tests" in forge.why_blocked("topic", OPEN, known, jobs[1], Merged("tree"))[0]
    assert forge.decide(known, OPEN, {**jobs, 2: replace(rollback, status="passed")}, {}, 0.0, [C]) is None  # stuck


def told(*events: tuple[str, dict[str, Any]]) -> State:
    state = State()
    for seq, (event, values) in enumerate(events, 1):
        record = {"seq": seq, "at": MOMENT, "event": event, **values}
        forge.check_record(state, record)
        fold(state, record)
    return state


FOUND = ("repo.found", {"repo": "app", "base": "main", "tip": A})


def test_a_rollback_is_pending_until_it_has_landed_or_is_given_up() -> None:
    queued = ("job.queued", asdict(rollback_job("pending")))
    ended = {status: ("job.finished", asdict(rollback_job(status, reason="exit code 1"))) for status in ("passed", "failed")}
    interrupted = ("job.finished", asdict(rollback_job("failed", reason="interrupted: a reboot")))
    assert told(FOUND, queued).repos["app"].rollback == 2 and "main" not in told(FOUND, queued).repos["app"].branches
    assert told(FOUND, queued, ended["passed"]).repos["app"].rollback == 2
    assert told(FOUND, queued, ended["passed"]).jobs[2].status == "passed"  # a server that starts lands it
    assert told(FOUND, queued, interrupted).repos["app"].rollback == 2
    again = ("job.queued", asdict(replace(rollback_job("pending"), id=3, retry_of=2)))
    assert list(told(FOUND, queued, interrupted, again).jobs) == [3]
    given_up = told(FOUND, queued, ended["failed"])
    assert given_up.repos["app"].rollback is None and not given_up.jobs and not given_up.repos["app"].suspects
    moved = ("base.moved", {"repo": "app", "branch": "main", "old": A, "new": B})
    assert told(FOUND, queued, ended["passed"], moved).repos["app"].rollback is None
    merge = {"repo": "app", "branch": "main", "head": C, "merge_commit": D, "parent": A, "job": 2, "how": "rollback", "begun": 0}
    assert told(FOUND, queued, ended["passed"], ("merged", merge)).repos["app"].rollback is None


def test_a_direct_push_gives_a_rollback_up() -> None:
    state = told(FOUND, ("job.queued", asdict(rollback_job("pending"))))
    assert notice("app", state, Refs("main", {"main": A}), Push(), 9) == []
    events = notice("app", state, Refs("main", {"main": B}), Push(), 9)
    (ended,) = [values for event, values in events if event == "job.finished"]
    assert (ended["status"], ended["reason"]) == ("superseded", "main has moved on; roll back again")
    old = rollback_job("failed")
    assert "roll back again" in (forge.why_no_retry(old, Refs("main", {"main": B}), []) or "")
    assert forge.why_no_retry(old, Refs("main", {"main": A}), []) is None


def test_a_deployment_begins_where_the_last_one_that_ran_ended() -> None:
    def post(job_id: int, base: str, commit: str, status: str, began: str | None = None) -> dict[str, Any]:
        heads = [{"branch": "main", "commit": commit}]
        return asdict(Job(job_id, "app", "main", POST, commit, heads, MOMENT, status, base=base, started_at=began))

    def next_base(*events: tuple[str, dict[str, Any]]) -> Any:
        moved = ("base.moved", {"repo": "app", "branch": "main", "old": A, "new": B})
        found = notice("app", told(FOUND, moved, *events), Refs("main", {"main": C}), Push(), 9)
        return next(values["base"] for event, values in found if event == "job.queued")

    queued = ("job.queued", post(1, A, B, "pending"))
    canceled = ("job.finished", post(1, A, B, "canceled"))
    ran = [("job.started", {"id": 1, "started_at": MOMENT}), ("job.finished", post(1, A, B, "failed", MOMENT))]
    assert next_base(queued) == next_base(queued, canceled) == A
    assert next_base(queued, *ran) == B


def test_the_holds_of_a_rollback_are_written_before_what_ends_its_intent() -> None:
    hold = {"commit": B, "tree": "t", "inputs": [], "reason": "main was rolled back"}
    intent = {"event": "merge.begun", "seq": 1, "repo": "app", "merges": [{"branch": "main"}], "holds": [hold], "lifted": [C]}
    assert [event for event, _ in forge.outcome_of(intent)] == ["hold.lifted", "hold.placed", "merged"]


def test_a_rollback_whose_git_is_killed_after_it_moved_base_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = forge.Config(tmp_path, sandbox="none")
    engine, path = forge.Engine(config), forge.create_repo(config, "app", "main")
    try:
        tip, line = "0" * 40, []
        for text in ("1", "2", "3"):
            blob = forge.git(path, "hash-object", "-w", "--stdin", text=text).strip()
            tree = forge.git(path, "mktree", text=f"100644 blob {blob}\tfile\n").strip()
            commit = forge.commit_tree(path, tree, [tip] if line else [], text)
            forge.move_refs(path, [("refs/heads/main", tip, commit)])
            tip, line = commit, [*line, commit]
            engine.submit("app", Push())
        engine.roll_back("app", line[1], untested=True)
        move = forge.move_refs

        def killed(*args: Any) -> None:
            move(*args)
            raise forge.GitError(("update-ref",), -9, "killed")

        monkeypatch.setattr(forge, "move_refs", killed)
        done = engine.roll_back("app", line[2], untested=True)
        assert done["head"] == line[2] and not engine.state.repos["app"].holds  # what was held is base again
        assert not engine.state.intents
    finally:
        engine.stop()


def test_a_deployment_finds_its_merges_however_often_a_branch_of_that_name_has_landed(tmp_path: Path) -> None:
    ledger = forge.Ledger(tmp_path)
    ledger.record(("repo.found", {"repo": "app", "base": "main", "tip": A}))
    merge = {"repo": "app", "branch": "update", "head": A, "parent": B, "job": 1, "how": "auto", "begun": 0}
    commits = [f"{number:040x}" for number in range(300)]
    ledger.record(*(("merged", {**merge, "merge_commit": commit}) for commit in commits))
    assert all((ledger.merge_by("app", commit) or {})["merge_commit"] == commit for commit in commits)
    assert ledger.merge_by("app", D) is None and ledger.merge_by("other", commits[0]) is None


def test_the_message_of_a_rollback_names_what_it_takes_back() -> None:
    message = forge.rollback_message(A, [landed(C, B)._replace(subject="Evil\x1b[31m " + "x" * 500)] * 30, 7)
    assert message.startswith(f"Forge Rollback: {A[:12]}\n\n") and message.endswith(f"\n\nForge-Rollback-To: {A}\nForge-Job: 7\n")
    assert "\x1b" not in message and "- and 10 more" in message and len(message) < 5000


def test_a_rollback_is_proved_by_a_job_that_passed_on_its_tree() -> None:
    back = landed(C, B, "tree-a", A)
    merge = {"branch": "main", "head": A, "merge_commit": C, "parent": B, "tree": "tree-a", "job": 1, "how": "rollback"}
    line = {one.commit: one for one in (back, landed(A, D))}
    verdict = {"status": "passed", "exit_code": 0, "tree": "tree-a", "reused_from": None}
    prove = forge.why_rollback_unproved
    assert prove(back, {**merge, "untested": None}, line, {1: [verdict]}) == []
    assert "did not run and pass" in prove(back, {**merge, "untested": None}, line, {1: [{**verdict, "tree": "other"}]})[0]
    assert "did not run and pass" in prove(back, {**merge, "untested": None}, line, {})[0]
    assert "does not fit" in prove(back, {**merge, "untested": None, "parent": D}, line, {1: [verdict]})[0]
    assert "another tree" in prove(back, {**merge, "untested": None}, {C: back}, {1: [verdict]})[0]
    assert prove(back._replace(job=""), {**merge, "untested": True, "job": 0}, line, {}) == []


###############################################################################
# a real server
###############################################################################


def land(work: Work, name: str, **files: str) -> str:
    """Let a branch merge; the new base."""
    work.branch(name, AUTO, **files)
    work.push(name)
    work.landed(name)
    work.server.idle()
    return work.heads()["main"]


def roll_back(work: Work, commit: str, **form: str) -> Any:
    return work.server.act(f"/r/{work.name}/rollback", commit=commit, **form)


def holds(work: Work) -> list[Any]:
    found: list[Any] = work.server.get(f"/r/{work.name}")["holds"]
    return found


def deployments(work: Work) -> list[Any]:
    found: list[Any] = work.server.get(f"/r/{work.name}/deployments")["deployments"]
    return found


def proved(work: Work, code: int = 0) -> Any:
    done = work.server.cli("audit", work.name, "--json", check=False)
    assert done.returncode == code, done.stdout
    return json.loads(done.stdout)["repos"][0]


def test_a_rollback_to_a_tree_that_passed_lands_and_deploys_at_once(work: Work) -> None:
    good = land(work, "good", app="1\n")
    bad = land(work, "bad", app="2\n", other="x\n")
    answer = roll_back(work, good[:10])
    merge = answer.json
    assert answer.status == 200 and merge["how"] == "rollback" and merge["head"] == good and merge["parent"] == bad
    tip = work.heads()["main"]
    assert tip == merge["merge_commit"] and merge["branch"] == "main" and merge["job"]
    assert work.bare("rev-parse", f"{tip}^{{tree}}") == work.bare("rev-parse", f"{good}^{{tree}}") == merge["tree"]
    assert work.bare("log", "-1", "--format=%s|%P|%an|%(trailers:key=Forge-Rollback-To,valueonly)", tip).strip() == (
        f"Forge Rollback: {good[:12]}|{bad}|forge|{good}"
    )
    work.server.idle()
    newest = deployments(work)[0]
    assert newest["commit"] == tip and newest["base"] == bad and newest["status"] == "passed"
    assert [one["how"] for one in newest["merges"]] == ["rollback"] and work.merges()[0] == merge
    assert [(hold["commit"], hold["inputs"], hold["repo"]) for hold in holds(work)] == [(bad, [], work.name)]
    events = [record["event"] for record in work.server.journal() if record.get("repo") == work.name]
    assert events.count("hold.placed") == 1 and "merge.begun" in events
    found = proved(work)
    assert found["rollbacks"] == [{"commit": tip, "to": good, "untested": False}] and found["merges"] == 3
    assert f"rolled back {work.name}/main to {good}: {tip}" in work.server.log


def test_what_was_rolled_back_comes_back_only_when_its_hold_is_lifted(work: Work) -> None:
    server, good = work.server, land(work, "good", app="1\n")
    bad = land(work, "bad", app="2\n")
    roll_back(work, good)
    work.branch("again", AUTO, app="2\n")
    work.push("again")
    work.branch("beside", AUTO, beside="x\n")
    work.push("beside")
    work.landed("beside")  # it is not chained with what is on hold
    server.idle()
    work.branch("again", AUTO, "origin/main~1", app="2\n")  # on the base of the rollback its tree is the one on hold
    work.push("again", force=True)
    server.idle()
    land(work, "later", later="x\n")
    assert "again" not in work.heads()  # with what landed since, the tree is another one, and no input is held
    roll_back(work, good, untested="1")
    server.idle()
    work.branch("again", AUTO, app="2\n")
    work.push("again")
    server.idle()
    view = work.mr("again")
    assert not view["mergeable"] and view["held"] == bad and "--lift" in view["blockers"][0] and "on hold since" in view["why"]
    assert f"auto-merge not attempted for {work.name}/again: it would bring back the tree of {bad[:12]}" in server.log
    refused = server.act(f"/r/{work.name}/mr/again/merge")
    assert refused.status == 409 and "would bring back" in refused.json["error"]
    assert server.cli("wait", work.name, "again", check=False).returncode == 1
    page = server.ask(f"/r/{work.name}/mr/again", Accept="text/html").text
    assert "Lift the hold" in page and f'value="{bad}"' in page
    listed = json.loads(server.cli("hold", work.name, "--json").stdout)["holds"]
    assert bad in [hold["commit"] for hold in listed] and bad[:12] in server.cli("hold", work.name).stdout
    assert "on hold" in server.ask(f"/r/{work.name}", Accept="text/html").text
    server.cli("hold", work.name, bad[:10], "--lift")
    work.landed("again")
    assert bad not in [hold["commit"] for hold in holds(work)]
    assert server.cli("hold", work.name, bad, "--lift", check=False).returncode == 2
    proved(work)


def test_a_hold_is_lifted_by_its_commit_only(work: Work) -> None:
    good, bad = land(work, "good", app="1\n"), land(work, "bad", app="2\n")
    roll_back(work, good)
    for commit in ("", bad[:3], "x" * 40):
        for lift in ("", "1"):
            assert work.server.act(f"/r/{work.name}/hold", commit=commit, lift=lift).status == 400
    assert [hold["commit"] for hold in holds(work)] == [bad]


def test_a_bump_to_the_commit_that_was_rolled_back_waits_and_a_newer_one_passes(work: Work) -> None:
    one, two, three = (str(number) * 40 for number in (1, 2, 3))
    good = land(work, "first", **{"flake.lock": lock(app=one, lib=one)})
    bad = land(work, "bump", **{"flake.lock": lock(app=two, lib=one)})
    roll_back(work, good)
    assert holds(work)[0]["inputs"] == [{"input": "app", "commit": two}] and holds(work)[0]["commit"] == bad
    land(work, "lib", **{"flake.lock": lock(app=one, lib=three)})
    work.branch("bump", AUTO, **{"flake.lock": lock(app=two, lib=three)})
    work.push("bump")
    work.server.idle()
    assert f"the input app at {two[:12]}" in work.mr("bump")["blockers"][0]
    land(work, "newer", **{"flake.lock": lock(app=three, lib=three)})
    assert "conflicts" in work.mr("bump")["why"]
    work.branch("again", AUTO, **{"flake.lock": lock(app=two, lib=three)})
    work.push("again")
    work.server.idle()
    assert work.mr("again")["held"] == bad
    answer = work.server.act(f"/r/{work.name}/hold", commit=bad, lift="1")
    assert answer.status == 200 and answer.json["status"] == "lifted"
    work.landed("again")


def test_a_tree_that_never_passed_is_tested_first_and_nothing_lands_before(work: Work) -> None:
    server, gate = work.server, work.gate("rollback")
    script = f"#!/bin/sh\n[ ! -f wait ] || while [ ! -e $HOME/{gate.name} ]; do sleep 0.05; done\n[ ! -f bad ]\n"
    work.git("checkout", "-q", "main")
    work.write(".forge/pre-merge", script, executable=True)
    direct = work.commit("Pushed directly", wait="x\n")
    work.push("main")
    work.git("rm", "-q", "wait")
    bad = work.commit("Pushed directly, too", bad="x\n")
    work.push("main")
    work.git("rm", "-q", "bad")
    work.commit("Mended")
    work.push("main")
    server.idle()
    tip = work.heads()["main"]
    answer = roll_back(work, direct)
    job = answer.json["job"]
    assert answer.status == 202 and answer.json["status"] == "queued" and job["kind"] == PRE and job["commit"] == direct
    work.branch("topic", AUTO)
    work.push("topic")
    wait_for(
        lambda: "is being rolled back" in work.mr("topic")["why"] and work.mr("topic")["job"]["status"] == "passed", "a wait"
    )
    again = roll_back(work, bad)
    assert again.status == 409 and f"job {job['id']} tests a rollback" in again.json["error"]
    for page in (f"/r/{work.name}/deployments", f"/jobs/{job['id']}", f"/r/{work.name}"):
        assert "rollback" in server.ask(page, Accept="text/html").text
    assert work.heads()["main"] == tip
    assert server.act(f"/jobs/{job['id']}/cancel").status == 200
    assert server.ended(job["id"])["status"] == "canceled"
    work.landed("topic")  # what waited goes on
    assert roll_back(work, direct).status == 202
    gate.touch()
    wait_for(lambda: work.merges()[0]["how"] == "rollback", "the rollback")
    landed_as = work.merges()[0]
    assert landed_as["head"] == direct and landed_as["merge_commit"] == work.heads()["main"]
    assert work.bare("rev-parse", f"refs/forge/jobs/{landed_as['job']}") == landed_as["merge_commit"]

    queued = roll_back(work, bad).json["job"]  # its test fails
    assert server.ended(queued["id"])["status"] == "failed"
    assert work.heads()["main"] == landed_as["merge_commit"]
    wait_for(lambda: "was not rolled back to" in server.log, "words in the log")
    retried = server.act(f"/jobs/{queued['id']}/retry")
    assert retried.status == 202 and server.ended(retried.json["id"])["retry_of"] == queued["id"]
    asked = roll_back(work, bad, untested="1")
    assert asked.status == 200 and asked.json["untested"] and asked.json["job"] is None
    assert server.act(f"/jobs/{queued['id']}/retry").status == 409
    server.idle()
    assert proved(work)["rollbacks"][0] == {"commit": work.heads()["main"], "to": bad, "untested": True}
    assert "untested, as was asked" in server.ask(f"/r/{work.name}/history", Accept="text/html").text
    assert "untested, as was asked" in server.cli("audit", work.name).stdout


def push_untested(work: Work, gate: Path) -> str:
    """Push a commit to base whose check waits for a file, and another one without it; the first."""
    work.git("checkout", "-q", "main")
    untested = work.commit("Never tested", run=f"while [ ! -e $HOME/{gate.name} ]; do sleep 0.05; done\n")
    work.push("main")
    work.git("rm", "-q", "run")
    work.commit("Next")
    work.push("main")
    work.server.idle()
    return untested


def test_a_direct_push_ends_a_rollback_that_is_tested(work: Work) -> None:
    gate = work.gate("never")
    untested = push_untested(work, gate)
    job = roll_back(work, untested).json["job"]
    work.server.running(job["id"])
    work.commit("Pushed meanwhile", file="x")
    work.push("main")
    ended = work.server.ended(job["id"])
    assert (ended["status"], ended["reason"]) == ("superseded", "main has moved on; roll back again")
    work.server.idle()
    assert work.server.act(f"/jobs/{job['id']}/retry").status == 409
    assert work.heads()["main"] == work.git("rev-parse", "main")


def test_rolling_forward_to_what_is_on_hold_lifts_that(work: Work) -> None:
    good = land(work, "good", app="1\n")
    bad, worse = land(work, "bad", app="2\n"), land(work, "worse", app="3\n")
    roll_back(work, good)
    assert [hold["commit"] for hold in holds(work)] == [bad, worse]
    assert roll_back(work, bad).status == 200
    assert [hold["commit"] for hold in holds(work)] == [worse]
    done = work.server.cli("rollback", work.name, worse[:12])
    assert f"rolled back to {worse}" in done.stdout and holds(work) == []
    placed = work.server.act(f"/r/{work.name}/hold", commit=bad[:12])
    assert (
        placed.status == 200
        and placed.json["hold"]["commit"] == bad
        and placed.json["hold"]["reason"] == "somebody put it on hold"
    )
    assert [hold["commit"] for hold in holds(work)] == [bad]


def test_back_and_forth_and_back_again_holds_what_was_bad(work: Work) -> None:
    good, bad = land(work, "good", app="1\n"), land(work, "bad", app="2\n")
    back = roll_back(work, good).json["merge_commit"]
    roll_back(work, bad)
    assert holds(work) == []
    roll_back(work, back)  # the newest deployment that was well, and behind it nothing but rollbacks
    assert [hold["commit"] for hold in holds(work)] == [bad]
    work.server.cli("hold", work.name, bad, "--lift")
    bad = land(work, "again", app="2\n")
    roll_back(work, good)
    assert [hold["commit"] for hold in holds(work)] == [bad]  # one to lift, since the first was lifted


def test_a_rollback_that_cannot_be_is_refused_in_words(work: Work) -> None:
    server = work.server
    good, tip = land(work, "good", app="1\n"), land(work, "second", app="2\n")
    side = work.bare("rev-parse", f"{tip}^2")
    work.git("fetch", "-q", "origin")
    work.git("checkout", "-q", "-B", "main", tip)
    work.commit("The same tree")
    work.push("main")
    server.idle()
    cases = [
        (work.name, "", 400, "is no commit id"),
        (work.name, "main", 400, "is no commit id"),
        (work.name, "--all", 400, "is no commit id"),
        (work.name, "0" * 40, 404, "has no commit"),
        (work.name, work.heads()["main"], 409, "nothing to roll back"),
        (work.name, tip, 409, "has the tree of"),
        (work.name, side, 409, "own line"),
        (work.name, work.bare("rev-parse", f"{good}^{{tree}}"), 404, "has no commit"),
        ("none", good, 404, "there is no repo"),
    ]
    for repo, commit, status, words in cases:
        for verb in ("rollback", "hold") if status in (400, 404) else ("rollback",):
            answer = server.act(f"/r/{repo}/{verb}", commit=commit)
            assert answer.status == status and words in answer.json["error"], (verb, commit, answer.body)
    server.cli("create", "hollow-" + work.name)
    empty = server.act(f"/r/hollow-{work.name}/rollback", commit=good)
    assert empty.status == 409 and "no base" in empty.json["error"]
    assert server.ask(f"/r/{work.name}/rollback", {"commit": good}).status == 401
    assert server.ask(f"/r/{work.name}/hold", {"commit": good}).status == 401
    assert server.cli("rollback", work.name, "0" * 40, check=False).returncode == 2
    assert server.cli("rollback", work.name, tip, check=False).returncode == 1
    assert "did you mean" in server.cli("rollback", work.name[:-1], good, check=False).stderr


def test_deployments_name_what_they_bring(work: Work) -> None:
    server, go = work.server, work.server.data / "home" / work.name / "post-merge" / "go"
    work.git("checkout", "-q", "main")
    work.commit("Deploy <b>slowly</b>", deploy="while [ ! -e $HOME/go ]; do sleep 0.05; done\n")
    go.parent.mkdir(parents=True, exist_ok=True)
    work.push("main")
    (slow,) = [one for one in deployments(work) if one["status"] in ("pending", "running")]
    server.running(slow["id"])
    for name in ("one", "two"):
        work.branch(name, AUTO)
        work.push(name)
        work.landed(name)
    waiting, superseded = wait_for(
        lambda: (found := deployments(work))[1]["status"] == "superseded" and found[:2], "a newer base"
    )
    assert [merge["branch"] for merge in waiting["merges"]] == ["two", "one"] and waiting["base"] == slow["commit"]
    assert waiting["includes"] == [superseded["id"]] and waiting["included"] == ["one"]
    alone = work.server.get(f"/r/{work.name}/deployments/{waiting['id']}")
    assert alone["includes"] == waiting["includes"] and alone["merges"] == waiting["merges"]
    said = server.ask(f"/r/{work.name}/deployments", Accept="text/html").text
    assert "includes what 1 superseded deployment would have brought" in said and "Deploy &lt;b&gt;slowly&lt;/b&gt;" in said
    assert f"Job {slow['id']} deploys" not in said  # the newest one waits
    assert server.act(f"/jobs/{waiting['id']}/cancel").status == 200
    work.branch("three", AUTO)
    work.push("three")
    work.landed("three")
    go.touch()
    server.idle()
    newest = deployments(work)[0]
    assert [merge["branch"] for merge in newest["merges"]] == ["three", "two", "one"] and newest["base"] == slow["commit"]
    assert [author["name"] for author in newest["authors"]] == ["Ada"] and newest["commit_count"] == 3
    assert work.server.get(f"/r/{work.name}/deployments")["current"] == newest["commit"] == work.heads()["main"]
    diff = server.ask(f"/r/{work.name}/deployments/{newest['id']}", Accept="text/html").text
    assert diff.count('class="file"') == 3 and newest["diff_url"].endswith(f"/deployments/{newest['id']}")
    path = next(iter(work.git("show", "--format=", "--name-only", "three").split()))
    one = server.ask(f"/r/{work.name}/deployments/{newest['id']}?file={path}", Accept="text/html")
    assert one.status == 200 and path in one.text
    assert server.ask(f"/r/{work.name}/deployments/{newest['merges'][0]['job']}").status == 404
    assert server.ask(f"/r/{work.name}/deployments/x", Accept="text/html").status == 404
    first = deployments(work)[-1]
    assert first["base"] is None and first["pushed"][0]["subject"] == "First commit"
    assert server.ask(f"/r/{work.name}/deployments/{first['id']}", Accept="text/html").status == 200


def test_an_interrupted_deployment_is_not_repeated_and_offers_retry(work: Work) -> None:
    server = work.server
    good = work.heads()["main"]
    work.git("checkout", "-q", "main")
    work.commit("Hang", deploy="echo begun; while :; do sleep 0.1; done\n")
    work.push("main")
    job = deployments(work)[0]
    server.running(job["id"])
    run = server.data / "running" / str(job["id"])
    wait_for(lambda: b"begun" in server.job_log(job["id"]), "its work")
    os.killpg(int((run / "pid").read_text().split()[0]), signal.SIGKILL)
    assert server.ended(job["id"])["reason"].startswith("interrupted")
    page = server.ask(f"/r/{work.name}/deployments", Accept="text/html").text
    assert "how far it came is not known" in page and f'formaction="/jobs/{job["id"]}/retry"' in page
    assert server.get(f"/r/{work.name}/deployments")["current"] == good  # what was deployed last, with success
    server.idle()
    assert len(deployments(work)) == 2
    work.commit("Next", deploy="true\n")
    work.push("main")
    server.idle()
    assert "/retry" not in server.ask(f"/r/{work.name}/deployments", Accept="text/html").text
    assert server.act(f"/jobs/{job['id']}/retry").status == 409


def test_a_deployments_page_that_is_warm_asks_no_git(work: Work, tmp_path: Path) -> None:
    for name in ("one", "two"):
        land(work, name)
    path = f"/r/{work.name}/deployments"
    first = work.server.ask(path, Accept="text/html").text
    hidden = work.path.with_name(f".{work.name}-objects")
    (work.path / "objects").rename(hidden)
    (work.path / "objects").mkdir()
    try:
        again = work.server.ask(path + "?limit=99", Accept="text/html").text
        assert "git cannot tell" not in again and first.count("<tr") == again.count("<tr")
    finally:
        (work.path / "objects").rmdir()
        hidden.rename(work.path / "objects")


def test_a_repo_that_reuses_nothing_and_one_with_another_command_roll_back(work: Work) -> None:
    good = land(work, "good", app="1\n")
    land(work, "bad", app="2\n")
    work.bare("config", "forge.reuse", "false")
    work.bare("config", "forge.preMerge", "false")
    assert roll_back(work, good).status == 200  # its tree passed, with another command
    work.server.idle()
    proved(work)


def kill_at(server: Server, folder: Path, when: str, match: str) -> None:
    """Start a server whose git, at a call of which the arguments begin so, kills it as tests/faulty_git.py says."""
    folder.mkdir()
    faulty, real = Path(__file__).with_name("faulty_git.py"), shutil.which("git")
    lines = f"""#!/bin/sh
case "$*" in "{match}"*) [ -e {folder}/done ] || {{
  ticks=$(cut -d')' -f2 /proc/$PPID/stat | cut -d' ' -f21)
  exec {sys.executable} {faulty} {real} {when} server $PPID $ticks 0.1 {folder}/done "$@"
}};; esac
exec {real} "$@"
"""
    (folder / "git").write_text(lines)
    (folder / "git").chmod(0o755)
    server.settings["PATH"] = f"{folder}:{os.environ['PATH']}"


@pytest.mark.parametrize("when", ["before", "locked", "moved", "after"])
def test_a_server_that_is_killed_while_it_rolls_back_ends_up_with_all_or_nothing(
    make_server: Callable[..., Server], tmp_path: Path, when: str
) -> None:
    server = make_server()
    work = server.repo("app")
    good = land(work, "good", app="1\n")
    bad = land(work, "bad", app="2\n")
    server.stop()
    path = server.settings.get("PATH")
    kill_at(server, tmp_path / "faulty", when, "update-ref -z --stdin")
    server.start()
    with pytest.raises(OSError):  # nobody answers
        roll_back(work, good)
    assert server.process and server.process.wait(15) == -signal.SIGKILL and server.process.stdout
    server.process.stdout.close()
    server.settings["PATH"] = path or os.environ["PATH"]
    server.start()
    server.idle()
    landed_it = when in ("moved", "after")
    wait_for(lambda: "(merge.begun) is settled" in server.log, "a look at what was begun")
    server.idle()
    assert [merge["how"] for merge in work.merges()][:1] == (["rollback"] if landed_it else ["auto"])
    assert [hold["commit"] for hold in holds(work)] == ([bad] if landed_it else [])
    if not landed_it:
        assert work.heads() == {"main": bad} and roll_back(work, good).status == 200
        server.idle()
    newest = deployments(work)[0]
    assert newest["commit"] == work.heads()["main"] and newest["status"] == "passed" and newest["base"] == bad
    assert len([merge for merge in work.merges() if merge["how"] == "rollback"]) == 1
    assert [hold["commit"] for hold in holds(work)] == [bad]
    proved(work)


def test_a_rollback_that_passed_while_no_server_was_there_lands_at_the_next_start(make_server: Callable[..., Server]) -> None:
    server = make_server()
    work = server.repo("app")
    gate = work.gate("go")
    untested = push_untested(work, gate)
    job = roll_back(work, untested).json["job"]
    server.running(job["id"])
    server.stop(signal.SIGKILL)
    gate.touch()
    server.start()
    wait_for(lambda: work.merges() and work.merges()[0]["how"] == "rollback", "the rollback")
    assert work.merges()[0]["job"] == job["id"] and [hold["tree"] for hold in holds(work)] != []
    server.idle()
    server.stop()  # the snapshot has the holds
    server.start()
    assert len(holds(work)) == 1
    proved(work)


@needs_nix
def test_a_bump_by_nix_itself_is_held(make_server: Callable[..., Server], tmp_path: Path) -> None:
    """The lock is written by Nix; what it is asked to test is a script, since Nix in a job is not the point."""
    server = make_server()
    app, configs = tmp_path / "app", server.repo("configs")
    environ = os.environ | {"NIX_CONFIG": NIX_CONFIG, "HOME": str(tmp_path)}

    def git(*args: str) -> str:
        identity = ("-c", "user.name=Ada", "-c", "user.email=ada@localhost")
        return subprocess.run(
            ["git", "-C", str(app), *identity, *args], check=True, capture_output=True, text=True
        ).stdout.strip()

    def bump(branch: str, text: str | None) -> None:
        if text is not None:
            (app / "flake.nix").write_text(text)
            git("commit", "-aqm", "A change")
        configs.branch(branch, AUTO, **{"flake.nix": f'{{ inputs.app.url = "git+file://{app}"; outputs = _: {{ }}; }}'})
        subprocess.run(["nix", "flake", "lock", "--update-input", "app"], cwd=configs.tree, env=environ, check=True, timeout=60)
        configs.git("add", "-A")
        configs.git("commit", "-q", "--amend", "--no-edit")
        configs.push(branch)

    app.mkdir()
    git("init", "-q")
    (app / "flake.nix").write_text("{ outputs = _: { n = 0; }; }")
    git("add", "-A")
    git("commit", "-qm", "First")
    bump("first", None)
    configs.landed("first")
    server.idle()
    good = configs.heads()["main"]
    bump("second", "{ outputs = _: { n = 1; }; }")
    configs.landed("second")
    server.idle()
    assert roll_back(configs, good).status == 200
    assert holds(configs)[0]["inputs"] == [{"input": "app", "commit": git("rev-parse", "HEAD")}]
    bump("again", None)
    server.idle()
    assert "the input app at" in configs.mr("again")["why"]
    bump("newer", "{ outputs = _: { n = 2; }; }")
    configs.landed("newer")


def test_a_hold_is_named_by_enough_of_its_commit(work: Work) -> None:
    tip = work.bare("rev-parse", "main")
    server, page = work.server, f"/r/{work.name}/hold"
    assert server.act(page, commit=tip).json["hold"]["commit"] == tip
    for given in ({}, {"commit": ""}, {"commit": tip[:3]}):  # the only hold is not lifted by naming none
        for lift in ({}, {"lift": "1"}):
            assert server.act(page, **given, **lift).status == 400, (given, lift)
    assert "on hold" in server.cli("hold", work.name, tip.upper()).stdout
    assert [hold["commit"] for hold in server.get(f"/r/{work.name}")["holds"]] == [tip]
    assert "not on hold any more" in server.cli("hold", work.name, "--lift", tip[:8]).stdout
    assert server.cli("hold", "--json", work.name).stdout == '{\n  "holds": []\n}\n'
