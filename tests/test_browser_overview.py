"""The overview pages in a real browser."""

from __future__ import annotations

from typing import Any

from conftest import AUTO, Work, needs_browser

pytestmark = needs_browser

LONG = "fix/a-name-that-goes-on-and-on-and-on-and-on-and-on-and-on-and-on-and-on"


def test_the_repo_page_follows_what_happens(work: Work, page: Any) -> None:
    page.goto(f"{work.server.url}/r/{work.name}")
    page.evaluate("window.mark = 1")
    assert page.locator("text=No branch is open").count() == 1
    gate = work.gate("go")
    work.branch("topic", AUTO, run=f"until [ -e {gate} ]; do sleep 0.05; done\n")
    job_id = work.push_job("topic")
    row = page.locator('tr[data-key="mr-topic"]')
    row.locator("[data-standing=testing]").wait_for(timeout=15000)
    page.wait_for_function("document.title.startsWith('1 running')")
    assert page.get_attribute("link[rel=icon]", "href") == "/static/running.svg"
    assert page.locator(f".strip a[href='/jobs/{job_id}']").is_visible()
    page.locator("#times summary").click()
    gate.touch()
    work.landed("topic")
    row.wait_for(state="detached", timeout=15000)
    page.locator("svg[aria-labelledby^=timeline] .deploying").first.wait_for(timeout=15000)
    page.wait_for_function("document.title.startsWith('passed')")
    assert page.locator("#times").get_attribute("open") is not None and page.evaluate("window.mark") == 1
    assert page.locator("#times").get_by_text("topic").is_visible()
    work.server.idle()


def test_filters_by_form_and_by_link(work: Work, page: Any) -> None:
    for number in range(9):
        work.branch(f"n{number}", run=f"exit {number % 2}\n")
    work.push(*(f"n{number}" for number in range(9)))
    work.server.idle()
    page.goto(f"{work.server.url}/jobs")
    page.get_by_label("Repo").fill(work.name)
    page.get_by_label("Status").select_option("failed")
    page.get_by_role("button", name="Filter").click()
    page.wait_for_url("**/jobs?*status=failed*")
    assert page.locator("tbody tr").count() == 4 and page.get_by_label("Status").input_value() == "failed"
    assert set(page.locator("tbody [data-status]").all_inner_texts()) == {"failed"}
    page.goto(f"{work.server.url}/r/{work.name}")
    page.get_by_role("link", name="ready 5").click()
    page.wait_for_url("**?show=ready")
    assert page.locator("[data-standing]").all_inner_texts() == ["ready"] * 5
    page.get_by_role("link", name="all 9").click()
    page.wait_for_url(f"**/r/{work.name}")
    assert page.locator("[data-standing]").first.inner_text() == "needs a fix"


def test_the_overview_on_a_phone_and_in_the_dark(work: Work, browser: Any) -> None:
    work.branch("landed", AUTO)
    work.push("landed")
    work.landed("landed")
    work.branch(LONG, "A subject " * 12)
    work.push(LONG)
    work.server.idle()
    work.branch("slow", run="sleep 60\n")
    running = work.push_job("slow")
    work.server.running(running)
    repo = f"/r/{work.name}"
    light = set()
    for scheme in ("light", "dark"):
        context = browser.new_context(viewport={"width": 360, "height": 740}, color_scheme=scheme)
        page = context.new_page()
        for path in ("/", "/jobs", repo, f"{repo}/history", f"{repo}/deployments"):
            page.goto(work.server.url + path)
            assert page.evaluate("document.documentElement.scrollWidth") <= 360, path
            inside = "[...document.querySelectorAll('.rows td')].every(td => td.getBoundingClientRect().right <= 360)"
            assert page.evaluate(inside), path
        page.goto(work.server.url + repo)
        colours = "[...document.querySelectorAll('.drawing text, .drawing .testing')].map(e => getComputedStyle(e).fill)"
        light.add(tuple(page.evaluate(colours)))
        drawing = page.locator("svg.drawing").first
        assert drawing.bounding_box()["width"] <= 340
        assert page.get_by_role("img", name="Where the time of the last 3 pushes went").count() == 1
        context.close()
    assert len(light) == 2
    work.server.act(f"/jobs/{running}/cancel")
    work.server.ended(running)
