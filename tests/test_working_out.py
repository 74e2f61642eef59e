"""The form of the GSM8K study: one writer, one reader, and what counts as the form."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tt_reasoning.prompts import PROMPTS
from tt_reasoning.working_out import TAGS, Response, count_tags, has_form, read_response, write_response

BEGIN, END, OPEN, CLOSE = TAGS
GOOD = f"{BEGIN}\n2 + 1 = 3\n{END}\n{OPEN}3{CLOSE}"


def test_what_is_written_is_read_back_and_has_the_form() -> None:
    assert write_response(" 2 + 1 = 3\n", " 3 ") == GOOD
    assert read_response(GOOD) == Response("2 + 1 = 3", "3") and has_form(GOOD) and count_tags(GOOD) == 4


@pytest.mark.parametrize(
    ("reasoning", "solution", "message"),
    [
        (" \n", "3", "the reasoning is empty"),
        ("2 + 1", "", "the solution is empty"),
        (f"2 {END} 1", "3", f"the reasoning holds {END}"),
        ("2 + 1", f"3{CLOSE}", f"the solution holds {CLOSE}"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(reasoning: str, solution: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        write_response(reasoning, solution)


@pytest.mark.parametrize(
    ("text", "exact", "tags", "response"),
    [
        (f"\n {GOOD}\n", True, 4, ("2 + 1 = 3", "3")),
        (f"{BEGIN}a{END}{OPEN}3{CLOSE}", True, 4, ("a", "3")),
        (f"Sure! {GOOD}", False, 4, ("2 + 1 = 3", "3")),
        (f"{GOOD} Done.", False, 4, ("2 + 1 = 3", "3")),
        (f"{BEGIN}a{END} so {OPEN}3{CLOSE}", False, 4, ("a", "3")),
        (f"{GOOD}{OPEN}4{CLOSE}", False, 2, ("2 + 1 = 3", "4")),
        (f"{BEGIN} {END}{OPEN}3{CLOSE}", False, 4, (None, "3")),
        (f"{BEGIN}a{END}{OPEN}\n{CLOSE}", False, 4, ("a", None)),
        (f"{BEGIN}a{END}{OPEN}3", False, 3, ("a", None)),
        (f"{BEGIN}a{OPEN}3{CLOSE}", False, 3, (None, "3")),
        (f"{OPEN}3{CLOSE}{BEGIN}a{END}", False, 4, ("a", "3")),
        (f"{END}{BEGIN}a{OPEN}3{CLOSE}", False, 4, (None, "3")),
        (f"{BEGIN}a{END}{CLOSE}{OPEN}3", False, 4, ("a", None)),
        (f"{OPEN}1{CLOSE}{OPEN}{CLOSE}", False, 0, (None, "1")),
        (f"{OPEN}1{OPEN}2{CLOSE}3{CLOSE}", False, 0, (None, "2")),
        (GOOD.lower(), False, 2, ("2 + 1 = 3", None)),
        ("3", False, 0, (None, None)),
        ("", False, 0, (None, None)),
    ],
)
def test_the_form_exact_and_approximate_and_its_sections(
    text: str, exact: bool, tags: int, response: tuple[str | None, str | None]
) -> None:
    assert (has_form(text), count_tags(text), tuple(read_response(text))) == (exact, tags, response)


@pytest.mark.parametrize("part", [OPEN, CLOSE, OPEN + CLOSE, BEGIN, CLOSE + OPEN])
def test_a_million_tags_are_read_in_linear_time(part: str) -> None:
    script = f"import tt_reasoning.working_out as w; t = {part!r} * 10**6; w.read_response(t), w.has_form(t)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_both_prompts_say_the_same_and_name_every_tag_once() -> None:
    chat, plain = PROMPTS["working_out"], PROMPTS["working_out_plain"]
    assert chat.render("2 + 1?") == [
        {"role": "system", "content": chat.system},
        {"role": "user", "content": "2 + 1?"},
    ]
    assert plain.render("2 + 1?") == f"{chat.system}\n\nProblem: 2 + 1?\n\n"
    assert count_tags(chat.system or "") == 4
    assert [chat.system.index(tag) for tag in TAGS] == sorted(chat.system.index(tag) for tag in TAGS)
