"""Cuts, sides and examples of a collection, worked by hand with one token a byte."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from tiny import write_byte_tokenizer

from tt_reasoning import store
from tt_reasoning.answer_sets import open_answers
from tt_reasoning.errors import UserError
from tt_reasoning.models import ChatTokenizer
from tt_reasoning.qsharp import (
    Cut,
    Example,
    Plan,
    assign_sides,
    choose_cut,
    draw_side,
    make_examples,
    plan_cuts,
    read_sides,
    token_ends,
)
from tt_reasoning.shepherd import end_at_stop
from tt_reasoning.types import Answer, Problem, Sampling, Verdict, seed_of

SAMPLING = Sampling(model="m", prompt="few_shot")
PROBLEM = Problem(source="s", split="train", question="What is 2 + 3?", reference="5")
THIRD = 2**31 // 3


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_byte_tokenizer(folder)
    return ChatTokenizer(folder)


def answer_of(text: str, index: int = 0, finish_reason: str = "stop") -> Answer:
    return Answer(
        id=SAMPLING.answer_id(PROBLEM.id, index), problem_id=PROBLEM.id, sample_index=index, text=text, num_tokens=9,
        finish_reason=finish_reason, sampling=SAMPLING,
    )  # fmt: skip


def verdict_of(answer: Answer, correct: bool | None = True, reason: str = "match") -> Verdict:
    return Verdict(answer_id=answer.id, extracted=None, correct=correct, reason=reason)


# --- where an answer is cut ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ended", "draw", "found"),
    [  # three tokens of one character; with the end token four
        (False, 0, (1, 1)),
        (False, THIRD + 1, (2, 2)),
        (False, 2 * THIRD + 2, (3, 3)),
        (False, 2**31 - 1, (3, 3)),
        (True, 2**29 - 1, (1, 1)),
        (True, 2**29, (2, 2)),
        (True, 3 * 2**29 - 1, (3, 3)),
        (True, 3 * 2**29, (3, 4)),
    ],
)
def test_the_last_token_kept_is_floor_of_u_times_their_number_and_the_end_token_is_one(
    ended: bool, draw: int, found: tuple[int, int]
) -> None:
    assert choose_cut([1, 2, 3], ended, draw) == found


def test_every_token_is_as_likely_to_be_the_last_that_is_kept() -> None:
    draws = [(2 * number + 1) * 2**31 // 2000 for number in range(1000)]  # evenly spaced
    counts = Counter(choose_cut([2, 5, 6, 9], True, draw)[1] for draw in draws)
    assert counts == {tokens: 200 for tokens in range(1, 6)}


def test_a_cut_inside_a_character_moves_behind_it_and_keeps_all_its_tokens(tokenizer: ChatTokenizer) -> None:
    ends = token_ends(tokenizer, "a€b")
    assert ends == [1, 2, 2, 2, 3]
    kept = [choose_cut(ends, False, token * 2**31 // 5 + 1) for token in range(5)]
    assert kept == [(1, 1), (2, 4), (2, 4), (2, 4), (3, 5)]


def write_roll_ins(folder: Path, answers: list[tuple[Answer, Verdict]]) -> Path:
    with store.open_run(folder, "collect_qsharp", {}):
        store.append_records(folder / "problems.jsonl", [PROBLEM])
        store.append_records(folder / "answers.jsonl", [answer for answer, _ in answers])
        store.append_records(folder / "verdicts.jsonl", [verdict for _, verdict in answers])
    return folder


def test_every_roll_in_has_a_cut_of_its_own_from_the_seed_and_its_id(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    answers = [
        answer_of("2 + 3 = 5", 0), answer_of("2 + 3 = 5", 1), answer_of("5\n\n", 2), answer_of("2 + 3", 3, "length"),
        answer_of("", 4), answer_of("", 5, "length"), answer_of("?", 6),
    ]  # fmt: skip
    graded = [(answer, verdict_of(answer)) for answer in answers[:6]]
    graded.append((answers[6], verdict_of(answers[6], None, "bad_reference")))
    plan = plan_cuts(open_answers(write_roll_ins(tmp_path / "run", graded)), tokenizer, ["\n\n"], seed=7)
    assert plan.left_out == {"blank": 1, "bad_reference": 1}
    # The third ends at a stop string, the fourth at its limit: neither has an end token. The fifth is nothing else.
    lengths = {0: 10, 1: 10, 2: 3, 3: 5, 4: 1}
    cuts = list(plan.cuts.values())
    assert [(cut.answer.sample_index, cut.total) for cut in cuts] == list(lengths.items())
    assert [cut.ended for cut in cuts] == [True, True, False, False, True]
    for cut in cuts:
        last = seed_of("qsharp cut", 7, cut.answer.id) * cut.total // 2**31
        assert cut.num_tokens == last + 1 and cut.end == min(last + 1, len(cut.answer.text))
        assert cut.whole == (last + 1 == cut.total)
    assert len(plan.cuts) == 5 and plan.asked == [cut for cut in cuts if not cut.whole]
    again = plan_cuts(open_answers(tmp_path / "run"), tokenizer, ["\n\n"], seed=8)
    assert [cut.num_tokens for cut in again.cuts.values()] != [cut.num_tokens for cut in cuts]


def test_nothing_to_cut_is_told_by_reason(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    blank = answer_of("", 0, "length")
    folder = write_roll_ins(tmp_path / "run", [(blank, verdict_of(blank, False, "no_answer"))])
    with pytest.raises(UserError, match="no answer to cut: 1 blank"):
        plan_cuts(open_answers(folder), tokenizer, [], seed=0)


# --- what comes behind it -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("begun", "text", "found"),
    [
        ("2 + 3 = 5", "\n\nand", ("\n\n", True)),
        ("2 + 3 = 5\n", "\nand\n\n", ("\n", True)),  # the engine saw the second alone
        ("2 + 3 = 5\n\n", "and", ("and", False)),  # what is begun holds one already: that is not the roll-out's
        ("\nPro", "blem: 1\n\n", ("blem:", True)),
        ("", "", ("", False)),
    ],
)
def test_a_roll_out_ends_with_the_first_stop_string_that_ends_in_it(
    begun: str, text: str, found: tuple[str, bool]
) -> None:
    assert end_at_stop(begun, text, ["\n\n", "\nProblem:"]) == found


def test_an_example_is_the_beginning_the_roll_out_and_the_verdict_of_both_or_of_the_whole_roll_in() -> None:
    roll_ins = [answer_of("2 + 3 = 5", 0), answer_of("2 + 3 = 6", 1), answer_of("2 + 3", 2, "length")]
    roll_ins += [answer_of("2 + 3 = 7", 3), answer_of("2 + 3 = 8", 4)]
    sizes = {"kept": (9, 10, 10), "begun": (5, 5, 10), "short": (5, 5, 5), "long": (1, 1, 10), "stop": (6, 6, 10)}
    cuts = {
        name: Cut(
            id=name, problem=PROBLEM, number=0, answer=answer, end=end, num_tokens=num_tokens, total=total,
            ended=answer.finish_reason == "stop", verdict=verdict_of(answer, name == "kept"),
        )  # fmt: skip
        for answer, (name, (end, num_tokens, total)) in zip(roll_ins, sizes.items(), strict=True)
    }
    plan = Plan(cuts=cuts, left_out=Counter())
    assert [cut.id for cut in plan.asked] == ["begun", "long", "stop"]
    begun, stopped = answer_of(" = 5"), answer_of("= 5\n\n")
    rollouts = {"begun": (begun, verdict_of(begun)), "stop": (stopped, verdict_of(stopped, None, "timeout"))}
    assert list(make_examples(plan, rollouts, {PROBLEM.id: "eval"}, ["\n\n"])) == [
        example("kept", "2 + 3 = 5", "", ended=True, whole=True, correct=True),
        example("begun", "2 + 3", " = 5", ended=True, whole=False, correct=True),
        example("short", "2 + 3", "", ended=False, whole=True, correct=False),
        example("stop", "2 + 3 ", "= 5\n\n", ended=False, whole=False, correct=None),
    ]


def example(name: str, begun: str, text: str, **rest: bool | None) -> Example:
    return Example(id=name, problem_id=PROBLEM.id, split="eval", begun=begun, text=text, **rest)


# --- which problems are held out ----------------------------------------------------------------------------------

IDS = [f"{number:016x}" for number in range(2000)]


def test_the_draw_goes_by_id_and_seed_alone_and_holds_out_the_share() -> None:
    sides = assign_sides(IDS, 0.1, seed=0)
    assert assign_sides(reversed(IDS), 0.1, seed=0) == sides
    assert assign_sides(IDS[1::4], 0.1, seed=0).items() <= sides.items()
    assert 160 <= Counter(sides.values())["eval"] <= 240  # 200 expected, 13.4 the standard deviation
    assert assign_sides(IDS, 0.1, seed=1) != sides
    held = {name for name, side in sides.items() if side == "eval"}
    assert held < {name for name in IDS if draw_side(name, 0.2, seed=0) == "eval"}


def test_what_the_file_remembers_holds_whatever_a_later_round_asks_for(tmp_path: Path) -> None:
    path = tmp_path / "rounds" / "1"
    first = assign_sides(IDS[:100], 0.1, seed=0, path=path)
    assert first == read_sides(path) == {name: draw_side(name, 0.1, seed=0) for name in IDS[:100]}
    before = path.read_bytes()
    assert assign_sides(IDS[50:100], 0.9, seed=5, path=path).items() <= first.items() and path.read_bytes() == before
    later = assign_sides(IDS[:200], 0.9, seed=5, path=path)
    assert first.items() <= later.items() and later == read_sides(path)
    assert {name: later[name] for name in IDS[100:200]} == {name: draw_side(name, 0.9, 5) for name in IDS[100:200]}


def test_runs_that_share_the_file_at_once_all_leave_their_problems_in_it(tmp_path: Path) -> None:
    path = tmp_path / "rounds.json"
    with ProcessPoolExecutor(4) as pool:
        shards = list(pool.map(partial(_assign_in_parts, path), [IDS[rank:200:4] for rank in range(4)]))
    assert read_sides(path) == {name: side for shard in shards for name, side in shard.items()}
    assert list(read_sides(path)) == sorted(IDS[:200])


def _assign_in_parts(path: Path, ids: list[str]) -> dict:
    return {name: side for part in range(5) for name, side in assign_sides(ids[part::5], 0.1, 0, path).items()}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a JSON file"),
        ("[]", 'wanted {"problem id": "train" or "eval", ...}'),
        (json.dumps({"a": "test"}), 'wanted {"problem id": "train" or "eval", ...}'),
    ],
)
def test_a_file_that_remembers_something_else_is_refused_and_stays(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rounds.json"
    path.write_text(text)
    with pytest.raises(UserError, match="--rounds-file"):
        assign_sides(IDS[:2], 0.1, 0, path)
    with pytest.raises(UserError) as told:
        read_sides(path)
    assert message in str(told.value) and path.read_text() == text
    with pytest.raises(UserError, match="a file stands where a folder has to be"):
        read_sides(path / "1")
