"""The pages and their JSON, in process where no socket matters, and who may do what."""

from __future__ import annotations

import http.client
import io
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote, unquote, urlsplit
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest
from conftest import AUTO, PASSWORD, Server, Work, wait_for

import forge

JOB_FIELDS = """id repo branch kind status command commit base tested tree heads created_at started_at finished_at duration
exit_code reason retry_of reused_from digest log_size url log_url""".split()
MR_FIELDS = "repo branch head base merge_base ahead behind conflicts auto_merge job mergeable blockers url".split()
MERGE_FIELDS = "repo branch head merge_commit parent tree job how merged_at".split()


def test_the_json_of_everything(work: Work) -> None:
    head = work.branch("topic", AUTO, run="sleep 2\n")
    job_id = work.push_job("topic")
    work.server.running(job_id)
    running = work.server.get(f"/jobs/{job_id}")
    assert set(running) == {*JOB_FIELDS, "cpu_percent", "rss_bytes", "processes"}
    assert running["heads"] == [{"branch": "topic", "commit": head}]
    assert running["url"] == f"{work.server.url}/jobs/{job_id}" and running["log_url"] == f"{running['url']}/log"
    view = work.mr("topic")
    assert set(MR_FIELDS) <= set(view)
    assert (view["ahead"], view["behind"], view["auto_merge"], view["mergeable"]) == (1, 0, True, False)
    assert view["job"]["id"] == job_id and view["merge_base"] == view["job"]["base"]
    job = work.server.ended(job_id)
    assert set(job) == set(JOB_FIELDS) and job["command"] == ".forge/pre-merge" and 1.9 < job["duration"] < 20
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", job["finished_at"])
    assert job["created_at"] <= job["started_at"] <= job["finished_at"]
    wait_for(work.merges, "the merge")
    merge = work.merges()[0]
    assert list(merge) == MERGE_FIELDS and merge["tree"] == work.bare("rev-parse", "main^{tree}") == job["tree"]
    page = work.server.get(f"/r/{work.name}")
    assert set(page) == {"repo", "base", "head", "merge_requests", "holds", "trouble"} and page["head"] == merge["merge_commit"]
    gone = work.server.ask(f"/r/{work.name}/mr/topic")
    assert gone.status == 404 and gone.json["merge"]["merge_commit"] == merge["merge_commit"]
    assert work.name in [repo["repo"] for repo in work.server.get("/")["repos"]]


def test_a_job_that_ends_while_it_is_looked_at_still_has_its_figures() -> None:
    job = forge.Job(1, "app", "topic", forge.PRE, "1" * 40, [], "2026-01-01T00:00:00Z", status="running")

    class Running(dict[int, forge.Running]):
        """The jobs that run, of which one ends now."""

        def get(self, key: int, default: object = None) -> Any:
            job.status = "passed"

    engine = SimpleNamespace(state=forge.State(), url="http://localhost", running=Running())
    view = forge.job_view(engine, job)  # type: ignore[arg-type]
    assert view["status"] == "running" and {"cpu_percent", "rss_bytes", "processes"} <= view.keys()


def test_jobs_are_listed_newest_first_with_filters_and_pages(work: Work) -> None:
    for number in range(3):
        work.branch(f"n{number}", run=f"exit {number}\n")
        work.push(f"n{number}")
    work.server.idle()
    found = work.server.get(f"/jobs?repo={work.name}")["jobs"]
    ids = [job["id"] for job in found]
    assert len(ids) == 4 and ids == sorted(ids, reverse=True)
    assert [job["id"] for job in work.server.get(f"/jobs?repo={work.name}&limit=2&before={ids[1]}")["jobs"]] == ids[2:4]
    assert [job["branch"] for job in work.server.get(f"/jobs?repo={work.name}&status=failed")["jobs"]] == ["n2", "n1"]
    assert [job["kind"] for job in work.server.get(f"/jobs?repo={work.name}&kind=post-merge")["jobs"]] == ["post-merge"]
    assert [job["branch"] for job in work.server.get(f"/jobs?repo={work.name}&branch=n0")["jobs"]] == ["n0"]
    assert work.server.get("/jobs?repo=nope")["jobs"] == []


def test_the_log_by_ranges_and_offsets(work: Work) -> None:
    work.branch("topic", run="printf 0123456789\n")
    job_id = work.server.ended(work.push_job("topic"))["id"]
    ask = work.server.ask
    whole = ask(f"/jobs/{job_id}/log")
    assert whole.body == b"0123456789" and whole.headers["Content-Type"] == "text/plain; charset=utf-8"
    part = ask(f"/jobs/{job_id}/log", Range="bytes=2-4")
    assert (part.status, part.body, part.headers["Content-Range"]) == (206, b"234", "bytes 2-4/10")
    rest = ask(f"/jobs/{job_id}/log?offset=7")
    assert rest.body == b"789" and rest.headers["X-Job-Status"] == "passed"
    none = ask(f"/jobs/{job_id}/log?offset=10&wait=1")
    assert (none.status, none.body) == (200, b"") and ask(f"/jobs/{job_id}/log?offset=99").body == b""
    assert ask(f"/jobs/{job_id}/log?follow=1").body == b"0123456789"
    assert ask(f"/jobs/{job_id}/log?offset=x").status == 400
    (work.server.data / f"logs/{work.name}/{job_id}.log").unlink()
    assert ask(f"/jobs/{job_id}/log").status == 410 and ask(f"/jobs/{job_id}/log?offset=3").status == 410
    assert "was pruned" in ask(f"/jobs/{job_id}", Accept="text/html").text


RANGES = {
    "0123": ["bytes=0-3", "BYTES=0-3", "bytes=0-3,", "bytes= 0-3 , 50-60", f"bytes={'0' * 30}-3"],
    "4": ["bytes=4-4"],
    "789": ["bytes=-3", "bytes=7-", "bytes=7-99", "bytes=7-" + "9" * 5000],
    "0123456789": ["bytes=0-", "bytes=-10", "bytes=-" + "9" * 5000],
}
UNSATISFIABLE = ["bytes=10-", "bytes=10-20", "bytes=-0", "bytes=99-,50-60", "bytes=" + "9" * 5000 + "-"]
NO_BYTE_RANGES = [
    "lines=1-2",
    "bytes",
    "bytes=",
    "bytes=-",
    "bytes=5-2",
    "bytes=0-1,5-2",
    "bytes=a-b",
    "bytes=0-1;2-3",
    "bytes=1",
]
NO_BYTE_RANGES += [
    "bytes 0-1",
    "=0-1",
    "0-1",
    "bytes=0x1-2",
    "bytes=+1-2",
    "bytes=1--2",
    "bytes=--2",
    "bytes=\u0661-",
    "items=0-",
]
NO_BYTE_RANGES += ["bytes=0-1,4-5", "bytes=0-4,2-8", "bytes=" + ",".join(["0-0"] * 2000), "bytes=0-1,x", ",", "bytes=,"]


