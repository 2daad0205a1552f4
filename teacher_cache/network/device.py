"""Which device a network runs on."""

import torch


def chosen_device(device: str | None) -> str:
    """"cpu" or "cuda": the one asked for, else cuda where there is one; ValueError for others and for absent ones."""
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda"):
        raise ValueError(f"--device: expected cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device: cuda is not available here; give --device cpu")
    return device
