"""Which device a network runs on."""

import torch


def expectations(device: str, *, precision: str, compile: bool) -> list[str]:
    """What somebody who waits should know of these settings on this device, one line each."""
    lines = []
    if compile:
        lines.append("--compile: the first batch is compiled before it runs, which takes up to minutes without a sign")
    if compile and device == "cpu":
        lines.append("--compile on the CPU needs a C++ compiler")
    if precision == "fp16" and device == "cpu":
        lines.append("--precision fp16 on the CPU: for tests; bf16 is the half precision that CPUs are made for")
    return lines


def chosen_device(device: str | None) -> str:
    """ "cpu" or "cuda": the one asked for, else cuda where there is one; ValueError for others and for absent ones."""
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda"):
        raise ValueError(f"--device: expected cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device: cuda is not available here; give --device cpu")
    return device
