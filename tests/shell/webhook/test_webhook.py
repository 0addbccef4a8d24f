"""The webhook's process over TLS: it makes its certificate, is believed, answers, renews it, and ends well."""

from __future__ import annotations

import asyncio
import datetime
import json
import ssl
from base64 import b64decode

import aiohttp
import pytest

from autoscaler_shim.knative.settings import BadEnvironment
from autoscaler_shim.webhook import trust
from autoscaler_shim.webhook.keeper import NAME, Keeper
from autoscaler_shim.webhook.settings import Settings, read
from autoscaler_shim.webhook.webhook import Webhook
from kserve_ext.api.admission import BURST
from kserve_ext.kube import certificates
from kserve_ext.kube.client import Conflict
from kserve_ext.kube.kinds import SECRETS, VALIDATING_WEBHOOKS
from tests.support.api_server import ApiServer
from tests.support.dataplane import run
from tests.support.dispatch_cluster import until
from tests.support.webhook import PLACE, authorities, get, install, review, running, send

ENGINE = "kserve-galaxy.io/engine"


async def until_trusted(server: ApiServer, webhook: Webhook) -> None:
    await until(lambda: webhook.ready() and b"" not in authorities(server), "a certificate that is trusted")


def data(server: ApiServer) -> dict[str, bytes]:
    return certificates.files_of(server.get(SECRETS, PLACE, NAME) or {})


def test_from_nothing_to_an_answer_that_the_api_server_believes() -> None:
    async def test() -> None:
        async with ApiServer() as server:
            install(server)
            async with running(server) as webhook:
                await until_trusted(server, webhook)
                assert (await get(webhook, "/readyz"))[0] == 200
                status, body = await send(server, webhook, "/mutate", review({ENGINE: "galaxy"}))
                assert status == 200
                (operation,) = json.loads(b64decode(body["response"]["patch"]))
                assert operation["path"].endswith(BURST.replace("/", "~1"))
                status, body = await send(server, webhook, "/validate", review({ENGINE + "s": "galaxy"}))
                assert not body["response"]["allowed"]
                assert f"did you mean {ENGINE}?" in body["response"]["status"]["message"]
                _, text = await get(webhook, "/metrics")
                for line in (
                    'reviews_total{door="mutate",kind="Revision",operation="CREATE",outcome="patched"} 1.0',
                    'reviews_total{door="validate",kind="Revision",operation="CREATE",outcome="denied"} 1.0',
                ):
                    assert f"galaxy_webhook_{line}" in text
                assert "galaxy_webhook_certificate_end_seconds 0.0" not in text

    run(test())


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"apiVersion": "admission.k8s.io/v1"}'])
def test_what_is_no_review_is_a_bad_request(body: bytes) -> None:
    async def test() -> None:
        async with ApiServer() as server:
            install(server)
            async with running(server) as webhook:
                await until_trusted(server, webhook)
                plain = ssl.create_default_context(cadata=b"".join(authorities(server)).decode())
                plain.check_hostname = False
                url = f"https://127.0.0.1:{webhook.server.port}/validate"
                async with (
                    aiohttp.ClientSession() as session,
                    session.post(url, data=body, ssl=plain) as answer,
                ):
                    assert answer.status == 400

    run(test())


def test_nobody_is_sent_to_one_without_a_certificate() -> None:
    async def test() -> None:
        async with ApiServer() as server, running(server) as webhook:  # no Secret, no configurations
            assert (await get(webhook, "/healthz"))[0] == 200
            assert (await get(webhook, "/readyz"))[0] == 503

    run(test())


def test_of_two_that_start_at_once_both_are_believed() -> None:
    async def test() -> None:
        async with ApiServer() as server:
            install(server)
            async with running(server) as one, running(server) as other:
                for webhook in (one, other):
                    await until_trusted(server, webhook)
                    assert (await send(server, webhook, "/mutate", review({})))[0] == 200
            assert server.requests.count(f"PATCH {SECRETS.path(PLACE, NAME)}") <= 2
            assert data(server)["ca.crt"].count(b"BEGIN") == 1  # the second write was refused

    run(test())


def soon_over(server: ApiServer) -> dict[str, bytes]:
    """The Secret with a certificate that has to be renewed."""
    made = certificates.make(
        [f"{NAME}.{PLACE}.svc"], datetime.datetime.now(datetime.UTC), trust.EARLY - datetime.timedelta(days=1)
    )
    secret = server.get(SECRETS, PLACE, NAME)
    assert secret is not None
    server.put(SECRETS, {**secret, "data": certificates.as_data(made)})
    return made


