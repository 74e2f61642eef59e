"""Published judges' conventions against transformers, each written out here as its model card has it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_judges import qwen_head, write_math_shepherd, write_qwen_prm, write_rlhflow
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Model

from tt_reasoning.errors import UserError
from tt_reasoning.judges.forms import find_form
from tt_reasoning.judges.native import NativeJudge

QUESTION = "Ann has 3 apples and buys 4. How many has she?"
ANSWERS = [["Step 1: 3 + 4 = 7", "Step 2: so 7 - 1", "Step 3: 7 it is"], ["3 + 4 - 1", "so it is 6 + 0"], ["7"]]


@torch.inference_mode()
def shepherd_peer(folder: Path) -> list[list[float]]:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    labels, tag = [tokenizer.encode("+")[-1], tokenizer.encode("-")[-1]], tokenizer.encode("ки")[-1]
    scores = []
    for steps in ANSWERS:
        ids = torch.tensor([tokenizer.encode(QUESTION + " " + "\n".join(f"{step} ки" for step in steps))])
        probabilities = model(ids).logits[:, :, labels].softmax(-1)[:, :, 0]
        scores.append(probabilities[ids == tag].tolist())
    return scores


@torch.inference_mode()
def rlhflow_peer(folder: Path) -> list[list[float]]:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    labels = [tokenizer.encode("+")[-1], tokenizer.encode("-")[-1]]
    scores = []
    for steps in ANSWERS:
        chat, of_answer = [], []
        for number, step in enumerate(steps):
            chat.append({"role": "user", "content": step if number else f"{QUESTION} {step}"})
            chat.append({"role": "assistant", "content": "+"})
            ids = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=False)
            before = -1 - len(tokenizer.encode("+<|im_end|>\n"))  # as -3 is with Llama's template
            of_answer.append(float(model(ids).logits[0, before, labels].softmax(-1)[0]))
        scores.append(of_answer)
    return scores


@torch.inference_mode()
def qwen_peer(folder: Path) -> list[list[float]]:
    model, tokenizer = Qwen2Model.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    head = qwen_head(model.config.hidden_size)
    weights = load_file(folder / "model.safetensors")
    head.load_state_dict({name[6:]: weight for name, weight in weights.items() if name.startswith("score.")})
    scores = []
    for steps in ANSWERS:
        chat = [
            {"role": "system", "content": "Please reason step by step, and put your final answer within \\boxed{}."},
            {"role": "user", "content": QUESTION},
            {"role": "assistant", "content": "<extra_0>".join(steps) + "<extra_0>"},
        ]
        ids = tokenizer.encode(tokenizer.apply_chat_template(chat, tokenize=False), return_tensors="pt")
        probabilities = head(model(ids).last_hidden_state).softmax(-1)[:, :, 1]
        scores.append(probabilities[ids == tokenizer.encode("<extra_0>")[0]].tolist())
    return scores


@pytest.mark.parametrize(
    ("write", "peer"),
    [(write_math_shepherd, shepherd_peer), (write_rlhflow, rlhflow_peer), (write_qwen_prm, qwen_peer)],
    ids=["math-shepherd", "rlhflow", "qwen-prm"],
)
def test_scores_are_those_of_transformers(
    write: Callable[[Path], Path], peer: Callable[[Path], list[list[float]]], tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    folder = write(tmp_path / "judge")
    form, tokenizer = find_form(folder, request.node.callspec.id)
    judge = NativeJudge(str(folder), form, device="cpu")
    texts = ["\n".join(steps) for steps in ANSWERS]
    layouts = [form.format.lay_out(tokenizer, QUESTION, text, form.spans(text, "lines")) for text in texts]
    (found,) = judge.score([layouts])
    expected = peer(folder)
    assert [len(scores) for scores in found] == [len(scores) for scores in expected] == [3, 2, 1]
    every = [score for scores in expected for score in scores]
    assert max(every) - min(every) > 0.01
    assert [score for scores in found for score in scores] == pytest.approx(every, abs=1e-5)


def test_a_head_that_is_not_in_the_checkpoint_is_named(tmp_path: Path) -> None:
    folder = write_rlhflow(tmp_path / "judge")
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["Qwen2ForProcessRewardModel"], "model_type": "qwen2", "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    write_qwen_prm(tmp_path / "other")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tmp_path / "other" / name).read_bytes())
    form, _ = find_form(folder)
    with pytest.raises(UserError, match="does not fit the model of the config: .* is missing there"):
        NativeJudge(str(folder), form, device="cpu")
