"""Folders and files of scores, made by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tt_reasoning import store
from tt_reasoning.errors import UserError
from tt_reasoning.scores import AGGREGATES, SCORES, SKIPPED, aggregate, read_scores
from tt_reasoning.steps import STEPS
from tt_reasoning.types import Answer, Sampling, Score, Step


def steps_of(answer_id: str, scores: Sequence[float | None]) -> list[Step]:
    """Steps of 4 characters with a blank between them."""
    return [Step(answer_id=answer_id, index=i, start=5 * i, end=5 * i + 4, score=s) for i, s in enumerate(scores)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Scores of answers a and b under the product, and c without one."""
    with store.open_run(tmp_path / "prm", "rank_answers", {"judge": "tiny", "aggregate": "prod"}) as path:
        store.write_records(path / STEPS, [*steps_of("a", [0.5, 1.0, 0.8]), *steps_of("b", [0.25])])
        store.write_records(path / SKIPPED, [{"answer_id": "c", "reason": "too_long"}])
        store.write_records(path / SCORES, [Score(answer_id="a", score=0.123)])  # never read: the steps are the truth
    return path


def add(path: Path, *rows: object) -> None:
    store.append_records(path, rows)


def test_aggregates_are_worked_by_hand() -> None:
    assert {how: aggregate([0.5, 1.0, 0.8], how) for how in AGGREGATES} == pytest.approx(
        {"min": 0.5, "prod": 0.4, "last": 0.8, "mean": 2.3 / 3}
    )
    assert {aggregate([0.3], how) for how in AGGREGATES} == {0.3}  # of a judge of whole answers all are the same
    with pytest.raises(ValueError, match="without steps has no score"):
        aggregate([], "prod")
    with pytest.raises(ValueError, match="aggregate='median' is none of min, prod, last, mean"):
        aggregate([0.3], "median")


def test_a_folder_has_its_own_aggregate_and_any_other_from_the_same_steps(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    own = read_scores(folder)
    assert (own.name, own.aggregate, own.skipped) == ("prm", "prod", {"c": "too_long"})
    assert own.by_answer == {"a": pytest.approx(0.4), "b": 0.25}
    assert read_scores(folder, "last").by_answer == {"a": 0.8, "b": 0.25}
    assert read_scores(f"{folder}/", "min").by_answer == {"a": 0.5, "b": 0.25}
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_an_answer_is_scored_or_skipped_or_missing(folder: Path) -> None:
    scores = read_scores(folder)
    assert [scores.of(name) for name in "bc"] == [0.25, "too_long"]
    scores.require(["a", "b", "c"])
    with pytest.raises(UserError, match=r"prm: 2 of the 3 answers have no score, such as d; tools/rank_answers.py"):
        scores.require(["a", "d", "e"])


def test_steps_that_a_kill_cut_off_are_noticed_by_their_answer(folder: Path) -> None:
    def answer(text: str) -> Answer:
        sampling = Sampling(model="tiny", prompt="answer")
        return Answer(
            id="a", problem_id="p", sample_index=0, text=text, num_tokens=3, finish_reason="stop", sampling=sampling
        )

    scores = read_scores(folder)
    scores.check_ends([answer("3+4= 7*2= 14.0"), answer("3+4= 7*2= 14.0 \n")])
    for text in ("3+4= 7*2= 14.0 #### 14", "3+4= 7*2= 14"):
        with pytest.raises(UserError, match=f"steps of answer a end at 14 of its {len(text)} characters"):
            scores.check_ends([answer(text)])


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (steps_of("d", [0.5, None]), "answer d: step 1 has no score"),
        (steps_of("d", [0.5, 1.5]), "answer d: step 1 has score 1.5, outside 0 to 1"),
        (steps_of("d", [0.5, -0.1]), "answer d: step 1 has score -0.1, outside 0 to 1"),
        (steps_of("d", [float("nan")]), "answer d: step 0 has score nan, outside 0 to 1"),
        (steps_of("d", [float("inf")]), "answer d: step 0 has score inf, outside 0 to 1"),
        (steps_of("d", [0.5, 0.5])[::-1], "answer d: step 0 is numbered 1"),
        (steps_of("d", [0.5, 0.5])[1:], "answer d: step 0 is numbered 1"),
        (steps_of("d", [0.5])[:1] * 2, "answer d: step 1 is numbered 0"),
        ([Step(answer_id="d", index=0, start=4, end=4, score=0.5)], "answer d: step 0 lies at 4 to 4, not behind 0"),
        (steps_of("a", [0.5]), "the steps of answer a stand in two places"),
        ([{"answer_id": "d", "index": 0, "start": 0}], "steps.jsonl:5: not a Step record"),
        ([{"answer_id": "d", "index": 0, "start": 0, "end": 4, "score": "0.5"}], "steps.jsonl:5: not a Step record"),
    ],
)
def test_malformed_steps_name_file_and_answer(folder: Path, rows: Sequence[object], words: str) -> None:
    add(folder / STEPS, *rows)
    with pytest.raises(UserError, match=words) as caught:
        read_scores(folder)
    assert str(folder / STEPS) in str(caught.value)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"answer_id": "a", "reason": "no_steps"}, "answer a is skipped here and scored in steps.jsonl"),
        ({"answer_id": "d", "reason": "bored"}, "skipped.jsonl:2: not a Skipped record: reason='bored' is none of"),
    ],
)
def test_malformed_skips_name_file_and_answer(folder: Path, row: object, words: str) -> None:
    add(folder / SKIPPED, row)
    with pytest.raises(UserError, match=words):
        read_scores(folder)


def test_what_is_no_folder_of_scores_is_refused(folder: Path) -> None:
    def set_arguments(arguments: object) -> None:
        (folder / "manifest.json").write_text(json.dumps({"arguments": arguments}))

    for arguments in ({}, None, []):
        set_arguments(arguments)
        with pytest.raises(UserError, match="names no aggregate.* Name an --aggregate"):
            read_scores(folder)
        assert read_scores(folder, "min").by_answer["a"] == 0.5
    set_arguments({"aggregate": "prodd"})
    with pytest.raises(UserError, match="unknown aggregate 'prodd': did you mean 'prod'?"):
        read_scores(folder)
    for name in (STEPS, SKIPPED):
        (folder / name).unlink()
    with pytest.raises(UserError, match="holds no scores of steps yet"):
        read_scores(folder, "min")
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match="has no manifest.json"):
        read_scores(folder)
    with pytest.raises(UserError, match="no such file or folder of scores: gone"):
        read_scores("gone")


def test_a_file_of_scores_is_a_judge_too(tmp_path: Path) -> None:
    path = tmp_path / "orm.jsonl"
    add(path, Score(answer_id="a", score=2.5), {"answer_id": "b", "score": 0})
    scores = read_scores(path)
    assert (scores.name, scores.aggregate, scores.by_answer) == ("orm", None, {"a": 2.5, "b": 0.0})
    with pytest.raises(UserError, match="1 of the 2 answers have no score, such as c$"):
        scores.require(["a", "c"])
    with pytest.raises(UserError, match="orm.jsonl holds one score an answer: nothing to aggregate by min"):
        read_scores(path, "min")
    for score in (-0.5, float("nan"), float("inf")):
        add(tmp_path / f"{score}.jsonl", {"answer_id": "c", "score": score})
        with pytest.raises(UserError, match=rf"answer c has the score {score}; a score is finite and at least 0"):
            read_scores(tmp_path / f"{score}.jsonl")
    add(path, Score(answer_id="a", score=2.5))
    with pytest.raises(UserError, match="orm.jsonl: answer a has two scores"):
        read_scores(path)
