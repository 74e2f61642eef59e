"""generate_answers with a value model that steers: several etas in one folder, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from tiny import write_tiny_model
from tiny_values import write_value_model

from tt_reasoning.store import read_records
from tt_reasoning.types import Answer, problem_id

TOOL = [sys.executable, str(Path(__file__).parents[2] / "tools" / "generate_answers.py")]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    write_tiny_model(home / "policy")
    write_value_model(home / "value")
    rows = [{"question": f"{n} + {n}?", "answer": f"#### {2 * n}"} for n in range(3)]
    (home / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return home


def run(home: Path, out: str, *more: str) -> subprocess.CompletedProcess[str]:
    fixed = ["--model", "policy", "--dataset", "gsm8k", "--data-files", "problems.jsonl", "--max-new-tokens", "8"]
    fixed += ["--prompt", "steps", "--num-samples", "2", "--temperature", "1.0", "--chunk-size", "2", "--out", out]
    return subprocess.run([*TOOL, *fixed, *more], cwd=home, capture_output=True, text=True, timeout=300)


def test_every_eta_is_a_draw_of_its_own_and_eta_0_is_the_unguided_one(home: Path) -> None:
    guided = ["--engine", "guided", "--value-model", "value", "--guide-top-k", "5"]
    first = run(home, "answers", *guided, "--eta", "0")
    assert first.returncode == 0 and "learned behind" not in first.stderr, first.stderr
    more = run(home, "answers", *guided, "--eta", "0", "3", "--guide_rule", "mean")
    assert more.returncode == 2 and "guide_rule was 'auto', now 'mean'" in more.stderr
    more = run(home, "answers", *guided, "--eta", "0", "3")
    assert more.returncode == 0 and "6 were there" in more.stdout, more.stderr + more.stdout
    plain = run(home, "plain", "--engine", "tune")
    assert plain.returncode == 0, plain.stderr
    by_eta = defaultdict(dict)
    for answer in read_records(home / "answers" / "answers.jsonl", Answer):
        by_eta[answer.sampling.guidance.eta][answer.problem_id, answer.sample_index] = answer
        assert answer.divergence.sampled == pytest.approx(answer.divergence.whole, abs=2e-4)  # nothing is truncated
    unguided = {(a.problem_id, a.sample_index): a for a in read_records(home / "plain" / "answers.jsonl", Answer)}
    assert {key: a.text for key, a in by_eta[0].items()} == {key: a.text for key, a in unguided.items()}
    assert {a.id for a in by_eta[0].values()}.isdisjoint(a.id for a in unguided.values())
    assert all(a.divergence is None and a.sampling.guidance is None for a in unguided.values())
    assert all(a.divergence.whole == 0 for a in by_eta[0].values())
    assert all(a.divergence.whole > 0.01 and a.sampling.guidance.top_k == 5 for a in by_eta[3].values())
    assert len(by_eta[3]) == 6
    stats = json.loads((home / "answers" / "stats.json").read_text())
    assert sorted(stats) == ["1.0, eta 0", "1.0, eta 3"] and stats["1.0, eta 3"]["answers"] == 6


def test_the_problems_that_a_collection_held_out_are_asked_alone(home: Path) -> None:
    ids = [problem_id(f"{n} + {n}?") for n in range(3)]
    (home / "rounds").write_text(json.dumps({ids[0]: "train", ids[1]: "eval"}))  # the third was never collected
    found = run(home, "held", "--engine", "tune", "--held-out", "rounds")
    assert found.returncode == 0, found.stderr
    assert {answer.problem_id for answer in read_records(home / "held" / "answers.jsonl", Answer)} == {ids[1]}
    (home / "rounds").write_text(json.dumps(dict.fromkeys(ids, "train")))
    for name, told in (("rounds", "--held-out rounds holds out none of these problems"), ("nowhere", "no such file")):
        found = run(home, "none", "--engine", "tune", "--held-out", name)
        assert found.returncode == 2 and told in found.stderr and "Traceback" not in found.stderr, found.stderr
    assert not (home / "none").exists()


def test_a_value_model_that_learned_behind_another_prompt_is_warned_of(home: Path) -> None:
    guided = ["--engine", "guided", "--value-model", "value", "--eta", "1", "--limit", "1", "--prompt", "question"]
    found = run(home, "behind", *guided)
    assert found.returncode == 0, found.stderr
    assert "warning: --value-model value learned behind prompt steps, not question" in found.stderr


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--engine", "guided", "--eta", "1"], "--eta is about a value model that steers"),
        (["--engine", "guided", "--value-model", "value"], "such as --eta 0 1 5 10"),
        (["--engine", "guided", "--value-model", "value", "--eta", "-1"], "give numbers from 0 to 10000"),
        (["--engine", "guided", "--value-model", "policy", "--eta", "1"], "policy has no value.json"),
        (["--engine", "guided", "--value-model", "value", "--eta", "1", "--guide-top-k", "0"], "give 1 to 1024"),
        (["--engine", "guided"], "engine guided needs a value model"),
        (["--engine", "guided", "--value-model", "value", "--eta", "1", "--dtype", "fp16"], "takes fp32 or bf16"),
        (["--engine", "tune", "--dtype", "fp16"], "takes fp32 or bf16"),
        (["--engine", "tune", "--value-model", "value", "--eta", "1"], "option of engine tune"),
        (
            ["--engine", "guided", "--value-model", "value", "--eta", "1", "--guide-rule", "categorical"],
            "give bernoulli or mean",
        ),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_made(home: Path, options: list[str], told: str) -> None:
    found = run(home, "nothing", *options)
    assert found.returncode == 2 and told in found.stderr and "Traceback" not in found.stderr, found.stderr
    assert not (home / "nothing").exists()
