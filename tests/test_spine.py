"""From a push to a merge to a deployment job, on real git."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import AUTO, FORGE, Server, Work, clean_environ, end, wait_for

import forge

NULL = "0" * 40


# -- hooks ---------------------------------------------------------------------------------------


def test_a_push_is_answered_with_the_link_of_its_job(work: Work) -> None:
    work.branch("topic")
    said = work.push("topic")
    assert f"{work.server.url}/jobs/" in said and "topic: pre-merge job" in said


def test_an_auto_merge_branch_ends_in_base_and_is_removed_and_deployed(work: Work) -> None:
    head = work.branch("topic", AUTO, deploy="echo deployed $FORGE_COMMIT on $FORGE_BASE")
    before = work.heads()["main"]
    job = work.server.ended(work.push_job("topic"))
    work.landed("topic")
    base = work.heads()["main"]
    assert base == job["tested"] and job["commit"] == head and job["base"] == before
    assert work.bare("log", "-1", "--format=%P", base) == f"{before} {head}"
    message = work.bare("log", "-1", "--format=%B", base)
    assert message == f"Forge Merge: topic\n\nForge-Branch: topic\nForge-Head: {head}\nForge-Job: {job['id']}"
    work.server.idle()
    deployment = work.server.get(f"/jobs?repo={work.name}&kind=post-merge&limit=1")["jobs"][0]
    assert deployment["status"] == "passed" and deployment["commit"] == base
    assert work.server.job_log(deployment["id"]).decode() == f"deployed {base} on {before}\n"
    merge = work.merges()[0]
    assert (merge["merge_commit"], merge["head"], merge["how"], merge["job"]) == (base, head, "auto", job["id"])
    assert f"merged {work.name}/topic: {base}" in work.server.log


def test_one_request_a_push_however_many_refs(work: Work) -> None:
    names = [f"many-{number}" for number in range(12)]
    for name in names:
        work.branch(name)
    before = len(work.server.journal())
    said = work.push(*names)
    assert all(f"{name}: pre-merge job" in said for name in names)
    queued = {r["branch"]: r["at"] for r in work.server.journal()[before:] if r["event"] == "job.queued"}
    assert set(queued) == set(names) and len(set(queued.values())) == 1
    work.server.idle()


def test_wait_shows_the_log_and_ends_with_verdict_and_merge(work: Work) -> None:
    work.branch("topic", AUTO, run="echo one; sleep 0.4; echo two\n")
    said = work.push("topic", options=("wait",))
    assert said.index("remote: one") < said.index("remote: two") < said.index("passed after") < said.index("merged into main as")


def test_wait_ends_with_the_reason_of_a_failure(work: Work) -> None:
    work.branch("topic", AUTO, run="echo bad; exit 7\n")
    assert "failed after" in (said := work.push("topic", options=("wait",))) and "exit code 7" in said


def test_the_merge_option_is_the_trailer_for_one_push(work: Work) -> None:
    work.branch("topic")
    assert "merged into main" in work.push("topic", options=("merge", "wait"))
    assert work.merges()[0]["how"] == "auto"
    work.branch("other", one="1")
    work.branch("other", run="sleep 1\n")
    work.push("other", options=("merge",))
    work.commit("More", two="2")
    work.server.ended(work.push_job("other"))
    work.server.idle()
    assert work.mr("other")["auto_merge"] is False and "other" in work.heads()


def test_a_push_while_the_server_is_down_is_accepted_and_picked_up(make_server: Callable[..., Server]) -> None:
    server = make_server()
    work = server.repo()
    server.stop()
    work.branch("topic", AUTO)
    said = work.push("topic", options=("wait",))
    assert "the push is accepted" in said and "picks it up when it is back" in said
    assert len(list((server.data / "incoming").iterdir())) == 1
    server.start()
    work.landed("topic")
    wait_for(lambda: not list((server.data / "incoming").iterdir()), "the delivery")
    assert [job["branch"] for job in server.get("/jobs?kind=pre-merge")["jobs"]] == ["topic"]


def test_what_was_pushed_with_merge_while_the_server_was_down_merges(make_server: Callable[..., Server]) -> None:
    server = make_server()
    work = server.repo()
    server.stop()
    work.branch("topic")
    work.push("topic", options=("merge",))
    server.start()
    work.landed("topic")


def test_a_lost_hook_is_made_up_for_by_the_next_look(work: Work) -> None:
    work.branch("topic")
    hook = work.path / "hooks/post-receive"
    kept = hook.read_bytes()
    hook.write_text("#!/bin/sh\nexit 0\n# forge's hook\n")
    work.push("topic")
    hook.write_bytes(kept)
    assert work.mr("topic")["job"] is None
    body = f'{{"repo": "{work.name}", "updates": []}}'.encode()
    assert work.server.hook(body, Content_Type="application/json").status == 202
    assert work.mr("topic")["job"]["status"] in ("pending", "running", "passed")
    work.server.idle()
    assert len(work.server.get(f"/jobs?repo={work.name}&branch=topic")["jobs"]) == 1


def test_a_slow_server_holds_a_push_up_for_ten_seconds_at_most(make_server: Callable[..., Server]) -> None:
    server = make_server()
    work = server.repo()
    assert server.process
    server.process.send_signal(signal.SIGSTOP)
    try:
        work.branch("topic")
        began = time.monotonic()
        said = work.push("topic")
        assert "the push is accepted" in said and 8 < time.monotonic() - began < 20
    finally:
        server.process.send_signal(signal.SIGCONT)
    server.idle()
    assert work.mr("topic")["job"]["status"] == "passed"


def test_hooks_of_ones_own_are_kept_and_called(make_server: Callable[..., Server], tmp_path: Path) -> None:
    server = make_server()
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(server.data / "repos/old.git")], check=True)
    for hook in ("pre-receive", "post-receive"):
        script = server.data / "repos/old.git/hooks" / hook
        script.write_text(f"#!/bin/sh\nsed 's/^/{hook} /' >>{tmp_path}/called\n")
        script.chmod(0o755)
    server.stop()
    server.start()
    wait_for((server.data / "repos/old.git/hooks/post-receive.local").exists, "the completion of the hooks")
    tree = tmp_path / "clone"
    environ = clean_environ()
    for command in (["init", "-q", "-b", "main", "."], ["commit", "-q", "--allow-empty", "-m", "x"]):
        tree.mkdir(exist_ok=True)
        subprocess.run(["git", *command], cwd=tree, env=environ, check=True)
    done = subprocess.run(
        ["git", "push", str(server.data / "repos/old.git"), "main"], cwd=tree, env=environ, capture_output=True, text=True
    )
    assert "post-merge job" in done.stderr
    called = (tmp_path / "called").read_text()
    assert called.count("pre-receive 0000") == 1 and called.count("post-receive 0000") == 1


@pytest.mark.parametrize(
    ("ref", "reason"),
    [
        ("refs/heads/-x", "begins with '-'"),
        ("refs/heads/" + "a" * 40, "looks like an object id"),
        ("refs/heads/HEAD", "means something else"),
        ("refs/tags/" + "x" * 201, "at most 200"),
        ("refs/heads/" + "é" * 101, "at most 200"),
        ("refs/heads/a\u2028b", "line-separator"),
        ("refs/notes/x", "only branches"),
        ("refs/forge/jobs/1", "only branches"),
    ],
    ids=lambda value: value[:24],
)
def test_odd_names_are_refused_in_words(work: Work, ref: str, reason: str) -> None:
    said = work.push(f"HEAD:{ref}", check=False)
    assert reason in said and "rejected" in said


def test_a_protected_base_takes_no_direct_push_but_its_first(shared: Server, work: Work) -> None:
    work.bare("config", "forge.protect", "true")
    work.branch("main", other="file")
    assert "forge.protect is set" in work.push("HEAD:main", check=False)
    work.git("checkout", "-q", "-b", "topic")
    work.push("topic", options=("merge", "wait"))
    assert work.merges()[0]["branch"] == "topic"


def test_the_token_is_not_among_the_arguments_of_curl(make_server: Callable[..., Server], tmp_path: Path) -> None:
    server = make_server()
    work = server.repo()
    token = (server.data / "hook-token").read_text().strip()
    spy = tmp_path / "bin" / "curl"
    spy.parent.mkdir()
    spy.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$@" >>{tmp_path}/said\nexec /usr/bin/env -S PATH={os.environ["PATH"]} curl "$@"\n'
    )
    spy.chmod(0o755)
    work.branch("topic")
    environ = clean_environ() | {"PATH": f"{spy.parent}:{os.environ['PATH']}"}
    subprocess.run(["git", "push", "origin", "topic"], cwd=work.tree, env=environ, check=True, capture_output=True)
    assert token not in (tmp_path / "said").read_text() and "hook-header" in (tmp_path / "said").read_text()


# -- jobs ------------------------------------------------------------------------------------------


def test_output_goes_to_the_log_byte_for_byte(work: Work) -> None:
    work.branch("topic", run="printf 'a\\000b\\033[31m\\377'; printf err >&2\n")
    job = work.server.ended(work.push_job("topic"))
    assert work.server.job_log(job["id"]) == b"a\0b\x1b[31m\xfferr" and job["log_size"] == 12


def test_the_environment_of_a_job(make_server: Callable[..., Server]) -> None:
    server = make_server(FORGE_SECRETS_DIR="/nonexistent", SECRET_OF_THE_SERVER="x")
    work = server.repo()
    head = work.branch("topic", AUTO, run="env -0 | sort -z; cat\n", deploy="env -0 | sort -z\n")
    job_id = work.push_job("topic")
    server.ended(job_id)
    server.idle()
    seen = dict(item.split("=", 1) for item in server.job_log(job_id).decode().rstrip("\0").split("\0"))
    job = server.get(f"/jobs/{job_id}")
    fixed = {
        "CI": "true",
        "CLICOLOR_FORCE": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "FORGE_URL": server.url,
        "FORGE_REPO": "app",
        "FORGE_BRANCH": "topic",
        "FORGE_KIND": "pre-merge",
        "FORGE_JOB_ID": str(job_id),
        "FORGE_COMMIT": head,
        "FORGE_BASE": job["base"],
        "FORGE_TESTED": job["tested"],
    }
    assert seen.items() >= fixed.items()
    allowed = {"PATH", "HOME", "USER", "LANG", "TZ", "PWD", "OLDPWD", "_", *fixed}
    assert {name for name in seen if name not in allowed and not name.startswith("NIX_")} == set()
    assert seen["HOME"] == str(server.data / "home/app/pre-merge") and Path(seen["PATH"].split(":")[0], "forge").exists()
    deployment = server.get("/jobs?kind=post-merge&limit=1")["jobs"][0]
    after = dict(item.split("=", 1) for item in server.job_log(deployment["id"]).decode().rstrip("\0").split("\0"))
    assert after["FORGE_SECRETS_DIR"] == "/nonexistent" and "FORGE_SECRETS_DIR" not in seen
    assert after["FORGE_COMMIT"] == after["FORGE_TESTED"] == job["tested"] and after["FORGE_BRANCH"] == "main"


def test_a_checkout_is_clean_and_git_works_in_it(work: Work) -> None:
    work.branch(
        "topic", run="git status --porcelain; git log -1 --format=%H; git commit -q --allow-empty -m x && git cat-file -t HEAD\n"
    )
    work.write("run", (work.tree / "run").read_text().replace("git commit", "git -c user.name=a -c user.email=b commit"))
    work.commit("With an identity")
    job = work.server.ended(work.push_job("topic"))
    assert work.server.job_log(job["id"]).decode().split() == [job["tested"], "commit"]


def test_a_job_cannot_reach_the_repo_through_its_checkout(work: Work) -> None:
    work.branch("topic", run="git update-ref refs/heads/main HEAD; git branch evil; git tag evil; git config core.bare true\n")
    before = work.heads()["main"]
    assert work.server.ended(work.push_job("topic"))["status"] == "passed"
    assert work.heads()["main"] == before and "evil" not in work.heads() and work.bare("tag") == ""


MESSES = {
    "ignored and untracked": "echo ignored >.gitignore; echo x >ignored; mkdir -p d/e; echo y >d/e/f",
    "no permission": "mkdir locked; echo x >locked/f; chmod 000 locked; chmod 000 .forge",
    "nested folders": "p=.; for i in $(seq 3000); do mkdir n && cd n || exit 1; done",
    "tracked file changed with its old times": "touch -r file-a ref; echo xile-a >file-a; touch -r ref file-a; rm ref",
    "index": "git rm -q --cached -r . ; git update-index --assume-unchanged file-a 2>/dev/null; echo evil >file-a",
    "own git": "rm -rf .git; git init -q; echo '[core]\n\tfsmonitor = touch /tmp/forge-owned' >.git/config",
    "git inside": "mkdir -p .forge/.git dir/.git; echo x >.forge/.git/config; git init -q sub",
    "links": "rm -rf .forge; ln -s /etc .forge; ln -s / root",
    "files for folders": "rm -rf .forge; echo x >.forge; rm file-a; mkdir file-a; echo x >file-a/x",
    "modes": "chmod 700 .forge; chmod 777 .; chmod +x file-a",
    "the same mode everywhere": "chmod 711 . .forge",
    "odd kinds of files": r"""mkfifo fifo; rm file-a; mkfifo file-a; echo x >"$(printf 'a\nb')"; touch -- -x "it's"
