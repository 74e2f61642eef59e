"""Chats become the tokens that transformers gives, and only the assistant's are trained on."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import write_byte_tokenizer
from tokenizers import Tokenizer
from torchtune.data import Message as TuneMessage
from transformers import AutoTokenizer

from tt_reasoning.errors import UserError
from tt_reasoning.models import ChatTokenizer
from tt_reasoning.prompts import get_prompt

CHATS = [
    [{"role": "user", "content": "What is 2 + 2?"}],
    [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Müsli für 3 €? 🥣"}],
    [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "<|im_end|> Two?\n\n"},
        {"role": "assistant", "content": " 2 \n"},
    ],
]


@pytest.fixture(scope="module")
def byte_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_byte_tokenizer(folder)
    return folder


@pytest.mark.parametrize("chat", CHATS, ids=["question", "system", "turns"])
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_chats_equal_transformers_on_smollm2(smollm2: Path, chat: list, add_generation_prompt: bool) -> None:
    ours, theirs = ChatTokenizer(smollm2), AutoTokenizer.from_pretrained(smollm2)
    text = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=add_generation_prompt)
    assert ours.render_chat(chat, add_generation_prompt) == text
    assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
    if not add_generation_prompt:
        assert ours.tokenize_messages(chat)[0] == theirs.apply_chat_template(chat, return_dict=False)


def test_a_begun_answer_stands_behind_the_chat_as_it_is_whatever_the_template_does_with_answers(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path)
    template = tmp_path / "chat_template.jinja"
    template.write_text(template.read_text().replace("message['content']", "message['content'] | trim"))
    tokenizer, begun = ChatTokenizer(tmp_path), " 3 + 4 = 7\n"
    chat = get_prompt("answer").render("3 + 4?")
    continued = get_prompt("answer").render("3 + 4?", begun)
    assert tokenizer.encode_prompt(continued) == tokenizer.encode_prompt(chat) + tokenizer.encode(begun)


def test_special_tokens_are_those_of_transformers_on_smollm2(smollm2: Path) -> None:
    ours, theirs = ChatTokenizer(smollm2), AutoTokenizer.from_pretrained(smollm2)
    assert (ours.eos_id, ours.bos_id, ours.pad_id) == (theirs.eos_token_id, theirs.bos_token_id, theirs.pad_token_id)
    assert ours.eos_id in ours.stop_tokens


def test_only_the_assistants_words_and_the_end_of_its_turn_are_trained_on(byte_folder: Path) -> None:
    tokenizer = ChatTokenizer(byte_folder)
    tokens, mask = tokenizer.tokenize_messages(CHATS[2])
    trained = [token for token, masked in zip(tokens, mask, strict=True) if not masked]
    assert tokenizer.decode(trained, skip_special_tokens=False) == "1<|im_end|> 2 \n<|im_end|>"


def test_torchtune_messages_and_plain_dicts_give_the_same_sample(byte_folder: Path) -> None:
    tokenizer = ChatTokenizer(byte_folder)
    chat = CHATS[2]
    messages = [TuneMessage(role=m["role"], content=m["content"]) for m in chat]
    assert tokenizer({"messages": messages}) | {"messages": 0} == tokenizer({"messages": chat}) | {"messages": 0}


def test_a_limit_cuts_tokens_and_mask_alike(byte_folder: Path) -> None:
    tokens, mask = ChatTokenizer(byte_folder, max_seq_len=7).tokenize_messages(CHATS[0])
    assert len(tokens) == len(mask) == 7


def test_what_a_tokenizer_file_cuts_and_pads_is_neither_cut_nor_padded_here(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path)
    saved = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    saved.enable_truncation(4)
    saved.enable_padding(length=8)
    saved.save(str(tmp_path / "tokenizer.json"))
    assert [len(ChatTokenizer(tmp_path).encode(text)) for text in ("12", "123456")] == [2, 6]


def test_decoding_gives_the_text_back(byte_folder: Path) -> None:
    tokenizer = ChatTokenizer(byte_folder)
    text = "½ of 7 is 3.5 \n<answer>"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_model_without_a_chat_template_says_so(byte_folder: Path, tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="has no chat template"):
        ChatTokenizer(tmp_path).render_chat(CHATS[0])


def test_a_template_cannot_reach_out_of_its_sandbox(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(UserError, match="refuses this chat"):
        ChatTokenizer(tmp_path).render_chat(CHATS[0])


def test_a_folder_without_a_tokenizer_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no tokenizer.json"):
        ChatTokenizer(tmp_path)
