"""Final answers by a model that reads the proposed ones: a trained aggregator, or an instruct model (USC).

A ``Reader`` is a method of its own in a report. What it writes for one k is a run of its own below the
evaluation's folder, ``METHOD_kN`` with manifest.json, answers.jsonl and verdicts.jsonl: a kill loses nothing,
further methods and further k come to the same folder later, and whatever else would have been asked (another
model or seed, other proposed answers) is refused. No torch here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from tt_reasoning import store
from tt_reasoning.answer_sets import VERDICTS, AnswerFolder, Dropped, first_answers, read_groups
from tt_reasoning.engines.base import Engine
from tt_reasoning.errors import UserError
from tt_reasoning.generation import ANSWERS, Counts, check_complete, generate_answers
from tt_reasoning.grading import Grader
from tt_reasoning.prompts import answer_set_text, get_prompt
from tt_reasoning.types import Answer, Problem, Sampling, Verdict

CARD = "aggregator.json"  # stands beside the weights of a trained aggregator: says which prompt it was trained with
_EMBEDDING = "model.embed_tokens.weight"
_GRADED_AT_ONCE = 64

Reading = dict[str, tuple[Answer, Verdict]]  # by problem id


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A model that reads proposed answers and writes one: ``method`` is its name in reports and folders.

    ``cut_share`` of the end of every proposed answer is not shown to it: one that goes on answering as well has not
    just copied results.
    """

    method: str
    model: str
    prompt: str
    cut_share: float = 0.0


def cut_answer(text: str, share: float) -> str:
    """An answer without the last ``share`` of its characters, blanks around it not counted; the cut may split a word.

    >>> cut_answer("3 + 4 = 7\\n", 0.3), cut_answer("3 + 4 = 7", 0.0)
    ('3 + 4 ', '3 + 4 = 7')
    """
    text = text.strip()
    return text[: round(len(text) * (1 - share))]


def ask_reader(
    answers: AnswerFolder, reader: Reader, num_answers: int, *, order_seed: int = 0, limit: int | None = None
) -> list[Problem]:
    """What a reader is asked: each problem with its first ``num_answers`` answers, shuffled, in place of its question.

    The problem keeps its id, so that answers join on it.

    Raises:
        UserError: a problem has fewer answers.
    """
    asked = []
    for problem, group in read_groups(answers):
        if len(asked) == limit:
            break
        found = first_answers(problem, group, num_answers, order_seed)
        if isinstance(found, Dropped):
            raise UserError(f"{answers.path}: problem {problem.id} has only {found.detail}")
        texts = [cut_answer(answer.text, reader.cut_share) for answer in found.answers]
        asked.append(replace(problem, question=answer_set_text(problem.question, texts)))
    return asked


@contextlib.contextmanager
def keep_open(start_engine: Callable[[], Engine]) -> Iterator[Callable[[], Engine]]:
    """``start_engine`` for several calls of ``generate_answers``: one engine, started when first needed and closed at
    the end of the block, not of each call."""
    with contextlib.ExitStack() as stack:

        @cache
        def start() -> Engine:
            engine = start_engine()
            stack.callback(engine.close)
            engine.close = lambda: None  # generate_answers closes what it was given
            return engine

        yield start


