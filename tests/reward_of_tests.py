"""A reward that a random two-layer model can earn: the share of its characters that are low bytes."""

from __future__ import annotations

from tt_reasoning.types import Verdict


class CharacterReward:
    def __init__(self) -> None:
        self.low = 100.0

    def __call__(self, text: str, reference: str, verdict: Verdict) -> dict[str, float]:
        return {"low": self.low * sum(ord(c) < 80 for c in text) / max(len(text), 1)}


class RareReward:
    """1 for the completions whose bytes add up to a multiple of 5: many groups have equal rewards."""

    def __call__(self, text: str, reference: str, verdict: Verdict) -> dict[str, float]:
        return {"rare": 1.0} if sum(text.encode()) % 5 == 0 else {}


class PenaltyReward:
    """What is taken for every low byte, and what is given for every other one."""

    def __call__(self, text: str, reference: str, verdict: Verdict) -> dict[str, float]:
        low = sum(ord(c) < 80 for c in text)
        return {"low": -1.0 * low, "high": 0.5 * (len(text) - low)}
