"""Which revisions a standby pod can serve, and what the others are told."""

from __future__ import annotations

from typing import Any

import pytest

from kserve_ext.api.standby import fitting
from kserve_ext.api.standby.fitting import Unfit, Wish
from tests.api.standby.deployments import RUNTIME, deployment

SOURCE = fitting.SOURCE


def test_what_is_not_opted_in_asks_for_nothing() -> None:
    plain = deployment()
    del plain["metadata"]["annotations"]["kserve-galaxy.io/engine"]
    assert fitting.read(plain) is None
    assert fitting.read(deployment(standby="0")) is None
    assert fitting.read(deployment(standby="many")) is None


def test_a_wish() -> None:
    wish = fitting.read(deployment())
    assert isinstance(wish, Wish)
    assert (wish.size, wish.level, wish.zygote) == (2, "S0", RUNTIME)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"initContainers": [{"name": "fetch"}]}, "init container fetch"),
        ({"notes": {SOURCE: "hf://org/model"}}, "hf://org/model is fetched by an init container"),
        ({"notes": {SOURCE: "pvc://"}}, "use storageUri: pvc://CLAIM/PATH"),
        ({"notes": {"internal.serving.kserve.io/batcher": "true"}}, "batcher"),
        ({"container": {"command": ["/bin/server"]}}, "runs /bin/server, of which there is no zygote"),
        ({"container": {"command": []}}, "kserve-galaxy.io/zygote: PACKAGE"),
        ({"container": {"livenessProbe": {"tcpSocket": {"port": 8080}}}}, "livenessProbe"),
        ({"container": {"readinessProbe": {"exec": {"command": ["true"]}}}}, "readinessProbe"),
        (
            {"container": {"volumeMounts": [{"name": "a", "mountPath": "/a", "subPathExpr": "$(X)"}]}},
            "subPathExpr",
        ),
        (
            {
                "container": {
                    "env": [{"name": "L", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}}]
                }
            },
            "env L is the pod's metadata.labels",
        ),
        (
            {
                "container": {
                    "args": ["--key=sesame-$(KEY)"],
                    "env": [{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
                }
            },
            "args refers to $(KEY)",
        ),
        (
            {
                "container": {
                    "args": ["--key=sesame-$(KEY)"],
                    "envFrom": [{"secretRef": {"name": "s"}}],
                }
            },
            "args refers to $(KEY), which may come from envFrom",
        ),
        (
            {
                "container": {
                    "env": [{"name": "URL", "value": "http://$(KEY)"}, {"name": "KEY", "value": "later"}],
                    "envFrom": [{"configMapRef": {"name": "c"}}],
                }
            },
            "env URL refers to $(KEY), which may come from envFrom",
        ),
    ],
)
def test_what_cant_be_served_says_why(changes: dict[str, Any], says: str) -> None:
    found = fitting.read(deployment(**changes))
    assert isinstance(found, Unfit)
    assert "sesame" not in found.reason, "what they say may be secret"
    assert says in found.reason


def test_with_variables_of_a_secret_references_to_those_that_are_written_are_put_in() -> None:
    whole = {"envFrom": [{"secretRef": {"name": "s"}}]}
    assert isinstance(fitting.read(deployment(container=whole)), Wish), "--port=$(PORT) is known"
    literal = {"args": ["--template=$$(KEY)"], **whole}
    assert isinstance(fitting.read(deployment(container=literal)), Wish)
    unknown = {"args": ["--template=$(KEY)"]}
    assert isinstance(fitting.read(deployment(container=unknown)), Wish), (
        "nobody has it, so it stays as it is"
    )


def test_a_sidecar_of_the_user_is_one_too_many() -> None:
    made = deployment()
    made["spec"]["template"]["spec"]["containers"].append({"name": "helper", "image": "h"})
    found = fitting.read(made)
    assert isinstance(found, Unfit)
    assert "kserve-container, helper" in found.reason


def test_internal_tls_is_refused() -> None:
    made = deployment()
    made["spec"]["template"]["spec"]["containers"][1]["volumeMounts"] = [{"name": "server-certs"}]
    found = fitting.read(made)
    assert isinstance(found, Unfit)
    assert "system-internal-tls" in found.reason


def test_the_runtime_may_say_what_its_image_runs() -> None:
    settings = fitting.read(deployment(container={"command": None}))
    assert isinstance(settings, Unfit)
    made = deployment(container={"command": None})
    made["metadata"]["annotations"]["kserve-galaxy.io/zygote"] = RUNTIME
    found = fitting.read(made)
    assert isinstance(found, Wish)
    assert found.zygote == RUNTIME
    other = deployment()
    other["metadata"]["annotations"]["kserve-galaxy.io/zygote"] = "another"
    assert isinstance(fitting.read(other), Unfit)
