"""Attacks on the server's own git: by what a push brings, what a deployment or a copied repo holds, and the environment."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import AUTO, FORGE, PASSWORD, Server, Work, clean_environ, wait_for

HOOKS = ("reference-transaction", "post-checkout", "post-index-change", "pre-auto-gc", "fsmonitor-watchman", "pre-commit")


# -- what a repo's own config and attributes say --------------------------------------------------------


def programs(evil: str) -> dict[str, str]:
    """Settings of git by which it runs `evil`, or prints what nobody can read."""
    run = dict.fromkeys(
        """core.fsmonitor core.alternateRefsCommand core.sshCommand core.gitProxy core.pager core.editor core.askPass
        gpg.program diff.external diff.evil.command diff.evil.textconv filter.evil.clean filter.evil.smudge filter.evil.process
        merge.evil.driver uploadpack.packObjectsHook gc.recentObjectsHook sequence.editor credential.helper""".split(),
        evil,
    )
    odd = {
        "merge.default": "evil",
        "filter.evil.required": "true",
        "alias.log": f"!{evil}",
        "log.showSignature": "true",
        "protocol.allow": "always",
        "submodule.recurse": "true",
        "color.ui": "always",
        "diff.noprefix": "true",
        "diff.context": "0",
        "diff.submodule": "log",
        "format.pretty": "raw",
        "i18n.logOutputEncoding": "UTF-16",
        "i18n.commitEncoding": "UTF-16",
        "core.autocrlf": "true",
    }
    return run | odd


def spy(folder: Path) -> tuple[Path, Path]:
    """A program that notes each time it runs, and where it does."""
    folder.mkdir()
    ran, evil = folder / "ran", folder / "evil"
    evil.write_text(f'#!/bin/sh\necho "$0 $*" >>{ran}\n')
    for name in HOOKS:
        (folder / name).symlink_to("evil")
    evil.chmod(0o755)
    folder.chmod(0o777)
    return evil, ran


LINES = "".join(f"line {number}\n" for number in range(20))


def test_what_a_deployment_or_a_copy_put_into_a_repo_is_not_run(make_server: Callable[..., Server], tmp_path: Path) -> None:
    """A post-merge job may write its repo: it plants programs in config, attributes and hooks; then a merge."""
    server = make_server()
    work = server.repo()
    evil, ran = spy(tmp_path / "spy")
    work.branch("main", "Lines", lines=LINES, **{".gitattributes": "* filter=evil diff=evil merge=evil\n"})
    work.push("HEAD:main")
    work.branch("topic", lines=LINES.replace("line 2\n", "line two\n"))
    work.push("topic")
    server.idle()
    settings = {
        **programs(str(evil)),
        "core.hooksPath": str(evil.parent),
        "core.attributesFile": str(work.path / "info/attributes"),
    }
    plant = [f"git -C {work.path} config '{key}' '{value}'" for key, value in settings.items()]
    plant += [f"mkdir -p {work.path}/info", f"echo '* filter=evil diff=evil merge=evil' >{work.path}/info/attributes"]
    work.branch("main", "Deploy", lines=LINES.replace("line 17\n", "line seventeen\n"), deploy="set -e\n" + "\n".join(plant))
    work.push("HEAD:main")
    server.idle()
    assert work.bare("config", "core.pager") == str(evil) and not ran.exists(), "planted, and not run yet"
    for accept in ("application/json", "text/html"):
        for path in (
            "/r/app",
            "/r/app/mr/topic",
            "/r/app/mr/topic?view=split",
            "/r/app/mr/topic?file=lines",
            "/r/app/deployments",
        ):
            answer = server.ask(path, Accept=accept)
            assert answer.status == 200, (path, answer.body)
    assert "line two" in answer.text or "line two" in server.ask("/r/app/mr/topic", Accept="text/html").text
    assert server.act("/r/app/mr/topic/merge").status in (200, 202)
    wait_for(work.merges, "the merge")
    server.idle()
    server.cli("audit", "app")
    run_git = ["git", "clone", "-q", "--bare", f"{server.url}/r/app.git", str(tmp_path / "clone")]
    subprocess.run(run_git, check=True, env=clean_environ())
    told = server.cli("prune").stdout
    assert "gc.recentObjectsHook is set" in told, told  # git 2.42 would run it
    work.bare("config", "--unset-all", "gc.recentObjectsHook")
    assert "recentObjectsHook" not in server.cli("prune").stdout
    server.stop()
    server.start()  # looks at everything
    server.idle()
    assert not ran.exists(), ran.read_text()
    shutil.copytree(work.path / "objects", tmp_path / "plain.git/objects")
    subprocess.run(["git", "init", "-q", "--bare", tmp_path / "plain.git"], check=True)
    show = ["git", "-C", str(tmp_path / "plain.git"), "cat-file", "-p"]
    (merge,) = work.merges()
    merged = LINES.replace("line 2\n", "line two\n").replace("line 17\n", "line seventeen\n")
    assert subprocess.run([*show, f"{merge['merge_commit']}:lines"], capture_output=True, text=True).stdout == merged
    said = subprocess.run([*show, merge["merge_commit"]], capture_output=True, text=True).stdout
    assert "Forge Merge: topic" in said and "encoding" not in said


def test_nothing_is_fetched_for_a_copied_partial_clone(make_server: Callable[..., Server], tmp_path: Path) -> None:
    server = make_server()
    work = server.repo()
    work.branch("topic")
    work.push("topic")
    server.idle()
    evil, ran = spy(tmp_path / "spy")
    copy = tmp_path / "copy.git"
    shutil.copytree(work.path, copy)
    head = work.heads()["topic"]
    (copy / "objects" / head[:2] / head[2:]).unlink()
    lines = ["[extensions]", "partialClone = origin", '[remote "origin"]', f"url = ext::{evil} %S", "promisor = true"]
    with open(copy / "config", "a") as config:
        print(*lines, "[protocol]", "allow = always", '[protocol "ext"]', "allow = always", sep="\n", file=config)
    (copy / "config").write_text(
        (copy / "config").read_text().replace("repositoryformatversion = 0", "repositoryformatversion = 1")
    )
    subprocess.run(["git", "-C", copy, "cat-file", "-e", head], env=clean_environ(), capture_output=True)
    assert ran.exists(), "this is how it would go"
    ran.unlink()
    copy.rename(server.data / "repos/copy.git")
    for path in ("/r/copy", "/r/copy/mr/topic", "/"):
        assert server.ask(path).status in (200, 404, 409), path
    body = {"repo": "copy", "ref": "refs/heads/topic", "oldrev": "0" * 40, "newrev": head}
    assert server.hook(json.dumps(body).encode(), Content_Type="application/json").status in (202, 409)
    server.idle()
    assert server.ask("/r/copy/mr/topic/merge", {"password": PASSWORD}).status in (200, 202, 404, 409)
    assert not ran.exists(), ran.read_text()


def test_a_submodule_is_neither_fetched_nor_entered(make_server: Callable[..., Server], tmp_path: Path) -> None:
    """A branch has a submodule, and the repo one that is ready to be checked out, with programs in its configuration."""
    server = make_server()
    work = server.repo()
    evil, ran = spy(tmp_path / "spy")
    inner = tmp_path / "inner"
    environ = clean_environ()
    subprocess.run(["git", "init", "-q", "-b", "main", inner], check=True, env=environ)
    (inner / "inside").write_text("inside\n")
    for words in (["add", "."], ["commit", "-qm", "Inner"]):
        subprocess.run(["git", "-C", inner, *words], check=True, env=environ)
    commit = subprocess.run(["git", "-C", inner, "rev-parse", "HEAD"], check=True, env=environ, capture_output=True, text=True)
    subprocess.run(["git", "clone", "-q", "--bare", inner, work.path / "modules/lib"], check=True, env=environ)
    planted = {"core.hooksPath": str(evil.parent), "core.bare": "false", "filter.evil.smudge": str(evil)}
    for key, value in planted.items():
        subprocess.run(["git", "--git-dir", work.path / "modules/lib", "config", key, value], check=True, env=environ)
    (work.path / "modules/lib/info/attributes").write_text("* filter=evil\n")
    for key, value in {"submodule.recurse": "true", "submodule.lib.active": "true", "submodule.lib.url": str(inner)}.items():
        work.bare("config", key, value)
    work.branch("topic", AUTO, **{".gitmodules": f'[submodule "lib"]\n\tpath = lib\n\turl = {inner}\n', "run": "ls -A lib\n"})
    work.git("update-index", "--add", "--cacheinfo", f"160000,{commit.stdout.strip()},lib")
    work.git("commit", "-q", "--amend", "--no-edit")
    job = server.ended(work.push_job("topic"))
    assert (job["status"], server.job_log(job["id"])) == ("passed", b""), server.job_log(job["id"])
    work.landed("topic")
    server.idle()
    assert not ran.exists(), ran.read_text()
    assert "lib" in work.bare("ls-tree", "--name-only", "main").split()


# -- the environment ------------------------------------------------------------------------------------


def test_no_environment_steers_the_git_of_server_hooks_and_commands(make_server: Callable[..., Server], tmp_path: Path) -> None:
    evil, ran = spy(tmp_path / "spy")
    user, far = tmp_path / "user", str(tmp_path / "far")
    user.write_text(
        "".join(
            "[{}]\n\t{} = {}\n".format(*key.rsplit(".", 1), value)
            for key, value in programs(str(evil)).items()
            if key.count(".") == 1
        )
    )
    with open(user, "a") as config:
        print(f"[forge]\n\tprotect = false\n\tpreMerge = false\n[core]\n\thooksPath = {evil.parent}", file=config)
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(user, home / ".gitconfig")
    steering = {
        **dict.fromkeys(("GIT_CONFIG", "GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"), str(user)),
        **dict.fromkeys(
            ("GIT_DIR", "GIT_COMMON_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_TEMPLATE_DIR"), far
        ),
        **dict.fromkeys(("GIT_EXTERNAL_DIFF", "GIT_SSH", "GIT_SSH_COMMAND", "GIT_PAGER", "GIT_EDITOR", "GIT_ASKPASS"), str(evil)),
        **dict.fromkeys(("GIT_TRACE", "GIT_TRACE2", "GIT_TRACE_SETUP", "GIT_TRACE_PACKET"), str(ran)),
        "GIT_CONFIG_PARAMETERS": f"'core.fsmonitor={evil}' 'forge.protect=false'",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "core.pager",
        "GIT_CONFIG_VALUE_0": str(evil),
        "GIT_NAMESPACE": "other",
        "GIT_REPLACE_REF_BASE": "refs/heads/",
        "GIT_AUTHOR_NAME": "Mallory",
        "GIT_COMMITTER_DATE": "1 +0000",
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home),
    }
    server = make_server(**steering)
    work = server.repo()
    work.bare("config", "forge.protect", "true")
    work.branch("topic", AUTO)
    assert "merged into main as" in work.push("topic", options=("wait",))
    assert (
        work.bare("log", "-1", "--format=%an %cn") == "forge forge" or work.bare("log", "-1", "--format=%an", "main") == "forge"
    )
    assert server.cli("audit", "app").stdout and not ran.exists(), ran.read_text()
    # a pusher has an environment, too; git drops most of it on the way to the repo, but not which files hold his settings
    own = {
        **clean_environ(),
        **{
            key: value
            for key, value in steering.items()
            if key in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_PARAMETERS")
        },
    }
    work.branch("main", direct="push")
    pushed = subprocess.run(
        ["git", "push", "origin", "HEAD:main", "HEAD:refs/heads/é"], cwd=work.tree, env=own, capture_output=True, text=True
    )
    assert pushed.returncode == 1 and "forge.protect is set" in pushed.stderr, pushed.stderr


def test_the_command_imports_nothing_from_where_it_is_called(work: Work, tmp_path: Path) -> None:
    """Hooks call it in a repo, which a deployment may write, and jobs in what a branch brought."""
    ran = tmp_path / "ran"
    for name in ("argparse", "bottle", "forge", "platform", "psutil"):
        (work.path / f"{name}.py").write_text(f"open({str(ran)!r}, 'a').write(__name__)\nraise SystemExit('taken over')\n")
    work.branch("topic")
    said = work.push("topic:refs/heads/é", check=False)
    assert not ran.exists() and "taken over" not in said and "é" in work.heads(), said
    plant = {f"{name}.py": "raise SystemExit('taken over')\n" for name in ("argparse", "bottle", "forge", "platform", "psutil")}
    work.branch("calls", run="forge --version || forge --help | head -1\n", **plant)
    job = work.server.ended(work.push_job("calls"))
    assert job["status"] == "passed" and b"taken over" not in work.server.job_log(job["id"])
    work.server.idle()


# -- what a push may bring ------------------------------------------------------------------------------


def write_object(work: Work, kind: str, content: bytes) -> str:
    """Put an object into a clone that git itself would not make."""
    command = ["git", "hash-object", "-t", kind, "-w", "--literally", "--stdin"]
    return subprocess.run(command, cwd=work.tree, input=content, capture_output=True, check=True).stdout.decode().strip()


def entry(mode: str, name: str, object_id: str) -> bytes:
    return f"{mode} {name}\0".encode() + bytes.fromhex(object_id)


def commit_with(
    work: Work, *entries: bytes, author: str = "Ada <ada@localhost> 1 +0000", message: str = "Odd\n\nAuto-Merge: yes"
) -> str:
    """A commit on main in which are `entries` and what main holds, or with an author that git would not write."""
    listed = {line.split("\t")[1]: line.split()[:3] for line in work.git("ls-tree", "origin/main").split("\n")}
    have = [entry(mode.lstrip("0"), name, object_id) for name, (mode, _, object_id) in listed.items()]
    tree = write_object(work, "tree", b"".join(sorted([*have, *entries], key=lambda part: part.split(b" ", 1)[1])))
    head = f"tree {tree}\nparent {work.git('rev-parse', 'origin/main')}\nauthor {author}\n"
    return write_object(work, "commit", f"{head}committer Ada <ada@localhost> 1 +0000\n\n{message}\n".encode())


MODULES = '[submodule "{}"]\n\tpath = {}\n\turl = {}\n\tupdate = {}\n'
EVIL_MODULES = {
    "gitmodulesUrl": MODULES.format("x", "x", "--upload-pack=touch", "none"),
    "gitmodulesName": MODULES.format("../../x", "x", "https://example.org/x", "none"),
    "gitmodulesPath": MODULES.format("x", "--x", "https://example.org/x", "none"),
    "gitmodulesUpdate": MODULES.format("x", "x", "https://example.org/x", "!touch x"),
}


@pytest.fixture(scope="module")
def target(shared: Server) -> Work:
    """A repo that evil objects are pushed to; without a check."""
    work = shared.repo("target")
    work.bare("config", "forge.preMerge", "true")
    return work


@pytest.mark.parametrize(
    "kind",
    [
        "hasDotgit",
        "hasDotgit:.GIT",
        "hasDotgit:git~1",
        "hasDotdot",
        "hasDot",
        "fullPathname",
        "duplicateEntries",
        "gitmodulesSymlink",
        *EVIL_MODULES,
    ],
)
def test_objects_that_attack_a_git_are_refused(target: Work, kind: str) -> None:
    target.git("fetch", "-q", "origin")
    blob = write_object(target, "blob", EVIL_MODULES.get(kind, "x\n").encode())
    what, _, name = kind.partition(":")
    names = {"hasDotgit": name or ".git", "hasDotdot": "..", "hasDot": ".", "fullPathname": "/etc", "duplicateEntries": "twice"}
    mode = "120000" if what == "gitmodulesSymlink" else "100644"
    made = entry(mode, names.get(what, ".gitmodules"), blob)
    evil = commit_with(target, *([made, made] if what == "duplicateEntries" else [made]))
    said = target.push(f"{evil}:refs/heads/evil", check=False)
    assert what in said and "rejected" in said, said
    assert "evil" not in target.heads()
    there = subprocess.run(["git", "-C", target.path, "cat-file", "-e", evil], capture_output=True)
    assert there.returncode != 0 and not list(target.path.glob("objects/tmp_objdir-*")), "nothing of it is left"


OLD_AUTHORS = {
    "badDate": "Ada <a@b> now +0000",
    "badDateOverflow": "Ada <a@b> 99999999999999999999999 +0000",
    "badEmail": "Ada <a@b<c> 1 +0000",
    "badName": "Ada> <a@b> 1 +0000",
    "badTimezone": "Ada <a@b> 1 +051800",
    "missingEmail": "Ada 1 +0000",
    "missingNameBeforeEmail": "<a@b> 1 +0000",
    "missingSpaceBeforeDate": "Ada <a@b>1 +0000",
    "missingSpaceBeforeEmail": "Ada<a@b> 1 +0000",
    "zeroPaddedDate": "Ada <a@b> 01 +0000",
}


def test_old_histories_can_be_imported_and_merged(target: Work) -> None:
    """All faults of histories that old tools wrote, in one push: told, taken, shown, merged."""
    target.git("fetch", "-q", "origin")
    blob = write_object(target, "blob", b"old\n")
    commits = {kind: commit_with(target, entry("100644", kind, blob), author=author) for kind, author in OLD_AUTHORS.items()}
    commits["zeroPaddedFilemode"] = commit_with(target, entry("0100644", "padded", blob))
    said = target.push(*(f"{commit}:refs/heads/{kind}" for kind, commit in commits.items()))
    assert [kind for kind in commits if f"{kind}: " not in said] == [], said
    for kind in commits:
        for accept in ("application/json", "text/html"):
            assert target.server.ask(f"/r/target/mr/{kind}", Accept=accept).status in (200, 404)
            assert target.server.ask("/r/target", Accept=accept).status == 200
    target.landed(*commits)
    target.server.idle()
    assert {"badDate", "missingEmail", "padded"} <= set(target.bare("ls-tree", "--name-only", "main").split())
    for path in ("/", "/r/target", "/r/target/history", "/r/target/deployments", "/r/target/feed.atom", "/jobs?repo=target"):
        assert target.server.ask(path, Accept="text/html").status == 200, path


def test_a_push_over_the_limit_is_refused_and_leaves_nothing(work: Work) -> None:
    assert work.bare("config", "receive.maxInputSize") == "1g"
    work.bare("config", "receive.maxInputSize", "200k")
    work.bare("config", "receive.fsck.badEmail", "error")
    work.branch("large", large=os.urandom(300_000).hex())
    said = work.push("large", check=False)
    assert "pack exceeds maximum allowed size" in said and "rejected" in said, said
    left = [path for path in work.path.glob("objects/**/*") if "tmp" in path.name or "incoming" in path.name]
    assert "large" not in work.heads() and left == []
    work.server.stop()
    work.server.start()
    work.branch("small")
    work.push("small")
    assert work.bare("config", "receive.maxInputSize") == "200k" and work.bare("config", "receive.fsck.badEmail") == "error"
    work.server.idle()


# -- refs -----------------------------------------------------------------------------------------------


def test_nothing_but_heads_and_tags_is_pushed_and_what_was_tested_can_be_fetched(work: Work) -> None:
    head = work.branch("topic")
    job = work.push_job("topic")
    work.server.ended(job)
    tested = f"refs/forge/jobs/{job}"
    before = work.bare("for-each-ref")
    for ref in (
        f"refs/replace/{head}",
        "refs/notes/commits",
        "refs/forge/jobs/99",
        tested,
        "refs/x",
        "refs/changes/1",
        "refs/stash",
        "refs/headsx/a",
    ):
        for refspec in (f"main:{ref}", f":{ref}"):
            said = work.push(f"+{refspec}" if refspec[0] != ":" else refspec, check=False)
            assert "rejected" in said or "remote ref does not exist" in said or "unable to delete" in said, said
            if refspec[0] != ":" and "forge" not in ref:
                assert "only branches (refs/heads/) and tags (refs/tags/) can be pushed" in said
            assert "forge" not in ref or refspec[0] == ":" or "deny updating a hidden ref" in said, said
    assert work.bare("for-each-ref") == before
    work.git("fetch", "-q", "origin", tested)
    assert work.git("rev-parse", "FETCH_HEAD^2") == head or work.git("rev-parse", "FETCH_HEAD") == head


@pytest.mark.parametrize("way", ["replaced", "grafted"])
def test_what_was_copied_in_beside_the_objects_changes_no_history_and_no_content(work: Work, way: str) -> None:
    """Replaced or grafted, base contains the head, which holds somebody else's tree: nothing would be merged, or that."""
    base, head = work.heads()["main"], work.branch("topic", AUTO, good="yes")
    work.git("checkout", "-q", "--orphan", "evil")
    evil = work.commit("Evil", evil="yes")
    contains = work.git("commit-tree", f"{evil}^{{tree}}", "-p", head, "-m", "Contains the head")
    work.git("push", "-q", str(work.path), f"{evil}:refs/tags/evil", f"{contains}:refs/tags/contains")
    if way == "replaced":
        for there, other in {head: evil, base: contains, work.git("rev-parse", f"{head}^{{tree}}"): f"{evil}^{{tree}}"}.items():
            work.bare("update-ref", f"refs/replace/{there}", work.git("rev-parse", other))
    else:
        (work.path / "info").mkdir(exist_ok=True)
        (work.path / "info/grafts").write_text(f"{base} {head}\n")
    assert "merged into main as" in work.push("topic", options=("wait",))
    true = {**clean_environ(), "GIT_NO_REPLACE_OBJECTS": "1", "GIT_GRAFT_FILE": "/nonexistent"}
    listed = subprocess.run(["git", "-C", work.path, "ls-tree", "--name-only", "main"], env=true, capture_output=True, text=True)
    assert "good" in listed.stdout.split() and "evil" not in listed.stdout.split()
    work.server.idle()