def test_what_is_no_byte_range_is_passed_over(work: Work) -> None:
    """RFC 9110, 14.2: other units and what is malformed; of several ranges that are there the whole is sent."""
    work.branch("topic", run="printf 0123456789\n")
    log = f"/jobs/{work.server.ended(work.push_job('topic'))['id']}/log"
    ask = partial(work.server.ask, log)
    for body, given in ((body, given) for body, ranges in RANGES.items() for given in ranges):
        answer = ask(Range=given)
        assert (answer.status, answer.text) == (206, body), given[:60]
    for given in UNSATISFIABLE:
        answer = ask(Range=given)
        assert (answer.status, answer.headers["Content-Range"], set(answer.json)) == (416, "bytes */10", {"error"}), given[:60]
    for given in NO_BYTE_RANGES:
        answer = ask(Range=given.encode().decode("latin-1"))
        assert (answer.status, answer.body, answer.headers["Content-Range"]) == (200, b"0123456789", None), given[:60]
    tag = ask().headers["ETag"]
    assert ask(Range="bytes=99-", If_None_Match=tag).status == 304
    for other in ('"other"', f"W/{tag}", "Mon, 01 Jan 2024 00:00:00 GMT"):
        assert [ask(Range=given, If_Range=other).status for given in ("bytes=2-4", "bytes=99-")] == [200, 200], other
    assert [ask(Range=given, If_Range=tag).status for given in ("bytes=2-4", "bytes=99-")] == [206, 416]
    assert [ask(Range="lines=1-2", Accept=accept).status for accept in ("text/html", "*/*")] == [200, 200]


def test_an_empty_log_has_no_ranges(work: Work) -> None:
    work.branch("topic", run="true\n")
    log = f"/jobs/{work.server.ended(work.push_job('topic'))['id']}/log"
    for given in ("bytes=0-", "bytes=-5", "bytes=5-", "lines=1-2"):
        answer = work.server.ask(log, Range=given)
        assert (answer.status, answer.body) == (200, b""), given


@pytest.mark.parametrize("given", ["lines=1-2", "bytes=5-2", "bytes=x"])
def test_of_a_static_file_too_what_is_no_byte_range_is_passed_over(shared: Server, given: str) -> None:
    whole = shared.ask("/static/forge.css")
    answer = shared.ask("/static/forge.css", Range=given)
    assert (answer.status, answer.body) == (200, whole.body)
    assert shared.ask("/static/forge.css", Range=f"bytes={len(whole.body)}-").status == 416


ACCEPTS = (
    None,
    "*/*",
    "text/html",
    "application/json",
    "text/plain",
    "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
)


def test_head_answers_as_get_would(make_server: Callable[..., Server]) -> None:
    server = make_server()
    work = server.repo()
    work.branch("topic", run="printf 0123456789; exit 1\n")
    job = server.ended(work.push_job("topic"))["id"]
    work.branch("done", AUTO)
    work.push("done")
    work.landed("done")
    server.idle()
    deployment = server.get("/jobs?kind=post-merge&limit=1")["jobs"][0]["id"]
    config = forge.load_config(server.environ)
    rules = [route.rule for route in forge.Web(SimpleNamespace(config=config)).app.routes if route.method == "GET"]  # type: ignore[arg-type]
    names = {"repo": "app", "branch:path": "topic", "job_id": str(job), "path:path": "forge.css"}
    paths = [re.sub("<([^>]*)>", lambda word: names[word[1]], rule) for rule in rules]
    assert len(paths) > 15
    paths += [f"/r/app/deployments/{deployment}", f"/jobs/{job}?facts=1", "/r/app?show=failed", "/search?q=5", "/jobs?status=x"]
    paths += [f"/jobs/{job}/log?{query}" for query in ("offset=3", "offset=99", "line=1", "before=5", "find=5", "follow=1")]
    paths += ["/r/app/info/refs?service=git-upload-pack", "/r/app.git/info/refs?service=git-receive-pack", "/r/app/mr/done"]
    paths += [
        "/nope",
        "/jobs/99",
        "/r/nope",
        "/static/nope.css",
        "/r/app/mr/topic/merge",
        "/jobs/1/cancel",
        "/hooks/post-receive",
    ]
    paths += ["/%ff", "/jobs?before=x"]
    tag = server.ask(f"/jobs/{job}/log").headers["ETag"]
    asked: list[tuple[str, dict[str, str]]] = [(path, {"Accept": each} if each else {}) for path in paths for each in ACCEPTS]
    asked += [(f"/jobs/{job}/log", {"Range": given}) for given in ("bytes=2-4", "bytes=99-", "lines=1-2")]
    asked += [(f"/jobs/{job}/log", {"If-None-Match": tag}), ("/", {"Host": "evil.example"}), ("/", {"Host": "localhost"})]
    for path, headers in asked:
        got, told = (without_body(server, method, path, headers) for method in ("GET", "HEAD"))
        assert got == told, (path, headers)
    private = make_server("private", FORGE_PRIVATE="1")
    for path in ("/", "/jobs/1/log", "/r/app/info/refs?service=git-upload-pack", "/metrics", "/healthz", "/static/forge.css"):
        assert without_body(private, "GET", path, {}) == without_body(private, "HEAD", path, {}), path


def without_body(server: Server, method: str, path: str, headers: dict[str, str]) -> dict[str, str]:
    """Status and headers of an answer, without the time and what follows from figures that change between two requests."""
    host, port = server.url[7:].split(":")
    given = {"Host": "localhost", "Connection": "close", **headers}
    request = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in given.items()) + "\r\n"
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(request.encode())
        head, _, body = b"".join(iter(lambda: connection.recv(1 << 16), b"")).partition(b"\r\n\r\n")
    assert method == "GET" or body == b"", (path, body)
    first, *lines = head.decode("latin-1").split("\r\n")
    found = {"status": first} | dict(line.split(": ", 1) for line in lines)
    figures = path == "/metrics" or (path == "/" and found["Content-Type"] == "application/json")
    changing = {"Date", *(["Content-Length", "Etag"] if figures else [])}
    return {name: value for name, value in found.items() if name not in changing}


