"""The first page: what it links to is there, and the commands it shows exist with the flags it gives them."""

import argparse
import importlib
import re
import shlex
import sys
from pathlib import Path

import click
import pytest

from cli import COMMANDS, cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """A page that was moved or a heading that was renamed leaves its readers standing."""
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)]*))?\)", page.read_text(encoding="utf-8")):
        path = (page.parent / target) if target else page
        assert path.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in anchors, f"{page.name}: {target}#{anchor}"


def lines_of(program: re.Pattern[str]) -> list[tuple[str, list[str]]]:
    """Page and words behind a program of each command that the pages show; continued lines are joined.

    Leaves out patterns: those with an ellipsis, brackets around options, COMMAND. A single capital stands for a number.
    """
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        shown = [line for line in text.splitlines() if line.startswith(("    ", "python ", "torchrun ", "srun "))]
        inline = re.findall(r"`((?:python|torchrun) [^`]+)`", re.sub(r"\s+", " ", text))
        for line in [*shown, *inline]:
            match = program.search(line)
            words = shlex.split(line[match.end() :].partition(" > ")[0], comments=True) if match else []
            if words and words[0] != "COMMAND" and not re.search(r"…|\[--", line):
                found.append((page.name, ["1" if re.fullmatch("[A-Z]", word) else word for word in words]))
    return found


COMMAND_LINES = lines_of(re.compile(r"(?:python|torchrun.*?) cli\.py "))
BENCHMARK_LINES = lines_of(re.compile(r"python -m benchmarks\."))


@pytest.mark.parametrize(("page", "words"), COMMAND_LINES, ids=lambda value: value if isinstance(value, str) else "")
def test_commands_of_every_page_parse(page: str, words: list[str]) -> None:
    """Names, flags and the types of their values; nothing is run."""
    group = click.Context(cli)
    command = cli.get_command(group, words[0])
    assert command is not None, (page, words)
    command.make_context(words[0], words[1:], parent=group)


@pytest.mark.parametrize(("page", "words"), BENCHMARK_LINES, ids=lambda value: value if isinstance(value, str) else "")
def test_benchmarks_of_every_page_parse(page: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules and flags; nothing is run."""
    module = importlib.import_module(f"benchmarks.{words[0]}")
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"{module.__name__}.__main__")
    monkeypatch.setattr(sys, "argv", words)
    parse = argparse.ArgumentParser.parse_args

    def parse_alone(parser: argparse.ArgumentParser) -> None:
        parse(parser)
        raise StopIteration

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_alone)
    with pytest.raises(StopIteration):
        module.main()


def test_the_index_names_every_page() -> None:
    """A page that no list names is read by nobody; the site that `make docs` builds has the same list."""
    docs = ROOT / "docs"
    pages = {str(page.relative_to(docs))[:-3] for page in docs.rglob("*.md")} - {"index"}
    assert pages - set(re.findall(r"\]\(([\w./-]+)\.md", (docs / "index.md").read_text())) == set()
    assert pages - set((docs / "contents.rst").read_text().split()) == set()


COMMAND_TABLE = re.compile(r"(?<=<!-- commands -->\n).*(?=<!-- end -->)", re.DOTALL)


def command_table() -> str:
    """The names of the commands in their groups, as a Markdown table."""
    groups: dict[str, list[str]] = {}
    for name, entry in COMMANDS.items():
        groups.setdefault(entry.group, []).append(f"`{name}`")
    return (
        "\n| | |\n|---|---|\n"
        + "".join(f"| {group} | {', '.join(names)} |\n" for group, names in groups.items())
        + "\n"
    )


def test_the_page_of_commands_lists_them_as_the_help_does() -> None:
    """`python -m tests.test_readme` writes the table anew."""
    assert COMMAND_TABLE.findall((ROOT / "docs" / "commands.md").read_text(encoding="utf-8")) == [command_table()]


if __name__ == "__main__":
    page = ROOT / "docs" / "commands.md"
    page.write_text(COMMAND_TABLE.sub(lambda _: command_table(), page.read_text(encoding="utf-8")), encoding="utf-8")
