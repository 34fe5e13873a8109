"""The digest: why a job did not pass, in a few lines, for its page, its JSON, the command line and the pusher."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Server, Work, clean_environ, git_after, wait_for

import forge

FAILING_TEST = "def add(a, b):\n    return a - b\n\ndef test_add():\n    assert add(1, 2) == 3\n"
DERIVATION = (
    'derivation { name = "x"; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" "echo building; exit 3" ]; }'
)

# What is really run where the tool is there: files, a line of sh, and what the first error line is found to be.
RUNS = {
    "gcc": ({"main.c": "int main(void) {\n  return x;\n}\n"}, "echo compiling; gcc main.c", "main.c:2:10: error: ‘x’ undeclared"),
    "ld": (
        {"main.c": "int f(void);\nint main(void) { return f(); }\n"},
        "gcc main.c",
        "main.c:(.text+0x5): undefined reference to `f'",
    ),
    "make": ({"Makefile": "all:\n\t@echo start\n\t@exit 3\n"}, "make", "make: *** [Makefile:3: all] Error 3"),
    "make, no rule": ({"Makefile": "all: lib.o\n"}, "make", "make: *** No rule to make target 'lib.o', needed by 'all'.  Stop."),
    "make, gcc": (
        {"Makefile": "main: main.c\n\tgcc main.c\n", "main.c": "#include <no.h>\n"},
        "make",
        "main.c:1:10: fatal error: no.h",
    ),
    "python": ({"x.py": "def f():\n    return {}['a']\nprint('go', flush=True)\nf()\n"}, "python x.py", "KeyError: 'a'"),
    "python, syntax": ({"x.py": "def f(:\n"}, "python x.py", "SyntaxError: invalid syntax"),
    "pytest": ({"test_x.py": FAILING_TEST}, "python -m pytest -q -p no:cacheprovider", "E       assert -1 == 3"),
    "pytest, verbose": ({"test_x.py": FAILING_TEST}, "python -m pytest -v --color=yes", "E       assert -1 == 3"),
    "pytest, import": (
        {"test_x.py": "import no_such_thing\n"},
        "python -m pytest -q",
        "E   ModuleNotFoundError: No module named",
    ),
    "git": ({}, "git log", "fatal: not a git repository"),
    "sh": ({}, "echo one; no-such-command", "sh: 1: no-such-command: not found"),
    "bash": ({}, "bash -c 'cat /no/such/file'", "cat: /no/such/file: No such file or directory"),
    "segfault": ({"x.c": "int main(void) { return *(volatile int *)0; }\n"}, "gcc -o x x.c; ./x", "Segmentation fault"),
    "assert": (
        {"x.c": "#include <assert.h>\nint main(void) { assert(1 == 2); }\n"},
        "gcc -o x x.c; ./x",
        "Assertion `1 == 2' failed.",
    ),
    "node": ({"x.js": "throw new TypeError('no')\n"}, "node x.js", "TypeError: no"),
    "cargo": ({"x.rs": "fn main() { let x: u8 = 256; }\n"}, "rustc x.rs", "error: literal out of range for `u8`"),
    "nix": ({"x.nix": DERIVATION}, "nix-build --no-out-link x.nix", "error: "),
    "nix, eval": ({"x.nix": "{ a = 1; }.b"}, "nix-instantiate --eval x.nix", "error: attribute 'b' missing"),
}


@pytest.mark.parametrize("name", RUNS)
def test_the_first_error_line_of_real_tools(tmp_path: Path, name: str) -> None:
    files, line, expected = RUNS[name]
    for tool in ("gcc", "node", "rustc", "nix-build", "nix-instantiate"):
        if tool in line.split() and not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")
    for path, text in files.items():
        (tmp_path / path).write_text(text)
    environ = clean_environ() | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONDONTWRITEBYTECODE": "1"}
    run = ["sh", "-c", line]
    environ["GIT_CEILING_DIRECTORIES"] = str(tmp_path.parent)
    done = subprocess.run(run, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=100)
    found = forge.first_error([(1, done.stdout)], set())
    assert found and expected in found[1], (found, done.stdout.decode())
    assert expected.split()[-1] in done.stdout.split(b"\n")[found[0] - 1].decode()


@pytest.mark.parametrize(
    ("log", "line"),
    [
        ("ok  \tmod/a\t0.1s\n--- FAIL: TestAdd (0.00s)\n    a_test.go:7: got 3\nFAIL\n", 2),
        ("goroutines\npanic: runtime error: index out of range [5]\n\ngoroutine 1 [running]:\n", 2),
        ("running 1 test\ntest t ... FAILED\n\nthread 't' panicked at src/lib.rs:3:5:\nassertion `left == right` failed\n", 4),
        ("error[E0308]: mismatched types\n --> src/main.rs:2:18\n", 1),
        ("npm ERR! code ELIFECYCLE\n", 1),
        ("Reading package lists...\nE: Unable to locate package nope\n", 2),
        ("[INFO] build\n[ERROR] Failed to execute goal\n", 2),
        ("1..2\nok 1 - error handling\nnot ok 2 - adds\n", 3),
        ("\x1b[1m\x1b[31merror\x1b[0m: colours do not hide it\n", 1),
        ("10%\r50% error: of the past\r100%\nFAILED (errors=1)\n", 2),
        ('web-1  | Traceback (most recent call last):\nweb-1  |   File "x"\nweb-1  |     f()\nweb-1  | ValueError: no\n', 4),
        ("the check failed\nerror: since it said so\n", 2),  # a cause goes before a mere sign
        ("the check failed\nbye\n", 1),
    ],
)
def test_the_first_error_line_of_what_other_tools_say(log: str, line: int) -> None:
    found = forge.first_error([(1, log.encode())], set())
    assert found and found[0] == line, found


@pytest.mark.parametrize(
    "line",
    """0 errors
