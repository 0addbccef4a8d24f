"""galaxy doctor: what is wrong with this machine or the cluster, and what to do about it.

Each check gives one line: ok, a warning (works, but worse) or a failure, with the remedy. Changes nothing.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import resource
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any, Final

import click

from kserve_ext.api.kserve import conditions
from kserve_ext.api.kserve.resources import KINDS
from kserve_ext.cli.client import Client, path_of
from kserve_ext.cli.embedded.folder import Folder
from kserve_ext.cli.embedded.parts import parts
from kserve_ext.cli.failure import Failure
from kserve_ext.cli.findings import Finding, Level, show
from kserve_ext.cli.knative import checks
from kserve_ext.cli.knative.session import cluster_options
from kserve_ext.cli.output import data_option, dump, format_option
from kserve_ext.cli.rdma.command import command as rdma
from kserve_ext.cli.verbs.up import check_store

Document = dict[str, Any]
LEAST_FILES: Final = 4096
LEAST_SHM_MIB: Final = 256
LEAST_DISK_MIB: Final = 1024
#: How people write the address of the embedded cluster.
KUBERNETES: Final = "; with --context NAME a Kubernetes cluster is looked at"
HERE: Final = ("127.0.0.1", "localhost")


@click.group(invoke_without_command=True)
@data_option
@cluster_options
@format_option("json", "yaml")
@click.pass_context
def command(asked: click.Context, folder: Folder, context: str, namespace: str, output: str | None) -> None:
    """Check this machine and the cluster; the exit code is 1 when something has failed.

    With --context: the Kubernetes cluster instead, with standby pods, node agents and the webhook.
    """
    if asked.invoked_subcommand is not None:
        return
    found = [*checks.cluster(context, namespace)] if context else [*machine(folder), *cluster(folder)]
    if output:
        dump({"checks": [f._asdict() for f in found]}, output)
    else:
        show(found)
    failed = sum(f.level == "failed" for f in found)
    if failed:
        raise Failure(f"{failed} of {len(found)} checks failed", "", "follow the remedies above")


command.add_command(rdma)


def machine(folder: Folder) -> Iterator[Finding]:
    """What is needed whether a cluster runs or not."""
    version = platform.python_version_tuple()
    good = (3, 11) <= (int(version[0]), int(version[1])) < (3, 14)
    remedy = "" if good else "use Python 3.11 to 3.13"
    yield Finding("ok" if good else "failed", f"Python {platform.python_version()}", remedy)
    if importlib.util.find_spec("vllm") is not None:
        yield Finding("ok", "vLLM is installed")
    else:
        yield Finding("failed", "vLLM is not installed: galaxy-vllm services can't start", "make setup")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= LEAST_FILES:
        yield Finding("ok", f"open files: {soft}")
    else:
        yield Finding(
            "warning",
            f"open files: {soft}, about {soft // 3} requests at once",
            f"ulimit -n {min(hard, 65536)}",
        )
    yield _room("/dev/shm", LEAST_SHM_MIB, "KV blocks between instances of one machine", "mount a larger one")
    place = folder.root if folder.root.exists() else folder.root.parent
    while not place.exists():
        place = place.parent
    yield _room(str(place), LEAST_DISK_MIB, "data folder", "free some space, or use --data")
    cores = len(os.sched_getaffinity(0))
    level: Level = "ok" if cores >= 2 else "warning"
    yield Finding(level, f"{cores} CPU cores", "" if cores >= 2 else "two or more start instances faster")
    yield from _proxy()


def _proxy() -> Iterator[Finding]:
    """Our own clients ignore it; a person's curl or openai client would ask it for an address of this machine."""
    known = urllib.request.getproxies_environment()
    proxy = known.get("http") or known.get("all")
    through = [host for host in HERE if not urllib.request.proxy_bypass(host, known)]
    if proxy and through:
        value = ",".join([*filter(None, [known.get("no")]), *through])
        yield Finding(
            "warning",
            f"a proxy is set for http, and no exception for {' and '.join(through)}: "
            "curl and openai clients would send this cluster's requests to it",
            f"export no_proxy={value} NO_PROXY={value}, or curl --noproxy '*'",
        )


