"""What a judge thinks of one answer as it goes on: its text coloured from green (right) to red (wrong), with a curve.

A verifier with a value head says something at every token, a step judge at the end of every step; a piece of the text
is what it has read since it last spoke. As a web page (``.html``) or as a picture (``.png``, ``.pdf``, ``.svg``). The
colours grow lighter with the score, so that the order is there in grey as well.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, NamedTuple

from tt_reasoning.errors import UserError
from tt_reasoning.judges.formats import EndFormat, Layout, TagFormat
from tt_reasoning.models.tokenizer import ChatTokenizer
from tt_reasoning.plots import FORMATS, save_figure
from tt_reasoning.steps import whole_span
from tt_reasoning.store import write_atomic
from tt_reasoning.types import Answer, Problem, Step

if TYPE_CHECKING:
    from tt_reasoning.judges.forms import JudgeForm
    from tt_reasoning.judges.ranking import Judge

_COLORS = ((178, 24, 43), (240, 160, 80), (150, 240, 150))  # of 0, 0.5 and 1: darker is worse
_COLUMNS = 100  # characters of a line in a picture
_FONT_POINTS, _CHAR_POINTS, _LINE_POINTS = 9.0, 9.0 * 0.602, 14.0  # DejaVu Sans Mono, which matplotlib brings along


StartJudge = Callable[[], "Judge"]


class Piece(NamedTuple):
    """A piece of an answer's text, in characters, and what the judge says at its end."""

    start: int
    end: int
    score: float


def check_curve_path(path: str | Path) -> None:
    """Raise UserError unless an answer can be drawn there; call it before long work.

    >>> check_curve_path("answer.txt")
    Traceback (most recent call last):
    ...
    tt_reasoning.errors.UserError: --plot answer.txt: name a file that ends in .html, .png, .pdf, .svg
    """
    if Path(path).suffix not in (".html", *FORMATS):
        raise UserError(f"--plot {path}: name a file that ends in {', '.join(('.html', *FORMATS))}")
    if Path(path).is_dir():
        raise UserError(f"--plot {path} is a folder; name a file")


def lay_out_tokens(
    form: TagFormat | EndFormat, tokenizer: ChatTokenizer, question: str, text: str
) -> tuple[Layout, list[tuple[int, int]]]:
    """A question with an answer as a value head is shown it, read at every token of the answer.

    Returns:
        The layout, and for every place that is read which characters of ``text`` the token stands for, without the
        blanks between tokens where the tokenizer leaves those out.

    Raises:
        UserError: a blank answer.
    """
    spans = whole_span(text)
    if not spans:
        raise UserError("the answer is blank: there is nothing to draw")
    layout = form.lay_out(tokenizer, question, text, spans)
    ((start, _),) = spans
    if isinstance(form, EndFormat):
        start, (whole, begin, special) = 0, form.text(tokenizer, question, text)
    else:
        whole, begin, special = *form.text(question, text, spans)[:2], True
    offsets = tokenizer.tokenizer.encode(whole, add_special_tokens=special).offsets
    read = [i for i in range(layout.start, len(offsets)) if offsets[i][1] > offsets[i][0]]  # an eos added is no text
    places = [(max(offsets[i][0] - begin, 0) + start, offsets[i][1] - begin + start) for i in read]
    return layout._replace(read=read), places


def read_pieces(
    form: JudgeForm,
    tokenizer: ChatTokenizer,
    problem: Problem,
    answer: Answer,
    steps: Sequence[Step],
    start: StartJudge,
) -> tuple[list[Piece], str]:
    """What a judge says of one answer, and what it says it of: ``token`` or ``step``.

    Args:
        steps: the answer's stored scores: all that a step judge has to say. A value head is asked of every token.
        start: loads the judge, which is asked for nothing else.
    """
    if form.head != "value":
        spans, scores = [(step.start, step.end) for step in steps], [step.score or 0.0 for step in steps]
        return make_pieces(answer.text, spans, scores), "step"
    assert isinstance(form.format, TagFormat | EndFormat)
    layout, spans = lay_out_tokens(form.format, tokenizer, problem.question, answer.text)
    judge = start()
    try:
        ((scores,),) = judge.score([[layout]])
    finally:
        judge.close()
    return make_pieces(answer.text, spans, scores), "token"


def make_pieces(text: str, spans: Sequence[tuple[int, int]], scores: Sequence[float]) -> list[Piece]:
    """The text in pieces that follow each other, one a span with its score, what lies between two to the later one.

    Of spans that end in the same place, such as the bytes of one character, the last one counts. A blank end of the
    text belongs to the last piece.

    >>> make_pieces("so 5 ", [(0, 2), (3, 4), (3, 4)], [0.5, 0.75, 0.25])
    [Piece(start=0, end=2, score=0.5), Piece(start=2, end=5, score=0.25)]
    """
    pieces: list[Piece] = []
    for (_, end), score in zip(spans, scores, strict=True):
        start = pieces[-1].end if pieces else 0
        if pieces and end <= start:
            start = pieces.pop().start
        pieces.append(Piece(start, max(end, start), score))
    if pieces:
        pieces[-1] = pieces[-1]._replace(end=len(text))
    return pieces


