"""What stands in the sandbox beside a model-written program: runs it once a test, each time in a process of its own.

``sandbox.py`` starts this file there (standard library only, no package around it). It reads one job, says that it is
ready, and writes one frame a test: how the program ended, what it wrote, the end of what it complained. It knows
inputs, never an expected output, and compares nothing. So there is nothing here for a program to overwrite, patch or
forge that would make it right: whatever it does, only the outputs leave, and they are compared outside.

A job is a dictionary in ``marshal`` form (which needs no import): see ``sandbox.py``. A frame is
``b"F"``, the outcome (one byte), and output and complaint, each behind its length (4 bytes, little-endian).
"""

from __future__ import annotations

import _sitebuiltins
import builtins
import marshal
import math
import os
import resource
import select
import sys
import time
import types

TYPE_CHECKING = False  # as typing has it, and takes too long to import
if TYPE_CHECKING:
    from collections.abc import Callable

READY, FRAME = b"R", b"F"
PASSED, FAILED, TIMEOUT = 0, 1, 2
COMPLAINT_BYTES = 400

# What a function of a coding site may use without importing it: modules, and names by the module that has them.
_MODULES = (
    "bisect", "collections", "copy", "functools", "heapq", "itertools", "math", "operator", "random", "re", "string",
    "sys", "typing",
)  # fmt: skip
_NAMES = {
    "bisect": "bisect bisect_left bisect_right insort insort_left insort_right",
    "builtins": "Dict=dict FrozenSet=frozenset List=list Set=set Tuple=tuple Type=type",  # typing is slow to import
    "collections": "ChainMap Counter OrderedDict defaultdict deque namedtuple DefaultDict=defaultdict Deque=deque",
    "functools": "cache cached_property cmp_to_key lru_cache partial reduce total_ordering",
    "heapq": "heapify heappop heappush heappushpop heapreplace merge nlargest nsmallest",
    "itertools": "accumulate chain combinations combinations_with_replacement compress count cycle dropwhile groupby "
    "islice pairwise permutations product repeat starmap takewhile tee zip_longest",
    "math": "acos asin atan atan2 ceil comb cos degrees dist e exp fabs factorial floor fmod gcd hypot inf isclose "
    "isqrt lcm log log10 log2 nan perm pi prod radians sin sqrt tan trunc",
    "typing": "Any Callable Generator Generic Iterable Iterator Mapping NamedTuple NoReturn Optional Protocol Sequence "
    "TypeVar Union",
}


def find_prelude(code: types.CodeType) -> dict[str, object]:
    """What a function's program may mean by the names that it uses; what it defines or imports itself comes later.

    >>> code = compile("def f(a: List[int]): return heapq.nsmallest(2, a), sqrt(4)", "", "exec", dont_inherit=True)
    >>> sorted(find_prelude(code))
    ['List', 'heapq', 'nsmallest', 'sqrt']
    """
    used, waiting = set(), [code]
    while waiting:
        current = waiting.pop()
        used.update(current.co_names)
        waiting += [constant for constant in current.co_consts if isinstance(constant, type(code))]
    found: dict[str, object] = {name: __import__(name) for name in _MODULES if name in used}
    for module, names in _NAMES.items():
        for name, _, inside in (word.partition("=") for word in names.split()):
            if name in used:
                found[name] = getattr(__import__(module), inside or name)
    return found


def serve() -> Callable[[], None]:
    """Run all tests of the job on standard input, and end. Returns in a test's process alone: what it has to do."""
    data = _read_all(0)
    job = marshal.loads(data)
    job["size"] = len(data)
    del data
    # Whatever becomes of the checker, this process ends: it sees that nobody reads (``_wait``) or has used up its time.
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(job["total_s"]) + 10,) * 2)
    os.closerange(3, 1 << 20)  # whatever was left open on the way here
    channel = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.chdir(job["folder"])
    sys.path.extend(job["packages"])
    sys.set_int_max_str_digits(0)  # a program may print large numbers; the limits of time bound it
    sys.argv = ["program.py"]
    builtins.exit = builtins.quit = _sitebuiltins.Quitter("exit", "the end of input")  # as site would, left out here
    if job["isolated"] and job["user"] is None:  # the program is of the same user, and so could look in here
        import ctypes

        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE
    _write_all(channel, READY)
    try:
        code = compile(job["code"], "program.py", "exec", dont_inherit=True)
    except Exception:  # of whatever kind: each test's process meets it again, and ends by it
        code = None
    names = find_prelude(code) if code and job["function"] is not None else {}
    deadline = time.monotonic() + job["total_s"]
    for test in job["tests"]:
        files = [_temporary_file(job["folder"]) for _ in range(3)]
        if job["function"] is None:
            _write_all(files[0], test)
            os.lseek(files[0], 0, os.SEEK_SET)
        process = os.fork()
        if process == 0:
            for descriptor in (channel, nothing):
                os.close(descriptor)
            return lambda files=files, test=test: _run_test(job, code, names, test, *files)
        outcome = _wait(process, min(job["timeout_s"], deadline - time.monotonic()), channel)
        _kill_rest()
        output = _read_end(files[1], 0)
        complaint = _read_end(files[2], COMPLAINT_BYTES)
        frame = [FRAME, bytes([outcome])]
        for part in (output, complaint):
            frame += [len(part).to_bytes(4, "little"), part]
        _write_all(channel, b"".join(frame))
        for descriptor in files:
            os.close(descriptor)
    os._exit(0)


