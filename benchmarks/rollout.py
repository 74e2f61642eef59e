"""Sampling for training: one prefill for a prompt's G samples, and this sampler against vLLM.

Prefill: the same sampler (tt_reasoning.rollout.generate), weights, prompt, seeds, dtype and threads on every side:

- ``shared``: the prompt with G seeds, so that it is computed once;
- ``separate``: the prompt G times in one batch, each with a seed of its own: G prefills, then the same decoding;
- ``one_by_one``: G calls of one prompt with one seed, for information;
- ``prefill``: the prompt with one seed and one token, for information.

No sample can end early: the stop token lies beyond the vocabulary, and the lengths are checked. Time is the median of
interleaved repeats. The bar (docs/performance.md): time_ratio 2.

vLLM (only with ``--vllm-model``): several problems as text x G samples of ``--completion`` tokens, the folder's own
weights, the same dtype and as many threads. vLLM is a process that stays; the two sample in turn. It is used as it
comes on this machine (compiled where it compiles), with its prefix cache and without seeds, which cost it time.

    python benchmarks/rollout.py --json rollout.json
    python benchmarks/rollout.py --vllm-model models/smollm2-135m --json rollout.json
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from grpo_step import Worker
from grpo_update import MODELS, seconds_of
from omegaconf import OmegaConf
from torchtune.modules import TransformerDecoder
from tqdm import tqdm

from tt_reasoning.errors import UserError, exit_on_mistake
from tt_reasoning.models import ChatTokenizer
from tt_reasoning.problems import load_problems
from tt_reasoning.prompts import get_prompt
from tt_reasoning.rollout import generate
from tt_reasoning.store import write_json
from tt_reasoning.training import build_model, pick_dtype, start_process

SIDES = ("shared", "separate", "one_by_one", "prefill")


@dataclass(kw_only=True)
class Arguments:
    model: Literal["smollm2-135m", "qwen2.5-0.5b", "qwen2.5-1.5b", "llama3.2-1b"] = "smollm2-135m"
    """Shape of the prefill part; the weights are random, which costs the same."""
    prompt: int = 1200
    """Tokens of the prompt."""
    group: int = 8
    """Samples of each prompt, in both parts."""
    completion: int = 128
    """Tokens of each, in both parts."""
    vllm_model: Path | None = None
    """Hugging Face folder to compare with vLLM on; without it that part is left out."""
    vllm_prompts: int = 8
    """Problems sampled together in that part."""
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
    vllm_side: bool = False
    """Internal: be vLLM's side, with settings and commands from stdin."""


def draw(
    model: TransformerDecoder, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], length: int
) -> list[list[int]]:
    """``length`` tokens for every seed of every prompt."""
    samples = generate(
        model,
        prompts,
        seeds,
        max_new_tokens=length,
        temperature=1.0,
        stop_tokens=[model.tok_embeddings.num_embeddings],  # beyond the vocabulary: never drawn
        decode=lambda tokens: "",
    )
    found = [completion.tokens for group in samples for completion in group]
    lengths = {len(tokens) for tokens in found}
    if lengths != {length}:
        raise RuntimeError(f"completions of {sorted(lengths)} tokens where all should have {length}")
    return found


def measure_prefill(args: Arguments) -> dict[str, Any]:
    """The figures of one group with one prefill and with G."""
    device, seeds = torch.device(args.device), list(range(args.group))
    torch.manual_seed(0)
    with device:
        model = MODELS[args.model]().to(pick_dtype(args.dtype))
    prompt = torch.randint(0, 40_000, (args.prompt,)).tolist()
    runs: dict[str, Callable[[], list[list[int]]]] = {
        "shared": lambda: draw(model, [prompt], [seeds], args.completion),
        "separate": lambda: draw(model, [prompt] * args.group, [[seed] for seed in seeds], args.completion),
        "one_by_one": lambda: [draw(model, [prompt], [[seed]], args.completion)[0] for seed in seeds],
        "prefill": lambda: draw(model, [prompt], [[0]], 1),
    }
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    tokens: dict[str, list[list[int]]] = {}
    for repeat in tqdm(range(args.repeats + 1), desc="rollouts of each side"):
        for side, run in runs.items():
            taken, tokens[side] = seconds_of(run, device)
            if repeat:
                seconds[side].append(taken)
    medians = {side: statistics.median(times) for side, times in seconds.items()}
    equal = sum(one == other for one, other in zip(tokens["shared"], tokens["separate"], strict=True))
    return {
        "model": args.model,
        "shape": {"prompt": args.prompt, "group": args.group, "completion": args.completion},
        "seconds": seconds,
        "median_seconds": medians,
        "equal_completions": equal,  # another batch shape may round a logit otherwise, and a sample then parts
        "time_ratio": medians["separate"] / medians["shared"],
        "time_ratio_one_by_one": medians["one_by_one"] / medians["shared"],
    }


