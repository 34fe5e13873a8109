"""What programs read: figures, badges, feeds, what has not changed; and the command that is told the news."""

from __future__ import annotations

import http.server
import json
import os
import re
import shlex
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import psutil
import pytest
from conftest import AUTO, ROOT, Server, Work, wait_for
from history import write_history

import forge
from forge import PRE, Herald, Histogram, Ledger, Metric, histogram_samples, news_of, prometheus_text

ATOM = "{http://www.w3.org/2005/Atom}"


# -- figures ----------------------------------------------------------------------------------------------

SAMPLE = re.compile(r'([a-z_]+)(?:\{((?:[a-z_]+="(?:[^"\\\n]|\\["\\n])*",?)*)\})? ([-+.e0-9]+)')
Figures = dict[str, dict[tuple[tuple[str, str], ...], float]]


def parse_figures(text: str) -> Figures:
    """Samples by name and labels, as the text form's grammar wants them: each family told once and in one piece."""
    found: Figures = {}
    kinds: dict[str, str] = {}
    family = ""
    assert text.endswith("\n") and "\n\n" not in text
    for line in text.splitlines():
        if line.startswith("# HELP "):
            family = line.split()[2]
            assert family not in kinds and len(line.split()) > 3
        elif line.startswith("# TYPE "):
            _, _, name, kinds[family] = line.split()
            assert name == family and kinds[family] in ("counter", "gauge", "histogram")
        else:
            match = SAMPLE.fullmatch(line)
            assert match, line
            suffixes = ("_bucket", "_sum", "_count") if kinds[family] == "histogram" else ("",)
            assert match[1] in [family + suffix for suffix in suffixes]
            assert (kinds[family] == "counter") == family.endswith("_total")
            labels = tuple(sorted(re.findall(r'([a-z_]+)="((?:[^"\\]|\\.)*)"', match[2] or "")))
            assert labels not in found.setdefault(match[1], {})
            found[match[1]][labels] = float(match[3])
    return found


def figures(server: Server) -> Figures:
    answer = server.ask("/metrics")
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    return parse_figures(answer.text)


def test_figures_count_jobs_and_merges_and_survive_a_restart(make_server: Callable[..., Server]) -> None:
    server = make_server(FORGE_MAX_JOBS="1")
    work = server.repo("app")
    work.branch("bad", run="exit 3\n")
    work.push("bad")
    work.branch("good", AUTO, run="true\n")
    work.push("good")
    work.landed("good")
    server.idle()

    def look() -> Figures:
        found = figures(server)
        assert found["forge_jobs_total"][("kind", "pre-merge"), ("repo", "app"), ("status", "failed")] == 1
        assert found["forge_jobs_total"][("kind", "pre-merge"), ("repo", "app"), ("status", "passed")] == 1
        assert found["forge_merges_total"] == {(("how", "auto"), ("repo", "app")): 1}
        assert found["forge_job_duration_seconds_count"][(("kind", "pre-merge"),)] == 2
        buckets = [value for labels, value in found["forge_job_duration_seconds_bucket"].items() if ("kind", PRE) in labels]
        assert buckets == sorted(buckets) and buckets[-1] == 2
        assert found["forge_queue_wait_seconds_count"][()] == sum(found["forge_job_duration_seconds_count"].values())
        assert found["forge_jobs_running"][()] == found["forge_jobs_pending"][()] == 0
        assert found["forge_disk_free_bytes"][()] > 0 and found["process_open_fds"][()] > 5
        assert [dict(labels)["version"] for labels in found["forge_build_info"]] == [forge.__version__]
        return found

    before = look()
    counters = [name for name in before if name.startswith(("forge_jobs_total", "forge_job_d", "forge_queue", "forge_merges"))]
    for snapshot in (True, False):
        server.stop()
        if not snapshot:
            (server.data / "snapshot").unlink()
        server.start()
        after = look()
        assert {name: after[name] for name in counters} == {name: before[name] for name in counters}


