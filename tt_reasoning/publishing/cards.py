"""The page of a repository on the Hub: what it is, how it was made, what it is worth, whose it is, what it is for.

A card is Markdown under YAML; the YAML also tells ``datasets.load_dataset`` which files to read. It says only what the
folder itself says (its manifest, statistics and results) and what the command line adds. A card written here carries
a digest of itself, so that one edited later is known as such and is not replaced.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

import yaml

from tt_reasoning.errors import UserError
from tt_reasoning.evaluation import AGGREGATOR, Report, format_table, interval, percent
from tt_reasoning.guidance import CARD as VALUE
from tt_reasoning.guidance import ValueCard
from tt_reasoning.judges import JudgeCard
from tt_reasoning.prm800k import HOME, LICENSE
from tt_reasoning.problems import SOURCES
from tt_reasoning.prompts import PROMPTS, restore_prompt
from tt_reasoning.publishing.privacy import scrub_paths
from tt_reasoning.types import Sampling

_MARK = re.compile(r"<!-- written by tt-reasoning: ([0-9a-f]{16}) -->\n\Z")
_FRONT = re.compile(r"---\r?\n(.*?\r?\n)---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_LICENSE_ID = re.compile(r"[a-z0-9]+(?:[.-][a-z0-9]+)*")
MODEL_KINDS = ("model", "adapter", "judge", "value model")
_MOST_ROWS = 12  # of a table of statistics inside another one: more, or numbers as names, is a histogram

BASE_LICENSES: dict[str, dict[str, str]] = {  # of the models that tools/get_model.py knows
    "HuggingFaceTB/SmolLM2-135M-Instruct": {"license": "apache-2.0"},
    **{
        f"Qwen/Qwen2.5-{size}{tuned}": {"license": "apache-2.0"}
        for size in ("0.5B", "1.5B")
        for tuned in ("", "-Instruct")
    },
    **{
        f"Qwen/Qwen2.5-3B{tuned}": {
            "license": "other",
            "license_name": "qwen-research",
            "license_link": f"https://huggingface.co/Qwen/Qwen2.5-3B{tuned}/blob/main/LICENSE",
        }
        for tuned in ("", "-Instruct")
    },
}

COLUMNS = {  # of answer sets
    "question": "the text that the aggregator reads: the question and its proposed answers",
    "answer": "the gold answer of the benchmark",
    "id": "of the set",
    "problem_id": "of the question: the same words have the same id in every benchmark",
    "source": "the benchmark",
    "split": "the problem's split there",
    "kind": "how answers are compared: math or choice",
    "k": "how many answers the text holds",
    "answer_ids": "of the answers, in the order of the text",
    "order_seed": "decides that order",
}


@dataclass(frozen=True, kw_only=True)
class Table:
    """Data files that ``load_dataset(repo, name)`` reads: paths by split, how many rows, the record they hold (None:
    the files say it themselves), and the columns that the card explains."""

    name: str
    files: Mapping[str, str]
    num_rows: int
    record: type | None = None
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """A judge or value model on the problems that its training held out: a row of ``evaluations.jsonl``, of how many,
    and whether it is the one with the lowest loss."""

    figures: Mapping[str, Any]
    num_evaluations: int
    is_best: bool


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a card is about, as the folder says it.

    ``sources`` counts problems by benchmark and split; ``samplings`` are those of the answers; ``facts`` are short
    lines about the content; ``manifest`` names no folders of this machine any more.
    """

    repo: str
    kind: str
    what: str
    tables: tuple[Table, ...] = ()
    manifest: dict[str, Any] | None = None
    stats: dict[str, Any] | None = None
    sources: Mapping[tuple[str, str], int] = field(default_factory=dict)
    samplings: tuple[Sampling, ...] = ()
    reports: Mapping[str, Report] = field(default_factory=dict)
    facts: tuple[str, ...] = ()
    base_model: str | None = None
    prompt: str | None = None
    judge: JudgeCard | None = None
    value: ValueCard | None = None
    held_out: HeldOut | None = None
    license: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_model(self) -> bool:
        return self.kind in MODEL_KINDS


