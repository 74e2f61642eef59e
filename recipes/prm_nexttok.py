"""A step judge (process reward model) by next-token labels; an outcome judge is its case of one step a solution.

Behind every step stands a step token, and the model learns to say there whether the step is right: the label tokens
``good`` and ``bad`` are what may come next. Papers: Let's Verify Step by Step (arXiv 2305.20050), Math-Shepherd
(arXiv 2312.08935).

How it departs from them:
- Training and ranking lay a solution out by the same function and read the same position.
- All solutions of a problem share its prompt in one row (tt_reasoning.prefix_tree), several problems share a row up to
  ``pack_tokens``.
- Labels may be soft, and classes may be balanced; a language-model loss on right solutions is an option.
- Held-out problems are measured: accuracy, ROC-AUC, first error found, calibration. The best checkpoint is kept.

    tune run prm_nexttok --config configs/135M_prm_cpu.yaml dataset.source=steps/shepherd max_steps=4
    tune run --nproc_per_node 4 prm_nexttok --config configs/1.5B_prm.yaml
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
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

from tt_reasoning import judges
from tt_reasoning.checkpoint import (
    agree_on_last_step,
    keep_best,
    remove_torn_checkpoints,
    resume_from,
    save_checkpoint,
)
from tt_reasoning.config import Component, Section, check_config, run_recipe
from tt_reasoning.datasets.prm import (
    JudgeDataset,
    JudgeGroup,
    JudgeRow,
    pack_judged,
    pack_rows,
    require_both_classes,
    split_by_problem,
)
from tt_reasoning.errors import UserError
from tt_reasoning.judges.formats import TagFormat, token_id
from tt_reasoning.judges.held_out import EVALUATIONS, best_evaluation, describe_evaluation, record_evaluation, tell_best
from tt_reasoning.judges.reading import LabelReading, read_labels
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
from tt_reasoning.losses import JudgeSize
from tt_reasoning.models import ChatTokenizer
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

KEYS = {
    "output_dir": str,
    "seed": int,
    "device": Literal["auto", "cpu", "cuda"],
    "dtype": Literal["fp32", "bf16", "bf16_mixed"],
    "tokenizer": Component(),
    "model": Component(),
    "checkpoint": str,
    "step_format": Component(),
    "labels": {"good": str, "bad": str},
    "dataset": Component("tokenizer", "step_format"),
    "balance_classes": bool,
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
    "evaluation": Section({"every_n_steps": int, "share": float}),
}

Parts = tuple[list[JudgeGroup], list[JudgeGroup]]  # to train on, and held out


@dataclass
class Run:
    """Everything that ``train`` needs, as ``setup`` built it."""

    cfg: DictConfig
    process: Process
    output: Path
    train: list[JudgeGroup]
    held_out: list[JudgeGroup]  # none of their problems is in train
    labels: tuple[int, int]  # the ids of good and bad
    class_weights: tuple[float, float]  # of a right and of a wrong step
    card: judges.JudgeCard
    model: TransformerDecoder
    loss: Any
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
    check_numbers(cfg, dict.fromkeys(counts, 1), ("clip_grad_norm", "evaluation.share"))
    if cfg.get("evaluation") and cfg.evaluation.share >= 1:
        raise UserError(f"config key evaluation.share: {cfg.evaluation.share:g} leaves no problem to train on")


def split(cfg: DictConfig, dataset: JudgeDataset) -> Parts:
    """The groups to train on and those to hold out."""
    if not cfg.get("evaluation"):
        train, held_out = dataset.groups, []
    else:
        train, held_out = split_by_problem(dataset.groups, cfg.evaluation.share, cfg.seed)
    require_both_classes(train, dataset.source)
    return train, held_out


def weigh_classes(groups: list[JudgeGroup]) -> tuple[float, float]:
    """What a right and a wrong step count, so that both classes count the same over the data, and 1 on average."""
    targets = [target for group in groups for target in group.targets]
    share = sum(targets) / len(targets)
    return 0.5 / share, 0.5 / (1 - share)


def check_step_token(step_token: str, tokenizer: ChatTokenizer) -> None:
    """Refuse a step token that looks like a special one and is none: it would be read as so many letters."""
    if re.fullmatch(r"<\S+>", step_token):
        token_id(tokenizer, step_token, "config key step_format.step_token:")


def setup(
    cfg: DictConfig, process: Process, output: Path, dataset: JudgeDataset, parts: Parts, labels: tuple[int, int]
) -> Run:
    """Build the model and everything around it; go on from the newest checkpoint in ``output``."""
    torch.manual_seed(cfg.seed)
    train, held_out = parts
    logger, loss = build_main_logger(cfg, process), config.instantiate(cfg.loss)
    model = build_model(
        cfg.model,
        cfg.checkpoint,
        process,
        pick_dtype(cfg.dtype),
        activation_checkpointing=cfg.enable_activation_checkpointing,
        seed=cfg.seed,
        mixed=cfg.dtype == "bf16_mixed",
    )
    longest = max(len(g.prompt_tokens) + len(s.tokens) for g in dataset.groups for s in g.solutions)
    if longest > model.max_seq_len:
        raise UserError(
            f"the longest solution with its question has {longest} tokens, above the model's {model.max_seq_len}; "
            "lower dataset.max_tokens"
        )
    num_steps = count_steps(cfg, len(train), process.world_size)
    optimizer, scheduler = build_optimizer(cfg, model, num_steps)
    first_step, position = agree_on_last_step(output, process), 0
    if first_step:
        position = resume_from(output, first_step, model, optimizer, scheduler, process)["position"]
    return Run(
        cfg=cfg,
        process=process,
        output=output,
        train=train,
        held_out=held_out,
        labels=labels,
        class_weights=weigh_classes(train) if cfg.balance_classes else (1.0, 1.0),
        card=make_card(cfg, dataset),
        model=model,
        loss=loss,
        optimizer=optimizer,
        scheduler=scheduler,
        logger=logger,
        first_step=first_step,
        num_steps=num_steps,
        position=position,
    )


def make_card(cfg: DictConfig, dataset: JudgeDataset) -> judges.JudgeCard:
    """How the judge is to be used: as it was trained."""
    form: TagFormat = config.instantiate(cfg.step_format)
    return judges.JudgeCard(
        head="tokens",
        prompt=form.prompt,
        step_token=form.step_token,
        between=form.between,
        good=cfg.labels.good,
        bad=cfg.labels.bad,
        outcome=dataset.outcome,
    )


def next_groups(run: Run) -> list[JudgeGroup]:
    """This process's groups of a step, from the endless stream of shuffled epochs."""
    count = drawn_a_step(run.cfg, run.process.world_size)
    drawn = draw_places(run.position, count, len(run.train), run.cfg.seed, run.process)
    run.position += count
    return [run.train[index] for _, index in drawn]


