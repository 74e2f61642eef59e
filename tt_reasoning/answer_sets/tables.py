"""Answer sets as tables: Parquet, and the folders that ``datasets`` saves. Written and read in flat memory.

The columns ``question`` (all that the aggregator reads) and ``answer`` (the reference) are those of the published sets
of SSA, ``user074/concat_cleaned_gsm8k_math_5``, so whatever trains on those trains on these; the others say what a row
is.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tt_reasoning.errors import UserError
from tt_reasoning.prompts import answer_set_text
from tt_reasoning.types import AnswerSet

T = TypeVar("T")
PARQUET = "data"  # where datasets.load_dataset looks first
DATASET = "dataset"
_ROWS_AT_ONCE = 1000


def set_row(answer_set: AnswerSet) -> dict[str, Any]:
    """A set as a row of a table.

    >>> from tt_reasoning.types import Answer, Problem, Sampling
    >>> problem = Problem(source="demo", split="train", question="What is 2 + 2?", reference="4")
    >>> answer = Answer(id="a1", problem_id=problem.id, sample_index=0, text="5", num_tokens=1, finish_reason="stop",
    ...                 sampling=Sampling(model="m", prompt="answer"))
    >>> for column, value in set_row(AnswerSet(id="s1", problem=problem, answers=(answer,), order_seed=7)).items():
    ...     print(f"{column}: {value!r}")
    question: 'Question: What is 2 + 2?\\n\\nBelow are the proposed answers:\\n\\nAnswer 1:\\n5'
    answer: '4'
    id: 's1'
    problem_id: '38d46ad3618826cf'
    source: 'demo'
    split: 'train'
    kind: 'math'
    num_answers: 1
    answer_ids: ['a1']
    order_seed: 7
    """
    problem = answer_set.problem
    return {
        "question": answer_set_text(problem.question, [answer.text for answer in answer_set.answers]),
        "answer": problem.reference,
        "id": answer_set.id,
        "problem_id": problem.id,
        "source": problem.source,
        "split": problem.split,
        "kind": problem.kind,
        "num_answers": len(answer_set.answers),
        "answer_ids": [answer.id for answer in answer_set.answers],
        "order_seed": answer_set.order_seed,
    }


def write_parquet(sets: Iterable[AnswerSet], folder: str | Path) -> Path:
    """Write ``folder/data``, a Parquet file a split: ``datasets.load_dataset(folder)`` reads it.

    All of it is written or none. What is there already stays. Returns the path.
    """
    return _write_whole(Path(folder) / PARQUET, lambda place: _write_splits(sets, place))


def write_dataset(sets: Iterable[AnswerSet], folder: str | Path) -> Path:
    """Write ``folder/dataset``, which ``datasets.load_from_disk`` reads: a data set, or one for each split.

    All of it is written or none. What is there already stays. Returns the path.
    """
    return _write_whole(Path(folder) / DATASET, lambda place: _save_dataset(sets, place))


def _write_whole(path: Path, write: Callable[[Path], None]) -> Path:
    """Have a folder written beside its place, then moved there."""
    if path.exists():
        return path
    place = _empty_folder(path.with_name(f".{path.name}.tmp"))
    write(place)
    for file in place.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened)
    place.rename(path)
    return path


def _empty_folder(path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    return path


def _write_splits(sets: Iterable[AnswerSet], folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([
        ("question", pa.string()), ("answer", pa.string()), ("id", pa.string()), ("problem_id", pa.string()),
        ("source", pa.string()), ("split", pa.string()), ("kind", pa.string()), ("num_answers", pa.int64()),
        ("answer_ids", pa.list_(pa.string())), ("order_seed", pa.int64()),
    ])  # fmt: skip
    writers: dict[str, pq.ParquetWriter] = {}
    sets = iter(sets)
    while rows := [set_row(one) for one in itertools.islice(sets, _ROWS_AT_ONCE)]:
        for split in dict.fromkeys(row["split"] for row in rows):
            name = re.sub(r"\W", "_", split)
            if name not in writers:
                path = folder / f"{name}-00000-of-00001.parquet"
                writers[name] = pq.ParquetWriter(path, schema, compression="zstd")
            writers[name].write_table(pa.Table.from_pylist([row for row in rows if row["split"] == split], schema))
    for writer in writers.values():
        writer.close()


def _save_dataset(sets: Iterable[AnswerSet], folder: Path) -> None:
    import datasets

    parquet = _empty_folder(folder.with_name(f".{PARQUET}.tmp"))
    datasets.disable_progress_bars()
    try:
        _write_splits(sets, parquet)
        files = {path.name.partition("-")[0]: str(path) for path in sorted(parquet.glob("*.parquet"))}
        loaded = datasets.DatasetDict.from_parquet(files, cache_dir=str(parquet / "cache"))
        saved = loaded if len(loaded) > 1 else next(iter(loaded.values()))
        saved.save_to_disk(str(folder))
    finally:
        datasets.enable_progress_bars()
        shutil.rmtree(parquet)


def is_table(source: str | Path) -> bool:
    """Whether ``read_rows`` finds a table there: a Parquet file, a folder with some, or one that ``datasets`` saved."""
    source = Path(source)
    return bool(_parquet_files(source)) or _saved_dataset(source) is not None


def read_rows(source: str | Path, split: str) -> Iterator[dict[str, Any]]:
    """The rows of a table, a few at a time.

    Args:
        source: a Parquet file; a folder with Parquet files in it or in ``data``, whose names begin with their split; a
            folder of ``datasets.save_to_disk``, or with such a one in ``dataset``.
        split: which, where there are several.

    Raises:
        UserError: there is no such split, or a file is damaged.
    """
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = Path(source)
    try:
        if files := _parquet_files(source):
            by_split = {name: list(same) for name, same in itertools.groupby(files, _split_of)}
            for file in _choose_split(by_split, split, source):
                for batch in pq.ParquetFile(file).iter_batches(_ROWS_AT_ONCE):
                    yield from batch.to_pylist()
            return
        loaded = datasets.load_from_disk(str(_saved_dataset(source)))
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{source} cannot be read: {reason}") from None
    yield from _choose_split(loaded, split, source) if isinstance(loaded, datasets.DatasetDict) else loaded


def _choose_split(by_split: Mapping[str, T], split: str, source: Path) -> T:
    if split not in by_split and len(by_split) > 1:
        raise UserError(f"{source} has no split {split}, only {', '.join(sorted(by_split))}")
    return by_split[split] if split in by_split else next(iter(by_split.values()))


def _split_of(file: Path) -> str:
    return file.stem.partition("-")[0]


def _parquet_files(source: Path) -> list[Path]:
    if source.is_file():
        return [source] if source.suffix == ".parquet" else []
    return sorted((source / PARQUET).glob("*.parquet")) or sorted(source.glob("*.parquet"))


def _saved_dataset(source: Path) -> Path | None:
    for folder in (source, source / DATASET):
        if (folder / "dataset_info.json").exists() or (folder / "dataset_dict.json").exists():
            return folder
    return None
