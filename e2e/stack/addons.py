"""`python -m e2e.stack.addons STACK`: one process for the small parts of a cluster, its DNS and its stubs."""

from __future__ import annotations

import asyncio
import sys

from e2e.stack import certificate_stub, dns, ingress_stub, watch
from e2e.stack.place import Place


async def main(place: Place) -> None:
    async with watch.session(place) as client:
        await asyncio.gather(dns.serve(client), ingress_stub.serve(client), certificate_stub.serve(client))


if __name__ == "__main__":
    asyncio.run(main(Place(sys.argv[1])))
