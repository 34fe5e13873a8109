"""Deploy keys, secrets and what is seen of them: real jobs, a real sshd, each way in which it can be wrong."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PASSWORD, Server, Sshd, Work, clean_environ, end, needs_nix, needs_ssh, wait_for
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sandbox import NOBODY, needs_bwrap, ordinary_python

import forge

# -- the key in jobs ---------------------------------------------------------------------------------

LENT = os.environ.get("FORGE_TEST_LENT_HOST")  # for the tests that run without rights: a host that root has started


class LentHost(Sshd):
    """A host that is there already."""

    @property
    def user(self) -> str:
        return "root"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    if LENT:
        folder, port = LENT.rsplit(":", 1)
        yield LentHost(Path(folder), port=int(port))
        return
    made = Sshd(tmp_path_factory.mktemp("ssh") / "host").start()
    made.allow()
    subprocess.run(["git", "init", "-q", "--bare", made.folder / "target.git"], check=True, env=clean_environ())
    yield made
    made.stop()


@pytest.fixture
def lair() -> Iterator[Path]:
    """A place that no job gets a /tmp of its own over."""
    root = Path(
        tempfile.mkdtemp(prefix="forge-test-", dir="/var/lib" if os.access("/var/lib", os.W_OK) else os.path.expanduser("~"))
    )
    yield root
    shutil.rmtree(root)


def deployed(work: Work, script: str, message: str = "A change", **files: str) -> Any:
    """Push a deployment to base; its job when it has ended."""
    work.branch("main", message, deploy=script, **files)
    work.push("HEAD:main")
    work.server.idle()
    return work.server.get(f"/jobs?repo={work.name}&kind=post-merge&limit=1")["jobs"][0]


def keys(lair: Path, host: Sshd) -> Path:
    """A FORGE_SECRETS_DIR with an address that needs quotes, whose key is a link to a place that is hidden, and a config."""
    place = lair / 'keys "50%" of us'
    host.secrets(place)
    (lair / "home").mkdir()
    os.replace(place / "ssh/id_ed25519", lair / "home/key")
    (place / "ssh/id_ed25519").symlink_to(lair / "home/key")
    about = f"HostName 127.0.0.1\nPort {host.port}\nUser {host.user}\n"
    stranger = f"Host stranger\n{about}HostKeyAlias stranger\nStrictHostKeyChecking no\n"
    (place / "ssh/config").write_text(f"Host target\n{about}HostKeyAlias [127.0.0.1]:{host.port}\n{stranger}")
    return place


@contextlib.contextmanager
def deploying(lair: Path, host: Sshd, sandbox: str) -> Iterator[Work]:
    """A repo whose deployments have the keys, on a server whose user has a home of its own."""
    environ = {"HOME": str(lair / "home"), "FORGE_SECRETS_DIR": str(keys(lair, host)), "FORGE_SANDBOX": sandbox}
    server = Server(lair / "data", environ).start()
    try:
        yield server.repo("deploys")
    finally:
        end(server)


@needs_ssh
@pytest.mark.parametrize("sandbox", [pytest.param("bwrap", marks=needs_bwrap), "none"])
def test_git_nix_and_ssh_of_a_deployment_use_the_deploy_key(lair: Path, host: Sshd, sandbox: str) -> None:
    with deploying(lair, host, sandbox) as work:
        script = f"""
        set -ex
        git push -q -f target:{host.folder}/target.git HEAD:refs/heads/{sandbox}
        git push -q -f {host.url}{host.folder}/target.git HEAD:refs/heads/by-url
        ssh -F "$FORGE_SSH_CONFIG" target echo activated
        ssh $NIX_SSHOPTS target echo by nix
        {'! (: >>"$FORGE_SSH_CONFIG")' if sandbox == "bwrap" else ""}
        ! ssh -F "$FORGE_SSH_CONFIG" stranger echo let in
        """
        job = deployed(work, script)
        said = work.server.job_log(job["id"]).decode()
        assert job["status"] == "passed", said
        assert "\nactivated\n" in said and "\nby nix\n" in said and "let in\n" not in said.replace("echo let in", "")
        assert "host key is known for stranger and you have requested strict checking" in said
        there = host.run(f"git -C {host.folder}/target.git rev-parse {sandbox} by-url").stdout.split()
        assert there == [job["commit"]] * 2


@needs_ssh
@needs_nix
@pytest.mark.skipif(os.geteuid() != 0, reason="the store is root's")
@pytest.mark.parametrize("sandbox", [pytest.param("bwrap", marks=needs_bwrap), "none"])
def test_nix_fetches_and_copies_by_ssh(lair: Path, host: Sshd, sandbox: str) -> None:
    with deploying(lair, host, sandbox) as work:
        source = f"git+ssh://target{host.folder}/target.git?ref=nix"
        script = f"""
        set -ex
        git push -q -f target:{host.folder}/target.git HEAD:refs/heads/nix
        nix flake metadata --json {shlex.quote(source)}
        nix copy --to ssh://target "$(nix-store --add .forge/post-merge)"
        """
        job = deployed(work, script, **{"flake.nix": "{ outputs = _: { }; }"})
        said = work.server.job_log(job["id"]).decode()
        assert job["status"] == "passed" and job["commit"] in said.split("nix flake metadata")[1], said


@needs_ssh
@needs_bwrap
@pytest.mark.timeout(300)
@pytest.mark.skipif(os.geteuid() != 0, reason="this has been tested as an ordinary user already")
def test_the_deploy_key_of_an_ordinary_user(host: Sshd, lair: Path) -> None:
    os.chown(lair, 65534, 65534)
    python = ordinary_python(lair)
    if python is None:
        pytest.skip("no Python with the packages that a user without rights can run")
    lent = lair / "host"
    shutil.copytree(host.folder, lent, ignore=shutil.ignore_patterns("log", "pid", "host_key", "target.git"))
    for path in (lent, *lent.iterdir()):
        os.chown(path, 65534, 65534)
    (lent / "target.git").symlink_to(host.folder / "target.git")
    environ = clean_environ() | {"HOME": str(lair), "PATH": "/usr/local/bin:/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
    environ = {name: value for name, value in environ.items() if not name.startswith("PYTEST_")}
    environ |= {"FORGE_TEST_LENT_HOST": f"{lent}:{host.port}", "TMPDIR": str(lair)}
    words = [python, "-m", "pytest", "-p", "no:cacheprovider", f"--basetemp={lair}/tmp", str(Path(__file__).resolve())]
    words += ["-k", "use_the_deploy_key or owner_or_mode or deploy_key_of_its_own"]
    done = subprocess.run([*NOBODY, *words], env=environ, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0 and "6 passed" in done.stdout, done.stdout + done.stderr


@needs_ssh
def test_what_a_branch_changes_is_not_run_with_secrets_before_it_is_base(
    make_server: Callable[..., Server], tmp_path: Path
) -> None:
    (tmp_path / "keys/ssh").mkdir(parents=True)
    server = make_server(FORGE_SECRETS_DIR=str(tmp_path / "keys"), FORGE_SANDBOX="none")
    work = server.repo()
    look = "env | grep -E 'SECRETS|SSH|PASSWORD|TOKEN' || echo nothing to see\n"
    recipe = "post-merge:\n\t@.forge/post-merge\n"
    hostile = {".forge/post-merge": f"#!/bin/sh\necho changed\n{look}", "run": look, "justfile": recipe}
    work.branch("evil", "Change what deploys", **hostile)
    (work.tree / ".forge/post-merge").chmod(0o755)
    job = server.ended(work.push_job("evil"))
    assert server.job_log(job["id"]) == b"nothing to see\n"
    deployments = server.get("/jobs?repo=app&kind=post-merge")["jobs"]
    assert [one["commit"] for one in deployments] == [work.heads()["main"]]
    assert server.act("/r/app/mr/evil/merge").status == 200
    server.idle()
    newest = server.get("/jobs?repo=app&kind=post-merge&limit=1")["jobs"][0]
    said = server.job_log(newest["id"]).decode()
    assert said.startswith("changed\n") and "FORGE_SSH_CONFIG=" in said and "GIT_SSH_COMMAND=" in said and PASSWORD not in said


def test_a_data_directory_whose_address_nix_cannot_be_told() -> None:
    assert "NIX_SSHOPTS" not in forge.ssh_environ(Path("/srv/my forge/running/7"))
    assert forge.ssh_environ(Path("/srv/my forge"))["GIT_SSH_COMMAND"] == "ssh -F '/srv/my forge/ssh_config'"
    assert forge.ssh_environ(Path("/srv/forge"))["NIX_SSHOPTS"] == "-F /srv/forge/ssh_config"


# -- the folder of one repo ----------------------------------------------------------------------------


def laid_out(keys: Path) -> Path:
    """Secrets of several repos."""
    for name in ("app", "web"):
        (keys / "repos" / name).mkdir(parents=True)
        (keys / "repos" / name / "token").write_text(f"the-token-of-{name}\n")
    (keys / "token").write_text("the-token-of-all\n")
    (keys / "repos/linked").symlink_to("web")
    return keys


def test_which_folder_of_the_secrets_a_repo_has(tmp_path: Path) -> None:
    def found(repo: str = "app", place: Path | None = tmp_path / "keys", **settings: str) -> object:
        config = forge.Config(tmp_path, secrets_dir=place)
        return forge.secrets_folder(config, repo, {f"forge.{name}": value for name, value in settings.items()})

    assert found() is None and found(place=None) is None, "a directory that is not there is as it was"
    (tmp_path / "keys").mkdir()
    assert found() is None, "without repos/ all see all"
    laid_out(tmp_path / "keys")
    assert (found(), found("other"), found(secrets="web"), found("other", secrets="linked")) == ("app", "", "web", "linked")
    config = forge.Config(tmp_path, secrets_dir=tmp_path / "keys")
    seen = [forge.secrets_seen(config, name) for name in (None, "", "app")]
    assert seen == [tmp_path / "keys", None, tmp_path / "keys/repos/app"]
    shutil.rmtree(tmp_path / "keys/repos")
    (tmp_path / "keys/repos").symlink_to(tmp_path / "not made yet")
    with pytest.raises(forge.Refused, match="repos is a link to nothing; see whether what makes the secrets has run"):
        found()  # not all of them instead


WRONG_FOLDERS = {
    "../keys": "forge.secrets is '../keys', but must be the name of a folder in FORGE_SECRETS_DIR/repos; run: git -C ",
    "..": "forge.secrets is '..', but must be",
    "/etc": "forge.secrets is '/etc', but must be",
    "web/.": "forge.secrets is 'web/.', but must be",
    "": "forge.secrets is '', but must be",
    "web\nx": "forge.secrets is 'web\\nx', but must be",
    "web.git": "forge.secrets is 'web.git', but must be",
    "wbe": "forge.secrets is 'wbe', but there is no folder KEYS/repos/wbe; make it, or run: git -C ",
    "dangling": "KEYS/repos/dangling is a link to nothing; see whether what makes the secrets has run",
    "round": "KEYS/repos/round cannot be looked at (Too many levels of symbolic links)",
    "file": "KEYS/repos/file is no folder; remove it",
    "up": "KEYS/repos/up leads to KEYS, which holds the secrets of all repos",
    "same": "KEYS/repos/same leads to KEYS/repos, which holds the secrets of all repos",
    "out": "KEYS/repos/out leads to /, which holds the secrets of all repos",
}


def test_a_deployment_does_not_start_with_other_secrets_than_it_is_meant_to_have(
    make_server: Callable[..., Server], tmp_path: Path
) -> None:
    keys = laid_out(tmp_path / "keys")
    server = make_server(FORGE_SECRETS_DIR=str(keys), FORGE_SANDBOX="none")
    work = server.repo()
    (keys / "repos/file").touch()
    for name, target in (("dangling", "nowhere"), ("round", "round"), ("up", ".."), ("same", "."), ("out", "/")):
        (keys / "repos" / name).symlink_to(target)
    job = deployed(work, "cat $FORGE_SECRETS_DIR/token | rev\n")
    assert server.job_log(job["id"]) == b"ppa-fo-nekot-eht\n"
    for named, reason in WRONG_FOLDERS.items():
        work.bare("config", "forge.secrets", named)
        job = server.ended(int(server.act(f"/jobs/{job['id']}/retry").json["id"]))
        assert job["status"] == "failed" and job["reason"].startswith(reason.replace("KEYS", str(keys))), (named, job["reason"])
        assert server.job_log(job["id"]) == b"" and "Traceback" not in server.log
    work.bare("config", "--unset-all", "forge.secrets")  # as one of these says
    job = server.ended(int(server.act(f"/jobs/{job['id']}/retry").json["id"]))
    assert job["status"] == "passed" and server.job_log(job["id"]) == b"ppa-fo-nekot-eht\n"


def test_a_repo_that_names_secrets_does_not_run_on_a_server_without_them(
    make_server: Callable[..., Server], tmp_path: Path
) -> None:
    server = make_server(FORGE_SANDBOX="none")
    work = server.repo()
    work.bare("config", "forge.secrets", "web")
    job = deployed(work, "echo ran\n")
    assert job["status"] == "failed" and job["reason"].startswith("forge.secrets is 'web', but FORGE_SECRETS_DIR is not set; ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read all; tested without rights, too")
def test_a_folder_whose_owner_or_mode_is_wrong_is_told(tmp_path: Path) -> None:
    keys = laid_out(tmp_path / "keys")
    config = forge.Config(tmp_path, secrets_dir=keys)
    (keys / "repos/app").chmod(0)
    with pytest.raises(forge.Refused, match=r"repos/app cannot be read by uid \d+; run: chown"):
        forge.secrets_folder(config, "app", {})
    keys.chmod(0)
    try:
        with pytest.raises(forge.Refused, match=r"keys/repos cannot be looked at \(Permission denied\)"):
            forge.secrets_folder(config, "app", {})
    finally:
        keys.chmod(0o700)


@needs_ssh
@pytest.mark.parametrize("sandbox", [pytest.param("bwrap", marks=needs_bwrap), "none"])
def test_each_repo_has_the_deploy_key_of_its_own_folder(lair: Path, host: Sshd, sandbox: str) -> None:
    """One has a key of its own, one shares that of the whole directory by a link, one has none; ssh/ itself counts for nobody."""
    keys(lair, host)
    secrets = lair / 'keys "50%" of us'
    (secrets / "repos/shares").mkdir(parents=True)
    (secrets / "repos/shares/ssh").symlink_to("../../ssh")
    (secrets / "repos/empty").mkdir()
    shutil.copytree(secrets / "ssh", secrets / "repos/owns/ssh", symlinks=True)
    environ = {"HOME": str(lair / "home"), "FORGE_SECRETS_DIR": str(secrets), "FORGE_SANDBOX": sandbox}
    server = Server(lair / "data", environ).start()
    try:
        for name in ("owns", "shares"):
            script = f'ssh -F "$FORGE_SSH_CONFIG" target echo in; git ls-remote -q target:{host.folder}/target.git && echo git\n'
            said = server.job_log(deployed(server.repo(name), script)["id"]).decode()
            assert said.startswith("in\n") and said.endswith("git\n"), said
        for name in ("empty", "none"):
            look = "env | grep -E '^(FORGE_SSH_CONFIG|GIT_SSH_COMMAND|NIX_SSHOPTS)=' || echo nothing\n"
            assert server.job_log(deployed(server.repo(name), look)["id"]) == b"nothing\n"
    finally:
        end(server)


# -- forge doctor --ssh ------------------------------------------------------------------------------


def checks(config: forge.Config, host: str) -> dict[str, tuple[bool, str]]:
    return {what: (well, said) for way in forge.examine_ssh(config, host) for what, well, said in way}


def wrong(config: forge.Config, host: str) -> tuple[str, str]:
    """The one thing that is wrong."""
    bad = [(what, said) for what, (well, said) in checks(config, host).items() if not well]
    assert len(bad) == 1, bad
    return bad[0]


@pytest.fixture
def login(host: Sshd, tmp_path: Path) -> tuple[forge.Config, str, Path]:
    """All is well: (settings, the host, the folder ssh of the secrets)."""
    config = forge.Config(tmp_path / "data", secrets_dir=host.secrets(tmp_path / "keys"))
    return config, f"{host.user}@127.0.0.1:{host.port}", tmp_path / "keys/ssh"


@needs_ssh
def test_a_key_is_made_and_lets_in_once_it_is_allowed_and_the_host_is_known(
    make_sshd: Callable[..., Sshd], make_server: Callable[..., Server], tmp_path: Path
) -> None:
    host, place = make_sshd(), tmp_path / "keys"
    server = make_server(start=False, FORGE_SECRETS_DIR=str(place))
    command = ["doctor", "--ssh", f"ssh://{host.user}@127.0.0.1:{host.port}", "--json"]

    def ask(code: int) -> dict[str, tuple[bool, str]]:
        done = server.cli(*command, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return {check["what"]: (check["ok"], check["text"]) for check in json.loads(done.stdout)["checks"]}

    said = ask(1)
    key = place / "ssh/id_ed25519"
    assert key.stat().st_mode & 0o777 == 0o600 and (place / "ssh").stat().st_mode & 0o777 == 0o700
    assert said["new key"][0] and said["key"][1].split()[:2] == key.with_suffix(".pub").read_text().split()[:2]
    well, text = said["known host"]
    shown = subprocess.run(["ssh-keygen", "-lf", host.folder / "host_key.pub"], capture_output=True, text=True).stdout.split()[1]
    assert not well and shown in text and not (place / "ssh/known_hosts").exists()
    subprocess.run(["sh", "-c", text.split(" run: ")[1]], check=True)
    assert [what for what, (well, _) in ask(1).items() if not well] == ["login"]
    told = tmp_path / "told"
    line = said["authorized_keys"][1].replace("restrict ", f'restrict,command="touch {told}" ')
    (host.folder / "authorized_keys").write_text(f"{line}\n")
    assert all(well for well, _ in ask(0).values())
    assert not told.exists()  # looking deploys nothing


def spoil_passphrase(key: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-p", "-P", "", "-N", "secret", "-f", key], check=True)


KEYS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "passphrase": (spoil_passphrase, "key: .* has a passphrase"),
    "public half": (lambda key: key.write_text(key.with_suffix(".pub").read_text()), "key: .* is no private key"),
    "no line break": (lambda key: key.write_text(key.read_text().rstrip()), "key: .* a line break at its end"),
    "empty": (lambda key: key.write_text(""), "key: .* is no private key"),
    "dangling": (lambda key: (key.unlink(), key.symlink_to("nowhere")), "key: .* is a link to nothing"),
    "mode": (lambda key: key.chmod(0o644), "mode: .* has mode 0644, .* run: chmod 400"),
    "another": (lambda key: shutil.copy(key.parent.parent / "other", key), "login: .* refuses the key"),
}


@needs_ssh
@pytest.mark.parametrize("name", KEYS)
def test_what_can_be_wrong_with_a_key(login: tuple[forge.Config, str, Path], name: str) -> None:
    config, address, place = login
    spoil, said = KEYS[name]
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", place.parent / "other"], check=True)
    assert all(well for well, _ in checks(config, address).values())
    spoil(place / "id_ed25519")
    assert re.match(said, ": ".join(wrong(config, address)))
    found = [f"{what}: {text}" for what, well, text in forge.examine(config) if what.startswith("ssh ")]
    assert not found or name == "another" or re.match(f"ssh {said}", found[0])


HOSTS: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "unknown": (
        lambda place: (place / "known_hosts").unlink(),
        "",
        "known host: .* has no key of .* compare SHA256:.* run: echo",
    ),
    "stranger": (
        lambda place: (place / "config").write_text("HostKeyAlias x\n"),
        "",
        "known host: .* has no key of x; .* echo 'x ssh-",
    ),
    "config": (
        lambda place: (place / "config").write_text("Frobnicate yes\n"),
        "",
        "config: .*ssh/config is not understood .*frobnicate",
    ),
    "no such user": (lambda _: None, "nobody-here@{}", "login: .* there is no such user, or"),
    "port": (lambda _: None, "127.0.0.1:1", "host: no ssh server answers at .*Connection refused"),
    "name": (lambda _: None, "no-host.invalid", "host: this machine knows no address of no-host.invalid"),
}


@needs_ssh
@pytest.mark.parametrize("name", HOSTS)
def test_what_can_be_wrong_with_a_host(login: tuple[forge.Config, str, Path], name: str) -> None:
    config, address, place = login
    spoil, other, said = HOSTS[name]
    spoil(place)
    found = wrong(config, other.format(address.split("@")[1]) or address)
    assert re.match(said, ": ".join(found), re.IGNORECASE)


@needs_ssh
def test_a_host_that_closes_the_connection_at_once(login: tuple[forge.Config, str, Path]) -> None:
    """Since OpenSSH 9.8, sshd does so for a while after failed logins."""

    def close() -> None:
        with contextlib.suppress(OSError):  # the end of the test
            while True:
                listening.accept()[0].close()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=close, daemon=True).start()
        what, said = wrong(login[0], f"127.0.0.1:{listening.getsockname()[1]}")
        listening.shutdown(socket.SHUT_RDWR)
    assert what == "host" and "closes the connection at once" in said and "PerSourcePenalties" in said


@needs_ssh
def test_a_host_that_has_another_key_now(login: tuple[forge.Config, str, Path]) -> None:
    config, address, place = login
    name = (place / "known_hosts").read_text().split()[0]
    (place / "known_hosts").write_text(f"{name} {(place / 'id_ed25519.pub').read_text()}")
    what, said = wrong(config, address)
    assert what == "known host" and "shows another key" in said and "somebody is in between" in said
    subprocess.run(["sh", "-c", said.split(" run: ")[1]], check=True, capture_output=True)
    assert all(well for well, _ in checks(config, address).values())


@needs_ssh
@pytest.mark.skipif(os.geteuid() == 0, reason="root may read all; tested without rights, too")
def test_the_owner_or_mode_of_a_key(login: tuple[forge.Config, str, Path], host: Sshd) -> None:
    config, address, place = login
    key = place / "id_ed25519"
    key.chmod(0o000)
    assert wrong(config, address)[0] == "mode"
    key.unlink()
    key.symlink_to("/etc/shadow")
    assert wrong(config, address)[0] == "owner"
    place.chmod(0o000)
    try:
        assert "owner" in dict.fromkeys(what for what, (well, _) in checks(config, address).items() if not well)
    finally:
        place.chmod(0o700)


def test_a_host_needs_secrets_and_a_name(make_server: Callable[..., Server]) -> None:
    server = make_server(start=False)
    done = server.cli("doctor", "--ssh", "root@example.org", check=False)
    assert done.returncode == 1 and "FORGE_SECRETS_DIR is not set; set it" in done.stdout
    for name in ("-oProxyCommand=x", "a b", "me@@x", "x:y", "", "me@-x", "host/path"):
        with pytest.raises(forge.Fault):
            forge.ssh_words(name)
    assert forge.ssh_words("ssh://me@[::1]:22/srv/x.git") == ["-p", "22", "-l", "me", "::1"]


def doctor_says(server: Server) -> dict[str, tuple[bool, str]]:
    """What `forge doctor` says of secrets and keys."""
    found = json.loads(server.cli("doctor", "--json", check=False).stdout)["checks"]
    return {one["what"]: (one["ok"], one["text"]) for one in found if one["what"].startswith(("secrets", "ssh "))}


def test_the_doctor_says_which_repo_sees_which_secrets(make_server: Callable[..., Server], lair: Path) -> None:
    keys = lair / "keys"
    server = make_server(start=False, FORGE_SECRETS_DIR=str(keys))
    paths = {name: Path(server.cli("create", name).stdout.strip()) for name in ("app", "lends", "other", "wrong")}
    assert doctor_says(server)["secrets"] == (
        True,
        f"{keys}: deployments of all repos see all of it; a folder repos/ in it gives each its own",
    )
    laid_out(keys)
    for name, setting in (("lends", "app"), ("wrong", "nowhere")):
        subprocess.run(["git", "-C", paths[name], "config", "forge.secrets", setting], check=True)
    said = doctor_says(server)
    assert said["secrets app"] == (True, f"{keys}/repos/app is for app, lends")
    assert not said["secrets web"][0] and said["secrets web"][1].startswith(
        f"{keys}/repos/web belongs to no repo; run: forge create web"
    )
    assert said["secrets"] == (True, f"other: no secrets, as {keys}/repos has no folder of that name")
    assert not said["secrets wrong"][0] and "there is no folder" in said["secrets wrong"][1]
    server.settings.pop("FORGE_SECRETS_DIR")
    assert set(doctor_says(server)) == {"secrets lends", "secrets wrong"}


def test_the_doctor_says_what_everybody_can_read(make_server: Callable[..., Server], lair: Path) -> None:
    keys = laid_out(lair / "keys")
    server = make_server(start=False, FORGE_SECRETS_DIR=str(keys))
    server.cli("create", "other")
    assert "everybody" not in str(doctor_says(server)), "nobody else comes into the folder above"
    lair.chmod(0o755)
    (said,) = [text for well, text in doctor_says(server).values() if "everybody" in text and not well]
    assert said.startswith(str(keys)) and "everybody on this machine, and so can 2 other files; run: chmod o= " in said
    for file in keys.rglob("token"):
        file.chmod(0o600)
    assert "everybody" not in str(doctor_says(server))


@needs_ssh
def test_the_doctor_looks_at_the_keys_of_each_repo(make_server: Callable[..., Server], host: Sshd, lair: Path) -> None:
    keys = lair / "keys"
    host.secrets(keys)
    server = make_server(start=False, FORGE_SECRETS_DIR=str(keys))
    address = f"{host.user}@127.0.0.1:{host.port}"

    def tried() -> tuple[int, dict[str, tuple[bool, str]]]:
        done = server.cli("doctor", "--ssh", address, "--json", check=False)
        return done.returncode, {one["what"]: (one["ok"], one["text"]) for one in json.loads(done.stdout)["checks"]}

    for name in ("app", "web"):
        server.cli("create", name)
        (keys / "repos" / name).mkdir(parents=True)
    well, said = doctor_says(server)["secrets"]
    assert (
        not well and said.startswith(f"{keys}/ssh is seen by no job") and said.endswith(f"ln -s ../../ssh {keys}/repos/REPO/ssh")
    )
    code, found = tried()
    assert code == 1 and found["secrets"][1].endswith(f"install -d -m 700 {keys}/repos/REPO/ssh")
    (keys / "repos/app/ssh").symlink_to("../../ssh")
    assert "secrets" not in doctor_says(server) and doctor_says(server)["ssh key of app"][0]
    code, found = tried()
    assert code == 0 and found["app: login"] == (True, "the key lets in; no command was run")
    (keys / "repos/web/ssh").mkdir()
    code, found = tried()  # it has a key of its own now, which that host does not know
    assert found["web: new key"][0] and (keys / "repos/web/ssh/id_ed25519").exists() and not found["web: known host"][0]
    assert code == 0, "one of them gets in"
    shutil.copy(keys / "ssh/known_hosts", keys / "repos/web/ssh")
    assert [what for what, (well, _) in tried()[1].items() if not well] == ["web: login"]
    (keys / "ssh/id_ed25519").unlink()
    assert "ssh key of app" not in doctor_says(server) and tried()[0] == 1


# -- masking -------------------------------------------------------------------------------------------


def test_what_of_a_secret_is_masked() -> None:
    pem = b"-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk\n/abs/likeBase64+\n-----END OPENSSH PRIVATE KEY-----\n"
    assert list(forge.secret_texts(pem)) == [b"b3BlbnNzaC1rZXk", b"/abs/likeBase64+"]
    assert list(forge.secret_texts(b"true\nshort\n\n  pass-word \r\nPassword\n=========\n/etc/passwd\n")) == [b"pass-word"]
    assert list(forge.secret_texts(b"export API_KEY='abc def 1'\n")) == [b"export API_KEY='abc def 1'", b"abc def 1"]
    long = bytes(32 + number % 90 for number in range(1000))
    parts = list(forge.secret_texts(long))
    assert b"".join(parts) == long.strip() and all(8 <= len(part) <= 264 for part in parts)


def test_which_files_hold_secrets(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    (keys / "ssh").mkdir(parents=True)
    for name in ("ssh/id_ed25519", "ssh/id_ed25519.pub", "ssh/known_hosts", "ssh/config", "config", "token"):
        (keys / name).touch()
    shutil.copytree(keys / "ssh", keys / "repos/app/ssh")
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "round").mkdir(parents=True)
    (elsewhere / "key").touch()
    links = {"again": keys / "ssh", "elsewhere": elsewhere, "out": Path("/"), "repos/up": keys, "repos/same": keys / "repos"}
    for name, target in {**links, "elsewhere/round/loop": elsewhere}.items():
        (keys / name).symlink_to(target)
    found = [path.resolve().relative_to(tmp_path) for path in forge.secret_files(keys)]
    named = ["elsewhere/key", "keys/config", "keys/repos/app/ssh/id_ed25519", "keys/ssh/id_ed25519", "keys/token"]
    assert sorted(map(str, found)) == named, "each once, whatever leads to it; nothing of what lies above"


TEXTS = st.lists(st.text("abcde", min_size=8, max_size=14).filter(lambda text: len(set(text)) == 5), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(TEXTS, st.data())
def test_no_reader_ever_sees_a_secret(tmp_path_factory: pytest.TempPathFactory, texts: list[str], data: st.DataObject) -> None:
    """However a log is written, whenever it is looked at, and whoever is killed in between."""
    folder = tmp_path_factory.mktemp("mask")
    (folder / "keys").mkdir()
    (folder / "keys/all").write_text("\n".join(texts))
    config = forge.Config(folder)
    pieces = st.one_of(st.sampled_from(texts), st.sampled_from([text[:-1] for text in texts]), st.text("abcde\n", max_size=9))
    whole = "".join(data.draw(st.lists(pieces, max_size=12))).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    raw, served = folder / "raw", folder / "logs/served"
    raw.touch()
    mask = forge.Mask(config, raw, served, [folder / "keys"])
    for start, stop in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        with open(raw, "ab") as file:
            file.write(whole[start:stop])
        mask.copy()
        seen = served.read_bytes()
        assert not any(text.encode() in seen for text in texts)
        if data.draw(st.booleans()):  # killed while it wrote
            os.truncate(served, data.draw(st.integers(max(0, len(seen) - 5), len(seen))))
            mask = forge.Mask(config, raw, served, [folder / "keys"])
    mask.copy(ended=True)
    hidden = {
        place + n
        for text in texts
        for place in range(len(whole))
        if whole.startswith(text.encode(), place)
        for n in range(len(text))
    }
    expected = bytes(ord("*") if place in hidden else byte for place, byte in enumerate(whole))
    assert served.read_bytes() == expected


def test_a_secret_that_changes_stays_one(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    raw, served = tmp_path / "raw", tmp_path / "served"
    raw.write_bytes(b"")
    (tmp_path / "keys/token").write_text("first-token\n")
    mask = forge.Mask(forge.Config(tmp_path, password="pass word"), raw, served, [tmp_path / "keys"])
    mask.copy()
    (tmp_path / "keys/token").write_text("other-token\n")
    raw.write_bytes(b"first-token other-token pass word first-tok")
    mask.copy()
    assert served.read_bytes() == b"*********** *********** ********* "
    mask.copy(ended=True)
    assert served.read_bytes() == b"*********** *********** ********* first-tok"
    raw.write_bytes(b"anew\n")  # cut, as by `>/dev/stdout`
    mask.copy()
    assert served.read_bytes() == b"anew\n"


def test_a_large_log_is_masked_where_blocks_meet(tmp_path: Path) -> None:
    raw, served = tmp_path / "raw", tmp_path / "served"
    line = b"x" * 1021 + b"\n" + b"the-secret"
    raw.write_bytes(line * 1000)
    forge.Mask(forge.Config(tmp_path, password="the-secret"), raw, served, []).copy(ended=True)
    assert served.read_bytes() == line.replace(b"the-secret", b"*" * 10) * 1000


KEY_TEXT = "tok-3f9a-77\nsecond-line-of-it\n"
HALVES = f"""printf 'a tok-3f'
until [ -e {{gate}} ]; do sleep 0.02; done
printf '9a-77 b\\nsecond-line-of-it {PASSWORD}\\n'
printf tok-3f
exit 3
"""


def served_by(server: Server, job_id: int) -> list[bytes]:
    """What each reader of a log is shown."""
    log = f"/jobs/{job_id}/log"
    paths = [log, f"{log}?offset=0", f"{log}?line=1", f"{log}?before=99", f"{log}?find=tok", "/search?q=tok", f"/jobs/{job_id}"]
    found = [server.ask(path).body for path in paths]
    found += [server.ask(log, Range="bytes=2-").body, server.ask(f"/jobs/{job_id}", Accept="text/html").body]
    return [*found, server.cli("log", str(job_id)).stdout.encode()]


@pytest.mark.parametrize("killed", [False, True])
def test_secrets_in_the_log_of_a_deployment_are_stars(make_server: Callable[..., Server], tmp_path: Path, killed: bool) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys/token").write_text(KEY_TEXT)
    server = make_server(FORGE_SECRETS_DIR=str(tmp_path / "keys"), FORGE_SANDBOX="none")
    work = server.repo()
    gate = tmp_path / "gate"
    work.branch("main", deploy=HALVES.format(gate=gate))
    waits: list[str] = []
    pusher = threading.Thread(target=lambda: waits.append(work.push("HEAD:main", options=("wait",))))
    pusher.start()
    job_id = wait_for(lambda: server.get("/jobs?kind=post-merge&status=running")["jobs"], "the deployment")[0]["id"]
    wait_for(lambda: server.job_log(job_id) == b"a ", "the beginning of the log")
    assert not any(
        b"tok" in answer.replace(b'find": "tok', b"").replace(b'query": "tok', b"") for answer in served_by(server, job_id)[:7]
    )
    assert server.get(f"/jobs/{job_id}")["log_size"] == 2
    if killed:
        server.stop(signal.SIGKILL)
        gate.touch()
        wait_for((server.data / f"running/{job_id}/exit").exists, "the end of the job")
        server.settings["FORGE_PORT"] = server.url.rsplit(":", 1)[1]
        server.start()
    gate.touch()
    job = server.ended(job_id)
    masked = b"a *********** b\n***************** *************\ntok-3f"
    assert (server.data / f"logs/app/{job_id}.log").read_bytes() == masked == server.job_log(job_id)
    assert job["log_size"] == len(masked) and "line-of-it" not in job["digest"] and "tok-3f" in job["digest"]
    pusher.join()
    for answer in [*served_by(server, job_id), waits[0].encode(), (server.data / "jobs.jsonl").read_bytes()]:
        assert b"tok-3f9" not in answer and b"second-line" not in answer and PASSWORD.encode() not in answer
    wait_for(lambda: not (server.data / f"running/{job_id}").exists(), "what it printed to be gone")


@contextlib.contextmanager
def waiting(lair: Path, sandbox: str, script: str) -> Iterator[tuple[Server, Work, int, Path]]:
    """A deployment of app that has printed something and waits: (server, repo, its id, the file it waits for)."""
    (lair / "home").mkdir()
    environ = {"HOME": str(lair / "home"), "FORGE_SECRETS_DIR": str(laid_out(lair / "keys")), "FORGE_SANDBOX": sandbox}
    server = Server(lair / "data", environ).start()
    try:
        work = server.repo()
        work.branch("main", deploy=script.replace("WAIT", "until [ -e ~/gate ]; do sleep 0.02; done"))
        work.push("HEAD:main")
        find = lambda: server.get("/jobs?kind=post-merge&status=running")["jobs"]  # noqa: E731
        job_id = wait_for(find, "the deployment")[0]["id"]
        wait_for(lambda: server.job_log(job_id), "what it prints first")
        yield server, work, job_id, server.data / "home/app/post-merge/gate"
    finally:
        end(server)


@pytest.mark.parametrize("sandbox", [pytest.param("bwrap", marks=needs_bwrap), "none"])
def test_masked_is_what_a_deployment_can_read_and_nothing_that_would_tell_it_more(lair: Path, sandbox: str) -> None:
    """A star that stands for the secret of another repo, or a moment's wait, would say that a guess is right."""
    boxed, own = sandbox == "bwrap", b"*" * len("the-token-of-app") + b"\n"
    script = "echo the-token-of-app; printf the-token-of-w; WAIT; echo eb\n"
    with waiting(lair, sandbox, script) as (server, _, job_id, gate):
        shown = own + (b"the-token-of-w" if boxed else b"")
        wait_for(lambda: server.job_log(job_id) == shown, "what it has printed")
        gate.touch()
        server.ended(job_id)
        assert server.job_log(job_id) == own + (b"the-token-of-web\n" if boxed else own)


