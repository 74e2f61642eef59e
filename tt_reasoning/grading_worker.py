"""The child process behind ``grading.Grader``: one JSON line ``[reference, answer]`` in, one word out.

It runs as a plain script (``python -P grading_worker.py MEMORY_BYTES LIMIT_S``), so it imports nothing of the
caller and forks none of the caller's threads. It says ``ready`` once its imports are done, so that their
time counts against no comparison. Whoever started it kills it when an answer takes too long; should that
process be gone, an alarm of its own ends it. It ends with its standard input.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys


def compare(reference: str, answer: str) -> str:
    """``match``, ``mismatch``, ``bad_reference`` (it cannot be read) or ``error`` (math-verify raised).

    An answer that cannot be read is a mismatch: the reference is sound, so the answer is to blame.

    >>> compare("(3,4]", "3 < x \\\\le 4"), compare("2k+2", "2(k+1)"), compare("x=5", "y=5"), compare("{", "5")
    ('match', 'match', 'mismatch', 'bad_reference')
    """
    from math_verify import LatexExtractionConfig, parse, verify

    def read(text: str) -> list:
        line = " ".join(text.split())
        # Whole-line mathematics gets its dollars; text that has some already says itself what is mathematics.
        marked = line if "$" in line.replace("\\$", "") else f"${line}$"
        parsed = parse(marked, [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)
        return parsed

    gold = read(reference)
    if not gold:
        return "bad_reference"
    try:
        equal = verify(gold, read(answer), allow_set_relation_comp=True, timeout_seconds=None, raise_on_error=True)
    except Exception:  # sympy raises anything; the caller counts it as `error`
        return "error"
    return "match" if equal else "mismatch"


def _limit_memory(num_bytes: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        num_bytes = min(num_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (num_bytes, hard))


def main() -> None:
    memory_bytes, limit_s = int(sys.argv[1]), float(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's to handle
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the default ends the process, even inside a huge power
    _limit_memory(memory_bytes)
    logging.disable()
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the parser prints must not pass for a reply
    compare("x + 1", "1 + x")  # imports and builds the parser
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        reply = compare(*json.loads(line))
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(reply, file=replies, flush=True)


if __name__ == "__main__":
    main()
