"""What the options of the GRPO recipe do, each in a run of a few steps."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import grpo_ssa_distributed
import pytest
import torch
from grpo_home import command, metrics, rows_of, run, run_here, write_home
from safetensors.torch import load_file

from tt_reasoning.errors import UserError


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_home(tmp_path_factory.mktemp("home"))


NO_KL = ["loss._component_=tt_reasoning.losses.DAPOLoss", "loss.kl_coeff=0.0", "~loss.epsilon"]


def assert_close_metrics(one: Path, two: Path) -> None:
    for row_one, row_two in zip(metrics(one), metrics(two), strict=True):
        assert row_one.keys() == row_two.keys()
        for name in row_one:
            assert row_two[name] == pytest.approx(row_one[name], rel=1e-4, abs=1e-5), name


def test_groups_in_one_row_and_any_attention_train_alike(home: Path) -> None:
    plain = run_here(home, "plain", "max_steps=3", "batch_size=3")
    assert any(row["grad_norm"] > 0 for row in metrics(plain))
    assert_close_metrics(plain, run_here(home, "packed", "max_steps=3", "batch_size=3", "pack_tokens=2000"))
    assert_close_metrics(plain, run_here(home, "dense", "max_steps=3", "batch_size=3", "attention=dense"))


@pytest.mark.parametrize("loss", [[], NO_KL], ids=["kl", "no_kl"])
def test_packed_rows_are_as_many_on_every_process(home: Path, loss: list[str]) -> None:
    name = "kl" if not loss else "no_kl"
    options = [*loss, "max_steps=3", "pack_tokens=1100", "reward._component_=reward_of_tests.RareReward"]
    one = run_here(home, f"rows_{name}_1", *options, "batch_size=6")
    result = run(command(home, f"rows_{name}_2", *options, "batch_size=3", processes=2))
    assert result.returncode == 0, result.stderr
    rows = metrics(one), metrics(home / f"rows_{name}_2")
    assert any(row["grad_norm"] > 0 for row in rows[0])
    for row_one, row_two in zip(*rows, strict=True):
        for key in row_one.keys() - {"computed_share"}:
            assert row_two[key] == pytest.approx(row_one[key], rel=1e-4, abs=1e-5), key


def test_several_updates_a_rollout_leave_the_policy_that_sampled(home: Path) -> None:
    once = metrics(run_here(home, "once", "max_steps=2", "optimizer.lr=3e-2", "lr_scheduler=null"))
    thrice_folder = run_here(
        home, "thrice", "max_steps=2", "optimizer.lr=3e-2", "lr_scheduler=null", "updates_per_rollout=3"
    )
    thrice = metrics(thrice_folder)
    assert all(row["clipped_share"] == 0 for row in once)  # the ratio is 1
    assert any(row["clipped_share"] > 0 for row in thrice)
    assert once[0]["reward"] == thrice[0]["reward"]  # the first rollout knows nothing of the updates


def test_dynamic_sampling_draws_until_enough_groups_differ(home: Path) -> None:
    rare = ["reward._component_=reward_of_tests.RareReward", "max_steps=4", "batch_size=3", *NO_KL]
    plain = metrics(run_here(home, "no_dynamic", *rare))
    dynamic = ["dynamic_sampling.min_active_groups=3", "dynamic_sampling.max_resample=20"]
    found = run_here(home, "dynamic", *rare, *dynamic)
    assert any(row["active_groups"] < 3 for row in plain)
    assert all(row["active_groups"] == 3 for row in metrics(found))
    assert all(row["drawn_groups"] % 3 == 0 for row in metrics(found))
    assert any(row["drawn_groups"] > 3 for row in metrics(found))
    drawn = [row["drawn_groups"] for row in metrics(found)]
    assert len(rows_of(found / "completions.jsonl")) == 4 * sum(drawn)
    few = ["dynamic_sampling.min_active_groups=3", "dynamic_sampling.max_resample=1"]
    assert all(row["drawn_groups"] <= 6 for row in metrics(run_here(home, "dynamic_few", *rare, *few)))


def test_dynamic_sampling_goes_on_where_it_stood_in_the_data(home: Path) -> None:
    options = ["reward._component_=reward_of_tests.RareReward", "batch_size=2", *NO_KL, "save_every_n_steps=2"]
    options += ["dynamic_sampling.min_active_groups=2", "dynamic_sampling.max_resample=9", "lr_scheduler=null"]
    whole = run_here(home, "dynamic_whole", *options, "max_steps=4")
    again = home / "dynamic_again"
    run_here(home, "dynamic_again", *options, "max_steps=4")
    for name in ("step_4", "metrics.jsonl"):  # as if killed after step 2 was saved
        path = again / name
        os.rename(path, again / f"gone_{name}")
    again.joinpath("metrics.jsonl").write_text("".join((again / "gone_metrics.jsonl").read_text().splitlines(True)[:2]))
    run_here(home, "dynamic_again", *options, "max_steps=4")
    assert metrics(again) == metrics(whole)
    assert (again / "completions.jsonl").read_bytes() == (whole / "completions.jsonl").read_bytes()


def test_a_part_that_takes_away_is_logged_as_one_that_gives(home: Path) -> None:
    output = run_here(home, "penalty", "reward._component_=reward_of_tests.PenaltyReward", "max_steps=2")
    for row in metrics(output):
        assert row["reward/low"] < 0 < row["reward/high"]
        assert row["reward"] == pytest.approx(row["reward/low"] + row["reward/high"])


def test_masked_truncated_completions_give_no_gradient(home: Path) -> None:
    """A random model hardly ever ends by itself, so at 8 tokens nearly everything is cut."""
    cut = metrics(run_here(home, "masked", "max_steps=3", "mask_truncated_completions=true", "loss.kl_coeff=0.0"))
    plain = metrics(run_here(home, "unmasked", "max_steps=3", "loss.kl_coeff=0.0"))
    assert cut[0]["cut_share"] == plain[0]["cut_share"] > 0.5
    assert cut[0]["grad_norm"] < plain[0]["grad_norm"]
    rows = [row for row in rows_of(home / "masked" / "completions.jsonl") if row["finish_reason"] == "length"]
    assert rows and all(row["advantage"] == 0 for row in rows)
    assert len({row["reward"] for row in rows}) > 1  # they are still graded and part of their group's mean


def evaluation(home: Path, every: int) -> list[str]:
    return [
        f"evaluation.every_n_steps={every}",
        "evaluation.dataset._component_=tt_reasoning.datasets.ssa_dataset",
        f"evaluation.dataset.source={home / 'sets'}",
        "evaluation.dataset.prompt=ssa_no_think",
    ]


def test_held_out_accuracy_is_measured_and_the_best_checkpoint_kept(home: Path) -> None:
    options = [*evaluation(home, 2), "max_steps=5", "keep_checkpoints=1", "save_every_n_steps=1"]
    found = run_here(home, "evaluated", *options)
    rows = rows_of(found / "evaluations.jsonl")
    assert [row["step"] for row in rows] == [0, 2, 4, 5]
    assert all(row["num_problems"] == 8 and row["low"] <= row["accuracy"] <= row["high"] for row in rows)
    best = max(rows, key=lambda row: row["accuracy"])
    kept = {f"step_{best['step']}", "step_5"} - {"step_0"}
    assert {path.name for path in found.glob("step_*")} == kept
    assert (found / "best").exists() == (best["step"] > 0)


def test_evaluation_changes_no_training(home: Path) -> None:
    with_it = run_here(home, "with_evaluation", *evaluation(home, 1), "max_steps=3")
    without = run_here(home, "without_evaluation", "max_steps=3")
    assert metrics(with_it) == metrics(without)


def test_evaluation_is_the_same_on_two_processes(home: Path) -> None:
    one = run_here(home, "evaluation_1", *evaluation(home, 2), "max_steps=2", "batch_size=2")
    result = run(command(home, "evaluation_2", *evaluation(home, 2), "max_steps=2", processes=2))
    assert result.returncode == 0, result.stderr
    assert rows_of(home / "evaluation_2" / "evaluations.jsonl") == rows_of(one / "evaluations.jsonl")


def test_the_first_of_the_best_checkpoints_stays_while_newer_ones_come(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a random model answers is never right, so the accuracies are given here."""
    right = [1, 3, 5, 4, 5, 2]  # of eight, after each step
    measure = grpo_ssa_distributed.report_evaluation

    def report(run: grpo_ssa_distributed.Run, step: int, rows: list[dict]) -> dict:
        for number, row in enumerate(rows):
            row["correct"] = number < right[step]
        return measure(run, step, rows)

    monkeypatch.setattr(grpo_ssa_distributed, "report_evaluation", report)
    found = run_here(home, "first_best", *evaluation(home, 1), "max_steps=5", "keep_checkpoints=1")
    assert [row["accuracy"] for row in rows_of(found / "evaluations.jsonl")] == [n / 8 for n in right]
    assert {path.name for path in found.glob("step_*")} == {"step_2", "step_5"}
    assert (found / "best").resolve() == (found / "step_2").resolve()


