"""forge audit: what it proves, what it names, and what it finds when somebody plants it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import AUTO, Server, Work, clean_environ, end, wait_for

import forge


def audit(server: Server, *args: str) -> tuple[int, Any]:
    """The exit code and the JSON of an audit."""
    done = server.cli("audit", *args, "--json", check=False)
    assert done.stderr == "", done.stderr
    return done.returncode, json.loads(done.stdout)


def only(server: Server, *args: str) -> tuple[int, Any]:
    """The exit code, and what was found in the only repo."""
    code, found = audit(server, *args)
    assert found["ok"] == (code == 0) and len(found["repos"]) == 1
    return code, found["repos"][0]


def texts(found: Any) -> str:
    """All that is broken in a repo, in one string."""
    return "; ".join(item["text"] for item in found["broken"])


def land(work: Work, *names: str) -> None:
    """Push auto-merge branches, one after the other, and wait until each is in base."""
    for name in names:
        work.branch(name, AUTO)
        work.push(name)
        work.landed(name)


@dataclass
class Scene:
    """A copy of a stopped server's data directory to plant things in, with the one repo that is in it."""

    server: Server
    path: Path

    def git(self, *args: str, text: str = "") -> str:
        done = subprocess.run(["git", *args], cwd=self.path, env=clean_environ(), capture_output=True, text=True, input=text)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    @property
    def tip(self) -> str:
        return self.git("rev-parse", "main")

    def records(self, event: str) -> list[Any]:
        return [record for record in self.server.journal() if record["event"] == event]

    def job_of(self, branch: str) -> Any:
        """The verdict of a branch's only job."""
        (job,) = (job for job in self.records("job.finished") if job["branch"] == branch)
        return job

    def plant_merge(self, branch: str, head: str, job: int, tree: str | None = None) -> Any:
        """Move base to a merge as forge would make it, of any tree; the record that would fit it."""
        tree, parent = tree or self.git("rev-parse", f"{head}^{{tree}}"), self.tip
        message = forge.merge_message(branch, head, job)
        commit = self.git("commit-tree", tree, "-p", parent, "-p", head, text=message)
        self.git("update-ref", "refs/heads/main", commit)
        about = {"repo": "app", "branch": branch, "head": head, "merge_commit": commit, "parent": parent}
        return {**about, "tree": tree, "job": job, "how": "auto", "merged_at": forge.now()}

    def write(self, event: str, file: str = "merges", **values: Any) -> None:
        """Append a record to the journal."""
        seq = max(record["seq"] for record in self.server.journal()) + 1
        with open(self.server.data / f"{file}.jsonl", "a") as stream:
            stream.write(json.dumps({"seq": seq, "at": forge.now(), "event": event, **values}) + "\n")

    def rewrite(self, change: Callable[[Any], Any]) -> None:
        """Put each record of merges.jsonl through `change`; None takes it out."""
        path = self.server.data / "merges.jsonl"
        records = (change(json.loads(line)) for line in path.read_text().splitlines())
        path.write_text("".join(json.dumps(record) + "\n" for record in records if record))


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The data directory of a server that has merged two branches, failed one, passed one, and taken a direct push."""
    server = Server(tmp_path_factory.mktemp("audit") / "data").start()
    work = server.repo("app")
    land(work, "one", "two")
    work.branch("bad", AUTO, run="exit 1")
    work.branch("open")
    work.push("bad", "open")
    work.branch("straight", "Straight to base")
    work.push("straight:main")
    server.idle()
    server.stop()
    yield server.data
    end(server)


@pytest.fixture
def scene(played: Path, tmp_path: Path) -> Scene:
    """A copy of that directory of one's own."""
    data = tmp_path / "data"
    shutil.copytree(played, data, symlinks=True)
    return Scene(Server(data), data / "repos/app.git")


# -- what is well ------------------------------------------------------------------------------------------


