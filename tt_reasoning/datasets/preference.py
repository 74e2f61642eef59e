"""Preference pairs for torchtune's stock ``lora_dpo`` and ``full_dpo`` recipes."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchtune.data import Message as TuneMessage
from torchtune.datasets import PreferenceDataset

from tt_reasoning.errors import UserError
from tt_reasoning.models.tokenizer import ChatTokenizer

logger = logging.getLogger(__name__)

_EXAMPLE = "pairs/math500/fcs-conversations.json"
_ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


def pair_to_messages(pair: Mapping[str, Any]) -> dict[str, list[TuneMessage]]:
    """The two chats of a pair, ``chosen`` and ``rejected``: one conversation with either end.

    Raises:
        ValueError: it is no pair; says what is wrong.

    >>> pair = {"conversations": [{"from": "human", "value": "2 + 2?"}], "chosen": {"from": "gpt", "value": "4"},
    ...         "rejected": {"from": "gpt", "value": "Let me think. 4"}}
    >>> [(message.role, message.text_content) for message in pair_to_messages(pair)["chosen"]]
    [('user', '2 + 2?'), ('assistant', '4')]
    """
    shown = pair.get("conversations") if isinstance(pair, Mapping) else None
    if not isinstance(shown, list) or not shown:
        raise ValueError("no turns under 'conversations'")
    begun = [_read_turn(turn, f"turn {number} of 'conversations'") for number, turn in enumerate(shown, 1)]
    if begun[-1].role != "user":
        raise ValueError("'conversations' does not end with a turn of the user")
    chats = {side: [*begun, _read_turn(pair.get(side), f"'{side}'")] for side in ("chosen", "rejected")}
    for side, chat in chats.items():
        if chat[-1].role != "assistant":
            raise ValueError(f"'{side}' is not the assistant's")
    return chats


def _read_turn(turn: object, where: str) -> TuneMessage:
    if not isinstance(turn, Mapping) or turn.get("from") not in _ROLES or not isinstance(turn.get("value"), str):
        raise ValueError(f"{where} is no turn: wanted a text as 'value' and as 'from' one of {', '.join(_ROLES)}")
    role = _ROLES[turn["from"]]
    return TuneMessage(role=role, content=turn["value"], masked=role != "assistant")


class PairDataset(PreferenceDataset):
    """torchtune's preference data set over pairs in memory: token ids and labels of both sides.

    Only what the assistant writes is labelled. torchtune would cut what is too long; here a pair with a side above the
    tokenizer's ``max_seq_len`` is left out and counted (``num_too_long``): a cut side teaches never to end.

    Raises:
        UserError: nothing is left to train on.
    """

    def __init__(self, pairs: Sequence[Mapping[str, Any]], tokenizer: ChatTokenizer, source: str) -> None:
        self._tokenizer = copy.copy(tokenizer)
        self._tokenizer.max_seq_len = None
        self._message_transform = pair_to_messages
        limit = tokenizer.max_seq_len
        self._data = [pair for pair in pairs if limit is None or self._length(pair) <= limit]
        self.num_too_long = len(pairs) - len(self._data)
        if self.num_too_long:
            logger.warning(f"{source}: {self.num_too_long} of {len(pairs)} pairs are above max_seq_len and left out")
        if not self._data:
            raise UserError(f"{source} gives nothing to train on: of {len(pairs)} pairs all are above max_seq_len")

    def _length(self, pair: Mapping[str, Any]) -> int:
        """Tokens of the longer side."""
        return max(len(self._tokenizer.tokenize_messages(chat)[0]) for chat in pair_to_messages(pair).values())


def pair_dataset(tokenizer: ChatTokenizer, source: str) -> PairDataset:
    """Pairs of a JSON file that holds a list, as ``tools/rewrite_responses.py`` writes it for LLaMA-Factory too.

    Args:
        source: such a file, one of ``fcs-conversations.json``, ``fcs_plus1-conversations.json`` and
            ``fcs_reflection-conversations.json``.

    Raises:
        UserError: no such file, a malformed pair (file and number named), or nothing to train on.

    A pair: ``{"conversations": [{"from": "system", "value": "..."}, {"from": "human", "value": "2 + 2?"}],
    "chosen": {"from": "gpt", "value": "It is 4."}, "rejected": {"from": "gpt", "value": "4? Wait, ... It is 4."}}``

    Example (YAML):
        ``dataset: {_component_: tt_reasoning.datasets.pair_dataset, source: pairs/math500/fcs-conversations.json}``
    """
    file = Path(source)
    if not file.is_file():
        raise UserError(f"dataset.source={source}: no such file; name one of rewrite_responses, such as {_EXAMPLE}")
    try:
        pairs = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: not JSON: {error}") from None
    if not isinstance(pairs, list) or not pairs:
        raise UserError(f"{file}: not a list with pairs in it")
    for number, pair in enumerate(pairs, 1):
        try:
            pair_to_messages(pair)
        except ValueError as error:
            raise UserError(f"{file}: pair {number}: {error}") from None
    return PairDataset(pairs, tokenizer, str(file))

