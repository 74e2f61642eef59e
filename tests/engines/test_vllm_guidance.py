"""Guided decoding in real vLLM on the CPU: one engine with tiny models, against whole recomputation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny import write_tiny_model
from tiny_values import draw_guided_slowly, values_alone, write_value_model
from vllm_process import left_as_it_was

from tt_reasoning.engines import vllm as vllm_engine
from tt_reasoning.engines.base import Request
from tt_reasoning.engines.tune import TuneEngine
from tt_reasoning.engines.vllm import VllmEngine
from tt_reasoning.errors import UserError
from tt_reasoning.guidance.decode import ValueGuide, load_value_model
from tt_reasoning.models import ChatTokenizer
from tt_reasoning.training import Process
from tt_reasoning.types import Guidance

ALONE = Process(0, 1, torch.device("cpu"))
PROMPTS = ["a question", "a much longer question than the first, with more words", "hm"]
END = 258


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    write_tiny_model(home / "policy", hidden_size=128)  # vLLM has no heads of 8
    for name in ("Q", "V"):
        write_value_model(home / name, hidden_size=48, head=name)
    return home


@pytest.fixture(scope="module")
def engine(home: Path) -> Iterator[VllmEngine]:
    """In blocks of 128 tokens there is room for six: requests that need a second one are put off and begun again."""
    with left_as_it_was():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(vllm_engine, "open_llm", partial(vllm_engine.open_llm, num_gpu_blocks_override=7))
            engine = VllmEngine(str(home / "policy"), dtype="fp32", max_model_len=256, value_model=str(home / "Q"))
        yield engine
        engine.close()


def draw(engine: VllmEngine, requests: list[Request]) -> list[list[int]]:
    """The tokens of completions: of random models their texts say little."""
    found: dict[int, list[int]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vllm_engine, "_to_completion", lambda output: list(output.token_ids))
        found |= engine.stream(requests)
    return [found[index] for index in range(len(requests))]


def guidance(home: Path, **options: object) -> Guidance:
    return Guidance(**{"value_model": str(home / "Q"), "eta": 8.0, "top_k": 6} | options)


def encode(home: Path, prompt: str) -> list[int]:
    return ChatTokenizer(home / "policy").encode_prompt(prompt)


def draw_slowly(home: Path, request: Request, head: str = "Q") -> list[int]:
    """Greedy guided tokens by recomputing both models whole for every token."""
    assert request.guidance is not None
    model, card = load_value_model(home / head, ALONE, torch.float32)
    guide = ValueGuide(model, card, request.guidance, ChatTokenizer(home / head).vocab_size)
    policy, prompt = TuneEngine(str(home / "policy")).model, encode(home, request.prompt)
    tokens = draw_guided_slowly(policy, guide, prompt, 0, request.max_new_tokens, temperature=0.0)
    return tokens[: tokens.index(END) + 1] if END in tokens else tokens


def mixed(home: Path, **options: object) -> list[Request]:
    """Requests of all kinds: lengths, numbers of tokens, guidances, and none."""
    kinds = [{}, {"outside": "keep", "eta": 2.0}, {"rule": "mean"}, {"top_k": 0}, {"eta": 0}, None]
    return [
        Request(
            prompt=PROMPTS[i % 3],
            max_new_tokens=(5, 24, 11, 17)[i % 4],
            seed=i,
            guidance=None if kind is None else guidance(home, **kind),
            **options,
        )
        for i, kind in enumerate(kinds * 3)
    ]


def test_greedy_guided_tokens_are_those_of_whole_recomputation(engine: VllmEngine, home: Path) -> None:
    requests = [r for r in mixed(home, temperature=0.0) if r.guidance and r.guidance.eta]
    found = draw(engine, requests)
    assert found == [draw_slowly(home, request) for request in requests]
    unguided = draw(engine, [replace(request, guidance=None) for request in requests])
    assert all(a != b for a, b in zip(found, unguided, strict=True))


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"temperature": 1.3}, {"temperature": 0.9, "top_p": 0.8}])
def test_eta_0_gives_the_unguided_completions(engine: VllmEngine, home: Path, sampling: dict[str, float]) -> None:
    plain = [replace(request, guidance=None) for request in mixed(home, **sampling)]
    with_eta_0 = [replace(request, guidance=guidance(home, eta=0)) for request in plain]
    assert engine.generate(with_eta_0) == engine.generate(plain)
    assert all(completion.divergence is None for completion in engine.generate(with_eta_0))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_requests_of_all_kinds_in_one_call_get_what_each_gets_alone(
    engine: VllmEngine, home: Path, temperature: float
) -> None:
    requests = mixed(home, temperature=temperature)
    together = draw(engine, requests)
    assert together == [draw(engine, [request])[0] for request in requests]
    assert {len(tokens) for tokens in together} >= {5, 24}


def test_requests_that_were_put_off_and_begun_again_get_the_same_tokens(engine: VllmEngine, home: Path) -> None:
    scheduler = engine._llm.llm_engine.engine_core.engine_core.scheduler
    preempted: list[str] = []
    requests = [
        Request(prompt=f"{n} " + "many words " * 10, max_new_tokens=24 + n, temperature=0.0, guidance=guidance(home))
        for n in range(6)
    ]
    with pytest.MonkeyPatch.context() as patch:
        preempt = scheduler._preempt_request
        patch.setattr(
            scheduler, "_preempt_request", lambda r, *a, **k: (preempted.append(r.request_id), preempt(r, *a, **k))[1]
        )
        found = draw(engine, requests)
    assert preempted, "there was room for all of them"
    assert found == [draw_slowly(home, request) for request in requests]


def test_guidance_comes_before_temperature_and_these_before_top_k_and_top_p(engine: VllmEngine, home: Path) -> None:
    chosen = guidance(home, eta=3.0, top_k=2)
    greedy = Request(prompt=PROMPTS[1], max_new_tokens=12, temperature=0.0, guidance=chosen)
    wanted = draw(engine, [greedy])
    for sampling in ({"top_k": 1}, {"top_p": 1e-6}):
        assert draw(engine, [replace(greedy, temperature=1.5, **sampling)]) == wanted
    # Of two candidates at temperature T the first has the chance sigmoid((z1 - z2 + b1 - b2) / T), b their bonuses.
    prompt, (model, card) = encode(home, PROMPTS[1]), load_value_model(home / "Q", ALONE, torch.float32)
    with torch.no_grad():
        logits_1V = TuneEngine(str(home / "policy")).model(torch.tensor([prompt]))[:, -1]
    guide = ValueGuide(model, card, chosen, ChatTokenizer(home / "Q").vocab_size)
    (top,) = guide.pick(logits_1V).tolist()
    p = values_alone(model, "Q", prompt, top).squeeze(-1).sigmoid().tolist()
    bonus = [math.log(1 - p_return + p_return * math.exp(3.0)) for p_return in p]
    apart, steered = (logits_1V[0, top[0]] - logits_1V[0, top[1]]).item(), bonus[0] - bonus[1]
    right, wrong = (1 / (1 + math.exp(-x)) for x in ((apart + steered) / 0.5, apart / 0.5 + steered))
    one = replace(greedy, max_new_tokens=1, temperature=0.5)
    drawn = draw(engine, [replace(one, seed=seed) for seed in range(600)])
    share = sum(tokens == [top[0]] for tokens in drawn) / 600
    assert {tuple(tokens) for tokens in drawn} == {(top[0],), (top[1],)}
    assert abs(share - right) < 3 * math.sqrt(right * (1 - right) / 600) < abs(right - wrong) / 2


@torch.inference_mode()
@pytest.mark.parametrize("head", ["V", "Q"])
def test_the_processor_follows_requests_that_move(engine: VllmEngine, home: Path, head: str) -> None:
    """By the changes that vLLM's batch tells, with both kinds of heads."""
    from vllm import SamplingParams
    from vllm.config import VllmConfig
    from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

    from tt_reasoning.guidance.vllm import GuidedDecoding, prepare_options, request_arguments

    options = prepare_options(str(home / head))
    config = VllmConfig(additional_config=options["additional_config"])
    processor = GuidedDecoding(config, torch.device("cpu"), False)
    policy = TuneEngine(str(home / "policy")).model
    guidances = [guidance(home, top_k=k, eta=eta) for k, eta in ((6, 8.0), (3, 5.0), (6, 8.0))]
    asked = [request_arguments(chosen) for chosen in guidances] + [None]
    texts = [encode(home, PROMPTS[i % 3]) for i in range(4)]
    outputs: list[list[int]] = [[] for _ in texts]
    batch: list[int] = []  # which request each row holds

    def step(update: BatchUpdate | None) -> None:
        processor.update_state(update)
        whole = [texts[i] + outputs[i] for i in batch]
        logits = torch.cat([policy(torch.tensor([tokens]))[:, -1] for tokens in whole])
        steered = processor.apply(logits.clone())
        for row, i in enumerate(batch):
            if asked[i] is None:
                assert steered[row].equal(logits[row])
            outputs[i].append(steered[row].argmax().item())

    def add(i: int, row: int) -> tuple[int, SamplingParams, list[int], list[int]]:
        return row, SamplingParams(extra_args=asked[i]), texts[i], outputs[i]

    batch = [0, 3, 1]
    step(BatchUpdate(3, removed=[], added=[add(0, 0), add(3, 1), add(1, 2)], moved=[]))
    step(None)
    batch = [1, 3, 0, 2]
    step(BatchUpdate(4, removed=[], added=[add(2, 3)], moved=[(0, 2, MoveDirectionality.SWAP)]))
    outputs[0].pop()  # a token is taken back
    step(None)
    batch = [2, 3, 0]  # the first leaves, the last takes its row
    step(BatchUpdate(3, removed=[], added=[], moved=[(3, 0, MoveDirectionality.UNIDIRECTIONAL)]))
    batch = [2, 3]
    step(BatchUpdate(2, removed=[2], added=[], moved=[]))
    batch = [2, 1]  # one that was away is back, in the row of one that leaves
    step(BatchUpdate(2, removed=[], added=[add(1, 1)], moved=[]))
    assert [len(tokens) for tokens in outputs] == [4, 5, 5, 6]
    for i, chosen in enumerate(guidances):
        request = Request(prompt=PROMPTS[i], max_new_tokens=len(outputs[i]), guidance=chosen)
        assert END not in outputs[i] and outputs[i] == draw_slowly(home, request, head)


