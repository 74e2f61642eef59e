"""A folder with a tiny model and answer sets, and the recipe's config over it: for the tests of the GRPO recipe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import grpo_ssa_distributed
import psutil
from omegaconf import DictConfig, OmegaConf
from tiny import write_tiny_model

from tt_reasoning.store import write_records
from tt_reasoning.types import Answer, AnswerSet, Problem, Sampling

CONFIG = Path(__file__).parents[1] / "configs" / "135M_rl_cpu.yaml"
TUNE = [sys.executable, "-m", "torchtune._cli.tune", "run"]


def write_home(home: Path, hidden_size: int = 32) -> Path:
    """A tiny model in ``home/model`` and eight answer sets in ``home/sets``."""
    write_tiny_model(home / "model", hidden_size=hidden_size)
    sampling = Sampling(model="m", prompt="answer")
    sets = []
    for number in range(8):
        problem = Problem(source="s", split="train", question=f"What is {number} + 1?", reference=str(number + 1))
        answers = tuple(
            Answer(
                id=f"{number}{i}",
                problem_id=problem.id,
                sample_index=i,
                text=f"The Answer is: {number + i}",
                num_tokens=4,
                finish_reason="stop",
                sampling=sampling,
            )
            for i in range(2)
        )
        sets.append(AnswerSet(id=str(number), problem=problem, answers=answers))
    (home / "sets").mkdir()
    write_records(home / "sets" / "sets.jsonl", sets)
    return home


def settings(home: Path, output: str) -> list[str]:
    """Overrides of ``135M_rl_cpu`` that make it tiny."""
    return [
        f"output_dir={home / output}",
        f"checkpoint={home / 'model'}",
        f"dataset.source={home / 'sets'}",
        "model._component_=tt_reasoning.models.build_from_hf",
        f"model.path={home / 'model'}",
        "dataset.prompt=ssa_no_think",
        "batch_size=1",
        "group_size=4",
        "max_new_tokens=8",
        "optimizer.lr=1e-3",
        # A random model never writes a tag that is right; the tag itself is what it can learn to earn.
        "reward._component_=reward_of_tests.CharacterReward",
        "~reward.think_tag",
    ]


def command(home: Path, output: str, *overrides: str, processes: int = 1, launcher: tuple[str, ...] = ()) -> list[str]:
    """The recipe through ``tune run``, as a user starts it."""
    words = list(launcher) or (["--nproc_per_node", str(processes)] if processes > 1 else [])
    return [*TUNE, *words, "grpo_ssa_distributed", "--config", str(CONFIG), *settings(home, output), *overrides]


def environment() -> dict[str, str]:
    """This environment, with the rewards beside this file importable and one thread a process."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def run(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=300, env=environment())


def merge(config: Path, words: list[str]) -> DictConfig:
    """A config with overrides, as the command line would have it; ``~key`` leaves one out."""
    cfg = OmegaConf.merge(OmegaConf.load(config), OmegaConf.from_dotlist([w for w in words if w[0] != "~"]))
    assert isinstance(cfg, DictConfig)
    for word in words:
        if word[0] == "~":
            parent, _, name = word[1:].rpartition(".")
            del (OmegaConf.select(cfg, parent) if parent else cfg)[name]
    return cfg


def run_here(home: Path, output: str, *overrides: str) -> Path:
    """The recipe in this process, which saves its start; returns the output folder."""
    grpo_ssa_distributed.main(merge(CONFIG, [*settings(home, output), *overrides]))
    return home / output


def rows_of(file: Path) -> list[dict]:
    """The rows of a JSON lines file."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def metrics(folder: Path) -> list[dict[str, float]]:
    """What was computed at every step, without the clock."""
    rows = rows_of(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if "seconds" not in k and "per_s" not in k} for row in rows]


def kill_with_children(process: subprocess.Popen) -> None:
    """SIGKILL to a launcher and to the workers, which torchrun puts into sessions of their own."""
    family = [*psutil.Process(process.pid).children(recursive=True), process]
    for member in family:
        member.kill()
    for member in family:
        member.wait(timeout=30)


def run_until(words: list[str], is_time: Callable[[], bool]) -> bool:
    """Start a run and kill it when ``is_time``; whether it was still going then."""
    started = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment())
    deadline = time.monotonic() + 200
    while not is_time() and time.monotonic() < deadline and started.poll() is None:
        time.sleep(0.001)
    going = started.poll() is None
    if going:
        kill_with_children(started)
    return going


def num_logged(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return len(file.read_bytes().splitlines()) if file.exists() else 0
