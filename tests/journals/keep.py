"""Keep what a version of forge writes, for tests/test_upgrade.py: ``python keep.py FORGE_PY FOLDER``, once for each release.

A small story is told to that version (its own Python must have what it imports), then its two journals and a bundle of its
repo are put into the folder.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

FORGE, FOLDER = [sys.executable, str(Path(sys.argv[1]).resolve())], Path(sys.argv[2]).resolve()
LAB = Path(tempfile.mkdtemp())
DATA, TREE = LAB / "data", LAB / "tree"
ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith(("FORGE_", "GIT_"))}
ENVIRON |= {"FORGE_DATA_DIR": str(DATA), "FORGE_PORT": "0", "FORGE_MAX_JOBS": "2", "FORGE_SANDBOX": "none"}
ENVIRON |= {f"GIT_{role}_{key}": "ada@localhost" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}


def run(*command: str) -> str:
    """What a command prints; it must work."""
    return subprocess.run(command, env=ENVIRON, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def git(*args: str) -> str:
    return run("git", "-C", str(TREE), *args)


def branch(name: str, run_by_job: str, message: str = "A change") -> None:
    """Push a branch from base with a file of its own and what its job runs."""
    git("fetch", "-q", "origin")
    git("checkout", "-q", "--no-track", "-B", name, "origin/main")
    (TREE / f"file-{name}").write_text(name)
    (TREE / f"run-{name}").write_text(run_by_job)
    git("add", "-A")
    git("commit", "-q", "-m", message)
    git("push", "-q", "origin", name)


def jobs(url: str) -> list[dict[str, Any]]:
    with urllib.request.urlopen(urllib.request.Request(f"{url}/jobs", headers={"Accept": "application/json"})) as answer:
        found: list[dict[str, Any]] = json.load(answer)["jobs"]
    return found


def wait(condition: Callable[[], Any]) -> Any:
    """The first true value of a condition."""
    for _ in range(600):
        if value := condition():
            return value
        time.sleep(0.1)
    raise SystemExit("it did not happen")


def tell(url: str) -> None:
    """Merges alone, together and by hand, a failure and its retry, a cancel, a deletion, a direct push, a repo that goes."""

    def idle() -> None:
        for _ in range(5):
            wait(lambda: all(job["status"] not in ("pending", "running") for job in jobs(url)))
            time.sleep(0.1)

    run(*FORGE, "create", "other")
    repo = run(*FORGE, "create", "app", "--base", "main")
    run("git", "init", "-q", "-b", "main", str(TREE))
    git("remote", "add", "origin", repo)
    (TREE / ".forge").mkdir()
    (TREE / ".forge/pre-merge").write_text("#!/bin/sh -e\nfor f in run-*; do . ./$f; done\n")
    (TREE / ".forge/post-merge").write_text("#!/bin/sh\necho deployed\n")
    for script in (TREE / ".forge").iterdir():
        script.chmod(0o755)
    (TREE / "run-first").write_text("echo first\n")
    git("add", "-A")
    git("commit", "-q", "-m", "First")
    git("push", "-q", "origin", "main")
    idle()
    auto = "A change\n\nAuto-Merge: yes"
    branch("alone", "echo alone\n", auto)
    wait(lambda: "alone" not in run("git", "-C", repo, "branch"))
    branch("bad", "echo 'error: it is broken'; exit 3\n")
    branch("open", "echo fine\n")
    idle()
    run(*FORGE, "retry", str(next(job["id"] for job in jobs(url) if job["branch"] == "bad")))
    branch("long", "sleep 60\n")
    run(*FORGE, "cancel", str(wait(lambda: next((j["id"] for j in jobs(url) if j["branch"] == "long"), None))))
    branch("deleted", "sleep 60\n")
    git("push", "-q", "origin", ":deleted")
    for name in ("one", "two", "three"):
        branch(name, "sleep 0.5\n", auto)
    wait(lambda: not {"one", "two", "three"} & set(run("git", "-C", repo, "branch").split()))
    branch("manual", "echo manual\n")
    idle()
    run(*FORGE, "merge", "app", "manual")
    wait(lambda: "manual" not in run("git", "-C", repo, "branch"))
    git("checkout", "-q", "-B", "main", "origin/main")
    git("pull", "-q", "origin", "main")
    git("commit", "-q", "--allow-empty", "-m", "Straight to base")
    git("push", "-q", "origin", "main")
    shutil.rmtree(DATA / "repos/other.git")
    idle()
    FOLDER.mkdir(parents=True)
    run("git", "-C", repo, "bundle", "create", "-q", str(FOLDER / "app.bundle"), "--all")


def main() -> None:
    """Tell the story and keep the journals."""
    server = subprocess.Popen([*FORGE, "serve"], env=ENVIRON, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout
        tell(server.stdout.readline().split()[-1])
    finally:
        server.terminate()
        server.wait(timeout=20)
    for name in ("jobs.jsonl", "merges.jsonl"):
        text = (DATA / name).read_text()
        (FOLDER / name).write_text(text.replace(str(DATA), "/var/lib/forge"))
    shutil.rmtree(LAB)


main()