touch "$(printf '\377')"
perl -e 'use Socket; socket(S, AF_UNIX, SOCK_STREAM, 0); bind(S, pack_sockaddr_un(q(sock)))'""",
    "hard links": "ln file-a .forge/other; ln file-a ../other; mv file-a was; ln run file-a",
    "another's objects": "echo /etc >>.git/objects/info/alternates",
    "another's tree": "git config core.worktree /etc; echo 'gitdir: /etc' >.forge/.git",
    "attributes": r"""perl -e '$n = "user.x"; for (qw(. .forge file-a)) { $f = "$_"; syscall(188, $f, $n, $n, 6, 0) and die }'""",
    "hooks": "mkdir .git/hooks; cd .git/hooks; printf '#!/bin/sh\\ntouch /tmp/forge-owned\\n' >post-index-change; chmod +x *",
}
LOOK = """git status --porcelain --ignored; ls -A | tr '\\n' ' '; cat file-a; stat -c %a . .forge file-a | tr '\\n' ' '
ls -A .git | tr '\\n' ' '; git config --list --local | wc -l; find . -name .git | wc -l
perl -e '$n = ""; for (qw(. .forge file-a)) { $f = "$_"; print syscall(194, $f, $n, 0), " " }'  # listxattr\n"""


@pytest.fixture(scope="module")
def messy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Work]:
    """A repo on a server to which file permissions apply, with one place for jobs, so that each has the checkout before."""
    server = Server(tmp_path_factory.mktemp("messy") / "data", {"FORGE_MAX_JOBS": "1"})
    # root without capabilities is held by permissions like anybody
    server.start(*(["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []))
    work = server.repo()
    work.bare("config", "forge.reuse", "false")
    work.write("file-a", "file-a\n")
    work.commit("A file")
    work.push("HEAD:main")
    server.idle()
    yield work
    end(server)


@pytest.mark.parametrize("mess", MESSES.values(), ids=MESSES.keys())
def test_nothing_a_job_left_reaches_the_next(messy: Work, mess: str) -> None:
    server = messy.server
    messy.branch("look", run=LOOK)
    first = server.ended(messy.push_job("look", force=True))
    assert first["status"] == "passed"
    messy.branch("mess", run=f"{mess}\n")
    server.ended(messy.push_job("mess", force=True))
    messy.branch("look", "Look again", run=LOOK)
    second = server.ended(messy.push_job("look", force=True))
    assert second["status"] == "passed"
    assert server.job_log(second["id"]) == server.job_log(first["id"])
    assert not Path("/tmp/forge-owned").exists()
    assert len(list((server.data / "work/app").iterdir())) <= 2
    wait_for(lambda: not list((server.data / "trash").iterdir()), "the janitor")


def test_a_job_has_ended_when_its_own_process_has(work: Work) -> None:
    work.branch("topic", run="sleep 300 & setsid sleep 301 & (setsid sleep 302 &) ; echo $$ done\n")
    began = time.monotonic()
    job = work.server.ended(work.push_job("topic"))
    assert job["status"] == "passed" and time.monotonic() - began < 10
    assert not left_behind(work, job["id"])


def left_behind(work: Work, job_id: int) -> list[int]:
    """Processes that carry the mark of a job in their environment."""
    found = []
    for place in Path("/proc").glob("[0-9]*/environ"):
        try:
            words = place.read_bytes().split(b"\0")
        except OSError:
            continue
        if f"FORGE_JOB_ID={job_id}".encode() in words and f"FORGE_REPO={work.name}".encode() in words:
            found.append(int(place.parent.name))
    return found


@pytest.mark.parametrize("stubborn", [False, True], ids=["polite", "ignores SIGTERM"])
def test_cancel_ends_the_whole_tree(work: Work, stubborn: bool) -> None:
    trap = "trap '' TERM\n" if stubborn else ""
    work.branch(
        "topic", run=f'{trap}setsid sh -c "{trap.strip()}{";" if trap else ""} sleep 300; sleep 301" &\nsleep 302; sleep 303\n'
    )
    job_id = work.push_job("topic")
    work.server.running(job_id)
    wait_for(lambda: len(left_behind(work, job_id)) >= 4, "the job's processes")
    began = time.monotonic()
    assert work.server.act(f"/jobs/{job_id}/cancel").status == 200
    job = work.server.ended(job_id)
    assert job["status"] == "canceled" and job["reason"]
    assert 5 <= time.monotonic() - began < 9 if stubborn else time.monotonic() - began < 4
    wait_for(lambda: not left_behind(work, job_id), "the end of the tree")
    assert work.server.act(f"/jobs/{job_id}/cancel").status == 409


def test_sigterm_comes_first(work: Work) -> None:
    work.branch("topic", run="trap 'echo tidied; exit 1' TERM\necho ready\nwhile :; do sleep 0.1; done\n")
    job_id = work.push_job("topic")
    wait_for(lambda: b"ready" in work.server.job_log(job_id), "the trap")
    work.server.act(f"/jobs/{job_id}/cancel")
    assert work.server.ended(job_id)["status"] == "canceled"
    assert b"tidied" in work.server.job_log(job_id)


def test_a_timeout_ends_the_job_and_can_be_set_for_a_repo(work: Work) -> None:
    work.bare("config", "forge.timeout", "1")
    work.branch("topic", run="sleep 300\n")
    job = work.server.ended(work.push_job("topic"))
    assert job["status"] == "timeout" and "longer than 1 seconds" in job["reason"] and job["duration"] < 10


def test_limits_stop_a_job(make_server: Callable[..., Server]) -> None:
    server = make_server(FORGE_LOG_LIMIT="100000", FORGE_JOB_PROCESSES="10", FORGE_JOB_MEMORY=str(200 << 20))
    work = server.repo()
    for name, run, word in (
        ("log", "yes\n", "FORGE_LOG_LIMIT"),
        ("processes", "for i in $(seq 20); do sleep 60 & done; wait\n", "FORGE_JOB_PROCESSES"),
        ("memory", "head -c 300000000 /dev/zero | tail | sleep 60\n", "FORGE_JOB_MEMORY"),
    ):
        work.branch(name, run=run)
        job = server.ended(work.push_job(name))
        assert job["status"] == "failed" and word in job["reason"], job


def test_at_most_max_jobs_first_come_first_served(make_server: Callable[..., Server]) -> None:
    server = make_server(FORGE_MAX_JOBS="1")
    work = server.repo()
    for number in range(4):
        work.branch(f"n{number}", run=f"sleep 0.2 # {number}\n")
        work.push(f"n{number}")
    server.idle()
    jobs = server.get("/jobs?kind=pre-merge")["jobs"][::-1]
    assert [job["branch"] for job in jobs] == ["n0", "n1", "n2", "n3"]
    assert all(one["finished_at"] <= two["started_at"] for one, two in zip(jobs, jobs[1:], strict=False))


def test_deployments_run_beside_the_checks_and_a_deployment_does_not_wait_for_itself(make_server: Callable[..., Server]) -> None:
    server = make_server(FORGE_MAX_JOBS="1")
    work = server.repo()
    configs = server.repo("configs")
    deploy = f"""set -e
git clone -q {configs.path} "$HOME/c-$FORGE_JOB_ID"; cd "$HOME/c-$FORGE_JOB_ID"
git -c user.name=a -c user.email=b commit -q --allow-empty -m 'Bump

Auto-Merge: yes'
git push -o wait origin HEAD:bump
"""
    work.branch("topic", AUTO, deploy=deploy)
    work.push("topic", options=("wait",))
    server.idle()
    deployment = server.get("/jobs?repo=app&kind=post-merge&limit=1")["jobs"][0]
    assert deployment["status"] == "passed" and b"merged into main" in server.job_log(deployment["id"])
    assert configs.merges()[0]["branch"] == "bump"


def test_a_push_to_base_from_its_own_deployment_does_not_wait_for_the_next(work: Work) -> None:
    deploy = f"""[ -e "$HOME/once" ] && exit 0; touch "$HOME/once"
git clone -q {work.path} "$HOME/self"; cd "$HOME/self"
git -c user.name=a -c user.email=b commit -q --allow-empty -m again
git push -o wait origin HEAD:main
"""
    work.branch("topic", AUTO, deploy=deploy)
    work.push("topic", options=("wait",))
    work.server.idle()
    states = [job["status"] for job in work.server.get(f"/jobs?repo={work.name}&kind=post-merge")["jobs"]]
    assert states == ["passed"] * 3


def test_signals_of_a_job_are_as_a_shell_has_them(work: Work) -> None:
    work.branch("topic", run="yes | head -n 1; grep -E 'Sig(Ign|Blk)' /proc/self/status\n")
    job = work.server.ended(work.push_job("topic"))
    said, _, blocked, _, ignored = work.server.job_log(job["id"]).split()
    assert said == b"y" and int(blocked, 16) & 0x7FFFFFFF == int(ignored, 16) & 0x7FFFFFFF == 0


def test_a_retry_is_a_job_and_a_log_of_its_own(work: Work) -> None:
    work.branch("topic", run='[ -e "$HOME/second" ] || { touch "$HOME/second"; echo first; exit 1; }; echo second\n')
    first = work.server.ended(work.push_job("topic"))
    answer = work.server.act(f"/jobs/{first['id']}/retry")
    assert answer.status == 202 and answer.json["retry_of"] == first["id"]
    second = work.server.ended(answer.json["id"])
    assert (first["status"], second["status"]) == ("failed", "passed")
    assert work.server.job_log(first["id"]) == b"first\n" and work.server.job_log(second["id"]) == b"second\n"
    work.branch("topic", "Newer")
    work.push("topic", force=True)
    work.server.idle()
    refused = work.server.act(f"/jobs/{first['id']}/retry")
    assert refused.status == 409 and "is at" in refused.json["error"]


def test_a_deployment_can_be_retried_while_its_commit_is_base(work: Work) -> None:
    first = work.server.get(f"/jobs?repo={work.name}&kind=post-merge")["jobs"][0]
    again = work.server.act(f"/jobs/{first['id']}/retry")
    assert again.status == 202 and work.server.ended(again.json["id"])["commit"] == first["commit"]
    work.branch("main", x="y")
    work.push("HEAD:main")
    refused = work.server.act(f"/jobs/{first['id']}/retry")
    assert refused.status == 409 and "roll back" in refused.json["error"]


def test_live_figures_of_a_running_job(work: Work) -> None:
    work.branch("topic", run="sleep 300 & while :; do :; done\n")
    job_id = work.push_job("topic")

    def measured() -> bool:
        job = work.server.get(f"/jobs/{job_id}")
        return bool(job.get("processes") and job["processes"] >= 2 and job["rss_bytes"] > 0 and job["cpu_percent"] > 10)

    wait_for(measured, "the figures")
    assert " %</td>" in work.server.ask("/jobs", Accept="text/html").text
    work.server.act(f"/jobs/{job_id}/cancel")
    work.server.ended(job_id)


def test_a_killed_process_is_named_in_words(work: Work) -> None:
    work.branch("topic", run="kill -9 $$\n")
    job = work.server.ended(work.push_job("topic"))
    assert job["status"] == "failed" and job["reason"] == "ended by signal 9 (SIGKILL)" and work.server.job_log(job["id"]) == b""


def test_a_command_that_cannot_be_executed(work: Work) -> None:
    work.branch("topic")
    work.write(".forge/pre-merge", "#!/nonexistent/interpreter\n", executable=True)
    work.commit("Broken")
    job = work.server.ended(work.push_job("topic"))
    assert job["status"] == "failed" and ".forge/pre-merge" in job["reason"] and job["exit_code"] in (126, 127)


def test_a_configured_command_comes_first(work: Work) -> None:
    work.bare("config", "forge.preMerge", "echo configured $FORGE_KIND")
    work.branch("topic", run="exit 1\n")
    job = work.server.ended(work.push_job("topic"))
    assert job["status"] == "passed" and job["command"] == "echo configured $FORGE_KIND"
    assert work.server.job_log(job["id"]) == b"configured pre-merge\n"


def test_nothing_to_run_is_skipped_and_says_how_to_configure(work: Work) -> None:
    work.branch("topic", AUTO)
    work.git("rm", "-q", ".forge/pre-merge")
    work.commit(AUTO)
    job = work.server.ended(work.push_job("topic"))
    assert job["status"] == "skipped" and "git config forge.preMerge" in job["reason"]
    assert "topic" in work.heads() and "nothing was tested" in work.mr("topic")["blockers"][0]
    work.write(".forge/pre-merge", "exit 0\n")
    (work.tree / ".forge/pre-merge").chmod(0o644)
    work.commit("Not executable")
    job = work.server.ended(work.push_job("topic"))
    assert job["status"] == "skipped" and "is not executable" in job["reason"]


def test_a_justfile_with_the_recipe(make_server: Callable[..., Server], tmp_path: Path) -> None:
    just = Path(sys.executable).parent / "just"
    if not just.exists() and not os.environ.get("FORGE_TEST_REQUIRE_NIX"):
        pytest.skip("just is not installed: its rule is not tested")
    server = make_server(PATH=f"{just.parent}:{os.environ['PATH']}")
    work = server.repo()
    work.branch("has", Justfile="pre-merge:\n    @echo from just\n")
    work.branch("lacks", Justfile="other:\n    @echo other\n", run="echo from the script\n")
    work.branch("broken", Justfile="pre-merge:\n  @echo {{\n")
    jobs = {name: server.ended(work.push_job(name)) for name in ("has", "lacks", "broken")}
    assert jobs["has"]["command"] == "just pre-merge" and server.job_log(jobs["has"]["id"]) == b"from just\n"
    assert jobs["lacks"]["command"] == ".forge/pre-merge" and server.job_log(jobs["lacks"]["id"]) == b"from the script\n"
    assert jobs["broken"]["status"] == "failed" and b"error" in server.job_log(jobs["broken"]["id"])


# -- the gate, performed ----------------------------------------------------------------------------


def test_without_the_trailer_it_merges_when_asked(work: Work) -> None:
    head = work.branch("topic")
    work.server.ended(work.push_job("topic"))
    view = work.mr("topic")
    assert view["mergeable"] and view["blockers"] == [] and not view["auto_merge"]
    assert work.server.act(f"/r/{work.name}/mr/topic/merge", head="1" * 40).status == 409
    answer = work.server.act(f"/r/{work.name}/mr/topic/merge", head=head)
    assert answer.status == 200 and answer.json["how"] == "manual" and answer.json["head"] == head
    assert work.heads() == {"main": answer.json["merge_commit"]}


def test_asked_before_the_verdict_it_merges_after_it(work: Work) -> None:
    work.branch("topic", run="sleep 1\n")
    job_id = work.push_job("topic")
    answer = work.server.act(f"/r/{work.name}/mr/topic/merge")
    assert answer.status == 202 and answer.json["status"] == "queued" and answer.json["job"]["id"] == job_id
    work.landed("topic")
    assert work.merges()[0]["how"] == "manual"


def test_asked_on_an_old_base_it_is_tested_anew(work: Work) -> None:
    work.branch("topic")
    first = work.server.ended(work.push_job("topic"))
    work.branch("main", other="file")
    work.push("HEAD:main")
    answer = work.server.act(f"/r/{work.name}/mr/topic/merge")
    assert answer.status == 202 and answer.json["job"]["id"] != first["id"]
    work.landed("topic")
    assert work.bare("log", "-1", "--format=%P").split()[0] == work.git("rev-parse", "main")


def test_auto_merge_on_a_base_that_moved_is_tested_anew(work: Work) -> None:
    work.branch("topic", AUTO, run="sleep 1\n")
    first = work.push_job("topic")
    work.server.running(first)
    work.branch("main", other="file")
    work.push("HEAD:main")
    work.landed("topic")
    merge = work.merges()[0]
    assert merge["job"] > first and merge["parent"] == work.git("rev-parse", "main")
    assert f"auto-merge not attempted for {work.name}/topic: base has moved on; job" in work.server.log


def test_conflicts_are_named_and_the_head_is_tested_alone(work: Work) -> None:
    work.branch("topic", AUTO, **{"dir/ä": "one"})
    head = work.git("rev-parse", "HEAD")
    work.branch("main", **{"dir/ä": "two"})
    work.push("HEAD:main")
    job = work.server.ended(work.push_job("topic"))
    assert job["tested"] == head and job["status"] == "passed"
    view = work.mr("topic")
    assert view["conflicts"] == ["dir/ä"] and not view["mergeable"] and "conflicts with main in dir/ä" in view["blockers"][0]
    assert work.server.act(f"/r/{work.name}/mr/topic/merge").status == 409
    wait_for(
        lambda: f"auto-merge not attempted for {work.name}/topic: it conflicts with main in dir/ä" in work.server.log, "a line"
    )


def test_a_trailer_counts_in_the_last_paragraph_only(work: Work) -> None:
    work.branch("topic", "Subject\n\nAuto-Merge: yes\n\nMore text here.")
    work.server.ended(work.push_job("topic"))
    work.server.idle()
    assert "topic" in work.heads() and work.mr("topic")["auto_merge"] is False


def test_superseded_by_a_newer_push(work: Work) -> None:
    work.branch("topic", run="sleep 60\n")
    first = work.push_job("topic")
    work.server.running(first)
    work.commit(AUTO, run="true\n")
    second = work.push_job("topic")
    assert work.server.ended(first)["status"] == "superseded"
    assert work.server.ended(second)["status"] == "passed"
    work.landed("topic")


def test_deleted_while_running(work: Work) -> None:
    head = work.branch("topic", AUTO, run="sleep 60\n")
    job_id = work.push_job("topic")
    work.server.running(job_id)
    work.push(":topic")
    job = work.server.ended(job_id)
    assert job["status"] == "canceled" and "was deleted" in job["reason"]
    assert head not in work.bare("rev-list", "main")
    again = work.push_job("topic")
    assert again > job_id
    work.server.act(f"/jobs/{again}/cancel")


def test_delete_by_button(work: Work) -> None:
    work.branch("topic")
    work.server.ended(work.push_job("topic"))
    assert work.server.act(f"/r/{work.name}/mr/topic/delete", head="1" * 40).status == 409
    assert work.server.act(f"/r/{work.name}/mr/topic/delete").status == 200
    assert "topic" not in work.heads() and work.server.act(f"/r/{work.name}/mr/topic/delete").status == 404
    assert work.server.act(f"/r/{work.name}/mr/main/delete").status == 409


def test_a_tag_or_a_branch_with_a_misleading_name_changes_nothing(make_server: Callable[..., Server]) -> None:
    server = make_server()
    work = server.repo()
    work.branch("first", AUTO)
    work.push("first", options=("wait",))
    work.git("fetch", "-q")
    root = work.git("rev-list", "--max-parents=0", "origin/main")
    work.git("tag", "main", root)
    work.push("refs/tags/main")
    work.bare("update-ref", f"refs/heads/{root}", root)
    work.branch("second", AUTO, start="refs/remotes/origin/main")
    work.push("second", options=("wait",))
    subjects = work.bare("log", "--format=%s", "refs/heads/main").split("\n")
    assert "Forge Merge: first" in subjects and "Forge Merge: second" in subjects


def test_no_common_history(work: Work) -> None:
    work.git("checkout", "-q", "--orphan", "topic")
    work.commit(AUTO, x="y")
    work.server.ended(work.push_job("topic"))
    assert "no common history" in work.mr("topic")["blockers"][-1]


def test_a_branch_without_news_is_nothing_to_merge(work: Work) -> None:
    assert "nothing to merge" in work.push("main:same")
    view = work.mr("same")
    assert view["job"] is None and not view["mergeable"] and "nothing to merge" in view["blockers"][0]


def test_a_tag_starts_nothing(work: Work) -> None:
    before = work.server.get("/jobs?limit=1")["jobs"][0]["id"]
    work.git("tag", "v1")
    assert "forge:" not in work.push("refs/tags/v1")
    assert work.server.get("/jobs?limit=1")["jobs"][0]["id"] == before


def test_many_auto_merge_branches_in_one_push_all_land(work: Work) -> None:
    names = [f"n{number}" for number in range(8)]
    for name in names:
        work.branch(name, AUTO)
    work.push(*names)
    work.landed()
    assert sorted(merge["branch"] for merge in work.merges()) == names
    assert len(work.bare("log", "--first-parent", "--merges", "--format=%H").split()) == 8


def test_direct_pushes_during_merges_are_never_lost(work: Work) -> None:
    names = [f"n{number}" for number in range(6)]
    for name in names:
        work.branch(name, AUTO)
    pushed: list[str] = []

    def push_to_base() -> None:
        for number in range(8):
            work_tree.git("pull", "-q", "--rebase", "origin", "main")
            head = work_tree.commit(f"Direct {number}", **{f"direct-{number}": "x"})
            if "rejected" not in work_tree.push("HEAD:main", check=False):
                pushed.append(head)

    work_tree = Work(work.server, work.name, work.path, work.tree.parent / f"{work.name}-second")
    subprocess.run(["git", "clone", "-q", str(work.path), str(work_tree.tree)], env=clean_environ(), check=True)
    thread = threading.Thread(target=push_to_base)
    thread.start()
    work.push(*names)
    thread.join()
    work.landed()
    history = work.bare("rev-list", "main").split()
    assert pushed and set(pushed) <= set(history)
    work.server.idle()


# -- repos of all sorts -------------------------------------------------------------------------------


def test_a_first_push_of_main_to_a_repo_made_for_master(shared: Server, tmp_path: Path) -> None:
    path = shared.cli("create", "for-master").stdout.strip()
    work = Work(shared, "for-master", Path(path), tmp_path / "w")
    work.tree.mkdir()
    work.git("init", "-q", "-b", "main")
    work.git("remote", "add", "origin", path)
    assert shared.get("/r/for-master")["head"] is None
    head = work.commit("First")
    assert "main: post-merge job" in work.push("main")
    view = shared.get("/r/for-master")
    assert (view["base"], view["head"]) == ("main", head)


def test_a_head_that_names_no_branch(make_server: Callable[..., Server], tmp_path: Path) -> None:
    server = make_server()
    work = Work(server, "odd", Path(server.cli("create", "odd").stdout.strip()), tmp_path / "w")
    work.tree.mkdir()
    work.git("init", "-q", "-b", "one")
    work.git("remote", "add", "origin", str(work.path))
    work.commit("First")
    work.git("branch", "two")
    said = work.push("one", "two")
    assert "has no base yet: HEAD names master" in said
    assert "symbolic-ref HEAD" in server.ask("/r/odd", Accept="text/html").text
    assert all("does not exist" in view["blockers"][0] for view in server.get("/r/odd")["merge_requests"])


def test_a_repo_that_was_copied_in_is_served_at_once(make_server: Callable[..., Server], tmp_path: Path) -> None:
    server = make_server()
    source = tmp_path / "source"
    environ = clean_environ()
    commit = "git commit -q --allow-empty -m"
    script = f"git init -q -b trunk {source}; cd {source}; {commit} one; git checkout -q -b topic; {commit} two"
    subprocess.run(["sh", "-ec", script], env=environ, check=True)
    subprocess.run(["git", "clone", "-q", "--bare", str(source), str(server.data / "repos/copied.git")], env=environ, check=True)
    subprocess.run(["git", "-C", str(server.data / "repos/copied.git"), "symbolic-ref", "HEAD", "refs/heads/trunk"], check=True)
    assert server.get("/r/copied")["base"] == "trunk"
    assert "copied" in [repo["repo"] for repo in server.get("/")["repos"]]
    server.hook(b'{"repo": "copied", "updates": []}', Content_Type="application/json")
    server.idle()
    assert [(job["branch"], job["kind"]) for job in server.get("/jobs?repo=copied")["jobs"]] == [("topic", "pre-merge")]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a repo to another user: a foreign repo is not tested")
def test_a_repo_of_another_user_is_shown_with_the_command_that_mends_it(make_server: Callable[..., Server]) -> None:
    server = make_server()
    work = server.repo()
    subprocess.run(["chown", "-R", "12345", str(work.path)], check=True)
    answer = server.ask("/r/app")
    assert answer.status == 409 and "chown -R" in answer.json["error"] and "uid 12345" in answer.json["error"]
    assert "chown -R" in server.ask("/", Accept="text/html").text
    assert "chown -R" in server.cli("doctor", check=False).stdout


def test_a_repo_removed_while_its_job_runs(make_server: Callable[..., Server]) -> None:
    server = make_server()
    work = server.repo()
    work.branch("topic", run="sleep 60\n")
    job_id = work.push_job("topic")
    server.running(job_id)
    assert "say --yes" in server.cli("delete", "app", check=False).stderr
    server.cli("delete", "app", "--yes")
    job = server.ended(job_id)
    assert job["status"] == "canceled" and "was removed" in job["reason"]
    assert server.ask("/r/app").status == 404 and server.ask(f"/jobs/{job_id}/log").status == 200
    wait_for(lambda: not list((server.data / "work").iterdir()) and not list((server.data / "trash").iterdir()), "the clean-up")


# -- a server that comes and goes -----------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_jobs_outlive_the_server(make_server: Callable[..., Server], number: int) -> None:
    server = make_server()
    work = server.repo()
    work.branch("topic", AUTO, run="echo begun; sleep 2; echo ended; exit 0\n")
    work.branch("bad", AUTO, run="echo begun; sleep 2; exit 9\n")
    jobs = [work.push_job("topic"), work.push_job("bad")]
    for job_id in jobs:
        wait_for(lambda job_id=job_id: server.job_log(job_id) == b"begun\n", "the first line")
    server.stop(number)
    time.sleep(0.5)
    server.start()
    first, second = [server.ended(job_id) for job_id in jobs]
    assert (first["status"], first["exit_code"]) == ("passed", 0) and server.job_log(jobs[0]) == b"begun\nended\n"
    assert (second["status"], second["exit_code"]) == ("failed", 9) and 1.9 < second["duration"] < 10
    work.landed("topic")


def test_a_job_that_ends_while_no_server_is_there(make_server: Callable[..., Server]) -> None:
    server = make_server()
    work = server.repo()
    work.branch("topic", AUTO, run="sleep 1; echo ended\n")
    job_id = work.push_job("topic")
    server.running(job_id)
    server.stop(signal.SIGKILL)
    time.sleep(2)
    server.start()
    job = server.ended(job_id)
    assert job["status"] == "passed" and 0.9 < job["duration"] < 1.9 and server.job_log(job_id) == b"ended\n"


def test_a_job_whose_processes_were_killed_is_interrupted_and_runs_again_once(work: Work) -> None:
    work.branch("topic", AUTO, run='[ -e "$HOME/second" ] && exit 0; touch "$HOME/second"; setsid sleep 300\n')
    job_id = work.push_job("topic")
    home = work.server.data / "home" / work.name / "pre-merge"
    wait_for(lambda: (home / "second").exists() and len(left_behind(work, job_id)) >= 3, "the job's processes")
    run = work.server.data / "running" / str(job_id)
    os.killpg(int((run / "pid").read_text().split()[0]), signal.SIGKILL)
    job = work.server.ended(job_id)
    assert job["status"] == "failed" and job["reason"].startswith("interrupted")
    work.landed("topic")
    jobs = work.server.get(f"/jobs?repo={work.name}&branch=topic")["jobs"]
    assert len(jobs) == 2 and jobs[0]["retry_of"] == job_id and not left_behind(work, job_id)


def test_cancel_and_timeout_work_on_jobs_that_were_taken_over(make_server: Callable[..., Server]) -> None:
    server = make_server(FORGE_JOB_TIMEOUT="4", FORGE_MAX_JOBS="2")
    work = server.repo()
    work.branch("one", run="sleep 60\n")
    work.branch("two", run="sleep 60\n")
    one, two = work.push_job("one"), work.push_job("two")
    server.running(one), server.running(two)
    server.stop(signal.SIGKILL)
    server.start()
    server.act(f"/jobs/{one}/cancel")
    assert server.ended(one)["status"] == "canceled"
    assert server.ended(two)["status"] == "timeout" and server.get(f"/jobs/{two}")["duration"] < 12


def test_a_second_server_is_refused_and_names_the_first(make_server: Callable[..., Server]) -> None:
    server = make_server()
    assert server.process
    done = subprocess.run([*FORGE, "serve"], env=server.environ, capture_output=True, text=True, timeout=20)
    assert done.returncode == 1 and str(server.process.pid) in done.stderr and done.stderr.count("\n") == 1
    server.get("/")


def test_nothing_is_left_over(make_server: Callable[..., Server]) -> None:
    server = make_server()
    work = server.repo()
    for number in range(5):
        work.branch(f"n{number}", AUTO)
        work.push(f"n{number}")
    server.idle()
    wait_for(lambda: not list((server.data / "trash").iterdir()), "the janitor")
    assert list((server.data / "running").iterdir()) == []
    assert len(list((server.data / "work/app").iterdir())) <= (os.cpu_count() or 1) + 1
    assert server.process
    import psutil

    (launcher,) = psutil.Process(server.process.pid).children(recursive=True)
    assert "PR_SET_CHILD_SUBREAPER" in " ".join(launcher.cmdline())
    server.stop()
    assert not launcher.is_running()


# -- found by a hostile tester --------------------------------------------------------------------------


def test_a_conflict_without_a_path_is_a_conflict(work: Work) -> None:
    """git ends with 1 and lists no file when a directory was renamed to two places."""
    work.branch("main", **{f"d/f{number}": f"content {number}\n" * 20 for number in range(4)})
    work.push("HEAD:main")
    work.branch("split", AUTO)
    for number in range(4):
        (work.tree / "pq"[number % 2]).mkdir(exist_ok=True)
        work.git("mv", f"d/f{number}", f"{'pq'[number % 2]}/f{number}")
    work.commit(AUTO)
    work.git("checkout", "-q", "main")
    work.commit("A new file in the old place", **{"d/new": "new\n"})
    work.push("HEAD:main")
    work.server.ended(work.push_job("split"))
    work.server.idle()
    assert "split" in work.heads() and work.mr("split")["conflicts"] and not work.mr("split")["mergeable"]


def test_pushes_in_quick_succession_to_one_branch(make_server: Callable[..., Server]) -> None:
    server = make_server(FORGE_MAX_JOBS="1")
    work = server.repo()
    for number in range(3000):
        work.write(f"many/{number % 50}/{number}", f"{number}\n")
    work.commit("Many files")
    work.push("HEAD:main")
    server.idle()
    for number in range(8):
        head = work.branch("topic", f"Push {number}", count=str(number))
        work.push("topic", force=True)
    server.idle()
    assert len(list((server.data / "work/app").iterdir())) <= 2
    job = work.mr("topic")["job"]
    assert (job["status"], job["commit"]) == ("passed", head)


def test_one_broken_repo_does_not_hold_up_the_others(make_server: Callable[..., Server]) -> None:
    server = make_server()
    bad, good = server.repo("bad"), server.repo("good")
    server.stop()
    for work in (bad, good):
        work.branch("topic")
        work.push("topic", options=("merge",))
    (server.data / "incoming/a-folder").mkdir()
    (server.data / "incoming/1-odd").write_text("repo ../x\nrubbish\n")
    refs = bad.path / "packed-refs"
    refs.write_text("rubbish\n")
    server.start()
    good.landed("topic")
    assert any("rubbish" not in path.name and path.is_file() for path in (server.data / "incoming").iterdir())
    assert (server.data / "incoming/1-odd.odd").exists() and "bad: git" in server.log
    refs.unlink()
    server.hook(b'{"repo": "bad", "updates": []}', Content_Type="application/json")
    server.idle()
    server.stop()
    server.start()
    bad.landed("topic")


def test_a_merge_that_was_asked_for_is_forgotten_when_the_branch_is_pushed_anew(make_server: Callable[..., Server]) -> None:
    server = make_server()
    work = server.repo()
    work.branch("topic", run='[ -e "$HOME/second" ] || { touch "$HOME/second"; exit 1; }\n')
    server.ended(work.push_job("topic", options=("merge",)))
    assert work.mr("topic")["auto_merge"] is True
    server.stop()
    work.push(":topic")
    work.push("topic")
    server.start()
    wait_for(lambda: len(server.get("/jobs?kind=pre-merge")["jobs"]) == 2, "the second job")
    server.idle()
    assert work.mr("topic")["auto_merge"] is False and work.mr("topic")["job"]["status"] == "passed"


def test_asking_while_the_job_is_being_stopped(work: Work) -> None:
    work.branch("topic", run="trap '' TERM; echo ready; sleep 60; sleep 60\n")
    job_id = work.push_job("topic")
    wait_for(lambda: b"ready" in work.server.job_log(job_id), "the trap")
    work.push("topic:main")
    answer = work.server.act(f"/r/{work.name}/mr/topic/merge")
    assert answer.status == 409 and "nothing to merge" in answer.json["error"]
    assert work.server.ended(job_id)["status"] == "canceled"


def test_base_that_was_deleted_is_not_replaced_by_a_merge_request(work: Work) -> None:
    work.branch("topic")
    work.server.ended(work.push_job("topic"))
    work.bare("update-ref", "-d", "refs/heads/main")
    work.server.hook(f'{{"repo": "{work.name}", "updates": []}}'.encode(), Content_Type="application/json")
    assert work.bare("symbolic-ref", "HEAD") == "refs/heads/main"
    assert "HEAD names main, which does not exist" in work.mr("topic")["why"]


def test_many_who_wait_do_not_keep_the_server_busy(make_server: Callable[..., Server]) -> None:
    import psutil

    server = make_server(FORGE_MAX_JOBS="1")
    work = server.repo()
    names = [f"n{number}" for number in range(7)]
    for name in names:
        work.branch(name, run=f"sleep 0.7 # {name}\n")
    pushers = [
        subprocess.Popen(
            ["git", "push", "-o", "wait", "origin", name], cwd=work.tree, env=clean_environ(), stderr=subprocess.PIPE, text=True
        )
        for name in names
    ]
    assert server.process
    before = psutil.Process(server.process.pid).cpu_times()
    said = [pusher.communicate(timeout=60)[1] for pusher in pushers]
    after = psutil.Process(server.process.pid).cpu_times()
    assert all("passed after" in text for text in said)
    assert after.user + after.system - before.user - before.system < 2.5


@pytest.mark.parametrize("text", ["[forge] protect = true\n", "[forge]\n\tprotect = true"], ids=["one line", "no line break"])
def test_protection_however_it_is_written(work: Work, text: str) -> None:
    with open(work.path / "config", "a") as stream:
        stream.write(text)
    work.branch("main", other="file")
    assert "forge.protect is set" in work.push("HEAD:main", check=False)


def test_a_job_that_signals_its_own_group(work: Work) -> None:
    for name, number in (("user", "USR1"), ("kill", "KILL")):
        work.branch(name, run=f"kill -{number} 0; sleep 1\n")
        job = work.server.ended(work.push_job(name))
        assert job["status"] == "failed" and f"SIG{number}" in job["reason"]


def test_fewer_checkouts_when_fewer_jobs_are_allowed(make_server: Callable[..., Server]) -> None:
    server = make_server(FORGE_MAX_JOBS="4")
    work = server.repo()
    for number in range(4):
        work.branch(f"n{number}", run="sleep 1\n")
    work.push(*[f"n{number}" for number in range(4)])
    server.idle()
    assert len(list((server.data / "work/app").iterdir())) == 4
    server.stop()
    server.settings["FORGE_MAX_JOBS"] = "1"
    server.start()
    wait_for(lambda: len(list((server.data / "work/app").iterdir())) <= 2, "the clean-up")


def test_a_merge_that_fails_is_the_trouble_of_its_branch_only(work: Work) -> None:
    for name in ("first", "second"):
        work.branch(name)
        work.server.ended(work.push_job(name))
    lock = work.path / "refs/heads/main.lock"
    lock.touch()
    refused = work.server.act(f"/r/{work.name}/mr/first/merge")
    assert refused.status == 409 and "main.lock" in refused.json["error"]
    assert not work.mr("first")["mergeable"] and work.mr("second")["mergeable"]
    lock.unlink()
    work.server.hook(f'{{"repo": "{work.name}", "updates": []}}'.encode(), Content_Type="application/json")
    work.landed("first")


def test_the_verdict_stands_on_a_line_of_its_own(work: Work) -> None:
    work.branch("topic", run="printf partial\n")
    assert "partialforge" not in work.push("topic", options=("wait",))


def test_a_timeout_that_makes_no_sense_is_said(work: Work) -> None:
    work.bare("config", "forge.timeout", "10m")
    work.branch("topic")
    job = work.server.ended(work.push_job("topic"))
    assert job["status"] == "failed" and "forge.timeout is '10m'" in job["reason"]


def test_more_refs_than_one_request_can_tell(make_server: Callable[..., Server]) -> None:
    server = make_server()
    work = server.repo()
    work.branch("topic")
    head = work.git("rev-parse", "HEAD")
    work.git("update-ref", "--stdin", text="".join(f"create refs/tags/{'t' * 60}-{number} {head}\n" for number in range(9000)))
    said = work.push("refs/tags/*:refs/tags/*", "topic", options=("merge",))
    assert "the push is accepted" in said
    server.stop()
    server.start()
    work.landed("topic")


# -- what mutations showed to be untested ---------------------------------------------------------------


def test_refs_move_only_from_where_they_were_seen(work: Work) -> None:
    head = work.branch("topic")
    work.push("topic")
    main = work.heads()["main"]
    wrong = work.git("rev-parse", "HEAD^{tree}")
    for moves in (
        [("refs/heads/main", head, main)],
        [("refs/heads/topic", main, None)],
        [("refs/heads/main", main, head), ("refs/heads/topic", main, None)],
        [("refs/heads/new", "0" * 40, wrong)],
    ):
        with pytest.raises(forge.GitError):
            forge.move_refs(work.path, moves)
        assert work.heads() == {"main": main, "topic": head}
    forge.move_refs(work.path, [("refs/heads/main", main, head), ("refs/heads/topic", head, None)])
    assert work.heads() == {"main": head}
    work.server.idle()


def test_deployments_of_a_repo_run_one_at_a_time_and_the_newest_wins(work: Work) -> None:
    for number in range(4):
        work.branch("main", f"Push {number}", start="main", deploy="sleep 0.7\n", count=str(number))
        work.push("HEAD:main")
    work.server.idle()
    jobs = work.server.get(f"/jobs?repo={work.name}&kind=post-merge")["jobs"]
    ran = [job for job in jobs if job["status"] == "passed"][::-1]
    assert {job["status"] for job in jobs} == {"passed", "superseded"} and jobs[0]["status"] == "passed"
    assert all(one["finished_at"] <= two["started_at"] for one, two in zip(ran, ran[1:], strict=False))
    assert jobs[0]["base"] == ran[-2]["commit"]  # it includes what was superseded


def test_the_branches_are_looked_at_without_any_push(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert forge.SCAN_SECONDS <= 60
    monkeypatch.setattr(forge, "SCAN_SECONDS", 0.3)
    config = forge.load_config({"FORGE_DATA_DIR": str(tmp_path / "data")})
    engine = forge.Engine(config)
    engine.start()
    try:
        path = forge.create_repo(config, "app", "main")
        tree = forge.git(path, "mktree").strip()
        first = forge.commit_tree(path, tree, [], "First")
        forge.move_refs(path, [("refs/heads/main", "0" * 40, first)])
        wait_for(lambda: engine.state.repos.get("app") and engine.state.repos["app"].tip == first, "the first look")
        forge.move_refs(path, [("refs/heads/topic", "0" * 40, forge.commit_tree(path, tree, [first], "Second"))])
        wait_for(lambda: "topic" in engine.state.repos["app"].branches, "the next look")
    finally:
        engine.stop()


@pytest.mark.parametrize("moved", [True, False], ids=["after the refs moved", "before"])
def test_a_merge_that_a_crash_left_without_its_record(make_server: Callable[..., Server], moved: bool) -> None:
    server = make_server()
    work = server.repo()
    work.branch("topic")
    job = server.ended(work.push_job("topic"))
    server.stop()
    ledger = forge.Ledger(server.data)
    main, head = work.heads()["main"], work.heads()["topic"]
    merge = {"repo": "app", "branch": "topic", "head": head, "merge_commit": job["tested"], "parent": main, "tree": job["tree"]}
    merge |= {"job": job["id"], "how": "manual"}
    ledger.record(("merge.begun", {"repo": "app", "base": "main", "merges": [merge]}))
    ledger.record(("branch.deleting", {"repo": "app", "branch": "topic", "head": head}))
    ledger.journal.close()
    if moved:
        work.bare("update-ref", "refs/heads/main", job["tested"])
    server.start()
    wait_for(lambda: "is settled" in server.log, "the recovery")
    server.idle()
    assert [merge["merge_commit"] for merge in work.merges()] == ([job["tested"]] if moved else [])
    assert ("topic" in work.heads()) is not moved
    server.stop()
    assert forge.Ledger(server.data).state.intents == {}


def test_a_checkout_is_used_again(make_server: Callable[..., Server]) -> None:
    server = make_server(FORGE_MAX_JOBS="1")
    work = server.repo()
    work.bare("config", "forge.reuse", "false")
    seen = []
    for number in range(2):
        work.branch(f"n{number}", run="stat -c %i . .forge\n")
        seen.append(server.job_log(server.ended(work.push_job(f"n{number}"))["id"]))
    assert seen[0] == seen[1]


def test_a_job_cannot_say_what_it_ran(work: Work) -> None:
    work.branch("topic", run="ls /proc/self/fd | tr '\\n' ' '; echo 'skip me' >&3\n")
    job = work.server.ended(work.push_job("topic"))
    assert job["status"] == "failed" and job["command"] == ".forge/pre-merge"
    assert work.server.job_log(job["id"]).startswith(b"0 1 2 3 ")  # 3 is what ls reads


def test_a_process_with_the_same_number_is_not_taken_for_the_supervisor(tmp_path: Path) -> None:
    """Number, start and boot must be the same, and the process must keep this very directory: a copy names the original's."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    (tmp_path / "copy").mkdir()
    command = ["sh", "-c", "read -r _; :", "forge-supervisor", str(tmp_path), "log"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    wait_for(lambda: b"forge-supervisor" in Path(f"/proc/{process.pid}/cmdline").read_bytes(), "the start of sh")
    began = round((forge.process_began(process.pid) or 0) * forge.CLOCK_TICKS)
    for run, text, found in (
        (tmp_path, f"{process.pid} {began} {boot}", True),
        (tmp_path / "copy", f"{process.pid} {began} {boot}", False),
        (tmp_path, f"{process.pid} {began + 1} {boot}", False),
        (tmp_path, f"{process.pid} {began} {boot[::-1]}", False),
        (tmp_path, "", False),
        (tmp_path, "x y z", False),
    ):
        (run / "pid").write_text(text)
        adopted = forge.adopt(run)
        assert bool(adopted) is found, (run, text)
        if adopted:
            os.close(adopted[1])
    process.communicate(b"\n")


def test_a_start_that_a_crash_cut_short_is_made_up_for(make_server: Callable[..., Server]) -> None:
    server = make_server(FORGE_MAX_JOBS="1")
    work = server.repo()
    work.branch("long", run="sleep 1\n")
    work.branch("topic", AUTO)
    work.push("long")
    job_id = work.push_job("topic")
    server.stop(signal.SIGKILL)
    ledger = forge.Ledger(server.data)
    ledger.record(("job.started", {"id": job_id, "started_at": forge.now(), "checkout": 2, "timeout": 60}))
    ledger.journal.close()
    server.start()
    job = server.ended(job_id)
    assert job["status"] == "passed" and job["retry_of"] is None
    work.landed("topic")


def test_a_branch_that_was_merged_once_and_is_gone_again_was_not_merged(work: Work) -> None:
    work.branch("topic", AUTO)
    work.push("topic", options=("wait",))
    assert work.server.cli("wait", work.name, "topic").returncode == 0
    work.branch("topic", AUTO, run="exit 1\n")
    work.server.ended(work.push_job("topic"))
    work.push(":topic")
    assert work.server.cli("wait", work.name, "topic", check=False).returncode == 2
    assert "merge" not in work.server.ask(f"/r/{work.name}/mr/topic").json


def test_a_detached_head_is_left_alone(make_server: Callable[..., Server]) -> None:
    server = make_server()
    work = server.repo()
    head = work.heads()["main"]
    (work.path / "HEAD").write_text(f"{head}\n")
    work.branch("topic")
    assert "has no base yet: HEAD names no branch" in work.push("topic")
    assert (work.path / "HEAD").read_text() == f"{head}\n"
    assert server.get("/r/app")["base"] is None and server.ask("/r/app", Accept="text/html").status == 200


def test_a_repo_of_sha256(make_server: Callable[..., Server], tmp_path: Path) -> None:
    server = make_server()
    path = server.data / "repos/new.git"
    subprocess.run(["git", "init", "-q", "--bare", "--object-format=sha256", "-b", "main", str(path)], check=True)
    work = Work(server, "new", path, tmp_path / "w")
    work.tree.mkdir()
    work.git("init", "-q", "--object-format=sha256", "-b", "main")
    work.git("remote", "add", "origin", str(path))
    server.stop()
    server.start()
    wait_for((path / "hooks/post-receive").exists, "the hooks")
    work.write(".forge/pre-merge", "#!/bin/sh\ngit log -1 --format=%H\n", executable=True)
    work.commit("First")
    work.push("main")
    work.branch("topic", AUTO)
    said = work.push("topic", options=("wait",))
    assert "merged into main as" in said and len(work.heads()["main"]) == 64


def test_an_odd_push_option_is_said(work: Work) -> None:
    work.branch("topic")
    assert "push option 'wiat' is not known" in work.push("topic", options=("wiat",))
