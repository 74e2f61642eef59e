"""Results of other tools as a folder of answers: the JSON files of Sky-T1's inference_and_check, in three shapes.

A file is an object with a row for every problem: the data set's own columns and what the model made of them. Samples
are by temperature, one each or a list (``responses["0.7"] = {...}`` or ``[...]``), or, in later files, one flat list
behind ``input_conversation``. A sample has ``content``, after their format conversion ``processed_content`` too, and
``correctness`` and ``reason``. Those verdicts count a program that crashed, hung or had no test as correct: they are
kept to compare with (``OldVerdict``), and nothing reads them as verdicts.

What was not recorded is not made up: the seed is 0 and means nothing, the sampling's other limits are what the caller
says. A problem is the one that this project makes of the same row, so that its id joins with other runs; but where the
options of a choice were asked in another order than here, or under other letters, it is the question as it was asked.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tt_reasoning.errors import UserError, unknown_name
from tt_reasoning.grading.extract import extract_answer, extract_box
from tt_reasoning.problems import ALIASES, SOURCES, find_dataset
from tt_reasoning.problems.rows import position_field, text_field
from tt_reasoning.prompts import LETTERS, Prompt, get_prompt, make_prompt
from tt_reasoning.types import Answer, Problem, Sampling

OLD_VERDICTS = "old_verdicts.jsonl"
REJECTED = "rejected.jsonl"
Content = Literal["processed", "original"]

_OURS = ("responses", "token_usages", "prompt", "input_conversation")  # keys that the old tools added to a row
_NAME = re.compile(
    r"(?:converted_)?(?P<model>.+?)_(?P<dataset>NUMINA|APPS|TACO|MATH500|AIME|GPQADiamond|MMLU|MMLUPro|LiveCodeBench|"
    r"GSM8K|ARC-C|AMC23)_(?P<split>[^_]+)_.*"
)  # fmt: skip


class OldSample(NamedTuple):
    """One response of a row: ``num_tokens`` is None where the file has no usage for it."""

    temperature: float
    text: str
    num_tokens: int | None
    correct: bool | None
    reason: str


class OldRow(NamedTuple):
    """One row: the data set's own columns, what the user and the system said, and the samples in order."""

    key: str
    columns: dict[str, Any]
    user: str | None
    system: str | None
    samples: list[OldSample]


@dataclass(frozen=True, kw_only=True)
class OldVerdict:
    """One line of ``old_verdicts.jsonl``: what the old tool thought of an answer, to compare with. Never trusted."""

    answer_id: str
    correct: bool | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class RejectedRow:
    """One line of ``rejected.jsonl``: a row that could not be read, by its key in the file."""

    key: str
    detail: str


class Imported(NamedTuple):
    """What a file comes to. ``asked_otherwise`` answers were asked in words that no one template gives.

    ``uncounted`` answers have no number of tokens in the file; it is then the number of their words.
    """

    problems: list[Problem]
    answers: list[Answer]
    old_verdicts: list[OldVerdict]
    rejected: list[RejectedRow]
    template: Prompt | None
    asked_otherwise: int
    uncounted: int


def guess_from_name(path: Path) -> dict[str, str]:
    """Model, data set and split that the old tools wrote into a file's name; empty where it is none of theirs.

    >>> guess_from_name(Path("converted_Qwen2-7B_MATH500_test_None_0_-1.json"))
    {'model': 'Qwen2-7B', 'dataset': 'MATH500', 'split': 'test'}
    """
    found = _NAME.fullmatch(path.stem)
    return found.groupdict() if found else {}


