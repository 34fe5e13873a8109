"""No room, damage, a write that fails, an end at an odd moment: nothing accepted is lost, and the rest goes on."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import AUTO, FORGE, PASSWORD, Answer, Server, Work, end, git_after, wait_for

import forge

###############################################################################
# a full disk, and one that is read-only
###############################################################################


@dataclass
class Disk:
    """A server whose data directory is a small tmpfs of its own, and its repos another one."""

    server: Server
    place: Path  # where it is mounted

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A command that sees the disk."""
        return subprocess.run([*self.server.wrapper, *command], capture_output=True, text=True, timeout=30)

    def remount(self, how: str, folder: str = "") -> None:
        done = self.run("mount", "-o", f"remount,{how}", str(self.place / folder))
        assert done.returncode == 0, done.stderr

    def fill(self, folder: str = "") -> None:
        """Leave no room at all."""
        with open(self.server.data / folder / "fill", "wb", buffering=0) as stream:
            for size in (1 << 20, 4096, 1):
                try:
                    while stream.write(bytes(size)) == size:
                        pass
                except OSError:
                    continue

    def empty(self, folder: str = "") -> None:
        (self.server.data / folder / "fill").unlink()

    def leftovers(self) -> list[str]:
        """Files that are no file of forge, git or a test."""
        found = [path for path in self.server.data.rglob("*") if path.is_file() and path.name not in ("fill", "exit.new")]
        odd = ("tmp_", "incoming-", "probe")
        return [str(path) for path in found if path.name.endswith((".new", ".lock")) or path.name.startswith(odd)]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk with a server on it that has one place for jobs."""
    place = tmp_path / "disk"
    place.mkdir()
    mounts = 'mount -t tmpfs -o size=8m forge "$0" && mkdir "$0/repos" && mount -t tmpfs -o size=8m forge "$0/repos"'
    user = [] if os.geteuid() == 0 else ["-r"]
    command = ["unshare", "-m", *user, "sh", "-c", f"{mounts} && echo mounted && exec cat", str(place)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as holder:
        assert holder.stdin and holder.stdout
        if holder.stdout.readline() != b"mounted\n":
            pytest.skip("nothing can be mounted here (unshare -m, mount -t tmpfs): full disks are not tested")
        # its jobs wait for files that are not on the disk
        server = Server(Path(f"/proc/{holder.pid}/root{place}"), {"FORGE_MAX_JOBS": "1", "FORGE_SANDBOX": "none"})
        enter = ("-m",) if not user else ("-U", "--preserve-credentials", "-m")
        server.wrapper = ("nsenter", *enter, "-t", str(holder.pid))
        yield Disk(server.start(), place)
        end(server)
        holder.stdin.close()


def until(path: Path) -> str:
    """A job that ends when a file is there."""
    return f"echo begun; while [ ! -e {path} ]; do sleep 0.05; done"


def whole_journal(server: Server) -> list[dict[str, object]]:
    """The journal's records, of which each is one line."""
    for name in ("jobs", "merges"):
        assert (server.data / f"{name}.jsonl").read_bytes()[-1:] in (b"\n", b"")
    records = server.journal()
    assert [record["seq"] for record in records] == list(range(1, len(records) + 1))
    return records


def check_reading(disk: Disk, work: Work, job: int) -> None:
    """Pages, JSON, logs and clones work."""
    server = disk.server
    for path in (
        "/",
        "/r/app",
        "/r/app/mr/slow",
        "/r/app/history",
        "/jobs",
        f"/jobs/{job}",
        f"/jobs/{job}/log",
        "/healthz",
        "/login",
    ):
        for kind in ("application/json", "text/html"):
            answer = server.ask(path, Accept=kind)
            assert answer.status == 200, (path, answer.body)
    cloned = disk.run("git", "clone", "-q", str(work.path), tempfile.mkdtemp(dir=work.tree.parent))
    assert cloned.returncode == 0, cloned.stderr


