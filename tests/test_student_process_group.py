"""The process group: errors and answers of rank 0 reach all ranks, and nobody waits for a rank that failed."""

import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial

import pytest
import torch

from shards.errors import RunError
from shards.world import World
from student.learn import process_group as process_group_module
from student.learn.process_group import _require_own_gpus, meeting_place, process_group, unwrapped
from student.run.loop import _joining
from tests.student_tiny import in_children

CPU = torch.device("cpu")


def as_ranks(tmp_path, size, work):
    """`work(group)` on every rank of a gloo group."""

    def one(rank):
        with process_group(World(rank, size, rank, meeting=f"file://{tmp_path}/meet"), CPU) as group:
            return work(group)

    return in_children([partial(one, rank) for rank in range(size)])


def test_a_group_of_one_is_the_identity():
    """The single process pays nothing and meets nobody."""
    with process_group(World(), CPU) as group:
        value, model = torch.arange(3.0), torch.nn.Linear(2, 2)
        assert group.sum(value) is value and group.wrap(model) is model
        assert group.from_main(lambda: 7) == 7
        assert group.any_was_told_to_stop(True) and not group.any_was_told_to_stop(False)


def test_sums_and_objects_are_the_same_on_every_rank(tmp_path):
    """Metrics and checkpoints rest on it."""

    def work(group):
        own = torch.tensor([0.1 * (group.world.rank + 1)], dtype=torch.float64)
        return group.sum(own).item(), group.from_main(lambda: {"rank": group.world.rank}), own.item()

    results = as_ranks(tmp_path, 3, work)
    assert {(total, rank["rank"]) for total, rank, _ in results} == {(results[0][0], 0)}
    assert results[0][0] == pytest.approx(0.6)
    assert [own for _, _, own in results] == pytest.approx([0.1, 0.2, 0.3]), "the input is left alone"


def test_an_error_of_rank_0_is_raised_on_every_rank(tmp_path):
    """Else the others would wait for half an hour for a rank whose disk is full."""

    def fail():
        raise RunError("disk full")

    def work(group):
        with pytest.raises(RunError, match="disk full"):
            group.from_main(fail)
        return True

    assert as_ranks(tmp_path, 2, work) == [True, True]


@pytest.mark.parametrize("precisions", [("bf16", "fp16"), ("fp32", "fp32")])
def test_ranks_of_two_precisions_are_refused_on_every_rank(tmp_path, precisions):
    """Ranks on machines with other GPUs trained one network in two precisions, without a word."""

    def one(rank):
        try:
            meeting = World(rank, 2, rank, meeting=f"file://{tmp_path}/meet")
            with process_group(meeting, CPU, precision=precisions[rank]):
                return ""
        except ValueError as error:
            return str(error)

    (said, other) = in_children([partial(one, rank) for rank in range(2)])
    assert said == other
    assert ("rank 0 would compute in bf16, rank 1 in fp16" in said) == (len(set(precisions)) > 1) == bool(said)


def test_a_vote_is_heard_by_all_at_the_next_call(tmp_path):
    """Whichever rank is told, and whenever, the ranks answer alike at each call."""

    def work(group):
        return [group.any_was_told_to_stop(group.world.rank == 1 and call >= 2) for call in range(5)]

    assert as_ranks(tmp_path, 2, work) == [[False, False, False, True, True]] * 2


def test_wrapped_models_average_gradients_and_can_be_unwrapped(tmp_path):
    """The mean over ranks of equal batches is the gradient of the global batch."""

    def work(group):
        model = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.constant_(model.weight, float(group.world.rank))
        wrapped = group.wrap(model)
        wrapped(torch.tensor([[float(group.world.rank + 1)]])).sum().backward()
        return model.weight.item(), model.weight.grad.item(), unwrapped(wrapped) is model

    assert as_ranks(tmp_path, 2, work) == [(0.0, 1.5, True)] * 2


WAITING = """
import sys, torch
from shards.signals import requeue_at_once
from shards.world import world_from_env
from student.learn.process_group import process_group
with requeue_at_once():
    print("waits", flush=True)
    with process_group(world_from_env(), torch.device("cpu"), join_s=float(sys.argv[1])):
        print("joined", flush=True)
"""


