"""A trainer learns what its recipe says, in every precision, and a run directory belongs to one run."""

import copy
import json
from dataclasses import replace
from functools import partial

import pytest
import torch

from shards.errors import CacheError, RunError
from shards.world import World
from student.feed.answers import TeacherAnswer
from student.feed.batch import Labels
from student.learn.loss import student_loss
from student.learn.network import Heads, heads, set_grad_checkpointing
from student.learn.process_group import ProcessGroup
from student.learn.trainer import Trainer
from student.recipe.settings import TrainSettings
from student.run.export import read_info
from student.run.loop import train_many
from student.run.run_events import (
    BalanceMeasured,
    Checkpointed,
    Rejected,
    Resumed,
    Stepped,
    StudentFinished,
)
from student.run.run_log import RunLog
from student.run.run_reader import read_run
from student.run.students import StudentJob
from tests.student_tiny import (
    CLASSES,
    SIZE,
    by,
    final_weights,
    in_child,
    kill_self,
    linear_teacher,
    make_cache,
    run_to_end,
    student_recipe,
    views,
    write_shards,
)

GROUP = ProcessGroup(World(), torch.device("cpu"))


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory, index):
    with make_cache(tmp_path_factory.mktemp("cache"), index, views(), num_views=2) as opened:
        yield opened


def batch(count=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logit_BC = torch.randn(count, CLASSES, generator=generator)
    labels = Labels.of(
        torch.randint(0, CLASSES, (count,), generator=generator),
        torch.arange(count).flip(0),
        torch.rand(count, generator=generator),
    )
    answer = TeacherAnswer(logit_BC.argmax(-1), lambda tau: torch.log_softmax(logit_BC / tau, -1))
    return torch.randn(count, 3, SIZE, SIZE, generator=generator), labels, answer


def trainer(recipe=None, **settings):
    return Trainer(
        recipe or student_recipe(),
        TrainSettings(log_every=1, **settings),
        num_classes=CLASSES,
        steps_per_epoch=10,
        group=GROUP,
    )


def test_one_step_is_the_textbook_step():
    """Loss, gradient, clipping, AdamW and EMA, done again by hand with the parts of torch."""
    recipe = student_recipe(drop_path=0.0, clip_grad=0.05, optimizer="adamw", weight_decay=0.0)
    ours, other = trainer(recipe), trainer(recipe)
    some = batch()
    before = {name: value.clone() for name, value in ours.core.state_dict().items()}
    ours.feed(*some, step=0)
    model = other.core
    images, labels, answer = some
    loss = student_loss(heads(model, images), labels, answer, recipe)
    loss.total.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)
    torch.optim.AdamW(model.parameters(), lr=ours.lr(0), weight_decay=0.0, eps=recipe.eps).step()
    for name, value in model.state_dict().items():
        assert torch.allclose(ours.core.state_dict()[name], value, atol=1e-7), name
        average = 0.9 * before[name] + 0.1 * value
        assert torch.allclose(ours.ema.state_dict()[name], average, atol=1e-7), name
    assert ours.interval_metrics()["loss"] == pytest.approx(loss.total.item())


