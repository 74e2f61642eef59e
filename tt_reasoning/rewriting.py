"""Preference pairs out of sampled answers: a right answer without its repetitions against a long right one.

Reasoning models find the answer and go on: they check, doubt and find it again. Of each problem's correct answers the
shortest is cut behind an early correct proposal and preferred to the longest ("reduce overthinking", Sky-T1 Flash).
What a cut keeps is one of three variants:

    fcs             through the first correct sub-solution
    fcs_plus1       one sub-solution more, if there is one
    fcs_reflection  through the second correct sub-solution; a problem without one is kept out of this file alone

With SILC pairs, a short incorrect answer is rejected for the shortest correct one that is longer than it.

The reference has a model copy the whole answer with separators in it, and does not check the copy. Here the model
sees numbered lines and replies with the numbers of those that propose an answer: a few tokens in place of thousands,
and every variant is the answer itself with one span removed. So nothing can be reworded and no separator can occur in
the text; what is left to check is the numbers. What the grader could not judge is on neither side. Every reply is a
record on disk, so that a killed run asks nothing twice. No torch here.

    python tools/rewrite_responses.py --answers answers/math500 --rewrite-model models/llama --out pairs/math500
"""

from __future__ import annotations

import re
import typing
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tqdm import tqdm

from tt_reasoning import store
from tt_reasoning.answer_sets import VERDICTS, AnswerFolder, AnswerReader, read_groups
from tt_reasoning.answer_sets.token_counts import CountTokens
from tt_reasoning.checking import whole_text
from tt_reasoning.conversion import BEGIN_THOUGHT, END_THOUGHT, TAGS, find_fault
from tt_reasoning.engines.base import Engine
from tt_reasoning.generation import ANSWERS, Counts, draw_tries
from tt_reasoning.grading import Grader
from tt_reasoning.prompts import SYSTEM_PROMPTS, get_prompt, marking_text, scoring_text
from tt_reasoning.types import Answer, Problem, Sampling, Verdict, problem_id, seed_of

MARKS = "marks.jsonl"  # replies: which lines propose an answer
SCORES = "part_scores.jsonl"  # replies: whether a sub-solution's answer is the right one
REWRITTEN = "rewritten.jsonl"
LEFT_OUT = "left_out.jsonl"
STATS = "stats.json"
MARK_PROMPT, SCORE_PROMPT = "mark_answers", "score_part"
_GRADED_AT_ONCE = 64
_JUDGED: tuple[Side, Side] = ("correct", "incorrect")
_MANY_LINES = 4  # a reply that names all of so many lines or more has told nothing apart

Span = tuple[int, int]
VariantName = Literal["fcs", "fcs_plus1", "fcs_reflection"]
ScoreBy = Literal["model", "grader"]
Fault = Literal["truncated", "form", "range", "every", "none"]
LeftOut = Literal["few_correct", "tie", "unmarked", "none_correct", "variant_wrong"]
Side = Literal["correct", "incorrect", "not_judged", "cut", "bad_tags"]


# --- which answers of a problem -------------------------------------------------------------------------------


class Ref(NamedTuple):
    """An answer that is not in memory: its id and its length in tokens."""

    id: str
    num_tokens: int


class Sides(NamedTuple):
    """A problem's judged answers, each side from the shortest to the longest (equal ones by sample index)."""

    problem: Problem
    correct: list[Ref]
    incorrect: list[Ref]


def read_sides(answers: AnswerFolder, counts: Counter[Side]) -> Iterator[Sides]:
    """The sides of every problem that has answers, in the order of ``problems.jsonl``.

    On neither side are answers that were not judged (``not_judged``), that have no end to learn as they were cut at the
    token limit (``cut``), and that have tags of the thought and solution form, but not its form (``bad_tags``).

    Args:
        answers: a folder whose answers are all graded.
        counts: gets how many answers went where.

    Raises:
        UserError: a malformed line, or answers to an unknown problem.
    """
    verdicts = {verdict.answer_id: verdict.correct for verdict in store.read_records(answers.path / VERDICTS, Verdict)}
    for problem, group in read_groups(answers):
        sides: dict[Side, list[Ref]] = defaultdict(list)
        for answer in group:
            side = _side_of(answer, whole_text(answers.path, answer), verdicts[answer.id])
            counts[side] += 1
            sides[side].append(Ref(answer.id, answer.num_tokens))
        if group:
            correct, incorrect = (sorted(sides[side], key=lambda ref: ref.num_tokens) for side in _JUDGED)
            yield Sides(problem, correct, incorrect)


