"""A real server on a data directory of its own, real git, a browser where one is asked for."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from zlib import crc32

import psutil
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

FORGE = [sys.executable, str(ROOT / "forge.py")]
PASSWORD = "correct horse"
PRE_SCRIPT = "#!/bin/sh\n[ ! -f run ] || . ./run\n"
POST_SCRIPT = "#!/bin/sh\n[ ! -f deploy ] || . ./deploy\n"
NIX_CONFIG = "experimental-features = nix-command flakes\nsandbox = false\nbuild-users-group =\nsubstitute = false\n"


def clean_environ() -> dict[str, str]:
    """The environment without what would steer forge or git or colour what they say, with an identity for commits."""
    steering = ("FORGE_", "GIT_", "NO_COLOR", "CLICOLOR", "MAKE", "MFLAGS")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(steering)}
    for role in ("AUTHOR", "COMMITTER"):
        environ |= {f"GIT_{role}_NAME": "Ada", f"GIT_{role}_EMAIL": "ada@localhost"}
    return environ | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, "NIX_CONFIG": NIX_CONFIG, "TZ": "UTC"}


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 30) -> Any:
    """The first true value of `condition`; fails the test when it does not come."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"{what} did not happen within {seconds} seconds")


@dataclass
class Answer:
    """What the server said."""

    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        return self.body.decode()


