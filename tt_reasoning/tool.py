"""How every tool starts and ends: typed arguments in, one summary line out, status 0 or 2."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

import tyro

from tt_reasoning.errors import UserError

T = TypeVar("T")


def run_tool(main: Callable[[T], str], arguments: type[T], description: str) -> None:
    """Parse ``arguments`` (a dataclass) from the command line, call ``main``, print the summary it returns.

    Hyphens and underscores both work in option names. A ``UserError`` becomes one line on standard
    error and exit status 2; an interrupt becomes status 130; a bug keeps its traceback.
    """
    args = tyro.cli(arguments, description=description, use_underscores=False)
    try:
        print(main(args))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(130)
