"""vLLM behind the engine protocol: the whole list of requests at once, on a GPU or a CPU.

Completions are repeatable: the same list of requests gives the same completions, in another process
too. For that every request has its own seed, the scheduler runs in this process, and each call starts
with an empty prefix cache. A completion may still depend on the list it is asked in, since the shape of
a matrix product decides how it rounds (bf16 above all): ask again with the same list to get the same.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import itertools
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tt_reasoning.engines.base import Completion, Failure, Request, check_room, collect
from tt_reasoning.errors import UserError, unknown_name
from tt_reasoning.guidance import ValueCard, check_request, read_value_card
from tt_reasoning.guidance.vocabulary import Vocabulary, check_same_end, check_same_vocabulary
from tt_reasoning.prompts import Rendered, split_begun
from tt_reasoning.types import Guidance

if TYPE_CHECKING:
    from vllm import LLM

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
# What the user has set is left alone.
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # a scheduler in another process batches by arrival time
    "VLLM_LOGGING_LEVEL": "ERROR",  # its warnings are about the choices made below
    "VLLM_CPU_KVCACHE_SPACE": "4",  # GiB
    "GOMP_SPINCOUNT": "5000",  # threads that spin for long are several times slower beside another program
}
# Prefill tokens of one step on a CPU, and the longest sequence there: enough for a set of answers.
_CPU_TOKENS = 8192


def runs_on_cpu() -> bool:
    """Whether the vLLM that is installed is the one for CPUs (or there is none); vLLM itself is not imported."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return "cpu" in importlib.metadata.version("vllm")
    return True


def check_vllm(dtype: str) -> None:
    """Refuse a dtype by another name, or a machine without vLLM (UserError); vLLM itself is not imported."""
    if importlib.util.find_spec("vllm") is None:
        raise UserError('vLLM is not installed: pip install "tt-reasoning[cpu]", or "tt-reasoning[gpu]" with a GPU')
    if dtype not in DTYPES:
        raise unknown_name("dtype", dtype, DTYPES)


