"""The client against a real socket: verbs, errors by cause, pages, retries, tokens, watches, an absent server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from kserve_ext.kube import session as session_module
from kserve_ext.kube.access import Access, Endpoint
from kserve_ext.kube.client import (
    AlreadyExists,
    Client,
    Conflict,
    Gone,
    Invalid,
    KubeError,
    NotFound,
    Unavailable,
)
from kserve_ext.kube.kinds import (
    CLUSTER_ROLES,
    CONFIG_MAPS,
    DEPLOYMENTS,
    LEASES,
    NAMESPACES,
    POD_AUTOSCALERS,
    PODS,
    REVISIONS,
    Kind,
)
from tests.support.api_server import ApiServer

Scenario = Callable[[ApiServer, Client], Awaitable[None]]


def play(scenario: Scenario) -> None:
    async def main() -> None:
        async with ApiServer() as server, server.client() as client:
            await scenario(server, client)

    uvloop.run(main())


def config_map(name: str, **data: str) -> dict[str, object]:
    return {"metadata": {"name": name, "namespace": "a", "labels": {"app": name}}, "data": data}


@pytest.mark.parametrize(
    ("kind", "namespace", "name", "subresource", "path"),
    [
        (PODS, "", "", "", "/api/v1/pods"),
        (PODS, "a", "", "", "/api/v1/namespaces/a/pods"),
        (REVISIONS, "a", "b", "status", "/apis/serving.knative.dev/v1/namespaces/a/revisions/b/status"),
        (NAMESPACES, "", "a", "", "/api/v1/namespaces/a"),
        (
            CLUSTER_ROLES,
            "",
            "system:node/x",
            "",
            "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode%2Fx",
        ),
    ],
)
def test_where_objects_are(kind: Kind, namespace: str, name: str, subresource: str, path: str) -> None:
    assert kind.path(namespace, name, subresource) == path


def test_the_verbs() -> None:
    async def scenario(server: ApiServer, client: Client) -> None:
        made = await client.create(CONFIG_MAPS, config_map("x", k="1"))
        assert (made["kind"], made["apiVersion"], made["data"]) == ("ConfigMap", "v1", {"k": "1"})
        made["data"]["k"] = "2"
        second = await client.replace(CONFIG_MAPS, made)
        patched = await client.patch(CONFIG_MAPS, "a", "x", {"data": {"k": None, "l": "3"}})
        assert patched["data"] == {"l": "3"}
        assert int(patched["metadata"]["resourceVersion"]) > int(second["metadata"]["resourceVersion"])
        edit = [{"op": "replace", "path": "/data/l", "value": "4"}]
        await client.patch(CONFIG_MAPS, "a", "x", edit, content_type="application/json-patch+json")
        assert (await client.get(CONFIG_MAPS, "a", "x"))["data"] == {"l": "4"}
        await client.apply(CONFIG_MAPS, config_map("y"), "tests", force=True)
        assert sorted(name for _, name in server.objects.of(CONFIG_MAPS)) == ["x", "y"]
        await client.delete(CONFIG_MAPS, "a", "x", uid=made["metadata"]["uid"])
        assert server.get(CONFIG_MAPS, "a", "x") is None

    play(scenario)


def test_status_and_scale_are_subresources() -> None:
    async def scenario(server: ApiServer, client: Client) -> None:
        await client.create(
            POD_AUTOSCALERS,
            {"metadata": {"name": "x", "namespace": "a"}, "spec": {"s": 1}, "status": {"no": 1}},
        )
        obj = await client.get(POD_AUTOSCALERS, "a", "x")
        obj["status"] = {"desiredScale": 1}
        after = await client.replace(POD_AUTOSCALERS, obj, "status")
        assert after["status"] == {"desiredScale": 1}
        assert after["metadata"]["generation"] == 1
        after["status"], after["spec"] = {}, {"s": 2}
        last = await client.replace(POD_AUTOSCALERS, after)
        assert (last["status"], last["metadata"]["generation"]) == ({"desiredScale": 1}, 2)

        spec = {"replicas": 1, "selector": {"matchLabels": {"a": "b"}}}
        server.put(DEPLOYMENTS, {"metadata": {"name": "d", "namespace": "a"}, "spec": spec})
        scale = await client.get(DEPLOYMENTS, "a", "d", "scale")
        assert scale["status"]["selector"] == "a=b"
        await client.patch(DEPLOYMENTS, "a", "d", {"spec": {"replicas": 3}}, "scale")
        scale = await client.get(DEPLOYMENTS, "a", "d", "scale")
        scale["spec"]["replicas"] += 1
        await client.replace(DEPLOYMENTS, scale, "scale")
        stored = server.get(DEPLOYMENTS, "a", "d")
        assert stored is not None
        assert stored["spec"] == {**spec, "replicas": 4}

    play(scenario)


def test_errors_by_cause() -> None:
    async def scenario(server: ApiServer, client: Client) -> None:
        made = await client.create(CONFIG_MAPS, config_map("x"))
        with pytest.raises(AlreadyExists):
            await client.create(CONFIG_MAPS, config_map("x"))
        await client.patch(CONFIG_MAPS, "a", "x", {"data": {"k": "2"}})
        with pytest.raises(Conflict):
            await client.replace(CONFIG_MAPS, made)
        with pytest.raises(Conflict):
            await client.delete(CONFIG_MAPS, "a", "x", uid="another")
        with pytest.raises(NotFound) as not_found:
            await client.get(LEASES, "a", "x")
        assert str(not_found.value) == 'NotFound: leases.coordination.k8s.io "x" not found'
        server.put(REVISIONS, {"metadata": {"name": "r", "namespace": "a"}})
        with pytest.raises(Invalid):
            await client.replace(REVISIONS, {"metadata": {"name": "r", "namespace": "a"}})
        server.fail(403, reason="Forbidden")
        with pytest.raises(KubeError) as forbidden:
            await client.get(CONFIG_MAPS, "a", "x")
        assert (type(forbidden.value), forbidden.value.reason) == (KubeError, "Forbidden")
        server.fail(500)
        with pytest.raises(Unavailable):
            await client.get(CONFIG_MAPS, "a", "x")

    play(scenario)


def test_an_answer_that_is_no_status_object_is_quoted() -> None:
    async def scenario(server: ApiServer, client: Client) -> None:
        with pytest.raises(NotFound, match="GET /nowhere: 404 page not found"):
            await client.request("GET", "/nowhere")

    play(scenario)


def test_credentials_that_cannot_be_read_are_like_an_absent_server() -> None:
    def no_file() -> str:
        raise FileNotFoundError("token")

    async def scenario(server: ApiServer, _: Client) -> None:
        async with Client(Access(Endpoint(server.url), no_file)) as client:
            with pytest.raises(Unavailable, match="no credentials: token"):
                await client.list(PODS)
        assert server.requests == []

    play(scenario)


def test_lists_come_whole_over_pages_even_when_these_expire() -> None:
    async def scenario(server: ApiServer, client: Client) -> None:
        for k in range(7):
            server.put(CONFIG_MAPS, config_map(f"m{k}"))
        server.most_per_page = 3
        listed = await client.list(CONFIG_MAPS, "a")
        assert [obj["metadata"]["name"] for obj in listed.items] == [f"m{k}" for k in range(7)]
        assert listed.resource_version == str(server.objects.version)
        assert {(obj["kind"], obj["apiVersion"]) for obj in listed.items} == {("ConfigMap", "v1")}
        assert len(server.requests) == 3
        server.pages_expire = True
        again = await client.list(CONFIG_MAPS)
        assert again == listed
        assert len(server.requests) == 6  # the first page, the refused second, then all at once

    play(scenario)


def test_selectors() -> None:
    async def scenario(server: ApiServer, client: Client) -> None:
        for name in ("x", "y", "z"):
            server.put(CONFIG_MAPS, config_map(name))
        assert len((await client.list(CONFIG_MAPS, "b")).items) == 0
        assert len((await client.list(CONFIG_MAPS, labels="app in (x, y),app!=x")).items) == 1
        assert len((await client.list(CONFIG_MAPS, fields="metadata.name=z")).items) == 1

    play(scenario)


def test_a_request_that_should_come_later_does_so_a_few_times() -> None:
    async def scenario(server: ApiServer, client: Client) -> None:
        server.fail(429, retry_after=1, reason="TooManyRequests")
        await client.create(CONFIG_MAPS, config_map("x"))
        assert len(server.requests) == 2
        assert client.away_s() == 0.0
        server.fail(429, retry_after=3600)
        with pytest.raises(Unavailable) as later:
            await client.get(CONFIG_MAPS, "a", "x")
        assert later.value.retry_after_s == 3600
        assert len(server.requests) == 3

    play(scenario)


def test_a_token_that_was_replaced_is_read_again() -> None:
    async def scenario(server: ApiServer, _: Client) -> None:
        tokens = ["old"]
        server.token = "old"
        async with Client(Access(Endpoint(server.url), lambda: f"Bearer {tokens[-1]}")) as client:
            await client.list(PODS)
            server.token = "new"
            tokens.append("new")
            await client.list(PODS)
            assert len(server.requests) == 3
            server.token = "nobody has it"
            with pytest.raises(KubeError) as refused:
                await client.list(PODS)
            assert refused.value.status == 401

    play(scenario)


@pytest.mark.parametrize("politely", [True, False])
def test_a_watch_tells_changes_until_it_is_cut(politely: bool) -> None:
    async def scenario(server: ApiServer, client: Client) -> None:
        server.put(CONFIG_MAPS, config_map("before"))
        version = (await client.list(CONFIG_MAPS)).resource_version
        server.put(CONFIG_MAPS, config_map("x", k="1"))
        watch = client.watch(CONFIG_MAPS, "a", "app=x", resource_version=version)
        async with contextlib.aclosing(watch) as events:
            first = await anext(events)
            assert (first.type, first.object["metadata"]["name"]) == ("ADDED", "x")
            server.put(CONFIG_MAPS, config_map("not asked for"))
            server.put(CONFIG_MAPS, config_map("x", k="€" * 300_000))  # far more than a read buffer
            second = await anext(events)
            assert (second.type, len(second.object["data"]["k"])) == ("MODIFIED", 300_000)
            server.bookmark()
            assert (await anext(events)).object["metadata"]["resourceVersion"] == str(server.objects.version)
            server.remove(CONFIG_MAPS, "a", "x")
            assert (await anext(events)).type == "DELETED"
            server.cut(politely=politely)
            with pytest.raises(StopAsyncIteration if politely else Unavailable):
                await anext(events)
        await server.until(lambda: not server.watches)

    play(scenario)


def test_a_watch_left_early_is_closed_at_the_server_too() -> None:
    async def scenario(server: ApiServer, client: Client) -> None:
        server.put(CONFIG_MAPS, config_map("x"))
        async with contextlib.aclosing(client.watch(CONFIG_MAPS, resource_version="0")) as events:
            await anext(events)
        server.put(CONFIG_MAPS, config_map("y"))
        await server.until(lambda: not server.watches)

    play(scenario)


def test_a_watch_of_forgotten_history_is_gone() -> None:
    async def scenario(server: ApiServer, client: Client) -> None:
        server.put(CONFIG_MAPS, config_map("x"))
        server.compact()
        with pytest.raises(Gone):
            await anext(client.watch(CONFIG_MAPS, resource_version="1"))

    play(scenario)


def test_a_silent_watch_ends() -> None:
    async def scenario(server: ApiServer, client: Client) -> None:
        watch = client.watch(CONFIG_MAPS, resource_version=str(server.objects.version), idle_s=0.05)
        assert [event async for event in watch] == []
        assert client.away_s() == 0.0

    play(scenario)


def test_a_watch_whose_answer_does_not_begin_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "REQUEST_TIMEOUT_S", 0.05)

    async def scenario(server: ApiServer, client: Client) -> None:
        server.hold()
        with pytest.raises(Unavailable):
            await anext(client.watch(CONFIG_MAPS, resource_version="1"))
        assert client.away_s() > 0.0

    play(scenario)


def test_an_absent_server_is_unavailable_and_counted_until_it_answers() -> None:
    async def scenario(server: ApiServer, client: Client) -> None:
        await client.list(PODS)
        contact = client.last_contact
        await server.down()
        with pytest.raises(Unavailable):
            await client.create(CONFIG_MAPS, config_map("x"))
        assert client.away_s() > 0.0
        assert client.last_contact == contact
        await server.up()
        await client.create(CONFIG_MAPS, config_map("x"))
        assert client.away_s() == 0.0
        assert client.last_contact > contact
        server.fail(502)
        with pytest.raises(Unavailable):
            await client.list(PODS)
        assert client.away_s() > 0.0

    play(scenario)


def test_requests_beyond_the_rate_keep_their_order() -> None:
    sent: list[str] = []

    class Noting(Access):
        """Asked for its credentials by each request just before it leaves."""

        async def header(self, refused: str | None = None) -> str:
            task = asyncio.current_task()
            assert task is not None
            sent.append(task.get_name())
            return await super().header(refused)

    async def scenario(server: ApiServer, _: Client) -> None:
        async with Client(Noting(Endpoint(server.url)), qps=200.0, burst=2) as client:
            names = [f"m{k}" for k in range(6)]
            tasks = [asyncio.create_task(client.create(CONFIG_MAPS, config_map(n)), name=n) for n in names]
            await asyncio.gather(*tasks)
            assert sent == names

    play(scenario)