def test_head_waits_for_nothing(work: Work) -> None:
    work.branch("topic", run=f"while [ ! -e {work.gate('end')} ]; do sleep 0.05; done\n")
    job = work.push_job("topic")
    work.server.running(job)
    began = time.monotonic()
    for _ in range(forge.WEB_THREADS):
        told = without_body(work.server, "HEAD", f"/jobs/{job}/log?follow=1", {})
        assert told["X-Job-Status"] == "running" and "Content-Length" not in told
    assert time.monotonic() - began < 10
    work.gate("end").touch()
    work.server.ended(job)


@pytest.mark.parametrize(
    "odd", [b"Host: other\r\n", b"Content-Length: 9999999\r\n", b"X: a\r\n b\r\n", b"Content-Length: 1, 2\r\n"]
)
def test_a_refused_head_has_no_body_either(shared: Server, odd: bytes) -> None:
    host, port = shared.url[7:].split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"HEAD / HTTP/1.1\r\nHost: localhost\r\n" + odd + b"\r\n")
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert answer[9:11] in (b"40", b"41") and answer.partition(b"\r\n\r\n")[2] == b""


def test_the_log_grows_while_it_is_followed(work: Work) -> None:
    work.branch("topic", run="echo one; sleep 0.6; echo two\n")
    job_id = work.push_job("topic")
    assert work.server.ask(f"/jobs/{job_id}/log?follow=1").body == b"one\ntwo\n"
    work.branch("slow", run="sleep 0.5; echo late\n")
    job_id = work.push_job("slow")
    work.server.running(job_id)
    answer = work.server.ask(f"/jobs/{job_id}/log?offset=0&wait=1")
    assert answer.body == b"late\n"


def test_a_pending_job_has_an_empty_log(make_server: Callable[..., Server]) -> None:
    server = make_server(FORGE_MAX_JOBS="1")
    work = server.repo()
    work.branch("one", run="sleep 60\n")
    work.branch("two")
    first, second = work.push_job("one"), work.push_job("two")
    answer = server.ask(f"/jobs/{second}/log?offset=0")
    assert (answer.status, answer.body, answer.headers["X-Job-Status"]) == (200, b"", "pending")
    assert server.ask(f"/jobs/{second}/log").status == 200
    server.act(f"/jobs/{second}/cancel")
    assert server.ended(second)["status"] == "canceled" and server.ask(f"/jobs/{second}/log").body == b""
    server.act(f"/jobs/{first}/cancel")
    server.ended(first)


PAGES = ("/", "/jobs", "/login", "/r/{repo}", "/r/{repo}/history", "/r/{repo}/mr/topic", "/jobs/{job}", "/nope")


def test_every_page_says_what_it_should_and_loads_only_from_here(work: Work) -> None:
    work.branch(
        "topic", "Add <b>bold</b> & more\n\nBody text", run="printf '\\033[31mred\\033[0m <script>alert(1)</script>\\n'; exit 1\n"
    )
    job_id = work.push_job("topic")
    work.server.ended(job_id)
    work.server.idle()
    pages = {page: work.server.ask(page.format(repo=work.name, job=job_id), Accept="text/html") for page in PAGES}
    for page, answer in pages.items():
        html = answer.text
        assert answer.status == (404 if page == "/nope" else 200), page
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        assert "script-src 'self'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff" and answer.headers["Referrer-Policy"] == "same-origin"
        assert not re.search(r"""(?:src|href|action)=["'](?!/|#)""", html), page
        assert "<script>" not in html and "style=" not in html and "<b>bold" not in html
        assert "{{" not in html and "None" not in html, page
    job = pages["/jobs/{job}"].text
    assert 'id="L1"' in job and "red &lt;script&gt;" in job and "\x1b" not in job and 'data-status="failed"' in job
    assert ">Retry</button>" in job and "exit code 1" in job
    mr = pages["/r/{repo}/mr/topic"].text
    assert "Add &lt;b&gt;bold&lt;/b&gt; &amp; more" in mr and f"/jobs/{job_id}#log" in mr and "+printf" in mr
    assert ">Delete branch</button>" in mr and ">Merge</button>" not in mr


HOSTILE = "<i>&'\""


def test_everything_foreign_is_escaped_on_every_page(work: Work) -> None:
    branch = "<i>&'\"x"
    work.bare("config", "forge.preMerge", f"printf '%s' \"{HOSTILE[:-1]}\"; exit 1 # {HOSTILE}")
    work.branch(branch, f"Subject {HOSTILE}\n\nBody {HOSTILE}", **{f"file{HOSTILE[:4]}".replace("/", ""): f"{HOSTILE}\n"})
    work.git("commit", "-q", "--amend", "--no-edit", f"--author=Author {HOSTILE[1:2]}i{HOSTILE[3:]} <a@b>")
    job_id = work.push_job(f"refs/heads/{branch}:refs/heads/{branch}")
    work.server.ended(job_id)
    work.bare("config", "forge.preMerge", "true")
    work.branch(f"{branch}2", "Another")
    work.push(f"refs/heads/{branch}2:refs/heads/{branch}2", options=("merge", "wait"))
    work.bare("config", "forge.timeout", f"{HOSTILE}")
    work.branch(f"{branch}3", "A third")
    odd = work.server.ended(work.push_job(f"refs/heads/{branch}3:refs/heads/{branch}3"))
    assert "<i>&" in odd["reason"]
    work.server.idle()
    quoted = [quote(name) for name in (branch, f"{branch}2", f"{branch}3")]
    pages = ["/", "/jobs", f"/jobs?branch={quoted[0]}", "/jobs?repo=%3Ci%3E", f"/r/{work.name}", f"/r/{work.name}/history"]
    pages += [f"/r/{work.name}/mr/{name}" for name in quoted] + [
        f"/jobs/{job_id}",
        f"/jobs/{odd['id']}",
        "/r/%3Ci%3E",
        "/jobs/%3Ci%3E",
    ]
    pages += ["/jobs?status=%3Ci%3E", "/login?to=%22%3E%3Ci%3E"]
    for page in pages:
        html = work.server.ask(page, Accept="text/html").text
        assert "<i>" not in html and "&amp;lt;" not in html, page
    assert all("&lt;i&gt;" in work.server.ask(page, Accept="text/html").text for page in pages if page not in ("/",)), pages


