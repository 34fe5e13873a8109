"""What systemd is told and given: the units, and a server under a stand-in for systemd that restarts it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import AUTO, FORGE, PRE_SCRIPT, ROOT, Server, Work, clean_environ, end, needs_browser, wait_for
from floods import FLOODS, Source, Watch, left_over
from test_attacks import MALFORMED, answer_to, connect
from test_sandbox import ESCAPES, NOBODY, answers, needs_bwrap, ordinary_python, script_of, tries

import forge

needs_systemd = pytest.mark.skipif(
    not shutil.which("systemd-analyze") and not os.environ.get("FORGE_TEST_REQUIRE_SYSTEMD"),
    reason="systemd-analyze is not installed: units are not looked at by systemd",
)
DEPLOY = 'echo begun; echo TERM >"$HOME/restart"; while [ -e "$HOME/restart" ]; do sleep 0.05; done; echo ended\n'


# -- the sockets, told in a table ------------------------------------------------------------------


def started_with(files: list[int], environ: dict[str, str], *, first: int = 3) -> subprocess.CompletedProcess[str]:
    """`forge serve` with these descriptors from 3 on and LISTEN_PID set to its own, on a data directory that it must not make."""
    line = f"LISTEN_PID=$$ exec {' '.join(f'{first + n}<&{file}' for n, file in enumerate(files))} " + '"$@"'
    command = ["bash", "-c", line, "start", *FORGE, "serve"]
    environ = clean_environ() | {"FORGE_DATA_DIR": "/nonexistent/forge"} | environ
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=20, pass_fds=files)


@pytest.mark.parametrize("kind", ["number", "nothing", "file", "unix", "udp", "idle", "connected"])
def test_a_wrong_socket_stops_the_start_with_one_line(kind: str, tmp_path: Path) -> None:
    with contextlib.ExitStack() as opened:
        files = []
        if kind == "file":
            files = [opened.enter_context(open(tmp_path / "file", "w")).fileno()]
        elif kind not in ("number", "nothing"):
            family = socket.AF_UNIX if kind == "unix" else socket.AF_INET
            one = opened.enter_context(socket.socket(family, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM))
            one.bind(str(tmp_path / "socket") if kind == "unix" else ("127.0.0.1", 0))
            if kind in ("unix", "connected"):
                one.listen()
            if kind == "connected":
                opened.enter_context(socket.create_connection(one.getsockname()))
                one = opened.enter_context(one.accept()[0])
            files = [one.fileno()]
        done = started_with(files, {"LISTEN_FDS": "x" if kind == "number" else "1"})
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "LISTEN_FDS" in done.stderr, done.stderr


def test_what_was_meant_for_another_process_is_left_alone() -> None:
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "x", "PATH": "/bin"}
    assert forge.inherited_sockets(environ) == [] and environ == {"PATH": "/bin"}


@needs_systemd
def test_a_socket_from_systemd_itself(tmp_path: Path) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    settings = {"FORGE_DATA_DIR": str(tmp_path / "data"), "FORGE_SANDBOX": "none", "FORGE_PORT": "1", "LANG": "C.UTF-8"}
    given = [word for name, text in settings.items() for word in ("-E", f"{name}={text}")]
    command = ["systemd-socket-activate", *given, "-l", f"127.0.0.1:{port}", *FORGE, "serve"]
    process = subprocess.Popen(command, env=clean_environ(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout and process.stderr and "Listening" in process.stderr.readline()
        with socket.create_connection(("127.0.0.1", port)) as asked:  # it starts the server, which answers it
            asked.sendall(b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n")
            assert process.stdout.readline() == f"forge: listening on http://127.0.0.1:{port}\n"
            assert b"200 OK" in asked.recv(1000)
    finally:
        process.terminate()
        process.communicate(timeout=10)


# -- telling the service manager ------------------------------------------------------------------


@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_is_told(tmp_path: Path, abstract: bool) -> None:
    name = f"@forge-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.bind(name.replace("@", "\0"))
        line.settimeout(5)
        environ = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "4000000", "WATCHDOG_PID": str(os.getpid()), "PATH": "/bin"}
        manager = forge.ServiceManager(environ)
        assert environ == {"PATH": "/bin"} and manager.every == 2
        manager.tell(READY=1, STATUS="é")
        assert line.recv(1000).decode() == "READY=1\nSTATUS=é"
        manager.beat("well")
        assert line.recv(1000) == b"STATUS=well\nWATCHDOG=1"
        manager.due = manager.turned = time.monotonic() - 3
        manager.beat("well")
        assert line.recv(1000) == b"WATCHDOG=1"
        manager.beat("well")  # neither due nor new
        manager.due = manager.turned = time.monotonic() - 5  # nobody takes requests any more
        manager.beat("well")
        line.settimeout(0)
        with pytest.raises(BlockingIOError):
            line.recv(1000)


@pytest.mark.parametrize("name", ["/nonexistent/notify", "@nobody-listens-here", "odd", "/" + "x" * 200])
def test_a_service_manager_that_does_not_listen_is_a_line_in_the_log(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    manager = forge.ServiceManager({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "many"})
    for number in range(3):
        manager.tell(READY=number)
    assert manager.every == float("inf") and capsys.readouterr().err.count("NOTIFY_SOCKET") == 1


# -- the stand-in ----------------------------------------------------------------------------------


@dataclass
class Managed(Server):
    """A server that the stand-in for systemd runs by the units of `forge unit`."""

    folder: Path = Path()
    six: bool = False
    flags: tuple[str, ...] = ()
    keeper: subprocess.Popen[bytes] | None = None
    program: list[str] = field(default_factory=lambda: FORGE)

    def cli(self, *args: str, check: bool = True, **kwargs: Any) -> subprocess.CompletedProcess[str]:
        command = [*self.wrapper, *self.program, *args]
        done = subprocess.run(command, env=self.environ, capture_output=True, text=True, timeout=60, **kwargs)
        assert not check or done.returncode == 0, (args, done.returncode, done.stdout, done.stderr)
        return done

    def begin(self) -> Managed:
        self.folder.mkdir()
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
        self.settings |= {"FORGE_PORT": str(port)}
        for name in ("forge.service", "forge.socket"):
            text = self.cli("unit", name).stdout
            if self.six and name == "forge.socket":
                text = text.replace(f"127.0.0.1:{port}", f"[::1]:{port}\nListenStream=127.0.0.1:{port}")
            (self.folder / name).write_text(text.replace("WatchdogSec=60", "WatchdogSec=4"))
        for flag in self.flags:
            (self.folder / flag).touch()
        home = self.data / "home/app/post-merge"
        (self.folder / "restart-file").write_text(str(home / "restart"))
        with open(self.data.with_suffix(".err"), "a") as errors:
            command = [sys.executable, str(ROOT / "tests/standin_systemd.py"), str(self.folder)]
            self.keeper = subprocess.Popen(command, env=clean_environ(), stdout=errors, stderr=errors)
        self.url = f"http://127.0.0.1:{port}"
        wait_for(lambda: self.times("READY") == 1, f"the start; {self.log}")
        return self

    def told(self) -> list[dict[str, Any]]:
        path = self.folder / "told"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def times(self, name: str) -> int:
        return sum(name in one for one in self.told())

    @property
    def pid(self) -> int:
        return int([one["started"] for one in self.told() if "started" in one][-1])

    def restart(self, name: str = "TERM") -> None:
        """End the server by a signal and wait for the next."""
        ready = self.times("READY")
        os.kill(self.pid, signal.Signals[f"SIG{name}"])
        wait_for(lambda: self.times("READY") > ready, "the next server")

    def finish(self) -> None:
        if self.keeper:
            self.keeper.terminate()
            self.keeper.wait(timeout=20)
        end(self)


@pytest.fixture
def managed(tmp_path: Path) -> Iterator[Callable[..., Managed]]:
    made: list[Managed] = []

    def make(*flags: str, six: bool = False, **settings: str) -> Managed:
        made.append(Managed(tmp_path / "data", settings, folder=tmp_path / "systemd", flags=flags, six=six))
        return made[-1].begin()

    yield make
    for one in made:
        one.finish()


def test_a_server_under_a_service_manager(managed: Callable[..., Managed]) -> None:
    server = managed("abstract", six=True, FORGE_MAX_JOBS="1")
    ready = next(one for one in server.told() if "READY" in one)
    port = server.url.rpartition(":")[2]
    assert ready["MAINPID"] == str(server.pid) and ready["STATUS"].startswith(f"listening on http://[::1]:{port};")
    assert (server.data / "address").read_text() == f"http://[::1]:{port}\n"
    assert server.ask("/healthz").text == "ok\n"
    server.url = f"http://[::1]:{port}"
    assert server.ask("/healthz").text == "ok\n"
    work = server.repo()
    work.branch("slow", run=f"ls -l /proc/self/fd; env; while [ ! -e {work.gate('go')} ]; do sleep 0.05; done\n")
    job = work.push_job("slow")
    wait_for(lambda: any("1 job running" in one.get("STATUS", "") for one in server.told()), "the status")
    assert (
        b"LISTEN_" not in server.job_log(job) and b"NOTIFY_" not in server.job_log(job) and b"socket" not in server.job_log(job)
    )
    environ = Path(f"/proc/{server.pid}/environ").read_bytes()
    assert b"LISTEN_FDS" in environ  # as it was given; what children get is without
    for child in psutil.Process(server.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # what the job runs comes and goes
            assert not any(name.startswith(("LISTEN_", "NOTIFY_", "WATCHDOG_")) for name in child.environ())
        assert not [c for c in child.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    beats = server.times("WATCHDOG")
    wait_for(lambda: server.times("WATCHDOG") > beats + 1, "signs of life")
    os.kill(server.pid, signal.SIGSTOP)
    frozen = server.times("WATCHDOG")
    with pytest.raises(AssertionError):
        wait_for(lambda: server.times("WATCHDOG") > frozen, "a sign of life of a server that is stopped", 3)
    os.kill(server.pid, signal.SIGCONT)
    work.gate("go").touch()
    server.ended(job)
    server.restart()
    assert any(one.get("STOPPING") == "1" for one in server.told()) and {"ended": 0} in server.told()


def test_no_sign_of_life_while_the_lock_is_held(tmp_path: Path) -> None:
    engine = forge.Engine(forge.load_config({"FORGE_DATA_DIR": str(tmp_path / "data"), "FORGE_SANDBOX": "none"}))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.bind(str(tmp_path / "notify"))
        line.settimeout(5)
        engine.manager = forge.ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"})
        engine.manager.turned = float("inf")
        engine.start()
        try:
            wait_for(lambda: b"WATCHDOG=1" in line.recv(1000), "a sign of life")
            with engine.lock:
                line.settimeout(1)
                with pytest.raises(TimeoutError):  # one may be on its way
                    for _ in range(3):
                        line.recv(1000)
            line.settimeout(5)
            assert b"WATCHDOG=1" in line.recv(1000)
        finally:
            engine.stop()


@dataclass(eq=False)
class Pusher(threading.Thread):
    """Pushes branches, one after the other, until told to stop."""

    work: Work
    number: int

    def __post_init__(self) -> None:
        super().__init__(daemon=True)
        self.said: dict[str, str] = {}
        self.enough = threading.Event()
        tree = self.work.tree.with_name(f"pusher-{self.number}")
        subprocess.run(["git", "clone", "-q", self.work.path, tree], check=True, env=clean_environ())
        self.mine = Work(self.work.server, self.work.name, self.work.path, tree)

    def run(self) -> None:
        while not self.enough.is_set():
            name = f"b{self.number}-{len(self.said)}"
            self.mine.git("checkout", "-q", "-B", name, "origin/main")
            self.mine.commit(AUTO, **{f"file-{name}": name})
            self.said[name] = self.mine.push(name)


@pytest.mark.parametrize("how", ["TERM", "KILL"])
def test_ten_restarts_under_pushes_refuse_and_lose_nothing(how: str, managed: Callable[..., Managed]) -> None:
    server = managed(FORGE_SANDBOX="none", FORGE_MAX_JOBS="1")
    work = server.repo(script="#!/bin/sh\ntrue\n")
    pushers = [Pusher(work, number) for number in range(2)]
    for pusher in pushers:
        pusher.start()
    for _ in range(10):
        done = sum(len(pusher.said) for pusher in pushers)
        server.restart(how)
        wait_for(lambda done=done: sum(len(pusher.said) for pusher in pushers) > done, "a push")
    for pusher in pushers:
        pusher.enough.set()
        pusher.join(30)
    said = {name: text for pusher in pushers for name, text in pusher.said.items()}
    cut_off = [text for text in said.values() if "/jobs/" not in text]
    assert len(said) >= 10
    assert how == "KILL" or not cut_off, cut_off  # only who was being answered at that moment
    work.landed()
    merged = [record["branch"] for record in server.journal() if record["event"] == "merged"]
    assert sorted(merged) == sorted(said)


@pytest.mark.parametrize("how", ["TERM", "KILL"])
def test_a_deployment_that_restarts_the_server_is_whole_and_its_pusher_sees_the_end(
    how: str, managed: Callable[..., Managed]
) -> None:
    server = managed(FORGE_MAX_JOBS="2")
    work = server.repo()
    work.branch("main", deploy=DEPLOY.replace("TERM", how))
    said = work.push("main", options=("wait",))
    begun, ended, verdict = (said.index(word) for word in ("remote: begun", "remote: ended", "passed"))
    assert begun < ended < verdict and said.count("begun") == said.count("ended") == 1, said
    (job,) = server.get("/jobs?kind=post-merge&limit=1")["jobs"]
    assert job["status"] == "passed" and server.job_log(job["id"]) == b"begun\nended\n"
    finished = [record for record in server.journal() if record["event"] == "job.finished" and record["id"] == job["id"]]
    assert len(finished) == 1 and server.times("started") == 2
    assert f"job {job['id']} still runs" in server.log


def test_who_waits_for_a_server_without_a_held_socket_sees_the_end_too(make_server: Callable[..., Server]) -> None:
    server = make_server()
    work = server.repo()
    wish = server.data / "home/app/post-merge/restart"
    work.branch("main", deploy=DEPLOY)

    def restart() -> None:
        wait_for(wish.exists, "the wish")
        server.stop(signal.SIGTERM)
        server.start()
        wish.unlink()

    keeper = threading.Thread(target=restart, daemon=True)
    keeper.start()
    said = work.push("main", options=("wait",))
    keeper.join(30)
    assert said.count("begun") == said.count("ended") == 1 and "passed" in said, said
    server.stop()
    work.branch("topic", run="echo tested\n")
    later = threading.Timer(1.5, server.start)
    later.start()
    said = work.push("topic", options=("wait",))
    later.join(30)
    assert "does not answer" in said and "tested" in said and "passed" in said, said


@needs_browser
def test_an_open_page_goes_on_over_a_restart(managed: Callable[..., Managed], page: Any) -> None:
    server = managed(FORGE_MAX_JOBS="1")
    work = server.repo()
    work.branch("main", deploy=DEPLOY)
    job = work.push_job("main")
    page.goto(f"{server.url}/jobs/{job}")
    page.locator("[data-status=passed]").first.wait_for(timeout=20000)
    assert "ended" in page.locator("#log").inner_text() and server.times("started") == 2


@pytest.fixture(scope="module")
def hardened() -> Iterator[Managed]:
    """A server as the unit's user, under its mounts, without capabilities, new privileges and most system calls."""
    place = Path(tempfile.mkdtemp(prefix="forge-unit-", dir="/var/lib"))
    os.chown(place, 65534, 65534)
    server = Managed(place / "data", {"FORGE_SANDBOX": "bwrap"}, folder=place / "systemd", flags=("harden",), wrapper=NOBODY)
    try:
        python = ordinary_python(place)
        if python is None:
            pytest.skip("no Python with the packages that a user without rights can run")
        server.program = [python, str(ROOT / "forge.py")]
        for folder in (server.data, place / "secrets"):
            folder.mkdir()
            os.chown(folder, 65534, 65534)
        (place / "secrets/key").write_text("the key\n")
        server.settings |= {"FORGE_SECRETS_DIR": str(place / "secrets")}
        server.settings |= {"HOME": str(place), "PATH": "/usr/local/bin:/usr/bin:/bin", "FORGE_JOB_PROCESSES": "100"}
        yield server.begin()
    finally:
        server.finish()
        shutil.rmtree(place)


