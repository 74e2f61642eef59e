"""What of a folder is published, what stays, what stops it; what the card says; nothing of this machine in either."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from publish_plans import content, front, mistake, paths, plan
from tiny import write_tiny_model

from tt_reasoning import store
from tt_reasoning.answer_sets import first_answers
from tt_reasoning.answer_sets.tables import set_row
from tt_reasoning.evaluation import Report, Result
from tt_reasoning.hub import HubFile
from tt_reasoning.publishing.cards import choose_license, is_own_card
from tt_reasoning.publishing.privacy import Secret, find_secrets, scrub_json, scrub_paths
from tt_reasoning.types import Answer, AnswerSet, Problem, Sampling, Verdict

# Put together here, so that this file holds none.
TOKENS = {
    "a Hugging Face token": "hf_" + "aB3" * 12,
    "an OpenAI key": "sk-" + "proj-" + "aB3_" * 8,
    "an Anthropic key": "sk-" + "ant-api03-" + "aB3_" * 8,
    "a GitHub token": "ghp_" + "aB3" * 12,
    "a GitLab token": "glpat-" + "aB3-" * 5,
    "an AWS key": "AKIA" + "ABCDEFGHIJKLMN12",
    "a Google key": "AIza" + "aB3-5" * 7,
    "a Slack token": "xoxb-" + "123456-abcdef",
    "a bearer token": "Bearer " + "aB3." * 8,
    "a JSON web token": "eyJ" + "hbGciOiJI" + "UzI1." + "eyJ" + "zdWIiOiIxMjM0." + "c2ln",
    "a private key": "-----BEGIN " + "RSA PRIVATE KEY-----",
    "a password in an address": "https://ada:" + "lovelace@example.org/x",
}
HARMLESS = (
    "the task-based risk-free disk-1234567890123456789 and hf_dataset, sk-learn, AKIA, ghp_short, xox, "
    "bearer of good news, https://example.org:8000/v1?x=a@b, eyJ, -----BEGIN CERTIFICATE-----, f(x)://a"
)


def make_answers(
    folder: Path, *, model: str = "models/tiny", sources: tuple[str, ...] = ("gsm8k",), text: str = "The Answer is: 4"
) -> tuple[list[Problem], list[Answer]]:
    sampling = Sampling(model=model, prompt="answer")
    problems = [
        Problem(source=source, split="test", question=f"{source}: what is 2 + {n}?", reference="4")
        for source in sources
        for n in range(3)
    ]
    answers = [
        Answer(
            id=sampling.answer_id(problem.id, i), problem_id=problem.id, sample_index=i, text=text, num_tokens=5,
            finish_reason="length" if i else "stop", sampling=sampling,
        )
        for problem in problems
        for i in range(2)
    ]  # fmt: skip
    reasons = ["match", "mismatch"]
    verdicts = [
        Verdict(answer_id=a.id, extracted="4", correct=not a.sample_index, reason=reasons[a.sample_index])
        for a in answers
    ]
    with store.open_run(folder, "generate_answers", {"model": model, "data_files": model + "/test.jsonl"}):
        store.write_records(folder / "problems.jsonl", problems)
        store.write_records(folder / "answers.jsonl", answers)
        store.write_records(folder / "verdicts.jsonl", verdicts)
    return problems, answers


def make_sets(folder: Path, **options: object) -> list[AnswerSet]:
    problems, answers = make_answers(folder.with_name("answers-of-sets"), **options)
    sets = [first_answers(p, [a for a in answers if a.problem_id == p.id], 2, 0) for p in problems]
    with store.open_run(folder, "concat_answers", {"answers": "answers/demo", "num_answers": 2}):
        store.write_records(folder / "sets.jsonl", sets)
        store.write_json(folder / "stats.json", {
            "num_sets": len(sets), "num_tokens": {"mean": 67.25, "max": 90}, "sets_by_num_tokens": {"66": 1, "90": 2}
        })  # fmt: skip
    return sets


def make_report(model: str) -> Report:
    result = Result(method="aggregator", k=4, value=0.625, low=0.5, high=0.75, num_problems=8, answer_tokens=20.0)
    return Report(
        answers="answers", model=model, dataset="gsm8k", split="test", num_problems=8, num_samples=4, most_samples=4,
        num_answers=(2, 4), aggregator="outputs/step_7", prompt="ssa", usc_model=None, results=(result,),
        differences=(), categories=(), counts={}, settings={"answers": f"{model}/../answers"}, versions={},
    )  # fmt: skip


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A plain folder of data, to put other things into."""
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"question": "2 + 2?", "answer": "4"}\n')
    return folder


