"""A SLURM cluster of one node for tests: munged, slurmctld and slurmd of its own in one folder, stopped at the end.

Needs root and Debian's `slurm-wlm` and `munge`; needs neither systemd nor cgroups. `absent()` says what is missing.
A requeued job waits `REQUEUE_S` seconds before it starts again; a real cluster's default is two minutes.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
REQUEUE_S = 6
_CPUS = 8  # more than there may be: the jobs of the tests sleep more than they compute

_CONFIG = """\
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire={requeue_s}
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
MinJobAge=86400
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=8000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def absent() -> str:
    """Why no cluster can be started here; "" where one can."""
    missing = [name for name in PROGRAMS if _program(name) is None]
    if missing:
        return f"SLURM is not installed (no {', '.join(missing)}): apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "slurmd must be root to start jobs, and this user is not"


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


class Cluster:
    """Use it in a `with`: the daemons run inside."""

    def __init__(self, folder: Path) -> None:
        """Everything of the cluster goes into this folder."""
        self.folder = folder.absolute()
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Cluster":
        """Write the configuration, start the daemons, wait until the node takes jobs."""
        for name in ("state", "spool"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        ports = _free_ports(2)
        host = socket.gethostname().partition(".")[0]
        (self.folder / "slurm.conf").write_text(
            _CONFIG.format(host=host, folder=self.folder, controller_port=ports[0], node_port=ports[1],
                           requeue_s=REQUEUE_S, cpus=_CPUS)
        )  # fmt: skip
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        try:
            self._start("munged", "--foreground", "--force", f"--socket={self.folder}/munge.socket",
                        f"--key-file={key}", f"--pid-file={self.folder}/munged.pid",
                        f"--log-file={self.folder}/munged.log", f"--seed-file={self.folder}/munged.seed")  # fmt: skip
            self._wait(lambda: (self.folder / "munge.socket").exists(), "munged")
            self._start("slurmctld", "-D")
            self._start("slurmd", "-D")
            self._wait(lambda: "idle" in self.run("sinfo", "-h", "-o", "%T", check=False), "slurmd")
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Cancel what runs and stop the daemons."""
        self.run("scancel", "--user=root", check=False)
        time.sleep(1)
        self._stop()

    @property
    def environ(self) -> dict[str, str]:
        """The environment of a user of this cluster."""
        return {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def run(self, *words: str, check: bool = True) -> str:
        """The output of a command of SLURM."""
        done = subprocess.run(words, env=self.environ, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, script: Path, *words: str) -> int:
        """Hand in a batch script; the number of the job."""
        return int(self.run("sbatch", "--parsable", *words, str(script)).strip())

    def jobs(self, job: int) -> list[dict[str, str]]:
        """What SLURM knows of a job: one dictionary for each task of an array."""
        said = self.run("scontrol", "-o", "show", "job", str(job))
        return [dict(word.partition("=")[::2] for word in line.split()) for line in said.splitlines() if line]

    def wait(self, job: int, timeout_s: float = 240.0) -> list[dict[str, str]]:
        """The same once every task has ended for good."""
        until = time.monotonic() + timeout_s
        while True:
            jobs = self.jobs(job)
            if all(item["JobState"] in ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL") for item in jobs):
                return jobs
            states = {item.get("ArrayTaskId", "0"): item["JobState"] for item in jobs}
            assert time.monotonic() < until, f"job {job} has not ended after {timeout_s:g} s: {states}"
            time.sleep(0.5)

    def _start(self, program: str, *words: str) -> None:
        path = _program(program)
        assert path is not None, absent()
        with open(self.folder / f"{program}.out", "wb") as out:
            self._daemons.append(
                subprocess.Popen([path, *words], env=self.environ, stdout=out, stderr=out, start_new_session=True)
            )

    def _wait(self, ready: Any, what: str, timeout_s: float = 30.0) -> None:
        until = time.monotonic() + timeout_s
        while not ready():
            said = (self.folder / f"{what}.out").read_text()[-2000:]
            assert time.monotonic() < until, f"{what} is not ready after {timeout_s:g} s: {said}"
            time.sleep(0.2)

    def _stop(self) -> None:
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in reversed(self._daemons):
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _free_ports(count: int) -> list[int]:
    found = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in found]
    for server in found:
        server.close()
    return ports
