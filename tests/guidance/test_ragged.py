"""Texts that come and go: what one pass says of all of them is what whole recomputations say of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from tiny import tiny_decoder, write_tiny_model
from torch import Tensor
from torchtune.modules import TransformerDecoder

from tt_reasoning.guidance.ragged import RaggedDecoder
from tt_reasoning.prefix_tree import unembed_as


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def decoder(folder: Path) -> RaggedDecoder[str]:
    return RaggedDecoder(tiny_decoder(folder).eval())


@pytest.fixture(scope="module")
def plain(folder: Path) -> TransformerDecoder:
    """The same model without caches."""
    return tiny_decoder(folder).eval()


@torch.no_grad()
def last_state(plain: TransformerDecoder, tokens: Sequence[int]) -> Tensor:
    with unembed_as(plain, lambda hidden_1TD: hidden_1TD[0, -1]):
        return plain(torch.tensor([tokens]))


def check(
    decoder: RaggedDecoder[str],
    plain: TransformerDecoder,
    texts: Mapping[str, list[int]],
    candidates: Sequence[int] = (),
) -> None:
    """A step over some texts says of each, and of each candidate behind it, what the plain model says."""
    keys = decoder.hold(texts)
    assert sorted(keys) == sorted(texts)
    tokens_MT = torch.tensor([[texts[key][-1], *candidates] for key in keys])
    found_MTD = decoder.step(tokens_MT, lambda hidden_MTD: hidden_MTD)
    for key, found_TD in zip(keys, found_MTD, strict=True):
        asked = [texts[key], *([*texts[key], candidate] for candidate in candidates)]
        wanted_TD = torch.stack([last_state(plain, tokens) for tokens in asked])
        torch.testing.assert_close(found_TD, wanted_TD, atol=2e-5, rtol=1e-4)
    assert found_MTD.std() > 0.1


def test_texts_join_grow_and_leave_in_any_order(decoder: RaggedDecoder[str], plain: TransformerDecoder) -> None:
    texts = {"a": list(b"a question"), "b": list(b"a much longer question than the first one")}
    sizes: list[tuple[int, ...]] = []
    decoder.model.register_forward_pre_hook(lambda module, args: sizes.append(tuple(args[0].shape)))
    check(decoder, plain, texts)
    for step in range(40):  # beyond 64 tokens, where more room is made
        texts = {key: [*tokens, (7 * step + len(tokens)) % 256] for key, tokens in texts.items()}
        if step == 3:
            texts |= {"c": list(b"late"), "d": list(b"later")}
        if step == 5:
            del texts["a"]  # the first row: another takes its place
        if step == 8:
            texts = {"e": [5], **{key: texts[key] for key in reversed(texts)}}
        check(decoder, plain, texts, candidates=[9, 200] if step % 2 else [])
    assert sorted(map(len, texts.values())) == [32, 40, 41, 81]
    read = [size for size in sizes if size[0] == 1]
    assert read == [(1, 9 + 40), (1, 3 + 4)], "what is held is not read again; one token alone needs no reading"
    assert {size[0] for size in sizes[1:]} == {1, 2, 3, 4}


def test_a_text_that_is_not_what_it_was_is_right_again(decoder: RaggedDecoder[str], plain: TransformerDecoder) -> None:
    long = list(b"one, two, three, four")
    check(decoder, plain, {"a": long, "b": list(b"other")})
    sizes: list[tuple[int, ...]] = []
    decoder.model.register_forward_pre_hook(lambda module, args: sizes.append(tuple(args[0].shape)))
    check(decoder, plain, {"a": long, "b": list(b"other")})  # asked again without a new token
    check(decoder, plain, {"a": long[:9], "b": list(b"other")})  # some tokens were taken back
    assert sizes == [(2, 1)] * 2, "the kept beginning is not read again"
    check(decoder, plain, {"a": [*long[:5], 77, *long[6:9]], "b": list(b"other!")})  # another token within
    check(decoder, plain, {"a": [*long, 1, 2, 3], "b": list(b"other!!")})  # several new tokens
    assert sizes[2:] == [(1, 8), (2, 1), (1, 23), (2, 1)]


def test_equal_beginnings_are_read_once(decoder: RaggedDecoder[str], plain: TransformerDecoder) -> None:
    sizes: list[tuple[int, ...]] = []
    decoder.model.register_forward_pre_hook(lambda module, args: sizes.append(tuple(args[0].shape)))
    prompt = list(b"the same question")
    check(decoder, plain, {"a": prompt, "b": prompt, "c": [*prompt[:-1], 9]})
    assert sizes == [(1, 16), (3, 1)]
    check(decoder, plain, {"a": [*prompt, 1], "b": [*prompt, 2], "c": [*prompt[:-1], 9, 3]})


def test_nothing_is_kept_of_candidates_nor_of_texts_that_left(
    decoder: RaggedDecoder[str], plain: TransformerDecoder
) -> None:
    check(decoder, plain, {"a": list(b"a text"), "b": list(b"another")}, candidates=list(range(30, 60)))
    check(decoder, plain, {"b": list(b"another one")[:8]})
    assert decoder.hold({}) == []
    assert all(cache.rows == [] for cache in decoder._caches)
    check(decoder, plain, {"b": list(b"another"), "z": [3]})
    decoder.hold({})
    check(decoder, plain, {"z": [3], "y": [4]}, candidates=[1])  # nothing in front of any of them


def test_it_works_in_bf16(folder: Path, plain: TransformerDecoder) -> None:
    decoder: RaggedDecoder[str] = RaggedDecoder(tiny_decoder(folder).eval().to(torch.bfloat16))
    texts = {"a": list(b"a question"), "b": list(b"hm")}
    keys = decoder.hold(texts)
    found_MD = decoder.step(torch.tensor([[texts[key][-1]] for key in keys]), lambda hidden_MTD: hidden_MTD[:, 0])
    for key, found_D in zip(keys, found_MD, strict=True):
        wanted_D = last_state(plain, texts[key])
        assert (found_D.float() - wanted_D).norm() < 0.05 * wanted_D.norm()
