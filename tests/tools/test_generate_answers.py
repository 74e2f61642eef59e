"""tools/generate_answers.py with the scripted engine: kills, resumes, growth and mistakes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import write_tiny_model

from tools.generate_answers import Arguments, main
from tt_reasoning.engines.options import EngineOptions
from tt_reasoning.errors import UserError
from tt_reasoning.prompts import PROMPTS, get_prompt, load_prompt
from tt_reasoning.store import read_manifest, read_records, read_rows
from tt_reasoning.types import Answer, Problem

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "generate_answers.py"
NUM_ANSWERS = 12 * 3


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.json"
    path.write_text(json.dumps({"fallback": ["I drew {seed}.\nThe Answer is: 7"], "delay_s": 0.01}))
    return path


def command(script: Path, out: Path, **options: object) -> list[str]:
    given = {
        "engine": "scripted",
        "model": script,
        "dataset": "quickstart",
        "limit": 12,
        "num_samples": 3,
        "chunk_size": 2,
        "out": out,
    } | options
    words = [sys.executable, str(TOOL)]
    for name, value in given.items():
        if value is not None:
            words += [f"--{name.replace('_', '-')}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return words


def run(script: Path, out: Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(script, out, **options), capture_output=True, text=True, timeout=120, check=False)


def tool(name: str, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / f"{name}.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def answers(folder: Path) -> set[Answer]:
    found = list(read_records(folder / "answers.jsonl", Answer))
    assert len(set(found)) == len(found)
    return set(found)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_run_writes_problems_answers_and_manifest(script: Path, tmp_path: Path) -> None:
    done = run(script, tmp_path / "run", max_new_tokens=5)
    assert done.returncode == 0, done.stderr
    told = f"{NUM_ANSWERS} answers written: 0 stop, 36 length (100.0% cut at the token limit), 180 tokens, "
    assert done.stdout.startswith(told)
    assert "warning: 100.0% of 36 answers were cut at --max-new-tokens 5" in done.stderr
    assert json.loads((tmp_path / "run" / "stats.json").read_text()) == {
        "0.7": {
            "answers": 36, "stop": 0, "length": 36, "length_share": 1.0, "tokens": 180, "tokens_per_answer": 5.0
        }
    }  # fmt: skip
    problems = list(read_records(tmp_path / "run" / "problems.jsonl", Problem))
    answers = list(read_records(tmp_path / "run" / "answers.jsonl", Answer))
    assert [(a.problem_id, a.sample_index) for a in answers] == [(p.id, i) for p in problems for i in range(3)]
    assert len(problems) == 12 and len({a.text for a in answers}) == NUM_ANSWERS
    arguments = read_manifest(tmp_path / "run")["arguments"]
    assert arguments["seed"] == 0 and arguments["chunk_size"] == 2 and arguments["max_new_tokens"] == 5


def test_a_run_killed_again_and_again_ends_with_the_file_of_one_never_killed(script: Path, tmp_path: Path) -> None:
    assert run(script, tmp_path / "whole").returncode == 0
    path = tmp_path / "killed" / "answers.jsonl"
    sizes = []
    for num_lines in (1, 10, 20, 30):
        process = subprocess.Popen(command(script, tmp_path / "killed"), stderr=subprocess.DEVNULL)
        while process.poll() is None and not (path.exists() and path.read_bytes().count(b"\n") >= num_lines):
            time.sleep(0.002)
        assert process.poll() is None, "the run ended before it was killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        sizes.append(path.stat().st_size)
        with path.open("ab") as file:
            file.write(b'{"id":"torn')
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]
    done = run(script, tmp_path / "killed")
    assert done.returncode == 0, done.stderr
    assert "were there" in done.stdout
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_complete_run_says_so_and_changes_nothing(script: Path, tmp_path: Path) -> None:
    run(script, tmp_path / "run")
    before = contents(tmp_path / "run")
    done = run(script, tmp_path / "run")
    assert done.returncode == 0 and f"already complete: {NUM_ANSWERS} answers" in done.stdout
    assert contents(tmp_path / "run") == before


def test_more_samples_and_problems_are_added(script: Path, tmp_path: Path) -> None:
    run(script, tmp_path / "run", limit=3, num_samples=1)
    done = run(script, tmp_path / "run")
    assert done.returncode == 0 and f"{NUM_ANSWERS - 3} answers written (3 were there)" in done.stdout
    run(script, tmp_path / "fresh")
    grown, fresh = (set(read_records(tmp_path / name / "answers.jsonl", Answer)) for name in ("run", "fresh"))
    assert grown == fresh


def test_a_malformed_line_is_named_and_nothing_is_overwritten(script: Path, tmp_path: Path) -> None:
    run(script, tmp_path / "run")
    path = tmp_path / "run" / "answers.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:4], "not json\n", *lines[5:20]]))
    before = contents(tmp_path / "run")
    done = run(script, tmp_path / "run")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"error: {path}:5: not JSON")
    assert contents(tmp_path / "run") == before


def test_the_folder_of_another_run_is_refused_and_not_overwritten(script: Path, tmp_path: Path) -> None:
    run(script, tmp_path / "run")
    before = contents(tmp_path / "run")
    (tmp_path / "my.txt").write_text("{question}")
    for changed, words in [
        ({"seed": 5}, "seed was 0, now 5"),
        ({"prompt": tmp_path / "my.txt", "system_prompt": "boxed"}, "prompt was 'answer', now 'custom@"),
    ]:
        done = run(script, tmp_path / "run", **changed)
        assert done.returncode == 2 and words in done.stderr
        assert contents(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "vlm"}, "unknown engine 'vlm': did you mean 'vllm'?"),
        ({"prompt": "anser"}, "unknown prompt 'anser': did you mean 'answer'?"),
        ({"dataset": "quikstart"}, "unknown dataset 'quikstart': did you mean 'quickstart'?"),
        ({"engine": "vllm", "model": "tests/nothing"}, "no such model folder: tests/nothing"),
        ({"engine": "vllm", "model": "tests"}, "tests has no config.json"),
        ({"max_model_len": 100}, "unknown option of engine scripted 'max_model_len'"),
        ({"num_samples": 0}, "--num-samples 0: give at least 1"),
        ({"limit": 0}, "limit=0"),
        ({"temperature": -1}, "--temperatures -1: give numbers from 0 on"),
        ({"temperatures": (0.5, 1, 0.50)}, "--temperatures names 0.5 twice"),
        ({"end": 4}, "--end 4 and --limit 12 both say where to stop; give one"),
        ({"limit": None, "start": 4, "end": 4}, "--start 4 --end 4 leaves no problem"),
        ({"shard": "0/4"}, "--shard 0/4: give i/n with i from 1 to n, such as 1/4 to 4/4"),
        ({"shard": "13/13"}, "--shard 13/13 leaves no problem: there are fewer than 13"),
        ({"prompt": "no.yaml"}, "no such file: no.yaml"),
        ({"system_prompt": "boxd"}, "unknown system prompt 'boxd': did you mean 'boxed'?"),
        ({"prompt": "few_shot", "system_prompt": "boxed"}, "prompt few_shot is plain text and has no system message"),
        ({"data_parallel_size": 0}, "--data-parallel-size 0: give at least 1"),
        ({"engine": "openai", "data_parallel_size": 2}, "for openai give --concurrency"),
        ({"gpu_memory_utilization": 1.5}, "--gpu-memory-utilization 1.5 is not above 0 and at most 1"),
        ({"top_p": 0}, "--top-p 0.0"),
    ],
)
def test_a_mistake_is_one_line_and_makes_no_folder(
    script: Path, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    done = run(script, tmp_path / "run", **options)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert message in done.stderr
    assert not (tmp_path / "run").exists()


def test_both_spellings_take_several_temperatures_and_greedy_is_asked_once(script: Path, tmp_path: Path) -> None:
    done = run(script, tmp_path / "run", temperatures=(0, 0.5), limit=4)
    assert done.returncode == 0, done.stderr
    assert "temperature 0 is greedy: one answer to each problem there, not 3" in done.stderr
    found = [(a.sampling.temperature, a.sample_index) for a in answers(tmp_path / "run")]
    assert sorted(found) == sorted([(0.0, 0), (0.5, 0), (0.5, 1), (0.5, 2)] * 4)

    done = run(script, tmp_path / "run", temperature=(0.5, 1), limit=4, num_samples=5)
    assert done.returncode == 0 and "28 answers written (12 were there)" in done.stdout
    stats = json.loads((tmp_path / "run" / "stats.json").read_text())
    assert {temperature: row["answers"] for temperature, row in stats.items()} == {"0.0": 4, "0.5": 20, "1.0": 20}
    assert len({a.id for a in answers(tmp_path / "run")}) == 44


def test_ranges_are_half_open_and_add_to_a_folder(script: Path, tmp_path: Path) -> None:
    run(script, tmp_path / "all", limit=9)
    for options in ({"start": 3, "end": 5}, {"start": 4, "end": 9}, {"start": 0, "limit": 3}):
        done = run(script, tmp_path / "parts", **{"limit": None, **options})
        assert done.returncode == 0, done.stderr
    assert answers(tmp_path / "parts") == answers(tmp_path / "all")
    order = [p.reference for p in read_records(tmp_path / "parts" / "problems.jsonl", Problem)]
    whole = [p.reference for p in read_records(tmp_path / "all" / "problems.jsonl", Problem)]
    assert order == [*whole[3:9], *whole[:3]]


def test_shards_are_merged_by_concatenation(script: Path, tmp_path: Path) -> None:
    """What the parts give is a folder like any other: for the next tools, and for a run without shards."""
    run(script, tmp_path / "whole", temperatures=(0.5, 1))
    for shard in (1, 2, 3):
        done = run(script, tmp_path / f"shard{shard}", temperatures=(0.5, 1), shard=f"{shard}/3", limit=11)
        assert done.returncode == 0, done.stderr
    merged = tmp_path / "merged"
    subprocess.run(
        "mkdir merged && cat shard*/answers.jsonl > merged/answers.jsonl && cat shard*/problems.jsonl > "
        "merged/problems.jsonl && cp shard2/manifest.json merged", shell=True, cwd=tmp_path, check=True,
    )  # fmt: skip
    problems = list(read_rows(merged / "problems.jsonl"))
    assert len(problems) == len({row["id"] for row in problems}) == 11

    done = run(script, merged, temperatures=(0.5, 1), limit=11)
    assert done.returncode == 0 and "already complete: 66 answers" in done.stdout
    done = run(script, merged, temperatures=(0.5, 1))
    assert done.returncode == 0 and "6 answers written (66 were there)" in done.stdout
    assert answers(merged) == answers(tmp_path / "whole")

    done = tool("check_answers", "--answers", merged)
    assert done.returncode == 0 and "graded 72 answers" in done.stdout, done.stderr
    done = tool(
        "concat_answers", "--answers", merged, "--num-answers", 3, "--tokenizer", write_tiny_model(tmp_path / "tiny"),
        "--out", tmp_path / "sets",
    )  # fmt: skip
    assert done.returncode == 0 and len(list(read_rows(tmp_path / "sets" / "sets.jsonl"))) == 12, done.stderr


def test_a_prompt_from_files_is_kept_in_the_folder_and_found_by_the_next_tools(script: Path, tmp_path: Path) -> None:
    asked = tmp_path / "terse.yaml"
    asked.write_text("user: |\n  Q: {question}\n  A:\nchat: false\nprefill: '<answer>'\nstop: </answer>\n")
    script.write_text(json.dumps({"answers": {"Q: ": ["7</answer> and more"]}}))
    done = run(script, tmp_path / "run", prompt=asked)
    assert done.returncode == 0, done.stderr
    name = load_prompt(str(asked)).name
    assert {(a.text, a.sampling.prompt) for a in answers(tmp_path / "run")} == {("7</answer>", name)}

    ids = {a.id for a in answers(tmp_path / "run")}
    copy = tmp_path / "copy.yaml"
    copy.write_text(asked.read_text() + "# the same, from another file\n")
    assert "already complete" in run(script, tmp_path / "run", prompt=copy).stdout
    copy.write_text(asked.read_text().replace("A:", "Answer:"))
    done = run(script, tmp_path / "run", prompt=copy)
    assert done.returncode == 2 and f"prompt was '{name}', now 'custom@" in done.stderr
    run(script, tmp_path / "other", prompt=copy)
    assert not ids & {a.id for a in answers(tmp_path / "other")}

    asked.unlink()
    assert get_prompt(name, tmp_path / "run").prefill == "<answer>"
    done = tool("check_answers", "--answers", tmp_path / "run")
    assert done.returncode == 0 and ", 0 no_answer" in done.stdout, done.stderr  # read from the prefill on


def test_the_prompt_follows_the_kind_of_the_problems_unless_it_is_named(script: Path, tmp_path: Path) -> None:
    choice = {"dataset": "arc", "data_files": ROOT / "tests" / "data" / "arc.jsonl", "split": "test"}
    for options, prompt in [(choice, "choice"), (choice | {"prompt": "boxed"}, "boxed"), ({}, "answer")]:
        done = run(script, tmp_path / prompt, **options)
        assert done.returncode == 0, done.stderr
        arguments = read_manifest(tmp_path / prompt)["arguments"]
        assert (arguments["prompt"], arguments["template"]) == (prompt, PROMPTS[prompt].template())
        assert {a.sampling.prompt for a in answers(tmp_path / prompt)} == {prompt}


def test_a_problem_too_long_for_the_model_fails_alone_and_the_run_goes_on(tmp_path: Path) -> None:
    """A real model with a real limit: the other problems are answered, and a higher limit makes up for it."""
    model, rows = write_tiny_model(tmp_path / "tiny"), tmp_path / "rows.jsonl"
    questions = ["2 + 2?", "x" * 80, "3 + 1?"]
    rows.write_text("".join(json.dumps({"question": q, "answer": "#### 4"}) + "\n" for q in questions))

    def generate(name: str, max_model_len: int = 64, max_new_tokens: int = 8) -> str:
        return main(Arguments(
            model=str(model), dataset="gsm8k", data_files=str(rows), prompt="question", chunk_size=2, num_samples=3,
            max_new_tokens=max_new_tokens, out=str(tmp_path / name),
            engine=EngineOptions(name="tune", max_model_len=max_model_len),
        ))  # fmt: skip

    for _ in range(2):
        with pytest.raises(UserError, match=r"^3 answers are missing: 3 too_long \(a prompt of .* the limit of 64; "):
            generate("run")
        assert len(answers(tmp_path / "run")) == 6
    assert generate("run", max_model_len=256).startswith("3 answers written (6 were there)")
    with pytest.raises(UserError, match="9 answers are missing: 6 too_long .* 3 not asked"):  # a chunk says enough
        generate("none", max_new_tokens=64)


def test_a_killed_run_of_several_processes_ends_with_the_answers_of_one(script: Path, tmp_path: Path) -> None:
    script.write_text(json.dumps({"fallback": ["I drew {seed}"], "delay_s": 0.05}))
    path = tmp_path / "killed" / "answers.jsonl"
    process = subprocess.Popen(
        command(script, tmp_path / "killed", data_parallel_size=2), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    while process.poll() is None and not (path.exists() and path.read_bytes().count(b"\n") >= 12):
        time.sleep(0.002)
    assert process.poll() is None, "the run ended before it was killed"
    process.kill()
    process.wait()
    done = run(script, tmp_path / "killed", data_parallel_size=2)
    assert done.returncode == 0 and "were there" in done.stdout, done.stderr
    assert run(script, tmp_path / "one").returncode == 0
    assert answers(tmp_path / "killed") == answers(tmp_path / "one")


DATA = ROOT / "tests" / "data"
NUMINA = {"dataset": "NUMINA", "data_files": DATA / "numina.jsonl", "split": "train", "limit": None}


def references(folder: Path) -> list[str]:
    return [problem.reference for problem in read_records(folder / "problems.jsonl", Problem)]


def write_levels(path: Path, **levels: float) -> Path:
    """Levels of the fixture's problems, by the first word of each question."""
    questions = [json.loads(line)["problem"] for line in (DATA / "numina.jsonl").read_text().splitlines()]
    found = {question: levels[question.split()[0]] for question in questions if question.split()[0] in levels}
    path.write_text(json.dumps([{"problem": text, "gpt_difficulty_parsed": level} for text, level in found.items()]))
    return path


