"""forge: a git forge in one file, for one small server and people who love Nix.

The way of a push
-----------------
1. ``git push`` → the repo's ``hooks/post-receive`` posts the lines git gave it to ``/hooks/post-receive``.
2. ``Engine.submit`` reads the refs from the repo (what the hook said is only a hint), and ``notice`` (pure) turns
   what is new into events: ``job.queued`` for a head, ``base.moved`` plus a post-merge job for base.
3. ``Engine.dispatch`` gives free places to pending jobs, those of the queue first, then the oldest. A starter
   thread (``Engine._launch``) makes the candidate (the merge commit that would become base), brings a checkout to it, and
   starts the supervisor, a few lines of sh that outlive us, with the job under it in a sandbox (``sandbox_args``).
4. The watcher thread sees the supervisor end (pidfd), and ``Engine._end`` writes ``job.finished``, with a digest of why
   when it did not pass.
5. ``Engine.step`` asks ``decide`` (pure) what follows: ``Merge`` moves base and removes the branches in one ref transaction,
   ``Queue`` chains what passed on an older base and tests it with one job, ``Blame`` tells the branch that halving has found
   at fault. Moved base starts again at 2, as a post-merge job.

A hook can be lost; the same ``submit`` therefore runs for every repo at start and every ``SCAN_SECONDS``.

The data directory
------------------
::

    repos/<name>.git            bare repos, the only truth about refs
    jobs.jsonl merges.jsonl     the journal: append-only, one JSON object a line; seq counts over both
    logs/<repo>/<id>.log        a job's bytes as it wrote them, but for secrets
    work/<repo>/<n>/tree        a checkout with a .git of its own; beside it its index, which no job sees
    work/<repo>/<n>/tmp         what a job in the sandbox has as /tmp
    home/<repo>/<kind>          HOME of the jobs
    running/<id>/               what a supervisor keeps: pid, command, exit.new → exit; for a deployment also ssh_config,
                                and log, what it prints before secrets are masked
    incoming/                   what hooks could not deliver
    trash/                      what is being removed
    snapshot                    what follows from most of the journal, for a quick start; may be deleted
    bin/forge                   the command, for hooks and jobs
    git/<format>                a git directory with nothing in it, by which git reads objects
    token hook-token hook-header address sessions.json session-key lock upkeep

Events
------
``jobs.jsonl``:   repo.found repo.gone base.moved branch.gone
                  job.queued job.started job.unstarted job.stopping job.finished head.blamed flake.found
``merges.jsonl``: merge.asked, merge.begun → merged | merge.abandoned, branch.deleting → branch.deleted | branch.kept,
                  branch.renewing → branch.renewed | branch.kept,
                  hold.placed hold.lifted

An effect on refs is written as an intent (begun, deleting, renewing), done, and written as an outcome. The next look at the repo
after a crash compares each open intent with git (``Engine._settle``), before anything else is done there.

Threads and the lock
--------------------
One lock, ``Engine.lock`` (a Condition), guards the ledger (journal, state, indexes), the table of running jobs and the
turns. It is held for memory and for reading and writing the journal, never for git, a checkout or a process. What needs
a quiet repo (reading refs and acting on them) takes the repo's turn, which pushes do not: every move of a ref names the
old value. Turns are marked under the lock and held without it. A git may need a minute for what was pushed: requests and the
scan wait for a turn, or for what another thread asks git, no longer than ``BUSY_SECONDS``.

==========  =========================================================================================
watcher     one; waits on the pidfds of the jobs, measures and stops them, starts a scan when due, tells systemd that we live
workers     ``WORKERS``; take repos from ``Engine.todo`` and step them
starters    one for each job that is being started; gone when its process runs
enders      one for each job that ended badly; reads its log, asks git, and is gone when the end is in the journal
maskers     one for each running deployment that may know secrets; copies what it prints into the log that is served
janitor     one; empties ``trash/``, writes the snapshot when many records have come, counts the lines of new logs
keeper      one; prunes now and then, and packs repos that have grown while nothing runs
herald      one, where FORGE_NOTIFY is set; runs it
web         waitress's; they submit, ask, and read
==========  =========================================================================================

Beside the server runs one process, the launcher, which forks the supervisors; see ``LAUNCHER`` and ``SUPERVISOR``.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import hashlib
import hmac
import io
import itertools
import json
import math
import os
import platform
import re
import resource
import secrets
import select
import selectors
import shlex
import shutil
import signal
import socket
import stat
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import unicodedata
import uuid
import zlib
from array import array
from base64 import b64encode
from bisect import bisect_left
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timezone
from functools import partial
from heapq import merge as merge_sorted
from ipaddress import ip_address
from pathlib import Path
from types import UnionType
from typing import IO, Any, NamedTuple, NoReturn, TypeVar, get_args, get_origin, get_type_hints
from urllib.parse import quote, unquote, urlencode, urlsplit

import bottle
import psutil

__version__ = "0.1.0"


###############################################################################
# config: every setting is parsed and checked once
###############################################################################


class WrongSetting(ValueError):
    """A setting that cannot be used; the message names the variable."""


@dataclass(frozen=True)
class Config:
    """The settings, as README.md lists them. Sizes are bytes, durations seconds."""

    data_dir: Path
    host: str = "127.0.0.1"
    port: int = 3030
    url: str | None = None
    password_file: Path | None = None
    password: str | None = None
    max_jobs: int = 1
    job_timeout: int = 3600
    log_limit: int = 1 << 30
    job_memory: int | None = None
    job_processes: int | None = None
    secrets_dir: Path | None = None
    private: bool = False
    log_days: int = 0  # 0: logs are kept
    sandbox: str = "auto"  # bwrap, none
    notify: str | None = None

    @property
    def repos(self) -> Path:
        return self.data_dir / "repos"

    def repo(self, name: str) -> Path:
        """Where the bare repo `name` lies."""
        return self.repos / f"{name}.git"

    def log(self, repo: str, job_id: int) -> Path:
        """Where the log of a job lies."""
        return self.data_dir / "logs" / repo / f"{job_id}.log"

    def listen_url(self, port: int | None = None) -> str:
        """The address of the server for who is on this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{port or self.port}"


def load_config(environ: Mapping[str, str]) -> Config:
    """Read the ``FORGE_*`` variables. Raises WrongSetting with one line that names the variable."""

    def number(name: str, least: int = 1, most: int = 1 << 62) -> int | None:
        text = environ.get(name, "").strip()
        if not text:
            return None
        if not re.fullmatch(r"[0-9]{1,19}", text) or not least <= int(text) <= most:
            upper = f" to {most}" if most < 1 << 62 else " or more"
            raise WrongSetting(f"{name} is {text!r}, but must be a whole number, {least}{upper}")
        return int(text)

    def path(name: str) -> Path | None:
        text = environ.get(name, "")
        return Path(text).absolute() if text else None

    def choice(name: str, *known: str) -> str:
        text = environ.get(name, "") or known[0]
        if text not in known:
            raise WrongSetting(f"{name} is {text!r}, but must be one of {', '.join(known)}")
        return text

    url = environ.get("FORGE_URL", "").rstrip("/") or None
    if url is not None and not is_http_url(url):
        raise WrongSetting(f"FORGE_URL is {url!r}, but must look like https://forge.example.org")
    password_file = path("FORGE_MERGE_PASSWORD_FILE")
    credentials = path("CREDENTIALS_DIRECTORY")
    if password_file is None and credentials and (credentials / "merge-password").exists():
        password_file = credentials / "merge-password"
    data_dir = environ.get("FORGE_DATA_DIR") or "/var/lib/forge"
    if "\n" in data_dir:
        raise WrongSetting("FORGE_DATA_DIR must not contain a line break")
    given = {
        "host": environ.get("FORGE_HOST") or None,
        "port": number("FORGE_PORT", 0, 65535),
        "url": url,
        "password_file": password_file,
        "password": environ.get("FORGE_MERGE_PASSWORD") or None,
        "max_jobs": number("FORGE_MAX_JOBS", 1, 1000) or os.cpu_count(),
        "job_timeout": number("FORGE_JOB_TIMEOUT"),
        "log_limit": number("FORGE_LOG_LIMIT"),
        "job_memory": number("FORGE_JOB_MEMORY"),
        "job_processes": number("FORGE_JOB_PROCESSES"),
        "secrets_dir": path("FORGE_SECRETS_DIR"),
        "private": choice("FORGE_PRIVATE", "0", "1") == "1",
        "log_days": number("FORGE_LOG_DAYS", 0, 99_999),
        "sandbox": choice("FORGE_SANDBOX", "auto", "none", "bwrap"),
        "notify": environ.get("FORGE_NOTIFY", "").strip() or None,
    }
    values: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return Config(Path(os.path.realpath(data_dir)), **values)


def is_http_url(text: str) -> bool:
    """Whether `text` is an http(s) URL of a host, with or without a port; the pages live at its root."""
    found = re.fullmatch(r"https?://(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?", text)
    return found is not None and 0 < int(found[1] or 1) < 65536


###############################################################################
# values: the domain, and the three exceptions
###############################################################################


PRE, POST = "pre-merge", "post-merge"
LIVE = ("pending", "running")
FAILED = ("failed", "timeout")
VERDICTS = ("passed", *FAILED)
UNWANTED = ("superseded", "canceled")
FINAL = ("passed", "failed", "canceled", "timeout", "superseded", "skipped")
REPO_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
OBJECT_ID = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")


class Refused(Exception):
    """The user's fault: an HTTP status and one sentence that names the thing and says what to do."""

    def __init__(self, status: int, text: str, **extra: Any):
        super().__init__(text)
        self.status, self.text, self.extra = status, text, extra


class GitError(Exception):
    """Git's fault (or its repo's): what was run and the last thing git said; `out` is what it had printed until then."""

    def __init__(self, args: tuple[str, ...], code: int, stderr: str, out: str = ""):
        lines = [line for line in stderr.splitlines() if line.strip()]
        said = next((line for line in lines if line.startswith(("fatal:", "error:"))), lines[-1] if lines else "nothing")
        super().__init__(f"git {args[0]} ended with {code}: {said}")
        self.code, self.stderr, self.out = code, stderr, out

    @property
    def passing(self) -> bool:
        """Whether it may go better soon: git was killed, or another git held a lock."""
        return self.code < 0 or ".lock'" in self.stderr

    @property
    def excessive(self) -> bool:
        """Whether it takes more time, memory or room than is given to one git; it would do so again."""
        return self.code == EXCESS or "Out of memory" in self.stderr


EXCESS = 124  # as timeout(1) has it: the exit code of a git that we ended since it went beyond what it is given


class Fault(Exception):
    """Ends a command with an exit code and one line on standard error."""

    def __init__(self, code: int, text: str, answer: bytes = b""):
        super().__init__(text)
        self.code, self.answer = code, answer  # what the server said, if it did


@dataclass
class Job:
    """One run of pre-merge or post-merge, as the journal keeps it. Times are RFC 3339 in UTC, `duration` is seconds."""

    id: int
    repo: str
    branch: str
    kind: str
    commit: str
    heads: list[dict[str, str]]
    created_at: str
    status: str = "pending"
    cause: str = "push"  # push, retest (the queue tests passed heads together), rerun (interrupted), retry, rollback
    caused_by: str | None = None  # what brought the head about, if it is a bump (`Cause`)
    command: str | None = None
    configured: str | None = None  # the command that the repo's config named, "" for a detected one
    base: str | None = None
    tested: str | None = None
    tree: str | None = None
    chain: list[list[str]] = field(default_factory=list)  # [merge commit, tree] for each of `heads`; none: tested is no merge
    started_at: str | None = None
    finished_at: str | None = None
    duration: float | None = None
    exit_code: int | None = None
    reason: str | None = None
    retry_of: int | None = None
    reused_from: int | None = None
    digest: str | None = None  # why it did not pass, in a few lines
    log_size: int | None = None
    checkout: int | None = None
    timeout: int | None = None
    sandboxed: bool = False
    secrets: str | None = None  # the folder with its secrets, see `secrets_folder`
    stopping: list[str] | None = None  # [status, reason] once it has been told to stop

    @property
    def live(self) -> bool:
        return self.status in LIVE

    @property
    def stoppable(self) -> bool:
        return self.live and not self.stopping

    @property
    def interrupted(self) -> bool:
        return self.status == "failed" and (self.reason or "").startswith("interrupted")

    @property
    def is_first(self) -> bool:
        """Whether it tests one head for its own verdict, not passed heads for the queue, nor a rollback."""
        return self.kind == PRE and self.cause not in ("retest", "rollback")

    @property
    def is_rollback(self) -> bool:
        """Whether it tests an older tree of base, whose commit is its one head."""
        return self.cause == "rollback"

    @property
    def is_result(self) -> bool:
        """Whether its command gave a verdict on its tree: it ran to its end, and nobody stopped it."""
        ended = self.status in ("passed", "failed") and self.exit_code is not None and self.command is not None
        by_code = self.reason == exit_reason(self.exit_code or 0, self.command)
        not_run = self.exit_code in NOT_RUN and (self.reason or "").startswith(f"exit code {self.exit_code}: ")
        return ended and self.kind == PRE and (by_code or not_run)


JOB_FIELDS = tuple(f.name for f in fields(Job))


def job_of(record: Mapping[str, Any]) -> Job:
    """The job in a journal record; what this version does not know is left out."""
    return Job(**{name: record[name] for name in JOB_FIELDS if name in record})


def job_record(job: Job) -> dict[str, Any]:
    """A job for a journal record, without what it has not: there are many of them."""
    return {name: value for name, value in vars(job).items() if value is not None and value != []}


@dataclass
class Branch:
    """What is known of a branch beside base: its head, the newest job with it, and what became of it in the queue."""

    head: str
    job: int | None = None
    asked: str | None = None  # "auto" (-o merge) or "manual", for this head
    asked_seq: int = 0  # the record that asked, and when it was written
    asked_at: str = ""
    passed: int | None = None  # the record with which it passed (nothing since has spoken against it): its place in the queue
    passed_at: str = ""
    passed_on: str | None = None  # the base it passed on
    took: float = 0.0  # seconds of the job by which it passed
    fault: list[str] | None = None  # found at fault by the queue: the branches merged since it passed, with which it breaks


@dataclass
class Hold:
    """What must not come back to base by a merge: the tree of a base commit, and the locked inputs that it brought."""

    commit: str
    tree: str
    inputs: list[dict[str, str]]  # {"input", "commit"} each
    reason: str
    since: str
    rollback: str | None = None  # the commit that rolled it back; None: somebody placed it by hand


@dataclass
class Repo:
    """What is known of a repo: `tip` is the commit of base that post-merge has been told of."""

    base: str | None = None
    tip: str | None = None
    branches: dict[str, Branch] = field(default_factory=dict)
    born: bool = False  # whether base has ever been there
    queue_job: int | None = None  # the newest job that tested passed heads together
    early_job: int = 0  # the newest of those that did not wait for the first tests
    suspects: list[dict[str, str]] = field(default_factory=list)  # heads that failed together, and on which base
    suspects_on: str | None = None
    undeployed: str | None = None  # the base from which on nothing was deployed, since those jobs never ran
    rollback: int | None = None  # the job that tests a rollback, until that has landed or is given up
    holds: dict[str, Hold] = field(default_factory=dict)  # by commit, in the order in which they were placed


class Refs(NamedTuple):
    """The branches of a repo at one moment. `ahead` names those that have commits base lacks."""

    base: str | None  # what HEAD names, whether it exists or not
    heads: dict[str, str]
    ahead: frozenset[str] = frozenset()

    @property
    def tip(self) -> str | None:
        return self.heads.get(self.base) if self.base is not None else None


class Update(NamedTuple):
    """A line that git gives its hooks."""

    old: str
    new: str
    ref: str

    @property
    def branch(self) -> str | None:
        return self.ref[11:] if self.ref.startswith("refs/heads/") else None


class Push(NamedTuple):
    """What a hook says of a push. `at` is when it was said, RFC 3339."""

    updates: tuple[Update, ...] = ()
    options: tuple[str, ...] = ()
    at: str = ""


NO_PUSH = Push()


class CommitFacts(NamedTuple):
    """What a commit says of itself."""

    subject: str
    body: str
    author: str
    authored_at: str | None
    auto_merge: bool
    cause: str = ""  # of a bump: what brought it about, as `Cause` spells it
    unheard: str = ""  # why what looks like a trailer Auto-Merge is none, and what to do


class Cause(NamedTuple):
    """The post-merge job that brought a commit about, as the commit's trailer Forge-Cause says: anybody may write one."""

    repo: str
    commit: str
    job: int

    def __str__(self) -> str:
        return f"{self.repo} {self.commit} job {self.job}"


def parse_cause(text: object) -> Cause | None:
    """What a trailer Forge-Cause names, or None when it is none of ours."""
    found = re.fullmatch(r"([^ ]+) ([0-9a-f]{40,64}) job ([1-9][0-9]{0,17})", text) if isinstance(text, str) else None
    return (
        Cause(found[1], found[2], int(found[3])) if found and is_repo_name(found[1]) and OBJECT_ID.fullmatch(found[2]) else None
    )


class Merged(NamedTuple):
    """What git makes of base and a head: the merged tree, or None with the paths in conflict or without common history."""

    tree: str | None
    conflicts: tuple[str, ...] = ()
    unrelated: bool = False
    trouble: str | None = None  # why git does not get to the end of it


def is_null(object_id: str) -> bool:
    """Whether git means "there is none" by this id."""
    return not object_id.strip("0")


def is_repo_name(name: object) -> bool:
    """The rule for repo names of README.md."""
    return isinstance(name, str) and bool(REPO_NAME.fullmatch(name)) and not name.endswith((".git", ".lock"))


def why_name_refused(ref: str) -> str | None:
    """Why a pushed ref is not accepted, or None. `ref` may hold surrogates where it is no UTF-8.

    hooks/pre-receive judges ASCII names by the same rules, without us.
    """
    if not ref.startswith(("refs/heads/", "refs/tags/")):
        return "only branches (refs/heads/) and tags (refs/tags/) can be pushed"
    name = ref.split("/", 2)[2]
    try:
        size = len(name.encode("utf-8"))
    except UnicodeEncodeError:
        return "the name is not valid UTF-8"
    if size > 200:
        return f"the name has {size} bytes, at most 200 are allowed"
    if name.startswith("-"):
        return "the name begins with '-'"
    if name in ("HEAD", "@"):
        return f"{name} means something else to git"
    if OBJECT_ID.fullmatch(name.lower()):
        return "the name looks like an object id"
    if has_odd_char(name):
        return "the name has a control, format or line-separator character"
    return None


def has_odd_char(text: str) -> bool:
    """Whether a text has control, format or line-separator characters, or bytes that are no UTF-8."""
    return any(unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") for char in text)


###############################################################################
# words and files: how things are spelled, and how files are read and written whole
###############################################################################


def now() -> str:
    """The time as the journal writes it: RFC 3339, UTC, milliseconds."""
    return at_time(time.time())


def at_time(seconds: float) -> str:
    """A time in seconds since the epoch, as the journal writes it."""
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def commit_time(seconds: str) -> str | None:
    """The date of a commit, seconds since the epoch as git prints them for %at, as all times; None for one that is none.

    Anybody may write a commit with any date. For %aI git prints what it cannot read as 1970, or the letters %aI.
    """
    return at_time(int(seconds)) if re.fullmatch("[0-9]{1,12}", seconds) and int(seconds) <= LAST_SECOND else None


LAST_SECOND = 253_402_300_799  # of the year 9999: RFC 3339 has no later one


def seconds_of(moment: str) -> float:
    """A time of the journal in seconds since the epoch."""
    return datetime.fromisoformat(moment.replace("Z", "+00:00")).timestamp()


def log(text: str, more: str = "") -> None:
    """One line on standard error, where the server's log is: whatever foreign words are in it do not make it two.

    The lines of `more` (a traceback) follow, marked so that none of them can be taken for one of ours.
    """
    lines = [visible(text), *(f"| {visible(line)}" for line in more.splitlines())]
    with contextlib.suppress(OSError):  # it may lie on a full disk
        print("".join(f"forge: {line}\n" for line in lines), end="", file=sys.stderr, flush=True)  # lines stay whole


NO_ROOM = {error: os.strerror(error) for error in (errno.ENOSPC, errno.EROFS, errno.EDQUOT)}


NO_RIGHT = re.compile("permission denied|insufficient permission|operation not permitted", re.IGNORECASE)
OF_REPO = re.compile(r"repository database|\.lock'|objects/|refs/|packed-refs|logs/|forge-")  # and not of a checkout


def lacks_rights(error: BaseException) -> bool:
    """Whether something failed since a file belongs to another user, or is closed to us."""
    return bool(NO_RIGHT.search(error.stderr)) if isinstance(error, GitError) else isinstance(error, PermissionError)


def lacks_room(error: BaseException) -> str | None:
    """The system's words when something failed since the disk is full or read-only, or None."""
    if isinstance(error, GitError):
        return next((words for words in NO_ROOM.values() if words in error.stderr), None)
    return NO_ROOM.get(error.errno or 0) if isinstance(error, OSError) else None


def open_plain(path: Path, follow: bool = True) -> io.BufferedReader:
    """Open a file where others may have put something else, as a FIFO, which keeps who opens it waiting. Raises OSError."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "it is no file", str(path))
    return open(file, "rb")


def write_whole(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Give a file its content, whole or not at all, unless it has it already. Raises OSError, and leaves nothing then."""
    with contextlib.suppress(OSError), open_plain(path) as stream:
        if stream.read() == content and stat.S_IMODE(path.stat().st_mode) == mode:
            return
    new = path.with_name(f".{path.name}.new")
    with contextlib.suppress(FileNotFoundError):
        new.unlink()
    try:
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as stream:
            os.fchmod(stream.fileno(), mode)
            stream.write(content)
        new.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink()
        raise


ODD = re.compile(
    "[\x00-\x08\x0a-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    "\u3164\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff\U0001d173-\U0001d17a\ud800-\udfff\U000e0000-\U000e0fff]"
)


def visible(text: str, most: int | None = None) -> str:
    """The beginning of a foreign text, in which what could not be seen, or would change how the rest is read, is spelled out.

    It is one line, and stays the same when it is done again. Each way out does it once: `log`, `sentences`, `printable`,
    `for_programs` and `for_pages`.
    """
    seen = ODD.sub(lambda found: spell_char(ord(found[0])), text[:most])
    return seen + "…" if text[most or len(text) :] else seen


def spell_char(code: int) -> str:
    """A character that has no look of its own, or a byte that is no UTF-8."""
    if code < 0x20 or code == 0x7F:
        return chr(0x2421 if code == 0x7F else 0x2400 + code)
    return f"⟨{code - 0xDC00:02X}⟩" if 0xDC80 <= code <= 0xDCFF else f"⟨U+{code:04X}⟩"


def sentences(lines: Iterable[str]) -> str:
    """Lines of plain text for a pusher or a terminal, whatever foreign words are in them."""
    return "".join(f"{visible(line)}\n" for line in lines)


def for_pages(text: str) -> str:
    """A text for a page: what HTML would obey and what could not be seen is spelled out, line breaks stay."""
    return bottle.html_escape(text if text.isprintable() else "\n".join(map(visible, text.split("\n"))))  # type: ignore[no-any-return]


NO_TEXT = re.compile("[\ud800-\udfff]")  # a byte that is no UTF-8, or half of a pair of UTF-16
SAID = frozenset(("error", "why", "blockers", "reason", "trouble"))  # sentences; all else in JSON is exact
NAMES = frozenset(("path", "old_path", "name", "branch", "base", "conflicts", "branches", "included"))


def for_programs(value: Any, key: str = "") -> Any:
    """What JSON is made of, as valid Unicode; beside a name that is no UTF-8 its bytes, as `<key>_b64`, in a list all of them."""
    if isinstance(value, str):
        text = NO_TEXT.sub("\ufffd", value)
        return visible(text) if key in SAID else text
    if isinstance(value, (list, tuple)):
        return [for_programs(item, key) for item in value]
    if not isinstance(value, Mapping):
        return value
    made = {}
    for name, item in value.items():
        made[for_programs(name)] = for_programs(item, name)
        if name in NAMES and has_odd_bytes(item):
            made[f"{name}_b64"] = in_base64(item) if isinstance(item, str) else [in_base64(part) for part in item]
    return made


def has_odd_bytes(value: Any) -> bool:
    """Whether a name, or one in a list of names, has bytes that are no UTF-8."""
    if isinstance(value, (list, tuple)):
        return all(isinstance(part, str) for part in value) and any(map(has_odd_bytes, value))
    return isinstance(value, str) and NO_TEXT.search(value) is not None


def in_base64(name: str) -> str:
    """The bytes of a name. Half of a pair of UTF-16, which stands for no byte, is left as UTF-8 would spell it."""
    try:
        exact = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        exact = name.encode("utf-8", "surrogatepass")
    return b64encode(exact).decode()


def json_text(program: Any, indent: int | None = None) -> str:
    """JSON for programs: of pages, of the command line, of notices."""
    text = json.dumps(program, indent=indent)
    if "\\" not in text and "\x7f" not in text:  # then there is nothing in it to see to, which is most often so
        return text
    return json.dumps(for_programs(program), indent=indent)


def shorten(value: object) -> str:
    """A foreign value for a message."""
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."


def fitting(sizes: Iterable[int], room: int) -> int:
    """How many of the first fit into the room."""
    return sum(1 for _ in itertools.takewhile(lambda size: size <= room, itertools.accumulate(sizes)))


UNITS = (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1))


def ago(moment: str | None) -> str:
    """A time of the journal as people say it."""
    if not moment:
        return ""
    try:
        seconds = max(0, int(time.time() - seconds_of(moment)))
    except ValueError:  # a record of another version
        return moment
    # in seconds it would make a page differ with every look
    return "just now" if seconds < 60 else f"{spell_age(seconds)} ago"


def spell_age(seconds: int) -> str:
    """A time span in its largest unit."""
    number, unit = next((seconds // size, unit) for unit, size in UNITS if seconds >= size or size == 1)
    return plural(number, unit)


def plural(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def spell_duration(seconds: float | None) -> str:
    """A duration in seconds as people say it."""
    if seconds is None:
        return ""
    if seconds < 0.95:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def spell_bytes(size: float | None) -> str:
    """A size in bytes as people say it."""
    if size is None:
        return ""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def char_widths(text: str) -> list[int]:
    """How many columns of a terminal each character takes."""
    return [0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text]


def fit(text: str, room: int) -> str:
    """`text` cut to `room` columns, with … for what is left out."""
    widths = char_widths(text)
    return text if sum(widths) <= room else text[: sum(end < room for end in itertools.accumulate(widths))] + "…"


NOT_RUN = (126, 127)  # the exit codes by which a shell tells that a program cannot be run, or was not found


def exit_reason(code: int, command: str | None, why: str | None = None) -> str | None:
    """An exit code in words; None for 0. `why` is what could not be run, where that is known."""
    if code == 0:
        return None
    if why and code in NOT_RUN:
        return f"exit code {code}: {why}"
    if code in NOT_RUN:
        what = "cannot be executed" if code == 126 else "was not found"
        return f"exit code {code}: the command, or one it calls, {what} ({command or 'no command'})"
    if 128 < code < 128 + signal.NSIG:
        with contextlib.suppress(ValueError):
            return f"ended by signal {code - 128} ({signal.Signals(code - 128).name})"
    return f"exit code {code}"


LOW_INODES = 10_000


class Room(NamedTuple):
    """How much room a disk has, in bytes and files; 0 of 0 files where the file system does not count them."""

    free: int
    total: int
    free_files: int
    files: int

    @property
    def low(self) -> bool:
        """Whether it is time to make room: less than 1 GiB, or 5 % of a small disk (up to 5 GiB), or few files are left."""
        few = self.files > 0 and self.free_files < min(LOW_INODES, self.files // 20)
        return few or self.free < max(1 << 30, min(self.total // 20, 5 << 30))

    @property
    def words(self) -> str:
        files = f", {100 * self.free_files // self.files} % of the inodes" if self.files else ""
        return f"{spell_bytes(self.free)} free ({100 * self.free // max(1, self.total)} %{files})"


def room_at(path: Path) -> Room:
    """The room where a path lies. Raises OSError."""
    facts = os.statvfs(path)
    return Room(facts.f_bavail * facts.f_frsize, facts.f_blocks * facts.f_frsize, facts.f_favail, facts.f_files)


def open_log(path: str, flags: int) -> int:
    """Open a log, as open() does. Raises FileNotFoundError, also when its job keeps it from us at this moment.

    A job can do with the file what its owner may: take the permissions away (fchmod(2)), which we give back, and make who opens
    it wait for most of a minute (leases, fcntl(2)), which we do not.
    """
    for _ in range(3):
        try:
            return os.open(path, flags | os.O_NONBLOCK)
        except PermissionError:
            os.chmod(path, 0o644)
        except BlockingIOError:
            break
    raise FileNotFoundError(errno.ENOENT, "its job keeps this log from being opened", path)


def size_of(path: Path) -> int:
    """The bytes of a log, none when it is not there."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def read_log(path: Path, offset: int, most: int) -> bytes:
    """At most `most` bytes of a log from `offset` on; none when there is no more, or no log."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb", opener=open_log) as stream:
        stream.seek(min(offset, os.fstat(stream.fileno()).st_size))
        return stream.read(most)
    return b""


def read_tail(path: Path, most: int = 1 << 16) -> bytes:
    """The end of a log."""
    return read_log(path, max(0, size_of(path) - most), most)


def count_newlines(path: Path, end: int, start: int = 0) -> int:
    """How many lines end in a part of a file. It is read in small pieces, so that no thread keeps memory for large ones."""
    count = 0
    with open(path, "rb", buffering=0, opener=open_log) as stream:
        stream.seek(start)
        while start < end:
            chunk = stream.read(min(end - start, 1 << 16))
            if not chunk:
                break
            count += chunk.count(b"\n")
            start += len(chunk)
    return count


###############################################################################
# journal: two append-only files, and where in them the old jobs are
###############################################################################


Event = tuple[str, dict[str, Any]]
MERGE_EVENTS = frozenset(
    ("merge.asked", "merge.begun", "merged", "merge.abandoned", "branch.deleting", "branch.deleted", "branch.kept")
    + ("branch.renewing", "branch.renewed", "hold.placed", "hold.lifted")
)


class Journal:
    """jobs.jsonl and merges.jsonl. A record is one line, written with one write and fsynced before `append` returns.

    Where they cannot be written they are read all the same, and each `append` tries anew.
    """

    def __init__(self, directory: Path):
        self.seq = 0
        self.paths = {name: directory / f"{name}.jsonl" for name in ("jobs", "merges")}
        self.files: dict[str, int] = {}
        self.sizes: dict[str, int] = {}
        self.writable = False  # as they were opened
        self.ready = False  # whether they can be written and end with their last record
        try:
            self._open(os.O_RDWR | os.O_APPEND | os.O_CREAT)
        except OSError as error:
            if not lacks_room(error):
                raise
            self._open(os.O_RDONLY)
        self.sizes = {name: self._whole_size(file) for name, file in self.files.items()}
        try:
            self._make_ready()
        except OSError as error:
            log(f"the journal in {directory} cannot be written now ({error.strerror}); it is read, and work waits")

    def _open(self, flags: int) -> None:
        opened = {name: os.open(path, flags | os.O_CLOEXEC, 0o644) for name, path in self.paths.items()}
        for file in self.files.values():
            os.close(file)
        self.files, self.writable = opened, flags & os.O_ACCMODE == os.O_RDWR

    @staticmethod
    def _whole_size(file: int) -> int:
        """How long a file is up to its last line break."""
        end = os.fstat(file).st_size
        while end > 0:
            start = max(0, end - 65536)
            found = os.pread(file, end - start, start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
        return 0

    def _make_ready(self) -> None:
        """Open the files for writing, and move what follows the last record (a write that was torn) to a file beside."""
        if not self.writable:
            self._open(os.O_RDWR | os.O_APPEND)
        for name, file in self.files.items():
            torn = os.pread(file, max(0, os.fstat(file).st_size - self.sizes[name]), self.sizes[name])
            if torn:
                beside = self.paths[name].with_name(f"{name}.jsonl.torn-{int(time.time())}")
                write_whole(beside, torn, 0o644)
                os.ftruncate(file, self.sizes[name])
                os.fsync(file)
                log(f"{self.paths[name]} ended within a line; these {len(torn)} bytes are now in {beside}")
        self.ready = True

    def replay(self, places: Mapping[str, int] | None = None, seq: int = 0) -> Iterator[tuple[str, int, dict[str, Any]]]:
        """Yield (file, place, record) of what follows `places` in both files, in the order of the numbers; `seq` is before them.

        A line that is no record is told and passed over.
        """
        self.seq = seq
        begins = places or dict.fromkeys(self.files, 0)
        for number, name, place, record in merge_sorted(*(self._lines(name, place) for name, place in begins.items())):
            self.seq = max(self.seq, number)
            yield name, place, record

    def _lines(self, name: str, place: int) -> Iterator[tuple[int, str, int, dict[str, Any]]]:
        decode = json.JSONDecoder().raw_decode  # json.loads looks at each line three times more
        before = None if place else 0  # lines; they are counted when somebody wants to know
        with open(self.paths[name], "rb") as stream:
            stream.seek(start := place)
            for number, line in enumerate(stream, 1):
                if place >= self.sizes[name]:
                    return
                try:
                    text = line.strip().decode()
                    record, end = decode(text)
                    if type(record["seq"]) is not int or type(record["event"]) is not str or end != len(text):
                        raise ValueError("seq or event is odd, or more follows")
                    check_characters(text, record)
                    yield record["seq"], name, place, record
                except (ValueError, KeyError, TypeError, RecursionError) as error:
                    before = count_newlines(self.paths[name], start) if before is None else before
                    log(f"{name}.jsonl, line {before + number} is no record and is passed over ({error})")
                place += len(line)

    def ends(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """A checksum of what stands before each of `sizes`, by which a journal is known again."""
        return {
            name: zlib.crc32(os.pread(self.files[name], min(4096, size), max(0, size - 4096))) for name, size in sizes.items()
        }

    def append(self, events: Iterable[Event]) -> list[tuple[str, int, dict[str, Any]]]:
        """Write the events, all or none. Returns what `replay` would. Raises OSError when the disk does not take them."""
        written: list[tuple[str, int, dict[str, Any]]] = []
        lines: dict[str, bytes] = {"jobs": b"", "merges": b""}
        at = now()
        for number, (event, values) in enumerate(events, self.seq + 1):
            record = {"seq": number, "at": at, "event": event, **values}
            name = "merges" if event in MERGE_EVENTS else "jobs"
            written.append((name, self.sizes[name] + len(lines[name]), record))
            lines[name] += json.dumps(record, separators=(",", ":")).encode() + b"\n"
        if not self.ready:
            self._make_ready()
        try:
            for name, text in lines.items():
                if text and os.write(self.files[name], text) != len(text):
                    raise OSError(errno.ENOSPC, f"no room left for a whole record in {name}.jsonl")
            for name, text in lines.items():
                if text:
                    os.fsync(self.files[name])
        except OSError:
            self.ready = False
            for name, size in self.sizes.items():
                os.ftruncate(self.files[name], size)
            self.ready = True
            raise
        for name, text in lines.items():
            self.sizes[name] += len(text)
        self.seq += len(written)
        return written

    def read(self, name: str, place: int) -> dict[str, Any]:
        """The record that begins at byte `place`."""
        with open(self.paths[name], "rb") as stream:
            stream.seek(place)
            text = stream.readline().decode()
        record: dict[str, Any] = json.loads(text)
        check_characters(text, record)
        return record

    def close(self) -> None:
        """Let go of the files; a late `append` then fails instead of writing to whatever has their descriptors."""
        for name, file in self.files.items():
            os.close(file)
            self.files[name] = -1


def check_characters(text: str, record: Mapping[str, Any]) -> None:
    """Let a record pass whose words are text, or the bytes of a name. Raises ValueError: half of a pair of UTF-16 is neither."""
    if "\\u" in text:
        json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogateescape")


RESULT_BYTES = 8


def result_key(repo: str, tree: str) -> bytes:
    """What stands in a column for a tree of a repo."""
    return hashlib.blake2b(f"{repo}\0{tree}".encode("utf-8", "surrogateescape"), digest_size=RESULT_BYTES).digest()


class JobIndex:
    """Where each finished job stands in jobs.jsonl, by id, with what the filters of /jobs ask for.

    Columns instead of objects: 100,000 jobs take 3 MB. It holds nothing that is not in the journal.
    """

    def __init__(self) -> None:
        self.places = array("q", [-1])
        self.branches = array("I", [0])  # crc32 of "repo NUL branch": a hint, the record is compared as well
        self.kinds = array("H", [0])  # the number of (repo, kind, status)
        self.results = bytearray(RESULT_BYTES)  # the result_key of each job that gave a verdict on its tree, else zeros
        self.numbers: dict[tuple[str, str, str], int] = {}
        self.together: dict[int, list[int]] = {}  # of a job with several heads: the hashes of the other branches

    def add(self, record: Mapping[str, Any], place: int) -> None:
        """Take in a finished job, whose record stands at byte `place`."""
        job_id, repo = record["id"], record["repo"]
        missing = job_id - len(self.places) + 1
        if missing > 0:
            self.places.extend([-1] * missing)
            self.branches.extend([0] * missing)
            self.kinds.extend([0] * missing)
            self.results.extend(bytes(RESULT_BYTES * missing))
        key = (repo, record["kind"], record["status"])
        self.places[job_id] = place
        self.branches[job_id] = branch_hash(repo, record["branch"])
        self.kinds[job_id] = self.numbers.setdefault(key, len(self.numbers) + 1)
        if len(record.get("heads") or ()) > 1:
            self.together[job_id] = [branch_hash(repo, head["branch"]) for head in record["heads"][:-1]]
        if record.get("exit_code") is not None and record["kind"] == PRE and record.get("tree"):
            found = result_key(repo, record["tree"])
            self.results[job_id * RESULT_BYTES : (job_id + 1) * RESULT_BYTES] = found

    def with_result(self, key: bytes) -> Iterator[int]:
        """Ids of the jobs that ended with an exit code on this tree, newest first."""
        end = len(self.results)
        while (found := self.results.rfind(key, 0, end)) >= 0:
            if found % RESULT_BYTES == 0:
                yield found // RESULT_BYTES
            end = found + RESULT_BYTES - 1

    def place(self, job_id: int) -> int | None:
        """The place of a finished job's record, or None."""
        return self.places[job_id] if 0 < job_id < len(self.places) and self.places[job_id] >= 0 else None

    def search(self, before: int, repo: str | None, branch: str | None, kind: str | None, status: str | None) -> Iterator[int]:
        """Ids of finished jobs below `before` that fit, newest first."""
        wanted = {
            number
            for (its_repo, its_kind, its_status), number in self.numbers.items()
            if repo in (None, its_repo) and kind in (None, its_kind) and status in (None, its_status)
        }
        ids: Iterable[int] = range(min(before, len(self.places)) - 1, 0, -1)
        if len(wanted) <= 16:  # they may be few among many
            ids = merge_sorted(*(find_last(self.kinds, number, before) for number in wanted), reverse=True)
        if branch is not None and wanted:
            hashes = {branch_hash(key[0], branch) for key in self.numbers if repo in (None, key[0])}
            found = ((job_id, others) for job_id, others in self.together.items() if job_id < before)
            together = sorted((job_id for job_id, others in found if not hashes.isdisjoint(others)), reverse=True)
            ids = merge_sorted(*(find_last(self.branches, value, before) for value in hashes), together, reverse=True)
        for job_id in ids:
            if self.kinds[job_id] in wanted:
                yield job_id

    def deployments(self, repo: str, after: int) -> Iterator[int]:
        """Ids of the finished post-merge jobs of a repo above `after` that deployed something, oldest first."""
        wanted = {number for key, number in self.numbers.items() if key[:2] == (repo, POST) and key[2] not in UNWANTED}
        return (job_id for job_id in range(after + 1, len(self.kinds) if wanted else 0) if self.kinds[job_id] in wanted)


class MergeIndex:
    """Where each repo's finished merges stand in merges.jsonl, oldest first."""

    def __init__(self) -> None:
        self.places: dict[str, array[int]] = {}
        self.branches: dict[str, array[int]] = {}
        self.commits: dict[str, array[int]] = {}
        self.causes = array("q")  # of each merge of a bump: the job that brought it about, and the merge's place
        self.effects = array("q")

    def add(self, record: Mapping[str, Any], place: int) -> None:
        cause = parse_cause(record.get("caused_by"))
        if cause:
            self.causes.append(cause.job)
            self.effects.append(place)
        self.places.setdefault(record["repo"], array("q")).append(place)
        self.branches.setdefault(record["repo"], array("I")).append(branch_hash(record["repo"], record["branch"]))
        self.commits.setdefault(record["repo"], array("I")).append(branch_hash(record["repo"], record["merge_commit"]))

    def newest(self, repo: str, branch: str | None = None, before: int | None = None) -> Iterator[int]:
        """Places of the merges of a repo (of a branch), newest first; of the first `before` of them."""
        places = self.places.get(repo, array("q"))
        if branch is None:
            end = len(places) if before is None else min(before, len(places))
            return map(places.__getitem__, range(end - 1, -1, -1))
        return map(places.__getitem__, find_last(self.branches.get(repo, array("I")), branch_hash(repo, branch), len(places)))

    def made(self, repo: str, commit: str) -> Iterator[int]:
        """Places of the merges that may have made a commit of base."""
        places = self.places.get(repo, array("q"))
        return map(places.__getitem__, find_last(self.commits.get(repo, array("I")), branch_hash(repo, commit), len(places)))

    def caused_by(self, job_id: int) -> Iterator[int]:
        """Places of the merges that say that a job brought them about, newest first."""
        return map(self.effects.__getitem__, find_last(self.causes, job_id, len(self.causes)))


class Histogram:
    """How many values lie at or below each of `BOUNDS` (and above the one before), the last: above all; and their sum."""

    BOUNDS = (0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1200, 1800, 3600)  # seconds

    def __init__(self) -> None:
        self.counts = [0] * (len(self.BOUNDS) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.BOUNDS, value)] += 1
        self.total += value


class Tally:
    """What the whole journal adds up to, for /metrics: it grows with repos and the ways to end, not with jobs."""

    def __init__(self) -> None:
        self.jobs: dict[tuple[str, str, str], int] = {}  # by repo, kind, status
        self.merges: dict[tuple[str, str], int] = {}  # by repo, how
        self.durations = {kind: Histogram() for kind in (PRE, POST)}
        self.waits = Histogram()  # from created to started

    def add_job(self, record: Mapping[str, Any]) -> None:
        """Take in a finished job; one that never ran has neither waited nor lasted."""
        key = (record["repo"], record["kind"], record["status"])
        self.jobs[key] = self.jobs.get(key, 0) + 1
        if record.get("started_at"):
            if record.get("duration") is not None:
                self.durations.setdefault(record["kind"], Histogram()).add(record["duration"])
            self.waits.add(max(0.0, seconds_of(record["started_at"]) - seconds_of(record["created_at"])))

    def add_merge(self, record: Mapping[str, Any]) -> None:
        key = (record["repo"], record.get("how", ""))
        self.merges[key] = self.merges.get(key, 0) + 1


def find_last(column: array[int], value: int, before: int) -> Iterator[int]:
    """Where `value` stands in a column below `before`, last first; in a hundred thousand only C looks quickly."""
    text, wanted = column.tobytes(), array(column.typecode, [value]).tobytes()
    end = before * len(wanted)
    while (at := text.rfind(wanted, 0, end)) >= 0:
        end = at + len(wanted) - 1
        if at % len(wanted) == 0:
            yield at // len(wanted)


def branch_hash(repo: str, branch: str) -> int:
    """A number for a branch of a repo, for columns."""
    return zlib.crc32(f"{repo}\0{branch}".encode("utf-8", "surrogateescape"))


###############################################################################
# state: fold an event into what is known (pure)
###############################################################################


@dataclass
class State:
    """What the journal says, as far as it is of use now: no finished job but the newest of each open branch."""

    last_job: int = 0
    repos: dict[str, Repo] = field(default_factory=dict)
    jobs: dict[int, Job] = field(default_factory=dict)
    flakes: dict[int, int] = field(default_factory=dict)  # of two jobs with one tree and both verdicts, each to the other
    intents: dict[int, dict[str, Any]] = field(default_factory=dict)  # by seq: begun, and not yet done or given up

    def newest_job(self, repo: str, branch: str) -> Job | None:
        """The newest job of an open branch."""
        known = self.repos[repo].branches.get(branch) if repo in self.repos else None
        return self.jobs.get(known.job) if known and known.job else None

    def live_jobs(self, repo: str | None = None) -> list[Job]:
        """Pending and running jobs, oldest first."""
        return [job for _, job in sorted(self.jobs.items()) if job.live and repo in (None, job.repo)]


NEWER = "a newer version of forge wrote what this one passes over"


def fold(state: State, record: Mapping[str, Any]) -> None:
    """Bring `state` up to date with one record of the journal. Events of a newer version change nothing."""
    if record["event"] in FOLDS:
        state.last_job = max(state.last_job, record.get("id", 0))
        FOLDS[record["event"]][0](state, record)


def _fold_repo_found(state: State, record: Mapping[str, Any]) -> None:
    state.repos[record["repo"]] = Repo(record["base"], record["tip"], born=record["tip"] is not None)


def _fold_repo_gone(state: State, record: Mapping[str, Any]) -> None:
    state.repos.pop(record["repo"], None)
    state.jobs = {key: job for key, job in state.jobs.items() if job.live or job.repo != record["repo"]}


def _fold_base_moved(state: State, record: Mapping[str, Any]) -> None:
    repo = state.repos.setdefault(record["repo"], Repo())
    repo.base, repo.tip = record["branch"], record["new"]
    repo.born = repo.born or repo.tip is not None
    _forget_branch(state, record["repo"], record["branch"])
    rollback = state.jobs.get(repo.rollback or 0)
    if rollback and not rollback.live:  # it passed, and base moved before it landed
        _end_rollback(state, repo)


def _fold_branch_gone(state: State, record: Mapping[str, Any]) -> None:
    _forget_branch(state, record["repo"], record["branch"])


def _fold_job_queued(state: State, record: Mapping[str, Any]) -> None:
    job = job_of(record)
    state.jobs[job.id] = job
    if job.kind == PRE:
        repo = state.repos.setdefault(job.repo, Repo())
        if job.is_rollback:
            _end_rollback(state, repo)
            repo.rollback = job.id
            return
        for head in job.heads:
            known = repo.branches.get(head["branch"])
            if known is None or known.head != head["commit"]:
                _forget_branch(state, job.repo, head["branch"])
                known = repo.branches[head["branch"]] = Branch(head["commit"])
            before, known.job = known.job, job.id
            _drop_unused(state, before)
        if not job.is_first:
            repo.queue_job = job.id
            if any(other.is_first for other in state.live_jobs(job.repo)):
                repo.early_job = job.id


def _fold_job_changed(state: State, record: Mapping[str, Any]) -> None:
    job = state.jobs.get(record["id"])
    if job:
        job.stopping = None
        known = vars(job)
        known.update([item for item in record.items() if item[0] in known])
        if record["event"] == "job.started":
            job.status = "running"
        if job.kind == POST and job.repo in state.repos and (job.started_at is None or record["event"] == "job.started"):
            state.repos[job.repo].undeployed = None if job.started_at else job.base
        if not job.live:
            if job.kind == PRE and job.repo in state.repos:
                _judge(state.repos[job.repo], job, record)
            _drop_unused(state, job.id)


def _judge(repo: Repo, job: Job, record: Mapping[str, Any]) -> None:
    """What the end of a pre-merge job means for the branches whose heads it tested, or the rollback."""
    if job.is_rollback:
        if job.status != "passed" and not (job.interrupted and job.retry_of is None) and repo.rollback == job.id:
            repo.rollback = None
        return
    for head in job.heads:
        branch = repo.branches.get(head["branch"])
        if branch is None or branch.head != head["commit"]:
            continue
        if job.status == "passed":
            branch.fault = None
            if branch.passed is None:
                branch.passed, branch.passed_at, branch.passed_on = record["seq"], record["at"], job.base
                branch.took = job.duration or 0.0
        elif job.status == "canceled" or (job.is_first and job.status != "superseded"):
            branch.passed = None
    if not job.is_first and job.status in ("failed", "timeout", "skipped") and not (job.interrupted and job.retry_of is None):
        repo.suspects, repo.suspects_on = job.heads, job.base


def _fold_head_blamed(state: State, record: Mapping[str, Any]) -> None:
    repo = state.repos.setdefault(record["repo"], Repo())
    branch = repo.branches.get(record["branch"])
    repo.suspects = []
    if branch and branch.head == record["head"]:
        branch.fault, branch.passed = record["others"], None


def _fold_flake_found(state: State, record: Mapping[str, Any]) -> None:
    first, second = record["jobs"]
    state.flakes |= {first: second, second: first}


def _fold_job_unstarted(state: State, record: Mapping[str, Any]) -> None:
    job = state.jobs.get(record["id"])
    if job:
        job.status = "pending"
        job.started_at = job.checkout = None
        if job.is_first:  # its candidate is made when it starts
            job.base = job.tested = job.tree = None
            job.chain = []


def _fold_job_stopping(state: State, record: Mapping[str, Any]) -> None:
    job = state.jobs.get(record["id"])
    if job and not job.stopping:
        job.stopping = [record["status"], record["reason"]]


def _fold_merge_asked(state: State, record: Mapping[str, Any]) -> None:
    repo = state.repos.setdefault(record["repo"], Repo())
    branch = repo.branches.get(record["branch"])
    if branch and branch.head == record["head"]:
        branch.asked, branch.asked_seq, branch.asked_at = record["how"], record["seq"], record["at"]


def _fold_intent(state: State, record: Mapping[str, Any]) -> None:
    state.intents[record["seq"]] = dict(record)


def _fold_outcome(state: State, record: Mapping[str, Any]) -> None:
    intent = state.intents.get(record["begun"], {})
    known = state.repos.get(record["repo"], Repo()).branches.get(record.get("branch", ""))
    if record["event"] in ("merged", "branch.deleted") and known and known.head == record["head"]:
        _forget_branch(state, record["repo"], record["branch"])
    if record["event"] == "merged":
        intent["merges"] = [merge for merge in intent.get("merges", []) if merge["branch"] != record["branch"]]
        repo = state.repos.setdefault(record["repo"], Repo())
        repo.suspects = [head for head in repo.suspects if head["branch"] != record["branch"]]
        if record.get("how") == "rollback":
            _end_rollback(state, repo)
        elif repo.suspects_on == record["parent"]:  # what fails together does so on top of a part of it, too
            repo.suspects_on = record["merge_commit"]
    if not intent.get("merges") or record["event"] == "merge.abandoned":
        state.intents.pop(record["begun"], None)


def _end_rollback(state: State, repo: Repo) -> None:
    before, repo.rollback = repo.rollback, None
    _drop_unused(state, before)


def _fold_hold_placed(state: State, record: Mapping[str, Any]) -> None:
    holds = state.repos.setdefault(record["repo"], Repo()).holds
    facts = {name: record.get(name) or "" for name in ("commit", "tree", "reason")}
    holds[record["commit"]] = Hold(**facts, inputs=record["inputs"], since=record["at"], rollback=record.get("rollback"))


def _fold_hold_lifted(state: State, record: Mapping[str, Any]) -> None:
    state.repos.setdefault(record["repo"], Repo()).holds.pop(record["commit"], None)


def _forget_branch(state: State, repo: str, name: str) -> None:
    branch = state.repos[repo].branches.pop(name, None) if repo in state.repos else None
    if branch:
        _drop_unused(state, branch.job)


def _drop_unused(state: State, job_id: int | None) -> None:
    """Forget a job that has ended and is not the newest of an open branch."""
    job = state.jobs.get(job_id or 0)
    repo = state.repos.get(job.repo) if job else None
    branches = repo.branches if repo else {}
    if (
        job
        and not job.live
        and not (repo and repo.rollback == job.id)
        and all(head["branch"] not in branches or branches[head["branch"]].job != job.id for head in job.heads)
    ):
        del state.jobs[job.id]


# What folds an event, and the fields that it must have.
FOLDS: dict[str, tuple[Callable[[State, Mapping[str, Any]], None], str]] = {
    "repo.found": (_fold_repo_found, "repo base tip"),
    "repo.gone": (_fold_repo_gone, "repo"),
    "base.moved": (_fold_base_moved, "repo branch new"),
    "branch.gone": (_fold_branch_gone, "repo branch"),
    "job.queued": (_fold_job_queued, "id repo branch kind commit heads created_at"),
    "job.started": (_fold_job_changed, "id"),
    "job.unstarted": (_fold_job_unstarted, "id"),
    "job.stopping": (_fold_job_stopping, "id status reason"),
    "job.finished": (_fold_job_changed, "id repo branch kind commit heads created_at status"),
    "head.blamed": (_fold_head_blamed, "repo branch head others"),
    "flake.found": (_fold_flake_found, "repo jobs"),
    "merge.asked": (_fold_merge_asked, "repo branch head how"),
    "merge.begun": (_fold_intent, "repo base merges"),
    "merged": (_fold_outcome, "repo branch head merge_commit parent job begun"),
    "merge.abandoned": (_fold_outcome, "repo begun"),
    "branch.deleting": (_fold_intent, "repo branch head"),
    "branch.deleted": (_fold_outcome, "repo branch begun"),
    "branch.renewing": (_fold_intent, "repo branch head commit"),
    "branch.renewed": (_fold_outcome, "repo branch head commit begun"),
    "branch.kept": (_fold_outcome, "repo begun"),
    "hold.placed": (_fold_hold_placed, "repo commit tree inputs reason"),
    "hold.lifted": (_fold_hold_lifted, "repo commit"),
}

# What each field must be, wherever it is: a record of another version, or one that was damaged, must not get as far as
# the code that believes in it.
FIELD_HINTS = get_type_hints(Job) | dict.fromkeys(("tip", "old", "new"), str | None) | {"begun": int, "job": int}
FIELD_HINTS |= dict.fromkeys(("head", "how", "merge_commit", "parent"), str) | dict.fromkeys(("merges", "others", "jobs"), list)
FIELD_HINTS |= {"at": str, "merged_at": str, "duration": float | int | None, "rollback": str | None} | dict.fromkeys(
    ("inputs", "holds", "lifted"), list
)
FIELD_KINDS = {
    name: {get_origin(one) or one for one in (get_args(hint) if isinstance(hint, UnionType) else (hint,))}
    for name, hint in FIELD_HINTS.items()
}
PART_CHECKS: dict[str, Callable[[Any], bool]] = {  # of what is in a list
    "heads": lambda part: {"branch", "commit"} <= part.keys() and all(type(value) is str for value in part.values()),
    "merges": lambda part: all(type(part[name]) is str for name in ("branch", "head", "merge_commit")),
    "chain": lambda part: type(part) is list and [*map(type, part)] == [str, str],
    "others": lambda part: type(part) is str,
    "lifted": lambda part: type(part) is str,
    "inputs": lambda part: [type(part[name]) for name in ("input", "commit")] == [str, str],
    "holds": lambda part: {"commit", "tree", "inputs", "reason"} <= part.keys(),
    "stopping": lambda part: type(part) is str,
    "jobs": lambda part: type(part) is int,
}
TIME_FIELDS = ("at", "created_at", "started_at", "finished_at", "merged_at")
MOST_LOST_JOBS = 1_000_000  # whose records may be missing between two others


def check_record(state: State, record: Mapping[str, Any]) -> None:
    """Let pass what the folds and the indexes can work with. Raises LookupError, TypeError, ValueError, AttributeError."""
    event = record["event"]
    if event not in FOLDS:
        return
    missing = [name for name in ("at", *FOLDS[event][1].split()) if name not in record]
    if missing:
        raise LookupError(f"it lacks {', '.join(missing)}")
    for name, value in record.items():
        kind = type(value)
        fits = kind in FIELD_KINDS.get(name, (kind,)) and (kind is not float or -1e15 < value < 1e15)
        if not fits and (event, name, value) != ("base.moved", "branch", None):  # HEAD may name no branch
            raise TypeError(f"{name} is {shorten(value)}")
        if kind is list and name in PART_CHECKS and not all(map(PART_CHECKS[name], value)):
            raise TypeError(f"{name} has a part that is odd: {shorten(value)}")
    for name in TIME_FIELDS:
        if record.get(name) is not None:
            seconds_of(record[name])
    if "repo" in record and record["repo"] not in state.repos and not is_repo_name(record["repo"]):
        raise TypeError(f"repo is {shorten(record['repo'])}")
    if not 0 < record.get("id", 1) <= state.last_job + MOST_LOST_JOBS:
        raise LookupError(f"id is {record['id']}")
    if len(record.get("jobs", "12")) != 2 or [] in (record.get("merges"), record.get("heads")):
        raise TypeError(f"{event} lacks a part")


@dataclass
class Snapshot:
    """What follows from the journal up to `sizes`, so that a start reads only the rest. It may be thrown away at any time."""

    seq: int = 0
    sizes: dict[str, int] = field(default_factory=lambda: {"jobs": 0, "merges": 0})
    ends: dict[str, int] = field(default_factory=dict)  # as `Journal.ends` has them
    state: State = field(default_factory=State)
    finished: JobIndex = field(default_factory=JobIndex)
    merges: MergeIndex = field(default_factory=MergeIndex)
    tally: Tally = field(default_factory=Tally)


def frozen(value: Any, columns: list[bytes]) -> Any:
    """A copy of `value` for JSON, in which each list begins with its type; the bytes of columns go to `columns`.

    Of our own classes it takes the attributes, whatever they are; an object of another kind is a TypeError.
    """
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: frozen(item, columns) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [type(value).__name__, *[frozen(item, columns) for item in value]]
    if isinstance(value, dict):
        return ["dict", *[frozen(item, columns) for item in value.items()]]
    if isinstance(value, (array, bytearray)):
        columns.append(bytes(value))
        return ["column", value.typecode if isinstance(value, array) else "", len(columns[-1])]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return [type(value).__name__, frozen(vars(value), columns)]


def thawed(value: Any, columns: io.BytesIO) -> Any:
    """What `frozen` was given."""
    if isinstance(value, dict):
        return {key: thawed(item, columns) for key, item in value.items()}
    if not isinstance(value, list):
        return value
    kind, *parts = value
    if kind == "column":
        column = columns.read(parts[1])
        return array(parts[0], column) if parts[0] else bytearray(column)
    parts = [thawed(part, columns) for part in parts]
    if kind in ("list", "tuple", "dict"):
        return {"list": list, "tuple": tuple, "dict": dict}[kind](parts)
    made = object.__new__(globals()[kind])
    vars(made).update(parts[0])
    return made


def snapshot_mark(content: bytes) -> bytes:
    """The first line of a snapshot with this content; another version has another one, and so has a damaged file.

    A version is another one here when the code differs of which a snapshot is made: the sections from the values to the state.
    """
    code = Path(__file__).read_bytes().partition(b"\n# values: ")[2].partition(b"\n# git: ")[0]
    return b"%08x %08x\n" % (zlib.crc32(code), zlib.crc32(content))


def write_snapshot(path: Path, tree: Any, columns: list[bytes]) -> None:
    """Write what `Ledger.freeze` gave. Raises OSError."""
    content = b"\n".join((json.dumps(tree).encode(), b"".join(columns)))
    write_whole(path, snapshot_mark(content) + content)


def read_snapshot(path: Path, journal: Journal) -> Snapshot:
    """The snapshot in a file if it stands for this journal, else an empty one."""
    try:
        mark, _, content = path.read_bytes().partition(b"\n")
        if mark + b"\n" != snapshot_mark(content):
            raise ValueError("it is damaged, or of another version")
        tree, _, columns = content.partition(b"\n")
        found: Snapshot = thawed(json.loads(tree), io.BytesIO(columns))
        if any(found.sizes[name] > journal.sizes[name] for name in journal.sizes) or journal.ends(found.sizes) != found.ends:
            raise ValueError("the journal is another one")
        return found
    except FileNotFoundError:
        return Snapshot()
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        log(f"{path} is not used, the whole journal is read instead: {error}")
        return Snapshot()


class Ledger:
    """The journal with the state and the indexes that follow from it. Whoever calls it holds the engine's lock."""

    def __init__(self, directory: Path):
        self.journal = Journal(directory)
        found = read_snapshot(directory / "snapshot", self.journal)
        self.state, self.finished, self.merges, self.tally = found.state, found.finished, found.merges, found.tally
        self.read_lately: OrderedDict[int, Job] = OrderedDict()
        self.fresh = 0  # records since the last snapshot
        self.unknown = set[str]()  # events that were told of
        for name, place, record in self.journal.replay(found.sizes, found.seq):
            self._take(name, place, record)

    def freeze(self) -> tuple[Any, list[bytes]]:
        """The present state for `write_snapshot`."""
        self.fresh = 0
        sizes, columns = dict(self.journal.sizes), list[bytes]()
        ends = self.journal.ends(sizes)
        present = Snapshot(self.journal.seq, sizes, ends, self.state, self.finished, self.merges, self.tally)
        return frozen(present, columns), columns

    def record(self, *events: Event) -> list[dict[str, Any]]:
        """Write events to the journal and fold them. Raises OSError, and then nothing has changed."""
        taken = self.journal.append(events)
        for name, place, record in taken:
            self._take(name, place, record)
        return [record for _, _, record in taken]

    def _take(self, name: str, place: int, record: dict[str, Any]) -> None:
        self.fresh += 1
        if record["event"] not in FOLDS:
            if record["event"] not in self.unknown:  # once, since there may be many
                self.unknown.add(record["event"])
                log(f"{name}.jsonl, record {record['seq']} ({record['event']}) is not understood: {NEWER}")
            return
        try:
            check_record(self.state, record)
            if (record["event"] in MERGE_EVENTS) != (name == "merges"):
                raise LookupError("it is in the wrong file")
            fold(self.state, record)
            if record["event"] == "job.finished":
                self.finished.add(record, place)
                self.tally.add_job(record)
            elif record["event"] == "merged":
                self.merges.add(record, place)
                self.tally.add_merge(record)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            log(f"{name}.jsonl, record {record['seq']} ({record['event']}) is not understood: {error!r}")

    def _read(self, name: str, place: int) -> dict[str, Any] | None:
        """The record at a place, or None when it was damaged since it was taken in."""
        try:
            record = self.journal.read(name, place)
            check_record(self.state, record)
            return record
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            log(f"{name}.jsonl is damaged at byte {place}: {error!r}")
            return None

    def job(self, job_id: int) -> Job | None:
        """A job by its id, live or finished."""
        job = self.state.jobs.get(job_id) or self.read_lately.get(job_id)
        place = self.finished.place(job_id)
        if job or place is None:
            return job
        record = self._read("jobs", place)
        if record is None or record["id"] != job_id:
            return None
        job = self.read_lately[job_id] = job_of(record)
        if len(self.read_lately) > 1000:
            self.read_lately.popitem(last=False)
        return job

    def search(
        self,
        limit: int,
        before: int | None = None,
        repo: str | None = None,
        branch: str | None = None,
        kind: str | None = None,
        status: str | None = None,
    ) -> list[Job]:
        """At most `limit` jobs that fit, newest first; only ids below `before`."""
        before = before if before is not None else self.state.last_job + 1
        live = [job for job in reversed(self.state.live_jobs(repo)) if job.id < before]
        ids = merge_sorted((job.id for job in live), self.finished.search(before, repo, branch, kind, status), reverse=True)
        found: list[Job] = []
        for job_id in ids:
            job = self.job(job_id)
            of_branch = branch is None or (job and any(head["branch"] == branch for head in job.heads))
            if job and of_branch and kind in (None, job.kind) and status in (None, job.status):
                found.append(job)
                if len(found) >= limit:
                    break
        return found

    def verdict_before(self, job_id: int) -> str | None:
        """How the newest of the ten jobs before a job, of its branch and kind, ended that passed or failed."""
        job = self.job(job_id)
        jobs = self.search(10, job_id, job.repo, job.branch, job.kind) if job else []
        return next((job.status for job in jobs if job.status in VERDICTS), None)

    def result(self, repo: str, tree: str, configured: str | None, status: str | None = None) -> Job | None:
        """The newest job whose command (None: whichever) gave a verdict (or `status`) on a tree of a repo, or None."""
        for job_id in self.finished.with_result(result_key(repo, tree)):
            job = self.job(job_id)
            fits = job and (job.repo, job.tree) == (repo, tree) and configured in (None, job.configured or "")
            if job and fits and status in (None, job.status) and job.is_result:
                return job
        return None

    def passed_before(self, job: Job) -> tuple[Job, str] | None:
        """What a job that did not pass is compared with: (the last passed run, where it was) of its branch, else of base."""
        found = self.search(1, job.id, job.repo, job.branch, job.kind, "passed")
        if found:
            return found[0], "on this branch"
        merges = self.merges_of(job.repo, limit=1) if job.kind == PRE else []
        landed = self.job(merges[0]["job"]) if merges else None
        deployed = self.search(1, job.id, job.repo, kind=POST, status="passed")
        return (landed, "and became base") if landed else (deployed[0], "on base") if deployed else None

    def flakes(self, ended: Job) -> list[Event]:
        """The event that tells that a job which has just ended proves a flake: its tree had the other verdict before."""
        if not ended.is_result:
            return []
        other = self.result(
            ended.repo, ended.tree or "", ended.configured or "", "failed" if ended.status == "passed" else "passed"
        )
        return [("flake.found", {"repo": ended.repo, "tree": ended.tree, "jobs": [other.id, ended.id]})] if other else []

    def merge_of(self, repo: str, branch: str) -> dict[str, Any] | None:
        """The merge by which a branch that is gone went, or None: it may have been pushed again since, and deleted."""
        merges, jobs = self.merges_of(repo, branch, 1), self.search(1, repo=repo, branch=branch, kind=PRE)
        return merges[0] if merges and not (jobs and jobs[0].id > merges[0]["job"]) else None

    def merges_of(
        self, repo: str, branch: str | None = None, limit: int = 100, before: int | None = None
    ) -> list[dict[str, Any]]:
        """The newest merges of a repo (of one branch of it), newest first, as the journal has them.

        Only those among its first `before` merges.
        """
        found: list[dict[str, Any]] = []
        for place in self.merges.newest(repo, branch, before):
            if len(found) >= limit:
                break
            record = self._read("merges", place)
            if record and branch in (None, record["branch"]):
                found.append(record)
        return found

    def merge_by(self, repo: str, commit: str) -> dict[str, Any] | None:
        """The merge that made a commit of base; None when it came in another way."""
        records = (self._read("merges", place) for place in self.merges.made(repo, commit))
        return next((record for record in records if record and record["merge_commit"] == commit), None)

    def deployment_of(self, merge: Mapping[str, Any]) -> Job | None:
        """The post-merge job that brought a merge out, alone or with what landed meanwhile."""
        live = [job.id for job in self.state.live_jobs(merge["repo"]) if job.kind == POST and job.id > merge["job"]]
        for job_id in itertools.chain(itertools.islice(self.finished.deployments(merge["repo"], merge["job"]), 50), live):
            job = self.job(job_id)
            if job and job.created_at >= merge.get("merged_at", ""):
                return job
        return None

    def effects(self, job: Job) -> tuple[list[dict[str, Any]], list[Job]]:
        """What a post-merge job brought about: merges of bumps, and the newest tests of open ones."""
        said = str(Cause(job.repo, job.commit, job.id))
        merges = [self._read("merges", place) for place in itertools.islice(self.merges.caused_by(job.id), 50)]
        tests = [test for test in self.state.jobs.values() if test.caused_by == said and test.id > job.id]
        return [merge for merge in merges if merge and merge.get("caused_by") == said and merge["job"] > job.id][::-1], tests


###############################################################################
# git: one function that runs it, small verbs on top
###############################################################################


# What is given to one git: whoever pushes decides how much there is to merge, to list and to read.
GIT_SECONDS = 60.0
GIT_BYTES = 8 << 20  # that it prints into our memory
GIT_MEMORY = 1 << 30  # of its own
STDERR_BYTES = 64 << 10
TEXT_BYTES = 1000  # of a subject, a name or a date that are kept: anybody may write a commit of any size
BODY_BYTES = 10_000  # of a message that is shown
TRAILER_BYTES = 4000  # of the trailers that say what to do
MESSAGE_BYTES = 1 << 20  # of a message that is written again
BIG_FILE = "64m"  # a larger one is neither compared line by line nor held in memory to be written

# Neither what a push brought, nor the machine's or a user's configuration decides what our git runs.
GIT_ENVIRONMENT = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_GRAFT_FILE": "/nonexistent/grafts",
    "GIT_NO_LAZY_FETCH": "1",  # of a partial clone that was copied in: its config says which program fetches
    "GIT_ALLOW_PROTOCOL": "none",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_AUTHOR_NAME": "forge",
    "GIT_AUTHOR_EMAIL": "forge@localhost",
    "GIT_COMMITTER_NAME": "forge",
    "GIT_COMMITTER_EMAIL": "forge@localhost",
    "LC_ALL": "C",
    "HOME": "/nonexistent",
}
GIT_SETTINGS = {
    "core.hooksPath": os.devnull,
    "core.fsmonitor": "false",
    "core.attributesFile": os.devnull,
    "submodule.recurse": "false",
    "gc.auto": "0",
    "i18n.logOutputEncoding": "UTF-8",
    # What a pusher was told must last, but by default git syncs neither a small push nor a ref to the disk (git-config(1)).
    "core.fsync": "objects,derived-metadata,reference",
    "core.fsyncMethod": "fsync",
    "core.bigFileThreshold": BIG_FILE,
}
for _number, (_key, _value) in enumerate(GIT_SETTINGS.items()):
    GIT_ENVIRONMENT |= {f"GIT_CONFIG_KEY_{_number}": _key, f"GIT_CONFIG_VALUE_{_number}": _value}
GIT_ENVIRONMENT["GIT_CONFIG_COUNT"] = str(len(GIT_SETTINGS))

# These need objects alone, named by ids, and get a git directory of ours instead of the repo's: its config and attributes, which
# a copied repo brings and a deployment may write, name programs (filters, merge drivers) and change what is printed.
OBJECT_VERBS = frozenset(
    "cat-file checkout commit-tree diff-index diff-tree hash-object log ls-files ls-tree merge-base merge-tree mktree"
    " read-tree rev-list".split()
)
PLAIN_CONFIG = {
    "sha1": "repositoryformatversion = 0\n",
    "sha256": "repositoryformatversion = 1\n[extensions]\n\tobjectFormat = sha256\n",
    "sha1-shared": "sharedRepository = group\n\trepositoryformatversion = 0\n",
    "sha256-shared": "sharedRepository = group\n\trepositoryformatversion = 1\n[extensions]\n\tobjectFormat = sha256\n",
}


def plain_dirs(repo: Path) -> Path:
    """Where the git directories without configuration lie for a repo of a data directory."""
    return repo.parent.parent / "git"


def make_plain_dirs(root: Path) -> None:
    """Make the git directories of a data directory that hold nothing but their format. Raises OSError."""
    for left in root.glob(f"{ATTRIBUTES}*"):  # by a server that was killed
        shutil.rmtree(left)
    for name, config in PLAIN_CONFIG.items():
        (root / name / "refs").mkdir(parents=True, exist_ok=True)
        write_whole(root / name / "config", f"[core]\n\tbare = true\n\t{config}".encode(), 0o644)
        write_whole(root / name / "HEAD", b"ref: refs/heads/none\n", 0o644)


def without_config(repo: Path) -> dict[str, str]:
    """The environment by which git reads and writes a repo's objects, and nothing else of it but where its history is cut off."""
    try:
        with open_plain(repo / "config") as stream:
            sha256 = re.search(rb"objectformat\s*=\s*\"?sha256", stream.read(), re.IGNORECASE)
        shared = os.stat(repo / "objects").st_mode & stat.S_IWGRP  # several users of a group may push
    except OSError as error:
        raise GitError(("config",), 128, f"fatal: {error.filename} cannot be read: {error.strerror}") from None
    plain = plain_dirs(repo) / f"{'sha256' if sha256 else 'sha1'}{'-shared' if shared else ''}"
    place = str(plain if (plain / "HEAD").exists() else repo)  # there was no room, or no server has made it yet: an audit runs
    return {"GIT_DIR": place, "GIT_OBJECT_DIRECTORY": f"{repo}/objects", "GIT_SHALLOW_FILE": f"{repo}/shallow"}


def git_process(
    repo: Path, args: tuple[str, ...], keep: int | None = None, group: bool = False, /, **environ: str
) -> subprocess.Popen[bytes]:
    """Start git in the bare repo `repo`, with pipes. `environ` adds to its environment, `keep` is a file it holds open.

    With `group` it leads a process group, by which `end_git` ends it with all that it has started; others may take GIT_MEMORY.
    """
    place = without_config(repo) if args[0] in OBJECT_VERBS else {"GIT_DIR": str(repo)}
    env = {"PATH": os.environ.get("PATH", os.defpath), **place, **GIT_ENVIRONMENT, **environ}
    pipe = subprocess.PIPE
    try:
        held, command = () if keep is None else (keep,), ["git", *args]
        where = environ.get("GIT_WORK_TREE", repo)
        process = subprocess.Popen(
            command, cwd=where, env=env, stdin=pipe, stdout=pipe, stderr=pipe, pass_fds=held, start_new_session=group
        )
    except FileNotFoundError as error:
        raise GitError(args, 127, f"fatal: {error.filename} is not there") from None
    if not group:
        with contextlib.suppress(OSError):  # packs are mapped, not written to: they do not count
            resource.prlimit(process.pid, resource.RLIMIT_DATA, (GIT_MEMORY, GIT_MEMORY))
    return process


def end_git(process: subprocess.Popen[bytes], number: int = signal.SIGKILL) -> None:
    """Send a signal to a git that leads a group, and to what it has started; unless it has been waited for."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)


def git(repo: Path, *args: str, text: str = "", ok: tuple[int, ...] = (0,), **environ: str) -> str:
    """Run git in the bare repo `repo` and return its output; bytes that are no UTF-8 become surrogates.

    Raises GitError when it ends with a code that is not in `ok`, or goes beyond what is given to one git.
    """
    return git_output(git_process(repo, args, None, **environ), args, text, ok)


def git_output(
    process: subprocess.Popen[bytes],
    args: tuple[str, ...],
    text: str = "",
    ok: tuple[int, ...] = (0,),
    seconds: float = GIT_SECONDS,
) -> str:
    """What a started git prints. Raises GitError as `git` does."""
    printed = bytearray()

    def keep(piece: bytes) -> bool:
        printed.extend(piece)
        return len(printed) <= GIT_BYTES

    err = converse(process, args, text, keep, seconds)
    out = printed.decode("utf-8", "surrogateescape")
    if process.returncode not in ok:
        raise GitError(args, process.returncode, err, out)
    return out


def git_fields(repo: Path, rooms: Sequence[int], *args: str, text: str = "") -> list[str]:
    """What git prints between NULs, of which so many bytes are kept: `rooms` are those of the first, the second, and again.

    Raises GitError as `git` does; what follows the last NUL is left out.
    """
    fields: list[str] = []
    last = bytearray()

    def keep(piece: bytes) -> bool:
        for number, part in enumerate(piece.split(b"\0")):
            if number:
                fields.append(last.decode("utf-8", "surrogateescape"))
                last.clear()
            last.extend(part[: rooms[len(fields) % len(rooms)] - len(last)])
        return True

    process = git_process(repo, args)
    err = converse(process, args, text, keep)
    if process.returncode:
        raise GitError(args, process.returncode, err)
    return fields


def converse(
    process: subprocess.Popen[bytes],
    args: tuple[str, ...],
    text: str,
    keep: Callable[[bytes], bool],
    seconds: float = GIT_SECONDS,
) -> str:
    """Give a started git its input and `keep` what it prints, until it has ended; what it says of errors.

    Raises GitError for a git that we ended: `keep` says that it is too much, or its `seconds` are over.
    """
    assert process.stdin and process.stdout and process.stderr
    until, rest, errors, excess = time.monotonic() + seconds, text.encode("utf-8", "surrogateescape"), bytearray(), ""
    with process, selectors.PollSelector() as pipes:
        pipes.register(process.stdout, selectors.EVENT_READ)
        pipes.register(process.stderr, selectors.EVENT_READ)
        if rest:
            os.set_blocking(process.stdin.fileno(), False)
            pipes.register(process.stdin, selectors.EVENT_WRITE)
        else:
            process.stdin.close()
        while pipes.get_map() and not excess:
            ready = pipes.select(min(60.0, max(0.0, until - time.monotonic())))
            for key, _ in ready:
                if key.fileobj is process.stdin:
                    rest = _give(process.stdin, rest)
                    if not rest:
                        pipes.unregister(process.stdin)
                        process.stdin.close()
                elif not (piece := os.read(key.fd, 1 << 16)):
                    pipes.unregister(key.fileobj)
                elif key.fileobj is process.stderr:
                    errors += piece[: STDERR_BYTES - len(errors)]
                elif not keep(piece):
                    excess = f"it printed more than {GIT_BYTES >> 20} MB"
            if not ready and time.monotonic() >= until:
                excess = f"it took longer than {seconds:g} seconds"
        if excess:
            process.kill()
            process.wait()
            raise GitError(args, EXCESS, f"fatal: {excess}")
        process.wait()
    return errors.decode("utf-8", "replace")


def _give(stdin: IO[bytes], text: bytes) -> bytes:
    """Write what a pipe takes of a text; what is left, nothing when nobody reads it."""
    try:
        return text[os.write(stdin.fileno(), text[: 1 << 16]) :]
    except BlockingIOError:
        return text
    except BrokenPipeError:
        return b""


class Account(NamedTuple):
    """The user that a server runs as, or to whom its data directory belongs."""

    uid: int
    gid: int  # of the data directory
    groups: frozenset[int]

    def may(self, path: str | Path, facts: os.stat_result, want: int) -> bool:
        """Whether it may read, write or enter a file (os.R_OK and so on). That a whole disk is read-only is another matter."""
        shift = 6 if facts.st_uid == self.uid else 3 if facts.st_gid in self.groups else 0
        if facts.st_mode >> shift & want == want:
            return True
        if self.uid != os.geteuid():
            return self.uid == 0
        return os.access(path, want) or bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def account_of(uid: int, gid: int) -> Account:
    """An account with all its groups, as the machine knows it, or this process."""
    if uid == os.geteuid():
        return Account(uid, gid, frozenset((gid, os.getegid(), *os.getgroups())))
    known = user_of(uid)[0]
    return Account(uid, gid, frozenset((gid, *(() if known == str(uid) else os.getgrouplist(known, gid)))))


class Ailment(NamedTuple):
    """What is wrong with a repo, with the command that mends it."""

    text: str
    blocks: bool = False  # work in the repo has to wait
    blind: bool = False  # refs cannot be read, which git passes over as if they were not there


WALK_MOST, DEEP_MOST = 3000, 30_000  # files of a repo that are looked at; of objects and refs there may be any number


def find_ailment(repo: Path, name: str, account: Account, deep: bool = True) -> Ailment | None:
    """The worst reason why git cannot do all its work in a repo for the server: what a push by another user left, say.

    Unless it is to be `deep`, the files of single objects are left out: there are many, and git misses what it cannot read.
    """
    unusable = why_unusable(repo, name, account)
    if unusable:
        return Ailment(unusable, True, True)
    shared = bool(os.stat(repo / "objects").st_mode & stat.S_IWGRP)  # several users of a group may push
    worst: Ailment | None = None
    for path, facts in itertools.islice(repo_parts(repo, deep), DEEP_MOST if deep else WALK_MOST):
        part, is_folder, own = path[len(str(repo)) + 1 :], stat.S_ISDIR(facts.st_mode), facts.st_uid == account.uid
        if not account.may(path, facts, os.R_OK | (os.X_OK if is_folder else 0)):
            cannot, blind = ", and the server cannot read it", part.startswith(("refs", "packed-refs"))
        elif (is_folder or part.startswith("logs/")) and not account.may(path, facts, os.W_OK):
            cannot, blind = ", and the server cannot write there", False
        elif own or shared or worst:
            continue
        else:
            cannot, blind = "", False
        whose = f"has mode {facts.st_mode & 0o777:04o}" if own else f"belongs to {spell_user(facts.st_uid)}"
        waits = f": jobs and merges of {name} wait" if cannot else ""
        mend = how_to_mend(repo, account, facts.st_uid)
        if blind or worst is None or (cannot and not worst.blocks):
            worst = Ailment(f"{part} of {name} {whose}{cannot}{waits}; {mend}", bool(cannot), blind)
        if blind:
            break
    return worst


def repo_parts(repo: Path, deep: bool = True) -> Iterator[tuple[str, os.stat_result]]:
    """What git reads and writes in a repo, upper folders first, without what is just being written. Links are passed over."""
    for part in ("packed-refs", "shallow", "hooks", "logs"):
        with contextlib.suppress(OSError):
            yield f"{repo}/{part}", os.lstat(repo / part)
    folders = deque(f"{repo}/{name}" for name in ("refs", "objects", "logs"))
    while folders:
        with contextlib.suppress(OSError), os.scandir(folders.popleft()) as entries:
            for entry in entries:
                if entry.name.startswith(("tmp_", "incoming-", "forge-push-")) or entry.name.endswith(".lock"):
                    continue
                with contextlib.suppress(OSError):  # gone by now
                    facts = entry.stat(follow_symlinks=False)
                    if not stat.S_ISLNK(facts.st_mode):
                        yield entry.path, facts
                    if stat.S_ISDIR(facts.st_mode) and (
                        deep or len(entry.name) > 2 or not entry.path.startswith(f"{repo}/objects/")
                    ):
                        folders.append(entry.path)


def spell_user(uid: int) -> str:
    """A user by name and number."""
    name = user_of(uid)[0]
    return f"another user (uid {uid})" if name == str(uid) else f"{name} (uid {uid})"


def how_to_mend(repo: Path, account: Account, uid: int) -> str:
    """The command that lets an account work in a repo of which something belongs to `uid`."""
    place = shlex.quote(os.path.realpath(repo))
    if uid == account.uid:
        return f"run: chmod -R u+rwX {place}"
    return f"as root: chown -R {account.uid}:{account.gid} {place}"


NOT_BARE = re.compile(rb"^[ \t]*bare[ \t]*=[ \t]*\"?(\w+)", re.MULTILINE | re.IGNORECASE)
HAS_TREE = re.compile(rb"^[ \t]*worktree[ \t]*=", re.MULTILINE | re.IGNORECASE)


def why_not_bare(repo: Path, name: str) -> str | None:
    """Why git takes a directory for that of a working tree, with the command that mends it, or None. Raises OSError."""
    with open_plain(repo / "config") as stream:
        sections = re.split(rb"^[ \t]*(?=\[)", stream.read(), flags=re.MULTILINE)
    core = b"\n".join(section[6:] for section in sections if section[:6].lower() == b"[core]")
    said, file = NOT_BARE.findall(core), shlex.quote(f"{repo}/config")
    if HAS_TREE.search(core):
        wanted = f"git config --file {file} --unset-all core.worktree && git config --file {file} --replace-all core.bare true"
        return f"{name} is the .git of a working tree elsewhere (core.worktree), not a bare repository; run: {wanted}"
    if said and said[-1].lower() in (b"false", b"no", b"off", b"0"):
        why = "git takes no push to the branch that it takes for checked out"
        wanted = f"git config --file {file} --replace-all core.bare true"
        return f"{name} is the .git of a working tree (core.bare is false): {why}; run: {wanted}"
    return None


def why_unusable(repo: Path, name: str, account: Account) -> str | None:
    """Why the server cannot work with a repo, with the command that mends it, or None."""
    try:
        for part in (repo, repo / "HEAD", repo / "config", repo / "objects", repo / "refs"):
            facts = os.stat(part)
            if facts.st_uid != account.uid:
                return f"{name} belongs to another user (uid {facts.st_uid}), so git will not work in it; " + how_to_mend(
                    repo, account, facts.st_uid
                )
            if not account.may(part, facts, os.W_OK):
                return f"the server cannot write to {part}; {how_to_mend(repo, account, facts.st_uid)}"
            if part.name in ("HEAD", "config") and not stat.S_ISREG(facts.st_mode):
                return f"{repo} is not a bare git repository: {part} is no file; restore it, or remove the directory"
            if part.name in ("config", "refs") and part.is_symlink():  # what we and git write there would go elsewhere
                return f"{part} is a link to {shorten(os.readlink(part))}, by which forge does not go; put there what it leads to"
        return why_not_bare(repo, name) or why_not_borrowed(repo, name)
    except FileNotFoundError as error:
        if (repo / ".git").exists():
            tree, new = shlex.quote(str(repo)), shlex.quote(f"{repo}.new")
            way = f"git clone --bare {tree} {new} && mv {tree} {shlex.quote(f'{repo}.tree')} && mv {new} {tree}"
            return f"{repo} is a working tree, not a bare git repository; run: {way}"
        return f"{repo} is not a bare git repository: {error.filename} is missing; restore it, or remove the directory"
    except OSError as error:
        return f"{repo} cannot be read: {error.strerror}; {how_to_mend(repo, account, account.uid)}"


QUIET_SECONDS = 0.5  # in which nothing of a repo has changed that was copied in: it is whole, then


def is_quiet(repo: Path) -> bool:
    """Whether nothing has been put into a repo just now; one that is still being copied would be taken for what it is so far."""
    try:
        newest = max(os.stat(repo).st_ctime, *(entry.stat(follow_symlinks=False).st_ctime for entry in os.scandir(repo)))
    except OSError:
        return False
    newest = max([newest, *(facts.st_ctime for _, facts in itertools.islice(repo_parts(repo), WALK_MOST))])
    return not time.time() - QUIET_SECONDS < newest <= time.time() + 1


ALTERNATES = "objects/info/alternates"


def why_not_borrowed(repo: Path, name: str, hides: Callable[[Path], bool] = lambda _: False) -> str | None:
    """Why objects that a repo borrows are out of reach, with what to do, or None. `hides` knows what jobs do not see."""
    for place, named_in in borrowed_from(repo).items():
        if hides(place):
            alone = f"git -C {repo} repack -a -d && rm {repo / ALTERNATES}"
            return f"{name} borrows objects from {visible(str(place))}, which the sandbox hides from jobs; copy them: {alone}"
        if not os.access(place, os.R_OK | os.X_OK) or not place.is_dir():
            fault = "which the server cannot read" if os.path.lexists(place) else "which does not exist"
            way = f"bring it back, or take its line out of {visible(str(named_in))} if no object is missing without it"
            return f"{name} borrows objects from {visible(str(place))}, {fault}; {way}"
    return None


def borrowed_from(repo: Path) -> dict[Path, Path]:
    """The folders from which a repo borrows objects, directly or by way of another, each with the file that names it.

    As git reads these files (gitrepository-layout(5)); quoted lines, which git does not write there, are passed over.
    """
    found: dict[Path, Path] = {}
    todo = [repo / "objects"]
    while todo:
        objects = todo.pop()
        listing = objects / "info/alternates"
        lines = b""
        with contextlib.suppress(OSError), open_plain(listing) as stream:
            lines = stream.read(GIT_BYTES)
        for line in lines.split(b"\n"):
            if not line or line.startswith((b"#", b'"')) or b"\0" in line:
                continue
            place = Path(os.path.realpath(objects), os.fsdecode(line))
            if ".." in place.parts:  # up from where links lead to
                place = Path(os.path.realpath(place))
            if place not in found:
                found[place] = listing
                todo.append(place)
    return found


def read_refs(repo: Path) -> Refs:
    """The branches of a repo, and which of them base does not contain. Raises GitError."""
    listing = ("for-each-ref", "--format=%(objectname) %(HEAD) %(refname)", "refs/heads/")
    unmerged = ("for-each-ref", "--no-merged=HEAD", "--format=%(objectname) %(HEAD) %(refname)", "refs/heads/")
    # two at a time: this is what a pusher waits for
    first, second = git_process(repo, listing), git_process(repo, unmerged)
    try:
        heads, base = _parse_heads(git_output(first, listing))
    except GitError:
        second.kill()
        second.communicate()
        raise
    if base is None:
        second.communicate()  # it has failed, since there is no HEAD to compare with
        named = git(repo, "symbolic-ref", "-q", "HEAD", ok=(0, 1)).strip()
        return Refs(named[11:] if named.startswith("refs/heads/") else None, heads)
    ahead, _ = _parse_heads(git_output(second, unmerged))
    ahead.pop(base, None)
    if not ahead.items() <= heads.items():
        return read_refs(repo)  # a ref moved between the two
    return Refs(base, heads, frozenset(ahead))


def _parse_heads(text: str) -> tuple[dict[str, str], str | None]:
    heads, base = {}, None
    for line in text.split("\n")[:-1]:
        object_id, _, rest = line.partition(" ")
        name = rest[2:].removeprefix("refs/heads/")
        heads[name] = object_id
        if rest[0] == "*":
            base = name
    return heads, base


TICK_NS = 20_000_000  # the clock by which files are marked stands still for less than that


def refs_mark(repo: Path) -> tuple[object, ...] | None:
    """What differs once a branch or HEAD has moved, from the file system alone; None while that cannot be relied on.

    A file may change twice within one tick of the clock by which the file system marks it, and look the same: as in git's
    index, what has changed a moment ago is not trusted. What cannot be read is left to git, which has words for it.
    """
    began, newest = time.time_ns(), 0
    mark: list[object] = []
    folders = [str(repo / "refs/heads")]
    if os.path.islink(folders[0]):  # it may lead to the whole disk
        return None
    for name in ("HEAD", "packed-refs"):
        with contextlib.suppress(OSError):
            facts = os.lstat(repo / name)
            mark.append((name, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns))
            newest = max(newest, facts.st_ctime_ns)
    try:
        while folders:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    facts = entry.stat(follow_symlinks=False)
                    mark.append((entry.path, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns))
                    newest = max(newest, facts.st_ctime_ns)
                    if stat.S_ISDIR(facts.st_mode):
                        folders.append(entry.path)
    except OSError:
        return None
    tick = TICK_NS if newest % 1_000_000_000 else 2_000_000_000  # there are file systems that count whole seconds
    return tuple(mark) if newest + tick < began else None


CONFLICT_CHARS = 8000  # of the paths of a conflict that are named


def merge_tree(repo: Path, base: str, head: str) -> Merged:
    """Merge two commits without a checkout. Raises GitError when git cannot read one of them."""
    try:
        return dict(merge_trees(repo, base, [head]))[head]
    except GitError as error:
        if not error.excessive:
            raise
        return Merged(None, trouble=f"git cannot merge it: {error}")


ATTRIBUTE_FILES = ":(glob)**/.gitattributes"  # those of a whole tree, in words of gitglossary(7), "pathspec"
ATTRIBUTES = "attributes-"  # how directories for them are called, beside the git directories without configuration


@contextlib.contextmanager
def attributes_worktree(repo: Path, commit: str) -> Iterator[Path]:
    """A directory for a while that has of a commit's worktree only its attribute files. Raises GitError."""
    place = plain_dirs(repo)
    try:
        made = tempfile.TemporaryDirectory(prefix=ATTRIBUTES, dir=place if place.is_dir() else None)
    except OSError as error:
        raise GitError(("checkout",), 128, f"fatal: no directory can be made in {place}: {error.strerror}") from None
    with made as folder:
        worktree = Path(folder, "worktree")
        worktree.mkdir()
        args = ("checkout", "--quiet", commit, "--", ATTRIBUTE_FILES)
        try:
            git(repo, *args, GIT_WORK_TREE=str(worktree), GIT_INDEX_FILE=f"{folder}/index")
        except GitError as error:
            if "did not match any file" not in error.stderr:  # most commits have none
                raise
        yield worktree


def merge_trees(repo: Path, base: str, heads: Sequence[str]) -> Iterator[tuple[str, Merged]]:
    """Yield each head with what git makes of it and `base`. Raises GitError at one that git cannot merge with it.

    The attributes of `base` count, as they do for git-merge(1) in a worktree of it. Those that name a program fall back to
    the three-way merge, since no configuration defines it.
    """
    with attributes_worktree(repo, base) as worktree:
        args = ("merge-tree", "--write-tree", "--stdin", "-z", "--name-only")
        while heads:
            failure = None
            try:
                process = git_process(repo, args, None, GIT_WORK_TREE=str(worktree))
                out = git_output(process, args, "".join(f"{base} {head}\n" for head in heads))
            except GitError as error:
                if error.code < 0:
                    raise
                failure, out = error, error.out
            found = list(_parse_merges(out))
            yield from zip(heads, found, strict=False)
            heads = heads[len(found) :]
            if failure and not (heads and "unrelated histories" in failure.stderr):
                raise failure
            if heads:  # git gives up at the first without common history; the others come after it
                yield heads[0], Merged(None, unrelated=True)
                heads = heads[1:]


def _parse_merges(text: str) -> Iterator[Merged]:
    """What merge-tree prints of several merges, one after another (git-merge-tree(1))."""
    words = iter(text.split("\0"))
    while status := next(words, ""):
        tree = next(words)
        if status == "1":
            next(words)
            yield Merged(tree)
            continue
        # of some kinds of conflict only the messages name the paths: each a count, so many paths, a type and a text
        listed = list(iter(partial(next, words), ""))
        named: list[str] = []
        while count := next(words):
            paths = [next(words) for _ in range(int(count))]
            named += paths if next(words).startswith("CONFLICT") else []
            next(words)
        paths = list(dict.fromkeys(listed or named)) or ["(git names no file)"]
        most = max(1, fitting(map(len, paths), CONFLICT_CHARS))
        yield Merged(None, (*paths[:most], *([f"(and {len(paths) - most} more)"] if paths[most:] else [])))


def commit_tree(repo: Path, tree: str, parents: Iterable[str], message: str) -> str:
    """Write a commit object and return its id.

    Not by git's commit-tree, which takes a message for Latin-1 that has a character which UTF-8 allows and git does not know.
    """
    who = f"forge <forge@localhost> {int(time.time())} +0000"
    lines = [f"tree {tree}", *(f"parent {parent}" for parent in parents), f"author {who}", f"committer {who}", "", message]
    return git(repo, "hash-object", "-t", "commit", "-w", "--stdin", text="\n".join(lines)).strip()


def commit_again(repo: Path, commit: str, tree: str, parent: str) -> str:
    """Write a commit with another's message and author, and return its id."""
    how = ("-1", "-z", "--date=raw", "--no-show-signature", "--format=%an%x00%ae%x00%ad%x00%B", "--end-of-options")
    rooms = (TEXT_BYTES, TEXT_BYTES, TEXT_BYTES, MESSAGE_BYTES)
    name, email, date, message = git_fields(repo, rooms, "log", *how, commit)
    about = {"GIT_AUTHOR_NAME": name, "GIT_AUTHOR_EMAIL": email, "GIT_AUTHOR_DATE": date and f"@{date}"}
    known = {variable: value for variable, value in about.items() if value}  # of what git cannot read it prints nothing
    args = ("commit-tree", tree, "-p", parent)
    return git_output(git_process(repo, args, None, **known), args, message.strip("\n") + "\n").strip()


def tree_with(repo: Path, commit: str, name: str, text: str) -> str:
    """Write the tree of a commit with another content of the file `name`, which lies at its top, and return its id."""
    blob = git(repo, "hash-object", "-w", "--stdin", text=text).strip()
    entries = [entry.partition("\t") for entry in git(repo, "ls-tree", "-z", commit).split("\0")[:-1]]
    lines = [f"{about[:6]} blob {blob}\t{path}\0" if path == name else f"{about}\t{path}\0" for about, _, path in entries]
    return git(repo, "mktree", "-z", text="".join(lines)).strip()


def merge_message(branch: str, head: str, job_id: int) -> str:
    """The message of a merge commit, as README.md promises it."""
    return f"Forge Merge: {branch}\n\nForge-Branch: {branch}\nForge-Head: {head}\nForge-Job: {job_id}\n"


def move_refs(repo: Path, moves: Iterable[tuple[str, str, str | None]]) -> None:
    """Move refs in one transaction: (full name, old id, new id, or None to remove). One differs: nothing moves, GitError."""
    commands, locks = ["start"], ["HEAD.lock", "packed-refs.lock", "packed-refs.new"]
    for ref, old, new in moves:
        if "\0" in ref or "\n" in ref:
            raise ValueError(f"{ref!r} is no ref name")
        # a branch of a copied repo may be another name of a second one, which must not go with it
        commands += ["option no-deref", f"delete {ref}\0{old}"] if new is None else [f"update {ref}\0{new}\0{old}"]
        locks.append(f"{ref}.lock")
    commands += ["prepare", "commit"]
    git_locking(repo, locks, "update-ref", "-z", "--stdin", text="".join(f"{command}\0" for command in commands))


TESTED_REFS = "refs/forge/jobs/"
TESTED_KEPT = 50  # refs of jobs that are of no use to the gate any more


def keep_tested(repo: Path, job_id: int, commit: str) -> None:
    """Name what a job tests, so that gc does not take it and anybody can fetch it. Raises GitError."""
    ref = f"{TESTED_REFS}{job_id}"
    git_locking(repo, [f"{ref}.lock"], "update-ref", ref, commit)


def drop_tested(repo: Path, in_use: set[int], is_old: Callable[[int], bool] = lambda _: False, dry: bool = False) -> int:
    """Remove the refs of tested candidates but those of jobs `in_use` and the newest that are not old; how many.

    Raises GitError. A `dry` run only counts.
    """
    listed = git(repo, "for-each-ref", "--format=%(objectname) %(refname)", TESTED_REFS).split("\n")[:-1]
    commits = {name: commit for commit, _, name in (line.partition(f" {TESTED_REFS}") for line in listed)}
    spare = sorted((name for name in commits if name.isdigit() and int(name) not in in_use), key=int)
    old = spare[:-TESTED_KEPT] + [name for name in spare[-TESTED_KEPT:] if is_old(int(name))]
    if old and not dry:
        move_refs(repo, [(TESTED_REFS + name, commits[name], None) for name in old])
    return len(old)


def git_locking(repo: Path, locks: list[str], *args: str, text: str = "") -> str:
    """Run a git that takes lock files, paths in the repo: when it or this server is killed, `mend_locks` knows them as ours.

    A note in the repo names them. Git inherits the note's own lock, so that it is held as long as one of us lives.
    Raises GitError, or OSError when there is no room for the note.
    """
    note = repo / f"forge-note-{secrets.token_hex(6)}"
    new = note.with_suffix(".new")
    process = None
    try:
        with open(new, "xb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            stream.write("".join(f"{lock}\0" for lock in locks).encode("utf-8", "surrogateescape"))
            stream.flush()
            new.rename(note)
            process = git_process(repo, args, stream.fileno())
            return git_output(process, args, text)
    finally:
        new.unlink(missing_ok=True)
        if process and (process.returncode or 0) < 0:
            mend_locks(repo)
        elif process:
            note.unlink(missing_ok=True)  # a scan may have looked at it since its lock was let go


def mend_locks(repo: Path) -> None:
    """Remove the lock files that git processes of ours left when they were killed; those of others stay.

    Waits for one that still runs; raises GitError when it does not end.
    """
    until = time.monotonic() + 5
    for note in repo.glob("forge-note-*"):
        with contextlib.suppress(FileNotFoundError), open_plain(note, follow=False) as stream:
            if note.suffix == ".new" and time.time() - note.stat().st_mtime < 60:
                continue  # it is just being written
            while True:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > until:
                        raise GitError(("update-ref",), 1, f"fatal: a git of ours still works in {repo}") from None
                    time.sleep(0.01)
            names = stream.read().decode("utf-8", "surrogateescape").split("\0")[:-1]
            # a job or who copied the repo may have written the note: it must not lead anywhere else
            names = [name for name in names if name.endswith((".lock", ".new")) and not {"", ".."} & set(name.split("/"))]
            names = [name for name in names if (repo / name).parent.resolve().is_relative_to(repo.resolve())]
            staying = [name for name in names if _lock_stays(repo / name, os.fstat(stream.fileno()).st_mtime_ns)]
            if not staying:
                note.unlink(missing_ok=True)


def _lock_stays(lock: Path, began: int) -> bool:
    """Remove a lock file that was made after `began` (ns), unless a git that may have made it lives; whether one is left."""
    try:
        facts = lock.stat()
    except FileNotFoundError:
        return False
    if facts.st_mtime_ns < began:
        return False  # it is not ours
    place = Path(os.path.realpath(lock.parent)) / lock.name  # as the kernel names directories of processes
    for process in psutil.process_iter(["name", "cwd", "create_time"]):
        name, cwd, born = (process.info[key] for key in ("name", "cwd", "create_time"))
        # every git of ours and every push works in the repo's directory
        if (name or "").startswith("git") and place.is_relative_to(cwd or "-") and cwd != "/" and born < facts.st_mtime + 0.1:
            return True
    with contextlib.suppress(FileNotFoundError):
        if lock.stat().st_ino == facts.st_ino:
            lock.unlink()
    log(f"{lock} was left by a git that was killed, and is removed")
    return False


def read_commit(repo: Path, commit: str) -> CommitFacts:
    """What a commit says."""
    return read_commits(repo, [commit])[commit]


def read_commits(repo: Path, commits: Iterable[str]) -> dict[str, CommitFacts]:
    """What commits say; a merge trailer counts where git's own %(trailers) sees it: in the last paragraph only."""
    keys = "".join(f",key={key}" for key in ("Auto-Merge", "Forge-Auto-Merge", "Forge-Cause"))
    form = f"%H%x00%an%x00%at%x00%s%x00%B%x00%(trailers:only=true,unfold=true{keys})"
    how = ("--no-walk=unsorted", "--stdin", "-z", "--no-show-signature", f"--format={form}")
    rooms = (64, TEXT_BYTES, TEXT_BYTES, TEXT_BYTES, BODY_BYTES, TRAILER_BYTES)
    words = git_fields(repo, rooms, "log", *how, text="".join(f"{commit}\n" for commit in commits))
    found = {}
    for at in range(0, len(words) - 5, 6):
        commit, author, authored_at, subject, body, trailers = words[at : at + 6]
        cause = str(cause_in(trailers) or "")
        date, message = commit_time(authored_at), body.strip("\n")
        unheard = why_unheard(message, trailers)
        found[commit] = CommitFacts(subject, message, author, date, asks_for_merge(trailers), cause, unheard)
    return found


class Landed(NamedTuple):
    """A commit of base as git has it; the last four are its trailers."""

    commit: str
    tree: str
    parents: str
    authored_at: str | None
    subject: str
    branch: str
    head: str
    job: str
    rollback_to: str = ""

    @property
    def is_rollback(self) -> bool:
        """Whether it says that forge made it to go back to an earlier tree."""
        return self.subject.startswith("Forge Rollback: ") and bool(self.rollback_to)

    @property
    def claims(self) -> bool:
        """Whether it says that forge made it."""
        return self.is_rollback or (self.subject.startswith("Forge Merge: ") and bool(self.branch or self.head or self.job))


LANDED_TRAILERS = ("Branch", "Head", "Job", "Rollback-To")


def read_landed(repo: Path, tip: str, *how: str) -> dict[str, Landed]:
    """The commits of `tip` by id, newest first, with one git. Raises GitError."""
    trailers = (f"%(trailers:key=Forge-{key},valueonly,unfold,separator=%x2C)" for key in LANDED_TRAILERS)
    form = "%x00".join(("%H", "%T", "%P", "%at", "%s", *trailers))
    args = ("log", *how, "-z", "--no-show-signature", f"--format={form}", "--end-of-options", tip)
    words = git_fields(repo, (64, 64, TRAILER_BYTES, *[TEXT_BYTES] * 6), *args)
    found = {}
    for at in range(0, len(words) - 8, 9):
        commit, tree, parents, date, *rest = words[at : at + 9]
        found[commit] = Landed(commit, tree, parents, commit_time(date), *rest)
    return found


def asks_for_merge(trailers: str) -> bool:
    """Whether one of the trailers, a line each, asks for an automatic merge."""
    for line in trailers.split("\n"):
        key, _, value = line.partition(":")
        if key.strip().lower() in ("auto-merge", "forge-auto-merge") and value.strip().lower() in ("yes", "true"):
            return True
    return False


WISH = re.compile(
    r"(?im)^(?P<lead>[^\w\n]*)(?P<key>(?:forge[-_ ]?)?auto[-_ ]?merge)[ \t]*(?P<mark>[:=]?)[ \t]*(?P<value>yes|true)[ \t\r]*$"
)


def why_unheard(message: str, trailers: str) -> str:
    """Why the trailer Auto-Merge of a commit, or a line like it, asks for nothing, and how to mend it; "" without such a line."""
    values = [line.partition(":")[2].strip() for line in trailers.split("\n") if line.lower().startswith(("auto-", "forge-auto"))]
    wish = [*WISH.finditer(message)][-1:]
    if asks_for_merge(trailers):
        return ""
    if values and values[-1].lower() not in ("no", "false", "off"):
        return f"its trailer Auto-Merge says {values[-1][:60]!r}, but only yes and true count; {MEND_WISH}"
    if not wish or values:
        return ""
    (found,) = wish
    above, below = message[: found.start()], message[found.end() :]
    places = {
        "is in its subject; a blank line has to be before it": not re.search(r"\n[ \t\r]*\n", above),
        "is not in the last paragraph, where git looks for trailers": re.search(r"\n[ \t\r]*\n", below.rstrip()),
        "is indented, so git does not take it for a trailer": found["lead"] and not found["lead"].strip(),
        "does not begin its line, so git does not take it for a trailer": found["lead"],
        "lacks the colon of a trailer": found["mark"] != ":",
        "is not spelled Auto-Merge": found["key"].lower() not in ("auto-merge", "forge-auto-merge"),
        "stands among lines that are no trailers; a blank line has to be before it": True,
    }
    why = next(words for words, is_so in places.items() if is_so)
    return f"{found[0].strip()!r} is in the message of its head commit, but {why}; {MEND_WISH}"


MEND_WISH = "write Auto-Merge: yes into its last paragraph with git commit --amend, and push it with --force"


def cause_in(trailers: str) -> Cause | None:
    """What the last of the trailers Forge-Cause names, a line each."""
    said = [line.partition(":") for line in trailers.split("\n")]
    return next(
        (cause for key, _, text in said[::-1] if key.lower() == "forge-cause" and (cause := parse_cause(text.strip()))), None
    )


def tree_of(repo: Path, commit: str) -> str:
    """The tree of a commit."""
    return git(repo, "rev-parse", "--verify", "--end-of-options", f"{commit}^{{tree}}").strip()


def count_commits(repo: Path, base: str, head: str) -> tuple[str | None, int, int]:
    """The merge base of two commits, and how many commits `head` has that `base` lacks, and the other way round."""
    shared, counted = ("merge-base", base, head), ("rev-list", "--count", "--left-right", f"{base}...{head}")
    first, second = git_process(repo, shared), git_process(repo, counted)  # both may have a long way to go
    try:
        merge_base = git_output(first, shared, ok=(0, 1)).strip() or None
    except GitError:
        second.kill()
        second.communicate()
        raise
    behind, ahead = git_output(second, counted).split()
    return merge_base, int(ahead), int(behind)


def count_many(repo: Path, base: str, heads: Sequence[str]) -> dict[str, tuple[str | None, int, int]]:
    """What `count_commits` says of heads, with one walk over the commits since the ancestor that all have in common.

    One that has several merge bases with `base` is left out: which of them git names is its own affair. The newest are
    to come first, since git looks for the ancestor from each to that of those before it.
    """
    ancestor = git(repo, "merge-base", "--octopus", base, *heads, ok=(0, 1)).split()
    text = "".join(f"{commit}\n" for commit in (base, *heads, *(f"^{commit}" for commit in ancestor)))
    walk = git(repo, "rev-list", "--topo-order", "--parents", "--stdin", text=text).split("\n")[:-1]
    everyone = (2 << len(heads)) - 1  # a bit for each: 1 is base
    reached, shared = {base: 1}, dict[str, int]()  # by whom a commit is reached; for whom base and they share a child of it
    for number, head in enumerate(heads, 1):
        reached[head] = reached.get(head, 0) | 1 << number
    tally, best = Counter[int](), [list[str]() for _ in range(len(heads) + 1)]
    for line in walk + ancestor:  # children come before their parents
        commit, *parents = line.split(" ")
        mask = reached.pop(commit, 0)
        tally[mask] += 1
        common = mask & ~1 if mask & 1 else 0
        for number in bits(common & ~shared.pop(commit, 0)):
            best[number].append(commit)
        for parent in parents:
            reached[parent] = reached.get(parent, 0) | mask
            shared[parent] = shared.get(parent, 0) | common
    ahead, behind = [0] * len(best), [0] * len(best)
    for mask, commits in tally.items():
        lacking, column = (everyone & ~mask, behind) if mask & 1 else (mask, ahead)
        for number in bits(lacking):
            column[number] += commits
    return {
        head: (best[number][0] if best[number] else None, ahead[number], behind[number])
        for number, head in enumerate(heads, 1)
        if len(best[number]) < 2
    }


def bits(mask: int) -> Iterator[int]:
    """The numbers of the bits that are set."""
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest


def read_subjects(repo: Path, commit: str, *without: str) -> list[str]:
    """The subjects of the commits that `commit` has and the others lack, newest first, at most a hundred. Raises GitError."""
    how = ("--max-count=100", "-z", "--no-show-signature", "--format=%s", "--end-of-options")
    return git_fields(repo, (TEXT_BYTES,), "log", *how, commit, *(f"^{other}" for other in without))


def changed_paths(repo: Path, old: str, new: str) -> list[str]:
    """The paths by which two trees differ. Raises GitError."""
    return git(repo, "diff-tree", "-r", "-z", "--name-only", "--no-renames", "--end-of-options", old, new).split("\0")[:-1]


# A path is a path whatever is in it; and what is larger than this counts as binary, so that git need not hold it.
READING = {"GIT_LITERAL_PATHSPECS": "1", "GIT_CONFIG_PARAMETERS": "'core.bigFileThreshold=16m'"}
READING_SECONDS = 3.0
READING_CPU = 0.6  # seconds of a processor, which a busy machine may take longer to give


def git_beginning(repo: Path, most: int, *args: str) -> tuple[bytes, bool]:
    """The first `most` bytes of what git prints, and whether that is all of it. Raises GitError.

    A git that would print more, or does not end within READING_SECONDS or READING_CPU, is killed.
    """
    process, over = git_process(repo, args, None, **READING), threading.Event()
    assert process.stdin and isinstance(process.stdout, io.BufferedReader) and process.stderr
    process.stdin.close()
    threading.Thread(target=_end_when_spent, args=(process, over), name="reading", daemon=True).start()
    with process.stdout as out, process.stderr as errors:
        found = out.read(most + 1)
        if len(found) > most:
            process.kill()
        said = errors.read()
    over.set()
    code = process.wait()
    if code > 0:
        raise GitError(args, code, said.decode("utf-8", "replace"))
    return found[:most], code == 0 and len(found) <= most


def _end_when_spent(process: subprocess.Popen[bytes], over: threading.Event) -> None:
    """Kill a git that has had its READING_CPU or READING_SECONDS before it is `over`."""
    until, left = time.monotonic() + READING_SECONDS, READING_CPU
    while not over.wait(max(0.02, min(left, until - time.monotonic()))):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = psutil.Process(process.pid).cpu_times()
            left = READING_CPU - times.user - times.system
        if left <= 0 or time.monotonic() >= until:
            process.kill()
            return


def repo_settings(repo: Path) -> dict[str, str]:
    """The ``forge.*`` settings of the repo's own config, keys in small letters."""
    out = git(repo, "config", "--local", "-z", "--get-regexp", r"^forge\.", ok=(0, 1))
    return {key.lower(): value for key, _, value in (item.partition("\n") for item in out.split("\0") if item)}


def setting_number(repo: Path, settings: Mapping[str, str], key: str, default: int, unit: str) -> int:
    """A setting of a repo that is a number. Raises Refused with what to run instead."""
    text = settings.get(key.lower(), str(default))
    if not re.fullmatch("[1-9][0-9]{0,18}", text):
        raise Refused(409, f"{key} is {text!r}, but must be a number of {unit}; run: git -C {repo} config {key} {default}")
    return int(text)


# What a repo needs in its config so that pushes reach us; set where it differs.
REPO_CONFIG = {
    "core.hooksPath": "hooks",
    **{key: GIT_SETTINGS[key] for key in ("core.fsync", "core.fsyncMethod")},
    "receive.advertisePushOptions": "true",
    "receive.hideRefs": "refs/forge",
    "receive.fsckObjects": "true",
    "receive.procReceiveRefs": "refs",  # all, so that hooks/proc-receive can refuse some of a push, in one process
}
# Set where nothing is. The kinds of faults (git-fsck(1)) are those of old histories, which do no harm.
OLD_FAULTS = "badDate badDateOverflow badEmail badName badTimezone missingEmail missingNameBeforeEmail missingSpaceBeforeDate"
OLD_FAULTS += " missingSpaceBeforeEmail zeroPaddedDate zeroPaddedFilemode"
# A client of an old protocol (sshd passes no GIT_PROTOCOL by default) may fetch by ids as well, as Nix does for a pinned input.
FETCHES = {"uploadpack.allowReachableSHA1InWant": "true", "uploadpack.allowFilter": "true"}
REPO_DEFAULTS = {"receive.maxInputSize": "1g", **FETCHES, **{f"receive.fsck.{kind}": "warn" for kind in OLD_FAULTS.split()}}
HOOK_MARK = "# forge's hook"


def create_repo(config: Config, name: str, base: str) -> Path:
    """Make an empty bare repo. Raises Refused when the name is odd or taken."""
    if not is_repo_name(name):
        raise Refused(400, f"{name!r} is no name for a repo: letters, digits and ._- only, at most 100, not ending in .git")
    reason = why_name_refused(f"refs/heads/{base}")
    path = config.repo(name)
    if reason:
        raise Refused(400, f"{base!r} cannot be a branch: {reason}")
    if path.exists():
        raise Refused(409, f"there is a repo {name} already, in {path}")
    config.repos.mkdir(parents=True, exist_ok=True)
    new = config.repos / f".new-{secrets.token_hex(4)}"
    try:
        new.mkdir()
        git(new, "init", "--quiet", "--bare", "--template=")
        git(new, "symbolic-ref", "HEAD", f"refs/heads/{base}")
        complete_repo(new, path)
        new.rename(path)
    except GitError:
        raise Refused(400, f"{base!r} is no name that git takes for a branch") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return path


HOME_NOTE = "forge-home"  # in a repo: its path in the data directory, for hooks to which a link has led


def complete_repo(repo: Path, home: Path | None = None) -> None:
    """Give a repo our hooks and config. A hook that was there is kept as ``<hook>.local``, which ours calls.

    `home` is where it will lie, unless that is `repo`. What says so is written last: a repo that has it is complete.
    """
    hooks = repo / "hooks"
    hooks.mkdir(exist_ok=True)
    for source in sorted(asset("hooks").iterdir()):
        ours, target = source.read_bytes(), hooks / source.name
        theirs = b"" if os.path.lexists(target) else None
        if target.is_file():
            with open_plain(target) as stream:
                theirs = stream.read()
        if theirs == ours and os.access(target, os.X_OK):
            continue
        if theirs is not None and HOOK_MARK.encode() not in theirs:
            kept = hooks / f"{source.name}.local"
            target.rename(kept if not os.path.lexists(kept) else f"{kept}.{int(time.time())}")
        write_whole(target, ours, 0o755)  # to no file that a link leads to, which a deployment may have put there
    present = git(repo, "config", "--local", "-z", "--list", ok=(0, 1)).split("\0")
    keys = {item.partition("\n")[0] for item in present}
    lacking = [(key, value) for key, value in REPO_CONFIG.items() if f"{key.lower()}\n{value}" not in present]
    for key, value in [*lacking, *((key, value) for key, value in REPO_DEFAULTS.items() if key.lower() not in keys)]:
        way = "--add" if key == "receive.hideRefs" else "--replace-all"  # others may hide more
        git_locking(repo, ["config.lock"], "config", "--local", way, key, value)
    write_whole(repo / HOME_NOTE, f"{home or repo}\n".encode(), 0o644)


def is_complete(repo: Path) -> bool:
    """Whether a repo has our hooks and config, by what says so."""
    with contextlib.suppress(OSError), open_plain(repo / HOME_NOTE) as stream:
        return stream.read() == f"{repo}\n".encode()
    return False


def inode_of(path: Path) -> int:
    """By what a directory is known from another of its name; 0 when it is not there."""
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def drop_verdicts(repo: Path) -> None:
    """Remove what hooks/pre-receive left for a proc-receive that was never called: the push was killed."""
    for path in repo.glob("objects/forge-push-*"):
        with contextlib.suppress(OSError):
            if time.time() - path.lstat().st_mtime > 86400:
                path.unlink()


def asset(name: str) -> Path:
    """Where `views` or `hooks` lie: beside this file, or where an installation put them (``share/forge``)."""
    here = Path(__file__).resolve()
    for place in (here.parent, *(parent / "share" / "forge" for parent in here.parents)):
        if (place / name).is_dir():
            return place / name
    raise FileNotFoundError(f"the directory {name!r} of forge is missing beside {here}")


###############################################################################
# checkouts: a clean tree for each job, kept for the next
###############################################################################


class Surprise(Exception):
    """A checkout is in a state that is not worth mending; it is thrown away as a whole."""


INDEX_BYTES = GIT_BYTES  # of the index of a checkout that is worth mending; its paths take less
MOST_LEFT = 1000  # files that are taken from a checkout one by one
CHECKOUT_BYTES = 10 << 30  # of a checkout, unless forge.checkoutLimit says something else, where
FILE_WEIGHT = 16 << 10  # is what a file counts for at least, and it may fill
ROOM_PART = 0.5  # of the room on the disk
ROOM_LEAST = 64 << 20  # bytes that a job may want of a disk, however full that is
CHECKOUT_LOOK = 2.0  # seconds that a checkout may take before anybody looks how large it gets


class TooLarge(GitError):
    """A tree that would fill the disk; the message says what it weighs."""


class Origin(NamedTuple):
    """What the git of a checkout knows of the repo it comes from. Empty: there is no origin, or no base yet."""

    url: str = ""
    base: str = ""  # the branch
    tip: str = ""  # its commit as the job is concerned with it


NO_ORIGIN = Origin()


def tidy_checkout(slot: Path, trash: Path, repo: Path) -> None:
    """Take away what a job left in a checkout, or the whole checkout where that is not worth it. Raises OSError.

    The tree is `slot`/tree; the index, by whose stat data git knows what is unchanged, is `slot`/index, where no job
    reaches it. Git runs with the bare repo's own directory and this index, so nothing a job wrote is read as configuration.
    """
    try:
        facts = os.stat(slot / "index")
        if facts.st_size > INDEX_BYTES:
            raise Surprise("its paths are too many to have in memory")
        discard(slot / "tree/.git", trash)
        discard(slot / "tmp", trash)
        # git wrote the index after all files, and before the job began
        sweep_tree(slot / "tree", tracked_paths(repo, slot / "index"), facts.st_mtime_ns, trash)
    except (Surprise, GitError, OSError):
        discard(slot, trash)


def fill_checkout(
    slot: Path, trash: Path, repo: Path, commit: str, most: int = CHECKOUT_BYTES, origin: Origin = NO_ORIGIN
) -> Path:
    """Bring a tidy checkout to `commit` and return its tree. Raises GitError or OSError when not even a new one can be made.

    It may get `most` bytes large: a small push can hold a tree of any size. Raises TooLarge; what was written stays in `slot`.
    """
    tree, index = slot / "tree", slot / "index"
    with ThreadPoolExecutor(1) as beside:
        tags = beside.submit(read_tags, repo)
        try:
            mend_tree(repo, tree, index, commit, most)
        except TooLarge:
            raise
        except (Surprise, GitError, FileNotFoundError):
            discard(slot, trash)
            tree.mkdir(parents=True)
            read_tree(repo, tree, index, commit, most)
    write_git_dir(tree / ".git", repo, commit, index, origin, tags.result())
    (slot / "tmp").mkdir()  # on disk, so that a large build does not fill the memory
    (slot / "tmp").chmod(0o1777)
    return tree


def mend_tree(repo: Path, tree: Path, index: Path, commit: str, most: int = CHECKOUT_BYTES) -> None:
    """Make the files of a tidy checkout those of `commit`, and keep those that do not differ. Raises as `read_tree`, OSError.

    The bytes of a file follow from its blob and from the tree's attributes. Raises Surprise when those differ: any file may
    have to be written again, though its blob is the same.
    """
    args = ("diff-index", "--cached", "--quiet", commit, "--", ATTRIBUTE_FILES)
    with open(index, "rb") as before:  # `read_tree` puts another file in its place
        # beside it: it prints nothing, and says by its exit code whether any is another
        process = git_process(repo, args, before.fileno(), GIT_INDEX_FILE=f"/proc/self/fd/{before.fileno()}")
        try:
            read_tree(repo, tree, index, commit, most)
        except BaseException:
            process.kill()  # a tree that is too large would keep it busy
            process.communicate()
            raise
        git_output(process, args, ok=(0, 1))
        if process.returncode == 1:
            raise Surprise("other attributes hold for its files")


def read_tree(repo: Path, tree: Path, index: Path, commit: str, most: int = CHECKOUT_BYTES) -> None:
    """Make the files in `tree` those of `commit`, rewriting only what differs from `index`.

    Raises TooLarge, before more is written than a disk takes in CHECKOUT_LOOK seconds; GitError.
    """
    room = int(room_at(tree).free * ROOM_PART)
    args = ("read-tree", "-u", "--reset", commit)
    process = git_process(repo, args, None, GIT_WORK_TREE=str(tree), GIT_INDEX_FILE=str(index))
    found: list[TooLarge] = []

    def look() -> None:
        with contextlib.suppress(GitError):  # what git cannot read it says itself
            try:
                weigh_tree(repo, commit, most, room)
            except TooLarge as error:
                found.append(error)
                process.kill()

    clock = threading.Timer(CHECKOUT_LOOK, look)
    clock.start()
    try:
        git_output(process, args, seconds=math.inf)
    except GitError as error:
        clock.cancel()
        clock.join()
        if not found:
            look()  # it may have filled the disk already, or its memory
        raise (*found, error)[0] from None
    finally:
        clock.cancel()


def weigh_tree(repo: Path, commit: str, most: int, room: int) -> None:
    """Raise TooLarge when a checkout would be larger than `most` bytes, or than `room`. Raises GitError.

    On a disk that is nearly full, what is small waits for room instead.
    """
    allowed = min(most, max(room, ROOM_LEAST))
    args = ("ls-tree", "-r", "-z", "--format=%(objectsize)", "--end-of-options", commit)
    files, weight, last = 0, 0, b""

    def keep(piece: bytes) -> bool:
        nonlocal files, weight, last
        *sizes, last = (last + piece).split(b"\0")
        files += len(sizes)
        weight += sum(max(FILE_WEIGHT, int(size)) for size in sizes if size != b"-")
        return weight <= allowed

    try:
        process = git_process(repo, args)
        err = converse(process, args, "", keep)
    except GitError:
        if weight <= allowed:
            raise
        why = f"more than {spell_bytes(most)}; split it, or allow more: git -C {repo} config forge.checkoutLimit BYTES"
        why = why if allowed == most else f"more than half of the room on the disk, {spell_bytes(2 * room)}; make room"
        raise TooLarge(args, EXCESS, f"fatal: the first {files} files of its tree take {why}") from None
    if process.returncode:
        raise GitError(args, process.returncode, err)


def tracked_paths(repo: Path, index: Path) -> set[str]:
    """The paths in an index."""
    return set(git(repo, "ls-files", "-z", GIT_INDEX_FILE=str(index)).split("\0")[:-1])


def sweep_tree(tree: Path, tracked: set[str], written: int, trash: Path) -> None:
    """Throw away everything in `tree` that is not in `tracked`, or that changed after `written` (ns).

    Our own walk, since git passes over every name that is `.git`, and gives up on very deep paths. And our own look at the
    times, since git's is not enough: it compares whole seconds, and within one what its conversions make of a file, so
    that an ident (`$Id: …$`), the order of UTF-16's bytes or permissions could be a job's. No job can set a file's ctime.
    Raises Surprise for what should not be mended.
    """
    folders = {""}
    for path in tracked:
        parent = path.rpartition("/")[0]
        while parent not in folders:
            folders.add(parent)
            parent = parent.rpartition("/")[0]
    made = os.lstat(tree.parent)  # with it; a job can change all that is in it
    todo, left = [""], 0
    while todo:
        folder = todo.pop()
        where = f"{tree}/{folder}"
        facts = os.lstat(where)
        same = (facts.st_mode, facts.st_uid, facts.st_gid) == (made.st_mode, made.st_uid, made.st_gid)
        if not same or os.listxattr(where, follow_symlinks=False):
            raise Surprise(f"the mode of {folder or tree} was changed")
        prefix = folder and f"{folder}/"
        with os.scandir(where) as entries:
            for entry in entries:
                path = prefix + entry.name
                if path in folders and entry.is_dir(follow_symlinks=False):
                    todo.append(path)
                elif path not in tracked or not is_untouched(entry, written):
                    discard(Path(entry.path), trash)
                    left += 1
                if left > MOST_LEFT:
                    raise Surprise("a job left more than is worth to be taken away one by one")


def is_untouched(entry: os.DirEntry[str], written: int) -> bool:
    """Whether this is no folder, and has not changed since `written` (ns), nor at that very tick of the clock."""
    facts = entry.stat(follow_symlinks=False)
    return not stat.S_ISDIR(facts.st_mode) and facts.st_ctime_ns < written


def read_tags(repo: Path) -> str:
    """The tags of a repo as packed-refs has them, without those that lead to nothing; none where git cannot list them."""
    if not may_have_tags(repo):  # a git less on the way of a push
        return ""
    try:
        listed = git(repo, "for-each-ref", "--format=%(objectname)^{} %(objectname) %(refname)", "refs/tags/")
        found = git(repo, "cat-file", "--buffer", "--batch-check=%(objectname) %(rest)", text=listed)
    except GitError as error:  # few jobs need them
        log(f"{repo}: jobs see no tags: {error}")
        return ""
    tags = [words for line in found.split("\n") if len(words := line.split(" ")) == 3]  # else it says: missing
    return "".join(f"{tag} {ref}\n" + (f"^{target}\n" if target != tag else "") for target, tag, ref in tags)


def may_have_tags(repo: Path) -> bool:
    """Whether a look at its files leaves it open that a repo has tags."""
    if (repo / "reftable").exists():
        return True
    with contextlib.suppress(OSError), os.scandir(repo / "refs/tags") as entries:
        if next(entries, None):
            return True
    with contextlib.suppress(OSError), open_plain(repo / "packed-refs") as stream:
        listed = stream.read(GIT_BYTES)
        return len(listed) == GIT_BYTES or b" refs/tags/" in listed
    return False


def write_git_dir(git_dir: Path, repo: Path, commit: str, index: Path, origin: Origin, tags: str) -> None:
    """Give a checkout a repository of its own: HEAD detached at `commit`, objects borrowed from `repo`.

    It knows what a clone knows: where it comes from, the tags (lines of packed-refs), and where a shallow history ends.
    """
    for folder in ("objects/info", "refs/remotes/origin"):
        (git_dir / folder).mkdir(parents=True)
    version = "1\n[extensions]\n\tobjectFormat = sha256\n[core]" if len(commit) == 64 else "0"
    config = f"[core]\n\trepositoryformatversion = {version}\n\tbare = false\n"
    if origin.url:
        url = origin.url.replace("\\", "\\\\").replace('"', '\\"')
        config += f'[remote "origin"]\n\turl = "{url}"\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n'
    base = f"refs/remotes/origin/{origin.base}"
    if origin.tip:
        tags = f"{origin.tip} {base}\n{tags}"
        (git_dir / "refs/remotes/origin/HEAD").write_bytes(os.fsencode(f"ref: {base}\n"))
    (git_dir / "config").write_bytes(os.fsencode(config))
    (git_dir / "objects/info/alternates").write_bytes(os.fsencode(f"{repo}/objects\n"))
    (git_dir / "packed-refs").write_bytes(os.fsencode(f"# pack-refs with: peeled fully-peeled sorted \n{tags}"))
    (git_dir / "HEAD").write_text(f"{commit}\n")
    with contextlib.suppress(OSError), open_plain(repo / "shallow", follow=False) as stream:
        cut = re.findall(rb"^[0-9a-f]{40,64}$", stream.read(GIT_BYTES), re.MULTILINE)  # and nothing else, whatever lies there
        (git_dir / "shallow").write_bytes(b"".join(line + b"\n" for line in cut))
    shutil.copy2(index, git_dir / "index")  # with its mtime, by which git knows which entries may be stale


def discard(path: Path, trash: Path) -> Path | None:
    """Take a file or a directory out of the way at once; the janitor removes it. Returns where it is then, if it was."""
    try:
        facts = os.lstat(path)
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(facts.st_mode):
        os.chmod(path, 0o700)  # a directory without write permission cannot be moved
    target = trash / f"{time.time_ns()}-{secrets.token_hex(4)}"
    os.rename(path, target)
    return target


def empty_trash(trash: Path) -> None:
    """Remove all in `trash`, however deep, wide or locked. Directories are brought to the top first, so paths stay short."""
    stuck: set[str] = set()
    while True:
        with os.scandir(trash) as scan:  # some at a time: there may be a million
            entries = [*itertools.islice((entry for entry in scan if entry.name not in stuck), 1000)]
        if not entries:
            return
        for entry in entries:
            try:
                _remove_or_flatten(entry, trash)
            except OSError as error:
                if error.errno == errno.EROFS:
                    raise
                stuck.add(entry.name)
                log(f"cannot remove {entry.path}: {error.strerror}")


def _remove_or_flatten(entry: os.DirEntry[str], trash: Path) -> None:
    if not entry.is_dir(follow_symlinks=False):
        os.unlink(entry.path)
        return
    os.chmod(entry.path, 0o700)
    with os.scandir(entry.path) as inside:
        for child in inside:
            if child.is_dir(follow_symlinks=False):
                discard(Path(child.path), trash)
            else:
                os.unlink(child.path)
    os.rmdir(entry.path)


###############################################################################
# logs: where their lines are, why a job failed, and what they must not show
###############################################################################


ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b\n]*(?:\x07|\x1b\\)?|[()][0-9A-B]|[@-Z\\-_])")
UNSEEN = bytes(set(range(32)) - set(b"\t\n\r\x07\x1b"))  # what no reader sees; BEL and ESC are taken with what they belong to
BLOCK, FIND_BLOCK = 1 << 20, 1 << 18  # bytes between two places up to which lines are counted; that are searched at a time
PIECE_BYTES, PIECE_LINES = 100_000, 1000  # of a log, in a page
FIND_SECONDS, FIND_MOST = 2.0, 1000  # of a search in one log, and lines that it names
EXCERPT = 160  # characters that are shown of a longer line in which something was found


def plain_lines(log_bytes: bytes) -> list[str]:
    """The lines of a log without colours, for who has no JavaScript."""
    lines = readable(log_bytes).split("\n")
    if lines[-1] == "":
        lines.pop()
    return [last_state(line) for line in lines]


class Digest(NamedTuple):
    """The parts of a digest, for a page."""

    outcome: str
    line: str | None  # the number of the line that is the cause
    cause: str
    rest: str


def parts_of_digest(text: object) -> Digest | None:
    """A digest in parts, or None when there is none (another version may have kept something else)."""
    if not isinstance(text, str):
        return None
    outcome, _, rest = text.partition("\n")
    found = re.match(r"line ([1-9][0-9]{0,11}): (.*)(?:\n|\Z)", rest)
    return Digest(outcome, found[1], found[2], rest[found.end() :]) if found else Digest(outcome, None, "", rest)


def readable(log_bytes: bytes) -> str:
    """Bytes of a log without colours and what else no reader sees; line breaks and \\r stay, so its lines can be counted."""
    text = log_bytes.translate(None, UNSEEN).decode("utf-8", "replace")
    if "\x1b" in text:
        text = ANSI.sub("", text).replace("\x1b", "")
    return text.replace("\x07", "")


def last_state(line: str) -> str:
    """What is left of a line that overwrites itself with \\r, as progress bars do."""
    return line.rstrip("\r").rpartition("\r")[2]


class Found(NamedTuple):
    """What a search in a log came to; only the first `matches` are kept, (number, text), but all are counted."""

    matches: list[tuple[int, str]]
    count: int  # type: ignore[assignment]  # a tuple has a method of this name, which nobody asks for here
    complete: bool  # whether the whole log was searched
    lines: int  # how many lines were


def find_in_log(path: Path, needle: str, most: int, until: float) -> Found:
    """The lines in which a reader sees `needle`, in whatever case; gives up at `until` (monotonic seconds).

    Of a line longer than a block all parts count, also what it overwrites. Raises FileNotFoundError.
    """
    wanted, carried = needle.casefold(), b""
    matches: list[tuple[int, str]] = []
    number, last, count = 1, 0, 0
    for block in read_blocks(path):
        if time.monotonic() > until:
            return Found(matches, count, False, number - 1)
        text = readable(carried + block)
        if wanted in text.casefold():  # few blocks do; only these are looked at line by line
            for at, line in enumerate(map(last_state, text.split("\n")), number):
                place = line.casefold().find(wanted)
                if place >= 0 and at > last:
                    last, count = at, count + 1
                    if count <= most:
                        matches.append((at, excerpt(line, place)))
        number += block.count(b"\n")
        carried = b"" if block.endswith(b"\n") else block[-(4 * len(needle) + 1000) :]  # it may go on in the next part
    return Found(matches, count, True, number - 1 + bool(carried))


def excerpt(line: str, place: int) -> str:
    """A line, or what is around a place in a long one."""
    start = max(0, min(place - EXCERPT // 4, len(line) - EXCERPT))
    return f"{'…' if start else ''}{line[start : start + EXCERPT]}{'…' if len(line) > start + EXCERPT else ''}"


def read_blocks(path: Path) -> Iterator[bytes]:
    """A log in blocks of whole lines; a line that is longer than a block comes in parts. Raises FileNotFoundError."""
    rest = b""
    with open(path, "rb", opener=open_log) as stream:
        while chunk := stream.read(FIND_BLOCK):
            whole, newline, after = chunk.rpartition(b"\n")
            if newline:
                yield rest + whole + newline
                rest = after
            elif len(rest) >= FIND_BLOCK:
                yield rest
                rest = chunk
            else:
                rest += chunk
    if rest:
        yield rest


class Piece(NamedTuple):
    """A part of a log, as it was when it had `size` bytes."""

    content: bytes
    start: int
    line: int  # the number of the line in which it begins
    skipped: int  # bytes of that line which lie before it
    size: int

    @property
    def end(self) -> int:
        return self.start + len(self.content)


class LineCounts:
    """Where the lines of logs are: how many end before each whole block, counted once for the logs looked at last.

    Threads may share it; two that miss the same count both count, and neither waits.
    """

    def __init__(self, most: int = 500):
        self.most = most
        self._lock = threading.Lock()  # guards the table, not what is counted for it
        self._counts: OrderedDict[Path, array[int]] = OrderedDict()

    def until(self, path: Path, size: int) -> array[int]:
        """How many lines end in the first 0, 1, 2, … blocks of a log that has `size` bytes."""
        with self._lock:
            counts = self._counts.get(path) or array("Q", [0])
        if len(counts) <= size // BLOCK:
            counts = counts[:]
            while len(counts) <= min(size, size_of(path)) // BLOCK:  # one that grew too far has been cut meanwhile
                start = (len(counts) - 1) * BLOCK
                counts.append(counts[-1] + count_newlines(path, start + BLOCK, start))
        if len(counts) > 1:
            with self._lock:
                self._counts[path] = counts
                self._counts.move_to_end(path)
                while len(self._counts) > self.most:
                    self._counts.popitem(last=False)
        return counts

    def line_at(self, path: Path, offset: int) -> int:
        """The number of the line in which a byte lies."""
        counts = self.until(path, offset)
        block = min(offset // BLOCK, len(counts) - 1)
        return counts[block] + (count_newlines(path, offset, block * BLOCK) if offset else 0) + 1

    def start_of(self, path: Path, line: int, size: int) -> int:
        """The offset at which a line begins, `size` when the log has no such line yet."""
        counts = self.until(path, size)
        block = max(0, bisect_left(counts, line - 1) - 1)
        found = after_newlines(read_log(path, block * BLOCK, BLOCK), line - 1 - counts[block])
        return size if found is None else block * BLOCK + found

    def piece_from(self, path: Path, line: int, most: int = PIECE_BYTES) -> Piece:
        """The whole lines from one on that fit in `most` bytes, or the beginning of that one."""
        size = size_of(path)
        start = self.start_of(path, line, size)
        content = read_log(path, start, min(most, size - start))
        if start + len(content) < size:
            content = content[: content.rfind(b"\n") + 1] or content
        return Piece(content, start, line if content else self.line_at(path, start), 0, size)

    def piece_before(self, path: Path, end: int) -> Piece:
        """The last whole lines before an offset that fit in a piece, or the end of the last one."""
        size = size_of(path)
        end = min(end, size)
        low = max(0, end - PIECE_BYTES)
        content = read_log(path, low, end - low)
        cut = content.find(b"\n", 0, -1) + 1 if low else 0
        most = PIECE_LINES - (not content.endswith(b"\n"))  # whole lines
        lines = content[cut:].rsplit(b"\n", most + 1)
        if len(lines) > most + 1:
            cut += len(lines[0]) + 1
        line = self.line_at(path, low + cut)
        skipped = 0 if cut or not low else low - self.start_of(path, line, size)
        return Piece(content[cut:], low + cut, line, skipped, size)


def after_newlines(text: bytes, count: int) -> int | None:
    """Where a text goes on after so many line breaks, None when it has fewer (pure). A list of its lines could be large."""
    if text.count(b"\n") < count:
        return None
    low, high, before = 0, len(text), 0  # the shortest beginning that has them all; how many lie before `low`
    while low < high:
        middle = (low + high) // 2
        here = before + text.count(b"\n", low, middle)
        if here >= count:
            high = middle
        else:
            low, before = middle + 1, here + (text[middle] == 10)
    return low


SEARCH_HITS = 50  # jobs on a page of results
SEARCH_LINES = 5  # of each


class Search(NamedTuple):
    """What a search through logs came to."""

    hits: list[tuple[int, Found]]  # by job, newest first
    first: int | None  # the oldest job with it among those that were looked at
    looked: int  # how many logs, the newest
    complete: bool  # whether `first` is the oldest there is


def list_logs(folder: Path, repo: str | None, before: int | None) -> list[tuple[int, Path]]:
    """The logs (of a repo) that are there, as (job, directory), newest first; only those below `before`."""
    found: list[tuple[int, Path]] = []
    for one in [folder / repo] if repo else list(folder.iterdir()):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            ids = (int(name[:-4]) for name in os.listdir(one) if name.endswith(".log") and name[:-4].isdecimal())
            found += [(job_id, one) for job_id in ids if before is None or job_id < before]
    return sorted(found, reverse=True)


def search_logs(logs: list[tuple[int, Path]], needle: str, until: float) -> Search:
    """Look through logs, the newest first, until `until` (monotonic seconds).

    What is found so often that it fills a page is then looked for from the other end, for the first time it was there.
    A log that was not looked through comes first in the next search, which has all its time for it.
    """
    hits: list[tuple[int, Found]] = []
    looked, whole = 0, True
    for job_id, folder in logs:
        found = _look_in(folder / f"{job_id}.log", needle, until)
        whole = found.complete
        looked += whole or found.count > 0 or not looked
        if found.count:
            hits.append((job_id, found))
        if not whole or len(hits) >= SEARCH_HITS:
            break
    first = hits[-1][0] if hits else None
    for job_id, folder in reversed(logs[looked:]) if whole else ():
        found = _look_in(folder / f"{job_id}.log", needle, until)
        if found.count or not found.complete:
            first, whole = (job_id, True) if found.count else (first, False)
            break
    return Search(hits, first, looked, whole)


def _look_in(path: Path, needle: str, until: float) -> Found:
    """What one log has of a text; nothing when it is gone."""
    try:
        return find_in_log(path, needle, SEARCH_LINES, until)
    except OSError:  # it was removed meanwhile, or cannot be read
        return Found([], 0, time.monotonic() <= until, 0)


def marked(text: str, needle: str) -> list[tuple[str, bool]]:
    """A text in parts, each with whether it is what was searched for."""
    parts = re.split(f"({re.escape(needle)})", text, flags=re.IGNORECASE)
    return [(part, number % 2 == 1) for number, part in enumerate(parts) if part]


# -- digest: why did it fail ------------------------------------------------------

DIGEST_BYTES = 2000
END_BYTES = 2 << 20  # of the beginning and of the end of a log, where a first error is looked for
MOST_SUSPECTS = 1000  # lines of each of them that the patterns are tried on, the first and the last ones
NEAR_END = 1 << 17  # bytes of it that are looked at for the last ones first
SAME_SUSPECTS = 10  # of them that differ in digits alone
LINE_BYTES = 300  # of a line, before any pattern sees it: a hostile job writes what makes patterns slow
TRACE_LINES = 200  # of one traceback
TRACEBACK = "Traceback (most recent call last):"
# In small letters: each line that a pattern below finds has one of these, and few others have.
ERROR_WORD = re.compile(
    rb"err|fa(?:il|tal|ult)|panic|exception|assert|un(?:defined|bound|used|known|recognized)|traceback|\n! |--(?:> | sc\d)"
    rb"|d(?:enied|umped|iff in |ata race|idn't exit)|kill|abort|\*\*\*|no(?:t (?:ok|found|format)| such| space| route)"
    rb"|e(?:   |: )|c(?:annot|ould not|onflict|allstack|ode style|losed by)|re(?:fused|jected|format|quires format)"
    rb"|time(?:d out|out:)|at \S{1,99} line \d|\.\w{1,5}:[\d(]|== (?:inv|cond|use)|\xe2(?:\x9c[\x95-\x98]|\x97\x8f)|\xc3\x97 "
)
ONE_DIGIT = bytes.maketrans(b"23456789", b"11111111")  # zero tells something else
# What may stand before the line that a tool wrote: what ran it, and when it was.
PREFIX = re.compile(
    r"(?:\s*(?:[A-Za-z][\w.@+/-]{0,60}(?:>|\s*\|)|\#\d+\s[\d.]+|>|│)(?=\s))*\s*"
    r"(?P<date>\[?\d{4}[-/]\d\d[-/]\d\d[T\s][\d:.,]+(?:Z|[+-][\d:]+)?\]?\s+)?"
    r"(?:\[?\d\d:\d\d:\d\d[\d.,]*\]?\s+)?"
)
LOGGED = re.compile(r"(?:\S+\s+){0,2}\[?(?:(?P<bad>(?i:error|err|fatal|critical|severe))|(?i:log|info|debug|trace|notice))\b")
GOES_ON = re.compile(r":(?:\s\[[\w-]+\])?$")  # the next line says it
LOOK_BACK = re.compile(r"\s*(?:CallStack \(from |--> \S+:\d)")  # the line before says it: Haskell; Rust and ruff
NEAR = 10  # lines between two that belong together
# How much a line tells about why a job failed: (rank, how it begins, what it has, in small letters); the first row that
# fits decides. What it has begins with a letter of its own in each alternative, or the search is ten times as slow.
HARMLESS, UNKNOWN, SUMMARY, SIGN, PLAIN, HEAD, EXACT, CHECKED = range(8)
RANKS = tuple(
    (rank, re.compile(begins or "(?!)", re.VERBOSE).match, re.compile(has or "(?!)", re.VERBOSE).search)
    for rank, begins, has in (
        # what a test says that did not come out as it should, whatever words it has
        (
            CHECKED,
            r"""E\s{3,}\S | ●\ (?!Console).*\S | \S+:\d+:\ (?:Failure|FAILED:?)$ | Failed\ assertions:""",
            r"""assert(?:ion)?(?:failed)?error\b.*[:\]]\s?\S | failure/error: | failed\ asserting | panicked\ at\b
            | \*\*\*\ failed!""",
        ),
        # warnings that are a verdict
        (EXACT, "", r"warning:\ (?:data\ race|threadsanitizer)"),
        (
            SIGN,
            r"\[[EW]\d+\]\ (?:Error|Warning): | \[warn\]\ Code\ style",
            r"the\ following\ units\ failed: | unused\ declarations\ were\ found | sc\d{4}\ \((?:warning|info|style)\)",
        ),
        # what warns, is tried again, is asked of a machine, passes, or is a line of a source or of `set -x`
        (
            HARMLESS,
            r"""\W{0,4}(?:(?:npm|CMake|LaTeX|evaluation|\S{1,200}[:)])\ )?\W{0,2}(?:level=)?
              (?:[Ww]arn(?:ing)?|WARN(?:ING)?|\w*Warning|NOTICE|W
              |(?:[Nn]ote|hint|help|[Ii]nfo|INFO|[Dd]ebug|DEBUG|trace)\b(?!.*\b[Ee]rror:))(?:$|[\]:(\s])
            | --\ (?!Configuring\ incomplete) | [Cc]hecking\b(?!.*\berror:) | (?:Run-time\ dependency|Has\ header)\b | …\s
            | (?i:ok|pass|passed|xfail|skip|skipped)\b | [✓✔√] | \[\s*(?:OK|PASSED)\s*\] | >?\s*\d+\s*[|│┃] | \++\s""",
            r"""retrying\b | retry\ in\b | will\ (?:be\ )?retr | tries\ remaining | try(?:ing)?\ again
            | attempt\ \d+\ ?(?:of|/) | no\ (?:errors?|failures?)\b | zero\ (?:errors|failures) | without\ (?:errors?|failures?)\b
            | 0(?<![\w.]0)\ (?:errors?|failures?|failed)\b
            | error(?<!\werror)s?["']?\s?(?:[:=]?\s?0\b|[:=]\s?(?:\[\]|none|null|false)$)
            | fail(?<!\wfail)(?:ures?|ed|s)?["']?\s?(?:[:=]?\s?0\b|[:=]\s?(?:\[\]|none|null|false)$)
            | \.\.\.\ ?(?:ok|yes|no)(?:\s\(.*\))?$ | :\ ok(?:\s\(.*\))?$ | \ passed(?:\s*\[.*|\s[\d(].*)?$
            | \#\ (?:todo|skip)\b | \(ignored\) | ignor(?<!\wignor)(?:ing|ed)\b""",
        ),
        # what only tells that something failed
        (
            SUMMARY,
            r"""\S*make\S*:\ \*\*\*\ .*(?:Error\ \d+|Terminated)$ | compilation\ terminated | FAILED:\s | Reason: | rsync\ error:
            | \d+\ (?:warnings?\ and\ \d+\ )?errors?\b | npm\ (?:ERR!|error)\ \S+@\S+\ \w+: | error\ Command\ failed
            | npm\ (?:ERR!|error)\ (?:code|errno|syscall|path|command|signal|[Ee]xit|Test\ failed|[Ll]ifecycle|Failed\ at|A\ comp)
            | FAIL\b\s*(?:$|\t) | FAILED\ \( | test\ result: | [✖✗×]\ \d+\ problem | =+\s.*\s=+$ | error,\ called\ at
            | (?:Test\ Suites|Tests|Tests\ run|Found|Ran|Failed|Result|ERRORS?|FAILURES?!?)\b:?\s*(?:\d.*|$)
            | \d+\ (?:failing|failed|out\ of)""",
            r"""error:\ (?:ld\ returned|could\ not\ compile|aborting\ due\ to|test\ failed,\ to\ rerun|build\ of|builder\ for
              |recipe|cannot\ build|\d+\ dependenc)
            | linker\ command\ failed | all\ warnings\ being\ treated | dependenc(?:y|ies)\ of\ derivation | unexpectedly\ closed
            | build\ failed | build\ failure | failure:\ build | compilation\ (?:error|failed)\b
            | task\ \S+\ failed | step\ failed
            | failed\ to\ execute\ goal | execution\ failed\ for | errors?\ occurred | non-?zero
            | exit(?:ed)?(?:\ with)?(?:\ (?:code|status))?:?\ \(?\d | did\ not\ (?:complete|succeed) | subprocess-exited
            | terraform\ encountered\ problems | \ \d+\ (?:tests?\ )?(?:failed|failures?|errors?)\b(?!:)""",
        ),
        # what names a place, or can be nothing else
        (
            EXACT,
            r"""\S{1,200}?[:(]\d+(?:[:,]\d+)?\)?(?::|\ -)?\s+(?:[Ff]atal\ |syntax\ |runtime\ )?(?:[Ee]rror|ERROR)\b
            | error(?:\[\w+\]|\ TS\d) | CMake\ Error | \S{1,200}?\.go:\d+:\d+:\ \S | \S{1,200}\.tex:\d+:\ \S | Exception\ in
            | (?:Uncaught\ |Unhandled\ |\[!\]\ |!!!\ )?[\w.$:]{0,100}(?:\wError|Exception)(?:\ \[\w+\])?:\ \S | Caused\ by:
            | [A-Za-z].*\ at\ \S+\ line\ \d+\.?$ | \*\*\ \(\w | !\s | e:\ \S | (?:::error|\#\#\[error\])(?!\w)
            | \[ERROR\]\ \S+:\[\d | \S*ld(?:\.\w+)?:\ (?!warn).*error:""",
            r"""undefined(?::\ \w|\ reference|\ symbol) | multiple\ definition\ of | cannot\ find\ -l | panic(?<![\w.]panic):\s
            | segmentation\ fault | core\ dumped | bus\ error | illegal\ instruction | addresssanitizer | leaksanitizer
            | memorysanitizer | terminate\ called | heap\ out\ of\ memory | ==\d+==\ (?:invalid|conditional|use\ of)
            | \ killed(?:$|\s\s) | \[killed\] | killed\ process | didn't\ exit\ .*\(signal | no\ space\ left
            | \.rb:\d+:in\ .*\(\S+\)$ | \*\*\*\ .*\bstop\.$ | assertion\ .*\bfailed\b
            | error:\ (?:attribute\ '|undefined\ variable|infinite\ recursion|hash\ mismatch|syntax\ error
              |getting\ status\ of)""",
        ),
        # a test or check that failed, by name
        (
            HEAD,
            r"""not\ ok\b | Bail\ out! | ---\ FAIL | FAIL(?:ED)?[:\s]\s*\S | × \s | CONFLICT\ \( | \d+:\d+\s+error\b
            | .*\bFAILED(?:\s\(FAILED.*\)|\s*\[\s*\d+%?\])?$ | \d+\)\s(?:Failure|Error): | Test\ ".*"\ failed
            | [^\s:]+\.\w+:\d+(?::\d+:?|:?\ (?:error\b|[A-Z]+\d+\b))\ \S""",
            r"""✕ | ✗ | ✘ | \[\s*fail(?:ed)?\s*\] | :\s*fail(?:\s\(.*\)|:.*)?$ | \*\*\*failed | \.{5,}failed$ | !\ \[rejected\]
            | <<<\ (?:failure|error)! | <(?:failure|error)\b | sc\d+\ \(error\)""",
        ),
        # what is often asked by the way and not missed, or logged (by Python) of what goes on
        (
            SIGN,
            r"""fatal:\ (?:No\ |no\ |not\ a\ git|ambiguous|bad\ revision) | (?:rm|rmdir|grep|ls|kill|pkill|umount|which):\s
            | (?:ERROR|CRITICAL):[\w.]+:""",
            "",
        ),
        (HARMLESS, "", "deprecat"),
        # what a program says
        (
            PLAIN,
            r"""(?:ERROR\b|npm\ (?:ERR!|error)\s|E:|Error\ |\[error\])\s*\S | Host\ key\ verification\ failed | curl:\ \(\d
            | timeout:\s""",
            r"""error(?<![^\s\])>:|(]error)(?:\[\w{1,10}\])?:\s*\S | fatal(?<![^\s\])>:|(]fatal):\s*\S | \[(?:error|fatal)\]\s*\S
            | fatal\ error:\s*\S | err_[a-z_]{3} | :\ (?:command\ )?not\ found(?:$|:\ ) | unbound\ variable
            | parameter\ (?:null\ or\ )?not\ set | :\ syntax\ error | invalid\ option | unknown\ option | unrecognized\ option
            | :\ cannot\ \w+\ ['‘] | permission\ denied\ \([a-z,-]+\) | failed\ because\b | connection\ closed\ by | timed\ out\b
            | no\ such\ file\ or\ directory\.?(?:\ \(\d+\))?$ | permission\ denied\.?(?:\ \(\d+\))?$ | is\ a\ directory$
            | not\ a\ directory$ | read-only\ file\ system\.?(?:\ \(\d+\))?$ | connection\ (?:refused|reset\ by\ peer)
            | cannot\ allocate\ memory | too\ many\ open\ files | file\ exists$ | exec\ format\ error | operation\ not\ permitted
            | address\ already\ in\ use | resource\ busy | no\ route\ to\ host | name\ or\ service\ not\ known
            | failure\ in\ name\ resolution""",
        ),
        # what speaks of an error
        (
            SIGN,
            r"unformatted | Requires\ formatting | Diff\ in\s",
            r"""error(?<![\w./-]error)s?(?![\w/-]|\.\w) | fail(?<![\w./-]fail)(?:ed|ures?)?(?![\w/-]|\.\w)
            | exception(?<![\w./-]exception)(?![\w/-]|\.\w) | abort(?<![\w./-]abort)ed(?![\w/-]|\.\w) | not\ found\.?$
            | would\ (?:be\ |have\ been\ )?reformat | not\ formatted | cannot\b | could\ not\b | unable\ to\b""",
        ),
    )
)


def rank_of(text: str) -> int:
    """How much a line tells about why a job failed, one of the ranks (pure)."""
    before = PREFIX.match(text)
    rest = text[before.end() :] if before else text
    logged = LOGGED.match(rest) if before and before["date"] else None
    if logged and not logged["bad"]:
        return HARMLESS
    small = rest.lower()
    rank = next((rank for rank, begins, has in RANKS if begins(rest) or has(small)), UNKNOWN)
    return min(rank, SIGN) if logged else rank  # what a program logs, it survives


def outcome(job: Job) -> str:
    """How a job that did not pass ended, in words."""
    if job.status == "timeout":
        return f"timed out after {job.timeout} s"
    if job.reason and job.reason.startswith("ended by signal "):
        number = (job.exit_code or 0) - 128
        what = f"{signal.Signals(number).name}, {(signal.strsignal(number) or '').lower()}"
        return f"exit code {job.exit_code}: a process was killed by signal {number} ({what})"
    return job.reason or "it did not pass"


def read_ends(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number of its first line, bytes) of the beginning of a log and, when it is longer, of its end."""
    size = size_of(path)
    yield 1, read_log(path, 0, END_BYTES)
    if size > END_BYTES:
        start = max(END_BYTES, size - END_BYTES)
        yield count_newlines(path, start) + 1, read_log(path, start, END_BYTES)


def plain_line(line: bytes) -> str:
    """The beginning of a line of a log as it stands on a screen in the end, with nothing that is not text."""
    line = line.rstrip(b"\r")
    text = ANSI.sub("", line[line.rfind(b"\r") + 1 :][:LINE_BYTES].decode("utf-8", "replace"))
    return (text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)).rstrip()


def suspect_lines(block: bytes) -> Iterator[int]:
    """Where lines with an error word begin in a block: the first and the last of them, so that no flood hides an end."""
    find, half = partial(find_suspects, block, block.lower(), {}), MOST_SUSPECTS // 2
    first = array("L", itertools.islice(find(0, len(block)), half))
    rest = block.find(b"\n", first[-1]) if len(first) == half else -1
    if rest < 0:
        return iter(first)
    near_end = block.rfind(b"\n", 0, max(rest + 1, len(block) - NEAR_END)) + 1
    last = deque(find(near_end, len(block)), half)
    between = deque(find(rest, near_end), half - len(last)) if len(last) < half else ()
    return itertools.chain(first, between, last)


def find_suspects(block: bytes, small: bytes, same: dict[bytes, int], place: int, end: int) -> Iterator[int]:
    """Where lines with an error word begin, from a place on. `small` is the block in small letters, `same` counts like lines."""
    while found := ERROR_WORD.search(small, place, end):
        start = small.rfind(b"\n", 0, found.end() - 1) + 1
        place = small.find(b"\n", found.end() - 1)
        place = place if place >= 0 else len(small)
        if block.find(b"PASS", start, place) >= 0 or block.endswith(b"... ok", start, place):
            continue  # a test, and only its name is about errors
        like = small[start : min(place, start + LINE_BYTES)].translate(ONE_DIGIT)
        same[like] = count = same.get(like, 0) + 1
        if count <= SAME_SUSPECTS or b"traceback" in like:
            yield start


def lines_from(block: bytes, place: int) -> Iterator[str]:
    """The lines of a block from a place on, as they stand on a screen."""
    while 0 <= place < len(block):
        end = block.find(b"\n", place)
        yield plain_line(block[place : end if end >= 0 else len(block)])
        place = end + 1 or len(block)


def suspects(blocks: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, str, int]]:
    """Lines of a log that speak of an error: (number, text, rank). One that ends in a colon is told with the next one."""
    for first, block in blocks:
        number, counted, skip_to = first, 0, 0
        for start in suspect_lines(block):
            number += block.count(b"\n", counted, start)
            counted = start
            if number < skip_to:
                continue
            lines = lines_from(block, start)
            text = next(lines, "")
            if TRACEBACK in text:
                calls_at = text.index(TRACEBACK)
                calls = enumerate(itertools.islice(lines, TRACE_LINES), number + 1)
                ended = next(((at, line) for at, line in calls if line[calls_at : calls_at + 1].strip()), None)
                if ended:  # no longer indented, so this is the exception
                    skip_to = ended[0] + 1
                    yield ended[0], ended[1].strip(), SUMMARY if "non-zero exit status" in ended[1] else EXACT
                continue
            if LOOK_BACK.match(text) and start:
                before = next(lines_from(block, block.rfind(b"\n", 0, start - 1) + 1))
                if before.strip() and rank_of(before) != HARMLESS:
                    yield number - 1, before.strip(), max(HEAD, rank_of(before))
                continue
            rank = rank_of(text)
            follows = next(filter(None, itertools.islice(lines, 2)), "") if rank > UNKNOWN else ""
            if rank > UNKNOWN and not follows.startswith("...ignoring"):
                yield number, f"{text} {follows.strip() if GOES_ON.search(text) else ''}".strip(), rank


def fingerprint(text: str) -> str:
    """A line without what differs from run to run: ids, times, counts."""
    return re.sub(r"[0-9a-f]{7,}|[0-9]+", "#", text.lower())


def usual_lines(blocks: Iterable[tuple[int, bytes]]) -> set[str]:
    """The suspects of a log that passed, by fingerprint: in another log they are none."""
    return {fingerprint(text) for _, text, _ in suspects(blocks)}


def first_error(blocks: Iterable[tuple[int, bytes]], usual: set[str]) -> tuple[int, str] | None:
    """(number, text) of the line that tells most about why a job failed, the first of several.

    Of what programs say it is the first after a pause: what they complained of long before, the job has survived.
    """
    best, highest, said_at = None, UNKNOWN, 0
    for number, text, rank in suspects(blocks):
        if rank < highest or fingerprint(text) in usual:
            continue
        if rank > highest or (rank in (SIGN, PLAIN) and number > said_at + NEAR):
            best, highest = (number, text), rank
        said_at = number
        if rank == CHECKED:
            break
    return best


def last_lines(tail: bytes) -> list[str]:
    """What a log ends with, for a digest."""
    lines = [text for text in map(plain_line, tail.split(b"\n")[-200:]) if text][-5:]
    return ["the log ends with:", *(f"  {fit(text, 160)}" for text in lines)] if lines else []


def spell_changes(others: int, subjects: list[str], moved: int, paths: list[str]) -> list[str]:
    """How what a job tested differs from a run that passed; `others` are the branches it tested beside its own."""
    more = " or more" if len(subjects) == 100 else ""
    named = "; ".join([fit(subject, 60) for subject in subjects[:3]] + ["…"] * (len(subjects) > 3))
    since = [f"{plural(len(subjects), 'commit')}{more} ({named})"] if subjects else []
    since += [f"base moved by {plural(moved, 'commit')}"] if moved else []
    since += [f"tested together with {plural(others, 'other')}"] if others else []
    rest = f" and {len(paths) - 5} more" if len(paths) > 5 else ""
    files = f"files: {', '.join(fit(path, 60) for path in paths[:5])}{rest}"
    return [f"since then: {', '.join(since) or 'no commit'}", files if paths else "the files are the same: it may be a flake"]


def fit_digest(lines: Iterable[str]) -> str:
    """Lines as a digest: short, and nothing but text."""
    text = "\n".join("".join(c if c.isprintable() else "?" for c in fit(line, 400)) for line in lines)
    return text.encode()[:DIGEST_BYTES].decode("utf-8", "ignore")


LOG_OVER = 2  # times FORGE_LOG_LIMIT that of a log is kept
RAW_LOG = "log"  # in running/<id>: what a deployment prints, which nobody is shown
MASK_SECONDS = 0.1
SECRET_LEAST, SECRET_MOST = 8, 256  # bytes of a text that is masked; a longer one is masked in parts
SECRET_FILES, SECRET_BYTES = 1000, 1 << 16  # that are looked at, and of each
SECRET_TEXTS = 2000
NO_SECRETS = frozenset(b"password username postgres localhost disabled required undefined production 127.0.0.1".split())


def secrets_folder(config: Config, repo: str, settings: Mapping[str, str]) -> str | None:
    """Which folder of FORGE_SECRETS_DIR/repos holds the secrets of a repo's deployments, by name.

    None: there is no such division, all see the whole directory. "": the repo has none. `settings` are those of its
    config. Raises Refused with what to mend: a deployment does not start with other secrets than it is meant to have.
    """
    named, root = settings.get("forge.secrets"), config.secrets_dir
    setting = f"git -C {config.repo(repo)} config"
    if named is not None and not is_repo_name(named):
        raise Refused(
            409,
            f"forge.secrets is {shorten(named)}, but must be the name of a folder in FORGE_SECRETS_DIR/repos; "
            f"run: {setting} forge.secrets NAME",
        )
    drop = f"or run: {setting} --unset-all forge.secrets"
    if named is not None and root is None:
        raise Refused(409, f"forge.secrets is {named!r}, but FORGE_SECRETS_DIR is not set; set it, {drop}")
    if root is None or not (named or is_secrets_folder(root / "repos")):
        return None
    name = named or repo
    folder = root / "repos" / name
    if is_secrets_folder(root / "repos") and is_secrets_folder(folder):
        check_secrets_folder(root, folder)
        return name
    if named:
        raise Refused(409, f"forge.secrets is {named!r}, but there is no folder {folder}; make it, {drop}")
    return ""


def is_secrets_folder(place: Path) -> bool:
    """Whether there is a folder with secrets. Raises Refused when something else is there, or it cannot be told."""
    try:
        if stat.S_ISDIR(place.stat().st_mode):
            return True
        what = "is no folder; remove it"
    except FileNotFoundError:
        if not place.is_symlink():
            return False
        what = "is a link to nothing; see whether what makes the secrets has run"
    except OSError as error:
        what = f"cannot be looked at ({error.strerror}); give it to the user of the server, uid {os.geteuid()}"
    raise Refused(409, f"{place} {what}")


def check_secrets_folder(root: Path, folder: Path) -> None:
    """Refuse a folder that a deployment cannot read, or that would show it the secrets of all (a link to ``..``, say)."""
    if Path(os.path.realpath(root / "repos")).is_relative_to(os.path.realpath(folder)):
        raise Refused(
            409, f"{folder} leads to {os.path.realpath(folder)}, which holds the secrets of all repos; link to one folder"
        )
    if not os.access(folder, os.R_OK | os.X_OK):
        me = os.geteuid()
        raise Refused(
            409, f"{folder} cannot be read by uid {me}; run: chown {me} {folder} (in agenix and sops-nix: set its owner)"
        )


def secrets_seen(config: Config, folder: str | None) -> Path | None:
    """What a deployment has as its FORGE_SECRETS_DIR, by what `secrets_folder` has found."""
    if config.secrets_dir is None or folder is None:
        return config.secrets_dir
    return config.secrets_dir / "repos" / folder if folder else None


def secrets_masked(config: Config, job: Job) -> list[Path]:
    """The folders whose secrets are masked in the log of a deployment: those that it can read, its own first.

    Not those of other repos in the sandbox: from what becomes a star, and what is held back because it may begin a
    secret, a deployment could find out letter by letter what it does not see.
    """
    seen = [secrets_seen(config, job.secrets), None if job.sandboxed else config.secrets_dir]
    return [*dict.fromkeys(place for place in seen if place)]


def ssh_folders(secrets_dir: Path) -> list[Path]:
    """Where keys for ssh may lie in FORGE_SECRETS_DIR, or in what one repo sees of it."""
    return [secrets_dir / "ssh", *sorted((secrets_dir / "repos").glob("*/ssh"))]


def secret_files(secrets_dir: Path) -> Iterator[Path]:
    """The files that hold secrets, links followed; what is public of ssh is left out.

    Each folder counts once, and no folder above `secrets_dir` does: a link to / must not lead through the whole machine.
    """
    keys = {os.path.realpath(place) for place in ssh_folders(secrets_dir)}
    seen = {str(above) for above in Path(os.path.realpath(secrets_dir)).parents}
    for folder, folders, names in os.walk(secrets_dir, followlinks=True):
        place = os.path.realpath(folder)
        if place in seen:
            folders.clear()
            continue
        seen.add(place)
        public = {"config", "known_hosts"} if place in keys else set()
        yield from (Path(folder) / name for name in names if name not in public and not name.endswith(".pub"))


def secret_texts(content: bytes) -> Iterator[bytes]:
    """What of a secret is masked in logs: each line, and the value in `NAME=value`; long ones in parts."""
    for line in map(bytes.strip, content.split(b"\n")):
        named = re.match(rb"(?:export\s+)?[A-Za-z_]\w*=(.*)", line)
        for text in (line, named[1].strip(b" \t\r\"'")) if named else (line,):
            ends = [*range(SECRET_MOST, len(text) - SECRET_LEAST, SECRET_MOST), len(text)]
            yield from filter(is_telling, (text[start:end] for start, end in zip([0, *ends], ends, strict=False)))


def is_telling(text: bytes) -> bool:
    """Whether to mask a text hides something, and leaves logs legible: it is not short, common, or the address of a file."""
    common = text.lower() in NO_SECRETS or re.fullmatch(rb"-----(BEGIN|END) [A-Z0-9 ]+-----", text)
    known = common or (text.startswith(b"/") and b"\0" not in text and os.path.lexists(text))
    return len(text) >= SECRET_LEAST and len(set(text)) > 4 and not known


def masked(block: bytes, texts: Iterable[bytes]) -> bytes:
    """A block in which each byte that belongs to one of the texts is a star (pure)."""
    clean = bytearray(block)
    for text in texts:
        place = block.find(text)
        while place >= 0:
            clean[place : place + len(text)] = b"*" * len(text)
            place = block.find(text, place + 1)
    return bytes(clean)


def secret_begins(block: bytes, texts: Sequence[bytes]) -> int:
    """From where on the end of a block may be the beginning of one of the texts, which are sorted (pure)."""
    for place in range(max(0, len(block) - max(map(len, texts), default=0)), len(block)):
        rest = block[place:]
        nearest = bisect_left(texts, rest)
        if nearest < len(texts) and texts[nearest].startswith(rest) and texts[nearest] != rest:
            return place
    return len(block)


class Mask:
    """Copies what a deployment prints (`raw`) into its log (`served`), byte for byte but for secrets, which become stars.

    So nothing that reads logs needs to know of it. The log is always as long as what has been looked at: who goes on
    with it, after a crash too, looks back for what began before, and knows all there is to know.
    """

    def __init__(self, config: Config, raw: Path, served: Path, folders: Sequence[Path]):
        """`folders` hold the secrets, the more important first; see `secrets_masked`."""
        self.config, self.raw, self.served, self.folders = config, raw, served, folders
        self.lock = threading.Lock()  # guards the log and all below
        self.texts: list[bytes] = []  # sorted; what has been a secret while the job ran stays one
        self.seen: object = None  # by what the files are known again

    def copy(self, ended: bool = False) -> None:
        """Bring the log up to date, but for what may be the beginning of a secret as long as the job goes on. Raises OSError."""
        with self.lock, contextlib.ExitStack() as files:
            try:
                raw = files.enter_context(open(self.raw, "rb", buffering=0, opener=open_log))
            except FileNotFoundError:  # the job has ended, and its log is whole
                return
            self.served.parent.mkdir(parents=True, exist_ok=True)
            served = files.enter_context(open(self.served, "ab", buffering=0))
            done, size = served.tell(), min(os.fstat(raw.fileno()).st_size, LOG_OVER * self.config.log_limit)
            if size < done:  # the job has cut it, as a shell does with `>/dev/stdout`
                served.truncate(0)
                done = 0
            if done < size or self.seen is None:
                self._look()
            reach = max(map(len, self.texts), default=1) - 1
            while done < size:
                start = max(0, done - reach)
                raw.seek(start)
                block = raw.read(min(size - start, reach + FIND_BLOCK))
                whole = ended and start + len(block) >= size
                clean = masked(block, self.texts)[done - start : None if whole else secret_begins(block, self.texts)]
                if not clean:
                    break
                done += served.write(clean)

    def _look(self) -> None:
        """Read the secrets again if their files are others by now."""
        files = itertools.chain.from_iterable(map(secret_files, self.folders))
        marks: dict[Path, tuple[int, ...]] = {}
        for path in [*filter(None, [self.config.password_file]), *itertools.islice(files, SECRET_FILES)]:
            with contextlib.suppress(OSError):  # what we cannot read the job cannot either
                facts = path.stat()
                if stat.S_ISREG(facts.st_mode) and facts.st_size:  # files of /proc are empty, and reading one may not end
                    marks[path] = (facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
        if marks == self.seen:
            return
        contents = [] if self.config.password_file else [(self.config.password or "").encode("utf-8", "surrogateescape")]
        for path in marks:
            with contextlib.suppress(OSError), open(path, "rb") as file:
                contents.append(file.read(SECRET_BYTES))
        texts = dict.fromkeys([*self.texts, *itertools.chain.from_iterable(map(secret_texts, contents))])
        if len(texts) > SECRET_TEXTS or len(marks) >= SECRET_FILES:
            log(f"there are more secrets than are masked in logs, at most {SECRET_FILES} files and {SECRET_TEXTS} lines")
        self.texts, self.seen = sorted(itertools.islice(texts, SECRET_TEXTS)), marks


###############################################################################
# processes: start, adopt, measure, stop
###############################################################################


# The supervisor of one job: sh, in a session of its own, so that a job costs no Python and outlives the server. It is a
# subreaper (see LAUNCHER), so whatever the job leaves behind becomes its child and is killed when the job's own
# process has ended. It owns three files in its directory: pid (with start ticks and boot id), command (which the finder
# writes), exit (code, and the uptime when it ended; made beforehand, so that a full disk takes it, renamed into place).
SUPERVISOR = r"""
run=$1 log=$2
shift 2
trap : HUP INT QUIT USR1 USR2 PIPE ALRM TERM
command -v setsid >/dev/null && set -- setsid "$@" # a signal to the job's own group must not reach us
read -r boot </proc/sys/kernel/random/boot_id
read -r stat </proc/$$/stat
set -C # a server that has given this start up has taken $run away, or has filled it anew
note() { shift 19; printf '%s %s %s\n' "$$" "$1" "$boot" >"$run/pid"; }
note ${stat##*) } 2>/dev/null || exit 1
set +C
(exec "$@" >>"$log" 2>&1 3>>"$run/command")  # in a subshell, so that no word of this shell gets into the log
code=$?
tries=0
while { read -r kids || :; } <"/proc/$$/task/$$/children" && [ -n "$kids" ] && [ $tries -lt 100 ]; do
    kill -9 $kids
    tries=$((tries + 1))
    if [ $tries -lt 20 ]; then (:); else sleep 0.02; fi  # a sh collects its dead only while it waits for a child
done
read -r up rest </proc/uptime
printf '%-4s%s\n' "$code" "$up" 1<>"$run/exit.new" && mv "$run/exit.new" "$run/exit"
"""

# What runs in the checkout: find the job's command, tell it on descriptor 3, become it.
# The usual flake is run without a look first (each start of nix costs); only when that fails is the reason looked at.
FINDER = r"""
kind=$1 system=$2 setting=$3 repo=$4 configured=$5
why="there is no justfile with the recipe $kind, no flake.nix with apps.$system.$kind, no executable .forge/$kind; \
add one, or set a command on the server: git -C $repo config $setting '…'"
tell() { printf '%s\0' "$*" >&3; }
become() { exec 3>&- 4>&-; exec "$@"; }
flake() { command nix --extra-experimental-features 'nix-command flakes' "$@"; }
app() {
    answer=$(flake eval --raw ".#apps.$system" --apply "apps: if apps ? \"$kind\" then \"yes\" else \"no\"" 2>&1 3>&-)
    code=$?
    case $code,$answer in
    0,*yes) app=there ;;
    0,*no) app=missing ;;
    *flake*"does not provide attribute"*"apps.$system"*) app=missing ;;
    *) app=broken ;;
    esac
}

if [ -n "$configured" ]; then
    tell "run $configured"
    become sh -c "$configured"
fi

for file in [jJ][uU][sS][tT][fF][iI][lL][eE] .[jJ][uU][sS][tT][fF][iI][lL][eE]; do
    [ -f "$file" ] || continue
    if ! command -v just >/dev/null; then
        why="there is a justfile, but no just on the PATH of the server"
    else
        if just --show "$kind" >/dev/null 2>&1 3>&- || ! just --summary >/dev/null 2>&1 3>&-; then
            tell "run just $kind"
            become just "$kind"
        fi
        break
    fi
done

if [ -f flake.nix ] && ! command -v nix >/dev/null; then
    why="there is a flake.nix, but no nix on the PATH of the server"
elif [ -f flake.nix ]; then
    if grep -q "$kind" flake.nix && grep -q apps flake.nix; then
        tell "run nix run .#$kind"
        exec 4>&2 2>/dev/null
        flake run ".#apps.$system.$kind" 2>&4 3>&- 4>&-
        code=$?
        exec 2>&4
        [ $code -ne 0 ] || exit 0
        ran=$code
    fi
    app
    if [ $app = there ] && [ -z "$ran" ]; then
        tell "run nix run .#$kind"
        become nix --extra-experimental-features 'nix-command flakes' run ".#apps.$system.$kind"
    fi
    [ -z "$ran" ] || [ $app = missing ] || exit "$ran"
    if [ $app = broken ]; then
        tell "run nix run .#$kind"
        printf '%s\n' "$answer" >&2
        exit "$code"
    fi
fi

if [ -f ".forge/$kind" ] && [ -x ".forge/$kind" ]; then
    tell "run .forge/$kind"
    become "./.forge/$kind"
fi
[ ! -f ".forge/$kind" ] || why=".forge/$kind is not executable; run: git update-index --chmod=+x .forge/$kind"
tell "skip $why"
"""

COMMAND_SETTING = {PRE: "forge.preMerge", POST: "forge.postMerge"}
SSH_CONFIG = "ssh_config"
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
PR_SET_DUMPABLE = 4
MOST_TOLD = 8000  # characters of a command or of why there is none
TICK_SECONDS = 1.0


@dataclass(frozen=True)
class Launch:
    """Everything one job is started from: what it is, where it runs, what it may see."""

    kind: str
    tree: Path
    run: Path
    log: Path
    environ: Mapping[str, str]
    repo: Path
    home: Path
    command: str = ""  # from the repo's config; empty: the finder looks
    ssh_config: bytes | None = None  # for SSH_CONFIG in `run`
    secrets_dir: Path | None = None  # what it sees as FORGE_SECRETS_DIR


@dataclass
class Running:
    """The processes of a running job. Clocks are seconds since boot, so that no wall clock moves a deadline."""

    job_id: int
    pid: int
    pidfd: int
    run: Path
    log: Path  # where it writes
    began: float
    deadline: float
    sandboxed: bool = False
    mask: Mask | None = None  # between `log` and the log that is served
    stop_at: float | None = None  # when SIGTERM was sent
    cpu_seconds: float = 0.0
    measured_at: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)  # cpu_percent rss_bytes processes


# Starts supervisors: a small Python of one thread, so that it may run code between fork and exec. (A preexec_fn in the
# server itself would do so beside other threads: the child drops their frames, which flushes and removes their files.)
LAUNCHER = r"""
import ctypes, json, os, signal, sys
prctl, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = ctypes.CDLL(None).prctl, 4, 36
prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # see keep_secrets; what it starts is as others are, see execve(2)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in sys.stdin.buffer:
    cwd, argv, environ = json.loads(line)
    pid = os.fork()
    if pid == 0:
        try:
            for number in {*range(1, 32)} - {signal.SIGKILL, signal.SIGSTOP}:  # Python ignores some, nohup may have
                signal.signal(number, signal.SIG_DFL)
            os.setsid()
            prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # kept over exec, see prctl(2)
            nothing = os.open(os.devnull, os.O_RDWR)
            for file in (0, 1, 2):
                os.dup2(nothing, file)
            os.chdir(cwd)
            os.execvpe(argv[0], argv, environ)
        finally:
            os._exit(127)
    try:
        print(pid, flush=True)
    except BrokenPipeError:  # the server has been killed
        os._exit(0)
"""


class Launcher:
    """The process that starts supervisors. It ends when the server does; what it has started goes on."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # guards the process and its pipes
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, cwd: Path, argv: list[str], environ: Mapping[str, str]) -> int:
        """Start a process in a session of its own and return its pid. Raises OSError."""
        with self.lock:
            if self.process is None or self.process.poll() is not None:
                pipe, command = subprocess.PIPE, [sys.executable, "-I", "-S", "-X", "utf8", "-c", LAUNCHER]
                self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True)
            assert self.process.stdin and self.process.stdout
            self.process.stdin.write(json.dumps([str(cwd), argv, dict(environ)]).encode() + b"\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        if not answer:
            raise OSError(f"the launcher ended with {self.process.wait()}")
        return int(answer)

    def stop(self) -> None:
        """End the launcher."""
        with self.lock:
            if self.process and self.process.stdin and self.process.stdout:
                self.process.stdin.close()
                self.process.wait()
                self.process.stdout.close()


def start_job(launcher: Launcher, launch: Launch, box: list[str]) -> int:
    """Start a job and return the pid of its supervisor. Raises OSError when that is not possible.

    `box` is what puts it into a sandbox, see `sandbox_args`; [] without one.
    """
    launch.run.mkdir(0o700, parents=True)
    (launch.run / "exit.new").write_bytes(b" " * 32)
    if launch.ssh_config is not None:
        (launch.run / SSH_CONFIG).write_bytes(launch.ssh_config)
    launch.log.parent.mkdir(parents=True, exist_ok=True)
    launch.log.write_bytes(b"")  # a restored copy may hold the log of a job that its journal does not know
    about = [launch.kind, nix_system(), COMMAND_SETTING[launch.kind], str(launch.repo), launch.command]
    finder = ["sh", "-c", FINDER, "forge-job", *about]
    supervisor = ["sh", "-c", SUPERVISOR, "forge-supervisor", str(launch.run), str(launch.log)]
    return launcher.start(launch.tree, supervisor + box + finder, launch.environ)


def nix_system() -> str:
    """What Nix calls this machine."""
    machine = platform.machine()
    return f"{'aarch64' if machine == 'arm64' else machine}-{platform.system().lower()}"


def boot_clock() -> float:
    """Seconds since boot, counting sleep; what process start times are measured in."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def process_began(pid: int) -> float | None:
    """When a process started, in seconds since boot, or None when there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:
            return int(stream.read().rpartition(b") ")[2].split()[19]) / CLOCK_TICKS
    except (OSError, IndexError):
        return None


def adopt(run: Path) -> tuple[int, int, float] | None:
    """(pid, pidfd, start) of the supervisor that keeps `run`, or None when it is gone.

    In a copy of a data directory the notes may name the supervisor of the original, which keeps another directory.
    """
    try:
        pid_text, ticks, boot = (run / "pid").read_text().split()
        if boot != Path("/proc/sys/kernel/random/boot_id").read_text().strip():
            return None
        pid, began = int(pid_text), int(ticks) / CLOCK_TICKS
        pidfd = os.pidfd_open(pid)
    except (OSError, ValueError):
        return None
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if process_began(pid) == began and os.fsencode(run) in words:
            return pid, pidfd, began
    os.close(pidfd)
    return None


def supervisor_began(run: Path) -> bool:
    """Whether a supervisor has written down who it is, before which it starts nothing."""
    with contextlib.suppress(OSError):
        return (run / "pid").read_bytes().endswith(b"\n")
    return False


def read_exit(run: Path) -> tuple[int, float] | None:
    """(exit code, seconds since boot when it ended) as the supervisor left them, or None."""
    try:
        code, up = (run / "exit").read_text().split()
        return int(code), float(up)
    except (OSError, ValueError):
        return None


def read_command(run: Path) -> tuple[str | None, str | None]:
    """(command, why nothing was run) as the finder told them; the last word counts.

    A job that the finder waits for can write there as well, by its descriptor: its own loss, and no more is read of it.
    """
    try:
        told = read_tail(run / "command").decode("utf-8", "replace")
    except OSError:
        return None, None
    word, _, rest = told.rstrip("\0").rpartition("\0")[2].partition(" ")
    return (rest[:MOST_TOLD], None) if word == "run" else (None, rest[:MOST_TOLD] or None)


def children_of(pid: int) -> list[int]:
    """The children of a process of one thread."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def job_processes(pid: int, sandboxed: bool) -> list[psutil.Process]:
    """The process tree under a supervisor, without itself. What called setsid or was orphaned is still below it.

    In a sandbox the job is what is below the two processes of bubblewrap: the outer one, and the first of the namespace.
    """
    tops, found = [pid], []
    for _ in range(2 if sandboxed else 0):
        tops = [child for top in tops for child in children_of(top)]
    for top in tops:
        with contextlib.suppress(psutil.NoSuchProcess):
            found += psutil.Process(top).children(recursive=True)
    return found


def signal_job(pid: int, number: int, sandboxed: bool) -> None:
    """Send a signal to the whole process tree under a supervisor.

    Bubblewrap gets none but SIGKILL while there is a job in it: its death would be the job's, without a word.
    """
    for process in job_processes(pid, sandboxed and number != signal.SIGKILL) or job_processes(pid, False):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            process.send_signal(number)


def measure(running: Running) -> None:
    """Bring the live figures of a job up to date."""
    cpu = rss = count = 0.0
    for process in job_processes(running.pid, running.sandboxed):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied), process.oneshot():
            times = process.cpu_times()
            cpu += times.user + times.system
            rss += process.memory_info().rss
            count += 1
    moment = boot_clock()
    spent = max(0.0, cpu - running.cpu_seconds) / max(0.05, moment - running.measured_at)
    running.figures = {"cpu_percent": round(100 * spent, 1), "rss_bytes": int(rss), "processes": int(count)}
    running.cpu_seconds, running.measured_at = cpu, moment


def kill_leftovers(home: str, job_id: int) -> None:
    """Kill what a job whose supervisor was killed left behind, known by the job's own variables in its environment."""
    marks = {f"FORGE_JOB_ID={job_id}".encode(), f"HOME={home}".encode()}
    for pid in psutil.pids():
        with contextlib.suppress(OSError):
            if marks <= set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")):
                os.kill(pid, signal.SIGKILL)


def cut_hollow(path: Path, most: int) -> None:
    """Cut a log that is longer than it may be and than what was written: a job can put its end anywhere (ftruncate(2)).

    Whoever counts its lines or searches it would be at it for days.
    """
    facts = path.stat()
    if facts.st_size > most and facts.st_size > 512 * facts.st_blocks:
        with open(path, "r+b", buffering=0, opener=open_log) as stream:
            stream.truncate(most)


def keep_secrets(environ: MutableMapping[str, str]) -> None:
    """Let no other process of our user trace this one or read its memory and environment, no core file hold them (prctl(2)).

    The password is taken from `environ`, so that no child gets it; what this process was started with is root's to read.
    """
    import ctypes

    environ.pop("FORGE_MERGE_PASSWORD", None)
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0):
        raise Fault(1, f"the server cannot be hidden from its jobs (PR_SET_DUMPABLE): {os.strerror(ctypes.get_errno())}")


def inherited_sockets(environ: MutableMapping[str, str]) -> list[socket.socket]:
    """The sockets that whatever started us listens on for us (sd_listen_fds(3)); what tells of them is taken from `environ`.

    Raises WrongSetting.
    """
    pid, count, _ = (environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if pid != str(os.getpid()):  # they were for another process, which has left its environment to us
        return []
    if not re.fullmatch("[0-9]{1,3}", count):
        raise WrongSetting(f"LISTEN_FDS is {count!r}, but must be a number of sockets")
    found = []
    for file in range(3, 3 + int(count)):
        try:
            os.set_inheritable(file, False)
            found.append(socket.socket(fileno=file))
            bound = found[-1].family in (socket.AF_INET, socket.AF_INET6) and found[-1].getsockname()[1] != 0
            listens = (
                bound and found[-1].type == socket.SOCK_STREAM and found[-1].getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            )
        except OSError:
            listens = False
        if not listens:
            raise WrongSetting(
                f"LISTEN_FDS is {count}, but descriptor {file} is no TCP socket that listens (ListenStream=, Accept=)"
            )
    return found


def is_near(listener: socket.socket) -> bool:
    """Whether a socket is reached on this machine without knowing the machine's addresses."""
    host = ip_address(listener.getsockname()[0].partition("%")[0])
    return host.is_loopback or host.is_unspecified


class ServiceManager:
    """Whatever started us, told how we are by datagrams to NOTIFY_SOCKET (sd_notify(3)); nothing waits for it."""

    def __init__(self, environ: MutableMapping[str, str]):
        """What is meant for us is taken from `environ`, so that no child of ours speaks in our name."""
        self.address, usec, pid = (environ.pop(name, "") for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"))
        watched = bool(self.address) and re.fullmatch("[1-9][0-9]{0,17}", usec) and pid in ("", str(os.getpid()))
        self.every = int(usec) / 2e6 if watched else float("inf")  # seconds between two signs of life
        self.due = 0.0
        self.turned = time.monotonic()  # when the loop that takes requests came round last
        self.status = ""
        self.silent = False  # it could not be told, which the log says already

    def tell(self, **values: object) -> None:
        """Send what sd_notify(3) names. That it does not arrive is a line in the log: it changes nothing for us."""
        if not self.address:
            return
        try:
            if self.address[0] not in "/@":
                raise OSError("it is neither a path nor an abstract name")
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as line:
                text = "\n".join(f"{name}={value}" for name, value in values.items())
                line.sendto(text.encode(), re.sub("^@", "\0", self.address))
            self.silent = False
        except OSError as error:
            if not self.silent:
                log(f"NOTIFY_SOCKET {self.address} is not told how we are: {error.strerror or error}")
            self.silent = True

    def beat(self, status: str) -> None:
        """Tell a status that has changed, and a sign of life when the next call may come too late for it.

        The watcher calls it, and has had the engine's lock a moment before; whether requests are taken is looked at here.
        """
        moment = time.monotonic()
        values: dict[str, object] = {"STATUS": status} if status != self.status else {}
        if moment + TICK_SECONDS >= self.due and moment - self.turned < 2 * self.every < float("inf"):
            self.due = moment + self.every
            values["WATCHDOG"] = 1
        self.status = status
        if values:
            self.tell(**values)
            self.due = 0.0 if self.silent else self.due


###############################################################################
# sandbox: what a job may see
###############################################################################


# What root keeps in a sandbox: as much as Nix needs to build as its build users (tried one by one with Nix 2.8).
# Above all not SYS_ADMIN (mounts), MKNOD (disks) and DAC_READ_SEARCH (opens files by their number, past all mounts).
ROOT_KEEPS = ("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_SETGID", "CAP_SETUID")
# The kernel lets root write below these whatever else it lacks, and bubblewrap leaves them open.
ROOT_MAY_NOT_WRITE = ("/proc/acpi", "/proc/fs", "/proc/scsi", "/proc/sys")
SECRET_PLACES = ("/run/credentials", "/run/agenix", "/run/agenix.d", "/run/secrets", "/run/secrets.d", "/run/user")
TMP_PLACES = ("/tmp", "/var/tmp")
WITHOUT_SANDBOX = "a job can read and change all that the server's user can"
SANDBOX_HELP = (
    "if it is about namespaces, allow them to users (sysctl kernel.unprivileged_userns_clone=1, on Ubuntu "
    "kernel.apparmor_restrict_unprivileged_userns=0); if about mounts, take the hardening out of the server's unit"
)


class NoSandbox(Exception):
    """FORGE_SANDBOX asks for bubblewrap, and it does not work here."""


@dataclass(frozen=True)
class Surroundings:
    """What a sandbox has to know of this machine. Places are paths without links, as a job comes to them."""

    bwrap: str
    root: bool
    folders: tuple[Path, ...] = ()  # hidden, as are
    files: tuple[Path, ...] = ()
    tmp: tuple[Path, ...] = ()
    programs: tuple[tuple[Path, Path], ...] = ()  # (what, place): seen although something above may be hidden
    secrets: tuple[tuple[Path, Path], ...] = ()  # likewise, in post-merge jobs
    nix: tuple[tuple[Path, Path], ...] = ()
    nix_writable: bool = False
    linked: tuple[Path, ...] = ()  # repos to which links in `repos/` lead


class Mount(NamedTuple):
    """An option of bwrap without the place it is for, and whether it takes from view what is there."""

    option: tuple[str, ...]
    hides: bool = False


def sandbox_args(config: Config, launch: Launch, around: Surroundings) -> list[str]:
    """What stands before a job's command to run it in its sandbox (pure).

    All is read-only; what is private is hidden, and what the job needs of it is shown again. A pre-merge job, which
    anybody's branch decides, sees nothing that lets it act; a post-merge job, which base decides, can push to `repos/`.
    """
    args = [around.bwrap, "--unshare-pid", "--unshare-ipc", "--die-with-parent", "--chdir", str(launch.tree)]
    args += ["--cap-drop", "ALL", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]
    if around.root:
        args += [word for name in ROOT_KEEPS for word in ("--cap-add", name)]
        args += [word for place in ROOT_MAY_NOT_WRITE for word in ("--ro-bind-try", place, place)]
    else:
        args.append("--unshare-user")
    emptied = []
    above: dict[Path, bool] = {}  # of what is mounted so far: whether it hides
    mounts = sandbox_mounts(config, launch, around)
    for place in sorted(mounts, key=lambda path: path.parts):  # from outer to inner
        option, hides = mounts[place]
        hidden = next((above[parent] for parent in place.parents if parent in above), False)
        if hides == hidden and option[0] != "--bind":
            continue  # hidden with what is above it, or seen with it
        args += [*option, str(place)]
        above[place] = hides
        emptied += ["--remount-ro", str(place)] if option == ("--tmpfs",) else []
    return [*args, *emptied, "--"]


def sandbox_mounts(config: Config, launch: Launch, around: Surroundings) -> dict[Path, Mount]:
    """What is hidden from a job and what is shown to it, by place."""
    data = config.data_dir
    mounts = {place: Mount(("--bind", str(launch.tree.parent / "tmp")), hides=True) for place in around.tmp}
    mounts |= {place: Mount(("--tmpfs",), hides=True) for place in around.folders}
    mounts |= {place: Mount(("--ro-bind", os.devnull), hides=True) for place in around.files}
    mounts = {place: Mount(("--ro-bind", str(what))) for what, place in around.programs} | mounts
    shown = [("--bind", launch.tree), ("--bind", launch.home), ("--ro-bind", data / "bin")]
    if launch.kind == POST:  # its pushes to a bare path run hooks, which have to tell the server
        shown += [("--ro-bind-try", data / name) for name in ("hook-token", "hook-header", "address")]
        shown += [("--ro-bind-try", launch.run / SSH_CONFIG)]
        shown += [("--bind", place) for place in (data / "repos", data / "incoming", *around.linked)]
        mounts |= {place: Mount(("--ro-bind", str(what))) for what, place in around.secrets}
    else:
        shown += [("--ro-bind", place) for place in (data / "repos", *around.linked)]
    mounts |= {place: Mount((option, str(place))) for option, place in shown}
    option = "--bind" if around.nix_writable else "--ro-bind"
    return mounts | {place: Mount((option, str(what))) for what, place in around.nix}


def is_hidden(mounts: Mapping[Path, Mount], place: Path) -> bool:
    """Whether a job in a sandbox with these mounts does not come to what is at `place`."""
    hiding = {path for path, mount in mounts.items() if mount.hides}
    for seen in (seen_at(place, hiding), Path(os.path.realpath(place))):  # a link may lead out of what is shown
        nearest = next((mounts[path] for path in (seen, *seen.parents) if path in mounts), None)
        if nearest and nearest.hides:
            return True
    return False


def why_jobs_lack_objects(config: Config, repo: Path, name: str, bwrap: str | None) -> str | None:
    """Why the git of a job in the sandbox would miss objects of a repo, with the command that mends it, or None."""
    if bwrap is None or not os.path.lexists(repo / ALTERNATES):  # the machine is looked at for those few repos only
        return None
    slot = config.data_dir / "work" / name / "1"
    launch = Launch(PRE, slot / "tree", slot, slot, {}, repo, config.data_dir / "home" / name / PRE)
    mounts = sandbox_mounts(config, launch, look_around(config, bwrap, os.environ, None))
    return why_not_borrowed(repo, name, partial(is_hidden, mounts))


def look_around(config: Config, bwrap: str, environ: Mapping[str, str], secrets_dir: Path | None) -> Surroundings:
    """What of this machine matters to a sandbox. `environ` is the server's, `secrets_dir` what the job sees of the secrets."""
    private = [config.data_dir, config.secrets_dir, config.password_file, environ.get("CREDENTIALS_DIRECTORY"), *SECRET_PLACES]
    private += [
        home for home in (environ.get("HOME"), user_of(os.geteuid())[1]) if home and is_private_home(os.path.realpath(home))
    ]
    known_secrets = secret_places(config.secrets_dir)
    private += [place for place in known_secrets if is_kept_from_others(place)]
    hidden = {Path(os.path.realpath(place)) for place in private if place}
    tmp = {Path(os.path.realpath(place)) for place in TMP_PLACES}
    covered = hidden | tmp
    nix, nix_writable = find_nix(environ)

    def shown(places: Iterable[Path]) -> tuple[tuple[Path, Path], ...]:
        found = [(Path(os.path.realpath(place)), seen_at(place, covered)) for place in places]
        return tuple((what, place) for what, place in found if os.path.exists(what))

    return Surroundings(
        bwrap=bwrap,
        root=os.geteuid() == 0,
        folders=tuple(filter(os.path.isdir, hidden)),  # what the server's user cannot even look at needs no hiding
        files=tuple(filter(os.path.isfile, hidden)),
        tmp=tuple(filter(os.path.isdir, tmp)),
        programs=shown(forge_places() + [Path(place) for place in environ.get("PATH", "").split(":") if place.startswith("/")]),
        secrets=shown(secret_places(secrets_dir)),
        nix=shown(nix),
        nix_writable=nix_writable,
        linked=tuple(linked_repos(config, hidden)),
    )


def linked_repos(config: Config, hidden: set[Path]) -> Iterator[Path]:
    """Where links in `repos/` lead, if that is a repo and nothing else: a deployment may have made the link."""
    for link in config.repos.glob("*.git"):
        target = Path(os.path.realpath(link))
        if not (link.is_symlink() and is_repo_name(link.stem) and (target / "objects").is_dir() and (target / "HEAD").is_file()):
            continue
        secret = config.secrets_dir and target.is_relative_to(os.path.realpath(config.secrets_dir))
        if not secret and not any(place.is_relative_to(target) for place in hidden):
            yield target


def is_kept_from_others(place: Path) -> bool:
    """Whether not everybody on the machine may read what is there. A list of hosts in the store, say, is no secret."""
    try:
        return not place.stat().st_mode & stat.S_IROTH
    except OSError:  # nothing is there, or not for us
        return False


def is_private_home(home: str) -> bool:
    """Whether a home directory is somebody's own, and no directory of the system as daemons have it (real path)."""
    parts = Path(home).parts[1:]
    system = {"bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "nix", "proc", "sbin", "sys", "usr"}
    shared = {"home", "media", "mnt", "opt", "run", "srv", "tmp", "var"}
    return bool(parts) and parts[0] not in system and not (len(parts) == 1 and parts[0] in shared)


def user_of(uid: int) -> tuple[str, str | None]:
    """Name and home of a user, as the machine knows them; else the number."""
    import pwd

    try:
        known = pwd.getpwuid(uid)
        return known.pw_name, known.pw_dir
    except KeyError:
        return str(uid), None


def forge_places() -> list[Path]:
    """What the command `forge` needs to run; not the folder that forge.py lies in, which may be a home."""
    here, python = Path(__file__).resolve(), [Path(sys.prefix), Path(sys.base_prefix)]
    packages = [Path(bottle.__file__).parent, Path(psutil.__file__).parent.parent]
    return [here, here.parent / "__pycache__", asset("hooks"), asset("views"), *python, *packages]


def secret_places(secrets_dir: Path | None) -> list[Path]:
    """A folder with secrets, and what links in it lead to: agenix and sops-nix keep the secrets themselves below /run.

    Of a folder that a link leads to also what is in it: further links, and what is kept from others.
    """
    if secrets_dir is None:
        return []
    found, folders, looked, left = {secrets_dir: None}, deque([secrets_dir]), set(), SECRET_FILES
    while folders:
        folder = folders.popleft()
        real = Path(os.path.realpath(folder))
        if real in looked or real == Path("/"):
            continue
        looked.add(real)
        found[real] = None
        linked = real != secrets_dir
        inside = (Path(place) / name for place, names, files in os.walk(real) for name in names + files)
        for entry in itertools.islice(inside, left if linked else None):
            left -= linked  # what is linked may be large, and no folder of secrets
            with contextlib.suppress(OSError):  # it has just gone, or is not for us
                if entry.is_symlink():
                    target = entry.parent / os.readlink(entry)
                    found[target] = None
                    folders.extend([target] if target.is_dir() else [])
                elif linked and is_kept_from_others(entry):
                    found[entry] = None
    return list(found)


def find_nix(environ: Mapping[str, str]) -> tuple[list[Path], bool]:
    """Where Nix keeps what it has, and whether its programs write there themselves: no daemon does it for them."""
    store, state = environ.get("NIX_STORE_DIR") or "/nix/store", environ.get("NIX_STATE_DIR") or "/nix/var/nix"
    daemon = environ.get("NIX_DAEMON_SOCKET_PATH") or f"{state}/daemon-socket/socket"
    places = [environ.get("NIX_STORE_DIR") or "/nix", environ.get("NIX_STATE_DIR"), environ.get("NIX_LOG_DIR")]
    return [Path(place) for place in places if place], os.access(store, os.W_OK) and not os.path.exists(daemon)


def seen_at(path: Path, hidden: set[Path]) -> Path:
    """Where a job comes to when it opens `path`: links are followed until something hidden begins, where they are gone."""
    whole = Path(os.path.abspath(path))
    for top in [*reversed(whole.parents), whole]:
        real = Path(os.path.realpath(top))
        if real in hidden or not hidden.isdisjoint(real.parents):
            return real / whole.relative_to(top)
    return real


def why_no_sandbox(config: Config) -> str | None:
    """Why jobs cannot run under bubblewrap, or None when they can: trial runs with the arguments of jobs tell."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        return "bwrap is not on the PATH; install bubblewrap"
    probe = config.data_dir / "running" / f"probe-{os.getpid()}"
    try:
        for folder in ("tree", "tmp", "home"):
            (probe / folder).mkdir(parents=True, exist_ok=True)
        for kind in (PRE, POST):
            launch = Launch(kind, probe / "tree", probe, probe / "log", {}, config.data_dir, probe / "home")
            around = look_around(config, bwrap, os.environ, config.secrets_dir if kind == POST else None)
            command = [*sandbox_args(config, launch, around), "true"]
            tried = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=20)
            if tried.returncode:
                return f"{(tried.stderr.strip() or 'bwrap failed').splitlines()[-1]} ({SANDBOX_HELP})"
    except (OSError, subprocess.TimeoutExpired) as error:
        # on a full disk it cannot be tried; then jobs run in it or not at all, rather than without when there is room
        return None if lacks_room(error) else f"it cannot be tried: {error}"
    finally:
        shutil.rmtree(probe, ignore_errors=True)
    return None


def find_sandbox(config: Config) -> str | None:
    """The program that puts jobs into a sandbox, or None with a warning in the log. Raises NoSandbox."""
    reason = "FORGE_SANDBOX is none" if config.sandbox == "none" else why_no_sandbox(config)
    if reason is None:
        return shutil.which("bwrap")
    if config.sandbox == "bwrap":
        raise NoSandbox(f"FORGE_SANDBOX is bwrap, but jobs cannot run under it: {reason}")
    log(f"jobs run without a sandbox, so {WITHOUT_SANDBOX}: {reason}")
    return None


def sandbox_trouble(code: int | None, log_file: Path) -> str | None:
    """Why a job ended that never said what it runs, when bubblewrap did not get so far: its last words are in the log."""
    said = read_log(log_file, 0, 2000).decode("utf-8", "replace").strip().split("\n")[-1]
    if not code or code > 127 or (said and "bwrap" not in said):
        return None
    return f"its sandbox could not be set up: {said or f'exit code {code}'}"


# -- what could not be run: why a job ended with 126 or 127, or a tool of it says so ---------------------------

SCRIPT_BYTES = 1 << 16  # of a script that are looked at
MOST_NAMES = 200  # that are looked at, of one job
# How shells, env, make, Python and others say that a program cannot be started; some of them show a \r as two letters.
CANNOT_RUN = re.compile(
    r"not found|No such file|Permission denied|cannot execute|bad interpreter|Exec format error|\\r\b|\r'|-\r$|\r: "
)
NOT_RUN_INSIDE = re.compile(rb"(?:Error|code|status) 12[67]\b")  # as make, just and others tell of it
PROGRAM_NAMES = re.compile(r"[\w./+~@-]+")
MACHINES = {3: "i686", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv64"}  # e_machine in elf(5)
CRLF = "Windows line ends (CRLF)"
ELSEWHERE = "use one that lies elsewhere, as below /usr or /nix"


class View(NamedTuple):
    """What a job that has ended saw: its checkout, its PATH, and what its sandbox mounted ({} without one)."""

    tree: Path
    path: str
    mounts: Mapping[Path, Mount]

    def find(self, name: str) -> Path | None:
        """Where a program lies that the job calls by a name; None for one that is not on its PATH, seen or hidden."""
        if "/" in name:
            return Path(os.path.normpath(self.tree / name))
        places = (Path(folder) / name for folder in self.path.split(":") if folder.startswith("/"))
        there = [place for place in places if os.path.isfile(place) and os.access(place, os.X_OK)]
        return next((place for place in there if not self.hidden_in(place)), there[0] if there else None)

    def hidden_in(self, path: Path) -> Path | None:
        """The hidden place that a path leads the job to, links followed as they are for it; None where it sees it."""
        hidden = {place for place, mount in self.mounts.items() if mount.hides}
        for _ in range(40):  # links, as the kernel has it
            path = seen_at(path, hidden)
            nearest = next((place for place in (path, *path.parents) if place in self.mounts), None)
            if nearest in hidden or not os.path.islink(path):
                return nearest if nearest in hidden else None
            path = path.parent / os.readlink(path)
        return None

    def is_own(self, place: Path) -> bool:
        """Whether the job has a folder of its own at a hidden place, as at /tmp."""
        return self.mounts[place].option[0] == "--bind"

    def head(self, path: Path) -> bytes:
        """The beginning of a file that the job sees; nothing when it is none. No link in a checkout leads out of it."""
        real = Path(os.path.realpath(path))
        leads_out = self.tree in path.parents and Path(os.path.realpath(self.tree)) not in real.parents
        if leads_out or self.hidden_in(path):
            return b""
        with contextlib.suppress(OSError), open_plain(real, follow=False) as file:
            return file.read(SCRIPT_BYTES)
        return b""


def why_not_run(code: int, command: str, said: bytes, view: View) -> str | None:
    """What keeps a program of a job from running, in a sentence, and what to do; None when nothing is found.

    What the job says at its end (`said`) names the program. Where that is not enough, the command and its script do.
    Raises OSError.
    """
    lines = [line[:1000] for line in said.decode("utf-8", "replace").split("\n")[-50:] if CANNOT_RUN.search(line[:1000])]
    named = [name for line in reversed(lines) for name in PROGRAM_NAMES.findall(ANSI.sub("", line))]
    if code not in NOT_RUN and not NOT_RUN_INSIDE.search(said):  # it may be about files that are only read
        named = [name for name in named if "/" in name and not name.startswith("/")]
    elif code in NOT_RUN:
        words = PROGRAM_NAMES.findall(command)
        scripts = [path for word in words if "/" in word and (path := view.find(word))]
        if words[:1] == ["just"]:
            scripts += [view.tree / name for name in os.listdir(view.tree) if name.lower().lstrip(".") == "justfile"]
        named += words
        named += [name for path in scripts for name in PROGRAM_NAMES.findall(view.head(path).decode("utf-8", "replace"))]
    told = " ".join(lines)
    wanted = (name for name in dict.fromkeys(named) if re.search(r"\w", name) and "//" not in name)
    whys = [why for name in itertools.islice(wanted, MOST_NAMES) if (why := why_not(name, view, told))]
    by_line_ends = (why for why in whys if "\\r" in told and CRLF in why)  # `python3\r` is another than python3
    return next(by_line_ends, whys[0] if whys else None)


def why_not(name: str, view: View, told: str) -> str | None:
    """What keeps a program from running that a job calls by a name; `told` is what the job has said of such programs."""
    path = view.find(name)
    if path is None:
        return None
    inside = view.tree in path.parents
    called = str(path.relative_to(view.tree)) if inside else name if "/" in name else f"{name} ({path} on the PATH)"
    place = view.hidden_in(path)
    if place and (inside or ("/" in name and view.is_own(place))):
        return None
    if place:
        return f"{called} leads to {place}, which jobs do not see; {ELSEWHERE}"
    head = view.head(path)
    if inside and head.startswith((b"#!", b"\x7fELF")) and "Permission denied" in told and not os.access(path, os.X_OK):
        return f"{called} is not executable; run: git update-index --chmod=+x {called}"
    if head.startswith(b"\x7fELF") and "Exec format error" in told:
        machine = MACHINES.get(int.from_bytes(head[18:20], "big" if head[5] == 2 else "little"), "another machine")
        return None if machine == platform.machine() else f"{called} is for {machine}, and this machine is {platform.machine()}"
    first = head.partition(b"\n")[0]
    scripted = first.startswith(b"#!")
    if (scripted or path.suffix == ".sh") and (first.endswith(b"\r") or 2 * head.count(b"\r\n") > head.count(b"\n")):
        rule = f"*{path.suffix}" if path.suffix else called
        return f"{called} has {CRLF}; convert it and add `{rule} text eol=lf` to .gitattributes"
    return why_no_interpreter(called, head, view, inside) if scripted else None


def why_no_interpreter(called: str, head: bytes, view: View, inside: bool) -> str | None:
    """What keeps a script from running that is in order itself: what its first line asks for; of a shim, what it calls."""
    first, _, rest = head.decode("utf-8", "replace").partition("\n")
    asked, *words = first.removeprefix("#!").split() or [""]
    if not asked.startswith("/"):
        return None
    if place := view.hidden_in(Path(asked)):
        return f"{called} asks for {asked} in its first line, but jobs do not see {place}; {ELSEWHERE}"
    if not os.path.exists(asked):
        return f"{called} asks for {asked} in its first line, which does not exist on this machine"
    program = next((word for word in words if not re.match(r"-|\w+=", word)), "") if Path(asked).name == "env" else ""
    if program and view.find(program) is None:
        return f"{called} asks for {program} in its first line, which is not on the PATH of jobs"
    if inside:
        why = why_not(program, view, "") if program else None
        return why and f"{called} asks for {why}"
    calls = [name for line in rest.split("\n") if "exec" in line for name in PROGRAM_NAMES.findall(line) if name.startswith("/")]
    leads = ((name, place) for name in calls[:MOST_NAMES] if (place := view.hidden_in(Path(name))) and not view.is_own(place))
    return next((f"{called} calls {name}, but jobs do not see {place}; {ELSEWHERE}" for name, place in leads), None)


###############################################################################
# locks and holds: what a flake.lock names, and what must not come back
###############################################################################


LOCK = "flake.lock"
LOCK_BYTES = 1 << 20  # of a lock that the server reads
LOCKS_AT_ONCE = 16  # that are in memory
INPUTS_MOST = 1000  # of one lock
NO_LOCK: dict[str, Any] = {"nodes": {"root": {}}, "root": "root"}
INPUT_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9_-]{0,99}")  # as Nix takes one on its command line


class LockTrouble(ValueError):
    """A flake.lock does not allow what is wanted; the message is the end of a sentence."""


def parse_lock(text: str) -> dict[str, Any]:
    """What a flake.lock says, with nodes, inputs and root where they have to be. Raises LockTrouble."""
    try:
        lock: dict[str, Any] = json.loads(text)
        nodes = lock["nodes"]
        inputs = [given for node in nodes.values() for given in node.get("inputs", {}).values()]
        sources = [node.get(part, {}) for node in nodes.values() for part in ("locked", "original")]
        fits = lock["root"] in nodes and lock.get("version") in (5, 6, 7)
        fits = fits and all(type(given) is list or given in nodes for given in inputs)
        fits = fits and all(type(source) is dict for source in sources) and bool(lock_text(lock).encode())
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        fits = False
    if not fits:
        raise LockTrouble(f"{LOCK} is none that can be read")
    return lock


def lock_text(lock: Mapping[str, Any]) -> str:
    """A flake.lock, to the byte as Nix writes it."""
    return json.dumps(lock, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def lock_node(lock: Mapping[str, Any], name: str) -> Any:
    """The node of an input of the flake itself; a list where it follows another input, None where there is none."""
    given = lock["nodes"][lock["root"]].get("inputs", {}).get(name)
    return lock["nodes"][given] if isinstance(given, str) else given


def locked_commit(lock: Mapping[str, Any], name: str) -> str | None:
    """The commit that an input of the flake itself is locked to, or None."""
    node = lock_node(lock, name)
    commit = node.get("locked", {}).get("rev") if isinstance(node, dict) else None
    return commit if isinstance(commit, str) and OBJECT_ID.fullmatch(commit) else None


def locked_inputs(lock: Mapping[str, Any]) -> dict[str, str]:
    """The commit that each input of the flake itself is locked to, by its name; what follows another one is left out."""
    names = itertools.islice(lock["nodes"][lock["root"]].get("inputs", {}), INPUTS_MOST)
    commits = {name: locked_commit(lock, name) for name in names if name.isprintable() and len(name) <= 100}
    return {name: commit for name, commit in commits.items() if commit}


def read_locks(repo: Path, revisions: Iterable[str]) -> dict[str, dict[str, str]]:
    """The `locked_inputs` of commits or trees; none where there is no lock, or one that is too large or cannot be read.

    Raises GitError.
    """
    revisions = list(dict.fromkeys(revisions))
    asked = "".join(f"{revision}:{LOCK}\n" for revision in revisions)
    told = git(repo, "cat-file", "--batch-check", text=asked).split("\n")
    blobs = {}  # by revision
    for revision, (object_id, *about) in zip(revisions, map(str.split, told), strict=False):
        if about[0] == "blob" and int(about[1]) <= LOCK_BYTES:
            blobs[revision] = object_id
    found: dict[str, dict[str, str]] = {}
    wanted = sorted(set(blobs.values()))
    for at in range(0, len(wanted), LOCKS_AT_ONCE):
        some = wanted[at : at + LOCKS_AT_ONCE]
        rest = git(repo, "cat-file", "--batch", text="".join(f"{blob}\n" for blob in some)).encode("utf-8", "surrogateescape")
        for blob in some:
            header, _, rest = rest.partition(b"\n")
            size = int(header.split()[2])
            with contextlib.suppress(LockTrouble):
                found[blob] = locked_inputs(parse_lock(rest[:size].decode("utf-8", "replace")))
            rest = rest[size + 1 :]
    return {revision: found.get(blobs.get(revision, ""), {}) for revision in revisions}


def bumped_inputs(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str]:
    """The inputs that `after` locks to another commit than `before`, each with that commit; both as `locked_inputs` has them."""
    return {name: commit for name, commit in sorted(after.items()) if before.get(name) != commit}


def graft_inputs(base: Mapping[str, Any], other: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """`base` with some of its flake's inputs, and all that these reach, taken from `other`.

    Nodes are named as Nix names them when it writes a lock, those that nothing reaches are left out. Raises LockTrouble.
    """
    taken = {name: other["nodes"][other["root"]]["inputs"][name] for name in names}
    sides = (base["nodes"], other["nodes"])
    nodes: dict[str, Any] = {}
    known: dict[tuple[int, str], str] = {}
    used = Counter[str]()  # how often a name was wanted

    def put(side: int, key: str, wanted: str) -> str:
        """Copy a node and what it reaches, and return its name."""
        if (side, key) not in known:
            used[wanted] += 1
            spelled = (wanted if n == 1 else f"{wanted}_{n}" for n in itertools.count(used[wanted]))
            name = known[side, key] = next(spelling for spelling in spelled if spelling not in nodes)
            node = nodes[name] = dict(sides[side][key])
            inputs = sorted(node.get("inputs", {}).items())
            ours = taken if (side, key) == (0, base["root"]) else {}
            if inputs:
                node["inputs"] = {
                    child: put(1, ours[child], child)
                    if child in ours
                    else put(side, given, child)
                    if type(given) is str
                    else given
                    for child, given in inputs
                }
        return known[side, key]

    try:
        return {**base, "nodes": nodes, "root": put(0, base["root"], "root")}
    except RecursionError:
        raise LockTrouble(f"the inputs in {LOCK} are nested too deep") from None


def renewed_lock(
    before: Mapping[str, Any],
    base: Mapping[str, Any],
    bump: Mapping[str, Any],
    overtakes: Callable[[Mapping[str, Any], Mapping[str, Any]], bool],
) -> dict[str, Any] | None:
    """The lock of base with what a bump has changed since `before`; None when base has all of that, or newer.

    `overtakes` says of two sources, that of base and that of the bump, whether the first is newer. Raises LockTrouble.
    """
    bumped = bumped_inputs(locked_inputs(before), locked_inputs(bump))
    if not bumped:
        raise LockTrouble("it locks no input to another commit")
    names = []
    for name, commit in bumped.items():
        ours, theirs, present = lock_node(base, name), lock_node(bump, name), locked_commit(base, name)
        if not isinstance(ours, dict):
            raise LockTrouble(f"base has no input {name} of its own any more")
        if ours.get("original") != theirs.get("original"):
            raise LockTrouble(f"base takes the input {name} from elsewhere by now")
        if present != commit and not (present and overtakes(ours["locked"], theirs["locked"])):
            names.append(name)
    return graft_inputs(base, bump, names) if names else None


def flake_url(source: Mapping[str, Any], commit: str) -> str:
    """The flake reference by which Nix takes exactly `commit` of an input's source. Raises LockTrouble."""
    kind, about = source.get("type"), {"rev": commit}
    about |= {key: "1" if value is True else str(value) for key, value in source.items() if key not in ("type", "url", "rev")}
    if kind in ("git", "hg"):
        return f"{kind}+{source['url']}?{urlencode(about, safe='/')}"
    if kind in ("github", "gitlab", "sourcehut"):
        more = {str(key): about[key] for key in ("host", "dir") if key in about}
        return f"{kind}:{source['owner']}/{source['repo']}/{commit}" + (f"?{urlencode(more, safe='/')}" if more else "")
    raise LockTrouble(f"its source is of the type {shorten(kind)}, which names no commit; take it with git+ in flake.nix")


LINE_MOST = 1000  # commits of base's own line among which somebody may roll back, or put one on hold
UNDONE_NAMED = 20  # commits that the message of a rollback names
BROUGHT_WALK, BROUGHT_NAMED, AUTHORS_NAMED = 1000, 20, 10  # commits of a deployment that are looked at, shown; their authors


class Held(NamedTuple):
    """That a merge would bring back what is on hold: by which hold, and in words."""

    commit: str
    words: str


def as_pairs(inputs: Mapping[str, str]) -> list[dict[str, str]]:
    """Inputs and their commits, as a hold and its record have them."""
    return [{"input": name, "commit": commit} for name, commit in inputs.items()]


def built_on(line: Mapping[str, Landed], commit: str) -> dict[str, Landed]:
    """What a commit of base has of base's own line, newest first: what a rollback took back is left out."""
    found = {}
    while landed := line.get(commit):
        found[commit] = landed
        commit = landed.rollback_to if landed.is_rollback else landed.parents.split(" ")[0]
    return found


def taken_back(line: Mapping[str, Landed], tip: str, target: str) -> list[Landed]:
    """The commits of base that a rollback from `tip` to `target` takes back, oldest first.

    Not what an earlier one took back already (its hold may have been lifted since), but what one brought again.
    """
    kept = built_on(line, target)
    return [landed for commit, landed in built_on(line, tip).items() if commit not in kept][::-1]


def holds_of(
    undone: Iterable[Landed], tree: str, locks: Mapping[str, Mapping[str, str]], kept: Mapping[str, str]
) -> list[dict[str, Any]]:
    """The holds on commits of base (oldest first) that a rollback to `tree` takes back, for their records.

    `locks` has the locked inputs of the commits and their first parents, `kept` those of the commit gone back to. A rollback
    brought nothing, and what base has again is not held.
    """
    placed = []
    for landed in undone:
        if landed.tree == tree or landed.is_rollback:
            continue
        before = locks.get(landed.parents.split(" ")[0], {})
        brought = bumped_inputs(kept, bumped_inputs(before, locks[landed.commit]))
        placed.append({"commit": landed.commit, "tree": landed.tree, "inputs": as_pairs(brought)})
    return placed


def lifted_by(holds: Sequence[Hold], target: str, tree: str) -> list[str]:
    """The commits whose holds end when base goes to a commit (and its tree) on purpose: its own, and what it was built on.

    That is what the same rollback took back before it.
    """
    lifted = []
    for number, hold in enumerate(holds):
        if hold.commit == target or hold.tree == tree:
            lifted += [one.commit for one in holds[:number] if one.rollback and one.rollback == hold.rollback]
            lifted.append(hold.commit)
    return list(dict.fromkeys(lifted))


def held_by(repo: str, holds: Iterable[Hold], tree: str, before: Mapping[str, str], after: Mapping[str, str]) -> Held | None:
    """The first hold on what a merge would bring: its tree, or an input locked as on hold. `before` and `after` are the locks."""
    brought = bumped_inputs(before, after)
    for hold in holds:
        found = [(pair["input"], pair["commit"]) for pair in hold.inputs if brought.get(pair["input"]) == pair["commit"]]
        back = [f"the input {name} at {commit[:12]}" for name, commit in found]
        back += [f"the tree of {hold.commit[:12]}"] if hold.tree == tree else []
        if back:
            since = f"on hold since {hold.since[:16].replace('T', ' ')} UTC ({hold.reason})"
            lift = f"forge hold {repo} {hold.commit[:12]} --lift"
            return Held(hold.commit, f"it would bring back {' and '.join(back[:3])}, {since}; to let it through: {lift}")
    return None


def hold_view(repo: str, hold: Hold) -> dict[str, Any]:
    """A hold as programs see it."""
    return {"repo": repo, **vars(hold)}


class Commit(NamedTuple):
    """A commit of a merge request."""

    id: str
    author: str
    authored_at: str | None
    subject: str


class Brought(NamedTuple):
    """What a deployment brings: base's own line, newest first, and the commits that people wrote."""

    line: tuple[Landed, ...] = ()
    commits: tuple[Commit, ...] = ()  # the newest of them
    written: int = 0  # how many of them there are
    authors: tuple[tuple[str, int], ...] = ()  # those who wrote most, and how many
    whole: bool = True  # whether all were looked at


def brought_of(walk: Sequence[tuple[Landed, str]], tip: str, whole: bool) -> Brought:
    """What a deployment of `tip` brings, from the commits with their authors (pure)."""
    commits = {landed.commit: landed for landed, _ in walk}
    line, at = [], tip
    while at in commits:
        line.append(commits[at])
        at = commits[at].parents.split(" ")[0]
    ours = {landed.commit for landed in line if landed.claims}
    written = [(landed, author) for landed, author in walk if landed.commit not in ours]
    shown = [Commit(landed.commit, author[:100], landed.authored_at, landed.subject) for landed, author in written]
    authors = Counter(author[:100] for _, author in written).most_common(AUTHORS_NAMED)
    return Brought(tuple(line), tuple(shown[:BROUGHT_NAMED]), len(written), tuple(authors), whole)


def read_brought(repo: Path, base: str, tip: str) -> Brought:
    """What base gained from `base` ("": from nothing) to `tip`. Raises GitError."""
    how = (f"--max-count={BROUGHT_WALK + 1}", "--topo-order", *([f"^{base}"] if base else []))
    walked = read_landed(repo, tip, *how).values()
    landed = [one._replace(parents=one.parents[:200], subject=one.subject[:200]) for one in walked]  # it is kept
    text = "".join(f"{one.commit}\n" for one in landed)
    names = git(repo, "log", "--no-walk=unsorted", "--stdin", "-z", "--format=%an", text=text).split("\0") if text else []
    walk = list(zip(landed, names, strict=False))
    return brought_of(walk[:BROUGHT_WALK], tip, len(walk) <= BROUGHT_WALK)


def rollback_message(target: str, undone: Sequence[Landed], job_id: int) -> str:
    """The message of a commit that gives base an earlier tree again; `undone` are the commits it takes back, newest first."""
    listed = [f"- {landed.commit[:12]} {visible(landed.subject, 100)}" for landed in undone[:UNDONE_NAMED]]
    listed += [f"- and {len(undone) - UNDONE_NAMED} more"] if len(undone) > UNDONE_NAMED else []
    said = f"The tree is that of {target} again. This takes back:\n\n" + "\n".join(listed)
    job = f"Forge-Job: {job_id}\n" if job_id else ""
    return f"Forge Rollback: {target[:12]}\n\n{said}\n\nForge-Rollback-To: {target}\n{job}"


###############################################################################
# gate: what is new, what is to be done, what keeps a branch from merging (pure)
###############################################################################


class Queue(NamedTuple):
    """Test heads: passed ones chained on the base that is there now (retest), or what was interrupted (rerun, rollback)."""

    heads: tuple[tuple[str, str], ...]  # (branch, commit), in landing order
    cause: str
    retry_of: int | None = None


class Merge(NamedTuple):
    """Move base to the candidate that a job tested, and remove its branches; or roll back. `how` is for each of its heads."""

    job: Job
    how: tuple[str, ...]


class Blame(NamedTuple):
    """Tell a branch that it breaks base, by the job that showed it."""

    branch: str
    head: str
    job: int


class Waiting(NamedTuple):
    """A branch in the line to be merged."""

    name: str
    branch: Branch
    how: str
    place: int  # the record that put it in the line, and when
    since: str


class Facts(NamedTuple):
    """What the gate has to know of a head beside the journal: does it ask for a merge, how does it merge with base."""

    auto_merge: bool
    merged: Merged
    held: Held | None = None
    unheard: str = ""  # as in `CommitFacts`


def parse_hook_lines(text: str, at: str) -> Push:
    """A push from the lines that git gives its hook, with a line ``option <text>`` for each push option. Raises Refused."""
    updates, options = [], []
    for line in text.split("\n"):
        word, _, rest = line.partition(" ")
        if word == "option":
            options.append(rest)
        elif line:
            new, _, ref = rest.partition(" ")
            updates.append(check_update(word, new, ref))
    return Push(tuple(updates), tuple(options), at)


def check_update(old: object, new: object, ref: object) -> Update:
    """An update as a hook gives it. Raises Refused for what git would never say."""
    if not (
        isinstance(ref, str) and ref.startswith("refs/") and not re.search(r"[\x00-\x20\x7f\ud800-\udc7f\udd00-\udfff]", ref)
    ):
        raise Refused(400, f"{shorten(ref)} is no full ref name, like refs/heads/main")
    for value in (old, new):
        if not (isinstance(value, str) and OBJECT_ID.fullmatch(value)):
            raise Refused(400, f"{shorten(value)} is no object id: 40 or 64 hex digits")
    return Update(str(old), str(new), ref)


JSON_KINDS = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
JSON_KINDS |= {type(None): "null"}


def json_object(body: bytes) -> dict[str, Any]:
    """The JSON object that a request's body is; of fields with the same name the last counts, as in a form. Raises Refused."""
    try:
        said = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise Refused(400, "the body cannot be parsed as JSON") from None
    if not isinstance(said, dict):
        raise Refused(400, f"the body is {JSON_KINDS[type(said)]}, but must be a JSON object")
    return said


def _no_constant(name: str) -> None:
    raise ValueError(f"JSON has no {name}")


def parse_hook_json(body: bytes, at: str) -> tuple[str, Push]:
    """(repo, push) from the JSON that /hooks/post-receive takes. Raises Refused."""
    said = json_object(body)
    updates, options = said.get("updates", [said] if "ref" in said else None), said.get("options", [])
    if not isinstance(updates, list) or not all(isinstance(u, dict) for u in updates):
        raise Refused(400, "updates must be a list of objects with ref, oldrev and newrev")
    if not isinstance(options, list) or not all(isinstance(o, str) for o in options):
        raise Refused(400, "options must be a list of texts")
    checked = tuple(check_update(u.get("oldrev"), u.get("newrev"), u.get("ref")) for u in updates)
    repo = said.get("repo")
    if not is_repo_name(repo):
        raise Refused(400, f"repo is {shorten(repo)}, which is no name of a repo")
    return str(repo), Push(checked, tuple(options), at)


def choose_base(refs: Refs, push: Push, born: bool) -> str | None:
    """Which branch becomes base while the one that HEAD names does not exist: the only one pushed, or main or master.

    Without a push only a repo that never had a base gets one: that its push was not told must not matter.
    """
    candidates = {u.branch for u in push.updates if u.branch in refs.heads}
    if not candidates and not born:
        candidates = set(refs.heads)
    if len(candidates) == 1:
        return candidates.pop()
    return next((name for name in ("main", "master") if name in candidates), None)


def notice(name: str, state: State, refs: Refs, push: Push, first_id: int) -> list[Event]:
    """What is new in a repo: the events that bring the journal level with its refs. A head gets one job, whoever saw it.

    New jobs are numbered from `first_id` on.
    """
    known = state.repos.get(name)
    events: list[Event] = []
    if known is None:
        # a repo that was copied in starts from what it holds; one that this push has begun starts from nothing
        before = next((u.old for u in push.updates if u.branch == refs.base), refs.tip)
        known = Repo(refs.base, None if before is None or is_null(before) else before)
        events.append(("repo.found", {"repo": name, "base": known.base, "tip": known.tip}))
    fresh = iter(range(first_id, first_id + len(refs.heads) + 1))
    if (known.base, known.tip) != (refs.base, refs.tip):
        events += _notice_base(name, state, known, refs, fresh)
    deleted = {u.branch for u in push.updates if is_null(u.new)}
    queued: list[Event] = []
    again = set()  # branches that were deleted and pushed anew
    for branch in filter(refs.ahead.__contains__, refs.heads):
        seen, job = known.branches.get(branch), state.newest_job(name, branch)
        if seen and branch in deleted and (job is None or job.created_at < push.at):
            again.add(branch)
            queued.append(("branch.gone", {"repo": name, "branch": branch, "head": seen.head}))
        if seen is None or seen.head != refs.heads[branch] or branch in again:
            queued.append(queue_job(next(fresh), name, PRE, ((branch, refs.heads[branch]),), "push"))
    for branch, seen in known.branches.items():
        if branch not in refs.heads:
            queued.append(("branch.gone", {"repo": name, "branch": branch, "head": seen.head}))
    for job in state.live_jobs(name):
        unwanted = why_unwanted(job, refs, again)
        if unwanted and job.stoppable:
            events.append(end_job(job, *unwanted))
    events += queued
    if "merge" in push.options:
        for update in push.updates:
            if update.branch in refs.ahead and refs.heads[update.branch] == update.new:
                asked = {"repo": name, "branch": update.branch, "head": update.new, "how": "auto"}
                events.append(("merge.asked", asked))
    return events


def why_unwanted(job: Job, refs: Refs, again: set[str]) -> tuple[str, str] | None:
    """(status, reason) to end a live job with, since what it tests is of no interest any more. `again` were pushed anew."""
    if job.kind == POST:
        return None
    if not job.is_first and (job.base != refs.tip or (job.is_rollback and job.branch != refs.base)):
        return "superseded", f"{refs.base} has moved on{'; roll back again' if job.is_rollback else ''}"
    if job.is_rollback:
        return None
    for branch, commit in pairs(job.heads):
        status, reason = "canceled", ""
        if branch not in refs.heads:
            reason = f"{branch} was deleted"
        elif branch == refs.base:
            reason = f"{branch} is base now"
        elif refs.heads[branch] != commit or branch in again:
            status, reason = "superseded", f"a newer push to {branch}"
        elif refs.tip is not None and branch not in refs.ahead:
            reason = f"nothing to merge any more: {refs.base} contains {branch}"
        if reason:
            return status if job.is_first else "superseded", reason  # the other heads go on
    return None


def _notice_base(name: str, state: State, known: Repo, refs: Refs, fresh: Iterator[int]) -> list[Event]:
    moved = {"repo": name, "branch": refs.base, "old": known.tip, "new": refs.tip}
    events: list[Event] = [("base.moved", moved)]
    if refs.tip is not None and refs.base is not None and refs.tip != known.tip:
        before = known.undeployed or known.tip
        for job in state.live_jobs(name):
            if job.kind == POST and job.status == "pending" and not job.stopping:
                events.append(end_job(job, "superseded", f"{refs.base} moved on before this was deployed"))
                before = job.base
        events.append(queue_job(next(fresh), name, POST, ((refs.base, refs.tip),), "push", base=before))
    return events


def queue_job(job_id: int, repo: str, kind: str, heads: Iterable[tuple[str, str]], cause: str, **values: Any) -> Event:
    """The event that makes a job of heads, (branch, commit) in landing order."""
    named = [{"branch": branch, "commit": commit} for branch, commit in heads]
    job = Job(job_id, repo, named[-1]["branch"], kind, named[-1]["commit"], named, now(), cause=cause, **values)
    return "job.queued", job_record(job)


def candidate_of(base: str, chain: list[list[str]]) -> dict[str, Any]:
    """What a job tests, for its record: merges chained on `base`, [commit, tree] each."""
    return {"base": base, "tested": chain[-1][0], "tree": chain[-1][1], "chain": chain}


def end_job(job: Job, status: str, reason: str) -> Event:
    """The event that ends a job before its time: at once if it is pending, by stopping it if it runs."""
    if job.status == "running":
        return "job.stopping", {"id": job.id, "status": status, "reason": reason}
    return "job.finished", job_record(replace(job, status=status, reason=reason, finished_at=now(), stopping=None))


def wish_of(branch: Branch, facts: Facts) -> str | None:
    """How a branch would merge now: "manual" when somebody asked, "auto" by push option or trailer, None."""
    return branch.asked or ("auto" if facts.auto_merge else None)


def line_up(
    known: Repo, refs: Refs, jobs: Mapping[int, Job], facts: Mapping[str, Facts], apart: Iterable[str] = ()
) -> list[Waiting]:
    """The branches that passed, are wished for and merge cleanly, in the order in which they became so.

    Heads that are `apart` cannot be merged for a reason of their own, and hold up nobody.
    """
    line = []
    for name, branch in known.branches.items():
        job, about = jobs.get(branch.job or 0), facts.get(branch.head)
        if (
            branch.head in apart
            or branch.passed is None
            or about is None
            or about.merged.tree is None
            or about.held
            or job is None
            or (job.live and job.is_first)
        ):
            continue
        how = wish_of(branch, about)
        if how and name in refs.ahead and refs.heads.get(name) == branch.head:
            asked = (branch.asked_seq, branch.asked_at) if how == "manual" and not about.auto_merge else (0, "")
            line.append(Waiting(name, branch, how, *max((branch.passed, branch.passed_at), asked)))
    return sorted(line, key=lambda waiting: waiting.place)


def decide(
    known: Repo, refs: Refs, jobs: Mapping[int, Job], facts: Mapping[str, Facts], moment: float = 0.0, apart: Iterable[str] = ()
) -> Queue | Merge | Blame | None:
    """The next thing to do in a repo, or None.

    `jobs` are those of the repo that are live or the newest of a branch, `facts` are of every open head that passed,
    `moment` is the time in seconds since the epoch. First tests go before tests of the queue; what is in the line is
    chained and tested together; what fails together is halved until the one at fault is found.
    """
    for name, branch in sorted(known.branches.items(), key=lambda item: item[1].job or 0):
        job = jobs.get(branch.job or 0)
        there = refs.heads.get(name) == branch.head and name in refs.ahead
        if job and there and job.is_first and job.interrupted and job.cause != "rerun":
            return Queue(((name, branch.head),), "rerun", job.id)
    rollback = jobs.get(known.rollback or 0)
    if rollback:  # nothing else is to land before it
        if rollback.live or rollback.commit in apart:
            return None
        if rollback.status == "passed":
            return Merge(rollback, ("rollback",))
        return Queue(pairs(rollback.heads), "rollback", rollback.id)
    newest = jobs.get(known.queue_job or 0)
    if newest and newest.live:
        return None
    line = line_up(known, refs, jobs, facts, apart)
    if not line:
        return None
    lined = {waiting.name: waiting for waiting in line}

    def all_lined(heads: list[dict[str, str]]) -> bool:
        return all(name in lined and lined[name].branch.head == head for name, head in pairs(heads))

    passed = jobs[line[0].branch.job or 0]
    # several may come to a tree that is on hold, although none of them does alone
    held = len(passed.chain) > 1 and not held_trees(known).isdisjoint(tree for _, tree in passed.chain)
    if passed.status == "passed" and passed.chain and not held and passed.base == refs.tip and all_lined(passed.heads):
        return Merge(passed, tuple(lined[name].how for name, _ in pairs(passed.heads)))
    if newest and newest.interrupted and newest.retry_of is None and all_lined(newest.heads):
        return Queue(pairs(newest.heads), "retest", newest.id)
    if known.suspects and known.suspects_on == refs.tip and all_lined(known.suspects):
        suspects = pairs(known.suspects)
        against = jobs[lined[suspects[0][0]].branch.job or 0]
        if against.interrupted and len(against.heads) > len(suspects):  # no verdict at all
            return Queue(suspects, "retest")
        if len(suspects) == 1:
            return Blame(*suspects[0], against.id)
        return Queue(suspects[: len(suspects) // 2], "retest")
    first_tests = [job.id for job in jobs.values() if job.live and job.is_first]
    # not to be starved by new pushes; but what was pushed at once is not tested together more than once before its end
    overdue = moment - seconds_of(line[0].since) > 2 * line[0].branch.took
    if first_tests and not (overdue and max(first_tests) > known.early_job):
        return None
    return Queue(tuple((waiting.name, waiting.branch.head) for waiting in line), "retest")


def held_trees(known: Repo) -> set[str]:
    """The trees of a repo that are on hold."""
    return {hold.tree for hold in known.holds.values()}


def pairs(heads: list[dict[str, str]]) -> tuple[tuple[str, str], ...]:
    """The heads of a job as (branch, commit)."""
    return tuple((head["branch"], head["commit"]) for head in heads)


def why_blocked(
    name: str, refs: Refs, known: Repo, job: Job | None, merged: Merged | None, held: Held | None = None
) -> list[str]:
    """What keeps a branch from being merged into base when somebody asks for it, in words; [] when nothing does.

    `job` is its newest job.
    """
    branch = known.branches.get(name)
    if refs.tip is None:
        return [f"there is no base: HEAD names {refs.base or 'no branch'}, which does not exist"]
    if name not in refs.ahead:
        return [f"nothing to merge: {refs.base} contains all of {name}"]
    blockers = []
    if job is None or branch is None or branch.head != refs.heads.get(name):
        blockers.append("it has not been tested yet")
    elif branch.fault is not None and not job.live:
        blockers.append(_fault(job, branch))
    elif branch.passed is None or job.live:
        blockers.append(_job_blocker(job))
    elif is_suspect(known, refs, name):
        together = " and ".join(head["branch"] for head in job.heads)
        blockers.append(f"job {job.id} failed for {together} together; the one at fault is being looked for")
    if merged and merged.unrelated:
        blockers.append(f"it has no common history with {refs.base}; rebase it onto {refs.base} and push again")
    elif merged and merged.trouble:
        blockers.append(f"{merged.trouble}; make it smaller and push again")
    elif merged and merged.conflicts:
        paths = ", ".join(merged.conflicts[:5]) + (f" and {len(merged.conflicts) - 5} more" if len(merged.conflicts) > 5 else "")
        blockers.append(f"it conflicts with {refs.base} in {paths}; merge or rebase onto {refs.base} and push again")
    if held:
        blockers.append(held.words)
    if known.rollback is not None:
        blockers.append(
            f"{refs.base} is being rolled back, which job {known.rollback} tests; nothing is merged before that is done"
        )
    return blockers


def is_suspect(known: Repo, refs: Refs, name: str) -> bool:
    """Whether a branch is among those that failed together, of which the one at fault is being looked for."""
    suspect = {"branch": name, "commit": refs.heads.get(name)}
    return len(known.suspects) > 1 and known.suspects_on == refs.tip and suspect in known.suspects


def _fault(job: Job, branch: Branch) -> str:
    """What a branch is told that passed alone and breaks base."""
    others = branch.fault or []
    named = ", ".join(others[:20]) + (f" and {len(others) - 20} more" if len(others) > 20 else "")
    with_whom = f"together with what was merged since ({named})" if others else "on base as it is by now"
    said = f" ({job.reason})" if job.reason else ""
    return f"it passed alone, but fails {with_whom}: job {job.id} ended as {job.status}{said}; push a fix, or retry it"


def _job_blocker(job: Job) -> str:
    """Why the newest job of a head is no reason to merge."""
    together = f", which tests it together with {len(job.heads) - 1} more" if len(job.heads) > 1 else ""
    if job.status == "pending":
        return f"job {job.id} waits for its turn{together}"
    if job.status == "running":
        return f"job {job.id} is running{together}"
    if job.status == "skipped":
        return f"job {job.id} was skipped, nothing was tested: {job.reason}"
    said = f" ({job.reason})" if job.reason else ""
    return f"job {job.id} ended as {job.status}{said}; push a fix, or retry it"


def verdict_of(
    job: Job, code: int | None, command: str | None, skipped: str | None, trouble: str | None, why: str | None = None
) -> tuple[str, str | None]:
    """(status, reason) of a job that is over. `code` is None without a verdict; `trouble` is why it never ran.

    `why` is what it could not run, see `why_not_run`.
    """
    if job.stopping:
        return job.stopping[0], job.stopping[1]
    if trouble:
        return "failed", trouble
    if code is None:
        return "failed", "interrupted: its processes are gone without a verdict (a reboot, or something killed them)"
    if skipped and code == 0:
        return "skipped", skipped
    return ("failed" if code else "passed"), exit_reason(code, command, why)


def why_no_retry(old: Job, refs: Refs, live: Iterable[Job], rolling: Job | None = None) -> str | None:
    """Why a job cannot be run again, or None: what refuses a retry, and what a page asks before it offers one.

    `live` are the repo's pending and running jobs, `rolling` is the one that tests a rollback.
    """
    if old.live:
        return f"job {old.id} has not ended yet: {old.status}"
    if old.is_rollback and (refs.base, refs.tip) != (old.branch, old.base):
        at = (refs.tip or "nothing")[:12]
        return f"job {old.id} tested a rollback of {(old.base or '')[:12]}, but {refs.base or 'base'} is at {at}; roll back again"
    if old.kind == POST and refs.tip != old.commit:
        return f"job {old.id} deployed {old.commit[:12]}, but base is at {(refs.tip or 'nothing')[:12]}; roll back instead"
    if old.kind == PRE and not old.is_rollback and not still_open(old, refs):
        head = refs.heads.get(old.branch)
        stands = "is gone" if head is None else "has nothing to merge" if head == old.commit else f"is at {head[:12]} now"
        return f"job {old.id} tested {old.commit[:12]}, but {old.branch} {stands}; push again to have it tested"
    for job in live:
        if job.kind == old.kind and (old.kind == POST or set(pairs(job.heads)) & set(pairs(old.heads))):
            return f"job {job.id} is {job.status} for this {'deployment' if old.kind == POST else 'head'} already"
        if job.kind == PRE and not job.is_first and not old.is_first:
            return f"job {job.id} is {job.status} for the queue; retry when it has ended"
    return why_no_rollback_test(rolling) if old.is_rollback and rolling else None


def why_no_rollback_test(rolling: Job) -> str:
    """Why no other rollback is tested while one is."""
    wait = "wait for it, cancel it, or do without a test (untested=1, --untested)"
    return f"job {rolling.id} tests a rollback to {rolling.commit[:12]} already; {wait}"


def why_no_rollback(base: str, tip: str, trees: Mapping[str, str], commit: str) -> str | None:
    """Why base cannot be given the tree of a commit, or None. `trees` are those of the commits of base's own line."""
    if commit not in trees:
        return f"{commit[:12]} is not among the newest {LINE_MOST} commits of {base}'s own line (first parents)"
    if trees[commit] == trees[tip]:
        return f"{base} {'is at' if commit == tip else 'has the tree of'} {commit[:12]} already; there is nothing to roll back"
    return None


def why_no_merge(blockers: Iterable[str], job: Job | None) -> list[str]:
    """What refuses a merge that is asked for now: all that blocks it, but not its own test, for which it can wait."""
    return [blocker for blocker in blockers if not (job and job.live and blocker == _job_blocker(job))]


def still_open(job: Job, refs: Refs) -> tuple[tuple[str, str], ...]:
    """The heads of a pre-merge job at which their branches still are, with something to merge."""
    return tuple(pair for pair in pairs(job.heads) if refs.heads.get(pair[0]) == pair[1] and pair[0] in refs.ahead)


def explain(blockers: list[str], how: str | None, stale: bool, unheard: str = "") -> str:
    """The gate's verdict on an open branch in one sentence."""
    if blockers:
        return "; ".join(blockers)
    if how and stale:
        return "it passed on an older base and waits to be tested on the new one, with what else is ready"
    if how:
        return "it passed and is in line to be merged"
    again = ", after another test since base has moved on" if stale else ""
    return f"it passed, and merges when somebody asks{again}: {unheard or 'its head commit has no trailer Auto-Merge: yes'}"


###############################################################################
# news: what FORGE_NOTIFY is told
###############################################################################


NEWS_EVENTS = ("job.finished", "merged")
NEWS_WAITING = 1000  # records, then the newest are dropped
NEWS_SECONDS = 30.0  # that the command may take for one piece of news
NEWS_LEAVE_SECONDS = 2.0  # that the end of the server waits for the command


def news_of(record: Mapping[str, Any], before: str | None, url: str) -> list[dict[str, Any]]:
    """What there is to tell of a new record of the journal; `before` is the verdict that a job follows."""
    if record["event"] == "merged":
        events = ["rolled-back" if record.get("how") == "rollback" else "merged"]
        job_id, commit, at = record["job"], record["merge_commit"], record.get("merged_at") or record["at"]
        about = {"head": record["head"], "how": record.get("how")}
        page = f"{url}/jobs/{job_id}" if job_id else f"{url}/r/{record['repo']}/history"
    else:
        job_id, commit, at = record["id"], record["commit"], record.get("finished_at") or record["created_at"]
        passed = record["status"] == "passed"
        told = {
            "job.failed": record["status"] in FAILED,
            "job.recovered": passed and before in FAILED,
            "deployed": passed and record["kind"] == POST,
        }
        events = [event for event, true in told.items() if true]
        about = {name: record.get(name) for name in ("kind", "status", "reason", "exit_code", "duration", "digest")}
        about["branches"] = [head["branch"] for head in record["heads"]]
        page = f"{url}/jobs/{job_id}"
    place = {"repo": record["repo"], "branch": record["branch"], "commit": commit, "job": job_id or None, "url": page}
    return [{"event": event, **place, **about, "at": at} for event in events]


class Herald:
    """Runs FORGE_NOTIFY for each piece of news, in order and one at a time, in a thread that nobody waits for."""

    def __init__(self, command: str, environ: Mapping[str, str], news: Callable[[Mapping[str, Any]], list[dict[str, Any]]]):
        """`news` makes pieces of news from a record; the thread calls it with no lock held."""
        self.command, self.environ, self.news = command, environ, news
        self.lock = threading.Condition()  # guards the four below; the engine's may be held when it is taken, not the other way
        self.waiting: deque[Mapping[str, Any]] = deque()
        self.closing = False  # tell what waits, then go
        self.given_up = False
        self.process: subprocess.Popen[bytes] | None = None
        self.thread = threading.Thread(target=self._run, name="herald", daemon=True)

    def hear(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Take new records of the journal."""
        with self.lock:
            for record in records:
                if record["event"] in NEWS_EVENTS and len(self.waiting) < NEWS_WAITING:
                    self.waiting.append(record)
                elif record["event"] in NEWS_EVENTS:
                    log(f"FORGE_NOTIFY is too slow and is not told of {record['event']} {record['repo']}/{record['branch']}")
            self.lock.notify()

    def stop(self, seconds: float) -> None:
        """Tell what waits within so many seconds; what is left then is not told."""
        with self.lock:
            self.closing = True
            self.lock.notify()
        self.thread.join(seconds)
        with self.lock:
            self.given_up = True
            if self.waiting:
                log(f"the server ends before FORGE_NOTIFY was told of the newest {len(self.waiting)} jobs and merges")
            self.waiting.clear()
            if self.process:
                os.killpg(self.process.pid, signal.SIGKILL)

    def _run(self) -> None:
        """Take record after record until the end; the herald's thread."""
        while True:
            with self.lock:
                self.lock.wait_for(lambda: self.waiting or self.closing)
                if not self.waiting:
                    return
                record = self.waiting.popleft()
            try:
                for piece in self.news(record):
                    trouble = self._tell(piece)
                    if trouble:
                        log(f"FORGE_NOTIFY {trouble}; it was told {piece['event']} {piece['repo']}/{piece['branch']}")
            except Exception:
                log("FORGE_NOTIFY", traceback.format_exc())

    def _tell(self, piece: Mapping[str, Any]) -> str | None:
        """Run the command for one piece of news; what went wrong, or None."""
        with open(os.memfd_create("news"), "w+b") as text:  # no pipe, which a command that does not read would block
            text.write(f"{json_text(piece)}\n".encode())
            text.seek(0)
            with self.lock:
                if self.given_up:
                    return "was not run, since the server ends"
                shell = ["/bin/sh", "-c", self.command]
                try:
                    self.process = subprocess.Popen(shell, stdin=text, stdout=2, env=self.environ, start_new_session=True)
                except OSError as error:
                    return f"cannot be run ({error.strerror})"
        process, poll, trouble = self.process, select.poll(), None
        poll.register(pidfd := os.pidfd_open(process.pid), select.POLLIN)
        if not poll.poll(NEWS_SECONDS * 1000):
            trouble = f"took longer than {NEWS_SECONDS:.0f} seconds and was killed"
            os.killpg(process.pid, signal.SIGKILL)
        os.close(pidfd)
        with self.lock:
            self.process = None  # before its number is given back: `stop` kills by it
        code = process.wait()
        return trouble or (f"failed ({exit_reason(code if code > 0 else 128 - code, self.command)})" if code else None)


###############################################################################
# upkeep: room on the disk
###############################################################################


UPKEEP_LOOK = 60.0  # seconds between two looks of the keeper
UPKEEP_SECONDS = 3600.0  # between two times that it looks for logs and checkouts which can go
STALE_SECONDS = 7 * 86400  # a checkout that was not used for so long goes by itself
GROWN_LOOSE, GROWN_PACKS = 2000, 20  # objects and packs of which git maintenance makes one pack
TENDED_SECONDS = 6 * 3600  # between two git maintenances of a repo by itself
UNREACHABLE_KEPT = "2.weeks.ago"  # of objects that no ref reaches: a job may still work with them
SERVING_REFS = "refs/forge/upkeep/"  # what jobs and base are at while git maintenance runs


def scarce_room(config: Config) -> Room:
    """The room of the data directory, or where the repos lie, if that is low. Raises OSError."""
    here, there = room_at(config.data_dir), room_at(config.repos)
    return there if there.low and not here.low else here


def taken_by(path: Path, until: float = math.inf) -> tuple[int, bool]:
    """The bytes that a file or a directory takes on the disk; whether all was counted before `until` (monotonic seconds)."""
    taken, todo = 0, [str(path)]
    while todo:
        if time.monotonic() > until:
            return taken, False
        here = todo.pop()
        with contextlib.suppress(OSError):  # it is gone by now
            facts = os.lstat(here)
            taken += 512 * facts.st_blocks
            if stat.S_ISDIR(facts.st_mode):
                with os.scandir(here) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            todo.append(entry.path)
                        else:
                            taken += 512 * entry.stat(follow_symlinks=False).st_blocks
    return taken, True


@dataclass
class Pruned:
    """What was removed, or would be: how many of each kind, their bytes, and what was left alone for now and why."""

    counts: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)
    left: list[str] = field(default_factory=list)

    def add(self, kind: str, size: int = 0, count: int = 1) -> None:
        self.counts[kind] += count
        self.sizes[kind] += size

    def view(self, dry: bool) -> dict[str, Any]:
        """As programs see it."""
        kinds = ("logs", "checkouts", "refs", "repos")
        removed = {kind: {"count": self.counts[kind], "bytes": self.sizes[kind]} for kind in kinds}
        return {"dry_run": dry, "freed_bytes": sum(self.sizes.values()), "removed": removed, "left": self.left}


def spell_pruned(view: Mapping[str, Any]) -> str:
    """What was pruned, or would be, in a few words."""
    verbs = {"logs": "removed", "checkouts": "removed", "refs": "removed", "repos": "packed"}
    parts = [
        f"{plural(found['count'], kind[:-1])} {'would be ' if view['dry_run'] else ''}{verbs[kind]}"
        + (f" ({spell_bytes(found['bytes'])})" if found["bytes"] else "")
        for kind, found in view["removed"].items()
        if found["count"]
    ]
    would = "would be freed, without what git saves" if view["dry_run"] else "freed"
    return f"{', '.join(parts)}; {spell_bytes(view['freed_bytes'])} {would}" if parts else "nothing to prune"


@contextlib.contextmanager
def upkeep_turn(directory: Path) -> Iterator[None]:
    """Have upkeep for oneself: one at a time, and none while a backup is made (README.md). Raises Refused(409), OSError."""
    with open(os.open(directory / "upkeep", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(409, "a backup is made, or somebody else prunes just now; do it again when that is done") from None
        yield


def prune(engine: Engine, days: int, dry: bool = False, by_itself: bool = False) -> Pruned:
    """Remove logs of jobs that finished so many days ago (0: none), checkouts and refs of no more use; then git maintenance.

    By itself it leaves checkouts that were used lately. A `dry` run removes nothing. Raises Refused(409), OSError.
    """
    done, moment = Pruned(), at_time(time.time() - days * 86400) if days else ""

    def is_old(job_id: int) -> bool:
        """Whether a job finished so many days ago."""
        with engine.lock:
            job = engine.ledger.job(job_id)
        return bool(job and job.finished_at and job.finished_at < moment)

    with upkeep_turn(engine.config.data_dir):
        for job_id, folder in list_logs(engine.config.data_dir / "logs", None, None) if days else ():
            if is_old(job_id):
                prune_log(folder / f"{job_id}.log", done, dry)
        prune_checkouts(engine, STALE_SECONDS if by_itself else 0, done, dry)
        for name in engine.repo_names():
            try:
                with engine.lock:
                    in_use = {job.id for job in engine.state.jobs.values()}
                done.add("refs", count=drop_tested(engine.usable(name), in_use, is_old, dry))
                if not by_itself:
                    tend_repo(engine, name, done, dry)
            except (Refused, GitError, OSError) as error:
                done.left.append(f"{name}: {error}")
    return done


def prune_log(path: Path, done: Pruned, dry: bool) -> None:
    """Remove a log. Who reads it just now reads on."""
    with contextlib.suppress(FileNotFoundError):
        taken = 512 * path.stat().st_blocks
        if not dry:
            path.unlink()
        done.add("logs", taken)


def prune_checkouts(engine: Engine, unused: float, done: Pruned, dry: bool) -> None:
    """Remove the checkouts that no job has used for so many seconds; never one that a job has."""
    for slot in sorted((engine.config.data_dir / "work").glob("*/[0-9]*")):
        with contextlib.suppress(FileNotFoundError, ValueError):
            key = slot.parent.name, int(slot.name)
            age = time.time() - slot.stat().st_mtime  # each use makes its tmp anew
            if age < unused or key in checkouts_in_use(engine):
                continue
            taken, _ = taken_by(slot)
            with engine.lock:  # a job that starts now takes another
                busy = key in checkouts_in_use(engine)
                if not busy:
                    engine.slots[key] = 0
            if not busy:
                try:
                    if not dry:
                        discard(slot, engine.trash)
                    done.add("checkouts", taken)
                finally:
                    with engine.lock:
                        engine.slots.pop(key, None)
    engine.littered.set()


def checkouts_in_use(engine: Engine) -> set[tuple[str, int]]:
    """The (repo, number) of the checkouts that jobs have, or had when the server ended."""
    with engine.lock:
        running = [job for job in engine.state.live_jobs() if job.status == "running"]
        return {*engine.slots, *((job.repo, job.checkout) for job in running if job.checkout is not None)}


def has_grown(repo: Path) -> bool:
    """Whether a repo has so many loose objects or packs that git gets slow; the first are estimated as git does it."""
    with contextlib.suppress(FileNotFoundError):
        if 256 * len(os.listdir(repo / "objects/17")) > GROWN_LOOSE:
            return True
    return len(list((repo / "objects/pack").glob("*.pack"))) > GROWN_PACKS


def tend_repo(engine: Engine, name: str, done: Pruned, dry: bool = False) -> None:
    """Git maintenance of a repo in which no job runs: one pack of what its refs reach, packed refs. Raises Refused, GitError.

    What no ref reaches is kept for two weeks. A job may work longer than that with a commit that was base once, and begin
    while this goes on: refs name what jobs and base are at meanwhile.
    """
    path = engine.usable(name)
    with engine.lock:
        jobs = engine.state.live_jobs(name)
        known = engine.state.repos.get(name, Repo())
        named = {known.tip, *(commit for job in jobs for commit in (job.commit, job.base, job.tested))} - {None}
    if any(job.status == "running" for job in jobs):
        done.left.append(f"{name}: a job runs in it; git maintenance waits until it has ended")
        return
    if git(path, "config", "--get-all", "gc.recentObjectsHook", ok=(0, 1)):
        why = f"gc.recentObjectsHook is set, a program of the repo that is not run here: git -C {path} config --unset-all"
        done.left.append(f"{name}: {why} gc.recentObjectsHook; git maintenance waits until then")
        return
    if dry:
        done.add("repos")
        return
    before = taken_by(path / "objects")[0]
    listed = git(path, "for-each-ref", "--format=%(objectname) %(refname)", SERVING_REFS).split("\n")[:-1]
    left = [(ref, commit, None) for commit, _, ref in (line.partition(" ") for line in listed)]
    asked = "".join(f"{commit}\n" for commit in sorted(named, key=str))
    there = [line for line in git(path, "cat-file", "--batch-check=%(objectname)", text=asked).split() if line in named]
    if left:  # an earlier maintenance was killed
        move_refs(path, left)
    move_refs(path, [(f"{SERVING_REFS}{commit}", "0" * len(commit), commit) for commit in there])
    try:
        with engine.turn(name):
            refs = git(path, "for-each-ref", "--format=%(refname).lock").split("\n")[:-1]
            git_locking(path, ["packed-refs.lock", "packed-refs.new", *refs], "pack-refs", "--all", "--prune")
        collect_garbage(engine, path)
    finally:
        move_refs(path, [(f"{SERVING_REFS}{commit}", commit, None) for commit in there])
    done.add("repos", max(0, before - taken_by(path / "objects")[0]))


def collect_garbage(engine: Engine, repo: Path) -> None:
    """Run git gc, behind all others; it ends early when the server does. Raises GitError."""
    settings = {"gc.packRefs": "false", "gc.writeCommitGraph": "false", "pack.threads": "1", "pack.windowMemory": "128m"}
    chosen = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
    args = (*chosen, "gc", "--quiet", "--cruft", f"--prune={UNREACHABLE_KEPT}")
    with git_process(repo, args, None, True) as process:
        try:
            os.setpriority(os.PRIO_PROCESS, process.pid, 10)
            while process.returncode is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    _, said = process.communicate(timeout=0.5)
                if engine.closing:
                    end_git(process, signal.SIGTERM)  # it removes its half-made pack
        finally:
            end_git(process)
    if process.returncode:
        raise GitError(("gc",), process.returncode, said.decode("utf-8", "replace"))


###############################################################################
# engine: the only threads and the only lock
###############################################################################


WORKERS = 8  # repos in which git may need long at a time, before others have to wait for it
SCAN_SECONDS = 45.0
TOLD_CHARS = 32 << 20  # of what a hook could not deliver: some 200,000 refs, and the push options after them
HISTORY_CHECKED = 1000  # commits of a base that are looked at for merges without a record, when the server starts
HURRY_SECONDS = 5.0  # between two scans, when something failed that may go better soon
SNAPSHOT_RECORDS = 5000  # that a start may have to read from the journal
KEPT_BYTES = 4096  # of what git printed and never changes; there may be 10,000 of these
BUSY_SECONDS = 8.0  # that a git may have been at work for which requests wait; a hook gives us ten
LEAVE_SECONDS = 4.5  # from SIGTERM to our end
GRACE_SECONDS = 5.0  # between SIGTERM and SIGKILL
BATCH = 1000  # commits that one git is asked about: their ids are arguments

Value = TypeVar("Value")


class AlreadyServed(Exception):
    """Another server holds the data directory."""


class Engine:
    """Takes pushes and wishes, runs jobs, merges. Methods that name no thread may be called from any."""

    def __init__(self, config: Config):
        """Open the data directory. Raises OSError when it cannot be used, AlreadyServed, NoSandbox."""
        self.config = config
        self.url, self.port = config.url or config.listen_url(), config.port
        self.files = prepare_data_dir(config)
        self.bwrap = find_sandbox(config)
        facts = config.data_dir.stat()
        self.account = account_of(os.geteuid(), facts.st_gid if facts.st_uid == os.geteuid() else os.getegid())
        self.lock = threading.Condition()
        self.ledger = Ledger(config.data_dir)
        self.running: dict[int, Running] = {}
        self.starting: dict[int, Job] = {}  # being started, whatever has become of them since
        self.slots: dict[tuple[str, int], int] = {}  # (repo, number of the checkout): the job in it
        self.turns: dict[str, float] = {}  # by repo: since when somebody has its refs for himself (monotonic seconds)
        self.todo: OrderedDict[str, None] = OrderedDict()  # repos to step; "" asks for a scan
        self.stepped: set[str] = set()  # what of these a worker is at
        self.troubles: dict[str, str] = {}  # by repo: what failed when it was last looked at
        self.ailments: dict[str, str] = {}  # by repo: what is wrong with its files
        self.ailing: dict[str, tuple[Ailment, float]] = {}  # by repo: why its work waits, and until when that is believed unseen
        self.met: dict[str, int] = {}  # by repo: the inode of the directory that has our hooks and config
        self.copying: set[str] = set()  # repos that are being copied in, which are met when that is over
        self.unrenewed: dict[str, dict[str, tuple[str, str, str]]] = {}  # by repo, branch: head, base, why it is not made anew
        self.stuck: dict[tuple[str, str, str], str] = {}  # by (repo, branch, head): why its merge failed although it was due
        self.ending: set[int] = set()  # jobs whose processes are gone and whose ends an ender tells
        self.unspoken: set[int] = set()  # jobs whose verdict is not in the log yet
        self.eager: set[str] = set()  # repos where passed branches wait for first tests to end
        self.ended_last = 0.0  # when the job of the newest verdict ended, in seconds since the epoch
        self.hurry = False  # something failed that may go better soon
        self.checked: set[str] = set()  # repos whose newest merges are known to be recorded
        self.tended: dict[str, float] = {}  # by repo: when git maintenance last ran, in monotonic seconds
        self.tries: dict[int, int] = {}  # how often a job could not be prepared
        self.promised: set[int] = set()  # job ids given away before their jobs are in the journal
        self.starved = not self.ledger.journal.ready  # work waits until there is room on the disk
        self.probing = threading.Lock()  # guards the files by which `has_room` finds out
        self.closing = False
        self.launcher = Launcher()
        self.herald: Herald | None = None
        self.manager = ServiceManager({})
        self.threads: list[threading.Thread] = []
        self.wake_out, self.wake_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.littered = threading.Event()
        self.line_counts = LineCounts()
        self.uncounted: deque[Path] = deque()  # large logs of jobs that have ended
        self._cache: OrderedDict[tuple[str, ...], Any] = OrderedDict()
        self._seen: dict[str, tuple[object, Refs]] = {}  # by repo: its branches for pages, and by what they are known again
        self._looks: dict[str, float] = {}  # by repo, like `turns`: of several pages that need git, one asks it
        self._trees: dict[str, tuple[str, dict[str, str]]] = {}  # by repo: base, and the trees of its own line
        self._making: dict[tuple[str, ...], float] = {}  # likewise, by key: what git is asked for to be kept
        self._meeting: dict[str, float] = {}  # likewise: repos that are being completed
        self._listed: tuple[int, int] | None = None  # by what it is known that no repo has come or gone since the last look
        self.hasty = threading.local()  # `on` in threads that have others to serve: those that answer requests, a scan

    @property
    def state(self) -> State:
        return self.ledger.state

    @property
    def trash(self) -> Path:
        return self.config.data_dir / "trash"

    # -- life ---------------------------------------------------------------

    def start(self) -> None:
        """Take over what the server before left, then let the threads go."""
        if self.config.notify:
            self.herald = Herald(self.config.notify, notify_environ(self.config, self.url), self._news)
            self.herald.thread.start()
        self.recover()
        self.todo[""] = None
        targets = [self._watch, self._clean, self._keep_house, *[self._work] * WORKERS]
        self.threads = [threading.Thread(target=target, name=target.__name__.strip("_"), daemon=True) for target in targets]
        for thread in self.threads:
            thread.start()
        for run in list(self.running.values()):
            self._begin_mask(run)

    def begin_nothing(self) -> None:
        """Begin no new work; what was begun goes on, and requests are answered."""
        with self.lock:
            self.closing = True
            self.lock.notify_all()
        self.wake()
        self.littered.set()

    def stop(self, seconds: float = LEAVE_SECONDS) -> None:
        """Let go of the jobs (they live on) and close the journal, within so many seconds."""
        until = time.monotonic() + seconds
        self.begin_nothing()
        with self.lock:
            self.lock.wait_for(lambda: not (self.starting or self.ending), timeout=max(0.1, until - time.monotonic()))
        for thread in self.threads:
            thread.join(timeout=max(0.1, until - time.monotonic()))
        if self.herald:
            self.herald.stop(min(NEWS_LEAVE_SECONDS, max(0.1, until - time.monotonic())))
        self.launcher.stop()
        self._keep_snapshot(1)
        with self.lock:
            self.ledger.journal.close()
            files = [self.wake_in, self.wake_out, *self.files]
            self.wake_in = -1
        for file in [*files, *(running.pidfd for running in self.running.values())]:
            os.close(file)

    def recover(self) -> None:
        """Compare what the journal says was going on with what is: running jobs are taken over or found interrupted."""
        for name in self.repo_names():
            with contextlib.suppress(GitError, OSError):  # the scan tries it again, and says so
                mend_locks(self.config.repo(name))
        runs = self.config.data_dir / "running"
        lost = []
        for job in self.state.live_jobs():
            if job.status != "running":
                continue
            run = runs / str(job.id)
            if job.checkout is not None:
                self.slots[job.repo, job.checkout] = job.id
            found = adopt(run)
            if found:
                pid, pidfd, began = found
                deadline = began + (job.timeout or self.config.job_timeout)
                mask = self._mask_of(job)
                log_file = mask.raw if mask else self.config.log(job.repo, job.id)
                self.running[job.id] = Running(job.id, pid, pidfd, run, log_file, began, deadline, job.sandboxed, mask)
                log(f"job {job.id} still runs (pid {pid}) and is taken over")
            else:
                lost.append(job.id)
        for job_id in sorted(lost, key=self._when_ended):
            try:
                self._give_up(job_id)
            except (Refused, OSError) as error:
                self.complain(f"job {job_id}", error)  # the watcher tries again
        known = {str(job.id) for job in self.state.live_jobs() if job.status == "running"}
        for run in runs.iterdir():
            if run.name not in known:
                self.discard(run)
        self.littered.set()

    def _give_up(self, job_id: int) -> None:
        """A job that should run has no processes: it has ended, or never begun. Raises Refused(507), OSError."""
        run = self.config.data_dir / "running" / str(job_id)
        began = supervisor_began(run)
        if not began:
            moved = discard(run, self.trash)  # so that its supervisor cannot begin any more
            began = moved is not None and supervisor_began(moved)
        if began or self.state.jobs[job_id].stopping:
            self._end(job_id)
            return
        with self.lock:
            self.record(("job.unstarted", {"id": job_id}))
            running = self.running.pop(job_id, None)
            if running:
                os.close(running.pidfd)
            self.slots = {key: value for key, value in self.slots.items() if value != job_id}

    def discard(self, path: Path) -> None:
        """Throw something away; where that is not possible now, a later look finds it again."""
        with contextlib.suppress(OSError):
            discard(path, self.trash)

    # -- no room --------------------------------------------------------------

    def complain(self, what: str, error: Exception) -> None:
        """Say in the log what failed. That there is no room is said once, and what waits for it goes on when there is some."""
        if not self.no_room(error):
            log(f"{what}: {error}")
        elif not self.starved:
            self.starved = True
            log(f"{what}: {error}; work waits until there is room")

    def _failed(self, what: str, error: Exception) -> None:
        """A worker's work failed: say so, and let the next scan come sooner when it may go better then."""
        self._hurry_after(error)
        self.complain(what, error)

    def _hurry_after(self, error: Exception) -> None:
        """Let the next scan come sooner when what failed may go better then."""
        self.hurry = self.hurry or (isinstance(error, GitError) and error.passing)

    def no_room(self, error: Exception) -> bool:
        """Whether something failed since there is no room; git does not always say so."""
        if isinstance(error, Refused):
            return error.status == 507
        return bool(lacks_room(error)) or (isinstance(error, GitError) and not self.has_room())

    def has_room(self) -> bool:
        """Whether a file can be written where jobs are started, and beside the repos, which may lie elsewhere."""
        with self.probing:
            try:
                for folder in (self.config.data_dir / "running", self.config.repos):
                    write_whole(folder / "probe", bytes(1 << 16))
                    (folder / "probe").unlink()
            except OSError:
                return False
        return True

    def _go_on(self) -> None:
        """There may be room again: look at everything that was left."""
        if self.starved and self.has_room():
            self.starved = False
            log("there is room again, and work goes on")
            write_address(self)
            self.poke("")

    def wake(self) -> None:
        """Let the watcher look now."""
        with self.lock, contextlib.suppress(BlockingIOError):
            if self.wake_in >= 0:  # else we are at our end, and the number may be that of another file
                os.write(self.wake_in, b".")

    def poke(self, name: str) -> None:
        """Let a worker step a repo soon; "" for a scan."""
        with self.lock:
            self.todo.setdefault(name)
            self.lock.notify_all()

    @contextlib.contextmanager
    def turn(self, name: str) -> Iterator[None]:
        """Have a repo's refs for oneself, as far as this server goes. Raises Refused(503) as `alone` does."""
        with self.alone(self.turns, name, name):
            yield

    @contextlib.contextmanager
    def alone(self, taken: dict[Any, float], what: object, name: str) -> Iterator[None]:
        """Have something of a repo for oneself; `taken` says since when somebody has what.

        Raises Refused(503) in a `hasty` thread when somebody has had it for long: a git may need a minute for what was pushed,
        and if all who answer waited for it, nobody would be answered.
        """
        with self.lock:
            while what in taken:
                left = taken[what] + BUSY_SECONDS - time.monotonic() if getattr(self.hasty, "on", False) else None
                if left is not None and left <= 0:
                    self.hurry = True  # a push that is told to wait is kept for the next scan
                    raise Refused(
                        503,
                        f"git has been at work in {name} for {BUSY_SECONDS:.0f} seconds and more; do it again in a moment",
                        headers={"Retry-After": "5"},
                    )
                self.lock.wait(left)
            taken[what] = time.monotonic()
        try:
            yield
        finally:
            with self.lock:
                del taken[what]
                self.lock.notify_all()

    def record(self, *events: Event) -> list[dict[str, Any]]:
        """Write events; the lock is held. Raises Refused(507) when the disk does not take them."""
        try:
            records = self.ledger.record(*events)
        except OSError as error:
            refused = Refused(507, f"the journal cannot be written ({error.strerror}); make room, nothing is lost")
            self.complain("no record", refused)
            raise refused from error
        finally:
            self.wake()
        if self.herald:
            self.herald.hear(records)
        return records

    def _news(self, record: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What there is to tell of a record; the herald runs it. A merge that is only written again (begun 0) is old."""
        if record.get("begun") == 0:
            return []
        with self.lock:
            before = self.ledger.verdict_before(record["id"]) if "id" in record else None
        return news_of(record, before, self.url)

    # -- looking at repos ---------------------------------------------------

    def repo_names(self) -> list[str]:
        """The repos that are there, by name."""
        with os.scandir(self.config.repos) as entries:
            return sorted(e.name[:-4] for e in entries if e.name.endswith(".git") and is_repo_name(e.name[:-4]) and e.is_dir())

    def next_id(self) -> int:
        """The id of the next job; the lock is held."""
        return max({self.state.last_job, *self.promised}) + 1

    def usable(self, name: str) -> Path:
        """The path of a repo. Raises Refused when there is none, or the server cannot work with it."""
        path = self.config.repo(name) if is_repo_name(name) else None
        if path is None or not path.is_dir():
            if name in self.state.repos:
                self.poke("")
            raise Refused(404, f"there is no repo {shorten(name)}")
        trouble = why_unusable(path, name, self.account)
        if trouble:
            self.examine(name)
            raise Refused(409, trouble)
        return path

    def readable(self, name: str) -> Path:
        """The path of a repo whose refs can be read. Raises Refused as `usable` does."""
        path, ailment = self.usable(name), self.examine(name)
        if ailment and ailment.blind:
            raise Refused(409, ailment.text)
        return path

    def examine(self, name: str, deep: bool = False) -> Ailment | None:
        """See what is wrong with a repo's files; the reason for which its work has to wait, or None. What was mended goes on."""
        path = self.config.repo(name)
        deep = deep or name in self.ailments
        found = find_ailment(path, name, self.account, deep) if path.is_dir() else None
        if not (found and found.blocks) and (hidden := why_jobs_lack_objects(self.config, path, name, self.bwrap)):
            found = Ailment(hidden, True)
        with self.lock:
            before, until = self.ailing.pop(name, (None, 0.0))
            if found and found.blocks:
                self.ailing[name] = found, 0.0
            elif before and time.monotonic() < until:
                self.ailing[name] = before, until
            waits, _ = self.ailing.get(name, (None, 0.0))
            known = self.ailments.pop(name, None)
            told = (waits or found or Ailment("")).text
            if told:
                self.ailments[name] = told
            mended = before is not None and waits is None
            if mended:
                self.stuck = {key: why for key, why in self.stuck.items() if key[0] != name}
                self.poke(name)
        if told and told != known:
            log(f"{name}: {told}")
        if mended:
            self.wake()
        return waits

    def trouble_of(self, name: str) -> str | None:
        """What a repo's page says is wrong with it, or None."""
        return self.ailments.get(name) or self.troubles.get(name)

    def must_wait(self, name: str, error: Exception) -> str | None:
        """Why work in a repo waits after something failed there; None when its files are not the reason.

        A right that git misses although the files do not show it (an ACL, an attribute) is believed for a while.
        """
        ailment = self.examine(name, deep=True)  # git calls an object that it may not read corrupt
        about = error.stderr if isinstance(error, GitError) else str(error)
        said = next((line.strip() for line in about.splitlines() if NO_RIGHT.search(line) and OF_REPO.search(line)), None)
        if ailment is None and said and lacks_rights(error):
            text = f"git may not do its work in {name}: {said}; {how_to_mend(self.config.repo(name), self.account, -1)}"
            ailment = Ailment(text, True)
            with self.lock:
                self.ailing[name] = ailment, time.monotonic() + HURRY_SECONDS
                known, self.ailments[name] = self.ailments.get(name), text
            if known != text:
                log(f"{name}: {text}")
        return ailment.text if ailment else None

    def meet(self, name: str) -> bool:
        """Complete a repo that is new, whoever sees it first: a page, a push, a command, the watcher; whether it is complete now.

        One that is being copied is left alone until that is over. Raises Refused, GitError, OSError.
        """
        path = self.usable(name)
        if not self.has_met(name):
            with self.alone(self._meeting, name, name):
                if not self.has_met(name):
                    seen = inode_of(path)
                    if name not in self.state.repos:
                        if not is_quiet(path):
                            self.copying.add(name)
                            return False
                        self.submit(
                            name
                        )  # first: a push that comes as soon as there are hooks would count as the repo's beginning
                    try:
                        complete_repo(path)
                    except OSError as error:
                        if lacks_room(error):
                            raise
                        raise Refused(409, f"{name} cannot have forge's hooks: {error.strerror} ({error.filename})") from error
                    self.met[name] = seen
        return True

    def has_met(self, name: str) -> bool:
        """Whether a repo is the one that this server has completed."""
        path = self.config.repo(name)
        return name in self.met and self.met[name] == inode_of(path) and is_complete(path)

    def _greet(self) -> None:
        """Have repos met that came since the last look, and those forgotten that went: one stat while nothing does."""
        facts = os.stat(self.config.repos)
        mark = facts.st_ino, facts.st_mtime_ns
        if mark != self._listed:
            names = set(self.repo_names())
            for name in names:
                if not self.has_met(name):
                    self.poke(name)
            if not self.state.repos.keys() <= names:
                self.poke("")
            # what comes within one tick of the clock leaves the same mark
            self._listed = mark if facts.st_mtime_ns + 2_000_000_000 < time.time_ns() else None
        for name in [*self.copying]:
            self.copying.discard(name)
            self.poke(name)

    def submit(self, name: str, push: Push = NO_PUSH) -> Refs:
        """Look at a repo now and journal what is new; jobs start and merges follow by themselves.

        Raises Refused, GitError.
        """
        with self.lock:
            self.stuck = {key: why for key, why in self.stuck.items() if key[0] != name}  # it is tried again
        with self.turn(name):
            refs = self.look(name, push)
        self.dispatch()
        with self.lock:
            newest = [self.state.newest_job(name, branch) for branch in self.state.repos[name].branches]
            newest.append(self.state.jobs.get(self.state.repos[name].rollback or 0))
            if any(job and (job.status == "pending" or not job.live) and job.id not in self.starting for job in newest):
                self.poke(name)  # else there is nothing to decide
        return refs

    def look(self, name: str, push: Push = NO_PUSH) -> Refs:
        """Read a repo's refs and journal what is new. The repo's turn is held."""
        path = self.readable(name)
        try:
            self._settle(name, path)
            refs = read_refs(path)
            if refs.tip is None and refs.base is not None and refs.heads:
                with self.lock:
                    born = self.state.repos.get(name, Repo()).born
                base = choose_base(refs, push, born)
                if base is not None:
                    git_locking(path, ["HEAD.lock"], "symbolic-ref", "HEAD", f"refs/heads/{base}")
                    refs = read_refs(path)
        except GitError as error:
            if not self.must_wait(name, error):
                self.troubles[name] = f"git cannot read {name}: {error}"
            raise
        with self.lock:
            events = notice(name, self.state, refs, push, self.next_id())
            if events:
                self.record(*events)
            self.troubles.pop(name, None)
        return refs

    def scan(self) -> None:
        """Look at everything: undelivered pushes, all repos, those that are gone. A worker runs it."""
        self._deliver()
        self.hurry = False
        names = self.repo_names()
        with self.lock:
            gone = [name for name in self.state.repos if name not in names]
        for name in gone:
            self._forget(name)
        for name in names:
            try:
                path = self.usable(name)
                mend_locks(path)
                self.examine(name, deep=True)
                self.met.pop(name, None)  # somebody may have taken a hook away
                if not self.meet(name):
                    continue  # it is being copied
                drop_verdicts(path)
                if name not in self.checked:
                    self._complete_history(name, path)
                self.submit(name)
                with self.lock:
                    in_use = {job.id for job in self.state.jobs.values()}
                drop_tested(path, in_use)
            except (Refused, GitError, OSError) as error:
                if self.must_wait(name, error) or name in self.ailing:
                    continue  # it has been said
                if not (isinstance(error, Refused) and error.status == 503):  # who is at work there tells what is wrong
                    self.troubles.setdefault(name, str(error))
                self._failed(name, error)
        for parent in ("work", "home"):
            for folder in (self.config.data_dir / parent).iterdir():
                if folder.name not in names and not any(key[0] == folder.name for key in self.slots):
                    discard(folder, self.trash)
        for slot in (self.config.data_dir / "work").glob("*/*"):
            if int(slot.name) > self.config.max_jobs + 1 and (slot.parent.name, int(slot.name)) not in self.slots:
                discard(slot, self.trash)  # from when FORGE_MAX_JOBS was higher
        self.littered.set()

    def _deliver(self) -> None:
        """Take what hooks could not deliver. What names no repo of ours is put aside, and told."""
        for path in sorted((self.config.data_dir / "incoming").iterdir()):
            if path.suffix in (".new", ".odd"):
                continue
            try:
                with io.TextIOWrapper(open_plain(path, follow=False), "utf-8", "surrogateescape", "\n") as stream:
                    told = stream.read(TOLD_CHARS)  # of more the beginning does: the refs are read from the repo
                    when = min(time.time(), max(0.0, os.fstat(stream.fileno()).st_mtime))  # it may say anything
                told = told if len(told) < TOLD_CHARS else told[: told.rfind("\n") + 1]
                first, _, rest = told.partition("\n")
                push = parse_hook_lines(rest, at_time(when))
                self.submit(first.removeprefix("repo "), push)
                path.unlink()
            except Refused as error:
                if error.status in (400, 404):
                    log(f"{path}: {error}; kept as {path.name}.odd")
                    path.rename(f"{path}.odd")
                else:
                    self.complain(f"{path} waits", error)
            except (GitError, OSError) as error:
                self.complain(f"{path} waits", error)

    def _forget(self, name: str) -> None:
        """A repo was removed: end its jobs."""
        with self.turn(name), self.lock:
            if self.config.repo(name).is_dir():
                return
            events = [
                end_job(job, "canceled", f"the repo {name} was removed") for job in self.state.live_jobs(name) if job.stoppable
            ]
            self.record(*events, ("repo.gone", {"repo": name}))
            log(f"{name} is gone")

    def overview(self, name: str) -> Refs:
        """A repo's branches for a page, with all that `mr_view` asks of them known: no git runs while nothing has changed.

        What is decided or done is not decided by this, but by what git says then. Raises Refused, GitError.
        """
        path = self.usable(name)
        ailment, _ = self.ailing.get(name, (None, 0.0))
        if ailment and ailment.blind:
            raise Refused(409, ailment.text)
        with self.alone(self._looks, name, name):
            refs = self._refs_now(name, path)
            others = [head for branch, head in refs.heads.items() if branch != refs.base]
            ahead = [head for branch, head in refs.heads.items() if branch in refs.ahead]
            self._learn(("commit", name), others, partial(read_commits, path))
            self.learn(name, refs.tip, ahead)
            if refs.tip:
                with self.lock:
                    age = {
                        head: self._cache[key].authored_at for head in others if (key := ("commit", name, head)) in self._cache
                    }
                others.sort(key=lambda head: age.get(head) or "", reverse=True)
                self._learn(("count", name, refs.tip), others, partial(count_many, path, refs.tip))
        return refs

    def _refs_now(self, name: str, path: Path) -> Refs:
        """A repo's branches, read again when a file of theirs has changed."""
        mark = refs_mark(path)
        known, refs = self._seen.get(name, (None, Refs(None, {})))
        if mark is None or mark != known:
            refs = read_refs(path)
            self._seen[name] = mark, refs
        return refs

    def refs(self, name: str) -> Refs:
        """A repo's branches, for a page that asks nothing else of git. Raises Refused, GitError."""
        path = self.usable(name)
        with self.alone(self._looks, name, name):
            return self._refs_now(name, path)

    def why_no_retry(self, job: Job) -> str | None:
        """Why `retry` would refuse to run a job again now, or None: then a page may offer it."""
        try:
            refs = self.refs(job.repo)
            with self.lock:
                reason = why_no_retry(job, refs, self.state.live_jobs(job.repo), self._rolling(job.repo))
            if reason or job.kind != PRE or job.is_first or job.is_rollback or not refs.tip:
                return reason
            merges = [self.merged(job.repo, refs.tip, head) for _, head in still_open(job, refs)]
            if any(one.tree and not one.conflicts and not self.held(job.repo, refs.tip, one) for one in merges):
                return None
            return f"nothing of it can be merged into {refs.base} by now"
        except (Refused, GitError) as error:
            return str(error)

    def no_rollbacks(self, name: str, refs: Refs, commits: Iterable[str]) -> dict[str, str]:
        """Why `roll_back` would refuse to go back to some commits of base, for those it would, untested ones aside."""
        if refs.base is None or refs.tip is None:
            return dict.fromkeys(commits, f"{name} has no base")
        known, trees = self._trees.get(name, (None, {}))
        try:
            if known != refs.tip:
                line = read_landed(self.usable(name), refs.tip, "--first-parent", f"--max-count={LINE_MOST}").values()
                trees = {landed.commit: landed.tree for landed in line}
                self._trees[name] = refs.tip, trees
        except (Refused, GitError) as error:
            return dict.fromkeys(commits, str(error))
        with self.lock:
            rolling = self._rolling(name)
        reasons = {commit: why_no_rollback(refs.base, refs.tip, trees, commit) for commit in commits}
        tested = why_no_rollback_test(rolling) if rolling else None
        return {commit: why for commit, reason in reasons.items() if (why := reason or tested)}

    # -- what a commit says; never changes, so it is kept -----------------------

    def commit(self, name: str, commit: str) -> CommitFacts:
        """What a commit of a repo says."""
        return self._kept(("commit", name, commit), lambda: read_commit(self.config.repo(name), commit))

    def unheard(self, name: str, heads: Iterable[str]) -> dict[str, str]:
        """Which of some heads do not ask for their merge although they seem to, and why."""
        found = {}
        self._learn(("commit", name), heads := list(heads), partial(read_commits, self.config.repo(name)))
        for head in heads:
            with contextlib.suppress(GitError, Refused):  # who is to judge it says so
                found[head] = self.commit(name, head).unheard
        return {head: why for head, why in found.items() if why}

    def merged(self, name: str, base: str, head: str) -> Merged:
        """How two commits of a repo merge."""
        return self._kept(("merge", name, base, head), lambda: merge_tree(self.config.repo(name), base, head))

    def locked(self, name: str, tree: str) -> dict[str, str]:
        """The locked inputs of a tree of a repo."""
        return self._kept(("lock", name, tree), lambda: read_locks(self.config.repo(name), [tree])[tree])

    def held(self, name: str, base: str | None, merged: Merged | None) -> Held | None:
        """By which hold a merge into the commit `base` is stopped, if any; where nothing is on hold, nothing is read."""
        with self.lock:
            holds = [*self.state.repos.get(name, Repo()).holds.values()]
        if not (holds and base and merged and merged.tree):
            return None
        before = self._kept(("tree", name, base), lambda: tree_of(self.config.repo(name), base))
        if before == merged.tree:
            return None
        locks = [self.locked(name, tree) if any(hold.inputs for hold in holds) else {} for tree in (before, merged.tree)]
        return held_by(name, holds, merged.tree, *locks)

    def brought(self, name: str, base: str, commit: str) -> Brought:
        """What a deployment of `commit` brings that `base` lacks ("": nothing was there)."""
        return self._kept(("brought", name, base, commit), lambda: read_brought(self.config.repo(name), base, commit))

    def counts(self, name: str, base: str, head: str) -> tuple[str | None, int, int]:
        """What `count_commits` says of two commits of a repo."""
        return self._kept(("count", name, base, head), lambda: count_commits(self.config.repo(name), base, head))

    def output(self, name: str, most: int, *args: str) -> tuple[bytes, bool]:
        """What `git_beginning` gives of a git that is asked about commit ids alone.

        Only what is short is kept. That includes what git could not say in time: each reader would have it try again.
        """
        size = sum(map(len, args))
        return self._kept(
            ("output", name, *args),
            lambda: git_beginning(self.config.repo(name), most, *args),
            lambda found: size + len(found[0]) <= KEPT_BYTES,
        )

    def learn(self, name: str, base: str | None, heads: Iterable[str]) -> None:
        """Ask git at once what `commit` and `merged` would ask it for each head."""
        path, heads = self.config.repo(name), list(heads)
        self._learn(("commit", name), heads, partial(read_commits, path))
        if base:
            self._learn(("merge", name, base), heads, partial(merge_trees, path, base))
        with self.lock:
            held = base and any(hold.inputs for hold in self.state.repos.get(name, Repo()).holds.values())
            merged = [self._cache.get(("merge", name, base or "", head)) for head in heads] if held else []
        self._learn(("lock", name), [one.tree for one in merged if one and one.tree], partial(read_locks, path))

    def _learn(self, about: tuple[str, ...], heads: Iterable[str], read: Callable[[list[str]], Any]) -> None:
        """Keep what `read` says of heads of which it is not known yet; what git cannot tell is left to who asks for one."""
        with self.lock:
            unknown = [head for head in dict.fromkeys(heads) if (*about, head) not in self._cache]
        for at in range(0, len(unknown), BATCH) if len(unknown) > 1 else ():
            with contextlib.suppress(GitError):
                found = read(unknown[at : at + BATCH])
                for head, value in found.items() if isinstance(found, dict) else found:
                    self._keep((*about, head), value)

    def settings(self, name: str) -> dict[str, str]:
        """The ``forge.*`` settings of a repo's config, read again when the file has changed."""
        facts = (self.config.repo(name) / "config").stat()
        seen = (str(facts.st_mtime_ns), str(facts.st_size), str(facts.st_ino))
        return self._kept(("settings", name, *seen), lambda: repo_settings(self.config.repo(name)))

    def _kept(self, key: tuple[str, ...], make: Callable[[], Value], fits: Callable[[Value], bool] = lambda _: True) -> Value:
        """What is kept under a key, or what `make` makes, which is kept then if it `fits`. Raises Refused as `alone` does."""
        found = self._cached(key)
        if found is None:
            # a page's git takes a moment only, and what it prints may not be kept
            with contextlib.nullcontext() if key[0] == "output" else self.alone(self._making, key, key[1]):
                found = self._cached(key)  # who was before us may have made it
                if found is None:
                    found = (make(),)
                    if fits(found[0]):
                        self._keep(key, found[0])
        value: Value = found[0]
        return value

    def _cached(self, key: tuple[str, ...]) -> tuple[Any] | None:
        """What is kept under a key, alone in a tuple, or None."""
        with self.lock:
            if key not in self._cache:
                return None
            self._cache.move_to_end(key)
            return (self._cache[key],)

    def _keep(self, key: tuple[str, ...], value: Any) -> None:
        """Keep a value; the one that was used longest ago goes."""
        with self.lock:
            self._cache[key] = value
            # a page of a repo asks for three facts of each open branch; none may push out another
            if len(self._cache) > 10_000 + 4 * sum(len(repo.branches) for repo in self.state.repos.values()):
                self._cache.popitem(last=False)

    # -- jobs ---------------------------------------------------------------

    def dispatch(self) -> None:
        """Start the jobs there is a place for: those of the queue, then first tests; one deployment a repo beside."""
        with self.lock:
            if self.closing or self.starved or not self.threads:
                return
            live = self.state.live_jobs()
            busy = [job for job in live if job.status == "running" and job.id not in self.starting] + list(self.starting.values())
            free = self.config.max_jobs - sum(job.kind == PRE for job in busy)
            deploying = {job.repo for job in busy if job.kind == POST}
            for job in sorted(live, key=lambda job: (job.is_first, job.id)):  # the queue tests nothing before its time
                if job.status != "pending" or job.id in self.starting or job.repo in self.ailing:
                    continue
                if job.kind == POST and job.repo not in deploying:
                    deploying.add(job.repo)
                elif job.kind == PRE and free > 0:
                    free -= 1
                else:
                    continue
                self.starting[job.id] = job
                threading.Thread(target=self._launch, args=(job,), name=f"start-{job.id}", daemon=True).start()

    def _launch(self, job: Job) -> None:
        """Start one job; a starter thread runs this and ends with it."""
        try:
            launch = self._prepare(job)
            if launch is None:
                return
            try:
                pid = start_job(self.launcher, launch, self._box(launch))
            except OSError as error:
                if not lacks_room(error):
                    self._end(job.id, f"its processes could not be started: {error}")
                    return
                self._give_up(job.id)
                raise
            try:
                began, pidfd = process_began(pid) or boot_clock(), os.pidfd_open(pid)
            except ProcessLookupError:  # it has ended already
                self._see_end(job.id)
                return
            deadline = began + (job.timeout or self.config.job_timeout)
            run = Running(job.id, pid, pidfd, launch.run, launch.log, began, deadline, job.sandboxed, self._mask_of(job))
            with self.lock:
                self.running[job.id] = run
            self._begin_mask(run)
        except (Refused, GitError, OSError) as error:
            self.complain(f"job {job.id} cannot be started now", error)
            with self.lock:
                self.lock.wait_for(lambda: self.closing or self.starved, timeout=1)  # it is tried again, but not at once
        except Exception:
            log(f"job {job.id}", traceback.format_exc())
            self._end(job.id, "forge stumbled over it; the server's log says more")
        finally:
            with self.lock:
                del self.starting[job.id]
                self._free_slot(job)
                self.lock.notify_all()
            self.wake()

    def _prepare(self, job: Job) -> Launch | None:
        """Make the candidate and the checkout, and journal the start. None when it is not wanted any more, or waits."""
        path = self.config.repo(job.repo)
        if self.examine(job.repo):
            return None
        with self.lock:
            known = self.state.repos.get(job.repo, Repo())
            if job.status != "pending":
                return None
            number = next(n for n in itertools.count(1) if (job.repo, n) not in self.slots)
            self.slots[job.repo, number] = job.id
        try:
            slot = self.config.data_dir / "work" / job.repo / str(number)
            slot.parent.mkdir(parents=True, exist_ok=True)
            with ThreadPoolExecutor(2) as beside:
                tidy = beside.submit(tidy_checkout, slot, self.trash, path)
                cause = beside.submit(self._cause, job)
                settings = self.settings(job.repo)
                timeout = setting_number(path, settings, "forge.timeout", self.config.job_timeout, "seconds")
                facts = self._candidate(path, job, known.tip)
                if self._reuse(job, facts):
                    return None
                tidy.result()
                kept = beside.submit(keep_tested, path, job.id, facts["tested"]) if job.kind == PRE else None
                whose = secrets_folder(self.config, job.repo, settings) if job.kind == POST else None
                secrets_dir = secrets_seen(self.config, whose) if job.kind == POST else None
                ssh_config = read_ssh_config(secrets_dir)
                most = setting_number(path, settings, "forge.checkoutLimit", CHECKOUT_BYTES, "bytes")
                tree = fill_checkout(slot, self.trash, path, facts["tested"], most, self._origin(job, known.base, facts))
                if kept and (self.tries.get(job.id, 0) < 3 or not kept.exception()):
                    kept.result()  # in the end it can do without
            self.littered.set()
        except Refused as error:
            self._end(job.id, error.text)
            return None
        except (GitError, OSError) as error:
            if self.must_wait(job.repo, error):
                self.discard(slot)
                self.littered.set()
                return None
            self.tries[job.id] = self.tries.get(job.id, 0) + 1
            again = isinstance(error, GitError) and error.passing and self.tries[job.id] < 4
            if isinstance(error, TooLarge):  # it would fill the disk again
                self.discard(slot)
                self.littered.set()
            elif again or self.no_room(error):
                self.discard(slot)
                self.littered.set()
                raise
            self._end(job.id, f"it could not be prepared: {error}")
            return None
        home = self.config.data_dir / "home" / job.repo / job.kind
        home.mkdir(parents=True, exist_ok=True)
        configured = settings.get(COMMAND_SETTING[job.kind].lower(), "")
        about = {"checkout": number, "timeout": timeout, "configured": configured, "sandboxed": self.bwrap is not None}
        about |= {"caused_by": said} if (said := cause.result()) else {}
        about |= {"secrets": whose} if whose is not None else {}
        with self.lock:
            if job.status != "pending" or self.closing:
                return None
            self.record(("job.started", {"id": job.id, "started_at": now(), **about, **facts}))
        run, log_file = self.config.data_dir / "running" / str(job.id), self.config.log(job.repo, job.id)
        if job.kind == POST and (secrets_masked(self.config, job) or self.config.password_file or self.config.password):
            log_file.unlink(missing_ok=True)  # that of another job in a restored copy: a mask would go on with it
            log_file = run / RAW_LOG
        environ = job_environ(self.config, self.url, job, home) | (ssh_environ(run) if ssh_config is not None else {})
        environ |= {"FORGE_SECRETS_DIR": str(secrets_dir)} if secrets_dir else {}
        return Launch(job.kind, tree, run, log_file, environ, path, home, configured, ssh_config, secrets_dir)

    def _origin(self, job: Job, base: str | None, facts: Mapping[str, Any]) -> Origin:
        """What a job's git calls origin: base is where the job found it, or what the job deploys."""
        branch, tip = (job.branch, job.commit) if job.kind == POST else (base, facts["base"])
        return Origin(f"{self.url}/r/{job.repo}.git", branch or "", (branch and tip) or "")

    def _cause(self, job: Job) -> str:
        """What brought the head that a job tests about, "" when it does not say. What the commit says the gate will ask, too."""
        with contextlib.suppress(GitError):
            return self.commit(job.repo, job.commit).cause if job.kind == PRE else ""
        return ""

    def _box(self, launch: Launch) -> list[str]:
        """What puts a job into its sandbox. The machine is looked at for each job: a folder with secrets may be new."""
        if self.bwrap is None:
            return []
        return sandbox_args(self.config, launch, look_around(self.config, self.bwrap, os.environ, launch.secrets_dir))

    def _candidate(self, path: Path, job: Job, tip: str | None) -> dict[str, Any]:
        """What a job tests: the merges that would become base; the head itself with conflicts or after a merge."""
        if job.tested:  # the queue has made it
            return {"base": job.base, "tested": job.tested, "tree": job.tree, "chain": job.chain}
        if job.kind == PRE and tip is not None:
            _, chain = self._chain(job.repo, tip, pairs(job.heads), job.id)
            if chain:
                return candidate_of(tip, chain)
        base = tip if job.kind == PRE else job.base
        return {"base": base, "tested": job.commit, "tree": tree_of(path, job.commit), "chain": []}

    def _chain(
        self, name: str, tip: str, heads: Iterable[tuple[str, str]], job_id: int, without: Iterable[str] = ()
    ) -> tuple[list[tuple[str, str]], list[list[str]]]:
        """Merge heads one after the other onto `tip`: those that could be, and [merge commit, tree] of each. Raises GitError.

        A head that would make a tree of those in `without` is left out.
        """
        merged_heads, chain = [], []
        for branch, head in heads:
            merged = self.merged(name, tip, head)
            if merged.tree and merged.tree not in without:
                path = self.config.repo(name)
                commit = partial(commit_tree, path, merged.tree, (tip, head), merge_message(branch, head, job_id))
                try:
                    tip = commit()
                except GitError:  # gc may have taken the tree since it was made
                    merge_tree(path, tip, head)
                    tip = commit()
                merged_heads.append((branch, head))
                chain.append([tip, merged.tree])
        return merged_heads, chain

    def _passed_before(self, job: Job, tree: str) -> Job | None:
        """The job by which a tree has passed with the command that a pending job would run, if its result may be used."""
        settings = self.settings(job.repo)
        unwanted = settings.get("forge.reuse", "true").lower() in ("false", "no", "off", "0")
        if job.kind == POST or job.retry_of is not None or unwanted:
            return None
        with self.lock:
            result = self.ledger.result(job.repo, tree, settings.get(COMMAND_SETTING[PRE].lower(), ""))
        return result if result and result.status == "passed" else None

    def _reuse(self, job: Job, facts: Mapping[str, Any]) -> bool:
        """Let a pending job pass at once when an equal tree has passed with the same command; whether it did."""
        result = self._passed_before(job, facts["tree"])
        if result is None:
            return False
        keep_tested(self.config.repo(job.repo), job.id, facts["tested"])
        cause = self._cause(job) or None
        with self.lock:
            if job.status != "pending":
                return False
            values = {
                **facts,
                "caused_by": cause,
                "command": result.command,
                "configured": result.configured,
                "reused_from": result.id,
            }
            reason = f"an equal tree passed in job {result.id}"
            done = replace(job, status="passed", reason=reason, duration=0.0, finished_at=now(), **values)
            self.record(("job.finished", job_record(done)))
            self.unspoken.add(job.id)
            self.lock.notify_all()
        log(f"job {job.id} ({job.repo}/{job.branch}, {job.kind}) passed: {reason}")
        self.poke(job.repo)
        return True

    def _free_slot(self, job: Job) -> None:
        """Give back a job's checkout unless it runs; the lock is held."""
        if job.status != "running" or job.id not in self.running:
            self.slots = {key: job_id for key, job_id in self.slots.items() if job_id != job.id}

    def _see_end(self, job_id: int) -> None:
        """The processes of a job are gone. Raises Refused(507), OSError."""
        if supervisor_began(self.config.data_dir / "running" / str(job_id)) or self.has_room():
            self._end(job_id)
        else:  # it could not even write who it is
            self._give_up(job_id)

    def _end(self, job_id: int, trouble: str | None = None) -> None:
        """Journal how a job ended, from what its supervisor left; `trouble` is why it never ran. Raises Refused(507), OSError."""
        run = self.config.data_dir / "running" / str(job_id)
        left, (command, skipped) = read_exit(run), read_command(run)
        code, up = left or (None, boot_clock())

        def judged(job: Job) -> Job:
            status, reason = verdict_of(job, code, command, skipped, trouble, why)
            return replace(job, status=status, reason=reason, exit_code=code, command=command, stopping=None)

        with self.lock:
            job, running = self.state.jobs.get(job_id), self.running.get(job_id)
        if job is None or not job.live:
            return
        if job.checkout is not None:  # what fills the disk must not stay until the next job, which waits for room
            self.discard(self.config.data_dir / "work" / job.repo / str(job.checkout) / "tmp")
        mask = running.mask if running else self._mask_of(job)
        for path in (self.config.log(job.repo, job_id), *([mask.raw] if mask else [])):
            with contextlib.suppress(FileNotFoundError):
                cut_hollow(path, self.config.log_limit)
        if mask:
            mask.copy(ended=True)
        if job.sandboxed and not trouble and not (command or skipped):
            trouble = sandbox_trouble(code, self.config.log(job.repo, job_id))
        why = self._why_not_run(job, code, command) if code and command and not trouble else None
        seen = judged(job)
        digest = self._digest(seen, why)
        with self.lock:
            job, running = self.state.jobs.get(job_id), self.running.get(job_id)
            if job is None or not job.live:
                return
            ended = judged(job)  # it may have been told to stop meanwhile
            status, reason = ended.status, ended.reason
            ended.digest = digest if (status, reason) == (seen.status, seen.reason) else None
            self._measure(ended, running.began if running else None, up if left or running else None)
            with contextlib.suppress(OSError):
                ended.log_size = self.config.log(job.repo, job_id).stat().st_size
            self.record(("job.finished", job_record(ended)), *self.ledger.flakes(ended))
            self.uncounted.append(self.config.log(job.repo, job_id))
            if running:
                os.close(running.pidfd)
                del self.running[job_id]
            self._free_slot(ended)
            self.tries.pop(job_id, None)
            if job.kind == PRE:
                self.unspoken.add(job_id)
            self.lock.notify_all()
        if code is None and not trouble:
            kill_leftovers(str(self.config.data_dir / "home" / ended.repo / ended.kind), job_id)
        self.discard(run)
        self.littered.set()
        log(f"job {job_id} ({ended.repo}/{ended.branch}, {ended.kind}) {status}{f': {reason}' if reason else ''}")
        if (status, ended.kind) != ("passed", PRE):
            self.dispatch()  # else the next job would start on the base before the merge that the step makes
        self.poke(ended.repo if ended.repo in self.state.repos else "")

    def _mask_of(self, job: Job) -> Mask | None:
        """What stands between a deployment and its log, when it was started with a log of its own."""
        raw = self.config.data_dir / "running" / str(job.id) / RAW_LOG
        log_file, folders = self.config.log(job.repo, job.id), secrets_masked(self.config, job)
        return Mask(self.config, raw, log_file, folders) if raw.exists() else None

    def _begin_mask(self, run: Running) -> None:
        """Let a masker thread serve the log of a job that has just been started or taken over."""
        if run.mask:
            threading.Thread(target=self._mask, args=(run, run.mask), name=f"mask-{run.job_id}", daemon=True).start()

    def _mask(self, run: Running, mask: Mask) -> None:
        """Serve the log of a job as it grows; a masker thread runs this and ends with the job, whose ender copies the rest."""
        while not self.closing and run.job_id in self.running:
            try:
                mask.copy()
            except OSError as error:
                self.complain(f"the log of job {run.job_id}", error)
            time.sleep(MASK_SECONDS)

    def _measure(self, ended: Job, began: float | None, up: float | None) -> None:
        """Say when a job ended and how long it took, from boot times (None: not known); the lock is held."""
        finished = time.time() - (max(0.0, boot_clock() - up) if up is not None else 0.0)
        if 0 <= self.ended_last - finished < 0.02:  # the uptime has hundredths; times are to tell the order of the records
            finished = self.ended_last + 0.001
        self.ended_last = finished
        ended.finished_at = at_time(finished)
        if began is not None and up is not None:
            ended.duration = round(max(0.0, up - began), 3)
        elif ended.started_at and up is not None:  # it ended while no server was there
            with contextlib.suppress(ValueError):
                ended.duration = round(max(0.0, finished - seconds_of(ended.started_at)), 3)

    def _why_not_run(self, job: Job, code: int, command: str) -> str | None:
        """What a job that has ended could not run, see `why_not_run`; its checkout is still there. An ender thread runs this."""
        work, home = (
            self.config.data_dir / "work" / job.repo / str(job.checkout),
            self.config.data_dir / "home" / job.repo / job.kind,
        )
        run, log_file = self.config.data_dir / "running" / str(job.id), self.config.log(job.repo, job.id)
        launch = Launch(job.kind, work / "tree", run, log_file, {}, self.config.repo(job.repo), home)
        boxed = self.bwrap if job.sandboxed else None
        seen = secrets_seen(self.config, job.secrets) if job.kind == POST else None
        mounts = sandbox_mounts(self.config, launch, look_around(self.config, boxed, os.environ, seen)) if boxed else {}
        with contextlib.suppress(OSError, ValueError):
            view = View(launch.tree, bare_environ(self.config, str(home))["PATH"], mounts)
            return why_not_run(code, command, read_tail(log_file), view)
        return None

    def _digest(self, job: Job, why: str | None) -> str | None:
        """Why a job that has ended did not pass, or None for one that was not wanted. What cannot be read is left out.

        `why` is what it could not run, where that is known.
        """
        if job.status not in FAILED:
            return None
        repo, log_file, parts = self.config.repo(job.repo), self.config.log(job.repo, job.id), [outcome(job)]
        try:
            with self.lock:
                passed, where = (None if job.interrupted else self.ledger.passed_before(job)) or (None, "")
            if not job.interrupted:
                usual = self.config.log(passed.repo, passed.reused_from or passed.id) if passed else None
                found = first_error(read_ends(log_file), usual_lines(read_ends(usual)) if usual else set())
                parts += [f"line {found[0]}: {fit(found[1], 160)}"] if found else []
                parts += [why] if why and why not in parts[0] else []
            parts += last_lines(read_tail(log_file))
            if passed and passed.finished_at:
                seconds = int(time.time() - seconds_of(passed.finished_at))
                parts.append(f"job {passed.id} passed {where} {'moments' if seconds < 10 else spell_age(seconds)} earlier")
                parts += spell_changes(len(job.heads) - 1, *self._changes(repo, job, passed))
        except (GitError, OSError, ValueError) as error:
            self.complain(f"the digest of job {job.id} is cut short", error)
        return fit_digest(parts)

    def _changes(self, repo: Path, job: Job, passed: Job) -> tuple[list[str], int, list[str]]:
        """Since a run that passed: (subjects of new commits, by how many base moved, paths that differ). Raises GitError."""
        before = dict(pairs(passed.heads)).get(job.branch)
        old_base, known, moved = passed.base if before else passed.tested, [before] if before else [], 0
        if job.kind == PRE and job.base and old_base:
            moved = len(read_subjects(repo, job.base, old_base)) if job.base != old_base else 0
            known.append(job.base)
        return read_subjects(repo, job.commit, *known), moved, changed_paths(repo, passed.tree or "", job.tree or "")

    # -- the watcher ----------------------------------------------------------

    def _watch(self) -> None:
        """The watcher thread: see jobs end, stop those that must, measure, and start a scan when one is due."""
        tick = scanned = time.monotonic()
        while not self.closing:
            try:
                self._wait_for_jobs(0.1 if self._enforce() else max(0.05, tick - time.monotonic()))
                if time.monotonic() >= tick:
                    tick = time.monotonic() + min(TICK_SECONDS, self.manager.every)
                    self._go_on()
                    self._check_jobs()
                    for name in [*self.ailing]:
                        self.examine(name)
                    self._greet()
                    self.dispatch()
                    for name in list(self.eager):
                        self.poke(name)
                    if self.manager.address:
                        self.manager.beat(self.status())
                if time.monotonic() >= scanned + (HURRY_SECONDS if self.hurry else SCAN_SECONDS):
                    scanned = time.monotonic()
                    self.poke("")
            except (Refused, OSError) as error:
                self.complain("the watcher", error)
                time.sleep(0.5)
            except Exception:
                log("the watcher stumbled and goes on", traceback.format_exc())
                time.sleep(0.5)

    def status(self) -> str:
        """How we are in one line, for who looks at services."""
        with self.lock:
            live = Counter(job.status for job in self.state.live_jobs())
            repos = plural(len(self.state.repos), "repo")
        return f"listening on {self.url}; {repos}, {plural(live['running'], 'job')} running, {live['pending']} pending"

    def _wait_for_jobs(self, seconds: float) -> None:
        poll = select.poll()
        poll.register(self.wake_out, select.POLLIN)
        running = {run.pidfd: run for run in self._alive()}
        for pidfd in running:
            poll.register(pidfd, select.POLLIN)
        awake = [file for file, _ in poll.poll(seconds * 1000)]
        if self.wake_out in awake:
            with contextlib.suppress(BlockingIOError):
                os.read(self.wake_out, 4096)
        for job_id in sorted((running[file].job_id for file in awake if file in running), key=self._when_ended):
            if self._ended_well(job_id):
                self._see_end(job_id)  # in this thread, so that who passed first is first in line
            else:
                with self.lock:
                    self.ending.add(job_id)
                threading.Thread(target=self._tell_end, args=(job_id,), name=f"end-{job_id}", daemon=True).start()

    def _ended_well(self, job_id: int) -> bool:
        """Whether the end of a job needs neither a digest nor the rest of its log."""
        run, job = self.config.data_dir / "running" / str(job_id), self.state.jobs.get(job_id)
        left = read_exit(run)
        return left is not None and left[0] == 0 and not (job and job.stopping) and not (run / RAW_LOG).exists()

    def _tell_end(self, job_id: int) -> None:
        """Tell the end of a job that did not pass; an ender thread runs this and ends with it."""
        try:
            self._see_end(job_id)
        except (Refused, OSError) as error:
            self.complain(f"the end of job {job_id}", error)
        except Exception:
            log(f"the end of job {job_id}", traceback.format_exc())
        finally:
            with self.lock:  # the watcher sees it again when that failed, but not at once
                self.lock.wait_for(lambda: self.closing or job_id not in self.running, timeout=0.5)
                self.ending.discard(job_id)
                self.lock.notify_all()
            self.wake()

    def _alive(self) -> list[Running]:
        """The jobs that run, without those whose end is being told."""
        with self.lock:
            return [run for run in self.running.values() if run.job_id not in self.ending]

    def _when_ended(self, job_id: int) -> tuple[float, int]:
        """Sorts jobs by when they ended (uptime); who passed first is first in line."""
        left = read_exit(self.config.data_dir / "running" / str(job_id))
        return (left[1] if left else float("inf"), job_id)

    def _enforce(self) -> bool:
        """Stop the jobs that are told to: SIGTERM, then SIGKILL after the grace. Returns whether any is on the way."""
        with self.lock:
            jobs = [(run, self.state.jobs[run.job_id]) for run in self._alive()]
            doomed = [run for run, job in jobs if job.stopping]
        for run in doomed:
            if run.stop_at is None:
                run.stop_at = boot_clock()
                signal_job(run.pid, signal.SIGTERM, run.sandboxed)
            elif boot_clock() - run.stop_at > GRACE_SECONDS:
                signal_job(run.pid, signal.SIGKILL, run.sandboxed)
                if boot_clock() - run.stop_at > 2 * GRACE_SECONDS:
                    with contextlib.suppress(ProcessLookupError):
                        signal.pidfd_send_signal(run.pidfd, signal.SIGKILL)
        return bool(doomed)

    def _check_jobs(self) -> None:
        """Measure the running jobs and hold them to their limits; end those that were lost."""
        with self.lock:
            runs = self._alive()
            lost = [
                j.id
                for j in self.state.live_jobs()
                if j.status == "running" and j.id not in self.running and j.id not in self.starting
            ]
        for job_id in lost:
            self._give_up(job_id)
        for run in runs:
            measure(run)
            verdict = self._over_limit(run)
            if verdict:
                with self.lock:
                    job = self.state.jobs.get(run.job_id)
                    if job and job.stoppable:
                        self.record(("job.stopping", {"id": job.id, "status": verdict[0], "reason": verdict[1]}))

    def _over_limit(self, run: Running) -> tuple[str, str] | None:
        """(status, reason) for a job that has had more than it may, or None."""
        config = self.config
        if boot_clock() > run.deadline:
            return "timeout", f"it ran longer than {round(run.deadline - run.began)} seconds"
        with contextlib.suppress(FileNotFoundError):
            if run.log.stat().st_size > config.log_limit:
                with contextlib.suppress(FileNotFoundError):  # else it is cut when the job has ended
                    cut_hollow(run.log, config.log_limit)
                return "failed", f"its log grew over {config.log_limit} bytes (FORGE_LOG_LIMIT)"
        if config.job_processes and run.figures["processes"] > config.job_processes:
            return "failed", f"it had more than {config.job_processes} processes (FORGE_JOB_PROCESSES)"
        if config.job_memory and run.figures["rss_bytes"] > config.job_memory:
            return "failed", f"it used more than {config.job_memory} bytes of memory (FORGE_JOB_MEMORY)"
        return None

    def _clean(self) -> None:
        """The janitor thread: empty the trash whenever something was put there; count the lines of logs before they are read."""
        while not self.closing:
            self.littered.wait()
            self.littered.clear()
            try:
                empty_trash(self.trash)
            except OSError as error:
                self.complain(str(self.trash), error)
            self._keep_snapshot(SNAPSHOT_RECORDS)
            while self.uncounted:
                path = self.uncounted.popleft()
                with contextlib.suppress(OSError):
                    self.line_counts.until(path, size_of(path))

    def _keep_house(self) -> None:
        """The keeper thread: prune now and then, and where no job runs or waits, git maintenance of a repo that has grown."""
        pruned = -math.inf
        while True:
            with self.lock:
                if self.lock.wait_for(lambda: self.closing, timeout=UPKEEP_LOOK):
                    return
            try:
                if time.monotonic() > pruned + UPKEEP_SECONDS:
                    done = prune(self, self.config.log_days, by_itself=True)
                    pruned = time.monotonic()
                    self._tell_upkeep(done)
                self._tend_grown()
            except Refused:
                continue  # a backup is made; later, then
            except (GitError, OSError) as error:
                self.complain("upkeep", error)
            except Exception:
                log("upkeep stumbled and goes on later", traceback.format_exc())

    def _tend_grown(self) -> None:
        """Git maintenance of the repos that have grown, one by one, while all is quiet. Raises Refused, GitError, OSError."""
        for name in self.repo_names():
            rested = time.monotonic() > self.tended.get(name, -math.inf) + TENDED_SECONDS
            with self.lock:
                quiet = not (self.closing or self.state.live_jobs())
            if not quiet or not rested or not has_grown(self.config.repo(name)):
                continue
            with upkeep_turn(self.config.data_dir):
                self.tended[name] = time.monotonic()
                tend_repo(self, name, done := Pruned())
            self._tell_upkeep(done)

    @staticmethod
    def _tell_upkeep(done: Pruned) -> None:
        """One line in the log about what was freed, if anything was."""
        if +done.counts:
            log(f"upkeep: {spell_pruned(done.view(False))}")

    def _keep_snapshot(self, records: int) -> None:
        """Write a snapshot when so many records have come since the last one. Only what is in memory is taken under the lock."""
        with self.lock:
            if self.ledger.fresh < records:
                return
            frozen_ledger = self.ledger.freeze()
        try:
            write_snapshot(self.config.data_dir / "snapshot", *frozen_ledger)
        except OSError as error:
            log(f"the snapshot of the journal cannot be written ({error.strerror}); the next start reads more of the journal")

    # -- the gate, performed ----------------------------------------------------

    def _work(self) -> None:
        """A worker thread: step the repos that are to be stepped."""
        while True:
            with self.lock:
                # a repo in which git needs long keeps one of us, however often it is asked for
                while (name := next((name for name in self.todo if name not in self.stepped), None)) is None and not self.closing:
                    self.lock.wait()
                if self.closing or name is None:
                    return
                del self.todo[name]
                self.stepped.add(name)
            self.hasty.on = not name  # a scan has the other repos to look at
            try:
                if name:
                    self.step(name)
                else:
                    self.scan()
            except (Refused, GitError, OSError) as error:
                if not (name and (self.must_wait(name, error) or name in self.ailing)):
                    self._failed(name or "scan", error)
            except Exception:
                log(name or "scan", traceback.format_exc())
            finally:
                with self.lock:
                    self.stepped.discard(name)
                    self.lock.notify_all()

    def step(self, name: str) -> None:
        """Do what the gate wants done in a repo until it wants nothing more. Raises Refused, GitError."""
        self.eager = self.eager - {name}  # else a repo that cannot be looked at is asked for each second
        if not self.meet(name):
            return
        going = True
        while going and not self.closing:
            with self.turn(name):
                self.eager = self.eager - {name}
                refs = self.look(name)
                if name in self.ailing:
                    return
                facts = self.gather(name, refs)
                with self.lock:
                    known = self.state.repos[name]
                    jobs = {job.id: job for job in self.state.jobs.values() if job.repo == name}
                    apart = {head for repo, _, head in self.stuck if repo == name}
                    action = decide(known, refs, jobs, facts, time.time(), apart)
                    if action is None and line_up(known, refs, jobs, facts, apart):
                        self.eager = self.eager | {name}
                going = self._perform(name, refs, action) or self._renew(name, refs)
                if not going:
                    self._announce(name, refs, facts)
            if not isinstance(action, Merge):  # after a merge the next round looks first, so that nothing starts on the old base
                self.dispatch()
        self._reuse_results(name)

    def _perform(self, name: str, refs: Refs, action: Queue | Merge | Blame | None) -> bool:
        """Do what the gate decided; whether to ask it again. The repo's turn is held."""
        if isinstance(action, Merge):
            return (self._land_rollback if action.job.is_rollback else self._merge)(name, refs, action)
        if isinstance(action, Blame):
            with self.lock:
                passed_on = self.state.repos[name].branches[action.branch].passed_on
            how = ("--first-parent", "--ignore-missing", *([f"^{passed_on}"] if passed_on else []))
            since = read_landed(self.config.repo(name), refs.tip or "", *how)
            with self.lock:
                merges = [merge for merge in self.ledger.merges_of(name) if merge["merge_commit"] in since]
                others = [f"a rollback of {m['branch']}" if m["how"] == "rollback" else m["branch"] for m in merges][::-1]
                others += [f"direct pushes to {refs.base}"] if len(since) > len(merges) and passed_on else []
                self.record(("head.blamed", {"repo": name, **action._asdict(), "others": others}))
        elif action and action.cause == "rollback":
            self._queue_rollback(name, refs, action.heads[0][1], action.retry_of)
        elif action and action.cause == "retest":
            self._queue_together(name, refs, action.heads, action.retry_of)
        elif action:
            with self.lock:
                self.record(queue_job(self.next_id(), name, PRE, action.heads, action.cause, retry_of=action.retry_of))
        return action is not None

    def _queue_together(self, name: str, refs: Refs, heads: tuple[tuple[str, str], ...], retry_of: int | None) -> Job:
        """Chain passed heads on base and journal the job that tests them. What conflicts with one ahead of it is left out.

        The repo's turn is held. Raises GitError, Refused.
        """
        assert refs.tip
        with self.lock:
            self.promised.add(job_id := self.next_id())
            held = held_trees(self.state.repos.get(name, Repo()))
        try:
            merged_heads, chain = self._chain(name, refs.tip, heads, job_id, held)
            if not chain:
                raise Refused(409, f"nothing of it can be merged into {refs.base} by now; look at it again")
            keep_tested(self.config.repo(name), job_id, chain[-1][0])
            candidate = candidate_of(refs.tip, chain)
            with self.lock:
                self.record(queue_job(job_id, name, PRE, merged_heads, "retest", retry_of=retry_of, **candidate))
                job = self.state.jobs[job_id]
        finally:
            with self.lock:
                self.promised.discard(job_id)
        self._reuse(job, candidate)
        return job

    def _reuse_results(self, name: str) -> None:
        """Let pending first tests pass whose candidate's tree has passed already; they need not wait for a place to run."""
        with self.lock:
            tip = self.state.repos[name].tip
            waiting = [job for job in self.state.live_jobs(name) if job.status == "pending" and job.is_first]
        if tip is None:
            return
        for job in waiting:
            with contextlib.suppress(GitError):  # its start will say so
                tree = self.merged(name, tip, job.commit).tree
                if tree and job.id not in self.starting and self._passed_before(job, tree):
                    self._reuse(job, self._candidate(self.config.repo(name), job, tip))

    def gather(self, name: str, refs: Refs) -> dict[str, Facts]:
        """What the gate needs to know of the heads that passed. The repo's turn is held."""
        with self.lock:
            known = self.state.repos.get(name, Repo())
            passed = [(branch_name, branch) for branch_name, branch in known.branches.items() if branch.passed is not None]
            heads = [branch.head for name, branch in passed if name in refs.ahead and refs.heads[name] == branch.head]
        if refs.tip is None:
            return {}
        self.learn(name, refs.tip, heads)
        facts = {}
        for head in heads:
            try:
                merged = self.merged(name, refs.tip, head)
                said = self.commit(name, head)
                facts[head] = Facts(said.auto_merge, merged, self.held(name, refs.tip, merged), said.unheard)
            except GitError as error:  # one broken commit must not hold up the other branches
                if not self.must_wait(name, error):
                    self.complain(f"{name}: {head} cannot be judged", error)
        return facts

    def _merge(self, name: str, refs: Refs, action: Merge) -> bool:
        """Move base to the tested candidate and remove the branch: intent, act, outcome. The repo's turn is held."""
        job, parent = action.job, refs.tip or ""
        merges: list[dict[str, Any]] = []
        for head, (commit, tree), how in zip(job.heads, job.chain, action.how, strict=True):
            about = {"repo": name, "base": refs.base, "branch": head["branch"], "head": head["commit"], "merge_commit": commit}
            cause = self.commit(name, head["commit"]).cause
            about |= {"caused_by": cause} if cause else {}
            merges.append({**about, "parent": parent, "tree": tree, "job": job.id, "how": how})
            parent = commit
        moves: list[tuple[str, str, str | None]] = [(f"refs/heads/{refs.base}", refs.tip or "", parent)]
        moves += [(f"refs/heads/{branch}", head, None) for branch, head in pairs(job.heads)]
        error = self._act(name, ("merge.begun", {"repo": name, "base": refs.base, "merges": merges}), moves)
        moved = error is not None and read_refs(self.config.repo(name)) != refs
        if error and self.no_room(error):
            raise error
        if error and not moved and self.must_wait(name, error):
            return True  # the next look sees that it waits
        if error:
            self._hurry_after(error)
        with self.lock:
            self.unspoken.discard(job.id)
            stderr = error.stderr if isinstance(error, GitError) else ""
            named = [merge for merge in merges if f"'refs/heads/{merge['branch']}'" in stderr]
            for merge in (named or merges) if error and not moved else ():  # one that is at fault alone leaves the others free
                key = (name, merge["branch"], merge["head"])
                self.stuck[key] = f"it could not be merged, and is tried again within a minute: {error}"
            self.lock.notify_all()
        for merge in merges:
            said = f"auto-merge not attempted for {name}/{merge['branch']}: {error}"
            log(said if error else f"merged {name}/{merge['branch']}: {merge['merge_commit']}")
        return True  # what has moved gets a new candidate, and what is stuck lets the others pass

    def _renew(self, name: str, refs: Refs) -> bool:
        """Make a bump anew that conflicts with base in nothing but flake.lock; whether to look again. The repo's turn is held."""
        with self.lock:
            known = self.unrenewed[name] = {b: why for b, why in self.unrenewed.get(name, {}).items() if b in refs.ahead}
        heads = {branch: refs.heads[branch] for branch in sorted(refs.ahead)} if refs.tip else {}
        self._learn(("commit", name), heads.values(), partial(read_commits, self.config.repo(name)))
        for branch, head in heads.items():
            if known.get(branch, ("", ""))[:2] == (head, refs.tip):
                continue
            try:
                said = self.commit(name, head)
                bump = said.cause and said.auto_merge and self.merged(name, refs.tip or "", head).conflicts == (LOCK,)
            except GitError:  # who is to judge it says so
                continue
            try:
                if bump and self._renew_bump(name, refs, branch, said.cause):
                    return True
            except LockTrouble as trouble:
                known[branch] = head, refs.tip or "", str(trouble)
                log(f"{name}/{branch} conflicts with {refs.base} in {LOCK} and cannot be made anew: {trouble}")
            except GitError as error:
                self._failed(f"{name}/{branch} cannot be made anew now", error)
        return False

    def _renew_bump(self, name: str, refs: Refs, branch: str, cause: str) -> bool:
        """Move a bump to a commit on the present base, or remove it where base has all it brings; whether that was done.

        Raises LockTrouble, GitError, Refused.
        """
        path, tip, head = self.config.repo(name), refs.tip or "", refs.heads[branch]
        start = self.counts(name, tip, head)[0]
        if start is None or changed_paths(path, start, head) != [LOCK]:
            raise LockTrouble(f"it changes more than {LOCK}")
        before, base, bump = (self._lock_at(path, commit) for commit in (start, tip, head))
        lock = renewed_lock(before, base, bump, partial(self._overtakes, parse_cause(cause)))
        about, new = {"repo": name, "branch": branch, "head": head}, None
        what = f"{refs.base} has what it brings already"
        intent = "branch.deleting", {**about, "reason": what}
        if lock is not None:
            new = commit_again(path, head, tree_with(path, tip, LOCK, lock_text(lock)), tip)
            intent, what = ("branch.renewing", {**about, "commit": new}), f"it is made anew on {refs.base} as {new}"
        error = self._act(name, intent, [(f"refs/heads/{branch}", head, new)])
        if error:
            raise error
        log(f"{name}/{branch} conflicted with {refs.base} in {LOCK}: {'' if new else 'removed, since '}{what}")
        return True

    def _lock_at(self, path: Path, commit: str) -> dict[str, Any]:
        """The flake.lock of a commit, empty where it has none. Raises LockTrouble, GitError."""
        if not git(path, "ls-tree", "--name-only", commit, LOCK):
            return NO_LOCK
        found, whole = git_beginning(path, LOCK_BYTES, "cat-file", "blob", f"{commit}:{LOCK}")
        if not whole:
            raise LockTrouble(f"{LOCK} is larger than {spell_bytes(LOCK_BYTES)}")
        return parse_lock(found.decode("utf-8", "replace"))

    def _overtakes(self, cause: Cause | None, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
        """Whether the commit that base is locked to contains that of a bump, by the repo that the bump comes from.

        Without it the later date wins; nothing is removed for that. Raises LockTrouble, GitError.
        """
        path = self.config.repo(cause.repo) if cause else None
        if path and path.is_dir():
            if is_ancestor(path, theirs["rev"], ours["rev"]):
                return True
            if is_ancestor(path, ours["rev"], theirs["rev"]):
                return False
        old, new = (source.get("lastModified") for source in (ours, theirs))
        if not (type(old) is int and type(new) is int and old < new):
            raise LockTrouble(f"base is at {ours['rev'][:10]}, and nothing says that {theirs['rev'][:10]} is newer")
        return False

    def _act(self, name: str, intent: Event, moves: list[tuple[str, str, str | None]]) -> GitError | OSError | None:
        """Journal an intent, move refs, journal the outcome; the error, if nothing was moved. The repo's turn is held."""
        path = self.config.repo(name)
        with self.lock:
            (begun,) = self.record(intent)
        try:
            move_refs(path, moves)
            outcome, failure = outcome_of(begun), None
        except (GitError, OSError) as error:
            outcome = self._settled(path, begun, str(error))  # git may have been killed halfway
            failure = None if outcome[-1][0] in ("merged", "branch.deleted", "branch.renewed") else error
        with self.lock:
            self.record(*outcome)
        return failure

    def _settle(self, name: str, path: Path) -> None:
        """Finish or give up what was begun on a repo's refs and has no outcome, by what git says.

        The repo's turn is held, so nothing is under way. Raises Refused, GitError.
        """
        with self.lock:
            intents = [intent for intent in self.state.intents.values() if intent["repo"] == name]
        for intent in intents:
            outcome = self._settled(path, intent, "the server ended before base was moved")
            with self.lock:
                self.record(*outcome)
            log(f"{name}: what was begun before ({intent['event']}) is settled: {', '.join(e for e, _ in outcome)}")

    def _settled(self, path: Path, intent: dict[str, Any], reason: str) -> list[Event]:
        """The outcome of an intent by what git says; what was done in part is completed. Raises GitError."""
        mend_locks(path)
        heads = read_refs(path).heads
        if intent["event"] == "branch.deleting":
            return outcome_of(intent, None if heads.get(intent["branch"]) is None else reason)
        if intent["event"] == "branch.renewing":
            return outcome_of(intent, None if heads.get(intent["branch"]) == intent["commit"] else reason)
        tip = heads.get(intent["base"])
        if tip is None or not is_ancestor(path, intent["merges"][-1]["merge_commit"], tip):
            return outcome_of(intent, reason)
        gone = [merge for merge in intent["merges"] if merge["branch"] != intent["base"]]  # a rollback removes no branch
        left = [(f"refs/heads/{merge['branch']}", merge["head"], None) for merge in gone]
        left = [move for move in left if heads.get(move[0][11:]) == move[1]]
        if left:
            move_refs(path, left)
        return outcome_of(intent)

    def _complete_history(self, name: str, path: Path) -> None:
        """Record the newest merges of base that have no record (merges.jsonl was lost in part), by the jobs that tested them."""
        with self.turn(name):
            self._settle(name, self.readable(name))
            refs = read_refs(path)
            how = ("--first-parent", f"--max-count={HISTORY_CHECKED}")
            line = read_landed(path, refs.tip, *how) if refs.tip else {}
            with self.lock:
                known = {merge["merge_commit"] for merge in self.ledger.merges_of(name, limit=HISTORY_CHECKED)}
            new = list(itertools.takewhile(lambda landed: landed.commit not in known, line.values()))
            for landed in reversed(new):
                merge = self._merge_from_commit(name, refs.base, landed)
                if merge:
                    with self.lock:
                        self.record(("merged", merge))
                    log(f"{name}: the merge of {merge['branch']} ({landed.commit}) had no record; it is written from the commit")
        self.checked.add(name)

    def _merge_from_commit(self, name: str, base: str | None, landed: Landed) -> dict[str, Any] | None:
        """The record of a merge from its commit, if a job that passed has tested exactly this commit; else None."""
        with self.lock:
            job = self.ledger.job(int(landed.job)) if re.fullmatch("[1-9][0-9]{0,17}", landed.job) else None
        commit, tree, parents = landed.commit, landed.tree, landed.parents.split()
        place = [link[0] for link in job.chain].index(commit) if job and [commit, tree] in job.chain else -1
        if job is None or place < 0 or (job.repo, job.status, len(parents)) != (name, "passed", 2):
            return None  # a direct push, whatever it says of itself
        about = {"repo": name, "base": base, "branch": job.heads[place]["branch"], "head": parents[1], "merge_commit": commit}
        said = self.commit(name, parents[1])
        how, about = "auto" if said.auto_merge else "manual", about | ({"caused_by": said.cause} if said.cause else {})
        merged_at = landed.authored_at or now()
        return {**about, "parent": parents[0], "tree": tree, "job": job.id, "how": how, "begun": 0, "merged_at": merged_at}

    def _announce(self, name: str, refs: Refs, facts: Mapping[str, Facts]) -> None:
        """Say in the log why the branches whose jobs have just ended are not merged: one line a verdict."""
        with self.lock:
            spoken = [job for job in map(self.ledger.job, sorted(self.unspoken)) if job and job.repo == name]
            self.unspoken -= {job.id for job in spoken}
            known = self.state.repos.get(name, Repo())
            for verdict in spoken:
                if verdict.is_rollback:
                    why = self.stuck.get((name, verdict.branch, verdict.commit)) or f"{verdict.status}, {verdict.reason}"
                    log(f"{name}/{verdict.branch} was not rolled back to {verdict.commit}: job {verdict.id}: {why}")
                for head in verdict.heads if not verdict.is_rollback else ():
                    why = self._why_not(known, refs, verdict, head, facts)
                    log(f"auto-merge not attempted for {name}/{head['branch']}: {why}")

    def _why_not(self, known: Repo, refs: Refs, job: Job, head: Mapping[str, str], facts: Mapping[str, Facts]) -> str:
        """Why a job that has ended does not lead to a merge of one of its heads; the lock is held."""
        branch, about = known.branches.get(head["branch"]), facts.get(head["commit"])
        newest = self.ledger.job(branch.job) if branch and branch.job else None
        if branch is None or branch.head != head["commit"] or newest is None:
            return job.reason or "the branch has moved on"
        if newest.id != job.id:
            return f"{job.reason if newest.is_first else 'base has moved on'}; job {newest.id} tests it again"
        about = about or Facts(False, Merged(None))
        blockers = why_blocked(head["branch"], refs, known, job, about.merged, about.held)
        return explain(blockers, wish_of(branch, about), job.base != refs.tip, about.unheard)

    # -- what people ask for ------------------------------------------------------

    def ask_merge(self, name: str, branch: str, head: str | None = None) -> dict[str, Any]:
        """Merge a branch, or have it merged as soon as it may be.

        Returns the merge's record, or {"status": "queued", "job": Job}. Raises Refused with the gate's reason.
        """
        with self.turn(name):
            refs = self.look(name)
            head = self._open_head(name, refs, branch, head)
            merged = self.merged(name, refs.tip, head) if refs.tip else None
            held = self.held(name, refs.tip, merged)
            with self.lock:
                known, job = self.state.repos[name], self.state.newest_job(name, branch)
                blockers = why_no_merge(why_blocked(branch, refs, known, job, merged, held), job)
                if blockers:
                    raise Refused(409, f"{branch} cannot be merged: {'; '.join(blockers)}")
                (asked,) = self.record(("merge.asked", {"repo": name, "branch": branch, "head": head, "how": "manual"}))
                self.stuck.pop((name, branch, head), None)
        self.step(name)
        with self.lock:
            done = self.ledger.merges_of(name, branch, 1)
            if done and done[0]["head"] == head and done[0]["seq"] > asked["seq"]:
                return done[0]
            job, there = self.state.newest_job(name, branch), self.state.repos[name].branches.get(branch)
            waits = there and there.head == head and job and (job.live or there.passed is not None)
            if not waits or (name, branch, head) in self.stuck:
                reason = self.stuck.get((name, branch, head), "it has changed meanwhile; look at it again")
                raise Refused(409, f"{branch} was not merged: {reason}")
            return {"status": "queued", "job": job}

    def _open_head(self, name: str, refs: Refs, branch: str, head: str | None) -> str:
        """The head of an open branch. Raises Refused when there is none, it is base, or it is not `head`."""
        there = refs.heads.get(branch)
        if there is None:
            with self.lock:
                done = self.ledger.merge_of(name, branch)
            said = f"; it was merged as {done['merge_commit']}" if done else ""
            raise Refused(404, f"{name} has no branch {branch}{said}")
        if branch == refs.base:
            raise Refused(409, f"{branch} is the base of {name}")
        if head is not None and head != there:
            raise Refused(409, f"{branch} is at {there} now, not at {head}; look at it again")
        return there

    def delete_branch(self, name: str, branch: str, head: str | None = None) -> dict[str, Any]:
        """Delete a branch, if it is still where it was seen. Raises Refused."""
        with self.turn(name):
            refs = self.look(name)
            head = self._open_head(name, refs, branch, head)
            about = {"repo": name, "branch": branch, "head": head}
            error = self._act(name, ("branch.deleting", about), [(f"refs/heads/{branch}", head, None)])
            if error:
                why = self.must_wait(name, error) or str(error)
                raise error if self.no_room(error) else Refused(409, f"{branch} was not deleted: {why}")
            self.look(name)  # ends its job
        self.poke(name)
        return about

    def cancel(self, job_id: int) -> Job:
        """End a pending or running job. Raises Refused when there is none, or it has ended."""
        with self.lock:
            job = self.ledger.job(job_id)
            if job is None:
                raise Refused(404, f"there is no job {job_id}")
            if not job.live:
                raise Refused(409, f"job {job_id} has ended already: {job.status}")
            if not job.stopping:
                self.record(end_job(job, "canceled", "somebody canceled it"))
        self.dispatch()
        self.poke(job.repo)
        return job

    def retry(self, job_id: int) -> Job:
        """Run a job again: the same head on the present base, or a deployment whose commit is still base. Raises Refused."""
        with self.lock:
            old = self.ledger.job(job_id)
        if old is None:
            raise Refused(404, f"there is no job {job_id}")
        with self.turn(old.repo):
            refs = self.look(old.repo)
            with self.lock:
                reason = why_no_retry(old, refs, self.state.live_jobs(old.repo), self._rolling(old.repo))
                if reason:
                    raise Refused(409, reason)
                if old.kind == POST or old.is_first:
                    base = old.base if old.kind == POST else None
                    event = queue_job(self.next_id(), old.repo, old.kind, pairs(old.heads), "retry", base=base, retry_of=job_id)
                    self.record(event)
                    job = self.state.jobs[event[1]["id"]]
            if old.is_rollback:
                job = self._queue_rollback(old.repo, refs, old.commit, job_id)
            elif old.kind == PRE and not old.is_first:
                job = self._queue_together(old.repo, refs, still_open(old, refs), job_id)
        self.dispatch()
        return job

    # -- the way back ---------------------------------------------------------------

    def roll_back(self, name: str, given: str, untested: bool = False) -> dict[str, Any]:
        """Give base the tree of the earlier commit `given` again: at once if that tree has passed, or `untested`.

        Returns the record, or {"status": "queued", "job": Job}. Raises Refused, GitError.
        """
        with self.turn(name):
            refs = self.look(name)
            line, target = self._base_commit(name, refs, given)
            trees = {landed.commit: landed.tree for landed in line.values()}
            reason = why_no_rollback(refs.base or "", refs.tip or "", trees, target.commit)
            with self.lock:
                passed, rolling = self.ledger.result(name, target.tree, None, "passed"), self._rolling(name)
            if not reason and rolling and not untested:
                reason = why_no_rollback_test(rolling)
            if reason:
                raise Refused(409, reason)
            if not passed and not untested:
                job = self._queue_rollback(name, refs, target.commit)
            else:
                error = self._roll_back_to(name, refs, target.commit, target.tree, passed)
                if error:
                    why = self.must_wait(name, error) or str(error)
                    raise error if self.no_room(error) else Refused(409, f"{refs.base} was not rolled back: {why}")
                self.look(name)  # base has moved: post-merge
        self.dispatch()
        self.poke(name)
        if not passed and not untested:
            return {"status": "queued", "job": job}
        with self.lock:
            return self.ledger.merges_of(name, refs.base, 1)[0]

    def _rolling(self, name: str) -> Job | None:
        """The job that tests a rollback of a repo; the lock is held."""
        return self.state.jobs.get(self.state.repos.get(name, Repo()).rollback or 0)

    def _base_commit(self, name: str, refs: Refs, given: str) -> tuple[dict[str, Landed], Landed]:
        """The newest commits of base's own line, and the one of them that an id or its beginning means. Raises Refused."""
        given = check_prefix(given)
        if refs.tip is None:
            raise Refused(409, f"{name} has no base yet, so there is no commit of it")
        path = self.config.repo(name)
        line = read_landed(path, refs.tip, "--first-parent", f"--max-count={LINE_MOST}")
        found = [landed for landed in line.values() if landed.commit.startswith(given)]
        if len(found) > 1:
            raise Refused(409, f"{given} is the beginning of {len(found)} commits of {refs.base}; give more of its id")
        if found:
            return line, found[0]
        objects = git(path, "rev-parse", f"--disambiguate={given}").split()
        if any(is_ancestor(path, one, refs.tip) for one in objects[:20]):
            raise Refused(409, f"{given} is not among the newest {LINE_MOST} commits of {refs.base}'s own line (first parents)")
        raise Refused(404, f"{refs.base} of {name} has no commit {given}")

    def _queue_rollback(self, name: str, refs: Refs, target: str, retry_of: int | None = None) -> Job:
        """Make the commit that goes back to an older tree, and the job that tests it. The repo's turn is held.

        Raises GitError, Refused.
        """
        assert refs.tip and refs.base
        with self.lock:
            self.promised.add(job_id := self.next_id())
        try:
            tree = tree_of(self.config.repo(name), target)
            candidate = candidate_of(refs.tip, [[self._rollback_commit(name, refs, target, tree, job_id), tree]])
            keep_tested(self.config.repo(name), job_id, candidate["tested"])
            with self.lock:
                self.record(queue_job(job_id, name, PRE, ((refs.base, target),), "rollback", retry_of=retry_of, **candidate))
                return self.state.jobs[job_id]
        finally:
            with self.lock:
                self.promised.discard(job_id)

    def _rollback_commit(self, name: str, refs: Refs, target: str, tree: str, job_id: int) -> str:
        assert refs.tip
        path = self.config.repo(name)
        undone = list(read_landed(path, refs.tip, "--first-parent", f"^{target}").values())
        return commit_tree(path, tree, [refs.tip], rollback_message(target, undone, job_id))

    def _land_rollback(self, name: str, refs: Refs, action: Merge) -> bool:
        """Move base to the rollback that has passed. The repo's turn is held."""
        job = action.job
        error = self._roll_back_to(name, refs, job.commit, job.tree or "", job)
        if error and self.no_room(error):
            raise error
        if error and not self.must_wait(name, error):
            self._hurry_after(error)
            with self.lock:
                self.stuck[name, job.branch, job.commit] = f"it could not land, and is tried again within a minute: {error}"
        return True

    def _roll_back_to(self, name: str, refs: Refs, target: str, tree: str, job: Job | None) -> GitError | OSError | None:
        """Move base to a commit with an older tree, with its holds: intent, act, outcome; the error, if nothing was moved.

        `job` has passed on that tree; None: nobody knows. The repo's turn is held. Raises Refused, GitError.
        """
        assert refs.tip and refs.base
        path, job_id = self.config.repo(name), job.id if job else 0
        commit = job.tested if job and job.is_rollback and job.base == refs.tip else None
        commit = commit or self._rollback_commit(name, refs, target, tree, job_id)
        about: dict[str, Any] = {
            "repo": name,
            "base": refs.base,
            "branch": refs.base,
            "head": target,
            "merge_commit": commit,
            "parent": refs.tip,
        }
        about |= {"tree": tree, "job": job_id, "how": "rollback", **({} if job else {"untested": True})}
        line = read_landed(path, refs.tip, "--first-parent", f"--max-count={LINE_MOST}")
        undone = taken_back(line, refs.tip, target)
        locks = read_locks(path, [target, *(word for landed in undone for word in [landed.commit, *landed.parents.split()[:1]])])
        with self.lock:
            known = [*self.state.repos[name].holds.values()]
        lifted = lifted_by(known, target, tree)
        placed = holds_of(undone, tree, locks, locks[target])
        said = {"rollback": commit, "reason": f"{refs.base} was rolled back to {target[:12]}"}
        placed = [hold | said for hold in placed if hold["commit"] not in {hold.commit for hold in known}]
        intent = {"repo": name, "base": refs.base, "merges": [about], "holds": placed, "lifted": lifted}
        error = self._act(name, ("merge.begun", intent), [(f"refs/heads/{refs.base}", refs.tip, commit)])
        if error:
            return error
        with self.lock:
            self.unspoken.discard(job_id)
        log(f"rolled back {name}/{refs.base} to {target}: {commit}")
        return None

    def hold(self, name: str, given: str, lift: bool = False) -> Hold:
        """Place a hold on what a commit of base brought, or lift one. Raises Refused, GitError."""
        with self.turn(name):
            refs = self.look(name)
            if lift:
                hold = self._lift_hold(name, given)
            else:
                landed = self._base_commit(name, refs, given)[1]
                with self.lock:
                    known = self.state.repos[name].holds.get(landed.commit)
                hold = known or self._place_hold(name, landed)
        self.poke(name)
        return hold

    def _lift_hold(self, name: str, given: str) -> Hold:
        """Lift the hold that a commit's id or its beginning means, wherever base is by now. Raises Refused."""
        given = check_prefix(given)
        with self.lock:
            found = [hold for commit, hold in self.state.repos[name].holds.items() if commit.startswith(given)]
            if len(found) > 1:
                raise Refused(409, f"{given} is the beginning of {len(found)} commits on hold; give more of it")
            if not found:
                raise Refused(404, f"{name} has no hold on {shorten(given)}; forge hold {name} lists them")
            self.record(("hold.lifted", {"repo": name, "commit": found[0].commit}))
            return found[0]

    def _place_hold(self, name: str, landed: Landed) -> Hold:
        """Put a commit of base on hold by hand. The repo's turn is held. Raises Refused, GitError."""
        locks = read_locks(self.config.repo(name), [landed.commit, *landed.parents.split()[:1]])
        brought = bumped_inputs(locks.get(landed.parents.split(" ")[0], {}), locks[landed.commit])
        facts = {"commit": landed.commit, "tree": landed.tree, "inputs": as_pairs(brought), "reason": "somebody put it on hold"}
        with self.lock:
            self.record(("hold.placed", {"repo": name, **facts}))
            return self.state.repos[name].holds[landed.commit]


def check_prefix(given: str) -> str:
    """The id of a commit, or its beginning, as git spells it. Raises Refused."""
    if not re.fullmatch("[0-9a-f]{4,64}", given.lower()):
        raise Refused(400, f"{shorten(given)} is no commit id: at least four of its hex digits are needed")
    return given.lower()


def outcome_of(intent: Mapping[str, Any], failure: str | None = None) -> list[Event]:
    """The events that say how an intent ended; `failure` is why nothing was moved."""
    if intent["event"] == "branch.deleting":
        about = {name: intent[name] for name in ("repo", "branch", "head")}
        return [("branch.kept" if failure else "branch.deleted", {**about, "begun": intent["seq"]})]
    if intent["event"] == "branch.renewing":
        about = {name: intent[name] for name in ("repo", "branch", "head", "commit")}
        return [("branch.kept" if failure else "branch.renewed", {**about, "begun": intent["seq"]})]
    if failure:
        return [("merge.abandoned", {"repo": intent["repo"], "begun": intent["seq"], "reason": failure})]
    merged = [("merged", {**merge, "begun": intent["seq"], "merged_at": now()}) for merge in intent["merges"]]
    lifted = [("hold.lifted", {"repo": intent["repo"], "commit": commit}) for commit in intent.get("lifted", ())]
    placed = [("hold.placed", {"repo": intent["repo"], **hold}) for hold in intent.get("holds", ())]
    return [*lifted, *placed, *merged]  # the last one ends the intent: when a crash tears these apart, all are written again


def is_ancestor(repo: Path, commit: str, of: str) -> bool:
    """Whether `of` contains `commit`; it does not contain one that is not there. Raises GitError when git was killed."""
    args = ("merge-base", "--is-ancestor", commit, of)
    process = git_process(repo, args)
    git_output(process, args, ok=(0, 1, 128))
    return process.returncode == 0


def job_environ(config: Config, url: str, job: Job, home: Path) -> dict[str, str]:
    """The environment of a job but for its secrets: nothing else of the server's reaches it."""
    inherited = {name: value for name, value in os.environ.items() if name.startswith("NIX_")}
    return {
        **inherited,
        **bare_environ(config, str(home)),
        "CI": "true",
        "CLICOLOR_FORCE": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "FORGE_URL": url,
        "FORGE_REPO": job.repo,
        "FORGE_BRANCH": job.branch,
        "FORGE_KIND": job.kind,
        "FORGE_JOB_ID": str(job.id),
        "FORGE_COMMIT": job.commit,
        "FORGE_BASE": job.base or "",
        "FORGE_TESTED": job.tested or "",
    }


def read_ssh_config(secrets_dir: Path | None) -> bytes | None:
    """What `ssh -F` is to read for the ssh/ in what a job sees of the secrets, or None when that is not there. Raises OSError.

    The first value of an option is the one that counts, so the config that lies there comes last. It is copied, since
    what is included must belong to the user, which looks otherwise in the sandbox, and is a pattern of names.
    """
    place = secrets_dir and secrets_dir / "ssh"
    if not place or not place.is_dir():
        return None
    own = place / "config"
    # % begins a token; and a known_hosts file called `none`, which ssh takes for no file, could be one in a checkout
    key, hosts = (quote_ssh(str(place / name).replace("%", "%%")) for name in ("id_ed25519", "known_hosts"))
    lines = [
        "BatchMode yes",
        "StrictHostKeyChecking yes",
        f"UserKnownHostsFile {hosts}",
        f"GlobalKnownHostsFile {os.devnull}",
        "UpdateHostKeys no",
        "IdentitiesOnly yes",
        "IdentityAgent none",
        f"IdentityFile {key}",
    ]
    return "\n".join([*lines, ""]).encode("utf-8", "surrogateescape") + (own.read_bytes() if own.exists() else b"")


def quote_ssh(word: str) -> str:
    """A word for a line of ssh_config."""
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def ssh_environ(run: Path) -> dict[str, str]:
    """By what git, Nix and ssh use the deploy key: OpenSSH takes `~` from the passwd entry, not from HOME.

    Nix takes NIX_SSHOPTS apart at white space and knows no quotes, so a path with some cannot be told to it.
    """
    config = str(run / SSH_CONFIG)
    nix = {} if re.search(r"\s", config) else {"NIX_SSHOPTS": f"-F {config}"}
    return {"FORGE_SSH_CONFIG": config, "GIT_SSH_COMMAND": shlex.join(["ssh", "-F", config]), **nix}


def bare_environ(config: Config, home: str) -> dict[str, str]:
    """What each process needs that is not ours, and nothing that it must not know."""
    return {
        "PATH": f"{config.data_dir / 'bin'}:{os.environ.get('PATH', os.defpath)}",
        "HOME": home,
        "USER": user_of(os.geteuid())[0],
        "LANG": os.environ.get("LANG") or "C.UTF-8",
        "TZ": os.environ.get("TZ") or "UTC",
    }


def notify_environ(config: Config, url: str) -> dict[str, str]:
    """The whole environment of FORGE_NOTIFY: `forge` works in it, but it holds no password."""
    home = os.environ.get("HOME") or user_of(os.geteuid())[1] or "/"
    return {**bare_environ(config, home), "FORGE_DATA_DIR": str(config.data_dir), "FORGE_URL": url}


def prepare_data_dir(config: Config) -> list[int]:
    """Make what is missing in the data directory and take its lock. Returns the descriptors that hold the lock.

    Where there is no room, what is there already has to do. Raises AlreadyServed with the pid of the server that has it, OSError.
    """
    root = config.data_dir
    for folder in ("repos", "logs", "work", "home", "running", "incoming", "trash", "bin"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for folder in ("work", "home", "running"):  # a job can leave a program that makes who runs it the server's user (chmod u+s)
        if stat.S_IMODE((root / folder).stat().st_mode) & 0o077:
            (root / folder).chmod(0o700)
    lock = take_lock(root / "lock")
    for name in ("token", "hook-token", "session-key"):
        with contextlib.suppress(FileNotFoundError):
            if (root / name).read_text().strip():  # else a power cut took what it said
                continue
        write_whole(root / name, f"{secrets.token_urlsafe(32)}\n".encode())
    hook_token = (root / "hook-token").read_text().strip()
    refresh(root / "hook-header", f"Authorization: Bearer {hook_token}\n")
    refresh(root / "bin" / "forge", own_command(config), 0o755)
    try:
        make_plain_dirs(root / "git")
    except OSError as error:
        if not lacks_room(error):
            raise
        log(f"{root / 'git'} cannot be made ({error.strerror}); until a start with room git reads what repos configure")
    return [lock]


def take_lock(path: Path) -> int:
    """Take the lock of a data directory, and say in it who has it. Raises AlreadyServed, OSError."""
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        if not lacks_room(error):
            raise
        lock = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        pid = (os.read(lock, 64).decode().split() or ["unknown"])[0]
        os.close(lock)
        raise AlreadyServed(f"{path.parent} is served already, by the process with pid {pid}; stop it first") from None
    text = f"{os.getpid()}\n".encode()
    with contextlib.suppress(OSError):  # the lock holds, whatever the file says
        os.pwrite(lock, text, 0)  # before it is cut, so that who looks now finds a number
        os.ftruncate(lock, len(text))
    return lock


def refresh(path: Path, text: str, mode: int = 0o600) -> bool:
    """Bring a file up to date if there is room, and return whether it is; else an older one has to do. Raises OSError."""
    try:
        write_whole(path, text.encode(), mode)
        return True
    except OSError as error:
        if not lacks_room(error) or not path.exists():
            raise
        log(f"{path} is out of date, and cannot be written ({error.strerror})")
        return False


def write_address(engine: Engine) -> None:
    """Tell hooks and the command line on this machine where the server listens."""
    current = refresh(engine.config.data_dir / "address", f"{engine.config.listen_url(engine.port)}\n")
    engine.starved = engine.starved or not current  # it is written when there is room


def python_words() -> list[str]:
    """What begins a command of ours: this file with this Python, as a module, so that its bytecode is kept."""
    here = str(Path(__file__).resolve().parent)
    return [sys.executable, "-c", f"import sys; sys.path[0] = {here!r}; import forge; sys.exit(forge.main())"]


# The way of a push and a fetch over ssh costs no Python when it is spelled as git does; `forge shell` judges what is left.
OWN_COMMAND = r"""#!/bin/sh
if [ "$*" = shell ]; then
    # who logs in has no say in what we run, whatever sshd lets him set but PATH
    FORGE_DATA_DIR=%(data)s LC_ALL=C PATH=${PATH:+$PATH:}%(path)s
    clean() {
        exec env -i HOME="$HOME" USER="$USER" PATH="$PATH" LANG=C.UTF-8 ${GIT_PROTOCOL:+"GIT_PROTOCOL=$GIT_PROTOCOL"} "$@"
    }
    case $SSH_ORIGINAL_COMMAND in
    git-upload-pack\ \'*\' | git-receive-pack\ \'*\')
        name=${SSH_ORIGINAL_COMMAND#*\'} service=${SSH_ORIGINAL_COMMAND%%%% *}
        name=${name#/} name=${name%%\'} name=${name%%.git}
        case $name in
        *[!A-Za-z0-9._-]* | [!A-Za-z0-9]* | '') ;;
        *)  # what was copied in and is not complete yet is for us to see to
            repo=$FORGE_DATA_DIR/repos/$name.git home=
            [ ! -r "$repo/forge-home" ] || IFS= read -r home <"$repo/forge-home"
            [ "$home" != "$repo" ] || clean git "${service#git-}" "$repo"
            ;;
        esac
        ;;
    esac
    clean FORGE_DATA_DIR="$FORGE_DATA_DIR" TERM="$TERM" SSH_CONNECTION="$SSH_CONNECTION" \
        SSH_ORIGINAL_COMMAND="$SSH_ORIGINAL_COMMAND" %(forge)s shell
fi
[ -n "$FORGE_DATA_DIR" ] || FORGE_DATA_DIR=%(data)s
export FORGE_DATA_DIR
exec %(forge)s "$@"
"""


def own_command(config: Config) -> str:
    """The ``forge`` that hooks, jobs and ssh find, which knows its data directory."""
    path = os.environ.get("PATH", os.defpath)
    return OWN_COMMAND % {
        "data": shlex.quote(str(config.data_dir)),
        "path": shlex.quote(path),
        "forge": shlex.join(python_words()),
    }


###############################################################################
# reading: values for pages and programs
###############################################################################


def job_view(engine: Engine, job: Job) -> dict[str, Any]:
    """A job as programs see it."""
    hidden = ("cause", "caused_by", "checkout", "timeout", "sandboxed", "secrets", "stopping", "configured", "chain")
    view = {name: getattr(job, name) for name in JOB_FIELDS if name not in hidden}
    flake = engine.state.flakes.get(job.reused_from or job.id)
    if flake:
        view["flake"] = flake
    if job.is_rollback:
        view["rollback_to"] = job.commit
    view["url"] = f"{engine.url}/jobs/{job.id}"
    view["log_url"] = f"{view['url']}/log"
    running = engine.running.get(job.id)
    if running:
        view["command"] = read_command(running.run)[0]
        view["duration"] = round(boot_clock() - running.began, 3)
        with contextlib.suppress(OSError):
            view["log_size"] = engine.config.log(job.repo, job.id).stat().st_size
    if view["status"] == "running":  # by now it may have ended
        figures = running.figures if running else {}
        view |= {name: figures.get(name) for name in ("cpu_percent", "rss_bytes", "processes")}
    return view


def merge_view(record: Mapping[str, Any]) -> dict[str, Any]:
    """A finished merge as programs see it."""
    names = ("repo", "branch", "head", "merge_commit", "parent", "tree", "job", "how", "merged_at")
    view = {name: record.get(name) for name in names} | {"job": record.get("job") or None}
    return view | ({"untested": True} if record.get("untested") else {})


def mr_view(engine: Engine, name: str, refs: Refs, branch: str) -> dict[str, Any]:
    """A branch beside base as programs see it, with what the gate says, or that git cannot read it."""
    head = refs.heads[branch]
    open_for_merge = refs.tip is not None and branch in refs.ahead
    about, merged, held, unreadable = CommitFacts("", "", "", None, False), None, None, []
    counts: tuple[str | None, int | None, int | None] = (None, None, None)
    try:
        about = engine.commit(name, head)
        counts = engine.counts(name, refs.tip, head) if refs.tip else counts
        merged = engine.merged(name, refs.tip, head) if open_for_merge and refs.tip else None  # for this git has to write
        held = engine.held(name, refs.tip, merged)
    except GitError as error:
        unreadable = [f"git cannot tell how it merges: {error}"]
    with engine.lock:
        repo = engine.state.repos.get(name, Repo())
        known = repo.branches.get(branch)
        known = known if known and known.head == head else None
        job = engine.state.newest_job(name, branch) if known else None
        blockers = why_blocked(branch, refs, repo, job, merged, held) + unreadable
        if not blockers and (name, branch, head) in engine.stuck:
            blockers = [engine.stuck[name, branch, head]]
        unrenewed = engine.unrenewed.get(name, {}).get(branch, ("", "", ""))
        if unrenewed[:2] == (head, refs.tip):
            blockers.append(f"it cannot be made anew on {refs.base}: {unrenewed[2]}")
        how = wish_of(known, Facts(about.auto_merge, merged or Merged(None))) if known else None
        unheard = [about.unheard] if about.unheard and not how else []
        view = {
            "repo": name,
            "branch": branch,
            "head": head,
            "base": refs.base,
            "merge_base": counts[0],
            "ahead": counts[1],
            "behind": counts[2],
            "conflicts": list(merged.conflicts) if merged else [],
            "auto_merge": about.auto_merge or bool(known and known.asked == "auto"),
            "job": job_view(engine, job) if job else None,
            "mergeable": not blockers,
            "blockers": blockers + unheard,
            "held": held.commit if held else None,
            "url": mr_url(engine.url, name, branch),
            "subject": about.subject,
            "author": about.author,
            "authored_at": about.authored_at,
            "why": explain(blockers and blockers + unheard, how, bool(job and job.base != refs.tip), about.unheard),
        }
        waits = job.live or (job.interrupted and job.cause != "rerun") if job else open_for_merge
        soon = is_suspect(repo, refs, branch) or (repo.rollback is not None and len(blockers) == 1)
        view["settled"] = not waits and not (how and (soon or not blockers))
        if name in engine.ailing and (view["mergeable"] or not view["settled"]):
            why = engine.ailing[name][0].text
            view |= {"mergeable": False, "blockers": [why], "why": why}
    return view


TRAIL_LINES, TRAIL_HOPS = 10, 10  # that a page shows of what one thing has led to; deployments on the way to it
Step = dict[str, Any]


def trail(ledger: Ledger, *, job: Job | None = None, merge: Mapping[str, Any] | None = None) -> dict[str, list[list[Step]]]:
    """The lines from repo to repo that lead through a job (a deployment, or the test of a bump) or a merge, by Forge-Cause.

    As the value `trail` of what has any; each begins with the first cause. The engine's lock is held.
    """
    if merge is None and job and job.kind == POST:
        begin = steps_to(ledger, job)
        lines = [[*begin, *end] for end in steps_from(ledger, job) or [[]]]
    elif merge is not None:
        begin = steps_of_cause(ledger, merge.get("caused_by"), merge["job"])
        deployment = ledger.deployment_of(merge)
        ends = [[step_of(deployment), *end] for end in steps_from(ledger, deployment) or [[]]] if deployment else [[]]
        lines = [[*begin, step_of_merge(merge), *end] for end in ends]
    else:
        lines = [[*steps_of_cause(ledger, job.caused_by, job.id), step_of(job)]] if job and job.caused_by else []
    found = [line for line in lines[:TRAIL_LINES] if len({step["repo"] for step in line}) > 1]
    return {"trail": found} if found else {}


def step_of(job: Job) -> Step:
    """A deployment, or the merge request that a job tests, in a line."""
    about = {"repo": job.repo, "branch": job.branch, "commit": job.commit, "job": job.id, "status": job.status}
    return {"what": "deployment" if job.kind == POST else "request", **about}


def step_of_merge(merge: Mapping[str, Any]) -> Step:
    about = {"repo": merge["repo"], "branch": merge["branch"], "commit": merge["merge_commit"], "job": merge["job"]}
    return {"what": "merge", **about, "status": "merged"}


def steps_to(ledger: Ledger, deployment: Job, most: int = TRAIL_HOPS) -> list[Step]:
    """What led to a deployment, and itself."""
    merge = ledger.merge_by(deployment.repo, deployment.commit)
    landed: Step = {"what": "commit", **{name: getattr(deployment, name) for name in ("repo", "branch", "commit")}, "job": None}
    causes = steps_of_cause(ledger, merge.get("caused_by"), merge["job"], most) if merge and most else []
    return [*causes, step_of_merge(merge) if merge else {**landed, "status": "pushed"}, step_of(deployment)]


def steps_of_cause(ledger: Ledger, said: object, before: int, most: int = TRAIL_HOPS) -> list[Step]:
    """What led to a bump that job `before` tested. Anybody may write a trailer: what is no deployment here is only told.

    Two repos may bump each other for ever, so a line has an end.
    """
    cause = parse_cause(said)
    job = ledger.job(cause.job) if cause and cause.job < before else None
    if job and cause == (job.repo, job.commit, job.id) and job.kind == POST:
        return steps_to(ledger, job, most - 1)
    return [{"what": "said", **cause._asdict(), "branch": None, "status": None}] if cause else []


def steps_from(ledger: Ledger, deployment: Job, most: int = TRAIL_LINES) -> list[list[Step]]:
    """What a deployment led to in other repos, a list for each; what follows has a higher number, so this ends."""
    merges, tests = ledger.effects(deployment) if deployment.kind == POST and most > 0 else ([], [])
    found: list[list[Step]] = []
    for merge in merges[:most]:
        shipped = ledger.deployment_of(merge)
        ends = steps_from(ledger, shipped, most // 2) or [[]] if shipped else [[]]
        found += [[step_of_merge(merge), *([step_of(shipped)] if shipped else []), *end] for end in ends]
    return found + [[step_of(test)] for test in tests[:most]]


def jobs_ahead(job: Job, live: Iterable[Job]) -> list[Job]:
    """The tests that run or begin before a pending one, as `Engine.dispatch` starts them."""
    tests = [other for other in live if other.kind == PRE]
    line = sorted(tests, key=lambda other: (other.status == "pending", other.is_first, other.id))
    return list(itertools.takewhile(lambda other: other.id != job.id, line))


def spell_wait(job: Mapping[str, Any]) -> str:
    """How long a job waited before it began, or has waited by now, as people say it."""
    until = job["started_at"] or (now() if job["status"] == "pending" else None)
    return spell_duration(max(0.0, seconds_of(until) - seconds_of(job["created_at"]))) if until else ""


STANDINGS = {"failed": "needs a fix", "conflict": "in conflict", "held": "on hold", "ready": "ready"}
STANDINGS |= {"testing": "in test", "idle": "other"}


def standing_of(view: Mapping[str, Any]) -> str:
    """How a merge request stands, in one word, from its values; those that need somebody come first in STANDINGS."""
    status = view["job"]["status"] if view["job"] else ""
    if status in LIVE or not view["settled"]:
        return "testing"
    if view["mergeable"]:
        return "ready"
    if view["conflicts"]:
        return "conflict"
    if view["held"] and status == "passed":
        return "held"
    return "failed" if status in VERDICTS else "idle"


def tally_of(repo: Repo, jobs: Mapping[int, Job]) -> dict[str, int]:
    """How many branches of a repo passed, failed and are being tested, by what the journal knows."""
    words = Counter[str]()
    for branch in repo.branches.values():
        job = jobs.get(branch.job or 0)
        if job:
            bad = branch.fault is not None or job.status in FAILED
            words["testing" if job.live else "failed" if bad else "passed" if branch.passed is not None else ""] += 1
    return {word: words[word] for word in ("passed", "failed", "testing")}


def base_verdict(tip: str | None, deployment: Job | None, tested: Job | None) -> Job | None:
    """The job that says whether base is good: its deployment once that has ended, before that the test of its tree, if any."""
    over = deployment and deployment.commit == tip and deployment.status in VERDICTS
    return deployment if over else tested or deployment


def repo_summary(engine: Engine, name: str) -> dict[str, Any]:
    """How a repo stands, from what the journal knows: no git runs. The engine's lock is held."""
    known = engine.state.repos.get(name, Repo())
    last = engine.ledger.search(1, repo=name, branch=known.base, kind=POST) if known.base else []
    landed = engine.ledger.merges_of(name, limit=1)
    tested = engine.ledger.job(landed[0]["job"]) if landed and landed[0]["merge_commit"] == known.tip else None
    verdict = base_verdict(known.tip, last[0] if last else None, tested)
    return {
        "repo": name,
        "base": known.base,
        "head": known.tip,
        "open": len(known.branches),
        "job": job_view(engine, last[0]) if last else None,
        "trouble": engine.trouble_of(name),
        "url": f"{engine.url}/r/{name}",
        "verdict": job_view(engine, verdict) if verdict else None,
        **tally_of(known, engine.state.jobs),
    }


def tab_of(running: int, verdicts: Iterable[Mapping[str, Any] | None]) -> tuple[str, str]:
    """(icon, words) by which a page in the background tells how all stands."""
    words = {verdict["status"] for verdict in verdicts if verdict}
    if running:
        return "running", f"{running} running · "
    if not words.isdisjoint(FAILED):
        return "failed", "failed · "
    return ("passed", "passed · ") if "passed" in words else ("forge", "")


class PushRow(NamedTuple):
    """Where the time of a push to a branch went: (what, from, to) in seconds since the push."""

    branch: str
    job: int
    outcome: str
    stretches: tuple[tuple[str, float, float], ...]

    @property
    def total(self) -> float:
        return self.stretches[-1][2] if self.stretches else 0.0

    def spent(self, what: str) -> float:
        """Seconds of one kind."""
        return sum(end - begin for kind, begin, end in self.stretches if kind == what)


STRETCHES = ("waiting", "testing", "merging", "deploying")


def push_rows(
    jobs: Iterable[Job], merges: Iterable[Mapping[str, Any]], deployments: Iterable[Job], moment: float, most: int = 12
) -> list[PushRow]:
    """The last pushes of which `jobs` (newest first, as all these) tell, newest first. `moment` is the present time."""
    pushes: dict[tuple[str, str], list[Job]] = {}
    for job in jobs:
        for pair in pairs(job.heads):
            pushes.setdefault(pair, []).insert(0, job)
    landed = {(merge["branch"], merge["head"]): merge for merge in reversed(list(merges))}
    ran = [job for job in deployments if job.status not in UNWANTED][::-1]
    rows = []
    for pair, tests in itertools.islice(pushes.items(), most):
        with contextlib.suppress(ValueError, KeyError):  # a record of another version
            merge = landed.get(pair)
            deployment = next((job for job in ran if merge and job.created_at >= merge["at"]), None)
            rows.append(push_row(pair[0], tests, merge, deployment, moment))
    return rows


def push_row(branch: str, tests: list[Job], merge: Mapping[str, Any] | None, deployment: Job | None, moment: float) -> PushRow:
    """The row of one push: its tests (oldest first), its merge and the deployment of that, as far as they have come."""
    begin = at = seconds_of(tests[0].created_at)
    stretches: list[tuple[str, float, float]] = []

    def go_on(what: str, until: float) -> None:
        nonlocal at
        if until > at:
            stretches.append((what, at - begin, until - begin))
            at = until

    def run(what: str, job: Job) -> None:
        go_on("waiting", seconds_of(job.started_at or job.finished_at or at_time(moment)))
        if job.started_at:
            go_on(what, seconds_of(job.finished_at) if job.finished_at else moment)

    for job in tests:
        run("testing", job)
    if merge:
        go_on("waiting" if merge["how"] == "manual" else "merging", seconds_of(merge["at"]))
    if deployment:
        run("deploying", deployment)
    outcome = tests[-1].status if not merge else "merged"
    if deployment and deployment.status != "skipped":
        outcome = {"passed": "deployed", "pending": "merged"}.get(deployment.status, f"deployment {deployment.status}")
    return PushRow(branch, tests[-1].id, outcome, tuple(stretches))


ROW_HEIGHT = 40
SHAPES = {"waiting": (27, 3), "testing": (22, 13), "merging": (25, 7), "deploying": (22, 13)}  # top and height, in pixels


def timeline_svg(rows: list[PushRow]) -> str:
    """A drawing of rows, a bar each, in percents of the width: texts keep their size on a phone. Kinds differ in shape, too.

    A row that took much longer than the others is cut off, and marked so.
    """
    totals = [row.total for row in rows]
    width = min(max(totals), 4 * statistics.median(totals)) or max(totals) or 1.0
    parts = []
    for number, row in enumerate(rows):
        name = row.branch if len(row.branch) <= 28 else row.branch[:27] + "…"
        parts.append(f'<svg y="{number * ROW_HEIGHT}" width="100%" height="{ROW_HEIGHT}">')
        parts.append(f'<text y="15">{for_pages(name)}</text>')
        parts.append(f'<text x="100%" y="15" text-anchor="end">{for_pages(row.outcome)} · {spell_duration(row.total)}</text>')
        parts.append('<rect class="ground" y="22" width="100%" height="13" rx="3"/>')
        for what, begin, end in row.stretches:
            left, right = min(100, 100 * begin / width), min(100, 100 * end / width)
            top, height = SHAPES[what]
            size = f'x="{left:.2f}%" y="{top}" width="{max(right - left, 0.3):.2f}%" height="{height}"'
            parts.append(f'<rect class="{what}" {size}/>' if left < 100 else "")
        parts.append(
            '<svg x="100%" overflow="visible"><path class="cut" d="M-9 20l6 8.5-6 8.5"/></svg>' if row.total > width else ""
        )
        parts.append("</svg>")
    spent = ", ".join(f"{what} {spell_duration(statistics.median(row.spent(what) for row in rows))}" for what in STRETCHES)
    middle = f"half of them took at most {spell_duration(statistics.median(totals))}; by the median: {spent}"
    return drawing(
        "timeline", len(rows) * ROW_HEIGHT, f"Where the time of the last {len(rows)} pushes went", middle, "".join(parts)
    )


def ran_last(jobs: Iterable[Job], most: int) -> list[Job]:
    """The last of `jobs` (newest first) whose command ran to its end, oldest first."""
    ran = (job for job in jobs if job.status in VERDICTS and job.duration and not job.reused_from)
    return list(itertools.islice(ran, most))[::-1]


def trend_svg(kind: str, jobs: list[Job]) -> str:
    """A drawing of how long jobs took, oldest first: a bar each; one that failed is hollow and has a cross on it."""
    took = [job.duration or 0.0 for job in jobs]
    most, middle, height = max(took) or 1.0, statistics.median(took), 90
    slot = 100 / max(len(jobs), 20)
    parts = [f'<text y="12">at most {spell_duration(most)}</text>']
    parts.append(f'<text x="100%" y="12" text-anchor="end">median {spell_duration(middle)}</text>')
    failed = 0
    for number, (job, seconds) in enumerate(zip(jobs, took, strict=True)):
        tall = max(2.0, height * seconds / most)
        bad = job.status != "passed"
        failed += bad
        top, left = 24 + height - tall, number * slot
        box = f'x="{left + 0.15 * slot:.2f}%" y="{top:.1f}" width="{0.7 * slot:.2f}%" height="{tall:.1f}"'
        parts.append(f'<rect class="{"bad" if bad else "good"}" {box}/>')
        if bad:
            cross = '<path class="cross" d="M-3-9l6 6m0-6l-6 6"/>'
            parts.append(f'<svg x="{left + slot / 2:.2f}%" y="{top:.1f}" overflow="visible">{cross}</svg>')
    line = f'y1="{24 + height * (1 - middle / most):.1f}" x2="100%" y2="{24 + height * (1 - middle / most):.1f}"'
    parts.append(f'<line class="middle" {line}/><line class="floor" y1="{24 + height}" x2="100%" y2="{24 + height}"/>')
    title = f"How long the last {len(jobs)} {kind} job{'s' if len(jobs) > 1 else ''} took"
    said = f"{spell_duration(middle)} by the median, {spell_duration(most)} at most; {failed or 'none'} of them failed"
    return drawing(f"trend-{kind}", 24 + height + 2, title, said, "".join(parts))


def drawing(name: str, height: int, title: str, words: str, parts: str) -> str:
    """An SVG as wide as its place, with its title and a sentence for who cannot see it."""
    named = f'role="img" aria-labelledby="{name}-title {name}-words"'
    told = (
        f'<title id="{name}-title">{bottle.html_escape(title)}</title><desc id="{name}-words">{bottle.html_escape(words)}</desc>'
    )
    return f'<svg class="drawing" width="100%" height="{height}" {named}>{told}{parts}</svg>'


def mr_url(url: str, repo: str, branch: str) -> str:
    """The page of a branch."""
    return f"{url}/r/{repo}/mr/{quote_bytes(branch)}"


def quote_bytes(text: str) -> str:
    """A foreign name as a part of an address; its bytes may be no UTF-8."""
    return quote(text.encode("utf-8", "surrogateescape"), safe="/")


def badge_state(summary: Mapping[str, Any]) -> str:
    """What the badge says of a base, from its summary: running, passed, failed or none."""
    live = summary["job"] is not None and summary["job"]["status"] in LIVE
    icon, _ = tab_of(live, [summary["verdict"]])
    return "none" if icon == "forge" else icon


FEED_ENTRIES = 50
FEED_TITLES = {
    "job.failed": "{kind} of {branch} {status}",
    "deployed": "{branch} was deployed",
    "merged": "{branch} was merged",
    "rolled-back": "{branch} was rolled back",
}


def feed_entries(engine: Engine, name: str) -> list[dict[str, Any]]:
    """The newest of what the feed of a repo tells: merges, jobs that failed, deployments."""
    with engine.lock:
        search = partial(engine.ledger.search, FEED_ENTRIES, repo=name)
        jobs = [*search(status="failed"), *search(status="timeout"), *search(kind=POST, status="passed")]
        records = [{"event": "job.finished", **job_record(job)} for job in jobs]
        records += engine.ledger.merges_of(name, limit=FEED_ENTRIES)
    told = [piece for record in records for piece in news_of(record, None, engine.url)]
    told.sort(key=lambda piece: str(piece["at"]), reverse=True)
    for piece in told[:FEED_ENTRIES]:
        known_by = f"{piece['event']} {name} {piece['job']} {piece['commit']!a}"  # wherever the server is
        piece |= {"title": FEED_TITLES[piece["event"]].format(**piece), "id": uuid.uuid5(uuid.NAMESPACE_OID, known_by).urn}
    return told[:FEED_ENTRIES]


class Metric(NamedTuple):
    """A family of samples as Prometheus knows it: (what follows the name, labels, value) each."""

    name: str
    kind: str  # counter, gauge, histogram
    about: str
    samples: Iterable[tuple[str, dict[str, str], float]]


def read_metrics(engine: Engine) -> list[Metric]:
    """What /metrics tells of the journal, the disk and this process; nothing here takes longer when there are more jobs."""
    with engine.lock:
        live = Counter(job.status for job in engine.state.live_jobs())
        tally = engine.ledger.tally
        jobs = [("", dict(zip(("repo", "kind", "status"), key, strict=True)), n) for key, n in tally.jobs.items()]
        merges = [("", dict(zip(("repo", "how"), key, strict=True)), n) for key, n in tally.merges.items()]
        durations = [sample for kind, seen in tally.durations.items() for sample in histogram_samples(seen, kind=kind)]
        waits = histogram_samples(tally.waits)
    process = psutil.Process()
    with process.oneshot():
        cpu, memory, began = process.cpu_times(), process.memory_info().rss, process.create_time()
    build = {"version": __version__, "python": platform.python_version()}
    free = room_at(engine.config.data_dir).free

    def one(name: str, kind: str, about: str, value: float, **labels: str) -> Metric:
        return Metric(name, kind, about, [("", labels, value)])

    return [
        one("forge_build_info", "gauge", "The version of forge and of its Python.", 1, **build),
        one("forge_jobs_running", "gauge", "Jobs that run now.", live["running"]),
        one("forge_jobs_pending", "gauge", "Jobs that wait to be started.", live["pending"]),
        Metric("forge_jobs_total", "counter", "Jobs that have ended.", jobs),
        Metric("forge_job_duration_seconds", "histogram", "How long jobs ran.", durations),
        Metric("forge_queue_wait_seconds", "histogram", "How long jobs waited for their start.", waits),
        Metric("forge_merges_total", "counter", "Merges into base.", merges),
        one("forge_disk_free_bytes", "gauge", "Room on the disk of the data directory.", free),
        one("process_cpu_seconds_total", "counter", "Processor time of the server, without its jobs.", cpu.user + cpu.system),
        one("process_resident_memory_bytes", "gauge", "Memory of the server, without its jobs.", memory),
        one("process_open_fds", "gauge", "Files that the server has open.", process.num_fds()),
        one("process_start_time_seconds", "gauge", "When the server was started, since the epoch.", began),
    ]


def histogram_samples(seen: Histogram, **labels: str) -> list[tuple[str, dict[str, str], float]]:
    """A histogram as Prometheus wants it: each bucket holds those below as well."""
    counts = itertools.accumulate(seen.counts)
    buckets = [("_bucket", {**labels, "le": str(bound)}, n) for bound, n in zip((*seen.BOUNDS, "+Inf"), counts, strict=True)]
    return [*buckets, ("_sum", labels, seen.total), ("_count", labels, sum(seen.counts))]


def prometheus_text(metrics: Iterable[Metric]) -> str:
    """Metrics in Prometheus' text form, version 0.0.4."""
    lines = []
    for name, kind, about, samples in metrics:
        lines += [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]
        for suffix, labels, value in samples:
            spelled = ",".join(f'{key}="{escape_label(text)}"' for key, text in labels.items())
            lines.append(f"{name}{suffix}{f'{{{spelled}}}' if spelled else ''} {value}")
    return "\n".join(lines) + "\n"


def escape_label(text: str) -> str:
    return visible(text).replace("\\", "\\\\").replace('"', '\\"')


def outlook(engine: Engine, job: Job, pushed: Job) -> tuple[Job | None, str]:
    """(the job to watch next or None when all is said, what to say of `job`), for who waits for what became of `pushed`."""
    if job.live:
        return job, ""
    took = f" after {spell_duration(job.duration)}" if job.duration else ""
    said = f"job {job.id} {job.status}{took}{f': {job.reason}' if job.reason else ''}"
    if job.kind == POST:
        return None, said
    branch, head = pushed.branch, pushed.commit
    refs = read_refs(engine.usable(job.repo))
    with engine.lock:
        done = engine.ledger.merges_of(job.repo, branch, 1)
        repo = engine.state.repos.get(job.repo, Repo())
        known = repo.branches.get(branch)
        newest = engine.state.newest_job(job.repo, branch)
    if done and done[0]["head"] == head and known is None:
        return None, f"{said}; merged into {repo.base} as {done[0]['merge_commit']}"
    if known is None or known.head != head or newest is None:
        return None, said
    if newest.id > job.id:
        why = newest.cause if newest.is_first else "on base as it is by now"
        return newest, f"{said}; job {newest.id} tests it again, {why}"
    view = mr_view(engine, job.repo, refs, branch) if refs.heads.get(branch) == head else {}
    if not view.get("job") or not view["settled"]:
        return job, ""  # it is being merged, waits in line, or has changed while we looked
    return None, said if job.status != "passed" else f"{said}; {view['why']}"


# A page is at most 1 MB; these share it. What a file or a line takes of it, its tags and its text, is reckoned a little high.
ENTRIES_BYTES, LINES_BYTES = 360_000, 400_000
FILE_BYTES = 800_000  # a file on a page of its own
FILE_LINES, PAGE_LINES, PAGE_FILES = 400, 3000, 100  # what is asked of git at once to be shown unfolded
ROWS_BYTES = 600_000  # of the list of a repo's merge requests, its merges, or its deployments
LISTING_BYTES = 2 << 20
LINE_CHARS = 2000
PATH_CHARS = 4096  # of a path whose lines are shown; no file system has a longer one
COMMITS_SHOWN = 100
DIFF = ("diff-tree", "-r", "-z", "--raw", "--no-abbrev", "--no-ext-diff", "--no-textconv", "--submodule=short")
PAIRING = ("--find-copies", "-l100")  # among more files git looks for exact renames only, which takes no time
HUNK = re.compile(rb"@@ -(\d+)(?:,\d+)? \+(\d+)(?:,\d+)? @@")


class Change(NamedTuple):
    """A file that differs between two commits, as git lists it: paths, modes and ids are those before and after."""

    status: str  # git's letter, one of ACDMRT
    old_path: str
    path: str
    old_mode: str
    mode: str
    old_id: str
    id: str
    added: int | None = None  # lines; None: git did not count them
    deleted: int | None = None
    binary: bool = False

    @property
    def mark(self) -> str:
        """What names the file in links; it stays the same from push to push."""
        return f"d{hashlib.sha256(self.path.encode('utf-8', 'surrogateescape')).hexdigest()[:10]}"

    @property
    def version(self) -> str:
        """What differs when its lines do."""
        return f"{self.mark}-{self.old_id[:10]}-{self.id[:10]}"

    @property
    def lines(self) -> int:
        """How many lines were added and deleted, as far as git counted them."""
        return (self.added or 0) + (self.deleted or 0)

    @property
    def quiet(self) -> bool:
        """Whether there are no lines to show. What became something else has some, even if they are the same."""
        return self.binary or (self.added == self.deleted == 0 and self.status != "T")

    @property
    def words(self) -> str:
        """What happened to it."""
        kinds = {"120000": "symlink", "160000": "submodule"}
        before, after = kinds.get(self.old_mode, "file"), kinds.get(self.mode, "file")
        said = {"A": "added", "D": "deleted", "R": f"renamed from {self.old_path}", "C": f"copied from {self.old_path}"}
        words = [said[self.status]] if self.status in said else []
        if self.status == "T":
            words.append(f"{before} became a {after}")
        elif self.status not in "AD" and self.mode != self.old_mode:
            words.append(f"mode changed {self.old_mode} → {self.mode}")
        kind = before if self.status == "D" else after
        if kind == "submodule":
            words.append(f"{kind} {' → '.join(short[:8] for short in (self.old_id, self.id) if not is_null(short))}")
        elif kind != "file" and self.status != "T":
            words.append(kind)
        return ", ".join((words or ["changed"]) + ["binary"] * self.binary)


class DiffLine(NamedTuple):
    """A line of a diff with its numbers before and after, 0 where it is not. `sign` is git's; @ begins a hunk."""

    sign: str
    old: int
    new: int
    text: str


def parse_commits(log_text: bytes) -> list[Commit]:
    """The commits in what `git log -z` prints of them in the form of `commits_of`; one that was cut off is left out."""
    words = log_text.decode("utf-8", "surrogateescape").split("\0")[:-1]
    four = (words[at : at + 4] for at in range(0, len(words) - 3, 4))
    return [Commit(commit, author, commit_time(date), subject) for commit, author, date, subject in four]


def parse_changes(listing: bytes) -> list[Change]:
    """The files in what git prints with --raw -z, and --numstat. What was cut off at the end is left out."""
    words = iter(listing.decode("utf-8", "surrogateescape").split("\0")[:-1])
    changes: list[Change] = []
    counts: dict[tuple[str, str], tuple[int | None, int | None, bool]] = {}
    with contextlib.suppress(StopIteration):
        for word in words:
            if word.startswith(":"):
                old_mode, mode, old_id, object_id, status = word[1:].split()
                old_path = next(words)
                path = next(words) if status[0] in "RC" else old_path
                changes.append(Change(status[0], old_path, path, old_mode, mode, old_id, object_id))
            else:
                added, deleted, old_path = word.split("\t", 2)
                pair = (old_path, old_path) if old_path else (next(words), next(words))
                counts[pair] = (None, None, True) if added == "-" else (int(added), int(deleted), False)
    for at, change in enumerate(changes):
        counted = counts.get((change.old_path, change.path), (None, None, False))
        changes[at] = change._replace(added=counted[0], deleted=counted[1], binary=counted[2])
    return changes


def parse_patches(found: bytes) -> Iterator[tuple[Change, list[DiffLine]]]:
    """The files with their lines in what git prints with --raw -z --patch.

    The raw entries name the files. No line of a file begins a patch, since each of them has a sign before it. A file that
    became something else has two patches.
    """
    listing, begun, text = found.partition(b"\0\0")
    patches = iter(re.split(rb"(?m)^diff --git ", text)[1:])
    for change in parse_changes(listing + b"\0") if begun else ():
        own = itertools.islice(patches, 2 if change.status == "T" else 1)
        yield change, [line for patch in own for line in parse_patch(patch)]


def parse_patch(patch: bytes) -> Iterator[DiffLine]:
    """The lines of one patch."""
    _, _, hunks = patch.partition(b"\n@@ ")
    old = new = 0
    for line in b"".join((b"@@ ", hunks)).removesuffix(b"\n").split(b"\n") if hunks else ():
        sign = line[:1].decode("latin-1") or " "
        begins = HUNK.match(line)
        if begins:
            old, new = map(int, begins.groups())
        if sign in "@\\":
            yield DiffLine(sign, 0, 0, spell_line(line))
            continue
        yield DiffLine(sign, old if sign != "+" else 0, new if sign != "-" else 0, spell_line(line[1:]))
        old, new = old + (sign != "+"), new + (sign != "-")


def spell_line(line: bytes) -> str:
    """A line of a file as a page shows it."""
    return visible(line[: 4 * LINE_CHARS + 4].decode("utf-8", "surrogateescape"), LINE_CHARS)


def side_by_side(lines: Iterable[DiffLine]) -> Iterator[tuple[DiffLine | None, DiffLine | None]]:
    """The lines of a diff in two columns: what was taken out beside what was put in its place."""
    for changed, group in itertools.groupby(lines, lambda line: line.sign in "+-\\"):
        if not changed:
            yield from ((line, line) for line in group)
            continue
        left: list[DiffLine] = []
        right: list[DiffLine] = []
        for line in group:
            side = left if line.sign == "-" or (line.sign != "+" and not right) else right
            side.append(line)
        yield from itertools.zip_longest(left, right)


def html_size(text: str) -> int:
    """The bytes of a text on a page."""
    return len(bottle.html_escape(visible(text)).encode("utf-8"))


def row_size(view: Mapping[str, Any]) -> int:
    """At most the bytes of a merge request in the list of its repo."""
    name = html_size(view["branch"]) * 2 + len(quote_bytes(view["branch"]))
    return 700 + name + sum(html_size(view[part][:most]) for part, most in (("subject", 300), ("author", 100), ("why", 1000)))


def landed_size(view: Mapping[str, Any]) -> int:
    """About the bytes of a merge or a deployment in the list of its repo, rather too many: what is long are foreign words."""
    parts = [view.get(part) for part in ("branch", "reason", "trail")]
    parts += [view.get(part, [])[:20] for part in ("merges", "pushed", "included", "authors")]
    return 1500 + html_size(json.dumps(parts))


def line_size(line: DiffLine) -> int:
    return 200 + html_size(line.text)


def files_of_page(changes: list[Change], first: int) -> list[Change]:
    """The files that one page lists, from the one at `first` on: at least one."""
    sizes = (450 + html_size(change.path + change.words) + 3 * len(change.path) for change in changes[first:])
    return changes[first : first + max(1, fitting(sizes, ENTRIES_BYTES))]


def commits_of(engine: Engine, name: str, base: str, head: str) -> list[Commit]:
    """The newest commits that `head` has and `base` lacks. Raises GitError."""
    form = "--format=%H%x00%an%x00%at%x00%s"
    about = ("log", "-z", f"-n{COMMITS_SHOWN}", "--no-show-signature", form, head, f"^{base}")
    return parse_commits(engine.output(name, LISTING_BYTES, *about)[0])


def changes_of(engine: Engine, name: str, start: str, head: str) -> tuple[list[Change], bool]:
    """The files that differ between two commits, and whether these are all. Raises GitError.

    Without counts when git cannot count in time, as in a large file whose lines were shuffled.
    """
    found, whole = engine.output(name, LISTING_BYTES, *DIFF, "--numstat", *PAIRING, start, head)
    if not whole and 0 < len(found) < LISTING_BYTES:  # the files were found, and to count took too long
        found, whole = engine.output(name, LISTING_BYTES, *DIFF, *PAIRING, start, head)
    return parse_changes(found), whole


def lines_of(
    engine: Engine, name: str, start: str, head: str, files: list[Change], most: int, end: bytes
) -> tuple[dict[str, list[DiffLine]], bool]:
    """The lines of some of the files that differ, by path, and whether these are all. Raises GitError.

    What git prints beyond `most` bytes is cut off, from the last `end` before it.
    """
    files = [file for file in files if max(len(file.old_path), len(file.path)) <= PATH_CHARS]  # arguments have their limits
    if not files:
        return {}, True
    paths = dict.fromkeys(path for file in files for path in (file.old_path, file.path))
    # what git paired among all files it pairs among these as well; the others must not be paired now
    pairing = PAIRING if any(file.status in "RC" for file in files) else ("--no-renames",)
    found, whole = engine.output(name, most, *DIFF, "--patch", *pairing, start, head, "--", *paths)
    wanted = {(file.old_path, file.path) for file in files}
    patches = parse_patches(found if whole else found[: found.rfind(end) + 1])
    return {change.path: lines for change, lines in patches if lines and (change.old_path, change.path) in wanted}, whole


def unfolded(engine: Engine, name: str, start: str, head: str, files: list[Change]) -> dict[str, list[DiffLine]]:
    """The lines of those files that are small enough to be shown at once. Raises GitError."""
    small = [file for file in files if file.added is not None and not file.quiet and file.lines <= FILE_LINES][:PAGE_FILES]
    small = small[: fitting((file.lines for file in small), PAGE_LINES)]
    room, shown = LINES_BYTES, {}
    for path, lines in lines_of(engine, name, start, head, small, LINES_BYTES, b"\ndiff --git ")[0].items():
        size = sum(map(line_size, lines))
        if size <= room:
            shown[path] = lines
            room -= size
    return shown


DEPLOYMENTS_BEFORE = 50  # among which those are that a deployment took the place of


def deployment_view(engine: Engine, job: Job, before: Iterable[Job]) -> dict[str, Any]:
    """A deployment as programs see it, with what it brought and which deployments it took the place of; git is asked once.

    `before` are the deployments before it, newest first.
    """
    brought, trouble = Brought(), None
    try:
        brought = engine.brought(job.repo, job.base or "", job.commit)
    except GitError as error:
        trouble = f"git cannot tell what it brought: {error}"
    with engine.lock:
        found = {one.commit: engine.ledger.merge_by(job.repo, one.commit) for one in brought.line if one.claims}
        view = {**job_view(engine, job), **trail(engine.ledger, job=job)}
    merges = [merge_view(merge) for merge in found.values() if merge]
    direct = [one for one in brought.line if not found.get(one.commit)]
    pushed = [{"commit": one.commit, "subject": one.subject, "authored_at": one.authored_at} for one in direct]
    never_ran = itertools.takewhile(lambda other: other.base == job.base and not (other.started_at or other.live), before)
    instead = [other for other in never_ran if other.commit != job.commit]
    rest = itertools.dropwhile(lambda merge: not instead or merge["merge_commit"] != instead[0].commit, merges)
    about: dict[str, Any] = {"merges": merges, "pushed": pushed, "commits": [commit._asdict() for commit in brought.commits]}
    about |= {"commit_count": brought.written, "authors": [{"name": name, "commits": n} for name, n in brought.authors]}
    about |= {"whole": brought.whole, "trouble": trouble, "includes": [other.id for other in instead]}
    about["included"] = [merge["branch"] for merge in rest]
    return {**view, **about, "diff_url": f"{engine.url}/r/{job.repo}/deployments/{job.id}" if job.base else None}


###############################################################################
# unit: what systemd is told
###############################################################################


UNIT_FILES = ("forge.service", "forge.socket")
# Jobs are children of the service and live under all of this. So what git, ssh, Nix, a compiler or the sandbox needs is
# left alone: MemoryDenyWriteExecute (node, java), RestrictSUIDSGID (git in a shared repo), UMask (what a job deploys),
# RemoveIPC (jobs outlive the service), PrivateUsers and all that mounts something into /proc: ProtectKernelTunables,
# ProtectKernelLogs, ProtectHostname, ProtectProc, ProcSubset (the kernel then refuses the sandbox a /proc of its own).
UNIT_SERVICE = {
    "Type": "notify",
    "NotifyAccess": "main",
    "WatchdogSec": "60",
    "Restart": "always",
    "RestartSec": "1",
    "TimeoutStopSec": "30",
    "KillMode": "process",
    "OOMPolicy": "continue",
    "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "PrivateMounts": "yes",
    "PrivateDevices": "yes",
    "ProtectClock": "yes",
    "ProtectControlGroups": "yes",
    "ProtectKernelModules": "yes",
    "LockPersonality": "yes",
    "RestrictRealtime": "yes",
    "RestrictAddressFamilies": "AF_UNIX AF_INET AF_INET6 AF_NETLINK",
    "RestrictNamespaces": "user mnt pid ipc",
    "SystemCallArchitectures": "native",
    "SystemCallFilter": "@system-service @mount",
    "SystemCallErrorNumber": "EPERM",
}
# Without the sandbox nothing of ours needs namespaces and mounts, and jobs that outlive the service keep its /tmp.
UNIT_WITHOUT_SANDBOX = {"PrivateTmp": "no", "RestrictNamespaces": "yes", "SystemCallFilter": "@system-service"}
UNIT_SAYS_ITSELF = ("FORGE_DATA_DIR", "FORGE_HOST", "FORGE_PORT", "FORGE_MERGE_PASSWORD", "FORGE_MERGE_PASSWORD_FILE")
UNIT_TO_INSTALL = """\
# /etc/systemd/system/%(name)s
# Made for this machine by forge unit. To install both, and to start them:
#   forge unit forge.service | sudo tee /etc/systemd/system/forge.service
#   forge unit forge.socket | sudo tee /etc/systemd/system/forge.socket
#   sudo systemctl daemon-reload && sudo systemctl enable --now forge.socket forge.service
"""


def unit_word(text: str) -> str:
    """A word of a unit file, quoted as systemd.syntax(7) reads it."""
    text = text.replace("%", "%%")
    if re.fullmatch(r"[\w@%+=:,./~-]+", text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def unit_text(name: str, notes: Iterable[str], sections: Mapping[str, Iterable[tuple[str, str]]]) -> str:
    """A unit file with its comments."""
    body = "".join(f"\n[{section}]\n" + "".join(f"{k}={v}\n" for k, v in lines) for section, lines in sections.items())
    return UNIT_TO_INSTALL % {"name": name} + "".join(f"# {note}\n" for note in notes) + body


def unit_user(config: Config) -> tuple[str, str | None]:
    """Whom the service runs as, the owner of the data directory unless that is root, and what to do first."""
    there, place = config.data_dir.exists(), shlex.quote(str(config.data_dir))
    owner = config.data_dir.stat().st_uid if there else os.geteuid()
    name = user_of(owner)[0] if owner else "forge"
    first = [f"useradd --system --home-dir {place} --shell /bin/sh forge"] if owner == 0 else []  # sshd wants a shell
    first += [f"chown -R forge: {place}"] if owner == 0 and there else []
    first += [f"install -d -o {name} {place}"] if not there and not in_var_lib(config) else []
    return name, f"what the service needs first: {' && '.join(f'sudo {step}' for step in first)}" if first else None


def in_var_lib(config: Config) -> bool:
    """Whether systemd itself makes the data directory, by StateDirectory=."""
    return config.data_dir.parent == Path("/var/lib")


def unit_files(config: Config, environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The units by name, for the settings in `environ`, and what whoever installs them has to see to."""
    user, first = unit_user(config)
    notes = [first] if first else []
    if config.password and not config.password_file:
        notes.append(
            "FORGE_MERGE_PASSWORD is not written into a unit, which all can read: put it into a file, FORGE_MERGE_PASSWORD_FILE"
        )
    if config.secrets_dir and config.secrets_dir.is_relative_to("/run/credentials"):
        notes.append("FORGE_SECRETS_DIR is removed when the service stops, under the jobs that go on: put it elsewhere")
    if not config.port:
        notes.append(f"FORGE_PORT is 0, but a socket that waits for a server has a port: it is {Config.port}")
    service: list[tuple[str, str]] = [("User", user)]
    table = UNIT_SERVICE | (UNIT_WITHOUT_SANDBOX if config.sandbox == "none" else {})
    service += unit_places(config, environ, table)
    command = " ".join(unit_word(word).replace("$", "$$") for word in [*python_words(), "serve"])
    path = ":".join(place for place in environ.get("PATH", os.defpath).split(":") if place.startswith("/"))
    given = {"PATH": path, "FORGE_DATA_DIR": str(config.data_dir)}
    given |= {name: environ[name] for name in sorted(environ) if name.startswith(("FORGE_", "NIX_")) and environ[name]}
    given |= {name: environ[name] for name in ("LANG", "TZ") if environ.get(name)}
    known = {name: text for name, text in given.items() if name == "FORGE_DATA_DIR" or name not in UNIT_SAYS_ITSELF}
    service += [("Environment", unit_word(f"{name}={text}")) for name, text in known.items()]
    if config.password_file and environ.get("FORGE_MERGE_PASSWORD_FILE"):
        service.append(("LoadCredential", f"merge-password:{config.password_file}".replace("%", "%%")))
    unit = [("Description", "forge, a git forge"), ("Requires", "forge.socket"), ("Wants", "network-online.target")]
    unit += [("After", "forge.socket network-online.target"), ("StartLimitIntervalSec", "0")]
    sections = {"Unit": unit, "Service": [("ExecStart", command), *service, *table.items()]}
    sections["Install"] = [("WantedBy", "multi-user.target")]
    listen = [("ListenStream", place) for place in unit_addresses(config)]
    bound = {"Unit": [("Description", "where forge listens, also while it restarts")], "Socket": listen}
    bound["Install"] = [("WantedBy", "sockets.target")]
    return {
        "forge.service": unit_text(UNIT_FILES[0], notes, sections),
        "forge.socket": unit_text(UNIT_FILES[1], [], bound),
    }, notes


def unit_places(config: Config, environ: Mapping[str, str], table: dict[str, str]) -> list[tuple[str, str]]:
    """What the service may write, and what lies where it would see nothing; brings `table` in line with that."""
    entries = [*config.data_dir.glob("*"), *config.repos.glob("*.git")]
    links = [Path(os.path.realpath(entry)) for entry in entries if entry.is_symlink() and entry.is_dir()]
    writes = [config.data_dir, *(link for link in links if not link.is_relative_to(config.data_dir))]
    nix, nix_writable = find_nix(environ)
    writes += nix if nix_writable else []
    on_path = [Path(place) for place in environ.get("PATH", "").split(":") if place.startswith("/")]
    reads = [*forge_places(), *on_path, *([config.secrets_dir] if config.secrets_dir else [])]
    reads = [place for place in dict.fromkeys(reads) if place.exists() and not any(map(place.is_relative_to, writes))]
    if any(place.is_relative_to(home) for place in writes + reads for home in ("/home", "/root", "/run/user")):
        table["ProtectHome"] = "read-only"
    lines = []
    if in_var_lib(config):
        lines.append(("StateDirectory", unit_word(config.data_dir.name)))
        writes.remove(config.data_dir)
    if table["PrivateTmp"] == "yes":
        tmp = [place for place in writes + reads if any(map(place.is_relative_to, TMP_PLACES))]
        lines += [("BindPaths" if place in writes else "BindReadOnlyPaths", unit_word(str(place))) for place in tmp]
        writes = [place for place in writes if place not in tmp]
    else:
        writes += map(Path, TMP_PLACES)
    return lines + [("ReadWritePaths", unit_word(str(place))) for place in writes]


def unit_addresses(config: Config) -> list[str]:
    """Where the socket listens, as systemd spells it. Raises WrongSetting."""
    try:
        found = socket.getaddrinfo(config.host, None, type=socket.SOCK_STREAM)
    except OSError:
        raise WrongSetting(f"FORGE_HOST is {config.host!r}, which is no address of this machine") from None
    hosts = dict.fromkeys(str(to[0]) for *_, to in found)
    port = config.port or Config.port
    return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host in hosts]


###############################################################################
# web: who may come in
###############################################################################


SESSION_SECONDS = 7 * 86400
WRONG_PASSWORDS, WRONG_SECONDS = 10, 60.0


def read_password(config: Config) -> str | None:
    """The merge password as it is now: a line that ends as it may, or None. Raises OSError, ValueError for what is no UTF-8."""
    if config.password_file is None:
        return config.password
    return config.password_file.read_text("utf-8").rstrip("\n") or None


class Door:
    """Tells who is there: the token, the hook token, the merge password, a session. Guarded by its own lock."""

    def __init__(self, config: Config):
        self.config = config
        self.token = (config.data_dir / "token").read_text().strip()
        self.hook_token = (config.data_dir / "hook-token").read_text().strip()
        self.key = (config.data_dir / "session-key").read_bytes()
        self.store = config.data_dir / "sessions.json"
        self.lock = threading.Lock()  # guards `sessions`, its file, and `wrong`
        self.wrong: deque[float] = deque()
        self.sessions: dict[str, list[Any]] = {}  # by id: [until (epoch seconds), mark of the password]
        with contextlib.suppress(OSError, ValueError):
            self.sessions = {str(k): [float(v[0]), str(v[1])] for k, v in json.loads(self.store.read_text()).items()}

    def password(self) -> str | None:
        """The merge password as it is now, or None. Raises Refused when its file cannot be read."""
        try:
            return read_password(self.config)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "it is no UTF-8"
            raise Refused(503, f"the merge password cannot be read ({why}); look at FORGE_MERGE_PASSWORD_FILE") from None

    def is_token(self, given: str) -> bool:
        return same(given, self.token)

    def check_password(self, given: str) -> None:
        """Let a right password pass. Raises Refused: 401 for a wrong one, 429 after too many."""
        password = self.password()
        with self.lock:
            moment = time.monotonic()
            while self.wrong and self.wrong[0] < moment - WRONG_SECONDS:
                self.wrong.popleft()
            if len(self.wrong) >= WRONG_PASSWORDS:
                wait = math.ceil(self.wrong[0] + WRONG_SECONDS - moment) or 1
                raise Refused(429, f"too many wrong passwords; try again in {wait} seconds", headers={"Retry-After": str(wait)})
            if password is not None and same(given, password):
                return
            self.wrong.append(moment)
        if password is None:
            what = "the file of the merge password is empty" if self.config.password_file else "there is no merge password yet"
            raise Refused(401, f"{what}; set FORGE_MERGE_PASSWORD_FILE, or use the command line")
        raise Refused(401, "the password is wrong")

    def log_in(self) -> str:
        """Begin a session; returns the cookie's value. Raises OSError when it cannot be written down."""
        session = secrets.token_urlsafe(24)
        with self.lock:
            moment = time.time()
            sessions = {key: value for key, value in self.sessions.items() if value[0] > moment}
            self._save({**sessions, session: [moment + SESSION_SECONDS, self._mark()]})
        return f"{session}.{self._sign(session)}"

    def log_out(self, cookie: str) -> None:
        """End a session."""
        with self.lock:
            session = cookie.partition(".")[0]
            if session in self.sessions:
                self._save({key: value for key, value in self.sessions.items() if key != session})

    def knows(self, cookie: str) -> bool:
        """Whether a cookie is that of a session which goes on; a changed password ends it."""
        session, _, signature = cookie.partition(".")
        if not same(signature, self._sign(session)):
            return False
        with self.lock:
            until, mark = self.sessions.get(session, (0.0, ""))
        try:
            return bool(until > time.time() and same(mark, self._mark()))
        except Refused:  # the password cannot be read now
            return False

    def _save(self, sessions: dict[str, list[Any]]) -> None:
        write_whole(self.store, json.dumps(sessions).encode())
        self.sessions = sessions

    def _sign(self, text: str) -> str:
        return hmac.new(self.key, text.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()

    def _mark(self) -> str:
        return self._sign(f"password {self.password()}")


def same(given: str, right: str) -> bool:
    """Compare two secrets in constant time, as bytes."""
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), right.encode("utf-8", "surrogateescape"))


###############################################################################
# web: the app
###############################################################################


SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
}
XML_ODD = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # what no XML may hold, however it is spelled
MAX_BODY = 1 << 20
MOST_FIELDS, MOST_VALUES = 100, 10_000  # of a form; of JSON, with what is nested in unknown fields
PAGES_BYTES = 8 << 20  # of pages that are not made anew for each reader
OLDEST_WAITRESS = (3, 0, 2)
WEB_THREADS = 16
REQUEST_SECONDS = 60  # for a request to come, and for a connection without one
ANSWERS_BYTES = 16 << 20  # of answers that wait in memory for who reads slowly; what is more waits in files
SPILLED_BYTES = 1 << 16  # of a part of such an answer, at least
LINGER_SECONDS = 5.0  # in which what follows a refused request is read, and thrown away
FOLLOW_SECONDS = 30.0
CLONERS = WEB_THREADS // 4  # clones and fetches at a time: each takes a worker, and a git or two
STALLED_MS = 120_000  # until who reads nothing of an answer is taken for gone
MEET_SECONDS = 1.0  # that a page waits until a repo that it sees first has been copied in whole
CLONE_WAIT = 10.0  # seconds that one more waits for its turn
FETCH_BYTES = 10 << 20  # of what a git asks for, unpacked; what git http-backend itself allows
FETCH_PATH = re.compile(r"/r/[^/]+/(?:info/refs|git-upload-pack|git-receive-pack)")
FINDERS = 2  # searches in logs at a time: each takes a worker, and a processor as long as it lasts
COOKIE = "forge_session"


class Page(bottle.SimpleTemplate):  # type: ignore[misc]
    """A template in which every value is made visible; what has to be exact, as in a form, is written ``{{!exact(value)}}``."""

    settings = {"escape_func": for_pages}  # noqa: RUF012 (so bottle wants it)


class Errors(io.TextIOBase):
    """What bottle prints of an exception that was not foreseen goes to the log as all else."""

    def write(self, text: str) -> int:
        """Take a traceback."""
        log("an exception that was not foreseen", text)
        return len(text)


class Web:
    """The routes. One object an app, so that tests can have several."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.config = engine.config
        self.door = Door(engine.config)
        self.views = asset("views")
        self.lookup = [str(self.views)]  # bottle knows a template again by the identity of this list
        self.kept: dict[tuple[str, str, bool, bool], tuple[object, bytes]] = {}  # by request: pages, and what they were made from
        self.followers = threading.BoundedSemaphore(WEB_THREADS // 4)  # workers that may wait for a log at a time
        self.finders = threading.BoundedSemaphore(FINDERS)
        self.cloners = threading.BoundedSemaphore(CLONERS)
        self.waiters = threading.BoundedSemaphore(WEB_THREADS // 4)  # workers that may wait for a turn to search or to clone
        self.app = bottle.Bottle()
        self.app.install(self._answer)
        self.app.add_hook("before_request", self._check_request)
        self.app.default_error_handler = self._error_of_bottle
        self._add_routes()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """WSGI. Every answer gets the headers that keep browsers from harm; HEAD is answered as GET, without the body."""

        def start(status: str, headers: list[tuple[str, str]], error: Any = None) -> Any:
            return start_response(status, [*headers, *SECURITY_HEADERS.items()], error)

        try:
            path = environ.get("PATH_INFO", "").encode("latin-1").decode("utf-8")
        except UnicodeError:
            path = "\0"
        if any(char < " " or char == "\x7f" for char in path):
            environ |= {"PATH_INFO": "/", "forge.odd_path": True}
        if environ["REQUEST_METHOD"] == "HEAD":
            environ |= {"REQUEST_METHOD": "GET", "forge.asked_head": True}  # no route can forget to answer both alike
        self.engine.hasty.on = True
        environ["wsgi.errors"] = Errors()
        answer: Iterable[bytes] = self.app(environ, start)
        if "forge.asked_head" in environ:
            close = getattr(answer, "close", None)
            if close:
                close()
            return []
        return answer

    def _add_routes(self) -> None:
        table = (
            ("GET", "/", self.index),
            ("GET", "/healthz", lambda: text_response(200, "ok\n")),
            ("GET", "/metrics", self.metrics),
            ("GET", "/static/<path:path>", self.static),
            ("GET", "/jobs", self.jobs),
            ("GET", "/search", self.search),
            ("GET", "/jobs/<job_id>", self.job),
            ("GET", "/jobs/<job_id>/log", self.log),
            ("POST", "/jobs/<job_id>/cancel", self.cancel),
            ("POST", "/jobs/<job_id>/retry", self.retry),
            ("GET", "/login", self.login_page),
            ("POST", "/login", self.login),
            ("GET", "/logout", self.login_page),
            ("POST", "/logout", self.logout),
            ("POST", "/prune", self.prune),
            ("POST", "/hooks/post-receive", self.post_receive),
            ("GET", "/r/<repo>.git", self.clone_page),
            ("GET", "/r/<repo>/info/refs", self.fetch),
            ("POST", "/r/<repo>/git-upload-pack", self.fetch),
            ("POST", "/r/<repo>/git-receive-pack", self.fetch),
            ("GET", "/r/<repo>", self.repo),
            ("GET", "/r/<repo>/history", self.history),
            ("GET", "/r/<repo>/badge.svg", self.badge),
            ("GET", "/r/<repo>/feed.atom", self.feed),
            ("GET", "/r/<repo>/deployments", self.deployments),
            ("GET", "/r/<repo>/deployments/<job_id>", self.deployment),
            ("POST", "/r/<repo>/rollback", self.roll_back),
            ("POST", "/r/<repo>/hold", self.hold),
            ("GET", "/r/<repo>/mr/<branch:path>", self.mr),
            ("POST", "/r/<repo>/mr/<branch:path>/merge", self.merge),
            ("POST", "/r/<repo>/mr/<branch:path>/delete", self.delete_branch),
        )
        for method, path, callback in table:
            self.app.route(path, method, callback)

    # -- one place for requests, answers and errors -----------------------------

    def _check_request(self) -> None:
        """What holds for every request: the Host is ours, a POST comes from our pages, and a private forge is private."""
        request = bottle.request
        try:
            if "forge.odd_request" in request.environ:
                raise Refused(*request.environ["forge.odd_request"])
            if "forge.odd_path" in request.environ:
                raise Refused(400, "this address has a control character, or is not valid UTF-8")
            self._check_host(header("Host"))
            if request.method == "POST":
                self._check_origin()
                if request.content_length > MAX_BODY:
                    raise Refused(413, "the body is larger than 1 MiB")
            open_path = request.path in ("/login", "/healthz", "/hooks/post-receive") or request.path.startswith("/static/")
            if self.config.private and not open_path:
                self._authorize(wants_body=request.method == "POST" and not is_fetch())
        except Refused as error:
            raise self._refusal(error) from None

    def _check_host(self, given: str) -> None:
        found = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9._-]+))(?::[0-9]{1,5})?", given)
        host = (found[1] or found[2]).lower() if found else ""
        try:
            ip_address(host)
        except ValueError:
            if host not in ("localhost", urlsplit(self.engine.url).hostname):
                raise Refused(421, f"this forge does not answer for the host {shorten(given)}; set FORGE_URL") from None

    def _check_origin(self) -> None:
        """Refuse what a page of another site sends. What is not asked by FORGE_URL may come through a tunnel of either scheme."""
        origin, site, url = header("Origin"), header("Sec-Fetch-Site") or "none", urlsplit(self.engine.url)
        host = header("Host")
        schemes = (url.scheme,) if host == url.netloc else ("http", "https")
        ours = [f"{url.scheme}://{url.netloc}", *(f"{scheme}://{host}" for scheme in schemes)]
        if site not in ("same-origin", "none") or (origin and origin not in ours):
            raise Refused(403, "this request comes from another site")

    def _authorize(self, wants_body: bool = True) -> None:
        """Let pass who may act: token or password as bearer, a field of the body, a session. Raises Refused 400, 401 or 429."""
        password = self._text("password") if wants_body else None  # a body that cannot be read is refused, whoever sends it
        given = bearer()
        if given is not None:
            if not self.door.is_token(given):
                self.door.check_password(given)
            return
        if self.door.knows(session_cookie()):
            return
        if not password:
            raise Refused(
                401, "this needs the merge password: log in, or send the token or the password as Authorization: Bearer"
            )
        if not self.door.is_token(password):
            self.door.check_password(password)

    @staticmethod
    def _text(name: str) -> str | None:
        """A field of the body that is text; None when it is missing or empty. Raises Refused."""
        value = body_fields().get(name, "")
        if not isinstance(value, str):
            raise Refused(400, f"{name} in the body is {JSON_KINDS[type(value)]}, but must be text")
        if any("\ud800" <= char <= "\udfff" for char in value):
            raise Refused(400, f"{name} in the body is no valid Unicode: it has half of a surrogate pair")
        return value or None

    @staticmethod
    def _flag(name: str) -> bool:
        """Whether a field of the body says yes. Raises Refused."""
        value = body_fields().get(name, "")
        if value in ("1", "true", True):
            return True
        if value in ("", "0", "false", False):
            return False
        raise Refused(400, f"{name} in the body is {shorten(value)}, but must be 1 or 0")

    def _answer(self, callback: Callable[..., Any]) -> Callable[..., Any]:
        """Bottle's plugin: turn what a route returns or raises into an answer."""

        def answer(*args: Any, **kwargs: Any) -> Any:
            """A route, whatever it raises."""
            name = (kwargs.get("repo") or bottle.request.query.get("repo") or "").removesuffix(".git")
            try:
                self._meet(name)
                return callback(*args, **kwargs)
            except Refused as error:
                return self._refusal(error)
            except (GitError, OSError) as error:
                waits = self.engine.must_wait(name, error) if is_repo_name(name) else None
                if waits:
                    return self._refusal(Refused(409, waits))
                no_room = self.engine.no_room(error)
                if not no_room and isinstance(error, OSError):
                    raise
                self.engine.complain(f"{bottle.request.method} {bottle.request.path}", error)
                if isinstance(error, GitError) and not no_room:
                    return self._refusal(Refused(500 if error.code < 0 else 409, f"git could not do it: {error}"))
                words = lacks_room(error) or error
                return self._refusal(Refused(507, f"the server has no room on its disk ({words}); make room, then do it again"))

        return answer

    def _meet(self, *names: str) -> None:
        """Let the server complete repos that it has not seen before. What is wrong with one is told by who asks for it."""
        until = time.monotonic() + MEET_SECONDS
        for name in names:
            whole = not is_repo_name(name) or self.engine.has_met(name)
            while not whole and time.monotonic() < until:
                whole = True
                with contextlib.suppress(Refused, GitError, OSError):
                    whole = self.engine.meet(name)
                time.sleep(0 if whole else 0.05)

    def _refusal(self, error: Refused) -> bottle.HTTPResponse:
        headers = dict(error.extra.get("headers", {}))
        if error.status == 401 and is_fetch():  # so that git asks for name and password, or takes them from the URL
            headers["WWW-Authenticate"] = 'Basic realm="forge", charset="UTF-8"'
        extra = {key: value for key, value in error.extra.items() if key != "headers"}
        wanted = wanted_type()
        if wanted == "html":
            return self._page("error", error.status, headers, text=error.text, extra=extra, status=error.status)
        if wanted == "text":
            return text_response(error.status, sentences([error.text]), headers)
        return json_response({"error": error.text, **extra}, error.status, headers)

    def _error_of_bottle(self, error: bottle.HTTPError) -> Any:
        """What bottle itself refuses: no route, the wrong method, a crash (which goes to the log)."""
        texts = {404: "there is nothing at this address", 405: "this address does not take this method"}
        if error.exception is not None:
            log(f"{bottle.request.method} {bottle.request.path}: {error.exception!r}")  # bottle has told the traceback
            texts[500] = "forge stumbled over this; the server's log says more"
        made = self._refusal(Refused(error.status_code, texts.get(error.status_code, str(error.body))))
        bottle.response.headers.update(made.headers)
        return made.body

    def _xml(self, view: str, kind: str, **values: Any) -> bottle.HTTPResponse:
        made = str(bottle.template(view, template_adapter=Page, template_lookup=self.lookup, **values))
        return tagged(XML_ODD.sub("\ufffd", made).encode(), kind)

    def _page(self, view: str, code: int = 200, headers: Mapping[str, str] | None = None, **values: Any) -> bottle.HTTPResponse:
        return page_response(self._render(view, values), code, headers)

    def _render(self, view: str, values: Mapping[str, Any]) -> bytes:
        """A page from its template."""
        spell = {"ago": ago, "spell_duration": spell_duration, "spell_bytes": spell_bytes, "mr_path": partial(mr_url, "")}
        spell |= {"spell_wait": spell_wait, "visible": visible, "side_by_side": side_by_side, "quote": quote_bytes}
        spell["exact"] = bottle.html_escape
        spell["query"] = lambda **values: urlencode(values, errors="surrogateescape")
        page = {"logged_in": self._logged_in(), "here": bottle.request.path, "version": __version__, "PRE": PRE, "POST": POST}
        action = bottle.request.method == "POST"
        here = bottle.request.path.rpartition("/")[0] if action else bottle.request.path  # of an action: its page
        page["here_quoted"] = quote(quote(here or "/"), safe="")  # an address, as a value in another address
        values = {**spell, **page, **values}
        made = bottle.template(view, template_adapter=Page, template_lookup=self.lookup, **values)
        return str(made).encode("utf-8", "replace")  # names in a repo that was copied in may be no UTF-8

    def _logged_in(self) -> bool:
        return self.door.knows(session_cookie())

    def _show(self, view: str, program: Mapping[str, Any], **values: Any) -> Any:
        """JSON to who asks for it, else the page."""
        if wanted_type() == "json":
            return json_response(program)
        return self._page(view, **program, **values)

    def _show_kept(
        self, view: str, program: Callable[[], Mapping[str, Any]], values: Callable[[Any], Mapping[str, Any]], *also: object
    ) -> Any:
        """As `_show`, for what follows from the journal, the time and `also`: made anew when one of them has changed.

        The time counts in minutes; in seconds while a job runs, since what it takes of the machine is shown.
        """
        kind, engine = wanted_type(), self.engine
        asked = (bottle.request.path, bottle.request.query_string, kind == "json", self._logged_in())
        seen = hashlib.sha256(repr(also).encode("utf-8", "backslashreplace")).digest()  # itself it may be all branches of a repo
        mark = (engine.ledger.journal.seq, int(time.time() / (1 if engine.running else 60)), seen)
        known, body = self.kept.get(asked, (None, b""))
        if known != mark:
            made = program()
            body = json_body(made) if kind == "json" else self._render(view, {**made, **values(made)})
            # a short answer to a long question takes room, too: anybody may ask
            if sum(20_000 + len(request[1]) + len(page) for request, (_, page) in [*self.kept.items()]) > PAGES_BYTES:
                self.kept.clear()
            self.kept[asked] = mark, body
        return tagged(body, "application/json") if kind == "json" else page_response(body)

    def _done(self, program: Mapping[str, Any], page: str, status: int = 200) -> Any:
        """An action's answer: JSON to programs, a redirect to people."""
        if wanted_type() == "html":
            return bottle.HTTPResponse("", 303, {"Location": page})
        return json_response(program, status)

    # -- pages --------------------------------------------------------------------

    def static(self, path: str) -> Any:
        return file_response(self.views / "static", path, {"Cache-Control": "no-cache"})

    def badge(self, repo: str) -> Any:
        """The state of a repo's base as a picture."""
        self.engine.usable(repo)
        with self.engine.lock:
            state = badge_state(repo_summary(self.engine, repo))
        return self._xml("badge", "image/svg+xml", state=state, repo=repo)

    def feed(self, repo: str) -> Any:
        """Merges, failed jobs and deployments of a repo as an Atom feed."""
        self.engine.usable(repo)
        entries = feed_entries(self.engine, repo)
        return self._xml("feed", "application/atom+xml", entries=entries, repo=repo, url=self.engine.url)

    def metrics(self) -> Any:
        """Figures for Prometheus."""
        body = prometheus_text(read_metrics(self.engine)).encode()
        kind = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8", "Cache-Control": "no-store"}
        return bottle.HTTPResponse(body, 200, kind)

    def index(self) -> Any:
        """The repos and what runs, from what the journal knows: no git runs."""
        engine = self.engine
        names = engine.repo_names()
        self._meet(*(name for name in names if name not in engine.state.repos))
        with engine.lock:
            repos = [repo_summary(engine, name) for name in names]
            running, pending = self._running()
        icon, words = tab_of(len(running), [repo["verdict"] for repo in repos])
        room = scarce_room(self.config)
        view = {"repos": repos, "running": running, "disk": {"free_bytes": room.free, "total_bytes": room.total}}
        return self._show("index", view, room=room, pending=pending, clone=str(self.config.repos), icon=icon, words=words)

    def _running(self, repo: str | None = None) -> tuple[list[dict[str, Any]], int]:
        """The jobs that run, and how many wait; the lock is held."""
        live = self.engine.state.live_jobs(repo)
        running = [job_view(self.engine, job) for job in live if job.status == "running"]
        return running, len(live) - len(running)

    def repo(self, repo: str) -> Any:
        """A repo's merge requests with what the gate says of each, what runs, and where the time of the last pushes went."""
        engine = self.engine
        shown = bottle.request.query.get("show") or ""
        if shown and shown not in STANDINGS:
            raise Refused(400, f"show is {shorten(shown)}, but must be one of {', '.join(STANDINGS)}")
        refs = engine.overview(repo)
        also = (
            refs,
            engine.trouble_of(repo),
            [*engine.stuck.items()],
            [*engine.unrenewed.get(repo, {}).items()],
        )  # a copy at once: the lock is not held

        def program() -> dict[str, Any]:
            requests = [mr_view(engine, repo, refs, branch) for branch in sorted(refs.heads) if branch != refs.base]
            requests.sort(key=lambda view: -(view["job"] or {"id": 0})["id"])
            about = {"repo": repo, "base": refs.base, "head": refs.tip, "trouble": engine.trouble_of(repo)}
            return {**about, "merge_requests": requests, "holds": self._holds(repo)}

        def values(view: Mapping[str, Any]) -> dict[str, Any]:
            order = list(STANDINGS)
            requests = [{**request, "standing": standing_of(request)} for request in view["merge_requests"]]
            tally = Counter(request["standing"] for request in requests)
            wanted = [request for request in requests if shown in ("", request["standing"])]
            wanted.sort(key=lambda request: order.index(request["standing"]))
            listed = wanted[: fitting(map(row_size, wanted), ROWS_BYTES)]
            about = {"heads": len(refs.heads), "path": str(self.config.repo(repo)), "clone": f"{engine.url}/r/{repo}.git"}
            about |= {"standings": STANDINGS, "tally": tally, "shown": shown}
            return {"merge_requests": listed, "left_out": len(wanted) - len(listed), **about, **self._pulse(repo)}

        return self._show_kept("repo", program, values, *also)

    def _pulse(self, repo: str) -> dict[str, Any]:
        """What goes on in a repo, and went on lately, for its page."""
        engine, ledger = self.engine, self.engine.ledger
        with engine.lock:
            summary = repo_summary(engine, repo)
            running, pending = self._running(repo)
            tests, deployments = ledger.search(60, repo=repo, kind=PRE), ledger.search(60, repo=repo, kind=POST)
            rows = push_rows(tests, ledger.merges_of(repo, limit=40), deployments, time.time())
            jobs = [job_view(engine, job) for job in ledger.search(10, repo=repo)]
        icon, words = tab_of(len(running), [summary["verdict"]])
        trends = [
            (kind, trend_svg(kind, ran)) for kind, found in ((PRE, tests), (POST, deployments)) if (ran := ran_last(found, 50))
        ]
        drawn = {"rows": rows, "shapes": SHAPES, "timeline": timeline_svg(rows) if rows else "", "trends": trends}
        return {"summary": summary, "running": running, "pending": pending, "jobs": jobs, "icon": icon, "words": words, **drawn}

    def _holds(self, repo: str) -> list[dict[str, Any]]:
        """What is on hold in a repo, oldest first."""
        with self.engine.lock:
            return [hold_view(repo, hold) for hold in self.engine.state.repos.get(repo, Repo()).holds.values()]

    def mr(self, repo: str, branch: str) -> Any:
        """A merge request with its checks and its diff; 404 with the merge for a branch that was merged."""
        refs = self.engine.overview(repo)
        if branch not in refs.heads:
            action = branch.rpartition("/")
            if action[2] in ("merge", "delete") and action[0] in refs.heads:
                raise Refused(405, f"{action[2]} is done with POST", headers={"Allow": "POST"})
            with self.engine.lock:
                done = self.engine.ledger.merge_of(repo, branch)
                lines = trail(self.engine.ledger, merge=done) if done else {}
            if done:
                merge = merge_view(done)
                said = f"{branch} was merged into {refs.base} as {merge['merge_commit']} by job {merge['job']}"
                raise Refused(404, said, merge=merge, **lines)
            raise Refused(404, f"{repo} has no branch {shorten(branch)}")
        if branch == refs.base:
            raise Refused(404, f"{branch} is the base of {repo}, not a merge request")
        view, cause = mr_view(self.engine, repo, refs, branch), ""
        with contextlib.suppress(GitError):  # its newest job may test several heads, or have used the result of another
            cause = self.engine.commit(repo, view["head"]).cause
        with self.engine.lock:
            test = self.engine.ledger.job(view["job"]["id"]) if view["job"] else None
            view |= trail(self.engine.ledger, job=replace(test, caused_by=cause)) if test else {}
        if wanted_type() == "json":
            return json_response(view)
        split, path = wanted_changes()
        start = view["merge_base"] or refs.tip
        if path is not None:
            here = mr_url("", repo, branch)
            return self._page("file", **view, split=split, here=here, title=branch, **self._file(view, start, path))
        with self.engine.lock:
            jobs = self.engine.ledger.search(20, repo=repo, branch=branch)
            job = self.engine.ledger.job(view["job"]["id"]) if view["job"] else None
            ahead = []
            if job and not view["settled"] and job.status != "running":
                live = self.engine.state.live_jobs(None if job.live else repo)
                ahead = [job_view(self.engine, other) for other in jobs_ahead(job, live)]
            checks = [job_view(self.engine, one) for one in jobs if not job or one.id != job.id]
        checks = [view["job"], *checks] if view["job"] else checks
        view["offers_merge"] = view["mergeable"] or not why_no_merge(
            view["blockers"], job
        )  # of a mergeable one they only explain
        view["no_retry"] = self.engine.why_no_retry(job) if job else None
        return self._page("mr", **view, checks=checks, queue=ahead, split=split, **self._changes(view, refs.tip, start))

    def _changes(self, view: Mapping[str, Any], tip: str | None, start: str | None) -> dict[str, Any]:
        """What the page of a merge request shows of its commits and files; `trouble` where git cannot read them."""
        engine, name, head = self.engine, view["repo"], view["head"]
        first = query_number("from") or 0
        made: dict[str, Any] = {"about": None, "commits": [], "files": [], "whole": True, "listed": [], "lines": {}}
        made |= {"first": first, "trouble": None}
        try:
            made["about"] = engine.commit(name, head)
            if tip and start:
                made["commits"] = commits_of(engine, name, tip, head)
                made["files"], made["whole"] = changes_of(engine, name, start, head)
                made["listed"] = files_of_page(made["files"], first)
                if first and not made["listed"]:
                    raise Refused(404, f"{view['branch']} changes {len(made['files'])} files, none from {first} on")
                made["lines"] = unfolded(engine, name, start, head, made["listed"])
        except GitError as error:
            made["trouble"] = f"What it changes cannot be shown: {error}"
        return made

    def _file(self, view: Mapping[str, Any], start: str | None, path: str) -> dict[str, Any]:
        """One file that a merge request changes. Raises Refused."""
        name, head = view["repo"], view["head"]
        changes = changes_of(self.engine, name, start, head)[0] if start else []
        change = next((change for change in changes if change.path == path), None)
        if start is None or change is None:
            raise Refused(404, f"{view['branch']} changes no file {shorten(path)}")
        found, whole = lines_of(self.engine, name, start, head, [] if change.quiet else [change], FILE_BYTES, b"")
        lines = found.get(path, [])
        fit = fitting(map(line_size, lines), FILE_BYTES)
        cut = not change.quiet and (not whole or fit < len(lines) or not lines)
        return {"start": start, "change": change, "lines": lines[:fit], "cut": cut}

    def history(self, repo: str) -> Any:
        """The merges of a repo, newest first; `before` of the answer leads to older ones."""
        self.engine.usable(repo)
        limit, before = page_size(), query_number("before")
        with self.engine.lock:
            count = len(self.engine.ledger.merges.places.get(repo, ()))
            count = count if before is None else min(before, count)
            records, ledger = self.engine.ledger.merges_of(repo, limit=limit, before=count), self.engine.ledger
            merges = [{**merge_view(record), **trail(ledger, merge=record)} for record in records]
        fit, rows = fitting(map(landed_size, merges), ROWS_BYTES), limit
        if fit < len(merges) and wanted_type() != "json":
            rows = max(1, fit)
        older = count - rows if count > rows else None
        view = {"merges": merges[:rows], "before": older}
        return self._show("history", view, repo=repo, limit=limit, first=before is None)

    def deployments(self, repo: str) -> Any:
        """The post-merge jobs of a repo with what each brought, newest first, and the commit that was deployed last."""
        engine, ledger = self.engine, self.engine.ledger
        refs = engine.refs(repo)
        limit, before = page_size(), query_number("before")

        def program() -> dict[str, Any]:
            with engine.lock:
                found = ledger.search(limit + DEPLOYMENTS_BEFORE, before, repo=repo, kind=POST)
                current = next(iter(ledger.search(1, repo=repo, kind=POST, status="passed")), None)
            views = [deployment_view(engine, job, itertools.islice(found, at, None)) for at, job in enumerate(found[:limit], 1)]
            return {"deployments": views, "current": current.commit if current else None}

        def values(view: Mapping[str, Any]) -> dict[str, Any]:
            deployments = view["deployments"][: max(1, fitting(map(landed_size, view["deployments"]), ROWS_BYTES))]
            with engine.lock:
                newest = ledger.search(1, repo=repo, kind=POST)
                known = engine.state.repos.get(repo, Repo())
                trees = {one["tree"] for one in deployments if one["tree"]}
                passed = {tree for tree in trees if ledger.result(repo, tree, None, "passed")}
                older = len(ledger.search(1, deployments[-1]["id"], repo=repo, kind=POST)) > 0 if deployments else False
            icon, words = tab_of(sum(one["status"] == "running" for one in deployments), deployments[:1])
            about = {"repo": repo, "limit": limit, "first": before is None, "icon": icon, "words": words, "tip": refs.tip}
            about |= {"newest": newest[0].id if newest else None, "holds": self._holds(repo), "base": refs.base}
            about |= {"older": deployments[-1]["id"] if older else None, "passed": passed, "rolling": known.rollback}
            about["no_rollbacks"] = engine.no_rollbacks(repo, refs, {one["commit"] for one in deployments})
            about["no_retry"] = engine.why_no_retry(newest[0]) if newest else None
            return about | {"deployments": deployments}

        return self._show_kept("deployments", program, values, refs)

    def deployment(self, repo: str, job_id: str) -> Any:
        """What a deployment changed since the one before: the files that differ between its base and its commit."""
        self.engine.usable(repo)
        job = self._job(job_id)
        if (job.repo, job.kind) != (repo, POST):
            raise Refused(404, f"job {job.id} is no deployment of {repo}")
        with self.engine.lock:
            before = self.engine.ledger.search(DEPLOYMENTS_BEFORE, job.id, repo=repo, kind=POST)
        view = {**deployment_view(self.engine, job, before), "head": job.commit}
        if wanted_type() == "json":
            return json_response(view)
        split, path = wanted_changes()
        here = f"/r/{repo}/deployments/{job.id}"
        if path is not None:
            return self._page("file", **view, split=split, here=here, title=f"job {job.id}", **self._file(view, job.base, path))
        made = self._changes(view, job.base, job.base) | {"commits": view["commits"]}
        return self._page("deployment", **{**view, **made}, split=split, here=here)

    def jobs(self) -> Any:
        """What runs, and the newest jobs that fit the query."""
        engine, query = self.engine, bottle.request.query
        wanted = {name: utf8(query[name]) for name in ("repo", "branch", "kind", "status") if query.get(name)}
        for name, known in (("status", (*LIVE, *FINAL)), ("kind", (PRE, POST))):
            if wanted.get(name, known[0]) not in known:
                raise Refused(400, f"{name} is {shorten(wanted[name])}, but must be one of {', '.join(known)}")
        limit, before = page_size(), query_number("before")

        def program() -> dict[str, Any]:
            with engine.lock:
                return {"jobs": [job_view(engine, job) for job in engine.ledger.search(limit, before, **wanted)]}

        def values(view: Mapping[str, Any]) -> dict[str, Any]:
            with engine.lock:
                running, pending = self._running()
                repos = sorted(engine.state.repos)
            more = {**wanted, "limit": limit}
            older = urlencode({**more, "before": view["jobs"][-1]["id"]}) if len(view["jobs"]) >= limit else None
            newest = urlencode(more) if before is not None else None
            icon, words = tab_of(len(running), [])
            rest = {"icon": icon, "words": words, "statuses": (*LIVE, *FINAL), "repos": repos}
            return {"running": running, "pending": pending, "wanted": wanted, "older": older, "newest": newest, **rest}

        return self._show_kept("jobs", program, values)

    def search(self) -> Any:
        """The jobs whose log contains a text, newest first; without one the form."""
        query = bottle.request.query
        needle, repo, before = utf8(query.get("q", "")).strip(), utf8(query.get("repo", "")), query_number("before")
        if len(needle) > 200:
            raise Refused(400, f"q has {len(needle)} characters, at most 200 can be searched for")
        if repo and not is_repo_name(repo):
            raise Refused(400, f"repo is {shorten(repo)}, which is no name of a repo")
        logs = list_logs(self.config.data_dir / "logs", repo or None, before) if needle else []
        with self._turn(self.finders, "others are searching; search") if logs else contextlib.nullcontext():
            done = search_logs(logs, needle, time.monotonic() + FIND_SECONDS)
        jobs = []
        with self.engine.lock:
            for job_id, found in done.hits:
                job = self.engine.ledger.job(job_id)
                matches = [{"line": number, "text": text} for number, text in found.matches]
                jobs += [{**job_view(self.engine, job), "matches": matches, "count": found.count}] if job else []
            first = self.engine.ledger.job(done.first) if done.first else None
        seen = {"job": first.id, "at": first.started_at, "url": f"{self.engine.url}/jobs/{first.id}"} if first else None
        last = logs[done.looked - 1][0] if done.looked < len(logs) else None
        view: dict[str, Any] = {"query": needle, "jobs": jobs, "first_seen": seen, "first_is_certain": done.complete}
        view |= {"looked": done.looked, "logs": len(logs), "before": last}
        older = urlencode({"q": needle, "repo": repo, "before": last}) if last else None
        return self._show("search", view, repo=repo, repos=self.engine.repo_names(), older=older, marked=marked)

    @contextlib.contextmanager
    def _turn(self, turns: threading.BoundedSemaphore, words: str, seconds: float = 0.0) -> Iterator[None]:
        """A turn to search or to clone, for which some may wait so long, so that all others are answered. Raises Refused(503)."""
        mine = self.waiters.acquire(blocking=False)
        if mine:
            mine = turns.acquire(timeout=seconds)
            self.waiters.release()
        if not mine:
            raise Refused(503, f"{words} again in a moment", headers={"Retry-After": "2"})
        try:
            yield
        finally:
            turns.release()

    def job(self, job_id: str) -> Any:
        """A job with a piece of its log in plain lines, which log.js colours: the end, or what was asked for."""
        job = self._job(job_id)
        view = job_view(self.engine, job)
        with self.engine.lock:
            view |= trail(self.engine.ledger, job=job)
        if wanted_type() == "json":
            return json_response(view)
        path = self.config.log(job.repo, job.id)
        gone = job.started_at is not None and not job.live and not path.exists()
        piece = None if gone or bottle.request.query.get("facts") == "1" else self._piece(path)
        lines = plain_lines(piece.content) if piece else []
        later = (
            piece.line + min(len(lines), PIECE_LINES) if piece and (len(lines) > PIECE_LINES or piece.end < piece.size) else None
        )
        with self.engine.lock:
            done = self.engine.ledger.merges_of(job.repo, job.branch, 1)
        merge = merge_view(done[0]) if done and done[0]["job"] == job.id else None
        waits = self.engine.ailing.get(job.repo) if job.status == "pending" else None
        about: dict[str, Any] = {
            "trouble": waits and waits[0].text,
            "merge": merge,
            "stopping": job.stopping,
            "sandboxed": job.sandboxed,
            "digest": parts_of_digest(job.digest),
        }
        about["no_retry"] = None if job.live else self.engine.why_no_retry(job)
        return self._show("job", {"job": view}, **about, gone=gone, piece=piece, lines=lines[:PIECE_LINES], later=later)

    def _job(self, job_id: str) -> Job:
        with self.engine.lock:
            job = self.engine.ledger.job(int(job_id)) if re.fullmatch("[1-9][0-9]{0,17}", job_id) else None
        if job is None:
            raise Refused(404, f"there is no job {shorten(job_id)}")
        return job

    # -- logs -----------------------------------------------------------------------

    def log(self, job_id: str) -> Any:
        """The log as the job wrote it: whole or by range, from an offset or a line on, or as it grows; or what is found in it."""
        job = self._job(job_id)
        path, query = self.config.log(job.repo, job.id), bottle.request.query
        offset, wait = query_number("offset"), query_seconds("wait")
        headers = {"X-Job-Status": job.status, "Cache-Control": "no-store" if job.live else "no-cache"}
        if not path.exists() and job.started_at and not job.live:
            raise Refused(410, f"the log of job {job.id} was pruned")
        if "find" in query:
            return self._find(path, utf8(query["find"]))
        if offset is not None:
            # the status was read before the bytes: who sees a final one with no bytes has them all
            content = self._log_after(job, path, offset, wait)
            return text_response(200, content, headers | {"X-Log-Size": str(size_of(path))})
        if "line" in query or "before" in query:
            piece = self._piece(path, min(query_number("most") or BLOCK, BLOCK))
            place = {"Offset": piece.start, "Line": piece.line, "Skipped": piece.skipped, "Size": piece.size}
            return text_response(200, piece.content, headers | {f"X-Log-{name}": str(value) for name, value in place.items()})
        if query.get("follow") == "1":
            if "forge.asked_head" in bottle.request.environ:  # the headers do not wait for what the job will write
                return bottle.HTTPResponse(iter([b"-"]), 200, headers | {"Content-Type": "text/plain; charset=utf-8"})
            if not self.followers.acquire(blocking=False):
                raise Refused(503, "too many follow logs at once; use ?offset=N", headers={"Retry-After": "1"})
            return bottle.HTTPResponse(self._follow(job, path), 200, headers | {"Content-Type": "text/plain; charset=utf-8"})
        try:
            with open(path, "rb", opener=open_log):  # while it is open, no lease keeps it from being opened again
                named = {"Content-Disposition": f'attachment; filename="{job.repo}-{job.id}.log"'}
                headers |= named if query.get("download") == "1" else {}
                return file_response(path.parent, path.name, headers, "text/plain; charset=utf-8")
        except FileNotFoundError:
            return text_response(200, b"", headers)

    def _piece(self, path: Path, most: int = PIECE_BYTES) -> Piece:
        """The part of a log that the query names: from a line on, what lies before an offset, or the end."""
        counts, line, before = self.engine.line_counts, query_number("line"), query_number("before")
        try:
            if line is not None:
                return counts.piece_from(path, max(1, line), most)
            return counts.piece_before(path, size_of(path) if before is None else before)
        except FileNotFoundError:  # it was pruned a moment ago
            return Piece(b"", 0, 1, 0, 0)

    def _find(self, path: Path, needle: str) -> Any:
        """The lines of a log that hold a text."""
        if not 0 < len(needle) <= 200:
            raise Refused(400, "find must be a text of 1 to 200 characters")
        found = Found([], 0, True, 0)
        with self._turn(self.finders, "others are searching; search", FIND_SECONDS / 2), contextlib.suppress(FileNotFoundError):
            found = find_in_log(path, needle, FIND_MOST, time.monotonic() + FIND_SECONDS)
        matches = [{"line": line, "text": text} for line, text in found.matches]
        answer = {"count": found.count, "matches": matches, "complete": found.complete, "lines": found.lines}
        return json_response({"find": needle, **answer})

    def _log_after(self, job: Job, path: Path, offset: int, wait: float, most: int = 1 << 20) -> bytes:
        """At most `most` bytes of a log from `offset` on; waits up to `wait` seconds for the first while the job lives."""
        until = time.monotonic() + wait
        held = wait > 0 and self.followers.acquire(blocking=False)
        try:
            while True:
                live, chunk = job.live, read_log(path, offset, most)
                if chunk:
                    return chunk
                if not live or not held or time.monotonic() >= until or self.engine.closing:
                    return b""
                time.sleep(0.05)
        finally:
            if held:
                self.followers.release()

    def _follow(self, job: Job, path: Path) -> Iterator[bytes]:
        """The log as it grows, until the job ends or the time is over."""
        try:
            until, offset, ended = time.monotonic() + FOLLOW_SECONDS, 0, False
            while True:
                ended = not job.live
                chunk = read_log(path, offset, 1 << 16)
                offset += len(chunk)
                if chunk:
                    yield chunk
                if time.monotonic() >= until or (not chunk and (ended or self.engine.closing)):
                    return
                if not chunk:
                    time.sleep(0.1)
        finally:
            self.followers.release()

    # -- clone and fetch ----------------------------------------------------------------

    def clone_page(self, repo: str) -> Any:
        """Who opens the address of a clone in a browser wants to see the repo."""
        self.engine.usable(repo)
        return bottle.HTTPResponse("", 303, {"Location": f"/r/{repo}"})

    def fetch(self, repo: str) -> Any:
        """Clone and fetch: git's requests go to git http-backend, which can only read here. Raises Refused."""
        request, name = bottle.request, repo.removesuffix(".git")
        posted = request.method == "POST"
        wanted = request.path.rpartition("/")[2] if posted else request.query.get("service")
        path = self.engine.usable(name)
        if wanted == "git-receive-pack":
            raise Refused(403, f"{name} can only be read over http; push to {path} on the server, by ssh or by its path")
        if wanted != "git-upload-pack":
            raise Refused(403, "this git asks for single files (the dumb protocol), which are not served; use git 1.6.6 or newer")
        answer = self._backend(path, request.method, "" if posted else "service=git-upload-pack")
        head = next(answer)  # from here on the answer holds a turn and a git, until it is closed
        return bottle.HTTPResponse(answer, int(head.pop("Status", "200")[:3]), head)

    def _backend(self, path: Path, method: str, query: str) -> Iterator[Any]:
        """Run git http-backend on a repo: yields its headers, then its answer as it comes. Raises Refused, GitError.

        Closed before its end (the client is gone), it ends git.
        """
        protocol = header("Git-Protocol")
        about = {
            "GIT_PROJECT_ROOT": str(path.parent),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_PROTOCOL": protocol if re.fullmatch(r"[a-z0-9=:.-]{1,50}", protocol) else "",
            "PATH_INFO": f"/{path.name}/{'git-upload-pack' if method == 'POST' else 'info/refs'}",
            "REQUEST_METHOD": method,
            "QUERY_STRING": query,
            "CONTENT_TYPE": utf8(bottle.request.content_type),
        }
        args = ("http-backend",)
        with contextlib.ExitStack() as held:
            held.enter_context(self._turn(self.cloners, "others are cloning; fetch", CLONE_WAIT))
            body = fetch_body() if method == "POST" else b""  # now, since it may be large, and only some have a turn
            process = held.enter_context(git_process(path, args, None, True, CONTENT_LENGTH=str(len(body)), **about))
            out = process.stdout
            assert process.stdin and isinstance(out, io.BufferedReader) and process.stderr
            try:
                with contextlib.suppress(BrokenPipeError):  # what it printed says why
                    process.stdin.write(body)  # http-backend takes all of it before it answers
                del body
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
                head = {}
                while line := out.readline().decode("latin-1").strip():
                    name, _, head[name] = line.partition(": ")
                if not head:
                    raise GitError(args, process.wait(), process.stderr.read().decode("utf-8", "replace"))
                yield head
                while chunk := out.read1(1 << 16):
                    yield chunk
            finally:
                end_git(process)

    # -- actions ----------------------------------------------------------------------

    def login_page(self) -> Any:
        """The form to log in, or to log out."""
        known = self.door.knows(session_cookie())
        return self._show("login", {"logged_in": known}, wrong=None, to=bottle.request.query.get("to") or "/")

    def login(self) -> Any:
        """Begin a session."""
        try:
            self._authorize()
        except Refused as error:
            if wanted_type() != "html" or error.status == 429:
                raise
            return self._page("login", error.status, wrong=error.text, to=self._text("to") or "/")
        target = self._text("to") or "/"
        answer = self._done({"status": "logged in"}, target if re.fullmatch(r"/(?![/\\])[!-~]*", target) else "/")
        secure = urlsplit(self.engine.url).scheme == "https"
        answer.set_cookie(
            COOKIE, self.door.log_in(), path="/", httponly=True, samesite="strict", secure=secure, max_age=SESSION_SECONDS
        )
        return answer

    def logout(self) -> Any:
        """End a session."""
        self.door.log_out(session_cookie())
        answer = self._done({"status": "logged out"}, "/")
        answer.delete_cookie(COOKIE, path="/")
        return answer

    def merge(self, repo: str, branch: str) -> Any:
        """Merge now (200) or when the test has passed (202)."""
        self._authorize()
        result = self.engine.ask_merge(repo, branch, self._text("head"))
        if result.get("status") == "queued":
            program = {"status": "queued", "job": job_view(self.engine, result["job"])}
            return self._done(program, mr_url("", repo, branch), 202)
        return self._done(merge_view(result), f"/r/{repo}/history")

    def delete_branch(self, repo: str, branch: str) -> Any:
        self._authorize()
        return self._done({"status": "deleted", **self.engine.delete_branch(repo, branch, self._text("head"))}, f"/r/{repo}")

    def roll_back(self, repo: str) -> Any:
        """Give base an earlier tree again: now (200), or when it has passed (202)."""
        self._authorize()
        result = self.engine.roll_back(repo, self._text("commit") or "", self._flag("untested"))
        page = f"/r/{repo}/deployments"
        if result.get("status") == "queued":
            return self._done({"status": "queued", "job": job_view(self.engine, result["job"])}, page, 202)
        return self._done(merge_view(result), page)

    def hold(self, repo: str) -> Any:
        """Put a commit of base on hold, or lift that."""
        self._authorize()
        lift = self._flag("lift")
        hold = self.engine.hold(repo, self._text("commit") or "", lift)
        program = {"status": "lifted" if lift else "on hold", "hold": hold_view(repo, hold)}
        return self._done(program, f"/r/{repo}/deployments#holds")

    def cancel(self, job_id: str) -> Any:
        """Stop a job."""
        self._authorize()
        job = self.engine.cancel(self._job(job_id).id)
        return self._done(job_view(self.engine, job), f"/jobs/{job.id}")

    def retry(self, job_id: str) -> Any:
        """Run a job again, as a new one (202)."""
        self._authorize()
        job = self.engine.retry(self._job(job_id).id)
        return self._done(job_view(self.engine, job), f"/jobs/{job.id}", 202)

    # -- what the hooks say --------------------------------------------------------------

    def prune(self) -> Any:
        """Free room, as ``forge prune`` asks for it; answers when it is done."""
        self._authorize()
        days = body_fields().get("days") or self.config.log_days
        if isinstance(days, bool) or not re.fullmatch("[0-9]{1,5}", str(days)):
            raise Refused(400, f"days is {shorten(days)}, but must be a whole number of at most five digits")
        dry = self._flag("dry_run")
        return self._done(prune(self.engine, int(days), dry).view(dry), "/")

    def post_receive(self) -> Any:
        """Take a push from a hook, or go on showing a log to a pusher who waits."""
        request = bottle.request
        given = bearer()
        if given is None or not (same(given, self.door.hook_token) or self.door.is_token(given)):
            raise Refused(401, "hooks authenticate with the hook token; is hook-header in the data directory current?")
        if header("X-Forge-Follow"):
            return self._follow_push(header("X-Forge-Follow"))
        body = request.body.read(MAX_BODY + 1)
        if request.content_type.partition(";")[0].strip().lower() == "text/plain":
            repo = header("X-Forge-Repo")
            if not is_repo_name(repo):
                raise Refused(400, f"X-Forge-Repo is {shorten(repo)}, which is no name of a repo")
            push = parse_hook_lines(body.decode("utf-8", "surrogateescape"), now())
        else:
            repo, push = parse_hook_json(body, now())
        refs = self.engine.submit(repo, push)
        self._meet(repo)
        jobs, lines, watch = self._tell_push(repo, refs, push)
        trouble = self.engine.trouble_of(repo)
        lines += [f"forge: {trouble}"] if trouble else []
        odd = [option for option in push.options if option not in ("wait", "merge")]
        lines += [f"forge: the push option {shorten(option)} is not known; there are wait and merge" for option in odd]
        if wanted_type() != "text":
            return json_response({"jobs": jobs}, 202)
        if "wait" in push.options and watch:
            lines.append(f"wait {' '.join(f'{job}:0' for job in watch)}")
        return text_response(202, sentences(lines))

    def _tell_push(self, repo: str, refs: Refs, push: Push) -> tuple[list[dict[str, Any]], list[str], list[int]]:
        """(jobs for programs, lines for the pusher, ids that `-o wait` watches). Raises Refused when a ref is not there."""
        engine, jobs, lines, watch = self.engine, [], [], []
        pushed = [update.new for update in push.updates if update.branch and not is_null(update.new)]
        unheard = {} if "merge" in push.options else engine.unheard(repo, pushed)
        for update in push.updates:
            branch = update.branch
            if branch is None or is_null(update.new):
                continue
            job, said = self._job_of_update(repo, refs, branch, update)
            if job is None:
                lines.append(f"forge: {said}")
                continue
            url = f"{engine.url}/jobs/{job.id}"
            jobs.append({"id": job.id, "url": url, "kind": job.kind, "branch": job.branch, "status": job.status})
            lines.append(f"forge: {branch}: {job.kind} job {job.id} {url}")
            with engine.lock:
                ahead = [other for other in engine.state.live_jobs(repo) if other.kind == POST and other.id < job.id]
            if job.kind == PRE and update.new in unheard:
                lines.append(f"forge: {branch} does not merge by itself: {unheard[update.new]}")
            if job.kind == POST and ahead:
                lines.append(f"forge: it begins when job {ahead[0].id} has ended")
            else:
                watch.append(job.id)
        return jobs, lines, watch

    def _job_of_update(self, repo: str, refs: Refs, branch: str, update: Update) -> tuple[Job | None, str]:
        engine = self.engine
        head = refs.heads.get(branch)
        with engine.lock:
            kind = POST if branch == refs.base else PRE
            if kind == PRE and head == update.new:  # what happened to an equal head of long ago is of no interest
                newest = engine.state.newest_job(repo, branch)
                found = [newest] if newest else []
            else:
                found = engine.ledger.search(20, repo=repo, branch=branch, kind=kind)
        job = next((job for job in found if job.commit == update.new), None)
        if head is None and job is None:
            raise Refused(404, f"{repo} has no {shorten(update.ref)}")
        if job is None and refs.tip is None:
            return (
                None,
                f"{branch} is kept, but {repo} has no base yet: HEAD names {refs.base or 'no branch'}; push that, or set another",
            )
        if job is None and branch not in refs.ahead:
            return None, f"{branch}: nothing to merge, {refs.base} contains it"
        return job, f"{branch} is at {head} by now" if job is None else ""

    def _follow_push(self, given: str) -> Any:
        """The next piece of a log for ``git push -o wait``, and in X-Forge-Next where to go on; forge's words at the end."""
        found = re.fullmatch(r"([1-9][0-9]{0,17}):([0-9]{1,18})(?::([1-9][0-9]{0,17}))?", given)
        if not found:
            raise Refused(400, f"X-Forge-Follow is {shorten(given)}, but must be <job>:<offset>[:<job of the push>]")
        job, pushed = self._job(found[1]), self._job(found[3] or found[1])
        offset, live = int(found[2]), job.live
        chunk = self._log_after(job, self.config.log(job.repo, job.id), offset, 1.0, 1 << 16)
        after = f"{job.id}:{offset + len(chunk)}:{pushed.id}"
        if not chunk and not live:
            watch, said = outlook(self.engine, job, pushed)
            whole_line = read_log(self.config.log(job.repo, job.id), max(0, offset - 1), 1) in (b"", b"\n")
            words = sentences(f"forge: {line}" for line in [*(job.digest or "").split("\n"), said] if line) if said else ""
            chunk = f"{'' if whole_line or not said else chr(10)}{words}".encode()
            after = f"{watch.id}:{offset if watch.id == job.id else 0}:{pushed.id}" if watch else ""
            if watch and watch.id == job.id:
                time.sleep(0.05)
        return text_response(200, chunk, {"X-Forge-Next": after, "X-Forge-Pause": "no" if chunk else "yes"})


def wanted_type() -> str:
    """What the client asks for: json, html or text; git shows its user text only."""
    accept = header("Accept").lower()
    for name, kind in (("application/json", "json"), ("text/html", "html"), ("text/plain", "text")):
        if name in accept:
            return kind
    return "text" if is_fetch() else "html" if bottle.request.method == "GET" else "json"


def body_fields() -> Mapping[str, Any]:
    """The fields of an action's body, a form or a JSON object; of several with one name the last counts. Raises Refused."""
    environ = bottle.request.environ
    if "forge.body_fields" not in environ:
        environ["forge.body_fields"] = _read_fields()
    fields: Mapping[str, Any] = environ["forge.body_fields"]
    return fields


def _read_fields() -> Mapping[str, Any]:
    request = bottle.request
    kind = request.content_type.partition(";")[0].strip().lower()
    if request.content_length <= 0:
        return {}
    if kind == "application/json":
        body = request.body.read()
        check_count(sum(map(body.count, (b",", b"[", b"{"))), MOST_VALUES)
        return json_object(body)
    if kind not in ("application/x-www-form-urlencoded", "multipart/form-data"):
        wanted = "a form (application/x-www-form-urlencoded) or a JSON object (application/json)"
        raise Refused(400, f"the body is {shorten(kind)}, but must be {wanted}")
    if kind == "application/x-www-form-urlencoded":
        body = request.body.read()
        if body.lstrip()[:1] == b"{":  # so curl sends it without a header; as a form it would be one unknown field
            raise Refused(400, "the body is JSON, but its Content-Type is that of a form; send Content-Type: application/json")
        check_count(body.count(b"&"), MOST_FIELDS)
    try:
        return {name: utf8(request.forms[name]) for name in request.forms}
    except ValueError:  # bottle stumbles over multipart headers that are no UTF-8
        raise Refused(400, "the form in the body cannot be read") from None


def check_count(found: int, most: int) -> None:
    """Refuse a body of very many fields or values, which take time and memory before anybody has shown a password."""
    if found > most:
        raise Refused(400, f"the body has more than {most:,} fields or values; no action takes so many")


def fetch_body() -> bytes:
    """What a git that fetches has sent, unpacked. Raises Refused."""
    body: bytes = bottle.request.body.read()
    coding = header("Content-Encoding").lower()
    if coding not in ("", "identity", "gzip", "x-gzip"):
        raise Refused(400, f"the body is packed by {shorten(coding)}, but must be plain or gzip")
    if coding in ("", "identity"):
        return body
    unpacker = zlib.decompressobj(wbits=31)
    try:
        body = unpacker.decompress(body, FETCH_BYTES)
    except zlib.error:
        raise Refused(400, "the body says that it is gzip, but is not") from None
    if unpacker.unconsumed_tail:
        raise Refused(413, f"the body unpacks to more than {spell_bytes(FETCH_BYTES)}")
    return body


def is_fetch() -> bool:
    """Whether the request is one that git makes."""
    return FETCH_PATH.fullmatch(bottle.request.path) is not None


def json_body(program: Mapping[str, Any]) -> bytes:
    return f"{json_text(program)}\n".encode()


def json_response(program: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> bottle.HTTPResponse:
    return tagged(json_body(program), "application/json", status, headers)


def page_response(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> bottle.HTTPResponse:
    return tagged(body, "text/html; charset=utf-8", status, {**(headers or {}), "Cache-Control": "no-store"})


def text_response(status: int, body: str | bytes, headers: Mapping[str, str] | None = None) -> bottle.HTTPResponse:
    headers = {**(headers or {}), "Content-Type": "text/plain; charset=utf-8"}
    return bottle.HTTPResponse(body, status, headers)


def is_known(tag: str) -> bool:
    """Whether who asks has what carries this tag."""
    given = [part.strip().removeprefix("W/") for part in header("If-None-Match").split(",")]
    return bottle.request.method == "GET" and (tag in given or given == ["*"])


def tagged(body: bytes, kind: str, status: int = 200, headers: Mapping[str, str] | None = None) -> bottle.HTTPResponse:
    """An answer tagged by its content; who has it already is told only that."""
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    if status == 200 and is_known(tag):
        body, status = b"", 304
    own = {"Cache-Control": "no-cache", "Vary": "Accept", **(headers or {}), "Content-Type": kind, "ETag": tag}
    return bottle.HTTPResponse(body, status, own)


def file_response(folder: Path, name: str, headers: Mapping[str, str], kind: str | bool = True) -> bottle.HTTPResponse:
    """A file, or a range of it, tagged by its size and time; `kind` True goes by its name."""
    tag, size, environ = "", 0, bottle.request.environ
    with contextlib.suppress(OSError):
        facts = (folder / name.strip("/")).stat()
        tag, size = f'"{facts.st_size:x}-{facts.st_mtime_ns:x}"', facts.st_size
    if header("If-None-Match"):
        environ.pop("HTTP_IF_MODIFIED_SINCE", None)  # it has whole seconds only
    ranges = parse_ranges(environ.pop("HTTP_RANGE", ""), size)
    if header("If-Range") not in ("", tag):
        ranges = None  # the part would be of another file
    if ranges and len(ranges) == 1:
        environ["HTTP_RANGE"] = "bytes={}-{}".format(*ranges[0])
    answer = bottle.static_file(name, root=str(folder), mimetype=kind, etag=tag or False)
    if answer.status_code in (200, 206) and is_known(tag):
        answer.close()
        answer = bottle.HTTPResponse(b"", 304, {"ETag": tag})
    if answer.status_code == 200 and ranges == []:
        answer.close()
        raise Refused(416, f"the file has {size} bytes, and no such range", headers={"Content-Range": f"bytes */{size}"})
    if answer.status_code == 206 and "wsgi.file_wrapper" in environ:  # else who reads slowly would hold a worker
        answer.close()
        stream = open(folder / name.strip("/"), "rb")  # noqa: SIM115 (the server closes it)
        stream.seek(int(str(answer.get_header("Content-Range")).split()[1].partition("-")[0]))
        answer.body = stream
    answer.headers.update(headers)
    return answer


BYTE_RANGE = re.compile(r"([0-9]+)-([0-9]*)|-([0-9]+)")


def parse_ranges(given: str, size: int) -> list[tuple[int, int]] | None:
    """The ranges (first and last byte) of a header Range that a file has (pure); None where RFC 9110 14.2 has it passed over.

    That is another unit, what is malformed, and a range of an empty file, which has none to give.
    """
    unit, _, text = given.partition("=")
    parts = [part for part in map(str.strip, text.split(",")) if part]
    if unit.lower() != "bytes" or not parts or not size:
        return None
    found = []
    for part in parts:
        words = BYTE_RANGE.fullmatch(part)
        if not words:
            return None
        # of a number only as many digits as any size has: Python refuses to read very long ones
        first, last, suffix = (int(word.lstrip("0")[:20] or 0) if word else None for word in words.groups())
        if first is None:
            first, last = size - min(suffix or 0, size), size - 1
        elif last is not None and last < first:
            return None
        if first < size:
            found.append((first, size - 1 if last is None else min(last, size - 1)))
    return found


def header(name: str) -> str:
    """A header of the request, or "". Bytes that are no UTF-8 become question marks."""
    return utf8(bottle.request.environ.get(f"HTTP_{name.upper().replace('-', '_')}", ""))


def session_cookie() -> str:
    """The session that the request names, or "". Python's own reader of cookies takes seconds for a header of backslashes."""
    found = re.search(rf"(?:^|; ?){COOKIE}=([!-:<-~]*)", header("Cookie"))
    return found[1] if found else ""


def bearer() -> str | None:
    """What the request authenticates with in its header, or None."""
    scheme, _, given = header("Authorization").partition(" ")
    if scheme.lower() == "basic" and is_fetch():  # git knows no other way
        return (bottle.parse_auth(header("Authorization")) or ("", ""))[1]
    return given.strip() if scheme.lower() == "bearer" else None


def utf8(text: str) -> str:
    """What WSGI hands over as latin-1, as the UTF-8 it is."""
    return text.encode("latin-1", "replace").decode("utf-8", "replace")


def wanted_changes() -> tuple[bool, str | None]:
    """How the query wants changes to be shown: whether side by side, and of which file alone."""
    query = bottle.request.query
    path = query.get("file")
    return query.get("view") == "split", None if path is None else path.encode("latin-1").decode("utf-8", "surrogateescape")


def query_number(name: str) -> int | None:
    """A whole number in the query, or None. Raises Refused."""
    text = bottle.request.query.get(name)
    if text is None or text == "":
        return None
    if not re.fullmatch("[0-9]{1,18}", text):
        raise Refused(400, f"{name} is {shorten(text)}, but must be a whole number")
    return int(text)


def page_size() -> int:
    """How many rows the query wants; fewer on a page, which is to stay below 1 MB. Raises Refused."""
    return min(query_number("limit") or 100, 1000 if wanted_type() == "json" else 200)


def query_seconds(name: str) -> float:
    """A duration in the query, from 0 to 1 second. Raises Refused."""
    text = bottle.request.query.get(name) or "0"
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text):
        raise Refused(400, f"{name} is {shorten(text)}, but must be a number of seconds")
    return min(1.0, float(text))


# What a header may look like: in HTTP/1, with no line that goes on in the next and no control character. waitress judges the same
# with expressions that need time by the square of the length, and is less strict about what says where a request ends.
REQUEST_LINE = re.compile(rb"[!-~]+ [!-~\x80-\xff]+ HTTP/1\.[01]\r\n")
ODD_HEADER = re.compile(rb"[\0-\x08\x0b\x0c\x0e-\x1f\x7f]|\n[ \t]")
FRAMING = re.compile(rb"^(host|content-length|transfer-encoding)[ \t]*:[ \t]*([^\r\n]*)", re.I | re.M)


def why_odd(head: bytes) -> str | None:
    """Why a request's header (its first line included) is refused, or None."""
    if not REQUEST_LINE.match(head):
        return "the request line is no HTTP/1"
    if ODD_HEADER.search(head):
        return "a header has a control character, or goes on in the next line"
    names = [(name.lower(), value.strip().lower()) for name, value in FRAMING.findall(head)]
    hosts, lengths = ([one for one in names if (one[0] == b"host") == wanted] for wanted in (True, False))
    if len(hosts) > 1:
        return "the request names two hosts"
    if len(lengths) > 1:
        return "the request has two lengths"
    if lengths and lengths[0][0] == b"transfer-encoding" and (lengths[0][1] != b"chunked" or b" HTTP/1.0\r\n" in head):
        return "the only Transfer-Encoding that is understood is chunked, in HTTP/1.1"
    return None


def strict_channel() -> type:
    """waitress's connection, but what is odd or too large is refused at once, in the app's words, and who is too slow is left."""
    from waitress import buffers, channel, parser, task, utilities

    class Parser(parser.HTTPRequestParser):  # type: ignore[misc]
        """A request that comes in."""

        error: Any = None
        method = b"GET"  # or HEAD, by which even a refusal has no body

        def __init__(self, adj: Any):
            super().__init__(adj)
            self.until = time.monotonic() + REQUEST_SECONDS

        def received(self, data: bytes) -> int:
            """Take some bytes; how many of them belong to this request."""
            count: int = super().received(data)
            if self.content_length > MAX_BODY and not self.error:
                self.error, self.completed = utilities.RequestEntityTooLarge(""), True
            if self.error or self.completed:
                self.expect_continue = False  # else waitress asks for a body that is refused, or that there is none of
            return count

        def parse_header(self, head: bytes) -> None:
            """Understand the header. Raises ParsingError."""
            if head.startswith(b"HEAD "):
                self.method = b"HEAD"
            odd = why_odd(head)
            try:
                if not odd:
                    super().parse_header(head)
                    odd = "the address names another host" if self.proxy_netloc not in ("", self.headers.get("HOST")) else None
            except ValueError:
                odd = "the address cannot be read"
            if odd:
                raise parser.ParsingError(odd)

    class Task(task.WSGITask):  # type: ignore[misc]
        """An answer."""

        def finish(self) -> None:
            """End the answer. waitress ends one of unknown length by a last chunk, also where HEAD has no body to end."""
            self.write(b"")
            if self.request.command == "HEAD":
                self.chunked_response = False
            super().finish()

    class Refusal(Task):
        """What waitress refuses goes to the app as a request for nothing, and is said there as all errors are."""

        request: Any

        def get_environment(self) -> dict[str, Any]:
            """A request that has been refused."""
            self.channel.refused = True
            self.set_close_on_finish()
            error, given, method = self.request.error, self.request.headers, self.request.method
            words = {413: "the body is larger than 1 MiB", 431: "the header is larger than 64 KiB"}
            self.request = Parser(self.channel.adj)
            self.request.parse_header(method + b" / HTTP/1.0\r\n")
            self.request.headers["ACCEPT"] = given.get("ACCEPT", "")
            refused = (error.code, words.get(error.code, f"{error.reason}: {error.body}"))
            return {**super().get_environment(), "forge.odd_request": refused}

    class Channel(channel.HTTPChannel):  # type: ignore[misc]
        """A connection."""

        parser_class, task_class, error_task_class = Parser, Task, Refusal
        request: Any = None
        close_when_flushed = refused = False
        leaves = 0.0  # until when what comes is thrown away: closed with bytes unread, a refusal could be lost on its way

        def received(self, data: bytes) -> bool:
            """Take some bytes, if the request is not too slow and has not been refused already."""
            if self.leaves:
                self.will_close = self.leaves < time.monotonic()
                return False
            taken: bool = super().received(data)
            if self.request is not None and self.request.until < time.monotonic():
                self.will_close = True
            return taken

        def readable(self) -> bool:
            """Whether bytes are wanted."""
            return bool(self.leaves) or super().readable()

        def write_soon(self, data: Any) -> int:
            """Take a part of an answer. One connection may have a megabyte of it in memory, but not each of them at once."""
            if isinstance(data, bytes) and len(data) > SPILLED_BYTES:
                others = [*self.server.active_channels.values()]
                kept = sum(one.current_outbuf_count for one in others if one.outbufs and not one.outbufs[-1].overflowed)
                if kept > ANSWERS_BYTES:
                    self.outbufs[-1].overflow = SPILLED_BYTES
            try:
                taken: int = super().write_soon(data)
            except OSError:  # there is no room for a file
                raise channel.ClientDisconnected from None
            return taken

        def _flush_outbufs_below_high_watermark(self) -> None:
            """Wait until a part of a long answer has place, but not for who hardly reads."""
            until = time.monotonic() + FOLLOW_SECONDS
            with self.outbuf_lock:
                while self.connected and self.total_outbufs_len > self.adj.outbuf_high_watermark:
                    if time.monotonic() >= until:
                        self.will_close = True
                    self.server.pull_trigger()
                    if self.will_close:
                        raise channel.ClientDisconnected
                    self.outbuf_lock.wait(1)

        def _flush_some(self, do_close: bool = True) -> bool:
            """Send what can be sent. waitress keeps what it has sent in memory as long as the connection lasts."""
            sent: bool = super()._flush_some(do_close=do_close)
            if not self.total_outbufs_len and self.outbufs:
                self.outbufs[-1].close()
                self.outbufs[-1] = buffers.OverflowableBuffer(self.adj.outbuf_overflow)
                self.current_outbuf_count = 0
            return sent

        def handle_write(self) -> None:
            """Send what is to be sent; after a refusal read the rest of the request before the connection is closed."""
            lingers = self.refused and self.close_when_flushed
            if lingers:
                self.close_when_flushed = False
            super().handle_write()
            if lingers and self.total_outbufs_len:
                self.close_when_flushed = True
            elif lingers and self.connected:
                self.leaves = time.monotonic() + LINGER_SECONDS
                self.last_activity = time.time() - REQUEST_SECONDS + LINGER_SECONDS  # who sends nothing more is left by then
                with contextlib.suppress(OSError):
                    self.socket.shutdown(socket.SHUT_WR)

    return Channel


def create_app(environ: Mapping[str, str] | None = None) -> Web:
    """The app with its engine running, for ``waitress-serve --call forge:create_app``. Raises WrongSetting, AlreadyServed."""
    config = load_config(os.environ if environ is None else environ)
    engine = Engine(config)
    write_address(engine)
    app = Web(engine)
    engine.start()
    return app


###############################################################################
# command line: one small function a verb, over HTTP; only the server writes the journal
###############################################################################


class Client:
    """Talks to the server of a data directory with its token."""

    def __init__(self, config: Config):
        self.config, self.url = config, ""
        self.patience = 0.0  # seconds that a server may be away
        self.missing: Callable[[], None] = lambda: None  # called while it is
        try:
            self.token = (config.data_dir / "token").read_text().strip()
        except FileNotFoundError:
            raise Fault(3, f"there is no forge in {config.data_dir} yet; start one with: forge serve") from None
        except OSError as error:
            raise Fault(1, f"{error.filename} cannot be read ({error.strerror}); run forge as the user of the server") from None

    def ask(
        self, path: str, body: bytes | None = None, accept: str = "application/json", timeout: float = 60
    ) -> tuple[Any, bytes]:
        """The headers and the body of an answer. Raises Fault: 3 when no server answers, 1 or 2 with its reason."""
        until = time.monotonic() + self.patience
        while True:
            try:  # a server that comes back may listen elsewhere
                self.url = (self.config.data_dir / "address").read_text().strip()
            except OSError:
                self.url = self.config.listen_url()
            try:
                return self._ask(path, body, accept, timeout)
            except Fault as fault:
                if fault.code != 3 or time.monotonic() >= until:
                    raise
            self.missing()
            time.sleep(0.2)

    def _ask(self, path: str, body: bytes | None, accept: str, timeout: float) -> tuple[Any, bytes]:
        """Ask once: (headers, body). Raises Fault."""
        from http.client import HTTPException
        from urllib.error import HTTPError
        from urllib.request import ProxyHandler, Request, build_opener

        headers = {"Authorization": f"Bearer {self.token}", "Accept": accept}
        try:
            with build_opener(ProxyHandler({})).open(Request(self.url + path, body, headers), timeout=timeout) as answer:
                return answer.headers, answer.read()
        except HTTPError as error:
            said = error.read()
            try:
                text = json.loads(said)["error"]
            except (ValueError, KeyError, TypeError):
                text = said.decode("utf-8", "replace").strip()[:200] or str(error)
            asked = re.sub("/(merge|rollback|hold)$", "", path) if body is not None else path
            hint = self._hint(asked, text) if error.code == 404 else ""
            raise Fault(2 if error.code in (400, 404) else 1, text + hint, said) from None
        except (OSError, HTTPException):
            raise Fault(3, f"no server answers at {self.url}; start it with: forge serve") from None

    def _hint(self, path: str, text: str) -> str:
        """What to do about a name that is not there, for the end of the sentence that says so."""
        repo, _, branch = unquote(path.removeprefix("/r/")).partition("/mr/")
        with contextlib.suppress(Fault):
            if text.startswith("there is no job"):
                return "; forge jobs lists them"
            if text.startswith("there is no repo"):
                return did_you_mean(repo, [known["repo"] for known in self.get("/")["repos"]])
            if " has no branch " in text:
                return did_you_mean(branch, [known["branch"] for known in self.get(f"/r/{repo}")["merge_requests"]])
        return ""

    def get(self, path: str, **query: Any) -> Any:
        """The JSON at `path`. Raises Fault."""
        given = {key: value for key, value in query.items() if value is not None}
        return json.loads(self.ask(path + (f"?{urlencode(given)}" if given else ""))[1])

    def post(self, path: str, **form: str) -> Any:
        """Do an action. Raises Fault."""
        return json.loads(self.ask(path, urlencode(form).encode())[1])


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """The names that are like one that is not there, for the end of a sentence; else `otherwise`, or the first of all."""
    from difflib import get_close_matches

    near = get_close_matches(name, known := list(known), 3)
    few = f"{', '.join(known[:5])}{', …' if len(known) > 5 else ''}"
    return f"; did you mean {' or '.join(near)}?" if near else f"; {otherwise or 'there is ' + (few or 'none yet')}"


def check_repo(name: str) -> str:
    """A repo's name from the command line. Raises Fault."""
    if not is_repo_name(name):
        raise Fault(2, f"{name!r} is no name of a repo")
    return name


def mr_path(repo: str, branch: str) -> str:
    """The address of a branch from the command line. Raises Fault."""
    if not branch or has_odd_char(branch):
        raise Fault(2, f"{branch!r} is no name of a branch")
    return mr_url("", check_repo(repo), branch)


def printable(value: Any) -> Any:
    """JSON with nothing in its texts that a terminal would obey. Only a digest has lines."""
    if isinstance(value, dict):
        lines = {"digest": sentences(value["digest"].split("\n"))[:-1]} if isinstance(value.get("digest"), str) else {}
        return {key: printable(item) for key, item in value.items()} | lines
    if isinstance(value, list):
        return [printable(item) for item in value]
    return visible(value).replace("\t", " ") if isinstance(value, str) else value


def show(args: argparse.Namespace, program: Any, write: Callable[[Any], str]) -> None:
    """Print JSON when asked for, else what `write` makes of it, once it is printable."""
    text = json_text(program, 2) if getattr(args, "json", False) else write(printable(program))
    if text:
        print(text)


# As SGR parameters, by what stands in a cell.
STYLES = dict.fromkeys(("passed", "ok"), "32") | dict.fromkeys((*FAILED, "!!"), "31") | {"running": "36", "pending": "33"}


def paint(text: str, style: str = "") -> str:
    """A status in its colour, other text in `style`, where standard output wants colours."""
    environ, style = os.environ, STYLES.get(text, style)
    forced = environ.get("CLICOLOR_FORCE", "0") not in ("", "0")
    wanted = not environ.get("NO_COLOR") and (forced or (sys.stdout.isatty() and environ.get("TERM") != "dumb"))
    return f"\x1b[{style}m{text}\x1b[0m" if wanted and style else text


def table(rows: list[list[str]], cut: bool = True) -> str:
    """Rows as aligned columns, the first bold; on a terminal the widest are cut until all fit."""
    widths = [max(sum(char_widths(cell)) for cell in column) for column in zip(*rows, strict=True)]
    fits = not (cut and sys.stdout.isatty())
    room = sum(widths) if fits else shutil.get_terminal_size().columns - 2 * (len(widths) - 1)
    while sum(widths) > room and max(widths) > 8:
        widths[widths.index(max(widths))] -= 1

    def padded(cell: str, width: int, style: str) -> str:
        return paint(fit(cell, width), style) + " " * (width - sum(char_widths(fit(cell, width))))

    styles = ["1", *[""] * len(widths)]
    return "\n".join("  ".join(map(padded, row, widths, styles)).rstrip() for row in rows)


def job_line(job: Mapping[str, Any]) -> list[str]:
    took = spell_duration(job["duration"]) if job["duration"] is not None else ""
    about = [str(job["id"]), job["status"], job["kind"], f"{job['repo']}/{job['branch']}", job["commit"][:10]]
    return [*about, took, ago(job["created_at"])]


def job_block(job: Mapping[str, Any]) -> str:
    """A job as people read it, with its digest or else its reason at the end."""
    on_base = f" on {job['base'][:12]}" if job["base"] else ""
    figures = f"{job['cpu_percent'] or 0:.0f} % CPU, {spell_bytes(job['rss_bytes'])}" if job.get("rss_bytes") else ""
    rows = {
        "commit": f"{job['commit'][:12]}{on_base}",
        "command": job["command"],
        "begun": ago(job["started_at"]),
        "took" if job["finished_at"] else "runs for": spell_duration(job["duration"]),
        "uses": figures,
        "tests": ", ".join(head["branch"] for head in job["heads"]) if len(job["heads"]) > 1 else "",
        "retry of job": job["retry_of"],
        "verdict of job": job["reused_from"],
        "flake, see job": job.get("flake"),
        "log": f"{job['log_url']} ({spell_bytes(job['log_size'])})" if job["log_size"] is not None else "",
    }
    title = f"job {paint(str(job['id']), '1')} {paint(job['status'])}: {job['kind']} of {job['repo']}/{job['branch']}"
    why = job["digest"] or job["reason"]
    return "\n".join([title, *(f"  {name:16}{value}" for name, value in rows.items() if value), *(["", why] if why else [])])


def progress(job: Mapping[str, Any], usual: float | None) -> str:
    """How far a job is; `usual` are the seconds that such jobs take."""
    said, spent = f"job {job['id']} {job['status']}", job["duration"] or 0.0
    if job["status"] != "running":
        return said
    said += f", {int(spent) // 60}:{int(spent) % 60:02}"
    left = usual - spent if usual is not None else None
    if left is None or left < 0.5:
        return said if left is None else f"{said}, longer than usual"
    return f"{said}, about {left:.0f} s left" if left < 90 else f"{said}, about {left / 60:.0f} min left"


RESTART_SECONDS = 30.0  # that who waits gives a server to come back


class Watch:
    """What a command that waits for a job says on a terminal: one line of standard error, redrawn in place, gone in the end."""

    def __init__(self, client: Client):
        self.client, self.terminal = client, sys.stderr.isatty()
        self.midline = False  # standard output, the same terminal, is within a line
        self.job_id: int | None = None
        self.usual: dict[int, float | None] = {}  # by job: the median of the last durations of such jobs
        self.due = 0.0
        client.missing = lambda: self.draw("the server does not answer; waiting for it")

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.draw("")
        if kind is KeyboardInterrupt:
            goes_on = f"; job {self.job_id} goes on: forge log {self.job_id} -f" if self.job_id else ""
            print(f"{chr(10) if self.midline else ''}detached{goes_on}", file=sys.stderr)

    def tell(self, job_id: int | None, otherwise: str = "") -> None:
        """Draw how far a job is, or `otherwise` when there is none to wait for; once a second. The server has answered by now."""
        self.job_id, self.client.patience = job_id, RESTART_SECONDS
        if has_left():
            raise SystemExit(130)  # as after Ctrl-C: there was no verdict
        if not self.terminal or time.monotonic() < self.due:
            return
        self.due = time.monotonic() + 1
        if job_id is None:
            self.draw(otherwise)
            return
        job = self.client.get(f"/jobs/{job_id}")
        if job_id not in self.usual:
            passed = self.client.get("/jobs", repo=job["repo"], kind=job["kind"], status="passed", limit=20)["jobs"]
            took = sorted([one["duration"] for one in passed if one["duration"] and not one["reused_from"]][:5])
            self.usual[job_id] = took[len(took) // 2] if took else None
        self.draw(progress(job, self.usual[job_id]))

    def draw(self, text: str) -> None:
        if self.terminal and not self.midline:
            sys.stderr.write(f"\r{fit(printable(text), shutil.get_terminal_size().columns - 1)}\x1b[K")
            sys.stderr.flush()


def own_data_dir(config: Config) -> None:
    """Refuse to make files in a data directory that belongs to another user: the server could not use them."""
    owner = next(place.stat().st_uid for place in (config.data_dir, *config.data_dir.parents) if place.exists())
    if config.data_dir.exists() and owner != os.geteuid():
        raise Fault(1, f"{config.data_dir} belongs to another user (uid {owner}); run forge as that user")


def tell_server(config: Config, repo: str) -> None:
    """Let a running server look at a repo now; without one it looks when it starts."""
    with contextlib.suppress(Fault):
        Client(config).ask("/hooks/post-receive", json.dumps({"repo": repo, "updates": []}).encode(), timeout=5)


def has_left() -> bool:
    """Whether nobody reads our standard output any more: the end of an ssh connection is no signal to us."""
    poll = select.poll()
    poll.register(1, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def repos_here(config: Config) -> list[str]:
    """The repos of the data directory, by name, without a server."""
    return sorted(path.stem for path in config.repos.glob("*.git") if is_repo_name(path.stem) and path.is_dir())


def cmd_create(config: Config, args: argparse.Namespace) -> int:
    own_data_dir(config)
    try:
        path = create_repo(config, args.repo, args.base)
    except Refused as error:
        raise Fault(2 if error.status == 400 else 1, error.text) from None
    except OSError as error:
        raise Fault(1, f"cannot make {args.repo}: {error.strerror} ({error.filename})") from None
    tell_server(config, args.repo)
    print(path)
    return 0


def cmd_delete(config: Config, args: argparse.Namespace) -> int:
    """Move a repo to the trash, or remove it where the trash is on another disk. Raises Fault."""
    path = config.repo(args.repo)
    if not is_repo_name(args.repo) or not path.is_dir():
        raise Fault(2, f"there is no repo {args.repo!r}{did_you_mean(args.repo, repos_here(config))}")
    if not args.yes:
        raise Fault(2, f"this removes {path} with all its branches for good; say --yes")
    own_data_dir(config)
    (config.data_dir / "trash").mkdir(exist_ok=True)
    target = f"; what the link led to is left: {os.path.realpath(path)}" if path.is_symlink() else ""
    try:
        discard(path, config.data_dir / "trash")
    except OSError as error:
        if error.errno != errno.EXDEV:  # the repos lie on another disk
            raise Fault(1, f"{args.repo} cannot be removed: {error.strerror} ({path})") from None
        gone = config.repos / f".gone-{secrets.token_hex(4)}"
        path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
    tell_server(config, args.repo)
    print(f"{args.repo} is removed; the records and logs of its jobs are kept{target}")
    return 0


def repo_line(repo: Mapping[str, Any]) -> list[str]:
    """A repo as a row of a table."""
    job = repo["job"] or {"status": "", "created_at": None}
    base = f"{repo['base'] or 'no base'} {(repo['head'] or 'empty')[:10]}"
    return [repo["repo"], job["status"], base, f"{repo['open']} open", ago(job["created_at"])]


def cmd_repos(config: Config, args: argparse.Namespace) -> int:
    """List the repos with how each stands, and what is wrong with one below."""

    def text(found: Any) -> str:
        troubles = [f"{repo['repo']}: {repo['trouble']}" for repo in found["repos"] if repo["trouble"]]
        return "\n".join([table([repo_line(repo) for repo in found["repos"]]), *troubles])

    show(args, Client(config).get("/"), lambda found: text(found) or "no repo yet; make one with: forge create NAME")
    return 0


def cmd_jobs(config: Config, args: argparse.Namespace) -> int:
    """List the newest jobs that fit."""
    client = Client(config)
    wanted = {name: getattr(args, name) for name in ("branch", "status", "kind", "limit")}
    found = client.get("/jobs", repo=args.repo and check_repo(args.repo), **wanted)
    if args.repo and not found["jobs"]:
        client.get(f"/r/{args.repo}")  # says so when there is no such repo
    show(args, found, lambda found: table([job_line(job) for job in found["jobs"]]) or "there is no such job yet")
    return 0


def cmd_job(config: Config, args: argparse.Namespace) -> int:
    show(args, Client(config).get(f"/jobs/{args.id}"), job_block)
    return 0


def cmd_log(config: Config, args: argparse.Namespace) -> int:
    """Copy a log to standard output byte for byte, and go on until the job ends when asked to follow."""
    client, offset, out = Client(config), 0, sys.stdout.buffer
    with Watch(client) if args.follow else contextlib.nullcontext() as watch:
        while True:
            headers, chunk = client.ask(f"/jobs/{args.id}/log?offset={offset}&wait={int(args.follow)}", accept="text/plain")
            live = headers["X-Job-Status"] in LIVE
            if watch:
                watch.job_id = args.id if live else None
            if watch and chunk:
                watch.draw("")
                watch.midline = sys.stdout.isatty() and not chunk.endswith(b"\n")
            out.write(chunk)
            out.flush()
            offset += len(chunk)
            if not chunk and not (live and watch):
                return 0
            if watch:
                watch.tell(args.id if live else None)
            if not chunk:
                time.sleep(0.2)


def find_mr(client: Client, repo: str, branch: str) -> dict[str, Any]:
    """The JSON of an open branch, or {"merge": …} of one that was merged. Raises Fault."""
    try:
        view: dict[str, Any] = client.get(mr_path(repo, branch))
    except Fault as fault:
        with contextlib.suppress(ValueError, AttributeError):
            said = json.loads(fault.answer)
            if said.get("merge"):
                return {"merge": said["merge"], "why": said["error"]}
        raise
    return view


def cmd_status(config: Config, args: argparse.Namespace) -> int:
    """Show how a branch stands, with its checks."""
    client = Client(config)

    def text(view: Any) -> str:
        job = view.get("job")
        stands = "" if "merge" in view else f"{paint(job['status']) if job else 'no job'}: "
        checks = printable(client.get("/jobs", repo=args.repo, branch=args.branch, limit=5))["jobs"]
        return "\n".join([f"{stands}{view['why']}", *([job["url"]] if job else []), table([job_line(check) for check in checks])])

    show(args, find_mr(client, args.repo, args.branch), text)
    return 0


def cmd_why(config: Config, args: argparse.Namespace) -> int:
    view = find_mr(Client(config), args.repo, args.branch)
    show(args, {"blockers": view.get("blockers", []), "why": view["why"]}, lambda said: str(said["why"]))
    return 0


def cmd_wait(config: Config, args: argparse.Namespace) -> int:
    """Wait for the verdict and, with auto-merge, the merge. Raises Fault(1) with what keeps it."""
    client = Client(config)
    with Watch(client) as watch:
        while True:
            view = find_mr(client, args.repo, args.branch)
            if "merge" in view or view["settled"]:
                break
            job = view["job"]
            watch.tell(job["id"] if job and job["status"] in LIVE else None, view["why"])
            time.sleep(0.2)
    passed = view.get("job") and view["job"]["status"] == "passed" and not view["auto_merge"]
    good = "merge" in view or passed or view["ahead"] == 0
    show(args, view, lambda view: view["why"] if good else "")
    if not good:
        raise Fault(1, view["why"])
    return 0


def cmd_merge(config: Config, args: argparse.Namespace) -> int:
    def text(result: Any) -> str:
        if result.get("status") != "queued":
            return f"merged as {result['merge_commit']}"
        job = result["job"]
        tests = f"job {job['id']} tests it" if job["status"] in LIVE else "it is tested with what else is ready"
        return f"queued: {tests}, then it merges; forge wait {args.repo} {args.branch}"

    show(args, Client(config).post(f"{mr_path(args.repo, args.branch)}/merge"), text)
    return 0


def cmd_rollback(config: Config, args: argparse.Namespace) -> int:
    """Give base an earlier tree again, now or when it has passed."""

    def text(result: Any) -> str:
        if result.get("status") != "queued":
            done = f"rolled back to {result['head']} by {result['merge_commit']}"
            return f"{done}; forge hold {args.repo} lists what is on hold"
        job = result["job"]
        return (
            f"queued: job {job['id']} tests the tree of {job['commit'][:12]}, then base goes back to it; forge log -f {job['id']}"
        )

    form = {"commit": args.commit, **({"untested": "1"} if args.untested else {})}
    show(args, Client(config).post(f"/r/{check_repo(args.repo)}/rollback", **form), text)
    return 0


def hold_line(hold: Mapping[str, Any]) -> list[str]:
    """A row of a table of holds."""
    inputs = ", ".join(f"{pair['input']} at {pair['commit'][:12]}" for pair in hold["inputs"]) or "-"
    return [hold["commit"][:12], hold["tree"][:12], inputs, ago(hold["since"]), hold["reason"]]


def cmd_hold(config: Config, args: argparse.Namespace) -> int:
    """List what is on hold, place a hold, or lift one."""
    client, page = Client(config), f"/r/{check_repo(args.repo)}"
    if args.commit is None:
        if args.lift:
            raise Fault(2, f"--lift needs the commit: forge hold {args.repo} COMMIT --lift")
        head = ["COMMIT", "TREE", "INPUTS", "SINCE", "REASON"]
        found = {"holds": client.get(page)["holds"]}
        show(args, found, lambda said: table([head, *map(hold_line, said["holds"])]) if said["holds"] else "nothing is on hold")
        return 0
    form = {"commit": args.commit, **({"lift": "1"} if args.lift else {})}
    done = client.post(f"{page}/hold", **form)
    show(args, done, lambda said: f"{said['hold']['commit'][:12]} is {'not on hold any more' if args.lift else 'on hold'}")
    return 0


def cmd_cancel(config: Config, args: argparse.Namespace) -> int:
    job = Client(config).post(f"/jobs/{args.id}/cancel")
    stands = "being stopped" if job["status"] in LIVE else job["status"]
    show(args, job, lambda job: f"job {args.id} is {stands}")
    return 0


def cmd_retry(config: Config, args: argparse.Namespace) -> int:
    show(args, Client(config).post(f"/jobs/{args.id}/retry"), lambda job: f"job {job['id']} {job['url']}")
    return 0


def cmd_check_names(config: Config, args: argparse.Namespace) -> int:
    """What hooks/pre-receive asks for names that are not ASCII: its verdicts on standard input, completed on standard output."""
    for line in sys.stdin.buffer.read().decode("utf-8", "surrogateescape").split("\n")[:-1]:
        verdict, ref, rest = line.split(" ", 2)
        reason = why_name_refused(ref) if verdict == "??" else None
        if reason:
            print(f"forge: {ref!a} is refused: {reason}", file=sys.stderr)
        judged = line if verdict != "??" else f"ng {ref} {reason}" if reason else f"ok {ref} {rest}"
        sys.stdout.buffer.write(judged.encode("utf-8", "surrogateescape") + b"\n")
    return 0


@dataclass
class Line:
    """A base as git has it: its first-parent history, newest first, and what the journal gave reason to look up."""

    base: str | None = None
    tip: str | None = None
    landed: dict[str, Landed] = field(default_factory=dict)
    beside: dict[str, Landed] = field(default_factory=dict)  # all of base, when a merge is missing on its first-parent line
    copied: set[str] = field(default_factory=set)  # what was there when the repo was found
    forced: list[dict[str, Any]] = field(default_factory=list)
    trouble: str | None = None  # why git cannot read it


@dataclass
class Told:
    """What the journal says of a repo since it was last found."""

    tip: str | None = None  # of base, when the repo was found
    base: str | None = None
    merges: list[dict[str, Any]] = field(default_factory=list)
    moves: list[dict[str, Any]] = field(default_factory=list)

    def take(self, record: Mapping[str, Any]) -> None:
        """Take one record of the repo. Raises KeyError, TypeError, ValueError when it makes no sense."""
        if record["event"] == "base.moved":
            if self.base in (None, record["branch"]):  # that HEAD names another branch now is no push
                self.moves.append({name: record[name] for name in ("old", "new", "at")})
            self.base = record["branch"]
        elif record["event"] == "merged":
            merge: dict[str, Any] = {name: str(record[name]) for name in ("branch", "head", "merge_commit", "parent", "tree")}
            merge |= {name: record.get(name) for name in ("how", "untested")}
            self.merges.append(merge | {"job": int(record["job"]), "base": record.get("base", self.base)})


Verdicts = dict[int, list[dict[str, Any]]]  # of the pre-merge jobs of a repo, by id


class Reading(NamedTuple):
    """What the journal says of each repo, the verdicts in it, which records make no sense, and which are of a newer version."""

    told: dict[str, Told]
    verdicts: dict[str, Verdicts]
    odd: list[str]
    newer: list[str]


def read_told(directory: Path) -> Reading:
    """Read the journal for what can be proved by it.

    A server may be writing: a line without its end is not there yet, and merges are read before the verdicts they rest on.
    """
    told: dict[str, Told] = {}
    verdicts: dict[str, Verdicts] = {}
    wanted = ("status", "heads", "tested", "tree", "chain", "exit_code", "reused_from")
    records: list[tuple[int, dict[str, Any]]] = []
    odd, unknown = [], Counter[str]()
    record: dict[str, Any]
    for name in ("merges", "jobs"):
        with contextlib.suppress(FileNotFoundError), open(directory / f"{name}.jsonl", "rb") as stream:
            for number, line in enumerate(stream, 1):
                try:
                    if not line.endswith(b"\n"):
                        continue
                    record = json.loads(line)
                    seq, of_job = int(record["seq"]), record["event"].startswith("job.")
                    if record["event"] not in FOLDS:
                        unknown[record["event"]] += 1
                    elif not of_job:
                        records.append((seq, record))
                    elif record["event"] == "job.finished" and record["kind"] == PRE:
                        slim = {key: record.get(key) for key in wanted}
                        verdicts.setdefault(record["repo"], {}).setdefault(record["id"], []).append(slim)
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                    odd.append(f"{name}.jsonl, line {number} is no record")
    for seq, record in sorted(records, key=lambda item: item[0]):
        try:
            if record["event"] == "repo.found":
                told[record["repo"]] = Told(record["tip"], record["base"])
            elif record["event"] == "repo.gone":
                told.pop(record["repo"], None)
            else:
                told.setdefault(record["repo"], Told()).take(record)
        except (KeyError, TypeError, ValueError) as error:
            odd.append(f"record {seq} ({record['event']} of {record.get('repo')}) cannot be understood: {error!r}")
    newer = [f"{plural(number, 'record')} ({event}) not understood: {NEWER}" for event, number in unknown.items()]
    return Reading(told, verdicts, odd, newer)


def read_line(repo: Path) -> Line:
    """A repo's base as git has it. Raises GitError, OSError."""
    base = git(repo, "symbolic-ref", "-q", "HEAD", ok=(0, 1)).strip().removeprefix("refs/heads/") or None
    tip = git(repo, "rev-parse", "-q", "--verify", f"refs/heads/{base}", ok=(0, 1)).strip() if base else None
    return Line(base, tip, read_landed(repo, tip, "--first-parent") if tip else {})


def look_beside(repo: Path, line: Line, told: Told) -> None:
    """Look up what the journal gives reason to; it was read after `line`, so merges may be there by now. Raises GitError."""
    if line.tip and told.tip:
        pushed = git(repo, "rev-list", "--first-parent", "--ignore-missing", line.tip, f"^{told.tip}").split()
        line.copied = set(line.landed).difference(pushed)
    if any(merge["merge_commit"] not in line.landed for merge in told.merges):
        tip = read_line(repo).tip
        line.beside = read_landed(repo, tip) if tip else {}
    place = {commit: number for number, commit in enumerate(line.landed)}
    ours = {(merge["parent"], merge["merge_commit"]) for merge in told.merges}
    unclear = []
    for move in told.moves:
        old, new = move["old"], move["new"]
        if old and (old, new) not in ours and not (old in place and new in place and place[old] >= place[new]):
            unclear.append(move)
    asked = "".join(f"{move['new']}\n" for move in unclear)
    gone = [said.endswith(" missing") for said in git(repo, "cat-file", "--batch-check", text=asked).split("\n")]
    for move, is_gone in zip(unclear, gone, strict=False):
        # where base went to something that is gone by now, the move away from that is the one to name
        if move["new"] is None or not (is_gone or is_ancestor(repo, move["old"], move["new"])):
            line.forced.append(move)


def prove(name: str, line: Line, told: Told | None, verdicts: Verdicts) -> dict[str, Any]:
    """Compare what git has of a repo's base with what the journal says (pure)."""
    told, copied = told or Told(), line.copied if told else set(line.landed)  # else no server has looked at it yet
    commits = {**line.beside, **line.landed}
    records: dict[str, list[dict[str, Any]]] = {}
    for merge in told.merges:
        records.setdefault(merge["merge_commit"], []).append(merge)
    broken: list[tuple[str | None, str]] = [(None, line.trouble)] if line.trouble else []
    direct, rollbacks, proved, seen = [], [], 0, Counter[tuple[Any, ...]]()
    for commit in commits.values():
        recorded, is_pushed = records.get(commit.commit, []), commit.commit in line.landed and commit.commit not in copied
        if recorded or (is_pushed and commit.claims):
            try:
                flaws = why_unproved(commit, recorded, commits, verdicts)
            except (KeyError, TypeError, ValueError, IndexError) as error:
                flaws = [f"the records of this merge cannot be understood: {error!r}"]
            broken += [(commit.commit, flaw) for flaw in flaws]
            proved += not flaws
            for merge in recorded[:1]:
                if merge.get("how") == "rollback":
                    rollbacks.append({"commit": commit.commit, "to": merge["head"], "untested": bool(merge["untested"])})
                else:
                    seen[merge["branch"], merge["head"], merge["job"]] += 1
        elif is_pushed:
            direct.append({"commit": commit.commit, "subject": commit.subject, "authored_at": commit.authored_at})
    broken += [(head, f"{branch} was merged {n} times for job {job}") for (branch, head, job), n in seen.items() if n > 1]
    for merge in told.merges if not line.trouble else ():
        if merge["merge_commit"] not in commits and merge["base"] in (None, line.base):
            broken.append((merge["merge_commit"], f"base was wound back behind this merge of {merge['branch']}"))
    counts = {"repo": name, "base": line.base, "ok": not broken, "merges": proved, "copied": len(copied)}
    told_of = [{"commit": commit, "text": text} for commit, text in broken]
    return {**counts, "direct": direct, "rollbacks": rollbacks, "forced": line.forced, "broken": told_of}


def why_unproved(commit: Landed, recorded: list[dict[str, Any]], commits: Mapping[str, Landed], verdicts: Verdicts) -> list[str]:
    """What is wrong with a merge: its record against the commit, and both against the job that tested it (pure)."""
    if len(recorded) != 1:
        made = f"rollback to {commit.rollback_to[:12]}" if commit.is_rollback else f"merge of {commit.branch}"
        return [f"this {made} has {len(recorded) or 'no'} records in merges.jsonl, but must have one"]
    (merge,), parents = recorded, commit.parents.split()
    if merge.get("how") == "rollback":
        return why_rollback_unproved(commit, merge, commits, verdicts)
    in_git = [*parents, commit.tree, commit.branch, commit.head, commit.job]
    said = [merge[key] for key in ("parent", "head", "tree", "branch", "head", "job")]
    number, jobs = merge["job"], verdicts.get(merge["job"], [])
    flaws = [] if in_git == list(map(str, said)) else [f"the record of this merge of {merge['branch']} does not fit the commit"]
    if [job["status"] for job in jobs] != ["passed"]:
        verdict = " and ".join(job["status"] for job in jobs) or "has no verdict as a pre-merge job of this repo"
        return [*flaws, f"job {number}, which {merge['branch']} was merged for, {verdict}"]
    (job,) = jobs
    chain = job["chain"] or [[job["tested"], job["tree"]]]
    links = [commits.get(tested) for tested, _ in chain]
    in_order = all(a and b and b.parents.split()[0] == a.commit for a, b in zip(links, links[1:], strict=False))
    source = job["reused_from"] or number
    ran = [(old["status"], old["exit_code"], old["tree"], old["reused_from"]) for old in verdicts.get(source, [])]
    wrong = {
        f"did not test this head of {merge['branch']}": {"branch": merge["branch"], "commit": merge["head"]} not in job["heads"],
        f"tested {job['tested']}, not this commit": [commit.commit, commit.tree] not in chain,
        "ends in another commit than it tested": chain[-1] != [job["tested"], job["tree"]],
        "has another tree than git": [link and link.tree for link in links] != [tree for _, tree in chain],
        "tested several merges that did not land together and in order": not in_order,
        f"rests on job {source}, which did not run and pass with the same tree": ran != [("passed", 0, job["tree"], None)],
    }
    return flaws + [f"job {number} {text}" for text, is_so in wrong.items() if is_so]


def why_rollback_unproved(
    commit: Landed, merge: Mapping[str, Any], commits: Mapping[str, Landed], verdicts: Verdicts
) -> list[str]:
    """What is wrong with a rollback: its record against the commit, its tree, and the job that passed on that (pure)."""
    target, jobs = commits.get(commit.rollback_to), verdicts.get(merge["job"], [])
    in_git = [commit.parents, commit.tree, commit.rollback_to, commit.job or "0"]
    sources = [job["reused_from"] or merge["job"] for job in jobs if job["status"] == "passed"]
    ran = [(old["status"], old["exit_code"], old["tree"]) for source in sources for old in verdicts.get(source, [])]
    wrong = {
        "the record of this rollback does not fit the commit": in_git
        != [merge["parent"], merge["tree"], merge["head"], str(merge["job"])],
        f"it says to go back to {commit.rollback_to}, which has another tree or is not in base": target is None
        or target.tree != commit.tree,
        f"job {merge['job']}, on which this rollback rests, did not run and pass with its tree": not merge["untested"]
        and ran != [("passed", 0, commit.tree)],
    }
    return [text for text, is_so in wrong.items() if is_so]


def audit_repos(config: Config, names: list[str]) -> dict[str, Any]:
    """Prove the merges of these repos from journal and git, writing nothing. Raises OSError when the journal cannot be read."""
    lines: dict[str, Line] = {}
    for name in names:
        try:
            lines[name] = read_line(config.repo(name))
        except (GitError, OSError) as error:
            lines[name] = Line(trouble=f"git cannot read it: {error}")
    told, verdicts, odd, newer = read_told(config.data_dir)
    found = []
    for name, line in lines.items():
        try:
            if name in told and not line.trouble:
                look_beside(config.repo(name), line, told[name])
        except (GitError, OSError) as error:
            line.trouble = f"git cannot read it: {error}"
        found.append(prove(name, line, told.get(name), verdicts.get(name, {})))
    well = not odd and all(repo["ok"] for repo in found)
    return {"ok": well, "repos": found, "journal": odd, "not_understood": newer}


def cmd_audit(config: Config, args: argparse.Namespace) -> int:
    """Say what was proved, and name what came another way; 1 when a promise was broken."""
    there = repos_here(config)
    if args.repo is not None and check_repo(args.repo) not in there:
        raise Fault(2, f"there is no repo {args.repo}{did_you_mean(args.repo, there)}")
    for patience in (0.2, 1.0, 0.0):  # a server may be between moving base and writing that down
        try:
            found = audit_repos(config, there if args.repo is None else [args.repo])
        except OSError as error:
            raise Fault(1, f"{error.filename} cannot be read ({error.strerror}); run forge as the user of the server") from None
        if found["ok"]:
            break
        time.sleep(patience)
    text = []
    for repo in printable(found["repos"]):
        counts = f"{repo['merges']} merges proved, {len(repo['direct'])} commits pushed directly, {repo['copied']} copied in"
        text.append(f"{repo['repo']} ({repo['base'] or 'no base'}): {'ok' if repo['ok'] else 'BROKEN'}; {counts}")
        text += [f"  broken  {(b['commit'] or '-')[:12]}  {b['text']}" for b in repo["broken"]]
        text += [f"  forced  {m['old'][:12]} to {(m['new'] or 'nothing')[:12]}  {m['at']}" for m in repo["forced"]]
        back = [(r["commit"][:12], r["to"][:12], " untested, as was asked" if r["untested"] else "") for r in repo["rollbacks"]]
        text += [f"  rolled  {commit} back to {to}{how}" for commit, to, how in back]
        text += [
            f"  direct  {c['commit'][:12]}  {(c['authored_at'] or 'no date')[:10]:10}  {c['subject']}"
            for c in repo["direct"][:50]
        ]
        text += [f"  direct  and {len(repo['direct']) - 50} older ones; --json names them"] if len(repo["direct"]) > 50 else []
    text += [f"journal: {line}" for line in printable(found["journal"] + found["not_understood"])]
    show(args, found, lambda _: "\n".join(text) or "no repo yet")
    return 0 if found["ok"] else 1


def cmd_prune(config: Config, args: argparse.Namespace) -> int:
    """Free room through the server; without one do it here, with the data directory to ourselves."""
    days, client = args.days or config.log_days, Client(config)
    form = {"dry_run": "1" if args.dry_run else "", **({"days": str(days)} if days else {})}
    try:
        done = json.loads(client.ask("/prune", urlencode(form).encode(), timeout=86400)[1])
    except Fault as fault:
        if fault.code != 3:
            raise
        done = prune_alone(config, days, args.dry_run)

    def text(found: Any) -> str:
        kept = [] if days or found["removed"]["logs"]["count"] else ["logs are kept; --days N or FORGE_LOG_DAYS removes old ones"]
        return "\n".join([spell_pruned(found), *kept, *found["left"]])

    show(args, done, text)
    return 0


def prune_alone(config: Config, days: int, dry: bool) -> dict[str, Any]:
    """Prune a data directory that no server has. Raises Fault."""
    own_data_dir(config)
    try:
        engine = Engine(replace(config, sandbox="none"))  # it starts no job
    except AlreadyServed as error:
        raise Fault(1, str(error)) from None
    try:
        done = prune(engine, days, dry)
        if not dry:
            empty_trash(engine.trash)
    except Refused as error:
        raise Fault(1, error.text) from None
    finally:
        engine.stop()
    return done.view(dry)


Check = tuple[str, bool, str]  # what, whether it is well, what was found or what to do


def first_line(*command: str) -> str | None:
    """The first line that a program prints, or None when it does not work."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip().split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        return None


def examine(config: Config) -> Iterator[Check]:
    """Check this machine and data directory."""
    git_version, curl, nix = (first_line(name, "--version") for name in ("git", "curl", "nix"))
    new_enough = tuple(map(int, re.findall(r"\d+", git_version or "")[:2])) >= (2, 39)
    yield "git", new_enough, git_version or "not found; install git 2.39 or newer"
    yield "curl", curl is not None, (curl or "not found; the hooks need it to tell the server of pushes").split(" (")[0]
    yield "nix", nix is not None, nix or "not found; jobs of flakes cannot run, justfiles and .forge/ scripts can"
    pidfd, children = hasattr(os, "pidfd_open"), Path(f"/proc/self/task/{os.getpid()}/children").exists()
    yield "pidfd", pidfd, "the kernel tells when a job ends" if pidfd else "needs Linux 5.3 or newer"
    yield "subreaper", children, "what jobs leave behind is found by /proc/<pid>/task/<tid>/children (CONFIG_PROC_CHILDREN)"
    try:
        config.data_dir.stat()
    except OSError as error:
        closed = f"cannot be seen by {user_of(os.geteuid())[0]}; run forge as its user"
        why = "is not there; forge serve makes it (FORGE_DATA_DIR)" if error.errno == errno.ENOENT else closed
        yield "data", False, f"{config.data_dir} {why}"
        return
    if config.sandbox == "none":
        yield "bwrap", True, f"not used, as FORGE_SANDBOX is none; {WITHOUT_SANDBOX}"
    else:
        reason = why_no_sandbox(config)
        yield "bwrap", reason is None, reason or f"{first_line('bwrap', '--version')}; jobs run under it"
    if nix is not None:
        yield examine_nix(os.environ)
    yield from examine_data_dir(config)
    try:
        Client(config).ask("/healthz")
        yield "server", True, "answers"
    except Fault as fault:
        yield "server", False, str(fault)


def examine_nix(environ: Mapping[str, str]) -> Check:
    """Check that Nix does not let the server's user, and so every job, do more than build."""
    import grp

    user, store = user_of(os.geteuid())[0], environ.get("NIX_STORE_DIR") or "/nix/store"
    if find_nix(environ)[1]:
        means = f"{store} is {user}'s to write (single-user Nix), so a job can change every program in it"
        return "nix trust", False, f"{means}; install Nix with its daemon, or count every job as {user}"
    said = ""
    for words in (("config", "show"), ("show-config",)):  # its newer name first
        command = ["nix", "--extra-experimental-features", "nix-command", *words]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            said = said or subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    trusted = next((line.partition("=")[2].split() for line in said.splitlines() if line.startswith("trusted-users =")), None)
    if trusted is None:
        return "nix trust", False, "nix config show does not say whom the Nix daemon trusts; look for trusted-users in nix.conf"
    names = {"*", user}
    for group in {*os.getgroups(), os.getegid()}:
        with contextlib.suppress(KeyError):
            names.add(f"@{grp.getgrgid(group).gr_name}")
    by = names.intersection(trusted)
    if by:
        means = f"the Nix daemon trusts {user} (trusted-users = {' '.join(trusted)}), so a job can become root through it"
        return "nix trust", False, f"{means}; take {' and '.join(sorted(by))} out of trusted-users in nix.conf"
    return "nix trust", True, f"the Nix daemon builds for {user} and does not trust it"


def examine_data_dir(config: Config) -> Iterator[Check]:
    """Check what is in the data directory."""
    root = config.data_dir
    facts = root.stat()
    owner, user = account_of(facts.st_uid, facts.st_gid), user_of(facts.st_uid)[0]
    mine = os.geteuid() in (0, owner.uid) and os.access(root, os.W_OK)
    whose = "" if owner.uid == os.geteuid() else f", of {user}: what follows is seen for that user"
    yield (
        "data",
        mine,
        f"{root}{whose}" if mine else f"{root} belongs to {spell_user(owner.uid)}, or is read-only; run forge as {user}",
    )
    if os.geteuid() not in (0, owner.uid):
        return  # the rest is not for others to see
    yield from examine_secrets(config)
    yield from examine_room(config)
    for name in ("token", "hook-token"):
        with contextlib.suppress(FileNotFoundError):
            mode = stat.S_IMODE((root / name).stat().st_mode)
            yield name, mode == 0o600, f"mode {mode:04o}" + ("" if mode == 0o600 else f"; run: chmod 600 {root / name}")
    for path in sorted(config.repos.glob("*.git")):
        stale = [hook.name for hook in asset("hooks").iterdir() if not os.path.exists(path / "hooks" / hook.name)]
        missing = f"hooks are missing ({', '.join(stale)}); a running server adds them at once" if stale else None
        bwrap = None if config.sandbox == "none" else shutil.which("bwrap")
        ailment = find_ailment(path, path.stem, owner)
        trouble = (ailment and ailment.text) or why_jobs_lack_objects(config, path, path.stem, bwrap) or missing
        yield f"repo {path.stem}", trouble is None, trouble or str(path)
    reading = read_told(root)
    for name in ("jobs.jsonl", "merges.jsonl"):
        odd = sum(said.startswith(name) for said in reading.odd)
        yield name, odd == 0, "well" if not odd else f"{odd} lines are no records; they are passed over"
    for said in reading.newer:
        yield "journal", True, said
    if not (config.password_file or config.password):
        yield "password", True, "none is set; actions need the command line (FORGE_MERGE_PASSWORD_FILE)"
        return
    try:
        well = read_password(config) is not None
    except (OSError, ValueError):
        well = False
    yield "password", well, "set" if well else f"{config.password_file} cannot be read, is empty or no UTF-8"


def examine_secrets(config: Config) -> Iterator[Check]:
    """Check which repo's deployments see which secrets, whether others can read them, and the deploy keys."""
    root = config.secrets_dir
    repos_by: dict[str | None, list[str]] = {}  # by what `secrets_folder` says
    for name in repos_here(config):
        try:
            with contextlib.suppress(GitError, OSError):  # what is wrong with the repo is told of the repo
                repos_by.setdefault(secrets_folder(config, name, repo_settings(config.repo(name))), []).append(name)
        except Refused as error:
            yield f"secrets {name}", False, error.text
    if root is None:
        return
    if os.path.lexists(root / "repos"):
        yield from examine_folders(root, repos_by)
    else:
        yield "secrets", True, f"{root}: deployments of all repos see all of it; a folder repos/ in it gives each its own"
    files = dict.fromkeys(Path(os.path.realpath(path)) for path in itertools.islice(secret_files(root), SECRET_FILES))
    if bare := [*filter(is_open_to_all, files)]:
        more = f", and so can {plural(len(bare) - 1, 'other file')}" if bare[1:] else ""
        yield "secrets", False, f"{bare[0]} can be read by everybody on this machine{more}; run: chmod o= {bare[0]}"
    for name, place in ssh_ways(root).items():
        if not name or os.path.lexists(place / "ssh" / "id_ed25519"):
            what, well, said = examine_key(place / "ssh" / "id_ed25519")
            yield f"ssh {what}{name and f' of {name}'}", well, said


def examine_folders(root: Path, repos_by: Mapping[str | None, Sequence[str]]) -> Iterator[Check]:
    """Check that each folder of `root`/repos belongs to a repo, and that nothing else is taken for what jobs see."""
    for folder in sorted(path for path in (root / "repos").glob("*") if path.is_dir()):
        names = ", ".join(repos_by.get(folder.name, ()))
        nobody = f"belongs to no repo; run: forge create {folder.name}, name it in a repo's forge.secrets, or remove it"
        yield f"secrets {folder.name}", bool(names), f"{folder} {f'is for {names}' if names else nobody}"
    if without := repos_by.get(""):
        yield "secrets", True, f"{', '.join(without)}: no secrets, as {root / 'repos'} has no folder of that name"
    used = {os.path.realpath(place / "ssh") for place in ssh_ways(root).values()}
    if os.path.lexists(root / "ssh" / "id_ed25519") and os.path.realpath(root / "ssh") not in used:
        share = f"ln -s ../../ssh {root / 'repos'}/REPO/ssh"
        yield "secrets", False, f"{root / 'ssh'} is seen by no job, as {root / 'repos'} is there; move it, or share it: {share}"


def is_open_to_all(path: Path) -> bool:
    """Whether everybody on the machine can read a file (real path); one in the Nix store is meant for all."""
    if path.is_relative_to(os.environ.get("NIX_STORE_DIR") or "/nix/store") or is_kept_from_others(path):
        return False
    with contextlib.suppress(OSError):
        return path.is_file() and all(parent.stat().st_mode & stat.S_IXOTH for parent in path.parents)
    return False


def ssh_ways(root: Path) -> dict[str, Path]:
    """What of FORGE_SECRETS_DIR jobs see with keys for ssh: by name of its folder, "" for all of it."""
    if os.path.lexists(root / "repos"):
        return {keys.parent.name: keys.parent for keys in ssh_folders(root)[1:] if keys.is_dir()}
    return {"": root} if (root / "ssh").is_dir() else {}


# What ssh says when it does not get in, what that is about, and what to do.
SSH_FAULTS = (
    (r"line \d+: |bad configuration", "config", "{config} is not understood by ssh: {said}"),
    (
        r"Could not resolve hostname",
        "host",
        "this machine knows no address of {host}; look at the name, or set HostName in {config}",
    ),
    (
        r"Permission denied|Too many authentication failures",
        "login",
        "{host} refuses the key: there is no such user, or its ~/.ssh/authorized_keys lacks the line above ({said})",
    ),
    (
        r"Connection (?:closed|reset)",
        "host",
        "{host} closes the connection at once: either no ssh server listens there, or its sshd blocks this machine for some "
        "minutes after failed logins (PerSourcePenalties); check the port, or try again later ({said})",
    ),
    (r"", "host", "no ssh server answers at {host}; look at name, port and firewall ({said})"),
)


def ssh_words(host: str) -> list[str]:
    """What names a host to ssh: `[user@]host[:port]`, or an ssh:// address. Raises Fault."""
    name, place = r"[A-Za-z0-9_][A-Za-z0-9._-]*", r"\[[0-9A-Fa-f:.]+\]"
    found = re.fullmatch(rf"(ssh://)?(?:({name})@)?({name}|{place})(?::([0-9]{{1,5}}))?(?(1)(?:/.*)?)", host)
    if not found:
        raise Fault(2, f"{host!r} is no host; say [user@]host[:port] or ssh://[user@]host[:port]")
    _, user, name, port = found.groups()
    return [*(["-p", port] if port else []), *(["-l", user] if user else []), name.strip("[]")]


def run_ssh(*words: str, text: str = "") -> subprocess.CompletedProcess[str]:
    """Run one of the programs of ssh to its end, without questions."""
    try:
        return subprocess.run(words, input=text, capture_output=True, text=True, errors="replace", timeout=30)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(words, 255, "", "it took longer than 30 seconds")


def last_line(said: str) -> str:
    """The last thing that a program said."""
    return next((line for line in reversed(said.splitlines()) if line.strip()), "nothing").strip()


def make_key(key: Path) -> bool:
    """Make a deploy key where there is none, and return whether. Raises OSError."""
    try:
        key.lstat()
        return False
    except FileNotFoundError:
        key.parent.parent.mkdir(0o700, parents=True, exist_ok=True)
        key.parent.mkdir(0o700, exist_ok=True)
    except PermissionError:
        return False
    done = run_ssh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"forge@{platform.node()}", "-f", str(key))
    if done.returncode:
        raise OSError(errno.EIO, last_line(done.stderr), str(key))
    return True


def examine_key(key: Path) -> Check:
    """Check a deploy key for what ssh wants of it, and does not always say."""
    me = os.geteuid()
    try:
        facts, readable = key.stat(), os.access(key, os.R_OK)
    except FileNotFoundError:
        what = "is a link to nothing; see whether what makes the secrets has run" if key.is_symlink() else "is not there"
        return "key", False, f"{key} {what}"
    except OSError as error:
        return (
            "owner",
            False,
            f"{key} cannot be looked at ({error.strerror}); give its folder to the user of the server, uid {me}",
        )
    mode = stat.S_IMODE(facts.st_mode)
    if facts.st_uid != me and not readable:
        whose = f"belongs to uid {facts.st_uid}, and uid {me} cannot read it"
        return "owner", False, f"{key} {whose}; run: chown {me} {key} (in agenix and sops-nix: set its owner)"
    if not readable or (facts.st_uid == me and mode & 0o077):
        return (
            "mode",
            False,
            f"{key} has mode {mode:04o}, but its owner, and nobody else, must be able to read it; run: chmod 400 {key}",
        )
    done = run_ssh("ssh-keygen", "-y", "-P", "", "-f", str(key))
    if "passphrase" in done.stderr:
        return "key", False, f"{key} has a passphrase, which nobody is there to type; take it off: ssh-keygen -p -f {key}"
    if done.returncode:
        why = f"is it the private half, whole, with a line break at its end? ({last_line(done.stderr)})"
        return "key", False, f"{key} is no private key that ssh can read; {why}"
    return "key", True, done.stdout.strip()


def examine_ssh(config: Config, host: str) -> Iterator[list[Check]]:
    """Check the ways of deployments to a host: one, or one for each repo whose secrets have keys for ssh."""
    ssh_words(host)
    root = config.secrets_dir
    if not shutil.which("ssh"):
        yield [("ssh", False, "ssh is not on the PATH; install OpenSSH's client")]
    elif root is None:
        advice = "set it, here as for the server, to a directory for what deployments need"
        yield [("secrets", False, f"FORGE_SECRETS_DIR is not set; {advice}")]
    elif not os.path.lexists(root / "repos"):
        own_data_dir(config)
        yield list(examine_way(root, host))
    elif ways := ssh_ways(root):
        own_data_dir(config)
        for name, place in ways.items():
            yield [(f"{name}: {what}", well, said) for what, well, said in examine_way(place, host)]
    else:
        make = f"say whose key it is to be, then try again: install -d -m 700 {root / 'repos'}/REPO/ssh"
        yield [("secrets", False, f"no folder in {root / 'repos'} has a folder ssh; {make}")]


def examine_way(secrets_dir: Path, host: str) -> Iterator[Check]:
    """Check one way of deployments to a host. Makes a missing key; nothing is run there, and no host key is trusted."""
    key = secrets_dir / "ssh" / "id_ed25519"
    try:
        if make_key(key):
            yield "new key", True, f"{key} was made, as there was none"
    except OSError as error:
        advice = "run forge as the user of the server, or put a key there"
        yield "key", False, f"{error.filename} cannot be made ({error.strerror}); {advice}"
        return
    what, well, said = examine_key(key)
    yield what, well, said
    if well:
        yield "authorized_keys", True, f"restrict {said}"
        yield "on the host", True, 'that line lets in; restrict,command="…" before the key lets it run one command only'
    yield from examine_login(secrets_dir, host, well)


def examine_login(secrets_dir: Path, host: str, has_key: bool) -> Iterator[Check]:
    """Check whether a host is known and lets in. It is asked to forward, not to run a command, which might deploy."""
    words = ssh_words(host)
    hosts = secrets_dir / "ssh" / "known_hosts"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / SSH_CONFIG
        try:
            file.write_bytes(read_ssh_config(secrets_dir) or b"")
        except OSError as error:
            yield (
                "config",
                False,
                f"{error.filename} cannot be read ({error.strerror}); run: chown {os.geteuid()} {error.filename}",
            )
            return
        ssh = ("ssh", "-F", str(file), "-o", "ConnectTimeout=10", "-o", "LogLevel=VERBOSE")
        tried = run_ssh(*ssh, "-W", "127.0.0.1:1", *words).stderr
        got_in = "Authenticated to " in tried
        if os.path.exists(hosts) and not os.access(hosts, os.R_OK):
            yield "known host", False, f"{hosts} cannot be read; run: chown {os.geteuid()} {hosts}"
        elif not got_in and re.search(
            r"host key is known for|HOST IDENTIFICATION HAS CHANGED|Host key verification failed", tried
        ):
            yield "known host", False, advise_on_host(hosts, run_ssh(*ssh, "-G", *words).stdout, "HAS CHANGED" in tried)
            return
    if got_in:
        yield "known host", True, f"{host} shows the key that {hosts} has"
        yield "login", True, "the key lets in; no command was run"
        return
    odd = re.search(r"line \d+: (.+)", tried)  # the number is that of a line in our copy
    said = odd[1] if odd else last_line(tried.replace("stdio forwarding failed", ""))
    what, advice = next((what, advice) for pattern, what, advice in SSH_FAULTS if re.search(pattern, tried, re.MULTILINE))
    if what == "login":
        yield "known host", True, f"{host} shows the key that {hosts} has"
    if what != "login" or has_key:
        yield what, False, advice.format(host=host, config=secrets_dir / "ssh" / "config", said=said)


def advise_on_host(hosts: Path, options: str, changed: bool) -> str:
    """What to do about a host whose key is not known, or another; `options` are what ssh -G says of it."""
    given = dict(line.partition(" ")[::2] for line in options.splitlines())
    name, port = given.get("hostname", ""), given.get("port", "22")
    shown = run_ssh("ssh-keyscan", "-T", "5", "-p", port, name).stdout.splitlines()
    line = next((line for line in shown if " ssh-ed25519 " in line), shown[0] if shown else "")
    known_as = given.get("hostkeyalias") or line.partition(" ")[0] or name
    print_of = run_ssh("ssh-keygen", "-l", "-f", "-", text=line).stdout.split() if line else []
    what = f"{known_as} shows another key than {hosts} has" if changed else f"{hosts} has no key of {known_as}"
    if len(print_of) < 2:
        return f"{what}; put there what ssh-keyscan says on that host, for this machine cannot ask it"
    first = f"ssh-keygen -R {shlex.quote(known_as)} -f {shlex.quote(str(hosts))} && " if changed else ""
    add = f"{first}echo {shlex.quote(f'{known_as} {line.partition(chr(32))[2]}')} >>{shlex.quote(str(hosts))}"
    doubt = "unless it was set up anew somebody is in between; " if changed else ""
    theirs = "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub"
    return (
        f"{what}; {doubt}compare {print_of[1]} with what `{theirs}` says on the host itself, and if they are the same run: {add}"
    )


def examine_room(config: Config) -> Iterator[Check]:
    """Check the disks of the data directory and of the repos, and tell what takes how much."""
    places = {os.stat(place).st_dev: place for place in (config.repos, config.data_dir) if place.is_dir()}
    for place in reversed(places.values()):
        room = room_at(place)
        help_ = "; make room: forge prune, FORGE_LOG_DAYS, or a larger disk" if room.low else ""
        yield "disk", not room.low, f"{place}: {room.words}{help_}"
    until, parts = time.monotonic() + 3, []
    for name in ("repos", "logs", "work", "home"):
        taken, whole = taken_by(config.data_dir / name, until)
        parts.append(f"{name} {'' if whole else 'more than '}{spell_bytes(taken)}")
    kept = f"logs are kept for {plural(config.log_days, 'day')}" if config.log_days else "logs are kept for ever (FORGE_LOG_DAYS)"
    yield "room", True, f"{', '.join(parts)}; {kept}"


BUMP_TRIES = 6  # looks at a repo that others push to at the same moment
GIT_PLACES = frozenset(
    f"GIT_{name}" for name in ("DIR", "WORK_TREE", "INDEX_FILE", "OBJECT_DIRECTORY", "COMMON_DIR", "PREFIX", "NAMESPACE")
)


def placeless_environ() -> dict[str, str]:
    """Our environment without the repo that a hook, or a git that has called us, may have named."""
    return {key: value for key, value in os.environ.items() if key not in GIT_PLACES}


class Bump:
    """One run of ``forge bump``: a clone in `folder`, which whoever calls it removes. `here` is where the history may be."""

    def __init__(self, url: str, name: str, commit: str, cause: str, folder: Path, here: Path):
        self.url, self.name, self.commit, self.cause, self.here = url, name, commit, cause, here
        self.clone = folder / "clone"
        self.branch = f"deploy-{name}-{commit[:8]}"
        self.environ = placeless_environ()
        self.heads: dict[str, str] = {}  # by branch, "" for base: as they were when last looked at
        self.locks: dict[str, dict[str, Any]] = {}
        self.base = "base"

    def run(self) -> str:
        """Bring the bump about, and say in one sentence what has come of it. Raises Fault."""
        nix = self._start("nix", "--version")
        who = self._start("git", "-c", "user.useConfigOnly=true", "var", "GIT_COMMITTER_IDENT", cwd=self.here)
        try:
            how = ("--depth=1", "--no-single-branch", "--no-local", "--no-tags", "--template=")  # the open bumps come along
            self._run("git", "clone", "-q", *how, "--", self.url, str(self.clone), cwd=self.here)
        finally:
            version, identity = nix.communicate()[0], who.communicate()[0]
        made, pushed, refused = "", False, False
        for _ in range(BUMP_TRIES):
            before = self.heads
            self._look()
            if refused and self.heads == before:
                raise Fault(1, f"{self.url} does not take {self.branch}; what it says is above")
            ours, others = self.heads.get(self.branch), self._others()
            place, newer = next(((b, commit) for b, commit in others if self._contains(commit, self.commit)), ("", ""))
            if newer:
                if pushed and ours == made:
                    self._push([f":refs/heads/{self.branch}"])
                return (
                    f"{place or self.base} has {self.name} at {newer[:10]} already, which contains {self.commit[:10]}: overtaken"
                )
            if ours and locked_commit(self.locks[self.branch], self.name) != self.commit:
                raise Fault(
                    1, f"{self.branch} is there already, with {self.name} at another commit; delete it, then run this again"
                )
            older = [f":refs/heads/{branch}" for branch, commit in others if branch and self._contains(self.commit, commit)]
            landed = locked_commit(self.locks[""], self.name) == self.commit
            done = bool(ours or landed or pushed)
            if done and not older:
                if pushed:
                    return f"{self.name} is bumped to {self.commit[:10]} by {self.branch}{', which is merged' if landed else ''}"
                there = f"{self.base} has {self.name} at {self.commit[:10]}" if landed else f"{self.branch} is pushed"
                return f"{there} already: nothing to do"
            if not (done or made):
                self._update_lock(version)
                made = self._commit(identity)
            refused = not self._push([*([] if done else [f"HEAD:refs/heads/{self.branch}"]), *older])
            pushed = pushed or not (done or refused)
        raise Fault(1, f"others push to {self.url} all the time; run this again")

    # -- git ------------------------------------------------------------------

    def _start(self, *command: str, cwd: Path | None = None) -> subprocess.Popen[str]:
        """Start something small beside the clone, whose failure is an answer as well."""
        pipe, none = subprocess.PIPE, subprocess.DEVNULL
        try:
            return subprocess.Popen(command, cwd=cwd, env=self.environ, stdin=none, stdout=pipe, stderr=none, text=True)
        except FileNotFoundError:
            raise Fault(1, f"there is no {command[0]} on the PATH, which a bump needs") from None

    def _run(self, *command: str, cwd: Path | None = None, text: str = "") -> bytes:
        """Run git or Nix in the clone; what it complains of is shown. Raises Fault, which names the command."""
        where = cwd or self.clone
        done = subprocess.run(command, cwd=where, env=self.environ, input=text.encode(), stdout=subprocess.PIPE)
        if done.returncode:
            words = " ".join(word for word in command[:4] if not word.startswith("-"))
            raise Fault(1, f"{words} has failed with {done.returncode}; what it says is above")
        return done.stdout

    def _look(self) -> None:
        """Read what base and the open bumps of the input are locked to."""
        if self.heads:
            self._run("git", "fetch", "-q", "--prune", "--depth=1", "origin")
        listed = self._run("git", "for-each-ref", "--format=%(objectname) %(refname:lstrip=3)", "refs/remotes/origin/").decode(
            "utf-8", "surrogateescape"
        )
        heads = {name: commit for commit, _, name in (line.partition(" ") for line in listed.split("\n")[:-1])}
        if "HEAD" not in heads:
            raise Fault(1, f"{self.url} has no base yet; push one first")
        named = (self.clone / ".git/refs/remotes/origin/HEAD").read_text().strip()
        self.base = named.removeprefix("ref: refs/remotes/origin/")
        pattern = re.compile(rf"deploy-{self.name}-[0-9a-f]{{8}}")
        self.heads = {"": heads["HEAD"]} | {name: heads[name] for name in heads if pattern.fullmatch(name) and name != self.base}
        asked = "".join(f"{head}:{LOCK}\n" for head in self.heads.values())
        found = io.BytesIO(self._run("git", "cat-file", "--batch", text=asked))
        for branch in self.heads:
            size = re.fullmatch(rb"[0-9a-f]+ blob ([0-9]+)\n", found.readline())
            try:
                self.locks[branch] = parse_lock(found.read(int(size[1]) + 1).decode("utf-8", "replace")) if size else NO_LOCK
            except LockTrouble as trouble:
                if not branch:
                    raise Fault(1, f"{self.base} of {self.url}: {trouble}") from None
                self.locks[branch] = NO_LOCK  # somebody's branch, which only looks like a bump

    def _others(self) -> list[tuple[str, str]]:
        """Where the input is locked to another commit: (branch, "" for base, commit)."""
        commits = [(b, locked_commit(self.locks[b], self.name)) for b in self.heads if b != self.branch]
        return [(branch, commit) for branch, commit in commits if commit and commit != self.commit]

    def _contains(self, commit: str, older: str) -> bool:
        """Whether a commit of the input contains another one, by a repo that has both: where we are, else the input's own."""
        args = ("git", "merge-base", "--is-ancestor", older, commit)
        for find in (lambda: self.here, self._mirror):
            place = find()
            code = subprocess.run(args, cwd=place, env=self.environ, capture_output=True).returncode if place else 128
            if code in (0, 1):
                return code == 0
        return False

    def _mirror(self) -> Path | None:
        """The commits of the input's own repo, where git can fetch them."""
        mirror = self.clone.with_name("input")
        node = lock_node(self.locks[""], self.name)
        source = node.get("locked", {}) if isinstance(node, dict) else {}
        if not mirror.exists() and source.get("type") == "git":
            how = ("--bare", "--filter=tree:0", "--template=", "--", str(source.get("url")), str(mirror))
            subprocess.run(("git", "clone", "-q", *how), cwd=self.here, env=self.environ, capture_output=True)
        return mirror if mirror.exists() else None

    def _push(self, refs: list[str]) -> bool:
        """Push and remove refs, all or none where the server can; whether it took them."""
        leases = []
        for ref in refs:
            name = ref.partition(":")[2]
            leases.append(f"--force-with-lease={name}:{self.heads.get(name.removeprefix('refs/heads/'), '')}")
        command = ["git", "push", *leases, "origin", *refs]
        done = subprocess.run([*command[:2], "--atomic", *command[2:]], cwd=self.clone, env=self.environ, capture_output=True)
        if done.returncode and b"--atomic" in done.stderr:
            done = subprocess.run(command, cwd=self.clone, env=self.environ, capture_output=True)
        print(done.stderr.decode("utf-8", "replace"), end="", file=sys.stderr, flush=True)
        return done.returncode == 0

    # -- the lock -----------------------------------------------------------------

    def _update_lock(self, version: str) -> None:
        """Have Nix lock the input to the commit, and no other. Raises Fault."""
        if not (self.clone / "flake.nix").exists():
            raise Fault(1, f"{self.base} of {self.url} has no flake.nix, so there is no input to bump")
        if lock_node(self.locks[""], self.name) is None:
            self._nix("lock")  # there is no lock yet, or flake.nix has got the input since
        source, lock = self._source()
        numbers = re.search(r"([0-9]+)\.([0-9]+)[^ ]*$", version.strip())
        newer = numbers is not None and (int(numbers[1]), int(numbers[2])) >= (2, 19)
        update = ("update", self.name) if newer else ("lock", "--update-input", self.name)
        for _ in range(2):  # again when flake.nix names another source than the lock did
            try:
                url = flake_url(source, self.commit)
            except (LockTrouble, LookupError) as trouble:
                raise Fault(1, f"the input {self.name} cannot be bumped: {trouble}") from None
            self._nix(*update, "--override-input", self.name, url)
            known, (source, lock) = source, self._source()
            if source == known:
                break
        node = lock_node(lock, self.name)
        if node["original"].get("rev"):  # some Nix write the override there for an input that is no flake
            del node["original"]["rev"]
            (self.clone / LOCK).write_text(lock_text(lock))
            self._nix("lock", "--no-update-lock-file")
        if locked_commit(lock, self.name) != self.commit:
            raise Fault(1, f"Nix has locked {self.name} to {locked_commit(lock, self.name)}, not to {self.commit}")

    def _nix(self, *args: str) -> None:
        try:
            self._run("nix", "flake", *args, "--extra-experimental-features", "nix-command flakes")
        except Fault as fault:
            why = f" (is {self.commit[:10]} pushed, on the branch that flake.nix names?)" if "--override-input" in args else ""
            raise Fault(1, f"{fault}{why}") from None

    def _source(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Where the input comes from, without a commit, and the lock as it is now. Raises Fault."""
        try:
            lock = parse_lock((self.clone / LOCK).read_text())
        except (OSError, LockTrouble) as error:
            raise Fault(1, f"Nix has written no {LOCK} that can be read: {error}") from None
        node = lock_node(lock, self.name)
        if node is None:
            known = ", ".join(sorted(lock["nodes"][lock["root"]].get("inputs", {}))) or "none"
            raise Fault(2, f"the flake of {self.url} has no input {self.name}; it has: {known}")
        if isinstance(node, list):
            raise Fault(1, f"the input {self.name} follows {'/'.join(node)}; bump that one")
        pinned = locked_commit(self.locks[""], self.name) and lock_node(self.locks[""], self.name)["original"].get("rev")
        if pinned:
            raise Fault(1, f"flake.nix pins {self.name} to {pinned}; take that out, or change it there")
        source = node["original"] if node["original"].get("type") != "indirect" else node["locked"]
        hidden = ("rev", "narHash", "lastModified", "revCount", "dirtyRev", "dirtyShortRev")
        return {key: value for key, value in source.items() if key not in hidden}, lock

    def _commit(self, identity: str) -> str:
        """Commit the lock and return the commit."""
        found = re.fullmatch(r"(.+) <(.*)> [0-9]+ [+-][0-9]+", identity.strip())
        for role, (key, value) in itertools.product(
            ("AUTHOR", "COMMITTER"),
            zip(("NAME", "EMAIL"), found.groups() if found else ("forge", "forge@localhost"), strict=True),
        ):
            self.environ.setdefault(f"GIT_{role}_{key}", value)
        message = f"Bump {self.name} to {self.commit[:10]}\n\nAuto-Merge: yes\n{self.cause}"
        self._run("git", "commit", "-q", "--no-verify", "-F", "-", "--", LOCK, text=message)
        return self._run("git", "rev-parse", "HEAD").decode().strip()


def cmd_bump(config: Config, args: argparse.Namespace) -> int:
    """Move a flake input of another repo to a commit, by a branch that merges itself."""
    if not INPUT_NAME.fullmatch(args.input):
        raise Fault(2, f"{args.input!r} is no name of a flake input")
    if args.configs_url.startswith("-"):
        raise Fault(2, f"{args.configs_url!r} is no address of a repo")
    told = {key: os.environ.get(f"FORGE_{key}", "") for key in ("REPO", "COMMIT", "JOB_ID")}
    cause = f"Forge-Cause: {told['REPO']} {told['COMMIT']} job {told['JOB_ID']}\n" if all(told.values()) else ""
    commit = commit_here(args.commit or told["COMMIT"] or "HEAD")

    def leave(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
    folder = Path(tempfile.mkdtemp(prefix="forge-bump-"))
    try:
        print(f"forge: {Bump(args.configs_url, args.input, commit, cause, folder, Path.cwd()).run()}", flush=True)
    finally:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def commit_here(name: str) -> str:
    """The full id of a commit that is named in full, or in a way that the checkout we are in understands. Raises Fault."""
    if OBJECT_ID.fullmatch(name.lower()):
        return name.lower()
    args = ("git", "rev-parse", "--verify", "-q", "--end-of-options", f"{name}^{{commit}}")
    done = subprocess.run(args, env=placeless_environ(), capture_output=True, text=True)
    if done.returncode:
        raise Fault(2, f"there is no commit {name!r} here; say which with --commit, in full, or run this in a checkout of it")
    return done.stdout.strip().split("\n")[-1]


def cmd_doctor(config: Config, args: argparse.Namespace) -> int:
    ways = [list(examine(config))] if args.ssh is None else list(examine_ssh(config, args.ssh))
    found = [check for way in ways for check in way]
    checks = [{"what": what, "ok": well, "text": said} for what, well, said in found]
    lines = [["ok" if well else "!!", *printable([what, said])] for what, well, said in found]
    show(args, {"checks": checks}, lambda _: table(lines, cut=False))
    needless = ("nix", "nix trust", "bwrap", "server")
    return 0 if any(all(well for what, well, _ in way if what not in needless) for way in ways) else 1  # one way will do


def give_memory_back() -> None:
    """Let what was large go back to the system: by itself the C library keeps it, for each thread apart (mallopt(3))."""
    import ctypes

    with contextlib.suppress(AttributeError):  # another C library
        for setting, value in ((M_MMAP_THRESHOLD, 128 << 10), (M_ARENA_MAX, 2)):
            ctypes.CDLL(None).mallopt(setting, value)


M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8


def hear_others() -> None:
    """Bring what waitress, and Python about a thread that crashes, say on standard error through `log`."""
    import logging

    class Others(logging.Handler):
        """Writes what is logged where our own lines are."""

        def emit(self, record: logging.LogRecord) -> None:
            """Take a record."""
            trace = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else ""
            log(f"{record.name}: {record.getMessage()}", trace)

    logging.getLogger("waitress").addHandler(Others(logging.WARNING))
    threading.excepthook = lambda crash: log(
        f"a thread crashed ({crash.thread.name if crash.thread else '?'}): {crash.exc_value!r}",
        "".join(traceback.format_exception(crash.exc_type, crash.exc_value, crash.exc_traceback)),
    )


def cmd_serve(config: Config, args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT; jobs that run then go on, and the next server takes them over."""
    keep_secrets(os.environ)  # first of all: jobs of the last server may still run
    from importlib.metadata import version

    give_memory_back()
    hear_others()
    from waitress import create_server, server, trigger, wasyncore

    if tuple(map(int, re.findall(r"\d+", version("waitress"))[:3])) < OLDEST_WAITRESS:
        raise Fault(
            1, f"waitress {version('waitress')} lets requests be smuggled; install {'.'.join(map(str, OLDEST_WAITRESS))} or newer"
        )
    manager, listeners = ServiceManager(os.environ), inherited_sockets(os.environ)
    if listeners:
        host, port = next(filter(is_near, listeners), listeners[0]).getsockname()[:2]
        config = replace(config, host=host, port=port)
    try:
        engine = Engine(config)
    except (AlreadyServed, NoSandbox) as error:
        raise Fault(1, str(error)) from None
    except OSError as error:
        raise Fault(
            1, f"{error.filename or config.data_dir} cannot be used: {error.strerror}; set FORGE_DATA_DIR, or mend its owner"
        ) from None
    listeners = listeners or [open_listener(config)]
    for listener in listeners:
        # what is accepted inherits it: a client that takes nothing of its answer keeps a worker, and a clone its git
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED_MS)
    port = config.port or listeners[0].getsockname()[1]
    engine.url, engine.manager = config.url or config.listen_url(port), manager
    sockets: dict[int, Any] = {}  # waitress's: by descriptor, who reads and writes there
    server.BaseWSGIServer.channel_class = strict_channel()
    create_server(
        Web(engine),
        map=sockets,
        sockets=listeners,
        threads=WEB_THREADS,
        ident=None,
        max_request_body_size=MAX_BODY + 65536,  # of chunks with their sizes; else `strict_channel` looks at the length
        max_request_header_size=65536,
        inbuf_overflow=65536,  # of each connection; what is more goes to a file
        connection_limit=500,
        channel_timeout=REQUEST_SECONDS,
        cleanup_interval=10,
        clear_untrusted_proxy_headers=True,
    )
    engine.port = port
    write_address(engine)
    told, alarm = threading.Event(), trigger.trigger(sockets).trigger
    os.set_blocking(alarm, False)
    signal.set_wakeup_fd(alarm, warn_on_full_buffer=False)  # wakes the loop whichever thread the kernel chose for the signal
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told.set())
    engine.start()
    manager.tell(READY=1, MAINPID=os.getpid(), STATUS=engine.status())
    try:
        print(f"forge: listening on {engine.url}", flush=True)
    except (Fault, BrokenPipeError) as error:  # its disk may be full; what can be read is served
        log(f"listening on {engine.url}, which cannot be printed: {error}")
        give_up(sys.stdout, 1)
    while not told.is_set():
        manager.turned = time.monotonic()
        wasyncore.loop(timeout=min(30.0, manager.every), use_poll=True, map=sockets, count=1)
    until = time.monotonic() + LEAVE_SECONDS
    manager.tell(STOPPING=1, STATUS="stopping; running jobs go on")
    engine.begin_nothing()
    answer_the_rest(sockets, until - 1)
    engine.stop(until - time.monotonic())
    return 0


def open_listener(config: Config) -> socket.socket:
    """A socket at FORGE_HOST and FORGE_PORT. Raises WrongSetting, Fault."""
    listener = socket.socket(socket.AF_INET6 if ":" in config.host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((config.host, config.port))
    except socket.gaierror:
        raise WrongSetting(f"FORGE_HOST is {config.host!r}, which is no address of this machine") from None
    except OSError as error:
        raise Fault(1, f"cannot listen on {config.host}:{config.port} ({error.strerror}); set FORGE_HOST or FORGE_PORT") from None
    return listener


def answer_the_rest(sockets: dict[int, Any], until: float) -> None:
    """Take no new connection, and answer the requests that have come, `until` then (monotonic seconds).

    A socket that outlives us is closed here, not shut down: who waits there is answered by the next server.
    """
    from waitress import channel, wasyncore

    run = partial(wasyncore.loop, use_poll=True, map=sockets)
    run(timeout=0, count=50)  # each round takes one of the connections that wait
    for listener in [one for one in sockets.values() if getattr(one, "accepting", False)]:
        wasyncore.dispatcher.close(listener)
    quiet = 0
    while quiet < 3 and time.monotonic() < until:
        run(timeout=0.05, count=1)
        channels = [one for one in sockets.values() if isinstance(one, channel.HTTPChannel)]
        fresh = time.time() - 0.5  # who has just been let in is about to ask
        busy = (
            one.request or one.requests or one.total_outbufs_len or one.last_activity == one.creation_time > fresh
            for one in channels
        )
        quiet = 0 if any(busy) else quiet + 1


GIT_SERVICES = ("git-upload-pack", "git-receive-pack", "git-upload-archive")
# What a key may do that may push, and no more: nothing that starts a server, reaches other hosts or looks after this machine.
SHELL_VERBS = (
    *("repos", "jobs", "job", "log", "status", "wait", "why", "audit"),
    *("create", "delete", "merge", "cancel", "retry", "rollback", "hold"),
)


def repo_of_path(config: Config, given: str) -> str:
    """The repo that an address over ssh names: `app`, `app.git`, `/app.git`, `~/app.git`, or the whole path. Raises Fault."""
    home = os.environ.get("HOME", "/")
    whole = Path(os.path.normpath(os.path.join(home, given.removeprefix("~/"))))
    # the repos may lie elsewhere, where a link leads, but their names are here
    named = whole.name if os.path.realpath(whole.parent) == os.path.realpath(config.repos) else given.removeprefix("~").strip("/")
    name = check_repo(named.removesuffix(".git"))
    if not config.repo(name).is_dir():
        raise Fault(2, f"there is no repo {name}{did_you_mean(name, repos_here(config))}")
    return name


def cmd_shell(config: Config, args: argparse.Namespace) -> int:
    """Do what was asked for over ssh, if it is git or one of our verbs; no other program is ever started."""
    asked = os.environ.pop("SSH_ORIGINAL_COMMAND", "")
    if not asked:
        host = (os.environ.get("SSH_CONNECTION", "").split() or ["HOST"] * 3)[2:3][0]
        to = f"{user_of(os.geteuid())[0]}@{host}"
        print(
            f"This is a forge; you are known here, but there is no shell. What works: git clone {to}:REPO.git · git push", end=""
        )
        print(f" · ssh {to} jobs · and so on with {', '.join(SHELL_VERBS)}")
        return 1
    try:
        words = shlex.split(asked) if asked.isprintable() else []
    except ValueError:
        words = []
    if len(words) == 2 and words[0] in GIT_SERVICES:
        name = repo_of_path(config, words[1])
        repo = config.repo(name)
        if not is_complete(repo):  # it was copied in just now
            tell_server(config, name)
        environ = {name: os.environ[name] for name in ("HOME", "USER", "PATH", "LANG", "GIT_PROTOCOL") if name in os.environ}
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and git would, too
        os.execvpe("git", ["git", words[0].removeprefix("git-"), str(repo)], environ)
    if not words or words[0] not in SHELL_VERBS:
        raise Fault(1, f"{shorten(asked)} is not for a key of this forge: it may use git, and {', '.join(SHELL_VERBS)}")
    return main(words)


def cmd_unit(config: Config, args: argparse.Namespace) -> int:
    """Print the units, or one of them; what is to be seen to is said in them, and on standard error."""
    units, notes = unit_files(config, os.environ)
    for note in notes:
        log(note)
    wanted = {args.unit: units[args.unit]} if args.unit else units
    show(args, wanted, lambda _: "\n".join(wanted.values()).rstrip("\n"))
    return 0


DEMO_FLAKE = """{
  description = "a repo of the forge demo";
  outputs = { self }:
    let
      system = "%(system)s";
      # a program from a derivation, so that it needs nothing but /bin/sh and works without nixpkgs
      program = name: text: derivation {
        inherit name system text;
        builder = "/bin/sh";
        args = [ "-c" "echo \\"$text\\" > $out; chmod +x $out" ];
        PATH = "/bin:/usr/bin";
        preferLocalBuild = true;
        allowSubstitutes = false;
      };
      app = name: text: { type = "app"; program = "${program name "#!/bin/sh\\n${text}"}"; };
    in {
      apps.${system} = {
        pre-merge = app "pre-merge" "exec sh ./check.sh";
        post-merge = app "post-merge" "echo 'this is where a deployment goes'";
      };
    };
}
"""
# What the newcomer sees typed; the flake is empty where there is no Nix, and then it is told why.
DEMO_STORY = r"""
flake=$1 no_nix=$2
say() { printf '\n== %s\n' "$1"; }
run() { printf '\n$ %s\n' "$*"; "$@"; }
commit() { git add . && printf "\n\$ git commit -qam '%s'\n" "$1" && git commit -qm "$1"; }
push() { run git push -q -o wait origin "$1"; }
[ -z "$flake" ] || say "nix works here, so the checks are flake apps"
[ -n "$flake" ] || say "without Nix ($no_nix): the checks are .forge/ scripts"
repo=$(forge create hello --base main) || exit
say "a repo: forge create hello --base main → $repo"
run git clone -q "$repo" hello
cd hello || exit
echo hello >greeting
cat >check.sh <<'EOF'
printf '\033[1mchecking\033[0m\n'
sleep 1
if grep -q typo greeting; then printf '\033[31mgreeting has a typo\033[0m\n'; exit 1; fi
printf '\033[32mall is well\033[0m\n'
EOF
if [ -n "$flake" ]; then
    printf '%s' "$flake" >flake.nix
else
    mkdir .forge
    printf '#!/bin/sh\nexec sh ./check.sh\n' >.forge/pre-merge
    printf '#!/bin/sh\necho "this is where a deployment goes"\n' >.forge/post-merge
    chmod +x .forge/*
fi
say "the first push makes base, and runs post-merge"
commit "A greeting and its check"
push HEAD:main
say "a branch that fails"
run git checkout -qb careless
echo "helo, typo" >greeting
commit "Greet in a hurry"
push careless
say "a branch that merges by itself, since its head commit says so"
run git checkout -qb friendly origin/main
echo "hello, friend" >greeting
commit "Greet a friend

Auto-Merge: yes"
push friendly
run git fetch -q --prune
run git log --oneline --graph origin/main
"""


def demo_uses_nix(folder: Path) -> str | None:
    """Why the demo cannot use Nix on this machine, or None when it can: a real run tells."""
    if not shutil.which("nix"):
        return "nix is not on the PATH"
    folder.mkdir()
    (folder / "flake.nix").write_text(DEMO_FLAKE % {"system": nix_system()})
    (folder / "check.sh").write_text("exit 0\n")
    command = ["nix", "--extra-experimental-features", "nix-command flakes", "run", f"path:{folder}#pre-merge"]
    try:
        tried = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return "nix did not answer within a minute"
    return None if tried.returncode == 0 else (tried.stderr.strip().split("\n") or ["it failed"])[-1]


def cmd_demo(config: Config, args: argparse.Namespace) -> int:
    """The newcomer's tour: a server of its own, a repo, a branch that fails and one that merges, through real git."""
    root = Path(tempfile.mkdtemp(prefix="forge-demo-"))
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("FORGE_", "GIT_"))}
    environ |= {"FORGE_DATA_DIR": str(root / "data"), "FORGE_PORT": "0", "FORGE_MERGE_PASSWORD": "demo"}
    environ["PATH"] = f"{root}/data/bin:{os.environ.get('PATH', os.defpath)}"
    for key in ("AUTHOR", "COMMITTER"):
        environ |= {f"GIT_{key}_NAME": "Demo", f"GIT_{key}_EMAIL": "demo@localhost"}

    def leave(*_: Any) -> None:
        raise SystemExit(0)

    server = None
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
    try:
        serve, pipe = [sys.executable, str(Path(__file__).resolve()), "serve"], subprocess.PIPE
        with open(root / "server.log", "w") as errors:
            server = subprocess.Popen(serve, env=environ, stdout=pipe, stderr=errors, text=True, start_new_session=True)
        assert server.stdout
        url = server.stdout.readline().strip().rpartition(" ")[2]
        if not url:
            raise Fault(1, "the server of the demo did not start")
        no_nix = demo_uses_nix(root / "probe")
        story = ["sh", "-c", DEMO_STORY, "demo", "" if no_nix else DEMO_FLAKE % {"system": nix_system()}, no_nix or ""]
        subprocess.run(story, cwd=root, env=environ, stderr=subprocess.STDOUT)
        if not args.once:
            print(f"\n== look at it: {url}/r/hello · the failed one: {url}/r/hello/mr/careless · all jobs: {url}/jobs")
            print(f"   the merge password is demo; a clone to play with is {root / 'hello'}")
            print("\n== serving until Ctrl-C", flush=True)
            while server.poll() is None:
                time.sleep(0.2)  # no longer: a signal that comes just before a wait is heard after it
        return 0
    except KeyboardInterrupt:
        print("\nbye")
        return 0
    finally:
        if server and server.poll() is None:
            server.terminate()
            server.wait(timeout=15)
        shutil.rmtree(root, ignore_errors=True)


EXAMPLES = """examples:
  forge create app --base main     make a repo; prints the path to push to
  forge jobs --status failed       what failed lately
  forge job 41                     why job 41 failed
  forge log 41 -f                  its log, as it grows
  forge status app topic           how the branch topic of app stands
  forge wait app topic && echo ok  wait for its verdict
"""


INTERNAL_VERBS = ("check-names",)  # what hooks/pre-receive calls; not for people, so without a line in the help


class Parser(argparse.ArgumentParser):
    """argparse, but what is wrong is said in one line, as all errors are."""

    def error(self, message: str) -> NoReturn:
        """End with 2. Raises Fault."""
        raise Fault(2, f"{message}; see: {self.prog} --help")


def build_parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    what = "A git forge in one file, for a small server and people who love Nix."
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="forge", description=what, epilog=EXAMPLES, formatter_class=raw)
    parser.add_argument("--version", action="version", version=f"forge {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")

    def verb(
        name: str, what: str, run: Callable[[Config, argparse.Namespace], int], *words: str, as_json: bool = True
    ) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
        for word in words:
            sub.add_argument(word.lower(), metavar=word, type=job_number if word == "ID" else str)
        if as_json:
            sub.add_argument("--json", action="store_true", help="print JSON")
        sub.set_defaults(run=run)
        return sub

    verb("serve", "serve the data directory until told to stop", cmd_serve, as_json=False)
    create = verb("create", "make an empty repo and print the path to clone or push to", cmd_create, "REPO", as_json=False)
    create.add_argument("--base", default="master", metavar="NAME", help="the base branch (default: master)")
    delete = verb("delete", "remove a repo for good", cmd_delete, "REPO", as_json=False)
    delete.add_argument("--yes", action="store_true", help="yes, really")
    verb("repos", "list the repos", cmd_repos)
    jobs = verb("jobs", "list the newest jobs", cmd_jobs)
    jobs.add_argument("--repo", metavar="R", help="only of this repo")
    jobs.add_argument("--branch", metavar="B", help="only of this branch")
    jobs.add_argument("--status", metavar="S", choices=(*LIVE, *FINAL), help=f"only these: {', '.join((*LIVE, *FINAL))}")
    jobs.add_argument("--kind", metavar="K", choices=(PRE, POST), help=f"only {PRE} or {POST}")
    jobs.add_argument("--limit", type=job_number, default=20, metavar="N", help="at most so many (default: 20)")
    verb("job", "show a job", cmd_job, "ID")
    log_verb = verb("log", "print a job's log", cmd_log, "ID", as_json=False)
    log_verb.add_argument("-f", "--follow", action="store_true", help="go on until the job ends")
    verb("status", "show how a branch stands", cmd_status, "REPO", "BRANCH")
    verb("wait", "wait until a branch has its verdict and, with auto-merge, is merged", cmd_wait, "REPO", "BRANCH")
    verb("why", "say what keeps a branch from merging", cmd_why, "REPO", "BRANCH")
    verb("merge", "merge a branch, or have it merged when it may be", cmd_merge, "REPO", "BRANCH")
    rollback = verb("rollback", "give base the tree of an earlier commit of it again", cmd_rollback, "REPO", "COMMIT")
    rollback.add_argument("--untested", action="store_true", help="at once, even if that tree has never passed pre-merge")
    hold = verb("hold", "list what is on hold, put a commit of base on hold, or lift that", cmd_hold, "REPO")
    hold.add_argument("commit", metavar="COMMIT", nargs="?", help="a commit of base")
    hold.add_argument("--lift", action="store_true", help="let it through again")
    verb("cancel", "stop a job", cmd_cancel, "ID")
    verb("retry", "run a job again", cmd_retry, "ID")
    audit = verb("audit", "prove from journal and git that every merge was of a tested tree, once", cmd_audit)
    audit.add_argument("repo", metavar="REPO", nargs="?", help="only this repo")
    pruning = verb("prune", "free room: old logs, checkouts and refs of no more use; pack the repos", cmd_prune)
    pruning.add_argument("--days", type=job_number, metavar="N", help="remove logs older than N days (default: FORGE_LOG_DAYS)")
    pruning.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    verb("shell", "the forced command of an ssh key: git over ssh, and some of these commands", cmd_shell, as_json=False)
    unit = verb("unit", "print forge.service and forge.socket for this machine", cmd_unit)
    unit.add_argument("unit", metavar="UNIT", nargs="?", choices=UNIT_FILES, help=f"only one of them: {' or '.join(UNIT_FILES)}")
    words = ("CONFIGS_URL", "INPUT")
    bump = verb(
        "bump", "move a flake input of another repo to a commit, by a branch that merges itself", cmd_bump, *words, as_json=False
    )
    bump.add_argument("--commit", metavar="C", help="default: FORGE_COMMIT; outside of a job the HEAD of this checkout")
    doctor = verb("doctor", "check this machine and the data directory, or the way to a host", cmd_doctor)
    doctor.add_argument(
        "--ssh", metavar="HOST", help="check whether deployments get to [user@]host[:port] by ssh; makes a missing key"
    )
    demo = verb("demo", "a tour: a server of its own, a branch that fails and one that merges", cmd_demo, as_json=False)
    demo.add_argument("--once", action="store_true", help="end after the story")
    for name in INTERNAL_VERBS:
        verbs.add_parser(name).set_defaults(run=cmd_check_names)
    return parser


def job_number(text: str) -> int:
    """A job id or a count on the command line."""
    if not re.fullmatch("[1-9][0-9]{0,17}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def in_order(words: list[str]) -> list[str]:
    """`hold REPO --lift COMMIT` as argparse takes it: it gives up on an argument that may be missing at the first option."""
    return sorted(words, key=lambda word: word.startswith("-")) if words[:1] == ["hold"] else words


class StandardOutput(io.FileIO):
    """Standard output, where a write that fails ends the command in one line; a reader that is gone does so without words."""

    def write(self, content: Any) -> int:
        """Write. Raises Fault, BrokenPipeError."""
        try:
            return super().write(content)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise Fault(1, f"standard output takes nothing: {error.strerror}") from None


def open_standard_streams() -> None:
    """Have all three; one that was closed would be the place of the next file that is opened, and what is said would go there."""
    for number, mode in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):  # of 1 so that writing fails, as it does when closed
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115
    if sys.stdout is sys.__stdout__:  # else it is that of a command around this one, or of a test
        out = io.BufferedWriter(StandardOutput(1, "w", closefd=False))
        sys.stdout = io.TextIOWrapper(out, "utf-8" if sys.stdout is None else sys.stdout.encoding, "backslashreplace")
        sys.stdout.reconfigure(line_buffering=sys.stdout.isatty())


def give_up(stream: IO[str], number: int) -> None:
    """Let what a stream could not write go, so that Python does not try again, and complain, at the very end."""
    try:
        stream.flush()
    except (OSError, Fault):
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), number)


def parse_words(words: list[str]) -> argparse.Namespace:
    """The command line, parsed. Raises Fault with a word that is like the wrong one; SystemExit when help was printed."""
    parser = build_parser()
    verbs = next(action.choices for action in parser._actions if isinstance(action.choices, dict))
    known = [verb for verb in verbs if verb not in INTERNAL_VERBS]
    verb = next((word for word in words if not word.startswith("-")), None)
    if verb is not None and verb not in verbs:
        raise Fault(2, f"there is no command {shorten(verb)}{did_you_mean(verb, known, 'forge --help lists them')}")
    args, rest = parser.parse_known_args(in_order(words))
    if rest:
        options = dict.fromkeys(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", verbs[args.verb].format_help()))
        word = rest[0].partition("=")[0]
        near = did_you_mean(word, options, f"see: forge {args.verb} --help")
        raise Fault(2, f"forge {args.verb} does not take {shorten(rest[0])}{' before it' if word in options else near}")
    return args


def run_words(words: list[str]) -> int:
    """Do what the command line says; returns the exit code. Raises Fault, WrongSetting, SystemExit, BrokenPipeError."""
    try:
        args = parse_words(words)
        code: int = args.run(load_config(os.environ), args)
        return code
    finally:
        sys.stdout.flush()  # while a reader that is gone can be told from a fault


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code that README.md names."""
    open_standard_streams()
    try:
        return run_words(sys.argv[1:] if argv is None else argv)
    except WrongSetting as error:
        log(str(error))
        return 2
    except Fault as fault:
        log(str(fault))
        return fault.code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 0
    finally:
        give_up(sys.stdout, 1)
        give_up(sys.stderr, 2)


if __name__ == "__main__":
    sys.exit(main())
