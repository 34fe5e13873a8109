"""What programs read: figures, badges, feeds, what has not changed; and the command that is told the news."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import AUTO, Server, Work, wait_for
from history import write_history

import forge
from forge import PRE, Histogram, Ledger, Metric, histogram_samples, prometheus_text

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
    assert text == '# HELP forge_x Odd.\n# TYPE forge_x gauge\nforge_x{repo="a\\"b\\\\c\\nd,e}"} 1.5\n'
    assert list(parse_figures(text)["forge_x"].values()) == [1.5]


# -- what has not changed ----------------------------------------------------------------------------------


def test_what_has_not_changed_is_not_sent_again(work: Work) -> None:
    server = work.server
    work.branch("topic", run="echo hello\n")
    job = work.push_job("topic")
    server.ended(job)
    repo = f"/r/{work.name}"
    paths = (f"/jobs/{job}", f"/jobs/{job}/log", "/static/forge.css", f"{repo}/history")
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
    for path in ("/metrics", "/r/app"):
        assert server.ask(path).status == server.ask(path, If_None_Match="*").status == 401, path
        assert server.ask(path, Authorization=f"Bearer {token}").status == 200, path
