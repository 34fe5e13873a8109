"""The journals that earlier versions wrote (tests/journals, made by its keep.py): read, shown, gone on with, proved."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import AUTO, Server, Work, clean_environ

VERSIONS = sorted(folder for folder in (Path(__file__).parent / "journals").iterdir() if (folder / "jobs.jsonl").exists())


def put_back(folder: Path, data: Path) -> Path:
    """A data directory as that version left it, without logs; its repo."""
    repo = data / "repos/app.git"
    repo.mkdir(parents=True)
    for command in (["init", "-q", "--bare", "-b", "main"], ["fetch", "-q", str(folder / "app.bundle"), "+refs/*:refs/*"]):
        subprocess.run(["git", "-C", str(repo), *command], env=clean_environ(), check=True)
    for name in ("jobs.jsonl", "merges.jsonl"):
        (data / name).write_bytes((folder / name).read_bytes())
    return repo


@pytest.mark.parametrize("folder", VERSIONS, ids=lambda folder: folder.name)
def test_the_journal_of_an_earlier_version(folder: Path, make_server: Callable[..., Server], tmp_path: Path) -> None:
    repo = put_back(folder, tmp_path / "data")
    server = make_server()
    server.idle()
    before = [json.loads(line) for name in ("jobs", "merges") for line in (folder / f"{name}.jsonl").read_text().splitlines()]
    ended = {record["id"]: record for record in before if record["event"] == "job.finished"}
    shown: dict[int, Any] = {job["id"]: job for job in server.get("/jobs?limit=1000")["jobs"]}
    assert shown.keys() == ended.keys()  # nothing is run again, nothing is missing
    for job_id, record in ended.items():
        same = ("branch", "kind", "status", "commit", "created_at", "finished_at")
        assert {name: shown[job_id][name] for name in same} == {name: record[name] for name in same}
        assert server.ask(f"/jobs/{job_id}", Accept="text/html").status == 200
    merged = [record["merge_commit"] for record in before if record["event"] == "merged"]
    assert [merge["merge_commit"] for merge in server.get("/r/app/history")["merges"]] == merged[::-1] and len(merged) == 5
    states = {view["branch"]: view["job"] and view["job"]["status"] for view in server.get("/r/app")["merge_requests"]}
    assert states == {"bad": "failed", "open": "passed", "long": "canceled"}
    for path in ("/", "/r/app", "/r/app/mr/bad", "/r/app/history", "/r/app/deployments", "/jobs", "/metrics", "/r/app/feed.atom"):
        assert server.ask(path, Accept="text/html").status == 200, path
    for words in ("not understood", "is no record", "passed over"):
        assert words not in server.log, server.log
    assert server.cli("audit").returncode == 0

    work = Work(server, "app", repo, tmp_path / "tree")
    subprocess.run(["git", "clone", "-q", str(repo), str(work.tree)], env=clean_environ(), check=True)
    assert server.act("/r/app/mr/open/merge").status in (200, 202)
    work.landed("open")
    work.branch("next", AUTO)
    job = work.push_job("next")
    work.landed("next")
    assert job > max(ended)
    server.idle()
    assert server.cli("audit").returncode == 0
    server.stop()
    server.start()  # now from a snapshot
    assert len(server.get("/r/app/history")["merges"]) == 7 and "whole journal is read" not in server.log
