"""Judges run by vLLM: label tokens as the next token behind every step, heads of classes by its pooling.

A judge with label tokens is asked once a step, with all tokens up to the place where it answers; vLLM's prefix cache
keeps what those prompts have in common, a whole block at a time. The native engine reads all steps in one pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tt_reasoning.engines.vllm import open_llm
from tt_reasoning.errors import UserError
from tt_reasoning.judges.formats import Layout
from tt_reasoning.judges.forms import JudgeForm


def check_served(folder: str, form: JudgeForm) -> None:
    """Refuse a judge that vLLM does not serve. Raises UserError."""
    if form.head == "value":
        raise UserError(f"vLLM does not serve the value head of {folder}; use --engine native")


class VllmJudge:
    """A judge in vLLM.

    Args:
        dtype: ``bf16``, ``fp16`` or ``fp32``.
        max_length: most tokens of a question with its solution.

    Raises:
        UserError: vLLM is not installed, or does not serve this judge.
    """

    def __init__(self, folder: str, form: JudgeForm, *, dtype: str, max_length: int) -> None:
        check_served(folder, form)
        self.form = form
        if form.head == "classes":
            from vllm.config import PoolerConfig

            self._llm = open_llm(
                folder, dtype=dtype, max_model_len=max_length, runner="pooling",
                pooler_config=PoolerConfig(tok_pooling_type="ALL"),
            )  # fmt: skip
        else:
            self._llm = open_llm(folder, dtype=dtype, max_model_len=max_length + 1)  # and the label

    def score(self, questions: Sequence[Sequence[Layout]]) -> list[list[list[float]]]:
        """A score for every step of every solution of some questions."""
        self._llm.reset_prefix_cache()  # what an earlier call left there would decide how this one is rounded
        layouts = [layout for of_question in questions for layout in of_question]
        scores = iter(self._read_classes(layouts) if self.form.head == "classes" else self._read_labels(layouts))
        return [[next(scores) for _ in of_question] for of_question in questions]

    def _read_labels(self, layouts: Sequence[Layout]) -> list[list[float]]:
        from vllm import SamplingParams, TokensPrompt

        labels = [self.form.good, self.form.bad]
        sampling = SamplingParams(temperature=0, max_tokens=1, logprob_token_ids=labels)
        prompts = [
            TokensPrompt(prompt_token_ids=layout.tokens[: place + 1]) for layout in layouts for place in layout.read
        ]
        found = iter(self._llm.generate(prompts, sampling, use_tqdm=False))
        return [[self._softmax(next(found)) for _ in layout.read] for layout in layouts]

    def _softmax(self, output: Any) -> float:
        (logprobs,) = output.outputs[0].logprobs
        return _against(logprobs[self.form.good].logprob, logprobs[self.form.bad].logprob)

    def _read_classes(self, layouts: Sequence[Layout]) -> list[list[float]]:
        from vllm import PoolingParams, TokensPrompt

        prompts = [TokensPrompt(prompt_token_ids=layout.tokens[: layout.read[-1] + 1]) for layout in layouts]
        outputs = self._llm.encode(
            prompts, PoolingParams(use_activation=False), pooling_task="token_classify", use_tqdm=False
        )
        good, bad = self.form.good, self.form.bad
        return [
            [_against(float(output.outputs.data[place][good]), float(output.outputs.data[place][bad]))
             for place in layout.read]
            for layout, output in zip(layouts, outputs, strict=True)
        ]  # fmt: skip

    def close(self) -> None:
        """Free the model."""
        self._llm.llm_engine.engine_core.shutdown()


def _against(good: float, bad: float) -> float:
    """softmax over {good, bad}, the first, from logits or log-probabilities.

    >>> _against(2.0, 2.0), round(_against(math.log(0.3), math.log(0.1)), 6)
    (0.5, 0.75)
    """
    most = max(good, bad)
    return math.exp(good - most) / (math.exp(good - most) + math.exp(bad - most))