@pytest.mark.parametrize("kind", TOKENS)
def test_a_secret_in_a_text_stops_it_and_is_named_not_shown(rows: Path, tmp_path: Path, kind: str) -> None:
    lines = ['{"text": "fine"}'] * 1999 + [json.dumps({"text": f"my key: {TOKENS[kind]}"})]
    (rows / "more.jsonl").write_text("\n".join(lines) + "\n")
    found = mistake(rows, tmp_path, license="mit")
    assert f"more.jsonl:2000 ({kind})" in found
    assert TOKENS[kind] not in found and TOKENS[kind][-8:] not in found


@pytest.mark.parametrize("name", ["config.json", "README.md", "notes.txt", "picture.png", "data/rows.csv"])
def test_secrets_are_looked_for_in_every_kind_of_file(rows: Path, tmp_path: Path, name: str) -> None:
    (rows / name).parent.mkdir(exist_ok=True)
    (rows / name).write_bytes(b'{"a": "\xff' + TOKENS["a GitHub token"].encode() + b'"}' if name == "picture.png" else
                              json.dumps({"a": TOKENS["a GitHub token"]}).encode())  # fmt: skip
    if name == "config.json":
        write_tiny_model(rows, hidden_size=32)
        (rows / "tokenizer_config.json").write_text(json.dumps({"a": TOKENS["a GitHub token"]}))
        name = "tokenizer_config.json"
    assert f"holds what looks like secrets: {name}:1 (a GitHub token); " in mistake(rows, tmp_path)


def test_secrets_are_looked_for_in_the_rows_of_parquet(rows: Path, tmp_path: Path) -> None:
    texts = ["fine"] * 700 + [f"curl -H {TOKENS['a bearer token']}"]
    table = pyarrow.table({"text": texts, "split": ["train"] * 701})
    pyarrow.parquet.write_table(table, rows / "train.parquet", compression="zstd")
    assert "train.parquet:701 (a bearer token)" in mistake(rows, tmp_path)


