"""More tokens for a model: special tokens in a Hugging Face folder's tokenizer, and rows for them in its weights.

A row that a new token needs, in the embedding and in an untied output head, is the mean of the rows of the tokens that
there were. So the logit of a new token is the mean of all logits, and as the exponential is convex, its probability is
at most the average one, 1/V, in any context: the model still says what it said (Hewitt 2021, "Initializing New Word
Embeddings for Pretrained Language Models"). Random rows have no such bound. Models whose embedding is larger than their
vocabulary (Qwen2.5: 151,936 rows for 151,665 tokens) have untrained rows to spare: these are used, set to the mean too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer

from tt_reasoning.errors import UserError
from tt_reasoning.models.weights import read_hf_config
from tt_reasoning.store import write_atomic, write_json

_BY_TOKEN = ("model.embed_tokens.weight", "lm_head.weight")  # tensors with a row a token, of Llama and Qwen2
_INDEX = "model.safetensors.index.json"


def add_tokens(folder: str | Path, tokens: Sequence[str]) -> dict[str, int]:
    """Add special tokens to a model's folder, in place; those that are special tokens already are left as they are.

    Weights first, the tokenizer last: killed in between, the next call does it again and ends the same.

    Args:
        folder: a Hugging Face folder with safetensors; ``vocab_size`` grows only if there are no rows to spare.
        tokens: texts that the tokenizer is to read as one token each, such as ``<END_STEP>``.

    Returns:
        The ids of those that were added.

    Raises:
        UserError: no such folder, no tokenizer or weights in it, a token that is empty or has blanks at its ends, or
            one that is an ordinary token of the vocabulary.
    """
    folder = Path(folder)
    config = read_hf_config(folder)
    if not (folder / "tokenizer.json").exists():
        raise UserError(f"{folder} holds no tokenizer.json: not a Hugging Face model folder")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    num_known = 1 + max(tokenizer.get_vocab().values())
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    new = [token for token in dict.fromkeys(tokens) if token not in special]
    for token in new:
        if not token or token != token.strip():
            raise UserError(f"token {token!r}: a special token is not empty and has no blanks at its ends")
        if (known := tokenizer.token_to_id(token)) is not None:
            raise UserError(f"token {token!r} is an ordinary token of this vocabulary ({known}); it needs no adding")
    if not new:
        return {}
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in new])
    added = {token: tokenizer.token_to_id(token) for token in new}
    _write_rows(folder, sorted(added.values()), num_known)
    num_rows = max(config["vocab_size"], 1 + max(added.values()))
    if num_rows != config["vocab_size"]:
        write_json(folder / "config.json", config | {"vocab_size": num_rows})
    _name_in_config(folder / "tokenizer_config.json", added)
    write_atomic(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    return added


def grow_rows(rows: torch.Tensor, new: Sequence[int], num_known: int) -> torch.Tensor:
    """Rows of tokens with those of ``new`` tokens set to the mean of the first ``num_known``, in the dtype they have.

    Args:
        rows: shape [V, D].
        new: the rows to set; beyond V, rows are added up to the last of them.

    >>> grow_rows(torch.tensor([[1.0], [3.0], [9.0]]), [2, 3], num_known=2)
    tensor([[1.],
            [3.],
            [2.],
            [2.]])
    """
    grown = torch.cat([rows, rows.new_zeros(max(0, 1 + max(new) - len(rows)), rows.shape[1])])
    grown[list(new)] = rows[:num_known].mean(dim=0, dtype=torch.float32).to(rows.dtype)
    return grown


def _write_rows(folder: Path, new: Sequence[int], num_known: int) -> None:
    """Set the new tokens' rows in every file that holds rows by token; each file is replaced whole."""
    found: list[str] = []
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            names = list(tensors.keys())
            if not set(names).intersection(_BY_TOKEN):
                continue
            metadata = tensors.metadata()
            weights = {name: tensors.get_tensor(name) for name in names}
        for name in set(names).intersection(_BY_TOKEN):
            if len(weights[name]) < num_known:
                raise UserError(
                    f"{file}: {name} has {len(weights[name])} rows, fewer than the {num_known} tokens of the tokenizer"
                )
            weights[name] = grow_rows(weights[name], new, num_known)
            found.append(name)
        temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        save_file(weights, temporary, metadata=metadata or {"format": "pt"})
        os.replace(temporary, file)
    if _BY_TOKEN[0] not in found:
        raise UserError(f"{folder}: no *.safetensors file holds {_BY_TOKEN[0]}; Llama and Qwen2 models do")
    _count_bytes(folder)


def _count_bytes(folder: Path) -> None:
    """The index of several files says how many bytes all tensors have."""
    index = folder / _INDEX
    if not index.exists():
        return
    total = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:  # eight bytes say how long the header is; behind it are the tensors
            total += path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")
    content = json.loads(index.read_text(encoding="utf-8"))
    content.setdefault("metadata", {})["total_size"] = total
    write_json(index, content)


def _name_in_config(path: Path, added: dict[str, int]) -> None:
    """Where tokenizer_config.json lists the added tokens, as transformers writes it, list the new ones too."""
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if "added_tokens_decoder" not in config:
        return
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    config["added_tokens_decoder"] |= {str(number): {"content": token, **flags} for token, number in added.items()}
    write_json(path, config)
