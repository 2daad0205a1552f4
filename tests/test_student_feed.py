"""The door: what a loop receives is what the trainer receives, from any step on, and nothing is left behind."""

import gc
import inspect
import os
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from shards.errors import CacheError
from shards.world import World
from student import Feed, FeedOptions
from student.feed.answers import TeacherAnswer, answer_from_logits, fields_on
from student.feed.batch import Labels
from student.learn.loss import base_loss
from student.learn.process_group import ProcessGroup
from student.learn.trainer import Trainer
from student.recipe.settings import TrainSettings
from student.recipe.student_recipe import StudentRecipe
from student.recipe.suited import TrainingData, suited
from teacher_cache.store.cache import TeacherCache
from tests.student_tiny import (
    BATCH,
    CLASSES,
    SIZE,
    feed_of,
    final_weights,
    in_child,
    linear_teacher,
    make_cache,
    run_to_end,
    student_recipe,
    views,
    write_shards,
)

SMALL = {"batch_size": BATCH, "repeats": 1, "workers": 0, "device": "cpu"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Shards and a lossless cache of 4 views."""
    folder = tmp_path_factory.mktemp("feed")
    make_cache(folder / "cache", write_shards(folder / "shards"), views(), num_views=4).close()
    return folder


def feed(folder, **changes):
    given = {"cache": folder / "cache"} | SMALL | changes
    return feed_of(folder / "shards", **given)


def content(batch):
    """Everything that a batch is, as values that compare."""
    answer = batch.answer
    return (
        batch.images.numpy().tobytes(),
        *(values.tolist() for values in batch.labels),
        batch.keys,
        batch.shard.tolist(),
        batch.row.tolist(),
        batch.view.tolist(),
        None if answer is None else (answer.hard.tolist(), answer.log_prob(2.0).numpy().tobytes()),
    )


@pytest.fixture
def one_thread():
    """Of torch, and after the test as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_a_loop_of_ones_own_learns_what_the_trainer_learns(tmp_path, folder, one_thread):
    """The main promise: `train` and a loop over the feed end with the same weights to the bit."""
    recipe, settings = student_recipe(), TrainSettings(log_every=1)
    with feed(folder, seed=settings.seed) as ours, TeacherCache.open(folder / "cache") as cache:
        run_to_end(tmp_path / "run", ours.index, cache, recipe=recipe, settings=settings)
        group = ProcessGroup(World(), torch.device("cpu"))
        trainer = Trainer(recipe, settings, num_classes=CLASSES, steps_per_epoch=len(ours), group=group)
        for epoch in range(recipe.epochs):
            for batch in ours.epoch(epoch):
                trainer.feed(batch.images, batch.labels, batch.answer, step=epoch * len(ours) + batch.step)
        assert ours.pixels_checked == recipe.epochs * len(ours) * BATCH
    state = {k: (list(v.shape), v.numpy().tobytes()) for k, v in trainer.core.state_dict().items()}
    assert state == final_weights(tmp_path / "run")


def test_defaults_are_those_of_the_command_line():
    """Whoever leaves an argument out gets what `train-student` would have done."""
    signatures = (inspect.signature(Feed), inspect.signature(FeedOptions))
    default = {name: item.default for signature in signatures for name, item in signature.parameters.items()}
    recipe, settings = StudentRecipe(), TrainSettings()
    assert default["batch_size"] == recipe.batch_size and default["repeats"] is None
    assert default["smoothing"] == recipe.label_smoothing and default["views"] is None
    for name in ("seed", "prefetch", "accumulate", "views_used"):
        assert default[name] == getattr(settings, name)
    assert default["workers"] is None, "the CPUs of the rank, counted when the feed is opened"


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_inside_an_epoch_is_slicing(folder, workers):
    """Law 8 at the door: from step s of epoch e one gets what the whole run gives there."""
    with feed(folder) as whole:
        expected = {(batch.epoch, batch.step): content(batch) for e in range(3) for batch in whole.epoch(e)}
        assert len(whole) == 4 and len(expected) == 12
    with feed(folder, workers=workers) as resumed:
        for epoch, first in ((1, 2), (2, 0), (0, 3), (2, 4)):
            epoch_ = resumed.epoch(epoch, first_step=first)
            found = [content(batch) for batch in epoch_]
            assert found == [expected[epoch, step] for step in range(first, 4)] and len(epoch_) == len(found)


def test_ranks_and_accumulation_cut_the_same_global_batches(folder):
    """W ranks × A micro-batches are contiguous parts of the batch of one process."""
    with feed(folder) as alone:
        whole = [batch.keys for batch in alone.epoch(1)]
    for size, accumulate in ((2, 1), (4, 1), (2, 2), (1, 4)):
        parts = {}
        for rank in range(size):
            with feed(folder, rank=rank, world_size=size, accumulate=accumulate) as part:
                assert len(part) == 4 * accumulate
                for batch in part.epoch(1):
                    assert len(batch) == BATCH // size // accumulate
                    parts[batch.step, rank, batch.micro] = batch.keys
        places = [(rank, micro) for rank in range(size) for micro in range(accumulate)]
        assert [list(chain(*(parts[s, *place] for place in places))) for s in range(4)] == whole


def test_rank_and_world_size_come_from_the_environment_but_not_from_a_job_array(folder, monkeypatch):
    """The tasks of an array are runs of their own; a slice of the batch for each would be a silent quarter of it."""
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "4")
    with feed(folder) as alone:
        assert alone.order.world.size == 1
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with feed(folder) as second, feed(folder, rank=0, world_size=1) as given:
        assert (second.order.world.rank, second.order.world.size) == (1, 2)
        assert given.order.world.size == 1