class License(typing.NamedTuple):
    """The card's fields about the licence, and why the user has to say it (None: it is known)."""

    fields: dict[str, Any]
    asked: str | None


def source_license(source: str) -> str | None:
    """The Hub's id for the licence of a benchmark, None where it is not known.

    >>> source_license("gsm8k"), source_license("gpqa-diamond"), source_license("aime25"), source_license("mine")
    ('mit', 'cc-by-4.0', None, None)
    """
    name = _origin(source)[0].partition(",")[0].lower()
    return None if name == "unknown" else name


def _origin(source: str) -> tuple[str, str]:
    """The licence of a benchmark, or of PRM800K, and where it is from."""
    if source == "prm800k":
        return LICENSE, HOME
    known = SOURCES.get(source)
    return known.license if known else "unknown", "tt-reasoning" if known and known.hub is None else _hub_name(source)


def choose_license(given: str | None, sources: Iterable[str], base_model: str | None = None) -> License:
    """The licence as given, else that of the benchmarks or of the base model; ``other`` where one is not known.

    >>> choose_license(None, ["gsm8k", "math"])
    License(fields={'license': 'mit'}, asked=None)
    >>> choose_license(None, ["gsm8k", "aime25"]).asked
    'the licence of aime25 is not known'

    Raises:
        UserError: ``given`` is no id of a licence.
    """
    sources = sorted(set(sources))
    if given is not None:
        if not _LICENSE_ID.fullmatch(given):
            raise UserError(f"--license {given}: give an id of the Hub, such as mit, apache-2.0, cc-by-4.0 or other")
        return License({"license": given}, None)
    if base_model is not None or not sources:
        if base_model in BASE_LICENSES:
            return License(dict(BASE_LICENSES[base_model]), None)
        return License({"license": "other"}, f"the licence of {base_model or 'the content'} is not known")
    found = {source: source_license(source) for source in sources}
    if unknown := [source for source, name in found.items() if name is None]:
        return License({"license": "other"}, f"the licence of {', '.join(unknown)} is not known")
    names = sorted({name for name in found.values() if name})
    return License({"license": names[0] if len(names) == 1 else names}, None)


def write_card(subject: Subject) -> str:
    """The whole card, with the digest that ``is_own_card`` looks for."""
    title = subject.repo.partition("/")[2]
    parts = [
        f"# {title}\n\n{subject.what}",
        _use(subject),
        _how_made(subject),
        _content(subject),
        _evaluation(subject),
        _whose(subject),
        _limits(subject),
    ]
    front = yaml.safe_dump(_front_matter(subject), sort_keys=False, allow_unicode=True, width=1000)
    text = f"---\n{front}---\n\n" + "\n\n".join(part for part in parts if part) + "\n\n"
    return text + f"<!-- written by tt-reasoning: {_digest(text)} -->\n"