def clone_for(server: Managed, name: str, **scripts: str) -> Work:
    """A new repo and a clone of it with these scripts, made by the user of the server."""
    tree = server.data.parent / f"tree-{name}"
    work = Work(server, name, Path(server.cli("create", name, "--base", "main").stdout.strip()), tree)
    tree.mkdir()
    os.chown(tree, 65534, 65534)
    work.git("init", "-q", "-b", "main")
    work.git("remote", "add", "origin", str(work.path))
    for kind, script in scripts.items():
        work.write(f".forge/{kind.replace('_', '-')}", script, executable=True)
    work.commit("First commit")
    return work


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can do what systemd does before it starts a service")


@needs_bwrap
@needs_systemd
@needs_root
def test_push_to_merge_under_the_hardening_of_the_unit(hardened: Managed) -> None:
    server = hardened
    work = clone_for(server, "app", pre_merge=f"#!/bin/sh\n{LOOK}", post_merge=f"#!/bin/sh\n{DEPLOY}")
    said = work.push("main", options=("wait",))  # its deployment restarts the server
    assert "ended" in said and "passed" in said and server.times("started") == 2, said
    work.branch("topic", AUTO)
    said = work.push("topic", options=("wait",))
    for sign in ("NoNewPrivs:\t1", "Seccomp:\t2", "no network namespace", "First commit", "remote: ok", "/tmp/", "passed"):
        assert sign in said, (sign, said)
    work.landed("topic")
    status = Path(f"/proc/{server.pid}/status").read_text()
    assert re.search(r"CapBnd:\s+0+\n", status) and re.search(r"Seccomp:\s+2\n", status)
    for path in ("/etc/forge-unit-test", "/tmp/forge-unit-test"):  # the one is read-only, the other private
        writes = ["nsenter", "-m", "-t", str(server.pid), "touch", path]
        assert (subprocess.run(writes, capture_output=True).returncode == 0) == path.startswith("/tmp")
        assert not os.path.exists(path)


