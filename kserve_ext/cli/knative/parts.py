"""The two parts of Knative that have a counterpart here: their Deployments, and whose image these run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final, NamedTuple

from kserve_ext.cli.failure import Failure
from kserve_ext.cli.knative.kustomize import Image

Object = dict[str, Any]
NAMESPACE: Final = "knative-serving"
#: Releases of Knative Serving against which e2e runs; the labels of its objects say which one is there.
TESTED: Final = ("1.21",)
VERSION_LABEL: Final = "app.kubernetes.io/version"
#: On objects of ours: which part they serve.
PART_LABEL: Final = "app.kubernetes.io/component"
MUTUAL_TLS: Final = "GALAXY_MUTUAL_TLS"
_REGISTRY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*/?")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


class Part(NamedTuple):
    name: str  # of the Deployment and of its container
    image: str  # without registry and tag


#: In the order of installation: an autoscaler of ours understands stock activators, and takes their stats.
PARTS: Final = (Part("autoscaler", "galaxy-autoscaler"), Part("activator", "galaxy-activator"))
NAMES: Final = tuple(part.name for part in PARTS)
#: Of what KServe starts for us; in no Deployment.
RUNTIME_IMAGE: Final = "galaxy-runtime"


def chosen(only: str | None) -> tuple[Part, ...]:
    return tuple(part for part in PARTS if only in (None, part.name))


def images(registry: str, tag: str) -> list[Image]:
    """Where our images are; "" leaves what the manifests say. A Failure where no image can be named so."""
    if registry and not _REGISTRY.fullmatch(registry):
        do = "write it without a scheme, in small letters: registry.example:5000/team"
        raise Failure(f"{registry!r} is no place of images", "a host, then names, with / between them", do)
    if tag and not _TAG.fullmatch(tag):
        do = "write what stands behind the colon, such as 0.1.0"
        raise Failure(f"{tag!r} is no tag", "letters, digits and _ . -, 128 at most", do)
    prefix = registry.rstrip("/") + "/" if registry else ""
    return [Image(name, prefix + name, tag) for name in (*(part.image for part in PARTS), RUNTIME_IMAGE)]


def image_of(deployment: Mapping[str, Any], part: Part) -> str:
    """The image of the part's container, "" where there is none of that name."""
    return str(_container(deployment, part).get("image", ""))


def mutual_tls_of(deployment: Mapping[str, Any], part: Part) -> str:
    """off, permissive or strict; Knative's own knows nothing of it, whatever its environment says."""
    if not is_ours(image_of(deployment, part), part):
        return "off"
    variables = _container(deployment, part).get("env") or ()
    return next((str(v.get("value") or "off") for v in variables if v.get("name") == MUTUAL_TLS), "off")


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


def _container(deployment: Mapping[str, Any], part: Part) -> Mapping[str, Any]:
    spec = ((deployment.get("spec") or {}).get("template") or {}).get("spec") or {}
    return next((c for c in spec.get("containers") or () if c.get("name") == part.name), {})
