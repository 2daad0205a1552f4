"""`report`: write one page about several runs, or about a sweep."""

from pathlib import Path

import click

from shards.commands.flags import PATH
from shards.console import result, say
from shards.own_folder import require_file


@click.command("report")
@click.argument("runs", nargs=-1, required=True, type=PATH)
@click.option("--html", type=PATH, help="Default: report.html in the sweep or beside the first run.")
@click.option("--png", "png_dir", type=PATH, help="Also figures as PNG, in this folder.")
@click.option("--csv", "csv_path", type=PATH, help="Also a table as CSV.")
@click.option("--teacher", metavar="PERCENT|RUN", help="The teacher's top-1, drawn as a line.")
def report(
    runs: tuple[Path, ...], html: Path | None, png_dir: Path | None, csv_path: Path | None, teacher: str | None
) -> None:
    """One self-contained HTML page of several RUNS, or of one sweep."""
    for flag, path in (("--html", html), ("--csv", csv_path)):
        if path is not None:
            require_file(flag, path)
    if png_dir is not None and png_dir.exists() and not png_dir.is_dir():
        raise ValueError(f"--png {png_dir}: expected a folder, got a file; give the folder that the figures go into")
    from student.report.write import write_report

    files = write_report(runs, html=html, png_dir=png_dir, csv_path=csv_path, teacher=teacher or "")
    for run in files.unfinished:
        say(f"{run.path}: {run.state}; run its command again to finish it")
    if files.teacher is not None:
        say(f"{files.teacher.name}: top-1 {files.teacher.y:.1f} %")
    for path in (files.html, *files.pngs, *([files.csv] if files.csv else [])):
        result(path)
