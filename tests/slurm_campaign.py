"""The scripts of examples/slurm on a SLURM cluster of one node: time limits, requeues, kills of job steps.

    python -m tests.slurm_campaign [--folder DIR] [--only NAME,…]

The scripts are run as they are; exchanged are the commands' arguments (small shards, small networks),
the paths, and the lines that ask for GPUs. What a time limit does is made to happen on time: a job gets one that is
near once it has something to lose. Needs what `tests.slurm_cluster` needs. Prints one line per scenario.
"""

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file, save_file

from teacher_cache.store.cache import TeacherCache
from tests.slurm_cluster import Cluster, absent
from tests.stage1_tiny import CLASSES, make_shards

ROOT = Path(__file__).parent.parent
SCRIPTS = ROOT / "examples" / "slurm"
TEACHER = "test_resnet"
VIEWS = ["--recipe", "deit", "--size", "32", "--set", "block_size=4", "--views-per-unit", "2", "--record", "dense"]
STUDENT = [
    "--model", "deit_tiny_distilled_patch16_224", "--epochs", "12", "--batch-size", "8", "--workers", "0",
    "--set", "repeats=1", "--set", "warmup_epochs=0", "--set", "lr=0.01", "--log-every", "1",
    "--checkpoint-every", "2", "--distill", "soft", "--tau", "2",
    *(f"--set=model_args.{arg}" for arg in ("patch_size=8", "embed_dim=16", "depth=1", "num_heads=2")),
]  # fmt: skip
# A job that lasts without computing: every forward of the teacher, every step of a student, is slept upon. Python runs
# this file when it starts, wherever it is on PYTHONPATH; it must not import what the commands import late.
SLEEPY = """
import importlib.abc, importlib.util, os, sys, time

class Sleepy(importlib.abc.MetaPathFinder):
    PLACES = {"teacher_cache.network.teacher": ("Teacher", "logits"), "student.learn.trainer": ("Trainer", "feed")}

    def find_spec(self, name, path=None, target=None):
        if name not in self.PLACES:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        sys.meta_path.insert(0, self)
        owner, method = self.PLACES[name]
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            awake = getattr(getattr(module, owner), method)
            def asleep(*args, **kwargs):
                time.sleep(float(os.environ["SLEEP_S"]))
                return awake(*args, **kwargs)
            setattr(getattr(module, owner), method, asleep)

        spec.loader.exec_module = exec_module
        return spec

if "SLEEP_S" in os.environ:
    sys.meta_path.insert(0, Sleepy())
"""


