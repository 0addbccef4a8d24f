"""Which pod it is that dials: the API server says whose token it is (TokenReview), and the token names pod and node.

A token of a ServiceAccount that is mounted in a pod is bound to that pod; the API server adds the pod's name and uid
and the node's name to its answer (Kubernetes 1.30 and later). What was accepted once is remembered by the token's
digest for as long as KEEP_S, so that a slot keeps its place while the API server is away; a new one waits.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict
from typing import Any, Final

from kserve_ext.kube.client import Client, KubeError, Unavailable
from kserve_ext.kube.kinds import TOKEN_REVIEWS
from kserve_ext.wire.slot_socket import Hello

log = logging.getLogger(__name__)

AUDIENCE: Final = "kserve-galaxy.io"
KEEP_S: Final = 3600.0
KEEP: Final = 4096
AGAIN_S: Final = 1.0
_POD: Final = "authentication.kubernetes.io/pod-name"
_UID: Final = "authentication.kubernetes.io/pod-uid"
_NODE: Final = "authentication.kubernetes.io/node-name"


class NotProven(Exception):
    """The message says what is wrong with the token, and what to do."""


class Reviews:
    def __init__(self, client: Client, node: str) -> None:
        self._client = client
        self._node = node
        self._loop = asyncio.get_running_loop()
        #: When it was accepted, by digest of token, pod and uid.
        self._accepted: OrderedDict[bytes, float] = OrderedDict()
        self.waiting = 0

    async def prove(self, hello: Hello) -> None:
        """Returns when it is proven; waits for an API server that is away. Raises NotProven."""
        digest = hashlib.sha256("\0".join((hello.token, hello.pod, hello.uid)).encode()).digest()
        if self._loop.time() - self._accepted.get(digest, float("-inf")) < KEEP_S:
            return
        judge(await self._review(hello), hello, self._node)
        self._accepted[digest] = self._loop.time()
        self._accepted.move_to_end(digest)
        if len(self._accepted) > KEEP:
            self._accepted.popitem(last=False)

    async def _review(self, hello: Hello) -> dict[str, Any]:
        """The status of the review."""
        body = {"metadata": {}, "spec": {"token": hello.token, "audiences": [AUDIENCE]}}
        self.waiting += 1
        said = False
        try:
            while True:
                try:
                    made = await self._client.create(TOKEN_REVIEWS, body)
                    return made.get("status") or {}
                except Unavailable as error:
                    if not said:
                        log.warning(
                            "slot %s waits: the API server can't check its token (%s)", hello.pod, error
                        )
                        said = True
                except KubeError as error:
                    do = "the agent's ServiceAccount needs create on tokenreviews.authentication.k8s.io"
                    raise NotProven(f"the token can't be checked ({error}); {do}") from None
                await asyncio.sleep(AGAIN_S)
        finally:
            self.waiting -= 1


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
