"""One whole GRPO step (rollout, rewards, start model, update): this project against TRL's GRPOTrainer.

Both sides: the same weights in fp32, the same prompt of ``--prompt`` tokens, ``--group`` completions of exactly
``--completion`` tokens at temperature 1, the GRPO loss with a KL term to the start model (0.01), one update a rollout
with fused AdamW, the same threads, no vLLM. A side is a process that stays; they step in turn, so that neither
computes while the other is timed.

TRL (the newest, in an environment of its own that the first run sets up in benchmarks/.trl) is used as it comes, with
the settings that were fastest for it on two cores: sdpa attention, fused AdamW, no activation checkpointing, nothing
logged or saved, and the group's gradient accumulated one completion at a time, which is the same update. The bar
(docs/performance.md): on a CPU time_ratio 3.

    python benchmarks/grpo_step.py --json grpo_step.json
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
import tyro
from grpo_update import status_kib
from omegaconf import OmegaConf
from tqdm import tqdm

from tt_reasoning.errors import UserError, exit_on_mistake
from tt_reasoning.losses import GRPOLoss, StepSize, group_advantages
from tt_reasoning.models import ChatTokenizer
from tt_reasoning.prefix_tree import completion_logprobs, pack_group
from tt_reasoning.rollout import generate
from tt_reasoning.store import write_json
from tt_reasoning.training import build_model, clip_gradients, start_process
from tt_reasoning.types import seed_of

HERE = Path(__file__).resolve().parent
PEER = HERE / ".trl"
SIDES = ("ours", "trl")
PARTS = ("seconds", "generation", "rest")


@dataclass(kw_only=True)
class Arguments:
    model: Path = Path("models/smollm2-135m")
    """Hugging Face folder of the weights, loaded in fp32 on both sides."""
    component: str = "tt_reasoning.models.smollm2_135m"
    """This project's builder of that model."""
    prompt: int = 1200
    """Tokens of the prompt."""
    group: int = 8
    """Completions of the prompt."""
    completion: int = 128
    """Tokens of each."""
    repeats: int = 3
    """Timed steps of each side, in turn, after one that is not counted."""
    threads: int | None = None
    """CPU threads; torch's own choice unless given."""
    checkpointing: bool = False
    """Recompute activations in backward, on both sides."""
    peer_rows: int = 1
    """Completions in one micro-batch of TRL's; the optimizer steps when the group is through."""
    peer_compact: bool = False
    """For information: TRL without the logits of the prompt's positions, which it computes on a CPU, not on a GPU."""
    json: Path | None = None
    """Write the figures here too."""
    own_side: bool = False
    """Internal: be this project's side, with settings and commands from stdin."""


def prompt_of(tokenizer: ChatTokenizer, length: int) -> tuple[str, list[int]]:
    """A text of exactly that many tokens, and them: TRL takes text, this side takes tokens."""
    tokens = tokenizer.encode(" ".join(f"Answer {i}: {7 * i} plus {5 * i + 3} is {12 * i + 3}." for i in range(length)))
    for start in range(len(tokens) - length):  # a cut may part what the tokenizer would join
        cut = tokens[start : start + length]
        text = tokenizer.decode(cut)
        if tokenizer.encode(text) == cut:
            return text, cut
    raise UserError(f"--prompt {length}: no text found that this tokenizer makes {length} tokens of; try one more")


def settings_of(args: Arguments) -> dict[str, Any]:
    """What both sides do, as the first line that each reads."""
    if args.group % args.peer_rows:
        raise UserError(f"--peer-rows {args.peer_rows} does not divide --group {args.group}")
    if not (args.model / "config.json").exists():
        fetch = f"python tools/get_model.py --name smollm2-135m --out {args.model}"
        raise UserError(f"--model {args.model} holds no config.json; {fetch}")
    text, tokens = prompt_of(ChatTokenizer(args.model), args.prompt)
    return {
        "model": str(args.model),
        "component": args.component,
        "prompt": text,
        "prompt_tokens": tokens,
        "completion": args.completion,
        "group": args.group,
        "rows": args.peer_rows,
        "compact": args.peer_compact,
        "steps": args.repeats + 1,
        "threads": args.threads or torch.get_num_threads(),
        "checkpointing": args.checkpointing,
        "kl_coeff": 0.01,
        "epsilon": 0.2,
        "learning_rate": 2e-5,
        "clip_grad_norm": 1.0,
        "seed": 0,
    }


