"""Read objects over http(s), S3 and Google's protocol from a server that nobody vouches for: bounded, never half.

The sizes of a cache's objects are known: metadata are small, a chunk is no larger than its numbers. What is larger is
cut off while it comes; a body that ends before its length, a dropped connection and an answer that may pass are tried
again (`shards.index.server_rules`). The time of one object is bounded by whoever asks (`Place.reach`).
"""

import asyncio
from typing import Any

import aiohttp
from fsspec.implementations.http import HTTPFileSystem

from shards.errors import CacheError
from shards.index.server_rules import may_pass, pauses, s3_options, session_options
from teacher_cache.store.place import METADATA_BYTES, require_bounded

_PIECE_BYTES = 1 << 16


class WebFileSystem(HTTPFileSystem):  # type: ignore[misc]  # fsspec has no types
    """fsspec's, with whole objects read in pieces up to `most_bytes`, and in several tries."""

    cachable = False
    most_bytes = METADATA_BYTES

    def __init__(self, **options: Any) -> None:
        """Make a client that follows no redirect to another address."""
        super().__init__(client_kwargs=session_options(CacheError), **options)

    async def _cat_file(self, url: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        if (start is None) != (end is None) or (start or 0) < 0 or (end or 0) < 0:
            part: bytes = await super()._cat_file(url, start=start, end=end, **options)
            return part
        for pause_s in pauses():
            try:
                return await self._body(url, start, end)
            except Exception as error:
                if not may_pass(error):
                    raise
            await asyncio.sleep(pause_s)
        return await self._body(url, start, end)

    async def _body(self, url: str, start: int | None, end: int | None) -> bytes:
        """The object, or its bytes in [start, end); a server that knows no ranges sends all, which is cut here."""
        session = await self.set_session()
        body, most_bytes, request = bytearray(), self.most_bytes, dict(self.kwargs)
        if start is not None and end is not None:
            request["headers"] = {**request.get("headers", {}), "Range": f"bytes={start}-{end - 1}"}
        async with session.get(self.encode_url(url), **request) as response:
            self._raise_not_found_for_status(response, url)
            if response.status == 206 and start is not None and end is not None:
                most_bytes = end - start
                start = end = None
            async for piece in response.content.iter_chunked(_PIECE_BYTES):
                body += piece
                require_bounded(len(body), most_bytes, url)
        return bytes(body[start:end])


class _BoundedBody:
    """The body of an answer, as s3fs reads it: whole, in pieces up to what the file system's objects can have."""

    def __init__(self, body: Any, filesystem: Any, url: str) -> None:
        self._body, self._filesystem, self._url = body, filesystem, url

    async def read(self) -> bytes:
        """Read it to its end; CacheError as soon as more has come than an object can have."""
        whole = bytearray()
        while piece := await self._body.read(_PIECE_BYTES):
            whole += piece
            require_bounded(len(whole), self._filesystem.most_bytes, self._url)
        return bytes(whole)

    def close(self) -> None:
        """Close it."""
        self._body.close()


def bounded_s3() -> type:
    """Return s3fs's file system, with whole objects bounded by its `most_bytes`; ImportError where s3fs is missing."""
    import fsspec

    class BoundedS3(fsspec.get_filesystem_class("s3")):  # type: ignore[misc]  # s3fs has no types
        cachable = False
        most_bytes = METADATA_BYTES

        def __init__(self, **options: Any) -> None:
            super().__init__(**s3_options(CacheError), **options)

        async def _call_s3(self, method: str, *arguments: Any, **options: Any) -> Any:
            answer = await super()._call_s3(method, *arguments, **options)
            if method == "get_object":
                where = f"s3://{options.get('Bucket')}/{options.get('Key')}"
                answer["Body"] = _BoundedBody(answer["Body"], self, where)
            return answer

    return BoundedS3


def bounded_google() -> type:
    """Return gcsfs's file system, with every answer bounded by its `most_bytes`; ImportError where gcsfs is missing."""
    import fsspec

    class BoundedGoogle(fsspec.get_filesystem_class("gs")):  # type: ignore[misc]  # gcsfs has no types
        cachable = False
        most_bytes = METADATA_BYTES

        def __init__(self, **options: Any) -> None:
            filesystem = self

            class Bounded(aiohttp.ClientResponse):
                async def read(self) -> bytes:
                    if self._body is None:
                        body = bytearray()
                        async for piece in self.content.iter_chunked(_PIECE_BYTES):
                            body += piece
                            require_bounded(len(body), filesystem.most_bytes, str(self.url))
                        self._body = bytes(body)
                    return self._body

            session = {"response_class": Bounded, **session_options(CacheError)}
            super().__init__(session_kwargs=session, **options)

    return BoundedGoogle