@dataclass
class Server:
    """One data directory and the server on it."""

    data: Path
    settings: dict[str, str] = field(default_factory=dict)
    url: str = ""
    wrapper: tuple[str, ...] = ()  # what begins each command that looks at the data directory
    program: list[str] = field(default_factory=lambda: FORGE)
    process: subprocess.Popen[str] | None = None

    @property
    def environ(self) -> dict[str, str]:
        own = {"FORGE_DATA_DIR": str(self.data), "FORGE_PORT": "0", "FORGE_MERGE_PASSWORD": PASSWORD}
        return clean_environ() | own | self.settings

    @property
    def log(self) -> str:
        path = self.data.with_suffix(".err")
        return path.read_text() if path.exists() else ""

    def start(self, *wrapper: str) -> Server:
        with open(self.data.with_suffix(".err"), "a") as errors:
            command = [*self.wrapper, *wrapper, *self.program, "serve"]
            self.process = subprocess.Popen(command, env=self.environ, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line.startswith("forge: listening on http"), (line, self.log)
        self.url = line.split()[-1]
        return self

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process and self.process.stdout
        self.process.send_signal(number)
        code = self.process.wait(timeout=15)
        self.process.stdout.close()
        self.process = None
        return code

    def cli(self, *args: str, check: bool = True, **kwargs: Any) -> subprocess.CompletedProcess[str]:
        command = [*self.wrapper, *self.program, *args]
        done = subprocess.run(command, env=self.environ, capture_output=True, text=True, timeout=60, **kwargs)
        assert not check or done.returncode == 0, (args, done.returncode, done.stdout, done.stderr)
        return done

    def ask(
        self, path: str, form: dict[str, str] | None = None, body: bytes | None = None, method: str | None = None, **headers: str
    ) -> Answer:
        data = urlencode(form).encode() if form is not None else body
        given = {"Accept": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, data, given, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return Answer(answer.status, answer.headers, answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.headers, error.read())

    def get(self, path: str) -> Any:
        answer = self.ask(path)
        assert answer.status == 200, (path, answer.status, answer.body)
        return answer.json

    def act(self, path: str, **form: str) -> Answer:
        return self.ask(path, {"password": PASSWORD, **form})

    def hook(self, body: bytes, **headers: str) -> Answer:
        token = (self.data / "hook-token").read_text().strip()
        return self.ask("/hooks/post-receive", body=body, Authorization=f"Bearer {token}", **headers)

    def ended(self, job_id: int, seconds: float = 30) -> Any:
        """A job's JSON once it has ended."""

        def look() -> Any:
            job = self.get(f"/jobs/{job_id}")
            return job if job["status"] not in ("pending", "running") else None

        return wait_for(look, f"the end of job {job_id}", seconds)

    def running(self, job_id: int) -> Any:
        return wait_for(lambda: self.get(f"/jobs/{job_id}")["status"] == "running", f"the start of job {job_id}")

    def idle(self, seconds: float = 60) -> None:
        """Wait until no job is pending or running and none follows."""
        quiet = [0]

        def look() -> bool:
            busy = {"pending", "running"} & {job["status"] for job in self.get("/jobs?limit=200")["jobs"]}
            quiet[0] = 0 if busy else quiet[0] + 1
            return quiet[0] > 3 and all(
                view["settled"]
                for repo in self.get("/")["repos"]
                if not repo["trouble"]
                for view in self.get(f"/r/{repo['repo']}")["merge_requests"]
            )

        wait_for(look, "quiet", seconds)

    def job_log(self, job_id: int) -> bytes:
        return self.ask(f"/jobs/{job_id}/log").body

    def journal(self) -> list[dict[str, Any]]:
        lines = [line for name in ("jobs", "merges") for line in (self.data / f"{name}.jsonl").read_text().split("\n") if line]
        return sorted(map(json.loads, lines), key=lambda record: record["seq"])

    def repo(self, name: str = "app", base: str = "main", script: str = PRE_SCRIPT) -> Work:
        """A new repo with a first commit on base whose jobs run what a branch puts into the file `run`."""
        path = Path(self.cli("create", name, "--base", base).stdout.strip())
        work = Work(self, name, path, self.data.parent / f"{self.data.name}-work" / name)
        work.tree.mkdir(parents=True)
        work.git("init", "-q", "-b", base)
        work.git("remote", "add", "origin", str(path))
        work.write(".forge/pre-merge", script, executable=True)
        work.write(".forge/post-merge", POST_SCRIPT, executable=True)
        work.commit("First commit")
        work.push(base)
        self.idle()
        return work


@dataclass
class Work:
    """A clone of a repo, to commit and push from."""

    server: Server
    name: str
    path: Path
    tree: Path

    def git(self, *args: str, check: bool = True, text: str | None = None) -> str:
        command = [*self.server.wrapper, "git", "-C", str(self.tree), *args]
        done = subprocess.run(command, env=clean_environ(), capture_output=True, text=True, timeout=60, input=text)
        assert not check or done.returncode == 0, (args, done.stdout, done.stderr)
        return done.stdout.strip() if check else done.stdout + done.stderr

    def bare(self, *args: str) -> str:
        """git in the server's repo."""
        command = [*self.server.wrapper, "git", "-C", str(self.path), *args]
        done = subprocess.run(command, env=clean_environ(), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, (args, done.stderr)
        return done.stdout.strip()

    def write(self, path: str, text: str, executable: bool = False) -> None:
        target = self.tree / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        if executable:
            target.chmod(0o755)

    def commit(self, message: str = "A change", **files: str) -> str:
        for name, text in files.items():
            self.write(name, text)
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", message)
        return self.git("rev-parse", "HEAD")

    def branch(self, name: str, message: str = "A change", start: str = "origin/main", **files: str) -> str:
        """A new branch from `start` with one commit; its head."""
        self.git("fetch", "-q", "--prune", "origin")
        self.git("checkout", "-q", "--no-track", "-B", name, start)
        return self.commit(message, **(files or {f"file-{crc32(name.encode())}": name}))

    def push(self, *refs: str, options: tuple[str, ...] = (), force: bool = False, check: bool = True) -> str:
        """Push branches by name (or refspecs); what git and the hooks print."""
        words = [word for option in options for word in ("-o", option)]
        done = subprocess.run(
            [*self.server.wrapper, "git", "-C", str(self.tree), "push", *(["--force"] if force else []), *words, "origin", *refs],
            env=clean_environ(),
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert not check or done.returncode == 0, (refs, done.stderr)
        return done.stderr + done.stdout

    def push_job(self, name: str, **kwargs: Any) -> int:
        """Push a branch; the id of its job, which the hook printed."""
        said = self.push(name, **kwargs)
        return int(said.split("/jobs/")[1].split()[0])

    def gate(self, name: str) -> Path:
        """A file for a pre-merge job to wait for: it is to lie in the jobs' HOME, since they see little else of ours."""
        home = self.server.data / "home" / self.name / "pre-merge"
        home.mkdir(parents=True, exist_ok=True)
        return home / name

    def mr(self, branch: str) -> Any:
        return self.server.get(f"/r/{self.name}/mr/{branch}")

    def heads(self) -> dict[str, str]:
        lines = self.bare("for-each-ref", "--format=%(refname:lstrip=2) %(objectname)", "refs/heads/").split("\n")
        return dict(line.split(" ") for line in lines if line)

    def merges(self) -> list[Any]:
        found: list[Any] = self.server.get(f"/r/{self.name}/history")["merges"]
        return found

    def landed(self, *branches: str) -> None:
        """Wait until branches (all, when none is named) are gone from the repo and the merge is on record, a moment later."""
        what = branches or "all branches"
        gone = (lambda: not set(branches) & set(self.heads())) if branches else (lambda: len(self.heads()) == 1)
        wait_for(gone, f"the merge of {what}", 60)
        newest = self.bare("log", "-1", "--first-parent", "--format=%H", "--grep=^Forge Merge: ")
        wait_for(lambda: newest in [merge["merge_commit"] for merge in self.merges()], f"the record of {what}")


AUTO = "A change\n\nAuto-Merge: yes"


def git_after(folder: Path, script: str) -> dict[str, str]:
    """A PATH whose git first runs some lines of sh, which lies in `folder`."""
    folder.mkdir()
    (folder / "git").write_text(f'#!/bin/sh\n{script}\nexec {shutil.which("git")} "$@"\n')
    (folder / "git").chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for a module; its tests make repos of their own."""
    server = Server(tmp_path_factory.mktemp("forge") / "data", {"FORGE_MAX_JOBS": "2"}).start()
    yield server
    end(server)


@pytest.fixture
def work(shared: Server, request: pytest.FixtureRequest) -> Work:
    """A fresh repo on the shared server."""
    return shared.repo(f"r{crc32(request.node.nodeid.encode())}")


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Servers with settings of their own."""
    made: list[Server] = []

    def make(name: str = "data", start: bool = True, **settings: str) -> Server:
        server = Server(tmp_path / name, settings)
        made.append(server)
        return server.start() if start else server

    yield make
    for server in made:
        end(server)


def end(server: Server) -> None:
    """End a server and the jobs it left, by their own ids; a traceback in its log fails the test."""
    if server.process:
        server.stop()
    for run in (server.data / "running").glob("*"):
        try:
            pid = int((run / "pid").read_text().split()[0])
            tree = psutil.Process(pid).children(recursive=True)  # the job has a session of its own
            os.killpg(pid, signal.SIGKILL)
            for process in tree:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        except (OSError, ValueError, IndexError, psutil.NoSuchProcess):
            continue
    assert "Traceback" not in server.log, server.log


NIX = shutil.which("nix")
needs_nix = pytest.mark.skipif(
    not NIX and not os.environ.get("FORGE_TEST_REQUIRE_NIX"), reason="nix is not installed: jobs of flakes are not tested"
)

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")  # wants to be called by its full path
needs_ssh = pytest.mark.skipif(
    not SSHD and not os.environ.get("FORGE_TEST_REQUIRE_SSH"), reason="sshd is not installed: nothing is done over ssh"
)


def ssh_version() -> tuple[int, ...]:
    """The version of OpenSSH here, such as (10, 0)."""
    said = subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=True).stderr
    found = re.match(r"OpenSSH_(\d+)\.(\d+)", said)
    assert found, said
    return int(found[1]), int(found[2])


@dataclass
class Sshd:
    """A host to log in to: an sshd on loopback with keys of its own, for the user that runs the tests."""

    folder: Path
    settings: tuple[str, ...] = ()  # more lines of sshd_config
    wrapper: tuple[str, ...] = ()  # what begins its command
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> Sshd:
        self.folder.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            os.makedirs("/run/sshd", exist_ok=True)
        for name in ("host_key", "id_ed25519"):
            if not (self.folder / name).exists():
                subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", self.folder / name], check=True)
        (self.folder / "authorized_keys").touch()
        if not self.port:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.port = free.getsockname()[1]
        lines = [
            *self.settings,
            f"ListenAddress 127.0.0.1:{self.port}",
            f"HostKey {self.folder}/host_key",
            f"AuthorizedKeysFile {self.folder}/authorized_keys",
            f"PidFile {self.folder}/pid",
            "StrictModes no",  # pytest's folders lie below one that everybody may write to
            "UsePAM no",
            "PasswordAuthentication no",
            "PermitRootLogin yes",
            *(["PerSourcePenalties no"] if ssh_version() >= (9, 8) else []),  # else a refused login blocks the next test
        ]
        (self.folder / "sshd_config").write_text("\n".join(lines) + "\n")
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {(self.folder / 'host_key.pub').read_text()}")
        with open(self.folder / "log", "ab") as log:
            assert SSHD
            command = [*self.wrapper, SSHD, "-D", "-e", "-f", str(self.folder / "sshd_config")]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=clean_environ())
        wait_for((self.folder / "pid").exists, "the start of sshd")
        return self

    def stop(self) -> None:
        if self.process:
            tree = psutil.Process(self.process.pid).children(recursive=True)
            for process in [psutil.Process(self.process.pid), *tree]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self.process.wait()
            (self.folder / "pid").unlink(missing_ok=True)
            self.process = None

    @property
    def user(self) -> str:
        return pwd.getpwuid(os.geteuid()).pw_name

    @property
    def url(self) -> str:
        """What begins the address of a repo on it."""
        return f"ssh://{self.user}@127.0.0.1:{self.port}"

    def allow(self, options: str = "", key: Path | None = None) -> None:
        """Let a key in (the host's own pair id_ed25519 unless told), with options such as command="…"."""
        public = (key or self.folder / "id_ed25519").with_suffix(".pub").read_text().strip()
        with open(self.folder / "authorized_keys", "a") as file:
            file.write(f"{options} {public}\n".lstrip())

    def client(self, key: Path | None = None) -> list[str]:
        """An ssh command that uses the pair id_ed25519 (or another) and nothing of whoever runs the tests."""
        options = [
            "BatchMode=yes",
            "IdentitiesOnly=yes",
            f"UserKnownHostsFile={self.folder}/known_hosts",
            "GlobalKnownHostsFile=none",
        ]
        given = [word for option in [*options, "StrictHostKeyChecking=yes"] for word in ("-o", option)]
        return ["ssh", "-F", "none", "-i", str(key or self.folder / "id_ed25519"), *given]

    def run(self, *command: str, key: Path | None = None, text: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command there by ssh."""
        line = [*self.client(key), "-p", str(self.port), f"{self.user}@127.0.0.1", *command]
        return subprocess.run(line, input=text, capture_output=True, text=True, timeout=60, env=clean_environ())

    def secrets(self, folder: Path) -> Path:
        """A FORGE_SECRETS_DIR by which jobs may log in here."""
        (folder / "ssh").mkdir(parents=True)
        for name in ("id_ed25519", "id_ed25519.pub", "known_hosts"):
            shutil.copy(self.folder / name, folder / "ssh" / name)
        return folder


@pytest.fixture
def make_sshd(tmp_path: Path) -> Iterator[Callable[..., Sshd]]:
    """Hosts to log in to."""
    made: list[Sshd] = []

    def make(name: str = "host", *settings: str) -> Sshd:
        made.append(Sshd(tmp_path / name, settings))
        return made[-1].start()

    yield make
    for host in made:
        host.stop()


CHROMIUM = shutil.which("chromium")
CHROMIUM_ARGS = """--no-sandbox --disable-gpu --disable-quic --disable-background-networking --disable-component-update
--disable-sync""".split()
needs_browser = pytest.mark.skipif(
    not CHROMIUM and not os.environ.get("FORGE_TEST_REQUIRE_BROWSER"),
    reason="chromium is not installed: pages are not tested in it",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium without a screen."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that fails its test when the browser complains, but for the page of a branch that was merged meanwhile (404)."""
    context = browser.new_context()
    page = context.new_page()
    complaints: list[str] = []

    def hear(message: Any) -> None:
        merged = "404" in message.text and "/mr/" in message.location["url"]
        if message.type in ("error", "warning") and not merged:
            complaints.append(f"{message.text} {message.location}")

    page.on("console", hear)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    context.close()
    assert complaints == []
