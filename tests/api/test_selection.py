"""Runtime selection: KServe's order, and a reason for each runtime that was not chosen."""

from __future__ import annotations

import pytest
import yaml

from kserve_ext.api import builtin
from kserve_ext.api.kserve import serving_runtime
from kserve_ext.api.kserve.inference_service import InferenceService
from kserve_ext.api.kserve.selection import select
from kserve_ext.api.kserve.serving_runtime import ServingRuntime
from kserve_ext.api.problems import Findings
from tests.api.documents import isvc, runtime

FORMAT = "supportedModelFormats: [{name: %s, version: '1', autoSelect: %s, priority: %d}]"


def service(extra: str = "", fmt: str = "{name: sk}") -> InferenceService:
    return isvc(f"model: {{modelFormat: {fmt}, storageUri: 'pvc://a/b' {extra}}}")


def rt(name: str, spec: str = "", *, auto: str = "true", priority: int = 1, **kw: str) -> ServingRuntime:
    return runtime(FORMAT % ("sk", auto, priority) + "\n" + spec, name, **kw)


ORDER = [
    ("priority", [rt("a"), rt("b", priority=2)], "b", "priority 1 is below 2"),
    ("namespace first", [rt("a", priority=9), rt("b", namespace="default")], "b", "in the namespace"),
    (
        "lowest protocol",
        [rt("a", "protocolVersions: [v2, v1]"), rt("b"), rt("c", "protocolVersions: [v1, v2]")],
        "a",
        "comes first",
    ),
    (
        "newest",
        [rt("a", created="2026-01-01T00:00:00Z"), rt("b", created="2026-01-02T00:00:00Z")],
        "b",
        "is newer",
    ),
    ("name", [rt("b"), rt("a")], "a", "comes first by name"),
    ("not disabled", [rt("a", "disabled: true"), rt("b")], "b", "it is disabled"),
    ("not multi-model", [rt("a", "multiModel: true"), rt("b")], "b", "multi-model"),
    ("not multi-node", [rt("a", "workerSpec: {}"), rt("b")], "b", "multi-node"),
    ("autoSelect", [rt("a", auto="false"), rt("b")], "b", "without autoSelect"),
    (
        "protocol v1 if none is given",
        [rt("a", "protocolVersions: [v2]"), rt("b")],
        "b",
        "does not speak protocol v1",
    ),
    ("other namespaces are not seen", [rt("a", namespace="other"), rt("b")], "b", ""),
]


@pytest.mark.parametrize(("rule", "runtimes", "chosen", "why"), ORDER, ids=[row[0] for row in ORDER])
def test_order(rule: str, runtimes: list[ServingRuntime], chosen: str, why: str) -> None:
    found = select(service(), runtimes)
    assert found.runtime is not None, found.message
    assert found.runtime.meta.name == chosen
    reasons = " ".join(n.reason for n in found.not_chosen)
    assert why in reasons
    assert len(found.not_chosen) == sum(1 for r in runtimes if r.cluster or r.meta.namespace == "default") - 1


def test_a_named_runtime_need_not_be_auto_selectable_and_the_namespaced_one_wins() -> None:
    found = select(
        service(", runtime: a"), [rt("a", auto="false"), rt("a", auto="false", namespace="default")]
    )
    assert found.runtime is not None
    assert found.runtime.meta.namespace == "default"


def test_the_protocol_is_the_lowest_of_the_runtime() -> None:
    assert select(service(", runtime: a"), [rt("a", "protocolVersions: [grpc-v2, v2]")]).protocol == "v2"
    assert select(service(), [rt("a")]).protocol == ""


REFUSED = [
    (", runtime: skalern", [rt("sklearn")], "RuntimeNotRecognized", "did you mean sklearn?"),
    (", runtime: a", [rt("a", "disabled: true")], "RuntimeDisabled", "is disabled"),
    (
        ", runtime: a, protocolVersion: v2",
        [rt("a", "protocolVersions: [v1]")],
        "NoSupportingRuntime",
        "protocol v2",
    ),
    (", runtime: a", [runtime(FORMAT % ("xg", "true", 1), "a")], "NoSupportingRuntime", "it lists xg:1"),
    ("", [], "NoSupportingRuntime", "there is no runtime"),
    ("", [runtime(FORMAT % ("skl", "true", 1), "a")], "NoSupportingRuntime", "did you mean skl?"),
]


@pytest.mark.parametrize(("extra", "runtimes", "reason", "message"), REFUSED)
def test_nothing_fits(extra: str, runtimes: list[ServingRuntime], reason: str, message: str) -> None:
    found = select(service(extra), runtimes)
    assert found.runtime is None
    assert found.reason == reason
    assert message in f"{found.message}; {found.remedy}"


def test_a_version_must_be_listed() -> None:
    assert select(service("", "{name: sk, version: '1'}"), [rt("a")]).runtime is not None
    assert select(service("", "{name: sk, version: '2'}"), [rt("a")]).runtime is None


def test_ours_is_chosen_for_its_formats() -> None:
    ours = serving_runtime.read(yaml.safe_load(builtin.texts()[0]), Findings())
    assert ours is not None
    for fmt in ("vLLM", "huggingface"):
        found = select(service("", f"{{name: {fmt}}}"), [ours])
        assert found.runtime is ours
