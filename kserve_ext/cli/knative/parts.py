"""The two parts of Knative that have a counterpart here: their Deployments, and whose image these run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final, NamedTuple

from kserve_ext.cli.knative.kustomize import Image

Object = dict[str, Any]
NAMESPACE: Final = "knative-serving"
#: Releases of Knative Serving against which e2e runs; the labels of its objects say which one is there.
TESTED: Final = ("1.21",)
VERSION_LABEL: Final = "app.kubernetes.io/version"
#: On objects of ours: which part they serve.
PART_LABEL: Final = "app.kubernetes.io/component"


class Part(NamedTuple):
    name: str  # of the Deployment and of its container
    image: str  # without registry and tag


#: In the order of installation: an autoscaler of ours understands stock activators, and takes their stats.
PARTS: Final = (Part("autoscaler", "galaxy-autoscaler"), Part("activator", "galaxy-activator"))
NAMES: Final = tuple(part.name for part in PARTS)


def chosen(only: str | None) -> tuple[Part, ...]:
    return tuple(part for part in PARTS if only in (None, part.name))


def images(registry: str, tag: str) -> list[Image]:
    """Where our images are; "" leaves what the manifests say."""
    prefix = registry.rstrip("/") + "/" if registry else ""
    return [Image(part.image, prefix + part.image, tag) for part in PARTS]


def image_of(deployment: Mapping[str, Any], part: Part) -> str:
    """The image of the part's container, "" where there is none of that name."""
    containers = deployment["spec"]["template"]["spec"].get("containers") or ()
    return next((str(c.get("image", "")) for c in containers if c.get("name") == part.name), "")


def is_ours(image: str, part: Part) -> bool:
    """From any registry, with any tag."""
    return re.fullmatch(rf"(.*/)?{re.escape(part.image)}([:@].*)?", image) is not None


def release_of(deployment: Mapping[str, Any]) -> str:
    """ "1.21.1"; "devel" for a build from source, "" where nothing says."""
    labels = deployment["metadata"].get("labels") or {}
    return str(labels.get(VERSION_LABEL, "")).removeprefix("v")


def tested(release: str) -> bool:
    return ".".join(release.split(".")[:2]) in TESTED


def own_version() -> str:
    try:
        return version("kserve-galaxy")
    except PackageNotFoundError:  # a clone that is not installed
        return "development"
