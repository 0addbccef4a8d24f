"""What is around engines that sleep: where their requests go, what their weights take, what a pod says of them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autoscaler_shim.slot import orders
from autoscaler_shim.slot.engines import _Engine, weights_mib
from autoscaler_shim.slot.settings import BadEnvironment, EnginePlan, read
from autoscaler_shim.slot.slot import Slot, with_port
from kserve_ext.core.standby.engine_events import EngineGone
from kserve_ext.core.standby.facts import Assignment
from kserve_ext.core.standby.slot_events import ServerEnded
from kserve_ext.rpc import ports
from tests.support.dataplane import run
from tests.support.standby import assignment

ENVIRON = {
    "POD_NAME": "standby-1",
    "POD_NAMESPACE": "team-a",
    "POD_UID": "u",
    "POD_IP": "10.0.0.1",
    "GALAXY_POOL": "p",
    "GALAXY_ZYGOTE": "runtimes.vllm_pd",
    "GALAXY_AGENT_SOCKET": "/run/agent.sock",
    "GALAXY_TOKEN_FILE": "/run/token",
    "GALAXY_SLOT_LEVEL": "S2",
    "GALAXY_SLOT_HOST_MIB": "4096",
    "A_SECRET": "sesame",
    "GALAXY_SLOT_ENGINES": json.dumps(
        {"env": ["A_SECRET", "NOT_THERE"], "engines": [{"name": "a", "argv": ["run"], "model": "/m"}]}
    ),
}


def test_requests_and_probes_go_to_the_engines_port() -> None:
    probe = json.dumps(
        [{"tcpSocket": {"port": 8080, "host": "127.0.0.1"}}, {"httpGet": {"port": 9, "path": "/x"}}]
    )
    asked = assignment()._replace(port=8080, probe=probe)
    told = with_port(asked, 5000)
    assert told.port == 5000
    assert json.loads(told.probe) == [
        {"tcpSocket": {"port": 5000, "host": "127.0.0.1"}},
        {"httpGet": {"port": 9, "path": "/x"}},
    ]
    for kept in ("", "no JSON"):
        assert with_port(asked._replace(probe=kept), 5000).probe == kept


def test_an_engine_loads_for_a_port_that_the_kernel_gives_to_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing: Any = None
    plan = EnginePlan("a", ("run",), (), tmp_path)
    engine = _Engine(plan, tmp_path, nothing, nothing, "p", 1, lambda name, event: None)
    told: list[Assignment] = []
    monkeypatch.setattr(engine.server, "start", told.append)
    engine.start()
    first = int(ports.RANGE.read_text().split()[0]) if ports.RANGE.exists() else 32768
    assert 1024 <= engine.port < max(first, 1024 + 16384)
    assert told[0].argv[-2:] == ("--port", str(engine.port))


@pytest.mark.parametrize("event", [ServerEnded("ended"), EngineGone("a", "ended")])
def test_only_who_serves_is_told_gone_before_its_memory_is_counted(event: EngineGone | ServerEnded) -> None:
    counts, told = asyncio.Event(), list[object]()

    async def quiet() -> float:
        await counts.wait()
        return 0.0

    class Machine:
        state = "serving"

    async def test() -> None:
        slot: Any = Slot.__new__(Slot)
        slot._gpus, slot._machine, slot._tasks = SimpleNamespace(there=True, quiet=quiet), Machine(), set()
        slot._happened = told.append
        slot._gone(event)
        assert told == [event]
        Machine.state = "draining"
        slot._gone(event)
        await asyncio.sleep(0)
        assert told == [event]
        counts.set()
        await asyncio.wait(slot._tasks)
        assert told == [event, event]

    asyncio.run(test())


def test_weights_are_the_files_that_a_runtime_loads(tmp_path: Path) -> None:
    for name, mib in (
        ("a.safetensors", 3),
        ("b.safetensors", 2),
        ("pytorch_model.bin", 5),
        ("tokenizer.json", 1),
    ):
        with (tmp_path / name).open("wb") as file:
            file.truncate((mib << 20) - 1)
    assert weights_mib(tmp_path) == 5
    assert weights_mib(tmp_path / "pytorch_model.bin") == 5
    (tmp_path / "a.safetensors").unlink()
    (tmp_path / "b.safetensors").unlink()
    assert weights_mib(tmp_path) == 5
    (tmp_path / "pytorch_model.bin").unlink()
    assert weights_mib(tmp_path) == 1
    assert weights_mib(tmp_path / "nowhere") == 0


def test_what_a_pod_says_of_its_engines() -> None:
    settings = read(ENVIRON)
    (plan,) = settings.engines
    assert (plan.name, plan.argv, plan.model) == ("a", ("run",), Path("/m"))
    assert plan.env == (("A_SECRET", "sesame"),), "its values are the pod's own"
    assert settings.host_mib == 3072
    assert read(ENVIRON | {"GALAXY_SLOT_LEVEL": "S0"}).engines == ()
    assert read(ENVIRON | {"GALAXY_SLOT_WAKE": "5s"}).wake_s == 5.0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GALAXY_SLOT_ENGINES", ""),
        ("GALAXY_SLOT_ENGINES", "[]"),
        ("GALAXY_SLOT_ENGINES", '{"engines": []}'),
        ("GALAXY_SLOT_ENGINES", '{"engines": [{"name": "a"}]}'),
        ("GALAXY_SLOT_HOST_MIB", "much"),
        ("GALAXY_SLOT_WAKE", "soon"),
    ],
)
def test_what_can_not_be_read_is_named(name: str, value: str) -> None:
    with pytest.raises(BadEnvironment, match=name):
        read(ENVIRON | {name: value})


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (404, b"", "VLLM_SERVER_DEV_MODE=1"),
        (500, b"why", "/wake_up answers 500: why"),
        (200, b'{"is_sleeping": true}', "/is_sleeping that it isn't"),
        (200, b"no", "which is no JSON object"),
    ],
)
def test_an_engine_that_does_not_wake_is_believed_by_what_it_says(
    tmp_path: Path, status: int, body: bytes, says: str
) -> None:
    answer = b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async def test() -> None:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            with pytest.raises(orders.NotDone, match=says):
                await orders.wake(tmp_path, port, 1)

    run(test())
