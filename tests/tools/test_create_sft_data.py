"""The tool in front of a real HTTP server that writes the justifications of a script, misbehaving on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from engines.misbehaving_server import MisbehavingServer, Reply, Seen, answer, error
from omegaconf import OmegaConf
from tiny import write_byte_tokenizer
from torchtune import config
from torchtune.data import CROSS_ENTROPY_IGNORE_IDX

from tt_reasoning.prompts import get_prompt
from tt_reasoning.store import read_manifest, read_records, read_rows, write_records
from tt_reasoning.types import Answer, AnswerSet, Problem, Sampling

ROOT = Path(__file__).parents[2]
SECRETS = ["sk-first-3f9a1c", "sk-second-77b2d0"]
COLUMNS = ["index", "question", "expected_answer", "model_response", "extracted_answer", "is_correct"]
Script = Callable[[Seen], Reply]


@pytest.fixture(autouse=True)
def no_key_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_LOG"):
        monkeypatch.delenv(name, raising=False)


def write_sets(folder: Path, numbers: range, references: dict[int, str] | None = None) -> None:
    """One set a number n: what is n + n, with the proposed answers 4 and 5."""
    sampling = Sampling(model="m", prompt="answer")
    sets = []
    for number in numbers:
        reference = (references or {}).get(number, str(2 * number))
        problem = Problem(source="s", split="train", question=f"What is {number} + {number}?", reference=reference)
        answers = tuple(
            Answer(id=f"{number}-{index}", problem_id=problem.id, sample_index=index, text=text, num_tokens=3,
                   finish_reason="stop", sampling=sampling)
            for index, text in enumerate(["The Answer is: 4", "5"])
        )  # fmt: skip
        sets.append(AnswerSet(id=AnswerSet.make_id(problem, answers, 0), problem=problem, answers=answers))
    folder.mkdir(parents=True)
    write_records(folder / "sets.jsonl", sets)


def command(**options: object) -> list[str]:
    given = {"sets": "sets", "model": "tiny", "timeout_s": 30, "max_retries": 0, "out": "sft"} | options
    told = {name.replace("_", "-"): str(value) for name, value in given.items() if value is not None}
    words = [word for name, value in told.items() for word in (f"--{name}", value)]
    return [sys.executable, str(ROOT / "tools/create_sft_data.py"), *words]


def create(home: Path, **options: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HF_HOME": str(home / "cache"), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        command(**options), cwd=home, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def number_of(seen: Seen) -> int:
    return int(seen.prompt.split()[3])


def justify(result: object, why: str = "Answer 1 adds both.") -> str:
    return f"<think> {why} </think> <answer>{result}</answer>"


# What the model writes about each n, try by try.
JUSTIFICATIONS = {
    1: [justify(2)],
    2: [justify(4, "5 - 1 is the given answer."), justify(4)],
    3: [justify(5), justify(9)],
    4: ["The answer is 8.", justify(8, "Of the given answers\u2028none is right: 4 < 8.")],
    5: [justify(10), justify(10, "We are told the answer is 10.")],
    6: [justify(" $12.00 ")],
}


def try_number() -> Callable[[Seen], int]:
    """Tells which try of its set a request is, by the seeds that came before."""
    seeds: dict[int, list[int]] = defaultdict(list)

    def tell(seen: Seen) -> int:
        known = seeds[number_of(seen)]
        if seen.seed not in known:
            known.append(seen.seed)
        return known.index(seen.seed)

    return tell


def make_script() -> Script:
    """Each first request for 1 meets a rate limit, for 6 an internal error; the first about 5 is cut."""
    tell = try_number()

    def script(seen: Seen) -> Reply:
        number, attempt = number_of(seen), tell(seen)
        if number in (1, 6) and not seen.earlier:
            return error(429, Retry_After="0") if number == 1 else error(500)
        cut = number == 5 and attempt == 0
        return answer(seen, JUSTIFICATIONS[number][attempt], finish_reason="length" if cut else "stop")

    return script


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def mistake(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


def test_a_run_keeps_rejects_counts_and_its_rows_train_through_the_sft_config(tmp_path: Path) -> None:
    write_sets(tmp_path / "sets", range(1, 9), {8: ""})
    with (tmp_path / "sets" / "sets.jsonl").open("a") as file:
        file.write((tmp_path / "sets" / "sets.jsonl").read_text().splitlines(keepends=True)[0])
    (tmp_path / "keys.txt").write_text("\n".join(SECRETS))
    with MisbehavingServer(make_script()).running() as server:
        options = {"base_url": server.base_url, "keys": "keys.txt", "max_retries": 2, "concurrency": 1}
        done = create(tmp_path, **options, limit=6)
        assert done.returncode == 0, done.stderr
        # 6 first tries, 4 second ones, and one retry each of 1 and 6.
        assert Counter(map(number_of, server.seen)) == {1: 2, 2: 2, 3: 2, 4: 2, 5: 2, 6: 2}
        assert {seen.key for seen in server.seen} == set(SECRETS)
        first = server.seen[0]
    assert first.path == "/v1/chat/completions"
    assert [message["role"] for message in first.body["messages"]] == ["system", "user"]
    assert first.prompt.endswith("Answer 2:\n5\n\nCorrect final answer (for you alone): 2")

    out = tmp_path / "sft"
    kept, rejected = list(read_rows(out / "sft.jsonl")), list(read_rows(out / "rejected.jsonl"))
    assert [(row["index"], row["model_response"]) for row in kept] == [
        (n - 1, JUSTIFICATIONS[n][-1].strip()) for n in (1, 2, 4, 6)
    ]
    assert [(row["index"] + 1, row["reason"], row["detail"]) for row in rejected] == [
        (2, "leak", "given_answer: the given answer"),
        (3, "wrong", "mismatch"),
        (3, "wrong", "mismatch"),
        (4, "form", "there are no tags"),
        (5, "truncated", "3 tokens"),
        (5, "leak", "told: We are told the answer"),
    ]
    assert all(list(row)[: len(COLUMNS)] == COLUMNS for row in kept + rejected)
    assert kept[3] | {"extracted_answer": "$12.00", "expected_answer": "12", "is_correct": True} == kept[3]
    assert not any("for you alone" in row["question"] for row in kept + rejected)
    stats = json.loads((out / "stats.json").read_text())
    assert stats["rejected"] == {"truncated": 1, "form": 1, "wrong": 2, "leak": 2, "repeated": 0, "surplus": 0}
    assert done.stdout.splitlines() == [
        "sft/sft.jsonl: 4 justifications of 4 sets kept, 66.7 % of 6 sets (10 written, 10 of them now)",
        "rejected 6: truncated 1, form 1, wrong 2, leak 2 (see sft/rejected.jsonl)",
        "leaks: given_answer 1, told 1",
    ]
    for text in [done.stdout, done.stderr, *(data.decode() for data in contents(out).values())]:
        assert not any(secret in text for secret in SECRETS)
    usage = list(read_rows(out / "usage.jsonl"))
    assert [row["answered"] for row in usage] == [6, 4]

    # The component of the config that trains on it.
    write_byte_tokenizer(tmp_path)
    cfg = OmegaConf.load(ROOT / "configs/3B_sft.yaml")
    cfg.tokenizer.path, cfg.dataset.source = str(tmp_path), str(out)
    tokenizer = config.instantiate(cfg.tokenizer)
    dataset = config.instantiate(cfg.dataset, tokenizer)
    assert len(dataset) == 4 and dataset.num_too_long == 0
    for row, sample in zip(kept, dataset, strict=True):
        learned = [label for label in sample["labels"] if label != CROSS_ENTROPY_IGNORE_IDX]
        shown = sample["tokens"][: -len(learned)]
        assert sample["labels"] == [CROSS_ENTROPY_IGNORE_IDX] * len(shown) + learned
        assert sample["tokens"] == shown + learned
        assert tokenizer.decode(shown) == get_prompt("ssa").render(row["question"])
        assert "<think>" + tokenizer.decode(learned, skip_special_tokens=False) == row["model_response"] + "<|im_end|>"

    # Nothing is asked again, and no server is needed; more tries or sets ask for themselves alone.
    before = contents(out)
    done = create(tmp_path, base_url="http://127.0.0.1:9/v1", limit=6)
    assert done.returncode == 0 and "(10 written, 0 of them now)" in done.stdout
    assert contents(out) == before
    with MisbehavingServer(lambda seen: answer(seen, justify(2 * number_of(seen)))).running() as server:
        done = create(tmp_path, base_url=server.base_url, num_samples=3)
        assert done.returncode == 0, done.stderr
        assert Counter(map(number_of, server.seen)) == {3: 1, 5: 1, 7: 1}
    assert done.stdout.startswith("sft/sft.jsonl: 7 justifications of 7 sets kept, 100.0 % of 7 sets (13 written, 3 ")
    assert done.stdout.splitlines()[-1] == "not asked: duplicate 1, bad_reference 1"
    before = contents(out)
    assert "seed was 0, now 1" in mistake(create(tmp_path, base_url=server.base_url, seed=1))
    (tmp_path / "sets" / "sets.jsonl").unlink()
    (tmp_path / "sets").rmdir()
    write_sets(tmp_path / "sets", range(1, 3))
    assert "rows was '9 rows, sha256 " in mistake(create(tmp_path, base_url=server.base_url))
    assert contents(out) == before
    assert not {"keys", "base_url"} & read_manifest(out)["arguments"].keys()


def test_a_killed_run_asks_only_what_is_missing_and_ends_with_the_same_files(tmp_path: Path) -> None:
    """Every third set is wrong at the first try; requests take a while, so that the kill comes in the middle."""
    write_sets(tmp_path / "sets", range(1, 13))

    tell = try_number()

    def slow(seen: Seen) -> Reply:
        wrong = number_of(seen) % 3 == 0 and tell(seen) == 0
        return Reply(body=answer(seen, justify(1 if wrong else 2 * number_of(seen))).body, stall_s=0.05)

    path = tmp_path / "killed" / "justifications.jsonl"
    options = {"chunk_size": 2, "concurrency": 2}
    with MisbehavingServer(slow).running() as server:
        words = command(out="killed", base_url=server.base_url, **options)
        process = subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while process.poll() is None and not (path.exists() and path.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = [answer.id for answer in read_records(path, Answer)]
    assert 2 <= len(kept) < 16
    with MisbehavingServer(slow).running() as server:
        done = create(tmp_path, out="killed", base_url=server.base_url, **options)
        assert done.returncode == 0, done.stderr
        assert len(server.seen) == 16 - len(kept)  # of 12 first tries and 4 second ones
        assert "12 justifications of 12 sets kept" in done.stdout
        assert create(tmp_path, out="whole", base_url=server.base_url, **options).returncode == 0
    for name in ("justifications.jsonl", "sft.jsonl", "rejected.jsonl", "stats.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_failed_requests_are_counted_the_rest_is_written_and_a_rerun_asks_for_them_alone(tmp_path: Path) -> None:
    write_sets(tmp_path / "sets", range(1, 4))
    broken = True

    def failing(seen: Seen) -> Reply:
        return error(500) if broken and number_of(seen) == 2 else answer(seen, justify(2 * number_of(seen)))

    with MisbehavingServer(failing).running() as server:
        done = create(tmp_path, base_url=server.base_url)
        line = mistake(done)
        assert line.startswith("error: 2 justifications are missing; failed now: 2 server_error (status 500: no); ")
        assert "2 justifications of 2 sets kept, 66.7 % of 3 sets" in done.stdout
        assert [row["index"] for row in read_rows(tmp_path / "sft" / "sft.jsonl")] == [0, 2]
        assert json.loads((tmp_path / "sft" / "stats.json").read_text())["missing"] == 2
        broken = False
        asked = len(server.seen)
        done = create(tmp_path, base_url=server.base_url)
        assert done.returncode == 0, done.stderr
        assert [number_of(seen) for seen in server.seen[asked:]] == [2]
    assert [row["index"] for row in read_rows(tmp_path / "sft" / "sft.jsonl")] == [0, 1, 2]


def test_rows_of_the_published_form_are_read_and_any_engine_may_write(tmp_path: Path) -> None:
    """A folder of Parquet with the columns question and answer, as the SSA repository publishes it."""
    text = "Question: What is 2 + 2?\n\nBelow are the proposed answers:\n\nAnswer 1:\n#### 4"
    (tmp_path / "published").mkdir()
    table = pyarrow.table({"question": [text, "Question: 1?"], "answer": ["4", "1"]})
    pyarrow.parquet.write_table(table, tmp_path / "published" / "train-00000-of-00001.parquet")
    (tmp_path / "script.json").write_text(json.dumps({"answers": {text: [justify(4)]}, "fallback": [justify(3)]}))
    options = {"model": "script.json", "engine": "scripted", "timeout_s": None, "max_retries": None}
    done = create(tmp_path, sets="hub:published", keep=2, **options)
    assert done.returncode == 0, done.stderr
    (row,) = read_rows(tmp_path / "sft" / "sft.jsonl")
    assert (row["question"], row["model_response"]) == (text, justify(4))
    reasons = [row["reason"] for row in read_rows(tmp_path / "sft" / "rejected.jsonl")]
    assert reasons == ["repeated", "wrong", "wrong"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sets": "nowhere"}, "--sets=nowhere is no folder of answer sets; make one with tools/concat_answers.py"),
        ({"sets": "hub:nobody/nothing"}, "the data set nobody/nothing (train) cannot be loaded"),
        ({"keep": 3}, "--keep 3 is above --num-samples 2"),
        ({"num_samples": 0}, "--num-samples 0: give at least 1"),
        ({"temperature": 0}, "--temperature 0 is greedy"),
        ({"prompt": "ssa_orakle"}, "did you mean 'ssa_oracle'?"),
        ({"keys": "sk-first-3f9a1c"}, "--keys names no readable text file"),
        ({}, "no server answers at http://127.0.0.1:9/v1"),
    ],
)
def test_a_mistake_is_one_line_and_makes_no_rows(tmp_path: Path, options: dict[str, object], message: str) -> None:
    write_sets(tmp_path / "sets", range(1, 3))
    done = create(tmp_path, **{"base_url": "http://127.0.0.1:9/v1"} | options)
    line = mistake(done)
    assert line.startswith("error: ") and message in line and SECRETS[0] not in done.stderr
    assert not (tmp_path / "sft" / "sft.jsonl").exists()


def test_when_nothing_passes_the_rejected_are_there_to_read(tmp_path: Path) -> None:
    write_sets(tmp_path / "sets", range(1, 3))
    with MisbehavingServer(lambda seen: answer(seen, "I cannot say.")).running() as server:
        done = create(tmp_path, base_url=server.base_url)
    assert mistake(done).startswith("error: no justification passed its checks; read sft/rejected.jsonl")
    assert len(list(read_rows(tmp_path / "sft" / "rejected.jsonl"))) == 4
