"""Memory into which workers put large results, and which is used again when nobody looks at them any more.

A ring is memory without a name, cut into slots of one size, that is shared with workers forked after it was reserved.
The main process takes a slot for a task, the worker writes there, and the main process lends the slot out as an array.
When the last array or tensor over that memory is gone the slot is free again: what somebody holds is never written to.
While all slots are held there is none for a task, and its result travels as a parcel (shards.pool.parcels).

The memory goes with the last array and the last process that shares it, however these end.
"""

import math
import mmap
import weakref
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Ring:
    """Slots for arrays of uint8, all as large as the first result.

    Attributes:
        memory: all slots, uint8; whoever keeps it keeps the memory. Empty before the first slot is taken.
    """

    def __init__(self, slots: int) -> None:
        """Reserve nothing yet: the first `take` does, and has to be before workers are forked."""
        self.memory: NDArray[np.uint8] = np.empty(0, np.uint8)
        self._slots, self._slot_bytes = slots, 0
        self._free: deque[int] = deque(reversed(range(slots)))

    def take(self, num_bytes: int) -> int | None:
        """A free slot, the one that was used last; None while all are held, or where the result would not fit.

        Pages that are never written to take no memory. OSError when the slots cannot be reserved.
        """
        if not self._slot_bytes:
            self._slot_bytes = num_bytes
            self.memory = np.frombuffer(mmap.mmap(-1, self._slots * num_bytes), np.uint8)
        return self._free.pop() if self._free and num_bytes <= self._slot_bytes else None

    def room(self, slot: int) -> NDArray[np.uint8]:
        """The bytes of a slot, for the worker that fills it."""
        return self.memory[slot * self._slot_bytes : (slot + 1) * self._slot_bytes]

    def lend(self, slot: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """The result in a slot as an array; when it and all that is made of its memory is gone, the slot is free."""
        return np.asarray(_Loan(self.room(slot)[: math.prod(shape)].reshape(shape), self._free, slot))


class _Loan:
    """What every array over a slot keeps alive, and what gives the slot back when it goes."""

    def __init__(self, values: NDArray[np.uint8], free: deque[int], slot: int) -> None:
        self._values = values  # keeps the memory
        weakref.finalize(self, free.append, slot).atexit = False

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return dict(self._values.__array_interface__)
