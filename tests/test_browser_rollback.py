"""The way back in a real browser."""

from __future__ import annotations

from typing import Any

from conftest import AUTO, PASSWORD, Work, needs_browser, wait_for

pytestmark = needs_browser


def land(work: Work, name: str, text: str) -> str:
    work.branch(name, AUTO, app=text)
    work.push(name)
    work.landed(name)
    work.server.idle()
    return work.heads()["main"]


def test_one_click_goes_back_and_another_lifts_the_hold(work: Work, page: Any) -> None:
    good, bad = land(work, "good", "1\n"), land(work, "bad", "2\n")
    page.set_viewport_size({"width": 360, "height": 800})
    page.goto(f"{work.server.url}/r/{work.name}/deployments")
    row = page.locator("tr", has_text="good")
    page.get_by_label("Password").first.fill(PASSWORD)
    page.keyboard.press("Enter")  # it must not choose a deployment by itself
    assert work.heads()["main"] == bad
    row.get_by_role("button", name="Roll back").click()
    page.wait_for_selector("text=On hold")
    wait_for(lambda: work.merges()[0]["how"] == "rollback" and work.merges()[0]["head"] == good, "the rollback")
    page.wait_for_selector("text=rolled back")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    work.server.idle()
    work.branch("again", AUTO, app="2\n")
    work.push("again")
    work.server.idle()
    page.goto(f"{work.server.url}/r/{work.name}")
    page.get_by_role("link", name="see and lift").click()
    assert page.url.endswith("/deployments#holds")
    page.goto(f"{work.server.url}/r/{work.name}/mr/again")
    form = page.locator("form", has_text="Lift the hold")
    form.get_by_label("Password").fill(PASSWORD)
    form.get_by_role("button", name="Lift the hold").click()
    work.landed("again")
    work.server.idle()
    page.goto(f"{work.server.url}/r/{work.name}/deployments")
    page.get_by_role("link", name="what changed").first.click()
    assert page.locator("td", has_text="+2").count() and page.locator("h1").inner_text().startswith("What job")
    page.wait_for_load_state("networkidle")
