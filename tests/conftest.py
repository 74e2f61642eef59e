"""What all tests share: the real small model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of the real SmolLM2-135M-Instruct; fetched by the tool (92 MB) unless it is there."""
    folder = ROOT / "models" / "smollm2-135m"
    tool = ROOT / "tools" / "get_model.py"
    subprocess.run([sys.executable, tool, "--name", "smollm2-135m", "--out", folder], check=True)
    return folder
