"""A value model that steers decoding (Q#, arXiv 2502.20548): what return an answer will have if the reference goes on.

A classifier on texts that the reference went on with (tools/collect_qsharp.py): from the token where it took over to
the end, every token learns how the whole answer ended. Nothing is bootstrapped and the target does not know how hard
will be steered, so one model serves every eta (the inverse of the paper's temperature: larger steers harder).

How it departs from the paper's code:
- A V head reads the state behind a token, a Q head the token's column of the state before it, computed alone.
- All examples of a problem share its prompt in one row (tt_reasoning.prefix_tree), and several problems share a row up
  to ``pack_tokens``; a step is a number of problems. Each answer counts the same in a step, whatever its length.
- Atoms span any range, and a return between two of them is shared out so that its mean is kept.
- Held-out problems, not held-out samples, are measured: also at the first and at the last supervised token alone.

    tune run qsharp_classifier --config configs/135M_qsharp_cpu.yaml dataset.sources=[rollouts/r1] max_steps=4
    tune run --nproc_per_node 4 qsharp_classifier --config configs/1B_qsharp.yaml
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchtune import config
from torchtune.modules import TransformerDecoder
from tqdm import tqdm

from tt_reasoning import guidance
from tt_reasoning.checkpoint import (
    agree_on_last_step,
    keep_best,
    remove_torn_checkpoints,
    resume_from,
    save_checkpoint,
)
from tt_reasoning.config import Component, Section, check_config, run_recipe
from tt_reasoning.datasets import QsharpDataset
from tt_reasoning.datasets.prm import JudgeGroup, JudgeRow, pack_judged, pack_rows
from tt_reasoning.errors import UserError
from tt_reasoning.judges.held_out import EVALUATIONS, best_evaluation, describe_evaluation, record_values, tell_best
from tt_reasoning.judges.values import read_values
from tt_reasoning.loop import (
    METRICS,
    Stopwatch,
    build_main_logger,
    build_optimizer,
    check_numbers,
    count_steps,
    draw_places,
    drawn_a_step,
    drop_rows_after,
    open_output,
    profile,
    share_places,
    take_step,
)
from tt_reasoning.losses import ReturnLoss
from tt_reasoning.models.value_head import ValueHead, describe_first, freeze_output
from tt_reasoning.models.weights import read_hf_config
from tt_reasoning.store import append_records
from tt_reasoning.training import (
    Process,
    arithmetic,
    build_model,
    from_main,
    gather_rows,
    gather_values,
    pick_dtype,
    start_process,
    stop_process,
    sum_over_processes,
)
from tt_reasoning.types import seed_of

KEYS = {
    "output_dir": str,
    "seed": int,
    "device": Literal["auto", "cpu", "cuda"],
    "dtype": Literal["fp32", "bf16", "bf16_mixed"],
    "tokenizer": Component(),
    "model": Component(),
    "checkpoint": str,
    "value_head": {
        "type": Literal["V", "Q"],
        "init": Literal["zero", "random", "reuse", "warm", None],
        "dropout": float | None,
        "lr": float | None,
    },
    "dataset": Component("tokenizer"),
    "loss": Component(),
    "optimizer": Component("params"),
    "lr_scheduler": Component("optimizer", "num_training_steps", "last_epoch", optional=True),
    "metric_logger": Component(),
    "profiler": Component(optional=True),
    "batch_size": int,
    "gradient_accumulation_steps": int,
    "pack_tokens": int | None,
    "attention": Literal["auto", "split", "flex", "dense", None],
    "epochs": int,
    "max_steps": int | None,
    "clip_grad_norm": float | None,
    "enable_activation_checkpointing": bool,
    "save_every_n_steps": int | None,
    "keep_checkpoints": int | None,
    "evaluation": Section({"every_n_steps": int}),
}


@dataclass
class Run:
    """Everything that ``train`` needs, as ``setup`` built it."""

    cfg: DictConfig
    process: Process
    output: Path
    data: QsharpDataset
    model: TransformerDecoder
    loss: ReturnLoss
    optimizer: Optimizer
    scheduler: LRScheduler | None
    logger: Any
    first_step: int
    num_steps: int
    position: int = 0  # groups drawn so far, over all processes


def check_values(cfg: DictConfig) -> None:
    """Refuse numbers that cannot work, naming the key."""
    check_config(cfg, KEYS)
    counts = ("batch_size", "gradient_accumulation_steps", "epochs", "max_steps", "save_every_n_steps")
    counts += ("keep_checkpoints", "pack_tokens", "evaluation.every_n_steps")
    check_numbers(cfg, {**dict.fromkeys(counts, 1), "value_head.dropout": 0}, ("clip_grad_norm", "value_head.lr"))
    if (cfg.value_head.get("dropout") or 0) >= 1:
        raise UserError(f"config key value_head.dropout: {cfg.value_head.dropout:g} leaves nothing to read")


def load_data(cfg: DictConfig, loss: ReturnLoss) -> QsharpDataset:
    """The collected examples; those of held-out problems only where they are to be measured."""
    if not isinstance(loss, ReturnLoss):
        raise UserError("config key loss: a value model learns returns; use losses.ReturnLoss, or a subclass")
    data = config.instantiate(cfg.dataset, config.instantiate(cfg.tokenizer))
    if not isinstance(data, QsharpDataset):
        raise UserError("config key dataset: a value model learns what was collected; use datasets.qsharp_dataset")
    if cfg.get("evaluation") and not data.held_out:
        raise UserError(
            "config key evaluation: no problem of dataset.sources is held out; set evaluation=null, or collect with a "
            "share of them held out"
        )
    if not cfg.get("evaluation"):
        data.held_out.clear()
    loss.check_returns(torch.tensor([target for group in data.train + data.held_out for target in group.targets]))
    return data


def setup(cfg: DictConfig, process: Process, output: Path, data: QsharpDataset, loss: ReturnLoss) -> Run:
    """Build the model and everything around it; go on from the newest checkpoint in ``output``."""
    torch.manual_seed(cfg.seed)
    logger = build_main_logger(cfg, process)
    model = build_model(
        cfg.model,
        cfg.checkpoint,
        process,
        pick_dtype(cfg.dtype),
        activation_checkpointing=cfg.enable_activation_checkpointing,
        seed=cfg.seed,
        mixed=cfg.dtype == "bf16_mixed",
        value_head=partial(
            ValueHead,
            num_values=loss.num_values,
            meaning=loss.meaning,
            dropout=cfg.value_head.get("dropout") or 0.0,
            num_columns=read_hf_config(cfg.checkpoint)["vocab_size"] if cfg.value_head.type == "Q" else None,
        ),
        head_init=cfg.value_head.get("init"),
    )
    freeze_output(model)
    groups = data.train + data.held_out
    longest = max(len(group.prompt_tokens) + len(s.tokens) for group in groups for s in group.solutions)
    if longest > model.max_seq_len:
        raise UserError(
            f"the longest example with its question has {longest} tokens, above the model's {model.max_seq_len}; "
            "lower dataset.max_tokens"
        )
    num_steps = count_steps(cfg, len(data.train), process.world_size)
    optimizer, scheduler = build_optimizer(cfg, model, num_steps, head_lr=cfg.value_head.get("lr"))
    first_step, position = agree_on_last_step(output, process), 0
    if first_step:
        position = resume_from(output, first_step, model, optimizer, scheduler, process)["position"]
    return Run(
        cfg=cfg,
        process=process,
        output=output,
        data=data,
        model=model,
        loss=loss,
        optimizer=optimizer,
        scheduler=scheduler,
        logger=logger,
        first_step=first_step,
        num_steps=num_steps,
        position=position,
    )


def next_groups(run: Run) -> list[JudgeGroup]:
    """This process's groups of a step, from the endless stream of shuffled epochs."""
    count = drawn_a_step(run.cfg, run.process.world_size)
    drawn = draw_places(run.position, count, len(run.data.train), run.cfg.seed, run.process)
    run.position += count
    return [run.data.train[index] for _, index in drawn]


