"""What the environment asks for, and what is said where there is no RDMA at all."""

from __future__ import annotations

import builtins
from typing import Any

import pytest

from runtimes.transport.channel import ChannelError
from runtimes.transport.verbs import cards
from runtimes.transport.verbs.choice import Wanted


def test_the_environment_names_devices_and_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GALAXY_RDMA_DEVICES", " mlx5_1, mlx5_0:2,")
    monkeypatch.setenv("GALAXY_RDMA_NETWORK", "10.8.0.0/16")
    assert cards.wanted() == Wanted(("mlx5_1", "mlx5_0:2"), "10.8.0.0/16")
    monkeypatch.setenv("GALAXY_RDMA_NETWORK", "10.8.0.0/99")
    with pytest.raises(ChannelError, match=r"GALAXY_RDMA_NETWORK: .*; write it as 10\.8\.0\.0/16"):
        cards.wanted()


def test_without_pyverbs_there_is_no_device_and_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "pyverbs" or name.endswith("native") or "native" in (rest[2] or ()):
            raise ModuleNotFoundError("No module named 'pyverbs'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ChannelError, match="install python3-pyverbs") as caught:
        cards.find()
    assert caught.value.reason == "device"
