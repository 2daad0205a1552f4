"""Losses of other papers: values and gradients against their formulas in NumPy and float64; what they are blind to.

B batch, C classes. A gradient is compared with central differences of the formula, which know nothing of autograd.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from student.feed.answers import TeacherAnswer, answer_from_logits
from student.feed.batch import Labels
from student.learn.loss import base_loss, gradient_balance, student_loss
from student.learn.losses.dist import dist_loss
from student.learn.losses.soft_std import soft_std_loss, z_score
from student.learn.losses.table import LOSSES
from student.learn.network import Heads
from student.recipe.student_recipe import StudentRecipe
from teacher_cache.record.codec import RecordCodec
from teacher_cache.record.record_format import RecordFormat

Array = NDArray[np.float64]
B, C = 7, 5
TEMPERATURES = [0.5, 1.0, 2.0, 3.7, 8.0]


def logits(seed: int, shape: tuple[int, int] = (B, C), spread: float = 2.0) -> Tensor:
    """Random float64 logits."""
    return torch.from_numpy(np.random.Generator(np.random.Philox(seed)).normal(0, spread, shape))


def softmax(z: Array) -> Array:
    """The textbook formula."""
    e = np.exp(z - z.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True))


def dist_by_hand(student: Array, teacher: Array, tau: float, beta: float, gamma: float) -> float:
    """Huang et al., equations 4 to 9: one minus Pearson's correlation of rows, and of columns."""
    p, q = softmax(student / tau), softmax(teacher / tau)
    inter = np.mean([1 - np.corrcoef(p[i], q[i])[0, 1] for i in range(len(p))])
    intra = np.mean([1 - np.corrcoef(p[:, j], q[:, j])[0, 1] for j in range(p.shape[1])])
    return float(tau**2 * (beta * inter + gamma * intra))


def soft_std_by_hand(student: Array, teacher: Array, tau: float, ddof: int = 0) -> float:
    """Sun et al., algorithm 1 and their loss: z-scores over the base temperature, KL, times its square."""

    def z(x: Array) -> Array:
        return np.asarray((x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True, ddof=ddof) / tau)

    q, p = softmax(z(student)), softmax(z(teacher))
    return float(tau**2 * (p * np.log(p / q)).sum(1).mean())


def differences(value: Callable[[Array], float], at: Array) -> Array:
    """Central differences of a function of a matrix."""
    out = np.empty_like(at)
    for place in np.ndindex(*at.shape):
        step = np.zeros_like(at)
        step[place] = 1e-5
        out[place] = (value(at + step) - value(at - step)) / 2e-5
    return out


@pytest.mark.parametrize("tau", TEMPERATURES)
@pytest.mark.parametrize(("beta", "gamma"), [(2.0, 2.0), (1.0, 0.0), (0.0, 1.0), (0.3, 5.0)])
def test_dist_is_one_minus_pearson_of_rows_and_of_columns(tau: float, beta: float, gamma: float) -> None:
    z, t = logits(1).requires_grad_(), logits(2)
    loss = dist_loss(z, torch.log_softmax(t / tau, -1), temperature=tau, beta=beta, gamma=gamma)

    def by_hand(at: Array) -> float:
        return dist_by_hand(at, t.numpy(), tau, beta, gamma)

    at = z.detach().numpy()
    assert loss.item() == pytest.approx(by_hand(at), rel=1e-6)
    np.testing.assert_allclose(torch.autograd.grad(loss, z)[0].numpy(), differences(by_hand, at), atol=1e-6)


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("tau", TEMPERATURES)
def test_soft_std_is_the_divergence_of_z_scores(tau: float, ddof: int) -> None:
    z, t = logits(3).requires_grad_(), logits(4)
    loss = soft_std_loss(z, t, temperature=tau, reduction="textbook", ddof=ddof)
    answer = answer_from_logits(t)
    recipe = StudentRecipe(distill="soft-std", temperature=tau, std_ddof=ddof)
    assert LOSSES["soft-std"].compute(z, answer, recipe).item() == pytest.approx(loss.item(), rel=1e-5)

    def by_hand(at: Array) -> float:
        return soft_std_by_hand(at, t.numpy(), tau, ddof)

    at = z.detach().numpy()
    assert loss.item() == pytest.approx(by_hand(at), rel=1e-9)
    np.testing.assert_allclose(torch.autograd.grad(loss, z)[0].numpy(), differences(by_hand, at), atol=1e-7)
    reference = soft_std_loss(z, t, temperature=tau, reduction="reference", ddof=ddof)
    assert reference.item() == pytest.approx(loss.item() / C)


@pytest.mark.parametrize("tau", TEMPERATURES)
def test_z_scores_of_log_p_are_those_of_the_logits(tau: float) -> None:
    """A cache gives log p at some τ: τ · log p is the logits up to a constant of the row, which the mean takes away."""
    t = logits(5, (40, 1000))
    torch.testing.assert_close(z_score(tau * torch.log_softmax(t / tau, -1)), z_score(t), atol=1e-9, rtol=0)


