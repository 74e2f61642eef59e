"""Answer generation by the tool against bare vLLM, how soon the first answer is on disk, and how much memory it takes.

Throughput: one loaded vLLM serves both sides, which take turns:

- ``bare``: one ``LLM.generate`` of all requests, their prompts as text;
- ``tool``: what tools/generate_answers.py does with that engine: problems from disk, chunks, a seed and an id for
  every answer, answers on disk as they are done. Its chunk is the tool's default here.

Requests, seeds and limits are the same; tokens per second are compared, as a completion may depend on the batch it
is computed in (bf16). Seconds are those of the clock and, less disturbed by other work on the machine, those of the
processor. The problems are made up, the prompt is ``few_shot``. The bar (docs/generation.md): ratio 0.95.

First answer: the tool as a command, from its start to the first line of answers.jsonl, the default limits.

Memory (``--memory``, no model): peak resident memory of the tool as a command, engine scripted, at 2,000 and at 50,000
problems with 4 answers each; and once more when all is there.

    python benchmarks/generation.py --model models/smollm2-135m --json generation.json
    python benchmarks/generation.py --memory
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from tqdm import tqdm

from tt_reasoning.engines.options import EngineOptions
from tt_reasoning.engines.vllm import VllmEngine
from tt_reasoning.errors import UserError, exit_on_mistake
from tt_reasoning.generation import ANSWERS, draw_answers, keep_problems, plan_draws
from tt_reasoning.prompts import get_prompt
from tt_reasoning.store import open_run, write_json
from tt_reasoning.types import Problem, Sampling

TOOL = Path(__file__).parents[1] / "tools" / "generate_answers.py"
PROMPT = get_prompt("few_shot")
_GOODS = ("stickers", "apples", "books", "coins", "pencils", "marbles", "shells")
# Not by wait4: what that tells includes the process which started the tool.
_TELL_PEAK = """
import runpy, sys
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
_NAMES = ("Nadia", "Tom", "Ada", "Ben", "Carla")


@dataclass(kw_only=True)
class Arguments:
    model: str | None = None
    """Hugging Face folder for throughput and first answer; without it those are left out."""
    problems: int = 256
    """How many."""
    samples: int = 1
    """Answers to each."""
    max_new_tokens: int = 32
    """Most tokens of an answer."""
    chunk_size: int | None = None
    """Problems in one engine call; the tool's default unless given."""
    dtype: str = "bf16"
    """Arithmetic."""
    repeats: int = 3
    """Timed runs of each side, in turn, after one of a few problems that is not counted."""
    memory: bool = False
    """Measure memory too."""
    json: Path | None = None
    """Write the figures here too."""


def make_problems(count: int) -> list[Problem]:
    """Different word problems, always the same.

    >>> make_problems(1)[0].question
    'Nadia has 12 stickers and gets 35 more. She gives 5 of them away. How many stickers has she now?'
    """
    found = []
    for n in range(count):
        goods, name, first, more, less = _GOODS[n % 7], _NAMES[n % 5], n + 12, n % 83 + 35, n % 11 + 5
        question = (
            f"{name} has {first} {goods} and gets {more} more. She gives {less} of them away. How many {goods} has "
            "she now?"
        )
        reference = str(first + more - less)
        found.append(Problem(source="made_up", split="test", question=question, reference=reference))
    return found


class LeftOpen:
    """An engine that the run which uses it does not close."""

    def __init__(self, engine: VllmEngine) -> None:
        self.generate, self.stream, self.refuse = engine.generate, engine.stream, engine.refuse

    def close(self) -> None:
        pass


def run_bare(engine: VllmEngine, problems: list[Problem], sampling: Sampling, num_samples: int) -> int:
    """One call of ``LLM.generate``; returns its tokens."""
    from vllm import SamplingParams

    llm = engine._llm
    llm.reset_prefix_cache()
    prompts, options = [], []
    for problem in problems:
        for index in range(num_samples):
            prompts.append(PROMPT.render(problem.question))
            options.append(
                SamplingParams(
                    seed=sampling.request_seed(problem.id, index),
                    temperature=sampling.temperature,
                    max_tokens=sampling.max_new_tokens,
                    stop=list(PROMPT.stop),
                    include_stop_str_in_output=True,
                )
            )
    outputs = llm.generate(prompts, options, use_tqdm=False)
    return sum(len(output.outputs[0].token_ids) for output in outputs)


def run_tool(
    engine: VllmEngine, problems: list[Problem], sampling: Sampling, num_samples: int, chunk_size: int
) -> int:
    """A run into a new folder; returns its tokens."""
    with tempfile.TemporaryDirectory() as home:
        with open_run(Path(home) / "run", "generate_answers", {}) as folder:
            kept = keep_problems(folder, problems)
            draws = plan_draws(folder, [(sampling, num_samples)])
            counts = draw_answers(kept, draws, lambda: LeftOpen(engine), PROMPT, folder, chunk_size)
        lines = (Path(home) / "run" / ANSWERS).read_bytes().count(b"\n")
    if counts.missing or lines != len(problems) * num_samples:
        raise RuntimeError(f"{lines} answers are on disk, {counts.missing} are missing")
    return counts.tokens


