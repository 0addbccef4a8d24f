"""A line of Knative's request log: what a template finds of a request, its response and its revision.

The fields are those that config-observability documents, and those of Go's http.Request that a log has a use for;
names of headers are written as Go writes them (X-Request-Id). TraceID is the one of the request's traceparent or
X-B3-TraceId, if it is a hexadecimal number: templates write it between quotes as it is, Knative's own too, and what a
client may put there must not add to the line. In Knative: pkg/http/request_log.go, pkg/observability/config.go.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from kserve_ext.api.go_template import Method, Node, compiled

#: In force where config-observability has none of its own.
DEFAULT: Final = (
    '{"httpRequest": {"requestMethod": "{{.Request.Method}}", "requestUrl": "{{js .Request.RequestURI}}", '
    '"requestSize": "{{.Request.ContentLength}}", "status": {{.Response.Code}}, '
    '"responseSize": "{{.Response.Size}}", "userAgent": "{{js .Request.UserAgent}}", '
    '"remoteIp": "{{js .Request.RemoteAddr}}", "serverIp": "{{.Revision.PodIP}}", '
    '"referer": "{{js .Request.Referer}}", "latency": "{{.Response.Latency}}s", '
    '"protocol": "{{.Request.Proto}}"}, "traceId": "{{.TraceID}}"}'
)


_TRACE_ID: Final = re.compile("[0-9A-Fa-f]{1,32}")


class Revision(NamedTuple):
    namespace: str
    name: str
    service: str
    configuration: str


class Entry(NamedTuple):
    """One request that has ended."""

    method: str
    uri: str  # as it was sent
    host: str
    major: int  # of the protocol's version
    minor: int
    length: int  # of the body, -1 = not declared
    remote: str  # host:port
    headers: Mapping[str, Sequence[str]]  # names as Go writes them
    code: int
    size: int
    latency_s: float
    revision: Revision

    def first(self, name: str) -> str:
        return next(iter(self.headers.get(canonical(name), ())), "")

    @property
    def path(self) -> str:
        return urllib.parse.unquote(urllib.parse.urlsplit(self.uri).path)

    @property
    def query(self) -> str:
        return urllib.parse.urlsplit(self.uri).query

    @property
    def trace_id(self) -> str:
        parts = self.first("Traceparent").split("-", 2)
        found = parts[1] if len(parts) > 1 else self.first("X-B3-Traceid")
        return found if _TRACE_ID.fullmatch(found) else ""


def canonical(name: str) -> str:
    return "-".join(word.capitalize() for word in name.split("-"))


def _query(entry: Entry, name: str) -> str:
    found = urllib.parse.parse_qs(entry.query, keep_blank_values=True)
    return next(iter(found.get(name, ())), "")


FIELDS: Final[Mapping[str, Node | Method]] = {
    ".Request.ContentLength": lambda entry: entry.length,
    ".Request.Header": lambda entry: entry.headers,
    ".Request.Header.Get": Method(Entry.first, 1),
    ".Request.Host": lambda entry: entry.host,
    ".Request.Method": lambda entry: entry.method,
    ".Request.Proto": lambda entry: f"HTTP/{entry.major}.{entry.minor}",
    ".Request.ProtoMajor": lambda entry: entry.major,
    ".Request.ProtoMinor": lambda entry: entry.minor,
    ".Request.Referer": lambda entry: entry.first("Referer"),
    ".Request.RemoteAddr": lambda entry: entry.remote,
    ".Request.RequestURI": lambda entry: entry.uri,
    ".Request.URL": lambda entry: entry.uri,
    ".Request.URL.Path": lambda entry: entry.path,
    ".Request.URL.Query.Get": Method(_query, 1),
    ".Request.URL.RawQuery": lambda entry: entry.query,
    ".Request.UserAgent": lambda entry: entry.first("User-Agent"),
    ".Response.Code": lambda entry: entry.code,
    ".Response.Latency": lambda entry: entry.latency_s,
    ".Response.Size": lambda entry: entry.size,
    ".Revision.Configuration": lambda entry: entry.revision.configuration,
    ".Revision.Name": lambda entry: entry.revision.name,
    ".Revision.Namespace": lambda entry: entry.revision.namespace,
    ".Revision.PodIP": lambda _: "",  # known to the queue-proxy alone, as is the next
    ".Revision.PodName": lambda _: "",
    ".Revision.Service": lambda entry: entry.revision.service,
    ".TraceID": lambda entry: entry.trace_id,
}


def line(template: str) -> Callable[[Entry], str]:
    """What makes a whole line of an entry. Raises TemplateError."""
    return compiled(template if template.endswith("\n") else f"{template}\n", FIELDS)
