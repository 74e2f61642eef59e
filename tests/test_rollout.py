"""Rollouts with caches draw what the model without caches says, whatever is sampled beside them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tiny import tiny_decoder, write_tiny_model
from torchtune.modules import TransformerDecoder

from tt_reasoning.models import ChatTokenizer
from tt_reasoning.rollout import Completion, generate, sample_tokens, uniform

PROMPTS = [[10, 20, 30], [40] * 17, [50, 60, 70, 80, 90]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder: Path) -> TransformerDecoder:
    return tiny_decoder(folder)


def draw(
    model: TransformerDecoder, folder: Path, prompts: list[list[int]], **options: object
) -> list[list[Completion]]:
    tokenizer = ChatTokenizer(folder)
    defaults = {
        "max_new_tokens": 12,
        "temperature": 1.0,
        "stop_tokens": tokenizer.stop_tokens,
        "decode": tokenizer.decode,
        "seeds": [[100 * i + g for g in range(3)] for i in range(len(prompts))],
    }
    return generate(model, prompts, **(defaults | options))


def draw_slowly(
    model: TransformerDecoder,
    folder: Path,
    prompt: list[int],
    seed: int,
    *,
    max_new_tokens: int = 12,
    stop_tokens: Sequence[int] = (258,),
    stop: Sequence[str] = (),
) -> list[int]:
    """The peer: one sample, the whole row through the model again for every token, every text looked through."""
    decode, tokens = ChatTokenizer(folder).decode, []
    for step in range(max_new_tokens):
        logits_V = model(torch.tensor([prompt + tokens]))[0, -1]
        tokens.append(sample_tokens(logits_V[None], uniform(torch.tensor([seed]), step), 1.0).item())
        if tokens[-1] in stop_tokens or any(s in decode(tokens) for s in stop):
            break
    return tokens


def batch_sizes(model: TransformerDecoder, folder: Path, prompts: list[list[int]], **options: object) -> list[int]:
    """Rows of each forward pass of ``draw``, the prompts' own first."""
    sizes: list[int] = []
    handle = model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    draw(model, folder, prompts, **options)
    handle.remove()
    return sizes


def test_cached_batched_rollouts_equal_one_sample_at_a_time_without_a_cache(
    model: TransformerDecoder, folder: Path
) -> None:
    together = draw(model, folder, PROMPTS)
    for i, prompt in enumerate(PROMPTS):
        for g in range(3):
            assert together[i][g].tokens == draw_slowly(model, folder, prompt, 100 * i + g)


# Ends that some samples of the random model come upon, sooner or later, and some do not.
ENDS = {"stop_tokens": [258, 30, 31], "stop": ["Z", "y$"]}


