"""The router's arguments, and the variables that the cluster sets for an instance (GALAXY_*).

What the command says is never overridden by a variable. After `--` stands the command of an engine of our own.
"""

from __future__ import annotations

import argparse
import math
import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import NoReturn

from runtimes.two_leg.calls import Address
from runtimes.vllm_pd.status import StartRefused

_ROLES = ("unified", "prefill", "decode")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        field = next((word for word in message.replace(":", " ").split() if word.startswith("--")), "args")
        raise StartRefused(message, field, "see --help")


def parse(argv: Sequence[str], environ: Mapping[str, str] = os.environ) -> Namespace:
    """Raises StartRefused."""
    own, engine = _split(argv)
    args = _parser().parse_args(own)
    args.engine = engine
    args.port = int(_number("PORT", environ, 8000.0)) if args.port is None else args.port
    args.role = args.role or environ.get("GALAXY_ROLE") or "unified"
    if args.role not in _ROLES:
        raise StartRefused(f"{args.role!r} is not a role", "GALAXY_ROLE", f"use one of {', '.join(_ROLES)}")
    args.pd = args.pd or environ.get("GALAXY_PD") or "auto"
    if args.role == "prefill":
        args.pd = "never"  # it answers the legs of others
    args.kv_transfer_required |= environ.get("GALAXY_KV_TRANSFER_REQUIRED") == "true"
    numbers = (
        ("pd_threshold_tokens", 256.0, 0.0),  # ..., default, least
        ("prefill_wait_seconds", 5.0, 0.0),
        ("prefill_seconds", 60.0, 0.1),
        ("drain_seconds", 30.0, 0.0),
        ("check_seconds", 5.0, 0.01),
    )
    for name, default, least in numbers:
        field = f"--{name.replace('_', '-')}"
        if getattr(args, name) is None:
            field = f"GALAXY_{name.upper()}"
            setattr(args, name, _number(field, environ, default))
        value = getattr(args, name)
        if not least <= value < math.inf:
            raise StartRefused(f"{value:g} is out of bounds", field, f"give a number from {least:g} on")
    if not 0 <= args.port < 1 << 16:
        raise StartRefused(f"{args.port} is no port", "--port", "give one from 0 to 65535, 0 = any")
    _check(args)
    return args


def _parser() -> argparse.ArgumentParser:
    made = _Parser(
        prog="python -m runtimes.two_leg",
        usage="%(prog)s [--prefill URL ...] (--decode URL ... | --engine-url URL | -- COMMAND ...) [options]",
        description="Router for plain vLLM servers that hand KV over by kv_transfer_params.",
    )
    add = made.add_argument
    add("--prefill", nargs="+", action="extend", default=[], metavar="URL", help="prefill engines")
    add("--decode", nargs="+", action="extend", default=[], metavar="URL", help="decode engines")
    add("--engine-url", default="", metavar="URL", help="the engine of this instance (a sidecar)")
    add("--role", choices=_ROLES, default=None)
    add("--host", default="0.0.0.0")
    add("--port", type=int, default=None, help="8000, or $PORT")
    add("--pd", choices=["auto", "always", "never"], default=None)
    add("--pd-threshold-tokens", type=float, default=None, help="shorter prompts go to decode alone (256)")
    add("--chars-per-token", type=float, default=4.0, help="how prompts that are text are measured")
    add("--prefill-seconds", type=float, default=None, help="longest time of a prefill leg (60)")
    add("--prefill-wait-seconds", type=float, default=None, help="for a prefill slot of the group (5)")
    add("--kv-transfer-required", action="store_true", help="503 rather than decode alone")
    add("--check-seconds", type=float, default=None, help="between health checks of an engine (5)")
    add("--drain-seconds", type=float, default=None, help="longest time that SIGTERM waits (30)")
    return made


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    words = list(argv)
    if "--" not in words:
        return words, []
    at = words.index("--")
    return words[:at], words[at + 1 :]


def _number(variable: str, environ: Mapping[str, str], default: float) -> float:
    text = environ.get(variable)
    try:
        return float(text) if text else default
    except ValueError as error:
        raise StartRefused(f"{text!r} is not a number", variable, "correct or remove it") from error


def _check(args: Namespace) -> None:
    kinds = [bool(args.decode), bool(args.engine_url), bool(args.engine)]
    if sum(kinds) != 1:
        what = "more than one of them is" if sum(kinds) else "none is"
        remedy = "give --decode URL ..., or --engine-url URL, or the engine's command after --"
        raise StartRefused(f"which engine answers: {what} given", "--decode", remedy)
    if args.chars_per_token <= 0:
        raise StartRefused(
            "a token has more than no characters", "--chars-per-token", "4 is usual for English"
        )
    for option, urls in (
        ("--prefill", args.prefill),
        ("--decode", args.decode),
        ("--engine-url", [args.engine_url]),
    ):
        for url in filter(None, urls):
            try:
                Address.of(url)
            except ValueError as error:
                raise StartRefused(str(error), option, "correct it") from error
