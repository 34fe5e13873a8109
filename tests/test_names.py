"""Names of branches: every one that git takes and the rules allow works everywhere, and the others are refused in words."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote_to_bytes, urlencode
from wsgiref.util import setup_testing_defaults
from xml.etree import ElementTree

import pytest
from conftest import PASSWORD, Server, Work, clean_environ, needs_browser
from hypothesis import example, given, settings
from hypothesis import strategies as st

import forge

NAMES = [
    *('a"b', "a'b", "$(touch-x)", "`id`", ";|&", "<img-src=x-onerror=alert(1)>", "</script>", "a#b", "a%3Fb", "%"),
    *(
        "a/b",
        "a%2Fb",
        "a%252Fb",
        "%2e%2e",
        "é",
        "e\u0301",
        "Main",
        "MAIN",
        "refs/heads/main",
        "refs/tags/v1",
        "heads/main",
        "x" * 200,
    ),
    *(
        "merge",
        "delete",
        "x/merge",
        "y/delete",
        "a+b",
        "\u00a0x\u3000",
        "x\u2003",
        "a=b&c=d",
        "100%",
        "{{x}}",
        "%s%n",
        "a,b",
        "!x",
        "🦊/日本",
        "a\u00a0b",
        "\ue000",
    ),
    *(
        "a\u3000b",
        "\uffff",
        "a@b",
        "é" * 100,
        "HEAD/x",
        "x--y",
        "1" * 39,
        "g" * 40,
        "Forge-Job",
        "a;b",
        "a\u0300\u0301",
        "history",
        "(",
    ),
]


@pytest.fixture(scope="module")
def named(shared: Server) -> Work:
    """A repo with a branch of each name, all in one push."""
    work = shared.repo("named")
    work.bare("config", "forge.preMerge", 'printf %s "$FORGE_BRANCH"')
    start = work.git("rev-parse", "HEAD")
    made = "commit refs/heads/{}\ncommitter Ada <ada@localhost> 1 +0000\ndata 1\nx\nfrom {}\nM 100644 inline file-{}\ndata 1\nx\n"
    work.git("fast-import", "--quiet", text="".join(made.format(name, start, number) for number, name in enumerate(NAMES)))
    said = work.push(*(f"refs/heads/{name}:refs/heads/{name}" for name in NAMES))
    assert said.count("pre-merge job") == len(NAMES)
    shared.idle()
    return work


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], server: Server, *args: str) -> str:
    """The command line in this process; fails the test when it does."""
    with monkeypatch.context() as patched:
        for name, value in server.environ.items():
            if name.startswith("FORGE_"):
                patched.setenv(name, value)
        patched.setenv("FORGE_PORT", server.url.rpartition(":")[2])
        assert forge.main(list(args)) == 0, (args, capsys.readouterr())
    return capsys.readouterr().out


def test_every_name_that_git_takes_works_everywhere(
    named: Work, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server, work = named.server, named
    assert {mr["branch"] for mr in server.get("/r/named")["merge_requests"]} == set(NAMES)
    html = server.ask("/r/named", Accept="text/html").text
    assert "<img" not in html and '</script>"' not in html and "<strong></script>" not in html
    for name in NAMES:
        here = f"/r/named/mr/{quote(name)}"
        assert f'href="{here}"' in html, name
        view = server.get(here)
        assert view["branch"] == name and view["url"] == server.url + here and view["mergeable"], view
        assert server.job_log(view["job"]["id"]) == name.encode(), "what the job was told"
        assert [job["branch"] for job in server.get(f"/jobs?{urlencode({'repo': 'named', 'branch': name})}")["jobs"]] == [name]
        for path in (here, f"/jobs/{view['job']['id']}", f"/jobs?{urlencode({'repo': 'named', 'branch': name})}"):
            page = server.ask(path, Accept="text/html")
            assert page.status == 200 and "<img" not in page.text and (path != here or f'action="{here}/merge"' in page.text), (
                name
            )
        status = json.loads(call(monkeypatch, capsys, server, "status", "named", "--json", "--", name))
        assert status["branch"] == name
        assert call(monkeypatch, capsys, server, "why", "named", "--", name)
    server.act(f"/r/named/mr/{quote('y/delete')}/delete")
    assert "y/delete" not in work.heads()
    rest = [name for name in NAMES if name != "y/delete"]
    for number, name in enumerate(rest):
        if number % 2:
            call(monkeypatch, capsys, server, "merge", "named", "--", name)
        else:
            assert server.act(f"/r/named/mr/{quote(name)}/merge").status in (200, 202), name
    work.landed(*rest)
    server.idle()
    assert {merge["branch"] for merge in server.get("/r/named/history?limit=200")["merges"]} == set(rest)
    assert set(work.heads()) == {"main"}
    logged = work.bare("log", "--first-parent", "--format=%(trailers:key=Forge-Branch,valueonly)", "main").split("\n")
    assert {name for name in logged if name} == set(rest)
    for path in (
        "/",
        "/r/named",
        "/r/named/history",
        "/r/named/deployments",
        "/jobs",
        "/r/named/feed.atom",
        "/r/named/badge.svg",
    ):
        answer = server.ask(path, Accept="text/html")
        assert answer.status == 200 and "<img" not in answer.text, path
    feed = ElementTree.fromstring(server.ask("/r/named/feed.atom").body)
    titles = " ".join(title.text or "" for title in feed.iter("{http://www.w3.org/2005/Atom}title"))
    assert all(name in titles for name in rest[-20:] if name not in ("\uffff") and len(name) < 60)
    assert "named" in call(monkeypatch, capsys, server, "audit", "named")
    gone = server.ask(f"/r/named/mr/{quote('a%2Fb')}")
    assert gone.status == 404 and gone.json["merge"]["branch"] == "a%2Fb"
    assert f"merged named/a%2Fb: {gone.json['merge']['merge_commit']}" in server.log


@needs_browser
@pytest.mark.parametrize("name", ['a"b', "<img-src=x-onerror=alert(1)>", "a%2Fb", "e\u0301", "x/merge", "$(id);`id`#&+"])
def test_a_branch_of_any_name_is_found_and_merged_by_clicks(shared: Server, work: Work, page: Any, name: str) -> None:
    work.branch("topic")
    other = {"a%2Fb": "a/b", "e\u0301": "é"}.get(name)
    work.push(f"topic:refs/heads/{name}", *([f"topic^:refs/heads/{other}"] if other else []))
    shared.idle()
    page.goto(f"{shared.url}/r/{work.name}")
    page.get_by_role("link", name=name, exact=True).first.click()
    page.wait_for_url("**/mr/**")
    assert name in page.locator("h1").inner_text() and page.url == f"{shared.url}/r/{work.name}/mr/{quote(name)}"
    page.locator("form", has_text="Merge").first.locator("input[type=password]").fill(PASSWORD)
    page.get_by_role("button", name="Merge").click()
    page.wait_for_url("**/history")
    assert name in page.inner_text("main")
    work.landed(name)
    shared.idle()


# -- of any name at all ------------------------------------------------------------------------------------


def takes(name: str) -> bool:
    """Whether git and the rules take a name of a branch (git-check-ref-format(1))."""
    odd = re.search(r"[\x00- \x7f~^:?*\[\\]|\.\.|@\{|//|^/|/$|\.$|(^|/)\.|\.lock(/|$)", name)
    return bool(name) and not odd and forge.why_name_refused(f"refs/heads/{name}") is None


PIECES = st.one_of(
    st.sampled_from(
        ["/merge", "/delete", "%2F", "%", "mr/", "/", "a", ".", "..", "+", "&x=1", "#", ";", "=", '"', "<b>", "é", "e\u0301"]
    ),
    st.characters(exclude_categories=("Cs",)),
)
TAKEN = st.lists(PIECES, min_size=1, max_size=20).map("".join).filter(takes)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, str], tuple[str, str]]]:
    """Which branch the app is asked for by a method and a path, and what is to be done with it."""
    app = forge.create_app({"FORGE_DATA_DIR": str(tmp_path_factory.mktemp("app")), "FORGE_MERGE_PASSWORD": PASSWORD})
    seen: list[tuple[str, str]] = []

    class Heads(dict[str, str]):
        def __contains__(self, name: object) -> bool:
            seen.append(("mr", str(name)))
            return False

    engine: Any = app.engine
    engine.overview = lambda repo: forge.Refs("main", Heads())
    engine.ask_merge = lambda repo, branch, head: seen.append(("merge", branch)) or {"status": "queued", "job": None}
    engine.delete_branch = lambda repo, branch, head: seen.append(("delete", branch)) or {}

    def ask(method: str, path: str) -> tuple[str, str]:
        environ: dict[str, Any] = {"PATH_INFO": unquote_to_bytes(path).decode("latin-1"), "REQUEST_METHOD": method}
        environ |= {"QUERY_STRING": "", "SCRIPT_NAME": "", "HTTP_AUTHORIZATION": f"Bearer {PASSWORD}"}
        setup_testing_defaults(environ)
        seen.clear()
        b"".join(app(environ, lambda status, headers, error=None: print))
        return seen[0]

    yield ask
    app.engine.stop()


@settings(max_examples=300, deadline=None)
@given(name=TAKEN)
def test_the_address_of_a_branch_leads_back_to_it(asked: Callable[[str, str], tuple[str, str]], name: str) -> None:
    here = forge.mr_path("app", name)
    assert re.fullmatch(r"[A-Za-z0-9_.~/%-]+", here)
    assert asked("GET", here) == ("mr", name)
    assert asked("POST", f"{here}/delete") == ("delete", name)


@pytest.fixture(scope="module")
def hooked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repo whose hook can be asked."""
    server = Server(tmp_path_factory.mktemp("names") / "data")
    path = Path(server.cli("create", "app").stdout.strip())
    server.start().stop()
    return path