def test_randomness_is_a_function_of_the_step(monkeypatch):
    """Drop path must not depend on what drew from torch's generator before: that makes resuming exact."""
    recipe = student_recipe(drop_path=0.5)
    results = []
    for noise in (0, 3):
        one = trainer(recipe)
        for step in range(3):
            torch.rand(noise)
            one.feed(*batch(seed=step), step=step)
        results.append(one.core.state_dict())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    other = trainer(recipe)
    for step in range(3):
        other.feed(*batch(seed=step), step=step + 7)
    assert not all(torch.equal(results[0][name], other.core.state_dict()[name]) for name in results[0])


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulated_micro_batches_are_the_whole_batch(accumulate):
    """Equal weights for all samples, and no update before the last micro-batch."""
    recipe = student_recipe(drop_path=0.0)
    whole, parts = trainer(recipe), trainer(recipe, accumulate=accumulate)
    some = batch()
    whole.feed(*some, step=0)
    start = {name: value.clone() for name, value in parts.core.state_dict().items()}
    for micro in range(accumulate):
        assert all(torch.equal(start[name], value) for name, value in parts.core.state_dict().items())
        cut = slice(micro * 16 // accumulate, (micro + 1) * 16 // accumulate)
        labels = Labels(*(values[cut] for values in some[1]))
        log_prob = partial(lambda tau, cut: some[2].log_prob(tau)[cut], cut=cut)
        answer = TeacherAnswer(some[2].hard[cut], log_prob)
        parts.feed(some[0][cut], labels, answer, step=0, micro=micro)
    for name, value in whole.core.state_dict().items():
        assert torch.allclose(value, parts.core.state_dict()[name], atol=1e-4), name
    assert parts.interval_metrics()["loss"] == pytest.approx(whole.interval_metrics()["loss"], rel=1e-6)


@pytest.mark.parametrize("precision, close", [("bf16", 0.02), ("fp16", 0.005)])
def test_low_precision_follows_fp32(precision, close):
    """Losses are float32 in every precision; fp16 goes through the gradient scaler."""
    found = {}
    for name in ("fp32", precision):
        one = trainer(student_recipe(drop_path=0.0), precision=name)
        for step in range(4):
            one.feed(*batch(seed=step), step=step)
        found[name] = one.interval_metrics()["loss"]
    assert found[precision] != found["fp32"]
    assert found[precision] == pytest.approx(found["fp32"], rel=close)


def test_state_goes_through_a_checkpoint_unchanged():
    """What `load_state_dict` forgets would be lost at every resume."""
    one, two = trainer(precision="fp16"), trainer(precision="fp16")
    for step in range(3):
        one.feed(*batch(seed=step), step=step)
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    for each in (one, two):
        each.feed(*batch(seed=9), step=3)
    assert one.interval_metrics() == two.interval_metrics()
    assert one.scaler.state_dict() == two.scaler.state_dict()
    for name, value in one.ema.state_dict().items():
        assert torch.equal(value, two.ema.state_dict()[name])


def test_each_temperature_is_decoded_once_for_all_students():
    """A grid of λ at one τ must not pay the decode for each λ."""
    asked = []

    def log_prob(tau):
        asked.append(tau)
        return torch.zeros(2, CLASSES)

    answer = TeacherAnswer(torch.zeros(2, dtype=torch.int64), log_prob)
    heads, labels = Heads(torch.zeros(2, CLASSES), None), Labels.of(torch.zeros(2, dtype=torch.int64))
    for weight in (0.1, 0.5, 0.9):
        student_loss(heads, labels, answer, student_recipe(temperature=3.0, distill_weight=weight))
        student_loss(heads, labels, answer, student_recipe(distill="hard"))
    assert asked == [3.0]


def test_a_run_directory_is_what_the_report_reads(tmp_path, index, cache):
    """Config, metrics of every step, TensorBoard events, summary, weights."""
    val = write_shards(tmp_path / "val", rows=(7,), seed=2)
    run_to_end(tmp_path / "run", index, cache, val_index=val)
    run = read_run(tmp_path / "run")
    assert run.finished and len(run.steps) == 8 and len(run.epochs) == 2
    for metric in ("loss", "base_loss", "distill_loss", "lr", "images_per_s", "data_wait_share", "teacher_agreement"):
        assert run.steps[3][metric] == run.steps[3][metric], f"{metric} is missing"
    assert run.epochs[1]["top1"] == pytest.approx(run.result("top1"))
    assert run.setting("temperature") == 2.0 and run.setting("world_size") == 1
    assert list((tmp_path / "run/tensorboard").iterdir())
    assert run.summary["pixels_checked"] == run.summary["images"] == 128
    assert (tmp_path / "run/model_card.md").read_text().startswith("# student_tiny_distilled")


def test_the_first_step_says_how_teacher_and_labels_pull(tmp_path, index, cache):
    """Once, whatever stops the run: a resumed one keeps what its first step saw, and none without a teacher has any."""
    settings = TrainSettings(log_every=1, checkpoint_every=1)
    events = run_to_end(tmp_path / "whole", index, cache, settings=settings)
    (said,) = [event for event in events if isinstance(event, BalanceMeasured)]
    assert said.balance > 0 and events[-1].summary["gradient_balance"] == said.balance
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "gradient_balance" in line] == [1]
    run = train_many([StudentJob(student_recipe(), tmp_path / "cut")], index, settings=settings, teaching=by(cache))
    next(event for event in run if isinstance(event, Checkpointed) and event.step == 2)
    run.close()
    resumed = run_to_end(tmp_path / "cut", index, cache, settings=settings)
    assert not [event for event in resumed if isinstance(event, BalanceMeasured)]
    assert resumed[-1].summary["gradient_balance"] == said.balance
    alone = run_to_end(tmp_path / "alone", index, recipe=student_recipe(distill="none"), views=views())
    assert "gradient_balance" not in alone[-1].summary


