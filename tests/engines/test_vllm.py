"""Real vLLM on the real SmolLM2-135M: repeatable to the token, through kills too."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from vllm_process import left_as_it_was

from tt_reasoning.engines import open_engine
from tt_reasoning.engines.base import Request
from tt_reasoning.engines.vllm import VllmEngine
from tt_reasoning.errors import UserError
from tt_reasoning.generation import generate_answers
from tt_reasoning.problems import load_problems
from tt_reasoning.prompts import get_prompt
from tt_reasoning.store import read_records
from tt_reasoning.types import Answer, Sampling

TOOL = Path(__file__).parents[2] / "tools" / "generate_answers.py"
CHAT = get_prompt("answer").render("Tom has 3 apples and buys 4 more. How many apples has he?")


@pytest.fixture(scope="module")
def engine(smollm2: Path) -> Iterator[VllmEngine]:
    with left_as_it_was():
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
        engine = open_engine("vllm", str(smollm2), max_model_len=512)
        assert isinstance(engine, VllmEngine)
        yield engine
        engine.close()


def sample(engine: VllmEngine, *seeds: int, **options: object) -> list[str]:
    given = {"prompt": CHAT, "max_new_tokens": 16} | options
    return [c.text for c in engine.generate([Request(seed=seed, **given) for seed in seeds])]


def test_the_same_requests_give_the_same_completions_and_other_seeds_others(engine: VllmEngine) -> None:
    first = sample(engine, 1, 2, 3, 4, temperature=1.0)
    assert sample(engine, 1, 2, 3, 4, temperature=1.0) == first
    assert len(set(first)) > 1
    assert sample(engine, 5, 6, 7, 8, temperature=1.0) != first


def test_temperature_zero_is_greedy(engine: VllmEngine) -> None:
    assert len(set(sample(engine, 1, 2, temperature=0.0))) == 1
    # A prompt with one likeliest token at a time: among equal bf16 logits top_k=1 may draw either.
    counting = {"prompt": "one, two, three, four,", "max_new_tokens": 4}
    assert sample(engine, 1, temperature=1.0, top_k=1, **counting) == sample(engine, 2, temperature=0.0, **counting)


def test_a_chat_is_what_its_rendered_text_is(engine: VllmEngine, smollm2: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    text = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    assert sample(engine, 0, temperature=0.0, prompt=text) == sample(engine, 0, temperature=0.0)


def test_a_plain_prompt_is_continued(engine: VllmEngine) -> None:
    text = sample(engine, 0, prompt="one, two, three, four,", temperature=0.0, max_new_tokens=4)[0]
    assert text.startswith(" five, six")


def test_a_begun_answer_is_continued_as_it_would_have_gone_on(engine: VllmEngine) -> None:
    prompt = get_prompt("answer")
    for render in (prompt.render, get_prompt("few_shot").render):
        question = "Tom has 3 apples and buys 4 more. How many apples has he?"
        greedy = {"temperature": 0.0, "max_new_tokens": 24}
        whole = sample(engine, 0, prompt=render(question), **greedy)[0]
        begun = " ".join(whole.split(" ")[:4])  # a word's token begins with its space
        rest = sample(engine, 0, prompt=render(question, begun), **greedy)[0]
        assert 0 < len(begun) < len(whole) and (begun + rest).startswith(whole)


def test_mixed_prompts_and_lengths_come_back_in_order(engine: VllmEngine) -> None:
    lengths = [3, 1, 4, 2]
    prompts = [CHAT, "one, two,", CHAT, "a b c d"]
    requests = [Request(prompt=p, max_new_tokens=n) for p, n in zip(prompts, lengths, strict=True)]
    found = engine.generate(requests)
    assert [(c.num_tokens, c.finish_reason) for c in found] == [(n, "length") for n in lengths]
    assert found[1].text == engine.generate(requests[1:2])[0].text


def test_a_stop_string_ends_a_completion_and_stays_in_it(engine: VllmEngine) -> None:
    request = Request(prompt="one, two, three, four,", temperature=0.0, max_new_tokens=16, stop=("six",))
    completion = engine.generate([request])[0]
    assert completion.text == " five, six" and completion.finish_reason == "stop"


def test_a_prompt_without_room_for_its_completion_fails_alone(engine: VllmEngine) -> None:
    long = Request(prompt="word " * 500, max_new_tokens=16)
    failure = engine.refuse(long)
    assert failure is not None and (failure.reason, failure.general) == ("too_long", False)
    assert re.match(r"a prompt of 50\d tokens and 16 new ones are above the limit of 512; raise --max-", failure.detail)
    short = Request(prompt="one, two,", max_new_tokens=2)
    assert engine.refuse(short) is None
    found = engine.generate([short, long, short])
    assert found[1] == failure and [found[0].num_tokens, found[2].num_tokens] == [2, 2]
    assert len(sample(engine, 0, prompt=long.prompt, max_new_tokens=1)) == 1
    hopeless = engine.refuse(replace(short, max_new_tokens=512))
    assert hopeless is not None and hopeless.general


def test_completions_are_told_as_they_are_done_and_leaving_early_leaves_nothing_behind(engine: VllmEngine) -> None:
    lengths = [24, 2, 8]
    requests = [Request(prompt="one, two, three, four,", temperature=0.0, max_new_tokens=n) for n in lengths]
    found = list(engine.stream(requests))
    assert [index for index, _ in found] == [1, 2, 0]
    assert [completion for _, completion in sorted(found, key=lambda pair: pair[0])] == engine.generate(requests)
    assert list(engine.stream(requests)) == found
    early = engine.stream(requests)
    assert next(early) == found[0]
    early.close()
    assert list(engine.stream(requests)) == found


def test_seeded_prompts_of_more_tokens_than_one_step_takes_are_answered(engine: VllmEngine) -> None:
    """A prefill that is split over two steps kills a CPU's engine when its request has a seed."""
    requests = [Request(prompt=f"{n} " + "word " * 480, seed=n, max_new_tokens=2) for n in range(18)]
    assert [completion.num_tokens for completion in engine.generate(requests)] == [2] * 18


