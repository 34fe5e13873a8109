"""A long journal, event for event what forge writes: for the tests of its start and for ``bench.py --only start``.

As a program: ``python tests/history.py DIRECTORY JOBS`` writes one.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from hashlib import sha1
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from forge import PRE, Ledger, Push, Refs, Update, job_record, notice, now


def object_id(*words: object) -> str:
    """Something that looks like the id of what the words name."""
    return sha1(repr(words).encode()).hexdigest()


class History:
    """Pushes to some repos, one after another: three in four merge and are deployed, the others fail or are overtaken."""

    def __init__(self, ledger: Ledger, repos: int = 5):
        self.ledger, self.numbers = ledger, count(1)
        self.names = [f"repo-{number}" for number in range(repos)]
        self.refs = {name: Refs("main", {"main": object_id(name)}) for name in self.names}
        for name in self.names:
            self.push(name, "main", object_id(name))
            self.run()

    def push(self, name: str, branch: str, head: str) -> None:
        """A branch is pushed (or base is moved)."""
        heads = {**self.refs[name].heads, branch: head}
        self.refs[name] = Refs("main", heads, frozenset(heads) - {"main"})
        update = Update("0" * 40, head, f"refs/heads/{branch}")
        self.ledger.record(*notice(name, self.ledger.state, self.refs[name], Push((update,)), self.ledger.state.last_job + 1))

    def run(self, status: str = "passed", reason: str | None = None) -> None:
        """All jobs that wait are run."""
        for job in self.ledger.state.live_jobs():
            tested = object_id("tested", job.id) if job.kind == PRE else job.commit
            started: dict[str, Any] = {"id": job.id, "started_at": now(), "checkout": 1, "timeout": 3600, "tested": tested}
            started |= {"base": self.refs[job.repo].tip if job.kind == PRE else job.base, "tree": object_id("tree", job.id)}
            started |= {"sandboxed": True, "configured": "", "chain": [[tested, started["tree"]]] if job.kind == PRE else []}
            self.ledger.record(("job.started", started))
            ended = replace(job, status=status, reason=reason, exit_code=0 if status == "passed" else 1, duration=12.345)
            ended.command, ended.log_size, ended.finished_at = "nix run .#pre-merge", 4096 + job.id, now()
            self.ledger.record(("job.finished", job_record(ended)))

    def merge(self, name: str, branch: str) -> None:
        """A branch that passed is merged."""
        job = self.ledger.state.newest_job(name, branch)
        assert job and job.tested
        merge = {
            "repo": name,
            "base": "main",
            "branch": branch,
            "head": job.commit,
            "merge_commit": job.tested,
            "parent": self.refs[name].tip,
        }
        merge |= {"tree": job.tree, "job": job.id, "how": "auto"}
        (intent,) = self.ledger.record(("merge.begun", {"repo": name, "base": "main", "merges": [merge]}))
        self.ledger.record(("merged", {**merge, "begun": intent["seq"], "merged_at": now()}))
        self.gone(name, branch)
        self.push(name, "main", job.tested)

    def gone(self, name: str, branch: str) -> None:
        """A branch is removed from the refs."""
        heads = {key: value for key, value in self.refs[name].heads.items() if key != branch}
        self.refs[name] = Refs("main", heads, frozenset(heads) - {"main"})

    def step(self) -> None:
        """One branch from its push to its end."""
        number = next(self.numbers)
        name, branch = self.names[number % len(self.names)], f"feature/{number}-of-a-person"
        self.push(name, branch, object_id(name, branch))
        if number % 16 == 3:  # a newer push supersedes the job
            self.push(name, branch, object_id(name, branch, "again"))
        if number % 4:
            self.run()
            self.merge(name, branch)
            self.run()
        else:
            self.run("failed", "exit code 1")
            self.gone(name, branch)
            self.push(name, "main", self.refs[name].heads["main"])


def write_history(directory: Path, jobs: int, repos: int = 5) -> None:
    """Write the journal of at least `jobs` jobs into a directory."""
    ledger = Ledger(directory)
    with patch("os.fsync"):  # half a million of them would take their time
        story = History(ledger, repos)
        while ledger.state.last_job < jobs:
            story.step()
    ledger.journal.close()


if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
    write_history(Path(sys.argv[1]), int(sys.argv[2]))