def test_a_renewal_is_noticed_by_nobody() -> None:
    """Look by look: new in the Secret, then trusted beside the former, then shown."""

    async def test() -> None:
        async with ApiServer() as server:
            install(server)
            former = soon_over(server)
            shown: list[bytes] = []
            async with server.client() as client:
                keeper = Keeper(client, PLACE, lambda certificate, key: shown.append(certificate))
                keeper.shown = former["tls.crt"]
                assert await keeper.look()
                new = data(server)
                assert new["tls.crt"] != former["tls.crt"]
                assert not await keeper.look()
                assert (authorities(server), shown) == ({new["ca.crt"]}, [])
                assert former["ca.crt"] in new["ca.crt"]
                assert not await keeper.look()
                assert (shown, keeper.trusted) == ([new["tls.crt"]], True)

    run(test())


def test_a_key_of_another_certificate_is_no_reason_to_end() -> None:
    async def test() -> None:
        async with ApiServer() as server:
            install(server)
            made = [
                certificates.make(
                    [f"{NAME}.{PLACE}.svc"], datetime.datetime.now(datetime.UTC), trust.LIFETIME
                )
            ]
            made.append({**soon_over(server), "tls.crt": made[0]["tls.crt"]})
            secret = server.get(SECRETS, PLACE, NAME)
            assert secret is not None
            server.put(SECRETS, {**secret, "data": certificates.as_data(made[1])})
            async with running(server) as webhook:
                await until_trusted(server, webhook)
                assert (await send(server, webhook, "/mutate", review({})))[0] == 200

    run(test())


def test_who_comes_second_changes_nothing() -> None:
    async def test() -> None:
        async with ApiServer() as server:
            install(server)
            async with server.client() as client:
                keeper = Keeper(client, PLACE, lambda certificate, key: None)
                server.fail(409, method="PATCH", reason="Conflict", path=NAME)
                with pytest.raises(Conflict):
                    await keeper.look()
                assert data(server) == {}
                assert await keeper.look()

    run(test())


def test_authorities_that_somebody_takes_out_come_back() -> None:
    async def test() -> None:
        async with ApiServer() as server:
            install(server)
            async with server.client() as client:
                keeper = Keeper(client, PLACE, lambda certificate, key: None)
                while await keeper.look():
                    pass
                whole = authorities(server)
                found = server.get(VALIDATING_WEBHOOKS, "", NAME)
                assert found is not None
                del found["webhooks"][0]["clientConfig"]["caBundle"]
                server.put(VALIDATING_WEBHOOKS, found)
                assert len(authorities(server)) == 2
                await keeper.look()
                assert authorities(server) == whole

    run(test())


def test_what_is_shown_stays_while_the_api_server_is_away() -> None:
    async def test() -> None:
        async with ApiServer() as server:
            install(server)
            async with running(server) as webhook:
                await until_trusted(server, webhook)
                await server.down()
                assert webhook.ready()
                assert (await send(server, webhook, "/mutate", review({})))[0] == 200

    run(test())


def test_one_that_is_about_to_end_answers_and_asks_nobody_in() -> None:
    async def test() -> None:
        async with ApiServer() as server:
            install(server)
            async with running(server, drain_s=3600.0) as webhook:
                await until_trusted(server, webhook)
                ending = asyncio.create_task(webhook.stop())
                await until(lambda: not webhook.ready(), "its end")
                assert (await get(webhook, "/readyz"))[0] == 503
                assert (await send(server, webhook, "/mutate", review({})))[0] == 200
                ending.cancel()
                webhook.keeper.trusted = False  # nothing left to wait for

    run(test())


def test_settings() -> None:
    assert read({}) == Settings()
    given = {
        "SYSTEM_NAMESPACE": "kn",
        "GALAXY_WEBHOOK_PORT": "1",
        "GALAXY_METRICS_PORT": "2",
        "GALAXY_DRAIN": "7s",
    }
    assert read(given) == Settings("kn", 1, 2, 7.0)


@pytest.mark.parametrize(("name", "value"), [("GALAXY_WEBHOOK_PORT", "x"), ("GALAXY_DRAIN", "soon")])
def test_a_variable_that_cannot_be_read_is_named(name: str, value: str) -> None:
    with pytest.raises(BadEnvironment, match=name):
        read({name: value})
