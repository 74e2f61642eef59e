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
from tt_reasoning.working_out import BEGIN_REASONING, BEGIN_SOLUTION, END_REASONING, END_SOLUTION


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
# Written for this project; the stages it names are those of known contests, the problems are its own or folklore.
_DIFFICULTY = """\
You rate how hard problems of mathematics are, on a scale from 1 to 10. What counts is the work of a well prepared \
pupil who has not seen the problem: how many ideas it takes, how hidden they are, how much has to be kept track of. \
Long arithmetic alone does not make a problem hard, and neither do unusual words or a long text.

1: one direct step of school arithmetic, or reading a number off.
   A ticket costs 7 euros. How much do 12 tickets cost?
2: two or three routine steps, or one equation; the easy half of a contest for ages 12 to 14.
   Two numbers have the sum 31 and the difference 5. Which is the larger one?
3: one idea beyond routine, with standard tools; the middle of a multiple-choice contest of high school.
   How many positive divisors of 360 are multiples of 6?
4: two ideas that have to be combined, or careful cases; late questions of such a contest, the first of an AIME.
   Two dice are thrown until their sum is 7 or 8. With what probability is it 8?
5: the last questions of such a contest, the middle of an AIME: the way has to be found, then it is short.
   In how many ways can the vertices of a regular hexagon be coloured with three colours so that neighbours differ?
6: the last third of an AIME, or the easiest question of a national olympiad: several ideas one after another.
   In a triangle with sides 13, 14, 15 the incircle touches the side 14 at D. In which ratio does the incircle divide
   the segment from D to the opposite vertex?
7: a typical first question of a national or the international olympiad: a full proof, with an idea that is not usual.
   Positive reals a, b, c have the product 1. Prove that a/(b+1) + b/(c+1) + c/(a+1) is at least 3/2.
8: a middle question of an olympiad: the decisive idea is hidden, and few find it in the time.
   Prove that among any 2n - 1 integers there are n whose sum is a multiple of n.
9: the last question of a day at the international olympiad: several hidden ideas, solved by a handful of contestants.
   The plane is coloured with finitely many colours. Prove that some colour has the vertices of a triangle of area 1.
10: harder than contests ask: to find the proof was a piece of research.
   Prove that a set of positive integers with positive upper density holds three terms of an arithmetic progression.

A level between two of these may be given with a half, such as 4.5."""

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

# For a model that rewrites an answer into the thought/solution form (``conversion``, which checks what it wrote).
_CONVERT = """\
You convert the format of a text. The message is somebody's answer to a question that you do not see: thinking aloud, \
trying things, checking them, and at some point a result. Write the same answer as two sections.

1. The thought: everything in the text, copied nearly word for word and in the same order. Keep detours, doubts, \
mistakes and second attempts, calculations and code. Do not shorten, summarise, correct or add reasoning; repair only \
line breaks and markup.
2. The solution: what a reader wants who has not seen the thinking: the steps that led to the result, cleanly written \
out of what the text says, and its final answer, once. A marked answer (\\boxed{...}, a letter) stays marked in the \
same way. If the text answers with a program, the solution holds the final program, whole, in one fenced code block \
and no other. A wrong result stays as it is.

Write exactly this, nothing before it and nothing after it, and each of the four tags once:
<|begin_of_thought|>
the thought
<|end_of_thought|>
<|begin_of_solution|>
the solution
<|end_of_solution|>

An example. The text:

Pens cost 3 each and she pays with 20. For 4 pens that is 4 * 3 = 7. No wait, 4 * 3 = 12. So she gets 20 - 12 = 8 \
back. Check: 12 + 8 = 20, yes. \\boxed{8}

What you write:

<|begin_of_thought|>
Pens cost 3 each and she pays with 20. For 4 pens that is 4 * 3 = 7. No wait, 4 * 3 = 12. So she gets 20 - 12 = 8 \
back. Check: 12 + 8 = 20, yes.
<|end_of_thought|>
<|begin_of_solution|>
4 pens cost 4 * 3 = 12. Of 20 she gets 20 - 12 = 8 back.

\\boxed{8}
<|end_of_solution|>"""

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

