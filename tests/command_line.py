"""Run commands in this process, for tests."""

from pathlib import Path

from click.testing import CliRunner, Result

from cli import cli


def run(*words: str | Path) -> Result:
    """Run a command, whatever its exit code."""
    return CliRunner().invoke(cli, [str(word) for word in words])


def done(*words: str | Path) -> str:
    """Return the output of a command that must succeed."""
    result = run(*words)
    assert result.exit_code == 0, result.output
    return result.output
