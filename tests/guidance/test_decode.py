"""Guided decoding: one pass a token says what whole recomputations say, and eta 0 changes nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from tiny import write_tiny_model
from tiny_values import draw_guided_slowly, values_alone, write_value_model
from torch import Tensor
from torchtune.modules import TransformerDecoder

from tt_reasoning.decoding import open_decoder
from tt_reasoning.engines.base import Request
from tt_reasoning.engines.guided import GuidedEngine
from tt_reasoning.engines.tune import TuneEngine
from tt_reasoning.errors import UserError
from tt_reasoning.guidance.decode import ValueGuide, load_value_model
from tt_reasoning.guidance.rules import steer, token_bonus
from tt_reasoning.models import ChatTokenizer
from tt_reasoning.rollout import generate, token_probs
from tt_reasoning.training import Process
from tt_reasoning.types import Guidance

PROMPTS = [list(b"a question"), list(b"a much longer question than the first"), list(b"hm")]
ALONE = Process(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy and value models of every kind, wider than it."""
    home = tmp_path_factory.mktemp("home")
    write_tiny_model(home / "policy")
    for name, card in {
        "V": {},
        "Q": {"head": "Q"},
        "V-atoms": {"loss": "categorical"},
        "Q-atoms": {"head": "Q", "loss": "categorical"},
        "V-expectation": {"target": "expectation", "eta": 4.0},
    }.items():
        write_value_model(home / name, hidden_size=48, **card)
    return home


def read_model(folder: Path) -> TransformerDecoder:
    """The policy, as the native engine holds it."""
    return TuneEngine(str(folder)).model


def open_guide(home: Path, name: str, **guidance: object) -> ValueGuide:
    """The guide of a value model, by its own rule unless told."""
    model, card = load_value_model(home / name, ALONE, torch.float32)
    wanted = {"value_model": name, "eta": 4.0, "top_k": 6, "rule": card.rule} | guidance
    return ValueGuide(model, card, Guidance(**wanted), ChatTokenizer(home / name).vocab_size)


def draw(home: Path, guide: ValueGuide | None, prompts: list[list[int]] = PROMPTS, **options: object) -> list[list]:
    """Three guided samples of every prompt."""
    first = PROMPTS.index(prompts[0])
    settings = {"seeds": [[100 * (first + i) + g for g in range(3)] for i in range(len(prompts))], "temperature": 1.0}
    settings |= {"max_new_tokens": 10, "stop_tokens": [320], "decode": ChatTokenizer(home / "policy").decode}
    return generate(read_model(home / "policy"), prompts, guide=guide, **{**settings, **options})


@torch.no_grad()
def test_candidates_in_one_pass_are_candidates_in_passes_of_their_own(home: Path) -> None:
    value, _ = load_value_model(home / "V", ALONE, torch.float32)
    candidates = [5, 77, 200, 258]
    begun = [[*prompt] for prompt in PROMPTS]
    with open_decoder(value, [prompt[:-1] for prompt in PROMPTS], [1, 1, 1], 4) as decoder:
        decoder.read_prompts(lambda hidden: hidden)
        for step in range(4):
            newest = torch.tensor([[tokens[-1]] + candidates for tokens in begun])
            found_3KA = decoder.step(newest, lambda hidden: value.value_head(value.norm(hidden[:, 1:])))
            for row, tokens in enumerate(begun):
                # A cached pass that left anything of an earlier step's candidates behind would show from step 1 on.
                wanted = values_alone_cached(value, tokens, candidates)
                torch.testing.assert_close(found_3KA[row], wanted, atol=2e-5, rtol=1e-5)
                tokens.append(candidates[step])
    assert wanted.std() > 0.1


@torch.no_grad()
def values_alone_cached(value: TransformerDecoder, tokens: list[int], candidates: list[int]) -> Tensor:
    """As ``values_alone``, on a model whose layers have caches at work: they are set aside for the pass."""
    layers = [layer.attn for layer in value.layers]
    held = [(layer.kv_cache, layer.cache_enabled) for layer in layers]
    for layer in layers:
        layer.kv_cache, layer.cache_enabled = None, False
    found = values_alone(value, "V", tokens, candidates)
    for layer, (cache, enabled) in zip(layers, held, strict=True):
        layer.kv_cache, layer.cache_enabled = cache, enabled
    return found


