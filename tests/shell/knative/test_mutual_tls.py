"""Whole parts that speak to each other over mutual TLS: strict, on the way to it, and with a renewed certificate."""

from __future__ import annotations

import datetime
import logging
import ssl

import aiohttp
import pytest

from activator_replacement.knative.activator import Activator
from kserve_ext.cli.knative.certificates import secret
from kserve_ext.kube.identity import SECRET, NoIdentity, SecretIdentity
from kserve_ext.kube.kinds import SECRETS
from tests.support.api_server import ApiServer
from tests.support.dataplane import run
from tests.support.dispatch_cluster import until
from tests.support.knative_activator import activator, put_config
from tests.support.knative_autoscaler import autoscaler

PLACE = "knative-serving"
NOW = datetime.datetime.now(datetime.UTC)


def put_secret(api: ApiServer) -> None:
    api.put(SECRETS, secret(PLACE, NOW, api.get(SECRETS, PLACE, SECRET)))


async def connected(made: Activator) -> None:
    await until(lambda: made.sink.reachable, "the autoscaler is reached")


@pytest.mark.parametrize(
    ("activators", "autoscalers", "certificate"),
    [
        ("strict", "strict", True),
        ("permissive", "permissive", True),
        ("permissive", "permissive", False),
        ("off", "permissive", True),
        ("permissive", "off", True),
    ],
)
def test_reports_arrive(activators: str, autoscalers: str, certificate: bool) -> None:
    async def test() -> None:
        async with ApiServer() as api:
            put_config(api)
            if certificate:
                put_secret(api)
            async with autoscaler(api, mutual_tls=autoscalers) as made:
                url = f"ws://127.0.0.1:{made.stat_server.port}"
                async with activator(api, GALAXY_AUTOSCALER=url, GALAXY_MUTUAL_TLS=activators) as reporter:
                    await connected(reporter)
                    assert made.stat_server.clients == 1

    run(test(), 60)


def test_strict_refuses_who_shows_nothing_and_reads_a_new_certificate(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        async with ApiServer() as api:
            put_config(api)
            put_secret(api)
            async with autoscaler(api, mutual_tls="strict") as made:
                url = f"ws://127.0.0.1:{made.stat_server.port}"
                async with activator(api, GALAXY_AUTOSCALER=url):
                    await until(lambda: "refused, since mutual TLS is strict" in caplog.text, "it is refused")
                    assert made.stat_server.clients == 0
                for _ in range(2):
                    async with activator(api, GALAXY_AUTOSCALER=url, GALAXY_MUTUAL_TLS="strict") as reporter:
                        await connected(reporter)
                    put_secret(api)
                stranger = ssl.create_default_context()
                stranger.check_hostname, stranger.verify_mode = False, ssl.CERT_NONE
                async with aiohttp.ClientSession() as session:
                    with pytest.raises((aiohttp.ClientError, OSError)):
                        async with session.get(url.replace("ws", "https"), ssl=stranger) as answer:
                            await answer.read()

    with caplog.at_level(logging.WARNING):
        run(test(), 90)


def test_strict_without_a_certificate_nothing_begins() -> None:
    async def test() -> None:
        async with ApiServer() as api, api.client() as client:
            watched = SecretIdentity(client, PLACE, "strict")
            with pytest.raises(NoIdentity, match="galaxy install --mutual-tls"):
                await watched.start()
            await watched.stop()

    run(test(), 60)
