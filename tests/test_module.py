"""services.forge, evaluated by real Nix with a stand-in for nixpkgs' lib, and its units looked at by systemd itself."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, clean_environ, needs_nix
from stand_in import lay_out

import forge

pytestmark = needs_nix
needs_systemd = pytest.mark.skipif(
    not shutil.which("systemd-analyze") and not os.environ.get("FORGE_TEST_REQUIRE_SYSTEMD"),
    reason="systemd-analyze is not installed: units are not checked",
)
# What the module makes of each of CASES, whether it refuses each of WRONG, and its options with their types.
EVALUATION = """
let
  nixpkgs = (import NIXPKGS/flake.nix).outputs { self = { }; };
  ours = (import OURS/flake.nix).outputs { self = ours; inherit nixpkgs; };
  pkgs = nixpkgs.legacyPackages.x86_64-linux;
  machine = settings: nixpkgs.lib.evalModules {
    modules = [ ours.nixosModules.default { nix.package = pkgs.nix; services.forge = settings; } ];
    specialArgs = { inherit pkgs; };
  };
  told = option: if (option._type or "") == "option"
    then { inherit (option) description; type = option.type.name; example = option ? example; }
      // builtins.mapAttrs (_: told) (option.type.options or { })
    else builtins.mapAttrs (_: told) option;
  works = settings: (builtins.tryEval (builtins.deepSeq (machine settings).config.services.forge true)).success;
