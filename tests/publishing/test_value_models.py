"""What is published of value models, and of answers and results that one steered."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from guided_folders import WORLD, eta, write_guided
from loaded_tools import load_tool
from publish_plans import content, front, mistake, paths, plan
from tiny_values import write_value_model

from tt_reasoning import store


def make_run(run: Path, **card: object) -> Path:
    """A run of the recipe with a value model after 4 steps, measured then."""
    figures = {
        "step": 4, "problems": 8, "sequences": 64, "tokens": 2048, "good_share": 0.25, "loss": 0.5,
        "explained_variance": 0.125, "accuracy": 0.75, "auc": 0.7, "auc_low": 0.6, "auc_high": 0.8, "switch_auc": None,
    }  # fmt: skip
    with store.open_run(run, "qsharp_classifier", {"dataset": {"sources": ["/home/ada/rollouts/r1"]}}):
        store.write_records(run / "evaluations.jsonl", [figures | {"step": 0, "loss": 0.75}, figures])
    folder = write_value_model(run / "step_4", **card)
    row = json.loads((folder / "value.json").read_text()) | {"recipe": "qsharp_classifier", "step": 4}
    store.write_json(folder / "value.json", row)
    return folder


def test_a_value_model_says_what_it_is_how_it_steers_and_what_was_measured(tmp_path: Path) -> None:
    planned = plan(make_run(tmp_path / "run"), tmp_path, base_model="Qwen/Qwen2.5-0.5B")
    assert planned.repo_type == "model" and planned.kind == "value model"
    assert {"value.json", "value_head/model.safetensors", "value_head/value_head.json"} <= set(paths(planned))
    fields = front(planned.card)
    assert (fields["library_name"], fields["pipeline_tag"]) == ("tt-reasoning", "text-classification")
    assert {"value-model", "guided-decoding"} <= set(fields["tags"])
    card = re.sub(" {2,}", " ", planned.card)
    for line in (
        "A value model (Q#, [arXiv 2502.20548](https://arxiv.org/abs/2502.20548)), trained from [Qwen/Qwen2.5-0.5B]",
        "python tools/generate_answers.py --engine guided --model REFERENCE --value-model values/demo --eta 0 1 5 10 ",
        "--dataset gsm8k --prompt steps --num-samples 8 --out answers/guided\n",
        "python tools/rank_answers.py --answers ANSWERS --judge values/demo --out scores/run\n",
        "`eta` is the inverse of the paper's temperature: the larger, the harder it steers; 0 does not steer.",
        "Its rule is `bernoulli`: to the logit of a likely token is added ln(1 - p + p e^eta)",
        r'Answers stand behind the text `"Problem: {question}\nSolution:\n"` of the prompt `steps`',
        "A V head with one output is read in the state that has seen a token",
        "- recipe: `qsharp_classifier`, step 4",
        "| answers | 64 |", "| their tokens | 2,048 |", "| right answers % | 25.0 |", "| explained variance | 0.125 |",
        "| ROC-AUC, 95 % interval | 0.700 [0.600, 0.800] |",
        '"r1"',
        "can turn worse: measure both",
    ):  # fmt: skip
        assert line in card, line
    assert "/home/ada" not in planned.card and "AutoModel" not in planned.card


@pytest.mark.parametrize(
    ("card", "lines"),
    [
        (
            {"head": "Q", "loss": "categorical", "prompt": "answer"},
            ["A Q head with 5 outputs for returns from 0 to 1, for every token", "ln of the sum over returns z",
             'behind the chat, by the model\'s own chat template, `[{"role": "user"'],
        ),
        (
            {"target": "expectation", "eta": 5.0},
            ["--eta 0 5 --dataset", "It was trained for eta 5 alone.", "Its rule is `expectation`"],
        ),
    ],
    ids=["Q", "expectation"],
)  # fmt: skip
def test_the_card_speaks_of_this_head_and_target(tmp_path: Path, card: dict, lines: list[str]) -> None:
    planned = plan(write_value_model(tmp_path / "value", **card), tmp_path, license="mit")
    for line in lines:
        assert line in planned.card, line
    assert "## Evaluation" not in planned.card


def test_a_value_model_without_its_head_is_refused(tmp_path: Path) -> None:
    folder = write_value_model(tmp_path / "value")
    (folder / "value_head" / "value_head.json").unlink()
    assert "its value.json speaks of a value head, and value_head/value_head.json is not" in mistake(folder, tmp_path)


def test_steered_answers_name_their_guidance_and_no_folder_of_this_machine(tmp_path: Path) -> None:
    local = {
        guidance and replace(guidance, value_model="/home/ada/values/q"): rows
        for guidance, rows in {**WORLD, None: WORLD[eta(0)]}.items()
    }
    planned = plan(write_guided(tmp_path / "answers", local), tmp_path, license="mit")
    card = re.sub(" {2,}", " ", planned.card)
    for line in ("| guidance: eta | 0, 5, None |", "| guidance: value_model | None, q |"):
        assert line in card, line
    rows = [json.loads(line) for line in content(planned, "answers.jsonl").decode().splitlines()]
    assert {row["sampling"]["guidance"]["value_model"] for row in rows if row["sampling"]["guidance"]} == {"q"}
    (features,) = [
        info["features"] for info in front(planned.card)["dataset_info"] if info["config_name"] == "answers"
    ]
    assert {"name": "divergence", "struct": [
        {"name": "whole", "dtype": "float64"}, {"name": "sampled", "dtype": "float64"}
    ]} in features  # fmt: skip
    assert "/home/ada" not in planned.card


def test_evaluations_of_several_etas_are_published_one_by_one(tmp_path: Path) -> None:
    tool = load_tool("evaluate")
    answers = write_guided(tmp_path / "answers")
    tool.main(tool.Arguments(answers=answers, out=tmp_path / "out"))
    told = mistake(tmp_path / "out", tmp_path)
    assert told.endswith(f"out holds evaluations of several policies; name one: --folder {tmp_path}/out/eta_5")
    planned = plan(tmp_path / "out" / "eta_5", tmp_path, license="mit")
    assert "sampled by `models/tiny`, steered by `outputs/q/step_4` (eta=5), on 2 problems of demo" in planned.card
    assert "models/tiny, eta 5" in planned.card
