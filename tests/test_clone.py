"""Clone and fetch over http: real git and curl, the real Nix, and clients that mean no good."""

from __future__ import annotations

import base64
import contextlib
import gzip
import os
import re
import socket
import subprocess
import wsgiref.util
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from conftest import PASSWORD, Server, Work, clean_environ, end, needs_nix, wait_for

import forge


def run_git(*args: str, check: bool = True) -> str:
    """git as a user with no configuration runs it; what it prints."""
    command = ["git", "-c", "credential.helper=", *args]
    environ = clean_environ() | {"GIT_TERMINAL_PROMPT": "0"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    assert not check or done.returncode == 0, (args, done.stderr)
    return done.stdout + done.stderr


def packet(text: str) -> bytes:
    return f"{len(text) + 4:04x}{text}".encode()


@pytest.mark.parametrize("version", ["0", "2"])
def test_clone_and_fetch(work: Work, tmp_path: Path, version: str) -> None:
    url, copy = f"{work.server.url}/r/{work.name}.git", tmp_path / "copy"
    asked = ("-c", f"protocol.version={version}")
    run_git(*asked, "clone", "-q", url, str(copy))
    assert run_git("-C", str(copy), "rev-parse", "HEAD").strip() == work.heads()["main"]
    head = work.branch("topic")
    job = work.push_job("topic")
    run_git(*asked, "-C", str(copy), "fetch", "-q", "origin", "topic")
    assert run_git("-C", str(copy), "rev-parse", "FETCH_HEAD").strip() == head
    work.server.ended(job)
    run_git(*asked, "-C", str(copy), "fetch", "-q", "origin", f"refs/forge/jobs/{job}")
    assert run_git("-C", str(copy), "rev-parse", "FETCH_HEAD^2").strip() == head
    run_git(*asked, "clone", "-q", "--depth", "1", f"{work.server.url}/r/{work.name}", str(tmp_path / "page"))


def test_it_is_for_reading_only_and_says_so(work: Work, tmp_path: Path) -> None:
    server, path = work.server, f"/r/{work.name}.git"
    run_git("clone", "-q", server.url + path, str(tmp_path / "copy"))
    said = run_git("-C", str(tmp_path / "copy"), "push", "origin", "HEAD:more", check=False)
    assert f"remote: {work.name} can only be read over http; push to {work.path}" in said and "more" not in work.heads()
    refused = server.ask(f"{path}/git-receive-pack", body=b"0000", Content_Type="application/x-git-receive-pack-request")
    assert refused.status == 403 and "only be read" in refused.json["error"]
    assert "remote: there is no repo 'nothing'" in run_git("ls-remote", f"{server.url}/r/nothing.git", check=False)
    dumb = server.ask(f"{path}/info/refs", Accept="*/*")
    assert dumb.status == 403 and dumb.headers["Content-Type"].startswith("text/plain") and "dumb protocol" in dumb.text
    for part in ("HEAD", "config", "objects/info/packs", "hooks/post-receive", "../token", "git-upload-archive"):
        assert server.ask(f"{path}/{part}").status == 404, part
    other = server.ask(f"{path}/info/refs?service=git-upload-pack", Host="elsewhere.example")
    assert other.status == 421


def test_the_repo_page_shows_the_address_and_the_address_the_page(work: Work) -> None:
    page = work.server.ask(f"/r/{work.name}.git", Accept="text/html")
    assert page.status == 200 and f"git clone {work.server.url}/r/{work.name}.git</code>" in page.text
    assert work.server.ask("/r/nothing.git", Accept="text/html").status == 404


def test_requests_that_are_packed_cut_or_too_large(work: Work) -> None:
    server, path = work.server, f"/r/{work.name}.git/git-upload-pack"
    kind = {"Content_Type": "application/x-git-upload-pack-request", "Git_Protocol": "version=2"}
    asked = packet("command=ls-refs\n") + b"0001" + packet("peel\n") + b"0000"
    plain = server.ask(path, body=asked, **kind)
    assert plain.status == 200 and work.heads()["main"].encode() in plain.body
    packed = server.ask(path, body=gzip.compress(asked), Content_Encoding="gzip", **kind)
    assert packed.body == plain.body
    assert server.ask(path, body=asked, Content_Encoding="gzip", **kind).status == 400
    assert server.ask(path, body=asked, Content_Encoding="br", **kind).status == 400
    assert server.ask(path, body=gzip.compress(bytes(50 << 20)), Content_Encoding="gzip", **kind).status == 413
    assert server.ask(path, body=bytes((1 << 20) + 1), **kind).status == 413
    assert server.ask(path, body=asked, Content_Type="text/plain").status == 415
    assert server.ask(path, body=asked, Origin="http://elsewhere.example", **kind).status == 403
    for odd in (b"", b"0000", b"ffff", b"zzzz", asked[:9], packet("want x\n")):
        assert server.ask(path, body=odd, **kind).status < 500, odd


def test_a_body_in_chunks(work: Work) -> None:
    host, port = work.server.url.removeprefix("http://").split(":")
    asked = packet("command=ls-refs\n") + b"0000"
    head = f"POST /r/{work.name}.git/git-upload-pack HTTP/1.1\r\nHost: {host}\r\nGit-Protocol: version=2\r\nConnection: close\r\n"
    head += "Content-Type: application/x-git-upload-pack-request\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=30) as client:
        client.sendall(head.encode())
        for part in (asked[:7], asked[7:], b""):
            client.sendall(b"%x\r\n%s\r\n" % (len(part), part))
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200") and work.heads()["main"].encode() in answer


def test_git_sees_no_environment_of_the_client(work: Work, tmp_path: Path) -> None:
    """A header becomes HTTP_… in CGI, never GIT_…; what it says of the protocol is looked at first."""
    answer = work.server.ask(
        f"/r/{work.name}.git/info/refs?service=git-upload-pack", Git_Protocol="version=2\tx", Git_Dir="/etc", Git_Trace="1"
    )
    assert answer.status == 200 and b"version 2" not in answer.body


def test_private(make_server: Callable[..., Server], tmp_path: Path) -> None:
    server = make_server(FORGE_PRIVATE="1", start=False)
    server.start()
    path = Path(server.cli("create", "app", "--base", "main").stdout.strip())
    tree = tmp_path / "tree"
    run_git("init", "-q", "-b", "main", str(tree))
    run_git("-C", str(tree), "commit", "-q", "--allow-empty", "-m", "First")
    run_git("-C", str(tree), "push", "-q", str(path), "main")
    refs = "/r/app.git/info/refs?service=git-upload-pack"
    closed = server.ask(refs)
    assert closed.status == 401 and closed.headers["WWW-Authenticate"].startswith("Basic ")
    assert server.ask("/r/app").headers["WWW-Authenticate"] is None
    token = (server.data / "token").read_text().strip()
    for word in (PASSWORD.replace(" ", "%20"), token):
        run_git("clone", "-q", server.url.replace("//", f"//x:{word}@") + "/r/app.git", str(tmp_path / word[:5]))
    basic = base64.b64encode(f"x:{PASSWORD}".encode()).decode()
    assert server.ask("/r/app", Authorization=f"Basic {basic}").status == 401  # for git only
    assert server.ask(refs, Authorization="Basic ###").status == 401
    codes = {server.ask(refs, Authorization=f"Basic {base64.b64encode(b'x:wrong').decode()}").status for _ in range(12)}
    assert codes == {401, 429}
    run_git("ls-remote", server.url.replace("//", f"//x:{token}@") + "/r/app.git")  # the token is never locked out
    assert server.ask("/r/app.git/git-upload-pack", body=b"0000").status == 401


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Work]:
    """A repo with a file of 60 MB on a server of its own."""
    server = Server(tmp_path_factory.mktemp("large") / "data").start()
    work = server.repo()
    for key, value in (("core.compression", "0"), ("core.bigFileThreshold", "1m")):
        work.git("config", key, value)
        work.bare("config", key, value)
    (work.tree / "large").write_bytes(os.urandom(60 << 20))
    work.commit("Something large")
    work.push("main")
    server.idle()
    yield work
    end(server)


