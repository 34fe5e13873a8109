"""One git call of the server that goes wrong: what tests/soak.py puts in its place runs the real git and kills.

Arguments: the real git, when, whom, the server's pid and its start in clock ticks, a delay in seconds, a file to write
what was done to, then what the server gave git. When: `before`, `after`, `middle` (after the delay), `late` (the server dies,
git does its work after the delay), and for ``update-ref --stdin`` also `locked` (killed with its locks taken) and `moved`
(killed between its renames: base has moved, nothing else). Whom: `server` (and git with it, where it runs then) or `git` alone.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

REAL, WHEN, WHOM, PID, TICKS, DELAY, TOLD, *ARGS = sys.argv[1:]


def kill_server() -> None:
    """Kill the server, if that pid is still the process that was meant and our parent."""
    if WHOM != "server":
        return
    with contextlib.suppress(OSError):
        pidfd = os.pidfd_open(int(PID))  # from here on the number cannot mean another process
        ticks = Path(f"/proc/{PID}/stat").read_text().rpartition(")")[2].split()[19]
        if ticks == TICKS and os.getppid() == int(PID):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def tell() -> None:
    """Say what is about to be done."""
    Path(TOLD).write_text(f"{WHEN} {WHOM} {ARGS[0]}\n")


def start(*given: bytes) -> "subprocess.Popen[bytes]":
    """The real git, with the server's standard input or with what was read from it."""
    process = subprocess.Popen([REAL, *ARGS], stdin=subprocess.PIPE if given else None, stdout=subprocess.PIPE if given else None)
    for text in given:
        assert process.stdin
        process.stdin.write(text)
        process.stdin.flush()
    return process


def await_locks(git: "subprocess.Popen[bytes]") -> bool:
    """Wait until git has prepared the transaction; False when it cannot."""
    assert git.stdout
    return any(line.startswith(b"prepare") for line in git.stdout)


def move_first(given: bytes) -> None:
    """Do the first thing git does when it commits: rename the lock of the first ref, which holds the new id already."""
    first = next(word for word in given.split(b"\0") if word.startswith(b"update "))[7:]
    os.rename(first + b".lock", first)


def main() -> int:
    """Do what was asked for, and end as the real git did."""
    if WHEN == "before":
        tell()
        kill_server()
        os.kill(os.getpid(), signal.SIGKILL)
    if WHEN == "after":
        code = start().wait()
        tell()
        kill_server()
        return code
    if WHEN == "late":
        given = sys.stdin.buffer.read()
        tell()
        kill_server()
        time.sleep(float(DELAY))
        git = start(given)
        assert git.stdin
        git.stdin.close()
        return git.wait()
    if WHEN == "middle":
        git = start()
        time.sleep(float(DELAY) / 50)
    else:
        given = sys.stdin.buffer.read()
        git = start(given.removesuffix(b"commit\0"))
        if not await_locks(git):
            return git.wait()
        if WHEN == "moved":
            move_first(given)
    tell()
    kill_server()
    git.kill()
    git.wait()
    os.kill(os.getpid(), signal.SIGKILL)  # a git that was killed is what the server sees
    return 137


sys.exit(main())
