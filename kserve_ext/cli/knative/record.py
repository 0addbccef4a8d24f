"""What `galaxy install` has done to a cluster, kept there in a ConfigMap: how to take it back, and what was added.

The record is written before anything is changed, and says of each part the patch that puts its Deployment back. It
never holds whole Deployments: what others change meanwhile stays as they want it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from kserve_ext.cli.knative.kustomize import Identity
from kserve_ext.cli.knative.merging import merge, undo
from kserve_ext.cli.knative.parts import Part, image_of, is_ours

Object = dict[str, Any]
NAME: Final = "galaxy-install"
KEY: Final = "record.json"


class Taken(NamedTuple):
    """One part of Knative's that is replaced."""

    former_image: str
    undo: Object  # a strategic merge patch
    objects: tuple[tuple[str, Identity], ...] = ()  # apiVersion and name of what was added for it


class Record(NamedTuple):
    version: str  # of what installed last
    parts: dict[str, Taken]


def take(
    part: Part,
    deployment: Mapping[str, Any],
    patch: Mapping[str, Any],
    before: Taken | None,
    objects: tuple[tuple[str, Identity], ...],
) -> Taken:
    """What to remember of a Deployment before `patch` is applied to it.

    Where ours runs already, the state to go back to is the one before that; where Knative's runs, whatever an earlier
    record says, it is the state of now.
    """
    if before is not None and is_ours(image_of(deployment, part), part):
        deployment = merge(deployment, before.undo)
    back = undo(deployment, {"spec": patch["spec"]})
    return Taken(image_of(deployment, part), back, objects)


def config_map(namespace: str, record: Record) -> Object:
    text = {
        "version": record.version,
        "parts": {
            name: {
                "formerImage": taken.former_image,
                "undo": taken.undo,
                "objects": [[version, *key] for version, key in taken.objects],
            }
            for name, taken in record.parts.items()
        },
    }
    labels = {"app.kubernetes.io/part-of": "kserve-galaxy"}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": NAME, "namespace": namespace, "labels": labels},
        "data": {KEY: json.dumps(text, indent=1)},
    }


def read(config_map: Mapping[str, Any]) -> Record:
    """ValueError when it is not a record of ours."""
    try:
        text = json.loads(config_map["data"][KEY])
        parts = {
            name: Taken(
                taken["formerImage"],
                taken["undo"],
                tuple((version, Identity(*key)) for version, *key in taken["objects"]),
            )
            for name, taken in text["parts"].items()
        }
        return Record(text["version"], parts)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None
