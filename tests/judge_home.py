"""A folder with a tiny model and labelled steps, and a judge recipe's config over it: for the tests of the judges."""

from __future__ import annotations

from pathlib import Path

from grpo_home import TUNE
from tiny import write_tiny_model

from tt_reasoning.store import write_json, write_records
from tt_reasoning.types import Answer, Problem, Sampling, Step, Verdict

CONFIGS = Path(__file__).parents[1] / "configs"
SAMPLING = Sampling(model="m", prompt="steps")
WRONG = "!"  # a step that holds it is wrong: a rule that a tiny model learns


def write_home(home: Path, num_problems: int = 8) -> Path:
    """A tiny model in ``home/model``; in ``home/steps`` three graded and labelled solutions to each problem."""
    write_tiny_model(home / "model")
    problems = [
        Problem(source="s", split="train", question=f"What is {n} + 1?", reference=str(n + 1))
        for n in range(num_problems)
    ]
    texts = [["{n} + 1 = {m}", "So {m}"], ["{n} + 1 = 9!", "So 9"], ["{n} + 1 = {m}", "So 7!"]]
    answers, verdicts, steps = [], [], []
    for number, problem in enumerate(problems):
        for index, lines in enumerate(texts):
            lines = [line.format(n=number, m=number + 1) for line in lines]
            answer = Answer(
                id=f"{number}-{index}", problem_id=problem.id, sample_index=index, text="\n".join(lines),
                num_tokens=20, finish_reason="stop", sampling=SAMPLING,
            )  # fmt: skip
            answers.append(answer)
            right = [WRONG not in line for line in lines]
            reason = "match" if all(right) else "mismatch"
            verdicts.append(Verdict(answer_id=answer.id, extracted="1", correct=all(right), reason=reason))
            start = 0
            for place, (line, good) in enumerate(zip(lines, right, strict=True)):
                steps.append(
                    Step(
                        answer_id=answer.id, index=place, start=start, end=start + len(line),
                        rating=1 if good else -1, score=0.875 if good else 0.125,
                    )  # fmt: skip
                )
                start += len(line) + 1
    folder = home / "steps"
    folder.mkdir()
    write_json(folder / "manifest.json", {"tool": "build_step_labels", "arguments": {}, "versions": {}})
    write_records(folder / "problems.jsonl", problems)
    write_records(folder / "answers.jsonl", answers)
    write_records(folder / "verdicts.jsonl", verdicts)
    write_records(folder / "steps.jsonl", steps)
    return home


def settings(home: Path, output: str) -> list[str]:
    """Overrides of a judge's CPU config that make it tiny."""
    return [
        f"output_dir={home / output}", f"checkpoint={home / 'model'}", f"dataset.source={home / 'steps'}",
        "model._component_=tt_reasoning.models.build_from_hf", f"model.path={home / 'model'}",
        "batch_size=2", "optimizer.lr=3e-3",
    ]  # fmt: skip


def command(home: Path, recipe: str, config: str, output: str, *overrides: str, processes: int = 1) -> list[str]:
    """A judge's recipe through ``tune run``, as a user starts it, over the tiny model."""
    words = ["--nproc_per_node", str(processes)] if processes > 1 else []
    return [*TUNE, *words, recipe, "--config", str(CONFIGS / config), *settings(home, output), *overrides]