@needs_bwrap
@needs_systemd
@needs_root
@pytest.mark.parametrize("kind", ["pre-merge", "post-merge"])
def test_hostile_jobs_get_nowhere_under_the_hardening_of_the_unit(hardened: Managed, kind: str) -> None:
    """The attacks of test_sandbox.py, by a branch, and by base itself where it may not do so either."""
    server, name = hardened, f"evil-{kind}"
    work = clone_for(server, name, **{kind.replace("-", "_"): PRE_SCRIPT})
    work.push("main", options=("wait",))
    wanted = {what: line.format(data=server.data, repo=work.path, url=server.url) for what, line in ESCAPES.items()}
    wanted |= tries(server, psutil.Process(server.pid), work, server.data.parent, "/tmp/forge-unit-outside")
    # the unit has no password file here, and its user no home; base may push, and sees what it deploys with
    may = ["see the password", "see the server's home"]
    if kind == "post-merge":
        may += ["move a ref", "write a hook", "write the config", "write an object", "push by path", "be in another repo"]
        may += ["write another repo's list of objects", "a namespace to write in", "see the secrets", "list incoming"]
        may += ["see the other kind's home", "read hook-token", "read hook-header", "read address"]
    wanted = {what: line for what, line in wanted.items() if what not in may}
    work.branch("evil" if kind == "pre-merge" else "main", start="origin/main", run=script_of(wanted))
    said = work.push("evil" if kind == "pre-merge" else "main", options=("wait",))
    job = server.get(f"/jobs?repo={name}&kind={kind}&limit=1")["jobs"][0]
    assert answers(server, job["id"]) == dict.fromkeys(wanted, "no"), said
    bomb = "b() { [ $1 = 0 ] || { b $(($1 - 1)) & b $(($1 - 1)) & }; sleep 600; }; trap '' TERM; b 8\n"
    work.branch("bomb" if kind == "pre-merge" else "main", start="HEAD", run=bomb)
    job = server.ended(work.push_job("HEAD:refs/heads/bomb" if kind == "pre-merge" else "main"))
    assert "FORGE_JOB_PROCESSES" in job["reason"], job
    assert server.ask("/healthz").text == "ok\n"


