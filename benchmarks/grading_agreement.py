"""How far the grader can be trusted: real answers with labels, reference solutions, and every gold answer.

- ``labels``: GSM8K's example solutions (four models, 1,319 questions) against their published labels;
- ``solutions``: the boxed answer of each MATH-500 reference solution against the reference;
- ``gold``: every reference of GSM8K, MATH-500, AIME 2024, AMC 2023 and OlympiadBench against itself, stated in
  five forms; and which references cannot be read, which shows when another answer is compared with them;
- ``audit``: the second rule set (``grading.audit``) on all of the above.

DATA holds gsm8k/{train,test,example_model_solutions}.jsonl, math500/test.jsonl, aime24/test.jsonl, amc23/test.jsonl,
olympiadbench/test.jsonl, as their authors publish them (docs/grading.md). About half a minute:

    python benchmarks/grading_agreement.py --data DATA
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from tt_reasoning.errors import UserError, exit_on_mistake
from tt_reasoning.grading import Grader, count_reasons
from tt_reasoning.grading.audit import audit, disagree
from tt_reasoning.problems import load_problems
from tt_reasoning.store import read_rows, write_json
from tt_reasoning.types import Kind, Verdict

MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
GOLD = {  # name: (source, split, file)
    "gsm8k train": ("gsm8k", "train", "gsm8k/train.jsonl"),
    "gsm8k test": ("gsm8k", "test", "gsm8k/test.jsonl"),
    "math500": ("math500", "test", "math500/test.jsonl"),
    "aime24": ("aime24", "train", "aime24/test.jsonl"),
    "amc23": ("amc23", "test", "amc23/test.jsonl"),
    "olympiad": ("olympiad", "train", "olympiadbench/test.jsonl"),
}
FORMS = {
    "bare": "{}",
    "tag": "<think>Let us see.</think><answer>{}</answer>",
    "box": "So it is $\\boxed{{{}}}$.",
    "phrase": "Let us see. The answer is: {}",
    "hashes": "Let us see.\n#### {}",
}
FOREIGN = "\\boxed{q_{997}}"  # no answer to anything: what is compared with it must be read as mathematics

Item = tuple[str, str, str, Kind]  # answer id, text, reference, kind


@dataclass(kw_only=True)
class Arguments:
    data: Path
    """Folder of the benchmarks' files."""
    num_workers: int = 2
    """Comparisons at a time."""
    json: Path | None = None
    """Write counts and exceptions here too."""


def labelled_answers(data: Path) -> Iterator[tuple[str, str, str, bool]]:
    """Id, solution, gold answer and label of every example solution of GSM8K."""
    for number, row in enumerate(rows_of(data / "gsm8k/example_model_solutions.jsonl"), 1):
        gold = row["ground_truth"].rpartition("A:")[2].strip()
        for model in MODELS:
            yield f"{number} {model}", row[model]["solution"], gold, row[model]["is_correct"]


def reference_solutions(data: Path) -> Iterator[Item]:
    """The MATH-500 solutions as answers."""
    for row in rows_of(data / "math500/test.jsonl"):
        yield row["unique_id"], row["solution"], row["answer"], "math"


def rows_of(path: Path) -> Iterable[dict[str, Any]]:
    if not path.is_file():
        raise UserError(f"--data: no {path}")
    return read_rows(path)


def compare_labels(args: Arguments) -> dict[str, Any]:
    """How often verdict and label agree, by the last number of a text and by kind ``numeric``."""
    answers = list(labelled_answers(args.data))
    found = {}
    for name, fallback, kind in (("last_number", "last_number", "math"), ("numeric", "none", "numeric")):
        items = [(identity, text, gold, kind) for identity, text, gold, _ in answers]
        with Grader(num_workers=args.num_workers, fallback=fallback) as grader:
            verdicts = grader.grade_many(items)
        pairs = list(zip(answers, verdicts, strict=True))
        wrong = [f"{answer[0]}: label {answer[3]}, {show(verdict)}" for answer, verdict in pairs
                 if verdict.correct is not answer[3]]  # fmt: skip
        found[name] = {**report(verdicts, wrong), "audit": second_opinion(items, verdicts, last_number=True)}
    return found


def compare_solutions(args: Arguments) -> dict[str, Any]:
    items = list(reference_solutions(args.data))
    with Grader(num_workers=args.num_workers) as grader:
        verdicts = grader.grade_many(items)
    return {**report(verdicts, not_matched(items, verdicts)), "audit": second_opinion(items, verdicts)}


def compare_gold(args: Arguments) -> dict[str, Any]:
    found = {}
    with Grader(num_workers=args.num_workers) as grader:
        for name, (source, split, file) in GOLD.items():
            rows_of(args.data / file)
            problems = load_problems(source, split, data_files=str(args.data / file))
            for form, template in FORMS.items():
                items = [(p.id, template.format(p.reference), p.reference, p.kind) for p in problems]
                verdicts = grader.grade_many(items)
                exceptions = not_matched(items, verdicts)
                found[f"{name}, {form}"] = {
                    **report(verdicts, exceptions), "audit": second_opinion(items, verdicts)
                }  # fmt: skip
            items = [(p.id, FOREIGN, p.reference, p.kind) for p in problems]
            verdicts = grader.grade_many(items)
            unread = [
                f"{item[2]}: {v.reason}" for item, v in zip(items, verdicts, strict=True) if v.reason != "mismatch"
            ]
            found[f"{name}, another answer"] = report(verdicts, unread)
    return found


def not_matched(items: list[Item], verdicts: list[Verdict]) -> list[str]:
    return [f"{item[2]}: {show(v)}" for item, v in zip(items, verdicts, strict=True) if not v.correct]


def second_opinion(items: list[Item], verdicts: list[Verdict], *, last_number: bool = False) -> list[str]:
    """Where the audit says otherwise."""
    differ = []
    for (identity, text, reference, kind), verdict in zip(items, verdicts, strict=True):
        second = audit(text, reference, kind, last_number=last_number)
        if disagree(verdict, second):
            differ.append(f"{identity}: reference {reference!r}, grader {show(verdict)}, audit {show(second)}")
    return differ


def report(verdicts: list[Verdict], exceptions: list[str]) -> dict[str, Any]:
    return {"answers": len(verdicts), "counts": count_reasons(verdicts), "exceptions": exceptions}


def show(verdict: Verdict) -> str:
    return f"{verdict.reason} {verdict.extracted!r}"


def print_part(title: str, part: dict[str, Any]) -> None:
    counts = ", ".join(f"{count} {reason}" for reason, count in part["counts"].items() if count)
    audited = f"; audit differs on {len(part['audit'])}" if "audit" in part else ""
    print(f"{title}: {part['answers']} answers: {counts}; exceptions: {len(part['exceptions'])}{audited}")
    for line in part["exceptions"]:
        print(f"    {line}")
    for line in part.get("audit", ()):
        print(f"    audit: {line}")


def main(args: Arguments) -> None:
    found = {
        **{f"labels, {name}": part for name, part in compare_labels(args).items()},
        "solutions of math500": compare_solutions(args),
        **{f"gold of {name}": part for name, part in compare_gold(args).items()},
    }
    for title, part in found.items():
        print_part(title, part)
    if args.json:
        write_json(args.json, found)


if __name__ == "__main__":
    with exit_on_mistake():
        main(tyro.cli(Arguments, description=__doc__))
