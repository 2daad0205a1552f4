"""Figures as files: names in any language, and a full disk."""

import errno
import os
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from shards.errors import system_words
from student.report.drawing import save_png


def figure_named(name: str) -> Figure:
    figure = Figure(figsize=(2, 2), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], label=name)
    axes.set_title(name)
    axes.legend()
    return figure


@pytest.mark.parametrize("name", ["日本語", "한국어", "ไทย", "😀", "élan", "$x"])
def test_names_in_any_language_are_drawn_without_a_warning(tmp_path: Path, name: str) -> None:
    """Warnings are errors here; a user would see a line of matplotlib's source."""
    save_png(figure_named(name), tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_a_full_disk_names_the_picture_and_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as refused:
        save_png(figure_named("a"), tmp_path / "x.png")
    assert system_words(refused.value) == f"{tmp_path / 'x.png'}: no space left on device; " + (
        "make room, or choose another place"
    )
    assert not list(tmp_path.iterdir())
