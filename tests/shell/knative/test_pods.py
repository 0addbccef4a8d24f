"""The autoscaler's index of pods: which of those that waited for a node have one."""

from __future__ import annotations

import asyncio
from typing import Any

from autoscaler_shim.knative.pods import PodIndex
from kserve_ext.api.knative import pods
from kserve_ext.api.knative.pa import REVISION_LABEL
from tests.support.api_server import ApiServer


def pod(scheduled: str, **metadata: Any) -> Any:
    said = {"type": "PodScheduled", "status": scheduled, "reason": "Unschedulable"}
    made = {"namespace": "default", "name": "p", "uid": "u", "labels": {REVISION_LABEL: "r"}, **metadata}
    return pods.slim({"metadata": made, "status": {"phase": "Pending", "conditions": [said]}})


def test_one_that_has_gone_or_goes_has_no_node() -> None:
    async def test() -> None:
        async with ApiServer() as api, api.client() as client:
            index = PodIndex(client, lambda revision: None)
            found = []
            for there in (
                None,
                pod("False"),
                pod("True"),
                pod("True", deletionTimestamp="2026-01-01T00:00:00Z"),
            ):
                if there is not None:
                    index.informer.objects["default", "p"] = there
                found.append(index.placed("default/p"))
            assert found == [False, False, True, False]

    asyncio.run(test())
