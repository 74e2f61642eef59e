"""Building answer sets, tokenizer included: tools/concat_answers.py against the SSA reference's algorithm.

All sides get the same questions with the same answers (70 to 330 tokens each, made here from a seed), the same
tokenizer.json and every core of the machine, and each is a process of its own, timed from its start to its exit:

- ``ours``: the tool itself, from the folder that generate_answers and check_answers leave, to sets.jsonl;
- ``reference``: the algorithm of the reference's constructTrainData.py, written anew (reference_sets.py): one call of
  the tokenizer a text, membership tested in a list. As the bar has it, every text is tokenized twice, by the same
  ``tokenizers`` library that this project uses; ``ratio_tokenized_once`` leaves the second pass out;
- ``published``, with ``--published``: the same with what the published script calls, once: the slow tokenizer
  (``use_fast=False``) of transformers 4.49.0, its pin, in an environment of its own that the first run sets up in
  benchmarks/.ssa.

All must keep as many sets, and ours and the reference sets of the same lengths, or the benchmark fails. Memory is the
peak of each side, all its processes together, and how much more it is than at a quarter of the questions. The texts
have as many different words as real ones: 310,000 in 7.5 million, where solutions of GSM8K and MATH would come to
270,000 to 330,000 by the growth of their first 60,000 to 360,000 words (digits set equal). The bar
(docs/performance.md): ratio 20 at 20,000 questions with 5 answers, memory flat in the number of rows.

    python benchmarks/answer_sets.py --published --json answer_sets.json
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from tqdm import tqdm

from tt_reasoning import store
from tt_reasoning.errors import UserError, exit_on_mistake
from tt_reasoning.processes import count_cores
from tt_reasoning.types import Answer, Problem, Sampling, Verdict

HERE = Path(__file__).resolve().parent
PEER = HERE / ".ssa"
MAX_LENGTH = 4000
SAMPLING = Sampling(model="made-up", prompt="answer", temperature=0.5, top_k=40)

SYLLABLES = (
    "ba", "cor", "del", "fen", "gra", "hol", "in", "jas", "kel", "lu", "mar", "nor", "os", "pel", "qui", "ros", "sto",
    "tan", "ul", "ver", "win", "yor", "zan", "thi", "ach", "ment",
)  # fmt: skip
OPENINGS = (
    "To determine how many {thing} {name} has, we need to go through the problem step by step.",
    "Let's break this down step by step.",
    "First, let's find out what is given: {name} has {a} {thing} and {b} more {other} arrive at the {place}.",
    "We are told that {name} {verb} {a} {thing} every day, and that each of them costs ${money}.",
    "Let ${letter}$ be the number of {thing}. The condition says that ${formula} = {sum}$.",
)
STEPS = (
    "Calculate the total number of {thing}:\n   \\[\n   {a} \\times {b} = {product}\n   \\]",
    "{name} {verb} {a} {thing} at the {place}, so there are {a} + {b} = {sum} {other} altogether.",
    "The cost is ${money} for each of the {a} {thing}, which makes {a} * {money} = ${total} in the end.",
    "Subtract what {verb} away, so that ${sum} - {b} = {a}$ {thing} remain with {name}.",
    "This can be written as ${formula} \\approx {quotient}$, so about {percent}% of the {thing} are left.",
    "**Half of the {thing}** go to the {place}: ${product}/2={half}$. Therefore, {name} keeps the {other}.",
    "Since ${formula} = ({letter} - {a})({letter} - {b})$, the solutions are ${letter}={a}$ and ${letter}={b}$.",
    "Next, we multiply by the number of weeks, because {name} {verb} {thing} for {b} weeks: {a}x{b}={product}.",
    "So {a}*{b}=<<{a}*{b}={product}>>{product}\n{Thing}: ${sum}-{b}=<<{sum}-{b}={a}>>{a}$ {other}.",
    "**{Thing}**: with $f({letter})={formula}$, {name} {verb} $g({formula2})$,\nwhich is ${formula}={formula3}$.",
    "**{Thing}**: we simplify $${formula}={formula2}$$ and get ${formula3}$, which {verb} the {other}.",
)
ENDINGS = (
    "\n\nTherefore, the number of {thing} is $\\boxed{{{result}}}$.\n\nThe Answer is: {result}",
    "\n\nSo {name} has {result} {thing} at the end.\nThe Answer is: {result}",
    "\nThe Answer is: {result}",
)


@dataclass(kw_only=True)
class Arguments:
    tokenizer: Path = Path("models/smollm2-135m")
    """Folder with a tokenizer.json, for both sides."""
    questions: int = 20_000
    """How many; memory is measured at a quarter of them too."""
    answers: int = 5
    """Answers to each, all of them in its set."""
    repeats: int = 1
    """Runs of each side, in turn; the median counts."""
    json: Path | None = None
    """Write the figures here too."""
    published: bool = False
    """Run the reference with the published script's own tokenizer too; sets up an environment for it."""


