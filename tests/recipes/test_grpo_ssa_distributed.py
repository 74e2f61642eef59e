"""The recipe as a user runs it: through ``tune run``, on one process and two, killed, mistyped, repeated."""

from __future__ import annotations

import json
import random
import socket
import subprocess
import time
from pathlib import Path

import pytest
import torch
from grpo_home import TUNE, command, environment, metrics, num_logged, run, run_until, write_home
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def whole(home: Path) -> Path:
    """A run of four steps that nothing disturbs."""
    result = run(command(home, "whole", "max_steps=4", "gradient_accumulation_steps=2", "save_every_n_steps=2"))
    assert result.returncode == 0, result.stderr
    assert f"done: 4 steps -> {home / 'whole' / 'step_4'}" in result.stdout
    return home / "whole"


def test_training_changes_the_weights_and_logs_every_step(home: Path, whole: Path) -> None:
    rows = metrics(whole)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    names = {"reward", "success", "completion_tokens", "cut_share", "kl", "grad_norm", "lr", "loss", "judged_share"}
    assert all(names <= row.keys() for row in rows)
    assert any(row["grad_norm"] > 0 for row in rows)
    timing = json.loads((whole / "metrics.jsonl").read_text().splitlines()[0])
    assert {"seconds_rollout", "seconds_grade", "seconds_reference", "seconds_update", "tokens_per_s"} <= timing.keys()
    before, after = (load_file(path / "model.safetensors") for path in (home / "model", whole / "step_4"))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_completions_are_kept_with_their_rewards(whole: Path) -> None:
    rows = [json.loads(line) for line in (whole / "completions.jsonl").read_text().splitlines()]
    assert len(rows) == 4 * 2 * 4  # steps x prompts x group
    first = metrics(whole)[0]
    rewards = [row["reward"] for row in rows if row["step"] == 1]
    assert first["reward"] == pytest.approx(sum(rewards) / len(rewards))
    assert all(row["reward"] == sum(row["parts"].values()) for row in rows)
    assert len({row["text"] for row in rows}) > len(rows) / 2


def test_the_checkpoint_is_a_hugging_face_folder_that_says_which_prompt_it_was_trained_with(whole: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(whole / "step_4")
    assert model.num_parameters() > 0
    assert json.loads((whole / "step_4" / "aggregator.json").read_text())["prompt"] == "ssa_no_think"


def test_two_processes_compute_the_loss_of_one(home: Path, whole: Path) -> None:
    """Two processes with one prompt each against one process with two: the same prompts, samples and steps.

    Only the order of fp32 sums differs (gradients are averaged across processes in place of added up one
    after another), so the tolerance is that of fp32 after four optimizer steps: 1e-4 relative.
    """
    result = run(command(home, "two", "max_steps=4", processes=2))
    assert result.returncode == 0, result.stderr
    one, two = metrics(whole), metrics(home / "two")
    assert len(one) == len(two) == 4
    for row_one, row_two in zip(one, two, strict=True):
        assert row_one.keys() == row_two.keys()
        for name in row_one:
            assert row_two[name] == pytest.approx(row_one[name], rel=1e-4, abs=1e-5), name
    samples = [
        sorted((r["step"], r["problem_id"], r["sample_index"], r["text"], r["reward"]) for r in rows)
        for rows in (map(json.loads, (f / "completions.jsonl").read_text().splitlines()) for f in (whole, home / "two"))
    ]
    assert samples[0] == samples[1]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_killed_at_random_points_ends_with_the_same_weights_and_metrics(home: Path, processes: int) -> None:
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    settings = ["max_steps=24", "save_every_n_steps=2", "keep_checkpoints=3"]
    words = command(home, f"killed_{processes}", *settings, processes=processes)
    killed, never = home / f"killed_{processes}", home / f"never_{processes}"
    points = [chance.randrange(2, 8), chance.randrange(9, 15), chance.randrange(16, 22)]
    for number, point in enumerate(points):
        delay = chance.random() * 0.05

        def is_time(number: int = number, point: int = point, delay: float = delay) -> bool:
            if num_logged(killed) < point:
                return False
            if number == 1:  # in the middle of a checkpoint
                return bool(list(killed.glob(".step_*.tmp")))
            time.sleep(delay)
            return True

        assert run_until(words, is_time), f"ended before it could be killed at step {point}, seed {seed}"
    result = run(words)
    assert result.returncode == 0, result.stderr
    assert "going on from step" in result.stdout
    assert run(command(home, f"never_{processes}", *settings, processes=processes)).returncode == 0
    assert metrics(killed) == metrics(never) and len(metrics(never)) == 24, f"seed {seed}, points {points}"
    assert (killed / "completions.jsonl").read_bytes() == (never / "completions.jsonl").read_bytes()
    weights = [load_file(folder / "step_24" / "model.safetensors") for folder in (killed, never)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
    assert not list(killed.glob(".step_*.tmp"))


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_used(home: Path) -> None:
    settings = ["max_steps=6", "save_every_n_steps=2", "keep_checkpoints=3"]
    words = command(home, "damaged", *settings)
    assert run(words).returncode == 0
    before = metrics(home / "damaged")
    weights = (home / "damaged" / "step_6" / "model.safetensors").read_bytes()
    state = home / "damaged" / "step_6" / "training_state.pt"
    state.write_bytes(state.read_bytes()[:-1000])
    result = run(words)
    assert result.returncode == 0, result.stderr
    assert "step_6" in result.stdout and "going on from step 4" in result.stdout
    assert metrics(home / "damaged") == before
    assert (home / "damaged" / "step_6" / "model.safetensors").read_bytes() == weights
    assert (home / "damaged" / "step_6.damaged").exists()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_two_nodes_of_one_process_compute_what_two_processes_of_one_node_do(home: Path) -> None:
    """Two torchrun agents that meet at an endpoint, as on two machines that share a folder."""
    assert run(command(home, "one_node", "max_steps=3", processes=2)).returncode == 0
    launcher = ("--nnodes", "2", "--nproc_per_node", "1", "--rdzv_backend", "c10d", "--rdzv_id", "tests")
    launcher += ("--rdzv_endpoint", f"127.0.0.1:{free_port()}")
    words = command(home, "two_nodes", "max_steps=3", launcher=launcher)
    nodes = [
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment())
        for _ in range(2)
    ]
    said = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert metrics(home / "two_nodes") == metrics(home / "one_node")
    assert sum("done: 3 steps" in text for text in said) == 1


@pytest.mark.parametrize("processes", [1, 2])
def test_bf16_activation_checkpointing_and_a_fused_optimizer_train_and_save_cleanly(home: Path, processes: int) -> None:
    settings = ["max_steps=2", "dtype=bf16", "enable_activation_checkpointing=true", "optimizer.fused=true"]
    result = run(command(home, f"bf16_{processes}", *settings, processes=processes))
    assert result.returncode == 0, result.stderr
    before = load_file(home / "model" / "model.safetensors")
    after = load_file(home / f"bf16_{processes}" / "step_2" / "model.safetensors")
    assert after.keys() == before.keys()
    assert all(tensor.dtype == torch.bfloat16 and tensor.isfinite().all() for tensor in after.values())
    assert any(not torch.equal(after[name], before[name].bfloat16()) for name in after)


@pytest.mark.parametrize("loss", ["DrGRPOLoss", "DAPOLoss"])
def test_every_loss_is_the_same_on_one_process_and_two(home: Path, loss: str) -> None:
    """Without a KL term groups of equal reward are left out, so processes may compute different numbers of groups."""
    settings = ["max_steps=3", f"loss._component_=tt_reasoning.losses.{loss}", "loss.kl_coeff=0.0", "~loss.epsilon"]
    settings.append("reward._component_=reward_of_tests.RareReward")
    one = run(command(home, f"{loss}_1", *settings, "gradient_accumulation_steps=2"))
    two = run(command(home, f"{loss}_2", *settings, processes=2))
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    rows = metrics(home / f"{loss}_1"), metrics(home / f"{loss}_2")
    assert any(row["grad_norm"] > 0 for row in rows[0]) and any(row["active_groups"] < 2 for row in rows[0])
    for row_one, row_two in zip(*rows, strict=True):
        for name in row_one.keys() - {"computed_share"}:
            assert row_two[name] == pytest.approx(row_one[name], rel=1e-4, abs=1e-5), name


def test_only_the_newest_checkpoints_are_kept(home: Path) -> None:
    result = run(command(home, "kept", "max_steps=5", "save_every_n_steps=1", "keep_checkpoints=2"))
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in (home / "kept").glob("*step_*")) == ["step_4", "step_5"]


