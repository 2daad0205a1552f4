"""No message is longer than six lines or 600 characters, and what is cut is neither its beginning nor its end."""

import pytest
from click.testing import CliRunner

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
