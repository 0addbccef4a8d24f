"""The addresses of every revision, as the API server has them: of its pods, and of the activators in its path.

Read from EndpointSlices where this may be done, else from Endpoints (all that a stock activator's role allows). Both
are found by labels: a revision's private Service lists its pods, its public one whoever its traffic goes to.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing
from typing import Any, Final

from kserve_ext.api.knative.endpoints import (
    NOWHERE,
    PUBLIC,
    SERVICE_TYPE,
    SLICE_OF,
    Addresses,
    of_endpoints,
    of_slices,
)
from kserve_ext.api.knative.revision import REVISION_LABEL
from kserve_ext.core.ids import RevisionKey
from kserve_ext.kube.client import Client, KubeError
from kserve_ext.kube.informer import Informer
from kserve_ext.kube.kinds import ENDPOINT_SLICES, ENDPOINTS

log = logging.getLogger(__name__)

_SELECTOR: Final = f"{SERVICE_TYPE},{REVISION_LABEL}"
_LABELS: Final = (SERVICE_TYPE, REVISION_LABEL, SLICE_OF)

Place = tuple[RevisionKey, bool]  # the revision, and whether its public Service
Changed = Callable[[RevisionKey, bool], None]


class EndpointWatch:
    def __init__(self, client: Client, family: str, changed: Changed, *, slices: bool) -> None:
        """`changed(revision, public)`: ask `addresses` again."""
        self.slices = slices
        self._family = family
        self._changed = changed
        #: Objects by where they belong and their own name.
        self._objects: dict[Place, dict[str, dict[str, Any]]] = {}
        self.informer = Informer(
            client,
            ENDPOINT_SLICES if slices else ENDPOINTS,
            labels=_SELECTOR,
            on_change=self._on_change,
            keep=_kept,
        )

    def addresses(self, key: RevisionKey, public: bool, port_name: str) -> tuple[str, Addresses]:
        """The name of the Service, "" while there is none, and its addresses with such a port."""
        objects = list(self._objects.get((key, public), {}).values())
        if not objects:
            return "", NOWHERE
        if self.slices:
            service = objects[0]["metadata"]["labels"].get(SLICE_OF, "")
            return service, of_slices(objects, port_name, self._family)
        return objects[0]["metadata"]["name"], of_endpoints(objects[0], port_name)

    def _on_change(self, old: dict[str, Any] | None, new: dict[str, Any] | None) -> None:
        before, now = _place(old), _place(new)
        if old is not None and before is not None and before != now:
            self._remove(before, old["metadata"]["name"])
        if new is not None and now is not None:
            self._objects.setdefault(now, {})[new["metadata"]["name"]] = new
            self._changed(*now)

    def _remove(self, place: Place, name: str) -> None:
        objects = self._objects.get(place, {})
        objects.pop(name, None)
        if not objects:
            self._objects.pop(place, None)
        self._changed(*place)


async def may_read_slices(client: Client) -> bool:
    """Whether this process's role lets it list and watch them, and the server has them."""
    params = {"labelSelector": _SELECTOR, "limit": "1"}
    try:
        page = await client.request("GET", ENDPOINT_SLICES.path(), params=params)
        await _watch(client, str(page["metadata"]["resourceVersion"]))
    except KubeError as error:
        if error.status not in (401, 403, 404):
            raise
        log.info("EndpointSlices can't be read (%s): Endpoints are", error)
        return False
    return True


async def _watch(client: Client, resource_version: str) -> None:
    """Returns when the server has taken a watch of slices, raises when it refuses."""
    taken = asyncio.Event()
    watch = client.watch(
        ENDPOINT_SLICES, labels=_SELECTOR, resource_version=resource_version, on_open=taken.set
    )
    async with aclosing(watch):
        tasks = asyncio.ensure_future(anext(watch, None)), asyncio.ensure_future(taken.wait())
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            done.pop().result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _place(obj: dict[str, Any] | None) -> Place | None:
    if obj is None:
        return None
    metadata = obj["metadata"]
    labels = metadata.get("labels") or {}
    revision = labels.get(REVISION_LABEL)
    if not revision:
        return None
    return RevisionKey(f"{metadata['namespace']}/{revision}"), labels.get(SERVICE_TYPE) == PUBLIC


def _kept(obj: dict[str, Any]) -> dict[str, Any]:
    metadata = obj["metadata"]
    labels = metadata.get("labels") or {}
    kept = {
        field: metadata[field]
        for field in ("namespace", "name", "uid", "resourceVersion")
        if field in metadata
    }
    fields = ("subsets", "addressType", "endpoints", "ports")
    return {
        "metadata": {**kept, "labels": {name: labels[name] for name in _LABELS if name in labels}},
        **{field: obj[field] for field in fields if field in obj},
    }
