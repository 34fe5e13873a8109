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
        if tool in name.split(", ") + line.split() and not shutil.which(tool):
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


DIGESTS = Path(__file__).parent / "digests"  # logs of real tools; first the lines that a person would point at


def read_case(path: Path) -> tuple[list[str], bytes]:
    """(texts of which the line at fault has one, the log) of a file of the collection."""
    head, _, log = path.read_bytes().partition(b"\n\n")
    return [line.removeprefix("cause: ") for line in head.decode().split("\n")], log


def misses(half: str, noise: bytes = b"") -> dict[str, tuple[int, str] | None]:
    """What the digest names in the logs of one half of the collection where it is not what a person would name."""
    found: dict[str, tuple[int, str] | None] = {}
    for path in sorted((DIGESTS / half).glob("*.log")):
        causes, log = read_case(path)
        named = forge.first_error([(1, noise + log + noise)], set())
        if not named or not any(cause in named[1] for cause in causes):
            found[path.stem] = named
    return found


@pytest.mark.parametrize(("half", "goal"), [("building", 0.95), ("kept", 0.9)])
def test_the_line_that_a_person_would_point_at(half: str, goal: float, capsys: pytest.CaptureFixture[str]) -> None:
    """The patterns are built with one half of the collection and judged by the other."""
    paths, missed = list((DIGESTS / half).glob("*.log")), misses(half)
    rate = 1 - len(missed) / len(paths)
    with capsys.disabled():
        print(f"\n{half}: {len(paths) - len(missed)} of {len(paths)} found ({rate:.0%}); missed: {', '.join(missed) or 'none'}")
    assert len(paths) >= 40 and rate >= goal, missed


HARMLESS_LINES = """-- Looking for strlcpy - not found
-- Could NOT find Doxygen (missing: DOXYGEN_EXECUTABLE)
checking for strerror in -lcposix... no
checking for libfail... not found
warning: error: unable to download 'https://cache.example.org/nix-cache-info': HTTP error 502; retrying in 300 ms
WARNING: Retrying (Retry(total=4)) after connection broken by 'ConnectTimeoutError()': /simple/errors/
warning: spurious network error (3 tries remaining): [28] Timeout was reached
npm WARN deprecated request-error@1.0.0: failed packages go away
DeprecationWarning: error_callback is deprecated
[WARNING] The requested profile "failsafe" could not be activated because it does not exist.
CMake Warning at CMakeLists.txt:15 (find_package):
fatal: No names found, cannot describe anything.
error_handler.c: 0 errors, Failed: 0
Tests run: 8, Failures: 0, Errors: 0, Skipped: 0
valgrind --error-exitcode=9 ./test_failed_login
   Compiling failure v0.1.8
[ 12%] Building CXX object CMakeFiles/core.dir/src/error.cpp.o
tests/test_failed_login.py::test_error_page PASSED                       [ 75%]
test error::panics_on_error - should panic ... ok
--- PASS: TestErrorIsWrapped (0.00s)
2024-02-11T10:11:12.131Z ERROR app.auth login failed for user ada
2024/02/11 10:11:12 ERROR: expected error in test: parse failed
ERROR:root:failed to render: expected
+ grep -q failed out/nothing
ok 3 - failed pushes are refused
not ok 4 - slow disk # TODO error on tmpfs
make: [Makefile:4: clean] Error 1 (ignored)
  14 |     raise ValueError("error: no")
"""


@pytest.mark.parametrize(("half", "goal"), [("building", 0.9), ("kept", 0.8)])
def test_noise_before_and_after_hides_little(half: str, goal: float) -> None:
    """What speaks of errors by the way, 500 lines of it, takes the place of a cause only where no line is better than it."""
    noise = b"\n" + HARMLESS_LINES.encode() * 20
    missed = misses(half, noise)
    assert 1 - len(missed) / len(list((DIGESTS / half).glob("*.log"))) >= goal, missed


def test_a_flood_of_harmless_lines_hides_no_end() -> None:
    log = b"tests/test_errors.py::test_failed PASSED\n" * 9000 + b"error: by the way\n" * 9000
    log += b"main.c:3:5: error: here\n" + b"warning: failed, retrying\n" * 400
    assert forge.first_error([(1, log)], set()) == (18001, "main.c:3:5: error: here")


