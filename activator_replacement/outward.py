"""What every way out of homes needs: by what it calls, whose homes they are, and where what follows goes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from kserve_ext.core.dispatch.facts import Instruction
from kserve_ext.core.dispatch.home import Home
from kserve_ext.rpc import Rpc
from kserve_ext.rpc.membership import Membership


class Outward(NamedTuple):
    rpc: Rpc
    membership: Membership
    homes: Mapping[str, Home]  # by home key; their owner's
    carry: Callable[[str, Iterable[Instruction]], None]  # carries out what follows from an answer
