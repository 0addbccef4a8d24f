"""Clients and instances over HTTP/2 that reset, die and go away at random: every request ends once, nothing stays."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import h2.events
import h2.exceptions
import pytest

from kserve_ext.wire.http2 import frames
from tests.support.dataplane import HoldingDispatch, dataplane, run
from tests.support.http2 import Instance, Peer, Seen, at_rest, connect, instance2


class Moody:
    """An instance that answers with the request's body, or does something worse."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.tasks: set[asyncio.Task[None]] = set()

    def __call__(self, peer: Peer, event: Any) -> None:
        if isinstance(event, h2.events.RequestReceived):
            task = asyncio.ensure_future(self.answer(peer, event.stream_id))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def answer(self, peer: Peer, number: int) -> None:
        mood = self.chance.random()
        seen = peer.streams[number]
        try:
            if mood < 0.05:
                peer.reset(number, self.chance.choice([frames.REFUSED_STREAM, frames.INTERNAL_ERROR]))
            elif mood < 0.08 and number > 2:
                peer.transport.write(frames.goaway(number - 2, 0))
            elif mood < 0.10:
                peer.close()
            elif mood < 0.15:
                peer.respond(number)
                peer.reset(number, frames.CANCEL)
            elif mood < 0.2:
                peer.respond(number, status=400, end=True)
            else:
                await peer.until(lambda: seen.over)
                peer.respond(number)
                body = bytes(seen.body)
                await peer.send(number, body[: len(body) // 2])
                if mood < 0.23:
                    peer.close()
                await peer.send(number, body[len(body) // 2 :])
                peer.trailers(number, ("x-sum", str(len(body))))
        except (h2.exceptions.ProtocolError, AssertionError, KeyError):
            pass  # its stream or connection ended meanwhile


async def client_life(chance: random.Random, host: str, port: int, counts: dict[str, int]) -> None:
    client = await connect(host, port)
    for _ in range(12):
        if client.closed:
            return
        calls = [one_call(chance, client, counts) for _ in range(chance.randint(1, 6))]
        await asyncio.gather(*calls)
    if chance.random() < 0.5:
        client.close()


async def one_call(chance: random.Random, client: Peer, counts: dict[str, int]) -> None:
    body = chance.randbytes(chance.choice([0, 10, 5000, 70_000, 150_000]))
    try:
        number = client.begin(end=not body)
        if chance.random() < 0.1:
            client.reset(number)
            counts["reset"] += 1
            return
        if body:
            sending = asyncio.ensure_future(client.send(number, body, True))
            over = asyncio.ensure_future(client.over(number))
            await asyncio.wait([sending, over], return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.exception()
            else:
                sending.cancel()
            seen: Seen = await over
        else:
            seen = await client.over(number)
    except h2.exceptions.ProtocolError:
        return
    if seen.reset not in (None, frames.NO_ERROR):
        counts["broken"] += 1
    elif seen.status == 200:
        assert bytes(seen.body) == body
        assert seen.trailers == {"x-sum": str(len(body))}
        counts["whole"] += 1
    else:
        counts[str(seen.status)] = counts.get(str(seen.status), 0) + 1


@pytest.mark.parametrize("seed", range(4))
def test_every_request_ends_once(seed: int) -> None:
    async def test() -> None:
        chance = random.Random(seed)
        counts = {"reset": 0, "broken": 0, "whole": 0}
        moody = Moody(chance)
        made: Instance
        async with instance2(moody, settings={3: 5}) as made:
            dispatch = HoldingDispatch(made.addr, bound=1000)
            dispatch.requeue = True
            async with dataplane(dispatch) as (server, host, port, _):
                loop = asyncio.get_running_loop()

                async def release() -> None:
                    """What was held after a failure goes on."""
                    while True:
                        dispatch.changed.clear()
                        await dispatch.changed.wait()
                        loop.call_soon(dispatch.release, made.addr)

                releasing = loop.create_task(release())
                await asyncio.gather(*(client_life(chance, host, port, counts) for _ in range(8)))
                await dispatch.until(lambda: not dispatch.in_flight and not dispatch.held)
                releasing.cancel()
                ended = len(dispatch.outcomes) + dispatch.refused + dispatch.finally_failed
                assert dispatch.submitted == ended
                assert counts["whole"] > 50
                at_rest(server.plane)

    run(test())