def gits_of(server: Server) -> list[psutil.Process]:
    assert server.process
    found = []
    for one in psutil.Process(server.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [one] if one.name().startswith("git") and one.status() != psutil.STATUS_ZOMBIE else []
    return found


@contextlib.contextmanager
def stalled_clones(work: Work, count: int) -> Iterator[None]:
    """So many clones that read the beginning of what they asked for and no more."""
    host, port = work.server.url.removeprefix("http://").split(":")
    want = packet(f"want {work.heads()['main']} ofs-delta\n") + b"0000" + packet("done\n")
    head = f"POST /r/{work.name}.git/git-upload-pack HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(want)}\r\n"
    head += "Content-Type: application/x-git-upload-pack-request\r\n\r\n"
    with contextlib.ExitStack() as clients:
        for _ in range(count):
            client = clients.enter_context(socket.create_connection((host, int(port)), timeout=30))
            client.sendall(head.encode() + want)
            assert client.recv(100).startswith(b"HTTP/1.1 200")
        yield


def test_a_large_clone_takes_no_memory(large: Work, tmp_path: Path) -> None:
    assert large.server.process
    run_git("ls-remote", f"{large.server.url}/r/{large.name}.git")
    before = psutil.Process(large.server.process.pid).memory_info().rss
    run_git("clone", "-q", "--bare", f"{large.server.url}/r/{large.name}.git", str(tmp_path / "copy"))
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{large.server.process.pid}/status").read_text())
    assert peak and int(peak[1]) * 1024 - before < 30 << 20


def test_clients_that_go_away_end_their_git(large: Work) -> None:
    """As many clones as there are turns, none of which reads: pages answer, and all is free again when they are gone."""
    with stalled_clones(large, forge.CLONERS):
        assert len(gits_of(large.server)) >= forge.CLONERS
        assert large.server.ask("/").status == 200 and large.server.ask("/healthz").status == 200
    wait_for(lambda: not gits_of(large.server), "the end of all git processes")
    run_git("ls-remote", f"{large.server.url}/r/{large.name}.git")


def test_one_more_than_there_are_turns_is_told_to_come_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forge, "CLONE_WAIT", 0.0)
    app = forge.create_app({"FORGE_DATA_DIR": str(tmp_path / "data"), "FORGE_SANDBOX": "none"})
    try:
        forge.create_repo(app.config, "app", "main")
        answers, open_ones = [], []
        for _ in range(forge.CLONERS + 1):
            environ = {"PATH_INFO": "/r/app.git/info/refs", "QUERY_STRING": "service=git-upload-pack", "HTTP_HOST": "localhost"}
            wsgiref.util.setup_testing_defaults(environ)
            open_ones.append(app(environ, lambda status, *_: answers.append(status)))
        for answer in open_ones:
            getattr(answer, "close", lambda: None)()
        assert answers == ["200 OK"] * forge.CLONERS + ["503 Service Unavailable"]
    finally:
        app.engine.stop()


def test_a_server_that_ends_in_the_middle_leaves_no_git(large: Work) -> None:
    with stalled_clones(large, 1):
        gits = gits_of(large.server)
        assert gits and large.server.stop() == 0
    assert psutil.wait_procs(gits, timeout=10)[1] == []
    large.server.start()


@needs_nix
def test_a_flake_input_over_http(work: Work, tmp_path: Path) -> None:
    work.git("checkout", "-q", "-B", "main", "origin/main")
    work.commit("A flake", **{"flake.nix": '{ outputs = { self }: { answer = "from over there"; }; }\n'})
    work.push("main")
    user = tmp_path / "user"
    user.mkdir()
    address = f"git+{work.server.url}/r/{work.name}.git?ref=main"
    (user / "flake.nix").write_text(
        f'{{ inputs.app.url = "{address}"; outputs = {{ self, app }}: {{ answer = "${{app.answer}}"; }}; }}\n'
    )
    environ = clean_environ() | {"HOME": str(tmp_path)}
    command = ["nix", "eval", "--raw", f"path:{user}#answer"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout == "from over there", done.stderr
    assert work.heads()["main"] in (user / "flake.lock").read_text()
