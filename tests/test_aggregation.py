"""Models that read proposed answers: what they are shown, and that one is loaded once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tt_reasoning.aggregation import cut_answer, describe_weights, keep_open, trained_prompt
from tt_reasoning.engines.base import ServedEngine
from tt_reasoning.engines.scripted import ScriptedEngine
from tt_reasoning.errors import UserError
from tt_reasoning.generation import generate_answers
from tt_reasoning.prompts import get_prompt
from tt_reasoning.types import Problem, Sampling


class CountedEngine(ScriptedEngine):
    closed = 0

    def close(self) -> None:
        self.closed += 1


def test_one_engine_serves_several_calls_and_is_closed_at_the_end(tmp_path: Path) -> None:
    opened = []

    def start() -> CountedEngine:
        opened.append(CountedEngine({"fallback": ["4"]}))
        return opened[-1]

    problem = Problem(source="demo", split="test", question="2 + 2?", reference="4")
    with keep_open(start) as start_engine:
        assert opened == []
        for name in ("a.jsonl", "b.jsonl"):
            sampling = Sampling(model="script", prompt="answer")
            counts = generate_answers(
                [problem], sampling, 1, start_engine, get_prompt("answer"), tmp_path, file_name=name
            )
            assert counts.written == 1 and opened[0].closed == 0
    assert [engine.closed for engine in opened] == [1]


def test_an_engine_kept_open_is_still_seen_as_what_it_is() -> None:
    class Served(CountedEngine):
        def last_usage(self) -> None: ...

    with keep_open(lambda: Served({"fallback": ["4"]})) as start_engine:
        assert isinstance(start_engine(), ServedEngine)


@pytest.mark.parametrize(
    ("text", "share", "shown"),
    [("abcdefghij", 0.3, "abcdefg"), ("  abcd \n", 0.5, "ab"), ("abc", 0.5, "ab"), ("abc", 0.9, ""), ("", 0.5, "")],
)
def test_the_share_of_the_end_is_cut_and_the_rest_stays(text: str, share: float, shown: str) -> None:
    assert cut_answer(text, share) == shown


def test_a_folder_without_a_card_names_no_prompt_and_one_with_an_unknown_prompt_is_refused(tmp_path: Path) -> None:
    assert trained_prompt(tmp_path) is None
    (tmp_path / "aggregator.json").write_text('{"prompt": "ssa_nothink"}')
    with pytest.raises(UserError, match="did you mean 'ssa_no_think'"):
        trained_prompt(tmp_path)


def test_weights_are_told_apart_by_their_bytes_and_unknown_where_they_are_not_here(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"one")
    before = describe_weights(tmp_path)
    assert describe_weights(str(tmp_path)) == before
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert describe_weights(tmp_path) != before
    assert describe_weights("org/model") is None
