"""Labels of PRM800K to steps: rows in the published form, with what has to come of them worked out by hand."""

from __future__ import annotations

import copy
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from prm800k_rows import END, FOUND_ERROR, PHASE_1, SOLVED, Row, row, step, write_rows, written

from tt_reasoning.errors import UserError
from tt_reasoning.prm800k import Mode, Rules, build_labels, make_product, parse_row, survey_labels
from tt_reasoning.steps import read_step_groups
from tt_reasoning.types import problem_id

HUMAN = "3 + 4\n= 7."
Steps = list[tuple[str, int | None]]


def build(home: Path, *rows: Row, **rules: Any) -> tuple[dict[str, Any], list[Steps], list[str]]:
    """What ``stats.json`` says, and every answer's steps as the rest of the project reads them, and how it ends."""
    folder = home / f"steps{len(list(home.iterdir()))}"
    stats, _ = build_labels([write_rows(home / "rows.jsonl", rows)], Rules(**rules), folder)
    found, ends = [], []
    for _, group in read_step_groups(folder):
        for answer, steps in group:
            found.append([(answer.text[each.start : each.end], each.rating) for each in steps])
            ends.append(answer.finish_reason)
    assert stats["num_answers"] == len(found) and stats["num_steps"] == sum(map(len, found))
    return stats, found, ends


def test_candidates_are_the_path_with_its_ratings_and_each_other_one_behind_it(tmp_path: Path) -> None:
    stats, found, ends = build(tmp_path, PHASE_1)
    assert found == [
        [("Add first.", 1), (HUMAN, None), (END, 1)],
        [("It is 3.", -1)],
        [("Let me think.", 0)],
        [("Add first.", None), ("3 + 4 = 8.", -1)],
        [("Add first.", None), ("3 + 4 = 6.", -1)],
        [("Add first.", None), (HUMAN, None), ("7 * 2 = 15.", -1)],
    ]
    assert ends == ["stop", "length", "length", "length", "length", "length"]
    assert stats["labels"] == {"-1": 4, "0": 1, "1": 2} and stats["ratings_read"] == 7
    assert stats["without_rating"] == {"candidates": 1, "human_written": 1}


def test_the_first_error_of_phase_2_stays_an_error(tmp_path: Path) -> None:
    """The reference makes it a good step, as nothing is chosen."""
    before = [("I want 2 * (3 + 4).", 0), ("I know 3 + 4.", 0)]
    wrong = [*before, ("It is 8.", -1)]
    bare = [(text, None) for text, _ in before]
    beside = [[*bare, ("I can count.", 0)], [*bare, ("It is 6.", -1)], [*bare, ("3 + 4 = 7.", 1)]]
    assert build(tmp_path, FOUND_ERROR)[1] == [wrong, *beside]
    assert build(tmp_path, FOUND_ERROR, mode="single-path")[1:] == ([wrong], ["length"])
    combined = [[*before, (text, rating)] for text, rating in
                [("It is 8.", -1), ("I can count.", 0), ("It is 6.", -1), ("3 + 4 = 7.", 1)]]  # fmt: skip
    assert build(tmp_path, FOUND_ERROR, mode="product")[1] == combined


def test_a_single_path_takes_the_chosen_else_the_human_else_the_first_and_ends_at_its_first_error(
    tmp_path: Path,
) -> None:
    wrong = row(
        step(("one", -1), ("two", 1), chosen=1),
        step(("three", 0), chosen=None, human="four"),
        step(("five", 0), ("six", 1), chosen=None),
        step(("seven", -1), ("eight", 1)),
        step(("nine", 1)),
    )
    stats, found, _ = build(tmp_path, wrong, mode="single-path")
    assert found == [[("two", 1), ("four", None), ("five", 0), ("seven", -1)]]
    assert stats["ratings_behind_error"] == 1
    # Candidates keep every rating, those behind an error too; they are counted.
    _, found, _ = build(tmp_path, wrong)
    assert found[0] == [*[("two", 1), ("four", None), ("five", 0), ("seven", -1)], ("nine", 1)]
    assert [steps[-1] for steps in found[1:]] == [("one", -1), ("three", 0), ("six", 1), ("eight", 1)]


def test_a_product_combines_all_candidates_and_ends_each_at_its_first_error(tmp_path: Path) -> None:
    stats, found, ends = build(tmp_path, PHASE_1, mode="product")
    starts = [[("Add first.", 1)], None, [("Let me think.", 0)]]
    worked_out: list[Steps] = []
    for start in starts:
        if start is None:
            worked_out.append([("It is 3.", -1)])
            continue
        worked_out += [[*start, ("3 + 4 = 8.", -1)], [*start, ("3 + 4 = 6.", -1)]]
        worked_out += [[*start, (HUMAN, None), last] for last in [("7 * 2 = 15.", -1), (END, 1), ("Hm.", None)]]
    assert found == worked_out and len(found) == 11
    assert ends.count("stop") == 2
    assert (stats["paths_over_limit"], stats["paths_repeated"], stats["paths_unrated"]) == (0, 0, 0)