def test_merges_are_proved_and_direct_pushes_named(scene: Scene) -> None:
    before = sorted((str(path), path.lstat().st_mtime_ns) for path in scene.server.data.rglob("*"))
    code, found = only(scene.server)
    assert code == 0, texts(found)
    assert (found["repo"], found["base"], found["merges"], found["copied"]) == ("app", "main", 2, 0)
    assert [commit["subject"] for commit in found["direct"]] == ["Straight to base", "First commit"]
    assert found["direct"][0]["commit"] == scene.tip and found["direct"][0]["authored_at"].startswith("20")
    assert (found["forced"], found["broken"]) == ([], [])
    assert sorted((str(path), path.lstat().st_mtime_ns) for path in scene.server.data.rglob("*")) == before


def test_text_is_a_line_a_repo_and_what_is_to_be_named(scene: Scene) -> None:
    said = scene.server.cli("audit").stdout.split("\n")
    assert said[0] == "app (main): ok; 2 merges proved, 2 commits pushed directly, 0 copied in"
    assert said[1].startswith(f"  direct  {scene.tip[:12]}  20") and said[1].endswith("  Straight to base")
    scene.plant_merge("evil", scene.tip, 1)
    done = scene.server.cli("audit", "app", check=False)
    assert done.returncode == 1 and done.stdout.startswith("app (main): BROKEN; ")
    assert f"\n  broken  {scene.tip[:12]}  this merge of evil has no records in merges.jsonl" in done.stdout


def test_no_such_repo_and_odd_names_end_with_2(make_server: Callable[..., Server]) -> None:
    server = make_server(start=False)
    assert server.cli("audit").stdout == "no repo yet\n"
    for name, said in (("nothere", "there is no repo nothere"), ("../etc", "no name of a repo"), ("", "no name of a repo")):
        done = server.cli("audit", name, check=False)
        assert (done.returncode, done.stdout) == (2, "") and said in done.stderr and done.stderr.count("\n") == 1


def test_it_is_right_at_every_moment_of_a_server_that_merges(make_server: Callable[..., Server]) -> None:
    work = make_server(FORGE_MAX_JOBS="2").repo("app")
    names = [f"b{number}" for number in range(8)]
    for name in names:
        work.branch(name, AUTO)
    work.push(*names)
    merges = 0
    while merges < len(names):
        code, found = only(work.server, "app")
        assert code == 0, texts(found)
        assert found["merges"] >= merges
        merges = found["merges"]
    work.landed()


def test_an_unfinished_last_line_is_not_there_yet(scene: Scene) -> None:
    for name in ("jobs", "merges"):
        with open(scene.server.data / f"{name}.jsonl", "a") as stream:
            stream.write('{"seq":9999,"at":"2026-01-01T00:00:00.000Z","event":"mer')
    assert only(scene.server)[0] == 0


def test_what_came_with_a_copied_repo_is_counted_and_the_rest_proved(scene: Scene, make_server: Callable[..., Server]) -> None:
    scene.plant_merge("evil", scene.tip, 1)  # who knows what another server did
    server = make_server("other")
    here = server.data / "repos/app.git"
    subprocess.run(["git", "clone", "-q", "--bare", str(scene.path), str(here)], check=True, env=clean_environ())
    assert only(server) == (0, {**only(server)[1], "copied": 5, "direct": [], "merges": 0})  # before a server has seen it
    server.stop()
    server.start()  # it looks at all repos
    wait_for((here / "hooks/post-receive").exists, "the hooks")
    work = Work(server, "app", here, server.data.parent / "clone")
    subprocess.run(["git", "clone", "-q", str(here), str(work.tree)], check=True, env=clean_environ())
    land(work, "three")
    work.branch("four", "Directly")
    work.push("four:main")
    wait_for(lambda: work.heads()["main"] == server.get("/r/app")["head"], "the look")
    code, found = only(server)
    assert (code, found["copied"], found["merges"], [c["subject"] for c in found["direct"]]) == (0, 5, 1, ["Directly"])