def step_weights(run: Run, row: JudgeRow) -> Tensor:
    """What each step of a row counts; 0 without a label."""
    good, bad = run.class_weights
    return (row.target_S * good + (1 - row.target_S) * bad).nan_to_num()


def language_tokens(row: JudgeRow) -> Tensor:
    """True for the tokens of solutions none of whose labels says wrong: only those are worth imitating.

    What comes behind a step's end is left out: the logits there say the label.
    """
    right = [all(label is None or label == 1 for label in solution.labels) for solution in row.solutions]
    right_R = torch.tensor(right, device=row.inside_R.device)[row.packed.sample_R]
    return right_R & row.inside_R & ~torch.isin(row.packed.read_R, row.place_S)


def read(run: Run, row: JudgeRow, *, language_model: bool = False) -> LabelReading:
    """What the model says at the steps of a row."""
    with arithmetic(run.cfg.dtype, run.process.device):
        return read_labels(run.model, row.packed, row.place_S, *run.labels, language_model=language_model)


def update(run: Run, rows: list[JudgeRow], step: int) -> dict[str, float]:
    """One optimizer step; returns the step's sums over this process's rows."""
    language = run.loss.language_model_weight > 0
    weights = [step_weights(run, row) for row in rows]
    trained = [language_tokens(row) for row in rows]
    mine = (sum(w.sum().item() for w in weights), sum(t.sum().item() for t in trained))
    everywhere = gather_values(mine, run.process)
    weight, num_tokens = (sum(part) / len(everywhere) for part in zip(*everywhere, strict=True))
    size = JudgeSize(weight=weight or 1.0, num_tokens=num_tokens)
    totals: Counter[str] = Counter()
    for row, weight_S, trained_R in zip(rows, weights, trained, strict=True):
        reading = read(run, row, language_model=language)
        loss, parts = run.loss(
            reading.good_S, reading.bad_S, reading.vocabulary_S, row.target_S, weight_S,
            reading.logprobs_R, trained_R, size,
        )  # fmt: skip
        loss.backward()
        labelled_S = ~row.target_S.isnan()
        right_S = (reading.score_S().detach() >= 0.5) == (row.target_S >= 0.5)
        totals.update({"loss": loss.item(), **{name: value.item() for name, value in parts.items()}})
        totals.update({"right": (right_S & labelled_S).sum().item(), "steps": labelled_S.sum().item()})
        totals.update({"tokens": row.packed.tokens_1T.numel(), "good": row.target_S.nan_to_num().sum().item()})
    totals["grad_norm"] = take_step(run.model, run.optimizer, run.cfg.get("clip_grad_norm"), step)
    return dict(totals)


