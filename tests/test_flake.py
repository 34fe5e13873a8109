"""Our own flake and its templates, with real Nix and a stand-in for nixpkgs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import AUTO, Server, Sshd, Work, clean_environ, needs_nix, needs_ssh
from stand_in import Flake, lay_out

import forge

pytestmark = needs_nix
SYSTEM = forge.nix_system()


@pytest.fixture(scope="module")
def flake(tmp_path_factory: pytest.TempPathFactory) -> Flake:
    return lay_out(tmp_path_factory.mktemp("flake"))


@pytest.fixture
def forge_that_records(tmp_path: Path) -> tuple[str, Path]:
    """A PATH whose `forge` is none: it writes down what it is told. And where it does."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "forge"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >{tmp_path}/told\n')
    program.chmod(0o755)
    return f"{program.parent}:{clean_environ()['PATH']}", tmp_path / "told"


def test_the_flake_holds_what_is_promised(flake: Flake) -> None:
    shown = json.loads(flake.nix("flake", "show", "--json").stdout)
    for system in ("x86_64-linux", "aarch64-linux"):
        assert set(shown["apps"][system]) == {"default", "pre-merge", "post-merge"}
        assert set(shown["packages"][system]) == {"default", "forge"}
        assert set(shown["checks"][system]) == {"package", "module"}
        assert "default" in shown["devShells"][system]
    assert shown["nixosModules"]["default"]["type"] == "nixos-module"
    assert set(shown["templates"]) == {"default", "app", "configs"}


