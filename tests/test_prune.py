"""Upkeep: what goes, what must stay, and what is said of the room on the disk."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import AUTO, FORGE, PASSWORD, Server, clean_environ, wait_for

import forge


def age(server: Server, *job_ids: int, days: float = 10) -> None:
    """Let jobs have finished so many days ago, by the journal; the server must not run."""
    assert server.process is None
    lines = []
    for line in (server.data / "jobs.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["event"] == "job.finished" and record["id"] in job_ids:
            record["finished_at"] = forge.at_time(time.time() - days * 86400)
        lines.append(json.dumps(record, separators=(",", ":")) + "\n")
    (server.data / "jobs.jsonl").write_text("".join(lines))
    (server.data / "snapshot").unlink(missing_ok=True)


def pruned(server: Server, *args: str) -> Any:
    return json.loads(server.cli("prune", "--json", *args).stdout)


def test_old_logs_go_and_what_is_known_of_their_jobs_stays(make_server: Callable[..., Server]) -> None:
    server = make_server(FORGE_LOG_DAYS="7")
    work = server.repo()
    for name in ("old", "new"):
        work.branch(name, run=f"echo 'needle in {name}'; exit 1\n")
    old, new = work.push_job("old"), work.push_job("new")
    server.idle()
    shown = server.get(f"/jobs/{old}")
    server.stop()
    age(server, old)
    server.start()
    log_of = {job: server.data / "logs/app" / f"{job}.log" for job in (old, new)}
    told = pruned(server, "--dry-run")
    assert told["dry_run"] and told["removed"]["logs"]["count"] == 1 and log_of[old].exists()
    os.utime(log_of[new], (0, 0))  # the journal counts, not the file
    told = pruned(server)
    assert told["removed"]["logs"] == {"count": 1, "bytes": 4096} and told["freed_bytes"] >= 4096
    assert not log_of[old].exists() and log_of[new].exists()
    page = server.ask(f"/jobs/{old}", Accept="text/html")
    assert page.status == 200 and "pruned" in page.text and "<pre" in page.text  # the digest stays
    for query in ("", "?offset=0", "?line=1", "?before=9", "?follow=1", "?find=needle", "?download=1"):
        gone = server.ask(f"/jobs/{old}/log{query}")
        assert gone.status == 410 and "pruned" in gone.json["error"]
    assert b"needle in new" in server.job_log(new)
    after = server.get(f"/jobs/{old}")
    assert {name for name in after if after[name] != shown[name]} == {"finished_at", "url", "log_url"}
    assert [job["id"] for job in server.get("/search?q=needle")["jobs"]] == [new]
    for path in ("/", "/r/app", "/r/app/mr/old", "/jobs", "/r/app/history", "/r/app/deployments", "/metrics", "/r/app/feed.atom"):
        assert server.ask(path, Accept="text/html").status == 200, path
    failed = server.cli("log", str(old), check=False)
    assert failed.returncode == 1 and "pruned" in failed.stderr
    assert server.cli("audit").returncode == 0
    again = server.act(f"/jobs/{old}/retry").json
    assert server.ended(again["id"])["status"] == "failed"  # its digest is made without the older log


def test_days_are_said_or_set(make_server: Callable[..., Server]) -> None:
    server = make_server()
    work = server.repo()
    server.stop()
    age(server, 1, days=3)
    log = server.data / "logs/app/1.log"
    assert "logs are kept" in server.cli("prune").stdout and log.exists()  # with no server, too
    assert pruned(server, "--days", "4")["removed"]["logs"]["count"] == 0
    assert pruned(server, "--days", "2")["removed"]["logs"]["count"] == 1 and not log.exists()
    assert server.cli("prune", "--days", "0", check=False).returncode == 2
    server.settings["FORGE_LOG_DAYS"] = "soon"
    wrong = server.cli("serve", check=False)
    assert wrong.returncode == 2 and "FORGE_LOG_DAYS" in wrong.stderr
    del server.settings["FORGE_LOG_DAYS"]
    server.start()
    assert server.ask("/prune", {}).status == 401 and server.act("/prune", days="x").status == 400
    assert server.act("/prune", days="999999").status == 400 and server.act("/prune", days="99999", dry_run="1").status == 200
    assert server.ask("/prune").status == 405
    assert work.heads()


def test_nothing_that_a_job_has_goes(make_server: Callable[..., Server]) -> None:
    """Beside a running job: its log, its checkout, its ref and its objects stay; so with a server that was killed."""
    server = make_server(FORGE_LOG_DAYS="1", FORGE_MAX_JOBS="2")
    work = server.repo()
    go = work.gate("go")
    work.branch("slow", AUTO, run=f"echo begun; while [ ! -e {go} ]; do sleep 0.05; done; git fsck && git log -1 && cat run\n")
    slow = work.push_job("slow")
    server.running(slow)
    wait_for(lambda: server.job_log(slow), "a line of the log")
    told = pruned(server)
    assert told["removed"]["checkouts"]["count"] == 0 and "job runs" in told["left"][0]
    server.stop(9)
    told = pruned(server)
    assert told["removed"]["checkouts"]["count"] == 0 and "job runs" in told["left"][0]
    server.start()
    go.touch()
    work.landed("slow")
    assert server.get(f"/jobs/{slow}")["status"] == "passed" and b"begun" in server.job_log(slow)
    server.idle()
    told = pruned(server)
    assert told["removed"]["checkouts"]["count"] >= 1 and told["removed"]["checkouts"]["bytes"] > 0 and told["left"] == []
    wait_for(lambda: not list((server.data / "trash").iterdir()), "an empty trash")
    work.branch("next", AUTO)
    work.push("next")
    work.landed("next")


def test_git_maintenance_keeps_what_is_needed(make_server: Callable[..., Server]) -> None:
    """Packed while branches are pushed and merged: nothing is lost, and a candidate without a ref is still there."""
    server = make_server()
    work = server.repo()
    for number in range(3):
        work.branch(f"b{number}", AUTO)
        work.push(f"b{number}")
        work.landed(f"b{number}")
    work.branch("open", "Not yet")
    job = work.push_job("open")
    tested = server.ended(job)["tested"]
    loose = work.bare("commit-tree", "-m", "a candidate before it has a ref", f"{tested}^{{tree}}", "-p", "main")
    server.idle()
    pushing = [work.branch(f"during{number}", AUTO) for number in range(3)]
    done = subprocess.Popen([*FORGE, "prune", "--json"], env=server.environ, stdout=subprocess.PIPE, text=True)
    for number in range(len(pushing)):
        work.push(f"during{number}")
    said = json.loads(done.communicate(timeout=60)[0])
    assert said["removed"]["repos"]["count"] == 1 or "job runs" in said["left"][0]
    work.landed(*[f"during{number}" for number in range(3)])
    server.idle()
    said = pruned(server)
    assert said["removed"]["repos"]["count"] == 1 and said["left"] == []
    assert work.bare("cat-file", "-t", loose) == "commit"
    assert work.bare("rev-parse", f"refs/forge/jobs/{job}") == tested
    assert work.bare("for-each-ref", forge.SERVING_REFS) == ""
    assert not list((work.path / "refs/heads").iterdir()) and "refs/heads/main" in (work.path / "packed-refs").read_text()
    work.bare("fsck", "--strict")
    assert server.act("/r/app/mr/open/merge").status in (200, 202)
    work.landed("open")
    assert server.cli("audit").returncode == 0


def test_objects_of_a_deployment_whose_commit_was_forced_away(make_server: Callable[..., Server]) -> None:
    """Its commit is named while git packs, although no branch has it and its pack is old; afterwards it may go."""
    server = make_server()
    work = server.repo()
    forced = work.heads()["main"]
    work.git("checkout", "-q", "--orphan", "other")
    work.commit("Begin anew")
    work.push("+other:main", force=True)
    server.idle()
    work.bare("repack", "-adq")
    server.stop()
    engine = forge.Engine(forge.load_config(server.environ | {"FORGE_SANDBOX": "none"}))
    try:
        old = time.time() - 40 * 86400
        for path in (*(work.path / "objects").rglob("*.pack"), *(work.path / "objects").glob("??/*")):
            os.utime(path, (old, old))
        with engine.lock:
            engine.record(forge.queue_job(99, "app", forge.POST, [("main", forced)], "push"))
        forge.tend_repo(engine, "app", forge.Pruned())
        assert work.bare("cat-file", "-t", forced) == "commit"
        with engine.lock:
            engine.record(forge.end_job(engine.state.jobs[99], "canceled", "enough"))
        for path in (work.path / "objects").rglob("*.pack"):
            os.utime(path, (old, old))
        forge.tend_repo(engine, "app", forge.Pruned())
        gone = subprocess.run(["git", "-C", str(work.path), "cat-file", "-e", forced], env=clean_environ(), capture_output=True)
        assert gone.returncode != 0
    finally:
        engine.stop()


def test_refs_of_tested_candidates_go_with_their_logs(make_server: Callable[..., Server]) -> None:
    server = make_server()
    work = server.repo()
    jobs = []
    for number in range(2):
        work.branch(f"b{number}", AUTO)
        jobs.append(work.push_job(f"b{number}"))
        work.landed(f"b{number}")
    server.idle()
    server.stop()
    age(server, jobs[0])
    assert pruned(server, "--days", "5")["removed"]["refs"]["count"] == 1
    refs = work.bare("for-each-ref", "--format=%(refname)", "refs/forge/").split()
    assert f"refs/forge/jobs/{jobs[0]}" not in refs and f"refs/forge/jobs/{jobs[1]}" in refs


def test_only_one_at_a_time_and_none_beside_a_backup(make_server: Callable[..., Server]) -> None:
    server = make_server()
    server.repo()
    with open(server.data / "upkeep", "wb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        refused = server.cli("prune", check=False)
    assert refused.returncode == 1 and "backup" in refused.stderr
    assert server.cli("prune").returncode == 0


def test_the_server_does_it_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs by age, a repo that has grown; a checkout that was used lately stays. Seen in the server's log."""
    monkeypatch.setattr(forge, "UPKEEP_LOOK", 0.05)
    monkeypatch.setattr(forge, "GROWN_LOOSE", 0)
    said: list[str] = []
    monkeypatch.setattr(forge, "log", said.append)
    data, old = tmp_path / "data", forge.at_time(time.time() - 3 * 86400)
    environ = {"FORGE_DATA_DIR": str(data), "FORGE_SANDBOX": "none", "FORGE_LOG_DAYS": "2"}
    config = forge.load_config(environ)
    repo = forge.create_repo(config, "app", "main")
    loose = repo / "objects/17"
    loose.mkdir(exist_ok=True)
    commit = forge.commit_tree(repo, forge.git(repo, "mktree").strip(), (), "First\n")
    forge.git(repo, "update-ref", "refs/heads/main", commit)
    (loose / ("0" * 38)).write_bytes(b"")  # looks like one, as git counts
    (data / "logs/app").mkdir(parents=True)
    (data / "logs/app/1.log").write_text("old\n")
    for number in ("1", "2"):
        (data / "work/app" / number).mkdir(parents=True)
    os.utime(data / "work/app/2", (0, 0))
    job = {
        "id": 1,
        "repo": "app",
        "branch": "x",
        "kind": "pre-merge",
        "commit": commit,
        "heads": [{"branch": "x", "commit": commit}],
        "created_at": old,
    }
    record = {"seq": 1, "at": old, "event": "job.finished", "status": "failed", "started_at": old, "finished_at": old, **job}
    (data / "jobs.jsonl").write_text(json.dumps(record) + "\n")
    app = forge.create_app(environ)
    try:
        wait_for(lambda: any("upkeep: 1 log removed" in line for line in said), "the end of the log")
        assert (data / "work/app/1").exists() and not (data / "work/app/2").exists()
        (loose / ("0" * 38)).unlink()
        (loose / ("1" * 38)).touch()
        wait_for(lambda: "app" in app.engine.tended, "git maintenance")
    finally:
        app.engine.stop()


