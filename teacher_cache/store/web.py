"""Objects over http(s), from a server that nobody vouches for: bounded in bytes, tried again, never half.

The sizes of a cache's objects are known: metadata are small, a chunk is no larger than its numbers. What is larger is
cut off while it comes; a body that ends before its length, a dropped connection, an answer of 5xx and a full minute of
silence are tried again after a pause that doubles. The time of one object is bounded by whoever asks (`Place.reach`).
"""

import asyncio
from typing import Any

import aiohttp
from fsspec.implementations.http import HTTPFileSystem

from shards.errors import CacheError

TRIES = 4
PAUSE_S = 0.5
METADATA_BYTES = 1 << 26
_PIECE_BYTES = 1 << 16
_AGAIN = (408, 425, 429, 500, 502, 503, 504)


class WebFileSystem(HTTPFileSystem):  # type: ignore[misc]  # fsspec has no types
    """fsspec's, with whole objects read in pieces up to `most_bytes`, and in several tries."""

    cachable = False
    most_bytes = METADATA_BYTES

    async def _cat_file(self, url: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        if start is not None or end is not None:
            part: bytes = await super()._cat_file(url, start=start, end=end, **options)
            return part
        pause = PAUSE_S
        for _ in range(TRIES - 1):
            try:
                return await self._whole(url)
            except (aiohttp.ClientPayloadError, aiohttp.ClientConnectionError, TimeoutError):
                pass
            except aiohttp.ClientResponseError as error:
                if error.status not in _AGAIN:
                    raise
            await asyncio.sleep(pause)
            pause *= 2
        return await self._whole(url)

    async def _whole(self, url: str) -> bytes:
        session = await self.set_session()
        body = bytearray()
        async with session.get(self.encode_url(url), **self.kwargs) as response:
            self._raise_not_found_for_status(response, url)
            async for piece in response.content.iter_chunked(_PIECE_BYTES):
                body += piece
                if len(body) > self.most_bytes:
                    raise CacheError(
                        f"{url}: expected at most {self.most_bytes} bytes, got more; the server does not send what "
                        "belongs to this cache: check the address"
                    )
        return bytes(body)
