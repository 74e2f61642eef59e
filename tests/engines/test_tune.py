"""The native engine: batches change nothing, limits are errors, order is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import write_tiny_model

from tt_reasoning.engines.base import Request
from tt_reasoning.engines.tune import TuneEngine
from tt_reasoning.errors import UserError
from tt_reasoning.prompts import get_prompt

CHAT = [{"role": "user", "content": "2 + 2?"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


def requests(num: int) -> list[Request]:
    prompts = [CHAT, "plain text", [{"role": "user", "content": "a longer question " * 3}]]
    return [Request(prompt=prompts[i % 3], max_new_tokens=10, seed=i, temperature=1.0) for i in range(num)]


def test_the_batch_size_changes_no_completion(folder: Path) -> None:
    one_at_a_time = TuneEngine(str(folder), batch_size=1).generate(requests(9))
    together = TuneEngine(str(folder), batch_size=64).generate(requests(9))
    assert together == one_at_a_time
    assert len({completion.text for completion in together}) > 6


def test_mixed_settings_come_back_in_the_order_of_the_requests(folder: Path) -> None:
    engine = TuneEngine(str(folder))
    mixed = [Request(prompt="x", max_new_tokens=n, seed=n, temperature=t) for n in (3, 5, 4) for t in (0.0, 1.0)]
    found = engine.generate(mixed)
    assert [c.num_tokens for c in found if c.finish_reason == "length"] == [
        r.max_new_tokens for r, c in zip(mixed, found, strict=True) if c.finish_reason == "length"
    ]
    assert found == [engine.generate([request])[0] for request in mixed]


def test_a_begun_answer_is_continued_as_it_would_have_gone_on(smollm2: Path) -> None:
    engine, prompt = TuneEngine(str(smollm2)), get_prompt("answer")
    question = "Tom has 3 apples and buys 4 more. How many apples has he?"
    chat, greedy = prompt.render(question), {"temperature": 0.0, "max_new_tokens": 24}
    whole = engine.generate([Request(prompt=chat, **greedy)])[0].text
    begun = " ".join(whole.split(" ")[:4])  # a word's token begins with its space
    rest = engine.generate([Request(prompt=prompt.render(question, begun), **greedy)])[0].text
    assert 0 < len(begun) < len(whole) and (begun + rest).startswith(whole)


def test_a_prompt_without_room_for_its_completion_fails_alone(folder: Path) -> None:
    engine = TuneEngine(str(folder), max_model_len=20)
    long, short = Request(prompt="x" * 18, max_new_tokens=10), Request(prompt="x", max_new_tokens=10)
    found = engine.generate([long, short])
    assert found == [engine.refuse(long), *engine.generate([short])]
    assert found[0].reason == "too_long" and "a prompt of 18 tokens and 10 new ones" in found[0].detail
    assert engine.refuse(short) is None


def test_a_missing_folder_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such model folder"):
        TuneEngine(str(tmp_path / "nowhere"))