def _run_test(
    job: dict,
    code: types.CodeType | None,
    names: dict[str, object],
    test: object,
    stdin: int,
    output: int,
    complaint: int,
) -> None:
    """Become the program and run it; what it raises ends this process as it would end any other."""
    function = job["function"]
    os.dup2(stdin, 0)
    os.dup2(complaint, 2)
    if function is None:
        os.dup2(output, 1)
        os.close(output)
    for descriptor in (stdin, complaint):
        os.close(descriptor)
    _limit(job)
    module = types.ModuleType("__main__" if function is None else "program")
    module.__dict__.update(names, __builtins__=builtins, __file__="program.py")
    sys.modules[module.__name__] = module
    exec(code or compile(job["code"], "program.py", "exec", dont_inherit=True), module.__dict__)
    if function is not None:
        result = encode(_find_function(module, function)(*test))
        _write_all(output, result.encode())


def _limit(job: dict) -> None:
    """Bound this process and its children, and give up what rights there are; nothing of it can be taken back."""
    for name, soft, hard in job["limits"]:
        number = getattr(resource, f"RLIMIT_{name}")
        if name == "AS":  # the tests lie in it too
            soft, hard = soft + 3 * job["size"], hard + 3 * job["size"]
        most = resource.getrlimit(number)[1]
        if most != resource.RLIM_INFINITY:
            soft, hard = min(soft, most), min(hard, most)
        resource.setrlimit(number, (soft, hard))
    if job["user"] is not None:
        os.setgroups([])
        os.setresgid(job["user"], job["user"], job["user"])
        os.setresuid(job["user"], job["user"], job["user"])


def _find_function(module: object, name: str) -> Callable[..., object]:
    """The function of that name: a method of ``class Solution``, or of the module."""
    solution = getattr(module, "Solution", None)
    if solution is not None and hasattr(solution, name):
        return getattr(solution(), name)
    function = getattr(module, name, None)
    if function is None:
        raise NameError(f"the program has no function {name}")
    return function


def encode(value: object) -> str:
    """A result as JSON, as data alone: a subclass counts as the plain type it extends, a tuple as a list.

    Raises:
        TypeError: no number, text, list, dictionary or None (a NumPy array or scalar is what ``tolist`` gives).

    >>> encode((1, 2.5, {"a": None, 3: True}, "\\u00e9"))
    '[1,2.5,{"a":null,"3":true},"\\\\u00e9"]'
    """
    if value is None or value is True or value is False:
        return {None: "null", True: "true", False: "false"}[value]
    kind = type(value)
    if issubclass(kind, str):
        from _json import encode_basestring_ascii  # the rest of json takes as long to import as to start Python

        return encode_basestring_ascii(str.__str__(value))
    if issubclass(kind, int):
        return int.__repr__(value)
    if issubclass(kind, float):
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}.get(text := float.__repr__(value), text)
    if issubclass(kind, list | tuple):
        return "[" + ",".join([encode(part) for part in value]) + "]"
    if issubclass(kind, dict):
        return "{" + ",".join([f"{_encode_key(key)}:{encode(part)}" for key, part in value.items()]) + "}"
    if hasattr(kind, "tolist"):
        return encode(value.tolist())
    raise TypeError(f"the function returns a {kind.__name__}, which is no number, text, list or dictionary")


def _encode_key(key: object) -> str:
    text = encode(key)
    if text[0] in "[{":
        raise TypeError("a key of the returned dictionary is neither a number nor a text")
    return text if text[0] == '"' else f'"{text}"'


# --- processes and files ---------------------------------------------------------------------------------


def _wait(process: int, timeout_s: float, channel: int) -> int:
    """How a test's process ends; killed when it is late. Ends all if nobody is there any more to read of it."""
    handle = os.pidfd_open(process)
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    poll.register(channel, 0)  # an error, which needs no asking, is that its reader is gone
    ready = dict(poll.poll(max(0, timeout_s) * 1000))
    os.close(handle)
    if channel in ready:
        if os.getpid() != 1:
            os.killpg(0, 9)
        os._exit(1)  # as the first process of its namespace, the last one too
    if handle not in ready:
        os.kill(process, 9)
    status = os.waitpid(process, 0)[1]
    if handle not in ready or (
        os.WIFSIGNALED(status) and os.WTERMSIG(status) == 24
    ):  # SIGXCPU: its seconds are used up
        return TIMEOUT
    return PASSED if status == 0 else FAILED


def _kill_rest() -> None:
    """End every process that a test has left behind. Outside of a sandbox the caller does, by the process group."""
    if os.getpid() != 1:  # then -1 would be every process of the user
        return
    try:
        os.kill(-1, 9)
        while True:
            os.waitpid(-1, 0)
    except (ProcessLookupError, ChildProcessError):
        return


def _temporary_file(folder: str) -> int:
    """A file without a name, which every user may open anew as /dev/stdin."""
    mask = os.umask(0)
    descriptor = os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o666)
    os.umask(mask)
    return descriptor


def _read_all(descriptor: int) -> bytes:
    parts = []
    while part := os.read(descriptor, 1 << 20):
        parts.append(part)
    return b"".join(parts)


def _read_end(descriptor: int, most: int) -> bytes:
    """What a file holds, or its last ``most`` bytes."""
    size = os.fstat(descriptor).st_size
    os.lseek(descriptor, max(0, size - most) if most else 0, os.SEEK_SET)
    return _read_all(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


if __name__ == "__main__":
    serve()()
