"""Logs as people read them: by pieces and lines, searched, however large and odd they are."""

from __future__ import annotations

import re
import time
from html import unescape
from pathlib import Path

import psutil
import pytest
from conftest import Answer, Work

from forge import BLOCK, PIECE_BYTES, PIECE_LINES, LineCounts, after_newlines, find_in_log, parts_of_digest, plain_lines


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


LOGS = {
    "empty": b"",
    "one line": b"one\n",
    "no end": b"one\ntwo",
    "breaks": b"\n" * (BLOCK + 5),
    "short lines": b"".join(b"line %d\n" % number for number in range(1, 300_001)),
    "long line": b"first\n" + b"x" * (3 * BLOCK) + b"\nlast\n",
    "only a long line": b"y" * (2 * BLOCK),
    "a break at the end of a block": b"z" * (BLOCK - 1) + b"\n" + b"more\n" * 10,
}


@pytest.mark.parametrize("name", LOGS)
def test_lines_are_where_they_are(tmp_path: Path, name: str) -> None:
    path, content, counts = tmp_path / "log", LOGS[name], LineCounts()
    path.write_bytes(content)
    starts = [0, *(found.end() for found in re.finditer(b"\n", content))]
    for line in {1, 2, 3, len(starts) // 2, len(starts) - 1, len(starts)} - {0}:
        start = starts[line - 1] if line <= len(starts) else len(content)
        assert counts.start_of(path, line, len(content)) == start
        if line <= len(starts):
            assert counts.line_at(path, start) == line
        piece = counts.piece_from(path, line)
        assert piece.start == start and content[start:].startswith(piece.content) and len(piece.content) <= PIECE_BYTES
        assert piece.content.endswith(b"\n") or b"\n" not in piece.content or piece.end == len(content)
    assert counts.start_of(path, len(starts) + 1, len(content)) == counts.start_of(path, 10**17, len(content)) == len(content)


@pytest.mark.parametrize("name", LOGS)
def test_pieces_from_the_end_come_to_the_beginning(tmp_path: Path, name: str) -> None:
    path, content, counts = tmp_path / "log", LOGS[name], LineCounts()
    path.write_bytes(content)
    end, seen = len(content), 0
    for _ in range(40):
        piece = counts.piece_before(path, end)
        assert piece.end == end and content[piece.start : end] == piece.content and len(piece.content) <= PIECE_BYTES
        assert len(plain_lines(piece.content)) <= PIECE_LINES + 1
        assert piece.line == content.count(b"\n", 0, piece.start) + 1
        assert piece.start - piece.skipped == content.rfind(b"\n", 0, piece.start) + 1
        end, seen = piece.start - piece.skipped, seen + 1
        if not end:
            break
    assert not end or seen == 40


@pytest.mark.parametrize(
    "text", [b"", b"\n", b"a", b"a\n", b"\n\n\n", b"ab\ncd\n\nef", b"x" * 100 + b"\n" + b"y" * 100, b"\n" * 1000]
)
def test_where_a_line_begins_is_found_without_a_list_of_lines(text: bytes) -> None:
    for count in range(text.count(b"\n") + 3):
        parts = text.split(b"\n", count)
        wanted = None if len(parts) <= count else len(text) - len(parts[-1])
        assert after_newlines(text, count) == wanted, count


def test_counts_go_on_where_they_ended_and_are_kept_for_few(tmp_path: Path) -> None:
    counts = LineCounts(most=2)
    for name in ("one", "two", "three"):
        path = tmp_path / name
        path.write_bytes(b"line\n" * BLOCK)
        assert counts.line_at(path, 5 * BLOCK) == BLOCK + 1
        with open(path, "ab") as stream:
            stream.write(b"x\n" * BLOCK)
        assert counts.line_at(path, 7 * BLOCK) == 2 * BLOCK + 1
    assert len(counts._counts) == 2


def test_the_parts_of_a_digest() -> None:
    assert parts_of_digest("exit code 1\nline 12: error: a line 3\nthe end\nline 4: no") == (
        "exit code 1",
        "12",
        "error: a line 3",
        "the end\nline 4: no",
    )
    assert parts_of_digest("killed\nline 0: a\nb") == ("killed", None, "", "line 0: a\nb")
    assert parts_of_digest("timed out\nline 3: last") == ("timed out", "3", "last", "")
    assert parts_of_digest("exit code 2") == ("exit code 2", None, "", "")
    assert parts_of_digest(None) is None and parts_of_digest({}) is None


def test_the_line_that_a_job_is_writing_is_the_last_of_the_page(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"line\n" * 1500 + b"not yet who")
    piece = LineCounts().piece_before(path, 1 << 40)
    assert len(plain_lines(piece.content)) == PIECE_LINES and piece.line == 1502 - PIECE_LINES


def test_a_digest_begins_the_page_and_leads_to_its_line(work: Work) -> None:
    work.branch("topic", run="echo; echo 'error: it <b>broke</b>'; exit 3\n")
    job = work.server.ended(work.push_job("topic"))
    page = work.server.ask(f"/jobs/{job['id']}", Accept="text/html").text
    shown = page.partition('<section class="digest" data-tone="bad"')[2].partition("</section>")[0]
    assert '<a href="#L2">line 2</a> <code>error: it &lt;b&gt;broke&lt;/b&gt;</code>' in shown and "exit code 3" in shown
    assert job["digest"].startswith("exit code 3\nline 2: error: it <b>broke</b>\n") and 'class="verdict"' not in page


def put_log(work: Work, content: bytes = b"") -> tuple[int, Path]:
    """A job that has ended, with a log that it would take long to write."""
    work.branch("topic")
    job_id = work.push_job("topic")
    work.server.ended(job_id)
    path = work.server.data / f"logs/{work.name}/{job_id}.log"
    path.write_bytes(content)
    return job_id, path


def shown_lines(page: Answer) -> list[tuple[int, str]]:
    """The numbers and texts of the lines in a page."""
    assert page.status == 200
    found = re.findall(r'<div class="line" id="L([0-9]+)"><a href="#L[0-9]+">[0-9]+</a><span>(.*)</span>', page.text)
    return [(int(number), unescape(re.sub("<[^>]*>", "", text))) for number, text in found]


def test_the_log_by_lines_and_pieces(work: Work) -> None:
    job_id, _ = put_log(work, LOGS["short lines"])
    log, page = f"/jobs/{job_id}/log", f"/jobs/{job_id}"
    ask = work.server.ask
    answer = ask(f"{log}?line=250000&most=100")
    assert answer.body.startswith(b"line 250000\nline 250001\n") and answer.body.endswith(b"\n") and len(answer.body) <= 100
    assert answer.headers["X-Log-Line"] == "250000" and answer.headers["X-Job-Status"] == "passed"
    offset = int(answer.headers["X-Log-Offset"])
    assert ask(f"{log}?offset={offset}").body.startswith(answer.body)
    before = ask(f"{log}?before={offset}")
    assert before.body.endswith(b"line 249999\n") and before.headers["X-Log-Line"] == "249000"
    for query in ("line=1", "line=1&most=99999999"):
        assert BLOCK - 100 < len(ask(f"{log}?{query}").body) <= BLOCK
    assert ask(f"{log}?line=999999").body == b"" and ask(f"{log}?line=x").status == 400
    for query, first in (
        ("", 299001),
        ("?line=1", 1),
        ("?line=2000", 2000),
        (f"?before={offset}", 249000),
        ("?line=300000", 300000),
    ):
        lines = shown_lines(ask(page + query, Accept="text/html"))
        assert lines[0] == (first, f"line {first}") and len(lines) == min(1000, 300001 - first)
    assert shown_lines(ask(f"{page}?facts=1", Accept="text/html")) == []


def test_the_log_is_searched_by_the_server(work: Work) -> None:
    job_id, path = put_log(work, b"one\n\x1b[31mEr\x1b[0mror <b>\n" + b"error\n" * 2000)
    found = work.server.get(f"/jobs/{job_id}/log?find=error")
    assert found["count"] == 2001 and len(found["matches"]) == 1000 and found["complete"] and found["lines"] == 2002
    assert found["matches"][0] == {"line": 2, "text": "Error <b>"}
    assert work.server.get(f"/jobs/{job_id}/log?find=%3CB%3E")["count"] == 1
    assert work.server.get(f"/jobs/{job_id}/log?find=%ff")["count"] == 0
    for wrong in ("", "x" * 201):
        assert work.server.ask(f"/jobs/{job_id}/log?find={wrong}").status == 400
    path.unlink()
    assert work.server.ask(f"/jobs/{job_id}/log?find=error").status == 410


def test_no_page_of_a_log_is_large_or_slow_to_read(work: Work) -> None:
    ask = work.server.ask
    job_id, path = put_log(work)
    block = b"".join(b"\x1b[3%dmline\x1b[0m %d \xff\x00 \xc3( <b>\n" % (number % 8, number) for number in range(40_000))
    assert work.server.process
    server = psutil.Process(work.server.process.pid)
    for content in (block, b"\n", b"\0", b'"' * 999 + b"\n", b"\xff", b"x\r", b"\x1b[", b"\x1b]8;;", b"&" * 77):
        with open(path, "wb") as stream:
            for _ in range(20):
                stream.write(content * (BLOCK // len(content) or 1))
        size, rss = path.stat().st_size, server.memory_info().rss
        for query in ("", "?line=1", f"?before={size // 2}", f"?line={size}"):
            page = ask(f"/jobs/{job_id}{query}", Accept="text/html")
            assert page.status == 200 and len(page.body) < 1_000_000
        assert ask(f"/jobs/{job_id}/log?find=nowhere+at+all").status == 200
        assert server.memory_info().rss - rss < 30_000_000
        path.unlink()


def test_the_page_of_a_long_line_says_what_it_leaves_out(work: Work) -> None:
    job_id, _ = put_log(work, LOGS["long line"].removesuffix(b"\nlast\n"))
    page = work.server.ask(f"/jobs/{job_id}", Accept="text/html")
    assert f'<a class="cut" href="/jobs/{job_id}/log?offset=6">3.0 MB of this line left out</a>' in page.text
    page = work.server.ask(f"/jobs/{job_id}?line=2", Accept="text/html")
    assert f'<a class="cut" href="/jobs/{job_id}/log?offset=6">the rest of this line left out</a>' in page.text