def train(run: Run) -> None:
    """From the first step that is not in a checkpoint to the last."""
    cfg, process = run.cfg, run.process
    best = from_main(best_evaluation(run.output) if process.is_main else None, process)
    if run.held_out and not run.first_step:
        best = evaluate(run, 0)
    with (
        tqdm(initial=run.first_step, total=run.num_steps, desc="prm", disable=not process.is_main) as bar,
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
            if run.held_out and (last or step % cfg.evaluation.every_n_steps == 0):
                found = evaluate(run, step)
                is_best = best is None or found["loss"] < best["loss"]
                best = found if is_best else best
            if last or is_best or (cfg.get("save_every_n_steps") and step % cfg.save_every_n_steps == 0):
                save(run, step, best)
            profiler.step()
            bar.update()


def summarize(run: Run, sums: dict[str, float]) -> dict[str, float]:
    """The metrics of a step over all processes: losses and shares are means, ``steps`` and ``tokens`` sums."""
    total = sum_over_processes(sums, run.process)
    processes, steps = run.process.world_size, max(total["steps"], 1)
    means = ("loss", "label_loss", "language_model_loss", "grad_norm")
    return {
        **{name: total[name] / processes for name in means},
        "accuracy": total["right"] / steps,
        "good_share": total["good"] / steps,
        "steps": total["steps"],
        "tokens": total["tokens"],
    }


@torch.no_grad()
def evaluate(run: Run, step: int) -> dict[str, Any]:
    """The judge on the held-out problems: ``measure_judge`` and its loss, written to ``evaluations.jsonl``."""
    run.model.eval()
    rows = []
    for place in share_places(len(run.held_out), run.process):
        group = run.held_out[place]
        row = pack_judged([group], run.process.device, run.cfg.get("attention") or "auto")
        scores = read(run, row).score_S().tolist()
        for solution in group.solutions:
            mine, scores = scores[: len(solution.reads)], scores[len(solution.reads) :]
            rows.append({
                "place": place, "problem_id": group.problem_id, "answer_id": solution.answer_id, "scores": mine,
                "targets": solution.targets, "labels": solution.labels,
            })  # fmt: skip
    run.model.train()
    found = {row["answer_id"]: row for row in gather_rows(rows, run.process)}
    result = None
    if run.process.is_main:
        result = record_evaluation(run.output, step, [*found.values()])
        shown = {f"eval/{name}": value for name, value in result.items() if name != "step" and value is not None}
        run.logger.log_dict(shown, step=step)
        tqdm.write(f"step {step}: {describe_evaluation(result)}")
    return from_main(result, run.process)


def save(run: Run, step: int, best: dict[str, Any] | None) -> None:
    """A checkpoint that ``rank_answers`` loads as it is, and that the next start goes on from."""
    folder = save_checkpoint(
        run.output,
        step,
        run.model,
        run.optimizer,
        run.scheduler,
        run.cfg.checkpoint,
        run.process,
        {**judges.card_row(run.card), "recipe": "prm_nexttok", "step": step},
        card_name=judges.CARD,
        state={"position": run.position},
    )
    if run.process.is_main:
        keep_best(run.output, best["step"] if best else None, run.cfg.get("keep_checkpoints"))
        tqdm.write(f"saved {folder}")


def main(cfg: DictConfig) -> None:
    """Check the config, then train in ``output_dir``: anew, or on from its newest checkpoint."""
    check_values(cfg)
    process = start_process(cfg.device)
    try:
        tokenizer: ChatTokenizer = config.instantiate(cfg.tokenizer)
        labels = tuple(token_id(tokenizer, cfg.labels[n], f"config key labels.{n}:") for n in ("good", "bad"))
        if labels[0] == labels[1]:
            raise UserError(f"config key labels: '{cfg.labels.good}' and '{cfg.labels.bad}' are the same token")
        step_format: TagFormat = config.instantiate(cfg.step_format)
        check_step_token(step_format.step_token, tokenizer)
        dataset = config.instantiate(cfg.dataset, tokenizer, step_format)
        share = cfg.evaluation.share if cfg.get("evaluation") else None  # decides what is trained on
        with open_output(cfg, process, "prm_nexttok", num_groups=len(dataset), held_out_share=share) as output:
            train_in(cfg, process, output, dataset, labels)
    finally:
        stop_process()


def train_in(
    cfg: DictConfig, process: Process, output: Path, dataset: JudgeDataset, labels: tuple[int, int]
) -> None:
    """Set up and train, unless the folder holds the finished run."""
    parts = split(cfg, dataset)
    num_steps = count_steps(cfg, len(parts[0]), process.world_size)
    if agree_on_last_step(output, process) >= num_steps:
        if process.is_main:
            print(f"already trained: {output / f'step_{num_steps}'}; for another run, set another output_dir")
        return
    run = setup(cfg, process, output, dataset, parts, labels)
    if process.is_main:
        drop_rows_after(output, (METRICS, EVALUATIONS), run.first_step)
        remove_torn_checkpoints(output)
        print(describe_start(run, dataset))
        run.logger.log_config(cfg)
    train(run)
    if process.is_main:
        run.logger.close()
        print(f"done: {num_steps} steps -> {output / f'step_{num_steps}'}")
        tell_best(output)


def describe_start(run: Run, dataset: JudgeDataset) -> str:
    """What is about to be trained on, in one line."""
    targets = [target for group in run.train for target in group.targets]
    solutions = sum(len(group.solutions) for group in run.train)
    left_out = f" (left out: {dataset.left_out.describe()})" if dataset.left_out.describe() else ""
    start = f"going on from step {run.first_step}" if run.first_step else "from the start"
    held_out = len({group.problem_id for group in run.held_out})
    return (
        f"{len(targets)} labels, {sum(targets) / len(targets):.1%} right, of {solutions} solutions{left_out}; "
        f"{held_out} problems held out; {run.num_steps} steps on {run.process.world_size} process(es), {start}"
    )


if __name__ == "__main__":
    run_recipe(main)
