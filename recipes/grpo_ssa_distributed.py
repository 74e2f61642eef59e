"""GRPO for an aggregator that reads k answers and writes one (SSA, arXiv 2506.09014), or for plain problems.

A step: every process samples ``group_size`` completions for each of its prompts, grades them, compares
each with its group, and moves the policy towards the better ones, held near the start model by a KL term.

How it departs from the paper's code:
- A prompt and its completions are one row (tt_reasoning.prefix_tree): the long prompt is computed once, and
  several prompts share a row up to ``pack_tokens``.
- Old log-probabilities are those of the first update, detached: there is never a pass for them alone.
- The start model is a second model only where all weights are trained; with LoRA it is the base, adapters off.
- A completion that the grader cannot judge has no reward and no part in its group's mean; it is counted.
- Sampling depends on (seed, place in the data, sample) alone, so a resumed run repeats an uninterrupted one.

    tune run --nproc_per_node 4 grpo_ssa_distributed --config configs/3B_rl.yaml
    tune run grpo_ssa_distributed --config configs/135M_rl_cpu.yaml dataset.source=sets/demo max_steps=2
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
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

from tt_reasoning.checkpoint import (
    agree_on_last_step,
    keep_best,
    remove_torn_checkpoints,
    resume_from,
    save_checkpoint,
)
from tt_reasoning.config import Component, Section, check_config, run_recipe
from tt_reasoning.datasets import RLDataset, RLExample
from tt_reasoning.errors import UserError
from tt_reasoning.grading import Grader
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
from tt_reasoning.lora import is_lora, without_adapters
from tt_reasoning.losses import StepSize, group_advantages
from tt_reasoning.models import ChatTokenizer
from tt_reasoning.prefix_tree import PackedRow, completion_logprobs, fill_rows, pack_groups
from tt_reasoning.rollout import Completion, NativeRollout, Rollout
from tt_reasoning.selection import bootstrap_interval
from tt_reasoning.store import append_records, read_rows
from tt_reasoning.training import (
    Process,
    arithmetic,
    build_model,
    from_main,
    gather_rows,
    gather_values,
    level_rows,
    pick_dtype,
    start_process,
    stop_process,
    sum_over_processes,
)
from tt_reasoning.types import Verdict, seed_of

KEYS = {
    "output_dir": str,
    "seed": int,
    "device": Literal["auto", "cpu", "cuda"],
    "dtype": Literal["fp32", "bf16", "bf16_mixed"],
    "tokenizer": Component(),
    "model": Component(),
    "checkpoint": str,
    "dataset": Component("tokenizer"),
    "rollout": Component(optional=True),
    "reward": Component(),
    "mask_truncated_completions": bool | None,
    "dynamic_sampling": Section({"min_active_groups": int, "max_resample": int}),
    "loss": Component(),
    "optimizer": Component("params"),
    "lr_scheduler": Component("optimizer", "num_training_steps", "last_epoch", optional=True),
    "metric_logger": Component(),
    "profiler": Component(optional=True),
    "batch_size": int,
    "gradient_accumulation_steps": int,
    "updates_per_rollout": int | None,
    "pack_tokens": int | None,
    "attention": Literal["auto", "split", "flex", "dense", None],
    "group_size": int,
    "max_new_tokens": int,
    "temperature": float,
    "top_k": int,
    "epochs": int,
    "max_steps": int | None,
    "clip_grad_norm": float | None,
    "enable_activation_checkpointing": bool,
    "save_every_n_steps": int | None,
    "keep_checkpoints": int | None,
    "evaluation": Section({"dataset": Component("tokenizer"), "every_n_steps": int}),
    "grading_timeout_s": float,
}

COMPLETIONS, EVALUATIONS = "completions.jsonl", "evaluations.jsonl"


@dataclass
class Run:
    """Everything that ``train`` needs, as ``setup`` built it."""

    cfg: DictConfig
    process: Process
    output: Path
    tokenizer: ChatTokenizer
    dataset: RLDataset
    held_out: RLDataset | None  # evaluated every evaluation.every_n_steps
    policy: TransformerDecoder
    reference: TransformerDecoder | None  # the start model; None when the loss has no KL term
    rollout: Rollout
    reward: Any
    loss: Any
    optimizer: Optimizer
    scheduler: LRScheduler | None
    logger: Any
    grader: Grader
    first_step: int
    num_steps: int
    position: int = 0  # prompts drawn so far, over all processes


@dataclass(frozen=True)
class Group:
    """One prompt's completions with what they earned. Shape: G = group_size."""

    example: RLExample
    completions: list[Completion]
    verdicts: list[Verdict]
    parts: list[dict[str, float]]  # the named parts of each reward
    rewards_G: Tensor  # NaN where the grader could not judge
    advantages_G: Tensor  # 0 where the completion is masked
    masked: list[bool]  # completions that no gradient comes from

    @property
    def is_active(self) -> bool:
        """Whether the policy gradient has anything of it."""
        return bool(self.advantages_G.any())

    @property
    def trained(self) -> list[Completion]:
        """The completions, those that are masked without their tokens."""
        none = Completion([], "", "length", [])
        return [none if masked else c for c, masked in zip(self.completions, self.masked, strict=True)]

    @property
    def num_tokens(self) -> int:
        """Tokens of the group in a row."""
        return len(self.example.prompt_tokens) + sum(len(c.tokens) for c in self.trained)