def test_the_options_of_the_curation_commands_are_taken_as_other_tools_spell_them(script: Path, tmp_path: Path) -> None:
    words = [
        sys.executable, str(TOOL), "--engine", "scripted", "--model", str(script), "--dataset", "TACO", "--data_files",
        str(DATA / "taco.jsonl"), "--split", "train", "--source", "medium_hard", "--end", "-1", "--filter-difficulty",
        "--temperatures", "0.7", "--n", "5", "--max_tokens", "2", "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "--filter-difficulty does nothing here: --source is the difficulty of taco\n" in done.stderr
    found = answers(tmp_path / "run")
    assert len(found) == 5 and {a.num_tokens for a in found} == {2}
    assert references(tmp_path / "run") == [r'{"inputs":["tree\n"],"outputs":["2\n"]}']
    arguments = read_manifest(tmp_path / "run")["arguments"]
    assert (arguments["dataset"], arguments["prompt"], arguments["max_new_tokens"]) == ("taco", "code", 2)
    done = run(script, tmp_path / "other", tp=2)
    assert "unknown option of engine scripted 'tensor_parallel_size'" in done.stderr


def choose(script: Path, out: Path, *flags: str, **options: object) -> subprocess.CompletedProcess[str]:
    words = command(script, out, **NUMINA | options) + [*flags]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_sources_and_levels_add_to_a_folder_under_any_name_of_the_benchmark(script: Path, tmp_path: Path) -> None:
    everything = ["18", r"\frac{1}{4}", r"\sqrt{2}", r"\textbf{(B) } 11"]
    out, labels = tmp_path / "run", write_levels(tmp_path / "levels.json", The=2, A=4.5, Which=9)
    bounds = {"math_difficulty_lower_bound": 4, "math-difficulty-upper-bound": 9}
    for options, told, kept in [
        (bounds | {"end": 2}, "0 have no level, 1 are outside of 4 to 9", [1]),  # --end counts what bounds leave out
        ({"difficulty_lower": 4, "difficulty_upper": 8}, "1 have no level, 2 are outside of 4 to 8", [1]),
        ({"difficulty_upper": 2}, "1 have no level, 2 are outside of 1 to 2", [1, 0]),
        ({}, "1 have no level, 0 are outside of 1 to 10", [1, 0, 3]),
    ]:
        done = choose(script, out, "--filter-difficulty", difficulty_labels=labels, **options)
        assert done.returncode == 0 and told in done.stderr, done.stderr
        assert references(out) == [everything[index] for index in kept]
    for options in ({"source": "Olympiads", "dataset": "numina"}, {"source": ("amc_aime", "math")}):
        done = choose(script, out, **options)
        assert done.returncode == 0, done.stderr
        assert references(out) == [everything[index] for index in (1, 0, 3, 2)]
    assert done.stdout.startswith("already complete: 9 answers")  # of the three problems of these sources


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "mth"}, "unknown source of numina 'mth': did you mean 'math'? Known: amc_aime, math, olympiads"),
        ({"end": -2}, "--start 0 --end -2 leaves no problem"),
        ({"difficulty_lower": 4}, "--difficulty-lower is of --filter-difficulty; give that too, or leave it out"),
        ({"difficulty_labels": "x"}, "--difficulty-labels is of --filter-difficulty; give that too"),
        ({"filter": True, "difficulty_lower": 0}, "--difficulty-lower 0: levels go from 1 to 10"),
        ({"filter": True, "difficulty_lower": 5, "difficulty_upper": 4}, "--difficulty-lower 5 is above --difficulty-"),
        ({"filter": True, "difficulty_labels": "nowhere"}, "--difficulty-labels nowhere: no such file"),
        ({"filter": True, "difficulty_labels": "tests"}, "tests has no labels.jsonl; make it with tools/label_"),
        ({"filter": True}, "the data set NovaSky-AI/labeled_numina_difficulty_859K (train) cannot be loaded"),
        ({"filter": True, "dataset": "quickstart", "data_files": None}, "quickstart has no published levels; give"),
        ({"filter": True, "dataset": "apps", "difficulty_upper": 3}, "the difficulty of apps is its --source"),
    ],
)
def test_a_mistake_in_what_to_choose_is_one_line_and_makes_no_folder(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object], message: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    given = {name: value for name, value in options.items() if name != "filter"}
    done = choose(script, tmp_path / "run", *(["--filter-difficulty"] if "filter" in options else []), **given)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: ") and message in line
    assert not (tmp_path / "run").exists()