def is_own_card(text: str) -> bool:
    """Whether a card was written here and not edited since.

    >>> card = write_card(Subject(repo="ada/demo", kind="dataset", what="Numbers.", license={"license": "mit"}))
    >>> is_own_card(card), is_own_card(card.replace("Numbers", "Figures")), is_own_card("# Mine")
    (True, False, False)
    """
    found = _MARK.search(text)
    return found is not None and found[1] == _digest(text[: found.start()])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_card(text: str, paths: Sequence[str]) -> list[str]:
    """Check a card that the user wrote; returns remarks.

    Args:
        paths: the files that are published with it.

    Raises:
        UserError: its YAML cannot be read, or names data files that are not there.
    """
    found = _FRONT.match(text)
    if found is None:
        if text.startswith("---"):
            raise UserError("README.md: the YAML at its top has no end: a line with --- alone")
        return ["README.md has no YAML at its top: the Hub will show no licence, and load_dataset guesses the files"]
    try:
        fields = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        raise UserError(f"README.md: its YAML cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(fields, dict):
        raise UserError("README.md: its YAML should be fields with values, such as license: mit")
    for pattern in _named_files(fields.get("configs")):
        if not any(fnmatch(path, pattern) for path in paths):
            raise UserError(f"README.md: configs names {pattern}, and no such file is published")
    return [] if fields.get("license") else ["README.md names no license"]


def _named_files(configs: Any) -> list[str]:
    """The patterns under ``data_files`` of a card's configs, in each of the forms that the Hub takes."""
    found: list[str] = []
    for config in configs if isinstance(configs, list) else []:
        files = config.get("data_files") if isinstance(config, dict) else None
        for entry in files if isinstance(files, list) else [files]:
            named = entry.get("path") if isinstance(entry, dict) else entry
            found += [name for name in (named if isinstance(named, list) else [named]) if isinstance(name, str)]
    return found


def _front_matter(subject: Subject) -> dict[str, Any]:
    fields: dict[str, Any] = dict(subject.license)
    if any(source in SOURCES or source == "prm800k" for source, _ in subject.sources):
        fields["language"] = ["en"]
    fields |= {"pretty_name": subject.repo.partition("/")[2]} if not subject.is_model else {}
    fields["tags"] = _tags(subject)
    if subject.is_model:
        # Not transformers for these: the Hub would offer to load it with a classifier's head that it does not have.
        libraries = {"adapter": "peft", "judge": "tt-reasoning", "value model": "tt-reasoning"}
        fields |= {"library_name": libraries.get(subject.kind, "transformers")}
        fields |= {"pipeline_tag": "text-classification" if subject.judge or subject.value else "text-generation"}
        fields |= {"base_model": subject.base_model} if subject.base_model else {}
        fields |= {"model-index": index} if (index := _model_index(subject)) else {}
        return fields
    fields["task_categories"] = ["text-classification" if subject.kind in ("steps", "scores") else "text-generation"]
    if subject.tables:
        fields["size_categories"] = [size_category(max(table.num_rows for table in subject.tables))]
        fields["configs"] = [
            {
                "config_name": table.name,
                "data_files": [{"split": split, "path": path} for split, path in table.files.items()],
            }
            | ({"default": True} if table is subject.tables[0] and len(subject.tables) > 1 else {})
            for table in subject.tables
        ]
        typed = [table for table in subject.tables if table.record]
        if typed:
            fields["dataset_info"] = [
                {"config_name": table.name, "features": features_of(table.record)} for table in typed if table.record
            ]
    return fields


def _tags(subject: Subject) -> list[str]:
    tags = ["tt-reasoning"]
    if subject.kind == "answer sets" or subject.prompt:
        tags += ["answer-sets", "ssa"]
    if subject.judge:
        of_whole = subject.judge.outcome or subject.judge.head == "value"
        tags += ["reward-model", "outcome-reward-model" if of_whole else "process-reward-model"]
        tags += ["verifier"] if subject.judge.head == "value" else []
    tags += ["value-model", "guided-decoding", "reward-model"] if subject.value else []
    return tags + (["process-reward-model"] if subject.kind == "steps" else [])


def size_category(num_rows: int) -> str:
    """The Hub's word for a number of rows.

    >>> [size_category(n) for n in (999, 1000, 20_000, 3_000_000)]
    ['n<1K', '1K<n<10K', '10K<n<100K', '1M<n<10M']
    """
    steps = ["1K", "10K", "100K", "1M", "10M", "100M", "1B"]
    place = sum(num_rows >= 1000 * 10**power for power in range(len(steps)))
    return "n<1K" if place == 0 else "n>1B" if place == len(steps) else f"{steps[place - 1]}<n<{steps[place]}"


def features_of(record: type) -> list[dict[str, Any]]:
    """The columns of a record type as the Hub's YAML says them, so that a column of nulls has its type all the same.

    >>> from tt_reasoning.types import Verdict
    >>> features_of(Verdict)[2]
    {'name': 'correct', 'dtype': 'bool'}
    """
    return [{"name": name} | _feature(hint) for name, hint in typing.get_type_hints(record).items()]


def _feature(hint: Any) -> dict[str, Any]:
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint):
        return {"struct": features_of(typing.cast(type, hint))}
    if origin is tuple:
        inner = _feature(typing.get_args(hint)[0])
        return {"list": inner.get("dtype") or inner["struct"]}
    if origin is typing.Literal:
        return _feature(type(typing.get_args(hint)[0]))
    if origin in (types.UnionType, typing.Union):
        return _feature(next(arg for arg in typing.get_args(hint) if arg is not type(None)))
    return {"dtype": {str: "string", int: "int64", float: "float64", bool: "bool"}[hint]}


