"""No message is longer than six lines or 600 characters, and what is cut is neither its beginning nor its end."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from PIL import Image

from cli import cli
from shards.console import shortened


@pytest.mark.parametrize("num_lines", [1, 6, 7, 500])
@pytest.mark.parametrize("width", [3, 90, 5000])
def test_a_message_fits_and_keeps_what_where_and_next_step(num_lines: int, width: int) -> None:
    text = "\n".join(f"{n:03}" + "x" * (width - 3) for n in range(num_lines - 1)) + "\nnext step: do this"
    short = shortened(text)
    assert len(short.splitlines()) <= 6 and len(short) <= 600
    assert short.endswith("next step: do this") and short.startswith(text[:3])
    if len(text.splitlines()) <= 6 and len(text) <= 600:
        assert short == text


def test_the_command_line_cuts_and_debug_does_not() -> None:
    place = "/nowhere/" + "/".join("x" * 200 for _ in range(10))
    said = CliRunner().invoke(cli, ["check-shards", place]).output
    assert len(said) < 700 and "--debug" in said
    assert place in CliRunner().invoke(cli, ["--debug", "check-shards", place]).output


@pytest.mark.parametrize(
    ("run", "said", "not_said"), [("first", "in 3.0 s", "already complete"), ("second", "already complete", "warning")]
)
def test_make_shards_says_how_long_it_took_and_what_was_done_before(
    run: str, said: str, not_said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time of the only shard is that of its images."""
    monkeypatch.setattr("shards.commands.make_shards.time", SimpleNamespace(monotonic=lambda: 0.0))
    monkeypatch.setattr("shards.console.time", SimpleNamespace(monotonic=lambda: 3.0))
    for label in ("ant", "bee"):
        (tmp_path / "in" / label).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "in" / label / "0.png")
    words = ["make-shards", str(tmp_path / "in"), str(tmp_path / "out"), "--workers", "1"]
    outputs = [CliRunner().invoke(cli, words).output for _ in ("first", "second")]
    output = outputs[run == "second"]
    assert said in output and not_said not in output, output
