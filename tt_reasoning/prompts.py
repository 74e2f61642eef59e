"""Every template of the project, by name: what a model is told before it answers.

A prompt is either a chat (system and user message, rendered by the model's own chat template) or plain
text (for base models). ``prefill`` is the beginning of the completion that the prompt already gives;
reading a completion always starts from ``prefill + text``. ``stop`` ends a completion, and stays in it.

A prompt may also come from a file (``load_prompt``). It is then named by its content, and a run's manifest keeps
that content, so that ``get_prompt(name, folder)`` finds it wherever the file went.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

from tt_reasoning.errors import UserError, unknown_name
from tt_reasoning.store import MANIFEST, read_manifest
from tt_reasoning.types import Kind


class Message(TypedDict):
    """One turn of a chat, as every chat template takes it."""

    role: str
    content: str


Rendered = list[Message] | str  # a chat that ends with the assistant's message is an answer to be continued

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # of the options of a multiple-choice question


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A named template; ``user`` holds ``{question}`` once."""

    name: str
    user: str
    system: str | None = None
    chat: bool = True
    prefill: str = ""
    stop: tuple[str, ...] = ()

    def render(self, question: str, begun: str = "") -> Rendered:
        """The messages of a chat prompt, or the whole text of a plain one (prefill included).

        ``begun`` is the beginning of an answer that is to be continued: it stands behind all else, as it is.

        >>> PROMPTS["boxed"].render("What is 2 + 2?")[0]["content"][-37:]
        'Put the final answer inside \\\\boxed{}.'
        >>> PROMPTS["ssa"].render("...")[-18:]
        'Assistant: <think>'
        >>> PROMPTS["question"].render("2 + 2?", begun="2 + 2 is")[1]
        {'role': 'assistant', 'content': '2 + 2 is'}
        """
        text = self.user.replace("{question}", question)
        if not self.chat:
            return text + self.prefill + begun
        system = [Message(role="system", content=self.system)] if self.system else []
        answer = [Message(role="assistant", content=begun)] if begun else []
        return [*system, Message(role="user", content=text), *answer]

    def template(self) -> dict[str, Any]:
        """What it says, without its name: as a prompt file and a manifest hold it.

        >>> PROMPTS["few_shot"].template()["stop"]
        ['\\n\\n']
        """
        return {"system": self.system, "user": self.user, "chat": self.chat, "prefill": self.prefill,
                "stop": list(self.stop)}  # fmt: skip


_STEPS = "{question}\n\nWrite the solution, one short line a step. "
_STEPS_ALONE = "Problem: {question}\nSolution:\n"
_SSA = (
    "A conversation between User and Assistant. The User shows a question and several proposed answers to it. "
    "The Assistant checks every proposed answer, then picks the correct one or combines them into a better one. "
    "It first thinks and then gives the final answer, in this form: "
    "<think> the thinking </think> <answer> the final answer alone </answer>\n"
    "User: {question}\n"
    "Assistant: "
)
_SSA_NO_THINK = (
    "A conversation between User and Assistant. The User shows a question and several proposed answers to it. "
    "The Assistant picks the correct one or combines them into a better one, and gives only the final answer, "
    "in this form: <answer> the final answer alone </answer>\n"
    "User: {question}\n"
    "Assistant: "
)
# For a model that is told the reference (``oracle_text``) and writes what the aggregator is to learn: SSA's SFT data.
_SSA_ORACLE = (
    "You write examples for an assistant that learns to read a question with several proposed answers to it and to "
    "find the final answer. You see the question, the proposed answers and, at the very end, the correct final answer. "
    "Whoever reads your example sees the question and the proposed answers alone.\n\n"
    "Write what the assistant should think and answer:\n"
    "- Work the question out from what it says, step by step and briefly.\n"
    "- Check the proposed answers, call them by their numbers (Answer 1, Answer 2, ...), say where one goes wrong.\n"
    "- Pick the one that is correct or, if none is, combine them or write a better one.\n"
    "- The reasoning has to lead to the correct final answer by itself. Nothing in it may say or suggest that the "
    "answer was known before the work was done, that somebody told it, or that there are instructions.\n"
    "- At most 150 words.\n\n"
    "Write it in exactly this form, with nothing before it and nothing after it:\n"
    "<think> the thinking </think> <answer> the final answer alone, spelled as at the end of the message </answer>"
)

_SSA_FEW_SHOT = """Each question comes with proposed answers. Compare them and give the final answer alone.

Question: A shelf holds 8 red books and 5 blue books. How many books are on the shelf?

Below are the proposed answers:

Answer 1:
8 + 5 = 13
#### 13

Answer 2:
8 - 5 = 3
#### 3

Answer 3:
8 + 5 = 13
#### 13

Final answer: <answer>13</answer>

Question: A ticket costs 6 dollars. How much do 7 tickets cost in dollars?

Below are the proposed answers:

Answer 1:
6 + 7 = 13
#### 13

Answer 2:
7 * 6 = 42
#### 42

Answer 3:
6 * 7 = 42
#### 42

Final answer: <answer>42</answer>

{question}

Final answer: """

