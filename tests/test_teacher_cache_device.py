"""Which device a rank has, under every way to start it; how a GPU's arithmetic is set; what torch's errors become."""

import contextlib
import dataclasses
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import click
import pytest
import torch
from click.testing import CliRunner

from cli import cli
from shards.commands.flags import precision_option
from shards.errors import advising, device_words, fewer_workers
from shards.world import World, world_from_env
from student.commands.flags import TrainingFlags
from student.feed.batch import Labels
from student.learn.process_group import ProcessGroup, process_group
from student.learn.trainer import Trainer
from student.recipe.settings import Precision, TrainSettings
from teacher_cache.commands.flags import RunsTeacher, announced_precision
from teacher_cache.inspect.verify import TOLERANCE
from teacher_cache.network.arithmetic import default_precision, faster_channels_last, require_deterministic
from teacher_cache.network.device import chosen_device, own_threads, rank_device
from teacher_cache.network.teacher import Teacher, TeacherOptions, load_teacher
from teacher_cache.store.spec import PRECISIONS
from tests.golden import SETS
from tests.student_tiny import BATCH, CLASSES, SIZE, linear_teacher, student_recipe, views

TEACHER = "teacher_cache.network.teacher"
STEP = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}
TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch):
    """A machine that shows some GPUs."""

    current = [0]

    @contextlib.contextmanager
    def device(name: str):
        before, current[0] = current[0], torch.device(name).index or 0
        yield
        current[0] = before

    def shown(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "device", device)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])

    return shown


@pytest.mark.parametrize(
    ("environ", "visible", "expected"),
    [
        (STEP, 1, "cuda:0"),  # srun --gpus-per-task=1: each task sees its own GPU as number 0
        (STEP, 4, "cuda:1"),  # srun --gpus-per-node=4: each task sees all of them
        (TORCHRUN, 4, "cuda:1"),
        (TORCHRUN, 1, "cuda:0"),  # CUDA_VISIBLE_DEVICES=3 for all ranks: they share one
        ({}, 8, "cuda:0"),
    ],
)
def test_a_rank_takes_a_gpu_that_it_can_see(gpus, environ: dict[str, str], visible: int, expected: str) -> None:
    """All ranks but the first die where `cuda:LOCALID` is taken and the scheduler shows one GPU each."""
    gpus(visible)
    assert rank_device(None, world_from_env(environ)) == torch.device(expected)
    assert rank_device("cuda", world_from_env(environ)) == torch.device(expected)
    assert rank_device("cpu", world_from_env(environ)) == torch.device("cpu")


def test_every_local_rank_has_a_gpu_of_its_own_where_there_are_enough(gpus) -> None:
    gpus(8)
    taken = [rank_device("cuda", World(rank, 16, rank % 8, 8)) for rank in range(16)]
    assert len(set(taken[:8])) == 8 and taken[:8] == taken[8:]


@pytest.mark.parametrize(
    ("device", "visible", "world", "message"),
    [
        ("cuda", 0, World(), "not available here"),
        ("cuda:2", 2, World(), "shows 2 GPUs"),
        ("cuda:1", 2, World(0, 2, 0, 2), "2 ranks would share one GPU"),
        ("mps", 0, World(), "mps is not supported yet"),
        ("xpu:0", 0, World(), "xpu is not supported yet"),
        ("tpu", 0, World(), "expected cpu, cuda or cuda:N, got 'tpu'"),
        ("cuda:x", 2, World(), "expected cpu, cuda or cuda:N"),
        ("cpu:0", 0, World(), "expected cpu, cuda or cuda:N"),
    ],
)
def test_other_devices_are_refused_by_name(gpus, device: str, visible: int, world: World, message: str) -> None:
    gpus(visible)
    with pytest.raises(ValueError, match=message):
        rank_device(device, world)


def test_a_gpu_may_be_named(gpus) -> None:
    gpus(2)
    assert chosen_device("cuda:1") == "cuda:1" and rank_device("cuda:1", World()) == torch.device("cuda:1")
    gpus(0)
    assert rank_device(None, World()) == torch.device("cpu")


