"""Which variables make a world: those of ranks that meet for everyone, those of tasks that share a list for two."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from shards.world import World, has_own_output, require_completions, world_from_env, world_variables

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
ARRAY = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "5"}
BATCH = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}
STEP = {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_LOCALID": "3", "SLURM_STEP_ID": "0"}
SPREAD = {"SLURM_STEP_TASKS_PER_NODE": "2(x3),1", "SLURM_NODEID": "1"}
POD = {"JOB_COMPLETION_INDEX": "2", "JOB_COMPLETIONS": "16"}
CASES = [
    (POD, World(), World(2, 16), ""),
    (POD | TORCHRUN, World(1, 4, 1, 2), World(1, 4, 1, 2), "RANK=1, WORLD_SIZE=4"),
    ({}, World(), World(), ""),
    (TORCHRUN, World(1, 4, 1, 2), World(1, 4, 1, 2), "RANK=1, WORLD_SIZE=4"),
    (ARRAY, World(), World(2, 4), ""),
    (BATCH, World(), World(0, 8), ""),
    (STEP, World(3, 8, 3), World(3, 8, 3), "SLURM_PROCID=3, SLURM_NTASKS=8"),
    (STEP | SPREAD, World(3, 8, 3, 2), World(3, 8, 3, 2), "SLURM_PROCID=3, SLURM_NTASKS=8"),
    (STEP | SPREAD | {"SLURM_NODEID": "3"}, World(3, 8, 3, 1), World(3, 8, 3, 1), "SLURM_PROCID=3, SLURM_NTASKS=8"),
    (BATCH | SPREAD, World(), World(0, 8), ""),
    (ARRAY | BATCH, World(), World(2, 4), ""),
    (ARRAY | STEP, World(3, 8, 3), World(2, 4), "SLURM_PROCID=3, SLURM_NTASKS=8"),
    (ARRAY | TORCHRUN, World(1, 4, 1, 2), World(1, 4, 1, 2), "RANK=1, WORLD_SIZE=4"),
]


@pytest.mark.parametrize(("environ", "meeting", "shared", "said"), CASES)
def test_an_array_is_a_world_only_for_those_who_share_a_list(
    environ: dict[str, str], meeting: World, shared: World, said: str
) -> None:
    """A training in each task of an array is a run of its own; as ranks they would wait for each other for ever."""
    assert world_from_env(environ) == meeting
    assert world_from_env(environ, shared=True) == shared
    assert world_variables(environ) == said
    assert bool(world_variables(environ, shared=True)) == (shared.size > 1)


@pytest.mark.parametrize(("changes", "name"), [({"RANK": "x"}, "RANK"), ({"RANK": "4"}, "RANK")])
def test_a_wrong_variable_is_named(changes: dict[str, str], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        world_from_env(TORCHRUN | changes)


HALVES = [{"RANK": "0"}, {"RANK": "1"}, {"WORLD_SIZE": "4"}, {"WORLD_SIZE": ""}]


@pytest.mark.parametrize("half", HALVES, ids=repr)
def test_half_a_pair_is_refused_where_it_decides_and_nothing_else_says_the_place(half: dict[str, str]) -> None:
    """Each of several processes would train, or answer, everything; torch refuses it in the same way."""
    ((name, value),) = half.items()
    (other,) = {"RANK", "WORLD_SIZE"} - {name}
    for shared in (False, True):
        with pytest.raises(ValueError, match=f"^{name}={value} is set, but {other} is not.*Feed.* unset {name}$"):
            world_from_env(half, shared=shared)
        assert world_from_env(half, shared=shared, decides=False) == World()
        assert world_from_env(half | STEP, shared=shared) == World(3, 8, 3), "a script exports it for srun"
    assert world_from_env(half | ARRAY, shared=True) == World(2, 4)
    with pytest.raises(ValueError, match=name):
        world_from_env(half | ARRAY)
    assert world_from_env({"WORLD_SIZE": "1"}) == World()


@pytest.mark.parametrize(
    ("environ", "own"), [(ARRAY, True), (POD, True), (TORCHRUN, False), (STEP, False), ({}, False)]
)
def test_tasks_of_an_array_and_pods_have_an_output_of_their_own(environ: dict[str, str], own: bool) -> None:
    """Ranks of torchrun and srun share one, in which the first speaks for all."""
    assert has_own_output(environ) == own


def test_an_interactive_step_of_a_larger_job_is_one_process():
    """`srun --pty -n1` in an allocation of four tasks: the job's number is not the step's."""
    left = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}
    assert world_from_env(left).size == 4
    assert world_from_env({**left, "SLURM_STEP_NUM_TASKS": "1"}) == World()


def test_a_pod_that_does_not_know_how_many_there_are_is_told_what_to_add() -> None:
    """Each of them would compute the whole cache."""
    with pytest.raises(ValueError, match="JOB_COMPLETIONS to the container's `env`"):
        require_completions({"JOB_COMPLETION_INDEX": "2"})
    for environ in ({}, POD, {"JOB_COMPLETION_INDEX": "2"} | TORCHRUN):
        require_completions(environ)


ROOT = Path(__file__).parents[1]
KUBERNETES = ROOT / "examples" / "kubernetes"


def manifests(kind: str = "Job") -> list[dict[str, Any]]:
    """The documents of one kind in the examples, as Kubernetes would read them."""
    documents = [
        document
        for file in sorted(KUBERNETES.glob("*.yaml"))
        for document in yaml.safe_load_all(file.read_text(encoding="utf-8"))
    ]
    return [document for document in documents if document["kind"] == kind]


def test_the_manifests_say_to_each_pod_how_many_there_are() -> None:
    """Kubernetes sets the index of a pod of an Indexed Job, and nothing else."""
    caching, training = manifests()
    for job in (caching, training):
        spec = job["spec"]
        (container,) = spec["template"]["spec"]["containers"]
        environ = {item["name"]: item["value"] for item in container.get("env", ())}
        environ["JOB_COMPLETION_INDEX"] = str(spec["completions"] - 1)
        assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"]
        assert spec["template"]["spec"]["restartPolicy"] == "Never"  # each exit makes a new pod, of the same index
        if job is caching:
            assert world_from_env(environ, shared=True) == World(spec["completions"] - 1, spec["completions"])
        else:
            command = " ".join(container["command"])
            assert f"--nnodes {spec['completions']} " in command and "--node-rank $JOB_COMPLETION_INDEX" in command
            service = f"{job['metadata']['name']}-0.{spec['template']['spec']['subdomain']}"
            assert f"--master-addr {service}" in command


def test_ranks_find_the_first_before_all_pods_are_ready() -> None:
    """Without `publishNotReadyAddresses` a name exists only once its pod is ready, and ranks end at an unknown host."""
    services = {service["metadata"]["name"]: service["spec"] for service in manifests("Service")}
    for job in manifests():
        pod = job["spec"]["template"]["spec"]
        if "subdomain" in pod:
            service = services.pop(pod["subdomain"])
            assert service["clusterIP"] == "None" and service["publishNotReadyAddresses"] is True
            assert service["selector"] == {"job-name": job["metadata"]["name"]}
    assert not services, "each service belongs to a job"


def test_the_image_holds_what_the_manifests_run() -> None:
    """Nobody said how it is built: `deit-cache`, and cli.py in the folder where the training starts."""
    lines = [line.split() for line in (KUBERNETES / "Dockerfile").read_text(encoding="utf-8").splitlines() if line]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    copied = {name for word, *names, _ in lines if word == "COPY" for name in names}
    assert all((ROOT / name).exists() for name in copied)
    tools = project["tool"]["setuptools"]
    packages = {name.partition(".")[0] for name in tools["packages"]} | {f"{name}.py" for name in tools["py-modules"]}
    assert packages | {"pyproject.toml", "constraints.txt", project["project"]["readme"]} <= copied
    (extras,) = [word.strip("'.[]") for word in lines[-1] if "[" in word]
    assert set(extras.split(",")) <= set(project["project"]["optional-dependencies"])
    folder, version = (next(words[1] for words in lines if words[0] == key) for key in ("WORKDIR", "FROM"))
    minor = version.removeprefix("python:").partition("-")[0]
    assert f"Programming Language :: Python :: {minor}" in project["project"]["classifiers"]
    for job in manifests():
        (container,) = job["spec"]["template"]["spec"]["containers"]
        program = container["command"][0]
        assert program in project["project"]["scripts"] or container["workingDir"] == folder
