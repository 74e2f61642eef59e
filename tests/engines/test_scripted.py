"""The scripted engine, and the registry that opens engines by name."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tt_reasoning.engines import check_engine, open_engine
from tt_reasoning.engines.base import Completion, Request
from tt_reasoning.engines.options import EngineOptions
from tt_reasoning.engines.scripted import ScriptedEngine
from tt_reasoning.errors import UserError
from tt_reasoning.prompts import get_prompt

SCRIPT = {"answers": {"2 + 2?": ["four", "five"]}, "fallback": ["seed {seed}"]}


def write_script(folder: Path, script: object) -> str:
    path = folder / "script.json"
    path.write_text(script if isinstance(script, str) else json.dumps(script))
    return str(path)


def texts(engine: ScriptedEngine, *requests: Request) -> list[str]:
    return [completion.text for completion in engine.generate(requests)]


def test_a_file_answers_chats_and_plain_prompts_by_seed(tmp_path: Path) -> None:
    engine = open_engine("scripted", write_script(tmp_path, SCRIPT))
    chat = get_prompt("answer").render("2 + 2?")
    asked = [Request(prompt=prompt, seed=seed) for prompt in (chat, "2 + 2?") for seed in (0, 1, 2)]
    assert texts(engine, *asked) == ["four", "five", "four"] * 2
    assert texts(engine, Request(prompt="3 + 3?", seed=41)) == ["seed 41"]


def test_the_first_stop_string_ends_a_text_and_stays_in_it() -> None:
    engine = ScriptedEngine(lambda request: "a </answer> b <end> c")
    assert texts(engine, Request(prompt="", stop=("<end>", "</answer>"))) == ["a </answer>"]


def test_a_text_is_cut_behind_its_last_token() -> None:
    engine = ScriptedEngine(lambda request: " one two\nthree ")
    assert engine.generate([Request(prompt="", max_new_tokens=n) for n in (2, 3)]) == [
        Completion(text=" one two\n", num_tokens=2, finish_reason="length"),
        Completion(text=" one two\nthree ", num_tokens=3, finish_reason="stop"),
    ]


def test_an_answer_takes_its_delay(tmp_path: Path) -> None:
    engine = ScriptedEngine(write_script(tmp_path, {**SCRIPT, "delay_s": 0.05}))
    began = time.monotonic()
    engine.generate([Request(prompt="")] * 2)
    assert time.monotonic() - began >= 0.1


def test_a_question_without_an_answer_is_an_error() -> None:
    with pytest.raises(UserError, match="no answer to '3 \\+ 3\\?' and no fallback"):
        ScriptedEngine({"answers": {}}).generate([Request(prompt="3 + 3?")])


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("{", "script.json: not JSON"),
        ("[]", "not a JSON object"),
        ('{"answer": {}}', "unknown key .* 'answer': did you mean 'answers'"),
    ],
)
def test_a_bad_script_is_an_error_that_names_the_file(tmp_path: Path, script: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ScriptedEngine(write_script(tmp_path, script))


def test_an_unknown_option_is_refused_with_the_nearest(tmp_path: Path) -> None:
    script = write_script(tmp_path, SCRIPT)
    with pytest.raises(UserError, match="unknown option of engine scripted 'delay': did you mean 'delay_s'"):
        open_engine("scripted", script, delay=1)
    check_engine("scripted", script, delay_s=0.1, max_model_len=None)


def test_every_registered_engine_is_found(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    check_engine("vllm", str(tmp_path), tensor_parallel_size=1)
    check_engine("tune", str(tmp_path), dtype="bf16")


def test_a_chunk_is_as_large_as_suits_the_engine_and_several_copies_share_it() -> None:
    one = EngineOptions().default_chunk_size(4)
    assert one * 4 in (4096, 16_384)
    assert EngineOptions(data_parallel_size=4).default_chunk_size(4) == one // 4
    assert EngineOptions(name="ray", num_workers=2).default_chunk_size(8) == one // 4
    assert EngineOptions(name="openai").default_chunk_size(4) == 64
    assert EngineOptions().default_chunk_size(100_000) == 1


def test_a_model_that_is_no_model_is_refused(tmp_path: Path) -> None:
    file = write_script(tmp_path, SCRIPT)
    for model, message in [
        (str(tmp_path / "nothing"), "no such model folder"),
        ("nothing", "no such model folder"),
        ("tests/nothing", "no such model folder"),
        (str(tmp_path), "has no config.json"),
        (file, "is a file"),
    ]:
        with pytest.raises(UserError, match=message):
            check_engine("vllm", model)
    with pytest.raises(UserError, match="no such file"):
        check_engine("scripted", str(tmp_path / "nothing.json"))
    check_engine("vllm", "organisation/model-on-the-hub")
