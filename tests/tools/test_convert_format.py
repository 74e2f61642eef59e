"""The tool as it is run: conversions checked and counted, a killed run that goes on, and every mistake in one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import tyro
from engines.misbehaving_server import MisbehavingServer, Reply, Seen, answer, error
from loaded_tools import load_tool

from tt_reasoning.conversion import find_fault
from tt_reasoning.errors import UserError
from tt_reasoning.store import open_run, read_manifest, read_records, read_rows, write_json, write_records
from tt_reasoning.types import Answer, Problem, Sampling, Verdict

ROOT = Path(__file__).parents[2]
SECRETS = ["sk-first-3f9a1c", "sk-second-77b2d0"]


def original(number: int) -> str:
    return f"We add {number} and {number}, which is {2 * number} in all.\nThe Answer is: {2 * number}"


def convert(text: str, solution: str = "The Answer is: 4") -> str:
    return f"<|begin_of_thought|>\n{text}\n<|end_of_thought|>\n\n<|begin_of_solution|>\n{solution}\n<|end_of_solution|>"


def problem(number: int) -> Problem:
    return Problem(source="s", split="train", question=f"What is {number} + {number}?", reference=str(2 * number))


def write_answers(folder: Path, numbers: range, prompt: str = "answer") -> list[Answer]:
    """One answer a number n to what n + n is."""
    sampling = Sampling(model="m", prompt=prompt, temperature=0.5)
    with open_run(folder, "generate_answers", {"seed": 1}):
        answers = [
            Answer(id=sampling.answer_id(problem(n).id, 2), problem_id=problem(n).id, sample_index=2, text=original(n),
                   num_tokens=7, finish_reason="stop", sampling=sampling)
            for n in numbers
        ]  # fmt: skip
        write_records(folder / "problems.jsonl", map(problem, numbers))
        write_records(folder / "answers.jsonl", answers)
    return answers


def command(**options: object) -> list[str]:
    given = {"answers": "answers", "model": "tiny", "timeout_s": 30, "max_retries": 0, "out": "converted"} | options
    told = {name.replace("_", "-"): value for name, value in given.items() if value is not None}
    words = [w for name, value in told.items() for w in ([f"--{name}"] if value is True else [f"--{name}", str(value)])]
    return [sys.executable, str(ROOT / "tools/convert_format.py"), *words]


def run(home: Path, *, tool: list[str] | None = None, **options: object) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    environment |= {"HF_HUB_OFFLINE": "1"}
    words = tool or command(**options)
    return subprocess.run(words, cwd=home, env=environment, capture_output=True, text=True, timeout=120, check=False)


def scripted(home: Path, texts: dict[str, list[str]], **options: object) -> dict[str, object]:
    """Options for the scripted engine with these texts."""
    (home / "script.json").write_text(json.dumps({"answers": texts}))
    return {"model": "script.json", "engine": "scripted", "timeout_s": None, "max_retries": None} | options


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "."}


def mistake(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


def refusal(options: list[str]) -> str:
    """What the tool says against options: in this process, which is faster than one of its own."""
    tool = load_tool("convert_format")
    with pytest.raises(UserError) as error:
        tool.main(tyro.cli(tool.Arguments, args=options, use_underscores=False))
    assert "\n" not in str(error.value)
    return str(error.value)


def number_of(seen: Seen) -> int:
    return int(seen.prompt.split()[2])


def test_a_run_converts_checks_counts_and_its_folder_is_one_of_answers(tmp_path: Path) -> None:
    """1 is right at once; 2 lacks a tag first; 3 is always cut; 4 invents, then summarises; 5 meets a rate limit."""
    answers = write_answers(tmp_path / "answers", range(1, 6))
    before = contents(tmp_path / "answers")
    (tmp_path / "keys.txt").write_text("\n".join(SECRETS))
    tries: Counter[int] = Counter()

    def script(seen: Seen) -> Reply:
        number = number_of(seen)
        if number == 5 and not seen.earlier:
            return error(429, Retry_After="0")
        tries[number] += 1
        text, solution = original(number), f"The Answer is: {2 * number}"
        if number == 2 and tries[number] == 1:
            return answer(seen, f"Here it is: {convert(text, solution)}")
        if number == 3:
            return answer(seen, convert(text, solution), finish_reason="length")
        if number == 4:
            text = f"{text} {'And so we see that. ' * 9}" if tries[number] == 1 else "We add."
        return answer(seen, convert(text, solution))

    with MisbehavingServer(script).running() as server:
        options = {"base_url": server.base_url, "keys": "keys.txt", "max_retries": 2, "concurrency": 1}
        done = run(tmp_path, **options)
        assert done.returncode == 0, done.stderr
        assert {seen.key for seen in server.seen} == set(SECRETS)
        first = server.seen[0]
    assert tries == {1: 1, 2: 2, 3: 2, 4: 2, 5: 1}
    assert [message["role"] for message in first.body["messages"]] == ["system", "user"]
    assert first.prompt == original(1) and "<|begin_of_solution|>" in first.body["messages"][0]["content"]
    assert done.stdout.splitlines() == [
        "converted/answers.jsonl: 3 of 5 answers converted, 60.0% (8 tries, 8 of them now)",
        "rejected 5 tries: truncated 2, tags 1, fidelity 2 (see converted/rejected.jsonl)",
    ]
    for text in [done.stdout, done.stderr, *(data.decode() for data in contents(tmp_path / "converted").values())]:
        assert not any(secret in text for secret in SECRETS)
    assert contents(tmp_path / "answers") == before

    out = tmp_path / "converted"
    found = list(read_records(out / "answers.jsonl", Answer))
    for new, old, number in zip(found, [answers[0], answers[1], answers[4]], (1, 2, 5), strict=True):
        assert (new.id, new.problem_id, new.sample_index, new.sampling) == (
            old.id, old.problem_id, old.sample_index, old.sampling,
        )  # fmt: skip
        assert new.text == convert(original(number), f"The Answer is: {2 * number}") and new.num_tokens == 3
    rejected = list(read_rows(out / "rejected.jsonl"))
    assert [(row["answer_id"], row["try_number"], row["reason"]) for row in rejected] == [
        (answers[1].id, 1, "tags"), (answers[2].id, 1, "truncated"), (answers[3].id, 1, "fidelity"),
        (answers[2].id, 2, "truncated"), (answers[3].id, 2, "fidelity"),
    ]  # fmt: skip
    assert rejected[0]["detail"] == "text outside of the sections: Here it is:"
    assert rejected[4]["text"] == convert("We add.", "The Answer is: 8")
    stats = json.loads((out / "stats.json").read_text())
    assert stats["rejected"] == {"truncated": 2, "tags": 1, "fidelity": 2, "surplus": 0} and stats["missing"] == 0
    assert not {"keys", "base_url"} & read_manifest(out)["arguments"].keys()

    # The next stage takes it as it is.
    checked = run(tmp_path, tool=[sys.executable, str(ROOT / "tools/check_answers.py"), "--answers", "converted"])
    assert checked.returncode == 0 and checked.stdout.startswith("graded 3 answers: 3 match"), checked.stderr

    # Nothing is asked again, and no server is needed. Its verdicts stay those of its texts.
    before = contents(out)
    done = run(tmp_path, base_url="http://127.0.0.1:9/v1", keys="keys.txt")
    assert done.returncode == 0 and "(8 tries, 0 of them now)" in done.stdout, done.stderr
    assert contents(out) == before
    line = mistake(run(tmp_path, base_url="http://127.0.0.1:9/v1", keys="keys.txt", min_overlap=0.99, num_samples=1))
    assert line.startswith("error: converted has verdicts, and 1 of its 3 conversions would change or go; ")
    assert "seed was 0, now 1" in mistake(run(tmp_path, base_url=server.base_url, keys="keys.txt", seed=1))
    assert contents(out) == before


def test_only_correct_answers_and_a_limit_are_asked_for_and_more_can_follow(tmp_path: Path) -> None:
    answers = write_answers(tmp_path / "answers", range(1, 5))
    right = (True, False, True, True)
    write_records(
        tmp_path / "answers" / "verdicts.jsonl",
        (Verdict(answer_id=a.id, extracted=None, correct=c, reason="match" if c else "mismatch")
         for a, c in zip(answers, right, strict=True)),
    )  # fmt: skip
    script = {original(n): [convert(original(n))] for n in (1, 3, 4)}  # no answer to 2: it must not be asked
    options = scripted(tmp_path, script, only_correct=True)
    done = run(tmp_path, **options, limit=2)
    assert done.returncode == 0, done.stderr
    assert [a.id for a in read_records(tmp_path / "converted" / "answers.jsonl", Answer)] == [
        answers[0].id, answers[2].id
    ]  # fmt: skip
    done = run(tmp_path, **options)
    assert done.stdout.splitlines() == [
        "converted/answers.jsonl: 3 of 3 answers converted, 100.0% (3 tries, 1 of them now)",
        "rejected 0 tries: none (see converted/rejected.jsonl)",
        "not asked: not_correct 1",
    ]


def test_the_prefill_of_a_prompt_is_converted_with_the_answer_and_not_added_again(tmp_path: Path) -> None:
    write_answers(tmp_path / "answers", range(1, 2), prompt="ssa")
    whole = "<think>" + original(1)
    done = run(tmp_path, **scripted(tmp_path, {whole: [convert(original(1), "<answer>2</answer>")]}))
    assert done.returncode == 0, done.stderr
    run(tmp_path, tool=[sys.executable, str(ROOT / "tools/check_answers.py"), "--answers", "converted"])
    (verdict,) = read_records(tmp_path / "converted" / "verdicts.jsonl", Verdict)
    assert verdict.reason == "match"
    # Its texts have the form already: converted again, they stay as they are, and nothing is asked.
    done = run(tmp_path, **scripted(tmp_path, {}, answers="converted", out="twice"))
    assert done.stdout.splitlines()[-1] == "in the form already, taken as they are: 1", done.stderr
    (again,) = read_records(tmp_path / "twice" / "answers.jsonl", Answer)
    assert again in list(read_records(tmp_path / "converted" / "answers.jsonl", Answer))
    assert find_fault(again.text) is None


def test_a_run_killed_at_three_points_ends_with_the_same_files(tmp_path: Path) -> None:
    """12 answers in chunks of 2; of every third the first try has no tags. A try takes 30 ms."""
    write_answers(tmp_path / "answers", range(1, 13))
    texts = {original(n): [convert(original(n))] if n % 3 else ["no tags", convert(original(n))] for n in range(1, 13)}
    options = scripted(tmp_path, texts, chunk_size=2, num_samples=6)
    script = json.loads((tmp_path / "script.json").read_text())
    (tmp_path / "script.json").write_text(json.dumps(script | {"delay_s": 0.03}))
    done = run(tmp_path, **options, out="whole")
    assert done.returncode == 0 and "12 of 12 answers converted" in done.stdout, done.stdout + done.stderr
    whole = contents(tmp_path / "whole")
    assert whole["tries.jsonl"].count(b"\n") > 12 and whole["rejected.jsonl"]
    for number_of_tries in (0, 5, 13):  # the folder alone; in the first try; in a later one
        out = tmp_path / f"killed{number_of_tries}"
        process = subprocess.Popen(command(**options, out=out.name), cwd=tmp_path, stderr=subprocess.DEVNULL)
        wait_for_lines(process, out, number_of_tries)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (out / "answers.jsonl").exists()
        done = run(tmp_path, **options, out=out.name)
        assert done.returncode == 0, done.stderr
        assert contents(out) == whole


def wait_for_lines(process: subprocess.Popen[str], folder: Path, number: int) -> None:
    """Until the tries have so many lines; for 0, until the folder is somebody's."""
    path = folder / ("tries.jsonl" if number else "manifest.json")
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if path.exists() and path.read_bytes().count(b"\n") >= max(1, number):
            return
        time.sleep(0.002)