@pytest.mark.parametrize(
    ("name", "options", "sampling"),
    [
        ("V", {}, {"temperature": 1.0}),
        ("V", {"outside": "keep", "eta": 2.0}, {"temperature": 1.5}),
        ("V", {"rule": "mean"}, {"temperature": 0.8, "top_p": 0.9}),
        ("V", {}, {"temperature": 0.0}),
        ("Q", {}, {"temperature": 0.8, "top_p": 0.9}),
        ("Q", {"outside": "keep"}, {"temperature": 1.0, "top_k": 3}),
        ("V-atoms", {}, {"temperature": 1.0}),
        ("Q-atoms", {"eta": 9.0}, {"temperature": 1.0}),
        ("V-expectation", {}, {"temperature": 1.0}),
    ],
    ids=str,
)
def test_guided_samples_are_those_of_whole_recomputation(
    home: Path, name: str, options: dict[str, object], sampling: dict[str, float]
) -> None:
    guide = open_guide(home, name, **options)
    policy = read_model(home / "policy")
    together, plain = draw(home, guide, **sampling), draw(home, None, **sampling)
    for i, prompt in enumerate(PROMPTS):
        alone = draw_guided_slowly(policy, guide, prompt, 100 * i, 10, **sampling)
        assert together[i][0].tokens == alone
    assert together != plain


def test_all_tokens_of_a_q_head_are_asked_at_once(home: Path) -> None:
    guide, policy = open_guide(home, "Q", top_k=0), read_model(home / "policy")
    for i, group in enumerate(draw(home, guide)):
        assert group[0].tokens == draw_guided_slowly(policy, guide, PROMPTS[i], 100 * i, 10, temperature=1.0)
        assert all(token < 259 for c in group for token in c.tokens), "a row of the table that is no token"


def test_a_sample_that_is_done_leaves_both_models(home: Path) -> None:
    guide = open_guide(home, "V")
    sizes: list[int] = []
    handle = guide.model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    free = draw(home, guide, max_new_tokens=24)
    handle.remove()
    assert sizes == [1] + [9] * 24
    ends = sorted({c.tokens[3] for group in free for c in group})
    sizes.clear()
    handle = guide.model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    ended = draw(home, guide, max_new_tokens=24, stop_tokens=ends)
    handle.remove()
    assert len(sizes) < 25 or sizes[-1] < 9
    for group, whole in zip(ended, free, strict=True):
        for c, w in zip(group, whole, strict=True):
            assert c.tokens == w.tokens[: next((i + 1 for i, t in enumerate(w.tokens) if t in ends), 24)]
    for c, alone in zip(ended[1], draw(home, guide, [PROMPTS[1]], max_new_tokens=24, stop_tokens=ends)[0], strict=True):
        assert c.tokens == alone.tokens and c.divergence.whole == pytest.approx(alone.divergence.whole, abs=2e-4)


def test_eta_0_draws_the_tokens_of_the_unguided_sampler(home: Path) -> None:
    chat = [{"role": "user", "content": "2 + 2?"}]
    guidance = Guidance(value_model=str(home / "V"), eta=0)
    options = [{"temperature": 0.8, "top_p": 0.9}, {"temperature": 0.0}, {"temperature": 1.0, "top_k": 4}]
    plain = [Request(prompt=chat, seed=seed, max_new_tokens=12, **o) for o in options for seed in range(4)]
    guided = [Request(**{**vars(request), "guidance": guidance}) for request in plain]
    engine = GuidedEngine(str(home / "policy"), value_model=str(home / "V"))
    found, wanted = engine.generate(guided), TuneEngine(str(home / "policy")).generate(plain)
    assert [c.text for c in found] == [c.text for c in wanted] and engine.generate(plain) == wanted
    assert all(c.divergence.whole == 0 for c in found[:4] + found[8:])
    # What is cut off holds at most a tenth: a token adds -ln(0.9) at most.
    assert all(0 < c.divergence.sampled <= 12 * -math.log(0.9) + 1e-6 for c in found[:4])


