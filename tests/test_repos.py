"""What lies in `repos/`: how it is pushed to and fetched from, links, copies, and files that belong to another user."""

from __future__ import annotations

import html
import itertools
import os
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import AUTO, FORGE, PRE_SCRIPT, ROOT, Server, Sshd, Work, clean_environ, end, git_after, needs_ssh, wait_for
from test_sandbox import NOBODY, ordinary_python

import forge

ONLY = "only branches (refs/heads/) and tags (refs/tags/) can be pushed"
ID = "a" * 40


# -- a push of which some refs are refused -------------------------------------------------------------------


def remote_refs(work: Work) -> set[str]:
    return set(work.bare("for-each-ref", "--format=%(refname)", "refs/heads", "refs/tags", "refs/notes", "refs/pull").split())


def test_a_mirror_push_names_what_is_refused_and_brings_the_rest(work: Work) -> None:
    head = work.branch("topic")
    for ref in ("refs/notes/commits", "refs/pull/1/head", "refs/pull/2/head", "refs/tags/v1"):
        work.git("update-ref", ref, head)
    said = work.push("--mirror", check=False)
    for ref in ("refs/notes/commits", "refs/pull/1/head", "refs/pull/2/head"):
        assert f"forge: {ref} is refused: {ONLY}" in said and f"[remote rejected] {ref} -> {ref} ({ONLY})" in said, said
    assert remote_refs(work) == {"refs/heads/main", "refs/heads/topic", "refs/tags/v1"}
    assert "topic: pre-merge job" in said and "update hook" not in said
    assert not [*work.path.glob("objects/forge-push-*")]


REFUSED = {
    "begins with '-'": "refs/heads/-x",
    "looks like an object id": f"refs/heads/{ID}",
    "at most 200": "refs/tags/" + "x" * 201,
    "line-separator": "refs/heads/a\u2028b",
    "refs/forge": "refs/forge/jobs/1",
    ONLY: "refs/changes/01/1/1",
}


@pytest.mark.parametrize("why", REFUSED)
def test_whatever_is_refused_leaves_the_other_refs_alone(work: Work, why: str) -> None:
    work.branch("topic")
    said = work.push("topic", f"topic:{REFUSED[why]}", "topic:refs/heads/é", "topic:refs/tags/v1", check=False)
    assert "is refused: " in said and why.replace("refs/forge", ONLY) in said, said
    assert remote_refs(work) == {"refs/heads/main", "refs/heads/topic", "refs/heads/é", "refs/tags/v1"}
    assert "topic: pre-merge job" in said and "é: pre-merge job" in said


def test_a_protected_base_is_refused_and_the_branches_beside_it_are_not(work: Work) -> None:
    work.bare("config", "forge.protect", "true")
    tip = work.heads()["main"]
    work.branch("topic")
    work.branch("other")
    said = work.push("topic:main", "topic", "other", check=False)
    assert "refs/heads/main is refused: forge.protect is set" in said and "main (forge.protect is set" in said
    assert work.heads().keys() == {"main", "topic", "other"} and work.heads()["main"] == tip
    assert "refs/heads/main is refused" in work.push(":main", "topic:third", check=False)
    assert {"main", "third"} < work.heads().keys()


@pytest.mark.parametrize("bad", ["refs/notes/x", f"refs/heads/{ID}", "refs/heads/a\u2028b", "refs/forge/x"])
def test_an_atomic_push_is_refused_as_a_whole(work: Work, bad: str) -> None:
    work.branch("topic")
    before = remote_refs(work)
    said = work.push("--atomic", "topic", "topic:refs/tags/v1", f"topic:{bad}", check=False)
    assert "is refused" in said and "topic -> topic (the push is atomic, and another ref is refused)" in said, said
    assert remote_refs(work) == before
    assert "pre-merge job" in work.push("--atomic", "topic", "topic:refs/heads/other")


def test_a_hook_of_ones_own_is_given_what_is_left_and_can_refuse_it(work: Work, tmp_path: Path) -> None:
    own = work.path / "hooks/pre-receive.local"
    own.write_text(f"#!/bin/sh\ncat >>{tmp_path}/seen\n")
    own.chmod(0o755)
    head = work.branch("topic")
    work.push("topic", "topic:refs/notes/x", "topic:é", check=False)
    null = "0" * 40
    assert (tmp_path / "seen").read_text() == f"{null} {head} refs/heads/topic\n{null} {head} refs/heads/é\n"
    assert "pre-receive hook declined" in work.push("topic:refs/notes/x", check=False)
    assert (tmp_path / "seen").read_text().count("\n") == 2, "a push of which nothing is left needs no other opinion"
    own.write_text("#!/bin/sh\necho not today\nexit 3\n")
    said = work.push("topic:more", "topic:refs/notes/x", check=False)
    assert "not today" in said and "more -> more" not in said and "more" not in work.heads()
    assert not [*work.path.glob("objects/forge-push-*")]