def _side_of(answer: Answer, text: str, correct: bool | None) -> Side:
    if correct is None:
        return "not_judged"
    if answer.finish_reason == "length":
        return "cut"
    if any(tag in text for tag in TAGS) and find_fault(text) is not None:
        return "bad_tags"
    return "correct" if correct else "incorrect"


def choose_extremes(correct: Sequence[Ref]) -> tuple[Ref, Ref] | tuple[LeftOut, str]:
    """The shortest and the longest of a problem's correct answers; or why there is no such pair, with a detail.

    >>> choose_extremes([Ref("a", 5), Ref("b", 9)])
    (Ref(id='a', num_tokens=5), Ref(id='b', num_tokens=9))
    >>> choose_extremes([Ref("a", 5)]), choose_extremes([Ref("a", 5), Ref("b", 5)])
    (('few_correct', '1 correct, 2 needed'), ('tie', 'all 2 correct ones have 5 tokens'))
    """
    if len(correct) < 2:
        return "few_correct", f"{len(correct)} correct, 2 needed"
    shortest, longest = correct[0], max(correct, key=lambda ref: ref.num_tokens)
    if shortest.num_tokens == longest.num_tokens:
        return "tie", f"all {len(correct)} correct ones have {shortest.num_tokens} tokens"
    return shortest, longest


def choose_silc(sides: Sides) -> tuple[Ref, Ref] | None:
    """A chosen and a rejected answer: the shortest incorrect one, and the shortest correct one longer than it.

    If any incorrect answer has a longer correct one, the shortest incorrect one has.

    >>> problem = Problem(source="s", split="train", question="2 + 2?", reference="4")
    >>> choose_silc(Sides(problem, [Ref("a", 5), Ref("b", 9)], [Ref("c", 5), Ref("d", 20)]))
    (Ref(id='b', num_tokens=9), Ref(id='c', num_tokens=5))
    >>> choose_silc(Sides(problem, [Ref("a", 5)], [Ref("c", 5)]))
    """
    if not sides.incorrect:
        return None
    rejected = sides.incorrect[0]
    chosen = next((ref for ref in sides.correct if ref.num_tokens > rejected.num_tokens), None)
    return None if chosen is None else (chosen, rejected)


class AnswerTexts:
    """The answers of a folder that pairs may be made of, by id, read from the disk when they are wanted."""

    def __init__(self, folder: Path, sides: Iterable[Sides]) -> None:
        wanted = {ref.id for side in sides for ref in (*choose_extremes(side.correct), *(choose_silc(side) or ()))
                  if isinstance(ref, Ref)}  # fmt: skip
        self._folder, self._path = folder, folder / ANSWERS
        self._reader = AnswerReader(self._path)
        self._places: dict[str, int] = {}
        for offset, line in store.read_lines(self._path):
            name = self._reader.locate(offset, line)[0]
            if name in wanted:
                self._places.setdefault(name, offset)

    def read(self, answer_id: str) -> tuple[Answer, str]:
        """The answer, and all that is read of it (``whole_text``) without blanks at its ends."""
        with self._path.open("rb") as file:
            file.seek(self._places[answer_id])
            answer = self._reader.read(self._places[answer_id], file.readline())
        return answer, whole_text(self._folder, answer).strip()


# --- where a text can be cut ----------------------------------------------------------------------------------

_BLOCK_ENDS = {"$$": "$$", "\\[": "\\]"}  # by the line that opens such a block


