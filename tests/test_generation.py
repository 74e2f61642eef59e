"""The loop behind generate_answers: whatever a kill leaves on disk, the run ends with the same file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tt_reasoning import generation
from tt_reasoning.engines.base import Completion, Failure, Request, Usage
from tt_reasoning.engines.scripted import ScriptedEngine
from tt_reasoning.errors import UserError
from tt_reasoning.generation import (
    Counts,
    Draw,
    Tally,
    check_complete,
    draw_answers,
    generate_answers,
    keep_problems,
    plan_draws,
)
from tt_reasoning.prompts import get_prompt
from tt_reasoning.store import open_run, read_records, read_rows
from tt_reasoning.types import Answer, Problem, Sampling

PROBLEMS = [Problem(source="demo", split="test", question=f"{n} + 1?", reference=str(n + 1)) for n in range(5)]
SAMPLING = Sampling(model="script", prompt="answer", max_new_tokens=6, seed=3)


class TogetherEngine:
    """Its completions depend on all that is asked in one call, as a GPU's rounding may."""

    def __init__(self) -> None:
        self.calls: list[list[Request]] = []
        self.closed = False

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        self.calls.append(list(requests))
        call = hashlib.sha256(repr(requests).encode()).hexdigest()[:8]
        return [Completion(text=f"{call} {r.seed}\n", num_tokens=3, finish_reason="stop") for r in requests]

    def close(self) -> None:
        self.closed = True


class StreamingTogetherEngine(TogetherEngine):
    """The same, and what is asked together decides the order in which completions are done."""

    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        done = list(enumerate(self.generate(requests)))
        yield from sorted(done, key=lambda pair: hashlib.sha256(repr((pair, requests)).encode()).digest())


class PoolOfEngines(TogetherEngine):
    """Two copies: chunks come back in pairs, the later one first; one request fails as ``failures`` says."""

    def __init__(self, failures: dict[int, Failure] | None = None) -> None:
        super().__init__()
        self.failures = failures or {}

    def generate_chunks(
        self, chunks: Iterable[Sequence[Request]]
    ) -> Iterator[tuple[int, list[Completion | Failure]]]:
        pair = []
        for index, chunk in enumerate(chunks):
            failure = self.failures.get(index)
            pair.append((index, [failure] * len(chunk) if failure else self.generate(chunk)))
            if len(pair) == 2:
                yield from reversed(pair)
                pair = []
        yield from pair


class NarrowEngine(TogetherEngine):
    """Refuses a question, and says so beforehand."""

    def __init__(self, question: str, general: bool = False) -> None:
        super().__init__()
        self.question, self.general = question, general

    def refuse(self, request: Request) -> Failure | None:
        if self.question not in request.prompt[-1]["content"]:
            return None
        return Failure(reason="too_long", detail="9 tokens", general=self.general)

    def generate(self, requests: Sequence[Request]) -> list[Completion | Failure]:
        taken = [request for request in requests if not self.refuse(request)]
        done = iter(super().generate(taken))
        return [self.refuse(request) or next(done) for request in requests]


class ServingEngine(TogetherEngine):
    """In front of a server: a request fails as ``fail`` says, by how many were asked before."""

    def __init__(self, fail: Callable[[int], Failure | None] = lambda rank: None) -> None:
        super().__init__()
        self.fail = fail

    def generate(self, requests: Sequence[Request]) -> list[Completion | Failure]:
        asked = sum(map(len, self.calls))
        self.calls.append(list(requests))
        done = [Completion(text=f"drew {r.seed}", num_tokens=3, finish_reason="stop") for r in requests]
        return [self.fail(asked + rank) or completion for rank, completion in enumerate(done)]

    def last_usage(self) -> Usage:
        return Usage(
            endpoint="here", models=["m"], answered=len(self.calls[-1]), failed={}, prompt_tokens=5,
            completion_tokens=3 * len(self.calls[-1]), seconds=0.1,
        )  # fmt: skip


