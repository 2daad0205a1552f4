"""Decide what is tried again when a remote place fails, how often, and after which pauses."""

from shards.errors import ArtefactError

TRIES = 4
PAUSE_S = 0.5
"""Before the second try; it doubles."""
TRANSIENT_STATUSES = frozenset((408, 425, 429, 500, 502, 503, 504))
"""Of HTTP: the server asks for patience, or something between it and its data has failed."""
_FINAL = (ArtefactError, FileNotFoundError, PermissionError, NotImplementedError, ImportError)


def pauses() -> list[float]:
    """Seconds to wait before each further try, in order."""
    return [PAUSE_S * 2**number for number in range(TRIES - 1)]


def may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed later.

    Where a client library tells the status of the answer, the status decides. Of everything else only errors that
    stay (a missing object, no permission, a refusal of this project, a missing library) are final: each library has
    its own exceptions for a dropped connection.
    """
    for name in ("status", "code", "status_code"):
        status = getattr(error, name, None)
        if isinstance(status, int) and status >= 300:
            return status in TRANSIENT_STATUSES
    return not isinstance(error, _FINAL)
