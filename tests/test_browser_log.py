"""The log of a job in a real browser: as it grows, by lines, searched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conftest import Server, Work, needs_browser, wait_for

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
