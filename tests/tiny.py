"""Tiny worlds: a two-layer model, a byte tokenizer on disk, a Hugging Face folder of both."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torchtune.modules import TransformerDecoder

from tt_reasoning.models import build_from_hf
from tt_reasoning.models.weights import load_weights, save_weights

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM"}
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def write_byte_tokenizer(folder: Path, added: Sequence[str] = ()) -> None:
    """256 bytes, three special tokens and those added, as a Hugging Face tokenizer."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in added])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def write_tiny_model(
    folder: Path, *, seed: int = 0, hidden_size: int = 32, model_type: str = "llama", added: Sequence[str] = ()
) -> Path:
    """A Hugging Face folder with random weights: two layers, 4 heads over 2 key-value heads, 320 tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    write_byte_tokenizer(folder, added)
    config = {
        "architectures": [ARCHITECTURES[model_type]],
        "model_type": model_type,
        "vocab_size": 320,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_size": hidden_size,
        "intermediate_size": 64,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "torch_dtype": "float32",
        "bos_token_id": 257,
        "eos_token_id": 258,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 258}))
    save_weights(tiny_decoder(folder, seed=seed).state_dict(), folder, folder)
    return folder


def tiny_decoder(folder: Path, *, seed: int = 0) -> TransformerDecoder:
    """The decoder of ``folder/config.json`` with random weights of a useful size."""
    torch.manual_seed(seed)
    model = build_from_hf(str(folder))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def untie(folder: Path) -> Path:
    """Give a tiny model an output layer of its own: the embedding's negative, so that the two are told apart."""
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_weights(folder)
    save_weights({**weights, "output.weight": -weights["tok_embeddings.weight"]}, folder, folder)
    return folder
