"""Steps with human ratings from PRM800K (Lightman et al., arXiv 2305.20050), in the files as they are published.

A row is one solution that a labeller walked through: at every step the candidates that a model wrote, each with a
rating, and which of them the solution went on with. In phase 1 there are many candidates and a labeller may write a
step; in phase 2 a solution is rated up to its first error, where alternatives to the wrong step may be rated too.

The path of a row takes at each step the chosen candidate, else the step that the labeller wrote, else the first
candidate; so in phase 2 it ends with the wrong step itself, rated -1. Three ways to make answers of it (``Mode``):

- ``candidates``: the path is one answer, and every rated candidate beside it is one more: the path before it, without
  ratings, and the candidate. A label stands in the folder once, however many rows repeat it.
- ``single-path``: the path alone, cut behind its first -1.
- ``product``: every combination of the candidates of all steps, each cut behind its first -1.

Ratings stay raw: what 0 counts as is for the dataset to say. Where the files have no rating there is none here: of
some candidates, and of all steps that labellers wrote. These were asked for as good steps where every candidate was
rated -1 (the README of PRM800K), but nobody rated them: they are context and no label. Where two labellers rated the
same candidate, after the same steps of the same problem, differently, the lower rating holds.

The reference sets the rating to 1 wherever no candidate was chosen, which makes good steps of the first errors of
phase 2, and repeats what several rows or combinations share. Here a rating is the one given.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from tqdm import tqdm

from tt_reasoning import store
from tt_reasoning.errors import UserError
from tt_reasoning.generation import ANSWERS, PROBLEMS, STATS
from tt_reasoning.problems.rows import optional_text_field, text_field
from tt_reasoning.steps import STEPS
from tt_reasoning.types import Answer, Problem, Rating, Sampling, Step

Mode = Literal["candidates", "single-path", "product"]
Split = Literal["train", "test"]
LeftOut = Literal["quality_control", "initial_screening", "bad_problem", "give_up", "generation", "unrated"]
HOME, LICENSE = "https://github.com/openai/prm800k", "MIT"
# The files do not say how their solutions were sampled; the prompt is the one behind which judges read them.
SAMPLING = Sampling(model="prm800k", prompt="steps")
_FINISHES = ("found_error", "solution", "bad_problem", "give_up")
_ANSWER = "# Answer"  # stands in the last step of a whole solution
_NULL = type(None)
_WORDS = {dict: "an object", list: "a list", str: "a text", int: "an integer", bool: "true or false", _NULL: "null"}
_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What becomes of the rows.

    ``split`` is the label that the problems get. ``max_generation`` leaves out what phase 2 collected later (4 makes
    the small set of the reference). ``max_paths`` bounds the product of one row: of more, so many are taken, evenly
    spaced.
    """

    mode: Mode = "candidates"
    split: Split = "train"
    max_generation: int | None = None
    max_paths: int = 256


class Option(NamedTuple):
    """What a step may say: a candidate and its rating, or what the labeller wrote, which has none."""

    text: str
    rating: Rating | None = None
    by_human: bool = False


Chain = tuple[Option, ...]  # the steps of an answer in the making


class LabelledStep(NamedTuple):
    """The options of a step, none of them blank, and the number of the one that the path takes."""

    options: tuple[Option, ...]
    taken: int


class Solution(NamedTuple):
    """A row: the steps as far as its path goes, or why it is left out (then without steps).

    ``num_lost`` ratings are of a blank text, or stand at or behind a step in which the path finds no text.
    """

    problem: Problem
    steps: tuple[LabelledStep, ...] = ()
    num_lost: int = 0
    left_out: LeftOut | None = None


@dataclass(frozen=True, kw_only=True)
class Survey:
    """All labels of the files. Keys stand for a candidate after certain steps of a certain problem (see ``locate``).

    ``ratings`` has the rating that holds, ``on_path`` the candidates that some path takes, ``disputed`` those with
    different ratings. ``counts`` are of what was read, in rows that are used but for ``rows`` itself.
    """

    ratings: dict[bytes, Rating] = field(default_factory=dict)
    on_path: set[bytes] = field(default_factory=set)
    disputed: set[bytes] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)
    left_out: Counter[LeftOut] = field(default_factory=Counter)


