"""The samples of a value model: tokens and what is read of them by hand, several sources, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny import write_byte_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers

from tt_reasoning.datasets import qsharp_dataset
from tt_reasoning.datasets.prm import JudgeGroup, pack_judged
from tt_reasoning.datasets.qsharp import lay_out_example
from tt_reasoning.errors import UserError
from tt_reasoning.models import ChatTokenizer
from tt_reasoning.prompts import Prompt, get_prompt
from tt_reasoning.qsharp import Example
from tt_reasoning.store import write_json, write_records
from tt_reasoning.types import Problem

QUESTIONS = ("2 + 3?", "4 + 4?", "1 + 1?")
PROBLEMS = {
    question: Problem(source="s", split="train", question=question, reference="5") for question in QUESTIONS
}
ONE, TWO, THREE = (problem.id for problem in PROBLEMS.values())
PROMPT = get_prompt("steps")
EOS = 258


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_byte_tokenizer(folder)
    return ChatTokenizer(folder)


def example(name: str, problem_id: str = ONE, begun: str = "2 + 3", text: str = " = 5", **changes) -> Example:
    given = {"split": "train", "ended": True, "whole": False, "correct": True} | changes
    return Example(id=name, problem_id=problem_id, begun=begun, text=text, **given)


RIGHT, WRONG = example("r"), example("w", text=" = 6", correct=False)


def write_source(folder: Path, examples: list[Example], prompt: str = "steps", tool: str = "collect_qsharp") -> str:
    folder.mkdir(parents=True)
    arguments = {"prompt": prompt, "template": get_prompt(prompt).template()}
    write_json(folder / "manifest.json", {"tool": tool, "arguments": arguments})
    write_records(folder / "problems.jsonl", PROBLEMS.values())
    write_records(folder / "examples.jsonl", examples)
    return str(folder)


def samples(tokenizer: ChatTokenizer, groups: list[JudgeGroup]) -> dict[str, tuple[str, str, list[float | None]]]:
    """Of each example what is in front of its switch token, what is read, and as what."""
    found = {}
    for group in groups:
        for solution in group.solutions:
            tokens = group.prompt_tokens + solution.tokens
            shared = len(group.prompt_tokens)
            assert solution.reads[0] == solution.begin and solution.targets == solution.labels
            read = [tokens[shared + place] for place in solution.reads]
            before = tokens[: shared + solution.begin]
            found[solution.answer_id] = (tokenizer.decode(before), tokenizer.decode(read, False), solution.targets)
    return found


def test_a_sample_is_prompt_roll_in_and_roll_out_and_all_from_the_switch_token_on_is_read(
    tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    examples = [
        RIGHT,
        replace(WRONG, ended=False),
        example("whole", begun="2 + 3 = 5", text="", whole=True),
        example("cut", begun="2 + 3 = 5", text="", whole=True, ended=False, correct=False),
        example("only-end", begun="", text="", whole=True, correct=False),
        example("mute", text=""),
    ]
    data = qsharp_dataset(tokenizer, [write_source(tmp_path / "r1", examples)])
    asked = "Problem: 2 + 3?\nSolution:\n"
    end = "<|im_end|>"
    assert samples(tokenizer, data.train) == {
        "r": (f"{asked}2 + ", f"3 = 5{end}", [1.0] * 6),
        "w": (f"{asked}2 + ", "3 = 6", [0.0] * 5),
        "whole": (f"{asked}2 + 3 = 5", end, [1.0]),
        "cut": (f"{asked}2 + 3 = ", "5", [0.0]),
        "only-end": (asked, end, [0.0]),
        "mute": (f"{asked}2 + ", f"3{end}", [1.0, 1.0]),
    }
    (group,) = data.train
    assert tokenizer.decode(group.prompt_tokens) == asked and group.solutions[4].tokens == [EOS]
    assert data.held_out == [] and data.prompt == PROMPT and data.left_out.describe() == ""
    row = pack_judged(data.train, "cpu")
    behind = [row.packed.tokens_1T[0, place].item() for place in row.place_S]
    assert behind[:6] == [*tokenizer.encode("3 = 5"), EOS]
    inside = tokenizer.decode(row.packed.target_R[row.inside_R].tolist(), False)
    assert inside == "".join(read for _, read, _ in samples(tokenizer, data.train).values())


def test_of_a_chat_the_roll_in_stands_behind_the_rendered_chat(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    data = qsharp_dataset(tokenizer, [write_source(tmp_path / "r1", [RIGHT, WRONG], prompt="question")])
    (group,) = data.train
    chat = "<|im_start|>user\n2 + 3?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(group.prompt_tokens, False) == chat
    assert [tokenizer.decode(s.tokens, False) for s in group.solutions] == [
        "2 + 3 = 5<|im_end|>", "2 + 3 = 6<|im_end|>"
    ]  # fmt: skip


def test_the_switch_token_alone(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    source = write_source(tmp_path / "r1", [RIGHT, WRONG, example("whole", begun="5", text="", whole=True)])
    data = qsharp_dataset(tokenizer, [source], switch_token_only=True)
    assert {name: (read, labels) for name, (_, read, labels) in samples(tokenizer, data.train).items()} == {
        "r": ("3", [1.0]), "w": ("3", [0.0]), "whole": ("<|im_end|>", [1.0])
    }  # fmt: skip


def test_a_long_roll_out_is_cut_and_a_roll_in_that_does_not_fit_is_left_out(
    tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    asked = len("Problem: 2 + 3?\nSolution:\n")
    long = example("long", begun="2 + 3 = 5", text="", ended=False, whole=True)
    ends = replace(long, id="ends", ended=True)
    source = write_source(tmp_path / "r1", [RIGHT, WRONG, long, ends])
    kept = {}
    for room in (4, 5, 7, 9, 10):
        try:
            data = qsharp_dataset(tokenizer, [source], max_tokens=asked + room)
        except UserError as error:
            assert "too_long" in str(error)
            continue
        kept[room] = {name: read for name, (_, read, _) in samples(tokenizer, data.train).items()}
        assert data.left_out.too_long == 4 - len(kept[room])
    assert kept == {
        5: {"r": "3", "w": "3"},
        7: {"r": "3 =", "w": "3 ="},
        9: {"r": "3 = 5", "w": "3 = 6", "long": "5"},
        10: {"r": "3 = 5<|im_end|>", "w": "3 = 6<|im_end|>", "long": "5", "ends": "<|im_end|>"},
    }


def test_sources_are_joined_by_problem_and_a_problem_all_of_whose_returns_agree_is_dropped_from_training_alone(
    tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    first = write_source(
        tmp_path / "r1",
        [RIGHT, example("x", TWO), example("y", TWO), example("e", THREE, split="eval"), example("n", correct=None)],
    )
    second = write_source(tmp_path / "r2", [RIGHT, example("late", THREE, split="eval"), WRONG])
    data = qsharp_dataset(tokenizer, [first, second])
    assert [(g.problem_id, [s.answer_id for s in g.solutions]) for g in data.train] == [(ONE, ["r", "w"])]
    assert [(g.problem_id, [s.answer_id for s in g.solutions]) for g in data.held_out] == [(THREE, ["e", "late"])]
    assert data.left_out.describe() == "1 no_label, 1 repeated, 2 no_variation"
    kept = qsharp_dataset(tokenizer, [first, second], drop_no_variation=False, max_solutions=1)
    assert [g.problem_id for g in kept.train] == [ONE, ONE, TWO, TWO] and len(kept.held_out) == 2
    with pytest.raises(UserError, match=r"nothing to train on \(left out: 1 no_label, 3 no_variation; 1 examples"):
        qsharp_dataset(tokenizer, [first])


def test_a_problem_trained_on_in_one_source_and_held_out_in_another_is_refused(
    tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    first = write_source(tmp_path / "r1", [RIGHT, WRONG])
    second = write_source(tmp_path / "r2", [example("leak", split="eval")])
    with pytest.raises(UserError) as told:
        qsharp_dataset(tokenizer, [first, second])
    assert f"problem {ONE} is train in {first}, eval in {second}" in str(told.value)
    assert "--rounds-file" in str(told.value)


def test_a_prompt_that_runs_into_the_answer_shares_only_the_tokens_that_stay(tmp_path: Path) -> None:
    """"Q: a" and " b": the last character of the prompt and the first of the answer may be one token."""
    vocab = {token: number for number, token in enumerate(["<e>", "Q", ":", "Ġ", "a", "b", "Ġa", "ab"])}
    folder = tmp_path / "merging"
    folder.mkdir()
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[("Ġ", "a"), ("a", "b")]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.add_special_tokens(["<e>"])
    raw.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<e>"}')
    tokenizer = ChatTokenizer(folder)
    prompt = Prompt(name="q", user="Q:{question} ", chat=False)
    asked = tokenizer.encode_prompt(prompt.render("b"))
    assert [raw.id_to_token(token) for token in asked] == ["Q", ":", "b", "Ġ"]
    layout = lay_out_example(tokenizer, asked, prompt, "b", example("m", begun="ab", text="b"), 99)
    # " ab" is "Ġa", "b": the prompt's space is gone, and only "Q:b" is shared.
    assert [raw.id_to_token(token) for token in layout.tokens] == ["Q", ":", "b", "Ġa", "b", "b", "<e>"]
    assert layout.start == 3 and layout.read == [4, 5, 6]


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([RIGHT, replace(RIGHT, id="r2")], "left out: 2 no_variation"),
        ([example("e", split="eval")], "1 examples are held out"),
        ([example("stray", "0" * 16)], "problem 0000000000000000 is not in problems.jsonl"),
    ],
)
def test_nothing_to_learn_from_is_refused(
    tokenizer: ChatTokenizer, tmp_path: Path, examples: list[Example], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        qsharp_dataset(tokenizer, [write_source(tmp_path / "r1", examples)])


def test_labels_that_all_say_the_same_are_refused(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    source = write_source(tmp_path / "r1", [RIGHT, replace(RIGHT, id="r2")])
    with pytest.raises(UserError, match="all 12 labels to train on are 1"):
        qsharp_dataset(tokenizer, [source], drop_no_variation=False)


def test_folders_that_are_no_finished_collections_of_one_prompt_are_refused(
    tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    good = write_source(tmp_path / "r1", [RIGHT, WRONG])
    begun = write_source(tmp_path / "begun", [RIGHT])
    (tmp_path / "begun" / "examples.jsonl").unlink()
    other = write_source(tmp_path / "other", [example("o")], prompt="question")
    steps = write_source(tmp_path / "steps", [RIGHT], tool="build_step_labels")
    for sources, prompt, message in (
        ([], "auto", r"dataset.sources=\[\]: give a list of folders"),
        (good, "auto", "give a list of folders"),
        ([None], "auto", "give a list of folders"),
        ([good, str(tmp_path / "nowhere")], "auto", "no such folder"),
        ([good, begun], "auto", f"not finished; the command that began it goes on: .* --out {begun}"),
        ([good, other], "auto", f"{good} was collected with prompt steps, {other} with question"),
        ([good], "question", "dataset.prompt=question: .* was collected with steps"),
        ([steps], "auto", "holds a run of build_step_labels, not of collect_qsharp"),
    ):
        with pytest.raises(UserError, match=message):
            qsharp_dataset(tokenizer, sources, prompt)
    for name in ("max_tokens", "max_solutions"):
        with pytest.raises(UserError, match=f"config key dataset.{name}: 0 is below 1"):
            qsharp_dataset(tokenizer, [good], **{name: 0})
    assert qsharp_dataset(tokenizer, [good], "steps").prompt == PROMPT
