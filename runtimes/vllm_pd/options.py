"""The instance's arguments: vLLM's own server arguments, plus a small group of ours, and defaults for CPU.

Every argument that vLLM's server takes is passed on unchanged. What a user sets is never overridden; the CPU
defaults only fill what was left open, so that several small instances fit on one machine.
"""

from __future__ import annotations

import functools
import math
import os
import socket
from argparse import Namespace
from collections.abc import Mapping
from typing import Any, NoReturn

from runtimes.vllm_pd.status import StartRefused

#: Set before vLLM or torch is imported; a value that the user has set wins.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine is a thread of this process
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # instances that pin themselves would all take core 0
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "TOKENIZERS_PARALLELISM": "false",
}

KV_TRANSFER = ["auto", "shm", "ipc", "tcp", "rdma", "nixl", "none"]
KV_SENDS_BY = ["layers", "steps"]
_MIN_KV_BYTES = 64 << 20
_MAX_KV_BYTES = 4 << 30
_KV_CONTEXTS = 4


def apply_environment(environ: Any = os.environ) -> None:
    for name, value in ENVIRONMENT.items():
        environ.setdefault(name, value)


@functools.cache
def parser() -> Any:
    """vLLM's parser with our group. Built once: it reads vLLM's sources for its help, which takes a while."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):  # type: ignore[misc]
        def error(self, message: str) -> NoReturn:
            raise StartRefused(message, _field_of(message), "see --help=all for the arguments of this server")

    made = Parser(prog="runtimes.vllm_pd", description="One instance: a model served by vLLM.")
    group = made.add_argument_group("Galaxy")
    group.add_argument("--role", choices=["unified", "prefill", "decode"], default=None)
    group.add_argument("--drain-seconds", type=float, default=None, help="longest time that SIGTERM waits")
    group.add_argument("--hung-seconds", type=float, default=None, help="longest time that a step may take")
    group.add_argument("--pd", choices=["auto", "always", "never"], default=None)
    group.add_argument("--pd-threshold-tokens", type=int, default=None)
    group.add_argument(
        "--kv-fetch-threshold-tokens",
        type=int,
        default=None,
        help="that decode holds, and prefill fetches rather than computes",
    )
    group.add_argument("--kv-transfer", choices=KV_TRANSFER, default=None)
    group.add_argument("--kv-transfer-seconds", type=float, default=None, help="then decode recomputes")
    group.add_argument("--kv-lease-seconds", type=float, default=None, help="of blocks nobody asks after")
    group.add_argument(
        "--kv-sends-by",
        choices=KV_SENDS_BY,
        default=None,
        help="layers: while a step computes others; steps: behind it",
    )
    group.add_argument("--kv-transfer-required", action="store_true", help="503 rather than recompute")
    group.add_argument("--kv-pairs", type=int, default=None, help="prefill instances connected ahead of need")
    group.add_argument("--kv-most-channels", type=int, default=None, help="the longest idle one makes room")
    group.add_argument("--prefill-wait-seconds", type=float, default=None, help="for a prefill slot")
    group.add_argument(
        "--kv-host",
        default=None,
        help="address that KV channels listen on; auto: that others reach this host by",
    )
    return make_arg_parser(made)


def parse(argv: list[str], environ: Mapping[str, str] = os.environ) -> Namespace:
    from vllm.entrypoints.launchers.cli_args import validate_parsed_serve_args

    given = any(a == "--port" or a.startswith("--port=") for a in argv)
    if environ.get("PORT") and not given:
        argv = [*argv, "--port", environ["PORT"]]
    args: Namespace = parser().parse_args(argv)
    if args.model_tag:
        args.model = args.model_tag
    elif not any(a == "--model" or a.startswith("--model=") for a in argv) and not args.config:
        raise StartRefused("no model is given", "--model", "pass --model FOLDER")
    try:
        validate_parsed_serve_args(args)
    except (ValueError, TypeError) as error:
        raise StartRefused(str(error), _field_of(str(error)), "correct the argument") from error
    args.role = args.role or environ.get("GALAXY_ROLE") or "unified"
    if args.role not in ("unified", "prefill", "decode"):
        raise StartRefused(f"{args.role!r} is not a role", "GALAXY_ROLE", "use unified, prefill or decode")
    _from_environment(args, environ)
    return args


def _from_environment(args: Namespace, environ: Mapping[str, str]) -> None:
    """What annotations set (GALAXY_*), for every option of ours that the command leaves open."""
    args.pd = args.pd or environ.get("GALAXY_PD") or "auto"
    args.kv_transfer = args.kv_transfer or environ.get("GALAXY_KV_TRANSFER") or "auto"
    args.kv_sends_by = args.kv_sends_by or environ.get("GALAXY_KV_SENDS_BY") or "layers"
    if args.kv_sends_by not in KV_SENDS_BY:
        raise StartRefused(
            f"{args.kv_sends_by!r} is no way to send KV",
            "GALAXY_KV_SENDS_BY",
            f"use {' or '.join(KV_SENDS_BY)}",
        )
    args.kv_host = args.kv_host or environ.get("GALAXY_KV_HOST") or "127.0.0.1"
    if args.kv_host == "auto":
        args.kv_host = own_address()
    args.kv_transfer_required |= environ.get("GALAXY_KV_TRANSFER_REQUIRED") == "true"
    numbers: tuple[tuple[str, type, float | None, float], ...] = (  # ..., default, least
        ("pd_threshold_tokens", int, None, 0),  # learned (break_even.py)
        ("kv_fetch_threshold_tokens", int, None, 0),  # likewise
        ("kv_transfer_seconds", float, 20.0, 0.1),
        ("kv_lease_seconds", float, 30.0, 1),
        ("kv_pairs", int, 4, 0),
        ("kv_most_channels", int, 64, 1),
        ("prefill_wait_seconds", float, 5.0, 0),
        ("drain_seconds", float, 30.0, 0),
        ("hung_seconds", float, 60.0, 0),
    )
    for name, kind, default, least in numbers:
        field = f"--{name.replace('_', '-')}"
        if getattr(args, name) is None:
            variable = f"GALAXY_{name.upper()}"
            text = environ.get(variable)
            try:
                setattr(args, name, kind(text) if text else default)
            except ValueError as error:
                raise StartRefused(f"{text!r} is not a number", variable, "correct or remove it") from error
            field = variable
        value = getattr(args, name)
        if value is not None and not least <= value < math.inf:
            raise StartRefused(f"{value} is out of bounds", field, f"give a number from {least:g} on")


def own_address() -> str:
    """IPv4, of the interface that leads elsewhere: in a pod, the pod's. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address for documentation, which nobody has
        except OSError as error:
            raise StartRefused(
                f"auto finds no address: {error}", "--kv-host", "give this host's address"
            ) from error
        return str(probe.getsockname()[0])


def fill_cpu_defaults(args: Namespace, on_cpu: bool) -> None:
    if on_cpu:
        args.enforce_eager = True  # compiling takes longer than this start may


def kv_cache_bytes(bytes_per_token: int, max_model_len: int) -> int:
    """Room for a few requests of full length, within bounds; one full request always fits."""
    wanted = bytes_per_token * max_model_len * _KV_CONTEXTS
    return max(bytes_per_token * (max_model_len + 1024), min(max(wanted, _MIN_KV_BYTES), _MAX_KV_BYTES))


def _field_of(message: str) -> str:
    """The first option that a parser's message names."""
    for word in message.replace(":", " ").replace("=", " ").replace("/", " ").split():
        if word.startswith("--"):
            return word.strip("'\",")
    return "args"
