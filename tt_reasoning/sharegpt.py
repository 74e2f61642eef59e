"""Training rows in ShareGPT form out of folders of answers: correct, in the right form, each question once.

What Sky-T1 is trained on: a system prompt that asks for thought and solution, the question as it was asked, and a
correct answer of that form. Unlike the reference, which joins whatever its files hold: a question counts once however
many folders have it (``choose``), a text counts once, verdicts are those of check_answers, and everything that is not
taken is there to be read, with its reason. Outside sets of the STILL-2 form go through the same sieve.

Texts stay on disk: memory holds some 300 bytes an answer, and the rows of the outside sets.
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tt_reasoning.answer_sets import VERDICTS, load_line
from tt_reasoning.checking import whole_text
from tt_reasoning.conversion import StoredAnswers, find_fault
from tt_reasoning.errors import UserError, unknown_name
from tt_reasoning.generation import ANSWERS, PROBLEMS
from tt_reasoning.problems import read_file
from tt_reasoning.prompts import get_prompt
from tt_reasoning.store import open_atomic, read_lines, read_manifest, read_records
from tt_reasoning.types import Answer, Problem, Verdict, problem_id

Roles = Literal["human-gpt", "user-assistant"]
Choice = Literal["shortest", "first"]
Rejection = Literal["no_verdict", "unjudged", "wrong", "truncated", "tags", "repeated", "surplus"]


class Candidate(NamedTuple):
    """A text that might be trained on.

    ``place`` is its folder or outside set, in the order given, ``offset`` the byte of its answer in ``answers.jsonl``
    or its number in the set. ``question`` and ``text`` are ids that do not see blanks, ``length`` is in characters.
    ``fault`` says why it cannot be taken, whatever else there is.
    """

    place: int
    offset: int
    question: str
    text: str
    length: int
    fault: tuple[Rejection, str] | None


class Turn(NamedTuple):
    """What a candidate comes to: the user's message and the assistant's, and where they are from."""

    user: str
    assistant: str
    origin: dict[str, str]


@dataclass(frozen=True)
class GradedFolder:
    """A folder of answers with verdicts: ``problems`` are the bytes where each begins, by id."""

    path: Path
    problems: dict[str, int]

    def scan(self, place: int, any_format: bool) -> Iterator[Candidate]:
        """A candidate for each answer, in the order of the file.

        Raises:
            UserError: a malformed line, or an answer without its problem.
        """
        verdicts = {verdict.answer_id: verdict for verdict in read_records(self.path / VERDICTS, Verdict)}
        questions: dict[str, str] = {}
        seen: set[str] = set()
        for offset, answer in StoredAnswers(self.path / ANSWERS).scan():
            if answer.id in seen:
                continue
            seen.add(answer.id)
            if answer.problem_id not in questions:
                questions[answer.problem_id] = _identify(self.read_problem(answer).question)
            text = whole_text(self.path, answer).strip()
            yield Candidate(
                place, offset, questions[answer.problem_id], _identify(text), len(text),
                _find_fault(answer, text, verdicts.get(answer.id), any_format),
            )  # fmt: skip

    def read(self, offset: int) -> Turn:
        """The answer that begins there, behind the user's message as it was asked."""
        answer = next(StoredAnswers(self.path / ANSWERS).read([offset]))
        prompt = get_prompt(answer.sampling.prompt, self.path)
        user = prompt.user.replace("{question}", self.read_problem(answer).question)
        origin = {"answers": str(self.path), "answer_id": answer.id, "problem_id": answer.problem_id}
        return Turn(user, whole_text(self.path, answer).strip(), origin)

    def read_problem(self, answer: Answer) -> Problem:
        """The problem of an answer. Raises UserError when the folder lacks it."""
        path = self.path / PROBLEMS
        if answer.problem_id not in self.problems:
            raise UserError(
                f"answer {answer.id} belongs to problem {answer.problem_id}, which {path} lacks; restore that file"
            )
        with path.open("rb") as file:
            offset = self.problems[answer.problem_id]
            file.seek(offset)
            return load_line(Problem, path, offset, file.readline())


