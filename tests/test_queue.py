"""The queue: what is merged is what was tested, also when many branches are ready at once."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable
from typing import Any

import pytest
from conftest import AUTO, Server, Work, clean_environ, git_after, wait_for

# Passes unless two files that do not go together are there.
PAIRS = """for pair in a-b c-d e-f; do
    if [ -e "part-${pair%-*}" ] && [ -e "part-${pair#*-}" ]; then echo "${pair} do not go together"; exit 1; fi
done
sleep 0.1
"""


def parts(work: Work, *names: str, message: str = AUTO) -> None:
    """Branches that add one file each, pushed at once."""
    for name in names:
        work.branch(name, message, **{f"part-{name}": name})
    work.push(*names)


def pre_jobs(server: Server, repo: str) -> list[Any]:
    found: list[Any] = server.get(f"/jobs?repo={repo}&kind=pre-merge&limit=500")["jobs"][::-1]
    return found


def base_is_tested(work: Work) -> None:
    """Each merge in the history is recorded once, names its job, and the last of each job has the tree that passed."""
    merges = work.merges()
    line = work.bare("rev-list", "--first-parent", "--merges", "main").split()
    assert [merge["merge_commit"] for merge in merges] == line
    for newer, merge in zip([None, *merges], merges, strict=False):
        job = work.server.get(f"/jobs/{merge['job']}")
        said = work.bare("log", "-1", "--format=%(trailers:key=Forge-Job,valueonly)%T %P", merge["merge_commit"]).split()
        assert said == [str(job["id"]), merge["tree"], merge["parent"], merge["head"]]
        assert job["status"] == "passed" and {"branch": merge["branch"], "commit": merge["head"]} in job["heads"]
        if newer is None or newer["job"] != merge["job"]:
            assert (merge["merge_commit"], merge["tree"]) == (job["tested"], job["tree"])


def ready_order(server: Server, repo: str) -> list[str]:
    """The branches in the order in which the journal has them pass for the first time."""
    passed = [r for r in server.journal() if r["event"] == "job.finished" and r["status"] == "passed" and r["repo"] == repo]
    firsts = [r for r in passed if r["kind"] == "pre-merge" and r["cause"] == "push"]
    assert firsts == sorted(firsts, key=lambda record: record["finished_at"])  # what is shown tells the same order
    return list(dict.fromkeys(r["branch"] for r in firsts))


def test_two_that_pass_alone_and_break_base_together(shared: Server) -> None:
    work = shared.repo("together", script=PAIRS)
    for number in range(3):
        a, b = ("a", "b") if number % 2 else ("b", "a")
        parts(work, a, b)
        shared.idle()
        left = set(work.heads()) & {"a", "b"}
        assert len(left) == 1
        (loser,) = left
        (winner,) = {"a", "b"} - left
        view = work.mr(loser)
        assert not view["mergeable"] and winner in view["why"] and "passed alone, but fails together" in view["why"]
        assert view["job"]["status"] == "failed"
        base_is_tested(work)
        work.push(f":{loser}")
        work.git("fetch", "-q")
        work.git("checkout", "-q", "--detach", "origin/main")
        work.git("rm", "-q", f"part-{winner}")
        work.commit("Away with it")
        work.push("HEAD:main")
        shared.idle()
        assert len(pre_jobs(shared, "together")) == 3 * (number + 1)  # two first tests, one together with base


@pytest.mark.parametrize("jobs", ["2", "1", "6"])
def test_independent_branches_cost_little_more_than_their_first_tests(make_server: Callable[..., Server], jobs: str) -> None:
    server = make_server(FORGE_MAX_JOBS=jobs)
    work = server.repo(script=PAIRS)
    names = [f"n{number}" for number in range(12)]
    parts(work, *names)
    server.idle()
    assert set(work.heads()) == {"main"}
    assert [merge["branch"] for merge in work.merges()][::-1] == ready_order(server, "app")
    assert sorted(ready_order(server, "app")) == sorted(names)
    assert len(pre_jobs(server, "app")) <= len(names) + 2
    assert {merge["how"] for merge in work.merges()} == {"auto"}
    base_is_tested(work)


def test_the_ones_at_fault_are_found_and_told_and_the_others_land(make_server: Callable[..., Server]) -> None:
    server = make_server(FORGE_MAX_JOBS="2")
    work = server.repo(script=PAIRS)
    names = ["a", "x1", "c", "x2", "b", "x3", "d", "x4"]
    parts(work, *names)
    server.idle()
    left = set(work.heads()) - {"main"}
    assert len(left) == 2 and len(left & {"a", "b"}) == 1 and len(left & {"c", "d"}) == 1
    landed = [merge["branch"] for merge in work.merges()][::-1]
    assert landed == [name for name in ready_order(server, "app") if name not in left]
    assert len(pre_jobs(server, "app")) <= 8 + 2 + 2 * 2 * 3
    for loser in left:
        partner = {"a": "b", "b": "a", "c": "d", "d": "c"}[loser]
        why = server.cli("why", "app", loser).stdout
        assert partner in why and "push a fix" in why
    base_is_tested(work)
    fixed = left.pop()
    work.git("checkout", "-q", fixed)
    work.git("rm", "-q", f"part-{fixed}")
    work.commit(AUTO, mended="yes")
    work.push(fixed)
    server.idle()
    assert fixed not in work.heads()


def test_what_waits_is_not_starved_by_new_pushes(make_server: Callable[..., Server]) -> None:
    server = make_server(FORGE_MAX_JOBS="1")
    work = server.repo(script="while [ -e hold ] && [ ! -e ../../../go ]; do sleep 0.05; done\nsleep 0.2\n")
    parts(work, "one", "two")
    for number in range(40):
        work.branch(f"n{number}", "Not to be merged", **{f"n{number}": ""})
        work.push(f"n{number}")
        if not {"one", "two"} & set(work.heads()):
            break
    assert set(work.heads()) >= {"n1"} and not {"one", "two"} & set(work.heads())
    assert any(job["status"] in ("pending", "running") for job in pre_jobs(server, "app"))  # they did not wait for all of them
    base_is_tested(work)


def test_an_amended_message_merges_without_another_test(work: Work) -> None:
    server = work.server
    work.branch("topic", "Without the trailer")
    first = server.ended(work.push_job("topic"))
    work.git("commit", "-q", "--amend", "-m", AUTO)
    second = server.ended(work.push_job("topic", force=True))
    assert second["status"] == "passed" and second["reused_from"] == first["id"]
    assert second["started_at"] is None and second["tree"] == first["tree"] and second["tested"] != first["tested"]
    assert f"passed in job {first['id']}" in second["reason"] and second["command"] == first["command"]
    work.landed("topic")
    assert work.merges()[0]["job"] == second["id"]
    assert server.job_log(second["id"]) == b""
    page = server.ask(f"/jobs/{second['id']}", Accept="text/html").text
    assert f'href="/jobs/{first["id"]}"' in page
    base_is_tested(work)


def test_a_result_is_used_while_all_places_are_taken(make_server: Callable[..., Server]) -> None:
    server = make_server(FORGE_MAX_JOBS="1")
    work = server.repo()
    work.branch("topic", "Without the trailer")
    first = server.ended(work.push_job("topic"))
    work.branch("long", run="sleep 60\n")
    long = work.push_job("long")
    server.running(long)
    work.git("checkout", "-q", "topic")
    work.git("commit", "-q", "--amend", "-m", AUTO)
    assert server.ended(work.push_job("topic", force=True))["reused_from"] == first["id"]
    work.landed("topic")
    assert server.get(f"/jobs/{long}")["status"] == "running"


def test_results_are_not_used_when_told_so_nor_for_another_command_nor_for_a_retry(work: Work) -> None:
    server = work.server
    work.branch("topic", "Once")
    first = server.ended(work.push_job("topic"))
    retried = server.act(f"/jobs/{first['id']}/retry").json
    assert server.ended(retried["id"])["reused_from"] is None

    def amended(message: str) -> Any:
        work.git("commit", "-q", "--amend", "-m", message)
        return server.ended(work.push_job("topic", force=True))

    work.bare("config", "forge.preMerge", "echo another")
    assert amended("Twice")["reused_from"] is None
    work.bare("config", "--unset", "forge.preMerge")
    assert amended("Thrice")["reused_from"] == retried["id"]
    work.bare("config", "forge.reuse", "false")
    assert amended("And again")["reused_from"] is None


def test_a_failure_is_never_reused(work: Work) -> None:
    server = work.server
    work.branch("topic", "Broken", run="exit 3\n")
    assert server.ended(work.push_job("topic"))["status"] == "failed"
    work.git("commit", "-q", "--amend", "-m", AUTO)
    again = server.ended(work.push_job("topic", force=True))
    assert again["status"] == "failed" and again["reused_from"] is None and again["exit_code"] == 3


def test_a_flake_is_proven_by_both_verdicts_on_one_tree(work: Work) -> None:
    server = work.server
    mark = work.gate("well")
    work.bare("config", "forge.preMerge", f"test -e {mark}")
    work.branch("topic", "A change")
    failed = server.ended(work.push_job("topic"))
    assert failed["status"] == "failed" and "flake" not in failed
    mark.touch()
    passed = server.ended(server.act(f"/jobs/{failed['id']}/retry").json["id"])
    assert passed["status"] == "passed" and passed["flake"] == failed["id"]
    assert server.get(f"/jobs/{failed['id']}")["flake"] == passed["id"]
    pages = (f"/jobs/{failed['id']}", f"/jobs/{passed['id']}", f"/r/{work.name}/mr/topic")
    assert all("flake" in server.ask(page, Accept="text/html").text for page in pages)
    work.git("commit", "-q", "--amend", "-m", "The same tree")
    assert server.ended(work.push_job("topic", force=True))["reused_from"] == passed["id"]
    assert all("flake" in server.ask(page, Accept="text/html").text for page in pages)


def test_what_was_tested_can_be_fetched_and_nobody_pushes_there(work: Work) -> None:
    server = work.server
    work.branch("topic")
    job = server.ended(work.push_job("topic"))
    work.git("fetch", "-q", "origin", f"refs/forge/jobs/{job['id']}")
    assert work.git("rev-parse", "FETCH_HEAD") == job["tested"]
    work.branch("clash", start="origin/main", same="one")
    work.push("clash:main")
    work.git("checkout", "-q", "-B", "clash", job["base"])
    work.commit("The other", same="two")
    clash = server.ended(work.push_job("clash", force=True))
    work.git("fetch", "-q", "origin", f"refs/forge/jobs/{clash['id']}")
    assert work.git("rev-parse", "FETCH_HEAD") == clash["tested"] == clash["commit"]
    for ref in ("refs/forge/jobs/1", f"refs/forge/jobs/{job['id']}", "refs/forge/other"):
        said = work.push(f"HEAD:{ref}", force=True, check=False)
        assert "rejected" in said
    said = work.push(f":refs/forge/jobs/{job['id']}", check=False)
    assert work.bare("rev-parse", f"refs/forge/jobs/{job['id']}") == job["tested"]
    work.bare("gc", "--prune=now", "-q")
    assert work.bare("cat-file", "-t", job["tested"]) == "commit"


def test_refs_of_old_candidates_are_dropped(make_server: Callable[..., Server]) -> None:
    server = make_server()
    work = server.repo()
    work.branch("open", "Stays open")
    kept = server.ended(work.push_job("open"))
    head = work.git("rev-parse", "HEAD")
    server.stop()
    for number in range(1000, 1080):
        work.bare("update-ref", f"refs/forge/jobs/{number}", head)
    server.start()

    def numbers() -> list[int]:
        return [int(ref.rpartition("/")[2]) for ref in work.bare("for-each-ref", "--format=%(refname)", "refs/forge").split()]

    wait_for(lambda: len(numbers()) < 60, "the cleaning")
    assert kept["id"] in numbers() and max(numbers()) == 1079 and len(numbers()) == 51


def hold_chain(work: Work) -> tuple[int, Any]:
    """Two branches that are ready on an old base, and the running job that tests them together until `go` is made."""
    server, go = work.server, work.gate("go")
    # a second, so that the first to pass is not overdue before the other has passed
    wait = f"""sleep 1; gate={go}-first; [ ! -e part-one ] || [ ! -e part-two ] || gate={go}
    while [ ! -e "$gate" ]; do sleep 0.05; done"""
    work.bare("config", "forge.preMerge", wait)
    for name in ("one", "two"):
        work.branch(name, AUTO, **{f"part-{name}": ""})
        server.running(work.push_job(name))
    work.git("checkout", "-q", "--detach", "origin/main")
    work.commit("Base goes on", base="on")
    work.push("HEAD:main")
    go.with_name(f"{go.name}-first").touch()

    def chain() -> Any:
        found = [job for job in pre_jobs(server, work.name) if len(job["heads"]) == 2 and job["status"] == "running"]
        return found[0] if found else None

    job = wait_for(chain, "the test of both")
    return job["id"], go


def test_on_a_moved_base_both_are_tested_together(work: Work) -> None:
    chain, go = hold_chain(work)
    job = work.server.get(f"/jobs/{chain}")
    order = [head["branch"] for head in job["heads"]]
    assert sorted(order) == ["one", "two"] and {"branch": job["branch"], "commit": job["commit"]} == job["heads"][1]
    assert work.mr("one")["job"]["id"] == chain and "together with 1 more" in work.mr("one")["why"]
    assert work.server.get(f"/jobs?repo={work.name}&branch=one")["jobs"][0]["id"] == chain
    before = work.heads()["main"]
    go.touch()
    work.landed()
    one, two = work.merges()[::-1]
    assert ([one["branch"], two["branch"]], one["parent"], two["parent"]) == (order, before, one["merge_commit"])
    assert one["job"] == two["job"] == chain and {one["how"], two["how"]} == {"auto"}
    base_is_tested(work)


def test_who_waits_for_a_push_is_told_of_its_own_branch(work: Work) -> None:
    """Each of two that are tested together; the job's own branch is only the last of them."""
    chain, go = hold_chain(work)
    follow = {"Accept": "text/plain", "Content_Type": "text/plain", "X_Forge_Repo": work.name}
    firsts = {job["branch"]: job["id"] for job in pre_jobs(work.server, work.name) if job["id"] < chain}
    afters = {}
    for branch, first in firsts.items():
        answer = work.server.hook(b"", **follow, X_Forge_Follow=f"{first}:0")
        assert f"job {chain} tests it again" in answer.text
        afters[branch] = answer.headers["X-Forge-Next"]
        assert afters[branch] == f"{chain}:0:{first}"
    go.touch()
    work.landed()
    commits = {merge["branch"]: merge["merge_commit"] for merge in work.merges()}
    for branch, after in afters.items():
        answer = work.server.hook(b"", **follow, X_Forge_Follow=after)
        assert f"merged into main as {commits[branch]}" in answer.text and answer.headers["X-Forge-Next"] == ""