def answer(folder: Path, num_problems: int = 5, num_samples: int = 3, engine: object = None) -> Counts:
    folder.mkdir(exist_ok=True)
    engine = engine or TogetherEngine()
    problems = PROBLEMS[:num_problems]
    return generate_answers(problems, SAMPLING, num_samples, lambda: engine, get_prompt("answer"), folder, 2)


@pytest.mark.parametrize("engine", [TogetherEngine, StreamingTogetherEngine])
def test_a_run_killed_at_any_byte_ends_with_the_same_file(tmp_path: Path, engine: type[TogetherEngine]) -> None:
    answer(tmp_path / "whole", engine=engine())
    whole = (tmp_path / "whole" / "answers.jsonl").read_bytes()
    assert len(whole.splitlines()) == 15
    for cut in range(0, len(whole), 41):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / "answers.jsonl").write_bytes(whole[:cut])
        counts = answer(folder, engine=engine())
        assert (folder / "answers.jsonl").read_bytes() == whole
        assert counts.resumed == whole[:cut].count(b"\n") and counts.resumed + counts.written == 15


def test_only_chunks_with_missing_answers_are_asked_and_each_whole(tmp_path: Path) -> None:
    answer(tmp_path)
    path = tmp_path / "answers.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:8]))
    engine = TogetherEngine()
    answer(tmp_path, engine=engine)
    assert [len(call) for call in engine.calls] == [6, 3]
    assert engine.closed


def test_a_fast_resume_asks_for_what_is_missing_alone(tmp_path: Path) -> None:
    answer(tmp_path)
    path = tmp_path / "answers.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:8]))
    engine, draws = TogetherEngine(), [Draw(sampling=SAMPLING, blocks=(3,))]
    draw_answers(PROBLEMS, draws, lambda: engine, get_prompt("answer"), tmp_path, 2, whole_chunks=False)
    assert [len(call) for call in engine.calls] == [4, 3]
    found = {(a.problem_id, a.sample_index) for a in read_records(path, Answer)}
    assert len(found) == len(path.read_bytes().splitlines()) == 15


def test_a_complete_run_starts_no_engine(tmp_path: Path) -> None:
    answer(tmp_path)

    def refuse() -> TogetherEngine:
        raise AssertionError("the engine was started")

    counts = generate_answers(PROBLEMS, SAMPLING, 3, refuse, get_prompt("answer"), tmp_path, 2)
    assert (counts.resumed, counts.written) == (15, 0)


def test_more_samples_and_problems_are_added_and_old_answers_stay(tmp_path: Path) -> None:
    answer(tmp_path, num_problems=3, num_samples=2)
    old = (tmp_path / "answers.jsonl").read_bytes()
    assert answer(tmp_path, num_problems=5, num_samples=3).written == 15 - 6
    assert (tmp_path / "answers.jsonl").read_bytes().startswith(old)
    asked = {(p.id, index) for p in PROBLEMS for index in range(3)}
    assert {(a.problem_id, a.sample_index) for a in read_records(tmp_path / "answers.jsonl", Answer)} == asked


def test_an_answer_records_how_it_was_drawn(tmp_path: Path) -> None:
    def reply(request: Request) -> str:
        return json.dumps([hash(request.prompt[-1]["content"]), request.seed, request.temperature])

    answer(tmp_path, engine=ScriptedEngine(reply))
    for found in read_records(tmp_path / "answers.jsonl", Answer):
        problem = next(p for p in PROBLEMS if p.id == found.problem_id)
        seed = SAMPLING.request_seed(problem.id, found.sample_index)
        asked = get_prompt(SAMPLING.prompt).render(problem.question)[-1]["content"]
        assert found.text == json.dumps([hash(asked), seed, 0.7])
        assert found.sampling == SAMPLING
        assert found.id == SAMPLING.answer_id(problem.id, found.sample_index)


