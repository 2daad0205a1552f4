"""Image bytes to RGB pixels: what is accepted, by which rule it becomes RGB, and one clear error for everything else.

JPEG, PNG and WebP are accepted, told apart by their first bytes, not by the suffix. The rule: the pixels are those of
Pillow's `Image.open(…).convert("RGB")`, which DeiT was trained on: grey is repeated, a palette looked up, CMYK and YCCK
converted, alpha dropped (the stored colours stay), the first frame of an animation taken, EXIF orientation ignored. One
exception: 16-bit grey, which Pillow would clip to white, is scaled to 8 bits.

The bytes are hostile: pixels and the scans of a JPEG are counted before anything is decoded, the texts and the colour
profile of a PNG are never looked at, and a file that a decoder would repair by guessing pixels (truncated, corrupt) is
an error.
"""

import io
import re
import struct
import warnings
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from shards.data_defaults import ImageSet
from shards.errors import ShardError
from shards.index.reader import ShardReader

# H, W of an image; C = 3.

MAX_PIXELS = 89_478_485  # Pillow's own threshold for suspecting a decompression bomb
MOST_SCANS = 100
"""Of a JPEG: usual progressive ones have about ten, and each costs a pass over all pixels, whatever its bytes."""
_SCAN = b"\xff\xda"
_SCAN_WORD = int.from_bytes(_SCAN, "little")
_MARKER_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # not a stuffed byte, a restart or a fill byte
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_METADATA = (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf")
ADVICE = "replace the image or leave it out"
"""What to do about an image that cannot be decoded."""
_FORMATS = ("JPEG", "PNG", "WEBP")
_TURBO_COLORS = ("YCbCr", "Gray", "RGB")
# What libjpeg-turbo says when the last scan ends before its data does (0xd9 is the end of the image) and nothing was
# wrong before. With another marker more scans may follow, or a restart was out of step: not harmless.
_SURVEYED = 24  # images that `survey` looks at
_GREY = 12  # levels between the channels of a pixel that is still grey: JPEG keeps colour coarsely
_ONLY_EXTRANEOUS = re.compile(r"Corrupt JPEG data: \d+ extraneous bytes before marker 0xd9")


class ImageHeader(NamedTuple):
    """What the first bytes of an image say: format, height and width in pixels, and whether the fast path takes it."""

    format: str
    height: int
    width: int
    turbo: bool


def read_header(data: bytes, where: str, *, max_pixels: int = MAX_PIXELS) -> ImageHeader:
    """Format and size of an image, without decoding it.

    Errors:
        ShardError naming `where` for another format, a broken header, no pixels, more than `max_pixels`, or a JPEG of
        more than MOST_SCANS scans.
    """
    if data[:2] == b"\xff\xd8":
        try:
            height, width, color, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError as error:
            raise _broken(where, "the JPEG header cannot be read", error) from None
        if (num_scans := _num_scans(data)) > MOST_SCANS:
            raise _broken(where, f"expected a JPEG of at most {MOST_SCANS} scans", f"it has {num_scans}")
        header = ImageHeader("JPEG", height, width, color in _TURBO_COLORS)
    else:
        with _open_pillow(data, where) as image:
            header = ImageHeader(image.format or "", image.height, image.width, False)
    most = min(max_pixels, MAX_PIXELS)
    if not 0 < header.height * header.width <= most:
        raise ShardError(
            f"{where}: expected an image of 1 to {most:,} pixels, the {header.format} header says"
            f" {header.width} × {header.height}; make it smaller or leave it out"
        )
    return header


def decode_rgb(
    data: bytes, where: str, *, rows: int | None = None, shrink: int = 1, header: ImageHeader | None = None
) -> NDArray[np.uint8]:
    """The pixels of an image, uint8 (H, W, 3), by the rule of this module.

    Args:
        where: what errors call the sample: shard and key.
        rows: when given, only this many top rows are promised: the result has at least `rows` rows, and they are equal
            to those of the whole image. A JPEG is then decoded only as far down as that needs.
        shrink: 1, 2, 4 or 8: decode at that fraction of the size (rounded up). JPEG scales in the DCT, for others the
            mean of shrink × shrink pixels is taken.
        header: what `read_header` gave, when it was already read.

    Errors:
        ShardError naming `where`: not an image we take, truncated, corrupt, or too large.
    """
    header = header or read_header(data, where)
    if not header.turbo:
        return _shrunk(_decode_pillow(data, where), shrink)
    if shrink > 1:
        return _decode_turbo(data, where, header, shrink)
    if rows is not None:
        top = _decode_top(data, header, rows)
        if top is not None:
            return top
    return _decode_turbo(data, where, header, 1)


def decode_alpha(data: bytes, where: str) -> NDArray[np.uint8] | None:
    """The pixels of an image with transparent ones, uint8 (H, W, 4); None where all are opaque.

    Errors:
        ShardError naming `where`: not an image we take, truncated, or corrupt.
    """
    with _open_pillow(data, where) as image, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if "A" not in image.getbands() and "transparency" not in image.info:
                return None
            image_HWC = np.array(image.convert("RGBA"))
        except (OSError, SyntaxError, ValueError, IndexError, struct.error) as error:
            raise _broken(where, f"the {image.format} is truncated or corrupt", error) from None
    return None if image_HWC[:, :, 3].min() == 255 else image_HWC


def shrunk_size(height: int, width: int, shrink: int) -> tuple[int, int]:
    """Height and width that `decode_rgb` gives for `shrink`: each side divided, rounded up."""
    return -(-height // shrink), -(-width // shrink)


def survey(reader: ShardReader) -> ImageSet:
    """Look at some images, evenly over the set, and tell what defaults are chosen by: number, side and colours.

    Errors:
        ShardError: an image cannot be read or decoded.
    """
    index = reader.index
    numbers = np.unique(np.linspace(0, index.num_samples - 1, _SURVEYED).astype(np.int64)).tolist()
    sides, coloured = [], False
    for number in numbers:
        shard = int(np.searchsorted(index.first_S, number, "right")) - 1
        row = number - int(index.first_S[shard])
        data, where = reader.image_bytes(shard, row), f"{index.names[shard]}: {index.key(shard, row)}"
        header = read_header(data, where)
        sides.append(min(header.height, header.width))
        if not coloured:
            pixel_HWC = decode_rgb(data, where, header=header, shrink=_shrink_to(sides[-1])).astype(np.int16)
            coloured = bool((pixel_HWC.max(-1) - pixel_HWC.min(-1)).max(initial=0) > _GREY)
    return replace(index.image_set, short_side=int(np.median(sides)), coloured=coloured)


def _shrink_to(side: int) -> int:
    """The largest of 1, 2, 4, 8 that leaves about 64 pixels: enough to see a colour."""
    return next((shrink for shrink in (8, 4, 2) if side >= 64 * shrink), 1)


def _decode_turbo(data: bytes, where: str, header: ImageHeader, shrink: int) -> NDArray[np.uint8]:
    height, width = shrunk_size(header.height, header.width, shrink)
    image_HWC = np.empty((height, width, 3), np.uint8)
    try:
        got_HWC = simplejpeg.decode_jpeg(
            data, "RGB", min_height=height, min_width=width, min_factor=shrink, buffer=image_HWC
        )
    except ValueError as error:
        # Bytes after the last row are no reason to doubt the rows; the buffer is complete.
        if _ONLY_EXTRANEOUS.fullmatch(str(error)):
            return image_HWC
        raise _broken(where, "the JPEG is truncated or corrupt", error) from None
    assert got_HWC.shape == image_HWC.shape, (got_HWC.shape, image_HWC.shape)
    return image_HWC


def _decode_top(data: bytes, header: ImageHeader, rows: int) -> NDArray[np.uint8] | None:
    """The top rows of a baseline JPEG, or None when the whole must be decoded.

    The height in the frame header is lowered, so libjpeg stops after the rows that are wanted and finds the rest of the
    scan "extraneous". Any other complaint is left to the full decode. One row of blocks more than wanted is decoded:
    chroma upsampling looks one row ahead.
    """
    frame = _baseline_frame(data)
    if frame is None:
        return None
    position, block_rows = frame
    height = (-(-rows // block_rows) + 1) * block_rows
    if height + block_rows > header.height:
        return None
    image_HWC = np.empty((height, header.width, 3), np.uint8)
    whole = memoryview(data)
    shorter = b"".join((whole[:position], struct.pack(">H", height), whole[position + 2 :]))
    try:
        simplejpeg.decode_jpeg(shorter, "RGB", buffer=image_HWC)
    except ValueError as error:
        # libjpeg reports its first complaint, so with this one every row before it was clean.
        if not _ONLY_EXTRANEOUS.fullmatch(str(error)):
            return None
    return image_HWC[:-block_rows]


def _baseline_frame(data: bytes) -> tuple[int, int] | None:
    """Find where a sequential Huffman frame stores its height, and the pixel rows of its blocks; None for others."""
    position = 2
    while position + 12 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker in (0xC0, 0xC1):
            components = data[position + 9]
            factors = data[position + 11 : position + 11 + 3 * components : 3]
            rows = 8 * max((factor & 15 for factor in factors), default=0)
            return (position + 5, rows) if rows else None
        if not (marker == 0xC4 or 0xDB <= marker <= 0xFE):
            return None
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return None


def _num_scans(data: bytes) -> int:
    """The scans of a JPEG; those of a thumbnail in its metadata do not count."""
    # As data.count(_SCAN), which looks at one byte at a time and takes a tenth of the decoding.
    pairs = (np.frombuffer(data, "<u2", (len(data) - start) // 2, start) for start in (0, 1))
    bound = sum(int(np.count_nonzero(pair_N == _SCAN_WORD)) for pair_N in pairs)
    if bound <= MOST_SCANS:
        return bound
    count, position = 0, 2
    while data[position : position + 1] == b"\xff":
        is_scan = data[position : position + 2] == _SCAN
        count += is_scan
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if is_scan:
            match = _MARKER_AFTER_SCAN.search(data, position)
            position = match.start() if match else len(data)
    return count


def _without_metadata(data: bytes) -> bytes:
    """A PNG without its texts, colour profile and EXIF, which are no pixels; other bytes as they are.

    Pillow reads them before and after the pixels and refuses an image for a text that is too long.
    """
    parts, kept_until, position = [], 0, len(_PNG_SIGNATURE)
    while position + 8 <= len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        if data[position + 4 : position + 8] in _PNG_METADATA and end <= len(data):
            parts.append(data[kept_until:position])
            kept_until = end
        position = end
    return b"".join((*parts, data[kept_until:])) if parts else data


def _open_pillow(data: bytes, where: str) -> Image.Image:
    if data.startswith(_PNG_SIGNATURE):
        data = _without_metadata(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            return Image.open(io.BytesIO(data), formats=_FORMATS)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise _broken(where, f"expected at most {MAX_PIXELS:,} pixels", error) from None
        except UnidentifiedImageError:
            raise not_an_image(data, where) from None
        except (OSError, SyntaxError, ValueError, struct.error) as error:
            raise _broken(where, "the image header cannot be read", error) from None


_OTHER_FORMATS = {
    b"GIF8": "a GIF image",
    b"BM": "a BMP image",
    b"II*\0": "a TIFF image",
    b"MM\0*": "a TIFF image",
    b"%PDF": "a PDF document",
    b"PK\3\4": "a zip archive",
}
_OTHER_BRANDS = {b"heic": "a HEIC image", b"heix": "a HEIC image", b"mif1": "a HEIF image", b"avif": "an AVIF image"}


def not_an_image(data: bytes, where: str) -> ShardError:
    """Return the error about bytes that are of another format, named where it is known."""
    return _broken(where, "expected a JPEG, PNG or WebP image", _content_words(data))


def _content_words(data: bytes) -> str:
    """Name what the bytes seem to be."""
    if not data:
        return "the file is empty"
    name = next((name for start, name in _OTHER_FORMATS.items() if data.startswith(start)), "")
    name = name or (_OTHER_BRANDS.get(data[8:12], "") if data[4:8] == b"ftyp" else "")
    if name:
        return f"it is {name}; convert it to JPEG"
    is_text = all(32 <= byte < 127 or byte in b"\t\r\n" for byte in data[:64])
    return "it is a text file" if is_text else "it is of another kind, or damaged at its beginning"


def _decode_pillow(data: bytes, where: str) -> NDArray[np.uint8]:
    with _open_pillow(data, where) as image, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image.load()
            if image.mode.startswith("I"):
                grey_HW = (np.asarray(image).astype(np.int64) + 128) // 257
                return np.repeat(grey_HW.clip(0, 255).astype(np.uint8)[:, :, None], 3, axis=2)
            return np.array(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError, IndexError, struct.error) as error:
            raise _broken(where, f"the {image.format} is truncated or corrupt", error) from None


def _shrunk(image_HWC: NDArray[np.uint8], shrink: int) -> NDArray[np.uint8]:
    return image_HWC if shrink == 1 else np.array(Image.fromarray(image_HWC).reduce(shrink))


def _broken(where: str, what: str, error: object) -> ShardError:
    return ShardError(f"{where}: {what}: {error}; {ADVICE}")
