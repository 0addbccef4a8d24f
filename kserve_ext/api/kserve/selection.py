"""Which (Cluster)ServingRuntime serves an InferenceService, and why each of the others does not.

KServe's rules: an explicit runtime (namespaced before cluster-wide) must be enabled and list the format and the
protocol; otherwise candidates are enabled runtimes with autoSelect for the format, namespaced before cluster-wide,
then highest priority, lowest protocol, newest, name. Matches pkg/controller/.../utils and
servingruntime_types.go (IsModelFormatSupported...) of KServe; decides nothing about containers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from kserve_ext.api.kserve.inference_service import InferenceService, ModelSpec
from kserve_ext.api.kserve.serving_runtime import Format, ServingRuntime
from kserve_ext.api.problems import nearest

#: In the order in which KServe prefers them.
PROTOCOL_ORDER: Final = ("v1", "v2", "grpc-v1", "grpc-v2")


class NotChosen(NamedTuple):
    runtime: str
    reason: str


class Selection(NamedTuple):
    """`runtime` is None when nothing fits; then `reason` is one of KServe's failure reasons."""

    runtime: ServingRuntime | None
    protocol: str = ""
    reason: str = ""
    message: str = ""
    remedy: str = ""
    not_chosen: tuple[NotChosen, ...] = ()


def select(service: InferenceService, runtimes: Iterable[ServingRuntime]) -> Selection:
    """For a service with a model; one with a container of its own needs no runtime."""
    model = service.model
    if model is None:
        return Selection(None)
    visible = [r for r in runtimes if r.cluster or r.meta.namespace == service.meta.namespace]
    return _explicit(model, visible) if model.runtime else _automatic(model, visible)


def _explicit(model: ModelSpec, visible: Sequence[ServingRuntime]) -> Selection:
    named = sorted((r for r in visible if r.meta.name == model.runtime), key=lambda r: r.cluster)
    if not named:
        close = nearest(model.runtime, [r.meta.name for r in visible])
        remedy = f"did you mean {close}?" if close else f"there are {_names(visible)}"
        return Selection(None, "", "RuntimeNotRecognized", f"no runtime is named {model.runtime}", remedy)
    runtime = named[0]
    others = tuple(
        NotChosen(r.title, "the service names another runtime") for r in visible if r is not runtime
    )
    if runtime.disabled:
        remedy = "enable it (spec.disabled: false) or name another"
        return Selection(None, "", "RuntimeDisabled", f"{runtime.title} is disabled", remedy, others)
    why = _unfit(runtime, model, need_auto_select=False)
    if why:
        message = f"{runtime.title} does not fit: {why}"
        return Selection(None, "", "NoSupportingRuntime", message, "name another runtime, or none", others)
    return Selection(runtime, _protocol(runtime, model), not_chosen=others)


def _automatic(model: ModelSpec, visible: Sequence[ServingRuntime]) -> Selection:
    reasons: list[NotChosen] = []
    candidates: list[ServingRuntime] = []
    for runtime in visible:
        why = "it is disabled" if runtime.disabled else _unfit(runtime, model, need_auto_select=True)
        if why:
            reasons.append(NotChosen(runtime.title, why))
        else:
            candidates.append(runtime)
    if not candidates:
        known = sorted({f.name for r in visible if not r.disabled for f in r.formats})
        close = nearest(model.format, known)
        remedy = f"formats here are {', '.join(known) or '(none)'}"
        if close and close != model.format:
            remedy = f"did you mean {close}?"
        detail = "; ".join(f"{n.runtime}: {n.reason}" for n in reasons) or "there is no runtime"
        message = f"no runtime serves model format {_format(model)} ({detail})"
        return Selection(None, "", "NoSupportingRuntime", message, remedy, tuple(reasons))
    # Newest first among equals, then by name: sort by name, then stably by the rest.
    candidates.sort(key=lambda r: r.meta.name)
    candidates.sort(key=lambda r: r.meta.created_at, reverse=True)
    candidates.sort(key=lambda r: (r.cluster, -_priority(r, model), _rank(_lowest(r))))
    chosen = candidates[0]
    reasons.extend(NotChosen(r.title, _behind(r, chosen, model)) for r in candidates[1:])
    return Selection(chosen, _protocol(chosen, model), not_chosen=tuple(reasons))


