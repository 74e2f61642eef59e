"""Value models that steer decoding (Q#, arXiv 2502.20548): what they are and how they are told.

A value model says of a prompt with the beginning of an answer what will come of it when the *reference* goes on from
there. A language model is steered by it token by token, without being trained. The checkpoint of one is a Hugging Face
folder with a value head (``value_head/``) and a card, ``value.json``. No torch here.

Convention: ``eta`` is the inverse of the paper's temperature. The larger, the harder it steers; 0 does not steer.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tt_reasoning.errors import UserError
from tt_reasoning.store import load_record
from tt_reasoning.types import Guidance, Rule

CARD = "value.json"
HeadType = Literal["V", "Q"]
LossKind = Literal["bce", "mse", "categorical"]
Target = Literal["bernoulli", "expectation"]
MOST_PASSED = 1024  # candidates that a V head may be asked about: each is a token of a pass


@dataclass(frozen=True, kw_only=True)
class ValueCard:
    """How a value model was trained and is to be read.

    A ``V`` head is read behind a token, in the state that has seen it; a ``Q`` head has a column for every token of the
    vocabulary and is read in the state before it. With ``bce`` and ``mse`` an output is the logit of the target's mean,
    with ``categorical`` there are ``num_atoms`` logits of returns evenly spaced from ``low`` to ``high``. The target is
    the return R of an answer (``bernoulli``), or exp(eta (R - 1)) for the one ``eta`` that was trained
    (``expectation``). ``prompt`` is the name of the prompt behind which the answers stand, ``template`` what it says;
    ``end`` is the token that ends an answer, as the id that was trained.

    >>> ValueCard(head="V", loss="bce", prompt="steps").rule
    'bernoulli'
    """

    head: HeadType
    loss: LossKind
    prompt: str
    template: dict | None = None
    num_atoms: int = 11
    low: float = 0.0
    high: float = 1.0
    target: Target = "bernoulli"
    eta: float | None = None
    end: int | None = None

    def __post_init__(self) -> None:
        if self.loss == "categorical" and not (self.num_atoms >= 2 and self.low < self.high):
            raise ValueError(f"{self.num_atoms} atoms from {self.low:g} to {self.high:g}")
        if self.target == "expectation" and (self.loss == "categorical" or self.eta is None or not self.eta > 0):
            raise ValueError(f"target expectation with loss {self.loss} and eta {self.eta}")

    @property
    def rule(self) -> Rule:
        """The rule of guidance that this model was trained for (``rules.token_bonus``)."""
        if self.target == "expectation":
            return "expectation"
        return "categorical" if self.loss == "categorical" else "bernoulli"

    @property
    def num_values(self) -> int:
        """Outputs a token."""
        return self.num_atoms if self.loss == "categorical" else 1

    def check_rule(self, rule: Rule, eta: float) -> None:
        """Refuse guidance that this model's outputs do not allow.

        Raises:
            UserError: a rule for other outputs, or another eta than the one that the model was trained for.

        >>> ValueCard(head="V", loss="bce", prompt="steps", target="expectation", eta=5.0).check_rule("expectation", 1)
        Traceback (most recent call last):
        ...
        tt_reasoning.errors.UserError: this value model was trained for eta 5 alone (target expectation), not 1
        """
        if self.target == "expectation" and eta not in (0, self.eta):
            only = f"{self.eta:g} alone (target expectation)"
            raise UserError(f"this value model was trained for eta {only}, not {eta:g}")
        known = {self.rule} if self.target == "expectation" else {self.rule, "mean"}
        if rule not in known:
            raise UserError(
                f"rule '{rule}' does not go with this value model (loss {self.loss}, target {self.target}); "
                f"give {' or '.join(sorted(known))}"
            )


def value_card_row(card: ValueCard) -> dict[str, Any]:
    """The card as it is written to ``value.json``."""
    return asdict(card)


def read_value_card(model: str | Path) -> ValueCard:
    """The card of a value model's folder.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    path = Path(model) / CARD
    if not path.is_file():
        raise UserError(f"{model} has no {CARD}: not a value model (recipe qsharp_classifier trains one)")
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(row, dict):
            raise ValueError("no JSON object")
        return load_record(ValueCard, {name: value for name, value in row.items() if name not in ("recipe", "step")})
    except ValueError as error:
        raise UserError(f"{path}: not the card of a value model: {error}") from None


def find_other_prompt(model: str | Path, prompt: str) -> str | None:
    """Says that the answers which a value model learned from stood behind another prompt; None where it is this one."""
    trained = read_value_card(model).prompt
    return None if trained == prompt else f"--value-model {model} learned behind prompt {trained}, not {prompt}"


def check_guidance(guidance: Guidance, card: ValueCard) -> None:
    """Refuse guidance that this value model cannot give, or cannot give in reasonable time.

    Raises:
        UserError: see ``ValueCard.check_rule``; too many candidates for a V head.
    """
    card.check_rule(guidance.rule, guidance.eta)
    if card.head == "V" and not 1 <= guidance.top_k <= MOST_PASSED:
        raise UserError(
            f"guide-top-k {guidance.top_k}: the value model has a V head, through which every candidate goes by "
            f"itself; give 1 to {MOST_PASSED}"
        )


def check_request(guidance: Guidance, value_model: str | None, card: ValueCard | None) -> None:
    """Refuse a request's guidance that an engine with this value model, or none, cannot give.

    Raises:
        UserError: it names another value model; see ``check_guidance``.
    """
    if card is None or guidance.value_model != value_model:
        own = value_model or "none; give it a value_model"
        raise UserError(f"a request is to be guided by {guidance.value_model}, this engine has {own}")
    check_guidance(guidance, card)
