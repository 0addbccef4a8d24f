"""Whether a standby pod can serve a revision, as its Deployment shows it, or why not.

The Deployment is what Knative's controller has made: one container of the user beside queue-proxy. What KServe's
webhook would add to its pods only when they are made (a model's claim, sidecars) is read from their annotations.
A revision that asks for no standby pods is nobody's affair here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from kserve_ext.api import annotations as table
from kserve_ext.api.knative.conditions import Document, text_map
from kserve_ext.api.problems import Findings
from kserve_ext.api.standby import engines, names
from kserve_ext.api.standby.engines import Engine
from kserve_ext.core.standby import command
from kserve_ext.core.standby.facts import Level

QUEUE_PROXY: Final = "queue-proxy"
_INTERNAL: Final = "internal.serving.kserve.io/"
SOURCE: Final = _INTERNAL + "storage-initializer-sourceuri"
#: What makes KServe's webhook add a container, and what that is.
_SIDECARS: Final = {
    _INTERNAL + "agent": "KServe's agent",
    _INTERNAL + "logger": "KServe's logger",
    _INTERNAL + "batcher": "KServe's batcher",
    _INTERNAL + "storage-spec": "KServe's storage initializer (spec.predictor.model.storage)",
}
#: Where KServe mounts a model.
MODELS: Final = "/mnt/models"
_CERTIFICATES: Final = "server-certs"
#: Values that only the kubelet knows and that are as right in a standby pod as in any other.
_FIELDS: Final = re.compile(
    r"metadata\.(name|namespace|uid)|status\.(podIPs?|hostIPs?)|spec\.(nodeName|serviceAccountName)"
)


@dataclass(frozen=True, slots=True)
class Wish:
    """What a revision asks for, and the parts of its Deployment that decide."""

    size: int
    level: Level
    zygote: str
    namespace: str
    template: Document
    user: Document  # its container
    queue: Document  # queue-proxy
    annotations: Mapping[str, str]  # of the template
    engines: tuple[Engine, ...] = ()  # S2: those that sleep in the pod
    engine: str = ""  # S2: its own of them


@dataclass(frozen=True, slots=True)
class Unfit:
    """It asks for standby pods, and none can serve it."""

    reason: str


class _Unfit(Exception):
    pass


def asks(deployment: Document) -> bool:
    """Whether it is opted in, and wants standby pods."""
    notes = text_map(deployment["metadata"].get("annotations"))
    return notes.get(names.ENGINE) == "galaxy" and notes.get(names.SIZE, "0") not in ("", "0")


def read(deployment: Document) -> Wish | Unfit | None:
    """None: it asks for nothing."""
    if not asks(deployment):
        return None
    settings = table.read(text_map(deployment["metadata"].get("annotations")), Findings())
    if not settings.standby:  # what can't be read counts as absent; the webhook has said so
        return None
    template = (deployment.get("spec") or {}).get("template") or {}
    spec = template.get("spec") or {}
    try:
        user, queue = _containers(spec)
        notes = text_map((template.get("metadata") or {}).get("annotations"))
        _storage(notes)
        _probes(user)
        _environment(user)
        if any(mount.get("subPathExpr") for mount in user.get("volumeMounts") or ()):
            raise _Unfit(
                f"container {user['name']}: a mount has a subPathExpr, which only the kubelet expands; use subPath"
            )
        wish = Wish(
            settings.standby,
            settings.standby_level,
            _zygote(settings.zygote, user),
            str(deployment["metadata"]["namespace"]),
            template,
            user,
            queue,
            notes,
        )
        return _engine(wish, settings.standby_models) if wish.level == "S2" else wish
    except _Unfit as unfit:
        return Unfit(str(unfit))


def models(wish: Wish) -> tuple[tuple[str, str], ...]:
    """Paths that its revision uses, and where the standby pod has them."""
    claims = claims_of(wish)
    found = []
    for mount in wish.user.get("volumeMounts") or ():
        if mount["name"] in claims:
            found.append((str(mount["mountPath"]), below(claims[mount["name"]], mount.get("subPath") or "")))
    claim, path = claim_of(wish.annotations)
    if claim:
        found.append((MODELS, below(claim, path)))
    return tuple(found)


def claims_of(wish: Wish) -> dict[str, str]:
    """By volume, the claim that it is."""
    volumes = (wish.template.get("spec") or {}).get("volumes") or ()
    return {
        v["name"]: str(v["persistentVolumeClaim"]["claimName"])
        for v in volumes
        if v.get("persistentVolumeClaim")
    }


def below(claim: str, path: str) -> str:
    return "/".join(part for part in (names.CLAIMS, claim, path.strip("/")) if part)


def literal(user: Document) -> dict[str, str]:
    """The variables that have a value of their own, expanded in their order."""
    values: dict[str, str] = {}
    for entry in user.get("env") or ():
        if not entry.get("valueFrom"):
            values[entry["name"]] = command.expand(str(entry.get("value") or ""), values)
    return values


def claim_of(notes: Mapping[str, str]) -> tuple[str, str]:
    """Of a model at pvc://CLAIM/PATH: both; "" where there is none."""
    source = notes.get(SOURCE, "")
    if not source.startswith("pvc://"):
        return "", ""
    claim, _, path = source.removeprefix("pvc://").partition("/")
    return claim, path.strip("/")


