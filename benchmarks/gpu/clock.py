"""Time and memory on a device whose work is queued: every clock is read when the queue is empty."""

import statistics
import time
from collections.abc import Callable

import torch


class Clock:
    """Times calls on a device, and knows how much of the budget is left."""

    def __init__(self, device: torch.device, budget_s: float) -> None:
        """The budget runs from now."""
        self.device = device
        self._until = time.monotonic() + budget_s

    @property
    def left_s(self) -> float:
        """Seconds of the budget."""
        return self._until - time.monotonic()

    def wait(self) -> None:
        """Until the device has nothing to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object], count: int = 1) -> float:
        """Of one of `count` calls in a row."""
        self.wait()
        began = time.perf_counter()
        for _ in range(count):
            work()
        self.wait()
        return (time.perf_counter() - began) / count

    def median_s(self, work: Callable[[], object], during_s: float, warm_up: int = 2) -> float:
        """Median of calls for `during_s` seconds, three at least, after some that warm up."""
        for _ in range(warm_up):
            work()
        until = time.monotonic() + during_s
        times: list[float] = []
        while len(times) < 3 or time.monotonic() < until:
            times.append(self.seconds(work))
        return statistics.median(times)

    def reset_peak(self) -> None:
        """Begin to note the peak of memory anew."""
        self.wait()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_gb(self) -> float | None:
        """Largest memory of tensors on the device since then, GB; None on a CPU, which does not count."""
        self.wait()
        return torch.cuda.max_memory_allocated(self.device) / 1e9 if self.device.type == "cuda" else None