@pytest.mark.parametrize(
    ("log", "line"),
    [
        ("src/A.hs:27:15: error:\n    • No instance for (Show f)\n", "src/A.hs:27:15: error: • No instance for (Show f)"),
        ("src/A.hs:9:1: error: [GHC-88464]\n    Not in scope: f\n", "src/A.hs:9:1: error: [GHC-88464] Not in scope: f"),
        ("thread 't' panicked at a.rs:3:5:\nno such port\n", "thread 't' panicked at a.rs:3:5: no such port"),
        ("CMake Error at CMakeLists.txt:4 (message):\n\n  No zlib\n", "CMake Error at CMakeLists.txt:4 (message): No zlib"),
        ("gate: Map.!: no key\nCallStack (from HasCallStack):\n  error, called at x.hs:1:2\n", "gate: Map.!: no key"),
        ("error: name says little\n  --> src/a.rs:3:1\nmain.c:1: failed\n", "error: name says little"),
        ("fatal: [web1]: FAILED! => {}\n...ignoring\nfatal: [web2]: FAILED! => {}\n", "fatal: [web2]: FAILED! => {}"),
        ("error:\n       … while evaluating x\n\n       error: expected a set\n", "error: expected a set"),
    ],
)
def test_a_line_is_told_with_what_its_neighbours_say(log: str, line: str) -> None:
    found = forge.first_error([(1, log.encode())], set())
    assert found and found[1] == line, found


def test_no_pattern_finds_what_the_quick_look_passes_over() -> None:
    """But for the weakest."""
    for path in DIGESTS.glob("*/*.log"):
        for line in read_case(path)[1].split(b"\n"):
            text = forge.plain_line(line)
            quick = forge.ERROR_WORD.search(b"\n" + text.lower().encode())
            assert quick or forge.rank_of(text) <= forge.SIGN, (path.name, text)


def test_each_log_of_the_collection_has_the_lines_it_is_marked_with() -> None:
    for path in DIGESTS.glob("*/*.log"):
        causes, log = read_case(path)
        lines = [forge.plain_line(line) for line in log.split(b"\n")]
        assert causes and all(any(cause in line for line in lines) for cause in causes), path


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


def test_a_traceback_is_found_after_many_that_are_usual() -> None:
    said = "Traceback (most recent call last):\n  File x, line {0}\nValueError: {0} is handled\n"
    log = "".join(map(said.format, range(400))) + "Traceback (most recent call last):\n  File y\nKeyError: 'a'\n"
    assert forge.first_error([(1, log.encode())], forge.usual_lines([(1, said.format(1).encode())])) == (1203, "KeyError: 'a'")


def test_what_a_passed_log_says_but_for_numbers_and_times_is_no_suspect() -> None:
    said = "src/a.c:{0}:3: error: kept on purpose\nE   assert {0} == 3\nthread 't{0}' panicked at a.rs:{0}:5:\nat {0}\n"
    said += "Traceback (most recent call last):\n  File x, line {0}\nValueError: {0} at 10:{0}:12\nnot ok {0} - x\n"
    usual = forge.usual_lines([(1, said.format(17).encode())])
    log = said.format(4_242).encode() + b"cp: cannot stat 'x': No such file or directory\n"
    assert forge.first_error([(1, log)], usual) == (9, "cp: cannot stat 'x': No such file or directory")


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


# -- what could not be run -----------------------------------------------------------------------------------

CRLF = "has Windows line ends (CRLF); convert it and add"
FOREIGN = Path("/bin/true").read_bytes()[:18] + (0 if os.uname().machine == "s390x" else 22).to_bytes(2, "big")
NOT_RUN = {
    "line ends": ("./ci/check.sh", b"#!/bin/sh\r\necho hi\r\n", 127, f"ci/check.sh {CRLF} `*.sh text eol=lf` to .gitattributes"),
    "line ends, without a suffix": (
        "ci/check",
        b"#!/bin/sh\r\n",
        127,
        f"ci/check {CRLF} `ci/check text eol=lf` to .gitattributes",
    ),
    "line ends, called by bash": ("bash -c ./ci/check.sh", b"#!/bin/sh\r\n", 127, f"ci/check.sh {CRLF} `*.sh text eol=lf`"),
    "line ends after env": ("./ci/x.py", b"#!/usr/bin/env python3\r\nprint(1)\r\n", 127, f"ci/x.py {CRLF} `*.py text eol=lf`"),
    "line ends, but not of the first": ("sh ci/check.sh", b"#!/bin/sh\nset -e\r\nno-such\r\n", 2, f"ci/check.sh {CRLF}"),
    "line ends, called by make": ("make", b"#!/bin/sh\r\n", 2, f"ci/check.sh {CRLF} `*.sh text eol=lf` to .gitattributes"),
    "line ends, called by Python": (f"{sys.executable} run.py", b"#!/bin/sh\r\n", 1, f"ci/check.sh {CRLF} `*.sh text eol=lf`"),
    "line ends, silent": ("./ci/check.sh 2>/dev/null", b"#!/bin/sh\r\n", 127, f"ci/check.sh {CRLF} `*.sh text eol=lf`"),
    "interpreter": (
        "./ci/check",
        b"#!/opt/none/sh\n",
        127,
        "ci/check asks for /opt/none/sh in its first line, which does not exist",
    ),
    "program of env": (
        "./ci/check",
        b"#!/usr/bin/env -S lua9 -x\n",
        127,
        "ci/check asks for lua9 in its first line, which is not on the PATH",
    ),
    "no right to run it": (
        "./ci/plain",
        b"#!/bin/sh\n",
        126,
        "ci/plain is not executable; run: git update-index --chmod=+x ci/plain",
    ),
    "no right to run it, called by make": ("make plain", b"#!/bin/sh\n", 2, "ci/plain is not executable; run: git update-index"),
    "another machine": ("./ci/check", FOREIGN, 126, "ci/check is for another machine, and this machine is"),
}


