"""Import result files of Sky-T1's inference_and_check as a folder of answers, to be checked, converted, rewritten.

Reads a file of either old shape (one response a temperature, or a list of --n) or of the later one (results.json),
plain or converted_*. --dataset makes each problem as generate_answers makes it of the same row, so that ids and tests
join; without one, question and answer are taken from the row. The answers keep their texts, numbers of tokens and
temperatures, and the prompt that they were asked with, if one template gives it. Old verdicts count crashed and hung
programs as correct: they go to old_verdicts.jsonl, to compare with, and check_answers grades anew. A row that cannot be
read is named and kept in rejected.jsonl; the others are imported.

Example: python tools/import_results.py --results Qwen2-7B_MATH500_test_None_0_-1.json --dataset math500
    --out answers/imported
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tt_reasoning import store
from tt_reasoning.errors import UserError
from tt_reasoning.generation import ANSWERS, PROBLEMS
from tt_reasoning.old_results import (
    OLD_VERDICTS,
    REJECTED,
    Content,
    Imported,
    check_dataset,
    find_setting,
    guess_from_name,
    import_rows,
    read_results,
)
from tt_reasoning.tool import require_positive, run_tool

_MAX_TOLD = 5  # malformed rows that are named on standard error
_MAX_NEW_TOKENS = 32768  # what the old tools sample with unless told


@dataclass(frozen=True, kw_only=True)
class Arguments:
    results: Path
    """File of results, such as Qwen2-7B_MATH500_test_None_0_-1.json or a run's results.json."""
    out: Path
    """Folder for the answers."""
    dataset: str | None = None
    """Benchmark that the rows are of, such as math500 or APPS; question and answer of the rows themselves unless
    given."""
    split: str | None = None
    """Split of the benchmark; what the file's name says, else test, unless given."""
    model: str | None = None
    """Model that answered; what the file's name or summary.json says unless given."""
    temperature: float | None = None
    """Of responses that do not say theirs (results.json); what summary.json beside them says unless given."""
    max_new_tokens: int | None = None
    """Limit of an answer: one with so many tokens counts as cut; summary.json's or 32768 unless given."""
    content: Content = "processed"
    """Which text to take where a response was converted: processed, or the original."""


def main(args: Arguments) -> str:
    require_positive(args, "max_new_tokens")
    if args.temperature is not None and not 0 <= args.temperature < float("inf"):
        raise UserError(f"--temperature {args.temperature:g}: give a number from 0 on")
    dataset, rows = check_dataset(args.dataset), read_results(args.results)
    guess, summary = guess_from_name(args.results), _read_summary(args.results)
    model = args.model or guess.get("model") or find_setting(summary, "model_id") or args.results.stem
    temperature = find_setting(summary, "temperature") if args.temperature is None else args.temperature
    limit = args.max_new_tokens or find_setting(summary, "max_tokens") or _MAX_NEW_TOKENS
    split = args.split or guess.get("split") or "test"
    found = import_rows(rows, dataset, split, str(model), int(limit), args.content, temperature)
    for row in found.rejected[:_MAX_TOLD]:
        print(f"{args.results}: row {row.key[:60]!r} is left out: {row.detail}", file=sys.stderr)
    if not found.answers:
        raise UserError(f"--results {args.results}: none of {len(rows)} rows could be read")
    identity = {
        "results": args.results.name,
        "sha256": hashlib.sha256(args.results.read_bytes()).hexdigest(),
        "dataset": dataset, "split": split, "model": str(model), "temperature": temperature,
        "max_new_tokens": int(limit), "content": args.content,
        "template": found.template.template() if found.template else None,
    }  # fmt: skip
    with store.open_run(args.out, "import_results", identity) as out:
        store.write_records(out / PROBLEMS, found.problems)
        store.write_records(out / OLD_VERDICTS, found.old_verdicts)
        store.write_records(out / REJECTED, found.rejected)
        store.write_records(out / ANSWERS, found.answers)
    return _describe(found, args.out)


def _read_summary(results: Path) -> Any:
    """What the later tool wrote beside its results; nothing where there is no such file."""
    path = results.with_name("summary.json")
    if results.name != "results.json" or not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from None


def _describe(found: Imported, out: Path) -> str:
    temperatures = Counter(answer.sampling.temperature for answer in found.answers)
    told = ", ".join(f"{number} at temperature {value:g}" for value, number in sorted(temperatures.items()))
    judged = [verdict.correct for verdict in found.old_verdicts if verdict.correct is not None]
    lines = [f"{out}: {len(found.problems)} problems, {len(found.answers)} answers ({told})"]
    if judged:
        lines.append(
            f"the file calls {sum(judged)} of {len(judged)} correct, crashed and hung programs among them: kept in "
            f"{out / OLD_VERDICTS}, not used"
        )
    if found.asked_otherwise:
        lines.append(f"{found.asked_otherwise} answers were asked in other words than their prompt here says")
    if found.uncounted:
        lines.append(f"{found.uncounted} answers have no number of tokens in the file; their words are counted")
    if found.rejected:
        lines.append(f"{len(found.rejected)} rows left out, see {out / REJECTED}")
    return "\n".join([*lines, f"now run: python tools/check_answers.py --answers {out}"])


if __name__ == "__main__":
    run_tool(main, Arguments, __doc__)
