"""The log of a job in a real browser: as it grows, by lines, searched."""

from __future__ import annotations

import base64
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import AUTO, Server, Work, needs_browser, wait_for

pytestmark = needs_browser

LINES = "#log #rows .line > span"
SAY = 'say() { i=$1; while [ $i -le $2 ]; do echo "line $i"; i=$((i+1)); done; }\n'
WAIT = 'wait_for() { while [ ! -e "$HOME/$1" ]; do sleep 0.02; done; }\n'


@contextmanager
def running(work: Work, script: str) -> Iterator[str]:
    """The page of a job that has begun; it has ended when the block is left."""
    work.branch("topic", run=SAY + WAIT + script)
    job_id = work.push_job("topic")
    work.server.running(job_id)
    try:
        yield f"{work.server.url}/jobs/{job_id}"
    finally:
        work.server.act(f"/jobs/{job_id}/cancel")
        work.server.ended(job_id)


def ended(work: Work, script: str) -> str:
    """The page of a job that has ended."""
    work.branch("topic", run=SAY + script)
    return str(work.server.ended(work.push_job("topic"))["url"])


def shown(page: Any) -> list[str]:
    found: list[str] = page.locator(LINES).all_inner_texts()
    return found


def until(page: Any, script: str, what: str) -> Any:
    """Wait until a script is true in the page; its security policy lets no test do that by itself."""
    return wait_for(lambda: page.evaluate(script), what, 10)


def in_sight(page: Any, line: int) -> bool:
    """Whether a line lies in the part of the log that can be seen."""
    return bool(
        page.evaluate(
            """(line) => {
                const place = document.getElementById(`L${line}`)?.getBoundingClientRect();
                const log = document.getElementById("log").getBoundingClientRect();
                return place !== undefined && place.top >= log.top - 1 && place.bottom <= log.bottom + 1;
            }""",
            line,
        )
    )


def scroll(page: Any, place: str) -> None:
    page.evaluate(f"(log => log.scrollTop = {place})(document.getElementById('log'))")


def test_lines_appear_as_they_are_written_and_the_page_is_never_loaded_again(work: Work, page: Any) -> None:
    with running(work, "say 1 3; wait_for more; say 4 5; wait_for end; exit 3\n") as url:
        page.goto(url)
        page.evaluate("window.mark = 1")
        page.wait_for_selector("#L3")
        assert "running" in page.title() and page.get_attribute("link[rel=icon]", "href") == "/static/running.svg"
        sent: list[str] = []
        page.on("response", lambda answer: sent.append(answer.url.removeprefix(url)))
        work.gate("more").touch()
        page.wait_for_selector("#L5", timeout=2000)
        assert shown(page) == [f"line {number}" for number in range(1, 6)]
        work.gate("end").touch()
        page.wait_for_selector("[data-status=failed]", timeout=5000)
        assert page.evaluate("window.mark") == 1 and page.get_by_role("button", name="Retry").is_visible()
        assert "failed" in page.title() and page.get_attribute("link[rel=icon]", "href") == "/static/failed.svg"
        assert shown(page) == [f"line {number}" for number in range(1, 6)] and not page.locator("#follow").is_visible()
        assert {address.split("=")[0] for address in sent if "/static/" not in address} <= {"/log?offset", "?facts"}, sent


def test_the_tail_is_followed_until_the_reader_scrolls_up(work: Work, page: Any) -> None:
    with running(work, "say 1 200; wait_for one; say 201 210; wait_for two; say 211 220; wait_for end\n") as url:
        page.goto(url)
        page.wait_for_selector("#L200")
        wait_for(lambda: in_sight(page, 200), "the end")
        scroll(page, "300")
        page.get_by_role("button", name="Follow the log").wait_for()
        place = page.evaluate("document.getElementById('log').scrollTop")
        work.gate("one").touch()
        page.get_by_role("button", name="Follow the log (10 new lines)").wait_for()
        assert page.evaluate("document.getElementById('log').scrollTop") == place
        page.get_by_role("button", name="Follow the log").click()
        wait_for(lambda: in_sight(page, 210), "the tail")
        work.gate("two").touch()
        wait_for(lambda: in_sight(page, 220), "what came later")
        assert not page.locator("#follow").is_visible()


