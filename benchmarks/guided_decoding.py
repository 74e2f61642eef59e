"""Guided decoding (Q#): time per token and memory against unguided sampling, and against K passes of the value model.

The same sampler (tt_reasoning.rollout.generate), policy, prompts, seeds, dtype and threads on every side, all samples
of the same length:

- ``unguided``: the policy alone;
- ``guided``: a value model with a V head beside it, all K candidates and the newest token in one pass
  (tt_reasoning.guidance.decode);
- ``separate``: the same, but every candidate in a pass of its own on the cached prefix: K + 1 passes a token. It has to
  draw the same tokens as ``guided`` (a rounding may part a few samples in bf16; how many are equal is printed);
- ``q_head``: a value model with a Q head, no candidates in it, for information.

Time is the median of interleaved repeats in one process; memory is each side's own process: its peak above the weights
and what Python holds before. The bar (docs/performance.md): time_ratio (guided / unguided) at most 2.5 at one sample.

    python benchmarks/guided_decoding.py --dtype bf16 --json guided_decoding.json
"""

from __future__ import annotations

import ctypes
import statistics
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from grpo_update import MODELS, seconds_of
from torch import Tensor
from tqdm import tqdm

from tt_reasoning.decoding import Decoder
from tt_reasoning.errors import UserError, exit_on_mistake
from tt_reasoning.guidance import ValueCard
from tt_reasoning.guidance.decode import ValueGuide, ValueSteering
from tt_reasoning.models.value_head import ValueHead, attach_head
from tt_reasoning.rollout import Guide, generate
from tt_reasoning.store import write_json
from tt_reasoning.training import pick_dtype
from tt_reasoning.types import Guidance

SIDES = ("unguided", "guided", "separate", "q_head")
ETA = 5.0


@dataclass(kw_only=True)
class Arguments:
    model: Literal["smollm2-135m", "qwen2.5-0.5b", "qwen2.5-1.5b", "llama3.2-1b"] = "smollm2-135m"
    """Shape of policy and value model; the weights are random, which costs the same."""
    prompt: int = 100
    """Tokens of the prompt."""
    completion: int = 48
    """Tokens of each sample."""
    samples: tuple[int, ...] = (1, 8)
    """Samples drawn together, one or several numbers."""
    top_k: int = 20
    """Candidates."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Of weights and arithmetic."""
    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"
    """Where."""
    repeats: int = 3
    """Timed runs of each side, in turn, after one that is not counted."""
    threads: int | None = None
    """CPU threads; torch's own choice unless given."""
    json: Path | None = None
    """Write the figures here too."""
    only_memory_of: Literal["unguided", "guided", "separate", "q_head"] | None = None
    """Internal: measure one side's peak in this process and print it."""


class SeparateSteering(ValueSteering):
    """Every candidate in a pass of its own; what it left in the caches is rolled back."""

    def _ask(self, newest_M: Tensor, candidates_MK: Tensor) -> Tensor:
        model, decoder = self._guide.model, self._decoder
        decoder.step(newest_M[:, None], lambda hidden: hidden)
        found = []
        for candidate_M in candidates_MK.unbind(1):
            found.append(decoder.step(candidate_M[:, None], lambda hidden: model.value_head(model.norm(hidden[:, 0]))))
            roll_back(decoder)
        return torch.stack(found, 1)


def roll_back(decoder: Decoder) -> None:
    """Forget the last token of every row."""
    decoder._size -= 1
    for cache in decoder._caches:
        cache.size -= 1


class SeparateGuide(ValueGuide):
    """As ``ValueGuide``, with a place in the caches for the candidate."""

    def open(self, prompts: Any, counts: Any, max_new_tokens: int) -> Any:
        return super().open(prompts, counts, max_new_tokens + 1)

    def _steering(self, decoder: Decoder, newest: list[int]) -> ValueSteering:
        return SeparateSteering(self, decoder, newest)


def build(args: Arguments, sides: tuple[str, ...]) -> dict[str, tuple[Any, Guide | None]]:
    """The policy with the guide of each side."""
    torch.manual_seed(0)
    dtype, device = pick_dtype(args.dtype), torch.device(args.device)

    def model() -> Any:
        with device:
            return MODELS[args.model]().to(dtype).eval()

    policy, runs = model(), {}
    vocabulary = policy.tok_embeddings.num_embeddings
    guidance = Guidance(value_model="random", eta=ETA, top_k=args.top_k)
    value = model() if {"guided", "separate"} & {*sides} else None
    for side in sides:
        guide: Guide | None = None
        if side != "unguided":
            head, kind = ("Q", model()) if side == "q_head" else ("V", value)
            if not hasattr(kind, "value_head"):
                columns = vocabulary if head == "Q" else None
                with device:
                    attach_head(kind, partial(ValueHead, meaning="return", num_columns=columns))
                torch.nn.init.normal_(kind.value_head.weight, std=0.2)
            card = ValueCard(head=head, loss="bce", prompt="steps")
            guide = {"separate": SeparateGuide}.get(side, ValueGuide)(kind, card, guidance, vocabulary)
        runs[side] = (policy, guide)
    return runs


