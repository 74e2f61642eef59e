"""``tt-reasoning ls`` and ``cp`` from a checkout; tests/test_packaging.py does the same from a wheel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tt_reasoning.cli import copy_part, find_parts, list_parts
from tt_reasoning.errors import UserError
from tt_reasoning.problems import SOURCES

ROOT = Path(__file__).parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tt_reasoning.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_ls_names_every_file_with_its_first_line() -> None:
    listed = run("ls").stdout
    for path in [*ROOT.glob("recipes/*.py"), *ROOT.glob("tools/*.py"), *ROOT.glob("configs/*.yaml")]:
        line = next(line for line in listed.splitlines() if line.split()[:1] == [path.stem])
        assert len(line.split(maxsplit=1)[1]) > 10, f"{path.name} has no description"


def test_ls_puts_a_config_below_the_recipe_that_its_header_starts() -> None:
    names = [line.split()[0] for line in list_parts().splitlines()]
    assert names.index("grpo_ssa_distributed") < names.index("3B_rl") < names.index("full_finetune_distributed")
    assert names.index("full_finetune_distributed") < names.index("3B_sft") < names.index("tools")


def test_ls_problems_names_every_benchmark_with_its_kind_splits_and_place() -> None:
    header, _, *lines = run("ls", "--problems").stdout.splitlines()
    assert header.split() == ["name", "kind", "splits", "Hub", "licence", "what", "it", "is"]
    assert [line.split()[0] for line in lines] == list(SOURCES)
    (gpqa,) = [line for line in lines if line.startswith("gpqa-diamond ")]
    assert " choice " in gpqa and " train " in gpqa and " Idavidrein/gpqa " in gpqa and " CC-BY-4.0, gated " in gpqa


@pytest.mark.parametrize(
    ("name", "dest", "written"),
    [
        ("3B_rl", "mine.yaml", "mine.yaml"),
        ("3B_rl.yaml", "mine", "mine.yaml"),
        ("0.5B_rl", "0.5B_mine", "0.5B_mine.yaml"),
        ("grpo_ssa_distributed", "new/", "new/grpo_ssa_distributed.py"),
        ("get_model.py", "", "get_model.py"),
    ],
)
def test_cp_writes_the_same_text_where_it_says(tmp_path: Path, name: str, dest: str, written: str) -> None:
    said = copy_part(name, f"{tmp_path}/{dest}")
    assert said.endswith(f" to {tmp_path / written}")
    part = next(part for part in find_parts() if name in (part.name, part.path.name))
    assert (tmp_path / written).read_bytes() == part.path.read_bytes()


def test_cp_overwrites_only_with_force(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("my work")
    refused = run("cp", "3B_rl", str(tmp_path / "mine.yaml"))
    assert refused.returncode == 2 and "--force" in refused.stderr and refused.stderr.count("\n") == 1
    assert (tmp_path / "mine.yaml").read_text() == "my work"
    assert run("cp", "3B_rl", str(tmp_path / "mine.yaml"), "--force").returncode == 0
    assert (tmp_path / "mine.yaml").read_bytes() == (ROOT / "configs" / "3B_rl.yaml").read_bytes()


def test_cp_of_an_unknown_name_offers_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'grpo_ssa_distributed'"):
        copy_part("grpo_ssa_distribute", str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_cp_below_a_file_is_a_mistake_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        copy_part("3B_rl", str(tmp_path / "file" / "mine.yaml"))
