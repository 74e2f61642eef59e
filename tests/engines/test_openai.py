"""The openai engine against servers that misbehave, and against vLLM's own server: real HTTP throughout."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from engines.misbehaving_server import MisbehavingServer, Reply, Seen, answer, error
from tiny import write_tiny_model

from tt_reasoning.engines import check_engine, open_engine
from tt_reasoning.engines.base import Completion, Failure, Request
from tt_reasoning.engines.openai import OpenAIEngine, check_url, read_keys, read_response
from tt_reasoning.errors import UserError
from tt_reasoning.prompts import get_prompt
from tt_reasoning.store import read_manifest, read_records, read_rows
from tt_reasoning.types import Answer

TOOL = Path(__file__).parents[2] / "tools" / "generate_answers.py"
SECRETS = ["sk-first-3f9a1c", "sk-second-77b2d0"]
LONG = {"filler": "x" * 200}


@pytest.fixture(autouse=True)
def no_key_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_LOG"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def keys(tmp_path: Path) -> str:
    path = tmp_path / "keys.txt"
    path.write_text("\n".join(SECRETS) + "\n")
    return str(path)


@contextmanager
def serving(
    script: Callable[[Seen], Reply] = answer, models: Callable[[str], Reply] | None = None, **options: object
) -> Iterator[tuple[MisbehavingServer, OpenAIEngine]]:
    """A server and an engine in front of it, without retries unless asked."""
    with MisbehavingServer(script, models).running() as server:
        engine = OpenAIEngine("tiny", **{"base_url": server.base_url, "timeout_s": 1.0, "max_retries": 0} | options)
        try:
            yield server, engine
        finally:
            engine.close()


def ask(engine: OpenAIEngine, *seeds: int, **options: object) -> list[Completion | Failure]:
    return engine.generate([Request(**{"prompt": "2 + 2 =", "seed": seed} | options) for seed in seeds])


# What a server may do: script, reason under which it is counted, words of the detail.
MISBEHAVIOURS: dict[str, tuple[Callable[[Seen], Reply], str, str]] = {
    "rate limit": (lambda seen: error(429, "slow down"), "rate_limit", "status 429: slow down"),
    "a wait too long": (lambda seen: error(429, "tomorrow", Retry_After="3600"), "rate_limit", "tomorrow"),
    "internal error": (lambda seen: error(500, "oh"), "server_error", "status 500: oh"),
    "a gateway's page": (
        lambda seen: Reply(status=502, body=b"<html>Bad\nGateway</html>"), "server_error", "<html>Bad Gateway</html>",
    ),
    "bad request": (lambda seen: error(400, "too long"), "refused", "status 400: too long"),
    "forbidden": (lambda seen: error(403, "flagged"), "refused", "status 403: flagged"),
    "cut": (lambda seen: Reply(body=LONG, cut=True), "disconnected", "RemoteProtocolError"),
    "stall": (lambda seen: Reply(body=LONG, stall_s=30), "timeout", "no response within 1 s"),
    "drip": (lambda seen: Reply(body=LONG, drip_s=0.2), "timeout", "no response within 1 s"),
    "half of a JSON": (lambda seen: Reply(body=b'{"choices": [{"te'), "malformed", "not JSON"),
    "a page": (
        lambda seen: Reply(body=b"<html>hi</html>", headers={"Content-Type": "text/html"}), "malformed", "not JSON",
    ),
    "nothing": (lambda seen: Reply(body=b""), "malformed", "not JSON"),
    "bottomless JSON": (lambda seen: Reply(body=b"[" * 100_000), "malformed", "not JSON"),
    "another JSON": (lambda seen: Reply(body=["an error occurred"]), "malformed", "not a JSON object"),
    "an error with status 200": (lambda seen: error(200, "overloaded"), "error_body", "overloaded"),
    "an error in words": (lambda seen: Reply(body={"error": "no GPU"}), "error_body", "no GPU"),
    "no choices": (lambda seen: Reply(body={"choices": []}), "malformed", "no choice"),
    "no text": (
        lambda seen: Reply(body={"choices": [{"text": None, "finish_reason": "stop"}]}), "malformed", "no text",
    ),
    "half a character": (lambda seen: answer(seen, "a\ud800"), "malformed", "no text"),
    "no usage": (lambda seen: Reply(body=answer(seen).body | {"usage": None}), "malformed", "completion_tokens"),
    "a content filter": (lambda seen: answer(seen, finish_reason="content_filter"), "unfinished", "'content_filter'"),
    "no finish": (lambda seen: answer(seen, finish_reason=None), "unfinished", "None"),
}  # fmt: skip


def test_completions_come_in_order_before_the_last_is_there_and_the_rest_is_left() -> None:
    def script(seen: Seen) -> Reply:
        return Reply(body=answer(seen).body, stall_s=0.0 if seen.seed < 3 else 30.0)

    with serving(script, concurrency=2, timeout_s=60.0) as (server, engine):
        outcomes = engine.stream([Request(prompt="2 + 2 =", seed=seed) for seed in range(9)])
        assert [next(outcomes)[1].text for _ in range(3)] == ["seed 0", "seed 1", "seed 2"]
        outcomes.close()
        assert engine.last_usage().answered == 3 and len(server.seen) <= 5
        assert ask(engine, 2)[0].text == "seed 2"


def test_every_misbehaviour_is_a_counted_failure_and_never_an_answer() -> None:
    kinds = list(MISBEHAVIOURS.values())

    def script(seen: Seen) -> Reply:
        return kinds[seen.seed][0](seen) if seen.seed < len(kinds) else answer(seen)

    with serving(script, concurrency=32) as (_, engine):
        *failures, good = ask(engine, *range(len(kinds) + 1))
        usage = engine.last_usage()
    assert good == Completion(text=f"seed {len(kinds)}", num_tokens=3, finish_reason="stop")
    for name, (_, reason, detail), failure in zip(MISBEHAVIOURS, kinds, failures, strict=True):
        assert isinstance(failure, Failure), name
        assert (failure.reason, detail in failure.detail) == (reason, True), (name, failure)
    assert usage.answered == 1 and usage.failed == Counter(reason for _, reason, _ in kinds)


@pytest.mark.parametrize("name", ["rate limit", "internal error", "a gateway's page", "cut", "stall"])
def test_what_may_pass_is_retried_by_the_client(name: str) -> None:
    def script(seen: Seen) -> Reply:
        return answer(seen) if seen.earlier else MISBEHAVIOURS[name][0](seen)

    with serving(script, max_retries=1) as (server, engine):
        assert ask(engine, 5) == [Completion(text="seed 5", num_tokens=3, finish_reason="stop")]
        assert len(server.seen) == 2


def test_retry_after_is_waited_for() -> None:
    def script(seen: Seen) -> Reply:
        return answer(seen) if seen.earlier else error(429, Retry_After="2")

    with serving(script, max_retries=1) as (server, engine):
        (found,) = ask(engine, 0)
        first, second = (seen.time_s for seen in server.seen)
    assert isinstance(found, Completion)
    assert 2.0 <= second - first < 4.0  # the client's own first wait is at most half a second


def test_a_wait_of_more_than_two_minutes_is_left_to_the_next_run() -> None:
    began = time.monotonic()
    with serving(MISBEHAVIOURS["a wait too long"][0], max_retries=3) as (server, engine):
        assert isinstance(ask(engine, 0)[0], Failure)
        assert len(server.seen) == 1 and time.monotonic() - began < 5


def test_so_many_requests_are_under_way_and_no_more_and_order_is_kept() -> None:
    def script(seen: Seen) -> Reply:
        return Reply(body=answer(seen).body, stall_s=0.02 * (seen.seed % 3))

    with serving(script, concurrency=4, timeout_s=30.0) as (server, engine):
        found = ask(engine, *range(24))
        assert [c.text for c in found] == [f"seed {seed}" for seed in range(24)]
        assert server.most_at_once == 4


def test_each_sample_is_a_request_with_its_own_seed_and_a_chat_goes_to_the_chat_endpoint() -> None:
    chat = get_prompt("answer").render("2 + 2?")
    options = {"temperature": 0.5, "top_p": 0.9, "top_k": 40, "max_new_tokens": 6}
    with serving() as (server, engine):
        ask(engine, 1, 2, prompt=chat, **options)
        ask(engine, 3, prompt="text", stop=("</answer>",))
        *chats, text = sorted(server.seen, key=lambda seen: seen.seed)
    sent = {"model": "tiny", "messages": chat, "temperature": 0.5, "top_p": 0.9, "top_k": 40, "max_tokens": 6}
    assert [seen.body for seen in chats] == [sent | {"seed": 1}, sent | {"seed": 2}]
    assert {seen.path for seen in chats} == {"/v1/chat/completions"}
    assert text.path == "/v1/completions"
    assert text.body == {
        "model": "tiny", "prompt": "text", "temperature": 0.7, "top_p": 1.0, "seed": 3, "max_tokens": 1024,
        "stop": ["</answer>"],
    }  # fmt: skip


def test_a_chats_begun_answer_is_refused_and_a_plain_texts_goes_on() -> None:
    with serving() as (server, engine):
        with pytest.raises(UserError, match="a server cannot continue a chat's answer; use --engine vllm"):
            ask(engine, 1, prompt=get_prompt("answer").render("2 + 2?", "It is"))
        assert not server.seen
        ask(engine, 1, prompt=get_prompt("steps").render("2 + 2?", "It is"))
    assert server.seen[0].body["prompt"].endswith("Solution:\nIt is")


def test_vllm_is_told_to_keep_stop_strings_and_to_leave_its_models_defaults_aside() -> None:
    with serving(models=lambda key: Reply(body={"data": [{"id": "tiny", "owned_by": "vllm"}]})) as (server, engine):
        ask(engine, 1)
    own = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "include_stop_str_in_output": True}
    assert server.seen[0].body.items() >= own.items()


def test_a_stop_string_is_put_back_where_the_server_says_which_it_was() -> None:
    def read(text: str, **choice: object) -> str:
        body = {"choices": [{"text": text, "finish_reason": "stop"} | choice], "usage": {"completion_tokens": 1}}
        outcome = read_response(body, ("</answer>", "\n\n"))
        assert isinstance(outcome.result, Completion)
        return outcome.result.text

    assert read("<answer>4", stop_reason="</answer>") == "<answer>4</answer>"
    assert read("<answer>4", matched_stop="</answer>") == "<answer>4</answer>"
    assert read("<answer>4</answer>", stop_reason="</answer>") == "<answer>4</answer>"
    assert read("four", stop_reason=None) == "four"
    assert read("four", matched_stop=151645) == "four"
    assert read("four") == "four"


def test_usage_is_what_the_server_says_of_failures_too() -> None:
    def script(seen: Seen) -> Reply:
        return answer(seen, finish_reason="content_filter" if seen.seed == 2 else "length")

    with serving(script) as (server, engine):
        ask(engine, 1, 2, 3)
        usage = engine.last_usage()
    assert usage.endpoint == server.base_url and usage.models == ["served-name"]
    assert (usage.prompt_tokens, usage.completion_tokens) == (21, 9)
    assert (usage.answered, usage.failed) == (2, {"unfinished": 1})


def test_keys_take_turns(keys: str) -> None:
    with serving(keys=keys) as (server, engine):
        ask(engine, *range(10))
    assert Counter(seen.key for seen in server.seen) == dict.fromkeys(SECRETS, 5)


@pytest.mark.parametrize("refusal", [error(401), error(402), error(429, code="insufficient_quota")])
def test_a_refused_or_spent_key_is_taken_out_and_its_requests_go_on(
    refusal: Reply, keys: str, caplog: pytest.LogCaptureFixture
) -> None:
    def script(seen: Seen) -> Reply:
        return refusal if seen.key == SECRETS[0] else answer(seen)

    with serving(script, keys=keys, concurrency=1, max_retries=3) as (server, engine):
        assert [c.text for c in ask(engine, *range(6))] == [f"seed {seed}" for seed in range(6)]
    assert Counter(seen.key for seen in server.seen) == {SECRETS[0]: 1, SECRETS[1]: 6}
    assert "the key of line 1 of keys.txt is taken out" in caplog.text
    assert not any(secret in caplog.text for secret in SECRETS)


def test_without_a_key_left_the_rest_fails_at_once(keys: str) -> None:
    with serving(lambda seen: error(401), keys=keys, concurrency=1) as (server, engine):
        found = ask(engine, *range(5))
        assert {(f.reason, f.general) for f in found} == {("no_key", True)}
        assert len(server.seen) == 2


def test_a_server_that_wants_a_key_says_so_at_the_start(keys: str) -> None:
    def models(key: str) -> Reply:
        return Reply(body={"data": []}) if key == SECRETS[1] else error(401, f"bad key {key}")

    with pytest.raises(UserError, match=r"asks for a key \(none was given\); set OPENAI_API_KEY"):
        serving(models=models).__enter__()
    with serving(models=models, keys=keys) as (server, engine):
        ask(engine, 1, 2)
        assert {seen.key for seen in server.seen} == {SECRETS[1]}


def test_a_key_in_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRETS[0])
    with serving() as (server, engine):
        ask(engine, 1)
    assert server.seen[0].key == SECRETS[0]


def test_a_key_that_a_server_repeats_is_cut_out_of_what_it_said(keys: str) -> None:
    kinds = [lambda seen: error(400, f"no {seen.key}"), lambda seen: error(200, f"Bearer {seen.key} is tired")]
    with serving(lambda seen: kinds[seen.seed](seen), keys=keys, concurrency=1) as (_, engine):
        said = [failure.detail for failure in ask(engine, 0, 1)]
    assert "[key of line" in said[0] and "[key of line" in said[1]
    assert not any(secret in detail for detail in said for secret in SECRETS)


def test_no_representation_and_no_traceback_holds_a_key(keys: str) -> None:
    with serving(keys=keys) as (_, engine):
        with pytest.raises(TypeError) as caught:
            ask(engine, 1, prompt=[{"role": "user", "content": object()}])  # fails inside the client
        told = [repr(engine), repr(engine._keys), repr(engine._clients), repr(caught.value)]
    told += traceback.format_exception(caught.value)
    frames = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    ours = [frame for frame in frames.stack if "tt_reasoning" in frame.filename]
    assert any("_call" in frame.name for frame in ours)
    told += [text for frame in ours for text in (frame.locals or {}).values()]
    assert not any(secret in text for text in told for secret in SECRETS)


def test_a_server_that_is_not_there_is_said_at_the_start() -> None:
    began = time.monotonic()
    with pytest.raises(UserError, match=r"no server answers at http://127.0.0.1:9/v1 \(ConnectError\)"):
        OpenAIEngine("tiny", base_url="http://127.0.0.1:9/v1", max_retries=0)
    assert time.monotonic() - began < 10


def test_a_vllm_server_without_the_model_is_said_at_the_start_and_others_may_know_more_than_they_list() -> None:
    def listing(owner: str) -> Callable[[str], Reply]:
        return lambda key: Reply(body={"data": [{"id": "other", "owned_by": owner}]})

    with pytest.raises(UserError, match="serves no model 'tiny'; it serves other"):
        serving(models=listing("vllm")).__enter__()
    for models in (listing("library"), lambda key: error(404), lambda key: Reply(body=b"<html>")):
        with serving(models=models) as (_, engine):
            assert isinstance(ask(engine, 1)[0], Completion)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_url": None}, "OpenAI asks for a key: set OPENAI_API_KEY"),
        ({"base_url": "localhost:8000"}, "--base-url localhost:8000 is not an http address"),
        ({"base_url": "http://localhost:port/v1"}, "--base-url is not a URL"),
        ({"base_url": "http://me:sk-first-3f9a1c@host/v1"}, "--base-url holds a name, password or query"),
        ({"base_url": "http://host/v1?key=sk-first-3f9a1c"}, "--base-url holds a name, password or query"),
        ({"keys": "sk-first-3f9a1c"}, "--keys names no readable text file"),
        ({"concurrency": 0}, "--concurrency 0: give 1 to 1000"),
        ({"timeout_s": 0.0}, "--timeout-s 0.0"),
        ({"max_retries": -1}, "--max-retries -1"),
        ({"dtype": "bf16"}, "unknown option of engine openai 'dtype'"),
    ],
)
def test_a_mistake_is_found_before_a_request_and_repeats_no_secret(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_engine("openai", "tiny", **{"base_url": "http://127.0.0.1:9/v1"} | options)
    assert message in str(caught.value)
    assert not any(secret in str(caught.value) for secret in SECRETS)


def test_a_file_of_keys_is_read_line_by_line_and_its_mistakes_are_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    path.write_text(f"{SECRETS[0]}\r\n\n  {SECRETS[1]}")
    assert [(key.name, key.text) for key in read_keys(path)] == [
        ("line 1 of keys.txt", SECRETS[0]),
        ("line 3 of keys.txt", SECRETS[1]),
    ]
    for text, message in [("\n", "holds no key"), ("sk-first-3f9a1c\nsk two", "line 2 of keys.txt is no key")]:
        path.write_text(text)
        with pytest.raises(UserError, match=message) as caught:
            read_keys(path)
        assert "sk" not in str(caught.value).replace(str(path), "")


def test_the_address_is_the_given_one_or_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_url(None) == "https://api.openai.com/v1"
    monkeypatch.setenv("OPENAI_BASE_URL", "http://elsewhere/v1/")
    assert check_url(None) == "http://elsewhere/v1"
    assert check_url("https://here/v1") == "https://here/v1"


# The tool, as a user runs it.


def command(server_url: str, out: Path, **options: object) -> list[str]:
    given = {
        "engine": "openai",
        "base_url": server_url,
        "model": "tiny",
        "dataset": "quickstart",
        "limit": 4,
        "num_samples": 3,
        "chunk_size": 2,
        "timeout_s": 1,
        "max_retries": 0,
        "out": out,
    } | options
    return [sys.executable, str(TOOL)] + [
        word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))
    ]


def run(server_url: str, out: Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(server_url, out, **options), capture_output=True, text=True, timeout=120, check=False
    )


def answers(folder: Path) -> list[Answer]:
    return list(read_records(folder / "answers.jsonl", Answer))


def seeds(found: list[Answer]) -> list[int]:
    return sorted(a.sampling.request_seed(a.problem_id, a.sample_index) for a in found)


def test_a_rerun_asks_for_what_failed_and_for_nothing_else(tmp_path: Path) -> None:
    """Every second request meets another misbehaviour; the second run meets a well-behaved server."""
    kinds = [MISBEHAVIOURS[name][0] for name in ("internal error", "cut", "stall", "half of a JSON", "no choices")]
    kinds += [MISBEHAVIOURS["an error with status 200"][0]]
    bad = True

    def script(seen: Seen) -> Reply:
        rank = len(server.seen)
        return kinds[rank // 2 - 1](seen) if bad and rank % 2 == 0 else answer(seen)

    with MisbehavingServer(script).running() as server:
        done = run(server.base_url, tmp_path / "run", concurrency=1)
        assert done.returncode == 2
        assert done.stdout.startswith("6 answers written: ")
        assert "error: 6 answers are missing: 2 malformed (" in done.stderr
        assert "Traceback" not in done.stderr
        first, asked = answers(tmp_path / "run"), [seen.seed for seen in server.seen]
        assert {a.text for a in first} == {f"seed {seed}" for seed in seeds(first)}
        assert len(asked) == len(set(asked)) == 12

        bad = False
        done = run(server.base_url, tmp_path / "run")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("6 answers written (6 were there)")
        again = [seen.seed for seen in server.seen[12:]]
        assert sorted(again) == sorted(set(asked) - set(seeds(first)))
        both = answers(tmp_path / "run")
        assert both[:6] == first and seeds(both) == sorted(asked)

        done = run("http://127.0.0.1:9/v1", tmp_path / "run")  # complete: no server is needed
        assert done.returncode == 0 and "already complete: 12 answers" in done.stdout
    usage = list(read_rows(tmp_path / "run" / "usage.jsonl"))
    assert sum(row["answered"] for row in usage) == 12 and sum(sum(row["failed"].values()) for row in usage) == 6
    assert (sum(row["prompt_tokens"] for row in usage), sum(row["completion_tokens"] for row in usage)) == (84, 36)
    assert usage[0]["endpoint"] == server.base_url


def test_a_run_killed_in_the_middle_asks_for_no_answer_twice_and_ends_with_the_same_file(tmp_path: Path) -> None:
    def script(seen: Seen) -> Reply:
        return Reply(body=answer(seen).body, stall_s=0.1)

    path = tmp_path / "killed" / "answers.jsonl"
    with MisbehavingServer(script).running() as server:
        arguments = {"limit": 6, "concurrency": 2, "timeout_s": 30}
        process = subprocess.Popen(command(server.base_url, path.parent, **arguments), stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while process.poll() is None and not (path.exists() and path.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept = answers(path.parent)
        assert 6 <= len(kept) < 18
        with path.open("ab") as file:
            file.write(b'{"id":"torn')
        before = len(server.seen)
        done = run(server.base_url, path.parent, **arguments)
        assert done.returncode == 0, done.stderr
        assert set(seeds(kept)).isdisjoint(seen.seed for seen in server.seen[before:])
        assert len(server.seen) - before == 18 - len(kept)
        assert run(server.base_url, tmp_path / "whole", **arguments).returncode == 0
    assert path.read_bytes() == (tmp_path / "whole" / "answers.jsonl").read_bytes()


def test_a_run_whose_server_is_gone_ends_and_counts_what_it_did_not_ask(tmp_path: Path) -> None:
    def script(seen: Seen) -> Reply:
        if len(server.seen) == 6:
            server.close_port()
        return Reply(body=answer(seen).body, headers={"Connection": "close"})

    with MisbehavingServer(script).running() as server:
        done = run(server.base_url, tmp_path / "run", limit=8, concurrency=1)
        assert done.returncode == 2
        assert "error: 18 answers are missing: 6 unreachable (ConnectError), 12 not asked; " in done.stderr
        assert len(answers(tmp_path / "run")) == 6


def test_no_key_is_in_anything_that_a_run_writes_or_says(
    tmp_path: Path, keys: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = [lambda seen: error(401, f"wrong key {seen.key}"), lambda seen: error(400, f"{seen.key} may not")]
    kinds += [lambda seen: error(200, seen.key), answer]

    def script(seen: Seen) -> Reply:
        return kinds[min(len(server.seen) - 1, 3)](seen)

    monkeypatch.setenv("OPENAI_LOG", "debug")
    with MisbehavingServer(script).running() as server:
        done = run(server.base_url, tmp_path / "run", keys=keys, concurrency=1)
        assert done.returncode == 2 and "10 answers written" in done.stdout
        monkeypatch.setenv("OPENAI_API_KEY", SECRETS[0])
        alone = run(server.base_url, tmp_path / "alone")
        assert alone.returncode == 0
        assert {seen.key for seen in server.seen} == set(SECRETS)
    assert "HTTP Request" in done.stderr and "the key of line 2 of keys.txt is taken out" in done.stderr
    written = [path.read_text() for path in tmp_path.glob("*/*") if path.is_file()]
    assert len(written) >= 8
    for text in [done.stdout, done.stderr, alone.stdout, alone.stderr, *written]:
        assert not any(secret in text for secret in SECRETS)
    assert not {"keys", "base_url"} & read_manifest(tmp_path / "run")["arguments"].keys()


# vLLM's own server on the CPU.


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that vLLM's CPU kernels take (heads of 32), with sampling defaults that would change everything."""
    folder = write_tiny_model(tmp_path_factory.mktemp("model") / "tiny", hidden_size=128)
    defaults = {"eos_token_id": 258, "repetition_penalty": 5.0, "top_k": 1, "temperature": 0.1}
    (folder / "generation_config.json").write_text(json.dumps(defaults))
    return folder


