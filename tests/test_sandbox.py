"""Jobs in their box: what a hostile branch can see and do, as root and as an ordinary user, with real bubblewrap."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import AUTO, FORGE, ROOT, Server, Work, clean_environ, end, needs_nix, wait_for
from test_nix import flake

import forge

# setpriv itself still finds a program by root's rights; env does not
NOBODY = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "env")


def why_not_here() -> str | None:
    """Why the sandbox cannot be tested here, or None."""
    if not shutil.which("bwrap"):
        return None if os.environ.get("FORGE_TEST_REQUIRE_BWRAP") else "bubblewrap is not installed: the sandbox is not tested"
    tried = subprocess.run(
        ["bwrap", "--unshare-pid", "--ro-bind", "/", "/", "--proc", "/proc", "true"], capture_output=True, text=True
    )
    return f"bubblewrap does not work here, the sandbox is not tested: {tried.stderr.strip()}" if tried.returncode else None


NOT_HERE = why_not_here()
needs_bwrap = pytest.mark.skipif(NOT_HERE is not None, reason=str(NOT_HERE))


# -- the argument list, as a table ----------------------------------------------------------------

CONFIG = forge.Config(Path("/srv/forge"), secrets_dir=Path("/etc/keys"))
SLOT = CONFIG.data_dir / "work/app/1"
LAUNCH = forge.Launch(
    "pre-merge",
    SLOT / "tree",
    CONFIG.data_dir / "running/7",
    SLOT,
    {},
    CONFIG.repo("app"),
    CONFIG.data_dir / "home/app/pre-merge",
)
AROUND = forge.Surroundings("/bin/bwrap", False, folders=(CONFIG.data_dir, Path("/home/git")), tmp=(Path("/tmp"),))


def mounts(launch: forge.Launch = LAUNCH, config: forge.Config = CONFIG, **around: object) -> list[str]:
    """What is mounted after /, /dev and /proc, an option with its words each, in order."""
    words = forge.sandbox_args(config, launch, replace(AROUND, **around))  # type: ignore[arg-type]
    assert words[-1] == "--"
    text = " ".join(words[words.index("--unshare-user") + 1 : -1])
    return [f"--{part.strip()}" for part in text.split("--")[1:]]


def test_what_a_pre_merge_job_sees() -> None:
    data = CONFIG.data_dir
    assert mounts() == [
        "--tmpfs /home/git",
        f"--tmpfs {data}",
        f"--ro-bind {data}/bin {data}/bin",
        f"--bind {data}/home/app/pre-merge {data}/home/app/pre-merge",
        f"--ro-bind {data}/repos {data}/repos",
        f"--bind {SLOT}/tree {SLOT}/tree",
        f"--bind {SLOT}/tmp /tmp",
        "--remount-ro /home/git",
        f"--remount-ro {data}",
    ]


def test_what_a_post_merge_job_sees_beside_it() -> None:
    data, keys = CONFIG.data_dir, (Path("/etc/keys"), Path("/etc/keys"))
    hidden = (*AROUND.folders, keys[0], Path("/run/agenix.d"))
    linked = (Path("/run/agenix.d/4/key"), Path("/run/agenix.d/4/key"))
    around = {"folders": hidden, "secrets": (keys, linked)}
    pre, post = mounts(**around), mounts(replace(LAUNCH, kind="post-merge"), **around)
    assert "--tmpfs /etc/keys" in pre and "--tmpfs /etc/keys" not in post
    assert set(post) - set(pre) == {
        f"--bind {data}/repos {data}/repos",
        f"--bind {data}/incoming {data}/incoming",
        *(
            f"--ro-bind-try {data}/{name} {data}/{name}"
            for name in ("hook-token", "hook-header", "address", "running/7/ssh_config")
        ),
        "--ro-bind /run/agenix.d/4/key /run/agenix.d/4/key",
    }


@pytest.mark.parametrize(
    ("around", "there", "missing"),
    [
        ({"folders": (Path("/srv"), CONFIG.data_dir)}, ["--tmpfs /srv"], ["--tmpfs /srv/forge"]),  # data dir in the home
        ({"folders": (CONFIG.data_dir,)}, ["--tmpfs /srv/forge"], []),  # data dir is the home
        ({"files": (Path("/home/git/pw"),)}, [], ["--ro-bind /dev/null /home/git/pw"]),
        ({"files": (Path("/etc/pw"),)}, ["--ro-bind /dev/null /etc/pw"], []),
        # a secret inside what is shown again stays hidden
        ({"files": (CONFIG.repos / "pw",)}, [f"--ro-bind /dev/null {CONFIG.repos}/pw"], []),
        ({"programs": ((Path("/usr/bin"), Path("/usr/bin")),)}, [], ["--ro-bind /usr/bin /usr/bin"]),
        ({"programs": ((Path("/home/git"), Path("/home/git")),)}, ["--tmpfs /home/git"], ["--ro-bind /home/git /home/git"]),
        ({"programs": ((Path("/nix/p"), Path("/home/git/.p")),)}, ["--ro-bind /nix/p /home/git/.p"], []),
        ({"programs": ((Path("/tmp/b"), Path("/tmp/b")),)}, ["--ro-bind /tmp/b /tmp/b"], []),
        ({"nix": ((Path("/nix"), Path("/nix")),), "nix_writable": True}, ["--bind /nix /nix"], []),
        ({"nix": ((Path("/nix"), Path("/nix")),)}, [], ["--ro-bind /nix /nix", "--bind /nix /nix"]),
        ({"nix": ((Path("/tmp/n"), Path("/tmp/n")),)}, ["--ro-bind /tmp/n /tmp/n"], ["--bind /tmp/n /tmp/n"]),
    ],
)
def test_what_lies_in_what(around: dict[str, object], there: list[str], missing: list[str]) -> None:
    made = mounts(**around)
    assert set(there) <= set(made) and not set(missing) & set(made), made


def test_mounts_go_from_outer_to_inner() -> None:
    inner = Path("/srv/forge/deep/er")
    made = [
        line.split()[-1] for line in mounts(folders=(inner, Path("/srv"), CONFIG.data_dir), files=(CONFIG.repos / "a" / "b",))
    ]
    places = [Path(place) for place in made if f"--remount-ro {place}" not in made]
    first = {place: number for number, place in reversed(list(enumerate(places)))}
    assert all(first[parent] < first[place] for place in first for parent in place.parents if parent in first)


def test_root_keeps_few_rights_and_others_get_a_user_namespace() -> None:
    root = forge.sandbox_args(CONFIG, LAUNCH, replace(AROUND, root=True))
    assert "--unshare-user" not in root and root[root.index("--cap-drop") + 1] == "ALL"
    kept = {root[number + 1] for number, word in enumerate(root) if word == "--cap-add"}
    assert not kept & {"CAP_SYS_ADMIN", "CAP_MKNOD", "CAP_DAC_READ_SEARCH", "CAP_SYS_PTRACE", "CAP_NET_ADMIN"}
    assert " ".join(root).count("/proc/sys /proc/sys") == 1
    assert "--unshare-user" in forge.sandbox_args(CONFIG, LAUNCH, AROUND)


@pytest.mark.parametrize(
    ("home", "private"),
    [("/", 0), ("/usr/sbin", 0), ("/bin", 0), ("/dev", 0), ("/home", 0), ("/var", 0), ("/nix/store", 0), ("/tmp", 0)]
    + [("/root", 1), ("/home/git", 1), ("/var/lib/forge", 1), ("/forge", 1), ("/srv/git", 1), ("/var/empty", 1)],
)
def test_which_homes_are_hidden(home: str, private: int) -> None:
    assert forge.is_private_home(home) == bool(private)


def test_links_are_followed_as_a_job_would(tmp_path: Path) -> None:
    home, store = tmp_path / "home", tmp_path / "store"
    (home / "own").mkdir(parents=True), (store / "bin").mkdir(parents=True)
    (home / "profile").symlink_to(store)
    (tmp_path / "link").symlink_to(home)
    for path, place in (
        (tmp_path / "link/profile/bin", home / "profile/bin"),
        (home / "own", home / "own"),
        (tmp_path / "link", home),
        (store / "bin", store / "bin"),
    ):
        assert forge.seen_at(path, {home}) == place


def test_secrets_are_followed_to_where_they_are_kept(tmp_path: Path) -> None:
    (tmp_path / "kept/4").mkdir(parents=True), (tmp_path / "secrets/ssh").mkdir(parents=True)
    (tmp_path / "kept/4/key").write_text("secret")
    (tmp_path / "now").symlink_to(tmp_path / "kept/4")
    (tmp_path / "secrets/ssh/id").symlink_to(tmp_path / "now/key")
    (tmp_path / "secrets/gone").symlink_to(tmp_path / "nothing")
    config = forge.Config(tmp_path / "data", secrets_dir=tmp_path / "secrets")
    around = forge.look_around(config, "bwrap", {"HOME": str(tmp_path)}, config.secrets_dir)
    assert around.secrets == ((tmp_path / "secrets",) * 2, (tmp_path / "kept/4/key", tmp_path / "now/key"))
    assert {tmp_path / "secrets", tmp_path} <= set(around.folders)


def test_secrets_are_followed_through_folders_that_are_links(tmp_path: Path) -> None:
    """What is in them is hidden by itself, where the folder is open to all; what cannot be looked at stops nothing."""
    secrets, kept = tmp_path / "secrets", tmp_path / "kept"
    (secrets / "repos").mkdir(parents=True), (kept / "app/ssh").mkdir(parents=True)
    (kept / "app/hosts").write_text("known to all")
    for name in ("app/token", "key"):
        (kept / name).write_text("secret")
        (kept / name).chmod(0o600)
    (secrets / "repos/app").symlink_to(kept / "app")
    (secrets / "repos/round").symlink_to(secrets)
    (secrets / "repos/barred").symlink_to("/proc/1/cwd")
    (secrets / "repos/machine").symlink_to("/")
    (kept / "app/ssh/id").symlink_to(kept / "key")
    config = forge.Config(tmp_path / "data", secrets_dir=secrets)
    around = forge.look_around(config, "bwrap", {}, secrets / "repos/app")
    assert secrets in around.folders and {kept / "app/token", kept / "key"} <= set(around.files)
    own = {secrets / "repos/app": kept / "app", kept / "app": kept / "app"}
    own |= {place: place for place in (kept / "app/token", kept / "key")}
    assert {place: what for what, place in around.secrets} == own
    assert forge.look_around(config, "bwrap", {}, None).secrets == ()


def test_a_home_that_cannot_be_looked_at_needs_no_hiding() -> None:
    around = forge.look_around(CONFIG, "bwrap", {"HOME": "/root/nothing/here"}, None)
    assert Path("/root/nothing/here") not in around.folders


# -- a hostile branch --------------------------------------------------------------------------------


class Lair:
    """A server outside of /tmp, whose user has a home and secrets."""

    def __init__(self, root: Path):
        self.root = root
        for folder in ("home", "secrets", "kept"):
            (root / folder).mkdir()
        (root / "home/private").write_text("private\n")
        (root / "kept/key").write_text("the key\n")
        (root / "secrets/key").symlink_to(root / "kept/key")
        (root / "password").write_text("correct horse\n")
        self.settings = {"HOME": str(root / "home"), "FORGE_SECRETS_DIR": str(root / "secrets")}
        self.settings["FORGE_MERGE_PASSWORD_FILE"] = str(root / "password")

    def server(self, name: str, **settings: str) -> Server:
        return Server(self.root / name, {"FORGE_MAX_JOBS": "2", **self.settings, **settings}).start()


@pytest.fixture(scope="module")
def lair() -> Iterator[Lair]:
    """A place that no job gets a /tmp of its own over, where there is one that can be written."""
    homes = [place for place in ("/var/lib", os.path.expanduser("~")) if os.access(place, os.W_OK)]
    root = Path(tempfile.mkdtemp(prefix="forge-test-", dir=homes[0] if homes else None))
    yield Lair(root)
    shutil.rmtree(root)


@pytest.fixture(scope="module")
def boxed(lair: Lair) -> Iterator[Server]:
    server = lair.server("boxed", FORGE_SANDBOX="bwrap")
    yield server
    end(server)


@pytest.fixture(scope="module")
def bare(lair: Lair) -> Iterator[Server]:
    server = lair.server("bare", FORGE_SANDBOX="none")
    yield server
    end(server)


INSIDE = "see inside"  # what root alone can do, whatever the server does


def launcher_of(server: psutil.Process) -> psutil.Process:
    """The process of a server that starts jobs."""
    (found,) = [process for process in server.children() if "-I" in process.cmdline()]
    return found


def tries(server: Server, own: psutil.Process, work: Work, root: Path, outside: str) -> dict[str, str]:
    """What a hostile job tries, by name; none of it harms a server that lets it.

    `own` is the server's process, `root` holds what its user has, `outside` is a file in /tmp.
    """
    data, repo = server.data, work.path
    wanted = {
        "move a ref": f"git --git-dir={repo} update-ref refs/tags/evil HEAD",
        "write a hook": f": >>{repo}/hooks/post-receive",
        "write the config": f": >>{repo}/config",
        "write an object": f"mkdir -p {repo}/objects/zz",
        "push by path": f"git push -q {repo} HEAD:refs/tags/evil-too",
        "be in another repo": f": >>{data}/repos/other.git/HEAD",
        "see its own index": "cat ../index",
        "see another checkout": f"ls {data}/work/other/1/tree",
        "see another repo's home": f"ls {data}/home/other",
        "see the other kind's home": f"ls {data}/home/{work.name}/post-merge",
        "see the server's home": f"cat {root}/home/private",
        "see the password": f"grep . {root}/password",
        "see the secrets": f"cat {root}/secrets/key",
        "write another repo's list of objects": f"mkdir -p {repo}/objects/info && : >>{repo}/objects/info/alternates",
        "link to the token": f"ln -s {data}/token link && cat link",
        "keep the token by a hard link": f"ln {data}/token hard",
        "see its own log's folder": f"ls {data}/logs/{work.name}",
        "signal the server": f"kill -0 {own.pid}",
        "see other processes": f"[ -e /proc/{os.getpid()} ]",
        "see the files of /tmp": f"ls {outside}",
    }
    for name in ("token", "hook-token", "hook-header", "session-key", "address", "jobs.jsonl", "lock"):
        wanted[f"read {name}"] = f"cat {data}/{name}"
    for process, who in ((own, "the server"), (launcher_of(own), "the launcher")):
        wanted |= {
            f"{INSIDE} {who}'s environment": f"cat /proc/{process.pid}/environ",
            f"{INSIDE} {who}'s memory": f": </proc/{process.pid}/mem",
            f"{INSIDE} {who}'s files": f"ls /proc/{process.pid}/fd/ && cat /proc/{process.pid}/root{data}/token",
            f"{INSIDE} {who} as a debugger": f"perl -e 'exit(syscall(101, 0x4206, {process.pid}, 0, 0) != 0)'",  # PTRACE_SEIZE
        }
    for name in ("logs", "running", "incoming", "trash"):
        wanted[f"list {name}"] = f"ls {data}/{name}"
    return wanted


def script_of(wanted: dict[str, str]) -> str:
    """A script that says of each try whether it went."""
    return "".join(
        f"if (set -e; {command}) >/dev/null 2>&1; then echo {shlex.quote(name)}: yes; else echo {shlex.quote(name)}: no; fi\n"
        for name, command in wanted.items()
    )


def answers(server: Server, job_id: int) -> dict[str, str]:
    """What such a script said."""
    server.ended(job_id)
    return dict(line.split(": ", 1) for line in server.job_log(job_id).decode().splitlines())


def hostile(server: Server, lair: Lair, name: str) -> dict[str, str]:
    """Let a branch try all, and return what it said. There is another repo with a checkout and a home to be seen."""
    if not (server.data / "repos/other.git").exists():
        server.repo("other")
    work = server.repo(name)
    assert server.process
    with tempfile.NamedTemporaryFile(dir="/tmp") as outside:
        work.branch("evil", run=script_of(tries(server, psutil.Process(server.process.pid), work, lair.root, outside.name)))
        return answers(server, work.push_job("evil"))


@needs_bwrap
def test_a_hostile_branch_sees_and_changes_nothing(boxed: Server, lair: Lair) -> None:
    said = hostile(boxed, lair, "app")
    assert {name for name, answer in said.items() if answer == "yes"} == set(), said
    assert len(said) == 39


def test_without_the_sandbox_all_of_it_goes(bare: Server, lair: Lair) -> None:
    """That these tries can succeed is what makes their failing worth something."""
    said = hostile(bare, lair, "app")
    root_alone = {name for name in said if name.startswith(INSIDE)} if os.geteuid() else set()
    assert {name for name, answer in said.items() if answer == "no"} == root_alone, said


ESCAPES = {
    "make / writable": "mount -o remount,rw,bind /; : >/etc/forge-was-here",
    "take a mount away": "umount {data}; cat {data}/token",
    "mount over it": "unshare -m umount {data}; cat {data}/token",
    "a namespace of its own": "unshare -Ur -m sh -c 'umount {data} || umount -l {data}; cat {data}/token'",
    "a namespace to write in": "unshare -Ur -m sh -c 'mount -o remount,rw,bind {data}/repos; : >>{repo}/config'",
    "a device": "mknod /dev/disk b 254 0 && head -c 1 /dev/disk",
    "the kernel": ": >>/proc/sys/kernel/core_pattern || : >>/proc/sysrq-trigger",
    "a proc of its own": "unshare -U -m -p -f sh -c 'mount -t proc proc /proc && : >>/proc/sys/kernel/core_pattern'",
    "a process without the box": "nsenter -t 1 -m cat {data}/token",
    "what is under a mount": "unshare -Ur -m sh -c 'mount --bind / /mnt && cat /mnt{data}/token'",
    "the memory of the machine": "head -c 1 /proc/kcore || head -c 1 /dev/mem || head -c 1 /proc/kmsg",
    "control groups": "mkdir /sys/fs/cgroup/forge-was-here || echo $$ >/sys/fs/cgroup/cgroup.procs",
    "new privileges": "grep -q 'NoNewPrivs:.0' /proc/self/status",
    "a terminal": "exec 3<>/dev/tty",
    "what it was born with": "ls -l /proc/[0-9]*/fd | grep -E 'socket:|pidfd|eventpoll|jsonl'",
    "a hard link out of the checkout": "echo x >mine && ln mine $HOME/mine",
    "a file that stays": "echo x >stays && chattr +i stays",
    "a device of its own kind": "mkfifo fifo && mknod $HOME/null c 1 3",
    "an action without a password": "curl -fsS -d head=x {url}/r/escapes/mr/evil/delete",
    "an action with the hook's token": "curl -fsS -H @{data}/hook-header -d '' {url}/r/escapes/mr/evil/delete",
    "a false push": "curl -fsS --json '{{}}' {url}/hooks/post-receive",
    "its first process": "cat /proc/1/cwd{data}/token || cat /proc/1/root{data}/token || cat /proc/1/fd/*",
}


@needs_bwrap
def test_there_is_no_way_out(boxed: Server) -> None:
    work = boxed.repo("escapes")
    wanted = {name: command.format(data=boxed.data, repo=work.path, url=boxed.url) for name, command in ESCAPES.items()}
    work.branch("evil", run=script_of(wanted))
    assert answers(boxed, work.push_job("evil")) == dict.fromkeys(wanted, "no")


@needs_bwrap
def test_what_a_job_can_do(boxed: Server) -> None:
    work = boxed.repo("can")
    wanted = {
        "write the checkout": "echo x >new; mkdir folder; chmod +x run",
        "use git": "git add -A; git -c user.name=x -c user.email=x commit -qm x; git status; git log -1",
        "clone a repo": f'git clone -q {work.path} "$HOME/clone"',
        "write its home": 'echo x >"$HOME/kept"',
        "write /tmp": "echo x >/tmp/mine; [ -e /var/tmp/mine ]; touch /dev/shm/mine",
        "call forge": "forge --version",
        "be who the server is": "[ $(id -u) = %d ]" % os.geteuid(),
        "have a /tmp as usual": "[ $(stat -c %a /tmp) = 1777 ]",
        "see its own processes only": "[ $(ls -d /proc/[0-9]* | wc -l) -lt 8 ]",
    }
    look = {
        "its home is kept": '[ -e "$HOME/kept" ]',
        "its /tmp is new": "[ ! -e /tmp/mine ]; [ ! -e /var/tmp/mine ]; [ ! -e /dev/shm/mine ]",
        "the checkout is clean": '[ ! -e new ]; [ -z "$(git status --porcelain)" ]',
    }
    work.branch("topic", run=script_of(wanted))
    assert answers(boxed, work.push_job("topic")) == dict.fromkeys(wanted, "yes")
    work.branch("topic", run=script_of(look))
    assert answers(boxed, work.push_job("topic", force=True)) == dict.fromkeys(look, "yes")
    tmp = boxed.data / "work/can/1/tmp"
    wait_for(lambda: not tmp.exists() and not list((boxed.data / "trash").iterdir()), "room again, before the next job")


@needs_bwrap
@pytest.mark.skipif(not shutil.which("ipcmk"), reason="no ipcmk to make shared memory with")
def test_what_processes_share_outside_is_not_shared_with_a_job(boxed: Server) -> None:
    made = subprocess.run(["ipcmk", "--shmem", "4096"], capture_output=True, text=True, check=True).stdout.split()[-1]
    try:
        assert made in subprocess.run(["ipcs", "-m"], capture_output=True, text=True, check=True).stdout.split()
        work = boxed.repo("apart")
        work.branch("topic", run=f"! ipcs -m | grep -qw {made}\n")
        assert boxed.ended(work.push_job("topic"))["status"] == "passed"
    finally:
        subprocess.run(["ipcrm", "--shmem-id", made], check=True)


@needs_bwrap
def test_a_job_that_fills_tmp_fills_its_own(boxed: Server) -> None:
    work = boxed.repo("fills")
    fill = "for d in /tmp /var/tmp; do head -c 50000000 /dev/zero >$d/fill-$$; (cd $d && seq 70001 75000 | xargs touch); done\n"
    look = "ls -A /tmp /var/tmp; touch /tmp/mine && echo well\n"
    work.branch("fills", run=f"{look}mkdir -p /tmp/d/d; {fill}ls /tmp | wc -l; chmod 0 /tmp/d /tmp\n")
    job = boxed.ended(work.push_job("fills"))
    assert job["status"] == "passed"
    seen, count = boxed.job_log(job["id"]).decode().split("well\n")
    assert int(count) > 5000
    assert not [
        name for place in ("/tmp", "/var/tmp") for name in os.listdir(place) if re.fullmatch("fill-[0-9]+|7[0-9]{4}", name)
    ]
    gone = lambda: not [*boxed.data.glob("work/fills/*/tmp"), *(boxed.data / "trash").iterdir()]  # noqa: E731
    wait_for(gone, "the end of what it wrote")
    work.branch("next", run=look)
    job = boxed.ended(work.push_job("next"))
    assert boxed.job_log(job["id"]).decode() == f"{seen}well\n"


@needs_bwrap
def test_post_merge_has_the_secrets_and_may_push(boxed: Server, lair: Lair) -> None:
    other = boxed.repo("pushed-to")
    work = boxed.repo("deploys")
    wanted = {"secrets": '[ "$(cat "$FORGE_SECRETS_DIR/key")" = "the key" ]', "hook-token": f"cat {boxed.data}/hook-token"}
    refused = {
        "write secrets": 'echo x >"$FORGE_SECRETS_DIR/new"',
        "token": f"cat {boxed.data}/token",
        "journal": f"cat {boxed.data}/jobs.jsonl",
        "home of pre-merge": f"ls {boxed.data}/home/deploys/pre-merge",
        "password": f"grep . {lair.root}/password",
    }
    commit = "git -c user.name=x -c user.email=x commit -q --allow-empty -m x"
    push = f"{commit}; git push -q {other.path} HEAD:refs/heads/from-a-job 2>&1"
    work.branch("main", deploy=script_of(wanted | refused) + f"echo 'pushed: '$({push})\n")
    work.push("HEAD:main")
    boxed.idle()
    job = boxed.get("/jobs?repo=deploys&kind=post-merge&limit=1")["jobs"][0]
    said = answers(boxed, job["id"])
    pushed = said.pop("pushed")
    assert said == dict.fromkeys(wanted, "yes") | dict.fromkeys(refused, "no")
    assert "from-a-job: pre-merge job" in pushed and "/jobs/" in pushed, pushed
    assert [job["branch"] for job in boxed.get("/jobs?repo=pushed-to&kind=pre-merge")["jobs"]] == ["from-a-job"]


@needs_bwrap
def test_what_a_link_among_the_secrets_leads_to_is_a_secret_too(boxed: Server, lair: Lair) -> None:
    """Wherever it lies, unless everybody on the machine may read it."""
    work = boxed.repo("links")
    (lair.root / "kept/key").chmod(0o600)
    look = script_of({"key": f"cat {lair.root}/kept/key", "link": f"cat {lair.root}/secrets/key"})
    work.branch("topic", run=look)
    assert answers(boxed, work.push_job("topic")) == {"key": "no", "link": "no"}
    work.branch("main", deploy=look)
    work.push("HEAD:main")
    boxed.idle()
    deployment = boxed.get("/jobs?repo=links&kind=post-merge&limit=1")["jobs"][0]
    assert answers(boxed, deployment["id"]) == {"key": "yes", "link": "yes"}


# -- the secrets of one repo -----------------------------------------------------------------------------------


def deployment(work: Work, script: str) -> Any:
    """Push a deployment to base; its job when it has ended."""
    work.branch("main", deploy=script)
    work.push("HEAD:main")
    work.server.idle()
    return work.server.get(f"/jobs?repo={work.name}&kind=post-merge&limit=1")["jobs"][0]


@pytest.fixture(scope="module")
def parted(lair: Lair) -> Path:
    """Secrets of each repo apart, laid out as agenix and sops-nix do it: links to files and to a folder, by another link."""
    kept, keys = lair.root / "kept.d/4", lair.root / "parted"
    for folder in (kept / "two", keys / "repos/one", keys / "repos/team", keys / "repos/stray"):
        folder.mkdir(parents=True)
    (lair.root / "now").symlink_to(kept)
    for file in (
        kept / "one",
        kept / "two/token",
        kept / "two/more",
        keys / "repos/team/token",
        keys / "repos/stray/token",
        keys / "token",
    ):
        file.write_text(f"secret of {file.relative_to(lair.root)}\n")
        file.chmod(0o600)
    (keys / "repos/one/token").symlink_to(lair.root / "now/one")
    (keys / "repos/two").symlink_to(lair.root / "now/two")
    (keys / "repos/team/linked").symlink_to(kept / "two/token")
    return keys


@pytest.fixture(scope="module")
def parted_server(lair: Lair, parted: Path) -> Iterator[Server]:
    server = lair.server("parted-data", FORGE_SANDBOX="bwrap", FORGE_SECRETS_DIR=str(parted))
    yield server
    end(server)


def ways_to_secrets(keys: Path, data: Path) -> dict[str, str]:
    """Each way to a secret, whose contents it prints, and to what else belongs to one repo alone."""
    kept, now = keys.parent / "kept.d/4", keys.parent / "now"
    places = {
        "all": f"{keys}/token",
        "one": f"{keys}/repos/one/token",
        "what one leads to": f"{now}/one",
        "where that is": f"{kept}/one",
        "two": f"{keys}/repos/two/token",
        "what two leads to": f"{now}/two/token",
        "more of that": f"{kept}/two/more",
        "team": f"{keys}/repos/team/token",
        "stray": f"{keys}/repos/stray/token",
        "by proc": f"/proc/1/root{keys}/token",
        "by a working directory": f"/proc/self/cwd/../../../../../parted/token /proc/1/cwd{keys}/token",
        "beside its own": '"${FORGE_SECRETS_DIR-/nothing}"/../stray/token "${FORGE_SECRETS_DIR-/nothing}"/../../token',
    }
    wanted = {name: f"cat {place} | grep -q secret" for name, place in places.items()}
    wanted["by a link"] = f'ln -sf {keys}/token "$HOME/link" && grep secret "$HOME/link"'
    wanted["by a hard link"] = f'ln -f {keys}/token "$HOME/hard" && grep secret "$HOME/hard"'
    wanted["write"] = 'echo x >"$FORGE_SECRETS_DIR/new"'
    return wanted | {f"{kind} of another": f"ls {data}/home/other/{kind}" for kind in ("pre-merge", "post-merge")}


OWN = """if [ -n "${FORGE_SECRETS_DIR-}" ]; then echo "own: $(tr ' ' _ <"$FORGE_SECRETS_DIR/token")"; else echo "own: none"; fi
echo "names: $(cd %s 2>/dev/null && find . ! -type d | sort | xargs)"
"""


@needs_bwrap
@pytest.mark.parametrize(
    ("repo", "setting", "seen", "own", "names"),
    [
        ("one", None, {"one", "what one leads to"}, "secret_of_kept.d/4/one", "./repos/one/token"),
        (
            "two",
            None,
            {"two", "what two leads to", "more of that"},
            "secret_of_kept.d/4/two/token",
            "./repos/two/more ./repos/two/token",
        ),
        ("three", None, set(), "none", ""),
        (
            "four",
            "team",
            {"team", "what two leads to"},
            "secret_of_parted/repos/team/token",
            "./repos/team/linked ./repos/team/token",
        ),
        (
            "five",
            "two",
            {"two", "what two leads to", "more of that"},
            "secret_of_kept.d/4/two/token",
            "./repos/two/more ./repos/two/token",
        ),
    ],
)
def test_a_deployment_sees_the_secrets_of_its_own_repo_alone(
    parted: Path, parted_server: Server, repo: str, setting: str | None, seen: set[str], own: str, names: str
) -> None:
    if not (parted_server.data / "repos/other.git").exists():
        parted_server.repo("other")
    work = parted_server.repo(repo)
    if setting:
        work.bare("config", "forge.secrets", setting)
    said = answers(parted_server, deployment(work, script_of(ways_to_secrets(parted, parted_server.data)) + OWN % parted)["id"])
    assert (said.pop("own"), said.pop("names")) == (own, names), said
    seen |= {"where that is"} if repo == "one" else set()
    assert {name for name, answer in said.items() if answer == "yes"} == seen, said


@needs_bwrap
def test_a_check_sees_no_secrets_of_any_repo(parted: Path, parted_server: Server) -> None:
    work = parted_server.repo("checked")
    work.bare("config", "forge.secrets", "team")
    work.branch("topic", run=script_of(ways_to_secrets(parted, parted_server.data)) + OWN % parted)
    said = answers(parted_server, parted_server.ended(work.push_job("topic"))["id"])
    assert (said.pop("own"), said.pop("names")) == ("none", "")
    assert {name for name, answer in said.items() if answer == "yes"} == set(), said


@needs_bwrap
def test_a_folder_counts_from_the_moment_it_is_there(lair: Lair) -> None:
    """At first all see the whole directory; with ``repos/`` none but those that have a folder see anything."""
    keys = lair.root / "later"
    keys.mkdir()
    (keys / "token").write_text("secret of all\n")
    server = lair.server("later-data", FORGE_SANDBOX="bwrap", FORGE_SECRETS_DIR=str(keys))
    try:
        work = server.repo("app")

        def own(job: Any) -> str:
            said = answers(server, job["id"])
            return f"{said['own']}, {said['names']}"

        job = deployment(work, OWN % keys)
        assert own(job) == "secret_of_all, ./token"
        (keys / "repos").mkdir()
        assert own(server.act(f"/jobs/{job['id']}/retry").json) == "none, "
        (keys / "repos/app").mkdir()
        (keys / "repos/app/token").write_text("secret of app\n")
        assert own(server.act(f"/jobs/{job['id']}/retry").json) == "secret_of_app, ./repos/app/token"
        before = work.heads()["main"]
        deployment(work, "true\n")
        server.act("/r/app/rollback", commit=before, untested="1")
        server.idle()
        rolled = server.get("/jobs?repo=app&kind=post-merge&limit=1")["jobs"][0]
        assert rolled["commit"] not in (before, job["commit"]) and own(rolled) == "secret_of_app, ./repos/app/token"
    finally:
        end(server)


def test_without_the_sandbox_the_variable_names_the_folder_and_hides_nothing(lair: Lair, parted: Path) -> None:
    server = lair.server("open-data", FORGE_SANDBOX="none", FORGE_SECRETS_DIR=str(parted))
    try:
        look = f'echo "own: ${{FORGE_SECRETS_DIR-none}}"\necho "all: $(cat {parted}/token)"\n'
        for repo, own in (("one", f"{parted}/repos/one"), ("three", "none")):
            said = answers(server, deployment(server.repo(repo), look)["id"])
            # masked: it can see them all
            assert said == {"own": own, "all": "*" * len("secret of parted/token")}, said
    finally:
        end(server)


# -- what the sandbox is no wall against: SECURITY.md says so, and names these --------------------------------


@needs_bwrap
def test_who_can_push_can_merge_and_has_all_that_a_deployment_has(boxed: Server, lair: Lair) -> None:
    """The branch brings its own check, its trailer merges it, its deployment has the secrets, and the hooks of all repos."""
    work = boxed.repo("taken")
    hook = f"{work.path}/hooks/post-receive.local"
    leak = f"""base64 <"$FORGE_SECRETS_DIR/key"
        printf '#!/bin/sh\\ncat ../../token >stolen\\n' >{hook}; chmod +x {hook}\n"""
    work.branch("evil", AUTO, run="true\n", deploy=leak)
    work.push("evil")
    work.landed("evil")
    boxed.idle()
    deployment = boxed.get("/jobs?repo=taken&kind=post-merge&limit=1")["jobs"][0]
    assert base64.b64decode(boxed.job_log(deployment["id"])) == b"the key\n"
    work.branch("next")
    work.push("next")  # by somebody who may read the token: the hook runs as who pushes
    assert (work.path / "stolen").read_text() == (boxed.data / "token").read_text()


@needs_bwrap
def test_a_job_reads_what_any_reader_of_the_pages_may(boxed: Server) -> None:
    work = boxed.repo("reads")
    work.branch("topic", run=f"curl -sf {boxed.url}/jobs/1/log && echo read\n")
    job = boxed.ended(work.push_job("topic"))
    assert boxed.job_log(job["id"]) == boxed.job_log(1) + b"read\n"


@needs_bwrap
def test_the_home_of_checks_is_one_for_all_branches(boxed: Server) -> None:
    work = boxed.repo("homes")
    work.branch("first", run='mkdir -p "$HOME/.config/git"; echo planted >"$HOME/.config/git/ignore"\n')
    boxed.ended(work.push_job("first"))
    work.branch("second", run="touch planted; git status --porcelain\n")
    job = boxed.ended(work.push_job("second"))
    assert boxed.job_log(job["id"]) == b"", "git of the second branch follows what the first one planted"


@needs_bwrap
def test_a_password_file_that_is_replaced_is_hidden_only_in_a_hidden_folder(boxed: Server, lair: Lair) -> None:
    """What hides a file is a mount on it, which goes with the old file; what hides a folder hides whatever comes into it."""
    work = boxed.repo("replaces")
    (lair.root / "home/password").write_text("correct horse\n")
    files = f"{lair.root}/password {lair.root}/home/password"
    work.branch("evil", run=f"echo begun; until grep -qs . {files}; do sleep 0.05; done; grep -s . {files}; true\n")
    job_id = work.push_job("evil")
    begun(boxed, job_id)
    for file in (lair.root / "home/password", lair.root / "password"):
        file.with_suffix(".new").write_text("correct horse\n")
        file.with_suffix(".new").replace(file)
    boxed.ended(job_id)
    assert boxed.job_log(job_id) == f"begun\n{lair.root}/password:correct horse\n".encode()


def named(mark: str) -> list[psutil.Process]:
    """The processes of this machine that have a word on their command line."""
    return [process for process in psutil.process_iter(["cmdline"]) if mark in (process.info["cmdline"] or [])]


@pytest.fixture
def mark() -> Iterator[str]:
    """A number of seconds to sleep that nobody else sleeps; who still does so in the end is ended."""
    number = f"9{os.getpid()}{time.time_ns() % 1000:03d}"
    yield number
    for process in named(number):
        process.kill()


# each of its processes lives for a moment only, in a session of its own, and tells HOME that it was there
COMET = r"""perl -e 'use POSIX; open F, ">>", "$ENV{HOME}/beats"; while (1) { exit if fork; setsid; syswrite F, "." }' & """


@pytest.mark.parametrize("kind", [pytest.param("boxed", marks=needs_bwrap), "bare"])
def test_what_a_job_left_running_is_gone_with_it(kind: str, mark: str, request: pytest.FixtureRequest) -> None:
    server = request.getfixturevalue(kind)
    work = server.repo("daemons")
    daemons = f"setsid sleep {mark} & (setsid sleep {mark} &) ; trap '' TERM HUP; nohup sleep {mark} & "
    work.branch("topic", run=f"{daemons}{COMET * 3}\nuntil [ -s $HOME/beats ]; do sleep 0.05; done; echo left\n")
    job = server.ended(work.push_job("topic"))
    assert job["status"] == "passed" and server.job_log(job["id"]) == b"left\n"
    assert not named(mark)
    beats = work.gate("beats").stat().st_size
    work.branch("next", run=f"sleep 0.3; [ ! -d /proc/{os.getpid()} ] || ps -eo args | grep -c '[s]leep {mark}'\n")
    server.ended(work.push_job("next"))
    assert work.gate("beats").stat().st_size == beats, "a daemon waits for the next job"


@pytest.mark.parametrize("kind", [pytest.param("bwrap", marks=needs_bwrap), "none"])
def test_a_fork_bomb_and_a_memory_hog_end_and_nothing_else_does(make_server: Callable[..., Server], kind: str, mark: str) -> None:
    server = make_server(FORGE_SANDBOX=kind, FORGE_JOB_PROCESSES="100", FORGE_JOB_MEMORY=str(300 << 20), FORGE_MAX_JOBS="3")
    work = server.repo()
    work.branch("steady", run=f"until [ -e {work.gate('go')} ]; do sleep 0.05; done; echo steady\n")
    steady = work.push_job("steady")
    # two of it for each of it, deaf to SIGTERM; it leaves off at 511, as the machine is not ours alone
    work.branch("bomb", run=f"trap '' TERM; b() {{ [ $1 = 0 ] || {{ b $(($1 - 1)) & b $(($1 - 1)) & }}; sleep {mark}; }}; b 8\n")
    each = "perl -e '$x = q(y) x (100 << 20); sleep 600' & "
    work.branch("hog", run=f"{each * 4} wait\n")
    for name, word in (("bomb", "more than 100 processes (FORGE_JOB_PROCESSES)"), ("hog", "bytes of memory (FORGE_JOB_MEMORY)")):
        job_id = work.push_job(name)
        wait_for(lambda job_id=job_id: server.get(f"/jobs/{job_id}")["status"] != "pending", "its start")
        assert server.ask("/jobs").status == 200 and "job" in work.push(f"steady:refs/heads/beside-{name}")
        job = server.ended(job_id, 90)
        assert job["status"] == "failed" and word in job["reason"], job
    assert not named(mark)
    work.gate("go").touch()
    assert server.ended(steady)["status"] == "passed"


@needs_bwrap
def test_a_log_is_no_longer_than_it_may_be_wherever_its_job_puts_its_end(make_server: Callable[..., Server]) -> None:
    server = make_server(FORGE_SANDBOX="bwrap", FORGE_LOG_LIMIT=str(1 << 20))
    work = server.repo()
    job_ids = []
    for name, rest in (("goes-on", "sleep 600"), ("ends", "exit 1")):
        work.branch(name, run=f"trap '' TERM; echo begun; perl -e 'truncate(STDOUT, 1 << 42)'; {rest}\n")
        job_ids.append(work.push_job(name))
    log = server.data / f"logs/app/{job_ids[0]}.log"
    wait_for(lambda: log.stat().st_size == 1 << 20, "the cut")
    run = server.data / f"running/{job_ids[0]}"
    assert (run / "pid").exists() and not (run / "exit").exists(), "who reads it before its end must not wait either"
    for job_id in job_ids:
        job = server.ended(job_id)
        assert job["status"] == "failed" and job["log_size"] == 1 << 20, job
        assert server.job_log(job_id).startswith(b"begun\n") and server.ask(f"/jobs/{job_id}", Accept="text/html").status == 200
    assert len(server.get("/search?q=begun")["jobs"]) == 2


KEEP_LOG = {
    "no permission": "chmod 0, *STDOUT",
    # who opens a file on which there is a lease waits for 45 seconds (/proc/sys/fs/lease-break-time)
    "a lease": "$SIG{IO} = q(IGNORE); fcntl(STDOUT, 1024, 1) or die",
}


@pytest.mark.parametrize("trick", KEEP_LOG)
def test_a_job_that_keeps_its_log_from_being_opened_stops_nobody(make_server: Callable[..., Server], trick: str) -> None:
    server = make_server(start=False, FORGE_MAX_JOBS="2", FORGE_LOG_LIMIT=str(1 << 20))
    # root without capabilities is held by permissions like anybody
    server.start(*(["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []))
    work = server.repo()
    keep = f"$| = 1; print qq(begun\\n); {KEEP_LOG[trick]}; open F, q(>), qq($ENV{{HOME}}/kept); close F"
    for name, then in (("grows", "truncate(STDOUT, 1 << 42); sleep 600"), ("ends", "exit 1")):
        work.branch(name, run=f"exec perl -e '{keep}; {then}'\n")
        work.gate("kept").unlink(missing_ok=True)
        job_id = work.push_job(name)
        wait_for(work.gate("kept").exists, "the trick")
        began = time.monotonic()
        pages = [f"/jobs/{job_id}", f"/search?q=begun-{name}", *(f"/jobs/{job_id}/log{query}" for query in ("", "?offset=0"))]
        for path in [*pages, f"/jobs/{job_id}/log?line=1", f"/jobs/{job_id}/log?find=begun"]:
            assert server.ask(path, Accept="text/html").status == 200, path
        assert time.monotonic() - began < 10
        job = server.ended(job_id, 20)
        assert job["status"] == "failed" and ("FORGE_LOG_LIMIT" in job["reason"]) == (name == "grows"), job
        assert server.job_log(job_id).startswith(b"begun\n") and job["log_size"] <= 1 << 20
    assert "stumbled" not in server.log and "the watcher" not in server.log and "Traceback" not in server.log


# -- the server's own process -----------------------------------------------------------------------------


def test_no_child_of_the_server_gets_the_password_and_no_core_file_holds_it(
    make_server: Callable[..., Server], tmp_path: Path
) -> None:
    secret = f"hunter-{time.time_ns()}"
    notify = f"sh -c 'env >>{tmp_path}/noticed'"
    server = make_server(start=False, FORGE_MERGE_PASSWORD=secret, FORGE_SANDBOX="none", FORGE_NOTIFY=notify)
    server.start("sh", "-c", 'ulimit -c unlimited; exec "$@"', "sh")
    assert server.process
    own, work = psutil.Process(server.process.pid), server.repo()
    work.branch(
        "topic", run=f"for p in /proc/[0-9]*; do [ $p = /proc/{server.process.pid} ] || cat $p/environ $p/cmdline; done; false\n"
    )
    job = server.ended(work.push_job("topic"))
    assert job["status"] == "failed" and b"FORGE_JOB_ID" in server.job_log(job["id"])
    wait_for((tmp_path / "noticed").exists, "the notice")
    assert secret not in (tmp_path / "noticed").read_text() and secret.encode() not in server.job_log(job["id"])
    for process in (own, launcher_of(own)):
        assert os.stat(f"/proc/{process.pid}/environ").st_uid == 0, "its files in /proc are root's while it is not dumpable"
    assert server.act("/jobs/1/cancel", password=secret).status == 409
    server.process.send_signal(signal.SIGABRT)
    _, status = os.waitpid(server.process.pid, 0)
    server.process.returncode = os.waitstatus_to_exitcode(status)
    assert server.process.returncode == -signal.SIGABRT and not os.WCOREDUMP(status)
    assert server.process.stdout
    server.process.stdout.close()
    server.process = None


def test_no_other_user_comes_to_what_jobs_leave(make_server: Callable[..., Server]) -> None:
    """A program of the server's user with the bit by which it makes who runs it that user (chmod u+s)."""
    server = make_server()
    for name in ("work", "home", "running"):
        assert (server.data / name).stat().st_mode & 0o777 == 0o700
        (server.data / name).chmod(0o755)
    server.stop()
    server.start()
    assert (server.data / "home").stat().st_mode & 0o777 == 0o700


