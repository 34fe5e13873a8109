"""More than one machine: what a job has to build is built on another, reached over ssh, with a /nix of its own."""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import NIX_CONFIG, Server, Sshd, Work, clean_environ, needs_nix, needs_ssh, wait_for
from test_sandbox import needs_bwrap

import forge

pytestmark = [
    needs_nix,
    needs_ssh,
    pytest.mark.skipif(os.geteuid() != 0, reason="not root: a mount namespace with a /nix of its own cannot be made"),
]
# The program says where it was made. Its name is in it, so that no test finds what another has built.
FLAKE = """{
  outputs = { self }: let system = "%(system)s"; in {
    apps.${system}.pre-merge = {
      type = "app";
      program = "${derivation {
        name = "%(name)s";
        inherit system;
        builder = "/bin/sh";
        args = [ "-c" "echo \\"#!/bin/sh\\necho made beside $(stat -c %%i /nix/.)\\" >$out; chmod +x $out" ];
        PATH = "/bin:/usr/bin";
      }}";
    };
  };
}
"""


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Sshd]:
    """A second machine, as far as Nix can tell: an sshd in a mount namespace with an empty /nix, whose key is for builds only."""
    nix = tmp_path / "far-nix"
    nix.mkdir()
    serve = tmp_path / "serve"
    serve.write_text(f"#!/bin/sh\nexport NIX_CONFIG='{NIX_CONFIG}'\nexec nix-store --serve --write\n")
    serve.chmod(0o755)
    host = Sshd(tmp_path / "far", wrapper=("unshare", "-m", "sh", "-c", 'mount --bind "$0" /nix && exec "$@"', str(nix)))
    host.start()
    host.allow(f'command="{serve}",restrict')
    yield host
    host.stop()


def builders(host: Sshd, key: Path) -> dict[str, str]:
    """The settings of a forge that builds nothing itself: one line names the builder, its key and its host key."""
    host_key = base64.b64encode((host.folder / "host_key.pub").read_bytes()).decode()
    line = f"ssh://{host.user}@127.0.0.1 {forge.nix_system()} {key} 2 1 - - {host_key}"
    # Nix 2.8 takes no port in the address, and looks for the host key without it
    ssh = f"-p {host.port} -o HostKeyAlias=127.0.0.1 -o BatchMode=yes"
    return {"NIX_CONFIG": f"{NIX_CONFIG}max-jobs = 0\nbuilders = {line}\n", "NIX_SSHOPTS": ssh}


@pytest.mark.parametrize("sandbox", ["auto", "none"])
def test_a_job_is_built_on_the_other_machine(make_server: Callable[..., Server], far: Sshd, tmp_path: Path, sandbox: str) -> None:
    # without a Nix daemon it is the job that logs in: the key lies where jobs can read it, here in their HOME
    key = tmp_path / "data" / "home" / "app" / "pre-merge" / "builder-key"
    work = make_server(FORGE_SANDBOX=sandbox, **builders(far, key)).repo("app")
    key.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(far.folder / "id_ed25519", key)

    job = work.server.ended(push_flake(work, f"one-{sandbox}"))
    log = work.server.job_log(job["id"]).decode()
    assert job["status"] == "passed", log
    assert re.search(rf"building '/nix/store/[a-z0-9]+-one-{sandbox}-[0-9]+\.drv' on 'ssh://{far.user}@127\.0\.0\.1'", log), log
    assert f"made beside {(tmp_path / 'far-nix').stat().st_ino}\n" in log, log
    assert [path.name for path in (tmp_path / "far-nix" / "store").glob(f"*-one-{sandbox}-*")], "it stays in the store over there"

    far.stop()
    job = work.server.ended(push_flake(work, f"two-{sandbox}"))
    log = work.server.job_log(job["id"]).decode()
    assert job["status"] == "failed" and "Connection refused" in log and "unable to start any build" in log.lower(), log


@pytest.fixture
def near(tmp_path: Path, far: Sshd) -> Iterator[tuple[str, ...]]:
    """What puts a command onto a machine with a /nix of its own and a Nix daemon, which alone knows of the builder."""
    nix = tmp_path / "near-nix"
    nix.mkdir()
    key = far.folder / "id_ed25519"  # below /tmp, where no job in the sandbox comes to
    machine = ["unshare", "-m", "sh", "-c", 'mount --bind "$0" /nix && exec nix-daemon', str(nix)]
    with subprocess.Popen(machine, env=clean_environ() | builders(far, key), stderr=subprocess.DEVNULL) as daemon:
        try:
            wait_for((nix / "var/nix/daemon-socket/socket").exists, "the start of the Nix daemon")
            yield ("nsenter", "-m", "-t", str(daemon.pid))
        finally:
            daemon.kill()


@needs_bwrap
def test_with_a_daemon_jobs_need_no_key(
    make_server: Callable[..., Server], near: tuple[str, ...], far: Sshd, tmp_path: Path
) -> None:
    server = make_server(start=False, FORGE_SANDBOX="bwrap", NIX_REMOTE="daemon")
    server.wrapper = near
    work = server.start().repo("app")
    job = server.ended(push_flake(work, "daemon"))
    log = server.job_log(job["id"]).decode()
    assert job["status"] == "passed" and f"on 'ssh://{far.user}@127.0.0.1'" in log, log
    assert f"made beside {(tmp_path / 'far-nix').stat().st_ino}\n" in log, log


def push_flake(work: Work, name: str) -> int:
    work.branch(name)
    work.git("rm", "-rq", ".forge")
    unique = f"{name}-{work.git('log', '-1', '--format=%ct')}"
    work.commit("Only the flake", **{"flake.nix": FLAKE % {"system": forge.nix_system(), "name": unique}})
    return work.push_job(name)
