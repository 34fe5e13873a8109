"""What the review found: each test fails on main as it is."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import AUTO, Server, Work, clean_environ, git_after, wait_for

import forge


def test_a_merge_that_failed_is_not_held_against_the_next_version(work: Work) -> None:
    server = work.server
    lock = work.path / "refs/heads/main.lock"
    lock.write_text("")
    work.branch("topic", AUTO)
    server.ended(work.push_job("topic"))
    wait_for(lambda: "could not be merged" in work.mr("topic")["why"], "the failed merge")
    work.branch("topic", "A new version, without the trailer", other="file")
    job = work.push_job("topic", force=True)
    lock.unlink()
    server.ended(job)
    assert work.mr("topic")["mergeable"], work.mr("topic")["why"]


def test_the_candidate_of_a_reused_result_is_kept(work: Work) -> None:
    server = work.server
    work.branch("topic", "One message")
    server.ended(work.push_job("topic"))
    work.git("commit", "-q", "--amend", "-m", "Another message")
    job = server.ended(work.push_job("topic", force=True))
    assert job["reused_from"]
    work.bare("gc", "-q", "--prune=now")
    answer = server.act(f"/r/{work.name}/mr/topic/merge")
    assert answer.status in (200, 202), answer.text


def test_a_merge_asked_for_after_a_gc(make_server: Callable[..., Server]) -> None:
    """The tree that the page of the branch made is not there any more; base has moved since the test."""
    server = make_server()
    work = server.repo()
    work.branch("topic", "No trailer")
    server.ended(work.push_job("topic"))
    work.git("checkout", "-q", "main")
    work.commit("A direct push", direct="yes")
    work.push("main")
    server.idle()
    assert work.mr("topic")["mergeable"]
    work.bare("gc", "-q", "--prune=now")
    answer = server.act(f"/r/{work.name}/mr/topic/merge")
    assert answer.status in (200, 202), answer.text


def test_who_is_at_fault_is_told_only_what_was_merged_since(work: Work) -> None:
    server = work.server
    work.branch("long-ago", AUTO)
    work.push("long-ago")
    server.idle()
    work.git("fetch", "-q")
    work.git("checkout", "-q", "-B", "main", "origin/main")
    work.commit("A direct push", run="! [ -e a ] || ! [ -e b ]\n")
    work.push("main")
    server.idle()
    for name in ("a", "b"):
        work.branch(name, AUTO, **{name: ""})
    work.push("a", "b")
    server.idle()
    (left,) = {"a", "b"} & set(work.heads())
    assert "long-ago" not in work.mr(left)["why"], work.mr(left)["why"]


def test_a_repo_that_is_removed_while_its_queue_waits_is_left_in_peace(make_server: Callable[..., Server]) -> None:
    server = make_server(FORGE_MAX_JOBS="2", FORGE_SANDBOX="none")
    work = server.repo(script="for f in topic holds; do while [ -e $f ] && [ ! -e $HOME/go-$f ]; do sleep 0.05; done; done\n")
    for name in ("topic", "holds"):
        work.branch(name, AUTO, **{name: ""})
    work.push("topic", "holds")
    wait_for(lambda: len([j for j in server.get("/jobs?kind=pre-merge")["jobs"] if j["status"] == "running"]) == 2, "both")
    work.git("checkout", "-q", "-B", "main", "origin/main")
    work.commit("A direct push", direct="yes")
    work.push("main")
    time.sleep(8)  # so long the queue waits for the other first test
    work.gate("go-topic").touch()
    wait_for(lambda: "waits to be tested on the new" in work.mr("topic")["why"], "the wait")
    work.path.rename(work.path.with_suffix(".away"))
    time.sleep(6)
    assert server.log.count("there is no repo") < 3, server.log


def test_a_job_id_is_given_once_when_a_chain_fails_beside_another(tmp_path: Path) -> None:
    """A promises 1 and takes its time, B promises 2 and fails; the next id must not be 1 again."""
    engine = forge.Engine(forge.load_config({"FORGE_DATA_DIR": str(tmp_path / "data"), "FORGE_SANDBOX": "none"}))
    refs = forge.Refs("main", {"main": "1" * 40}, frozenset())
    slow, go = threading.Event(), threading.Event()
    seen = []

    def chain(name: str, tip: str, heads: object, job_id: int, *_: object) -> tuple[list[tuple[str, str]], list[list[str]]]:
        seen.append((name, job_id))
        if name == "a":
            slow.set()
            go.wait(5)
        return [], []

    engine._chain = chain  # type: ignore[assignment, method-assign]

    def queue(name: str) -> None:
        with pytest.raises(forge.Refused):
            engine._queue_together(name, refs, (("x", "2" * 40),), None)

    first = threading.Thread(target=queue, args=("a",))
    first.start()
    slow.wait(5)
    queue("b")
    with engine.lock:
        taken = engine.next_id()
    go.set()
    first.join()
    engine.stop()
    assert taken not in {job_id for name, job_id in seen if name == "a"}, (taken, seen)


def test_a_note_that_a_scan_removed_is_no_fault(tmp_path: Path) -> None:
    """`mend_locks` and `git_locking` meet in the moment in which the note's lock is released."""
    repo = tmp_path / "x.git"
    subprocess.run(["git", "init", "-q", "--bare", str(repo)], check=True)
    tree = subprocess.run(
        ["git", "-C", str(repo), "hash-object", "-w", "-t", "tree", "/dev/null"], capture_output=True, text=True
    )
    commit = forge.commit_tree(repo, tree.stdout.strip(), (), "x")
    over = threading.Event()

    def scan() -> None:
        while not over.is_set():
            forge.mend_locks(repo)

    threads = [threading.Thread(target=scan) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for number in range(400):
            forge.keep_tested(repo, number, commit)
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_a_merge_of_long_ago_is_not_the_answer_to_a_new_wish(work: Work) -> None:
    server = work.server
    head = work.branch("topic", "No trailer")
    start = work.heads()["main"]
    server.ended(work.push_job("topic"))
    assert server.act(f"/r/{work.name}/mr/topic/merge").status == 200
    work.push(f"+{start}:main")  # base is wound back
    server.idle()
    work.push(f"{head}:refs/heads/topic")
    server.idle()
    work.git("checkout", "-q", "main")
    work.git("reset", "-q", "--hard", start)
    work.commit("A direct push", direct="yes", run="sleep 1\n")
    work.push("main")
    server.idle()
    answer = server.act(f"/r/{work.name}/mr/topic/merge")
    assert answer.status == 202, answer.text


def test_a_long_history_costs_a_start_little(make_server: Callable[..., Server]) -> None:
    server = make_server()
    work = server.repo()
    text = "".join(
        f"commit refs/heads/main\ncommitter A <a@b> {1700000000 + n} +0000\ndata 1\nx\n"
        + (f"from {work.heads()['main']}\n" if n == 0 else "")
        for n in range(1000)
    )
    subprocess.run(
        ["git", "-C", str(work.path), "fast-import", "--quiet"], input=text, text=True, check=True, env=clean_environ()
    )
    work.server.hook(b'{"repo": "app", "updates": []}')
    server.idle()
    server.stop()
    server.start()
    began = time.monotonic()
    time.sleep(0.5)
    assert server.hook(b'{"repo": "app", "updates": []}').status == 202
    assert time.monotonic() - began < 1.5, time.monotonic() - began


def test_a_lock_of_another_on_one_branch_holds_up_nobody_behind_it(make_server: Callable[..., Server]) -> None:
    server = make_server()
    work = server.repo()
    lock = work.path / "refs/heads/a.lock"
    work.branch("a", AUTO)
    work.push("a")
    lock.touch()
    for name in ("b", "c"):
        work.branch(name, AUTO)
    work.push("b", "c")
    work.landed("b", "c")
    if "a" in work.heads():  # it was not quicker than the lock
        assert "could not be merged" in work.mr("a")["why"] and lock.exists()


def test_a_note_that_leads_elsewhere_removes_nothing(make_server: Callable[..., Server]) -> None:
    server = make_server()
    work = server.repo()
    server.stop()
    (work.path / "forge-note-0").write_text("../../jobs.jsonl\0HEAD\0../../x.lock\0")
    (server.data / "x.lock").touch()
    server.start()
    wait_for(lambda: not (work.path / "forge-note-0").exists(), "the scan")
    assert (server.data / "x.lock").exists() and (server.data / "jobs.jsonl").exists() and (work.path / "HEAD").exists()


def test_a_git_that_is_killed_does_not_say_that_a_merge_was_not_made(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recovery asks whether base contains a merge; a killed git is no answer, a commit that is not there is one."""
    tip = work.heads()["main"]
    assert forge.is_ancestor(work.path, tip, tip) and not forge.is_ancestor(work.path, "1" * 40, tip)
    monkeypatch.setenv("PATH", git_after(tmp_path / "bin", "kill -9 $$")["PATH"])
    with pytest.raises(forge.GitError):
        forge.is_ancestor(work.path, tip, tip)
