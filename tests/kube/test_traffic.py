"""What is counted of requests to the API server, and what of their paths is told."""

from __future__ import annotations

import contextlib

import pytest
import uvloop

from kserve_ext.kube.client import NotFound, Unavailable
from kserve_ext.kube.kinds import CONFIG_MAPS, PODS
from kserve_ext.kube.traffic import NO_ANSWER, template
from tests.support.api_server import ApiServer


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/version", "/version"),
        ("/healthz/ping", "/{prefix}"),
        ("/api/v1/pods", "/api/v1/pods"),
        ("/api/v1/nodes/n1", "/api/v1/nodes/{name}"),
        ("/api/v1/nodes/n1/status", "/api/v1/nodes/{name}/status"),
        ("/api/v1/namespaces/a/pods", "/api/v1/namespaces/{namespace}/pods"),
        ("/api/v1/namespaces/a/pods/p", "/api/v1/namespaces/{namespace}/pods/{name}"),
        (
            "/apis/serving.knative.dev/v1/namespaces/a/revisions/b/status",
            "/apis/serving.knative.dev/v1/namespaces/{namespace}/revisions/{name}/status",
        ),
        ("/apis/apps/v1/deployments", "/apis/apps/v1/deployments"),
    ],
)
def test_names_are_left_out(path: str, expected: str) -> None:
    assert template(path) == expected


def test_answers_and_times_are_counted() -> None:
    async def main() -> None:
        async with ApiServer() as server:
            async with server.client() as client:
                await client.create(CONFIG_MAPS, {"metadata": {"name": "x", "namespace": "a"}})
                for _ in range(2):
                    await client.list(PODS)
                with contextlib.suppress(NotFound):
                    await client.get(PODS, "a", "b")
                traffic = client.session.traffic
                assert traffic.answers == {("POST", 201): 1, ("GET", 200): 2, ("GET", 404): 1}
                assert {key: took.buckets[-1][1] for key, took in traffic.times.items()} == {
                    ("POST", "/api/v1/namespaces/{namespace}/configmaps"): 1,
                    ("GET", "/api/v1/pods"): 2,
                    ("GET", "/api/v1/namespaces/{namespace}/pods/{name}"): 1,
                }
            away = server.client()
        async with away:
            with contextlib.suppress(Unavailable):
                await away.list(PODS)
            assert away.session.traffic.answers == {("GET", NO_ANSWER): 1}

    uvloop.run(main())
