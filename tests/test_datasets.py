"""Records become the prompts and labels that the recipes train on, and nothing is cut in silence."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import write_byte_tokenizer
from torchtune.data import CROSS_ENTROPY_IGNORE_IDX
from torchtune.datasets import PreferenceDataset

from tt_reasoning.answer_sets.tables import write_dataset, write_parquet
from tt_reasoning.datasets import pair_dataset, problem_dataset, sft_dataset, ssa_dataset, working_out_dataset
from tt_reasoning.errors import UserError
from tt_reasoning.models import ChatTokenizer
from tt_reasoning.prompts import answer_set_text, get_prompt
from tt_reasoning.store import read_records, write_records
from tt_reasoning.types import Answer, AnswerSet, Problem, Sampling
from tt_reasoning.worked_problems import trace_row

PROBLEM = Problem(source="s", split="train", question="What is 2 + 2?", reference="4")


@pytest.fixture
def tokenizer(tmp_path: Path) -> ChatTokenizer:
    write_byte_tokenizer(tmp_path)
    return ChatTokenizer(tmp_path)


def write_sets(folder: Path, num_sets: int) -> Path:
    sampling = Sampling(model="m", prompt="answer")
    texts = ["It is 4. The Answer is: 4", "5"]
    answers = tuple(
        Answer(id=str(i), problem_id=PROBLEM.id, sample_index=i, text=text, num_tokens=3, finish_reason="stop",
               sampling=sampling)
        for i, text in enumerate(texts)
    )  # fmt: skip
    folder.mkdir()
    sets = [AnswerSet(id=str(i), problem=PROBLEM, answers=answers[: 1 + i % 2]) for i in range(num_sets)]
    write_records(folder / "sets.jsonl", sets)
    return folder


def test_an_answer_set_becomes_the_aggregators_prompt(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    dataset = ssa_dataset(tokenizer, str(write_sets(tmp_path / "sets", 2)))
    text = tokenizer.decode(dataset[1].prompt_tokens, skip_special_tokens=False)
    assert answer_set_text(PROBLEM.question, ["It is 4. The Answer is: 4", "5"]) in text
    assert "Answer 1:\nIt is 4. #### 4\n\nAnswer 2:\n5" in text and text.endswith("Assistant: <think>")
    assert (dataset[1].reference, dataset[1].kind, dataset[1].problem_id) == ("4", "math", PROBLEM.id)


@pytest.mark.parametrize(("write", "kept"), [(write_parquet, "data"), (write_dataset, "dataset")])
def test_a_table_of_sets_trains_as_its_sets_do(tmp_path: Path, tokenizer: ChatTokenizer, write, kept: str) -> None:
    folder = write_sets(tmp_path / "sets", 3)
    expected = ssa_dataset(tokenizer, str(folder)).examples
    written = write(read_records(folder / "sets.jsonl", AnswerSet), folder)
    assert ssa_dataset(tokenizer, str(written)).examples == expected
    (folder / "sets.jsonl").unlink()  # as in a published folder
    assert ssa_dataset(tokenizer, str(folder)).examples == expected


def test_a_table_without_the_columns_is_named(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    pq.write_table(pa.table({"question": ["Q?"], "gold": ["4"]}), tmp_path / "other.parquet")
    with pytest.raises(UserError, match=r"other.parquet has no column 'answer', only \['question', 'gold'\]"):
        ssa_dataset(tokenizer, str(tmp_path / "other.parquet"))


def test_too_long_prompts_are_left_out_and_counted(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    folder = str(write_sets(tmp_path / "sets", 4))
    longest = max(len(example.prompt_tokens) for example in ssa_dataset(tokenizer, folder))
    dataset = ssa_dataset(tokenizer, folder, max_prompt_tokens=longest - 1)
    assert (len(dataset), dataset.num_too_long) == (2, 2)
    with pytest.raises(UserError, match=r"all of it \(4 prompts\) is above max_prompt_tokens=5"):
        ssa_dataset(tokenizer, folder, max_prompt_tokens=5)


def test_plain_problems_can_be_trained_on_too(tokenizer: ChatTokenizer) -> None:
    dataset = problem_dataset(tokenizer, "quickstart", limit=3, prompt="few_shot")
    assert len(dataset) == 3
    assert tokenizer.decode(dataset[0].prompt_tokens).endswith("\nAnswer:")


def sft_file(folder: Path, *rows: dict) -> str:
    path = folder / "sft.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) + "\n", encoding="utf-8")
    return str(path)


def test_sft_labels_are_the_response_and_its_end_alone(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    row = {"question": "Q?", "model_response": "<think>so\u2028it is</think> <answer>4</answer>"}
    (sample,) = sft_dataset(tokenizer, sft_file(tmp_path, row, row | {"is_correct": False}))
    prompt = tokenizer.encode_prompt(get_prompt("ssa").render("Q?"))
    assert sample["labels"][: len(prompt)] == [CROSS_ENTROPY_IGNORE_IDX] * len(prompt)
    assert sample["labels"][len(prompt) :] == sample["tokens"][len(prompt) :]
    # The prompt ends in the response's own <think>, which is there once.
    whole = tokenizer.decode(sample["tokens"], skip_special_tokens=False)
    assert whole.endswith("Assistant: <think>so\u2028it is</think> <answer>4</answer><|im_end|>")


def test_a_response_is_never_cut_but_left_out(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path)
    rows = [{"question": "Q?", "model_response": "4" * length} for length in (5, 5000)]
    source = sft_file(tmp_path, *rows)
    dataset = sft_dataset(ChatTokenizer(tmp_path, max_seq_len=1000), source)
    assert (len(dataset), dataset.num_too_long) == (1, 1)
    with pytest.raises(UserError, match="of 2 rows all are above max_seq_len"):
        sft_dataset(ChatTokenizer(tmp_path, max_seq_len=10), source)


@pytest.mark.parametrize(("line", "message"), [("{", ":2: not JSON"), ('{"question": "Q?"}', ":2: no text under")])
def test_a_malformed_sft_row_is_named(tmp_path: Path, tokenizer: ChatTokenizer, line: str, message: str) -> None:
    path = tmp_path / "sft.jsonl"
    path.write_text('{"question": "Q?", "model_response": "4"}\n' + line + "\n")
    with pytest.raises(UserError, match=message):
        sft_dataset(tokenizer, str(path))


@pytest.mark.parametrize("build", [ssa_dataset, sft_dataset])
def test_a_missing_source_is_a_users_mistake(tokenizer: ChatTokenizer, build: object) -> None:
    with pytest.raises(UserError, match="dataset.source=nowhere"):
        build(tokenizer, "nowhere")


def write_pairs(folder: Path, chosen: str = "It is 4.", rejected: str = "Is it 4? Wait. Yes, 4.") -> Path:
    turns = [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "2 + 2?"}]
    pair = {"conversations": turns, "chosen": {"from": "gpt", "value": chosen}}
    file = folder / "pairs.json"
    file.write_text(json.dumps([pair | {"rejected": {"from": "gpt", "value": text}} for text in (rejected, "4" * 500)]))
    return file


def test_a_pair_is_two_chats_of_which_the_last_turn_alone_is_labelled(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    dataset = pair_dataset(tokenizer, str(write_pairs(tmp_path)))
    assert isinstance(dataset, PreferenceDataset) and len(dataset) == 2
    shown = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n"
    for side, text in [("chosen", "It is 4."), ("rejected", "Is it 4? Wait. Yes, 4.")]:
        tokens, labels = dataset[0][f"{side}_input_ids"], dataset[0][f"{side}_labels"]
        assert tokenizer.decode(tokens, skip_special_tokens=False) == f"{shown}{text}<|im_end|>\n"
        learned = [label for label in labels if label != CROSS_ENTROPY_IGNORE_IDX]
        assert tokenizer.decode(learned, skip_special_tokens=False) == f"{text}<|im_end|>"
        assert [token for token, label in zip(tokens, labels, strict=True) if label == token] == learned


def test_a_pair_with_a_side_above_the_limit_is_left_out_and_counted(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path)
    dataset = pair_dataset(ChatTokenizer(tmp_path, max_seq_len=200), str(write_pairs(tmp_path)))
    assert (len(dataset), dataset.num_too_long) == (1, 1)
    with pytest.raises(UserError, match="of 2 pairs all are above max_seq_len"):
        pair_dataset(ChatTokenizer(tmp_path, max_seq_len=20), str(tmp_path / "pairs.json"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "not JSON"),
        ("{}", "not a list with pairs in it"),
        ("[]", "not a list with pairs in it"),
        ("[3]", "pair 1: no turns under 'conversations'"),
        ('[{"conversations": [{"from": "system", "value": "S"}]}]', "pair 1: 'conversations' does not end with a turn"),
        ('[{"conversations": [{"from": "me", "value": "S"}]}]', "pair 1: turn 1 of 'conversations' is no turn: wanted"),
        ('[{"conversations": [{"from": "human", "value": "Q"}], "chosen": "C"}]', "pair 1: 'chosen' is no turn"),
        (
            '[{"conversations": [{"from": "human", "value": "Q"}], "chosen": {"from": "gpt", "value": "C"}, '
            '"rejected": {"from": "human", "value": "R"}}]',
            "pair 1: 'rejected' is not the assistant's",
        ),
    ],
)
def test_a_file_that_holds_no_pairs_is_refused(
    tmp_path: Path, tokenizer: ChatTokenizer, text: str, message: str
) -> None:
    (tmp_path / "pairs.json").write_text(text)
    with pytest.raises(UserError, match=message):
        pair_dataset(tokenizer, str(tmp_path / "pairs.json"))
    with pytest.raises(UserError, match="no such file; name one of rewrite_responses"):
        pair_dataset(tokenizer, str(tmp_path / "none.json"))


def write_sums(folder: Path, count: int = 40) -> str:
    """Problems in ASDiv's form; every fourth has no formula, so no worked solution."""
    file = folder / "sums.jsonl"
    rows = (
        {"body": f"A nest has {n} eggs, another has 2.", "question": "How many?", "answer": f"{n + 2} (eggs)",
         "formula": f"{n}+2={n + 2}" if n % 4 else ""}
        for n in range(count)
    )  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_a_worked_problem_becomes_a_chat_in_the_studys_form(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    file = tmp_path / "gsm8k.jsonl"
    file.write_text(json.dumps({"question": "2 + 1?", "answer": "2+1=<<2+1=3>>3\n#### 3"}) + "\n")
    (sample,) = working_out_dataset(tokenizer, "gsm8k", data_files=str(file))
    shown = tokenizer.encode_prompt(get_prompt("working_out").render("2 + 1?"))
    assert sample["labels"] == [CROSS_ENTROPY_IGNORE_IDX] * len(shown) + sample["tokens"][len(shown) :]
    assert tokenizer.decode(sample["tokens"], skip_special_tokens=False) == (
        f"<|im_start|>system\n{get_prompt('working_out').system}<|im_end|>\n<|im_start|>user\n2 + 1?<|im_end|>\n"
        "<|im_start|>assistant\n<start_working_out>\n2+1=3\n<end_working_out>\n<SOLUTION>3</SOLUTION><|im_end|>"
    )
    (plain,) = working_out_dataset(tokenizer, "gsm8k", data_files=str(file), prompt="working_out_plain")
    assert "Problem: 2 + 1?\n\n<start_working_out>" in tokenizer.decode(plain["tokens"])


def test_sft_and_grpo_slices_of_a_size_are_the_same_problems(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    given = {"split": "validation", "data_files": write_sums(tmp_path)}
    for size in ({"num_samples": 9, "held_back": 6}, {"num_samples": 6, "from_end": True}, {"held_back": 6, "seed": 1}):
        learned = working_out_dataset(tokenizer, "asdiv", **given, **size).questions
        asked = problem_dataset(tokenizer, "asdiv", **given, **size, worked_only=True, prompt="working_out")
        assert [example.prompt_tokens for example in asked] == [
            tokenizer.encode_prompt(get_prompt("working_out").render(question)) for question in learned
        ]
    prep = working_out_dataset(tokenizer, "asdiv", **given, num_samples=6, from_end=True).questions
    small, large = (
        working_out_dataset(tokenizer, "asdiv", **given, num_samples=n, held_back=6).questions for n in (12, 24)
    )
    assert small == large[:12] and len(large) == 24 and not set(large) & set(prep)
    # Without worked_only the problems that nobody worked out are there as well.
    assert len(problem_dataset(tokenizer, "asdiv", **given)) == 40
    assert len(problem_dataset(tokenizer, "asdiv", **given, worked_only=True)) == 30
    with pytest.raises(UserError, match="num_samples=25 is above the 24 that held_back=6 leaves of the prob"):
        working_out_dataset(tokenizer, "asdiv", **given, num_samples=25, held_back=6)
    with pytest.raises(UserError, match=r"num_samples=41 is above the 40 of the problems of asdiv \(validation\)"):
        problem_dataset(tokenizer, "asdiv", **given, num_samples=41)
    with pytest.raises(UserError, match="limit=3 with dataset.worked_only"):
        problem_dataset(tokenizer, "asdiv", **given, limit=3, worked_only=True)


def test_traces_are_learned_in_place_of_the_problems_own_solutions(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    given = {"split": "validation", "data_files": write_sums(tmp_path), "num_samples": 5, "held_back": 6}
    own = working_out_dataset(tokenizer, "asdiv", **given)
    traces = tmp_path / "traces.jsonl"
    rows = [trace_row(question, f"Let me see: {i}.", f"{i}") for i, question in enumerate(own.questions)]
    traces.write_text("".join(json.dumps(row) + "\n" for row in reversed(rows)))
    dataset = working_out_dataset(tokenizer, "asdiv", **given, traces_file=str(traces))
    assert dataset.questions == own.questions
    for i, sample in enumerate(dataset):
        text = tokenizer.decode(sample["tokens"])
        assert text.endswith(f"\nLet me see: {i}.\n<end_working_out>\n<SOLUTION>{i}</SOLUTION>")
    # Without a source the file is the data, in an order of its own.
    alone = working_out_dataset(tokenizer, None, traces_file=str(traces), num_samples=3)
    assert len(alone) == 3 and set(alone.questions) < set(own.questions)
    with pytest.raises(UserError, match=r"num_samples=6 is above the 5 of the rows of .*traces.jsonl"):
        working_out_dataset(tokenizer, None, traces_file=str(traces), num_samples=6)
    with pytest.raises(UserError, match=r"traces.jsonl has no trace for 1 of the 6 problems of this slice"):
        working_out_dataset(tokenizer, "asdiv", **{**given, "num_samples": 6}, traces_file=str(traces))
    with pytest.raises(UserError, match="dataset.source is null and there is no dataset.traces_file"):
        working_out_dataset(tokenizer, None)
    with pytest.raises(UserError, match="svamp has no worked solutions .* known are those of: asdiv, gsm8k, mawps"):
        working_out_dataset(tokenizer, "svamp")
