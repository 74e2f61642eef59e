"""Answer sets of tiny folders: what is kept, what is dropped and why, in what order, in how much memory."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tt_reasoning import store
from tt_reasoning.answer_sets import (
    Dropped,
    Kept,
    build_answer_sets,
    first_answers,
    load_token_counter,
    open_answers,
    read_groups,
    require_samples,
    require_verdicts,
)
from tt_reasoning.errors import UserError
from tt_reasoning.prompts import answer_set_text
from tt_reasoning.types import Answer, Problem, Sampling, Verdict

SAMPLING = Sampling(model="tiny", prompt="answer")


def problem(number: int) -> Problem:
    return Problem(source="tiny", split="train", question=f"question {number}", reference="1")


def answers_of(of: Problem, texts: Sequence[str]) -> list[Answer]:
    return [
        Answer(
            id=SAMPLING.answer_id(of.id, index), problem_id=of.id, sample_index=index, text=text,
            num_tokens=len(text.split()), finish_reason="stop", sampling=SAMPLING,
        )
        for index, text in enumerate(texts)
    ]  # fmt: skip


def write_folder(folder: Path, texts: Sequence[Sequence[str]], *, graded: bool = True) -> Path:
    """An answers folder: one problem a row of texts; an empty text has no extractable result."""
    problems = [problem(number) for number in range(len(texts))]
    answers = [a for p, row in zip(problems, texts, strict=True) for a in answers_of(p, row)]
    with store.open_run(folder, "generate_answers", {"seed": 1}):
        store.append_records(folder / "problems.jsonl", problems)
        store.append_records(folder / "answers.jsonl", answers)
        if graded:
            store.append_records(folder / "verdicts.jsonl", [verdict(answer) for answer in answers])
    return folder


def verdict(answer: Answer) -> Verdict:
    reason = "match" if answer.text else "no_answer"
    return Verdict(answer_id=answer.id, extracted=answer.text or None, correct=bool(answer.text), reason=reason)


def count_words(texts: list[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def build(groups, **changes) -> list[Kept | Dropped]:
    options: dict = {
        "num_answers": 2, "order_seed": 0, "max_none": 1, "max_length": 1000,
        "is_extractable": lambda answer: bool(answer.text), "count_tokens": count_words,
    }  # fmt: skip
    return list(build_answer_sets(groups, **(options | changes)))


def group(number: int, texts: Sequence[str]) -> tuple[Problem, list[Answer]]:
    return problem(number), answers_of(problem(number), texts)


def test_the_first_answers_by_sample_index_make_the_set():
    (kept,) = build([group(0, ["a", "b", "c", "d"])], num_answers=3)
    assert {answer.sample_index for answer in kept.answer_set.answers} == {0, 1, 2}


def test_the_length_is_that_of_the_text_the_aggregator_reads():
    (kept,) = build([group(0, ["The Answer is: 1", "two words"])])
    text = answer_set_text("question 0", [answer.text for answer in kept.answer_set.answers])
    assert "####" in text
    assert kept.num_tokens == len(text.split()) == 16


def test_a_set_at_each_limit_is_kept_and_one_beyond_is_dropped_with_its_reason():
    groups = [group(0, ["a b c", ""]), group(1, ["", ""]), group(2, ["a"]), group(3, ["a", "b b b"])]
    results = build(groups, max_none=1, max_length=15)  # 12 words and the answers' own
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


def test_a_set_without_any_result_never_passes_unless_all_may_be_missing():
    assert isinstance(build([group(0, [""] * 6)], num_answers=6, max_none=5)[0], Dropped)
    assert isinstance(build([group(0, [""] * 6)], num_answers=6, max_none=6)[0], Kept)


def test_results_come_in_order_across_tokenizer_batches():
    groups = [group(number, ["a", "b"] if number % 3 else ["a"]) for number in range(300)]
    batches: list[int] = []

    def count(texts: list[str]) -> list[int]:
        batches.append(len(texts))
        return count_words(texts)

    results = build(groups, count_tokens=count)
    ids = [r.problem_id if isinstance(r, Dropped) else r.answer_set.problem.id for r in results]
    assert ids == [problem(number).id for number in range(300)]
    assert sum(batches) == 200 and len(batches) <= 3  # each text once, in few calls


@given(st.integers(0, 2**31), st.integers(0, 1000), st.integers(1, 8))
def test_the_recorded_seed_gives_the_order_again(run_seed, number, num_answers):
    of, answers = group(number, [str(index) for index in range(8)])
    found = first_answers(of, answers, num_answers, run_seed)
    again = answers[:num_answers]
    random.Random(found.order_seed).shuffle(again)
    assert found.answers == tuple(again)
    assert found == first_answers(of, answers, num_answers, run_seed)


def test_orders_differ_between_problems_and_between_seeds():
    def orders(seed: int) -> list[tuple[int, ...]]:
        sets = [first_answers(*group(number, "abcdef"), 6, seed) for number in range(20)]
        return [tuple(answer.sample_index for answer in found.answers) for found in sets]

    assert len(set(orders(0))) > 15
    assert orders(0) != orders(1)


def test_groups_come_in_the_order_of_problems_however_answers_were_written(tmp_path):
    folder = write_folder(tmp_path / "answers", [["a", "b"], ["c", "d"], []])
    lines = (folder / "answers.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "answers.jsonl").write_bytes(b"".join(lines[::-1]) + lines[0][:20])  # a torn line at the end
    groups = list(read_groups(open_answers(folder)))
    assert [of for of, _ in groups] == [problem(0), problem(1), problem(2)]
    assert [[answer.text for answer in answers] for _, answers in groups] == [["a", "b"], ["c", "d"], []]


def cut_last_line(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def spoil_third_line(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b'{"id": 7}\n', *lines[3:]]))


@pytest.mark.parametrize(
    ("damage", "file", "why"),
    [
        (Path.unlink, "manifest.json", "has no manifest.json"),
        (Path.unlink, "answers.jsonl", "has no answers yet; run: python tools/generate_answers.py"),
        (Path.unlink, "verdicts.jsonl", "has no verdicts.jsonl; run: python tools/check_answers.py"),
        (cut_last_line, "verdicts.jsonl", "1 answers have no verdict yet; run: python tools/check_answers.py"),
        (cut_last_line, "problems.jsonl", "which problems.jsonl lacks"),
        (spoil_third_line, "answers.jsonl", "answers.jsonl:3: not an Answer record: "),
    ],
)
def test_a_damaged_folder_is_one_line_that_says_how_to_mend_it(damage: Callable[[Path], None], file, why, tmp_path):
    folder = write_folder(tmp_path / "answers", [["a", "b"], ["c", "d"]])
    damage(folder / file)
    with pytest.raises(UserError) as error:
        answers = open_answers(folder)
        require_verdicts(answers)
        list(read_groups(answers))
    assert why in str(error.value)
    assert "\n" not in str(error.value)


def test_more_answers_than_any_problem_has_is_a_mistake(tmp_path):
    answers = open_answers(write_folder(tmp_path / "demo", [["a", "b"], ["c", "d", "e", "f"]]))
    require_samples(answers, 4)
    with pytest.raises(UserError, match="num_answers=5 is above the 4 samples a problem has in .*demo; gener"):
        require_samples(answers, 5)
    with pytest.raises(UserError, match="num_answers=0 should be at least 1"):
        require_samples(answers, 0)


def test_memory_does_not_hold_the_answers_texts(tmp_path):
    text = "word " * 1000

    def peak_bytes(num_problems: int) -> int:
        folder = write_folder(tmp_path / str(num_problems), [[text] * 2] * num_problems)
        tracemalloc.start()
        for _ in build_answer_sets(
            read_groups(open_answers(folder)), num_answers=2, order_seed=0, max_none=1, max_length=10**6,
            is_extractable=lambda answer: True, count_tokens=lambda texts: [1] * len(texts),
        ):  # fmt: skip
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    more_text = (1500 - 150) * 2 * len(text)
    assert peak_bytes(1500) - peak_bytes(150) < 0.25 * more_text  # both hold one batch and an index


def write_word_tokenizer(folder: Path) -> Path:
    """A tokenizer that counts words, with truncation, padding and a special token that must not count."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=5)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_tokens_are_counted_without_truncation_padding_or_special_tokens(tmp_path):
    count = load_token_counter(write_word_tokenizer(tmp_path / "model"))
    assert count(["one", "one two three four five six seven", ""]) == [1, 7, 0]


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no tokenizer at .*tokenizer.json; name a model's folder"):
        load_token_counter(tmp_path)
