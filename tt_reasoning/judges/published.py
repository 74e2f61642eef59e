"""The conventions of published judges: how each is shown a solution and where its verdict is read.

Nothing here is learnt from the folder but the vocabulary: no code of a checkpoint is ever run. What is not a
``TagFormat`` (``formats.py``) is a chat, rendered by the judge's own template. Sources are the model cards; the same
in a table: docs/judges.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tt_reasoning.errors import UserError
from tt_reasoning.judges import PublishedName
from tt_reasoning.judges.formats import Layout, StepFormat, TagFormat, lay_out_text
from tt_reasoning.models.tokenizer import ChatTokenizer
from tt_reasoning.prompts import Message
from tt_reasoning.steps import Span


@dataclass(frozen=True, kw_only=True)
class TurnFormat:
    """A chat in which every step is a turn of the user, the first behind the question, and gets a label in reply.

    The reply is ``label`` each time, whatever the judge would say; the verdict is read at the last token before it,
    where the judge chooses its reply.
    """

    label: str = "+"

    def lay_out(self, tokenizer: ChatTokenizer, question: str, text: str, steps: Sequence[Span]) -> Layout:
        """The tokens of the whole chat. Shape: ``read`` has S."""
        chat: list[Message] = []
        asked = []
        for number, (start, end) in enumerate(steps):
            content = text[start:end] if number else f"{question} {text[start:end]}"
            chat.append(Message(role="user", content=content))
            asked.append(tokenizer.render_chat(chat, add_generation_prompt=True))
            chat.append(Message(role="assistant", content=self.label))
        whole = tokenizer.render_chat(chat)
        if not all(whole.startswith(part) for part in asked):
            raise UserError("the judge's chat template rewrites earlier turns; its steps cannot be told apart")
        first = chat[0]["content"].strip()
        start, end = steps[0]
        begin = _find(whole, first) + len(first) - (end - start)
        return lay_out_text(tokenizer, whole, begin, [len(part) for part in asked], special=False)


@dataclass(frozen=True, kw_only=True)
class MarkFormat:
    """A chat in which the assistant gives the whole solution, with ``mark`` behind every step, where it is judged."""

    system: str
    mark: str

    def lay_out(self, tokenizer: ChatTokenizer, question: str, text: str, steps: Sequence[Span]) -> Layout:
        """The tokens of the whole chat. Shape: ``read`` has S."""
        solution, ends = "", []
        for start, end in steps:
            solution += text[start:end] + self.mark
            ends.append(len(solution))
        whole = tokenizer.render_chat([
            Message(role="system", content=self.system),
            Message(role="user", content=question),
            Message(role="assistant", content=solution),
        ])
        begin = _find(whole, solution)
        return lay_out_text(tokenizer, whole, begin, [begin + end for end in ends], special=False)


def _find(whole: str, part: str) -> int:
    found = whole.rfind(part)
    if found < 0:
        raise UserError("the judge's chat template changes what a turn says; its steps cannot be told apart")
    return found


@dataclass(frozen=True, kw_only=True)
class Published:
    """A family of published judges.

    Attributes:
        labels: the texts for good and bad; None where the model has a head of two classes, of which 1 is good.
        mark: what stands behind a step and has to be one token.
        hints: one of them in the name of a folder says that the judge is of this family.
    """

    format: StepFormat
    labels: tuple[str, str] | None
    mark: str | None
    hints: tuple[str, ...]


PUBLISHED: dict[PublishedName, Published] = {
    # huggingface.co/peiyi9979/math-shepherd-mistral-7b-prm (arXiv 2312.08935): the labels are the tokens of "+" and "-"
    # as words, ids 648 and 387, the tag is id 12902.
    "math-shepherd": Published(
        format=TagFormat(prompt="math_shepherd", step_token=" ки", between="\n"),
        labels=("+", "-"),
        mark="ки",
        hints=("math-shepherd",),
    ),
    # huggingface.co/RLHFlow/Llama3.1-8B-PRM-Deepseek-Data and ...-PRM-Mistral-Data; RLHFlow/RLHF-Reward-Modeling,
    # math-rm: the logits three tokens before the end of "+<|eot_id|>", so before the reply.
    "rlhflow": Published(
        format=TurnFormat(), labels=("+", "-"), mark=None, hints=("rlhflow", "prm-deepseek-data", "prm-mistral-data")
    ),
    # huggingface.co/Qwen/Qwen2.5-Math-PRM-7B, -72B and Qwen2.5-Math-7B-PRM800K (arXiv 2501.07301).
    "qwen-prm": Published(
        format=MarkFormat(
            system="Please reason step by step, and put your final answer within \\boxed{}.", mark="<extra_0>"
        ),
        labels=None,
        mark="<extra_0>",
        hints=(),
    ),
}
