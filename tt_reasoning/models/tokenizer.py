"""The tokenizer of a Hugging Face folder with its own chat template, as torchtune's recipes want one.

torchtune 0.6.1 reads ``tokenizer.json`` but knows no chat template; this renders the model's own Jinja
template in a sandbox and trains on the assistant's tokens alone.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer
from torchtune.data import Message as TuneMessage

from tt_reasoning.errors import UserError
from tt_reasoning.prompts import Message, Rendered, split_begun


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from None


def _content(token: Any) -> str | None:
    """A special token of tokenizer_config.json: a string, an object with its content, or none."""
    return token["content"] if isinstance(token, dict) else token


def _as_message(message: Message | TuneMessage) -> Message:
    if isinstance(message, TuneMessage):
        return Message(role=message.role, content=message.text_content)
    return message


@functools.cache
def _compile_template(template: str) -> Template:
    def refuse(reason: str) -> None:
        raise TemplateError(reason)

    jinja = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    jinja.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    jinja.globals["raise_exception"] = refuse
    jinja.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return jinja.from_string(template)


class ChatTokenizer:
    """Text and chats to token ids for one model.

    Attributes:
        eos_id: the token that ends a turn (``tokenizer_config.json``).
        stop_tokens: every token that ends a generation (``eos_id`` and those of ``generation_config.json``).
        pad_id: the pad token, or ``eos_id`` where the model has none.

    Raises:
        UserError: the folder has no ``tokenizer.json``, or names no eos token.
    """

    def __init__(self, path: str | Path, max_seq_len: int | None = None) -> None:
        folder = Path(path)
        if not (folder / "tokenizer.json").exists():
            raise UserError(f"{folder} holds no tokenizer.json: not a Hugging Face model folder")
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_truncation()  # a file saved in training may hold some: texts would be cut silently
        self.tokenizer.no_padding()
        self.max_seq_len = max_seq_len
        config = _read_json(folder / "tokenizer_config.json")
        self._names = {name: _content(config.get(name)) for name in ("bos_token", "eos_token", "pad_token")}
        self.bos_id, self.eos_id, pad_id = (
            self.tokenizer.token_to_id(token) if token else None for token in self._names.values()
        )
        if self.eos_id is None:
            raise UserError(f"{folder / 'tokenizer_config.json'} names no eos_token of this vocabulary")
        self.pad_id = self.eos_id if pad_id is None else pad_id
        more = _read_json(folder / "generation_config.json").get("eos_token_id") or []
        self.stop_tokens = sorted({self.eos_id, *([more] if isinstance(more, int) else more)})
        template = folder / "chat_template.jinja"
        self._template = template.read_text(encoding="utf-8") if template.exists() else config.get("chat_template")
        if isinstance(self._template, list):  # several by name
            self._template = {entry["name"]: entry["template"] for entry in self._template}.get("default")
        self._folder = folder

    @property
    def vocab_size(self) -> int:
        """The number of tokens, added ones included (a model's embedding may be larger)."""
        return self.tokenizer.get_vocab_size()

    @property
    def num_ids(self) -> int:
        """One more than the highest token id: above ``vocab_size`` where ids in between are no tokens."""
        return 1 + max(self.tokenizer.get_vocab().values())

    @property
    def special_tokens(self) -> dict[str, int]:
        """Every special token with its id."""
        return {t.content: i for i, t in self.tokenizer.get_added_tokens_decoder().items() if t.special}

    def encode(self, text: str, add_bos: bool = False, add_eos: bool = False) -> list[int]:
        """Token ids of plain text; special tokens written out in it are recognised."""
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        bos = [self.bos_id] if add_bos and self.bos_id is not None else []
        return [*bos, *ids, *([self.eos_id] if add_eos else [])]

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids."""
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def render_chat(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """The text of a chat by the model's own template, as transformers' ``apply_chat_template`` gives it.

        Raises:
            UserError: the model has no chat template, or its template refuses these messages.
        """
        if not self._template:
            raise UserError(f"{self._folder} has no chat template; use a prompt with chat=False, such as 'ssa'")
        names = {name: token for name, token in self._names.items() if token is not None}
        try:
            return _compile_template(self._template).render(
                messages=list(messages), add_generation_prompt=add_generation_prompt, **names
            )
        except TemplateError as error:
            raise UserError(f"the chat template of {self._folder} refuses this chat: {error}") from None

    def encode_prompt(self, prompt: Rendered) -> list[int]:
        """Token ids of a rendered prompt: plain text, or a chat up to the assistant's turn with what is begun of it.

        A plain prompt gets the model's bos token where the tokenizer itself would add one.
        """
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt).ids
        chat, begun = split_begun(prompt)
        return self.encode(self.render_chat(chat, add_generation_prompt=True) + begun)

    def tokenize_messages(
        self, messages: Sequence[Message | TuneMessage], *, add_end_tokens: bool = True
    ) -> tuple[list[int], list[bool]]:
        """Tokens of a whole chat and torchtune's mask over them (True = not trained on).

        Only what the assistant writes is trained on, the token that ends its turn included.

        Raises:
            UserError: the template does not render a chat as a continuation of its beginning.
        """
        chat = [_as_message(message) for message in messages]
        text = self.render_chat(chat)
        spans = []
        for index, message in enumerate(chat):
            if message["role"] != "assistant":
                continue
            start = self.render_chat(chat[:index], add_generation_prompt=True)
            end = self.render_chat(chat[: index + 1])
            if not text.startswith(start) or not text.startswith(end):
                raise UserError(f"the chat template of {self._folder} rewrites earlier turns; cannot mask them")
            spans.append((len(start), len(end.rstrip("\n"))))
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        mask = [not any(low <= begin and end <= high for low, high in spans) for begin, end in encoding.offsets]
        ids = encoding.ids
        if not add_end_tokens and ids and not mask[-1] and ids[-1] == self.eos_id:
            ids, mask = ids[:-1], mask[:-1]
        return ids[: self.max_seq_len], mask[: self.max_seq_len]

    def __call__(self, sample: Mapping[str, Any], inference: bool = False) -> dict[str, Any]:
        """torchtune's transform: ``messages`` in, ``tokens`` and ``mask`` beside it."""
        tokens, mask = self.tokenize_messages(sample["messages"], add_end_tokens=not inference)
        return {**sample, "tokens": tokens, "mask": mask}


def chat_tokenizer(path: str, max_seq_len: int | None = None) -> ChatTokenizer:
    """The builder for YAML: ``tokenizer: {_component_: tt_reasoning.models.chat_tokenizer, path: ...}``."""
    return ChatTokenizer(path, max_seq_len)