def split_lines(text: str, span: Span) -> list[Span]:
    """The lines of a part of a text that are not blank. A fenced block or a displayed formula counts as one line.

    >>> text = "Try:\\n```python\\nprint(4)\\n```\\n\\n$$\\nx = 4\\n$$\\nSo 4."
    >>> [text[start:end] for start, end in split_lines(text, (0, len(text)))]
    ['Try:', '```python\\nprint(4)\\n```', '$$\\nx = 4\\n$$', 'So 4.']
    """
    lines = [m.span() for m in re.compile(r"[^\n]+").finditer(text, *span) if m[0].strip()]
    words = [text[start:end].strip() for start, end in lines]
    ends = {end: [i for i, word in enumerate(words) if word == end] for end in ("```", *_BLOCK_ENDS.values())}
    found, at = [], 0
    while at < len(lines):
        end = "```" if words[at].startswith("```") else _BLOCK_ENDS.get(words[at], "")
        behind = ends.get(end, [])
        number = bisect_right(behind, at)
        last = behind[number] if number < len(behind) else at
        found.append((lines[at][0], lines[last][1]))
        at = last + 1
    return found


class Layout(NamedTuple):
    """The lines of a text's thought, behind which it may be cut, and whether a solution section follows them."""

    lines: list[Span]
    tagged: bool


def lay_out(text: str) -> Layout:
    """The layout of a text in the thought and solution form; of any other all of it is thought.

    >>> lay_out("2 + 2 = 4\\nThe Answer is: 4")
    Layout(lines=[(0, 9), (10, 26)], tagged=False)
    """
    if find_fault(text) is not None:
        return Layout(split_lines(text, (0, len(text))), tagged=False)
    start = text.index(BEGIN_THOUGHT) + len(BEGIN_THOUGHT)
    return Layout(split_lines(text, (start, text.index(END_THOUGHT))), tagged=True)


def read_marks(reply: Answer, layout: Layout) -> tuple[tuple[int, ...], Fault | None]:
    """The numbers of a reply, counted from 1, and what is wrong with it, if anything.

    Faults: ``truncated``; ``form`` (anything but numbers in rising order, or "none"); ``range`` (a line that is not
    there); ``every`` (all of many lines); ``none`` (no line of a text without a solution section, which was graded
    correct and so states its answer somewhere).

    >>> reply = Answer(id="a", problem_id="p", sample_index=0, text=" 1, 2 ", num_tokens=3, finish_reason="stop",
    ...                sampling=Sampling(model="m", prompt="mark_answers"))
    >>> read_marks(reply, lay_out("So 4.\\nWait.\\nThe Answer is: 4"))
    ((1, 2), None)
    >>> read_marks(reply, lay_out("So 4."))
    ((), 'range')
    """
    if reply.finish_reason == "length":
        return (), "truncated"
    said = re.sub(r"[\[\]]", " ", reply.text).strip().rstrip(". ").lower()  # lines are shown as [4]
    if said == "none":
        return (), None if layout.tagged else "none"
    if not re.fullmatch(r"\d{1,9}(?:(?:\s*,\s*|\s+)\d{1,9})*", said, re.ASCII):
        return (), "form"
    numbers = tuple(map(int, re.findall(r"\d+", said)))
    if any(one >= two for one, two in zip(numbers, numbers[1:], strict=False)):
        return (), "form"
    if numbers[0] < 1 or numbers[-1] > len(layout.lines):
        return (), "range"
    if len(numbers) == len(layout.lines) >= _MANY_LINES:
        return (), "every"
    return numbers, None


@dataclass(frozen=True, kw_only=True)
class Part:
    """A sub-solution: character offsets into the answer's whole text.

    ``stated`` is where the lines that propose its answer begin. ``correct`` is None where that could not be told.
    """

    start: int
    end: int
    stated: int
    correct: bool | None = None


