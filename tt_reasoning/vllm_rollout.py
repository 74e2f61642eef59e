"""Rollouts by vLLM: an engine beside every training process, given the policy's weights after every update.

The engine is a process of its own (``vllm_worker``): the launcher's environment and process group do not meet
vLLM's, an engine that dies is an error with a log and not a hang, and it runs the same on the trainer's GPU, on
other GPUs and on a CPU. A hand-over is one safetensors folder a node, in memory where there is room. It is
checked: the engine's log-probabilities of a fixed text must be the trainer's.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torchtune.modules import TransformerDecoder

from tt_reasoning.engines.vllm import DTYPES, check_vllm
from tt_reasoning.errors import UserError
from tt_reasoning.models.tokenizer import ChatTokenizer
from tt_reasoning.models.weights import save_weights
from tt_reasoning.prefix_tree import completion_logprobs, pack_group
from tt_reasoning.rollout import Completion, cut_completion
from tt_reasoning.training import Process, deployable_state, gather_values

T = TypeVar("T")

_PROBE = (
    "A farmer has 17 sheep. She sells 9 of them at the market and buys 4 more from a neighbour, who lives on the "
    "other side of the river. How many sheep has she now? First she has 17 - 9 = 8 sheep left. Then she buys 4, "
    "so that she has 8 + 4 = 12 sheep. The answer is 12. In the evening she counts them once more and is content."
)
_PROBE_TOKENS = 64
_COLOCATED_SHARE = 0.3  # of a GPU's memory, beside the trainer
_TOLERANCE_FP32, _TOLERANCE = 1e-4, 0.1  # measured: VllmRollout's docstring
_END_S = 10.0  # how long an engine may take to end by itself
_LOG_LINES = 8
# What torchrun tells its processes: vLLM would read it as its own.
_LAUNCHER = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE"),
    *("ROLE_NAME", "ROLE_RANK", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
)


class VllmRollout:
    """Sampling by vLLM, in a process beside every training process.

    Prompts share their prefill, every sample has its own seed, and the same call with the same weights gives
    the same completions on a CPU. ``Completion.logprobs`` are those under the distribution that was sampled
    from, after temperature and top-k.

    Every ``sync`` compares the log-probabilities of a fixed text of 64 tokens. It finds weights that are wrong
    or missing, not ones that are a small step old.

    Args:
        dtype: of the engine's weights and arithmetic: ``bf16``, ``fp16`` or ``fp32``.
        gpus: ids of the node's GPUs for the engines alone, shared equally by its training processes (several
            for one are a tensor-parallel engine); None is the training process's own GPU, or its CPU.
        gpu_memory_utilization: share of a GPU's memory for the engine; None is 0.3 on the trainer's own GPU,
            vLLM's default on other GPUs. On a CPU the cache has VLLM_CPU_KVCACHE_SPACE GiB (4 unless set).
        sleep: whether the engine frees its GPU's memory when it has sampled, and reads its weights again when
            it samples next; None is yes on the trainer's own GPU, no on others. Never on a CPU.
        sync_tolerance: most that the log-probabilities of the fixed text may differ by, mean and absolute, in nats
            a token; None is 1e-4 where trainer and engine compute in fp32, else 0.1. SmolLM2-135M on a CPU has
            5e-6 in fp32, and 0.03 to 0.04 where either computes in bf16.
        threads: CPU threads of an engine; None leaves OMP_NUM_THREADS as it is.
        log_dir: where the engines' logs go, ``vllm_rank0.log`` and so on; None is the temporary folder, where
            a log stays only if its engine did not end well.

    Raises:
        UserError: vLLM is not installed, or an argument that cannot work.

    Example (YAML):
        ``rollout: {_component_: tt_reasoning.vllm_rollout.VllmRollout, dtype: bf16, gpus: [4, 5]}``
    """

    def __init__(
        self,
        dtype: str = "bf16",
        gpus: Sequence[int] | None = None,
        gpu_memory_utilization: float | None = None,
        sleep: bool | None = None,
        sync_tolerance: float | None = None,
        threads: int | None = None,
        log_dir: str | None = None,
    ) -> None:
        check_vllm(dtype)
        if gpus is not None and (not gpus or len(set(gpus)) != len(gpus)):
            raise UserError(f"config key rollout.gpus: {list(gpus)}: wanted ids of GPUs, each once, or null")
        if gpu_memory_utilization is not None and not 0 < gpu_memory_utilization <= 1:
            raise UserError(f"config key rollout.gpu_memory_utilization: {gpu_memory_utilization} is not in (0, 1]")
        if sync_tolerance is not None and sync_tolerance <= 0:
            raise UserError(f"config key rollout.sync_tolerance: {sync_tolerance} is not above 0")
        if threads is not None and threads < 1:
            raise UserError(f"config key rollout.threads: {threads} is below 1")
        self.dtype, self.gpus, self.gpu_memory_utilization, self.sleep = dtype, gpus, gpu_memory_utilization, sleep
        self.sync_tolerance, self.threads, self.log_dir = sync_tolerance, threads, log_dir
        self._torch_dtype: torch.dtype = getattr(torch, DTYPES[dtype])
        self._engine: _Engine | None = None
        self._folder: str | None = None  # for weights; the first process of a node has one
        self._shares_gpu = False

    def start(
        self,
        policy: TransformerDecoder,
        process: Process,
        tokenizer: ChatTokenizer,
        *,
        checkpoint: str,
        stop: Sequence[str],
        max_len: int,
    ) -> None:
        """Start the engine, with the weights of ``checkpoint`` until the first ``sync``.

        Raises:
            UserError: the engine does not start; the end of its log is in the message.
        """
        self.policy, self.process, self.tokenizer = policy, process, tokenizer
        self.checkpoint, self.stop, self.max_len = checkpoint, list(stop), max_len
        self._probe = tokenizer.encode(_PROBE)[: min(_PROBE_TOKENS, max_len - 1)]
        self._local_rank = int(os.environ.get("LOCAL_RANK", 0)) if process.world_size > 1 else 0
        self._together(self._make_folder)
        folders = gather_values(self._folder, process)
        self._node_folder = folders[process.rank - self._local_rank]  # the ranks of a node follow one another
        try:
            self._together(self._start_engine)
        except UserError:
            self.close()
            raise

    def _make_folder(self) -> None:
        if self._local_rank == 0:
            size = sum(parameter.numel() for parameter in self.policy.parameters()) * self._torch_dtype.itemsize
            self._folder = tempfile.mkdtemp(prefix="vllm_weights_", dir=_storage(size))

    def _start_engine(self) -> None:
        devices = engine_devices(self.gpus, self.process.device, os.environ)
        self._shares_gpu = devices is not None and self.gpus is None
        self._make_room()
        share = _COLOCATED_SHARE if self._shares_gpu else None
        self._engine = _Engine(
            self._log(), engine_environment(os.environ, devices, self.threads), [self._folder] if self._folder else []
        )
        kind = self._engine.ask(
            "start",
            checkpoint=self.checkpoint,
            max_len=self.max_len,
            stop=self.stop,
            stop_tokens=self.tokenizer.stop_tokens,
            sleep=devices is not None and (self._shares_gpu if self.sleep is None else self.sleep),
            dtype=self.dtype,
            tensor_parallel_size=len(devices) if devices else 1,
            gpu_memory_utilization=share if self.gpu_memory_utilization is None else self.gpu_memory_utilization,
        )
        if devices is not None and kind == "cpu":
            raise UserError('the vLLM that is installed knows no GPU; install "tt-reasoning[gpu]" in its place')

    def _log(self) -> Path:
        """A new log file."""
        if self.log_dir is None:
            descriptor, name = tempfile.mkstemp(prefix=f"vllm_rank{self.process.rank}_", suffix=".log")
            os.close(descriptor)
            return Path(name)
        folder = Path(self.log_dir)
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"vllm_rank{self.process.rank}.log"

    def sync(self) -> dict[str, float]:
        """Hand the policy's weights over and check that they arrived. Every process must call it.

        Returns:
            ``sync_logprob_difference``: the mean absolute difference of the two log-probabilities of the fixed
            text's tokens, in nats a token; the largest of all processes.

        Raises:
            UserError: in every process, where the difference of any is above ``sync_tolerance`` or an engine died.
        """
        self._make_room()
        self._together(self._write)
        theirs_R = torch.tensor(self._together(self._load))
        ours_R, dtype = self._probe_policy()
        found = ((ours_R - theirs_R).abs().mean().item(), ours_R.mean().item(), theirs_R.mean().item())
        # The worst of all processes, NaN above all, so that all come to the same end.
        worst = max(gather_values(found, self.process), key=lambda values: (math.isnan(values[0]), values[0]))
        difference, ours, theirs = worst
        tolerance = self.sync_tolerance
        if tolerance is None:
            tolerance = _TOLERANCE_FP32 if self.dtype == "fp32" and dtype == torch.float32 else _TOLERANCE
        if not difference <= tolerance:
            raise UserError(
                f"vLLM does not compute with the policy's weights: the mean log-probability of a fixed text is "
                f"{ours:.4f} in the trainer and {theirs:.4f} in vLLM, the mean absolute difference {difference:.2g} a "
                f"token, above {tolerance:g}; model must be what checkpoint describes; if it is and the numbers are "
                f"near, their arithmetic differs: set rollout.dtype to the trainer's, or raise rollout.sync_tolerance"
            )
        return {"sync_logprob_difference": difference}

    def _write(self) -> None:
        """The policy's weights into the node's folder, by its first process; gathered by all."""
        weights = deployable_state(self.policy, self.process)
        if self._folder is None:
            return
        for file in Path(self._folder).iterdir():
            file.unlink()  # not overwritten: an engine may have it mapped
        weights = {name: tensor.to(self._torch_dtype) for name, tensor in weights.items()}
        try:
            save_weights(weights, self.checkpoint, self._folder)
        except (OSError, SafetensorError) as error:
            raise UserError(f"the weights cannot be written to {self._folder}: {error}; set TMPDIR") from None

    def _load(self) -> list[float]:
        return self._engine.ask("load", folder=self._node_folder, probe=self._probe)

    @torch.no_grad()
    def _probe_policy(self) -> tuple[Tensor, torch.dtype]:
        """The trainer's log-probabilities of the fixed text, R of them on the CPU, and what it multiplied in.

        Every process must call it.
        """
        row = pack_group(self._probe[:1], [self._probe[1:]], self.process.device)
        dtypes: list[torch.dtype] = []  # autocast and FSDP may change what the weights are held in
        first = self.policy.layers[0].attn.q_proj
        hook = first.register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
        training = self.policy.training
        self.policy.eval()
        logprobs_R = completion_logprobs(self.policy, row)
        self.policy.train(training)
        hook.remove()
        for module in self.policy.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # there is no backward pass to do it
        return logprobs_R.float().cpu(), dtypes[0]

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float,
        top_k: int = 0,
    ) -> list[list[Completion]]:
        """As many completions of every prompt as it has seeds; greedy at temperature 0.

        Raises:
            UserError: in every process, where a prompt leaves no room for ``max_new_tokens`` or an engine died.
        """

        def draw() -> list[list[Completion]]:
            if not prompts:
                return []
            longest = max(len(prompt) for prompt in prompts)
            if longest + max_new_tokens > self.max_len:
                raise UserError(
                    f"a prompt of {longest} tokens with max_new_tokens={max_new_tokens} passes the engine's limit "
                    f"of {self.max_len}; lower max_new_tokens"
                )
            groups = self._engine.ask(
                "generate",
                prompts=[list(prompt) for prompt in prompts],
                seeds=[list(own) for own in seeds],
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_k=top_k,
            )
            return [[self._complete(*sample) for sample in group] for group in groups]

        return self._together(draw)

    def _complete(self, tokens: list[int], logprobs: list[float]) -> Completion:
        completion = cut_completion(tokens, set(self.tokenizer.stop_tokens), self.stop, self.tokenizer.decode)
        return completion._replace(logprobs=logprobs[: len(completion.tokens)])

    def close(self) -> None:
        """End the engine and remove the weights that it read."""
        if self._engine is not None:
            self._engine.close(keep_log=self.log_dir is not None)
            self._engine = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _make_room(self) -> None:
        """Leave the engine the memory that the trainer only keeps for later."""
        if self._shares_gpu:
            torch.cuda.empty_cache()

    def _together(self, do: Callable[[], T]) -> T:
        """What ``do`` returns, once every process has done it; one's ``UserError`` is raised in all of them."""
        found, message = None, None
        try:
            found = do()
        except UserError as error:
            message = str(error)
        messages = [m for m in gather_values(message, self.process) if m is not None]
        if messages:
            raise UserError(messages[0])
        return found


