"""Whether EndpointSlices may be read, told by the server's own answers."""

from __future__ import annotations

import pytest

from activator_replacement.knative.discovery.endpoints import may_read_slices
from kserve_ext.kube.client import Unavailable
from tests.support.api_server import ApiServer
from tests.support.dataplane import run
from tests.support.knative_activator import put_slice

ASKED = "GET /apis/discovery.k8s.io/v1/endpointslices"


def test_one_slice_and_a_watch_tell() -> None:
    async def test() -> None:
        async with ApiServer() as api, api.client() as client:
            api.most_per_page = 1
            put_slice(api, "hello-00001", ["10.0.0.1:8012", "10.0.0.2:8012", "10.0.0.3:8012"], [])
            assert await may_read_slices(client)
            assert api.requests == [ASKED, ASKED], "not all of them"
            await api.until(lambda: not api.watches)

    run(test())


@pytest.mark.parametrize("refused", ["limit=1", "watch=true"])
@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_role_without_list_or_watch_may_not(refused: str, status: int) -> None:
    async def test() -> None:
        async with ApiServer() as api, api.client() as client:
            api.fail(status, 2, path=refused)  # after a 401 it is asked once more
            assert not await may_read_slices(client)

    run(test())


def test_a_server_that_fails_tells_nothing() -> None:
    async def test() -> None:
        async with ApiServer() as api, api.client() as client:
            api.fail(500, path="watch=true")
            with pytest.raises(Unavailable):
                await may_read_slices(client)

    run(test())