# -- stopping, measuring, taking over ------------------------------------------------------------------

# what is told to stop takes its time, so that a box that was told to stop as well would be gone before its last word
POLITE = "trap 'sleep 0.3; echo got TERM; exit 3' TERM; echo begun; while :; do sleep 0.05; done\n"


def begun(server: Server, job_id: int) -> None:
    wait_for(lambda: server.job_log(job_id) == b"begun\n", "the first line")


@needs_bwrap
def test_a_job_is_told_before_it_is_killed(boxed: Server) -> None:
    work = boxed.repo("polite")
    work.branch("topic", run=POLITE)
    job_id = work.push_job("topic")
    begun(boxed, job_id)
    boxed.act(f"/jobs/{job_id}/cancel")
    assert boxed.ended(job_id, 4.5)["status"] == "canceled"
    assert boxed.job_log(job_id).endswith(b"got TERM\n")  # before it may be sh's word that a sleep was terminated
    work.bare("config", "forge.timeout", "1")
    work.branch("slow", run=POLITE.replace("exit 3", "true"))
    job = boxed.ended(work.push_job("slow"))
    assert job["status"] == "timeout" and b"got TERM\n" in boxed.job_log(job["id"])


@needs_bwrap
def test_the_figures_are_the_jobs_own(boxed: Server) -> None:
    work = boxed.repo("figures")
    work.branch("topic", run="sleep 60 & sleep 60 & echo begun; wait\n")
    job_id = work.push_job("topic")
    begun(boxed, job_id)
    wait_for(lambda: boxed.get(f"/jobs/{job_id}")["processes"] == 3, "the count of the script and two sleeps")
    page = boxed.ask(f"/jobs/{job_id}", Accept="text/html").text
    assert "<dt>Sandbox</dt><dd>bubblewrap</dd>" in page and "sandboxed" not in boxed.get(f"/jobs/{job_id}")
    boxed.act(f"/jobs/{job_id}/cancel")
    boxed.ended(job_id)


