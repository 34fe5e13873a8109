"""Logs as people read them: by pieces and lines, searched, however large and odd they are."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from forge import BLOCK, find_in_log


def found(path: Path, needle: str, most: int = 100) -> tuple[list[tuple[int, str]], int, bool, int]:
    return tuple(find_in_log(path, needle, most, time.monotonic() + 60))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("content", "needle", "lines"),
    [
        (b"one\ntwo\none more", "one", {1: "one", 3: "one more"}),
        (b"An ERROR here\nnothing\n", "error", {1: "An ERROR here"}),
        ("GRÜN und STRASSE\n".encode(), "straße", {1: "GRÜN und STRASSE"}),
        (b"a\n\x1b[31mer\x1b[1mror\x1b[0m: no\n", "error:", {2: "error: no"}),
        (b"10%\r55%\r100%\r\n", "55", {}),
        (b"10%\r55%\r100%\r\n", "100%", {1: "100%"}),
        (b"\x00e\x00r\x07r\x08or\xff\n", "error", {1: "error\ufffd"}),
        (b"\x1b]8;;http://a/\x07link\x1b]8;;\x07 error\n\x1b]0;open\nerror\n", "error", {1: "link error", 3: "error"}),
        (b"twice twice\n", "twice", {1: "twice twice"}),
        (b"", "x", {}),
        (b"\n\n\n", "x", {}),
    ],
)
def test_a_log_is_searched_as_a_reader_sees_it(tmp_path: Path, content: bytes, needle: str, lines: dict[int, str]) -> None:
    path = tmp_path / "log"
    path.write_bytes(content)
    matches, count, complete, seen = found(path, needle)
    assert dict(matches) == lines and count == len(lines) and complete
    assert seen == len(content.split(b"\n")) - (not content or content.endswith(b"\n"))


def test_a_search_goes_over_the_bounds_of_blocks(tmp_path: Path) -> None:
    path = tmp_path / "log"
    line = b"x" * 99 + b"\n"
    path.write_bytes(line * (BLOCK // 100) + b"the needle lies over the bound\n" + line * 30000 + b"needle\n")
    matches, count, *_ = found(path, "needle")
    assert [number for number, _ in matches] == [BLOCK // 100 + 1, BLOCK // 100 + 30002] and count == 2
    assert found(path, "NEEDLE", 1)[:2] == (matches[:1], 2)


def test_a_line_longer_than_blocks_is_searched_in_parts(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"first\n" + b"y" * (2 * BLOCK - 9) + b"needle" + b"y" * (3 * BLOCK) + b"needle\nlast needle\n")
    matches, count, *_ = found(path, "needle")
    assert [number for number, _ in matches] == [2, 3] and count == 2
    assert max(len(text) for _, text in matches) < 1000


def test_a_search_that_takes_too_long_says_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"error\n" * BLOCK)
    assert find_in_log(path, "error", 10, time.monotonic()) == ([], 0, False, 0)
