"""TRL's side of grpo_step.py: its GRPOTrainer with transformers generation, one optimizer step a line of stdin.

It runs in an environment of its own (benchmarks/.trl), which knows nothing of this project. The first line of stdin
is the settings; after "ready" on stdout every "go" is one step, and anything else ends it. What TRL does by default
and can be left on is left on; what costs time and serves only logs and checkpoints is off.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
import trl.trainer.utils
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import GRPOConfig, GRPOTrainer

OUT = os.fdopen(os.dup(1), "w")  # the answers; whatever the libraries print goes to stderr
os.dup2(2, 1)


def say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), file=OUT, flush=True)


def distinct_characters(completions: list[str], **others: Any) -> list[float]:
    """The reward of both sides: cheap, and not the same for all of a group."""
    return [float(len(set(text))) for text in completions]


class Timed(GRPOTrainer):
    """The trainer as it is, with what a step is checked by kept aside."""

    step: dict[str, float]
    prompt_tokens: list[int]

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **options: Any) -> Any:
        assert all(ids == self.prompt_tokens for ids in prompt_ids), "the prompt's text has become other tokens"
        start = time.perf_counter()
        completion_ids, logprobs = super()._generate_single_turn(prompt_ids, *args, **options)
        self.step["generation"] = time.perf_counter() - start
        lengths = {len(ids) for ids in completion_ids}
        assert lengths == {self.max_completion_length}, f"completions of {sorted(lengths)} tokens"
        assert len(completion_ids) == self.num_generations
        return completion_ids, logprobs

    def training_step(self, *args: Any, **options: Any) -> torch.Tensor:
        loss = super().training_step(*args, **options)
        self.step["loss"] = self.step.get("loss", 0.0) + loss.item()
        return loss

    def _clip_grad_norm(self, model: torch.nn.Module) -> torch.Tensor:
        norm = super()._clip_grad_norm(model)
        self.step["grad_norm"] = float(norm)
        return norm

    def moved(self) -> float:
        """How far the policy is from the start model, relative to its norm."""
        pairs = zip(self.model.parameters(), self.ref_model.parameters(), strict=True)
        with torch.no_grad():
            change, norm = torch.stack([torch.stack([(p - r).norm(), r.norm()]) for p, r in pairs]).norm(dim=0)
        return (change / norm).item()


class OnCommand(TrainerCallback):
    """Waits for "go" before every step; the time between is all that the trainer does for the step."""

    trainer: Timed

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        versions = {"trl": trl.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak: loading is no part of a step
        say({"ready": True, "versions": versions, "threads": torch.get_num_threads()})
        self.wait(control)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        seconds = time.perf_counter() - self.start
        step = self.trainer.step
        step |= {"kl": self.trainer._metrics["train"]["kl"][-1], "moved": self.trainer.moved()}
        lines = Path("/proc/self/status").read_text().splitlines()
        peak_kib = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
        say({"seconds": seconds, "rest": seconds - step["generation"], **step, "peak_mib": peak_kib / 2**10})
        self.wait(control)

    def wait(self, control: TrainerControl) -> None:
        control.should_training_stop = sys.stdin.readline().strip() != "go"
        self.trainer.step = {}
        self.start = time.perf_counter()


def main(settings: dict[str, Any]) -> None:
    torch.set_num_threads(settings["threads"])
    tokenizer = AutoTokenizer.from_pretrained(settings["model"], padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32, attn_implementation="sdpa")
    # A token beyond the vocabulary: completions never end early, and nothing is spent on forbidding them to.
    tokenizer.add_special_tokens({"eos_token": "<never>"})
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    micro_steps = settings["group"] // settings["rows"]
    if settings["compact"]:
        assert hasattr(trl.trainer.utils, "_use_triton"), "TRL has changed; --peer-compact no longer works"
        trl.trainer.utils._use_triton = lambda device: True  # there it only decides which positions get logits
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            max_steps=settings["steps"],
            # the algorithm: that of grpo_step.py's own side
            num_generations=settings["group"],
            per_device_train_batch_size=settings["rows"],
            gradient_accumulation_steps=micro_steps,
            steps_per_generation=micro_steps,
            num_iterations=1,
            max_completion_length=settings["completion"],
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            loss_type="grpo",
            beta=settings["kl_coeff"],
            use_bias_correction_kl=False,
            epsilon=settings["epsilon"],
            disable_dropout=True,
            learning_rate=settings["learning_rate"],
            lr_scheduler_type="constant",
            max_grad_norm=settings["clip_grad_norm"],
            # the machine
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=settings["checkpointing"],
            dataloader_pin_memory=False,
            # nothing that is no part of a step
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=settings["seed"],
        )
        callback = OnCommand()
        trainer = Timed(
            model=model,
            args=config,
            reward_funcs=distinct_characters,
            train_dataset=Dataset.from_dict({"prompt": [settings["prompt"]] * settings["steps"]}),
            processing_class=tokenizer,
            callbacks=[callback],
        )
        callback.trainer, trainer.prompt_tokens = trainer, settings["prompt_tokens"]
        trainer.train()


if __name__ == "__main__":
    main(json.loads(sys.stdin.readline()))
