"""A kustomization folder -> its objects, without kustomize.

Reads what our manifests use of it (resources, components, patches by file, images), refuses everything else, and
gives what `kustomize build` gives. Beside the whole objects it keeps what the patches say by themselves: to a
Deployment that is Knative's, only that is applied.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from kserve_ext.cli.knative.merging import merge

Object = dict[str, Any]
#: The manifests as part of this package: a link into the repository, real files in an installed wheel.
MANIFESTS: Final = Path(__file__).resolve().parents[2] / "manifests"
FIELDS: Final = {"apiVersion", "kind", "resources", "components", "patches", "images"}


class Identity(NamedTuple):
    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind.lower()}/{self.name}"


class Image(NamedTuple):
    """As in `images` of a kustomization: name -> another name, another tag; "" = as it is."""

    name: str
    new_name: str = ""
    new_tag: str = ""


class Rendering(NamedTuple):
    objects: dict[Identity, Object]
    #: What all patches together say, for the objects that have any.
    patches: dict[Identity, Object]


class BadManifest(Exception):
    """The folder can't be rendered; the message names the file."""


def identity(obj: Object) -> Identity:
    metadata = obj["metadata"]
    return Identity(str(obj["kind"]), str(metadata.get("namespace", "")), str(metadata["name"]))


def build(folder: Path, components: Sequence[Path] = (), images: Sequence[Image] = ()) -> Rendering:
    """The folder, and then components and images as an overlay of it would add them."""
    rendering = _folder(folder, Rendering({}, {}))
    for component in components:
        rendering = _folder(component, rendering)
    return _with_images(rendering, images)


def _folder(folder: Path, start: Rendering) -> Rendering:
    """`start`, and what the kustomization of the folder adds and changes."""
    file = folder / "kustomization.yaml"
    (text,) = _documents(file)
    unknown = sorted(set(text) - FIELDS)
    if unknown:
        raise BadManifest(f"{file}: {', '.join(unknown)} is not among {', '.join(sorted(FIELDS))}")
    made = Rendering(dict(start.objects), dict(start.patches))
    for name in text.get("resources") or ():
        path = folder / name
        if path.is_dir():
            below = _folder(path.resolve(), Rendering({}, {}))
            made.objects.update(below.objects)
            made.patches.update(below.patches)
        else:
            made.objects.update((identity(obj), obj) for obj in _documents(path))
    for name in text.get("components") or ():
        made = _folder((folder / name).resolve(), made)
    for entry in text.get("patches") or ():
        for patch in _documents(folder / entry["path"]):
            target = identity(patch)
            if target not in made.objects:
                raise BadManifest(f"{folder / entry['path']}: there is no {target} to patch")
            made.objects[target] = merge(made.objects[target], patch)
            made.patches[target] = merge(made.patches.get(target, {}), patch)
    images = [Image(i["name"], i.get("newName", ""), i.get("newTag", "")) for i in text.get("images") or ()]
    return _with_images(made, images)


def _documents(file: Path) -> list[Object]:
    try:
        found = [document for document in yaml.safe_load_all(file.read_text()) if document is not None]
    except (OSError, yaml.YAMLError) as error:
        raise BadManifest(f"{file}: {error}") from None
    if not found or not all(isinstance(document, dict) for document in found):
        raise BadManifest(f"{file}: expected objects")
    return found


def _with_images(rendering: Rendering, images: Sequence[Image]) -> Rendering:
    if not images:
        return rendering
    return Rendering(*({key: _renamed(obj, images) for key, obj in each.items()} for each in rendering))


def _renamed(value: Any, images: Sequence[Image]) -> Any:
    if isinstance(value, list):
        return [_renamed(element, images) for element in value]
    if not isinstance(value, dict):
        return value
    changed = {field: _renamed(below, images) for field, below in value.items()}
    if isinstance(changed.get("image"), str):
        for image in images:
            changed["image"] = _rename(changed["image"], image)
    return changed


def _rename(reference: str, image: Image) -> str:
    parts = re.fullmatch(r"(?P<name>.+?)(?P<tag>:[^:/@]+)?(?P<digest>@.+)?", reference)
    if parts is None or parts["name"] != image.name:
        return reference
    rest = f":{image.new_tag}" if image.new_tag else (parts["tag"] or "") + (parts["digest"] or "")
    return (image.new_name or image.name) + rest