def measure_throughput(args: Arguments, model: str) -> dict[str, Any]:
    """Tokens per second of both sides and their ratio."""
    problems = make_problems(args.problems)
    sampling = Sampling(model=model, prompt=PROMPT.name, max_new_tokens=args.max_new_tokens)
    chunk_size = args.chunk_size or EngineOptions(dtype="bf16").default_chunk_size(args.samples)
    engine = VllmEngine(model, dtype=args.dtype, max_model_len=1024)
    sides = {
        "bare": lambda asked: run_bare(engine, asked, sampling, args.samples),
        "tool": lambda asked: run_tool(engine, asked, sampling, args.samples, chunk_size),
    }
    clocks = {"clock": time.perf_counter, "processor": time.process_time}
    speeds: dict[str, dict[str, list[float]]] = {clock: {name: [] for name in sides} for clock in clocks}
    for round_ in tqdm(range(-1, args.repeats), desc="rounds"):
        for name in ("bare", "tool") if round_ % 2 else ("tool", "bare"):
            began = {clock: read() for clock, read in clocks.items()}
            tokens = sides[name](problems if round_ >= 0 else problems[:16])
            for clock, read in clocks.items():
                if round_ >= 0:
                    speeds[clock][name].append(tokens / (read() - began[clock]))
    engine.close()
    figures: dict[str, Any] = {
        "requests": args.problems * args.samples,
        "chunk_size": chunk_size,
        "max_new_tokens": args.max_new_tokens,
        "dtype": args.dtype,
    }
    for clock, found in speeds.items():
        ratios = [tool / bare for tool, bare in zip(found["tool"], found["bare"], strict=True)]
        figures[clock] = {
            "tokens_per_s": {name: [round(speed, 1) for speed in own] for name, own in found.items()},
            "ratios": [round(ratio, 3) for ratio in ratios],
            "ratio": round(statistics.median(ratios), 3),
        }
    return figures


def measure_first_answer(model: str) -> float:
    """Seconds from the tool's start to the first answer on disk; then it is stopped."""
    with tempfile.TemporaryDirectory() as home:
        command = [
            sys.executable, str(TOOL), "--model", model, "--dataset", "quickstart", "--out", f"{home}/run"
        ]  # fmt: skip
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        path = Path(home) / "run" / ANSWERS
        while process.poll() is None and not (path.exists() and b"\n" in path.read_bytes()):
            time.sleep(0.05)
        seconds = time.perf_counter() - start
        if process.poll() not in (None, 0):
            raise UserError(f"the tool ended with status {process.returncode}: {' '.join(command)}")
        process.kill()
        process.wait()
    return seconds


def measure_memory(count: int) -> dict[str, float]:
    """Peak resident memory of the tool in MiB: a first run, and one that finds everything there; and their seconds."""
    peaks: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as home:
        rows, script = Path(home) / "rows.jsonl", Path(home) / "script.json"
        with rows.open("w") as file:
            for problem in make_problems(count):
                file.write(json.dumps({"question": problem.question, "answer": f"#### {problem.reference}"}) + "\n")
        script.write_text(json.dumps({"fallback": ["First they have more, then less.\n#### {seed}"]}))
        command = [
            sys.executable, "-c", _TELL_PEAK, str(TOOL), "--engine", "scripted", "--model", str(script),
            "--dataset", "gsm8k", "--data-files", str(rows), "--num-samples", "4", "--out", f"{home}/run",
        ]  # fmt: skip
        for name in ("first", "again"):
            start = time.perf_counter()
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
            peaks[name] = round(int(done.stdout.split()[-2]) / 1024, 1)
            peaks[f"{name}_s"] = round(time.perf_counter() - start, 1)
    return peaks


def main(args: Arguments) -> None:
    if args.model is None and not args.memory:
        raise UserError("give --model FOLDER, --memory or both")
    figures: dict[str, Any] = {}
    if args.memory:
        figures["peak_mib"] = {str(count): measure_memory(count) for count in (2_000, 50_000)}
        for count, peaks in figures["peak_mib"].items():
            first, again = (f"{peaks[name]} MiB, {peaks[f'{name}_s']} s" for name in ("first", "again"))
            print(f"{count:>6} problems x 4: peak {first}; run again {again}")
    if args.model is not None:
        figures["first_answer_s"] = round(measure_first_answer(args.model), 1)
        print(f"first answer on disk after {figures['first_answer_s']} s, the start of vLLM included")
        figures |= measure_throughput(args, args.model)
        for clock in ("clock", "processor"):
            found = figures[clock]
            for name, speeds in found["tokens_per_s"].items():
                print(f"{name}: {statistics.median(speeds):.0f} tokens per second of the {clock} {speeds}")
            print(f"tool / bare: {found['ratio']:.3f} {found['ratios']}")
    if args.json:
        write_json(args.json, figures)


if __name__ == "__main__":
    with exit_on_mistake():
        main(tyro.cli(Arguments, description=__doc__))