def test_a_page_goes_on_when_the_server_is_back(make_server: Callable[..., Server], browser: Any) -> None:
    server = make_server()
    work = server.repo("app")
    page = browser.new_page()
    with running(work, "say 1 2; wait_for more; say 3 4\n") as url:
        page.goto(url)
        page.wait_for_selector("#L2")
        page.evaluate("window.mark = 1")
        server.stop()
        page.wait_for_selector("text=The server does not answer; trying again", timeout=5000)
        work.gate("more").touch()
        server.settings["FORGE_PORT"] = server.url.rpartition(":")[2]
        server.start()
        page.wait_for_selector("[data-status=passed]", timeout=10000)
        assert shown(page) == ["line 1", "line 2", "line 3", "line 4"] and page.evaluate("window.mark") == 1
        assert page.inner_text("#state") == ""
    page.close()


def test_progress_bars_are_shown_as_they_stand(work: Work, page: Any) -> None:
    with running(work, r"printf '10%%\r20%%'; wait_for one; printf '\r30%%\r'; wait_for two; printf '\r100%%\r\nend\r\n'") as url:
        page.goto(url)
        for gate, lines in (("", ["20%"]), ("one", ["30%"]), ("two", ["100%", "end"])):
            work.gate(gate or "none").touch()
            wait_for(lambda lines=lines: shown(page) == lines, f"{lines}", 5)


def test_lines_can_be_linked_to(work: Work, page: Any) -> None:
    url = ended(work, "say 1 300\n")
    page.goto(f"{url}#L12-L20")
    page.wait_for_selector("#L12.marked")
    marked = "[...document.querySelectorAll('.line.marked')].map((line) => line.id)"
    assert page.evaluate(marked) == [f"L{number}" for number in range(12, 21)] and in_sight(page, 12)
    before = page.evaluate("history.length")
    page.click("#L15 > a")
    page.click("#L17 > a", modifiers=["Shift"])
    assert page.evaluate(marked) == ["L15", "L16", "L17"] and page.url.endswith("#L15-L17")
    page.click("#L14 > a")
    assert page.url.endswith("#L14") and page.evaluate(marked) == ["L14"] and page.evaluate("history.length") == before
    page.evaluate("location.hash = '#L250'")
    wait_for(lambda: in_sight(page, 250) and page.evaluate(marked) == ["L250"], "line 250")
    page.evaluate("location.hash = '#L999'")
    page.wait_for_selector("text=The log has no line 999")


def test_the_rest_of_a_large_log_comes_when_it_is_asked_for(work: Work, page: Any) -> None:
    url = ended(work, "say 1 12000\n")
    page.goto(url)
    wait_for(lambda: in_sight(page, 12000), "the end")
    first = "Number(document.querySelector('#rows .line').id.slice(1))"
    assert page.evaluate(first) == 11001
    page.get_by_role("link", name="Earlier lines").click()
    until(page, f"{first} === 10001", "the piece before")
    assert in_sight(page, 12000)
    for _ in range(4):
        now = page.evaluate(first)
        scroll(page, "0")
        until(page, f"{first} < {now}", f"more before {now} when scrolled up")
    assert page.evaluate("document.querySelectorAll('#rows .line').length") <= 4000
    page.evaluate("location.hash = '#L3000'")
    wait_for(lambda: in_sight(page, 3000), "line 3000")
    assert page.inner_text("#L3000 > span") == "line 3000"
    page.get_by_role("link", name="Later lines").click()
    page.wait_for_selector("#L4500", state="attached")
    numbers = page.evaluate("[...document.querySelectorAll('#rows .line')].map((line) => Number(line.id.slice(1)))")
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    page.get_by_role("button", name="Go to the end").click()
    wait_for(lambda: in_sight(page, 12000), "the end")
    assert page.evaluate(first) == 11001