def _set_environment() -> None:
    """What vLLM and its libraries read when they load; torch loads some of them."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def open_llm(
    model: str,
    *,
    dtype: str,
    max_model_len: int | None = None,
    gpu_memory_utilization: float | None = None,
    value_model: str | None = None,
    **options: Any,
) -> LLM:
    """vLLM with a model, set up to be repeatable, and on a CPU as its engine needs it there.

    Args:
        model, dtype, max_model_len, gpu_memory_utilization, value_model: as for ``VllmEngine``.
        options: more arguments of vLLM's ``LLM``.

    Raises:
        UserError: vLLM is not installed, or an unknown dtype.
    """
    check_vllm(dtype)
    _set_environment()
    warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")
    from vllm import LLM, EngineArgs
    from vllm.platforms import current_platform

    options |= {"dtype": DTYPES[dtype]}
    if value_model is not None:
        from tt_reasoning.guidance.vllm import prepare_options

        options |= prepare_options(value_model)
    if gpu_memory_utilization is not None:
        options["gpu_memory_utilization"] = gpu_memory_utilization
    if current_platform.is_cpu():
        own = EngineArgs(model=model, **options).create_model_config().max_model_len
        max_model_len = max_model_len or min(own, _CPU_TOKENS)
        # A seeded request whose prefill is split over two steps kills the engine on a CPU.
        options |= {
            "enforce_eager": True,
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(max_model_len, _CPU_TOKENS),
        }
    return LLM(model=model, max_model_len=max_model_len, enable_prefix_caching=True, **options)


class VllmEngine:
    """A model in vLLM.

    Args:
        model: a Hugging Face folder or a Hub name.
        revision: of a Hub model.
        dtype: of weights and arithmetic: ``bf16``, ``fp16`` or ``fp32``.
        max_model_len: most tokens of a prompt with its completion; None is the model's own, on a CPU at
            most 8192. It refuses what is longer and changes no completion.
        tensor_parallel_size: how many GPUs share the model.
        gpu_memory_utilization: share of a GPU's memory for weights and cache; None is vLLM's default. A
            CPU keeps VLLM_CPU_KVCACHE_SPACE GiB of cache instead (4 unless set).
        value_model: folder of a checkpoint of ``qsharp_classifier`` with the model's vocabulary, for requests with
            guidance (``guidance.vllm``). Their completions have no divergence. At most 64 requests run side by side.

    Raises:
        UserError: vLLM is not installed, or an unknown dtype; no value model, one with another vocabulary, or a
            max_model_len above what it was built for.

    Example:
        ``VllmEngine("models/smollm2-135m").generate([Request(prompt="2 + 2 =", max_new_tokens=8, temperature=0)])``
    """

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        dtype: str = "bf16",
        max_model_len: int | None = None,
        tensor_parallel_size: int = 1,
        gpu_memory_utilization: float | None = None,
        value_model: str | None = None,
    ) -> None:
        self.check(model, value_model=value_model, max_model_len=max_model_len)
        self._llm = open_llm(
            model,
            revision=revision,
            dtype=dtype,
            max_model_len=max_model_len,
            tensor_parallel_size=tensor_parallel_size,
            gpu_memory_utilization=gpu_memory_utilization,
            value_model=value_model,
        )
        self._tokenizer = self._llm.get_tokenizer()
        self.max_model_len: int = self._llm.model_config.max_model_len
        self.value_folder = value_model
        self._card: ValueCard | None = None
        if value_model is not None:
            self._card, tokenizer, own = _read_value_model(value_model)
            check_same_vocabulary(self._tokenizer, tokenizer)
            self.max_model_len = min(self.max_model_len, own)

    @staticmethod
    def check(
        model: str, *, value_model: str | None = None, max_model_len: int | None = None, **options: object
    ) -> None:
        """Raise the UserErrors about a value model that show without loading one."""
        if value_model is None:
            return
        card, tokenizer, own = _read_value_model(value_model)
        if max_model_len and max_model_len > own:
            raise UserError(f"max_model_len={max_model_len} is above the value model's {own}")
        if Path(model).is_dir():  # vLLM gets the tokenizer of a model of the Hub
            from tt_reasoning.models.tokenizer import ChatTokenizer

            policy = ChatTokenizer(model)
            check_same_vocabulary(policy.tokenizer, tokenizer)
            check_same_end(card, policy.stop_tokens)

    def generate(self, requests: Sequence[Request]) -> list[Completion | Failure]:
        """One completion a request, in order; requests with an equal prompt share its prefill.

        A prompt that leaves no room for its ``max_new_tokens`` is a failure (``too_long``), never cut.

        Raises:
            UserError: a request with guidance that this engine cannot give.
        """
        return collect(self.stream(requests))

    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion | Failure]]:
        """The outcomes of ``generate`` with their indices, as they are done."""
        from vllm import SamplingParams, TokensPrompt

        prompts, sampling, asked = [], [], []
        for rendered, group in itertools.groupby(enumerate(requests), key=lambda pair: pair[1].prompt):
            tokens = self._tokenize(rendered)
            for index, request in group:
                failure = check_room(len(tokens), request.max_new_tokens, self.max_model_len)
                if failure:
                    yield index, failure
                    continue
                asked.append(index)
                prompts.append(TokensPrompt(prompt_token_ids=tokens))
                sampling.append(
                    SamplingParams(
                        seed=request.seed,
                        temperature=request.temperature,
                        top_p=request.top_p,
                        top_k=request.top_k,
                        max_tokens=request.max_new_tokens,
                        stop=list(request.stop),
                        include_stop_str_in_output=True,
                        extra_args=self._guide(request.guidance),
                    )
                )
        if not asked:
            return
        engine = self._llm.llm_engine
        self._llm.reset_prefix_cache()
        ids = self._llm.enqueue(prompts, sampling, use_tqdm=False)
        index_of = {name.partition("-")[0]: index for name, index in zip(ids, asked, strict=True)}
        try:
            while engine.has_unfinished_requests():
                for output in engine.step():
                    if output.finished:
                        yield index_of.pop(output.request_id), _to_completion(output.outputs[0])
        finally:
            if index_of:  # the caller stops early
                engine.abort_request([name for name in ids if name.partition("-")[0] in index_of], internal=True)
        if index_of:
            raise RuntimeError(f"vLLM gave no end to {len(index_of)} of {len(asked)} requests")

    def refuse(self, request: Request) -> Failure | None:
        """The failure that a request would be for its length."""
        return check_room(len(self._tokenize(request.prompt)), request.max_new_tokens, self.max_model_len)

    def _guide(self, guidance: Guidance | None) -> dict[str, Any] | None:
        """What tells vLLM how a request is to be guided."""
        if guidance is None:
            return None
        check_request(guidance, self.value_folder, self._card)
        from tt_reasoning.guidance.vllm import request_arguments

        return request_arguments(guidance)

    def _tokenize(self, prompt: Rendered) -> list[int]:
        """Token ids, so that nothing downstream adds a second beginning-of-text to a rendered chat."""
        if isinstance(prompt, str):
            return self._tokenizer.encode(prompt)
        chat, begun = split_begun(prompt)
        text = self._tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        return self._tokenizer.encode(text + begun, add_special_tokens=False)

    def close(self) -> None:
        """Free the model."""
        self._llm.llm_engine.engine_core.shutdown()


def _read_value_model(folder: str) -> tuple[ValueCard, Vocabulary, int]:
    """The card of a value model, its tokenizer, and the most tokens that it reads."""
    card = read_value_card(folder)
    _set_environment()
    from tt_reasoning.models.builders import read_max_seq_len
    from tt_reasoning.models.tokenizer import ChatTokenizer

    return card, ChatTokenizer(folder).tokenizer, read_max_seq_len(folder)


def _to_completion(output: Any) -> Completion:
    if output.finish_reason not in ("stop", "length"):
        raise RuntimeError(f"vLLM ended a request with finish_reason={output.finish_reason!r}")
    return Completion(text=output.text, num_tokens=len(output.token_ids), finish_reason=output.finish_reason)
