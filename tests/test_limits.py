"""What one git, one log, one undelivered push may take of the server, whoever decides how much there is: each limit at work."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, clean_environ
from floods import Source, bomb

import forge


@contextlib.contextmanager
def most_memory() -> Iterator[list[int]]:
    """In a list, after its end: the bytes that Python had at most for what was made meanwhile."""
    most: list[int] = []
    tracemalloc.start()
    try:
        yield most
        most.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()


@pytest.fixture
def bare(tmp_path: Path) -> Source:
    """A bare repo with a base, where the server would have it, and the means to put odd objects into it."""
    path = tmp_path / "data/repos/app.git"
    path.mkdir(parents=True)
    forge.make_plain_dirs(tmp_path / "data/git")
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", path], check=True, env=clean_environ())
    source = Source(path, clean_environ())
    source.commit("main", source.tree([("100644", "one", source.write("blob", b"one\n"))]), parent="")
    return source


def test_the_limits_are_those_that_the_security_notes_name() -> None:
    assert (forge.GIT_SECONDS, forge.GIT_BYTES, forge.GIT_MEMORY) == (60, 8 << 20, 1 << 30)
    assert (forge.CHECKOUT_BYTES, forge.ROOM_PART) == (10 << 30, 0.5)


def test_a_git_that_takes_too_long_is_ended(bare: Source) -> None:
    os.mkfifo(bare.path / "pipe")  # which nobody writes to
    args = ("hash-object", "pipe")
    process = forge.git_process(bare.path, args)
    at_last = threading.Timer(20, process.kill)
    at_last.start()
    with pytest.raises(forge.GitError, match=r"it took longer than 0\.2 seconds") as raised:
        forge.git_output(process, args, seconds=0.2)
    at_last.cancel()
    assert raised.value.excessive
    assert process.returncode is not None and not psutil.pid_exists(process.pid)


def test_a_git_that_a_page_waits_for_is_ended_when_it_has_had_its_share_of_the_processor(
    bare: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb(bare, 9)
    monkeypatch.setattr(forge, "READING_CPU", 0.2)
    monkeypatch.setattr(forge, "READING_SECONDS", 60.0)
    began = time.monotonic()
    assert forge.git_beginning(bare.path, 1000, *forge.DIFF, *bare.git("rev-parse", "main", "flood").split()) == (b"", False)
    assert time.monotonic() - began < 30


def test_a_git_that_prints_too_much_is_ended(bare: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = bare.write("blob", bytes(500_000))
    assert len(forge.git(bare.path, "cat-file", "blob", blob)) == 500_000
    monkeypatch.setattr(forge, "GIT_BYTES", 100_000)
    with pytest.raises(forge.GitError, match="it printed more than") as raised:
        forge.git(bare.path, "cat-file", "blob", blob)
    assert raised.value.excessive


def test_of_what_git_says_of_errors_the_beginning_is_kept(bare: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forge, "STDERR_BYTES", 50)
    args = ("rev-parse", "main")
    said = forge.converse(forge.git_process(bare.path, args, None, GIT_TRACE="1"), args, "", lambda _: True)
    assert len(said) == 50, said


def test_of_what_git_prints_no_more_is_kept_than_is_shown(bare: Source) -> None:
    bare.commit("main", bare.git("rev-parse", "main^{tree}"), b"s" * 3_000_000 + b"\n\nAuto-Merge: yes\n", b"E" * 1_000_000)
    with most_memory() as most:
        facts = forge.read_commit(bare.path, bare.git("rev-parse", "main"))
    assert (len(facts.subject), len(facts.author), facts.auto_merge) == (forge.TEXT_BYTES, forge.TEXT_BYTES, True)
    assert len(facts.body) <= forge.BODY_BYTES and most[0] < 1_000_000, most


def test_a_merge_that_takes_too_much_memory_is_a_sentence_and_no_failure(bare: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    base, one, two = (bytes([letter]) * 60_000_000 for letter in b"abc")  # below core.bigFileThreshold: git merges line by line
    for name, content in (("main", base), ("theirs", one), ("main", two)):
        bare.file(name, "large", content)
    merged = forge.merge_tree(bare.path, bare.git("rev-parse", "main"), theirs := bare.git("rev-parse", "theirs"))
    assert (merged.conflicts, merged.trouble) == (("large",), None)
    monkeypatch.setattr(forge, "GIT_MEMORY", 40 << 20)
    merged = forge.merge_tree(bare.path, bare.git("rev-parse", "main"), theirs)
    assert merged.tree is None and merged.trouble and "Out of memory" in merged.trouble
    refs = forge.Refs("main", {"main": "0" * 40, "theirs": theirs}, frozenset({"theirs"}))
    blockers = forge.why_blocked("theirs", refs, forge.Repo(), None, merged)
    assert blockers[-1] == f"{merged.trouble}; make it smaller and push again"


def test_a_file_whose_path_no_command_takes_has_no_lines_and_no_crash(bare: Source) -> None:
    long = bare.write("tree", b"100644 " + b"n" * 200_000 + b"\0" + bytes.fromhex(bare.write("blob", b"long\n")))
    bare.commit("topic", bare.tree([("040000", "long", long)], "main"))
    base, head = bare.git("rev-parse", "main"), bare.git("rev-parse", "topic")

    class Asks:
        """What `changes_of` and `lines_of` need of the engine."""

        @staticmethod
        def output(name: str, most: int, *args: str) -> tuple[bytes, bool]:
            return forge.git_beginning(bare.path, most, *args)

    changes, whole = forge.changes_of(Asks, "app", base, head)  # type: ignore[arg-type]
    assert whole and [len(change.path) for change in changes] == [200_005]
    assert forge.lines_of(Asks, "app", base, head, changes, 1000, b"") == ({}, True)  # type: ignore[arg-type]


@pytest.fixture
def mask(tmp_path: Path) -> Iterator[forge.Mask]:
    """Between what a deployment prints and its log."""
    config = forge.Config(tmp_path, password="correct horse battery")
    yield forge.Mask(config, tmp_path / "raw", tmp_path / "served", [])


@pytest.mark.parametrize("line", [b"x" * 63 + b"\n", b"x" * 64], ids=["lines", "one line"])
def test_a_masked_log_is_not_held_in_memory(mask: forge.Mask, line: bytes) -> None:
    secret = b"correct horse battery"
    mask.raw.write_bytes(line * 300_000 + secret + line * 300_000)
    with most_memory() as most:
        mask.copy(ended=True)
    assert mask.served.read_bytes() == line * 300_000 + b"*" * len(secret) + line * 300_000
    assert most[0] < 4_000_000, most


def test_of_a_huge_undelivered_push_the_beginning_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forge, "TOLD_CHARS", 10_000)
    engine = forge.Engine(forge.Config(tmp_path, sandbox="none"))
    told: list[tuple[str, forge.Push]] = []
    monkeypatch.setattr(engine, "submit", lambda name, push: told.append((name, push)))
    line = f"{'0' * 40} {'1' * 40} refs/heads/b"
    path = tmp_path / "incoming/1"
    path.write_text("repo app\n" + "".join(f"{line}{number}\n" for number in range(1000)))
    try:
        engine._deliver()
    finally:
        engine.stop(0.1)
    ((name, push),) = told
    assert name == "app" and not path.exists()
    assert 90 < len(push.updates) < 110  # whole lines only: half of one is no ref
    assert [update.ref for update in push.updates] == [f"refs/heads/b{number}" for number in range(len(push.updates))]


def test_trash_of_any_size_is_removed_a_part_at_a_time(tmp_path: Path) -> None:
    trash = tmp_path / "trash"
    (trash / "wide").mkdir(parents=True)
    for number in range(20_000):
        os.mknod(trash / f"left-{number}")
    with most_memory() as most:
        forge.empty_trash(trash)
    assert not list(trash.iterdir()) and most[0] < 1_000_000, most


def test_a_checkout_in_which_very_much_was_left_is_thrown_away_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, trash = tmp_path / "slot/tree", tmp_path / "trash"
    for folder in (tree, trash):
        folder.mkdir(parents=True)
    monkeypatch.setattr(forge, "MOST_LEFT", 5)
    for count, well in ((5, True), (6, False)):
        for number in range(count):
            (tree / f"left-{number}").touch()
        with contextlib.nullcontext() if well else pytest.raises(forge.Surprise):
            forge.sweep_tree(tree, set(), 0, trash)


def test_a_checkout_of_very_many_files_is_made_anew_each_time(
    bare: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot, trash = tmp_path / "slot", tmp_path / "trash"
    trash.mkdir()
    tree = forge.fill_checkout(slot, trash, bare.path, bare.git("rev-parse", "main"))
    forge.tidy_checkout(slot, trash, bare.path)
    assert tree.exists()
    monkeypatch.setattr(forge, "INDEX_BYTES", 10)  # its paths would have to be in memory
    forge.tidy_checkout(slot, trash, bare.path)
    assert not slot.exists()


LITTER = """
import sys, threading, psutil
sys.path.insert(0, sys.argv[1])
import forge
if sys.argv[2] == "give":
    forge.give_memory_back()
def work():
    small = []
    for _ in range(3):
        large = []
        for _ in range(50):
            large.append(bytes(200_000))
            small.append(bytes(2000))  # what stays lies between what goes
        del large
    kept.append(small)
kept = []
threads = [threading.Thread(target=work) for _ in range(8)]
before = psutil.Process().memory_info().rss
for thread in threads: thread.start()
for thread in threads: thread.join()
print(psutil.Process().memory_info().rss - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has other settings")
def test_what_was_large_goes_back_to_the_system() -> None:
    def left(how: str) -> int:
        words = [sys.executable, "-c", LITTER, str(ROOT), how]
        return int(subprocess.run(words, env=clean_environ(), capture_output=True, text=True, check=True).stdout)

    given, kept = left("give"), left("keep")
    assert 3 * given < kept, (given, kept)
