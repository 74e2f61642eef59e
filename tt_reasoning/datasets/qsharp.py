"""What a value model is trained on: texts that the reference went on with, and the return of their last tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tt_reasoning.datasets.prm import JudgeGroup, JudgeSolution, LeftOut, check_limits, require_both_classes
from tt_reasoning.errors import UserError
from tt_reasoning.generation import PROBLEMS
from tt_reasoning.judges.formats import Layout, share_prompt
from tt_reasoning.models.tokenizer import ChatTokenizer
from tt_reasoning.prompts import Prompt, get_prompt, load_prompt
from tt_reasoning.qsharp import EXAMPLES, TOOL, Example
from tt_reasoning.store import read_manifest, read_records
from tt_reasoning.types import Problem


@dataclass
class ExamplesLeftOut(LeftOut):
    """Examples that nothing is learned from: also those that an earlier source has, and those of problems to train on
    whose returns are all the same."""

    repeated: int = 0
    no_variation: int = 0


@dataclass(kw_only=True)
class QsharpDataset:
    """Groups to train on and groups of other problems, with the prompt that their answers stand behind.

    In each group a solution is one example: ``begin`` is its switch token, the last that was kept of the roll-in. Texts
    that ended by themselves end with token ``end``.
    """

    train: list[JudgeGroup]
    held_out: list[JudgeGroup]
    left_out: ExamplesLeftOut
    prompt: Prompt
    end: int


@dataclass(frozen=True, kw_only=True)
class _Rules:
    max_tokens: int
    max_solutions: int
    switch_token_only: bool


def qsharp_dataset(
    tokenizer: ChatTokenizer,
    sources: Sequence[str],
    prompt: str = "auto",
    max_tokens: int = 2048,
    max_solutions: int = 16,
    drop_no_variation: bool = True,
    switch_token_only: bool = False,
) -> QsharpDataset:
    """Collections of ``collect_qsharp``, those of several rounds and shards together, problem by problem.

    A sample is what the reference read when it rolled out, then the roll-out's tokens, then the end token if it ended
    at one. All tokens from the switch token on are supervised, each with the return of the whole text.

    Args:
        sources: folders of collections.
        prompt: ``auto`` takes the one that they were collected with; a name or file has to be that one.
        max_tokens: longer roll-outs are cut there; where what was kept of the roll-in is longer, the example is left
            out (``too_long``).
        max_solutions: examples of one problem that share its prompt at most.
        drop_no_variation: leave out problems to train on whose returns are all the same in all sources.
        switch_token_only: supervise the switch token alone.

    Raises:
        UserError: no such folder, an unfinished collection, collections with several prompts, a problem that one
            trains on and another holds out, or nothing to train on.

    A row of ``examples.jsonl``: ``{"id": "9f…", "problem_id": "38…", "split": "train", "begun": "2 + 2", "text":
    " = 4", "ended": true, "whole": false, "correct": true}``
    """
    if isinstance(sources, str) or not sources or not all(isinstance(source, str | Path) for source in sources):
        raise UserError(f"config key dataset.sources={sources!r}: give a list of folders, such as [rollouts/r1]")
    check_limits(max_tokens, max_solutions)
    rules = _Rules(max_tokens=max_tokens, max_solutions=max_solutions, switch_token_only=switch_token_only)
    found = _find_prompt(sources, prompt)
    left_out = ExamplesLeftOut()
    questions, examples = _read_sources(sources, left_out)
    groups: dict[str, list[JudgeGroup]] = {"train": [], "eval": []}
    for problem_id, group in examples.items():
        made = _make_groups(tokenizer, found, questions[problem_id], group, rules, left_out)
        side = group[0].split
        if side == "train" and drop_no_variation and len({target for each in made for target in each.targets}) == 1:
            left_out.no_variation += sum(len(each.solutions) for each in made)
        else:
            groups[side] += made
    told = f"dataset.sources=[{','.join(map(str, sources))}]"
    if not groups["train"]:
        raise UserError(
            f"{told} gives nothing to train on (left out: {left_out.describe() or 'none'}; "
            f"{sum(len(group.solutions) for group in groups['eval'])} examples are held out); collect more problems"
        )
    require_both_classes(groups["train"], told)
    return QsharpDataset(
        train=groups["train"], held_out=groups["eval"], left_out=left_out, prompt=found, end=tokenizer.eos_id
    )


def _find_prompt(sources: Sequence[str], wanted: str) -> Prompt:
    """The prompt of all sources. Raises UserError when they have several, or another than the one wanted."""
    prompts: dict[str, Prompt] = {}
    for source in sources:
        manifest = read_manifest(source)
        if manifest.get("tool") != TOOL:
            raise UserError(f"{source} holds a run of {manifest.get('tool')}, not of {TOOL}; name its --out folder")
        prompts[str(source)] = get_prompt(str(manifest.get("arguments", {}).get("prompt")), source)
    names = {source: prompt.name for source, prompt in prompts.items()}
    first, *others = names
    for other in others:
        if names[other] != names[first]:
            raise UserError(
                f"{first} was collected with prompt {names[first]}, {other} with {names[other]}; "
                "train on those of one prompt"
            )
    if wanted != "auto" and load_prompt(wanted).name != names[first]:
        raise UserError(f"config key dataset.prompt={wanted}: {first} was collected with {names[first]}; give auto")
    return prompts[first]


def _read_sources(
    sources: Sequence[str], left_out: ExamplesLeftOut
) -> tuple[dict[str, str], dict[str, list[Example]]]:
    """The questions, and the examples that have a return, by problem."""
    questions: dict[str, str] = {}
    examples: dict[str, list[Example]] = {}
    side_of: dict[str, tuple[str, str]] = {}
    seen: set[str] = set()
    for source in map(Path, sources):
        if not (source / EXAMPLES).exists():
            raise UserError(
                f"{source} has no {EXAMPLES}: its collection is not finished; the command that began it goes on: "
                f"python tools/{TOOL}.py ... --out {source}"
            )
        questions |= {problem.id: problem.question for problem in read_records(source / PROBLEMS, Problem)}
        for example in read_records(source / EXAMPLES, Example):
            if example.problem_id not in questions:
                raise UserError(f"{source / EXAMPLES}: problem {example.problem_id} is not in {PROBLEMS}; restore it")
            side, where = side_of.setdefault(example.problem_id, (example.split, str(source)))
            if side != example.split:
                raise UserError(
                    f"problem {example.problem_id} is {side} in {where}, {example.split} in {source}: what is held "
                    "out may not be trained on; collect both with one --rounds-file"
                )
            if example.id in seen:
                left_out.repeated += 1
            elif example.correct is None:
                left_out.no_label += 1
            else:
                examples.setdefault(example.problem_id, []).append(example)
            seen.add(example.id)
    return questions, examples


def _make_groups(
    tokenizer: ChatTokenizer,
    prompt: Prompt,
    question: str,
    examples: Sequence[Example],
    rules: _Rules,
    left_out: ExamplesLeftOut,
) -> list[JudgeGroup]:
    asked = tokenizer.encode_prompt(prompt.render(question))
    laid_out = [
        (example, lay_out_example(tokenizer, asked, prompt, question, example, rules.max_tokens))
        for example in examples
    ]
    fitting = [(example, layout) for example, layout in laid_out if layout is not None]
    left_out.too_long += len(laid_out) - len(fitting)
    groups = []
    for first in range(0, len(fitting), rules.max_solutions):
        part = fitting[first : first + rules.max_solutions]
        shared = share_prompt([layout for _, layout in part])
        solutions = [_make_solution(example, layout, shared, rules.switch_token_only) for example, layout in part]
        tokens = part[0][1].tokens[:shared]
        groups.append(JudgeGroup(problem_id=examples[0].problem_id, prompt_tokens=tokens, solutions=solutions))
    return groups


def _make_solution(example: Example, layout: Layout, shared: int, switch_token_only: bool) -> JudgeSolution:
    """The sample behind the ``shared`` tokens of its prompt."""
    reads = [place - shared for place in layout.read]
    reads = reads[:1] if switch_token_only else reads
    returns: list[float | None] = [float(bool(example.correct))] * len(reads)
    return JudgeSolution(
        answer_id=example.id, tokens=layout.tokens[shared:], begin=reads[0], reads=reads, targets=returns,
        labels=returns,
    )  # fmt: skip


def lay_out_example(
    tokenizer: ChatTokenizer, asked: Sequence[int], prompt: Prompt, question: str, example: Example, max_tokens: int
) -> Layout | None:
    """The tokens of an example, read from its switch token on; None when that is beyond ``max_tokens``.

    What was begun is encoded together with its prompt, as engines do that go on from it; the roll-out by itself.

    Args:
        asked: the tokens of the prompt with nothing begun. ``start`` is behind those of them that stay when an answer
            follows: its first characters may share a token with the prompt's last ones.
    """
    tokens = tokenizer.encode_prompt(prompt.render(question, example.begun))
    pairs = enumerate(zip(asked, tokens, strict=False))
    start = next((place for place, (one, other) in pairs if one != other), len(asked))
    end = [tokenizer.eos_id] if example.ended else []
    switch = len(tokens) - (0 if example.whole and example.ended else 1)
    tokens = [*tokens, *tokenizer.encode(example.text), *end][:max_tokens]
    if switch >= len(tokens):
        return None
    return Layout(tokens, min(start, switch), list(range(switch, len(tokens))))
