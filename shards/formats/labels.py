"""Images anywhere in a folder, and a list of their labels (--labels)."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from shards.documents import read_utf8
from shards.errors import Problem, ShardError, problems_text
from shards.formats.class_folders import missing_classes
from shards.formats.file_tree import FileTree
from shards.formats.image_list import ImageList, SourceImage
from shards.formats.input_format import InputFormat, Source
from shards.formats.label_list import LabelLine, as_numbers, devkit_names, parse_labels
from shards.formats.walk import ImageWalk
from shards.index.index_checks import require_classes
from shards.text.figures import count


class LabelList(NamedTuple):
    """The text of a list of labels, where it was found, and the devkit's meta.mat beside it, where it should be."""

    text: str
    where: str
    devkit: Path

    @classmethod
    def load(cls, path: Path) -> "LabelList":
        """The list in a file; ValueError when it cannot be read."""
        where = f"--labels {path}"
        return cls(read_utf8(path, where, "a line for each image"), where, path.with_name("meta.mat"))


def list_labelled(
    tree: FileTree,
    labels: LabelList,
    class_names: Sequence[str] = (),
    *,
    first_label: int | None = None,
    ignore_unknown: bool = False,
    lists: Sequence[str] = (),
) -> ImageList:
    """List the images of a tree with the labels of a list; lines of other images are passed over, counted.

    Args:
        class_names: all classes in the order of their labels; default: the names in the list, sorted, and none where
            the list has numbers.
        first_label: the number of the first class, where the list has numbers.
        lists: files that are no images, such as the list itself.

    Errors:
        ValueError for a list that cannot be understood; ShardError counting the images without a label.
    """
    walk = ImageWalk(tree, ignore_unknown=ignore_unknown, lists=lists)
    images = walk.all_images(0)
    names = _ImageNames(images)
    lines = parse_labels(labels.text, labels.where, lambda name: names.find(name) is not None)
    if not lines[0].image:
        lines, class_names = _of_devkit(lines, images, labels, class_names)
    label_of = _label_of(lines, names, labels.where)
    without = [
        Problem(f"{image.path}: no line", "", "add lines for them, or move the images away")
        for image in images
        if image.path not in label_of
    ]
    if without:
        what = f"{len(without)} of {count(len(images), 'image')} of {tree.name} have no label"
        raise ShardError(problems_text(labels.where, without, what=what))
    text_of = {image.path: label_of[image.path] for image in images}
    number_of, found_names = _numbered(text_of, class_names, first_label, labels.where)
    num_classes = len(found_names) or 1 + max(number_of.values())
    require_classes(labels.where, found_names, num_classes)
    labelled = [image._replace(label=number_of[text_of[image.path]]) for image in images]
    num_others = len(lines) - len(images)
    remarks = (f"{labels.where}: {count(num_others, 'line')} of images that are not here",) if num_others > 0 else ()
    return ImageList(
        tree=tree,
        class_names=found_names,
        num_classes=num_classes,
        images=labelled,
        ignored=dict(walk.ignored),
        without_images=missing_classes(found_names, labelled),
        remarks=remarks,
    )


class _ImageNames:
    """The images by what a list may call them: the path, with or without suffix, with other folders before it."""

    def __init__(self, images: Sequence[SourceImage]) -> None:
        self._paths: dict[str, str] = {}
        bases = Counter(image.path.rpartition("/")[2] for image in images)
        for image in images:
            base = image.path.rpartition("/")[2]
            for name in (image.path, base) if bases[base] == 1 else (image.path,):
                self._paths[name] = image.path
                self._paths.setdefault(name.rpartition(".")[0], image.path)

    def find(self, name: str) -> str | None:
        """The path of the image that is called so; None for none."""
        rest = name.replace("\\", "/").removeprefix("./")
        while rest and rest not in self._paths:
            rest = rest.partition("/")[2]
        return self._paths.get(rest)


def _label_of(lines: Sequence[LabelLine], names: _ImageNames, where: str) -> dict[str, str]:
    """Path → label as the list has it; ValueError counting images that have two."""
    line_of: dict[str, LabelLine] = {}
    problems = []
    for line in lines:
        path = names.find(line.image)
        if path is None:
            continue
        other = line_of.setdefault(path, line)
        if other.label != line.label:
            text = f"line {line.number}: {line.image!r} is {line.label!r}, in line {other.number} {other.label!r}"
            problems.append(Problem(text, "", "keep one label of each image"))
        if not line.label:
            problems.append(Problem(f"line {line.number}: {line.image!r} has no class", "", "add its class"))
    if problems:
        raise ValueError(problems_text(where, problems))
    return {path: line.label for path, line in line_of.items()}