def draw_word(rng: random.Random) -> str:
    """A made-up word of one to three syllables; short ones come often, as in real texts."""
    return "".join(rng.choices(SYLLABLES, k=1 + int(3 * rng.random() ** 2)))


def draw_formula(rng: random.Random) -> str:
    letter, a, b = rng.choice("xyzabnkt"), rng.randint(2, 40), rng.randint(2, 9)
    parts = (
        f"{a}{letter}", f"{letter}^{b}", f"\\frac{{{a}}}{{{b}{letter}}}", f"\\sqrt{{{letter}+{a}}}",
        f"({letter}-{a})^{b}", f"\\{rng.choice(SYLLABLES)}({letter})", str(a),
    )  # fmt: skip
    return rng.choice("+-").join(rng.choices(parts, k=rng.choice((1, 2, 2, 3, 4))))


def draw_words(rng: random.Random) -> dict[str, Any]:
    """What fills the templates: small numbers often, large ones seldom, as in word problems."""
    a, b = (int(10 ** rng.uniform(0.3, 3.3)) for _ in range(2))
    thing = draw_word(rng)
    return {
        "name": draw_word(rng).title(), "thing": thing, "Thing": thing.title(), "other": draw_word(rng),
        "place": draw_word(rng), "verb": draw_word(rng) + "s", "letter": rng.choice("xyzabnkt"),
        "formula": draw_formula(rng), "formula2": draw_formula(rng), "formula3": draw_formula(rng),
        "a": a, "b": b, "sum": a + b, "product": a * b, "half": a * b / 2, "quotient": round(a / b, 2),
        "percent": round(100 * rng.random(), 1), "money": f"{rng.uniform(0.5, 90):.2f}",
        "total": f"{a * rng.uniform(0.5, 90):,.2f}", "result": rng.choice((a, b, a + b, a * b)),
    }  # fmt: skip


def draw_question(rng: random.Random) -> str:
    parts = [rng.choice(STEPS[1:3] + STEPS[7:]).format(**draw_words(rng)) for _ in range(rng.randint(1, 3))]
    return " ".join(parts) + " How many {thing} does {name} have at the {place}?".format(**draw_words(rng))


def draw_answer(rng: random.Random) -> str:
    """A solution of 2 to 6 steps in the manner of an instruct model; 4 in 100 end without a result."""
    words = draw_words(rng)
    text = rng.choice(OPENINGS).format(**words)
    for number in range(1, rng.randint(3, 6)):
        text += f"\n\n{number}. " + rng.choice(STEPS).format(**draw_words(rng) | {"name": words["name"]})
    return text + (rng.choice(ENDINGS).format(**words) if rng.random() < 0.96 else "")


def write_data(folder: Path, count: int, num_answers: int) -> None:
    """The same problems and answers in the layout of each side."""
    problems, by_sample = [], [[] for _ in range(num_answers)]

    def answers() -> Iterator[Answer]:
        for number in tqdm(range(count), desc=f"make {count:,} questions"):
            rng = random.Random(number)
            problem = Problem(source="made-up", split="train", question=draw_question(rng), reference=str(number))
            problems.append(problem)
            for index, decoded in enumerate(by_sample):
                text = draw_answer(rng)
                decoded.append(f"system\nYou are helpful.\nuser\n{problem.question}\nassistant\n{text}")
                yield Answer(
                    id=SAMPLING.answer_id(problem.id, index), problem_id=problem.id, sample_index=index, text=text,
                    num_tokens=len(text) // 3, finish_reason="stop", sampling=SAMPLING,
                )  # fmt: skip

    with store.open_run(folder / "answers", "generate_answers", {"benchmark": count}) as ours:
        store.write_records(ours / "answers.jsonl", answers())
        store.write_records(ours / "problems.jsonl", problems)
        rows = store.read_rows(ours / "answers.jsonl")
        store.write_records(ours / "verdicts.jsonl", (grade(row) for row in rows))
    (folder / "decoded").mkdir()
    for index, decoded in enumerate(by_sample):
        store.write_json(folder / f"decoded/{index}.json", decoded)
    store.write_json(folder / "gold.json", [problem.reference for problem in problems])


def grade(row: dict[str, Any]) -> Verdict:
    """Every third answer with a result is right: who wins does not matter here."""
    _, marker, result = row["text"].partition("The Answer is:")
    correct = bool(marker) and int(row["id"], 16) % 3 == 0
    reason = "no_answer" if not marker else "match" if correct else "mismatch"
    return Verdict(answer_id=row["id"], extracted=result.strip() or None, correct=correct, reason=reason)


