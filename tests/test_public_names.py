"""What other code may import: complete, documented, typed, cheap; and every snippet of docs/python.md runs."""

import ast
import inspect
import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import shards
import student
import teacher_cache
from shards import CacheError, ShardReader, World, open_index, recipe_named, render_sample, write_samples
from shards.rng import stream
from teacher_cache import RecordFormat, TeacherCache, build_cache, load_teacher, open_or_create, read_record

PACKAGES = (shards, teacher_cache, student)
DOCS = Path(__file__).parent.parent / "docs" / "python.md"
NAMES = [(package, name) for package in PACKAGES for name in package.__all__ if not name.startswith("_")]


def by_name(pair):
    return f"{pair[0].__name__}.{pair[1]}"


@pytest.mark.parametrize("pair", NAMES, ids=by_name)
def test_every_public_name_is_there_documented_and_typed(pair):
    """A docstring that a user reads, annotations that his type checker reads, a word on the page."""
    package, name = pair
    value = getattr(package, name)
    assert re.search(rf"\b{name}\b", DOCS.read_text()), f"{name} is not in docs/python.md"
    if inspect.isclass(value) or inspect.isfunction(value):
        assert inspect.getdoc(value), name
        function = value.__init__ if inspect.isclass(value) else value
        if inspect.isfunction(function):
            untyped = [p.name for p in inspect.signature(function).parameters.values() if p.annotation is p.empty]
            assert not [p for p in untyped if p != "self"], name


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_type_checkers_see_every_public_name(package):
    """A stub passes on what it imports `as` the same name, and nothing else."""
    stub = ast.parse(Path(package.__file__).with_suffix(".pyi").read_text())
    passed_on = [alias.asname for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert sorted(passed_on) == sorted(name for name in package.__all__ if not name.startswith("_"))


def test_a_missing_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="No student attribute Fed"):
        _ = student.Fed


def test_importing_the_packages_imports_nothing_heavy():
    code = (
        "import sys, shards, teacher_cache, student\n"
        "heavy = {'torch', 'zarr', 'timm', 'numpy', 'cv2'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=DOCS.parent.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def png(number):
    """A small image that no other number has."""
    buffer = io.BytesIO()
    pixels_HWC = (stream(0, "image", number).uniforms(28 * 28 * 3).reshape(28, 28, 3) * 255).astype(np.uint8)
    Image.fromarray(pixels_HWC).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture(scope="module", params=[10, 100], ids=["ten", "hundred"])
def place(tmp_path_factory, request):
    """What the page takes for granted: images, shards, a teacher's weights, two caches."""
    place, num_classes = tmp_path_factory.mktemp("page"), request.param
    for name, count in (("train", 144), ("val", 20)):
        samples = [(f"{name}{n:04d}", n % num_classes, "png", png(n)) for n in range(count)]
        write_samples(samples, place / "shards" / name, num_classes=num_classes)
    for n in range(20):
        folder = place / "images" / f"class{n % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{n}.png").write_bytes(png(n))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        import timm

        save_file(timm.create_model("resnet10t", num_classes=num_classes).state_dict(), place / "teacher.safetensors")
    index, recipe = open_index(str(place / "shards" / "train")), recipe_named("deit", size=32, block_views=3)
    teacher = load_teacher("resnet10t", weights=place / "teacher.safetensors", input_size=32)
    with ShardReader(index) as reader:
        automatic = RecordFormat.automatic(num_classes)
        for name, record in (("teacher", automatic), ("other", RecordFormat.chosen("dense", num_classes))):
            given = {"num_views": 3, "reader": reader, "world": World()}
            *_, opened = open_or_create(place / f"{name}.zarr", index, teacher, recipe, record, **given)
            with opened.cache as cache:
                done = {"reader": reader, "world": World(), "workers": 0, "batch_size": 64}
                list(build_cache(cache, index, teacher, **done))
    return place


def sections():
    """The snippets of each section, with blank lines before them so that errors name the line of the page."""
    lines = DOCS.read_text().splitlines()
    found, title, inside = {}, "", False
    for number, line in enumerate(lines):
        if line.startswith("#") and not inside:
            title = line.strip("# ")
        elif line.startswith("```"):
            inside = line == "```python"
            if inside:
                found.setdefault(title, [""] * len(lines))
        elif inside:
            found[title][number] = line
    return {title: "\n".join(code) for title, code in found.items()}


def test_there_are_snippets_in_every_section():
    assert len(sections()) == DOCS.read_text().count("\n```python\n") == 8


@pytest.mark.parametrize("title", sections())
@pytest.mark.slow
def test_the_snippets_of_the_page_run(title, place, monkeypatch, capsys):
    """As they stand."""
    monkeypatch.chdir(place)
    exec(compile(sections()[title], str(DOCS), "exec"), {"__name__": "page"})


@pytest.mark.slow
def test_a_record_is_the_row_of_its_unit(place):
    """What `read_record` says of a sample is what stands at its place."""
    index = open_index(str(place / "shards" / "train"))
    with TeacherCache.open(place / "other.zarr") as cache:
        unit = cache.read_unit(0, 0)
        record = read_record(cache, index, index.key(0, 17), 2)
        logit_C = unit["logit"][2, 17].astype(np.float64)
        assert (record.shard, record.row, record.view) == (0, 17, 2)
        assert record.hard == logit_C.argmax() and record.pixel_digest == unit["pixel_digest"][2, 17]
        z = logit_C / 2.0
        np.testing.assert_allclose(record.log_prob(2.0), z - np.log(np.exp(z).sum()), atol=1e-5)
        with pytest.raises(ValueError, match=r"view: .* holds views 0 … 2, got 6"):
            read_record(cache, index, index.key(0, 17), 6)
        with pytest.raises(CacheError, match="made from other shards"):
            read_record(cache, open_index(str(place / "shards" / "val")), "val0000", 0)


def test_a_rendered_sample_is_the_view_of_its_block(place):
    """One sample alone has the pixels that it has among others."""
    from shards.views.blocks import render_block

    index, recipe = open_index(str(place / "shards" / "train")), recipe_named("deit", size=32)
    with ShardReader(index) as reader:
        block = render_block(reader, recipe, 0, 1, [2])
        key = index.key(0, int(block.row_B[5]))
        assert np.array_equal(render_sample(reader, recipe, key, [2])[0], block.view_BHWC[5])
