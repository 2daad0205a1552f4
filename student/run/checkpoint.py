"""Checkpoints that survive kill -9, a full disk and bit rot (law 10).

A checkpoint of step N is two files in `<run>/checkpoints/`: `step-N.pt`, a `torch.save` of tensors and numbers that
`torch.load(weights_only=True)` opens, and `step-N.json`, its manifest: size, sha256, the resolved configuration and the
fingerprints it belongs to. The manifest is written last, so a payload without one is a save that was interrupted; each
file goes to a temporary name, is fsynced and renamed. Older ones are removed only when the new one is complete on disk.

A run goes on from the newest step of which every student of a pass has an intact checkpoint. Rank 0 decides the step;
then every rank reads the files itself, so that no state travels between ranks. The run directory must therefore be on a
file system that all ranks share.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NamedTuple

import msgspec
import torch

from shards.atomic import TEMPORARY, atomic_file
from shards.documents import checked, matching, open_regular, parse_json, read_regular
from shards.errors import RunError, device_words, is_no_memory, system_words, unreadable_now
from shards.signals import raise_interrupt
from shards.values import flat
from student.run.run_events import Rejected
from student.run.run_files import RunFiles
from teacher_cache.network.weights_metadata import require_whole

FORMAT = 1
KEEP = 2


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a checkpoint is and belongs to.

    Attributes:
        step: optimiser steps done. payload_bytes, sha256: of the payload.
        identity: everything that decides the run's numbers, flat or nested JSON; compared field by field on resume.
    """

    format: int
    step: Annotated[int, msgspec.Meta(ge=0, le=10**9)]
    payload_bytes: Annotated[int, msgspec.Meta(ge=0, le=2**50)]
    sha256: str
    identity: dict[str, Any]
    world_size: Annotated[int, msgspec.Meta(ge=1, le=2**20)]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Manifest":
        """Check a manifest read from disk; RunError when it is none, or one of another format."""
        manifest = checked(data, cls, "manifest", error=RunError, advice=f"this version reads format {FORMAT}")
        if manifest.format != FORMAT:
            raise RunError(f"checkpoint format {manifest.format}, this version reads {FORMAT}")
        return manifest


def save_checkpoint(
    folder: Path, state: Mapping[str, Any], *, step: int, identity: Mapping[str, Any], world_size: int
) -> Path:
    """Write the checkpoint of `step`, then drop all but the newest two; returns the payload's path.

    Args:
        folder: must exist: a run directory that vanished (unmounted) is an error, not a reason to make a new one.
        state: nested dicts, lists, tensors, numbers and strings: what `torch.load(weights_only=True)` admits.

    Raises:
        RunError: the disk is full, vanished or not writable. Earlier checkpoints are untouched.
    """
    payload = folder / f"step-{step:09d}.pt"
    manifest_path = payload.with_suffix(".json")
    try:
        with atomic_file(payload) as file:
            writer = _Digesting(file)
            torch.save(dict(state), writer)  # type: ignore[arg-type]  # needs write and flush only
        manifest = Manifest(
            format=FORMAT,
            step=step,
            payload_bytes=writer.num_bytes,
            sha256=writer.sha256.hexdigest(),
            identity=json.loads(json.dumps(identity)),
            world_size=world_size,
        )
        with atomic_file(manifest_path) as file:
            file.write(json.dumps(msgspec.structs.asdict(manifest), indent=1, sort_keys=True).encode())
    except (OSError, RuntimeError) as error:  # torch.save wraps some write errors in RuntimeError
        raise_interrupt(error)
        raise RunError(
            f"checkpoint of step {step} could not be written to {folder}: {error}; {_last_good(manifest_path)}. "
            "Make room or restore the disk and run the same command again: it resumes there"
        ) from error
    _prune(folder)
    return payload


def saved_steps(folder: Path) -> list[int]:
    """The steps that have a checkpoint with a manifest, newest first; whether they are intact is seen on loading."""
    return [int(path.stem.removeprefix("step-")) for path in _manifest_paths(folder)]


def load_checkpoint(
    folder: Path, step: int, *, identity: Mapping[str, Any], world_size: int = 1
) -> tuple[dict[str, Any], Manifest] | Rejected:
    """The checkpoint of a step, tensors on the CPU, with its manifest; or why it cannot be used.

    Args:
        identity, world_size: of the run that goes on. Its `accumulate` may differ where ranks × accumulate is as
            before: the parts of a batch are then the same ones.

    Raises:
        RunError: it belongs to another configuration or cache; every differing field is named.
    """
    manifest = read_manifest(folder, step, identity=identity, world_size=world_size)
    if isinstance(manifest, Rejected):
        return manifest
    payload = folder / f"step-{step:09d}.pt"
    reason = _damage(payload, manifest)
    if reason:
        return Rejected(path=payload, reason=reason)
    try:
        require_whole(payload)
        state = torch.load(payload, map_location="cpu", weights_only=True)
    except Exception as error:  # what a pickle that is none of ours stumbles on, in words of its own
        raise_interrupt(error)
        if is_no_memory(error):
            raise  # the checkpoint is not at fault
        _require_readable(payload, error)
        return Rejected(path=payload, reason=f"it is no checkpoint of tensors and numbers ({_first_line(error)})")
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        return Rejected(path=payload, reason=f"expected named parts of a checkpoint, got {type(state).__name__}")
    return state, manifest