def check_values(cfg: DictConfig) -> None:
    """Refuse numbers that cannot work, naming the key."""
    check_config(cfg, KEYS)
    counts = ("batch_size", "gradient_accumulation_steps", "max_new_tokens", "epochs", "max_steps")
    counts += ("save_every_n_steps", "keep_checkpoints", "updates_per_rollout", "pack_tokens")
    counts += ("evaluation.every_n_steps", "dynamic_sampling.min_active_groups", "dynamic_sampling.max_resample")
    check_numbers(cfg, {"group_size": 2, **dict.fromkeys(counts, 1)}, ("clip_grad_norm", "grading_timeout_s"))
    if cfg.top_k < 0:
        raise UserError(f"config key top_k: {cfg.top_k} is below 0; 0 is no limit")
    if cfg.temperature <= 0:
        raise UserError(f"config key temperature: {cfg.temperature}: GRPO needs samples that differ, so above 0")


def setup(cfg: DictConfig, process: Process, output: Path, dataset: RLDataset, tokenizer: ChatTokenizer) -> Run:
    """Build the models and everything around them; go on from the newest checkpoint in ``output``."""
    torch.manual_seed(cfg.seed)
    loss, mixed = config.instantiate(cfg.loss), cfg.dtype == "bf16_mixed"
    logger = build_main_logger(cfg, process)
    held_out = build_held_out(cfg, dataset, tokenizer)
    policy = build_model(
        cfg.model,
        cfg.checkpoint,
        process,
        pick_dtype(cfg.dtype),
        activation_checkpointing=cfg.enable_activation_checkpointing,
        seed=cfg.seed,
        mixed=mixed,
    )
    examples = [*dataset, *(held_out or ())]
    longest = max(len(example.prompt_tokens) for example in examples) + cfg.max_new_tokens
    if longest > policy.max_seq_len:
        raise UserError(
            f"the longest prompt with max_new_tokens={cfg.max_new_tokens} has {longest} tokens, above the model's "
            f"{policy.max_seq_len}; lower dataset.max_prompt_tokens or max_new_tokens"
        )
    reference = None
    if loss.kl_coeff:
        reference = policy
        if not is_lora(policy):
            dtype = pick_dtype(cfg.dtype)
            reference = build_model(cfg.model, cfg.checkpoint, process, dtype, trainable=False, mixed=mixed)
    num_steps = count_steps(cfg, len(dataset), process.world_size)
    optimizer, scheduler = build_optimizer(cfg, policy, num_steps)
    first_step, position = agree_on_last_step(output, process), 0
    if first_step:
        position = resume_from(output, first_step, policy, optimizer, scheduler, process)["position"]
    rollout = NativeRollout(cfg.batch_size) if cfg.get("rollout") is None else config.instantiate(cfg.rollout)
    stop = dataset.prompt.stop
    rollout.start(policy, process, tokenizer, checkpoint=cfg.checkpoint, stop=stop, max_len=longest)
    return Run(
        cfg=cfg,
        process=process,
        output=output,
        tokenizer=tokenizer,
        dataset=dataset,
        held_out=held_out,
        policy=policy,
        reference=reference,
        rollout=rollout,
        reward=config.instantiate(cfg.reward),
        loss=loss,
        optimizer=optimizer,
        scheduler=scheduler,
        logger=logger,
        grader=Grader(timeout_s=cfg.grading_timeout_s),
        first_step=first_step,
        num_steps=num_steps,
        position=position,
    )


