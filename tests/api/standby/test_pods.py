"""What pods of a pool are alike in, what they are made of, and what makes one a revision's."""

from __future__ import annotations

from typing import Any

import pytest

from kserve_ext.api.standby import assigning, fitting, names, pods
from kserve_ext.api.standby.fitting import Wish
from kserve_ext.core.ids import RevisionKey
from tests.api.standby.deployments import RUNTIME, deployment
from tests.support.api_objects import merge_patch


def wish(name: str = "chat-00001", **changes: Any) -> Wish:
    found = fitting.read(deployment(name, **changes))
    assert isinstance(found, Wish), found
    return found


def test_revisions_of_one_shape_share_a_pool_whatever_they_are_called() -> None:
    one, other = pods.pool(wish("chat-00001")), pods.pool(wish("mail-00007", standby="5"))
    assert one == other


def test_the_part_of_a_claim_that_is_used_makes_no_other_pool() -> None:
    def of(path: str) -> Wish:
        return wish(notes={fitting.SOURCE: f"pvc://models/{path}"})

    assert pods.pool(of("a/b")) == pods.pool(of("c"))
    assert fitting.models(of("a/b")) == (("/mnt/models", "/mnt/galaxy/models/a/b"),)
    assert pods.pool(of("a")) != pods.pool(wish())
    mounted = wish(
        container={"volumeMounts": [{"name": "m", "mountPath": "/data", "subPath": "x", "readOnly": True}]},
        volumes=[{"name": "m", "persistentVolumeClaim": {"claimName": "models"}}],
    )
    assert fitting.models(mounted) == (("/data", "/mnt/galaxy/models/x"),)
    assert pods.pool(mounted) == pods.pool(of("a"))


@pytest.mark.parametrize(
    ("timeouts", "grace_s"),
    [((1, 300, 600), 600), ((601, 1800), 1800), ((3600,), 3600), ((3601, 7200), 7200)],
)
def test_timeouts_make_no_other_pool_unless_one_needs_more_time_to_drain(
    timeouts: tuple[int, ...], grace_s: int
) -> None:
    made = [
        pods.pool(
            wish(terminationGracePeriodSeconds=seconds, queue={"REVISION_TIMEOUT_SECONDS": str(seconds)})
        )
        for seconds in timeouts
    ]
    assert len({pool.digest for pool in made}) == 1
    assert made[0].pod["spec"]["terminationGracePeriodSeconds"] == grace_s


@pytest.mark.parametrize(
    "changes",
    [
        {"container": {"image": "registry.example/vllm-pd@sha256:2"}},
        {"container": {"resources": {"requests": {"cpu": "2"}}}},
        {"container": {"env": [{"name": "VLLM_USE_V1", "value": "1"}]}},
        {"container": {"securityContext": {"runAsUser": 7}}},
        {"serviceAccountName": "other"},
        {"nodeSelector": {"gpu": "h100"}},
        {"tolerations": [{"key": "gpu", "operator": "Exists"}]},
        {
            "volumes": [{"name": "m", "emptyDir": {}}],
            "container": {"volumeMounts": [{"name": "m", "mountPath": "/m"}]},
        },
        {"notes": {"k8s.v1.cni.cncf.io/networks": "roce"}},
    ],
)
def test_what_a_pod_cant_change_later_makes_another_pool(changes: dict[str, Any]) -> None:
    assert pods.pool(wish(**changes)).digest != pods.pool(wish()).digest


def test_shaped_engines_are_of_a_pool_by_their_arguments() -> None:
    def of(**more: Any) -> pods.Pool:
        made = deployment(**more)
        made["metadata"]["annotations"]["kserve-galaxy.io/standby-level"] = "S1"
        found = fitting.read(made)
        assert isinstance(found, Wish)
        return pods.pool(found)

    assert pods.shape(wish()) == ["--max-model-len", "2048"]
    assert of().digest == of(name="mail-00001").digest
    assert of().digest != of(container={"args": ["--model=/mnt/models", "--max-model-len=4096"]}).digest
    assert of().digest != pods.pool(wish()).digest
    spec = of(container={"args": ["--chat-template=$$(POD_NAME)"]}).pod["spec"]
    (told,) = [e["value"] for e in spec["containers"][0]["env"] if e["name"] == names.ENV_SHAPE]
    assert told == '["--chat-template=$$(POD_NAME)"]', "the kubelet makes of it what was written"


