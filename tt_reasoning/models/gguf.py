"""A GGUF file of a Llama model as a Hugging Face folder, so that torchtune, vLLM and transformers load it.

Quantized weights are expanded and stored in bfloat16. llama.cpp stores the rows of the query and key
weights in another order than Hugging Face (its rotary embedding turns neighbouring pairs, Hugging Face's
turns the two halves of a head), so they are put back.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tqdm import tqdm

from tt_reasoning.errors import UserError
from tt_reasoning.store import write_atomic, write_json

_TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert_gguf(source: str | Path, folder: str | Path) -> None:
    """Write the model of a GGUF file as a Hugging Face folder: config, bfloat16 weights, tokenizer, chat template.

    Example: ``convert_gguf("SmolLM2-135M-Instruct.Q4_1.gguf", "models/smollm2-135m")``

    Raises:
        UserError: no GGUF file, another architecture than Llama, or a tokenizer or tensor this cannot place.
    """
    try:
        reader = gguf.GGUFReader(source)
    except (OSError, ValueError) as error:
        raise UserError(f"{source} cannot be read as GGUF: {error}") from None
    fields = {name: field.contents() for name, field in reader.fields.items()}
    if fields.get("general.architecture") != "llama":
        raise UserError(f"{source} holds architecture {fields.get('general.architecture')!r}; only 'llama' is known")
    weights = dict(read_weights(reader, fields["llama.attention.head_count"], _num_kv_heads(fields)))

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    build_tokenizer(fields).save(str(folder / "tokenizer.json"))
    write_json(folder / "config.json", build_config(fields, tied="lm_head.weight" not in weights))
    write_json(folder / "tokenizer_config.json", _tokenizer_config(fields))
    write_json(folder / "generation_config.json", _special_ids(fields))
    if template := fields.get("tokenizer.chat_template"):
        write_atomic(folder / "chat_template.jinja", template)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def restore_rotary_order(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of a query or key weight from llama.cpp's order (pairs) to Hugging Face's (halves), head by head.

    Args:
        weight: [num_heads * head_dim, embed_dim].
        num_heads: the heads of this weight; for a key, the key-value heads.

    >>> restore_rotary_order(np.array([[0], [2], [1], [3]]), num_heads=1).ravel().tolist()
    [0, 1, 2, 3]
    """
    rows, columns = weight.shape
    return weight.reshape(num_heads, rows // num_heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def read_weights(reader: gguf.GGUFReader, num_heads: int, num_kv_heads: int) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of a Llama GGUF, expanded, under Hugging Face's names, in bfloat16."""
    for tensor in tqdm(reader.tensors, desc="converting", unit="tensor"):
        weight = gguf.dequantize(tensor.data, tensor.tensor_type)
        if ".attn_q." in tensor.name:
            weight = restore_rotary_order(weight, num_heads)
        elif ".attn_k." in tensor.name:
            weight = restore_rotary_order(weight, num_kv_heads)
        yield _hugging_face_name(tensor.name), torch.tensor(weight).to(torch.bfloat16)


def _hugging_face_name(name: str) -> str:
    """``blk.3.attn_q.weight`` → ``model.layers.3.self_attn.q_proj.weight``."""
    *block, part, kind = name.split(".")
    if part not in _TENSORS or kind != "weight" or (block and block[0] != "blk"):
        raise UserError(f"GGUF tensor {name!r} has no place in a Hugging Face Llama model")
    layer = f"model.layers.{block[1]}." if block else ""
    return f"{layer}{_TENSORS[part]}.weight"


def build_config(fields: dict[str, Any], *, tied: bool) -> dict[str, Any]:
    """The ``config.json`` of a Llama model; ``tied`` means that the embedding is the output layer too."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": _num_kv_heads(fields),
        "max_position_embeddings": fields["llama.context_length"],
        # GGUF holds float32: 9.999999747378752e-06 was written as 1e-5.
        "rms_norm_eps": float(f"{fields['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_theta": fields.get("llama.rope.freq_base", 10000.0),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        **_special_ids(fields),
    }


def build_tokenizer(fields: dict[str, Any]) -> Tokenizer:
    """SmolLM's byte-level BPE: digits stand alone, control tokens are special and never split."""
    kind = (fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre"))
    if kind != ("gpt2", "smollm"):
        raise UserError(f"GGUF tokenizer {kind} is unknown; only ('gpt2', 'smollm') is known")
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(BPE(vocab={token: id_ for id_, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = zip(tokens, fields["tokenizer.ggml.token_type"], strict=True)
    tokenizer.add_tokens([
        AddedToken(token, special=type_ == gguf.TokenType.CONTROL, normalized=False)
        for token, type_ in types
        if type_ in (gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED)
    ])
    return tokenizer


def _tokenizer_config(fields: dict[str, Any]) -> dict[str, Any]:
    tokens = fields["tokenizer.ggml.tokens"]
    special = {name.replace("_id", ""): tokens[id_] for name, id_ in _special_ids(fields).items()}
    if (unknown := fields.get("tokenizer.ggml.unknown_token_id")) is not None:
        special["unk_token"] = tokens[unknown]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": fields["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        **special,
    }


def _special_ids(fields: dict[str, Any]) -> dict[str, int]:
    """The ids that a GGUF names, as Hugging Face names them: bos, eos, pad."""
    names = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "padding_token_id": "pad_token_id"}
    found = {name: fields.get(f"tokenizer.ggml.{key}") for key, name in names.items()}
    return {name: id_ for name, id_ in found.items() if id_ is not None}


def _num_kv_heads(fields: dict[str, Any]) -> int:
    return fields.get("llama.attention.head_count_kv", fields["llama.attention.head_count"])