def build_held_out(cfg: DictConfig, dataset: RLDataset, tokenizer: ChatTokenizer) -> RLDataset | None:
    """The examples of ``evaluation``, asked with the prompt of training."""
    if cfg.get("evaluation") is None:
        return None
    held_out = config.instantiate(cfg.evaluation.dataset, tokenizer)
    if held_out.prompt.name != dataset.prompt.name:
        raise UserError(
            f"config key evaluation.dataset.prompt: '{held_out.prompt.name}', but training asks with "
            f"'{dataset.prompt.name}'"
        )
    return held_out


def next_examples(run: Run) -> list[tuple[int, RLExample]]:
    """This process's next prompts, each with its place in the endless stream of shuffled epochs."""
    count = drawn_a_step(run.cfg, run.process.world_size)
    drawn = draw_places(run.position, count, len(run.dataset), run.cfg.seed, run.process)
    run.position += count
    return [(place, run.dataset[index]) for place, index in drawn]


def sample(run: Run, examples: list[RLExample], seeds: list[list[int]], temperature: float) -> list[list[Completion]]:
    """As many completions of every example as it has seeds."""
    with arithmetic(run.cfg.dtype, run.process.device):
        return run.rollout.generate(
            [example.prompt_tokens for example in examples],
            seeds,
            max_new_tokens=run.cfg.max_new_tokens,
            temperature=temperature,
            top_k=run.cfg.top_k,
        )


def collect(run: Run, watch: Stopwatch) -> tuple[list[Group], list[Group]]:
    """This process's groups of a step, and all that were drawn for it.

    With ``dynamic_sampling`` further prompts are drawn, a whole step's at a time, until ``min_active_groups`` of all
    processes together have rewards that differ, or ``max_resample`` times; then those with equal rewards make way.
    """
    cfg, dynamic = run.cfg, run.cfg.get("dynamic_sampling")
    drawn: list[Group] = []
    size = drawn_a_step(cfg, 1)
    for _ in range(1 + (dynamic.max_resample if dynamic else 0)):
        with watch.stage("rollout"):
            examples = next_examples(run)
            seeds = [[seed_of(cfg.seed, place, i) for i in range(cfg.group_size)] for place, _ in examples]
            completions = sample(run, [example for _, example in examples], seeds, cfg.temperature)
        with watch.stage("grade"):
            drawn += [score(run, example, c) for (_, example), c in zip(examples, completions, strict=True)]
        active = min(sum(group.is_active for group in drawn), size)
        if dynamic and sum(gather_values(active, run.process)) >= dynamic.min_active_groups:
            break
    return sorted(drawn, key=lambda group: not group.is_active)[:size], drawn


def score(run: Run, example: RLExample, completions: list[Completion]) -> Group:
    """Grade and reward one prompt's completions, and compare each with its group."""
    texts = [run.dataset.prompt.prefill + completion.text for completion in completions]
    verdicts = [run.grader.grade(text, example.reference, example.kind) for text in texts]
    parts = [
        {} if v.correct is None else run.reward(text, example.reference, v)
        for text, v in zip(texts, verdicts, strict=True)
    ]
    rewards_G = torch.tensor(
        [math.nan if v.correct is None else sum(p.values()) for v, p in zip(verdicts, parts, strict=True)],
        dtype=torch.float64,
    )
    mask = bool(run.cfg.get("mask_truncated_completions"))
    masked = [mask and completion.finish_reason == "length" for completion in completions]
    advantages_G = group_advantages(rewards_G, divide_by_std=run.loss.divide_by_std).float()
    advantages_G = advantages_G.masked_fill(torch.tensor(masked), 0)
    return Group(example, completions, verdicts, parts, rewards_G, advantages_G, masked)