def read_manifest(folder: Path, step: int, *, identity: Mapping[str, Any], world_size: int = 1) -> Manifest | Rejected:
    """The manifest of a step's checkpoint, or why it cannot be read; arguments and errors as `load_checkpoint`."""
    path = folder / f"step-{step:09d}.json"
    try:
        manifest = Manifest.from_json(parse_json(read_regular(path), path, error=RunError, advice="it is passed over"))
    except (OSError, RunError) as error:
        _require_readable(path, error)
        return Rejected(path=path, reason=f"its manifest cannot be read ({error})")
    require_identity(expected=identity, got=_stored_identity(manifest, identity, world_size), where=path)
    return manifest


@contextmanager
def as_state(folder: Path, step: int) -> Iterator[None]:
    """RunError for a checkpoint that is intact and whose parts do not fit what the block puts them into."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
        if device_words(error) is not None:
            raise  # of a full device, say; the checkpoint is not at fault
        raise RunError(
            f"{folder}/step-{step:09d}.pt: expected the state of this run, got other parts "
            f"({type(error).__name__}: {str(error)[:200]}); delete the folder to train from the beginning"
        ) from error


def require_identity(*, expected: Mapping[str, Any], got: Mapping[str, Any], where: Path) -> None:
    """RunError naming every field in which the run on disk differs from the one asked for."""
    requested, existing = dict(flat(json.loads(json.dumps(expected)))), dict(flat(got))
    differing = [
        f"{field}: {_difference(existing.get(field, _ABSENT), requested.get(field, _ABSENT))}"
        for field in sorted(requested.keys() | existing.keys())
        if requested.get(field, _ABSENT) != existing.get(field, _ABSENT)
    ]
    if differing:
        raise RunError(
            f"{where} belongs to another run: {'; '.join(differing)}. "
            "Use another --out, or the settings this run was started with"
        )


def _difference(existing: object, requested: object) -> str:
    """Say how two values differ; of checksums, which tell a reader nothing, that they do."""
    if all(isinstance(value, str) and _CHECKSUM.fullmatch(value) for value in (existing, requested)):
        return "the run was begun with others"
    before, now = ("none" if value is _ABSENT else repr(value) for value in (existing, requested))
    return f"the run has {before}, requested is {now}"


def _stored_identity(manifest: Manifest, identity: Mapping[str, Any], world_size: int) -> Mapping[str, Any]:
    """Return the identity of a checkpoint, with the new micro-batches where they cut a batch into the same parts."""
    before, now = manifest.identity.get("accumulate"), identity.get("accumulate")
    if isinstance(before, int) and isinstance(now, int) and before * manifest.world_size == now * world_size:
        return {**manifest.identity, "accumulate": now}
    return manifest.identity


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


_ABSENT = object()
_CHECKSUM = re.compile("[0-9a-f]{64}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _manifest_paths(folder: Path) -> list[Path]:
    """Manifests, newest step first; OSError where they cannot be listed: a run must not begin anew over them."""
    return matching(folder, f"step-{'[0-9]' * 9}.json")[::-1]


def _last_good(but: Path) -> str:
    """Say which checkpoint is left where the one of a manifest could not be written."""
    try:
        last = [path for path in _manifest_paths(but.parent) if path != but]
    except OSError:
        return "its folder cannot be listed"
    return f"the last good checkpoint is {last[0].with_suffix('.pt')}" if last else "there is no earlier checkpoint"


def _require_readable(path: Path, error: BaseException) -> None:
    """RunError where a part of a checkpoint cannot be read now: an earlier one would be trained on over it."""
    if (refused := unreadable_now(error)) is not None:
        raise RunError(system_words(refused, path)) from error


def _damage(payload: Path, manifest: Manifest) -> str:
    """Say why the payload is not what its manifest says; "" where it is."""
    try:
        digest = hashlib.sha256()
        num_bytes = 0
        with open_regular(payload) as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
                num_bytes += len(chunk)
    except OSError as error:
        _require_readable(payload, error)
        return f"it cannot be read ({error})"
    if num_bytes != manifest.payload_bytes:
        return f"it has {num_bytes} bytes, expected {manifest.payload_bytes}"
    if digest.hexdigest() != manifest.sha256:
        return f"its sha256 is {digest.hexdigest()}, expected {manifest.sha256}"
    return ""


def _prune(folder: Path) -> None:
    """Remove all but the newest checkpoints, manifests first, and what interrupted saves left."""
    manifests = _manifest_paths(folder)
    for path in manifests[KEEP:]:
        path.unlink(missing_ok=True)
    kept_stems = {path.stem for path in manifests[:KEEP]}
    for path in folder.iterdir():
        if path.name.endswith(TEMPORARY) or (path.suffix == ".pt" and path.stem not in kept_stems):
            path.unlink(missing_ok=True)


class _Digesting:
    """A file that hashes what goes through it, so that a payload is digested without a second copy in memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.num_bytes = 0

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.num_bytes += len(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()
