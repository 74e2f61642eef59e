"""GRPO for an aggregator that reads k answers and writes one (SSA, arXiv 2506.09014), or for plain problems.

A step: every process samples ``group_size`` completions for each of its prompts, grades them, compares
each with its group, and moves the policy towards the better ones, held near the start model by a KL term.

How it departs from the paper's code:
- A prompt and its completions are one row (tt_reasoning.prefix_tree): the long prompt is computed once.
- Old log-probabilities are the new ones, detached: there is one update a rollout.
- A completion that the grader cannot judge has no reward and no part in its group's mean; it is counted.
- Sampling depends on (seed, step, problem, sample) alone, so a resumed run repeats an uninterrupted one.

    tune run --nproc_per_node 4 grpo_ssa_distributed --config configs/3B_rl.yaml
    tune run grpo_ssa_distributed --config configs/135M_rl_cpu.yaml dataset.source=sets/demo max_steps=2
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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
    last_step,
    prune_checkpoints,
    remove_torn_checkpoints,
    resume_from,
    save_checkpoint,
)
from tt_reasoning.config import Component, check_config, run_recipe
from tt_reasoning.datasets import RLDataset, RLExample
from tt_reasoning.errors import UserError
from tt_reasoning.grading import Grader
from tt_reasoning.losses import StepSize, group_advantages
from tt_reasoning.models import ChatTokenizer
from tt_reasoning.prefix_tree import completion_logprobs, pack_group
from tt_reasoning.rollout import Completion, generate
from tt_reasoning.store import append_records, open_run, read_rows, write_records
from tt_reasoning.training import (
    Process,
    build_model,
    clip_gradients,
    gather_rows,
    gather_values,
    pick_dtype,
    run_on_main,
    start_process,
    stop_process,
    sum_over_processes,
    wait_for_main,
)
from tt_reasoning.types import Verdict, seed_of

KEYS = {
    "output_dir": str,
    "seed": int,
    "device": Literal["auto", "cpu", "cuda"],
    "dtype": Literal["fp32", "bf16"],
    "tokenizer": Component(),
    "model": Component(),
    "checkpoint": str,
    "dataset": Component("tokenizer"),
    "reward": Component(),
    "loss": Component(),
    "optimizer": Component("params"),
    "lr_scheduler": Component("optimizer", "num_training_steps", "last_epoch", optional=True),
    "metric_logger": Component(),
    "batch_size": int,
    "gradient_accumulation_steps": int,
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
    "grading_timeout_s": float,
}

# What may change when a run goes on: no weight depends on it.
NOT_IDENTITY = ("metric_logger", "save_every_n_steps", "keep_checkpoints")
METRICS, COMPLETIONS = "metrics.jsonl", "completions.jsonl"


@dataclass
class Run:
    """Everything that ``train`` needs, as ``setup`` built it."""

    cfg: DictConfig
    process: Process
    output: Path
    tokenizer: ChatTokenizer
    dataset: RLDataset
    policy: TransformerDecoder
    reference: TransformerDecoder | None  # the frozen start model; None when the loss has no KL term
    reward: Any
    loss: Any
    optimizer: Optimizer
    scheduler: LRScheduler | None
    logger: Any
    grader: Grader
    first_step: int
    num_steps: int


@dataclass(frozen=True)
class Group:
    """One prompt's completions with what they earned. Shape: G = group_size."""

    example: RLExample
    completions: list[Completion]
    verdicts: list[Verdict]
    parts: list[dict[str, float]]  # the named parts of each reward
    rewards_G: Tensor  # NaN where the grader could not judge
    advantages_G: Tensor