@needs_bwrap
def test_what_a_deployment_began_with_is_masked_whatever_its_repo_is_told_meanwhile(lair: Path) -> None:
    """The next server, which takes it over, knows the folder from the journal."""
    with waiting(lair, "bwrap", 'echo begun; WAIT; cat "$FORGE_SECRETS_DIR/token"\n') as (server, work, job_id, gate):
        server.stop(signal.SIGKILL)
        work.bare("config", "forge.secrets", "web")
        server.start()
        assert f"job {job_id} still runs" in server.log
        (started,) = [record for record in server.journal() if record["event"] == "job.started" and record["id"] == job_id]
        assert started["secrets"] == "app" and "secrets" not in server.get(f"/jobs/{job_id}")
        gate.touch()
        server.ended(job_id)
        assert server.job_log(job_id) == b"begun\n****************\n"


def test_without_secrets_a_deployment_writes_its_log_itself(make_server: Callable[..., Server]) -> None:
    server = make_server(FORGE_MERGE_PASSWORD="")
    work = server.repo()
    gate = server.data / "home/app/post-merge/gate"
    work.branch("main", deploy="echo begun; until [ -e ~/gate ]; do sleep 0.02; done\n")
    work.push("HEAD:main")
    job = wait_for(lambda: server.get("/jobs?kind=post-merge&status=running")["jobs"], "the deployment")[0]
    wait_for(lambda: server.job_log(job["id"]) == b"begun\n", "the log")
    assert not (server.data / f"running/{job['id']}/log").exists()
    gate.touch()
    server.ended(job["id"])


