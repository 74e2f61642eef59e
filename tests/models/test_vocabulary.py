"""More special tokens: old tokens keep ids and logits, new rows are the mean, rows to spare are used, twice is once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import write_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from tt_reasoning.errors import UserError
from tt_reasoning.models import ChatTokenizer, build_from_hf
from tt_reasoning.models.vocabulary import add_tokens
from tt_reasoning.models.weights import check_shapes, load_weights

TOKENS = ["<END_STEP>", "<POS_STEP>", "<NEG_STEP>"]
KNOWN = 259  # 256 bytes and three special tokens
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def write_model(folder: Path, *, rows: int = KNOWN, tied: bool = True, model_type: str = "llama") -> Path:
    """A tiny model with so many rows, with a head of its own unless tied, in two files then."""
    write_tiny_model(folder, model_type=model_type)
    weights = load_file(folder / "model.safetensors")
    weights[EMBEDDING] = weights[EMBEDDING][:rows].clone()
    config = json.loads((folder / "config.json").read_text()) | {"vocab_size": rows, "tie_word_embeddings": tied}
    (folder / "config.json").write_text(json.dumps(config))
    if not tied:
        (folder / "model.safetensors").unlink()
        head = torch.randn(weights[EMBEDDING].shape, generator=torch.Generator().manual_seed(1))
        parts = {"model-00001-of-00002.safetensors": weights, "model-00002-of-00002.safetensors": {HEAD: head}}
        for name, part in parts.items():
            save_file(part, folder / name, metadata={"format": "pt"})
        index = {name: file for file, part in parts.items() for name in part}
        size = sum(tensor.nbytes for part in parts.values() for tensor in part.values())
        whole = {"metadata": {"total_size": size}, "weight_map": index}
        (folder / "model.safetensors.index.json").write_text(json.dumps(whole))
    else:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def logits_of(folder: Path) -> torch.Tensor:
    """The logits behind each of 40 bytes, by transformers: shape [40, V]."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.arange(60, 100).unsqueeze(0)).logits[0]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_old_tokens_keep_their_logits_and_a_new_one_is_no_likelier_than_the_average(
    tmp_path: Path, model_type: str, tied: bool
) -> None:
    folder = write_model(tmp_path / "m", tied=tied, model_type=model_type)
    before = logits_of(folder)
    assert add_tokens(folder, TOKENS) == {"<END_STEP>": 259, "<POS_STEP>": 260, "<NEG_STEP>": 261}
    after = logits_of(folder)
    assert before.shape == (40, 259) and after.shape == (40, 262)
    torch.testing.assert_close(after[:, :259], before, atol=1e-5, rtol=0)
    torch.testing.assert_close(after[:, 259:], before.mean(1, keepdim=True).expand(-1, 3), atol=1e-4, rtol=0)
    assert (after.softmax(1)[:, 259:] <= 1 / 259).all()


def test_every_reader_sees_the_grown_vocabulary(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", tied=False)
    add_tokens(folder, TOKENS)
    text = "2 + 2 = 4<END_STEP>\n"
    ours, theirs = ChatTokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert ours.encode(text)[-2:] == [259, ours.encode("\n")[0]] and theirs(text).input_ids == ours.encode(text)
    assert theirs.decode(ours.encode(text), skip_special_tokens=True) == ours.decode(ours.encode(text)) == "2 + 2 = 4\n"
    assert ours.eos_id == 258 and ours.special_tokens["<NEG_STEP>"] == 261
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == 262
    check_shapes(build_from_hf(str(folder)), load_weights(folder), folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for file in folder.glob("*.safetensors")
                                                  for tensor in load_file(file).values())  # fmt: skip


def test_rows_to_spare_are_used_and_nothing_grows(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "m")
    before = load_file(folder / "model.safetensors")
    assert add_tokens(folder, TOKENS) == {"<END_STEP>": 259, "<POS_STEP>": 260, "<NEG_STEP>": 261}
    after = load_file(folder / "model.safetensors")
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == 320
    mean = before[EMBEDDING][:KNOWN].mean(0)
    torch.testing.assert_close(after[EMBEDDING][259:262], mean.expand(3, -1))
    untouched = [*range(KNOWN), *range(262, 320)]
    assert torch.equal(after[EMBEDDING][untouched], before[EMBEDDING][untouched])
    assert all(torch.equal(after[name], before[name]) for name in before if name != EMBEDDING)


def test_the_mean_of_bf16_rows_is_taken_in_fp32_and_the_dtype_stays(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    weights = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    add_tokens(folder, TOKENS[:1])
    grown = load_file(folder / "model.safetensors")[EMBEDDING]
    assert grown.dtype == torch.bfloat16
    assert torch.equal(grown[KNOWN], weights[EMBEDDING].float().mean(0).bfloat16())


def test_tokens_that_are_there_are_left_and_more_may_come(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    add_tokens(folder, TOKENS[:2])
    before = contents(folder)
    assert add_tokens(folder, [*TOKENS[:2], "<|im_end|>"]) == {} and contents(folder) == before
    assert add_tokens(folder, TOKENS) == {"<NEG_STEP>": 261}
    assert ChatTokenizer(folder).encode("".join(TOKENS)) == [259, 260, 261]


def test_killed_before_the_tokenizer_is_written_the_next_call_ends_the_same(tmp_path: Path) -> None:
    whole, killed = write_model(tmp_path / "whole"), write_model(tmp_path / "killed")
    tokenizer = (killed / "tokenizer.json").read_bytes()
    for folder in (whole, killed):
        add_tokens(folder, TOKENS)
    (killed / "tokenizer.json").write_bytes(tokenizer)
    add_tokens(killed, TOKENS)
    assert contents(killed) == contents(whole)


def test_a_list_of_added_tokens_in_the_config_gets_the_new_ones_too(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    config["added_tokens_decoder"] = {"258": {"content": "<|im_end|>", "special": True}}
    file.write_text(json.dumps(config))
    add_tokens(folder, TOKENS[:1])
    listed = json.loads(file.read_text())["added_tokens_decoder"]
    assert list(listed) == ["258", "259"] and listed["259"]["content"] == "<END_STEP>" and listed["259"]["special"]
    assert AutoTokenizer.from_pretrained(folder)("<END_STEP>").input_ids == [259]


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("", "is not empty and has no blanks at its ends"),
        (" <A>", "is not empty and has no blanks at its ends"),
        ("a", "is an ordinary token of this vocabulary"),
    ],
)
def test_what_is_no_special_token_is_refused_and_nothing_changes(tmp_path: Path, token: str, message: str) -> None:
    folder = write_model(tmp_path / "m")
    before = contents(folder)
    with pytest.raises(UserError, match=message):
        add_tokens(folder, ["<END_STEP>", token])
    assert contents(folder) == before


def test_a_folder_without_weights_or_with_too_few_rows_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "few", rows=200)
    with pytest.raises(UserError, match="has 200 rows, fewer than the 259 tokens"):
        add_tokens(folder, TOKENS)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no \*.safetensors file holds model.embed_tokens.weight"):
        add_tokens(folder, TOKENS)
