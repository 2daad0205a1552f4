"""Locate a cache in a folder or an object store (`schemes`), and bound the requests to remote ones in time.

Everything here works on fsspec filesystems and names of objects; the array library is not known.
"""

import asyncio
import errno
import os
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from shards.atomic import replace_file
from shards.documents import NotRegularError, open_regular, read_regular
from shards.errors import CacheError, UnreachableError, is_no_memory, system_words, too_many_files
from teacher_cache.store.schemes import open_filesystem, scheme_of

METADATA_BYTES = 1 << 26
"""No object of metadata is larger; of chunks the layout says how large they can be."""

DEFAULT_TIMEOUT_S = 60.0
"""Longest wait for one object of a remote cache, seconds, retries of the client library included."""

_forked = False
_T = TypeVar("_T")


def _mark_forked() -> None:
    global _forked
    _forked = True


# Network clients keep sockets, locks and an event loop thread that a fork copies but does not continue: a forked
# child that used them would hang, so it is told instead. Spawned processes import this module anew and are free.
os.register_at_fork(after_in_child=_mark_forked)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A parsed location.

    Attributes:
        url: as given, without a trailing slash.
        folder: the local folder, or None for a remote place.
        timeout_s: longest wait for one object of a remote place, seconds.
    """

    url: str
    folder: Path | None
    timeout_s: float

    @classmethod
    def parse(cls, url: str | Path, *, writable: bool, timeout_s: float = DEFAULT_TIMEOUT_S) -> "Place":
        """Parse a path or url; ValueError for an unknown scheme, a read-only place to be written, a bad timeout."""
        if not timeout_s > 0:
            raise ValueError(f"timeout_s: expected more than 0 seconds, got {timeout_s}")
        text = str(url)
        scheme = urlsplit(text).scheme if "://" in text else ""
        if scheme in ("", "file"):
            folder = Path(text.removeprefix("file://"))
            return cls(url=str(folder), folder=folder, timeout_s=timeout_s)
        known_scheme = scheme_of(scheme, text)
        if writable and known_scheme.read_only:
            raise ValueError(f"{text}: a cache at {scheme}:// is read-only; {known_scheme.read_only}")
        return cls(url=text.rstrip("/"), folder=None, timeout_s=timeout_s)

    def filesystem(self) -> tuple[Any, str]:
        """An asynchronous fsspec filesystem of this remote place alone, and the path inside it.

        Errors:
            CacheError when the client library of the scheme is not installed or refuses the address.
        """
        self.refuse_forked()
        scheme = scheme_of(urlsplit(self.url).scheme, self.url)
        try:
            return open_filesystem(self.url, scheme)
        except ImportError as error:
            raise CacheError(f"{self.url}: {error}; {scheme.extra}") from error
        except Exception as error:
            raise CacheError(
                f"{self.url}: {type(error).__name__}: {error}; check the address and the credentials"
            ) from error

    def refuse_forked(self) -> None:
        """CacheError in a forked child if the place is remote."""
        if self.folder is None and _forked:
            raise CacheError(
                f"{self.url}: process {os.getpid()} was forked and must not touch a remote cache (its network client "
                "would hang): read units in the main process, or start workers with the 'spawn' method"
            )

    async def reach(self, key: str, work: Coroutine[Any, Any, _T]) -> _T:
        """Await one request for one object; CacheError naming the object when it fails or does not end in time."""
        try:
            self.refuse_forked()
        except CacheError:
            work.close()
            raise
        with self.reaching(key):
            if self.folder is not None:
                return await work
            return await asyncio.wait_for(work, self.timeout_s)

    @contextmanager
    def reaching(self, key: str) -> Iterator[None]:
        """Turn what goes wrong with one object into a CacheError that names it, and says whether it is damaged."""
        try:
            yield
        except CacheError:
            raise
        except Exception as error:
            if is_no_memory(error):
                raise
            if self.folder is not None and isinstance(error, OSError):
                raise _refused(f"{self.url}/{key}", error) from error
            if isinstance(error, TimeoutError):
                raise UnreachableError(
                    f"{self.url}/{key}: no answer within {self.timeout_s:g} s; check the server, or raise the timeout"
                ) from error
            raise UnreachableError(
                f"{self.url}/{key}: {type(error).__name__}: {error}; check that the place can be reached, has room "
                "and may be used with your permissions, then run the same command again"
            ) from error


@contextmanager
def naming(where: str, next_step: str) -> Iterator[None]:
    """Turn whatever a decoder raises into a CacheError that names the object and the next step."""
    try:
        yield
    except CacheError:
        raise
    except Exception as error:
        if is_no_memory(error) or too_many_files(error):
            raise
        raise CacheError(f"{where} is missing or damaged: {type(error).__name__}: {error}; {next_step}") from error


def _refused(where: str, error: OSError) -> CacheError:
    """The error of an object on a disk: damaged if it is no file or the disk cannot read it, else unreachable."""
    damaged = isinstance(error, NotRegularError) or error.errno == errno.EIO
    words = system_words(error)
    return (CacheError if damaged else UnreachableError)(words if words.startswith(where) else f"{where}: {words}")


async def close_filesystem(fs: Any) -> None:
    """Close the network session of a filesystem, if it ever opened one."""
    for name in ("_s3", "_session"):
        session = getattr(fs, name, None)
        if session is not None:
            await session.close()
            return


def write_file(path: Path, data: bytes) -> None:
    """Replace a file, whole and durably: no ledger entry may outlive its data. OSError where it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, data)


def read_file(path: Path, most_bytes: int = METADATA_BYTES) -> bytes | None:
    """The bytes of a regular file, None when there is none; CacheError when it cannot be read or is larger."""
    try:
        return read_regular(path, most_bytes=most_bytes)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _refused(str(path), error) from error


def require_readable(path: Path, most_bytes: int) -> None:
    """Refuse what a reader would wait for or read without end; CacheError. A missing file is no matter here."""
    try:
        with open_regular(path) as file:
            num_bytes = os.fstat(file.fileno()).st_size
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise _refused(str(path), error) from error
    if num_bytes > most_bytes:
        advice = "run verify-cache --repair, then cache-teacher"
        raise CacheError(f"{path}: expected at most {most_bytes} bytes, got {num_bytes}; {advice}")


def require_bounded(num_bytes: int, most_bytes: int, url: str) -> None:
    """Raise CacheError when so many bytes have come of an object that can have `most_bytes`."""
    if num_bytes > most_bytes:
        raise CacheError(
            f"{url}: expected at most {most_bytes} bytes, got more; the server does not send what belongs to this "
            "cache: check the address"
        )


def require_distinct(caches: Iterable[str | Path]) -> None:
    """ValueError where two spellings are of one cache, which would teach as two teachers."""
    seen: dict[str, str | Path] = {}
    for cache in caches:
        place = Place.parse(cache, writable=False)
        name = place.url if place.folder is None else os.path.realpath(place.folder)
        if name in seen:
            raise ValueError(
                f"cache: {cache} is the same cache as {seen[name]}; give each cache once (--teacher-weight says how "
                "much each of several teachers counts)"
            )
        seen[name] = cache
