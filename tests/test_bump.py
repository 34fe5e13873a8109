"""Bumps: a flake input of one repo follows another repo, by real Nix; conflicts are made anew, pages tell the line."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import FORGE, NIX, Server, Sshd, Work, clean_environ, git_after, needs_nix, needs_ssh, wait_for
from hypothesis import given, settings
from hypothesis import strategies as st

import forge

FLAKE = '{ inputs.app = { url = "%s?ref=main"; flake = false; }; outputs = { self, app }: { at = app.rev or null; }; }\n'


def nix(tree: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["nix", "flake", *args], cwd=tree, env=clean_environ(), capture_output=True, text=True, timeout=60)


def bump(cwd: Path, url: object, name: str = "app", *more: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """`forge bump` by hand in a clone."""
    tmp = {"TMPDIR": str(cwd.parent)}
    command = [*FORGE, "bump", str(url), name, *more]
    return subprocess.run(command, cwd=cwd, env=clean_environ() | tmp | environ, capture_output=True, text=True, timeout=60)


def locked(configs: Work, branch: str, name: str = "app") -> str | None:
    return forge.locked_commit(forge.parse_lock(configs.bare("show", f"{branch}:flake.lock") + "\n"), name)


def with_lock(configs: Work, flake: str, **files: str) -> None:
    """Give a configs repo a flake and its lock."""
    configs.write("flake.nix", flake)
    configs.git("add", "-A")
    done = nix(configs.tree, "lock")
    assert done.returncode == 0, done.stderr
    configs.commit("Take app", **files)
    configs.push("main")
    configs.server.idle()


def next_commit(app: Work, name: str = "A change") -> str:
    app.git("checkout", "-q", "-B", "main")
    commit = app.commit(name, state=name)
    app.push("main")
    return commit


@pytest.fixture
def app(work: Work) -> Work:
    return work


HELD = '#!/bin/sh\nif grep -q "^hold" mode 2>/dev/null; then while [ ! -e "$HOME/go" ]; do sleep 0.05; done; fi\n'


@pytest.fixture
def configs(app: Work) -> Iterator[Work]:
    """A repo whose flake takes app; its check holds bumps up, so that tests see them open, until `go` is there."""
    made = app.server.repo(f"{app.name}-configs", script=HELD)
    if NIX:
        with_lock(made, FLAKE % f"git+file://{app.path}", mode="hold\n")
    yield made
    made.gate("go").touch()


@needs_nix
def test_a_bump_locks_exactly_the_commit_and_leaves_the_flake_consistent(app: Work, configs: Work) -> None:
    first, second = next_commit(app, "one"), next_commit(app, "two")
    done = bump(app.tree, configs.path, "app", "--commit", first)
    branch = f"deploy-app-{first[:8]}"
    assert done.returncode == 0 and "/jobs/" in done.stderr, done.stderr  # the link that the hook prints
    assert locked(configs, branch) == first and first != second
    assert configs.bare("log", "-1", "--format=%(trailers)%an", branch) == "Auto-Merge: yes\nAda"
    configs.git("fetch", "-q", "origin")
    configs.git("checkout", "-q", f"origin/{branch}")
    assert nix(configs.tree, "lock").returncode == 0 and nix(configs.tree, "lock", "--no-update-lock-file").returncode == 0
    assert configs.git("status", "--porcelain") == "" and configs.git("diff", "--name-only", "origin/main") == "flake.lock"
    again = bump(app.tree, configs.path, "app", "--commit", first)
    assert (again.returncode, "is pushed already" in again.stdout) == (0, True), again.stdout
    newer = bump(app.tree, configs.path)  # the HEAD of this checkout
    assert newer.returncode == 0 and f"deploy-app-{second[:8]}" in configs.heads(), newer.stderr
    assert branch not in configs.heads(), "a newer bump removes those it contains in the same push"
    overtaken = bump(app.tree, configs.path, "app", "--commit", first)
    assert overtaken.returncode == 0 and "overtaken" in overtaken.stdout and branch not in configs.heads()
    elsewhere = bump(configs.tree.parent, configs.path, "app", "--commit", first)  # asks the input's own repo
    assert elsewhere.returncode == 0 and "overtaken" in elsewhere.stdout, elsewhere.stderr
    configs.gate("go").touch()
    configs.landed()
    same = bump(app.tree, configs.path)
    assert same.returncode == 0 and "nothing to do" in same.stdout and locked(configs, "main") == second
    assert not list(app.tree.parent.glob("forge-bump-*")), "the clone is removed"


@needs_nix
@pytest.mark.parametrize(
    "arguments, code, text",
    [
        (("nope",), 2, "has no input nope; it has: app"),
        (("a/b",), 2, "no name of a flake input"),
        (("app", "--commit", "nonsense"), 2, "there is no commit 'nonsense' here"),
        (("app", "--commit", "0123456789" * 4), 1, "is 0123456789 pushed, on the branch that flake.nix names?"),
    ],
)
def test_a_bump_that_cannot_be_says_why(app: Work, configs: Work, arguments: tuple[str, ...], code: int, text: str) -> None:
    done = bump(app.tree, configs.path, *arguments)
    assert done.returncode == code and text in done.stderr, (done.returncode, done.stderr)
    assert not list(app.tree.parent.glob("forge-bump-*"))


@needs_nix
def test_flakes_that_cannot_be_bumped(app: Work, tmp_path: Path) -> None:
    commit = next_commit(app, "one")
    for number, (flake, text) in enumerate(
        [
            (None, "has no flake.nix"),
            ("{ inputs.a.url = 'path:./sub'; inputs.app.follows = 'a'; outputs = _: { }; }", "follows a; bump that one"),
            ("{ inputs.app = { url = 'path:%s'; flake = false; }; outputs = _: { }; }" % app.tree, "which names no commit"),
            ("{ inputs.app = { url = 'git+file://%s?ref=main&rev=%s'; flake = false; }; outputs = _: { }; }"
             % (app.path, app.git("rev-parse", "HEAD~1")), "flake.nix pins app"),
            ("{ inputs.app = throw 'no good'; outputs = _: { }; }", "nix flake lock has failed with 1"),
        ]
    ):  # fmt: skip
        made = app.server.repo(f"{app.name}-{number}")
        if flake is not None:
            made.write("sub/flake.nix", "{ outputs = _: { }; }\n")
            made.write("flake.nix", flake.replace("'", '"'))
            made.git("add", "-A")
            nix(made.tree, "lock")
            made.commit("A flake")
            made.push("main")
        done = bump(app.tree, made.path, "app", "--commit", commit)
        assert done.returncode == 1 and text in done.stderr, (number, done.stdout, done.stderr)
    empty = app.server.cli("create", f"{app.name}-empty").stdout.strip()
    assert "has no base yet" in bump(app.tree, empty).stderr
    assert "git clone has failed" in bump(app.tree, tmp_path / "nothing").stderr
    (tmp_path / "bin").mkdir()
    for name in ("git", "git-upload-pack"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name) or "")
    done = bump(app.tree, empty, PATH=str(tmp_path / "bin"))
    assert done.returncode == 1 and "there is no nix on the PATH" in done.stderr, done.stderr


@needs_nix
def test_a_lock_that_is_not_there_yet_is_made_and_a_newer_nix_is_asked_in_its_own_words(app: Work, tmp_path: Path) -> None:
    fresh = app.server.repo(f"{app.name}-fresh", script="#!/bin/sh\nexit 1\n")
    fresh.commit("A flake without a lock", **{"flake.nix": FLAKE % f"git+file://{app.path}"})
    fresh.push("main")
    next_commit(app, "two")
    one = app.git("rev-parse", "HEAD~1")
    # a fake of a newer Nix: it says so, knows its words only, and has the real one do it
    fake = tmp_path / "fake-newer-nix"
    fake.mkdir()
    (fake / "nix").write_text(
        f"""#!/bin/sh
