"""Grade a folder of sampled answers against their references: every later stage reads the verdicts.

Verdicts stand apart from answers, so grading anew never samples anew. Only answers without a verdict are
graded; more answers or a kill are made up for by the same command. Writes verdicts.jsonl beside the answers, and
verdicts.json: the settings, how many verdicts have which reason, accuracy of the judged ones with its 95 % interval.
With --audit a second, independent rule set grades too, and disagreements.jsonl holds what to read: every answer
on which the two differ. A folder that was audited once is audited again whenever it is graded.

An answer to a task of kind code is the program in its last fenced block. It runs in bubblewrap, without network, files
or environment, by the tests of the task (docs/program_checking.md); --num-workers at a time, one a core. Example:

    python tools/check_answers.py --answers answers/demo --audit
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from tt_reasoning.answer_sets import VERDICTS
from tt_reasoning.checking import (
    CHUNK,
    SETTINGS,
    Item,
    check_settings,
    describe_settings,
    grade_missing,
    read_items,
    whole_text,
    write_report,
)
from tt_reasoning.cluster import check_ray, grade_on_cluster
from tt_reasoning.errors import UserError
from tt_reasoning.generation import ANSWERS, PROBLEMS
from tt_reasoning.grading import Fallback, Grader
from tt_reasoning.grading.audit import audit, disagree
from tt_reasoning.prompts import get_prompt
from tt_reasoning.sandbox import Limits, check_isolation
from tt_reasoning.store import lock, read_manifest, read_records, write_json, write_records
from tt_reasoning.tool import require_positive, run_tool
from tt_reasoning.types import Answer, Problem, Verdict

DISAGREEMENTS = "disagreements.jsonl"
_TAIL = 600  # characters of an answer's end, for reading


@dataclass(frozen=True, kw_only=True)
class Arguments:
    answers: Path
    """Folder that generate_answers wrote."""
    num_workers: int | None = None
    """Comparisons or programs at a time, each in a process of its own; 1 unless given, on a cluster one a CPU."""
    ray_address: str | None = None
    """Grade on a Ray cluster: HOST:PORT of its head, or auto, the cluster of this machine."""
    timeout_s: float = 5.0
    """Limit of one comparison in seconds; beyond it the verdict is `timeout`."""
    fallback: Fallback = "none"
    """What counts as the answer of a completion that marks none: nothing, or its last number."""
    percent_as_fraction: bool = False
    """Whether 50% is also 0.5, if only one of the two has the sign."""
    test_timeout_s: float = Limits.test_timeout_s
    """Limit of one test of a program in seconds; beyond it the verdict is `timeout`, and wrong."""
    total_timeout_s: float = Limits.total_timeout_s
    """Limit of all tests of a program in seconds, likewise."""
    memory_mb: int = Limits.memory_mb
    """Memory of a program, all its processes together."""
    unsafe_no_sandbox: bool = False
    """Run programs without bubblewrap: with your rights, your files and your network."""
    first: int | None = None
    """Only the first so many answers to each problem, of more that are there: the others can be checked later."""
    regrade: bool = False
    """Replace all verdicts, for other settings than before."""
    audit: bool = False
    """Grade by a second rule set too, and write on which answers the two differ (programs aside)."""


def main(args: Arguments) -> str:
    require_positive(args, "num_workers", "first")
    if args.ray_address is not None:
        check_ray(args.ray_address)
    if not 0 < args.timeout_s < 3600:
        raise UserError(f"--timeout-s {args.timeout_s:g}: give a number of seconds between 0 and 3600")
    for name in ("test_timeout_s", "total_timeout_s"):
        if not 0 < getattr(args, name) < 86400:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name):g}: give seconds between 0 and 86400")
    if args.memory_mb < 64:
        raise UserError(f"--memory-mb {args.memory_mb}: Python alone needs 64")
    read_manifest(args.answers)
    path = args.answers / VERDICTS
    problems = _read_problems(args.answers)
    problem_of, later = _check_answers(args.answers, problems, args.first)
    settings = _settings(args, problems)
    if "test_timeout_s" in settings and args.ray_address is None and not args.unsafe_no_sandbox:
        check_isolation()

    # A lock of its own: generate_answers may go on adding answers.
    with lock(args.answers / ".verdicts.lock"):
        if not args.regrade:
            check_settings(args.answers, settings)
        graded = set() if args.regrade else {verdict.answer_id for verdict in read_records(path, Verdict)}
        later -= graded
        with tqdm(total=len(problem_of), initial=len(graded & problem_of.keys()), unit="answer") as bar:
            grade, chunk_size = partial(_grade, args, settings, bar), _chunk_size(args, settings)
            if args.regrade:
                _replace(args, settings, grade(read_items(args.answers, problems, later, chunk_size)))
            else:
                grade_missing(args.answers, settings, problems, graded | later, grade, chunk_size)
        report = write_report(args.answers, settings, problem_of)
        differ = None
        if args.audit or (args.answers / DISAGREEMENTS).exists():
            differ = write_records(args.answers / DISAGREEMENTS, _disagreements(args, problems, len(problem_of)))
    return _summary(path, report, differ, len(later))


def _read_problems(folder: Path) -> dict[str, Problem]:
    problems = {problem.id: problem for problem in read_records(folder / PROBLEMS, Problem)}
    if not problems:
        raise UserError(f"{folder} has no problems.jsonl, or an empty one; run generate_answers with --out {folder}")
    return problems


def _check_answers(folder: Path, problems: dict[str, Problem], first: int | None) -> tuple[dict[str, str], set[str]]:
    """The problem of every answer, by id, and the answers behind the ``first`` of their problems.

    Each answer has its problem and a known prompt.
    """
    problem_of, later = {}, set()
    for answer in read_records(folder / ANSWERS, Answer):
        if answer.problem_id not in problems:
            raise UserError(
                f"answer {answer.id} belongs to problem {answer.problem_id}, which {folder}/problems.jsonl lacks; "
                "restore that file"
            )
        get_prompt(answer.sampling.prompt, folder)
        problem_of[answer.id] = answer.problem_id
        if first is not None and answer.sample_index >= first:
            later.add(answer.id)
    if not problem_of:
        raise UserError(f"{folder} has no answers yet; run generate_answers with --out {folder}")
    return problem_of, later


def _settings(args: Arguments, problems: dict[str, Problem]) -> dict:
    """What the verdicts depend on; of how programs are run only where there are any."""
    names = ["timeout_s", "fallback", "percent_as_fraction"]
    if any(problem.kind == "code" for problem in problems.values()):
        names += ["test_timeout_s", "total_timeout_s", "memory_mb", "unsafe_no_sandbox"]
    return {name: getattr(args, name) for name in names}


def _chunk_size(args: Arguments, settings: dict) -> int:
    """Answers between two writes: few where programs are run, as each may take its whole time; all workers are busy."""
    return max(16, 4 * (args.num_workers or 1)) if "test_timeout_s" in settings else CHUNK


def _grade(args: Arguments, settings: dict, bar: tqdm, chunks: Iterator[list[Item]]) -> Iterator[list[Verdict]]:
    """Verdicts, a chunk at a time, graded here or on a cluster."""
    with contextlib.ExitStack() as stack:
        if args.ray_address is None:
            grader = stack.enter_context(Grader(num_workers=args.num_workers or 1, **settings))
            graded = map(grader.grade_many, chunks)
        else:
            graded = grade_on_cluster(chunks, settings, ray_address=args.ray_address, num_workers=args.num_workers)
        for verdicts in graded:
            yield verdicts
            bar.update(len(verdicts))


def _replace(args: Arguments, settings: dict, chunks: Iterable[list[Verdict]]) -> None:
    """All verdicts anew. Killed at any point, the folder has the old ones, or the new ones that want --regrade."""
    new, kept = args.answers / "verdicts.new.jsonl", args.answers / SETTINGS
    write_records(new, (verdict for chunk in chunks for verdict in chunk))
    kept.unlink(missing_ok=True)
    os.replace(new, args.answers / VERDICTS)
    write_json(kept, describe_settings(settings))


def _disagreements(args: Arguments, problems: dict[str, Problem], num_answers: int) -> Iterator[dict]:
    """What the two rule sets grade differently, with all that a reader needs to say who is right."""
    verdicts = {verdict.answer_id: verdict for verdict in read_records(args.answers / VERDICTS, Verdict)}
    answers = read_records(args.answers / ANSWERS, Answer)
    for answer in tqdm(answers, total=num_answers, desc="audit", unit="answer"):
        problem, verdict = problems[answer.problem_id], verdicts.get(answer.id)
        if verdict is None or problem.kind == "code":  # written in the meantime; tests have no second opinion
            continue
        text = whole_text(args.answers, answer)
        last_number = args.fallback == "last_number"
        second = audit(text, problem.reference, problem.kind, last_number=last_number)
        if disagree(verdict, second):
            yield {
                "answer_id": answer.id, "problem_id": problem.id, "kind": problem.kind,
                "reference": _storable(problem.reference),
                "grader": {"extracted": verdict.extracted, "correct": verdict.correct, "reason": verdict.reason},
                "audit": {"extracted": second.extracted, "correct": second.correct, "reason": second.reason},
                "text_end": _storable(text[-_TAIL:]),
            }  # fmt: skip


def _storable(text: str) -> str:
    """The text with question marks for lone surrogates, which no file can hold."""
    return text.encode("utf-8", "replace").decode()


def _summary(path: Path, report: dict, differ: int | None, num_later: int) -> str:
    counts, judged = report["counts"], report["judged"]
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items())
    worth = "no accuracy, as none could be judged"
    if report["accuracy"] is not None:
        low_high = report["interval"] and " [{:.1f}, {:.1f}]".format(*(100 * bound for bound in report["interval"]))
        worth = f"accuracy {100 * report['accuracy']:.1f} %{low_high or ''} of {judged} judged"
    left_out = f", {report['not_judged']} not judged and left out" if report["not_judged"] else ""
    line = f"graded {sum(counts.values())} answers: {reasons}; {worth}{left_out} -> {path}"
    if num_later:
        line += f"\n{num_later} answers are not checked yet; the same command without --first checks them"
    if differ is not None:
        line += f"\naudit: {differ} graded differently by the second rule set -> {path.with_name(DISAGREEMENTS)}"
    return line


if __name__ == "__main__":
    run_tool(main, Arguments, description=__doc__)
