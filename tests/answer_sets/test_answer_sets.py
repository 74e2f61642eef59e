"""Folders of answers: read fast and whole, with every mistake named; and a problem's first answers as a set."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from set_folders import SAMPLING, answers_of, group, problem, verdict, write_folder

from tt_reasoning import store
from tt_reasoning.answer_sets import (
    AnswerReader,
    describe_records,
    first_answers,
    open_answers,
    read_groups,
    require_samples,
    require_verdicts,
)
from tt_reasoning.errors import UserError
from tt_reasoning.types import Divergence, Guidance, Sampling


def test_groups_come_in_the_order_of_problems_however_answers_were_written(tmp_path):
    folder = write_folder(tmp_path / "answers", [["a", "b"], ["c", "d"], []])
    lines = (folder / "answers.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "answers.jsonl").write_bytes(b"".join(lines[::-1]) + lines[0][:20])  # a torn line at the end
    groups = list(read_groups(open_answers(folder)))
    assert [of for of, _ in groups] == [problem(0), problem(1), problem(2)]
    assert [[answer.text for answer in answers] for _, answers in groups] == [["a", "b"], ["c", "d"], []]


def test_a_line_in_any_layout_is_read_as_the_same_record(tmp_path):
    """The quick way of the project's own lines and the careful one of all others must agree."""
    (answer,) = answers_of(problem(0), ['He said: "a\\b", {"text":"c","num_tokens":1} é\u2028\n'])
    own = store.dump_record(answer)
    rows = [own, own, json.dumps(json.loads(own)), json.dumps(dict(reversed(json.loads(own).items())))]
    reader = AnswerReader(tmp_path / "answers.jsonl")
    for number, row in enumerate(rows):
        line = row.encode() + b"\n"
        assert reader.read(number, line) == answer
        assert reader.locate(number, line) == (answer.id, answer.problem_id, 0, answer.sampling)


@given(st.text(max_size=30), st.integers(0, 10**6), st.sampled_from(["stop", "length"]))
def test_any_text_is_read_back(text, num_tokens, finish_reason):
    answer = replace(answers_of(problem(0), [text])[0], num_tokens=num_tokens, finish_reason=finish_reason)
    line = store.dump_record(answer).encode() + b"\n"
    reader = AnswerReader("answers.jsonl")
    assert reader.read(0, line) == reader.read(0, line) == answer


@pytest.mark.parametrize(
    "order", [lambda lines: lines[::-1], lambda lines: lines[3:] + lines[:3], lambda lines: lines[::2]]
)
def test_verdicts_join_on_ids_in_any_order(tmp_path, order):
    folder = write_folder(tmp_path / "answers", [["a", ""], ["c", "d"], ["", "f"]])
    path = folder / "verdicts.jsonl"
    path.write_bytes(b"".join(order(path.read_bytes().splitlines(keepends=True))))
    there = {row["answer_id"]: row["reason"] for row in store.read_rows(path)}
    answers = open_answers(folder)
    assert answers.num_ungraded == 6 - len(there)
    for of, found in read_groups(answers):
        for row, answer in zip(answers.rows[of.id], found, strict=True):
            if answer.id in there:
                assert answers.reason(row) == there[answer.id]


def test_an_answer_that_stands_there_twice_counts_once(tmp_path):
    folder = write_folder(tmp_path / "answers", [["a", "b"], ["c", "d"]])
    for name in ("answers.jsonl", "verdicts.jsonl"):  # as when two overlapping shards are put together
        path = folder / name
        path.write_bytes(path.read_bytes() + path.read_bytes().splitlines(keepends=True)[1])
    answers = open_answers(folder)
    assert (answers.num_repeated, answers.num_ungraded, answers.num_samples) == (1, 0, 2)
    assert [[answer.text for answer in group] for _, group in read_groups(answers)] == [["a", "b"], ["c", "d"]]


def test_one_temperature_can_be_chosen(tmp_path):
    folder = write_folder(tmp_path / "answers", [["a", "b"]])
    hot = Sampling(model="tiny", prompt="answer", temperature=1.5)
    more = answers_of(problem(0), ["c"], hot)
    store.append_records(folder / "answers.jsonl", more)
    store.append_records(folder / "verdicts.jsonl", [verdict(answer) for answer in more])
    assert open_answers(folder).temperatures == (0.7, 1.5)
    only = open_answers(folder, temperature=1.5)
    assert (only.temperatures, only.num_samples, only.num_ungraded) == ((1.5,), 1, 0)
    assert [[answer.text for answer in group] for _, group in read_groups(only)] == [["c"]]
    with pytest.raises(UserError, match=r"has no answers of temperature 0.3; there are: 0.7, 1.5"):
        open_answers(folder, temperature=0.3)