def check_refused(server: Server, *paths: str, **form: str) -> None:
    """Actions are refused with one sentence."""
    for path in paths:
        answer = server.act(path, **form)
        assert answer.status == 507, (path, answer.status, answer.body)
        assert "make room" in answer.json["error"] and "\n" not in answer.json["error"]
        page = server.ask(path, {"password": PASSWORD, **form}, Accept="text/html")
        assert page.status == 507 and "make room" in page.text


def test_a_full_disk_stops_nobody_from_reading_and_all_goes_on_when_there_is_room(disk: Disk, tmp_path: Path) -> None:
    server, work = disk.server, disk.server.repo()
    first = work.heads()["main"]
    work.commit("Second")
    work.push("main")
    server.idle()
    work.branch("slow", AUTO, run=until(tmp_path / "go"))
    slow = work.push_job("slow")
    server.running(slow)
    work.branch("waiting")
    waiting = work.push_job("waiting")
    for number in range(30):
        work.branch(f"full-{number}", AUTO)
    disk.fill()
    pushed = 0
    while "has no room to take note" not in (said := work.push(f"full-{pushed}")):  # what is left of the journal's last page
        pushed += 1
    assert "the push is accepted" in said and pushed < 29
    check_reading(disk, work, slow)
    check_refused(server, f"/jobs/{waiting}/cancel", "/login")
    check_refused(server, "/r/app/rollback", "/r/app/hold", commit=first)
    assert whole_journal(server) and not disk.leftovers()
    (tmp_path / "go").touch()
    wait_for(lambda: not (server.data / f"running/{slow}/exit.new").exists(), "the end of the job's processes")
    assert server.get(f"/jobs/{slow}")["status"] == "running", "a verdict that is not in the journal"
    check_reading(disk, work, slow)
    disk.empty()
    assert server.ended(slow)["status"] == "passed"
    wait_for(lambda: len(work.merges()) == pushed + 2, "the merge of all that was pushed", 90)
    assert {job["status"] for job in server.get("/jobs?kind=pre-merge")["jobs"]} == {"passed"}
    server.idle()
    assert work.heads().keys() == {"main", "waiting"} and whole_journal(server) and not disk.leftovers()
    assert server.log.count("work waits until there is room") < 9 and "there is room again" in server.log


def test_a_push_that_has_no_room_in_the_repo_is_told_by_git(disk: Disk) -> None:
    server, work = disk.server, disk.server.repo()
    work.branch("one", big="x" * 100)
    work.push("one")
    server.idle()
    work.branch("two", big=os.urandom(50_000).hex())
    disk.fill("repos")
    said = work.push("two", check=False)
    assert "two -> two (" in said and "rejected" in said and ("No space left" in said or "unable to" in said), said
    check_refused(server, "/r/app/mr/one/merge")
    answer = server.ask("/r/app/mr/one")
    assert answer.status == 200
    disk.empty("repos")
    assert server.act("/r/app/mr/one/merge").status == 200
    work.push("two")
    server.idle()
    assert work.mr("two")["job"]["status"] == "passed" and not disk.leftovers()


def test_a_job_that_cannot_be_prepared_or_started_for_want_of_room_waits_for_it(disk: Disk) -> None:
    server, work = disk.server, disk.server.repo()
    for number in range(12):
        work.branch(f"big-{number}", **{f"file-{number}": os.urandom(100_000).hex()})
    disk.fill()
    with open(server.data / "fill", "r+b") as stream:  # room for records, not for the checkout of all of them
        stream.truncate(stream.seek(0, 2) - 40_000)
    for number in range(12):
        work.push(f"big-{number}")
    wait_for(lambda: "work waits until there is room" in server.log, "the first job that cannot be prepared")
    assert {job["status"] for job in server.get("/jobs?kind=pre-merge")["jobs"]} == {"pending"}
    wait_for(lambda: not list((server.data / "work").rglob("file-*")), "the end of half a checkout")
    disk.empty()
    wait_for(lambda: len(server.get("/jobs?kind=pre-merge&status=passed")["jobs"]) == 12, "twelve jobs that passed")
    assert len([record for record in whole_journal(server) if record["event"] == "job.finished"]) == 13


