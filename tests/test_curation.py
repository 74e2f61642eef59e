"""The curation line from raw rows to training sets: 30 records of every kind, each number known beforehand."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tools import (
    check_answers,
    convert_format,
    generate_answers,
    label_difficulty,
    rewrite_responses,
    to_sharegpt,
)
from tt_reasoning.conversion import find_fault
from tt_reasoning.engines.options import EngineOptions
from tt_reasoning.prompts import code_text
from tt_reasoning.store import read_records, read_rows
from tt_reasoning.types import Answer, Verdict

SCRIPTED = EngineOptions(name="scripted")
MATH = [
    {"source": "math" if n % 2 else "olympiads", "problem": f"What is {n} times 7?", "solution": f"\\boxed{{{7 * n}}}"}
    for n in range(2, 12)
]
CHOICE = [
    {"question": f"Which is number {n}?", "choices": ["w", "x", "y", "z"], "answer": n % 4, "subject": "logic"}
    for n in range(10)
]


def task(n: int) -> dict[str, Any]:
    """Five tasks that read standard input, five that ask for a function."""
    if n < 5:
        tests: dict[str, Any] = {"inputs": ["3\n", "10\n"], "outputs": [f"{3 + n}\n", f"{10 + n}\n"]}
    else:
        tests = {"inputs": [[3], [10]], "outputs": [3 + n, 10 + n], "fn_name": "add"}
    return {"question": f"Add {n} to a number.", "input_output": json.dumps(tests), "starter_code": "",
            "difficulty": "interview"}  # fmt: skip


def program(n: int, added: int) -> str:
    """A response with a program that adds ``added``: to standard input for the first five tasks."""
    body = f"def add(a):\n    return a + {added}\n" if n >= 5 else f"print(int(input()) + {added})\n"
    return f"I add what is asked for.\n\n```python\n{body}```"


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_script(path: Path, answers: dict[str, list[str]], *fallback: str) -> str:
    path.write_text(json.dumps({"answers": answers, "fallback": list(fallback)}))
    return str(path)


def responses() -> dict[str, list[str]]:
    """One text a question: of the mathematics the even ones are right, of the choices and programs three in five."""
    found = {}
    for number, row in enumerate(MATH, 2):
        gold = 7 * number if number % 2 == 0 else 7 * number + 1
        found[row["problem"]] = [f"We count {number} sevens one after another.\nThe Answer is: {gold}"]
    for number, row in enumerate(CHOICE):
        letter = "ABCD"[row["answer"]] if number % 5 < 3 else "ABCD"[row["answer"] - 1]
        found[row["question"]] = [f"It has to be this option, as we see.\nThe Answer is: {letter}"]
    for number in range(10):
        name = "add" if number >= 5 else None
        found[code_text(task(number)["question"], "", name)] = [program(number, number if number % 5 < 3 else 99)]
    return found


def converted(text: str) -> str:
    """The form that a converter should write: the reasoning as it is, the last paragraph as the solution."""
    end = text.rindex("```python") if "```python" in text else text.rindex("The Answer")
    return (f"<|begin_of_thought|>\n{text[:end]}<|end_of_thought|>\n<|begin_of_solution|>\n{text[end:]}\n"
            "<|end_of_solution|>")  # fmt: skip


def count(folder: Path) -> Counter[str]:
    return Counter(verdict.reason for verdict in read_records(folder / "verdicts.jsonl", Verdict))


@pytest.fixture
def sets(tmp_path: Path) -> dict[str, tuple[str, Path]]:
    """By benchmark: its file, and the folder that its answers go to."""
    rows = {"numina": MATH, "mmlu": CHOICE, "apps": [task(n) for n in range(10)]}
    files = {name: write_rows(tmp_path / f"{name}.jsonl", of) for name, of in rows.items()}
    return {name: (file, tmp_path / "answers" / name) for name, file in files.items()}


def sample_and_check(sets: dict[str, tuple[str, Path]], model: str, **more: Any) -> None:
    for name, (file, folder) in sets.items():
        generate_answers.main(
            generate_answers.Arguments(
                model=model, dataset=name, data_files=file, split="test", num_samples=1, out=str(folder),
                engine=SCRIPTED, **more,
            )
        )  # fmt: skip
        check_answers.main(check_answers.Arguments(answers=folder, num_workers=2))


def test_thirty_records_become_a_sharegpt_file(sets: dict[str, tuple[str, Path]], tmp_path: Path) -> None:
    sample_and_check(sets, write_script(tmp_path / "model.json", responses()))
    folders = {name: folder for name, (_, folder) in sets.items()}
    assert count(folders["numina"]) == {"match": 5, "mismatch": 5}
    assert count(folders["mmlu"]) == {"match": 6, "mismatch": 4}
    assert count(folders["apps"]) == {"match": 6, "mismatch": 4}

    texts = {answer.text for folder in folders.values() for answer in read_records(folder / "answers.jsonl", Answer)}
    script = {text: [converted(text)] for text in texts}
    lost = next(text for text in script if text.startswith("We count 4 sevens"))
    script[lost] = ["<|begin_of_thought|>\nNo.\n<|end_of_thought|>\n<|begin_of_solution|>\n28\n<|end_of_solution|>"]
    converter = write_script(tmp_path / "converter.json", script)
    out = {name: tmp_path / "converted" / name for name in folders}
    for name, folder in folders.items():
        convert_format.main(
            convert_format.Arguments(answers=folder, model=converter, out=out[name], only_correct=True, engine=SCRIPTED)
        )
        check_answers.main(check_answers.Arguments(answers=out[name], num_workers=2))
    assert {name: count(folder) for name, folder in out.items()} == {
        "numina": {"match": 4}, "mmlu": {"match": 6}, "apps": {"match": 6}
    }  # fmt: skip
    rejected = list(read_rows(out["numina"] / "rejected.jsonl"))
    assert {row["reason"] for row in rejected} == {"fidelity"}

    shutil.copytree(out["mmlu"], tmp_path / "again")  # the same questions in two folders
    to_sharegpt.main(
        to_sharegpt.Arguments(
            answers=(*out.values(), tmp_path / "again"), out=tmp_path / "train.json",
            rejected=tmp_path / "rejected.jsonl",
        )
    )  # fmt: skip
    rows = json.loads((tmp_path / "train.json").read_text())
    assert len(rows) == 16 and len(list(read_rows(tmp_path / "rejected.jsonl"))) == 6
    for row in rows:
        assert [turn["from"] for turn in row["conversations"]] == ["system", "human", "gpt"]
        assert find_fault(row["conversations"][2]["value"]) is None
    assert sum("```python" in row["conversations"][2]["value"] for row in rows) == 6


def test_levels_choose_what_is_asked(sets: dict[str, tuple[str, Path]], tmp_path: Path) -> None:
    file, _ = sets["numina"]
    hard = MATH[3]["problem"]
    labeller = write_script(tmp_path / "labeller.json", {hard: ["Hard. [[8]]"], MATH[4]["problem"]: ["I cannot say."]},
                            "Easy. [[2]]")  # fmt: skip
    label_difficulty.main(
        label_difficulty.Arguments(
            out=tmp_path / "labels", data_files=file, split="test", model=labeller, num_samples=2, engine=SCRIPTED
        )
    )
    assert Counter(row["level"] for row in read_rows(tmp_path / "labels" / "labels.jsonl")) == {2.0: 8, 8.0: 1}
    assert [row["problem"] for row in read_rows(tmp_path / "labels" / "unlabelled.jsonl")] == [MATH[4]["problem"]]
    generate_answers.main(
        generate_answers.Arguments(
            model=write_script(tmp_path / "model.json", responses()), dataset="NUMINA", data_files=file, split="test",
            num_samples=1, filter_difficulty=True, difficulty_lower=4, difficulty_labels=str(tmp_path / "labels"),
            out=str(tmp_path / "hard"), engine=SCRIPTED,
        )
    )  # fmt: skip
    assert [row["question"] for row in read_rows(tmp_path / "hard" / "problems.jsonl")] == [hard]


def test_several_samples_become_preference_pairs(sets: dict[str, tuple[str, Path]], tmp_path: Path) -> None:
    file, folder = sets["numina"]
    texts = {}
    for number, row in enumerate(MATH, 2):
        gold = f"The Answer is: {7 * number}"
        short = f"Seven and so on.\nSo it is {7 * number}.\nOr is it?\nAgain, it is {7 * number}.\nOnce more."
        texts[row["problem"]] = [
            converted(f"{short}\n{gold}"),
            converted(f"{short} And again. And again, to be sure. And again.\n{gold}"),
            converted("Zero.\nThe Answer is: 0"),
        ]
    generate_answers.main(
        generate_answers.Arguments(
            model=write_script(tmp_path / "model.json", texts), dataset="numina", data_files=file, split="test",
            num_samples=8, out=str(folder), engine=SCRIPTED,
        )
    )  # fmt: skip
    check_answers.main(check_answers.Arguments(answers=folder))
    marker = write_script(tmp_path / "marker.json", {}, "2, 4")
    rewrite_responses.main(
        rewrite_responses.Arguments(
            answers=folder, rewrite_model=marker, out=tmp_path / "pairs", score_by="grader", silc=True, engine=SCRIPTED
        )
    )
    kinds = {}  # which of the three texts each problem's eight samples drew
    for answer in read_records(folder / "answers.jsonl", Answer):
        kind = 2 if "Zero" in answer.text else int("to be sure" in answer.text)
        kinds.setdefault(answer.problem_id, set()).add(kind)
    both = sum({0, 1} <= found for found in kinds.values())
    silc = sum(2 in found and len(found) > 1 for found in kinds.values())
    assert both > 0 and silc > 0
    for name, kept in (("fcs", "So it is"), ("fcs_reflection", "Again, it is")):
        pairs = json.loads((tmp_path / "pairs" / f"{name}-conversations.json").read_text())
        cut = [pair for pair in pairs if "to be sure" in pair["rejected"]["value"]]
        assert len(cut) == both and len(pairs) == both + silc
        assert all(kept in pair["chosen"]["value"] and "Once more" not in pair["chosen"]["value"] for pair in cut)
        assert all(find_fault(pair["chosen"]["value"]) is None for pair in cut)


def test_a_real_model_goes_through_the_line(smollm2: Path, tmp_path: Path) -> None:
    """vLLM samples, the checker runs its programs, and a file comes out: how many are right is the model's affair."""
    file = write_rows(tmp_path / "apps.jsonl", [task(n) for n in (0, 1, 5)])
    answers = tmp_path / "answers"
    generate_answers.main(
        generate_answers.Arguments(
            model=str(smollm2), dataset="apps", data_files=file, num_samples=4, max_new_tokens=96, out=str(answers),
            engine=EngineOptions(name="vllm", max_model_len=1024),
        )
    )  # fmt: skip
    check_answers.main(check_answers.Arguments(answers=answers, num_workers=2))
    reasons = count(answers)
    assert reasons.total() == 12 and reasons["bad_reference"] == 0
    for verdict in read_records(answers / "verdicts.jsonl", Verdict):
        assert verdict.correct is not None and (verdict.extracted is None) == (verdict.reason == "no_answer")