def test_the_log_is_searched(work: Work, page: Any) -> None:
    script = r"printf 'an \033[31mEr\033[1mror\033[0m here\n'; say 2 3000; echo 'error again'; echo 'no more ERRORS'" + "\n"
    page.goto(ended(work, script))
    wait_for(lambda: in_sight(page, 3002), "the end")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "find"
    page.keyboard.type("error")
    page.wait_for_selector("#count:text-is('1 of 3')")
    assert in_sight(page, 1) and page.locator("#L1 mark").all_inner_texts() == ["Er", "ror"]
    page.keyboard.press("Enter")
    for key, number, line in (("n", 2, 3001), ("n", 3, 3002), ("n", 1, 1), ("N", 3, 3002), ("N", 2, 3001)):
        page.keyboard.press(key)
        page.wait_for_selector(f"#count:text-is('{number} of 3')")
        wait_for(lambda line=line: in_sight(page, line), f"line {line}")
    page.get_by_label("Only matching lines").check()
    assert page.locator("#log .line:visible").all_inner_texts() == [
        "1\nan Error here",
        "3001\nerror again",
        "3002\nno more ERRORS",
    ]
    page.locator("#log .line:visible > a").first.click()
    wait_for(lambda: in_sight(page, 1), "the line among the others")
    assert not page.is_checked("#filter") and page.url.endswith("#L1")
    page.locator("#log").focus()
    page.keyboard.press("Escape")
    assert page.input_value("#find") == "" and page.locator("#log mark").count() == 0
    page.fill("#find", "nowhere <b>")
    page.wait_for_selector("#count:text-is('no match')")


def test_keys_do_nothing_in_fields(work: Work, page: Any) -> None:
    page.goto(ended(work, "say 1 3\n"))
    page.wait_for_selector("#logtools:visible")
    page.fill("#find", "a")
    page.locator("#find").press("?")
    page.locator("#find").press("n")
    assert page.input_value("#find") == "a?n" and not page.is_visible("#keys")
    page.locator("input[type=password]").press_sequentially("/N?")
    assert page.input_value("input[type=password]") == "/N?"
    page.locator("#find").press("Escape")
    assert page.evaluate("document.activeElement.id") == "log"
    page.keyboard.press("?")
    assert page.is_visible("#keys")
    page.keyboard.press("Escape")
    assert not page.is_visible("#keys")


def test_what_is_written_after_a_search_is_found_too(work: Work, page: Any) -> None:
    with running(work, "echo a needle; wait_for more; echo hay; echo another needle; wait_for end\n") as url:
        page.goto(url)
        page.wait_for_selector("#L1")
        page.fill("#find", "needle")
        page.wait_for_selector("#count:text-is('1 of 1')")
        page.get_by_label("Only matching lines").check()
        work.gate("more").touch()
        page.wait_for_selector("#count:text-is('1 of 2')")
        assert page.locator("#log .line:visible > span").all_inner_texts() == ["a needle", "another needle"]


def test_wrapping_is_remembered(work: Work, page: Any) -> None:
    url = ended(work, "head -c 5000 /dev/zero | tr '\\0' x\n")
    page.goto(url)
    page.wait_for_selector("#logtools:visible")
    wide = "(log => log.scrollWidth > log.clientWidth)(document.getElementById('log'))"
    assert page.evaluate(wide)
    page.get_by_label("Wrap lines").check()
    assert not page.evaluate(wide)
    page.reload()
    page.wait_for_selector("#log.wrap")
    assert page.is_checked("#wrap")


def test_the_first_error_is_a_click_away(work: Work, page: Any) -> None:
    page.goto(ended(work, "say 1 2000; echo '0 errors yet'; echo 'error: it broke'; say 1 2500; exit 1\n"))
    page.get_by_role("button", name="First error").click()
    wait_for(lambda: in_sight(page, 2002), "the first error")
    assert page.url.endswith("#L2002") and "marked" in page.get_attribute("#L2002", "class")


def test_only_web_links_can_be_clicked(work: Work, page: Any) -> None:
    targets = [
        "https://example.org/x",
        "javascript:alert(1)",
        "data:text/html,x",
        "//example.org/",
        "https://a@example.org/",
        "file:///",
    ]
    targets += ["http://example.org/\x01\"'<b>"]
    script = "".join(rf"printf '\033]8;id=1;%s\033\\text\033]8;;\007 after\n' {quoted(target)}" + "\n" for target in targets)
    page.goto(ended(work, script + r"printf '\033]8;;https://example.org/ no end\n\033]0;title\007ok\033[\nok\n'" + "\n"))
    page.wait_for_selector("#log span a")
    lines = shown(page)
    assert lines[:2] == ["text (https://example.org/x) after", "text after"]
    assert all(line == "text after" for line in lines[1:6]) and lines[-2:] == ["ok", "ok"]
    addresses = page.locator("#log span a").evaluate_all("links => links.map((a) => [a.href, a.rel])")
    assert [address for address, _ in addresses] == ["https://example.org/x", "http://example.org/%01%22'%3Cb%3E"]
    assert {rel for _, rel in addresses} == {"noreferrer noopener nofollow"}


def quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def test_odd_bytes_and_colours(work: Work, page: Any) -> None:
    script = r"""printf 'a\000b\001c\377\303(\n'
printf '\033[38;5;196mindexed\033[0m \033[38:2::1:2:3mtrue\033[0m \033[4mline\n'
printf 'still\033[0m\n<script>alert(1)</script>&amp;\n'
"""
    page.goto(ended(work, script))
    page.wait_for_selector("#log span span")
    assert shown(page) == ["abc\ufffd\ufffd(", "indexed true line", "still", "<script>alert(1)</script>&amp;"]
    colour = "(e) => getComputedStyle(e).color"
    assert page.locator("#L2 span span", has_text="indexed").evaluate(colour) == "rgb(255, 0, 0)"
    assert page.locator("#L2 span span", has_text="true").evaluate(colour) == "rgb(1, 2, 3)"
    assert page.locator("#L3 span span").evaluate("(e) => getComputedStyle(e).textDecorationLine") == "underline"


def put_log(work: Work, content: bytes) -> str:
    """The page of a job that wrote something, which a job would take long to write."""
    url = ended(work, "true\n")
    job_id = url.rpartition("/")[2]
    Path(work.server.data / "logs" / work.name / f"{job_id}.log").write_bytes(content)
    return url


def test_a_line_without_end_is_cut(work: Work, page: Any) -> None:
    url = put_log(work, b"first\n" + b"x" * 9_000_000 + b"\nmiddle\n" + b"y" * 9_000_000)
    page.goto(url)
    page.wait_for_selector("#L4 .cut")
    assert "of this line left out" in page.inner_text("#L4 > span") and len(page.inner_text("#L4 > span")) < 25000
    page.get_by_role("link", name="Earlier lines").click()
    page.wait_for_selector("#L3", state="attached")
    page.get_by_role("link", name="Earlier lines").click()
    page.wait_for_selector("#L2", state="attached")
    page.get_by_role("link", name="Earlier lines").click()
    page.wait_for_selector("#L1", state="attached")
    assert [page.locator("#rows .line").nth(at).get_attribute("id") for at in range(4)] == ["L1", "L2", "L3", "L4"]
    assert not page.is_visible("#earlier")
    page.goto(f"{url}?line=1#L1")
    page.wait_for_selector("#L1.marked")
    for line in (2, 3, 4):
        if not page.locator(f"#L{line}").count():
            page.get_by_role("link", name="Later lines").click()
            page.wait_for_selector(f"#L{line}", state="attached")
    assert page.inner_text("#L3 > span") == "middle"


def test_without_javascript_pieces_are_linked(work: Work, browser: Any) -> None:
    url = ended(work, "say 1 2500\n")
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(url)
    assert not page.locator("#logtools").is_visible() and page.locator("#rows .line").last.get_attribute("id") == "L2500"
    page.get_by_role("link", name="Earlier lines").click()
    assert page.locator("#rows .line").first.get_attribute("id") == "L501" and page.locator("#L1500").count() == 1
    page.get_by_role("link", name="Later lines").click()
    assert page.locator("#rows .line").first.get_attribute("id") == "L1501"
    page.goto(f"{url}?line=1200")
    assert page.locator("#rows .line").first.inner_text() == "1200\nline 1200"
    context.close()


def test_the_log_fits_a_phone(work: Work, browser: Any) -> None:
    url = ended(work, "say 1 2000; head -c 3000 /dev/zero | tr '\\0' x\n")
    context = browser.new_context(viewport={"width": 360, "height": 740})
    page = context.new_page()
    page.goto(url)
    page.wait_for_selector("#logtools:visible")
    page.fill("#find", "line 1")
    page.wait_for_selector("#count:text-is('1 of 1,111; the first 1,000 can be visited')")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    context.close()


