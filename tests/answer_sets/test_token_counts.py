"""Token counts: always the tokenizer's own, however the text is put together and whatever the tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tt_reasoning.answer_sets import token_counts
from tt_reasoning.answer_sets.token_counts import load_token_counter
from tt_reasoning.errors import UserError

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXT = (
    "To find $x$, we add 12 + 345 = 357.\n\n1. So  it's   done:\n   \\[ x^2 = 357 \\]\n\t and I'LL say: «naïve» 5½ "
    "don't!\n\nThe Answer is: 12,345.60\n"
    "a\t  b\t  c   7    8   9\n   1\n   2\r\n  3 \u2003 \u2003 d  \t  e  \t  f"
)


def byte_level(*, regex: bool = True) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), behavior="isolated"), byte_level(regex=False)]
    )


# By the model whose tokenizer cuts texts so; the last ones are of kinds whose words are not counted alone.
CUTS = {
    "gpt2": byte_level(),
    "smollm2": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level()]),
    "llama3": split(LLAMA3),
    "qwen2.5": split(LLAMA3.replace("{1,3}", "")),
    "other": split(r"\S+ |\s|\S+"),
    "metaspace": pre_tokenizers.Metaspace(),
    "uncut": None,
}


def make_tokenizer(cut: str, folder: Path) -> Tokenizer:
    """A small tokenizer of real merges, saved with what must not count: truncation, padding, a special token."""
    tokenizer = Tokenizer(models.BPE(unk_token="?"))
    if cut == "qwen2.5":
        tokenizer.normalizer = normalizers.NFC()
    if CUTS[cut] is not None:
        tokenizer.pre_tokenizer = CUTS[cut]
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=600, show_progress=False, initial_alphabet=alphabet, special_tokens=["<s>", "<file>", "?"]
    )
    tokenizer.train_from_iterator([TEXT] * 5, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=5)
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


@pytest.fixture(scope="module", params=CUTS)
def pair(request, tmp_path_factory):
    """A tokenizer and the counter made from its file."""
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = make_tokenizer(request.param, folder)
    return tokenizer, load_token_counter(folder)


ODD_PARTS = st.sampled_from([
    " ", "  ", "   ", "\n", "\n ", "\n\n   ", "\t", "\r\n", "\0", "\x1c", "\xa0", "\u2003", "\u0301", "e\u0301", "½",
    "٣", "'s", "'LL", "'", "ſ", "a", "The", "answer", "7", "12", "12345", "<file>", "<s>", "<", "$", "\\frac{1}{2}",
    "é", "漢字", "🙂",
])  # fmt: skip


@example(["a\t  b", "a   7", "a\n   7", "a \u2003 d", " a", "  a", "", " ", "a ", "a\n\n  "])
@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.lists(ODD_PARTS, max_size=25).map("".join), st.text(max_size=40)), max_size=3))
def test_any_text_has_the_tokenizers_own_length(pair, texts):
    tokenizer, count = pair
    assert count(texts) == [len(tokenizer.encode(text, add_special_tokens=False)) for text in texts]


def test_a_word_is_tokenized_once(tmp_path):
    tokenizer = make_tokenizer("smollm2", tmp_path)
    count = load_token_counter(tmp_path)
    tokenized = []
    plain = count._tokenize
    count._parts._count = lambda text: tokenized.append(text) or plain(text)
    text = "We add 12 and 13\n   and 14 and 2500 to 13."
    expected = len(tokenizer.encode(text, add_special_tokens=False))
    assert count([text, text]) == [expected, expected]
    assert sorted(tokenized) == sorted(["We", " add", " ", "0", " and", "\n  ", " to", "."])


def test_counts_stay_right_and_memory_small_when_words_never_repeat(tmp_path, monkeypatch):
    monkeypatch.setattr(token_counts, "_MAX_WORDS", 10)
    tokenizer = make_tokenizer("gpt2", tmp_path)
    count = load_token_counter(tmp_path)
    texts = [" ".join(f"x{number}y{number}" for number in range(start, start + 30)) for start in range(20)]
    assert count(texts) == [len(tokenizer.encode(text, add_special_tokens=False)) for text in texts]
    assert len(count._words) <= 10 and len(count._parts) <= 10


@pytest.mark.parametrize(
    "token", [AddedToken("<a b>"), AddedToken("<x>", lstrip=True), AddedToken("<x>", single_word=True)]
)
def test_an_added_token_that_reaches_over_spaces_gets_whole_texts(tmp_path, token):
    tokenizer = make_tokenizer("gpt2", tmp_path)
    tokenizer.add_tokens([token])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    texts = ["so <a b> is", "so   <x> is", "a<x>b <x>"]
    expected = [len(tokenizer.encode(text, add_special_tokens=False)) for text in texts]
    assert load_token_counter(tmp_path)(texts) == expected


def test_the_real_tokenizer_is_counted_word_by_word(smollm2):
    tokenizer = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    count = load_token_counter(smollm2)
    texts = [TEXT, "<|im_start|>7", "a   7", "a\n   7"]
    assert count(texts) == [len(tokenizer.encode(text)) for text in texts]
    assert len(count._words) > 10


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no tokenizer at .*tokenizer.json; name a model's folder"):
        load_token_counter(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match=r"tokenizer.json is no tokenizer: "):
        load_token_counter(tmp_path)
