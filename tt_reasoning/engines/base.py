"""What an engine is: prompts in, completions out. One class a file; everything else is the caller's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from tt_reasoning.prompts import Rendered
from tt_reasoning.types import Divergence, FinishReason, Guidance

FailureReason = Literal[
    "unreachable",  # no connection could be made
    "disconnected",  # the connection ended before the response did
    "timeout",
    "rate_limit",  # status 429, after all retries
    "server_error",  # status 408, 409, 5xx, after all retries
    "refused",  # another status than success
    "no_key",  # every key was refused or is spent
    "malformed",  # a response that is not what it should be
    "error_body",  # an error in a response of status 200
    "too_long",  # the prompt leaves no room for max_new_tokens within the engine's limit
    "unfinished",  # it ended neither by itself nor at max_new_tokens: a content filter, a tool call
]


@dataclass(frozen=True, kw_only=True)
class Request:
    """One completion to draw: a rendered prompt and everything that decides its tokens.

    ``temperature = 0`` is greedy; ``top_k = 0`` means no limit; ``stop`` strings end a completion and stay in its text.
    A chat that ends with the assistant's message is continued from there: the completion is what comes behind it.
    ``guidance`` is for an engine that was opened with its value model. The same list of requests gives the same
    completions; the native engine gives a request its completion whatever is asked beside it, vLLM does not quite.
    """

    prompt: Rendered
    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 1024
    seed: int = 0
    stop: tuple[str, ...] = ()
    guidance: Guidance | None = None


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What came back: the text without its prompt, how long it is and why it ended, and how far it was steered."""

    text: str
    num_tokens: int
    finish_reason: FinishReason
    divergence: Divergence | None = None


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A request without a completion: it is counted by its reason, and asked again when the run is.

    ``detail`` is one line for people. ``general`` says that any other request would end like this one now:
    no server, no key, no such model.
    """

    reason: FailureReason
    detail: str = ""
    general: bool = False


def collect(outcomes: Iterable[tuple[int, Completion | Failure]]) -> list[Completion | Failure]:
    """What a ``stream`` gave, in the order of its requests."""
    return [outcome for _, outcome in sorted(outcomes, key=lambda pair: pair[0])]


def check_room(num_tokens: int, max_new_tokens: int, max_model_len: int) -> Failure | None:
    """The failure of a prompt of ``num_tokens`` that leaves no room for its completion; None when there is room.

    >>> check_room(500, 16, 512).detail
    'a prompt of 500 tokens and 16 new ones are above the limit of 512; raise --max-model-len or lower --max-new-tokens'
    >>> check_room(496, 16, 512)
    """
    if num_tokens + max_new_tokens <= max_model_len:
        return None
    return Failure(
        reason="too_long",
        detail=f"a prompt of {num_tokens} tokens and {max_new_tokens} new ones are above the limit of "
        f"{max_model_len}; raise --max-model-len or lower --max-new-tokens",
        general=max_new_tokens >= max_model_len,  # then no prompt fits
    )


class Engine(Protocol):
    """Samples completions. Requests with an equal prompt share its prefill where the engine can."""

    def generate(self, requests: Sequence[Request]) -> Sequence[Completion | Failure]:
        """One completion or failure a request, in the order of the requests."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...


@runtime_checkable
class StreamingEngine(Engine, Protocol):
    """An engine that tells of every completion as it is done, so that it can be on disk before the others are."""

    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion | Failure]]:
        """The outcome of every request with its index, in an order that the same requests always have."""
        ...


@runtime_checkable
class CheckingEngine(Engine, Protocol):
    """An engine that knows, without running a request, that it will not take it."""

    def refuse(self, request: Request) -> Failure | None:
        """How the request would fail; None when the engine takes it."""
        ...


@runtime_checkable
class PooledEngine(Engine, Protocol):
    """Several copies of a model side by side, on several GPUs or machines: each takes whole chunks of requests."""

    def generate_chunks(
        self, chunks: Iterable[Sequence[Request]]
    ) -> Iterator[tuple[int, Sequence[Completion | Failure]]]:
        """The outcomes of every chunk with its index, as chunks are done, in any order.

        Chunks are drawn when there is room for them. A copy that dies loses nothing: its chunk is asked again.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What one call of ``generate`` took, as the server says: ``models`` are the names that it answers under.

    Tokens are those of all responses, also of responses that became failures.
    """

    endpoint: str
    models: list[str]
    answered: int
    failed: dict[str, int]
    prompt_tokens: int
    completion_tokens: int
    seconds: float


@runtime_checkable
class ServedEngine(Engine, Protocol):
    """An engine in front of a server: requests do not share a call there, and each of them may cost money."""

    def last_usage(self) -> Usage:
        """The usage of the latest call of ``generate``."""
        ...
