"""A wheel, installed away from the checkout, is complete: recipes start, configs and tools can be copied."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, arguments)]
    subprocess.run(command, check=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # setuptools leaves a build/ folder beside pyproject.toml: not in the checkout
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "recipes", "configs", "tools", "tt_reasoning"):
        if (ROOT / name).exists():
            subprocess.run(["cp", "-r", ROOT / name, source], check=True)
    pip("wheel", source, "--no-deps", "--no-build-isolation", "-w", folder)
    (built,) = folder.glob("tt_reasoning-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    pip("install", "--no-deps", "--target", target, wheel)
    return target


def run(installed: Path, cwd: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the installed wheel before everything else, away from the checkout."""
    environment = os.environ | {"PYTHONPATH": str(installed)}
    return subprocess.run([sys.executable, *command], env=environment, cwd=cwd, capture_output=True, text=True)


def test_pyproject_lists_exactly_the_recipes_there_are() -> None:
    assert sorted(SETUPTOOLS["py-modules"]) == sorted(path.stem for path in ROOT.glob("recipes/*.py"))


def test_pyproject_lists_exactly_the_packages_there_are() -> None:
    folders = {path.parent for path in (ROOT / "tt_reasoning").rglob("*.py")}
    packages = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(SETUPTOOLS["packages"]) == packages | {"tt_reasoning._configs", "tt_reasoning._tools"}


def test_wheel_holds_every_file_that_is_used(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    wanted = {path.name for path in ROOT.glob("recipes/*.py")}
    wanted |= {f"tt_reasoning/_configs/{path.name}" for path in ROOT.glob("configs/*.yaml")}
    wanted |= {f"tt_reasoning/_tools/{path.name}" for path in ROOT.glob("tools/*.py") if path.name != "install.py"}
    package = ROOT / "tt_reasoning"
    wanted |= {str(path.relative_to(ROOT)) for path in package.rglob("*") if path.suffix in (".py", ".jsonl")}
    assert wanted - held == set()
    assert not any(name.startswith(("recipes/", "tests/", "configs/", "tools/")) for name in held)


def test_tune_run_finds_the_recipe_of_the_installed_wheel(installed: Path, tmp_path: Path) -> None:
    where = run(installed, tmp_path, "-c", "import grpo_ssa_distributed as r; print(r.__file__)")
    assert where.stdout.strip() == str(installed / "grpo_ssa_distributed.py"), where.stderr
    copied = run(installed, tmp_path, "-m", "tt_reasoning.cli", "cp", "135M_rl_cpu", "mine")
    assert copied.returncode == 0, copied.stderr
    tune = ("-m", "torchtune._cli.tune", "run")
    refused = run(installed, tmp_path, *tune, "grpo_ssa_distributed", "--config", "mine.yaml", "group_sise=2")
    # The recipe started, and its check of the config found the key that is none.
    assert refused.returncode == 2 and "group_sise" in refused.stderr, refused.stderr


def test_installed_wheel_lists_and_copies_its_own_parts(installed: Path, tmp_path: Path) -> None:
    listed = run(installed, tmp_path, "-m", "tt_reasoning.cli", "ls").stdout
    for name in ("grpo_ssa_distributed", "3B_rl", "get_model"):
        assert f" {name} " in listed
        copied = run(installed, tmp_path, "-m", "tt_reasoning.cli", "cp", name, ".")
        assert copied.returncode == 0, copied.stderr
    assert (tmp_path / "3B_rl.yaml").read_bytes() == (ROOT / "configs" / "3B_rl.yaml").read_bytes()
    recipe = ROOT / "recipes" / "grpo_ssa_distributed.py"
    assert (tmp_path / recipe.name).read_bytes() == recipe.read_bytes()
