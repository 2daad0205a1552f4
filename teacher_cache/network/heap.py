"""Keep the memory that a forward on the CPU frees, for the next one.

glibc gives freed memory at the top of its heap back to the system, and a forward asks for the same hundreds of
megabytes again a moment later: every page is then mapped and zeroed anew.
"""

import ctypes
import sys

# Names of <malloc.h>; the second is glibc's upper limit for the threshold (32 MiB on 64-bit systems).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES, _MOST_MMAP_BYTES = 2**31 - 1, 32 * 2**20


def keep_freed_memory() -> None:
    """Let this process keep up to 2 GiB of freed memory. Does nothing where the C library is not glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MOST_MMAP_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
