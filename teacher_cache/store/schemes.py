"""Table of the remote places that a cache can live in, and how each is opened through fsspec.

A cache needs little of a place: objects replaced whole, by name, many at once. Object stores can do that; what copies
files over one connection (ftp, sftp, smb) cannot, and is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from shards.errors import CacheError


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """What is known of a scheme.

    Attributes:
        read_only: why nothing is written there; "" where a cache can be made.
        options: for the constructor of its filesystem.
        extra: what installs the client library.
    """

    read_only: str = ""
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    extra: str = "install this project with its 'remote' extra"


_WEB = Scheme(read_only="write to a path, s3:// or gs://")
_AZURE = Scheme(extra="install this project with its 'azure' extra")
SCHEMES = {
    # With more than one request per object s3fs asks for the size first, and for a missing object it then lists.
    "s3": Scheme(options=MappingProxyType({"max_concurrency": 1})),
    "gs": Scheme(),
    "gcs": Scheme(),
    "az": _AZURE,
    "abfs": _AZURE,
    "abfss": _AZURE,
    "memory": Scheme(),
    "hf": Scheme(
        read_only="the hub makes a commit of every object that is written: copy-cache to a folder, with --card, and "
        "upload that folder in one commit with the hub's own tool",
        extra="install huggingface_hub",
    ),
    "https": _WEB,
    "http": _WEB,
}


_BOUNDED = ("s3", "gs", "gcs")
"""Schemes whose clients read an answer whole, however long: theirs are cut off as those of the web are."""
_FILE_SERVERS = ("ftp", "sftp", "ssh", "smb")


def scheme_of(name: str, where: str) -> Scheme:
    """The scheme of a url; ValueError, naming `where`, for one whose file system can hold no cache or is unknown."""
    if name in SCHEMES:
        return SCHEMES[name]
    import fsspec

    try:
        known = name not in _FILE_SERVERS and bool(fsspec.get_filesystem_class(name).async_impl)
    except ImportError:
        known = True  # opening it will say which package is missing
    except ValueError:
        known = False
    if not known:
        names = ", ".join(f"{known}://" for known in SCHEMES)
        raise ValueError(
            f"{where}: expected a path or one of {names}, or another object store of fsspec; got {name}://"
        )
    return Scheme(extra="install that package")


def open_filesystem(url: str, scheme: Scheme) -> tuple[Any, str]:
    """An asynchronous filesystem of a place and the path inside it; ImportError when its library is missing."""
    import fsspec
    from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

    # Not shared with other users of fsspec: its session is closed with the cache.
    options = {"skip_instance_cache": True, **scheme.options}
    if scheme is _WEB:
        from teacher_cache.store.web import WebFileSystem

        return WebFileSystem(asynchronous=True, **options), url.rstrip("/")
    if url.partition("://")[0] in _BOUNDED:
        from teacher_cache.store.web import bounded_google, bounded_s3

        bounded: Any = bounded_s3() if url.startswith("s3://") else bounded_google()
        return bounded(asynchronous=True, **options), str(bounded._strip_protocol(url)).rstrip("/")
    if scheme is _AZURE:
        from shards.index.server_rules import open_azure

        fs, path = open_azure(url, CacheError, **options)
        # adlfs in asynchronous mode leaves a finalizer behind that prints a traceback when the process ends.
        return AsyncFileSystemWrapper(fs, asynchronous=True), path.rstrip("/")
    if fsspec.get_filesystem_class(url.partition("://")[0]).async_impl:
        fs, path = fsspec.core.url_to_fs(url, asynchronous=True, **options)
    else:
        fs, path = fsspec.core.url_to_fs(url, **options)
        fs = AsyncFileSystemWrapper(fs, asynchronous=True)
    return fs, str(path).rstrip("/")
