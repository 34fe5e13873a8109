"""Behind the proxies of the README, whose configurations are taken from there: Debian's nginx and caddy, with TLS."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
from conftest import PASSWORD, ROOT, Answer, Server, Work, clean_environ, end, wait_for

import forge

NGINX = """daemon off; error_log stderr; pid {folder}/pid; events {{}}
http {{ access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
{described} }}
"""
ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "HOME"))}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def described(kind: str) -> str:
    """The configuration that the README shows."""
    found = re.search(rf"```{kind}\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert found
    return found[1]


class Proxy(NamedTuple):
    """A proxy that runs, and what is behind it."""

    kind: str
    port: int
    trust: ssl.SSLContext

    def connect(self) -> ssl.SSLSocket:
        return self.trust.wrap_socket(socket.create_connection(("127.0.0.1", self.port), timeout=20), server_hostname="127.0.0.1")

    def ask(self, method: str, path: str, body: str | bytes | None = None, **headers: str) -> Answer:
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=30, context=self.trust)
        given = {"Accept": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, given)
        answer = connection.getresponse()
        found = Answer(answer.status, answer.headers, answer.read())
        connection.close()
        return found

    def talk(self, request: bytes) -> bytes:
        """All that is answered to some bytes, up to the end of the connection or a second of silence."""
        said = b""
        with self.connect() as connection:
            connection.sendall(request)
            connection.settimeout(1)
            try:
                while chunk := connection.recv(65536):
                    said += chunk
            except (TimeoutError, ConnectionError):
                pass
        return said


def run_proxy(kind: str, folder: Path, upstream: int, port: int) -> subprocess.Popen[bytes]:
    """Start a proxy with the README's configuration, but for its address, its certificate and where it writes."""
    folder.mkdir()
    subject = ["-subj", "/CN=forge.example.org", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
        *subject,
    ]
    subprocess.run([*command, "-keyout", folder / "key", "-out", folder / "cert"], check=True, capture_output=True)
    text = described(kind).replace("127.0.0.1:3030", f"127.0.0.1:{upstream}")
    if kind == "nginx":
        text = text.replace("listen 443", f"listen 127.0.0.1:{port}")
        text = re.sub(
            r"(ssl_certificate(?:_key)?) \S+;",
            lambda found: f"{found[1]} {folder}/{'key' if 'key' in found[1] else 'cert'};",
            text,
        )
        text = NGINX.format(folder=folder, described=text)
        command = [str(PROXIES[kind]), "-p", str(folder), "-c", str(folder / "conf")]
    else:
        text = text.replace("{\n", f"{{\n\tadmin off\n\tauto_https off\n\tstorage file_system {folder}\n", 1)
        text = text.replace("forge.example.org {\n", f"https://127.0.0.1:{port} {{\n\ttls {folder}/cert {folder}/key\n")
        command = [str(PROXIES[kind]), "run", "--config", str(folder / "conf"), "--adapter", "caddyfile"]
    (folder / "conf").write_text(text)
    with open(folder / "log", "wb") as log:
        environ = {**ENVIRON, "HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "XDG_DATA_HOME": str(folder)}
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ)


PROXIES = {kind: shutil.which(kind, path=f"{os.environ['PATH']}:/usr/sbin") for kind in ("nginx", "caddy")}
KINDS = [
    pytest.param(
        kind,
        marks=pytest.mark.skipif(
            not path and not os.environ.get("FORGE_TEST_REQUIRE_PROXY"),
            reason=f"{kind} is not installed: forge is not tested behind it",
        ),
    )
    for kind, path in PROXIES.items()
]