def read_solutions(files: Sequence[Path], rules: Rules, task: str = "read") -> Iterator[Solution]:
    """Every row of the published files (.jsonl, or .jsonl.gz), one at a time, with a progress bar of bytes.

    Raises:
        UserError: a malformed line (file and line are named), the last one too when the file ends within it; or a
            pointer of Git LFS in place of the file.
    """
    total = sum(path.stat().st_size for path in files)
    with tqdm(total=total, unit="B", unit_scale=True, desc=task, disable=None) as bar:
        for path in files:
            for number, line in _read_lines(path, bar):
                if line.strip():
                    yield _parse_line(line, f"{path}:{number}", rules)


def _read_lines(path: Path, bar: tqdm) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as raw:
        file = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
        before = number = 0
        try:
            for number, line in enumerate(file, 1):
                yield number, line
                bar.update(raw.tell() - before)
                before = raw.tell()
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{path}:{number + 1}: not whole gzip data ({error}); fetch the file again") from None


def _parse_line(line: bytes, where: str, rules: Rules) -> Solution:
    if line.startswith(_POINTER):
        raise UserError(f"{where}: a pointer of Git LFS, not the labels; fetch them with: git lfs pull")
    try:
        row = json.loads(line)
    except ValueError as error:
        if not line.endswith(b"\n"):
            raise UserError(f"{where}: the file ends within this line; fetch the file again") from None
        raise UserError(f"{where}: not JSON: {error}") from None
    try:
        return parse_row(row, rules)
    except ValueError as error:
        raise UserError(f"{where}: not a row of PRM800K: {error}") from None


def parse_row(row: Any, rules: Rules) -> Solution:
    """A published row. Raises ValueError when it is malformed; of a row that is left out, the steps are not looked at.

    A missing reference answer becomes "", which the grader counts as a bad reference.

    >>> row = {
    ...     "labeler": "340d89bc-f5b7-45e9-b272-909ba68ee363", "timestamp": "2023-01-22T04:34:27.052924",
    ...     "generation": 9, "is_quality_control_question": False, "is_initial_screening_question": False,
    ...     "question": {"problem": "What is 3 + 4?", "ground_truth_answer": "7"},
    ...     "label": {"steps": [{"completions": [{"text": "3 + 4 = 8.", "rating": -1, "flagged": None}],
    ...                          "human_completion": None, "chosen_completion": None}],
    ...               "total_time": 2100, "finish_reason": "found_error"}}
    >>> parse_row(row, Rules()).steps
    (LabelledStep(options=(Option(text='3 + 4 = 8.', rating=-1, by_human=False),), taken=0),)
    >>> parse_row(row | {"is_quality_control_question": True}, Rules()).left_out
    'quality_control'
    """
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    question, label = _take(row, "question", dict), _take(row, "label", dict)
    reference = optional_text_field(question, "ground_truth_answer") or ""
    problem = Problem(
        source="prm800k", split=rules.split, question=text_field(question, "problem"), reference=reference
    )
    reference.encode()  # half a surrogate pair is valid JSON and no text
    finish = _take(label, "finish_reason", str)
    if finish not in _FINISHES:
        raise ValueError(f"finish_reason={finish!r} is none of {', '.join(_FINISHES)}")
    reason = _find_reason(row, finish, rules)
    if reason is not None:
        return Solution(problem, left_out=reason)
    rows = _take(label, "steps", list)
    steps: list[LabelledStep] = []
    for number, step_row in enumerate(rows):
        try:
            step = _parse_step(step_row)
        except ValueError as error:
            raise ValueError(f"step {number}: {error}") from None
        if len(steps) == number and step is not None:
            steps.append(step)
    if all(option.rating is None for step in steps for option in step.options):
        return Solution(problem, left_out="unrated")
    num_rated = sum(part["rating"] is not None for step_row in rows for part in step_row["completions"] or ())
    num_kept = sum(option.rating is not None for step in steps for option in step.options)
    return Solution(problem, tuple(steps), num_lost=num_rated - num_kept)