def test_a_product_beyond_its_limit_is_spread_evenly_and_counted() -> None:
    """3 candidates at each of 50 steps: 3^50 combinations, of which number 0, a third and two thirds begin apart."""
    steps = [step(*((f"{number} {letter}", 0) for letter in "abc")) for number in range(50)]
    solution = parse_row(row(*steps), Rules())
    chains, total = make_product(solution, survey_labels([solution]), 3)
    assert total == 3**50
    assert [chain[0].text for chain in chains] == ["0 a", "0 b", "0 c"]
    assert all(len(chain) == 50 for chain in chains)


def test_what_is_left_over_of_a_product_is_in_the_statistics(tmp_path: Path) -> None:
    stats, found, _ = build(tmp_path, PHASE_1, mode="product", max_paths=4)
    assert len(found) == 4 and stats["paths_over_limit"] == 7


@pytest.mark.parametrize("mode", ["candidates", "single-path", "product"])
def test_rows_that_are_no_labels_to_learn_from_are_left_out_and_counted(tmp_path: Path, mode: Mode) -> None:
    """The steps of such a row are not looked at."""
    stats, found, _ = build(
        tmp_path,
        SOLVED | {"is_quality_control_question": True},
        SOLVED | {"is_initial_screening_question": True, "generation": -1},
        row(finish="bad_problem"),
        row(step(chosen=7), finish="give_up"),
        row(step(("7", None)), step(chosen=None, human=written("14"))),
        SOLVED,
        SOLVED | {"generation": 6},
        mode=mode,
        max_generation=5,
    )
    assert found == [[("3 + 4 = 7.", 1), (END, 1)]]
    assert stats["left_out"] == {
        "quality_control": 1, "initial_screening": 1, "bad_problem": 1, "give_up": 1, "generation": 1, "unrated": 1,
    }  # fmt: skip
    assert (stats["num_rows"], stats["num_rows_used"]) == (7, 1)


def test_a_label_that_several_rows_repeat_counts_once_and_a_path_has_it_first(tmp_path: Path) -> None:
    """The second row's path is a candidate beside the first's, and the third row repeats the first."""
    first = row(step(("a", 1)), step(("b", 1), ("c", 0)))
    second = row(step(("a", 1)), step(("b", 1), ("c", 0), chosen=1), step(("d", -1)))
    other_problem = row(step(("a", 1)), problem="What is 9 - 8?", answer="1")
    stats, found, _ = build(tmp_path, first, second, first, other_problem)
    assert found == [
        [("a", 1), ("b", 1)],
        [("a", None), ("c", 0), ("d", -1)],
        [("a", 1)],
    ]
    assert (stats["ratings_read"], stats["ratings_repeated"], stats["num_problems"]) == (11, 6, 2)
    stats, found, _ = build(tmp_path, first, second, first, mode="single-path")
    assert found == [[("a", 1), ("b", 1)], [("a", 1), ("c", 0), ("d", -1)]]
    assert stats["paths_repeated"] == 1


def test_of_two_ratings_of_one_candidate_the_lower_holds_whoever_comes_first(tmp_path: Path) -> None:
    """The same words elsewhere, behind another step, are another candidate."""
    good, bad = row(step(("a", 1)), step(("b", 1)), step(("a", 1))), row(step(("a", 1)), step(("b", -1)))
    for rows, paths in (
        ((good, bad), [[("a", 1), ("b", -1), ("a", 1)]]),
        ((bad, good), [[("a", 1), ("b", -1)], [("a", None), ("b", None), ("a", 1)]]),
    ):
        stats, found, _ = build(tmp_path, *rows)
        assert found == paths and stats["ratings_disputed"] == 1
        for mode in ("single-path", "product"):
            assert build(tmp_path, *rows, mode=mode)[1] == [[("a", 1), ("b", -1)]]


def test_blank_candidates_are_no_steps_and_what_stands_behind_a_blank_step_is_counted(tmp_path: Path) -> None:
    stats, found, _ = build(
        tmp_path,
        row(step(("  ", -1), ("\n a ", 1), chosen=None, human=" "), step((" ", 1), ("b", 1)), step(("c", 1))),
        row(step(("x", 1)), step(chosen=None), problem="P?"),
    )
    # Lost: the first one, blank; both at the step whose chosen one is blank; and the one behind.
    assert (stats["ratings_read"], stats["ratings_lost"], stats["num_answers"]) == (2, 4, 2)
    assert found == [[("a", 1)], [("x", 1)]]


