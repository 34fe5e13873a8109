"""Our flake beside a stand-in for nixpkgs, which cannot be fetched where the tests run."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from conftest import ROOT, clean_environ

OURS = ("flake.nix", "flake.lock", "nix", "forge.py", "hooks", "views")


@dataclass
class Flake:
    """A copy of our flake, and the folder of the stand-in."""

    ours: Path
    nixpkgs: Path

    def nix(self, *args: str, cwd: Path | None = None, check: bool = True, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run nix with the stand-in where our flake wants nixpkgs; no lock is written."""
        given = ["--override-input", "nixpkgs", f"path:{self.nixpkgs}", "--no-write-lock-file"]
        done = subprocess.run(
            ["nix", *args, *(given if args[:2] != ("flake", "init") else [])],
            cwd=cwd or self.ours,
            env=clean_environ() | environ,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert not check or done.returncode == 0, (args, done.stdout, done.stderr)
        return done


def lay_out(folder: Path) -> Flake:
    """Copy our flake and the stand-in below `folder`."""
    made = Flake(folder / "ours", folder / "nixpkgs")
    made.ours.mkdir()
    for name in OURS:
        source, skip = ROOT / name, shutil.ignore_patterns("__pycache__")
        if source.is_dir():
            shutil.copytree(source, made.ours / name, ignore=skip)
        else:
            shutil.copy(source, made.ours / name)
    shutil.copytree(ROOT / "tests" / "nixpkgs-stand-in", made.nixpkgs)
    text = (made.nixpkgs / "flake.nix").read_text()
    (made.nixpkgs / "flake.nix").write_text(text.replace("@python@", sys.executable))
    return made
