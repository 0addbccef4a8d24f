"""Stock or ours: which images the activator's and the autoscaler's Deployments name.

What an installation does besides is the least that ours needs here, its roles; `galaxy install` itself is tested in
behaviours/test_install.py.
"""

from __future__ import annotations

from collections.abc import Iterable

from e2e.stack import knative
from e2e.stack.api import Api, documents
from e2e.stack.kubelet import programs
from e2e.stack.place import CLONE

IMPLEMENTATIONS = ("stock", "ours")
PARTS = ("activator", "autoscaler")
_ROLES = CLONE / "manifests" / "base" / "rbac.yaml"


def image(implementation: str, part: str) -> str:
    return programs.stock_image(part) if implementation == "stock" else programs.our_image(f"galaxy-{part}")


def grant(api: Api) -> None:
    """The roles of ours."""
    api.apply_all(documents(_ROLES))


def use(api: Api, implementation: str, parts: Iterable[str] = PARTS) -> None:
    """Rolling updates, all at once, to their end. Where all parts are stock, no role of ours stays."""
    parts = tuple(parts)
    if implementation == "ours":
        grant(api)
    for part in parts:
        knative.set_image(api, part, image(implementation, part))
    for part in parts:
        knative.wait_rolled_out(api, part)
    if implementation == "stock" and parts == PARTS:
        for obj in documents(_ROLES):
            api.delete(obj["apiVersion"], obj["kind"], "", obj["metadata"]["name"])
