"""A checkpoint is complete or not there, the last good one outlives every accident, and a foreign one is refused."""

import errno
import json

import pytest
import torch

import student.run.checkpoint as checkpoint
from shards.errors import RunError
from student.run.checkpoint import as_state, load_checkpoint, require_identity, save_checkpoint, saved_steps
from student.run.run_events import Rejected

IDENTITY = {"recipe": {"lr": 0.1, "betas": [0.9, 0.999]}, "seed": 0, "teacher": {"kind": "cache"}}


def state(step):
    return {"model": {"w": torch.arange(1000.0) * step}, "step": step, "last": {"loss": 0.5}}


def save(folder, step, identity=IDENTITY):
    return save_checkpoint(folder, state(step), step=step, identity=identity, world_size=2)


def test_what_is_saved_is_loaded_and_plain_torch_reads_it(tmp_path):
    """Tensors come back to the bit; the payload needs no code of ours."""
    path = save(tmp_path, 3)
    loaded, manifest = load_checkpoint(tmp_path, 3, identity=IDENTITY)
    assert torch.equal(loaded["model"]["w"], state(3)["model"]["w"])
    assert (manifest.step, manifest.world_size) == (3, 2)
    assert torch.load(path, weights_only=True)["step"] == 3


def test_the_last_two_are_kept_and_leftovers_of_killed_saves_go(tmp_path):
    """Disk does not fill up over 300 epochs; a payload without manifest is no checkpoint."""
    (tmp_path / "step-000000009.pt").write_bytes(b"half")
    (tmp_path / ".step-000000009.pt.77.partial").write_bytes(b"half")
    for step in (1, 2, 3, 10):
        save(tmp_path, step)
    assert saved_steps(tmp_path) == [10, 3]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"step-{step:09d}.{suffix}" for step in (3, 10) for suffix in ("json", "pt")
    ]


def damage_bit(folder):
    path = folder / "step-000000002.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(folder):
    path = folder / "step-000000002.pt"
    path.write_bytes(path.read_bytes()[:-1])


def remove(folder):
    (folder / "step-000000002.pt").unlink()


def tear_manifest(folder):
    path = folder / "step-000000002.json"
    path.write_bytes(path.read_bytes()[:40])


def other_format(folder):
    path = folder / "step-000000002.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))


@pytest.mark.parametrize(
    "harm, reason",
    [
        (damage_bit, "sha256"),
        (truncate, "bytes, expected"),
        (remove, "cannot be read"),
        (tear_manifest, "manifest"),
        (other_format, "format 99"),
    ],
)
def test_damage_is_seen_and_explained(tmp_path, harm, reason):
    """Every kind of damage is a rejection with its reason, never a wrong state or a traceback."""
    save(tmp_path, 1)
    save(tmp_path, 2)
    harm(tmp_path)
    rejected = load_checkpoint(tmp_path, 2, identity=IDENTITY)
    assert isinstance(rejected, Rejected) and reason in rejected.reason
    assert not isinstance(load_checkpoint(tmp_path, 1, identity=IDENTITY), Rejected)


def test_another_run_is_refused_naming_every_field(tmp_path):
    """Continuing with another lr or another cache would be neither run."""
    save(tmp_path, 1)
    other = {"recipe": {"lr": 0.2, "betas": [0.9, 0.999]}, "seed": 1, "teacher": {"kind": "cache"}, "views": 3}
    with pytest.raises(RunError) as error:
        load_checkpoint(tmp_path, 1, identity=other)
    for words in ("recipe.lr: the run has 0.1, requested is 0.2", "seed: the run has 0", "views", "another --out"):
        assert words in str(error.value)
    assert "betas" not in str(error.value)


def test_a_setting_that_only_one_of_them_has_is_no_text(tmp_path):
    """A run without --deterministic says nothing of it; 'nothing' in quotes read as a value that somebody typed."""
    with pytest.raises(RunError, match="deterministic: the run has none, requested is True"):
        require_identity(expected={**IDENTITY, "deterministic": True}, got=IDENTITY, where=tmp_path)
    with pytest.raises(RunError, match="deterministic: the run has True, requested is none"):
        require_identity(expected=IDENTITY, got={**IDENTITY, "deterministic": True}, where=tmp_path)


def test_checksums_that_differ_are_not_printed(tmp_path):
    """Two lines of 64 digits each hid that training and validation set were swapped."""
    identity = {**IDENTITY, "shards": "a" * 64}
    with pytest.raises(RunError, match="shards: the run was begun with others") as error:
        require_identity(expected={**identity, "shards": "b" * 64, "seed": 7}, got=identity, where=tmp_path)
    assert "aaa" not in str(error.value) and "seed: the run has" in str(error.value)


@pytest.mark.parametrize("after_bytes", [0, 100, 3000])
def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, monkeypatch, after_bytes):
    """ENOSPC in the middle of a save: an error that names what is kept, and nothing half-written."""
    save(tmp_path, 1)
    written = 0
    plain = checkpoint._Digesting.write

    def full(self, data):
        nonlocal written
        written += len(data)
        if written > after_bytes:
            raise OSError(errno.ENOSPC, "No space left on device")
        return plain(self, data)

    monkeypatch.setattr(checkpoint._Digesting, "write", full)
    with pytest.raises(RunError, match=r"step 2 could not be written.*last good checkpoint is .*step-000000001.pt"):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000001.json", "step-000000001.pt"]
    assert not isinstance(load_checkpoint(tmp_path, 1, identity=IDENTITY), Rejected)


@pytest.mark.parametrize("after_bytes", [0, 100, 3000])
def test_ctrl_c_while_saving_is_ctrl_c_and_no_full_disk(tmp_path, monkeypatch, after_bytes):
    """torch's writer turns what is raised in it into errors of its own; a sweep would call its cells failed."""
    save(tmp_path, 1)
    written = 0
    plain = checkpoint._Digesting.write

    def interrupted(self, data):
        nonlocal written
        written += len(data)
        if written > after_bytes:
            raise KeyboardInterrupt
        return plain(self, data)

    monkeypatch.setattr(checkpoint._Digesting, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000001.json", "step-000000001.pt"]


def test_ctrl_c_while_loading_is_ctrl_c_and_no_damage(tmp_path, monkeypatch):
    """A good checkpoint must not be passed over because somebody pressed Ctrl-C while it was read."""

    def interrupted(*_, **__):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise RuntimeError("PytorchStreamReader failed") from error

    save(tmp_path, 1)
    monkeypatch.setattr(torch, "load", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_checkpoint(tmp_path, 1, identity=IDENTITY)


NO_ROOM = (
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: 9 GB"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
)


@pytest.mark.parametrize("error", NO_ROOM, ids=lambda error: type(error).__name__)
def test_full_memory_is_no_damaged_checkpoint(tmp_path, monkeypatch, error):
    """A good checkpoint must not be passed over, nor its folder be deleted, because a neighbour took the memory."""

    def full(*_, **__):
        raise error

    save(tmp_path, 1)
    with pytest.raises(type(error)), as_state(tmp_path, 1):
        full()
    if not isinstance(error, torch.OutOfMemoryError):  # it is read into the memory of the host
        monkeypatch.setattr(torch, "load", full)
        with pytest.raises(type(error)):
            load_checkpoint(tmp_path, 1, identity=IDENTITY)


def test_a_vanished_disk_is_an_error_and_not_a_new_folder(tmp_path):
    """An unmounted run directory must not be made anew on the disk below it."""
    with pytest.raises(RunError, match="no earlier checkpoint"):
        save(tmp_path / "gone", 1)
    assert not (tmp_path / "gone").exists()