@needs_bwrap
@needs_systemd
@needs_root
@pytest.mark.parametrize("name", ["litter", "hole", "bomb", "message", "files", "branches", "evil"])
def test_floods_stop_nobody_under_the_hardening_of_the_unit(hardened: Managed, name: str) -> None:
    """Those of test_floods.py, at a server to which permissions apply, and what git is to refuse."""
    server = hardened
    work = clone_for(server, f"flood-{name}", pre_merge=PRE_SCRIPT)
    work.write("run", "true\n")
    work.commit("A check")
    work.push("main", options=("wait",))
    work.bare("config", "forge.checkoutLimit", str(200 << 20))
    source = Source(server.data.parent / f"source-{name}", clean_environ())
    clone = ["git", "clone", "-q", "--bare", f"{server.url}/r/{work.name}.git", str(source.path)]
    subprocess.run(clone, check=True, env=clean_environ())
    if name == "evil":
        entry = b"100755 .git\0" + bytes.fromhex(source.write("blob", b"x\n"))
        source.commit("evil", source.write("tree", entry))
        refs = ["evil"]
    else:
        refs = FLOODS[name].make(source, FLOODS[name].small)
    subprocess.run(["chown", "-R", "65534:65534", source.path], check=True)
    process = psutil.Process(server.pid)
    with Watch(server.url, process, ["/", "/jobs", f"/r/{work.name}"]) as watch:
        push = [*NOBODY, "git", "-C", str(source.path), "push", str(work.path), *(f"refs/heads/{ref}" for ref in refs)]
        pushed = subprocess.run(push, env=clean_environ(), capture_output=True, text=True, timeout=90)
        server.idle(100)
    assert (pushed.returncode == 0) == (name != "evil") and ("hasDotgit" in pushed.stderr) == (name == "evil"), pushed.stderr
    work.branch("after", run="test ! -e many -a ! -e locked -a ! -e d\n")
    assert server.ended(work.push_job("after"), 60)["status"] == "passed"
    wait_for(lambda: not left_over(server.data, process), f"the end of {left_over(server.data, process)[:5]}", 60)
    assert not watch.wrong and watch.own < 150 << 20 and process.is_running(), (watch.wrong[:5], watch.own)
    assert "Traceback" not in server.log, server.log