def _engine(wish: Wish, entries: tuple[str, ...]) -> Wish:
    if not entries:
        raise _Unfit(f"{names.LEVEL} is S2 and {names.MODELS} names no model: add NAME=pvc://CLAIM/PATH")
    found = engines.named(entries)
    try:
        own = engines.own(found, wish.user, literal(wish.user), models(wish))
    except engines.WrongEngine as error:
        raise _Unfit(f"no engine that sleeps can serve it: {error}") from error
    return replace(wish, engines=found, engine=own)


def _containers(spec: Document) -> tuple[Document, Document]:
    containers: list[Document] = spec.get("containers") or []
    queue = [c for c in containers if c["name"] == QUEUE_PROXY]
    users = [c for c in containers if c["name"] != QUEUE_PROXY]
    if not queue:
        raise _Unfit("its pods have no queue-proxy, so they are no pods of a Knative revision")
    if len(users) != 1:
        found = ", ".join(str(c["name"]) for c in users) or "none"
        raise _Unfit(f"a standby pod has one container, and the revision has {len(users)} ({found})")
    inits = [str(c["name"]) for c in spec.get("initContainers") or ()]
    if inits:
        raise _Unfit(
            f"init container {inits[0]} runs before its server, and a standby pod has begun already; for a model use "
            "storageUri: pvc://CLAIM/PATH"
        )
    mounts = [m.get("name") for m in queue[0].get("volumeMounts") or ()]
    if _CERTIFICATES in mounts:
        raise _Unfit("system-internal-tls is on (config-network), and standby pods don't speak TLS")
    return users[0], queue[0]


def _storage(notes: Mapping[str, str]) -> None:
    for key, what in _SIDECARS.items():
        if notes.get(key, "false") != "false":
            raise _Unfit(f"{what} would be added to its pods, and a standby pod has begun already")
    source = notes.get(SOURCE, "")
    if source and not claim_of(notes)[0]:
        raise _Unfit(
            f"its model {source} is fetched by an init container, and a standby pod has begun already; use "
            "storageUri: pvc://CLAIM/PATH"
        )


def _probes(user: Document) -> None:
    for kind in ("livenessProbe", "startupProbe", "readinessProbe"):
        if user.get(kind):  # of readiness probes Knative leaves only exec here
            raise _Unfit(
                f"container {user['name']} has a {kind} that the kubelet runs, and a pod can't get one later: "
                "use a readinessProbe with httpGet, tcpSocket or grpc only"
            )


def _environment(user: Document) -> None:
    unknown: set[str] = set()  # to anybody but the kubelet
    for entry in user.get("env") or ():
        source: Any = entry.get("valueFrom")
        if source:
            unknown.add(entry["name"])
            field = (source.get("fieldRef") or {}).get("fieldPath", "")
            if field and not _FIELDS.fullmatch(field):
                raise _Unfit(f"env {entry['name']} is the pod's {field}, which a standby pod has otherwise")
    # What they say may be secret, and the reason is logged and told in a condition.
    before: set[str] = set()  # those that it can refer to
    for entry in user.get("env") or ():
        _references(user, f"env {entry['name']}", str(entry.get("value") or ""), before, unknown)
        before.add(entry["name"])
    for kind in ("command", "args"):
        for word in user.get(kind) or ():
            _references(user, kind, str(word), before, unknown)


def _references(user: Document, where: str, text: str, written: set[str], unknown: set[str]) -> None:
    for name in command.references(text):
        if name in unknown:
            raise _Unfit(
                f"{where} refers to $({name}), whose value only the kubelet knows: write it out, "
                "or let the server read the variable"
            )
        if user.get("envFrom") and name not in written:
            raise _Unfit(
                f"{where} refers to $({name}), which may come from envFrom, whose values only the kubelet knows: "
                "write it out, or let the server read the variable"
            )


def _zygote(said: str, user: Document) -> str:
    words = [str(word) for word in user.get("command") or ()]
    module = ""
    if len(words) == 3 and words[1] == "-m" and words[0].rpartition("/")[2].startswith("python"):
        module = words[2].removesuffix(".server")
    if words and not module:
        raise _Unfit(
            f"container {user['name']} runs {' '.join(words)}, of which there is no zygote: give command as "
            "[python, -m, PACKAGE] and the rest as args"
        )
    if said and module and said != module:
        raise _Unfit(f"{names.ZYGOTE} is {said}, but container {user['name']} runs {module}: make them one")
    if not said and not module:
        raise _Unfit(
            f"what image {user.get('image')} runs is not known: annotate the runtime with {names.ZYGOTE}: PACKAGE, "
            "or give command [python, -m, PACKAGE]"
        )
    return said or module
