"""Guided decoding in vLLM: a logits processor that runs the value model beside vLLM's own.

vLLM calls it once a step with the logits of all requests, before temperature, top-k and top-p, which is the order of
the native engine. It runs in vLLM's process, where it loads a value model of its own; V and Q heads both work, each in
one pass a step (``decode``, ``ragged``). vLLM's scheduler, paged memory and prefix cache know nothing of that model.

A request asks for guidance in ``SamplingParams.extra_args``, and its own tokens, as vLLM holds them, are what counts:
a request that was put off and begun again is read again.

It is for the first of vLLM's two model runners (``prepare_options``); the second gives processors other arguments.

Shapes: M guided requests, T tokens of each in a pass, V vocabulary, D width of the value model.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from vllm import SamplingParams, envs
from vllm.config import VllmConfig
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, process_dict_updates

from tt_reasoning.guidance.decode import ValueGuide, load_value_model
from tt_reasoning.guidance.ragged import RaggedDecoder
from tt_reasoning.models.tokenizer import ChatTokenizer
from tt_reasoning.training import Process
from tt_reasoning.types import Guidance

_ARGUMENT = "guidance"  # of a request
_CONFIG = "guidance_value_model"  # in vLLM's additional_config, which goes to whatever process runs the model
MOST_REQUESTS = 64  # side by side: each has keys and values in both models, and those of the value model are padded


def prepare_options(value_model: str) -> dict[str, Any]:
    """The arguments of vLLM's ``LLM`` for requests that a value model may steer; sets the environment for them."""
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    envs.disable_envs_cache()  # an engine opened earlier may have read another value
    return {
        "logits_processors": [f"{__name__}:{GuidedDecoding.__name__}"],
        "additional_config": {_CONFIG: str(Path(value_model).resolve())},
        "async_scheduling": False,  # the newest tokens are needed before the next are drawn
        "max_num_seqs": MOST_REQUESTS,
    }


def request_arguments(guidance: Guidance) -> dict[str, Any] | None:
    """``SamplingParams.extra_args`` of a request; none with eta 0, which changes nothing."""
    return {_ARGUMENT: asdict(guidance)} if guidance.eta else None


class _Request:
    """A guided request: its guide and its tokens; vLLM lengthens ``output``."""

    def __init__(self, guide: ValueGuide, prompt: list[int], output: list[int]) -> None:
        self.guide, self.prompt, self.output = guide, prompt, output

    def tokens(self) -> list[int]:
        """All of them so far."""
        assert -1 not in self.output, "vLLM has not told the tokens that it drew"  # as in async scheduling
        return self.prompt + self.output


class _Part(NamedTuple):
    """The requests of one guide in a pass."""

    guide: ValueGuide
    places: list[int]  # in the pass
    rows_M: Tensor  # in vLLM's batch
    logits_MV: Tensor
    candidates_MK: Tensor
    tokens_MT: Tensor


class GuidedDecoding(LogitsProcessor):
    """What ``prepare_options`` has vLLM load. The value model is in fp32 on a CPU, in vLLM's own dtype on a GPU."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        folder = vllm_config.additional_config[_CONFIG]
        device = torch.device(device)
        dtype = torch.float32 if device.type == "cpu" else vllm_config.model_config.dtype
        self._model, self._card = load_value_model(folder, Process(0, 1, device), dtype)
        self._num_tokens = ChatTokenizer(folder).num_ids
        self._decoder: RaggedDecoder[_Request] = RaggedDecoder(self._model)
        self._guides: dict[Guidance, ValueGuide] = {}
        self._requests: dict[int, _Request] = {}  # by their rows in the batch

    def is_argmax_invariant(self) -> bool:
        """No: it changes what a greedy request draws, and comes before temperature."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Requests that join the batch, leave it, or change their rows."""
        process_dict_updates(self._requests, batch_update, self._admit)
        if not self._requests:
            self._decoder.hold({})

    def _admit(self, params: SamplingParams, prompt: list[int] | None, output: list[int]) -> _Request | None:
        asked = (params.extra_args or {}).get(_ARGUMENT)
        if asked is None:
            return None
        assert prompt is not None, "guided requests are given as tokens"
        guidance = Guidance(**asked)
        if guidance not in self._guides:
            self._guides[guidance] = ValueGuide(self._model, self._card, guidance, self._num_tokens)
        return _Request(self._guides[guidance], prompt, output)

    @torch.inference_mode()
    def apply(self, logits: Tensor) -> Tensor:
        """Steer the rows of guided requests, in place; the others are left alone."""
        if not self._requests:
            return logits
        rows = {request: row for row, request in self._requests.items()}
        texts = {request: request.tokens() for request in rows}
        requests = self._decoder.hold(texts)
        parts = []
        for guide in dict.fromkeys(request.guide for request in requests):
            places = [place for place, request in enumerate(requests) if request.guide is guide]
            rows_M = torch.tensor([rows[requests[place]] for place in places], device=logits.device)
            newest_M = torch.tensor([texts[requests[place]][-1] for place in places], device=logits.device)
            logits_MV = logits[rows_M]
            candidates_MK = guide.pick(logits_MV)
            parts.append(
                _Part(guide, places, rows_M, logits_MV, candidates_MK, guide.lay_out(newest_M, candidates_MK))
            )
        widest = max(part.tokens_MT.shape[1] for part in parts)
        tokens_MT = torch.zeros(len(requests), widest, dtype=torch.long, device=logits.device)
        for part in parts:
            tokens_MT[part.places, : part.tokens_MT.shape[1]] = part.tokens_MT

        def read(hidden_MTD: Tensor) -> None:
            for part in parts:
                own_MTD = hidden_MTD[part.places, : part.tokens_MT.shape[1]]
                values_MKA = part.guide.read(own_MTD, part.candidates_MK)
                logits[part.rows_M] = part.guide.steer(part.logits_MV, part.candidates_MK, values_MKA)

        self._decoder.step(tokens_MT, read)
        return logits