@pytest.mark.parametrize("what", ["new commit", "forced", "deleted", "deleted by button", "base"])
def test_what_changes_during_a_test_of_the_queue_never_merges_on_its_verdict(work: Work, what: str) -> None:
    chain, go = hold_chain(work)
    before = work.heads()
    if what in ("new commit", "forced"):
        work.git("checkout", "-q", "two")
        if what == "forced":
            work.git("commit", "-q", "--amend", "-m", "Another")
        else:
            work.commit("More", more="x")
        work.push("two", force=what == "forced")
    elif what == "deleted":
        work.push(":two")
    elif what == "deleted by button":
        assert work.server.act(f"/r/{work.name}/mr/two/delete").status == 200
    else:
        work.git("checkout", "-q", "--detach", before["main"])
        work.commit("Direct", direct="x")
        work.push("HEAD:main")
    ended = work.server.ended(chain)
    assert ended["status"] == "superseded", ended
    go.touch()
    work.landed("one")
    work.server.idle()
    merged = [merge["branch"] for merge in work.merges()]
    assert sorted(merged) == (["one", "two"] if what == "base" else ["one"])
    assert chain not in [merge["job"] for merge in work.merges()]
    assert work.bare("merge-base", "--is-ancestor", before["main"], "main") == ""
    base_is_tested(work)


