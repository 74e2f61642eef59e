"""What is chosen, where a thought is cut and what the model may say of it, on texts of a few lines."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tt_reasoning import store
from tt_reasoning.answer_sets import open_answers
from tt_reasoning.conversion import find_fault, split_sections
from tt_reasoning.engines.base import Completion, Failure, Request
from tt_reasoning.engines.scripted import ScriptedEngine
from tt_reasoning.grading import Grader
from tt_reasoning.prompts import PROMPTS, SYSTEM_PROMPTS, load_prompt
from tt_reasoning.rewriting import (
    AnswerTexts,
    Asking,
    Item,
    LeftOutRow,
    Marked,
    Pair,
    Part,
    Ref,
    Rewritten,
    Scored,
    Sides,
    Variant,
    choose_extremes,
    choose_items,
    choose_silc,
    cut_answers,
    find_unmarked,
    lay_out,
    make_pairs,
    mark_answers,
    plan_variants,
    read_marks,
    read_score,
    read_sides,
    score_parts,
    split_lines,
    split_parts,
    write_pairs,
)
from tt_reasoning.types import Answer, Kind, Problem, Reason, Sampling, Verdict

SAMPLING = Sampling(model="m", prompt="question")
TAGGED = "<|begin_of_thought|>\n{}\n<|end_of_thought|>\n\n<|begin_of_solution|>\n{}\n<|end_of_solution|>"
THOUGHT = "2 + 2 is\nso 4.\nHm?\nTwice 2,\nso 4.\nAlso\n8 / 2 = 4.\nDone."


def make_problem(question: str = "2 + 2?", reference: str = "4", kind: Kind = "math") -> Problem:
    return Problem(source="tiny", split="train", question=question, reference=reference, kind=kind)


Told = tuple[str, bool | None]  # a text, and whether it is correct


def write_answers(
    folder: Path, problems: Sequence[tuple[Problem, Sequence[Told]]], *, prompt: str = "question",
    cut: Sequence[str] = (), template: dict | None = None,
) -> Path:  # fmt: skip
    """A graded folder; an answer's length is its number of words."""
    sampling = replace(SAMPLING, prompt=prompt)
    answers, verdicts = [], []
    for problem, told in problems:
        for index, (text, correct) in enumerate(told):
            name = sampling.answer_id(problem.id, index)
            reason: Reason = {True: "match", False: "mismatch", None: "timeout"}[correct]
            answers.append(
                Answer(id=name, problem_id=problem.id, sample_index=index, text=text, num_tokens=len(text.split()),
                       finish_reason="length" if text in cut else "stop", sampling=sampling)
            )  # fmt: skip
            verdicts.append(Verdict(answer_id=name, extracted=None, correct=correct, reason=reason))
    with store.open_run(folder, "generate_answers", {"template": template}):
        store.write_records(folder / "problems.jsonl", [problem for problem, _ in problems])
        store.write_records(folder / "answers.jsonl", answers)
        store.write_records(folder / "verdicts.jsonl", verdicts)
    return folder


def sides_of(folder: Path) -> list[Sides]:
    return list(read_sides(open_answers(folder), Counter()))


def reply(text: str, finish_reason: str = "stop") -> Answer:
    return Answer(id="r", problem_id="q", sample_index=0, text=text, num_tokens=1, finish_reason=finish_reason,
                  sampling=SAMPLING)  # fmt: skip


def pieces(text: str, parts: Sequence[Part]) -> list[str]:
    return [text[part.start : part.end] for part in parts]


def shortened(text: str, numbers: Sequence[int], scores: Sequence[bool | None]) -> dict[str, str]:
    layout = lay_out(text)
    parts = [replace(p, correct=c) for p, c in zip(split_parts(layout, numbers), scores, strict=True)]
    return {variant.name: variant.apply(text) for variant in plan_variants(text, layout, parts)}


# --- which answers ----------------------------------------------------------------------------------------------


