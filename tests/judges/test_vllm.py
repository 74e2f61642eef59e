"""Real vLLM gives the scores of the native engine, for label tokens and for a head of classes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from set_folders import write_folder
from tiny_judges import write_card_judge, write_qwen_prm

from tt_reasoning.steps import read_steps

TOOL = Path(__file__).parents[2] / "tools" / "rank_answers.py"
JUDGES = {"labels": write_card_judge, "classes": write_qwen_prm}


def test_vllm_scores_as_the_native_engine_does(tmp_path: Path) -> None:
    texts = [[f"{n} + {i} = 4\nso {n}" for i in range(3)] for n in range(2)]
    texts[0].append("first\n\n" + "long and long " * 12 + "\n\nlast")  # above a block of the prefix cache
    write_folder(tmp_path / "demo", texts, graded=False)
    commands = []
    for name, write in JUDGES.items():
        write(tmp_path / name, hidden_size=128)  # vLLM's attention on a CPU needs heads of 32
        for engine in ("native", "vllm"):
            run = [str(TOOL), "--answers", "demo", "--judge", name, "--engine", engine, "--out", f"{name}-{engine}"]
            commands.append([*run, "--dtype", "fp32", "--max-length", "1024"])
    code = f"import runpy, sys\nfor sys.argv in {commands!r}:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    for name in JUDGES:
        native, vllm = (read_steps(tmp_path / f"{name}-{engine}" / "steps.jsonl") for engine in ("native", "vllm"))
        assert native.keys() == vllm.keys() and len(native) == 7
        expected = [step.score for steps in native.values() for step in steps]
        assert max(expected) - min(expected) > 0.01
        found = [step.score for answer_id in native for step in vllm[answer_id]]
        assert found == pytest.approx(expected, abs=1e-4)
