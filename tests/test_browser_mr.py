"""The page of a merge request in a real browser."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import PASSWORD, Work, needs_browser

pytestmark = needs_browser

LARGE = "".join(f"line {number}\n" for number in range(1, 1001))


@pytest.fixture
def topic(work: Work) -> str:
    """The page of a branch that passed, with a small file and a large one, which is folded."""
    work.branch("topic", "Change much\n\nFor a reason.", **{"large": LARGE, "small": "one\ntwo\n", "dir/with space é": "x\n"})
    work.server.ended(work.push_job("topic"))
    work.server.idle()
    return f"{work.server.url}/r/{work.name}/mr/topic"


def mark_of(page: Any, path: str) -> str:
    return str(page.locator("details.file", has=page.locator("summary code", has_text=path)).first.get_attribute("id"))


def test_what_is_folded_is_fetched_when_it_is_opened(topic: str, work: Work, page: Any) -> None:
    page.goto(topic)
    large = page.locator("details.file").nth(1)
    assert "large" in large.inner_text() and large.get_attribute("open") is None and page.locator("text=+line 900").count() == 0
    large.locator("summary").click()
    page.wait_for_selector("text=+line 900")
    row = page.locator("tr", has_text="+line 900").element_handle()
    work.commit("Another", other="x\n")
    work.server.ended(work.push_job("topic"))
    page.wait_for_selector("details.file >> text=other")
    assert row.evaluate("row => row.isConnected") and page.locator("text=+line 900").is_visible()
    large.locator("summary").click()
    assert not page.locator("text=+line 900").is_visible()
    page.wait_for_load_state("networkidle")


def test_a_link_to_a_line_marks_it_also_in_what_is_folded(topic: str, page: Any) -> None:
    page.goto(topic)
    small, large = mark_of(page, "small"), mark_of(page, "large")
    page.locator(f"#{small}R2 a").click()
    assert page.url.endswith(f"#{small}R2") and page.locator(":target").get_attribute("id") == f"{small}R2"
    marked, plain = (
        page.locator(f"#{small}R{number} + td").evaluate("e => getComputedStyle(e).backgroundColor") for number in (2, 1)
    )
    assert marked != plain
    page.goto("about:blank")
    page.goto(f"{topic}#{large}R900")
    page.wait_for_selector("td:target")
    assert page.locator(":target + td").inner_text() == "+line 900" and page.locator(":target").evaluate(
        "e => e.getBoundingClientRect().top >= 0 && e.getBoundingClientRect().bottom <= innerHeight"
    )


def test_the_split_view_stays_chosen(topic: str, page: Any) -> None:
    page.goto(topic)
    page.get_by_role("link", name="side by side").click()
    page.wait_for_url("**/topic?view=split")
    assert page.locator("table.split").count() == 2 and page.locator("table.unified").count() == 0
    page.locator("details.file").nth(1).locator("summary").click()
    page.wait_for_selector("table.split >> text=+line 900")
    page.get_by_role("link", name="unified").click()
    page.wait_for_selector("table.unified")


def test_merging_with_the_password_and_what_the_page_says_after_it(topic: str, work: Work, page: Any) -> None:
    page.goto(topic)
    page.locator("form[action$=merge] input[type=password]").fill(PASSWORD)
    page.get_by_role("button", name="Merge").click()
    page.wait_for_url("**/history")
    work.landed("topic")
    assert (
        work.server.ask(topic.removeprefix(work.server.url), Accept="text/html").text.count(work.merges()[0]["merge_commit"]) > 1
    )
    work.server.idle()


def test_deleting_a_branch(topic: str, work: Work, page: Any) -> None:
    page.goto(topic)
    page.locator("form[action$=delete] input[type=password]").fill(PASSWORD)
    page.get_by_role("button", name="Delete branch").click()
    page.wait_for_url(f"**/r/{work.name}")
    assert "topic" not in work.heads()
    work.server.idle()


def test_without_javascript_all_lines_can_be_reached(topic: str, browser: Any) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{topic}?view=split")
    assert page.get_by_text("+two").is_visible() and "For a reason." in page.inner_text("main")
    page.locator("details.file").nth(1).locator("summary").click()
    page.get_by_role("link", name="Show its lines").click()
    assert page.locator("table.split").get_by_text("+line 900", exact=True).count() == 1
    page.locator("td >> text='900'").first.click()
    assert page.locator(":target").inner_text() == "900"
    page.get_by_role("link", name="topic").click()
    assert page.url.startswith(f"{topic}?view=split#d") and page.locator("details:target").count() == 1
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_can_be_read(topic: str, browser: Any, scheme: str) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    page = context.new_page()
    for view in ("", "?view=split"):
        page.goto(topic + view)
        page.locator("details.file").nth(1).locator("summary").click()
        page.wait_for_selector("text=+line 900")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        ink, paper = (
            page.locator("td", has_text="+two").last.evaluate(f"e => getComputedStyle(e.closest('.add')).{name}")
            for name in ("color", "backgroundColor")
        )
        assert contrast(ink, paper) >= 4.5, (ink, paper)
    context.close()


def contrast(first: str, second: str) -> float:
    """The contrast of two colours as browsers spell them, as WCAG reckons it."""

    def light(colour: str) -> float:
        parts = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(", ")]
        return sum(
            f * (p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4)
            for f, p in zip((0.2126, 0.7152, 0.0722), parts, strict=True)
        )

    low, high = sorted((light(first), light(second)))
    return (high + 0.05) / (low + 0.05)