def test_failed_requests_are_counted_the_rest_is_written_and_a_rerun_asks_for_them_alone(tmp_path: Path) -> None:
    write_answers(tmp_path / "answers", range(1, 4))
    broken = True

    def failing(seen: Seen) -> Reply:
        if broken and number_of(seen) == 2:
            return error(500)
        return answer(seen, convert(original(number_of(seen))))

    with MisbehavingServer(failing).running() as server:
        done = run(tmp_path, base_url=server.base_url, num_samples=1)
        assert mistake(done).startswith("error: 1 answers are missing: 1 server_error (status 500: no); the same ")
        assert "2 of 3 answers converted" in done.stdout
        broken = False
        asked = len(server.seen)
        done = run(tmp_path, base_url=server.base_url, num_samples=1)
        assert done.returncode == 0 and "3 of 3 answers converted" in done.stdout, done.stderr
        assert [number_of(seen) for seen in server.seen[asked:]] == [2]


def test_when_nothing_passes_the_rejected_are_there_to_read(tmp_path: Path) -> None:
    write_answers(tmp_path / "answers", range(1, 3))
    done = run(tmp_path, **scripted(tmp_path, {original(n): ["I cannot."] for n in (1, 2)}))
    assert mistake(done).startswith("error: no conversion passed its checks; read converted/rejected.jsonl")
    assert [row["reason"] for row in read_rows(tmp_path / "converted" / "rejected.jsonl")] == ["tags"] * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"answers": "nowhere"}, "no such folder: nowhere"),
        ({"out": "answers"}, "--out answers is the folder that is read"),
        ({"out": "other"}, "the output other holds a run of generate_answers, not of convert_format"),
        ({"out": "script.json"}, "the output script.json is a file"),
        ({"only_correct": True}, "answers has no verdicts.jsonl; run: python tools/check_answers.py --answers answers"),
        ({"min_overlap": 80}, "--min-overlap 80 is no share"),
        ({"temperature": 0}, "--temperature 0 is greedy"),
        ({"num_samples": 0}, "--num-samples 0: give at least 1"),
        ({"prompt": "konvert"}, "unknown prompt 'konvert': did you mean 'convert'?"),
        ({"engine": "opnai"}, "did you mean 'openai'?"),
        ({"answers": "empty"}, "empty has no answer to convert (it has none at all)"),
        ({"answers": "torn"}, "torn/answers.jsonl:1: not an Answer record"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_answers(tmp_path / "answers", range(1, 3))
    write_answers(tmp_path / "other", range(1, 3))
    for name, text in (("empty", ""), ("torn", '{"id": 3}\n')):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "manifest.json", {})
        (tmp_path / name / "answers.jsonl").write_text(text)
    before = contents(tmp_path / "answers"), contents(tmp_path / "other")
    assert message in refusal(command(**scripted(tmp_path, {}) | options)[2:])
    assert (contents(tmp_path / "answers"), contents(tmp_path / "other")) == before
    assert not (tmp_path / "converted").exists()


def test_help_names_the_options(tmp_path: Path) -> None:
    done = run(tmp_path, tool=[sys.executable, str(ROOT / "tools/convert_format.py"), "--help"])
    assert done.returncode == 0 and "--min-overlap" in done.stdout and "--only-correct" in done.stdout