@needs_bwrap
def test_a_job_in_its_box_is_taken_over(make_server: Callable[..., Server], tmp_path: Path) -> None:
    server = make_server(FORGE_MAX_JOBS="3", FORGE_SANDBOX="bwrap", HOME=str(tmp_path))  # the data directory is in the home
    work = server.repo()
    go = 'echo begun; until [ -e "$HOME/go" ]; do sleep 0.05; done; echo ended; exit 9\n'
    work.branch("ends", run=go)
    work.branch("stops", run=POLITE)
    ends, stops = work.push_job("ends"), work.push_job("stops")
    begun(server, ends), begun(server, stops)
    server.stop(signal.SIGKILL)
    server.start()
    assert f"job {stops} still runs" in server.log
    server.act(f"/jobs/{stops}/cancel")
    assert server.ended(stops, 4.5)["status"] == "canceled"
    assert server.job_log(stops).startswith(b"begun\n") and server.job_log(stops).endswith(b"got TERM\n")
    work.gate("go").touch()
    job = server.ended(ends)
    assert (job["id"], job["status"], job["exit_code"]) == (ends, "failed", 9)
    assert server.job_log(ends) == b"begun\nended\n"


@needs_bwrap
def test_a_box_dies_with_its_supervisor(make_server: Callable[..., Server], tmp_path: Path, mark: str) -> None:
    server = make_server(FORGE_SANDBOX="bwrap", HOME=str(tmp_path / "data"))  # the data directory is the home
    work = server.repo()
    work.branch("topic", run=f"echo begun; setsid sleep {mark}\n")
    job_id = work.push_job("topic")
    begun(server, job_id)
    server.stop(signal.SIGKILL)
    os.kill(int((server.data / f"running/{job_id}/pid").read_text().split()[0]), signal.SIGKILL)
    wait_for(lambda: not named(mark), "the end of the processes")
    server.start()
    assert server.ended(job_id)["reason"].startswith("interrupted")
    again = wait_for(lambda: [job["id"] for job in server.get("/jobs")["jobs"] if job["id"] > job_id], "the second run")[0]
    server.act(f"/jobs/{again}/cancel")
    server.ended(again)