def read(run: Run, row: JudgeRow) -> Tensor:
    """The values of the supervised tokens of a row: [S, A]."""
    tokens_S = torch.searchsorted(row.packed.place_R, row.place_S)
    with arithmetic(run.cfg.dtype, run.process.device):
        return read_values(run.model, row.packed, tokens_S=tokens_S).values_SA


def update(run: Run, rows: list[JudgeRow], step: int) -> dict[str, float]:
    """One optimizer step; returns the step's sums over this process's rows."""
    cfg, process = run.cfg, run.process
    everywhere = gather_values(sum(len(row.solutions) for row in rows), process)
    torch.manual_seed(seed_of("dropout", cfg.seed, step, process.rank))  # a run that goes on drops what it would have
    totals: Counter[str] = Counter()
    for row in rows:
        answers = len(row.solutions)
        values_SA = read(run, row)
        loss = run.loss(values_SA, row.target_S, row.solution_S, answers, sum(everywhere) / len(everywhere))
        loss.backward()
        scores_S = run.loss.mean_return(values_SA.detach())
        right_S = (scores_S >= 0.5) == (row.target_S >= 0.5)
        totals.update({"loss": loss.item(), "right": right_S.sum().item(), "said": scores_S.sum().item()})
        totals.update({"good": sum(solution.targets[0] for solution in row.solutions), "answers": answers})
        totals.update({"tokens": row.packed.tokens_1T.numel(), "value_tokens": len(row.target_S)})
    totals["grad_norm"] = take_step(run.model, run.optimizer, cfg.get("clip_grad_norm"), step)
    return dict(totals)


