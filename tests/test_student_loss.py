"""Losses: values and gradients against formulas written out in NumPy, records against logits, precision.

B batch, C classes. Gradients are compared in float64, where an error of a formula cannot hide behind rounding.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from student.feed.answers import TeacherAnswer, answer_from_logits
from student.feed.batch import Labels
from student.learn.loss import base_loss, student_loss
from student.learn.losses.hard import hard_loss
from student.learn.losses.soft import soft_loss
from student.learn.network import Heads
from student.recipe.student_recipe import StudentRecipe
from teacher_cache.record.codec import RecordCodec
from teacher_cache.record.record_format import RecordFormat

Array = NDArray[np.float64]
B, C = 12, 10
TEMPERATURES = [0.5, 0.7, 1.0, 1.7, 2.0, 3.0, 4.0, 5.5, 8.0]


def logits(seed: int, classes: int = C, spread: float = 3.0) -> Tensor:
    """Random float64 logits (B, classes)."""
    return torch.from_numpy(np.random.Generator(np.random.Philox(seed)).normal(0, spread, (B, classes)))


def softmax(x: Array) -> Array:
    """The textbook formula."""
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def mixed_labels() -> Labels:
    """Pairs of a block, as the mixing makes them: among them unmixed rows, equal classes, and weights 0 and 1."""
    rng = np.random.Generator(np.random.Philox(5))
    label_B = torch.from_numpy(rng.integers(0, C, B))
    lam_B = torch.from_numpy(rng.uniform(0.05, 0.95, B // 2).repeat(2).astype(np.float32))
    partner_B = torch.arange(B).view(-1, 2).flip(1).reshape(-1)
    lam_B[0:2], partner_B[0:2] = 1.0, torch.tensor([0, 1])
    lam_B[2], lam_B[3] = 1.0, 0.0
    label_B[5] = label_B[4]
    return Labels.of(label_B, partner_B.int(), lam_B)


def dense_target(labels: Labels, smoothing: float) -> Array:
    """λ · smoothed(own) + (1 − λ) · smoothed(partner): off ε/C, on 1 − ε + ε/C."""
    off, on = smoothing / C, 1 - smoothing + smoothing / C
    own, partner = np.full((B, C), off), np.full((B, C), off)
    own[np.arange(B), labels.label_B.numpy()] = on
    partner[np.arange(B), labels.partner_label_B.numpy()] = on
    lam = labels.lam_B.numpy().astype(np.float64)[:, None]
    return np.asarray(lam * own + (1 - lam) * partner)


def gradient(loss: Tensor, x: Tensor) -> Array:
    """∂loss/∂x as NumPy."""
    return np.asarray(torch.autograd.grad(loss, x)[0].numpy())


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_cross_entropy_pulls_softmax_to_the_mixed_smoothed_target(smoothing: float) -> None:
    """∂/∂z = (softmax − target) / B, the target built class by class."""
    z, labels = logits(1).requires_grad_(), mixed_labels()
    loss = base_loss(z, labels, kind="cross_entropy", smoothing=smoothing)
    p, target = softmax(z.detach().numpy()), dense_target(labels, smoothing)
    assert loss.item() == pytest.approx(-(target * np.log(p)).sum() / B, rel=1e-7)
    np.testing.assert_allclose(gradient(loss, z), (p - target) / B, atol=1e-8)


def test_binary_pulls_sigmoids_to_every_class_that_is_in_the_mixture() -> None:
    """∂/∂z = (σ(z) − [weight > 0]) / (B·C): DeiT-III's target; a weight of zero is no class."""
    z, labels = logits(2).requires_grad_(), mixed_labels()
    loss = base_loss(z, labels, kind="binary", smoothing=0.0)
    target = (dense_target(labels, 0.0) > 0).astype(np.float64)
    assert set(target.sum(1)) == {1.0, 2.0}
    sigma = 1 / (1 + np.exp(-z.detach().numpy()))
    value = -(target * np.log(sigma) + (1 - target) * np.log(1 - sigma)).mean()
    assert loss.item() == pytest.approx(value, rel=1e-9)
    np.testing.assert_allclose(gradient(loss, z), (sigma - target) / (B * C), atol=1e-12)


def test_unmixed_labels_are_plain_cross_entropy() -> None:
    """What torch itself calls cross-entropy with label smoothing."""
    z, label_B = logits(3).requires_grad_(), torch.arange(B) % C
    ours = base_loss(z, Labels.of(label_B), kind="cross_entropy", smoothing=0.1)
    theirs = torch.nn.functional.cross_entropy(z, label_B, label_smoothing=0.1)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)


