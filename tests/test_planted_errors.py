"""The world of planted errors holds what it says: every label is checked by doing the arithmetic."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.planted_errors import World, write_chains
from tt_reasoning.steps import read_step_groups

_LINE = re.compile(r"(\d+) ([+-]) (\d+) = (\d+)")


def test_every_line_goes_on_from_the_one_before_and_only_the_one_rated_wrong_is_wrong(tmp_path: Path) -> None:
    write_chains(tmp_path / "chains", 400, seed=1)
    num_answers = num_wrong = 0
    groups = list(read_step_groups(tmp_path / "chains"))
    assert len({problem.question for problem, _ in groups}) == 400
    for problem, group in groups:
        assert len(group) == World().solutions
        for answer, steps in group:
            lines = [answer.text[step.start : step.end] for step in steps]
            parsed = [_LINE.fullmatch(line).groups() for line in lines]
            at, signs = parsed[0][0], [f" {sign} {number}" for _, sign, number, _ in parsed]
            assert problem.question == f"{at}{''.join(signs)} = ?"
            errors = []
            for number, (left, sign, right, result) in enumerate(parsed):
                assert left == at
                at = result
                if int(left) + int(sign + right) != int(result):
                    errors.append(number)
                assert 0 <= int(result) <= World().largest_result
            assert (at == problem.reference) == (not errors)
            first = errors[0] if errors else len(lines)
            assert len(errors) <= 1
            assert [step.rating for step in steps] == [
                1 if number < first else -1 if number == first else None for number in range(len(lines))
            ]
            num_answers += 1
            num_wrong += bool(errors)
    assert 0.45 < num_wrong / num_answers < 0.55


def test_the_same_seed_writes_the_same_records_and_another_others(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_chains(tmp_path / name, 20, seed=seed)
    files = [f"{name}.jsonl" for name in ("problems", "answers", "steps")]
    one, same, other = ([(tmp_path / home / file).read_bytes() for file in files] for home in "abc")
    assert one == same and all(left != right for left, right in zip(one, other, strict=True))
