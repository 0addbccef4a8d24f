"""system-internal-tls: encrypted both ways, pods known by their namespace, certificates exchanged while it runs."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from activator_replacement.knative import tls
from activator_replacement.knative.activator import Activator
from activator_replacement.knative.tls import NoCertificate
from kserve_ext.kube.kinds import CONFIG_MAPS, SECRETS
from tests.support.api_server import ApiServer
from tests.support.certificates import Authority
from tests.support.dataplane import Client, get, instance, post, run
from tests.support.dispatch_cluster import until
from tests.support.knative_activator import (
    NAMESPACE,
    Pod,
    activator,
    put_config,
    put_endpoints,
    put_revision,
    running,
)

REVISION = "hello-00001"
HEADERS = (f"Knative-Serving-Namespace: {NAMESPACE}", f"Knative-Serving-Revision: {REVISION}")


def put_secret(api: ApiServer, certificate: bytes, key: bytes, ca: bytes = b"") -> None:
    data = {"tls.crt": certificate, "tls.key": key, "ca.crt": ca}
    api.put(
        SECRETS,
        {
            "metadata": {"namespace": "knative-serving", "name": tls.SECRET},
            "data": {name: base64.b64encode(value).decode() for name, value in data.items()},
        },
    )


def put_bundle(api: ApiServer, ca: bytes) -> None:
    metadata = {"namespace": "knative-serving", "name": "ours", "labels": {tls.TRUST_BUNDLE: "true"}}
    api.put(CONFIG_MAPS, {"metadata": metadata, "data": {"ours.pem": ca.decode()}})


async def connect(made: Activator, context: ssl.SSLContext) -> Client:
    assert made.https is not None
    streams = await asyncio.open_connection(
        "127.0.0.1", made.https[1], ssl=context, server_hostname="kn-routing"
    )
    client = Client(*streams)
    Client.opened.append(client)
    return client


async def serial(made: Activator, context: ssl.SSLContext) -> str:
    client = await connect(made, context)
    certificate = client.writer.get_extra_info("peercert")
    client.close()
    return str(certificate["serialNumber"])


@contextlib.asynccontextmanager
async def secured(
    api: ApiServer, pod: Pod, context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Activator]:
    """An activator that finds the pod's TLS port."""
    put_config(api, system_internal_tls="Enabled")
    put_revision(api, REVISION)
    put_endpoints(api, REVISION, [pod.addr])
    async with instance(pod, context) as addr:
        monkeypatch.setattr(tls, "POD_PORT", int(addr.rpartition(":")[2]))
        async with activator(api, GALAXY_HTTPS_PORT="0") as made:
            yield made


def test_both_ways_and_by_the_namespaces_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        ca, other = Authority(), Authority("other")
        async with ApiServer() as api, running(Pod()) as pod:
            certificate, key = ca.issue("kn-routing", "data-plane.knative.dev")
            put_secret(api, certificate, key, ca.pem)
            context = other.server(tmp_path, f"kn-user-{NAMESPACE}")
            async with secured(api, pod, context, monkeypatch) as made:
                client = await connect(made, ca.client())
                client.send(post(b"secret", *HEADERS))
                status, _, body = await client.response()
                assert (status, b"refused the connection" in body) == (502, True), (
                    "the pod's issuer isn't trusted"
                )
                put_bundle(api, other.pem)
                pods = made.backends.backends[next(iter(made.backends.backends))].pods
                await until(lambda: bool(made._tls and made._tls._bundles.objects), "the bundle is known")
                await until(lambda: pod.addr in pods.healthy, "the pod answers")
                client.send(post(b"secret", *HEADERS))
                assert (await client.response())[::2] == (200, b"secret")
                for context_ in (other.client(), ssl.create_default_context()):
                    with pytest.raises(ssl.SSLError):
                        await connect(made, context_)
                plain = await Client.connect("127.0.0.1", made.http1[1])
                plain.send(get("/", *HEADERS))
                assert (await plain.response())[0] == 200, "the plain ports stay"

    run(test())


def test_a_pod_of_another_namespace_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        ca = Authority()
        async with ApiServer() as api, running(Pod()) as pod:
            put_secret(api, *ca.issue("kn-routing"), ca.pem)
            async with secured(api, pod, ca.server(tmp_path, "kn-user-elsewhere"), monkeypatch) as made:
                client = await connect(made, ca.client())
                client.send(get("/", *HEADERS))
                assert (await client.response())[0] == 502
                assert pod.heads == []

    run(test())


def test_a_new_certificate_counts_at_once_and_a_bad_one_never() -> None:
    async def test() -> None:
        ca = Authority()
        async with ApiServer() as api:
            put_config(api, system_internal_tls="enabled")
            put_secret(api, *ca.issue("kn-routing"), ca.pem)
            async with activator(api, GALAXY_HTTPS_PORT="0") as made:
                assert made._tls is not None
                first = await serial(made, ca.client())
                put_secret(api, b"no certificate", b"no key", ca.pem)
                secrets = made._tls._secret.objects
                bad = base64.b64encode(b"no key").decode()
                await until(
                    lambda: next(iter(secrets.values()))["data"]["tls.key"] == bad, "the bad one is seen"
                )
                assert await serial(made, ca.client()) == first
                serving = made._tls._serving
                put_secret(api, *ca.issue("kn-routing"), ca.pem)
                await until(lambda: made._tls is not None and made._tls._serving is not serving, "it is new")
                assert await serial(made, ca.client()) != first

    run(test())


def test_addresses_are_forgotten_before_they_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "MOST_ADDRESSES", 3)

    async def test() -> None:
        async with ApiServer() as api:
            client = api.client()
            made = tls.InternalTls(client, "knative-serving")
            first = made.address("a", "10.0.0.1:8012")
            for at in range(2, 5):
                assert made.http1(made.address("b", f"10.0.0.{at}:8012"))[1] == "kn-user-b"
                assert made.http2(made.address("a", "10.0.0.1:8012"))[1] == "kn-user-a"
            assert first == "10.0.0.1:8112"
            assert len(made._namespaces) == 3
            await client.close()

    run(test())


def test_without_a_certificate_the_start_says_why() -> None:
    async def test() -> None:
        async with ApiServer() as api:
            put_config(api, system_internal_tls="enabled")
            client = api.client()
            with pytest.raises(NoCertificate, match="routing-serving-certs"):
                await tls.InternalTls(client, "knative-serving").start()
            await client.close()

    run(test())