def test_what_cannot_be_guided_is_a_users_mistake(
    engine: VllmEngine, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = str(home / "policy")

    def refused(chosen: Guidance) -> str:
        with pytest.raises(UserError) as caught:
            engine.generate([Request(prompt="hm", max_new_tokens=2, guidance=g) for g in (None, chosen)])
        return str(caught.value)

    assert "rule 'categorical' does not go with this value model" in refused(guidance(home, rule="categorical"))
    assert "guided by elsewhere, this engine has" in refused(guidance(home, value_model="elsewhere"))
    monkeypatch.setattr(engine, "value_folder", None)
    assert "this engine has none; give it a value_model" in refused(guidance(home))
    with pytest.raises(UserError, match="no value.json: not a value model"):
        VllmEngine(policy, value_model=policy)
    with pytest.raises(UserError, match="max_model_len=4096 is above the value model's 2048"):
        VllmEngine(policy, value_model=str(home / "Q"), max_model_len=4096)
    write_value_model(tmp_path / "other", head="Q")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (tmp_path / "other" / name).read_text()
        (tmp_path / "other" / name).write_text(text.replace("<|im_end|>", "<|im_stop|>"))
    with pytest.raises(UserError, match=r"token 258 is '<\|im_stop\|>' there and '<\|im_end\|>' here"):
        VllmEngine(policy, value_model=str(tmp_path / "other"))
