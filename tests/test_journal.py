"""The journal: what is written can be read again, whatever happened to the disk."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import AUTO, ROOT, Server, wait_for
from history import write_history
from hypothesis import given, settings
from hypothesis import strategies as st

import forge
from forge import Event, JobIndex, Journal, Ledger, end_job, queue_job, write_snapshot


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
    again = Journal(folder)
    assert list(again.replay()) == written
    for one in (journal, again):
        one.close()


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


def test_a_record_without_its_time_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    merge = dict.fromkeys("branch head merge_commit parent tree how begun merged_at".split(), "x") | {"repo": "app", "job": 1}
    (tmp_path / "merges.jsonl").write_text(json.dumps({"seq": 1, "event": "merged", **merge}) + "\n")
    assert Ledger(tmp_path).merges_of("app") == []
    assert "it lacks at" in capsys.readouterr().err


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


@pytest.mark.parametrize("how", ["longer", "shorter"])
def test_what_could_not_be_taken_back_is_taken_back_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    ledger = Ledger(tmp_path)
    ledger.record(queue_job(1, "app", "pre-merge", (("one", "a" * 40),), "push"))
    write, whole = os.write, (tmp_path / "jobs.jsonl").read_bytes()

    def fail(*args: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, text: write(file, text if how == "longer" else text[:10]))
        patch.setattr(os, "ftruncate", fail)
        patch.setattr(os, "fsync", fail)
        for _ in range(2):  # the second one cannot even begin, and adds nothing
            with pytest.raises(OSError):
                ledger.record(queue_job(2, "app", "pre-merge", (("two", "b" * 40),), "push"))
    left = (tmp_path / "jobs.jsonl").read_bytes()
    assert len(left) > len(whole) and list(ledger.state.jobs) == [1]
    ledger.record(queue_job(2, "app", "pre-merge", (("three", "c" * 40),), "push"))
    assert [r["seq"] for r in lines(tmp_path / "jobs.jsonl")] == [1, 2] and ledger.job(2).branch == "three"  # type: ignore[union-attr]
    assert [path.read_bytes() for path in tmp_path.glob("*.torn-*")] == [left[len(whole) :]]


def test_a_record_with_a_line_separator_is_one_line_also_when_its_writer_did_not_escape_it(tmp_path: Path) -> None:
    event, job = queue_job(1, "app", "pre-merge", (("caf\u2028\x85", "a" * 40),), "push")
    Ledger(tmp_path).record((event, job))
    record = {"seq": 2, "at": job["created_at"], "event": event, **job, "id": 2, "branch": "a\u2028b\u0085c"}
    with open(tmp_path / "jobs.jsonl", "a") as stream:
        stream.write(f" {json.dumps(record, ensure_ascii=False)} \n")
    ledger = Ledger(tmp_path)
    assert [(job.id, job.branch) for job in ledger.search(5)] == [(2, "a\u2028b\x85c"), (1, job["branch"])]


###############################################################################
# the snapshot
###############################################################################


def everything(ledger: Ledger) -> tuple[Any, ...]:
    """All that a ledger knows."""
    return ledger.journal.seq, ledger.journal.sizes, ledger.state, vars(ledger.finished), vars(ledger.merges)


def read_anew(folder: Path) -> tuple[Any, ...]:
    """All that the journal alone says."""
    copy = folder.with_name(f"{folder.name}-copy")
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("snapshot"))
    ledger = Ledger(copy)
    try:
        return everything(ledger)
    finally:
        ledger.journal.close()
        shutil.rmtree(copy)


def keep(ledger: Ledger, folder: Path) -> Path:
    """Write a snapshot and return where it is."""
    write_snapshot(folder / "snapshot", *ledger.freeze())
    return folder / "snapshot"


NAMES = st.sampled_from(["app", "lib"])
BRANCHES = st.sampled_from(["main", "topic", "sp\u2028ce", "caf\xe9 \udcff"])
STEPS = st.tuples(
    st.sampled_from(["queue", "run", "end", "ask", "begin", "merge", "gone", "move", "forget", "keep"]), NAMES, BRANCHES
)


def step(ledger: Ledger, what: str, repo: str, branch: str) -> list[Event]:
    """The events of a random step, as the engine would write them."""
    job, about = ledger.state.newest_job(repo, branch), {"repo": repo, "branch": branch, "head": "a" * 40}
    intent = next(iter(ledger.state.intents.values()), {})
    table: dict[str, list[Event]] = {
        "queue": [queue_job(ledger.state.last_job + 1, repo, "pre-merge", ((branch, "a" * 40),), "push")],
        "run": [("job.started", {"id": job.id, "base": "b" * 40, "checkout": 1})] if job and job.status == "pending" else [],
        "end": [end_job(job, "canceled", "so be it")] if job and job.stoppable else [],
        "ask": [("merge.asked", {**about, "how": "manual"})],
        "begin": [("merge.begun", {"repo": repo, "base": "main", "merges": [{**about, "job": 1}, {**about, "branch": "other"}]})],
        "merge": [("merged", {**about, **intent["merges"][0], "begun": intent["seq"]})] if intent.get("merges") else [],
        "gone": [("branch.gone", about)],
        "move": [("base.moved", {"repo": repo, "branch": "main", "old": None, "new": "c" * 40})],
        "forget": [("repo.gone", {"repo": repo})],
    }
    return table[what]


@settings(max_examples=60, deadline=None)
@given(st.lists(STEPS, max_size=40))
def test_with_a_snapshot_a_ledger_knows_the_same(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("ledger")
    ledger = Ledger(folder)
    for what, repo, branch in steps:
        if what == "keep":
            keep(ledger, folder)
        else:
            ledger.record(*step(ledger, what, repo, branch))
    from_snapshot = Ledger(folder)
    kept = ledger.fresh
    assert everything(from_snapshot) == everything(ledger) == read_anew(folder)
    assert from_snapshot.fresh == kept, "it read what the snapshot holds"
    ledger.record(*step(ledger, "queue", "app", "topic"))
    again = Ledger(folder)
    assert everything(again) == read_anew(folder) and again.search(9) == ledger.search(9)
    for one in (ledger, from_snapshot, again):
        one.journal.close()


@pytest.fixture
def kept_ledger(tmp_path: Path) -> Callable[[], Path]:
    """The folder of a ledger with a snapshot, and one job after it."""
    folder = tmp_path / "kept"
    folder.mkdir()
    write_history(folder, 60)
    ledger = Ledger(folder)
    keep(ledger, folder)
    ledger.record(queue_job(ledger.state.last_job + 1, "repo-1", "pre-merge", (("late", "a" * 40),), "push"))
    ledger.journal.close()
    return lambda: folder


def test_only_what_follows_the_snapshot_is_read(kept_ledger: Callable[[], Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = kept_ledger()
    assert Ledger(folder).fresh == 1 and everything(Ledger(folder)) == read_anew(folder) and capsys.readouterr().err == ""


def other_version(folder: Path, old: str, new: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let another forge.py read the folder."""
    source, text = folder.parent / "forge.py", Path(forge.__file__).read_text()
    assert old in text
    source.write_text(text.replace(old, new))
    monkeypatch.setattr(forge, "__file__", str(source))


