"""The command line in a real pseudo-terminal: colours, tables that fit, progress, Ctrl-C; and plain in a pipe."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shlex
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import FORGE, Server, Work, wait_for

import forge


class Terminal:
    """A command on a terminal of its own, so that what is typed there becomes signals."""

    def __init__(self, server: Server, *args: str, columns: int = 80, stdout: int | None = None, **environ: str):
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        env = {k: v for k, v in server.environ.items() if k not in ("COLUMNS", "LINES")} | {"TERM": "xterm"} | environ

        out = slave if stdout is None else stdout
        self.process = subprocess.Popen(["setsid", "-c", *FORGE, *args], env=env, stdin=slave, stdout=out, stderr=slave)
        os.close(slave)
        self.said = ""

    def read(self, seconds: float = 0.05) -> bool:
        """Take what has come; False at the end."""
        if not select.select([self.master], [], [], seconds)[0]:
            return True
        try:
            piece = os.read(self.master, 65536)
        except OSError:  # the other side is closed
            return False
        self.said += piece.decode()
        return bool(piece)

    def until(self, pattern: str) -> re.Match[str]:
        def look() -> re.Match[str] | None:
            self.read()
            return re.search(pattern, self.said)

        found: re.Match[str] = wait_for(look, f"{pattern!r} in {self.said!r}")
        return found

    def end(self) -> int:
        until = time.monotonic() + 60
        while self.read() and time.monotonic() < until:
            pass
        return self.process.wait(timeout=10)

    def screen(self) -> list[str]:
        """The lines as they stand there in the end."""
        lines, column = [""], 0
        for part in re.findall(r"\x1b\[[0-9;]*m|\x1b\[K|\r|\n|[^\x1b\r\n]+", self.said):
            if part == "\n":
                lines.append("")
            elif part == "\x1b[K":
                lines[-1] = lines[-1][:column]
            elif part == "\r":
                column = 0
            elif part[0] != "\x1b":
                lines[-1] = lines[-1][:column] + part + lines[-1][column + len(part) :]
                column += len(part)
        return [line for line in lines if line]


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    made: list[Terminal] = []

    def make(*args: object, **kwargs: object) -> Terminal:
        made.append(Terminal(*args, **kwargs))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        if one.process.poll() is None:
            one.process.kill()
        one.process.wait()
        os.close(one.master)


@contextmanager
def running(work: Work, branch: str, first: str = "echo one") -> Iterator[tuple[int, Path]]:
    """A job that says something and goes on until its gate opens."""
    gate = work.gate(f"gate-{branch.replace('/', '-')}")
    work.branch(branch, run=f'{first}; while [ ! -e "$HOME/{gate.name}" ]; do sleep 0.05; done; echo two\n')
    number = work.push_job(branch)
    wait_for(lambda: work.server.job_log(number), "the log")
    try:
        yield number, gate
    finally:
        gate.touch()
        work.server.ended(number)


def test_colours_on_a_terminal_and_none_in_a_pipe(work: Work, terminal: Callable[..., Terminal]) -> None:
    server = work.server
    work.branch("topic", run="echo error: no; exit 1\n")
    number = work.push_job("topic")
    server.ended(number)
    jobs = ("jobs", "--repo", work.name)
    shown = terminal(server, *jobs)
    assert shown.end() == 0
    assert f"\x1b[1m{number}\x1b[0m" in shown.said and "\x1b[31mfailed\x1b[0m" in shown.said
    assert "\x1b[32mpassed\x1b[0m" in shown.said  # the first push
    for verb, colour in ((("job", str(number)), 31), (("status", work.name, "topic"), 31), (("repos",), 32)):
        coloured = terminal(server, *verb)
        assert coloured.end() == 0 and f"\x1b[{colour}m" in coloured.said, coloured.said
    for environ in ({"NO_COLOR": "1"}, {"TERM": "dumb"}, {"NO_COLOR": "1", "CLICOLOR_FORCE": "1"}):
        plain = terminal(server, *jobs, **environ)
        assert plain.end() == 0 and "\x1b" not in plain.said and "failed" in plain.said
    assert "\x1b" not in server.cli(*jobs).stdout and "\x1b" not in server.cli("job", str(number)).stdout
    forced = subprocess.run([*FORGE, *jobs], env=server.environ | {"CLICOLOR_FORCE": "1"}, capture_output=True, text=True)
    assert "\x1b[31mfailed\x1b[0m" in forced.stdout


def test_a_table_fits_the_terminal_and_is_whole_in_a_pipe(work: Work, terminal: Callable[..., Terminal]) -> None:
    branch = "a-very-long-name-" + "界" * 40
    work.branch(branch)
    work.server.ended(work.push_job(branch))
    for columns in (60, 80):
        narrow = terminal(work.server, "jobs", "--repo", work.name, columns=columns, NO_COLOR="1")
        assert narrow.end() == 0 and "…" in narrow.said
        assert {sum(forge.char_widths(line)) <= columns for line in narrow.said.splitlines()} == {True}
    whole = work.server.cli("jobs", "--repo", work.name).stdout
    assert branch in whole and "…" not in whole
    cells = forge.table([["界", "x"], ["abcd", "y"]]).split("\n")
    assert cells == ["界    x", "abcd  y"]


@pytest.mark.parametrize(
    ("text", "room", "cut"), [("abc", 3, "abc"), ("abcd", 3, "ab…"), ("界界", 3, "界…"), ("e\u0301" * 3, 3, "e\u0301" * 3)]
)
def test_wide_characters_count_twice(text: str, room: int, cut: str) -> None:
    assert forge.fit(text, room) == cut


def job(**values: object) -> dict[str, object]:
    return {"id": 41, "status": "running", "duration": 12.4, **values}


@pytest.mark.parametrize(
    ("values", "usual", "said"),
    [
        ({"status": "pending", "duration": None}, 30.0, "job 41 pending"),
        ({}, None, "job 41 running, 0:12"),
        ({}, 32.4, "job 41 running, 0:12, about 20 s left"),
        ({"duration": 100.0}, 400.0, "job 41 running, 1:40, about 5 min left"),
        ({}, 5.0, "job 41 running, 0:12, longer than usual"),
    ],
)
def test_the_progress_in_words(values: dict[str, object], usual: float | None, said: str) -> None:
    assert forge.progress(job(**values), usual) == said


def test_wait_shows_progress_that_is_gone_in_the_end(work: Work, terminal: Callable[..., Terminal]) -> None:
    work.branch("before", run="sleep 0.3\n")
    work.server.ended(work.push_job("before"))
    with running(work, "topic") as (number, gate):
        waiting = terminal(work.server, "wait", work.name, "topic")
        waiting.until(rf"\rjob {number} running, 0:0\d(, about \d+ s left|, longer than usual)\x1b\[K")
        gate.touch()
        assert waiting.end() == 0
    assert len(waiting.screen()) == 1 and waiting.screen()[0].startswith("it passed")


def test_a_followed_log_is_untouched_by_the_progress(work: Work, terminal: Callable[..., Terminal], tmp_path: Path) -> None:
    with running(work, "topic", "echo one; printf part") as (number, gate):
        follow = terminal(work.server, "log", str(number), "-f")
        follow.until("part")
        with open(tmp_path / "out", "wb") as out:
            apart = terminal(work.server, "log", str(number), "-f", stdout=out.fileno())
            apart.until(rf"job {number} running")
        gate.touch()
        assert follow.end() == 0 and apart.end() == 0
    assert follow.screen() == ["one", "parttwo"] and "running" not in follow.said.partition("part")[2]
    assert apart.screen() == [] and (tmp_path / "out").read_bytes() == b"one\nparttwo\n"


def test_ctrl_c_within_a_line_leaves_the_line(work: Work, terminal: Callable[..., Terminal]) -> None:
    with running(work, "topic", "printf part") as (number, _):
        follow = terminal(work.server, "log", str(number), "-f")
        follow.until("part")
        os.write(follow.master, b"\x03")
        assert follow.end() == 130 and follow.screen()[-1].startswith("detached; job"), follow.said


@pytest.mark.parametrize("verb", ["log", "wait"])
def test_ctrl_c_detaches_and_the_job_goes_on(work: Work, terminal: Callable[..., Terminal], verb: str) -> None:
    with running(work, "topic") as (number, gate):
        words = ("log", str(number), "-f") if verb == "log" else ("wait", work.name, "topic")
        follow = terminal(work.server, *words)
        follow.until(rf"job {number} running")
        os.write(follow.master, b"\x03")
        assert follow.end() == 130
        assert follow.screen()[-1] == f"detached; job {number} goes on: forge log {number} -f", follow.said
        assert "Traceback" not in follow.said and work.server.get(f"/jobs/{number}")["status"] == "running"
        gate.touch()
        assert work.server.ended(number)["status"] == "passed"


def test_nothing_of_the_progress_is_in_a_pipe(work: Work) -> None:
    with running(work, "topic") as (number, gate):
        follow = subprocess.Popen(
            [*FORGE, "log", str(number), "-f"], env=work.server.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert follow.stdout and follow.stdout.readline() == "one\n"
        gate.touch()
        assert follow.communicate(timeout=30) == ("two\n", "")


def test_a_reader_that_leaves_ends_it_silently(work: Work) -> None:
    work.branch("topic", run="seq 100000\n")
    number = work.push_job("topic")
    work.server.ended(number)
    for words in (f"log {number}", f"log {number} -f", "jobs --json"):
        command = f"{' '.join(FORGE)} {words} | head -n 1"
        done = subprocess.run(["sh", "-c", command], env=work.server.environ, capture_output=True, text=True, timeout=30)
        assert (done.stdout.count("\n"), done.stderr) == (1, ""), words


def test_a_server_that_restarts_is_waited_for(make_server: Callable[..., Server], terminal: Callable[..., Terminal]) -> None:
    server = make_server()
    work = server.repo()
    with running(work, "topic") as (number, gate):
        follow = terminal(server, "log", str(number), "-f")
        waiting = terminal(server, "wait", "app", "topic")
        for one in (follow, waiting):
            one.until("running")
        server.stop(signal.SIGKILL)
        for one in (follow, waiting):
            one.until("the server does not answer; waiting for it")
        server.start()
        gate.touch()
        assert follow.end() == 0 and waiting.end() == 0
        assert follow.screen() == ["one", "two"] and waiting.screen()[0].startswith("it passed")


def test_a_server_that_stays_away_ends_the_wait(make_server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    server = make_server()
    monkeypatch.setenv("FORGE_DATA_DIR", str(server.data))
    monkeypatch.setattr(forge, "RESTART_SECONDS", 0.5)
    client = forge.Client(forge.load_config(os.environ))
    forge.Watch(client).tell(None)
    server.stop()
    with pytest.raises(forge.Fault, match="no server answers") as fault:
        client.get("/jobs")
    assert fault.value.code == 3


# -- standard output that takes nothing -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def told(shared: Server) -> tuple[Server, dict[str, str]]:
    """A server, and the words of every verb that has something to say there, by verb."""
    work = shared.repo("told")
    work.branch("topic", run="seq 100000\n")
    number = work.push_job("topic")
    shared.ended(number)
    words = {verb: f"{verb} {number}" for verb in ("job", "log")} | {"log -f": f"log {number} -f"}
    words |= {verb: f"{verb} told topic" for verb in ("status", "wait", "why")} | {"hold": "hold told"}
    words |= {verb: verb for verb in ("repos", "jobs", "audit", "doctor", "unit", "--help", "--version")}
    words |= {"jobs --help": "jobs --help", "jobs --json": "jobs --json", "prune": "prune --dry-run", "shell": "shell"}
    return shared, words


VERBS = "job log status wait why hold repos jobs audit doctor unit --help --version prune shell".split()
VERBS += ["log -f", "jobs --help", "jobs --json"]
ALL_CLOSED = ">&- 2>&- <&-"


@pytest.mark.parametrize(
    ("verb", "where"),
    [(verb, ">/dev/full") for verb in VERBS]
    + [(verb, ">&-") for verb in ("log", "log -f", "jobs", "why", "audit", "--help")]
    + [("jobs", ">/dev/full 2>/dev/full"), ("log", ALL_CLOSED), ("audit", ALL_CLOSED), ("--help", ALL_CLOSED)],
)
def test_what_cannot_be_printed_is_told_in_one_line(told: tuple[Server, dict[str, str]], verb: str, where: str) -> None:
    server, words = told
    command = f"{shlex.join(FORGE)} {words[verb]} {where}"
    done = subprocess.run(["sh", "-c", command], env=server.environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    if "2>" not in where:
        why = "No space left on device" if "full" in where else "Bad file descriptor"
        lines = done.stderr.splitlines()
        assert lines.pop() == f"forge: standard output takes nothing: {why}" and (not lines or verb == "unit")
    assert not done.stdout


@pytest.mark.parametrize("verb", ["job", "log", "log -f", "why", "jobs", "audit", "doctor", "--help", "jobs --json"])
def test_a_reader_that_is_gone_already_is_no_error(told: tuple[Server, dict[str, str]], verb: str) -> None:
    server, words = told
    reader, writer = os.pipe()
    os.close(reader)
    command = [*FORGE, *words[verb].split()]
    done = subprocess.run(command, env=server.environ, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert done.stderr == "" and (done.returncode == 0 or verb in ("doctor", "log -f"))


@pytest.mark.parametrize("where", [">/dev/full", ">&-"])
def test_an_action_is_done_even_if_that_cannot_be_said(told: tuple[Server, dict[str, str]], where: str) -> None:
    server, _ = told
    name = f"made{len(where)}"
    done = subprocess.run(
        ["sh", "-c", f"{shlex.join(FORGE)} create {name} {where}"], env=server.environ, capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and (server.data / f"repos/{name}.git/HEAD").exists()


@pytest.mark.parametrize("where", [">/dev/full", ">&- <&-"])
def test_a_server_whose_line_cannot_be_printed_serves(make_server: Callable[..., Server], where: str) -> None:
    server = make_server(start=False)
    with open(server.data.with_suffix(".err"), "w") as errors:
        process = subprocess.Popen(["sh", "-c", f"exec {shlex.join(FORGE)} serve {where}"], env=server.environ, stderr=errors)
    try:
        found = wait_for(lambda: re.search(r"forge: listening on (\S+), which cannot be printed: .*\n", server.log), "the start")
        server.url = found[1]
        assert server.ask("/healthz").text == "ok\n"
        assert server.cli("create", "app").stdout.strip().endswith("app.git")
    finally:
        process.terminate()
        assert process.wait(timeout=20) == 0
    assert "Traceback" not in server.log and "ignored" not in server.log


def test_what_the_terminals_letters_cannot_spell_is_no_crash(work: Work) -> None:
    name = "é-界-topic"
    work.branch(name)
    work.server.ended(work.push_job(name))
    for encoding in ("ascii", "latin-1"):
        environ = work.server.environ | {"PYTHONIOENCODING": encoding}
        done = subprocess.run([*FORGE, "jobs", "--repo", work.name], env=environ, capture_output=True, timeout=20)
        assert done.returncode == 0 and done.stderr == b"" and b"\\u754c-topic" in done.stdout
