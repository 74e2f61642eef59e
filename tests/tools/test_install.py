"""The set-up's own logic, in small real environments; that it installs is shown by every other test."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def install(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """tools/install.py of a project of its own, whose ``.venv`` is empty but for pip."""
    root = tmp_path_factory.mktemp("project")
    (root / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "install.py", root / "tools")
    shutil.copy(ROOT / "pyproject.toml", root)
    spec = importlib.util.spec_from_file_location("install_of_test", root / "tools" / "install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    subprocess.run([sys.executable, "-m", "venv", module.VENV], check=True)
    return module


def write_package(install: ModuleType, name: str, code: str) -> None:
    """Write a package into the environment as pip would have installed it."""
    (site,) = install.VENV.glob("lib/python*/site-packages")
    info = site / f"{name}-1.0.dist-info"
    for folder in (site / name, info):
        folder.mkdir(exist_ok=True)
    (site / name / "__init__.py").write_text(code)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "INSTALLER").write_text("pip\n")
    (info / "RECORD").write_text(f"{name}/__init__.py,,\n{info.name}/METADATA,,\n{info.name}/RECORD,,\n")


def test_torchvision_goes_with_its_companions_only_when_it_does_not_import(
    install: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    write_package(install, "torchvision", "")
    write_package(install, "torchaudio", "")
    install.remove_broken_torchvision()
    assert capsys.readouterr().out == ""
    assert install.succeeds("-c", "import torchvision, torchaudio")

    write_package(install, "torchvision", "raise RuntimeError('operator torchvision::nms does not exist')")
    install.remove_broken_torchvision()
    assert "removing torchvision, torchaudio\n" in capsys.readouterr().out
    assert not install.succeeds("-m", "pip", "show", "-q", "torchvision")
    assert not install.succeeds("-m", "pip", "show", "-q", "torchaudio")


def test_a_package_that_was_cut_off_counts_as_missing(install: ModuleType) -> None:
    write_package(install, "whole", "")
    write_package(install, "torn", "")
    (torn,) = install.VENV.glob("lib/python*/site-packages/torn-1.0.dist-info")
    (torn / "INSTALLER").unlink()
    install.forget_interrupted()
    assert install.succeeds("-m", "pip", "show", "-q", "whole")
    assert not install.succeeds("-m", "pip", "show", "-q", "torn")


def test_tune_is_torchtunes_whichever_came_last(install: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    command = install.VENV / "bin" / "tune"
    command.write_text(f"#!{install.PYTHON}\nfrom ray.tune.cli.scripts import cli\ncli()\n")
    install.restore_tune()
    assert "the command tune is not torchtune's; putting it back\n" in capsys.readouterr().out
    assert "torchtune" in command.read_text()
    install.restore_tune()
    assert capsys.readouterr().out == ""


def test_a_failed_step_names_pips_reason_and_the_log(install: ModuleType) -> None:
    with pytest.raises(install.InstallError, match="ERROR: .*no-such-folder.*install.log, then run again"):
        install.run("trying", str(install.PYTHON), *install.PIP_INSTALL, "--no-index", "./no-such-folder")
    assert "no-such-folder" in install.LOG.read_text()


def test_only_a_finished_set_up_of_this_very_project_is_up_to_date(install: ModuleType) -> None:
    extra = "gpu" if install.has_nvidia_gpu() else "cpu"
    command = [sys.executable, install.__file__]
    install.STAMP.write_text(install.fingerprint(extra))
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert again.stdout == f"install: .venv is up to date ({extra})\n"
    before = install.fingerprint(extra)
    with (install.ROOT / "pyproject.toml").open("a") as file:
        file.write("# a new pin\n")
    assert len({before, install.fingerprint("cpu"), install.fingerprint("gpu")}) == 3