def test_a_process_alone_on_a_gpu_opens_no_context_on_the_first_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """What names no device, such as page-locking, goes to the current one: eight sweeps on eight GPUs filled GPU 0."""
    taken: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    absent = torch.device("cuda", 99)
    with process_group(World(), absent):
        assert taken == [absent]
    plain = linear_teacher(views())
    with pytest.raises((AssertionError, RuntimeError)):  # there is no such device here
        Teacher(plain._network, plain.spec, device=absent)
    assert taken == [absent, absent]


@pytest.mark.parametrize(
    ("device", "workers", "chosen", "expected"),
    [
        ("cuda", 7, 0, 1),  # more would take turns with the workers
        ("cuda", 0, 0, 6),  # nobody else computes
        ("cuda", 0, 3, 6),  # threads of a run decide no number beside a GPU
        ("cpu", 1, 0, 6),  # of 8 CPUs the workers leave 7
        ("cpu", 5, 0, 3),
        ("cpu", 0, 0, 6),
        ("cpu", 9, 0, 1),
        ("cpu", 5, 2, 2),
        ("cpu", 5, 5, 5),  # a run keeps its threads, whatever the workers
        ("cpu", 0, 64, 6),
    ],
)
def test_torch_computes_in_as_many_threads_as_are_left(
    monkeypatch: pytest.MonkeyPatch, device: str, workers: int, chosen: int, expected: int
) -> None:
    """Of a machine with 8 CPUs and a process that may use 6 threads; afterwards as before."""
    threads = [6]
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1])
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr("shards.pool.cpus.rank_cpus", lambda *_, **__: 8)
    monkeypatch.setattr("teacher_cache.network.device.rank_cpus", lambda *_, **__: 8)
    with own_threads(torch.device(device), workers, World(), num_threads=chosen) as used:
        assert used == threads[-1] == expected
    assert threads[-1] == 6


@pytest.mark.parametrize(
    ("gpu", "bf16", "typed", "begun", "precision", "reason"),
    [
        (False, False, None, None, "fp32", "a CPU"),
        (True, True, None, None, "bf16", "this GPU computes in it"),
        (True, False, None, None, "fp16", "this GPU has no bf16"),
        (True, True, None, "fp32", "fp32", "as begun"),
        (False, False, None, "bf16", "bf16", "as begun"),
        (True, True, "tf32", "fp32", "tf32", ""),
    ],
)
def test_the_precision_is_the_typed_one_else_as_begun_else_the_devices(
    gpus, monkeypatch, capsys, gpu: bool, bf16: bool, typed: str, begun: str, precision: str, reason: str
) -> None:
    """What nobody typed is said with its reason; a run or cache goes on in its own precision on every machine."""
    gpus(int(gpu))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    chosen = announced_precision((chosen_device(None)), typed, existing=begun)
    assert chosen == precision
    first = f"precision {precision}: {reason}; --precision chooses another\n" if reason else ""
    assert capsys.readouterr().err == first


def test_the_default_precision_is_that_of_the_gpu_in_question(gpus, monkeypatch) -> None:
    """A machine with an old GPU as number 0 and a new one as number 1."""
    gpus(2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: torch.cuda.current_device() == 1)
    asked = {name: default_precision(name)[0] for name in ("cpu", "cuda", "cuda:0", "cuda:1")}
    assert asked == {"cpu": "fp32", "cuda": "fp16", "cuda:0": "fp16", "cuda:1": "bf16"}
    empty = {field.name: None for field in dataclasses.fields(TrainingFlags)}
    training = TrainingFlags(
        **empty | {"device": "cuda:1", "workers": 0, "log_every": 1, "accumulate": 1, "checkpoint_every": 0}
    )
    with click.Context(cli):
        assert training.settings(run_precision=None).precision == "bf16"
    teacher = SimpleNamespace(load=lambda *_, precision, **__: precision)
    empty = {field.name: None for field in dataclasses.fields(RunsTeacher)}
    assert RunsTeacher(**empty | {"device": "cuda:1"}).load(teacher, None, None) == "bf16"