def test_secrets_are_looked_for_in_the_header_of_weights(tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    folder = write_tiny_model(tmp_path / "model")
    save_file({"x": np.zeros(3)}, folder / "extra.safetensors", metadata={"made by": TOKENS["a Hugging Face token"]})
    assert "extra.safetensors:1 (a Hugging Face token)" in mistake(folder, tmp_path)


def test_many_secrets_are_counted(rows: Path, tmp_path: Path) -> None:
    (rows / "more.jsonl").write_text((json.dumps({"text": TOKENS["a GitHub token"]}) + "\n") * 5)
    assert "more.jsonl:1 (a GitHub token), more.jsonl:2 (a GitHub token), more.jsonl:3 (a GitHub token) and 2 more; " \
        in mistake(rows, tmp_path)  # fmt: skip


def test_the_value_of_a_key_in_the_environment_is_found(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_SERVICE_KEY", "correct-horse-battery")
    (rows / "notes.md").write_text("one\ntwo correct-horse-battery\n")
    found = mistake(rows, tmp_path)
    assert "notes.md:2 (the value of MY_SERVICE_KEY)" in found and "horse" not in found


def test_what_only_begins_like_a_secret_is_none() -> None:
    assert list(find_secrets([HARMLESS.encode()])) == []


@given(
    st.lists(st.sampled_from([*TOKENS.values(), HARMLESS, "\n", "x", " " * 700, "é"]), max_size=30),
    st.integers(1, 4000),
)
def test_secrets_are_found_however_the_file_is_read(parts: list[str], length: int) -> None:
    data = " ".join(parts).encode()
    pieces = [data[i : i + length] for i in range(0, len(data), length)]
    if length > 200:  # a piece holds a token, as a block of a file does
        assert sorted(find_secrets(pieces)) == sorted(find_secrets([data]))
    assert len(list(find_secrets([data]))) == sum(part in TOKENS.values() for part in parts)


def test_a_line_number_counts_over_blocks() -> None:
    blocks = [b"a\n" * 3000, b"b\n" * 3000 + TOKENS["an AWS key"].encode(), b"\n" * 9]
    assert list(find_secrets(blocks)) == [Secret(6001, "an AWS key")]


@pytest.mark.parametrize("name", [".env", "prod.env", "deploy.pem", ".netrc", "deep/er/id_rsa", "credentials.json"])
def test_a_file_made_for_secrets_stops_it(rows: Path, tmp_path: Path, name: str) -> None:
    (rows / name).parent.mkdir(parents=True, exist_ok=True)
    (rows / name).write_text("x=1\n")
    assert mistake(rows, tmp_path) == f"{name}: a file of that name holds secrets; move it out of the folder"


@pytest.mark.parametrize("target", ["../outside.jsonl", "/etc/hostname", "../rows/../outside.jsonl", "../sub", ".."])
def test_a_link_out_of_the_folder_stops_it(rows: Path, tmp_path: Path, target: str) -> None:
    (tmp_path / "outside.jsonl").write_text("{}\n")
    (tmp_path / "sub").mkdir()
    (rows / "in.jsonl").symlink_to(target)
    assert mistake(rows, tmp_path).startswith("in.jsonl is a link that leads out of the folder; ")


def test_a_link_inside_the_folder_is_followed_and_others_stay(rows: Path, tmp_path: Path) -> None:
    (rows / "deep").mkdir()
    (rows / "deep" / "a.jsonl").write_text('{"a": 1}\n')
    (rows / ".hidden").mkdir()
    (rows / ".hidden" / "b.jsonl").write_text('{"b": 1}\n')
    (rows / "test.jsonl").symlink_to("deep/a.jsonl")
    (rows / "b.jsonl").symlink_to(".hidden/b.jsonl")
    (rows / "again").symlink_to("deep")
    (rows / "gone.jsonl").symlink_to("nowhere.jsonl")
    planned = plan(rows, tmp_path)
    assert paths(planned) == ["README.md", "deep/a.jsonl", "test.jsonl", "train.jsonl"]
    assert content(planned, "test.jsonl") == b'{"a": 1}\n'
    assert planned.left_out == {
        ".hidden/": "hidden", "again/": "a link to a folder", "b.jsonl": "a link to a hidden file",
        "gone.jsonl": "a link to nothing",
    }  # fmt: skip


def test_a_link_to_a_file_made_for_secrets_stops_it(rows: Path, tmp_path: Path) -> None:
    (rows / ".env").write_text("x=1\n")
    (rows / "settings.txt").symlink_to(".env")
    assert "holds secrets" in mistake(rows, tmp_path)


def test_what_cannot_be_read_or_runs_code_stays_and_is_said(rows: Path, tmp_path: Path) -> None:
    import pickle
    import zipfile

    import torch

    (rows / "logs").mkdir()
    (rows / "logs" / "vllm.txt").write_text("x")
    for name in (".lock", "a.log", "b.tmp", "c.jsonl~"):
        (rows / name).write_text("x")
    (rows / "innocent.txt").write_bytes(pickle.dumps({"a": 1}))
    (rows / "f.jsonl.gz").write_bytes(b"\x1f\x8b123")
    (rows / "sheet.csv").write_bytes(b"\x1f\x8b123")
    (rows / "g.dat").write_bytes(b"ab\0cd")
    torch.save({"a": torch.zeros(2)}, rows / "training_state.pt")
    torch.save({"a": torch.zeros(2)}, rows / "pytorch_model.bin")
    with zipfile.ZipFile(rows / "more.jsonl", "w") as archive:
        archive.writestr("a", "b")
    os.mkfifo(rows / "pipe")
    planned = plan(rows, tmp_path)
    assert paths(planned) == ["README.md", "train.jsonl"]
    packed, pickled = "compressed: it cannot be read for secrets", "a pickle: loading it can run code"
    assert planned.left_out == {
        "logs/": "logs", ".lock": "hidden", "a.log": "a log", "b.tmp": "temporary", "c.jsonl~": "temporary",
        "innocent.txt": pickled, "training_state.pt": pickled, "pytorch_model.bin": pickled,
        "f.jsonl.gz": packed, "sheet.csv": packed, "more.jsonl": packed,
        "g.dat": "binary, of a kind not known here", "pipe": "no plain file",
    }  # fmt: skip


def test_digests_and_sizes_are_those_of_the_files(rows: Path, tmp_path: Path) -> None:
    (file,) = (file for file in plan(rows, tmp_path).files if file.path == "train.jsonl")
    assert file == HubFile(  # by sha256sum and git hash-object
        path="train.jsonl", source=rows / "train.jsonl", size=38,
        sha256="b35b1154beb3c774831ccda091b9c45d92c7bc153a62f5c63a84793c55da030e",
        git_oid="ee2cf48491423afa5c30d1e5c411ffe91be7f9ce",
    )  # fmt: skip


def test_no_folder_of_this_machine_is_published(tmp_path: Path) -> None:
    """Neither in manifest, records, results nor card; what models and people wrote stays as it is."""
    home = str(tmp_path)
    folder = tmp_path / "answers"
    _, answers = make_answers(folder, model=f"{home}/models/tiny", text="In /usr/bin/python: The Answer is: 4")
    planned = plan(folder, tmp_path)
    for file in planned.files:
        assert home not in content(planned, file.path).decode(), file.path
    assert json.loads(content(planned, "manifest.json"))["arguments"] == {"model": "tiny", "data_files": "test.jsonl"}
    published = [json.loads(line) for line in content(planned, "answers.jsonl").splitlines()]
    expected = [replace(a, sampling=replace(a.sampling, model="tiny")) for a in answers]
    assert [store.load_record(Answer, row) for row in published] == expected
    assert "`tiny` sampled" in planned.card and "| model          | tiny   |" in planned.card
    assert home in (folder / "answers.jsonl").read_text()  # the folder itself stays as it is


def test_a_folder_that_names_no_path_is_published_byte_by_byte(tmp_path: Path) -> None:
    folder = tmp_path / "answers"
    make_answers(folder)
    planned = plan(folder, tmp_path)
    for name in ("answers.jsonl", "problems.jsonl", "verdicts.jsonl", "manifest.json"):
        assert content(planned, name) == (folder / name).read_bytes()


def test_configs_forget_where_a_model_was_loaded_from(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model")
    for name, key in (("config.json", "_name_or_path"), ("tokenizer_config.json", "name_or_path")):
        row = json.loads((folder / name).read_text()) | {key: "/home/ada/tiny", "note": "/a/b"}
        (folder / name).write_text(json.dumps(row))
    (folder / "adapter").mkdir()
    store.write_json(folder / "adapter" / "adapter_config.json", {"base_model_name_or_path": "/home/ada/tiny", "r": 4})
    vocabulary = (folder / "tokenizer.json").read_bytes()
    planned = plan(folder, tmp_path, base_model="ada/tiny", license="mit")
    assert json.loads(content(planned, "config.json"))["_name_or_path"] == "tiny"
    assert json.loads(content(planned, "tokenizer_config.json"))["name_or_path"] == "tiny"
    assert json.loads(content(planned, "tokenizer_config.json"))["note"] == "/a/b"  # anything may stand there
    adapter = b'{\n  "base_model_name_or_path": "ada/tiny",\n  "r": 4\n}\n'
    assert content(planned, "adapter/adapter_config.json") == adapter
    assert content(planned, "tokenizer.json") == vocabulary


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("/home/ada lovelace/my models/qwen 3b", "qwen 3b"),
        ("~/models/qwen", "qwen"),
        ("../../models/qwen/", "qwen"),
        ("..", "."),
        ("C:\\Users\\ada\\qwen", "qwen"),
        ("models/qwen", "models/qwen"),
        ("Qwen/Qwen2.5-3B", "Qwen/Qwen2.5-3B"),
        ("http://localhost:8000/v1/chat", "http://localhost:8000/v1/chat"),
        ("vllm at /opt/x/vllm, port 8000", "vllm at vllm, port 8000"),
        ("files: ~/a/b.txt and ../c/d.txt", "files: b.txt and d.txt"),
        ("in D:\\work\\x.txt", "in x.txt"),
        ("1/2 and/or 3/4/5", "1/2 and/or 3/4/5"),
        ("hub:user/name", "hub:user/name"),
    ],
)
def test_of_a_path_the_name_is_left(text: str, scrubbed: str) -> None:
    assert scrub_paths(text) == scrubbed
    assert json.loads(scrub_json(json.dumps({"a": [text]}))) == {"a": [scrubbed]}


@given(st.recursive(st.text() | st.integers() | st.none(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_scrubbed_json_is_json_of_the_same_shape(value: object) -> None:
    def scrubbed(part: object) -> object:
        if isinstance(part, dict):
            return [(scrub_paths(key), scrubbed(inner)) for key, inner in part.items()]
        if isinstance(part, list):
            return [scrubbed(inner) for inner in part]
        return scrub_paths(part) if isinstance(part, str) else part

    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=1)):
        assert json.loads(scrub_json(text), object_pairs_hook=list) == scrubbed(value)


def test_answer_sets_become_parquet_of_the_published_columns(tmp_path: Path) -> None:
    folder = tmp_path / "sets"
    sets = make_sets(folder)
    planned = plan(folder, tmp_path)
    path = "data/test-00000-of-00001.parquet"
    table = pyarrow.parquet.read_table(pyarrow.BufferReader(content(planned, path)))
    assert table.to_pylist() == [set_row(answer_set) for answer_set in sets]
    assert front(planned.card)["configs"] == [
        {"config_name": "default", "data_files": [{"split": "test", "path": path}]}
    ]
    for column in table.column_names:
        assert f"\n| {column} " in planned.card
    (folder / "dataset").mkdir()
    (folder / "dataset" / "dataset_info.json").write_text("{}")
    again = plan(folder, tmp_path)
    assert again.left_out["dataset/"] == "for load_from_disk; the same sets are published as Parquet"
    assert [(f.path, f.sha256) for f in again.files] == [(f.path, f.sha256) for f in planned.files]


def test_parquet_that_is_there_is_taken_and_has_to_fit(tmp_path: Path) -> None:
    folder = tmp_path / "sets"
    make_sets(folder)
    columns = {"question": ["a", "b", "c"], "answer": ["1", "2", "3"], "split": ["test"] * 3, "source": ["gsm8k"] * 3}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "sets.parquet")
    planned = plan(folder, tmp_path)
    assert paths(planned) == ["README.md", "manifest.json", "sets.jsonl", "sets.parquet", "stats.json"]
    assert front(planned.card)["configs"][0]["data_files"] == [{"split": "test", "path": "sets.parquet"}]
    (folder / "sets.jsonl").unlink()
    alone = plan(folder, tmp_path)
    assert alone.card.count("3 answer sets") == 1 and front(alone.card)["license"] == "mit"
    make_sets(tmp_path / "other", sources=("gsm8k", "math"))
    (folder / "sets.jsonl").write_bytes((tmp_path / "other" / "sets.jsonl").read_bytes())
    assert mistake(folder, tmp_path).endswith("sets.parquet has 3 rows, sets.jsonl 6; run concat_answers again")
    (folder / "sets.parquet").write_bytes((folder / "sets.parquet").read_bytes()[:-20])
    assert mistake(folder, tmp_path).startswith("sets.parquet: not a whole Parquet file: ")


def test_the_card_says_what_how_statistics_whose_and_limits(tmp_path: Path) -> None:
    make_sets(tmp_path / "sets", sources=("gsm8k", "arc"))
    results = tmp_path / "results"
    report = make_report(f"{tmp_path}/tiny")
    results.mkdir()
    store.write_json(results / "results.json", json.loads(store.dump_record(report)))
    planned = plan(tmp_path / "sets", tmp_path, results=[results])
    assert front(planned.card) == {
        "license": ["cc-by-sa-4.0", "mit"], "language": ["en"], "pretty_name": "demo",
        "tags": ["tt-reasoning", "answer-sets", "ssa"], "task_categories": ["text-generation"],
        "size_categories": ["n<1K"], "configs": front(planned.card)["configs"],
    }  # fmt: skip
    for line in (
        "6 answer sets, to train and evaluate an aggregator. A set is a question with 2 answers that `models/tiny`",
        'load_dataset("user/demo")',
        "By `concat_answers` of tt-reasoning, with:",
        '  "num_answers": 2',
        f"Versions: python {store.versions()['python']}, ",
        "| num tokens: mean | 67.25 |",
        "| results | tiny       | gsm8k/test |  4 | aggregator |       62.5 |  [50.0, 75.0] |        8 |",
        "| arc       | test  |        3 | CC-BY-SA-4.0 | allenai/ai2_arc |",
        "It holds test problems (arc/test, gsm8k/test): do not train on it",
    ):
        assert line in planned.card, line
    assert "sets by num tokens" not in planned.card  # a histogram
    assert str(tmp_path) not in planned.card and is_own_card(planned.card)


def test_a_checkpoint_is_published_without_its_training_state(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "outputs" / "step_7")
    store.write_json(folder / "aggregator.json", {"recipe": "grpo_ssa_distributed", "prompt": "ssa", "step": 7})
    (folder / "training_state.pt").write_bytes(b"PK\x03\x04")
    results = tmp_path / "results"
    report = make_report("tiny")
    results.mkdir()
    store.write_json(results / "results.json", json.loads(store.dump_record(report)))
    planned = plan(folder, tmp_path, base_model="Qwen/Qwen2.5-3B", results=[results])
    assert planned.repo_type == "model" and planned.license_asked is None
    assert planned.left_out == {"training_state.pt": "a pickle: loading it can run code"}
    fields = front(planned.card)
    assert fields["license_name"] == "qwen-research" and fields["base_model"] == "Qwen/Qwen2.5-3B"
    assert fields["library_name"] == "transformers" and "configs" not in fields
    assert fields["model-index"] == [{"name": "demo", "results": [{
        "task": {"type": "text-generation"}, "dataset": {"type": "openai/gsm8k", "name": "gsm8k", "split": "test"},
        "metrics": [{"type": "accuracy", "name": "accuracy, 4 answers read", "value": 62.5}],
    }]}]  # fmt: skip
    assert "An aggregator, trained from [Qwen/Qwen2.5-3B]" in planned.card
    assert "--aggregator user/demo --prompt ssa" in planned.card and "step 7" in planned.card
    assert mistake(tmp_path / "outputs", tmp_path) == (
        f"{tmp_path}/outputs holds several checkpoints; name one: --folder {tmp_path}/outputs/step_7"
    )


def test_a_damaged_or_partial_model_stops_it(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-10])
    assert mistake(folder, tmp_path).startswith(f"{folder}/model.safetensors: missing or damaged: ")
    (folder / "model.safetensors").write_bytes(weights)
    store.write_json(folder / "model.safetensors.index.json", {"weight_map": {"a": "model-00002-of-00002.safetensors"}})
    assert mistake(folder, tmp_path).startswith(f"{folder}/model-00002-of-00002.safetensors: missing or damaged: ")


