"""Every command in the README, the docs and the tools' own examples parses, and every link leads somewhere."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest
import tyro
from omegaconf import OmegaConf

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TOOLS = sorted(path for path in (ROOT / "tools").glob("*.py") if path.stem != "install")
BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))
_COMMAND = re.compile(r"python ((?:tools|benchmarks)/\w+\.py)((?:\\\n|[^\n`#;|)])*)")
_LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")


def commands_of(file: Path) -> list[tuple[str, list[str]]]:
    """The scripts that a text runs, each with its words; a backslash or an open docstring example goes on."""
    text = file.read_text()
    if file.suffix == ".py":
        docstring = text.split('"""')[1]
        text = re.sub(r"\n(?=\s*--)", " ", docstring)
    return [
        (script, shlex.split(words.replace("\\\n", " ")))
        for script, words in _COMMAND.findall(text)
    ]


@functools.cache
def load_script(name: str) -> ModuleType:
    if str(ROOT / "benchmarks") not in sys.path:
        sys.path.append(str(ROOT / "benchmarks"))  # benchmarks import one another, as scripts do
    spec = importlib.util.spec_from_file_location(f"readme_{Path(name).stem}", ROOT / name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def mistake_in(script: str, words: list[str]) -> str | None:
    """What the script's own parser says against the words; of a shortened command ("...") only the options count."""
    if not (ROOT / script).exists():
        return f"there is no {script}"
    arguments = load_script(script).Arguments
    said = io.StringIO()
    shortened = "..." in words
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            subcommand = words[:1] if words and words[0].isalnum() else []
            tyro.cli(arguments, args=[*subcommand, "--help"] if shortened else words, use_underscores=False)
            return None
        except SystemExit as end:
            if not shortened:
                return said.getvalue() if end.code else None
    known = set(re.findall(r"--[a-z0-9-]+", said.getvalue()))
    unknown = [word for word in words if word.startswith("--") and word.split("=")[0] not in known]
    return f"unknown: {', '.join(unknown)}" if unknown else None


@pytest.mark.parametrize("file", [*PAGES, *TOOLS, *BENCHMARKS], ids=lambda file: str(file.relative_to(ROOT)))
def test_every_command_is_one_that_its_script_takes(file: Path) -> None:
    wrong = {
        f"{script} {' '.join(words)}": mistake
        for script, words in commands_of(file)
        if (mistake := mistake_in(script, words))
    }
    assert not wrong


def test_every_tool_and_benchmark_shows_an_example_of_itself() -> None:
    own = [path for path in [*TOOLS, *BENCHMARKS] if "class Arguments" in path.read_text()]  # else one side
    assert len(own) > 15
    without = [path.name for path in own if path.name not in {Path(script).name for script, _ in commands_of(path)}]
    assert not without


def test_every_key_of_a_training_command_is_in_its_config() -> None:
    found = 0
    for page in PAGES:
        for config, rest in re.findall(r"tune run[^\n`]*--config configs/(\w+\.yaml)([^\n`#]*)", page.read_text()):
            cfg = OmegaConf.load(ROOT / "configs" / config)
            for key in re.findall(r"(?<=\s)([\w.]+)=", rest):
                found += 1
                assert OmegaConf.select(cfg, key, default="missing") != "missing", f"{page.name}: {config} has no {key}"
    assert found


def test_every_tool_is_mentioned_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    assert not [tool.stem for tool in TOOLS if tool.stem not in readme]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_to_a_file(page: Path) -> None:
    targets = [target for target in _LINK.findall(page.read_text()) if "://" not in target]
    assert not [target for target in targets if not (page.parent / target).exists()]