@pytest.mark.parametrize(
    ("majors", "local_size", "expected"),
    [
        ((8, 7), 2, "fp16"),
        ((7, 8), 2, "fp16"),
        ((8, 9, 7), 3, "fp16"),
        ((8, 9), 2, "bf16"),
        ((7, 7), 2, "fp16"),
        ((8, 8, 7), 2, "bf16"),  # no rank takes the third
        ((8, 7), 1, "bf16"),  # nor the second
        ((8,), 4, "bf16"),  # the scheduler shows each rank one of its own
    ],
)
def test_the_ranks_of_a_machine_have_one_default_precision_that_all_their_gpus_have(
    gpus, monkeypatch: pytest.MonkeyPatch, majors: tuple[int, ...], local_size: int, expected: str
) -> None:
    """Each rank took the default of GPU 0, also one whose own GPU has no bf16."""
    gpus(len(majors))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: (majors[number], 0))
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: majors[torch.cuda.current_device()] >= 8
    )
    worlds = [World(rank, local_size, rank, local_size) for rank in range(local_size)]
    assert {default_precision("cuda", world)[0] for world in worlds} == {expected}


def test_every_precision_has_its_flag_its_setting_its_teacher_and_its_tolerance() -> None:
    """One list in four rooms: a flag that the library refuses, or a cache that cannot be verified, is a hole."""
    (option,) = precision_option(lambda: None).__click_params__
    assert tuple(option.type.choices) == get_args(Precision) == PRECISIONS == tuple(TOLERANCE)


ARITHMETIC = """
import os
import torch
{setup}
from teacher_cache.network.arithmetic import gpu_arithmetic, require_deterministic
new = hasattr(torch.backends.cudnn, "conv")
conv, matmul = torch.backends.cudnn.conv if new else torch.backends.cudnn, torch.backends.cuda.matmul
name = "fp32_precision" if new else "allow_tf32"
def state():
    return getattr(conv, name), getattr(matmul, name), torch.backends.cudnn.benchmark
def asked(read):
    try:
        return read()
    except RuntimeError:
        return "raises"
def answers():
    questions = (lambda: matmul.allow_tf32, lambda: torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision)
    return [asked(question) for question in questions]
before, answers_before = state(), answers()
for tf32 in (False, True):
    with gpu_arithmetic(tf32=tf32):
        assert state() == ((("ieee", "tf32")[tf32],) * 2 if new else (tf32,) * 2) + (True,), state()
        assert answers() == [tf32, tf32, ("highest", "high")[tf32]], answers()
    assert state() == before, (before, state())
    assert answers() == answers_before, (answers_before, answers())
def kernels():
    cudnn = torch.backends.cudnn
    return (cudnn.benchmark, cudnn.deterministic, torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(), torch.utils.deterministic.fill_uninitialized_memory)
before = state(), kernels()
require_deterministic()
with gpu_arithmetic(tf32=True, benchmark=True, deterministic=True):
    assert kernels() == (False, True, True, False, False), kernels()
assert (state(), kernels()) == before, (before, state(), kernels())
assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
"""