def test_whichever_page_a_job_lacks_for_its_start_it_waits_for_it(disk: Disk) -> None:
    server, work = disk.server, disk.server.repo()
    work.branch("topic")
    job = work.push_job("topic")
    assert server.ended(job)["status"] == "passed"
    tried = []
    for pages in range(8):
        disk.fill()
        with open(server.data / "fill", "r+b") as stream:
            stream.truncate(stream.seek(0, 2) // 4096 * 4096 - 4096 * pages)
        told, answer = len(server.log), server.act(f"/jobs/{job}/retry")
        if answer.status == 202:
            job = answer.json["id"]
            tried.append(pages)
            wait_for(
                lambda told=told, job=job: (
                    "waits until" in server.log[told:] or server.get(f"/jobs/{job}")["status"] not in ("pending", "running")
                ),
                "an attempt",
            )
        disk.empty()
        ended = server.ended(job)
        assert (ended["status"], ended["reason"]) == ("passed", None), pages
        wait_for(lambda told=told: server.log[told:].count("waits until") == server.log[told:].count("room again"), "quiet")
    assert len(tried) > 3 and len(server.get("/jobs?kind=pre-merge")["jobs"]) == len(tried) + 1
    events = [record["event"] for record in whole_journal(server)]
    assert events.count("job.finished") == len(tried) + 2 and not disk.leftovers()
    wait_for(lambda: not list((server.data / "running").iterdir()), "the end of what was prepared in vain")


def stopped_with_a_job(server: Server) -> tuple[Work, int]:
    """A repo with a branch whose job passed, and no server any more."""
    work = server.repo()
    work.branch("slow")
    job = work.push_job("slow")
    server.idle()
    server.stop()
    return work, job


def test_a_server_starts_on_a_full_disk(disk: Disk) -> None:
    server = disk.server
    work, job = stopped_with_a_job(server)
    disk.fill()
    server.start()
    check_reading(disk, work, job)
    disk.empty()
    wait_for(lambda: work.server.act("/r/app/mr/slow/merge").status == 200, "a merge")
    server.idle()
    work.branch("next")  # its hook finds the server, whose new address could not be written at first
    assert server.ended(work.push_job("next"))["status"] == "passed"


def test_a_server_starts_on_a_read_only_disk_and_works_when_it_can_be_written(disk: Disk) -> None:
    server = disk.server
    work, job = stopped_with_a_job(server)
    with open(server.data / "jobs.jsonl", "ab") as stream:
        stream.write(b'{"seq": 99, "torn')
    disk.remount("ro", "repos")
    disk.remount("ro")
    server.settings["FORGE_PORT"] = server.url.rpartition(":")[2]
    server.start()
    check_reading(disk, work, job)
    check_refused(server, "/r/app/mr/slow/merge", f"/jobs/{job}/retry", "/login")
    work.branch("next", AUTO)
    said = work.push("next", check=False)
    assert "remote" in said and "rejected" in said
    other = disk.run("env", f"FORGE_DATA_DIR={disk.place}", *FORGE, "serve")
    assert other.returncode == 1 and "is served already" in other.stderr
    disk.remount("rw")
    disk.remount("rw", "repos")
    wait_for(lambda: "there is room again" in server.log, "the discovery of room")
    work.push("next")
    wait_for(lambda: [merge["branch"] for merge in work.merges()] == ["next"], "the merge")
    assert server.act(f"/jobs/{job}/retry").status == 202
    assert [path.read_bytes() for path in server.data.glob("jobs.jsonl.torn-*")] == [b'{"seq": 99, "torn']
    server.idle()
    assert whole_journal(server) and not disk.leftovers()


def test_repos_that_become_read_only_hold_up_a_merge_until_they_are_not(disk: Disk, tmp_path: Path) -> None:
    server, work = disk.server, disk.server.repo()
    work.branch("slow", AUTO, run=until(tmp_path / "go"))
    job = work.push_job("slow")
    server.running(job)
    disk.remount("ro", "repos")
    (tmp_path / "go").touch()
    assert server.ended(job)["status"] == "passed"
    wait_for(lambda: "work waits until there is room" in server.log, "the attempt")
    check_reading(disk, work, job)
    check_refused(server, "/r/app/mr/slow/delete")
    disk.remount("rw", "repos")
    wait_for(lambda: [merge["branch"] for merge in work.merges()] == ["slow"], "the merge")
    assert sum(record["event"] == "merged" for record in whole_journal(server)) == 1


###############################################################################
# SIGTERM, with requests in flight
###############################################################################


class Flight(threading.Thread):
    """A request in a thread of its own; `answer` is what came of it."""

    def __init__(self, ask: Callable[[], Answer]):
        super().__init__(daemon=True)
        self.ask = ask
        self.start()

    def run(self) -> None:
        self.answer = self.ask()

    def land(self) -> Answer:
        self.join(10)
        return self.answer


def leave(server: Server) -> int:
    """Tell a server to stop, and wait no longer than promised; its exit code."""
    assert server.process and server.process.stdout
    server.process.send_signal(signal.SIGTERM)
    code = server.process.wait(timeout=6)
    server.process.stdout.close()
    server.process = None
    return code


def slow_git(folder: Path) -> tuple[Path, dict[str, str]]:
    """A git that waits as long as the returned file is there (it writes to the file that it has begun), and its PATH."""
    wait = folder / "wait"
    return wait, git_after(folder, f"[ ! -e {wait} ] || echo begun >>{wait}\nwhile [ -e {wait} ]; do sleep 0.05; done")


def test_requests_in_flight_are_answered_before_the_server_ends(make_server: Callable[..., Server], tmp_path: Path) -> None:
    wait, settings = slow_git(tmp_path / "bin")
    server = make_server(**settings)
    work = server.repo()
    work.branch("slow", run=until(work.gate("go")))
    slow = work.push_job("slow")
    wait_for(lambda: server.job_log(slow) == b"begun\n", "the job's first line")
    hook = work.path / "hooks/post-receive"
    hook.write_text("#!/bin/sh\n")
    head = work.branch("new")
    work.push("new")
    wait.touch()
    line = f"{'0' * 40} {head} refs/heads/new\n".encode()
    headers = {"Content_Type": "text/plain", "X_Forge_Repo": "app"}
    push = Flight(lambda: server.hook(line, **headers))
    wait_for(wait.read_text, "git, called for the push")
    follow = Flight(lambda: server.ask(f"/jobs/{slow}/log?follow=1"))
    look = Flight(lambda: server.ask(f"/jobs/{slow}/log?offset=6&wait=1"))
    pusher = Flight(lambda: server.hook(b"", X_Forge_Follow=f"{slow}:6"))
    wait_for(lambda: len(established(server)) >= 4, "four requests")
    url = server.url
    assert server.process
    server.process.send_signal(signal.SIGTERM)
    wait_for(lambda: not listening(server), "the end of listening")
    server.process.send_signal(signal.SIGTERM)  # once more does no harm
    assert [flight.land().status for flight in (follow, look)] == [200, 200] and follow.answer.body == b"begun\n"
    assert pusher.land().headers["X-Forge-Next"] == f"{slow}:6:{slow}"
    wait.unlink()
    (job,) = push.land().json["jobs"]
    assert push.answer.status == 202 and job["branch"] == "new" and leave(server) == 0
    assert [record["event"] for record in whole_journal(server)][-1] == "job.queued", "new work was begun"
    work.gate("go").touch()
    server.start()
    assert server.url != url and {server.ended(number)["status"] for number in (slow, job["id"])} == {"passed"}
    assert server.job_log(slow) == b"begun\n"


def established(server: Server) -> list[Any]:
    """The connections that a server has."""
    assert server.process
    return [c for c in psutil.Process(server.process.pid).net_connections("tcp") if c.status == psutil.CONN_ESTABLISHED]


def listening(server: Server) -> list[Any]:
    """The sockets on which a server takes connections."""
    assert server.process
    return [c for c in psutil.Process(server.process.pid).net_connections("tcp") if c.status == psutil.CONN_LISTEN]


def test_a_long_answer_is_sent_whole_and_half_a_request_holds_up_nobody(make_server: Callable[..., Server]) -> None:
    server = make_server()
    work = server.repo()
    work.branch("chatty", run="head -c 30000000 /dev/zero")
    job = work.push_job("chatty")
    server.ended(job)
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as reader, socket.create_connection((host, int(port))) as idle:
        idle.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        reader.sendall(f"GET /jobs/{job}/log HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        head = reader.recv(1000)
        assert b"Content-Length: 30000000" in head
        got = len(head.partition(b"\r\n\r\n")[2])
        assert server.process
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: not listening(server), "the end of listening")
        while chunk := reader.recv(1 << 20):
            got += len(chunk)
            if got == 30_000_000:
                break
        assert got == 30_000_000 and leave(server) == 0


###############################################################################
# damage: a repo, a log, a journal of another version
###############################################################################


def remake(path: Path, text: str | None) -> None:
    """Give a file this text, make it a directory (None), or remove it ("-"), whatever it was."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if text is None:
        path.mkdir()
    elif text != "-":
        path.write_text(text)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "objects-gone": lambda repo: [shutil.rmtree(path) for path in (repo / "objects").iterdir()] and None,  # type: ignore[func-returns-value]
    "no-objects": lambda repo: remake(repo / "objects", "-"),
    "objects-a-file": lambda repo: remake(repo / "objects", "x"),
    "head-empty": lambda repo: remake(repo / "HEAD", ""),
    "head-odd": lambda repo: remake(repo / "HEAD", "\0\xff rubbish"),
    "head-gone": lambda repo: remake(repo / "HEAD", "-"),
    "head-detached": lambda repo: remake(repo / "HEAD", "1" * 40 + "\n"),
    "head-elsewhere": lambda repo: remake(repo / "HEAD", "ref: refs/tags/odd\n"),
    "base-odd": lambda repo: remake(repo / "refs/heads/main", "rubbish\n"),
    "base-empty": lambda repo: remake(repo / "refs/heads/main", ""),
    "base-missing-object": lambda repo: remake(repo / "refs/heads/main", "1" * 40 + "\n"),
    "branch-missing-object": lambda repo: remake(repo / "refs/heads/topic", "1" * 40 + "\n"),
    "branch-odd": lambda repo: remake(repo / "refs/heads/topic", "rubbish\n"),
    "refs-a-file": lambda repo: remake(repo / "refs", "x"),
    "packed-refs-odd": lambda repo: remake(repo / "packed-refs", "rubbish\n\0\0"),
    "packed-refs-a-directory": lambda repo: remake(repo / "packed-refs", None),
    "config-odd": lambda repo: remake(repo / "config", "[core\nrubbish"),
    "config-a-directory": lambda repo: remake(repo / "config", None),
    "config-gone": lambda repo: remake(repo / "config", "-"),
    "hooks-a-file": lambda repo: remake(repo / "hooks", "x"),
    "a-file": lambda repo: remake(repo, "x"),
    "empty": lambda repo: remake(repo, None),
    "gone": lambda repo: remake(repo, "-"),
}


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a repo for each damage, seen first when it was whole, and one that stays whole."""
    server = Server(tmp_path_factory.mktemp("damage") / "data").start()
    work = server.repo()
    work.branch("topic")
    work.push("topic")
    server.idle()
    for name in DAMAGES:
        shutil.copytree(work.path, server.data / f"repos/{name}.git")
        body = {"repo": name, "ref": "refs/heads/topic", "oldrev": "0" * 40, "newrev": work.heads()["topic"]}
        assert server.hook(json.dumps(body).encode(), Content_Type="application/json").status == 202
    server.idle()
    for name, damage in DAMAGES.items():
        damage(server.data / f"repos/{name}.git")
    yield server
    end(server)


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_repo_is_told_and_nothing_else_suffers(damaged: Server, name: str) -> None:
    server = damaged
    (job,) = server.get(f"/jobs?repo={name}&limit=1")["jobs"]
    here, pages = f"/r/{name}", ("/", "/jobs", f"/jobs?repo={name}", f"/jobs/{job['id']}", f"/jobs/{job['id']}/log", "/r/app")
    for kind in ("application/json", "text/html"):
        for path in pages:
            assert server.ask(path, Accept=kind).status == 200, path
        for path in (here, f"{here}/mr/topic", f"{here}/history"):
            answer = server.ask(path, Accept=kind)
            assert answer.status in (200, 404, 409), (path, answer.status, answer.body)
    for path in (f"{here}/mr/topic/merge", f"{here}/mr/topic/delete", f"/jobs/{job['id']}/retry"):
        answer = server.act(path)
        assert answer.status in (200, 202, 404, 409), (path, answer.status, answer.body)
        assert answer.status < 300 or "\n" not in answer.json["error"]
    body = {"repo": name, "ref": "refs/heads/topic", "oldrev": "0" * 40, "newrev": "1" * 40}
    assert server.hook(json.dumps(body).encode(), Content_Type="application/json").status in (202, 404, 409)


def test_with_damaged_repos_a_server_starts_and_the_whole_ones_are_served(damaged: Server) -> None:
    server = damaged
    for name, damage in DAMAGES.items():
        damage(server.data / f"repos/{name}.git")
    assert server.stop() == 0
    server.start()
    for name in DAMAGES:
        assert server.ask(f"/r/{name}").status in (200, 404, 409)
    (view,) = server.get("/r/branch-missing-object")["merge_requests"]
    assert "git cannot tell" in view["why"] and not view["mergeable"]
    work = server.repo("whole")
    work.branch("topic", AUTO)
    work.push("topic")
    wait_for(work.merges, "the merge")
    assert "is not understood" not in server.log, "of its own records"
    assert "no room" not in server.log and "there is room" not in server.log
    repos = {repo["repo"]: repo for repo in server.get("/")["repos"]}
    assert {"app", "whole", "head-odd", "empty"} <= repos.keys() and "a-file" not in repos
    wait_for(lambda: "packed-refs-odd: git" in server.log, "what is wrong, in the log")
    for name in ("packed-refs-odd", "head-empty", "objects-gone"):
        assert "git" in {repo["repo"]: repo["trouble"] for repo in server.get("/")["repos"]}[name]


def test_a_log_that_vanished_is_gone_and_says_so(shared: Server, work: Work) -> None:
    work.branch("topic", run="echo hello")
    job = work.push_job("topic")
    shared.ended(job)
    (shared.data / f"logs/{work.name}/{job}.log").unlink()
    for path in (f"/jobs/{job}/log", f"/jobs/{job}/log?offset=0", f"/jobs/{job}/log?follow=1"):
        answer = shared.ask(path)
        assert answer.status == 410 and f"the log of job {job}" in answer.json["error"]
    page = shared.ask(f"/jobs/{job}", Accept="text/html")
    assert page.status == 200 and "Retry makes a new one" in page.text and shared.get(f"/jobs/{job}")["status"] == "passed"
    shutil.rmtree(shared.data / f"logs/{work.name}")
    work.branch("next", run="echo again")
    again = work.push_job("next")
    assert shared.ended(again)["status"] == "passed" and shared.job_log(again) == b"again\n"


ODD_VALUES = [
    None,
    True,
    -1,
    2**70,
    1.5,
    "",
    "x",
    "\u2028",
    "\ud800",
    "2026-13-45T99:99:99Z",
    [],
    [1],
    {},
    {"x": 1},
    [{}],
    [{"branch": 1}],
    "9" * 5000,
]
EVENTS = [*forge.FOLDS, "of.tomorrow"]
ODD_FIELDS = [
    *vars(forge.Job(0, "", "", "", "", [], "")),
    *"at merged_at tip old new head how begun merges job merge_commit".split(),
]


def write_odd_journal(folder: Path, lines: list[bytes]) -> None:
    """Put odd lines into the middle of a journal."""
    for name in ("jobs", "merges"):
        path = folder / f"{name}.jsonl"
        text = path.read_bytes().split(b"\n")
        middle = len(text) // 2
        path.write_bytes(b"\n".join([*text[:middle], *lines, *text[middle:]]))


def odd_lines() -> Iterator[bytes]:
    """Records with values of other types than ours, a deterministic choice of a few hundred."""
    draw = random.Random(7)
    for seq, event in enumerate(EVENTS * 25, 10**6):
        _, job = forge.queue_job(draw.choice([3, 4, 5, 900 + seq % 50]), "app", "pre-merge", (("topic", "a" * 40),), "push")
        merge = {"branch": "topic", "head": "a" * 40, "merge_commit": "b" * 40}
        record = {"tip": "a" * 40, "new": "a" * 40, "begun": 3, "job": 3, "how": "auto", "merges": [merge], **merge, **job}
        record |= {"seq": seq, "event": event, "at": forge.now()}
        for name in draw.sample(ODD_FIELDS, draw.choice([0, 1, 1, 2])):
            record[name] = draw.choice(ODD_VALUES)
        for name in draw.sample(ODD_FIELDS, draw.choice([0, 0, 1])):
            record.pop(name, None)
        yield json.dumps({**record, "of_tomorrow": [{}]}).encode()
    yield from (b"\xff\xfe", b"{", b"[" * 100_000, b'{"seq": 1e400, "event": "job.queued"}', b"null", b"", b'"text"')


@pytest.mark.parametrize("part", range(4))
def test_a_journal_with_lines_of_another_version_is_served(make_server: Callable[..., Server], part: int) -> None:
    server = make_server()
    work = server.repo()
    work.branch("topic")
    job = work.push_job("topic")
    work.branch("merged", AUTO)
    work.push("merged")
    wait_for(work.merges, "the merge")
    server.idle()
    server.stop()
    (server.data / "snapshot").unlink()
    write_odd_journal(server.data, list(odd_lines())[part::4])
    server.start()
    more = ("/r/app/history", "/r/app/mr/merged", "/r/app/feed.atom", "/r/app/deployments", "/metrics")
    for path in ("/", "/jobs", "/r/app", "/r/app/mr/topic", *more):
        for kind in ("application/json", "text/html"):
            answer = server.ask(path, Accept=kind)
            assert answer.status in (200, 404), (path, answer.status, answer.body)
    for number in range(1, 1000):
        answer = server.ask(f"/jobs/{number}", Accept="text/html" if number % 2 else "application/json")
        assert answer.status in (200, 404), (number, answer.body)
        assert server.ask(f"/jobs/{number}/log").status in (200, 404, 410)
        if answer.status == 200 and number != job:
            assert server.act(f"/jobs/{number}/retry").status in (202, 404, 409)
            assert server.act(f"/jobs/{number}/cancel").status in (200, 404, 409)
    work.branch("later", AUTO)
    work.push("later")
    wait_for(lambda: work.merges()[0]["branch"] == "later", "the merge of what was pushed later")


def test_a_record_that_is_damaged_behind_the_snapshot_is_missing_and_nothing_else(make_server: Callable[..., Server]) -> None:
    server = make_server()
    work = server.repo()
    jobs = []
    for name in ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine"):
        work.branch(name, AUTO)
        jobs.append(work.push_job(name))
        server.idle()
    server.stop()
    for name, event in (("jobs", "job.finished"), ("merges", "merged")):
        path = server.data / f"{name}.jsonl"
        text = path.read_bytes().split(b"\n")
        (number,) = (n for n, line in enumerate(text) if b'"two"' in line and f'"{event}"'.encode() in line)
        text[number] = b"\0" * len(text[number])
        with open(path, "r+b") as stream:
            stream.write(b"\n".join(text))
    server.start()
    for kind in ("application/json", "text/html"):
        assert [server.ask(f"/jobs/{job}", Accept=kind).status for job in jobs[:3]] == [200, 404, 200]
        assert [server.ask(path, Accept=kind).status for path in ("/jobs", "/r/app", "/r/app/history")] == [200] * 3
    assert [merge["branch"] for merge in work.merges()][-2:] == ["three", "one"] and "is damaged at byte" in server.log


###############################################################################
# a write to the journal that fails at the n-th call
###############################################################################


def check_promises(server: Server, work: Work, merged: set[str]) -> None:
    """Each try has one verdict, each merge is in base and in the journal once, and the journal is whole."""
    records = whole_journal(server)
    queued = [record["id"] for record in records if record["event"] == "job.queued"]
    ended = [record["id"] for record in records if record["event"] == "job.finished"]
    assert sorted(ended) == queued == list(range(1, len(queued) + 1))
    line = work.bare("log", "--first-parent", "--reverse", "--format=%H %s", "main").split("\n")
    merges = [tuple(commit.split(" Forge Merge: ")) for commit in line if "Forge Merge: " in commit]
    assert merges == [(record["merge_commit"], record["branch"]) for record in records if record["event"] == "merged"]
    assert len(merges) == len(merged) and {branch for _, branch in merges} == merged


def insist(server: Server, path: str) -> Answer:
    """An action, until there is room for it."""
    return wait_for(lambda: (answer := server.act(path)).status != 507 and answer, f"room for {path}")  # type: ignore[no-any-return]


@pytest.mark.parametrize("first", range(1, 51, 10))
def test_a_write_of_the_journal_that_fails_at_the_nth_call_breaks_no_promise(
    make_server: Callable[..., Server], tmp_path: Path, first: int
) -> None:
    server, order = make_server(start=False), tmp_path / "fail"
    server.start(sys.executable, str(Path(__file__).with_name("failing_server.py")), str(order))
    work, merged = server.repo(), set()

    def of(branch: str, *status: str) -> list[Any]:
        """The ids of the jobs of a branch that stand so."""
        return [job["id"] for job in server.get(f"/jobs?branch={branch}")["jobs"] if job["status"] in status]

    for n in range(first, first + 10):
        a, b, bad, slow = (f"{name}-{n}" for name in ("a", "b", "bad", "slow"))
        for branch in (a, b):
            work.branch(branch, AUTO)
        work.branch(bad, run="exit 1")
        work.branch(slow, run="sleep 60")
        order.write_text(str(n))
        work.push(slow)
        work.push(a, b, bad)
        wait_for(lambda slow=slow: of(slow, "pending", "running"), "the job to cancel")
        assert insist(server, f"/jobs/{of(slow, 'pending', 'running')[0]}/cancel").status == 200
        wait_for(lambda bad=bad: of(bad, "failed"), "the first verdict")
        assert insist(server, f"/jobs/{of(bad, 'failed')[0]}/retry").status == 202
        merged |= {a, b}
        wait_for(lambda merged=merged: {merge["branch"] for merge in work.merges()} >= merged, "the merges")
        wait_for(lambda bad=bad, slow=slow: len(of(bad, "failed")) == 2 and of(slow, "canceled"), "all verdicts")
    server.idle()
    assert server.log.count("No space left on device") >= 5, "the failures"
    check_promises(server, work, merged)
    assert server.stop() == 0 and server.start()
    check_promises(server, work, merged)
