"""tools/publish.py with the Hub's real client against a double of the Hub: sent, read back, broken off, gone on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hub_double import Blob, HubDouble
from huggingface_hub import constants
from loaded_tools import load_tool
from tiny import write_tiny_model

from tt_reasoning import store
from tt_reasoning.answer_sets import first_answers
from tt_reasoning.answer_sets.tables import set_row
from tt_reasoning.errors import UserError
from tt_reasoning.publishing.cards import is_own_card
from tt_reasoning.types import Answer, AnswerSet, Problem, Sampling, Verdict

TOOL = Path(__file__).parents[2] / "tools" / "publish.py"
tool = load_tool("publish")

Publish = Callable[..., str]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubDouble]:
    """The double, taken for the Hub by this process."""
    with HubDouble() as double:
        monkeypatch.setattr(constants, "ENDPOINT", double.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(
            constants._HF_DEFAULT_ENDPOINT, double.url
        ))  # fmt: skip
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", double.token)
        yield double


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client waits between its attempts; here it does not."""
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None))


def publish(folder: Path, repo: str = "user/demo", **options: object) -> str:
    return tool.main(tool.Arguments(folder=folder, repo=repo, **{"upload": True, **options}))


def mistake(folder: Path, repo: str = "user/demo", **options: object) -> str:
    with pytest.raises(UserError) as caught:
        publish(folder, repo, **options)
    (line,) = str(caught.value).splitlines()
    return line


def make_answers(folder: Path, model: str = "models/tiny", source: str = "gsm8k", num_problems: int = 6) -> Path:
    """A graded folder of answers: every other problem of the split test."""
    sampling = Sampling(model=model, prompt="answer", seed=1)
    problems = [
        Problem(source=source, split=("train", "test")[n % 2], question=f"What is {n} + {n}?", reference=str(2 * n))
        for n in range(num_problems)
    ]
    answers = [
        Answer(
            id=sampling.answer_id(problem.id, i), problem_id=problem.id, sample_index=i, num_tokens=5,
            text=f"So «{i}» é. The Answer is: {i}", finish_reason="stop", sampling=sampling,
        )
        for problem in problems
        for i in range(3)
    ]  # fmt: skip
    with store.open_run(folder, "generate_answers", {"model": model, "seed": 1}):
        store.write_records(folder / "problems.jsonl", problems)
        store.write_records(folder / "answers.jsonl", answers)
        store.write_records(
            folder / "verdicts.jsonl",
            [Verdict(answer_id=a.id, extracted=None, correct=False, reason="no_answer") for a in answers],
        )
    return folder


def make_sets(folder: Path, **options: object) -> Path:
    """A finished folder of answer sets, as concat_answers leaves it."""
    answers = make_answers(folder.with_name(folder.name + "-answers"), **options)
    problems = store.read_records(answers / "problems.jsonl", Problem)
    by_problem: dict[str, list[Answer]] = {}
    for answer in store.read_records(answers / "answers.jsonl", Answer):
        by_problem.setdefault(answer.problem_id, []).append(answer)
    with store.open_run(folder, "concat_answers", {"answers": str(answers), "num_answers": 3}):
        sets = [first_answers(problem, by_problem[problem.id], 3, 0) for problem in problems]
        store.write_records(folder / "sets.jsonl", sets)
        store.write_json(folder / "stats.json", {"num_sets": len(sets)})
    return folder


def make_checkpoint(folder: Path) -> Path:
    write_tiny_model(folder)
    store.write_json(folder / "aggregator.json", {"recipe": "grpo_ssa_distributed", "prompt": "ssa", "step": 3})
    (folder / "training_state.pt").write_bytes(b"PK\x03\x04 a pickle inside")
    return folder