def test_a_killed_maintenance_is_cleaned_up_by_the_next(make_server: Callable[..., Server]) -> None:
    server = make_server()
    work = server.repo()
    work.bare("update-ref", f"{forge.SERVING_REFS}{work.heads()['main']}", "main")
    assert pruned(server)["left"] == []
    assert work.bare("for-each-ref", forge.SERVING_REFS) == ""
    git = ["git", "-C", str(work.path), "fsck"]
    assert subprocess.run(git, env=clean_environ(), capture_output=True).returncode == 0


@pytest.mark.parametrize(
    "free, total, free_files, files, low",
    [
        (50 << 30, 100 << 30, 900_000, 1_000_000, False),
        (900 << 20, 100 << 30, 900_000, 1_000_000, True),
        (4 << 30, 100 << 30, 900_000, 1_000_000, True),
        (6 << 30, 10_000 << 30, 900_000, 1_000_000, False),
        (2 << 30, 20 << 30, 900_000, 1_000_000, False),
        (50 << 30, 100 << 30, 500, 1_000_000, True),
        (50 << 30, 100 << 30, 0, 0, False),
    ],
)
def test_when_room_is_low(free: int, total: int, free_files: int, files: int, low: bool) -> None:
    assert forge.Room(free, total, free_files, files).low is low


