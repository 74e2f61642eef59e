"""A real vLLM beside a tiny policy: its samples, the hand-over of weights, and every way one of the two can die."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from tiny import tiny_decoder, write_tiny_model
from torchtune.modules import TransformerDecoder

from tt_reasoning.errors import UserError
from tt_reasoning.models import ChatTokenizer
from tt_reasoning.prefix_tree import completion_logprobs, pack_group
from tt_reasoning.rollout import Completion, NativeRollout
from tt_reasoning.training import Process
from tt_reasoning.vllm_rollout import VllmRollout, engine_devices
from tt_reasoning.vllm_worker import Sampler

ALONE = Process(0, 1, torch.device("cpu"))
PROMPTS = [list(b"count: "), list(b"What is 2 + 2?"), [40] * 17]
SEEDS = [[10 * i + g for g in range(3)] for i in range(3)]
STOP = ["e", "7"]
TRAINER = Path(__file__)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), hidden_size=128)  # heads of 32: vLLM has none of 8


@pytest.fixture(scope="module")
def policy(folder: Path) -> TransformerDecoder:
    return tiny_decoder(folder)


@pytest.fixture(scope="module")
def rollout(
    folder: Path, policy: TransformerDecoder, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[VllmRollout]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        rollout = VllmRollout(dtype="fp32", threads=1, log_dir=str(tmp_path_factory.mktemp("logs")))
        start(rollout, policy, folder)
        yield rollout
        weights = Path(rollout._folder)
        rollout.close()
        assert not weights.exists()


def start(rollout: VllmRollout | NativeRollout, policy: TransformerDecoder, folder: Path) -> None:
    tokenizer = ChatTokenizer(folder)
    rollout.start(policy, ALONE, tokenizer, checkpoint=str(folder), stop=STOP, max_len=128)


def sample(rollout: VllmRollout | NativeRollout, temperature: float = 1.0, **options: object) -> list[list[Completion]]:
    given = {"prompts": PROMPTS, "seeds": SEEDS, "max_new_tokens": 24, "temperature": temperature}
    return rollout.generate(**(given | options))


def greedy_natively(policy: TransformerDecoder, folder: Path) -> list[list[Completion]]:
    native = NativeRollout()
    start(native, policy, folder)
    return sample(native, temperature=0)


def without_logprobs(groups: list[list[Completion]]) -> list[list[Completion]]:
    return [[completion._replace(logprobs=None) for completion in group] for group in groups]


def test_greedy_completions_are_the_native_ones_to_text_tokens_and_ending(
    rollout: VllmRollout, policy: TransformerDecoder, folder: Path
) -> None:
    native = greedy_natively(policy, folder)
    assert without_logprobs(sample(rollout, temperature=0)) == native


@pytest.mark.parametrize("temperature", [1.0, 0.6, 0.0])
def test_log_probabilities_are_the_trainers(
    rollout: VllmRollout, policy: TransformerDecoder, temperature: float
) -> None:
    for prompt, group in zip(PROMPTS, sample(rollout, temperature), strict=True):
        with torch.no_grad():
            row = pack_group(prompt, [completion.tokens for completion in group], "cpu")
            ours_R = completion_logprobs(policy, row, temperature=temperature)
        theirs_R = torch.tensor([logprob for completion in group for logprob in completion.logprobs])
        torch.testing.assert_close(theirs_R, ours_R, atol=1e-4, rtol=0)


def test_top_k_is_part_of_the_distribution(rollout: VllmRollout) -> None:
    completions = [completion for group in sample(rollout, top_k=1) for completion in group]
    assert all(logprob == 0 for completion in completions for logprob in completion.logprobs)
    assert without_logprobs([completions]) == without_logprobs([sum(sample(rollout, temperature=0), [])])


def test_equal_seeds_give_equal_completions_and_other_seeds_others(rollout: VllmRollout) -> None:
    first = sample(rollout)
    assert sample(rollout) == first
    assert len({tuple(completion.tokens) for completion in first[0]}) == 3
    assert sample(rollout, seeds=[[seed + 1000 for seed in own] for own in SEEDS]) != first


def test_completions_end_as_the_native_ones_do(rollout: VllmRollout) -> None:
    completions = [completion for group in sample(rollout, max_new_tokens=64) for completion in group]
    for completion in completions:
        assert len(completion.tokens) == len(completion.logprobs)
        ended = completion.tokens[-1] == 258 or any(completion.text.endswith(s) for s in STOP)
        assert completion.finish_reason == ("stop" if ended else "length")
        assert ended or len(completion.tokens) == 64
    assert {completion.finish_reason for completion in completions} == {"stop", "length"}


def test_new_weights_are_sampled_from_after_sync(
    rollout: VllmRollout, policy: TransformerDecoder, folder: Path
) -> None:
    before = sample(rollout, temperature=0)
    policy.load_state_dict(tiny_decoder(folder, seed=1).state_dict())
    assert sample(rollout, temperature=0) == before
    found = rollout.sync()
    assert found["sync_logprob_difference"] < 1e-4
    native = greedy_natively(policy, folder)
    assert without_logprobs(sample(rollout, temperature=0)) == native != without_logprobs(before)


def test_weights_that_do_not_arrive_stop_with_both_numbers(
    rollout: VllmRollout, policy: TransformerDecoder, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout.sync()
    old = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    monkeypatch.setattr(rollout, "_write", lambda: None)
    with torch.no_grad():
        policy.tok_embeddings.weight.mul_(1.01)
    with pytest.raises(UserError, match=r"is -\d+\.\d+ in the trainer and -\d+\.\d+ in vLLM, .* above 0\.0001"):
        rollout.sync()
    policy.load_state_dict(old)
    rollout.sync()


def test_a_prompt_without_room_is_refused(rollout: VllmRollout) -> None:
    with pytest.raises(UserError, match="a prompt of 17 tokens with max_new_tokens=120 passes .* limit of 128"):
        sample(rollout, max_new_tokens=120)


def test_no_prompts_give_no_completions(rollout: VllmRollout) -> None:
    assert sample(rollout, prompts=[], seeds=[]) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "bf61"}, "did you mean 'bf16'"),
        ({"gpus": []}, "rollout.gpus"),
        ({"gpus": [1, 1]}, "each once"),
        ({"gpu_memory_utilization": 1.5}, "1.5 is not in"),
        ({"sync_tolerance": 0.0}, "0.0 is not above 0"),
        ({"threads": 0}, "0 is below 1"),
    ],
    ids=str,
)
def test_arguments_that_cannot_work_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        VllmRollout(**options)


def test_gpus_that_cannot_be_shared_equally_are_refused() -> None:
    environment = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    with pytest.raises(UserError, match="3 GPUs are not an equal share .* give a multiple of 2"):
        engine_devices([4, 5, 6], torch.device("cpu"), environment)


class Recorder:
    """Stands for vLLM on a GPU, which sleeps: what it is told, in order."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def __getattr__(self, name: str) -> object:
        def note(*args: object, **options: object) -> list[object]:
            self.told.append(" ".join([name, *map(str, args), *map(str, options.get("tags", []))]))
            output = SimpleNamespace(token_ids=[1], logprobs=SimpleNamespace(logprobs=[0.0]))
            return [SimpleNamespace(outputs=[output], prompt_logprobs=SimpleNamespace(logprobs=[0.0]))]

        return note


