"""What is published of judges, labelled steps, scores and rows to learn from; the figures worked by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from judge_home import write_home
from prm800k_rows import FOUND_ERROR, PHASE_1, SOLVED, write_rows
from publish_plans import content, front, mistake, paths, plan
from tiny_judges import write_card_judge, write_value_judge

from tt_reasoning import store
from tt_reasoning.judges.held_out import record_evaluation
from tt_reasoning.prm800k import Rules, build_labels
from tt_reasoning.sft_data import RejectedRow, SFTRow
from tt_reasoning.solutions import RejectedSolution, SolutionRow
from tt_reasoning.types import Answer, Sampling, Score, Step

SOLUTIONS: list[tuple[Sequence[float], Sequence[float]]] = [  # scores and labels of their steps
    ([0.9, 0.2], [1.0, 0.0]), ([0.8, 0.4], [1.0, 0.0]), ([0.3], [1.0]), ([0.9], [1.0])
]  # fmt: skip


def measure(run: Path, step: int, shift: float = 0.0) -> None:
    """A row of ``evaluations.jsonl``; scores are lower by ``shift``."""
    record_evaluation(run, step, [
        {"place": place, "problem_id": str(place // 2), "answer_id": str(place),
         "scores": [score - shift for score in scores], "targets": labels, "labels": labels}
        for place, (scores, labels) in enumerate(SOLUTIONS)
    ])  # fmt: skip


def make_run(run: Path, recipe: str = "prm_nexttok", **card: object) -> Path:
    """A run of a recipe with a judge after 4 steps, measured at 0 and 4."""
    with store.open_run(run, recipe, {"checkpoint": "/home/ada/tiny", "dataset": {"source": "/home/ada/steps"}}):
        measure(run, 0, shift=0.2)
        measure(run, 4)
    folder = write_card_judge(run / "step_4", **card)
    row = json.loads((folder / "judge.json").read_text()) | {"recipe": "prm_nexttok", "step": 4}
    store.write_json(folder / "judge.json", row)
    (folder / "training_state.pt").write_bytes(b"PK\x03\x04")
    return folder


def test_a_step_judge_says_what_it_reads_how_to_rank_and_what_was_measured(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    planned = plan(folder, tmp_path, base_model="Qwen/Qwen2.5-0.5B")
    assert planned.repo_type == "model" and "judge.json" in paths(planned)
    assert planned.left_out == {"training_state.pt": "a pickle: loading it can run code"}
    fields = front(planned.card)
    assert fields["pipeline_tag"] == "text-classification" and fields["license"] == "apache-2.0"
    assert fields["library_name"] == "tt-reasoning" and "process-reward-model" in fields["tags"]
    card = re.sub(" {2,}", " ", planned.card)  # tables are set in columns
    # Of 4 right and 2 wrong labels 7 of 8 pairs are in order; both errors are found, one right solution is accused.
    for line in (
        "A step judge (process reward model), trained from [Qwen/Qwen2.5-0.5B]",
        "hf download user/demo --local-dir judges/demo\n"
        "python tools/rank_answers.py --answers ANSWERS --judge judges/demo --out scores/run\n",
        r'It is shown `"Problem: {question}\nSolution:\n{step 1}\n{step 2}\n"`',
        r'Behind each step stands `"\n"`. The score is the softmax of two logits',
        'of `"+"` (right) against `"-"` (wrong)',
        "- recipe: `prm_nexttok`, step 4",
        "| problems | 2 |",
        "| labels | 6 |",
        "| ROC-AUC, 95 % interval | 0.875 [0.875, 1.000] |",
        "| first-error F1 (ProcessBench) | 0.667 |",
        "| accuracy % | 83.3 |",
        "Of 2 measurements of the run on these problems this one has the lowest loss",
        '"source": "steps"',
    ):
        assert line in card, line
    assert "/home/ada" not in planned.card and "AutoModel" not in planned.card


def test_an_outcome_judge_alone_shows_no_figures_and_its_tokens_stay_as_they_are(tmp_path: Path) -> None:
    folder = write_card_judge(tmp_path / "judge", outcome=True, step_token="/srv/data", good="`", bad="..")
    planned = plan(folder, tmp_path, license="mit")
    assert content(planned, "judge.json") == (folder / "judge.json").read_bytes()
    assert "An outcome judge (outcome reward model): " in planned.card and "scores every answer in" in planned.card
    assert r'shown `"Problem: {question}\nSolution:\n{solution}/srv/data"`' in planned.card
    assert 'of `` "`" `` (right) against `".."` (wrong)' in planned.card
    assert "## Evaluation" not in planned.card and "## How it was made" not in planned.card


def test_a_verifier_comes_with_its_head(tmp_path: Path) -> None:
    folder = write_value_judge(tmp_path / "judge")
    planned = plan(folder, tmp_path, license="mit")
    assert {"value_head/model.safetensors", "value_head/value_head.json"} <= set(paths(planned))
    assert "A verifier ([arXiv 2110.14168]" in planned.card and "verifier" in front(planned.card)["tags"]
    assert r'shown `"Problem: {question}\nSolution:\n{solution}"`' in planned.card
    assert "read at the last token of the solution; the score is the sigmoid of its value." in planned.card
    (folder / "value_head" / "value_head.json").unlink()
    assert "its judge.json speaks of a value head, and value_head/value_head.json is not" in mistake(folder, tmp_path)


@pytest.mark.parametrize("change", ["copied out", "another recipe", "not measured"])
def test_figures_are_those_of_this_step_of_this_run_or_none(tmp_path: Path, change: str) -> None:
    run = tmp_path / "run"
    folder = make_run(run, "grpo_ssa_distributed" if change == "another recipe" else "prm_nexttok")
    if change == "copied out":
        folder = folder.rename(run / "my-judge")
    elif change == "not measured":
        store.write_records(run / "evaluations.jsonl", list(store.read_rows(run / "evaluations.jsonl"))[:1])
    card = plan(folder, tmp_path, license="mit").card
    assert "## Evaluation" not in card and "A step judge" in card


def test_a_link_to_the_best_step_is_that_step(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    (tmp_path / "run" / "best").symlink_to("step_4")
    assert "| ROC-AUC" in plan(tmp_path / "run" / "best", tmp_path, license="mit").card


def test_steps_of_prm800k_are_a_dataset_under_its_licence(tmp_path: Path) -> None:
    write_rows(tmp_path / "labels.jsonl", [PHASE_1, FOUND_ERROR, SOLVED])
    build_labels([tmp_path / "labels.jsonl"], Rules(), tmp_path / "steps")
    planned = plan(tmp_path / "steps", tmp_path)
    fields = front(planned.card)
    assert fields["license"] == "mit" and planned.license_asked is None and fields["language"] == ["en"]
    assert [config["config_name"] for config in fields["configs"]] == ["steps", "answers", "problems"]
    for line in (
        "26 steps of 11 solutions, or beginnings of solutions, to 1 problems, rated by people: PRM800K",
        "- 33.3 % of 15 rated steps are right (1: 5, 0: 4, -1: 6)\n- 11 steps have no rating\n",
        "| prm800k   | train |        1 | MIT     | https://github.com/openai/prm800k |",
        "Solutions and ratings are those of PRM800K",
        "--repo-type dataset --local-dir steps/demo\ntune run prm_nexttok --config CONFIG dataset.source=steps/demo",
    ):
        assert line in planned.card, line
    assert "were sampled with" not in planned.card  # nobody knows


def make_shepherd_steps(home: Path) -> Path:
    """Steps by rollouts: 24 answers of two steps, 8 of them with their first and 8 with their second step wrong."""
    folder = write_home(home) / "steps"
    arguments = {"model": "/home/ada/tiny", "rollouts": 8, "answers": f"{home}/answers"}
    store.write_json(folder / "manifest.json", {"tool": "build_step_labels shepherd", "arguments": arguments})
    store.write_json(folder / "stats.json", {"rollouts": 24, "unfinished": 3})
    sampling = Sampling(model="/home/ada/tiny", prompt="steps")
    rollout = Answer(
        id="r", problem_id="p", sample_index=0, text="in /home/ada", num_tokens=1, finish_reason="stop",
        sampling=sampling,
    )  # fmt: skip
    store.write_records(folder / "rollouts.jsonl", [rollout])
    return folder


def test_steps_by_rollouts_are_published_with_the_rollouts(tmp_path: Path) -> None:
    folder = make_shepherd_steps(tmp_path)
    planned = plan(folder, tmp_path)
    assert [config["config_name"] for config in front(planned.card)["configs"]] == [
        "steps", "answers", "problems", "verdicts", "rollouts"
    ]  # fmt: skip
    for line in (
        "48 steps of 24 answers that `m` sampled to 8 problems, labelled by rollouts (Math-Shepherd, ",
        "`tiny` went on from each step up to 8 times",
        "- 66.7 % of 48 rated steps are right (1: 32, -1: 16)\n- 48 steps have a `score`",
        "| unfinished |     3 |",
    ):
        assert line in planned.card, line
    assert planned.license_asked == "the licence of s is not known"
    assert json.loads(content(planned, "rollouts.jsonl"))["sampling"]["model"] == "tiny"
    assert json.loads(content(planned, "rollouts.jsonl"))["text"] == "in /home/ada"
    steps = list(store.read_records(folder / "steps.jsonl", Step))
    store.write_records(folder / "steps.jsonl", steps[:-2])
    assert mistake(folder, tmp_path).endswith(
        "is not finished: steps.jsonl has steps of 23 of 24 answers and of 0 others; run build_step_labels again"
    )


def test_scores_are_a_dataset_that_names_its_judge(tmp_path: Path) -> None:
    folder, steps = tmp_path / "scores", [0.5, 0.25]
    with store.open_run(folder, "rank_answers", {"answers": "/a/demo", "judge": "/a/b/prm", "aggregate": "min"}):
        store.write_records(folder / "steps.jsonl", [
            Step(answer_id="x", index=i, start=2 * i, end=2 * i + 1, score=score) for i, score in enumerate(steps)
        ])  # fmt: skip
        store.write_records(folder / "skipped.jsonl", [{"answer_id": "y", "reason": "too_long"}])
    assert mistake(folder, tmp_path).endswith("is not finished: no scores.jsonl; run rank_answers again to finish it")
    store.write_records(folder / "scores.jsonl", [Score(answer_id="x", score=0.25)])
    planned = plan(folder, tmp_path, license="mit")
    assert "What the judge `prm` said of 1 answers of `demo`, which are not in here" in planned.card
    assert (
        "each answer is one)\n- `scores.jsonl`: one score an answer, the min of its steps\n- `skipped" in planned.card
    )
    assert [config["config_name"] for config in front(planned.card)["configs"]] == ["scores", "steps", "skipped"]
    store.write_records(folder / "scores.jsonl", [])
    assert mistake(folder, tmp_path).endswith("are of other answers; run rank_answers again")


ROW = SFTRow(
    index=0, question="2 + 2?", expected_answer="4", model_response="2 + 2 = 4", extracted_answer="4", is_correct=True,
    problem_id="p", answer_id="a",
)  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "source", "who"),
    [
        (
            {"answers": ["/home/ada/my_runs/demo"], "dataset": None, "split": "train"},
            "/home/ada/my_runs/qwen",
            "`qwen`",
        ),
        ({"answers": [], "dataset": "gsm8k", "split": "train"}, "reference", "the benchmark"),
    ],
    ids=["answers", "benchmark"],
)
def test_solutions_to_learn_from_name_who_wrote_them_and_no_folder(
    tmp_path: Path, arguments: dict[str, object], source: str, who: str
) -> None:
    folder, kept = tmp_path / "sft", SolutionRow(**asdict(ROW), num_steps=2, source=source)
    with store.open_run(folder, "collect_solutions", arguments):
        store.write_records(folder / "sft.jsonl", [kept])
        rejected = RejectedSolution(**asdict(replace(kept, problem_id="q")), reason="wrong", detail="in /home/ada")
        store.write_records(folder / "rejected.jsonl", [rejected])
        store.write_json(folder / "stats.json", {"num_kept": 1, "sources": {source: 1}})
    planned = plan(folder, tmp_path)
    assert f"1 solutions in steps, written by {who}, for a generator to learn from. A grader" in planned.card
    assert "- `rejected.jsonl`: 1 more, with the `reason`" in planned.card
    assert [config["config_name"] for config in front(planned.card)["configs"]] == ["sft", "rejected"]
    assert json.loads(content(planned, "sft.jsonl"))["source"] == source.rpartition("/")[2]
    assert json.loads(content(planned, "rejected.jsonl"))["detail"] == "in /home/ada"
    assert "home" not in planned.card and "my" not in planned.card
    assert front(planned.card)["license"] == ("mit" if who == "the benchmark" else "other")


def test_justifications_to_learn_from_name_their_writer(tmp_path: Path) -> None:
    folder = tmp_path / "sft"
    answer = Answer(
        id="a", problem_id="p", sample_index=0, text="so 4", num_tokens=2, finish_reason="stop",
        sampling=Sampling(model="gpt", prompt="ssa_oracle"),
    )  # fmt: skip
    with store.open_run(folder, "create_sft_data", {"sets": "sets/train", "model": "gpt"}):
        store.write_records(folder / "justifications.jsonl", [answer])
        store.write_records(folder / "sft.jsonl", [ROW])
        store.write_records(folder / "rejected.jsonl", [RejectedRow(**asdict(ROW), reason="leak", detail="x")])
    assert "no stats.json; run create_sft_data again" in mistake(folder, tmp_path)
    store.write_json(folder / "stats.json", {"num_kept": 1, "missing": 0})
    planned = plan(folder, tmp_path)
    assert "1 justifications by `gpt`, for an aggregator to learn from" in planned.card
    assert [config["config_name"] for config in front(planned.card)["configs"]] == ["sft", "rejected", "justifications"]
    assert planned.license_asked == "the licence of the content is not known"
