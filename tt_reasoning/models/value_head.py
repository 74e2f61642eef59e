"""A head beside the output layer of a torchtune decoder: a verifier's value of every token, or one of each next token.

It is read from the same pass as the logits. It is no part of a Hugging Face model, so a checkpoint holds it in a folder
of its own, ``value_head/``, which no loader of the model looks into.

Shapes: D model width, A values of the head, K columns that are asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from tt_reasoning.errors import UserError
from tt_reasoning.store import write_json
from tt_reasoning.types import seed_of

StateDict = dict[str, Tensor]
NAME = "value_head"  # of the module in its model, and of the folder in a checkpoint
HeadInit = Literal["zero", "random", "reuse", "warm"]
_WEIGHTS, _CARD = "model.safetensors", "value_head.json"
_STD = 0.02  # of a random head


class ValueHead(nn.Module):
    """``gain * (w h) + bias`` of a hidden state, gain and bias learned (Cobbe et al., arXiv 2110.14168, appendix E).

    With ``num_columns`` there are that many such heads, one for every token of a vocabulary (the Q head of Q#, arXiv
    2502.20548): it says of a state what each token would lead to, and only the columns asked for are computed.

    There the product is the logit of a token that the vocabulary keeps free; here ``w`` is the head's own, so that no
    vocabulary needs one. It begins at zero unless asked otherwise (``first_head``): every value is then 0, whatever the
    seed, and the first gradients move ``w`` alone. A random ``w`` would first push the decoder along a random
    direction. The head is held and computed in fp32 whatever the model is in: near 1 a bf16 gain moves by 0.008 or not
    at all.

    Args:
        dim: width of the model.
        num_values: values a token (and column).
        num_columns: None for one head; else tokens of the vocabulary.
        meaning: what they say, for who reads the checkpoint, such as ``logit of: the answer is correct``.
        dropout: share of a hidden state's entries that training leaves out.

    >>> head = ValueHead(2, meaning="logit")
    >>> head.load_state_dict({"weight": torch.tensor([[1.0, 2.0]]), "gain": torch.tensor([3.0]),
    ...                       "bias": torch.tensor([0.5])})
    <All keys matched successfully>
    >>> head(torch.tensor([[1.0, 1.0]])).tolist()
    [[9.5]]
    """

    def __init__(
        self, dim: int, num_values: int = 1, *, meaning: str, dropout: float = 0.0, num_columns: int | None = None
    ) -> None:
        super().__init__()
        self.meaning, self.num_values, self.num_columns = meaning, num_values, num_columns
        self.dropout = nn.Dropout(dropout)
        rows = num_values * (num_columns or 1)  # those of a column follow one another
        self.weight = nn.Parameter(torch.zeros(rows, dim))
        self.gain = nn.Parameter(torch.ones(rows))
        self.bias = nn.Parameter(torch.zeros(rows))

    def forward(self, hidden: Tensor, columns: Tensor | None = None) -> Tensor:
        """The values of normed hidden states, fp32.

        Shapes: hidden [..., D] to [..., A]. With columns of [..., K] tokens a state, to [..., K, A]; of a head with
        columns None asks for all of them.
        """
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = self.dropout(hidden.float())
            if columns is None:
                values = self.gain * F.linear(hidden, self.weight) + self.bias
                return values if self.num_columns is None else values.unflatten(-1, (self.num_columns, -1))
            weight, gain, bias = (x.unflatten(0, (self.num_columns, -1)) for x in (self.weight, self.gain, self.bias))
            values = torch.einsum("...d,...kad->...ka", hidden, F.embedding(columns, weight.flatten(1)).unflatten(
                -1, (self.num_values, -1)))  # fmt: skip
            return F.embedding(columns, gain) * values + F.embedding(columns, bias)


BuildHead = Callable[[int], ValueHead]  # from the width of a model


def attach_head(model: nn.Module, build: BuildHead) -> None:
    """Give a decoder its ``value_head``; its own forward pass does not change."""
    model.value_head = build(model.tok_embeddings.embedding_dim)


def head_names(model: nn.Module) -> list[str]:
    """The names of the head's parameters in the model's state dict; none without a head."""
    head = getattr(model, NAME, None)
    return [] if head is None else [f"{NAME}.{name}" for name in head.state_dict()]


def first_head(
    model: nn.Module, weights: StateDict, checkpoint: str | Path, init: HeadInit | None = None, seed: int = 0
) -> StateDict:
    """The parameters that training begins with, by their names in the model, whole, fp32, on the CPU.

    The model may be without memory. Gain is 1 and bias 0, but for the checkpoint's own head.

    Args:
        weights: those of the checkpoint.
        init: ``zero``, ``random`` (normal, deviation 0.02, from the seed alone), ``reuse`` (a row of the output layer
            for each column, the same for all its values), ``warm`` (the checkpoint's own head). None takes the
            checkpoint's own where it has one, and else zero.

    Raises:
        UserError: ``warm`` without a head in the checkpoint, or with another one than the model's; ``reuse`` for a
            head that is not one of every token.
    """
    own = load_head(model, checkpoint) if init in ("warm", None) else {}
    if own:
        return own
    if init == "warm":
        raise UserError(
            f"config key value_head.init: warm, but {checkpoint} holds no {NAME}/; give the step_N of a run as "
            "checkpoint, or another initialisation"
        )
    head: ValueHead = model.value_head
    rows, dim = head.weight.shape
    values = {"weight": torch.zeros(rows, dim), "gain": torch.ones(rows), "bias": torch.zeros(rows)}
    if init == "random":
        values["weight"].normal_(std=_STD, generator=torch.Generator().manual_seed(seed_of(NAME, seed)))
    if init == "reuse":
        values["weight"] = _output_rows(head, weights)
    return {f"{NAME}.{name}": tensor for name, tensor in values.items()}


def describe_first(checkpoint: str | Path, init: HeadInit | None) -> str:
    """Where ``first_head`` takes the head from, in a few words."""
    held = (Path(checkpoint) / NAME).exists()
    if init == "warm" or (init is None and held):
        return f"that of {checkpoint}"
    begun = {"random": "at random", "reuse": "from the output layer"}.get(init or "zero", "at zero")
    return f"{begun} (that of {checkpoint} left aside)" if held else begun


def _output_rows(head: ValueHead, weights: StateDict) -> Tensor:
    """The output layer's weights, tied to the embedding or not, each row ``num_values`` times."""
    if head.num_columns is None:
        raise UserError(
            "config key value_head.init: reuse copies the output layer's row of every token, and a V head has one row "
            "for all; give zero or random, or value_head.type=Q"
        )
    rows_VD = weights.get("output.weight", weights["tok_embeddings.weight"]).float()
    return rows_VD.repeat_interleave(head.num_values, 0)


def freeze_output(model: nn.Module) -> None:
    """Leave the output layer untrained where no word is learned: it has no gradient, and needs no optimizer state.

    One that is tied to the embedding goes on being trained as that.
    """
    if isinstance(model.output, nn.Module):  # torchtune's tied layer is none
        model.output.requires_grad_(False)


def save_head(weights: StateDict, model: nn.Module, folder: Path) -> None:
    """Write ``value_head/`` into a checkpoint.

    Args:
        weights: the head's parameters by their names in the model, whole, on the CPU.
    """
    (folder / NAME).mkdir(parents=True, exist_ok=True)
    tensors = {name.removeprefix(f"{NAME}."): tensor.contiguous() for name, tensor in weights.items()}
    save_file(tensors, folder / NAME / _WEIGHTS)
    head: ValueHead = model.value_head
    columns = {} if head.num_columns is None else {"num_columns": head.num_columns}
    card = {"num_values": head.num_values, **columns, "meaning": head.meaning}
    write_json(folder / NAME / _CARD, card)


def load_head(model: nn.Module, checkpoint: str | Path) -> StateDict:
    """The head of a checkpoint by its names in the model; empty where the checkpoint has none.

    Raises:
        UserError: a damaged head, or one of another size or meaning than the model's.
    """
    if not (Path(checkpoint) / NAME).exists():
        return {}
    card, tensors = _read(checkpoint)
    head: ValueHead = model.value_head
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    if shapes != wanted or card.meaning != head.meaning:
        found, own = _size(card.num_values, card.num_columns), _size(head.num_values, head.num_columns)
        raise UserError(
            f"{checkpoint}/{NAME} is another head: {found}, '{card.meaning}', where this run trains {own}, "
            f"'{head.meaning}'; set the loss it was trained with, or remove that folder"
        )
    return {f"{NAME}.{name}": tensor.float() for name, tensor in tensors.items()}


def saved_head(checkpoint: str | Path) -> BuildHead:
    """What builds the head that a checkpoint holds, for ``build_model``.

    Raises:
        UserError: the checkpoint has none, or a damaged one.
    """
    card, _ = _read(checkpoint)
    return lambda dim: ValueHead(dim, card.num_values, meaning=card.meaning, num_columns=card.num_columns)


class _Card(NamedTuple):
    num_values: int
    num_columns: int | None
    meaning: str


def _size(num_values: int, num_columns: int | None) -> str:
    return f"{num_values} value(s)" + (f" for each of {num_columns} tokens" if num_columns else "")


def _read(checkpoint: str | Path) -> tuple[_Card, StateDict]:
    folder = Path(checkpoint) / NAME
    try:
        row = json.loads((folder / _CARD).read_text(encoding="utf-8"))
        columns = row.get("num_columns")
        card = _Card(int(row["num_values"]), None if columns is None else int(columns), str(row["meaning"]))
        return card, load_file(folder / _WEIGHTS)
    except FileNotFoundError as error:
        raise UserError(f"{checkpoint} holds no value head: {error.filename} is missing") from None
    except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise UserError(f"{folder}: not a value head, or a damaged one: {error}") from None
