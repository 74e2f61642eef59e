"""Tiny rows in the form in which PRM800K is published."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Candidate = tuple[str, int | None]


def step(*candidates: Candidate, chosen: int | None = 0, human: Any = None) -> Row:
    completions = [{"text": text, "rating": rating, "flagged": None} for text, rating in candidates]
    return {"completions": completions, "human_completion": human, "chosen_completion": chosen}


def written(text: str) -> Row:
    """A step that a labeller wrote, as in phase 1."""
    return {"text": text, "rating": None, "source": "human", "flagged": False, "corrected_rating": None}


def row(
    *steps: Row,
    problem: str = "What is 3 + 4, doubled?",
    answer: str | None = "14",
    finish: str = "solution",
    **fields: Any,
) -> Row:
    return {
        "labeler": "340d89bc-f5b7-45e9-b272-909ba68ee363",
        "timestamp": "2023-01-22T04:34:27.052924",
        "generation": None,
        "is_quality_control_question": False,
        "is_initial_screening_question": False,
        "question": {"problem": problem, "ground_truth_answer": answer},
        "label": {"steps": list(steps), "total_time": 278270, "finish_reason": finish},
    } | fields


END = "7 * 2 = 14.\n\n# Answer\n\n14"

# Phase 1: alternatives, a step by the labeller, a candidate that nobody rated.
PHASE_1 = row(
    step(("Add first.", 1), ("It is 3.", -1), ("Let me think.", 0)),
    step(("3 + 4 = 8.", -1), ("3 + 4 = 6.", -1), chosen=None, human=written("3 + 4\n= 7.")),
    step(("7 * 2 = 15.", -1), (END, 1), ("Hm.", None), chosen=1),
)

# Phase 2, like the first-error example in the README of PRM800K: nothing is chosen at the last step, of which the
# solution's own candidate, the first one, is wrong.
FOUND_ERROR = row(
    step(("I want 2 * (3 + 4).", 0)),
    step(("I know 3 + 4.", 0)),
    step(("It is 8.", -1), ("I can count.", 0), ("It is 6.", -1), ("3 + 4 = 7.", 1), chosen=None),
    finish="found_error", generation=9,
)  # fmt: skip

SOLVED = row(step(("3 + 4 = 7.", 1)), step((END, 1)), generation=5)


def write_rows(path: Path, rows: Sequence[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