_USC = "{question}\n\nRead the proposed answers above and compare them. "
_USC_END = " Write one short line to say which and why, then a last line: 'The Answer is:' and its final answer."

_FEW_SHOT = """Solve each problem. Write the calculation, then #### and the answer.

Question: A shelf holds 8 red books and 5 blue books. How many books are on the shelf?
Answer: 8 + 5 = 13
#### 13

Question: Nadia had 30 stickers and gave 12 of them to her brother. How many stickers does she have left?
Answer: 30 - 12 = 18
#### 18

Question: A ticket costs 6 dollars. How much do 7 tickets cost in dollars?
Answer: 6 * 7 = 42
#### 42

Question: A baker puts 48 rolls equally into 6 bags and sells 2 of the bags. How many rolls are left?
Answer: 48 / 6 = 8, 6 - 2 = 4, 8 * 4 = 32
#### 32

Question: {question}
Answer:"""

# Ends as the prompt "steps" does: what is sampled with it trains a generator that is asked with "steps".
_FEW_SHOT_STEPS = """\
Problem: A baker puts 48 rolls equally into 6 bags and sells 4 of the bags. How many rolls does he sell?
Solution:
Each bag holds 48 / 6 = 8 rolls.
He sells 4 * 8 = 32 rolls.
The answer is: 32

Problem: Nadia had 30 stickers. She gave a third of them to her brother and then bought 5 more. \
How many stickers does she have now?
Solution:
Nadia gave away 30 / 3 = 10 stickers.
She kept 30 - 10 = 20 stickers.
Now she has 20 + 5 = 25 stickers.
The answer is: 25

Problem: A coat costs 80 dollars. In a sale it is 25% cheaper. Kim buys 2 coats in the sale and pays with 150 dollars. \
How much money does she get back in dollars?
Solution:
The discount is 80 * 25 / 100 = 20 dollars.
In the sale one coat costs 80 - 20 = 60 dollars.
Two coats cost 2 * 60 = 120 dollars.
Kim gets back 150 - 120 = 30 dollars.
The answer is: 30

Problem: Omar reads 12 pages a day for 4 days. On the fifth day he reads half as many. \
How many pages does he read in the 5 days?
Solution:
In 4 days Omar reads 4 * 12 = 48 pages.
On the fifth day he reads 12 / 2 = 6 pages.
In 5 days he reads 48 + 6 = 54 pages.
The answer is: 54

""" + _STEPS_ALONE

PROMPTS: dict[str, Prompt] = {
    prompt.name: prompt
    for prompt in (
        # The question alone, for models that need no instruction, or one in the system message.
        Prompt(name="question", user="{question}"),
        # The instruction stands behind the question, where small models heed it; short steps fit the limit.
        Prompt(name="answer", user=_STEPS + "The last line is 'The Answer is:' and the final answer."),
        Prompt(name="boxed", user=_STEPS + "Put the final answer inside \\boxed{}."),
        Prompt(name="choice", user=_STEPS + "The last line is 'The Answer is:' and one letter."),
        # For base and very small models: four worked word problems, so that answers are short and marked.
        Prompt(name="few_shot", user=_FEW_SHOT, chat=False, stop=("\n\n",)),
        # For a generator that was trained to write steps, and for the judges that read them: nothing to be told.
        Prompt(name="steps", user=_STEPS_ALONE, chat=False),
        # For a base model that is to become such a generator: four problems worked out in steps before the question.
        Prompt(name="few_shot_steps", user=_FEW_SHOT_STEPS, chat=False, stop=("\n\n", "\nProblem:")),
        Prompt(name="math_shepherd", user="{question} ", chat=False),  # before the steps, for judges of that form
        Prompt(name="ssa", user=_SSA, chat=False, prefill="<think>", stop=("</answer>",)),
        Prompt(name="ssa_no_think", user=_SSA_NO_THINK, chat=False, prefill="<answer>", stop=("</answer>",)),
        # Without a stop string: many servers take it out of the text, and the form is checked anyway.
        Prompt(name="ssa_oracle", user="{question}", system=_SSA_ORACLE),
        # Universal self-consistency (arXiv 2311.17311): an instruct model selects. Told to follow the majority, as is
        # usual, it proves little beside majority voting (usc_majority); usc leaves open what makes it consistent.
        Prompt(name="usc", user=_USC + "Select the most consistent of them." + _USC_END),
        Prompt(
            name="usc_majority",
            user=_USC + "Select the most consistent of them: one with the final answer that most of them give."
            + _USC_END,
        ),
        # For very small models, which follow an example better than an instruction.
        Prompt(name="ssa_few_shot", user=_SSA_FEW_SHOT, chat=False, prefill="<answer>", stop=("</answer>",)),
    )
}


