"""An answer drawn as its judge reads it: all of its text, in order, with the score of each piece."""

from __future__ import annotations

import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tiny import write_byte_tokenizer

from tt_reasoning.errors import UserError
from tt_reasoning.judges.curves import color_of, draw_pieces, lay_out_tokens, make_pieces
from tt_reasoning.judges.formats import TagFormat
from tt_reasoning.models import ChatTokenizer

TEXT = "\nTom has <3> & buys $4:\n\té costs 7. \n"
FORM = TagFormat(prompt="steps", step_token="")


@pytest.fixture
def tokenizer(tmp_path: Path) -> ChatTokenizer:
    write_byte_tokenizer(tmp_path)
    return ChatTokenizer(tmp_path)


def test_every_token_of_the_answer_is_read_and_stands_for_its_own_characters(tokenizer: ChatTokenizer) -> None:
    layout, spans = lay_out_tokens(FORM, tokenizer, "How much?", TEXT)
    stripped = TEXT.strip()
    assert layout.read == list(range(layout.start, len(layout.tokens)))
    assert tokenizer.decode([layout.tokens[place] for place in layout.read]) == stripped
    assert len(spans) == len(stripped.encode()) == len(stripped) + 1  # é has two bytes
    assert [TEXT[start:end] for start, end in spans] == [*stripped[:22], *"\n\téé", *stripped[25:]]
    assert layout == FORM.lay_out(tokenizer, "How much?", TEXT, [(1, len(TEXT) - 2)])._replace(read=layout.read)


def test_a_blank_answer_is_refused(tokenizer: ChatTokenizer) -> None:
    with pytest.raises(UserError, match="the answer is blank"):
        lay_out_tokens(FORM, tokenizer, "How much?", " \n")


class _Reader(HTMLParser):
    """The tooltips and the text of the answer, and whether any tag came from it."""

    def __init__(self) -> None:
        super().__init__()
        self.titles, self.tags = [], set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.titles += [value for name, value in attrs if name == "title"]


def test_a_page_shows_all_of_the_answer_escaped_with_its_scores(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    _, spans = lay_out_tokens(FORM, tokenizer, "How much?", TEXT)
    scores = [1 - i / len(spans) for i in range(len(spans))]
    pieces = make_pieces(TEXT, spans, scores)
    draw_pieces(tmp_path / "new" / "a.html", TEXT, pieces, title="<script>", question="1 < 2?")
    page, reader = (tmp_path / "new" / "a.html").read_text(encoding="utf-8"), _Reader()
    reader.feed(page)
    answer = re.findall("<pre>(.*?)</pre>", page, re.DOTALL)[1]
    assert unescape(re.sub("<[^>]*>", "", answer)) == TEXT
    assert not reader.tags & {"script", "b3", "link", "img"} and "http" not in page
    assert len(pieces) == len(TEXT.strip()) and len(reader.titles) == len(pieces)
    assert reader.titles[0] == "token 0: 1.000" and reader.titles[-1] == f"token {len(pieces) - 1}: {scores[-1]:.3f}"


def test_colours_grow_lighter_with_the_score_from_red_to_green() -> None:
    def channels(score: float) -> tuple[int, int, int]:
        return tuple(int(color_of(score)[i : i + 2], 16) for i in (1, 3, 5))

    light = [0.299 * r + 0.587 * g + 0.114 * b for r, g, b in (channels(i / 20) for i in range(21))]
    assert light == sorted(light) and len(set(light)) == 21
    assert channels(0)[0] > 2 * channels(0)[1] and channels(1)[1] > 1.5 * channels(1)[0]


def test_a_picture_is_drawn_of_an_answer_of_any_length_and_kind(tmp_path: Path) -> None:
    text = "a$b_{c}^\\frac " * 60 + "\n\n漢字"
    pieces = make_pieces(text, [(0, 9), (9, len(text))], [0.2, 0.9])
    draw_pieces(tmp_path / "a.png", text, pieces, title="$", unit="step")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="name a file that ends in .html, .png, .pdf, .svg"):
        draw_pieces(tmp_path / "a.txt", text, [], title="")