def _unfit(runtime: ServingRuntime, model: ModelSpec, need_auto_select: bool) -> str:
    """Why the runtime cannot serve the model, "" if it can."""
    if runtime.multi_model:
        return "it is a multi-model runtime"
    if runtime.multi_node:
        return "it is a multi-node runtime (workerSpec), and the service is not"
    matching = _matching(runtime, model)
    if not matching:
        listed = (
            ", ".join(f"{f.name}:{f.version}" if f.version else f.name for f in runtime.formats) or "none"
        )
        return f"it does not list model format {_format(model)} (it lists {listed})"
    if need_auto_select and not any(f.auto_select for f in matching):
        return f"it lists {_format(model)} without autoSelect, so that it must be named in runtime"
    wanted = model.protocol or "v1"
    if runtime.protocols and wanted not in runtime.protocols and (model.protocol or need_auto_select):
        return f"it does not speak protocol {wanted} (it speaks {', '.join(runtime.protocols)})"
    return ""


def _matching(runtime: ServingRuntime, model: ModelSpec) -> list[Format]:
    """A version in the service must be listed just so; without one any version of the format does."""
    return [f for f in runtime.formats if f.name == model.format and model.version in ("", f.version)]


def _format(model: ModelSpec) -> str:
    return f"{model.format}:{model.version}" if model.version else model.format


def _priority(runtime: ServingRuntime, model: ModelSpec) -> int:
    return max(f.priority for f in _matching(runtime, model) if f.auto_select)


def _lowest(runtime: ServingRuntime) -> str:
    return min(runtime.protocols, key=_rank, default="")


def _rank(protocol: str) -> int:
    return PROTOCOL_ORDER.index(protocol) if protocol in PROTOCOL_ORDER else len(PROTOCOL_ORDER)


def _protocol(runtime: ServingRuntime, model: ModelSpec) -> str:
    return model.protocol or _lowest(runtime)


def _behind(runtime: ServingRuntime, chosen: ServingRuntime, model: ModelSpec) -> str:
    """Why a runtime that fits comes after the chosen one: the first rule that tells them apart."""
    if runtime.cluster != chosen.cluster:
        return f"{chosen.title} is in the namespace of the service"
    mine, best = _priority(runtime, model), _priority(chosen, model)
    if mine != best:
        return f"its priority {mine} is below {best} of {chosen.title}"
    if _rank(_lowest(runtime)) != _rank(_lowest(chosen)):
        return f"{chosen.title} speaks {_lowest(chosen) or 'any protocol'}, which comes first"
    if runtime.meta.created_at != chosen.meta.created_at:
        return f"{chosen.title} is newer"
    return f"{chosen.title} comes first by name"


def _names(runtimes: Iterable[ServingRuntime]) -> str:
    return ", ".join(sorted({r.meta.name for r in runtimes})) or "none"


def conflict(runtime: ServingRuntime, others: Iterable[ServingRuntime]) -> str:
    """Why KServe's webhook refuses the runtime beside the others, "" if it doesn't.

    Two enabled runtimes of one scope may not share a protocol and an auto-selected format with equal priority;
    runtimes without protocolVersions escape the check.
    """
    mine = {(f.name, f.version, f.priority) for f in runtime.formats if f.auto_select and f.priority}
    for other in others:
        if other.meta.key == runtime.meta.key or other.meta.namespace != runtime.meta.namespace:
            continue
        if other.disabled or runtime.disabled or not set(runtime.protocols) & set(other.protocols):
            continue
        theirs = {(f.name, f.version, f.priority) for f in other.formats if f.auto_select}
        for name, version, priority in sorted(mine & theirs):
            return f"{other.title} auto-selects {name}:{version} with priority {priority}, too"
    return ""
