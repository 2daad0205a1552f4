"""Which machines the project runs on: Linux; macOS without worker processes; no others.

Looked at by what the machine offers, so that a new system that offers it is served.
"""

import os
import signal
import sys

HAS_WORKERS = hasattr(os, "fork") and sys.platform != "darwin"
"""Whether workers can be forked. macOS has fork, but its own libraries do not survive one."""


def require_unix() -> None:
    """Raise ValueError on a machine without Unix signals and users: Windows outside of WSL."""
    if not hasattr(signal, "SIGUSR1") or not hasattr(os, "getuid"):
        raise ValueError(
            f"this machine ({sys.platform}): expected Linux, or macOS with --workers 0; "
            "on Windows use WSL or a container"
        )


def require_device_name(name: str, given_by: str = "device") -> None:
    """ValueError for a device that is not supported: expected "cpu", "cuda" or "cuda:N", with N the number of a GPU."""
    if not isinstance(name, str):
        raise ValueError(f"{given_by}: expected cpu, cuda or cuda:N, got {name!r}")
    kind, colon, number = name.partition(":")
    if kind in ("mps", "xpu"):
        raise ValueError(f"{given_by}: {kind} is not supported yet (nobody has run it); give cpu or cuda")
    if kind not in ("cpu", "cuda") or (colon and not (kind == "cuda" and number.isdecimal())):
        raise ValueError(f"{given_by}: expected cpu, cuda or cuda:N, got {name!r}")


def require_workers(workers: int) -> None:
    """Raise ValueError for worker processes on a machine that cannot fork them."""
    if workers and not HAS_WORKERS:
        raise ValueError(f"--workers {workers}: worker processes need Linux; give --workers 0 on this machine")