def test_an_unknown_dtype_is_refused_with_the_nearest(smollm2: Path) -> None:
    with pytest.raises(UserError, match="unknown dtype 'bf61': did you mean 'bf16'"):
        VllmEngine(str(smollm2), dtype="bf61")


def test_a_killed_run_of_the_tool_goes_on_to_the_answers_of_this_process(
    engine: VllmEngine, smollm2: Path, tmp_path: Path
) -> None:
    """One run is killed behind its first chunk and resumed; the other is never killed, and in this process."""
    out = tmp_path / "killed"
    command = [
        sys.executable, str(TOOL), "--engine", "vllm", "--model", str(smollm2), "--dataset", "quickstart",
        "--split", "test", "--limit", "4", "--num-samples", "2", "--chunk-size", "1", "--max-new-tokens", "24",
        "--max-model-len", "512", "--temperature", "1.0", "--seed", "1", "--out", str(out),
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    path = out / "answers.jsonl"
    deadline = time.monotonic() + 300
    while process.poll() is None and not (path.exists() and path.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 1 <= len(list(read_records(path, Answer))) < 8
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr

    answers = list(read_records(path, Answer))
    problems = load_problems("quickstart", "test", limit=4)
    whole = tmp_path / "whole"
    whole.mkdir()
    lasting = StayOpen(engine)
    generate_answers(problems, answers[0].sampling, 2, lambda: lasting, get_prompt("answer"), whole, 1)
    assert path.read_bytes() == (whole / "answers.jsonl").read_bytes()


def test_a_chunk_that_a_kill_left_half_written_ends_with_the_same_file(engine: VllmEngine, tmp_path: Path) -> None:
    problems = load_problems("quickstart", "test", limit=3)
    sampling = Sampling(model="smollm2", prompt="few_shot", temperature=1.0, max_new_tokens=24)
    path = tmp_path / "answers.jsonl"

    def generate() -> bytes:
        generate_answers(problems, sampling, 3, lambda: StayOpen(engine), get_prompt("few_shot"), tmp_path, 3)
        return path.read_bytes()

    whole = generate()
    path.write_bytes(whole[: len(whole) // 2])
    assert generate() == whole
    order = [(answer.problem_id, answer.sample_index) for answer in read_records(path, Answer)]
    asked = [(problem.id, index) for problem in problems for index in range(3)]
    assert set(order) == set(asked) and order != asked  # as they were done


class StayOpen:
    """The shared engine, left open by the run that uses it."""

    def __init__(self, engine: VllmEngine) -> None:
        self.generate, self.stream = engine.generate, engine.stream

    def close(self) -> None:
        pass
