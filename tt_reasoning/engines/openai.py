"""Any server that speaks OpenAI's API behind the engine protocol: many requests at once, each its own.

A chat goes to ``/chat/completions``, a text to ``/completions``. Every sample is a request of its own with its
own seed, not one of ``n``: a server takes ``n`` with one seed only, and so a lost sample can be asked alone. What
comes back is as repeatable as the server is. A request ends as a completion or as a ``Failure``; the client
retries what may pass (connection, timeout, 408, 409, 429, 5xx) and waits as long as ``Retry-After`` says, up to
two minutes; a server that says more is asked again by the next run.

Where servers differ:

- vLLM (it names itself in ``/models``) is told to keep the stop string in the text and to leave its model's
  default penalties and limits aside, as the other engines do.
- Elsewhere the API drops the stop string. It is put back where the server says which one it was (``stop_reason``,
  SGLang's ``matched_stop``); where it does not, the text ends without it: of a prompt whose answer is read up to its
  stop string (``ssa``) choose another server. ``top_k`` is sent if it is not 0.
- api.openai.com is given ``max_completion_tokens`` and has no ``top_k``.
- A server that moves the thinking of a reasoning model out of the text (vLLM's ``--reasoning-parser``) loses it for
  the record; start it without.

Keys come from OPENAI_API_KEY or a file, one a line, and take turns. One that is refused (401) or spent (402, or
429 with ``insufficient_quota``) is taken out, named by its line, and its request goes on with the next. Keys are
never printed, and are cut out of what a server says.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import os
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tt_reasoning.engines.base import Completion, Failure, FailureReason, Request, Usage, collect
from tt_reasoning.errors import UserError
from tt_reasoning.prompts import split_begun

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_OFFICIAL = "https://api.openai.com/v1"
_CONNECT_S = 10.0
_MEET_S = 30.0  # the list of models is short: a server that is up gives it at once
_LONGEST_S = 86_400
_MOST_AT_ONCE = 1000  # connections that the client opens at most
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Key:
    """A key by the name under which it may be told: its text is in no representation.

    >>> Key("line 1 of keys.txt", "sk-secret")
    Key(name='line 1 of keys.txt')
    """

    name: str
    text: str = field(repr=False)


_NO_KEY = Key("no key", "EMPTY")  # for a server that asks for none; the client wants one


def read_keys(path: str | Path | None) -> list[Key]:
    """The keys of a file, one a line, or that of OPENAI_API_KEY; none where there is neither.

    Raises:
        UserError: no such file (a key that was given for a file is not repeated), an empty one, or a line that
            is no key.
    """
    if path is None:
        text = os.environ.get("OPENAI_API_KEY", "").strip()
        return _checked([Key("OPENAI_API_KEY", text)] if text else [])
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        raise UserError("--keys names no readable text file; give the path of a file with one key a line") from None
    name = Path(path).name
    keys = [Key(f"line {number} of {name}", line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not keys:
        raise UserError(f"{path} holds no key; write one a line")
    return _checked(keys)


def _checked(keys: list[Key]) -> list[Key]:
    """Refuse what HTTP would refuse with the key in its message."""
    for key in keys:
        if not (key.text.isascii() and key.text.isprintable() and " " not in key.text):
            raise UserError(f"{key.name} is no key: it holds a space or a character that no header may hold")
    return keys


def check_url(base_url: str | None) -> str:
    """The address of the server: the one given, else OPENAI_BASE_URL, else OpenAI's own.

    Raises:
        UserError: not an http address, or one with a password or a query, where secrets do not belong.

    >>> check_url("http://localhost:8000/v1/")
    'http://localhost:8000/v1'
    """
    url = base_url or os.environ.get("OPENAI_BASE_URL") or _OFFICIAL
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise UserError("--base-url is not a URL; give one like http://localhost:8000/v1") from None
    if parts.username or parts.password or parts.query:
        raise UserError("--base-url holds a name, password or query; keys belong in OPENAI_API_KEY or --keys FILE")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"--base-url {url} is not an http address; give one like http://localhost:8000/v1")
    return url.rstrip("/")


class OpenAIEngine:
    """A model behind a server.

    Args:
        model: its name there.
        base_url: such as ``http://localhost:8000/v1``; None is OPENAI_BASE_URL, else OpenAI itself.
        keys: a file with one key a line; None is OPENAI_API_KEY, or no key for a server that asks for none.
        concurrency: requests under way at once.
        timeout_s: the longest silence of the server, and the longest time that a response may take once it began.
        max_retries: of one request.

    Raises:
        UserError: the client is not installed, an argument is wrong, no server answers, it takes no key that
            there is, or it is a vLLM that does not serve the model.

    Example:
        ``OpenAIEngine("smollm2-135m", base_url="http://localhost:8000/v1").generate([Request(prompt="2 + 2 =")])``
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        keys: str | None = None,
        concurrency: int = 16,
        timeout_s: float = 600.0,
        max_retries: int = 5,
    ) -> None:
        self.check(model, base_url, keys, concurrency, timeout_s, max_retries)
        self._model = model
        self._url = check_url(base_url)
        self._keys = read_keys(keys) or [_NO_KEY]
        self._live = deque(self._keys)
        self._timeout_s = timeout_s
        self._at_once = concurrency
        self._usage = Usage(
            endpoint=self._url, models=[], answered=0, failed={}, prompt_tokens=0, completion_tokens=0, seconds=0.0
        )
        self._clients = self._open_clients(max_retries)
        self._runner = asyncio.Runner()
        try:
            self._is_vllm = self._runner.run(self._meet_server())
        except BaseException:
            self.close()
            raise

    @staticmethod
    def check(
        model: str,
        base_url: str | None = None,
        keys: str | None = None,
        concurrency: int | None = None,
        timeout_s: float | None = None,
        max_retries: int | None = None,
    ) -> None:
        """Raise the UserErrors that need no server."""
        if importlib.util.find_spec("openai") is None:
            raise UserError('the openai client is not installed: pip install "tt-reasoning[openai]"')
        if not model:
            raise UserError("--model is empty; give the model's name at the server")
        if concurrency is not None and not 1 <= concurrency <= _MOST_AT_ONCE:
            raise UserError(f"--concurrency {concurrency}: give 1 to {_MOST_AT_ONCE}")
        if timeout_s is not None and not 0 < timeout_s <= _LONGEST_S:
            raise UserError(f"--timeout-s {timeout_s}: give more than 0, and at most {_LONGEST_S}")
        if max_retries is not None and max_retries < 0:
            raise UserError(f"--max-retries {max_retries}: give 0 or more")
        if not read_keys(keys) and check_url(base_url) == _OFFICIAL:
            raise UserError("OpenAI asks for a key: set OPENAI_API_KEY, give --keys FILE, or another --base-url")

    def _open_clients(self, max_retries: int) -> dict[str, AsyncOpenAI]:
        """A client a key, by the key's name, on shared connections."""
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient, Timeout

        connections = DefaultAsyncHttpxClient(event_hooks={"response": [self._receive]})
        timeout = Timeout(self._timeout_s, connect=min(self._timeout_s, _CONNECT_S))
        return {
            key.name: AsyncOpenAI(
                api_key=key.text, base_url=self._url, timeout=timeout, max_retries=max_retries, http_client=connections
            )
            for key in self._keys
        }

    async def _receive(self, response: Any) -> None:
        """Read a response to its end in time, however slowly it drips; a spent key is not worth a retry."""
        async with asyncio.timeout(self._timeout_s):
            await response.aread()
        if response.status_code == 429 and _error_of(_parse(response.content)).get("code") == "insufficient_quota":
            response.headers["x-should-retry"] = "false"

    async def _meet_server(self) -> bool:
        """Whether it is vLLM. A server without a list of models is taken as it is."""
        timeout_s = min(self._timeout_s, _MEET_S)
        found = await self._call(
            lambda client: client.with_options(
                timeout=timeout_s, max_retries=min(client.max_retries, 2)
            ).models.with_raw_response.list()
        )
        if isinstance(found, Failure):
            if found.reason == "no_key":
                raise UserError(f"{self._url} asks for a key ({found.detail}); set OPENAI_API_KEY or give --keys FILE")
            if found.reason in ("unreachable", "disconnected", "timeout"):
                raise UserError(f"no server answers at {self._url} ({found.detail}); start it or mend --base-url")
            return False
        rows = found.get("data") if isinstance(found, dict) else None
        rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
        is_vllm = any(row.get("owned_by") == "vllm" for row in rows)
        names = [str(row.get("id")) for row in rows]
        if is_vllm and self._model not in names:
            raise UserError(f"{self._url} serves no model {self._model!r}; it serves {', '.join(names)}")
        return is_vllm

    def generate(self, requests: Sequence[Request]) -> list[Completion | Failure]:
        """One completion or failure a request, in order; at most ``concurrency`` are under way.

        Raises:
            UserError: ``top_k`` for api.openai.com, or a chat whose answer is begun.
        """
        return collect(self.stream(requests))

    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion | Failure]]:
        """The outcomes of ``generate`` with their indices, in order, each as soon as all before it are there."""
        if self._url == _OFFICIAL and any(request.top_k for request in requests):
            raise UserError("OpenAI's API has no top_k; leave --top-k away")
        if any(not isinstance(request.prompt, str) and split_begun(request.prompt)[1] for request in requests):
            # The API has no word for it; what servers make of it depends on them and on the chat template.
            raise UserError(
                "a server cannot continue a chat's answer; use --engine vllm, or a prompt of plain text such as steps"
            )
        began = time.perf_counter()
        free = asyncio.Semaphore(self._at_once)
        loop = self._runner.get_loop()
        tasks = [loop.create_task(self._ask(request, free)) for request in requests]
        outcomes: list[Outcome] = []
        try:
            for index, task in enumerate(tasks):
                outcomes.append(loop.run_until_complete(task))
                yield index, outcomes[-1].result
        finally:
            left = [task for task in tasks if not task.done()]  # the caller stops early
            for task in left:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            self._usage = _add_up(self._url, outcomes, time.perf_counter() - began)

    def last_usage(self) -> Usage:
        """The usage of the latest call of ``generate`` or ``stream``."""
        return self._usage

    async def _ask(self, request: Request, free: asyncio.Semaphore) -> Outcome:
        async with free:
            found = await self._call(lambda client: self._send(client, request))
        if isinstance(found, Failure):
            return Outcome(result=found)
        outcome = read_response(found, request.stop)
        if isinstance(outcome.result, Failure):
            told = replace(outcome.result, detail=self._one_line(outcome.result.detail))
            return replace(outcome, result=told)
        return outcome

    def _send(self, client: AsyncOpenAI, request: Request) -> Awaitable[Any]:
        body: dict[str, Any] = {
            "model": self._model,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed,
        }
        if request.stop:
            body["stop"] = list(request.stop)
        extra: dict[str, Any] = {"top_k": request.top_k} if request.top_k else {}
        if self._is_vllm:
            # A vLLM server takes what is left out from the model's generation_config.json.
            extra = {"top_k": request.top_k, "min_p": 0.0, "repetition_penalty": 1.0}
            extra["include_stop_str_in_output"] = True
        if isinstance(request.prompt, str):
            return client.completions.with_raw_response.create(
                prompt=request.prompt, max_tokens=request.max_new_tokens, extra_body=extra, **body
            )
        limit = "max_completion_tokens" if self._url == _OFFICIAL else "max_tokens"
        body[limit] = request.max_new_tokens
        messages: Any = request.prompt
        return client.chat.completions.with_raw_response.create(messages=messages, extra_body=extra, **body)

    async def _call(self, send: Callable[[AsyncOpenAI], Awaitable[Any]]) -> Any:
        """The JSON of a response, or a Failure: with the next key, and with another one if it is taken out."""
        import openai

        while self._live:
            key = self._live[0]
            self._live.rotate(-1)
            try:
                response = await send(self._clients[key.name])
            except openai.APIStatusError as error:
                spent = _refuses_key(error.status_code, _error_of(_parse(error.response.content)))
                if spent is None:
                    return self._refusal(error.status_code, error.response.content)
                self._take_out(key, spent)
                continue
            except (openai.APIConnectionError, TimeoutError) as error:
                cause = type(error.__cause__).__name__
                if cause in ("ConnectError", "ConnectTimeout"):
                    return Failure(reason="unreachable", detail=cause, general=True)
                if isinstance(error, (openai.APITimeoutError, TimeoutError)):
                    return Failure(reason="timeout", detail=f"no response within {self._timeout_s:g} s")
                return Failure(reason="disconnected", detail=cause)
            found = _parse(response.content)
            return found if found is not None else Failure(reason="malformed", detail="the response is not JSON")
        detail = "none was given" if self._keys == [_NO_KEY] else "all were refused or are spent"
        return Failure(reason="no_key", detail=detail, general=True)

    def _take_out(self, key: Key, why: str) -> None:
        if key in self._live:
            self._live.remove(key)
            if key != _NO_KEY:
                _log.warning("the key of %s is taken out: %s; %d left", key.name, why, len(self._live))

    def _refusal(self, status: int, content: bytes) -> Failure:
        said = _error_of(_parse(content)).get("message") or content.decode(errors="replace")
        reason: FailureReason = "refused"
        if status == 429:
            reason = "rate_limit"
        elif status in (408, 409) or status >= 500:
            reason = "server_error"
        detail = self._one_line(f"status {status}: {said}")
        return Failure(reason=reason, detail=detail, general=status in (404, 429))

    def _one_line(self, text: str) -> str:
        """What a server says, without keys and breaks and not too long."""
        for key in self._keys:
            if key != _NO_KEY:
                text = text.replace(key.text, f"[key of {key.name}]")
        return " ".join(text.split())[:200]

    def close(self) -> None:
        """End the connections."""

        async def close() -> None:
            for client in self._clients.values():
                await client.close()

        self._runner.run(close())
        self._runner.close()


