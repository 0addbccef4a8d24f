"""Our runtimes for KServe: that they agree with each other, with the built-in one, and with the annotations."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from kserve_ext.api import builtin
from kserve_ext.api.annotations import BY_NAME, PREFIX, TABLE
from kserve_ext.api.kserve import templates
from kserve_ext.api.kserve.resources import Meta
from kserve_ext.cli.knative.kustomize import MANIFESTS

ROLES = ("unified", "prefill", "decode")
RUNTIMES: dict[str, dict[str, Any]] = {
    role: yaml.safe_load((MANIFESTS / "components" / "kserve" / f"{role}.yaml").read_text()) for role in ROLES
}


def container(role: str) -> dict[str, Any]:
    (only,) = RUNTIMES[role]["spec"]["containers"]
    return dict(only)


def environment(role: str, annotations: dict[str, str]) -> dict[str, str]:
    """As KServe fills it in for a service."""
    meta = Meta("chat", "ns", {}, annotations)
    return {entry["name"]: templates.expand(entry["value"], meta) for entry in container(role)["env"]}


def test_the_unified_one_is_the_built_in_one() -> None:
    (text,) = builtin.texts()
    own, built_in = RUNTIMES["unified"], yaml.safe_load(text)
    assert own["metadata"]["name"] == built_in["metadata"]["name"]
    assert own["spec"]["supportedModelFormats"] == built_in["spec"]["supportedModelFormats"]
    (embedded,) = built_in["spec"]["containers"]
    assert container("unified")["args"] == embedded["args"]


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_those_of_a_group_differ_from_it_in_their_role_only(role: str) -> None:
    assert RUNTIMES[role]["metadata"]["name"] == f"galaxy-vllm-{role}"
    assert RUNTIMES[role]["spec"]["annotations"][PREFIX + "role"] == role
    assert not any(one["autoSelect"] for one in RUNTIMES[role]["spec"]["supportedModelFormats"])
    unified, half = container("unified"), container(role)
    assert half["args"] == [*unified["args"], "--kv-host=auto"]
    for field in ("image", "ports", "readinessProbe", "resources", "securityContext"):
        assert half[field] == unified[field]


@pytest.mark.parametrize("role", ROLES)
def test_they_are_opted_in_and_pods_of_them_fit_the_restricted_standard(role: str) -> None:
    assert RUNTIMES[role]["spec"]["annotations"][PREFIX + "engine"] == "galaxy"
    assert container(role)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    volumes = {volume["name"]: set(volume) - {"name"} for volume in RUNTIMES[role]["spec"]["volumes"]}
    assert {mount["name"] for mount in container(role)["volumeMounts"]} == volumes.keys()
    assert set().union(*volumes.values()) <= {"emptyDir", "secret"}, "what Knative allows by itself"


def test_what_instances_are_to_read_reaches_them() -> None:
    given = {PREFIX + row.name: f"value-of-{row.name}" for row in TABLE if row.by_template}
    env = environment("decode", given)
    assert env.pop("GALAXY_GROUP") == "ns/value-of-pd-group"
    for row in TABLE:
        if row.by_template and row.name != "pd-group":
            assert env[f"GALAXY_{row.name.upper().replace('-', '_')}"] == f"value-of-{row.name}"
            assert "Knative" in BY_NAME[row.name].acted_on
    assert environment("decode", {})["GALAXY_GROUP"] == "ns/", "without the annotation: of none"