def _find_reason(row: dict[str, Any], finish: str, rules: Rules) -> LeftOut | None:
    generation = _take(row, "generation", int, _NULL)
    if _take(row, "is_quality_control_question", bool):
        return "quality_control"
    if _take(row, "is_initial_screening_question", bool):
        return "initial_screening"
    if finish in ("bad_problem", "give_up"):
        return finish
    is_late = None not in (generation, rules.max_generation) and generation > rules.max_generation
    return "generation" if is_late else None


def _parse_step(row: Any) -> LabelledStep | None:
    """The step, or None when the path finds no text in it."""
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    candidates = [_parse_candidate(part) for part in _take(row, "completions", list, _NULL) or []]
    human, chosen = row.get("human_completion"), _take(row, "chosen_completion", int, _NULL)
    if chosen is not None and not 0 <= chosen < len(candidates):
        raise ValueError(f"chosen_completion={chosen}, but there are {len(candidates)} completions")
    if human is not None:
        human = _take(row, "human_completion", dict, str)
        text = human if isinstance(human, str) else _take(human, "text", str)
        text.encode()
        candidates.append(Option(text, by_human=True))
        chosen = len(candidates) - 1 if chosen is None and text.strip() else chosen
    with_text = [number for number, option in enumerate(candidates) if option.text.strip()]
    taken = with_text[0] if chosen is None and with_text else chosen
    if taken not in with_text:
        return None
    return LabelledStep(tuple(candidates[number] for number in with_text), with_text.index(taken))


def _parse_candidate(row: Any) -> Option:
    if not isinstance(row, dict):
        raise ValueError("a completion is not a JSON object")
    text, rating = _take(row, "text", str), _take(row, "rating", int, _NULL)
    if rating not in (-1, 0, 1, None):
        raise ValueError(f"rating={rating} is none of -1, 0, 1, null")
    text.encode()
    return Option(text, rating)


def _take(row: dict[str, Any], name: str, *allowed: type) -> Any:
    if name not in row:
        raise ValueError(f"no field {name!r}")
    value = row[name]
    if type(value) not in allowed:
        raise ValueError(f"{name}={repr(value)[:60]} should be {' or '.join(_WORDS[kind] for kind in allowed)}")
    return value


def locate(solution: Solution) -> list[list[bytes]]:
    """A key for every option of every step: the same for the same text after the same path of the same problem."""
    at, keys = solution.problem.id.encode(), []
    for step in solution.steps:
        keys.append([_extend(at, option.text) for option in step.options])
        at = keys[-1][step.taken]
    return keys


def _extend(key: bytes, text: str) -> bytes:
    return hashlib.blake2b(key + text.encode(), digest_size=16).digest()


def survey_labels(solutions: Iterable[Solution]) -> Survey:
    """Collect the labels of all rows, some 200 bytes each."""
    survey = Survey()
    for solution in solutions:
        survey.counts["rows"] += 1
        if solution.left_out:
            survey.left_out[solution.left_out] += 1
        else:
            _count_labels(solution, survey)
    return survey


def _count_labels(solution: Solution, survey: Survey) -> None:
    counts, ratings = survey.counts, survey.ratings
    counts["lost"] += solution.num_lost
    behind_error = False
    for step, keys in zip(solution.steps, locate(solution), strict=True):
        survey.on_path.add(keys[step.taken])
        for option, key in zip(step.options, keys, strict=True):
            if option.rating is None:
                counts["by_human" if option.by_human else "unrated"] += 1
                continue
            counts["ratings"] += 1
            counts["behind_error"] += behind_error
            known = ratings.setdefault(key, option.rating)
            if known != option.rating:
                survey.disputed.add(key)
                ratings[key] = min(known, option.rating)
        behind_error = behind_error or step.options[step.taken].rating == -1


def make_candidates(solution: Solution, survey: Survey) -> Iterator[Chain]:
    """The path with the labels of its steps, and every candidate beside it after the path so far.

    Each label is given out once, for all solutions together, and then gone from ``survey.ratings``: on the first
    path that has it, else beside the first.
    """
    ratings, placed = survey.ratings, list(zip(solution.steps, locate(solution), strict=True))
    path = tuple(
        Option(step.options[step.taken].text, ratings.pop(keys[step.taken], None)) for step, keys in placed
    )
    if _is_rated(path):
        yield path
    bare = tuple(Option(option.text) for option in path)
    for number, (step, keys) in enumerate(placed):
        for option, key in zip(step.options, keys, strict=True):
            rating = None if key in survey.on_path else ratings.pop(key, None)
            if rating is not None:
                yield (*bare[:number], Option(option.text, rating))