def test_a_prompts_stop_strings_reach_the_engine(tmp_path: Path) -> None:
    engine = TogetherEngine()
    generate_answers(PROBLEMS, SAMPLING, 1, lambda: engine, get_prompt("ssa"), tmp_path)
    assert {request.stop for call in engine.calls for request in call} == {("</answer>",)}


def test_cut_answers_and_tokens_are_counted(tmp_path: Path) -> None:
    texts = ["one two three", "one two three four five six seven"]
    engine = ScriptedEngine(lambda request: texts["4 + 1?" in str(request.prompt)])
    counts = answer(tmp_path, engine=engine)
    assert (counts.cut, counts.tokens) == (3, 12 * 3 + 3 * 6)


def test_progress_is_told_at_the_start_and_with_every_chunk_on_disk(tmp_path: Path) -> None:
    seen = []

    def note(counts: Counts) -> None:
        path = tmp_path / "answers.jsonl"
        seen.append((counts.written, len(path.read_bytes().splitlines()) if path.exists() else 0))

    generate_answers(PROBLEMS, SAMPLING, 3, TogetherEngine, get_prompt("answer"), tmp_path, 2, note)
    assert seen == [(0, 0), (6, 6), (12, 12), (15, 15)]


def test_the_engine_is_closed_when_it_fails(tmp_path: Path) -> None:
    engine = TogetherEngine()
    engine.generate = lambda requests: [][0]
    with pytest.raises(IndexError):
        answer(tmp_path, engine=engine)
    assert engine.closed


def test_a_malformed_line_is_refused_with_file_and_line_and_nothing_is_written(tmp_path: Path) -> None:
    answer(tmp_path)
    path = tmp_path / "answers.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], b'{"id": 1}\n', *lines[4:9]]))
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"answers\.jsonl:4: not a Answer record"):
        answer(tmp_path)
    assert path.read_bytes() == before


def test_problems_are_added_behind_those_there_and_given_back_in_the_order_asked(tmp_path: Path) -> None:
    path = tmp_path / "problems.jsonl"
    assert list(keep_problems(tmp_path, PROBLEMS[1:3])) == PROBLEMS[1:3]
    with path.open("ab") as file:
        file.write(b'{"id":"torn')
    kept = keep_problems(tmp_path, iter(PROBLEMS))
    assert list(read_records(path, Problem)) == [PROBLEMS[i] for i in (1, 2, 0, 3, 4)]
    assert list(kept) == PROBLEMS and len(kept) == 5
    assert (kept[0], kept[-1], kept[1:4], kept[4:9]) == (PROBLEMS[0], PROBLEMS[4], PROBLEMS[1:4], PROBLEMS[4:])
    before = path.read_bytes()
    assert list(keep_problems(tmp_path, PROBLEMS[4:])) == PROBLEMS[4:]
    with pytest.raises(UserError, match=f"problem {PROBLEMS[3].id} is another one than now asked; name a new folder"):
        keep_problems(tmp_path, [replace(PROBLEMS[3], reference="5")])
    assert path.read_bytes() == before


def test_added_samples_and_temperatures_are_asked_without_what_is_there(tmp_path: Path) -> None:
    hot = replace(SAMPLING, temperature=1.0)

    def draw(engine: TogetherEngine, *asked: tuple[Sampling, int]) -> Counts:
        with open_run(tmp_path / "run", "generate_answers", {}) as folder:
            draws = plan_draws(folder, asked)
            return draw_answers(PROBLEMS, draws, lambda: engine, get_prompt("answer"), folder, 2)

    first, more, fewer = TogetherEngine(), TogetherEngine(), TogetherEngine()
    draw(first, (SAMPLING, 2))
    assert [len(call) for call in first.calls] == [4, 4, 2]
    counts = draw(more, (SAMPLING, 5), (hot, 1))
    assert [(len(call), call[0].temperature) for call in more.calls] == [
        (6, 0.7), (6, 0.7), (3, 0.7), (2, 1.0), (2, 1.0), (1, 1.0)
    ]  # fmt: skip
    assert (counts.resumed, counts.written) == (10, 20)
    assert counts.tallies == {"0.7": Tally(stop=25, tokens=75), "1.0": Tally(stop=5, tokens=15)}
    assert draw(fewer, (SAMPLING, 3)).missing == 0 and not fewer.calls

    path = tmp_path / "run" / "answers.jsonl"
    whole = path.read_bytes()
    for cut in range(0, len(whole), 501):  # killed in either run: the last command makes up for both
        path.write_bytes(whole[:cut])
        draw(TogetherEngine(), (SAMPLING, 5), (hot, 1))
        assert path.read_bytes() == whole


