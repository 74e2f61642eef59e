"""The peer's side of answer_sets.py: the SSA reference's way of building a training set, timed part by part.

Imports nothing of this project, so that it runs in the published script's environment too. What the reference does: all
files of answers in memory, results read out of the texts for the none-filter, one call of the tokenizer a text,
membership tested in the list of the indices kept (once for the texts, once for their lengths), ``datasets`` to save.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable
from pathlib import Path

from datasets import Dataset

MAX_LENGTH = 4000
NONE_COUNTS = (2, 3, 4, 5)  # so many answers without a result drop a question


def build(folder: Path, count_tokens: Callable[[str], int], passes: int) -> dict[str, object]:
    """Build and save the set; its size, and the seconds of its parts."""
    began = time.perf_counter()
    files = sorted((folder / "decoded").iterdir())
    samples = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    gold = json.loads((folder / "gold.json").read_text(encoding="utf-8"))
    results = zip(*[[read_result(decoded) for decoded in sample] for sample in samples], strict=True)
    usable = [index for index, row in enumerate(results) if sum(result is None for result in row) not in NONE_COUNTS]
    questions = [samples[0][index].split("user\n")[1].split("assistant\n")[0].strip() for index in usable]
    answers = [
        [sample[index].split("assistant\n")[1].strip().replace("The Answer is:", "####") for index in usable]
        for sample in samples
    ]
    texts = []
    for index, question in enumerate(questions):
        text = f"Question: {question}\n\nBelow are the proposed answers:"
        for number in range(len(samples)):
            text += f"\n\nAnswer {number + 1}:\n" + answers[number][index]
        texts.append(text)
    seconds = {"read": time.perf_counter() - began}

    for name in ("first", "second")[:passes]:
        began = time.perf_counter()
        lengths = [count_tokens(text) for text in texts]
        seconds[f"{name} pass of the tokenizer"] = time.perf_counter() - began

    began = time.perf_counter()
    kept = [index for index, length in enumerate(lengths) if length <= MAX_LENGTH]
    rows = [texts[index] for index in range(len(texts)) if index in kept]
    right = [gold[usable[index]] for index in kept]
    kept_lengths = [lengths[index] for index in range(len(lengths)) if index in kept]
    seconds["membership"] = time.perf_counter() - began

    began = time.perf_counter()
    Dataset.from_dict({"question": rows, "answer": right}).save_to_disk(str(folder / "reference_sets"))
    seconds["save"] = time.perf_counter() - began
    return {"parts": seconds, "num_sets": len(rows), "num_tokens": sum(kept_lengths)}


def read_result(decoded: str) -> str | None:
    """What stands behind the marker of a decoded answer, as the reference looks for it."""
    text = decoded.split("assistant\n")[1]
    if "is:" in text:
        return text.split("is:")[-1].strip()
    found = re.search(r"boxed\{(.*)", text)
    return found[1] if found else None


def fast_counter(tokenizer: Path) -> Callable[[str], int]:
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    return lambda text: len(loaded.encode(text))


def slow_counter(tokenizer: Path, work: Path) -> Callable[[str], int]:
    """The tokenizer class of the reference's model, in Python, with the vocabulary of the given one."""
    from transformers import Qwen2Tokenizer

    model = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (work / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    (work / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    loaded = Qwen2Tokenizer(str(work / "vocab.json"), str(work / "merges.txt"))
    return lambda text: len(loaded.encode(text))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--slow", action="store_true", help="the slow tokenizer, once, as the published script")
    args = parser.parse_args()
    count = slow_counter(args.tokenizer, args.folder) if args.slow else fast_counter(args.tokenizer)
    figures = build(args.folder, count, passes=1 if args.slow else 2)
    (args.folder / "reference.json").write_text(json.dumps(figures), encoding="utf-8")