def test_a_text_that_is_no_json_is_named_when_it_is_read(tmp_path):
    folder = write_folder(tmp_path / "answers", [["a", "b"], ["c", "d"]])
    path = folder / "answers.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"text":"c"', b'"text":"\\x"'))
    with pytest.raises(UserError, match=r"answers.jsonl:3: not an Answer record: Invalid .escape"):
        list(read_groups(open_answers(folder)))


def test_a_field_too_many_is_named_wherever_it_stands(tmp_path):
    folder = write_folder(tmp_path / "answers", [["a", "b"]])
    path = folder / "answers.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"text":"b"', b'"text":"b","note":"c"'))
    with pytest.raises(UserError, match="answers.jsonl:2: not an Answer record: unknown field 'note'"):
        list(read_groups(open_answers(folder)))


def test_the_digest_of_a_file_is_that_of_its_whole_lines(tmp_path):
    lines = [b"x" * 700_000 + b"\n", b"y" * 700_000 + b"\n", b"\n"]
    (tmp_path / "whole").write_bytes(b"".join(lines))
    (tmp_path / "torn").write_bytes(b"".join(lines) + b'{"a"')
    digest = hashlib.sha256(b"".join(lines)).hexdigest()[:16]
    for name in ("whole", "torn"):
        assert describe_records(tmp_path / name) == f"3 records, sha256 {digest}"
    assert describe_records(tmp_path / "absent").startswith("0 records, ")


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
        (spoil_third_line, "verdicts.jsonl", "verdicts.jsonl:3: not a Verdict record: "),
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


def guided(eta: float, **changes: object) -> Sampling:
    return replace(SAMPLING, guidance=Guidance(value_model="q", eta=eta, **changes))


def test_the_divergence_of_every_answer_is_its_own_however_the_rest_repeats(tmp_path):
    reader = AnswerReader(tmp_path / "answers.jsonl")
    (answer,) = answers_of(problem(0), ['a ,"divergence":{"whole":9.0}'], guided(5))
    for number in range(3):
        own = replace(answer, divergence=Divergence(whole=float(number), sampled=number + 0.5))
        line = store.dump_record(own).encode() + b"\n"
        assert reader.read(0, line) == own
        assert reader.locate(0, line) == (answer.id, answer.problem_id, 0, answer.sampling)
    assert reader.read(0, store.dump_record(answer).encode() + b"\n").divergence is None
    assert len(reader._ends) == 1  # nothing but the first line was parsed whole
    torn = store.dump_record(answer).replace('"divergence":null', '"divergence":3').encode() + b"\n"
    with pytest.raises(UserError, match="not an Answer record"):
        reader.read(0, torn)


def test_etas_can_be_chosen_and_answers_told_apart_by_their_guidance(tmp_path):
    folder = write_folder(tmp_path / "answers", [["a", "b"], ["c"]])
    for sampling in (guided(5), guided(0), guided(5, rule="mean")):
        more = [*answers_of(problem(0), ["d"], sampling), *answers_of(problem(1), ["e", "f"], sampling)]
        store.append_records(folder / "answers.jsonl", more)
    answers = open_answers(folder)
    assert answers.guidances == (None, guided(0).guidance, guided(5).guidance, guided(5, rule="mean").guidance)
    parts = [list(read_groups(answers.guided_by(guidance))) for guidance in answers.guidances]
    assert [[len(group) for _, group in part] for part in parts] == [[2, 1], [1, 2], [1, 2], [1, 2]]
    assert {a.sampling for _, group in parts[2] for a in group} == {guided(5)}
    assert open_answers(folder, etas=[5]).guidances == answers.guidances[2:]
    assert open_answers(folder, etas=[0]).guidances == answers.guidances[:2]  # who is not guided has eta 0
    with pytest.raises(UserError, match=r"has no answers of eta 3; there are: 0, 5"):
        open_answers(folder, etas=[0, 3])