@needs_bwrap
def test_a_box_that_cannot_be_made_says_so(make_server: Callable[..., Server]) -> None:
    server = make_server(FORGE_SANDBOX="bwrap")
    work = server.repo()
    (server.data / "bin").rename(server.data / "moved")
    work.branch("topic")
    job = server.ended(work.push_job("topic"))
    assert job["status"] == "failed" and job["reason"].startswith("its sandbox could not be set up: bwrap: "), job["reason"]
    (server.data / "moved").rename(server.data / "bin")
    work.bare("config", "forge.preMerge", "no-such-command")
    job = server.ended(int(server.act(f"/jobs/{job['id']}/retry").json["id"]))
    assert "was not found (no-such-command)" in job["reason"]


def shims(home: Path) -> dict[str, tuple[str, str]]:
    """Version managers in a home: a folder of the PATH that has their python9, and what a job's reason says of it, by name."""
    for name, text in {
        ".pyenv/libexec/pyenv": "#!/bin/sh\nexit 0\n",
        ".asdf/bin/asdf": "#!/bin/sh\nexit 0\n",
        ".local/bin/mise": "#!/bin/sh\nexit 0\n",
        ".pyenv/shims/python9": f'#!/usr/bin/env bash\nset -e\nexec "{home}/.pyenv/libexec/pyenv" exec python9 "$@"\n',
        ".asdf/shims/python9": f'#!/usr/bin/env bash\nexec {home}/.asdf/bin/asdf exec "python9" "$@"\n',
        ".own/bin/python9": f"#!{home}/.pyenv/libexec/pyenv\n",
    }.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)
        (home / name).chmod(0o755)
    for link, target in {".mise/shims/python9": ".local/bin/mise", ".nix-profile/bin/python9": ".local/bin/mise"}.items():
        (home / link).parent.mkdir(parents=True, exist_ok=True)
        (home / link).symlink_to(home / target)
    own = "python9 ({}/python9 on the PATH)".format
    return {
        "pyenv": (".pyenv/shims", f"{home}/.pyenv/libexec/pyenv"),
        "asdf": (".asdf/shims", f"{home}/.asdf/bin/asdf"),
        "mise": (".mise/shims", f"{own(home / '.mise/shims')} leads to {home.parent}, which jobs do not see"),
        "nix-profile": (".nix-profile/bin", f"{own(home / '.nix-profile/bin')} leads to {home.parent}, which jobs do not see"),
        "own": (".own/bin", f"{own(home / '.own/bin')} asks for {home}/.pyenv/libexec/pyenv in its first line"),
    }


