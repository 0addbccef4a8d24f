"""What the API server, or the way to it, answered instead of an object: one class per thing that a caller decides.

The status code alone doesn't tell Conflict from AlreadyExists (both 409); the Status object's reason does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class KubeError(Exception):
    """`status` is HTTP's, 0 without an answer; `reason` is the Status object's, e.g. Forbidden."""

    def __init__(self, status: int, reason: str, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message
        #: What the server asked for in Retry-After; 0 = it said nothing.
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.reason or self.status}: {self.message}"


class NotFound(KubeError):
    """No such object, or no such kind."""


class AlreadyExists(KubeError):
    """Create met an object of this name."""


class Conflict(KubeError):
    """The object has changed since it was read."""


class Invalid(KubeError):
    """The object breaks its schema or the rules of a webhook; the same object will again."""


class Gone(KubeError):
    """The history no longer reaches back to this resourceVersion, or this page of a list: list anew."""


class Unavailable(KubeError):
    """No answer, or one that asks to come again: the same request may succeed later. A write may have happened."""


def error_of(status: int, answer: Mapping[str, Any], retry_after_s: float = 0.0) -> KubeError:
    """The error for an answer with this status and, where the server sent one, its Status object."""
    reason = str(answer.get("reason") or "")
    message = str(answer.get("message") or f"the API server answered {status}")
    return _class_of(status, reason)(status, reason, message, retry_after_s)


def _class_of(status: int, reason: str) -> type[KubeError]:
    if status == 409:
        return AlreadyExists if reason == "AlreadyExists" else Conflict
    if status == 429 or status >= 500:
        return Unavailable
    return {404: NotFound, 410: Gone, 422: Invalid}.get(status, KubeError)
