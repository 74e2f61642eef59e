"""Data sets from the Hugging Face Hub, or from the user's cache of them where the Hub does not answer."""

from __future__ import annotations

import socket
from typing import Any
from urllib.parse import urlsplit

from tt_reasoning.errors import UserError

_PROBE_TIMEOUT_S = 5


def hub_answers() -> bool:
    """Whether the Hub (``HF_ENDPOINT``) takes connections, asked for five seconds at most."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    address = urlsplit(constants.ENDPOINT)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), timeout=_PROBE_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def load_hub_dataset(name: str, config: str | None = None, *, split: str, revision: str | None = None) -> Any:
    """A split of a Hub data set. Where the Hub does not answer, only the user's cache is looked at, at once.

    Raises:
        UserError: neither has it, it has no such config or split, or it is gated and this user has no access.
    """
    import datasets
    from huggingface_hub import constants

    if not hub_answers():
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        return datasets.load_dataset(name, config, split=split, revision=revision)
    except (OSError, ValueError) as error:  # the library's own errors are of these two kinds
        reason = str(error).partition("\n")[0]
        if "gated dataset" in reason:
            reason = (
                f"it is gated; accept its terms at {constants.ENDPOINT}/datasets/{name} "
                "and log in (hf auth login, or HF_TOKEN)"
            )
        raise UserError(f"the data set {name} ({split}) cannot be loaded: {reason}") from None
