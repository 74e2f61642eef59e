"""One row for all answers to a question gives the scores of one plain forward pass an answer."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from tiny import tiny_decoder, write_tiny_model
from tiny_judges import write_card_judge, write_value_judge
from torchtune.modules import TransformerDecoder

from tt_reasoning.errors import UserError
from tt_reasoning.judges.formats import Layout
from tt_reasoning.judges.forms import find_form
from tt_reasoning.judges.native import LabelReadout, NativeJudge, Scores, score_layouts

READ = LabelReadout(good=10, bad=12)


@pytest.fixture(scope="module", params=["llama", "mistral", "qwen2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TransformerDecoder:
    folder = write_tiny_model(tmp_path_factory.mktemp("model"), model_type=request.param)
    return tiny_decoder(folder).eval()


def random_question(chance: random.Random, prompt: int, lengths: list[int]) -> list[Layout]:
    """Solutions that begin alike or not, read at one to three tokens each; some go on behind the last."""
    shared = [chance.randrange(300) for _ in range(prompt)]
    layouts = []
    for length in lengths:
        tokens = shared + [chance.randrange(3) for _ in range(length)]
        reads = sorted(chance.sample(range(prompt, prompt + length), min(length, chance.randrange(1, 4))))
        layouts.append(Layout(tokens, prompt, reads))
    return layouts


@torch.inference_mode()
def plain_scores(model: TransformerDecoder, questions: list[list[Layout]]) -> Scores:
    """The peer: a row an answer, all logits."""
    scores: Scores = []
    for layouts in questions:
        logits = [model(torch.tensor([layout.tokens]))[0] for layout in layouts]
        pairs = [found[layout.read][:, [10, 12]] for found, layout in zip(logits, layouts, strict=True)]
        scores.append([pair.softmax(-1)[:, 0].tolist() for pair in pairs])
    return scores


def flat(scores: Scores) -> torch.Tensor:
    return torch.tensor([score for question in scores for answer in question for score in answer])


@pytest.mark.parametrize("batch_tokens", [1, 60, 100_000], ids=["row_an_answer", "small_rows", "one_row"])
def test_rows_of_any_size_give_the_scores_of_one_row_an_answer(model: TransformerDecoder, batch_tokens: int) -> None:
    chance = random.Random(0)
    shapes = [(40, [5, 9, 1, 7]), (7, [12]), (3, [6, 6, 30]), (25, [])]
    questions = [random_question(chance, prompt, lengths) for prompt, lengths in shapes]
    expected = plain_scores(model, questions)
    found = score_layouts(model, READ, questions, torch.device("cpu"), batch_tokens)
    assert [[len(answer) for answer in question] for question in found] == [
        [len(layout.read) for layout in question] for question in questions
    ]
    assert flat(expected).std() > 0.05
    torch.testing.assert_close(flat(found), flat(expected), atol=1e-5, rtol=0)


def test_what_stands_behind_the_last_step_changes_nothing(model: TransformerDecoder) -> None:
    layout = Layout([5, 6, 7, 8, 9], 2, [3])
    longer = Layout([5, 6, 7, 8, 1, 2, 3], 2, [3])
    cpu = torch.device("cpu")
    assert score_layouts(model, READ, [[layout]], cpu, 100) == score_layouts(model, READ, [[longer]], cpu, 100)


def test_a_card_that_speaks_of_a_value_head_which_is_not_there_is_refused(tmp_path: Path) -> None:
    folder = write_card_judge(tmp_path / "judge", head="value", step_token="")
    form, _ = find_form(folder)
    with pytest.raises(UserError, match="holds no value head"):
        NativeJudge(str(folder), form, device="cpu")


@pytest.mark.parametrize("squash", [True, False])
def test_a_value_head_says_of_every_place_what_the_plain_model_says(tmp_path: Path, squash: bool) -> None:
    form, _ = find_form(write_value_judge(tmp_path / "judge", squash=squash))
    judge = NativeJudge(str(tmp_path / "judge"), form, device="cpu", batch_tokens=50)
    questions = [random_question(random.Random(0), 12, [5, 9, 4]), random_question(random.Random(1), 3, [8])]
    judge.model.unembed = lambda hidden_1TD: judge.model.value_head(judge.model.norm(hidden_1TD))[0, :, 0]
    plain = [
        [judge.model(torch.tensor([layout.tokens]))[layout.read] for layout in question] for question in questions
    ]
    del judge.model.unembed
    expected = torch.cat([values for question in plain for values in question]).detach()
    expected = expected.sigmoid() if squash else expected.clamp(0, 1)
    assert expected.std() > 0.05
    torch.testing.assert_close(flat(judge.score(questions)), expected, atol=1e-5, rtol=0)