def test_only_judged_whole_answers_in_form_are_on_a_side_from_short_to_long(tmp_path: Path) -> None:
    told: list[Told] = [
        ("one two three", True), ("one", True), ("three two one", True), ("a b", False), ("a", False),
        ("who knows", None), ("cut off", True), ("<|begin_of_thought|>4", True), ("4 <|end_of_solution|>", False),
    ]  # fmt: skip
    folder = write_answers(tmp_path / "a", [(make_problem(), told)], cut=["cut off"])
    counts: Counter[str] = Counter()
    (sides,) = read_sides(open_answers(folder), counts)
    names = [SAMPLING.answer_id(make_problem().id, index) for index in range(9)]
    assert sides.correct == [Ref(names[1], 1), Ref(names[0], 3), Ref(names[2], 3)]
    assert sides.incorrect == [Ref(names[4], 1), Ref(names[3], 2)]
    assert counts == {"correct": 3, "incorrect": 2, "not_judged": 1, "cut": 1, "bad_tags": 2}
    assert choose_extremes(sides.correct) == (sides.correct[0], sides.correct[1])  # of two longest the first sample


def test_silc_looks_at_every_incorrect_answer() -> None:
    """The reference takes the first one listed, here d: no correct one is longer."""
    problem = make_problem()
    correct = [Ref("a", 3), Ref("b", 6), Ref("c", 9)]
    assert choose_silc(Sides(problem, correct, [Ref("e", 4), Ref("d", 50)])) == (Ref("b", 6), Ref("e", 4))
    assert choose_silc(Sides(problem, correct, [Ref("d", 9)])) is None
    assert choose_silc(Sides(problem, [], [Ref("d", 9)])) is None
    assert choose_silc(Sides(problem, correct, [])) is None


def test_a_problem_without_two_lengths_is_left_out_with_its_reason(tmp_path: Path) -> None:
    problems = [make_problem(f"{n}?") for n in range(4)]
    two: list[list[Told]] = [[("4", True), ("5", True)], [("4", True), ("It is 4", True)]]
    told: list[list[Told]] = [[("4", True)], *two, [("5", False)]]
    folder = write_answers(tmp_path / "a", list(zip(problems, told, strict=True)))
    sides = sides_of(folder)
    items, left_out = choose_items(sides, AnswerTexts(folder, sides))
    assert [item.problem for item in items] == [problems[2]]
    assert [(row.problem_id, row.reason) for row in left_out] == [
        (problems[0].id, "few_correct"), (problems[1].id, "tie"), (problems[3].id, "few_correct"),
    ]  # fmt: skip
    assert items[0].asked.question == "Problem: 2?\n\nThoughts:\n[1] 4"


# --- lines and what is said of them -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a\n\n  \nb", ["a", "b"]),
        ("```\nx\n\ny\n```\nb", ["```\nx\n\ny\n```", "b"]),
        ("```python\nx", ["```python", "x"]),  # never closed: nothing is swallowed
        ("$$\nx\n\\[\ny\n\\]", ["$$", "x", "\\[\ny\n\\]"]),
        ("$$x$$\n$$\ny\n$$", ["$$x$$", "$$\ny\n$$"]),
    ],
)
def test_blocks_are_one_line_and_blank_ones_none(text: str, lines: list[str]) -> None:
    assert [text[start:end] for start, end in split_lines(text, (0, len(text)))] == lines


@pytest.mark.parametrize(
    ("said", "numbers", "fault"),
    [
        ("2, 5, 7", (2, 5, 7), None),
        (" [2], [5].\n", (2, 5), None),
        ("2 5", (2, 5), None),
        ("none", (), None),
        ("None.", (), None),
        ("", (), "form"),
        ("Lines 2 and 5", (), "form"),
        ("2, 5, 5", (), "form"),
        ("5, 2", (), "form"),
        ("2-5", (), "form"),
        ("2, 9", (), "range"),
        ("0, 2", (), "range"),
        ("²", (), "form"),
        ("1, 2, 3, 4, 5, 6, 7, 8", (), "every"),
    ],
)
def test_a_reply_is_rising_numbers_of_lines_that_are_there(said: str, numbers: tuple[int, ...], fault: str) -> None:
    layout = lay_out(TAGGED.format(THOUGHT, "4"))
    assert len(layout.lines) == 8
    assert read_marks(reply(said), layout) == (numbers, fault)