@needs_bwrap
@pytest.mark.parametrize("name", ["pyenv", "asdf", "mise", "nix-profile", "own"])
def test_a_python_that_leads_to_a_hidden_home_is_said(lair: Lair, name: str) -> None:
    folder, words = shims(lair.root / "home" / name)[name]
    path = f"{lair.root / 'home' / name / folder}:{os.environ['PATH']}"
    server = lair.server(f"shim-{name}", FORGE_SANDBOX="bwrap", PATH=path)
    try:
        work = server.repo()
        for branch, run in {"said": "python9 -V\n", "silent": "exec 2>/dev/null; python9 -V\n"}.items():
            work.branch(branch)
            work.write(".forge/pre-merge", f"#!/bin/sh\n{run}", executable=True)
            work.commit("Python")
            job = server.ended(work.push_job(branch))
            assert job["exit_code"] in (126, 127) and "jobs do not see" in job["reason"], (job, server.job_log(job["id"]))
            assert words in job["reason"], (job, server.job_log(job["id"]))
        work.branch("make", Makefile="all:\n\tpython9 -V\n", run="make\n")
        job = server.ended(work.push_job("make"))
        assert job["exit_code"] == 2 and words in job["digest"], (job, server.job_log(job["id"]))
        work.branch("script")
        work.write(".forge/pre-merge", "#!/usr/bin/env python9\nprint(1)\n", executable=True)
        work.commit("A script of it")
        job = server.ended(work.push_job("script"))
        assert str(lair.root / "home") in job["reason"] and "jobs do not see" in job["reason"], job
    finally:
        end(server)