def on_disk(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file but the lock with its bytes and when it was written."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def run_tool(hub: HubDouble, home: Path, *flags: object, **environment: str) -> subprocess.Popen[str]:
    (home / "tmp").mkdir(exist_ok=True)
    merged = os.environ | hub.environment(home / "hf") | {"PYTHONPATH": str(TOOL.parents[1])} | environment
    merged["TMPDIR"] = str(home / "tmp")
    command = [sys.executable, str(TOOL), *map(str, flags)]
    return subprocess.Popen(command, env=merged, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_dry_run_shows_every_file_and_asks_nobody(hub: HubDouble, tmp_path: Path, capsys) -> None:
    folder = make_sets(tmp_path / "sets")
    before = on_disk(folder)
    summary = publish(folder, upload=False)
    shown = capsys.readouterr().out
    for name in ("sets.jsonl", "stats.json"):
        assert f"{(folder / name).stat().st_size:,}  {name}\n" in shown
    assert "user/demo (dataset, private): answer sets" in shown
    assert "  data/train-00000-of-00001.parquet\n" in shown and "  .lock: hidden\n" in shown
    assert "license: mit\n" in shown and "# demo\n\n6 answer sets" in shown
    assert summary == "nothing was sent; to publish: the same command with --upload"
    assert hub.requests == [] and on_disk(folder) == before


READ_BACK = """
import json, sys
import datasets
from transformers import AutoModelForCausalLM, AutoTokenizer
datasets.disable_progress_bars()
from huggingface_hub import snapshot_download
from tt_reasoning.datasets.rl import ssa_dataset
from tt_reasoning.models.tokenizer import ChatTokenizer
sets = datasets.load_dataset("user/sets")
found = {"sets": {split: rows.to_list() for split, rows in sets.items()}}
for name in ("answers", "problems", "verdicts"):
    found[name] = datasets.load_dataset("user/answers", name, split="train").to_list()
tokenizer = AutoTokenizer.from_pretrained("user/step")
model = AutoModelForCausalLM.from_pretrained("user/step")
found["text"] = tokenizer.decode(tokenizer("2 + 2 = é")["input_ids"])
found["embedding"] = model.get_input_embeddings().weight[7].tolist()
chat = ChatTokenizer(snapshot_download("user/step"))
found["references"] = [example.reference for example in ssa_dataset(chat, "hub:user/sets").examples]
print(json.dumps(found))
"""


def test_what_is_published_loads_from_the_hub_as_it_was(hub: HubDouble, tmp_path: Path) -> None:
    """Private repositories, read by another process with a cache of its own: datasets, transformers."""
    from safetensors.numpy import load_file

    sets, answers, step = tmp_path / "sets", tmp_path / "answers", tmp_path / "step_3"
    publish(make_sets(sets), "user/sets")
    publish(make_answers(answers), "user/answers")
    publish(make_checkpoint(step), "user/step", license="apache-2.0", base_model="user/start")
    assert all(repo.private for repo in hub.repos.values())

    environment = os.environ | hub.environment(tmp_path / "hf") | {"PYTHONPATH": str(TOOL.parents[1])}
    read = subprocess.run([sys.executable, "-c", READ_BACK], env=environment, capture_output=True, text=True)
    assert read.returncode == 0, read.stderr
    found = json.loads(read.stdout)

    expected: dict[str, list[dict]] = {"train": [], "test": []}
    for answer_set in store.read_records(sets / "sets.jsonl", AnswerSet):
        expected[answer_set.problem.split].append(set_row(answer_set))
    assert found["sets"] == expected
    for name in ("answers", "problems", "verdicts"):
        assert found[name] == list(store.read_rows(answers / f"{name}.jsonl"))
    assert found["references"] == [row["answer"] for row in expected["train"]]  # what GRPO trains on
    assert found["text"] == "2 + 2 = é"
    weights = load_file(step / "model.safetensors")["model.embed_tokens.weight"]
    assert found["embedding"] == weights[7].tolist()
    assert "training_state.pt" not in hub.repos["model", "user/step"].files


def test_a_second_run_sends_what_changed_and_nothing_else(hub: HubDouble, tmp_path: Path) -> None:
    folder = make_sets(tmp_path / "sets")
    assert publish(folder).startswith("6 files sent, 0 were there; sizes and digests agree: ")
    hub.requests.clear()
    assert publish(folder).startswith("nothing to send, 6 were there; ")
    assert {method for method, _ in hub.requests} == {"GET"}
    store.write_json(folder / "stats.json", {"num_sets": 6, "seconds": 1})
    (folder / "plot.svg").write_text("<svg/>")
    assert publish(folder).startswith("3 files sent, 4 were there; ")  # the card shows the statistics
    assert hub.count("PUT", "/lfs/") == 0
    (folder / "plot.svg").unlink()
    assert "1 other files there stay" in publish(folder)


def test_large_files_go_in_parts_and_long_listings_in_pages(hub: HubDouble, tmp_path: Path) -> None:
    hub.part_bytes, hub.page_size = 10_000, 2
    step = make_checkpoint(tmp_path / "step_3")
    weights = (step / "model.safetensors").read_bytes()
    publish(step, license="mit")
    assert hub.count("PUT", "/lfs/part/") == -(-len(weights) // 10_000) > 1
    assert hub.repos["model", "user/demo"].files["model.safetensors"].content == weights
    assert publish(step, license="mit").startswith("nothing to send, ")


def test_nothing_is_sent_to_a_repository_of_the_other_visibility(hub: HubDouble, tmp_path: Path) -> None:
    folder = make_sets(tmp_path / "sets")
    publish(folder, "user/open", public=True)
    publish(folder, "user/closed")
    assert not hub.repos["dataset", "user/open"].private
    hub.requests.clear()
    assert mistake(folder, "user/open") == (
        "user/open is public, and this would publish to all: say --public, or name another --repo"
    )
    assert mistake(folder, "user/closed", public=True) == (
        "user/closed is private: leave out --public, or make it public in its settings"
    )
    hub.forced_private = False
    assert mistake(folder, "user/new").startswith("user/new was created, but the Hub made it public: nothing was sent")
    assert hub.count("PUT", "") == hub.count("POST", "/preupload/") == 0


@pytest.mark.parametrize(
    ("method", "part", "status", "line"),
    [
        ("GET", "/api/datasets/", 401, "the Hub does not take this token: 401 (as the test wants it); log in again"),
        ("POST", "/create", 403, "the Hub refuses user/demo: 403 (as the test wants it); the token needs write access"),
        ("GET", "/tree/", 404, "the Hub has no user/demo for this token: 404 (as the test wants it); check the name"),
        ("POST", "/create", 409, "user/demo was made or changed by somebody else meanwhile: 409 (as the test wants"),
        ("POST", "/commit/", 412, "user/demo was made or changed by somebody else meanwhile: 412 (as the test wants"),
        ("POST", "/create", 429, "the Hub asks for fewer requests: 429 (as the test wants it); run the same command"),
        ("POST", "/commit/", 500, "the Hub failed: 500 (as the test wants it); run the same command again to go on"),
        ("PUT", "/lfs/", 403, "the Hub refuses user/demo: 403 (as the test wants it); the token needs write access"),
        ("POST", "/batch", 413, "the Hub refuses user/demo: 413 (as the test wants it)"),
        ("POST", "/commit/", None, "the connection to http://127.0.0.1:"),
    ],
)
def test_what_goes_wrong_is_one_line_and_the_same_command_goes_on(
    hub: HubDouble, tmp_path: Path, capfd, method: str, part: str, status: int | None, line: str
) -> None:
    folder = make_sets(tmp_path / "sets")
    # Errors of the Hub repeat its code; a 401 without this message would mean that there is no such repository.
    if status is None:
        hub.cut(method, part)
    else:
        code = {"X_Error_Message": "Invalid credentials in Authorization header"} if status == 401 else {}
        hub.fail(method, part, status, Retry_After="7", **code)
    found = mistake(folder)
    assert found.replace("Invalid credentials in Authorization header", "as the test wants it").startswith(line)
    assert ("in 7 s" in found) == (status == 429)
    assert hub.token not in found + "".join(capfd.readouterr())
    assert len(getattr(hub.repos.get(("dataset", "user/demo")), "commits", [])) <= 1  # no part of it is to be seen
    assert "sizes and digests agree" in publish(folder)
    assert "sets.jsonl" in hub.repos["dataset", "user/demo"].files


def test_a_connection_cut_again_and_again_ends_in_one_line_and_the_rerun_sends_the_rest(
    hub: HubDouble, tmp_path: Path, no_waiting: None, capfd
) -> None:
    folder = make_sets(tmp_path / "sets")
    publish(folder, "user/other")  # so that its Parquet files are known to the Hub, as after a run cut short
    (folder / "plot.png").write_bytes(b"\x89PNG" + b"0" * 5000)
    hub.requests.clear()
    hub.cut("PUT", "/lfs/", times=100)
    assert mistake(folder).startswith(f"the connection to {hub.url} broke off: ")
    assert hub.count("PUT", "/lfs/") > 1  # the client tried again by itself
    assert "X-Signature" not in "".join(capfd.readouterr())  # in the addresses that it says it tried
    hub.faults.clear()
    hub.requests.clear()
    assert publish(folder).startswith("7 files sent, ")
    assert hub.count("PUT", "/lfs/") == 1


def test_a_failure_that_passes_is_not_even_noticed(hub: HubDouble, tmp_path: Path, no_waiting: None) -> None:
    hub.fail("POST", "/preupload/", 429, Retry_After="1")
    hub.fail("PUT", "/lfs/", 500)
    hub.cut("PUT", "/lfs/")
    assert publish(make_sets(tmp_path / "sets")).startswith("6 files sent, ")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_killed_in_the_middle_goes_on(hub: HubDouble, tmp_path: Path, how: signal.Signals) -> None:
    folder = make_sets(tmp_path / "sets")
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(b"\x89PNG" + name.encode() * 4000)
    stalled = hub.stall("PUT", "/lfs/")  # one of four large files never arrives
    flags = ("--folder", folder, "--repo", "user/demo", "--upload")
    first = run_tool(hub, tmp_path, *flags)
    assert stalled.reached.wait(60)
    deadline = time.monotonic() + 60
    while len(hub.objects) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    first.send_signal(how)
    _, err = first.communicate(timeout=30)  # though the Hub still holds one of its files
    if how == signal.SIGINT:
        assert first.returncode == 130
        assert err.splitlines()[-1] == "interrupted; run the same command again to go on"
        assert list((tmp_path / "tmp").iterdir()) == []
    assert [path for _, path in hub.requests if "/commit/" in path] == []  # half of it is never to be seen

    hub.requests.clear()
    second = run_tool(hub, tmp_path, *flags)
    out, err = second.communicate()
    assert second.returncode == 0, err
    assert out.splitlines()[-1].startswith("8 files sent, 0 were there; sizes and digests agree: ")
    assert hub.count("PUT", "/lfs/") == 1
    files = hub.repos["dataset", "user/demo"].files
    assert files["b.png"].content == (folder / "b.png").read_bytes()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"folder": Path("nowhere")}, "--folder nowhere: no such folder"),
        ({"repo": "a--b"}, "--repo a--b: no name of a repository: Cannot have -- or .. in repo_id"),
        ({"repo": "demo"}, "--repo demo: say whose it is too: --repo USER/demo"),
        ({"repo": "company/demo"}, "the Hub refuses company/demo: 403 (You don't have the rights to write"),
        ({"type": "model"}, "sets holds answer sets: publish it with --type dataset, not model"),
        ({"license": "MIT"}, "--license MIT: give an id of the Hub, such as mit, "),
        ({"base_model": "models/x/y"}, "--base-model models/x/y: give its name on the Hub, such as Qwen/"),
        ({"results": (Path("sets"),)}, "--results sets holds no results.json; tools/evaluate.py --out makes one"),
    ],
)
def test_a_wrong_option_is_one_line(
    hub: HubDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object], line: str
) -> None:
    make_sets(tmp_path / "sets")
    monkeypatch.chdir(tmp_path)
    assert mistake(**({"folder": Path("sets"), "repo": "user/demo"} | options)).startswith(line)
    assert hub.repos == {}


