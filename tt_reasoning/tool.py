"""How every tool starts and ends: typed arguments in, one summary line out, status 0 or 2."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import tyro

from tt_reasoning.errors import exit_on_mistake

T = TypeVar("T")


def run_tool(main: Callable[[T], str], arguments: type[T], description: str) -> None:
    """Parse ``arguments`` (a dataclass) from the command line, call ``main``, print the summary it returns.

    Hyphens and underscores both work in option names; mistakes end as ``exit_on_mistake`` says.
    """
    logging.getLogger("torchao").setLevel(logging.ERROR)  # it warns of extensions that nothing here uses
    args = tyro.cli(arguments, description=description, use_underscores=False)
    with exit_on_mistake():
        print(main(args))
