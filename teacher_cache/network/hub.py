"""Weights on the hub where there may be no network: asked once and briefly, taken from disk where they are there."""

import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, hf_hub_url, try_to_load_from_cache
from torch import Tensor

from shards.errors import advisable
from shards.names import short
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
    files = [file for name in _FILES if isinstance(file := try_to_load_from_cache(cfg.hf_hub_id, name), str)]
    if files:
        return read_weights(Path(files[0])).state
    raise ValueError(
        f"teacher: the weights of {base} are on the hub, which cannot be reached from here ({problem}); download\n"
        f"  {url}\nwhere there is a network, and {give_a_file()}"
    )


def give_a_file() -> str:
    """Say how the running command is given weights that timm does not publish or the hub does not send."""
    flags = advisable("--teacher-weights", "--init-weights")
    return f"give the file with {flags[0]}" if flags else "choose other weights"


def hub_folder(place: str) -> Path:
    """The folder on this disk of a model on the hub, its config.json and weights fetched where they are missing.

    Args:
        place: `USER/NAME`, or `USER/NAME@REVISION`.

    Errors:
        ValueError with the reason when they can be neither fetched nor found on this disk.
    """
    repo, _, revision = place.partition("@")
    problem = _unreachable(hf_hub_url(repo, "config.json"))
    options: dict[str, Any] = {"revision": revision or None, "local_files_only": bool(problem)}
    reason = problem
    for name in _FILES:
        try:
            folder = Path(hf_hub_download(repo, "config.json", **options)).parent
            hf_hub_download(repo, name, **options)
            return folder
        except Exception as error:  # the hub's client says with a dozen classes what is missing or not allowed
            reason = problem or short(" ".join(str(error).split()), 200)
    raise ValueError(
        f"teacher: hf-hub:{place} cannot be had: {reason}; expected config.json and {' or '.join(_FILES)}. Where "
        "there is no network, download the folder elsewhere and give --teacher local-dir:FOLDER"
    )


def _unreachable(url: str) -> str:
    """Say why the server of a url does not answer in time; "" when it does, whatever it says."""
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