def test_running_and_pending_jobs_are_told(make_server: Callable[..., Server]) -> None:
    server = make_server(FORGE_MAX_JOBS="1")
    work = server.repo("app")
    gate = work.gate("go")
    for name in ("one", "two", "three"):
        work.branch(name, run=f"while [ ! -e $HOME/{gate.name} ]; do sleep 0.05; done\n")
    work.push("one", "two", "three")
    wait_for(lambda: figures(server)["forge_jobs_running"][()] == 1, "a running job")
    assert figures(server)["forge_jobs_pending"][()] == 2
    gate.touch()
    server.idle()


def test_the_counts_do_not_grow_with_the_journal(tmp_path: Path) -> None:
    sizes = []
    for jobs in (100, 1000):
        (tmp_path / str(jobs)).mkdir()
        write_history(tmp_path / str(jobs), jobs)
        ledger = Ledger(tmp_path / str(jobs))
        ended = [r for _, _, r in ledger.journal.replay() if r["event"] == "job.finished"]
        assert sum(ledger.tally.jobs.values()) == len(ended) > jobs / 2
        merges = [len(ledger.merges_of(f"repo-{number}", limit=jobs)) for number in range(5)]
        assert sum(ledger.tally.merges.values()) == sum(merges) > 0
        sizes.append(len(json.dumps(forge.frozen(ledger.tally, []))))
        ledger.journal.close()
    assert sizes[1] < sizes[0] * 1.5


@pytest.mark.parametrize(("value", "place"), [(0, 0), (0.1, 0), (0.11, 1), (3600, 13), (3601, 14)])
def test_a_value_is_counted_in_the_bucket_that_holds_it(value: float, place: int) -> None:
    seen = Histogram()
    seen.add(value)
    assert seen.counts.index(1) == place and sum(seen.counts) == 1
    samples = histogram_samples(seen, kind="x")
    assert [n for suffix, _, n in samples if suffix == "_bucket"] == [0] * place + [1] * (15 - place)
    assert samples[-2:] == [("_sum", {"kind": "x"}, value), ("_count", {"kind": "x"}, 1)]


def test_labels_are_escaped() -> None:
    text = prometheus_text([Metric("forge_x", "gauge", "Odd.", [("", {"repo": 'a"b\\c\nd,e}'}, 1.5)])])
    assert text == '# HELP forge_x Odd.\n# TYPE forge_x gauge\nforge_x{repo="a\\"b\\\\c␊d,e}"} 1.5\n'
    assert list(parse_figures(text)["forge_x"].values()) == [1.5]


# -- what has not changed ----------------------------------------------------------------------------------


def test_what_has_not_changed_is_not_sent_again(work: Work) -> None:
    server = work.server
    work.branch("topic", run="echo hello\n")
    job = work.push_job("topic")
    server.ended(job)
    repo = f"/r/{work.name}"
    paths = (f"/jobs/{job}", f"/jobs/{job}/log", f"{repo}/badge.svg", f"{repo}/feed.atom", "/static/forge.css", f"{repo}/history")
    for path in paths:
        first = server.ask(path)
        tag = first.headers["ETag"]
        assert first.status == 200 and re.fullmatch('"[^"]+"', tag), path
        for given in (tag, f'"other", {tag}', f"W/{tag}", "*"):
            again = server.ask(path, If_None_Match=given)
            assert (again.status, again.body, again.headers["ETag"]) == (304, b"", tag), (path, given)
        assert server.ask(path, If_None_Match='"other"').body == first.body
        assert "no-cache" in first.headers["Cache-Control"]
    assert server.ask(f"/jobs/{job}", Accept="text/html").headers["ETag"] != server.ask(f"/jobs/{job}").headers["ETag"]
    assert "Accept" in server.ask(f"/jobs/{job}").headers["Vary"]


def test_parts_of_a_log_are_of_the_log_that_was_asked_for(work: Work) -> None:
    server = work.server
    work.branch("topic", run="printf 0123456789\n")
    job = work.push_job("topic")
    server.ended(job)
    path = f"/jobs/{job}/log"
    whole = server.ask(path)
    tag, log_file = whole.headers["ETag"], server.data / "logs" / work.name / f"{job}.log"
    part = server.ask(path, Range="bytes=2-4", If_Range=tag)
    assert (part.status, part.body, part.headers["ETag"]) == (206, b"234", tag)
    assert server.ask(path, Range="bytes=2-4", If_None_Match=tag).status == 304
    log_file.write_bytes(b"abcdefghij")  # same size, and within the second
    assert server.ask(path, Range="bytes=2-4", If_Range=tag).body == b"abcdefghij"
    fresh = server.ask(path, If_None_Match=tag, If_Modified_Since=whole.headers["Last-Modified"])
    assert fresh.status == 200 and fresh.headers["ETag"] != tag