def read_answers(
    reader: Reader,
    num_answers: int,
    asked: Sequence[Problem],
    sampling: Sampling,
    start_engine: Callable[[], Engine],
    grader: Grader,
    out: Path,
    identity: Mapping[str, object],
    chunk_size: int = 64,
) -> Reading:
    """The reader's graded answers, in ``out/METHOD_kN``; what is on disk is not done again.

    Args:
        asked: as ``ask_reader`` gives it.
        sampling: with the reader's model and prompt.
        identity: what else decides the answers and verdicts: the engine, the digest of the weights, how is graded.
        chunk_size: problems asked at once.

    Raises:
        UserError: the folder holds other answers, or some are missing at the end.
    """
    label = f"{reader.method}@{num_answers}"
    arguments = {
        "method": reader.method, "num_answers": num_answers, "cut_share": reader.cut_share, "asked": _digest(asked),
        **asdict(sampling), **identity,
    }  # fmt: skip
    prompt = get_prompt(reader.prompt)
    with store.open_run(out / f"{reader.method}_k{num_answers}", "evaluate", arguments) as folder:
        with tqdm(total=len(asked), desc=label, unit="answer") as bar:

            def show(counts: Counts) -> None:
                bar.update(counts.resumed + counts.written - bar.n)

            counts = generate_answers(asked, sampling, 1, start_engine, prompt, folder, chunk_size, show)
        check_complete(counts)
        print(f"{label}: {counts.written} answers written, {counts.resumed} were there")
        by_id = {answer.id: answer for answer in store.read_records(folder / ANSWERS, Answer)}
        finals = {problem.id: by_id[sampling.answer_id(problem.id, 0)] for problem in asked}
        verdicts = _grade(asked, finals, prompt.prefill, grader, folder / VERDICTS)
    return {name: (answer, verdicts[answer.id]) for name, answer in finals.items()}


def _digest(asked: Sequence[Problem]) -> str:
    digest = hashlib.sha256()
    for problem in asked:
        digest.update(store.dump_record(problem).encode() + b"\n")
    return f"{len(asked)} problems, sha256 {digest.hexdigest()[:16]}"


def _grade(
    asked: Sequence[Problem], finals: Mapping[str, Answer], prefill: str, grader: Grader, path: Path
) -> dict[str, Verdict]:
    """The verdict of every final answer by answer id; missing ones are graded and appended."""
    verdicts = {verdict.answer_id: verdict for verdict in store.read_records(path, Verdict)}
    missing = [problem for problem in asked if finals[problem.id].id not in verdicts]
    for start in tqdm(range(0, len(missing), _GRADED_AT_ONCE), desc="grade", disable=not missing):
        chunk = [(finals[problem.id], problem) for problem in missing[start : start + _GRADED_AT_ONCE]]
        graded = grader.grade_many(
            (final.id, prefill + final.text, problem.reference, problem.kind) for final, problem in chunk
        )
        store.append_records(path, graded)
        verdicts.update((verdict.answer_id, verdict) for verdict in graded)
    return verdicts


def trained_prompt(model: str | Path) -> str | None:
    """The name of the prompt that a checkpoint was trained with, by its card; None for a model without one.

    Raises:
        UserError: the card names no prompt, or none that is known.
    """
    card = Path(model) / CARD
    if not card.is_file():
        return None
    try:
        name = json.loads(card.read_text(encoding="utf-8"))["prompt"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{card} names no prompt; say --prompt ssa or --prompt ssa_no_think") from None
    return get_prompt(name).name


def check_weights(model: Path) -> None:
    """Refuse a folder whose weights are missing, damaged or of another size than its config, by their headers alone."""
    files = sorted(model.glob("*.safetensors"))
    if not files:
        raise UserError(f"{model} holds no *.safetensors file: not a Hugging Face model folder")
    try:
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{model / 'config.json'}: not JSON: {error}") from None
    expected = [config.get("vocab_size"), config.get("hidden_size")]
    for path in files:
        try:
            with safe_open(path, framework="numpy") as tensors:
                found = tensors.get_slice(_EMBEDDING).get_shape() if _EMBEDDING in tensors.keys() else expected  # noqa: SIM118
        except SafetensorError as error:
            raise UserError(f"{path}: damaged: {error}; save or fetch the model again") from None
        if found != expected:
            raise UserError(
                f"{path} does not fit config.json: {_EMBEDDING} is {found}, vocab_size and hidden_size say {expected}; "
                "copy both from one model"
            )


def describe_weights(model: str | Path) -> str | None:
    """The digest of a model's weights, to tell a checkpoint that was trained on; None for one that is not here."""
    model = Path(model)
    files = sorted(model.glob("*.safetensors")) if model.is_dir() else [model]
    if not all(path.exists() for path in files):
        return None
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256 {digest.hexdigest()[:16]}"
