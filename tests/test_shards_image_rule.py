"""What make-shards does to each image: decoded, turned, put on a background; bad ones are named or left out."""

import io
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image, ImageOps

from cli import cli
from shards.errors import ShardError
from shards.index.pixel_rule import PixelRule, background_of
from shards.index.reader import ShardReader
from shards.index.shard_index import ShardIndex
from shards.tars.image_rule import ImageRule, orientation, pictured
from shards.tars.sample_rule import require_image
from shards.views.decode import decode_rgb, read_header
from student.learn.timm_model import bare_model
from student.recipe.papers import recipe_for
from student.run.export import ExportInfo, export_weights, load_student, predict

SMALL = (("depth", 1), ("embed_dim", 32), ("num_heads", 2), ("patch_size", 16))

KINDS = ("JPEG", "PNG", "WEBP")


def picture(seed: int = 0, kind: str = "JPEG", place: int = 0, mode: str = "RGB") -> bytes:
    """A smooth image of 40 × 24 pixels; `place` is its EXIF orientation, 0 for none."""
    small = np.random.default_rng(seed).integers(0, 255, (3, 5, 3), np.uint8)
    image = Image.fromarray(small).resize((40, 24), Image.Resampling.BICUBIC).convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    exif = Image.Exif()
    if place:
        exif[0x0112] = place
    file = io.BytesIO()
    image.save(file, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {"lossless": True}))
    return file.getvalue()


def tree(root: Path, each: int = 8) -> Path:
    for label in ("ant", "bee"):
        (root / label).mkdir(parents=True, exist_ok=True)
        for n in range(each):
            (root / label / f"{n}.jpg").write_bytes(picture(n))
    return root


def make(source: Path, dest: Path, *words: str, workers: int = 1) -> Result:
    return CliRunner().invoke(cli, ["make-shards", str(source), str(dest), "--workers", str(workers), *words])


def keys(folder: Path) -> list[str]:
    index = ShardIndex.load(folder / "shards.index")
    return [index.key(s, r) for s in range(index.num_shards) for r in range(index.num_rows(s))]