def test_a_mistake_on_two_processes_is_said_and_hides_behind_no_other(home: Path) -> None:
    words = command(home, "mistake_2", "model=tt_reasoning.models.smollm2_135m", "~model.path", processes=2)
    result = run([word for word in words if "model.path=" not in word and word != "~model.path"])
    assert result.returncode != 0
    assert "does not fit the model of the config" in result.stderr and "Connection closed" not in result.stderr


def test_a_finished_run_is_not_run_again(home: Path, whole: Path) -> None:
    before = (whole / "metrics.jsonl").read_bytes()
    result = run(command(home, "whole", "max_steps=4", "gradient_accumulation_steps=2", "save_every_n_steps=2"))
    assert result.returncode == 0 and "already trained" in result.stdout
    assert (whole / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["group_sise=4"], "unknown config key 'group_sise': did you mean 'group_size'?"),
        (["group_size=1"], "config key group_size: 1 is below 2"),
        (["clip_grad_norm=0"], "config key clip_grad_norm: 0 is not above 0"),
        (["max_new_tokens=2000"], "above the model's 2048; lower dataset.max_prompt_tokens or max_new_tokens"),
        (["dataset.source=nowhere"], "dataset.source=nowhere is no folder of answer sets"),
        (["dataset.prompt=sssa"], "unknown prompt 'sssa': did you mean 'ssa'?"),
        (["dataset.max_prompt_tokens=5"], "all of it (8 prompts) is above max_prompt_tokens=5"),
        (["checkpoint=nowhere"], "nowhere"),
        (["device=cuda"], "torch sees no GPU here"),
        (["model=tt_reasoning.models.smollm2_135m", "~model.path"], "does not fit the model of the config"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_status_2(home: Path, tmp_path: Path, overrides: list[str], message: str) -> None:
    if overrides == ["device=cuda"] and torch.cuda.is_available():
        overrides, message = ["device=cud"], "wanted 'auto' or 'cpu' or 'cuda'"
    words = [word for word in command(home, "mistake") if "model.path=" not in word or "~model.path" not in overrides]
    result = run([*words, *(word for word in overrides if word != "~model.path")])
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.returncode == 2, result.stderr
    assert len(errors) == 1 and message in errors[0]
    assert "Traceback" not in result.stderr


def test_a_missing_config_file_is_one_line_and_status_2() -> None:
    result = run([*TUNE, "grpo_ssa_distributed", "--config", "configs/3B_rll.yaml"])
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "no such config: configs/3B_rll.yaml" in result.stderr


def test_a_folder_of_another_run_is_refused_and_left_alone(home: Path, whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file() and path.name != ".lock"}
    result = run(command(home, "whole", "max_steps=4", "gradient_accumulation_steps=2", "seed=7"))
    assert result.returncode == 2 and "seed was 42, now 7" in result.stderr
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file() and p.name != ".lock"} == before