def _parse(content: bytes) -> Any:
    """The value of a JSON text; None when it is none."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _error_of(body: Any) -> dict[str, Any]:
    """The error object of a response; empty when there is none."""
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, dict):
        return error
    return {"message": str(error)} if error else {}


def _refuses_key(status: int, error: dict[str, Any]) -> str | None:
    """Why a response speaks against its key, in words of our own: a server's may repeat the key."""
    if status == 401:
        return "refused (401)"
    if status == 402 or (status == 429 and error.get("code") == "insufficient_quota"):
        return f"its quota is spent ({status})"
    return None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a request and what it took; ``model`` is the name that the server answered under."""

    result: Completion | Failure
    model: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


def read_response(body: Any, stop: Sequence[str] = ()) -> Outcome:
    """The completion in the JSON of a response, of either endpoint; anything but a whole one is a failure.

    >>> usage = {"prompt_tokens": 5, "completion_tokens": 2}
    >>> read_response({"choices": [{"text": "4", "finish_reason": "stop", "stop_reason": "#"}], "usage": usage}, ["#"])
    Outcome(result=Completion(text='4#', num_tokens=2, finish_reason='stop', divergence=None), model=None, \
prompt_tokens=5, completion_tokens=2)
    >>> read_response({"error": {"message": "overloaded"}}).result
    Failure(reason='error_body', detail='overloaded', general=False)
    """
    if not isinstance(body, dict):
        return _fail("malformed", "the response is not a JSON object")
    usage = body.get("usage") if isinstance(body.get("usage"), dict) else {}
    tokens = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    prompt_tokens, completion_tokens = (n if type(n) is int and n >= 0 else None for n in tokens)
    spent = {
        "model": body.get("model") if _is_text(body.get("model")) else None,
        "prompt_tokens": prompt_tokens or 0,
        "completion_tokens": completion_tokens or 0,
    }
    if error := _error_of(body):
        return _fail("error_body", str(error.get("message") or error), **spent)
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return _fail("malformed", "the response holds no choice", **spent)
    choice = choices[0]
    message = choice.get("message")
    text = message.get("content") if isinstance(message, dict) else choice.get("text")
    reason = choice.get("finish_reason")
    if reason not in ("stop", "length"):
        return _fail("unfinished", f"finish_reason is {reason!r}", **spent)
    if not _is_text(text):
        return _fail("malformed", f"the choice holds no text (finish_reason {reason!r})", **spent)
    if completion_tokens is None:
        return _fail("malformed", "usage does not say completion_tokens", **spent)
    said = choice.get("stop_reason", choice.get("matched_stop"))
    if reason == "stop" and said in stop and not text.endswith(said):
        text += said
    return Outcome(result=Completion(text=text, num_tokens=completion_tokens, finish_reason=reason), **spent)


def _is_text(value: Any) -> bool:
    """Whether it is a string that a file can hold; JSON can also write half a character."""
    try:
        return isinstance(value, str) and bool(value.encode() or True)
    except UnicodeEncodeError:
        return False


def _fail(reason: FailureReason, detail: str, **spent: Any) -> Outcome:
    return Outcome(result=Failure(reason=reason, detail=detail), **spent)


def _add_up(endpoint: str, outcomes: Iterable[Outcome], seconds: float) -> Usage:
    outcomes = list(outcomes)
    failed = Counter(o.result.reason for o in outcomes if isinstance(o.result, Failure))
    return Usage(
        endpoint=endpoint,
        models=sorted({o.model for o in outcomes if o.model}),
        answered=len(outcomes) - failed.total(),
        failed=dict(failed),
        prompt_tokens=sum(o.prompt_tokens for o in outcomes),
        completion_tokens=sum(o.completion_tokens for o in outcomes),
        seconds=round(seconds, 3),
    )