def _model_index(subject: Subject) -> list[dict[str, Any]]:
    """What the aggregator reached, as the Hub's leaderboards read it."""
    results = [
        {
            "task": {"type": "text-generation"},
            "dataset": {"type": _hub_name(report.dataset), "name": report.dataset, "split": report.split},
            "metrics": [
                {
                    "type": "accuracy",
                    "name": f"accuracy, {result.k} answers read",
                    "value": round(100 * result.value, 1),
                }
            ],
        }
        for report in subject.reports.values()
        for result in report.results
        if result.method == AGGREGATOR
    ]
    return [{"name": subject.repo.partition("/")[2], "results": results}] if results else []


def _hub_name(source: str) -> str:
    return (SOURCES[source].hub if source in SOURCES else None) or source


def _use(subject: Subject) -> str:
    if subject.judge:
        return _use_judge(subject, subject.judge)
    if subject.value:
        return _use_value(subject, subject.value)
    if subject.kind == "adapter":
        base = subject.base_model or "BASE"
        code = (
            "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
            f'model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "{subject.repo}")'
        )
    elif subject.is_model:
        code = (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'tokenizer = AutoTokenizer.from_pretrained("{subject.repo}")\n'
            f'model = AutoModelForCausalLM.from_pretrained("{subject.repo}")'
        )
    elif subject.tables:
        names = [f', "{table.name}"' if len(subject.tables) > 1 else "" for table in subject.tables]
        loads = [f'load_dataset("{subject.repo}"{name})' for name in names]
        code = "from datasets import load_dataset\n\n" + "\n".join(loads)
    else:
        return ""
    lines = f"## Use\n\n```python\n{code}\n```"
    if subject.prompt:
        lines += (
            f"\n\nIt was trained on the prompt `{subject.prompt}` of tt-reasoning and reads texts of that form: "
            f"`python tools/evaluate.py --answers ANSWERS --aggregator {subject.repo} --prompt {subject.prompt} "
            "--num-answers 4 --out RESULTS`."
        )
    if subject.kind == "answer sets":
        if "train" in subject.tables[0].files:
            lines += "\n\nTo train an aggregator on the split `train`: "
            lines += f"`tune run grpo_ssa_distributed --config CONFIG dataset.source=hub:{subject.repo}`."
        rows = [[column, COLUMNS.get(column, "")] for column in subject.tables[0].columns]
        lines += "\n\n" + format_table([["column", "what it holds"], *rows], markdown=True)
    return lines + _use_with_tools(subject)


def _use_with_tools(subject: Subject) -> str:
    """What tt-reasoning does with a folder that has to be on the disk."""
    name = subject.repo.partition("/")[2]
    purpose, folder, command = {
        "steps": ("train a step judge", f"steps/{name}", "tune run prm_nexttok --config CONFIG dataset.source="),
        "scores": ("select answers by it", f"scores/{name}", "python tools/evaluate.py --answers ANSWERS --scores "),
    }.get(subject.kind, ("", "", ""))
    if not purpose:
        return ""
    more = " --out RESULTS" if subject.kind == "scores" else ""
    return (
        f"\n\nTo {purpose} with tt-reasoning:\n\n```\nhf download {subject.repo} --repo-type dataset --local-dir "
        f"{folder}\n{command}{folder}{more}\n```"
    )


def _use_judge(subject: Subject, judge: JudgeCard) -> str:
    folder = f"judges/{subject.repo.partition('/')[2]}"
    unit = "every answer" if judge.outcome or judge.head == "value" else "every step of every answer"
    return (
        "## Use\n\n```\n"
        f"hf download {subject.repo} --local-dir {folder}\n"
        f"python tools/rank_answers.py --answers ANSWERS --judge {folder} --out scores/run\n"
        "python tools/evaluate.py --answers ANSWERS --scores scores/run --out RESULTS\n```\n\n"
        f"`rank_answers` of tt-reasoning scores {unit} in the folder ANSWERS; `evaluate` selects by the scores "
        "(best-of-n, weighted votes). transformers and vLLM load the weights as a language model, which by itself "
        "gives no score.\n\n"
        f"### What it reads, and where its score stands\n\n{_describe_reading(judge)}"
    )


