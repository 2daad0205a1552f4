"""Laws 8, 9 and 10 on whole runs: global batches, cached = online, killed = uninterrupted, many students = one."""

import json
import signal
import threading
import time
from dataclasses import replace
from functools import partial
from itertools import chain

import pytest
import torch

import student.feed.feed as feed
from shards.errors import CacheError
from shards.world import World
from student.recipe.settings import TrainSettings
from student.run.loop import train_many
from student.run.run_events import Checkpointed, Resumed, Stepped, Stopped, StudentFailed, StudentFinished
from student.run.students import StudentJob
from teacher_cache.network.teacher import TeacherOptions, load_teacher
from tests.student_tiny import (
    by,
    final_weights,
    in_child,
    in_children,
    kill_self,
    linear_teacher,
    make_cache,
    run_to_end,
    student_recipe,
    train,
    views,
    write_shards,
)
from tests.test_student_unlabelled import without_labels

SETTINGS = TrainSettings(log_every=1)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Bits must not depend on how many cores are free."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def val_index(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("val"), rows=(9,), seed=1)


@pytest.fixture(scope="module")
def cache(tmp_path_factory, index):
    with make_cache(tmp_path_factory.mktemp("cache"), index, views(), num_views=4) as opened:
        yield opened


def losses(events):
    """Every number of every step that is not a time."""
    return [
        (e.student, e.step, {k: v for k, v in e.metrics.items() if k not in ("images_per_s", "data_wait_share")})
        for e in events
        if isinstance(e, Stepped)
    ]


