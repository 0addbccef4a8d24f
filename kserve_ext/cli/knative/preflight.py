"""What is in the cluster, and whether ours may take over there: looked up, then decided. Changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import yaml

from kserve_ext.cli.failure import Failure
from kserve_ext.cli.knative import record as records
from kserve_ext.cli.knative.kinds import ACCESS_REVIEWS, KNATIVE_SERVINGS
from kserve_ext.cli.knative.parts import (
    PARTS,
    TESTED,
    Part,
    image_of,
    is_ours,
    mutual_tls_of,
    release_of,
    tested,
)
from kserve_ext.cli.knative.record import Record
from kserve_ext.kube.client import Client, Kind, KubeError, NotFound
from kserve_ext.kube.kinds import CONFIG_MAPS, DEPLOYMENTS

Object = dict[str, Any]
_VERBS: Final = ("get", "create", "patch", "delete")


class Situation(NamedTuple):
    namespace: str
    deployments: dict[str, Object]  # of both parts, as far as they exist
    operators: list[str]  # names of KnativeServing objects
    record: Record | None


async def look(client: Client, namespace: str) -> Situation:
    found = await asyncio.gather(*(_get(client, DEPLOYMENTS, namespace, part.name) for part in PARTS))
    deployments = {part.name: each for part, each in zip(PARTS, found, strict=True) if each is not None}
    config_map = await _get(client, CONFIG_MAPS, namespace, records.NAME)
    try:
        record = records.read(config_map) if config_map else None
    except ValueError as error:
        where = f"ConfigMap {namespace}/{records.NAME}"
        do = "put Knative's release back with kubectl apply, then delete the ConfigMap"
        raise Failure(f"{where} is not a record of an installation", str(error), do) from None
    return Situation(namespace, deployments, await _operators(client, namespace, deployments), record)


async def denied(client: Client, namespace: str, changed: Iterable[Kind], added: Iterable[Kind]) -> list[str]:
    """What the user may not do to objects of these kinds, as "create clusterroles.rbac.authorization.k8s.io"."""
    verbs = {**dict.fromkeys(changed, ("get", "patch")), **dict.fromkeys(added, _VERBS)}
    wanted = [(verb, kind) for kind, each in verbs.items() for verb in each]
    answers = await asyncio.gather(*(_may(client, namespace, verb, kind) for verb, kind in wanted))
    return [f"{verb} {kind}" for (verb, kind), allowed in zip(wanted, answers, strict=True) if not allowed]


def require(
    situation: Situation, parts: Sequence[Part], images: Mapping[str, str], any_version: bool
) -> None:
    """Raises the Failure that says why ours may not take the parts' place; `images`: what each is to run."""
    place = situation.namespace
    missing = [part.name for part in parts if part.name not in situation.deployments]
    if missing:
        raise Failure(
            f"Knative Serving is not in the namespace {place}",
            f"there is no Deployment {' and none '.join(missing)}",
            "install Knative Serving first, or name its namespace with -n",
        )
    if situation.operators:
        raise Failure(
            f"Knative's operator manages this installation: KnativeServing {', '.join(situation.operators)}",
            "it would put its own images back",
            "let it use ours; put this into the KnativeServing object, and apply what else "
            "`galaxy install --dry-run` prints:\n" + yaml.safe_dump(operator_spec(images), sort_keys=False),
        )
    for part in parts:
        deployment = situation.deployments[part.name]
        recorded = situation.record is not None and part.name in situation.record.parts
        if is_ours(image_of(deployment, part), part) and not recorded:
            raise Failure(
                f"deployment/{part.name} runs {image_of(deployment, part)}, and no record says what it ran before",
                "it was not put there by galaxy install (by kubectl apply -k, perhaps)",
                "go on with kubectl apply -k, or apply Knative's own release and run galaxy install again",
            )
        release = release_of(deployment)
        if not any_version and not tested(release):
            raise Failure(
                f"deployment/{part.name} is of Knative Serving {release or '(no version label)'}",
                f"tested: {', '.join(TESTED)}",
                "use such a release, or go ahead with --any-version",
            )


def require_common_speech(situation: Situation, patches: Mapping[str, Object]) -> None:
    """Strict parts refuse those without TLS, and these hear of no request then: raises where both would run."""
    for part in PARTS:
        if part.name not in patches:
            continue
        wanted = mutual_tls_of(patches[part.name], part)
        for other in PARTS:
            now = mutual_tls_of(situation.deployments.get(other.name, {}), other)
            if {wanted, now} == {"off", "strict"}:
                stays = "is without it" if now == "off" else "runs with it strict"
                raise Failure(
                    f"mutual TLS is to be {wanted}, and {other.name} {stays}",
                    "until all have rolled out they would not speak to each other, and nothing would start",
                    "galaxy install --mutual-tls permissive first"
                    + (", or --mutual-tls strict to keep it" if wanted == "off" else ""),
                )


def operator_spec(images: Mapping[str, str]) -> Object:
    """What a KnativeServing object needs so that its operator installs ours."""
    return {"spec": {"registry": {"override": {f"{name}/{name}": image for name, image in images.items()}}}}


def rivals(situation: Situation, parts: Sequence[Part], manager: str) -> list[str]:
    """Warnings about others that apply these Deployments, and would put them back."""
    found = []
    for name in (part.name for part in parts):
        deployment = situation.deployments[name]
        for entry in deployment["metadata"].get("managedFields") or ():
            other = entry.get("manager")
            if entry.get("operation") == "Apply" and other != manager:
                found.append(
                    f"deployment/{name} is applied by {other}, which may put it back: change it there"
                )
    return found


async def _get(client: Client, kind: Kind, namespace: str, name: str) -> Object | None:
    try:
        return await client.get(kind, namespace, name)
    except NotFound:
        return None


async def _operators(client: Client, namespace: str, deployments: Mapping[str, Object]) -> list[str]:
    owners = {
        str(owner["name"])
        for deployment in deployments.values()
        for owner in deployment["metadata"].get("ownerReferences") or ()
        if owner.get("kind") == "KnativeServing"
    }
    try:
        listed = await client.list(KNATIVE_SERVINGS, namespace)
    except NotFound:  # no operator here
        return sorted(owners)
    except KubeError as error:
        if error.status != 403:
            raise
        return sorted(owners)  # they can't be read, but an owner tells
    return sorted(owners | {str(item["metadata"]["name"]) for item in listed.items})


async def _may(client: Client, namespace: str, verb: str, kind: Kind) -> bool:
    attributes = {"verb": verb, "group": kind.group, "resource": kind.plural}
    if kind.namespaced:
        attributes["namespace"] = namespace
    review = await client.create(ACCESS_REVIEWS, {"metadata": {}, "spec": {"resourceAttributes": attributes}})
    return bool((review.get("status") or {}).get("allowed"))
