"""Refuse redirects of a web server to other addresses than its own: what is opened is what the user typed.

A server of shards or of a cache may belong to anybody. It may send a request on to another path of its own, or to
itself over https. Any other address must be named by the user in an environment variable (`ALLOWED`).
"""

import os
from functools import cache
from typing import Any

from shards.errors import ArtefactError

ALLOWED = "DEIT_TEACHER_CACHE_REDIRECTS"
"""The environment variable that names further addresses, scheme://host or scheme://host:port, with commas between."""


@cache
def session_options(error: type[ArtefactError]) -> dict[str, Any]:
    """Return the arguments of an aiohttp session in which a foreign redirect raises `error` before it is followed."""
    import aiohttp

    async def look(session: Any, context: Any, told: aiohttp.TraceRequestRedirectParams) -> None:
        try:
            _require_allowed(told, error)
        except BaseException:
            told.response.close()
            raise

    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(look)
    return {"trace_configs": [trace]}


def _require_allowed(told: Any, error: type[ArtefactError]) -> None:
    import yarl

    asked = told.response.url
    target = asked.join(yarl.URL(told.response.headers.get("Location") or told.response.headers.get("URI") or ""))
    if target.scheme not in ("http", "https") or not target.host:
        raise error(f"{asked}: expected a redirect to http:// or https://, got one to {str(target)[:200]!r}")
    own = target.origin() == asked.origin()
    secured = (target.scheme, target.host, target.port) == ("https", asked.host, 443)
    if not (own or secured or str(target.origin()) in os.environ.get(ALLOWED, "").split(",")):
        raise error(
            f"{asked.origin()}: the server sends a request on to {target.origin()}; only the address that was typed is "
            f"opened. If you trust the other one, name it: export {ALLOWED}={target.origin()}"
        )