@needs_bwrap
@needs_systemd
@needs_root
def test_odd_requests_and_names_under_the_hardening_of_the_unit(hardened: Managed) -> None:
    server = hardened
    work = clone_for(server, "odd", pre_merge='#!/bin/sh\nprintf %s "$FORGE_BRANCH"\n')
    work.push("main", options=("wait",))
    names = ["a\"b'c", "$(x)`id`;|&", "<img-src=x>", "a/b", "a%2Fb", "a#b", "é", "e\u0301", "refs/heads/main", "x" * 200]
    for name in names:
        work.branch("odd", AUTO, **{f"file-{names.index(name)}": name})
        work.git("branch", "-q", "--force", name, "odd")
    work.push(*(f"refs/heads/{name}:refs/heads/{name}" for name in names))
    with contextlib.ExitStack() as held:
        idle = [held.enter_context(connect(server)) for _ in range(200)]
        idle[0].sendall(b"GET / HTTP/1.1\r\nHo")
        work.landed(*names)
        for request in MALFORMED.values():
            assert answer_to(server, request).status in (400, 431, 501)
        assert server.ask("/login", body=bytes((1 << 20) + 1)).status == 413
        assert server.ask("/", Host="evil.example").status == 421
        assert server.ask("/login", {"password": "x"}, Origin="http://evil.example").status == 403
        for ref in ("refs/replace/" + "1" * 40, "refs/forge/jobs/1", "refs/heads/HEAD", "refs/heads/a\u202eb"):
            assert "is refused: " in work.push(f"main:{ref}", check=False), ref
        guesses = [server.ask("/login", {"password": "guess"}).status for _ in range(12)]
        assert guesses[-2:] == [429] * 2 and set(guesses) <= {401, 429}  # a hostile job may have guessed a moment before
        assert server.cli("jobs", "--limit", "1").stdout
    assert server.ask("/r/odd/history", Accept="text/html").text.count("&lt;img-src=x&gt;") >= 1
    assert "guess" not in server.log and "Traceback" not in server.log