def test_a_cut_reply_and_none_for_a_text_without_a_solution_are_faults() -> None:
    assert read_marks(reply("2", "length"), lay_out(THOUGHT)) == ((), "truncated")
    assert read_marks(reply("none"), lay_out(THOUGHT)) == ((), "none")
    assert read_marks(reply("1, 2, 3"), lay_out("a\nb\nc")) == ((1, 2, 3), None)  # three may all propose


@pytest.mark.parametrize(
    ("said", "score"),
    [("True", True), ("false", False), (" FALSE.\n", False), ("True, yes", None), ("", None), ("1", None)],
)
def test_a_score_is_one_word(said: str, score: bool | None) -> None:
    assert read_score(reply(said)) is score
    assert read_score(reply(said, "length")) is None


# --- parts and variants -----------------------------------------------------------------------------------------


def test_parts_end_behind_the_lines_that_propose_and_what_follows_is_one_more_before_a_solution() -> None:
    text = TAGGED.format(THOUGHT, "\\boxed{4}")
    assert pieces(text, split_parts(lay_out(text), (2, 5, 7))) == [
        "2 + 2 is\nso 4.", "Hm?\nTwice 2,\nso 4.", "Also\n8 / 2 = 4.", "Done.",
    ]  # fmt: skip
    assert pieces(text, split_parts(lay_out(text), ())) == [THOUGHT]
    assert pieces(text, split_parts(lay_out(text), (7, 8))) == [THOUGHT]  # two in a row are one proposal
    assert pieces(THOUGHT, split_parts(lay_out(THOUGHT), (2, 7))) == ["2 + 2 is\nso 4.", THOUGHT[15:]]


def test_the_three_variants_of_a_thought_and_its_solution() -> None:
    text = TAGGED.format(THOUGHT, "\\boxed{4}")
    found = shortened(text, (2, 5, 7), (False, True, True, False))
    assert {name: split_sections(variant) for name, variant in found.items()} == {
        "fcs": ("2 + 2 is\nso 4.\nHm?\nTwice 2,\nso 4.", "\\boxed{4}"),
        "fcs_plus1": ("2 + 2 is\nso 4.\nHm?\nTwice 2,\nso 4.\nAlso\n8 / 2 = 4.", "\\boxed{4}"),
        "fcs_reflection": ("2 + 2 is\nso 4.\nHm?\nTwice 2,\nso 4.\nAlso\n8 / 2 = 4.", "\\boxed{4}"),
    }
    # Nothing else is touched: the line breaks around the tags are the answer's own.
    assert found["fcs"] == TAGGED.format("2 + 2 is\nso 4.\nHm?\nTwice 2,\nso 4.", "\\boxed{4}")


def test_without_a_second_correct_part_the_reflection_alone_is_missing() -> None:
    text = TAGGED.format(THOUGHT, "4")
    assert shortened(text, (2, 5, 7), (True, False, False, None)) == {
        "fcs": TAGGED.format("2 + 2 is\nso 4.", "4"),
        "fcs_plus1": TAGGED.format("2 + 2 is\nso 4.\nHm?\nTwice 2,\nso 4.", "4"),
    }
    assert shortened(text, (2, 5, 7), (None, False, False, True)) == {"fcs": text, "fcs_plus1": text}
    assert shortened(text, (2, 5, 7), (False, False, None, False)) == {}


def test_in_a_text_without_a_solution_the_lines_of_its_last_answer_end_every_variant() -> None:
    text = "So 4.\nOr 5?\nNo: 4.\nIn short:\nThe Answer is:\n4\nBye."
    assert shortened(text, (1, 3, 5, 6), (True, True, True)) == {
        "fcs": "So 4.\nThe Answer is:\n4\nBye.",
        "fcs_plus1": "So 4.\nOr 5?\nNo: 4.\nThe Answer is:\n4\nBye.",
        "fcs_reflection": "So 4.\nOr 5?\nNo: 4.\nThe Answer is:\n4\nBye.",
    }