def test_a_repo_deleted_and_made_anew_begins_anew(make_server: Callable[..., Server]) -> None:
    server = make_server()
    land(server.repo("app"), "one")
    server.cli("delete", "app", "--yes")
    wait_for(lambda: [r for r in server.journal() if r["event"] == "repo.gone"], "the look")
    shutil.rmtree(server.data.parent / "data-work")
    land(server.repo("app"), "one", "two")
    code, found = only(server)
    assert (code, found["merges"], len(found["direct"])) == (0, 2, 1)


def test_base_may_be_merged_into_what_is_pushed_to_it(make_server: Callable[..., Server]) -> None:
    work = make_server().repo("app")
    land(work, "one")
    work.git("checkout", "-q", "-B", "mine", work.git("rev-list", "--max-parents=0", "HEAD"))
    work.commit("Mine", mine="1")
    work.git("fetch", "-q", "origin")
    work.git("merge", "-q", "--no-edit", "origin/main")  # what git pull makes: the merge is now on the second parent's side
    work.push("mine:main")
    land(work, "two")
    code, found = only(work.server)
    assert (code, found["merges"], found["forced"], found["broken"]) == (0, 2, [], [])


def test_another_branch_may_become_base(make_server: Callable[..., Server]) -> None:
    work = make_server().repo("app")
    land(work, "one")
    work.push(f"{work.git('rev-list', '--max-parents=0', 'origin/main')}:refs/heads/old")
    work.bare("symbolic-ref", "HEAD", "refs/heads/old")
    work.push("origin/old:refs/heads/look")
    wait_for(lambda: work.server.journal()[-1].get("branch") == "old" or only(work.server)[1]["base"] == "old", "the look")
    assert only(work.server)[0] == 0


# -- what is named -----------------------------------------------------------------------------------------


def test_a_forced_push_is_named_also_when_what_was_there_is_gone(make_server: Callable[..., Server]) -> None:
    server = make_server()
    work = server.repo("app")
    land(work, "one")
    tips = []
    for subject in ("Straight", "Bent"):
        work.git("fetch", "-q", "origin")
        tips.append(work.branch("straight", subject, start=work.heads()["main"] if not tips else f"{tips[0]}^"))
        work.push("straight:main", force=True)
        wait_for(lambda: any(r.get("new") == tips[-1] for r in server.journal() if r["event"] == "base.moved"), "the look")
    for _ in range(2):
        code, found = only(server)
        assert code == 0, texts(found)
        assert [(move["old"], move["new"]) for move in found["forced"]] == [tuple(tips)]
        assert [commit["subject"] for commit in found["direct"]] == ["Bent", "First commit"]
        server.idle()
        work.bare("prune", "--expire=now")
    assert tips[0] not in work.bare("cat-file", "--batch-check", "--batch-all-objects")
    assert f"  forced  {tips[0][:12]} to {tips[1][:12]}  20" in server.cli("audit").stdout


def test_base_that_was_wound_back_behind_a_merge(scene: Scene) -> None:
    first, second = scene.records("merged")
    scene.git("update-ref", "refs/heads/main", first["merge_commit"])
    scene.write("base.moved", "jobs", repo="app", branch="main", old=scene.records("base.moved")[-1]["new"], new=scene.tip)
    code, found = only(scene.server)
    assert (code, found["merges"], len(found["forced"])) == (1, 1, 1)
    wanted = [{"commit": second["merge_commit"], "text": "base was wound back behind this merge of two"}]
    assert found["broken"] == wanted
    scene.git("update-ref", "-d", "refs/heads/main")
    assert len(only(scene.server)[1]["broken"]) == 2


# -- what is planted ---------------------------------------------------------------------------------------


def test_a_merge_without_a_record(scene: Scene) -> None:
    scene.plant_merge("open", scene.job_of("open")["commit"], scene.job_of("open")["id"])
    code, found = only(scene.server)
    assert code == 1 and found["broken"][0]["commit"] == scene.tip and "has no records" in texts(found)


def test_a_record_that_is_gone(scene: Scene) -> None:
    scene.rewrite(lambda record: None if record["event"] == "merged" and record["branch"] == "one" else record)
    code, found = only(scene.server)
    assert (code, found["merges"]) == (1, 1) and texts(found).startswith("this merge of one has no records")


