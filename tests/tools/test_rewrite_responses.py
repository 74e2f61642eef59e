"""The tool as it is run: three files by hand, a killed run, failed requests, and every mistake in one line."""

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
from engines.misbehaving_server import MisbehavingServer, Reply, Seen, answer, error
from tiny import write_byte_tokenizer

from tt_reasoning import store
from tt_reasoning.datasets import pair_dataset
from tt_reasoning.models import ChatTokenizer
from tt_reasoning.prompts import SYSTEM_PROMPTS
from tt_reasoning.types import Answer, Problem, Sampling, Verdict

ROOT = Path(__file__).parents[2]
FILES = ("fcs", "fcs_plus1", "fcs_reflection")
MADE = [f"{name}-conversations.json" for name in FILES] + ["rewritten.jsonl", "left_out.jsonl", "stats.json"]
REPLIES = ["marks.jsonl", "part_scores.jsonl", "verdicts.jsonl"]


def thought_and_solution(thought: str, result: int) -> str:
    return (
        f"<|begin_of_thought|>\n{thought}\n<|end_of_thought|>\n\n"
        f"<|begin_of_solution|>\n\\boxed{{{result}}}\n<|end_of_solution|>"
    )


def shortest(n: int, upto: int = 7) -> str:
    """The first so many lines of a thought that proposes 2 n in lines 2, 4 and 6; of a multiple of 3 first wrongly."""
    first = 2 * n + (n % 3 == 0)
    lines = [f"Add {n} twice.", f"So {first}.", "Wait.", f"Again, it is {2 * n}.", "Sure?", f"Yes, {2 * n}.", "Done."]
    return thought_and_solution("\n".join(lines[:upto]), 2 * n)


def longest(n: int) -> str:
    return thought_and_solution("Hm.\n" * 60 + f"It is {2 * n}.", 2 * n)


def write_world(home: Path, numbers: range, delay_s: float = 0.0, scores_last: str = "False") -> None:
    """For each n: a short and a long correct answer, one incorrect shorter than both; and the model that reads them.

    Of n = 1 every reply about the lines is out of form, of n = 2 no reply about the last line is a score. n = 4 has one
    correct answer alone; n = 5 has two of one length, and an answer that was not judged.
    """
    problems, answers, verdicts = [], [], []
    script: dict[str, list[str]] = {}
    for n in numbers:
        problem = Problem(source="tiny", split="train", question=f"What is {n} + {n}?", reference=str(2 * n))
        wrong = f"\\boxed{{{2 * n + 1}}}"
        told: list[tuple[str, bool | None]] = [(shortest(n), True), (longest(n), True), (wrong, False)]
        if n == 4:
            told[1] = (longest(n), False)
        if n == 5:
            told = [(shortest(n), True), (shortest(n), True), (longest(n), None)]
        problems.append(problem)
        for index, (text, correct) in enumerate(told):
            sampling = Sampling(model="tiny", prompt="question")
            name = sampling.answer_id(problem.id, index)
            answers.append(
                Answer(id=name, problem_id=problem.id, sample_index=index, text=text, num_tokens=len(text.split()),
                       finish_reason="stop", sampling=sampling)
            )  # fmt: skip
            reason = {True: "match", False: "mismatch", None: "timeout"}[correct]
            verdicts.append(Verdict(answer_id=name, extracted=None, correct=correct, reason=reason))
        script[f"Problem: {problem.question}\n\nThoughts:"] = ["Lines 2, 4, 6"] if n == 1 else ["2, 4, 6"]
        part = f"Problem: {problem.question}\n\nPart of somebody's thoughts:\n"
        script[f"{part}Add"] = ["False" if n % 3 == 0 else "True"]
        script[f"{part}Wait"] = script[f"{part}Sure"] = ["True"]
        script[f"{part}Done"] = ["Maybe"] if n == 2 else [scores_last]
    with store.open_run(home / "answers", "generate_answers", {"template": None}) as folder:
        store.write_records(folder / "problems.jsonl", problems)
        store.write_records(folder / "answers.jsonl", answers)
        store.write_records(folder / "verdicts.jsonl", verdicts)
    (home / "script.json").write_text(json.dumps({"answers": script, "fallback": ["2, 4, 6"], "delay_s": delay_s}))