LINES = st.lists(st.sampled_from(["a", "b c", "so 4.", "", "  ", "```", "$$"]), min_size=1, max_size=12)


@given(LINES, st.booleans(), st.data())
def test_every_variant_is_the_answer_without_one_span_of_its_thought(
    lines: list[str], tagged: bool, data: st.DataObject
) -> None:
    thought = "\n".join(["begin", *lines])
    text = TAGGED.format(thought, "4") if tagged else thought.strip()
    layout = lay_out(text)
    numbers = sorted(data.draw(st.sets(st.integers(1, len(layout.lines)), min_size=0 if tagged else 1)))
    parts = split_parts(layout, numbers)
    assert "".join("".join(pieces(text, parts)).split()) == "".join(thought.split())  # all of it, in order, once
    scores = data.draw(st.lists(st.sampled_from([True, False, None]), min_size=len(parts), max_size=len(parts)))
    found = shortened(text, numbers, scores)
    assert bool(found) is (True in scores)
    for name, variant in found.items():
        first = scores.index(True) + (name == "fcs_plus1" and scores.index(True) + 1 < len(parts))
        kept = text[: parts[first].end] if name != "fcs_reflection" else text[: parts[0].end]
        assert variant.startswith(kept) and len(variant) <= len(text)
        removed = len(text) - len(variant)
        assert any(text[:i] + text[i + removed :] == variant for i in range(len(variant) + 1))
        if tagged:
            assert find_fault(variant) is None and split_sections(variant).solution == "4"


# --- asking -----------------------------------------------------------------------------------------------------


class Recorded:
    """A scripted model that keeps its requests; ``say`` gets what is asked and the number of times it was before."""

    def __init__(self, say: Callable[[str, int], str]) -> None:
        self.requests: list[Request] = []
        self._asked: Counter[str] = Counter()
        self._say = say

    def start(self) -> ScriptedEngine:
        def answer(request: Request) -> str:
            content = request.prompt[-1]["content"]
            self.requests.append(request)
            self._asked[content] += 1
            return self._say(content, self._asked[content] - 1)

        return ScriptedEngine(answer)

    def asking(self, folder: Path, tries: int = 3) -> Asking:
        samplings = [replace(SAMPLING, temperature=0.7 if n else 0, seed=n) for n in range(tries)]
        folder.mkdir(exist_ok=True)
        return Asking(start_engine=self.start, samplings=tuple(samplings), folder=folder, chunk_size=8)


def no_engine() -> ScriptedEngine:
    raise AssertionError("nothing is to be asked")


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader() as grader:
        yield grader


def make_items(folder: Path, shortest: Sequence[str], kind: Kind = "math") -> tuple[list[Item], AnswerTexts]:
    """An item for each text, with a long correct answer beside it."""
    problems = [make_problem(f"Question {n}", kind=kind) for n in range(len(shortest))]
    told = [[(text, True), ("word " * 80 + "\\boxed{4}", True)] for text in shortest]
    write_answers(folder, list(zip(problems, told, strict=True)))
    sides = sides_of(folder)
    texts = AnswerTexts(folder, sides)
    return choose_items(sides, texts)[0], texts


def test_a_further_try_is_made_only_where_those_before_failed(tmp_path: Path) -> None:
    items, _ = make_items(tmp_path / "a", [TAGGED.format(THOUGHT, "4"), "So 4.\nThe Answer is: 4", "4", "a\n4"])
    replies = {"Question 0": ["I think 2", "2, 50", "2, 5"], "Question 1": ["1, 2"], "Question 3": ["none", "x", "3"]}
    model = Recorded(lambda content, number: replies[content[9:19]][number])
    asking = model.asking(tmp_path / "out")
    marked, counts = mark_answers(items, asking)
    names = [item.asked.id for item in items]
    assert marked.numbers == {names[0]: (2, 5), names[1]: (1, 2), names[2]: (1,)}  # a single line is not asked about
    assert marked.faults == {names[0]: ["form", "range"], names[1]: [], names[3]: ["none", "form", "range"]}
    assert not marked.waiting and counts.written == 7
    assert [request.temperature for request in model.requests] == [0, 0, 0, 0.7, 0.7, 0.7, 0.7]
    assert [(row.reason, row.detail) for row in find_unmarked(items, marked)] == [("unmarked", "none, form, range")]
    again = replace(asking, start_engine=no_engine)
    assert mark_answers(items, again)[0] == marked
    # One more try is made for the one that has none.
    more = replace(asking, samplings=(*asking.samplings, replace(SAMPLING, seed=3)))
    model._say = lambda content, number: "2"
    assert mark_answers(items, more)[0].numbers[names[3]] == (2,)
    assert len(model.requests) == 8


