"""A resume: rank 0 decides the step and every rank reads the file; ranks and micro-batches stand in for each other."""

import pickle
import re
from functools import partial

import pytest
import torch
import torch.distributed as dist

import student.run.checkpoint as checkpoint
from shards.errors import RunError
from shards.world import World
from student.commands.training_display import TrainingDisplay
from student.recipe.settings import TrainSettings
from student.run.checkpoint import saved_steps
from student.run.loop import StudentJob, train_many
from student.run.run_events import Checkpointed, Rejected, Resumed
from tests.student_tiny import (
    by,
    in_children,
    kill_self,
    make_cache,
    run_to_end,
    student_recipe,
    train,
    views,
    write_shards,
)
from tests.test_student_laws import losses


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory, index):
    with make_cache(tmp_path_factory.mktemp("cache"), index, views(), num_views=4) as opened:
        yield opened


def ranks(tmp_path, name, work):
    """`work(options)` on each of two ranks."""
    meeting = f"file://{tmp_path}/meet-{name}"
    return [partial(work, {"world": World(rank, 2, rank, meeting=meeting)}) for rank in range(2)]


def test_students_that_began_in_other_numbers_of_threads_are_said_to_round_otherwise(tmp_path, index, cache):
    """They share one pass, so one of them computes in another number than before, and its last bits may differ."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for number in (1, 2):
            settings = TrainSettings(checkpoint_every=2, threads=number)
            run = train(student_recipe(), index, out=tmp_path / f"s{number}", cache=cache, settings=settings)
            next(event for event in run if isinstance(event, Checkpointed))
            run.close()
        jobs = [StudentJob(student_recipe(), tmp_path / f"s{number}") for number in (1, 2)]
        both = train_many(jobs, index, settings=TrainSettings(), teaching=by(cache))
        resumed = next(event for event in both if isinstance(event, Resumed))
        both.close()
    finally:
        torch.set_num_threads(before)
    assert resumed.students == ("s1", "s2") and (resumed.threads, resumed.threads_before) == (2, 1)


def killed_at(step, out, index, cache, options):
    settings = TrainSettings(log_every=1, checkpoint_every=1)
    for event in train(student_recipe(), index, out=out, cache=cache, settings=settings, **options):
        if isinstance(event, Checkpointed) and event.step == step:
            kill_self()


@pytest.fixture
def killed(tmp_path, index, cache):
    """A run of two ranks that was killed after step 3."""
    in_children(ranks(tmp_path, "kill", partial(killed_at, 3, tmp_path / "run", index, cache)), killed=True)
    return tmp_path / "run"


def test_no_state_travels_between_ranks(tmp_path, index, cache, killed):
    """The optimisers of ViT-L are gigabytes; gloo would carry them to every rank, pickled."""

    def work(options):
        sizes, plain = [], dist.broadcast_object_list

        def measured(parcel, *rest, **options):
            sizes.append(len(pickle.dumps(parcel)))
            return plain(parcel, *rest, **options)

        dist.broadcast_object_list = measured
        events = run_to_end(killed, index, cache, **options)
        return max(sizes), [event.step for event in events if isinstance(event, Resumed)]

    payload = (killed / f"checkpoints/step-{saved_steps(killed / 'checkpoints')[0]:09d}.pt").stat().st_size
    results = in_children(ranks(tmp_path, "again", work))
    assert [steps for _, steps in results] == [[3], [3]]
    assert max(size for size, _ in results) < payload / 10


def test_a_rank_that_cannot_read_the_checkpoint_ends_all_of_them(tmp_path, index, cache, killed):
    """A run directory on a disk of rank 0's machine: one message, and nobody waits for the rank that has no file."""

    def work(options):
        if options["world"].rank == 1:
            checkpoint.load_checkpoint = lambda folder, step, **_: Rejected(path=folder, reason="no such file")
        with pytest.raises(RunError, match=r"no such file.*that all ranks share"):
            run_to_end(killed, index, cache, **options)
        return True

    assert in_children(ranks(tmp_path, "again", work)) == [True, True]


@pytest.mark.parametrize(
    "accumulate, words",
    [
        (2, "was 2 × 1, is 1 × 2: same batches in the same parts; sums over the parts may round differently"),
        (1, "was 2 × 1, is 1 × 1: same batches, but drop path, .* differ from now on; --accumulate 2 would keep them"),
        (4, None),
    ],
)
def test_ranks_and_micro_batches_stand_in_for_each_other(tmp_path, index, cache, killed, capsys, accumulate, words):
    """Two ranks go on as one with two micro-batches; other parts are said to draw otherwise."""
    settings = TrainSettings(log_every=1, accumulate=accumulate)
    if words is None:
        with pytest.raises(RunError, match="accumulate: the run has 1, requested is 4"):
            run_to_end(killed, index, cache, settings=settings)
        return
    events = run_to_end(killed, index, cache, settings=settings)
    display = TrainingDisplay(quiet=False)
    for event in events:
        if isinstance(event, Resumed):
            display.show(event)
    said = capsys.readouterr().err
    assert re.search(words, said), said
    works = ranks(tmp_path, "whole", lambda options: losses(run_to_end(tmp_path / "whole", index, cache, **options)))
    whole = {step: metrics["loss"] for _, step, metrics in in_children(works)[0]}
    found = {step: metrics["loss"] for _, step, metrics in losses(events)}
    same = [found[step] == pytest.approx(whole[step], rel=1e-5) for step in range(4, 9)]
    assert all(same) == (accumulate == 2)
