"""The command line, the settings, the demo, the package: what a newcomer touches first."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import AUTO, FORGE, ROOT, Server, Work, clean_environ, wait_for

import forge


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FORGE_PORT", "x"),
        ("FORGE_PORT", "70000"),
        ("FORGE_JOB_TIMEOUT", "0"),
        ("FORGE_MAX_JOBS", "-1"),
        ("FORGE_LOG_LIMIT", "1G"),
    ]
    + [("FORGE_JOB_MEMORY", "0"), ("FORGE_JOB_PROCESSES", "1.5"), ("FORGE_PRIVATE", "yes"), ("FORGE_SANDBOX", "docker")]
    + [
        ("FORGE_URL", url)
        for url in ("forge.example.org", "ftp://x", "http://h o", "http://h:99999", "http://h/\n", "http://h?x")
    ],
)
def test_a_wrong_setting_stops_the_start_with_one_line_that_names_it(tmp_path: Path, name: str, value: str) -> None:
    environ = clean_environ() | {"FORGE_DATA_DIR": str(tmp_path / "data"), name: value}
    done = subprocess.run([*FORGE, "serve"], env=environ, capture_output=True, text=True, timeout=20)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and name in done.stderr and not (tmp_path / "data").exists()


def test_settings_have_the_documented_defaults() -> None:
    config = forge.load_config({})
    assert (str(config.data_dir), config.host, config.port, config.job_timeout) == ("/var/lib/forge", "127.0.0.1", 3030, 3600)
    assert (config.max_jobs, config.log_limit, config.private) == (os.cpu_count(), 1073741824, False)


def test_the_password_file_of_systemd(tmp_path: Path) -> None:
    assert forge.load_config({"CREDENTIALS_DIRECTORY": str(tmp_path)}).password_file is None
    (tmp_path / "merge-password").write_text("x")
    assert forge.load_config({"CREDENTIALS_DIRECTORY": str(tmp_path)}).password_file == tmp_path / "merge-password"


def test_create_prints_the_path_and_refuses_odd_names(make_server: Callable[..., Server]) -> None:
    server = make_server(start=False)
    path = Path(server.cli("create", "app").stdout.strip())
    assert path == server.data / "repos/app.git" and (path / "HEAD").read_text() == "ref: refs/heads/master\n"
    assert (path / "hooks/post-receive").stat().st_mode & 0o111
    taken = server.cli("create", "app", check=False)
    assert taken.returncode == 1 and "already" in taken.stderr and taken.stderr.count("\n") == 1
    for name in ("../x", "-x", "x.git", "a b", "", "a/b"):
        refused = server.cli("create", "--", name, check=False)
        assert refused.returncode == 2 and refused.stderr.count("\n") == 1, name
    for base in ("-x", "a..b", "a" * 40, "HEAD"):
        assert server.cli("create", f"--base={base}", "other", check=False).returncode == 2, base
    assert [entry.name for entry in (server.data / "repos").iterdir()] == ["app.git"]


def test_every_verb_answers_help() -> None:
    verbs = "serve create delete repos jobs job log status wait why merge cancel retry doctor demo".split()
    listed = subprocess.run([*FORGE, "--help"], capture_output=True, text=True).stdout
    for verb in verbs:
        done = subprocess.run([*FORGE, verb, "--help"], capture_output=True, text=True)
        assert done.returncode == 0 and verb in listed
    assert "check-names" not in listed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("statsu app topic", "there is no command 'statsu'; did you mean status?"),
        ("--json jbs", "there is no command 'jbs'; did you mean jobs or job?"),
        ("check-name", "there is no command 'check-name'; forge --help lists them"),
        ("zzz", "there is no command 'zzz'; forge --help lists them"),
        ("jobs --jsno", "forge jobs does not take '--jsno'; did you mean --json?"),
        ("log 1 --folow=yes", "forge log does not take '--folow=yes'; did you mean --follow?"),
        ("rollback app c0ffee --unteste --zzz", "forge rollback does not take '--zzz'; see: forge rollback --help"),
        ("hold app --lif c0ffee --lfit", "forge hold does not take '--lfit'; did you mean --lift?"),
        ("--repo jobs", "forge jobs does not take '--repo' before it"),
        ("repos app", "forge repos does not take 'app'; see: forge repos --help"),
        ("status app", "the following arguments are required: BRANCH; see: forge status --help"),
        ("jobs --status fine", "argument --status: invalid choice: 'fine'"),
        ("", "the following arguments are required: COMMAND; see: forge --help"),
    ],
)
def test_a_wrong_word_is_told_in_one_line_with_one_that_is_like_it(words: str, said: str) -> None:
    done = subprocess.run([*FORGE, *words.split()], env=clean_environ(), capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"forge: {said}") and "check-names" not in done.stderr


def test_the_verbs_tell_the_story_of_a_branch(work: Work) -> None:
    cli = work.server.cli
    gate = work.gate("go")
    work.branch("topic", AUTO, run=f"echo one; until [ -e {gate} ]; do sleep 0.05; done; echo two\n")
    job_id = work.push_job("topic")
    assert "is running" in cli("why", work.name, "topic").stdout or "waits" in cli("why", work.name, "topic").stdout
    gate.touch()
    assert cli("log", str(job_id), "-f").stdout == "one\ntwo\n"
    assert cli("wait", work.name, "topic").returncode == 0
    assert "merged into main" in cli("status", work.name, "topic").stdout
    job = json.loads(cli("job", str(job_id), "--json").stdout)
    assert job["id"] == job_id and job["status"] == "passed"
    assert f"{work.name}/topic" in cli("jobs", "--repo", work.name).stdout and work.name in cli("repos").stdout
    assert [one["id"] for one in json.loads(cli("jobs", "--repo", work.name, "--limit", "1", "--json").stdout)["jobs"]] > [job_id]


def test_wait_merge_retry_and_cancel(work: Work) -> None:
    cli = work.server.cli
    work.branch("bad", run="exit 4\n")
    bad = work.push_job("bad")
    waited = cli("wait", work.name, "bad", check=False)
    assert waited.returncode == 1 and "exit code 4" in waited.stderr and waited.stderr.count("\n") == 1
    refused = cli("merge", work.name, "bad", check=False)
    assert refused.returncode == 1 and "exit code 4" in refused.stderr and refused.stderr.count("\n") == 1
    again = json.loads(cli("retry", str(bad), "--json").stdout)
    assert again["retry_of"] == bad
    work.branch("good")
    work.push("good")
    assert cli("wait", work.name, "good").returncode == 0
    assert "merged as" in cli("merge", work.name, "good").stdout
    work.branch("slow", run="sleep 60\n")
    slow = work.push_job("slow")
    cli("cancel", str(slow))
    assert work.server.ended(slow)["status"] == "canceled"
    assert cli("cancel", str(slow), check=False).returncode == 1


def test_what_is_not_there_and_who_does_not_answer(shared: Server, make_server: Callable[..., Server]) -> None:
    for words in (
        ("job", "999999"),
        ("log", "999999"),
        ("why", "nope", "x"),
        ("status", "-x", "x"),
        ("wait", "a/b", "x"),
        ("job", "x"),
    ):
        done = shared.cli(*words, check=False)
        assert done.returncode == 2 and done.stdout == "", words
    for words in (("jobs", "--repo", "nope"), ("jobs", "--repo", "../x"), ("merge", "app", "")):
        assert shared.cli(*words, check=False).returncode == 2, words
    down = make_server("down")
    down.stop()
    for words in (("jobs",), ("repos",), ("why", "app", "x"), ("merge", "app", "x")):
        done = down.cli(*words, check=False)
        assert done.returncode == 3 and "no server answers" in done.stderr and done.stderr.count("\n") == 1
    never = make_server("never", start=False)
    assert never.cli("jobs", check=False).returncode == 3


def test_errors_say_what_to_do_next(work: Work) -> None:
    cli = work.server.cli
    work.branch("topic-one")
    work.push("topic-one")
    near = work.name[:-1] + ("x" if work.name[-1] != "x" else "y")
    for words, hint in (
        (("job", "999999"), "there is no job '999999'; forge jobs lists them"),
        (("log", "999999"), "forge jobs lists them"),
        (("why", work.name, "topik-one"), "did you mean topic-one?"),
        (("merge", work.name, "topik-one"), "did you mean topic-one?"),
        (("status", work.name, "zzz"), "; there is topic-one"),
        (("merge", work.name, "to-one"), "did you mean topic-one?"),
        (("why", near, "topic-one"), work.name),
        (("jobs", "--repo", near), work.name),
        (("delete", near, "--yes"), work.name),
        (("audit", near), work.name),
    ):
        done = cli(*words, check=False)
        assert done.returncode == 2 and hint in done.stderr and done.stderr.count("\n") == 1, (words, done.stderr)


def test_jobs_are_filtered(work: Work) -> None:
    cli = work.server.cli
    for name, run in (("good", "true\n"), ("bad", "exit 1\n")):
        work.branch(name, run=run)
        work.server.ended(work.push_job(name))

    def found(*words: str) -> list[tuple[str, str]]:
        jobs = json.loads(cli("jobs", "--repo", work.name, "--json", *words).stdout)["jobs"]
        return [(job["branch"], job["status"]) for job in jobs]

    assert found("--status", "failed") == [("bad", "failed")]
    assert found("--branch", "good") == [("good", "passed")]
    assert found("--kind", "post-merge") == [("main", "passed")]
    assert cli("jobs", "--branch", "nope").stdout == "there is no such job yet\n"
    assert cli("jobs", "--status", "green", check=False).returncode == 2


def test_what_the_verbs_print_is_for_people(work: Work) -> None:
    cli = work.server.cli
    work.branch("topic", run="echo; exit 1\n")
    number = work.push_job("topic")
    job = work.server.ended(number)
    lines = cli("job", str(number)).stdout.split("\n")
    assert lines[0] == f"job {number} failed: pre-merge of {work.name}/topic" and lines[1].split()[:2] == [
        "commit",
        job["commit"][:12],
    ]
    assert "exit code 1" in lines and "None" not in "".join(lines)
    assert [line.split()[:3] for line in cli("repos").stdout.split("\n") if line.startswith(f"{work.name} ")] == [
        [work.name, "passed", "main"]
    ]
    status = cli("status", work.name, "topic").stdout.split("\n")
    assert (
        status[0].startswith("failed: ")
        and status[1] == job["url"]
        and status[2].split()[:3] == [str(number), "failed", "pre-merge"]
    )
    listed = subprocess.run([*FORGE, "--help"], capture_output=True, text=True).stdout
    assert "forge log 41 -f" in listed


def test_nothing_foreign_reaches_the_terminal(work: Work) -> None:
    odd = "a\x1b[2Jb\u202ec\udc80"
    shown = {"x": ["a␛[2Jb⟨U+202E⟩c⟨80⟩", 1, None], "y": "two␊words", "digest": "two\nlines"}
    assert forge.printable({"x": [odd, 1, None], "y": "two\nwords", "digest": "two\nlines"}) == shown
    work.branch("topic", run="printf 'error: \\033[2J\\033]0;title\\007\\302\\233x\\n'; exit 1\n")
    number = work.push_job("topic")
    assert "error:" in work.server.ended(number)["digest"]
    assert work.server.cli("job", str(number)).stdout.replace("\n", "").isprintable()


def test_serve_stops_cleanly(make_server: Callable[..., Server]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        server = make_server(f"data-{number}")
        began = time.monotonic()
        assert server.stop(number) == 0 and time.monotonic() - began < 5 and "Traceback" not in server.log


def test_a_taken_port_is_one_line(shared: Server, tmp_path: Path) -> None:
    environ = shared.environ | {"FORGE_DATA_DIR": str(tmp_path / "other"), "FORGE_PORT": shared.url.rpartition(":")[2]}
    done = subprocess.run([*FORGE, "serve"], env=environ, capture_output=True, text=True, timeout=20)
    said = [line for line in done.stderr.splitlines() if "sandbox" not in line]
    assert done.returncode == 1 and len(said) == 1 and "FORGE_PORT" in said[0]
    environ |= {"FORGE_DATA_DIR": str(shared.data)}
    done = subprocess.run([*FORGE, "serve"], env=environ, capture_output=True, text=True, timeout=20)
    assert shared.process and done.returncode == 1 and str(shared.process.pid) in done.stderr


def test_doctor(make_server: Callable[..., Server]) -> None:
    server = make_server()
    server.repo()
    said = server.cli("doctor")
    assert "git version" in said.stdout and "repo app" in said.stdout and not re.search("!!  (?!nix|bwrap)", said.stdout)
    os.chmod(server.data / "token", 0o644)
    (server.data / "repos/app.git/hooks/post-receive").unlink()
    with open(server.data / "jobs.jsonl", "a") as stream:
        stream.write("rubbish\n")
    said = server.cli("doctor", check=False)
    assert (
        said.returncode == 1
        and "chmod 600" in said.stdout
        and "hooks are missing" in said.stdout
        and "1 lines are no records" in said.stdout
    )
    assert {check["what"] for check in json.loads(server.cli("doctor", "--json", check=False).stdout)["checks"]} >= {
        "git",
        "disk",
        "token",
    }


def test_the_demo_twice_without_nix(tmp_path: Path) -> None:
    path = f"{tmp_path}/bin"
    os.mkdir(path)
    for folder in ("/usr/bin", "/bin"):
        for name in os.listdir(folder):
            if not name.startswith("nix") and not os.path.lexists(f"{path}/{name}"):
                os.symlink(f"{folder}/{name}", f"{path}/{name}")
    environ = clean_environ() | {"PATH": path, "TMPDIR": str(tmp_path)}
    for _ in range(2):
        done = subprocess.run([*FORGE, "demo", "--once"], env=environ, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 and "without Nix (nix is not on the PATH)" in done.stdout, done.stdout + done.stderr
        assert "merged into main as" in done.stdout and "failed after" in done.stdout and "http://127.0.0.1:" in done.stdout
        assert "merge password is demo" not in done.stdout
    assert list(tmp_path.iterdir()) == [tmp_path / "bin"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_demo_serves_until_it_is_told_to_stop(tmp_path: Path, number: int) -> None:
    environ = clean_environ() | {"TMPDIR": str(tmp_path)}
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # sh ignores it for what it starts in the background
    process = subprocess.Popen([*FORGE, "demo"], env=environ, stdout=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    assert process.stdout
    said = ""
    while "serving until" not in said:
        line = process.stdout.readline()
        assert line, said
        said += line
    process.send_signal(number)
    assert process.wait(timeout=20) == 0
    process.stdout.close()
    wait_for(lambda: list(tmp_path.iterdir()) == [], "the clean-up")


# -- the project ------------------------------------------------------------------------------------------


def test_every_setting_command_option_and_page_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    source = (ROOT / "forge.py").read_text()
    for setting in set(re.findall(r'"(FORGE_[A-Z_]+)"', source)):
        assert f"`{setting}`" in readme, setting
    for config in re.findall(r'"forge\.([a-z]+)"', source):
        assert re.search(rf"forge\.{config}\b", readme, re.IGNORECASE), config
    parser = forge.build_parser()
    verbs = next(action for action in parser._actions if hasattr(action, "choices") and action.choices).choices
    for verb, sub in verbs.items():
        assert verb == "check-names" or f"`forge {verb}" in readme, verb
        for action in sub._actions:
            for option in action.option_strings:
                assert option in readme or option in ("-h", "--help", "--json"), (verb, option)
    for path in re.findall(r'"(?:GET|POST)", "(/[^"]*)"', source):
        shown = re.sub(r"<(\w+)(?::path)?>", lambda found: {"job_id": "<id>"}.get(found[1], f"<{found[1]}>"), path)
        assert shown in readme or path.startswith("/static"), shown


@pytest.mark.skipif(not shutil.which("nix-instantiate"), reason="nix is not installed: flake.nix is not parsed")
def test_the_flake_can_be_parsed() -> None:
    done = subprocess.run(
        ["nix-instantiate", "--parse", str(ROOT / "flake.nix")], capture_output=True, text=True, env=clean_environ()
    )
    assert done.returncode == 0 and "pre-merge" in done.stdout, done.stderr


def test_the_installed_package_finds_its_views_and_hooks(tmp_path: Path) -> None:
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(source)], check=True, capture_output=True)
    for name in ("forge.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    target = tmp_path / "prefix"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--no-build-isolation", "--no-deps"]
    done = subprocess.run([*pip, "--prefix", str(target), str(source)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (site,) = target.glob("lib/python*/site-packages")
    environ = clean_environ() | {"PYTHONPATH": str(site), "FORGE_DATA_DIR": str(tmp_path / "data"), "FORGE_PORT": "0"}
    command = str(target / "bin/forge")
    assert subprocess.run([command, "create", "app"], env=environ, cwd=tmp_path).returncode == 0
    assert (tmp_path / "data/repos/app.git/hooks/post-receive").exists()
    server = subprocess.Popen([command, "serve"], env=environ, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert server.stdout
    url = server.stdout.readline().split()[-1]
    import urllib.request

    with urllib.request.urlopen(url) as page, urllib.request.urlopen(f"{url}/static/vendor/ansi_up.js") as script:
        assert b"forge" in page.read() and script.status == 200
    server.terminate()
    assert server.wait(timeout=10) == 0
    server.stdout.close()


def test_the_app_is_served_by_waitress_serve(tmp_path: Path) -> None:
    environ = clean_environ() | {"FORGE_DATA_DIR": str(tmp_path / "data"), "PYTHONPATH": str(ROOT)}
    import socket
    import urllib.error
    import urllib.request

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "waitress", f"--listen=127.0.0.1:{port}", "--call", "forge:create_app"]
    server = subprocess.Popen(command, env=environ | {"FORGE_PORT": str(port)}, stderr=subprocess.DEVNULL)

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz") as answer:
                return answer.read() == b"ok\n"
        except urllib.error.URLError:
            return False

    try:
        wait_for(answers, "the answer")
    finally:
        server.terminate()
        server.wait(timeout=10)