def draw(args: Arguments, policy: Any, guide: Guide | None, samples: int) -> list[list[int]]:
    """The tokens of some samples of one prompt; none can end early."""
    prompt = torch.randint(0, 40_000, (args.prompt,), generator=torch.Generator().manual_seed(0)).tolist()
    beyond = policy.tok_embeddings.num_embeddings
    found = generate(
        policy, [prompt], [list(range(samples))], max_new_tokens=args.completion, temperature=1.0,
        stop_tokens=[beyond], decode=lambda tokens: "", guide=guide,
    )  # fmt: skip
    return [completion.tokens for completion in found[0]]


def measure_time(args: Arguments, samples: int) -> dict[str, Any]:
    """The figures of all sides with so many samples."""
    device, runs = torch.device(args.device), build(args, SIDES)
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    tokens: dict[str, list[list[int]]] = {}
    for repeat in tqdm(range(args.repeats + 1), desc=f"runs of each side, {samples} samples"):
        for side in SIDES:
            taken, tokens[side] = seconds_of(partial(draw, args, *runs[side], samples), device)
            if repeat:
                seconds[side].append(taken)
    medians = {side: statistics.median(times) for side, times in seconds.items()}
    equal = sum(a == b for a, b in zip(tokens["guided"], tokens["separate"], strict=True))
    return {
        "samples": samples,
        "seconds": seconds,
        "ms_per_token": {side: 1000 * median / args.completion for side, median in medians.items()},
        "equal_to_separate": equal,
        "time_ratio": medians["guided"] / medians["unguided"],
        "time_ratio_separate": medians["separate"] / medians["guided"],
        "time_ratio_q_head": medians["q_head"] / medians["unguided"],
    }


def print_memory(args: Arguments) -> None:
    """This process's peak above what it held before sampling, in MiB."""
    runs = build(args, (args.only_memory_of,))
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what loading has freed goes back to the system
        Path("/proc/self/clear_refs").write_text("5")  # and its peak is forgotten
        before = read_status("VmRSS")
    draw(args, *runs[args.only_memory_of], max(args.samples))
    peak = torch.cuda.max_memory_allocated() if args.device == "cuda" else read_status("VmHWM")
    print((peak - before) / 2**20)


def read_status(name: str) -> int:
    """A number of bytes that Linux keeps of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def measure_memory(side: str) -> float:
    """The peak of one side, measured in a process of its own, in MiB."""
    asked = [sys.executable, *sys.argv, "--only-memory-of", side]
    return float(subprocess.run(asked, check=True, capture_output=True, text=True).stdout)


def main(args: Arguments) -> None:
    for name in ("prompt", "completion", "top_k", "repeats"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: give at least 1")
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.only_memory_of:
        print_memory(args)
        return
    place = torch.cuda.get_device_name() if args.device == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    figures: dict[str, Any] = {"model": args.model, "dtype": args.dtype, "device": place, "top_k": args.top_k}
    figures |= {"prompt": args.prompt, "completion": args.completion}
    figures["runs"] = [measure_time(args, samples) for samples in args.samples]
    figures["peak_mib"] = {side: measure_memory(side) for side in SIDES}
    for run in figures["runs"]:
        told = ", ".join(f"{side} {ms:.1f}" for side, ms in run["ms_per_token"].items())
        print(
            f"{run['samples']} sample(s): ms a token: {told}; guided / unguided {run['time_ratio']:.2f}x, separate / "
            f"guided {run['time_ratio_separate']:.2f}x, Q head / unguided {run['time_ratio_q_head']:.2f}x; "
            f"{run['equal_to_separate']} of {run['samples']} samples equal those of separate passes"
        )
    peaks = ", ".join(f"{side} {mib:.0f}" for side, mib in figures["peak_mib"].items())
    print(f"peak above the weights with {max(args.samples)} samples, MiB: {peaks}")
    if args.json:
        write_json(args.json, figures)


if __name__ == "__main__":
    with exit_on_mistake():
        main(tyro.cli(Arguments, description=__doc__))
