"""One GRPO update (reference pass, policy forward and backward): shared prompt against separate rows.

Three sides, the same weights, tokens, dtype, threads and activation checkpointing:

- ``shared``: this project, a prompt and its G completions in one row (tt_reasoning.prefix_tree);
- ``separate``: as torchtune 0.6.1's GRPO recipe does it: the G rows of a prompt in one batch, each with its own
  copy of the prompt, a boolean [G, T, T] mask, logits over the whole rows;
- ``lean``: the leanest separate rows, for information: one at a time, no mask, logits of the completion only.

Time is the median of interleaved repeats in one process; memory is each side's own process: its peak above
weights, gradients and optimizer. The bar (docs/performance.md): on a CPU time_ratio 4 and memory_ratio 3.

    python benchmarks/grpo_update.py --json grpo_update.json
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import torch
import tyro
from torch import Tensor
from torchtune.models import llama3_2, qwen2_5
from torchtune.modules import TransformerDecoder, TransformerSelfAttentionLayer
from torchtune.training import set_activation_checkpointing
from tqdm import tqdm

from tt_reasoning.losses import GRPOLoss, StepSize
from tt_reasoning.models import smollm2_135m
from tt_reasoning.prefix_tree import completion_logprobs, pack_group
from tt_reasoning.store import write_json
from tt_reasoning.training import pick_dtype

MODELS: dict[str, Callable[[], TransformerDecoder]] = {
    "smollm2-135m": smollm2_135m,
    "qwen2.5-0.5b": qwen2_5.qwen2_5_0_5b,
    "qwen2.5-1.5b": qwen2_5.qwen2_5_1_5b_base,
    "llama3.2-1b": llama3_2.llama3_2_1b,
}
Result = TypeVar("Result")
SIDES = ("shared", "separate", "lean")


@dataclass(kw_only=True)
class Arguments:
    model: Literal["smollm2-135m", "qwen2.5-0.5b", "qwen2.5-1.5b", "llama3.2-1b"] = "smollm2-135m"
    """Shape; the weights are random, which costs the same."""
    prompt: int = 1200
    """Tokens of the prompt."""
    group: int = 8
    """Completions of the prompt."""
    completion: int = 128
    """Tokens of each."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Of weights and arithmetic."""
    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"
    """Where."""
    repeats: int = 3
    """Timed updates of each side, in turn, after one that is not counted."""
    threads: int | None = None
    """CPU threads; torch's own choice unless given."""
    json: Path | None = None
    """Write the figures here too."""
    only_memory_of: Literal["shared", "separate", "lean"] | None = None
    """Internal: measure one side's peak in this process and print it."""


@dataclass
class Update:
    """The two models, one prompt's tokens, and the three ways to the same gradient."""

    policy: TransformerDecoder
    reference: TransformerDecoder
    prompt: list[int]
    completions: list[list[int]]
    advantages_G: Tensor
    device: torch.device

    def run(self, side: str) -> None:
        """One update; the gradients stay in place."""
        self.policy.zero_grad(set_to_none=False)
        {"shared": self.shared, "separate": self.separate, "lean": self.lean}[side]()

    def loss(self, logprobs_R: Tensor, reference_R: Tensor, samples: list[int]) -> Tensor:
        """The GRPO loss of some of the completions, all of one length."""
        length = len(self.completions[0])
        sample_R = torch.arange(len(samples), device=self.device).repeat_interleave(length)
        group = len(self.completions)
        size = StepSize(num_samples=group, num_tokens=group * length, max_new_tokens=length)
        loss, _ = GRPOLoss()(
            logprobs_R, logprobs_R.detach(), reference_R, self.advantages_G[samples], sample_R, size
        )
        return loss

    def shared(self) -> None:
        packed = pack_group(self.prompt, self.completions, self.device)
        with torch.no_grad():
            reference_R = completion_logprobs(self.reference, packed)
        self.loss(
            completion_logprobs(self.policy, packed), reference_R, list(range(len(self.completions)))
        ).backward()

    def separate(self) -> None:
        rows_NT = torch.tensor([self.prompt + completion for completion in self.completions], device=self.device)
        length = rows_NT.shape[1]
        mask_NTT = torch.ones(length, length, dtype=torch.bool, device=self.device).tril().expand(len(rows_NT), -1, -1)
        positions_NT = torch.arange(length, device=self.device).expand(len(rows_NT), -1)

        def logprobs(model: TransformerDecoder) -> Tensor:
            logits_NTV = model(rows_NT, mask=mask_NTT, input_pos=positions_NT)
            logits_NCV = logits_NTV[:, len(self.prompt) - 1 : -1]
            targets_NC = rows_NT[:, len(self.prompt) :]
            return logits_NCV.log_softmax(-1).gather(-1, targets_NC.unsqueeze(-1)).flatten()

        with torch.no_grad():
            reference_R = logprobs(self.reference)
        self.loss(logprobs(self.policy), reference_R, list(range(len(rows_NT)))).backward()

    def lean(self) -> None:
        for sample, completion in enumerate(self.completions):
            packed = pack_group(self.prompt, [completion], self.device)._replace(mask=None)
            with torch.no_grad():
                reference_R = completion_logprobs(self.reference, packed)
            self.loss(completion_logprobs(self.policy, packed), reference_R, [sample]).backward()


