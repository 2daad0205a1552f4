"""Packing symbols of different widths into bytes, and reading overlapping windows of bits on a device.

Symbol j of a row has `bits[j]` bits; symbols follow each other most significant bit first, as `numpy.packbits` packs.
Legend: B rows, n symbols, b bytes.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def pack(symbol_Bn: NDArray[np.integer], bits_n: NDArray[np.integer], num_bytes: int) -> NDArray[np.uint8]:
    """Symbols as a stream of bits, (B, num_bytes) uint8, zeros after the last one.

    Args:
        symbol_Bn: (B, n), each in [0, 2^bits).
        bits_n: width of each symbol, 0 to 8.
        num_bytes: at least ⌈sum(bits) / 8⌉.
    """
    stream_BN = np.zeros((len(symbol_Bn), 8 * num_bytes), np.uint8)
    end_n = np.cumsum(bits_n, dtype=np.int64)
    for place in range(int(bits_n.max(initial=0))):  # one pass per binary place, not per symbol
        wide = bits_n > place
        stream_BN[:, end_n[wide] - 1 - place] = (symbol_Bn[:, wide] >> place) & 1
    return np.packbits(stream_BN, axis=1)


class Windows:
    """Reads, for each symbol, the `length` ≤ 8 bits of the stream that end where the symbol ends.

    Bits before the start of the stream count as zeros. The positions are constants, so a batch is two gathers.
    """

    def __init__(self, bits_n: NDArray[np.integer], length: int, device: torch.device) -> None:
        # One zero byte is put before the stream: windows then never start before it.
        start_n = 8 + np.cumsum(bits_n, dtype=np.int64) - length
        self._byte_n = torch.from_numpy(start_n // 8).to(device)
        self._shift_n = torch.from_numpy((16 - length - start_n % 8).astype(np.int32)).to(device)
        self._mask = (1 << length) - 1

    def __call__(self, stream_Bb: Tensor) -> Tensor:
        """The windows of a (B, b) uint8 stream, (B, n) int32."""
        padded_Bb = torch.nn.functional.pad(stream_Bb.to(torch.int32), (1, 1))
        pair_Bb = (padded_Bb[:, :-1] << 8) | padded_Bb[:, 1:]
        return (pair_Bb.index_select(1, self._byte_n) >> self._shift_n) & self._mask
