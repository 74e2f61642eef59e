"""Grade a folder of sampled answers against their references: every later stage reads the verdicts.

Verdicts stand apart from answers, so grading anew never samples anew. Only answers without a verdict are
graded; more answers or a kill are made up for by the same command. Writes verdicts.jsonl and its settings,
verdicts.json, beside the answers. Example:

    python tools/check_answers.py --answers answers/demo
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from tt_reasoning.answer_sets import VERDICTS
from tt_reasoning.errors import UserError
from tt_reasoning.generation import ANSWERS, PROBLEMS
from tt_reasoning.grading import Fallback, Grader, accuracy, count_reasons
from tt_reasoning.prompts import get_prompt
from tt_reasoning.store import append_records, lock, read_manifest, read_records, versions, write_json, write_records
from tt_reasoning.tool import run_tool
from tt_reasoning.types import Answer, Problem, Verdict

CHUNK = 100  # answers graded between two writes


@dataclass(frozen=True, kw_only=True)
class Arguments:
    answers: Path
    """Folder that generate_answers wrote."""
    num_workers: int = 1
    """Comparisons at a time; each has a process of its own."""
    timeout_s: float = 5.0
    """Limit of one comparison in seconds; beyond it the verdict is `timeout`."""
    fallback: Fallback = "none"
    """What counts as the answer of a completion that marks none: nothing, or its last number."""
    regrade: bool = False
    """Replace all verdicts, for other settings than before."""


def main(args: Arguments) -> str:
    if args.num_workers < 1:
        raise UserError(f"--num-workers {args.num_workers}: give at least 1")
    if not 0 < args.timeout_s < 3600:
        raise UserError(f"--timeout-s {args.timeout_s:g}: give a number of seconds between 0 and 3600")
    read_manifest(args.answers)
    path = args.answers / VERDICTS
    problems = _read_problems(args.answers)
    answer_ids = _check_answers(args.answers, problems)

    grader = Grader(timeout_s=args.timeout_s, num_workers=args.num_workers, fallback=args.fallback)
    # A lock of its own: generate_answers may go on adding answers.
    with lock(args.answers / ".verdicts.lock"), grader:
        if not args.regrade:
            _check_settings(args)
        graded = set() if args.regrade else {verdict.answer_id for verdict in read_records(path, Verdict)}
        todo = (answer for answer in read_records(args.answers / ANSWERS, Answer) if answer.id not in graded)
        found = len(graded & answer_ids)
        with tqdm(total=len(answer_ids), initial=found, unit="answer") as bar:
            chunks = _grade(todo, problems, grader, bar)
            if args.regrade:
                _replace(args, chunks)
            else:
                write_json(args.answers / "verdicts.json", _settings(args))
                for chunk in chunks:
                    append_records(path, chunk)
    return _summary(path)


def _read_problems(folder: Path) -> dict[str, Problem]:
    problems = {problem.id: problem for problem in read_records(folder / PROBLEMS, Problem)}
    if not problems:
        raise UserError(f"{folder} has no problems.jsonl, or an empty one; run generate_answers with --out {folder}")
    for problem in problems.values():
        if problem.kind == "code":
            raise UserError(f"problem {problem.id} of {folder} asks for code, which this tool cannot grade")
    return problems


def _check_answers(folder: Path, problems: dict[str, Problem]) -> set[str]:
    """The ids of all answers, each of which has its problem and a known prompt."""
    ids = set()
    for answer in read_records(folder / ANSWERS, Answer):
        if answer.problem_id not in problems:
            raise UserError(
                f"answer {answer.id} belongs to problem {answer.problem_id}, which {folder}/problems.jsonl lacks; "
                "restore that file"
            )
        get_prompt(answer.sampling.prompt)
        ids.add(answer.id)
    if not ids:
        raise UserError(f"{folder} has no answers yet; run generate_answers with --out {folder}")
    return ids


def _settings(args: Arguments) -> dict:
    arguments = {"timeout_s": args.timeout_s, "fallback": args.fallback}
    return {"tool": "check_answers", "arguments": arguments, "versions": versions()}


def _check_settings(args: Arguments) -> None:
    path = args.answers / "verdicts.json"
    try:
        old = json.loads(path.read_text(encoding="utf-8"))["arguments"] if path.exists() else None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} cannot be read; pass --regrade to grade anew") from None
    if old is None and (args.answers / VERDICTS).exists():
        raise UserError(f"{args.answers} has verdicts without their settings; pass --regrade to grade anew")
    new = _settings(args)["arguments"]
    if old not in (None, new):
        raise UserError(
            f"{args.answers} was graded with {_show(old)}, now {_show(new)}; "
            "repeat the old settings, or pass --regrade to grade anew"
        )


def _show(arguments: dict) -> str:
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in arguments.items())


def _grade(
    answers: Iterator[Answer], problems: dict[str, Problem], grader: Grader, bar: tqdm
) -> Iterator[list[Verdict]]:
    """Verdicts, a chunk at a time. A completion is read from its prompt's prefill on."""
    while chunk := list(islice(answers, CHUNK)):
        items = []
        for answer in chunk:
            problem = problems[answer.problem_id]
            text = get_prompt(answer.sampling.prompt).prefill + answer.text
            items.append((answer.id, text, problem.reference, problem.kind))
        yield grader.grade_many(items)
        bar.update(len(chunk))


def _replace(args: Arguments, chunks: Iterable[list[Verdict]]) -> None:
    """All verdicts anew. Killed at any point, the folder has the old ones, or the new ones that want --regrade."""
    new, settings = args.answers / "verdicts.new.jsonl", args.answers / "verdicts.json"
    write_records(new, (verdict for chunk in chunks for verdict in chunk))
    settings.unlink(missing_ok=True)
    os.replace(new, args.answers / VERDICTS)
    write_json(settings, _settings(args))


def _summary(path: Path) -> str:
    counts = count_reasons(read_records(path, Verdict))
    share = accuracy(read_records(path, Verdict))
    judged = counts["match"] + counts["mismatch"] + counts["no_answer"]
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)
    worth = "no accuracy, as none could be judged" if share is None else f"accuracy {share:.1%} of {judged} judged"
    return f"graded {sum(counts.values())} answers: {reasons}; {worth.replace('%', ' %')} -> {path}"


if __name__ == "__main__":
    run_tool(main, Arguments, description=__doc__)
