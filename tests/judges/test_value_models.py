"""A value model of Q# as a judge of whole answers (Q#-RM): what it expects at the end token behind the answer."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from loaded_tools import load_tool
from safetensors.torch import load_file
from set_folders import answers_of, problem, write_folder
from tiny import tiny_decoder
from tiny_judges import write_card_judge
from tiny_values import write_value_model

from tt_reasoning import store
from tt_reasoning.errors import UserError
from tt_reasoning.judges.curves import lay_out_tokens
from tt_reasoning.judges.forms import JudgeForm, find_form
from tt_reasoning.judges.native import NativeJudge
from tt_reasoning.judges.ranking import Reader
from tt_reasoning.judges.vllm import check_served
from tt_reasoning.models.tokenizer import ChatTokenizer
from tt_reasoning.models.value_head import saved_head
from tt_reasoning.prompts import PROMPTS
from tt_reasoning.scores import read_scores

QUESTION = "What is 2 + 2?"
TEXTS = ["2 + 2 = 4\nso 4 ", "4", "\nno é"]
CARDS = [
    {"head": "V", "loss": "bce"},
    {"head": "V", "loss": "mse", "prompt": "answer"},
    {"head": "V", "loss": "categorical"},
    {"head": "V", "loss": "categorical", "num_atoms": 3, "low": -0.25, "high": 1.5},
    {"head": "V", "loss": "bce", "target": "expectation", "eta": 5.0},
    {"head": "Q", "loss": "bce", "prompt": "answer"},
    {"head": "Q", "loss": "categorical", "num_atoms": 4},
]


def score(folder: Path, form: JudgeForm, tokenizer: ChatTokenizer) -> list[float]:
    layouts = [form.format.lay_out(tokenizer, QUESTION, text, []) for text in TEXTS]
    judge = NativeJudge(str(folder), form, device="cpu")
    return [value for (value,) in judge.score([layouts])[0]]


@torch.inference_mode()
def by_hand(folder: Path, card: dict) -> list[float]:
    """A pass of its own over every answer with the end token behind it; the head and its mean written out."""
    tokenizer, model = ChatTokenizer(folder), tiny_decoder(folder, seed=1).eval()
    head = saved_head(folder)(32)
    head.load_state_dict(load_file(folder / "value_head" / "model.safetensors"))
    found = []
    for text in TEXTS:
        rendered = PROMPTS[card.get("prompt", "steps")].render(QUESTION, begun=text)
        tokens = torch.tensor([[*tokenizer.encode_prompt(rendered), tokenizer.eos_id]])
        model.unembed = lambda hidden: model.norm(hidden)
        hidden_TD = model(tokens)[0]
        if card["head"] == "V":
            values_A = head(hidden_TD[-1])
        else:
            values_A = head(hidden_TD[-2]).unflatten(-1, (-1,))[tokenizer.eos_id]
        if card["loss"] != "categorical":
            value = 1 / (1 + float(torch.exp(-values_A[0])))
            if card.get("target") == "expectation":  # p + (1 - p) e^-eta
                value = max(0.0, (value - math.exp(-card["eta"])) / (1 - math.exp(-card["eta"])))
            found.append(value)
            continue
        low, high, atoms = card.get("low", 0.0), card.get("high", 1.0), card.get("num_atoms", 5)
        returns = [low + (high - low) * i / (atoms - 1) for i in range(atoms)]
        shares = (values_A.exp() / values_A.exp().sum()).tolist()
        found.append(min(1.0, max(0.0, sum(r * share for r, share in zip(returns, shares, strict=True)))))
    return found


@pytest.mark.parametrize("card", CARDS, ids=lambda card: "-".join(map(str, card.values())))
def test_the_score_is_the_mean_return_at_the_end_token(tmp_path: Path, card: dict) -> None:
    folder = write_value_model(tmp_path / "value", **card)
    form, tokenizer = find_form(folder)
    found = score(folder, form, tokenizer)
    assert found == pytest.approx(by_hand(folder, card), abs=1e-5)
    assert len(set(found)) > 1 and all(0 <= value <= 1 for value in found)


@pytest.mark.parametrize("prompt", ["steps", "answer"])
@pytest.mark.parametrize("head", ["V", "Q"])
def test_the_layout_is_the_prompt_with_the_answer_and_the_end_token(tmp_path: Path, prompt: str, head: str) -> None:
    form, tokenizer = find_form(write_value_model(tmp_path / "value", prompt=prompt, head=head))
    asked = tokenizer.encode_prompt(PROMPTS[prompt].render(QUESTION))
    for text in TEXTS:
        layout = form.format.lay_out(tokenizer, QUESTION, text, [])
        assert layout.tokens == [*asked, *tokenizer.encode(text), tokenizer.eos_id]
        assert layout.start == len(asked)
        assert layout.read == [len(layout.tokens) - 1]
    assert form.outcome and form.head == "value" and form.spans(" 4\n", "auto") == [(1, 2)]


def test_every_token_of_an_answer_can_be_drawn(tmp_path: Path) -> None:
    form, tokenizer = find_form(write_value_model(tmp_path / "value", prompt="answer"))
    layout, places = lay_out_tokens(form.format, tokenizer, QUESTION, "2 é ")
    asked = len(tokenizer.encode_prompt(PROMPTS["answer"].render(QUESTION)))
    assert layout.read == list(range(asked, asked + 5))  # é has two bytes; the end token is no text
    assert places == [(0, 1), (1, 2), (2, 3), (2, 3), (3, 4)]


def test_a_prompt_that_was_a_file_is_read_from_the_card(tmp_path: Path) -> None:
    template = {"user": "Q: {question} A: ", "system": None, "chat": False, "prefill": "<a>", "stop": []}
    form, tokenizer = find_form(write_value_model(tmp_path / "value", prompt="custom@1", template=template))
    layout = form.format.lay_out(tokenizer, "2?", "4", [])
    assert tokenizer.decode(layout.tokens, skip_special_tokens=False) == "Q: 2? A: <a>4<|im_end|>"
    with pytest.raises(UserError, match="unknown prompt 'custom@1'"):
        find_form(write_value_model(tmp_path / "other", prompt="custom@1"))


def test_a_card_of_another_head_than_the_weights_is_refused(tmp_path: Path) -> None:
    folder = write_value_model(tmp_path / "value")
    row = json.loads((folder / "value.json").read_text())
    for change in ({"head": "Q"}, {"loss": "categorical"}):
        (folder / "value.json").write_text(json.dumps(row | change))
        form, _ = find_form(folder)
        with pytest.raises(UserError, match=r"its card speaks of a . head with \d+ output"):
            NativeJudge(str(folder), form, device="cpu")
    (folder / "value.json").write_text("{}")
    with pytest.raises(UserError, match="not the card of a value model"):
        find_form(folder)


def test_vllm_does_not_serve_it(tmp_path: Path) -> None:
    folder = write_value_model(tmp_path / "value")
    with pytest.raises(UserError, match="vLLM does not serve the value head of .*value; use --engine native"):
        check_served(str(folder), find_form(folder)[0])


def test_the_tool_scores_whole_answers_and_draws_one(tmp_path: Path) -> None:
    tool = load_tool("rank_answers")
    write_value_model(tmp_path / "value")
    answers = write_folder(tmp_path / "demo", [["4", "5 and 5", " "], ["4\n4"]], graded=False)
    given = {"answers": answers, "judge": tmp_path / "value", "out": tmp_path / "rm", "device": "cpu"}
    said = tool.main(tool.Arguments(**given))
    assert said.startswith("scored 3 answers by the min of their steps, 1 skipped: 1 no_steps")
    scores = read_scores(tmp_path / "rm")
    form, tokenizer = find_form(tmp_path / "value")
    reader = Reader(form=form, tokenizer=tokenizer, style="auto", max_length=900)
    wanted = {}
    for number, texts in enumerate([["4", "5 and 5"], ["4\n4"]]):
        for answer in answers_of(problem(number), texts):
            layout = reader.prepare(problem(number).question, answer).layout
            wanted[answer.id] = NativeJudge(str(tmp_path / "value"), form, device="cpu").score([[layout]])[0][0][0]
    assert scores.by_answer == pytest.approx(wanted, abs=1e-5)
    manifest = store.read_manifest(tmp_path / "rm")
    assert manifest["arguments"]["form"]["value"]["head"] == "V" and "value head sha256" in json.dumps(manifest)
    chosen = answers_of(problem(1), ["4\n4"])[0].id
    for head in ("V", "Q"):
        judge = tmp_path / "value" if head == "V" else write_value_model(tmp_path / "q", head="Q")
        page = tmp_path / f"{head}.html"
        drawn = {"judge": judge, "out": tmp_path / head, "plot": page, "plot_answer": chosen}
        tool.main(tool.Arguments(**given | drawn))
        assert page.read_text().count('title="token') == 3
    with pytest.raises(UserError, match="vLLM does not serve the value head"):
        tool.main(tool.Arguments(**given | {"out": tmp_path / "v", "engine": "vllm"}))


def test_the_form_of_other_judges_is_written_as_it_was(tmp_path: Path) -> None:
    """What a folder of scores remembers of its judge: another word there would refuse to go on with an old one."""
    tool = load_tool("rank_answers")
    answers = write_folder(tmp_path / "demo", [["4"]], graded=False)
    judge = write_card_judge(tmp_path / "judge")
    tool.main(tool.Arguments(answers=answers, judge=judge, out=tmp_path / "scores", device="cpu"))
    assert store.read_manifest(tmp_path / "scores")["arguments"]["form"] == {
        "name": "card", "format": {"prompt": "steps", "step_token": "\n", "between": ""}, "head": "tokens",
        "good": 43 - 33, "bad": 45 - 33, "outcome": False, "squash": False,
    }  # fmt: skip
