"""Make one image smaller for good: fewer pixels and fewer bits to decode in every epoch.

The pixels are those of `decode_rgb`; the reduction is Pillow's bicubic, which is antialiased; the JPEG is a baseline
one (a crop is then decoded only down to its last row) with halved chroma (4:2:0) and Huffman tables of its own.
"""

import io

from PIL import Image

from shards.index.pixel_rule import CompactRule
from shards.views.decode import decode_rgb, read_header

_LEAST_SAVED = 0.1
"""A JPEG that need not be reduced is encoded a second time only for a tenth of its bytes: each time costs pixels."""


def compacted(data: bytes, rule: CompactRule, where: str) -> bytes:
    """The image by a rule; as it is when it is a JPEG that is small enough and would hardly shrink.

    Errors:
        ShardError naming `where` for an image that cannot be decoded.
    """
    header = read_header(data, where)
    height, width = reduced_size(header.height, header.width, rule.max_side)
    image = Image.fromarray(decode_rgb(data, where, header=header))
    whole = (height, width) == (header.height, header.width)
    if not whole:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=rule.quality, subsampling="4:2:0", optimize=True)
    smaller = buffer.getvalue()
    hardly = len(smaller) > (1 - _LEAST_SAVED) * len(data)
    return data if whole and hardly and header.format == "JPEG" else smaller


def reduced_size(height: int, width: int, max_side: int) -> tuple[int, int]:
    """Height and width with a longest side of at most `max_side` and the same proportions, each at least 1."""
    longest = max(height, width)
    if longest <= max_side:
        return height, width
    return max(1, round(height * max_side / longest)), max(1, round(width * max_side / longest))