def test_targets_are_what_the_base_loss_is_against(folder):
    """Cross-entropy with `targets` is the label's loss of our trainer; each row is a distribution."""
    with feed(folder, smoothing=0.1) as ours:
        batch = next(iter(ours.epoch(0)))
    logit_BC = torch.randn(BATCH, CLASSES, generator=torch.Generator().manual_seed(0))
    expected = base_loss(logit_BC, batch.labels, kind="cross_entropy", smoothing=0.1)
    assert cross_entropy(logit_BC, batch.targets).item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.allclose(batch.targets.sum(-1), torch.ones(BATCH))
    assert (batch.labels.lam_B < 1).any() and (batch.labels.label_B != batch.labels.partner_label_B).any()
    plain = Labels.of(torch.tensor([2])).soft(CLASSES)
    assert plain.tolist() == [[0.0, 0.0, 1.0, 0.0, 0.0]]


def test_images_are_normalised_mixed_and_laid_out_for_a_network(folder):
    with feed(folder) as ours:
        images = next(iter(ours.epoch(0))).images
    assert images.shape == (BATCH, 3, SIZE, SIZE) and images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert -3 < images.min() < images.max() < 3


def test_without_a_cache_there_are_views_and_with_a_teacher_its_answers(folder):
    """The same pixels from all three; a teacher in the loop answers what its lossless cache holds."""
    with (
        feed(folder) as cached,
        feed(folder, cache=None, views=views(), views_used=4) as plain,
        feed(folder, cache=None, views=views(), views_used=4, teacher=linear_teacher(views())) as online,
    ):
        for one, two, three in zip(cached.epoch(2), plain.epoch(2), online.epoch(2), strict=True):
            assert content(one) == content(three)
            assert content(one)[:-1] == content(two)[:-1]
            with pytest.raises(ValueError, match=r"no teacher; give Feed\(…, cache=…\)"):
                _ = two.teacher
        assert (plain.pixels_checked, plain.teacher_forwards) == (0, 0)
        assert (online.pixels_checked, online.teacher_forwards) == (0, 4 * BATCH)


def test_epochs_go_on_for_ever_in_cycles_of_the_views(folder):
    """A loop need not say how long it will be: epoch 4 + e of a cache of 4 views has the views of epoch e."""
    with feed(folder) as ours:
        seen = [{int(v) for batch in ours.epoch(epoch) for v in batch.view} for epoch in range(9)]
    assert seen == [{epoch % 4} for epoch in range(9)]


@pytest.mark.parametrize("block_views, num_views, repeats", [(3, 6, 3), (6, 6, 3), (2, 4, 2), (1, 5, 1)])
def test_repeats_are_those_that_the_command_line_would_choose(folder, block_views, num_views, repeats):
    """DeiT's three where they divide the views, else fewer."""
    recipe = views(block_views=block_views)
    data = TrainingData(views=recipe, num_views=(num_views,))
    with feed(folder, cache=None, views=recipe, views_used=num_views, repeats=None) as ours:
        assert ours.order.repeats == suited(StudentRecipe(), data, set_by_user=()).recipe.repeats == repeats


def test_the_plan_says_what_the_batches_hold(folder):
    with feed(folder) as ours:
        plan = ours.plan(1)
        batches = list(ours.epoch(1))
    assert plan.steps == len(batches)
    block = views().block_size
    assert [b.shard[::block].tolist() for b in batches] == plan.shard_I.reshape(4, -1).tolist()


