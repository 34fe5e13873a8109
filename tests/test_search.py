"""The search over all logs: what it finds, how far it goes, and that it leaves room for others."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from conftest import Server, Work, needs_browser, wait_for

import forge
from forge import list_logs, marked, search_logs


def push_log(work: Work, branch: str, text: str) -> int:
    """The id of a job that has printed a text."""
    work.branch(branch, run=f"cat out\nexit {len(branch) % 2}\n", out=text)
    job = work.push_job(branch)
    work.server.ended(job)
    return job


def test_jobs_are_found_by_what_their_log_says(work: Work) -> None:
    server = work.server
    first = push_log(work, "a", "one\nthe \x1b[31mNee\x1b[1mdle\x1b[0m is here\n")
    push_log(work, "bb", "nothing\n")
    last = push_log(work, "<i>c", "needle\n" * 8 + "<b>needle</b>\n")
    found = server.get(f"/search?q=NEEDLE&repo={work.name}")
    assert [(job["id"], job["count"]) for job in found["jobs"]] == [(last, 9), (first, 1)]
    assert found["jobs"][1]["matches"] == [{"line": 2, "text": "the Needle is here"}]
    assert [match["line"] for match in found["jobs"][0]["matches"]] == [1, 2, 3, 4, 5]
    assert found["jobs"][0]["branch"] == "<i>c" and found["jobs"][0]["status"] in ("passed", "failed")
    started = server.get(f"/jobs/{first}")["started_at"]
    assert found["first_seen"] == {"job": first, "at": started, "url": f"{server.url}/jobs/{first}"}
    assert found["first_is_certain"] and found["before"] is None and found["looked"] == found["logs"] >= 3
    older = server.get(f"/search?q=needle&repo={work.name}&before={last}")
    assert [job["id"] for job in older["jobs"]] == [first] and older["logs"] == found["logs"] - 1
    assert server.get("/search?q=needle&repo=other")["jobs"] == []
    nothing = server.get(f"/search?q={quote('nadel im heu')}")
    assert nothing["jobs"] == [] and nothing["first_seen"] is None
    page = server.ask(f"/search?q=needle&repo={work.name}", Accept="text/html").text
    assert f'href="/jobs/{first}#L2"' in page and "the <mark>Needle</mark> is here" in page and "4 more lines" in page
    assert f'First seen in <a href="/jobs/{first}">' in page and "<i>" not in page


def test_without_a_text_there_is_a_form(shared: Server) -> None:
    page = shared.ask("/search", Accept="text/html").text
    assert '<input type="search" name="q" value=""' in page and "contains it" not in page
    assert shared.get("/search?q=%20")["jobs"] == []


@pytest.mark.parametrize("query", ["q=x&repo=..", "q=x&repo=a%2Fb", "q=x&before=y", f"q={'x' * 201}"])
def test_an_odd_question_is_refused(shared: Server, query: str) -> None:
    assert shared.ask(f"/search?{query}").status == 400


@pytest.mark.parametrize("text", ["(", "a\\", "[", "<b>", '"', "%", "\udcff", "ß", "\x1b[31m", "x\ny", "İ"])
def test_any_text_can_be_searched_for(shared: Server, text: str) -> None:
    for accept in ("text/html", "application/json"):
        assert shared.ask(f"/search?q={quote(text, errors='surrogateescape')}", Accept=accept).status == 200


# -- in process: many logs ---------------------------------------------------------------------------------


def write_logs(folder: Path, texts: list[str]) -> list[tuple[int, Path]]:
    """Logs with the ids from 1 on, in two repos; the list that a search gets."""
    for number, text in enumerate(texts, 1):
        path = folder / f"r{number % 2}" / f"{number}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return list_logs(folder, None, None)


def test_logs_are_listed_newest_first(tmp_path: Path) -> None:
    write_logs(tmp_path, ["x"] * 12)
    (tmp_path / "r0" / "note.txt").touch()
    (tmp_path / "r0" / "x.log").touch()
    (tmp_path / "file").touch()
    assert [job for job, _ in list_logs(tmp_path, None, None)] == list(range(12, 0, -1))
    assert [job for job, _ in list_logs(tmp_path, "r1", 8)] == [7, 5, 3, 1]
    assert list_logs(tmp_path, "none", None) == []


def test_what_is_found_often_is_shown_by_pages_and_looked_for_from_the_other_end(tmp_path: Path) -> None:
    logs = write_logs(tmp_path, ["nothing"] * 3 + ["needle"] * (2 * forge.SEARCH_HITS))
    found = search_logs(logs, "needle", time.monotonic() + 60)
    assert len(found.hits) == found.looked == forge.SEARCH_HITS and (found.first, found.complete) == (4, True)
    assert found.hits[0][0] == len(logs)


def test_a_search_ends_when_its_time_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = write_logs(tmp_path, ["needle", "needle", "nothing", "needle", "nothing"])
    seconds = iter(range(1000))  # each look at the clock takes a second
    monkeypatch.setattr(forge.time, "monotonic", lambda: float(next(seconds)))
    found = search_logs(logs, "needle", 2.5)
    assert (found.complete, found.looked) == (False, 3) and [job for job, _ in found.hits] == [4] and found.first == 4
    alone = search_logs(logs[3:], "needle", 0.0)  # what takes too long by itself is passed by, so that the next search gets on
    assert (alone.complete, alone.looked, alone.hits) == (False, 1, [])


def test_a_log_that_is_gone_is_passed_over(tmp_path: Path) -> None:
    logs = write_logs(tmp_path, ["needle", "needle"])
    (logs[0][1] / "2.log").unlink()
    found = search_logs(logs, "needle", time.monotonic() + 60)
    assert [job for job, _ in found.hits] == [1] and found.complete


@pytest.mark.parametrize(
    ("text", "needle", "parts"),
    [
        ("a Needle here", "needle", [("a ", False), ("Needle", True), (" here", False)]),
        ("a.b", ".", [("a", False), (".", True), ("b", False)]),
        ("xx", "x", [("x", True), ("x", True)]),
        ("nothing", "needle", [("nothing", False)]),
        ("", "x", []),
    ],
)
def test_what_was_found_is_marked(text: str, needle: str, parts: list[tuple[str, bool]]) -> None:
    assert marked(text, needle) == parts


# -- a server that is searched by many -----------------------------------------------------------------------


@pytest.fixture
def slow(make_server: Callable[..., Server]) -> Server:
    """A server with a log that takes longer to search than a search may."""
    server = make_server()
    push_log(server.repo("app"), "topic", "needle\n")
    folder = server.data / "logs" / "app"
    with open(folder / "999999.log", "wb") as stream:
        stream.truncate(1 << 34)
    return server


def test_searches_take_neither_all_workers_nor_the_lock(slow: Server) -> None:
    def ask(path: str) -> tuple[int, Any, float]:
        began = time.monotonic()
        answer = slow.ask(path)
        return answer.status, answer, time.monotonic() - began

    with ThreadPoolExecutor(10) as pool:
        searches = [pool.submit(ask, "/search?q=needle") for _ in range(8)]
        pages = []
        while not all(search.done() for search in searches):
            pages.append(ask("/")[::2])
        answers = [search.result() for search in searches]
    refused = [answer for status, answer, _ in answers if status == 503]
    assert len(refused) == 8 - forge.FINDERS and all(answer.headers["Retry-After"] for answer in refused)
    assert "search again" in refused[0].json["error"]
    assert len(pages) > 3 and all(status == 200 for status, _ in pages)
    found = next(answer.json for status, answer, _ in answers if status == 200)
    assert not found["first_is_certain"] and (found["looked"], found["before"]) == (1, 999999)
    assert max(seconds for status, _, seconds in answers if status == 200) < 20
    assert slow.get(f"/search?q=needle&before={found['before']}")["jobs"][0]["branch"] == "topic"


def test_few_wait_for_a_turn_to_search(tmp_path: Path) -> None:
    engine = forge.Engine(forge.load_config({"FORGE_DATA_DIR": str(tmp_path / "data"), "FORGE_SANDBOX": "none"}))
    web, few = forge.Web(engine), forge.WEB_THREADS // 4

    def search() -> int:
        try:
            with web._turn(web.finders, "others search;", 60):
                return 200
        except forge.Refused as refused:
            return refused.status

    with ThreadPoolExecutor(forge.WEB_THREADS) as pool, contextlib.ExitStack() as others:
        for _ in range(forge.FINDERS):
            others.enter_context(web._turn(web.finders, "others search;"))
        asked = [pool.submit(search) for _ in range(forge.WEB_THREADS)]
        wait_for(lambda: sum(one.done() for one in asked) == len(asked) - few, "all but a few are refused")
        others.close()
        assert sorted(one.result() for one in asked) == [200] * few + [503] * (len(asked) - few)
    engine.stop()


def test_a_search_that_was_cut_short_says_so(slow: Server) -> None:
    page = slow.ask("/search?q=needle", Accept="text/html").text
    assert "So far none of 1 log contains it" in page and "Looked through the newest 1 of " in page
    link = re.search(r'<a href="(/search\?[^"]*before=999999)">search further back</a>', page)
    assert link and "topic" in slow.ask(link[1].replace("&amp;", "&"), Accept="text/html").text
    (slow.data / "logs/other").mkdir()
    (slow.data / "logs/app/999999.log").rename(slow.data / "logs/other/999999.log")
    page = slow.ask("/search?q=needle&repo=other", Accept="text/html").text
    assert "So far none of 1 log contains it" in page and "was ended" in page and "search further back" not in page


@needs_browser
def test_a_search_leads_to_the_line(work: Work, page: Any) -> None:
    job = push_log(work, "topic", "one\ntwo\nthe needle\n")
    page.set_viewport_size({"width": 360, "height": 700})
    page.goto(f"{work.server.url}/search")
    page.get_by_label("Text").fill("needle")
    page.get_by_label("Repo").select_option(work.name)
    page.keyboard.press("Tab")
    page.get_by_role("button", name="Search").click()
    page.wait_for_url("**/search?q=needle*")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.get_by_role("link", name="Line 3").click()
    page.wait_for_url(f"**/jobs/{job}#L3")