def test_a_finished_run_is_left_as_it_is(tmp_path, index, cache):
    """The same command again trains nothing and says the same."""
    first = run_to_end(tmp_path / "run", index, cache)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.is_file() and p.name != ".lock"}
    second = run_to_end(tmp_path / "run", index, cache)
    assert second == [replace(first[-1], before=True)], "at once, without a schedule"
    assert not any(isinstance(event, Stepped) for event in second)
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(tmp_path, index, cache):
    """Bit rot costs an epoch, not the run, and is never silent."""
    run_to_end(tmp_path / "run", index, cache, recipe=student_recipe(epochs=3))
    (tmp_path / "run/summary.json").unlink()
    whole = final_weights(tmp_path / "run")
    newest = tmp_path / "run/checkpoints/step-000000012.pt"
    newest.write_bytes(newest.read_bytes()[:-9])
    events = run_to_end(tmp_path / "run", index, cache, recipe=student_recipe(epochs=3))
    rejected = next(event for event in events if isinstance(event, Rejected))
    assert rejected.path == newest and "bytes" in rejected.reason
    assert next(event.step for event in events if isinstance(event, Resumed)) == 8
    assert final_weights(tmp_path / "run") == whole
    (tmp_path / "run/summary.json").unlink()
    for path in (tmp_path / "run/checkpoints").glob("*.pt"):
        path.write_bytes(b"")
    with pytest.raises(RunError, match="no checkpoint is intact"):
        run_to_end(tmp_path / "run", index, cache, recipe=student_recipe(epochs=3))


@pytest.mark.parametrize(
    "change, field",
    [
        pytest.param({"recipe": student_recipe(temperature=3.0)}, "recipe.temperature", id="tau"),
        pytest.param({"settings": TrainSettings(seed=1)}, "seed", id="seed"),
        pytest.param({"settings": TrainSettings(precision="bf16")}, "precision", id="precision"),
        pytest.param({"settings": TrainSettings(views_used=1)}, "num_views", id="views"),
    ],
)
@pytest.mark.slow
def test_a_directory_of_another_run_is_refused_naming_the_field(tmp_path, index, cache, change, field):
    """Resuming with other settings would be a run that nobody asked for."""
    run_to_end(tmp_path / "run", index, cache)
    with pytest.raises(RunError, match=rf"{field}: the run has .*requested is.*another --out"):
        run_to_end(tmp_path / "run", index, cache, **change)


def test_how_a_run_is_executed_may_change_on_resume(tmp_path, index, cache):
    """More workers or other logging are no other run."""
    run_to_end(tmp_path / "run", index, cache)
    again = TrainSettings(workers=2, log_every=3, checkpoint_every=1)
    assert isinstance(run_to_end(tmp_path / "run", index, cache, settings=again)[-1], StudentFinished)


def test_two_processes_cannot_train_in_one_directory(tmp_path, index, cache):
    """Two writers would interleave metrics and prune each other's checkpoints."""
    events = train_many(
        [StudentJob(student_recipe(), tmp_path / "run")], index, settings=TrainSettings(), teaching=by(cache)
    )
    while not isinstance(next(events), Checkpointed):
        pass
    with pytest.raises(RunError, match="another process is training here"):
        in_child(partial(run_to_end, tmp_path / "run", index, cache))
    events.close()
    assert isinstance(in_child(partial(run_to_end, tmp_path / "run", index, cache))[-1], StudentFinished)