def test_no_link_is_made_of_what_is_left_of_other_sequences(work: Work, page: Any) -> None:
    """A sequence within another one is taken out; what is around it would then be a link that nobody has looked at."""
    gap, end = r"\033\033]x\007", r"\033\033]x\007\\"
    page.goto(
        ended(work, f"printf 'x{gap}]8;;https://github.com@evil.example/{end}click{gap}]8;;{end}y \\033[31mred\\033[0m\\n'\n")
    )
    until(page, "document.querySelector('#log .ansi-red-fg') !== null", "colours")
    assert page.locator("#log span a").count() == 0
    assert "click" in shown(page)[0] and "red" in shown(page)[0]


# -- what the reader looks at stays where it is ------------------------------------------------------

SHIFTS = """window.shifts = [];
new PerformanceObserver((list) => window.shifts.push(...list.getEntries().map((entry) => entry.value)))
  .observe({ type: "layout-shift", buffered: true });"""
SCREENS = [(1280, 720), (1366, 768), (390, 844)]


@contextmanager
def screen(browser: Any, width: int, height: int, **about: Any) -> Iterator[Any]:
    """A page on a screen of this size, which keeps what moved by itself."""
    context = browser.new_context(viewport={"width": width, "height": height}, **about)
    context.add_init_script(SHIFTS)
    yield context.new_page()
    context.close()


def box_of(page: Any, name: str) -> Any:
    """Where an element is on the screen, found and measured in one step: the script may replace lines in between."""
    return page.evaluate("name => document.getElementById(name).getBoundingClientRect().toJSON()", name)


def box(page: Any, line: int) -> Any:
    """Where a line is on the screen."""
    return box_of(page, f"L{line}")


def on_screen(page: Any, line: int) -> bool:
    """Whether all of a line's height can be seen: in the window, and in the log."""
    place, log = box(page, line), box_of(page, "log")
    bottom = min(page.viewport_size["height"], log["y"] + log["height"])
    return bool(place["y"] >= log["y"] and place["y"] + place["height"] <= bottom + 1)


def moved(page: Any) -> float:
    return float(page.evaluate("window.shifts.reduce((sum, shift) => sum + shift, 0)"))


@pytest.mark.parametrize(("width", "height"), SCREENS)
def test_the_newest_line_is_on_the_screen_and_nothing_moves_when_the_job_ends(
    work: Work, browser: Any, width: int, height: int
) -> None:
    script = "wait_for first; say 1 30; wait_for more; say 31 120; echo 'error: it broke'; wait_for end; exit 3\n"
    with running(work, script) as url, screen(browser, width, height) as page:
        page.goto(url)
        page.wait_for_selector("#logtools:visible")
        for gate, line in (("first", 30), ("more", 121)):
            work.gate(gate).touch()
            page.wait_for_selector(f"#L{line}")
            wait_for(lambda line=line: on_screen(page, line), f"line {line} on the screen", 10)
        place = box(page, 121)
        work.gate("end").touch()
        page.wait_for_selector(".digest")
        page.get_by_role("button", name="Retry").wait_for()
        assert page.locator(".digest .cause").is_visible()
        assert (box(page, 121), on_screen(page, 121)) == (place, True) and moved(page) <= 0.02


@pytest.mark.parametrize(("width", "height"), SCREENS)
def test_who_reads_further_up_is_not_moved_when_the_job_ends(work: Work, browser: Any, width: int, height: int) -> None:
    with (
        running(work, "say 1 300; echo 'error: it broke'; wait_for end; exit 3\n") as url,
        screen(browser, width, height) as page,
    ):
        page.goto(url)
        page.wait_for_selector("#L301")
        wait_for(lambda: in_sight(page, 301), "the end")
        scroll(page, "1000")
        page.get_by_role("button", name="Follow the log").wait_for()
        line = next(number for number in range(40, 80) if on_screen(page, number))
        page.evaluate("window.scrollTo(0, 100)")
        place = box(page, line)
        work.gate("end").touch()
        page.wait_for_selector(".digest")
        page.get_by_role("button", name="Retry").wait_for()
        assert box(page, line) == place and page.evaluate("scrollY") == 100 and moved(page) <= 0.02


