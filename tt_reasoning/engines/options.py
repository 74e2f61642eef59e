"""The engine options that every sampling tool shares: which engine, and how it runs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Literal

import tyro

from tt_reasoning.engines import check_engine, open_engine
from tt_reasoning.engines.base import Engine


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """An engine and its options, for the ``Arguments`` of a tool; what is None is left to the engine.

    A tool has them as ``engine: Annotated[EngineOptions, tyro.conf.arg(name="")] = EngineOptions()``: a group of its
    own in the help, no prefix on the command line.

    >>> EngineOptions(name="openai", concurrency=8).identity()
    {'engine': 'openai', 'revision': None, 'dtype': None}
    """

    name: Annotated[str, tyro.conf.arg(name="engine")] = "vllm"
    """What samples: vllm, tune, openai or scripted."""
    revision: str | None = None
    """Revision of a Hub model."""
    dtype: Literal["bf16", "fp16", "fp32"] | None = None
    """Arithmetic of the model; the engine's own choice unless given."""
    max_model_len: int | None = None
    """Most tokens of a prompt with its answer; the engine's own choice unless given."""
    tensor_parallel_size: int | None = None
    """GPUs that share the model; 1 unless given."""
    base_url: str | None = None
    """openai: address of the server, such as http://localhost:8000/v1; OPENAI_BASE_URL or OpenAI unless given."""
    keys: str | None = None
    """openai: file with one key a line, used in turn; OPENAI_API_KEY unless given."""
    concurrency: int | None = None
    """openai: requests under way at once; 16 unless given."""
    timeout_s: float | None = None
    """openai: seconds that the server may be silent; 600 unless given."""
    max_retries: int | None = None
    """openai: retries of a request before it counts as failed; 5 unless given."""

    def check(self, model: str) -> None:
        """Raise the UserErrors of ``open`` that show without loading the model."""
        check_engine(self.name, model, **self._given())

    def open(self, model: str) -> Engine:
        """The engine with its model loaded. Raises UserError as ``open_engine``."""
        return open_engine(self.name, model, **self._given())

    def identity(self) -> dict[str, object]:
        """What answers depend on, for a run's manifest: a resumed run may change the rest."""
        return {"engine": self.name, "revision": self.revision, "dtype": self.dtype}

    def _given(self) -> dict[str, object]:
        return {option: value for option, value in asdict(self).items() if option != "name" and value is not None}