def test_the_divergence_is_that_of_the_tokens_drawn(home: Path) -> None:
    guide, policy = open_guide(home, "V", eta=3.0), read_model(home / "policy")
    prompt, sampling = PROMPTS[0], {"temperature": 0.8, "top_p": 0.9}
    sample = draw(home, guide, **sampling)[0][0]
    whole = sampled = 0.0
    for step in range(len(sample.tokens)):
        tokens = prompt + sample.tokens[:step]
        with torch.no_grad():
            logits_1V = policy(torch.tensor([tokens]))[:, -1]
        candidates = logits_1V[:, :259].topk(6).indices
        values = values_alone(guide.model, "V", tokens, candidates[0].tolist())
        steered = steer(logits_1V, candidates, token_bonus(values[None], 3.0, "bernoulli"))
        q, p = (logits_1V / 0.8).softmax(-1)[0].double(), (steered / 0.8).softmax(-1)[0].double()
        drawn = token_probs(steered, **sampling)[0].double()
        drawn /= drawn.sum()
        whole += sum((a * (a / b).log()).item() for a, b in zip(p, q, strict=True) if a > 0)
        sampled += sum((a * (a / b).log()).item() for a, b in zip(drawn, q, strict=True) if a > 0)
    assert sample.divergence.whole == pytest.approx(whole, abs=2e-4)
    assert sample.divergence.sampled == pytest.approx(sampled, abs=2e-4)
    assert sample.divergence.sampled != pytest.approx(whole, rel=1e-3)


def test_both_models_run_in_bf16(home: Path) -> None:
    engine = GuidedEngine(str(home / "policy"), value_model=str(home / "V-atoms"), dtype="bf16")
    guidance = Guidance(value_model=str(home / "V-atoms"), eta=5, rule="categorical")
    found = engine.generate([Request(prompt="a question", max_new_tokens=6, seed=s, guidance=guidance) for s in (0, 1)])
    assert all(math.isfinite(c.divergence.whole) and c.divergence.whole > 0 for c in found)


def test_the_highest_token_is_a_candidate_where_ids_below_it_are_none(home: Path, tmp_path: Path) -> None:
    """Such as an end token behind ids that were left free."""
    for name, write in (("policy", write_tiny_model), ("value", write_value_model)):
        path = write(tmp_path / name) / "tokenizer.json"
        row = json.loads(path.read_text())
        row["model"]["vocab"]["<|im_end|>"] = row["added_tokens"][-1]["id"] = 300
        path.write_text(json.dumps(row))
    engine = GuidedEngine(str(tmp_path / "policy"), value_model=str(tmp_path / "value"))
    assert (engine.tokenizer.eos_id, engine.tokenizer.vocab_size) == (300, 259)
    guide = engine._open_guide(Guidance(value_model=str(tmp_path / "value"), eta=1.0, top_k=1))
    logits_MV = torch.zeros(1, 320).index_fill(1, torch.tensor([300]), 5.0)
    with guide.open([[1, 2]], [1], 2) as steering, torch.no_grad():
        assert steering.steer(logits_MV, None).isfinite().nonzero().tolist() == [[0, 300]]


def test_a_value_model_of_another_vocabulary_is_refused_though_it_has_as_many_tokens(
    home: Path, tmp_path: Path
) -> None:
    write_value_model(tmp_path / "other")
    text = (tmp_path / "other" / "tokenizer.json").read_text()
    (tmp_path / "other" / "tokenizer.json").write_text(text.replace("<|im_end|>", "<|im_stop|>"))
    config = (tmp_path / "other" / "tokenizer_config.json").read_text()
    (tmp_path / "other" / "tokenizer_config.json").write_text(config.replace("<|im_end|>", "<|im_stop|>"))
    with pytest.raises(UserError, match=r"token 258 is '<\|im_stop\|>' there and '<\|im_end\|>' here"):
        GuidedEngine(str(home / "policy"), value_model=str(tmp_path / "other"))


def test_a_folder_that_is_no_value_model_is_a_users_mistake(home: Path) -> None:
    with pytest.raises(UserError, match="no value.json: not a value model"):
        GuidedEngine(str(home / "policy"), value_model=str(home / "policy"))