def opened(kind: str, folder: Path, upstream: int, port: int) -> Iterator[Proxy]:
    """A proxy that accepts connections, until it is no longer needed."""
    process = run_proxy(kind, folder, upstream, port)
    proxy = Proxy(kind, port, ssl.create_default_context(cafile=folder / "cert"))

    def answers() -> bool:
        assert process.poll() is None, (folder / "log").read_text()
        try:
            return proxy.ask("GET", "/healthz").status == 200
        except (OSError, http.client.HTTPException):
            return False

    try:
        wait_for(answers, f"the start of {kind}")
        yield proxy
    finally:
        process.terminate()
        process.wait(timeout=15)


@pytest.fixture(scope="module", params=KINDS)
def behind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Proxy, Work]]:
    """A forge behind a proxy, with a repo."""
    folder, port = tmp_path_factory.mktemp("proxy"), free_port()
    server = Server(
        folder / "data", {"FORGE_MAX_JOBS": "2", "FORGE_URL": f"https://127.0.0.1:{port}", "FORGE_PORT": str(free_port())}
    )
    server.start()
    server.url = f"http://127.0.0.1:{server.settings['FORGE_PORT']}"  # what it prints is the proxy's
    try:
        work = server.repo()
        yield from ((proxy, work) for proxy in opened(request.param, folder / "proxy", int(server.settings["FORGE_PORT"]), port))
    finally:
        end(server)


def test_pages_actions_and_pushes(behind: tuple[Proxy, Work]) -> None:
    proxy, work = behind
    for name in ("a/b", "a%2Fb"):
        work.branch(name)
        said = work.push(name)  # the hook goes to the server itself, and prints the address that people use
        assert f"https://127.0.0.1:{proxy.port}/jobs/" in said
        page = proxy.ask("GET", f"/r/app/mr/{quote(name, safe='/')}", Accept="text/html", X_Forwarded_Host="evil.example")
        assert page.status == 200 and f"<h1>{name}" in page.text and "evil.example" not in page.text
        assert all(page.headers.get_all(name) == [value] for name, value in forge.SECURITY_HEADERS.items())
    work.server.idle()
    site = f"https://127.0.0.1:{proxy.port}"
    form = {"Content_Type": "application/x-www-form-urlencoded"}
    login = f"password={quote(PASSWORD)}"
    for origin in ("https://evil.example", f"http://127.0.0.1:{proxy.port}", "https://127.0.0.1:1", "null"):
        assert proxy.ask("POST", "/login", login, Origin=origin, **form).status == 403, origin
    cookie = proxy.ask("POST", "/login", login, Origin=site, **form).headers["Set-Cookie"]
    assert "; Secure" in cookie and "HttpOnly" in cookie and "SameSite=strict" in cookie
    merged = proxy.ask(
        "POST", "/r/app/mr/a%252Fb/merge", "", Origin=site, Cookie=cookie.split(";")[0], Sec_Fetch_Site="same-origin", **form
    )
    assert merged.status == 200 and merged.json["branch"] == "a%2Fb" and "a/b" in work.heads()