def waiting_alone(rank, join_s):
    """A process that waits for ranks that never come, as in an interactive shell of a job of four tasks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    left = {"SLURM_STEP_ID": "0", "SLURM_PROCID": rank, "SLURM_NTASKS": "4", "MASTER_ADDR": "127.0.0.1"}
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, str(join_s)],
        env={**os.environ, **left, "MASTER_PORT": str(port)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout.readline() == "waits\n"
    return process


@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_who_waits_for_its_group_ends_on_the_first_signal(rank, number, code):
    """The waits of torch are in C++, where no handler of Python runs."""
    process = waiting_alone(rank, 300)
    time.sleep(1.0)
    process.send_signal(number)
    assert process.wait(timeout=20) == code
    assert "joined" not in process.stdout.read() and "Traceback" not in process.stderr.read()


@pytest.mark.parametrize("rank", ["0", "1"])
def test_who_waits_in_vain_gives_up_and_says_for_whom_it_waited(rank):
    """The variables of the situation, and the way out of it."""
    process = waiting_alone(rank, 2)
    said = process.stderr.read()
    assert process.wait(timeout=20) == 1
    for words in (
        "RunError: this process",
        f"SLURM_PROCID={rank}, SLURM_NTASKS=4",
        "127.0.0.1:",
        "the other 3",
        "env -u SLURM",
    ):
        assert words in said, said


@pytest.mark.parametrize(
    "known, said",
    [
        ({}, "MASTER_ADDR and MASTER_PORT are not set"),
        ({"MASTER_ADDR": "host"}, "MASTER_PORT is not set"),
        ({"MASTER_ADDR": "", "MASTER_PORT": "29500"}, "MASTER_ADDR is not set"),
    ],
)
def test_ranks_without_an_address_are_refused_before_they_say_where_they_wait(monkeypatch, known, said):
    """A SLURM array sets rank and size but no place to meet: "rank 0 of 2 waits at ?:?" helped nobody."""
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in known.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"{said}: start with `torchrun"), process_group(World(0, 2, 0), CPU):
        pass
    with pytest.raises(ValueError, match=said):
        list(_joining(World(0, 2, 0)))
    assert meeting_place(World(0, 2, meeting="file:///meet")) == "file:///meet"


def on_made_up_gpus(tmp_path, monkeypatch, gpus, work):
    """`work()` inside a group of ranks on GPUs that are not there, which meet over gloo; (answer, calls) of each."""
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    init, destroy, calls = torch.distributed.init_process_group, torch.distributed.destroy_process_group, []
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **how: init("gloo", **how))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: (calls.append("destroyed"), destroy()))
    monkeypatch.setattr(process_group_module, "leave_at_once", lambda: calls.append("leaves"))

    def one(rank):
        monkeypatch.setattr(process_group_module, "_gpu_name", lambda device: gpus[rank])
        world = World(rank, len(gpus), rank, meeting=f"file://{tmp_path}/meet")
        try:
            with process_group(world, torch.device("cuda", rank)):
                answer = work(rank)
        except (ValueError, RunError) as error:
            answer = str(error)
        return answer, calls

    return in_children([partial(one, rank) for rank in range(len(gpus))])


def test_a_rank_on_a_gpu_that_fails_waits_for_nobody(tmp_path, monkeypatch):
    """NCCL takes a group apart together; the others may be in a sum that waits for the rank that failed."""

    def work(rank):
        if rank == 1:
            raise RunError("disk full")
        return "fine"

    done = on_made_up_gpus(tmp_path, monkeypatch, ["GPU-a", "GPU-b"], work)
    assert done == [("fine", ["destroyed"]), ("disk full", ["leaves"])]


def test_two_ranks_on_one_gpu_are_refused_on_both_before_nccl_is(tmp_path, monkeypatch):
    """NCCL's own words are "invalid usage", and name a bus."""
    done = on_made_up_gpus(tmp_path, monkeypatch, ["GPU-a", "GPU-a"], lambda rank: "fine")
    assert done[0] == done[1] and done[0][1] == ["leaves"]
    assert "ranks 0 and 1 of 2 have the same GPU (GPU-a)" in done[0][0] and "--nproc-per-node" in done[0][0]
    _require_own_gpus(["", "", ""])
    _require_own_gpus(["GPU-a", "GPU-b", "GPU-c"])


GOODBYE = """
import atexit, sys
import cli
from shards.signals import leave_at_once
atexit.register(lambda: print("goodbye", flush=True))
if sys.argv.pop() == "at once":
    leave_at_once()
cli.program()
"""


@pytest.mark.parametrize(("how", "goodbye"), [("at once", ""), ("as usual", "goodbye\n")])
def test_a_process_that_leaves_at_once_says_what_happened_and_cleans_nothing_up(tmp_path, how, goodbye):
    """What libraries do at the end of a process may wait for other ranks."""
    words = [sys.executable, "-c", GOODBYE, "cache-status", str(tmp_path / "none.zarr"), how]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1 and "no cache here" in done.stderr and done.stdout == goodbye