def _room(place: str, least_mib: int, what: str, do: str) -> Finding:
    try:
        free = shutil.disk_usage(place).free >> 20
    except OSError as error:
        return Finding("warning", f"{place} ({what}): {error.strerror}", do)
    good = free >= least_mib
    return Finding("ok" if good else "warning", f"{place} ({what}): {free} MiB free", "" if good else do)


def cluster(folder: Folder) -> Iterator[Finding]:
    """What runs in the data folder."""
    facts = folder.cluster()
    if not facts:
        yield Finding("ok", f"no cluster in {folder.root}{KUBERNETES}")
        return
    running = {part.id for part in folder.living()}
    restart = "wait a second for its restart"
    if not folder.supervisor():
        if not running:
            yield Finding("ok", f"the cluster in {folder.root} is down{KUBERNETES}")
            return
        restart = f"galaxy up --data {folder.root}"
        yield Finding("failed", f"{len(running)} parts run without a supervisor", restart)
    for part in parts(facts, folder.root):
        if part.id not in running:
            log = folder.log / f"{part.id}.log"
            yield Finding("failed", f"{part.id} does not run", f"{restart}; see {log}")
    yield from _store(folder, str(facts.get("store") or ""))
    yield from _answers(folder, running)


def _store(folder: Folder, url: str) -> Iterator[Finding]:
    if not url:
        return
    try:
        yield Finding("ok", f"state store {check_store(folder, url)}")
    except Failure as failure:
        yield Finding("failed", f"{failure.message}: {failure.why}", failure.do)


def _answers(folder: Folder, running: set[str]) -> Iterator[Finding]:
    try:
        client = Client(folder)
        facts = client.call("GET", "/api/status").body
        services = client.call("GET", path_of(KINDS[0])).body["items"]
    except Failure as failure:
        yield Finding("failed", f"{failure.message}: {failure.why}", failure.do)
        return
    checks: tuple[Callable[[Document, set[str]], Iterator[Finding]], ...] = (_controller, _members, _nodes)
    for check in checks:
        yield from check(facts, running)
    for service in services:
        name = f"{service['metadata']['namespace']}/{service['metadata']['name']}"
        status = service.get("status") or {}
        state, _ = conditions.ready(status)
        message = conditions.why(status)
        levels: dict[str, Level] = {"True": "ok", "Unknown": "warning"}
        level = levels.get(state, "failed")
        if state == "True" and message:
            level = "warning"
        do = "" if level == "ok" else f"galaxy describe isvc {service['metadata']['name']}"
        yield Finding(level, f"service {name}: ready {state}{', ' + message if message else ''}", do)


def _controller(facts: Document, running: set[str]) -> Iterator[Finding]:
    said = facts.get("controller") or {}
    silent = said.get("standby") or said.get("error")
    if silent:
        yield Finding(
            "failed",
            f"{silent}; requests go on by the last view, no function is started or replaced in it",
            "wait for five seconds, then correct what else has failed here; galaxy logs controller-0",
        )


def _members(facts: Document, running: set[str]) -> Iterator[Finding]:
    members = {str(m["id"]) for m in facts["members"]}
    outside = sorted(running - members - {part for part in running if part.startswith("controller-")})
    if outside:
        yield Finding("failed", f"not in the view: {', '.join(outside)}", "see their logs: galaxy logs NAME")
    else:
        yield Finding("ok", f"view: epoch {facts['epoch']}, {len(members)} members")
    for function in facts["functions"]:
        if function.get("error"):
            yield Finding(
                "failed",
                f"{function['id']} does not answer: {function['error']}",
                "galaxy logs " + function["id"],
            )


def _nodes(facts: Document, running: set[str]) -> Iterator[Finding]:
    owned = {
        str(n.get("node") if isinstance(n, dict) else n)
        for f in facts["functions"]
        if f["kind"] == "schedule"
        for n in f.get("nodes") or ()
    }
    for node in facts["nodes"]:
        name = str(node["node"])
        if name not in owned:
            yield Finding("failed", f"{name} is in no partition", "wait two seconds; see galaxy logs " + name)
        zygotes = sum((node.get("slots") or {}).values())
        if zygotes:
            yield Finding("ok", f"{name}: {zygotes} zygote(s) ready")
        else:
            yield Finding(
                "warning",
                f"{name}: no zygote is ready, a first start takes longer",
                "wait; galaxy logs " + name,
            )
