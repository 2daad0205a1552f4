"""Copy rendered pixels to a device; on a GPU from page-locked memory, on a stream of their own.

The host waits for no copy. What a GPU copies from is held until an event behind the copy has happened, so a slot of a
ring is never filled while it is read.
"""

import os
import warnings
import weakref
from collections import deque

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shards.errors import fewer_workers


class _Copies:
    """The stream on which copies to one GPU run, and the arrays that it may still read."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._reading: deque[tuple[torch.cuda.Event, Tensor]] = deque()

    def copied(self, host: Tensor) -> Tensor:
        while self._reading and self._reading[0][0].query():  # type: ignore[no-untyped-call]
            self._reading.popleft()
        with torch.cuda.stream(self._stream):
            copy = host.to(self._device, non_blocking=True)
            done = self._stream.record_event()
        self._reading.append((done, host))
        user = torch.cuda.current_stream(self._device)
        user.wait_event(done)
        copy.record_stream(user)  # its memory is not given to the next copy before the user is through
        return copy


_COPIES: dict[torch.device, _Copies] = {}


def on_device(values: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Return the values on a device; work that is given to the device from now on sees them."""
    host = torch.from_numpy(values)
    if device.type != "cuda":
        return host.to(device, non_blocking=True)
    if device not in _COPIES:
        _COPIES[device] = _Copies(device)
    return _COPIES[device].copied(host)


def page_lock(memory: NDArray[np.uint8]) -> None:
    """Lock memory for copies to GPUs until the array is gone; warn where the driver refuses: copies then wait."""
    address, owner = memory.ctypes.data, os.getpid()
    driver = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    code = int(driver.cudaHostRegister(address, memory.nbytes, 0))
    if code:
        warnings.warn(
            f"{memory.nbytes} bytes for rendered batches cannot be page-locked (CUDA error {code}): copies to the GPU "
            f"are slower; {fewer_workers()} need less",
            RuntimeWarning,
            stacklevel=2,
        )
        return

    def unlock() -> None:
        if os.getpid() == owner:  # a forked child has the memory, and no driver
            driver.cudaHostUnregister(address)

    weakref.finalize(memory, unlock).atexit = False
