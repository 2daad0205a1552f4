"""The process group: everything of torch.distributed that the trainer uses (gloo on CPU, NCCL on GPUs).

One process is the same code with a group of one, in which every collective is the identity.
"""

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from shards.errors import RunError
from shards.signals import leave_at_once
from shards.world import World, way_out, world_variables

T = TypeVar("T")
_GRACE_S = 30.0
_PLACE = ("MASTER_ADDR", "MASTER_PORT")
_ATTEMPT = "TORCHELASTIC_RESTART_COUNT"
BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
"""Of torch.distributed by the type of device: tensors on a GPU travel over NCCL, messages between hosts over gloo."""


class ProcessGroup:
    """The ranks of a run; made by `process_group`."""

    def __init__(self, world: World, device: torch.device, control: Any = None) -> None:
        """Wrap an initialised process group; `control` is its gloo group for small host-side messages."""
        self.world = world
        self.device = device
        self._control = control
        self._pending: tuple[Tensor, Any] | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0: the one that writes."""
        return self.world.rank == 0

    def wrap(self, model: nn.Module, *, static_graph: bool = False) -> nn.Module:
        """The model with gradients averaged over the ranks, and rank 0's weights on all of them.

        Args:
            static_graph: every backward pass is alike, and gradients travel after each.
        """
        if self.world.size == 1:
            return model
        on_gpu = self.device.type == "cuda"
        return DistributedDataParallel(
            model,
            device_ids=[self.device.index] if on_gpu else None,
            gradient_as_bucket_view=True,
            static_graph=static_graph,
        )

    def sum(self, values: Tensor) -> Tensor:
        """The sum over ranks of a tensor, on every rank; the same bits on all of them."""
        if self.world.size == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total

    def gathered(self, value: T) -> list[T]:
        """The small values of all ranks, by rank, on every one; they are pickled."""
        if self.world.size == 1:
            return [value]
        values: list[Any] = [None] * self.world.size
        dist.all_gather_object(values, value, group=self._control)
        return values

    def from_main(self, make: Callable[[], T]) -> T:
        """Call `make` on rank 0 and return its result on every rank; if it raises there, it raises everywhere."""
        if self.world.size == 1:
            return make()
        parcel: list[Any] = [None]
        failure: Exception | None = None
        if self.is_main:
            try:
                parcel = [(True, make())]
            except Exception as error:
                failure = error
                parcel = [(False, error)]
        dist.broadcast_object_list(parcel, src=0, group=self._control)
        if failure is not None:
            raise failure
        good, value = parcel[0]
        if not good:
            raise value
        result: T = value
        return result

    def on_every_rank(self, make: Callable[[], T]) -> T:
        """Call `make` on every rank; if it raises on any rank, every rank raises, so that nobody waits for it."""
        if self.world.size == 1:
            return make()
        failure: Exception | None = None
        try:
            made = make()
        except Exception as error:
            failure = error
        failures: list[Any] = [None] * self.world.size
        dist.all_gather_object(failures, None if failure is None else str(failure), group=self._control)
        if failure is not None:
            raise failure
        for rank, words in enumerate(failures):
            if words is not None:
                raise RunError(f"rank {rank}: {words}")
        return made

    def any_was_told_to_stop(self, stop: bool) -> bool:
        """Whether any rank had been told to stop when it came here one call ago; one process: `told` itself.

        All ranks get the same answer at the same call, so they stop after the same step. The vote travels while the
        next step computes: it costs no waiting and no device synchronisation.
        """
        if self.world.size == 1:
            return stop
        previous = self._pending
        flag = torch.tensor([1.0 if stop else 0.0])
        self._pending = (flag, dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._control, async_op=True))
        if previous is None:
            return False
        previous[1].wait()
        return bool(previous[0].item() > 0)

    def settle(self) -> None:
        """Wait for the vote that is still travelling, before the group is torn down."""
        if self._pending is not None:
            self._pending[1].wait()
            self._pending = None


def no_sync(model: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """Gradients of what is computed inside, forward and backward, stay on their rank."""
    if isinstance(model, DistributedDataParallel):
        context: contextlib.AbstractContextManager[Any] = model.no_sync()
        return context
    return contextlib.nullcontext()


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel and torch.compile."""
    while True:
        inner = model.module if isinstance(model, DistributedDataParallel) else getattr(model, "_orig_mod", model)
        if inner is model:
            return model
        model = inner


def _meeting(world: World, timeout: timedelta) -> Any:
    """Return the store in which the ranks leave their addresses, under the number of torchrun's attempt.

    torchrun's store outlives the ranks that it starts anew, and with it the addresses of those that are dead: a rank
    that reads one of them before it is replaced cannot connect, or waits for ever (seen with torch 2.14).
    """
    store, _, _ = next(iter(rendezvous(world.meeting, world.rank, world.size, timeout=timeout)))
    return dist.PrefixStore(f"attempt {os.environ.get(_ATTEMPT, '0')}", store)  # type: ignore[attr-defined]