def test_a_torn_last_line_of_metrics_is_dropped_on_resume(tmp_path, index, cache):
    """kill -9 in the middle of a line must not make the file unreadable for ever."""

    def killed():
        for event in train_many(
            [StudentJob(student_recipe(), tmp_path / "run")],
            index,
            settings=TrainSettings(log_every=1),
            teaching=by(cache),
        ):
            if isinstance(event, Stepped) and event.step == 6:
                with (tmp_path / "run/metrics.jsonl").open("a") as file:
                    file.write('{"kind": "st')
                kill_self()

    in_child(killed, killed=True)
    run_to_end(tmp_path / "run", index, cache)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 4, 5, 6, 7, 8, 8]


@pytest.mark.parametrize("kind", ["hard", "dense8"])
def test_compact_records_train(tmp_path, index, kind):
    """Every record kind goes through the join; hard records refuse a soft loss before the first step."""
    with make_cache(tmp_path / "cache", index, views(), num_views=2, kind=kind) as cache:
        events = run_to_end(tmp_path / "run", index, cache, recipe=student_recipe(distill="hard", epochs=1))
        assert events[-1].summary["pixels_checked"] == 64
        if kind == "hard":
            with pytest.raises(ValueError, match="holds hard labels only"):
                run_to_end(tmp_path / "soft", index, cache)


def test_what_does_not_fit_is_refused_before_the_first_step(tmp_path, index, cache):
    """Laws 5 and 6: foreign shards, foreign machines, missing units and other sizes are errors, with names."""
    other = write_shards(tmp_path / "other", seed=5)
    with pytest.raises(CacheError, match="made from other shards"):
        run_to_end(tmp_path / "a", other, cache)
    with pytest.raises(ValueError, match=r"image_size: the views of .* are 16 pixels"):
        run_to_end(tmp_path / "a", index, cache, recipe=student_recipe(image_size=32))
    with pytest.raises(ValueError, match=r"views_used: .* holds 2 views, got 9"):
        run_to_end(tmp_path / "a", index, cache, settings=TrainSettings(views_used=9))
    with pytest.raises(ValueError, match="cannot be cut"):
        run_to_end(tmp_path / "a", index, cache, settings=TrainSettings(accumulate=3))
    with pytest.raises(ValueError, match="not both"):
        run_to_end(tmp_path / "a", index, cache, teacher=linear_teacher(views()))
    jobs = [StudentJob(student_recipe(), tmp_path / "a"), StudentJob(student_recipe(epochs=3), tmp_path / "b")]
    with pytest.raises(ValueError, match=r"epochs: students of one pass must agree"):
        list(train_many(jobs, index, settings=TrainSettings(), teaching=by(cache)))
    assert not (tmp_path / "a").exists(), "nothing is made before everything is checked"


def test_missing_units_and_another_machine_are_refused(tmp_path, index, monkeypatch):
    """A unit that stage 1 has not made is named; so are library versions that render other pixels."""
    with make_cache(tmp_path / "cache", index, views(), num_views=4) as cache:
        ledger = cache.ledger()
        ledger[1, 2] = 0
        cache.ledger = lambda: ledger
        words = rf"1 of 6 chunks .* views 2–3 of shard {index.names[2]}; run cache-teacher"
        with pytest.raises(CacheError, match=words):
            run_to_end(tmp_path / "a", index, cache, recipe=student_recipe(epochs=3))
        run_to_end(tmp_path / "b", index, cache, settings=TrainSettings(views_used=2), recipe=student_recipe(epochs=3))
        monkeypatch.setattr("student.feed.cache_check.parts_differing_here", lambda *_: ("rotate",))
        with pytest.raises(CacheError, match="renders other pixels"):
            run_to_end(tmp_path / "c", index, cache)