def test_the_pod() -> None:
    pool = pods.pool(wish())
    made = pods.pod(pool, "abcde")
    spec, container = made["spec"], made["spec"]["containers"][0]
    assert made["metadata"]["name"] == f"standby-{pool.digest[:8]}-abcde"
    assert made["metadata"]["labels"][names.POOL_LABEL] == pool.digest
    assert not any(key.startswith("serving.knative.dev") for key in made["metadata"]["labels"])
    assert "ownerReferences" not in made["metadata"]
    assert len(spec["containers"]) == 1
    assert spec["restartPolicy"] == "Never"
    assert container["resources"] == {
        "requests": {"cpu": "525m", "memory": "1Gi", "nvidia.com/gpu": "1"},
        "limits": {"memory": str((2048 + 64) << 20), "nvidia.com/gpu": "1"},
    }
    env = {entry["name"]: entry for entry in container["env"]}
    assert env[names.ENV_POOL]["value"] == pool.digest
    assert env[names.ENV_RUNTIME]["value"] == RUNTIME
    assert env[names.ENV_GPUS]["value"] == "1"
    assert env["VLLM_LOGGING_LEVEL"]["value"] == "INFO"
    assert "K_REVISION" not in env
    assert env["POD_UID"]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.uid"
    (token,) = (v for v in spec["volumes"] if v["name"] == "galaxy-token")
    assert token["projected"]["sources"][0]["serviceAccountToken"]["audience"] == "kserve-galaxy.io"
    spread = spec["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"][0]
    assert spread["podAffinityTerm"]["labelSelector"]["matchLabels"] == {names.POOL_LABEL: pool.digest}


@pytest.mark.parametrize(
    ("user", "queue", "pod"),
    [
        (  # as much as it may have: the front's part is more
            {"requests": {"cpu": "100m", "memory": "1Gi"}, "limits": {"cpu": "100m", "memory": "1Gi"}},
            {"requests": {"cpu": "25m"}},
            {
                "requests": {"cpu": "125m", "memory": "1Gi"},
                "limits": {"cpu": "125m", "memory": str((1024 + 64) << 20)},
            },
        ),
        (  # limits alone are requests, too
            {"limits": {"cpu": "400m", "nvidia.com/gpu": "2"}},
            {"requests": {"cpu": "25m"}},
            {
                "requests": {"cpu": "425m", "nvidia.com/gpu": "2"},
                "limits": {"cpu": "425m", "nvidia.com/gpu": "2"},
            },
        ),
        (
            {"requests": {"memory": "50Mi"}, "limits": {"memory": "60Mi", "ephemeral-storage": "1Ki"}},
            {
                "requests": {"memory": "50Mi", "ephemeral-storage": "1Ki"},
                "limits": {"memory": "100Mi", "ephemeral-storage": "2Ki"},
            },
            {
                "requests": {"memory": str(100 << 20), "ephemeral-storage": "2048"},
                "limits": {"memory": str(160 << 20), "ephemeral-storage": "3072"},
            },
        ),
        ({}, {"limits": {"memory": "50Mi"}}, {"requests": {"memory": "50Mi"}}),
        ({}, {}, {}),
    ],
)
def test_a_pod_requests_what_both_its_parts_would_and_never_beyond_its_limit(
    user: dict[str, Any], queue: dict[str, Any], pod: dict[str, Any]
) -> None:
    made = deployment(container={"resources": user})
    made["spec"]["template"]["spec"]["containers"][1]["resources"] = queue
    of = fitting.read(made)
    assert isinstance(of, Wish)
    assert pods.pool(of).pod["spec"]["containers"][0]["resources"] == pod


def test_the_assignment_says_what_queue_proxy_was_told() -> None:
    given = assigning.assignment(wish(), RevisionKey("default/chat-00001"), "standby-1")
    assert given.argv[:4] == ("python", "-m", RUNTIME, "--port=$(PORT)")
    assert dict(given.env)["K_REVISION"] == "chat-00001"
    assert (given.port, given.http2, given.concurrency, given.drain_s) == (8080, False, 4, 120.0)
    assert given.timeouts == (120.0, 30.0, 0.0)
    assert '"tcpSocket"' in given.probe
    assert ("SERVING_REVISION", "chat-00001") in given.labels
    h2c = wish(queue={"QUEUE_SERVING_PORT": "8013"})
    assert assigning.assignment(h2c, RevisionKey("default/chat-00001"), "s").http2


