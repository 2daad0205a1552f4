"""A loop of somebody's own: what it does to torch, tensors, threads and arguments changes no batch in silence."""

import copy
import pickle
import threading
from functools import partial

import pytest
import torch
import torch.distributed as dist

from shards.world import World
from student import Feed, FeedOptions, Teaching, base_loss, soft_loss
from student.feed import feed_options
from student.feed.answers import answer_from_logits, mixture
from student.feed.batch import Labels
from tests.student_tiny import BATCH, CLASSES, feed_of, in_child, in_children, make_cache, views, write_shards

SMALL = {"batch_size": BATCH, "repeats": 1, "workers": 0, "device": "cpu"}
KINDS = ("dense", "dense8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Shards, and a cache of 4 views of each kind of record."""
    folder = tmp_path_factory.mktemp("loop")
    index = write_shards(folder / "shards")
    for kind in KINDS:
        make_cache(folder / kind, index, views(), num_views=4, kind=kind).close()
    make_cache(folder / "hard", index, views(), num_views=4, kind="hard").close()
    return folder


def feed(folder, **changes):
    return feed_of(folder / "shards", **({"cache": folder / "dense"} | SMALL | changes))


def numbers(batch):
    """Every tensor of a batch: its type, its device and its bytes."""
    tensors = {**batch.as_dict(2.0), "one": batch.teacher.log_prob(1.0), "labelled": batch.labelled}
    tensors |= dict(zip(("classes", "log_probs"), batch.teacher.top(CLASSES), strict=True))
    return {name: (str(t.dtype), str(t.device), t.numpy().tobytes()) for name, t in tensors.items()}


def batches(folder, **changes):
    with feed(folder, **changes) as ours:
        return [numbers(batch) for batch in ours.epoch(0)]


@pytest.mark.parametrize("kind", KINDS)
def test_torchs_defaults_change_no_number_of_a_batch(folder, kind):
    """A loop that computes in another precision, or on another device, by default gets the same float32 batches."""

    def with_default(set_default):
        def work():
            set_default()
            return batches(folder, cache=folder / kind)

        return work

    defaults = [partial(torch.set_default_dtype, dtype) for dtype in (torch.float64, torch.bfloat16)]
    defaults += [partial(torch.set_default_device, "meta")]
    usual, *others = in_children([partial(batches, folder, cache=folder / kind), *map(with_default, defaults)])
    for default, other in zip(defaults, others, strict=True):
        assert other == usual, default


def test_what_a_loop_does_to_its_tensors_reaches_no_later_read(folder):
    """`log_prob(τ).exp_()` and the like: the next read of the same batch is the teacher's answer again."""
    with feed(folder) as one, feed(folder, cache=[folder / "dense", folder / "dense8"]) as several:
        for batch in (next(iter(ours.epoch(0))) for ours in (one, several)):
            before = numbers(batch)
            teacher = batch.teacher
            for tensor in (
                teacher.log_prob(2.0),
                teacher.log_prob(1.0),
                teacher.hard,
                *teacher.top(2),
                *teacher.top(CLASSES),
            ):
                tensor.zero_()
            batch.targets.zero_()
            assert numbers(batch) == before


def test_a_process_group_says_the_rank_before_the_environment_does(folder, monkeypatch):
    """torch.multiprocessing.spawn sets no variables: without this every rank would train on the whole batch."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    store = str(folder / "store")

    def rank_of(rank, given):
        def work():
            dist.init_process_group("gloo", init_method=f"file://{store}-{len(given)}", rank=rank, world_size=2)
            with feed(folder, **given) as ours:
                return ours.order.world[:2], [batch.keys for batch in ours.epoch(0)]

        return work

    with feed(folder) as whole:
        expected = [batch.keys for batch in whole.epoch(0)]
    (first, one), (second, two) = in_children([rank_of(0, {}), rank_of(1, {})])
    assert (first, second) == ((0, 2), (1, 2))
    assert [a + b for a, b in zip(one, two, strict=True)] == expected
    # What is given counts more: the ranks of a loop that splits a model see the same batches.
    given = {"rank": 0, "world_size": 1}
    assert in_children([rank_of(0, given), rank_of(1, given)]) == [((0, 1), expected)] * 2


@pytest.mark.parametrize(
    "env, group, gpus, expected",
    [
        (World(3, 8, 1, 2), None, 2, World(3, 8, 1, 2)),
        (World(3, 8, 1, 2), (3, 8), 2, World(3, 8, 1, 2)),
        (World(), (5, 8), 4, World(5, 8, 2, 4)),
        (World(), (5, 8), 0, World(5, 8, 0, 8)),
        (World(1, 4, 1, 4), (5, 8), 4, World(5, 8, 2, 4)),
        (World(3, 8, 1, 2), (0, 1), 2, World(0, 1, 1, 2)),  # eight models, each alone
    ],
)
def test_the_group_and_the_environment_are_one_world(env, group, gpus, expected, monkeypatch):
    """The launcher knows the local rank; elsewhere it is the GPU that the loop has chosen."""
    monkeypatch.setattr(feed_options, "world_from_env", lambda **_: env)
    rank, size = group or (0, 0)
    monkeypatch.setattr(dist, "is_initialized", lambda: group is not None)
    monkeypatch.setattr(dist, "get_rank", lambda: rank)
    monkeypatch.setattr(dist, "get_world_size", lambda: size)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    assert feed_options.this_world(None, None) == expected


def test_half_of_the_environments_pair_counts_only_where_the_loop_says_nothing(folder, monkeypatch):
    """Some platforms set WORLD_SIZE to the number of machines, and the loop starts its ranks itself."""
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert feed_options.this_world(1, 4) == World(1, 4)
    with pytest.raises(ValueError, match="RANK is not"):
        feed(folder)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 1)
    assert feed_options.this_world(None, None) == World()


def test_a_rank_may_name_its_gpu(folder, monkeypatch):
    """`device=f"cuda:{rank}"` is how a loop of one's own writes it; the commands refuse it for several ranks."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with feed(folder, device="cuda:1", rank=1, world_size=2, pin=False) as ours:
        assert ours.device == torch.device("cuda", 1)
    with pytest.raises(ValueError, match=r"^device: .* shows 2 GPUs .* got cuda:2"):
        feed(folder, device="cuda:2")


NOT_WHOLE = ("1", 1.0, None, True, [1], torch.tensor(1.5))


@pytest.mark.parametrize("value", NOT_WHOLE, ids=repr)
def test_a_wrong_argument_of_a_method_is_a_value_error_that_names_it(folder, value):
    """docs/python.md: a wrong argument is a ValueError."""
    with feed(folder) as ours:
        batch = next(iter(ours.epoch(0)))
        asks = [
            ("epoch", ours.epoch),
            ("epoch", ours.plan),
            ("first_step", lambda step: ours.epoch(0, first_step=step)),
            ("first_epoch", lambda epoch: ours.loader(2.0, first_epoch=epoch)),
            ("top", batch.teacher.top),
        ]
        for name, ask in asks:
            with pytest.raises(ValueError, match=rf"^{name}: expected "):
                ask(value)


@pytest.mark.parametrize(
    "value", ["3", [3.0], True, float("inf"), float("nan"), 0, -1, torch.tensor([1.0, 2.0])], ids=repr
)
def test_a_temperature_that_is_none_is_refused_where_it_is_given(folder, value):
    with feed(folder) as ours:
        batch = next(iter(ours.epoch(0)))
        asks = (batch.teacher.log_prob, batch.as_dict, ours.loader)
        for ask in (*asks, mixture([batch.teacher], [1.0]).log_prob, answer_from_logits(torch.zeros(1, 3)).log_prob):
            with pytest.raises(ValueError, match=r"temperature: expected a finite number above 0, got "):
                ask(value)


def test_a_cache_of_first_classes_is_refused_where_a_loader_asks_for_more(folder):
    with feed(folder, cache=folder / "hard") as ours:
        assert "teacher_hard" in next(iter(ours.loader()))
        with pytest.raises(ValueError, match=r"no probabilities.*batch\.teacher\.hard"):
            ours.loader(2.0)
    with feed(folder, cache=None, views=views()) as ours, pytest.raises(ValueError, match="no teacher"):
        ours.loader(2.0)


WRONG = {
    "options": ({"options": {"rank": 0}}, "options: expected a FeedOptions, got {'rank': 0}"),
    "weights of words": (lambda: Teaching(caches=("a", "b"), weights=("x", "y")), "expected 2 positive numbers"),
    "one weight for all": (lambda: Teaching(caches=("a", "b"), weights=0.5), "expected 2 positive numbers"),
    "views that repeats do not divide": ({"views_used": 3, "repeats": 2}, "repeats: must divide the 3 views"),
    "a missing device": ({"device": "cuda"}, "^device: cuda is not available"),
}


@pytest.mark.parametrize("wrong, message", WRONG.values(), ids=WRONG)
def test_other_wrong_arguments_are_value_errors_too(folder, wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong() if callable(wrong) else Feed(folder / "shards", **({"cache": folder / "dense"} | SMALL | wrong))


def test_folders_may_be_texts(folder, tmp_path):
    options = FeedOptions(scratch=str(tmp_path / "a b"), shard_cache=str(tmp_path))
    (tmp_path / "a b").mkdir()
    with Feed(str(folder / "shards"), cache=str(folder / "dense"), **SMALL, options=options) as ours:
        assert len(list(ours.epoch(0))) == 4
    assert len(Teaching(caches=str(folder / "dense"))) == len(Teaching(caches=[folder / "dense"])) == 1


def test_a_feed_says_why_it_cannot_go_to_another_process(folder):
    with feed(folder) as ours:
        batch = next(iter(ours.epoch(0)))
        for what in (ours, ours.epoch(0), ours.loader()):
            for send in (pickle.dumps, copy.deepcopy):
                with pytest.raises(TypeError, match="open a Feed in that process"):
                    send(what)
        for copied in (copy.copy(batch), copy.deepcopy(batch)):
            assert numbers(copied) == numbers(batch)
        sent = pickle.loads(pickle.dumps(batch.as_dict(2.0)))
        assert all(torch.equal(values, sent[name]) for name, values in batch.as_dict(2.0).items())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_feed_can_be_closed_while_another_thread_waits_for_a_batch(folder, workers):
    """Threads that fetch ahead are common; the `with` ends first when the loop breaks."""

    def work():
        ours, ended, began = feed(folder, workers=workers), [], threading.Event()

        def fetch():
            try:
                for epoch in range(10_000):
                    for _ in ours.epoch(epoch):
                        began.set()
            except ValueError as error:
                ended.append(str(error))

        thread = threading.Thread(target=fetch, daemon=True)
        thread.start()
        assert began.wait(60)
        ours.close()
        thread.join(60)
        return thread.is_alive(), ended

    alive, ended = in_child(work)
    assert not alive and len(ended) == 1 and ended[0].startswith("feed: ")


def test_losses_refuse_words_and_shapes_that_they_do_not_know():
    """Another word was taken for the default, and one row of logits was compared with all of the teacher's."""
    log_prob_BC = torch.zeros(4, CLASSES).log_softmax(-1)
    for logit_BC, reduction in ((log_prob_BC, "mean"), (log_prob_BC[:1], "textbook"), (log_prob_BC[:, :1], "textbook")):
        with pytest.raises(ValueError, match="expected "):
            soft_loss(logit_BC, log_prob_BC, temperature=2.0, reduction=reduction)
    labels = Labels.of(torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match="kind: expected cross_entropy or binary, got 'ce'"):
        base_loss(log_prob_BC, labels, kind="ce", smoothing=0.1)