# For the model that shortens answers (tt_reasoning/rewriting.py): it reads ``marking_text`` and ``scoring_text``.
_MARK_ANSWERS = """{question}

The numbered lines are somebody's thoughts on the problem. Some of them propose a final answer to the whole problem, \
right or wrong, for the first time or once more. A line with an intermediate result does not, nor does one that plans \
or doubts.

Which lines propose a final answer? Reply with their numbers alone, in rising order, with commas between them, such \
as: 4, 9
If no line does, reply: none"""

_SCORE_PART = """{question}

Is the last final answer that the part proposes the same as the correct one? Another way to write the same value is \
the same. A part that proposes no final answer is not. Reply with one word, True or False."""

# The GSM8K study's form (tt_reasoning/working_out.py): it is taught by SFT, then rewarded.
_WORKING_OUT = f"""\
You solve word problems. First work the problem out step by step, with every calculation written down, between \
{BEGIN_REASONING} and {END_REASONING}. Then write the final answer between {BEGIN_SOLUTION} and {END_SOLUTION}: one \
number, without a unit and without words. Write nothing before, between or after these two parts."""

PROMPTS: dict[str, Prompt] = {
    prompt.name: prompt
    for prompt in (
        # The question alone, for models that need no instruction, or one in the system message.
        Prompt(name="question", user="{question}"),
        # The instruction stands behind the question, where small models heed it; short steps fit the limit.
        Prompt(name="answer", user=_STEPS + "The last line is 'The Answer is:' and the final answer."),
        Prompt(name="boxed", user=_STEPS + "Put the final answer inside \\boxed{}."),
        Prompt(name="choice", user=_STEPS + "The last line is 'The Answer is:' and one letter."),
        # A program with its tests: the question says whether it reads standard input or is a function (code_text).
        Prompt(
            name="code",
            user="{question}\n\nThink it through first. End with the whole solution in one block of code that begins "
            "with ```python and ends with ```.",
        ),
        # How hard a problem is (tools/label_difficulty.py); the scale comes first, so that servers keep its prefix.
        Prompt(
            name="difficulty",
            user="{question}\n\nHow hard is the problem above? Do not solve it in full. Say in one or two sentences "
            "what it takes, then end with the level alone in double square brackets, such as [[4]] or [[6.5]].",
            system=_DIFFICULTY,
        ),
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
        # Rewrites an answer ({question} is its text) as thought and solution, for tools/convert_format.py.
        Prompt(name="convert", user="{question}", system=_CONVERT),
        # Universal self-consistency (arXiv 2311.17311): an instruct model selects. Told to follow the majority, as is
        # usual, it proves little beside majority voting (usc_majority); usc leaves open what makes it consistent.
        Prompt(name="usc", user=_USC + "Select the most consistent of them." + _USC_END),
        Prompt(
            name="usc_majority",
            user=_USC + "Select the most consistent of them: one with the final answer that most of them give."
            + _USC_END,
        ),
        # Without a stop string: many servers take it out of the text, and to end there is part of the form.
        Prompt(name="working_out", user="{question}", system=_WORKING_OUT),
        # The same for a model without a chat template, such as Llama-3.2-1B.
        Prompt(name="working_out_plain", user=f"{_WORKING_OUT}\n\nProblem: {{question}}\n\n", chat=False),
        # For the model that shortens answers: which lines propose an answer, and is it the right one.
        Prompt(name="mark_answers", user=_MARK_ANSWERS),
        Prompt(name="score_part", user=_SCORE_PART),
        # For very small models, which follow an example better than an instruction.
        Prompt(name="ssa_few_shot", user=_SSA_FEW_SHOT, chat=False, prefill="<answer>", stop=("</answer>",)),
    )
}


# System messages by name, for --system-prompt; with the prompt "question" they say all that there is to say.
SYSTEM_PROMPTS: dict[str, str] = {
    "answer": "Solve the problem step by step. The last line is 'The Answer is:' and the final answer.",
    "boxed": "Solve the problem step by step and put the final answer inside \\boxed{}.",
    "thought_solution": (
        "Work every problem out at length before you answer it. What you write has two sections. The first is your "
        "thought: look at the problem from several sides, try ways to solve it, check each step, say so when one was "
        "wrong and go back, and note what you have found so far. The second is your solution: what you found, as a "
        "reader wants it who has not seen the thought, with the steps that are needed and the final answer. "
        "Write them in this form, with nothing before, between or after them:\n"
        "<|begin_of_thought|>\nthe thought\n<|end_of_thought|>\n"
        "<|begin_of_solution|>\nthe solution\n<|end_of_solution|>"
    ),
}
_CUSTOM = "custom@"


