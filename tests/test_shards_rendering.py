"""A batch depends on its task alone; errors of workers arrive as what they are; a stream is entered anywhere."""

import inspect
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from shards.errors import RunError, ShardError
from shards.index.reader import ShardReader
from shards.views import rendering
from shards.views.blocks import BlockViews, render_block, render_blocks
from shards.views.rendering import RenderedStream, render_ahead
from student.feed.order import Order
from tests.student_tiny import in_child, views, write_shards


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"))


def plan_items(index, *, repeats=1, parts=2):
    plan = Order(rows_S=index.rows_S, recipe=views(), batch_size=16, repeats=repeats).plan(0)
    return [plan.blocks(step, part, parts) for step in range(plan.steps) for part in range(parts)]


def batches(tasks, **settings):
    return render_ahead(tasks, died=RunError, **settings)


def same(one, other):
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in other._fields)


@pytest.mark.parametrize("repeats", [1, 2])
def test_batches_do_not_depend_on_workers_or_on_how_a_step_is_cut(index, repeats):
    """Pixels, labels, digests and mixing are those of the items, in the plan's order."""
    with ShardReader(index) as reader:
        expected = [render_blocks(reader, views(), task) for task in plan_items(index, repeats=repeats)]
        for workers in (0, 1, 3):
            items = plan_items(index, repeats=repeats)
            found = list(batches(items, reader=reader, recipe=views(), workers=workers))
            assert len(found) == len(expected) and all(map(same, found, expected)), workers
        whole = [render_blocks(reader, views(), task) for task in plan_items(index, repeats=repeats, parts=1)]
    for step, batch in enumerate(whole):
        halves = expected[2 * step : 2 * step + 2]
        assert np.array_equal(batch.view_BHWC, np.concatenate([half.view_BHWC for half in halves]))
        assert np.array_equal(batch.pixel_digest_B, np.concatenate([half.pixel_digest_B for half in halves]))


