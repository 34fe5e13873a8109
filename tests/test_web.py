"""The pages and their JSON, in process where no socket matters, and who may do what."""

from __future__ import annotations

import http.client
import io
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
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
    assert set(page) == {"repo", "base", "head", "merge_requests", "holds"} and page["head"] == merge["merge_commit"]
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
    assert (part.status, part.body) == (206, b"234")
    rest = ask(f"/jobs/{job_id}/log?offset=7")
    assert rest.body == b"789" and rest.headers["X-Job-Status"] == "passed"
    none = ask(f"/jobs/{job_id}/log?offset=10&wait=1")
    assert (none.status, none.body) == (200, b"") and ask(f"/jobs/{job_id}/log?offset=99").body == b""
    assert ask(f"/jobs/{job_id}/log?follow=1").body == b"0123456789"
    assert ask(f"/jobs/{job_id}/log?offset=x").status == 400
    (work.server.data / f"logs/{work.name}/{job_id}.log").unlink()
    assert ask(f"/jobs/{job_id}/log").status == 410 and ask(f"/jobs/{job_id}/log?offset=3").status == 410
    assert "was pruned" in ask(f"/jobs/{job_id}", Accept="text/html").text


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


def test_json_is_not_taken_for_a_form(work: Work, branch: str) -> None:
    token = (work.server.data / "token").read_text().strip()
    body = json.dumps({"head": "1" * 40}).encode()
    answer = work.server.ask(f"{branch}/merge", body=body, Content_Type="application/json", Authorization=f"Bearer {token}")
    assert answer.status == 400 and "must be a form" in answer.json["error"]


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