Found 0 errors, 0 failures
errors: 0
no errors found
5 passed, 0 failed
error_handler.py compiles
compiling src/error.rs
cc -c -o error.o error.c
tests/test_error.py::test_failed PASSED [ 50%]
test error::handled ... ok
ok 3 - failed pushes are refused
✓ shows an error
-Werror -Wfatal-errors
checking for strerror... yes
assert x == 1
100% tests passed
panic_handler loaded""".split("\n"),
)
def test_what_is_no_error(line: str) -> None:
    assert forge.first_error([(1, line.encode())], set()) is None


def test_what_a_passed_log_says_as_well_is_no_suspect() -> None:
    passed = [(1, b"10:02:11 error: cache 8f3a2b1c miss, 12 retries\n")]
    log = [(1, b"10:09:40 error: cache 77aa01ff miss, 3 retries\nerror: the real one\n")]
    assert forge.first_error(log, set()) == (1, "10:09:40 error: cache 77aa01ff miss, 3 retries")
    assert forge.first_error(log, forge.usual_lines(passed)) == (2, "error: the real one")


def test_a_huge_log_costs_little(tmp_path: Path) -> None:
    """1 GB, mostly a hole; a line of 64 MB; and lines that would make patterns slow."""
    path = tmp_path / "log"
    with open(path, "wb") as stream:
        stream.write(b"start\n")
        stream.truncate(1 << 30)
        stream.seek(0, os.SEEK_END)
        stream.write(b"\nerror: at the very end\n")
    tracemalloc.start()
    assert forge.first_error(forge.read_ends(path), set()) == (3, "error: at the very end")
    assert forge.last_lines(forge.read_tail(path))[-1] == "  error: at the very end"
    assert tracemalloc.get_traced_memory()[1] < 32 << 20
    tracemalloc.stop()
    hostile = [
        b"error" * 100_000,
        b"E" + b"." * 300_000 + b"Error",
        b"*** " * 100_000,
        b"Assertion " * 50_000,
        b"\x1b]8;;" * 90_000,
    ]
    block = b"\n".join([*hostile, *[b"fail" + b"x" * 20] * 20_000, b"\xff\xfe\x00error: broken \xff bytes", b"a" * (64 << 20)])
    path.write_bytes(block)
    assert forge.first_error(forge.read_ends(path), set()) in (None, (1, "error" * 60))
    assert forge.last_lines(forge.read_tail(path)) == ["the log ends with:", f"  {'a' * 159}…"]


def job(**values: object) -> forge.Job:
    fixed = {"id": 1, "repo": "r", "branch": "b", "kind": forge.PRE, "commit": "c", "heads": [], "created_at": "", "timeout": 60}
    return forge.Job(**{**fixed, **values})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        ("failed", 3, "exit code 3"),
        ("failed", 126, "exit code 126: the command, or one it calls, cannot be executed (just pre-merge)"),
        ("failed", 127, "exit code 127: the command, or one it calls, was not found (just pre-merge)"),
        ("failed", 139, "exit code 139: a process was killed by signal 11 (SIGSEGV, segmentation fault)"),
        ("failed", 137, "exit code 137: a process was killed by signal 9 (SIGKILL, killed)"),
        ("failed", 200, "exit code 200"),
        ("failed", 255, "exit code 255"),
        ("timeout", 143, "timed out after 60 s"),
    ],
)
def test_the_outcome_in_words(status: str, code: int, words: str) -> None:
    reason = forge.exit_reason(code, "just pre-merge")
    assert forge.outcome(job(status=status, exit_code=code, reason=reason)) == words


def test_a_digest_is_short_and_plain() -> None:
    lines = ["exit code 1", *forge.last_lines(b"\x1b[31m\xe2\x80\xae<b>" + "界".encode() * 200 + b"\n" * 9)]
    lines += forge.spell_changes(2, ["s" * 300, "\udc80\x07", "c", "d"], 1, [f"{n}{'p' * 200}" for n in range(9)])
    text = forge.fit_digest(lines * 9)
    assert len(text.encode()) <= 2000 and text.replace("\n", "").isprintable()
    assert "since then: 4 commits (" in text and "base moved by 1 commit, tested together with 2 others" in text
    assert "and 4 more" in text and forge.spell_changes(0, [], 0, [])[1].startswith("the files are the same")


def test_the_digest_from_end_to_end(work: Work) -> None:
    server = work.server
    work.branch("topic", run="echo error: always said; echo fine\n")
    passed = work.push_job("topic")
    assert server.ended(passed)["status"] == "passed" and server.ended(passed)["digest"] is None
    work.commit("Break it", run="echo error: always said; echo 'fatal: <b>boom</b>'; echo bye; exit 3\n", extra="x")
    said = work.push("topic", options=("wait",))
    failed = passed + 1
    digest = server.ended(failed)["digest"]
    lines = digest.split("\n")
    assert lines[:6] == ["exit code 3", "line 2: fatal: <b>boom</b>", "the log ends with:", "  error: always said"] + [
        "  fatal: <b>boom</b>",
        "  bye",
    ]
    assert re.fullmatch(rf"job {passed} passed on this branch (moments|\d+ seconds) earlier", lines[6])
    assert lines[7:] == ["since then: 1 commit (Break it)", "files: extra, run"]
    told = [line.removeprefix("remote: ").rstrip() for line in said.split("\n")]
    at = told.index("forge: exit code 3")
    assert told[at : at + len(lines)] == [f"forge: {line}".rstrip() for line in lines]
    assert f"forge: job {failed} failed" in told[at + len(lines)]
    assert digest in server.cli("job", str(failed)).stdout
    assert digest in server.cli("job", str(failed)).stdout
    finished = [r for r in server.journal() if r["event"] == "job.finished" and r["id"] == failed]
    assert [record["digest"] for record in finished] == [digest]


def test_a_new_branch_is_compared_with_what_became_base(work: Work) -> None:
    work.branch("early", "Break early", run="exit 1\n")
    digest = work.server.ended(work.push_job("early"))["digest"].split("\n")
    assert " passed on base " in digest[1] and digest[2:] == ["since then: 1 commit (Break early)", "files: run"]
    work.branch("first", "Land\n\nAuto-Merge: yes")
    landed = work.push_job("first")
    work.landed("first")
    work.branch("second", "Break", run="exit 1\n")
    work.git("checkout", "-q", "--detach", "origin/main")
    work.commit("Straight to base", direct="x")
    work.git("push", "-q", "origin", "HEAD:main")
    digest = work.server.ended(work.push_job("second"))["digest"].split("\n")
    assert digest[0] == "exit code 1" and digest[1].startswith(f"job {landed} passed and became base ")
    assert digest[2:] == ["since then: 1 commit (Break), base moved by 1 commit", "files: direct, run"]


def test_who_gets_a_digest(work: Work) -> None:
    server = work.server
    work.branch("killed", run="kill -SEGV $$\n")
    work.branch("slow", run="echo zzz; sleep 60\n")
    work.branch("canceled", run="sleep 60\n")
    work.bare("config", "forge.timeout", "2")
    slow = work.push_job("slow")
    assert server.ended(slow)["digest"].split("\n")[:3] == ["timed out after 2 s", "the log ends with:", "  zzz"]
    killed = server.ended(work.push_job("killed"))
    assert killed["digest"].startswith("exit code 139: a process was killed by signal 11 (SIGSEGV, segmentation fault)")
    work.bare("config", "forge.timeout", "60")
    canceled = work.push_job("canceled")
    server.running(canceled)
    server.act(f"/jobs/{canceled}/cancel")
    assert server.ended(canceled)["status"] == "canceled" and server.ended(canceled)["digest"] is None


def test_an_interrupted_job_has_the_end_of_its_log(make_server: Callable[..., Server]) -> None:
    server = make_server(FORGE_SANDBOX="none")
    work = server.repo()
    work.branch("topic", run="echo error: on the way; sleep 60\n")
    number = work.push_job("topic")
    wait_for(lambda: server.job_log(number), "the log")
    supervisor = int((server.data / f"running/{number}/pid").read_text().split()[0])
    server.stop(signal.SIGKILL)
    os.killpg(supervisor, signal.SIGKILL)
    server.start()
    digest = server.ended(number)["digest"].split("\n")
    assert digest[0].startswith("interrupted") and digest[1:] == ["the log ends with:", "  error: on the way"]


def test_a_git_that_fails_leaves_the_verdict_and_the_rest(make_server: Callable[..., Server], tmp_path: Path) -> None:
    broken = git_after(tmp_path / "bin", 'case "$*" in *diff-tree*) echo fatal: gone >&2; exit 128;; esac')
    server = make_server(**broken)
    work = server.repo()
    work.branch("topic")
    server.ended(work.push_job("topic"))
    work.commit("Break", run="echo error: no; exit 1\n")
    failed = server.ended(work.push_job("topic"))
    assert failed["status"] == "failed" and failed["exit_code"] == 1
    assert failed["digest"].startswith("exit code 1\nline 1: error: no\n") and "passed on this branch" in failed["digest"]
    assert f"the digest of job {failed['id']} is cut short: git diff-tree ended with 128" in server.log


@pytest.mark.parametrize("number", [None, signal.SIGTERM, signal.SIGKILL])
def test_a_slow_digest_delays_nobody_and_a_stop_loses_no_end(
    make_server: Callable[..., Server], tmp_path: Path, number: int | None
) -> None:
    hold, begun = tmp_path / "hold", tmp_path / "begun"
    script = f'case "$*" in *diff-tree*) [ ! -e {hold} ] || echo $$ >>{begun}; while [ -e {hold} ]; do sleep 0.05; done;; esac'
    server = make_server(FORGE_MAX_JOBS="2", **git_after(tmp_path / "bin", script))
    work = server.repo()
    work.branch("topic")
    server.ended(work.push_job("topic"))
    hold.touch()
    work.commit("Break", run="exit 1\n")
    failing = work.push_job("topic")
    wait_for(begun.exists, "the digest")
    work.branch("good", "Good\n\nAuto-Merge: yes")
    work.push("good")
    work.landed("good")
    assert server.get(f"/jobs/{failing}")["status"] == "running" and begun.read_text().count("\n") == 1
    if number:
        server.stop(number)
        hold.unlink()
        server.start()
    else:
        hold.unlink()
    ended = server.ended(failing)
    assert (ended["status"], ended["exit_code"]) == ("failed", 1) and "files: run" in ended["digest"]
    assert len([r for r in server.journal() if r["event"] == "job.finished" and r["id"] == failing]) == 1
