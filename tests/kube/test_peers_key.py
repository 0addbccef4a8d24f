"""The key of our parts: who waits for it calmly, and when that is no longer right."""

from __future__ import annotations

import logging

import pytest

from kserve_ext.kube import peers_key as peers
from kserve_ext.kube.kinds import SECRETS
from kserve_ext.kube.peers_key import INSTALL_S, NoKey, peers_key
from tests.support.api_server import ApiServer
from tests.support.dataplane import run

SYSTEM = "knative-serving"


def put(api: ApiServer, data: dict[str, str]) -> None:
    api.put(SECRETS, {"metadata": {"namespace": SYSTEM, "name": "galaxy-peers"}, "data": data})


async def refusal(api: ApiServer) -> NoKey:
    async with api.client() as client:
        with pytest.raises(NoKey) as caught:
            await peers_key(client, SYSTEM, make=False)
    return caught.value


def test_what_is_not_there_yet_is_no_warning_before_an_installation_has_had_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peers, "PATIENCE_S", 0.0)
    monkeypatch.setattr(peers, "AGAIN_S", 0.001)

    async def test() -> None:
        async with ApiServer() as api:
            for there in (False, True):
                if there:
                    put(api, {})
                error = await refusal(api)
                assert error.yet
                assert error.level(0.0) == logging.INFO
                assert error.level(INSTALL_S) == logging.WARNING
                assert "galaxy-peers" in str(error)

    run(test())


def test_a_key_that_cant_be_used_and_a_secret_that_cant_be_read_are_warnings_at_once() -> None:
    async def test() -> None:
        async with ApiServer() as api:
            put(api, {"key": "c2hvcnQ="})
            assert (await refusal(api)).level(0.0) == logging.WARNING
            api.fail(403, path="galaxy-peers")
            assert (await refusal(api)).level(0.0) == logging.WARNING

    run(test())
