"""`python -m benchmarks.study SETTINGS.toml --photos DIR --work DIR`: run what is missing, then print the tables."""

import argparse
from pathlib import Path

from benchmarks.study import __doc__ as story
from benchmarks.study.commands import Commands
from benchmarks.study.settings import read_settings
from benchmarks.study.stages import Stages
from benchmarks.study.tables import study_tables


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.study", description=story, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("settings", type=Path, help="a TOML file, such as benchmarks/study/long.toml")
    parser.add_argument("--photos", type=Path, help="ImageFolders train/ and val/, such as Imagenette's")
    parser.add_argument("--work", type=Path, required=True, help="where shards, caches, sweeps and times go")
    parser.add_argument("--minutes", type=float, help="stop after so long; the same command goes on")
    parser.add_argument("--tables", action="store_true", help="run nothing")
    parser.add_argument("--png", type=Path, help="also figures, in this folder")
    given = parser.parse_args()
    if not given.tables and given.photos is None:
        parser.error("--photos is needed, unless there are only --tables to print")
    try:
        settings = read_settings(given.settings)
    except ValueError as error:
        parser.error(str(error))
    if not given.tables:
        with Commands(given.work, given.minutes) as commands:
            Stages(settings, given.photos, given.work, commands).run()
    for text in study_tables(settings, given.work, given.png):
        print(f"{text}\n")


if __name__ == "__main__":
    main()
