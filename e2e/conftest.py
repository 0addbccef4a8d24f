"""A stack for the run, and the implementations that it is run against: stock and ours, or those of `--impl`.

Without --stack a stack of its own is started and taken down; with it one that is up already is used and kept.
The tests of one implementation run together; before them its images are rolled out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from e2e.behaviours.client import Client
from e2e.behaviours.ingress import Ingress
from e2e.stack import cluster, network
from e2e.stack.api import Api
from e2e.stack.cluster import Cluster
from e2e.stack.implementations import IMPLEMENTATIONS, PARTS, USUAL, grant, image, images, roll_out, use

TEST_S = 300


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--impl",
        action="append",
        choices=list(IMPLEMENTATIONS),
        help="which activator and autoscaler (stock, ours)",
    )
    parser.addoption("--stack", default=os.environ.get("E2E_STACK", ""), help="a stack that is up, kept")
    parser.addoption("--seed", default=None, help="of a storm: repeats what it does (test_standby_storm.py)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--impl") == ["stock"]:
        # What takes no implementation is about ours.
        items[:] = [item for item in items if "implementation" in getattr(item, "fixturenames", ())]
    for item in items:
        if item.get_closest_marker("timeout") is None:
            # By a signal, which leaves the fixtures their end: the stack goes.
            item.add_marker(pytest.mark.timeout(TEST_S, method="signal"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "implementation" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--impl") or USUAL
        metafunc.parametrize("implementation", chosen, scope="session", indirect=True)


@pytest.fixture(scope="session")
def stack(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    name = request.config.getoption("--stack")
    for variable in os.environ.keys() - network.environment().keys():
        del os.environ[variable]
    try:
        found = cluster.attach(name) if name else cluster.up()
    except (cluster.StackError, network.NetworkError, RuntimeError, TimeoutError) as error:
        pytest.exit(f"no stack to test against: {error}", returncode=1)
    yield found
    found.api.close()
    if not name:
        cluster.down(found.place, keep_logs=request.session.testsfailed > 0)


@pytest.fixture(scope="session")
def ingress(stack: Cluster) -> Iterator[Ingress]:
    with Ingress(stack.place) as following:
        yield following


@pytest.fixture(scope="session")
def implementation(request: pytest.FixtureRequest, stack: Cluster) -> str:
    """Rolled out."""
    use(stack.api, request.param)
    return str(request.param)


@pytest.fixture
def api(stack: Cluster, implementation: str) -> Api:
    return stack.api


@pytest.fixture
def client(ingress: Ingress, implementation: str) -> Client:
    return Client(ingress)


@pytest.fixture
def stock(stack: Cluster) -> Iterator[Api]:
    """Knative's own run; in the end what ran before, whatever the test has left."""
    api = stack.api
    before = images(api)
    use(api, "stock")
    yield api
    use(api, "stock")
    if before != {part: image("stock", part) for part in PARTS}:
        grant(api)
        roll_out(api, before)