class Stopwatch:
    """Seconds by stage of one step."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # kernels run behind the call that starts them
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def count_steps(cfg: DictConfig, num_examples: int, world_size: int) -> int:
    """``max_steps``, or as many as ``epochs`` over the examples take (the last step may begin another epoch)."""
    per_step = cfg.batch_size * cfg.gradient_accumulation_steps * world_size
    whole = math.ceil(cfg.epochs * num_examples / per_step)
    return whole if cfg.get("max_steps") is None else cfg.max_steps


def check_values(cfg: DictConfig) -> None:
    """Refuse numbers that cannot work, naming the key."""
    check_config(cfg, KEYS)
    counts = ("batch_size", "gradient_accumulation_steps", "max_new_tokens", "epochs", "max_steps")
    counts += ("save_every_n_steps", "keep_checkpoints")
    for name, least in {"group_size": 2, **dict.fromkeys(counts, 1)}.items():
        if cfg.get(name) is not None and cfg[name] < least:
            raise UserError(f"config key {name}: {cfg[name]} is below {least}")
    for name in ("clip_grad_norm", "grading_timeout_s"):
        if cfg.get(name) is not None and cfg[name] <= 0:
            raise UserError(f"config key {name}: {cfg[name]} is not above 0")
    if cfg.top_k < 0:
        raise UserError(f"config key top_k: {cfg.top_k} is below 0; 0 is no limit")
    if cfg.temperature <= 0:
        raise UserError(f"config key temperature: {cfg.temperature}: GRPO needs samples that differ, so above 0")


def setup(cfg: DictConfig, process: Process, output: Path, dataset: RLDataset, tokenizer: ChatTokenizer) -> Run:
    """Build the models and everything around them; go on from the newest checkpoint in ``output``."""
    torch.manual_seed(cfg.seed)
    dtype = pick_dtype(cfg.dtype)
    loss = config.instantiate(cfg.loss)
    logger = build_logger(cfg.metric_logger) if process.is_main else None
    policy = build_model(
        cfg.model,
        cfg.checkpoint,
        process,
        dtype,
        activation_checkpointing=cfg.enable_activation_checkpointing,
    )
    longest = max(len(example.prompt_tokens) for example in dataset) + cfg.max_new_tokens
    if longest > policy.max_seq_len:
        raise UserError(
            f"the longest prompt with max_new_tokens={cfg.max_new_tokens} has {longest} tokens, above the model's "
            f"{policy.max_seq_len}; lower dataset.max_prompt_tokens or max_new_tokens"
        )
    reference = None
    if loss.kl_coeff:
        reference = build_model(cfg.model, cfg.checkpoint, process, dtype, trainable=False)
    optimizer = config.instantiate(cfg.optimizer, policy.parameters())
    num_steps = count_steps(cfg, len(dataset), process.world_size)
    scheduler = None
    if cfg.get("lr_scheduler") is not None:
        scheduler = config.instantiate(cfg.lr_scheduler, optimizer, num_training_steps=num_steps, last_epoch=-1)
    first_step = last_step(output)
    if first_step:
        resume_from(output, first_step, policy, optimizer, scheduler, process)
    return Run(
        cfg=cfg,
        process=process,
        output=output,
        tokenizer=tokenizer,
        dataset=dataset,
        policy=policy,
        reference=reference,
        reward=config.instantiate(cfg.reward),
        loss=loss,
        optimizer=optimizer,
        scheduler=scheduler,
        logger=logger,
        grader=Grader(timeout_s=cfg.grading_timeout_s),
        first_step=first_step,
        num_steps=num_steps,
    )


def build_logger(logger_cfg: DictConfig) -> Any:
    """The metric logger; a package that it lacks is a user's mistake, found before any weight loads."""
    try:
        return config.instantiate(logger_cfg)
    except ImportError as error:
        raise UserError(f"config key metric_logger: {str(error).splitlines()[0]}") from None


def examples_of_step(run: Run, step: int) -> list[tuple[int, RLExample]]:
    """This process's examples of a step, each with its place in the endless stream of shuffled epochs."""
    cfg, (rank, world_size, _) = run.cfg, run.process
    per_step = cfg.batch_size * cfg.gradient_accumulation_steps * world_size
    found = []
    for place in range(step * per_step + rank, (step + 1) * per_step, world_size):
        epoch, index = divmod(place, len(run.dataset))
        order = torch.randperm(len(run.dataset), generator=torch.Generator().manual_seed(seed_of(cfg.seed, epoch)))
        found.append((place, run.dataset[int(order[index])]))
    return found


def roll_out(run: Run, examples: list[tuple[int, RLExample]]) -> list[list[Completion]]:
    """``group_size`` completions of every example, ``batch_size`` prompts at a time."""
    cfg, groups = run.cfg, []
    for start in range(0, len(examples), cfg.batch_size):
        batch = examples[start : start + cfg.batch_size]
        groups += generate(
            run.policy,
            [example.prompt_tokens for _, example in batch],
            [[seed_of(cfg.seed, place, sample) for sample in range(cfg.group_size)] for place, _ in batch],
            max_new_tokens=cfg.max_new_tokens,
            temperature=cfg.temperature,
            top_k=cfg.top_k,
            stop=run.dataset.prompt.stop,
            stop_tokens=run.tokenizer.stop_tokens,
            decode=run.tokenizer.decode,
        )
    return groups


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
    advantages_G = group_advantages(rewards_G, divide_by_std=run.loss.divide_by_std).float()
    return Group(example, completions, verdicts, parts, rewards_G, advantages_G)