@pytest.mark.parametrize(
    ("logger", "extra", "pattern"),
    [
        ("StdoutLogger", ["~metric_logger.log_dir", "~metric_logger.filename"], None),
        ("TensorBoardLogger", ["~metric_logger.filename"], "**/events.out.tfevents.*"),
        ("WandBLogger", ["~metric_logger.filename"], "**/*.wandb"),
        ("DiskLogger", [], "**/log.txt"),
    ],
)
def test_every_logger_of_torchtune_gets_the_metrics(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
    logger: str,
    extra: list[str],
    pattern: str | None,
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    found = run_here(
        home, logger, "max_steps=2", f"metric_logger._component_=torchtune.training.metric_logging.{logger}", *extra
    )
    if pattern is None:
        assert "reward:" in capfd.readouterr().out
        return
    (file,) = [path for path in found.glob(pattern) if path.is_file()]
    assert file.stat().st_size > 0
    if logger == "TensorBoardLogger":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(file)).Reload()
        rewards = [event.tensor_proto.float_val[0] for event in events.Tensors("reward")]
        assert rewards == pytest.approx([row["reward"] for row in metrics(found)])


def test_the_profiler_writes_a_trace_of_the_steps_asked_for(home: Path) -> None:
    run_here(
        home,
        "profiled",
        "max_steps=4",
        "profiler._component_=torchtune.training.setup_torch_profiler",
        "profiler.enabled=true",
        f"profiler.output_dir={home / 'profile'}",
        "profiler.wait_steps=1",
        "profiler.warmup_steps=1",
        "profiler.active_steps=1",
        "profiler.num_cycles=1",
    )
    assert list((home / "profile").glob("**/*.pt.trace.json.gz"))


