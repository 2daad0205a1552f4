"""What a stranger can make us spend is bounded before it is spent."""

import json
import tarfile
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from shards.errors import ArtefactError, ShardError
from shards.index.sources import _count, expand_shards
from shards.tars.sample_rule import SampleRule
from shards.tars.shard_scan import scan_shard
from student.run.export import load_student
from teacher_cache.network.weights_metadata import require_possible


def test_a_member_of_ten_gigabytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """A sparse file costs its maker nothing; reading it took minutes."""
    path = tmp_path / "s.tar"
    info = tarfile.TarInfo("a.jpg")
    info.size = 10 << 30
    with path.open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(info.size + 4096)
    began = time.monotonic()
    with pytest.raises(ShardError, match=r"member too large: expected at most 536870912 bytes, got 10737418240"):
        scan_shard(path, "s.tar", SampleRule())
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("a-{0..9}.tar", 10),
        ("{a,b}{c,d}-{000..011..2}", 24),
        ("x{a,{b,c}{0..3}}y", 9),
        ("plain", 1),
        ("{a..z}{0..1}", 52),
        ("{9..0}", 10),
    ],
)
def test_braces_are_counted_as_they_expand(text: str, count: int) -> None:
    import braceexpand

    assert _count(text) == count == len(list(braceexpand.braceexpand(text)))


@pytest.mark.parametrize(
    "text", ["{a..z}" * 6 + ".tar", "{a,b}" * 24, "{0..99999999999999999999}.tar", "{0..9}" * 400, "{a,{b,c}}" * 20]
)
def test_braces_that_explode_are_refused_at_once(text: str) -> None:
    began = time.monotonic()
    with pytest.raises(ValueError, match="at most 1000000 shards"):
        expand_shards(text)
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("asked", [{"depth": 10**4}, {"embed_dim": 10**4}, {"mlp_ratio": 1e4}, {"depths": [[10**4]]}])
def test_weights_cannot_ask_for_a_network_that_they_are_not_of(tmp_path: Path, asked: dict[str, object]) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"head.weight": torch.zeros(5, 64), "head.bias": torch.zeros(5)}, path)
    require_possible(path, {"depth": 12, "embed_dim": 64, "drop_rate": 0.1, "norm_layer": "x"}, num_classes=5)
    with pytest.raises(ArtefactError, match=r"say of themselves \w+ = 1\S+, their tensors are of at most 64"):
        require_possible(path, asked)


@pytest.mark.parametrize("field", ["depth", "embed_dim"])
def test_predict_refuses_them_before_it_builds(tmp_path: Path, field: str) -> None:
    from student.recipe.papers import recipe_for

    recipe = recipe_for("deit_tiny_patch16_224").to_json() | {"model_args": {field: 10**4}}
    info = {"recipe": recipe, "mean": [0.5] * 3, "std": [0.5] * 3, "num_classes": 5, "class_names": []}
    said = json.dumps(info | {"fingerprints": {}, "metrics": {}})
    save_file({"head.bias": torch.zeros(5)}, tmp_path / "w.safetensors", {"deit_teacher_cache": said})
    with pytest.raises(ArtefactError, match=f"say of themselves {field}"):
        load_student(tmp_path / "w.safetensors")