LOOK = """
grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status
git log -1 --format=%s && git log --format=%s && curl -fsS "$FORGE_URL/healthz" && mktemp
unshare -n true 2>/dev/null || echo no network namespace
"""


# -- the units -------------------------------------------------------------------------------------


def units(tmp_path: Path, **environ: str) -> tuple[dict[str, str], str]:
    """The units by name, written to `tmp_path` as well, and what was said beside."""
    settings = clean_environ() | {"FORGE_DATA_DIR": str(tmp_path / "data"), **environ}
    done = subprocess.run([*FORGE, "unit", "--json"], env=settings, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    for name, text in found.items():
        (tmp_path / name).write_text(text)
    return found, done.stderr


PLACES = {
    "plain": {"FORGE_DATA_DIR": "/var/lib/forge", "PATH": "/usr/bin:/bin"},
    "tmp": {},
    "odd": {"FORGE_DATA_DIR": "/srv/my forge/100%/$x"},
    "home": {"FORGE_DATA_DIR": "/home/git/forge", "FORGE_NOTIFY": "sh -c 'echo \"$1\"\n%d' \\x"},
    "none": {"FORGE_SANDBOX": "none", "FORGE_HOST": "::", "FORGE_PORT": "0"},
}


@needs_systemd
@pytest.mark.parametrize("place", PLACES)
def test_systemd_likes_the_units(tmp_path: Path, place: str) -> None:
    units(tmp_path, **PLACES[place])
    paths = [str(tmp_path / name) for name in forge.UNIT_FILES]
    verify = subprocess.run(["systemd-analyze", "verify", *paths], capture_output=True, text=True, timeout=60)
    assert verify.returncode == 0 and verify.stdout + verify.stderr == ""
    command = ["systemd-analyze", "security", "--offline=yes", "--threshold=30", paths[0]]
    judged = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, "SYSTEMD_COLORS": "0"})
    assert judged.returncode == 0, judged.stdout


