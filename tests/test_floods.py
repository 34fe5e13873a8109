"""Floods of a small size against a real server: it answers, stays small, and cleans up. The large ones are in bench.py."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import Server, Work, clean_environ, end, wait_for
from floods import FLOODS, Source, Watch, left_over

import forge

GROWTH = 60 << 20  # bytes that a flood may add to the server
MOST = 150 << 20  # bytes that it may have
SLOWEST = 10.0  # seconds for a page, on a machine that runs other tests; bench.py wants one
LIMIT = 200 << 20  # bytes of a checkout
# What the job of the first branch says, where it is not to pass.
REASONS = {"log": "FORGE_LOG_LIMIT", "hole": "FORGE_LOG_LIMIT", "bomb": "forge.checkoutLimit"}


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Work]:
    """A repo that has nothing to do with the floods, on the server that is flooded."""
    settings = {"FORGE_MAX_JOBS": "2", "FORGE_LOG_LIMIT": "1000000", "FORGE_JOB_TIMEOUT": "60"}
    server = Server(tmp_path_factory.mktemp("flood") / "data", settings).start()
    yield server.repo("other")
    if (server.data / "work/flood-litter").exists():  # a folder that is so deep would stop who clears up after the tests
        server.cli("delete", "flood-litter", "--yes")
        wait_for(lambda: not [*server.data.glob("work/flood-litter"), *server.data.glob("trash/*")], "an empty trash")
    end(server)


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_does_not_stop_the_server(other: Work, name: str, tmp_path: Path) -> None:
    server, flood = other.server, FLOODS[name]
    work = server.repo(f"flood-{name}")
    work.bare("config", "forge.checkoutLimit", str(LIMIT))
    work.bare("config", "receive.fsck.largePathname", "warn")  # newer gits refuse a name of 1 MB by themselves
    source = Source(tmp_path / "source", clean_environ())
    work.git("clone", "-q", "--bare", str(work.path), str(source.path))
    refs = flood.make(source, flood.small)
    work.commit("Base moves on", run="echo base\n")
    work.push("main")
    other.branch(f"beside-{name}", run="echo beside\n")
    server.idle()
    assert server.process
    process = psutil.Process(server.process.pid)
    named = [f"/r/{work.name}/mr/{ref}" for ref in refs[:3] if "/" not in ref]
    with Watch(server.url, process, ["/", "/jobs", f"/r/{work.name}", f"/r/{work.name}/history", *named]) as watch:
        source.push(work.path, refs)
        assert server.ended(other.push_job(f"beside-{name}"), 60)["status"] == "passed"
        server.idle(100)
    jobs = server.get(f"/jobs?repo={work.name}&kind=pre-merge")["jobs"]
    work.branch("after", run="ls; test ! -e many -a ! -e locked -a ! -e d\n")
    assert server.ended(work.push_job("after"), 60)["status"] == "passed"
    views = server.get(f"/r/{work.name}")["merge_requests"]
    assert all(len(view[part]) <= 1000 for view in views for part in ("subject", "author"))
    for job in jobs[:3]:
        for page in (f"/jobs/{job['id']}", f"/jobs/{job['id']}/log"):
            assert server.ask(page, Accept="text/html", Range="bytes=0-999").status in (200, 206, 416), page
    wait_for(lambda: not left_over(server.data, process), f"the end of {left_over(server.data, process)[:5]}", 60)
    assert not watch.wrong, watch.wrong[:5]
    assert watch.own - watch.began < GROWTH and watch.own < MOST, (watch.began, watch.own)
    assert watch.slowest < SLOWEST, (watch.slow_page, watch.slowest)
    assert REASONS.get(name, "") in (jobs[-1]["reason"] or "" if jobs else ""), jobs[-1]
    assert name != "hole" or all((job["log_size"] or 0) <= 1_000_000 for job in jobs)
    assert "Traceback" not in server.log, server.log


def test_what_links_lead_to_is_left_alone(tmp_path: Path) -> None:
    """A job leaves links to elsewhere in the place of folders and files; all of it is cleared away, but not what is there."""
    outside, tree, trash = tmp_path / "outside", tmp_path / "slot/tree", tmp_path / "trash"
    for folder in (outside / "inner", tree, trash):
        folder.mkdir(parents=True)
    (outside / "inner/kept").write_text("kept")
    (outside / "inner").chmod(0o500)

    def litter(folder: Path) -> None:
        (folder / "folder").symlink_to(outside)
        (folder / "file").symlink_to(outside / "inner/kept")
        (folder / "up").symlink_to("../../outside/inner")

    litter(tree)
    forge.sweep_tree(tree, {"folder/inner/kept", "file"}, time.time_ns() + 10**9, trash)
    assert [path.name for path in tree.iterdir()] == ["file"]  # git looks at what is tracked
    (trash / "left/deeper").mkdir(parents=True)
    litter(trash / "left")
    litter(trash / "left/deeper")
    litter(trash)
    forge.empty_trash(trash)
    assert not [*trash.iterdir()]
    assert (outside / "inner/kept").read_text() == "kept" and (outside / "inner").stat().st_mode & 0o777 == 0o500


def test_a_checkout_takes_no_more_than_half_of_the_room(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forge, "ROOM_LEAST", 1)
    commit, weight = work.heads()["main"], 2 * forge.FILE_WEIGHT  # of two small files
    forge.weigh_tree(work.path, commit, weight, weight)
    with pytest.raises(forge.TooLarge, match="more than half of the room on the disk"):
        forge.weigh_tree(work.path, commit, weight, weight - 1)
    with pytest.raises(forge.TooLarge, match="checkoutLimit"):
        forge.weigh_tree(work.path, commit, weight - 1, weight)
