"""Short forms of the soak: one fault at each place of a merge, and some seconds of everything."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import AUTO, wait_for
from soak import TRANSACTION, Person, Soak

# which call of which command, when it goes wrong, who is killed; see faulty_git.py
PLACES = [
    ("for-each-ref", 1, "before", "server"),
    ("for-each-ref", 4, "after", "server"),
    ("merge-tree", 1, "middle", "server"),
    ("hash-object", 1, "before", "server"),
    ("hash-object", 1, "after", "server"),
    ("read-tree", 1, "middle", "server"),
    ("update-ref", 1, "middle", "server"),
    (TRANSACTION, 1, "before", "server"),
    (TRANSACTION, 1, "locked", "server"),
    (TRANSACTION, 1, "moved", "server"),
    (TRANSACTION, 1, "after", "server"),
    (TRANSACTION, 1, "late", "server"),
    (TRANSACTION, 1, "locked", "git"),
    (TRANSACTION, 1, "moved", "git"),
]


@pytest.mark.parametrize(("verb", "nth", "when", "whom"), PLACES)
def test_one_fault_in_a_merge(tmp_path: Path, verb: str, nth: int, when: str, whom: str) -> None:
    Soak(tmp_path, seed=nth, patience=60).drill((verb, str(nth), when, whom, "0.5"))


@pytest.fixture
def drill(tmp_path: Path) -> Iterator[tuple[Soak, Person]]:
    """A server with an empty repo, and somebody to push to it."""
    soak = Soak(tmp_path, seed=1, patience=60)
    soak.start()
    try:
        work = soak.new_repo("drill")
        soak.settle(["drill"])
        yield soak, Person(soak, work, soak.random)
    finally:
        soak.clear()


def test_a_branch_pushed_anew_before_its_merge_was_recorded(drill: tuple[Soak, Person]) -> None:
    """Base has moved and the branch is gone, the server is dead; then the same name is pushed again."""
    soak, person = drill
    for turn in range(2):
        head = person.make("topic", AUTO, **{f"f/{turn}": "a change"})
        assert person.push("topic") == ["*"]
        person.told("topic", head, f"push {turn}")
        if turn == 0:
            assert soak.strike((TRANSACTION, "1", "after", "server", "0")) and not soak.alive
    soak.start()
    soak.look(["drill"])


def test_a_merge_begun_by_a_dead_server_is_settled_before_the_next_step(drill: tuple[Soak, Person]) -> None:
    """Another job of the repo ends while no server is there, so that the next one has a reason to step at once."""
    soak, person = drill
    for name in ("one", "two"):
        person.told(name, person.make(name, AUTO), "auto")
    threading.Thread(target=person.push, args=("one", "two")).start()
    assert soak.strike((TRANSACTION, "1", "before", "server", "0")) and not soak.alive
    running = [path for path in (soak.server.data / "running").iterdir() if (path / "pid").exists()]
    wait_for(lambda: all((path / "exit").exists() for path in running), "the ends of the jobs")
    soak.start()
    soak.look(["drill"])


def test_a_short_soak(tmp_path: Path) -> None:
    figures = Soak(tmp_path, seed=3).run(20)
    print(figures)
    assert figures.kills and figures.faults and figures.merges >= 5, figures