def split_parts(layout: Layout, numbers: Sequence[int]) -> list[Part]:
    """The sub-solutions of a thought: each ends behind a line that proposes an answer, or several such in a row.

    What follows the last of them is a part of its own before a solution section, and belongs to the last part of a text
    that has none.

    >>> text = "2 + 2 = 4, so 4.\\nWait.\\nYes: 4.\\nGood."
    >>> [text[part.start : part.end] for part in split_parts(lay_out(text), [1, 3])]
    ['2 + 2 = 4, so 4.', 'Wait.\\nYes: 4.\\nGood.']
    """
    lines, parts, first = layout.lines, [], 0
    for number in numbers:
        if number + 1 in numbers:
            continue
        stated = number
        while stated - 1 in numbers:
            stated -= 1
        parts.append(Part(start=lines[first][0], end=lines[number - 1][1], stated=lines[stated - 1][0]))
        first = number
    if first < len(lines) and (layout.tagged or not parts):
        parts.append(Part(start=lines[first][0], end=lines[-1][1], stated=lines[first][0]))
    return [*parts[:-1], replace(parts[-1], end=lines[-1][1])]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A shortened answer: its whole text without the characters from ``cut_start`` to ``cut_end``."""

    name: VariantName
    cut_start: int
    cut_end: int
    num_tokens: int = 0

    def apply(self, text: str) -> str:
        """What is left.

        >>> Variant(name="fcs", cut_start=5, cut_end=11).apply("So 4. Wait. Yes.")
        'So 4. Yes.'
        """
        return text[: self.cut_start] + text[self.cut_end :]


def plan_variants(text: str, layout: Layout, parts: Sequence[Part]) -> list[Variant]:
    """What is cut for each variant; none where no part is correct.

    Behind the part that a variant ends with, the end of the answer goes on: the solution section or, in a text without
    one, the lines that propose its last answer.

    >>> text = "So 4.\\nWait.\\nYes, 4.\\nOnce more.\\nThe Answer is: 4"
    >>> layout = lay_out(text)
    >>> parts = [replace(part, correct=True) for part in split_parts(layout, [1, 3, 5])]
    >>> [variant.apply(text) for variant in plan_variants(text, layout, parts)][:2]
    ['So 4.\\nThe Answer is: 4', 'So 4.\\nWait.\\nYes, 4.\\nThe Answer is: 4']
    """
    correct = [number for number, part in enumerate(parts) if part.correct]
    if not correct:
        return []
    last = len(parts) - 1
    through = {"fcs": correct[0], "fcs_plus1": min(correct[0] + 1, last)}
    if len(correct) > 1:
        through["fcs_reflection"] = correct[1]
    end = layout.lines[-1][1]
    if not layout.tagged:
        end = len(text[: parts[-1].stated].rstrip())  # the line break before them stays
    return [
        Variant(name=name, cut_start=parts[number].end, cut_end=parts[number].end if number == last else end)
        for name, number in through.items()
    ]


# --- asking the model, and grading ----------------------------------------------------------------------------


class Item(NamedTuple):
    """A problem to rewrite: its shortest and its longest correct answer, the first one's layout, and what is asked."""

    problem: Problem
    shortest: Ref
    longest: Ref
    layout: Layout
    asked: Problem


def choose_items(sides: Iterable[Sides], texts: AnswerTexts) -> tuple[list[Item], list[LeftOutRow]]:
    """An item for every problem with two correct answers of different lengths, and why the others have none."""
    items, left_out = [], []
    for problem, correct, _ in sides:
        found = choose_extremes(correct)
        if not isinstance(found[0], Ref):
            left_out.append(LeftOutRow(problem_id=problem.id, reason=found[0], detail=found[1]))
            continue
        text = texts.read(found[0].id)[1]
        layout = lay_out(text)
        lines = [text[start:end] for start, end in layout.lines]
        items.append(Item(problem, *found, layout, _ask(marking_text(problem.question, lines))))
    return items, left_out


