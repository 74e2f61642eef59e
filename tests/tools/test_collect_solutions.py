"""What a generator learns: verified answers in steps, each once, few a problem; or a benchmark's worked solutions."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from set_folders import answers_of, problem, write_folder
from tiny import write_byte_tokenizer

from tools.collect_solutions import Arguments, main
from tt_reasoning import store
from tt_reasoning.datasets import sft_dataset
from tt_reasoning.errors import UserError
from tt_reasoning.grading import Grader
from tt_reasoning.models import ChatTokenizer
from tt_reasoning.prompts import get_prompt
from tt_reasoning.solutions import SolutionRules, grade_references, sort_solutions
from tt_reasoning.types import Problem, Sampling, Verdict

ROOT = Path(__file__).parents[2]
SAMPLING = Sampling(model="tiny", prompt="few_shot_steps")
GOOD = "1 + 1 = 2\n2 + 2 = 4\nThe answer is: 4"


def write_answers(folder: Path, texts: list[list[str]], *, cut: tuple[str, ...] = (), first: int = 0) -> Path:
    """Graded answers to questions whose gold answer is 4; those in ``cut`` ended at the token limit."""
    problems = [problem(first + number) for number in range(len(texts))]
    write_folder(folder, texts, problems=problems, sampling=SAMPLING, graded=False)
    answers = [answer for of, row in zip(problems, texts, strict=True) for answer in answers_of(of, row, SAMPLING)]
    answers = [replace(answer, finish_reason="length") if answer.text in cut else answer for answer in answers]
    store.write_records(folder / "answers.jsonl", answers)
    with Grader() as grader:
        verdicts = grader.grade_many((answer.id, answer.text, "4", "math") for answer in answers)
    store.write_records(folder / "verdicts.jsonl", verdicts)
    return folder


def read(out: Path, name: str = "sft.jsonl") -> list[dict[str, object]]:
    return list(store.read_rows(out / name))


def test_kept_is_what_is_correct_whole_and_in_steps_without_its_stop_string(tmp_path: Path) -> None:
    texts = {
        f"{GOOD}\n\n": None,
        f"{GOOD}.\nProblem:": None,
        "1 + 1 = 2\n1 + 2 = 3\nThe answer is: 3\n\n": ("wrong", "mismatch"),
        "1 + 1 = 2\nand so on\n\n": ("wrong", "no_answer"),
        "2 * 2 = 4\nThe answer is: 4\n\n": ("few_steps", "1 of 2 steps"),
        "1 + 1 = 2\nSo the answer is 4.\nThat is all.": (
            "no_statement", "the last line does not begin by stating the answer"
        ),
        "1+1 = 2\n2 + 2 = 4\nThe answer is: 4": ("truncated", "cut at the token limit"),
        f" {GOOD.replace(' = ', '  =  ')} ": ("repeated", "the words of an earlier one"),
    }  # fmt: skip
    answers = write_answers(tmp_path / "a", [list(texts)], cut=(list(texts)[6],))
    told = main(Arguments(answers=(answers,), out=tmp_path / "sft"))
    assert "2 of 8 solutions kept, of 1 of 1 problems (100.0 %)\nsteps: 2 in 2\nrejected 6" in told
    kept, rejected = read(tmp_path / "sft"), read(tmp_path / "sft", "rejected.jsonl")
    assert [row["model_response"] for row in kept] == [GOOD, f"{GOOD}."]
    assert kept[0] == {
        "index": 0, "question": "question 0", "expected_answer": "4", "model_response": GOOD, "extracted_answer": "4",
        "is_correct": True, "problem_id": problem(0).id, "answer_id": SAMPLING.answer_id(problem(0).id, 0),
        "num_steps": 2, "source": "tiny",
    }  # fmt: skip
    assert [(row["reason"], row["detail"]) for row in rejected] == [value for value in texts.values() if value]
    stats = json.loads((tmp_path / "sft" / "stats.json").read_text())
    assert stats["rejected"] == {
        "excluded": 0, "references_differ": 0, "truncated": 1, "unjudged": 0, "wrong": 2, "few_steps": 1,
        "no_statement": 1, "repeated": 1, "surplus": 0,
    }  # fmt: skip


def test_the_rows_train_a_model_that_is_asked_with_steps(tmp_path: Path) -> None:
    answers = write_answers(tmp_path / "a", [[f"{GOOD}\n\n"]])
    main(Arguments(answers=(answers,), out=tmp_path / "sft"))
    write_byte_tokenizer(tmp_path)
    tokenizer = ChatTokenizer(tmp_path)
    (row,) = sft_dataset(tokenizer, str(tmp_path / "sft"), prompt="steps")
    learned = [label for label in row["labels"] if label != -100]
    assert tokenizer.decode(learned, skip_special_tokens=False) == f"{GOOD}<|im_end|>"
    sampled_with = get_prompt("few_shot_steps").render("question 0")
    assert isinstance(sampled_with, str)
    assert sampled_with.endswith(tokenizer.decode(row["tokens"][: -len(learned)]))


def test_several_folders_give_a_problem_together_at_most_so_many(tmp_path: Path) -> None:
    texts = [[f"{1 + n} + 1 = 2\n2 + 2 = 4{'!' * n}\nThe answer is: 4" for n in range(6)]]
    one, two = write_answers(tmp_path / "one", texts), tmp_path / "two"
    write_answers(two, [[f"0 = 0\n{text}" for text in texts[0]], [GOOD]])
    texts_of = {}
    for name, options in {
        "random": {}, "again": {}, "seed": {"seed": 1}, "shortest": {"choice": "shortest"}
    }.items():  # fmt: skip
        main(Arguments(answers=(one, two), out=tmp_path / name, per_problem=2, **options))
        rows = read(tmp_path / name)
        assert [row["index"] for row in rows] == [0, 0, 1]
        texts_of[name] = [row["model_response"] for row in rows]
    assert texts_of["random"] == texts_of["again"] != texts_of["seed"]
    assert texts_of["shortest"] == [*texts[0][:2], GOOD]
    assert len(read(tmp_path / "random", "rejected.jsonl")) == 10


def test_held_out_problems_are_refused_or_left_out(tmp_path: Path) -> None:
    answers = write_answers(tmp_path / "a", [[GOOD], [GOOD]])
    held_out = write_answers(tmp_path / "test", [[GOOD]], first=1)
    options = {"answers": (answers,), "out": tmp_path / "sft", "exclude": (held_out,)}
    with pytest.raises(UserError, match=f"1 of the problems with answers are in {held_out} too"):
        main(Arguments(**options))
    assert not (tmp_path / "sft").exists()
    main(Arguments(**options, drop_excluded=True))
    assert [row["question"] for row in read(tmp_path / "sft")] == ["question 0"]
    assert [row["reason"] for row in read(tmp_path / "sft", "rejected.jsonl")] == ["excluded"]


def test_golds_that_differ_between_folders_teach_nothing() -> None:
    golds = [Problem(source="s", split="train", question="2 + 2?", reference=gold) for gold in ("4", "5")]
    with Grader() as grader:
        solutions = [one for (one,) in grade_references([(of, GOOD) for of in golds], grader)]
    kept, rejected = sort_solutions(0, solutions, SolutionRules())
    assert not kept and [(row.reason, row.detail) for row in rejected] == [("references_differ", "'4' and '5'")] * 2


def test_what_the_grader_cannot_judge_is_a_reason_of_its_own(tmp_path: Path) -> None:
    answers = write_answers(tmp_path / "a", [[GOOD, f"0 = 0\n{GOOD}"]])
    verdicts = list(store.read_records(answers / "verdicts.jsonl", Verdict))
    late = Verdict(answer_id=verdicts[0].answer_id, extracted="4", correct=None, reason="timeout")
    store.write_records(answers / "verdicts.jsonl", [late, verdicts[1]])
    main(Arguments(answers=(answers,), out=tmp_path / "sft"))
    (row,) = read(tmp_path / "sft", "rejected.jsonl")
    assert (row["reason"], row["detail"]) == ("unjudged", "timeout")


def write_gsm8k(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("".join(json.dumps({"question": question, "answer": answer}) + "\n" for question, answer in rows))
    return path


def test_worked_solutions_of_gsm8k_are_rows_too(tmp_path: Path) -> None:
    file = write_gsm8k(
        tmp_path / "train.jsonl",
        [
            ("q0", "She has 48/2 = <<48/2=24>>24 clips.\n\nIn all 48+24 =  <<48+24=72>>72. \n#### 72"),
            ("q1", "He needs 500*2=<<500*2=1000>>1,000\nand 80 more: <<1000+80=1080>>1080 > 1000\n#### 1,080"),
            ("q2", "One step\n#### 3"),
        ],
    )
    options = {"dataset": "gsm8k", "data_files": str(file)}
    told = main(Arguments(**options, out=tmp_path / "sft"))
    assert "2 of 3 solutions kept" in told and "few_steps 1" in told
    rows = read(tmp_path / "sft")
    assert [row["model_response"] for row in rows] == [
        "She has 48/2 = 24 clips.\nIn all 48+24 = 72.\nThe answer is: 72",
        "He needs 500*2=1,000\nand 80 more: 1080 > 1000\nThe answer is: 1080",
    ]
    assert {(row["source"], row["answer_id"], row["is_correct"]) for row in rows} == {("reference", "", True)}
    main(Arguments(**options, out=tmp_path / "part", start=1, limit=1))
    assert [(row["index"], row["question"]) for row in read(tmp_path / "part")] == [(1, "q1")]


def test_the_same_command_does_it_again_and_another_is_refused(tmp_path: Path) -> None:
    answers, out = write_answers(tmp_path / "a", [[GOOD, f"0 = 0\n{GOOD}"]]), tmp_path / "sft"
    main(Arguments(answers=(answers,), out=out))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "stats.json").unlink()  # as a kill leaves it
    (out / "sft.jsonl").unlink()
    main(Arguments(answers=(answers,), out=out))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    with pytest.raises(UserError, match="per_problem was 4, now 1"):
        main(Arguments(answers=(answers,), out=out, per_problem=1))
    store.append_records(answers / "answers.jsonl", answers_of(problem(0), ["4", "4", "5"], SAMPLING)[2:])
    with pytest.raises(UserError, match="1 answers have no verdict yet"):
        main(Arguments(answers=(answers,), out=out))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "name what to collect from"),
        ({"answers": (Path("a"),), "dataset": "gsm8k"}, "name what to collect from"),
        ({"answers": (Path("a"),), "limit": 3}, "--limit is of --dataset"),
        ({"dataset": "gsm8k", "min_steps": 0}, "--min-steps 0: give at least 1"),
        ({"dataset": "gsm8k", "drop_excluded": True}, "--drop-excluded without --exclude"),
        ({"dataset": "gsm9k"}, "did you mean 'gsm8k'"),
        ({"dataset": "svamp"}, "svamp has no worked solutions in steps; known are those of: asdiv, gsm8k"),
        ({"answers": (Path("nowhere"),)}, "no such folder: nowhere"),
        ({"dataset": "gsm8k", "data_files": "no.jsonl"}, "--data-files no.jsonl: no such file"),
    ],
)
def test_mistakes_name_what_is_wrong(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        main(Arguments(out=tmp_path / "sft", **options))
    assert not (tmp_path / "sft").exists()


def test_problems_without_a_worked_solution_are_counted_and_a_file_without_any_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"body": "Six bags hold 8 rolls each.", "question": "How many rolls?", "answer": "48 (rolls)"}
    rows = [row | {"formula": "6*8=48"}, row | {"question": "How many?"}]
    options = {"dataset": "asdiv", "split": "validation", "min_steps": 1}
    for name, chosen in (("some", rows), ("none", rows[1:])):
        store.write_records(tmp_path / f"{name}.jsonl", chosen)
    assert "1 of 1 solutions kept" in main(
        Arguments(out=tmp_path / "sft", data_files=str(tmp_path / "some.jsonl"), **options)
    )
    assert "left out because they have no worked solution in steps: 1" in capsys.readouterr().err
    with pytest.raises(UserError, match="none of 1 problems has a worked solution"):
        main(Arguments(out=tmp_path / "no", data_files=str(tmp_path / "none.jsonl"), **options))


def test_nothing_to_learn_is_an_error_of_one_line_with_status_2(tmp_path: Path) -> None:
    answers = write_answers(tmp_path / "a", [["The answer is: 4", "5"]])
    command = [sys.executable, str(ROOT / "tools/collect_solutions.py"), "--answers", str(answers), "--out", "sft"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: nothing to learn is left of 2 solutions (wrong 1, few_steps 1); lower --min-steps")
    assert not (tmp_path / "sft").exists()