LORA = [
    "model._component_=tt_reasoning.models.lora_from_hf",
    "model.lora_attn_modules=[q_proj,v_proj]",
    "model.apply_lora_to_mlp=true",
    "model.lora_rank=4",
    "model.lora_alpha=8",
]


@pytest.mark.parametrize("processes", [1, 2])
def test_lora_trains_the_adapters_alone_against_the_base_model(home: Path, processes: int) -> None:
    folder = home / f"lora_{processes}"
    result = run(command(home, folder.name, *LORA, "max_steps=3", f"batch_size={2 // processes}", processes=processes))
    assert result.returncode == 0, result.stderr
    rows = metrics(folder)
    assert rows[0]["kl"] == 0 and rows[-1]["kl"] > 0  # the reference is the base: adapters start at nothing
    before, after = (load_file(path / "model.safetensors") for path in (home / "model", folder / "step_3"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("q_proj" in n or "v_proj" in n or "mlp" in n for n in changed)
    adapter = json.loads((folder / "step_3" / "adapter" / "adapter_config.json").read_text())
    assert adapter["r"] == 4 and adapter["lora_alpha"] == 8
    if processes == 2:
        for row_one, row_two in zip(metrics(home / "lora_1"), rows, strict=True):
            for name in row_one:
                assert row_two[name] == pytest.approx(row_one[name], rel=1e-4, abs=1e-5), name


def test_a_lora_run_goes_on_bitwise(home: Path) -> None:
    options = [*LORA, "max_steps=4", "save_every_n_steps=2"]
    whole = run_here(home, "lora_whole", *options)
    again = run_here(home, "lora_again", *options)
    os.rename(again / "step_4", again / "gone")
    run_here(home, "lora_again", *options)
    assert metrics(again) == metrics(whole)
    assert (again / "step_4" / "model.safetensors").read_bytes() == (
        whole / "step_4" / "model.safetensors"
    ).read_bytes()


def test_mixed_precision_keeps_what_bf16_weights_round_away(home: Path) -> None:
    changed = {}
    for dtype in ("bf16", "bf16_mixed"):
        found = run_here(home, dtype, f"dtype={dtype}", "max_steps=3", "optimizer.lr=1e-6", "lr_scheduler=null")
        assert all(math.isfinite(row["grad_norm"]) for row in metrics(found))
        before, after = (load_file(path / "model.safetensors") for path in (home / "model", found / "step_3"))
        same = sum((before[name].to(t.dtype) == t).sum().item() for name, t in after.items())
        changed[dtype] = 1 - same / sum(t.numel() for t in after.values())
    assert changed["bf16"] < 0.1 and changed["bf16_mixed"] > 0.9


def test_vllm_samples_for_two_processes_and_follows_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    write_home(tmp_path, hidden_size=128)  # vLLM's attention on a CPU needs heads of 32
    engine = ["rollout._component_=tt_reasoning.vllm_rollout.VllmRollout", "~rollout.batch_size", "rollout.dtype=fp32"]
    options = [*engine, "max_steps=3", "optimizer.lr=1e-2", "lr_scheduler=null"]
    result = run(command(tmp_path, "vllm", *options, processes=2))
    assert result.returncode == 0, result.stderr
    rows = metrics(tmp_path / "vllm")
    assert len(rows) == 3 and all(row["grad_norm"] > 0 for row in rows)
    # Each step's weights are another policy's: the engine draws from the newest, or the ratio would show it.
    assert all(row["sync_logprob_difference"] < 1e-4 for row in rows)
    assert all(row["importance_error"] < 1e-3 and row["importance_capped_share"] == 0 for row in rows)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "vllm/step_3"))
    assert max((before[name] - after[name]).abs().max() for name in before) > 0.02


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["pack_tokens=0"], "config key pack_tokens: 0 is below 1"),
        (["dynamic_sampling.min_active_groups=2"], "config key dynamic_sampling.max_resample: missing"),
        (["dynamic_sampling.min_active=2"], "did you mean 'dynamic_sampling.min_active_groups'?"),
        (
            ["dynamic_sampling.min_active_groups=2", "dynamic_sampling.max_resample=1"],
            "dynamic_sampling.min_active_groups: 2 is above the 1 prompts of a step",
        ),
        (["updates_per_rollout=0"], "config key updates_per_rollout: 0 is below 1"),
        (["attention=flash"], "config key attention: found 'flash'"),
        (["metric_logger.log_dir=/dev/null/logs"], "config key metric_logger: [Errno 20] Not a directory"),
        (["rollout.batch_size=0"], "config key rollout.batch_size: 0 is below 1"),
        (["rollout._component_=tt_reasoning.rollout.Native"], "did you mean 'tt_reasoning.rollout.NativeRollout'?"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_an_option_that_cannot_work_is_said(home: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        run_here(home, "wrong", *overrides)
    assert message in str(caught.value)


def test_the_held_out_sets_are_asked_as_training_asks(home: Path) -> None:
    options = [*evaluation(home, 1)[:-1], "evaluation.dataset.prompt=ssa", "max_steps=1"]
    with pytest.raises(UserError, match="config key evaluation.dataset.prompt: 'ssa', but training asks with"):
        run_here(home, "wrong_prompt", *options)