def read_results(path: Path) -> dict[str, Any]:
    """The rows of a file by their key. Raises UserError for what is no such file."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"--results {path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"--results {path} is a folder; name the file of results in it") from None
    except (ValueError, OSError) as error:
        raise UserError(f"--results {path}: not JSON: {error}") from None
    if not isinstance(rows, dict) or not rows:
        raise UserError(f"--results {path}: not an object with a row for every problem")
    return rows


def find_setting(summary: Any, name: str) -> Any:
    """The first value of that name in nested objects, as the later tool's ``summary.json`` has them; None without.

    >>> find_setting({"configuration": {"sampling_params": {"params": {"temperature": 0.6}}}}, "temperature")
    0.6
    """
    if not isinstance(summary, dict):
        return None
    if summary.get(name) is not None:
        return summary[name]
    return next((found for value in summary.values() if (found := find_setting(value, name)) is not None), None)


def parse_row(key: str, row: object, content: Content = "processed", temperature: float | None = None) -> OldRow:
    """A row of any of the shapes.

    Args:
        content: which text is the answer where there are two.
        temperature: of the responses of the flat shape, which does not say.

    Raises:
        ValueError: it is of none of them; says what is wrong.

    >>> row = {"problem": "1 + 1?", "prompt": "Box it. 1 + 1?", "token_usages": {"0.7": {"completion_tokens": 3}},
    ...        "responses": {"0.7": {"content": "It is 2.", "correctness": True, "reason": ""}}}
    >>> parse_row("1 + 1?", row).samples
    [OldSample(temperature=0.7, text='It is 2.', num_tokens=3, correct=True, reason='')]
    """
    if not isinstance(row, dict):
        raise ValueError("not an object")
    responses, usages = row.get("responses"), row.get("token_usages")
    system, user, begun = _parse_conversation(row.get("input_conversation"), row.get("prompt"))
    samples: list[OldSample] = []
    if isinstance(responses, dict):
        for name, entries in responses.items():
            usage = usages.get(name) if isinstance(usages, dict) else None
            at = _parse_temperature(name)
            many = isinstance(entries, list)
            samples += _parse_samples(entries if many else [entries], usage if many else [usage], at, content, begun)
    elif isinstance(responses, list):
        if temperature is None:
            raise ValueError("responses are a list without temperatures; say theirs (--temperature)")
        samples += _parse_samples(responses, usages, temperature, content, begun)
    else:
        raise ValueError(f"responses={responses!r:.60} should be an object by temperature, or a list")
    if not samples:
        raise ValueError("no responses")
    columns = {name: value for name, value in row.items() if name not in _OURS}
    return OldRow(key, columns, user, system, samples)


def _parse_conversation(turns: object, prompt: object) -> tuple[str | None, str | None, str]:
    """What the system and the user said, and what of the answer was given."""
    if not isinstance(turns, list):
        return None, prompt if isinstance(prompt, str) else None, ""
    if not all(isinstance(turn, dict) and isinstance(turn.get("content"), str) for turn in turns):
        raise ValueError("input_conversation: a turn without its content")
    said = {turn.get("role"): turn["content"] for turn in turns}
    return said.get("system"), said.get("user"), said.get("assistant", "")


def _parse_temperature(name: str) -> float:
    try:
        return float(name)
    except ValueError:
        raise ValueError(f"responses: {name!r} is no temperature") from None


def _parse_samples(
    entries: Sequence[object], usages: object, temperature: float, content: Content, begun: str
) -> Iterator[OldSample]:
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise ValueError(f"response {number} of temperature {temperature:g} has no content")
        text, processed = begun + entry["content"], entry.get("processed_content")
        if content == "processed" and isinstance(processed, str):
            text = processed
        correct = entry.get("correctness")
        if correct is not None and not isinstance(correct, (bool, int)):
            raise ValueError(f"response {number} of temperature {temperature:g}: correctness={correct!r:.40}")
        usage = usages[number] if isinstance(usages, list) and number < len(usages) else None
        tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
        yield OldSample(
            temperature, _storable(text), tokens if type(tokens) is int else None,
            None if correct is None else bool(correct), str(entry.get("reason") or ""),
        )  # fmt: skip


def to_problem(row: OldRow, dataset: str | None, split: str) -> Problem:
    """The problem that a row asks.

    Args:
        dataset: the benchmark whose columns the row has; without one, the question and its answer are looked for
            under the names that the old tools' benchmarks give them.

    Raises:
        ValueError: the row asks nothing that could be graded.
    """
    if dataset is None:
        return _guess_problem(row, split)
    source = SOURCES[dataset]
    problem = source.to_problem(row.columns, split)
    if problem is None:
        raise ValueError(f"no problem of {dataset}: {source.left_out}")
    if problem.kind != "choice":
        return problem
    letter = _letter_asked(row.columns)
    if problem.order_seed is None and letter == problem.reference:
        return problem
    return _choice_as_asked(row, letter, dataset, split, problem.category)


def _letter_asked(columns: dict[str, Any]) -> str:
    """The letter of the right option as the old tools asked."""
    if "Answer" in columns:  # GPQA: shuffled anew by every run, which wrote the letter down
        return LETTERS[position_field(columns, "Answer", LETTERS[:4])]
    if "answerKey" in columns:
        choices = columns.get("choices")
        labels = choices.get("label") if isinstance(choices, dict) else None
        if not isinstance(labels, list):
            raise ValueError("choices have no labels")
        return LETTERS[position_field(columns, "answerKey", labels)]
    name = "answer_index" if "answer_index" in columns else "answer"
    if name not in columns:
        raise ValueError("the letter of the right option is not there: no field 'Answer', 'answerKey' or 'answer'")
    return LETTERS[position_field(columns, name, LETTERS)]


def _choice_as_asked(row: OldRow, letter: str, source: str, split: str, category: str | None) -> Problem:
    if row.user is None:
        raise ValueError("no prompt, so the letters of its options are not known")
    return Problem(
        source=source, split=split, question=_storable(row.user), reference=letter, kind="choice", category=category
    )


def _guess_problem(row: OldRow, split: str) -> Problem:
    columns, source = row.columns, "old_results"
    tests = columns.get("input_output")
    if tests:
        question = row.user or text_field(columns, "question")
        reference = tests if isinstance(tests, str) else json.dumps(tests, separators=(",", ":"))
        return Problem(source=source, split=split, question=_storable(question), reference=reference, kind="code")
    if "choices" in columns or "options" in columns or "Correct Answer" in columns:
        return _choice_as_asked(row, _letter_asked(columns), source, split, None)
    question = text_field(columns, "problem", "question", "Question")
    reference = _guess_reference(columns)
    return Problem(source=source, split=split, question=_storable(question), reference=_storable(reference))


def _guess_reference(columns: dict[str, Any]) -> str:
    answer = columns.get("answer")
    if isinstance(answer, (int, float)) and not isinstance(answer, bool):
        return str(answer)
    if isinstance(answer, str) and answer.strip():
        return (extract_answer(answer) or answer).strip() if "####" in answer else answer.strip()
    solution = columns.get("solution")
    boxed = extract_box(solution) if isinstance(solution, str) else None
    if boxed is None:
        raise ValueError("no answer, and no solution that boxes one, to grade by; name its benchmark with --dataset")
    return boxed


def check_dataset(name: str | None) -> str | None:
    """The name in ``SOURCES`` of what a user calls a benchmark. Raises UserError when there is none."""
    if name is None:
        return None
    found = find_dataset(name)
    if found not in SOURCES:
        raise unknown_name("dataset", name.lower(), {*SOURCES, *ALIASES})
    return found


def import_rows(
    rows: dict[str, Any],
    dataset: str | None,
    split: str,
    model: str,
    max_new_tokens: int,
    content: Content = "processed",
    temperature: float | None = None,
) -> Imported:
    """Problems, answers and old verdicts of a file's rows; a malformed row is rejected with what is wrong with it.

    Args:
        max_new_tokens: an answer of so many tokens, or more, counts as cut.
    """
    read: list[tuple[OldRow, Problem]] = []
    rejected = []
    for key, row in rows.items():
        try:
            old = parse_row(key, row, content, temperature)
            read.append((old, to_problem(old, dataset, split)))
        except ValueError as error:
            rejected.append(RejectedRow(key=_storable(key), detail=str(error)))
    template = _find_template(read)
    problems: dict[str, Problem] = {}
    answers: dict[str, Answer] = {}
    verdicts: list[OldVerdict] = []
    numbers: Counter[tuple[str, float]] = Counter()  # a question may stand in two rows
    asked_otherwise = uncounted = 0
    for old, problem in read:
        problems.setdefault(problem.id, problem)
        prompt = _prompt_of(old, problem, template)
        for sample in old.samples:
            sampling = Sampling(
                model=model, prompt=(prompt or get_prompt("question")).name, temperature=sample.temperature,
                max_new_tokens=max_new_tokens,
            )  # fmt: skip
            number = numbers[problem.id, sample.temperature]
            numbers[problem.id, sample.temperature] += 1
            tokens = len(sample.text.split()) if sample.num_tokens is None else sample.num_tokens
            uncounted += sample.num_tokens is None
            asked_otherwise += prompt is None
            identity = sampling.answer_id(problem.id, number)
            answers[identity] = Answer(
                id=identity, problem_id=problem.id, sample_index=number, text=sample.text, num_tokens=tokens,
                finish_reason="length" if tokens >= max_new_tokens else "stop", sampling=sampling,
            )  # fmt: skip
            verdicts.append(OldVerdict(answer_id=identity, correct=sample.correct, reason=sample.reason))
    return Imported(
        [*problems.values()], [*answers.values()], verdicts, rejected, template, asked_otherwise, uncounted
    )


def _find_template(read: Sequence[tuple[OldRow, Problem]]) -> Prompt | None:
    """The prompt that most rows were asked with, found by taking each question out of what the user said."""
    found: Counter[tuple[str, str | None]] = Counter()
    for old, problem in read:
        if old.user is not None and "{question}" not in old.user and old.user.count(problem.question) == 1:
            found[old.user.replace(problem.question, "{question}"), old.system] += 1
    if not found:
        return None
    (user, system), _ = found.most_common(1)[0]
    return make_prompt({"user": _storable(user), "system": system and _storable(system)}, "the prompts of the file")


def _prompt_of(old: OldRow, problem: Problem, template: Prompt | None) -> Prompt | None:
    """The prompt that a row was asked with: the template, the question alone, or none that is known."""
    if old.user is None:
        return get_prompt("question")
    for prompt in (template, get_prompt("question")):
        if prompt is None or prompt.system != old.system:
            continue
        if prompt.user.replace("{question}", problem.question) == _storable(old.user):
            return prompt
    return None


def _storable(text: str) -> str:
    """The text with question marks for lone surrogates, which no file can hold."""
    return text.encode("utf-8", "replace").decode()
