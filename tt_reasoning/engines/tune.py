"""Answers from a torchtune model: the native sampler of training, for machines without vLLM.

One prefill serves all requests with the same prompt; ``batch_size`` rows decode together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from omegaconf import OmegaConf

from tt_reasoning.engines.base import Completion, Failure, Request, check_room, collect
from tt_reasoning.errors import UserError
from tt_reasoning.models.tokenizer import ChatTokenizer
from tt_reasoning.rollout import Guide, generate
from tt_reasoning.training import build_model, pick_dtype, start_process
from tt_reasoning.types import Guidance


class TuneEngine:
    """A Hugging Face folder (Llama or Qwen2) run by torchtune.

    Args:
        model: the folder.
        dtype: ``fp32`` or ``bf16``; by default bf16 on a GPU and fp32 on a CPU.
        device: ``auto``, ``cpu`` or ``cuda``.
        batch_size: rows that decode together (prompts times samples).
        max_model_len: prompt and completion together; by default what the model was built for.

    Raises:
        UserError: no such folder, an architecture that torchtune lacks, or no GPU where one is asked for.
    """

    def __init__(
        self,
        model: str,
        *,
        dtype: str | None = None,
        device: str = "auto",
        batch_size: int = 32,
        max_model_len: int | None = None,
    ) -> None:
        self.process = start_process(device)
        self.precision = pick_dtype(dtype or ("bf16" if self.process.device.type == "cuda" else "fp32"))
        builder = OmegaConf.create({"_component_": "tt_reasoning.models.build_from_hf", "path": model})
        self.model = build_model(builder, model, self.process, self.precision, trainable=False)
        if max_model_len and max_model_len > self.model.max_seq_len:
            raise UserError(f"max_model_len={max_model_len} is above the model's {self.model.max_seq_len}")
        self.tokenizer = ChatTokenizer(model)
        self.batch_size = batch_size
        self.max_model_len = max_model_len or self.model.max_seq_len

    @staticmethod
    def check(model: str, *, dtype: str | None = None, **options: object) -> None:
        """Raise the UserErrors that show without loading the model."""
        if dtype not in (None, "fp32", "bf16"):
            raise UserError(f"--dtype {dtype} is for engine vllm; the native sampler takes fp32 or bf16")

    def generate(self, requests: Sequence[Request]) -> list[Completion | Failure]:
        """One completion a request, in order; a prompt that leaves no room for its completion is a failure."""
        return collect(self.stream(requests))

    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion | Failure]]:
        """The outcomes of ``generate`` with their indices, batch by batch."""
        for batch in self._batches(requests):
            yield from self._run(requests, batch)

    def refuse(self, request: Request) -> Failure | None:
        """The failure that a request would be for its length."""
        num_tokens = len(self.tokenizer.encode_prompt(request.prompt))
        return check_room(num_tokens, request.max_new_tokens, self.max_model_len)

    def _batches(self, requests: Sequence[Request]) -> list[list[list[int]]]:
        """Request indices as batches of groups: one prompt a group, equal settings a batch."""
        groups: dict[tuple, list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            prompt = request.prompt if isinstance(request.prompt, str) else repr(request.prompt)
            groups[(_settings(request), prompt)].append(index)
        batches: dict[tuple, list[list[list[int]]]] = defaultdict(list)
        for (settings, _), group in groups.items():
            for start in range(0, len(group), self.batch_size):
                part = group[start : start + self.batch_size]
                open_batches = batches[settings]
                if not open_batches or sum(map(len, open_batches[-1])) + len(part) > self.batch_size:
                    open_batches.append([])
                open_batches[-1].append(part)
        return [batch for found in batches.values() for batch in found]

    def _run(
        self, requests: Sequence[Request], batch: list[list[int]]
    ) -> Iterator[tuple[int, Completion | Failure]]:
        first = requests[batch[0][0]]
        prompts, groups = [], []
        for group in batch:
            prompt = self.tokenizer.encode_prompt(requests[group[0]].prompt)
            failure = check_room(len(prompt), first.max_new_tokens, self.max_model_len)
            if failure:
                yield from ((index, failure) for index in group)
            else:
                prompts.append(prompt)
                groups.append(group)
        if not groups:
            return
        found = generate(
            self.model,
            prompts,
            [[requests[index].seed for index in group] for group in groups],
            max_new_tokens=first.max_new_tokens,
            temperature=first.temperature,
            top_k=first.top_k,
            top_p=first.top_p,
            stop=first.stop,
            stop_tokens=self.tokenizer.stop_tokens,
            decode=self.tokenizer.decode,
            guide=self._open_guide(first.guidance),
        )
        for group, samples in zip(groups, found, strict=True):
            for index, c in zip(group, samples, strict=True):
                yield index, Completion(
                    text=c.text, num_tokens=len(c.tokens), finish_reason=c.finish_reason, divergence=c.divergence
                )

    def _open_guide(self, guidance: Guidance | None) -> Guide | None:
        """What steers a batch: nothing here; a request to be guided is for engine ``guided``."""
        assert guidance is None, f"{type(self).__name__} has no value model"
        return None

    def close(self) -> None:
        """Free the model."""
        del self.model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _settings(request: Request) -> tuple:
    return request.temperature, request.top_p, request.top_k, request.max_new_tokens, request.stop, request.guidance