def convolutional_teacher():
    """A small convolutional network with batch norm, weights drawn from a fixed seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return load_teacher("resnet10t", num_classes=5, input_size=16, options=TeacherOptions(pretrained=False))


TEACHERS = {"linear": lambda: linear_teacher(views()), "cnn": convolutional_teacher}


@pytest.mark.parametrize(
    "teacher, distill, tau",
    [
        ("cnn", "hard", 1.0),
        ("cnn", "soft", 3.0),
        ("linear", "soft", 0.7),
        ("linear", "dist", 1.0),
        ("linear", "soft-std", 2.0),
    ],
)
@pytest.mark.slow
def test_cached_equals_online_to_the_bit(tmp_path, index, teacher, distill, tau):
    """Law 9: with all logits in float32 the cache *is* the teacher, over 52 steps with Mixup and CutMix on."""
    recipe = student_recipe(distill=distill, temperature=tau, epochs=13)
    cache = make_cache(tmp_path / "cache", index, views(), num_views=4, teacher=TEACHERS[teacher]())
    cached = run_to_end(tmp_path / "a", index, cache, recipe=recipe, settings=TrainSettings(log_every=1))
    assert cached[-1].summary["teacher_forwards_in_training"] == 0
    online = run_to_end(
        tmp_path / "b",
        index,
        recipe=recipe,
        settings=TrainSettings(log_every=1, views_used=4),
        teacher=TEACHERS[teacher](),
        views=views(),
    )
    assert online[-1].summary["teacher_forwards_in_training"] == online[-1].summary["images"] == 52 * 16
    first, second = losses(cached), losses(online)
    assert len(first) == 52
    assert len({step[2]["loss"] for step in first}) == 52, "the student learns"
    assert [step[1:] for step in first] == [step[1:] for step in second]
    assert final_weights(tmp_path / "a") == final_weights(tmp_path / "b")


def train_killed_at(out, index, cache, step, **options):
    """Train in this process until the event of `step`, then die without a word."""
    every = options["settings"].checkpoint_every
    for event in train(options.pop("recipe", student_recipe()), index, out=out, cache=cache, **options):
        if isinstance(event, Resumed):
            assert step - 1 - event.step <= every, "the kill at the step before costs no more than that"
        if isinstance(event, Stepped) and event.step == step:
            kill_self()


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.slow
def test_killed_at_every_step_and_resumed_equals_uninterrupted(tmp_path, index, val_index, cache, every):
    """Law 10, with kill -9: same weights to the bit, same metrics, same counts of pixels checked."""
    settings = TrainSettings(log_every=1, checkpoint_every=every)
    options = {"settings": settings, "val_index": val_index}
    run_to_end(tmp_path / "whole", index, cache, **options)
    # With a checkpoint every 3 steps a kill at each step would never get on: kill at each step once, in order.
    for step in range(1, 9):
        in_child(partial(train_killed_at, tmp_path / "killed", index, cache, step, **options), killed=True)
    in_child(partial(run_to_end, tmp_path / "killed", index, cache, **options))
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def assert_same_run(first, second):
    assert final_weights(first) == final_weights(second)
    assert final_weights(first, "weights_ema.safetensors") == final_weights(second, "weights_ema.safetensors")
    times = ("images_per_s", "data_wait_share", "seconds", "student")
    lines = [
        [
            {k: v for k, v in json.loads(line).items() if k not in times}
            for line in (run / "metrics.jsonl").read_text().splitlines()
        ]
        for run in (first, second)
    ]
    assert lines[0] == lines[1]
    summaries = [json.loads((run / "summary.json").read_text()) for run in (first, second)]
    first_says, second_says = ({k: v for k, v in s.items() if k not in times} for s in summaries)
    assert first_says == second_says
    assert summaries[0]["pixels_checked"] == summaries[0]["images"]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.slow
def test_results_do_not_depend_on_the_number_of_workers(tmp_path, index, cache, workers):
    """Workers only decide when a batch is ready."""
    run_to_end(tmp_path / "none", index, cache)
    in_child(partial(run_to_end, tmp_path / "some", index, cache, settings=TrainSettings(log_every=1, workers=workers)))
    assert final_weights(tmp_path / "none") == final_weights(tmp_path / "some")


def record_batches(out, index, cache, world, settings):
    """Train one rank and return what each of its micro-batches held, and its events."""
    seen, original = [], feed.ready

    def recording(loaded, *rest):
        seen.append([a.tolist() for a in (loaded.shard_B, loaded.row_B, loaded.view_B, loaded.pixel_digest_B)])
        return original(loaded, *rest)

    feed.ready = recording
    try:
        events = run_to_end(out, index, cache, settings=settings, world=world)
    finally:
        feed.ready = original
    return seen, losses(events)


@pytest.mark.slow
def test_every_world_sees_the_same_global_batches(tmp_path, index, cache):
    """Law 8 through DDP on gloo: W ∈ {1, 2, 4}, accumulation in place of ranks; workers or not, to the bit."""
    results = {}
    worlds = {"1": (1, 1), "2": (2, 1), "2 with workers": (2, 1), "4": (4, 1), "2×2": (2, 2), "1×4": (1, 4)}
    for name, (size, accumulate) in worlds.items():
        workers = 2 if name == "2 with workers" else 0
        settings = TrainSettings(log_every=1, accumulate=accumulate, workers=workers)
        init = f"file://{tmp_path}/meet-{name}"
        ranks = in_children(
            [
                partial(record_batches, tmp_path / name, index, cache, World(rank, size, rank, meeting=init), settings)
                for rank in range(size)
            ]
        )
        batches = []
        for step in range(8):
            parts = [seen[step * accumulate + micro] for seen, _ in ranks for micro in range(accumulate)]
            batches.append([list(chain(*columns)) for columns in zip(*parts, strict=True)])
        results[name] = (batches, ranks[0][1])
        assert all(metrics == ranks[0][1] for _, metrics in ranks), "every rank reports the sum over ranks"
    for name, (batches, _) in results.items():
        assert batches == results["1"][0], name
    # Drop path is drawn per part of the batch: the same wherever the parts are, up to the rounding of their sum.
    for name in ("2×2", "1×4"):
        for (_, _, one), (_, _, other) in zip(results["4"][1], results[name][1], strict=True):
            assert one["loss"] == pytest.approx(other["loss"], rel=1e-5), name
    assert results["2"][1][0][2]["loss"] != results["4"][1][0][2]["loss"]
    assert [step[1:] for step in results["2"][1]] == [step[1:] for step in results["2 with workers"][1]]
    assert final_weights(tmp_path / "2") == final_weights(tmp_path / "2 with workers")


@pytest.mark.slow
@pytest.mark.parametrize("labelled", [True, False], ids=["labels", "some labels"])
def test_gradients_do_not_depend_on_how_a_batch_is_cut(tmp_path, index, cache, labelled):
    """Without drop path, W ranks, A micro-batches and one whole batch learn the same up to rounding."""
    recipe = student_recipe(drop_path=0.0)
    if not labelled:
        recipe = replace(recipe, teacher_heads="both")
        index = without_labels(index, tmp_path / "some", keep=index.num_samples // 3)
        cache = make_cache(tmp_path / "cache of some", index, cache.spec.recipe, num_views=cache.num_views)
    runs = {}
    for size, accumulate in ((1, 1), (1, 4), (4, 1), (2, 2)):
        out = tmp_path / f"{size}x{accumulate}"
        settings = TrainSettings(log_every=1, accumulate=accumulate)
        works = [
            partial(
                run_to_end,
                out,
                index,
                cache,
                recipe=recipe,
                settings=settings,
                world=World(rank, size, rank, meeting=f"file://{tmp_path}/meet{size}x{accumulate}"),
            )
            for rank in range(size)
        ]
        runs[size, accumulate] = [m["loss"] for _, _, m in losses(in_children(works)[0])]
    for losses_of_run in runs.values():
        assert losses_of_run == pytest.approx(runs[1, 1], rel=1e-5)


@pytest.mark.parametrize("distill", ["none", "hard"])
def test_no_parameter_is_unused_in_any_mode(tmp_path, index, cache, distill):
    """DDP fails on parameters without a gradient, and a DIST head has none unless something is done about it."""
    recipe = student_recipe(distill=distill, epochs=1)
    works = [
        partial(
            run_to_end,
            tmp_path / "run",
            index,
            cache,
            recipe=recipe,
            world=World(rank, 2, rank, meeting=f"file://{tmp_path}/meet"),
        )
        for rank in range(2)
    ]
    assert isinstance(in_children(works)[0][-1], StudentFinished)


@pytest.mark.slow
def test_ddp_killed_and_resumed_equals_uninterrupted(tmp_path, index, cache):
    """Law 10 for two ranks: checkpoint sums are reduced over ranks and the state reaches both."""

    def work(out, rank, n, kill_at):
        world = World(rank, 2, rank, meeting=f"file://{tmp_path}/meet{n}")
        options = {"settings": TrainSettings(log_every=3, checkpoint_every=1), "world": world}
        if kill_at is None:
            return run_to_end(out, index, cache, **options)
        for event in train(student_recipe(), index, out=out, cache=cache, **options):
            if isinstance(event, Checkpointed) and event.step == kill_at:
                kill_self()

    in_children([partial(work, tmp_path / "whole", rank, 0, None) for rank in range(2)])
    for n, step in enumerate((2, 5), start=1):
        in_children([partial(work, tmp_path / "killed", rank, n, step) for rank in range(2)], killed=True)
    in_children([partial(work, tmp_path / "killed", rank, 3, None) for rank in range(2)])
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


GRID = {
    "hard": {"distill": "hard"},
    "soft1": {"distill": "soft", "temperature": 1.0},
    "soft4": {"distill": "soft", "temperature": 4.0, "distill_weight": 0.9},
    "none": {"distill": "none"},
}


def jobs(folder):
    return [StudentJob(student_recipe(**changes), folder / name) for name, changes in GRID.items()]


@pytest.mark.slow
def test_students_of_one_pass_end_as_if_alone(tmp_path, index, val_index, cache):
    """Sharing decode, augmentation, join and evaluation must not be seen in any bit of the result."""
    events = list(
        train_many(jobs(tmp_path / "many"), index, settings=SETTINGS, teaching=by(cache), val_index=val_index)
    )
    assert [e.student for e in events if isinstance(e, StudentFinished)] == list(GRID)
    for job in jobs(tmp_path / "alone"):
        list(train(job.recipe, index, settings=SETTINGS, out=job.out, cache=cache, val_index=val_index))
        assert_same_run(tmp_path / "many" / job.out.name, job.out)


@pytest.mark.slow
def test_a_pass_killed_between_its_checkpoints_is_finished_by_the_same_call(tmp_path, index, cache):
    """One student may be a checkpoint ahead of another; they go on together from the one they share."""

    def killed(step, student):
        settings = TrainSettings(log_every=1, checkpoint_every=2)
        for event in train_many(jobs(tmp_path / "many"), index, settings=settings, teaching=by(cache)):
            if isinstance(event, Checkpointed) and (event.step, event.student) == (step, student):
                kill_self()

    for step, student in ((2, "hard"), (4, "soft1"), (6, "soft4"), (8, "none")):
        in_child(partial(killed, step, student), killed=True)
    events = list(train_many(jobs(tmp_path / "many"), index, settings=SETTINGS, teaching=by(cache)))
    assert {e.student for e in events if isinstance(e, StudentFinished)} == set(GRID)
    list(train_many(jobs(tmp_path / "whole"), index, settings=SETTINGS, teaching=by(cache)))
    for name in GRID:
        assert final_weights(tmp_path / "many" / name) == final_weights(tmp_path / "whole" / name)


def test_a_student_that_diverges_leaves_the_others_alone(tmp_path, index, cache):
    """One λ of a grid may blow up; the pass goes on and the others' results do not change."""
    bad = StudentJob(student_recipe(lr=100.0, weight_decay=10.0, epochs=2), tmp_path / "bad")
    good = StudentJob(student_recipe(), tmp_path / "good")
    events = list(train_many([bad, good], index, settings=SETTINGS, teaching=by(cache)))
    assert [e.student for e in events if isinstance(e, StudentFailed)] == ["bad"]
    run_to_end(tmp_path / "alone", index, cache)
    assert final_weights(tmp_path / "good") == final_weights(tmp_path / "alone")