class Campaign:
    """The cluster, the material in one folder, and the scripts of examples/slurm."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        """Make shards and a teacher."""
        self.cluster, self.folder = cluster, folder
        (folder / "logs").mkdir(parents=True)
        (folder / "path").mkdir()
        (folder / "path" / "sitecustomize.py").write_text(SLEEPY)
        make_shards(folder / "train", num_samples=48, per_shard=16)
        torch.manual_seed(0)
        network = timm.create_model(TEACHER, num_classes=CLASSES)
        save_file(network.state_dict(), folder / "teacher.safetensors")

    def cache_command(self, cache: str, views: int) -> list[str]:
        """`cache-teacher` on the small shards."""
        return ["cache-teacher", "--shards", str(self.folder / "train"), "--cache", str(self.folder / cache),
                "--teacher", TEACHER, "--teacher-weights", str(self.folder / "teacher.safetensors"),
                "--views", str(views), *VIEWS, "--batch-size", "8", "--workers", "0"]  # fmt: skip

    def student_command(self, out: str, *more: str) -> list[str]:
        """`train-student` from the cache that the first scenario made."""
        return ["train-student", "--shards", str(self.folder / "train"), "--cache", str(self.folder / "array.zarr"),
                *STUDENT, "--out", str(self.folder / out), *more]  # fmt: skip

    def make_cache(self) -> None:
        """The cache that students train from, unless a scenario has made it."""
        if not TeacherCache.exists(self.folder / "array.zarr"):
            self.ended(self.submit("cache-teacher", self.cache_command("array.zarr", 24), array="0-0"))

    def calm_weights(self) -> dict[str, bytes]:
        """The weights of a run of two ranks that nothing disturbs."""
        if not (self.folder / "calm" / "summary.json").exists():
            self.make_cache()
            self.ended(self.submit("train-srun", self.student_command("calm"), ntasks="2"))
        return self.weights("calm")

    def script(self, name: str, command: list[str], **changes: str) -> Path:
        """The script of that name with this command; `changes` are exchanged literally."""
        text = example(name)
        python = sys.executable
        text = re.sub(r"^#SBATCH --(gpus|gpus-per-task|cpus-per-task|mem|time|output)=.*\n", "", text, flags=re.M)
        text = text.replace("source .venv/bin/activate", f"cd {ROOT}; export OMP_NUM_THREADS=1")
        words = " ".join(command)
        text, count = re.subn(r"cli\.py [a-z]+-?[a-z]* (?:[^&\n\\]|\\\n)*", lambda _: f"cli.py {words} ", text)
        assert count == 1, (name, count)
        text = text.replace("python cli.py", f"{python} cli.py")
        text = text.replace("torchrun --standalone", f"{python} -m torch.distributed.run --standalone")
        for flag, value in changes.items():
            text, count = re.subn(rf"--{flag.replace('_', '-')}[= ]\S+", f"--{flag.replace('_', '-')}={value}", text)
            assert count == 1, (name, flag, count)
        path = self.folder / f"{name}-{time.monotonic_ns()}.sh"
        path.write_text(text)
        return path

    def submit(self, name: str, command: list[str], *, sleep_s: float = 0.0, **changes: str) -> int:
        """Hand in a script; its log is logs/NAME-JOB-TASK.out."""
        log = f"--output={self.folder}/logs/{name}-%A-%a.out"
        paths = f"{self.folder / 'path'}:{ROOT}"
        environ = f"--export=ALL,PYTHONPATH={paths}" + (f",SLEEP_S={sleep_s}" if sleep_s else "")
        return self.cluster.submit(self.script(name, command, **changes), log, environ)

    def until(self, reached: Callable[[], bool], what: str, timeout_s: float = 120.0) -> None:
        """Wait; AssertionError with the logs when it does not come."""
        until = time.monotonic() + timeout_s
        while not reached():
            assert time.monotonic() < until, f"{what} did not come within {timeout_s:g} s\n{self.logs()}"
            time.sleep(0.3)

    def run_into_the_time_limit(self, job: int) -> None:
        """A limit so near that the signal is due, until every task has been requeued or has ended; then none."""
        elapsed = max(_minutes(item["RunTime"]) for item in self.cluster.jobs(job))
        self.cluster.run("scontrol", "update", f"JobId={job}", f"TimeLimit={elapsed + 2}")
        self.until(
            lambda: all(
                int(item["Restarts"]) > 0 or item["JobState"] == "COMPLETED" for item in self.cluster.jobs(job)
            ),
            f"the requeue of job {job}",
        )
        for item in self.cluster.jobs(job):
            if item["JobState"] in ("PENDING", "RUNNING"):
                self.cluster.run("scontrol", "update", f"JobId={item['JobId']}", "TimeLimit=30")

    def ended(self, job: int) -> list[dict[str, str]]:
        """The tasks of a job that must all have completed."""
        jobs = self.cluster.wait(job)
        assert all(item["JobState"] == "COMPLETED" for item in jobs), f"{[j['JobState'] for j in jobs]}\n{self.logs()}"
        return jobs

    def steps(self, out: str) -> int:
        """Steps that a run has logged so far."""
        path = self.folder / out / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return max((json.loads(line)["step"] for line in lines if '"step"' in line and line.endswith("}")), default=0)

    def weights(self, out: str) -> dict[str, bytes]:
        """A finished run's weights to the bit."""
        state = load_file(self.folder / out / "weights.safetensors")
        return {name: value.numpy().tobytes() for name, value in state.items()}

    def logs(self) -> str:
        """The ends of all logs, for messages."""
        files = sorted((self.folder / "logs").glob("*.out"))
        return "\n".join(f"--- {path.name}\n{path.read_text()[-1500:]}" for path in files)


def _minutes(clock: str) -> int:
    """Whole minutes of hh:mm:ss."""
    hours, minutes, _ = clock.rpartition("-")[2].split(":")
    return 60 * int(hours) + int(minutes)


def example(name: str) -> str:
    """The batch script of that job name."""
    script = (SCRIPTS / f"{name}.sh").read_text()
    assert script.startswith("#!/bin/bash\n") and script.count("--job-name=") == 1
    assert f"--job-name={name}\n" in script
    return script


def cache_teacher(campaign: Campaign) -> str:
    """An array meets its time limit, is requeued, and ends with nothing missing; one more run does no forward."""
    command = campaign.cache_command("array.zarr", 24)
    job = campaign.submit("cache-teacher", command, sleep_s=1.0, array="0-2")
    url = campaign.folder / "array.zarr"

    def committed() -> int:
        if not TeacherCache.exists(url):
            return 0
        with TeacherCache.open(url) as cache:
            return int((cache.ledger() != 0).sum())

    campaign.until(lambda: committed() > 0, "the first unit")
    before = committed()
    campaign.run_into_the_time_limit(job)
    tasks = campaign.ended(job)
    restarts = [int(task["Restarts"]) for task in tasks]
    with TeacherCache.open(url) as cache:
        assert cache.missing() == []
        units = int((cache.ledger() != 0).sum())
    again = campaign.submit("cache-teacher", command, array="0-0")
    campaign.ended(again)
    log = (campaign.folder / "logs" / f"cache-teacher-{again}-0.out").read_text()
    assert "0 teacher forwards" in log, log
    assert any(restarts), "no task was requeued"
    return f"{len(tasks)} tasks, {before} of {units} units before the limit, restarts {restarts}, then 0 forwards"