def test_from_labels_to_verdicts(script: Path, tmp_path: Path) -> None:
    """Levels by one script, answers by another to the problems that it calls hard, graded."""
    labeller = tmp_path / "labeller.json"
    labeller.write_text(json.dumps({"answers": {"The product": ["[[2]]"], "Which": ["?"]}, "fallback": ["[[6]]"]}))
    given = ["--dataset", "numina", "--data-files", DATA / "numina.jsonl", "--engine", "scripted"]
    done = tool("label_difficulty", *given, "--model", labeller, "--out", tmp_path / "labels")
    assert done.returncode == 0 and "3 of 4 problems labelled (2: 1, 6: 2)" in done.stdout, done.stderr
    script.write_text(json.dumps({"answers": {"A fair coin": ["\\boxed{0.25}"]}, "fallback": ["The Answer is: 7"]}))
    done = tool(
        "generate_answers", *given, "--model", script, "--split", "train", "--filter-difficulty",
        "--difficulty-labels", tmp_path / "labels", "--difficulty-lower", 4, "--num-samples", 2,
        "--out", tmp_path / "answers",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = tool("check_answers", "--answers", tmp_path / "answers")
    assert done.returncode == 0, done.stderr
    verdicts = [row["correct"] for row in read_rows(tmp_path / "answers" / "verdicts.jsonl")]
    assert verdicts == [True, True, False, False]


@pytest.mark.parametrize(
    ("dataset", "reasons"),
    [
        ("apps", ["match", "mismatch", "no_answer"]),
        ("taco", ["match", "no_answer"]),
        ("livecodebench", ["match", "match"]),
    ],
)
def test_programs_go_from_their_rows_to_verdicts(
    script: Path, tmp_path: Path, dataset: str, reasons: list[str]
) -> None:
    programs = {
        "Read two": "a, b = map(int, input().split())\nprint(a + b)",
        "Given a list": "class Solution:\n    def largest(self, nums):\n        return nums[0]",
        "Write a function": "def add(a, b):\n    return a + b",
        "Return how": "class Solution:\n    def count(self, words, least):\n        return words.count(words[0])",
        "Read n": "print(int(input()) ** 2)",
    }
    texts = {start: [f"So:\n```python\n{program}\n```"] for start, program in programs.items()}
    script.write_text(json.dumps({"answers": texts, "fallback": ["I do not know."]}))
    done = tool(
        "generate_answers", "--dataset", dataset, "--data-files", DATA / f"{dataset}.jsonl", "--engine", "scripted",
        "--model", script, "--num-samples", 2, "--out", tmp_path / "run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = tool("check_answers", "--answers", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    found = {row["answer_id"]: row["reason"] for row in read_rows(tmp_path / "run" / "verdicts.jsonl")}
    asked = [answer.id for answer in read_records(tmp_path / "run" / "answers.jsonl", Answer)]
    assert [found[name] for name in asked] == [reason for reason in reasons for _ in range(2)]