def _ask(text: str) -> Problem:
    return Problem(source="rewriting", split="", question=text, reference="")


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How the model is asked: ``samplings`` has one a try, a further try only where those before gave nothing."""

    start_engine: Callable[[], Engine]
    samplings: tuple[Sampling, ...]
    folder: Path
    chunk_size: int

    def ask(
        self, asked: Iterable[Problem], prompt: str, file_name: str, is_sound: Callable[[Answer], bool]
    ) -> tuple[dict[str, list[Answer]], Counts]:
        """The replies on disk by the id of what was asked, in the order of the tries; missing ones are asked for first.

        Args:
            is_sound: whether a reply, which names what was asked in ``problem_id``, says something.
        """
        samplings = [replace(sampling, prompt=prompt) for sampling in self.samplings]
        by_id = {problem.id: problem for problem in asked}

        def read(tries: Sequence[Sampling]) -> dict[str, list[Answer]]:
            number_of = {sampling: number for number, sampling in enumerate(tries)}
            found: dict[str, list[Answer]] = defaultdict(list)
            for reply in store.read_records(self.folder / file_name, Answer):
                if reply.problem_id in by_id and reply.sampling in number_of:
                    found[reply.problem_id].append(reply)
            for replies in found.values():
                replies.sort(key=lambda reply: number_of[reply.sampling])
            return found

        def find_short(tries: Sequence[Sampling]) -> list[Problem]:
            found = read(tries)
            return [problem for name, problem in by_id.items() if not any(map(is_sound, found.get(name, ())))]

        counts = draw_tries(
            samplings, find_short, self.start_engine, get_prompt(prompt), self.folder, self.chunk_size, file_name
        )
        return read(samplings), counts


class Marked(NamedTuple):
    """The first sound numbers of lines by item, and what was wrong with replies to the others, in their order."""

    numbers: dict[str, tuple[int, ...]]
    faults: dict[str, list[Fault]]
    waiting: set[str]


def mark_answers(items: Sequence[Item], asking: Asking) -> tuple[Marked, Counts]:
    """Which lines of each item propose an answer, by the id of what was asked. A single line is not asked about.

    ``faults`` are those of all replies; ``waiting`` are items whose tries have not all been made.
    """
    layouts = {item.asked.id: item.layout for item in items}

    def is_sound(reply: Answer) -> bool:
        return read_marks(reply, layouts[reply.problem_id])[1] is None

    asked = [item.asked for item in items if len(item.layout.lines) > 1]
    replies, counts = asking.ask(asked, MARK_PROMPT, MARKS, is_sound)
    marked = Marked({item.asked.id: (1,) for item in items if len(item.layout.lines) == 1}, {}, set())
    for problem in asked:
        tries = [read_marks(reply, layouts[problem.id]) for reply in replies.get(problem.id, ())]
        marked.faults[problem.id] = [fault for _, fault in tries if fault is not None]
        sound = [numbers for numbers, fault in tries if fault is None]
        if sound:
            marked.numbers[problem.id] = sound[0]
        elif len(tries) < len(asking.samplings):
            marked.waiting.add(problem.id)
    return marked, counts


def read_score(reply: Answer) -> bool | None:
    """True or False, if the reply is this one word (in any case, a full stop may follow); None if it is anything else.

    >>> reply = Answer(id="a", problem_id="p", sample_index=0, text="TRUE.\\n", num_tokens=1, finish_reason="stop",
    ...                sampling=Sampling(model="m", prompt="score_part"))
    >>> read_score(reply), read_score(replace(reply, text="True, as 4 = 4"))
    (True, None)
    """
    if reply.finish_reason == "length":
        return None
    return {"true": True, "false": False}.get(reply.text.strip().removesuffix(".").lower())


class Claim(NamedTuple):
    """A part whose score is not known: where it is, what it says, and what a model is asked about it."""

    item: Item
    number: int
    text: str
    asked: Problem


class Scored(NamedTuple):
    """The parts of each marked item, how many have which score, and the items that wait for some."""

    parts: dict[str, list[Part]]
    counts: Counter[str]
    waiting: set[str]


def score_parts(
    items: Sequence[Item], marked: Marked, texts: AnswerTexts, asking: Asking, score_by: ScoreBy, grader: Grader
) -> tuple[Scored, Counts]:
    """Whether each part of the marked items comes to the right answer.

    The last part of a text without a solution section is known to: the text was graded correct. Programs are always
    run, never judged by the model. ``counts`` has the parts that are ``correct``, ``incorrect`` and ``unparsed`` (no
    reply says True or False, or the grader could not tell).

    Args:
        score_by: the model, or the grader alone.
        grader: of parts; one that reads the last number where a part marks no answer.
    """

    def is_graded(problem: Problem) -> bool:
        return score_by == "grader" or problem.kind == "code"

    parts: dict[str, list[Part]] = {}
    claims: list[Claim] = []
    for item in items:
        if (numbers := marked.numbers.get(item.asked.id)) is None:
            continue
        text = texts.read(item.shortest.id)[1]
        found = parts[item.asked.id] = split_parts(item.layout, numbers)
        if not item.layout.tagged:
            found[-1] = replace(found[-1], correct=True)
        for number, part in enumerate(found):
            if part.correct is None:
                said = text[part.start : part.end]
                gold = "" if is_graded(item.problem) else item.problem.reference  # of a program, its tests: long
                claims.append(Claim(item, number, said, _ask(scoring_text(item.problem.question, said, gold))))
    graded = (Graded(c.text, c.item.problem, "part") for c in claims if is_graded(c.item.problem))
    verdicts = grade_texts(graded, grader, asking.folder)
    asked = [claim.asked for claim in claims if not is_graded(claim.item.problem)]
    replies, counts = asking.ask(asked, SCORE_PROMPT, SCORES, lambda reply: read_score(reply) is not None)
    scored = Scored(parts, Counter(), set())
    for claim in claims:
        tries = replies.get(claim.asked.id, ())
        if is_graded(claim.item.problem):
            score, waits = verdicts[Graded(claim.text, claim.item.problem, "part").id], False
        else:
            score = next((said for said in map(read_score, tries) if said is not None), None)
            waits = score is None and len(tries) < len(asking.samplings)
        name = claim.item.asked.id
        if waits:
            scored.waiting.add(name)
            continue
        parts[name][claim.number] = replace(parts[name][claim.number], correct=score)
        scored.counts["unparsed" if score is None else "correct" if score else "incorrect"] += 1
    return scored, counts


class Graded(NamedTuple):
    """A text to grade: a ``part`` and a ``variant`` are graded by different rules."""

    text: str
    problem: Problem
    rules: Literal["part", "variant"]

    @property
    def id(self) -> str:
        """From all that its verdict depends on, but the grader's settings."""
        return problem_id("\n".join((self.rules, self.problem.kind, self.problem.reference, self.text)))