# -- the merge password --------------------------------------------------------------------------------


def test_the_password_of_systemd_and_what_may_stand_in_its_file(make_server: Callable[..., Server], tmp_path: Path) -> None:
    (tmp_path / "merge-password").write_text("from systemd\r\n")
    server = make_server(CREDENTIALS_DIRECTORY=str(tmp_path))  # wins over FORGE_MERGE_PASSWORD
    for tried, status in (("from systemd", 200), ("from systemd\r", 401), (PASSWORD, 401)):
        assert server.ask("/login", {"password": tried}).status == status
    for content, status, said in ((b"", 401, "is empty"), (b"\n", 401, "is empty"), (b"\xff\xfe\n", 503, "no UTF-8")):
        (tmp_path / "merge-password").write_bytes(content)
        answer = server.ask("/login", {"password": "from systemd"})
        assert answer.status == status and said in answer.json["error"] and "FORGE_MERGE_PASSWORD_FILE" in answer.json["error"]
        assert "no UTF-8" in server.cli("doctor", check=False).stdout
    (tmp_path / "merge-password").unlink()
    answer = server.ask("/login", {"password": "from systemd"})
    assert answer.status == 503 and "No such file" in answer.json["error"]
    (tmp_path / "merge-password").write_text("  spaces stay \nnext line")
    assert server.ask("/login", {"password": "  spaces stay \nnext line"}).status == 200