def test_the_units_say_what_this_machine_has(tmp_path: Path) -> None:
    secret = tmp_path / "pass%word"
    found, said = units(
        tmp_path,
        FORGE_DATA_DIR="/srv/forge",
        FORGE_HOST="localhost",
        FORGE_PORT="3131",
        FORGE_URL="https://forge.example.org",
        FORGE_MERGE_PASSWORD_FILE=str(secret),
        FORGE_MERGE_PASSWORD="hunter2",
        FORGE_MAX_JOBS="3",
    )
    service = found["forge.service"]
    assert "ListenStream=127.0.0.1:3131\n" in found["forge.socket"] and "hunter2" not in service
    for line in (
        "ReadWritePaths=/srv/forge",
        "Environment=FORGE_DATA_DIR=/srv/forge",
        "Environment=FORGE_URL=https://forge.example.org",
        "Environment=FORGE_MAX_JOBS=3",
        f"LoadCredential=merge-password:{tmp_path}/pass%%word",
        *(f"{name}={value}" for name, value in forge.UNIT_SERVICE.items() if name not in ("ProtectHome", "PrivateTmp")),
    ):
        assert f"\n{line}\n" in service, line
    for name in (
        "ProtectKernelTunables",
        "ProtectKernelLogs",
        "ProtectProc",
        "ProcSubset",
        "ProtectHostname",
        "MemoryDenyWriteExecute",
    ):
        assert f"\n{name}=" not in service
    assert "StateDirectory=forge\n" in units(tmp_path, FORGE_DATA_DIR="/var/lib/forge")[0]["forge.service"]
    assert "not written into a unit" in units(tmp_path, FORGE_MERGE_PASSWORD="x")[1]
    assert "install -d -o forge /srv/forge" in said or os.geteuid() != 0
    assert "put it elsewhere" in units(tmp_path, FORGE_SECRETS_DIR="/run/credentials/forge.service")[1]
    if os.geteuid() == 0:
        assert "User=forge\n" in service and "useradd" in said
    both = subprocess.run([*FORGE, "unit"], env=clean_environ(), capture_output=True, text=True, timeout=20).stdout
    assert both.count("[Install]") == 2 and "# /etc/systemd/system/forge.socket\n" in both
