"""What an engine is: prompts in, completions out. One class a file; everything else is the caller's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tt_reasoning.prompts import Rendered
from tt_reasoning.types import FinishReason


@dataclass(frozen=True, kw_only=True)
class Request:
    """One completion to draw: a rendered prompt and everything that decides its tokens.

    ``temperature = 0`` is greedy; ``top_k = 0`` means no limit; ``stop`` strings end a completion and
    stay in its text. The same list of requests gives the same completions; the native engine gives a request
    its completion whatever is asked beside it, vLLM does not quite.
    """

    prompt: Rendered
    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 1024
    seed: int = 0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What came back: the text without its prompt, how long it is and why it ended."""

    text: str
    num_tokens: int
    finish_reason: FinishReason


class Engine(Protocol):
    """Samples completions. Requests with an equal prompt share its prefill where the engine can."""

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """One completion a request, in the order of the requests."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...
