"""A decode engine's request for a prefill instance: an activator knows which revision that is."""

from __future__ import annotations

from kserve_ext.kube.kinds import REVISIONS
from tests.support.api_server import ApiServer
from tests.support.dataplane import Client, get, run
from tests.support.dispatch_cluster import until
from tests.support.knative_activator import (
    NAMESPACE,
    Autoscaler,
    Pod,
    activator,
    put_config,
    put_endpoints,
    put_revision,
    running,
)

PREFILL = "chat-prefill-00001"


def lease(group: str) -> bytes:
    headers = (f"Knative-Serving-Namespace: {NAMESPACE}", f"Knative-Serving-Revision: prefill:{group}")
    return get("/galaxy/lease", *headers)


def test_a_lease_is_held_told_and_sent_as_a_request_of_the_prefill_revision() -> None:
    async def test() -> None:
        async with ApiServer() as api, Autoscaler() as autoscaler, running(Pod()) as pod:
            put_config(api)
            for role in ("prefill", "decode"):
                marks = {"kserve-galaxy.io/role": role, "kserve-galaxy.io/pd-group": "chat"}
                put_revision(api, f"chat-{role}-00001", annotations=marks)
            async with activator(api, autoscaler) as made:
                await autoscaler.until(lambda: autoscaler.connections == 1)
                client = await Client.connect("127.0.0.1", made.http1[1])
                client.send(lease("chat"))
                await autoscaler.until(lambda: bool(autoscaler.told(PREFILL)))
                put_endpoints(api, PREFILL, [pod.addr])
                assert (await client.response())[0] == 200
                assert pod.heads[0].startswith(b"GET /galaxy/lease ")
                client.send(lease("other"))
                status, _, body = await client.response()
                assert status == 404
                assert b'"prefill:other" not found' in body
                api.remove(REVISIONS, NAMESPACE, PREFILL)
                await until(lambda: len(made.dispatcher.parts) == 1, "it has heard of that")
                client.send(lease("chat"))
                assert (await client.response())[0] == 404

    run(test())
