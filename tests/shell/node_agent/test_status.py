"""What an agent says of its node, from files as Linux has them and a Node object."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autoscaler_shim.knative.settings import BadEnvironment
from autoscaler_shim.node_agent import settings, status
from kserve_ext.core.facts import Resources
from kserve_ext.core.ids import NodeID
from kserve_ext.core.standby.facts import Slot

NODE: dict[str, Any] = {
    "metadata": {"labels": {"nvidia.com/gpu.memory": "1000", "zone": "a"}},
    "spec": {"unschedulable": True},
    "status": {"allocatable": {"cpu": "7500m", "memory": "8Gi", "nvidia.com/gpu": "4"}},
}


def write(root: Path, path: str, text: str = "") -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, "proc/meminfo", "MemTotal:  9000000 kB\nMemAvailable:  2048000 kB\n")
    write(tmp_path, "proc/loadavg", "1.50 1.00 0.50 1/100 1\n")
    write(tmp_path, "sys/class/infiniband/mlx5_0/ports/1/state", "4: ACTIVE\n")
    write(tmp_path, "sys/class/infiniband/mlx5_1/ports/1/state", "1: DOWN\n")
    (tmp_path / "dev/infiniband").mkdir(parents=True)
    return tmp_path


def test_capacity_and_what_is_free(root: Path) -> None:
    slots = (
        Slot("ns/a", "u", "pool", "10.0.0.1", "S0", "ready", gpus=1),
        Slot("ns/b", "v", "pool", "10.0.0.2", "S0", "serving", gpus=2),
    )
    said = status.status(
        NodeID("n"), "10.0.0.9:8015", 1, 2, NODE, status.resources(NODE, root), slots, ("m",), root
    )
    assert said.capacity == Resources(7500, 8192, 4, 4000, 1)
    assert said.free == Resources(6000, 2000, 1, 1000, 1)
    assert (said.slots, said.instances, said.models) == ((("pool", 1),), 1, ("m",))
    assert not said.accepting, "it is cordoned"
    assert ("zone", "a") in said.labels


def test_a_node_of_which_nothing_is_known_has_nothing(tmp_path: Path) -> None:
    assert status.resources({}, tmp_path) == Resources()
    assert status.free(Resources(), (), tmp_path) == Resources()
    odd = {"status": {"allocatable": {"cpu": "many", "nvidia.com/gpu": None}}}
    assert status.resources(odd, tmp_path) == Resources()


def test_rdma_devices_need_something_that_opens_them(root: Path) -> None:
    assert status.rdma_devices(root) == ["mlx5_0"]
    (root / "dev/infiniband").rmdir()
    assert status.rdma_devices(root) == []


def test_models_of_the_cache_and_datasets_that_are_mounted(tmp_path: Path) -> None:
    write(tmp_path, "cache/llama/config.json")
    write(tmp_path, "cache/.partial/config.json")
    write(tmp_path, "cache/a-file")
    write(tmp_path, "mnt/alluxio/ns/weights/alluxio-fuse/file")
    (tmp_path / "mnt/alluxio/ns/empty/alluxio-fuse").mkdir(parents=True)
    assert status.models(tmp_path / "cache", tmp_path / "mnt") == ("llama", "fluid://ns/weights")
    assert status.models(None, None) == ()
    assert status.models(tmp_path / "gone", None) == ()


def test_the_environment_names_what_is_missing_or_wrong() -> None:
    pod = {"NODE_NAME": "n", "POD_IP": "10.0.0.1"}
    assert settings.read(pod) == settings.Settings("n", "10.0.0.1")
    for environ, name in (
        ({"POD_IP": "10.0.0.1"}, "NODE_NAME"),
        ({**pod, "GALAXY_AGENT_PORT": "x"}, "GALAXY_AGENT_PORT"),
        ({**pod, "GALAXY_MODEL_CACHE": "models"}, "GALAXY_MODEL_CACHE"),
        ({**pod, "GALAXY_MUTUAL_TLS": "yes"}, "GALAXY_MUTUAL_TLS"),
    ):
        with pytest.raises(BadEnvironment, match=name):
            settings.read(environ)
