"""Stock or ours: which images the activator's and the autoscaler's Deployments name.

What an installation does besides is the least that ours needs here, its roles; `galaxy install` itself is tested in
behaviours/test_install.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from e2e.stack import knative
from e2e.stack.api import Api, documents
from e2e.stack.kubelet import programs
from e2e.stack.place import CLONE, SYSTEM_NAMESPACE

PARTS = ("activator", "autoscaler")
#: Name -> whose each part is, in the order of PARTS.
IMPLEMENTATIONS = {
    "stock": ("stock", "stock"),
    "ours": ("ours", "ours"),
    "our-activator": ("ours", "stock"),
    "our-autoscaler": ("stock", "ours"),
}
#: What the table runs against unless it is told otherwise.
USUAL = ("stock", "ours")
_BASE = CLONE / "manifests" / "base"
_NEEDED = (_BASE / "rbac.yaml", _BASE / "peers.yaml")


def whose(implementation: str, part: str) -> str:
    """`stock` or `ours`."""
    return IMPLEMENTATIONS[implementation][PARTS.index(part)]


def image(implementation: str, part: str) -> str:
    stock = whose(implementation, part) == "stock"
    return programs.stock_image(part) if stock else programs.our_image(f"galaxy-{part}")


def grant(api: Api) -> None:
    """The roles of ours, and the key of its activators."""
    for path in _NEEDED:
        api.apply_all(documents(path))


def images(api: Api) -> dict[str, str]:
    """Part -> what its Deployment names."""
    found = {}
    for part in PARTS:
        deployment = api.get("apps/v1", "Deployment", SYSTEM_NAMESPACE, part)
        found[part] = str(deployment["spec"]["template"]["spec"]["containers"][0]["image"])
    return found


def roll_out(api: Api, images: Mapping[str, str]) -> None:
    """Rolling updates, all at once, to their end."""
    for part, image in images.items():
        knative.set_image(api, part, image)
    for part in images:
        knative.wait_rolled_out(api, part)


def use(api: Api, implementation: str, parts: Iterable[str] = PARTS) -> None:
    """Where all parts are stock, no role of ours stays."""
    wanted = {part: image(implementation, part) for part in parts}
    if "ours" in IMPLEMENTATIONS[implementation]:
        grant(api)
    roll_out(api, wanted)
    if implementation == "stock" and wanted.keys() == set(PARTS):
        for obj in [obj for path in _NEEDED for obj in documents(path)]:
            metadata = obj["metadata"]
            api.delete(obj["apiVersion"], obj["kind"], metadata.get("namespace", ""), metadata["name"])
