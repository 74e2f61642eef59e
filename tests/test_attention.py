"""The block mask of ``flex_attention``, compiled here by a CPU's compiler as a GPU's would."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from tt_reasoning.attention import RowMask, Span, _flex


def random_row(chance: random.Random) -> list[Span]:
    """One to three groups of random lengths."""
    spans, start = [], 0
    for _ in range(chance.randrange(1, 4)):
        middle = start + chance.randrange(100, 600)
        ends, end = [], middle
        for _ in range(4):
            end += chance.randrange(0, 130)
            ends.append(end)
        spans.append(Span(start, middle, tuple(ends)))
        start = end
    return spans


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs g++")
def test_rows_of_any_length_share_one_compiled_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    counters.clear()
    chance = random.Random(0)
    compiled = _flex("cuda")  # what a GPU runs; forward alone, as a CPU has no backward of it
    for _ in range(4):
        mask = RowMask(random_row(chance), torch.device("cpu"))
        length = len(mask.owners()[0])
        with torch.no_grad():
            q, k, v = (torch.randn(1, 2, length, 32) for _ in range(3))
            found = compiled(q, k, v, block_mask=mask.block())
            torch.testing.assert_close(found, mask(q, k, v), atol=1e-5, rtol=1e-4)
    assert counters["stats"]["unique_graphs"] == 1
    assert list(tmp_path.rglob("*.so")), "nothing was compiled"
