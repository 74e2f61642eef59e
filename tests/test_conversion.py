"""Conversion: what the form is, what fidelity measures, and that a converted answer is read as it stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from tt_reasoning.checking import whole_text
from tt_reasoning.conversion import (
    MIN_OVERLAP,
    TAGS,
    Sections,
    check_standing_verdicts,
    find_answers,
    find_fault,
    measure_overlap,
    reject,
    split_sections,
)
from tt_reasoning.errors import UserError
from tt_reasoning.prompts import PROMPTS, SYSTEM_PROMPTS, get_prompt, load_prompt
from tt_reasoning.store import open_run, write_records
from tt_reasoning.types import Answer, Sampling

GOOD = "<|begin_of_thought|>\n2 or 4?\n<|end_of_thought|>\n\n<|begin_of_solution|>\n4\n<|end_of_solution|>"
BEGIN, END, BEGIN_SOLUTION, END_SOLUTION = TAGS


def make_answer(text: str, index: int = 0, prompt: str = "answer", finish_reason: str = "stop") -> Answer:
    sampling = Sampling(model="m", prompt=prompt)
    return Answer(id=sampling.answer_id("p", index), problem_id="p", sample_index=index, text=text, num_tokens=3,
                  finish_reason=finish_reason, sampling=sampling)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (GOOD, None),
        (f"\n {GOOD} \n", None),
        ("The answer is 4.", "there are no tags"),
        ("", "there are no tags"),
        (f"Sure! {GOOD}", "text outside of the sections: Sure!"),
        (f"{GOOD} Done.", "text outside of the sections: Done."),
        (f"{BEGIN}2{END} so {BEGIN_SOLUTION}4{END_SOLUTION}", "text outside of the sections: so"),
        (f"{BEGIN} {END}{BEGIN_SOLUTION}4{END_SOLUTION}", "nothing in the thought"),
        (f"{BEGIN}2{END}{BEGIN_SOLUTION}\n{END_SOLUTION}", "nothing in the solution"),
        (GOOD.replace(END_SOLUTION, ""), f"the tags are {BEGIN} {END} {BEGIN_SOLUTION}"),
        (f"{BEGIN_SOLUTION}4{END_SOLUTION}{BEGIN}2{END}", " ".join(["the tags are", *TAGS[2:], *TAGS[:2]])),
        (GOOD + GOOD, "the tags are " + " ".join(TAGS * 2)[:200]),
        (GOOD.replace("begin_of_thought", "begin_of_slow_thought"), "another tag: <|begin_of_slow_thought|>"),
        (GOOD.replace("2 or", "<|im_end|>"), "another tag: <|im_end|>"),
    ],
)
def test_a_text_is_one_thought_and_one_solution_and_nothing_else(text: str, fault: str | None) -> None:
    assert find_fault(text) == fault
    if fault is None:
        assert split_sections(text) == Sections("2 or 4?", "4")
    else:
        with pytest.raises(ValueError, match="no text of the thought/solution form: "):
            split_sections(text)


ORIGINAL = "one two three four five six seven eight nine ten"


@pytest.mark.parametrize(
    ("thought", "solution", "overlap"),
    [
        (ORIGINAL, "ten", 1.0),
        (ORIGINAL.upper().replace(" ", ",\n"), "**ten**", 1.0),  # markup and case are no words
        (ORIGINAL, "ten ten ten ten", 1.0),  # the solution says again what the thought said
        ("one two three four five six", "ten", 0.7),  # 7 of 10 words kept
        (ORIGINAL + " and so on and on", "ten", 11 / 16),  # 5 of 16 words made up
        (ORIGINAL, "by the theorem of Fermat", 10 / 15),  # the solution's words are not the text's
        ("one two three four five one two three four five", "ten", 6 / 11),  # said twice: 5 of 10 are no copy
        ("something else altogether", "else", 0.0),
    ],
)
def test_overlap_falls_with_what_is_left_out_and_with_what_is_made_up(
    thought: str, solution: str, overlap: float
) -> None:
    assert measure_overlap(ORIGINAL, Sections(thought, solution)) == pytest.approx(overlap)


def test_overlap_counts_the_signs_of_languages_without_blanks_and_the_parts_of_names() -> None:
    assert measure_overlap("答案是四", Sections("答案是五", "四")) == pytest.approx(0.8)  # 五 is one of 5 signs
    assert measure_overlap("x_1 = f(y)", Sections("x 1 f y", "x1")) == pytest.approx(0.8)  # x1 is another word
    assert measure_overlap("?!", Sections("?!", "!")) == 0.0


def test_the_first_check_that_fails_is_the_reason() -> None:
    original = "2 or 4?"
    assert reject(original, make_answer(GOOD), MIN_OVERLAP) is None
    assert reject(original, make_answer("no", finish_reason="length"), MIN_OVERLAP) == ("truncated", "3 tokens")
    assert reject(original, make_answer("no"), MIN_OVERLAP) == ("tags", "there are no tags")
    # Of "2 or 4" all is kept; of "2 or 4 4" all is the text's. Of "2 or 4 or 6 or 8" three words are there.
    assert reject("2 or 4 or 6 or 8?", make_answer(GOOD), MIN_OVERLAP) == ("fidelity", "overlap 0.43")
    assert reject("2 or 4 or 6 or 8?", make_answer(GOOD), 0.4) is None


def test_the_converters_example_passes_its_own_checks_and_the_system_prompt_names_the_tags() -> None:
    told = PROMPTS["convert"].system
    _, original, _, converted = (part.strip() for part in told[told.index("An example.") :].split("\n\n", 3))
    assert reject(original, make_answer(converted), 0.95) is None
    assert [SYSTEM_PROMPTS["thought_solution"].count(tag) for tag in TAGS] == [1, 1, 1, 1]


def test_answers_are_taken_once_and_what_cannot_be_converted_is_counted(tmp_path: Path) -> None:
    answers = [make_answer(text, n) for n, text in enumerate(["a", "", " b ", "a", "c", GOOD])]
    answers += [make_answer("d", 6, finish_reason="length"), answers[0]]
    with open_run(tmp_path / "run", "generate_answers", {}) as folder:
        write_records(folder / "answers.jsonl", answers)
    source = find_answers(folder, None)
    assert [answer.question for answer in source.answers] == ["a", " b ", "a", "c", GOOD]
    assert list(source.first.values()) == [0, 1, 3, 4] and source.done == {4}
    assert source.left_out == {"empty": 1, "cut": 1}
    verdicts = {answers[0].id: True, answers[2].id: False, answers[3].id: None, answers[4].id: True}
    source = find_answers(folder, verdicts)
    assert [source.answers.read(row).id for row in range(2)] == [answers[0].id, answers[4].id]
    assert source.left_out == {"no_verdict": 3, "not_correct": 2}
    assert len(find_answers(folder, None, limit=2).answers) == 2


def test_a_prefill_is_part_of_an_answer_and_no_part_of_its_conversion(tmp_path: Path) -> None:
    answer = make_answer("2 + 2 = 4", prompt="ssa")
    with open_run(tmp_path / "sampled", "generate_answers", {}) as folder:
        write_records(folder / "answers.jsonl", [answer])
    assert whole_text(folder, answer) == "<think>2 + 2 = 4"
    assert find_answers(folder, None).answers[0].question == "<think>2 + 2 = 4"
    with open_run(tmp_path / "converted", "convert_format", {"whole_texts": True}) as folder:
        assert whole_text(folder, answer) == "2 + 2 = 4"
        assert get_prompt("ssa", folder).user == PROMPTS["ssa"].user
        assert get_prompt("answer", folder) is PROMPTS["answer"]
    (tmp_path / "own.yaml").write_text('user: "Q: {question} A:"\nchat: false\nprefill: " I"\n')
    own = load_prompt(str(tmp_path / "own.yaml"))
    for number, whole in enumerate((False, True)):
        arguments = {"template": own.template(), "whole_texts": whole}
        with open_run(tmp_path / str(number), "convert_format", arguments) as folder:
            assert whole_text(folder, make_answer("think", prompt=own.name)) == ("think" if whole else " Ithink")


def test_verdicts_of_conversions_that_would_change_are_not_left_behind(tmp_path: Path) -> None:
    old = [make_answer("a", 0), make_answer("b", 1)]
    write_records(tmp_path / "answers.jsonl", old)
    check_standing_verdicts(tmp_path, [*old, make_answer("c", 2)])
    with pytest.raises(UserError, match="2 of its 2 conversions would change or go"):
        check_standing_verdicts(tmp_path, [make_answer("b", 0), make_answer("c", 2)])