def rows_to_compute(run: Run, groups: list[Group]) -> list[list[Group]]:
    """The groups that share each row: all with a KL term, else the active ones, as the others have no gradient.

    Every process computes as many rows as the one with the most, since a sharded model's passes are joint: groups
    that were left out fill up, and change nothing; when there are none, rows are split.
    """
    chosen = [group for group in groups if run.reference is not None or group.is_active]
    spare = [group for group in groups if run.reference is None and not group.is_active]
    packed = fill_rows([group.num_tokens for group in chosen], run.cfg.get("pack_tokens"))
    return level_rows([[chosen[i] for i in row] for row in packed], run.process, spare)


def pack(run: Run, row: list[Group]) -> tuple[PackedRow, Tensor, Tensor | None]:
    """A row's tokens, the advantage of each completion, and the log-probabilities that another engine drew with."""
    device, completions = run.process.device, [c for group in row for c in group.trained]
    packed = pack_groups(
        [(group.example.prompt_tokens, [c.tokens for c in group.trained]) for group in row],
        device,
        run.cfg.get("attention") or "auto",
    )
    sampled_R = None
    if all(c.logprobs is not None for c in completions):
        sampled_R = torch.tensor([logprob for c in completions for logprob in c.logprobs or ()], device=device)
    return packed, torch.cat([group.advantages_G for group in row]).to(device), sampled_R


def reference_logprobs(run: Run, packed: PackedRow) -> Tensor | None:
    """The start model's log-probabilities; None where the loss has no KL term."""
    if run.reference is None:
        return None
    adapters_off = without_adapters(run.policy) if run.reference is run.policy else nullcontext()
    with torch.no_grad(), adapters_off, arithmetic(run.cfg.dtype, run.process.device):
        return completion_logprobs(run.reference, packed, temperature=run.cfg.temperature)


def update(run: Run, groups: list[Group], step: int, watch: Stopwatch) -> dict[str, float]:
    """The optimizer steps of one step; returns means over this process's groups and over the updates."""
    cfg = run.cfg
    num_tokens = sum(len(c.tokens) for group in groups for c in group.trained)
    size = StepSize(
        num_samples=len(groups) * cfg.group_size,
        num_tokens=sum(gather_values(num_tokens, run.process)) / run.process.world_size,
        max_new_tokens=cfg.max_new_tokens,
    )
    rows = rows_to_compute(run, groups)
    packed = [pack(run, row) for row in rows]
    with watch.stage("reference"):
        references = [reference_logprobs(run, row) for row, _, _ in packed]
    old: list[Tensor] = []
    totals: Counter[str] = Counter({"loss": 0.0, "kl": 0.0, "clipped_share": 0.0, "grad_norm": 0.0})
    num_updates = cfg.get("updates_per_rollout") or 1
    with watch.stage("update"):
        for _ in range(num_updates):
            for i, (row, advantages_G, sampled_R) in enumerate(packed):
                with arithmetic(cfg.dtype, run.process.device):
                    logprobs_R = completion_logprobs(run.policy, row, temperature=cfg.temperature)
                if len(old) == i:
                    old.append(logprobs_R.detach())
                loss, means = run.loss(
                    logprobs_R, old[i], references[i], advantages_G, row.sample_R, size, sampled_R=sampled_R
                )
                loss.backward()
                # A step's loss is the sum over its rows; everything else is logged as a mean over its groups.
                totals["loss"] += loss.item()
                totals.update({name: value.item() * len(rows[i]) / len(groups) for name, value in means.items()})
            norm = take_step(run.policy, run.optimizer, cfg.get("clip_grad_norm"), step, has_gradient=bool(rows))
            totals["grad_norm"] += norm
    computed = sum(len(row) for row in rows) / len(groups)
    return {**{name: value / num_updates for name, value in totals.items()}, "computed_share": computed}


