"""ShareGPT rows: each question once, each text once a question, and what torchtune makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import write_byte_tokenizer
from torchtune.data import CROSS_ENTROPY_IGNORE_IDX
from torchtune.datasets import chat_dataset

from tt_reasoning.errors import UserError
from tt_reasoning.models import chat_tokenizer
from tt_reasoning.sharegpt import (
    Candidate,
    Turn,
    choose,
    list_lines,
    read_outside,
    select_domains,
    shuffle,
    to_record,
    write_once,
)

TEXT = "<|begin_of_thought|>\n2 or 4?\n<|end_of_thought|>\n\n<|begin_of_solution|>\n4\n<|end_of_solution|>"


def candidate(offset: int, question: str, text: str, length: int, fault: tuple | None = None) -> Candidate:
    return Candidate(0, offset, question, text, length, fault)


def test_the_shortest_or_the_first_of_a_question_is_taken_and_every_other_has_a_reason() -> None:
    wrong = candidate(1, "q", "w", 1, ("wrong", "mismatch"))
    given = [candidate(0, "q", "a", 9), wrong, candidate(2, "r", "b", 5), candidate(3, "q", "c", 4),
             candidate(4, "q", "d", 6)]  # fmt: skip
    taken, rejected = choose(given)
    assert taken == [given[2], given[3]]
    surplus = "surplus", "1 of the question is taken"
    assert rejected == [(given[0], *surplus), (wrong, "wrong", "mismatch"), (given[4], *surplus)]
    assert choose(given, choice="first")[0] == [given[0], given[2]]
    assert choose(given, keep=2)[0] == [given[2], given[3], given[4]]
    assert choose(given, keep=9)[0] == [given[0], given[2], given[3], given[4]]
    assert choose([]) == ([], [])


def test_a_text_is_taken_once_a_question_and_another_takes_its_place() -> None:
    given = [candidate(0, "q", "a", 3), candidate(1, "r", "a", 3), candidate(2, "r", "b", 8), candidate(3, "q", "a", 3)]
    given.append(candidate(4, "q", "c", 9))
    taken, rejected = choose(given, keep=2)
    assert taken == [given[0], given[1], given[2], given[4]]
    assert [(found.offset, reason) for found, reason, _ in rejected] == [(3, "repeated")]


def test_the_order_is_the_seeds() -> None:
    given = [candidate(n, str(n), str(n), n) for n in range(20)]
    assert shuffle(given, 1) == shuffle(given, 1) != shuffle(given, 2)
    assert sorted(shuffle(given, 1)) == given


def test_both_forms_say_who_speaks_and_where_the_system_prompt_is() -> None:
    turn = Turn("2 + 2?", TEXT, {})
    assert to_record(turn, "S", "user-assistant") == {
        "system": "S",
        "conversations": [{"from": "user", "value": "2 + 2?"}, {"from": "assistant", "value": TEXT}],
    }
    assert to_record(turn, "S") == {
        "system": "S",
        "conversations": [
            {"from": "system", "value": "S"}, {"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": TEXT},
        ],
    }  # fmt: skip


def read_as_llama_factory(row: dict, tags: dict[str, str]) -> tuple[str, list[tuple[str, str]]]:
    """A row by the mapping that LLaMA-Factory documents: columns messages and system, tags of the roles.

    A first turn of the system's role counts before the column; then user and assistant have to take turns.
    """
    turns, system = row["conversations"], row.get("system", "")
    if "system_tag" in tags and turns[0]["from"] == tags["system_tag"]:
        system, turns = turns[0]["value"], turns[1:]
    assert [turn["from"] for turn in turns] == [tags["user_tag"], tags["assistant_tag"]]
    return system, [(turn["from"], turn["value"]) for turn in turns]


def test_llama_factorys_mapping_reads_both_forms_alike() -> None:
    turn = Turn("2 + 2?", TEXT, {})
    ours = {"user_tag": "human", "assistant_tag": "gpt", "system_tag": "system"}  # its defaults
    theirs = {"user_tag": "user", "assistant_tag": "assistant"}  # of the reference's dataset_info.json
    for roles, tags in (("human-gpt", ours), ("user-assistant", theirs)):
        system, turns = read_as_llama_factory(to_record(turn, "S", roles), tags)
        assert (system, [value for _, value in turns]) == ("S", ["2 + 2?", TEXT])


def test_torchtune_reads_the_default_form_with_the_system_prompt_and_trains_on_the_answer_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    write_byte_tokenizer(tmp_path)
    tokenizer = chat_tokenizer(str(tmp_path))

    def load(roles: str) -> object:
        path = tmp_path / f"{roles}.json"
        rows = [to_record(Turn(f"{n} + 2?", TEXT, {}), "Think.", roles) for n in range(3)]
        write_once(path, lambda: list_lines(rows))
        return chat_dataset(
            tokenizer, source="json", data_files=str(path), conversation_column="conversations",
            conversation_style="sharegpt", cache_dir=str(tmp_path / "cache"),
        )  # fmt: skip

    dataset = load("human-gpt")
    assert len(dataset) == 3
    sample = dataset[1]
    asked = [("system", "Think."), ("user", "1 + 2?")]
    said = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in asked)
    whole = tokenizer.decode(sample["tokens"], skip_special_tokens=False)
    assert whole.startswith(f"{said}<|im_start|>assistant\n{TEXT}<|im_end|>")
    learned = [label for label in sample["labels"] if label != CROSS_ENTROPY_IGNORE_IDX]
    assert tokenizer.decode(learned, skip_special_tokens=False).strip() == f"{TEXT}<|im_end|>"
    with pytest.raises(KeyError, match="user"):  # why it is not the default
        load("user-assistant")[0]


def test_a_file_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    assert write_once(path, lambda: list_lines([{"a": "ü"}, {"b": 2}])) is True
    assert json.loads(path.read_text()) == [{"a": "ü"}, {"b": 2}]
    before = path.stat().st_mtime_ns
    assert write_once(path, lambda: list_lines([{"a": "ü"}, {"b": 2}])) is False
    for other in ([{"a": "ü"}], [{"a": "ü"}, {"b": 2}, {}], [{"a": "u"}, {"b": 2}], []):
        with pytest.raises(UserError, match="a.json is there already with other content"):
            write_once(path, lambda other=other: list_lines(other))
    assert path.stat().st_mtime_ns == before and [found.name for found in tmp_path.iterdir()] == ["a.json"]
    assert json.loads(b"".join(list_lines([]))) == []


ROWS = [{"question": f"q{n}", "combined_text": TEXT, "domain": domain, "more": 1}
        for n, domain in enumerate(["physics", "code", "Puzzle"])]  # fmt: skip


def test_outside_sets_are_lists_or_lines_and_leave_code_out(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(json.dumps(ROWS, indent=2))
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:2]) + "\n")
    sets = [read_outside(tmp_path / "list.json"), read_outside(tmp_path / "lines.jsonl")]
    kept, left_out = select_domains(sets, ())
    assert [[row["question"] for row in one.rows] for one in kept] == [["q0", "q2"], ["q0"]] and left_out == {"code": 2}
    kept, left_out = select_domains(sets, ("puzzle", "CODE"))
    assert [[row["question"] for row in one.rows] for one in kept] == [["q1", "q2"], ["q1"]]
    assert left_out == {"physics": 2}
    with pytest.raises(UserError, match="unknown domain of --merge-domains 'physik': did you mean 'physics'"):
        select_domains(sets, ("physik",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "s.json: not JSON: "),
        ("[3]", "row 1: not a JSON object"),
        (json.dumps([ROWS[0], {"question": "q"}]), "row 2: combined_text=None should be a text"),
        (json.dumps([ROWS[0] | {"domain": 3}]), "row 1: domain=3 should be a text"),
        (b"\xff", "s.json: not JSON: "),
        ("{}", "s.json: not a list of rows"),
    ],
)
def test_a_malformed_outside_set_is_named_with_its_row(tmp_path: Path, text: str | bytes, message: str) -> None:
    (tmp_path / "s.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        read_outside(tmp_path / "s.json")