def test_scrolling_before_the_script_has_the_log_is_not_undone(work: Work, browser: Any) -> None:
    with running(work, "say 1 300; wait_for end\n") as url, screen(browser, 1280, 720) as page:
        held: list[Any] = []

        def hold(route: Any) -> None:
            held.append(route)

        page.route("**/log?offset=*", hold)
        page.goto(url)
        page.wait_for_selector("#L300")
        wait_for(lambda: held or page.wait_for_timeout(20), "the script")
        scroll(page, "1000")
        page.get_by_role("button", name="Follow the log").wait_for()
        place = box(page, 60)
        page.evaluate("window.plain = document.getElementById('L300')")
        held[0].continue_()
        until(page, "!window.plain.isConnected", "lines painted anew")
        assert (box(page, 60), page.evaluate("document.getElementById('log').scrollTop")) == (place, 1000)


def test_a_job_that_passes_and_is_merged_moves_nothing_either(work: Work, browser: Any) -> None:
    with screen(browser, 1280, 720) as page:
        work.branch("topic", AUTO, run=f"{SAY}{WAIT}say 1 5; wait_for end\n")
        job = work.push_job("topic")
        work.server.running(job)
        page.goto(f"{work.server.url}/jobs/{job}")
        page.wait_for_selector("#L5")
        place = box(page, 5)
        work.gate("end").touch()
        page.wait_for_selector("text=Merged into base as", timeout=20000)
        assert box(page, 5) == place and moved(page) <= 0.02


def test_without_javascript_the_newest_line_is_on_the_screen_too(work: Work, browser: Any) -> None:
    with running(work, "say 1 60; wait_for end\n") as url:
        wait_for(lambda: b"line 60\n" in work.server.ask(f"{url.removeprefix(work.server.url)}/log").body, "the output")
        with screen(browser, 1280, 720, java_script_enabled=False) as page:
            page.goto(url)
            assert on_screen(page, 60) and not page.locator("#logtools").is_visible()


# -- numbers and marks -------------------------------------------------------------------------------

COLUMNS = """(rows) => rows.map(([number, text]) => {
  const range = document.createRange();
  range.selectNodeContents(number);
  const { left, right } = range.getBoundingClientRect();
  return [left, right, number.parentElement.getBoundingClientRect().left, text.getBoundingClientRect().left];
})"""


def check_columns(page: Any, rows: str) -> None:
    """That numbers lie left of their texts, within their row, and all texts begin at one place; `rows` are such pairs."""
    found = page.evaluate(f"({COLUMNS})({rows})")
    assert len(found) > 3
    for left, right, row, text in found:
        assert row <= left and right < text, (left, right, row, text)
    assert len({round(text) for *_, text in found}) == 1


LOG_ROWS = "[...document.querySelectorAll('.line')].map((line) => [line.firstChild, line.lastChild])"
HIT_ROWS = "[...document.querySelectorAll('.hit li')].map((line) => [line.querySelector('a'), line.querySelector('bdi')])"
DIFF_ROWS = "[...document.querySelectorAll('.lines a')].map((a) => [a, a.parentElement.parentElement.lastElementChild])"


@pytest.mark.parametrize("width", [1280, 360])
def test_long_numbers_of_lines_do_not_run_into_the_text(work: Work, browser: Any, width: int) -> None:
    url = put_log(work, b"".join(b"seen %d\n" % number for number in range(1, 1_000_101)))
    for scripts in (True, False):
        with screen(browser, width, 720, java_script_enabled=scripts) as page:
            page.goto(f"{url}?line=999990")
            page.wait_for_selector("#L1000001")
            if scripts:
                page.wait_for_selector("#logtools:visible")
            check_columns(page, LOG_ROWS)
    with screen(browser, width, 720) as page:
        page.goto(url)
        page.fill("#find", "seen 99999")
        page.wait_for_selector("#count:text-is('1 of 11')")
        page.get_by_label("Only matching lines").check()
        page.wait_for_selector("#matches .line")
        check_columns(page, LOG_ROWS.replace(".line'", "#matches .line'"))
        page.goto(f"{work.server.url}/search?q=seen+99999&repo={work.name}")
        check_columns(page, HIT_ROWS)


def test_the_column_of_numbers_grows_with_the_log(work: Work, page: Any) -> None:
    with running(work, "seq 99998; wait_for more; seq 99999 100002; wait_for end\n") as url:
        page.set_viewport_size({"width": 360, "height": 720})
        page.goto(url)
        page.wait_for_selector("#L99998")
        work.gate("more").touch()
        page.wait_for_selector("#L100002")
        check_columns(page, LOG_ROWS)


