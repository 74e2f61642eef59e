"""An engine without a model, for tests: its answers come from a file, a dictionary or a function.

The file is JSON; ``answers`` maps a question (what the last message, or a plain prompt, begins with; where an answer
is begun the last message is that) to the texts that it may get, ``fallback`` holds the texts for every other question,
``delay_s`` is the time that one answer takes. A request gets ``texts[seed % len(texts)]``, and ``{seed}`` in a text
becomes its seed::

    {"answers": {"What is 2 + 2?": ["The Answer is: 4", "The Answer is: 5"]},
     "fallback": ["I drew {seed}. The Answer is: 7"], "delay_s": 0.01}

A token is a word with the space behind it.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tt_reasoning.engines.base import Completion, Request, collect
from tt_reasoning.errors import UserError, unknown_name

_KEYS = ("answers", "delay_s", "fallback")


def _read_script(path: str | Path) -> dict[str, Any]:
    try:
        script = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    if not isinstance(script, dict):
        raise UserError(f"{path}: not a JSON object with answers, fallback or both")
    for key in script.keys() - set(_KEYS):
        raise unknown_name(f"key in {path}", key, _KEYS)
    return script


class ScriptedEngine:
    """Answers by script; deterministic in the request alone.

    Args:
        model: a file as above, its content as a dictionary, or a function from a request to a text.
        delay_s: seconds an answer takes; the file's own unless given.

    Example:
        >>> engine = ScriptedEngine({"answers": {"2 + 2?": ["It is 4.", "It is 5."]}})
        >>> engine.generate([Request(prompt="2 + 2?", seed=1)])
        [Completion(text='It is 5.', num_tokens=3, finish_reason='stop', divergence=None)]
        >>> engine.generate([Request(prompt="2 + 2?", seed=1, max_new_tokens=2)])
        [Completion(text='It is ', num_tokens=2, finish_reason='length', divergence=None)]
    """

    def __init__(
        self, model: str | Path | Mapping[str, Any] | Callable[[Request], str], *, delay_s: float | None = None
    ) -> None:
        script = _read_script(model) if isinstance(model, (str, Path)) else model
        if callable(script):
            self._text: Callable[[Request], str] = script
            self._delay_s = delay_s or 0.0
            return
        self._answers: Mapping[str, Sequence[str]] = script.get("answers", {})
        self._fallback: Sequence[str] = script.get("fallback", ())
        self._text = self._look_up
        self._delay_s = script.get("delay_s", 0.0) if delay_s is None else delay_s

    def _look_up(self, request: Request) -> str:
        content = request.prompt if isinstance(request.prompt, str) else request.prompt[-1]["content"]
        question = max((known for known in self._answers if content.startswith(known)), key=len, default=None)
        texts = self._fallback if question is None else self._answers[question]
        if not texts:
            raise UserError(f"the script has no answer to {content[:60]!r} and no fallback")
        return texts[request.seed % len(texts)].replace("{seed}", str(request.seed))

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """One completion a request, in order, after ``delay_s`` each."""
        return collect(self.stream(requests))

    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """The completions of ``generate`` with their indices, one after another."""
        for index, request in enumerate(requests):
            time.sleep(self._delay_s)
            text = self._text(request)
            ends = [text.index(stop) + len(stop) for stop in request.stop if stop in text]
            words = re.findall(r"\s*\S+\s*", text[: min(ends, default=len(text))])
            kept = words[: request.max_new_tokens]
            reason = "length" if len(words) > len(kept) else "stop"
            yield index, Completion(text="".join(kept), num_tokens=len(kept), finish_reason=reason)

    def close(self) -> None:
        """Nothing to free."""