def test_a_draw_for_fewer_samples_than_before_asks_for_no_more(tmp_path: Path) -> None:
    with open_run(tmp_path, "generate_answers", {}) as folder:
        assert plan_draws(folder, [(SAMPLING, 8)])[0].blocks == (8,)
        assert plan_draws(folder, [(SAMPLING, 3)])[0].blocks == (3,)
        assert plan_draws(folder, [(SAMPLING, 12)])[0].blocks == (8, 12)
        assert plan_draws(folder, [(SAMPLING, 9)])[0].blocks == (8, 9)


def test_an_answer_is_on_disk_before_its_chunk_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "_FLUSH_S", 0.0)
    path, seen = tmp_path / "answers.jsonl", []

    def reply(request: Request) -> str:
        seen.append(path.read_bytes().count(b"\n") if path.exists() else 0)
        return "four"

    answer(tmp_path, engine=ScriptedEngine(reply))
    assert seen == list(range(15))


def test_a_pool_brings_what_one_engine_does_and_is_asked_again_for_what_failed(tmp_path: Path) -> None:
    failure = Failure(reason="timeout")
    pool = PoolOfEngines({1: failure})
    counts = answer(tmp_path / "pool", engine=pool)
    assert (counts.written, counts.missing, dict(counts.failed)) == (9, 6, {"timeout": 6}) and pool.closed
    answer(tmp_path / "pool", engine=PoolOfEngines())
    answer(tmp_path / "one")
    found = [sorted((tmp_path / name / "answers.jsonl").read_bytes().splitlines()) for name in ("pool", "one")]
    assert found[0] == found[1]

    gone = Failure(reason="unreachable", general=True)
    pool = PoolOfEngines({0: gone, 1: gone})
    assert answer(tmp_path / "gone", engine=pool).failed == {"unreachable": 6}
    assert pool.closed and not pool.calls  # the third chunk was never drawn


def test_what_an_engine_refuses_is_counted_and_its_neighbours_are_not_asked_again(tmp_path: Path) -> None:
    engine = NarrowEngine("3 + 1?")
    counts = answer(tmp_path, engine=engine)
    assert (counts.written, counts.missing, dict(counts.failed)) == (12, 3, {"too_long": 3})
    assert [len(call) for call in engine.calls] == [6, 3, 3]
    again = NarrowEngine("3 + 1?")
    counts = answer(tmp_path, engine=again)
    assert (counts.resumed, counts.missing, dict(counts.failed), again.calls) == (12, 3, {"too_long": 3}, [])
    with pytest.raises(UserError, match=r"^3 answers are missing: 3 too_long \(9 tokens\)"):
        check_complete(counts)

    path = tmp_path / "answers.jsonl"
    whole = path.read_bytes()
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:-4]))  # one of the refused one's chunk is lost too
    answer(tmp_path, engine=again)
    assert again.calls == engine.calls[1:] and path.read_bytes() == whole
    wide = NarrowEngine("nothing")
    assert answer(tmp_path, engine=wide).missing == 0 and [len(call) for call in wide.calls] == [6]


