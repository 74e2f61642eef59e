"""One exception for a user's mistake, and the words for the commonest one: a name that is not known."""

from __future__ import annotations

import contextlib
import difflib
import sys
from collections.abc import Iterable, Iterator


class UserError(ValueError):
    """Something the user can mend: the message says what is wrong and how to mend it.

    Tools and recipes print it as one line and exit with status 2; anything else is a bug and
    keeps its traceback.
    """


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not among ``known``: the nearest one is offered.

    >>> str(unknown_name("engine", "vlm", ["vllm", "tune"]))
    "unknown engine 'vlm': did you mean 'vllm'? Known: tune, vllm"
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return UserError(f"unknown {kind} '{name}': {hint}Known: {', '.join(names)}")


@contextlib.contextmanager
def exit_on_mistake() -> Iterator[None]:
    """End the program as every command here ends: a ``UserError`` is one line and status 2, an interrupt 130.

    A bug keeps its traceback.
    """
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(130)
