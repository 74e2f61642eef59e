"""Old results: each shape gives the same answers, problems join with the benchmark's own, and nothing is trusted."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from tt_reasoning.old_results import OldSample, find_setting, guess_from_name, import_rows, parse_row, to_problem
from tt_reasoning.problems import SOURCES, load_problems

DATA = Path(__file__).parent / "data"
MATH = {"problem": "What is $1+1$?", "answer": "2", "subject": "Algebra"}
ASKED = {"prompt": "Return it in \\boxed{{}}. What is $1+1$?"}


def sample(text: str, correct: bool | None = None, **more: object) -> dict[str, Any]:
    return {"content": text, "correctness": correct, "reason": "" if correct else None, **more}


def usage(tokens: int) -> dict[str, int]:
    return {"completion_tokens": tokens, "prompt_tokens": 9}


def load(rows: dict[str, Any], dataset: str | None = "math500", **options: Any):
    return import_rows(rows, dataset, "test", "m", options.pop("max_new_tokens", 100), **options)


def test_the_three_shapes_give_the_same_samples() -> None:
    one = {"responses": {"0.7": sample("It is 2.", True)}, "token_usages": {"0.7": usage(4)}}
    many = {"responses": {"0.7": [sample("It is 2.", True), sample("3", False)]},
            "token_usages": {"0.7": [usage(4), usage(1)]}}  # fmt: skip
    flat = {"responses": many["responses"]["0.7"], "token_usages": many["token_usages"]["0.7"]}
    both = [OldSample(0.7, "It is 2.", 4, True, ""), OldSample(0.7, "3", 1, False, "")]
    assert parse_row("k", MATH | one).samples == both[:1]
    assert parse_row("k", MATH | many).samples == both
    assert parse_row("0", MATH | flat, temperature=0.7).samples == both
    assert parse_row("k", MATH | many | ASKED).columns == MATH


def test_samples_of_several_temperatures_have_indexes_of_their_own_and_a_cut_one_says_so() -> None:
    responses = {"0.7": [sample("a"), sample("b")], "1": sample("c")}
    found = load({"k": MATH | {"responses": responses, "token_usages": {"0.7": [usage(4), usage(100)]}}})
    got = [(a.text, a.sampling.temperature, a.sample_index, a.num_tokens, a.finish_reason) for a in found.answers]
    assert got == [("a", 0.7, 0, 4, "stop"), ("b", 0.7, 1, 100, "length"), ("c", 1.0, 0, 1, "stop")]
    assert found.uncounted == 1 and len({answer.id for answer in found.answers}) == 3
    assert all(a.id == a.sampling.answer_id(a.problem_id, a.sample_index) for a in found.answers)


def test_a_question_in_two_rows_is_one_problem_with_the_samples_of_both() -> None:
    row = MATH | {"responses": [sample("a"), sample("b")], "token_usages": [usage(1), usage(1)]}
    found = load({"0": row, "7": row}, temperature=0.5)
    assert len(found.problems) == 1 and [answer.sample_index for answer in found.answers] == [0, 1, 2, 3]


def test_converted_text_is_taken_where_there_is_some_or_the_original_if_asked() -> None:
    responses = {"0.7": [sample("raw", processed_content="converted"), sample("raw too")]}
    rows = {"k": MATH | {"responses": responses, "token_usages": {}}}
    assert [answer.text for answer in load(rows).answers] == ["converted", "raw too"]
    assert [answer.text for answer in load(rows, content="original").answers] == ["raw", "raw too"]


def test_old_verdicts_are_kept_beside_the_answers_and_crashes_are_not_verdicts() -> None:
    found = load({"k": MATH | {"responses": {"0": [sample("a", True), sample("b", False), sample("c")]}}})
    assert [verdict.correct for verdict in found.old_verdicts] == [True, False, None]
    assert [verdict.answer_id for verdict in found.old_verdicts] == [answer.id for answer in found.answers]


def test_the_prompt_is_found_by_taking_the_question_out_of_it() -> None:
    rows = {
        str(n): {"problem": f"What is ${n}+1$?", "answer": "2", "prompt": f"Box it. What is ${n}+1$? Think.",
                 "responses": {"0": sample("a")}}
        for n in range(3)
    }  # fmt: skip
    rows["other"] = {"problem": "Why?", "answer": "2", "prompt": "Tell me.", "responses": {"0": sample("a")}}
    found = load(rows)
    assert found.template is not None and found.template.user == "Box it. {question} Think."
    assert [answer.sampling.prompt for answer in found.answers] == [*[found.template.name] * 3, "question"]
    assert found.asked_otherwise == 1
    # The later shape has the system's message too, and what of the answer was given beforehand.
    said = [("system", "Be brief."), ("user", "What is $1+1$?"), ("assistant", "<think>")]
    turns = [{"role": role, "content": content} for role, content in said]
    found = load({"0": MATH | {"input_conversation": turns, "responses": [sample("2")]}}, temperature=1.0)
    assert found.template is not None
    assert (found.template.system, found.template.user) == ("Be brief.", "{question}")
    assert found.answers[0].text == "<think>2" and found.asked_otherwise == 0


def old_rows(name: str) -> list[dict[str, Any]]:
    path = DATA / f"{name}.jsonl"
    if path.exists():
        return [json.loads(line) for line in path.read_text().splitlines()]
    with (DATA / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", ["math", "numina", "apps", "taco", "gsm8k", "arc", "mmlu", "livecodebench"])
def test_a_benchmarks_rows_become_the_problems_that_generate_answers_makes(name: str) -> None:
    split = SOURCES[name].splits[-1]
    file = str(DATA / f"{name}.jsonl")
    own = {problem.id: problem for problem in load_problems(name, split, data_files=file)}
    rows = {str(n): row | {"responses": {"0": sample("a")}} for n, row in enumerate(old_rows(name))}
    found = import_rows(rows, name, split, "m", 100)
    assert {problem.id: problem for problem in found.problems} == own
    assert len(found.rejected) <= len(rows) - len(own)
    assert all(row.detail.startswith(f"no problem of {name}: ") for row in found.rejected)


def test_shuffled_options_are_those_that_were_asked() -> None:
    """GPQA was shuffled anew by every run: the letter that it wrote down and the text that it asked go together."""
    row = old_rows("gpqa-diamond")[0]
    right, wrong = row["Correct Answer"], [row[f"Incorrect Answer {n}"] for n in (1, 2, 3)]
    prompt = f"{row['Question']}\nA) {wrong[2]}, B) {wrong[0]}, C) {right}, D) {wrong[1]}"
    old = parse_row("k", row | {"prompt": prompt, "Answer": "C", "responses": {"0": sample("\\boxed{C}")}})
    problem = to_problem(old, "gpqa-diamond", "train")
    assert (problem.question, problem.reference, problem.kind) == (prompt, "C", "choice")
    with pytest.raises(ValueError, match="the letter of the right option is not there"):
        to_problem(parse_row("k", row | {"prompt": prompt, "responses": {"0": sample("a")}}), "gpqa-diamond", "train")


@pytest.mark.parametrize(
    ("columns", "question", "reference", "kind"),
    [
        (MATH, "What is $1+1$?", "2", "math"),
        ({"problem": "1?", "solution": "So \\boxed{1}."}, "1?", "1", "math"),
        ({"question": "1?", "answer": "1 is 1.\n#### 1"}, "1?", "1", "math"),
        ({"question": "1?", "answer": 7}, "1?", "7", "math"),
        ({"question": "Add.", "prompt": "Write it. Add.", "input_output": '{"inputs":["1"],"outputs":["1"]}'},
         "Write it. Add.", '{"inputs":["1"],"outputs":["1"]}', "code"),
        ({"question": "Add.", "input_output": {"inputs": ["1"], "outputs": ["1"]}},
         "Add.", '{"inputs":["1"],"outputs":["1"]}', "code"),
        ({"question": "?", "choices": ["x", "y"], "answer": 1, "prompt": "? (A) x (B) y"}, "? (A) x (B) y", "B",
         "choice"),
    ],
)  # fmt: skip
def test_without_a_benchmark_the_row_says_what_it_asks(
    columns: dict[str, Any], question: str, reference: str, kind: str
) -> None:
    found = load({"k": columns | {"responses": {"0": sample("a")}}}, None)
    (problem,) = found.problems
    assert (problem.question, problem.reference, problem.kind) == (question, reference, kind)


@pytest.mark.parametrize(
    ("row", "detail"),
    [
        (3, "not an object"),
        (MATH, "responses=None should be an object by temperature, or a list"),
        (MATH | {"responses": {}}, "no responses"),
        (MATH | {"responses": {"hot": sample("a")}}, "responses: 'hot' is no temperature"),
        (MATH | {"responses": {"0.7": "a"}}, "response 0 of temperature 0.7 has no content"),
        (MATH | {"responses": {"0.7": [sample("a"), {}]}}, "response 1 of temperature 0.7 has no content"),
        (MATH | {"responses": {"0.7": sample("a", "yes")}}, "response 0 of temperature 0.7: correctness='yes'"),
        (MATH | {"responses": [sample("a")]}, "responses are a list without temperatures; say theirs (--temperature)"),
        (MATH | {"responses": {"0": sample("a")}, "input_conversation": [3]}, "input_conversation: a turn without its "
         "content"),
        ({"problem": "?", "responses": {"0": sample("a")}}, "no field 'answer'"),
    ],
)  # fmt: skip
def test_a_malformed_row_is_named_and_the_others_are_imported(row: object, detail: str) -> None:
    found = load({"bad": row, "good": MATH | {"responses": {"0": sample("a")}}})
    assert [(one.key, one.detail) for one in found.rejected] == [("bad", detail)]
    assert len(found.answers) == 1


def test_names_and_summaries_of_the_old_tools_say_what_they_say() -> None:
    assert guess_from_name(Path("QwQ-32B-Preview_NUMINA_train_amc_aime_0_-1_1_9.json")) == {
        "model": "QwQ-32B-Preview", "dataset": "NUMINA", "split": "train",
    }  # fmt: skip
    assert guess_from_name(Path("mine.json")) == {}
    assert find_setting({"a": [], "b": {"temperature": 0.0}}, "temperature") == 0.0
    assert find_setting(None, "temperature") is None