def test_a_push_of_many_refs_starts_no_process_for_each(work: Work, tmp_path: Path) -> None:
    head = work.branch("topic")
    made = "".join(f"create refs/tags/many/{number} {head}\n" for number in range(500))
    work.git("update-ref", "--stdin", text=made + f"create refs/notes/x {head}\n")
    trace = tmp_path / "trace"
    command = ["git", "-C", str(work.tree), "push", str(work.path), "refs/tags/*:refs/tags/*", "refs/notes/x"]
    environ = clean_environ() | {"GIT_TRACE": str(trace)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    assert f"refs/notes/x -> refs/notes/x ({ONLY})" in done.stderr
    assert len(work.bare("for-each-ref", "refs/tags/many").split("\n")) == 500
    started = [line for line in trace.read_text().split("\n") if "run_command" in line]
    assert 0 < len(started) < 12, started


# -- what can be fetched ---------------------------------------------------------------------------------------


def history(work: Work) -> str:
    """Three commits on base whose files differ; the id of the first of them."""
    work.git("checkout", "-q", "-B", "main", "origin/main")
    first, *_ = [work.commit(f"Commit {number}", content=f"{number}\n" * 100) for number in range(3)]
    work.push("main")
    return first


@needs_ssh
@pytest.mark.parametrize("version", ["0", "2"])
@pytest.mark.parametrize("way", ["path", "http", "ssh"])
def test_an_older_commit_and_a_part_can_be_fetched_in_every_way(
    work: Work, make_sshd: Callable[..., Sshd], tmp_path: Path, way: str, version: str
) -> None:
    """Newer Nix fetches a pinned input by `--depth 1 <commit>`; sshd lets no GIT_PROTOCOL through unless told."""
    server = work.server
    environ = clean_environ()
    if way == "ssh":
        host = make_sshd("host")
        host.allow(f'command="{server.data}/bin/forge shell",restrict')
        environ |= {"GIT_SSH_COMMAND": shlex.join(host.client())}
        url = f"{host.url}/{work.name}.git"
    else:
        url = f"file://{work.path}" if way == "path" else f"{server.url}/r/{work.name}.git"
    older = history(work)

    def git(*args: str) -> str:
        command = ["git", "-c", f"protocol.version={version}", *args]
        done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, (args, done.stderr)
        return done.stdout

    git("init", "-q", "one")
    git("-C", "one", "fetch", "-q", "--depth", "1", url, older)
    assert git("-C", "one", "rev-list", "FETCH_HEAD").split() == [older]
    git("clone", "-q", "--filter=blob:none", "--no-checkout", url, "part")
    missing = git("-C", "part", "rev-list", "--objects", "--missing=print", "HEAD")
    assert "?" in missing, "a part of a clone"
    assert git("-C", "part", "show", f"{older}:content").startswith("0\n")


def test_a_repo_that_forbids_such_fetches_goes_on_to_do_so(make_server: Callable[..., Server]) -> None:
    server = make_server(start=False)
    path = server.data / "repos/app.git"
    subprocess.run(["git", "init", "-q", "--bare", path], check=True)
    for key in ("uploadpack.allowFilter", "uploadpack.allowReachableSHA1InWant"):
        subprocess.run(["git", "-C", path, "config", key, "false"], check=True)
    server.start()
    server.get("/r/app")
    done = subprocess.run(["git", "-C", path, "config", "--get-regexp", "uploadpack"], capture_output=True, text=True)
    assert done.stdout == "uploadpack.allowfilter false\nuploadpack.allowreachablesha1inwant false\n"


# -- a repo that was copied in ---------------------------------------------------------------------------------


def source_of(tmp_path: Path, *, bare: bool = True) -> Path:
    """A repository that no forge knows, with a branch beside base; bare, or the `.git` of a working tree."""
    tree = tmp_path / "project"
    commit = "git commit -q --allow-empty -m"
    script = f"git init -q -b main {tree}; cd {tree}; {commit} one; git checkout -q -b topic; {commit} two; git checkout -q main"
    subprocess.run(["sh", "-ec", script], env=clean_environ(), check=True)
    if not bare:
        return tree / ".git"
    subprocess.run(["git", "clone", "-q", "--bare", tree, tmp_path / "bare"], env=clean_environ(), check=True)
    return tmp_path / "bare"


def push_to(path: Path | str, tmp_path: Path, branch: str = "later", **environ: str) -> str:
    """Push a new commit to a repo from a clone; what git and the hooks say."""
    tree = tmp_path / f"tree-{branch}"
    environ = clean_environ() | environ
    for command in (
        ["git", "clone", "-q", str(path), str(tree)],
        ["git", "-C", str(tree), "commit", "-q", "--allow-empty", "-m", branch],
    ):
        subprocess.run(command, env=environ, check=True, timeout=60)
    push = ["git", "-C", str(tree), "push", "origin", f"HEAD:refs/heads/{branch}"]
    done = subprocess.run(push, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stderr


SEEN: dict[str, Callable[[Server, str], object]] = {
    "by its page": lambda server, name: server.get(f"/r/{name}"),
    "by the list of repos": lambda server, name: server.get("/"),
    "by the list of its jobs": lambda server, name: server.get(f"/jobs?repo={name}"),
    "by the page of a branch": lambda server, name: server.get(f"/r/{name}/mr/topic"),
    "by forge repos": lambda server, name: server.cli("repos"),
    "by forge why": lambda server, name: server.cli("why", name, "topic"),
    "by a clone": lambda server, name: subprocess.run(["git", "ls-remote", "-q", f"{server.url}/r/{name}.git"], check=True),
    "by nobody": lambda server, name: wait_for((server.data / f"repos/{name}.git/forge-home").exists, "a look", 5),
}


@pytest.mark.parametrize("how", SEEN)
def test_a_repo_that_was_copied_in_knows_of_forge_as_soon_as_it_is_seen(shared: Server, tmp_path: Path, how: str) -> None:
    name = how.replace(" ", "-")
    path = shared.data / f"repos/{name}.git"
    shutil.copytree(source_of(tmp_path), path)
    SEEN[how](shared, name)
    assert "later: pre-merge job" in push_to(path, tmp_path)
    shared.idle()
    jobs = shared.get(f"/jobs?repo={name}")["jobs"]
    assert sorted((job["branch"], job["kind"]) for job in jobs) == [("later", "pre-merge"), ("topic", "pre-merge")]


@needs_ssh
def test_a_repo_that_was_copied_in_is_seen_by_a_push_over_ssh(
    shared: Server, make_sshd: Callable[..., Sshd], tmp_path: Path
) -> None:
    host = make_sshd("host")
    host.allow(f'command="{shared.data}/bin/forge shell",restrict')
    shutil.copytree(source_of(tmp_path), shared.data / "repos/by-ssh.git")
    said = push_to(f"{host.url}/by-ssh.git", tmp_path, GIT_SSH_COMMAND=shlex.join(host.client()))
    assert "later: pre-merge job" in said


def test_a_repo_is_left_alone_while_it_is_being_copied(shared: Server, tmp_path: Path) -> None:
    """Half a copy would be taken for all of it: what came later would be new, and base be deployed."""
    source, path = source_of(tmp_path), shared.data / "repos/slow.git"
    over = threading.Event()

    def copy() -> None:
        """Files come one after the other, the refs last."""
        shutil.copytree(source, path, ignore=shutil.ignore_patterns("packed-refs"))
        for number in itertools.takewhile(lambda _: not over.wait(0.01), itertools.count()):
            (path / f"objects/info/part-{number}").touch()
        shutil.copy(source / "packed-refs", path)

    copying = threading.Thread(target=copy)
    copying.start()
    wait_for((path / "objects/info/part-0").exists, "the beginning of the copy")
    for _ in range(2):
        assert shared.ask("/").status == shared.ask("/r/slow").status == 200
        assert not (path / "forge-home").exists()
    over.set()
    copying.join()
    wait_for((path / "forge-home").exists, "a look at the whole of it", 5)
    shared.idle()
    assert [(job["branch"], job["kind"]) for job in shared.get("/jobs?repo=slow")["jobs"]] == [("topic", "pre-merge")]


def test_a_repo_that_took_the_place_of_another_is_completed(shared: Server, work: Work, tmp_path: Path) -> None:
    copy = source_of(tmp_path)
    work.path.rename(tmp_path / "old")
    shutil.move(copy, work.path)
    wait_for((work.path / "hooks/proc-receive").exists, "its hooks", 5)


def test_the_git_of_a_working_tree_is_told_with_what_mends_it(make_server: Callable[..., Server], tmp_path: Path) -> None:
    server = make_server()
    path = server.data / "repos/app.git"
    shutil.copytree(source_of(tmp_path, bare=False), path)
    mend = f"git config --file {path}/config --replace-all core.bare true"
    page = server.ask("/r/app", Accept="text/html")
    assert page.status == 409 and mend in page.text and mend in server.ask("/r/app").json["error"]
    assert mend in server.get("/")["repos"][0]["trouble"] and mend in server.ask("/", Accept="text/html").text
    assert mend in server.cli("repos").stdout and mend in server.cli("doctor", check=False).stdout
    assert mend in server.cli("status", "app", "topic", check=False).stderr
    subprocess.run(["sh", "-c", mend], check=True)
    wait_for((path / "forge-home").exists, "a look at what was mended", 5)
    assert server.get("/r/app")["trouble"] is None
    assert "later: pre-merge job" in push_to(path, tmp_path)
    server.idle()


WRONG = {
    "a submodule's": ("[core]\n\tbare = false\n\tworktree = ../../../lib\n", "--unset-all core.worktree"),
    "said twice": ("[core]\n\tbare = true\n[user]\n\tname = x\n[CORE]\n\tBare = No\n", "core.bare true"),
    "elsewhere": ("[core]\n\tworktree = /srv/app\n", "--unset-all core.worktree"),
    "fine": ("[core]\n\tbare = true\n[other]\n\tbare = false\n\tworktree = x\n", ""),
    "fine, corrected": ("[core]\n\tbare = false\n\tbare = true\n", ""),
}


@pytest.mark.parametrize("which", WRONG)
def test_what_git_takes_for_a_working_tree(make_server: Callable[..., Server], tmp_path: Path, which: str) -> None:
    server = make_server(start=False)
    path = server.data / "repos/app.git"
    shutil.copytree(source_of(tmp_path, bare=False), path)
    config, mend = WRONG[which]
    (path / "config").write_text(config)
    server.start()
    trouble = server.get("/")["repos"][0]["trouble"] or ""
    assert mend in trouble and bool(trouble) == bool(mend)
    if mend:
        subprocess.run(["sh", "-c", trouble.split("run: ")[1]], check=True)
    wait_for((path / "forge-home").exists, "the server's hooks", 5)


def test_a_working_tree_that_was_copied_in_is_told_with_what_makes_a_repo_of_it(
    make_server: Callable[..., Server], tmp_path: Path
) -> None:
    server = make_server()
    path = server.data / "repos/app.git"
    shutil.copytree(source_of(tmp_path, bare=False).parent, path)
    trouble = server.ask("/r/app").json["error"]
    assert "is a working tree" in trouble
    subprocess.run(["sh", "-c", trouble.split("run: ")[1]], check=True, env=clean_environ(), capture_output=True)
    wait_for((path / "forge-home").exists, "a look at what was mended", 5)
    assert "later: pre-merge job" in push_to(path, tmp_path)
    server.idle()


# -- links -----------------------------------------------------------------------------------------------------


def linked_repos(server: Server, elsewhere: Path) -> Path:
    """`repos` lies elsewhere, as on another disk."""
    elsewhere.mkdir()
    server.data.mkdir()
    (server.data / "repos").symlink_to(elsewhere)
    return elsewhere


def lead(link: Path, target: Path) -> Path:
    """Move a repo and put a link in its place."""
    target.parent.mkdir(exist_ok=True)
    shutil.move(link, target)
    link.symlink_to(target)
    return target


def test_pushes_reach_the_server_where_repos_is_a_link(make_server: Callable[..., Server], tmp_path: Path) -> None:
    server = make_server(start=False)
    elsewhere = linked_repos(server, tmp_path / "disk")
    work = server.start().repo()
    work.branch("topic", AUTO, run="git log -1 --format=%s && git cat-file -e HEAD^{tree} && git status --short\n")
    job = server.ended(work.push_job("topic"))
    assert job["status"] == "passed" and server.job_log(job["id"]) == b"Forge Merge: topic\n", server.job_log(job["id"])
    work.landed("topic")
    assert "direct: pre-merge job" in push_to(elsewhere / "app.git", tmp_path, "direct"), "by the path to which the link leads"
    shutil.copytree(source_of(tmp_path), elsewhere / "copied.git")
    wait_for((elsewhere / "copied.git/forge-home").exists, "a look at a copy", 5)
    server.idle()
    assert "is removed" in server.cli("delete", "copied", "--yes").stdout and not (elsewhere / "copied.git").exists()


def test_pushes_reach_the_server_where_one_repo_is_a_link(make_server: Callable[..., Server], tmp_path: Path) -> None:
    server = make_server()
    work = server.repo()
    target = lead(work.path, tmp_path / "disk/somewhere")
    wait_for(lambda: server.get("/r/app")["base"] == "main", "a look")
    work.branch(
        "topic",
        AUTO,
        run="git log -1 --format=%s && git cat-file -e HEAD^{tree}\n",
        deploy=f"git push -q {work.path} HEAD:refs/heads/made",
    )
    said = work.push("topic")
    assert "topic: pre-merge job" in said, said
    work.landed("topic")
    server.idle()
    assert "made" in work.heads(), "a deployment pushes by the path"
    assert "direct: pre-merge job" in push_to(target, tmp_path, "direct")
    server.idle()
    assert "a\u2028b" not in work.heads() and "line-separator" in work.push("HEAD:refs/heads/a\u2028b", check=False)
    assert str(target) in server.cli("delete", "app", "--yes").stdout
    assert target.is_dir() and not work.path.is_symlink()


def test_pushes_reach_the_server_where_the_data_directory_is_a_link(make_server: Callable[..., Server], tmp_path: Path) -> None:
    server = make_server("link", start=False)
    (tmp_path / "real").mkdir()
    server.data.symlink_to(tmp_path / "real")
    work = server.start().repo()
    work.branch("topic", AUTO)
    assert "topic: pre-merge job" in work.push("topic")
    work.landed("topic")
    assert "direct: pre-merge job" in push_to(tmp_path / "link/repos/app.git", tmp_path, "direct")
    server.idle()


def test_a_push_is_told_to_no_other_forge_than_its_own(make_server: Callable[..., Server], tmp_path: Path) -> None:
    """A copy of a repo says where its original lies, and a repo may say anything."""
    one, other = make_server("one"), make_server("two")
    work = one.repo()
    shutil.copytree(work.path, other.data / "repos/app.git")
    (other.data / "repos/app.git/forge-home").write_text(f"{work.path}\n")
    said = push_to(other.data / "repos/app.git", tmp_path)
    assert f"{other.url}/jobs/" in said and one.url not in said, said
    (work.path / "forge-home").write_text(f"{other.data}/repos/app.git\n")
    assert f"{one.url}/jobs/" in push_to(work.path, tmp_path, "another")
    for server in (one, other):
        server.idle()


@needs_ssh
def test_a_repo_behind_a_link_is_reached_over_ssh_by_its_path(
    make_server: Callable[..., Server], make_sshd: Callable[..., Sshd], tmp_path: Path
) -> None:
    server = make_server(start=False)
    linked_repos(server, tmp_path / "disk")
    work = server.start().repo()
    host = make_sshd("host")
    host.allow(f'command="{server.data}/bin/forge shell",restrict')
    ssh = shlex.join(host.client())
    for number, way in enumerate(("app.git", str(server.data / "repos/app.git").lstrip("/"))):
        assert f"by-{number}: pre-merge job" in push_to(f"{host.url}/{way}", tmp_path, f"by-{number}", GIT_SSH_COMMAND=ssh)
    lead(work.path, tmp_path / "more/there")
    assert "by-2: pre-merge job" in push_to(f"{host.url}{work.path}", tmp_path, "by-2", GIT_SSH_COMMAND=ssh)
    server.idle()


def test_the_lock_of_a_living_git_stays_where_a_link_leads(make_server: Callable[..., Server], tmp_path: Path) -> None:
    """A lock is known as ours by a note, and left alone while a git that may hold it lives in the repo."""
    server = make_server()
    work = server.repo()
    target = lead(work.path, tmp_path / "disk/app")
    with subprocess.Popen(["git", "cat-file", "--batch"], cwd=target, stdin=subprocess.PIPE, env=clean_environ()) as git:
        (work.path / "forge-note-0123456789ab").write_bytes(b"refs/heads/main.lock\0")
        (target / "refs/heads/main.lock").touch()
        forge.mend_locks(work.path)
        assert (target / "refs/heads/main.lock").exists()
        assert git.stdin
        git.stdin.close()
    forge.mend_locks(work.path)
    assert not (target / "refs/heads/main.lock").exists()


def test_the_unit_may_write_where_links_lead(make_server: Callable[..., Server], tmp_path: Path) -> None:
    server = make_server()
    work = server.repo()
    target = lead(work.path, tmp_path / "disk/app")
    assert str(target) in server.cli("unit").stdout


# -- what belongs to another user ------------------------------------------------------------------------------


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")


@pytest.fixture(scope="module")
def lone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of an ordinary user, in a place that this user can reach."""
    place = Path(tempfile.mkdtemp(prefix="forge-lone-", dir="/var/lib"))
    place.chmod(0o755)  # other users look at it, too
    os.chown(place, 65534, 65534)
    server = Server(place / "data", {"FORGE_MAX_JOBS": "1", "FORGE_SANDBOX": "none"}, wrapper=NOBODY)
    try:
        python = ordinary_python(place)
        if python is None:
            pytest.skip("no Python with the packages that a user without rights can run")
        server.program = [python, str(ROOT / "forge.py")]
        server.settings |= {"HOME": str(place), "PATH": "/usr/local/bin:/usr/bin:/bin"}
        yield server.start()
    finally:
        end(server)
        shutil.rmtree(place)


def repo_of(server: Server, name: str) -> Work:
    """A new repo and a clone of it, made by the user of the server."""
    tree = server.data.parent / f"tree-{name}"
    work = Work(server, name, Path(server.cli("create", name, "--base", "main").stdout.strip()), tree)
    tree.mkdir()
    os.chown(tree, 65534, 65534)
    work.git("init", "-q", "-b", "main")
    work.git("remote", "add", "origin", str(work.path))
    work.write(".forge/pre-merge", PRE_SCRIPT, executable=True)
    work.commit("First commit")
    work.push("main")
    work.bare("config", "core.logAllRefUpdates", "true")
    work.commit("Second commit")
    server.ended(work.push_job("main"))
    return work


def push_as_root(work: Work, *refs: str) -> str:
    """Push by path as root, who has told git that this is fine; what git and the hooks say."""
    trusting = work.server.data.parent / "gitconfig"
    trusting.write_text("[safe]\n\tdirectory = *\n")
    environ = clean_environ() | {"GIT_CONFIG_GLOBAL": str(trusting)}
    push = ["git", "-C", str(work.tree), "push", "origin", *refs]
    done = subprocess.run(push, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stderr


def taken(path: Path, mode: int | None = None) -> None:
    """Give a file or folder to root."""
    os.chown(path, 0, 0)
    if mode is not None:
        path.chmod(mode)


def pack(work: Work) -> Path:
    work.bare("-c", "gc.auto=0", "repack", "-q", "-a", "-d")
    return next(work.path.glob("objects/pack/*.pack"))


SPOILT: dict[str, tuple[str, Callable[[Work], object]]] = {
    "a folder of objects": ("objects/", lambda work: taken(next(work.path.glob("objects/[0-9a-f][0-9a-f]")))),
    "the folder of packs": ("objects/pack", lambda work: taken(work.path / "objects/pack")),
    "a pack": ("objects/pack/pack-", lambda work: taken(pack(work), 0o400)),
    "an object": ("objects/", lambda work: taken(next(work.path.glob("objects/[0-9a-f][0-9a-f]/*")), 0o400)),
    "a folder of branches": (
        "refs/heads/team",
        lambda work: ((work.path / "refs/heads/team").mkdir(), taken(work.path / "refs/heads/team")),
    ),
    "a branch": ("refs/heads/main", lambda work: taken(work.path / "refs/heads/main", 0o600)),
    "the packed refs": ("packed-refs", lambda work: (work.bare("pack-refs", "--all"), taken(work.path / "packed-refs", 0o600))),
    "a log of refs": ("logs/refs/heads/main", lambda work: taken(work.path / "logs/refs/heads/main", 0o644)),
    "the folder of the logs": ("logs", lambda work: taken(work.path / "logs")),
    "all of it": ("belongs to another user", lambda work: subprocess.run(["chown", "-R", "0:0", work.path], check=True)),
    "only its mode": ("refs/heads of only-its-mode has mode 0555", lambda work: (work.path / "refs/heads").chmod(0o555)),
}


@needs_root
@pytest.mark.parametrize("what", SPOILT)
def test_jobs_and_merges_wait_for_what_belongs_to_another_user_and_go_on_when_it_is_mended(lone: Server, what: str) -> None:
    named, spoil = SPOILT[what]
    work = repo_of(lone, what.replace(" ", "-"))
    work.branch("topic", AUTO, run=f"while [ ! -e {work.gate('go')} ]; do sleep 0.02; done\n")
    work.branch("other", AUTO)
    lone.running(first := work.push_job("topic"))
    second = work.push_job("other")  # it waits for its turn
    spoil(work)
    work.gate("go").touch()
    assert lone.ended(first)["status"] == "passed"

    def told() -> str:
        found: str = {repo["repo"]: repo["trouble"] for repo in lone.get("/")["repos"]}[work.name] or ""
        return found if named in found else ""

    trouble = wait_for(told, "the trouble", 10)
    mend = trouble.split("; ")[-1]
    wanted = f"run: chmod -R u+rwX {work.path}" if "mode" in what else f"as root: chown -R 65534:65534 {work.path}"
    assert mend == wanted and "\n" not in trouble
    page = lone.ask(f"/r/{work.name}", Accept="text/html")
    assert html.escape(mend) in page.text and mend in lone.ask(f"/r/{work.name}").text
    assert mend in lone.cli("repos").stdout and mend in lone.cli("doctor", check=False).stdout
    assert mend in subprocess.run([*FORGE, "doctor"], env=lone.environ, capture_output=True, text=True).stdout, "as root"
    assert lone.get(f"/jobs/{second}")["status"] != "failed"  # it may have begun before
    subprocess.run(["sh", "-c", mend.partition(": ")[2]], check=True)
    assert lone.ended(second)["status"] == "passed"
    work.landed("topic", "other")
    wait_for(lambda: lone.get(f"/r/{work.name}")["trouble"] is None, "the end of the trouble", 5)


@needs_root
def test_who_pushes_as_another_user_is_told_at_once_and_the_job_waits(lone: Server) -> None:
    work = repo_of(lone, "by-root")
    work.branch("team/topic", AUTO)
    said = push_as_root(work, "team/topic")
    mend = f"as root: chown -R 65534:65534 {work.path}"
    assert said.count(mend) == 1 and "/jobs/" in said, said
    job = lone.get("/jobs?repo=by-root&limit=1")["jobs"][0]
    assert (job["branch"], job["status"]) == ("team/topic", "pending")
    assert mend in lone.ask(f"/jobs/{job['id']}", Accept="text/html").text
    assert mend in lone.cli("why", "by-root", "team/topic").stdout
    answer = lone.act("/r/by-root/mr/team/topic/delete")
    assert answer.status == 409 and mend in answer.json["error"], answer.body
    subprocess.run(["sh", "-c", mend.partition(": ")[2]], check=True)
    work.landed("team/topic")
    assert lone.ended(job["id"])["status"] == "passed"


@needs_root
def test_who_pushes_as_another_user_is_told_without_a_server_too(lone: Server) -> None:
    work = repo_of(lone, "no-server")
    lone.stop()
    try:
        work.branch("topic")
        said = push_as_root(work, "topic")
        assert f"as root: chown -R 65534:65534 {work.path}" in said and "does not answer" in said, said
        subprocess.run(["chown", "-R", "65534:65534", work.path], check=True)
        work.branch("more")
        assert "chown" not in work.push("more")
    finally:
        lone.start()
    wait_for(lambda: work.mr("more")["job"], "its job")


@needs_root
def test_the_doctor_sees_a_data_directory_as_its_owner_does(lone: Server, tmp_path: Path) -> None:
    work = repo_of(lone, "healthy")

    def doctor(uid: int) -> dict[str, str]:
        place = lone.data.parent
        command = ["setpriv", "--reuid", str(uid), "--regid", str(uid), "--clear-groups", "env", *lone.program, "doctor"]
        done = subprocess.run(command, env=lone.environ, capture_output=True, text=True, timeout=60, cwd=place)
        assert "Traceback" not in done.stderr, done.stderr
        return {line.strip().split("  ")[1].strip() if line.startswith(" ") else line: line for line in done.stdout.splitlines()}

    for uid in (0, 65534):
        lines = doctor(uid).values()
        assert not any("chown" in line for line in lines), lines
        assert any("repo healthy" in line and line.strip().startswith("ok") for line in lines), lines
        assert any(" data " in line and line.strip().startswith("ok") for line in lines), lines
    taken(next(work.path.glob("objects/[0-9a-f][0-9a-f]")))
    for uid in (0, 65534):
        assert any("repo healthy" in line and f"chown -R 65534:65534 {work.path}" in line for line in doctor(uid).values())
    mode = lone.data.parent.stat().st_mode
    for place, closed in ((lone.data.parent, 0o711), (lone.data, 0o700)):
        place.chmod(closed)
        other = "\n".join(doctor(12345).values())
        assert "run forge as nobody" in other and "chown -R 12345" not in other, other
    lone.data.parent.chmod(mode)
    lone.data.chmod(0o755)
    subprocess.run(["chown", "-R", "65534:65534", work.path], check=True)


FILES: dict[str, tuple[Callable[[Path], object], bool | None]] = {
    "a file that can be read": (lambda repo: os.chown(next(repo.glob("objects/[0-9a-f][0-9a-f]/*")), 12345, 0), False),
    "a folder for all": (lambda repo: (os.chown(repo / "refs/tags", 12345, 0), (repo / "refs/tags").chmod(0o777)), False),
    "a push that goes on": (
        lambda repo: (
            (repo / "objects/tmp_objdir-incoming-x").mkdir(0o700),
            os.chown(repo / "objects/tmp_objdir-incoming-x", 12345, 0),
        ),
        None,
    ),
    "a lock": (lambda repo: ((repo / "refs/heads/main.lock").touch(), os.chown(repo / "refs/heads/main.lock", 12345, 0)), None),
    "a link": (lambda repo: (repo / "refs/heads/link").symlink_to("/root"), None),
    "a hook of one's own": (lambda repo: ((repo / "hooks/update").touch(), os.chown(repo / "hooks/update", 12345, 0)), None),
    "the hooks": (lambda repo: os.chown(repo / "hooks", 12345, 0), True),
    "a repo of a group": (
        lambda repo: (
            [path.chmod(0o2775) for path in (repo / "objects", *repo.glob("objects/*"))],
            os.chown(next(repo.glob("objects/[0-9a-f][0-9a-f]/*")), 12345, 65534),
        ),
        None,
    ),
    "a folder of a group": (
        lambda repo: (
            (repo / "objects").chmod(0o775),
            (repo / "refs/tags").chmod(0o2775),
            os.chown(repo / "refs/tags", 12345, 65534),
        ),
        None,
    ),
}


@needs_root
@pytest.mark.parametrize("what", FILES)
def test_what_is_told_of_files_of_others_and_what_work_waits_for(work: Work, tmp_path: Path, what: str) -> None:
    """None: nothing is told; False: it is told, and work goes on."""
    repo = tmp_path / "app.git"
    shutil.copytree(work.path, repo)
    subprocess.run(["chown", "-R", "65534:65534", repo], check=True)
    account = forge.account_of(65534, 65534)
    assert forge.find_ailment(repo, "app", account) is None
    spoil, blocks = FILES[what]
    spoil(repo)
    found = forge.find_ailment(repo, "app", account)
    assert (found.blocks if found else None) == blocks, found
    assert not found or found.text.endswith(f"as root: chown -R 65534:65534 {repo}")


DENIED = {
    "a lock": ("update-ref", "cannot lock ref 'refs/heads/main': Unable to create '/x/refs/heads/main.lock': Permission denied"),
    "an object": ("hash-object", "insufficient permission for adding an object to repository database objects"),
    "an attribute": ("update-ref", "unable to create '/x/packed-refs.lock': Operation not permitted"),
}


@pytest.mark.parametrize("what", DENIED)
def test_what_only_git_sees_is_waited_for_and_tried_again(make_server: Callable[..., Server], tmp_path: Path, what: str) -> None:
    verb, words = DENIED[what]
    deny = f'[ ! -e {tmp_path}/deny ] || case " $* " in *" {verb} "*) echo "fatal: {words}" >&2; exit 128 ;; esac'
    server = make_server(**git_after(tmp_path / "bin", deny.replace("$*", "$1")))
    work = server.repo()
    work.branch("topic", AUTO)
    (tmp_path / "deny").touch()
    job = work.push_job("topic")
    trouble = wait_for(lambda: server.get("/r/app")["trouble"], "the trouble")
    assert words.split(" ")[-1] in trouble and "chown -R" in trouble and "chown -R" in work.mr("topic")["why"]
    assert server.get(f"/jobs/{job}")["status"] == "pending"
    (tmp_path / "deny").unlink()
    assert server.ended(job)["status"] == "passed"
    work.landed("topic")
