"""A pool and its pods: the bare Pod that is kept for revisions which wish for one like it.

Pods of a pool are alike in everything but their names, and what they are alike in is their pool: its digest is made
of the pod as it would be created. So another image, other resources, another ServiceAccount, or another release of
this file makes another pool, and the pods of the former go as soon as nobody wishes for them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Final

from kserve_ext.api import quantities
from kserve_ext.api.knative.conditions import Document
from kserve_ext.api.standby import engines, fitting, names
from kserve_ext.api.standby.fitting import Wish
from kserve_ext.core.standby import command

DIGEST_CHARACTERS: Final = 16
#: What an import may read: belongs to the pool, beside what the revision itself gets.
_READ_BY_IMPORTS: Final = (
    "CUDA_",
    "GALAXY_SLOT_CONFIG",
    "HF_",
    "LD_",
    "MKL_",
    "NCCL_",
    "NVIDIA_",
    "OMP_",
    "PYTHON",
    "RDMAV_",
    "TORCH",
    "TRANSFORMERS_",
    "TRITON_",
    "UCX_",
    "VLLM_",
)
#: Annotations that are acted on when a pod is made.
READ_BY_NETWORKS: Final = (
    "sidecar.istio.io/",
    "traffic.sidecar.istio.io/",
    "k8s.v1.cni.cncf.io/",
    "linkerd.io/",
)
_SPREAD: Final = "serving.knative.dev/revision"
_GPUS: Final = ("nvidia.com/gpu", "amd.com/gpu")
_READ_WRITE: Final = "storage.kserve.io/readonly"
_NOT_COPIED: Final = (
    "containers",
    "initContainers",
    "volumes",
    "affinity",
    "restartPolicy",
    "nodeName",
    "hostname",
)
#: How long a pod may take to end: the least of these in which its revision can drain, else whole hours. Knative's
#: own timeouts are 300 by default and 600 at most, if an operator doesn't allow more.
GRACES_S: Final = (600, 1800, 3600)
#: Of memory, for the slot and its front, which have about 17 MiB each. In a revision's own pod that is queue-proxy's,
#: in a container of its own and by default without a limit; here the user's server would have that much less.
OWN_MEMORY: Final = "64Mi"
#: What a runtime must be able to write to, whatever its container's root is.
TEMPORARY: Final = "/tmp"


@dataclass(frozen=True, slots=True)
class Pool:
    digest: str
    namespace: str
    pod: Document  # without a name

    @property
    def key(self) -> str:
        return key(self.namespace, self.digest)


def key(namespace: str, digest: str) -> str:
    """By which a pool is known in memory: the label alone would let a pod of any namespace belong to it."""
    return f"{namespace}/{digest}"


def bucket_key(pool: str) -> str:
    """Whoever holds its bucket keeps the pool."""
    namespace, _, digest = pool.partition("/")
    return f"{namespace}/standby-{digest}"


def pool(wish: Wish) -> Pool:
    annotations = {k: v for k, v in wish.annotations.items() if k.startswith(READ_BY_NETWORKS)}
    spec = {k: v for k, v in (wish.template.get("spec") or {}).items() if k not in _NOT_COPIED}
    spec["terminationGracePeriodSeconds"] = _grace_s(wish)
    mounts, volumes = _volumes(wish)
    spec |= {"restartPolicy": "Never", "volumes": volumes, "containers": [_container(wish, mounts, volumes)]}
    affinity = _affinity((wish.template.get("spec") or {}).get("affinity") or {})
    if affinity:
        spec["affinity"] = affinity
    text = json.dumps([wish.namespace, annotations, spec], sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()[:DIGEST_CHARACTERS]
    spec["containers"][0]["env"].append({"name": names.ENV_POOL, "value": digest})
    if not affinity:
        spec["affinity"] = _spread(digest)
    labels = {names.POOL_LABEL: digest, names.PART_LABEL: names.PART, names.COMPONENT_LABEL: names.COMPONENT}
    metadata = {"namespace": wish.namespace, "labels": labels}
    if annotations:
        metadata["annotations"] = annotations
    return Pool(digest, wish.namespace, {"metadata": metadata, "spec": spec})


def pod(pool: Pool, suffix: str) -> Document:
    """`suffix`: of its name, unlike any other's."""
    metadata = {**pool.pod["metadata"], "name": f"standby-{pool.digest[:8]}-{suffix}"}
    return {"metadata": metadata, "spec": pool.pod["spec"]}