def scripts(work: Work, content: bytes) -> None:
    """A script under the names by which the commands above call it."""
    (work.tree / "ci").mkdir(exist_ok=True)
    for name in ("check.sh", "check", "x.py", "plain"):
        (work.tree / "ci" / name).write_bytes(content)
        (work.tree / "ci" / name).chmod(0o644 if name == "plain" else 0o755)
    work.write("Makefile", "all:\n\t./ci/check.sh\nplain:\n\t./ci/plain\n")
    work.write("run.py", "import subprocess\nsubprocess.run(['./ci/check.sh'])\n")


@pytest.mark.parametrize("name", NOT_RUN)
def test_what_cannot_be_run_is_said_with_what_to_do(work: Work, name: str) -> None:
    command, content, code, words = NOT_RUN[name]
    work.bare("config", "forge.preMerge", command)
    work.branch("topic")
    scripts(work, content)
    work.commit("Scripts")
    job = work.server.ended(work.push_job("topic"))
    assert (job["status"], job["exit_code"]) == ("failed", code), (job, work.server.job_log(job["id"]))
    told = job["reason"] if code in (126, 127) else job["digest"]
    assert words in told and job["digest"].count(words) == 1, (told, work.server.job_log(job["id"]))
    assert b"CRLF" not in work.server.job_log(job["id"])


@pytest.mark.parametrize("sandbox", ["auto", "none"])
def test_line_ends_of_the_job_itself_and_of_what_just_calls(make_server: Callable[..., Server], sandbox: str) -> None:
    server = make_server(FORGE_SANDBOX=sandbox, PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    work = server.repo(script="#!/bin/sh\r\necho hi\r\n")
    work.branch("own")
    job = server.ended(work.push_job("own"))
    assert job["reason"] == f"exit code 127: .forge/pre-merge {CRLF} `.forge/pre-merge text eol=lf` to .gitattributes"
    assert job["digest"].startswith(job["reason"] + "\n")
    if shutil.which("just", path=str(Path(sys.executable).parent)):
        work.branch("just", justfile="pre-merge:\r\n\t./ci/check.sh\r\n")
        scripts(work, b"#!/bin/sh\r\necho hi\r\n")
        work.commit("Scripts")
        job = server.ended(work.push_job("just"))
        assert job["command"] == "just pre-merge"
        assert job["reason"] == f"exit code 127: ci/check.sh {CRLF} `*.sh text eol=lf` to .gitattributes"


def test_what_just_was_not_found_is_said_as_before(work: Work) -> None:
    work.branch("read", run="cat /root/none data; exit 1\n", data="x\r\n")
    assert "jobs do not see" not in work.server.ended(work.push_job("read"))["digest"]
    work.branch("topic", run="cat /no/such/file; no-such-command\n")
    job = work.server.ended(work.push_job("topic"))
    assert job["reason"] == "exit code 127: the command, or one it calls, was not found (.forge/pre-merge)"
    assert "jobs do not see" not in job["digest"] and "line 1: cat: /no/such/file" in job["digest"]


def test_no_file_outside_is_looked_into(tmp_path: Path) -> None:
    """A branch may name any file, and link to it: what is hidden from its job is not told either."""
    outside, tree = tmp_path / "outside", tmp_path / "tree"
    tree.mkdir()
    outside.write_text("#!/a/secret\r\n")
    (tree / "link").symlink_to(outside)
    os.mkfifo(tree / "pipe")
    hidden = {outside: forge.Mount(("--tmpfs",), hides=True)}
    said = f"sh: 1: ./link: not found\nsh: 1: ./pipe: not found\nsh: 1: {outside}: not found\n{'.' * 60_000} not found".encode()
    why = forge.why_not_run(127, "./link ./pipe", said, forge.View(tree, os.environ["PATH"], hidden))
    assert why == f"{outside} leads to {outside}, which jobs do not see; {forge.ELSEWHERE}"
    assert forge.why_not_run(127, "./link ./pipe", b"./link: not found", forge.View(tree, os.environ["PATH"], {})) is None