def open_graded(folder: Path) -> GradedFolder:
    """A folder whose answers were checked. Raises UserError for one that has none, or no verdicts."""
    read_manifest(folder)
    if next(read_lines(folder / ANSWERS), None) is None:
        raise UserError(f"{folder} has no answers yet")
    if next(read_lines(folder / VERDICTS), None) is None:
        raise UserError(f"{folder} has no {VERDICTS}; run: python tools/check_answers.py --answers {folder}")
    problems = {
        load_line(Problem, folder / PROBLEMS, offset, line).id: offset
        for offset, line in read_lines(folder / PROBLEMS)
    }
    return GradedFolder(folder, problems)


@dataclass(frozen=True)
class OutsideSet:
    """Rows of a file of the STILL-2 form: ``question``, ``combined_text`` and ``domain``."""

    path: Path
    rows: list[dict[str, str]]

    def scan(self, place: int, any_format: bool) -> Iterator[Candidate]:
        """A candidate for each row, in the order of the file."""
        for number, row in enumerate(self.rows):
            text = row["combined_text"].strip()
            fault = None if any_format else find_fault(text)
            yield Candidate(
                place, number, _identify(row["question"]), _identify(text), len(text),
                None if fault is None else ("tags", fault),
            )  # fmt: skip

    def read(self, number: int) -> Turn:
        """A row of the set."""
        row = self.rows[number]
        origin = {"merged": str(self.path), "row": str(number + 1), "domain": row["domain"]}
        return Turn(row["question"].strip(), row["combined_text"].strip(), origin)


def read_outside(path: Path) -> OutsideSet:
    """A file (``problems.read_file``: a JSON list, JSON lines, Parquet) of rows with the texts of the STILL-2 form.

    Raises:
        UserError: no such file, or a row that has not; row and field are named.
    """
    return OutsideSet(path, [_check_row(row, where) for where, row in read_file(path, "--merge")])


def _check_row(row: dict[str, Any], where: str) -> dict[str, str]:
    found = {}
    for name in ("question", "combined_text", "domain"):
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise UserError(f"{where}: {name}={row.get(name)!r:.80} should be a text; the columns are question, "
                            "combined_text and domain")  # fmt: skip
        found[name] = _storable(row[name])
    return found


def select_domains(sets: Sequence[OutsideSet], domains: Collection[str]) -> tuple[list[OutsideSet], Counter[str]]:
    """Outside sets with the rows of some domains alone; and how many rows of each domain were left out.

    Args:
        domains: names, whatever their case; none takes all but code, as the reference does: programs of others come
            without tests.

    Raises:
        UserError: a domain that no set has.

    >>> rows = [{"question": "q", "combined_text": "t", "domain": domain} for domain in ("physics", "Code")]
    >>> select_domains([OutsideSet(Path("still2.json"), rows)], ())[1]
    Counter({'Code': 1})
    """
    known = {row["domain"].casefold() for one in sets for row in one.rows}
    for domain in domains:
        if domain.casefold() not in known:
            raise unknown_name("domain of --merge-domains", domain, known)
    wanted = {domain.casefold() for domain in domains} or known - {"code"}
    left_out = Counter(row["domain"] for one in sets for row in one.rows if row["domain"].casefold() not in wanted)
    kept = [OutsideSet(one.path, [row for row in one.rows if row["domain"].casefold() in wanted]) for one in sets]
    return kept, left_out


def choose(
    candidates: Iterable[Candidate], keep: int = 1, choice: Choice = "shortest"
) -> tuple[list[Candidate], list[tuple[Candidate, Rejection, str]]]:
    """What is taken, and all others with a reason and its detail, both in the order given.

    Of each question ``keep`` are taken, the shortest or the first, and each text once (``repeated``); to another
    question it is another answer.

    >>> one, two = (Candidate(0, n, "q", f"t{n}", 9 - n, None) for n in range(2))
    >>> choose([one, two])[0] == [two]
    True
    >>> choose([one, two], choice="first")[1] == [(two, "surplus", "1 of the question is taken")]
    True
    """
    everything = list(candidates)
    of_question: dict[str, list[int]] = defaultdict(list)
    reasons: dict[int, tuple[Rejection, str]] = {}
    for number, candidate in enumerate(everything):
        if candidate.fault is None:
            of_question[candidate.question].append(number)
        else:
            reasons[number] = candidate.fault
    for numbers in of_question.values():
        if choice == "shortest":
            numbers.sort(key=lambda number: (everything[number].length, number))
        texts: set[str] = set()
        for number in numbers:
            if everything[number].text in texts:
                reasons[number] = "repeated", "a text that is taken already"
            elif len(texts) == keep:
                reasons[number] = "surplus", f"{keep} of the question {'is' if keep == 1 else 'are'} taken"
            else:
                texts.add(everything[number].text)
    taken = [candidate for number, candidate in enumerate(everything) if number not in reasons]
    return taken, [(everything[number], *reasons[number]) for number in sorted(reasons)]