def test_running_pages_refresh_without_javascript(work: Work) -> None:
    work.branch("topic", run="sleep 60\n")
    job_id = work.push_job("topic")
    work.server.running(job_id)
    for page in (f"/jobs/{job_id}", "/jobs", f"/r/{work.name}/mr/topic"):
        html = work.server.ask(page, Accept="text/html").text
        assert '<noscript><meta http-equiv="refresh"' in html, page
    assert ">Cancel</button>" in work.server.ask("/jobs", Accept="text/html").text
    answer = work.server.ask(f"/jobs/{job_id}/cancel", {"password": PASSWORD}, Accept="text/html")
    assert "is being stopped" in answer.text or "canceled" in answer.text  # the redirect was followed
    work.server.ended(job_id)


# -- who may do what ---------------------------------------------------------------------------------


@pytest.fixture
def branch(work: Work) -> str:
    """An open branch's page."""
    work.branch("topic")
    work.server.ended(work.push_job("topic"))
    return f"/r/{work.name}/mr/topic"


def test_actions_need_somebody(work: Work, branch: str) -> None:
    for action in (f"{branch}/merge", f"{branch}/delete", "/jobs/1/cancel", "/jobs/1/retry"):
        assert work.server.ask(action, {}).status == 401, action
    assert work.server.ask(f"{branch}/merge", {"password": "wrong"}).status == 401
    assert work.server.ask(f"{branch}/merge?password={PASSWORD.replace(' ', '+')}", {}).status == 401
    hook_token = (work.server.data / "hook-token").read_text().strip()
    assert work.server.ask(f"{branch}/merge", {}, Authorization=f"Bearer {hook_token}").status == 401
    token = (work.server.data / "token").read_text().strip()
    assert work.server.ask(f"{branch}/merge", {}, Authorization=f"Bearer {token}").status == 200


def test_no_action_goes_without_somebody(shared: Server) -> None:
    open_to_all = {"/login", "/logout", "/hooks/post-receive", "/r/app/git-upload-pack", "/r/app/git-receive-pack"}
    config = forge.load_config(shared.environ)
    rules = [route.rule for route in forge.Web(SimpleNamespace(config=config)).app.routes if route.method == "POST"]  # type: ignore[arg-type]
    paths = {re.sub(r"<(\w+)[^>]*>", lambda part: {"repo": "app", "job_id": "1"}.get(part[1], "topic"), rule) for rule in rules}
    assert open_to_all < paths and len(paths) >= 12
    for path in paths - open_to_all:
        for form in ({}, {"password": "", "head": "x"}):
            assert shared.ask(path, form).status == 401, path
    assert shared.ask("/hooks/post-receive", {}).status == 401


def test_an_author_and_what_else_git_says_is_escaped(work: Work) -> None:
    author = "A&lt;b&gt;\"'onload=x"

    def push(name: str) -> None:
        work.branch(name, "Subject &lt;s&gt;")
        work.git("commit", "-q", "--amend", "--no-edit", f"--author={author} <a@b>")
        work.server.ended(work.push_job(name))

    push("first")
    work.server.act(f"/r/{work.name}/mr/first/merge")
    work.server.idle()
    deployment = work.server.get(f"/jobs?repo={work.name}&kind=post-merge&limit=1")["jobs"][0]["id"]
    push("second")
    for page in ("", "/mr/second", "/deployments", f"/deployments/{deployment}"):
        html = work.server.ask(f"/r/{work.name}{page}", Accept="text/html").text
        assert "A&amp;lt;b&amp;gt;&quot;&#039;onload=x" in html, page
        assert "onload=x" not in html.replace("&#039;onload=x", "") and "&lt;s&gt;" not in html, page
    work.server.idle()


def test_who_was_refused_comes_back_to_the_page_after_the_login(work: Work, branch: str) -> None:
    page = raw(work.server, "POST", f"{branch}/merge", "", Accept="text/html").text
    address = unquote(page.split('<p><a href="/login?to=')[1].split('"')[0])
    assert work.server.ask(address, Accept="text/html").status == 200 and address == quote(branch)


def test_the_password_as_bearer(work: Work, branch: str) -> None:
    assert work.server.ask(f"{branch}/delete", {}, Authorization=f"Bearer {PASSWORD}").status == 200


def test_a_session(work: Work, branch: str) -> None:
    answer = raw(work.server, "POST", "/login", f"password={PASSWORD.replace(' ', '+')}", Accept="text/html")
    cookie = answer.headers["Set-Cookie"]
    assert answer.status == 303 and "HttpOnly" in cookie and "SameSite=strict" in cookie
    session = cookie.split(";")[0]
    assert (
        raw(work.server, "POST", f"{branch}/merge", "", Cookie=session[:-1] + ("0" if session[-1] != "0" else "1")).status == 401
    )
    for path in ("/", "/login", "/logout"):
        assert ">Log out<" in raw(work.server, "GET", path, Cookie=session, Accept="text/html").text
    assert 'type="password"' not in raw(work.server, "GET", branch, Cookie=session, Accept="text/html").text
    assert raw(work.server, "POST", f"{branch}/merge", "", Cookie=session).status == 200
    assert raw(work.server, "POST", "/logout", "", Cookie=session).status == 200
    assert raw(work.server, "POST", "/jobs/1/retry", "", Cookie=session).status == 401


def test_too_many_wrong_passwords(make_server: Callable[..., Server]) -> None:
    server = make_server()
    codes = [server.ask("/login", {"password": "guess"}).status for _ in range(12)]
    assert codes == [401] * 10 + [429] * 2
    refused = server.ask("/login", {"password": PASSWORD})
    assert refused.status == 429 and 1 <= int(refused.headers["Retry-After"]) <= 60
    token = (server.data / "token").read_text().strip()
    assert server.ask("/jobs/1/cancel", {}, Authorization=f"Bearer {token}").status == 404
    assert "guess" not in server.log and "guess" not in str(server.journal())