def test_samples_that_end_otherwise_at_other_times_equal_each_alone(model: TransformerDecoder, folder: Path) -> None:
    options = {"max_new_tokens": 60, **ENDS}
    together = draw(model, folder, PROMPTS, **options)
    for i, prompt in enumerate(PROMPTS):
        for g in range(3):
            assert together[i][g] == draw(model, folder, [prompt], seeds=[[100 * i + g]], **options)[0][0]
            assert together[i][g].tokens == draw_slowly(model, folder, prompt, 100 * i + g, **options)
    flat = [completion for group in together for completion in group]
    at_token = {c.tokens[-1] in ENDS["stop_tokens"] for c in flat if c.finish_reason == "stop"}
    assert at_token == {True, False}, "no mix of stop tokens and stop strings: choose others"
    assert len({len(c.tokens) // 8 for c in flat}) > 3, "no mix of lengths: choose others"


def test_a_finished_sample_leaves_the_batch(model: TransformerDecoder, folder: Path) -> None:
    options = {"max_new_tokens": 60, "seeds": [[0, 1, 2, 3], [100, 101, 102, 103]], **ENDS}
    lengths = [len(c.tokens) for group in draw(model, folder, PROMPTS[:2], **options) for c in group]
    assert len(set(lengths)) > 4
    # A row of both prompts, then a pass a further token over the samples longer at the last look, every 8 tokens.
    # Of eight rows or fewer a single one is an eighth, so each leaves at once.
    passes = min(60, -(-max(lengths) // 8) * 8) - 1
    expected = [1] + [sum(length > drawn // 8 * 8 or drawn < 8 for length in lengths) for drawn in range(1, passes + 1)]
    assert batch_sizes(model, folder, PROMPTS[:2], **options) == expected


def test_the_longest_prompt_may_be_done_before_the_others(model: TransformerDecoder, folder: Path) -> None:
    options = {"seeds": [[0], [100], [200]], "max_new_tokens": 24}
    first, longest, last = (completion.tokens for [completion] in draw(model, folder, PROMPTS, **options))
    end = next(token for token in longest[:8] if token not in first[:16] + last[:16])
    together = draw(model, folder, PROMPTS, stop_tokens=[end], **options)
    assert len(together[1][0].tokens) <= 8 and len(PROMPTS[1]) == max(map(len, PROMPTS))
    for prompt, seed, [completion] in zip(PROMPTS, (0, 100, 200), together, strict=True):
        assert completion.tokens == draw_slowly(model, folder, prompt, seed, max_new_tokens=24, stop_tokens=[end])


def test_one_of_many_stays_until_others_are_done_too(model: TransformerDecoder, folder: Path) -> None:
    seeds = list(range(16))
    drawn = [c.tokens for c in draw(model, folder, PROMPTS[:1], seeds=[seeds], max_new_tokens=16)[0]]
    rest = {token for tokens in drawn[1:] for token in tokens}
    only_first = next(token for token in drawn[0][:8] if token not in rest)
    options = {"seeds": [seeds], "max_new_tokens": 16, "stop_tokens": [only_first]}
    assert batch_sizes(model, folder, PROMPTS[:1], **options) == [1] + [16] * 15
    few = {"seeds": [seeds[:8]], "max_new_tokens": 16, "stop_tokens": [only_first]}
    assert batch_sizes(model, folder, PROMPTS[:1], **few) == [1] + [8] * 7 + [7] * 8


# Each process samples from the sharded model; the first one's samples end at their first token.
TWO_PROCESSES = """
import json, sys
import torch
from omegaconf import OmegaConf
from tt_reasoning.models import ChatTokenizer
from tt_reasoning.rollout import generate
from tt_reasoning.training import build_model, start_process, stop_process

folder, out = sys.argv[1:]
process = start_process("cpu")
builder = OmegaConf.create({"_component_": "tt_reasoning.models.build_from_hf", "path": folder})
model = build_model(builder, folder, process, torch.float32, trainable=False)
sizes = []
model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
samples = generate(
    model,
    [[10, 20, 30]],
    [[process.rank * 4 + g for g in range(4)]],
    max_new_tokens=30,
    temperature=1.0,
    stop_tokens=list(range(320)) if process.is_main else [320],
    decode=ChatTokenizer(folder).decode,
)
with open(f"{out}/{process.rank}.json", "w") as file:
    json.dump({"sizes": sizes, "tokens": [c.tokens for c in samples[0]]}, file)
stop_process()
"""


def test_a_process_that_is_done_stays_for_the_others(model: TransformerDecoder, folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "sample.py"
    script.write_text(TWO_PROCESSES)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    run = subprocess.run(
        [*launcher, str(script), str(folder), str(tmp_path)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    done, working = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert done["sizes"] == [1] + [4] * 7 + [1] * 22
    assert working["sizes"] == [1] + [4] * 29
    for rank, found in enumerate((done, working)):
        for g in range(4):
            alone = draw_slowly(model, folder, PROMPTS[0], rank * 4 + g, max_new_tokens=30, stop_tokens=[320])
            assert found["tokens"][g] == (alone[:1] if found is done else alone)


def test_a_sample_does_not_depend_on_its_batch(model: TransformerDecoder, folder: Path) -> None:
    together = draw(model, folder, PROMPTS)
    alone = draw(model, folder, PROMPTS[1:2], seeds=[[100, 101, 102]])
    assert alone[0] == together[1]
    assert len({tuple(c.tokens) for c in together[1]}) == 3


def test_a_stop_token_ends_a_completion_and_is_kept(model: TransformerDecoder, folder: Path) -> None:
    first = draw(model, folder, PROMPTS[:1])[0][0]
    assert first.finish_reason == "length" and len(first.tokens) == 12
    stopped = draw(model, folder, PROMPTS[:1], stop_tokens=[first.tokens[4]])[0][0]
    end = first.tokens.index(first.tokens[4]) + 1
    assert stopped.tokens == first.tokens[:end] and stopped.finish_reason == "stop"


def test_a_stop_string_ends_a_completion_at_its_first_token_that_completes_it(
    model: TransformerDecoder, folder: Path
) -> None:
    first = draw(model, folder, [list(b"count: ")], max_new_tokens=40)[0][0]
    readable = next(c for c in first.text if c.isascii() and c.isprintable())
    stopped = draw(model, folder, [list(b"count: ")], max_new_tokens=40, stop=[readable])[0][0]
    assert stopped.finish_reason == "stop"
    assert stopped.text == first.text[: first.text.index(readable) + 1]
    assert stopped.tokens == first.tokens[: len(stopped.tokens)]


def test_the_model_is_left_as_it_was(model: TransformerDecoder, folder: Path) -> None:
    before = model(torch.tensor([PROMPTS[0]]))
    model.train()
    draw(model, folder, PROMPTS)
    assert model.training and not model.caches_are_enabled()
    torch.testing.assert_close(model(torch.tensor([PROMPTS[0]])), before)


def test_uniform_numbers_are_uniform_and_differ_by_seed_and_position() -> None:
    values = torch.stack([uniform(torch.arange(2000), position) for position in range(50)])
    assert values.min() >= 0 and values.max() < 1
    assert abs(values.mean() - 0.5) < 0.005
    assert abs(values.var() - 1 / 12) < 0.002
    assert values.unique().numel() == values.numel()
    correlation = torch.corrcoef(torch.stack([values[:-1].flatten(), values[1:].flatten()]))[0, 1]
    assert abs(correlation) < 0.02


def test_samples_follow_the_distribution() -> None:
    logits_NV = torch.tensor([0.5, 0.3, 0.2]).log().expand(20_000, 3)
    counts = torch.bincount(sample_tokens(logits_NV, uniform(torch.arange(20_000), 0), 1.0), minlength=3)
    torch.testing.assert_close(counts / 20_000, torch.tensor([0.5, 0.3, 0.2]), atol=0.015, rtol=0)


@pytest.mark.parametrize(
    ("options", "kept"), [({"top_k": 2}, {0, 1}), ({"top_p": 0.5}, {0}), ({"top_p": 0.51}, {0, 1})], ids=str
)
def test_top_k_and_top_p_keep_the_likeliest(options: dict[str, float], kept: set[int]) -> None:
    logits_NV = torch.tensor([0.5, 0.3, 0.2]).log().expand(2000, 3)
    assert set(sample_tokens(logits_NV, uniform(torch.arange(2000), 0), 1.0, **options).tolist()) == kept


def test_temperature_zero_is_greedy() -> None:
    assert sample_tokens(torch.tensor([[0.1, 3.0, 0.2]]), torch.tensor([0.99]), 0).tolist() == [1]
