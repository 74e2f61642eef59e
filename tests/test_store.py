"""Records survive a kill, name what is wrong with them, and stay with the run that wrote them."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tt_reasoning.errors import UserError
from tt_reasoning.store import append_records, load_record, open_run, read_records, write_records
from tt_reasoning.types import Answer, AnswerSet, Problem, Sampling, Verdict

PROBLEM = Problem(source="s", split="train", question="2 + 2?", reference="4")
ANSWER = Answer(
    id="a", problem_id=PROBLEM.id, sample_index=0, text="4", num_tokens=1, finish_reason="stop",
    sampling=Sampling(model="m", prompt="answer"),
)  # fmt: skip
SET = AnswerSet(id="s", problem=PROBLEM, answers=(ANSWER, ANSWER), order_seed=3)


def verdicts(count: int) -> list[Verdict]:
    return [Verdict(answer_id=str(i), extracted=None, correct=None, reason="timeout") for i in range(count)]


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    assert append_records(tmp_path / "f.jsonl", [SET]) == 1
    append_records(tmp_path / "f.jsonl", [dataclasses.replace(SET, id="t")])
    assert list(read_records(tmp_path / "f.jsonl", AnswerSet)) == [SET, dataclasses.replace(SET, id="t")]


@settings(max_examples=50, deadline=None)
@given(text=st.text())
def test_any_text_stays_on_one_line_and_comes_back(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("s") / "f.jsonl"
    answer = dataclasses.replace(ANSWER, text=text.encode("utf-8", "replace").decode())
    append_records(path, [answer, ANSWER])
    assert list(read_records(path, Answer)) == [answer, ANSWER]
    assert path.read_bytes().count(b"\n") == 2


@pytest.mark.parametrize("cut", [1, 2, 30, 60])
def test_a_torn_last_line_is_dropped_and_written_over(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "f.jsonl"
    append_records(path, verdicts(3))
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    assert list(read_records(path, Verdict)) == verdicts(2)
    append_records(path, verdicts(3)[2:])
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops}", "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"answer_id": "x"}', "missing 3 required"),
        ('{"answer_id": 1, "extracted": null, "correct": null, "reason": "match"}', "answer_id=1 should be of type"),
        ('{"answer_id": "x", "extracted": null, "correct": null, "reason": "perhaps"}', "reason='perhaps' is none of"),
        ('{"answer_id": "x", "extracted": null, "correct": 1, "reason": "match"}', "correct=1 should be of type bool"),
        ('{"answer_id": "x", "extracted": null, "correct": true, "reason": "match", "o": 1}', "unknown field 'o'"),
    ],
)
def test_a_malformed_line_is_an_error_that_names_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "f.jsonl"
    append_records(path, verdicts(1))
    with path.open("a") as file:
        file.write(line + "\n")
    append_records(path, verdicts(1))
    with pytest.raises(UserError) as error:
        list(read_records(path, Verdict))
    assert str(error.value).startswith(f"{path}:2: ") and message in str(error.value)


def test_a_whole_file_is_written_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    write_records(path, verdicts(2))

    def broken():
        yield verdicts(1)[0]
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        write_records(path, broken())
    assert list(read_records(path, Verdict)) == verdicts(2)


def test_ids_depend_on_what_decides_the_answer_and_on_nothing_else() -> None:
    sampling = ANSWER.sampling
    again = load_record(Sampling, json.loads(json.dumps(dataclasses.asdict(sampling))))
    assert sampling.answer_id("p", 1) == again.answer_id("p", 1)
    others = [dataclasses.replace(sampling, seed=1), dataclasses.replace(sampling, temperature=0.8)]
    assert len({s.answer_id("p", i) for s in [sampling, *others] for i in range(3)}) == 9
    assert sampling.request_seed("p", 0) != sampling.request_seed("p", 1)


def open_and_write(folder: Path, tool: str = "tool", **arguments: object) -> None:
    with open_run(folder, tool, arguments) as found:
        append_records(found / "f.jsonl", verdicts(1))


def test_the_same_arguments_resume_and_others_are_refused(tmp_path: Path) -> None:
    open_and_write(tmp_path / "run", seed=1)
    open_and_write(tmp_path / "run", seed=1)
    before = (tmp_path / "run" / "manifest.json").read_bytes()
    with pytest.raises(UserError, match="seed was 1, now 2"):
        open_and_write(tmp_path / "run", seed=2)
    with pytest.raises(UserError, match="holds a run of tool, not of other"):
        open_and_write(tmp_path / "run", tool="other", seed=1)
    assert (tmp_path / "run" / "manifest.json").read_bytes() == before
    assert len(list(read_records(tmp_path / "run" / "f.jsonl", Verdict))) == 2


def test_a_run_that_failed_before_its_first_record_can_be_started_otherwise(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="too long"), open_run(tmp_path / "run", "tool", {"limit": 1}) as folder:
        write_records(folder / "problems.jsonl", [PROBLEM])
        raise UserError("too long")
    with open_run(tmp_path / "run", "tool", {"limit": 2}) as folder:
        assert not (folder / "problems.jsonl").exists()


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="holds files but no manifest.json"):
        open_and_write(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        open_and_write(tmp_path / "file")


def test_a_second_process_is_kept_out(tmp_path: Path) -> None:
    program = (
        "from tt_reasoning.store import open_run\n"
        f"with open_run({str(tmp_path / 'run')!r}, 'tool', {{}}):\n    print('never')"
    )
    with open_run(tmp_path / "run", "tool", {}):
        result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode != 0 and "in use by another process" in result.stderr and "never" not in result.stdout


def test_the_manifest_says_what_made_the_run(tmp_path: Path) -> None:
    open_and_write(tmp_path / "run", seed=1)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["tool"] == "tool" and manifest["arguments"] == {"seed": 1}
    assert {"python", "torch", "tt-reasoning"} <= manifest["versions"].keys()
