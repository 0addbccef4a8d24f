"""What was asked of an API server: how long it took, by method and kind of path; what was answered, by status.

Read when somebody scrapes. It is told by session.py and asks nothing itself; names in paths are left out, or each
object would be a series. Like the metrics of client-go's rest client, rest/request.go.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from kserve_ext.core.histogram import Histogram

#: As the status of requests that came to nothing.
NO_ANSWER: Final = 0
#: Where what a group's version has begins, in the path's segments, the empty one before its first slash included.
_BEGINS: Final = {"api": 3, "apis": 4}
_SUBRESOURCES: Final = ("status", "finalize")


class Traffic:
    def __init__(self) -> None:
        #: By method and status.
        self.answers: Counter[tuple[str, int]] = Counter()
        #: By method and template; tries and pauses between them included, watches not.
        self.times: dict[tuple[str, str], Histogram] = {}

    def took(self, method: str, path: str, seconds: float) -> None:
        self.times.setdefault((method, template(path)), Histogram()).observe(seconds)


def template(path: str) -> str:
    """The path without names: /api/v1/namespaces/{namespace}/pods/{name}."""
    segments = path.split("/")
    if len(segments) <= 2:
        return path
    begin = _BEGINS.get(segments[1])
    if begin is None:
        return "/{prefix}"
    found = segments[begin:]
    if len(found) == 2 or (len(found) == 3 and found[2] in _SUBRESOURCES):
        found[1] = "{name}"
    elif len(found) >= 3:
        found[1] = "{namespace}"
        if len(found) >= 4:
            found[3] = "{name}"
    return "/".join((*segments[:begin], *found))
