"""Values that one process hands to another through memory that has no name.

A parcel is an anonymous file in memory: the buffers of the value's arrays, each at a multiple of 64 bytes, then its
pickle. Its descriptor travels over a socket, so sending never waits for the receiver, however large the value; the
receiver maps a large one, whose arrays are views of it, and copies a smaller one. The memory goes when the last array
does, and with the processes, however they end: nothing lies in /dev/shm or in a folder, and the size of /dev/shm is no
limit. What is smallest goes through the socket itself.

Only for sockets between processes that were forked from each other: a parcel is a pickle.
"""

import errno
import mmap
import os
import pickle
import socket
import struct
import tempfile
from typing import Any

_ALIGN = 64
_HEADER = struct.Struct("<QQ?")  # where the pickle begins, how long it is, whether it follows in the socket
_SMALL_BYTES = 4096
_COPIED_BYTES = 1 << 20
"""Up to here a receiver copies: a mapping holds an open file, and some keep one result a shard."""
_POPULATE = getattr(mmap, "MAP_POPULATE", 0)


def send(channel: socket.socket, value: Any) -> None:
    """Hand over a value that pickles; OSError when the other side is gone or there is no memory."""
    buffers: list[pickle.PickleBuffer] = []
    body = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    raws = [buffer.raw() for buffer in buffers]
    packed = pickle.dumps(([raw.nbytes for raw in raws], body))
    if not raws and len(packed) <= _SMALL_BYTES:
        channel.sendall(_HEADER.pack(0, len(packed), True) + packed)
        return
    descriptor = _anonymous_file()
    try:
        start = 0
        for raw in raws:
            _write(descriptor, raw, start)
            start += _padded(raw.nbytes)
        _write(descriptor, memoryview(packed), start)
        socket.send_fds(channel, [_HEADER.pack(start, len(packed), False)], [descriptor])
    finally:
        os.close(descriptor)


def receive(channel: socket.socket) -> Any:
    """The next value.

    Errors:
        EOFError when the other side is gone; OSError when its descriptor cannot be taken.
    """
    header, descriptors, _, _ = socket.recv_fds(channel, _HEADER.size, 1)
    if not header:
        raise EOFError("the other side closed")
    start, length, inside = _HEADER.unpack(header)
    if inside:
        return _opened(memoryview(channel.recv(length, socket.MSG_WAITALL)), 0)
    if not descriptors:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))  # the kernel drops what this process cannot hold
    descriptor = descriptors[0]
    try:
        if start + length > _COPIED_BYTES:
            mapped = mmap.mmap(descriptor, start + length, flags=mmap.MAP_SHARED | _POPULATE)
        else:
            mapped = mmap.mmap(-1, start + length)
            done = 0
            while done < start + length:
                count = os.preadv(descriptor, [memoryview(mapped)[done:]], done)
                if not count:
                    raise EOFError(f"a parcel ended after {done} of {start + length} bytes")
                done += count
    finally:
        os.close(descriptor)
    return _opened(memoryview(mapped), start)


def _opened(whole: memoryview, start: int) -> Any:
    """The value whose buffers lie in front of its pickle at `start`."""
    sizes, body = pickle.loads(whole[start:])
    views, at = [], 0
    for size in sizes:
        views.append(whole[at : at + size])
        at += _padded(size)
    return pickle.loads(body, buffers=views)


def _padded(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("parcel", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:  # without a name from the start
        return os.dup(file.fileno())


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], offset + done)
