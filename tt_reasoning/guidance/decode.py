"""Guided decoding with the native sampler: a value model beside the policy, one pass of each a token.

A V head is read behind a token, so each of the K candidates goes through the value model: in one pass with the newest
token, all at the same place, each seeing what is before it and itself (``decoding``). A Q head says of all tokens at
once what they would lead to, from the pass of the newest token alone.

How it departs from the paper's code: one pass of the value model a token in place of two; the candidates' keys and
values are never stored, so nothing has to be rolled back; prompts of any lengths side by side, without padding; a
sample that is done leaves the batch; tokens that are no candidates follow a stated rule (``rules.steer``).

Shapes: M rows, K candidates, T tokens of a row in a pass, V vocabulary, D width of the value model, A outputs of its
head a token.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch import Tensor
from torchtune.modules import TransformerDecoder

from tt_reasoning.decoding import Decoder, open_decoder
from tt_reasoning.errors import UserError
from tt_reasoning.guidance import ValueCard, read_value_card
from tt_reasoning.guidance.rules import steer, token_bonus
from tt_reasoning.models.value_head import ValueHead, saved_head
from tt_reasoning.training import Process, build_model
from tt_reasoning.types import Guidance


def load_value_model(folder: str | Path, process: Process, dtype: torch.dtype) -> tuple[TransformerDecoder, ValueCard]:
    """A value model with its head and its card.

    Raises:
        UserError: no value model, or weights that do not fit.
    """
    card = read_value_card(folder)
    builder = OmegaConf.create({"_component_": "tt_reasoning.models.build_from_hf", "path": str(folder)})
    model = build_model(builder, str(folder), process, dtype, trainable=False, value_head=saved_head(folder))
    check_head(folder, card, model.value_head)
    return model, card


def check_head(folder: str | Path, card: ValueCard, head: ValueHead) -> None:
    """Refuse a value model whose card speaks of another head than it has."""
    if (head.num_columns is not None, head.num_values) != (card.head == "Q", card.num_values):
        raise UserError(
            f"{folder}: its card speaks of a {card.head} head with {card.num_values} output(s), value_head/ is another "
            f"({head.num_values} output(s), columns: {head.num_columns or 'none'}); save the checkpoint again"
        )


class ValueGuide:
    """Steers ``rollout.generate`` by a value model.

    Args:
        model: with its value head, in ``eval`` mode; of any size, with the policy's vocabulary.
        guidance: allowed by ``check_guidance``. With eta 0 the value model is not asked at all.
        num_tokens: ids of the vocabulary. The models' own tables may be longer; what stands there is no token.
    """

    def __init__(self, model: TransformerDecoder, card: ValueCard, guidance: Guidance, num_tokens: int) -> None:
        self.model, self.card, self.guidance, self.num_tokens = model, card, guidance, num_tokens

    def pick(self, logits_MV: Tensor) -> Tensor:
        """The tokens that the value model is asked about: [M, K]."""
        if 0 < self.guidance.top_k < self.num_tokens:
            return logits_MV[:, : self.num_tokens].topk(self.guidance.top_k, -1).indices
        return torch.arange(self.num_tokens, device=logits_MV.device).expand(len(logits_MV), -1)

    def lay_out(self, newest_M: Tensor, candidates_MK: Tensor) -> Tensor:
        """The tokens of a pass, [M, T]: of every row the newest, and for a V head the candidates behind it."""
        newest_M1 = newest_M[:, None]
        return torch.cat([newest_M1, candidates_MK], 1) if self.card.head == "V" else newest_M1

    def read(self, hidden_MTD: Tensor, candidates_MK: Tensor) -> Tensor:
        """The candidates' values, [M, K, A], from the states before the final norm of the tokens of ``lay_out``."""
        if self.card.head == "V":
            return self.model.value_head(self.model.norm(hidden_MTD[:, 1:]))
        num_candidates = candidates_MK.shape[1]
        columns_MK = None if num_candidates == self.num_tokens else candidates_MK
        return self.model.value_head(self.model.norm(hidden_MTD[:, 0]), columns_MK)[:, :num_candidates]

    def steer(self, logits_MV: Tensor, candidates_MK: Tensor, values_MKA: Tensor) -> Tensor:
        """Guided logits, fp32 (``rules.steer``)."""
        guidance, card = self.guidance, self.card
        bonus_MK = token_bonus(values_MKA, guidance.eta, guidance.rule, card.low, card.high)
        return steer(logits_MV, candidates_MK, bonus_MK, guidance.outside)

    @contextlib.contextmanager
    def open(
        self, prompts: Sequence[Sequence[int]], counts: Sequence[int], max_new_tokens: int
    ) -> Iterator[ValueSteering | Unsteered]:
        """Read the prompts but for their last tokens, which each sample reads with its candidates.

        Raises:
            UserError: a prompt of a single token.
        """
        if self.guidance.eta == 0:
            yield Unsteered()
            return
        if min(map(len, prompts)) < 2:
            raise UserError("guided decoding needs prompts of at least two tokens")
        begun = [prompt[:-1] for prompt in prompts]
        with open_decoder(self.model, begun, counts, max_new_tokens) as decoder:
            decoder.read_prompts(lambda hidden_1BD: hidden_1BD)
            newest = [prompt[-1] for prompt, count in zip(prompts, counts, strict=True) for _ in range(count)]
            yield self._steering(decoder, newest)

    def _steering(self, decoder: Decoder, newest: Sequence[int]) -> ValueSteering:
        return ValueSteering(self, decoder, newest)


class Unsteered:
    """Changes nothing: eta 0."""

    def steer(self, logits_MV: Tensor, newest_M: Tensor | None) -> Tensor:
        """The logits as they are."""
        return logits_MV

    def keep(self, kept: Sequence[int]) -> None:
        """Nothing is held."""


class ValueSteering:
    """A value model at work on a batch.

    Args:
        newest: the last token of each row's prompt.
    """

    def __init__(self, guide: ValueGuide, decoder: Decoder, newest: Sequence[int]) -> None:
        self._guide, self._decoder, self._newest = guide, decoder, newest

    def steer(self, logits_MV: Tensor, newest_M: Tensor | None) -> Tensor:
        """Guided logits, fp32 (``rules.steer``)."""
        if newest_M is None:
            newest_M = torch.tensor(self._newest, device=logits_MV.device)
        candidates_MK = self._guide.pick(logits_MV)
        return self._guide.steer(logits_MV, candidates_MK, self._ask(newest_M, candidates_MK))

    def _ask(self, newest_M: Tensor, candidates_MK: Tensor) -> Tensor:
        """What the value model says of each candidate, from one pass."""
        tokens_MT = self._guide.lay_out(newest_M, candidates_MK)
        return self._decoder.step(tokens_MT, lambda hidden_MTD: self._guide.read(hidden_MTD, candidates_MK))

    def keep(self, kept: Sequence[int]) -> None:
        """Let all rows but these go."""
        self._decoder.keep(kept)
