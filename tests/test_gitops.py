"""The whole way, with everything real: two repos from the templates, a host, and what goes wrong in a month."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Server, Sshd, Work, clean_environ, needs_nix, needs_ssh, wait_for
from stand_in import lay_out

pytestmark = [needs_nix, needs_ssh]


class Host:
    """What a deployment reaches: a forced command that writes down what it is told, and fails when the app says so."""

    def __init__(self, sshd: Sshd, folder: Path, configs: Path, app: Path):
        self.told, self.gate = folder / "told", folder / "gate"
        script = folder / "activate"
        script.write_text(f"""#!/bin/bash
rev=$(sed -n "s/.*rev=\\([0-9a-f]*\\).*/\\1/p" <<<"$SSH_ORIGINAL_COMMAND")
input=$(git -C {configs} show "$rev:flake.lock" | jq -r .nodes.app.locked.rev)
echo "begun $rev $input" >>{self.told}
until [ ! -e {self.gate} ]; do sleep 0.05; done
if git -C {app} show "$input:flake.nix" | grep -q "deploys badly"; then code=1; else code=0; fi
echo "switched to $input: $code"
echo "ended $rev $input $code" >>{self.told}
exit $code
""")
        script.chmod(0o755)
        sshd.allow(f'restrict,command="{script}"')

    def lines(self, word: str) -> list[list[str]]:
        """What was begun or ended, oldest first: [configs commit, app commit, …]."""
        told = self.told.read_text().split("\n") if self.told.exists() else []
        return [line.split()[1:] for line in told if line.startswith(word)]


def bare_copy(tree: Path, path: Path) -> Path:
    """A bare repo with what is in a folder: a place from which jobs in the sandbox can take it."""
    for command in (
        ["git", "init", "-q", "-b", "main", str(tree)],
        ["git", "-C", str(tree), "add", "-A"],
        ["git", "-C", str(tree), "commit", "-qm", "A stand-in"],
        ["git", "clone", "-q", "--bare", str(tree), f"{path}.new"],
    ):
        subprocess.run(command, check=True, env=clean_environ(), capture_output=True)
    return Path(f"{path}.new").rename(path)


class Story:
    """A forge, a host, and the repos app and configs, which a newcomer has made from the templates."""

    def __init__(self, server: Server, sshd: Sshd, folder: Path):
        self.server, self.flake = server, lay_out(folder)
        self.nixpkgs = bare_copy(self.flake.nixpkgs, server.data / "repos" / "nixpkgs.git")
        repos = server.data / "repos"
        self.host = Host(sshd, folder, repos / "configs.git", repos / "app.git")
        self.app = self.new_repo("app", folder)
        self.configs = self.new_repo(
            "configs",
            folder,
            ("# app.url = .*", f'app.url = "git+file://{self.app.path}?ref=main";'),
            ('ssh = "";', f'ssh = "{sshd.url}";'),
            ("# environment.systemPackages", "environment.systemPackages"),
        )

    def new_repo(self, name: str, folder: Path, *edits: tuple[str, str]) -> Work:
        path = Path(self.server.cli("create", name, "--base", "main").stdout.strip())
        work = Work(self.server, name, path, folder / "work" / name)
        work.tree.mkdir(parents=True)
        self.flake.nix("flake", "init", "-t", f"path:{self.flake.ours}#{name}", cwd=work.tree)
        for pattern, text in [("github:NixOS/nixpkgs/nixos-unstable", f"git+file://{self.nixpkgs}?ref=main"), *edits]:
            for file in work.tree.rglob("*.nix"):
                file.write_text(re.sub(pattern, text, file.read_text()))
        work.git("init", "-q", "-b", "main")
        work.git("remote", "add", "origin", str(path))
        work.git("add", "-A")
        subprocess.run(["nix", "flake", "lock"], cwd=work.tree, check=True, env=clean_environ(), capture_output=True)
        work.commit("First commit")
        work.push("main")
        self.server.idle()
        return work

    def push(self, branch: str, *edits: tuple[str, str]) -> str:
        """Change the app's flake on a branch that merges by itself; the base commit of the app that comes of it."""
        self.app.git("fetch", "-q", "--prune", "origin")
        self.app.git("checkout", "-q", "--no-track", "-B", branch, "origin/main")
        text = (self.app.tree / "flake.nix").read_text()
        for pattern, new in edits:
            text, count = re.subn(pattern, new, text)
            assert count, pattern
        self.app.write("flake.nix", text)
        self.app.commit(f"{branch}\n\nAuto-Merge: yes")
        self.app.push(branch)
        self.app.landed(branch)
        return self.app.heads()["main"]

    def locked(self) -> str:
        """The commit of the app that the base of configs names."""
        lock = json.loads(self.configs.bare("show", "main:flake.lock"))
        found: str = lock["nodes"]["app"]["locked"]["rev"]
        return found

    def deployments(self) -> Any:
        return self.server.get("/r/configs/deployments")

    def bumped(self, commit: str) -> None:
        wait_for(lambda: self.locked() == commit, "the bump of configs", 60)
        self.server.idle()

    def open_bump(self, commit: str) -> Any:
        """The merge request for a commit of the app, once its job has ended."""
        branch = f"deploy-app-{commit[:8]}"
        wait_for(lambda: branch in self.configs.heads(), f"the branch {branch}", 60)
        self.server.idle()
        return self.configs.mr(branch)


