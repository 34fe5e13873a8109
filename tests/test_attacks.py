"""Attacks on pages, actions and the HTTP server, at a server that runs."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hmac
import http.client
import itertools
import json
import os
import re
import select
import socket
import stat
import sys
import threading
import time
import tracemalloc
import wsgiref.util
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import bottle
import psutil
import pytest
from conftest import AUTO, PASSWORD, ROOT, Server, Work, git_after, needs_browser, wait_for
from test_web import raw

import forge


def connect(server: Server) -> socket.socket:
    host, port = server.url[7:].split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def answer_to(server: Server, request: bytes) -> http.client.HTTPResponse:
    """The answer to a request as it stands, read to its end."""
    with connect(server) as connection:
        connection.sendall(request)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        answer.text = answer.read().decode()  # type: ignore[attr-defined]
        return answer


# -- what no server should take -------------------------------------------------------------------

HOST = b"Host: localhost\r\n"
MALFORMED = {
    "two lengths": b"POST /login HTTP/1.1\r\n" + HOST + b"Content-Length: 0\r\nContent-Length: 5\r\n\r\n",
    "two equal lengths": b"POST /login HTTP/1.1\r\n" + HOST + b"Content-Length: 0\r\nContent-Length: 0\r\n\r\n",
    "chunked and a length": b"POST /login HTTP/1.1\r\n"
    + HOST
    + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": b"POST /login HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunked on two lines": b"POST /login HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n0\r\n\r\n",
    "chunked in HTTP/1.0": b"POST /login HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "identity": b"POST /login HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: identity\r\n\r\n",
    "a length that is none": b"POST /login HTTP/1.1\r\n" + HOST + b"Content-Length: +5\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\n" + HOST + HOST + b"\r\n",
    "another host in the address": b"GET http://evil.example/ HTTP/1.1\r\n" + HOST + b"\r\n",
    "an address that is none": b"GET http://[ HTTP/1.1\r\n" + HOST + b"\r\n",
    "a line that goes on": b"GET / HTTP/1.1\r\n" + HOST + b"X-A: a\r\n b\r\n\r\n",
    "a NUL": b"GET / HTTP/1.1\r\n" + HOST + b"X-A: a\0b\r\n\r\n",
    "a bare CR": b"GET / HTTP/1.1\r\n" + HOST + b"X-A: a\rHost: b\r\n\r\n",
    "a bare LF": b"GET / HTTP/1.1\r\n" + HOST + b"X-A: a\nHost: b\r\n\r\n",
    "HTTP/2 in words": b"GET / HTTP/2.0\r\n" + HOST + b"\r\n",
    "no version": b"GET /\r\n\r\n",
    "spaces that took minutes": b"GET / HTTP/1.1\r\n" + HOST + b"X-A:" + b" " * 60000 + b"\x01\r\n\r\n",
    "an address that took hours": b"GET a://" + b"1" * 60000 + b" x\r\n" + HOST + b"\r\n",
    "an endless header": b"GET / HTTP/1.1\r\n" + HOST + b"X-A: " + b"a" * 300_000 + b"\r\n\r\n",
}


@pytest.mark.parametrize("what", MALFORMED)
def test_odd_requests_are_refused_at_once(shared: Server, what: str) -> None:
    began = time.monotonic()
    answer = answer_to(shared, MALFORMED[what])
    assert answer.status in (400, 431, 501) and time.monotonic() - began < 5, answer.status
    assert all(answer.headers.get_all(name) == [value] for name, value in forge.SECURITY_HEADERS.items())
    assert "<html" in answer.text and "Traceback" not in shared.log  # type: ignore[attr-defined]


def test_a_body_that_is_too_large_is_refused_before_it_is_sent(shared: Server) -> None:
    for length in ((1 << 20) + 1, 10**30):
        for more in (b"", b"Expect: 100-continue\r\n", b"Accept: application/json\r\n"):
            head = b"POST /hooks/post-receive HTTP/1.1\r\n" + HOST + more + b"Content-Length: %d\r\n\r\n" % length
            answer = answer_to(shared, head)
            assert answer.status == 413 and "1 MiB" in answer.text, (length, more)  # type: ignore[attr-defined]
            assert answer.headers["Content-Type"] == ("application/json" if b"json" in more else "text/html; charset=utf-8")
            with connect(shared) as connection:
                connection.sendall(head)
                assert connection.recv(100).startswith(b"HTTP/1.1 413 ")  # and not 100, which asks for the body


def test_who_sends_too_much_is_told_so(shared: Server) -> None:
    """Closed with bytes unread, a connection is reset, and the answer lost."""
    for _ in range(5):
        connection = http.client.HTTPConnection(*shared.url[7:].split(":"), timeout=10)  # type: ignore[arg-type]
        connection.request("POST", "/login", b"x" * 4_000_000)
        assert connection.getresponse().status == 413
        connection.close()
    with connect(shared) as connection_of_chunks:
        connection_of_chunks.sendall(b"POST /login HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(40):
                connection_of_chunks.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        assert b" 413 " in connection_of_chunks.recv(4096)


def test_a_body_is_not_asked_for_where_there_is_none(shared: Server) -> None:
    assert answer_to(shared, b"GET /healthz HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\n\r\n").status == 200


def test_a_form_that_is_no_text_is_malformed(shared: Server) -> None:
    for body in (b"--x\r\n\xff", b"--x\r\n\xff: \xff\r\n\r\nx\r\n--x--", b"--x", b""):
        answer = shared.ask("/login", body=body, method="POST", Content_Type="multipart/form-data; boundary=x")
        assert answer.status in (400, 401), (body, answer.status)


def test_a_cookie_of_backslashes_costs_no_time(shared: Server) -> None:
    cookie = b'Cookie: a="' + b"\\" * 60000 + b'"\r\n'
    began = time.monotonic()
    assert answer_to(shared, b"GET /login HTTP/1.1\r\n" + HOST + cookie + b"\r\n").status == 200
    assert time.monotonic() - began < 2


# -- those who take their time -------------------------------------------------------------------------


def test_idle_and_slow_connections_stop_nobody(work: Work) -> None:
    server = work.server
    beginnings = [
        b"",
        b"GET / HTTP/1.1\r\nHo",
        b"POST /login HTTP/1.1\r\n" + HOST + b"Content-Length: 1000000\r\n\r\n" + b"x" * 1000,
    ]
    with contextlib.ExitStack() as held:
        slow = [held.enter_context(connect(server)) for _ in range(300)]
        for connection, beginning in zip(slow, itertools.cycle(beginnings), strict=False):
            connection.sendall(beginning)
        for connection in slow[1::3]:
            connection.sendall(b"s")
        assert server.ask("/", Accept="text/html").status == 200
        work.branch("topic", run="true\n")
        job_id = work.push_job("topic")
        assert server.ended(job_id)["status"] == "passed"


@pytest.mark.parametrize(
    "beginning", [b"GET / HTTP/1.1\r\nX", b"POST /login HTTP/1.1\r\n" + HOST + b"Content-Length: 999\r\n\r\n"]
)
def test_who_needs_too_long_for_a_request_is_left(make_server: Callable[..., Server], beginning: bytes) -> None:
    server = make_server(start=False)
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import forge; forge.REQUEST_SECONDS = 1; sys.exit(forge.main(['serve']))"
    )
    server.start(sys.executable, "-c", code)
    with connect(server) as connection:
        connection.sendall(beginning)

        def gone() -> bool:
            try:
                connection.sendall(b"x")  # each byte a sign of life
                time.sleep(0.1)
                connection.setblocking(False)
                return connection.recv(1) == b""
            except BlockingIOError:
                return False
            except ConnectionError:
                return True
            finally:
                connection.settimeout(10)

        wait_for(gone, "the end of the connection", 15)


def test_who_sends_nothing_is_left(make_server: Callable[..., Server]) -> None:
    server = make_server(start=False)
    code = f"""import sys; sys.path.insert(0, {str(ROOT)!r}); import forge, waitress; forge.REQUEST_SECONDS = 1