# --- inside


def _container(wish: Wish, mounts: list[Document], volumes: list[Document]) -> Document:
    user = wish.user
    made: Document = {
        key: user[key] for key in ("name", "image", "imagePullPolicy", "workingDir") if key in user
    }
    made |= {
        "command": list(names.COMMAND),
        "env": _environment(wish, mounts, volumes),
        "resources": _resources(wish),
        "volumeMounts": mounts,
        "ports": [
            {"name": "http-autometric", "containerPort": names.METRICS_PORT},
            {"name": "http-usermetric", "containerPort": names.USER_METRICS_PORT},
            {"name": "http-queueadm", "containerPort": names.ADMIN_PORT},
            {"name": "queue-port", "containerPort": names.HTTP_PORT},
            {"name": "queue-port-h2c", "containerPort": names.HTTP2_PORT},
        ],
        "readinessProbe": {
            "httpGet": {
                "port": names.HTTP_PORT,
                "httpHeaders": [{"name": "K-Network-Probe", "value": "queue"}],
            },
            "periodSeconds": 1,
            "failureThreshold": 3,
        },
        "lifecycle": {"preStop": {"httpGet": {"port": names.ADMIN_PORT, "path": names.DRAIN_PATH}}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    if user.get("envFrom"):
        made["envFrom"] = user["envFrom"]
    if user.get("securityContext"):
        made["securityContext"] = user["securityContext"]
    return made


def _grace_s(wish: Wish) -> int:
    """Knative's is the revision's timeout, and timeouts make no other pool. A slot ends when its revision has drained
    by its own, whatever longer time there is."""
    asked = int((wish.template.get("spec") or {}).get("terminationGracePeriodSeconds") or 0)
    return next((step for step in GRACES_S if asked <= step), -(-asked // GRACES_S[-1]) * GRACES_S[-1])


def _environment(wish: Wish, mounts: list[Document], volumes: list[Document]) -> list[Document]:
    """Sorted, so that order makes no other pool."""
    empty = {volume["name"] for volume in volumes if "emptyDir" in volume}
    scratch = {m["mountPath"] for m in mounts if m["name"] in empty and not m.get("readOnly")}
    own = {
        names.ENV_SCRATCH: ":".join(sorted(scratch)),
        names.ENV_SHARED: ":".join(sorted({m["mountPath"] for m in mounts} - scratch)),
        names.ENV_VALUES: ":".join(folder for folder, _ in _values(wish.user)),
        names.ENV_LEVEL: wish.level,
        names.ENV_RUNTIME: wish.zygote,
        names.ENV_GPUS: str(_gpus(wish)),
        names.ENV_SOCKET: names.SOCKET,
        names.ENV_TOKEN: names.TOKEN,
    }
    literal = fitting.literal(wish.user)
    if wish.level == "S1":
        own[names.ENV_SHAPE] = json.dumps(shape(wish))
    if wish.level == "S2":
        own[names.ENV_ENGINES] = json.dumps(engines.plan(wish.engines, wish.user, literal, wish.zygote))
        own[names.ENV_HOST_MIB] = str(quantities.mebibytes(wish.user["resources"]["limits"]["memory"]))
    if _read_only(wish) and "HOME" not in literal:
        own["HOME"] = TEMPORARY  # where an image has it can't be written to
    fields = {
        "POD_NAME": "metadata.name",
        "POD_NAMESPACE": "metadata.namespace",
        "POD_UID": "metadata.uid",
        "POD_IP": "status.podIP",
    }
    if wish.level == "S2":  # its engines have read all of them before they are a revision's
        values = engines.variables(literal)
    else:
        values = {name: value for name, value in literal.items() if name.startswith(_READ_BY_IMPORTS)}
    # References are put in already: what still looks like one is none, and the kubelet is to leave it alone.
    entries: dict[str, Document] = {
        name: {"value": value.replace("$(", "$$(")} for name, value in (values | own).items()
    }
    for entry in wish.user.get("env") or ():
        if entry.get("valueFrom"):
            entries[entry["name"]] = {"valueFrom": entry["valueFrom"]}
    entries |= {name: {"valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()}
    return [{"name": name, **entries[name]} for name in sorted(entries)]


#: Arguments that name a model or a place, not the engine's shape.
_OF_THE_MODEL: Final = ("--model", "--served-model-name", "--port", "--host", "--tokenizer")


def shape(wish: Wish) -> list[str]:
    """The arguments of its server that make an engine what it is, whatever weights it has."""
    env = fitting.literal(wish.user)
    words = [command.expand(str(word), env) for word in wish.user.get("args") or ()]
    return engines.without(words, _OF_THE_MODEL)


def _resources(wish: Wish) -> Document:
    """The user's and queue-proxy's, since the one container does the work of both."""
    given = [(c.get("resources") or {}) for c in (wish.user, wish.queue)]
    limits = [dict(each.get("limits") or {}) for each in given]
    # What isn't requested is requested up to its limit, as Kubernetes has it for each container.
    requests = [of | dict(each.get("requests") or {}) for of, each in zip(limits, given, strict=True)]
    wanted = {name: _sum(name, requests) for name in sorted({*requests[0], *requests[1]})}
    if "memory" in limits[0]:
        limits[1].setdefault("memory", OWN_MEMORY)
    # Where the user's is unlimited, both are.
    limited = {name: _sum(name, limits) for name in sorted(limits[0])}
    for name, amount in limited.items():
        if quantities.parse(wanted[name]) > quantities.parse(amount):
            limited[name] = wanted[name]  # nobody may request more than the limit
    made: Document = {kind: of for kind, of in (("requests", wanted), ("limits", limited)) if of}
    claims = (wish.user.get("resources") or {}).get("claims")
    return {**made, **({"claims": claims} if claims else {})}


def _sum(name: str, containers: list[dict[str, object]]) -> str:
    given = [of[name] for of in containers if name in of]
    if len(given) == 1:
        return str(given[0])
    amount = sum((quantities.parse(each) for each in given), start=quantities.parse(0))
    if name == "cpu":
        return f"{quantities.up(amount * 1000)}m"
    return str(quantities.up(amount))


def _gpus(wish: Wish) -> int:
    resources = wish.user.get("resources") or {}
    amounts = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    return sum(quantities.whole(amounts[name]) for name in _GPUS if name in amounts)


def _volumes(wish: Wish) -> tuple[list[Document], list[Document]]:
    """Mounts and volumes: claims whole, whatever part of them a revision uses; others as they are."""
    claims = fitting.claims_of(wish)
    read_only: dict[str, bool] = {}
    mounts: list[Document] = []
    for mount in wish.user.get("volumeMounts") or ():
        claim = claims.get(mount["name"])
        if claim is None:
            mounts.append(mount)
        else:
            read_only[claim] = read_only.get(claim, True) and bool(mount.get("readOnly"))
    claim = fitting.claim_of(wish.annotations)[0]
    if claim:
        written = wish.annotations.get(_READ_WRITE) == "false"
        read_only[claim] = read_only.get(claim, True) and not written
    used = {mount["name"] for mount in mounts}
    volumes = [v for v in (wish.template.get("spec") or {}).get("volumes") or () if v["name"] in used]
    for number, claim in enumerate(sorted(read_only)):
        name = f"galaxy-claim-{number}"
        volumes.append({"name": name, "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": name, "mountPath": fitting.below(claim, ""), "readOnly": read_only[claim]})
    if _read_only(wish) and TEMPORARY not in {str(mount["mountPath"]).rstrip("/") for mount in mounts}:
        volumes.append({"name": "galaxy-tmp", "emptyDir": {}})
        mounts.append({"name": "galaxy-tmp", "mountPath": TEMPORARY})
    for folder, volume in _values(wish.user):
        volumes.append(volume)
        mounts.append({"name": volume["name"], "mountPath": folder, "readOnly": True})
    token = {"audience": names.AUDIENCE, "expirationSeconds": 3600, "path": "token"}
    volumes += [
        {"name": "galaxy-agent", "hostPath": {"path": names.SOCKET_FOLDER, "type": "DirectoryOrCreate"}},
        {"name": "galaxy-token", "projected": {"sources": [{"serviceAccountToken": token}]}},
    ]
    mounts += [
        {"name": "galaxy-agent", "mountPath": names.SOCKET_FOLDER, "readOnly": True},
        {"name": "galaxy-token", "mountPath": names.TOKEN_FOLDER, "readOnly": True},
    ]
    return mounts, volumes


def _values(user: Document) -> list[tuple[str, Document]]:
    """Where which Secrets and ConfigMaps are mounted only so that the slot sees when a variable's value has changed.

    No more of them than the variables show. None has to be there: whether a variable may lack is for the kubelet.
    """
    keys: dict[tuple[str, str], set[str] | None] = {}  # None: all
    for entry in user.get("env") or ():
        source = entry.get("valueFrom") or {}
        for field, kind in (("secretKeyRef", "secret"), ("configMapKeyRef", "configmap")):
            if source.get(field):
                known = keys.setdefault((kind, source[field]["name"]), set())
                if known is not None:
                    known.add(source[field]["key"])
    for entry in user.get("envFrom") or ():
        for field, kind in (("secretRef", "secret"), ("configMapRef", "configmap")):
            if entry.get(field):
                keys[kind, entry[field]["name"]] = None
    found = []
    for number, ((kind, name), shown) in enumerate(sorted(keys.items(), key=lambda item: item[0])):
        source = {"optional": True, "defaultMode": 0o400}
        if shown is not None:
            source["items"] = [{"key": key, "path": key} for key in sorted(shown)]
        of = (
            {"secret": {"secretName": name, **source}}
            if kind == "secret"
            else {"configMap": {"name": name, **source}}
        )
        found.append((f"{names.VALUES}/{kind}/{name}", {"name": f"galaxy-values-{number}", **of}))
    return found


def _read_only(wish: Wish) -> bool:
    return bool((wish.user.get("securityContext") or {}).get("readOnlyRootFilesystem"))


def _affinity(affinity: Document) -> Document:
    """Without Knative's own wish that pods of this one revision be apart."""
    terms = (affinity.get("podAntiAffinity") or {}).get(
        "preferredDuringSchedulingIgnoredDuringExecution"
    ) or ()
    of_revision = [
        term
        for term in terms
        if list(((term.get("podAffinityTerm") or {}).get("labelSelector") or {}).get("matchLabels") or {})
        == [_SPREAD]
    ]
    if set(affinity) == {"podAntiAffinity"} and set(affinity["podAntiAffinity"]) == {
        "preferredDuringSchedulingIgnoredDuringExecution"
    }:
        return affinity if len(of_revision) != len(terms) else {}
    return affinity


def _spread(digest: str) -> Document:
    """Where nobody says otherwise, pods of a pool are apart."""
    term = {
        "labelSelector": {"matchLabels": {names.POOL_LABEL: digest}},
        "topologyKey": "kubernetes.io/hostname",
    }
    preferred = [{"weight": 100, "podAffinityTerm": term}]
    return {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}