def test_a_branch_that_is_a_second_name_goes_alone(work: Work) -> None:
    """Symbolic refs cannot be pushed, but come with a copied repo: what they name stays when they are removed."""
    head = work.branch("topic")
    work.push("topic")
    work.git("push", "-q", "origin", f"{head}:refs/tags/kept")
    work.bare("symbolic-ref", "refs/heads/alias", "refs/heads/topic")
    work.bare("symbolic-ref", "refs/heads/tagged", "refs/tags/kept")
    work.bare("symbolic-ref", "refs/heads/dangling", "refs/heads/nowhere")
    work.bare("symbolic-ref", "refs/heads/out", "refs/forge/jobs/1")
    for name in ("alias", "tagged"):
        assert work.server.act(f"/r/{work.name}/mr/{name}/delete").status == 200, name
    assert work.heads()["topic"] == head and work.bare("rev-parse", "refs/tags/kept") == head
    assert "alias" not in work.heads() and "tagged" not in work.heads()
    assert work.server.ask(f"/r/{work.name}", Accept="text/html").status == 200
    work.server.idle()


def test_a_copied_repo_with_names_that_could_not_be_pushed_is_served(make_server: Callable[..., Server], tmp_path: Path) -> None:
    server = make_server()
    work = server.repo()
    head = work.branch("topic")
    copy = tmp_path / "copy.git"
    subprocess.run(["git", "clone", "-q", "--bare", "--shared", str(work.path), str(copy)], check=True)
    work.git("push", "-q", str(copy), f"{head}:refs/heads/topic")
    names = ["-x", "HEAD", "1" * 40, head, "a\u202eb", "@"]
    for name in names:
        subprocess.run(["git", "-C", copy, "update-ref", f"refs/heads/{name}", head], check=True)
    copy.rename(server.data / "repos/copy.git")
    listed = lambda: {mr["branch"]: mr for mr in server.get("/r/copy")["merge_requests"]}  # noqa: E731
    wait_for(lambda: server.get("/r/copy")["base"] == "main" and set(names) <= set(listed()), "the branches")
    assert {listed()[name]["head"] for name in names} == {head}
    assert server.ask("/r/copy", Accept="text/html").status == 200
    body = {"repo": "copy", "ref": "refs/heads/topic", "oldrev": "0" * 40, "newrev": head}
    assert len(server.hook(json.dumps(body).encode(), Content_Type="application/json").json["jobs"]) >= 1
    server.idle()
    assert server.act("/r/copy/mr/HEAD/delete").status == 200
    assert server.act("/r/copy/mr/-x/merge").status == 200
    found = subprocess.run([*FORGE, "audit", "copy"], env=server.environ, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    server.idle()


@pytest.mark.parametrize("trick", ["git directory", "link and directory", "dotdot"])
def test_trees_that_were_copied_in_write_nothing_beside_the_checkout(target: Work, tmp_path: Path, trick: str) -> None:
    """What no push brings, a copied repo may hold: a `.git` of its own, a way through a link, a way up."""
    target.git("fetch", "-q", "origin")
    out = target.server.data / "work/outside"
    inner = write_object(target, "tree", entry("100755", "planted", write_object(target, "blob", b"#!/bin/sh\n")))
    made = {
        "git directory": [entry("40000", ".git", inner)],
        "link and directory": [entry("120000", "a", write_object(target, "blob", str(out).encode())), entry("40000", "a", inner)],
        "dotdot": [entry("40000", "..", inner)],
    }[trick]
    evil, name = commit_with(target, *made, message="Odd"), trick.replace(" ", "-")
    out.mkdir(exist_ok=True)
    for path in (Path(target.git("rev-parse", "--absolute-git-dir")) / "objects").glob("??/*"):
        there = target.path / "objects" / path.parent.name / path.name
        there.parent.mkdir(exist_ok=True)
        shutil.copy(path, there) if not there.exists() else None
    target.bare("update-ref", f"refs/heads/{name}", evil)
    body = {"repo": "target", "ref": f"refs/heads/{name}", "oldrev": "0" * 40, "newrev": evil}
    answer = target.server.hook(json.dumps(body).encode(), Content_Type="application/json")
    job = target.server.ended(answer.json["jobs"][0]["id"])
    if trick == "link and directory":  # in a checkout that was used before, git may make the directory, without the link
        assert job["status"] == "passed" or "it could not be prepared" in job["reason"], job
    else:
        assert job["status"] == "failed" and "it could not be prepared" in job["reason"], job
        assert not [*(target.server.data / "work").rglob("planted")]
    assert not [*out.iterdir()]
    assert target.server.ask(f"/r/target/mr/{name}", Accept="text/html").status == 200
    target.server.act(f"/r/target/mr/{name}/delete")
    out.rmdir()
    target.server.idle()


def test_a_shallow_copy_is_served_and_a_shared_one_stays_shared(make_server: Callable[..., Server], tmp_path: Path) -> None:
    server = make_server()
    origin = server.repo("origin")
    origin.branch("main", second="commit")
    origin.push("HEAD:main")
    clone = ["git", "clone", "-q", "--bare", "--depth=1", f"file://{origin.path}", str(tmp_path / "shallow")]
    for name, command in {
        "shallow": clone,
        "shared": ["git", "init", "-q", "--bare", "--shared", "-b", "main", str(tmp_path / "shared")],
    }.items():
        copy = server.data / f"repos/{name}.git"
        subprocess.run(command, check=True, env=clean_environ())
        if name == "shared":
            origin.git("push", "-q", str(tmp_path / name), "HEAD:refs/heads/main")
        (tmp_path / name).rename(copy)
        work = Work(server, name, copy, tmp_path / f"{name}-work")
        subprocess.run(["git", "clone", "-q", str(copy), str(work.tree)], check=True, capture_output=True)
        server.stop()
        server.start()  # looks at it at once
        wait_for((copy / "hooks/post-receive").exists, "the hooks")
        work.branch("topic", AUTO)
        assert "merged into main as" in work.push("topic", options=("wait",))
        assert server.ask(f"/r/{name}/history", Accept="text/html").status == 200
    closed = [path for path in copy.glob("objects/??") if not path.stat().st_mode & stat.S_IWGRP]
    assert closed == [], "the others of the group can push"
    server.idle()


# -- what is planted where the server itself opens and writes --------------------------------------------


def planted(server: Server, work: Work, script: str) -> None:
    """Let a deployment of `work`, in its sandbox, run a script in the repo `victim.git`; then look at all repos."""
    shutil.copytree(work.path, server.data / "repos/victim.git")
    work.branch("main", "Deploy", deploy=f"cd {server.data}/repos/victim.git || exit\n{script}\n")
    said = work.push("HEAD:main")
    assert server.ended(int(said.split("/jobs/")[1].split()[0]))["status"] == "passed"
    server.stop()
    server.start()
    wait_for(lambda: "victim" in [repo["repo"] for repo in server.get("/")["repos"]], "a look at the repo")


def test_a_link_in_a_repo_leads_the_server_to_no_file_of_its_own(make_server: Callable[..., Server]) -> None:
    """The server writes its hooks by a name that is known beforehand: a deployment may have put a link there."""
    server = make_server()
    work = server.repo()
    keys = {name: server.data / name for name in ("token", "session-key", "jobs.jsonl")}
    before = {name: (path.read_bytes()[:40], stat.S_IMODE(path.stat().st_mode)) for name, path in keys.items()}
    links = [f"rm -f hooks/p*; ln -s {server.data}/token hooks/.post-receive.new"]
    links.append(f"ln -s {server.data}/session-key hooks/.pre-receive.new")
    planted(server, work, "\n".join(links))
    hook = server.data / "repos/victim.git/hooks/post-receive"
    wait_for(lambda: os.access(hook, os.X_OK), "the hooks")
    after = {name: (path.read_bytes()[:40], stat.S_IMODE(path.stat().st_mode)) for name, path in keys.items()}
    assert after == before
    assert not hook.is_symlink() and not (hook.parent / "pre-receive").is_symlink()


@pytest.mark.parametrize("part", ["config", "refs"])
def test_a_repo_whose_parts_lie_elsewhere_is_not_written_to(make_server: Callable[..., Server], part: str) -> None:
    """Git writes through a link: our settings for the repo would get into whatever file a deployment chose."""
    server = make_server()
    work = server.repo()
    elsewhere = server.data / "repos/elsewhere"
    planted(server, work, f"rm -f hooks/p*; mv {part} {elsewhere}; ln -s {elsewhere} {part}")
    before = [(path, path.read_bytes()) for path in (elsewhere, *elsewhere.glob("**/*")) if path.is_file()]

    def told() -> str:
        return str({repo["repo"]: repo["trouble"] for repo in server.get("/")["repos"]}.get("victim"))

    wait_for(lambda: "is a link to" in told(), "the trouble")
    assert [(path, path.read_bytes()) for path in (elsewhere, *elsewhere.glob("**/*")) if path.is_file()] == before
    assert server.ask("/r/victim").status == 409


PIPES = ["forge-note-0123456789ab", "hooks/post-receive", "config", "HEAD"]


@pytest.mark.parametrize("name", PIPES)
def test_a_pipe_where_a_file_should_be_keeps_nobody_waiting(make_server: Callable[..., Server], name: str) -> None:
    """Who opens a FIFO waits until somebody writes to it: neither a start, nor a look at repos, nor pages may."""
    server = make_server()
    work = server.repo()
    planted(server, work, f"rm -f {name}; mkfifo {name}")
    for path in ("/", "/healthz", "/r/app", "/jobs"):
        assert server.ask(path).status == 200
    later = server.data / "repos/zz-later.git"  # it comes after the other one
    shutil.copytree(work.path, later)
    (later / "hooks/post-receive").unlink()
    server.stop()
    server.start()
    wait_for((later / "hooks/post-receive").exists, "a look at all repos")
    work.branch("topic", AUTO)
    work.push("topic")
    work.landed("topic")


ODD_NEWS = {
    "a pipe": "mkfifo {0}",
    "of the year 60000": "printf 'repo app\\n' >{0}; touch -d @1831300000000 {0}",
    "before 1970": "printf 'repo app\\n' >{0}; touch -d @-9000000000 {0}",
    "a link": "ln -s ../token {0}",
    "a folder": "mkdir {0}",
}


def test_what_is_left_for_the_server_by_others_stops_no_look_at_the_repos(make_server: Callable[..., Server]) -> None:
    """Who pushes by path, and a deployment, may write into `incoming`."""
    server = make_server()
    work = server.repo()
    left = [script.format(f"{server.data}/incoming/{number}") for number, script in enumerate(ODD_NEWS.values())]
    work.branch("main", "Deploy", deploy="\n".join(left))
    work.push("HEAD:main")
    server.idle()
    assert len(list((server.data / "incoming").iterdir())) == len(ODD_NEWS)
    server.stop()
    (work.path / "hooks/post-receive").unlink()
    work.branch("topic", AUTO)
    work.push("topic")
    server.start()
    work.landed("topic")
    assert (server.data / "token").read_text().strip() not in server.log
    assert {path.name for path in (server.data / "incoming").iterdir()} == {"0", "3", "4"}