class OwnSide:
    """This project's step, as recipes/grpo_ssa_distributed.py does it."""

    def __init__(self, settings: dict[str, Any]) -> None:
        torch.set_num_threads(settings["threads"])
        self.settings, self.process = settings, start_process("cpu")
        self.tokenizer = ChatTokenizer(settings["model"])
        model_cfg = OmegaConf.create({"_component_": settings["component"]})
        build = (model_cfg, settings["model"], self.process, torch.float32)
        self.policy = build_model(*build, activation_checkpointing=settings["checkpointing"])
        self.reference = build_model(*build, trainable=False)
        self.loss = GRPOLoss(epsilon=settings["epsilon"], kl_coeff=settings["kl_coeff"])
        self.optimizer = torch.optim.AdamW(
            self.policy.parameters(), lr=settings["learning_rate"], weight_decay=0.0, fused=True
        )

    def step(self, number: int) -> dict[str, float]:
        """One optimizer step, and what it is checked by."""
        group, length = self.settings["group"], self.settings["completion"]
        prompt = self.settings["prompt_tokens"]
        start = time.perf_counter()
        [completions] = generate(
            self.policy,
            [prompt],
            [[seed_of(self.settings["seed"], number, sample) for sample in range(group)]],
            max_new_tokens=length,
            temperature=1.0,
            stop_tokens=[self.policy.tok_embeddings.num_embeddings],  # beyond the vocabulary: never drawn
            decode=self.tokenizer.decode,
        )
        generated = time.perf_counter()
        # The reward of both sides: distinct characters. Cheap, and not the same for all of a group.
        rewards_G = torch.tensor([len(set(completion.text)) for completion in completions], dtype=torch.float64)
        advantages_G = group_advantages(rewards_G).float()
        packed = pack_group(prompt, [completion.tokens for completion in completions], self.process.device)
        with torch.no_grad():
            reference_R = completion_logprobs(self.reference, packed, temperature=1.0)
        logprobs_R = completion_logprobs(self.policy, packed, temperature=1.0)
        size = StepSize(num_samples=group, num_tokens=group * length, max_new_tokens=length)
        loss, reported = self.loss(logprobs_R, logprobs_R.detach(), reference_R, advantages_G, packed.sample_R, size)
        loss.backward()
        grad_norm = clip_gradients(self.policy, self.settings["clip_grad_norm"])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        done = time.perf_counter()
        lengths = [len(completion.tokens) for completion in completions]
        assert lengths == [length] * group, f"completions of {lengths} tokens"
        return {
            "seconds": done - start,
            "generation": generated - start,
            "rest": done - generated,
            "loss": loss.item(),
            "grad_norm": grad_norm,
            "kl": reported["kl"].item(),
            "moved": self.moved(),
            "peak_mib": status_kib("VmHWM") / 2**10,
        }

    def moved(self) -> float:
        """How far the policy is from the start model, relative to its norm."""
        pairs = zip(self.policy.parameters(), self.reference.parameters(), strict=True)
        with torch.no_grad():
            change, norm = torch.stack([torch.stack([(p - r).norm(), r.norm()]) for p, r in pairs]).norm(dim=0)
        return (change / norm).item()


def be_own_side() -> None:
    """The other end of ``Worker``: a step for every "go"."""
    own = OwnSide(json.loads(sys.stdin.readline()))
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak: loading is no part of a step
    print(json.dumps({"ready": True, "threads": torch.get_num_threads()}), flush=True)
    for number, line in enumerate(sys.stdin):
        if line.strip() != "go":
            return
        print(json.dumps(own.step(number)), flush=True)