def recipe(distill: str, **changes: object) -> StudentRecipe:
    """A recipe that learns from the teacher alone."""
    return StudentRecipe(distill=distill, distill_weight=1.0, **changes)  # type: ignore[arg-type]


def loss_and_gradient(z: Tensor, teacher: TeacherAnswer, of: StudentRecipe) -> tuple[float, Tensor]:
    """Through the door that the trainer uses."""
    z = z.clone().requires_grad_()
    loss = student_loss(Heads(z, None), Labels.of(torch.zeros(len(z), dtype=torch.int64)), teacher, of).total
    return loss.item(), torch.autograd.grad(loss, z)[0]


NEW = ["dist", "soft-std"]


@pytest.mark.parametrize("distill", NEW)
@pytest.mark.parametrize("tau", TEMPERATURES)
def test_a_record_of_all_logits_gives_the_very_bits_of_the_teacher_in_the_loop(distill: str, tau: float) -> None:
    """Law 9: one cache, any τ; loss and gradient are identical, not close."""
    teacher_BC = logits(6, (B, 100)).float()
    codec = RecordCodec(RecordFormat.chosen("dense", 100))
    record = {name: torch.from_numpy(array) for name, array in codec.encode(teacher_BC.numpy()).items()}
    cached = TeacherAnswer(codec.hard_label(record), lambda t: codec.log_prob(record, t))
    z, of = logits(7, (B, 100)).float(), recipe(distill, temperature=tau)
    (one, grad), (other, same) = (loss_and_gradient(z, t, of) for t in (cached, answer_from_logits(teacher_BC)))
    assert one == other and torch.equal(grad, same)


@pytest.mark.parametrize("distill", NEW)
def test_a_student_that_agrees_has_no_loss_and_no_gradient(distill: str) -> None:
    """At any scale and offset for z-scores; DIST's probabilities must themselves be proportional, here equal."""
    t = logits(8)
    z = 3.0 * t - 7.0 if distill == "soft-std" else t
    loss, grad = loss_and_gradient(z, answer_from_logits(t), recipe(distill, temperature=2.0))
    assert loss == pytest.approx(0.0, abs=1e-5)
    assert grad.abs().max() < 1e-3


@pytest.mark.parametrize("distill", NEW)
@pytest.mark.parametrize(
    "z",
    [torch.zeros(B, C), torch.full((B, C), 1e4), logits(9) * 1e4, logits(9)[:1], logits(9)[:1].expand(B, C)],
    ids=["zero", "equal", "extreme", "one row", "equal rows"],
)
@pytest.mark.parametrize("t", [logits(10), torch.zeros(B, C), logits(10) * 1e3], ids=["any", "uniform", "one-hot"])
def test_what_has_no_spread_gives_numbers(distill: str, z: Tensor, t: Tensor) -> None:
    """A head that starts at zero, a teacher that is sure of everything, a micro-batch of one: never nan or infinite."""
    loss, grad = loss_and_gradient(z.float(), answer_from_logits(t[: len(z)]), recipe(distill, temperature=1.0))
    assert np.isfinite(loss) and torch.isfinite(grad).all()


@pytest.mark.parametrize("distill", NEW)
def test_a_student_of_zero_logits_is_pulled_with_bounds(distill: str) -> None:
    """Both losses are blind to scale; a classifier that begins at zero must not see a gradient of millions."""
    z, teacher = torch.zeros(32, 1000), answer_from_logits(logits(22, (32, 1000)))
    _, grad = loss_and_gradient(z, teacher, recipe(distill, temperature=1.0))
    labels = torch.autograd.grad(base_loss(z.requires_grad_(), Labels.of(torch.arange(32)), kind="cross_entropy",
                                           smoothing=0.1), z)[0]  # fmt: skip
    assert 0 < grad.norm() < 50 * labels.norm()


def test_columns_correlate_over_the_micro_batch() -> None:
    """DIST's intra part of a whole batch is not the mean over its halves; its inter part is."""
    z, teacher_BC = logits(11, (8, C)), logits(12, (8, C))

    def halves_and_whole(of: StudentRecipe) -> tuple[float, float]:
        values = [
            loss_and_gradient(z[rows], answer_from_logits(teacher_BC[rows]), of)[0]
            for rows in (slice(0, 4), slice(4, 8), slice(0, 8))
        ]
        return (values[0] + values[1]) / 2, values[2]

    inter, whole = halves_and_whole(recipe("dist", dist_gamma=0.0))
    assert inter == pytest.approx(whole, rel=1e-6)
    intra, whole = halves_and_whole(recipe("dist", dist_beta=0.0))
    assert abs(intra - whole) > 0.01