def test_a_tag_tells_nothing_of_files_elsewhere(shared: Server) -> None:
    assert shared.ask("/static/../../forge.py", If_None_Match="*").status in (403, 404)
    assert shared.ask("/static/nothing.css", If_None_Match="*").status == 404


def test_a_private_forge_tells_programs_nothing_without_the_token(make_server: Callable[..., Server]) -> None:
    server = make_server(FORGE_PRIVATE="1")
    server.cli("create", "app")
    token = (server.data / "token").read_text().strip()
    for path in ("/metrics", "/search?q=x", "/r/app/badge.svg", "/r/app/feed.atom"):
        assert server.ask(path).status == server.ask(path, If_None_Match="*").status == 401, path
        assert server.ask(path, Authorization=f"Bearer {token}").status == 200, path


# -- badge and feed ----------------------------------------------------------------------------------------


def badge(work: Work) -> str:
    answer = work.server.ask(f"/r/{work.name}/badge.svg")
    assert answer.headers["Content-Type"] == "image/svg+xml" and answer.headers["Cache-Control"] == "no-cache"
    picture = ElementTree.fromstring(answer.body)
    title = picture.findtext("{http://www.w3.org/2000/svg}title") or ""
    assert picture.tag == "{http://www.w3.org/2000/svg}svg" and title.startswith(f"{work.name}: ")
    assert b"url(" not in answer.body and b"@font" not in answer.body
    words = [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert words == ["forge", title.split(": ")[1]]
    return str(words[1])


def test_the_badge_tells_how_base_stands(work: Work) -> None:
    assert badge(work) == "passed"
    gate = work.server.data / "home" / work.name / "post-merge" / "go"
    gate.parent.mkdir(parents=True, exist_ok=True)
    work.branch("deploys", deploy="while [ ! -e $HOME/go ]; do sleep 0.05; done; exit 1\n")
    work.push("deploys:main")
    wait_for(lambda: badge(work) == "running", "the deployment")
    gate.touch()
    wait_for(lambda: badge(work) == "failed", "its end")
    assert work.server.ask("/r/nothing/badge.svg").status == 404


def test_a_repo_without_a_deployment_is_judged_by_what_was_merged(work: Work) -> None:
    work.git("rm", "-q", ".forge/post-merge")
    work.commit("No deployment")
    work.push("HEAD:main")
    work.server.idle()
    assert badge(work) == "none"
    work.branch("topic", AUTO)
    work.push("topic")
    work.landed("topic")
    work.server.idle()
    assert badge(work) == "passed"


def feed(server: Server, repo: str) -> Any:
    answer = server.ask(f"/r/{repo}/feed.atom")
    assert answer.status == 200 and answer.headers["Content-Type"] == "application/atom+xml", answer.body
    root = ElementTree.fromstring(answer.body)
    for element in (root, *root.iter(f"{ATOM}entry")):
        for name in ("id", "title", "updated"):
            assert len(element.findall(f"{ATOM}{name}")) == 1
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", element.findtext(f"{ATOM}updated"))
    assert root.findtext(f"{ATOM}author/{ATOM}name")
    ids = [entry.findtext(f"{ATOM}id") for entry in root.iter(f"{ATOM}entry")]
    assert len(set(ids)) == len(ids) <= 50 and all(one.startswith("urn:uuid:") for one in ids)
    return root


def test_the_feed_tells_merges_failures_and_deployments(make_server: Callable[..., Server]) -> None:
    server = make_server(FORGE_URL="http://forge.test")
    server.url = (server.data / "address").read_text().strip()
    work = server.repo("app")
    odd = "b<&\"'>"
    work.branch(odd, run="exit 3\n")
    work.push(odd)
    server.idle()
    work.branch("good", AUTO, run="true\n")
    work.push("good")
    work.landed("good")
    server.idle()
    root = feed(server, "app")
    titles = [entry.findtext(f"{ATOM}title") for entry in root.iter(f"{ATOM}entry")]
    assert titles == ["main was deployed", "good was merged", f"pre-merge of {odd} failed", "main was deployed"]
    links = [link.get("href") for link in root.iter(f"{ATOM}link")]
    assert links[:2] == ["http://forge.test/r/app/feed.atom", "http://forge.test/r/app"]
    assert all(re.fullmatch(r"http://forge\.test/jobs/\d+", link) for link in links[2:])
    before = [entry.findtext(f"{ATOM}id") for entry in root.iter(f"{ATOM}entry")]
    server.stop()
    server.settings["FORGE_URL"] = "http://other.test"
    server.start()
    server.url = (server.data / "address").read_text().strip()
    assert [entry.findtext(f"{ATOM}id") for entry in feed(server, "app").iter(f"{ATOM}entry")] == before
    page = server.ask("/r/app", Accept="text/html").text
    assert (
        '<link rel="alternate" type="application/atom+xml" title="Merges, failures, deployments" href="/r/app/feed.atom">' in page
    )


def test_a_feed_of_nothing_and_of_odd_records_is_valid(make_server: Callable[..., Server]) -> None:
    server = make_server()
    server.cli("create", "new")
    assert list(feed(server, "new").iter(f"{ATOM}entry")) == []
    server.stop()
    heads = [{"branch": "\udcff\x0b]]>", "commit": "c" * 40}]
    job = {"id": 1, "repo": "new", "kind": PRE, "created_at": "2024-01-02T03:04:05.678Z", "heads": heads, **heads[0]}
    record = {"seq": 99, "event": "job.finished", **job, "status": "failed", "reason": "\x1b[31m\ufffe\x00"}
    with open(server.data / "jobs.jsonl", "a") as journal:
        journal.write(json.dumps({"at": job["created_at"], **record}) + "\n")
    server.start()
    (entry,) = feed(server, "new").iter(f"{ATOM}entry")
    assert entry.findtext(f"{ATOM}title") == "pre-merge of ⟨FF⟩␋]]> failed"


# -- news ----------------------------------------------------------------------------------------------------


def told(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_the_command_is_told_what_happens_once_and_in_order(make_server: Callable[..., Server], tmp_path: Path) -> None:
    news = tmp_path / "news"
    server = make_server(FORGE_NOTIFY=f"cat >>{shlex.quote(str(news))}; env >{shlex.quote(str(tmp_path / 'env'))}")
    work = server.repo("app")
    wait_for(lambda: [one["event"] for one in told(news)] == ["deployed"], "the first deployment")
    head = work.branch("topic", run="exit 3\n")
    failed = work.push_job("topic")
    server.ended(failed)
    passed_head = work.commit(AUTO, run="true\n")
    passed = work.push_job("topic")
    work.landed("topic")
    server.idle()
    events = ["deployed", "job.failed", "job.recovered", "merged", "deployed"]
    wait_for(lambda: len(told(news)) >= len(events), "the news")
    server.stop()
    server.start()
    server.idle()
    server.stop()
    found = told(news)
    assert [one["event"] for one in found] == events
    failure, recovery, merge, deployment = found[1:]
    place = {"repo": "app", "branch": "topic", "job": failed, "commit": head, "url": f"{failure['url']}"}
    assert failure.items() >= place.items() and failure["url"].endswith(f"/jobs/{failed}")
    assert (failure["reason"], failure["status"], failure["branches"]) == ("exit code 3", "failed", ["topic"])
    assert "digest" in failure and re.fullmatch(r"\d{4}-.*Z", failure["at"])
    assert (recovery["job"], recovery["commit"]) == (passed, passed_head)
    assert (merge["how"], merge["head"], merge["job"]) == ("auto", passed_head, passed)
    assert (deployment["branch"], deployment["commit"], deployment["kind"]) == ("main", merge["commit"], "post-merge")
    environ = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines() if "=" in line)
    assert {name for name in environ if name.startswith("FORGE_")} == {"FORGE_DATA_DIR", "FORGE_URL"}
    assert not any(secret in (tmp_path / "env").read_text() for secret in ("correct horse", "TOKEN", "PASSWORD"))


def test_a_merge_whose_record_was_lost_is_told_once(make_server: Callable[..., Server], tmp_path: Path) -> None:
    news = tmp_path / "news"
    server = make_server(FORGE_NOTIFY=f"cat >>{shlex.quote(str(news))}")
    work = server.repo("app")
    work.branch("topic", AUTO)
    work.push("topic")
    work.landed("topic")
    server.idle()
    wait_for(lambda: [one["event"] for one in told(news)] == ["deployed", "merged", "deployed"], "the news")
    server.stop()
    (server.data / "merges.jsonl").write_text("")
    (server.data / "snapshot").unlink()
    server.start()
    wait_for(work.merges, "the record, written from the commit")
    server.stop()
    assert len(told(news)) == 3


RECORD = {"id": 5, "repo": "app", "branch": "b", "kind": PRE, "commit": "c", "heads": [{"branch": "b", "commit": "c"}]}
RECORD |= {"event": "job.finished", "status": "passed", "created_at": "1", "finished_at": "2"}
MERGE = {"event": "merged", "repo": "app", "branch": "b", "head": "h", "merge_commit": "m", "job": 5, "at": "3"}


@pytest.mark.parametrize(
    ("record", "before", "events"),
    [
        (RECORD, None, []),
        (RECORD, "passed", []),
        (RECORD, "failed", ["job.recovered"]),
        (RECORD, "timeout", ["job.recovered"]),
        (RECORD | {"kind": "post-merge"}, "failed", ["job.recovered", "deployed"]),
        (RECORD | {"kind": "post-merge", "status": "skipped"}, "failed", []),
        (RECORD | {"status": "failed"}, "passed", ["job.failed"]),
        (RECORD | {"status": "timeout"}, "failed", ["job.failed"]),
        (RECORD | {"status": "superseded"}, "failed", []),
        (RECORD | {"status": "canceled"}, "failed", []),
        (MERGE, None, ["merged"]),
        (MERGE | {"how": "rollback"}, None, ["rolled-back"]),
    ],
)
def test_what_is_news(record: dict[str, Any], before: str | None, events: list[str]) -> None:
    news = news_of(record, before, "http://forge")
    assert [one["event"] for one in news] == events
    assert all(one["url"] == "http://forge/jobs/5" and one["at"] in "23" for one in news)


@pytest.fixture
def herald(tmp_path: Path) -> Iterator[Callable[[str], Herald]]:
    made: list[Herald] = []

    def make(command: str) -> Herald:
        environ = {"PATH": os.environ["PATH"], "HERE": str(tmp_path)}
        made.append(Herald(command, environ, lambda record: [{"event": "x", "repo": "app", "branch": "b", "n": record["n"]}]))
        made[-1].thread.start()
        return made[-1]

    yield make
    for one in made:
        one.stop(0)
        one.thread.join(10)
        assert not one.thread.is_alive()


def merged(*numbers: int) -> list[dict[str, Any]]:
    return [{"event": "merged", "repo": "app", "branch": "b", "n": number} for number in numbers]


def test_a_failing_command_is_told_in_one_line_and_the_next_news_comes(
    herald: Callable[[str], Herald], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    one = herald('cat >>"$HERE/news"; exit 7')
    one.hear(merged(1, 2))
    wait_for(lambda: [piece["n"] for piece in told(tmp_path / "news")] == [1, 2], "both")
    one.stop(5)
    lines = [line for line in capfd.readouterr().err.splitlines() if "FORGE_NOTIFY" in line]
    assert lines == ["forge: FORGE_NOTIFY failed (exit code 7); it was told x app/b"] * 2


def test_a_command_that_hangs_is_killed_with_all_it_started(
    herald: Callable[[str], Herald], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(forge, "NEWS_SECONDS", 0.3)
    one = herald('sleep 1000 & echo $! >>"$HERE/pids"; wait')  # reads nothing of what it is told
    one.hear(merged(1, 2))
    wait_for(lambda: len((tmp_path / "pids").read_text().split()) == 2 if (tmp_path / "pids").exists() else False, "both runs")
    one.stop(5)
    for pid in map(int, (tmp_path / "pids").read_text().split()):
        wait_for(lambda pid=pid: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie", "its end")
    assert capfd.readouterr().err.count("took longer than") == 2


def test_news_that_nobody_takes_do_not_pile_up_and_nobody_waits_for_them(
    herald: Callable[[str], Herald], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(forge, "NEWS_WAITING", 3)
    one = herald('echo >>"$HERE/begun"; sleep 1000')
    one.hear(merged(0))
    wait_for((tmp_path / "begun").exists, "the first")
    one.hear(merged(*range(1, 6)))
    assert len(one.waiting) == 3
    one.stop(0)
    one.thread.join(10)
    said = capfd.readouterr().err
    assert said.count("is too slow and is not told of merged app/b") == 2
    assert "the server ends before FORGE_NOTIFY was told of the newest 3 jobs and merges" in said


def test_a_hanging_command_holds_up_neither_merges_nor_the_end(make_server: Callable[..., Server], tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    server = make_server(FORGE_NOTIFY=f"echo $$ >>{shlex.quote(str(pids))}; sleep 1000")
    work = server.repo("app")
    wait_for(pids.exists, "the command")
    work.branch("topic", AUTO)
    work.push("topic")
    work.landed("topic")
    began = time.monotonic()
    assert server.stop(signal.SIGTERM) == 0 and time.monotonic() - began < 10
    (pid,) = map(int, pids.read_text().split())
    wait_for(lambda: not psutil.pid_exists(pid), "its end")


def example(begins: str) -> str:
    """A command from README.md."""
    readme = (ROOT / "README.md").read_text()
    found = re.search(rf"^FORGE_NOTIFY='({re.escape(begins)}[^']*)'", readme, re.MULTILINE)
    assert found, begins
    return found[1]


PIECE = {"event": "job.failed", "repo": "app", "branch": "b", "url": "http://forge/jobs/5", "reason": "exit code 1", "n": 1}


@pytest.mark.skipif(not shutil.which("jq"), reason="jq is not installed: the examples with it are not tried")
def test_the_example_for_a_chat_webhook_works(herald: Callable[[str], Herald], tmp_path: Path) -> None:
    posted: list[Any] = []

    class Chat(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Chat) as chat:
        threading.Thread(target=chat.serve_forever, daemon=True).start()
        (tmp_path / "webhook").write_text(f"http://127.0.0.1:{chat.server_port}/hook\n")
        one = herald(example("jq -c ").replace("/etc/forge/webhook", shlex.quote(str(tmp_path / "webhook"))))
        one.news = lambda record: [PIECE]
        one.hear(merged(1))
        wait_for(lambda: posted, "the message")
        chat.shutdown()
    assert posted == [{"text": "job.failed app b exit code 1 http://forge/jobs/5"}]


@pytest.mark.skipif(not shutil.which("jq"), reason="jq is not installed: the examples with it are not tried")
def test_the_example_for_mail_works(herald: Callable[[str], Herald], tmp_path: Path) -> None:
    (tmp_path / "sendmail").write_text(
        f'#!/bin/sh\necho "$@" >{tmp_path}/args\ncat >{tmp_path}/mail.new\nmv {tmp_path}/mail.new {tmp_path}/mail\n'
    )
    (tmp_path / "sendmail").chmod(0o755)
    one = herald(example("jq -r ").replace("/usr/sbin/sendmail", str(tmp_path / "sendmail")))
    one.news = lambda record: [PIECE]
    one.hear(merged(1))
    wait_for((tmp_path / "mail").exists, "the mail")
    head, _, body = (tmp_path / "mail").read_text().partition("\n\n")
    assert head.splitlines() == ["To: you@example.org", "Subject: forge: job.failed app/b"]
    assert body == "exit code 1\nhttp://forge/jobs/5\n" and (tmp_path / "args").read_text() == "-t\n"