def train_srun(campaign: Campaign) -> str:
    """Two ranks meet the time limit, are requeued, lose a rank to SIGKILL, are handed in again: the same weights."""
    calm, command = campaign.calm_weights(), campaign.student_command("srun")
    job = campaign.submit("train-srun", command, sleep_s=0.8, ntasks="2")
    campaign.until(lambda: campaign.steps("srun") >= 3, "the third step")
    campaign.run_into_the_time_limit(job)
    first = campaign.steps("srun")
    campaign.until(lambda: campaign.steps("srun") >= first + 3, "three steps after the requeue")
    campaign.cluster.run("scancel", "--signal=KILL", f"{job}.0")
    (killed,) = campaign.cluster.wait(job)
    assert killed["JobState"] == "FAILED", f"{killed['JobState']}\n{campaign.logs()}"
    at = campaign.steps("srun")
    campaign.ended(campaign.submit("train-srun", command, ntasks="2"))
    assert campaign.weights("srun") == calm, "killed differs from uninterrupted"
    return (
        f"2 ranks: stopped by the limit at step {first}, the job step killed at step {at} "
        f"(exit {killed['ExitCode']}), handed in again: weights equal to the bit"
    )


def train_torchrun(campaign: Campaign) -> str:
    """The same under torchrun inside one task."""
    calm, command = campaign.calm_weights(), campaign.student_command("torchrun")
    job = campaign.submit("train-torchrun", command, sleep_s=0.8, nproc_per_node="2")
    campaign.until(lambda: campaign.steps("torchrun") >= 3, "the third step")
    campaign.run_into_the_time_limit(job)
    first = campaign.steps("torchrun")
    (ended,) = campaign.ended(job)
    assert campaign.weights("torchrun") == calm, "torchrun differs from srun"
    return f"2 ranks: stopped by the limit at step {first}, {ended['Restarts']} restart: the weights of srun to the bit"


def lambda_sweep(campaign: Campaign) -> str:
    """Tasks of an array are runs of their own: each equals the same run alone."""
    campaign.make_cache()
    sweep = campaign.student_command("sweep-$weight", "--lambda", "$weight")
    campaign.ended(campaign.submit("lambda-sweep", sweep, array="0-1"))
    alone = campaign.submit("lambda-sweep", campaign.student_command("alone", "--lambda", ".1"), array="0-0")
    campaign.ended(alone)
    assert campaign.weights("sweep-.1") == campaign.weights("alone")
    assert campaign.weights("sweep-0") != campaign.weights("alone")
    return "2 tasks, 2 runs of one process each, as if alone"


def ablate_spread(campaign: Campaign) -> str:
    """The cells of a grid over an array: every cell once, whoever trained it."""
    campaign.make_cache()
    command = ["ablate", "--spread", "--shards", str(campaign.folder / "train"), "--val-shards",
               str(campaign.folder / "train"), "--cache", str(campaign.folder / "array.zarr"), *STUDENT,
               "--lambda", "0,.5,.9", "--out", str(campaign.folder / "map")]  # fmt: skip
    command[command.index("--epochs") + 1] = "2"
    job = campaign.submit("ablate-spread", command, array="0-1")
    tasks = campaign.ended(job)
    cells = sorted(path.parent.name for path in (campaign.folder / "map").glob("cells/*/summary.json"))
    assert len(cells) == 3, f"{cells}\n{campaign.logs()}"
    return f"{len(tasks)} tasks trained {len(cells)} cells: {', '.join(cells)}"


SCENARIOS = {
    "cache-teacher": cache_teacher,
    "train-srun": train_srun,
    "train-torchrun": train_torchrun,
    "lambda-sweep": lambda_sweep,
    "ablate-spread": ablate_spread,
}
"""By the name of the script."""


def main() -> None:
    """Run the scenarios; exit code 0 only if everything held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where everything goes (default: a temporary folder)")
    parser.add_argument("--only", default=",".join(SCENARIOS))
    options = parser.parse_args()
    if absent():
        sys.exit(absent())
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        with Cluster(folder / "cluster") as cluster:
            campaign = Campaign(cluster, folder / "work")
            for scenario in [name for name in SCENARIOS if name in options.only.split(",")]:
                began = time.monotonic()
                said = SCENARIOS[scenario](campaign)
                print(f"{scenario}: {said} ({time.monotonic() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
