"""A folder with a tiny model and a collection of roll-ins and roll-outs: for the tests of value models."""

from __future__ import annotations

from pathlib import Path

from grpo_home import TUNE
from tiny import write_tiny_model

from tt_reasoning.qsharp import EXAMPLES, TOOL, Example
from tt_reasoning.store import write_json, write_records
from tt_reasoning.types import Problem

CONFIG = Path(__file__).parents[1] / "configs" / "135M_qsharp_cpu.yaml"
WRONG = "!"  # an answer that holds it is wrong: a rule that a tiny model learns


def write_home(home: Path, num_problems: int = 8) -> Path:
    """A tiny model in ``home/model``; in ``home/r1`` four examples of each problem, the last quarter held out."""
    write_tiny_model(home / "model")
    write_collection(home / "r1", num_problems)
    return home


def write_collection(folder: Path, num_problems: int = 8, start: int = 0) -> Path:
    """What the reference made of four beginnings, three of them its own: right, wrong, right, and begun wrong."""
    problems = [
        Problem(source="s", split="train", question=f"What is {n} + 1?", reference=str(n + 1))
        for n in range(start, start + num_problems)
    ]
    held_out = {problem.id for problem in problems[-(num_problems // 4) or num_problems :]}
    parts = [("{n} +", " 1 = {m}"), ("{n}", " + 1 = 9!"), ("{n} + 1 = {m}", ""), ("{n} + 1!", " = {m}")]
    examples = []
    for number, problem in enumerate(problems, start):
        for index, (begun, text) in enumerate(parts):
            begun, text = (part.format(n=number, m=number + 1) for part in (begun, text))
            examples.append(
                Example(
                    id=f"{number}-{index}", problem_id=problem.id, begun=begun, text=text, ended=True, whole=not text,
                    split="eval" if problem.id in held_out else "train", correct=WRONG not in begun + text,
                )  # fmt: skip
            )
    folder.mkdir(parents=True)
    write_json(folder / "manifest.json", {"tool": TOOL, "arguments": {"prompt": "steps"}, "versions": {}})
    write_records(folder / "problems.jsonl", problems)
    write_records(folder / EXAMPLES, examples)
    return folder


def settings(home: Path, output: str) -> list[str]:
    """Overrides of the CPU config that make it tiny."""
    return [
        f"output_dir={home / output}", f"checkpoint={home / 'model'}", f"dataset.sources=[{home / 'r1'}]",
        "model._component_=tt_reasoning.models.build_from_hf", f"model.path={home / 'model'}",
        "batch_size=2", "optimizer.lr=3e-3", "value_head.lr=0.03", "evaluation.every_n_steps=4",
    ]  # fmt: skip


def command(home: Path, output: str, *overrides: str, processes: int = 1) -> list[str]:
    """The recipe through ``tune run``, as a user starts it, over the tiny model."""
    words = ["--nproc_per_node", str(processes)] if processes > 1 else []
    return [*TUNE, *words, "qsharp_classifier", "--config", str(CONFIG), *settings(home, output), *overrides]
