"""The token of the admin server, made from the cluster key: whoever may read the key file may change objects."""

from __future__ import annotations

import hashlib
import hmac


def token(cluster_key: bytes) -> str:
    """What a client of the admin server shows: Authorization: Bearer TOKEN."""
    return hmac.new(cluster_key, b"galaxy admin", hashlib.sha256).hexdigest()