def test_a_canceled_test_of_the_queue_can_be_retried(work: Work) -> None:
    chain, go = hold_chain(work)
    assert work.server.act(f"/jobs/{chain}/cancel").status == 200
    assert work.server.ended(chain)["status"] == "canceled"
    work.server.idle()
    assert "canceled" in work.mr("one")["why"] and not work.merges()
    go.touch()
    again = work.server.act(f"/jobs/{chain}/retry")
    assert (
        again.status == 202
        and again.json["heads"] == work.server.get(f"/jobs/{chain}")["heads"]
        and again.json["retry_of"] == chain
    )
    work.landed()
    base_is_tested(work)


def test_a_test_of_the_queue_survives_the_server(make_server: Callable[..., Server]) -> None:
    server = make_server()
    work = server.repo()
    chain, go = hold_chain(work)
    server.stop(9)
    go.touch()
    server.start()
    work.landed()
    assert {merge["job"] for merge in work.merges()} == {chain}
    base_is_tested(work)


def test_the_new_version_fails_and_nothing_is_merged(work: Work) -> None:
    go = work.gate("go")
    work.branch("topic", AUTO, run=f"while [ ! -e {go} ]; do sleep 0.05; done\n")
    first = work.push_job("topic")
    work.server.running(first)
    work.commit(AUTO, run="exit 1\n")
    second = work.push_job("topic")
    go.touch()
    assert work.server.ended(first)["status"] == "superseded" and work.server.ended(second)["status"] == "failed"
    work.server.idle()
    assert "topic" in work.heads() and not work.merges()


