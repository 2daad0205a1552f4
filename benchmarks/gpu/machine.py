"""What the figures were measured on: the device as its driver names it, versions, and the flags that decide bits."""

import os
import platform
import shutil
import subprocess
from importlib import metadata
from typing import Any

import torch

_ASKED = "name,driver_version,memory.total,power.limit,clocks.max.sm,clocks.sm,temperature.gpu,ecc.mode.current"
_LIBRARIES = ("torch", "timm", "zarr", "webdataset", "simplejpeg", "opencv-python-headless", "google-crc32c", "numpy")


def facts(device: torch.device) -> dict[str, Any]:
    """Device, driver, versions, cores and flags, as plain JSON values."""
    facts: dict[str, Any] = {
        "device": device.type,
        "cores": len(os.sched_getaffinity(0)),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _LIBRARIES},
        "flags": {
            "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
            "tf32_cudnn": torch.backends.cudnn.allow_tf32,
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "deterministic": torch.are_deterministic_algorithms_enabled(),
        },
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "gpu": properties.name,
            "memory_gb": properties.total_memory / 1e9,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        }
    return facts | {"nvidia_smi": _nvidia_smi()}


def _nvidia_smi() -> dict[str, str] | str:
    """What the driver says of the first GPU; why not, where it cannot be asked."""
    if shutil.which("nvidia-smi") is None:
        return "not installed"
    words = ["nvidia-smi", f"--query-gpu={_ASKED}", "--format=csv,noheader"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode != 0:
        return (done.stderr or done.stdout).strip()
    values = [value.strip() for value in done.stdout.splitlines()[0].split(",")]
    return dict(zip(_ASKED.split(","), values, strict=True))


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"
