"""Image bytes to RGB: one rule, one clear error, and shortcuts that change no pixel."""

import io
import struct
import zlib

import numpy as np
import pytest
import simplejpeg
import skimage.data
from PIL import Image

from shards.errors import ShardError
from shards.views.behaviour import fixed_image
from shards.views.decode import MAX_PIXELS, decode_rgb, read_header, shrunk_size

PHOTO = fixed_image(150, 203)


def _encode(image: Image.Image, format: str, **kwargs: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **kwargs)
    return stream.getvalue()


def _jpeg(image_HWC: np.ndarray = PHOTO, sampling: str = "420", quality: int = 90) -> bytes:
    return simplejpeg.encode_jpeg(image_HWC, quality, "RGB", sampling)


def _pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


RGB = Image.fromarray(PHOTO)
RGBA = Image.fromarray(np.dstack([PHOTO, PHOTO[:, :, 0]]))
GREY16 = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
ACCEPTED = {
    "jpeg_444": _jpeg(sampling="444"),
    "jpeg_422": _jpeg(sampling="422"),
    "jpeg_420": _jpeg(),
    "jpeg_grey": _encode(RGB.convert("L"), "JPEG"),
    "jpeg_progressive": _encode(RGB, "JPEG", progressive=True),
    "jpeg_rgb": _encode(RGB, "JPEG", keep_rgb=True),
    "jpeg_cmyk": _encode(RGB.convert("CMYK"), "JPEG"),
    "jpeg_restarts": _encode(RGB, "JPEG", restart_marker_blocks=3),
    "png_rgb": _encode(RGB, "PNG"),
    "png_grey": _encode(RGB.convert("L"), "PNG"),
    "png_1_bit": _encode(RGB.convert("1"), "PNG"),
    "png_palette": _encode(RGB.quantize(16), "PNG"),
    "png_palette_transparent": _encode(RGB.quantize(16), "PNG", transparency=3),
    "png_rgba": _encode(RGBA, "PNG"),
    "png_grey_alpha": _encode(RGBA.convert("LA"), "PNG"),
    "webp": _encode(RGB, "WEBP", lossless=True),
    "webp_rgba": _encode(RGBA, "WEBP", lossless=True),
    "jpeg_1x1": _jpeg(PHOTO[:1, :1].copy()),
    "jpeg_10000x8": _jpeg(np.tile(PHOTO[:8], (1, 50, 1))[:, :10000].copy()),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_pixels_are_those_of_pillow(name: str) -> None:
    """DeiT was trained on what Pillow decodes; alpha is dropped, grey repeated, CMYK converted."""
    data = ACCEPTED[name]
    got_HWC = decode_rgb(data, name)
    assert got_HWC.dtype == np.uint8 and got_HWC.flags.c_contiguous
    np.testing.assert_array_equal(got_HWC, _pillow(data))
    assert got_HWC.shape[:2] == read_header(data, name)[1:3]


def test_ycck_is_read_as_pillow_reads_it() -> None:
    """An Adobe CMYK file whose marker says transform 2 is YCCK."""
    data = ACCEPTED["jpeg_cmyk"]
    adobe = data.index(b"Adobe")
    assert data[adobe + 11] == 0
    data = data[: adobe + 11] + b"\x02" + data[adobe + 12 :]
    assert simplejpeg.decode_jpeg_header(data)[2] == "YCCK"
    np.testing.assert_array_equal(decode_rgb(data, "ycck"), _pillow(data))


def test_sixteen_bit_grey_is_scaled_where_pillow_would_clip_it() -> None:
    got_HWC = decode_rgb(_encode(Image.fromarray(GREY16), "PNG"), "grey16")
    np.testing.assert_array_equal(got_HWC, np.repeat(np.rint(GREY16 / 257.0)[:, :, None], 3, 2))
    assert got_HWC.max() == 255 and 120 < got_HWC.mean() < 135


def test_orientation_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_rgb(_encode(RGB, "JPEG", exif=exif), "turned").shape == PHOTO.shape


@pytest.mark.parametrize("name", [name for name in ACCEPTED if name.startswith("jpeg")])
def test_the_top_rows_are_those_of_the_whole_image(name: str) -> None:
    """Law 2: how far down a decode goes must not show in the pixels."""
    data = ACCEPTED[name]
    whole_HWC = decode_rgb(data, name)
    for rows in range(1, len(whole_HWC) + 1, 3):
        top_HWC = decode_rgb(data, name, rows=rows)
        assert len(top_HWC) >= rows
        np.testing.assert_array_equal(top_HWC, whole_HWC[: len(top_HWC)])


def test_the_top_is_decoded_without_the_rest() -> None:
    """The shortcut is taken: a crop at the top costs no full decode."""
    assert len(decode_rgb(_jpeg(), "top", rows=20)) == 32


@pytest.mark.parametrize("name", ["jpeg_444", "jpeg_420", "png_rgb", "jpeg_1x1", "jpeg_10000x8"])
@pytest.mark.parametrize("shrink", [1, 2, 4, 8])
def test_shrinking_gives_the_announced_size(name: str, shrink: int) -> None:
    data = ACCEPTED[name]
    assert decode_rgb(data, name, shrink=shrink).shape[:2] == shrunk_size(*decode_rgb(data, name).shape[:2], shrink)


@pytest.mark.parametrize("sampling", ["444", "420"])
def test_shrinking_a_photo_in_the_dct_is_nearly_its_mean(sampling: str) -> None:
    photo_HWC = skimage.data.astronaut()
    data = _jpeg(photo_HWC, sampling)
    for shrink in (2, 4, 8):
        reduced_HWC = np.asarray(Image.fromarray(decode_rgb(data, "photo")).reduce(shrink)).astype(int)
        assert np.abs(decode_rgb(data, "photo", shrink=shrink) - reduced_HWC).mean() < 1.5


def _png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in (body, b"IDAT")
    )