def test_direct_pushes_during_merges_of_many_are_never_lost(make_server: Callable[..., Server]) -> None:
    server = make_server()
    work = server.repo(script="sleep 0.05\n")
    other = work.tree.with_name("other")
    subprocess.run(["git", "clone", "-q", str(work.path), str(other)], env=clean_environ(), check=True)
    landed: list[str] = []

    def push_directly() -> None:
        for number in range(25):
            for _ in range(50):
                run: Callable[..., Any] = lambda *args: subprocess.run(  # noqa: E731
                    ["git", *args], cwd=other, env=clean_environ(), capture_output=True, text=True
                )
                run("fetch", "-q")
                run("checkout", "-q", "--detach", "origin/main")
                run("commit", "-q", "--allow-empty", "-m", f"Direct {number}")
                if run("push", "-q", "origin", "HEAD:main").returncode == 0:
                    landed.append(run("rev-parse", "HEAD").stdout.strip())
                    break

    pusher = threading.Thread(target=push_directly)
    pusher.start()
    for number in range(4):
        parts(work, *(f"n{number}-{part}" for part in range(5)))
    pusher.join(timeout=90)
    work.landed()
    assert len(landed) == 25
    there = set(work.bare("rev-list", "main").split())
    assert set(landed) <= there and len(work.merges()) == 20