def groups_that_count(run: Run, groups: list[Group]) -> list[Group]:
    """The groups to compute: all with a KL term, else those whose rewards differ, as the others have no gradient.

    Every process computes as many as the one with the most, since a sharded model's passes are joint.
    """
    if run.reference is not None:
        return groups
    order = sorted(groups, key=lambda group: not group.advantages_G.any())
    active = sum(bool(group.advantages_G.any()) for group in groups)
    return order[: max(gather_values(active, run.process))]


def update(run: Run, groups: list[Group], watch: Stopwatch) -> dict[str, float]:
    """The gradient of one step; returns the sums of what the loss reports, over this process's groups."""
    cfg, device = run.cfg, run.process.device
    num_tokens = [sum(len(completion.tokens) for completion in group.completions) for group in groups]
    size = StepSize(
        num_samples=len(groups) * cfg.group_size,
        num_tokens=sum(gather_values(sum(num_tokens), run.process)) / run.process.world_size,
        max_new_tokens=cfg.max_new_tokens,
    )
    totals: Counter[str] = Counter({"loss": 0.0, "kl": 0.0, "clipped_share": 0.0, "computed_groups": 0})
    for group in groups_that_count(run, groups):
        packed = pack_group(group.example.prompt_tokens, [c.tokens for c in group.completions], device)
        reference_R = None
        if run.reference is not None:
            with watch.stage("reference"), torch.no_grad():
                reference_R = completion_logprobs(run.reference, packed, temperature=cfg.temperature)
        with watch.stage("update"):
            logprobs_R = completion_logprobs(run.policy, packed, temperature=cfg.temperature)
            loss, reported = run.loss(
                logprobs_R, logprobs_R.detach(), reference_R, group.advantages_G.to(device), packed.sample_R, size
            )
            loss.backward()
            # A step's loss is the sum over its groups; everything else is logged as a mean over them.
            totals.update({"loss": loss.item() * len(groups), "computed_groups": 1})
            totals.update({name: value.item() for name, value in reported.items()})
    return dict(totals)


def train(run: Run) -> None:
    """From the first step that is not in a checkpoint to the last."""
    cfg, process = run.cfg, run.process
    steps = range(run.first_step, run.num_steps)
    bar = tqdm(steps, initial=run.first_step, total=run.num_steps, desc="grpo", disable=not process.is_main)
    for step in bar:
        watch = Stopwatch(process.device)
        with watch.stage("rollout"):
            examples = examples_of_step(run, step)
            completions = roll_out(run, examples)
        with watch.stage("grade"):
            groups = [score(run, example, c) for (_, example), c in zip(examples, completions, strict=True)]
        losses = update(run, groups, watch)
        with watch.stage("update"):
            grad_norm = clip_gradients(run.policy, cfg.get("clip_grad_norm"))
            if not math.isfinite(grad_norm):
                raise UserError(
                    f"step {step + 1}: the gradient's norm is {grad_norm}; the last checkpoint is sound, "
                    "go on from it in another output_dir with a lower optimizer.lr"
                )
            if losses["computed_groups"]:  # else there is no gradient to learn from
                run.optimizer.step()
            run.optimizer.zero_grad(set_to_none=True)
        lr = run.optimizer.param_groups[0]["lr"]
        if run.scheduler is not None:
            run.scheduler.step()
        metrics = {**summarize(run, groups, losses), "grad_norm": grad_norm, "lr": float(lr)}
        timing = {f"seconds_{name}": seconds for name, seconds in watch.seconds.items()}
        timing["tokens_per_s"] = metrics["tokens"] / sum(watch.seconds.values())
        rows = gather_rows(list(describe(step + 1, groups)), process)
        if process.is_main:
            append_records(run.output / COMPLETIONS, rows)
            append_records(run.output / METRICS, [{"step": step + 1, **metrics, **timing}])
            run.logger.log_dict({**metrics, **timing}, step=step + 1)
            bar.set_postfix(reward=f"{metrics['reward']:.1f}", success=f"{metrics['success']:.2f}")
        last = step + 1 == run.num_steps
        if last or (cfg.get("save_every_n_steps") and (step + 1) % cfg.save_every_n_steps == 0):
            save(run, step + 1)