def test_parts_are_scored_by_the_model_and_what_it_does_not_say_is_counted(tmp_path: Path, grader: Grader) -> None:
    items, texts = make_items(tmp_path / "a", [TAGGED.format(THOUGHT, "4"), "So 5.\nNo.\nThe Answer is: 4"])
    names = [item.asked.id for item in items]
    marked = Marked({names[0]: (2, 5, 7), names[1]: (1, 3)}, {}, set())
    says = {"2 + 2": ["false"], "Hm?": ["Yes", "True"], "Also": ["True"], "Done": ["?", "?", "?"], "So 5": ["False"]}

    def say(content: str, number: int) -> str:
        part = content.split("thoughts:\n")[1]
        return next(replies for start, replies in says.items() if part.startswith(start))[number]

    model = Recorded(say)
    scored, _ = score_parts(items, marked, texts, model.asking(tmp_path / "out"), "model", grader)
    assert [part.correct for part in scored.parts[names[0]]] == [False, True, True, None]
    assert [part.correct for part in scored.parts[names[1]]] == [False, True]  # the last is graded: it is not asked
    assert scored.counts == {"correct": 2, "incorrect": 2, "unparsed": 1} and not scored.waiting
    assert len(model.requests) == 5 + 2 + 1
    assert all("Correct final answer: 4" in request.prompt[-1]["content"] for request in model.requests)


def test_the_grader_scores_parts_without_any_model(tmp_path: Path) -> None:
    text = TAGGED.format("So 5.\nNo, it is 4.\nHm\nFour.", "\\boxed{4}")
    items, texts = make_items(tmp_path / "a", [text])
    marked = Marked({items[0].asked.id: (1, 4)}, {}, set())
    asking = replace(Recorded(lambda *_: "").asking(tmp_path / "out"), start_engine=no_engine)
    with Grader(fallback="last_number") as last_number:
        scored, _ = score_parts(items, marked, texts, asking, "grader", last_number)
    assert pieces(text, scored.parts[items[0].asked.id]) == ["So 5.", "No, it is 4.\nHm\nFour."]
    assert [part.correct for part in scored.parts[items[0].asked.id]] == [False, True]


def test_programs_are_run_whoever_scores_and_the_last_one_is_not_run_again(tmp_path: Path) -> None:
    class Runner:
        """Finds programs right that print 4; keeps what it was given."""

        def __init__(self) -> None:
            self.texts: list[str] = []

        def grade_many(self, items: Sequence[tuple[str, str, str, Kind]]) -> list[Verdict]:
            given = list(items)
            self.texts += [text for _, text, _, _ in given]
            return [
                Verdict(answer_id=name, extracted=None, correct="print(4)" in text,
                        reason="match" if "print(4)" in text else "mismatch")
                for name, text, _, _ in given
            ]  # fmt: skip

    block = "```python\nprint({})\n```"
    thought = f"Try:\n{block.format(5)}\nBetter:\n{block.format(4)}\nIs that all?\nYes."
    items, texts = make_items(tmp_path / "a", [TAGGED.format(thought, block.format(4))], kind="code")
    marked = Marked({items[0].asked.id: (2, 4)}, {}, set())
    runner = Runner()
    asking = replace(Recorded(lambda *_: "").asking(tmp_path / "out"), start_engine=no_engine)
    scored, _ = score_parts(items, marked, texts, asking, "model", runner)
    assert [part.correct for part in scored.parts[items[0].asked.id]] == [False, True, False]
    assert len(runner.texts) == 3
    (row,), left_out = cut_answers(items, scored, texts, runner, tmp_path / "out", None)
    assert len(runner.texts) == 3 and not left_out
    assert row.variants[0].apply(texts.read(row.answer_id)[1]) == TAGGED.format(
        f"Try:\n{block.format(5)}\nBetter:\n{block.format(4)}", block.format(4)
    )