def test_a_password_from_a_file_is_read_when_used(make_server: Callable[..., Server], tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("first\n")
    server = make_server(FORGE_MERGE_PASSWORD_FILE=str(secret))
    assert server.ask("/login", {"password": PASSWORD}).status == 401
    assert server.ask("/login", {"password": "first"}).status == 200
    secret.write_text("sécond\n")
    assert server.ask("/login", {"password": "first"}).status == 401
    assert server.ask("/login", {"password": "sécond"}).status == 200
    secret.unlink()
    assert server.ask("/login", {"password": "sécond"}).status == 503


def test_without_a_password_only_the_token_acts(make_server: Callable[..., Server]) -> None:
    server = make_server(FORGE_MERGE_PASSWORD="")
    refused = server.ask("/login", {"password": "x"})
    assert refused.status == 401 and "no merge password" in refused.json["error"]


def test_a_session_ends_after_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = forge.load_config({"FORGE_DATA_DIR": str(tmp_path), "FORGE_MERGE_PASSWORD": PASSWORD})
    for name in ("token", "hook-token", "session-key"):
        (tmp_path / name).write_text("x")
    door = forge.Door(config)
    cookie = door.log_in()
    assert door.knows(cookie) and forge.Door(config).knows(cookie)
    later = time.time() + forge.SESSION_SECONDS + 1
    monkeypatch.setattr(forge.time, "time", lambda: later)
    assert not door.knows(cookie)


def test_requests_from_other_sites(work: Work, branch: str) -> None:
    token = (work.server.data / "token").read_text().strip()
    bearer = {"Authorization": f"Bearer {token}"}
    assert raw(work.server, "POST", f"{branch}/merge", "", **bearer, Origin="https://evil.example").status == 403
    assert raw(work.server, "POST", f"{branch}/merge", "", **bearer, Origin="null").status == 403
    assert raw(work.server, "POST", f"{branch}/merge", "", **bearer, Sec_Fetch_Site="cross-site").status == 403
    assert raw(work.server, "GET", "/", Host="evil.example").status == 421
    assert raw(work.server, "GET", "/", Host="localhost:1").status == 200
    assert (
        raw(work.server, "POST", f"{branch}/merge", "", **bearer, Origin=work.server.url, Sec_Fetch_Site="same-origin").status
        == 200
    )


def test_a_private_forge(make_server: Callable[..., Server]) -> None:
    server = make_server(FORGE_PRIVATE="1")
    server.settings["FORGE_MERGE_PASSWORD"] = PASSWORD
    for page in ("/", "/jobs", "/jobs/1", "/jobs/1/log", "/r/x"):
        assert server.ask(page).status == 401, page
        assert "/login" in server.ask(page, Accept="text/html").text
    assert server.ask("/healthz").text == "ok\n" and server.ask("/login", Accept="text/html").status == 200
    assert server.ask("/static/forge.css").status == 200
    token = (server.data / "token").read_text().strip()
    assert server.ask("/jobs", Authorization=f"Bearer {token}").status == 200
    assert server.cli("repos").stdout == "\n" or server.cli("repos").returncode == 0


# -- bad input -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/jobs/0",
        "/jobs/-1",
        "/jobs/x",
        "/jobs/1e3",
        "/jobs/99999999",
        "/jobs/" + "9" * 40,
        "/jobs/1%00",
        "/jobs/%2e%2e",
        "/r/nope",
    ]
    + ["/r/..", "/r/%2e%2e%2fdata", "/r/-x", "/r/x.git", "/r/a%0Ab", "/r/nope/mr/x", "/r/nope/history", "/static/../forge.py"]
    + ["/static/%2e%2e/base.tpl", "/r/%ff", "/jobs/1/log/x"],
)
def test_odd_addresses_are_not_found(shared: Server, path: str) -> None:
    answer = shared.ask(path)
    assert 400 <= answer.status < 500 and set(answer.json) >= {"error"}
    assert shared.ask(path, Accept="text/html").status == answer.status


def test_wrong_methods(work: Work, branch: str) -> None:
    for method, path in (
        ("POST", "/"),
        ("DELETE", "/jobs"),
        ("PUT", branch),
        ("GET", f"{branch}/merge"),
        ("GET", f"{branch}/delete"),
    ):
        assert work.server.ask(path, method=method, body=b"" if method != "GET" else None).status == 405, (method, path)
    work.branch("topic2/merge")
    work.push("topic2/merge")
    work.server.idle()
    assert work.mr("topic2/merge")["branch"] == "topic2/merge"
    assert work.server.act(f"/r/{work.name}/mr/topic2/merge/merge").status == 200


NESTED = b'{"repo": ' + b"[" * 90_000 + b"]" * 90_000 + b"}"


@pytest.mark.parametrize(
    "body",
    [b"", b"x", b"[]", b"5", b'"x"', b"null", b"{}", b"\xff\xfe", NESTED, b"[" * 90_000]
    + [
        json.dumps({"repo": repo, "updates": []}).encode()
        for repo in ("../x", "/etc", "-x", "", 5, None, ["a"], {}, "nope", "a\0b")
    ]
    + [json.dumps({"repo": "{repo}", **update}).encode() for update in ({}, {"updates": 5}, {"updates": [5]}, {"updates": [{}]})]
    + [
        json.dumps({"repo": "{repo}", "ref": ref, "oldrev": "0" * 40, "newrev": "1" * 40}).encode()
        for ref in ("x", "refs/heads/nope", 5, "")
    ]
    + [
        json.dumps({"repo": "{repo}", "ref": "refs/heads/main", "oldrev": "0" * 40, "newrev": new}).encode()
        for new in ("x", 5, None, "1" * 39)
    ]
    + [json.dumps({"repo": "{repo}", "updates": [], "options": options}).encode() for options in (5, "wait", [5])],
    ids=lambda body: repr(body[:40]),
)
def test_a_hook_request_that_makes_no_sense(work: Work, body: bytes) -> None:
    before = (
        work.server.get("/jobs?limit=1")["jobs"][0]["id"],
        sorted(path.name for path in (work.server.data / "repos").iterdir()),
    )
    answer = work.server.hook(body.replace(b"{repo}", work.name.encode()), Content_Type="application/json")
    assert 400 <= answer.status < 500 and answer.json["error"]
    assert before[0] == work.server.get("/jobs?limit=1")["jobs"][0]["id"]
    assert before[1] == sorted(path.name for path in (work.server.data / "repos").iterdir())