class Worker:
    """A side's process: one JSON line back for every line sent."""

    def __init__(self, name: str, command: list[str], settings: dict[str, Any], log: IO[str]) -> None:
        self.name, self.log = name, log
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        self.ready = self.ask(json.dumps(settings))
        assert self.ready["threads"] == settings["threads"], self.ready

    def ask(self, line: str) -> dict[str, Any]:
        """Send a line, wait for the answer."""
        try:
            print(line, file=self.process.stdin, flush=True)
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self.log.seek(0)
            sys.stderr.write("".join(self.log.readlines()[-30:]))
            raise UserError(f"the side {self.name} ended with status {self.process.wait()}; see the lines above")
        return json.loads(answer)

    def step(self) -> dict[str, float]:
        """One step, refused unless it has trained."""
        step = self.ask("go")
        if not (math.isfinite(step["loss"]) and math.isfinite(step["grad_norm"]) and step["moved"] > 0):
            raise UserError(f"the side {self.name} made a step that trains nothing: {step}")
        return step

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.stdin.close()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def peer_python() -> str:
    """The Python of TRL's own environment, set up unless it is there."""
    python = PEER / "bin" / "python"
    check = [str(python), "-c", "import torch, trl.trainer.grpo_trainer"]
    if python.exists() and subprocess.run(check, capture_output=True).returncode == 0:
        return str(python)
    print(f"setting up TRL in {PEER}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(PEER)], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "trl"]
    build, public = torch.__version__, torch.__version__.split("+")[0]
    for version in dict.fromkeys((build, public)):  # not every index carries the builds that name a device
        done = subprocess.run([*install, f"torch=={version}"], capture_output=True, text=True)
        if done.returncode == 0:
            return str(python)
    raise UserError(f"could not install trl and torch=={public} in {PEER}: {done.stderr.strip().splitlines()[-1]}")


def main(args: Arguments) -> None:
    settings = settings_of(args)
    commands = {
        "ours": [sys.executable, str(HERE / "grpo_step.py"), "--own-side"],
        "trl": [peer_python(), str(HERE / "trl_step.py")],
    }
    steps: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    with ExitStack() as stack:
        workers = {}
        for side in SIDES:
            log = stack.enter_context(tempfile.TemporaryFile("w+"))
            workers[side] = stack.enter_context(Worker(side, commands[side], settings, log))
        for repeat in tqdm(range(args.repeats + 1), desc="steps of each side"):
            for side in SIDES:
                step = workers[side].step()
                if repeat:
                    steps[side].append(step)
    medians = {side: {part: statistics.median(step[part] for step in steps[side]) for part in PARTS} for side in SIDES}
    ratios = {part: medians["trl"][part] / medians["ours"][part] for part in PARTS}
    peaks = {side: max(step["peak_mib"] for step in steps[side]) for side in SIDES}
    versions = workers["trl"].ready["versions"]
    figures = {
        "model": str(args.model),
        "shape": {"prompt": args.prompt, "group": args.group, "completion": args.completion},
        "dtype": "fp32",
        "device": f"cpu, {settings['threads']} threads",
        "checkpointing": args.checkpointing,
        "peer_rows": args.peer_rows,
        "peer_compact": args.peer_compact,
        "versions": {**versions, "torch_ours": torch.__version__},
        "steps": steps,
        "median_seconds": {side: medians[side]["seconds"] for side in SIDES},
        "median_parts": medians,
        "peak_mib": peaks,
        "time_ratio": ratios["seconds"],
        "time_ratio_generation": ratios["generation"],
        "time_ratio_rest": ratios["rest"],
    }
    for side in SIDES:
        parts = medians[side]
        print(
            f"{side:5} {parts['seconds']:8.2f} s ({parts['generation']:.2f} s generation, {parts['rest']:.2f} s the "
            f"rest)  {peaks[side]:7.0f} MiB"
        )
    print(
        f"TRL {versions['trl']} / ours: time {ratios['seconds']:.2f}x "
        f"(generation {ratios['generation']:.2f}x, the rest {ratios['rest']:.2f}x)"
    )
    if args.json:
        write_json(args.json, figures)


if __name__ == "__main__":
    with exit_on_mistake():
        arguments = tyro.cli(Arguments, description=__doc__)
        if arguments.own_side:
            be_own_side()
        else:
            main(arguments)