@pytest.mark.parametrize("distill", NEW)
def test_a_float32_step_of_a_thousand_classes_is_that_of_float64(distill: str) -> None:
    """Tiny probabilities and a column of a class nobody expects must not drown in rounding."""
    z, t = logits(13, (64, 1000)), logits(14, (64, 1000), spread=4.0)
    of = recipe(distill, temperature=1.0)
    exact = TeacherAnswer(t.argmax(-1), lambda tau: torch.log_softmax(t / tau, -1))
    want, true = loss_and_gradient(z, exact, of)
    got, grad = loss_and_gradient(z.float(), answer_from_logits(t), of)
    assert got == pytest.approx(want, rel=1e-4)
    assert (grad.double() - true).norm() < 1e-3 * true.norm()


@pytest.mark.parametrize("distill", list(LOSSES))
def test_every_loss_lowers_itself(distill: str) -> None:
    """A sign that is wrong makes it rise."""
    z, teacher = logits(15).float(), answer_from_logits(logits(16))
    before, grad = loss_and_gradient(z, teacher, recipe(distill, temperature=2.0))
    after, _ = loss_and_gradient(z - 0.05 * grad, teacher, recipe(distill, temperature=2.0))
    assert after < before


def test_weights_of_dist_are_fields_of_the_recipe_that_old_files_lack() -> None:
    """A run of before has neither in its file; at the paper's 2 and 2 this one has not either."""
    assert "dist_beta" not in StudentRecipe().to_json()
    changed = StudentRecipe(dist_beta=1.0)
    assert StudentRecipe.from_json(changed.to_json()) == changed
    with pytest.raises(ValueError, match="dist_gamma: expected a number in"):
        StudentRecipe(dist_gamma=-1.0)


@pytest.mark.parametrize("two_heads", [True, False])
@pytest.mark.parametrize("base", ["cross_entropy", "binary"])
@pytest.mark.parametrize("weight", [0.0, 0.3, 0.5])
def test_the_balance_is_the_ratio_of_the_two_gradients(two_heads: bool, base: str, weight: float) -> None:
    """Each through its own head, with its weight; nothing of it reaches the student."""
    of = StudentRecipe(distill="soft", distill_weight=weight, base_loss=base, label_smoothing=0.0)  # type: ignore[arg-type]
    cls, dist = logits(17).requires_grad_(), logits(18).requires_grad_()
    labels, teacher = Labels.of(torch.arange(B) % C), answer_from_logits(logits(19))
    heads = Heads(cls, dist if two_heads else None)
    balance = gradient_balance(heads, labels, teacher, of)
    assert cls.grad is None and dist.grad is None
    pupil = dist if two_heads else cls
    of_base = torch.autograd.grad(base_loss(cls, labels, kind=base, smoothing=0.0), cls)[0]
    p, q = softmax(pupil.detach().numpy()), softmax(logits(19).float().double().numpy())
    of_distill = np.linalg.norm((p - q) / B)
    assert balance == pytest.approx(weight * of_distill / ((1 - weight) * of_base.norm().item()), rel=1e-5)


def test_the_balance_of_a_teacher_alone_is_infinite() -> None:
    """λ = 1 leaves the labels nothing."""
    labels, teacher = Labels.of(torch.arange(B) % C), answer_from_logits(logits(20))
    assert gradient_balance(Heads(logits(21), None), labels, teacher, recipe("hard")) == np.inf


def test_a_loss_per_class_weighs_like_labels_that_are_averaged_over_classes() -> None:
    """A binary base beside hard distillation at the start: √C / .5 on the textbook form, 1/C of that per class."""
    labels, teacher = Labels.of(torch.arange(B)), answer_from_logits(torch.eye(1000)[:B] * 30)
    at = {
        reduction: gradient_balance(
            Heads(torch.zeros(B, 1000), None),
            labels,
            teacher,
            StudentRecipe(distill="hard", base_loss="binary", label_smoothing=0.0, reduction=reduction),  # type: ignore[arg-type]
        )
        for reduction in ("textbook", "per_class")
    }
    assert at["textbook"] == pytest.approx(1000**0.5 / 0.5, rel=0.01)
    assert at["per_class"] == pytest.approx(at["textbook"] / 1000, rel=1e-4)


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.needs_probabilities])
def test_a_teachers_number_that_is_none_is_seen_in_the_loss(name: str) -> None:
    """A loss that passes over NaN lets a broken teacher teach for days; a class without any mass adds nothing."""
    z, log_prob_BC = logits(30).float(), logits(31).float().log_softmax(-1)
    for value, seen in ((float("nan"), True), (float("inf"), True), (-float("inf"), False)):
        broken_BC = log_prob_BC.clone()
        broken_BC[1, 2] = value
        answer = TeacherAnswer(None, lambda tau, broken_BC=broken_BC: broken_BC)
        loss = LOSSES[name].compute(z, answer, recipe(name))
        if seen or name == "soft":  # a z-score or a correlation of log p = −∞ is none
            assert bool(loss.isfinite()) != seen, (value, loss)