@needs_bwrap
def test_an_interpreter_in_a_hidden_home_is_said(boxed: Server, lair: Lair) -> None:
    work = boxed.repo("interpreter")
    work.branch("topic")
    work.write(".forge/pre-merge", f"#!{lair.root}/home/.pyenv/versions/3.11/bin/python\n", executable=True)
    work.commit("An interpreter of my own")
    job = boxed.ended(work.push_job("topic"))
    asked = f"{lair.root}/home/.pyenv/versions/3.11/bin/python"
    assert job["reason"] == (
        f"exit code 127: .forge/pre-merge asks for {asked} in its first line, but jobs do not see {lair.root}/home; "
        "use one that lies elsewhere, as below /usr or /nix"
    )


# -- the setting ------------------------------------------------------------------------------------------


def without_bwrap(folder: Path) -> str:
    """A PATH with all but bubblewrap."""
    folder.mkdir()
    for name in os.listdir("/usr/bin"):
        if name != "bwrap":
            os.symlink(f"/usr/bin/{name}", folder / name)
    return str(folder)


@pytest.mark.parametrize("setting", ["auto", "none"])
def test_without_bubblewrap_jobs_run_with_a_warning(make_server: Callable[..., Server], tmp_path: Path, setting: str) -> None:
    server = make_server(FORGE_SANDBOX=setting, PATH=without_bwrap(tmp_path / "bin"))
    reason = "FORGE_SANDBOX is none" if setting == "none" else "bwrap is not on the PATH; install bubblewrap"
    lines = [line for line in server.log.splitlines() if "sandbox" in line]
    assert lines == [f"forge: jobs run without a sandbox, so a job can read and change all that the server's user can: {reason}"]
    work = server.repo()
    work.branch("topic", run=f"cat {server.data}/token >/dev/null\n")
    job = server.ended(work.push_job("topic"))
    assert job["status"] == "passed"
    assert "<dt>Sandbox</dt><dd>none</dd>" in server.ask(f"/jobs/{job['id']}", Accept="text/html").text


