"""Short forms of the soak: one fault at each place of a merge, and some seconds of everything."""

from __future__ import annotations

from pathlib import Path

import pytest
from soak import TRANSACTION, Soak

# which call of which command, when it goes wrong, who is killed; see faulty_git.py
PLACES = [
    ("for-each-ref", 1, "before", "server"),
    ("for-each-ref", 4, "after", "server"),
    ("merge-tree", 1, "middle", "server"),
    ("commit-tree", 1, "before", "server"),
    ("commit-tree", 1, "after", "server"),
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


def test_a_short_soak(tmp_path: Path) -> None:
    figures = Soak(tmp_path, seed=3).run(25)
    print(figures)
    assert figures.kills >= 5 and figures.faults >= 2 and figures.merges >= 10, figures