def train(run: Run) -> None:
    """From the first step that is not in a checkpoint to the last."""
    cfg, process = run.cfg, run.process
    best = from_main(best_evaluation(run.output) if process.is_main else None, process)
    if run.held_out and not run.first_step:
        best = evaluate(run, 0)
    hidden = not process.is_main
    with (
        tqdm(initial=run.first_step, total=run.num_steps, desc="grpo", disable=hidden) as bar,
        profile(cfg.get("profiler")) as profiler,
    ):
        for step in range(run.first_step + 1, run.num_steps + 1):
            watch = Stopwatch(process.device)
            with watch.stage("sync"):
                synced = run.rollout.sync()
            groups, drawn = collect(run, watch)
            losses = update(run, groups, step, watch)
            lr = run.optimizer.param_groups[0]["lr"]
            if run.scheduler is not None:
                run.scheduler.step()
            metrics = {**summarize(run, groups, drawn, losses), **synced, "lr": float(lr)}
            timing = watch.timing(metrics["tokens"])
            rows = gather_rows(list(describe(step, drawn)), process)
            if process.is_main:
                append_records(run.output / COMPLETIONS, rows)
                append_records(run.output / METRICS, [{"step": step, **metrics, **timing}])
                run.logger.log_dict({**metrics, **timing}, step=step)
                bar.set_postfix(reward=f"{metrics['reward']:.1f}", success=f"{metrics['success']:.2f}")
            last, is_best = step == run.num_steps, False
            if run.held_out and (last or step % cfg.evaluation.every_n_steps == 0):
                run.rollout.sync()
                found = evaluate(run, step)
                is_best = best is None or found["accuracy"] > best["accuracy"]
                best = found if is_best else best
            if last or is_best or (cfg.get("save_every_n_steps") and step % cfg.save_every_n_steps == 0):
                save(run, step, best)
            profiler.step()
            bar.update()


def summarize(run: Run, groups: list[Group], drawn: list[Group], losses: dict[str, float]) -> dict[str, float]:
    """The metrics of a step over all processes: means over completions or groups; ``tokens``, ``*_groups`` are sums.

    Rewards are of all that was drawn: what ``dynamic_sampling`` leaves out was an answer of the policy too.
    """
    rewards = torch.cat([group.rewards_G for group in drawn])
    judged = rewards[~rewards.isnan()]
    completions = [completion for group in drawn for completion in group.completions]
    parts: Counter[str] = Counter()
    for part in (part for group in drawn for part in group.parts):
        parts.update(part)  # unlike +, it keeps a penalty
    per_judged = {
        "reward": judged.sum().item(),
        "success": sum(v.correct is True for group in drawn for v in group.verdicts),
        **{f"reward/{name}": value for name, value in parts.items()},
    }
    per_completion = {
        "completion_tokens": sum(len(completion.tokens) for completion in completions),
        "cut_share": sum(completion.finish_reason == "length" for completion in completions),
        "judged_share": len(judged),
    }
    sums = {
        "tokens": sum(len(g.example.prompt_tokens) + sum(len(c.tokens) for c in g.completions) for g in drawn),
        "drawn_groups": len(drawn),
        "active_groups": sum(group.is_active for group in groups),
    }
    counts = {"judged": len(judged), "completions": len(completions), "processes": 1}
    values = [{k: float(v) for k, v in part.items()} for part in (per_judged, per_completion, losses, sums, counts)]
    *found, total = (sum_over_processes(part, run.process) for part in values)
    divisors = (max(total["judged"], 1), total["completions"], total["processes"], 1)
    return {name: value / n for part, n in zip(found, divisors, strict=True) for name, value in part.items()}


def evaluate(run: Run, step: int) -> dict[str, Any]:
    """Greedy answers to the held-out examples: accuracy with its 95 % interval, written to ``evaluations.jsonl``."""
    places = share_places(len(run.held_out), run.process)
    examples = [run.held_out[place] for place in places]
    found = sample(run, examples, [[0]] * len(examples), temperature=0.0)
    groups = [score(run, example, completions) for example, completions in zip(examples, found, strict=True)]
    rows = gather_rows([{"place": p, **describe_one(g, 0)} for p, g in zip(places, groups, strict=True)], run.process)
    by_place = {row["place"]: row for row in rows}
    result = report_evaluation(run, step, list(by_place.values())) if run.process.is_main else None
    return from_main(result, run.process)


