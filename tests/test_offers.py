"""A page offers what the server would do now, and says why where it would not."""

from __future__ import annotations

import html
import re
import shutil
from collections.abc import Callable

from conftest import AUTO, Server, Work, wait_for


def offered(server: Server, path: str) -> list[str]:
    """The buttons of a page."""
    page = server.ask(path, Accept="text/html")
    assert page.status == 200, (path, page.text)
    return re.findall(r"<button[^>]*>([^<]+)</button>", page.text)


def refused(server: Server, page: str, action: str, button: str, **form: str) -> str:
    """Why an action is refused, which its page does not offer, and says in the same words."""
    assert button not in offered(server, page), (page, button)
    answer = server.act(action, **form)
    assert answer.status in (404, 409), (action, answer.body)
    said, shown = answer.json["error"], html.unescape(server.ask(page, Accept="text/html").text)
    assert said in shown or button == "Merge", (page, said)
    return str(said)


def failed(work: Work, name: str) -> int:
    """A job of a branch that has failed."""
    work.branch(name, run="exit 1\n")
    job = work.push_job(name)
    work.server.ended(job)
    return job


def test_retry_is_offered_where_it_is_accepted(work: Work) -> None:
    server, job = work.server, failed(work, "topic")
    for page in (f"/jobs/{job}", f"/r/{work.name}/mr/topic"):
        assert "Retry" in offered(server, page), page
    assert server.act(f"/jobs/{job}/retry").status == 202
    server.idle()


def test_no_retry_is_offered_of_a_job_whose_branch_is_elsewhere(work: Work) -> None:
    server, job = work.server, failed(work, "topic")
    work.branch("topic")
    work.push("topic", force=True)
    assert "topic is at" in refused(server, f"/jobs/{job}", f"/jobs/{job}/retry", "Retry")
    work.push(":topic")
    assert "topic is gone" in refused(server, f"/jobs/{job}", f"/jobs/{job}/retry", "Retry")
    other = failed(work, "other")
    work.push("other:main")
    server.idle()
    refused(server, f"/jobs/{other}", f"/jobs/{other}/retry", "Retry")


def test_no_retry_is_offered_while_the_same_head_is_tested(work: Work) -> None:
    server, gate = work.server, work.gate("end")
    work.branch("topic", run=f"[ -e {gate}-first ] && while [ ! -e {gate} ]; do sleep 0.02; done; exit 1\n")
    first = work.push_job("topic")
    server.ended(first)
    gate.with_name("end-first").touch()
    second = server.act(f"/jobs/{first}/retry").json["id"]
    server.running(second)
    assert f"job {second} is running" in refused(server, f"/jobs/{first}", f"/jobs/{first}/retry", "Retry")
    for page in (f"/jobs/{second}", f"/r/{work.name}/mr/topic"):
        assert "Cancel" in offered(server, page) and "Retry" not in offered(server, page), page
    gate.touch()
    server.ended(second)
    assert "Retry" in offered(server, f"/jobs/{first}") and "Retry" in offered(server, f"/jobs/{second}")


def test_no_retry_is_offered_of_a_deployment_that_base_has_left_behind(work: Work) -> None:
    server = work.server
    (old,) = server.get(f"/jobs?repo={work.name}&kind=post-merge")["jobs"]
    assert "Retry" in offered(server, f"/jobs/{old['id']}")
    work.branch("topic", AUTO, deploy="exit 1\n")
    work.push("topic")
    work.landed("topic")
    server.idle()
    assert "roll back instead" in refused(server, f"/jobs/{old['id']}", f"/jobs/{old['id']}/retry", "Retry")
    newest = server.get(f"/jobs?repo={work.name}&kind=post-merge&limit=1")["jobs"][0]["id"]
    assert {"Retry", "Roll back"} <= set(offered(server, f"/r/{work.name}/deployments"))
    assert server.act(f"/jobs/{newest}/retry").status == 202
    server.idle()


def test_no_retry_is_offered_in_a_repo_that_is_gone(make_server: Callable[..., Server]) -> None:
    server = make_server()
    work = server.repo()
    job = failed(work, "topic")
    path = server.ask(f"/jobs/{job}", Accept="text/html")
    assert ">Retry<" in path.text
    shutil.rmtree(work.path)
    assert "there is no repo" in refused(server, f"/jobs/{job}", f"/jobs/{job}/retry", "Retry")
    log = server.data / "logs/app" / f"{job}.log"
    log.unlink(missing_ok=True)
    assert "Retry makes a new one" not in server.ask(f"/jobs/{job}", Accept="text/html").text


