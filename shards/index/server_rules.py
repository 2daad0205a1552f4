"""Rules for remote servers: which failures are tried again, and no redirects to other addresses.

A server of shards or of a cache may belong to anybody. It may send a request on to another path of its own, or to
itself over https. Any other address must be named by the user in an environment variable (`ALLOWED`): what is opened
is what the user typed.
"""

import os
from collections.abc import Callable
from functools import cache
from typing import Any

from shards.errors import ArtefactError

ALLOWED = "DEIT_TEACHER_CACHE_REDIRECTS"
"""The environment variable that names further addresses, scheme://host or scheme://host:port, with commas between."""

TRIES = 4
PAUSE_S = 0.5
"""Before the second try; it doubles."""
TRANSIENT_STATUSES = frozenset((408, 425, 429, 500, 502, 503, 504))
"""Of HTTP: the server asks for patience, or something between it and its data has failed."""
_FINAL = (ArtefactError, FileNotFoundError, PermissionError, NotImplementedError, ImportError)


def pauses() -> list[float]:
    """Return the seconds to wait before each further try, in order."""
    return [PAUSE_S * 2**number for number in range(TRIES - 1)]


def may_pass(error: BaseException) -> bool:
    """Tell whether the same request may succeed later.

    Where a client library tells the status of the answer, the status decides. Of everything else only errors that
    stay (a missing object, no permission, a refusal of this project, a missing library) are final: each library has
    its own exceptions for a dropped connection.
    """
    for name in ("status", "code", "status_code"):
        status = getattr(error, name, None)
        if isinstance(status, int) and status >= 300:
            return status in TRANSIENT_STATUSES
    return not isinstance(error, _FINAL)


@cache
def session_options(error: type[ArtefactError]) -> dict[str, Any]:
    """Return the arguments of an aiohttp session in which a foreign redirect raises `error` before it is followed."""
    import aiohttp

    async def look(session: Any, context: Any, redirect: aiohttp.TraceRequestRedirectParams) -> None:
        try:
            headers = redirect.response.headers
            _require_allowed(redirect.response.url, headers.get("Location") or headers.get("URI") or "", error)
        except BaseException:
            redirect.response.close()
            raise

    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(look)
    return {"trace_configs": [trace]}


@cache
def s3_options(error: type[ArtefactError]) -> dict[str, Any]:
    """Return the arguments of s3fs with which a foreign redirect raises `error` before it is followed.

    aiobotocore lets aiohttp follow redirects, and takes no arguments for its session of aiohttp.

    Errors:
        ImportError where aiobotocore is too old to be given another session.
    """
    from aiobotocore import __version__, httpsession

    if not hasattr(httpsession.AIOHTTPSession, "_get_session"):
        raise ImportError(f"aiobotocore {__version__} would follow redirects to any address: pip install -U s3fs")
    (trace,) = session_options(error)["trace_configs"]  # type: ignore[arg-type]  # mypy thinks no class is hashable
    trace.freeze()

    class OwnAddress(httpsession.AIOHTTPSession):  # type: ignore[misc]  # aiobotocore has no types
        async def _get_session(self, proxy_url: Any) -> Any:
            session = await super()._get_session(proxy_url)
            if trace not in session.trace_configs:
                session.trace_configs.append(trace)
            return session

    return {"config_kwargs": {"http_session_cls": OwnAddress}}


def open_azure(url: str, error: type[ArtefactError], **options: Any) -> tuple[Any, str]:
    """Open an Azure address: adlfs's file system, in which a foreign redirect raises `error`, and the path inside it.

    adlfs hands no arguments on to its client; azure-core follows redirects in one policy of the client's pipeline.

    Errors:
        ImportError where adlfs is missing, or azure-core is unlike any that is known.
    """
    import fsspec

    filesystem = _own_azure(fsspec.get_filesystem_class(url.partition("://")[0]), error)  # type: ignore[arg-type]
    opened = filesystem(**filesystem._get_kwargs_from_urls(url), **options)
    return opened, str(filesystem._strip_protocol(url))


@cache
def _own_azure(azure: type, error: type[ArtefactError]) -> Any:
    """Return adlfs's class with clients that look at redirects: always the same, as fsspec keeps a client per class.

    adlfs closes no client before the process ends, so a new one for each shard would stay open.
    """

    class OwnAddress(azure):  # type: ignore[misc]  # adlfs has no types
        def do_connect(self) -> None:
            super().do_connect()
            _look_at_redirects(self.service_client, error)

    return OwnAddress


def _look_at_redirects(client: Any, error: type[ArtefactError]) -> None:
    """Let the client's policy for redirects raise `error` for a foreign one; its clients of blobs share the policy."""
    import yarl

    pipeline = getattr(client, "_pipeline", None)
    policies = [p for p in getattr(pipeline, "_impl_policies", ()) if hasattr(p, "get_redirect_location")]
    if not policies:
        raise ImportError("this azure-core would follow redirects to any address: pip install -U adlfs")

    def looking(locate: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def location_of(response: Any) -> Any:
            if location := locate(response):
                _require_allowed(yarl.URL(response.http_request.url), location, error)
            return location

        return location_of

    for policy in policies:
        policy.get_redirect_location = looking(policy.get_redirect_location)


def _require_allowed(source: Any, location: str, error: type[ArtefactError]) -> None:
    import yarl

    target = source.join(yarl.URL(location))
    if target.scheme not in ("http", "https") or not target.host:
        raise error(f"{source}: expected a redirect to http:// or https://, got one to {str(target)[:200]!r}")
    own = target.origin() == source.origin()
    secured = (target.scheme, target.host, target.port) == ("https", source.host, 443)
    if not (own or secured or str(target.origin()) in os.environ.get(ALLOWED, "").split(",")):
        raise error(
            f"{source.origin()}: the server sends a request on to {target.origin()}; only the address that was typed "
            f"is opened. If you trust the other one, name it: export {ALLOWED}={target.origin()}"
        )
