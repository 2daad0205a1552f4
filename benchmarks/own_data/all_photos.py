"""Top-1 of the students of nette5 and nette10 on all of Imagenette's validation photos of their classes.

    python -m benchmarks.own_data.all_photos --work DIR --photos IMAGENETTE

DIR is that of `benchmarks.own_data`, whose students have been trained. Prints a JSON object for each set: `num_images`,
and for each kind of student its top-1 in % by seed, with the mean.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.own_data.__main__ import ARMS, run_path
from benchmarks.own_data.sets import imagenette, write_set
from benchmarks.study.commands import ROOT
from shards.index.shard_index import open_index

CLASSES = {"nette5": 5, "nette10": 10}


def evaluated(weights: Path, shards: Path) -> dict[str, Any]:
    """What `evaluate --json` prints; CalledProcessError when it fails."""
    words = ["evaluate", "--weights", str(weights), "--shards", str(shards), "--json"]
    done = subprocess.run([sys.executable, ROOT / "cli.py", *words], stdout=subprocess.PIPE, text=True, check=True)
    parsed: dict[str, Any] = json.loads(done.stdout)
    return parsed


def result_of(name: str, work: Path, photos: Path) -> dict[str, Any]:
    """Top-1 of each finished student of a set, on all validation photos."""
    place = work / name / "all_photos"
    write_set(imagenette(photos, CLASSES[name], train=0, val=None), place / "photos")
    words = ["make-shards", str(place / "photos" / "val"), str(place / "shards")]
    subprocess.run([sys.executable, ROOT / "cli.py", *words], stdout=sys.stderr, check=True)
    row: dict[str, Any] = {"name": name, "num_images": open_index(str(place / "shards")).num_samples}
    for arm in ARMS:
        paths = sorted(run_path(work, name, arm, 0).parent.glob(f"{arm}-s*/summary.json"))
        results = [evaluated(path.parent / "weights.safetensors", place / "shards") for path in paths]
        top1 = [round(result["cls"]["top1"], 2) for result in results]
        row[arm] = {"top1": top1, "mean": round(statistics.fmean(top1), 2) if top1 else None}
    return row


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.own_data.all_photos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--work", type=Path, required=True, help="the folder of benchmarks.own_data")
    parser.add_argument("--photos", type=Path, required=True, help="Imagenette, a folder with train/ and val/")
    arguments = parser.parse_args()
    for name in CLASSES:
        if (arguments.work / name).is_dir():
            print(json.dumps(result_of(name, arguments.work, arguments.photos)), flush=True)


if __name__ == "__main__":
    main()