def test_no_merge_is_offered_of_a_conflict_that_is_in_test(work: Work) -> None:
    server, gate = work.server, work.gate("end")
    work.branch("topic", **{".forge/post-merge": "other\n", "run": f"while [ ! -e {gate} ]; do sleep 0.02; done\n"})
    work.branch("calm", run=f"while [ ! -e {gate} ]; do sleep 0.02; done\n")
    work.git("checkout", "-q", "-B", "main", "origin/main")
    work.commit("On base", **{".forge/post-merge": "#!/bin/sh\n"})
    work.push("main")
    calm, topic = work.push_job("calm"), work.push_job("topic")
    server.running(topic)
    page = f"/r/{work.name}/mr/topic"
    assert "it conflicts with main" in refused(server, page, f"{page}/merge", "Merge", head=work.heads()["topic"])
    assert "Merge" in offered(server, f"/r/{work.name}/mr/calm")
    assert server.act(f"/r/{work.name}/mr/calm/merge").status == 202
    gate.touch()
    server.ended(topic)
    server.ended(calm)
    server.idle()
    assert "Merge" not in offered(server, page)


def row_of(server: Server, page: str, job: int) -> str:
    """A deployment in the list of them."""
    text = server.ask(page, Accept="text/html").text
    return html.unescape(text.split(f'data-key="job-{job}"')[1].split("</tr>")[0])


def test_no_rollback_is_offered_to_what_base_has_or_has_lost(work: Work) -> None:
    server, page = work.server, f"/r/{work.name}/deployments"
    start = work.heads()["main"]
    for name in ("one", "two"):
        work.git("checkout", "-q", "-B", "main", "origin/main")
        work.commit(name, app=name)
        work.push("main")
        server.idle()
    two, one, first = server.get(page)["deployments"]
    assert [">Roll back<" in row_of(server, page, job["id"]) for job in (two, one, first)] == [False, True, True]
    assert server.act(f"/r/{work.name}/rollback", commit=start, untested="1").status == 200
    server.idle()
    same = server.act(f"/r/{work.name}/rollback", commit=start)
    row = row_of(server, page, first["id"])
    assert same.status == 409 and "Roll back" not in row and same.json["error"] in row
    assert ">Roll back<" in row_of(server, page, one["id"])
    work.git("checkout", "-q", "-B", "main", start)
    work.commit("Another line", app="other")
    work.push("main", force=True)
    server.idle()
    lost = server.act(f"/r/{work.name}/rollback", commit=one["commit"])
    row = row_of(server, page, one["id"])
    assert lost.status in (404, 409) and ">Roll back<" not in row and "own line" in row
    assert ">Roll back<" in row_of(server, page, first["id"])


def test_no_rollback_is_offered_while_one_is_tested(work: Work) -> None:
    server, page, gate = work.server, f"/r/{work.name}/deployments", work.gate("end")
    waits = f"#!/bin/sh\nwhile [ ! -e {gate} ]; do sleep 0.02; done\n"
    commits = []
    for text in (waits, "#!/bin/sh\n", "#!/bin/sh\ntrue\n"):
        work.git("checkout", "-q", "-B", "main", "origin/main")
        commits.append(work.commit("A change", **{".forge/pre-merge": text}))
        work.push("main")
        server.idle()
    assert offered(server, page).count("Roll back") == 3
    rolling = server.act(f"/r/{work.name}/rollback", commit=commits[0]).json["job"]["id"]
    server.running(rolling)
    again = server.act(f"/r/{work.name}/rollback", commit=commits[1])
    assert again.status == 409 and "Roll back" not in offered(server, page)
    assert f'<a href="/jobs/{rolling}">Job {rolling}</a> tests a rollback' in server.ask(page, Accept="text/html").text
    server.act(f"/jobs/{rolling}/cancel")
    server.ended(rolling)
    wait_for(lambda: offered(server, page).count("Roll back") == 3, "the offer to roll back again")
    gate.touch()
    assert "Retry" in offered(server, f"/jobs/{rolling}")
    server.idle()
