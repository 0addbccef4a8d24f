"""A revision's Deployment as Knative's controller makes it."""

from __future__ import annotations

import copy
from typing import Any

Obj = dict[str, Any]
NAMESPACE, NAME, UID = "default", "chat-00001", "uid-of-chat"
RUNTIME = "runtimes.vllm_pd"


def deployment(
    name: str = NAME,
    *,
    standby: str = "2",
    notes: dict[str, str] | None = None,
    container: Obj | None = None,
    queue: dict[str, str] | None = None,
    **spec: Any,
) -> Obj:
    """`notes`: annotations of the template; `container`: other fields of the user's; `queue`: queue-proxy's env."""
    annotations = {
        "kserve-galaxy.io/engine": "galaxy",
        "kserve-galaxy.io/standby": standby,
        **(notes or {}),
    }
    labels = {
        "serving.knative.dev/revision": name,
        "serving.knative.dev/revisionUID": f"uid-of-{name}",
        "serving.knative.dev/service": name.rpartition("-")[0],
        "serving.knative.dev/configuration": name.rpartition("-")[0],
        "app": name,
    }
    user: Obj = {
        "name": "kserve-container",
        "image": "registry.example/vllm-pd@sha256:1",
        "command": ["python", "-m", RUNTIME],
        "args": [
            "--port=$(PORT)",
            "--model=/mnt/models",
            f"--served-model-name={name}",
            "--max-model-len",
            "2048",
        ],
        "env": [
            {"name": "PORT", "value": "8080"},
            {"name": "K_REVISION", "value": name},
            {"name": "VLLM_LOGGING_LEVEL", "value": "INFO"},
        ],
        "resources": {
            "requests": {"cpu": "500m", "memory": "1Gi"},
            "limits": {"nvidia.com/gpu": "1", "memory": "2Gi"},
        },
        "lifecycle": {"preStop": {"httpGet": {"port": 8022, "path": "/wait-for-drain"}}},
        **(container or {}),
    }
    said = {
        "SERVING_NAMESPACE": NAMESPACE,
        "SERVING_REVISION": name,
        "QUEUE_SERVING_PORT": "8012",
        "CONTAINER_CONCURRENCY": "4",
        "REVISION_TIMEOUT_SECONDS": "120",
        "REVISION_RESPONSE_START_TIMEOUT_SECONDS": "30",
        "USER_PORT": "8080",
        "SERVING_READINESS_PROBE": '{"tcpSocket":{"port":8080,"host":"127.0.0.1"},"successThreshold":1}',
        **(queue or {}),
    }
    proxy = {
        "name": "queue-proxy",
        "image": "queue:1",
        "env": [{"name": key, "value": value} for key, value in said.items()],
        "resources": {"requests": {"cpu": "25m"}},
    }
    spread = {
        "weight": 100,
        "podAffinityTerm": {
            "topologyKey": "kubernetes.io/hostname",
            "labelSelector": {"matchLabels": {"serving.knative.dev/revision": name}},
        },
    }
    return copy.deepcopy(
        {
            "metadata": {
                "namespace": NAMESPACE,
                "name": f"{name}-deployment",
                "labels": labels,
                "annotations": {**annotations, "deployment.kubernetes.io/revision": "1"},
            },
            "spec": {
                "replicas": 0,
                "selector": {"matchLabels": {"serving.knative.dev/revisionUID": f"uid-of-{name}"}},
                "template": {
                    "metadata": {"labels": labels, "annotations": annotations},
                    "spec": {
                        "containers": [user, proxy],
                        "serviceAccountName": "default",
                        "terminationGracePeriodSeconds": 120,
                        "restartPolicy": "Always",
                        "affinity": {
                            "podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [spread]}
                        },
                        **spec,
                    },
                },
            },
        }
    )
