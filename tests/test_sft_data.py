"""Which justifications are kept, which are rejected and why; tries are made only where they are needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tt_reasoning.answer_sets.rows import SetRow
from tt_reasoning.engines.base import Request
from tt_reasoning.engines.scripted import ScriptedEngine
from tt_reasoning.errors import UserError
from tt_reasoning.generation import Counts
from tt_reasoning.grading import Grader
from tt_reasoning.prompts import answer_set_text, get_prompt
from tt_reasoning.rewards import SSAReward
from tt_reasoning.sft_data import (
    JUSTIFICATIONS,
    Item,
    Try,
    choose_items,
    find_fault,
    grade_tries,
    reject,
    sort_tries,
    summarise,
    tries_of,
    write_justifications,
)
from tt_reasoning.store import read_records
from tt_reasoning.types import Answer, Sampling, Verdict

SAMPLINGS = [Sampling(model="m", prompt="ssa_oracle", seed=seed) for seed in range(3)]
GOOD = "<think> 2 < 3, so Answer 1 is right. </think> <answer>4</answer>"


def row(number: int = 2, reference: str | None = None, kind: str = "math") -> SetRow:
    text = answer_set_text(f"What is {number} + {number}?", ["The Answer is: 4", "5"])
    return SetRow(f"problem {number}", text, str(2 * number) if reference is None else reference, kind)


def items_of(*rows: SetRow) -> list[Item]:
    with Grader() as grader:
        return choose_items(rows, grader, "train")[0]


def attempt(text: str = GOOD, *, reason: str = "match", finish_reason: str = "stop", name: str = "a") -> Try:
    answer = Answer(id=name, problem_id="p", sample_index=0, text=text, num_tokens=9, finish_reason=finish_reason,
                    sampling=SAMPLINGS[0])  # fmt: skip
    correct = {"match": True, "mismatch": False, "no_answer": False}.get(reason)
    return Try(answer, text, Verdict(answer_id=name, extracted="4", correct=correct, reason=reason))


def test_a_set_is_asked_with_its_gold_and_twice_or_unmatchable_ones_are_counted_not_asked() -> None:
    with Grader() as grader:
        items, not_asked = choose_items([row(1), row(2, ""), row(1), row(1, "3"), row(3, "AB", "choice")], grader, "t")
    assert [item.index for item in items] == [0, 3]  # another gold makes another question
    assert not_asked == {"duplicate": 1, "bad_reference": 2}
    assert items[0].asked.question == row(1).text + "\n\nCorrect final answer (for you alone): 2"
    system, user = get_prompt("ssa_oracle").render(items[0].asked.question)
    assert user["content"] == items[0].asked.question and "<think>" in system["content"]


def test_sets_of_code_are_refused() -> None:
    with pytest.raises(UserError, match="problem 1 asks for code"):
        items_of(row(1, kind="code"))


@pytest.mark.parametrize(
    ("response", "fault"),
    [
        (GOOD, None),
        ("<think>\na\n</think>\n\n<answer> 4 </answer>", None),
        ("The answer is 4.", "there are no tags"),
        ("<answer>4</answer>", "the tags are <answer></answer>"),
        ("<answer>4</answer> <think>a</think>", "the tags are <answer></answer><think></think>"),
        ("<think>a</think> <think>b</think> <answer>4</answer>", "the tags are <think></think><think></think>"),
        ("<think>a <answer>5</answer></think> <answer>4</answer>", "the tags are <think><answer>"),
        ("<think>a</think> <answer>4", "the tags are <think></think><answer>"),
        ("a</think> <answer>4</answer>", "the tags are </think><answer></answer>"),
        ("Sure: " + GOOD, "text outside of the tags"),
        (GOOD + " I hope so.", "text outside of the tags"),
        ("<think>a</think> So: <answer>4</answer>", "text outside of the tags"),
        ("<think> </think> <answer>4</answer>", "nothing inside of <think>"),
        ("<think>a</think> <answer>\n</answer>", "nothing inside of <answer>"),
        ("<think>a<|im_end|></think> <answer>4</answer>", "a special token: <|im_end|>"),
        ("<think>|x| <|y|> 2</think> <answer>4</answer>", None),
    ],
)
def test_the_form_is_one_thought_then_one_answer_and_nothing_else(response: str, fault: str | None) -> None:
    found = find_fault(response)
    assert found == fault if fault is None else found.startswith(fault)


@pytest.mark.parametrize(
    ("given", "reason", "detail"),
    [
        (attempt(finish_reason="length"), "truncated", "9 tokens"),
        (attempt("4", reason="match"), "form", "there are no tags"),
        (attempt(reason="timeout"), "unjudged", "timeout"),
        (attempt(reason="mismatch"), "wrong", "mismatch"),
        (attempt(GOOD.replace("right", "the given answer")), "leak", "given_answer: the given answer"),
        # The first that holds is told.
        (attempt(GOOD.replace("right", "the given answer"), reason="mismatch"), "wrong", "mismatch"),
    ],
)
def test_a_rejection_names_its_reason(given: Try, reason: str, detail: str) -> None:
    assert reject(given) == (reason, detail)


def test_what_passes_earns_the_whole_reward_of_the_next_stage() -> None:
    assert reject(attempt()) is None
    assert SSAReward()(GOOD, "4", attempt().verdict) == {"identical": 100.0}
    # The form alone earns both of the reward's parts for it.
    wrong = Verdict(answer_id="", extracted="5", correct=False, reason="mismatch")
    assert SSAReward()(GOOD.replace("4", "5"), "4", wrong) == {"answer_tag": 5.0, "think_tag": 5.0}


def test_every_try_is_kept_or_rejected_and_the_first_ones_are_kept() -> None:
    (item,) = items_of(row())
    other, third = GOOD.replace("so", "thus"), GOOD.replace("so", "hence")
    tries = [attempt("4", name="0"), attempt(name="1"), attempt(name="2"), attempt(other, name="3")]
    tries.append(attempt(third, name="4"))
    kept, rejected = sort_tries(item, tries, keep=2)
    assert [(r.answer_id, r.model_response) for r in kept] == [("1", GOOD), ("3", other)]
    assert [(r.answer_id, r.reason) for r in rejected] == [("0", "form"), ("2", "repeated"), ("4", "surplus")]
    first = kept[0]
    assert (first.question, first.expected_answer, first.problem_id) == (row().text, "4", "problem 2")
    assert "for you alone" not in first.question


def test_the_figures_add_up_and_what_was_not_judged_stands_apart() -> None:
    (item,) = items_of(row())
    tries = [attempt(reason="timeout"), attempt(reason="error"), attempt("4"), attempt(reason="mismatch"), attempt()]
    tries.append(attempt(GOOD.replace("right", "the ground truth")))
    kept, rejected = sort_tries(item, tries, keep=1)
    stats = summarise(1, {"duplicate": 0, "bad_reference": 0}, kept, rejected, tries, 3)
    assert (stats["num_justifications"], stats["num_kept"], stats["num_sets_kept"]) == (6, 1, 1)
    assert {name: n for name, n in stats["rejected"].items() if n} == {"form": 1, "wrong": 1, "leak": 1}
    assert {name: n for name, n in stats["leaks"].items() if n} == {"reference": 1}
    assert stats["unjudged"] == {"timeout": 1, "error": 1}
    assert (stats["missing"], stats["num_tokens"], stats["verdicts"]["match"]) == (3, 54, 3)


def justify(folder: Path, items: list[Item], text: object, keep: int = 1, num_samples: int = 3) -> Counts:
    with Grader() as grader:
        return write_justifications(
            items, SAMPLINGS[:num_samples], keep, lambda: ScriptedEngine(text), get_prompt("ssa_oracle"), folder,
            grader, 2,
        )  # fmt: skip


def test_a_further_try_is_asked_only_where_those_before_it_failed(tmp_path: Path) -> None:
    """1: right at once. 2: right at the second try. 3: never."""
    items = items_of(row(1), row(2), row(3))
    asked: list[str] = []

    def text(request: Request) -> str:
        question = request.prompt[-1]["content"]
        asked.append(question)
        number = int(question.split()[3])
        right = number == 1 or number == 2 and asked.count(question) == 2
        return f"<think> a </think> <answer>{2 * number if right else 9}</answer>"

    counts = justify(tmp_path, items, text)
    assert [question.split()[3] for question in asked] == ["1", "2", "3", "2", "3", "3"]
    assert (counts.written, counts.missing, counts.failed.total()) == (6, 0, 0)
    with Grader() as grader:
        tries = grade_tries(items, SAMPLINGS, get_prompt("ssa_oracle"), tmp_path, grader)
    assert [len(tries_of(item, SAMPLINGS, tries)) for item in items] == [1, 2, 3]
    justify(tmp_path, items, text)
    assert len(asked) == 6  # all are on disk


def test_a_run_cut_anywhere_asks_the_rest_and_ends_with_the_same_file(tmp_path: Path) -> None:
    """The engine's text depends on what is asked beside it, as vLLM's may: chunks have to be the same again."""
    items = items_of(*(row(number) for number in range(1, 6)))

    class Engine(ScriptedEngine):
        def stream(self, requests):
            beside = " ".join(str(request.seed) for request in requests)
            right = [2 * int(request.prompt[-1]["content"].split()[3]) for request in requests]
            self._text = lambda request: (
                f"<think> {beside} </think> "
                f"<answer>{right[requests.index(request)] if request.seed % 3 == 0 else 99}</answer>"
            )
            return super().stream(requests)

    def run(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        with Grader() as grader:
            write_justifications(
                items, SAMPLINGS, 1, lambda: Engine({}), get_prompt("ssa_oracle"), folder, grader, 2
            )

    run(tmp_path / "whole")
    whole = (tmp_path / "whole" / JUSTIFICATIONS).read_bytes()
    lines = whole.splitlines(keepends=True)
    assert 5 < len(lines) < 15
    verdicts = (tmp_path / "whole" / "verdicts.jsonl").read_bytes().splitlines(keepends=True)
    for cut in range(len(lines)):
        folder = tmp_path / f"cut{cut}"
        folder.mkdir()
        (folder / JUSTIFICATIONS).write_bytes(b"".join(lines[:cut]) + b'{"torn')
        (folder / "verdicts.jsonl").write_bytes(b"".join(verdicts[: cut // 2]))
        run(folder)
        assert (folder / JUSTIFICATIONS).read_bytes() == whole
    assert len({answer.id for answer in read_records(tmp_path / "whole" / JUSTIFICATIONS, Answer)}) == len(lines)
