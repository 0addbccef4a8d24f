"""One command's connection to a Kubernetes cluster, and what its errors mean to a person."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import click

from kserve_ext.cli.failure import Failure
from kserve_ext.cli.knative.parts import NAMESPACE
from kserve_ext.kube.access import Access, AccessError, from_environment, from_kubeconfig
from kserve_ext.kube.client import Client, KubeError, Unavailable

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
#: By what the API server answers.
_REMEDIES: Final = {
    401: "log in anew: it doesn't take the kubeconfig's credentials",
    403: "ask for that permission",
}


def cluster_options(function: F) -> F:
    """--context NAME and -n NAMESPACE."""
    namespace = click.option(
        "-n", "--namespace", default=NAMESPACE, show_default=True, help="Namespace of Knative Serving."
    )
    return context_option(namespace(function))


def context_option(function: F) -> F:
    return click.option(
        "--context", default="", help="Context of the kubeconfig.  [default: the current one]"
    )(function)


def run(context: str, work: Callable[[Client], Awaitable[T]]) -> T:
    """What `work` returns, done with a client of the cluster."""
    try:
        access = reach(context)
    except AccessError as error:
        raise Failure(
            "there is no way to a Kubernetes cluster", str(error), "set KUBECONFIG or --context"
        ) from None
    return asyncio.run(_with_client(access, work))


def reach(context: str) -> Access:
    """Raises AccessError."""
    if context:
        return from_kubeconfig(os.environ.get("KUBECONFIG") or "~/.kube/config", context)
    return from_environment()


async def _with_client(access: Access, work: Callable[[Client], Awaitable[T]]) -> T:
    client = Client(access, user_agent="galaxy")
    try:
        return await work(client)
    except Unavailable as error:
        if "CERTIFICATE_VERIFY_FAILED" in error.message:
            do = "see whether the kubeconfig is of this cluster: its certificate-authority-data, and the address"
            raise Failure("the API server is not the one of the kubeconfig", error.message, do) from None
        raise Failure(
            "the API server does not answer", error.message, "look at it, then repeat the command: it goes on"
        ) from None
    except (KubeError, AccessError) as error:
        status = error.status if isinstance(error, KubeError) else 0
        do = _REMEDIES.get(status, "")
        raise Failure("the API server refuses", str(error), do) from None
    finally:
        # What was asked beside the question that failed would open the client again.
        beside = asyncio.all_tasks() - {asyncio.current_task()}
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        await client.close()
