"""Grading 10,000 answers on two cores against math-verify one after another in one process.

The answers are real where they can be: GSM8K's 5,276 example solutions with their labels, and solutions of MATH-500
whose last box is kept, respelled, left unsimplified, replaced by a wrong one (of another problem, or off by one or
a sign), moved into a sentence, alone, or cut off. So it is known of every item whether it is right.

- ``ours``: ``Grader(num_workers=2).grade_many``, workers running; GSM8K's answers, which mark nothing, as ``numeric``;
- ``peer``: ``verify(parse(gold), parse(text))`` with math-verify's own defaults, warm, in the main thread; gold answers
  of MATH between dollars, as its documentation asks for.

Every item that the two grade differently is written with the reason why, and who is right. The bar
(docs/performance.md): ratio 5, no difference without a reason.

    python benchmarks/grading.py --data DATA --json grading.json
"""

from __future__ import annotations

import random
import re
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from grading_agreement import labelled_answers, rows_of
from math_verify import parse, verify
from tqdm import tqdm

from tt_reasoning.errors import UserError, exit_on_mistake
from tt_reasoning.grading import Grader, count_reasons, values
from tt_reasoning.store import write_json
from tt_reasoning.types import Verdict

WARM = 50  # items that the peer grades before it is timed


@dataclass(kw_only=True)
class Arguments:
    data: Path
    """Folder with gsm8k/example_model_solutions.jsonl and math500/test.jsonl."""
    answers: int = 10_000
    """How many; all of GSM8K's, the rest from MATH."""
    num_workers: int = 2
    """Of our side; one a core."""
    repeats: int = 3
    """Timed runs of each side, in turn."""
    seed: int = 0
    """Of the order and of the wrong answers."""
    show: int = 5
    """Differences printed of each reason; the JSON has all."""
    json: Path | None = None
    """Write the figures and all differences here."""


@dataclass(frozen=True)
class Item:
    id: str
    text: str
    reference: str
    right: bool
    latex: bool


# --- items -----------------------------------------------------------------------------------------------


def build_items(args: Arguments) -> list[Item]:
    items = [
        Item(f"gsm8k {name}", text, gold, label, latex=False) for name, text, gold, label in labelled_answers(args.data)
    ]
    rng = random.Random(args.seed)
    rows = list(rows_of(args.data / "math500/test.jsonl"))
    variants = [item for row in rows for item in vary(row, rows, rng)]
    rng.shuffle(variants)
    if len(items) + len(variants) < args.answers:
        raise UserError(f"--answers {args.answers}: these files make {len(items) + len(variants)}")
    items = items[: args.answers] + variants[: max(0, args.answers - len(items))]
    rng.shuffle(items)
    return items


