"""The stages of the GSM8K study on the CPU, with their own configs over a tiny model: each begins where one ended."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import torch
from grpo_home import TUNE, environment, rows_of
from safetensors.torch import load_file
from tiny import write_tiny_model

from tt_reasoning.models import build_from_hf
from tt_reasoning.models.weights import check_shapes, load_weights

CONFIGS = Path(__file__).parents[2] / "configs"
NUM_PROBLEMS = 24


def run_stage(home: Path, stage: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    """A stage's config over the tiny model, as ``tune run`` starts it in ``home``."""
    recipe = "grpo_ssa_distributed" if stage == "grpo" else "lora_finetune_single_device"
    settings = [
        f"dataset.data_files={home / 'sums.jsonl'}", "model._component_=tt_reasoning.models.lora_from_hf",
        f"model.path={home / 'model'}",
    ]  # fmt: skip
    command = [*TUNE, recipe, "--config", str(CONFIGS / f"135M_asdiv_{stage}_cpu.yaml"), *settings, *overrides]
    knobs = {"PREP_TRAIN_SAMPLES": "8", "TRAIN_SAMPLES": "12", "NUM_GENERATIONS": "2", "OUTPUT_DIR": "runs"}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environment() | knobs, cwd=home, check=False
    )


def run_sft(home: Path, stage: str, *overrides: str) -> list[float]:
    """An SFT stage's losses, a row a step."""
    settings = ["tokenizer.max_seq_len=1500", "optimizer.lr=2e-2", "batch_size=1", *overrides]
    result = run_stage(home, stage, *settings)
    assert result.returncode == 0, result.stderr
    return read_losses(home, stage)


def read_losses(home: Path, stage: str) -> list[float]:
    (log,) = (home / "runs" / f"135M_asdiv_{stage}_cpu" / "logs").glob("*.txt")
    return [float(loss) for loss in re.findall(r"loss:([\d.]+)", log.read_text())]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, problems, and the prep stage's output."""
    home = tmp_path_factory.mktemp("study")
    write_tiny_model(home / "model")
    rows = [
        {"body": f"A nest has {n} eggs, another has 2.", "question": "How many?", "answer": f"{n + 2} (eggs)",
         "formula": f"{n}+2={n + 2}"}
        for n in range(NUM_PROBLEMS)
    ]  # fmt: skip
    (home / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    losses = run_sft(home, "prep_sft", f"checkpointer.checkpoint_dir={home / 'model'}")
    assert len(losses) == 8 and losses[-1] < losses[0]  # PREP_TRAIN_SAMPLES
    return home


def test_preps_adapter_is_what_was_merged_and_stands_apart_from_it(home: Path) -> None:
    left, base = home / "runs/135M_asdiv_prep_sft_cpu/epoch_0", load_file(home / "model/model.safetensors")
    check_shapes(build_from_hf(str(left)), load_weights(left), left)
    card = json.loads((left / "adapter/adapter_config.json").read_text())
    merged = load_file(left / "model-00001-of-00001.safetensors")
    adapter = load_file(left / "adapter/adapter_model.safetensors")
    layers = {name.removesuffix(".lora_A.weight") for name in adapter if name.endswith(".lora_A.weight")}
    assert len(layers) == 2 * 7  # four of attention, three of the MLP
    assert (card["peft_type"], card["base_model_name_or_path"]) == ("LORA", str(home / "model"))
    # Beside merged weights transformers would apply it once more.
    assert not {"adapter_config.json", "adapter_model.safetensors"} & {path.name for path in left.iterdir()}
    for layer in layers:  # as PEFT would compute it, in Hugging Face's order of rows
        name = layer.removeprefix("base_model.model.") + ".weight"
        product = adapter[f"{layer}.lora_B.weight"] @ adapter[f"{layer}.lora_A.weight"]
        assert name.split(".")[-2] in card["target_modules"] and product.abs().max() > 0
        assert torch.allclose(merged[name], base[name] + card["lora_alpha"] / card["r"] * product, atol=1e-5)


def test_full_sft_goes_on_from_prep_and_learns_the_first_problems_of_the_order(home: Path) -> None:
    losses, prep = run_sft(home, "full_sft"), read_losses(home, "prep_sft")
    assert len(losses) == 12  # TRAIN_SAMPLES
    assert losses[0] < (prep[0] + prep[-1]) / 2 and losses[-1] < losses[0]


def test_grpo_goes_on_from_prep_with_the_studys_prompt_and_reward(home: Path) -> None:
    result = run_stage(home, "grpo", "max_steps=2", "dataset.max_prompt_tokens=1500", "max_new_tokens=16")
    assert result.returncode == 0, result.stderr
    output = home / "runs/135M_asdiv_grpo_cpu/1_process"
    rows = rows_of(output / "completions.jsonl")
    assert [(row["step"], row["sample_index"]) for row in rows] == [(1, 0), (1, 1)] * 2 + [(2, 0), (2, 1)] * 2
    assert all(row["reward"] == pytest.approx(sum(row["parts"].values())) for row in rows)
    trained, start = load_weights(output / "step_2"), load_weights(home / "runs/135M_asdiv_prep_sft_cpu/epoch_0")
    assert trained.keys() == start.keys() and (output / "step_2/adapter/adapter_config.json").exists()


def test_a_size_above_the_data_is_said_and_nothing_is_written(home: Path) -> None:
    result = run_stage(home, "grpo", "dataset.num_samples=17", "output_dir=other")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert f"num_samples=17 is above the {NUM_PROBLEMS - 8} that held_back=8 leaves of the problems" in result.stderr
    assert not list((home / "other").glob("step_*"))
