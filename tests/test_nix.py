"""Real Nix: flakes whose apps are the checks."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable

import pytest
from conftest import AUTO, Server, Work, needs_nix

import forge

pytestmark = needs_nix


def flake(pre: str = "", post: str = "", apps: str | None = None) -> str:
    """A flake without inputs whose apps run these lines of sh."""
    listed = apps
    if listed is None:
        listed = "\n".join(
            f'{name} = {{ type = "app"; program = "${{program "{name}" {text!r}}}"; }};'.replace("'", "''")
            for name, text in (("pre-merge", pre), ("post-merge", post))
            if text
        )
    return """{
  outputs = { self }: let
    system = "%s";
    program = name: text: derivation {
      inherit name system;
      text = "#!/bin/sh\n" + text;
      builder = "/bin/sh";
      args = [ "-c" "echo \\"$text\\" > $out; chmod +x $out" ];
      PATH = "/bin:/usr/bin";
    };
  in {
    apps.${system} = { %s };
  };
}
""" % (forge.nix_system(), listed)


@pytest.fixture
def bare(work: Work) -> Work:
    """A repo without .forge/ scripts."""
    work.branch("main")
    work.git("rm", "-rq", ".forge")
    work.git("commit", "-qm", "No scripts")
    work.push("HEAD:main")
    work.server.idle()
    return work


def test_an_app_that_writes_where_its_finder_tells_spoils_its_own_verdict_alone(bare: Work) -> None:
    """The finder waits for the app with the descriptor by which it tells the server what is run."""
    bare.branch("topic", **{"flake.nix": flake("for f in /proc/$PPID/fd/1*; do yes a b | head -c 3000000 >>$f; done")})
    job = bare.server.ended(bare.push_job("topic"))
    assert job["status"] == "skipped" and job["command"] is None and 1000 < len(job["reason"]) <= 8000, job["reason"][:200]
    assert bare.server.ask(f"/jobs/{job['id']}", Accept="text/html").status == 200


def test_the_apps_of_a_flake_are_built_and_run(bare: Work) -> None:
    text = flake("echo checking; grep -q fine state", "echo deploying")
    bare.branch("good", AUTO, **{"flake.nix": text, "state": "fine"})
    bare.branch("bad", AUTO, **{"flake.nix": text, "state": "broken"})
    good, bad = (bare.server.ended(bare.push_job(name)) for name in ("good", "bad"))
    assert good["status"] == "passed" and good["command"] == "nix run .#pre-merge", bare.server.job_log(good["id"])
    assert b"checking" in bare.server.job_log(good["id"])
    assert (bad["status"], bad["exit_code"]) == ("failed", 1)
    bare.landed("good")
    bare.server.idle()
    deployment = bare.server.get(f"/jobs?repo={bare.name}&kind=post-merge&limit=1")["jobs"][0]
    assert deployment["status"] == "passed" and b"deploying" in bare.server.job_log(deployment["id"])


def test_only_a_missing_app_goes_on_to_the_next_rule(bare: Work) -> None:
    for name, text in (
        ("other app", flake(apps='other = { type = "app"; program = "x"; };')),
        ("named in a comment", "# apps pre-merge\n" + flake(apps="")),
        ("no apps", "{ outputs = { self }: { }; }"),
        ("package only", '{ outputs = { self }: { packages.%s.pre-merge = throw "built"; }; }' % forge.nix_system()),
    ):
        bare.branch("topic", name, **{"flake.nix": text})
        bare.write(".forge/pre-merge", "#!/bin/sh\necho from the script\n", executable=True)
        bare.commit(name)
        job = bare.server.ended(bare.push_job("topic", force=True))
        log = bare.server.job_log(job["id"])
        assert (job["status"], job["command"]) == ("passed", ".forge/pre-merge"), (name, log)
        assert log.endswith(b"from the script\n"), name


def test_without_the_app_and_the_script_it_is_skipped(bare: Work) -> None:
    bare.branch("topic", **{"flake.nix": "{ outputs = { self }: { }; }"})
    job = bare.server.ended(bare.push_job("topic"))
    assert job["status"] == "skipped" and f"apps.{forge.nix_system()}.pre-merge" in job["reason"]


@pytest.mark.parametrize(
    "text",
    [
        "{ outputs = { self }: let in",
        "{ outputs = { self }: throw ''no good''; }",
        "{ outputs = { self }: { apps = throw ''pre-merge''; }; }",
    ],
    ids=["syntax", "throws", "names the app and throws"],
)
def test_a_flake_that_does_not_evaluate_has_failed(bare: Work, text: str) -> None:
    bare.branch("topic", **{"flake.nix": text})
    bare.write(".forge/pre-merge", "#!/bin/sh\nexit 0\n", executable=True)
    bare.commit("And a script that must not hide it")
    job = bare.server.ended(bare.push_job("topic"))
    assert job["status"] == "failed" and b"error" in bare.server.job_log(job["id"])


def test_an_app_that_fails_is_not_taken_for_a_missing_one(bare: Work) -> None:
    bare.branch("topic", **{"flake.nix": flake("echo does not provide attribute; exit 1")})
    bare.write(".forge/pre-merge", "#!/bin/sh\nexit 0\n", executable=True)
    bare.commit("And a script")
    assert bare.server.ended(bare.push_job("topic"))["status"] == "failed"


def test_a_flake_without_nix_is_skipped_and_says_so(make_server: Callable[..., Server], tmp_path: object) -> None:
    folder = tmp_path / "bin"  # type: ignore[operator]
    folder.mkdir()
    for name in os.listdir("/usr/bin"):
        if not name.startswith("nix"):
            os.symlink(f"/usr/bin/{name}", folder / name)
    server = make_server(PATH=str(folder))
    assert shutil.which("nix", path=str(folder)) is None
    work = server.repo()
    work.branch("topic", **{"flake.nix": flake("exit 0")})
    work.git("rm", "-rq", ".forge")
    work.commit("Only the flake")
    job = server.ended(work.push_job("topic"))
    assert job["status"] == "skipped" and "no nix on the PATH" in job["reason"]


def test_the_server_never_evaluates_nix(bare: Work) -> None:
    """A flake that takes for ever holds its job up, and nothing else."""
    endless = "let f = n: if n == 0 then 0 else f (n + 1); in"
    text = "{ outputs = { self }: %s { apps = builtins.seq (f 1) { pre-merge = 1; }; }; }" % endless
    bare.branch("slow", **{"flake.nix": text})
    job_id = bare.push_job("slow")
    bare.server.running(job_id)
    assert bare.server.get(f"/r/{bare.name}")["merge_requests"][0]["branch"] == "slow"
    bare.server.act(f"/jobs/{job_id}/cancel")
    assert bare.server.ended(job_id)["status"] == "canceled"


def test_the_demo_with_nix() -> None:
    from conftest import FORGE, clean_environ

    done = subprocess.run([*FORGE, "demo", "--once"], env=clean_environ(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "nix works here" in done.stdout, done.stdout + done.stderr
    assert "merged into main as" in done.stdout and "failed after" in done.stdout


def test_what_looks_like_a_missing_app_but_is_not(bare: Work) -> None:
    bare.branch("topic", **{"flake.nix": "{ outputs = { self }: { apps = throw ''flake x does not provide attribute y''; }; }"})
    bare.write(".forge/pre-merge", "#!/bin/sh\nexit 0\n", executable=True)
    bare.commit("And a script")
    assert bare.server.ended(bare.push_job("topic"))["status"] == "failed"


def test_a_package_is_not_taken_for_the_app(bare: Work) -> None:
    text = flake(apps="").replace("in {", "in { packages.${system}.pre-merge = program ''pre-merge'' ''exit 1'';")
    bare.branch("topic", **{"flake.nix": "# apps\n" + text})
    bare.write(".forge/pre-merge", "#!/bin/sh\necho from the script\n", executable=True)
    bare.commit("And a script")
    assert bare.server.ended(bare.push_job("topic"))["command"] == ".forge/pre-merge"