case "$1 $2" in
"--version "*) echo "nix (Fake newer Nix) 2.24.9"; exit ;;
"flake update") shift 2; input=$1; shift; exec {shutil.which("nix")} flake lock --update-input "$input" "$@" ;;
*) case "$*" in *--update-input*) echo "error: unrecognised flag '--update-input'" >&2; exit 1 ;; esac ;;
esac
exec {shutil.which("nix")} "$@"
"""
    )
    (fake / "nix").chmod(0o755)
    done = bump(app.tree, fresh.path, "app", "--commit", one, PATH=f"{fake}:{os.environ['PATH']}")
    assert done.returncode == 0 and locked(fresh, f"deploy-app-{one[:8]}") == one, done.stderr


@needs_nix
def test_two_bumps_at_the_same_moment_end_with_the_newest(app: Work, configs: Work, tmp_path: Path) -> None:
    """The older one looks, and is held before its push until the newer one is pushed."""
    first, second = next_commit(app, "one"), next_commit(app, "two")
    wait = f'case "$1" in push) touch {tmp_path}/there; while [ ! -e {tmp_path}/on ]; do sleep 0.02; done ;; esac'
    command = [*FORGE, "bump", str(configs.path), "app", "--commit", first]
    environ = clean_environ() | git_after(tmp_path / "git", wait)
    older = subprocess.Popen(command, cwd=app.tree, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for((tmp_path / "there").exists, "the push of the older one")
    assert bump(app.tree, configs.path, "app", "--commit", second).returncode == 0
    (tmp_path / "on").touch()
    out, err = older.communicate(timeout=60)
    assert older.returncode == 0 and "overtaken" in out, out + err
    assert sorted(configs.heads()) == [f"deploy-app-{second[:8]}", "main"]


@needs_nix
def test_a_bump_that_is_stopped_leaves_nothing(app: Work, configs: Work, tmp_path: Path) -> None:
    wait = f'case "$1" in push) touch {tmp_path}/there; exec sleep 60 ;; esac'
    next_commit(app, "one")
    environ = clean_environ() | git_after(tmp_path / "git", wait) | {"TMPDIR": str(tmp_path)}
    process = subprocess.Popen([*FORGE, "bump", str(configs.path), "app"], cwd=app.tree, env=environ, stderr=subprocess.PIPE)
    wait_for((tmp_path / "there").exists, "the push")
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 143 and not list(tmp_path.glob("forge-bump-*"))
    assert sorted(configs.heads()) == ["main"] and not [child for child in children if child.is_running()]


@needs_nix
@needs_ssh
def test_a_bump_over_ssh(app: Work, configs: Work, make_sshd: Callable[..., Sshd], tmp_path: Path) -> None:
    host = make_sshd()
    host.allow()
    commit = next_commit(app, "one")
    script = tmp_path / "ssh"
    script.write_text(f'#!/bin/sh\nexec {" ".join(host.client())} "$@"\n')
    script.chmod(0o755)
    done = bump(app.tree, f"{host.url}{configs.path}", GIT_SSH_COMMAND=str(script))
    assert done.returncode == 0 and "/jobs/" in done.stderr and f"deploy-app-{commit[:8]}" in configs.heads(), done.stderr


class GitOverHttp(BaseHTTPRequestHandler):
    """Another forge, which takes pushes over http: git's own http-backend for the repos of a folder."""

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        about = {"REQUEST_METHOD": self.command, "PATH_INFO": path, "QUERY_STRING": query, "GIT_HTTP_EXPORT_ALL": "1"}
        about |= {"GIT_PROJECT_ROOT": str(self.server.folder), "REMOTE_USER": "ada"}  # type: ignore[attr-defined]
        for name in ("Content-Type", "Content-Encoding", "Content-Length", "Git-Protocol"):
            key = name.upper().replace("-", "_")
            about[key if name in ("Content-Type", "Content-Length") else f"HTTP_{key}"] = self.headers.get(name, "")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        answer = subprocess.run(["git", "http-backend"], env=clean_environ() | about, input=body, capture_output=True).stdout
        head, _, rest = answer.partition(b"\r\n\r\n")
        given = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        self.send_response(int(given.pop("Status", "200 OK").split()[0]))
        for name, value in {**given, "Content-Length": str(len(rest))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(rest)

    do_POST = do_GET

    def log_message(self, *_: object) -> None: ...


@needs_nix
def test_a_bump_over_http(app: Work, configs: Work) -> None:
    commit = next_commit(app, "one")
    with ThreadingHTTPServer(("127.0.0.1", 0), GitOverHttp) as other:
        other.folder = configs.path.parent  # type: ignore[attr-defined]
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        done = bump(app.tree, f"http://127.0.0.1:{other.server_port}/{configs.path.name}")
        other.shutdown()
        thread.join()
    assert done.returncode == 0 and "/jobs/" in done.stderr and f"deploy-app-{commit[:8]}" in configs.heads(), done.stderr


# -- the whole way ----------------------------------------------------------------


def follow(app: Work, configs: Work, name: str, **files: str) -> str:
    """Push a branch to app that merges and deploys by a bump of configs; the commit that is base of app then."""
    app.branch(name, f"{name}\n\nAuto-Merge: yes", deploy=f"exec forge bump {configs.path} app\n", **files)
    app.push(name)
    app.landed(name)
    return app.bare("rev-parse", "main")


@needs_nix
def test_from_one_repo_to_the_other_by_itself_and_one_line_on_all_pages(app: Work, configs: Work) -> None:
    configs.gate("go").touch()
    commit = follow(app, configs, "topic")
    server = app.server
    server.idle()
    wait_for(lambda: locked(configs, "main") == commit, "the bump")
    server.idle()
    (landed,) = configs.merges()
    deployed = server.get(f"/jobs?repo={app.name}&kind=post-merge&limit=1")["jobs"][0]
    shipped = server.get(f"/jobs?repo={configs.name}&kind=post-merge&limit=1")["jobs"][0]
    assert deployed["status"] == "passed" and landed["how"] == "auto", server.job_log(deployed["id"])
    trailer = configs.bare("log", "-1", "--format=%(trailers:key=Forge-Cause,valueonly)", landed["head"])
    assert trailer == f"{app.name} {commit} job {deployed['id']}"
    whole = [("merge", app.name), ("deployment", app.name), ("merge", configs.name), ("deployment", configs.name)]
    pages = {
        f"/jobs/{deployed['id']}": lambda page: page["trail"],
        f"/jobs/{shipped['id']}": lambda page: page["trail"],
        f"/r/{app.name}/history": lambda page: page["merges"][0]["trail"],
        f"/r/{configs.name}/history": lambda page: page["merges"][0]["trail"],
        f"/r/{app.name}/deployments": lambda page: page["deployments"][0]["trail"],
        f"/r/{configs.name}/deployments": lambda page: page["deployments"][0]["trail"],
    }

    def look() -> None:
        for address, part in pages.items():
            lines = part(server.get(address))
            assert [[(step["what"], step["repo"]) for step in line] for line in lines] == [whole], address
            html = server.ask(address, Accept="text/html").text
            assert f'href="/jobs/{deployed["id"]}"' in html and f'href="/jobs/{shipped["id"]}"' in html, address
        merged = server.ask(f"/r/{configs.name}/mr/{landed['branch']}", Accept="text/html")
        assert merged.status == 404 and f'href="/jobs/{deployed["id"]}"' in merged.text

    look()
    server.stop(signal.SIGKILL)
    server.start()
    look()  # from the journal
    server.stop()
    server.start()
    look()  # from the snapshot


@needs_nix
def test_an_open_bump_is_in_the_line_and_a_forged_cause_is_no_link(app: Work, configs: Work) -> None:
    commit = follow(app, configs, "topic")
    app.server.running(wait_for(lambda: configs.server.get(f"/jobs?repo={configs.name}&status=running")["jobs"], "it")[0]["id"])
    branch = f"deploy-app-{commit[:8]}"
    wait_for(lambda: app.server.get(f"/jobs?repo={app.name}&status=running")["jobs"] == [], "the end of the bump")
    deployed = app.server.get(f"/jobs?repo={app.name}&kind=post-merge&limit=1")["jobs"][0]
    (line,) = configs.mr(branch)["trail"]
    assert [step["what"] for step in line] == ["merge", "deployment", "request"] and line[1]["job"] == deployed["id"]
    (down,) = app.server.get(f"/jobs/{deployed['id']}")["trail"]
    assert down == line
    page = app.server.ask(f"/r/{configs.name}/mr/{branch}", Accept="text/html").text
    assert f'href="/jobs/{deployed["id"]}"' in page
    other = configs.server.get(f"/jobs?repo={configs.name}&kind=pre-merge&limit=1")["jobs"][0]["id"]
    for number, forged in enumerate(
        (f"{app.name} {commit} job 999999", f"{app.name} {'1' * 40} job {deployed['id']}", f"nope {commit} job {other}")
    ):
        configs.branch(f"forged-{number}", f"Forged\n\nForge-Cause: {forged}", mode="free\n")
        configs.push(f"forged-{number}")
        ((step, _),) = configs.mr(f"forged-{number}")["trail"]
        assert step["what"] == "said" and step["commit"] in forged
        html = app.server.ask(f"/r/{configs.name}/mr/forged-{number}", Accept="text/html").text
        assert "href=" not in html.partition('class="trail"')[2].partition("</li>")[0]
    assert app.server.get(f"/jobs/{deployed['id']}")["trail"] == [line], "who claims it is not believed"
    configs.gate("go").touch()
    configs.landed(branch)


# -- made anew ---------------------------------------------------------------------


def lock_of(**commits: tuple[str, int]) -> str:
    """A lock of inputs that are no flakes, as Nix writes it."""
    nodes: dict[str, Any] = {"root": {"inputs": {name: name for name in commits}}}
    for name, (letter, date) in commits.items():
        source = {"type": "git", "url": f"file:///{name}"}
        nodes[name] = {"flake": False, "original": source, "locked": {**source, "rev": letter * 40, "lastModified": date}}
    return forge.lock_text({"nodes": nodes, "root": "root", "version": 7})


def open_bump(
    configs: Work, letter: str, date: int, start: str = "origin/main", more: str = "", **others: tuple[str, int]
) -> str:
    branch = f"deploy-app-{letter * 8}"
    message = f"Bump app\n\nAuto-Merge: yes\nForge-Cause: nowhere {letter * 40} job 7\n"
    files = {"flake.lock": lock_of(app=(letter, date), **others)} | ({"more": more} if more else {})
    configs.branch(branch, message, start, **files)
    configs.push(branch)
    return branch


def lock_on_main(configs: Work, text: str) -> None:
    configs.git("fetch", "-q", "origin")
    configs.git("checkout", "-q", "-B", "main", "origin/main")
    configs.commit("Lock", **{"flake.lock": text})
    configs.push("main")


@pytest.fixture
def held(work: Work) -> Iterator[Work]:
    """A repo with a lock, whose check waits for `go`."""
    lock_on_main(work, lock_of(app=("a", 1), lib=("a", 1)))
    work.write(".forge/pre-merge", '#!/bin/sh\nwhile [ ! -e "$HOME/go" ]; do sleep 0.02; done\n')
    work.commit("Hold")
    work.push("main")
    yield work
    work.gate("go").touch()


def test_a_bump_in_conflict_is_made_anew_and_merges(held: Work) -> None:
    branch = open_bump(held, "b", 3, lib=("a", 1))
    head = held.heads()[branch]
    lock_on_main(held, lock_of(app=("9", 2), lib=("c", 3)))
    wait_for(lambda: held.heads()[branch] != head, "the new bump")
    new, tip = held.heads()[branch], held.heads()["main"]
    show = "--format=%an <%ae> %ad%n%B"
    assert held.bare("log", "-1", "--format=%P", new) == tip and held.bare("log", "-1", show, new) == held.bare(
        "log", "-1", show, head
    )
    assert held.bare("show", f"{new}:flake.lock") + "\n" == lock_of(app=("b", 3), lib=("c", 3))
    assert held.bare("diff", "--name-only", tip, new) == "flake.lock"
    held.gate("go").touch()
    held.landed(branch)
    events = [
        record["event"] for record in held.server.journal() if record.get("repo") == held.name and record.get("head") == head
    ]
    assert events == ["branch.renewing", "branch.renewed"]
    assert held.server.cli("audit", held.name).returncode == 0


def test_what_base_has_goes_and_what_cannot_be_made_anew_says_why(held: Work) -> None:
    same = open_bump(held, "b", 2, lib=("9", 2))
    lock_on_main(held, lock_of(app=("b", 3), lib=("9", 3)))
    wait_for(lambda: same not in held.heads(), "the end of a bump that base has")
    older = open_bump(held, "c", 4, lib=("9", 3))
    lock_on_main(held, lock_of(app=("d", 9), lib=("c", 4)))
    wait_for(lambda: "nothing says that cccccccccc is newer" in " ".join(held.mr(older)["blockers"]), "the reason")
    assert "nothing says" in held.server.cli("why", held.name, older).stdout
    gone = open_bump(held, "e", 20, lib=("c", 4))
    lock_on_main(held, lock_of(lib=("f", 4)))
    wait_for(lambda: "no input app of its own any more" in " ".join(held.mr(gone)["blockers"]), "the reason")
    lock_on_main(held, "not a lock")
    wait_for(lambda: "none that can be read" in " ".join(held.mr(gone)["blockers"]), "the reason")
    page = held.server.ask(f"/r/{held.name}/mr/{gone}", Accept="text/html").text
    assert "none that can be read" in page
    lock_on_main(held, lock_of(app=("d", 9), lib=("c", 4)))
    more = open_bump(held, "9", 30, more="x", lib=("c", 4))
    lock_on_main(held, lock_of(app=("7", 20), lib=("c", 4)))
    wait_for(lambda: "changes more than flake.lock" in " ".join(held.mr(more)["blockers"]), "the reason")


@pytest.fixture
def app_repo(shared: Server) -> Callable[..., Work]:
    return shared.repo


def test_base_with_a_newer_commit_of_a_repo_here_ends_the_older_bump(held: Work, app_repo: Callable[..., Work]) -> None:
    """The dates say otherwise; the history of the repo that the bump comes from counts."""
    app = app_repo(f"{held.name}-app")
    commits = [next_commit(app, str(number)) for number in range(3)]

    def lock(commit: str, date: int) -> str:
        return lock_of(app=("a", date), lib=("a", date)).replace("a" * 40, commit, 1)

    lock_on_main(held, lock(commits[0], 5))
    message = f"Bump\n\nAuto-Merge: yes\nForge-Cause: {app.name} {commits[1]} job 1\n"
    held.branch("deploy-app-old", message, **{"flake.lock": lock(commits[1], 4)})
    held.push("deploy-app-old")
    lock_on_main(held, lock(commits[2], 3))
    wait_for(lambda: "deploy-app-old" not in held.heads(), "the end of the older bump")


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_kill_in_the_middle_of_making_a_bump_anew(make_server: Callable[..., Server], tmp_path: Path, moment: str) -> None:
    """Killed before and after the ref transaction that moves the branch: the next server comes to the same end, once."""
    real = f'{shutil.which("git")} "$@";' if moment == "after" else ""
    armed = tmp_path / "armed"
    kill = f'if [ "$1 $2" = "update-ref -z" ] && [ -e {armed} ]; then rm {armed}; {real} kill -9 $PPID; exit 1; fi'
    server = make_server(**git_after(tmp_path / "git", kill))
    held = server.repo(script="#!/bin/sh\nexit 1\n")
    lock_on_main(held, lock_of(app=("a", 1), lib=("a", 1)))
    server.idle()
    branch = open_bump(held, "b", 3, lib=("a", 1))
    head = held.heads()[branch]
    armed.touch()
    lock_on_main(held, lock_of(app=("9", 2), lib=("c", 3)))
    assert server.process and server.process.stdout
    assert server.process.wait(timeout=30) == -signal.SIGKILL
    server.process.stdout.close()
    assert (held.heads()[branch] == head) == (moment == "before")
    server.start()
    wait_for(lambda: held.heads()[branch] != head, "the new bump")
    server.idle()
    assert held.bare("show", f"{branch}:flake.lock") + "\n" == lock_of(app=("b", 3), lib=("c", 3))
    told = [record["event"] for record in server.journal() if record.get("head") == head and record["event"].startswith("branch")]
    assert told == {"before": ["branch.renewing", "branch.kept"], "after": []}[moment] + ["branch.renewing", "branch.renewed"]
    assert [job["commit"] for job in server.get("/jobs?branch=" + branch)["jobs"]] == [held.heads()[branch], head]
    assert server.get("/r/app/mr/" + branch)["conflicts"] == []


# -- the lock, in process ------------------------------------------------------------


def node(letter: str, **inputs: Any) -> dict[str, Any]:
    source = {"type": "git", "url": f"file:///{letter}"}
    return {"original": source, "locked": {**source, "rev": letter * 40}} | ({"inputs": inputs} if inputs else {})


def lock_with(**nodes: Any) -> dict[str, Any]:
    """A lock with the inputs app and np."""
    return {"nodes": {"root": {"inputs": {"app": "app", "np": "np"}}, **nodes}, "root": "root", "version": 7}


def test_a_graft_names_nodes_as_nix_does() -> None:
    base = lock_with(app=node("a", np="np_2", x=["np"]), np=node("b"), np_2=node("c"))
    bump = lock_with(app=node("d", np="np_2", y="y"), np=node("e"), np_2=node("f"), y=node("9", np=["np"]))
    made = forge.graft_inputs(base, bump, ["app"])
    grafted = lock_with(app=node("d", np="np", y="y"), np=node("f"), y=node("9", np=["np"]), np_2=node("b"))
    grafted["nodes"]["root"] = {"inputs": {"app": "app", "np": "np_2"}}
    assert made == grafted


SOURCES = st.sampled_from("abcdef")


@st.composite
def locks(draw: st.DrawFn) -> dict[str, Any]:
    """Locks of inputs that have inputs, shared and followed ones too."""
    keys = [f"n{number}" for number in range(draw(st.integers(1, 6)))]
    nodes: dict[str, Any] = {}
    for number, key in enumerate(keys):
        inputs = draw(st.dictionaries(st.sampled_from("pqr"), st.sampled_from([*keys[number + 1 :], ["x"]]), max_size=3))
        nodes[key] = node(draw(SOURCES), **inputs)
    nodes["root"] = {"inputs": draw(st.dictionaries(st.sampled_from("xyz"), st.sampled_from(keys), min_size=1))}
    return {"nodes": nodes, "root": "root", "version": 7}


def unfolded(lock: dict[str, Any], given: Any) -> Any:
    """An input with all it reaches, whatever the nodes are called."""
    if isinstance(given, list):
        return given
    its = lock["nodes"][given]
    return {**its, "inputs": {name: unfolded(lock, child) for name, child in its.get("inputs", {}).items()}}


@settings(max_examples=200, deadline=None)
@given(locks(), locks())
def test_a_graft_takes_some_inputs_whole_and_leaves_the_others(base: dict[str, Any], bump: dict[str, Any]) -> None:
    names = set(base["nodes"]["root"]["inputs"]) & set(bump["nodes"]["root"]["inputs"])
    names = set(sorted(names)[:2])
    before = copy.deepcopy((base, bump))
    made = forge.graft_inputs(base, bump, names)
    assert (base, bump) == before
    for name, key in made["nodes"]["root"]["inputs"].items():
        source = bump if name in names else base
        assert unfolded(made, key) == unfolded(source, source["nodes"]["root"]["inputs"][name])
    assert forge.parse_lock(forge.lock_text(made)) == made
    assert forge.graft_inputs(made, made, []) == made, "nothing is left that nothing reaches, and names stay"


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_what_is_no_lock_is_refused_in_words(value: Any) -> None:
    for text in (json.dumps(value), json.dumps({"nodes": value, "root": "root", "version": 7}), *ODD_LOCKS):
        with pytest.raises(forge.LockTrouble):
            forge.parse_lock(text)


ODD_LOCKS = (
    "[" * 100_000,
    "\x00",
    '{"nodes": {"r": {"inputs": {"a": "nope"}}}, "root": "r", "version": 7}',
    '{"nodes": {"r": {"x": "\\ud800"}}, "root": "r", "version": 7}',
    '{"nodes": {"r": {"locked": []}}, "root": "r", "version": 7}',
)


def test_a_lock_that_is_nested_too_deep_is_refused() -> None:
    nodes = {f"n{number}": node("a", x=f"n{number + 1}") for number in range(5000)}
    deep = forge.parse_lock(json.dumps(lock_with(app=node("a", x="n0"), np=node("b"), n5000=node("c"), **nodes)))
    with pytest.raises(forge.LockTrouble):
        forge.graft_inputs(deep, deep, ["app"])


def test_the_address_by_which_nix_takes_one_commit() -> None:
    commit = "1" * 40
    git = {"type": "git", "url": "ssh://f@h/x.git"}
    for source, url in (
        ({"type": "git", "url": "file:///x.git", "ref": "main"}, f"git+file:///x.git?rev={commit}&ref=main"),
        (git | {"submodules": True, "dir": "a b"}, f"git+ssh://f@h/x.git?rev={commit}&submodules=1&dir=a+b"),
        ({"type": "github", "owner": "o", "repo": "r", "ref": "main"}, f"github:o/r/{commit}"),
        ({"type": "gitlab", "owner": "o", "repo": "r", "host": "h.org"}, f"gitlab:o/r/{commit}?host=h.org"),
    ):
        assert forge.flake_url(source, commit) == url
    for source in ({"type": "path", "path": "/x"}, {"type": "tarball", "url": "https://x"}, {}):
        with pytest.raises(forge.LockTrouble):
            forge.flake_url(source, commit)


def test_a_cause_is_read_from_the_last_paragraph_only_and_taken_for_what_it_is() -> None:
    good = f"app {'a' * 40} job 7"
    assert str(forge.cause_in(f"Auto-Merge: yes\nforge-cause:  {good} ")) == good
    for text in (
        "",
        f"Forge-Cause: ../x {'a' * 40} job 7",
        f"Forge-Cause: app {'a' * 39} job 7",
        f"Forge-Cause: app {'a' * 40} job 0",
        good,
    ):
        assert forge.cause_in(text) is None


def test_two_repos_that_bump_each_other_for_ever_have_a_line_with_an_end(tmp_path: Path) -> None:
    """Each deployment was caused by the one before, in the other repo."""
    ledger = forge.Ledger(tmp_path)
    at, cause, made = "2026-01-01T00:00:00.000Z", None, []
    for number in range(1, 1001, 2):
        repo, commit = ("one", "two")[number % 4 == 1], f"{number:040x}"
        merge = {"repo": repo, "branch": "b", "head": commit, "merge_commit": commit, "parent": commit, "how": "auto", "begun": 0}
        merge |= {"job": number, "caused_by": cause, "merged_at": at}
        heads = [{"branch": "main", "commit": commit}]
        job = forge.Job(number + 1, repo, "main", forge.POST, commit, heads, at, "passed", started_at=at, exit_code=0)
        made += [("merged", merge), ("job.queued", asdict(replace(job, status="pending"))), ("job.finished", asdict(job))]
        cause = f"{repo} {commit} job {job.id}"
    ledger.record(*made)
    for job_id in (2, 500, 1000):
        job = ledger.job(job_id)
        assert job
        (line,) = forge.trail(ledger, job=job)["trail"]
        assert ("deployment", job_id) in [(step["what"], step["job"]) for step in line] and len(line) <= 50
        merge = ledger.merge_by(job.repo, job.commit)
        assert ledger.deployment_of(merge or {}) is job
