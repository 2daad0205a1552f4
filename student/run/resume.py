"""Find the step to resume from: the newest one of which every student of a pass has an intact checkpoint.

Rank 0 decides the step; then every rank reads the files itself, so that no state travels between ranks. The run
directory must therefore be on a file system that all ranks share.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from shards.errors import RunError
from student.run.checkpoint import Manifest, Rejected, load_checkpoint, read_manifest, saved_steps
from student.run.run_files import RunFiles


class Saved(NamedTuple):
    """The step to go on from (0: from the beginning), and how many ranks and micro-batches a batch was cut into."""

    step: int
    world_size: int
    accumulate: int
    rejected: tuple[Rejected, ...]


def together(folders: Sequence[Path]) -> list[list[int]]:
    """Group students that can share a pass: those with a checkpoint of the same step, or with none at all.

    A pass that was killed while it saved leaves some students one checkpoint ahead; they still share the one before.

    Args:
        folders: the checkpoints of each student. Returns: numbers of students, one list per pass.
    """
    passes: list[tuple[set[int], list[int]]] = []
    for number, folder in enumerate(folders):
        steps = set(saved_steps(folder))
        for common, members in passes:
            if common & steps or common == steps:
                common &= steps
                members.append(number)
                break
        else:
            passes.append((steps, [number]))
    return [members for _, members in passes]


def newest_of_all(saved: Sequence[tuple[Path, Mapping[str, Any]]], world_size: int) -> Saved:
    """Find the newest step of which every student has an intact checkpoint; on rank 0.

    Args:
        saved: the checkpoints' folder and the run identity of each student. world_size: of the run that goes on.

    Raises:
        RunError: a checkpoint belongs to another run, or there are some and none is intact.
    """
    common = set.intersection(*(set(saved_steps(folder)) for folder, _ in saved))
    rejected: list[Rejected] = []
    for step in sorted(common, reverse=True):
        damaged = []
        for folder, identity in saved:
            checkpoint = load_checkpoint(folder, step, identity=identity, world_size=world_size)
            if isinstance(checkpoint, Rejected):
                damaged.append(checkpoint)
            else:
                manifest = checkpoint[1]
        if not damaged:
            accumulate = manifest.identity.get("accumulate", 1)
            return Saved(step, manifest.world_size, accumulate, tuple(rejected))
        rejected += damaged
    if rejected:
        raise RunError(
            "no checkpoint is intact: "
            + "; ".join(f"{entry.path}: {entry.reason}" for entry in rejected)
            + ". Delete the checkpoints folder to train from the beginning, or choose another --out"
        )
    return Saved(0, world_size, 1, ())


def finished_before(files: RunFiles, num_steps: int, identity: Mapping[str, Any], world_size: int) -> bool:
    """Whether the run in a directory has reached its last step and written its summary.

    Raises:
        RunError: the directory is of another run.
    """
    if not files.summary.is_file() or num_steps not in saved_steps(files.checkpoints):
        return False
    return isinstance(read_manifest(files.checkpoints, num_steps, identity=identity, world_size=world_size), Manifest)


def read_state(folder: Path, step: int, identity: Mapping[str, Any], world_size: int) -> dict[str, Any]:
    """Read the state of the step that rank 0 chose; RunError when this rank finds another file than rank 0 did."""
    checkpoint = load_checkpoint(folder, step, identity=identity, world_size=world_size)
    if isinstance(checkpoint, Rejected):
        raise RunError(
            f"{checkpoint.path}: {checkpoint.reason}, but rank 0 read it whole; put --out on a file system that all "
            "ranks share, and run the same command again"
        )
    return checkpoint[0]