@pytest.mark.parametrize(
    "number, workers, code", [(signal.SIGUSR1, 0, 75), (signal.SIGTERM, 2, 75), (signal.SIGINT, 2, 130)]
)
@pytest.mark.slow
def test_a_signal_to_the_process_group_saves_and_the_run_can_go_on(tmp_path, index, cache, number, workers, code):
    """Schedulers and terminals signal every process; loader workers must not die of it before the step is saved."""
    import os

    def work():
        os.setsid()
        settings = TrainSettings(log_every=1, workers=workers)
        events = []
        for event in train(student_recipe(), index, settings=settings, out=tmp_path / "run", cache=cache):
            events.append(event)
            if isinstance(event, Stepped) and event.step == 2:
                os.killpg(0, number)
                time.sleep(0.05)
        return events

    stopped = in_child(work)
    assert isinstance(stopped[-1], Stopped)
    assert (stopped[-1].step, stopped[-1].exit_code) == (3, code)
    assert isinstance(stopped[-2], Checkpointed)
    events = run_to_end(tmp_path / "run", index, cache)
    assert next(e.step for e in events if isinstance(e, Resumed)) == 3
    run_to_end(tmp_path / "whole", index, cache)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_vote_to_stop_reaches_every_rank_at_the_same_step(tmp_path, index, cache):
    """Only rank 1 is told; both must stop after the same step or the group hangs."""

    def work(rank):
        events = []
        options = {"settings": SETTINGS, "world": World(rank, 2, rank, meeting=f"file://{tmp_path}/meet")}
        for event in train(student_recipe(), index, out=tmp_path / "run", cache=cache, **options):
            events.append(event)
            if rank == 1 and isinstance(event, Stepped) and event.step == 2:
                signal.raise_signal(signal.SIGTERM)
        return events[-1]

    first, second = in_children([partial(work, rank) for rank in range(2)])
    assert isinstance(first, Stopped) and first == second
    assert first.step == 4


