"""Copies of a data directory that is in use: the script of README.md under load, a plain cp, and foreign processes."""

from __future__ import annotations

import contextlib
import json
import random
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from conftest import AUTO, ROOT, Server, Work, clean_environ, wait_for


@pytest.fixture
def backup(tmp_path: Path) -> Callable[[Server, Path], None]:
    """The script that README.md gives."""
    text = (ROOT / "README.md").read_text()
    script = tmp_path / "forge-backup"
    script.write_text(re.findall(r"```sh\n(#!/bin/sh\n# forge-backup.*?)```", text, re.DOTALL)[0])

    def run(server: Server, copy: Path) -> None:
        done = subprocess.run(["sh", str(script), str(server.data), str(copy)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr

    return run


@contextlib.contextmanager
def load(works: list[Work]) -> Iterator[None]:
    """Somebody pushes to each repo without pause, of which all but one in four branches merge by themselves."""
    over = threading.Event()

    def push(work: Work) -> None:
        number = 0
        while not over.is_set():
            number += 1
            work.branch(f"b{number}", AUTO if number % 4 else "By hand")
            work.push(f"b{number}", check=False)

    threads = [threading.Thread(target=push, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def restored(make_server: Callable[..., Server], copy: Path) -> Server:
    """A server on a copy, with what the copy says it has."""
    return make_server(copy.name, FORGE_MAX_JOBS="2")


def open_branches(path: Path) -> dict[str, str]:
    command = ["git", "-C", str(path), "for-each-ref", "--format=%(refname:lstrip=2) %(objectname)", "refs/heads/"]
    lines = subprocess.run(command, env=clean_environ(), capture_output=True, text=True, check=True).stdout.split("\n")
    return dict(line.split() for line in lines if line)


def test_a_copy_taken_under_load_goes_on(
    make_server: Callable[..., Server], backup: Callable[[Server, Path], None], tmp_path: Path
) -> None:
    """At several moments: all that the copied journal tells of is there, what was open is merged, and the audit proves it."""
    server = make_server(FORGE_MAX_JOBS="2")
    works = [server.repo("app"), server.repo("configs")]
    for work in works:
        work.commit("Some time to test and to deploy", run="sleep 0.1\n", deploy="sleep 0.1\n")
        work.push("main")
    copies = [tmp_path / f"copy{number}" for number in range(4)]
    moments = random.Random(5)
    with load(works):
        for copy in copies:
            time.sleep(moments.uniform(0.3, 1.2))  # a moment is what this is about
            backup(server, copy)
        wait_for(lambda: len(works[0].merges()) > 5, "merges after the copies")
    server.idle()
    assert server.cli("audit").returncode == 0
    for copy in copies:
        there = {name: open_branches(copy / f"repos/{name}.git") for name in ("app", "configs")}
        told = [json.loads(line) for line in (copy / "merges.jsonl").read_text().splitlines()]
        for name, heads in there.items():
            for commit in heads.values():  # whole, with all that they reach
                git = ["git", "-C", str(copy / f"repos/{name}.git"), "rev-list", "--objects", "--quiet", commit]
                assert subprocess.run(git, env=clean_environ(), capture_output=True).returncode == 0
        second = restored(make_server, copy)
        second.idle()
        left = {name: open_branches(copy / f"repos/{name}.git") for name in there}
        assert all(int(branch[1:]) % 4 == 0 for heads in left.values() for branch in heads if branch != "main"), left
        audit = second.cli("audit", check=False)
        assert audit.returncode == 0, audit.stdout
        merged = {merge["head"] for name in there for merge in second.get(f"/r/{name}/history?limit=1000")["merges"]}
        assert {record["head"] for record in told if record["event"] == "merged"} <= merged
        jobs = second.get("/jobs?limit=1000")["jobs"]
        for job in jobs:
            assert second.ask(job["log_url"].removeprefix(second.url)).status in (200, 410)
            assert not job["exit_code"] or job["status"] != "passed"
        assert "is no record" not in second.log and "not understood" not in second.log
        second.stop()
    assert server.process and server.process.poll() is None


def test_jobs_of_the_original_are_none_of_the_copy(
    make_server: Callable[..., Server], backup: Callable[[Server, Path], None], tmp_path: Path
) -> None:
    """On the same machine their processes live: a check is run again in the copy, a deployment is not, and neither is touched."""
    server = make_server(FORGE_MAX_JOBS="2")
    work = server.repo()
    go = work.gate("go")
    work.branch("slow", AUTO, run="echo begun; while [ ! -e $HOME/go ]; do sleep 0.05; done; echo done\n")
    check = work.push_job("slow")
    work.git("checkout", "-q", "-B", "main", "origin/main")
    work.commit("A slow deployment", deploy="echo deploying; while [ ! -e $HOME/go ]; do sleep 0.05; done\n")
    deployment = int(re.findall(r"post-merge job (\d+)", work.push("main"))[0])
    for job in (check, deployment):
        server.running(job)
        wait_for(lambda job=job: server.job_log(job), "a line of the log")  # type: ignore[misc]
    pids = [int((server.data / f"running/{job}/pid").read_text().split()[0]) for job in (check, deployment)]
    backup(server, tmp_path / "copy")
    second = restored(make_server, tmp_path / "copy")
    seen = {job: second.ended(job) for job in (check, deployment)}
    assert all(job["status"] == "failed" and job["reason"].startswith("interrupted") for job in seen.values())
    again = wait_for(lambda: [job for job in second.get("/jobs")["jobs"] if job["id"] > deployment], "the second run")
    assert [(job["kind"], job["branch"]) for job in again] == [("pre-merge", "slow")]
    assert b"begun" in second.job_log(check) and "taken over" not in second.log
    assert all(psutil.pid_exists(pid) for pid in pids)
    gate = second.data / "home/app/pre-merge/go"
    gate.parent.mkdir(parents=True, exist_ok=True)
    gate.touch()
    wait_for(lambda: "slow" not in open_branches(tmp_path / "copy/repos/app.git"), "the merge in the copy")
    go.touch()
    (server.data / "home/app/post-merge/go").touch()
    assert server.ended(deployment)["status"] == "passed"
    work.landed("slow")
    assert server.cli("audit").returncode == 0 and second.cli("audit").returncode == 0


def test_a_number_that_is_used_again_has_a_log_of_its_own(make_server: Callable[..., Server]) -> None:
    """A copy may hold the log of a job that its journal does not know yet."""
    server = make_server()
    work = server.repo()
    newest = server.get("/jobs")["jobs"][0]["id"]
    (server.data / f"logs/app/{newest + 1}.log").write_text("of another time\n")
    work.branch("topic", run="echo mine\n")
    job = work.push_job("topic")
    server.ended(job)
    assert job == newest + 1 and server.job_log(job) == b"mine\n"


def test_the_script_works_without_a_server_and_lets_a_stopped_one_go_on(
    make_server: Callable[..., Server], backup: Callable[[Server, Path], None], tmp_path: Path
) -> None:
    server = make_server()
    server.repo()
    blocked = tmp_path / "data/repos/app.git/refs/heads/stale.lock"
    blocked.touch()
    backup(server, tmp_path / "one")
    assert server.get("/")["repos"]  # it goes on
    assert not list((tmp_path / "one").rglob("*.lock"))
    blocked.unlink()
    server.stop()
    backup(server, tmp_path / "two")
    second = restored(make_server, tmp_path / "two")
    assert [repo["repo"] for repo in second.get("/")["repos"]] == ["app"] and second.cli("audit").returncode == 0


def test_a_plain_copy_is_served_and_says_what_is_wrong(make_server: Callable[..., Server], tmp_path: Path) -> None:
    """cp -a of a running forge: no promise but that the server starts, answers, and goes on with what it can read."""
    server = make_server(FORGE_MAX_JOBS="2")
    work = server.repo()
    with load([work]):
        wait_for(lambda: len(work.merges()) > 2, "some merges")
        done = subprocess.run(["cp", "-a", str(server.data), str(tmp_path / "copy")], capture_output=True, text=True)
        assert (tmp_path / "copy/jobs.jsonl").exists(), done.stderr
    second = restored(make_server, tmp_path / "copy")
    trouble = second.get("/")["repos"][0]["trouble"]
    if not trouble:
        second.idle()
    for path in ("/", "/jobs", "/r/app/history", "/r/app", "/metrics", "/search?q=1"):
        assert second.ask(path).status in (200, 409), path
    assert second.cli("audit", check=False).returncode in (0, 1)
    clone = subprocess.run(["git", "clone", "-q", str(work.path), str(tmp_path / "fresh")], env=clean_environ())
    assert clone.returncode == 0
    second.stop(signal.SIGTERM)
    shutil.rmtree(tmp_path / "copy")


def test_refs_newer_than_objects_and_journal_are_said(make_server: Callable[..., Server], tmp_path: Path) -> None:
    """The worst that a copy can hold, made by hand: a branch whose commit is missing, and a base without its merges."""
    server = make_server()
    work = server.repo()
    other = server.repo("other")
    work.branch("topic", AUTO)
    work.push("topic")
    work.landed("topic")
    server.idle()
    server.stop()
    work.bare("update-ref", "refs/heads/main", "main^")
    (other.path / "refs/heads/lost").write_text("1" * 40 + "\n")
    server.start()
    audit = server.cli("audit", "app", check=False)
    assert audit.returncode == 1 and "BROKEN" in audit.stdout
    lost = server.get("/r/other/mr/lost")
    assert not lost["mergeable"] and any("bad object" in blocker for blocker in lost["blockers"])
    assert server.ask("/r/other", Accept="text/html").status == 200
    work.branch("more", AUTO)
    work.push("more")
    work.landed("more")