def test_a_record_twice(scene: Scene) -> None:
    record = scene.records("merged")[0]
    scene.write(**{key: value for key, value in record.items() if key not in ("seq", "at")})
    code, found = only(scene.server)
    assert code == 1 and texts(found) == "this merge of one has 2 records in merges.jsonl, but must have one"


@pytest.mark.parametrize("field", ["parent", "head", "tree", "branch", "job"])
def test_a_record_that_does_not_fit_its_commit(scene: Scene, field: str) -> None:
    other = scene.job_of("two")["id"] if field == "job" else "0" * 40

    scene.rewrite(
        lambda record: {**record, field: other} if (record["event"], record.get("branch")) == ("merged", "one") else record
    )
    code, found = only(scene.server)
    assert code == 1 and "does not fit the commit" in texts(found)


@pytest.mark.parametrize("branch", ["open", "bad", "nowhere"])
def test_a_tree_that_was_not_tested(scene: Scene, branch: str) -> None:
    """Naming a job that passed, one that failed, one that never was."""
    job = scene.job_of(branch) if branch != "nowhere" else {**scene.job_of("open"), "id": 77}
    tree = scene.git("mktree", text=f"100644 blob {scene.git('hash-object', '-w', '--stdin', text='untested')}\tfile\n")
    scene.write("merged", **scene.plant_merge(job["branch"], job["commit"], job["id"], tree))
    code, found = only(scene.server)
    wanted = {
        "open": f"job {job['id']} tested {job['tested']}, not this commit",
        "bad": f"job {job['id']}, which bad was merged for, failed",
        "nowhere": "job 77, which open was merged for, has no verdict as a pre-merge job of this repo",
    }
    assert code == 1 and wanted[branch] in texts(found)


def test_a_head_merged_twice_for_one_job(scene: Scene) -> None:
    record = scene.records("merged")[0]
    scene.write("merged", **scene.plant_merge("one", record["head"], record["job"]))
    assert f"one was merged 2 times for job {record['job']}" in texts(only(scene.server)[1])


def test_a_verdict_that_was_added(scene: Scene) -> None:
    bad = scene.job_of("bad")
    planted = {key: value for key, value in bad.items() if key not in ("seq", "at", "event")} | {
        "status": "passed",
        "exit_code": 0,
    }
    scene.git("update-ref", "refs/heads/main", scene.records("merged")[-1]["merge_commit"])
    scene.git("update-ref", "refs/heads/main", bad["tested"])
    about = {"repo": "app", "branch": "bad", "head": bad["commit"], "merge_commit": bad["tested"], "parent": bad["base"]}
    scene.write("job.finished", "jobs", **planted)
    scene.write("merged", **about, tree=bad["tree"], job=bad["id"], how="auto")
    assert f"job {bad['id']}, which bad was merged for, failed and passed" in texts(only(scene.server)[1])


def test_a_line_that_is_no_record_and_a_record_that_makes_no_sense(scene: Scene) -> None:
    scene.write("merged", repo="app", branch="x")
    scene.write("a.newer.event", repo="app")
    with open(scene.server.data / "jobs.jsonl", "a") as stream:
        stream.write("\x00\x00\x00\n")
    code, found = audit(scene.server)
    assert code == 1 and found["repos"][0]["ok"]
    assert "jobs.jsonl, line" in found["journal"][0] and "is no record" in found["journal"][0]
    assert "(merged of app) cannot be understood" in found["journal"][1] and len(found["journal"]) == 2


def test_a_repo_that_git_cannot_read_is_told_and_the_rest_goes_on(scene: Scene) -> None:
    shutil.copytree(scene.path, scene.path.with_name("fine.git"))
    (scene.path / "objects" / scene.tip[:2] / scene.tip[2:]).unlink()
    code, found = audit(scene.server)
    assert code == 1 and [repo["ok"] for repo in found["repos"]] == [False, True]
    assert texts(found["repos"][0]).startswith("git cannot read it: git ") and len(found["repos"][0]["broken"]) == 1


