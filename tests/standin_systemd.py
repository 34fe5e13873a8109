"""A stand-in for systemd, for tests: ``python standin_systemd.py FOLDER`` runs FOLDER/forge.service and forge.socket.

It holds the sockets, starts the service with what systemd would give it and starts it again whenever it ends, as
``Restart=always`` says. Of the settings it does what touches a process: user, mounts, capabilities, no-new-privileges and the
system call filter (by libseccomp, with systemd's own lists), when FOLDER/harden is there. It writes what it does and what it
is told (sd_notify) to FOLDER/told, a JSON object a line. FOLDER/restart, or what FOLDER/restart-file names, holds a signal that
the service is to get (TERM, KILL); the file is removed when the next one is ready. With SIGTERM it ends the service and itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pwd
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, MS_RDONLY, MS_BIND, MS_REC, MS_SLAVE = 0x20000, 1, 4096, 16384, 1 << 19
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY = 442, -100, 0x8000, 1
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 24, 38
NAMESPACES = {"cgroup": 1 << 25, "uts": 1 << 26, "ipc": 1 << 27, "user": 1 << 28, "pid": 1 << 29, "net": 1 << 30, "mnt": 1 << 17}
FAMILIES = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10, "AF_NETLINK": 16}
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")

Settings = dict[str, list[str]]


def read_unit(path: Path) -> Settings:
    """The settings of all sections."""
    found: Settings = {}
    for line in path.read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith(("#", ";")):
            found.setdefault(name, []).append(value)
    return found


def words(settings: Settings, name: str) -> list[str]:
    """The words of a setting, as systemd unquotes them."""
    return [word.replace("%%", "%") for value in settings.get(name, []) for word in shlex.split(value)]


def check(result: int, what: str) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def mount(what: str | None, where: str, kind: str | None = None, flags: int = 0, options: str | None = None) -> None:
    encoded = [word.encode() if word is not None else None for word in (what, where, kind)]
    check(LIBC.mount(*encoded, flags, options.encode() if options else None), f"mount {what} {where}")


def make_read_only(where: str, yes: bool = True, below: bool = True) -> None:
    attributes = (ctypes.c_uint64 * 4)(MOUNT_ATTR_RDONLY if yes else 0, 0 if yes else MOUNT_ATTR_RDONLY, 0, 0)
    flags = AT_RECURSIVE if below else 0
    check(LIBC.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, where.encode(), flags, attributes, 32), f"mount_setattr {where}")


def mounts(settings: Settings, folder: Path) -> None:
    """ProtectSystem=strict, ReadWritePaths, PrivateTmp with BindPaths, PrivateDevices, ProtectHome, ProtectControlGroups."""
    check(LIBC.unshare(CLONE_NEWNS), "unshare")
    mount(None, "/", None, MS_REC | MS_SLAVE)
    held = {
        name: [(os.open(path, os.O_PATH), path) for path in words(settings, name)] for name in ("BindPaths", "BindReadOnlyPaths")
    }
    devices = [(os.open(f"/dev/{name}", os.O_PATH), f"/dev/{name}") for name in DEVICES]
    writable = words(settings, "ReadWritePaths") + ["/dev", "/proc", "/sys"]
    for place in writable:
        if place not in ("/dev", "/proc", "/sys"):
            mount(place, place, None, MS_BIND | MS_REC)
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in points:
        if not any(point == place or point.startswith(f"{place}/") for place in writable):
            with contextlib.suppress(OSError):  # it is below one that was mounted over
                make_read_only(point.encode().decode("unicode_escape"), below=False)
    if settings["PrivateTmp"] == ["yes"]:
        for place in ("/tmp", "/var/tmp"):
            mount("tmpfs", place, "tmpfs", 0, "mode=1777")
    for name, opened in held.items():
        for file, path in opened:
            target = Path(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.mkdir(exist_ok=True) if os.path.isdir(f"/proc/self/fd/{file}") else target.touch()
            mount(f"/proc/self/fd/{file}", path, None, MS_BIND | MS_REC)
            make_read_only(path, name == "BindReadOnlyPaths")
    if settings["PrivateDevices"] == ["yes"]:
        mount("tmpfs", "/dev", "tmpfs", 0, "mode=755")
        for file, path in devices:
            Path(path).touch()
            mount(f"/proc/self/fd/{file}", path, None, MS_BIND)
        for name, kind in (("pts", "devpts"), ("shm", "tmpfs")):
            os.mkdir(f"/dev/{name}")
            mount(kind, f"/dev/{name}", kind, 0, "newinstance,ptmxmode=0666" if kind == "devpts" else "mode=1777")
        os.symlink("pts/ptmx", "/dev/ptmx")
        os.symlink("/proc/self/fd", "/dev/fd")
    if settings["ProtectHome"] == ["yes"]:
        for place in filter(os.path.isdir, ("/home", "/root", "/run/user")):
            mount("tmpfs", place, "tmpfs", 0, "mode=000")
    if settings["ProtectControlGroups"] == ["yes"] and "/sys/fs/cgroup" in points:
        make_read_only("/sys/fs/cgroup")


def system_calls(names: list[str]) -> set[str]:
    """The system calls of systemd's own groups."""
    found: set[str] = set()
    for name in names:
        listing = subprocess.run(["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True).stdout
        calls = {line.strip() for line in listing.splitlines()[1:] if line.strip() and not line.strip().startswith("#")}
        groups = [call for call in calls if call.startswith("@")]
        found |= {call for call in calls if not call.startswith("@")} | (system_calls(groups) if groups else set())
    return found


class Arg(ctypes.Structure):
    """struct scmp_arg_cmp"""

    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


NE, EQ, MASKED_EQ = 1, 4, 7
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
EPERM, ENOSYS, EAFNOSUPPORT = 1, 38, 97


def load(default: int, rules: list[tuple[str, int, list[Arg]]]) -> None:
    """One filter: a default, and (system call, action, conditions)."""
    lib = ctypes.CDLL("libseccomp.so.2")
    lib.seccomp_init.restype = ctypes.c_void_p
    lib.seccomp_rule_add_array.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p]
    context = lib.seccomp_init(ctypes.c_uint32(default))
    for name, action, conditions in rules:
        number = lib.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:
            array = (Arg * len(conditions))(*conditions)
            assert lib.seccomp_rule_add_array(context, action, number, len(conditions), array) == 0, name
    assert lib.seccomp_load(ctypes.c_void_p(context)) == 0


def prepared_filters(settings: Settings) -> list[tuple[int, list[tuple[str, int, list[Arg]]]]]:
    """SystemCallFilter, RestrictNamespaces and RestrictAddressFamilies, as systemd makes filters of them."""
    calls = system_calls(words(settings, "SystemCallFilter"))
    allowed = words(settings, "RestrictNamespaces")
    denied = (
        list(NAMESPACES.values()) if allowed == ["yes"] else [flag for name, flag in NAMESPACES.items() if name not in allowed]
    )
    spaces: list[tuple[str, int, list[Arg]]] = [("clone3", ERRNO | ENOSYS, [])]
    for call, argument in (("clone", 0), ("unshare", 0), ("setns", 1)):
        spaces += [(call, ERRNO | EPERM, [Arg(argument, MASKED_EQ, flag, flag)]) for flag in denied]
    known = {FAMILIES[name] for name in words(settings, "RestrictAddressFamilies")}
    families = [("socket", ERRNO | EAFNOSUPPORT, [Arg(0, EQ, number, 0)]) for number in range(1, 46) if number not in known]
    personality = [("personality", ERRNO | EPERM, [Arg(0, NE, 0, 0)])]
    return [(ALLOW, spaces), (ALLOW, families), (ALLOW, personality), (ERRNO | EPERM, [(call, ALLOW, []) for call in calls])]


def become(settings: Settings, folder: Path, filters: list[tuple[int, list[tuple[str, int, list[Arg]]]]]) -> None:
    """Take on what the unit says a process is to live under."""
    user = pwd.getpwnam(settings["User"][0])
    mounts(settings, folder)
    for capability in range(64):
        LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    os.setgroups([])
    os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
    os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
    check(LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no new privileges")
    for default, rules in filters:
        load(default, rules)


def listen(settings: Settings) -> list[socket.socket]:
    found = []
    for place in settings["ListenStream"]:
        host, _, port = place.rpartition(":")
        six = host.startswith("[")
        found.append(socket.socket(socket.AF_INET6 if six else socket.AF_INET))
        found[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found[-1].bind((host.strip("[]"), int(port)))
        found[-1].listen(4096)
    return found


class StandIn:
    def __init__(self, folder: Path):
        self.folder = folder
        self.service = read_unit(folder / "forge.service")
        self.sockets = listen(read_unit(folder / "forge.socket"))
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.address = f"@forge-standin-{os.getpid()}" if (folder / "abstract").exists() else str(folder / "notify")
        self.notify.bind(self.address.replace("@", "\0", 1) if self.address[0] == "@" else self.address)
        if self.address[0] == "/":
            os.chmod(self.address, 0o666)
        self.notify.settimeout(0.05)
        self.harden = (folder / "harden").exists()
        self.filters = prepared_filters(self.service) if self.harden else []
        self.pid = 0
        self.ending = self.restarting = False
        named = folder / "restart-file"
        self.wish = Path(named.read_text()) if named.exists() else folder / "restart"

    def say(self, **values: object) -> None:
        with open(self.folder / "told", "a") as told:
            told.write(json.dumps(values) + "\n")

    def start(self) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self.run()
            except BaseException as error:
                print(f"the stand-in for systemd cannot start the service: {error!r}", file=sys.stderr, flush=True)
            finally:
                os._exit(127)
        self.say(started=self.pid)

    def run(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        environ = dict(word.split("=", 1) for word in words(self.service, "Environment"))
        environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(self.sockets)), "LISTEN_FDNAMES": "forge"}
        usec = int(self.service["WatchdogSec"][0]) * 1_000_000
        environ |= {"NOTIFY_SOCKET": self.address, "WATCHDOG_USEC": str(usec), "WATCHDOG_PID": str(os.getpid())}
        command = [word.replace("$$", "$") for word in words(self.service, "ExecStart")]
        if self.harden:
            become(self.service, self.folder, self.filters)
        copies = [os.dup(one.fileno()) for one in self.sockets]
        for place, file in enumerate(copies, 3):
            os.dup2(file, place)
        os.closerange(3 + len(copies), 256)
        os.chdir("/")
        os.execvpe(command[0], command, environ)

    def turn(self) -> None:
        """Hear what the service says, see whether it ended, heed a wish."""
        with contextlib.suppress(TimeoutError):
            told = dict(line.split("=", 1) for line in self.notify.recv(65536).decode().split("\n"))
            self.say(**told)
            if "READY" in told and self.restarting:
                self.restarting = False
                self.wish.unlink(missing_ok=True)
        ended, status = os.waitpid(self.pid, os.WNOHANG)
        if ended:
            self.say(ended=os.waitstatus_to_exitcode(status))
            time.sleep(0.2)  # so that connections have to wait
            if self.ending:
                raise SystemExit
            self.start()
        elif not self.restarting and not self.ending and self.wish.exists() and (name := self.wish.read_text().strip()):
            self.restarting = True
            self.say(restart=name)
            os.kill(self.pid, signal.Signals[f"SIG{name}"])

    def end(self, *_: object) -> None:
        self.ending = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)


if __name__ == "__main__":
    stand_in = StandIn(Path(sys.argv[1]).absolute())
    signal.signal(signal.SIGTERM, stand_in.end)
    stand_in.start()
    while True:
        stand_in.turn()