def test_an_engine_that_slept_has_its_weights_before_its_cache_and_sleeps_again_behind_its_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorder = Recorder()
    monkeypatch.setattr("tt_reasoning.vllm_worker.open_llm", lambda *args, **options: recorder)
    sampler = Sampler()
    sampler.start("model", 64, [], [0], sleep=True)
    sampler._device = "cuda"
    sampler.load("weights", [1, 2])
    for _ in range(2):
        sampler.generate([[1]], [[0]], max_new_tokens=1, temperature=1.0, top_k=0)
    wake = ["wake_up weights", "collective_rpc reload_weights", "wake_up kv_cache", "reset_prefix_cache"]
    told = [call.split(" [")[0] for call in recorder.told]
    draw = ["reset_prefix_cache", "generate", "sleep"]
    assert told == ["sleep", *wake, "generate", *draw, *wake, *draw]


def test_an_engine_that_cannot_start_says_why_and_leaves_nothing(
    policy: TransformerDecoder, folder: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "config.json").write_text("{}")
    rollout = VllmRollout(log_dir=str(tmp_path))
    said = rf"ended with status 1; .* {tmp_path}/vllm_rank0.log and ends in:\n(.*\n)*.*model_type"
    with pytest.raises(UserError, match=said):
        start(rollout, policy, broken)
    assert rollout._engine is None and rollout._folder is None


