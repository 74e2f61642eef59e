"""Phrases that betray that a writer was given the answer: a justification with one teaches to claim what is not so.

A justification is written with the gold answer in sight, and the one who learns from it will have none. What is
looked for is a phrase, not an idea: "the given answer" is a leak, "the given answers" and "the given Answer 2" speak of
the proposed ones. A clean text may still argue backwards; no phrase shows that. On the other side a phrase of the
list may be meant well, which costs one justification, counted.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_TRUE = r"(?:correct|right|true|actual)"
_CORRECT = rf"(?:{_TRUE}|final)"
_GIVEN = r"(?:given|provided|supplied)"
_A_PROPOSED = r"(?-i:Answer) ?#?\d"  # its label has a capital
_OF_PROPOSED = rf"(?! (?:in|of|from|by|for) (?:each\b|both\b|all\b|proposed\b|the\b|{_A_PROPOSED}))"
_NO_CHOICES = r"(?! (?:choice|option|candidate|set|list|attempt)s?\b)"
_WHERE_ONE_MAY = (  # what the reader has too: "as provided in the table"
    r"(?! (?:in|by|for|with|from|under|to) (?:(?:the|its|each|both|all|this|that|proposed|word|original|last|first) )*"
    r"(?:problem|question|text|story|sentence|statement|table|figure|diagram|conditions?|information|data|equations?"
    r"|formulas?|answers?|options?|choices?|solutions?|both|all|each)\b)"
)
_ENDS = (  # "the answer is given" alone or "as 18", but not "given by 3 + 4" or "given as a fraction"
    r"(?= ?[.,;:!?)]| ?$| as (?!an?\b)| to (?:be|me|us)\b| (?:here|already|above|beforehand|in advance)\b"
    r"| in the (?:prompt|instructions?|task|input|message|key)\b)"
)

_PATTERNS = {
    # "the given answer", "the provided correct answer"
    "given_answer": (
        rf"\b(?:the|this|that|our|your) {_GIVEN} (?:{_CORRECT} )*(?!{_A_PROPOSED})answer\b{_NO_CHOICES}{_OF_PROPOSED}"
        rf"|\b{_GIVEN} {_TRUE} (?:final )?answers?\b"
        rf"|\b{_CORRECT} answer {_GIVEN}(?: (?:to|for) (?:me|us)\b| ?[.,;:)])"
    ),
    # "as provided", "the answer is 18, as stated"
    "as_provided": (
        rf"\bas (?:already )?provided\b{_WHERE_ONE_MAY}"
        rf"|\banswer (?:is |of )?\S{{1,20}} ?,? as (?:given|stated|specified|indicated)\b{_WHERE_ONE_MAY}"
    ),
    # "we are told the answer", "I was given the correct solution", "the prompt says the right answer is"
    "told": (
        r"\b(?:we|i|you|it)(?: (?:are|were|was|am|is|have been|had been)|'re|'ve been|'m) (?:already |also )?"
        r"(?:told|given|provided(?: with)?|informed(?: of)?|shown|supplied with) (?:that )?the "
        rf"(?:answer\b{_NO_CHOICES}(?! (?:in|of|from|by) )|{_CORRECT} (?:final )?(?:answer|solution|result|value)\b)"
        rf"|\b(?:prompt|user|instructions?|task|problem|question) (?:has |have )?"
        rf"(?:(?:says?|said|states?|stated|tells?|told|provides?|provided)(?: me| us)?|(?:gives?|gave) (?:me|us))"
        rf" (?:that )?(?:the|a) {_TRUE} (?:final )?answer\b"
    ),
    # "the correct answer is provided", "the correct answer is known to be 18", "knowing the correct answer"
    "answer_known": (
        rf"\bthe (?:{_CORRECT} )+(?:answer|solution|result) (?:is|was|has been|being) (?:already )?"
        rf"(?:given|provided|supplied|known|stated|specified|told){_ENDS}"
        rf"|\b(?<!to )know(?:ing|s|n)?(?: already)? (?:that )?the {_TRUE} (?:final )?answer\b"
        rf"|\bknown (?:{_CORRECT} )*answer\b"
        rf"|\bgiven (?:that )?the {_TRUE} (?:final )?answer\b"
        rf"|\b(?:according to|based on) the {_TRUE} (?:final )?answer\b"
        rf"|\b(?:is|are|was|were|been) (?:marked|labell?ed|flagged|designated|listed)(?: as)?(?: the)? {_TRUE}\b"
    ),
    # "the expected answer", "ground truth", "the answer key"
    "reference": (
        r"\b(?:reference|gold(?:en)?|target|official|oracle|expected|intended)"
        rf" (?:{_CORRECT} )*(?:answer|solution|response|label)s?\b"
        r"|\bthe expected (?:result|output)\b"
        r"|\bground[ -]?truth\b|\bgold(?:en)?[ -](?:standard|label)\b"
        r"|\b(?:answer|solutions?|marking) (?:key|sheet|scheme|manual)\b"
    ),
    # the prompt's own words: "I must not mention", "for you alone", "to justify the correct answer"
    "instruction": (
        r"\b(?:i|we) (?:must|should|may|can|do|am|are)(?: not|not|n't|'t) (?:to )?(?:mention|reveal|hint|disclose)"
        r"|\bwithout (?:mentioning|revealing|disclosing) (?:it\b|that\b"
        rf"|(?:the |this |any )?(?:(?:{_CORRECT}|{_GIVEN}|known) )*answer\b)"
        rf"|\b(?:to|must|should|need to) (?:justify|support) the (?:{_CORRECT}|{_GIVEN}|known) answer\b"
        r"|\bfor you alone\b"
        r"|\bthe (?:last line|end of the message) (?:says|states|gives|tells|shows|has)\b"
        r"|\b(?:my|these) instructions\b"
    ),
}
_LEAKS = {kind: re.compile(pattern, re.IGNORECASE) for kind, pattern in _PATTERNS.items()}

# Comparing with the correct answer is a leak where nothing before it has said which that is.
_COMPARED = re.compile(
    r"\b(?:match(?:es|ed|ing)?|agree[sd]?(?: with)?|equals?|align(?:s|ed)? with|consistent with|differs? from"
    rf"|compared? (?:to|with)) the {_TRUE} (?:final )?(?:answer|result|solution|value)\b",
    re.IGNORECASE,
)
_CONCLUDED = re.compile(
    rf"\b{_CORRECT} (?:answer|result|total|value|solution) (?:is|was|must|should|has|equals|comes|=)", re.IGNORECASE
)

KINDS = (*_LEAKS, "compared")


class Leak(NamedTuple):
    """What betrays the writer: its kind, one of ``KINDS``, and the words themselves."""

    kind: str
    phrase: str


def find_leak(text: str) -> Leak | None:
    """The first kind of leak that a text holds, in the order of ``KINDS``; None for a clean text.

    >>> find_leak("5 - 2 = 3, which is the given answer.")
    Leak(kind='given_answer', phrase='the given answer')
    >>> find_leak("Answer 2 is given as 5. Of the given answers only the first adds up: 3.")
    >>> find_leak("Answer 2 matches the correct answer."), find_leak("The correct answer is 3: Answer 2 has it.")
    (Leak(kind='compared', phrase='matches the correct answer'), None)
    """
    text = " ".join(re.sub(r"[*_`\"“”]+", "", text).replace("’", "'").split())
    for kind, pattern in _LEAKS.items():
        if found := pattern.search(text):
            return Leak(kind, found[0])
    compared = _COMPARED.search(text)
    if compared and not _CONCLUDED.search(text, 0, compared.start()):
        return Leak("compared", compared[0])
    return None
