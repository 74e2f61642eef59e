"""How a judge is shown a solution, and where its verdict of every step is read: one class a convention.

Training and inference use the same ``lay_out``, so a judge is read exactly where it was trained to answer.

Shapes: T tokens of a question with one solution, S steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from tt_reasoning.errors import UserError
from tt_reasoning.models.tokenizer import ChatTokenizer
from tt_reasoning.prompts import Prompt, get_prompt, split_begun
from tt_reasoning.steps import Span


class Layout(NamedTuple):
    """A question with one solution as a judge sees it."""

    tokens: list[int]  # T of them
    start: int  # the first token of the solution
    read: list[int]  # for every step the token whose logits (or hidden state) hold its verdict


class StepFormat(Protocol):
    """A convention of judges."""

    def lay_out(self, tokenizer: ChatTokenizer, question: str, text: str, steps: Sequence[Span]) -> Layout:
        """The tokens of a question and a solution, and where each step is judged. Shape: ``read`` has S."""
        ...


@dataclass(frozen=True, kw_only=True)
class TagFormat:
    """Plain text: the prompt, then each step with ``step_token`` behind it, where its label is the next token.

    ``step_token`` is a special token such as ``<END_STEP>``, or plain text such as a line break; of several tokens
    the last is read. ``between`` stands between a step's ``step_token`` and the next step.

    >>> TagFormat(prompt="steps", step_token="\\n").text("2 + 3?", "2 + 3 = 5  so 5", [(0, 9), (11, 15)])
    ('Problem: 2 + 3?\\nSolution:\\n2 + 3 = 5\\nso 5\\n', 26, [36, 41])
    """

    prompt: str = "steps"
    step_token: str = "\n"
    between: str = ""

    def text(self, question: str, text: str, steps: Sequence[Span]) -> tuple[str, int, list[int]]:
        """The whole text, where the solution begins, and the end of every step's ``step_token``, in characters."""
        whole = get_prompt(self.prompt).render(question)
        if not isinstance(whole, str):
            raise UserError(f"prompt '{self.prompt}' is a chat; a judge of this form reads plain text, such as 'steps'")
        begin, ends = len(whole), []
        for number, (start, end) in enumerate(steps):
            whole += (self.between if number else "") + text[start:end] + self.step_token
            ends.append(len(whole))
        return whole, begin, ends

    def lay_out(self, tokenizer: ChatTokenizer, question: str, text: str, steps: Sequence[Span]) -> Layout:
        """The tokens of the whole text, encoded at once as inference engines do."""
        return lay_out_text(tokenizer, *self.text(question, text, steps))


@dataclass(frozen=True, kw_only=True)
class EndFormat:
    """The answer behind its prompt as the model that wrote it saw both, then the end token, where the whole answer is
    judged as one step."""

    prompt: Prompt
    end: int

    def text(self, tokenizer: ChatTokenizer, question: str, text: str) -> tuple[str, int, bool]:
        """The whole text, where the answer begins, in characters, and whether the tokenizer adds its own bos token."""
        rendered = self.prompt.render(question, begun=text)
        if isinstance(rendered, str):
            return rendered, len(rendered) - len(text), True
        chat, begun = split_begun(rendered)
        whole = tokenizer.render_chat(chat, add_generation_prompt=True)
        return whole + begun, len(whole), False

    def lay_out(self, tokenizer: ChatTokenizer, question: str, text: str, steps: Sequence[Span]) -> Layout:
        """The tokens as engines encode an answer that is gone on with (``ChatTokenizer.encode_prompt``)."""
        whole, begin, special = self.text(tokenizer, question, text)
        layout = lay_out_text(tokenizer, whole, begin, [len(whole)], special=special)
        return Layout([*layout.tokens, self.end], layout.start, [len(layout.tokens)])


def lay_out_text(
    tokenizer: ChatTokenizer, text: str, begin: int, ends: Sequence[int], *, special: bool = True
) -> Layout:
    """Tokens of a text whose solution begins at one character, read at the tokens that end at others.

    Args:
        begin: where the solution begins; a token across that place belongs to it.
        ends: a place a step; the token read is the last that begins before it.
        special: let the tokenizer add its own bos token.
    """
    encoding = tokenizer.tokenizer.encode(text, add_special_tokens=special)
    shown = [i for i, (low, high) in enumerate(encoding.offsets) if high > low]  # a bos or eos added stands for no text
    reads, at = [], 0
    for end in ends:
        while at + 1 < len(shown) and encoding.offsets[shown[at + 1]][0] < end:
            at += 1
        reads.append(shown[at])
    first = next((i for i in shown if encoding.offsets[i][1] > begin), len(encoding.ids))
    return Layout(encoding.ids, first, reads)


def share_prompt(layouts: Sequence[Layout]) -> int:
    """How many first tokens solutions of one question have in common, to be computed once (``prefix_tree``).

    None of them belongs to a solution, and none is read.

    >>> share_prompt([Layout([5, 6, 7, 8], 2, [3]), Layout([5, 6, 9], 2, [2])])
    2
    """
    least = min(min(layout.start, layout.read[0] if layout.read else layout.start) for layout in layouts)
    first = layouts[0].tokens
    for count in range(least):
        if any(layout.tokens[count] != first[count] for layout in layouts):
            return count
    return least


def token_id(tokenizer: ChatTokenizer, token: str, meaning: str) -> int:
    """The id of a token given by its name in the vocabulary, or by a text that is one token.

    Raises:
        UserError: the vocabulary has no such token.
    """
    known = tokenizer.tokenizer.token_to_id(token)
    return text_token_id(tokenizer, token, meaning) if known is None else known


def text_token_id(tokenizer: ChatTokenizer, text: str, meaning: str) -> int:
    """The id of a text that is encoded as one token, which in some vocabularies is not the token of that name.

    Raises:
        UserError: it is encoded as none or several.
    """
    ids = tokenizer.encode(text)
    if len(ids) != 1:
        raise UserError(
            f"{meaning} {text!r} is no token of this vocabulary ({len(ids)} tokens); name one that is, or add it to "
            "the model: python tools/get_model.py ... --add-tokens"
        )
    return ids[0]