def grade_texts(wanted: Iterable[Graded], grader: Grader, folder: Path) -> dict[str, bool | None]:
    """Whether each text is correct, by id; verdicts that are missing are made and appended to ``verdicts.jsonl``."""
    known = {verdict.answer_id: verdict.correct for verdict in store.read_records(folder / VERDICTS, Verdict)}
    seen = set(known)
    missing = (item for item in wanted if not (item.id in seen or seen.add(item.id)))
    with tqdm(desc="grade", unit="text", leave=False) as bar:
        while chunk := list(islice(missing, _GRADED_AT_ONCE)):
            items = ((item.id, item.text, item.problem.reference, item.problem.kind) for item in chunk)
            verdicts = grader.grade_many(items)
            store.append_records(folder / VERDICTS, verdicts)
            known.update((verdict.answer_id, verdict.correct) for verdict in verdicts)
            bar.update(len(chunk))
    return known


# --- what is written ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Rewritten:
    """One line of ``rewritten.jsonl``: what was made of a problem's shortest correct answer, all by ids and offsets.

    ``rejected_id`` is the longest correct answer. The numbers of tokens are as ``stats.json`` says (``tokens_by``).
    """

    problem_id: str
    answer_id: str
    rejected_id: str
    num_tokens: int
    rejected_tokens: int
    parts: tuple[Part, ...]
    variants: tuple[Variant, ...]


@dataclass(frozen=True, kw_only=True)
class LeftOutRow:
    """One line of ``left_out.jsonl``: a problem without a rewritten answer, or without one of its variants, and why."""

    problem_id: str
    reason: LeftOut
    detail: str


