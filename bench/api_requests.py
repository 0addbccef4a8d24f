"""Which requests the API server of a stack gets, and from which program: read from its audit log.

The log costs the API server a little for each request, so what is timed beside it is no result.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from e2e.stack.place import Place

_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived", "ResponseStarted"],
    "rules": [{"level": "Metadata"}],
}


class Request(NamedTuple):
    at: float  # unix time
    program: str
    what: str  # verb and resource
    status: int


def flags(place: Place) -> tuple[str, ...]:
    """For the API server, so that it keeps the log."""
    policy = place.folder / "audit-policy.json"
    policy.write_text(json.dumps(_POLICY), encoding="utf-8")
    return f"--audit-policy-file={policy}", f"--audit-log-path={_log(place)}"


def read(place: Place, since: float) -> list[Request]:
    """Nothing where no log is kept."""
    if not _log(place).exists():
        return []
    with _log(place).open(encoding="utf-8") as lines:
        return [request for line in lines if (request := parse(line)) is not None and request.at >= since]


def parse(line: str) -> Request | None:
    """None: it is about no object, or a watch."""
    event = json.loads(line)
    of = event.get("objectRef")
    if of is None or event["verb"] == "watch":
        return None
    resource = "/".join(of[key] for key in ("resource", "subresource") if key in of)
    return Request(
        datetime.fromisoformat(event["requestReceivedTimestamp"]).timestamp(),
        program(event.get("userAgent", "")),
        f"{event['verb']} {resource}",
        event.get("responseStatus", {}).get("code", 0),
    )


def program(agent: str) -> str:
    """The first word of a user agent."""
    return agent.partition("/")[0]


def table(requests: Iterable[Request], revisions: int) -> list[str]:
    """Per revision, most first; refused ones apart."""
    counts = Counter((r.program, r.what, "" if r.status < 400 else f" -> {r.status}") for r in requests)
    return [
        f"  {count / revisions:7.2f}  {program}: {what}{refused}"
        for (program, what, refused), count in counts.most_common()
        if count >= revisions / 20
    ]


def _log(place: Place) -> Path:
    return place.logs / "audit.log"