def vary(row: dict[str, Any], rows: list[dict[str, Any]], rng: random.Random) -> Iterator[Item]:
    """The solution of a problem, and what could have been written in its place."""
    solution, gold = row["solution"], row["answer"]
    start = solution.rindex("\\boxed")
    box = solution[start : start + closing_brace(solution, start) + 1] if "{" in solution[start : start + 8] else None
    reasoning = solution[:start]

    def item(name: str, text: str, right: bool) -> Item:
        return Item(f"{row['unique_id']} {name}", text, gold, right, latex=True)

    yield item("kept", solution, True)
    yield item("respelled", f"{reasoning}\\boxed{{{respell(gold)}}}$", True)
    yield item("sentence", f"{reasoning}...$\nThe answer is ${gold}$.", True)
    yield item("alone", f"${gold}$", True)
    if box:
        yield item("cut", solution[: start + len(box) // 2], False)
    others = [other["answer"] for other in rng.sample(rows, 12)]
    for number, other in enumerate([other for other in others if plainly_differ(other, gold)][:4]):
        yield item(f"other {number}", f"{reasoning}\\boxed{{{other}}}$", False)
    if re.fullmatch(r"-?[0-9]+", gold):
        yield item("off by one", f"{reasoning}\\boxed{{{int(gold) + 1}}}$", False)
        yield item("unsimplified", f"{reasoning}\\boxed{{\\frac{{{2 * int(gold)}}}{{2}}}}$", True)
        yield item("computed", f"{reasoning}\\boxed{{{int(gold) - 7} + 7}}$", True)
    elif is_expression(gold):
        yield item("other sign", f"{reasoning}\\boxed{{-\\left({gold}\\right)}}$", False)
        yield item("unsimplified", f"{reasoning}\\boxed{{3 \\cdot \\frac{{{gold}}}{{3}}}}$", True)
        yield item("computed", f"{reasoning}\\boxed{{\\left({gold}\\right) + 7 - 7}}$", True)


def closing_brace(text: str, start: int) -> int:
    """The offset from ``start`` of the brace that closes the first one."""
    depth = 0
    for offset, character in enumerate(text[start:]):
        depth += (character == "{") - (character == "}")
        if character == "}" and depth == 0:
            return offset
    raise ValueError(f"no brace closes {text[start : start + 40]!r}")


def respell(answer: str) -> str:
    """The same answer in other LaTeX."""
    answer = (
        answer.replace("\\frac", "\\dfrac").replace("\\left", "").replace("\\right", "").replace("pmatrix", "bmatrix")
    )
    return f"{int(answer):,}.0".replace(",", "{,}") if re.fullmatch(r"-?[0-9]+", answer) else f" {answer} "


def is_expression(answer: str) -> bool:
    return not re.search(
        r"text|mbox|matrix|cup|infty|circ|pm|[=,%_<>]|\\in|\\[{$]|^[\[(].*[\])]$|[0-9] *\\frac", answer
    )


def plainly_differ(one: str, other: str) -> bool:
    """Whether two answers of the collection are surely different: neither spelling holds the other."""
    one, other = (re.sub(r"[\s{}$]|\\[dt]?frac|\\text|\\left|\\right", "", text) for text in (one, other))
    return one not in other and other not in one


# --- the two sides ---------------------------------------------------------------------------------------


def grade_ours(items: list[Item], args: Arguments) -> tuple[float, list[Verdict]]:
    values.read.cache_clear()
    rows = [(item.id, item.text, item.reference, "math" if item.latex else "numeric") for item in items]
    with Grader(num_workers=args.num_workers) as grader:
        grader.grade_many([(str(n), f"\\boxed{{{n}+x}}", f"x+{n}", "math") for n in range(20)])  # starts the workers
        began = time.perf_counter()
        verdicts = grader.grade_many(rows)
        return time.perf_counter() - began, verdicts


def grade_peer(items: list[Item], label: str) -> tuple[float, list[bool]]:
    for item in items[:WARM]:
        ask_peer(item)
    began = time.perf_counter()
    verdicts = [ask_peer(item) for item in tqdm(items, desc=label, unit="answer", mininterval=2)]
    return time.perf_counter() - began, verdicts


def ask_peer(item: Item) -> bool:
    return verify(parse(f"${item.reference}$" if item.latex else item.reference), parse(item.text))


# --- differences -----------------------------------------------------------------------------------------


def explain(item: Item, ours: Verdict) -> str:
    """Why the two differ: what the peer says of our extraction tells where they part."""
    if ours.extracted is None:
        return "no answer is marked: the peer takes any mathematics of the text"
    if not item.latex:
        return "currency signs: the peer takes what stands between two for LaTeX"
    gold = parse(f"${item.reference}$")
    if verify(gold, parse(f"${ours.extracted}$")) is ours.correct:
        return "the peer reads another part of the text"
    if re.search(r"[A-Za-z]{3}", re.sub(r"\\(?!text|mbox)[A-Za-z]+", "", item.reference)):
        return "words and units: the peer has no words"
    if "." in ours.extracted or "." in item.reference:
        return "the peer rounds decimals"
    return "the peer's equality"


def compare(items: list[Item], ours: list[Verdict], peers: list[bool]) -> list[dict[str, Any]]:
    return [
        {
            "id": item.id, "reason": explain(item, our), "reference": item.reference, "extracted": our.extracted,
            "ours": our.reason, "peer": peer, "right": item.right,
            "who_is_right": "ours" if our.correct is item.right else "peer", "end": item.text[-120:],
        }
        for item, our, peer in zip(items, ours, peers, strict=True)
        if bool(our.correct) is not peer
    ]  # fmt: skip


def main(args: Arguments) -> None:
    items = build_items(args)
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    for repeat in range(args.repeats):
        our_time, ours = grade_ours(items, args)
        peer_time, peers = grade_peer(items, f"math-verify {repeat + 1}/{args.repeats}")
        times["ours"].append(our_time)
        times["peer"].append(peer_time)
    medians = {side: statistics.median(each) for side, each in times.items()}
    ratio = medians["peer"] / medians["ours"]
    differences = compare(items, ours, peers)
    wrong = {
        "ours": sum(our.correct is not item.right for item, our in zip(items, ours, strict=True)),
        "peer": sum(peer is not item.right for item, peer in zip(items, peers, strict=True)),
    }

    print(f"{len(items)} answers, {args.num_workers} workers, medians of {args.repeats}")
    for side, name in (("ours", "this project"), ("peer", "math-verify, one after another")):
        each = ", ".join(f"{seconds:.1f}" for seconds in times[side])
        print(f"  {name}: {medians[side]:.2f} s ({each}), {wrong[side]} against what is known")
    print(f"  ratio: {ratio:.1f}")
    print(f"  outcomes: {count_reasons(ours)}")
    print(f"{len(differences)} graded differently:")
    for reason, count in Counter(each["reason"] for each in differences).most_common():
        of_reason = [each for each in differences if each["reason"] == reason]
        right = Counter(each["who_is_right"] for each in of_reason)
        print(f"  {count} {reason} (right: ours {right['ours']}, peer {right['peer']})")
        for each in of_reason[: args.show]:
            print(f"    {each['id']}: reference {each['reference']!r}, ours {each['ours']} {each['extracted']!r}")
    if args.json:
        figures = {"answers": len(items), "seconds": times, "ratio": ratio, "wrong": wrong, "differences": differences}
        write_json(args.json, figures)


if __name__ == "__main__":
    with exit_on_mistake():
        main(tyro.cli(Arguments, description=__doc__))
