"""Which pod it is that dials: the API server says whose token it is (TokenReview), and the token names pod and node.

A token of a ServiceAccount that is mounted in a pod is bound to that pod; the API server adds the pod's name and uid
and the node's name to its answer (Kubernetes 1.30 and later). What came of it is remembered (core/standby/proofs.py),
so that a slot keeps its place while the API server is away; a new one waits. Of several that dial with one token at
once, one is asked for.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, Final

from kserve_ext.core.standby import proofs
from kserve_ext.core.standby.proofs import Proofs
from kserve_ext.kube.client import Client, KubeError, Unavailable
from kserve_ext.kube.kinds import TOKEN_REVIEWS
from kserve_ext.wire.slot_socket import Hello

log = logging.getLogger(__name__)

AUDIENCE: Final = "kserve-galaxy.io"
AGAIN_S: Final = 1.0
#: Questions to the API server at once.
AT_ONCE: Final = 16
_POD: Final = "authentication.kubernetes.io/pod-name"
_UID: Final = "authentication.kubernetes.io/pod-uid"
_NODE: Final = "authentication.kubernetes.io/node-name"


class NotProven(Exception):
    """The message says what is wrong with the token, and what to do."""


class _Asking:
    """One question, and how many wait for its answer."""

    def __init__(self, task: asyncio.Task[str]) -> None:
        self.task = task
        self.waiting = 0


class Reviews:
    def __init__(self, client: Client, node: str) -> None:
        self._client = client
        self._node = node
        self._loop = asyncio.get_running_loop()
        self._proofs = Proofs()
        self._asking: dict[bytes, _Asking] = {}
        self._places = asyncio.Semaphore(AT_ONCE)
        self.asked = 0  # TokenReviews

    @property
    def waiting(self) -> int:
        """Slots that wait for the API server."""
        return sum(asking.waiting for asking in self._asking.values())

    async def prove(self, hello: Hello) -> None:
        """Returns when it is proven; waits for an API server that is away. Raises NotProven."""
        digest = proofs.digest(hello.token, hello.pod, hello.uid)
        known = self._proofs.of(digest, self._loop.time())
        refusal = known.refusal if known is not None else await self._ask(digest, hello)
        if refusal:
            raise NotProven(refusal)

    async def _ask(self, digest: bytes, hello: Hello) -> str:
        """The verdict. Who waits for it may go; the question ends when nobody is left."""
        asking = self._asking.get(digest)
        if asking is None:
            asking = _Asking(self._loop.create_task(self._judge(digest, hello), name=f"token of {hello.pod}"))
            self._asking[digest] = asking
        asking.waiting += 1
        try:
            return await asyncio.shield(asking.task)
        finally:
            asking.waiting -= 1
            if not asking.waiting:
                asking.task.cancel()
                if self._asking.get(digest) is asking:
                    del self._asking[digest]

    async def _judge(self, digest: bytes, hello: Hello) -> str:
        """Why not; "" = it is proven. Kept."""
        async with self._places:
            await self._wait()
            try:
                judge(await self._review(hello), hello, self._node)
            except NotProven as refusal:
                self._proofs.refused(digest, str(refusal), self._loop.time())
                return str(refusal)
            lasts_s = proofs.expires(hello.token) - time.time()
            self._proofs.good(digest, lasts_s, self._loop.time())
            return ""

    async def _wait(self) -> None:
        wait_s = self._proofs.wait_s(self._loop.time())
        try:
            if wait_s > 0:
                await asyncio.sleep(wait_s)
        except asyncio.CancelledError:
            self._proofs.not_asked()
            raise

    async def _review(self, hello: Hello) -> dict[str, Any]:
        """The status of the review."""
        body = {"metadata": {}, "spec": {"token": hello.token, "audiences": [AUDIENCE]}}
        said = False
        while True:
            try:
                self.asked += 1
                made = await self._client.create(TOKEN_REVIEWS, body)
                return made.get("status") or {}
            except Unavailable as error:
                if not said:
                    log.warning("slot %s waits: the API server can't check its token (%s)", hello.pod, error)
                    said = True
            except KubeError as error:
                do = "the agent's ServiceAccount needs create on tokenreviews.authentication.k8s.io"
                raise NotProven(f"the token can't be checked ({error}); {do}") from None
            await asyncio.sleep(AGAIN_S)


def judge(status: dict[str, Any], hello: Hello, node: str) -> None:
    """Raises NotProven unless the review says that the token is this pod's, on this node."""
    if not status.get("authenticated"):
        why = str(status.get("error") or "the API server doesn't know it")
        raise NotProven(f"the token is refused: {why}; mount a projected one with audience {AUDIENCE}")
    if AUDIENCE not in (status.get("audiences") or ()):
        raise NotProven(f"the token is not for {AUDIENCE}: name that audience in the projected volume")
    user = status.get("user") or {}
    extra = user.get("extra") or {}
    system, _, account = str(user.get("username", "")).partition("system:serviceaccount:")
    namespace, _, name = hello.pod.partition("/")
    if system or account.partition(":")[0] != namespace:
        raise NotProven(f"the token is {user.get('username')!r}'s, not of a ServiceAccount in {namespace!r}")
    for what, key, wanted in (("pod", _POD, name), ("uid", _UID, hello.uid), ("node", _NODE, node)):
        found = extra.get(key) or []
        if found != [wanted]:
            names = f"names {found[0]!r}" if found else f"names no {what}; it must be bound to the pod"
            raise NotProven(f"the token {names}, where {what} {wanted!r} is expected")
