"""When the webhook's certificate is made anew, and when one is shown. Pure.

The Secret has the certificate, the webhook configurations have the authorities that the API server trusts. Nobody
leads: each replica looks at both and does what is left to do, and a write that came second is refused by its
resourceVersion. A new certificate is shown only once the configurations were seen to have its authority; until then
the former one is, whose authority stays in the list.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

from kserve_ext.kube.certificates import AUTHORITIES, CERTIFICATE, KEY, end_of

LIFETIME: Final = datetime.timedelta(days=90)
#: So long before its end it is made anew.
EARLY: Final = datetime.timedelta(days=30)


class Steps(NamedTuple):
    renew: bool = False  # alone: look again after it
    publish: bool = False  # the authorities into the configurations
    show: bool = False


def decide(
    files: Mapping[str, bytes],
    trusted: Collection[bytes],
    shown: bytes | None,
    now: datetime.datetime,
) -> Steps:
    """`files`: the Secret's; `trusted`: the authorities that each webhook configured has; `shown`: a certificate."""
    if any(not files.get(name) for name in (AUTHORITIES, CERTIFICATE, KEY)):
        return Steps(renew=True)
    end = end_of(files[CERTIFICATE])
    if end is None or end - now < EARLY:
        return Steps(renew=True)
    publish = any(each != files[AUTHORITIES] for each in trusted)
    return Steps(publish=publish, show=files[CERTIFICATE] != shown and (not publish or shown is None))
