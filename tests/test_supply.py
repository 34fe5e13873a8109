"""What forge is made of and is tested with, and whether SECURITY.md names what shows its words."""

from __future__ import annotations

import ast
import configparser
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import FORGE, ROOT, clean_environ
from packaging.specifiers import SpecifierSet

RUN = {"bottle", "waitress", "psutil"}
PINNED = re.compile(r"([a-z0-9-]+)==([0-9.]+)((?: --hash=sha256:[0-9a-f]{64})+)")


def pins(name: str) -> dict[str, tuple[str, str]]:
    """Version and hashes of each package that a file of requirements names; it holds nothing else."""
    lines = [
        line for line in (ROOT / f".ci/{name}.txt").read_text().replace(" \\\n   ", "").split("\n") if line and line[0] != "#"
    ]
    found = [PINNED.fullmatch(line) for line in lines]
    assert lines and None not in found, [line for line, pin in zip(lines, found, strict=True) if pin is None]
    return {pin[1]: (pin[2], pin[3]) for pin in found if pin}


# -- what is installed ------------------------------------------------------------------------------------


def test_each_package_is_pinned_with_its_hashes() -> None:
    run, test = pins("requirements"), pins("requirements-test")
    assert set(run) == RUN and run.items() <= test.items()
    for line in (ROOT / ".ci/requirements-test.in").read_text().split():
        assert line in test or line in ("-r", "requirements.in"), line


def test_what_may_be_installed_holds_what_is_tested_and_no_old_waitress() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    ranges = dict(re.fullmatch(r"(\w+)(.*)", line).groups() for line in setup["options"]["install_requires"].split())  # type: ignore[union-attr]
    assert set(ranges) == RUN
    for name, (version, _) in pins("requirements").items():
        assert SpecifierSet(ranges[name]).contains(version), name
    assert not SpecifierSet(ranges["waitress"]).contains("3.0.1")  # its answers could be mixed up, and its loop kept busy


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed: what it would install is not looked at")
def test_make_and_ci_install_nothing_without_a_hash() -> None:
    """But for what the distribution signs."""
    asked = ["make", "-n", "-B", "-C", str(ROOT), ".venv/run", ".venv/test"]
    told = subprocess.run(asked, capture_output=True, text=True, check=True, env=clean_environ()).stdout.replace("\\\n", " ")
    lines = [
        line
        for line in (told + (ROOT / ".ci/run").read_text()).split("\n")
        if re.search(r"\binstall\b|npm ci|curl .*http|wget", line)
    ]
    lines = [line.strip() for line in lines if not re.search(r"apt-get install", line) and not line.strip().startswith("needed=")]
    for line in lines:
        assert re.search(r"pip .*install --require-hashes -r [.]ci/requirements(-test)?[.]txt$", line) or "npm ci " in line, line
        assert "npm" not in line or "--ignore-scripts" in line, line
    assert len(lines) == 3, lines


def test_the_scripts_of_others_have_checksums() -> None:
    lock = json.loads((ROOT / ".ci/axe/package-lock.json").read_text())
    packages = {name: package for name, package in lock["packages"].items() if name}
    assert set(packages) == {"node_modules/axe-core"}
    assert all(package["integrity"].startswith("sha512-") for package in packages.values())
    vendored = {path.name for path in (ROOT / "views/static/vendor").iterdir()}
    assert vendored == {"ansi_up.js", "ansi_up.LICENSE", "README.md"}, "test_web.py knows the checksum of each script"


def test_the_inputs_of_the_flake_are_locked_with_their_hashes() -> None:
    nodes = json.loads((ROOT / "flake.lock").read_text())["nodes"]
    inputs = [node["locked"] for name, node in nodes.items() if name != "root"]
    assert inputs and all(re.fullmatch("[0-9a-f]{40}", lock["rev"]) and lock["narHash"].startswith("sha256-") for lock in inputs)


def judge(said: str) -> tuple[list[str], list[str]]:
    """Of what pip-audit said: the packages with known holes, and those it knows nothing of, for which it has no complaint."""
    packages = json.loads(said)["dependencies"]
    holes = [f"{one['name']}: {hole['id']}" for one in packages for hole in one.get("vulns", ())]
    return holes, [one["name"] for one in packages if "vulns" not in one]


def test_what_could_not_be_looked_up_is_not_taken_for_clean() -> None:
    packages = [{"name": "a", "vulns": []}, {"name": "b", "vulns": [{"id": "X-1"}]}, {"name": "c", "skip_reason": "not found"}]
    assert judge(json.dumps({"dependencies": packages})) == (["b: X-1"], ["c"])