class _Engine:
    """A running ``vllm_worker``; ``folders`` are what it removes should the trainer be killed."""

    def __init__(self, log: Path, environment: Mapping[str, str], folders: Sequence[str]) -> None:
        self.log = log
        ours, theirs = socket.socketpair()
        with theirs, log.open("wb") as out:
            command = [sys.executable, "-m", "tt_reasoning.vllm_worker", str(theirs.fileno()), *folders]
            self.process = subprocess.Popen(
                command,
                env=environment,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is the trainer's; and one group to kill
            )
        self.connection = Connection(ours.detach())

    def ask(self, method: str, **arguments: Any) -> Any:
        """What a method of ``vllm_worker.Sampler`` returns. Raises UserError where the process ended instead."""
        try:
            self.connection.send((method, arguments))
            while not self.connection.poll(1.0):
                if self.process.poll() is not None:
                    raise EOFError
            return self.connection.recv()
        except (EOFError, OSError):
            raise UserError(self._how_it_ended()) from None

    def _how_it_ended(self) -> str:
        self._kill()
        code = self.process.returncode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join([
            f"the vLLM process {how}; if memory ran out, lower rollout.gpu_memory_utilization (on a CPU "
            f"VLLM_CPU_KVCACHE_SPACE); its log is {self.log} and ends in:",
            *lines[-_LOG_LINES:],
        ])

    def close(self, keep_log: bool) -> None:
        """End the process, which hears of it by the socket; a log stays if it is to be kept or tells of a failure."""
        self.connection.close()
        self._kill()
        if self.process.returncode == 0 and not keep_log:
            self.log.unlink()

    def _kill(self) -> None:
        """Wait a while for its end, then make one; vLLM's own processes go with it."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_END_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def engine_devices(
    gpus: Sequence[int] | None, device: torch.device, environment: Mapping[str, str]
) -> list[str] | None:
    """The GPUs of this process's engine as CUDA_VISIBLE_DEVICES names them; None leaves it to a CPU.

    Args:
        gpus: ids of the node's GPUs to share out; None is ``device``, the trainer's own.
        environment: the trainer's, with what torchrun set.

    >>> engine_devices(None, torch.device("cuda", 1), {"CUDA_VISIBLE_DEVICES": "2,3"})
    ['3']
    >>> engine_devices([4, 5, 6, 7], torch.device("cuda", 1), {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"})
    ['6', '7']

    Raises:
        UserError: ``gpus`` cannot be shared equally by the node's processes.
    """
    if gpus is None:
        if device.type != "cuda":
            return None
        visible = environment.get("CUDA_VISIBLE_DEVICES")
        return [visible.split(",")[device.index].strip() if visible else str(device.index)]
    rank, count = int(environment.get("LOCAL_RANK", 0)), int(environment.get("LOCAL_WORLD_SIZE", 1))
    if len(gpus) % count:
        raise UserError(
            f"config key rollout.gpus: {len(gpus)} GPUs are not an equal share for each of the {count} processes "
            f"of this node; give a multiple of {count}"
        )
    share = len(gpus) // count
    return [str(gpu) for gpu in gpus[rank * share : (rank + 1) * share]]


def engine_environment(
    environment: Mapping[str, str], devices: Sequence[str] | None, threads: int | None
) -> dict[str, str]:
    """The trainer's environment as its engine needs it: without what torchrun set, with its own devices.

    >>> found = engine_environment({"RANK": "3", "HOME": "/home/ann"}, ["4", "5"], 2)
    >>> "RANK" in found, found["HOME"], found["CUDA_VISIBLE_DEVICES"], found["OMP_NUM_THREADS"]
    (False, '/home/ann', '4,5', '2')
    """
    kept = {
        name: value
        for name, value in environment.items()
        if name not in _LAUNCHER and not name.startswith("TORCHELASTIC_")
    }
    kept["PYTHONUNBUFFERED"] = "1"  # a log's last lines are those that matter
    kept.setdefault("VLLM_LOGGING_LEVEL", "INFO")
    if devices is not None:
        kept["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    if threads is not None:
        kept["OMP_NUM_THREADS"] = str(threads)
    return kept


def _storage(num_bytes: int) -> str | None:
    """Where to put files of a size: in memory if twice as much is free there, else None, the temporary folder."""
    memory = "/dev/shm"
    if os.path.isdir(memory) and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2 * num_bytes:
        return memory
    return None
