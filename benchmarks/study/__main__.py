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
    arguments = parser.parse_args()
    if not arguments.tables and arguments.photos is None:
        parser.error("--photos is needed, unless there are only --tables to print")
    try:
        settings = read_settings(arguments.settings)
    except ValueError as error:
        parser.error(str(error))
    if not arguments.tables:
        with Commands(arguments.work, arguments.minutes) as commands:
            Stages(settings, arguments.photos, arguments.work, commands).run()
    for text in study_tables(settings, arguments.work, arguments.png):
        print(f"{text}\n")


if __name__ == "__main__":
    main()