def test_a_hook_needs_its_token(shared: Server) -> None:
    assert shared.ask("/hooks/post-receive", body=b"{}").status == 401
    assert shared.ask("/hooks/post-receive", body=b"{}", Authorization="Bearer x").status == 401


def test_the_hook_takes_json_too(work: Work) -> None:
    work.branch("topic")
    hook = work.path / "hooks/post-receive"
    hook.chmod(0o644)
    work.push("topic")
    hook.chmod(0o755)
    head = work.heads()["topic"]
    body = json.dumps({"repo": work.name, "ref": "refs/heads/topic", "oldrev": "0" * 40, "newrev": head}).encode()
    answer = work.server.hook(body, Content_Type="application/json")
    assert answer.status == 202
    (job,) = answer.json["jobs"]
    assert set(job) == {"id", "url", "kind", "branch", "status"} and (job["branch"], job["kind"]) == ("topic", "pre-merge")
    assert work.server.hook(body, Content_Type="application/json").json["jobs"][0]["id"] == job["id"]


def test_a_push_option_is_believed_of_who_has_the_hook_token(work: Work) -> None:
    """As it is of who pushes: SECURITY.md says so."""
    head = work.branch("topic")
    work.server.ended(work.push_job("topic"))
    update = {"ref": "refs/heads/topic", "oldrev": "0" * 40, "newrev": head}
    told = json.dumps({"repo": work.name, "updates": [update], "options": ["merge"]}).encode()
    assert work.server.hook(told, Content_Type="application/json").status == 202
    work.landed("topic")


def test_a_large_body_is_refused(shared: Server) -> None:
    host, port = shared.url[7:].split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(
            b"POST /hooks/post-receive HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2000000\r\n\r\n" + b"x" * 1000
        )
        assert b" 413 " in connection.recv(4096)


