"""An InferenceService and its runtime become a Revision: the fact that the functions work with.

Matches KServe's composition (buildPodSpec, MergePodSpec, ReplacePlaceholders): annotations of runtime < service <
predictor; args of the runtime, then of the service; a command replaces; environment merges by name; placeholders
in the serving container only. What Kubernetes would hand to a container engine must come down to one process here:
our own image is our built-in server, any other container has to say its command. Never touches a file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from kserve_ext.api import annotations as table
from kserve_ext.api import quantities
from kserve_ext.api.knative import autoscaling
from kserve_ext.api.knative.autoscaler_config import AutoscalerConfig
from kserve_ext.api.kserve import priority_class, storage, templates
from kserve_ext.api.kserve.inference_service import InferenceService
from kserve_ext.api.kserve.priority_class import PriorityClass
from kserve_ext.api.kserve.resources import Container, Meta
from kserve_ext.api.kserve.serving_runtime import ServingRuntime
from kserve_ext.api.problems import Findings
from kserve_ext.core.facts import Command, Hold, Model, Resources, Revision
from kserve_ext.core.ids import RevisionKey

IMAGE: Final = "kserve-galaxy/vllm-pd"
BUILT_IN: Final = ("python", "-m", "runtimes.vllm_pd")
ZYGOTE: Final = "runtimes.vllm_pd"
DEFAULT_TIMEOUT_S: Final = 300.0
#: What a container without requests is taken to need, so that nothing is free of charge on a node.
DEFAULT_CPU_MILLI: Final = 100
DEFAULT_MEMORY_MIB: Final = 128
GPU: Final = "nvidia.com/gpu"
GPU_MEMORY: Final = "kserve-galaxy.io/gpu-memory"
_BOUNDS: Final = frozenset({"autoscaling.knative.dev/min-scale", "autoscaling.knative.dev/max-scale"})
_NOT_PROPAGATED: Final = _BOUNDS | frozenset(
    {
        "kubectl.kubernetes.io/last-applied-configuration",
        "internal.serving.kserve.io/storage-initializer-sourceuri",
        "modelFormat",
    }
)
_OUR_IMAGE: Final = re.compile(rf"(.*/)?{re.escape(IMAGE)}([:@].*)?")
_VARIABLE: Final = re.compile(r"\$\$|\$\(([A-Za-z_][-A-Za-z0-9_.]*)\)")


def revision_name(service: str, generation: int) -> str:
    """As Knative names the revisions of the Knative Service {isvc}-predictor."""
    return f"{service}-predictor-{generation:05d}"


def merged_annotations(service: InferenceService, runtime: ServingRuntime | None) -> dict[str, str]:
    """What reaches the revision: runtime < service < predictor, less the keys that KServe drops."""
    merged = {
        **((runtime.annotations if runtime else None) or {}),
        **service.meta.annotations,
        **(service.annotations or {}),
    }
    return {key: value for key, value in merged.items() if key not in _NOT_PROPAGATED}


def _ignored_bounds(service: InferenceService) -> dict[str, str]:
    """Of Knative's, which KServe drops: so that whoever wrote them is told."""
    written = {**service.meta.annotations, **(service.annotations or {})}
    return {key: value for key, value in written.items() if key in _BOUNDS}


def render(
    service: InferenceService,
    runtime: ServingRuntime | None,
    claims: storage.Claims,
    config: AutoscalerConfig,
    findings: Findings,
    *,
    generation: int = 0,
    created_at: float = 0.0,
    priorities: Mapping[str, PriorityClass] = MappingProxyType({}),
) -> Revision | None:
    """The revision, or None when there are problems."""
    merged = merged_annotations(service, runtime)
    settings = table.read(merged, findings)
    table.check_together(settings, findings)
    scale = autoscaling.read({**merged, **_ignored_bounds(service)}, findings, config, service)
    path = ""
    if service.storage_uri:
        path = storage.local_path(service.storage_uri, claims, service.uri_field, findings)
    elif service.model is not None:
        findings.problem(
            service.uri_field, "is missing", "say where the model is: pvc://CLAIM/path or file:///folder"
        )
    merged_container = _merge(runtime.container if runtime else None, service.container)
    env = _environment(merged_container, service, settings)
    command = _command(merged_container, env, service, runtime, findings)
    needs = _needs(merged_container, service.field, findings)
    importance = priority_class.of_service(
        service.priority_class, "spec.predictor.priorityClassName", priorities, findings
    )
    selector = {**((runtime.node_selector if runtime else None) or {}), **(service.node_selector or {})}
    if not findings or command is None:
        return None
    timeout_s = _timeout_s(service)
    namespace = service.meta.namespace
    return Revision(
        key=RevisionKey(f"{namespace}/{revision_name(service.meta.name, generation)}"),
        service=service.meta.key,
        generation=generation,
        command=command,
        model=Model(service.storage_uri, path, service.mount, settings.preload),
        needs=needs,
        scale=scale,
        hold=Hold(
            seconds=timeout_s if settings.hold_seconds is None else settings.hold_seconds,
            requests=settings.hold_requests,
            bytes=settings.hold_bytes,
        ),
        role=settings.role,
        group=f"{namespace}/{settings.pd_group}" if settings.pd_group else "",
        concurrency=service.concurrency,
        timeout_s=timeout_s,
        pd_ratio=settings.pd_ratio,
        affinity=settings.affinity,
        tenant_header=settings.tenant_header,
        created_at=created_at,
        continuation=settings.continuation,
        node_selector=tuple(sorted(selector.items())),
        placement=settings.placement,
        priority=importance.value,
        preempts=importance.preempts and bool(importance.meta.name),
    )