def run_ours(folder: Path, args: Arguments) -> dict[str, Any]:
    out = Path(tempfile.mkdtemp(dir=folder)) / "sets"
    command = [
        HERE.parent / "tools/concat_answers.py", "--answers", folder / "answers", "--num-answers", args.answers,
        "--max-length", MAX_LENGTH, "--tokenizer", args.tokenizer.resolve(), "--out", out,
    ]  # fmt: skip
    figures = run_timed(command)
    stats = json.loads((out / "stats.json").read_text(encoding="utf-8"))
    num_tokens = sum(int(length) * count for length, count in stats["sets_by_num_tokens"].items())
    return figures | {"num_sets": stats["num_sets"], "num_tokens": num_tokens}


def run_reference(folder: Path, args: Arguments, python: str = sys.executable, *more: str) -> dict[str, Any]:
    figures = run_timed([HERE / "reference_sets.py", folder, args.tokenizer, *more], python)
    return figures | json.loads((folder / "reference.json").read_text(encoding="utf-8"))


def run_timed(command: list[object], python: str = sys.executable) -> dict[str, Any]:
    """Of a Python program: seconds from start to exit, those of all its processes on a core, and the peak of their
    memory in MiB."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen([python, *map(str, command)], stdout=subprocess.DEVNULL)
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, memory_mib(process.pid))
        time.sleep(0.02)
    if process.returncode:
        raise UserError(f"{Path(str(command[0])).name} failed with status {process.returncode}; see above")
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    on_core = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "core_seconds": on_core, "peak_mib": peak}


def memory_mib(pid: int) -> float:
    """What a process and its children hold, shared pages counted once."""
    total = 0
    for name in [pid, *children(pid)]:
        try:
            lines = Path(f"/proc/{name}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has just ended
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 2**10


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def measure(folder: Path, args: Arguments, count: int, repeats: int) -> dict[str, dict[str, Any]]:
    """The median run of each side at so many questions."""
    folder.mkdir()
    write_data(folder, count, args.answers)
    sides = {"ours": lambda: run_ours(folder, args), "reference": lambda: run_reference(folder, args)}
    if args.published:
        python = peer_python()
        sides["published"] = lambda: run_reference(folder, args, python, "--slow")
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(repeats):
        for side, run in sides.items():
            runs[side].append(run())
    one, *others = (runs[side][0] for side in sides)
    if any(other["num_sets"] != one["num_sets"] for other in others) or others[0]["num_tokens"] != one["num_tokens"]:
        raise RuntimeError(f"the sides disagree: {runs}")
    return {side: sorted(found, key=lambda run: run["seconds"])[len(found) // 2] for side, found in runs.items()}


def peer_python() -> str:
    """The Python of the published script's environment, set up unless it is there."""
    python = PEER / "bin" / "python"
    check = [str(python), "-c", "import datasets, transformers; assert transformers.__version__ == '4.49.0'"]
    if python.exists() and subprocess.run(check, capture_output=True).returncode == 0:
        return str(python)
    print(f"setting up transformers 4.49.0 in {PEER}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(PEER)], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "transformers==4.49.0", "datasets"]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"could not set up {PEER}: {done.stderr.strip().splitlines()[-1]}")
    return str(python)


def main(args: Arguments) -> None:
    with tempfile.TemporaryDirectory() as home:
        small = measure(Path(home) / "small", args, args.questions // 4, 1)
        large = measure(Path(home) / "large", args, args.questions, args.repeats)
    seconds = {side: found["seconds"] for side, found in large.items()}
    once = seconds["reference"] - large["reference"]["parts"]["second pass of the tokenizer"]
    figures = {
        "questions": args.questions, "answers": args.answers, "cores": count_cores(),
        "num_tokens": large["ours"]["num_tokens"], "ratio": seconds["reference"] / seconds["ours"],
        "ratio_tokenized_once": once / seconds["ours"],
        "ratio_published": seconds["published"] / seconds["ours"] if args.published else None,
        "growth_mib": {side: large[side]["peak_mib"] - small[side]["peak_mib"] for side in large},
        "large": large, "small": small,
    }  # fmt: skip
    print(f"peaks at {args.questions:,} questions, and how much more than at {args.questions // 4:,}")
    for side, found in large.items():
        growth = figures["growth_mib"][side]
        times = f"{found['seconds']:8.2f} s ({found['core_seconds']:.2f} s on cores)"
        print(f"{side:10}{times}   peak {found['peak_mib']:6.0f} MiB, {growth:+.0f} MiB")
        if "parts" in found:
            print(" " * 11 + ", ".join(f"{part} {taken:.2f} s" for part, taken in found["parts"].items()))
    print(f"reference / ours: {figures['ratio']:.1f}x; if it tokenized once: {figures['ratio_tokenized_once']:.1f}x")
    if args.published:
        print(f"published / ours: {figures['ratio_published']:.1f}x")
    if args.json:
        store.write_json(args.json, figures)


if __name__ == "__main__":
    with exit_on_mistake():
        main(tyro.cli(Arguments, description=__doc__))
