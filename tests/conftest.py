"""Order, marks, time limits and shared fixtures of all tests.

Unit tests run first, then those with a real engine, then those with a cluster of processes; the last two are marked
by their folder. The number of skipped tests is always printed, since a skipped test proves nothing.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tools.setup.layout import Layout

TESTS = Path(__file__).resolve().parent
#: Folder below tests/ -> place in the order and seconds after which one test is given up as hung: long, since that
#: ends the whole run, and a busy machine is no hang.
SLOW = {"engine": (1, 600), "cluster": (2, 600)}
OTHERS = (0, 180)

settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("default"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite tests/golden instead of comparing with it"
    )


def folder_of(item: pytest.Item) -> str:
    below = item.path.relative_to(TESTS).parts
    return below[0] if len(below) > 1 else ""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    engines = importlib.util.find_spec("vllm") is not None
    for item in items:
        folder = folder_of(item)
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(SLOW.get(folder, OTHERS)[1]))
        if folder not in SLOW:
            continue
        item.add_marker(folder)
        if folder == "engine":
            # vLLM and torch warn on import; their warnings are not ours to settle.
            item.add_marker(pytest.mark.filterwarnings("default"))
            if not engines:
                item.add_marker(pytest.mark.skip(reason="vLLM is not installed: run `make setup`"))
    items.sort(key=lambda item: SLOW.get(folder_of(item), OTHERS)[0])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(f"skipped tests: {len(terminalreporter.stats.get('skipped', []))}")


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """The folder of the tiny model that set-up made."""
    folder = Layout.of_user().tiny_model
    if not (folder / "config.json").exists():
        pytest.skip("the tiny model is not there: run `make setup`")
    return folder


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """Compares text with a file of tests/golden, or rewrites the file under `make golden`."""
    return Golden(TESTS / "golden", bool(request.config.getoption("--update-golden")))


class Golden:
    def __init__(self, folder: Path, update: bool) -> None:
        self.folder = folder
        self.update = update

    def __call__(self, name: str, text: str) -> None:
        file = self.folder / name
        if self.update:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        assert file.exists(), (
            f"{file.name} is not in tests/golden: run `make golden`, then read and commit it"
        )
        assert text == file.read_text(encoding="utf-8"), f"{name} changed: if it should, run `make golden`"
