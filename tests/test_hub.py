"""Where the Hub does not answer, that is said in one line and at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_an_unreachable_hub_is_one_line_without_retries(tmp_path: Path) -> None:
    program = (
        "from tt_reasoning.errors import exit_on_mistake\n"
        "from tt_reasoning.problems import load_problems\n"
        "with exit_on_mistake():\n"
        "    load_problems('gsm8k', 'test')\n"
    )
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    environment.pop("HF_HUB_OFFLINE", None)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: the data set openai/gsm8k (test) cannot be loaded: ")
    assert line.endswith("; pass --data-files FILE with a copy of your own")


def test_a_data_set_on_disk_loads_without_the_hub(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "train.jsonl").write_text('{"question": "2 + 2?", "answer": "4"}\n')
    program = (
        "from tt_reasoning.hub import load_hub_dataset\n"
        f"print(load_hub_dataset({str(tmp_path / 'rows')!r}, split='train')[0])"
    )
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "cache")}
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert "{'question': '2 + 2?', 'answer': '4'}" in result.stdout, result.stderr