def test_hard_is_cross_entropy_with_one_class() -> None:
    """∂/∂z = (softmax − onehot) / B, never mixed or smoothed."""
    z, hard_B = logits(4).requires_grad_(), torch.arange(B) % C
    loss = hard_loss(z, hard_B)
    p, target = softmax(z.detach().numpy()), np.eye(C)[hard_B.numpy()]
    assert loss.item() == pytest.approx(-np.log(p[np.arange(B), hard_B.numpy()]).mean(), rel=1e-12)
    np.testing.assert_allclose(gradient(loss, z), (p - target) / B, atol=1e-12)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("reduction", ["textbook", "reference"])
def test_soft_is_the_scaled_divergence_from_teacher_to_student(temperature: float, reduction: str) -> None:
    """Value τ² Σ p (log p − log q), teacher first; ∂/∂z = τ (q − p); over B, or over B·C as the authors' code does."""
    z, t = logits(6).requires_grad_(), logits(7)
    loss = soft_loss(z, torch.log_softmax(t / temperature, -1), temperature=temperature, reduction=reduction)
    q, p = softmax(z.detach().numpy() / temperature), softmax(t.numpy() / temperature)
    count = B if reduction == "textbook" else B * C
    assert loss.item() == pytest.approx(temperature**2 * (p * np.log(p / q)).sum() / count, rel=1e-9)
    np.testing.assert_allclose(gradient(loss, z), temperature * (q - p) / count, atol=1e-12)


def test_the_divergence_is_teacher_first_and_ignores_classes_without_mass() -> None:
    """KL is not symmetric, and 0 · log 0 is 0: a record may give a class no mass at all."""
    z, p = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True), torch.tensor([[0.5, 0.5, 0.0]]).double()
    loss = soft_loss(z, p.log(), temperature=1.0, reduction="textbook")
    assert loss.item() == pytest.approx(np.log(3) - np.log(2))
    np.testing.assert_allclose(gradient(loss, z), [[1 / 3 - 0.5, 1 / 3 - 0.5, 1 / 3]], atol=1e-12)


@pytest.mark.parametrize("distill", ["hard", "soft"])
@pytest.mark.parametrize("weight", [0.0, 0.1, 0.5, 1.0])
def test_each_head_learns_its_part(distill: str, weight: float) -> None:
    """CLS sees (1 − λ) · labels, DIST λ · teacher, and the parts sum to the total."""
    recipe = StudentRecipe(distill=distill, distill_weight=weight, temperature=2.0, label_smoothing=0.1)  # type: ignore[arg-type]
    cls, dist, labels = logits(8).requires_grad_(), logits(9).requires_grad_(), mixed_labels()
    teacher = answer_from_logits(logits(10))
    loss = student_loss(Heads(cls, dist), labels, teacher, recipe)
    base = base_loss(cls, labels, kind="cross_entropy", smoothing=0.1)
    if distill == "hard":
        part = hard_loss(dist, teacher.hard)
    else:
        part = soft_loss(dist, teacher.log_prob(2.0), temperature=2.0, reduction="textbook")
    assert loss.total.item() == pytest.approx((1 - weight) * loss.base.item() + weight * loss.distill.item(), abs=1e-12)
    np.testing.assert_allclose(gradient_of(loss.total, cls), (1 - weight) * gradient_of(base, cls), atol=1e-12)
    np.testing.assert_allclose(gradient_of(loss.total, dist), weight * gradient_of(part, dist), atol=1e-12)


def gradient_of(loss: Tensor, x: Tensor) -> Array:
    """∂loss/∂x, with the graph kept for another look."""
    return np.asarray(torch.autograd.grad(loss, x, retain_graph=True)[0].numpy())


def test_one_head_learns_both_parts() -> None:
    """A model without a distillation token: the gradients of the two losses add."""
    recipe = StudentRecipe(distill="hard", distill_weight=0.3, label_smoothing=0.0)
    z, labels = logits(11).requires_grad_(), mixed_labels()
    teacher = TeacherAnswer(torch.arange(B) % C)
    loss = student_loss(Heads(z, None), labels, teacher, recipe)
    target = 0.7 * dense_target(labels, 0.0) + 0.3 * np.eye(C)[np.arange(B) % C]
    np.testing.assert_allclose(gradient(loss.total, z), (softmax(z.detach().numpy()) - target) / B, atol=1e-8)


