"""The fuzzing: requests, hook payloads, journals and ref names that nobody sane would send, for long. ``make fuzz``.

Requests go over a socket to a real server. They are made from its own table of routes and from the names that ``forge.py`` looks
for in queries and forms, so that a new route or parameter is tried without a word here. Whatever comes, no answer is a 500 or
lacks the headers that keep browsers from harm; HTML, XML and JSON can be read, nothing in a page is markup that was not meant
to be, and the server's log has no traceback. A server that is started on a journal with damaged records shows all its pages,
and a branch of any name that git and forge take has a page.

Options: ``--seconds N`` (default 900), ``--seed S``. Prints the requests by route and status, the slowest, and what was found.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import json
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as xml
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from urllib.parse import quote, quote_from_bytes

from conftest import PASSWORD, ROOT, Server, Work, clean_environ, end
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import forge

SOURCE = (ROOT / "forge.py").read_text()
QUERY = set(re.findall(r"""query(?:\.get|_number|_seconds)?[(\[]["'](\w+)["']|["'](\w+)["'] in query""", SOURCE))
QUERY_NAMES = sorted({name for pair in QUERY for name in pair if name} | {"repo", "branch", "kind", "status"})
FORM_NAMES = sorted(set(re.findall(r'_form\("(\w+)"\)', SOURCE)) | {"password"})
MARK = "<i>&'\""  # in a page it is either spelled out or a hole
NASTY = [
    MARK,
    "../../token",
    "%2e%2e/",
    "..%2f..%2fetc%2fpasswd",
    "\0",
    "\r\nX-Odd: 1",
    "-1",
    "0",
    "1e3",
    "0x10",
    "9" * 25,
    "NaN",
    "null",
]
NASTY += [
    "[]",
    "{{}}",
    "{{7*7}}",
    "% import os",
    "' OR 1",
    "$(id)",
    "`id`",
    "\\",
    "\u202e",
    "\u2028",
    "é",
    "e\u0301",
    "😀",
    "\ud800",
    "a%2Fb",
]
NASTY += [
    "a/b",
    "//",
    ".",
    "..",
    "HEAD",
    "@",
    "master",
    "--help",
    "refs/heads/x",
    "",
    "x" * 3000,
    "0" * 40,
    "f" * 64,
    "\x85",
    "\xff\xfe",
]
ODD = st.one_of(st.sampled_from(NASTY), st.text(max_size=12), st.integers().map(str))


def mostly(known: st.SearchStrategy[Any], odd: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """In nine of ten cases what makes sense, so that the others reach what lies behind it."""
    return st.integers(0, 9).flatmap(lambda number: odd if number == 7 else known)


VOID = set("area base br col embed hr img input link meta source track wbr".split())


class Asked(NamedTuple):
    """A request, and the route it was made from."""

    route: str
    method: str
    target: bytes
    headers: list[tuple[str, bytes]]
    body: bytes | None


class Markup(HTMLParser):
    """Reads a page as a browser would begin to; `wrong` says what is not as it should be."""

    def __init__(self, page: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.wrong = ""
        self.feed(page)
        self.close()
        self.wrong = self.wrong or ", ".join(self.open)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        odd = [
            name for name, value in attrs if name.startswith("on") or name == "style" or (value or "").startswith("javascript:")
        ]
        if odd or tag in ("i", "iframe", "object", "embed", "base") or (tag == "script" and not dict(attrs).get("src")):
            self.wrong = self.wrong or f"<{tag} {attrs}>"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while (
            self.open
            and self.open[-1] != tag
            and self.open[-1] in ("p", "li", "tr", "td", "th", "dt", "dd", "tbody", "thead", "option")
        ):
            self.open.pop()  # these may be left open
        if not self.open or self.open.pop() != tag:
            self.wrong = self.wrong or f"</{tag}> closes nothing"


class Fuzz:
    """A server with something in it, and what is thrown at it."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.random = folder, random.Random(seed)
        # no limit for a user's jobs is needed: `true` is all they run
        self.server = Server(folder / "data", {"FORGE_MAX_JOBS": "1", "FORGE_SANDBOX": "none"}).start()
        self.counts: Counter[tuple[str, int]] = Counter()
        self.other: Counter[str] = Counter()
        self.slowest: list[tuple[float, str]] = []
        self.found: dict[str, str] = {}
        self.tags: list[str] = ['"x"']
        self.connection: socket.socket | None = None
        config = forge.load_config(self.server.environ)
        self.routes = [(route.method, route.rule) for route in forge.Web(SimpleNamespace(config=config)).app.routes]  # type: ignore[arg-type]
        self._fill()

    def _fill(self) -> None:
        self.work: Work = self.server.repo()
        self.work.bare("config", "forge.preMerge", "printf '\\033[31merror: %s\\n' '<i>'; [ $((FORGE_JOB_ID % 3)) != 0 ]")
        self.work.bare("config", "forge.postMerge", "true")
        self.branches = [
            "topic",
            "a/b",
            "a%2Fb",
            "merge",
            "x/delete",
            MARK.replace("&", "").replace("<i>", "i<i>"),
            "é",
            "e\u0301",
        ]
        for name in self.branches:
            self.work.branch(name, f"{name} {MARK}\n\n{'' if name != 'é' else 'Auto-Merge: yes'}")
        self.work.push(*(f"refs/heads/{name}:refs/heads/{name}" for name in self.branches))
        self.server.idle()
        self.heads = self.work.heads()
        tokens = [(self.server.data / name).read_text().strip() for name in ("token", "hook-token")]
        cookie = self.server.ask("/login", {"password": PASSWORD}).headers["Set-Cookie"].split(";")[0]
        self.bearers, self.cookies = [*tokens, PASSWORD, "wrong"], [cookie, cookie[:-2], "forge_session=", "a=b; " + cookie]

    # -- what is asked -----------------------------------------------------------------------------

    def _values(self, name: str) -> st.SearchStrategy[str]:
        """What may stand for a part of an address, a parameter or a field of this name: often something that is there."""
        jobs = [str(number) for number in range(1, 12)]
        known = {"repo": ["app"], "branch": self.branches, "job_id": jobs, "before": jobs, "head": [*self.heads.values()]}
        known |= {"path": ["forge.css", "live.js", "vendor/ansi_up.js"], "status": ["passed", "failed"], "kind": ["pre-merge"]}
        known |= {
            "password": [PASSWORD, "wrong"],
            "commit": [*self.heads.values()],
            "show": [*forge.STANDINGS],
            "view": ["split"],
        }
        known |= {"q": ["error", "<i>"], "find": ["error"], "to": ["/jobs", "//evil.example"]}
        return mostly(st.sampled_from(known.get(name, ["1", "0", "5"])), ODD)

    def requests(self) -> st.SearchStrategy[Asked]:
        return st.composite(self._request)()

    def _request(self, draw: Any) -> Asked:
        method, rule = draw(st.sampled_from(self.routes))
        route = f"{method} {rule}"
        path = b""
        for part in re.split(r"(<[^>]*>)", rule):
            if part.startswith("<"):
                text = draw(self._values(part[1:-1].partition(":")[0])).encode("utf-8", "surrogatepass")
                path += quote_from_bytes(text, safe=draw(st.sampled_from(["/", "", "/%"]))).encode()
            else:
                path += part.encode()
        names = draw(st.lists(mostly(st.sampled_from(QUERY_NAMES), ODD), max_size=3))
        asked = [(name, draw(self._values(name))) for name in names]
        if asked:
            path += b"?" + draw(self._encoded(asked))
        if draw(st.integers(0, 30)) == 0:
            path += draw(
                st.sampled_from([b"/", b"//", b"%", b"%zz", b"?", b"?=&&=", b"#x", b"/merge", b"\xff", b"%00", b"?a=%ff"])
            )
        method = draw(st.sampled_from([method] * 12 + ["GET", "HEAD", "POST", "PUT", "OPTIONS", "TRACE", "X-ODD"]))
        headers, body = draw(self._headers()), None
        if "hooks" in rule and draw(st.integers(0, 4)):  # what a stranger says there is not even read
            token = draw(st.sampled_from(self.bearers[:2]))
            headers = [*(pair for pair in headers if pair[0] != "Authorization"), ("Authorization", f"Bearer {token}".encode())]
        if method in ("POST", "PUT"):
            kind, body = draw(self._payload() if "hooks" in rule else self._form())
            headers.append(("Content-Type", kind.encode()))
        return Asked(route, method, path, headers, body)

    @staticmethod
    def _encoded(pairs: list[tuple[str, str]]) -> st.SearchStrategy[bytes]:
        def of(pair: tuple[str, str]) -> bytes:
            return b"=".join(quote(text, errors="surrogatepass").encode() for text in pair)

        return st.sampled_from([b"&", b"&", b"&", b";"]).map(lambda between: between.join(map(of, pairs)))

    def _headers(self) -> st.SearchStrategy[list[tuple[str, bytes]]]:
        odd = ODD.map(lambda text: re.sub(rb"[\0-\x1f\x7f]", b"", text.encode("utf-8", "surrogatepass")))

        def one(name: str, *known: str) -> st.SearchStrategy[tuple[str, bytes]]:
            return st.tuples(st.just(name), mostly(st.sampled_from([text.encode() for text in known]), odd))

        host = self.server.url[7:]
        ranges = [
            "bytes=0-4",
            "bytes=-3",
            "bytes=5-",
            "bytes=9-2",
            "bytes=0-0,2-3",
            "bytes=-",
            "bytes=99999999999999999999-",
            "x=1-2",
        ]
        usual = [
            one("Accept", "text/html", "application/json", "text/plain", "*/*"),
            one(
                "Authorization",
                *(f"Bearer {text}" for text in self.bearers for _ in range(9 if text != "wrong" else 1)),
                "Basic eDp5",
            ),
            one("Cookie", *self.cookies, 'forge_session="' + "\\" * 5000 + '"'),
            st.tuples(st.just("If-None-Match"), st.sampled_from(self.tags[-20:]).map(str.encode)),
            one(
                "If-Modified-Since",
                "Thu, 01 Jan 1970 00:00:00 GMT",
                "Fri, 31 Dec 9999 23:59:59 GMT",
                "Fri, 32 Foo 99999 99:99:99",
            ),
            one("Range", *ranges),
            one("If-Range", '"x"', "Thu, 01 Jan 1970 00:00:00 GMT"),
            one("Origin", self.server.url, "null", "https://evil.example"),
            one("Sec-Fetch-Site", "same-origin", "cross-site"),
            one("X-Forge-Repo", "app"),
            one("X-Forge-Follow", "1:0", "2:0:2", "99:0", "1:999999999999999999"),
            one("X-Forwarded-For", "203.0.113.9"),
            one("X-Forwarded-Host", "evil.example"),
            one("X-Forwarded-Proto", "https"),
            one("Expect", "100-continue", "x"),
            one("Referer", f"http://{host}/"),
            one("X-HTTP-Method-Override", "DELETE"),
        ]
        few = st.lists(st.one_of(usual), max_size=3, unique_by=lambda header: header[0])
        return st.tuples(usual[0], st.booleans().flatmap(lambda acts: usual[1] if acts else usual[2]), few).map(
            lambda made: [*{name: (name, value) for name, value in [*made[2], *made[:2]]}.values()]
        )

    def _form(self) -> st.SearchStrategy[tuple[str, bytes]]:
        names = st.lists(mostly(st.sampled_from(FORM_NAMES), ODD), max_size=4)
        pairs = names.flatmap(lambda names: st.tuples(*(st.tuples(st.just(name), self._values(name)) for name in names)))
        form = pairs.flatmap(lambda pairs: self._encoded(list(pairs)))
        kinds = st.sampled_from(
            ["application/x-www-form-urlencoded"] * 6 + ["application/json", "", "multipart/form-data", "x" * 300]
        )
        parts = st.sampled_from(
            [b"--x\r\n", b'Content-Disposition: form-data; name="password"\r\n', b"\r\n", b"x", b"\r\n--x--\r\n", b"\xff"]
        )
        mixed = st.lists(parts, max_size=8).map(b"".join)
        return st.one_of(
            st.tuples(kinds, form),
            st.tuples(kinds, st.binary(max_size=60)),
            st.tuples(st.just("multipart/form-data; boundary=x"), mixed),
        )

    def _payload(self) -> st.SearchStrategy[tuple[str, bytes]]:
        ids = mostly(st.sampled_from(["0" * 40, *self.heads.values()]), ODD)
        names = [f"refs/heads/{name}" for name in [*self.branches, "main", "gone"]]
        refs = mostly(st.sampled_from([*names, "refs/tags/v1"]), ODD)
        leaf = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), ODD)
        junk = st.recursive(
            leaf, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ODD, inner, max_size=3), max_leaves=8
        )
        update = st.fixed_dictionaries({"ref": mostly(refs, junk), "oldrev": mostly(ids, junk), "newrev": mostly(ids, junk)})
        options = st.lists(st.sampled_from(["wait", "merge"]) | ODD, max_size=3) | junk
        whole = st.fixed_dictionaries(
            {"repo": st.just("app"), "updates": st.lists(update, max_size=3)}, optional={"options": options}
        )
        single = update.map(lambda update: {"repo": "app", **update})
        said = st.one_of(whole, single, junk).map(lambda said: json.dumps(said).encode())
        line = st.tuples(ids, ids, refs).map(" ".join) | ODD.map(lambda text: f"option {text}") | ODD
        lines = st.lists(line, max_size=4).map(lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass"))
        json_kind, text_kind = st.just("application/json"), st.just("text/plain")
        return st.one_of(st.tuples(json_kind, said), st.tuples(text_kind, lines), st.tuples(json_kind, st.binary(max_size=40)))

    # -- what is answered ------------------------------------------------------------------------------

    def try_request(self, asked: Asked) -> None:
        """Send a request and judge the answer."""
        began = time.monotonic()
        status, headers, body = self._exchange(asked)
        seconds = time.monotonic() - began
        self.counts[asked.route, status] += 1
        self.slowest = sorted([*self.slowest, (seconds, f"{asked.method} {asked.target[:100]!r}")], reverse=True)[:5]
        said = f"{asked.route} {status}"
        assert status < 500 or (status == 503 and "Retry-After" in headers), (said, body[:300])
        assert seconds < 10, (asked.route, "took too long")
        for name, value in forge.SECURITY_HEADERS.items():
            assert headers.get_all(name) == [value], (said, name, headers.get_all(name))
        assert b"Traceback (most" not in body, said
        kind = headers.get("Content-Type", "")
        if tag := headers.get("ETag"):
            self.tags = [*self.tags[-50:], tag]
        if asked.method == "HEAD" or not body or status == 206:
            return
        if kind == "application/json":
            assert isinstance(json.loads(body), dict), said
        elif kind.startswith("text/html"):
            assert not (wrong := Markup(body.decode()).wrong), (said, wrong)
        elif "xml" in kind:
            xml.fromstring(body)

    def _exchange(self, asked: Asked) -> tuple[int, Any, bytes]:
        named = [name for name, _ in asked.headers]
        headers = [("Host", self.server.url[7:].encode())] if "Host" not in named else []
        headers += asked.headers + ([("Content-Length", str(len(asked.body)).encode())] if asked.body is not None else [])
        head = b"".join(name.encode() + b": " + value + b"\r\n" for name, value in headers)
        request = (
            asked.method.encode()
            + b" "
            + asked.target.replace(b" ", b"+")
            + b" HTTP/1.1\r\n"
            + head
            + b"\r\n"
            + (asked.body or b"")
        )
        try:
            return self._answer(request, asked.method)
        except (ConnectionError, http.client.BadStatusLine):  # kept alive for too long
            self._hang_up()
            return self._answer(request, asked.method)

    def _answer(self, request: bytes, method: str) -> tuple[int, Any, bytes]:
        if self.connection is None:
            host, port = self.server.url[7:].split(":")
            self.connection = socket.create_connection((host, int(port)), timeout=40)
        self.connection.sendall(request)
        answer = http.client.HTTPResponse(self.connection, method=method)
        answer.begin()
        body = answer.read()
        if answer.will_close:
            self._hang_up()
        return answer.status, answer.headers, body

    def _hang_up(self) -> None:
        if self.connection:
            self.connection.close()
        self.connection = None

    # -- journals and names --------------------------------------------------------------------------------

    def try_journal(self) -> None:
        """A server on a copy of the journal with damaged records shows all its pages."""
        copy = self.folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        for name in ("repos", "logs"):
            shutil.copytree(self.server.data / name, copy / name, symlinks=True)
        lines = []
        for name in ("jobs", "merges"):
            lines = (self.server.data / f"{name}.jsonl").read_bytes().split(b"\n")
            (copy / f"{name}.jsonl").write_bytes(b"\n".join(map(self._damaged, lines)))
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            app = forge.create_app({"FORGE_DATA_DIR": str(copy), "FORGE_SANDBOX": "none", "FORGE_MAX_JOBS": "1"})
            try:
                for path in ["/", "/jobs", "/search", "/metrics", *(f"/jobs/{number}" for number in range(1, 15))] + [
                    f"/r/app{rest}"
                    for rest in ("", "/history", "/deployments", "/feed.atom", "/badge.svg", "/mr/topic", "/mr/merge")
                ]:
                    for accept in ("text/html", "application/json"):
                        self.other["pages of damaged journals"] += 1
                        assert self._call(app, path, accept) < 500, (path, accept, said.getvalue()[-2000:])
            finally:
                app.engine.stop()
        assert "Traceback" not in said.getvalue(), said.getvalue()[-3000:]
        self.other["damaged journals"] += 1

    def _damaged(self, line: bytes) -> bytes:
        """A line of the journal, one in five with something odd in it."""
        draw = self.random
        if not line or draw.random() > 0.2:
            return line
        odd = [
            None,
            0,
            -1,
            10**30,
            1.5,
            "",
            MARK,
            "x" * 500,
            [],
            {},
            [[]],
            {"a": {}},
            True,
            "\ud800",
            "2026-13-45T99:99:99Z",
            ["x"],
            [{}],
        ]
        record = json.loads(line)
        how = draw.randrange(6)
        if how == 0:
            return line[: draw.randrange(len(line))]
        if how == 1:
            return bytes(byte if draw.random() > 0.02 else draw.randrange(256) for byte in line).replace(b"\n", b" ")
        name = draw.choice([*record])
        record[name] = draw.choice(odd)
        if how == 2:
            del record[name]
        if how == 3:
            record["event"] = draw.choice([*forge.FOLDS, "odd"])
        return json.dumps(record).encode()

    @staticmethod
    def _call(app: Any, path: str, accept: str) -> int:
        environ = {"PATH_INFO": path, "REQUEST_METHOD": "GET", "QUERY_STRING": "", "SCRIPT_NAME": "", "HTTP_HOST": "localhost"}
        environ |= {"HTTP_ACCEPT": accept, "wsgi.input": io.BytesIO(), "wsgi.errors": sys.stderr, "wsgi.url_scheme": "http"}
        told: list[str] = []
        answer = app(environ, lambda status, headers, error=None: told.append(status))
        b"".join(answer)
        return int(told[0].split()[0])

    def try_name(self, name: str) -> None:
        """A branch of this name, if git and forge take it, has a page and can be removed."""
        try:
            given = f"refs/heads/{name}".encode()
        except UnicodeEncodeError:
            return
        if "\0" in name or subprocess.run(["git", "check-ref-format", given], env=clean_environ()).returncode:
            return
        self.other["names tried"] += 1
        reason = forge.why_name_refused(f"refs/heads/{name}")
        pushed = self.work.push(f"{self.heads['topic']}:refs/heads/{name}", check=False)
        assert ("is refused" in pushed) == (reason is not None), (name, reason, pushed)
        if reason or "new branch" not in pushed:  # git has a file where this wants a folder
            return
        path = f"/r/app/mr/{quote(name, safe='')}"
        for accept in ("text/html", "application/json"):
            assert self.server.ask(path, Accept=accept).status == 200, name
        assert not (wrong := Markup(self.server.ask("/r/app", Accept="text/html").text).wrong), (name, wrong)
        gone = self.server.ask(f"{path}/delete", {}, Authorization=f"Bearer {self.bearers[0]}")
        assert gone.status == 200, (name, gone.body)
        self.other["names with a page"] += 1

    def restore(self) -> None:
        """Bring back the branches that were merged or removed, and wait for what runs."""
        lines = "".join(f"update refs/heads/{name}\0{head}\0\0" for name, head in self.heads.items() if name != "main")
        command = ["git", "-C", str(self.work.path), "update-ref", "-z", "--stdin"]
        subprocess.run(command, input=lines.encode(), env=clean_environ(), check=True)
        self.server.hook(b'{"repo": "app", "updates": []}', Content_Type="application/json")
        self.server.idle()

    # -- a run -------------------------------------------------------------------------------------------------

    def round(self, number: int, requests: int = 1500, names: int = 5, journals: int = 20) -> None:
        """So many requests, names and damaged journals."""
        quick = settings(
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
            print_blob=False,
        )
        test = given(asked=self.requests())(lambda asked: self.try_request(asked))  # noqa: PLW0108
        self._note(seed(number)(settings(quick, max_examples=requests)(test)))
        name = st.text(st.characters(codec="utf-8", exclude_characters="\n"), min_size=1, max_size=20) | ODD
        test = given(name=name)(lambda name: self.try_name(name))  # noqa: PLW0108 (hypothesis takes no methods)
        self._note(seed(number)(settings(quick, max_examples=names, phases=[Phase.generate])(test)))
        for _ in range(journals):
            self._note(self.try_journal)
        self._note(self.restore)
        self._note(self._look)

    def _look(self) -> None:
        log, rest = self.server.log, self.server.data.with_suffix(".err")
        if "Traceback" in log:
            rest.write_text("")  # told once
        assert "Traceback" not in log, log[log.index("Traceback") :][:3000]
        assert self.server.process and self.server.process.poll() is None and self.server.ask("/healthz").status == 200

    def _note(self, test: Any) -> None:
        try:
            test()
        except Exception as error:
            self._hang_up()
            notes = " ".join(getattr(error, "__notes__", []))
            self.found.setdefault(re.sub(r"\d+", "N", str(error)[:80]), f"{error!r:.3000} {notes}")

    def close(self) -> None:
        self._hang_up()
        end(self.server)

    def figures(self) -> Iterator[str]:
        """What was done and found, in lines."""
        also = [f"{count} {what}" for what, count in sorted(self.other.items())]
        yield ", ".join([f"{sum(self.counts.values())} requests", *also])
        for route in sorted({route for route, _ in self.counts}):
            statuses = " ".join(f"{status}:{count}" for (one, status), count in sorted(self.counts.items()) if one == route)
            yield f"  {route:45} {statuses}"
        yield from (f"  slow: {seconds:.2f} s {what}" for seconds, what in self.slowest)
        yield f"{len(self.found)} findings"
        yield from (f"FOUND {text}" for text in self.found.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=900)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="forge-fuzz-") as folder:
        fuzz = Fuzz(Path(folder), args.seed)
        until, number = time.monotonic() + args.seconds, args.seed
        while time.monotonic() < until:
            fuzz.round(number)
            number += 1
        print("\n".join(fuzz.figures()))
        with contextlib.suppress(AssertionError):  # a traceback in its log has been told
            fuzz.close()
    return 1 if fuzz.found else 0


if __name__ == "__main__":
    sys.exit(main())
