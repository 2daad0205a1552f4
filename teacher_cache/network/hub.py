"""Weights on the hub where there may be no network: asked once and briefly, taken from disk where they are there."""

import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_url, try_to_load_from_cache
from torch import Tensor

from teacher_cache.network.weights import read_weights

TIMEOUT_S = 5.0
"""How long the hub has to answer; its own client tries each of two files for half a minute."""

_FILES = ("model.safetensors", "pytorch_model.bin")


def hub_weights_without_network(cfg: Any, base: str) -> dict[str, Tensor] | None:
    """The weights of a timm configuration from the hub's cache on this disk; None where the hub answers.

    Args:
        cfg: timm's configuration of the tag. base: what messages call the teacher.

    Errors:
        ValueError with the address of the file when the hub does not answer and the disk has none.
    """
    if not cfg.hf_hub_id:
        return None
    url = hf_hub_url(cfg.hf_hub_id, _FILES[0])
    problem = _unreachable(url)
    if not problem:
        return None
    kept = [found for name in _FILES if isinstance(found := try_to_load_from_cache(cfg.hf_hub_id, name), str)]
    if kept:
        return read_weights(Path(kept[0])).state
    raise ValueError(
        f"teacher: the weights of {base} are on the hub, which cannot be reached from here ({problem}); download\n"
        f"  {url}\nwhere there is a network, and give it with --teacher-weights"
    )


def _unreachable(url: str) -> str:
    """Why the server of a url does not answer in time; "" when it does, whatever it says."""
    answer: list[str] = [f"no answer in {TIMEOUT_S:g} s"]

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=TIMEOUT_S).close()
            answer[0] = ""
        except urllib.error.HTTPError:
            answer[0] = ""
        except (OSError, ValueError) as error:
            answer[0] = str(getattr(error, "reason", error)) or type(error).__name__

    # In a thread, as looking up a name knows no time limit.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(TIMEOUT_S + 1)
    return answer[0]