def test_problems_wait_for_requests_that_failed(tmp_path: Path, grader: Grader) -> None:
    class Broken:
        """Answers the first request of a call only."""

        def generate(self, requests: Sequence[Request]) -> list[Completion | Failure]:
            failure = Failure(reason="timeout", detail="no end in 60 s")
            return [Completion(text="1", num_tokens=1, finish_reason="stop"), *[failure] * (len(requests) - 1)]

        def close(self) -> None:
            pass

    items, texts = make_items(tmp_path / "a", ["4?\nYes, 4", "4?\nYes: 4"])
    asking = replace(Recorded(lambda *_: "").asking(tmp_path / "out", tries=1), start_engine=Broken)
    marked, counts = mark_answers(items, asking)
    assert marked.numbers == {items[0].asked.id: (1,)} and marked.waiting == {items[1].asked.id}
    assert counts.failed == {"timeout": 1} and not find_unmarked(items, marked)
    tagged, texts = make_items(tmp_path / "b", [TAGGED.format("4?\nYes", "4"), TAGGED.format("4?\nHm", "4")])
    both = Marked({item.asked.id: (1,) for item in tagged}, {}, set())
    scored, counts = score_parts(tagged, both, texts, asking, "model", grader)
    assert scored.waiting == {item.asked.id for item in tagged} and counts.failed == {"timeout": 3}
    assert cut_answers(tagged, scored, texts, grader, tmp_path / "out", None) == ([], [])


# --- what is written --------------------------------------------------------------------------------------------


def cut(
    tmp_path: Path, text: str, numbers: tuple[int, ...], scores: Sequence[bool | None], grader: Grader
) -> tuple[dict[str, str], list[Rewritten], list[LeftOutRow]]:
    """The variants' texts of one answer, and the records."""
    items, texts = make_items(tmp_path / "a", [text])
    parts = [replace(p, correct=c) for p, c in zip(split_parts(items[0].layout, numbers), scores, strict=True)]
    (tmp_path / "out").mkdir()
    scored = Scored({items[0].asked.id: parts}, Counter(), set())
    rewritten, left_out = cut_answers(items, scored, texts, grader, tmp_path / "out", None)
    found = {v.name: v.apply(text) for row in rewritten for v in row.variants}
    return found, rewritten, left_out


def test_a_text_without_a_solution_ends_with_the_cut_if_the_grader_reads_the_answer_there(
    tmp_path: Path, grader: Grader
) -> None:
    text = "2 + 2 = 4, so I have 4.\nThe Answer is: 4\nWait.\nIs 2 + 2 really 4?\nYes: 4.\nHence\nThe Answer is: 4"
    found, (row,), left_out = cut(tmp_path, text, (1, 5, 7), (True, True, True), grader)
    # "so I have 4" marks no answer for the grader, so the text's last statement follows.
    assert found["fcs"] == "2 + 2 = 4, so I have 4.\nThe Answer is: 4"
    assert found["fcs_plus1"] == found["fcs_reflection"] == text.split("\nHence")[0]  # it has a statement already
    assert not left_out
    # 27 words, and as many tokens, of which 9 + 4 and 27 - 5 are left.
    assert (row.num_tokens, row.rejected_tokens) == (27, 81)
    assert [variant.num_tokens for variant in row.variants] == [13, 22, 22]


def test_a_variant_that_lost_its_answer_is_left_out(tmp_path: Path, grader: Grader) -> None:
    text = TAGGED.format("It is 4.\nWait.\nYes: \\boxed{4}", "As I said.")
    found, (row,), left_out = cut(tmp_path, text, (1, 3), (True, True), grader)
    assert found == {"fcs_plus1": text, "fcs_reflection": text}
    assert [(row.reason, row.detail) for row in left_out] == [("variant_wrong", "fcs")]