def trainer_of_a_busy_engine(log: str, weights: str, checkpoint: str) -> None:
    """A trainer that waits for its engine's start; the test kills it."""
    from tt_reasoning.vllm_rollout import _Engine, engine_environment

    engine = _Engine(Path(log), engine_environment(os.environ, None, 1), [weights])
    print(engine.process.pid, flush=True)
    engine.ask("start", checkpoint=checkpoint, max_len=64, stop=[], stop_tokens=[258], sleep=False, dtype="fp32")


def test_a_killed_trainer_leaves_no_engine_and_no_weights_behind(folder: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    code = f"import test_vllm_rollout as t; t.trainer_of_a_busy_engine('{tmp_path}/log', '{weights}', '{folder}')"
    trainer = subprocess.Popen([sys.executable, "-c", code], cwd=TRAINER.parent, stdout=subprocess.PIPE)
    engine = psutil.Process(int(trainer.stdout.readline()))
    time.sleep(3)  # well inside its start
    assert engine.is_running() and trainer.poll() is None
    trainer.send_signal(signal.SIGKILL)
    trainer.wait()
    deadline = time.monotonic() + 20
    while engine.is_running() and engine.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the engine outlives its trainer"
        time.sleep(0.1)
    assert not weights.exists()


def test_processes_share_one_hand_over_and_one_end(folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "trainer.py"
    script.write_text(textwrap.dedent(f'''
        import torch
        from omegaconf import OmegaConf
        from tt_reasoning.errors import UserError
        from tt_reasoning.models import ChatTokenizer
        from tt_reasoning.prefix_tree import completion_logprobs, pack_group
        from tt_reasoning.training import build_model, start_process, stop_process
        from tt_reasoning.vllm_rollout import VllmRollout

        process = start_process("cpu")
        model = OmegaConf.create({{"_component_": "tt_reasoning.models.build_from_hf", "path": "{folder}"}})
        policy = build_model(model, "{folder}", process, torch.float32)
        rollout = VllmRollout(dtype="fp32", log_dir="{tmp_path}")
        rollout.start(policy, process, ChatTokenizer("{folder}"), checkpoint="{folder}", stop=[], max_len=96)
        with torch.no_grad():
            policy.tok_embeddings.weight.mul_(1.3)
        rollout.sync()
        prompt = [65 + process.rank] * 5
        drawn = rollout.generate([prompt], [[1, 2]], max_new_tokens=8, temperature=1.0)[0]
        with torch.no_grad():
            ours_R = completion_logprobs(policy, pack_group(prompt, [c.tokens for c in drawn], "cpu"))
        theirs_R = torch.tensor(sum([c.logprobs for c in drawn], []))
        torch.testing.assert_close(ours_R, theirs_R, atol=1e-4, rtol=0)
        if process.rank == 1:
            rollout._engine.process.kill()
        try:
            rollout.sync()
        except UserError as error:
            print(f"rank {{process.rank}} stops: {{str(error).splitlines()[0]}}", flush=True)
        rollout.close()
        stop_process()
    '''))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        assert f"rank {rank} stops: the vLLM process was killed by SIGKILL" in done.stdout
    assert "vllm_rank1.log" in done.stdout


def test_a_killed_engine_is_an_error_that_names_its_log(rollout: VllmRollout) -> None:
    """The last test of the file: the shared engine is gone after it."""
    rollout._engine.process.kill()
    with pytest.raises(UserError, match=rf"was killed by SIGKILL; .* {rollout.log_dir}/vllm_rank0.log and ends in:\n"):
        sample(rollout)
    with pytest.raises(UserError, match="was killed by SIGKILL"):
        rollout.sync()
