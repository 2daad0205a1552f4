"""`predict`: classify image files."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shards.commands.flags import COUNT, PATH, device_option, stop_with
from shards.console import result, say
from shards.documents import below, read_image_file
from shards.errors import Problem, ShardError, problems_text
from shards.own_folder import kind_at, what_is
from shards.text.escapes import one_line
from shards.text.figures import accuracy, count
from student.commands.flags import student_of, weights_options
from teacher_cache.network.weights_metadata import require_named, require_weights

if TYPE_CHECKING:
    from student.run.export import Prediction


@click.command("predict")
@click.argument("images", nargs=-1, required=True, type=PATH)
@weights_options
@click.option("--top", default=5, type=COUNT, help="Classes to print for each image.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line, for each image.")
@device_option
def predict(
    images: tuple[Path, ...], weights: Path, model: str | None, top: int, as_json: bool, device: str | None
) -> None:
    """The likeliest classes of image files, and of all images in folders, with their names.

    A file that cannot be read or decoded is named, the others are answered, and the exit code is 1 at the end.
    """
    require_named(require_weights("--weights", weights), model)
    paths, passed_over = image_files(images)
    if not any(path.exists() for path in paths):
        others = f", nor is any of {len(paths)}" if len(paths) > 1 else ""
        raise ShardError(f"image {paths[0]}: no such file{others}; check the path")
    if (refused := _refused(paths)) and len(refused) == len(paths):
        for path, problem in refused:
            _say_problem(path, problem, as_json)
        _end(len(refused), len(paths), passed_over)

    from student.run.export import predict as run
    from teacher_cache.network.device import chosen_device

    network, info = student_of(weights, model)
    target, failed = chosen_device(device), 0
    truth, right = _class_folders(images, info.class_names), dict[str, list[bool]]()
    for path in paths:
        try:
            for answer in run(network, info, [path], top=top, device=target):
                _show(answer, as_json)
                if (label := _label(path, images, truth)) is not None:
                    right.setdefault(label, []).append(answer.classes[0][1] == label)
        except ShardError as error:
            failed += 1
            _say_problem(path, error, as_json)
    for line in _right_words(right) if not as_json else ():
        result(line)
    _end(failed, len(paths), passed_over)


def _refused(paths: Sequence[Path]) -> list[tuple[Path, ShardError]]:
    """The files before the first that begins as an image does, and why: where none does, no network is needed."""
    from shards.views.decode import read_header

    refused = []
    for path in paths:
        try:
            read_header(read_image_file(path), str(path))
            break
        except ShardError as error:
            refused.append((path, error))
    return refused


def _say_problem(path: Path, problem: ShardError, as_json: bool) -> None:
    if as_json:
        result(json.dumps({"path": str(path), "problem": str(problem)}, ensure_ascii=False))
    kind = kind_at(path)
    say(f"error: {problem}{f'; it is {what_is(path)}' if kind not in ('', 'an image') else ''}")


def _end(failed: int, num_paths: int, passed_over: Sequence[Problem]) -> None:
    if passed_over:
        say(f"{count(num_paths - failed, 'file')} answered; {_named('passed over', passed_over)}")
    if failed:
        say(f"{failed} of {count(num_paths, 'file')} could not be answered")
        raise stop_with(1)


def _class_folders(images: Sequence[Path], class_names: Sequence[str]) -> frozenset[str]:
    """The names of folders whose pictures are taken to be of the class of that name; none unless a folder was given."""
    return frozenset(class_names if any(path.is_dir() for path in images) else ())


def _label(path: Path, roots: Sequence[Path], truth: Collection[str]) -> str | None:
    """The class whose folder a picture lies in, however deep: the outermost below the folder that was given."""
    for root in roots:
        if root != path and path.is_relative_to(root):
            folders = (*path.relative_to(root).parts[:-1], root.resolve().name)
            return next((name for name in folders if name in truth), None)
    return path.parent.name if path.parent.name in truth else None


def _right_words(right: Mapping[str, Sequence[bool]]) -> list[str]:
    """Count the rightly named pictures of each class folder, the worst first; nothing without such folders."""
    if not right:
        return []
    answers = [hit for hits in right.values() for hit in hits]
    share = accuracy(100 * sum(answers) / len(answers), len(answers))
    lines = [f"{sum(answers)} of {count(len(answers), 'image')} ({share}) are named as the folder they are in"]
    worst_first = sorted(right.items(), key=lambda pair: sum(pair[1]) / len(pair[1]))
    return lines + [f"  {one_line(name)}: {sum(hits)} of {len(hits)}" for name, hits in worst_first]


def image_files(images: Sequence[Path]) -> tuple[list[Path], list[Problem]]:
    """The files, and the images below folders, sorted; and the files below folders that are passed over.

    Errors:
        ShardError for a folder without images.
    """
    from shards.formats.walk import FILE_SUFFIXES, OF_A_FILE_MANAGER, is_file_managers

    paths: list[Path] = []
    passed_over: list[Problem] = []
    for path in images:
        if not path.is_dir():
            paths.append(path)  # whether it can be read is said when its turn comes
            continue
        before, others = len(paths), []
        for file in below(path):
            suffix = file.suffix.lower()
            if is_file_managers(file.name):
                others.append(Problem(str(file), OF_A_FILE_MANAGER))
            elif any(part.startswith(".") for part in file.relative_to(path).parts):
                others.append(Problem(str(file), "hidden"))
            elif suffix.lstrip(".") not in FILE_SUFFIXES:
                others.append(Problem(str(file), suffix or "without a suffix"))
            elif not file.is_file():
                others.append(Problem(str(file), "no regular file"))
            else:
                paths.append(file)
        if len(paths) == before:
            known = ", ".join(FILE_SUFFIXES)
            got = f"; {_named('others are', others)}" if others else ""
            got = f"; it is {what}" if (what := what_is(path)) else got
            raise ShardError(f"{path}: expected images ({known}) in this folder, got none{got}")
        passed_over.extend(others)
    return paths, passed_over


def _named(what: str, files: Sequence[Problem]) -> str:
    return problems_text(what, files, what=count(len(files), "file"))


def _show(answer: "Prediction", as_json: bool) -> None:
    if as_json:
        classes = [{"index": n, "name": name, "probability": p} for n, name, p in answer.classes]
        result(json.dumps({"path": str(answer.path), "classes": classes}, ensure_ascii=False))
        return
    result(one_line(answer.path))
    for number, name, probability in answer.classes:
        result(f"  {100 * probability:6.2f} %  {one_line(name) if name != str(number) else f'class {number}'}")