create = waitress.create_server  # which looks for them every ten seconds
waitress.create_server = lambda *args, **more: create(*args, **{{**more, "cleanup_interval": 1}})
sys.exit(forge.main(["serve"]))"""
    server.start(sys.executable, "-c", code)
    with connect(server) as silent, connect(server) as half:
        half.sendall(b"GET / HTTP/1.1\r\nX")
        for connection in (silent, half):
            connection.settimeout(0.1)

            def gone(connection: socket.socket = connection) -> bool:
                try:
                    return server.ask("/healthz").status == 200 and connection.recv(1) == b""
                except TimeoutError:
                    return False

            wait_for(gone, "the end of the connection", 15)


def test_slow_readers_of_a_large_log_hold_no_worker(work: Work) -> None:
    work.branch("topic", run="head -c 40000000 /dev/zero\n")
    job_id = work.push_job("topic")
    assert work.server.ended(job_id)["status"] == "passed"
    with contextlib.ExitStack() as held:
        for number in range(2 * forge.WEB_THREADS):
            connection = held.enter_context(connect(work.server))
            part = b"Range: bytes=%d-\r\n" % number
            connection.sendall(b"GET /jobs/%d/log HTTP/1.1\r\n" % job_id + HOST + part + b"\r\n")
            assert connection.recv(12) == b"HTTP/1.1 206"
        assert work.server.ask("/", Accept="text/html").status == 200
    part_of = work.server.ask(f"/jobs/{job_id}/log", Range="bytes=39999990-")
    assert (part_of.status, len(part_of.body), part_of.headers["Content-Range"]) == (206, 10, "bytes 39999990-39999999/40000000")


def stall(work: Work) -> Path:
    """Put a pipe in the place of a repo's packed refs: git waits for a writer."""
    pipe = work.path / "packed-refs"
    os.mkfifo(pipe)
    return pipe