_RULES = {  # what is added to a token's logit
    "bernoulli": "ln(1 - p + p e^eta), p being the sigmoid of its output: the chance that the answer will be right",
    "expectation": "ln p, p being the sigmoid of its output, which learned exp(eta (R - 1)) of the return R",
    "categorical": "ln of the sum over returns z of p(z) e^(eta z), p being the softmax of its outputs",
}


def _use_value(subject: Subject, value: ValueCard) -> str:
    name = subject.repo.partition("/")[2]
    etas = "0 1 5 10" if value.eta is None else f"0 {value.eta:g}"
    only = "" if value.eta is None else f" It was trained for eta {value.eta:g} alone."
    prompt = f"--prompt {value.prompt} " if value.prompt in PROMPTS else ""  # else a file, which the card shows below
    return (
        "## Use\n\n```\n"
        f"hf download {subject.repo} --local-dir values/{name}\n"
        f"python tools/generate_answers.py --engine guided --model REFERENCE --value-model values/{name} --eta {etas} "
        f"--dataset gsm8k {prompt}--num-samples 8 --out answers/guided\n"
        "python tools/check_answers.py --answers answers/guided\n"
        "python tools/evaluate.py --answers answers/guided --out results/guided\n"
        f"python tools/rank_answers.py --answers ANSWERS --judge values/{name} --out scores/run\n```\n\n"
        "With tt-reasoning: REFERENCE is the model whose answers it learned from, or another with the same vocabulary. "
        "`eta` is the inverse of the paper's temperature: the larger, the harder it steers; 0 does not steer."
        f"{only} Its rule is `{value.rule}`: to the logit of a likely token is added {_RULES[value.rule]}. "
        "`evaluate` says accuracy and divergence from the reference for every eta. `rank_answers` scores finished "
        "answers, for best-of-n (Q#-RM). transformers and vLLM load the weights as a language model, which by itself "
        f"says no value.\n\n### What it reads, and where\n\n{_describe_value(value)}"
    )


def _describe_value(value: ValueCard) -> str:
    """The prompt that answers stand behind, and which state says what."""
    shown = restore_prompt(value.prompt, value.template, VALUE).render("{question}")
    form = "the text" if isinstance(shown, str) else "the chat, by the model's own chat template,"
    outputs = "one output" if value.num_values == 1 else (
        f"{value.num_values} outputs for returns from {value.low:g} to {value.high:g},"
    )
    where = f"A V head with {outputs} is read in the state that has seen a token: it says what the token is worth."
    if value.head == "Q":
        where = (
            f"A Q head with {outputs} for every token of the vocabulary is read in the state before: it says what that "
            "token would be worth."
        )
    return f"Answers stand behind {form} {_quote(shown)} of the prompt `{value.prompt}`, written here as JSON. {where}"


def _describe_reading(judge: JudgeCard) -> str:
    """The text of a question with a solution as the judge is shown it, and what makes the score."""
    from tt_reasoning.judges.formats import TagFormat  # with torch

    is_value = judge.head == "value"
    parts = ["{solution}"] if judge.outcome or is_value else ["{step 1}", "{step 2}"]
    spans = [(0, 10)] if len(parts) == 1 else [(0, 8), (8, 16)]
    shown = TagFormat(prompt=judge.prompt, step_token="" if is_value else judge.step_token, between=judge.between)
    text = _quote(shown.text("{question}", "".join(parts), spans)[0])
    lines = [
        f"It is shown {text}, written here as JSON, of the prompt `{judge.prompt}`; the tokenizer's own first token, "
        "if it has one, stands before it."
    ]
    if is_value:
        how = "the sigmoid of its value" if judge.squash else "its value, cut to 0 to 1"
        return lines[0] + f" The value head is read at the last token of the solution; the score is {how}."
    behind = "the solution" if judge.outcome else "each step"
    lines.append(
        f"Behind {behind} stands {_quote(judge.step_token)}. The score is the softmax of two logits at the last token "
        f"of that: of {_quote(judge.good)} (right) against {_quote(judge.bad)} (wrong)."
    )
    return " ".join(lines)


