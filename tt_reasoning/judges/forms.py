"""What a judge's folder is: its own card, or one of the published forms. Nothing heavy is loaded to tell."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tt_reasoning import guidance
from tt_reasoning.errors import UserError
from tt_reasoning.guidance import ValueCard, read_value_card
from tt_reasoning.judges import CARD, FormName, JudgeCard, PublishedName, read_card
from tt_reasoning.judges.formats import EndFormat, StepFormat, TagFormat, text_token_id, token_id
from tt_reasoning.judges.published import PUBLISHED
from tt_reasoning.models.tokenizer import ChatTokenizer
from tt_reasoning.models.weights import has_class_head, read_hf_config
from tt_reasoning.prompts import restore_prompt
from tt_reasoning.steps import Span, SplitStyle, split_steps, whole_span


@dataclass(frozen=True, kw_only=True)
class JudgeForm:
    """How a judge is shown a solution, and what is read where it answers.

    With head ``tokens`` or ``classes`` the score is the softmax of two logits of the model's output, ``good`` against
    ``bad``: ids of the label tokens, or the two classes that the output has in place of a vocabulary. With head
    ``value`` a value head says it, as a logit if ``squash``; that of a value model (Q#) as its card, ``value``, has it.
    ``outcome``: the whole solution is its only step. ``name`` is that of the published form, or ``card``.
    """

    name: str
    format: StepFormat
    head: Literal["tokens", "classes", "value"]
    good: int
    bad: int
    outcome: bool = False
    squash: bool = False
    value: ValueCard | None = None

    def spans(self, text: str, style: SplitStyle) -> list[Span]:
        """The steps of a solution as this judge takes them; none of a blank one."""
        return whole_span(text) if self.outcome else split_steps(text, style)


def find_form(folder: str | Path, name: FormName = "auto") -> tuple[JudgeForm, ChatTokenizer]:
    """The form of the judge in a Hugging Face folder, and its tokenizer.

    Args:
        name: of a published form; ``auto`` goes by ``judge.json``, by ``value.json`` of a value model, which judges
            whole answers (Q#-RM), by the architecture and the folder's name. The weights of a judge with label tokens
            look like any language model's, so there is nothing else to go by.

    Raises:
        UserError: no such folder, no judge, an architecture of another form, or a vocabulary without its tokens.
    """
    config, card = read_hf_config(folder), read_card(folder)
    tokenizer = ChatTokenizer(folder)
    if name == "auto" and card is not None:
        _check_architecture(folder, config, classes=False)
        return _form_of_card(card, tokenizer), tokenizer
    if name == "auto" and (Path(folder) / guidance.CARD).is_file():
        _check_architecture(folder, config, classes=False)
        return _form_of_value(read_value_card(folder), tokenizer, folder), tokenizer
    name = _detect(folder, config) if name == "auto" else name
    published = PUBLISHED[name]
    _check_architecture(folder, config, classes=published.labels is None)
    if published.mark is not None:
        text_token_id(tokenizer, published.mark, f"the mark of a step of form {name},")
    if published.labels is None:
        return JudgeForm(name=name, format=published.format, head="classes", good=1, bad=0), tokenizer
    good, bad = (text_token_id(tokenizer, label, f"the label of form {name},") for label in published.labels)
    return JudgeForm(name=name, format=published.format, head="tokens", good=good, bad=bad), tokenizer


def _form_of_card(card: JudgeCard, tokenizer: ChatTokenizer) -> JudgeForm:
    if card.head == "value":  # it is read at the solution's own last token
        form = TagFormat(prompt=card.prompt, step_token="", between=card.between)
        return JudgeForm(name="card", format=form, head="value", good=0, bad=0, outcome=True, squash=card.squash)
    return JudgeForm(
        name="card",
        format=TagFormat(prompt=card.prompt, step_token=card.step_token, between=card.between),
        head="tokens",
        good=token_id(tokenizer, card.good, "the label of a good step,"),
        bad=token_id(tokenizer, card.bad, "the label of a bad step,"),
        outcome=card.outcome,
    )


def _form_of_value(card: ValueCard, tokenizer: ChatTokenizer, folder: str | Path) -> JudgeForm:
    """A value model as a judge of whole answers: what it expects of one that ends here (Q#, arXiv 2502.20548)."""
    prompt = restore_prompt(card.prompt, card.template, f"{folder}/{guidance.CARD}")
    end = EndFormat(prompt=prompt, end=tokenizer.eos_id if card.end is None else card.end)
    return JudgeForm(name="card", format=end, head="value", good=0, bad=0, outcome=True, value=card)


def _detect(folder: str | Path, config: dict) -> PublishedName:
    if has_class_head(config):
        return "qwen-prm"
    known_as = f"{Path(folder).resolve().name} {config.get('_name_or_path', '')}".lower()
    for name, published in PUBLISHED.items():
        if any(hint in known_as for hint in published.hints):
            return name
    raise UserError(
        f"{folder} is no judge by its {CARD} or {guidance.CARD}, which it lacks, its architecture or its name; if it "
        f"is a published one, say which form it has: --format {'|'.join(PUBLISHED)}"
    )


def _check_architecture(folder: str | Path, config: dict, *, classes: bool) -> None:
    architectures = config.get("architectures") or ()
    fits = has_class_head(config) if classes else not architectures or architectures[0].endswith("ForCausalLM")
    if not fits:
        found = ", ".join(architectures) or "of no named architecture"
        wanted = "Qwen2ForProcessRewardModel" if classes else "a language model (...ForCausalLM)"
        raise UserError(f"{folder} is {found}; this form needs {wanted}")