in {
  answer = pkgs.writeText "answer" (builtins.toJSON {
    options = told (machine { }).options.services.forge;
    machines = builtins.mapAttrs (_: settings: removeAttrs (machine settings).config [ "nix" ]) (CASES);
    wrong = builtins.mapAttrs (_: works) (WRONG);
  });
}
"""
CASES = """{
  off = { };
  plain.enable = true;
  all = {
    enable = true;
    host = "::1"; port = 8080; domain = "forge.example.org"; openFirewall = true;
    mergePasswordFile = "/run/agenix/merge-password"; secretsDir = "/var/lib/forge-secrets";
    knownHosts = [ "web.example.org ssh-ed25519 AAAA" ];
    sshKeys = [ "ssh-ed25519 BBBB ada@laptop" ];
    maxJobs = 4; jobTimeout = 600; logLimit = 1000000; logDays = 90; jobMemory = 1000000000; jobProcesses = 500;
    private = true; notify = "cat >>news; echo \\"100 % $HOME\\""; git.name = "Ops"; path = [ pkgs.just ];
  };
  elsewhere = {
    enable = true; user = "git"; group = "git"; dataDir = "/home/git/forge"; host = "0.0.0.0"; sandbox = "none";
    openFirewall = true; knownHosts = [ "web ssh-ed25519 AAAA" ];
  };
  repos = {
    enable = true; dataDir = "DATA";
    repos.app = { protect = true; preMerge = "make 'test'"; timeout = 60; };
    repos.configs = { base = "master"; reuse = false; secrets = "app"; };
  };
  parted = {
    enable = true; secretsDir = "SECRETS"; knownHosts = [ "web ssh-ed25519 AAAA" ];
    secrets.app.token = "/run/agenix/app-token";
    secrets.configs = { "ssh/id_ed25519" = "/run/secrets/deploy key"; token = "/run/secrets/configs-token"; };
    secrets.empty = { };
  };
  homeless = { enable = true; secrets.app.token = "/run/agenix/app-token"; };
  leading = { enable = true; secretsDir = "SECRETS"; secrets."../app".token = "/run/agenix/app-token"; };
  climbing = { enable = true; secretsDir = "SECRETS"; secrets.app."../web/token" = "/run/agenix/app-token"; };
}"""
WRONG = """{
  none = { port = 8080; };
  port = { port = 70000; };
  relative = { dataDir = "forge"; };
  quoted = { dataDir = "/srv/a\\"b"; };
  sandbox = { sandbox = "maybe"; };
  jobs = { maxJobs = 0; };
  unknown = { maxJob = 4; };
  repo = { repos.app.bas = "main"; };
  secret = { secrets.app.token = "relative"; };
}"""
NEVER_IN_A_UNIT = {"FORGE_MERGE_PASSWORD", "FORGE_MERGE_PASSWORD_FILE"}  # systemd hands the file on


@dataclass
class Found:
    """What Nix found, and where repos are to be made."""

    options: Any
    machines: Any
    wrong: Any
    data: Path
    secrets: Path

    def service(self, machine: str) -> Any:
        return self.machines[machine]["systemd"]["services"]["forge"]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """One evaluation of all cases; what the units start is built, too."""
    folder = tmp_path_factory.mktemp("module")
    flake, data, secrets = lay_out(folder), folder / "data", folder / "secrets"
    text = EVALUATION.replace("CASES", CASES).replace("WRONG", WRONG)
    for name, place in (("NIXPKGS", flake.nixpkgs), ("OURS", flake.ours), ("DATA", data), ("SECRETS", secrets)):
        text = text.replace(name, str(place))
    (folder / "evaluation.nix").write_text(text)
    command = ["nix", "build", "--impure", "--no-link", "--json", "-f", str(folder / "evaluation.nix"), "answer"]
    done = subprocess.run(command, env=clean_environ(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return Found(**json.loads(Path(json.loads(done.stdout)[0]["outputs"]["out"]).read_text()), data=data, secrets=secrets)


def unit_files(machine: Mapping[str, Any], folder: Path) -> list[Path]:
    """The units of a machine as NixOS writes them."""
    made = []
    for kind, name in (("services", "service"), ("sockets", "socket")):
        unit = machine["systemd"][kind]["forge"]
        own = unit[f"{name}Config"] | ({"ListenStream": unit["listenStreams"]} if "listenStreams" in unit else {})
        places = ":".join(f"{place}/bin" for place in unit.get("path", []))
        environ = {"PATH": places, **unit.get("environment", {})} if name == "service" else {}
        own["Environment"] = [json.dumps(f"{key}={value}").replace("%", "%%") for key, value in environ.items()]
        outer = {key.capitalize(): unit[key] for key in ("after", "requires", "wants", "description") if key in unit}
        lines = [line for section in (("[Unit]", outer), (f"[{name.capitalize()}]", own)) for line in section_lines(*section)]
        (folder / f"forge.{name}").write_text("\n".join([*lines, "[Install]", f"WantedBy={unit['wantedBy'][0]}"]) + "\n")
        made.append(folder / f"forge.{name}")
    return made


def section_lines(title: str, values: Mapping[str, Any]) -> Iterator[str]:
    yield title
    for key, value in values.items():
        for one in value if isinstance(value, list) else [value]:
            yield f"{key}={str(one).lower() if isinstance(one, bool) else one}"


@needs_systemd
@pytest.mark.parametrize("machine", ["plain", "all", "elsewhere"])
def test_systemd_takes_the_units_and_finds_little_exposed(found: Found, tmp_path: Path, machine: str) -> None:
    units = unit_files(found.machines[machine], tmp_path)
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    looked = ["systemd-analyze", "security", "--offline=yes", "--threshold=30", "--no-pager", str(units[0])]
    done = subprocess.run(looked, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_service_is_that_of_forge_unit(found: Found) -> None:
    if not hasattr(forge, "UNIT_SERVICE"):
        pytest.skip("this forge prints no units")
    for machine, more in (("plain", {}), ("elsewhere", forge.UNIT_WITHOUT_SANDBOX | {"ProtectHome": "read-only"})):
        config = found.service(machine)["serviceConfig"]
        assert {name: config.get(name) for name in forge.UNIT_SERVICE} == forge.UNIT_SERVICE | more
        assert set(config) - set(forge.UNIT_SERVICE) == {"ExecStart", "User", "Group", "WorkingDirectory", "ReadWritePaths"}


def test_nothing_is_in_the_unit_that_breaks_the_sandbox_or_ends_jobs(found: Found) -> None:
    for machine in ("plain", "all", "elsewhere"):
        config = found.service(machine)["serviceConfig"]
        assert config["KillMode"] == "process" and config["Type"] == "notify" and config["Restart"] == "always"
        assert not {"ProtectKernelTunables", "ProtectKernelLogs", "ProtectProc", "ProcSubset", "RuntimeDirectory"} & set(config)
        assert not found.service(machine)["stopIfChanged"]


def test_each_option_says_what_it_is(found: Found) -> None:
    def options(tree: Mapping[str, Any], place: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        if "type" in tree:
            yield place, tree
        for name, below in tree.items():
            if isinstance(below, dict):
                yield from options(below, f"{place}.{name}")

    listed = dict(options(found.options, "services.forge"))
    assert len(listed) > 30 and "services.forge.git.name" in listed and "services.forge.repos.protect" in listed
    assert [place for place, one in listed.items() if not (one["type"] and one["description"].strip() and one["example"])] == []
    readme = (ROOT / "README.md").read_text()
    assert [place for place in listed if not re.search(rf"`([a-z]+\.)?{place.rpartition('.')[2]}(\.<name>)?`", readme)] == []


def test_its_settings_are_those_that_forge_reads(found: Found) -> None:
    asked = set()

    class Environ(dict[str, str]):
        def get(self, name: str, default: Any = None) -> Any:
            asked.add(name)
            return super().get(name, default)

    given = found.service("all")["environment"]
    config = forge.load_config(Environ(given))
    read = {name for name in asked if name.startswith("FORGE_")}
    assert {name for name in given if name.startswith("FORGE_")} | NEVER_IN_A_UNIT == read
    assert (config.max_jobs, config.port, config.private, config.sandbox) == (4, 8080, True, "bwrap")
    assert (config.url, config.notify) == ("https://forge.example.org", 'cat >>news; echo "100 % $HOME"')
    plain = forge.load_config(found.service("plain")["environment"])
    assert plain.url is None and plain.max_jobs == os.cpu_count() and plain.secrets_dir is None
    # the password is in no environment, which all can read
    assert found.service("all")["serviceConfig"]["LoadCredential"] == "merge-password:/run/agenix/merge-password"


def test_what_surrounds_the_service(found: Found) -> None:
    machine = found.machines["all"]
    assert machine["users"]["users"]["forge"]["openssh"]["authorizedKeys"]["keys"] == [
        'command="/var/lib/forge/bin/forge shell",restrict ssh-ed25519 BBBB ada@laptop'
    ]
    assert machine["services"]["openssh"] == {"enable": True}
    proxy = machine["services"]["caddy"]["virtualHosts"]["forge.example.org"]["extraConfig"]
    assert proxy.split() == ["reverse_proxy", "[::1]:8080", "{", "flush_interval", "-1", "}"]
    assert machine["networking"]["firewall"]["allowedTCPPorts"] == [80, 443]
    assert machine["systemd"]["sockets"]["forge"]["listenStreams"] == ["[::1]:8080"]
    assert machine["programs"]["git"]["config"]["user"] == {"name": "Ops", "email": "forge@forge.example.org"}
    link = next(rule for rule in machine["systemd"]["tmpfiles"]["rules"] if rule.startswith("L+"))
    assert link.split()[1] == "/var/lib/forge-secrets/ssh/known_hosts"
    assert Path(link.split()[-1]).read_text() == "web.example.org ssh-ed25519 AAAA\n"
    assert all(one["assertion"] for one in machine["assertions"])

    machine = found.machines["elsewhere"]
    assert machine["networking"]["firewall"]["allowedTCPPorts"] == [3030]
    assert machine["services"]["openssh"] == machine["services"]["caddy"] == {}
    assert "isSystemUser" not in machine["users"]["users"]["git"] and machine["users"]["groups"] == {}
    assert [one["message"] for one in machine["assertions"] if not one["assertion"]] == [
        "services.forge.knownHosts are kept in services.forge.secretsDir; set that, too."
    ]

    off = found.machines["off"]
    assert off["systemd"] == {"services": {}, "sockets": {}, "tmpfiles": {}} and off["users"] == {"users": {}, "groups": {}}


def complaints(found: Found, machine: str) -> list[str]:
    return [one["message"] for one in found.machines[machine]["assertions"] if not one["assertion"]]


def test_each_repo_has_a_folder_with_links_to_its_secrets(found: Found, tmp_path: Path) -> None:
    """They are laid out as systemd-tmpfiles reads the rules, and forge takes them for what they are."""
    rules = found.machines["parted"]["systemd"]["tmpfiles"]["rules"][1:]
    assert len(set(rules)) == len(rules) and all(rule.split()[2:5] in (["0700", "forge", "forge"], ["-"] * 3) for rule in rules)
    for rule in rules:
        kind, place, _, _, _, _, target = [*rule.split(" ", 6), ""][:7]
        Path(place).mkdir() if kind == "d" else Path(place).symlink_to(target)
    config = replace(forge.load_config(found.service("parted")["environment"]), data_dir=tmp_path)
    assert config.secrets_dir == found.secrets and {path.name for path in found.secrets.iterdir()} == {"repos"}
    seen = {name: forge.secrets_seen(config, forge.secrets_folder(config, name, {})) for name in ("app", "configs", "other")}
    assert seen == {"app": found.secrets / "repos/app", "configs": found.secrets / "repos/configs", "other": None}
    links = {
        path.relative_to(found.secrets / "repos"): os.readlink(path) for path in found.secrets.rglob("*") if path.is_symlink()
    }
    known = {Path(name, "ssh/known_hosts"): links[Path("app/ssh/known_hosts")] for name in ("app", "configs", "empty")}
    assert Path(links[Path("app/ssh/known_hosts")]).read_text() == "web ssh-ed25519 AAAA\n"
    assert links == known | {
        Path("app/token"): "/run/agenix/app-token",
        Path("configs/ssh/id_ed25519"): "/run/secrets/deploy key",
        Path("configs/token"): "/run/secrets/configs-token",
    }


def test_secrets_that_have_no_place_or_leave_it_are_refused(found: Found) -> None:
    assert complaints(found, "parted") == []
    assert complaints(found, "homeless") == ["services.forge.secrets are kept in services.forge.secretsDir; set that, too."]
    for machine in ("leading", "climbing"):
        (said,) = complaints(found, machine)
        assert said.startswith("services.forge.secrets: a repo, and in it a file or folder/file, are letters")


def test_wrong_settings_are_refused(found: Found) -> None:
    assert [name for name, works in found.wrong.items() if works] == ["none"]


def test_declared_repos_are_made_once_and_brought_up_to_date(found: Found) -> None:
    script = found.service("repos")["serviceConfig"]["ExecStartPre"].removeprefix("-")
    environ = clean_environ() | {"FORGE_DATA_DIR": str(found.data)}

    def setting(repo: str, key: str) -> str:
        command = ["git", "-C", str(found.data / "repos" / f"{repo}.git"), "config", key]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    for _ in range(2):
        done = subprocess.run([script], env=environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert (setting("app", "forge.protect"), setting("app", "forge.preMerge")) == ("true", "make 'test'")
        assert (setting("app", "forge.timeout"), setting("configs", "forge.reuse")) == ("60", "false")
        assert setting("configs", "forge.secrets") == "app"
        subprocess.run(["git", "-C", str(found.data / "repos" / "app.git"), "config", "forge.protect", "false"], check=True)
    head = (found.data / "repos" / "configs.git" / "HEAD").read_text()
    assert head == "ref: refs/heads/master\n"
