"""Every annotation with the prefix kserve-galaxy.io/: the one table that types, validation and docs come from.

An unknown key with our prefix is an error that names the nearest known key, because a mistyped annotation that
silently does nothing is the costliest kind. Keys of others are not ours to judge. docs/annotations.md is
generated from the table (`python -m kserve_ext.api.annotations`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from kserve_ext.api import quantities, readers
from kserve_ext.api.problems import Findings, nearest
from kserve_ext.core.facts import Affinity, Placement, Preload, Role

PREFIX: Final = "kserve-galaxy.io/"
#: Where services run: what an annotation does differs.
Cluster = Literal["embedded", "Knative"]

_whole: Final = readers.integer(0).read
#: Standby pods of a pool at most. Each takes a place on a node, and what it requests, whether a request ever comes.
_pool: Final = readers.integer(0, 1000)
_positive: Final = readers.number(0, 1e9, above=True).read


def _seconds(text: str) -> float:
    value: float = _positive(text.removesuffix("s"))
    return value


def _bytes(text: str) -> int:
    value = quantities.whole(text)
    if value < 0:
        raise ValueError(text)
    return value


def _flag(text: str) -> bool:
    return {"true": True, "false": False}[text]


def _name(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", text):
        raise ValueError(text)
    return text


def _package(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", text):
        raise ValueError(text)
    return text


#: Engines that may sleep in one pod.
_MOST_MODELS: Final = 16


def _models(text: str) -> tuple[str, ...]:
    """Of standby-models: each as it is written, NAME=PLACE or PLACE."""
    found = tuple(part.strip() for part in text.split(","))
    for entry in found:
        if not re.fullmatch(r"([^\s,=/:][^\s,=]*=)?(pvc://[a-z0-9][-a-z0-9.]*(/[^\s,=]+)?|/[^\s,=]+)", entry):
            raise ValueError(entry)
    called = [name if equals else place for name, equals, place in (e.rpartition("=") for e in found)]
    if len(set(called)) != len(called) or len(called) > _MOST_MODELS:
        raise ValueError(text)
    return found


def _header(text: str) -> str:
    if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}", text):
        raise ValueError(text)
    return text.lower()


def _ratio(text: str) -> tuple[int, int, int, int]:
    found = re.fullmatch(r"([1-9]\d{0,3}):([1-9]\d{0,3})\.\.([1-9]\d{0,3}):([1-9]\d{0,3})", text)
    if not found:
        raise ValueError(text)
    low_p, low_d, high_p, high_d = (int(part) for part in found.groups())
    if low_p * high_d > high_p * low_d:
        raise ValueError("the lower bound is above the upper one")
    return low_p, low_d, high_p, high_d


@dataclass(frozen=True, slots=True)
class Annotation:
    """One row. `read` turns the text into its value; a row with `choices` accepts just these."""

    name: str
    kind: str  # what a person may write, for messages and docs
    default: str  # as shown to people
    read_by: str
    meaning: str
    read: Callable[[str], object] = str
    choices: tuple[str, ...] = ()
    #: Elsewhere it is checked, and reported as having no effect.
    acted_on: tuple[Cluster, ...] = ("embedded",)
    #: Whether an instance reads it at its start, so that it can't change while the revision lives.
    fixed: bool = False
    #: Whether our runtimes for KServe have a template that gives it to the instance (manifests/components/kserve).
    by_template: bool = False

    @property
    def key(self) -> str:
        return PREFIX + self.name

    @property
    def allowed(self) -> str:
        return ", ".join(self.choices) or self.kind


TABLE: Final = (
    Annotation(
        "engine",
        "",
        "galaxy",
        "webhook, shim",
        "`galaxy` opts the service in. In the embedded cluster every service is.",
        choices=("galaxy",),
        acted_on=("embedded", "Knative"),
    ),
    Annotation(
        "role",
        "",
        "unified",
        "runtime, Schedule",
        "What the instances of this service compute: everything, or one half of a group.",
        choices=("unified", "prefill", "decode"),
        acted_on=("embedded", "Knative"),
        fixed=True,
    ),
    Annotation(
        "pd-group",
        "a name of lower-case letters, digits and dashes",
        "none",
        "Dispatch, Schedule",
        "Joins the prefill service and the decode service that serve together. Clients talk to the decode service.",
        _name,
        acted_on=("embedded", "Knative"),
        fixed=True,
        by_template=True,
    ),
    Annotation(
        "pd",
        "",
        "auto",
        "decode's front",
        "When a prompt is sent to a prefill instance: when it pays, always, never.",
        choices=("auto", "always", "never"),
        acted_on=("embedded", "Knative"),
        fixed=True,
        by_template=True,
    ),
    Annotation(
        "pd-threshold-tokens",
        "an integer >= 0",
        "learned",
        "decode's front",
        "Prompts with fewer uncached tokens than this are prefilled where they are decoded.",
        _whole,
        acted_on=("embedded", "Knative"),
        fixed=True,
        by_template=True,
    ),
    Annotation(
        "pd-ratio",
        "bounds of prefill:decode such as 1:4..2:1",
        "free",
        "home",
        "How many prefill instances there may be for how many decode instances.",
        _ratio,
    ),
    Annotation(
        "kv-transfer",
        "",
        "auto",
        "control engine",
        "By which method the KV cache goes from prefill to decode. `rdma`: into the cache or through rings; `ipc`: "
        "within one host, from GPU to GPU or through shared memory; `none` recomputes.",
        choices=("auto", "rdma", "ipc", "tcp", "nixl", "none"),
        acted_on=("embedded", "Knative"),
        fixed=True,
        by_template=True,
    ),
    Annotation(
        "kv-transfer-required",
        "",
        "false",
        "control engine",
        "`true`: a request whose KV cannot be transferred that way is refused, not recomputed.",
        _flag,
        choices=("true", "false"),
        acted_on=("embedded", "Knative"),
        fixed=True,
        by_template=True,
    ),
    Annotation(
        "hold-seconds",
        "a number of seconds > 0",
        "the revision's timeout",
        "Dispatch",
        "How long a request may be held while there is no free slot.",
        _seconds,
    ),
    Annotation(
        "hold-requests",
        "an integer >= 0",
        "10000",
        "Dispatch",
        "How many requests one shard may hold of this service; more are answered 429.",
        _whole,
    ),
    Annotation(
        "hold-bytes",
        "a quantity of bytes such as 64Mi",
        "64Mi",
        "Dispatch",
        "How much memory held requests of this service may take in one shard.",
        _bytes,
    ),
    Annotation(
        "continuation",
        "",
        "on",
        "Dispatch",
        "`on`: a stream of tokens whose instance dies goes on at another instance; `off`: it ends with an error.",
        {"on": True, "off": False}.__getitem__,
        choices=("on", "off"),
    ),
    Annotation(
        "standby",
        _pool.allowed,
        "0",
        "shim",
        "How many standby pods are kept for services of this shape: alike in namespace, image, resources, service "
        "account, volumes and environment. The largest of such services counts ([standby.md](standby.md)).",
        _pool.read,
        acted_on=("Knative",),
    ),
    Annotation(
        "standby-level",
        "",
        "S0",
        "shim",
        "What a standby pod has done already: `S0` the runtime's imports, `S1` an engine of this shape made as well, "
        "`S2` the engines of `standby-models` loaded and asleep, of which one wakes.",
        choices=("S0", "S1", "S2"),
        acted_on=("Knative",),
    ),
    Annotation(
        "standby-models",
        f"up to {_MOST_MODELS} models, with commas: NAME=pvc://CLAIM/PATH, or NAME=/PATH in the pod, where NAME is "
        "the --served-model-name; without NAME= where there is none",
        "none",
        "shim",
        "Of `standby-level: S2`: whose engines sleep in a standby pod, as far as its memory goes. Services that "
        "share its pods have the same list ([standby.md](standby.md#sleeping-engines)).",
        _models,
        acted_on=("Knative",),
    ),
    Annotation(
        "zygote",
        "the name of a Python package such as runtimes.vllm_pd",
        "what its command says",
        "shim",
        "Of a runtime: the package that its image runs, so that a standby pod can have imported it.",
        _package,
        acted_on=("Knative",),
        fixed=True,
    ),
    Annotation(
        "preload",
        "",
        "none",
        "preloader, Schedule",
        "`node`: nodes bring the model near as soon as the service is applied; `fluid`: Fluid does.",
        choices=("none", "node", "fluid"),
    ),
    Annotation(
        "affinity",
        "",
        "none",
        "Dispatch",
        "Requests of one session (header `x-session-id`, or the body's `user`), or whose prompts begin alike, go to "
        "the same instance until it is much busier than others (docs/routing.md).",
        choices=("none", "session", "prefix"),
    ),
    Annotation(
        "placement",
        "",
        "auto",
        "Schedule",
        "Whether instances go onto nodes that are in use already (`pack`) or onto those with most room (`spread`). "
        "`auto` packs what needs GPUs and spreads the rest.",
        choices=("auto", "pack", "spread"),
    ),
    Annotation(
        "tenant-header",
        "the name of a request header",
        "none",
        "Dispatch",
        "Header that names the tenant; what is held is shared fairly between tenants.",
        _header,
        acted_on=(),
    ),
)
BY_NAME: Final = {row.name: row for row in TABLE}
_AS_TEXT: Final[Mapping[Cluster, str]] = {
    "embedded": "the embedded cluster",
    "Knative": "a Knative cluster so far",
}


class Settings(NamedTuple):
    """The annotations of one service, as values; None = not given."""

    role: Role = "unified"
    pd_group: str = ""
    pd: str = "auto"
    pd_threshold_tokens: int | None = None
    pd_ratio: tuple[int, int, int, int] | None = None
    kv_transfer: str = "auto"
    kv_transfer_required: bool = False
    hold_seconds: float | None = None
    hold_requests: int = 10_000
    hold_bytes: int = 64 * 1024 * 1024
    standby: int = 0
    preload: Preload = "none"
    affinity: Affinity = "none"
    tenant_header: str = ""
    continuation: bool = True
    placement: Placement = "auto"
    standby_level: Literal["S0", "S1", "S2"] = "S0"
    standby_models: tuple[str, ...] = ()
    zygote: str = ""


def read(
    annotations: Mapping[str, str],
    findings: Findings,
    path: str = "metadata.annotations",
    cluster: Cluster = "embedded",
) -> Settings:
    """Settings of what could be read; everything else is in the findings."""
    values: dict[str, Any] = {}
    for key, text in annotations.items():
        if not key.startswith(PREFIX):
            continue
        name = key.removeprefix(PREFIX)
        row = BY_NAME.get(name)
        where = f"{path}[{key}]"
        if row is None:
            close = nearest(name, BY_NAME)
            known = f"use one of {', '.join(BY_NAME)}, each after {PREFIX}"
            findings.problem(
                where, "unknown annotation", f"did you mean {PREFIX}{close}?" if close else known
            )
            continue
        if row.choices and text not in row.choices:
            findings.problem(where, "not an allowed value", f"use one of {row.allowed}", text)
            continue
        try:
            values[row.name.replace("-", "_")] = row.read(text)
        except (ValueError, KeyError, OverflowError):
            findings.problem(where, "not an allowed value", f"use {row.allowed}", text)
            continue
        if cluster not in row.acted_on:
            findings.warn(f"{where}: has no effect in {_AS_TEXT[cluster]}")
    values.pop("engine", None)
    return Settings(**values)


def in_metadata(name: str) -> str:
    return f"metadata.annotations[{PREFIX}{name}]"


def check_together(
    settings: Settings,
    findings: Findings,
    field: Callable[[str], str] = in_metadata,
    *,
    complete: bool = True,
) -> None:
    """Combinations that make no sense, of annotations merged from wherever they may come.

    `field` says where a row's annotation stands. not complete: what is missing may come from the runtime, so that it
    is warned of.
    """
    lacks: Callable[[str, str, str], None] = (
        findings.problem
        if complete
        else lambda where, what, remedy: findings.warn(f"{where}: {what}; {remedy}, if its runtime doesn't")
    )
    if settings.role != "unified" and not settings.pd_group:
        lacks(
            field("role"),
            f"role {settings.role} serves only in a group",
            f"add {PREFIX}pd-group: NAME here and on the service with the other role",
        )
    if settings.role == "unified" and settings.pd_group:
        lacks(
            field("pd-group"),
            "a unified service is in no group",
            f"add {PREFIX}role: prefill or decode",
        )
    if settings.standby_level == "S2" and not settings.standby_models:
        lacks(
            field("standby-level"),
            "level S2 keeps engines asleep, and no model is named",
            f"add {PREFIX}standby-models: NAME=pvc://CLAIM/PATH, or set the level to S1 or S0",
        )
    if settings.standby_models and settings.standby_level != "S2":
        lacks(
            field("standby-models"),
            f"models sleep in standby pods of level S2, and the level is {settings.standby_level}",
            f"add {PREFIX}standby-level: S2",
        )
    if settings.kv_transfer_required and settings.kv_transfer == "none":
        findings.problem(
            field("kv-transfer-required"),
            f"{PREFIX}kv-transfer is none, so that every request would be refused",
            f"set {PREFIX}kv-transfer to auto, rdma, ipc, tcp or nixl",
        )


def markdown() -> str:
    """docs/annotations.md."""
    lines = [
        "# Annotations",
        "",
        "Generated from `kserve_ext/api/annotations.py` by `python -m kserve_ext.api.annotations`; a test",
        "keeps it current.",
        "",
        f"All keys have the prefix `{PREFIX}`. They apply to an InferenceService (`metadata.annotations` or",
        "`spec.predictor.annotations`), to the `spec.annotations` of a ServingRuntime or ClusterServingRuntime, and",
        "to the template of a Knative Service (`spec.template.metadata.annotations`); the later of runtime, service,",
        "predictor wins. An unknown key with this prefix is an error. In a Knative cluster the webhook says so when",
        "the object is applied ([install.md](install.md#webhook)). What is *fixed* can't change on a revision that",
        "is there: a change in the template makes another revision. In a Knative cluster what instances read reaches",
        "them by our runtimes for KServe ([kserve.md](kserve.md)).",
        "",
        "| key | values | default | read by | acted on in | meaning |",
        "|---|---|---|---|---|---|",
    ]
    for row in TABLE:
        values = ", ".join(f"`{choice}`" for choice in row.choices) or row.kind
        default = f"`{row.default}`" if row.default in row.choices else row.default
        clusters = ", ".join(row.acted_on) or "neither yet"
        key = f"`{row.name}`" + (" (fixed)" if row.fixed else "")
        lines.append(f"| {key} | {values} | {default} | {row.read_by} | {clusters} | {row.meaning} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    from pathlib import Path

    target = Path(__file__).resolve().parents[2] / "docs" / "annotations.md"
    target.write_text(markdown())
    print(f"wrote {target}")