@pytest.mark.parametrize("width", [1280, 360])
def test_long_numbers_of_lines_have_room_in_diffs(work: Work, browser: Any, width: int) -> None:
    many = "\n" * 1_000_010
    work.git("checkout", "-q", "-B", "main", "origin/main")
    work.commit("Many lines", many=many)
    work.push("main")
    work.server.idle()
    work.branch("topic", many=f"{many[:-4]}here_it_is\n")
    work.server.ended(work.push_job("topic"))
    for view in ("unified", "split"):
        with screen(browser, width, 720) as page:
            page.goto(f"{work.server.url}/r/{work.name}/mr/topic?view={view}")
            page.wait_for_selector(".lines a")
            numbers = page.evaluate(COLUMNS.join(["(", f")({DIFF_ROWS})"]))
            assert all(cell <= left and right < text for left, right, cell, text in numbers), (view, numbers)
            cells = "[...document.querySelectorAll('.lines a')].map((a) => [a.offsetWidth, a.parentElement.clientWidth])"
            assert page.evaluate(cells) and all(inner <= outer for inner, outer in page.evaluate(cells)), view


COLUMN = """async (picture) => {
  const image = new Image();
  image.src = picture;
  await image.decode();
  const canvas = new OffscreenCanvas(image.width, image.height), context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const { data } = context.getImageData(image.width >> 1, 0, 1, image.height);
  return Array.from({ length: image.height }, (_, y) => (data[4 * y] * 3 + data[4 * y + 1] * 6 + data[4 * y + 2]) / 10);
}"""
PLACE = """([selector, char]) => {
  const text = document.createTreeWalker(document.querySelector(selector), NodeFilter.SHOW_TEXT).nextNode();
  const range = document.createRange(), at = text.data.indexOf(char);
  range.setStart(text, at);
  range.setEnd(text, at + 1);
  const { x, y, width, height } = range.getBoundingClientRect();
  return { x: x + width / 2 - 1, y: y - 3, width: 2, height: height + 9 };
}"""


def column(browser: Any, page: Any, selector: str) -> list[float]:
    """How bright the pixels are that lie above and below the middle of the first underscore in an element, from the top down."""
    page.locator(selector).first.scroll_into_view_if_needed()
    picture = base64.b64encode(page.screenshot(clip=page.evaluate(PLACE, [selector, "_"]))).decode()
    reader = browser.new_page()
    found: list[float] = reader.evaluate(COLUMN, f"data:image/png;base64,{picture}")
    reader.close()
    return found


def runs(pixels: list[float]) -> list[tuple[bool, int]]:
    """Where a column differs much from its commonest brightness, and for how many pixels; the other stretches as well."""
    ground = Counter(round(pixel) for pixel in pixels).most_common(1)[0][0]
    return [(far, len(list(part))) for far, part in itertools.groupby(abs(pixel - ground) > 35 for pixel in pixels)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("scale", [1, 2])
def test_an_underscore_can_be_seen_where_it_is_marked_or_in_a_link(work: Work, browser: Any, scale: int, scheme: str) -> None:
    work.branch("a_b", run="echo a_b; echo g_j; exit 1\n")
    url = work.server.ended(work.push_job("a_b"))["url"]
    with screen(browser, 1280, 720, color_scheme=scheme, device_scale_factor=scale) as page:
        page.goto(url)
        page.wait_for_selector("#logtools:visible")
        page.fill("#find", "_")
        page.wait_for_selector("#L2 mark")
        page.mouse.move(0, 0)
        for selector in ("#L1 mark", "#L2 mark"):
            inside = [far for far, _ in runs(column(browser, page, selector))]
            assert inside in ([True, False, True, False, True], [False, True, False]), (
                selector
            )  # around, mark, underscore, mark, around
        assert [far for far, _ in runs(column(browser, page, ".crumbs a:last-child"))] == [False, True, False, True, False]
        page.goto(f"{work.server.url}/search?q=_&repo={work.name}")
        inside = [far for far, _ in runs(column(browser, page, ".hit mark"))]
        assert inside in ([True, False, True, False, True], [False, True, False]), "/search"
