"""Where the state store is: `redis://[USER:PASSWORD@]HOST[:PORT][/DB]`, `rediss://` over TLS, or a unix socket.

A query parameter `namespace` names the cluster on the server; without it the cluster's key does, so that clusters on
one server don't meet. Other parameters are redis-py's (`ssl_ca_certs=FILE`, `ssl_cert_reqs=none`, ...).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

SCHEMES: Final = ("redis", "rediss", "unix")
_FORMS: Final = "redis://HOST:PORT/DB, rediss://... or unix:///SOCKET"
_ENCODED: Final = "in user and password write %3A, %2F and %40 for a colon, a slash and an at sign"
_FILES: Final = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")
_REMEDIES: Final = {
    "AuthenticationError": "correct user and password in the URL",
    "AuthorizationError": "correct user and password in the URL",
    "NoPermissionError": "give the user `+@read +@write +@scripting +@connection ~{NAMESPACE}:*`",
    "ReadOnlyError": "it is a replica: name the primary",
    "OutOfMemoryError": "give the server more memory (maxmemory), with maxmemory-policy noeviction",
    "MovedError": "it is a node of a Redis Cluster and another has our keys: name that one, or a server by itself",
    "AskError": "it is a node of a Redis Cluster and our keys are moving: name a server by itself",
    "ClusterDownError": "it is a node of a Redis Cluster that isn't whole: name a server by itself",
    "BusyLoadingError": "it is loading its data: wait",
}


class Location(NamedTuple):
    """As the client takes it; shown to people without the password."""

    url: str
    namespace: str

    @classmethod
    def of(cls, url: str, key: bytes) -> Location:
        """`key`: the cluster's. Raises ValueError with what is wrong."""
        if "#" in url:
            raise ValueError("there is a # in the URL: write %23 for it, in a password, too")
        parts = urlsplit(url)
        if parts.scheme not in SCHEMES:
            raise ValueError(f"{_hidden(url)!r}: a store is {_FORMS}")
        if parts.scheme == "unix" and not parts.path:
            raise ValueError(f"{_hidden(url)!r} names no socket: a store is {_FORMS}")
        if parts.scheme != "unix":
            encoded = f"; {_ENCODED}" if "@" in url else ""
            if not parts.hostname:
                raise ValueError(f"{_hidden(url)!r} names no host: a store is {_FORMS}{encoded}")
            try:
                parts.port  # noqa: B018  raises ValueError
            except ValueError:
                raise ValueError(f"{_hidden(url)!r}: the port is no number up to 65535{encoded}") from None
            if parts.path.strip("/") and not parts.path.strip("/").isdigit():
                raise ValueError(f"{_hidden(url)!r}: the path is the number of the database, e.g. /0")
        query = dict(parse_qsl(parts.query))
        namespace = query.pop("namespace", "") or f"galaxy-{hashlib.sha256(key).hexdigest()[:12]}"
        if set(namespace) & set("{}: *?[]\\"):  # the last of these mean something in the rights of users
            raise ValueError(
                f"namespace {namespace!r}: braces, brackets, colons, spaces, `*`, `?` and backslashes can't be in it"
            )
        return cls(urlunsplit(parts._replace(query=urlencode(query))), namespace)

    def __str__(self) -> str:
        return _hidden(self.url)

    def missing(self) -> list[str]:
        """What it names that is not on this machine, as NAME=FILE."""
        named = parse_qsl(urlsplit(self.url).query)
        return [f"{name}={path}" for name, path in named if name in _FILES and not Path(path).exists()]

    def remedy(self, error: str, why: str) -> str:
        """What to do about an error of the client, by its class."""
        if "NOAUTH" in why or "WRONGPASS" in why:
            error = "AuthenticationError"
        if "DB index" in why:
            return "name a database that the server has, e.g. /0 (its setting `databases` says how many)"
        tls = ", does it speak TLS there" if self.url.startswith("rediss:") else ""
        do = _REMEDIES.get(error, f"is the server up{tls}, and is this its address? writes wait for it")
        return do.replace("NAMESPACE", self.namespace)


def _hidden(url: str) -> str:
    """Without password, user and query, also of what is no URL."""
    scheme, sep, rest = url.partition("://") if "://" in url else ("", "", url)
    return scheme + sep + rest.rpartition("@")[2].partition("?")[0]