@pytest.mark.parametrize(
    ("token", "line"),
    [
        ("", "no token for the Hub: log in (hf auth login), or set HF_TOKEN, with write access"),
        ("hf_é", "the token for the Hub (HF_TOKEN, or the stored login) has letters that no token has"),
        ("hf_" + "reader" * 6, "the Hub refuses user/demo: 403 (You don't have the rights to write under this"),
    ],
)
def test_a_token_that_is_no_good_is_one_line(
    hub: HubDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str, line: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    assert mistake(make_sets(tmp_path / "sets")).startswith(line)


def test_a_stored_login_is_as_good_as_the_variable(
    hub: HubDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "no-token").write_text(hub.token)
    monkeypatch.delenv("HF_TOKEN")
    assert publish(make_sets(tmp_path / "sets")).startswith("6 files sent, ")


def test_without_a_hub_it_is_said_at_once(hub: HubDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_sets(tmp_path / "sets")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert mistake(folder).startswith("the connection to http://127.0.0.1:9 broke off: [Errno 111] ")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert mistake(folder) == "HF_HUB_OFFLINE is set: the Hub is not asked; unset it to upload"


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        ({"HF_TOKEN": "hf_" + "x" * 34}, "error: the Hub does not take this token: 401 (Invalid credentials in "),
        ({"HF_HUB_DISABLE_XET": "0"}, "error: the connection to http://127.0.0.1:"),
    ],
)
def test_the_program_ends_in_one_line_and_status_2(
    hub: HubDouble, tmp_path: Path, environment: dict[str, str], line: str
) -> None:
    flags = ("--folder", make_sets(tmp_path / "sets"), "--repo", "user/demo", "--upload")
    done = run_tool(hub, tmp_path, *flags, **environment)
    out, err = done.communicate()
    *before, last = err.splitlines()
    assert done.returncode == 2 and last.startswith(line), err
    assert [line.partition(" files, ")[0] for line in before] in ([], ["sending 6 of 6"])
    assert environment.get("HF_TOKEN", hub.token) not in out + err
    if "HF_HUB_DISABLE_XET" in environment:
        assert last.endswith("run the same command again to go on, with HF_HUB_DISABLE_XET=1 if this Hub has no Xet")