def test_what_is_refused(behind: tuple[Proxy, Work]) -> None:
    proxy, work = behind
    token = (work.server.data / "hook-token").read_text().strip()
    assert (
        proxy.ask("POST", "/hooks/post-receive", '{"repo": "app", "updates": []}', Authorization=f"Bearer {token}").status == 404
    )
    assert proxy.ask("POST", "/login", b"x" * 1_100_000).status == 413
    said = proxy.talk(b"GET /jobs HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
    assert b"<h1>Jobs" not in said and (b" 421 " in said or proxy.kind == "caddy")  # which knows only its own site


def test_a_log_comes_as_it_is_written(behind: tuple[Proxy, Work]) -> None:
    proxy, work = behind
    work.branch("slow", run=f"echo one; while [ ! -e $HOME/{proxy.kind} ]; do sleep 0.1; done; echo two\n")
    job_id = work.push_job("slow")
    work.server.running(job_id)
    connection = http.client.HTTPSConnection("127.0.0.1", proxy.port, timeout=20, context=proxy.trust)
    connection.request("GET", f"/jobs/{job_id}/log?follow=1")
    answer = connection.getresponse()
    assert answer.read(4) == b"one\n" and work.server.get(f"/jobs/{job_id}")["status"] == "running"
    work.gate(proxy.kind).touch()
    assert answer.read() == b"two\n"
    connection.close()
    work.server.idle()


# What waitress by itself takes, or stumbles over; `forge serve` refuses it too (test_attacks.py). None of it may reach what is
# behind the proxy in a way that both understand differently.
TE, CL = b"Transfer-Encoding: ", b"Content-Length: "
ODD = {
    "chunked in HTTP/1.0": b"POST /login HTTP/1.0\r\n{host}Connection: keep-alive\r\n" + TE + b"chunked\r\n\r\n{smuggled}",
    "chunked twice": b"POST /login HTTP/1.1\r\n{host}" + TE + b"chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunked and a length": b"POST /login HTTP/1.1\r\n{host}" + CL + b"4\r\n" + TE + b"chunked\r\n\r\n0\r\n\r\n{smuggled}",
    "an odd encoding": b"POST /login HTTP/1.1\r\n{host}" + TE + b"\x0bchunked\r\n" + CL + b"4\r\n\r\n0\r\n\r\n",
    "two lengths": b"POST /login HTTP/1.1\r\n{host}" + CL + b"0\r\n" + CL + b"90\r\n\r\n{smuggled}",
    "two hosts": b"GET / HTTP/1.1\r\n{host}Host: evil.example\r\n\r\n",
    "a NUL": b"GET / HTTP/1.1\r\n{host}X-A: a\0b\r\n\r\n",
    "spaces that take waitress minutes": b"GET / HTTP/1.1\r\n{host}X-A:" + b" " * 30000 + b"\x01\r\n\r\n",
    "an address that takes waitress minutes": b"GET a://" + b"1" * 30000 + b" x\r\n{host}\r\n",
    "an address that is none": b"GET http://[ HTTP/1.1\r\n{host}\r\n",
    "a header without end": b"GET / HTTP/1.1\r\n{host}X-A: " + b"a" * 2_000_000 + b"\r\n\r\n",
}


@pytest.fixture(scope="module", params=KINDS)
def plain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """The app under waitress as it is, behind a proxy."""
    folder, port, upstream = tmp_path_factory.mktemp("plain"), free_port(), free_port()
    own = {
        "FORGE_DATA_DIR": str(folder / "data"),
        "PYTHONPATH": str(ROOT),
        "FORGE_PORT": str(upstream),
        "FORGE_URL": f"https://127.0.0.1:{port}",
    }
    command = [sys.executable, "-m", "waitress", f"--listen=127.0.0.1:{upstream}", "--call", "forge:create_app"]
    process = subprocess.Popen(command, env=clean_environ() | own, stderr=subprocess.DEVNULL)
    try:
        yield from opened(request.param, folder / "proxy", upstream, port)
    finally:
        process.terminate()
        process.wait(timeout=15)


@pytest.mark.parametrize("what", ODD)
def test_what_waitress_gets_wrong_ends_at_the_proxy(plain: Proxy, what: str) -> None:
    host = f"127.0.0.1:{plain.port}".encode()
    smuggled = b"GET /smuggled HTTP/1.1\r\nHost: " + host + b"\r\n\r\n"
    said = plain.talk(ODD[what].replace(b"{host}", b"Host: " + host + b"\r\n").replace(b"{smuggled}", smuggled))
    statuses = re.findall(rb"HTTP/1\.[01] (\d\d\d)", said)
    assert not statuses or statuses[0] in (b"400", b"401", b"413", b"414", b"431", b"501", b"505"), (what, said[:500])
    for path, answer in [("/healthz", b"ok\n"), ("/jobs", {"jobs": []})] * 3:  # each still gets its own answer
        got: Any = plain.ask("GET", path)
        assert got.status == 200 and (got.body == answer or json.loads(got.body) == answer), (what, got)