@pytest.mark.parametrize(
    ("names", "line"),
    [
        ([], "rows holds nothing to publish: name a folder of generate_answers"),
        (["manifest.json"], "rows holds nothing to publish: name a folder of generate_answers"),
        (["config.json", "pytorch_model.bin"], "rows has a model's config but no *.safetensors: weights as pickles"),
    ],
)
def test_a_folder_with_nothing_to_publish_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows").mkdir()
    for name in names:
        (Path("rows") / name).write_text("{}")
    assert mistake(Path("rows"), tmp_path).startswith(line)


def test_what_is_not_finished_is_not_published(tmp_path: Path) -> None:
    make_sets(tmp_path / "sets")
    (tmp_path / "sets" / "stats.json").unlink()
    assert mistake(tmp_path / "sets", tmp_path).endswith("no stats.json; run concat_answers again to finish it")
    answers = tmp_path / "answers-of-sets"
    with (answers / "answers.jsonl").open("a") as file:
        file.write('{"id": "torn')
    assert mistake(answers, tmp_path).endswith("its last line is cut off; run the tool that writes it again")
    with store.lock(answers / store.LOCK):
        assert mistake(answers, tmp_path) == f"{answers} is in use by another process; wait until it is done"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("---\nlicense: [mit\n---\n", "README.md: its YAML cannot be read: "),
        ("---\nlicense: mit\n", "README.md: the YAML at its top has no end: a line with --- alone"),
        ("---\n- mit\n---\n", "README.md: its YAML should be fields with values, such as license: mit"),
        ("---\nconfigs:\n- config_name: a\n  data_files: test.csv\n---\n", "README.md: configs names test.csv, and no"),
        ("---\nconfigs:\n- config_name: a\n  data_files:\n  - split: a\n    path: [train.jsonl, x/*.csv]\n---\n",
         "README.md: configs names x/*.csv, and no such file is published"),
    ],
)  # fmt: skip
def test_a_readme_of_the_users_own_is_checked(rows: Path, tmp_path: Path, text: str, line: str) -> None:
    (rows / "README.md").write_text(text)
    assert mistake(rows, tmp_path).startswith(line)


