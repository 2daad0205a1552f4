"""One rule says which failures of remote places are tried again, whatever is read and by which library."""

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from shards.errors import CacheError, ShardError
from shards.index import server_rules, transfer
from shards.index.transfer import TransferOrder, fetch
from teacher_cache.store.web import WebFileSystem


class _AnswerError(Exception):
    """A refusal as client libraries raise it: the status in an attribute, which each calls otherwise."""

    def __init__(self, name: str, status: int) -> None:
        super().__init__(f"{name} {status}")
        setattr(self, name, status)


FAILURES: list[tuple[BaseException, bool]] = [
    *((_AnswerError("status", status), True) for status in (408, 425, 429, 500, 502, 503, 504)),
    *((_AnswerError("status", status), False) for status in (301, 400, 401, 403, 404, 410, 416, 501, 505)),
    (_AnswerError("code", 503), True),
    (_AnswerError("code", 403), False),
    (_AnswerError("status_code", 429), True),
    (_AnswerError("status_code", 404), False),
    (_AnswerError("code", -1), True),
    (aiohttp.ClientPayloadError("cut"), True),
    (aiohttp.ServerDisconnectedError(), True),
    (TimeoutError("silence"), True),
    (ConnectionResetError(104, "reset"), True),
    (FileNotFoundError("no object"), False),
    (PermissionError("no key"), False),
    (ImportError("no library"), False),
    (CacheError("more than a chunk can have"), False),
    (ShardError("a redirect"), False),
]


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_rules, "PAUSE_S", 0.001)


def _requests_for_a_shard(error: BaseException, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    calls = []

    def fail(url: str) -> Any:
        calls.append(url)
        raise error

    monkeypatch.setattr(transfer, "_size_on_server", fail)
    with pytest.raises(ShardError):
        fetch(TransferOrder("https://server/shard.tar", "", -1, 5.0))
    return len(calls)


def _requests_for_an_object(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    calls = []

    async def fail(self: WebFileSystem, url: str, *_: object) -> bytes:
        calls.append(url)
        raise error

    async def ask() -> None:
        await WebFileSystem(asynchronous=True, skip_instance_cache=True)._cat_file("https://server/zarr.json")

    monkeypatch.setattr(WebFileSystem, "_body", fail)
    with pytest.raises(type(error)):
        asyncio.run(ask())
    return len(calls)


def test_shards_and_caches_are_asked_again_for_the_same_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = []
    for error, again in FAILURES:
        expected = server_rules.TRIES if again else 1
        got = _requests_for_a_shard(error, tmp_path, monkeypatch), _requests_for_an_object(error, monkeypatch)
        if got != (expected, expected):
            counted.append(f"{error!r}: expected {expected} requests, got {got[0]} for a shard, {got[1]} for an object")
    assert not counted, "\n".join(counted)
