"""Answers steered by a value model (Q#): the native sampler with the value model beside it (``guidance.decode``)."""

from __future__ import annotations

from tt_reasoning.engines.tune import TuneEngine
from tt_reasoning.errors import UserError
from tt_reasoning.guidance import check_request, read_value_card
from tt_reasoning.guidance.decode import ValueGuide, load_value_model
from tt_reasoning.guidance.vocabulary import check_same_end, check_same_vocabulary
from tt_reasoning.models.builders import read_max_seq_len
from tt_reasoning.models.tokenizer import ChatTokenizer
from tt_reasoning.types import Guidance


class GuidedEngine(TuneEngine):
    """A policy (Hugging Face folder, Llama or Qwen2) whose requests may have guidance by one value model.

    A request with ``eta`` 0, or without guidance, gets the tokens that engine ``tune`` gives it.

    Args:
        model, dtype, device, batch_size: as for ``TuneEngine``; dtype and device are those of both models.
        value_model: folder of a checkpoint of ``qsharp_classifier``, of any size, with the policy's vocabulary.
        max_model_len: prompt and completion together; by default what both models were built for.

    Raises:
        UserError: as ``TuneEngine``; no value model, or one with another vocabulary.
    """

    def __init__(
        self,
        model: str,
        *,
        value_model: str | None = None,
        dtype: str | None = None,
        device: str = "auto",
        batch_size: int = 32,
        max_model_len: int | None = None,
    ) -> None:
        self.check(model, value_model=value_model, dtype=dtype)
        own = read_max_seq_len(value_model)
        if max_model_len and max_model_len > own:
            raise UserError(f"max_model_len={max_model_len} is above the value model's {own}")
        super().__init__(model, dtype=dtype, device=device, batch_size=batch_size, max_model_len=max_model_len)
        self.max_model_len = min(self.max_model_len, own)
        self.value_folder = value_model
        self.value_model, self.card = load_value_model(value_model, self.process, self.precision)

    @staticmethod
    def check(model: str, *, value_model: str | None = None, **options: object) -> None:
        """Raise the UserErrors that show without loading a model."""
        if value_model is None:
            raise UserError("engine guided needs a value model: give --value-model FOLDER (recipe qsharp_classifier)")
        TuneEngine.check(model, **options)
        card, policy = read_value_card(value_model), ChatTokenizer(model)
        check_same_vocabulary(policy.tokenizer, ChatTokenizer(value_model).tokenizer)
        check_same_end(card, policy.stop_tokens)

    def _open_guide(self, guidance: Guidance | None) -> ValueGuide | None:
        """The guide of a batch; none without guidance."""
        if guidance is None:
            return None
        check_request(guidance, self.value_folder, self.card)
        return ValueGuide(self.value_model, self.card, guidance, self.tokenizer.num_ids)

    def close(self) -> None:
        """Free both models."""
        del self.value_model
        super().close()
