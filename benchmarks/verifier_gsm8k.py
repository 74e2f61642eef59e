"""A verifier on published answers: GSM8K's example solutions, four to each of 1,319 questions, by four models.

It is trained on the answers to half of the questions and ranks the four answers of the other half; reported is its
accuracy beside each model's own, the majority of the four, and the oracle. Every stage is the command that a user types
(``tune run verifier_valuehead``, ``rank_answers``, ``evaluate``), and a run that was killed goes on.

DATA/gsm8k/example_model_solutions.jsonl is the file of openai/grade-school-math. Calculator marks stay in: the models
wrote them. ``--train`` and ``--test`` limit the questions, drawn by the seed.

    python benchmarks/verifier_gsm8k.py --data DATA --checkpoint models/smollm2-135m --out outputs/verifier_gsm8k
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from grading_agreement import MODELS, rows_of

from tt_reasoning import store
from tt_reasoning.errors import UserError, exit_on_mistake
from tt_reasoning.evaluation import RESULTS, format_table
from tt_reasoning.generation import ANSWERS, PROBLEMS
from tt_reasoning.selection import bootstrap_interval
from tt_reasoning.types import Answer, Problem, Sampling

ROOT = Path(__file__).parent.parent
FILE = "gsm8k/example_model_solutions.jsonl"


@dataclass(kw_only=True)
class Arguments:
    data: Path
    """Folder of the benchmarks' files."""
    out: Path
    """Folder of the run."""
    checkpoint: Path = Path("models/smollm2-135m")
    """What the verifier starts from."""
    train: int | None = None
    """Questions to train on; half of all unless given."""
    test: int | None = None
    """Questions to rank; the other half unless given."""
    epochs: int = 1
    """Over the training questions."""
    batch_size: int = 8
    """Questions a step."""
    dtype: Literal["fp32", "bf16_mixed"] = "fp32"
    """Arithmetic of the training."""
    threads: int = 2
    """Torch threads."""
    seed: int = 0
    """Of the halves and the training."""
    json: Path | None = None
    """File for the figures."""


def main(args: Arguments) -> str:
    """Write the two halves, then run every stage."""
    rows = list(rows_of(args.data / FILE))
    order = list(range(len(rows)))
    random.Random(args.seed).shuffle(order)
    half = len(rows) // 2
    parts = {"train": order[:half][: args.train], "test": order[half:][: args.test]}
    for name, chosen in parts.items():
        write_answers(args.out / name, [rows[i] for i in chosen], name, {"seed": args.seed, "questions": len(chosen)})
        grade = ["--answers", str(args.out / name), "--fallback", "last_number"]
        run([str(ROOT / "tools" / "check_answers.py"), *grade], args)
    judge = args.out / "verifier"
    run(
        [
            "-m", "torchtune._cli.tune", "run", "verifier_valuehead", "--config",
            str(ROOT / "configs" / "135M_verifier_cpu.yaml"), f"output_dir={judge}", f"checkpoint={args.checkpoint}",
            "model._component_=tt_reasoning.models.build_from_hf", f"model.path={args.checkpoint}",
            f"dataset.source={args.out / 'train'}", f"epochs={args.epochs}", f"batch_size={args.batch_size}",
            f"dtype={args.dtype}", "evaluation=null", "save_every_n_steps=10", "keep_checkpoints=1",
            f"seed={args.seed}",
        ],
        args,
    )  # fmt: skip
    last = max(judge.glob("step_*"), key=lambda folder: int(folder.name.removeprefix("step_")))
    test, scores, results = args.out / "test", args.out / "scores", args.out / "results"
    words = ["--answers", str(test), "--judge", str(last), "--aggregate", "last", "--out", str(scores)]
    run([str(ROOT / "tools" / "rank_answers.py"), *words], args)
    words = ["--answers", str(test), "--scores", str(scores), "--num-answers", str(len(MODELS)), "--out", str(results)]
    run([str(ROOT / "tools" / "evaluate.py"), *words], args)
    columns = column_accuracies(test)
    report = json.loads((results / RESULTS).read_text())
    if args.json:
        arguments = json.loads(json.dumps(vars(args), default=str))
        found = {"columns": columns, "results": report["results"], "differences": report["differences"]}
        store.write_json(args.json, {"arguments": arguments, **found})
    table = [["column", "accuracy %", "95 % interval"]]
    for name, (value, low, high) in columns.items():
        table.append([name, f"{100 * value:.1f}", f"[{100 * low:.1f}, {100 * high:.1f}]"])
    print(format_table(table))
    best = next(r for r in report["results"] if r["method"] == "best_of_n")
    majority = next(r for r in report["results"] if r["method"] == "majority")
    return (
        f"{len(parts['train'])} questions trained on, {len(parts['test'])} ranked: verifier {best['value']:.1%}, "
        f"majority {majority['value']:.1%}"
    )


def write_answers(folder: Path, rows: Sequence[dict[str, Any]], split: str, identity: dict[str, Any]) -> None:
    """The four solutions to each question as a folder of answers, a model a sample index."""
    with store.open_run(folder, "verifier_gsm8k", identity | {"split": split}) as out:
        problems, answers = [], []
        for row in rows:
            gold = row["ground_truth"].rpartition("A:")[2].strip().replace(",", "")
            problem = Problem(source="gsm8k", split=split, question=row["question"], reference=gold)
            problems.append(problem)
            for index, model in enumerate(MODELS):
                sampling = Sampling(model="gsm8k example solutions", prompt="steps")
                answers.append(
                    Answer(
                        id=sampling.answer_id(problem.id, index), problem_id=problem.id, sample_index=index,
                        text=row[model]["solution"], num_tokens=0, finish_reason="stop", sampling=sampling,
                    )  # fmt: skip
                )
        store.write_records(out / PROBLEMS, problems)
        store.write_records(out / ANSWERS, answers)


def run(words: Sequence[str], args: Arguments) -> None:
    """One stage. Raises UserError when it fails; what it said stands above."""
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
    status = subprocess.run([sys.executable, *words], env=environment, check=False).returncode
    if status:
        raise UserError(f"{Path(words[0]).stem} ended with status {status}; its output stands above")


def column_accuracies(folder: Path) -> dict[str, tuple[float, float, float]]:
    """Accuracy of each model's answers with its 95 % interval. Raises UserError where an answer was not judged.

    Otherwise ``evaluate`` would leave its question out, and the columns stand on others than the methods.
    """
    index_of = {answer.id: answer.sample_index for answer in store.read_records(folder / ANSWERS, Answer)}
    right: dict[int, list[float]] = {index: [] for index in range(len(MODELS))}
    for row in store.read_rows(folder / "verdicts.jsonl"):
        if row["correct"] is None:
            raise UserError(f"{folder}: answer {row['answer_id']} was not judged ({row['reason']})")
        right[index_of[row["answer_id"]]].append(float(bool(row["correct"])))
    return {
        MODELS[index]: (sum(values) / len(values), *bootstrap_interval(values)) for index, values in right.items()
    }


if __name__ == "__main__":
    with exit_on_mistake():
        print(main(tyro.cli(Arguments, description=__doc__)))