def _timeout_s(service: InferenceService) -> float:
    return float(service.timeout_s or DEFAULT_TIMEOUT_S)


def _merge(runtime: Container | None, own: Container) -> Container:
    """Strategic merge of the two serving containers; args are concatenated."""
    if runtime is None:
        return own
    env = dict(runtime.env)
    env.update(own.env)
    return Container(
        name=runtime.name,
        image=own.image or runtime.image,
        command=own.command if own.command is not None else runtime.command,
        args=runtime.args + own.args,
        env=tuple(env.items()),
        requests={**(runtime.requests or {}), **(own.requests or {})},
        limits={**(runtime.limits or {}), **(own.limits or {})},
        ready_path=own.ready_path if own.ready_path is not None else runtime.ready_path,
        start_timeout_s=own.start_timeout_s if own.start_timeout_s is not None else runtime.start_timeout_s,
    )


def _environment(container: Container, service: InferenceService, settings: table.Settings) -> dict[str, str]:
    """The container's own variables, and what the runtime has to know of the annotations."""
    env = {name: value for name, value in container.env if name != "STORAGE_URI"}
    env["INFERENCE_SERVICE_NAME"] = service.meta.name
    env["GALAXY_PD"] = settings.pd
    env["GALAXY_KV_TRANSFER"] = settings.kv_transfer
    env["GALAXY_KV_TRANSFER_REQUIRED"] = "true" if settings.kv_transfer_required else "false"
    if settings.pd_threshold_tokens is not None:
        env["GALAXY_PD_THRESHOLD_TOKENS"] = str(settings.pd_threshold_tokens)
    if settings.affinity != "none":
        env["GALAXY_AFFINITY"] = settings.affinity
    if settings.tenant_header:
        env["GALAXY_TENANT_HEADER"] = settings.tenant_header
    return env


def _command(
    container: Container,
    env: Mapping[str, str],
    service: InferenceService,
    runtime: ServingRuntime | None,
    findings: Findings,
) -> Command | None:
    where = service.field
    ours = (
        container.image.rpartition("/")[2].partition(":")[0] == IMAGE.rpartition("/")[2]
        and IMAGE in container.image
    )
    start = container.command or (BUILT_IN if ours else None)
    if start is None:
        source = f"{runtime.title} gives" if runtime else "there is"
        findings.problem(
            f"{where}.command",
            f"{source} no command, and the embedded cluster has no container engine to run image "
            f"{container.image or '(none)'}",
            f"add command, or use a runtime with image {IMAGE} (galaxy-vllm)",
        )
        return None
    try:
        argv = tuple(_expand(text, service.meta, env) for text in (*start, *container.args))
        # Kubernetes expands $(VAR) in env, too, from variables defined before.
        values: dict[str, str] = {}
        for name, value in env.items():
            values[name] = _expand(value, service.meta, values)
    except templates.TemplateError as error:
        findings.problem(
            f"{where}.args", str(error), "correct the placeholder in the service or in its runtime"
        )
        return None
    zygote = ZYGOTE if tuple(argv[:3]) == BUILT_IN else ""
    return Command(
        argv=argv,
        env=tuple(values.items()),
        runtime=runtime.meta.name if runtime else "",
        zygote=zygote,
        # As Knative: what may run for the timeout gets as long to end.
        drain_s=float(service.drain_s if service.drain_s is not None else _timeout_s(service)),
        start_timeout_s=container.start_timeout_s or 300.0,
        ready_path=container.ready_path or "",
    )


def _expand(text: str, meta: Meta, env: Mapping[str, str]) -> str:
    """Placeholders, then $(VAR) as Kubernetes does it; $(PORT) is left for the node agent, which knows the port."""

    def variable(found: re.Match[str]) -> str:
        if found[1] is None:
            return "$"
        return env.get(found[1], found[0])

    return _VARIABLE.sub(variable, templates.expand(text, meta))


def _needs(container: Container, where: str, findings: Findings) -> Resources:
    """Requests, or limits where no request is given, as Kubernetes defaults them."""
    amounts = {**(container.limits or {}), **(container.requests or {})}
    limits = container.limits or {}
    path = f"{where}.resources.requests"
    cpu, memory, gpus, gpu_memory, rdma = DEFAULT_CPU_MILLI, DEFAULT_MEMORY_MIB, 0, 0, 0
    for name, value in amounts.items():
        own = container.requests or {}
        if name in own and name in limits and quantities.parse(own[name]) > quantities.parse(limits[name]):
            findings.problem(
                f"{path}[{name}]",
                f"is above the limit {limits[name]}",
                "lower it, or raise the limit",
                own[name],
            )
        if name == "cpu":
            cpu = quantities.milli(value)
        elif name == "memory":
            memory = quantities.mebibytes(value)
        elif name == GPU:
            gpus = quantities.whole(value)
        elif name == GPU_MEMORY:
            gpu_memory = quantities.mebibytes(value)
        elif name.startswith("rdma/"):
            rdma += quantities.whole(value)
        elif name in ("ephemeral-storage",) or name.startswith("hugepages-"):
            findings.warn(f"{path}[{name}]: has no effect in the embedded cluster")
        else:
            findings.problem(
                f"{path}[{name}]",
                "no node of the embedded cluster has such a resource",
                f"use cpu, memory, {GPU}, {GPU_MEMORY} or rdma/NAME",
                value,
            )
    return Resources(cpu, memory, gpus, gpu_memory, rdma)