def raw(server: Server, method: str, path: str, body: str | None = None, **headers: str) -> Any:
    """A request without following redirects."""
    from conftest import Answer

    host, port = server.url[7:].split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    given = {"Accept": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    if body is not None:
        given["Content-Type"] = "application/x-www-form-urlencoded"
    connection.request(method, path, body, given)
    answer = connection.getresponse()
    found = Answer(answer.status, answer.headers, answer.read())
    connection.close()
    return found


# -- in process -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The WSGI app, wrapped in the standard library's validator."""
    data = tmp_path_factory.mktemp("app")
    app = forge.create_app({"FORGE_DATA_DIR": str(data), "FORGE_MERGE_PASSWORD": PASSWORD})
    yield validator(app)
    app.engine.stop()


def call(app: Any, path: str, method: str = "GET", **more: Any) -> tuple[int, dict[str, str], bytes]:
    environ = {"PATH_INFO": path, "REQUEST_METHOD": method, "QUERY_STRING": "", "SCRIPT_NAME": "", **more}
    setup_testing_defaults(environ)
    told: list[Any] = []
    answer = app(environ, lambda status, headers, error=None: told.extend((status, headers)) or (lambda _: None))
    try:
        body = b"".join(answer)
    finally:
        answer.close()
    return int(told[0].split()[0]), dict(told[1]), body


@pytest.mark.parametrize(
    "path", ["/", "/jobs", "/login", "/healthz", "/static/forge.css", "/static/vendor/ansi_up.js", "/jobs/1", "/x"]
)
def test_the_app_is_wsgi(app: Any, path: str) -> None:
    status, _, body = call(app, path)
    assert status == (404 if path in ("/jobs/1", "/x") else 200) and body


def test_the_empty_front_page_says_how_to_begin(app: Any) -> None:
    assert b"forge create NAME" in call(app, "/")[2]


def test_the_vendored_script_is_the_release() -> None:
    import hashlib

    vendor = Path(forge.__file__).parent / "views/static/vendor"
    found = hashlib.sha256((vendor / "ansi_up.js").read_bytes()).hexdigest()
    assert found == "554a7d9ca4f3721db1f14941f92dc75b254f57d4b7bffeb84eea1174aa160780"
    assert f"`{found}`" in (vendor / "README.md").read_text() and "MIT" in (vendor / "ansi_up.LICENSE").read_text()


def test_pages_are_quick_with_a_long_log(work: Work) -> None:
    work.branch("topic", run="yes 'a line of the log that is of no interest' | head -c 30000000\n")
    job_id = work.push_job("topic")
    work.server.ended(job_id)
    began = time.monotonic()
    page = work.server.ask(f"/jobs/{job_id}", Accept="text/html")
    assert len(page.body) < 1_000_000 and time.monotonic() - began < 5 and "Earlier lines" in page.text


# -- found by a hostile tester --------------------------------------------------------------------------


def talk(server: Server, request: bytes) -> bytes:
    """The start of the answer to a request as it stands."""
    host, port = server.url[7:].split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(request)
        return connection.recv(65536)


@pytest.mark.parametrize(
    "name", ["Host", "Accept", "Authorization", "Origin", "Sec-Fetch-Site", "X-Forge-Follow", "Cookie", "Range"]
)
@pytest.mark.parametrize("value", [b"\xff\xfe", b"[", b"a]b", b"[foo]", b"http://[", b"x" * 3000])
def test_odd_headers(shared: Server, name: str, value: bytes) -> None:
    for method in (b"GET / ", b"POST /jobs/1/retry ", b"POST /hooks/post-receive ", b"GET /jobs/1/log "):
        host = b"" if name == "Host" else b"Host: localhost\r\n"
        request = method + b"HTTP/1.1\r\n" + host + name.encode() + b": " + value + b"\r\nConnection: close\r\n\r\n"
        assert talk(shared, request)[9:10] in (b"2", b"4"), (method, value)


@pytest.mark.parametrize("path", [b"/%ff", b"/r/x%FF", b"/r/a/mr/b%0A", b"/jobs%00", b"/\xff"])
def test_addresses_that_are_no_text(shared: Server, path: bytes) -> None:
    assert b" 400 " in talk(shared, b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\n\r\n").split(b"\r\n")[0]


def test_a_branch_that_is_no_utf8_does_not_break_the_pages(make_server: Callable[..., Server]) -> None:
    server = make_server()
    work = server.repo()
    work.branch("topic")
    head = work.git("rev-parse", "HEAD")
    work.push("topic")
    with open(str(work.path).encode() + b"/refs/heads/bad\xffname", "w") as stream:
        stream.write(head + "\n")
    server.hook(b'{"repo": "app", "updates": []}', Content_Type="application/json")
    server.idle()
    for path in ("/", "/jobs", "/r/app"):
        assert server.ask(path, Accept="text/html").status == 200 and server.ask(path).status == 200, path


def test_an_offset_beyond_everything(work: Work) -> None:
    job_id = work.server.get(f"/jobs?repo={work.name}")["jobs"][0]["id"]
    assert work.server.ask(f"/jobs/{job_id}/log?offset=999999999999999999").body == b""
    assert work.server.ask(f"/jobs/{job_id}/log?offset=0&wait=0.5").status == 200


def test_a_password_with_letters_of_all_sorts(make_server: Callable[..., Server], tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("pä ß\n")
    server = make_server(FORGE_MERGE_PASSWORD_FILE=str(secret))
    request = "POST /jobs/1/cancel HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer pä ß\r\nContent-Length: 0\r\n\r\n"
    assert b" 404 " in talk(server, request.encode()).split(b"\r\n")[0]
    session = raw(server, "POST", "/login", "password=p%C3%A4+%C3%9F").headers["Set-Cookie"].split(";")[0]
    assert ">Log out<" in raw(server, "GET", "/", Cookie=session, Accept="text/html").text
    secret.unlink()
    assert ">Log in<" in raw(server, "GET", "/", Cookie=session, Accept="text/html").text


def test_a_body_of_a_mebibyte_and_one_more(shared: Server) -> None:
    exact = json.dumps({"repo": "x" * (1 << 20)}).encode()[: 1 << 20]
    assert shared.hook(exact, Content_Type="application/json").status == 400
    refused = shared.hook(exact + b" ", Content_Type="application/json")
    assert refused.status == 413 and "1 MiB" in refused.json["error"]


# -- the body of an action ------------------------------------------------------------------------------


def send(server: Server, path: str, body: bytes | str | dict[str, Any], kind: str = "application/json", **headers: str) -> Any:
    """Post a body as JSON, or as what else it says to be, with the token unless told otherwise."""
    told = json.dumps(body) if isinstance(body, dict) else body
    token = (server.data / "token").read_text().strip()
    given = {"Authorization": f"Bearer {token}", "Content_Type": kind} | headers
    return server.ask(path, body=told.encode() if isinstance(told, str) else told, **given)


def test_every_action_takes_a_json_object(work: Work, branch: str) -> None:
    server, head = work.server, work.heads()["topic"]
    assert send(server, f"{branch}/merge", {"head": "1" * 40}).status == 409
    merged = send(server, f"{branch}/merge", {"head": head, "unknown": [{"a": None}], "x": 1.5})
    assert (merged.status, merged.json["head"]) == (200, head)
    work.landed("topic")
    before, tip = work.bare("rev-list", "--first-parent", "main").split("\n")[1], merged.json["merge_commit"]
    for lifted in ({"lift": False}, {"lift": 0}, {"lift": ""}, {}):
        assert send(server, f"/r/{work.name}/hold", {"commit": tip, **lifted}).json["status"] == "on hold", lifted
    for lifted in ({"lift": True}, {"lift": 1}, {"lift": "1"}, {"lift": "true"}):
        assert send(server, f"/r/{work.name}/hold", {"commit": tip, **lifted}).json["status"] == "lifted", lifted
        assert send(server, f"/r/{work.name}/hold", {"commit": tip}).status == 200
    server.idle()
    assert send(server, f"/r/{work.name}/rollback", {"commit": before, "untested": True}).json["untested"] is True
    server.idle()
    pruned = [send(server, "/prune", {"days": days, "dry_run": True}) for days in (365, "365")]
    assert [(one.status, one.json["dry_run"]) for one in pruned] == [(200, True)] * 2
    work.branch("other")
    job = work.push_job("other")
    server.ended(job)
    again = send(server, f"/jobs/{job}/retry", {})
    assert again.status == 202 and send(server, f"/jobs/{again.json['id']}/cancel", {}).status in (200, 409)
    server.ended(again.json["id"])
    other = f"/r/{work.name}/mr/other/delete"
    assert (
        send(server, other, {"head": head}).status == 409 and send(server, other, {"head": work.heads()["other"]}).status == 200
    )


def test_the_password_may_be_a_field_of_the_json(work: Work, branch: str) -> None:
    server, nobody = work.server, {"Authorization": ""}
    assert send(server, f"{branch}/merge", {"password": "wrong"}, **nobody).status == 401
    assert send(server, f"{branch}/merge", {}, **nobody).status == 401
    assert send(server, f"{branch}/delete", {"password": PASSWORD}, **nobody).status == 200
    login = send(server, "/login", {"password": PASSWORD, "to": "/jobs"}, **nobody)
    session = login.headers["Set-Cookie"].split(";")[0]
    assert login.status == 200 and ">Log out<" in server.ask("/", Cookie=session, Accept="text/html").text


@pytest.mark.parametrize(
    "kind", ["application/json", "application/json; charset=utf-8", "Application/JSON;charset=latin-1", "application/json ;x=y"]
)
def test_what_else_the_type_of_json_says_does_not_matter(shared: Server, kind: str) -> None:
    assert send(shared, "/login", {"password": PASSWORD}, kind, Authorization="").status == 200


@pytest.mark.parametrize("kind", ["application/json", "application/x-www-form-urlencoded", "text/plain", ""])
def test_a_body_of_nothing_has_no_fields(work: Work, branch: str, kind: str) -> None:
    assert send(work.server, f"{branch}/delete", b"", kind).status == 200


DEEP = b'{"x": ' + b"[" * 90_000 + b"]" * 90_000 + b"}"


@pytest.mark.parametrize(
    "body",
    [b"x", b"{", b'{"head": "a"', b"{}{}", b"{'a': 1}", b" ", b"\0", b"[]", b'["head"]', b"5", b'"head"', b"null", b"true"]
    + [b"[" * 90_000, DEEP, b'{"x": ' + b"[" * 9000, b'{"x": NaN}', b'{"x": -Infinity}', b'{"x": "\xff"}', b"\xff\xfe{\x00}\x00"]
    + [b'{"x": ' + b"9" * 9000 + b"}", json.dumps({"x": [0] * 20_000}).encode()]
    + [b'{"password": %s}' % value for value in (b"1", b"true", b"null", b"{}", b'["x"]', b'"\\ud800"', b'"\\udc80"')],
    ids=lambda body: repr(body[:40]),
)
def test_json_that_makes_no_sense_is_refused_by_every_action(shared: Server, body: bytes) -> None:
    token = (shared.data / "token").read_text().strip()
    for path in ("/login", "/jobs/1/cancel", "/jobs/1/retry", "/r/app/mr/topic/merge", "/r/app/rollback", "/prune"):
        for sent in ({"Authorization": ""}, {"Authorization": f"Bearer {token}"}):
            answer = send(shared, path, body, **sent)
            assert (answer.status, set(answer.json)) == (400, {"error"}), (path, answer.body)
            assert "\n" not in answer.json["error"] and len(answer.json["error"]) < 300


@pytest.mark.parametrize("wrong", [5, 1, 1.5, True, None, ["x"], {}, "\udcff"])
def test_a_field_of_the_wrong_type_is_refused(work: Work, branch: str, wrong: object) -> None:
    for path, field in ((f"{branch}/merge", "head"), (f"{branch}/delete", "head"), (f"/r/{work.name}/rollback", "commit")):
        answer = send(work.server, path, {field: wrong})
        assert answer.status == 400 and field in answer.json["error"], (path, answer.body)
    for flag in (wrong, 2, "yes"):
        if flag not in (0, 1):
            answer = send(work.server, f"/r/{work.name}/hold", {"commit": "1" * 40, "lift": flag})
            assert answer.status == 400 and "lift" in answer.json["error"], (flag, answer.body)
    assert work.heads()["topic"] and send(work.server, "/prune", {"days": 1.5, "dry_run": 1}).status == 400


def test_of_fields_with_one_name_the_last_counts_in_json_as_in_a_form(work: Work, branch: str) -> None:
    head, other = work.heads()["topic"], "1" * 40
    form = "application/x-www-form-urlencoded"
    assert send(work.server, f"{branch}/delete", f"head={head}&head={other}", form).status == 409
    assert send(work.server, f"{branch}/delete", f'{{"head": "{head}", "head": "{other}"}}').status == 409
    assert send(work.server, f"{branch}/delete", f'{{"head": "{other}", "head": "{head}"}}').status == 200


def test_json_that_is_called_something_else_is_not_passed_over(work: Work, branch: str) -> None:
    for kind, said in (("application/x-www-form-urlencoded", "send Content-Type: application/json"), ("text/plain", "must be")):
        answer = send(work.server, f"{branch}/delete", {"head": "1" * 40}, kind)
        assert answer.status == 400 and said in answer.json["error"]


def test_json_is_no_way_around_what_guards_the_forms(work: Work, branch: str) -> None:
    server, topic = work.server, work.heads()["topic"]
    session = send(server, "/login", {"password": PASSWORD}, Authorization="").headers["Set-Cookie"].split(";")[0]
    for elsewhere in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec_Fetch_Site": "cross-site"}):
        for path, body in ((f"{branch}/merge", {"head": topic}), ("/login", {"password": PASSWORD}), ("/jobs/1/cancel", {})):
            for kind in ("application/json", "text/plain"):
                answer = send(server, path, body, kind, Authorization="", Cookie=session, **elsewhere)
                assert (answer.status, "Set-Cookie" in answer.headers) == (403, False), (path, elsewhere, kind)
    asked = server.ask(f"{branch}/merge", method="OPTIONS", Origin="https://evil.example", Access_Control_Request_Method="POST")
    assert not any(name.lower().startswith("access-control") for name in asked.headers)
    assert send(server, f"{branch}/merge", b'{"x": "' + b"x" * (1 << 20) + b'"}').status == 413
    assert work.heads()["topic"] == topic


def test_logging_in_leads_back_to_any_page(work: Work) -> None:
    work.branch("a#b&c%2Fd-é")
    work.push("a#b&c%2Fd-é")
    page = f"/r/{work.name}/mr/{quote('a#b&c%2Fd-é')}"
    link = re.search(r'href="(/login[^"]*)"', work.server.ask(page, Accept="text/html").text)
    assert link
    back = re.search(r'name="to" value="([^"]*)"', work.server.ask(link[1], Accept="text/html").text)
    assert back and back[1] == page
    form = f"password={quote(PASSWORD)}&to={quote(back[1], safe='')}"
    assert raw(work.server, "POST", "/login", form, Accept="text/html").headers["Location"].endswith(page)
    work.server.idle()


@pytest.mark.parametrize(
    "target",
    ["//evil.example", "/\\evil.example", "https://evil.example/", "javascript:alert(1)", "/x\r\nX-Odd: 1", "evil", "/é"],
)
def test_logging_in_leads_to_no_other_site(shared: Server, target: str) -> None:
    form = f"password={quote(PASSWORD)}&to={quote(target, safe='')}"
    answer = raw(shared, "POST", "/login", form, Accept="text/html")
    assert answer.status == 303 and urlsplit(answer.headers["Location"]).path == "/" and answer.headers["X-Odd"] is None
    assert urlsplit(answer.headers["Location"]).netloc in ("", shared.url[7:])


def test_a_large_body_is_refused_whatever_serves_the_app(app: Any) -> None:
    said = {"CONTENT_LENGTH": str((1 << 20) + 1), "CONTENT_TYPE": "application/x-www-form-urlencoded", "wsgi.input": io.BytesIO()}
    assert call(app, "/logout", "POST", **said)[0] == 413


def test_pages_run_nothing_but_their_own_files(shared: Server) -> None:
    for path in ("/", "/jobs", "/login", "/nothing", "/healthz", "/static/forge.css"):
        headers = shared.ask(path, Accept="text/html").headers
        policy = dict(rule.split(" ", 1) for rule in headers["Content-Security-Policy"].split("; "))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'", path
        assert {word for rule in policy.values() for word in rule.split()} <= {"'none'", "'self'", "data:"}, path
        assert "data:" not in "".join(rule for name, rule in policy.items() if name != "img-src"), path
        assert headers["X-Frame-Options"] == "DENY"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == policy["form-action"] == "'self'", path
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["Referrer-Policy"] == "same-origin", path