def to_record(turn: Turn, system: str, roles: Roles = "human-gpt") -> dict[str, Any]:
    """One conversation in ShareGPT form.

    ``human-gpt`` has the names that torchtune and LLaMA-Factory know by themselves, and the system prompt as the first
    turn, where both read it; ``user-assistant`` is what the reference writes, with the system prompt beside it alone.

    >>> to_record(Turn("2 + 2?", "4", {}), "Be brief.", "user-assistant")["conversations"]
    [{'from': 'user', 'value': '2 + 2?'}, {'from': 'assistant', 'value': '4'}]
    >>> [turn["from"] for turn in to_record(Turn("2 + 2?", "4", {}), "Be brief.")["conversations"]]
    ['system', 'human', 'gpt']
    """
    user, assistant = ("user", "assistant") if roles == "user-assistant" else ("human", "gpt")
    first = [{"from": "system", "value": system}] if roles == "human-gpt" else []
    turns = [*first, {"from": user, "value": turn.user}, {"from": assistant, "value": turn.assistant}]
    return {"system": system, "conversations": turns}


def shuffle(taken: list[Candidate], seed: int) -> list[Candidate]:
    """In an order that the seed decides."""
    found = list(taken)
    random.Random(seed).shuffle(found)
    return found


def list_lines(records: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    """A JSON list, a record a line.

    >>> b"".join(list_lines([{"a": 1}, {"a": 2}])).decode()
    '[\\n{"a": 1},\\n{"a": 2}\\n]\\n'
    """
    before = b"[\n"
    for record in records:
        yield before + json.dumps(record, ensure_ascii=False).encode()
        before = b",\n"
    yield b"\n]\n" if before == b",\n" else b"[]\n"


def rejected_lines(
    rejected: Iterable[tuple[Candidate, Rejection, str]], read: Callable[[Candidate], Turn]
) -> Iterator[bytes]:
    """What was not taken, a JSON object a line: why, from where, and the two turns."""
    for candidate, reason, detail in rejected:
        turn = read(candidate)
        row = {"reason": reason, "detail": detail, **turn.origin, "user": turn.user, "assistant": turn.assistant}
        yield json.dumps(row, ensure_ascii=False).encode() + b"\n"


def write_once(path: Path, parts: Callable[[], Iterator[bytes]]) -> bool:
    """Write a whole file or nothing; whether it was written. One that is there already has to say the same.

    Args:
        parts: makes the content, piece by piece, anew at each call.

    Raises:
        UserError: the file is there and says something else.
    """
    if not path.exists():
        with open_atomic(path) as file:
            for part in parts():
                file.write(part)
        return True
    with path.open("rb") as file:
        same = all(file.read(len(part)) == part for part in parts()) and not file.read(1)
    if not same:
        raise UserError(f"{path} is there already with other content; name another file, or delete it")
    return False


def _find_fault(
    answer: Answer, text: str, verdict: Verdict | None, any_format: bool
) -> tuple[Rejection, str] | None:
    if verdict is None:
        return "no_verdict", "check_answers has not seen it"
    if verdict.correct is None:
        return "unjudged", verdict.reason
    if not verdict.correct:
        return "wrong", verdict.reason
    if answer.finish_reason == "length":
        return "truncated", f"{answer.num_tokens} tokens"
    fault = None if any_format else find_fault(text)
    return None if fault is None else ("tags", fault)


def _identify(text: str) -> str:
    """The id of a text, whatever its blanks."""
    return problem_id(" ".join(text.split()))


def _storable(text: str) -> str:
    """The text with question marks for lone surrogates, which no file can hold."""
    return text.encode("utf-8", "replace").decode()
