"""vLLM changes the process that it runs in, which other tests share."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def left_as_it_was() -> Iterator[None]:
    """Put the environment, torch's threads and the random numbers right when the block is over."""
    environment, set_num_threads = dict(os.environ), torch.set_num_threads
    yield
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads = set_num_threads
    random.seed()
