"""The pages in a real browser."""

from __future__ import annotations

from typing import Any

from conftest import AUTO, PASSWORD, Work, needs_browser

pytestmark = needs_browser

COLOURS = r"""printf '\033[1;31mred\033[0m \033[38;2;250;120;0mtrue\033[0m plain <b>\n'
printf '\033]8;;http://evil.example/\033\\a link\033]8;;\033\\ and javascript \033]8;;javascript:alert(1)\007here\033]8;;\007\n'
printf '10%%\r55%%\r100%%\n'
exit 3
"""


def test_the_log_is_coloured_and_only_web_links_in_it_can_be_clicked(work: Work, page: Any) -> None:
    work.branch("topic", run=COLOURS)
    job = work.server.ended(work.push_job("topic"))
    page.goto(f"{job['url']}#L2")
    page.wait_for_selector("#log .ansi-red-fg")
    lines = page.locator("#log .line > span").all_inner_texts()
    assert lines == ["red true plain <b>", "a link (http://evil.example/) and javascript here", "100%"]
    assert page.eval_on_selector("#L1 .ansi-red-fg", "e => getComputedStyle(e).fontWeight") == "700"
    assert page.locator("#L1 span span", has_text="true").evaluate("e => getComputedStyle(e).color") == "rgb(250, 120, 0)"
    assert page.locator("#log span a").evaluate_all("links => links.map((a) => [a.href, a.text])") == [
        ["http://evil.example/", "a link"]
    ]
    assert page.get_attribute("#log span a", "rel") == "noreferrer noopener nofollow"
    assert page.locator("[data-status=failed]").first.is_visible()


def test_a_running_job_is_followed_to_its_end(work: Work, page: Any) -> None:
    work.branch("topic", run="echo one; sleep 2; echo two\n")
    job_id = work.push_job("topic")
    work.server.running(job_id)
    page.goto(f"{work.server.url}/jobs/{job_id}")
    page.wait_for_selector("#log >> text=one", timeout=5000)
    assert page.locator("[data-status=running]").count() >= 1
    page.wait_for_selector("[data-status=passed]", timeout=15000)
    assert page.locator("#log .line > span").all_inner_texts() == ["one", "two"]


def test_a_line_that_has_not_ended_is_shown(work: Work, page: Any) -> None:
    work.branch("topic", run=r"printf '\033[32mgreen\033[0m 10%%'; sleep 3; printf ' 20%%\rdone\n'" + "\n")
    job_id = work.push_job("topic")
    work.server.running(job_id)
    page.goto(f"{work.server.url}/jobs/{job_id}")
    page.wait_for_selector("#log .ansi-green-fg", timeout=5000)
    assert page.locator("#log .line > span").all_inner_texts() == ["green 10%"]
    page.wait_for_selector("[data-status=passed]", timeout=15000)
    assert page.locator("#log .line > span").all_inner_texts() == ["done"]


def test_merging_with_the_password_and_with_a_session(work: Work, page: Any) -> None:
    for name in ("first", "second"):
        work.branch(name)
        work.push(name)
    work.server.idle()
    page.goto(f"{work.server.url}/r/{work.name}/mr/first")
    page.locator("form", has_text="Merge").first.locator("input[type=password]").fill(PASSWORD)
    page.get_by_role("button", name="Merge").click()
    page.wait_for_url("**/history")
    assert "first" in page.inner_text("main")
    page.get_by_role("link", name="Log in").click()
    page.get_by_label("Merge password").fill(PASSWORD)
    page.locator("main").get_by_role("button", name="Log in").click()
    page.get_by_role("button", name="Log out").wait_for()
    page.goto(f"{work.server.url}/r/{work.name}/mr/second")
    assert page.locator("input[type=password]").count() == 0
    page.get_by_role("button", name="Merge").click()
    work.landed("second")
    work.server.idle()


def test_without_javascript_everything_is_there(work: Work, browser: Any) -> None:
    work.branch("topic", AUTO, run=COLOURS)
    job = work.server.ended(work.push_job("topic"))
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(job["url"])
    assert page.locator("#log .line > span").all_inner_texts() == ["red true plain <b>", "a link and javascript here", "100%"]
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Retry").click()
    page.wait_for_url(lambda url: url != job["url"])
    assert page.locator("h1").inner_text().startswith("Job ")
    context.close()
    work.server.idle()


def test_nothing_scrolls_sideways_on_a_phone(work: Work, browser: Any) -> None:
    work.branch("a-branch-with-a-name-that-goes-on-and-on-and-on-and-on-and-on", run=f"echo {'x' * 300}\n")
    job_id = work.push_job("a-branch-with-a-name-that-goes-on-and-on-and-on-and-on-and-on")
    work.server.ended(job_id)
    work.branch("running", run="sleep 60\n")
    running = work.push_job("running")
    work.server.running(running)
    context = browser.new_context(viewport={"width": 360, "height": 740})
    page = context.new_page()
    mr = f"/r/{work.name}/mr/a-branch-with-a-name-that-goes-on-and-on-and-on-and-on-and-on"
    for path in ("/", "/jobs", f"/jobs/{job_id}", f"/r/{work.name}", mr, f"/r/{work.name}/history", "/login"):
        page.goto(work.server.url + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, path
    context.close()
    work.server.act(f"/jobs/{running}/cancel")
    work.server.ended(running)


def test_a_page_follows_what_happens_without_losing_what_is_typed(work: Work, page: Any) -> None:
    work.branch("topic")
    work.server.ended(work.push_job("topic"))
    page.goto(f"{work.server.url}/r/{work.name}/mr/topic")
    page.evaluate("window.mark = 1")
    page.locator("details.file > summary").click()
    field = page.locator("form[action$=merge] input[type=password]")
    field.fill("half")
    work.commit("Another change", other="more")
    work.server.ended(work.push_job("topic"))
    page.wait_for_selector("text=Another change")
    assert page.locator("details.file").first.get_attribute("open") is None  # it was folded
    assert field.input_value() == "half" and page.evaluate("window.mark === 1 && document.activeElement.type === 'password'")
    assert page.input_value("form[action$=merge] input[name=head]") == work.heads()["topic"]


def test_a_running_job_is_canceled_with_its_button(work: Work, page: Any) -> None:
    work.branch("topic", run="echo begun; sleep 60\n")
    job_id = work.push_job("topic")
    work.server.running(job_id)
    page.goto(f"{work.server.url}/jobs/{job_id}")
    form = page.locator("form[action$=cancel]")
    form.locator("input[type=password]").fill(PASSWORD)
    form.get_by_role("button", name="Cancel").click()
    page.wait_for_selector("h1 [data-status=canceled]")
    assert work.server.ended(job_id)["status"] == "canceled" and form.count() == 0
    assert page.title().startswith("canceled") and page.get_by_role("button", name="Retry").is_visible()