def test_a_failure_is_counted_and_not_written_and_a_rerun_asks_for_it_alone(tmp_path: Path) -> None:
    timeout = Failure(reason="timeout", detail="no end in 1 s")
    counts = answer(tmp_path, engine=ServingEngine(lambda rank: timeout if rank in (1, 7, 14) else None))
    assert (counts.written, counts.missing, dict(counts.failed)) == (12, 3, {"timeout": 3})
    with pytest.raises(UserError, match=r"^3 answers are missing: 3 timeout \(no end in 1 s\); the same command asks"):
        check_complete(counts)
    first = list(read_records(tmp_path / "answers.jsonl", Answer))
    asked = {SAMPLING.answer_id(p.id, index) for p in PROBLEMS for index in range(3)}
    lost = asked - {a.id for a in first}
    assert len(lost) == 3 and all(a.text.startswith("drew") for a in first)

    engine = ServingEngine()
    counts = answer(tmp_path, engine=engine)
    assert (counts.resumed, counts.written, counts.missing) == (12, 3, 0)
    check_complete(counts)
    assert [len(call) for call in engine.calls] == [1, 1, 1]
    found = list(read_records(tmp_path / "answers.jsonl", Answer))
    assert found[:12] == first and {a.id for a in found[12:]} == lost


def test_a_failure_in_a_call_that_is_shared_is_asked_again_with_its_whole_chunk(tmp_path: Path) -> None:
    engine = TogetherEngine()
    answer(tmp_path / "whole", engine=engine)
    lost = TogetherEngine()
    lost.generate = lambda requests: [Failure(reason="timeout"), *TogetherEngine.generate(lost, requests)[1:]]
    assert answer(tmp_path / "run", engine=lost).missing == 3
    again = TogetherEngine()
    assert answer(tmp_path / "run", engine=again).missing == 0
    assert again.calls == engine.calls
    runs = [set(read_records(tmp_path / name / "answers.jsonl", Answer)) for name in ("whole", "run")]
    assert runs[0] == runs[1]


def test_a_served_run_killed_at_any_byte_asks_for_what_is_missing_and_ends_with_the_same_file(tmp_path: Path) -> None:
    answer(tmp_path / "whole", engine=ServingEngine())
    whole = (tmp_path / "whole" / "answers.jsonl").read_bytes()
    for cut in range(0, len(whole), 97):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / "answers.jsonl").write_bytes(whole[:cut])
        engine = ServingEngine()
        counts = answer(folder, engine=engine)
        assert (folder / "answers.jsonl").read_bytes() == whole
        assert sum(map(len, engine.calls)) == counts.written == 15 - whole[:cut].count(b"\n")


def test_a_chunk_that_only_fails_as_any_request_would_ends_the_run(tmp_path: Path) -> None:
    gone = Failure(reason="unreachable", detail="ConnectError", general=True)
    engine = ServingEngine(lambda rank: gone if rank >= 4 else None)
    counts = answer(tmp_path, engine=engine)
    assert (counts.written, counts.missing, len(engine.calls)) == (4, 11, 2) and engine.closed
    with pytest.raises(UserError, match=r"11 answers are missing: 8 unreachable \(ConnectError\), 3 not asked; "):
        check_complete(counts)
    for failure in (Failure(reason="refused"), gone):  # a chunk that fails for its own reasons does not
        engine = ServingEngine(lambda rank, failure=failure: failure if rank < 2 else None)
        assert answer(tmp_path / failure.reason, engine=engine).missing == 2
        assert len(engine.calls) == 3


def test_the_usage_of_every_call_is_kept(tmp_path: Path) -> None:
    answer(tmp_path, engine=ServingEngine())
    rows = list(read_rows(tmp_path / "usage.jsonl"))
    assert [row["completion_tokens"] for row in rows] == [18, 18, 9]
    assert rows[0] == {
        "endpoint": "here", "models": ["m"], "answered": 6, "failed": {}, "prompt_tokens": 5,
        "completion_tokens": 18, "seconds": 0.1,
    }  # fmt: skip
    answer(tmp_path / "other")
    assert not (tmp_path / "other" / "usage.jsonl").exists()
