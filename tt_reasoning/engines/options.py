"""The engine options that every sampling tool shares: which engine, and how it runs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from tt_reasoning.aggregation import describe_weights
from tt_reasoning.engines import check_engine, open_engine
from tt_reasoning.engines.base import Engine
from tt_reasoning.engines.pool import EnginePool, check_pool
from tt_reasoning.engines.vllm import runs_on_cpu
from tt_reasoning.errors import UserError
from tt_reasoning.guidance import check_guidance, read_value_card
from tt_reasoning.types import Guidance, Outside, Rule

_CHUNK_PROBLEMS = 64
_CHUNK_ANSWERS_CPU, _CHUNK_ANSWERS_GPU = 4096, 16_384
_MOST_ETA = 10_000  # beyond it the logits of fp32 are lost beside the bonus
_RAY_WORKERS = 8  # a guess, for the size of a chunk alone


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """An engine and its options, for the ``Arguments`` of a tool; what is None is left to the engine.

    A tool has them as ``engine: Annotated[EngineOptions, tyro.conf.arg(name="")] = EngineOptions()``: a group of its
    own in the help, no prefix on the command line.

    >>> EngineOptions(name="openai", concurrency=8).identity()
    {'engine': 'openai', 'revision': None, 'dtype': None}
    """

    name: Annotated[str, tyro.conf.arg(name="engine")] = "vllm"
    """What samples: vllm, tune, guided, openai, ray or scripted."""
    revision: str | None = None
    """Revision of a Hub model."""
    dtype: Literal["bf16", "fp16", "fp32"] | None = None
    """Arithmetic of the model; the engine's own choice unless given."""
    max_model_len: int | None = None
    """Most tokens of a prompt with its answer; the engine's own choice unless given."""
    tensor_parallel_size: Annotated[int | None, tyro.conf.arg(aliases=("--tp",))] = None
    """GPUs that share one copy of the model; 1 unless given."""
    data_parallel_size: int | None = None
    """Copies of the model side by side on this machine, each with its own GPUs or CPU cores; 1 unless given."""
    gpu_memory_utilization: float | None = None
    """vllm, ray: share of a GPU's memory for weights and cache; vLLM's own choice unless given."""
    ray_address: str | None = None
    """ray: HOST:PORT of the cluster's head, or auto, the cluster of this machine; this machine alone without one."""
    num_workers: int | None = None
    """ray: copies of the model on the cluster; as many as fit unless given."""
    value_model: str | None = None
    """guided, vllm: checkpoint of the value model that steers (recipe qsharp_classifier)."""
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
        check_pool(self.name, self._copies())
        for name, value in (("tensor-parallel-size", self.tensor_parallel_size), ("num-workers", self.num_workers)):
            if value is not None and value < 1:
                raise UserError(f"--{name} {value}: give at least 1")
        share = self.gpu_memory_utilization
        if share is not None and not 0 < share <= 1:
            raise UserError(f"--gpu-memory-utilization {share} is not above 0 and at most 1")
        check_engine(self.name, model, **self._given())

    def open(self, model: str) -> Engine:
        """The engine with its model loaded. Raises UserError as ``open_engine``."""
        if self._copies() > 1:
            return EnginePool(self.name, model, self._copies(), **self._given())
        return open_engine(self.name, model, **self._given())

    def identity(self) -> dict[str, object]:
        """What answers depend on, for a run's manifest: a resumed run may change the rest."""
        found: dict[str, object] = {"engine": self.name, "revision": self.revision, "dtype": self.dtype}
        if self.value_model is not None:
            weights = [describe_weights(folder) for folder in (self.value_model, Path(self.value_model) / "value_head")]
            found |= {"value_model": self.value_model, "value_weights": weights}
        return found

    def default_chunk_size(self, num_samples: int) -> int:
        """Problems asked at once where the user does not say.

        vLLM runs half empty behind the last request of a chunk; with so many answers in it that costs little
        (docs/generation.md). Several copies share the number, so that each has some chunks.

        >>> EngineOptions(name="tune").default_chunk_size(4)
        64
        """
        if self.name not in ("vllm", "ray"):
            return _CHUNK_PROBLEMS
        answers = _CHUNK_ANSWERS_CPU if runs_on_cpu() else _CHUNK_ANSWERS_GPU
        copies = self._copies() if self.name == "vllm" else self.num_workers or _RAY_WORKERS
        return max(1, answers // (copies * num_samples))

    def _copies(self) -> int:
        return 1 if self.data_parallel_size is None else self.data_parallel_size

    def _given(self) -> dict[str, object]:
        """The engine's own options among those that the user gave."""
        ours = ("name", "data_parallel_size")
        return {option: value for option, value in asdict(self).items() if option not in ours and value is not None}


@dataclass(frozen=True, kw_only=True)
class GuideOptions:
    """How a value model steers, for the ``Arguments`` of a tool that has ``EngineOptions``.

    >>> GuideOptions().guidances(EngineOptions())
    [None]
    """

    eta: tuple[float, ...] = ()
    """How hard --value-model steers, one or several: the inverse of the paper's temperature; 0 does not steer."""
    guide_top_k: int = 20
    """The value model is asked about this many likeliest tokens; 0 is all, for a Q head alone."""
    guide_rule: Literal["auto"] | Rule = "auto"
    """What its values come to: auto goes by how it was trained; mean is controlled decoding (CD), to compare with."""
    guide_outside: Outside = "exclude"
    """Tokens that it was not asked about: exclude never draws them, keep treats each as the worst of those asked."""

    def guidances(self, engine: EngineOptions) -> list[Guidance | None]:
        """One for every eta; None alone without a value model.

        Raises:
            UserError: one of value model and eta is missing, or the value model cannot do that.
        """
        if engine.value_model is None:
            if self.eta:
                raise UserError("--eta is about a value model that steers: give --engine guided --value-model FOLDER")
            return [None]
        if not self.eta:
            raise UserError("--value-model steers with some strength; say which, such as --eta 0 1 5 10")
        for eta in self.eta:
            if not 0 <= eta <= _MOST_ETA:
                raise UserError(f"--eta {eta:g}: give numbers from 0 to {_MOST_ETA}; the larger, the harder it steers")
            if self.eta.count(eta) > 1:
                raise UserError(f"--eta names {eta:g} twice")
        if self.guide_top_k < 0:
            raise UserError(f"--guide-top-k {self.guide_top_k} is negative; 0 is all tokens")
        card = read_value_card(engine.value_model)
        rule = card.rule if self.guide_rule == "auto" else self.guide_rule
        found = [
            Guidance(
                value_model=engine.value_model, eta=eta, top_k=self.guide_top_k, rule=rule, outside=self.guide_outside
            )
            for eta in self.eta
        ]
        for guidance in found:
            check_guidance(guidance, card)
        return [*found]