def measure_vllm(args: Arguments, folder: Path) -> dict[str, Any]:
    """The figures of vLLM and of this sampler on the same prompts."""
    if importlib.util.find_spec("vllm") is None:
        raise UserError('vLLM is not installed: pip install "tt-reasoning[cpu]", or "tt-reasoning[gpu]" with a GPU')
    process, tokenizer, template = start_process(args.device), ChatTokenizer(folder), get_prompt("few_shot")
    problems = load_problems("quickstart", "train", limit=args.vllm_prompts)
    prompts = [tokenizer.encode_prompt(template.render(problem.question)) for problem in problems]
    seeds = [[args.group * i + sample for sample in range(args.group)] for i in range(len(prompts))]
    builder = OmegaConf.create({"_component_": "tt_reasoning.models.build_from_hf", "path": str(folder)})
    model = build_model(builder, str(folder), process, pick_dtype(args.dtype), trainable=False)
    settings = {
        "model": str(folder),
        "dtype": {"fp32": "float32", "bf16": "bfloat16"}[args.dtype],
        "max_model_len": max(map(len, prompts)) + args.completion,
        "prompts": prompts,
        "group": args.group,
        "completion": args.completion,
        "threads": torch.get_num_threads(),
    }
    seconds: dict[str, list[float]] = {"vllm": [], "native": []}
    command = [sys.executable, __file__, "--vllm-side"]
    with tempfile.TemporaryFile("w+") as log, Worker("vllm", command, settings, log) as worker:
        for repeat in tqdm(range(args.repeats + 1), desc="vLLM and this sampler"):
            there = worker.ask("go")["seconds"]
            here, _ = seconds_of(lambda: draw(model, prompts, seeds, args.completion), process.device)
            if repeat:
                seconds["vllm"].append(there)
                seconds["native"].append(here)
    medians = {side: statistics.median(times) for side, times in seconds.items()}
    count = len(prompts) * args.group * args.completion
    return {
        "model": str(folder),
        "shape": {"prompts": [len(p) for p in prompts], "group": args.group, "completion": args.completion},
        "vllm": worker.ready,
        "seconds": seconds,
        "vllm_tokens_per_s": count / medians["vllm"],
        "native_tokens_per_s": count / medians["native"],
    }


def be_vllm_side() -> None:
    """The other end of ``Worker``: every prompt's samples for every "go"."""
    settings = json.loads(sys.stdin.readline())
    environment = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # its scheduler in this process, no third one beside
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_CPU_KVCACHE_SPACE": "4",
        "OMP_NUM_THREADS": str(settings["threads"]),
    }
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    torch.set_num_threads(settings["threads"])
    with contextlib.redirect_stdout(sys.stderr):
        import vllm

        llm = vllm.LLM(
            settings["model"],
            dtype=settings["dtype"],
            max_model_len=settings["max_model_len"],
            enable_prefix_caching=True,
            gpu_memory_utilization=0.5,  # on a GPU both sides stay in its memory
        )
    prompts = [vllm.TokensPrompt(prompt_token_ids=tokens) for tokens in settings["prompts"]]
    sampling = vllm.SamplingParams(
        n=settings["group"], temperature=1.0, max_tokens=settings["completion"], ignore_eos=True, detokenize=False
    )
    print(json.dumps({"version": vllm.__version__, "threads": torch.get_num_threads()}), flush=True)
    for _ in sys.stdin:
        with contextlib.redirect_stdout(sys.stderr):
            llm.reset_prefix_cache()
            start = time.perf_counter()
            outputs = llm.generate(prompts, sampling, use_tqdm=False)
            seconds = time.perf_counter() - start
        lengths = {len(sample.token_ids) for output in outputs for sample in output.outputs}
        count = sum(len(output.outputs) for output in outputs)
        if lengths != {settings["completion"]} or count != len(prompts) * settings["group"]:
            raise RuntimeError(f"vLLM gave {count} completions of {sorted(lengths)} tokens")
        print(json.dumps({"seconds": seconds}), flush=True)


def main(args: Arguments) -> None:
    if args.threads:
        torch.set_num_threads(args.threads)
    place = torch.cuda.get_device_name() if args.device == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    figures: dict[str, Any] = {"dtype": args.dtype, "device": place, **measure_prefill(args)}
    for side in SIDES:
        print(f"{side:10} {figures['median_seconds'][side]:8.2f} s")
    print(
        f"separate / shared: {figures['time_ratio']:.2f}x; one by one / shared: "
        f"{figures['time_ratio_one_by_one']:.2f}x; {figures['equal_completions']} of {args.group} completions of "
        "shared and separate are equal"
    )
    if args.vllm_model:
        found = measure_vllm(args, args.vllm_model)
        speeds = {"vllm_tokens_per_s": found.pop("vllm_tokens_per_s")}
        speeds["native_tokens_per_s"] = found.pop("native_tokens_per_s")
        figures |= {**speeds, "against_vllm": found}
        print(f"vLLM {speeds['vllm_tokens_per_s']:.0f} tokens/s, this sampler {speeds['native_tokens_per_s']:.0f}")
    if args.json:
        write_json(args.json, figures)


if __name__ == "__main__":
    with exit_on_mistake():
        arguments = tyro.cli(Arguments, description=__doc__)
        if arguments.vllm_side:
            be_vllm_side()
        else:
            main(arguments)
