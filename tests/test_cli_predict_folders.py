"""`predict` counts a picture for the class folder that it lies in, as make-shards would."""

from pathlib import Path

import pytest

from student.commands.predict import _label

TRUTH = frozenset({"cat", "dog"})


@pytest.mark.parametrize(
    ("root", "path", "label"),
    [
        ("photos", "photos/cat/1.jpg", "cat"),
        ("photos", "photos/cat/2023 summer/1.jpg", "cat"),
        ("photos", "photos/val/cat/a/b/1.jpg", "cat"),
        ("photos", "photos/cat/dog/1.jpg", "cat"),
        ("photos/cat", "photos/cat/1.jpg", "cat"),
        ("photos/cat", "photos/cat/2023/1.jpg", "cat"),
        ("cat", "cat/dog/1.jpg", "dog"),
        ("photos", "photos/1.jpg", None),
        ("photos", "photos/other/1.jpg", None),
        ("elsewhere", "photos/dog/1.jpg", "dog"),
    ],
)
def test_the_class_of_a_picture_is_its_folder_however_deep(root: str, path: str, label: str | None) -> None:
    """Pictures in a folder of a class folder were trained on as that class and not counted."""
    assert _label(Path(path), [Path(root)], TRUTH) == label
