"""The journal: what is written can be read again, whatever happened to the disk."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forge import JobIndex, Journal, Ledger, queue_job


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def test_seq_counts_over_both_files(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append([("job.queued", {"id": 1}), ("merged", {"branch": "x"}), ("job.started", {"id": 1})])
    journal.append([("merge.asked", {})])
    assert [r["seq"] for r in lines(tmp_path / "jobs.jsonl")] == [1, 3]
    assert [r["seq"] for r in lines(tmp_path / "merges.jsonl")] == [2, 4]
    journal.close()
    again = Journal(tmp_path)
    assert [record["seq"] for _, _, record in again.replay()] == [1, 2, 3, 4] and again.seq == 4


@given(st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=20), max_size=3), max_size=8))
def test_what_is_appended_is_replayed_and_found_by_its_place(
    tmp_path_factory: pytest.TempPathFactory, values: list[dict[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    journal = Journal(folder)
    safe = [{f"x{key}": value for key, value in item.items()} for item in values]
    written = [one for item in safe for one in journal.append([("job.queued", item)])]
    assert [journal.read(name, place) for name, place, _ in written] == [record for _, _, record in written]
    assert list(Journal(folder).replay()) == written


def test_a_torn_tail_is_put_beside_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = Journal(tmp_path)
    journal.append([("job.queued", {"id": 1})])
    journal.close()
    with open(tmp_path / "jobs.jsonl", "ab") as stream:
        stream.write(b'{"seq": 2, "ev')
    again = Journal(tmp_path)
    assert len(list(again.replay())) == 1 and "ended within a line" in capsys.readouterr().err
    (torn,) = tmp_path.glob("jobs.jsonl.torn-*")
    assert torn.read_bytes() == b'{"seq": 2, "ev'
    again.append([("job.queued", {"id": 2})])
    assert len(lines(tmp_path / "jobs.jsonl")) == 2


def test_a_damaged_line_and_unknown_events_are_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "jobs.jsonl").write_text(
        '{"seq":1,"at":"","event":"of.tomorrow","x":[]}\nrubbish\n[1]\n{"seq":4,"at":"","event":"job.queued"}\n'
    )
    ledger = Ledger(tmp_path)
    said = capsys.readouterr().err
    assert "line 2 is no record" in said and "line 3 is no record" in said and "record 4 (job.queued) is not understood" in said
    ledger.record(queue_job(1, "app", "pre-merge", (("topic", "a" * 40),), "push"))
    assert ledger.state.jobs[1].branch == "topic" and ledger.journal.seq == 5
    assert b"of.tomorrow" in (tmp_path / "jobs.jsonl").read_bytes()


@pytest.mark.parametrize("how", ["short", "none", "sync"])
def test_a_write_that_fails_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    ledger = Ledger(tmp_path)
    ledger.record(queue_job(1, "app", "pre-merge", (("one", "a" * 40),), "push"))
    before = (tmp_path / "jobs.jsonl").read_bytes()
    write = os.write

    def fail(*args: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if how == "short":
            patch.setattr(os, "write", lambda file, text: write(file, text[:10]))
        else:
            patch.setattr(os, "write" if how == "none" else "fsync", fail)
        with pytest.raises(OSError):
            ledger.record(queue_job(2, "app", "pre-merge", (("two", "a" * 40),), "push"))
    assert (tmp_path / "jobs.jsonl").read_bytes() == before and list(ledger.state.jobs) == [1]
    ledger.record(queue_job(2, "app", "pre-merge", (("three", "a" * 40),), "push"))
    assert [r["seq"] for r in lines(tmp_path / "jobs.jsonl")] == [1, 2]


def test_old_jobs_are_found_by_the_index_and_not_held(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for number in range(1, 41):
        name, job = queue_job(number, f"r{number % 2}", "pre-merge", ((f"b{number % 5}", "a" * 40),), "push")
        status = "failed" if number % 3 == 0 else "passed"
        ledger.record(
            (name, job),
            ("job.finished", {**job, "status": status}),
            ("branch.gone", {"repo": job["repo"], "branch": job["branch"], "head": ""}),
        )
    assert ledger.state.jobs == {}
    for same in (ledger, Ledger(tmp_path)):
        assert [job.id for job in same.search(3)] == [40, 39, 38]
        assert [job.id for job in same.search(100, repo="r1", branch="b3")] == [33, 23, 13, 3]
        assert [job.id for job in same.search(2, status="failed", before=30)] == [27, 24]
        assert same.job(7).branch == "b2" and same.job(41) is None and same.job(0) is None  # type: ignore[union-attr]


def test_a_hundred_thousand_jobs_cost_a_few_megabytes() -> None:
    index = JobIndex()
    for number in range(1, 100_001):
        index.add({"id": number, "repo": "app", "branch": f"b{number}", "kind": "pre-merge", "status": "passed"}, number * 300)
    size = sum(len(column) * column.itemsize for column in (index.places, index.branches, index.kinds)) + len(index.results)
    assert size < 3_000_000 and next(index.search(10**6, "app", "b5", None, None)) == 5