def default_prompt(kind: Kind) -> str:
    """The name of the prompt for problems of a kind, where the user names none.

    >>> default_prompt("choice"), default_prompt("code"), default_prompt("math")
    ('choice', 'code', 'answer')
    """
    return kind if kind in ("choice", "code") else "answer"


def get_prompt(name: str, folder: str | Path | None = None) -> Prompt:
    """The prompt of that name; one from a file by the manifest of the run's folder that used it.

    In a folder whose texts are whole (``conversion``) it has no prefill: they do not go on from there.

    Raises:
        UserError: an unknown name (the nearest is offered), or a manifest without that prompt.
    """
    if name in PROMPTS:
        found = PROMPTS[name]
    elif folder is None or not name.startswith(_CUSTOM):
        raise unknown_name("prompt", name, PROMPTS)
    else:
        found = _kept_prompt(name, str(folder))
    if found.prefill and folder is not None and _has_whole_texts(str(folder)):
        return replace(found, prefill="", stop=())
    return found


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
def _has_whole_texts(folder: str) -> bool:
    if not (Path(folder) / MANIFEST).exists():
        return False
    return read_manifest(folder).get("arguments", {}).get("whole_texts") is True


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
    return make_prompt(found.template(), prompt)


def make_prompt(template: dict[str, Any], where: str) -> Prompt:
    """A prompt as a ``template`` says: the one of this module that says the same, or one named by its content.

    Args:
        where: names the place in an error.

    Raises:
        UserError: what is no template.

    >>> make_prompt({"user": "{question}"}, "here").name, make_prompt({"user": "{question}!"}, "here").name
    ('question', 'custom@e0161f3ccc45156b')
    """
    found = _parse_template(template, where)
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


def code_text(question: str, starter_code: str | None = None, fn_name: str | None = None) -> str:
    """A programming task with the form of its solution: the ``question`` of a problem of kind ``code``.

    Args:
        starter_code: what the solution begins with, where the task gives any.
        fn_name: the function (or method of ``class Solution``) that the tests call; None where they feed standard
            input.

    >>> print(code_text("Add two numbers.", "def add(a, b):", "add"))
    Add two numbers.
    <BLANKLINE>
    Begin with this code:
    ```python
    def add(a, b):
    ```
    <BLANKLINE>
    Write only the function `add`, with the imports it needs, and do not call it: the tests do.
    >>> print(code_text("Read two numbers and print their sum."))
    Read two numbers and print their sum.
    <BLANKLINE>
    Write a program that reads from standard input and prints to standard output. It is run as it stands: if its work \
is in a function, call that too.
    """
    parts = [question]
    if starter_code and starter_code.strip():
        parts.append(f"Begin with this code:\n```python\n{starter_code.rstrip()}\n```")
    if fn_name is None:
        parts.append(
            "Write a program that reads from standard input and prints to standard output. It is run as it stands: if "
            "its work is in a function, call that too."
        )
    else:
        parts.append(
            f"Write only the function `{fn_name}`, with the imports it needs, and do not call it: the tests do."
        )
    return "\n\n".join(parts)


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


def marking_text(question: str, lines: Sequence[str]) -> str:
    """What the ``mark_answers`` prompt asks about: a problem and the numbered lines of somebody's thoughts on it.

    >>> print(marking_text("What is 2 + 2?", ["It is 4.", "Yes, 4."]))
    Problem: What is 2 + 2?
    <BLANKLINE>
    Thoughts:
    [1] It is 4.
    [2] Yes, 4.
    """
    numbered = "\n".join(f"[{number}] {line}" for number, line in enumerate(lines, 1))
    return f"Problem: {question}\n\nThoughts:\n{numbered}"


def scoring_text(question: str, part: str, reference: str) -> str:
    """What the ``score_part`` prompt asks about: a problem, a part of somebody's thoughts, and the right answer.

    >>> print(scoring_text("What is 2 + 2?", "It is 4.", "4"))
    Problem: What is 2 + 2?
    <BLANKLINE>
    Part of somebody's thoughts:
    It is 4.
    <BLANKLINE>
    Correct final answer: 4
    """
    return f"Problem: {question}\n\nPart of somebody's thoughts:\n{part}\n\nCorrect final answer: {reference}"