def test_a_readme_of_the_users_own_is_used_as_it_is(rows: Path, tmp_path: Path) -> None:
    (rows / "README.md").write_text("# Mine\n")
    planned = plan(rows, tmp_path)
    assert content(planned, "README.md") == b"# Mine\n" and not planned.card_is_own and planned.license_asked is None
    assert planned.notes == (
        "README.md has no YAML at its top: the Hub will show no licence, and load_dataset guesses the files",
    )
    (rows / "README.md").write_text("---\nlicense: mit\nconfigs:\n- config_name: a\n  data_files: '*.jsonl'\n---\n")
    assert plan(rows, tmp_path).notes == ()


def test_a_home_folder_in_a_text_is_remarked(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    (rows / "notes.md").write_text("one\nsee /home/ada/x\nand /home/ada/y\n")
    assert plan(rows, tmp_path).notes == ("your home folder is named in notes.md:2, and 1 more times",)


def test_files_named_after_splits_are_one_table_and_others_one_each(rows: Path, tmp_path: Path) -> None:
    (rows / "test.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n')
    assert front(plan(rows, tmp_path).card)["configs"] == [{"config_name": "default", "data_files": [
        {"split": "test", "path": "test.jsonl"}, {"split": "train", "path": "train.jsonl"},
    ]}]  # fmt: skip
    (rows / "test.jsonl").rename(rows / "failures.jsonl")
    assert [
        (config["config_name"], config["data_files"][0]["path"])
        for config in front(plan(rows, tmp_path).card)["configs"]
    ] == [("failures", "failures.jsonl"), ("train", "train.jsonl")]


def test_a_manifest_of_a_folder_inside_is_cleaned_too(rows: Path, tmp_path: Path) -> None:
    with store.open_run(rows / "run", "evaluate", {"answers": "/home/ada/answers"}):
        store.write_records(rows / "run" / "b.jsonl", [{"a": 1}])
    assert json.loads(content(plan(rows, tmp_path), "run/manifest.json"))["arguments"] == {"answers": "answers"}


def test_an_evaluation_is_published_with_what_its_readers_wrote(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    _, answers = make_answers(tmp_path / "answers")
    with store.open_run(folder, "evaluate", {"answers": f"{tmp_path}/answers"}):
        store.write_json(folder / "results.json", json.loads(store.dump_record(make_report(f"{tmp_path}/tiny"))))
    with store.open_run(folder / "aggregator_k4", "evaluate", {"model": f"{tmp_path}/step_7"}):
        store.write_records(folder / "aggregator_k4" / "answers.jsonl", answers)
    planned = plan(folder, tmp_path)
    assert [(config["config_name"], config["data_files"]) for config in front(planned.card)["configs"]] == [
        ("aggregator_k4", [{"split": "test", "path": "aggregator_k4/answers.jsonl"}])
    ]
    assert "An evaluation of 2 and 4 answers a problem, sampled by `tiny`, on 8 problems" in planned.card
    for file in planned.files:
        assert str(tmp_path) not in content(planned, file.path).decode(), file.path


def test_licences_follow_the_benchmarks() -> None:
    assert choose_license(None, ["gsm8k", "olympiad", "gsm8k"]).fields == {"license": ["apache-2.0", "mit"]}
    assert choose_license(None, ["amc23", "gsm8k", "mine"]) == (
        {"license": "other"}, "the licence of amc23, mine is not known"
    )  # fmt: skip
    assert choose_license("cc-by-4.0", ["amc23"]) == ({"license": "cc-by-4.0"}, None)
    assert choose_license(None, [], "ada/tiny") == ({"license": "other"}, "the licence of ada/tiny is not known")
    assert choose_license(None, [], "Qwen/Qwen2.5-0.5B") == ({"license": "apache-2.0"}, None)


def test_an_answer_folder_without_verdicts_says_so(tmp_path: Path) -> None:
    make_answers(tmp_path / "answers")
    card = plan(tmp_path / "answers", tmp_path).card
    assert "- 50.0 % of the answers were cut at the token limit\n- verdicts: match 3, mismatch 3\n" in card
    (tmp_path / "answers" / "verdicts.jsonl").unlink()
    card = plan(tmp_path / "answers", tmp_path).card
    assert "6 answers have no verdict" in card
    assert [config["config_name"] for config in front(card)["configs"]] == ["answers", "problems"]