def _huge_jpeg() -> bytes:
    data = _jpeg()
    frame = data.index(b"\xff\xc0")
    return data[: frame + 5] + struct.pack(">HH", 65000, 65000) + data[frame + 9 :]


def _flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + b"\xff\xff\x00\xff\xff\x13" + data[middle + 6 :]


def _out_of_step() -> bytes:
    """Foreign bytes before a restart marker, in the middle of the scan."""
    data = ACCEPTED["jpeg_restarts"]
    marker = data.index(b"\xff\xd3", data.index(b"\xff\xda"))
    return data[:marker] + b"\x12\x34\x56\x12\x34\x56" + data[marker:]


def _many_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan stands there again and again."""
    data = ACCEPTED["jpeg_progressive"]
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + count * last + data[-2:]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


TEXT = _chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 2_000_000))
METADATA = {
    "text": TEXT,
    "itxt": _chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"y" * 2_000_000)),
    "many": _chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 900_000)) * 80,
    "profile": _chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(3_000_000))),
    "no_zlib_stream": _chunk(b"zTXt", b"Comment\0\0no zlib stream"),
    "wrong_checksum": TEXT[:-4] + b"\0\0\0\0",
    "exif": _chunk(b"eXIf", b"no exif"),
}


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("kind", ["png_rgb", "png_grey", "png_palette_transparent", "png_grey_alpha"])
@pytest.mark.parametrize("name", METADATA)
def test_the_metadata_of_a_png_are_no_pixels(name: str, kind: str, before: bool) -> None:
    """Pillow refuses images for them; they are left out, before the pixels and after them."""
    data = ACCEPTED[kind]
    at = 33 if before else len(data) - 12
    np.testing.assert_array_equal(decode_rgb(data[:at] + METADATA[name] + data[at:], name), _pillow(data))


def test_scans_are_counted_without_those_of_a_thumbnail() -> None:
    """A thumbnail, or any other metadata, may hold the bytes of a scan's marker."""
    data = ACCEPTED["jpeg_progressive"]
    thumbnail = b"\xff\xe1" + struct.pack(">H", 602) + 300 * b"\xff\xda"
    np.testing.assert_array_equal(decode_rgb(data[:2] + thumbnail + data[2:], "thumbnail"), _pillow(data))


REFUSED = {
    "jpeg_many_scans": (_many_scans(100), "at most 100 scans: it has 1[0-9][0-9]"),
    "empty": (b"", "expected a JPEG, PNG or WebP image: the file is empty; replace the image or leave it out"),
    "text": (b"not an image", "expected a JPEG, PNG or WebP"),
    "gif": (_encode(RGB, "GIF"), "expected a JPEG, PNG or WebP"),
    "tiff": (_encode(RGB, "TIFF"), "expected a JPEG, PNG or WebP"),
    "jpeg_two_bytes": (b"\xff\xd8", "JPEG header"),
    "jpeg_header_only": (_jpeg()[:200], "JPEG header"),
    "jpeg_truncated": (_jpeg()[:-400], "truncated or corrupt"),
    "jpeg_without_end": (_jpeg()[:-2], "truncated or corrupt"),
    "jpeg_corrupt": (_flipped(_jpeg()), "truncated or corrupt"),
    "jpeg_out_of_step": (_out_of_step(), "truncated or corrupt"),
    "jpeg_huge": (_huge_jpeg(), f"{MAX_PIXELS:,}"),
    "cmyk_truncated": (ACCEPTED["jpeg_cmyk"][:-3000], "truncated or corrupt"),
    "png_truncated": (_encode(RGB, "PNG")[:-3000], "truncated or corrupt"),
    "png_huge": (_png_header(60000, 60000), f"{MAX_PIXELS:,}"),
    "png_bomb": (_png_header(10000, 9500), f"{MAX_PIXELS:,}"),
    "webp_truncated": (ACCEPTED["webp"][:-3000], "header cannot be read"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("rows", [None, 8])
def test_what_is_no_whole_image_is_an_error_that_names_it(name: str, rows: int | None) -> None:
    """Also when only the top rows are wanted: a truncated file is never half used."""
    data, message = REFUSED[name]
    with pytest.raises(ShardError, match=message) as caught:
        decode_rgb(data, "shard-3.tar: n01/7", rows=rows)
    assert str(caught.value).startswith("shard-3.tar: n01/7: ")


def test_bytes_after_the_last_row_are_harmless() -> None:
    data = _jpeg()
    np.testing.assert_array_equal(
        decode_rgb(data[:-2] + b"\x01\x02\x03" + data[-2:], "tail"), decode_rgb(data, "clean")
    )
