"""The child process behind ``vllm_rollout.VllmRollout``: it holds vLLM and answers its trainer over a socket.

    python -m tt_reasoning.vllm_worker FD [FOLDER]

A message is a pair: a method of ``Sampler`` and its keyword arguments; the reply is what the method returns.
Whatever goes wrong ends the process with a traceback in its log, where the trainer finds it. It ends with
its trainer, too: by the socket when it waits, by a look at its parent's id when it works; and then removes
FOLDER, where the trainer put its weights.
"""

from __future__ import annotations

import faulthandler
import os
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from tt_reasoning.engines.vllm import open_llm

if TYPE_CHECKING:
    from vllm import LLM


class Sampler:
    """vLLM with weights that can be exchanged. Arguments and results are plain lists, numbers and strings."""

    def __init__(self) -> None:
        self._llm: LLM | None = None

    def start(
        self, checkpoint: str, max_len: int, stop: list[str], stop_tokens: list[int], sleep: bool, **options: Any
    ) -> str:
        """Load the weights of a Hugging Face folder; returns the kind of device (``cuda`` or ``cpu``).

        Args:
            sleep: free the device's memory whenever nothing is to be computed.
            options: of ``open_llm``.
        """
        # Log-probabilities under what is drawn from: after temperature and top-k.
        options |= {"logprobs_mode": "processed_logprobs", "enable_sleep_mode": sleep}
        options["use_tqdm_on_load"] = False
        self._llm = open_llm(checkpoint, max_model_len=max_len, **options)
        self._stop, self._stop_tokens, self._sleeps = stop, stop_tokens, sleep
        from vllm.platforms import current_platform

        self._device = current_platform.device_type
        self._folder, self._awake = checkpoint, True
        self._rest()
        return self._device

    def load(self, folder: str, probe: list[int]) -> list[float]:
        """Take the weights in ``folder``; returns the log-probability of every token of ``probe`` but the first."""
        from vllm import SamplingParams, TokensPrompt

        self._folder = folder
        self._take_weights()
        sampling = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0, flat_logprobs=True)
        outputs = self._llm.generate([TokensPrompt(prompt_token_ids=probe)], sampling, use_tqdm=False)
        return outputs[0].prompt_logprobs.logprobs

    def generate(
        self,
        prompts: Sequence[list[int]],
        seeds: Sequence[list[int]],
        max_new_tokens: int,
        temperature: float,
        top_k: int,
    ) -> list[list[tuple[list[int], list[float]]]]:
        """For every prompt, a sample a seed: its tokens and their log-probabilities."""
        from vllm import SamplingParams, TokensPrompt

        if not self._awake:
            self._take_weights()
        requests, sampling = [], []
        for prompt, own_seeds in zip(prompts, seeds, strict=True):
            for seed in own_seeds:
                requests.append(TokensPrompt(prompt_token_ids=prompt))
                sampling.append(
                    SamplingParams(
                        seed=seed,
                        temperature=temperature,
                        top_k=top_k,
                        max_tokens=max_new_tokens,
                        stop=self._stop,
                        stop_token_ids=self._stop_tokens,
                        logprobs=0,  # the drawn token's and no other
                        flat_logprobs=True,
                    )
                )
        self._llm.reset_prefix_cache()
        outputs = (request.outputs[0] for request in self._llm.generate(requests, sampling, use_tqdm=False))
        samples = iter([(list(output.token_ids), output.logprobs.logprobs) for output in outputs])
        self._rest()
        return [[next(samples) for _ in own_seeds] for own_seeds in seeds]

    def _take_weights(self) -> None:
        """Load from ``_folder`` in place; awake afterwards."""
        if not self._awake:
            self._llm.wake_up(tags=["weights"])
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": self._folder})
        if self._device == "cpu":
            self._llm.apply_model(_pack_head)
        if not self._awake:
            self._llm.wake_up(tags=["kv_cache"])
        self._awake = True
        self._llm.reset_prefix_cache()

    def _rest(self) -> None:
        """Give the device's memory back; the weights are read again from their folder."""
        if self._sleeps:
            self._llm.sleep(level=2)
            self._awake = False

    def close(self) -> None:
        """Free the model and end vLLM's own processes."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()


def _pack_head(model: Any) -> None:
    """Let the output layer take its weights again.

    On a CPU it computes with a packed copy, and vLLM's reload does not renew that of one tied to the embedding.
    """
    model.lm_head.quant_method.process_weights_after_loading(model.lm_head)


def _watch(trainer: int, folders: list[str]) -> None:
    """End this process, whatever it does, once its parent is no longer the trainer."""
    while os.getppid() == trainer:
        time.sleep(0.5)
    _remove(folders)
    os._exit(1)


def _remove(folders: list[str]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    descriptor, *folders = sys.argv[1:]
    faulthandler.enable()  # should native code abort, the log says where Python was
    threading.Thread(target=_watch, args=(os.getppid(), folders), daemon=True).start()
    sampler, connection = Sampler(), Connection(int(descriptor))
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            break
        connection.send(getattr(sampler, method)(**arguments))
    _remove(folders)
    sampler.close()
    os._exit(0)  # the interpreter's own way out takes seconds more


if __name__ == "__main__":
    main()