def children():
    return Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()


@pytest.mark.parametrize("how", ["finished", "left early", "error in the loop"])
def test_no_process_is_left_behind(folder, how):
    """However the `with` is left."""

    def work():
        with feed(folder, workers=2) as ours:
            for batch in ours.epoch(0):
                assert len(children()) == 2
                if how == "left early":
                    break
                if how == "error in the loop" and batch.step == 1:
                    raise KeyError("mine")

    def wrapped():
        before = children()
        try:
            work()
        except KeyError:
            assert how == "error in the loop"
        return before, children()

    before, after = in_child(wrapped)
    assert after == before == []


def test_workers_live_from_epoch_to_epoch(folder):
    """They render over the end of an epoch; only a jump begins others."""

    def work():
        seen = []
        with feed(folder, workers=1) as ours:
            for epoch in (0, 1, 2, 7):
                for _ in ours.epoch(epoch):
                    seen.append(tuple(children()))
        return seen

    seen = in_child(work)
    assert len(set(seen[:12])) == 1 and len(set(seen)) == 2


def _records_held(pid, scratch):
    """The files of records, by inode, that a process maps or has open."""
    maps = (line.split(maxsplit=5) for line in Path(f"/proc/{pid}/maps").read_text().splitlines())
    found = {words[4] for words in maps if len(words) == 6 and str(scratch) in words[5]}
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile, as the folder that is being listed
            if str(scratch) in os.readlink(link):
                found.add(str(link.stat().st_ino))
    return found


def test_workers_hold_no_records(tmp_path, folder):
    """Neither those of the first epochs, in whose time they are forked, nor those at hand when others begin."""

    def work():
        seen = []
        with feed(folder, workers=2, scratch=tmp_path) as ours:
            for epoch in (0, 1, 3, 0):
                for _ in ours.epoch(epoch):
                    seen += [(_records_held("self", tmp_path), _records_held(pid, tmp_path)) for pid in children()]
        return seen

    seen = in_child(work)
    assert len(seen) > 16 and all(mine and not theirs for mine, theirs in seen)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_forked_child_is_refused_and_harms_nothing(folder, workers):
    """It would take the batches that its parent waits for, and has none of its threads."""
    with feed(folder, workers=workers) as ours:
        batches = iter(ours.epoch(0))
        seen = [content(next(batches))]
        child = os.fork()
        if child == 0:
            try:
                next(batches)
            except ValueError as error:
                refused = "was forked from process" in str(error)
                ours.close()
                os._exit(7 if refused else 8)
            os._exit(9)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        seen += [content(batch) for batch in batches]
    with feed(folder) as whole:
        assert seen == [content(batch) for batch in whole.epoch(0)]