def let_go(pipe: Path) -> None:
    """Take such a pipe away, and let those go on that wait for it."""
    with contextlib.suppress(OSError):  # nobody does
        file = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        pipe.unlink()
        os.close(file)
    pipe.unlink(missing_ok=True)


def test_a_repo_in_which_git_needs_long_keeps_nobody_else_waiting(make_server: Callable[..., Server]) -> None:
    """Whoever pushes decides how long git needs: some thousand files that were renamed and changed take it a minute."""
    server = make_server()
    slow, work = server.repo("slow"), server.repo()
    pipe = stall(slow)
    token = (server.data / "hook-token").read_text().strip().encode()
    told = b"POST /hooks/post-receive HTTP/1.1\r\n" + HOST + b"Authorization: Bearer " + token + b"\r\nX-Forge-Repo: slow\r\n"
    told += b"Content-Type: text/plain\r\nContent-Length: 0\r\n\r\n"
    seen = b"GET /r/slow HTTP/1.1\r\n" + HOST + b"\r\n"
    with contextlib.ExitStack() as held:
        connections = [held.enter_context(connect(server)) for _ in range(2 * forge.WEB_THREADS)]
        for connection, request in zip(connections, itertools.cycle([told, seen]), strict=False):
            connection.sendall(request)
        time.sleep(0.5)
        began = time.monotonic()
        for path in ("/healthz", "/", "/jobs", f"/r/{work.name}"):
            assert server.ask(path).status == 200
        assert time.monotonic() - began < 2 * forge.BUSY_SECONDS

        def refused() -> bool:
            return len(select.select(connections, [], [], 0)[0]) >= len(connections) - 4  # some wait for git

        wait_for(refused, "an answer to all others", 3 * forge.BUSY_SECONDS)
        assert {one.recv(12) for one in select.select(connections, [], [], 0)[0]} == {b"HTTP/1.1 503"}
        late = server.ask("/r/slow")
        assert late.status == 503 and late.headers["Retry-After"] and "slow" in late.json["error"]
        let_go(pipe)
        wait_for(lambda: server.ask("/r/slow").status == 200, "the end of the slow git", 90)


def test_repos_in_which_git_needs_long_hold_up_no_merge_elsewhere(make_server: Callable[..., Server]) -> None:
    server = make_server(FORGE_MAX_JOBS="4")
    slow, work = [server.repo(f"slow-{number}") for number in range(3)], server.repo()
    jobs = []
    for one in slow:
        one.branch("waits", run="while [ ! -e $HOME/go ]; do sleep 0.02; done\n")
        jobs.append(one.push_job("waits"))
    for job in jobs:
        server.running(job)
    pipes = [*map(stall, slow)]
    for one in slow:  # what has ended is looked at, with git
        one.gate("go").touch()
    for job in jobs:
        server.ended(job)
    work.branch("topic", AUTO)
    work.push("topic")
    work.landed("topic")
    for pipe in pipes:
        let_go(pipe)
    server.idle()