def cut_answers(
    items: Sequence[Item],
    scored: Scored,
    texts: AnswerTexts,
    grader: Grader,
    folder: Path,
    count_tokens: CountTokens | None,
) -> tuple[list[Rewritten], list[LeftOutRow]]:
    """The variants of every item whose parts are all scored, each graded once more as a whole.

    Args:
        grader: of whole answers, as they were graded before.
        count_tokens: by the tokenizer of the model that the pairs are for; ``estimate_tokens`` is used without one.
    """
    ready = [item for item in items if item.asked.id in scored.parts and item.asked.id not in scored.waiting]

    def plan(item: Item, text: str) -> list[list[Variant]]:
        variants = plan_variants(text, item.layout, scored.parts[item.asked.id])
        return [list_endings(variant, text, item) for variant in variants]

    def to_grade() -> Iterator[Graded]:
        for item in ready:
            text = texts.read(item.shortest.id)[1]
            for variant in chain.from_iterable(plan(item, text)):
                if not is_graded_already(variant, item):
                    yield Graded(variant.apply(text), item.problem, "variant")

    verdicts = grade_texts(to_grade(), grader, folder)
    rewritten, left_out = [], []
    for item in tqdm(ready, desc="cut", unit="answer", leave=False):
        parts, text = scored.parts[item.asked.id], texts.read(item.shortest.id)[1]
        variants = []
        for endings in plan(item, text):
            found = next(
                (
                    variant for variant in endings
                    if is_graded_already(variant, item)
                    or verdicts[Graded(variant.apply(text), item.problem, "variant").id]
                ),
                None,
            )  # fmt: skip
            if found is None:
                left_out.append(
                    LeftOutRow(problem_id=item.problem.id, reason="variant_wrong", detail=endings[0].name)
                )
            else:
                variants.append(found)
        if not any(part.correct for part in parts):
            unknown = sum(part.correct is None for part in parts)
            detail = f"of {len(parts)} sub-solutions {len(parts) - unknown} incorrect, {unknown} unparsed"
            left_out.append(LeftOutRow(problem_id=item.problem.id, reason="none_correct", detail=detail))
        if not variants:
            continue
        lengths = item.shortest.num_tokens, item.longest.num_tokens
        if count_tokens is not None:
            lengths = tuple(count_tokens([text, texts.read(item.longest.id)[1]]))
        for number, variant in enumerate(variants):
            short = variant.apply(text)
            tokens = count_tokens([short])[0] if count_tokens else estimate_tokens(short, text, lengths[0])
            variants[number] = replace(variant, num_tokens=tokens)
        rewritten.append(
            Rewritten(
                problem_id=item.problem.id, answer_id=item.shortest.id, rejected_id=item.longest.id,
                num_tokens=lengths[0], rejected_tokens=lengths[1], parts=tuple(parts), variants=tuple(variants),
            )
        )  # fmt: skip
    return rewritten, left_out


def list_endings(variant: Variant, text: str, item: Item) -> list[Variant]:
    """A variant, and before it the one that may stand for it: without an end behind the cut.

    A text without a solution section needs no end there if the grader reads the right answer in what is before.
    """
    if is_graded_already(variant, item) or item.layout.tagged:
        return [variant]
    return [replace(variant, cut_end=len(text)), variant]


def is_graded_already(variant: Variant, item: Item) -> bool:
    """Whether the verdict on the answer is that on the variant: nothing is cut, or what counts is its last program."""
    return variant.cut_start == variant.cut_end or item.problem.kind == "code"


def estimate_tokens(part: str, text: str, num_tokens: int) -> int:
    """The share of a text's tokens that a part of it has of the text's words.

    >>> estimate_tokens("It is 4.", "It is 4. Wait. Yes, 4.", 12)
    6
    """
    return round(num_tokens * len(part.split()) / max(1, len(text.split())))


def find_unmarked(items: Iterable[Item], marked: Marked) -> list[LeftOutRow]:
    """The problems whose tries have all been made, without numbers that could be used."""
    return [
        LeftOutRow(problem_id=item.problem.id, reason="unmarked", detail=", ".join(marked.faults[item.asked.id]))
        for item in items
        if item.asked.id not in marked.numbers and item.asked.id not in marked.waiting
    ]


class Pair(NamedTuple):
    """A preference pair by ids: ``variant`` is what is cut from the chosen answer, None for SILC pairs."""

    problem: Problem
    chosen: Ref
    rejected: Ref
    variant: Variant | None


def make_pairs(
    sides: Sequence[Sides], rewritten: Sequence[Rewritten], *, silc: bool, seed: int
) -> dict[VariantName, list[Pair]]:
    """The pairs of each file, shuffled by ``seed``: which of two stands first does not depend on the others.

    Args:
        silc: add SILC pairs to every file.
    """
    problems = {side.problem.id: side.problem for side in sides}
    always = [Pair(side.problem, *found, None) for side in sides if silc and (found := choose_silc(side))]
    pairs: dict[VariantName, list[Pair]] = {name: list(always) for name in typing.get_args(VariantName)}
    for row in rewritten:
        for variant in row.variants:
            chosen, rejected = Ref(row.answer_id, row.num_tokens), Ref(row.rejected_id, row.rejected_tokens)
            pairs[variant.name].append(Pair(problems[row.problem_id], chosen, rejected, variant))

    def draw(pair: Pair) -> tuple[int, str]:
        return seed_of(seed, pair.problem.id, pair.variant is None), pair.problem.id

    return {name: sorted(of, key=draw) for name, of in pairs.items()}