def report_evaluation(run: Run, step: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy over the judged completions of an evaluation, on disk and in the log."""
    right = [float(row["correct"]) for row in rows if row["correct"] is not None]
    low, high = bootstrap_interval(right) if right else (0.0, 1.0)
    result = {
        "step": step,
        "accuracy": sum(right) / max(len(right), 1),
        "low": low,
        "high": high,
        "num_problems": len(rows),
        "judged": len(right),
        "reward": sum(row["reward"] or 0.0 for row in rows) / max(len(right), 1),
        "cut_share": sum(row["finish_reason"] == "length" for row in rows) / len(rows),
    }
    append_records(run.output / EVALUATIONS, [result])
    run.logger.log_dict({f"eval/{k}": v for k, v in result.items() if k != "step"}, step=step)
    tqdm.write(
        f"step {step}: held-out accuracy {result['accuracy']:.1%} [{low:.1%}, {high:.1%}] on {len(right)} problems"
    )
    return result


def best_evaluation(output: Path) -> dict[str, Any] | None:
    """The first of the evaluations with the highest accuracy."""
    if not (output / EVALUATIONS).exists():
        return None
    return max(read_rows(output / EVALUATIONS), key=lambda row: row["accuracy"], default=None)


def describe(step: int, groups: list[Group]) -> Iterator[dict[str, Any]]:
    """One row a completion, for reading what was rewarded."""
    for group in groups:
        for i in range(len(group.completions)):
            yield {"step": step, **describe_one(group, i), "advantage": group.advantages_G[i].item()}


def describe_one(group: Group, i: int) -> dict[str, Any]:
    """What a completion was and what it earned."""
    completion, verdict, reward = group.completions[i], group.verdicts[i], group.rewards_G[i].item()
    return {
        "problem_id": group.example.problem_id,
        "sample_index": i,
        "text": completion.text,
        "num_tokens": len(completion.tokens),
        "finish_reason": completion.finish_reason,
        "reference": group.example.reference,
        "extracted": verdict.extracted,
        "correct": verdict.correct,
        "reason": verdict.reason,
        "reward": None if math.isnan(reward) else reward,
        "parts": group.parts[i],
    }


def save(run: Run, step: int, best: dict[str, Any] | None) -> None:
    """A checkpoint that ``evaluate`` and vLLM load as it is, and that the next start goes on from."""
    card = {"recipe": "grpo_ssa_distributed", "prompt": run.dataset.prompt.name, "step": step}
    folder = save_checkpoint(
        run.output,
        step,
        run.policy,
        run.optimizer,
        run.scheduler,
        run.cfg.checkpoint,
        run.process,
        card,
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
        wanted = OmegaConf.select(cfg, "dynamic_sampling.min_active_groups")
        if wanted and wanted > drawn_a_step(cfg, process.world_size):
            raise UserError(
                f"config key dynamic_sampling.min_active_groups: {wanted} is above the "
                f"{drawn_a_step(cfg, process.world_size)} prompts of a step"
            )
        tokenizer = config.instantiate(cfg.tokenizer)
        dataset = config.instantiate(cfg.dataset, tokenizer)
        with open_output(cfg, process, "grpo_ssa_distributed", num_examples=len(dataset)) as output:
            train_in(cfg, process, output, dataset, tokenizer)
    finally:
        stop_process()


def train_in(cfg: DictConfig, process: Process, output: Path, dataset: RLDataset, tokenizer: ChatTokenizer) -> None:
    """Set up and train, unless the folder holds the finished run."""
    num_steps = count_steps(cfg, len(dataset), process.world_size)
    if agree_on_last_step(output, process) >= num_steps:
        if process.is_main:
            print(f"already trained: {output / f'step_{num_steps}'}; for another run, set another output_dir")
        return
    with ExitStack() as held:
        run = setup(cfg, process, output, dataset, tokenizer)
        held.callback(run.rollout.close)
        held.enter_context(run.grader)
        if process.is_main:
            drop_rows_after(output, (METRICS, COMPLETIONS, EVALUATIONS), run.first_step)
            remove_torn_checkpoints(output)
            skipped = f", {dataset.num_too_long} too long and left out" if dataset.num_too_long else ""
            start = f"going on from step {run.first_step}" if run.first_step else "from the start"
            run.logger.log_config(cfg)
            print(f"{len(dataset)} prompts{skipped}; {num_steps} steps on {process.world_size} process(es), {start}")
        train(run)
        if process.is_main:
            run.logger.close()
            print(f"done: {num_steps} steps -> {output / f'step_{num_steps}'}")
            best = best_evaluation(output)
            if best:
                where = f"step {best['step']} -> {output / 'best'}" if best["step"] else "the start model"
                print(f"best on the held-out problems: {best['accuracy']:.1%}, {where}")


if __name__ == "__main__":
    run_recipe(main)
