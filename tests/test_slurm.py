"""The scripts of examples/slurm on a real SLURM cluster of one node; skipped, with the reason, without SLURM."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm_campaign import SCENARIOS, SCRIPTS, Campaign, example
from tests.slurm_cluster import Cluster, absent

_ASKED = "SLURM_CAMPAIGN"


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Campaign]:
    if absent():
        pytest.skip(absent())
    if not os.environ.get(_ASKED):
        pytest.skip(f"takes ten minutes: set {_ASKED}=1, or run python -m tests.slurm_campaign")
    folder = tmp_path_factory.mktemp("slurm")
    with Cluster(folder / "cluster") as cluster:
        yield Campaign(cluster, folder / "work")


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_scripts_do_what_the_page_says(name: str, campaign: Campaign) -> None:
    assert SCENARIOS[name](campaign)


@pytest.mark.parametrize("name", SCENARIOS)
def test_there_is_a_script_of_each_name_and_its_command_can_be_exchanged(name: str, tmp_path: Path) -> None:
    """So that the campaign runs the example and not a copy of it."""
    campaign = object.__new__(Campaign)
    campaign.folder = tmp_path
    text = campaign.script(name, ["ITS-COMMAND", "--flag"]).read_text()
    assert text.count("cli.py ITS-COMMAND --flag") == 1
    assert "/data/" in example(name) and "/data/" not in text and "--gpus" not in text


def test_no_batch_script_is_without_a_scenario_and_a_word_on_the_page() -> None:
    page = (Path(__file__).parent.parent / "docs" / "clusters.md").read_text()
    assert sorted(script.stem for script in SCRIPTS.iterdir()) == sorted(SCENARIOS)
    assert not [name for name in SCENARIOS if f"(../examples/slurm/{name}.sh)" not in page]


def test_all_scripts_name_the_same_shards_and_the_same_cache() -> None:
    """A cache of other shards is refused, so scripts that are submitted one after the other must fit each other."""
    texts = [script.read_text() for script in SCRIPTS.iterdir()]
    for flag in ("--shards", "--val-shards", "--cache"):
        assert len({place for text in texts for place in re.findall(rf"{flag} (\S+)", text)}) == 1, flag
