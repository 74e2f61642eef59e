"""Small graded folders of answers that a value model steered, for the tests of evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tt_reasoning import store
from tt_reasoning.types import Answer, Divergence, Guidance, Problem, Sampling, Verdict

PROBLEMS = [
    Problem(source="demo", split="test", question=f"What is {n} + {n}?", reference=str(2 * n)) for n in (1, 2)
]
REFERENCE = Sampling(model="models/tiny", prompt="answer")
Q = Guidance(value_model="outputs/q/step_4", eta=0)


def eta(value: float, **changes: object) -> Guidance:
    return replace(Q, eta=value, **changes)


# By guidance, then by problem: what was extracted from each answer (a ? cannot be judged) and the KL of each.
World = Mapping[Guidance | None, Sequence[tuple[Sequence[str], Sequence[float]]]]
WORLD: World = {
    # right: 1 and 0 of 2
    eta(0): [(["2", "3"], [0, 0]), (["5", "5"], [0, 0])],
    # right: 2 and 1 of 2
    eta(5): [(["2", "2"], [1, 3]), (["5", "4"], [4, 6])],
}


def write_guided(
    folder: Path,
    world: World = WORLD,
    *,
    problems: Sequence[Problem] = PROBLEMS,
    sampling: Sampling = REFERENCE,
) -> Path:
    """A folder of ``generate_answers``; ``sampled`` is one nat above ``whole`` where there is a guidance, and
    answers have 10 tokens, those of a guidance above 0 have 20."""
    answers, verdicts = [], []
    for guidance, rows in world.items():
        sampling = replace(sampling, guidance=guidance)
        for problem, (results, drifts) in zip(problems, rows, strict=True):
            for index, (result, drift) in enumerate(zip(results, drifts, strict=True)):
                divergence = None if guidance is None else Divergence(whole=float(drift), sampled=drift + 1.0)
                answer = Answer(
                    id=sampling.answer_id(problem.id, index), problem_id=problem.id, sample_index=index,
                    text=f"It is {result}.", num_tokens=20 if sampling.eta else 10, finish_reason="stop",
                    sampling=sampling, divergence=divergence,
                )  # fmt: skip
                correct = None if result == "?" else result == problem.reference
                reason = {None: "timeout", True: "match", False: "mismatch"}[correct]
                answers.append(answer)
                verdicts.append(Verdict(answer_id=answer.id, extracted=result, correct=correct, reason=reason))
    with store.open_run(folder, "generate_answers", {"seed": 0}):
        store.write_records(folder / "problems.jsonl", problems)
        store.write_records(folder / "answers.jsonl", answers)
        store.write_records(folder / "verdicts.jsonl", verdicts)
    return folder
