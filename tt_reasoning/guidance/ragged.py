"""Keys and values of texts that come and go, each of its own length: for a server that adds requests as others end.

``decoding`` draws a batch from its beginning to its end. Here a batch is whatever texts are asked for: each call names
them whole, and what is held is brought in line. A text that went on by a token costs nothing until its newest token is
read; one that is new, or is not what it was, is read again; one that is not named any more is forgotten.

Shapes: M texts, T tokens of each in a pass (the newest and candidates behind it), K key heads, E the dimension of a
head, L tokens of the longest text but for the newest, D width of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torchtune.modules import MultiHeadAttention, TransformerDecoder

from tt_reasoning.attention import accept_layer_masks
from tt_reasoning.decoding import DecodingMask, LayerCache
from tt_reasoning.prefix_tree import any_row_length, fill_rows, pack_groups, unembed_as

Key = TypeVar("Key", bound=Hashable)
_PACKED_TOKENS = 4096  # of texts that are read side by side
_LEAST_ROOM = 64  # tokens


class RaggedCache(LayerCache):
    """The keys and values of one attention layer, a row a text, padded at the end.

    To ``DecodingMask`` every text is a prompt with one sample, whose own token is the newest.
    """

    def __init__(self) -> None:
        super().__init__(max_new_tokens=1)
        self.rows: list[Tensor] = []  # keys and values, [rows, K, room, E]; none before the first texts
        self.lengths_M: Tensor | None = None  # None: a pass over packed texts

    def update(self, k_new: Tensor, v_new: Tensor) -> tuple[Tensor, Tensor]:
        """Hold what a pass adds, of every text the newest token alone; returns it for the mask."""
        if self.lengths_M is None:
            self.prompt = (k_new, v_new)
            return k_new, v_new
        own = [new[:, :, :1].to(rows.dtype) for rows, new in zip(self.rows, (k_new, v_new), strict=True)]
        at_M = torch.arange(len(self.lengths_M), device=k_new.device)
        for rows, new in zip(self.rows, own, strict=True):
            rows[at_M, :, self.lengths_M] = new[:, :, 0]
        self.own, self.size = (own[0], own[1]), 1
        return k_new, v_new

    def expect(self, lengths_M: Tensor | None, longest: int = 0) -> None:
        """Get ready for a pass over the newest tokens of texts held so far, or (None) over packed texts."""
        self.lengths_M, self.own = lengths_M, None
        if lengths_M is not None:
            keys, values = (rows[: len(lengths_M), :, :longest] for rows in self.rows)
            self.prompt = (keys, values)

    def fill(self, row: int, span: slice) -> None:
        """Take over a text of the packed pass."""
        assert self.prompt is not None
        for rows, packed in zip(self.rows, self.prompt, strict=True):
            rows[row, :, : span.stop - span.start] = packed[0, :, span]

    def move(self, source: int, row: int) -> None:
        """Copy a text to another row."""
        for rows in self.rows:
            rows[row] = rows[source]

    def grow(self, num_rows: int, room: int, layer: MultiHeadAttention, like: Tensor) -> None:
        """Make room; what is held stays. Nothing becomes smaller."""
        shape = (num_rows, layer.num_kv_heads, room, layer.head_dim)
        before, self.rows = self.rows, [like.new_zeros(shape) for _ in range(2)]
        for rows, old in zip(self.rows, before, strict=False):
            rows[: len(old), :, : old.shape[2]] = old

    def forget(self) -> None:
        """Free everything."""
        self.rows, self.prompt, self.own = [], None, None


class RaggedDecoder(Generic[Key]):
    """A model at work on texts of any lengths, one pass a token for all of them.

    The model's layers belong to it from then on: no other caches, no training.

    Args:
        model: in ``eval`` mode.
    """

    def __init__(self, model: TransformerDecoder) -> None:
        accept_layer_masks(model)
        self.model = model
        self._layers = [module for module in model.modules() if isinstance(module, MultiHeadAttention)]
        self._caches = [RaggedCache() for _ in self._layers]
        for layer, cache in zip(self._layers, self._caches, strict=True):
            layer.kv_cache, layer.cache_enabled = cache, True
        weight = next(model.parameters())
        self._device = weight.device
        held_in = torch.float32 if weight.device.type == "cpu" else weight.dtype
        self._like = torch.empty(0, dtype=held_in, device=weight.device)
        self._keys: list[Key] = []  # the text of each row
        self._held: list[list[int]] = []  # its tokens so far
        self._num_rows = self._room = 0

    @torch.inference_mode()
    def hold(self, texts: Mapping[Key, Sequence[int]]) -> list[Key]:
        """Hold these texts alone, all but the last token of each; returns them in the order of ``step``.

        Args:
            texts: by anything that is the same from call to call; of at least one token each.
        """
        for row in reversed(range(len(self._keys))):
            if self._keys[row] not in texts:
                self._drop(row)
        if not self._keys:
            for cache in self._caches:
                cache.forget()
            self._num_rows = self._room = 0
        known = set(self._keys)
        new = [key for key in texts if key not in known]
        self._keys += new
        self._held += [[] for _ in new]
        missing: dict[tuple[int, ...], list[int]] = {}  # rows that begin with the same tokens read them once
        for row, key in enumerate(self._keys):
            begun, held = list(texts[key][:-1]), self._held[row]
            if held[: len(begun)] != begun:
                missing.setdefault(tuple(begun), []).append(row)
            self._held[row] = begun
        if self._keys:
            self._make_room()
        self._read(missing)
        return list(self._keys)

    @torch.inference_mode()
    def step(self, tokens_MT: Tensor, read: Callable[[Tensor], Any]) -> Any:
        """One pass over the newest token of every text and candidates behind it, which are not kept.

        Args:
            read: makes what is returned of the states before the final norm, [M, T, D].
        """
        lengths = [len(held) for held in self._held]
        lengths_M = torch.tensor(lengths, device=self._device)
        for cache in self._caches:
            cache.expect(lengths_M, max(lengths))
        after_MT = (torch.arange(tokens_MT.shape[1], device=self._device) > 0).expand_as(tokens_MT)
        mask = DecodingMask(lengths, [1] * len(lengths), self._device)
        with unembed_as(self.model, read):
            found = self.model(tokens_MT, mask=mask, input_pos=lengths_M[:, None] + after_MT)
        for held, token in zip(self._held, tokens_MT[:, 0].tolist(), strict=True):
            held.append(token)
        return found

    def _drop(self, row: int) -> None:
        """Let a text go; the last takes its row."""
        last = len(self._keys) - 1
        if row != last:
            for cache in self._caches:
                cache.move(last, row)
            self._keys[row], self._held[row] = self._keys[last], self._held[last]
        del self._keys[last], self._held[last]

    def _make_room(self) -> None:
        """A row for every text, and a place for every token; twice as much when it is not enough."""
        num_rows, room = self._num_rows or 1, self._room or _LEAST_ROOM
        while num_rows < len(self._keys):
            num_rows *= 2
        while room <= max(map(len, self._held)):
            room *= 2
        if (num_rows, room) != (self._num_rows, self._room):
            for cache, layer in zip(self._caches, self._layers, strict=True):
                cache.grow(num_rows, room, layer, self._like)
            self._num_rows, self._room = num_rows, room

    def _read(self, missing: Mapping[tuple[int, ...], Sequence[int]]) -> None:
        """Read the beginnings of texts, side by side without padding."""
        texts = [begun for begun in missing if begun]
        for part in fill_rows([len(begun) for begun in texts], _PACKED_TOKENS):
            row = pack_groups([(texts[i], []) for i in part], self._device)
            for cache in self._caches:
                cache.expect(None)
            with unembed_as(self.model, lambda hidden_1TD: hidden_1TD), any_row_length(self.model):
                self.model(row.tokens_1T, mask=row.mask, input_pos=row.positions_1T)
            for i, span in zip(part, row.mask.spans, strict=True):
                for cache in self._caches:
                    for number in missing[texts[i]]:
                        cache.fill(number, slice(span.start, span.middle))
