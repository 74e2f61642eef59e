"""Answer sets of tiny folders: what is kept, what is dropped and why, from which folders, in how much memory."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from set_folders import SAMPLING, group, problem, write_folder

from tt_reasoning import store
from tt_reasoning.answer_sets import Dropped, first_answers, open_answers
from tt_reasoning.answer_sets.building import (
    Candidate,
    Kept,
    SetRules,
    build_answer_sets,
    draw_candidates,
    pool_answers,
    read_problem_ids,
    require_pool_samples,
)
from tt_reasoning.errors import UserError
from tt_reasoning.processes import map_in_processes
from tt_reasoning.prompts import answer_set_text
from tt_reasoning.types import AnswerSet, Sampling

COLD, HOT = Sampling(model="tiny", prompt="answer", temperature=0.1), Sampling(model="large", prompt="answer")


def count_words(texts: list[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def build(*folders: Path, num_workers: int = 1, mix_splits: bool = False, **changes) -> list[Kept | Dropped]:
    rules = SetRules(**({"num_answers": (2, 2), "max_none": 1, "max_length": 1000} | changes))
    pool = pool_answers([open_answers(folder) for folder in folders], mix_splits=mix_splits)
    return list(build_answer_sets(pool, rules, count_words, num_workers=num_workers))


def sets_of(results: Iterable[Kept | Dropped]) -> list[AnswerSet]:
    return [store.load_record(AnswerSet, json.loads(result.line)) for result in results if isinstance(result, Kept)]


def candidates(*counts: int) -> list[Candidate]:
    """So many answers of each way of sampling."""
    return [Candidate(way, index, "match", 0, 0) for way, count in enumerate(counts) for index in range(count)]


def test_a_set_of_one_folder_is_that_of_its_first_answers(tmp_path):
    folder = write_folder(tmp_path / "answers", [["4 é\n", '"5"', "6"], ["4", "5", "6"]])
    assert sets_of(build(folder, order_seed=7)) == [
        first_answers(*group(0, ["4 é\n", '"5"', "6"]), 2, 7),
        first_answers(*group(1, ["4", "5", "6"]), 2, 7),
    ]


def test_the_length_is_that_of_the_text_the_aggregator_reads(tmp_path):
    (kept,) = build(write_folder(tmp_path / "answers", [["The Answer is: 1", "two words"]]))
    text = answer_set_text("question 0", [answer.text for answer in sets_of([kept])[0].answers])
    assert "####" in text
    assert kept.num_tokens == len(text.split()) == 16


def test_a_set_at_each_limit_is_kept_and_one_beyond_is_dropped_with_its_reason(tmp_path):
    folder = write_folder(tmp_path / "answers", [["a b c", ""], ["", ""], ["a"], ["a", "b b b"]])
    results = build(folder, max_none=1, max_length=15)  # 12 words and the answers' own
    assert [getattr(result, "reason", "kept") for result in results] == [
        "kept",
        "none_answers",
        "too_few_answers",
        "too_long",
    ]
    assert [result.detail for result in results[1:]] == [
        "2 of 2 answers have no extractable result, 1 allowed",
        "1 answers, 2 needed",
        "16 tokens, 15 allowed",
    ]
    assert [result.problem_id for result in results[1:]] == [problem(number).id for number in (1, 2, 3)]


def test_a_set_without_any_result_never_passes_unless_all_may_be_missing(tmp_path):
    folder = write_folder(tmp_path / "answers", [[""] * 6])
    assert isinstance(build(folder, num_answers=(6, 6), max_none=5)[0], Dropped)
    assert isinstance(build(folder, num_answers=(6, 6), max_none=6)[0], Kept)


def test_difficulty_is_counted_over_the_answers_drawn(tmp_path):
    texts = [["4", "4", "5"], ["4", "5", "4"], ["5", "", "4"], ["5", "?", "4"], ["4", "?", "4"]]
    results = build(write_folder(tmp_path / "answers", texts))
    assert [(kept.num_correct, kept.difficulty) for kept in results] == [
        (2, "all_correct"), (1, "mixed"), (0, "all_wrong"), (0, "unjudged"), (1, "mixed"),
    ]  # fmt: skip


@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(0, 4), st.lists(st.integers(0, 6), min_size=1, max_size=3))
def test_ways_of_sampling_take_turns_and_numbers_stay_in_range(seed, fewest, more, counts):
    pool = candidates(*counts)
    drawn = draw_candidates(pool, (fewest, fewest + more), seed)
    assert drawn == draw_candidates(random.Random(seed).sample(pool, len(pool)), (fewest, fewest + more), seed)
    assert len(drawn) == len(pool) if len(pool) < fewest else fewest <= len(drawn) <= min(fewest + more, len(pool))
    taken = Counter(candidate.way for candidate in drawn)
    for way, count in enumerate(counts):
        # Each way gives its first answers, and falls behind another only when it has no more.
        assert sorted(c.sample_index for c in drawn if c.way == way) == list(range(taken[way]))
        assert taken[way] == count or taken[way] >= max(taken.values()) - 1


def test_the_order_of_turns_and_a_random_number_are_drawn_evenly():
    drawn = [draw_candidates(candidates(9, 9), (3, 5), seed) for seed in range(3000)]
    sizes = Counter(map(len, drawn))
    assert all(900 < sizes[size] < 1100 for size in (3, 4, 5))
    ahead = sum(sum(c.way for c in chosen) > len(chosen) / 2 for chosen in drawn if len(chosen) != 4)
    assert 900 < ahead < 1100  # of some 2000, the second way gave more in half


def test_an_answer_that_two_folders_have_is_one(tmp_path):
    one = write_folder(tmp_path / "one", [["4", "5"]])
    two = write_folder(tmp_path / "two", [["4", "5", "6"]])
    (kept,) = build(one, two, num_answers=(3, 3))
    assert sorted(answer.text for answer in sets_of([kept])[0].answers) == ["4", "5", "6"]
    (dropped,) = build(one, two, num_answers=(4, 4))
    assert dropped.detail == "3 answers, 4 needed"


def test_several_folders_make_one_set_a_problem_with_answers_of_all(tmp_path):
    one = write_folder(tmp_path / "one", [["4", "5"], ["4"]], sampling=COLD)
    two = write_folder(tmp_path / "two", [["6", "7"], ["8"]], problems=[problem(2), problem(1)], sampling=HOT)
    results = build(one, two)
    assert [kept.problem_id for kept in results] == [problem(0).id, problem(1).id, problem(2).id]
    drawn = [{answer.sampling for answer in found.answers} for found in sets_of(results)]
    assert drawn == [{COLD}, {COLD, HOT}, {HOT}]
    pool = pool_answers([open_answers(one), open_answers(two)])
    assert pool.num_shared == 1
    for kept, found in zip(results, sets_of(results), strict=True):
        assert [pool.samplings[way] for way in kept.ways] == [answer.sampling for answer in found.answers]


def test_temperatures_of_one_folder_take_turns(tmp_path):
    folder = write_folder(tmp_path / "answers", [["4"] * 4] * 50, sampling=COLD)
    write_folder(folder, [["5"] * 4] * 50, sampling=SAMPLING, problems=[problem(number) for number in range(50)])
    path = folder / "problems.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:50]))
    sets = sets_of(build(folder, num_answers=(3, 3)))
    counts = [Counter(answer.sampling.temperature for answer in found.answers) for found in sets]
    assert {frozenset(count.items()) for count in counts} == {
        frozenset({(0.1, 2), (0.7, 1)}),
        frozenset({(0.1, 1), (0.7, 2)}),
    }


def test_a_problem_whose_references_differ_is_dropped(tmp_path):
    one = write_folder(tmp_path / "one", [["4", "5"], ["4", "5"]])
    other = [problem(0), problem(1, reference="5")]
    two = write_folder(tmp_path / "two", [["4", "5"], ["4", "5"]], problems=other, sampling=HOT)
    kept, dropped = build(one, two)
    assert isinstance(kept, Kept)
    assert dropped.reason == "references_differ"
    assert dropped.detail == f"'4' in {one}/problems.jsonl, '5' in {two}/problems.jsonl"


def test_splits_never_meet(tmp_path):
    train = write_folder(tmp_path / "train", [["4", "5"]] * 2)
    test = [problem(7, split="test"), problem(8, split="test")]
    apart = write_folder(tmp_path / "apart", [["4", "5"]] * 2, problems=test)
    leak = write_folder(tmp_path / "leak", [["4", "5"]] * 2, problems=[problem(1, split="test"), *test[:1]])
    with pytest.raises(UserError, match=r"different splits: test \(.*apart\), train \(.*train\); .* --mix-splits"):
        build(train, apart)
    assert len(build(train, apart, mix_splits=True)) == 4
    for mix_splits in (False, True):
        with pytest.raises(UserError, match=f"question {problem(1).id} is of split train in .* and of split test in"):
            build(train, leak, mix_splits=mix_splits)


def test_a_folder_given_twice_is_a_mistake(tmp_path):
    folder = write_folder(tmp_path / "answers", [["4", "5"]])
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(UserError, match="link is given twice"):
        build(folder, tmp_path / "link")


def test_excluded_problems_are_dropped_whatever_names_them(tmp_path):
    folder = write_folder(tmp_path / "answers", [["4", "5"]] * 3)
    held_out = write_folder(tmp_path / "held_out", [["4", "5"]], problems=[problem(1)])
    (tmp_path / "sets").mkdir()
    store.write_records(tmp_path / "sets/sets.jsonl", sets_of(build(held_out)))
    for place in (held_out, held_out / "problems.jsonl", tmp_path / "sets", tmp_path / "sets/sets.jsonl"):
        excluded = read_problem_ids(place)
        assert excluded == {problem(1).id}
        results = build(folder, excluded=frozenset(excluded))
        assert [getattr(result, "reason", None) for result in results] == [None, "excluded", None]


@pytest.mark.parametrize("text", ["", '{"question": "What is it?"}\n', '{"problem": "What is it?", "id": "1"}\n'])
def test_what_names_no_problems_cannot_exclude_any(tmp_path, text):
    (tmp_path / "rows.jsonl").write_text(text)
    for place in (tmp_path / "rows.jsonl", tmp_path / "absent", tmp_path):
        with pytest.raises(UserError, match="holds (no problems|rows that are neither problems nor answer sets)"):
            read_problem_ids(place)


def test_more_answers_than_any_pooled_problem_has_is_a_mistake(tmp_path):
    one = open_answers(write_folder(tmp_path / "one", [["4", "5"], ["4", "5"]]))
    two = open_answers(write_folder(tmp_path / "two", [["4"]], problems=[problem(1)], sampling=HOT))
    pool = pool_answers([one, two])
    require_pool_samples(pool, (2, 3))
    with pytest.raises(UserError, match="num_answers=4 is above the 3 samples a problem has in .*one and .*two; gen"):
        require_pool_samples(pool, (2, 4))
    with pytest.raises(UserError, match="num_answers=3 2: the fewest come first"):
        require_pool_samples(pool, (3, 2))
    with pytest.raises(UserError, match="num_answers=0 should be at least 1"):
        require_pool_samples(pool, (0, 2))


def test_processes_share_the_work_and_change_nothing(tmp_path):
    texts = [["4", "5 5", "6"] if number % 7 else ["4"] for number in range(1100)]
    folder = write_folder(tmp_path / "answers", texts)
    alone = build(folder, num_answers=(2, 3))
    assert len(alone) == 1100
    assert build(folder, num_answers=(2, 3), num_workers=3) == alone


def test_a_mistake_in_a_worker_is_the_users_one_line(tmp_path):
    folder = write_folder(tmp_path / "answers", [["4", "5"]] * 1100)
    path = folder / "answers.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"text":"5"', b'"text":"\\x"', 1))
    with pytest.raises(UserError, match="answers.jsonl:2: not an Answer record"):
        build(folder, num_workers=2)


def test_what_ends_a_worker_ends_the_work():
    def start():
        return lambda number: 1 / (2 - number) if number < 5 else (_ for _ in ()).throw(SystemExit)

    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        list(map_in_processes(start, 6, 2))
    with pytest.raises(RuntimeError, match="a worker process died"):
        list(map_in_processes(lambda: lambda number: exec("raise SystemExit"), 6, 2))


def test_memory_does_not_hold_the_answers_texts(tmp_path):
    text = "word " * 1000

    def peak_bytes(num_problems: int) -> int:
        folder = write_folder(tmp_path / str(num_problems), [[text] * 2] * num_problems)
        tracemalloc.start()
        pool = pool_answers([open_answers(folder)])
        rules = SetRules(num_answers=(2, 2), max_length=10**6)
        for _ in build_answer_sets(pool, rules, lambda texts: [1] * len(texts)):
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    # Both hold one chunk; what grows is the index, a few hundred bytes a problem.
    assert peak_bytes(1500) - peak_bytes(150) < 1350 * 600
