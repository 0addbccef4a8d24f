"""The connection to the agent of the node: dialled, greeted, dialled again when lost; each end may begin anew.

What is told while nobody listens is dropped: whoever connects tells the whole state first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable

import msgspec

from autoscaler_shim.slot.settings import Settings
from kserve_ext.core.backoff import pause_s
from kserve_ext.rpc.unix_socket import dial
from kserve_ext.wire.slot_socket import Free, FromAgent, Hello, Refused, Start, State

log = logging.getLogger(__name__)

MAX_LINE_BYTES = 4 << 20
LEAST_PAUSE_S, MOST_PAUSE_S = 0.1, 5.0
#: What lasted so long was no failure: an agent that begins anew is dialled at once, however often it did before.
LASTED_S = 2.0
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(FromAgent).decode


class AgentLine:
    def __init__(
        self,
        settings: Settings,
        incarnation: int,
        connected: Callable[[], None],
        ordered: Callable[[Start | Free], None],
    ) -> None:
        self._settings = settings
        self._incarnation = incarnation
        self._connected = connected
        self._ordered = ordered
        self._writer: asyncio.StreamWriter | None = None
        self._failures = 0
        self._said = ""  # the last complaint: it is not repeated at each try

    async def run(self) -> None:
        """For ever."""
        while True:
            begun = time.monotonic()
            why = await self._once()
            self._failures = 1 if time.monotonic() - begun >= LASTED_S else self._failures + 1
            if why != self._said:
                self._said = why
                log.warning("the agent of this node: %s; it is dialled again", why)
            await asyncio.sleep(pause_s(self._failures, LEAST_PAUSE_S, MOST_PAUSE_S, random.random()))

    def tell(self, state: State) -> None:
        if self._writer is not None:
            self._writer.write(_encode(state) + b"\n")

    async def _once(self) -> str:
        """One connection, from dial to loss; why it was lost."""
        settings = self._settings
        try:
            token = settings.token_file.read_text().strip()
        except OSError as error:
            return f"no token to show it ({error}): the pod needs a projected token of its ServiceAccount"
        try:
            reader, writer = await dial(settings.agent_socket, limit=MAX_LINE_BYTES)
        except OSError as error:
            return f"it can't be reached at {settings.agent_socket} ({error.strerror or error})"
        try:
            hello = Hello(
                token,
                f"{settings.namespace}/{settings.pod}",
                settings.uid,
                settings.pool,
                settings.ip,
                settings.level,
                self._incarnation,
                settings.gpus,
            )
            writer.write(_encode(hello) + b"\n")
            self._writer = writer
            self._connected()
            return await self._listen(reader)
        except (OSError, ValueError) as error:  # a line too long is a ValueError of asyncio's
            return f"the connection broke ({error})"
        finally:
            self._writer = None
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _listen(self, reader: asyncio.StreamReader) -> str:
        while line := await reader.readline():
            try:
                order = _decode(line)
            except msgspec.MsgspecError as error:
                return f"it said what is no order ({error}): both must be of one version"
            if isinstance(order, Refused):
                return f"it refused this pod: {order.reason}"
            self._failures = 0
            self._said = ""
            self._ordered(order)
        return "it closed the connection"