@pytest.fixture
def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        found: int = free.getsockname()[1]
        return found


@pytest.mark.parametrize("sandbox", ["bwrap", "none"])
def test_from_one_push_to_a_running_host_and_back(
    sandbox: str, make_server: Callable[..., Server], make_sshd: Callable[..., Sshd], tmp_path: Path, free_port: int
) -> None:
    sshd = make_sshd()
    secrets = sshd.secrets(tmp_path / "secrets")
    server = make_server(FORGE_SANDBOX=sandbox, FORGE_SECRETS_DIR=str(secrets), FORGE_PORT=str(free_port))
    story = Story(server, sshd, tmp_path)
    app, configs, host = story.app, story.configs, story.host

    begin = app.heads()["main"]
    assert host.lines("ended") == [[configs.heads()["main"], begin, "0"]]

    # two good pushes
    first = story.push("one", ('configs = ""', f'configs = "{configs.path}"'))
    story.bumped(first)
    second = story.push("two", ("hello, world", "hello, two"))
    story.bumped(second)
    assert [line[1:] for line in host.lines("ended")][-2:] == [[first, "0"], [second, "0"]]
    good = configs.heads()["main"]

    # one that the check of configs does not take
    third = story.push("three", ("default = pkgs", "renamed = pkgs"), (r"\.default\}", ".renamed}"))
    refused = story.open_bump(third)
    assert refused["job"]["status"] == "failed" and not refused["mergeable"]
    assert story.locked() == second

    # one that the host does not take: it is recorded, and nothing is undone by itself
    fourth = story.push(
        "four", ("renamed = pkgs", "default = pkgs"), (r"\.renamed\}", ".default}"), ("hello, two", "hello, this deploys badly")
    )
    story.bumped(fourth)
    newest = story.deployments()["deployments"][0]
    assert (newest["status"], newest["exit_code"]) == ("failed", 1)
    assert f"deploy-app-{third[:8]}" not in configs.heads(), "the newer bump contains it"
    assert story.deployments()["current"] == good

    # the way back
    bad = configs.heads()["main"]
    answer = server.act("/r/configs/rollback", commit=good)
    assert answer.status == 200 and answer.json["how"] == "rollback", answer.body
    server.idle()
    assert story.locked() == second and host.lines("ended")[-1][1:] == [second, "0"]
    assert story.deployments()["current"] == configs.heads()["main"]

    # the bad one again: somebody retries the deployment of the app
    (job,) = server.get("/jobs?repo=app&kind=post-merge&limit=1")["jobs"]
    assert server.act(f"/jobs/{job['id']}/retry").status == 202
    held = story.open_bump(fourth)
    assert held["job"]["status"] == "passed" and not held["mergeable"] and "hold" in " ".join(held["blockers"]), held
    assert story.locked() == second

    # a newer one passes, while forge is restarted in the middle of its deployment
    host.gate.touch()
    fifth = story.push("five", ("hello, this deploys badly", "hello, five"))
    wait_for(lambda: host.lines("begun")[-1][1] == fifth, "the deployment of the fifth", 60)
    server.stop()
    server.start()
    host.gate.unlink()
    server.idle()
    assert f"deploy-app-{fourth[:8]}" not in configs.heads()

    # at the end git, journals, pages and the host tell the same story
    told = [line[1] for line in host.lines("ended")]
    assert told == [begin, first, second, fourth, second, fifth]
    found = story.deployments()
    assert found["current"] == configs.heads()["main"] and story.locked() == fifth
    ran = [job for job in found["deployments"] if job["command"]]
    assert [job["commit"] for job in reversed(ran)] == [line[0] for line in host.lines("ended")]
    assert [job["exit_code"] for job in reversed(ran)] == [int(line[2]) for line in host.lines("ended")]
    line = configs.bare("log", "--first-parent", "--format=%H", "main").split()
    merges = configs.merges()
    assert [merge["merge_commit"] for merge in merges] == line[: len(merges)]
    assert [merge["how"] for merge in merges] == ["auto", "rollback", "auto", "auto", "auto"]
    recorded = [
        record["merge_commit"] for record in server.journal() if record["event"] == "merged" and record["repo"] == "configs"
    ]
    assert recorded == [merge["merge_commit"] for merge in reversed(merges)]
    assert bad in line and server.cli("audit").returncode == 0
    ended = [record["id"] for record in server.journal() if record["event"] == "job.finished"]
    assert len(ended) == len(set(ended))

    # and one line leads from the push to the host, on the pages of both ends
    deployed = f"/jobs/{ran[0]['id']}"
    (steps,) = server.get(deployed)["trail"]
    assert [(step["repo"], step["what"]) for step in steps] == [
        (n, w) for n in ("app", "configs") for w in ("merge", "deployment")
    ]
    for path in ("/r/app/mr/five", deployed):
        page = server.ask(path, Accept="text/html").text
        assert f'<a href="{deployed}">configs deployment' in page and "app / five</a> merged as" in page, path