def test_a_card_edited_on_the_hub_stays(hub: HubDouble, tmp_path: Path) -> None:
    folder = make_sets(tmp_path / "sets")
    publish(folder)
    repo = hub.repos["dataset", "user/demo"]
    card = repo.files["README.md"].content.decode()
    assert is_own_card(card)
    edited = Blob(card.replace("# demo", "# Our demo").encode())
    repo.commit("edit the card", repo.files | {"README.md": edited})
    store.write_json(folder / "stats.json", {"num_sets": 7})
    assert "1 files sent, 4 were there; the README.md there was edited and stays" in publish(folder)
    assert repo.files["README.md"] == edited
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    publish(folder)
    assert repo.files["README.md"].content == b"---\nlicense: mit\n---\n# Mine\n"


def test_a_card_that_nobody_edited_is_renewed(hub: HubDouble, tmp_path: Path) -> None:
    folder = make_sets(tmp_path / "sets")
    publish(folder)
    store.write_json(folder / "stats.json", {"num_sets": 7})
    publish(folder)
    assert "|     7 |" in hub.repos["dataset", "user/demo"].files["README.md"].content.decode()


def test_what_the_hub_holds_afterwards_is_checked(hub: HubDouble, tmp_path: Path) -> None:
    hub.damaged = "stats.json"
    assert mistake(make_sets(tmp_path / "sets")).startswith("user/demo: stats.json has 14 bytes or others than were ")


def test_an_unknown_licence_is_asked_for_before_anything_is_sent(hub: HubDouble, tmp_path: Path) -> None:
    folder = make_sets(tmp_path / "sets", source="aime25")
    assert publish(folder, upload=False).endswith(
        "with --upload and --license ID, as the licence of aime25 is not known"
    )
    assert mistake(folder) == (
        "the licence of aime25 is not known; say one with --license, such as --license cc-by-4.0 or other"
    )
    assert hub.requests == []
    publish(folder, license="other")
    assert "license: other\n" in hub.repos["dataset", "user/demo"].files["README.md"].content.decode()


def test_a_licence_that_the_hub_does_not_know_is_one_line(hub: HubDouble, tmp_path: Path) -> None:
    folder = make_sets(tmp_path / "sets")
    (folder / "README.md").write_text("---\nlicense: MIT licence\n---\n# Mine\n")
    assert mistake(folder).startswith('the Hub refuses user/demo: 400 ("license" must be one of [apache-2.0, mit')