def command(*switches: str, **options: object) -> list[str]:
    given = {"answers": "answers", "rewrite_model": "script.json", "engine": "scripted", "out": "pairs"} | options
    told = {name.replace("_", "-"): str(value) for name, value in given.items() if value is not None}
    words = [word for name, value in told.items() for word in (f"--{name}", value)]
    return [sys.executable, str(ROOT / "tools/rewrite_responses.py"), *words, *switches]


def rewrite(home: Path, *switches: str, **options: object) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    return subprocess.run(
        command(*switches, **options), cwd=home, env=environment | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "."}


def pairs_of(folder: Path, name: str) -> dict[str, list[tuple[str, str]]]:
    """Chosen and rejected texts by question."""
    found: dict[str, list[tuple[str, str]]] = {}
    for row in json.loads((folder / f"{name}-conversations.json").read_text()):
        assert list(row) == ["conversations", "chosen", "rejected"]
        assert row["chosen"]["from"] == row["rejected"]["from"] == "gpt"
        pair = row["chosen"]["value"], row["rejected"]["value"]
        found.setdefault(row["conversations"][-1]["value"], []).append(pair)
    return found


def mistake(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


def test_pairs_of_every_kind_are_made_counted_and_load_for_training(tmp_path: Path) -> None:
    write_world(tmp_path, range(1, 6))
    done = rewrite(tmp_path, "--SILC", num_samples=2)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "pairs"
    # n = 1 is never marked, 4 has one correct answer, 5 a tie. Through line 4 (the first right one) for n = 3.
    cuts = {"fcs": {2: 2, 3: 4}, "fcs_plus1": {2: 4, 3: 6}, "fcs_reflection": {2: 4, 3: 6}}
    for name, lines in cuts.items():
        wanted = {f"What is {n} + {n}?": [(shortest(n, upto), longest(n))] for n, upto in lines.items()}
        for n in (1, 2, 3, 4):  # the one-line answer is the shortest incorrect one
            wanted.setdefault(f"What is {n} + {n}?", []).append((shortest(n), f"\\boxed{{{2 * n + 1}}}"))
        found = pairs_of(out, name)
        assert {question: sorted(pairs) for question, pairs in found.items()} == {
            question: sorted(pairs) for question, pairs in wanted.items()
        }
    first = json.loads((out / "fcs-conversations.json").read_text())[0]
    assert first["conversations"][0] == {"from": "system", "value": SYSTEM_PROMPTS["thought_solution"]}
    # The tags and the result are 5 words, the lines 3, 2, 1, 4, 1, 2, 1: fcs has 10 of n = 2 and 15 of n = 3.
    assert done.stdout.splitlines() == [
        "2 of 5 problems rewritten; left out: few_correct 1, tie 1, unmarked 1 (see pairs/left_out.jsonl)",
        "answers: correct 9, incorrect 5, not_judged 1; replies out of form: form 2; "
        "sub-solutions: correct 5, incorrect 2, unparsed 1",
        "pairs/fcs-conversations.json: 6 pairs, 4 of them SILC; chosen 12.5 tokens (uncut 19), rejected 68",
        "pairs/fcs_plus1-conversations.json: 6 pairs, 4 of them SILC; chosen 16.5 tokens (uncut 19), rejected 68",
        "pairs/fcs_reflection-conversations.json: 6 pairs, 4 of them SILC; chosen 16.5 tokens (uncut 19), rejected 68",
    ]
    left_out = {row["reason"]: row["detail"] for row in store.read_rows(out / "left_out.jsonl")}
    assert left_out == {
        "few_correct": "1 correct, 2 needed", "tie": "all 2 correct ones have 19 tokens", "unmarked": "form, form",
    }  # fmt: skip

    # Every file loads for training, with the chosen and the rejected side as they are.
    write_byte_tokenizer(tmp_path)
    tokenizer = ChatTokenizer(tmp_path, max_seq_len=2048)
    for name in FILES:
        dataset = pair_dataset(tokenizer, str(out / f"{name}-conversations.json"))
        assert len(dataset) == 6
    first = dataset[0]
    assert "<|begin_of_thought|>" in tokenizer.decode(first["chosen_input_ids"] + first["rejected_input_ids"])

    # Nothing is asked again: the model would say something else now. What depends on no reply may change.
    (tmp_path / "script.json").write_text(json.dumps({"fallback": ["I am another model"]}))
    before = contents(out)
    assert rewrite(tmp_path, "--silc", num_samples=2).returncode == 0
    assert contents(out) == before
    done = rewrite(tmp_path, num_samples=2, system_prompt="none", target_model=str(tmp_path))
    assert done.returncode == 0, done.stderr
    rows = json.loads((out / "fcs-conversations.json").read_text())
    assert [turn["from"] for row in rows for turn in row["conversations"]] == ["human", "human"]
    stats = json.loads((out / "stats.json").read_text())
    assert stats["tokens_by"] == f"the tokenizer of {tmp_path}"
    mean = sum(len(row["chosen"]["value"].encode()) for row in rows) / 2  # a token a byte
    assert stats["files"]["fcs"]["mean_tokens"]["chosen"] == mean
    assert {name: data for name, data in contents(out).items() if name in REPLIES} == {
        name: data for name, data in before.items() if name in REPLIES
    }
    assert "seed was 0, now 1" in mistake(rewrite(tmp_path, num_samples=2, seed=1))


def test_the_grader_scores_in_place_of_the_model(tmp_path: Path) -> None:
    write_world(tmp_path, range(2, 4))
    done = rewrite(tmp_path, score_by="grader")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "pairs" / "part_scores.jsonl").exists()
    assert {question: pairs[0][0] for question, pairs in pairs_of(tmp_path / "pairs", "fcs").items()} == {
        "What is 2 + 2?": shortest(2, 2), "What is 3 + 3?": shortest(3, 4),
    }  # fmt: skip


