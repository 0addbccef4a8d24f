"""What an installation applies: to each of Knative's two Deployments a patch, and the objects that are added for it.

Reads the manifests, and no cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from kserve_ext.cli.knative.kustomize import MANIFESTS, Identity, build, identity
from kserve_ext.cli.knative.parts import NAMESPACE, PART_LABEL, chosen, image_of, images

Object = dict[str, Any]
COMPONENTS: Final = (
    "high-availability",
    "kserve",
    "monitoring",
    "mutual-tls",
    "mutual-tls-strict",
    "network-policy",
    "standby",
    "webhook",
)
#: Which of them --mutual-tls means.
MUTUAL_TLS: Final = {"permissive": "mutual-tls", "strict": "mutual-tls-strict"}


class Plan(NamedTuple):
    patches: dict[str, Object]  # by part, in the order of installation
    added: dict[str, list[Object]]  # by part
    images: dict[str, str]  # by part
    #: What was made aside, such as certificates; it goes with the part that is installed first.
    made: tuple[tuple[str, Identity], ...] = ()

    def documents(self) -> list[Object]:
        """Everything, in the order in which it is applied."""
        found = []
        for part, patch in self.patches.items():
            found += [*self.added[part], patch]
        return found

    def objects_of(self, part: str) -> tuple[tuple[str, Identity], ...]:
        made = self.made if part == next(iter(self.patches)) else ()
        return (*((obj["apiVersion"], identity(obj)) for obj in self.added[part]), *made)


def make(
    only: str | None = None,
    components: Sequence[str] = (),
    registry: str = "",
    tag: str = "",
    namespace: str = NAMESPACE,
) -> Plan:
    folders = [MANIFESTS / "components" / name for name in components]
    rendering = build(MANIFESTS / "overlays" / "knative", folders, images(registry, tag))
    plan = Plan({}, {}, {})
    for part in chosen(only):
        patch = rendering.patches[Identity("Deployment", NAMESPACE, part.name)]
        plan.images[part.name] = image_of(patch, part)
        plan.patches[part.name] = _moved(patch, namespace)
        plan.added[part.name] = [
            _moved(obj, namespace)
            for key, obj in rendering.objects.items()
            if key not in rendering.patches and obj["metadata"]["labels"][PART_LABEL] == part.name
        ]
    return plan


def _moved(value: Any, namespace: str) -> Any:
    """With another namespace in the place of knative-serving, wherever a field `namespace` has it."""
    if isinstance(value, list):
        return [_moved(element, namespace) for element in value]
    if not isinstance(value, dict):
        return value
    return {
        field: namespace if field == "namespace" and below == NAMESPACE else _moved(below, namespace)
        for field, below in value.items()
    }