def test_problems_join_with_those_of_math_and_keep_their_first_reference(tmp_path: Path) -> None:
    rows = [SOLVED, row(step(("x", 1)), answer="15"), row(step(("y", 0)), problem=" What? ", answer=None)]
    stats, _, _ = build(tmp_path, *rows, split="test")
    problems = [json.loads(line) for line in (tmp_path / "steps0/problems.jsonl").read_text().splitlines()]
    assert [(p["source"], p["split"], p["reference"]) for p in problems] == [
        ("prm800k", "test", "14"), ("prm800k", "test", ""),
    ]  # fmt: skip
    assert problems[1]["id"] == problem_id("What?")
    assert stats["references_differ"] == 1


def broken(path: str, value: Any) -> Row:
    """A sound row with one value replaced, or (``...``) taken out."""
    changed = copy.deepcopy(SOLVED)
    *way, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    at: Any = changed
    for part in way:
        at = at[part]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return changed


COMPLETION = "label/steps/1/completions/0"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("label", None, "label=None should be an object"),
        ("label", ..., "no field 'label'"),
        ("question/problem", " ", "problem=' ' should be a text"),
        ("question/problem", "\ud83d?", "surrogates not allowed"),
        ("is_quality_control_question", ..., "no field 'is_quality_control_question'"),
        ("generation", "9", "generation='9' should be an integer or null"),
        ("label/finish_reason", "found_eror", "finish_reason='found_eror' is none of found_error, solution, "),
        ("label/steps", {}, "steps={} should be a list"),
        ("label/steps/1", "3 + 4", "step 1: not a JSON object"),
        ("label/steps/1/chosen_completion", 1, "step 1: chosen_completion=1, but there are 1 completions"),
        ("label/steps/1/chosen_completion", True, "step 1: chosen_completion=True should be an integer or null"),
        ("label/steps/1/human_completion", 7, "step 1: human_completion=7 should be an object or a text"),
        ("label/steps/1/human_completion", {}, "step 1: no field 'text'"),
        (f"{COMPLETION}/rating", 2, "step 1: rating=2 is none of -1, 0, 1, null"),
        (f"{COMPLETION}/rating", "1", "step 1: rating='1' should be an integer or null"),
        (f"{COMPLETION}/rating", ..., "step 1: no field 'rating'"),
        (f"{COMPLETION}/text", None, "step 1: text=None should be a text"),
        (f"{COMPLETION}/text", "\udc00", "surrogates not allowed"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line_and_nothing_is_written(
    tmp_path: Path, path: str, value: Any, message: str
) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [PHASE_1, broken(path, value)])
    with pytest.raises(UserError, match="rows.jsonl:2: not a row of PRM800K: ") as caught:
        build_labels([file], Rules(), tmp_path / "steps")
    assert message in str(caught.value)
    assert not (tmp_path / "steps").exists()


def test_a_file_that_is_not_whole_or_no_labels_at_all_is_said(tmp_path: Path) -> None:
    whole = write_rows(tmp_path / "rows.jsonl", [PHASE_1, SOLVED]).read_bytes()
    packed = gzip.compress(whole)
    for name, data, message in (
        ("cut.jsonl", whole[:-20], r"cut.jsonl:2: the file ends within this line; fetch the file again"),
        ("torn.jsonl", whole[:-20] + b"\n", r"torn.jsonl:2: not JSON: "),
        ("cut.jsonl.gz", packed[:-20], r"cut.jsonl.gz:\d: not whole gzip data"),
        ("plain.jsonl.gz", whole, r"plain.jsonl.gz:1: not whole gzip data \(Not a gzipped file"),
        ("list.jsonl", b"[]\n", r"list.jsonl:1: not a row of PRM800K: not a JSON object"),
        ("pointer.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "1: a pointer of Git LFS"),
        ("latin.jsonl", '{"é": 1}\n'.encode("latin-1"), r"latin.jsonl:1: not JSON"),
        ("empty.jsonl", b"\n", r"empty.jsonl: no rated step in 0 rows \(none\)"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=message):
            build_labels([tmp_path / name], Rules(), tmp_path / "steps")
    assert not (tmp_path / "steps").exists()


def test_a_last_line_without_line_break_is_read_and_packed_files_give_the_same(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [PHASE_1, FOUND_ERROR, SOLVED]).read_bytes()
    (tmp_path / "bare.jsonl").write_bytes(rows.rstrip(b"\n"))
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress(rows))
    folders = []
    for name in ("rows.jsonl", "bare.jsonl", "packed.jsonl.gz"):
        folders.append(tmp_path / f"from {name}")
        build_labels([tmp_path / name], Rules(), folders[-1])
    for name in ("problems.jsonl", "answers.jsonl", "steps.jsonl", "stats.json"):
        assert len({(folder / name).read_bytes() for folder in folders}) == 1