def train(run: Run) -> None:
    """From the first step that is not in a checkpoint to the last."""
    cfg, process = run.cfg, run.process
    best = from_main(best_evaluation(run.output) if process.is_main else None, process)
    if run.data.held_out and not run.first_step:
        best = evaluate(run, 0)
    with (
        tqdm(initial=run.first_step, total=run.num_steps, desc="qsharp", disable=not process.is_main) as bar,
        profile(cfg.get("profiler")) as profiler,
    ):
        for step in range(run.first_step + 1, run.num_steps + 1):
            watch = Stopwatch(process.device)
            with watch.stage("pack"):
                rows = pack_rows(next_groups(run), process, cfg.get("pack_tokens"), cfg.get("attention") or "auto")
            with watch.stage("update"):
                sums = update(run, rows, step)
            lr = run.optimizer.param_groups[0]["lr"]
            if run.scheduler is not None:
                run.scheduler.step()
            metrics = {**summarize(run, sums), "lr": float(lr)}
            if process.is_main:
                timing = watch.timing(metrics["tokens"])
                append_records(run.output / METRICS, [{"step": step, **metrics, **timing}])
                run.logger.log_dict({**metrics, **timing}, step=step)
                bar.set_postfix(loss=f"{metrics['loss']:.3f}", accuracy=f"{metrics['accuracy']:.2f}")
            last, is_best = step == run.num_steps, False
            if run.data.held_out and (last or step % cfg.evaluation.every_n_steps == 0):
                found = evaluate(run, step)
                is_best = best is None or found["loss"] < best["loss"]
                best = found if is_best else best
            if last or is_best or (cfg.get("save_every_n_steps") and step % cfg.save_every_n_steps == 0):
                save(run, step, best)
            profiler.step()
            bar.update()


def summarize(run: Run, sums: dict[str, float]) -> dict[str, float]:
    """The metrics of a step over all processes.

    ``accuracy`` and ``mean_return`` (what the model says on the mean) are over supervised tokens (``value_tokens``),
    ``good_share`` over answers.
    """
    total = sum_over_processes(sums, run.process)
    return {
        **{name: total[name] / run.process.world_size for name in ("loss", "grad_norm")},
        "accuracy": total["right"] / total["value_tokens"],
        "mean_return": total["said"] / total["value_tokens"],
        "good_share": total["good"] / total["answers"],
        **{name: total[name] for name in ("answers", "tokens", "value_tokens")},
    }