# -- chains and results that were reused: the pure part -----------------------------------------------------


def chain_of(*branches: str, **job: Any) -> Any:
    """(line, told, verdicts) of branches that landed together on a base of one commit, for job 7."""
    landed = [forge.Landed("root", "t0", "", "", "First", "", "", "")]
    merges = []
    for name in branches:
        before, tree = landed[-1].commit, f"tree-{name}"
        landed.append(forge.Landed(f"m-{name}", tree, f"{before} h-{name}", "", f"Forge Merge: {name}", name, f"h-{name}", "7"))
        merge = {"branch": name, "head": f"h-{name}", "merge_commit": f"m-{name}", "parent": before, "tree": tree, "job": 7}
        merges.append({**merge, "base": "main"})
    verdict = {
        "status": "passed",
        "heads": [{"branch": name, "commit": f"h-{name}"} for name in branches],
        "tested": landed[-1].commit,
        "tree": landed[-1].tree,
        "chain": [[f"m-{name}", f"tree-{name}"] for name in branches],
        "exit_code": 0,
        "reused_from": None,
    }
    line = forge.Line("main", landed[-1].commit, {commit.commit: commit for commit in reversed(landed)}, copied={"root"})
    return line, forge.Told("root", "main", merges), {7: [verdict | job]}


def proved(line: Any, told: Any, verdicts: Any) -> str:
    """What is broken, in one string."""
    found = forge.prove("app", line, told, verdicts)
    assert found["ok"] == (found["broken"] == [])
    return texts(found)


def test_a_chain_that_landed_whole() -> None:
    assert proved(*chain_of("a", "b", "c")) == ""


def test_a_chain_of_which_only_a_part_landed() -> None:
    line, told, verdicts = chain_of("a", "b", "c")
    del line.landed["m-c"], told.merges[2]
    assert "job 7 has another tree than git" in proved(line, told, verdicts)


def test_a_chain_in_another_order() -> None:
    line, told, verdicts = chain_of("a", "b", "c")
    verdicts[7][0]["chain"] = [verdicts[7][0]["chain"][number] for number in (1, 0, 2)]
    assert "did not land together and in order" in proved(line, told, verdicts)


def test_a_chain_whose_last_commit_was_not_what_was_tested() -> None:
    assert "ends in another commit than it tested" in proved(*chain_of("a", "b", tested="m-a", tree="tree-a"))


def test_a_chain_with_a_head_the_job_did_not_have() -> None:
    assert "did not test this head of a" in proved(*chain_of("a", "b", heads=[{"branch": "b", "commit": "h-b"}]))


@pytest.mark.parametrize(
    ("source", "well"),
    [
        ({}, True),
        ({"status": "failed", "exit_code": 1}, False),
        ({"tree": "another"}, False),
        ({"exit_code": None, "reused_from": 2}, False),
        (None, False),
    ],
)
def test_a_result_that_was_reused(source: dict[str, Any] | None, well: bool) -> None:
    line, told, verdicts = chain_of("a", exit_code=None, reused_from=3)
    if source is not None:
        verdicts[3] = [{"status": "passed", "exit_code": 0, "tree": "tree-a", "reused_from": None, **source}]
    said = proved(line, told, verdicts)
    assert said == "" if well else "rests on job 3, which did not run and pass with the same tree" in said


def test_a_job_that_passed_without_having_run() -> None:
    assert "rests on job 7, which did not run" in proved(*chain_of("a", exit_code=None))


def test_verdicts_that_make_no_sense_are_told() -> None:
    assert "cannot be understood" in proved(*chain_of("a", heads=7))
    assert "cannot be understood" in proved(*chain_of("a", chain=7))


# -- records of a newer version ----------------------------------------------------------------------------

