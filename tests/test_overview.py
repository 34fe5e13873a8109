"""The overview pages: what they say, what they cost, and what is drawn on them."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Server, clean_environ, git_after

import forge


def make_history(repo: Path, seed: int) -> list[str]:
    """A bare repo with random commits: merges, criss-cross ones too, conflicts, roots of their own; all commits, base first."""
    subprocess.run(["git", "init", "-q", "--bare", repo], check=True, env=clean_environ())
    chance = random.Random(seed)
    stream, parents = [], dict[int, list[int]]()
    for number in range(1, 41):
        recent = range(max(1, number - 8), number)
        parents[number] = chance.sample(recent, min(chance.choice((1, 1, 2)) if chance.random() < 0.97 else 0, len(recent)))
        message = f"Commit {number} <b>\n\n" + chance.choice(("Auto-Merge: yes\n", "Text\n", "Auto-Merge: yes\n\nText\n"))
        at = 1_700_000_000 + chance.choice((number, number, 0)) * 100  # some clocks were wrong
        stream.append(f"commit refs/heads/c{number}\nmark :{number}\nauthor Ä <a@b> {at} +0200\ncommitter C <c@d> {at} +0000\n")
        stream.append(f"data {len(message.encode())}\n{message}")
        named = ("from", "merge", "merge")
        stream += [f"{word} :{parent}\n" for word, parent in zip(named, parents[number], strict=False)]
        path, text = f"file-{chance.randrange(3)}", f"{chance.randrange(3)}\n"
        stream.append(f"M 100644 inline {path}\ndata {len(text)}\n{text}\n")
        if chance.random() < 0.2:  # a file where others have a directory
            stream.append(f"M 100644 inline {path}-more/inner\ndata 1\nx\n")
        elif chance.random() < 0.2:
            stream.append(f"M 100644 inline {path}-more\ndata 1\ny\n")
    subprocess.run(["git", "-C", repo, "fast-import", "--quiet"], input="".join(stream).encode(), check=True, env=clean_environ())
    heads = forge.read_refs(repo).heads
    commits = [heads[f"c{number}"] for number in range(1, 41)]
    base = commits.pop(chance.randrange(25, 40))
    return [base, *chance.sample(commits, len(commits))]


@pytest.mark.parametrize("seed", range(4))
def test_what_git_says_of_many_at_once_is_what_it_says_of_each(tmp_path: Path, seed: int) -> None:
    repo = tmp_path / "repo.git"
    base, *heads = make_history(repo, seed)
    assert forge.read_commits(repo, heads) == {head: forge.read_commit(repo, head) for head in heads}
    together = forge.count_many(repo, base, heads)
    alone = {head: forge.count_commits(repo, base, head) for head in heads}
    assert together == {head: alone[head] for head in together} and len(together) > len(heads) / 2
    several = [head for head in heads if "\n" in forge.git(repo, "merge-base", "--all", base, head, ok=(0, 1)).strip()]
    assert set(heads) - set(together) == set(several)
    merged = dict(forge.merge_trees(repo, base, heads))
    assert list(merged) == heads
    for head in heads:
        told = subprocess.run(
            ["git", "-C", repo, "merge-tree", "--write-tree", "--no-messages", "--name-only", base, head],
            capture_output=True,
            text=True,
            env=clean_environ(),
        )
        tree, *paths = told.stdout.split("\n")[:-1] or [""]
        assert merged[head].unrelated == (told.returncode == 128) == (alone[head][0] is None)
        assert merged[head].tree == (tree if told.returncode == 0 else None)
        assert set(merged[head].conflicts) == set(filter(None, paths)) or (told.returncode == 1 and not any(paths))
        assert forge.merge_tree(repo, base, head) == merged[head]