def draw_pieces(
    path: str | Path, text: str, pieces: Sequence[Piece], *, title: str, question: str = "", unit: str = "token"
) -> None:
    """Draw an answer, whole or not at all; the suffix of ``path`` says as what.

    Args:
        pieces: of ``make_pieces``.
        unit: what a piece is: a token, or a step.
    """
    check_curve_path(path)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    if Path(path).suffix == ".html":
        write_atomic(path, _page(text, pieces, title, question, unit))
    else:
        _draw(Path(path), text, pieces, title, unit)


def color_of(score: float) -> str:
    """The background of a piece: dark red for 0, orange for 0.5, pale green for 1.

    >>> color_of(0.0), color_of(0.75), color_of(1.0)
    ('#b2182b', '#c3c873', '#96f096')
    """
    at = min(max(score, 0.0), 1.0) * 2
    low, high = _COLORS[int(at > 1)], _COLORS[int(at > 1) + 1]
    part = at - (at > 1)
    return "#" + "".join(f"{round(a + (b - a) * part):02x}" for a, b in zip(low, high, strict=True))


def _ink_of(score: float) -> str:
    return "white" if score < 0.25 else "black"


def _page(text: str, pieces: Sequence[Piece], title: str, question: str, unit: str) -> str:
    """A web page that needs nothing but itself. All that a model wrote is escaped."""
    spans = "".join(
        f'<span style="background:{color_of(p.score)};color:{_ink_of(p.score)}" '
        f'title="{unit} {number}: {p.score:.3f}">{escape(text[p.start : p.end])}</span>'
        for number, p in enumerate(pieces)
    )
    key = "".join(
        f'<span style="background:{color_of(i / 10)};color:{_ink_of(i / 10)}">&nbsp;{i / 10:g}&nbsp;</span>'
        for i in range(11)
    )
    points = " ".join(
        f"{1000 * (i + 0.5) / len(pieces):.1f},{100 * (1 - p.score):.1f}" for i, p in enumerate(pieces)
    )
    asked = f"<p><b>Question</b></p>\n<pre>{escape(question)}</pre>\n" if question else ""
    style = """
        body { font-family: sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; }
        pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 1.05em; line-height: 1.7; }
        svg { width: 100%; height: 9em; border: 1px solid #ccc; }
    """
    last = f"{pieces[-1].score:.3f}" if pieces else "none"
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f"<style>{dedent(style)}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n{asked}"
        f"<p><b>Answer</b>, score of each {unit} under the pointer: {key} (0 wrong, 1 right)</p>\n"
        f"<pre>{spans}</pre>\n<p>Score by {unit}; the line is 0.5; the last is {last}.</p>\n"
        '<svg viewBox="0 0 1000 100" preserveAspectRatio="none">'
        '<line x1="0" y1="50" x2="1000" y2="50" stroke="#999" vector-effect="non-scaling-stroke"/>'
        f'<polyline points="{points}" fill="none" stroke="#000" vector-effect="non-scaling-stroke"/></svg>\n'
        "</body>\n</html>\n"
    )


def _lay_in_lines(text: str, pieces: Sequence[Piece]) -> list[tuple[int, int, str, float]]:
    """The pieces cut at line ends and at the picture's width: line, column, characters, score."""
    found, line, column = [], 0, 0
    for piece in pieces:
        for number, part in enumerate(text[piece.start : piece.end].expandtabs(4).split("\n")):
            if number:
                line, column = line + 1, 0
            while part:
                if column == _COLUMNS:
                    line, column = line + 1, 0
                shown, part = part[: _COLUMNS - column], part[_COLUMNS - column :]
                found.append((line, column, shown, piece.score))
                column += len(shown)
    return found


def _draw(path: Path, text: str, pieces: Sequence[Piece], title: str, unit: str) -> None:
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    parts = _lay_in_lines(text, pieces)
    lines = 1 + max((line for line, _, _, _ in parts), default=0)
    margin, curve, between = 0.6, 2.0, 0.7  # inches
    width = 2 * margin + _COLUMNS * _CHAR_POINTS / 72
    written = lines * _LINE_POINTS / 72
    height = margin + written + between + curve + margin
    figure = Figure(figsize=(width, height))
    figure.suptitle(title, x=margin / width, ha="left", y=1 - 0.2 / height, va="top", parse_math=False)
    across = 1 - 2 * margin / width
    page = figure.add_axes((margin / width, (margin + curve + between) / height, across, written / height))
    page.set(xlim=(0, _COLUMNS), ylim=(lines, 0))
    page.axis("off")
    for line, column, shown, score in parts:
        page.add_patch(Rectangle((column, line), len(shown), 0.92, facecolor=color_of(score), linewidth=0))
        page.text(
            column, line + 0.45, shown, family="DejaVu Sans Mono", size=_FONT_POINTS, va="center_baseline",
            color=_ink_of(score), parse_math=False,
        )  # fmt: skip
    axes = figure.add_axes((margin / width, margin / height, across, curve / height))
    scores = [piece.score for piece in pieces]
    axes.axhline(0.5, color="#999999", linewidth=1)
    axes.plot(range(len(scores)), scores, color="black", linewidth=1)
    axes.scatter(range(len(scores)), scores, c=[color_of(s) for s in scores], s=18, edgecolors="black", linewidths=0.3)
    axes.set(ylim=(-0.03, 1.03), xlabel=f"{unit} of the answer", ylabel="score")
    axes.spines[["top", "right"]].set_visible(False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # drawn as a box
        save_figure(figure, path)