def test_a_closed_feed_waits_for_no_garbage_collector(tmp_path, folder):
    """What it opened is closed with it, the index's map with the last that refers to it."""

    def ours_open():
        links = (f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd"))
        targets = [os.readlink(link) for link in links if os.path.lexists(link)]
        return sorted(name for name in targets if str(folder) in name or "parcel" in name or str(tmp_path) in name)

    def work():
        gc.collect()
        gc.disable()
        before = ours_open()
        ours = feed(folder, workers=1, scratch=tmp_path)
        with ours:
            for _ in ours.epoch(0):
                pass
            del _
        closed = ours_open()
        del ours
        return before, closed, ours_open()

    before, closed, after = in_child(work)
    assert after == before
    assert closed == [*before, str(folder / "shards/shards.index")]


def test_one_epoch_at_a_time_and_none_after_the_end(folder):
    """A batch of another epoch than asked for would be trained on in silence."""
    with feed(folder) as ours:
        first = iter(ours.epoch(0))
        next(first)
        next(iter(ours.epoch(1)))
        with pytest.raises(ValueError, match="epoch 0 is over"):
            next(first)
        third = iter(ours.epoch(2))
        next(third)
    with pytest.raises(ValueError, match="epoch 2 is over"):
        next(third)
    with pytest.raises(ValueError, match="closed"):
        next(iter(ours.epoch(0)))


def test_every_digest_is_compared(tmp_path, folder):
    """Law 1 at the door: one wrong digest among all, and the loop does not get the batch."""
    with TeacherCache.open(folder / "cache") as cache, feed(folder, cache=cache) as ours:
        good = cache.read_unit

        def one_bit(view_block, shard):
            unit = good(view_block, shard)
            if shard == 1:
                unit["pixel_digest"] = unit["pixel_digest"].copy()
                unit["pixel_digest"][:, 4] ^= 1
            return unit

        cache.read_unit = one_bit
        with pytest.raises(CacheError, match=rf"{ours.index.names[1]}, key .* expected digest"):
            for epoch in range(8):
                list(ours.epoch(epoch))


REFUSED = {
    "cache and teacher": ({"teacher": linear_teacher(views())}, "a cache or a teacher in the loop, not both"),
    "cache and views": ({"views": views()}, "a cache or views of your own, not both"),
    "rank alone": ({"rank": 0}, "give rank and world_size or neither"),
    "rank outside": ({"rank": 2, "world_size": 2}, r"rank: expected a number in \[0, 2\), got 2"),
    "batch of half blocks": ({"batch_size": 6}, "batch_size: expected a multiple of 4, such as 4 or 8, got 6"),
    "ranks that cut blocks": ({"rank": 0, "world_size": 3}, "cannot be cut"),
    "repeats": ({"repeats": 3}, "repeats: must divide block_views 2"),
    "no repeats": ({"repeats": -1}, "repeats: expected a whole number of at least 1, got -1"),
    "smoothing": ({"smoothing": 1.0}, r"smoothing: expected a number in \[0, 1\), got 1.0"),
    "workers": ({"workers": -1}, "workers: expected a whole number of at least 0, got -1"),
    "prefetch": ({"prefetch": 0}, "prefetch: expected a whole number of at least 1, got 0"),
    "epochs": ({"epochs": 0}, "epochs: expected a whole number of at least 1, got 0"),
    "views_used": ({"views_used": 5}, "holds 4 views, got 5"),
    "pin": ({"pin": "x"}, "pin: expected True, False or None, got 'x'"),
    "smoothing of words": ({"smoothing": "0.1"}, r"smoothing: expected a number in \[0, 1\), got '0.1'"),
    "a cache that is a number": ({"cache": 1.5}, "cache: expected one str or Path or TeacherCache, or a list of them"),
    "caches of numbers": ({"cache": [1, 2]}, r"cache: expected one .*, got \[1, 2\]"),
    "a teacher that is a text": ({"cache": None, "teacher": "t"}, "teacher: expected one Teacher, or a list of them"),
    "scratch": ({"scratch": []}, r"scratch: expected a folder or None, got \[\]"),
    "shard_cache": ({"shard_cache": True}, "shard_cache: expected a folder or None, got True"),
    "a list of devices": ({"device": []}, r"expected cpu, cuda or cuda:N, got \[\]"),
    "device": ({"device": "tpu"}, "expected cpu, cuda or cuda:N, got 'tpu'"),
}


@pytest.mark.parametrize("changes, message", REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused_when_the_feed_is_made(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        feed(folder, **changes)


WHOLE = ("batch_size", "repeats", "seed", "views_used", "epochs", "accumulate", "world_size", "workers", "prefetch")


@pytest.mark.parametrize("value", ["64", 1.5, True, -1, 2**63, float("nan"), [1]], ids=str)
@pytest.mark.parametrize("name", WHOLE)
def test_a_number_that_is_none_is_refused_by_its_argument(folder, name, value):
    """Whatever is counted: texts, halves, truth values and negative numbers are no counts."""
    with pytest.raises(ValueError, match=rf"{name}: expected a whole number"):
        feed(folder, **{"rank": 0, "world_size": 1, name: value})
    assert set(WHOLE) < {*inspect.signature(Feed).parameters, *inspect.signature(FeedOptions).parameters}


def test_a_feed_has_at_most_a_dozen_settings():
    """More than that nobody reads; what most loops leave alone is in the options."""
    kinds = [item.kind for item in inspect.signature(Feed).parameters.values()]
    assert kinds.count(inspect.Parameter.KEYWORD_ONLY) <= 12


def test_one_cache_in_two_spellings_is_no_two_teachers(folder, monkeypatch):
    """By another path, a link, a relative path or the open cache."""
    monkeypatch.chdir(folder)
    Path("link").symlink_to(folder / "cache")
    with TeacherCache.open(folder / "cache") as opened:
        for other in ("cache", "./cache", folder / "link", folder / "shards" / ".." / "cache", opened):
            with pytest.raises(ValueError, match="is the same cache as"):
                feed(folder, cache=[folder / "cache", other])


def test_an_epoch_or_step_that_is_not_there_is_refused_at_once(folder):
    with feed(folder, epochs=2) as ours:
        with pytest.raises(ValueError, match=r"epoch: expected a number in \[0, 2\), got 2"):
            ours.epoch(2)
        with pytest.raises(ValueError, match=r"first_step: expected 0 … 4 .* got 5"):
            ours.epoch(0, first_step=5)


def test_an_incomplete_cache_serves_the_epochs_that_it_has(tmp_path, folder):
    """Without a number of epochs every unit of the cache must be there."""
    with TeacherCache.open(folder / "cache") as cache:
        ledger = cache.ledger()
        ledger[1, 2] = 0
        cache.ledger = lambda: ledger
        with feed(folder, cache=cache, epochs=2) as ours:
            assert len(list(ours.epoch(1))) == 4
        with pytest.raises(CacheError, match=r"1 of 6 chunks .* run cache-teacher again"):
            feed(folder, cache=cache)


def test_a_cache_given_open_stays_open_and_a_place_is_closed(folder):
    """The feed closes what it has opened."""
    closed = []
    with TeacherCache.open(folder / "cache") as cache:
        cache.close = lambda: closed.append("given")
        with feed(folder, cache=cache):
            pass
        assert not closed
        del cache.close
    with feed(folder) as ours:
        ours.teaching.caches[0].close = lambda: closed.append("own")
    assert closed == ["own"]


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_names_the_likeliest_classes_first(k):
    """Ties come in the order of the classes; the first is the hard label."""
    logit_BC = torch.tensor([[0.0, 3.0, 3.0, 1.0, 3.0], [5.0, 4.0, 3.0, 2.0, 1.0]])
    answer = answer_from_logits(logit_BC)
    top = answer.top(k)
    assert top.class_BK.tolist() == [[1, 2, 4, 3, 0][:k], [0, 1, 2, 3, 4][:k]]
    assert torch.equal(top.class_BK[:, 0], answer.hard)
    assert torch.equal(top.log_prob_BK, torch.log_softmax(logit_BC, -1).gather(1, top.class_BK))


def test_top_keeps_the_order_in_which_a_record_names_its_classes():
    """Eight-bit levels tie where logits did not; the record still knows which came first."""
    log_prob_BC = torch.log_softmax(torch.tensor([[2.0, 2.0, 2.0, 0.0]]), -1)
    answer = TeacherAnswer(torch.tensor([2]), lambda _: log_prob_BC, named_BK=torch.tensor([[2, 0]]))
    assert answer.top(4).class_BK.tolist() == [[2, 0, 1, 3]]


@pytest.mark.parametrize("k", [0, 6])
def test_top_of_no_or_too_many_classes_is_refused(k):
    with pytest.raises(ValueError, match=r"top: expected k in \[1, 5\]"):
        answer_from_logits(torch.zeros(1, 5)).top(k)


def test_a_cache_of_first_classes_says_so_when_asked_for_more(tmp_path, folder):
    with feed(folder) as ours:
        cache = make_cache(tmp_path / "hard", ours.index, views(), num_views=2, kind="hard")
    with cache, feed(folder, cache=cache) as hard:
        batch = next(iter(hard.epoch(0)))
        assert batch.teacher.hard.shape == (BATCH,)
        for ask in (partial(batch.teacher.log_prob, 1.0), partial(batch.teacher.top, 2)):
            with pytest.raises(ValueError, match="first classes only"):
                ask()


def test_nothing_is_drawn_from_a_global_generator(folder):
    """A feed beside anybody's own randomness changes none of it."""
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    with feed(folder) as ours:
        list(ours.epoch(0))
    drawn = torch.rand(3).tolist(), np.random.rand(3).tolist()  # noqa: NPY002
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    assert drawn == (torch.rand(3).tolist(), np.random.rand(3).tolist())  # noqa: NPY002


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_fields_of_a_batch_travel_packed(device):
    """Every type and shape of a record, and values that are no multiples of what they are aligned to."""
    rng = np.random.default_rng(0)
    dtypes = ("<u2", "<u4", "<f2", "<f4", "u1", "<i8")
    arrays = {kind: rng.integers(0, 200, (7, n)).astype(kind) for n, kind in enumerate(dtypes, start=1)}
    arrays |= {"flat": rng.random(7).astype("<f4"), "turned": rng.integers(0, 9, (3, 7)).astype("u1").T}
    fields = fields_on(arrays, torch.device(device))
    for name, array in arrays.items():
        expected = torch.from_numpy(np.ascontiguousarray(array))
        assert (fields[name].dtype, fields[name].shape) == (expected.dtype, expected.shape)
        assert device == "meta" or torch.equal(fields[name], expected)
