"""The overview pages: what they say, what they cost, and what is drawn on them."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import AUTO, PASSWORD, Server, Work, clean_environ, git_after, wait_for

import forge


def make_history(repo: Path, seed: int) -> list[str]:
    """A bare repo with random commits: merges, criss-cross ones too, conflicts, roots of their own; all commits, base first."""
    subprocess.run(["git", "init", "-q", "--bare", repo], check=True, env=clean_environ())
    chance = random.Random(seed)
    stream, parents = [], dict[int, list[int]]()
    for number in range(1, 41):
        recent = range(max(1, number - 8), number)
        parents[number] = chance.sample(recent, min(chance.choice((1, 1, 2)) if chance.random() < 0.97 else 0, len(recent)))
        message = f"Commit {number} <b>\n\n" + chance.choice(("Auto-Merge: yes\n", "Text\n", "Auto-Merge: yes\n\nText\n"))
        at = 1_700_000_000 + chance.choice((number, number, 0)) * 100  # some clocks were wrong
        stream.append(f"commit refs/heads/c{number}\nmark :{number}\nauthor Ä <a@b> {at} +0200\ncommitter C <c@d> {at} +0000\n")
        stream.append(f"data {len(message.encode())}\n{message}")
        named = ("from", "merge", "merge")
        stream += [f"{word} :{parent}\n" for word, parent in zip(named, parents[number], strict=False)]
        path, text = f"file-{chance.randrange(3)}", f"{chance.randrange(3)}\n"
        stream.append(f"M 100644 inline {path}\ndata {len(text)}\n{text}\n")
        if chance.random() < 0.2:  # a file where others have a directory
            stream.append(f"M 100644 inline {path}-more/inner\ndata 1\nx\n")
        elif chance.random() < 0.2:
            stream.append(f"M 100644 inline {path}-more\ndata 1\ny\n")
    subprocess.run(["git", "-C", repo, "fast-import", "--quiet"], input="".join(stream).encode(), check=True, env=clean_environ())
    heads = forge.read_refs(repo).heads
    commits = [heads[f"c{number}"] for number in range(1, 41)]
    base = commits.pop(chance.randrange(25, 40))
    return [base, *chance.sample(commits, len(commits))]


@pytest.mark.parametrize("seed", range(4))
def test_what_git_says_of_many_at_once_is_what_it_says_of_each(tmp_path: Path, seed: int) -> None:
    repo = tmp_path / "repo.git"
    base, *heads = make_history(repo, seed)
    assert forge.read_commits(repo, heads) == {head: forge.read_commit(repo, head) for head in heads}
    together = forge.count_many(repo, base, heads)
    alone = {head: forge.count_commits(repo, base, head) for head in heads}
    assert together == {head: alone[head] for head in together} and len(together) > len(heads) / 2
    several = [head for head in heads if "\n" in forge.git(repo, "merge-base", "--all", base, head, ok=(0, 1)).strip()]
    assert set(heads) - set(together) == set(several)
    merged = dict(forge.merge_trees(repo, base, heads))
    assert list(merged) == heads
    for head in heads:
        told = subprocess.run(
            ["git", "-C", repo, "merge-tree", "--write-tree", "--no-messages", "--name-only", base, head],
            capture_output=True,
            text=True,
            env=clean_environ(),
        )
        tree, *paths = told.stdout.split("\n")[:-1] or [""]
        assert merged[head].unrelated == (told.returncode == 128) == (alone[head][0] is None)
        assert merged[head].tree == (tree if told.returncode == 0 else None)
        assert set(merged[head].conflicts) == set(filter(None, paths)) or (told.returncode == 1 and not any(paths))
        assert forge.merge_tree(repo, base, head) == merged[head]


def test_a_repo_page_runs_no_git_while_nothing_has_changed(make_server: Callable[..., Server], tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    server = make_server(**git_after(tmp_path / "bin", f'echo "$1" >>{calls}'))
    work = server.repo()
    for name in ("one", "two", "three"):
        work.branch(name)
    work.push("one", "two", "three")
    server.idle()
    page = f"/r/{work.name}"

    def ran(changed: str = "") -> list[str]:
        """The git processes of one look at the page."""
        calls.write_text("")
        views = server.get(page)["merge_requests"]
        assert {view["branch"]: view["head"] for view in views} == {k: v for k, v in work.heads().items() if k != "main"}, changed
        return calls.read_text().split()

    wait_for(lambda: not ran(), "a look without git", 5)
    assert "two" in server.ask(page, Accept="text/html").text and "three" in server.ask(f"{page}?again", Accept="text/html").text
    assert ran() == []
    head = work.branch("elsewhere")
    work.git("push", "-q", str(work.path), f"{head}:refs/tags/kept")
    for change in (
        ("update-ref", "refs/heads/one", head),
        ("update-ref", "-d", "refs/heads/two"),
        ("pack-refs", "--all"),
        ("update-ref", "refs/heads/deep/er/one", head),
        ("update-ref", "-d", "refs/heads/three"),  # from packed-refs
        ("update-ref", "refs/heads/main", head),
        ("symbolic-ref", "HEAD", "refs/heads/one"),
        ("symbolic-ref", "HEAD", "refs/heads/main"),
    ):
        work.bare(*change)
        view = server.get(page)
        assert {"main": view["head"]}.items() <= work.heads().items() or view["base"] == "one", change
        base = work.bare("symbolic-ref", "--short", "HEAD")
        shown = {request["branch"]: request["head"] for request in view["merge_requests"]}
        assert (view["base"], shown) == (base, {k: v for k, v in work.heads().items() if k != base}), change
    server.idle()


def test_a_mark_is_not_trusted_when_something_changed_a_moment_ago(tmp_path: Path) -> None:
    forge.git(tmp_path, "init", "-q", "--bare", "repo.git", GIT_DIR=str(tmp_path / "repo.git"))
    repo = tmp_path / "repo.git"
    mark = wait_for(lambda: forge.refs_mark(repo), "a mark", 5)
    assert forge.refs_mark(repo) == mark
    ref = repo / "refs/heads/topic"
    ref.write_text("0" * 40)
    assert forge.refs_mark(repo) is None
    second = wait_for(lambda: forge.refs_mark(repo), "a mark", 5)
    ref.write_text("1" * 40)
    assert wait_for(lambda: forge.refs_mark(repo), "a mark", 5) not in (mark, second)


def test_what_is_known_of_open_branches_is_not_pushed_out(tmp_path: Path) -> None:
    engine = forge.Engine(forge.load_config({"FORGE_DATA_DIR": str(tmp_path / "data"), "FORGE_SANDBOX": "none"}))
    engine.state.repos["r"] = forge.Repo(branches={str(number): forge.Branch("") for number in range(4000)})
    known = [(kind, str(number)) for kind in ("commit", "merge", "count") for number in range(4000)]
    for key in known:
        engine._keep(key, key)
    assert [engine._kept(key, lambda: None) for key in known] == known
    for number in range(20_000):  # what was asked for lately stays, the others go
        engine._keep(("old", str(number)), number)
        assert engine._kept(known[0], lambda: None) == known[0]
    assert len(engine._cache) == 26_000 and known[1] not in engine._cache
    engine.stop()


def job_at(job_id: int, seconds: float, kind: str = forge.PRE, branch: str = "topic", **values: Any) -> forge.Job:
    """A job that was made so many seconds after the beginning."""
    commit = values.pop("commit", branch)
    began, ended = values.pop("started", None), values.pop("finished", None)
    times = {"started_at": began, "finished_at": ended}
    values |= {name: forge.at_time(at) for name, at in times.items() if at is not None}
    heads = [{"branch": branch, "commit": commit}]
    return forge.Job(job_id, "app", branch, kind, commit, heads, forge.at_time(seconds), **values)


def merge_at(seconds: float, branch: str = "topic", how: str = "auto") -> dict[str, Any]:
    return {"branch": branch, "head": branch, "how": how, "at": forge.at_time(seconds), "merge_commit": f"m-{branch}"}


def test_where_the_time_of_a_push_went() -> None:
    first = job_at(1, 100, started=103, finished=110, status="passed")
    again = job_at(2, 120, started=121, finished=125, status="passed", cause="retest")
    deployment = job_at(3, 127, forge.POST, "main", started=130, finished=150, status="passed")
    superseded = job_at(4, 126, forge.POST, "main", finished=127, status="superseded")

    def row(tests: list[forge.Job], merges: list[Any], deployments: list[forge.Job], moment: float = 200) -> tuple[Any, ...]:
        (found,) = forge.push_rows(tests, merges, deployments, moment)
        return found.outcome, *(f"{what} {begin:g}-{end:g}" for what, begin, end in found.stretches)

    tested = ("waiting 0-3", "testing 3-10")
    assert row([first], [], []) == ("passed", *tested)
    assert row([first], [merge_at(112)], []) == ("merged", *tested, "merging 10-12")
    assert row([first], [merge_at(112, how="manual")], []) == ("merged", *tested, "waiting 10-12")
    whole = (*tested, "waiting 10-21", "testing 21-25", "merging 25-26", "waiting 26-30", "deploying 30-50")
    assert row([again, first], [merge_at(126)], [deployment, superseded]) == ("deployed", *whole)
    assert row([job_at(1, 100)], [], []) == ("pending", "waiting 0-100")
    assert row([job_at(1, 100, started=101, status="running")], [], [], 131) == ("running", "waiting 0-1", "testing 1-31")
    assert row([job_at(1, 100, finished=100, status="passed", reused_from=7)], [], []) == ("passed",)
    assert forge.push_rows([job_at(1, 100, started=90)], [], [], 200)[0].total == 100  # a clock that was set back
    broken = job_at(1, 100)
    broken.created_at = "yesterday"
    assert forge.push_rows([broken], [], [], 200) == []


def parse_svg(text: str) -> ElementTree.Element:
    """A drawing, if it is well-formed and says what it shows."""
    svg = ElementTree.fromstring(text)
    ids = {node.get("id") for node in svg.iter()}
    assert svg.get("role") == "img" and set((svg.get("aria-labelledby") or "").split()) <= ids
    assert "style" not in text and "nan" not in text and "inf" not in text
    return svg


def test_the_drawing_of_the_last_pushes() -> None:
    rows = [forge.PushRow("<b>&'\"" + "x" * 50, 9, "<i>", (("waiting", 0.0, 1.0), ("testing", 1.0, 4.0)))]
    rows += [
        forge.PushRow(f"r{number}", number, "merged", (("testing", 0.0, 2.0), ("deploying", 2.0, 4.0))) for number in range(3)
    ]
    svg = parse_svg(forge.timeline_svg(rows))
    assert len(svg.findall("svg")) == 4 and [rect.get("class") for rect in svg[2].iter("rect")] == [
        "ground",
        "waiting",
        "testing",
    ]
    assert [rect.get("x") for rect in svg[2].iter("rect")] == [None, "0.00%", "25.00%"]
    assert svg.findtext("title") == "Where the time of the last 4 pushes went" and svg[2][0].text[:4] == "<b>&"  # type: ignore[index]
    assert "testing 2.0 s, merging 0 ms, deploying 2.0 s" in (svg.findtext("desc") or "")
    rows.append(forge.PushRow("long", 10, "merged", (("testing", 0.0, 1000.0), ("deploying", 1000.0, 4000.0))))
    cut = parse_svg(forge.timeline_svg(rows))
    assert len(list(cut.iter("path"))) == 1  # and the others can still be seen
    assert cut[2].findall("rect")[1].get("width") == "6.25%"
    parse_svg(forge.timeline_svg([forge.PushRow("none", 1, "passed", ())]))


def test_the_drawing_of_durations() -> None:
    jobs = [
        job_at(number, number, status=status, duration=seconds)
        for number, status, seconds in ((1, "passed", 2.0), (2, "failed", 4.0))
    ]
    svg = parse_svg(forge.trend_svg(forge.PRE, jobs))
    assert [rect.get("class") for rect in svg.iter("rect")] == ["good", "bad"] and len(list(svg.iter("path"))) == 1
    good, bad = (float(rect.get("height") or 0) for rect in svg.iter("rect"))
    assert bad == 2 * good
    assert svg.findtext("desc") == "3.0 s by the median, 4.0 s at most; 1 of them failed"
    parse_svg(forge.trend_svg(forge.POST, jobs[:1]))
    odd = job_at(3, 3, status="passed", duration=1.0, reused_from=1)
    assert forge.ran_last([odd, *jobs[::-1], job_at(4, 4, status="canceled", duration=9.0)], 50) == jobs
    assert forge.ran_last(jobs[::-1], 1) == jobs[1:]


def test_what_a_deployment_brought_follows_base_by_its_first_parents() -> None:
    def landed(commit: str, *parents: str, branch: str = "") -> tuple[forge.Landed, str]:
        subject = f"Forge Merge: {branch}" if branch else f"Change {commit}"
        return forge.Landed(
            commit, "tree", " ".join(parents), "", subject, branch, "", ""
        ), "forge" if branch else f"By {commit[0]}"

    walk = [landed("m2", "m1", "b2", branch="b"), landed("b2", "b1"), landed("b1", "old"), landed("m1", "d1", "a1", branch="a")]
    walk += [landed("a1", "old"), landed("d1", "old")]
    brought = forge.brought_of(walk, "m2", True)
    assert [one.commit for one in brought.line] == ["m2", "m1", "d1"] and brought.whole
    assert [one.id for one in brought.commits] == ["b2", "b1", "a1", "d1"] and brought.written == 4
    assert brought.authors[0] == ("By b", 2)
    assert forge.brought_of([], "m2", True) == forge.Brought()


def test_whether_base_is_good() -> None:
    tested = job_at(1, 1, status="passed")
    deployment = job_at(2, 2, forge.POST, commit="tip", status="failed")
    assert forge.base_verdict("tip", deployment, tested) is deployment
    for status in ("running", "pending", "skipped", "superseded", "canceled"):
        deployment.status = status
        assert (
            forge.base_verdict("tip", deployment, tested) is tested and forge.base_verdict("tip", deployment, None) is deployment
        )
    assert forge.base_verdict(None, None, None) is None
    assert forge.tab_of(0, [{"status": "passed"}, {"status": "timeout"}, None])[0] == "failed"
    assert forge.tab_of(2, [{"status": "failed"}]) == ("running", "2 running · ")
    assert (forge.tab_of(0, [{"status": "passed"}])[0], forge.tab_of(0, [None])[0]) == ("passed", "forge")


def html(server: Server, path: str) -> str:
    answer = server.ask(path, Accept="text/html")
    assert answer.status == 200, (path, answer.status)
    return answer.text


def test_the_pages_of_a_repo_that_lives(work: Work) -> None:
    server, page = work.server, f"/r/{work.name}"
    for name in ("first", "second"):
        work.branch(name, AUTO)
        work.push(name)
        work.landed(name)
        server.idle()
    work.branch("bad", "Break <b>it</b>", run="exit 3\n")
    work.push("bad")
    work.branch("good")
    work.push("good")
    server.idle()
    deployments = server.get(f"{page}/deployments")
    assert [[merge["branch"] for merge in job["merges"]] for job in deployments["deployments"]] == [["second"], ["first"], []]
    assert deployments["current"] == work.heads()["main"] == deployments["deployments"][0]["commit"]
    assert deployments["deployments"][0]["merges"] == work.merges()[:1]
    older = server.get(f"{page}/deployments?limit=1&before={deployments['deployments'][0]['id']}")["deployments"]
    assert [[merge["branch"] for merge in job["merges"]] for job in older] == [["first"]]
    said = html(server, f"{page}/deployments?limit=1")
    assert "second <a" in said and "first <a" not in said and f"before={deployments['deployments'][0]['id']}" in said

    newest = server.get(f"{page}/history?limit=1")
    assert [merge["branch"] for merge in newest["merges"]] == ["second"]
    oldest = server.get(f"{page}/history?limit=1&before={newest['before']}")
    assert [merge["branch"] for merge in oldest["merges"]] == ["first"] and oldest["before"] is None
    assert server.get(f"{page}/history?before=0")["merges"] == [] and server.ask(f"{page}/history?before=x").status == 400

    (summary,) = [repo for repo in server.get("/")["repos"] if repo["repo"] == work.name]
    assert (summary["open"], summary["passed"], summary["failed"], summary["testing"]) == (2, 1, 1, 0)
    assert summary["verdict"]["id"] == summary["job"]["id"] == deployments["deployments"][0]["id"]
    said = html(server, page)
    assert re.findall('data-standing="(.*?)"', said) == ["failed", "ready"]
    assert "Break &lt;b&gt;it&lt;/b&gt;" in said and "<title>passed · " in said and "/static/passed.svg" in said
    assert said.count("<svg") > 5 and "deploying" in said and "Where the time of the last 4 pushes went" in said
    only = html(server, f"{page}?show=ready")
    assert re.findall('data-standing="(.*?)"', only) == ["ready"] and "needs a fix 1" in only
    assert server.ask(f"{page}?show=x").status == 400
    view = {request["branch"]: request for request in server.get(page)["merge_requests"]}
    assert forge.seconds_of(view["good"]["authored_at"]) <= time.time() and set(view) == {"good", "bad"}


def test_a_row_of_a_repo_spells_out_and_bounds_what_was_pushed(work: Work) -> None:
    work.branch("topic", "Turned \u202e and \x1b[31m " + "x" * 100_000)
    work.push("topic")
    said = html(work.server, f"/r/{work.name}")
    assert "Turned ⟨U+202E⟩ and ␛[31m xxx" in said and not forge.ODD.search(said.replace("\n", ""))
    assert len(said) < 50_000


def test_a_repo_page_stays_under_a_megabyte(make_server: Callable[..., Server], tmp_path: Path) -> None:
    server = make_server(FORGE_MAX_JOBS="1")
    server.cli("create", "many")
    repo = server.data / "repos" / "many.git"
    stream = ["commit refs/heads/master\nmark :1\ncommitter C <c@d> 1 +0000\ndata 1\nx\n"]
    for number in range(700):
        name = f"{number}-" + '"' * 180
        stream.append(f"commit refs/heads/{name}\ncommitter C <c@d> 1 +0000\ndata 300\n{'<' * 300}\nfrom :1\n")
    subprocess.run(["git", "-C", repo, "fast-import", "--quiet"], input="".join(stream).encode(), check=True, env=clean_environ())
    said = html(server, "/r/many")
    assert len(said.encode()) < 1_000_000 and "which do not fit on one page" in said
    assert len(server.get("/r/many")["merge_requests"]) == 700


def test_a_base_that_failed_is_told_by_icon_and_title(work: Work) -> None:
    work.branch("topic", AUTO, deploy="exit 1\n")
    work.push("topic")
    work.landed("topic")
    work.server.idle()
    for page in ("/", f"/r/{work.name}", f"/r/{work.name}/deployments"):
        said = html(work.server, page)
        assert "<title>failed · " in said and "/static/failed.svg" in said
    work.branch("slow", run="sleep 60\n")
    job_id = work.push_job("slow")
    work.server.running(job_id)
    for page in ("/", f"/r/{work.name}", "/jobs"):
        said = html(work.server, page)
        assert "<title>1 running · " in said and "/static/running.svg" in said and f'href="/jobs/{job_id}"' in said
    (running,) = work.server.get("/")["running"]
    assert running["id"] == job_id and running["status"] == "running"
    work.server.act(f"/jobs/{job_id}/cancel")
    work.server.ended(job_id)


def test_the_form_of_jobs_shows_what_was_asked_for(work: Work) -> None:
    for number in range(3):
        work.branch(f"n{number}", run=f"exit {number}\n")
        work.push(f"n{number}")
    work.server.idle()
    said = html(work.server, f"/jobs?repo={work.name}&status=failed&branch=&limit=1")
    assert f'name="repo" value="{work.name}"' in said and "<option selected>failed</option>" in said
    assert said.count('data-key="job-') == 1 and ">Older</a>" in said and ">Newest</a>" not in said
    older = re.findall(r'href="(/jobs\?[^"]*before=\d+)"', said)[0].replace("&amp;", "&")
    assert "status=failed" in older and f"repo={work.name}" in older
    said = html(work.server, older)
    assert said.count('data-key="job-') == 1 and ">Newest</a>" in said
    assert "No job fits." in html(work.server, "/jobs?repo=nope") and html(work.server, "/jobs?repo=%22%3E%3Ci%3E")


def test_a_page_that_is_kept_is_made_anew_when_something_happens(work: Work) -> None:
    page = f"/r/{work.name}"
    before = work.server.ask(page, Accept="text/html")
    tag = before.headers["ETag"]
    assert work.server.ask(page, Accept="text/html", If_None_Match=tag).status == 304
    work.branch("topic")
    work.server.ended(work.push_job("topic"))
    assert "topic" in html(work.server, page) and "topic" in html(work.server, f"/jobs?repo={work.name}")
    assert [job["branch"] for job in work.server.get(f"/jobs?repo={work.name}&limit=1")["jobs"]] == ["topic"]


def test_foreign_texts_cannot_make_a_repo_page_large_or_odd(work: Work) -> None:
    work.branch("topic", message="\u202e" + "long " * 20_000)
    work.push("topic")
    page = html(work.server, f"/r/{work.name}")
    assert "⟨U+202E⟩long long" in page and len(page) < 50_000


# -- without a server -----------------------------------------------------------------------------------------


@pytest.fixture
def web(tmp_path: Path) -> Iterator[forge.Web]:
    """The pages of an engine whose threads were never started."""
    engine = forge.Engine(forge.load_config({"FORGE_DATA_DIR": str(tmp_path / "data"), "FORGE_SANDBOX": "none"}))
    forge.create_repo(engine.config, "app", "main")
    yield forge.Web(engine)
    engine.stop()


def get(web: forge.Web, path: str, query: str, accept: str = "application/json") -> bytes:
    asked = {"REQUEST_METHOD": "GET", "PATH_INFO": path, "QUERY_STRING": query, "HTTP_HOST": "localhost", "HTTP_ACCEPT": accept}
    return b"".join(web.app.wsgi({**asked, "wsgi.errors": sys.stderr}, lambda *_: None))


def test_what_is_kept_of_pages_is_bounded_whatever_is_asked(web: forge.Web) -> None:
    for number in range(1000):
        assert get(web, "/jobs", f"repo={number}&{'x' * 20_000}") == b'{"jobs": []}\n'
    assert sum(len(str(request)) for request in web.kept) < 2 * forge.PAGES_BYTES and len(web.kept) < 1000


def test_a_page_has_fewer_rows_than_programs_may_ask_for(web: forge.Web) -> None:
    name = "&" * 200
    heads = [{"branch": name, "commit": "0" * 40}]
    job = {"repo": "app", "branch": name, "kind": forge.PRE, "commit": "0" * 40, "heads": heads, "created_at": forge.at_time(0)}
    with web.engine.lock:
        web.engine.record(*(("job.finished", {**job, "id": number, "status": "passed"}) for number in range(1, 1001)))
    assert len(json.loads(get(web, "/jobs", "limit=1000"))["jobs"]) == 1000
    assert len(get(web, "/jobs", "limit=1000", "text/html")) < 1_000_000


def test_what_is_kept_of_a_page_is_for_one_kind_of_reader_and_until_something_happens(make_server: Callable[..., Server]) -> None:
    server = make_server()
    work = server.repo("app")
    cookie = server.ask("/login", {"password": PASSWORD}).headers["Set-Cookie"].partition(";")[0]
    for path in ("/jobs", "/r/app"):
        for _ in range(2):
            assert "Log out" not in html(server, path)
            assert "Log out" in server.ask(path, Accept="text/html", Cookie=cookie).text
    before = [job["id"] for job in server.get("/jobs")["jobs"]]
    work.branch("topic")
    job_id = work.push_job("topic")
    assert [job["id"] for job in server.get("/jobs")["jobs"]] == [job_id, *before]
    server.idle()
    for path in ("/jobs", "/r/app"):
        page = html(server, path)
        assert f'href="/jobs/{job_id}"' in page and 'data-status="running"' not in page


def test_lists_of_what_led_to_much_are_pages_below_1_mb(make_server: Callable[..., Server]) -> None:
    """Each of 60 merges has a deployment that brought ten bumps about; all branches have long odd names."""
    server = make_server()
    server.repo()
    server.stop()
    ledger, branch, at = forge.Ledger(server.data), "&" * 200, "2030-01-01T00:00:00.000Z"
    events: list[forge.Event] = []
    for job_id in range(1000, 1060):
        commit = f"{job_id:040x}"
        about = {"branch": branch, "head": commit, "parent": commit, "how": "auto", "begun": 0, "merged_at": at}
        events.append(("merged", {**about, "repo": "app", "merge_commit": commit, "job": job_id - 500}))
        job = forge.Job(job_id, "app", "main", forge.POST, commit, [{"branch": "main", "commit": commit}], at, "passed")
        events.append(("job.finished", asdict(replace(job, started_at=at, finished_at=at, base="0" * 40))))
        bump = {**about, "repo": "configs", "job": job_id + 1, "caused_by": f"app {commit} job {job_id}"}
        events += [("merged", {**bump, "merge_commit": f"{number}{commit[1:]}"}) for number in range(10)]
    ledger.record(*events)
    ledger.journal.close()
    server.start()
    for name in ("history", "deployments"):
        seen: list[str] = []
        page = f"/r/app/{name}?limit=60"
        while page:
            text = html(server, page)
            assert len(text.encode()) < 1_000_000, name
            seen += re.findall('data-key="(?:job-)?([0-9a-f]+)"', text)
            older = re.search(r'href="([^"]+before=\d+)"', text)
            page = older[1].replace("&amp;", "&") if older else ""
        assert len(seen) == len(set(seen)) >= 60, name
