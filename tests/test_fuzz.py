"""A short form of the fuzzing, always the same; ``make fuzz`` goes on for a quarter of an hour."""

from __future__ import annotations

from pathlib import Path

from fuzz import Fuzz


def test_a_short_fuzzing(tmp_path: Path) -> None:
    fuzz = Fuzz(tmp_path, seed=1)
    try:
        fuzz.round(1, requests=350, names=2, journals=5)
    finally:
        fuzz.close()
    figures = "\n".join(fuzz.figures())
    print(figures)
    assert not fuzz.found, figures
    assert len({route for route, _ in fuzz.counts}) > len(fuzz.routes) * 3 / 4 and fuzz.other["damaged journals"] == 5, figures