def summarize(run: Run, groups: list[Group], losses: dict[str, float]) -> dict[str, float]:
    """The metrics of a step over all processes: means over completions or groups, ``tokens`` a sum."""
    rewards = torch.cat([group.rewards_G for group in groups])
    judged = rewards[~rewards.isnan()]
    completions = [completion for group in groups for completion in group.completions]
    parts = sum((Counter(part) for group in groups for part in group.parts), Counter())
    sums = {
        "reward": judged.sum().item(),
        "success": sum(v.correct is True for group in groups for v in group.verdicts),
        **{f"reward/{name}": value for name, value in parts.items()},
        "completion_tokens": sum(len(completion.tokens) for completion in completions),
        "cut_share": sum(completion.finish_reason == "length" for completion in completions),
        "judged": len(judged),
        "equal_reward_groups": sum(not group.advantages_G.any() for group in groups),
        **losses,
        "tokens": sum(
            len(g.example.prompt_tokens) + sum(len(c.tokens) for c in g.completions) for g in groups
        ),
        "completions": len(completions),
        "groups": len(groups),
    }
    total = sum_over_processes(sums, run.process)
    judged_total, num_completions, num_groups = total["judged"], total.pop("completions"), total.pop("groups")
    for name in total:
        if name in ("reward", "success") or name.startswith("reward/"):
            total[name] /= max(judged_total, 1)
        elif name in ("completion_tokens", "cut_share", "judged"):
            total[name] /= num_completions
        elif name != "tokens":
            total[name] /= num_groups
    return {("judged_share" if name == "judged" else name): value for name, value in total.items()}


def describe(step: int, groups: list[Group]) -> Iterator[dict[str, Any]]:
    """One row a completion, for reading what was rewarded."""
    for group in groups:
        for i, completion in enumerate(group.completions):
            reward = group.rewards_G[i].item()
            yield {
                "step": step,
                "problem_id": group.example.problem_id,
                "sample_index": i,
                "text": completion.text,
                "num_tokens": len(completion.tokens),
                "finish_reason": completion.finish_reason,
                "reference": group.example.reference,
                "extracted": group.verdicts[i].extracted,
                "reason": group.verdicts[i].reason,
                "reward": None if math.isnan(reward) else reward,
                "parts": group.parts[i],
                "advantage": group.advantages_G[i].item(),
            }


def save(run: Run, step: int) -> None:
    """A checkpoint that ``evaluate`` and vLLM load as it is, and that the next start goes on from."""
    card = {"recipe": "grpo_ssa_distributed", "prompt": run.dataset.prompt.name, "step": step}
    folder = save_checkpoint(
        run.output, step, run.policy, run.optimizer, run.scheduler, run.cfg.checkpoint, run.process, card
    )
    if run.process.is_main:
        prune_checkpoints(run.output, run.cfg.get("keep_checkpoints"))
        tqdm.write(f"saved {folder}")


def drop_rows_after(output: Path, step: int) -> None:
    """Drop what a killed run logged past its last checkpoint: those steps are run again."""
    for name in (METRICS, COMPLETIONS):
        if (output / name).exists():
            write_records(output / name, (row for row in read_rows(output / name) if row["step"] <= step))


def main(cfg: DictConfig) -> None:
    """Check the config, then train in ``output_dir``: anew, or on from its newest checkpoint."""
    check_values(cfg)
    process = start_process(cfg.device)
    try:
        tokenizer = config.instantiate(cfg.tokenizer)
        dataset = config.instantiate(cfg.dataset, tokenizer)
        output = Path(cfg.output_dir)
        content = OmegaConf.to_container(cfg, resolve=True)
        identity = {name: content[name] for name in content if name not in NOT_IDENTITY}
        identity |= {"num_examples": len(dataset), "world_size": process.world_size}
        with ExitStack() as folder:
            run_on_main(process, lambda: folder.enter_context(open_run(output, "grpo_ssa_distributed", identity)))
            train_in(cfg, process, output, dataset, tokenizer)
        wait_for_main(process)  # nobody leaves while another still talks to it
    finally:
        stop_process()


def train_in(cfg: DictConfig, process: Process, output: Path, dataset: RLDataset, tokenizer: ChatTokenizer) -> None:
    """Set up and train, unless the folder holds the finished run."""
    num_steps = count_steps(cfg, len(dataset), process.world_size)
    if last_step(output) >= num_steps:
        if process.is_main:
            print(f"already trained: {output / f'step_{num_steps}'}; for another run, set another output_dir")
        return
    run = setup(cfg, process, output, dataset, tokenizer)
    if process.is_main:
        drop_rows_after(output, run.first_step)
        remove_torn_checkpoints(output)
        skipped = f", {dataset.num_too_long} too long and left out" if dataset.num_too_long else ""
        start = f"going on from step {run.first_step}" if run.first_step else "from the start"
        print(f"{len(dataset)} prompts{skipped}; {num_steps} steps on {process.world_size} process(es), {start}")
    with run.grader:
        train(run)
    if process.is_main:
        run.logger.close()
        print(f"done: {num_steps} steps -> {output / f'step_{num_steps}'}")


if __name__ == "__main__":
    run_recipe(main)