@pytest.mark.parametrize(("file", "lines"), [("marks.jsonl", 2), ("part_scores.jsonl", 3), ("part_scores.jsonl", 38)])
def test_a_run_that_is_killed_anywhere_ends_with_the_same_bytes(
    tmp_path: Path, whole_run: dict[str, bytes], file: str, lines: int
) -> None:
    """38 lines are in the second try of the 36 parts of nine problems."""
    write_world(tmp_path, range(6, 15), delay_s=0.03, scores_last="?")
    path = tmp_path / "pairs" / file
    process = subprocess.Popen(command("--silc", chunk_size=3), cwd=tmp_path, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 90
    while process.poll() is None and time.monotonic() < deadline:
        if path.exists() and path.read_bytes().count(b"\n") >= lines:
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL  # it was not done
    assert not (tmp_path / "pairs" / "stats.json").exists()
    with path.open("a") as torn:
        torn.write('{"id":"half a li')
    (tmp_path / "pairs" / ".stats.json.1.tmp").write_text("half")
    done = rewrite(tmp_path, "--silc", chunk_size=3)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "pairs") == whole_run


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the same run writes that nobody kills."""
    home = tmp_path_factory.mktemp("whole")
    write_world(home, range(6, 15), scores_last="?")
    done = rewrite(home, "--silc", chunk_size=3)
    assert done.returncode == 0, done.stderr
    made = contents(home / "pairs")
    assert {*MADE, *REPLIES, "manifest.json"} == made.keys()
    assert made["part_scores.jsonl"].count(b"\n") == 36 + 9 + 9
    return made


def test_failed_requests_are_counted_and_the_same_command_asks_for_them_alone(tmp_path: Path) -> None:
    write_world(tmp_path, range(7, 10))
    broken = True

    def say(seen: Seen) -> Reply:
        if "[1]" in seen.prompt:
            return answer(seen, "2, 4, 6")
        if broken and "What is 8 + 8?" in seen.prompt and "\nDone." in seen.prompt:
            return error(500)
        return answer(seen, "False" if "\nDone." in seen.prompt else "True")

    options = {"engine": "openai", "rewrite_model": "big", "max_retries": 0, "num_samples": 1}
    with MisbehavingServer(say).running() as server:
        (tmp_path / "keys.txt").write_text("sk-secret-1")
        done = rewrite(tmp_path, **options, base_url=server.base_url, keys="keys.txt")
        assert mistake(done).startswith("error: 1 problems wait for replies; failed now: 1 server_error (status 500")
        assert done.stdout.startswith("2 of 3 problems rewritten; left out: none")
        assert set(pairs_of(tmp_path / "pairs", "fcs")) == {"What is 7 + 7?", "What is 9 + 9?"}
        broken, asked = False, len(server.seen)
        done = rewrite(tmp_path, **options, base_url=server.base_url, keys="keys.txt")
        assert done.returncode == 0, done.stderr
        assert len(server.seen) == asked + 1
    assert len(pairs_of(tmp_path / "pairs", "fcs")) == 3
    usage = Counter()
    for row in store.read_rows(tmp_path / "pairs" / "usage.jsonl"):
        usage["answered"] += row["answered"]
    assert usage["answered"] == 3 + 12
    for data in contents(tmp_path / "pairs").values():
        assert b"sk-secret-1" not in data


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"answers": "nowhere"}, "no such folder: nowhere"),
        ({"out": "answers"}, "--out answers is the folder that is read; name another"),
        ({"num_samples": 0}, "--num-samples 0: give at least 1"),
        ({"limit": 0}, "--limit 0: give at least 1"),
        ({"temperature": 0}, "--temperature 0: give a number above 0; the first try is greedy anyway"),
        ({"top_p": 2}, "--top-p 2.0 is not above 0 and at most 1"),
        ({"system_prompt": "thought_solutoin"}, "did you mean 'thought_solution'?"),
        ({"engine": "scriptd"}, "did you mean 'scripted'?"),
        ({"rewrite_model": "none.json"}, "no such file: none.json"),
        ({"target_model": "."}, "no tokenizer at tokenizer.json"),
        ({"limit": 1}, "no pair could be made; pairs/left_out.jsonl says why, problem by problem"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, options: dict[str, object], message: str) -> None:
    write_world(tmp_path, range(4, 6))
    done = rewrite(tmp_path, **options)
    line = mistake(done)
    assert line.startswith("error: ") and message in line


def test_answers_without_verdicts_are_refused(tmp_path: Path) -> None:
    write_world(tmp_path, range(1, 3))
    path = tmp_path / "answers" / "verdicts.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    assert "1 answers have no verdict yet; run: python tools/check_answers.py" in mistake(rewrite(tmp_path))
    path.unlink()
    assert "answers has no verdicts.jsonl; run: python tools/check_answers.py" in mistake(rewrite(tmp_path))
    assert not (tmp_path / "pairs").exists()


def test_answers_that_are_checked_later_add_to_the_pairs_and_nothing_is_asked_twice(tmp_path: Path) -> None:
    write_world(tmp_path, range(2, 4))
    path = tmp_path / "answers" / "verdicts.jsonl"
    verdicts = path.read_text().splitlines(keepends=True)
    path.write_text("".join(verdicts[:2] + verdicts[3:5]))  # the incorrect answers wait
    done = rewrite(tmp_path, "--silc", first=2)
    assert done.returncode == 0, done.stderr
    assert "fcs-conversations.json: 2 pairs; chosen" in done.stdout
    before = contents(tmp_path / "pairs")
    path.write_text("".join(verdicts))
    assert rewrite(tmp_path, "--silc").returncode == 0
    assert {name: len(of) for name, of in pairs_of(tmp_path / "pairs", "fcs").items()} == {
        "What is 2 + 2?": 2, "What is 3 + 3?": 2,
    }  # fmt: skip
    after = contents(tmp_path / "pairs")
    assert [after[name] == before[name] for name in REPLIES[:2]] == [True, True]
    (tmp_path / "answers" / "verdicts.json").write_text(json.dumps({"arguments": {"fallback": "last_number"}}))
    assert "grading was {}, now {'fallback': 'last_number'}" in mistake(rewrite(tmp_path, "--silc"))


def test_the_help_names_every_file_that_is_written(tmp_path: Path) -> None:
    done = rewrite(tmp_path, "--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in MADE) and "--SILC" in done.stdout