def test_a_push_to_a_repo_in_which_git_needs_long_is_kept(make_server: Callable[..., Server], tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    server = make_server(**git_after(tmp_path / "bin", f"while [ -e {slow} ]; do sleep 0.05; done"))
    work = server.repo()
    slow.touch()
    body = b'{"repo": "app", "updates": []}'
    first = threading.Thread(target=server.hook, args=(body,), kwargs={"Content_Type": "application/json"})
    first.start()
    wait_for(lambda: children_of(server, "git"), "a git that needs long")
    work.branch("topic", AUTO)
    said = work.push("topic")
    assert "the push is accepted; the server is busy with app, and picks it up when it is done with that" in said
    slow.unlink()
    first.join()
    work.landed("topic")


def children_of(server: Server, name: str) -> list[psutil.Process]:
    """The processes of this name that a server has started."""
    assert server.process
    found = psutil.Process(server.process.pid).children()
    return [child for child in found if any(word.endswith(f"/{name}") for word in child.cmdline()[:2])]


def test_a_form_of_very_many_fields_is_refused(shared: Server) -> None:
    form, fields = b"&".join([b"a=b"] * 5000), json.dumps(dict.fromkeys(map(str, range(20_000)))).encode()
    for body, kind in ((form, "application/x-www-form-urlencoded"), (fields, "application/json")):
        answer = shared.ask("/login", body=body, Content_Type=kind)
        assert (answer.status, "values" in answer.json["error"]) == (400, True)


def memory(server: Server, what: str) -> int:
    """What /proc says of the server's memory: VmRSS, or VmHWM, the most it ever had; in bytes."""
    assert server.process
    found = re.search(rf"{what}:\s+(\d+) kB", Path(f"/proc/{server.process.pid}/status").read_text())
    assert found
    return int(found[1]) << 10


def processor_time(server: Server) -> float:
    """Seconds of a processor that the server has used."""
    assert server.process
    times = psutil.Process(server.process.pid).cpu_times()
    return times.user + times.system


def at_once(server: Server, requests: list[bytes]) -> Counter[bytes]:
    """How many answers of each status a server gives to many requests at the same time."""

    def ask(request: bytes) -> bytes:
        with connect(server) as connection:
            connection.settimeout(60)
            connection.sendall(request)
            return b"".join(iter(lambda: connection.recv(1 << 16), b""))[9:12]

    with ThreadPoolExecutor(48) as pool:
        return Counter(pool.map(ask, requests))


def test_who_asks_much_at_once_does_not_fill_the_memory(make_server: Callable[..., Server]) -> None:
    """Sixteen workers at a time may each have what one request takes: a log of very short lines, a body that unpacks to 10 MB."""
    server = make_server()
    work = server.repo()
    work.branch("topic", run="yes ab | head -c 5000000\nexit 1\n")
    job = work.push_job("topic")
    server.ended(job)
    before = memory(server, "VmHWM")
    lines = [b"GET /jobs/%d/log?line=%d&most=10 HTTP/1.0\r\n" % (job, 349_000 + n) + HOST + b"\r\n" for n in range(64)]
    assert at_once(server, lines) == {b"200": 64}
    assert memory(server, "VmHWM") - before < 40 << 20
    packed = gzip.compress(bytes(forge.FETCH_BYTES - 1))
    head = (
        b"POST /r/app.git/git-upload-pack HTTP/1.0\r\n" + HOST + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n" % len(packed)
    )
    head += b"Content-Type: application/x-git-upload-pack-request\r\n\r\n"
    assert at_once(server, [head + packed] * 96).keys() <= {b"200", b"503"}
    assert memory(server, "VmHWM") - before < 100 << 20


def test_json_of_many_at_once_costs_neither_memory_nor_time(make_server: Callable[..., Server]) -> None:
    """Parsed, a body of a megabyte would take 25 times as much, and a fifth of a second."""
    server = make_server()
    nested = b'{"x": [' + b"[]," * 349_000 + b"[]]}"
    head = b"POST /jobs/1/cancel HTTP/1.0\r\n" + HOST + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    assert at_once(server, [head % len(nested) + nested] * 4) == {b"400": 4}
    before, spent = memory(server, "VmHWM"), processor_time(server)
    assert at_once(server, [head % len(nested) + nested] * 64) == {b"400": 64}
    assert memory(server, "VmHWM") - before < 50 << 20 and processor_time(server) - spent < 4


def test_answers_are_not_kept_in_memory_for_each_connection(make_server: Callable[..., Server]) -> None:
    server = make_server()
    work = server.repo()
    work.branch("topic", run="yes a line of text | head -c 3000000\n")
    job = work.push_job("topic")
    server.ended(job)
    before = memory(server, "VmRSS")
    with contextlib.ExitStack() as held:
        for number in range(200):  # half of them take their answer and stay, the others take nothing
            connection = held.enter_context(connect(server))
            connection.sendall(b"GET /jobs/%d/log?line=1&most=1000000 HTTP/1.1\r\n" % job + HOST + b"\r\n")
            assert connection.recv(12) == b"HTTP/1.1 200"
            if number % 2:
                got = 12
                while got < 1_000_000:
                    got += len(connection.recv(1 << 16))
        assert memory(server, "VmRSS") - before < 60 << 20
        assert server.ask("/healthz").status == 200


def test_who_hardly_reads_a_long_answer_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that is followed, or a clone, is made by a worker as it is read; a byte now and then must not hold it for hours."""
    from waitress.channel import ClientDisconnected

    monkeypatch.setattr(forge, "FOLLOW_SECONDS", 0.1)
    slow: Any = object.__new__(forge.strict_channel())
    slow.connected, slow.will_close, slow.total_outbufs_len = True, False, 20 << 20
    slow.outbuf_lock, slow.adj = threading.Condition(), SimpleNamespace(outbuf_high_watermark=16 << 20)
    slow.server = SimpleNamespace(pull_trigger=lambda: None)
    with pytest.raises(ClientDisconnected):
        slow._flush_outbufs_below_high_watermark()
    assert slow.will_close
    slow.total_outbufs_len, slow.will_close = 0, False
    slow._flush_outbufs_below_high_watermark()
    assert not slow.will_close


# -- who may come in --------------------------------------------------------------------------------------


def test_guesses_at_once_are_bounded_too(make_server: Callable[..., Server]) -> None:
    server = make_server()
    start = threading.Barrier(40)

    def guess(number: int) -> tuple[int, str]:
        start.wait()
        answer = raw(server, "POST", "/login", f"password=guess{number}") if number % 2 else None
        answer = answer or raw(server, "POST", "/jobs/1/cancel", "", Authorization=f"Bearer guess{number}")
        return answer.status, answer.headers.get("Retry-After", "0")

    with ThreadPoolExecutor(40) as pool:
        said = list(pool.map(guess, range(40)))
    assert Counter(status for status, _ in said) == {401: 10, 429: 30}
    assert all(1 <= int(wait) <= 60 for status, wait in said if status == 429)
    token = (server.data / "token").read_text().strip()
    assert raw(server, "POST", "/login", f"password={token}").status == 200


@pytest.fixture
def door(tmp_path: Path) -> forge.Door:
    """A door without a server."""
    for name in ("token", "hook-token", "session-key"):
        (tmp_path / name).write_text(name)
    return forge.Door(forge.load_config({"FORGE_DATA_DIR": str(tmp_path), "FORGE_MERGE_PASSWORD": PASSWORD}))


def test_no_guess_slips_through_while_others_are_counted(door: forge.Door) -> None:
    class Slow(deque[float]):
        """Takes a moment to be counted, in which others could come by."""

        def __len__(self) -> int:
            count = super().__len__()
            time.sleep(0.02)
            return count

    door.wrong = Slow()

    def guess(number: int) -> int:
        with pytest.raises(forge.Refused) as refused:
            door.check_password(f"guess {number}")
        return refused.value.status

    with ThreadPoolExecutor(30) as pool:
        assert Counter(pool.map(guess, range(30))) == {401: forge.WRONG_PASSWORDS, 429: 30 - forge.WRONG_PASSWORDS}


def test_the_wait_is_a_minute_at_the_most(door: forge.Door, monkeypatch: pytest.MonkeyPatch) -> None:
    moment = [1000.0]
    monkeypatch.setattr(forge.time, "monotonic", lambda: moment[0])
    for turn in range(13):
        with pytest.raises(forge.Refused) as refused:
            door.check_password("wrong")
        assert refused.value.status == (401 if turn < 10 else 429)
    assert refused.value.extra["headers"] == {"Retry-After": "60"}
    moment[0] += 60
    with pytest.raises(forge.Refused) as refused:
        door.check_password("wrong")
    assert refused.value.extra["headers"] == {"Retry-After": "1"}


def test_a_password_is_compared_as_bytes_in_constant_time(door: forge.Door, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[object, object]] = []
    monkeypatch.setattr(forge.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or a == b)
    door.check_password(PASSWORD)
    assert compared == [(PASSWORD.encode(), PASSWORD.encode())]


def test_the_password_is_written_nowhere(make_server: Callable[..., Server], tmp_path: Path) -> None:
    secret = tmp_path / "secret-of-the-test"
    secret.write_text("zebra-crossing-9\n")
    server = make_server(FORGE_MERGE_PASSWORD="", FORGE_MERGE_PASSWORD_FILE=str(secret))
    work = server.repo()
    work.branch("topic")
    server.ended(work.push_job("topic"))
    texts = []
    for word in ("zebra-crossing-9", "zebra-wrong-8"):
        answers = [raw(server, "POST", "/login", f"password={word}", Accept=kind) for kind in ("text/html", "application/json")]
        answers += [raw(server, "GET", f"/login?password={word}&to=/", Accept="text/html") for _ in range(1)]
        answers += [raw(server, "POST", "/r/app/mr/topic/merge", "", Authorization=f"Bearer {word}")]
        texts += [answer.text + str(answer.headers) for answer in answers]
    refused = raw(server, "POST", "/jobs/1/retry?password=zebra-crossing-9", "")
    assert refused.status == 401  # an address is no place for a password
    server.idle()
    tree = [server.process and psutil.Process(server.process.pid)]
    tree += [child for one in tree if one for child in one.children(recursive=True)]
    texts += [" ".join(one.cmdline()) for one in tree if one] + [server.log, refused.text]
    texts += [path.read_bytes().decode("latin-1") for path in server.data.rglob("*") if path.is_file() and not path.is_symlink()]
    assert not [text[:300] for text in texts if "zebra" in text]


def test_sessions_end_and_cannot_be_made_up(make_server: Callable[..., Server], tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("first")
    server = make_server(FORGE_MERGE_PASSWORD_FILE=str(secret), FORGE_URL="https://forge.example.org", start=False)
    server.settings["FORGE_PORT"] = "0"
    server.start()
    server.url = (server.data / "address").read_text().strip()

    def log_in() -> tuple[str, str]:
        cookie = raw(server, "POST", "/login", f"password={secret.read_text()}").headers["Set-Cookie"]
        return cookie.split(";")[0], cookie

    def goes(cookie: str) -> bool:
        return raw(server, "POST", "/jobs/99/cancel", "", Cookie=cookie).status == 404

    session, flags = log_in()
    assert all(flag in flags for flag in ("HttpOnly", "SameSite=strict", "Secure", "Path=/", "Max-Age=604800")) and goes(session)
    assert goes(f"other=1; {session}; x=y") and not goes(f"x{session}")
    name, value = session.split("=", 1)
    key = (server.data / "session-key").read_bytes()
    tokens = [(server.data / one).read_bytes().strip() for one in ("token", "hook-token")]
    assert key not in tokens and len(key) >= 32 and stat.S_IMODE((server.data / "session-key").stat().st_mode) == 0o600
    for made_up in (value.split(".")[0], value[:-1], f"x{value}", f"nobody.{value.split('.')[1]}", "!abc?gAJVBXRlc3Rx", "."):
        assert not goes(f"{name}={made_up}"), made_up
    # what bottle's own signed cookies would load, made by who has stolen the key
    load = b"cposix\nsystem\n(S'touch %s'\ntR." % os.fsencode(tmp_path / "loaded")
    text = base64.b64encode(load)
    for digest in ("sha256", "md5"):
        signature = base64.b64encode(hmac.new(key, text, digest).digest())
        assert not goes(f'{name}="!{signature.decode()}?{text.decode()}"')
        assert not goes(f"{name}=!{signature.decode()}?{text.decode()}") and not (tmp_path / "loaded").exists()
    raw(server, "POST", "/logout", "", Cookie=session)
    assert not goes(session)  # a copy of the cookie, too
    session, _ = log_in()
    secret.write_text("second")
    assert not goes(session)


ORIGINS = [  # FORGE_URL, Host, Origin, Sec-Fetch-Site, taken
    ("http://forge.example", "forge.example", "", "", True),  # a program
    ("http://forge.example", "forge.example", "http://forge.example", "same-origin", True),
    ("http://forge.example", "forge.example", "http://forge.example", "", True),
    ("https://forge.example", "forge.example", "https://forge.example", "same-origin", True),
    ("https://forge.example", "127.0.0.1:3030", "https://forge.example", "same-origin", True),  # a proxy with a Host of its own
    ("https://forge.example", "localhost:3030", "http://localhost:3030", "same-origin", True),  # a tunnel
    ("https://forge.example", "forge.example", "http://forge.example", "", False),  # who sits between can send that
    ("http://forge.example", "forge.example", "https://forge.example", "", False),
    ("http://forge.example", "forge.example", "http://forge.example:81", "", False),
    ("http://forge.example", "localhost:3030", "http://localhost:8080", "", False),
    ("http://forge.example", "forge.example", "http://sub.forge.example", "same-site", False),
    ("http://forge.example", "forge.example", "http://forge.example.evil.example", "", False),
    ("http://forge.example", "forge.example", "http://evil.example/http://forge.example", "", False),
    ("http://forge.example", "forge.example", "null", "", False),
    ("http://forge.example", "forge.example", "forge.example", "", False),
    ("http://forge.example", "forge.example", "http://forge.example", "cross-site", False),
    ("http://forge.example", "forge.example", "", "cross-site", False),
    ("http://forge.example", "forge.example", "", "same-site", False),
]


@pytest.mark.parametrize(("url", "host", "origin", "site", "taken"), ORIGINS)
def test_where_an_action_may_come_from(door: forge.Door, url: str, host: str, origin: str, site: str, taken: bool) -> None:
    app = forge.Web(SimpleNamespace(config=door.config, url=url))  # type: ignore[arg-type]
    forge.bottle.request.bind({"HTTP_HOST": host, "HTTP_ORIGIN": origin, "HTTP_SEC_FETCH_SITE": site, "REQUEST_METHOD": "POST"})
    with contextlib.nullcontext() if taken else pytest.raises(forge.Refused):
        app._check_origin()


def addresses(server: Server) -> Iterator[tuple[str, str]]:
    """Each route with an address that fits."""
    config = forge.load_config(server.environ)
    for route in forge.Web(SimpleNamespace(config=config)).app.routes:  # type: ignore[arg-type]
        path = route.rule.replace("<repo>", "app").replace("<branch:path>", "topic").replace("<job_id>", "1")
        yield route.method, path.replace("<path:path>", "forge.css")


def test_every_route_looks_at_the_host_and_where_it_comes_from(shared: Server) -> None:
    for method, path in [*addresses(shared), ("GET", "/nothing"), ("DELETE", "/"), ("POST", "/nothing")]:
        body = "" if method == "POST" else None
        for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "localhost@evil.example", "[::1", ""):
            assert raw(shared, method, path, body, Host=host).status == 421, (method, path, host)
        if method == "POST":
            assert raw(shared, method, path, body, Origin="http://evil.example").status == 403, path
    assert raw(shared, "GET", "/", X_Forwarded_Host="evil.example", Forwarded="host=evil.example").status == 200


def test_a_private_forge_shows_nothing_at_all(make_server: Callable[..., Server]) -> None:
    server = make_server(FORGE_PRIVATE="1", start=False)
    server.start().cli("create", "app")
    open_to_all = ("/login", "/healthz", "/hooks/post-receive", "/static/forge.css")
    said = set()
    for method, path in addresses(server):
        if path not in open_to_all:
            for other in (path, path.replace("/app", "/nope").replace("/jobs/1", "/jobs/99"), f"/{path}", f"{path}/"):
                answer = raw(server, method, other, "" if method == "POST" else None)
                assert answer.status == 401 and not {"ETag", "Location"} & set(answer.headers), (method, other)
                said.add(answer.body)
                assert raw(server, method, other, "" if method == "POST" else None, If_None_Match="*").status == 401
    assert len(said) == 1  # what is there and what is not are told alike
    for path in (
        "/healthz/../jobs",
        "/static/../jobs",
        "/login/x",
        "/static/%2e%2e/%2e%2e/jobs",
        "/hooks/post-receive/x",
        "/r/app.git/info/refs",
    ):
        assert raw(server, "GET", path).status in (401, 403, 404) and b"app" not in raw(server, "GET", path).body, path
    assert raw(server, "POST", "/hooks/post-receive", "").status == 401
    assert raw(server, "GET", "/static/forge.css").status == 200  # the form to log in is not to look broken


def test_logs_are_text_whatever_is_in_them(work: Work) -> None:
    work.branch("topic", run="printf '<!doctype html><script>alert(1)</script>'\n")
    job_id = work.push_job("topic")
    work.server.ended(job_id)
    for query in ("", "?offset=0", "?line=1", "?follow=1", "?download=1"):
        answer = work.server.ask(f"/jobs/{job_id}/log{query}", Accept="text/html")
        assert answer.body.startswith(b"<!doctype html>") and answer.headers["Content-Type"] == "text/plain; charset=utf-8", query
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


# -- in a browser ----------------------------------------------------------------------------------------------

SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(2)><svg onload=alert(3)>"
OUTPUT = r"""printf '%s\n' '<script>alert(1)</script><img src=//evil.example/x onerror=alert(2)>'
printf '\033]8;;javascript:alert(4)\033\\<b onclick=alert(5)>link</b>\033]8;;\033\\\n'
printf '\033]8;;https://evil.example/"onmouseover="alert(6)\033\\link\033]8;;\033\\\n'
printf '\033]8;;data:text/html,<script>alert(7)</script>\033\\link\033]8;;\033\\\n'
printf '\033[31;1mred <style>*{display:none}</style>\033[0m \033]0;title\007 \033[2J\n'
echo "error: $(printf '<img src=x onerror=alert(8)>')"
exit 1
"""


@needs_browser
def test_nothing_that_was_pushed_runs_or_is_fetched(work: Work, page: Any) -> None:
    branch = "<img/src=x/onerror=alert(9)>"
    files = {"<img src=x onerror=alert(10)>.html": f"{SCRIPT}\n", '"><script>alert(11)': "x\n", "run": OUTPUT}
    work.branch(branch, f"{SCRIPT}\n\nBody {SCRIPT}", **files)
    work.git("commit", "-q", "--amend", "--no-edit", "--author=A&lt;b&gt;\"'onload=alert(12) <a@b>")
    job_id = work.push_job(f"refs/heads/{branch}:refs/heads/{branch}")
    work.server.ended(job_id)
    work.bare("config", "forge.preMerge", f"true '{SCRIPT}'")
    work.branch(f"{branch}2", f"{SCRIPT}\n\nAuto-Merge: yes")
    work.push(f"refs/heads/{branch}2:refs/heads/{branch}2")
    work.landed(f"{branch}2")
    work.server.idle()
    asked: list[str] = []
    dialogs: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    page.route("**/favicon.ico", lambda route: route.fulfill(status=204))  # asked for by what has no head to name its icon
    repo, quoted = f"/r/{work.name}", quote(branch, safe="")
    odd = quote(SCRIPT, safe="")
    pages = ["/", "/jobs", f"/jobs?branch={quoted}", f"/search?q={odd}", "/search?q=alert", f"/login?to={odd}", f"/jobs/{job_id}"]
    pages += [repo, f"{repo}/history", f"{repo}/deployments", f"{repo}/mr/{quoted}", f"{repo}/mr/{quoted}?view=split"]
    pages += [f"{repo}/mr/{quoted}?file={quote(name, safe='')}" for name in files]
    pages += [f"{repo}/feed.atom", f"{repo}/badge.svg", f"/jobs/{job_id}/log"]
    for path in pages:
        page.goto(work.server.url + path, wait_until="networkidle")
        if path.startswith((f"{repo}/mr", f"/jobs/{job_id}")) and "log" not in path:
            for link in page.locator("#log a, summary").all():
                link.hover()
            unsafe = page.locator("a").evaluate_all(
                "links => links.map(link => link.href).filter(href => !/^https?:/.test(href))"
            )
            assert unsafe == [], path
        marks = "img[src=x], img[onerror], svg[onload], [onclick], [onmouseover], main script, main style"
        assert page.locator(marks).count() == 0, path
    assert dialogs == []
    assert [url for url in asked if not url.startswith((f"{work.server.url}/", "data:"))] == []


def test_an_old_waitress_is_refused(make_server: Callable[..., Server], tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old/waitress-3.0.1.dist-info").mkdir()
    (tmp_path / "old/waitress-3.0.1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: waitress\nVersion: 3.0.1\n")
    server = make_server(start=False, PYTHONPATH=f"{tmp_path / 'old'}:{os.environ.get('PYTHONPATH', '')}")
    done = server.cli("serve", check=False)
    assert done.returncode == 1 and "waitress 3.0.1" in done.stderr and "3.0.2" in done.stderr


def test_a_page_that_is_kept_does_not_keep_all_branches(tmp_path: Path) -> None:
    """Each question is another page; what a page follows from is only to be known again."""
    app = forge.create_app({"FORGE_DATA_DIR": str(tmp_path / "data"), "FORGE_SANDBOX": "none"})
    try:
        tracemalloc.start()
        for number in range(50):
            environ = {"PATH_INFO": "/r/app", "QUERY_STRING": f"n={number}", "HTTP_ACCEPT": "application/json"}
            wsgiref.util.setup_testing_defaults(environ)
            bottle.request.bind(environ)
            refs = forge.Refs("main", {f"branch-{number}-{one}": f"{one:040}" for one in range(1000)})
            app._show_kept("repo", dict, dict, refs)
        assert len(app.kept) == 50 and tracemalloc.get_traced_memory()[0] < 5 << 20
    finally:
        tracemalloc.stop()
        app.engine.stop()