def test_partners_stay_in_their_block_and_mixing_is_on(index):
    """A partner outside the batch would be another image than the teacher mixed in."""
    with ShardReader(index) as reader:
        batch = render_blocks(reader, views(), plan_items(index, parts=1)[0])
    partner_B = batch.partner_B
    assert (partner_B // 4 == np.arange(16) // 4).all()
    assert (partner_B[partner_B] == np.arange(16)).all() and (partner_B != np.arange(16)).any()
    assert batch.box_B4.any() and (batch.lam_B < 1).any()


def test_items_may_be_endless_and_are_asked_for_lazily(index):
    """The whole run is one stream; making it must not plan 300 epochs first."""
    asked = []

    def endless():
        items = plan_items(index)
        while True:
            asked.append(1)
            yield items[len(asked) % len(items)]

    with ShardReader(index) as reader:
        stream = batches(endless(), reader=reader, recipe=views(), workers=1, prefetch=2)
        for _ in range(3):
            next(stream)
        assert len(asked) <= 3 + 2 + 1
        stream.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_shard_is_a_shard_error_from_any_worker(tmp_path, workers):
    """The message of the reader, not a traceback of a worker process."""
    index = write_shards(tmp_path, rows=(16,))
    path = tmp_path / index.names[0]
    data = bytearray(path.read_bytes())
    data[int(index.offset_N[3]) + 20] ^= 1
    path.write_bytes(data)
    with ShardReader(index) as reader, pytest.raises(ShardError, match="crc32c") as error:
        list(batches(plan_items(index), reader=reader, recipe=views(), workers=workers))
    assert "Traceback" not in str(error.value)


def test_a_killed_worker_is_a_run_error_with_its_usual_causes(index):
    """Out of memory kills a worker; the user needs to hear that, not a RuntimeError of a queue."""
    with ShardReader(index) as reader:
        items = plan_items(index) * 50
        stream = batches(items, reader=reader, recipe=views(), workers=1)
        next(stream)
        children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
        with pytest.raises(RunError, match="lower --workers"):
            os.kill(int(children[-1]), signal.SIGKILL)
            list(stream)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_workers_outlive_a_signal_to_the_process_group(index, number):
    """The main process still has a step to finish and, among several ranks, a vote to take: it needs batches."""

    def work():
        os.setsid()
        signal.signal(number, signal.SIG_IGN)
        with ShardReader(index) as reader:
            stream = batches(plan_items(index) * 9, reader=reader, recipe=views(), workers=2)
            next(stream)
            os.killpg(0, number)
            return 1 + sum(1 for _ in stream)

    assert in_child(work) == 9 * len(plan_items(index))


def test_workers_are_given_reader_recipe_and_ring_and_nothing_else(index, monkeypatch):
    """A forked worker that could reach the cache could hang on a remote store."""
    works = []
    monkeypatch.setattr(
        "shards.views.rendering.in_workers", lambda work, *_, **__: works.append(work) or (n for n in ())
    )
    with ShardReader(index) as reader:
        list(batches(plan_items(index), reader=reader, recipe=views(), workers=2))
    assert set(inspect.getclosurevars(works[0]).nonlocals) == {"reader", "recipe", "ring"}
    assert BlockViews._fields == ("shard", "block", "views")


def test_one_view_of_a_block_is_the_block_in_that_view(index):
    """What stage 1 takes of a unit's block is what stage 2 renders, partners counted within the view."""
    with ShardReader(index) as reader:
        block = render_block(reader, views(), 0, 0, range(4, 6))
        for position, view in enumerate(range(4, 6)):
            assert same(block.one_view(position, 2), render_block(reader, views(), 0, 0, [view]))
        assert same(block, render_blocks(reader, views(), [BlockViews(0, 0, range(4, 6))]))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_gives_the_batch_of_every_position_however_it_is_walked(index, workers):
    """In order from one set of workers; a jump ends them and others begin there."""
    tasks, starts = plan_items(index), []

    def tasks_from(position):
        starts.append(position)
        yield from enumerate(tasks[position:], position)

    with ShardReader(index) as reader:
        expected = [render_blocks(reader, views(), task) for task in tasks]
        settings = {"reader": reader, "recipe": views(), "workers": workers, "died": RunError}
        stream = RenderedStream(tasks_from, partial(render_ahead, **settings))
        for position in (0, 1, 2, 1, 2, 3, 0, len(tasks) - 1, 0):
            assert same(stream.batch(position), expected[position])
        stream.close()
    assert starts == [0, 1, 0, len(tasks) - 1, 0]


def test_a_jump_renders_nothing_that_nobody_asked_for(index, monkeypatch):
    """Without workers a stream renders the batches that are taken, and no other to find its place."""
    tasks, rendered = plan_items(index), []
    render = rendering.render_blocks
    monkeypatch.setattr(rendering, "render_blocks", lambda *a: rendered.append(a[2]) or render(*a))
    with ShardReader(index) as reader:
        start = partial(render_ahead, reader=reader, recipe=views(), workers=0, died=RunError)
        stream = RenderedStream(lambda first: enumerate(tasks[first:], first), start)
        for position in (0, 1, 0, len(tasks) - 1, 0):
            stream.batch(position)
        stream.close()
    assert len(rendered) == 5


def test_a_process_that_forgets_its_stream_still_ends(index):
    """Workers ignore SIGTERM, which is how multiprocessing would end them at exit: it would wait for ever."""
    script = (
        "import sys; from pathlib import Path\n"
        "from shards.index.shard_index import ShardIndex\n"
        "from tests.test_shards_rendering import ShardReader, batches, plan_items, views\n"
        "index = ShardIndex.load(Path(sys.argv[1]))\n"
        "stream = batches(plan_items(index) * 9, reader=ShardReader(index), recipe=views(), workers=2); next(stream)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(index.path)], check=True, timeout=60)
