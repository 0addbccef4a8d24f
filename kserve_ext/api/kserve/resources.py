"""What the kinds share: their names, metadata, containers and the pod fields of core/v1.

Field names and defaults are Kubernetes' own. Typed values are made from documents that passed schema.py, so that
reading them cannot fail. Never decides which object wins: that is selection.py and render.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from kserve_ext.api.kserve import schema
from kserve_ext.api.kserve.schema import Object, ignored
from kserve_ext.api.problems import Findings, did_you_mean

Document = dict[str, Any]


class KindOf(NamedTuple):
    """One kind of object and its names."""

    kind: str
    version: str  # apiVersion
    plural: str
    short: tuple[str, ...]
    namespaced: bool = True

    @property
    def group(self) -> str:
        return self.version.partition("/")[0]


KINDS: Final = (
    KindOf(
        "InferenceService", "serving.kserve.io/v1beta1", "inferenceservices", ("isvc", "inferenceservice")
    ),
    KindOf("ServingRuntime", "serving.kserve.io/v1alpha1", "servingruntimes", ("servingruntime", "sr")),
    KindOf(
        "ClusterServingRuntime",
        "serving.kserve.io/v1alpha1",
        "clusterservingruntimes",
        ("clusterservingruntime", "csr"),
        namespaced=False,
    ),
    KindOf(
        "PriorityClass",
        "scheduling.k8s.io/v1",
        "priorityclasses",
        ("priorityclass", "pc"),
        namespaced=False,
    ),
)


def kind_of(word: str) -> KindOf | None:
    """By any of its names, in any case."""
    lowered = word.lower()
    for kind in KINDS:
        if lowered in (kind.kind.lower(), kind.plural, *kind.short):
            return kind
    return None


def kind_remedy(word: str) -> str:
    return did_you_mean(word, [kind.kind for kind in KINDS])


_NAME: Final = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_DNS: Final = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")

METADATA: Final = Object(
    {
        "name": schema.text,
        "namespace": schema.text,
        "labels": schema.labels,
        "annotations": schema.labels,
        # Written by API servers; they come along when people edit what they got.
        "generation": schema.anything,
        "uid": schema.anything,
        "resourceVersion": schema.anything,
        "creationTimestamp": schema.anything,
        "managedFields": schema.anything,
        "selfLink": schema.anything,
        "finalizers": ignored(),
        "ownerReferences": ignored(),
        "generateName": schema.refused("names are not made up here", "give metadata.name"),
    },
    required=("name",),
)
_ENV: Final = Object({"name": schema.text, "value": schema.text, "valueFrom": ignored()}, required=("name",))
_AMOUNTS: Final = schema.mapping(schema.quantity)
_PROBE: Final = Object(
    {
        "httpGet": Object(
            {
                "path": schema.text,
                "port": schema.anything,
                "host": ignored(),
                "scheme": schema.one_of("HTTP"),
                "httpHeaders": ignored(),
            }
        ),
        "tcpSocket": schema.anything,
        "exec": ignored(),
        "grpc": ignored(),
        "initialDelaySeconds": schema.integer(0),
        "periodSeconds": schema.integer(0),
        "timeoutSeconds": schema.integer(0),
        "successThreshold": schema.integer(0),
        "failureThreshold": schema.integer(0),
        "terminationGracePeriodSeconds": schema.integer(0),
    }
)
CONTAINER_FIELDS: Final[Mapping[str, schema.Check | Object]] = {
    "name": schema.text,
    "image": schema.text,
    "command": schema.texts,
    "args": schema.texts,
    "env": schema.items(_ENV),
    "resources": Object({"requests": _AMOUNTS, "limits": _AMOUNTS, "claims": ignored()}),
    "readinessProbe": _PROBE,
    "startupProbe": _PROBE,
    "livenessProbe": ignored(_PROBE),
    "ports": schema.items(
        Object(
            {
                "containerPort": schema.integer(1, 65535),
                "name": schema.text,
                "protocol": schema.text,
                "hostPort": ignored(),
                "hostIP": ignored(),
            }
        )
    ),
    "imagePullPolicy": schema.anything,
    "terminationMessagePath": schema.anything,
    "terminationMessagePolicy": schema.anything,
    **{
        name: ignored()
        for name in (
            "envFrom",
            "workingDir",
            "lifecycle",
            "restartPolicy",
            "resizePolicy",
            "securityContext",
            "stdin",
            "stdinOnce",
            "tty",
            "volumeDevices",
            "volumeMounts",
        )
    },
}
CONTAINER: Final = Object(CONTAINER_FIELDS, required=("name",))
#: Pod fields that KServe takes from an InferenceService and that mean nothing to processes on one machine.
POD_FIELDS: Final[Mapping[str, schema.Check | Object]] = {
    **{
        name: ignored()
        for name in (
            "activeDeadlineSeconds",
            "affinity",
            "automountServiceAccountToken",
            "dnsConfig",
            "dnsPolicy",
            "enableServiceLinks",
            "ephemeralContainers",
            "hostAliases",
            "hostIPC",
            "hostNetwork",
            "hostPID",
            "hostUsers",
            "hostname",
            "imagePullSecrets",
            "initContainers",
            "nodeName",
            "overhead",
            "os",
            "preemptionPolicy",
            "priority",
            "readinessGates",
            "resourceClaims",
            "restartPolicy",
            "runtimeClassName",
            "schedulerName",
            "schedulingGates",
            "securityContext",
            "serviceAccount",
            "serviceAccountName",
            "setHostnameAsFQDN",
            "shareProcessNamespace",
            "subdomain",
            "tolerations",
            "topologySpreadConstraints",
            "volumes",
        )
    },
    "nodeSelector": schema.labels,
    "priorityClassName": schema.text,
    "terminationGracePeriodSeconds": schema.integer(0),
}


@dataclass(frozen=True, slots=True)
class Meta:
    """metadata of an object; `generation` and `created_at` are given by the server."""

    name: str
    namespace: str  # "" for cluster-wide kinds
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    generation: int = 1
    created_at: str = ""

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Container:
    """A container of a pod, as far as a process has a use for it. None = not given, which is not the same as []."""

    name: str
    image: str = ""
    command: tuple[str, ...] | None = None
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    requests: Mapping[str, object] | None = None
    limits: Mapping[str, object] | None = None
    ready_path: str | None = None
    start_timeout_s: float | None = None


def given_annotations(value: object, *path: str) -> dict[str, str]:
    """Those at `path` of a document that need not have passed a schema; what is no text its schema tells of."""
    for name in (*path, "annotations"):
        value = value.get(name) if isinstance(value, dict) else None
    given = value.items() if isinstance(value, dict) else ()
    return {k: v for k, v in given if isinstance(k, str) and isinstance(v, str)}


def metadata(document: Document, namespaced: bool, findings: Findings) -> Meta:
    """Reads and checks metadata; a missing namespace is `default`, as with kubectl."""
    METADATA(document.get("metadata") or {}, "metadata", findings)
    given = document.get("metadata")
    values: Document = given if isinstance(given, dict) else {}

    def words(name: str) -> dict[str, str]:
        found = values.get(name)
        return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}

    name = values.get("name")
    namespace = values.get("namespace") or ("default" if namespaced else "")
    form = _NAME if document.get("kind") == "InferenceService" else _DNS
    if isinstance(name, str) and (not form.fullmatch(name) or len(name) > 63):
        findings.problem(
            "metadata.name",
            "not a valid name",
            "use at most 63 lower-case letters, digits and dashes, starting with a letter",
            name,
        )
    if not namespaced and values.get("namespace"):
        findings.problem(
            "metadata.namespace",
            f"a {document.get('kind')} is of the whole cluster and has none",
            "leave it out",
            values["namespace"],
        )
    if namespaced and (not isinstance(namespace, str) or not _DNS.fullmatch(namespace) or "." in namespace):
        findings.problem(
            "metadata.namespace", "not a valid name", "use lower-case letters, digits and dashes", namespace
        )
    return Meta(
        name=str(name or ""),
        namespace=str(namespace) if namespaced else "",
        labels=words("labels"),
        annotations=words("annotations"),
        generation=int(values.get("generation") or 1),
        created_at=str(values.get("creationTimestamp") or ""),
    )


def container(value: Document) -> Container:
    """From a document that passed CONTAINER."""
    resources = value.get("resources") or {}
    readiness = value.get("readinessProbe") or {}
    startup = value.get("startupProbe") or {}
    command = value.get("command")
    http = readiness.get("httpGet") or startup.get("httpGet") or {}
    start_timeout_s = None
    if startup:
        tries = startup.get("failureThreshold", 3) * startup.get("periodSeconds", 10)
        start_timeout_s = float(startup.get("initialDelaySeconds", 0) + tries)
    return Container(
        name=value.get("name") or "",
        image=value.get("image") or "",
        command=tuple(command) if command else None,
        args=tuple(value.get("args") or ()),
        env=tuple(
            (item["name"], item.get("value") or "")
            for item in value.get("env") or ()
            if "valueFrom" not in item
        ),
        requests=resources.get("requests"),
        limits=resources.get("limits"),
        ready_path=http.get("path") if http else None,
        start_timeout_s=start_timeout_s,
    )