def make_single_path(solution: Solution, survey: Survey) -> Chain:
    """The path up to its first -1."""
    rated = _settle(solution, survey)
    path = tuple(options[step.taken] for step, options in zip(solution.steps, rated, strict=True))
    end = next((number for number, option in enumerate(path, 1) if option.rating == -1), len(path))
    return path[:end]


def make_product(solution: Solution, survey: Survey, max_paths: int) -> tuple[list[Chain], int]:
    """Combinations of options, each up to its first -1, and how many there are in all.

    Of more than ``max_paths``, so many are taken, evenly spaced: early steps vary as well as late ones.
    """
    rated = _settle(solution, survey)
    ways = [1]  # from the last step to the first: in how many ways a combination goes on from there
    for options in reversed(rated):
        ways.insert(0, sum(1 if option.rating == -1 else ways[0] for option in options))
    total = ways[0]
    numbers = range(total) if total <= max_paths else (index * total // max_paths for index in range(max_paths))
    return [_combine(rated, ways[1:], number) for number in numbers], total


def _combine(rated: Sequence[Sequence[Option]], ways: Sequence[int], number: int) -> Chain:
    """Combination ``number`` in the order in which the last step varies first; ``ways`` to go on behind each step."""
    chain: list[Option] = []
    for options, ways_on in zip(rated, ways, strict=True):
        for option in options:
            size = 1 if option.rating == -1 else ways_on
            if number < size:
                break
            number -= size
        chain.append(option)
        if option.rating == -1:
            break
    return tuple(chain)


def _settle(solution: Solution, survey: Survey) -> list[list[Option]]:
    """The options of every step with the ratings that hold."""
    return [
        [Option(option.text, survey.ratings.get(key)) for option, key in zip(step.options, found, strict=True)]
        for step, found in zip(solution.steps, locate(solution), strict=True)
    ]


def _is_rated(chain: Chain) -> bool:
    return any(option.rating is not None for option in chain)


def make_records(problem: Problem, chain: Chain, sample_index: int) -> tuple[Answer, list[Step]]:
    """The answer and its steps.

    The text is the steps' own with line breaks between them, and offsets leave out blanks at a step's ends, as
    ``split_steps`` does. ``finish_reason`` is "length" unless the last step states an answer; ``num_tokens`` is 0, as
    nobody counted them.

    >>> problem = Problem(source="prm800k", split="train", question="What is 3 + 4?", reference="7")
    >>> chain = Option("Add.", 0), Option("\\n3 + 4\\n= 7\\n\\n# Answer\\n\\n7", 1)
    >>> answer, steps = make_records(problem, chain, 0)
    >>> [answer.text[step.start : step.end] for step in steps], [step.rating for step in steps]
    (['Add.', '3 + 4\\n= 7\\n\\n# Answer\\n\\n7'], [0, 1])
    """
    name, steps, at = SAMPLING.answer_id(problem.id, sample_index), [], 0
    for index, option in enumerate(chain):
        start = at + len(option.text) - len(option.text.lstrip())
        end = at + len(option.text.rstrip())
        steps.append(Step(answer_id=name, index=index, start=start, end=end, rating=option.rating))
        at += len(option.text) + 1
    answer = Answer(
        id=name, problem_id=problem.id, sample_index=sample_index, text="\n".join(option.text for option in chain),
        num_tokens=0, finish_reason="stop" if _ANSWER in chain[-1].text else "length", sampling=SAMPLING,
    )  # fmt: skip
    return answer, steps


def build_labels(files: Sequence[Path], rules: Rules, folder: Path) -> tuple[dict[str, Any], bool]:
    """Make a folder of steps of the published files: ``stats.json``, its last file, and whether it was there before.

    The files are read twice; memory holds an index of the labels and the problems, no answers. A run that was killed
    is done anew, to the same bytes.

    Raises:
        UserError: as ``read_solutions``; no such file; no label is left; the folder holds another run.
    """
    for path in files:
        if not path.is_file():
            raise UserError(f"--data-files {path}: no such file")
    is_finished = (folder / STATS).exists()
    survey = Survey() if is_finished else survey_labels(read_solutions(files, rules))
    if not is_finished and not survey.ratings:
        reasons = ", ".join(f"{reason} {count}" for reason, count in survey.left_out.items())
        files_named = ", ".join(map(str, files))
        raise UserError(f"{files_named}: no rated step in {survey.counts['rows']} rows ({reasons or 'none'})")
    with store.open_run(folder, "build_step_labels prm800k", identify(files, rules)):
        if not is_finished:
            store.remove_temporaries(folder)
            read = _describe(survey)
            written = _write(read_solutions(files, rules, "write"), rules, survey, folder)
            store.write_json(folder / STATS, read | written)
        return json.loads((folder / STATS).read_text(encoding="utf-8")), is_finished


def identify(files: Sequence[Path], rules: Rules) -> dict[str, Any]:
    """What decides the content: the rules, and the files by name and digest, wherever they lie."""
    digests = []
    for path in files:
        with path.open("rb") as file:
            digests.append(f"{path.name}, sha256 {hashlib.file_digest(file, 'sha256').hexdigest()[:16]}")
    arguments = {"data_files": digests, **asdict(rules)}
    if rules.mode != "product":
        del arguments["max_paths"]
    return arguments


def _describe(survey: Survey) -> dict[str, Any]:
    counts, num_left_out = survey.counts, survey.left_out.total()
    return {
        "num_rows": counts["rows"],
        "num_rows_used": counts["rows"] - num_left_out,
        "left_out": {reason: survey.left_out[reason] for reason in get_args(LeftOut)},
        "ratings_read": counts["ratings"],
        "ratings_repeated": counts["ratings"] - len(survey.ratings),
        "ratings_disputed": len(survey.disputed),
        "ratings_behind_error": counts["behind_error"],
        "without_rating": {"candidates": counts["unrated"], "human_written": counts["by_human"]},
        "ratings_lost": counts["lost"],
    }


def _write(solutions: Iterable[Solution], rules: Rules, survey: Survey, folder: Path) -> dict[str, Any]:
    problems: dict[str, Problem] = {}
    differing: set[str] = set()
    num_answers: Counter[str] = Counter()
    ratings: Counter[Rating | None] = Counter()
    tally: Counter[str] = Counter()
    seen: set[bytes] = set()
    with store.open_atomic(folder / ANSWERS) as answers, store.open_atomic(folder / STEPS) as all_steps:
        for solution in solutions:
            name = solution.problem.id
            for chain in _make_chains(solution, rules, survey, seen, tally):
                problem = problems.setdefault(name, solution.problem)
                answer, steps = make_records(problem, chain, num_answers[name])
                answers.write(store.dump_record(answer).encode() + b"\n")
                all_steps.writelines(store.dump_record(step).encode() + b"\n" for step in steps)
                num_answers[name] += 1
                ratings.update(step.rating for step in steps)
            if name in problems and problems[name].reference != solution.problem.reference:
                differing.add(name)
        store.write_records(folder / PROBLEMS, problems.values())
    return {
        "num_problems": len(problems),
        "references_differ": len(differing),
        "num_answers": num_answers.total(),
        "num_steps": ratings.total(),
        "labels": {str(rating): ratings[rating] for rating in (-1, 0, 1)},
        "paths_repeated": tally["repeated"],
        "paths_over_limit": tally["over_limit"],
        "paths_unrated": tally["unrated"],
    }


def _make_chains(
    solution: Solution, rules: Rules, survey: Survey, seen: set[bytes], tally: Counter[str]
) -> Iterator[Chain]:
    """The answers of a row that no earlier row has given; the others are tallied."""
    if solution.left_out:
        return
    if rules.mode == "candidates":
        yield from make_candidates(solution, survey)
        return
    if rules.mode == "single-path":
        chains, total = [make_single_path(solution, survey)], 1
    else:
        chains, total = make_product(solution, survey, rules.max_paths)
        tally["over_limit"] += max(0, total - rules.max_paths)
    for chain in chains:
        key = functools.reduce(_extend, (option.text for option in chain), solution.problem.id.encode())
        if not _is_rated(chain):
            tally["unrated"] += 1
        elif key in seen:
            tally["repeated"] += 1
        else:
            seen.add(key)
            yield chain
