"""The first page: what it links to is there, and the commands it shows exist with the flags it gives them."""

import re
import shlex
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


def commands() -> list[list[str]]:
    """The words behind `cli.py` of every command on the first page, continued lines joined."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ") and " cli.py " in line]
    return [shlex.split(line.partition(" cli.py ")[2]) for line in lines]


@pytest.mark.parametrize("words", commands(), ids=lambda words: words[0])
def test_commands_of_the_first_page_parse(words: list[str]) -> None:
    """Names, flags and the types of their values; nothing is run."""
    group = click.Context(cli)
    command = cli.get_command(group, words[0])
    assert command is not None, words[0]
    command.make_context(words[0], words[1:], parent=group)


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
