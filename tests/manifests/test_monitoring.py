"""The monitoring component against what the Prometheus operator's CRDs say of the fields that it uses.

The facts are those of its release 0.85 (PodMonitor and PrometheusRule, monitoring.coreos.com/v1), against whose whole
schemas the component was checked; so a field that is misspelt, or another that is added, is noticed here.
"""

from __future__ import annotations

from typing import Any, Final

import jsonschema
import pytest

from kserve_ext.cli.knative.kustomize import MANIFESTS, build
from kserve_ext.cli.knative.parts import PARTS

OVERLAY, COMPONENTS = MANIFESTS / "overlays" / "knative", MANIFESTS / "components"
RENDERED = build(OVERLAY, [COMPONENTS / "monitoring"]).objects
MONITORING = [obj for obj in RENDERED.values() if obj["apiVersion"] == "monitoring.coreos.com/v1"]
_DURATION: Final = {
    "type": "string",
    "pattern": r"^(0|(([0-9]+)y)?(([0-9]+)w)?(([0-9]+)d)?(([0-9]+)h)?(([0-9]+)m)?(([0-9]+)s)?(([0-9]+)ms)?)$",
}
_TEXTS: Final = {"type": "object", "additionalProperties": {"type": "string"}}


def exactly(required: list[str], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def several(of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": of, "minItems": 1}


SPECS: Final = {
    "PodMonitor": exactly(
        ["selector"],
        selector=exactly([], matchLabels=_TEXTS),
        podMetricsEndpoints=several(exactly([], port={"type": "string"}, interval=_DURATION)),
    ),
    "PrometheusRule": exactly(
        [],
        groups=several(
            exactly(
                ["name"],
                name={"type": "string", "minLength": 1},
                rules=several(
                    exactly(
                        ["expr"],
                        alert={"type": "string"},
                        expr={"type": "string"},
                        labels=_TEXTS,
                        annotations=_TEXTS,
                        **{"for": _DURATION},
                    )
                ),
            )
        ),
    ),
}


@pytest.mark.parametrize("obj", MONITORING, ids=lambda obj: f"{obj['kind']}-{obj['metadata']['name']}")
def test_every_field_is_one_that_the_operator_knows(obj: dict[str, Any]) -> None:
    assert set(obj) == {"apiVersion", "kind", "metadata", "spec"}
    jsonschema.validate(obj["spec"], SPECS[obj["kind"]])


def test_what_is_scraped_is_a_port_of_the_pods_that_are_selected() -> None:
    rendered = build(OVERLAY, [COMPONENTS / "monitoring", COMPONENTS / "standby"]).objects
    kinds = ("Deployment", "DaemonSet")
    pods = {key.name: obj["spec"]["template"] for key, obj in rendered.items() if key.kind in kinds}
    monitors = [obj for obj in MONITORING if obj["kind"] == "PodMonitor"]
    assert len(monitors) == len(PARTS) + 1, "the agents of nodes are beside them"
    for monitor in monitors:
        (pod,) = (
            pod
            for pod in pods.values()
            if monitor["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
        )
        (container,) = pod["spec"]["containers"]
        named = {port["name"] for port in container["ports"]}
        assert {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]} <= named
