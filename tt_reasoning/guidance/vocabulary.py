"""Whether two models speak of the same tokens: what guidance by another model rests on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tt_reasoning.errors import UserError
from tt_reasoning.guidance import ValueCard


class Vocabulary(Protocol):
    """A tokenizer of any library."""

    def get_vocab(self) -> dict[str, int]:
        """Every token with its id, added ones included."""
        ...


def check_same_vocabulary(policy: Vocabulary, value: Vocabulary) -> None:
    """Refuse a value model in whose vocabulary some id is another token than in the policy's.

    Equal lengths prove nothing: a token more at one place and one less at another shift all between them. How texts
    are cut into tokens may differ, since a value model reads the policy's tokens.

    Raises:
        UserError: the first id of which the two say different things.
    """
    ours, theirs = ({i: token for token, i in t.get_vocab().items()} for t in (policy, value))
    for i in sorted(ours.keys() | theirs.keys()):
        if ours.get(i) != theirs.get(i):
            named = [f"'{found[i]}'" if i in found else "no token" for found in (ours, theirs)]
            raise UserError(
                f"the value model has another vocabulary than the policy: token {i} is {named[1]} there and {named[0]} "
                "here; take a value model that began from a model of the policy's family"
            )


def check_same_end(card: ValueCard, stop_tokens: Sequence[int]) -> None:
    """Refuse a value model whose answers end at a token that does not end the policy's: what it knows of ends is lost.

    So a value model that begins from a base model, for a policy that chats, is trained with the policy's tokenizer.

    Raises:
        UserError: the card names such a token.

    >>> check_same_end(ValueCard(head="V", loss="bce", prompt="steps", end=2), [0, 2])
    """
    if card.end is not None and card.end not in stop_tokens:
        raise UserError(
            f"the value model learned answers that end at token {card.end}, the policy's end at "
            f"{' or '.join(map(str, stop_tokens))}; train it with tokenizer.path={{the policy's folder}}"
        )
