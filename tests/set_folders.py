"""Tiny folders of graded answers, for the tests of answer sets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tt_reasoning import store
from tt_reasoning.types import Answer, Problem, Sampling, Verdict

SAMPLING = Sampling(model="tiny", prompt="answer")


def problem(number: int, *, source: str = "tiny", split: str = "train", reference: str = "4") -> Problem:
    return Problem(source=source, split=split, question=f"question {number}", reference=reference)


def answers_of(of: Problem, texts: Sequence[str], sampling: Sampling = SAMPLING) -> list[Answer]:
    return [
        Answer(
            id=sampling.answer_id(of.id, index), problem_id=of.id, sample_index=index, text=text,
            num_tokens=len(text.split()), finish_reason="stop", sampling=sampling,
        )
        for index, text in enumerate(texts)
    ]  # fmt: skip


def group(number: int, texts: Sequence[str]) -> tuple[Problem, list[Answer]]:
    return problem(number), answers_of(problem(number), texts)


def verdict(answer: Answer) -> Verdict:
    """Without a text there is no result; a text that begins with a 4 is right, one with a ? cannot be judged."""
    first = answer.text[:1]
    reason = {"": "no_answer", "4": "match", "?": "timeout"}.get(first, "mismatch")
    correct = None if first == "?" else first == "4"
    return Verdict(answer_id=answer.id, extracted=answer.text or None, correct=correct, reason=reason)


def write_folder(
    folder: Path,
    texts: Sequence[Sequence[str]],
    *,
    problems: Sequence[Problem] | None = None,
    sampling: Sampling = SAMPLING,
    graded: bool = True,
) -> Path:
    """An answers folder, or more in it: one problem a row of texts."""
    problems = [problem(number) for number in range(len(texts))] if problems is None else problems
    answers = [a for p, row in zip(problems, texts, strict=True) for a in answers_of(p, row, sampling)]
    with store.open_run(folder, "generate_answers", {"seed": 1}):
        store.append_records(folder / "problems.jsonl", problems)
        store.append_records(folder / "answers.jsonl", answers)
        if graded:
            store.append_records(folder / "verdicts.jsonl", [verdict(answer) for answer in answers])
    return folder
