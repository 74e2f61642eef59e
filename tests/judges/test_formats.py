"""What a judge is shown and where it is read, and what a folder has to have to be a judge."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import write_tiny_model
from tiny_judges import write_card_judge, write_math_shepherd, write_qwen_prm, write_rlhflow
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from tt_reasoning.errors import UserError
from tt_reasoning.judges import CARD
from tt_reasoning.judges.formats import Layout, share_prompt
from tt_reasoning.judges.forms import JudgeForm, find_form
from tt_reasoning.judges.published import PUBLISHED
from tt_reasoning.models.builders import read_max_seq_len
from tt_reasoning.models.tokenizer import ChatTokenizer

QUESTION, ANSWER = "2 + 3?", "2 + 3 = 5\nso 5"
STEPS = [(0, 9), (10, 14)]


def shown_up_to(folder: Path, name: str = "auto") -> tuple[list[str], str]:
    """What a judge has been shown where it is read, step by step, and all that comes before the solution."""
    form, tokenizer = find_form(folder, name)
    layout = form.format.lay_out(tokenizer, QUESTION, ANSWER, form.spans(ANSWER, "lines"))
    parts = [layout.tokens[: read + 1] for read in layout.read]
    return [tokenizer.decode(part, skip_special_tokens=False) for part in parts], tokenizer.decode(
        layout.tokens[: layout.start], skip_special_tokens=False
    )


def test_a_judge_of_this_pack_is_read_behind_every_step_token(tmp_path: Path) -> None:
    shown, before = shown_up_to(write_card_judge(tmp_path / "m"))
    assert before == "Problem: 2 + 3?\nSolution:\n"
    assert shown == [before + "2 + 3 = 5\n", before + "2 + 3 = 5\nso 5\n"]


def test_a_judge_is_read_in_the_text_though_its_tokenizer_adds_tokens_around_it(tmp_path: Path) -> None:
    folder = write_card_judge(tmp_path / "m")
    plain = shown_up_to(folder)
    saved = Tokenizer.from_file(str(folder / "tokenizer.json"))
    special = [(name, saved.token_to_id(name)) for name in ("<|im_start|>", "<|im_end|>")]
    saved.post_processor = TemplateProcessing(single="<|im_start|> $A <|im_end|>", special_tokens=special)
    saved.save(str(folder / "tokenizer.json"))
    shown, before = shown_up_to(folder)
    assert (shown, before) == (["<|im_start|>" + part for part in plain[0]], "<|im_start|>" + plain[1])


def test_an_outcome_judge_is_read_once_behind_the_whole_answer(tmp_path: Path) -> None:
    folder = write_card_judge(tmp_path / "m", outcome=True)
    assert shown_up_to(folder)[0] == ["Problem: 2 + 3?\nSolution:\n2 + 3 = 5\nso 5\n"]
    form, _ = find_form(folder)
    assert form.spans(" a\n\nb \n", "auto") == [(1, 5)] and form.spans(" \n", "auto") == []


def test_math_shepherd_is_read_at_the_tag(tmp_path: Path) -> None:
    shown, before = shown_up_to(write_math_shepherd(tmp_path / "Math-Shepherd-tiny"))
    assert before == "2 + 3? "
    assert shown == ["2 + 3? 2 + 3 = 5 ки", "2 + 3? 2 + 3 = 5 ки\nso 5 ки"]


def test_rlhflow_is_read_before_its_reply_to_every_step(tmp_path: Path) -> None:
    shown, before = shown_up_to(write_rlhflow(tmp_path / "m"), "rlhflow")
    first = "<|im_start|>user\n2 + 3? 2 + 3 = 5<|im_end|>\n<|im_start|>assistant\n"
    second = first + "+<|im_end|>\n<|im_start|>user\nso 5<|im_end|>\n<|im_start|>assistant\n"
    assert before == "<|im_start|>user\n2 + 3? "
    assert shown == [first, second]


def test_qwen_prm_is_read_at_every_mark_of_the_assistants_turn(tmp_path: Path) -> None:
    shown, before = shown_up_to(write_qwen_prm(tmp_path / "m"))
    system = "Please reason step by step, and put your final answer within \\boxed{}."
    assert before == (
        f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n2 + 3?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert shown == [before + "2 + 3 = 5<extra_0>", before + "2 + 3 = 5<extra_0>so 5<extra_0>"]


@pytest.mark.parametrize("form", PUBLISHED)
def test_the_question_is_shared_and_nothing_that_is_read(form: str, tmp_path: Path) -> None:
    write = {"math-shepherd": write_math_shepherd, "rlhflow": write_rlhflow, "qwen-prm": write_qwen_prm}[form]
    judge, tokenizer = find_form(write(tmp_path / "m"), form)
    layouts: list[Layout] = []
    for text in ("2 + 3 = 5", "2 + 3 = 6\nso 6"):
        layouts.append(judge.format.lay_out(tokenizer, QUESTION, text, judge.spans(text, "lines")))
    shared = share_prompt(layouts)
    assert QUESTION in tokenizer.decode(layouts[0].tokens[:shared])
    assert all(shared <= min(layout.start, layout.read[0]) for layout in layouts)


def refusal(folder: Path, name: str = "auto") -> str:
    with pytest.raises(UserError) as error:
        find_form(folder, name)
    return str(error.value)


def test_a_model_that_nothing_tells_to_be_a_judge_is_none(tmp_path: Path) -> None:
    assert "--format math-shepherd|rlhflow|qwen-prm" in refusal(write_tiny_model(tmp_path / "m"))


def test_a_form_has_to_fit_the_architecture(tmp_path: Path) -> None:
    plain, classes = write_tiny_model(tmp_path / "plain"), write_qwen_prm(tmp_path / "classes")
    assert "is LlamaForCausalLM; this form needs Qwen2ForProcessRewardModel" in refusal(plain, "qwen-prm")
    assert "is Qwen2ForProcessRewardModel; this form needs a language model" in refusal(classes, "rlhflow")


def test_a_vocabulary_without_labels_or_marks_is_named(tmp_path: Path) -> None:
    folder = write_card_judge(tmp_path / "m", good="<GOOD>")
    assert "label of a good step, '<GOOD>' is no token of this vocabulary" in refusal(folder)
    assert "mark of a step of form math-shepherd, 'ки' is no token" in refusal(folder, "math-shepherd")


def test_a_damaged_card_is_said_to_be_one(tmp_path: Path) -> None:
    folder = write_card_judge(tmp_path / "m")
    row = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps(row | {"head": "scalar"}))
    assert "judge.json: not the card of a judge: head='scalar' is none of tokens, value" in refusal(folder)


def test_a_card_stands_before_what_the_name_says(tmp_path: Path) -> None:
    form, tokenizer = find_form(write_card_judge(tmp_path / "math-shepherd"))
    assert isinstance(form, JudgeForm) and form.name == "card"
    assert (form.good, form.bad) == (tokenizer.encode("+")[0], tokenizer.encode("-")[0])
    assert isinstance(tokenizer, ChatTokenizer)


def test_a_mistral_reads_no_more_than_its_window(tmp_path: Path) -> None:
    folder = write_math_shepherd(tmp_path / "m")
    assert read_max_seq_len(folder) == 2048
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"sliding_window": 512}))
    assert read_max_seq_len(folder) == 512
