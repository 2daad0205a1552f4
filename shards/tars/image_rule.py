"""Prepare each image before it is written: check it, turn it, put it on a background, make it smaller."""

import io
import re
import struct
import warnings
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.index.pixel_rule import CompactRule, PixelRule
from shards.tars.compacting import compacted
from shards.tars.sample_rule import require_image
from shards.views.decode import MAX_PIXELS, decode_alpha, decode_rgb, read_header

_ORIENTATION = 0x0112
_TRANSPOSED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_JPEG_QUALITY = 95
"""Of a JPEG that was turned."""
_JPEG_EXIF = re.compile(rb"\xff\xe1(..)(Exif\0\0)", re.DOTALL)
_CHUNK_EXIF = {"png": b"eXIf", "webp": b"EXIF"}


class PreparedImage(NamedTuple):
    """An image as it is written, and what was seen of it: it has an EXIF orientation, or transparent pixels."""

    suffix: str
    data: bytes
    turned: bool
    transparent: bool


class ImageRule(NamedTuple):
    """What is done to each image.

    Attributes:
        compact: make it smaller by this rule. pixels: turn it, put it on a background.
        max_pixels: refuse larger ones; at most MAX_PIXELS, which decoding refuses in any case.
        decode: look at the pixels, so that no image that is cut or corrupt is written.
        skip_bad: leave images out that cannot be taken, instead of an error.
    """

    compact: CompactRule | None = None
    pixels: PixelRule = PixelRule()
    max_pixels: int = MAX_PIXELS
    decode: bool = True
    skip_bad: bool = False

    def settings(self) -> dict[str, Any]:
        """Return what decides over the bytes that are written; absent at the defaults."""
        made = self.compact.to_json() if self.compact else {}
        words = {"pixels": self.pixels.words()} if self.pixels != PixelRule() else {}
        return made | words

    def prepared(self, data: bytes, where: str) -> PreparedImage:
        """The image by this rule; ShardError naming `where` for an image that cannot be taken."""
        suffix = require_image(data, where)
        header = read_header(data, where, max_pixels=self.max_pixels)
        place = orientation(data, suffix)
        alpha_HWC = decode_alpha(data, where) if suffix != "jpg" and (self.decode or self.pixels.background) else None
        if self.decode:
            decode_rgb(data, where, header=header)
        data = _by_rule(data, suffix, self.pixels, place, alpha_HWC, where)
        if self.compact is not None:
            data = compacted(data, self.compact, where)
        return PreparedImage(require_image(data, where), data, place != 1, alpha_HWC is not None)


def pictured(data: bytes, rule: PixelRule, where: str) -> bytes:
    """A picture as images of shards of this rule are: turned, and on the background.

    Errors:
        ShardError naming `where` for an image that cannot be taken.
    """
    if rule == PixelRule():
        return data
    suffix = require_image(data, where)
    read_header(data, where)
    alpha_HWC = decode_alpha(data, where) if suffix != "jpg" and rule.background else None
    return _by_rule(data, suffix, rule, orientation(data, suffix), alpha_HWC, where)


def _by_rule(
    data: bytes, suffix: str, rule: PixelRule, place: int, alpha_HWC: NDArray[np.uint8] | None, where: str
) -> bytes:
    """The image turned and on the background; its own bytes where neither applies."""
    turn = rule.upright and place != 1
    if not turn and not (rule.background and alpha_HWC is not None):
        return data
    if rule.background and alpha_HWC is not None:
        alpha = alpha_HWC[:, :, 3:].astype(np.uint32)
        mixed = alpha_HWC[:, :, :3] * alpha + np.array(rule.background, np.uint32) * (255 - alpha)
        image = Image.fromarray(((mixed + 127) // 255).astype(np.uint8))
    else:
        image = Image.fromarray(decode_rgb(data, where))
    if turn:
        image = image.transpose(_TRANSPOSED[place])
    buffer = io.BytesIO()
    if suffix == "jpg":
        image.save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling="4:4:4")
    else:
        image.save(buffer, "PNG")
    return buffer.getvalue()


def orientation(data: bytes, suffix: str) -> int:
    """The EXIF orientation of an image, 1 to 8; 1 (upright) where it has none, or none that can be read.

    Args:
        suffix: the format of the bytes, as `require_image` gives it.
    """
    exif = _exif(data, suffix)
    if not exif:
        return 1
    tags = Image.Exif()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tags.load(exif)
            place = tags.get(_ORIENTATION, 1)
    except (SyntaxError, ValueError, KeyError, TypeError, OSError, EOFError, struct.error):
        return 1  # metadata that nobody can read turn no image
    return place if place in _TRANSPOSED else 1


def _exif(data: bytes, suffix: str) -> bytes:
    """The EXIF block of an image; b"" for none."""
    if suffix == "jpg":
        match = _JPEG_EXIF.search(data, 0, data.find(b"\xff\xda") % (len(data) + 1))
        return data[match.start(2) : match.start(2) + int.from_bytes(match[1], "big") - 2] if match else b""
    little = suffix == "webp"
    position = 12 if little else 8
    while position + 8 <= len(data):
        name_at, size_at = (position, position + 4) if little else (position + 4, position)
        size = int.from_bytes(data[size_at : size_at + 4], "little" if little else "big")
        if data[name_at : name_at + 4] == _CHUNK_EXIF[suffix]:
            return data[position + 8 : position + 8 + size]
        position += 8 + size + (size % 2 if little else 4)
    return b""