def test_the_room_is_shown(make_server: Callable[..., Server]) -> None:
    server = make_server()
    disk = server.get("/")["disk"]
    assert 0 < disk["free_bytes"] < disk["total_bytes"]
    assert " free (" in server.ask("/", Accept="text/html").text
    checks = {check["what"]: check for check in json.loads(server.cli("doctor", "--json", check=False).stdout)["checks"]}
    assert "inodes" in checks["disk"]["text"] and all(
        part in checks["room"]["text"] for part in ("repos", "logs", "work", "home")
    )


def test_low_room_is_said_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wsgiref.util import setup_testing_defaults

    monkeypatch.setattr(forge, "room_at", lambda _: forge.Room(1 << 20, 1 << 40, 10, 1000))
    app = forge.create_app({"FORGE_DATA_DIR": str(tmp_path), "FORGE_SANDBOX": "none", "FORGE_MERGE_PASSWORD": PASSWORD})
    try:
        environ: dict[str, Any] = {"PATH_INFO": "/", "HTTP_HOST": "localhost"}
        setup_testing_defaults(environ)
        page = b"".join(app(environ, lambda *_: None)).decode()
        assert "nearly full" in page and "forge prune" in page
        checks = {what: (well, said) for what, well, said in forge.examine_room(app.config)}
        assert not checks["disk"][0] and "forge prune" in checks["disk"][1]
    finally:
        with contextlib.suppress(OSError):
            app.engine.stop()


def test_what_takes_how_much_is_counted_in_bounded_time(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "file").write_bytes(bytes(5000))
    taken, whole = forge.taken_by(tmp_path)
    assert whole and taken >= 20 * 8192
    assert forge.taken_by(tmp_path, time.monotonic() - 1) == (0, False)
    assert forge.taken_by(tmp_path / "nothing") == (0, True)