def test_without_a_correct_part_there_is_no_variant(tmp_path: Path, grader: Grader) -> None:
    found, _, left_out = cut(tmp_path, TAGGED.format("5\nHm\n6", "\\boxed{4}"), (1, 3), (False, None), grader)
    assert not found
    assert [(row.reason, row.detail) for row in left_out] == [
        ("none_correct", "of 2 sub-solutions 1 incorrect, 1 unparsed")
    ]


def test_the_order_of_pairs_comes_from_the_seed_and_not_from_what_else_is_there() -> None:
    problems = [make_problem(f"{n}?") for n in range(30)]
    sides = [Sides(problem, [Ref("a", 5), Ref("b", 9)], [Ref("c", 5)]) for problem in problems]
    fcs = Variant(name="fcs", cut_start=0, cut_end=0)
    rows = [
        Rewritten(problem_id=problem.id, answer_id="a", rejected_id="b", num_tokens=5, rejected_tokens=9, parts=(),
                  variants=(fcs,) if n % 2 else (fcs, replace(fcs, name="fcs_reflection")))
        for n, problem in enumerate(problems)
    ]  # fmt: skip

    def order(pairs: Sequence[Pair]) -> list[tuple[str, bool]]:
        return [(pair.problem.id, pair.variant is None) for pair in pairs]

    whole = make_pairs(sides, rows, silc=True, seed=1)
    assert {name: len(of) for name, of in whole.items()} == {"fcs": 60, "fcs_plus1": 30, "fcs_reflection": 45}
    plain = make_pairs(sides, rows, silc=False, seed=1)
    assert order(plain["fcs"]) == [pair for pair in order(whole["fcs"]) if not pair[1]]
    assert order(plain["fcs"]) != order(make_pairs(sides, rows, silc=False, seed=2)["fcs"])
    assert order(plain["fcs"]) != [(problem.id, False) for problem in problems]
    assert order(make_pairs(sides[:9], rows[:9], silc=False, seed=1)["fcs"]) == [
        pair for pair in order(plain["fcs"]) if pair[0] in {problem.id for problem in problems[:9]}
    ]


@pytest.mark.parametrize(
    ("prompt", "text", "system", "wanted"),
    [
        ("question", "It is 4", None, None),
        ("question", TAGGED.format("2 + 2", "4"), None, SYSTEM_PROMPTS["thought_solution"]),
        ("question", TAGGED.format("2 + 2", "4"), "", None),
        ("question", "It is 4", "Be brief.", "Be brief."),
        ("boxed as system", TAGGED.format("2 + 2", "4"), None, SYSTEM_PROMPTS["boxed"]),
    ],
)
def test_a_pair_shows_the_question_as_it_was_asked(
    tmp_path: Path, prompt: str, text: str, system: str | None, wanted: str | None
) -> None:
    asked = load_prompt("answer", "boxed") if prompt == "boxed as system" else PROMPTS[prompt]
    problem = make_problem()
    folder = write_answers(
        tmp_path / "a", [(problem, [(text, True), ("word " * 50, True)])], prompt=asked.name, template=asked.template()
    )
    sides = sides_of(folder)
    short, long = sides[0].correct
    write_pairs(tmp_path / "p.json", [Pair(problem, short, long, None)], AnswerTexts(folder, sides), folder, system)
    (row,) = json.loads((tmp_path / "p.json").read_text())
    turns = [{"from": "human", "value": asked.user.replace("{question}", "2 + 2?")}]
    assert row["conversations"] == ([{"from": "system", "value": wanted}] if wanted else []) + turns
    assert row["chosen"] == {"from": "gpt", "value": text}
    assert row["rejected"] == {"from": "gpt", "value": ("word " * 50).strip()}
    write_pairs(tmp_path / "none.json", [], AnswerTexts(folder, sides), folder, system)
    assert json.loads((tmp_path / "none.json").read_text()) == []
