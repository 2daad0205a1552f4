"""Class folders: folders below the root are classes, images below them in any depth are samples (ImageFolder)."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from shards.errors import Problem, ShardError, advisable, problems_text
from shards.formats.file_tree import FileTree
from shards.formats.image_list import ImageList, SourceImage
from shards.formats.input_format import InputFormat, Source
from shards.formats.walk import IGNORED_FOLDERS, ImageWalk, suffix_of
from shards.index.index_checks import require_classes
from shards.names import nearest
from shards.own_folder import INDEX_NAME, is_cache_folder, is_run_folder, is_sweep_folder, what_is
from shards.text.figures import count

_PARTS = {
    *("train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval", "evaluation"),
    *("pred", "predict", "prediction"),
}
"""What people call the parts of a set, in small letters."""
_WITHOUT_LABELS = ("unlabeled", "unlabelled", "nolabel", "nolabels", "unsup", "unsupervised")
_LISTS = ("csv", "tsv", "txt")
_GIVEN = "class names given"


def list_class_folders(
    tree: FileTree,
    class_names: Sequence[str] = (),
    *,
    ignore_unknown: bool = False,
    names_of: str = _GIVEN,
) -> ImageList:
    """List the images of a tree of class folders; none is opened yet.

    Args:
        class_names: all classes in the order of their labels, where some may have no folder here, such as those of a
            teacher over a subset of its classes; default: the folders, sorted.
        names_of: what messages call `class_names`.
        ignore_unknown: pass over files that are no images of an accepted format (by suffix), counted.

    Errors:
        ShardError counting everything that is wrong: a missing or empty tree, classes without images or not among the
        names, files that are no images (by suffix), what is no regular file, and files that would have one key.
    """
    walk = ImageWalk(tree, ignore_unknown=ignore_unknown)
    classes = walk.classes()
    if not classes and not walk.problems:
        raise ShardError(f"{tree.name}: expected one folder per class, got none; check the path")
    if not classes and any(problem.kind == "file beside the classes" for problem in walk.problems):
        raise ShardError(
            f"{tree.name}: expected one folder per class, got {count(len(walk.problems), 'file')} side by side; "
            f"{_advice_on_lists(tree)}"
        )
    names = tuple(class_names) or tuple(classes)
    if len(names) == 1:
        _refuse_one_class(tree, names)
    labels = {name: label for label, name in enumerate(names)}
    if len(labels) != len(names):
        raise ValueError("class_names: expected each class once; remove the repeated names")
    images: list[SourceImage] = []
    for name in classes:
        if name not in labels:
            walk.problems.append(_not_a_class(name, names, names_of))
            continue
        before, wrong = len(images), len(walk.problems)
        images.extend(walk.images(name, labels[name], (tree.identity(""),)))
        if len(images) == before and wrong == len(walk.problems):
            walk.note(name, "expected images, got none", "class without images", "remove the folder or fill it")
    images.sort()
    walk.note_equal_keys(images)
    if walk.problems:
        raise ShardError(problems_text(tree.name, walk.problems))
    return ImageList(
        tree=tree,
        class_names=names,
        num_classes=len(names),
        images=images,
        ignored=dict(walk.ignored),
        without_images=missing_classes(names, images),
    )


def _refuse_one_class(tree: FileTree, names: Sequence[str]) -> None:
    """ShardError: one class, which may be the folder that holds the classes."""
    inner = tree.folders(names[0])
    if len(inner) > 1:
        raise ShardError(
            f"{tree.name}: expected at least two classes, got one folder, {names[0]}, that holds folders "
            f"({', '.join(inner[:3])}): if these are the classes, give {tree.name}/{names[0]}"
        )
    if not inner and _lists(tree):
        raise ShardError(
            f"{tree.name}: expected one folder per class, got one folder, {names[0]}, beside a list; "
            f"{_advice_on_lists(tree)}"
        )
    require_classes(tree.name, names, len(names))


def _lists(tree: FileTree) -> list[str]:
    """The files beside the classes that may be lists of labels."""
    return [name for name in tree.files() if suffix_of(name) in _LISTS]


def _advice_on_lists(tree: FileTree) -> str:
    """What to do with images that lie side by side: a list that is there is named, where the command takes one."""
    sort = "sort the images into a folder for each class"
    if not advisable("--labels"):
        return sort
    lists = _lists(tree)
    file = f"{tree.name}/{lists[0]}" if len(lists) == 1 else "FILE"
    return f"give a list of their labels with --labels {file} (a line for each: path and class), or {sort}"


def _refuse_own(tree: FileTree) -> None:
    """ShardError: what the commands make, such as shards, of which there is nothing to make."""
    folder = Path(tree.name)
    if is_cache_folder(folder) or is_run_folder(folder) or is_sweep_folder(folder):
        raise ShardError(f"{tree.name}: expected images, got {what_is(folder)}")
    for part in ("", *(f"/{name}" for name in tree.folders() if name.lower() in _PARTS)):
        if INDEX_NAME in tree.files(part[1:]):
            raise ShardError(
                f"{tree.name}: expected images, got shards that make-shards wrote (.{part}/{INDEX_NAME}); give the "
                f"folder of the images, or go on with train-teacher --shards {tree.name}{part}"
            )


def _refuse_parts(tree: FileTree) -> None:
    """ShardError: folders whose names are those of different parts of a set, which nobody means as classes."""
    names = [name for name in tree.folders() if not name.startswith(".") and name not in IGNORED_FOLDERS]
    parts = [_PARTS.intersection(re.split(r"[^a-z]+", name.lower())) for name in names]
    # Classes such as "freight train" and "passenger train" have the same word.
    if not all(parts) or len(set[str]().union(*parts)) < 2:
        return
    first = next((name for name in names if "train" in name.lower()), names[0])
    if {"train", "val"} <= {name.lower() for name in names} and not tree.folders(first):
        files = count(len(tree.files(first)), "file")
        raise ShardError(
            f"{tree.name}/{first}: expected one folder per class, got {files} side by side; sort the images into a "
            "folder for each class"
        )
    share = " with --split 0.2, which holds out a fifth for validation" if advisable("--split") else ""
    as_classes = "; if they are classes, add --format folders" if advisable("--format") else ""
    raise ShardError(
        f"{tree.name}: expected one folder per class, got {', '.join(map(repr, names[:4]))}, which look like the "
        f"parts of a set: name them train and val, each with its folders of classes, or give one part alone "
        f"({tree.name}/{first}){share}{as_classes}"
    )


def missing_classes(names: Sequence[str], images: Sequence[SourceImage]) -> tuple[str, ...]:
    """The class names that no image has."""
    present = {image.label for image in images}
    return tuple(name for label, name in enumerate(names) if label not in present)


def _not_a_class(name: str, names: Sequence[str], names_of: str) -> Problem:
    near = nearest(name, names)
    suggestion = f"; the nearest is {near[0]!r}" if near else ""
    text = f"{name}: this folder is not among the {len(names)} {names_of}{suggestion}"
    correct = "add the names, correct them" if names_of == _GIVEN else "call equal classes alike"
    return Problem(text, "folder that is no class", f"{correct}, or move the folders away")


def with_doubts(listed: ImageList) -> ImageList:
    """Return the list with a remark for each sign that its classes are not those that the user means."""
    remarks = list(listed.remarks)
    inner = _folders_in_classes(listed.images)
    if inner is not None and len(inner) > 1:
        shown = ", ".join(sorted(inner)[:3])
        remarks.append(
            f"all images are in folders below the classes ({shown} …): if those are your classes, give a folder "
            "that holds them side by side"
        )
    for name in listed.class_names:
        if re.sub("[^a-z]", "", name.lower()) in _WITHOUT_LABELS:
            remarks.append(
                f"{name!r} is taken as a class: if its images have no label, move it out of {listed.tree.name} and "
                "make shards of it with make-shards --no-labels"
            )
    return replace(listed, remarks=tuple(remarks))


def _folders_in_classes(images: Sequence[SourceImage]) -> set[str] | None:
    """The folders below the classes that hold all images; None where a class has images of its own."""
    parts = [image.path.split("/") for image in images]
    return {part[1] for part in parts} if all(len(part) > 2 for part in parts) else None


def _read(source: Source) -> Mapping[str, ImageList]:
    _refuse_own(source.tree)
    if source.format_named:
        return {"": list_class_folders(source.tree, source.class_names, ignore_unknown=source.ignore_unknown)}
    _refuse_parts(source.tree)
    listed = list_class_folders(source.tree, source.class_names, ignore_unknown=source.ignore_unknown)
    return {"": with_doubts(listed)}


CLASS_FOLDERS = InputFormat(name="folders", summary="one folder per class", suits=lambda source: True, read=_read)
