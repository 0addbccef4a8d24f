"""The certificate that galaxy install makes: parts that hold it understand each other, before and after a renewal."""

from __future__ import annotations

import base64
import datetime
import logging

import pytest

from kserve_ext.cli.knative.certificates import EARLY, LIFETIME, Object, due, secret
from kserve_ext.kube.identity import SecretIdentity
from kserve_ext.kube.kinds import SECRETS
from kserve_ext.rpc.mutual_tls import Identity
from kserve_ext.rpc.rpc import Rpc
from kserve_ext.wire.messages import Describe, Description
from tests.support.api_server import ApiServer
from tests.support.dataplane import run
from tests.support.dispatch_cluster import until

PLACE = "knative-serving"
NOW = datetime.datetime.now(datetime.UTC)


def identity(made: Object) -> Identity:
    found = Identity(f"kserve-galaxy.{PLACE}", strict=True)
    found.load(*(base64.b64decode(made["data"][name]) for name in ("tls.crt", "tls.key", "ca.crt")))
    return found


async def speak(one: Identity, other: Identity) -> bool:
    key = bytes(32)
    listener, caller = Rpc("listener", key, identity=one), Rpc("caller", key, identity=other)
    listener.handle(Describe, lambda message, caller: Description(b"yes"))
    try:
        addr = await listener.listen("127.0.0.1")
        return bool((await caller.call(addr, Describe("x"), 5.0)).body == b"yes")
    finally:
        await caller.close()
        await listener.close()


def test_parts_of_before_and_after_a_renewal_understand_each_other_one_way() -> None:
    async def test() -> None:
        former = secret(PLACE, NOW)
        renewed = secret(PLACE, NOW, former)
        assert await speak(identity(former), identity(former))
        assert await speak(identity(renewed), identity(renewed))
        assert renewed["data"]["tls.crt"] != former["data"]["tls.crt"]
        third = base64.b64decode(secret(PLACE, NOW, renewed)["data"]["ca.crt"])
        assert third.count(b"BEGIN CERTIFICATE") == 2, "the one before the former is forgotten"

    run(test(), 30)


def test_when_it_is_renewed() -> None:
    made = secret(PLACE, NOW)
    assert not due(made, NOW)
    assert not due(made, NOW + LIFETIME - EARLY - datetime.timedelta(days=1))
    assert due(made, NOW + LIFETIME - EARLY + datetime.timedelta(days=1))
    assert due({"metadata": {}}, NOW)
    assert due({"data": {"tls.crt": "AAAA"}}, NOW)


def test_a_part_reads_it_and_what_takes_its_place(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with ApiServer() as api:
            client = api.client()
            watched = SecretIdentity(client, PLACE, "permissive")
            await watched.start()
            assert watched.identity.client is None
            assert "everything goes without TLS" in caplog.text
            api.put(SECRETS, secret(PLACE, NOW))
            await until(lambda: watched.identity.client is not None, "it is read")
            first = watched.identity.client
            api.put(SECRETS, {**secret(PLACE, NOW), "data": {"tls.crt": "??"}})
            await until(lambda: "the last good one stays" in caplog.text, "what can't be used is named")
            assert watched.identity.client is first
            api.put(SECRETS, secret(PLACE, NOW))
            await until(lambda: watched.identity.client is not first, "the next is read")
            await watched.stop()
            await client.close()

    with caplog.at_level(logging.INFO):
        run(test(), 60)


@pytest.mark.parametrize(
    ("age", "said"),
    [
        (LIFETIME / 2, ""),
        (LIFETIME * 3 / 4, ""),  # galaxy install would renew it, and there is time
        (LIFETIME - datetime.timedelta(days=10), "WARNING ends in 10.0 days"),
        (LIFETIME + datetime.timedelta(days=1), "ERROR has ended"),
    ],
)
def test_the_log_says_when_nobody_has_renewed_it(
    age: datetime.timedelta, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with ApiServer() as api, api.client() as client:
            api.put(SECRETS, secret(PLACE, NOW - age))
            watched = SecretIdentity(client, PLACE, "permissive")
            await watched.start()
            await watched.stop()

    run(test(), 60)
    found = [record for record in caplog.records if "refuse each other" in record.getMessage()]
    words = said.split(" ", 1)
    assert [record.levelname for record in found] == words[:1] * bool(said)
    assert all(words[-1] in record.getMessage() for record in found)