def test_a_version_that_takes_the_journal_alike_uses_the_snapshot(
    kept_ledger: Callable[[], Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = kept_ledger()
    other_version(folder, "\nclass Web:", "\n\nclass Web:", monkeypatch)
    ledger = Ledger(folder)
    assert ledger.fresh < 10 and "not used" not in capsys.readouterr().err


def spoil(folder: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do something to a snapshot or to the journal under it."""
    path, journal = folder / "snapshot", folder / "jobs.jsonl"
    content = path.read_bytes()
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "a bit":
        path.write_bytes(content[:500] + bytes([content[500] ^ 4]) + content[501:])
    elif how == "the last bit":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif how == "rubbish":
        path.write_bytes(os.urandom(5000))
    elif how == "another version":
        other_version(folder, "\ndef fold(", "\n\ndef fold(", monkeypatch)
    elif how == "a directory":
        path.unlink()
        path.mkdir()
    elif how == "another journal":
        text = journal.read_bytes()
        journal.write_bytes(text.replace(b'"at":"2', b'"at":"1'))
    elif how == "a shorter journal":
        text = journal.read_bytes()
        journal.write_bytes(text[: text.rfind(b"\n", 0, len(text) // 2) + 1])
    elif how == "no merges":
        (folder / "merges.jsonl").unlink()


SPOILS = "cut/empty/a bit/the last bit/rubbish/another version/a directory/another journal/a shorter journal/no merges"


@pytest.mark.parametrize("how", SPOILS.split("/"))
def test_a_snapshot_that_is_odd_is_told_and_not_used(
    kept_ledger: Callable[[], Path], how: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = kept_ledger()
    spoil(folder, how, monkeypatch)
    ledger = Ledger(folder)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "snapshot is not used, the whole journal is read instead" in said
    assert everything(ledger) == read_anew(folder) and ledger.fresh > 100


def test_a_kill_while_a_snapshot_is_written_leaves_the_old_one_or_the_new_one(kept_ledger: Callable[[], Path]) -> None:
    folder = kept_ledger()
    again = "import sys, forge, pathlib as p; d = p.Path(sys.argv[1]); ledger = forge.Ledger(d); print(flush=True)\n"
    again += "while True: ledger.fresh = 1; forge.write_snapshot(d / 'snapshot', *ledger.freeze())"
    for _ in range(8):
        with subprocess.Popen([sys.executable, "-c", again, folder], cwd=ROOT, stdout=subprocess.PIPE) as process:
            assert process.stdout and process.stdout.readline()
            time.sleep(random.uniform(0, 0.02))  # not for a condition: the moment is what is drawn
            process.send_signal(signal.SIGKILL)
        assert Ledger(folder).fresh <= 1 and everything(Ledger(folder)) == read_anew(folder)


def test_a_server_keeps_a_snapshot_when_it_stops_and_when_much_has_happened(
    make_server: Callable[..., Server], tmp_path: Path
) -> None:
    server = make_server(start=False)
    server.data.mkdir()
    write_history(server.data, 1300)
    assert len(server.journal()) > forge.SNAPSHOT_RECORDS
    server.start()
    wait_for((server.data / "snapshot").exists, "a snapshot by the janitor")
    work = server.repo()
    server.stop()
    server.start()
    assert "is not used" not in server.log and server.get("/jobs?limit=1&repo=app")["jobs"][0]["commit"] == work.heads()["main"]
    server.stop()
    assert Ledger(server.data).fresh == 0 and everything(Ledger(server.data)) == read_anew(server.data)


def test_the_long_journal_of_the_tests_is_of_the_form_that_forge_writes(
    make_server: Callable[..., Server], tmp_path: Path
) -> None:
    work = make_server().repo()
    work.branch("good", AUTO)
    work.push("good")
    work.branch("bad", run="exit 1")
    work.push("bad")
    work.server.idle()
    work.push(":bad")
    wait_for(lambda: work.server.journal()[-1]["event"] == "branch.gone", "the end of a branch")
    write_history(tmp_path, 100)
    shapes = [
        {
            record["event"]: {name: type(value) for name, value in record.items()}
            for record in records
            if record.get("status", "passed") in ("pending", "passed") and record.get("kind") != "post-merge"
        }
        for records in (work.server.journal(), lines(tmp_path / "jobs.jsonl") + lines(tmp_path / "merges.jsonl"))
    ]
    assert shapes[0] == shapes[1]
