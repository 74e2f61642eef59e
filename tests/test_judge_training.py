"""What a judge is trained on is what it is asked: positions, sharing, targets, splits; arithmetic by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from judge_home import write_home
from tiny import tiny_decoder, write_tiny_model
from torch.nn import functional as F

from tt_reasoning.datasets import outcome_dataset, step_dataset
from tt_reasoning.datasets.prm import JudgeGroup, JudgeSolution, pack_judged, require_both_classes, split_by_problem
from tt_reasoning.errors import UserError
from tt_reasoning.judges.formats import TagFormat, token_id
from tt_reasoning.judges.metrics import Judged, Valued, first_error_scores, measure_judge, measure_values
from tt_reasoning.judges.reading import read_labels
from tt_reasoning.losses import JudgeSize, StepLabelLoss
from tt_reasoning.models import ChatTokenizer
from tt_reasoning.store import read_records, write_records
from tt_reasoning.types import Step

FORMAT = TagFormat(prompt="steps", step_token="\n")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def tokenizer(home: Path) -> ChatTokenizer:
    return ChatTokenizer(home / "model")


@pytest.mark.parametrize("step_token", ["\n", "<|im_end|>", " ok?"])
def test_the_token_read_is_the_last_of_the_step_token_and_nothing_behind_it_matters(
    home: Path, tokenizer: ChatTokenizer, step_token: str
) -> None:
    """The reference trained the logits two tokens before those that it read (spec: E - 2 against E)."""
    form = TagFormat(prompt="steps", step_token=step_token)
    text, steps = "2 + 3 = 5\nSo 5", [(0, 9), (10, 14)]
    layout = form.lay_out(tokenizer, "2 + 3?", text, steps)
    last = tokenizer.encode(step_token)[-1]
    assert [layout.tokens[place] for place in layout.read] == [last, last]
    assert tokenizer.decode(layout.tokens[layout.start : layout.read[0] + 1], False) == "2 + 3 = 5" + step_token
    model = tiny_decoder(home / "model").eval()
    whole = model(torch.tensor([layout.tokens]))[0]
    for place in layout.read:  # a plain model that is asked for the next token there sees the same logits
        alone = model(torch.tensor([layout.tokens[: place + 1]]))[0, -1]
        torch.testing.assert_close(whole[place], alone, rtol=1e-5, atol=1e-5)


def test_the_gradient_of_a_label_comes_from_the_logits_that_inference_reads(
    home: Path, tokenizer: ChatTokenizer
) -> None:
    """A few updates on one label must raise exactly that score, computed by a plain forward pass of the prefix."""
    dataset = step_dataset(tokenizer, FORMAT, str(home / "steps"))
    row = pack_judged(dataset.groups[:1], "cpu")
    good, bad = token_id(tokenizer, "+", "good"), token_id(tokenizer, "-", "bad")
    model = tiny_decoder(home / "model")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(20):
        reading = read_labels(model, row.packed, row.place_S, good, bad)
        loss, _ = StepLabelLoss()(
            reading.good_S, reading.bad_S, reading.vocabulary_S, row.target_S, torch.ones_like(row.target_S),
            None, row.inside_R, JudgeSize(weight=len(row.target_S), num_tokens=0),
        )  # fmt: skip
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    group = dataset.groups[0]
    for solution in group.solutions:
        for read, target in zip(solution.reads, solution.targets, strict=True):
            prefix = torch.tensor([group.prompt_tokens + solution.tokens[: read + 1]])
            probability = model(prefix)[0, -1, [good, bad]].softmax(0)[0].item()
            assert (probability > 0.5) == (target == 1)


def test_shared_prompts_score_as_one_row_a_solution(home: Path, tokenizer: ChatTokenizer) -> None:
    groups = step_dataset(tokenizer, FORMAT, str(home / "steps")).groups
    assert all(len(group.solutions) == 3 and len(group.prompt_tokens) > 20 for group in groups)
    model = tiny_decoder(home / "model").eval()
    row = pack_judged(groups[:3], "cpu")
    together = read_labels(model, row.packed, row.place_S, 10, 12).score_S()
    alone = []
    for group in groups[:3]:
        for solution in group.solutions:
            single = JudgeGroup(problem_id="p", prompt_tokens=group.prompt_tokens, solutions=[solution])
            packed = pack_judged([single], "cpu")
            alone.append(read_labels(model, packed.packed, packed.place_S, 10, 12).score_S())
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-6)


def test_targets_are_the_ratings_or_the_shares_and_neutral_is_what_one_says(
    home: Path, tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    soft = step_dataset(tokenizer, FORMAT, str(home / "steps"), estimate="soft").groups[0].solutions
    assert [solution.targets for solution in soft] == [[0.875, 0.875], [0.125, 0.875], [0.875, 0.125]]
    assert [solution.labels for solution in soft] == [[1.0, 1.0], [0.0, 1.0], [1.0, 0.0]]
    folder = write_home(tmp_path / "h", 1) / "steps" if (tmp_path / "h").mkdir() is None else None
    steps = list(read_records(folder / "steps.jsonl", Step))
    neutral = [Step(**{**vars(step), "rating": 0}) if step.index == 1 else step for step in steps]
    write_records(folder / "steps.jsonl", neutral)
    found = {
        how: [s.targets[1] for s in step_dataset(tokenizer, FORMAT, str(folder), neutral=how).groups[0].solutions]
        for how in ("positive", "negative", "drop")
    }
    assert found == {"positive": [1.0] * 3, "negative": [0.0] * 3, "drop": [None] * 3}


def test_hard_labels_have_no_shares_to_learn(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    file = write_home(tmp_path, 1) / "steps" / "steps.jsonl"
    write_records(file, [Step(**{**vars(step), "score": None}) for step in read_records(file, Step)])
    with pytest.raises(UserError, match=r"with dataset.estimate=soft gives nothing .*left out: 3 no_label"):
        step_dataset(tokenizer, FORMAT, str(file.parent), estimate="soft")


def test_an_outcome_judge_reads_the_end_of_the_whole_answer(home: Path, tokenizer: ChatTokenizer) -> None:
    group = outcome_dataset(tokenizer, FORMAT, str(home / "steps")).groups[0]
    assert [solution.targets for solution in group.solutions] == [[1.0], [0.0], [0.0]]
    assert all(solution.reads == [len(solution.tokens) - 1] for solution in group.solutions)


def test_no_problem_is_on_both_sides_of_the_split(home: Path, tokenizer: ChatTokenizer) -> None:
    groups = step_dataset(tokenizer, FORMAT, str(home / "steps"), max_solutions=2).groups
    assert len(groups) == 16  # three solutions a problem, two a group
    train, held = split_by_problem(groups, 0.25, seed=0)
    assert len(held) == 4 and not {g.problem_id for g in train} & {g.problem_id for g in held}
    assert split_by_problem(groups[::-1], 0.25, seed=0)[1] == held[::-1]
    with pytest.raises(UserError, match="0.9 of 2 problems leaves none to train on"):
        split_by_problem(groups[:4], 0.9, seed=0)


def test_labels_of_one_class_are_refused() -> None:
    solution = JudgeSolution(answer_id="a", tokens=[1], begin=0, reads=[0], targets=[1.0], labels=[1.0])
    group = JudgeGroup(problem_id="p", prompt_tokens=[5], solutions=[solution] * 3)
    with pytest.raises(UserError, match="all 3 labels to train on are 1: a judge needs right and wrong ones"):
        require_both_classes([group], "dataset.source=x")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda steps: steps[:1] + steps[2:], "answer 0-0: the steps do not cover the answer"),
        (lambda steps: [steps[1], steps[0], *steps[2:]], "answer 0-0: step 0 is numbered 1"),
        (lambda steps: [*steps, steps[0]], "the steps of answer 0-0 stand in two places"),
        (lambda steps: [], "holds no steps yet"),
    ],
)
def test_steps_that_are_not_the_answers_are_refused(
    tmp_path: Path, tokenizer: ChatTokenizer, damage, message: str
) -> None:
    folder = write_home(tmp_path, 1) / "steps"
    write_records(folder / "steps.jsonl", damage(list(read_records(folder / "steps.jsonl", Step))))
    with pytest.raises(UserError, match=message):
        step_dataset(tokenizer, FORMAT, str(folder))


def test_a_half_written_line_is_left_out_and_a_malformed_one_named(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    file = write_home(tmp_path, 2) / "steps" / "steps.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:-2]) + lines[-2][:20])  # a kill in the middle of the last answer
    dataset = step_dataset(tokenizer, FORMAT, str(file.parent))
    assert sum(len(group.solutions) for group in dataset.groups) == 5
    assert dataset.left_out.no_steps == 1
    file.write_text("".join(lines).replace('"rating":-1', '"rating":2', 1))
    with pytest.raises(UserError, match=r"steps.jsonl:3: not a Step record: rating=2 is none of -1, 0, 1"):
        step_dataset(tokenizer, FORMAT, str(file.parent))


def test_the_loss_is_the_cross_entropy_of_the_labels() -> None:
    """Two labelled steps, one without label: logits (2, 0) with target 1 and weight 2, (1, 1) with target 0.25."""
    good, bad, vocabulary = (torch.tensor(x) for x in ([2.0, 1.0, 5.0], [0.0, 1.0, 5.0], [3.0, 2.0, 9.0]))
    target, weight = torch.tensor([1.0, 0.25, torch.nan]), torch.tensor([2.0, 1.0, 7.0])
    logprobs, trained = torch.tensor([-1.0, -4.0]), torch.tensor([True, False])
    arguments = (good, bad, vocabulary, target, weight, logprobs, trained, JudgeSize(weight=4.0, num_tokens=2))
    labels, parts = StepLabelLoss()(*arguments)
    first = F.softplus(torch.tensor(-2.0)).item()  # -log sigmoid(2)
    assert labels.item() == pytest.approx((2 * first + torch.log(torch.tensor(2.0)).item()) / 4)
    assert parts["language_model_loss"].item() == 0.5
    full, _ = StepLabelLoss("vocabulary", language_model_weight=2.0)(*arguments)
    assert full.item() == pytest.approx((2 * (3 - 2) + 0.25 * (2 - 1) + 0.75 * (2 - 1)) / 4 + 2 * 0.5)


def test_metrics_by_hand() -> None:
    solutions = [
        Judged(problem_id="a", scores=[0.9, 0.8, 0.2], labels=[1.0, 1.0, 0.0]),  # found
        Judged(problem_id="a", scores=[0.9, 0.4, 0.2], labels=[1.0, 1.0, 0.0]),  # called too early
        Judged(problem_id="b", scores=[0.7, 0.6], labels=[1.0, 1.0]),  # rightly nothing
        Judged(problem_id="b", scores=[0.7, 0.1], labels=[None, 0.0]),  # nobody knows whether the first was wrong
    ]
    found = first_error_scores(solutions)
    assert (found["solutions_wrong"], found["solutions_right"]) == (2, 1)
    assert found["found_first_error"] == 0.5 and found["found_no_error"] == 1.0
    assert found["first_error_f1"] == pytest.approx(2 / 3)
    all_of = measure_judge(solutions)
    assert all_of["steps"] == 9 and all_of["good_share"] == pytest.approx(6 / 9)
    assert all_of["accuracy"] == pytest.approx(8 / 9)
    assert all_of["auc"] == 1.0  # every right step is above every wrong one
    assert all_of["auc_low"] <= all_of["auc"] <= all_of["auc_high"]
    assert measure_judge([Judged(problem_id="a", scores=[0.9], labels=[1.0])])["auc"] is None


def test_values_are_measured_over_all_tokens_and_at_the_first_and_the_last_alone() -> None:
    answers = [
        Valued(problem_id="a", scores=[0.5, 0.5, 1.0], losses=[3.0, 2.0, 1.0], label=1.0),
        Valued(problem_id="a", scores=[0.6], losses=[6.0], label=0.0),
        Valued(problem_id="b", scores=[0.4, 0.2], losses=[1.0, 0.0], label=0.0),
    ]
    found = measure_values(answers)
    assert (found["sequences"], found["tokens"], found["good_share"]) == (3, 6, pytest.approx(1 / 3))
    # Means of 2, 6 and 0.5; of 3, 6, 1; of 1, 6, 0.
    assert [found[name] for name in ("loss", "switch_loss", "last_loss")] == pytest.approx([8.5 / 3, 10 / 3, 7 / 3])
    # Right at 0.5, 0.5, 1 and 0.4, 0.2; 0.6 is called right, and is not.
    accuracies = [found[name] for name in ("accuracy", "switch_accuracy", "last_accuracy")]
    assert accuracies == pytest.approx([5 / 6, 2 / 3, 2 / 3])
    # Pairs of a right and a wrong token: 0.5, 0.5 and 1 above 0.6, 0.4, 0.2; 0.5 above 0.6, 0.4; 1 above 0.6, 0.2.
    assert [found[name] for name in ("auc", "switch_auc", "last_auc")] == pytest.approx([7 / 9, 1 / 2, 1.0])
    # Score less return at the last tokens: 0, 0.6, 0.2, variance 0.56/9; of 1, 0, 0: 2/9.
    assert found["last_explained_variance"] == pytest.approx(1 - 0.56 / 2)
    # Of a resample of problem b alone there is no AUC; those of a alone: 1/3, 0 and 1.
    assert found["auc_low"] == pytest.approx(1 / 3) and found["last_auc_low"] == 1.0 == found["last_auc_high"]
    assert found["switch_auc_low"] == 0.0
    # Of problem a alone: 0.5 is below 0.6, and 1 above it.
    assert (found["switch_within_auc"], found["last_within_auc"]) == (0.0, 1.0)
    alone = measure_values(answers[1:])
    assert alone["last_within_auc"] is None and "within_auc" not in alone
    assert alone["auc"] is None and alone["explained_variance"] is None and alone["loss"] == 3.25


def test_a_chat_prompt_is_no_prompt_of_this_form(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "model")
    with pytest.raises(UserError, match="prompt 'answer' is a chat"):
        TagFormat(prompt="answer").lay_out(ChatTokenizer(tmp_path / "model"), "q", "a", [(0, 1)])