def test_bubblewrap_or_nothing(make_server: Callable[..., Server], tmp_path: Path) -> None:
    server = make_server(start=False, FORGE_SANDBOX="bwrap", PATH=without_bwrap(tmp_path / "bin"))
    done = subprocess.run([*FORGE, "serve"], env=server.environ, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "forge: FORGE_SANDBOX is bwrap, but jobs cannot run under it: bwrap is not on the PATH; install bubblewrap\n"
    )
    (tmp_path / "bin/bwrap").write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2; exit 1\n")
    (tmp_path / "bin/bwrap").chmod(0o755)
    done = subprocess.run([*FORGE, "serve"], env=server.environ, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1 and "No permissions to create new namespace (if it is about namespaces, allow" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("place", "hidden"),
    [
        ("/home/git/src.git/objects", True),
        ("/home/other/src.git/objects", False),
        ("/srv/forge/repos/other.git/objects", False),
        ("/srv/forge/old/other.git/objects", True),
        ("/tmp/src.git/objects", True),
        ("/home/git", True),
        ("/home", False),
    ],
)
def test_which_places_a_job_does_not_come_to(place: str, hidden: bool) -> None:
    assert forge.is_hidden(forge.sandbox_mounts(CONFIG, LAUNCH, AROUND), Path(place)) == hidden


def test_a_link_to_what_is_hidden_is_hidden(tmp_path: Path) -> None:
    config = replace(CONFIG, data_dir=tmp_path / "data")
    (tmp_path / "home/src").mkdir(parents=True), config.repos.mkdir(parents=True)
    (config.repos / "src").symlink_to(tmp_path / "home/src")
    (config.repos / "own").mkdir()
    made = forge.sandbox_mounts(config, LAUNCH, replace(AROUND, folders=(config.data_dir, tmp_path / "home"), tmp=()))
    assert [forge.is_hidden(made, config.repos / name) for name in ("src", "own")] == [True, False]


