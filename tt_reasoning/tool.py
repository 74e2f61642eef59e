"""How every tool starts and ends: typed arguments in, one summary line out, status 0 or 2."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import tyro

from tt_reasoning.errors import UserError, exit_on_mistake

T = TypeVar("T")


def run_tool(main: Callable[[T], str], arguments: type[T], description: str) -> None:
    """Parse ``arguments`` (a dataclass) from the command line, call ``main``, print the summary it returns.

    Hyphens and underscores both work in option names; mistakes end as ``exit_on_mistake`` says.
    """
    logging.getLogger("torchao").setLevel(logging.ERROR)  # it warns of extensions that nothing here uses
    args = tyro.cli(arguments, description=description, use_underscores=False)
    with exit_on_mistake():
        print(main(args))


def require_positive(args: object, *names: str) -> None:
    """Raise UserError for the first of these options that is given and below 1."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: give at least 1")


def check_truncation(top_p: float, top_k: int) -> None:
    """Raise UserError for a --top-p or --top-k that no sampler takes."""
    if not 0 < top_p <= 1:
        raise UserError(f"--top-p {top_p} is not above 0 and at most 1")
    if top_k < 0:
        raise UserError(f"--top-k {top_k} is negative; 0 is no limit")