NEWER: list[tuple[str, str, dict[str, Any]]] = [
    ("tags.sorted", "merges", {}),
    ("tags.sorted", "merges", {"repo": 5, "begun": "x"}),
    ("host.seen", "jobs", {"repo": None, "id": {"a": 1}, "job": [], "at": None}),
    ("job.annotated", "jobs", {"id": 10**30, "kind": "pre-merge"}),
    ("\u2028new\x1b[31m", "jobs", {"repo": "../x", "heads": []}),
]


def test_records_of_a_newer_version_are_named_and_break_nothing(scene: Scene) -> None:
    for event, file, values in NEWER:
        scene.write(event, file, **values)
    code, found = audit(scene.server)
    assert code == 0 and found["ok"] and found["journal"] == [] and found["repos"][0]["merges"] == 2
    assert [said.partition(" not understood: ")[0] for said in found["not_understood"]] == [
        "2 records (tags.sorted)", "1 record (host.seen)", "1 record (job.annotated)", "1 record (\u2028new\x1b[31m)",
    ]  # fmt: skip
    said = scene.server.cli("audit").stdout
    assert "journal: 2 records (tags.sorted) not understood: a newer version of forge wrote" in said
    assert "(⟨U+2028⟩new␛[31m)" in said and "BROKEN" not in said
    scene.plant_merge("evil", scene.tip, 1)
    code, found = audit(scene.server)
    assert code == 1 and found["journal"] == [] and len(found["not_understood"]) == 4


def test_what_is_no_record_is_broken_whatever_its_event(scene: Scene) -> None:
    path = scene.server.data / "merges.jsonl"
    whole = path.read_text()
    for line in ('{"event": "of.tomorrow"}', '{"event": ["merged"], "seq": 900}', '{"event": 5, "seq": 900}', '{"seq": 900}'):
        path.write_text(whole + line + "\n")
        code, found = audit(scene.server)
        assert code == 1 and found["not_understood"] == [] and "is no record" in found["journal"][0], line
    path.write_text(whole)
    scene.write("hold.placed", at=5)  # one that is known, without what it must have
    scene.write("base.moved", "jobs")
    code, found = audit(scene.server)
    assert code == 1 and "cannot be understood" in found["journal"][0]


def test_all_that_reads_the_journal_passes_newer_records_over(scene: Scene) -> None:
    server = scene.server
    for event, file, values in NEWER * 3:
        scene.write(event, file, **values)
    kept = [(server.data / f"{name}.jsonl").read_bytes() for name in ("jobs", "merges")]
    shutil.copytree(server.data, server.data.parent / "alone")
    alone = Server(server.data.parent / "alone").cli("prune", "--dry-run")  # without a server
    server.start()
    try:
        for said in (alone.stderr, server.log):
            for event in ("tags.sorted", "host.seen", "job.annotated"):
                told = [line for line in said.splitlines() if f"({event}) is not understood: a newer version" in line]
                assert len(told) == 1, said
        assert len(server.get("/jobs")["jobs"]) >= 5 and len(server.get("/r/app/history")["merges"]) == 2
        for page in ("/", "/r/app", "/r/app/deployments", "/jobs", "/metrics", "/r/app/feed.atom", "/search?q=x"):
            assert server.ask(page, Accept="text/html").status == 200, page
        for words in (("jobs",), ("repos",), ("audit",), ("prune",), ("doctor",), ("status", "app", "open")):
            done = server.cli(*words, check=words != ("doctor",))
            assert "Traceback" not in done.stderr and done.returncode == 0, (words, done.stdout, done.stderr)
            assert words != ("doctor",) or "ok  journal       6 records (tags.sorted) not understood" in done.stdout
        assert server.act("/r/app/mr/open/merge").status in (200, 202)
        wait_for(lambda: len(server.get("/r/app/history")["merges"]) == 3, "the merge")
        server.idle()
    finally:
        server.stop()
    for name, before in zip(("jobs", "merges"), kept, strict=True):
        assert (server.data / f"{name}.jsonl").read_bytes().startswith(before)
    assert server.cli("audit").returncode == 0
    assert "Traceback" not in server.log
