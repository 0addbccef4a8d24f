"""docs/install.md says what each variable of ours is by default: all of them, and as the two parts read them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from activator_replacement.knative import settings as activator
from autoscaler_shim.knative import settings as autoscaler

GUIDE = Path(__file__).parents[2] / "docs" / "install.md"
POD = {"POD_NAME": "pod-0", "POD_IP": "10.0.0.1", "SYSTEM_NAMESPACE": "NAMESPACE", "CLUSTER_DOMAIN": "DOMAIN"}
#: Values other than the default, where they are words.
WORDS = {
    "GALAXY_AUTOSCALER": "ws://elsewhere:8080",
    "GALAXY_ENDPOINTS": "endpoints",
    "GALAXY_MUTUAL_TLS": "strict",
    "GALAXY_STANDBY": "on",
}
Read = Callable[[Mapping[str, str]], object]


class Environment(Mapping[str, str]):
    """Notes what is asked for."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self.asked: set[str] = set()
        self._values = dict(values)

    def __getitem__(self, name: str) -> str:
        self.asked.add(name)
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def documented(part: str) -> dict[str, str]:
    """Names and defaults in a part's table."""
    _, found, rest = GUIDE.read_text().partition(f"| of the {part} | default | |\n")
    assert found
    return dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", rest.partition("\n\n")[0], re.MULTILINE))


@pytest.mark.parametrize(("part", "read"), [("activator", activator.read), ("autoscaler", autoscaler.read)])
def test_every_variable_of_ours_is_documented_with_its_default(part: str, read: Read) -> None:
    environment = Environment(POD)
    by_default = read(environment)
    ours = {name for name in environment.asked if name.startswith("GALAXY_")}
    table = documented(part)
    assert set(table) == ours
    assert read({**POD, **table}) == by_default
    for name in table:
        other = WORDS.get(name) or ("7s" if table[name].endswith("s") else "7")
        assert read({**POD, name: other}) != by_default, "each counts"
