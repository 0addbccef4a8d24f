"""Whether the policy is in force is what the API server's refusals say, and only those that are the policy's."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from autoscaler_shim.standby.pods import StandbyPods
from autoscaler_shim.standby.settling import Settling
from kserve_ext.api.standby import names
from kserve_ext.core.ids import RevisionKey
from kserve_ext.core.standby.known import Known, StandbyPod
from kserve_ext.kube.client import Client
from kserve_ext.kube.errors import KubeError

REFUSED = KubeError(422, "Invalid", f"ValidatingAdmissionPolicy '{names.POLICY}' denied the request")
OWNED = KubeError(422, "Invalid", "Only one reference can have Controller set to true")
BUSY = KubeError(429, "TooManyRequests", "the server has received too many requests")


class Api:
    """Answers a dry patch with the next of `answers`; None = it has nothing against it. It lets nobody watch."""

    def __init__(self, *answers: KubeError | None) -> None:
        self.answers = list(answers)

    async def patch(self, *_: Any, **__: Any) -> None:
        if (error := self.answers.pop(0)) is not None:
            raise error

    async def list(self, *_: Any, **__: Any) -> None:
        raise KubeError(403, "Forbidden", "no role says so yet")


FREE = StandbyPod("ns/a", "u", "p")


def after(*answers: KubeError | None, pod: StandbyPod = FREE) -> bool:
    async def script() -> bool:
        known = Known()
        known.pod("u", pod)
        settling = Settling(cast("Client", Api(*answers)), known, cast("StandbyPods", None))
        for _ in answers:
            await settling.look()
            await asyncio.sleep(0)
        can_hold = settling.can_hold
        await settling.stop()
        return can_hold

    return asyncio.run(script())


def test_two_refusals_in_a_row_are_the_policys() -> None:
    assert not after(REFUSED)
    assert after(REFUSED, REFUSED)


def test_what_is_refused_for_another_reason_says_nothing() -> None:
    assert after(REFUSED, OWNED, BUSY, REFUSED, OWNED)
    assert not after(OWNED, BUSY, OWNED)


def test_what_is_not_refused_says_that_it_is_not_in_force() -> None:
    assert not after(REFUSED, REFUSED, None)
    assert not after(REFUSED, REFUSED, None, REFUSED)


def test_where_all_pods_are_revisions_one_of_theirs_is_asked_for() -> None:
    """Else a burst that takes them all would leave no word about the policy, and each adoption cost a pod."""
    taken = FREE._replace(revision=RevisionKey("ns/r"), owned=True)
    assert after(REFUSED, REFUSED, pod=taken)
    assert not after(REFUSED, REFUSED, pod=taken._replace(leaving=True))
