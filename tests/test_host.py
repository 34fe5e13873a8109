"""The stand-ins for other machines are what they say: a real sshd, whose forced commands bind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from conftest import Sshd, needs_ssh

pytestmark = needs_ssh


def test_a_host_lets_in_who_it_knows_and_runs_what_the_key_is_for(make_sshd: Callable[..., Sshd], tmp_path: Path) -> None:
    host = make_sshd()
    assert "Permission denied" in host.run("echo in").stderr
    host.allow(f'command="cat >>{tmp_path}/told; echo $SSH_ORIGINAL_COMMAND >>{tmp_path}/told"')
    assert host.run("deploy now", text="this\n").returncode == 0
    assert (tmp_path / "told").read_text() == "this\ndeploy now\n"