@torch.no_grad()
def evaluate(run: Run, step: int) -> dict[str, Any]:
    """What the model says on the held-out problems (``measure_values``), on disk and in the log."""
    run.model.eval()
    rows = []
    for place in share_places(len(run.data.held_out), run.process):
        group = run.data.held_out[place]
        row = pack_judged([group], run.process.device, run.cfg.get("attention") or "auto")
        values_SA = read(run, row)
        scores = run.loss.mean_return(values_SA).tolist()
        losses = run.loss.token_losses(values_SA, row.target_S).tolist()
        for solution in group.solutions:
            count = len(solution.reads)
            rows.append({
                "place": place, "problem_id": group.problem_id, "answer_id": solution.answer_id,
                "scores": scores[:count], "losses": losses[:count], "label": solution.targets[0],
            })  # fmt: skip
            scores, losses = scores[count:], losses[count:]
    run.model.train()
    found = {(row["place"], row["answer_id"]): row for row in gather_rows(rows, run.process)}
    result = None
    if run.process.is_main:
        result = record_values(run.output, step, [*found.values()])
        shown = {f"eval/{name}": value for name, value in result.items() if name != "step" and value is not None}
        run.logger.log_dict(shown, step=step)
        tqdm.write(f"step {step}: {describe_evaluation(result)}")
    return from_main(result, run.process)


def make_card(run: Run) -> guidance.ValueCard:
    """How the value model is to be read: as it was trained."""
    loss = run.loss
    return guidance.ValueCard(
        head=run.cfg.value_head.type,
        loss=loss.kind,
        prompt=run.data.prompt.name,
        template=run.data.prompt.template(),
        num_atoms=loss.num_atoms,
        low=loss.low,
        high=loss.high,
        target=loss.target,
        eta=loss.eta,
        end=run.data.end,
    )


def save(run: Run, step: int, best: dict[str, Any] | None) -> None:
    """A checkpoint that guided decoding loads as it is, and that the next start goes on from."""
    folder = save_checkpoint(
        run.output,
        step,
        run.model,
        run.optimizer,
        run.scheduler,
        run.cfg.checkpoint,
        run.process,
        {**guidance.value_card_row(make_card(run)), "recipe": "qsharp_classifier", "step": step},
        card_name=guidance.CARD,
        state={"position": run.position},
    )
    if run.process.is_main:
        keep_best(run.output, best["step"] if best else None, run.cfg.get("keep_checkpoints"))
        tqdm.write(f"saved {folder}")


def main(cfg: DictConfig) -> None:
    """Check the config, then train in ``output_dir``: anew, or on from its newest checkpoint."""
    check_values(cfg)
    loss = config.instantiate(cfg.loss)
    process = start_process(cfg.device)
    try:
        data = load_data(cfg, loss)
        with open_output(cfg, process, "qsharp_classifier", num_train=len(data.train)) as output:
            train_in(cfg, process, output, data, loss)
    finally:
        stop_process()


def train_in(cfg: DictConfig, process: Process, output: Path, data: QsharpDataset, loss: ReturnLoss) -> None:
    """Set up and train, unless the folder holds the finished run."""
    num_steps = count_steps(cfg, len(data.train), process.world_size)
    if agree_on_last_step(output, process) >= num_steps:
        if process.is_main:
            print(f"already trained: {output / f'step_{num_steps}'}; for another run, set another output_dir")
        return
    run = setup(cfg, process, output, data, loss)
    if process.is_main:
        drop_rows_after(output, (METRICS, EVALUATIONS), run.first_step)
        remove_torn_checkpoints(output)
        run.logger.log_config(cfg)
        print(describe_start(run))
    train(run)
    if process.is_main:
        run.logger.close()
        print(f"done: {num_steps} steps -> {output / f'step_{num_steps}'}")
        tell_best(output)


def describe_start(run: Run) -> str:
    """What is about to be trained on, in one line."""
    cfg, data = run.cfg, run.data
    returns = [solution.targets[0] for group in data.train for solution in group.solutions]
    left_out = f" (left out: {data.left_out.describe()})" if data.left_out.describe() else ""
    problems, held_out = (len({group.problem_id for group in groups}) for groups in (data.train, data.held_out))
    begun = describe_first(cfg.checkpoint, cfg.value_head.get("init"))
    start = f"going on from step {run.first_step}" if run.first_step else f"from the start, its head {begun}"
    return (
        f"{len(returns)} answers, {sum(returns) / len(returns):.1%} right, to {problems} problems{left_out}; "
        f"{held_out} problems held out; a {cfg.value_head.type} model of {run.loss.meaning}, "
        f"{run.num_steps} steps on {run.process.world_size} process(es), {start}"
    )


if __name__ == "__main__":
    run_recipe(main)