EDGES = [
    "x",
    "HEAD",
    "@",
    "-x",
    "x" * 200,
    "x" * 201,
    "é",
    "é" * 100,
    "é" * 101,
    "-",
    "--",
    "-é",
    "a\u200bb",
    "a\u2028b",
    "\x85",
    "a\udcffb",
]
EDGES += [*(letter * size for letter in "aA0g" for size in (39, 40, 41, 63, 64, 65))]
BYTES = st.one_of(
    st.text(st.characters(codec="ascii"), max_size=210),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=110),
    st.binary(max_size=210).map(lambda found: found.decode("utf-8", "surrogateescape")),
    st.text("0123456789abcdefABCDEF", min_size=39, max_size=65),
    st.sampled_from(EDGES),
)
REFS = st.builds(
    str.__add__, st.sampled_from(["refs/heads/"] * 4 + ["refs/tags/", "refs/notes/", "refs/headsx/", "refs/", ""]), BYTES
)


@settings(max_examples=15, deadline=None)
@given(refs=st.lists(REFS.filter(lambda ref: ref and not re.search(r"[\0\n\t ]", ref)), min_size=1, max_size=60, unique=True))
@example(refs=[f"refs/{kind}/{name}" for kind in ("heads", "tags", "notes") for name in EDGES])
def test_hooks_and_forge_judge_names_alike(hooked: Path, refs: list[str]) -> None:
    """The sh half of the rules against the Python half, on the hook itself, over any bytes (but those that end a word)."""
    text = "".join(f"{'0' * 40} {'1' * 40} {ref}\n" for ref in refs).encode("utf-8", "surrogateescape")
    done = subprocess.run([hooked / "hooks/pre-receive"], cwd=hooked, input=text, capture_output=True, env=clean_environ())
    said = done.stderr.decode("utf-8", "surrogateescape")
    for ref in refs:
        reason, lines = forge.why_name_refused(ref), [f"forge: {word} is refused: " for word in (ref, ascii(ref))]
        found = any(line in said for line in lines)
        assert found == (reason is not None), (ref, reason, said)
        assert reason is None or any(line + reason in said for line in lines), (ref, reason, said)
    left = {ref for ref in refs if not forge.why_name_refused(ref)}
    assert done.returncode == (not left), said
    (verdicts,) = [*hooked.glob("objects/forge-push-*")] or [None]
    if left:  # for hooks/proc-receive, which is never called here
        assert verdicts
        found = verdicts.read_bytes().decode("utf-8", "surrogateescape").split("\n")[:-1]
        verdicts.unlink()
        assert [line.split(" ")[:2] for line in found] == [["ok" if ref in left else "ng", ref] for ref in refs]
    assert bool(verdicts) == bool(left)