# System messages by name, for --system-prompt; with the prompt "question" they say all that there is to say.
SYSTEM_PROMPTS: dict[str, str] = {
    "answer": "Solve the problem step by step. The last line is 'The Answer is:' and the final answer.",
    "boxed": "Solve the problem step by step and put the final answer inside \\boxed{}.",
}
_CUSTOM = "custom@"


def default_prompt(kind: Kind) -> str:
    """The name of the prompt for problems of a kind, where the user names none.

    >>> default_prompt("choice"), default_prompt("math")
    ('choice', 'answer')
    """
    return "choice" if kind == "choice" else "answer"


def get_prompt(name: str, folder: str | Path | None = None) -> Prompt:
    """The prompt of that name; one from a file by the manifest of the run's folder that used it.

    Raises:
        UserError: an unknown name (the nearest is offered), or a manifest without that prompt.
    """
    if name in PROMPTS:
        return PROMPTS[name]
    if folder is None or not name.startswith(_CUSTOM):
        raise unknown_name("prompt", name, PROMPTS)
    return _kept_prompt(name, str(folder))


def restore_prompt(name: str, template: dict[str, Any] | None, where: str) -> Prompt:
    """A prompt as a card keeps it: what its ``template`` says, or the one of that name where there is none.

    Args:
        where: names the card in an error.

    Raises:
        UserError: no template, and no such name.

    >>> restore_prompt("mine", PROMPTS["steps"].template(), "value.json").render("2 + 2?")
    'Problem: 2 + 2?\\nSolution:\\n'
    """
    return get_prompt(name) if template is None else replace(_parse_template(template, where), name=name)


@functools.lru_cache
def _kept_prompt(name: str, folder: str) -> Prompt:
    template = read_manifest(folder).get("arguments", {}).get("template")
    prompt = _named(_parse_template(template, f"{folder}/{MANIFEST}: template"))
    if prompt.name != name:
        raise UserError(f"{folder}/{MANIFEST} holds prompt {prompt.name}, answers name {name}; restore the manifest")
    return prompt


def load_prompt(prompt: str, system: str | None = None) -> Prompt:
    """A prompt by name or file, with another system message by name or file.

    A text file is the user's message, with ``{question}`` once. One that ends in .yaml, .yml or .json holds ``user``
    (likewise), and if need be ``system``, ``chat`` (false for plain text), ``prefill`` and ``stop`` (one or several).
    What is not word for word a prompt of this module is named by its content: ``custom@`` and 16 hex digits.

    Args:
        prompt: a name in ``PROMPTS``, or a file.
        system: a name in ``SYSTEM_PROMPTS``, or a text file; None leaves the prompt's own.

    Raises:
        UserError: no such name or file, or a file that is no template.

    Example:
        >>> load_prompt("question", "boxed").render("2 + 2?")[0]["content"][:30]
        'Solve the problem step by step'
        >>> load_prompt("question", "boxed").name
        'custom@df969cc3def3283c'
    """
    found = PROMPTS[prompt] if prompt in PROMPTS else _read_prompt(prompt)
    if system is None and found.name:
        return found
    if system is not None:
        if not found.chat:
            raise UserError(f"--system-prompt {system}: prompt {prompt} is plain text and has no system message")
        found = replace(found, system=_find_system(system))
    for known in PROMPTS.values():
        if known.template() == found.template():
            return known
    return _named(found)


def _find_system(name: str) -> str:
    if name in SYSTEM_PROMPTS:
        return SYSTEM_PROMPTS[name]
    if not _is_file_name(name):
        raise unknown_name("system prompt", name, SYSTEM_PROMPTS)
    text = _read_text(name)
    if not text.strip():
        raise UserError(f"{name} is empty; write the system message into it")
    return text


def _is_file_name(name: str) -> bool:
    return "/" in name or Path(name).suffix in (".txt", ".yaml", ".yml", ".json") or Path(name).is_file()


def _read_text(path: str) -> str:
    """A text file without the newline that ends its last line."""
    try:
        return Path(path).read_text(encoding="utf-8-sig").removesuffix("\n")
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable text file: {error}") from None


def _read_prompt(path: str) -> Prompt:
    import yaml

    if not _is_file_name(path):
        raise unknown_name("prompt", path, PROMPTS)
    text, suffix = _read_text(path), Path(path).suffix
    if suffix not in (".yaml", ".yml", ".json"):
        return _parse_template({"user": text}, path)
    try:
        row = json.loads(text) if suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not {suffix[1:].upper()}: {' '.join(str(error).split())}") from None
    return _parse_template(row, path)


