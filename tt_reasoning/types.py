"""The records that every stage reads and writes: one JSON object a line, joined on ids.

``Answer`` leaves its prompt out, so nothing is ever split back; ``Verdict`` stands apart from it, so
regrading never regenerates. Standard library only: grading and voting need no torch.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Literal

Kind = Literal["math", "choice", "numeric", "code"]
FinishReason = Literal["stop", "length"]
Reason = Literal["match", "mismatch", "no_answer", "bad_reference", "timeout", "error"]
Rating = Literal[-1, 0, 1]
Rule = Literal["bernoulli", "expectation", "categorical", "mean"]
Outside = Literal["exclude", "keep"]


def _digest(*parts: object) -> str:
    """The first 16 hex digits of the SHA-256 of ``parts`` as compact JSON."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def seed_of(*parts: object) -> int:
    """A seed in [0, 2**31) from anything that JSON can write: the same parts give the same seed.

    >>> seed_of(0, "52cb", 1) == seed_of(0, "52cb", 1) != seed_of(0, "52cb", 2)
    True
    """
    return int(_digest(*parts)[:8], 16) & 0x7FFFFFFF


def problem_id(question: str) -> str:
    """The id of a question: the same words give the same id, so a train/test leak is an id collision.

    >>> problem_id("What is 2 + 2?")
    '38d46ad3618826cf'
    """
    return hashlib.sha256(question.encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One question of a benchmark with its gold answer.

    For kind ``choice`` the question already shows the options as lettered lines (``prompts.choice_text``), so
    every prompt shows them, the id covers them and their order, and ``reference`` is a letter. ``choices`` holds
    them once more, in the order shown: the published one, or what ``random.Random(order_seed).shuffle`` makes of
    it. ``category`` is the benchmark's own subject, where it has any.

    >>> p = Problem(source="gsm8k", split="test", question="What is 2 + 2?", reference="4")
    >>> p.id, p.kind
    ('38d46ad3618826cf', 'math')
    """

    source: str
    split: str
    question: str
    reference: str
    kind: Kind = "math"
    id: str = ""
    choices: tuple[str, ...] = ()
    order_seed: int | None = None
    category: str | None = None

    def __post_init__(self) -> None:
        if not self.id:
            object.__setattr__(self, "id", problem_id(self.question))


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """How a value model steers sampling (Q#, arXiv 2502.20548; ``tt_reasoning.guidance.rules``).

    ``eta`` is the inverse of the paper's temperature: the larger, the harder it steers; 0 does not steer. The value
    model is asked about the ``top_k`` likeliest tokens (0: all); ``outside`` says what becomes of the others.
    """

    value_model: str
    eta: float
    top_k: int = 20
    rule: Rule = "bernoulli"
    outside: Outside = "exclude"

    def __post_init__(self) -> None:
        object.__setattr__(self, "eta", float(self.eta) + 0.0)  # 1 and 1.0 are one guidance, so are 0 and -0.0

    @property
    def told_eta(self) -> str:
        """``eta`` as short as it can be told, another for each.

        >>> Guidance(value_model="v", eta=5).told_eta, Guidance(value_model="v", eta=0.12345678).told_eta
        ('5', '0.12345678')
        >>> Guidance(value_model="v", eta=-0.0).told_eta
        '0'
        """
        return repr(self.eta).removesuffix(".0")


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """How far the tokens of one answer were steered: KL(policy, reference) in nats, summed over its tokens.

    With z the reference's logits, z' the guided ones and T the temperature, ``whole`` is of softmax(z' / T),
    ``sampled`` of what the tokens were really drawn from, after top-k and top-p; both against the whole softmax(z / T).
    Without guidance ``whole`` is 0 and ``sampled`` is what truncation alone comes to. At temperature 0 both are of the
    one token that is drawn, against softmax(z), and so above 0 without guidance too.
    """

    whole: float
    sampled: float


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How an answer was drawn. ``seed`` is the run's; ``request_seed`` gives each sample its own.

    ``top_k = 0`` means no limit; ``temperature = 0`` is greedy. ``guidance`` is that of a value model, if one steered.
    """

    model: str
    revision: str | None = None
    prompt: str
    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 1024
    seed: int = 0
    guidance: Guidance | None = None

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p"):  # 1 and 1.0 are one sampling: ids are digests of what is written
            object.__setattr__(self, name, float(getattr(self, name)))

    @property
    def eta(self) -> float:
        """How hard a value model steered; 0 where none did."""
        return 0.0 if self.guidance is None else self.guidance.eta

    def request_seed(self, problem_id: str, sample_index: int) -> int:
        """The seed of one sample, in [0, 2**31): independent of order, batch and earlier runs."""
        return seed_of(self.seed, problem_id, sample_index)

    def answer_id(self, problem_id: str, sample_index: int) -> str:
        """The id of the answer that this sampling draws: known before it is drawn, so resume is a lookup."""
        row = asdict(self)
        if self.guidance is None:  # ids are what they were before there was any
            del row["guidance"]
        return _digest(row, problem_id, sample_index)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One sampled completion: ``text`` is the completion alone, never the prompt.

    ``divergence`` is there where a value model could have steered.
    """

    id: str
    problem_id: str
    sample_index: int
    text: str
    num_tokens: int
    finish_reason: FinishReason
    sampling: Sampling
    divergence: Divergence | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The grade of one answer. ``correct`` is None when it cannot be judged (see ``reason``)."""

    answer_id: str
    extracted: str | None
    correct: bool | None
    reason: Reason


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a judge thinks of one whole answer: the higher, the better."""

    answer_id: str
    score: float


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a solution: character offsets into ``Answer.text``, a raw rating and a judge's score."""

    answer_id: str
    index: int
    start: int
    end: int
    rating: Rating | None = None
    score: float | None = None


@dataclass(frozen=True, kw_only=True)
class AnswerSet:
    """A problem with the answers that an aggregator reads, in prompt order (shuffled by ``order_seed``)."""

    id: str
    problem: Problem
    answers: tuple[Answer, ...] = field(default_factory=tuple)
    order_seed: int = 0

    @staticmethod
    def make_id(problem: Problem, answers: tuple[Answer, ...], order_seed: int) -> str:
        """The id of a set: from its problem, its answers in order, and the order's seed."""
        return _digest(problem.id, [a.id for a in answers], order_seed)