@needs_bwrap
@pytest.mark.parametrize("way", ["itself", "by way of another"])
def test_a_repo_that_borrows_what_the_sandbox_hides_waits_for_the_command_that_is_named(
    boxed: Server, lair: Lair, way: str
) -> None:
    """Jobs go on by themselves when the command has been run."""
    source = boxed.repo(f"source-{way.replace(' ', '-')}")
    source.branch("main", run="git log --format=%s\n")
    source.push("HEAD:main")
    hidden, work = lair.root / f"home/{source.name}.git", replace(source, name=f"copy-of-{source.name}")
    work.path = boxed.data / f"repos/{work.name}.git"
    subprocess.run(["git", "clone", "-q", "--bare", str(source.path), str(hidden)], check=True, env=clean_environ())
    seen = hidden
    if way != "itself":
        seen = boxed.data / f"repos/middle-{source.name}.git"
        subprocess.run(["git", "clone", "-q", "--bare", "--shared", str(hidden), str(seen)], check=True, env=clean_environ())
    subprocess.run(["git", "clone", "-q", "--bare", "--shared", str(seen), str(work.path)], check=True, env=clean_environ())
    work.git("remote", "set-url", "origin", str(work.path))
    work.git("fetch", "-q", "origin")
    hook = json.dumps({"repo": work.name, "updates": []}).encode()
    answer = boxed.hook(hook, Content_Type="application/json")
    command = f"git -C {work.path} repack -a -d && rm {work.path}/objects/info/alternates"
    words = f"{work.name} borrows objects from {hidden}/objects, which the sandbox hides from jobs; copy them: {command}"
    assert answer.status == 202 and boxed.get(f"/r/{work.name}")["trouble"] == words
    work.branch("topic", file="x")
    work.push("topic")
    assert words in [repo["trouble"] for repo in boxed.get("/")["repos"]]
    assert f"!! repo {work.name} {words}" in " ".join(boxed.cli("doctor", check=False).stdout.split())
    assert {job["status"] for job in boxed.get(f"/jobs?repo={work.name}")["jobs"]} == {"pending"}
    subprocess.run(["sh", "-c", command], check=True, env=clean_environ(), capture_output=True)
    assert boxed.hook(hook, Content_Type="application/json").status == 202
    job = wait_for(lambda: next((job for job in boxed.get("/jobs")["jobs"] if job["repo"] == work.name), None), "the job")
    assert boxed.ended(job["id"])["status"] == "passed"
    assert boxed.job_log(job["id"]).decode().splitlines()[-1] == "First commit"


@needs_bwrap
def test_a_job_sees_what_its_repo_borrows_from_another_that_is_served(boxed: Server) -> None:
    source = boxed.repo("lender")
    source.branch("main", run="git log --format=%s && git fsck\n")
    source.push("HEAD:main")
    work = replace(source, name="borrower", path=boxed.data / "repos/borrower.git")
    subprocess.run(
        ["git", "clone", "-q", "--bare", "--shared", str(source.path), str(work.path)], check=True, env=clean_environ()
    )
    boxed.hook(json.dumps({"repo": work.name, "updates": []}).encode(), Content_Type="application/json")
    wait_for((work.path / "hooks/post-receive").exists, "the hooks", 90)
    work.git("remote", "set-url", "origin", str(work.path))
    work.branch("topic", file="x")
    job = boxed.ended(work.push_job("topic"))
    assert job["status"] == "passed", boxed.job_log(job["id"])


@needs_bwrap
def test_the_doctor_looks_at_it(make_server: Callable[..., Server], tmp_path: Path) -> None:
    server = make_server()
    assert "; jobs run under it" in server.cli("doctor").stdout
    server.settings["FORGE_SANDBOX"] = "none"
    assert "not used, as FORGE_SANDBOX is none; a job can read and change" in server.cli("doctor").stdout
    server.settings |= {"FORGE_SANDBOX": "auto", "PATH": without_bwrap(tmp_path / "bin")}
    assert "!! bwrap bwrap is not on the PATH; install" in " ".join(server.cli("doctor").stdout.split())
    assert not list((server.data / "running").glob("probe-*"))


@pytest.mark.parametrize(
    ("said", "daemon", "well", "words"),
    [
        ("trusted-users = root", True, True, "does not trust it"),
        ("trusted-users = root USER", True, False, "so a job can become root through it; take USER out of trusted-users"),
        ("trusted-users = @GROUP", True, False, "take @GROUP out"),
        ("trusted-users = *", True, False, "take * out"),
        ("", True, False, "does not say whom the Nix daemon trusts"),
        ("trusted-users = root", False, False, "can change every program in it; install Nix with its daemon"),
    ],
)
def test_the_doctor_says_what_nix_lets_a_job_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, daemon: bool, well: bool, words: str
) -> None:
    """Whom a daemon trusts is told by a stand-in for `nix config show`, for /etc/nix/nix.conf is not ours to write."""
    import grp

    user, group = "a-server", grp.getgrgid(os.getegid()).gr_name
    monkeypatch.setattr(forge, "user_of", lambda uid: (user, None))
    (tmp_path / "nix").write_text(f"#!/bin/sh\necho '{said}'\n".replace("USER", user).replace("GROUP", group))
    (tmp_path / "nix").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    environ = {"NIX_STORE_DIR": str(tmp_path), "NIX_DAEMON_SOCKET_PATH": str(tmp_path / ("nix" if daemon else "none"))}
    what, is_well, text = forge.examine_nix(environ)
    assert (what, is_well) == ("nix trust", well) and words.replace("USER", user).replace("GROUP", group) in text, text


# -- Nix --------------------------------------------------------------------------------------------------------


@needs_bwrap
@needs_nix
def test_nix_works_through_a_daemon(make_server: Callable[..., Server], tmp_path: Path) -> None:
    """The store is read-only in the box, and the daemon, which is not in it, writes there."""
    own = {f"NIX_{name}_DIR": str(tmp_path / "nix" / name.lower()) for name in ("STORE", "STATE", "LOG")}
    for folder in own.values():
        Path(folder).mkdir(parents=True)
    socket = Path(own["NIX_STATE_DIR"]) / "daemon-socket/socket"
    environ = clean_environ() | own | {"HOME": str(tmp_path)}
    daemon = subprocess.Popen(["nix", "daemon"], env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        wait_for(socket.exists, "the daemon's socket")
        server = make_server(FORGE_SANDBOX="bwrap", **own)
        work = server.repo()
        text = flake(f"echo built; ! touch {own['NIX_STORE_DIR']}/x 2>/dev/null")
        work.branch("topic", **{"flake.nix": text})
        work.git("rm", "-rq", ".forge")
        work.commit("A flake alone")
        job = server.ended(work.push_job("topic"))
        assert (job["status"], job["command"]) == ("passed", "nix run .#pre-merge"), server.job_log(job["id"])
        assert server.job_log(job["id"]).endswith(b"built\n")
    finally:
        daemon.terminate()
        daemon.communicate()


# -- once more, without rights -------------------------------------------------------------------------------------


def ordinary_python(place: Path) -> str | None:
    """A Python that a user without rights can run, with the packages of this one; None where there is none."""
    packages = Path(pytest.__file__).resolve().parent.parent
    for python in (sys.executable, "/usr/bin/python3"):
        venv = [*NOBODY, python, "-m", "venv", "--without-pip", "--clear", str(place / "venv")]
        if subprocess.run(venv, capture_output=True).returncode == 0:
            for folder in (place / "venv").glob("lib/python*/site-packages"):
                (folder / "packages.pth").write_text(f"{packages}\n")
            check = [
                *NOBODY,
                str(place / "venv/bin/python"),
                "-c",
                f"import bottle, psutil, pytest, waitress; open({str(ROOT / 'forge.py')!r})",
            ]
            if subprocess.run(check, capture_output=True, cwd="/").returncode == 0:
                return check[len(NOBODY)]
    return None


@needs_bwrap
@pytest.mark.timeout(400)
@pytest.mark.skipif(os.geteuid() != 0, reason="all of this has been tested as an ordinary user already")
def test_all_of_this_as_an_ordinary_user() -> None:
    place = Path(tempfile.mkdtemp(prefix="forge-nobody-", dir="/var/lib"))
    try:
        os.chown(place, 65534, 65534)
        python = ordinary_python(place)
        if python is None:
            pytest.skip("no Python with the packages that a user without rights can run")
        words = [
            python,
            "-m",
            "pytest",
            "-rs",
            "-p",
            "no:cacheprovider",
            f"--basetemp={place}/tmp",
            str(Path(__file__).resolve()),
        ]
        environ = clean_environ() | {"HOME": str(place), "PATH": "/usr/local/bin:/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
        environ = {name: value for name, value in environ.items() if not name.startswith("PYTEST_")}
        done = subprocess.run([*NOBODY, *words], env=environ, cwd=ROOT, capture_output=True, text=True, timeout=380)
        assert done.returncode == 0, shlex.join(words) + "\n" + done.stdout + done.stderr
        if "bubblewrap does not work here" in done.stdout:
            pytest.skip("an ordinary user may not make user namespaces here")
        print(done.stdout)
    finally:
        shutil.rmtree(place)