def write_pairs(path: Path, pairs: Iterable[Pair], texts: AnswerTexts, folder: Path, system: str | None) -> None:
    """Write pairs as a JSON list, a pair a line, in flat memory, whole or not at all.

    Args:
        folder: of the answers.
        system: the system message, "" for none; if None, the one that the answer was asked with or, for answers of the
            thought and solution form, the one that asks for it.

    The turns are those of LLaMA-Factory's ranking data: ``{"conversations": [{"from": "system", "value": S}, {"from":
    "human", "value": Q}], "chosen": {"from": "gpt", "value": C}, "rejected": {"from": "gpt", "value": R}}``.
    """
    with store.open_atomic(path) as file:
        between = b"[\n"
        for pair in pairs:
            file.write(between + store.dump_record(_make_row(pair, texts, folder, system)).encode())
            between = b",\n"
        file.write(b"[]\n" if between == b"[\n" else b"\n]\n")


def _make_row(pair: Pair, texts: AnswerTexts, folder: Path, system: str | None) -> dict[str, Any]:
    answer, chosen = texts.read(pair.chosen.id)
    prompt = get_prompt(answer.sampling.prompt, folder)
    if system is None:
        system = prompt.system or (SYSTEM_PROMPTS["thought_solution"] if find_fault(chosen) is None else "")
    turns = [("system", system), ("human", prompt.user.replace("{question}", pair.problem.question))]
    return {
        "conversations": [{"from": role, "value": text} for role, text in turns if text],
        "chosen": {"from": "gpt", "value": pair.variant.apply(chosen) if pair.variant else chosen},
        "rejected": {"from": "gpt", "value": texts.read(pair.rejected.id)[1]},
    }


def summarise(
    sides: Counter[Side],
    num_problems: int,
    marked: Marked,
    scored: Scored,
    rewritten: Sequence[Rewritten],
    left_out: Sequence[LeftOutRow],
    pairs: dict[VariantName, list[Pair]],
) -> dict[str, Any]:
    """What ``stats.json`` holds of a run, beside its settings.

    ``faults`` are those of replies, some of which a further try made up for. ``waiting`` problems want replies that
    failed or were not asked for. ``silc_conflicts`` counts SILC pairs whose chosen answer another pair rejects.
    """
    faults = Counter(chain.from_iterable(marked.faults.values()))
    reasons = Counter(row.reason for row in left_out)
    longest = {row.problem_id: row.rejected_id for row in rewritten}
    silc = [pair for pair in next(iter(pairs.values()), []) if pair.variant is None]
    return {
        "num_problems": num_problems,
        "answers": {side: sides[side] for side in typing.get_args(Side)},
        "num_rewritten": len(rewritten),
        "left_out": {reason: reasons[reason] for reason in typing.get_args(LeftOut)},
        "waiting": len(marked.waiting) + len(scored.waiting),
        "faults": {fault: faults[fault] for fault in typing.get_args(Fault)},
        "parts": {score: scored.counts[score] for score in ("correct", "incorrect", "unparsed")},
        "files": {name: _describe_file(of, rewritten) for name, of in pairs.items()},
        "silc_conflicts": sum(longest.get(pair.problem.id) == pair.chosen.id for pair in silc),
    }


def _describe_file(pairs: Sequence[Pair], rewritten: Sequence[Rewritten]) -> dict[str, Any]:
    """How many pairs of which kind, and the mean lengths of the rewritten ones: as they were, cut, and rejected."""
    chosen = {pair.problem.id: pair.variant.num_tokens for pair in pairs if pair.variant is not None}
    rows = [row for row in rewritten if row.problem_id in chosen]
    lengths = {
        "uncut": [row.num_tokens for row in rows], "chosen": list(chosen.values()),
        "rejected": [row.rejected_tokens for row in rows],
    }  # fmt: skip
    return {
        "pairs": len(pairs),
        "rewritten": len(chosen),
        "silc": len(pairs) - len(chosen),
        "mean_tokens": {name: round(sum(of) / len(of), 1) if of else None for name, of in lengths.items()},
    }
