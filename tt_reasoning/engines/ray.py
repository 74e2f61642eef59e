"""vLLM on all machines of a Ray cluster: each worker has the model and takes whole chunks of requests.

A worker is the vLLM engine in a process of its own, and a chunk is one call of it, so that the same chunk gives the
same completions as ``--engine vllm`` does on such a machine. The driver draws the chunks and gets the outcomes; the
machines share nothing but the model folder, which each must find under the same path (or a Hub name).
``tt_reasoning/cluster.py`` says what becomes of a chunk whose worker dies, docs/clusters.md how to start a cluster.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tt_reasoning.cluster import ClusterPool, JoinedCluster, Machine, Place, check_ray
from tt_reasoning.engines.base import Completion, Failure, Request
from tt_reasoning.errors import UserError, unknown_name


class RayEngine:
    """A model in vLLM on the machines of a Ray cluster.

    Where the cluster has GPUs a worker has ``tensor_parallel_size`` of them; where it has none, as many CPUs as its
    smallest machine.

    Args:
        model, revision, dtype, max_model_len, tensor_parallel_size, gpu_memory_utilization: as for ``VllmEngine``.
        ray_address: ``HOST:PORT`` of the cluster's head; ``auto`` is the cluster that this machine belongs to; None
            is the same, or else this machine alone.
        num_workers: copies of the model; as many as fit unless given.

    Raises:
        UserError: Ray is not installed, no cluster answers, no machine has room for the model, or a machine has no
            such model.

    Example:
        ``RayEngine("models/smollm2-135m", ray_address="auto").generate_chunks([[Request(prompt="2 + 2 =")]])``
    """

    def __init__(
        self,
        model: str,
        *,
        ray_address: str | None = None,
        num_workers: int | None = None,
        revision: str | None = None,
        dtype: str = "bf16",
        max_model_len: int | None = None,
        tensor_parallel_size: int = 1,
        gpu_memory_utilization: float | None = None,
    ) -> None:
        self.check(model, ray_address, num_workers, dtype=dtype, tensor_parallel_size=tensor_parallel_size)
        # A worker's working directory is another one.
        model = str(Path(model).resolve()) if Path(model).is_dir() else model
        options = {
            "revision": revision,
            "dtype": dtype,
            "max_model_len": max_model_len,
            "tensor_parallel_size": tensor_parallel_size,
            "gpu_memory_utilization": gpu_memory_utilization,
        }
        with contextlib.ExitStack() as stack:
            machines = stack.enter_context(JoinedCluster(ray_address)).machines
            self._pool: ClusterPool[list[Request], list[Completion | Failure]] = stack.enter_context(
                ClusterPool(
                    partial(_open_vllm, model, options),
                    machines,
                    num_workers=num_workers,
                    **_resources(machines, tensor_parallel_size),
                )
            )
            self._pool.wait_until_open()
            self._open = stack.pop_all()

    @staticmethod
    def check(
        model: str,
        ray_address: str | None = None,
        num_workers: int | None = None,
        revision: str | None = None,
        dtype: str = "bf16",
        max_model_len: int | None = None,
        tensor_parallel_size: int = 1,
        gpu_memory_utilization: float | None = None,
    ) -> None:
        """Raise the UserErrors that need no cluster."""
        from tt_reasoning.engines.vllm import DTYPES

        check_ray(ray_address, num_workers)
        if dtype not in DTYPES:
            raise unknown_name("dtype", dtype, DTYPES)
        if tensor_parallel_size < 1:
            raise UserError(f"--tensor-parallel-size {tensor_parallel_size}: give at least 1")

    @property
    def work_done(self) -> Counter[Place]:
        """How many chunks each worker has done."""
        return self._pool.work_done

    def generate(self, requests: Sequence[Request]) -> list[Completion | Failure]:
        """One completion a request, in order, all from one worker. Raises as ``generate_chunks``."""
        ((_, completions),) = self.generate_chunks([requests])
        return completions

    def generate_chunks(self, chunks: Iterable[Sequence[Request]]) -> Iterator[tuple[int, list[Completion | Failure]]]:
        """The completions of every chunk with its index, as chunks are done, in any order.

        Raises:
            UserError: as ``VllmEngine.generate`` and ``ClusterPool.map_unordered``.
        """
        return self._pool.map_unordered(map(list, chunks))

    def close(self) -> None:
        """End the workers, and leave the cluster if this engine joined it."""
        self._open.close()


def _resources(machines: Sequence[Machine], tensor_parallel_size: int) -> dict[str, int]:
    """CPUs and GPUs of a worker.

    >>> small, large = (Machine(name=name, num_cpus=cpus, num_gpus=0) for name, cpus in (("a", 4), ("b", 8)))
    >>> _resources([small, large], 1)
    {'num_cpus': 4, 'num_gpus': 0}
    >>> _resources([small, Machine(name="c", num_cpus=64, num_gpus=8)], 2)
    {'num_cpus': 1, 'num_gpus': 2}
    """
    if tensor_parallel_size > 1 or any(machine.num_gpus for machine in machines):
        return {"num_cpus": 1, "num_gpus": tensor_parallel_size}
    return {"num_cpus": min((machine.num_cpus for machine in machines if machine.num_cpus), default=1), "num_gpus": 0}


def _open_vllm(model: str, options: dict[str, Any]) -> Callable[[list[Request]], list[Completion | Failure]]:
    """In a worker: the engine with its model. A missing folder is told before vLLM loads."""
    from tt_reasoning.engines import open_engine

    return open_engine("vllm", model, **options).generate