def test_of_equally_good_epochs_the_last_is_the_best(tmp_path, index, monkeypatch):
    """A teacher that is perfect after its first epoch has learned little: its answers are nearly uniform."""
    monkeypatch.setattr("student.run.students.validate", lambda trainers, *_: [{"top1": 100.0} for _ in trainers])
    written = []
    monkeypatch.setattr("student.run.results.export_weights", lambda net, path, info: written.append(path.name))
    recipe = student_recipe(epochs=3, distill="none")
    job = StudentJob(recipe, tmp_path / "run", keep_best=True)
    val = write_shards(tmp_path / "val", seed=7)
    list(train_many([job], index, settings=TrainSettings(), val_index=val))
    assert written.count("weights_best.safetensors") == 3
    with RunLog(tmp_path / "run") as log:
        assert log.best_epoch() == (2, 100.0)


def test_the_weights_of_the_best_epoch_are_kept_and_a_killed_run_keeps_the_same(tmp_path, index, cache):
    """The last epoch is not always the best; which one it was follows from the metrics alone."""
    val, recipe = write_shards(tmp_path / "val", seed=7), student_recipe(epochs=4)

    def events(out):
        job = StudentJob(recipe, tmp_path / out, keep_best=True)
        return train_many([job], index, settings=TrainSettings(), teaching=by(cache), val_index=val)

    summary = list(events("whole"))[-1].summary
    killed = events("killed")
    next(event for event in killed if isinstance(event, Checkpointed) and event.step == 8)
    killed.close()
    list(events("killed"))
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    top1_by_epoch = {line["epoch"]: line["val"]["top1"] for line in lines if line["kind"] == "epoch"}
    assert summary["best_top1"] == max(top1_by_epoch.values()) == top1_by_epoch[summary["best_epoch"]]
    assert summary["best_epoch"] == max(e for e, top1 in top1_by_epoch.items() if top1 == summary["best_top1"])
    info = read_info(tmp_path / "whole" / "weights_best.safetensors")
    assert info.metrics["top1"] == summary["best_top1"]
    name = "weights_best.safetensors"
    assert final_weights(tmp_path / "whole", name) == final_weights(tmp_path / "killed", name)
    run_to_end(tmp_path / "plain", index, cache, val_index=val)
    assert not (tmp_path / "plain" / name).exists(), "only where it is asked for"


def test_the_norm_of_the_gradients_is_logged_where_metrics_are_due():
    """Before clipping, of the last step; no other step pays for it."""
    recipe, some = student_recipe(drop_path=0.0, clip_grad=0.05), batch()
    for clipped in (recipe, replace(recipe, clip_grad=0.0)):
        ours, other = trainer(clipped), trainer(clipped)
        ours.feed(*some, step=0)
        images, labels, answer = some
        student_loss(heads(other.core, images), labels, answer, clipped).total.backward()
        norm = sum(param.grad.square().sum() for param in other.core.parameters() if param.grad is not None) ** 0.5
        assert ours.interval_metrics()["grad_norm"] == pytest.approx(norm.item(), rel=1e-5)
    rare = Trainer(recipe, TrainSettings(log_every=3), num_classes=CLASSES, steps_per_epoch=10, group=GROUP)
    rare.feed(*some, step=0)
    assert "grad_norm" not in rare.interval_metrics() and "grad_norm" not in rare.epoch_metrics()


def test_gradient_checkpointing_changes_no_bit():
    """Drop path draws the same when a block is computed again."""
    recipe = student_recipe(drop_path=0.3)
    plain, checkpointed = trainer(recipe), trainer(recipe, grad_checkpointing=True)
    for step in range(3):
        for one in (plain, checkpointed):
            one.feed(*batch(seed=step), step=step)
    for name, value in plain.core.state_dict().items():
        assert torch.equal(value, checkpointed.core.state_dict()[name]), name
    assert "grad_checkpointing" not in TrainSettings().to_json()


def test_a_model_without_the_switch_is_told_so():
    with pytest.raises(ValueError, match="drop --grad-checkpointing"):
        set_grad_checkpointing(torch.nn.Linear(1, 1))