@pytest.mark.parametrize(
    "setup",
    [
        "",
        "torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True",
        "torch.set_float32_matmul_precision('high')",
        "if hasattr(torch.backends, 'fp32_precision'): torch.backends.cuda.matmul.fp32_precision = 'tf32'",
        "if hasattr(torch.backends, 'fp32_precision'): torch.backends.fp32_precision = 'ieee'",
        "if hasattr(torch.backends, 'fp32_precision'): torch.backends.fp32_precision = 'tf32'",
        "if hasattr(torch.backends, 'fp32_precision'): torch.backends.cudnn.conv.fp32_precision = 'ieee'",
        "torch.use_deterministic_algorithms(True, warn_only=True)",
        "torch.backends.cudnn.benchmark = True",
    ],
)
def test_arithmetic_is_set_and_restored_whatever_the_process_has_used(setup: str) -> None:
    """Inside, both of torch's interfaces for TF32 answer: it raises where they differ, and torch.compile asks both."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ARITHMETIC.format(setup=setup)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-800:]


def test_a_workspace_in_which_sums_differ_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with pytest.raises(ValueError, match="--deterministic: expected CUBLAS_WORKSPACE_CONFIG unset or"):
        require_deterministic()


@pytest.mark.parametrize("deterministic", [False, True])
def test_every_forward_has_the_kernels_that_were_chosen(monkeypatch: pytest.MonkeyPatch, deterministic: bool) -> None:
    """The student's steps, and the teacher's answers in both stages: one that picks by timing would change the bits."""
    chosen: dict[str, tuple[bool, bool]] = {}

    def noted(name: str):
        def arithmetic(*_: object, benchmark: bool = False, deterministic: bool = False):
            chosen[name] = (benchmark, deterministic)
            return contextlib.nullcontext()

        return arithmetic

    for name in ("student.learn.trainer", "teacher_cache.network.teacher"):
        monkeypatch.setattr(f"{name}.arithmetic", noted(name))
    settings = TrainSettings(deterministic=deterministic)
    group = ProcessGroup(World(), torch.device("cpu"))
    student = Trainer(student_recipe(distill="none"), settings, num_classes=CLASSES, steps_per_epoch=4, group=group)
    image_BCHW = torch.zeros(BATCH, 3, SIZE, SIZE)
    student.feed(image_BCHW, Labels.of(torch.arange(BATCH) % CLASSES), None, step=0)
    plain = linear_teacher(views())
    plain.deterministic = deterministic
    plain.logits(image_BCHW)
    assert chosen == {
        "student.learn.trainer": (False, deterministic),
        "teacher_cache.network.teacher": (not deterministic, deterministic),
    }


class Anywhere(torch.nn.Conv2d):
    """A network that is wherever it is sent; a forward pass takes as long as its layout says on a clock of its own."""

    def __init__(self, seconds: dict[torch.memory_format, float]) -> None:
        super().__init__(3, 2, 3)
        self.seconds, self.now = seconds, 0.0

    def to(self, *_: object, memory_format: torch.memory_format | None = None, **__: object) -> "Anywhere":
        return self if memory_format is None else super().to(memory_format=memory_format)

    def forward(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        layouts = [layout for layout in self.seconds if image_BCHW.is_contiguous(memory_format=layout)]
        assert len(layouts) == 1 and self.weight.is_contiguous(memory_format=layouts[0]), "weights lie as the images do"
        if self.seconds[layouts[0]] == float("inf"):
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.now += self.seconds[layouts[0]]
        return image_BCHW.mean((2, 3))


@pytest.mark.parametrize(
    ("last_s", "first_s", "is_last"),
    [
        (1.0, 0.5, False),
        (0.5, 1.0, True),
        (1.0, 0.99, True),  # what a clock cannot tell apart is not left to it
        (1.0, float("inf"), True),
    ],
)
def test_the_layout_of_images_is_the_one_that_is_faster(
    monkeypatch: pytest.MonkeyPatch, last_s: float, first_s: float, is_last: bool
) -> None:
    network = Anywhere({torch.channels_last: last_s, torch.contiguous_format: first_s})
    monkeypatch.setattr("teacher_cache.network.arithmetic.time.perf_counter", lambda: network.now)
    before = torch.get_rng_state()
    assert faster_channels_last(network, 8, "fp32", torch.device("cpu")) is is_last
    assert torch.equal(torch.get_rng_state(), before), "random numbers of the caller's loop are its own"


@pytest.mark.parametrize("text", ["CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling", "shape mismatch"])
def test_timing_a_layout_ends_in_silence_where_memory_is_full_and_there_alone(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """cuBLAS and cuDNN say it in a RuntimeError; torch 2.4 has no torch.OutOfMemoryError."""
    monkeypatch.delattr(torch, "OutOfMemoryError")
    network = Anywhere({})
    monkeypatch.setattr(network, "forward", lambda _: (_ for _ in ()).throw(RuntimeError(text)))
    times = partial(faster_channels_last, network, 8, "fp32", torch.device("cpu"))
    if "ALLOC" in text:
        assert times()
    else:
        with pytest.raises(RuntimeError, match=text):
            times()


@pytest.mark.parametrize(
    ("options", "timed"),
    [({}, True), ({"deterministic": True}, False), ({"compile": True}, False)],
)
def test_a_layout_is_timed_on_gpus_where_nothing_else_decides_it(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, bool], timed: bool
) -> None:
    """The network and its weights are put nowhere: there is no GPU here."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    asked, given = [], {}
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, *_, **__: module)
    monkeypatch.setattr(f"{TEACHER}.faster_channels_last", lambda *words: asked.append(words[1:]) or False)
    monkeypatch.setattr(f"{TEACHER}.Teacher", lambda *_, **words: given.update(words) or SimpleNamespace())
    for kind in ("cpu", "cuda"):
        load_teacher(
            "test_resnet",
            num_classes=3,
            device=kind,
            input_size=32,
            options=TeacherOptions(pretrained=False, **options),
        )
        on_gpu = timed and kind == "cuda"
        assert asked == [(32, "fp32", torch.device(kind))] * on_gpu and given["channels_last"] is not on_gpu