def test_several_that_conflict_with_each_other(work: Work) -> None:
    for name in ("one", "two", "three"):
        work.branch(name, AUTO, **({"same": name} if name != "three" else {"other": name}))
    work.push("one", "two", "three")
    work.server.idle()
    left = set(work.heads()) - {"main"}
    assert len(left) == 1 and left < {"one", "two"}
    (loser,) = left
    assert "conflicts with main in same" in work.mr(loser)["why"]
    base_is_tested(work)


def test_a_lock_of_a_git_that_was_killed_is_removed_and_that_of_another_is_not(
    make_server: Callable[..., Server], tmp_path: Any
) -> None:
    server = make_server(start=False)
    # the transaction of a merge is prepared and never finished: locks are there, then git and the server are killed
    server.settings |= git_after(
        tmp_path / "bin",
        f"""case "$*" in
update-ref*--stdin*)
    if [ -e {tmp_path}/armed ] && rm {tmp_path}/armed; then
        for lock in HEAD.lock refs/heads/main.lock refs/heads/topic.lock; do : >"$GIT_DIR/$lock"; done
        kill -9 "$(cat {server.data}/lock)" $$
    fi ;;
esac""",
    )
    server.start()
    work = server.repo()
    other = work.path / "refs/heads/other.lock"
    other.touch()
    work.branch("topic", AUTO, run="sleep 1\n")
    (tmp_path / "armed").touch()
    assert server.process
    work.push("topic")
    server.process.wait(timeout=30)
    assert (work.path / "refs/heads/topic.lock").exists() and list(work.path.glob("forge-note-*"))
    server.stop()
    server.start()
    work.landed("topic")
    assert len(work.merges()) == 1 and other.exists()
    locks = [str(path.relative_to(work.path)) for path in work.path.rglob("*.lock")]
    assert locks == ["refs/heads/other.lock"] and not list(work.path.glob("forge-note-*"))
    assert "was left by a git that was killed" in server.log


