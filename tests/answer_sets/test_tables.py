"""Answer sets as tables: what is written is what ``datasets`` reads, and what training reads back."""

from __future__ import annotations

from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
from set_folders import answers_of, problem

from tt_reasoning.answer_sets import tables
from tt_reasoning.answer_sets.tables import is_table, read_rows, set_row, write_dataset, write_parquet
from tt_reasoning.errors import UserError
from tt_reasoning.prompts import answer_set_text
from tt_reasoning.types import AnswerSet


def make_sets(count: int, split: str = "train", first: int = 0) -> list[AnswerSet]:
    sets = []
    for number in range(first, first + count):
        of = problem(number, split=split)
        answers = tuple(answers_of(of, ["The Answer is: 4", f'"{number}"\n']))
        sets.append(AnswerSet(id=f"set{number}", problem=of, answers=answers, order_seed=number))
    return sets


def test_a_published_set_loads_with_the_columns_of_ssa(tmp_path):
    sets = make_sets(3)
    assert write_parquet(sets, tmp_path / "") == tmp_path / "data"
    (tmp_path / "sets.jsonl").write_text("{}\n")  # beside the table, and no part of it
    (tmp_path / "stats.json").write_text("{}")
    loaded = datasets.load_dataset(str(tmp_path), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train"]
    assert list(loaded["train"]) == [set_row(one) for one in sets]
    first = loaded["train"][0]
    assert first["question"] == answer_set_text("question 0", ["The Answer is: 4", '"0"\n'])
    assert (first["answer"], first["source"], first["split"], first["num_answers"]) == ("4", "tiny", "train", 2)


def test_a_saved_data_set_loads_from_disk_and_leaves_nothing_else(tmp_path):
    sets = make_sets(3)
    assert write_dataset(sets, tmp_path) == tmp_path / "dataset"
    assert list(datasets.load_from_disk(str(tmp_path / "dataset"))) == [set_row(one) for one in sets]
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]


@pytest.mark.parametrize("write", [write_parquet, write_dataset])
def test_each_split_is_a_table_of_its_own(tmp_path, write):
    train, test = make_sets(2), make_sets(3, "test", 10)
    written = write([train[0], *test, train[1]], tmp_path)
    for source in (tmp_path, written):
        assert is_table(source)
        assert list(read_rows(source, "train")) == [set_row(one) for one in train]
        assert list(read_rows(source, "test")) == [set_row(one) for one in test]
        with pytest.raises(UserError, match="has no split dev, only test, train"):
            list(read_rows(source, "dev"))


def test_rows_are_written_and_read_a_few_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_ROWS_AT_ONCE", 10)
    sets = make_sets(25)
    write_parquet(sets, tmp_path)
    file = tmp_path / "data/train-00000-of-00001.parquet"
    assert pq.ParquetFile(file).num_row_groups == 3
    assert list(read_rows(file, "any")) == [set_row(one) for one in sets]


def test_a_write_that_fails_leaves_no_table_and_can_be_repeated(tmp_path):
    def break_off():
        yield from make_sets(2)
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            write_parquet(break_off(), tmp_path)
        assert not is_table(tmp_path)
    write_parquet(make_sets(2), tmp_path)
    assert len(list(read_rows(tmp_path, "train"))) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_damaged_table_is_named(tmp_path):
    (tmp_path / "train-0.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match="cannot be read: "):
        list(read_rows(tmp_path, "train"))
    assert not is_table(Path("/"))