def test_without_distillation_the_teacher_is_not_asked() -> None:
    """λ must not scale the only loss there is."""
    recipe = StudentRecipe(distill="none", distill_weight=0.5)
    loss = student_loss(Heads(logits(12), None), mixed_labels(), None, recipe)
    assert (loss.total.item(), loss.distill.item()) == (loss.base.item(), 0.0)


@pytest.mark.parametrize(
    ("distill", "teacher", "message"),
    [
        ("hard", None, "hard needs a teacher"),
        ("soft", None, "soft needs a teacher"),
        ("soft", TeacherAnswer(torch.zeros(B, dtype=torch.int64)), "first classes only"),
    ],
    ids=["hard without", "soft without", "soft from hard records"],
)
def test_distillation_without_what_it_needs_is_an_error(
    distill: str, teacher: TeacherAnswer | None, message: str
) -> None:
    """Training on labels alone in silence would be a wrong result."""
    recipe = StudentRecipe(distill=distill)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        student_loss(Heads(logits(13), None), mixed_labels(), teacher, recipe)


@pytest.mark.parametrize("temperature", [*TEMPERATURES, 6.789])
@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.slow
def test_a_record_of_all_logits_gives_the_very_bits_of_the_teacher_in_the_loop(
    temperature: float, classes: int
) -> None:
    """Sparse = dense at k = C, law 9: the loss and its gradient are identical, not close; also with tied logits."""
    recipe = StudentRecipe(distill="soft", temperature=temperature)
    teacher_BC = logits(14, classes).float()
    teacher_BC[0] = teacher_BC[0].round()
    teacher_BC[1] = 0.0
    codec = RecordCodec(RecordFormat.chosen("dense", classes))
    record = {name: torch.from_numpy(array) for name, array in codec.encode(teacher_BC.numpy()).items()}
    cached = TeacherAnswer(codec.hard_label(record), lambda tau: codec.log_prob(record, tau))
    online = answer_from_logits(teacher_BC)
    assert torch.equal(cached.hard, online.hard)
    labels = Labels.of(torch.arange(B) % classes)
    values, grads = [], []
    for teacher in (cached, online):
        z = logits(15, classes).float().requires_grad_()
        for distill in ("hard", "soft"):
            loss = student_loss(Heads(z, None), labels, teacher, replace(recipe, distill=distill)).total  # type: ignore[arg-type]
            values.append(loss.item())
            grads.append(torch.autograd.grad(loss, z)[0])
    assert values[:2] == values[2:]
    assert torch.equal(grads[0], grads[2]) and torch.equal(grads[1], grads[3])


def test_the_first_class_of_tied_logits_is_the_lowest() -> None:
    """By definition, on every device; `argmax` promises nothing."""
    logit_BC = torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0], [0.0, 0.0, 5.0]])
    assert answer_from_logits(logit_BC).hard.tolist() == [1, 0, 2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("distill", ["none", "hard", "soft"])
@pytest.mark.parametrize("kind", ["cross_entropy", "binary"])
def test_losses_are_float32_inside_autocast(dtype: torch.dtype, distill: str, kind: str) -> None:
    """CPU autocast leaves log_softmax in bf16; the same half-precision logits must give the float32 loss to the bit."""
    recipe = StudentRecipe(distill=distill, base_loss=kind, label_smoothing=0.0, temperature=3.0)  # type: ignore[arg-type]
    answered = Heads(logits(16).to(dtype), logits(17).to(dtype))
    teacher, labels = answer_from_logits(logits(18)), mixed_labels()
    full = student_loss(Heads(answered.cls_BC.float(), answered.average().float()), labels, teacher, recipe)
    with torch.autocast("cpu", torch.bfloat16):
        inside = student_loss(Heads(answered.cls_BC, answered.average()), labels, teacher, recipe)
    assert inside.total.dtype == torch.float32
    assert inside.total.item() == full.total.item()


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_extreme_logits_stay_finite(scale: float) -> None:
    """A student that diverges must show a number that can be reported, and a gradient that can be clipped."""
    recipe = StudentRecipe(distill="soft", temperature=0.5)
    z = (logits(19).float() * scale).requires_grad_()
    loss = student_loss(Heads(z, None), mixed_labels(), answer_from_logits(logits(20)), recipe)
    assert torch.isfinite(loss.total)
    assert torch.isfinite(torch.autograd.grad(loss.total, z)[0]).all()
