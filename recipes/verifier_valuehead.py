"""A token-level verifier (Cobbe et al., arXiv 2110.14168): a value head says at every token how the answer will end.

It starts from the generator. The value of every solution token learns the verdict of the whole answer, beside it the
language model goes on learning good solutions; what counts is the value of the last token.

How it departs from the paper:
- The value is a head of its own on the last hidden state, not a logit that the vocabulary keeps free.
- All answers to a question share its prompt in one row (tt_reasoning.prefix_tree), and several questions share a row
  up to ``pack_tokens``.
- Cross-entropy beside squared error; the two means, of values and of words, are over the tokens of a whole step.
- Reference solutions for the language model are an option; without them it learns the answers that are right.
- Held-out problems are measured and the best checkpoint is kept.

    tune run verifier_valuehead --config configs/135M_verifier_cpu.yaml dataset.source=answers/demo max_steps=4
    tune run --nproc_per_node 4 verifier_valuehead --config configs/1.5B_verifier.yaml
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from omegaconf import DictConfig, OmegaConf
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
from tt_reasoning.datasets import SFTDataset
from tt_reasoning.datasets.prm import (
    JudgeDataset,
    JudgeGroup,
    JudgeRow,
    JudgeSolution,
    pack_judged,
    pack_rows,
    require_both_classes,
    split_by_problem,
)
from tt_reasoning.errors import UserError
from tt_reasoning.judges.formats import TagFormat
from tt_reasoning.judges.held_out import EVALUATIONS, best_evaluation, describe_evaluation, record_evaluation, tell_best
from tt_reasoning.judges.values import as_scores, read_values, value_scores
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
from tt_reasoning.losses import JudgeSize, ValueLoss
from tt_reasoning.models import ChatTokenizer
from tt_reasoning.models.value_head import ValueHead, freeze_output
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
from tt_reasoning.types import problem_id, seed_of

KEYS = {
    "output_dir": str,
    "seed": int,
    "device": Literal["auto", "cpu", "cuda"],
    "dtype": Literal["fp32", "bf16", "bf16_mixed"],
    "tokenizer": Component(),
    "model": Component(),
    "checkpoint": str,
    "value_head": Section({"dropout": float, "lr": float | None}),
    "prompt": str,
    "dataset": Component("tokenizer", "step_format"),
    "reference_solutions": Component("tokenizer", optional=True),
    "language_model_on": Literal["correct", "all", None],
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


@dataclass(frozen=True)
class Data:
    """What is trained on and what is measured on."""

    train: list[JudgeGroup]
    held_out: list[JudgeGroup]  # none of their problems is in train, or in references
    references: list[JudgeGroup]  # solutions that the language model alone learns; empty where there are none
    left_out: str


@dataclass
class Run:
    """Everything that ``train`` needs, as ``setup`` built it."""

    cfg: DictConfig
    process: Process
    output: Path
    data: Data
    model: TransformerDecoder
    loss: ValueLoss
    optimizer: Optimizer
    scheduler: LRScheduler | None
    logger: Any
    first_step: int
    num_steps: int
    position: int = 0  # groups drawn so far, over all processes, and as many reference solutions


def check_values(cfg: DictConfig) -> None:
    """Refuse numbers that cannot work, naming the key."""
    check_config(cfg, KEYS)
    counts = ("batch_size", "gradient_accumulation_steps", "epochs", "max_steps", "save_every_n_steps")
    counts += ("keep_checkpoints", "pack_tokens", "evaluation.every_n_steps")
    at_least = {**dict.fromkeys(counts, 1), "value_head.dropout": 0}
    check_numbers(cfg, at_least, ("clip_grad_norm", "evaluation.share", "value_head.lr"))
    for name, harm in (("value_head.dropout", "nothing to read"), ("evaluation.share", "no problem to train on")):
        if (OmegaConf.select(cfg, name) or 0) >= 1:
            raise UserError(f"config key {name}: {OmegaConf.select(cfg, name):g} leaves {harm}; give less than 1")
    if cfg.get("reference_solutions") and cfg.loss.get("language_model_weight") == 0:
        raise UserError("config key reference_solutions: nothing learns them with loss.language_model_weight=0")


def load_data(cfg: DictConfig) -> Data:
    """Graded answers, a share of their problems held out, and the reference solutions."""
    tokenizer = config.instantiate(cfg.tokenizer)
    form = TagFormat(prompt=cfg.prompt, step_token="")  # nothing stands behind the answer that is not in it
    dataset: JudgeDataset = config.instantiate(cfg.dataset, tokenizer, form)
    if not dataset.outcome:
        raise UserError("config key dataset: a verifier learns one verdict an answer; use datasets.outcome_dataset")
    train, held_out = dataset.groups, []
    if cfg.get("evaluation"):
        train, held_out = split_by_problem(dataset.groups, cfg.evaluation.share, cfg.seed)
    require_both_classes(train, dataset.source)
    references = load_references(cfg, tokenizer, held_out) if cfg.get("reference_solutions") else []
    return Data(train, held_out, references, dataset.left_out.describe())


def load_references(cfg: DictConfig, tokenizer: ChatTokenizer, held_out: list[JudgeGroup]) -> list[JudgeGroup]:
    """The reference solutions, but for those of the problems that are held out: what is measured is not learned."""
    dataset: SFTDataset = config.instantiate(cfg.reference_solutions, tokenizer)
    hidden = {group.problem_id for group in held_out}
    pairs = zip(dataset, dataset.questions, strict=True)
    references = [as_group(sample) for sample, question in pairs if problem_id(question) not in hidden]
    if not references:
        raise UserError(f"config key reference_solutions: all {len(dataset)} are of problems that are held out")
    return references


def as_group(sample: dict[str, list[int]]) -> JudgeGroup:
    """A row of ``sft_dataset`` as a group with one solution and nothing to be judged."""
    tokens, start = sample["tokens"], next(i for i, label in enumerate(sample["labels"]) if label >= 0)
    solution = JudgeSolution(answer_id="", tokens=tokens[start:], begin=0, reads=[], targets=[], labels=[])
    return JudgeGroup(problem_id="", prompt_tokens=tokens[:start], solutions=[solution])


def setup(cfg: DictConfig, process: Process, output: Path, data: Data) -> Run:
    """Build the model and everything around it; go on from the newest checkpoint in ``output``."""
    torch.manual_seed(cfg.seed)
    logger, loss = build_main_logger(cfg, process), config.instantiate(cfg.loss)
    dropout, head_lr = (OmegaConf.select(cfg, f"value_head.{name}") for name in ("dropout", "lr"))
    model = build_model(
        cfg.model,
        cfg.checkpoint,
        process,
        pick_dtype(cfg.dtype),
        activation_checkpointing=cfg.enable_activation_checkpointing,
        seed=cfg.seed,
        mixed=cfg.dtype == "bf16_mixed",
        value_head=partial(ValueHead, meaning=loss.meaning, dropout=dropout or 0.0),
    )
    if not loss.language_model_weight:
        freeze_output(model)
    groups = [*data.train, *data.held_out, *data.references]
    longest = max(len(group.prompt_tokens) + len(s.tokens) for group in groups for s in group.solutions)
    if longest > model.max_seq_len:
        raise UserError(
            f"the longest solution with its question has {longest} tokens, above the model's {model.max_seq_len}; "
            "lower dataset.max_tokens (tokenizer.max_seq_len for reference_solutions)"
        )
    num_steps = count_steps(cfg, len(data.train), process.world_size)
    optimizer, scheduler = build_optimizer(cfg, model, num_steps, head_lr=head_lr)
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
    """This process's groups of a step, and a reference solution for each of them where there are any.

    The two streams are endless, of shuffled epochs each.
    """
    count, drawn = drawn_a_step(run.cfg, run.process.world_size), []
    for groups, seed in ((run.data.train, run.cfg.seed), (run.data.references, seed_of("references", run.cfg.seed))):
        if groups:
            drawn += [groups[i] for _, i in draw_places(run.position, count, len(groups), seed, run.process)]
    run.position += count
    return drawn


def token_targets(row: JudgeRow) -> Tensor:
    """What the value of each token is to be: the verdict of its answer; NaN in prompts and reference solutions."""
    verdicts = [solution.targets[-1] if solution.targets else math.nan for solution in row.solutions]
    target_R = torch.tensor(verdicts, device=row.inside_R.device)[row.packed.sample_R]
    return target_R.masked_fill(~row.inside_R, math.nan)


def learned_words(run: Run, row: JudgeRow) -> Tensor | None:
    """True for the tokens that the language model learns; None when it learns nothing at all."""
    if not run.loss.language_model_weight:
        return None
    if run.data.references:
        learned = [not solution.targets for solution in row.solutions]
    else:
        learned = [run.cfg.get("language_model_on") == "all" or s.targets == [1.0] for s in row.solutions]
    return torch.tensor(learned, device=row.inside_R.device)[row.packed.sample_R] & row.inside_R


def update(run: Run, rows: list[JudgeRow], step: int) -> dict[str, float]:
    """One optimizer step; returns the step's sums over this process's rows."""
    cfg, process = run.cfg, run.process
    targets, words = [token_targets(row) for row in rows], [learned_words(run, row) for row in rows]
    num_values = sum(int((~target_R.isnan()).sum()) for target_R in targets)
    num_words = sum(0 if learn_R is None else int(learn_R.sum()) for learn_R in words)
    everywhere = gather_values((num_values, num_words), process)
    size = JudgeSize(*(sum(part) / len(everywhere) for part in zip(*everywhere, strict=True)))
    torch.manual_seed(seed_of("dropout", cfg.seed, step, process.rank))  # a run that goes on drops what it would have
    totals: Counter[str] = Counter({"tokens": sum(row.packed.tokens_1T.numel() for row in rows)})
    totals.update({"value_tokens": num_values, "language_model_tokens": num_words})
    for row, target_R, learn_R in zip(rows, targets, words, strict=True):
        with arithmetic(cfg.dtype, process.device):
            values_RA, logprobs_N = read_values(run.model, row.packed, learn_R)
        loss, parts = run.loss(values_RA.squeeze(-1), target_R, logprobs_N, size)
        loss.backward()
        totals.update({"loss": loss.item(), **{name: value.item() for name, value in parts.items()}})
        at_end_R = (row.packed.place_R[:, None] == row.place_S).any(-1)
        scores_S = as_scores(values_RA.detach()[at_end_R, 0], squash=run.loss.squash)
        totals.update({"right": int(((scores_S >= 0.5) == (row.target_S >= 0.5)).sum()), "answers": len(scores_S)})
        totals.update({"good": row.target_S.sum().item()})
    totals["grad_norm"] = take_step(run.model, run.optimizer, cfg.get("clip_grad_norm"), step)
    return dict(totals)


def train(run: Run) -> None:
    """From the first step that is not in a checkpoint to the last."""
    cfg, process = run.cfg, run.process
    best = from_main(best_evaluation(run.output) if process.is_main else None, process)
    if run.data.held_out and not run.first_step:
        best = evaluate(run, 0)
    with (
        tqdm(initial=run.first_step, total=run.num_steps, desc="verifier", disable=not process.is_main) as bar,
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
                bar.set_postfix(loss=f"{metrics['value_loss']:.3f}", accuracy=f"{metrics['accuracy']:.2f}")
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
    """The metrics of a step over all processes: losses and shares are means, ``answers`` and ``*tokens`` sums."""
    total = sum_over_processes(sums, run.process)
    means = ("loss", "value_loss", "language_model_loss", "grad_norm")
    counts = ("answers", "tokens", "value_tokens", "language_model_tokens")
    return {
        **{name: total[name] / run.process.world_size for name in means},
        "accuracy": total["right"] / total["answers"],
        "good_share": total["good"] / total["answers"],
        **{name: total[name] for name in counts},
    }


def evaluate(run: Run, step: int) -> dict[str, Any]:
    """The last token's score of every held-out answer: what it comes to, on disk and in the log."""
    run.model.eval()
    rows = []
    for place in share_places(len(run.data.held_out), run.process):
        group = run.data.held_out[place]
        row = pack_judged([group], run.process.device, run.cfg.get("attention") or "auto")
        with arithmetic(run.cfg.dtype, run.process.device):
            scores = value_scores(run.model, row.packed, row.place_S, squash=run.loss.squash).tolist()
        rows += [
            {
                "place": place, "problem_id": group.problem_id, "answer_id": solution.answer_id, "scores": [score],
                "targets": solution.targets, "labels": solution.labels,
            }
            for solution, score in zip(group.solutions, scores, strict=True)
        ]  # fmt: skip
    run.model.train()
    found = {row["answer_id"]: row for row in gather_rows(rows, run.process)}
    result = None
    if run.process.is_main:
        result = record_evaluation(run.output, step, [*found.values()], squared=not run.loss.squash)
        shown = {f"eval/{name}": value for name, value in result.items() if name != "step" and value is not None}
        run.logger.log_dict(shown, step=step)
        tqdm.write(f"step {step}: {describe_evaluation(result)}")
    return from_main(result, run.process)