def test_no_hole_is_known_in_what_is_pinned() -> None:
    if importlib.util.find_spec("pip_audit") is None:
        pytest.skip("pip-audit is not installed: known holes are not looked for")
    asked = ["--require-hashes", "--disable-pip", "--progress-spinner", "off", "--format", "json", "--timeout", "10"]
    command = [sys.executable, "-m", "pip_audit", *asked, "-r", str(ROOT / ".ci/requirements-test.txt")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, env=clean_environ())
    if not done.stdout and re.search("Connection|Timeout|ServiceError", done.stderr):
        pytest.skip("the list of known holes cannot be reached: known holes are not looked for")
    assert done.stdout, done.stderr
    holes, unknown = judge(done.stdout)
    if len(unknown) == len(pins("requirements-test")):
        pytest.skip("the list that is reached here knows none of the packages: known holes are not looked for")
    assert (holes, unknown) == ([], [])


# -- at run time ----------------------------------------------------------------------------------------------

OWN_NETWORK = ("unshare", "--user", "--map-root-user", "--net")
LOOPBACK = """import fcntl, socket, struct, sys
with socket.socket() as any:
    fcntl.ioctl(any, 0x8914, struct.pack("16sh", b"lo", 0x41))  # SIOCSIFFLAGS: up, running
"""
NO_ROUTE = """
def no_route():
    lines = [line.split() for line in open("/proc/net/snmp") if line.startswith("Ip:")]
    six = [line.split()[1] for line in open("/proc/net/snmp6") if line.startswith("Ip6OutNoRoutes")]
    return int(lines[1][lines[0].index("OutNoRoutes")]) + sum(map(int, six))
"""
ALONE = f"""{LOOPBACK}{NO_ROUTE}
import subprocess
done = subprocess.run(sys.argv[1:], capture_output=True, text=True, timeout=100)
calm = no_route()
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
    try:
        line.connect(("192.0.2.1", 53))
    except OSError:
        pass
print(done.returncode, calm, no_route() - calm, done.stderr)
print(done.stdout)
"""


@pytest.mark.skipif(
    subprocess.run([*OWN_NETWORK, "true"], capture_output=True).returncode != 0, reason="no networks can be made here"
)
def test_nothing_is_asked_of_the_network_at_run_time(tmp_path: Path) -> None:
    """Create, push, check, merge, pages: in a network without a way out, the kernel counts who looks for one."""
    (tmp_path / "bin").mkdir()
    for name in Path("/usr/bin").iterdir():
        if not name.name.startswith("nix"):
            (tmp_path / "bin" / name.name).symlink_to(name)
    environ = clean_environ() | {"PATH": str(tmp_path / "bin"), "TMPDIR": str(tmp_path)}
    command = [*OWN_NETWORK, sys.executable, "-c", ALONE, *FORGE, "demo", "--once"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=110)
    assert done.stdout.startswith("0 0 1 "), (
        "exit code of the demo, who looked for a way out, that such are counted: " + done.stdout
    )
    assert "merged into main as" in done.stdout


# -- SECURITY.md ------------------------------------------------------------------------------------------------


def test_each_promise_of_the_security_notes_names_tests_that_exist() -> None:
    names = {
        item.name
        for path in (ROOT / "tests").glob("test_*.py")
        for item in ast.parse(path.read_text()).body
        if isinstance(item, ast.FunctionDef) and item.name.startswith("test_")
    }
    text = (ROOT / "SECURITY.md").read_text()
    assert set(re.findall(r"\btest_\w+", text)) <= names, "named, but not there"
    promises = text.split("\n## What is done about it\n")[1].split("\n## ")[0].split("\n- ")[1:]
    assert len(promises) > 20
    assert [promise for promise in promises if "test_" not in promise] == []


def test_the_security_notes_say_who_is_trusted_with_what_with_and_without_the_sandbox() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    table, rest = text.split("\n## Who is trusted with what\n")[1].split("\n\n**Without the sandbox**")
    who = " ".join(row.split("|")[1] for row in table.split("\n") if row.startswith("|"))
    known = "port push Base password `token` `hook-token` `pre-merge` proxy daemon Builders deployed".split()
    assert [word for word in known if word not in who] == []
    for words in ("`FORGE_SANDBOX=none`", "**Single-user Nix**", "`trusted-users`", "**Root**"):
        assert words in rest + table, words