def test_a_run_says_in_its_identity_that_its_bits_are_the_same_at_every_run() -> None:
    """One that goes on without the flag would keep a promise for half of its steps; older runs say nothing."""
    assert "deterministic" not in TrainSettings().identity() and "deterministic" not in TrainSettings().to_json()
    assert TrainSettings(deterministic=True).identity()["deterministic"] is True


@pytest.mark.parametrize("name", ["train-student", "train-teacher", "ablate", "cache-teacher", "plan-cache"])
def test_every_command_that_computes_for_long_has_the_flag(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None and "deterministic" in {param.name for param in command.params}


def test_a_warning_about_a_teacher_in_the_loop_is_said_once(tmp_path: Path) -> None:
    """It computes as the run does, which has said what is slow or without effect. The weights fit another network."""
    words = ["train-student", "--shards", f"{SETS[0]}/train", "--online", "--teacher", "test_resnet", "--out"]
    words += [str(tmp_path / "run"), "--teacher-weights", f"{SETS[0]}/teacher.safetensors", "--model", "test_resnet"]
    words += ["--epochs", "1", "--distill", "hard", "--device", "cpu", "--deterministic", "--precision", "fp16"]
    said = CliRunner().invoke(cli, words).output
    assert "do not fit test_resnet" in said
    assert said.count("--deterministic on the CPU") == said.count("--precision fp16 on the CPU") == 1, said


FULL = (
    "CUDA out of memory. Tried to allocate 2.25 GiB. GPU 3 has a total capacity of 39.39 GiB of which 1.20 GiB is "
    "free. Including non-PyTorch memory, this process has 38.17 GiB memory in use."
)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError(FULL), "cuda:3: 2.25 GiB more do not fit, 1.20 GiB of 39.39 GiB are free; lower"),
        (torch.OutOfMemoryError("CUDA error: out of memory"), "the GPU's memory is full; lower --batch-size"),
        (RuntimeError("CUDA error: out of memory"), "the GPU's memory is full; lower --batch-size"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "GPU's memory is"),
        (torch.distributed.DistBackendError("NCCL error in: x\nmore"), r"is gone \(NCCL error in: x\); look at"),
        (
            torch.distributed.DistBackendError(
                "NCCL error in: x\nDuplicate GPU detected : rank 0 and rank 1 both on 17"
            ),
            r"two processes share one GPU, .*Duplicate GPU .*MIG instances of a GPU count as one\. Start one process",
        ),
        (torch.distributed.DistNetworkError("The client socket has timed out"), "another rank, or the network"),
        (RuntimeError("max_x does not have a deterministic implementation, but you set"), "--deterministic: .*max_x"),
        (RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer"), "is gone"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            "not enough memory; lower .* with more$",
        ),
        (RuntimeError("can't start new thread"), r"not enough memory; .*ulimit -u.*\(can't start new thread\)"),
        (
            ImportError("/tmp/x.so: failed to map segment from shared object"),
            r"not enough .*noexec \(/tmp/x\.so: failed",
        ),
        (
            RuntimeError("could not create a primitive descriptor for a matmul primitive"),
            r"not enough .*--precision fp32: .* \(could not create a primitive descriptor for a matmul",
        ),
        (SystemError("error return without exception set"), r"not enough .*--debug \(error return without"),
    ],
)
def test_full_memory_and_a_lost_rank_are_no_defects(error: Exception, words: str) -> None:
    with pytest.raises(Exception, match=words):
        raise Exception(device_words(error))


def test_too_many_workers_are_called_as_the_caller_gives_them() -> None:
    """A loop of one's own has an argument, most commands a flag, and some have neither."""
    assert fewer_workers() == "fewer workers"
    for flags, words in (({"--workers"}, "fewer --workers"), (set[str](), "fewer processes at once")):
        with advising(flags):
            assert fewer_workers() == words


def test_other_errors_stay_defects() -> None:
    assert device_words(RuntimeError("shape mismatch")) is None
    assert device_words(KeyError("NCCL")) is None
