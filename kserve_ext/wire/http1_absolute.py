"""Requests in absolute form, `GET http://host/path`: servers have to take them (RFC 9112 3.2.2), and few send them.

Such a head is refused by http1.py, and made one in origin form here, as it is forwarded anyway. The target's host
counts and the Host line has it from then on, so that nobody after us can read it otherwise; a request that has no one
Host line stays as it is, and refused. Decides nothing else: what comes out is scanned as if it had come so.
"""

from __future__ import annotations

import re
from typing import Final

from kserve_ext.wire.http1 import HOST_PORT

_LINE: Final = re.compile(rb"([^\s:/?#]+) (?i:https?)://([^\s/?#]+)([/?][!-~]*|) (HTTP/1\.[01])\r\n")
_HOST: Final = re.compile(rb"\r\n(?i:host):[^\r\n]*")


def origin_form(head: bytes) -> bytes | None:
    """None: it isn't in absolute form, or not in one to be understood."""
    line = _LINE.match(head)
    if line is None:
        return None
    method, authority, target, version = line.groups()
    hosts = len(_HOST.findall(head))
    if HOST_PORT.fullmatch(authority) is None or authority.startswith(b":") or hosts > 1:
        return None
    if not target:
        target = b"*" if method == b"OPTIONS" else b"/"
    elif target.startswith(b"?"):
        target = b"/" + target
    host = b"\r\nHost: " + authority
    fields = head[line.end() - 2 :]
    if hosts:
        fields = _HOST.sub(lambda _: host, fields)
    elif version == b"HTTP/1.0":
        fields = host + fields
    return b"%b %b %b%b" % (method, target, version, fields)