@pytest.fixture(scope="module")
def vllm_url(tiny_folder: Path) -> Iterator[str]:
    port = free_port()
    arguments = ["--model", tiny_folder, "--served-model-name", "tiny", "--host", "127.0.0.1", "--port", port]
    arguments += ["--dtype", "float32", "--max-model-len", 512, "--enforce-eager"]
    # As in engines/vllm.py: a seeded request whose prefill is split over two steps kills the engine on a CPU.
    arguments += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", 8192]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "GOMP_SPINCOUNT": "5000", "VLLM_LOGGING_LEVEL": "ERROR"}
    log = tiny_folder.parent / "server.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *map(str, arguments)],
            env=environment, stdout=file, stderr=file, start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 300
        while not is_up(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # its engine is a process of its own
        process.wait()


def is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return response.status == 200
    except OSError:
        return False


def test_vllms_server_gives_the_completions_of_its_model(vllm_url: str, tiny_folder: Path) -> None:
    """The native engine computes the same model; neither heeds the defaults in generation_config.json."""
    prompts = [get_prompt("answer").render("2 + 2?"), "one, two, three"]
    requests = [Request(prompt=p, temperature=0.0, max_new_tokens=12) for p in prompts]
    native = open_engine("tune", str(tiny_folder), dtype="fp32")
    engine = open_engine("openai", "tiny", base_url=vllm_url)
    found = engine.generate(requests)
    # vLLM leaves half a character at the end out, the native engine writes its replacement.
    assert [(c.text.rstrip("\ufffd"), c.num_tokens, c.finish_reason) for c in found] == [
        (c.text.rstrip("\ufffd"), c.num_tokens, c.finish_reason) for c in native.generate(requests)
    ]
    (whole,) = engine.generate([Request(prompt="abc", max_new_tokens=40, seed=3)])
    stop = whole.text[20:22]
    (stopped,) = engine.generate([Request(prompt="abc", max_new_tokens=40, seed=3, stop=(stop,))])
    assert stopped.finish_reason == "stop"
    assert stopped.text == whole.text[: whole.text.index(stop) + len(stop)]
    (failure,) = engine.generate([Request(prompt="word " * 200, max_new_tokens=8)])
    assert isinstance(failure, Failure) and failure.reason == "refused" and "512" in failure.detail
    for opened in (engine, native):
        opened.close()
    with pytest.raises(UserError, match="serves no model 'tyni'; it serves tiny"):
        OpenAIEngine("tyni", base_url=vllm_url)


def test_a_run_of_the_tool_on_vllms_server_is_repeatable_and_resumes(vllm_url: str, tmp_path: Path) -> None:
    options = {"temperature": 1.0, "max_new_tokens": 16, "limit": 3, "timeout_s": 120, "seed": 1}
    done = run(vllm_url, tmp_path / "run", **options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("9 answers written: ")
    found = answers(tmp_path / "run")
    assert len({a.text for a in found}) == 9 and all(0 < a.num_tokens <= 16 for a in found)
    assert {a.finish_reason for a in found} <= {"stop", "length"}
    path = tmp_path / "run" / "answers.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert run(vllm_url, tmp_path / "run", **options).returncode == 0
    assert path.read_bytes() == whole
    usage = list(read_rows(tmp_path / "run" / "usage.jsonl"))
    assert sum(row["completion_tokens"] for row in usage[:2]) == sum(a.num_tokens for a in found)
    assert {name for row in usage for name in row["models"]} == {"tiny"}
