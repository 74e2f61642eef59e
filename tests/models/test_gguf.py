"""GGUF to Hugging Face: order of the rotary rows, names, quantized values, tokenizer, and the real model."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from tt_reasoning.errors import UserError
from tt_reasoning.models.gguf import convert_gguf

EMBED, HEADS, KV_HEADS, FFN = 64, 4, 2, 96
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
TOKENS = SPECIAL + sorted(pre_tokenizers.ByteLevel.alphabet()) + ["he", "Ġhe", "12"]
MERGES = ["h e", "Ġ he", "1 2"]


def llama_cpp_row(row: int, head_dim: int) -> int:
    """Where llama.cpp keeps a row of a query or key: i of a head's first half beside i of its second half."""
    head, inside = divmod(row, head_dim)
    half, i = divmod(inside, head_dim // 2)
    return head * head_dim + 2 * i + half


def llama_cpp_order(weight: np.ndarray, heads: int) -> np.ndarray:
    stored = np.empty_like(weight)
    for row, values in enumerate(weight):
        stored[llama_cpp_row(row, len(weight) // heads)] = values
    return stored


def write_tiny_gguf(
    path: Path, *, architecture: str = "llama", cut: str = "smollm", extra_tensor: str | None = None
) -> dict[str, np.ndarray]:
    """A two-layer model; returns its weights as Hugging Face orders and names them."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(EMBED)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(100000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(cut)
    writer.add_token_list(TOKENS)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(TOKENS) - 3))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)

    rng = np.random.default_rng(0)
    weights: dict[str, np.ndarray] = {}

    def add(name: str, hf_name: str, *shape: int, heads: int = 0, quantized: bool = False) -> None:
        weight = rng.integers(-8, 8, shape).astype(np.float32)  # exact in bfloat16
        weights[hf_name] = weight
        stored = llama_cpp_order(weight, heads) if heads else weight
        if quantized:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quantize(stored, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, stored)

    add("token_embd.weight", "model.embed_tokens.weight", len(TOKENS), EMBED)
    add("output_norm.weight", "model.norm.weight", EMBED)
    for n in range(2):
        blk, layer, key_rows = f"blk.{n}", f"model.layers.{n}", EMBED * KV_HEADS // HEADS
        add(f"{blk}.attn_norm.weight", f"{layer}.input_layernorm.weight", EMBED)
        add(f"{blk}.attn_q.weight", f"{layer}.self_attn.q_proj.weight", EMBED, EMBED, heads=HEADS)
        add(f"{blk}.attn_k.weight", f"{layer}.self_attn.k_proj.weight", key_rows, EMBED, heads=KV_HEADS)
        add(f"{blk}.attn_v.weight", f"{layer}.self_attn.v_proj.weight", key_rows, EMBED)
        add(f"{blk}.attn_output.weight", f"{layer}.self_attn.o_proj.weight", EMBED, EMBED)
        add(f"{blk}.ffn_norm.weight", f"{layer}.post_attention_layernorm.weight", EMBED)
        add(f"{blk}.ffn_gate.weight", f"{layer}.mlp.gate_proj.weight", FFN, EMBED)
        add(f"{blk}.ffn_up.weight", f"{layer}.mlp.up_proj.weight", FFN, EMBED)
        add(f"{blk}.ffn_down.weight", f"{layer}.mlp.down_proj.weight", EMBED, FFN, quantized=True)
    if extra_tensor:
        add(extra_tensor, extra_tensor, 4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def test_weights_come_out_named_ordered_and_expanded(tmp_path: Path) -> None:
    expected = write_tiny_gguf(tmp_path / "tiny.gguf")
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert found[name].dtype == torch.bfloat16
        # Q8_0 keeps 127 levels up to a block's largest value, 8: half a level is 0.03, bfloat16 rounds at most as much.
        tolerance = 0.07 if "down_proj" in name else 0.0
        np.testing.assert_allclose(found[name].float().numpy(), weight, rtol=0, atol=tolerance, err_msg=name)


def test_row_order_worked_by_hand() -> None:
    assert [llama_cpp_row(row, head_dim=4) for row in range(8)] == [0, 2, 1, 3, 4, 6, 5, 7]


def test_folder_loads_in_transformers_and_says_what_the_gguf_says(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "out")
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["rms_norm_eps"], config["rope_theta"], config["num_key_value_heads"]) == (1e-5, 100000.0, KV_HEADS)
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, 2)


def test_tokenizer_merges_splits_digits_and_keeps_control_tokens(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    # The merge "1 2" must not apply: digits stand alone.
    assert tokenizer.tokenize("he he12<|im_end|>") == ["he", "Ġhe", "1", "2", "<|im_end|>"]
    text = " Größe 12€\n\tx"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.decode(tokenizer("he<|im_end|>")["input_ids"], skip_special_tokens=True) == "he"
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "he"}], tokenize=False)
    assert chat == "<|im_start|>he<|im_end|>"


def test_what_cannot_be_converted_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("not a model, but long enough for a header" * 9)
    write_tiny_gguf(tmp_path / "falcon.gguf", architecture="falcon")
    write_tiny_gguf(tmp_path / "cut.gguf", cut="llama-bpe")
    write_tiny_gguf(tmp_path / "tensor.gguf", extra_tensor="rope_freqs.weight")
    reasons = {
        "none": "cannot be read",
        "text": "cannot be read",
        "falcon": "'falcon'",
        "cut": "'llama-bpe'",
        "tensor": "rope_freqs",
    }
    for name, reason in reasons.items():
        with pytest.raises(UserError, match=reason):
            convert_gguf(tmp_path / f"{name}.gguf", tmp_path / "out")
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_the_real_model_answers_in_chat(smollm2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, max_new_tokens=16, do_sample=False)
    answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])
    assert "Paris" in answer and answer.endswith("<|im_end|>")
