"""Tiny random value models (Q#), as Hugging Face folders, and guided decoding the slow way."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from tiny import write_tiny_model
from torch import Tensor
from torchtune.modules import TransformerDecoder

from tt_reasoning.guidance import CARD, ValueCard, value_card_row
from tt_reasoning.guidance.decode import ValueGuide
from tt_reasoning.guidance.rules import steer, token_bonus
from tt_reasoning.models import build_from_hf
from tt_reasoning.models.value_head import ValueHead, attach_head, head_names, save_head
from tt_reasoning.rollout import draw_tokens, token_probs, uniform


def write_value_model(folder: Path, *, seed: int = 1, hidden_size: int = 32, **card: object) -> Path:
    """A value model whose outputs differ much from token to token."""
    write_tiny_model(folder, seed=seed, hidden_size=hidden_size)
    filled = ValueCard(**{"head": "V", "loss": "bce", "prompt": "steps", "num_atoms": 5} | card)
    (folder / CARD).write_text(json.dumps(value_card_row(filled)))
    model = build_from_hf(str(folder))
    columns = model.tok_embeddings.num_embeddings if filled.head == "Q" else None
    attach_head(model, partial(ValueHead, num_values=filled.num_values, num_columns=columns, meaning="return"))
    torch.nn.init.normal_(model.value_head.weight, std=0.5, generator=torch.Generator().manual_seed(seed))
    save_head({name: model.state_dict()[name] for name in head_names(model)}, model, folder)
    return folder


@torch.no_grad()
def values_alone(value: TransformerDecoder, head: str, tokens: list[int], candidates: Sequence[int]) -> Tensor:
    """What the value model says of candidates behind some tokens, from passes over all of them and no cache: [K, A]."""
    hidden: list[Tensor] = []
    handle = value.norm.register_forward_pre_hook(lambda module, args: hidden.append(args[0][0, -1]))
    for row in [tokens] if head == "Q" else [[*tokens, candidate] for candidate in candidates]:
        value(torch.tensor([row]))
    handle.remove()
    state_KD = value.norm(torch.stack(hidden))
    return value.value_head(state_KD) if head == "V" else value.value_head(state_KD[0], torch.tensor(candidates))


@torch.no_grad()
def draw_guided_slowly(
    policy: TransformerDecoder, guide: ValueGuide, prompt: list[int], seed: int, num_tokens: int, **sampling: float
) -> list[int]:
    """Guided tokens by recomputing both models whole for every token and every candidate."""
    tokens: list[int] = []
    guidance, card = guide.guidance, guide.card
    for step in range(num_tokens):
        logits_1V = policy(torch.tensor([prompt + tokens]))[:, -1]
        candidates_1K = logits_1V[:, : guide.num_tokens].topk(guidance.top_k or guide.num_tokens).indices
        values_KA = values_alone(guide.model, card.head, prompt + tokens, candidates_1K[0].tolist())
        bonus_1K = token_bonus(values_KA[None], guidance.eta, guidance.rule, card.low, card.high)
        probs_1V = token_probs(steer(logits_1V, candidates_1K, bonus_1K, guidance.outside), **sampling)
        tokens.append(draw_tokens(probs_1V, uniform(torch.tensor([seed]), step)).item())
    return tokens
