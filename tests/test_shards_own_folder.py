"""A command writes into a folder that is new, empty or of its own making; into nobody else's."""

import errno
import json
from pathlib import Path

import pytest

from shards.documents import read_regular
from shards.own_folder import CACHE_KIND, FolderKind, kind_at, named, require_own, suggestion, what_is

KIND = FolderKind(
    what="a run",
    command="train-student",
    is_ours=lambda folder: (folder / "mark").exists(),
    begun=named(".lock", "parts"),
)


@pytest.mark.parametrize("names", [(), (".lock",), (".lock", "parts"), ("mark", "notes.txt"), (".DS_Store",)])
def test_ours_begun_and_empty_folders_are_taken(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (tmp_path / name).touch()
    require_own("--out", tmp_path, KIND)
    require_own("--out", tmp_path / "new" / "newer", KIND)


def test_what_others_made_is_refused_and_named(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "c.jpg", "d.jpg", ".lock"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"--out .*a\.jpg, b\.jpg, c\.jpg and 1 more\. Nothing was changed"):
        require_own("--out", tmp_path, KIND)


def test_a_file_or_a_dead_link_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for path, what in ((tmp_path / "file", "a file"), (tmp_path / "file" / "x", "a file"), (tmp_path / "link", "link")):
        with pytest.raises(ValueError, match=what):
            require_own("--out", path, KIND)


@pytest.mark.parametrize(
    ("root", "said"),
    [
        ({"node_type": "group", "attributes": {"kind": CACHE_KIND}}, "inside a cache: "),
        ({"node_type": "group", "attributes": {"kind": "photos"}}, ""),
        ({"node_type": "group"}, ""),
        ({"node_type": "array", "attributes": {}}, "inside a Zarr array: "),
        ([], "a damaged zarr.json, perhaps a cache: "),
        (None, "a damaged zarr.json, perhaps a cache: "),
    ],
)
@pytest.mark.parametrize("below", ["out", "deep/er/out"])
def test_a_place_inside_a_cache_is_refused_and_one_inside_another_zarr_store_is_not(
    root: object, said: str, below: str, tmp_path: Path
) -> None:
    """Reasons are true: a store of the user's own is no cache, and may have a folder of results beside its arrays."""
    (tmp_path / "zarr.json").write_text("{" if root is None else json.dumps(root))
    if said:
        with pytest.raises(ValueError, match=rf"{said}{tmp_path};"):
            require_own("--out", tmp_path / below, KIND)
    else:
        require_own("--out", tmp_path / below, KIND)


def test_a_place_below_a_root_that_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be a cache's; and where too many files are open, nobody says that the root is at fault."""
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop" / "zarr.json").symlink_to("zarr.json")
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked" / "zarr.json").write_text(json.dumps({"attributes": {"kind": CACHE_KIND}}))
    errors = {"locked": PermissionError(errno.EACCES, "Permission denied")}

    def refusing(path: Path) -> bytes:
        if error := errors.get(path.parent.name):
            raise error
        return read_regular(path)

    monkeypatch.setattr("shards.own_folder.read_regular", refusing)
    for name, words in (("loop", "symbolic links"), ("locked", "Permission denied")):
        with pytest.raises(ValueError, match=rf"cannot be read \(.*{words}.*\), perhaps a cache: {tmp_path / name}"):
            require_own("--out", tmp_path / name / "out", KIND)
    errors["locked"] = OSError(errno.EMFILE, "Too many open files")
    with pytest.raises(OSError, match="Too many open files"):
        require_own("--out", tmp_path / "locked" / "out", KIND)


def test_a_misspelt_path_and_the_folder_above_are_answered_with_what_was_meant(tmp_path: Path) -> None:
    """Nothing is suggested that is not of the wanted kind, nor where nothing is alike."""
    for name in ("soft", "hard", "none"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "mark").touch()
    (tmp_path / "runs" / "softer").mkdir()
    answers = {name: suggestion(tmp_path / name, KIND.is_ours) for name in ("runs", "runs/sof", "runs/softe", "x/y")}
    assert answers == {
        "runs": f"it holds hard, none, soft: give {tmp_path}/runs/hard",
        "runs/sof": f"did you mean {tmp_path}/runs/soft?",
        "runs/softe": f"did you mean {tmp_path}/runs/soft?",
        "x/y": "",
    }
    assert suggestion(Path("/"), KIND.is_ours) == ""


@pytest.mark.parametrize("name", ["loop", "n" * 300])
def test_what_cannot_be_looked_at_has_no_kind(name: str, tmp_path: Path) -> None:
    """A message that asks for the kind keeps its own words: `predict` ended at a photo that it should have named."""
    (tmp_path / "loop").symlink_to("loop")
    assert (kind_at(tmp_path / name), what_is(tmp_path / name)) == ("", "")
