"""The card of a value model: what is no card is told in one line, whichever way it is damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import write_tiny_model
from tiny_values import write_value_model

from tt_reasoning.engines.guided import GuidedEngine
from tt_reasoning.errors import UserError
from tt_reasoning.guidance import ValueCard, read_value_card, value_card_row

CARD = value_card_row(ValueCard(head="V", loss="bce", prompt="steps"))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "Expecting value"),
        ("[]", "no JSON object"),
        (CARD | {"head": "W"}, "head='W' is none of V, Q"),
        (CARD | {"target": "expectation"}, "target expectation with loss bce and eta None"),
        (CARD | {"target": "expectation", "eta": -1.0}, "target expectation with loss bce and eta -1.0"),
        (
            CARD | {"target": "expectation", "eta": 2.0, "loss": "categorical"},
            "target expectation with loss categorical",
        ),
        (CARD | {"loss": "categorical", "num_atoms": 1}, "1 atoms from 0 to 1"),
        (CARD | {"loss": "categorical", "low": 1.0}, "11 atoms from 1 to 1"),
    ],
    ids=str,
)
def test_what_is_no_card_is_a_users_mistake(tmp_path: Path, content: dict | str, told: str) -> None:
    (tmp_path / "value.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError) as error:
        read_value_card(tmp_path)
    assert "value.json: not the card of a value model: " in str(error.value) and told in str(error.value)


def test_a_card_is_read_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "value.json").write_text(json.dumps(CARD | {"recipe": "qsharp_classifier", "step": 4}))
    assert value_card_row(read_value_card(tmp_path)) == CARD


def test_a_value_model_that_knows_another_end_than_the_policy_is_refused(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "policy")  # its answers end at token 258
    write_value_model(tmp_path / "other", end=256)
    with pytest.raises(UserError, match="end at token 256, the policy's end at 258; train it with tokenizer.path"):
        GuidedEngine.check(str(tmp_path / "policy"), value_model=str(tmp_path / "other"))
    write_value_model(tmp_path / "same", end=258)
    GuidedEngine.check(str(tmp_path / "policy"), value_model=str(tmp_path / "same"))
