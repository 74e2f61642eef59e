"""Prompts from files: what is a template, what is not, and that its content is its name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tt_reasoning.errors import UserError
from tt_reasoning.grading import extract_answer
from tt_reasoning.prompts import PROMPTS, SYSTEM_PROMPTS, get_prompt, load_prompt
from tt_reasoning.steps import split_steps, states_result
from tt_reasoning.store import open_run


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_a_text_file_is_the_users_message(tmp_path: Path) -> None:
    prompt = load_prompt(write(tmp_path, "my.txt", "Be brief.\n{question}\n"))
    assert prompt.render("2 + {question}?") == [{"role": "user", "content": "Be brief.\n2 + {question}?"}]


def test_yaml_and_json_say_the_same(tmp_path: Path) -> None:
    one = load_prompt(write(tmp_path, "a.yaml", 'user: "{question}="\nchat: false\nprefill: "<"\nstop: [">", "\\n"]\n'))
    two = load_prompt(
        write(tmp_path, "a.json", '{"user":\t"{question}=", "chat": false, "prefill": "<", "stop": [">", "\\n"]}')
    )
    assert one == two and one.render("2 + 2") == "2 + 2=<" and one.stop == (">", "\n")


def test_the_content_is_the_name_and_a_known_prompt_keeps_its_own(tmp_path: Path) -> None:
    texts = enumerate(["{question}!", "{question}!\n"])
    names = {load_prompt(write(tmp_path, f"{n}.txt", text)).name for n, text in texts}
    assert len(names) == 1 and names.pop().startswith("custom@")
    assert load_prompt(write(tmp_path, "q.txt", "{question}!!")).name != load_prompt(str(tmp_path / "0.txt")).name
    assert load_prompt(write(tmp_path, "same.txt", PROMPTS["boxed"].user)) is PROMPTS["boxed"]
    assert all(load_prompt(name) is prompt for name, prompt in PROMPTS.items())


def test_a_system_message_by_name_or_file(tmp_path: Path) -> None:
    own = write(tmp_path, "system.txt", "You are terse.\n")
    for given, text in [("boxed", SYSTEM_PROMPTS["boxed"]), (own, "You are terse.")]:
        prompt = load_prompt("question", given)
        assert prompt.render("2?") == [{"role": "system", "content": text}, {"role": "user", "content": "2?"}]


def test_a_runs_manifest_gives_its_prompt_back(tmp_path: Path) -> None:
    prompt = load_prompt("answer", "boxed")
    with open_run(tmp_path / "run", "generate_answers", {"template": prompt.template()}) as folder:
        assert get_prompt(prompt.name, folder) == prompt
        assert get_prompt("ssa", folder) is PROMPTS["ssa"]
    with open_run(tmp_path / "other", "generate_answers", {"template": PROMPTS["ssa"].template()}) as folder, \
            pytest.raises(UserError, match=f"answers name {prompt.name}; restore the manifest"):  # fmt: skip
        get_prompt(prompt.name, folder)
    with pytest.raises(UserError, match="unknown prompt 'custom@"):
        get_prompt(prompt.name)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "no place for it", "a.txt holds {question} 0 times; write it once"),
        ("a.txt", "{question} {question}", "holds {question} 2 times"),
        ("a.txt", b"\xff", "not a readable text file"),
        ("a.yaml", "user: '{question}'\nsystme: x", "unknown key in .*a.yaml 'systme': did you mean 'system'"),
        ("a.yaml", "user: [", "a.yaml: not YAML: "),
        ("a.json", "{", "a.json: not JSON: "),
        ("a.yaml", "just text {question}", "a.yaml: not a template: give user"),
        ("a.yaml", "user: '{question}'\nstop: 3", "stop: 3: wanted a text or a list of texts"),
        ("a.yaml", "user: '{question}'\nstop: ''", "stop: '': wanted a text or a list of texts, none of them empty"),
        ("a.yaml", "user: '{question}'\nchat: maybe", "chat: 'maybe': wanted true or false"),
        ("a.yaml", "user: 3", "user: 3: wanted a text"),
        ("a.yaml", "user: '{question}'\nprefill: x", "a chat has no prefill; write it as plain text with chat: false"),
        ("a.yaml", "user: '{question}'\nsystem: x\nchat: false", "plain text has no system message"),
    ],
)
def test_a_file_that_is_no_template_is_refused(tmp_path: Path, name: str, text: str | bytes, message: str) -> None:
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        load_prompt(str(tmp_path / name))
    if name == "a.txt" and isinstance(text, bytes):
        with pytest.raises(UserError, match=message):
            load_prompt("question", str(tmp_path / name))


def test_the_demonstrations_in_steps_calculate_right_and_end_where_a_completion_is_stopped() -> None:
    prompt = get_prompt("few_shot_steps")
    assert prompt.user.endswith(get_prompt("steps").user)
    *demonstrations, last = prompt.user.split(prompt.stop[0])
    assert len(demonstrations) == 4 and last == get_prompt("steps").user
    counts = []
    for demonstration in demonstrations:
        _, solution = demonstration.split("\nSolution:\n")
        calculations = re.findall(r"(\d[\d */+-]*) = (\d+)", solution)
        assert all(eval(left) == int(right) for left, right in calculations)  # what this file's authors wrote
        assert extract_answer(solution) == calculations[-1][1] and states_result(solution)
        assert len(calculations) == len(split_steps(solution))
        counts.append(len(calculations))
    assert sorted(counts) == [2, 3, 3, 4]