def build(args: Arguments) -> Update:
    """Random weights and tokens from a fixed seed; gradients and optimizer state allocated."""
    torch.manual_seed(0)
    device = torch.device(args.device)
    models = []
    for _ in range(2):
        with device:
            torch.manual_seed(0)
            models.append(MODELS[args.model]().to(pick_dtype(args.dtype)))
    policy, reference = models
    reference.requires_grad_(False)
    set_activation_checkpointing(policy, auto_wrap_policy={TransformerSelfAttentionLayer})
    for parameter in policy.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6)
    optimizer.step()
    policy.optimizer = optimizer  # kept alive: its state is part of what the peak is counted above
    tokens = torch.randint(0, 40_000, (args.prompt + args.group * args.completion,)).tolist()
    completions = [
        tokens[args.prompt + g * args.completion : args.prompt + (g + 1) * args.completion] for g in range(args.group)
    ]
    advantages_G = torch.linspace(-1.5, 1.5, args.group, device=device)
    return Update(policy, reference, tokens[: args.prompt], completions, advantages_G, device)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(run: Callable[[], Result], device: torch.device) -> tuple[float, Result]:
    """How long it takes, and what it returns."""
    synchronize(device)
    start = time.perf_counter()
    result = run()
    synchronize(device)
    return time.perf_counter() - start, result


def status_kib(name: str) -> int:
    """A field of this process's memory status, in KiB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def peak_mib(update: Update, side: str) -> float:
    """The peak of one update above what is there before it, in MiB."""
    if update.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        update.run(side)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = status_kib("VmRSS")
    update.run(side)
    return (status_kib("VmHWM") - before) / 2**10


def matmul_flops(args: Arguments) -> float:
    """FLOP/s of a large matrix product in this dtype on these threads: what the machine can do."""
    device, size = torch.device(args.device), 8192 if args.device == "cuda" else 2048
    a = torch.randn(size, size, device=device, dtype=pick_dtype(args.dtype))
    times = []
    for _ in range(6):
        synchronize(device)
        start = time.perf_counter()
        a @ a
        synchronize(device)
        times.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(times[1:])


def update_flops(args: Arguments, update: Update, tokens: int) -> float:
    """Multiply-adds of the layers, twice: reference 1, policy 1, recomputed 1, backward 2 (attention left out)."""
    embedding = update.policy.tok_embeddings.weight.numel()
    layers = sum(p.numel() for p in update.policy.parameters()) - embedding
    head = embedding * args.group * args.completion
    return 2 * 5 * (layers * tokens + head)


def main(args: Arguments) -> None:
    if args.threads:
        torch.set_num_threads(args.threads)
    update = build(args)
    if args.only_memory_of:
        print(peak_mib(update, args.only_memory_of))
        return
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    gradients: dict[str, Tensor] = {}
    for repeat in tqdm(range(args.repeats + 1), desc="updates of each side"):
        for side in SIDES:
            synchronize(update.device)
            start = time.perf_counter()
            update.run(side)
            synchronize(update.device)
            if repeat:
                seconds[side].append(time.perf_counter() - start)
            elif args.dtype == "fp32":
                gradients[side] = torch.cat([p.grad.flatten() for p in update.policy.parameters()])
    shape_tokens = args.prompt + args.group * args.completion
    flops = update_flops(args, update, shape_tokens)
    del update
    memory = {}
    for side in SIDES:
        command = [sys.executable, __file__, *sys.argv[1:], "--only-memory-of", side]
        memory[side] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
    medians = {side: statistics.median(times) for side, times in seconds.items()}
    machine = matmul_flops(args)
    figures = {
        "model": args.model,
        "shape": {"prompt": args.prompt, "group": args.group, "completion": args.completion},
        "dtype": args.dtype,
        "device": torch.cuda.get_device_name() if args.device == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "seconds": seconds,
        "median_seconds": medians,
        "peak_mib": memory,
        "time_ratio": medians["separate"] / medians["shared"],
        "time_ratio_lean": medians["lean"] / medians["shared"],
        "memory_ratio": memory["separate"] / memory["shared"],
        "memory_ratio_lean": memory["lean"] / memory["shared"],
        "achieved_over_matmul": flops / medians["shared"] / machine,
        "matmul_gflops": machine / 1e9,
    }
    if gradients:
        norm = gradients["separate"].norm()
        figures["gradient_difference"] = ((gradients["shared"] - gradients["separate"]).norm() / norm).item()
    for side in SIDES:
        print(f"{side:9} {medians[side]:8.2f} s  {memory[side]:9.0f} MiB")
    if gradients:
        print(f"gradients of shared and separate differ by {figures['gradient_difference']:.1e} of their norm")
    print(
        f"separate / shared: time {figures['time_ratio']:.2f}x, memory {figures['memory_ratio']:.2f}x; "
        f"lean / shared: time {figures['time_ratio_lean']:.2f}x, memory {figures['memory_ratio_lean']:.2f}x; "
        f"shared runs at {figures['achieved_over_matmul']:.0%} of a large matrix product"
    )
    if args.json:
        write_json(args.json, figures)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
