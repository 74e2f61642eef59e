"""Write a training set in ShareGPT form: correct answers in the thought/solution form, each question once.

Reads folders that convert_format wrote and check_answers graded. Taken are correct answers that ended by themselves and
have the four tags (--any-format: any form), of each question --keep, a text once; a question in two folders is one.
--merge FILE adds an outside set of the STILL-2 form (question, combined_text, domain; a JSON list or a JSON object
a line), by default without its code. All are put in an order that --seed decides. --rejected FILE holds everything that
was not taken, with its reason. A file that is there is never overwritten.

The file loads in torchtune (chat_dataset, conversation_style sharegpt: configs/135M_sharegpt_sft_cpu.yaml) and in
LLaMA-Factory; --roles user-assistant writes the names of Sky-T1's own file, which torchtune cannot read.

Example: python tools/to_sharegpt.py --answers converted/apps converted/math --out train_data.json
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from tt_reasoning.errors import UserError
from tt_reasoning.prompts import load_prompt
from tt_reasoning.sharegpt import (
    Candidate,
    Choice,
    GradedFolder,
    OutsideSet,
    Roles,
    Turn,
    choose,
    list_lines,
    open_graded,
    read_outside,
    rejected_lines,
    select_domains,
    shuffle,
    to_record,
    write_once,
)
from tt_reasoning.tool import require_positive, run_tool


@dataclass(frozen=True, kw_only=True)
class Arguments:
    answers: tuple[Path, ...]
    """Folders of checked answers, one or several."""
    out: Path
    """The file to write, such as train_data.json."""
    keep: int = 1
    """Most answers to one question."""
    choice: Choice = "shortest"
    """Which of a question's answers are taken: the shortest, or the first."""
    any_format: bool = False
    """Take answers that are not in the thought/solution form as well."""
    system_prompt: str = "thought_solution"
    """System prompt of every row: a name in tt_reasoning/prompts.py, or a text file."""
    roles: Roles = "human-gpt"
    """Names of the speakers; human-gpt has the system prompt as its first turn too."""
    merge: tuple[Path, ...] = ()
    """Files with outside sets of the STILL-2 form."""
    merge_domains: tuple[str, ...] = ()
    """Domains to take of them, such as physics puzzle; all but code unless given."""
    seed: int = 0
    """Decides the order of the rows."""
    rejected: Path | None = None
    """File for what was not taken, a JSON object a line with its reason."""


def main(args: Arguments) -> str:
    _check_arguments(args)
    system = load_prompt("question", args.system_prompt).system
    assert system is not None
    outside, left_out = select_domains([read_outside(path) for path in args.merge], args.merge_domains)
    places = [*map(open_graded, args.answers), *outside]
    taken, rejected = choose(_scan(places, args.any_format), args.keep, args.choice)

    def read(candidate: Candidate) -> Turn:
        return places[candidate.place].read(candidate.offset)

    args.out.parent.mkdir(parents=True, exist_ok=True)
    if args.rejected is not None:
        args.rejected.parent.mkdir(parents=True, exist_ok=True)
        write_once(args.rejected, lambda: rejected_lines(rejected, read))
    reasons = Counter(reason for _, reason, _ in rejected)
    if not taken:
        raise UserError(f"none of {len(rejected)} answers can be taken: {_told(reasons)}{_advise(reasons)}")
    order = shuffle(taken, args.seed)
    wrote = write_once(
        args.out,
        lambda: list_lines(
            to_record(read(candidate), system, args.roles) for candidate in tqdm(order, desc="write", unit="row")
        ),
    )
    return _describe(args, taken, reasons, left_out, wrote)


def _check_arguments(args: Arguments) -> None:
    require_positive(args, "keep")
    if not args.answers:
        raise UserError("--answers names no folder; give one or several of checked answers")
    for name, paths in (("answers", args.answers), ("merge", args.merge)):
        for path in paths:
            if [other.resolve() for other in paths].count(path.resolve()) > 1:
                raise UserError(f"--{name} names {path} twice")
    if args.merge_domains and not args.merge:
        raise UserError("--merge-domains is about --merge FILE, which is not given")
    for name, path in (("out", args.out), ("rejected", args.rejected)):
        if path is not None and path.is_dir():
            raise UserError(f"--{name} {path} is a folder; name a file")
    if args.rejected is not None and args.rejected.resolve() == args.out.resolve():
        raise UserError(f"--rejected {args.rejected} is --out too; name another file")


def _scan(places: Sequence[GradedFolder | OutsideSet], any_format: bool) -> list[Candidate]:
    found: list[Candidate] = []
    with tqdm(desc="read", unit="answer") as bar:
        for number, place in enumerate(places):
            for candidate in place.scan(number, any_format):
                found.append(candidate)
                bar.update()
    return found


def _describe(
    args: Arguments, taken: Sequence[Candidate], reasons: Counter[str], left_out: Counter[str], wrote: bool
) -> str:
    questions = len({candidate.question for candidate in taken})
    merged = sum(candidate.place >= len(args.answers) for candidate in taken)
    lines = [
        f"{args.out}: {len(taken)} conversations on {questions} questions"
        f"{f', {merged} of them from outside sets' if args.merge else ''}"
        f"{'' if wrote else ' (was there already)'}"
    ]
    where = f" (see {args.rejected})" if args.rejected else "; --rejected FILE keeps them" if reasons else ""
    lines.append(f"not taken {reasons.total()}: {_told(reasons) or 'none'}{where}{_advise(reasons)}")
    if left_out:
        lines.append(f"left out by domain: {_told(left_out)}")
    return "\n".join(lines)


def _advise(reasons: Counter[str]) -> str:
    if reasons["no_verdict"]:
        return "; run tools/check_answers.py on the folders with answers that have no verdict"
    if reasons["tags"]:
        return "; tools/convert_format.py gives answers the tags, --any-format takes them without"
    return ""


def _told(numbers: Counter[str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in numbers.most_common() if number)


if __name__ == "__main__":
    run_tool(main, Arguments, __doc__)