def tars(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.tar")}


def spoil(source: Path) -> dict[str, str]:
    """Images that are bad in each way that a decoder notices; name → what is said of it."""
    cut = picture(3)
    rows = struct.pack(">IIBBBBB", 40, 24, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    bad = {
        "ant/3.jpg": (cut[: len(cut) * 6 // 10], "truncated or corrupt"),
        "bee/1.jpg": (b"<html>404</html>", "expected a JPEG, PNG or WebP image"),
        "bee/2.jpg": (b"", "the file is empty"),
        "bee/5.jpg": (
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", rows)
            + chunk(b"IDAT", zlib.compress(b"\0" * 50))
            + chunk(b"IEND", b""),
            "truncated or corrupt",
        ),
        "bee/6.jpg": (picture(6, "WEBP")[:-30], "cannot be read"),
    }
    for name, (data, _) in bad.items():
        (source / name).write_bytes(data)
    return {name: said for name, (_, said) in bad.items()}


# Bad images.


@pytest.mark.parametrize("workers", [1, 2])
def test_every_image_is_decoded_and_all_bad_ones_are_counted(workers: int, tmp_path: Path) -> None:
    source = tree(tmp_path / "in")
    bad = spoil(source)
    done = make(source, tmp_path / "out", "--samples-per-shard", "4", workers=workers)
    assert done.exit_code == 1 and "5 of 16 images cannot be taken" in done.output
    assert "--skip-bad left-out.txt" in done.output and "ant/3.jpg" in done.output and len(done.output) < 800
    made = make(source, tmp_path / "out", "--samples-per-shard", "4", "--skip-bad", str(tmp_path / "bad.txt"))
    assert made.exit_code == 0, made.output
    head, *lines = (tmp_path / "bad.txt").read_text().splitlines()
    assert head.startswith("# images that make-shards left out") and "5 images left out" in made.output
    assert sorted(line.partition(": ")[0] for line in lines) == sorted(bad)
    for line in lines:
        name, _, reason = line.partition(": ")
        assert bad[name] in reason, line
    assert sorted(keys(tmp_path / "out")) == sorted(
        f"{label}/{n}" for label in ("ant", "bee") for n in range(8) if f"{label}/{n}.jpg" not in bad
    )
    assert ShardIndex.load(tmp_path / "out" / "shards.index").num_skipped == 5


def test_what_passes_decodes_in_stage_1(tmp_path: Path) -> None:
    source = tree(tmp_path / "in")
    spoil(source)
    assert make(source, tmp_path / "out", "--skip-bad", str(tmp_path / "bad.txt")).exit_code == 0
    assert CliRunner().invoke(cli, ["check-shards", str(tmp_path / "out"), "--decode"]).exit_code == 0
    with ShardReader(ShardIndex.load(tmp_path / "out" / "shards.index")) as reader:
        for row in range(11):
            decode_rgb(reader.image_bytes(0, row), "x")


def test_the_list_of_those_left_out_is_complete_after_a_stop(tmp_path: Path) -> None:
    """Shards that are kept are not read again: the journal knows what they left out."""
    source = tree(tmp_path / "in")
    spoil(source)
    words = ("--samples-per-shard", "4", "--skip-bad", str(tmp_path / "bad.txt"))
    assert make(source, tmp_path / "out", *words).exit_code == 0
    text = (tmp_path / "bad.txt").read_bytes()
    (tmp_path / "bad.txt").unlink()
    (tmp_path / "out" / "shards.index").unlink()
    (tmp_path / "out" / "shard-000001.tar").unlink()
    assert make(source, tmp_path / "out", *words).exit_code == 0
    assert (tmp_path / "bad.txt").read_bytes() == text
    assert ShardIndex.load(tmp_path / "out" / "shards.index").num_skipped == 5


def test_the_list_overwrites_no_file_of_others(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    done = make(tree(tmp_path / "in"), tmp_path / "out", "--skip-bad", str(tmp_path / "notes.txt"))
    assert done.exit_code == 2 and (tmp_path / "notes.txt").read_text() == "mine"


def test_a_shard_of_bad_images_alone_is_an_error(tmp_path: Path) -> None:
    source = tree(tmp_path / "in", each=1)
    (source / "ant" / "0.jpg").write_bytes(b"x")
    done = make(source, tmp_path / "out", "--samples-per-shard", "1", "--skip-bad", str(tmp_path / "bad.txt"))
    assert done.exit_code == 1 and "ant/0.jpg" in done.output


def test_decoding_changes_no_byte_and_can_be_left_out(tmp_path: Path) -> None:
    source = tree(tmp_path / "in")
    assert make(source, tmp_path / "one").exit_code == 0
    assert make(source, tmp_path / "two", "--no-decode").exit_code == 0
    assert tars(tmp_path / "one") == tars(tmp_path / "two")
    (source / "ant" / "3.jpg").write_bytes(picture(3)[:-40])
    assert make(source, tmp_path / "a").exit_code == 1
    assert make(source, tmp_path / "three", "--no-decode").exit_code == 0, "as before: cut images are not noticed"


# EXIF.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", range(1, 9))
def test_images_are_turned_as_pillow_turns_them(kind: str, place: int) -> None:
    data = picture(7, kind, place)
    assert orientation(data, require_image(data, "x")) == place
    turned = pictured(data, PixelRule(upright=True), "x")
    expected_HWC = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    found_HWC = decode_rgb(turned, "x")
    assert found_HWC.shape == expected_HWC.shape
    assert np.abs(found_HWC.astype(int) - expected_HWC).max() <= (12 if kind == "JPEG" else 0)
    assert orientation(turned, require_image(turned, "x")) == 1, "once"
    assert (turned == data) == (place == 1), "an upright image keeps its bytes"
    assert pictured(data, PixelRule(), "x") is data


@pytest.mark.parametrize("exif", [b"", b"MM\0*\0\0\0\x08\xff\xff" + b"\0" * 9, b"\xff" * 40])
def test_metadata_that_nobody_can_read_turn_no_image(exif: bytes) -> None:
    data = picture(1)
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 8) + b"Exif\0\0" + exif
    assert orientation(data[:2] + segment + data[2:], "jpg") == 1
    assert orientation(data[:20], "jpg") == 1 and orientation(picture(1, "PNG")[:40], "png") == 1


def test_exif_orientation_is_ignored_counted_and_said_and_upright_turns(tmp_path: Path) -> None:
    source = tree(tmp_path / "in", each=6)
    for n in range(3):
        (source / "ant" / f"{n}.jpg").write_bytes(picture(n, place=6))
    plain = make(source, tmp_path / "out")
    assert "3 of 12 images have an EXIF orientation, which is ignored" in plain.output, plain.output
    turned = make(source, tmp_path / "turned", "--upright")
    assert "3 of 12 images were turned" in turned.output and "pixels: turned upright" in turned.output
    index = ShardIndex.load(tmp_path / "turned" / "shards.index")
    assert index.pixels == PixelRule(upright=True)
    assert ShardIndex.load(tmp_path / "out" / "shards.index").pixels == PixelRule()
    with ShardReader(index) as reader:
        shape = decode_rgb(reader.image_bytes(*index.find("ant/1")), "x").shape
    assert shape == (40, 24, 3)
    refused = make(source, tmp_path / "turned", "--seed", "2").output
    assert "  pixels: existing shards: turned upright; requested: as they are\n  seed: existing shards: 0" in refused
    refused = make(source, tmp_path / "out", "--upright", "--max-side", "40").output
    for said in ("pixels: existing shards: as they are; requested: turned", "max_side: existing shards: as they are"):
        assert said in refused and "None" not in refused
    one = make(tree(tmp_path / "again", each=1), tmp_path / "one").output
    assert "EXIF" not in one
    (tmp_path / "again" / "ant" / "0.jpg").write_bytes(picture(0, place=6))
    assert "1 of 2 images has an EXIF orientation" in make(tmp_path / "again", tmp_path / "has").output
    assert "1 of 2 images was turned" in make(tmp_path / "again", tmp_path / "was", "--upright").output


# Transparency.


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("colour", ["white", "black", "10,200,30"])
def test_transparent_images_are_put_on_a_background(kind: str, colour: str) -> None:
    data = picture(4, kind, mode="RGBA")
    rule = PixelRule(background=background_of(colour))
    image = Image.open(io.BytesIO(data))
    below = Image.new("RGBA", image.size, (*rule.background, 255))
    expected_HWC = np.asarray(Image.alpha_composite(below, image).convert("RGB")).astype(int)
    assert np.abs(decode_rgb(pictured(data, rule, "x"), "x") - expected_HWC).max() <= 1
    made = ImageRule(pixels=rule).prepared(data, "x")
    assert made.transparent and made.suffix == "png" and pictured(made.data, rule, "x") is made.data
    opaque = picture(4, kind)
    assert ImageRule(pixels=rule).prepared(opaque, "x").data is opaque


def test_transparency_is_counted_and_a_palette_may_have_it(tmp_path: Path) -> None:
    source = tree(tmp_path / "in", each=4)
    palette = Image.open(io.BytesIO(picture(1, "PNG"))).quantize(8)
    palette.save(source / "ant" / "p.png", transparency=0)
    (source / "bee" / "a.png").write_bytes(picture(2, "PNG", mode="RGBA"))
    said = make(source, tmp_path / "out").output
    assert "2 of 10 images have transparent pixels" in said and "--background white" in said
    said = make(source, tmp_path / "white", "--background", "white").output
    assert "put on the background" in said and "pixels: on white" in said
    assert make(source, tmp_path / "x", "--background", "pink").exit_code == 2


def test_a_picture_is_shown_to_a_student_as_its_training_images_were(tmp_path: Path) -> None:
    """Weights carry the rule of their shards; predict turns a photo before the view is taken."""
    rule = PixelRule(upright=True, background=(255, 255, 255))
    recipe = replace(recipe_for("deit_tiny_patch16_224"), image_size=32, model_args=SMALL)
    info = ExportInfo(recipe=recipe, mean=(0.5,) * 3, std=(0.2,) * 3, num_classes=3, fingerprints={}, metrics={})
    network = bare_model(recipe.model, 3, image_size=32, arguments=dict(SMALL))
    answers = []
    for number, data in enumerate((picture(1, place=6), pictured(picture(1, place=6), rule, "x"))):
        (tmp_path / f"{number}.jpg").write_bytes(data)
        for known in (info, replace(info, pixels=rule)):
            path = tmp_path / "weights.safetensors"
            export_weights(network, path, known)
            loaded, said = load_student(path)
            assert said == known
            (answer,) = predict(loaded, said, [tmp_path / f"{number}.jpg"])
            answers.append(answer.classes)
    stored, turned, as_written, again = answers
    assert turned == as_written == again != stored


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "the file is empty"),
        (b"GIF89a", "a GIF image; convert it to JPEG"),
        (b"\0\0\0\x18ftypheic", "a HEIC image; convert it to JPEG"),
        (b"%PDF-1.7", "a PDF document"),
        (b"hello", "a text file"),
        (b"\x7fELF\x02\x01", "of another kind, or damaged"),
    ],
)
def test_what_is_no_image_is_called_what_it_is(data: bytes, words: str) -> None:
    """Nobody reads bytes in hexadecimal."""
    for look in (read_header, require_image):
        with pytest.raises(ShardError, match=words):
            look(data, "a.jpg")
