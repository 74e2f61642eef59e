"""Judges of solutions: models that say of every step, or of the whole answer, how likely it is right.

A trained judge is a Hugging Face folder with a card, ``judge.json``, that says how it is shown a solution and where its
verdict is read. No torch here.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from tt_reasoning.errors import UserError
from tt_reasoning.store import load_record

CARD = "judge.json"
Head = Literal["tokens", "value"]
PublishedName = Literal["math-shepherd", "rlhflow", "qwen-prm"]
FormName = Literal["auto"] | PublishedName


@dataclass(frozen=True, kw_only=True)
class JudgeCard:
    """How a trained judge is used.

    With head ``tokens`` a step's score is the probability of token ``good`` against ``bad`` behind ``step_token``;
    with ``outcome`` the whole answer is its only step. With head ``value`` a value head (``value_head/``) is read at
    the last token of the solution; ``squash`` says that its value is a logit.

    >>> JudgeCard(head="tokens", prompt="steps", step_token="\\n", good="+", bad="-").outcome
    False
    """

    head: Head
    prompt: str
    step_token: str = "\n"
    between: str = ""
    good: str = "+"
    bad: str = "-"
    outcome: bool = False
    squash: bool = False


def card_row(card: JudgeCard) -> dict[str, object]:
    """The card as it is written to ``judge.json``."""
    return asdict(card)


def read_card(model: str | Path) -> JudgeCard | None:
    """The card of a judge's folder; None where there is none. Raises UserError on one that cannot be read."""
    path = Path(model) / CARD
    if not path.is_file():
        return None
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
        return load_record(JudgeCard, {name: value for name, value in row.items() if name not in ("recipe", "step")})
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path}: not the card of a judge: {error}") from None
