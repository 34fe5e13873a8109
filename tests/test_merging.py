"""Merging heeds the attributes of base's tree, as git-merge(1) does in a worktree of base."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import pytest
from conftest import AUTO, PASSWORD, Work, clean_environ, wait_for
from hypothesis import given, settings
from hypothesis import strategies as st

import forge

LINES = [f"{number}\n" for number in range(1, 9)]
FIRST, LAST = "one\n" + "".join(LINES[1:]), "".join(LINES[:-1]) + "eight\n"


def git(folder: Path, *args: str, text: str = "", ok: tuple[int, ...] = (0,)) -> str:
    done = subprocess.run(["git", "-C", folder, *args], input=text, capture_output=True, text=True, env=clean_environ())
    assert done.returncode in ok, (args, done.stdout, done.stderr)
    return done.stdout


def tree_stream(files: dict[str, str]) -> str:
    return "".join(
        f"M {'120000' if text.startswith('->') else '100644'} inline {path}\ndata {len(text.removeprefix('->').encode())}\n"
        f"{text.removeprefix('->')}\n"
        for path, text in files.items()
    )


def fork(folder: Path, origin: dict[str, str], base: dict[str, str], head: dict[str, str]) -> tuple[str, str]:
    """Two commits with a parent in common in a new repo with a worktree: base, which is checked out, and head."""
    subprocess.run(["git", "init", "-q", "-b", "base", folder], check=True, env=clean_environ())
    stream = ""
    for mark, (branch, files) in enumerate({"origin": origin, "base": origin | base, "head": origin | head}.items(), 1):
        stream += f"commit refs/heads/{branch}\nmark :{mark}\ncommitter Ada <a@b> {mark} +0000\ndata 1\nx\n"
        stream += ("from :1\n" if mark > 1 else "") + "deleteall\n" + tree_stream(files)
    git(folder, "fast-import", "--quiet", text=stream)
    git(folder, "reset", "-q", "--hard", "base")
    found = git(folder, "rev-parse", "base", "head").split()
    return found[0], found[1]


def merged_by_forge(folder: Path, base: str, head: str) -> tuple[str | None, set[str]]:
    merged = forge.merge_tree(folder / ".git", base, head)
    assert merged.trouble is None
    return merged.tree, set(merged.conflicts)


def merged_in_worktree(folder: Path, head: str) -> tuple[str | None, set[str]]:
    git(folder, "merge", "-q", "--no-edit", head, ok=(0, 1))
    unmerged = set(git(folder, "diff", "-z", "--name-only", "--diff-filter=U").split("\0")[:-1])
    return (None if unmerged else git(folder, "rev-parse", "HEAD^{tree}").strip()), unmerged


WAYS = ["-merge", "merge=binary", "binary", "merge=union", "merge", "merge=text", "!merge", "merge=evil", "text eol=crlf"]
PATHS = ["a", "b.dat", "sub/a", "sub/deep/b.dat", "sub/deep/c"]
attribute_lines = st.lists(
    st.tuples(st.sampled_from(["*", "a", "*.dat", "sub/**", "/a", "deep/c", "[attr]own", "c"]), st.sampled_from([*WAYS, "own"])),
    max_size=3,
).map(lambda lines: "".join(f"{pattern} {way}\n" for pattern, way in lines))
attribute_files = st.dictionaries(
    st.sampled_from([".gitattributes", "sub/.gitattributes", "sub/deep/.gitattributes"]), attribute_lines, max_size=3
)
contents = st.dictionaries(st.sampled_from(PATHS), st.sampled_from([FIRST, LAST, FIRST + "more\n", LAST + "less\n"]), max_size=5)


@settings(max_examples=40, deadline=None)
@given(attribute_files, attribute_files, attribute_files, contents, contents)
def test_any_attributes_count_as_in_a_worktree_of_base(
    before: dict[str, str], ours: dict[str, str], theirs: dict[str, str], here: dict[str, str], there: dict[str, str]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "repo")
        origin = dict.fromkeys(PATHS, "".join(LINES)) | before
        base, head = fork(place, origin, ours | here, theirs | there)
        assert merged_by_forge(place, base, head) == merged_in_worktree(place, head)


@pytest.mark.parametrize(
    ("attributes", "path", "conflict"),
    [
        ("lock.json -merge\n", "lock.json", True),
        ("*.dat binary\n", "some/where/x.dat", True),
        ("*.dat merge=binary\r\n", "x.dat", True),
        ("[attr]locked -merge\nx locked\n", "x", True),
        ("x -merge\nx merge\n", "x", False),
        ("x merge=evil\n", "x", False),
        ("x merge=union\n", "x", False),
    ],
)
def test_changes_at_both_ends_of_a_file_merge_only_where_base_allows(
    tmp_path: Path, attributes: str, path: str, conflict: bool
) -> None:
    origin = {".gitattributes": attributes, path: "".join(LINES)}
    base, head = fork(tmp_path / "repo", origin, {path: FIRST}, {path: LAST})
    here = merged_by_forge(tmp_path / "repo", base, head)
    assert here[1] == ({path} if conflict else set())
    assert here == merged_in_worktree(tmp_path / "repo", head)


def test_lines_added_at_one_place_are_united_where_base_says_so(tmp_path: Path) -> None:
    origin = {"CHANGELOG.md": "# Changes\n", "doc/.gitattributes": "*.md merge=union\n", "doc/log.md": "x\n"}
    ours = {".gitattributes": "CHANGELOG.md merge=union\n", "CHANGELOG.md": "# Changes\n- ours\n", "doc/log.md": "x\nours\n"}
    base, head = fork(tmp_path / "repo", origin, ours, {"CHANGELOG.md": "# Changes\n- theirs\n", "doc/log.md": "x\ntheirs\n"})
    tree, conflicts = merged_by_forge(tmp_path / "repo", base, head)
    assert tree and not conflicts
    assert git(tmp_path / "repo", "cat-file", "blob", f"{tree}:CHANGELOG.md") == "# Changes\n- ours\n- theirs\n"
    assert git(tmp_path / "repo", "cat-file", "blob", f"{tree}:doc/log.md") == "x\nours\ntheirs\n"


@pytest.mark.parametrize("side", ["base", "head"])
def test_attributes_of_base_count_and_those_of_the_branch_do_not(tmp_path: Path, side: str) -> None:
    changes = {"base": {"x": FIRST}, "head": {"x": LAST}}
    changes[side][".gitattributes"] = "x -merge\n"
    base, head = fork(tmp_path / "repo", {"x": "".join(LINES)}, changes["base"], changes["head"])
    found = merged_by_forge(tmp_path / "repo", base, head)
    assert found[1] == ({"x"} if side == "base" else set())
    assert found == merged_in_worktree(tmp_path / "repo", head)


@pytest.mark.parametrize("kind", ["link", "folder", "encoded"])
def test_an_attribute_file_of_another_kind_counts_as_in_a_worktree(tmp_path: Path, kind: str) -> None:
    origin = {
        "link": {".gitattributes": "->real", "real": "x -merge\n"},
        "folder": {".gitattributes/x": "x -merge\n"},
        "encoded": {".gitattributes": "x -merge\n.gitattributes working-tree-encoding=UTF-16LE-BOM\n"},
    }[kind]
    base, head = fork(tmp_path / "repo", origin | {"x": "".join(LINES)}, {"x": FIRST}, {"x": LAST})
    assert merged_by_forge(tmp_path / "repo", base, head) == merged_in_worktree(tmp_path / "repo", head)


def test_a_merge_driver_of_a_repo_never_runs(work: Work) -> None:
    ran = work.tree.parent / "ran"
    for key, value in {"merge.evil.driver": f"touch {ran}; exit 0", "filter.evil.smudge": f"touch {ran}; cat"}.items():
        work.bare("config", key, value)
    work.branch("main", **{".gitattributes": "x merge=evil filter=evil\n", "x": "".join(LINES)})
    work.push("main")
    work.branch("topic", AUTO, x=LAST)
    work.branch("main", x=FIRST)
    work.push("main", "topic")
    work.landed("topic")
    assert work.bare("cat-file", "blob", "main:x") == ("one\n" + "".join(LINES[1:-1]) + "eight\n").strip()
    assert not ran.exists()


def test_what_base_does_not_let_merge_is_a_conflict_on_the_page_and_in_the_gate(work: Work) -> None:
    work.branch(
        "main", **{".gitattributes": "lock.json -merge\nCHANGES merge=union\n", "lock.json": "".join(LINES), "CHANGES": "a\n"}
    )
    work.push("main")
    work.branch("locked", AUTO, **{"lock.json": LAST})
    work.branch("told", AUTO, CHANGES="a\ntold\n")
    work.branch("main", **{"lock.json": FIRST, "CHANGES": "a\nmain\n"})
    work.push("main", "locked", "told")
    work.landed("told")
    assert work.bare("cat-file", "blob", "main:CHANGES") == "a\nmain\ntold"
    work.server.idle()
    view = work.mr("locked")
    assert view["conflicts"] == ["lock.json"] and not view["mergeable"]
    asked = work.server.ask(f"/r/{work.name}/mr/locked/merge", {"password": PASSWORD})
    assert asked.status == 409 and "lock.json" in asked.text


def test_a_chain_heeds_attributes_that_an_earlier_branch_of_it_brings(work: Work) -> None:
    work.branch("main", x="".join(LINES))
    work.push("main")
    work.branch("first", AUTO, **{".gitattributes": "x -merge\n", "x": FIRST})
    work.branch("second", AUTO, **{".gitattributes": "x -merge\n", "x": LAST})
    work.push("first", "second")
    wait_for(lambda: len(work.heads()) == 2, "one of them lands", 60)
    work.server.idle()
    (left,) = set(work.heads()) - {"main"}
    assert work.mr(left)["conflicts"] == ["x"] and len(work.merges()) == 1


def test_no_directory_for_attributes_is_left(work: Work) -> None:
    work.branch("topic", AUTO, x="1\n")
    work.push("topic")
    work.landed("topic")
    work.server.idle()
    assert [path.name for path in (work.server.data / "git").iterdir() if path.name.startswith(forge.ATTRIBUTES)] == []