def test_online_needs_no_cache_and_none_needs_no_teacher(tmp_path, index):
    """The three sources of answers go through one loop."""
    events = run_to_end(tmp_path / "a", index, recipe=student_recipe(distill="none", epochs=1), views=views())
    assert events[-1].summary["pixels_checked"] == 0
    with pytest.raises(ValueError, match="needs a teacher"):
        run_to_end(tmp_path / "b", index, views=views())


def test_changed_pixels_end_the_run_naming_shard_key_and_view(tmp_path, index):
    """Law 1: not one sample is trained on with pixels the teacher did not see."""
    with make_cache(tmp_path / "c", index, views(), num_views=2) as cache:
        slab_unit = cache.read_unit
        key = index.key(1, 4)

        def one_bit(view_block, shard):
            unit = slab_unit(view_block, shard)
            if shard == 1:
                unit["pixel_digest"] = unit["pixel_digest"].copy()
                unit["pixel_digest"][:, 4] ^= 1
            return unit

        cache.read_unit = one_bit
        with pytest.raises(CacheError, match=rf"{index.names[1]}, key {key}, view [01] .* expected digest"):
            run_to_end(tmp_path / "r", index, cache, recipe=student_recipe(epochs=8))
    assert threading.active_count() < 20


def test_a_signal_after_the_last_step_reaches_whoever_goes_on(tmp_path, index, cache):
    """A grid trains its other cells otherwise, although it has said that it stops."""

    def last_events():
        seen = []
        for event in train(student_recipe(), index, settings=SETTINGS, out=tmp_path / "a", cache=cache):
            seen.append(event)
            if isinstance(event, StudentFinished):
                signal.raise_signal(signal.SIGTERM)
        return seen[-2:]

    finished, stopped = in_child(last_events)
    assert isinstance(finished, StudentFinished) and (tmp_path / "a" / "summary.json").is_file()
    assert isinstance(stopped, Stopped) and stopped.students == () and stopped.exit_code == 75
    assert isinstance(run_to_end(tmp_path / "a", index, cache)[-1], StudentFinished)