def test_its_checks_pass_and_the_package_serves(flake: Flake, tmp_path: Path) -> None:
    flake.nix("flake", "check")
    program = flake.nix("eval", "--raw", ".#forge.outPath").stdout + "/bin/forge"
    environ = Server(tmp_path / "data").environ
    with subprocess.Popen([program, "serve"], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            assert server.stdout.readline().startswith("forge: listening on ")
            own = tmp_path / "data" / "bin" / "forge"  # what hooks and jobs find
            made = subprocess.run([own, "create", "app"], env=environ, capture_output=True, text=True)
            assert made.returncode == 0 and made.stdout.endswith("/repos/app.git\n"), made.stderr
            assert (tmp_path / "data" / "repos" / "app.git" / "hooks" / "post-receive").exists()
        finally:
            server.terminate()


@pytest.mark.parametrize("well", [True, False], ids=["passing check", "failing check"])
def test_pre_merge_is_the_flakes_checks_and_then_the_tests(flake: Flake, tmp_path: Path, well: bool) -> None:
    """The app looks at the directory that it is run in: here a flake with one check and one test."""
    check = 'derivation { name = "check"; system = "%s"; builder = "/bin/sh"; args = [ "-c" "%s" ]; }'
    text = check % (SYSTEM, "echo checked >$out" if well else "exit 1")
    (tmp_path / "flake.nix").write_text("{ outputs = { self }: { checks.%s.one = %s; }; }" % (SYSTEM, text))
    (tmp_path / "test_one.py").write_text("def test_one():\n    open('tested', 'w').close()\n")
    done = flake.nix("run", f"path:{flake.ours}#pre-merge", cwd=tmp_path, check=False, PYTEST_XDIST_AUTO_NUM_WORKERS="1")
    assert (done.returncode == 0) is well, done.stdout + done.stderr
    assert (tmp_path / "tested").exists() is well


def test_post_merge_bumps_the_configs_repo_of_its_environment(flake: Flake, forge_that_records: tuple[str, Path]) -> None:
    path, told = forge_that_records
    said = flake.nix("run", ".#post-merge", PATH=path).stdout
    assert said == "nothing to deploy: FORGE_CONFIGS_URL names no repo of host configurations\n" and not told.exists()
    flake.nix("run", ".#post-merge", PATH=path, FORGE_CONFIGS_URL="ssh://host/the configs.git")
    assert told.read_text() == "bump\nssh://host/the configs.git\nforge\n"
    flake.nix("run", ".#post-merge", PATH=path, FORGE_CONFIGS_URL="/c.git", FORGE_CONFIGS_INPUT="ours")
    assert told.read_text() == "bump\n/c.git\nours\n"


@pytest.fixture
def begin(flake: Flake, shared: Server, tmp_path: Path) -> Callable[[str], Work]:
    """Makes what a newcomer has who begins with a template: a repo on the forge, and a clone with its first commit.

    The jobs of the template look for nixpkgs where the URL in its flake.nix says: here in a repo on the same forge,
    which holds the stand-in.
    """
    nixpkgs = shared.data / "repos" / "nixpkgs.git"
    if not nixpkgs.exists():
        for command in (
            ["git", "init", "-q", "-b", "main", str(flake.nixpkgs)],
            ["git", "-C", str(flake.nixpkgs), "add", "-A"],
            ["git", "-C", str(flake.nixpkgs), "commit", "-qm", "A stand-in"],
            ["git", "clone", "-q", "--bare", str(flake.nixpkgs), f"{nixpkgs}.new"],
            ["mv", f"{nixpkgs}.new", str(nixpkgs)],
        ):
            subprocess.run(command, check=True, env=clean_environ(), capture_output=True)

    def make(template: str) -> Work:
        path = Path(shared.cli("create", template, "--base", "main").stdout.strip())
        work = Work(shared, template, path, tmp_path / template)
        work.tree.mkdir()
        flake.nix("flake", "init", "-t", f"path:{flake.ours}#{template}", cwd=work.tree)
        assert not (work.tree / "flake.lock").exists() and (work.tree / "README.md").exists()
        text = (work.tree / "flake.nix").read_text()
        assert "github:NixOS/nixpkgs/nixos-unstable" in text
        work.write("flake.nix", text.replace("github:NixOS/nixpkgs/nixos-unstable", f"git+file://{nixpkgs}?ref=main"))
        work.git("init", "-q", "-b", "main")
        work.git("remote", "add", "origin", str(path))
        work.commit("First commit")
        return work

    return make


def deployed(work: Work, status: str = "passed") -> str:
    """The log of the newest deployment, which has ended so."""
    work.server.idle()
    job = work.server.get(f"/jobs?repo={work.name}&kind=post-merge&limit=1")["jobs"][0]
    log = work.server.job_log(job["id"]).decode()
    assert job["status"] == status and job["command"] == "nix run .#post-merge", log
    return log


def test_the_template_of_an_app_works_as_it_is(
    begin: Callable[[str], Work], forge_that_records: tuple[str, Path], flake: Flake
) -> None:
    work = begin("app")
    work.push("main")
    assert "nothing to deploy: name the repo" in deployed(work)

    job = work.server.ended(work.push_job(work_branch(work, "friendly", "hello, world", "hello, friend")))
    assert job["status"] == "passed" and job["command"] == "nix run .#pre-merge", work.server.job_log(job["id"]).decode()
    work.landed("friendly")
    job = work.server.ended(work.push_job(work_branch(work, "gruff", "hello, friend", "what?")))
    assert job["status"] == "failed" and b"greets" in work.server.job_log(job["id"]), work.server.job_log(job["id"]).decode()

    path, told = forge_that_records
    work.git("checkout", "-q", "origin/main")
    text = (work.tree / "flake.nix").read_text().replace('configs = "";', 'configs = "/srv/configs.git";')
    work.write("flake.nix", text)
    flake.nix("run", f"path:{work.tree}#post-merge", cwd=work.tree, PATH=path)
    assert told.read_text() == "bump\n/srv/configs.git\napp\n"


def work_branch(work: Work, name: str, old: str, new: str, file: str = "flake.nix") -> str:
    """A branch that asks to be merged and replaces some text in a file of base."""
    work.git("fetch", "-q", "origin")
    text = work.git("show", f"origin/main:{file}") + "\n"
    assert old in text
    work.branch(name, AUTO, **{file: text.replace(old, new)})
    return name


def test_the_template_of_the_hosts_says_what_to_do_by_hand(begin: Callable[[str], Work]) -> None:
    work = begin("configs")
    work.push("main")
    base = work.heads()["main"]
    url = f"git+{work.server.url}/r/configs.git?ref=main&rev={base}#web"
    assert f"deploy by hand: nixos-rebuild switch --flake '{url}'" in deployed(work)

    broken = work_branch(work, "broken", 'networking.hostName = "web"', "networking.hostName = inputs.app", "hosts/web.nix")
    job = work.server.ended(work.push_job(broken))
    log = work.server.job_log(job["id"]).decode()
    assert job["status"] == "failed" and job["command"] == "nix run .#pre-merge" and "attribute 'app' missing" in log, log
    work.server.ended(work.push_job(work_branch(work, "well", 'hostName = "web"', 'hostName = "www"', "hosts/web.nix")))
    work.landed("well")
    assert work.heads()["main"] in deployed(work)


@needs_ssh
def test_a_host_is_told_one_command_and_its_exit_code_decides(
    flake: Flake, make_sshd: Callable[..., Sshd], tmp_path: Path
) -> None:
    host, told = make_sshd(), tmp_path / "told"
    serve = "case $SSH_ORIGINAL_COMMAND in nix-store*) exec $SSH_ORIGINAL_COMMAND;; esac"
    host.allow(f'command="{serve}; echo \\"$SSH_ORIGINAL_COMMAND\\" >>{told}; exit $(cat {tmp_path}/code)"')
    config = tmp_path / "ssh_config"  # what jobs get as FORGE_SSH_CONFIG
    files = f"IdentityFile {host.folder}/id_ed25519\nUserKnownHostsFile {host.folder}/known_hosts\n"
    config.write_text(f"{files}Port {host.port}\nBatchMode yes\nIdentitiesOnly yes\n")
    tree = tmp_path / "configs"
    tree.mkdir()
    flake.nix("flake", "init", "-t", f"path:{flake.ours}#configs", cwd=tree)
    text = (tree / "flake.nix").read_text().replace('ssh = "";', f'ssh = "{host.user}@127.0.0.1";')
    (tree / "flake.nix").write_text(text.replace("github:NixOS/nixpkgs/nixos-unstable", f"path:{flake.nixpkgs}"))
    commit = {"FORGE_URL": "http://forge", "FORGE_REPO": "configs", "FORGE_BRANCH": "main", "FORGE_COMMIT": "1" * 40}

    def deploy(**more: str) -> subprocess.CompletedProcess[str]:
        return flake.nix("run", f"path:{tree}#post-merge", cwd=tree, check=False, **commit, **more)

    assert "deploy by hand" in deploy().stdout, "no deploy key yet"
    keys = {"FORGE_SSH_CONFIG": str(config), "NIX_SSHOPTS": f"-F {config}"}
    (tmp_path / "code").write_text("0")
    done = deploy(**keys)
    assert done.returncode == 0 and "by hand" not in done.stdout, done.stderr
    url = f"git+http://forge/r/configs.git?ref=main&rev={'1' * 40}#web"
    assert told.read_text() == f"nixos-rebuild switch --flake '{url}'\n"
    (tmp_path / "code").write_text("1")
    assert deploy(**keys).returncode == 1

    told.unlink()
    (tree / "flake.nix").write_text((tree / "flake.nix").read_text().replace('build = "host";', 'build = "forge";'))
    assert deploy(**keys).returncode == 1
    system = told.read_text().rstrip().rpartition(" && ")[2].removesuffix("/bin/switch-to-configuration switch")
    assert told.read_text().startswith(f"nix-env --profile /nix/var/nix/profiles/system --set {system} && ")
    assert '"hostName":"web"' in Path(system).read_text()  # what the stand-in makes of a configuration
    host.stop()
    done = deploy(**keys)
    assert done.returncode == 1 and "web was not deployed: it was not built or copied" in done.stdout, done.stderr
