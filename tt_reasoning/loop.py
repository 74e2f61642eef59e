"""What every recipe has around its loop: the order of the data, the clock, the logger, one optimizer step, the folder.

Plain functions with explicit arguments: nothing here knows what is trained, or how.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchtune import config
from torchtune.training import DummyProfiler

from tt_reasoning.errors import UserError
from tt_reasoning.models.value_head import head_names
from tt_reasoning.store import open_run, read_rows, write_records
from tt_reasoning.training import Process, clip_gradients, run_on_main, wait_for_main
from tt_reasoning.types import seed_of

METRICS = "metrics.jsonl"
# What may change when a run goes on: no weight depends on it.
NOT_IDENTITY = ("metric_logger", "save_every_n_steps", "keep_checkpoints", "evaluation", "profiler")


class Stopwatch:
    """Seconds by stage of one step."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time that the block takes to a stage."""
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # kernels run behind the call that starts them
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def timing(self, num_tokens: float) -> dict[str, float]:
        """``seconds_*`` of every stage, ``tokens_per_s``, and on a GPU ``peak_memory_gib``."""
        found = {f"seconds_{name}": seconds for name, seconds in self.seconds.items()}
        found["tokens_per_s"] = num_tokens / max(sum(self.seconds.values()), 1e-9)
        if self.device.type == "cuda":
            found["peak_memory_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        return found


def check_numbers(cfg: DictConfig, at_least: dict[str, float], above_zero: Sequence[str] = ()) -> None:
    """Refuse numbers that cannot work, naming the key; a key that is absent or null is not judged.

    Raises:
        UserError: the first that is too small.

    >>> check_numbers(OmegaConf.create({"batch_size": 0}), {"batch_size": 1})
    Traceback (most recent call last):
    ...
    tt_reasoning.errors.UserError: config key batch_size: 0 is below 1
    """
    for name, least in at_least.items():
        value = OmegaConf.select(cfg, name)
        if value is not None and value < least:
            raise UserError(f"config key {name}: {value} is below {least}")
    for name in above_zero:
        value = OmegaConf.select(cfg, name)
        if value is not None and value <= 0:
            raise UserError(f"config key {name}: {value} is not above 0")


def build_logger(metric_logger: DictConfig) -> Any:
    """The metric logger; what it lacks (a package, an account) is found before any weight loads."""
    try:
        return config.instantiate(metric_logger)
    except Exception as error:  # each logger's package fails in ways of its own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"config key metric_logger: {reason}") from None


def build_main_logger(cfg: DictConfig, process: Process) -> Any:
    """The logger on the main process, None on the others; its mistake is raised on all of them."""
    loggers: list[Any] = []
    run_on_main(process, lambda: loggers.append(build_logger(cfg.metric_logger)))
    return loggers[0] if process.is_main else None


def build_optimizer(
    cfg: DictConfig, model: nn.Module, num_steps: int, *, head_lr: float | None = None
) -> tuple[Optimizer, LRScheduler | None]:
    """``cfg.optimizer`` over what is trained, with ``cfg.lr_scheduler`` if there is one.

    Args:
        head_lr: learning rate of the model's value head, scheduled alike; the optimizer's own unless given.
    """
    trained, head = {n: p for n, p in model.named_parameters() if p.requires_grad}, {*head_names(model)}
    groups: list[Any] = [*trained.values()]
    if head_lr is not None:
        groups = [{"params": [p for n, p in trained.items() if n not in head]}]
        groups.append({"params": [p for n, p in trained.items() if n in head], "lr": head_lr})
    optimizer = config.instantiate(cfg.optimizer, groups)
    if cfg.get("lr_scheduler") is None:
        return optimizer, None
    scheduler = config.instantiate(cfg.lr_scheduler, optimizer, num_training_steps=num_steps, last_epoch=-1)
    return optimizer, scheduler


def drawn_a_step(cfg: DictConfig, world_size: int) -> int:
    """Examples of one step, of all processes together."""
    return cfg.batch_size * cfg.gradient_accumulation_steps * world_size


def count_steps(cfg: DictConfig, num_examples: int, world_size: int) -> int:
    """``max_steps``, or as many as ``epochs`` over the examples take (the last step may begin another epoch).

    >>> cfg = OmegaConf.create({"epochs": 2, "batch_size": 4, "gradient_accumulation_steps": 1})
    >>> count_steps(cfg, 9, world_size=1), count_steps(OmegaConf.merge(cfg, {"max_steps": 3}), 9, world_size=1)
    (5, 3)
    """
    if cfg.get("max_steps") is not None:
        return cfg.max_steps
    return math.ceil(cfg.epochs * num_examples / drawn_a_step(cfg, world_size))


def draw_places(position: int, count: int, num_examples: int, seed: int, process: Process) -> list[tuple[int, int]]:
    """This process's next examples: places in the endless stream of shuffled epochs, each with the example there.

    Args:
        position: places drawn before, over all processes.
        count: how many are drawn, over all processes.

    >>> draw_places(0, 4, 4, 0, Process(0, 2, torch.device("cpu"))) == draw_places(
    ...     0, 4, 4, 0, Process(0, 1, torch.device("cpu")))[::2]
    True
    """
    places = range(position + process.rank, position + count, process.world_size)
    orders = {}
    for epoch in {place // num_examples for place in places}:
        generator = torch.Generator().manual_seed(seed_of(seed, epoch))
        orders[epoch] = torch.randperm(num_examples, generator=generator).tolist()
    return [(place, orders[place // num_examples][place % num_examples]) for place in places]


def share_places(count: int, process: Process) -> list[int]:
    """Which of ``count`` things this process looks at: every process as many, so the last ones may do some again.

    >>> [share_places(3, Process(rank, 2, torch.device("cpu"))) for rank in (0, 1)]
    [[0, 2], [1, 0]]
    """
    whole = math.ceil(count / process.world_size) * process.world_size
    return [place % count for place in range(process.rank, whole, process.world_size)]


def take_step(
    model: nn.Module, optimizer: Optimizer, clip_grad_norm: float | None, step: int, *, has_gradient: bool = True
) -> float:
    """Clip and apply the gradient; returns its norm before clipping.

    Raises:
        UserError: the norm is not finite; nothing has been applied.
    """
    grad_norm = clip_gradients(model, clip_grad_norm) if has_gradient else 0.0
    if not math.isfinite(grad_norm):
        raise UserError(
            f"step {step}: the gradient's norm is {grad_norm}; the last checkpoint is sound, "
            "go on from it in another output_dir with a lower optimizer.lr"
        )
    optimizer.step()  # without a gradient nothing moves, not even by momentum: there is none, not a zero
    optimizer.zero_grad(set_to_none=True)
    return grad_norm


@contextmanager
def profile(profiler_cfg: DictConfig | None) -> Iterator[Any]:
    """torchtune's profiler while the block runs: the traces of ``profiler.active_steps`` go to its ``output_dir``."""
    profiler = config.instantiate(profiler_cfg)[0] if profiler_cfg else DummyProfiler()
    profiler.start()
    try:
        yield profiler
    finally:
        profiler.stop()


@contextmanager
def open_output(cfg: DictConfig, process: Process, recipe: str, **more: object) -> Iterator[Path]:
    """``output_dir``, locked and tied to the config by the main process; the others wait at the end.

    Args:
        more: what else decides the weights, such as the number of examples.

    Raises:
        UserError: the folder holds another run (``store.open_run``).
    """
    output = Path(cfg.output_dir)
    content = OmegaConf.to_container(cfg, resolve=True)
    identity = {name: content[name] for name in content if name not in NOT_IDENTITY}
    identity |= {**more, "world_size": process.world_size}
    with ExitStack() as folder:
        run_on_main(process, lambda: folder.enter_context(open_run(output, recipe, identity)))
        yield output
    wait_for_main(process)  # nobody leaves while another still talks to it


def drop_rows_after(output: Path, names: Sequence[str], step: int) -> None:
    """Drop what a killed run logged past its last checkpoint (step 0: there is none): all that is run again."""
    for name in names:
        if (output / name).exists():
            kept = (row for row in read_rows(output / name) if step and row["step"] <= step)
            write_records(output / name, kept)
