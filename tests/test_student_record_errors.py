"""What a record costs each loss: the error of its gradient, against the formula, and where it must be zero."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray

from cli import cli
from shards.rng import stream
from student.learn.losses.table import LOSSES
from student.learn.record_errors import loss_gradients
from student.recipe.student_recipe import StudentRecipe
from teacher_cache.record.fidelity import LogProb, fidelity, log_softmax
from teacher_cache.record.loss_error import KnownAnswer, loss_errors
from tests.logits_like import make_logits

TAUS = (1.0, 3.0)


def decoder(logit_BC: NDArray[np.float32]) -> LogProb:
    """Records that say these logits."""
    return lambda rows, temperature: log_softmax(logit_BC[rows], temperature)


def test_every_loss_that_reads_probabilities_is_measured_at_every_temperature() -> None:
    """Hard distillation reads the first class, which is exact."""
    found = loss_errors(make_logits(40, 30), decoder(make_logits(40, 30)), loss_gradients(), temperatures=TAUS)
    assert [(row.loss, row.temperature) for row in found] == [
        (loss.name, tau) for loss in LOSSES.values() if loss.needs_probabilities for tau in TAUS
    ]
    assert max(row.gradient_error for row in found) == 0.0


def test_the_error_is_that_of_the_gradient_of_the_last_layer() -> None:
    """A batch of 256 and a rest, a student before its first step; each loss by central calls of its own gradient."""
    teacher, record = (make_logits(300, 20, seed=n) for n in (1, 2))
    student = 1e-3 * (2 * stream(0, "untrained student").uniforms(300 * 20) - 1).reshape(300, 20)
    found = loss_errors(teacher, decoder(record), loss_gradients(), temperatures=(2.0,))
    for row, loss in zip(found, loss_gradients(), strict=True):
        ratios = []
        for rows in (slice(0, 256), slice(256, 300)):
            pupil_BC = torch.from_numpy(student[rows])
            true, read = (
                loss.gradient(pupil_BC, KnownAnswer(torch.zeros(0), lambda tau, z=z: log_softmax(z, tau)), 2.0).numpy()
                for z in (teacher[rows], record[rows])
            )
            ratios.append(np.linalg.norm(read - true) / np.linalg.norm(true))
        assert row.gradient_error == pytest.approx(np.mean(ratios), rel=1e-9)


@pytest.mark.parametrize("tau", TAUS)
def test_the_soft_loss_has_the_error_that_the_divergence_has(tau: float) -> None:
    """∂soft/∂logits is τ·(student − teacher) at τ, so both measures are one; an untrained student is nearly uniform."""
    teacher, record = make_logits(300, 50, seed=1), make_logits(300, 50, seed=2)
    soft = next(loss for loss in loss_gradients() if loss.loss == "soft")
    (row,) = loss_errors(teacher, decoder(record), [soft], temperatures=(tau,))
    (at,) = fidelity(teacher, decoder(record), temperatures=(tau,))
    assert row.gradient_error == pytest.approx(at.gradient_error, rel=1e-3)


def test_standardised_logits_weigh_the_tail() -> None:
    """An error of classes without probability costs a loss of z-scores more than one of probabilities."""
    teacher = make_logits(256, 100, seed=1, peak=20.0)
    record = teacher.copy()
    tail = teacher < np.sort(teacher, axis=1)[:, [-10]]
    record[tail] *= 0.5
    errors = {row.loss: row.gradient_error for row in loss_errors(teacher, decoder(record), loss_gradients(),
                                                                  temperatures=(1.0,))}  # fmt: skip
    assert errors["soft-std"] > 2 * errors["soft"]


def test_the_weights_of_a_loss_come_from_the_recipe() -> None:
    """A sweep measures the loss that it trains with."""
    teacher, record = make_logits(128, 40, seed=1), make_logits(128, 40, seed=2)
    values = []
    for gamma in (0.0, 2.0):
        dist = [loss for loss in loss_gradients(StudentRecipe(dist_gamma=gamma)) if loss.loss == "dist"]
        values += [row.gradient_error for row in loss_errors(teacher, decoder(record), dist, temperatures=(1.0,))]
    assert values[0] != pytest.approx(values[1], rel=1e-3)


def test_no_rows_are_refused() -> None:
    teacher = make_logits(10, 20)
    with pytest.raises(ValueError, match="loss errors: "):
        loss_errors(teacher[:0], decoder(teacher), loss_gradients())


def test_an_old_cache_tells_the_error_of_a_loss_that_came_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps full logits, not errors."""
    cache = str(Path(__file__).parent / "golden" / "v0.1.0" / "lowrank.zarr")
    said = CliRunner().invoke(cli, ["cache-status", cache, "--fidelity"])
    assert said.exit_code == 0, said.output
    table = said.output[said.output.index("error of its gradient") :].splitlines()[1:]
    assert [line.split()[0] for line in table] == ["soft", "dist", "soft-std"]
    measured = json.loads(CliRunner().invoke(cli, ["cache-status", cache, "--fidelity", "--json"]).output)
    rows, num_views = measured["loss_errors"], measured["fidelity_views"]
    assert f"from the kept full logits of {num_views} views" in said.output
    assert len(rows) == 3 * len({row["temperature"] for row in rows})
    assert all(0 < row["gradient_error"] < 0.1 for row in rows)