def test_what_adoption_gives_the_release_takes_back() -> None:
    of = wish()
    before = pods.pod(pods.pool(of), "abcde")
    before["metadata"] |= {"uid": "u", "resourceVersion": "7"}
    adopted = merge_patch(before, assigning.labelled(of, "hash", "u", "7"))
    labels = adopted["metadata"]["labels"]
    assert labels["pod-template-hash"] == "hash"
    assert labels["serving.knative.dev/revisionUID"] == "uid-of-chat-00001"
    assert labels[names.POOL_LABEL] == pods.pool(of).digest
    adopted = merge_patch(adopted, assigning.goes_first("u"))
    assert adopted["metadata"]["annotations"][names.DELETION_COST] == "-100"
    adopted["metadata"]["ownerReferences"] = [{"kind": "ReplicaSet"}]
    after = merge_patch(adopted, assigning.released(adopted))
    after["metadata"].pop("annotations")
    assert after == before
    held = merge_patch(adopted, assigning.held_back(adopted))
    assert held["metadata"]["labels"] == {**labels, names.ADOPTION: names.HELD}
    assert "ownerReferences" not in held["metadata"]
    after = merge_patch(held, assigning.released(adopted, newer=True))
    after["metadata"].pop("annotations")
    assert after == before


def environment(pool: pods.Pool) -> dict[str, str]:
    return {e["name"]: e.get("value", "") for e in pool.pod["spec"]["containers"][0]["env"]}


def test_a_container_whose_root_is_read_only_gets_a_tmp_unless_it_has_one() -> None:
    closed = {"securityContext": {"readOnlyRootFilesystem": True, "runAsNonRoot": True}}
    made = pods.pool(wish(container=closed))
    spec = made.pod["spec"]
    assert {"name": "galaxy-tmp", "emptyDir": {}} in spec["volumes"]
    assert {"name": "galaxy-tmp", "mountPath": "/tmp"} in spec["containers"][0]["volumeMounts"]
    assert spec["containers"][0]["securityContext"] == closed["securityContext"]
    assert environment(made)["HOME"] == "/tmp"
    assert environment(made)[names.ENV_SCRATCH] == "/tmp"
    own = wish(
        container={**closed, "volumeMounts": [{"name": "mine", "mountPath": "/tmp/"}]},
        volumes=[{"name": "mine", "emptyDir": {"medium": "Memory"}}],
    )
    assert "galaxy-tmp" not in {volume["name"] for volume in pods.pool(own).pod["spec"]["volumes"]}
    assert environment(pods.pool(own))[names.ENV_SCRATCH] == "/tmp/"
    assert "HOME" not in environment(pods.pool(wish()))


def test_what_variables_come_from_is_mounted_so_that_the_slot_sees_it_change() -> None:
    def key(field: str, name: str, key: str) -> dict[str, Any]:
        return {"name": f"{name}_{key}".upper(), "valueFrom": {field: {"name": name, "key": key}}}

    env = [
        {"name": "PORT", "value": "8080"},
        key("secretKeyRef", "keys", "b"),
        key("secretKeyRef", "keys", "a"),
        key("configMapKeyRef", "c", "x"),
    ]
    whole = [{"configMapRef": {"name": "c"}}, {"prefix": "P_", "secretRef": {"name": "all"}}]
    pool = pods.pool(wish(container={"env": env, "envFrom": whole}))
    spec = pool.pod["spec"]
    optional = {"optional": True, "defaultMode": 0o400}
    items = [{"key": "a", "path": "a"}, {"key": "b", "path": "b"}]
    assert [v for v in spec["volumes"] if v["name"].startswith("galaxy-values")] == [
        {"name": "galaxy-values-0", "configMap": {"name": "c", **optional}},
        {"name": "galaxy-values-1", "secret": {"secretName": "all", **optional}},
        {"name": "galaxy-values-2", "secret": {"secretName": "keys", **optional, "items": items}},
    ]
    folders = environment(pool)[names.ENV_VALUES].split(":")
    mounts = {m["mountPath"]: m for m in spec["containers"][0]["volumeMounts"]}
    assert [folder.removeprefix(names.VALUES) for folder in folders] == [
        "/configmap/c",
        "/secret/all",
        "/secret/keys",
    ]
    assert all(mounts[folder]["readOnly"] for folder in folders)
    assert environment(pods.pool(wish()))[names.ENV_VALUES] == ""


def test_the_slot_is_told_which_folders_are_its_pods_alone() -> None:
    mounts = [("a", "/scratch"), ("b", "/host"), ("c", "/data")]
    made = wish(
        container={"volumeMounts": [{"name": name, "mountPath": path} for name, path in mounts]},
        volumes=[
            {"name": "a", "emptyDir": {}},
            {"name": "b", "hostPath": {"path": "/x"}},
            {"name": "c", "persistentVolumeClaim": {"claimName": "models"}},
        ],
    )
    said = environment(pods.pool(made))
    assert said[names.ENV_SCRATCH] == "/scratch"
    shared = ["/host", "/mnt/galaxy/models", names.SOCKET_FOLDER, names.TOKEN_FOLDER]
    assert said[names.ENV_SHARED].split(":") == sorted(shared)
