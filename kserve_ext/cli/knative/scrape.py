"""Metrics of pods of ours, by way of the API server's proxy: what is nowhere in an object."""

from __future__ import annotations

from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from kserve_ext.kube.client import Client, KubeError
from kserve_ext.kube.kinds import PODS

PORT: Final = 9090
#: Name, labels, value.
Samples = list[tuple[str, dict[str, str], float]]


async def scraped(client: Client, namespace: str, labels: str) -> Samples | str:
    """Of all such pods that answer; or why nobody is asked."""
    found: Samples = []
    why = ""
    try:
        listed = await client.list(PODS, namespace, labels=labels)
    except KubeError as error:
        return f"metrics of {labels}: {error}"
    for pod in listed.items:
        path = PODS.path(namespace, f"{pod['metadata']['name']}:{PORT}", "proxy/metrics")
        try:
            text = (await client.session.ask("GET", path, {}, None, "")).decode()
        except KubeError as error:
            why = f"metrics of pod {pod['metadata']['name']} (get pods/proxy): {error}"
            continue
        for family in text_string_to_metric_families(text):
            found += [(s.name, dict(s.labels), float(s.value)) for s in family.samples]
    return found if found or not why else why