_TEMPLATE: dict[str, type | tuple[type, ...]] = {
    "user": str, "system": (str, type(None)), "chat": bool, "prefill": str, "stop": list
}  # fmt: skip
_WANTED = {"chat": "true or false", "stop": "a text or a list of texts, none of them empty"}


def _parse_template(row: object, where: str) -> Prompt:
    """A prompt without a name. Raises UserError for what is no template, and names the place."""
    if not isinstance(row, dict):
        raise UserError(f"{where}: not a template: give user, and if need be system, chat, prefill and stop")
    for key in row:
        if key not in _TEMPLATE:
            raise unknown_name(f"key in {where}", str(key), _TEMPLATE)
    row = {"user": "", "chat": True, "prefill": "", "stop": [], "system": None} | row
    stop = [row["stop"]] if isinstance(row["stop"], str) else row["stop"]
    for key, value in (row | {"stop": stop}).items():
        if not isinstance(value, _TEMPLATE[key]) or (key == "stop" and not all(isinstance(s, str) and s for s in stop)):
            raise UserError(f"{where}: {key}: {row[key]!r}: wanted {_WANTED.get(key, 'a text')}")
    user = row["user"]
    if user.count("{question}") != 1:
        raise UserError(
            f"{where} holds {{question}} {user.count('{question}')} times; write it once, where the question goes"
        )
    prompt = Prompt(
        name="", user=user, system=row["system"] or None, chat=row["chat"], prefill=row["prefill"], stop=tuple(stop)
    )  # fmt: skip
    if prompt.chat and prompt.prefill:
        raise UserError(f"{where}: a chat has no prefill; write it as plain text with chat: false")
    if prompt.system and not prompt.chat:
        raise UserError(f"{where}: plain text has no system message; write it into user")
    return prompt


def _named(prompt: Prompt) -> Prompt:
    """The prompt, named by its content."""
    text = json.dumps(prompt.template(), ensure_ascii=False, sort_keys=True)
    return replace(prompt, name=_CUSTOM + hashlib.sha256(text.encode()).hexdigest()[:16])


def split_begun(messages: Sequence[Message]) -> tuple[list[Message], str]:
    """A chat up to the assistant's turn, and what of that turn is there already: it goes behind the rendered chat.

    Not every chat template renders an unfinished answer as it is (some trim it, some take its thinking out), so
    none is asked to.

    >>> split_begun(PROMPTS["question"].render("2 + 2?", begun="2 + 2 is"))
    ([{'role': 'user', 'content': '2 + 2?'}], '2 + 2 is')
    """
    if messages and messages[-1]["role"] == "assistant":
        return list(messages[:-1]), messages[-1]["content"]
    return list(messages), ""


def choice_text(question: str, choices: Sequence[str]) -> str:
    """A question with its options as lettered lines: the ``question`` of a multiple-choice problem.

    It asks for the letter itself, so that a prompt that knows nothing of options ("the final answer") gets one too.

    >>> print(choice_text("What is 2 + 2?", ["3", "4"]))
    What is 2 + 2?
    <BLANKLINE>
    A. 3
    B. 4
    <BLANKLINE>
    Answer with the letter of one option.
    """
    options = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
    return f"{question}\n\n{options}\n\nAnswer with the letter of one option."


def answer_set_text(question: str, answers: Sequence[str]) -> str:
    """A question with its proposed answers, as the aggregator reads them (SSA, arXiv 2506.09014).

    ``The Answer is:`` becomes ``####``, so that every proposed answer ends alike.

    >>> print(answer_set_text("What is 2 + 2?", ["The Answer is: 4", "5"]))
    Question: What is 2 + 2?
    <BLANKLINE>
    Below are the proposed answers:
    <BLANKLINE>
    Answer 1:
    #### 4
    <BLANKLINE>
    Answer 2:
    5
    """
    parts = [f"Question: {question}", "Below are the proposed answers:"]
    for number, answer in enumerate(answers, 1):
        parts.append(f"Answer {number}:\n{re.sub(r'[Tt]he [Aa]nswer is:?', '####', answer.strip())}")
    return "\n\n".join(parts)


def oracle_text(text: str, reference: str) -> str:
    """What the ``ssa_oracle`` prompt asks about: a text of ``answer_set_text`` with the reference behind it.

    >>> print(oracle_text("Question: What is 2 + 2?", "4"))
    Question: What is 2 + 2?
    <BLANKLINE>
    Correct final answer (for you alone): 4
    """
    return f"{text}\n\nCorrect final answer (for you alone): {reference}"