def save(run: Run, step: int, best: dict[str, Any] | None) -> None:
    """A checkpoint that ``rank_answers`` loads as it is, and that the next start goes on from."""
    card = judges.JudgeCard(
        head="value", prompt=run.cfg.prompt, step_token="", outcome=True, squash=run.loss.squash
    )
    folder = save_checkpoint(
        run.output,
        step,
        run.model,
        run.optimizer,
        run.scheduler,
        run.cfg.checkpoint,
        run.process,
        {**judges.card_row(card), "recipe": "verifier_valuehead", "step": step},
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
        data = load_data(cfg)
        sizes = {f"num_{name}": len(getattr(data, name)) for name in ("train", "held_out", "references")}
        with open_output(cfg, process, "verifier_valuehead", **sizes) as output:
            train_in(cfg, process, output, data)
    finally:
        stop_process()


def train_in(cfg: DictConfig, process: Process, output: Path, data: Data) -> None:
    """Set up and train, unless the folder holds the finished run."""
    num_steps = count_steps(cfg, len(data.train), process.world_size)
    if agree_on_last_step(output, process) >= num_steps:
        if process.is_main:
            print(f"already trained: {output / f'step_{num_steps}'}; for another run, set another output_dir")
        return
    run = setup(cfg, process, output, data)
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
    data = run.data
    targets = [target for group in data.train for target in group.targets]
    left_out = f" (left out: {data.left_out})" if data.left_out else ""
    start = f"going on from step {run.first_step}" if run.first_step else "from the start"
    problems, held_out = (len({group.problem_id for group in groups}) for groups in (data.train, data.held_out))
    return (
        f"{len(targets)} answers, {sum(targets) / len(targets):.1%} right, to {problems} problems{left_out}; "
        f"{held_out} problems held out, {len(data.references)} reference solutions; "
        f"{run.num_steps} steps on {run.process.world_size} process(es), {start}"
    )


if __name__ == "__main__":
    run_recipe(main)
