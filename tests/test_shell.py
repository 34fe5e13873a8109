"""Access over ssh by the forced command `forge shell`: through a real sshd, and every spelling of an order in a table."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from conftest import Server, Sshd, Work, clean_environ, end, needs_ssh, wait_for

import forge


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a repo, for all of the module."""
    server = Server(tmp_path_factory.mktemp("shell") / "data", {"FORGE_MAX_JOBS": "2"}).start()
    server.repo()
    server.repo("other.repo")
    yield server
    end(server)


@pytest.fixture
def host(own: Server, make_sshd: Callable[..., Sshd]) -> Sshd:
    """A host that lets a key have the forge; it takes every variable a client sends, as no host should."""
    host = make_sshd("host", "AcceptEnv GIT_* FORGE_* EVIL")
    host.allow(f'command="{own.data}/bin/forge shell",restrict')
    return host


def by_ssh(host: Sshd, *args: str, tree: Path | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
    """git with this key."""
    send = [word for name in environ for word in ("-o", f"SendEnv={name}")]
    environ = clean_environ() | {"GIT_SSH_COMMAND": shlex.join([*host.client(), *send])} | environ
    return subprocess.run(["git", *args], cwd=tree, env=environ, capture_output=True, text=True, timeout=60)


@needs_ssh
def test_clone_push_and_verbs_over_ssh(own: Server, host: Sshd, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for number, path in enumerate(("app.git", "app", "~/app.git", str(own.data / "repos/app.git").lstrip("/"))):
        done = by_ssh(host, "clone", "-q", f"{host.url}/{path}", str(tmp_path / f"tree{number}"))
        assert done.returncode == 0, done.stderr
    (tmp_path / "tree0").rename(tree)
    by_ssh(host, "checkout", "-qb", "by-ssh", tree=tree)
    (tree / "run").write_text("echo it is tested\n")
    by_ssh(host, "add", "run", tree=tree)
    by_ssh(host, "commit", "-qm", "A change\n\nAuto-Merge: yes", tree=tree)
    pushed = by_ssh(host, "push", "-o", "wait", "origin", "by-ssh", tree=tree, EVIL="x", FORGE_DATA_DIR="/nonexistent")
    assert pushed.returncode == 0 and "it is tested" in pushed.stderr and "merged into main" in pushed.stderr, pushed.stderr
    traced = by_ssh(host, "ls-remote", f"{host.url}/app.git", GIT_TRACE_PACKET="1", GIT_PROTOCOL="version=2").stderr
    assert "version 2" in traced
    jobs = host.run("jobs")
    assert jobs.returncode == 0 and "app/by-ssh" in jobs.stdout and "\x1b" not in jobs.stdout
    assert '"branch": "by-ssh"' in host.run("jobs", "--json", "--limit", "5").stdout
    assert host.run("why", "app", "nothing").returncode == 2
    made = host.run("create", "new")
    assert made.stdout.strip() == str(own.data / "repos/new.git") and host.run("delete", "new", "--yes").returncode == 0
    greeting = host.run()
    assert greeting.returncode == 1 and "there is no shell" in greeting.stdout and greeting.stdout.count("\n") == 1
    for order in (
        "sh",
        "serve",
        "doctor --ssh x",
        "bump x y",
        "unit",
        "shell",
        "prune",
        "git-upload-pack --help app",
        "scp -t /",
    ):
        refused = host.run(order)
        assert refused.returncode in (1, 2) and refused.stderr.count("\n") == 1 and refused.stdout == "", (order, refused)


@needs_ssh
def test_a_terminal_has_colours_and_a_log_ends_with_its_reader(own: Server, host: Sshd, tmp_path: Path) -> None:
    host.allow(f'command="{own.data}/bin/forge shell",restrict,pty', key=make_key(tmp_path))
    line = [*host.client(tmp_path / "key"), "-tt", "-p", str(host.port), f"{host.user}@127.0.0.1", "jobs"]
    done = subprocess.run(
        line, env=clean_environ() | {"TERM": "xterm"}, stdin=subprocess.DEVNULL, capture_output=True, timeout=30
    )
    assert b"\x1b[32mpassed" in done.stdout, done
    work = Work(own, "app", own.data / "repos/app.git", tmp_path / "work")
    subprocess.run(["git", "clone", "-q", work.path, work.tree], check=True, env=clean_environ())
    work.branch("slow", run=f"echo begun; while [ ! -e {work.gate('go')} ]; do sleep 0.05; done\n")
    job = work.push_job("slow")
    line = [*host.client(), "-p", str(host.port), f"{host.user}@127.0.0.1", "log", str(job), "-f"]
    reader = subprocess.Popen(line, env=clean_environ(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert reader.stdout and reader.stdout.readline() == b"begun\n"  # as it comes

    def readers() -> list[int]:
        words = {p.pid: p.info["cmdline"] or [] for p in psutil.process_iter(["cmdline"])}
        return [pid for pid, line in words.items() if line[-1:] == ["shell"] and "forge.main()" in " ".join(line)]

    assert readers()
    reader.kill()
    reader.wait()
    reader.stdout.close()
    wait_for(lambda: not readers(), "the end of the reader over there")
    assert own.get(f"/jobs/{job}")["status"] == "running"
    work.gate("go").touch()
    own.ended(job)


def make_key(folder: Path) -> Path:
    """A pair of keys in a folder."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key"], check=True)
    return folder / "key"


GOOD = {
    "git-upload-pack 'app.git'": "upload-pack app",
    "git-receive-pack 'app.git'": "receive-pack app",
    "git-upload-pack '/app.git'": "upload-pack app",
    "git-upload-pack 'app'": "upload-pack app",
    "git-upload-pack app": "upload-pack app",
    "git-upload-pack '~/app.git/'": "upload-pack app",
    "git-upload-pack 'other.repo'": "upload-pack other.repo",
    "git-upload-pack '{repos}/app.git'": "upload-pack app",
    "git-upload-archive 'app.git'": "upload-archive app",
}
BAD = (
    "git-upload-pack 'nothing.git'",
    "git-upload-pack ''",
    "git-upload-pack '.'",
    "git-upload-pack '/'",
    "git-upload-pack '../repos/app.git'",
    "git-upload-pack 'app.git/../app.git'",
    "git-upload-pack '/etc'",
    "git-upload-pack '-x'",
    "git-upload-pack --upload-pack=touch\\ {mark} app",
    "git-upload-pack '--strict' 'app.git'",
    "git-upload-pack 'app.git'; touch {mark}",
    "git-upload-pack 'app.git' && touch {mark}",
    "git-upload-pack 'app.git''; touch {mark}'",
    "git-upload-pack '$(touch {mark})'",
    "git-upload-pack `touch {mark}`",
    "git-upload-pack 'app.git'\ntouch {mark}",
    "git-upload-pack 'app.git\n'",
    "git-upload-pack 'app.git",
    "git upload-pack app.git",
    "git-shell -c x",
    "git-lfs-authenticate app.git upload",
    "jobs; touch {mark}",
    "jobs\ntouch {mark}",
    "jobs\u202e",
    "audit $(touch {mark})",
    "'",
    "serve",
    "check-names",
    "--version",
    " ",
    "é",
    "x" * 100_000,
)


def ordered(server: Server, order: str, tmp_path: Path, command: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    """What sshd would run for an order, with a git that says what it was asked for instead."""
    (tmp_path / "bin").mkdir(exist_ok=True)
    (tmp_path / "bin/git").write_text('#!/bin/sh\nprintf "%s " "$@"; echo; env\n')  # in the place of the real git
    (tmp_path / "bin/git").chmod(0o755)
    given = {"HOME": "/home/nobody", "USER": "nobody", "PATH": f"{tmp_path}/bin:/usr/bin:/bin", "SSH_ORIGINAL_COMMAND": order}
    line = [command or str(server.data / "bin/forge"), "shell"]
    return subprocess.run(line, env=given | environ, capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize("order", GOOD)
def test_git_gets_the_repo_and_nothing_else(own: Server, tmp_path: Path, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    order = order.format(repos=own.data / "repos")
    service, repo = GOOD[order.replace(str(own.data / "repos"), "{repos}")].split()
    sent = {"GIT_PROTOCOL": "version=2", "GIT_DIR": "/x", "GIT_CONFIG_COUNT": "1", "LD_LIBRARY_PATH": "/x"}
    done = ordered(own, order, tmp_path, **sent, FORGE_PORT="x", FORGE_DATA_DIR="/x")
    first, *env = done.stdout.splitlines()
    assert first.split() == [service, str(own.data / f"repos/{repo}.git")], done.stderr
    names = {line.partition("=")[0] for line in env}
    assert "GIT_PROTOCOL=version=2" in env and "HOME=/home/nobody" in env
    assert names <= {"HOME", "USER", "PATH", "LANG", "GIT_PROTOCOL", "PWD", "SHLVL", "_"}, names

    def become(program: str, words: list[str], environ: dict[str, str]) -> None:
        raise SystemExit([*words, *sorted(environ)])

    for name, text in {**sent, "HOME": "/home/nobody", "SSH_ORIGINAL_COMMAND": order, "FORGE_DATA_DIR": str(own.data)}.items():
        monkeypatch.setenv(name, text)
    monkeypatch.setattr(os, "execvpe", become)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        forge.main(["shell"])
    assert ended.value.code[:3] == ["git", service, str(own.data / f"repos/{repo}.git")]  # type: ignore[index]
    assert set(ended.value.code[3:]) <= {"HOME", "USER", "PATH", "LANG", "GIT_PROTOCOL"}  # type: ignore[index]


@pytest.mark.parametrize("order", BAD, ids=range(len(BAD)))
def test_all_else_is_refused_with_a_sentence(own: Server, tmp_path: Path, order: str) -> None:
    done = ordered(own, order.format(mark=tmp_path / "mark"), tmp_path)
    assert done.returncode in (1, 2) and done.stdout == "" and not (tmp_path / "mark").exists(), done
    said = done.stderr.splitlines()
    assert said and len(done.stderr) < 1500 and said[-1].startswith("forge") and "Traceback" not in done.stderr, done.stderr
    assert len(said) == 1 or "usage:" in said[0]


def test_the_usual_way_of_a_push_starts_no_python(own: Server, tmp_path: Path) -> None:
    text = (own.data / "bin/forge").read_text()
    lame = tmp_path / "forge"
    lame.write_text(text.replace(forge.python_words()[0], "/nonexistent/python"))
    lame.chmod(0o755)
    for order in ("git-upload-pack 'app.git'", "git-receive-pack '/app.git'"):
        assert f"{own.data}/repos/app.git" in ordered(own, order, tmp_path, str(lame)).stdout
    assert "/nonexistent/python" in ordered(own, "jobs", tmp_path, str(lame)).stderr


def test_the_command_knows_its_data_directory_and_takes_no_code_from_where_it_is_called(own: Server, tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('this is not the json that was meant')\n")
    environ = {name: text for name, text in os.environ.items() if not name.startswith("FORGE_")}
    done = subprocess.run(
        [own.data / "bin/forge", "repos"], env=environ, capture_output=True, text=True, timeout=30, cwd=tmp_path
    )
    assert done.returncode == 0 and "other.repo" in done.stdout
    done = subprocess.run(
        [own.data / "bin/forge", "repos"], env=environ | {"FORGE_DATA_DIR": "/x"}, capture_output=True, timeout=30
    )
    assert done.returncode == 3, "a data directory that is named is the one that is meant"