def meeting_place(world: World) -> str:
    """Name the place where the ranks of a run meet; ValueError where the environment does not say it."""
    if world.meeting != "env://":
        return world.meeting
    if missing := [name for name in _PLACE if not os.environ.get(name)]:
        variables = world_variables()
        raise ValueError(
            f"world size {world.size}{f' ({variables})' if variables else ''} but {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not set: start with `torchrun --nproc-per-node N cli.py …`, or "
            f"set MASTER_ADDR and MASTER_PORT to rank 0's host and a free port; {way_out()}"
        )
    return ":".join(os.environ[name] for name in _PLACE)


def _joined(world: World, device: torch.device, *, timeout_s: float, join_s: float) -> Any:
    """Initialise torch.distributed and return the gloo group for control, in a thread: its waits answer no signal."""
    joined: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def join() -> None:
        try:
            if device.type == "cuda":
                torch.cuda.set_device(device)  # each thread has its own
            timeout = timedelta(seconds=timeout_s)
            dist.init_process_group(
                BACKENDS.get(device.type, "gloo"),
                store=_meeting(world, timedelta(seconds=join_s)),
                rank=world.rank,
                world_size=world.size,
                timeout=timeout,
            )
            joined.put((dist.new_group(backend="gloo", timeout=timeout), None))
        except BaseException as error:
            joined.put((None, error))

    threading.Thread(target=join, name="join the group", daemon=True).start()
    try:
        # Longer than its own timeout: a thread that is still in C++ when Python ends would abort the process.
        control, error = joined.get(timeout=join_s + _GRACE_S)
    except queue.Empty:
        control, error = None, None
    if error is not None and not isinstance(error, dist.DistError):
        raise error
    if control is None:
        variables = world_variables()
        raise RunError(
            f"this process{f' ({variables})' if variables else ''} waited {join_s:.0f} s at "
            f"{meeting_place(world)}, and not all of the other {world.size - 1} came"
            f"{f' ({str(error).splitlines()[0][:150]})' if error else ''}. Start all of them within this time, with "
            f"torchrun or srun; {way_out()}"
        ) from error
    return control


def _gpu_name(device: torch.device) -> str:
    """The name that a GPU has in every process and on every machine; "" where torch (before 2.5) does not tell it."""
    return str(getattr(torch.cuda.get_device_properties(device), "uuid", ""))


def _require_own_gpus(gpus: Sequence[str]) -> None:
    """ValueError, the same on every rank, when two ranks have one GPU, over which NCCL does not join them.

    Args:
        gpus: `_gpu_name` of each rank.
    """
    first: dict[str, int] = {}
    for rank, gpu in enumerate(gpus):
        if gpu and first.setdefault(gpu, rank) != rank:
            raise ValueError(
                f"ranks {first[gpu]} and {rank} of {len(gpus)} have the same GPU ({gpu}), and NCCL takes one rank for "
                f"each: {len(set(gpus))} of the GPUs are different. Start one process for each GPU that is visible "
                "(torchrun --nproc-per-node, srun --ntasks-per-node, CUDA_VISIBLE_DEVICES)"
            )


def _require_one_precision(precisions: Sequence[str]) -> None:
    """ValueError, the same on every rank, when ranks compute in different precisions, as GPUs of two kinds choose.

    Args:
        precisions: of each rank.
    """
    other = next((rank for rank, theirs in enumerate(precisions) if theirs != precisions[0]), None)
    if other is not None:
        raise ValueError(
            f"--precision: rank 0 would compute in {precisions[0]}, rank {other} in {precisions[other]}, perhaps each "
            "by the default of its GPU; give every rank the same --precision, one that all of their GPUs have"
        )


@contextlib.contextmanager
def process_group(
    world: World, device: torch.device, *, precision: str = "", timeout_s: float = 1800.0, join_s: float = 600.0
) -> Iterator[ProcessGroup]:
    """The group of a run for the length of the block. Signals are answered while it waits for the other ranks.

    Args:
        world: this process's place; torchrun's environment gives the address with the default `meeting`.
        device: "cpu" (gloo) or "cuda:i" (NCCL for tensors there, gloo for host-side messages).
        precision: in which this rank computes, and every other one must; "" where it does not matter.
        timeout_s: a collective that takes longer is an error: a rank has died. join_s: so is a rank that does not come.

    Where ranks on GPUs end in an error the group stays as it is, and the process should end (`shards.signals`).

    Raises:
        ValueError: several ranks and no address to meet at, one GPU for two ranks, or two precisions.
        RunError: not all ranks came.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)  # alone too: what names no device must not open a context on the first GPU
    if world.size == 1:
        yield ProcessGroup(world, device)
        return
    meeting_place(world)  # before anybody waits
    control = _joined(world, device, timeout_s=timeout_s, join_s=join_s)
    finished = False
    try:
        group = ProcessGroup(world, device, control)
        if device.type == "cuda" and "nccl" in BACKENDS["cuda"]:
            _require_own_gpus(group.gathered(_gpu_name(device)))
        _require_one_precision(group.gathered(precision))
        yield group
        group.settle()
        finished = True
    finally:
        # NCCL takes a group apart together. The others may wait in a sum for a rank that failed: it must not wait for
        # them, or nobody would ever read what happened.
        if finished or device.type != "cuda":
            dist.destroy_process_group()
        else:
            leave_at_once()