def _quote(text: Any) -> str:
    """A text, or a chat, as JSON in code, whatever it holds.

    >>> _quote("\\n"), _quote("`")
    ('`"\\\\n"`', '`` "`" ``')
    """
    quoted = json.dumps(text, ensure_ascii=False)
    return f"`` {quoted} ``" if "`" in quoted else f"`{quoted}`"


def _how_made(subject: Subject) -> str:
    lines = []
    if subject.manifest:
        tool, arguments = subject.manifest.get("tool"), subject.manifest.get("arguments", {})
        lines.append(f"By `{tool}` of tt-reasoning, with:\n\n```json\n{json.dumps(arguments, indent=2)}\n```")
    if subject.samplings:
        named = _sampling_rows(subject.samplings)
        same = {key: value for key, value in named[0].items() if all(row[key] == value for row in named)}
        rows = [["sampling", "value"], *([key, _plain(value)] for key, value in same.items() if value is not None)]
        rows += [[key, ", ".join(sorted({_plain(row[key]) for row in named}))] for key in named[0] if key not in same]
        lines.append("The answers were sampled with:\n\n" + format_table(rows, markdown=True))
    if subject.manifest and (versions := subject.manifest.get("versions")):
        lines.append("Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".")
    return "## How it was made\n\n" + "\n\n".join(lines) if lines else ""


def _sampling_rows(samplings: Sequence[Sampling]) -> list[dict[str, Any]]:
    """Samplings as rows of the same keys, with those of their guidance where any has one."""
    rows = [dataclasses.asdict(sampling) for sampling in samplings]
    guidances = [row.pop("guidance") for row in rows]
    keys = dict.fromkeys(key for guidance in guidances for key in guidance or ())
    return [
        row | {f"guidance: {key}": guidance and guidance[key] for key in keys}
        for row, guidance in zip(rows, guidances, strict=True)
    ]


def _plain(value: Any) -> str:
    text = scrub_paths(value) if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _content(subject: Subject) -> str:
    lines = [f"- {fact}" for fact in subject.facts]
    rows = list(_flat(subject.stats or {}))
    if rows:
        lines += ["", format_table([["statistic", "value"], *rows], markdown=True)]
    return "## Content\n\n" + "\n".join(lines).strip("\n") if lines else ""


def _flat(stats: Mapping[str, Any], before: str = "") -> Iterable[list[str]]:
    for name, value in stats.items():
        label = f"{before}{name.replace('_', ' ')}"
        if isinstance(value, Mapping):
            if len(value) <= _MOST_ROWS and not all(key.isdigit() for key in value):
                yield from _flat(value, f"{label}: ")
        elif isinstance(value, (int, float, str)):
            yield [_plain(label), f"{value:.4g}" if isinstance(value, float) else _plain(value)]


def _evaluation(subject: Subject) -> str:
    parts = [_held_out(subject.held_out)] if subject.held_out else []
    parts += [_reported(subject)] if subject.reports else []
    return "## Evaluation\n\n" + "\n\n".join(parts) if parts else ""


def _held_out(held_out: HeldOut) -> str:
    """What the training measured; only figures that there are."""
    figures = held_out.figures
    rows = [["on held-out problems", "value"], ["problems", f"{figures['problems']:,}"]]
    names = (("labels", "steps"), ("answers", "sequences"), ("their tokens", "tokens"))
    rows += [[name, f"{figures[key]:,}"] for name, key in names if key in figures]
    if figures.get("auc") is not None:
        low, high = figures["auc_low"], figures["auc_high"]
        rows.append(["ROC-AUC, 95 % interval", f"{figures['auc']:.3f} [{low:.3f}, {high:.3f}]"])
    if figures.get("first_error_f1") is not None:
        rows.append(["first-error F1 (ProcessBench)", f"{figures['first_error_f1']:.3f}"])
    right = "right labels %" if "steps" in figures else "right answers %"
    names = (("accuracy %", "accuracy"), (right, "good_share"))
    rows += [[name, percent(figures[key])] for name, key in names if figures.get(key) is not None]
    names = (("calibration error", "calibration_error"), ("loss", "loss"), ("explained variance", "explained_variance"))
    rows += [[name, f"{figures[key]:.3f}"] for name, key in names if figures.get(key) is not None]
    text = (
        format_table(rows, markdown=True) + "\n\nMeasured by the training itself, on problems that it held out of the "
        "same data; labels are those of that data. The interval is bootstrapped over problems."
    )
    if held_out.is_best and held_out.num_evaluations > 1:
        text += (
            f" Of {held_out.num_evaluations} measurements of the run on these problems this one has the lowest loss: "
            "chosen so, it flatters a little."
        )
    return text


def _reported(subject: Subject) -> str:
    rows = [["run", "answers of", "benchmark", "k", "method", "accuracy %", "95 % interval", "problems"]]
    for name, report in subject.reports.items():
        steered = f", eta {report.eta:g}" if report.guidance else ""
        for result in report.results:
            rows.append([
                _plain(name), _plain(report.model) + steered, f"{report.dataset}/{report.split}", str(result.k),
                result.method, percent(result.value), interval(result), str(result.num_problems),
            ])  # fmt: skip
    return (
        format_table(rows, markdown=True)
        + "\n\nIntervals are bootstrapped over problems. In a run all methods are measured on the same problems; "
        "those with an answer that could not be judged are left out."
    )


def _whose(subject: Subject) -> str:
    if not subject.sources:
        return ""
    rows = [["benchmark", "split", "problems", "licence", "from"]]
    for (source, split), count in sorted(subject.sources.items()):
        rows.append([source, split, f"{count:,}" if count else "-", *_origin(source)])
    text = (
        "## Sources and licences\n\n" + format_table(rows, markdown=True) + "\n\nQuestions and gold answers are the "
        "benchmarks' own and stay under their licences; cite their authors."
    )
    if any(source == "prm800k" for source, _ in subject.sources):
        text += " Solutions and ratings are those of PRM800K, its questions those of MATH; "
        text += "steps that its labellers wrote have no rating."
    return text


def _limits(subject: Subject) -> str:
    limits = ["For research on reasoning with several sampled answers."]
    if subject.judge:
        limits += ["It compares solutions; it writes none, and a high score is no proof that one is right."]
        limits += ["Of solutions unlike those it learned from (their subject, their writer, how they are split into "
                   "steps) nothing is known but what stands here."]  # fmt: skip
    elif subject.value:
        limits += ["Its values are of how one reference model goes on, on problems like those it learned from: of "
                   "another model or other problems nothing is known but what stands here."]  # fmt: skip
        limits += ["What is steered harder goes further from the reference, and can turn worse: measure both."]
    elif subject.is_model:
        limits += ["What it writes can be wrong and sound right; nothing is known of it but what stands here."]
        if subject.prompt:
            limits += ["It reads several answers and writes one; it is no chat model, and no better than its answers."]
    elif subject.kind == "steps":
        limits += ["Solutions are a model's: wrong ones are in it and meant to be."]
        limits += ["Labels are people's ratings, or estimates from a model's own attempts: errors are among them."]
    elif subject.kind == "scores":
        limits += ["Scores are a model's: a high one is no proof that an answer is right."]
    elif subject.kind != "dataset":
        limits += ["Answers are a model's: wrong ones are in it and meant to be, and they carry that model's biases."]
        limits += ["Gold answers come from the benchmarks, errors included; verdicts are a program's."]
    tests = sorted({f"{source}/{split}" for source, split in subject.sources if split == "test"})
    if tests:
        limits += [f"It holds test problems ({', '.join(tests)}): do not train on it what is measured on them."]
    return "## Intended use and limits\n\n" + "\n".join(f"- {limit}" for limit in limits)