def test_the_journal_has_what_a_result_is(work: Work) -> None:
    work.branch("topic")
    job = work.server.ended(work.push_job("topic"))
    (record,) = [r for r in work.server.journal() if r["event"] == "job.finished" and r["id"] == job["id"]]
    assert (record["repo"], record["tree"], record["command"], record["status"]) == (
        work.name,
        job["tree"],
        ".forge/pre-merge",
        "passed",
    )
    assert json.dumps(record)


@pytest.mark.parametrize("lost", ["the outcome", "all of it"])
def test_a_lost_merge_record_is_written_from_the_commit_once(make_server: Callable[..., Server], lost: str) -> None:
    server = make_server()
    work = server.repo()
    parts(work, "one", "two")
    server.idle()
    before = work.merges()
    assert len(before) == 2
    work.git("fetch", "-q")
    work.git("checkout", "-q", "--detach", "origin/main")
    forged = "Forge Merge: one\n\nForge-Branch: one\nForge-Head: " + before[0]["head"] + f"\nForge-Job: {before[0]['job']}"
    work.commit(forged, direct="push")
    work.push("HEAD:main")
    server.idle()
    server.stop()
    path = server.data / "merges.jsonl"
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join(lines[:-2] if lost == "the outcome" else []) + (b"\n" if lost == "the outcome" else b""))
    for _ in range(2):
        server.start()
        wait_for(lambda: "start" and server.get("/r/app/history")["merges"], "the records")
        server.idle()
        times = ("merged_at", "how")
        assert [{k: v for k, v in m.items() if k not in times} for m in work.merges()] == [
            {k: v for k, v in m.items() if k not in times} for m in before
        ]
        server.stop()


@pytest.mark.parametrize("verb", ["merge-tree", "hash-object", "update-ref", "read-tree"])
def test_a_git_that_is_killed_is_no_verdict(make_server: Callable[..., Server], tmp_path: Any, verb: str) -> None:
    killed = f'case "$1" in {verb}) [ ! -e {tmp_path}/armed ] || {{ rm {tmp_path}/armed; kill -9 $$; }} ;; esac'
    server = make_server(**git_after(tmp_path / "bin", killed))
    work = server.repo()
    work.branch("topic", AUTO)
    (tmp_path / "armed").touch()
    job = server.ended(work.push_job("topic"))
    assert job["status"] == "passed" and not (tmp_path / "armed").exists()
    work.landed("topic")


def test_a_lock_of_another_on_the_ref_of_a_job_does_not_fail_it(make_server: Callable[..., Server]) -> None:
    server = make_server()
    work = server.repo()
    lock = work.path / "refs/forge/jobs/2.lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    work.branch("topic", AUTO)
    assert server.ended(work.push_job("topic"), 60)["status"] == "passed"
    work.landed("topic")
    assert lock.exists()
