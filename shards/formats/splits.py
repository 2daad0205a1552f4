"""A folder with train/ and val/: two sets at once; also as Kaggle has ImageNet (`ILSVRC/Data/CLS-LOC/train` …).

Without val/ the folder test/ is the validation set, if it has folders of classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from shards.errors import ShardError
from shards.formats.class_folders import list_class_folders, with_doubts
from shards.formats.file_tree import FileTree
from shards.formats.image_list import ImageList
from shards.formats.input_format import InputFormat, Source
from shards.formats.labels import LabelList, list_labelled
from shards.formats.walk import FILE_SUFFIXES, suffix_of

_PLACES = ("", "Data/CLS-LOC", "ILSVRC/Data/CLS-LOC")
_TRAINING = ("train", "training")
_VALIDATION = ("val", "valid", "validation", "dev")
_TEST = ("test", "testing")
_KAGGLE_LIST = "LOC_val_solution.csv"
_MOST_LIST_BYTES = 1 << 28


class _Splits(NamedTuple):
    """Where the splits are: the folder that holds both, and what they are called."""

    place: str
    train: str
    val: str


def validation_folder(tree: FileTree) -> str | None:
    """Return the path of the folder that holds the validation images; None where the tree has no such parts."""
    splits = _find(tree)
    return _join(splits.place, splits.val) if splits else None


def _find(tree: FileTree) -> _Splits | None:
    for place in _PLACES:
        names = {name.lower(): name for name in tree.folders(place)}
        train = next((names[name] for name in _TRAINING if name in names), None)
        if train is None or not tree.folders(_join(place, train)):
            continue
        val = next((names[name] for name in _VALIDATION if name in names), None)
        tests = [names[name] for name in _TEST if name in names and tree.folders(_join(place, names[name]))]
        if val is not None or tests:
            return _Splits(place, train, val or tests[0])
    return None


def _suits(source: Source) -> bool:
    return _find(source.tree) is not None


def _read(source: Source) -> Mapping[str, ImageList]:
    tree = source.tree
    splits = _find(tree)
    if splits is None:
        raise ShardError(
            f"{source.path}: expected the folders train (with a folder for each class) and val or test, got others"
        )
    inner = tree.below(_join(splits.place, splits.train))
    train = with_doubts(list_class_folders(inner, source.class_names, ignore_unknown=source.ignore_unknown))
    val = _validation(source, tree, splits, train.class_names)
    others = sorted(set(tree.folders(splits.place)) - {splits.train, splits.val})
    shown = [name for name in others if not name.startswith(".")]
    remarks = (f"beside {splits.train} and {splits.val}, passed over: {', '.join(shown[:5])}",) if shown else ()
    if splits.val.lower() in _TEST:
        remarks = (f"there is no folder val: {splits.val} is the validation set", *remarks)
    return {"train": replace(train, remarks=(*remarks, *train.remarks)), "val": val}


def _validation(source: Source, tree: FileTree, splits: _Splits, class_names: Sequence[str]) -> ImageList:
    """The validation set, labelled by the classes of the training set."""
    inner = tree.below(_join(splits.place, splits.val))
    flat = [e.name for e in inner.entries("") if not e.is_folder and suffix_of(e.name) in FILE_SUFFIXES]
    if source.labels is None and not flat:
        names_of = {} if source.class_names else {"names_of": f"classes of {splits.train}"}
        return list_class_folders(inner, class_names, ignore_unknown=source.ignore_unknown, **names_of)
    labels = LabelList.load(source.labels) if source.labels else _list_beside(source, tree, splits)
    if labels is None:
        raise ShardError(
            f"{inner.name}: images side by side, without folders for their classes: put {_KAGGLE_LIST} beside the "
            "folders, or give a list of their labels with --labels FILE"
        )
    return list_labelled(
        inner,
        labels,
        class_names,
        first_label=source.first_label,
        ignore_unknown=source.ignore_unknown,
        lists=[_KAGGLE_LIST],
    )


def _list_beside(source: Source, tree: FileTree, splits: _Splits) -> LabelList | None:
    """Kaggle's list of the labels, in the tree or beside it."""
    for folder in dict.fromkeys(("", splits.place, _join(splits.place, splits.val))):
        if _KAGGLE_LIST in [entry.name for entry in tree.entries(folder)]:
            path = _join(folder, _KAGGLE_LIST)
            status = tree.status(path)
            data = tree.read(path, status.offset, status.size, _MOST_LIST_BYTES)
            return LabelList(data.decode("utf-8-sig"), f"{tree.name}/{path}", Path(tree.name, folder, "meta.mat"))
    beside = source.path.resolve().parent / _KAGGLE_LIST
    return LabelList.load(beside) if beside.is_file() else None


def _join(*parts: str) -> str:
    return "/".join(part for part in parts if part)


SPLITS = InputFormat(
    name="splits", summary="train/ and val/, each with its classes", suits=_suits, read=_read, takes_labels=True
)