def _numbered(
    text_of: Mapping[str, str], class_names: Sequence[str], first_label: int | None, where: str
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Label text → number, and the class names; ValueError for labels that nobody can number."""
    texts = sorted(set(text_of.values()))
    numbers = as_numbers(texts)
    known = {name: label for label, name in enumerate(class_names)}
    if numbers is None or known.keys() >= set(texts):
        names = tuple(class_names) or tuple(texts)
        label_of = {name: label for label, name in enumerate(names)}
        foreign = list(_foreign(texts, label_of))
        if foreign:
            raise ValueError(problems_text(where, foreign))
        return {text: label_of[text] for text in texts}, names
    if len(texts) == len(text_of) > 2:
        raise ValueError(
            f"{where}: expected the class of each image, got a number of its own for each of "
            f"{count(len(texts), 'image')}; these count the lines: take a list with classes (of "
            "ImageNet: LOC_val_solution.csv)"
        )
    if min(numbers) == 1 and first_label is None:
        raise ValueError(
            f"{where}: its labels are {min(numbers)} to {max(numbers)}, none is 0: if they count from 1 give "
            "--first-label 1, if class 0 has no image here --first-label 0"
        )
    first = first_label or 0
    most = len(class_names) or 2**31 - 1
    if min(numbers) < first or max(numbers) - first >= most:
        raise ValueError(
            f"{where}: expected labels from {first}{f' to {most - 1 + first}' if class_names else ''}, got "
            f"{min(numbers)} to {max(numbers)}; check --first-label and --class-names"
        )
    return {text: number - first for text, number in zip(texts, numbers, strict=True)}, tuple(class_names)


def _foreign(texts: Sequence[str], known: Mapping[str, int]) -> Iterator[Problem]:
    for text in texts:
        if text not in known:
            what = f"{text!r} is not among the {len(known)} class names"
            yield Problem(what, "unknown class", "add the names or correct them")


def _of_devkit(
    lines: Sequence[LabelLine], images: Sequence[SourceImage], labels: LabelList, class_names: Sequence[str]
) -> tuple[list[LabelLine], Sequence[str]]:
    """The lines of ImageNet's ground truth, whose n-th number is of the n-th image, and the classes of the devkit."""
    if not labels.devkit.exists():
        raise ValueError(
            f"{labels.where}: expected classes, got numbers alone, as in ILSVRC2012_validation_ground_truth.txt. Their "
            "order is that of the devkit, not that of sorted classes: put the devkit's meta.mat beside it "
            f"({labels.devkit}), or give LOC_val_solution.csv"
        )
    wnids = devkit_names(labels.devkit)
    if len(lines) != len(images):
        wanted = count(len(images), "line")
        raise ValueError(f"{labels.where}: expected {wanted}, one for each image by name, got {len(lines)}")
    unknown = sorted({line.label for line in lines if int(line.label) not in wnids})
    if unknown:
        raise ValueError(f"{labels.where}: no class of {labels.devkit} has the number {', '.join(unknown[:3])}")
    named = [
        LabelLine(line.number, image.path, wnids[int(line.label)]) for line, image in zip(lines, images, strict=True)
    ]
    return named, class_names or tuple(sorted(wnids.values()))


def _read(source: Source) -> Mapping[str, ImageList]:
    if source.labels is None:
        raise ValueError("--format labels: expected a list of labels; give it with --labels FILE")
    inside = source.labels.resolve()
    root = source.path.resolve()
    lists = [inside.relative_to(root).as_posix()] if root in inside.parents else []
    listed = list_labelled(
        source.tree,
        LabelList.load(source.labels),
        source.class_names,
        first_label=source.first_label,
        ignore_unknown=source.ignore_unknown,
        lists=lists,
    )
    return {"": listed}


LABELS = InputFormat(
    name="labels",
    summary="images and a list of their labels",
    suits=lambda source: source.labels is not None,
    read=_read,
    takes_labels=True,
)
