"""Forks instances of this runtime: `python -m runtimes.vllm_pd.zygote --socket PATH --name NAME [--runtime PACKAGE]`.

No torch operation runs before a fork. In a standby pod of level S1 it keeps a shaped engine ready (shaped.py), of the
shape that shape_place.py finds.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping

from kserve_ext.rpc import zygote
from runtimes.vllm_pd.shape_place import NoShape, shape_arguments


def program(package: str) -> zygote.Program:
    """A runtime: `preimport` has its imports, `server` is what a fork runs."""

    def prepare() -> None:
        importlib.import_module(f"{package}.preimport").preimport()

    def run(arguments: list[str]) -> int:
        return int(importlib.import_module(f"{package}.server").main(arguments))

    keep, why_not = _keep()
    return zygote.Program(package, prepare, run, keep, why_not)


def _keep(environ: Mapping[str, str] = os.environ) -> tuple[Callable[[str], int] | None, str]:
    """What keeps a shaped engine; or why none can be kept, "" where none is asked for."""
    try:
        found = shape_arguments(environ)
    except NoShape as error:
        print(f"warning: no shaped engine is kept: {error}", file=sys.stderr, flush=True)
        return None, str(error)
    if found is None:
        return None, ""
    arguments = found

    def keep(path: str) -> int:
        from runtimes.vllm_pd.shaped import end_with_parent, serve

        end_with_parent(True)
        serve(path, arguments)

    return keep, ""


def main() -> None:
    parser = zygote.command_line("runtimes.vllm_pd")
    parser.add_argument("--runtime", default="runtimes.vllm_pd", help="package with preimport and server")
    args = parser.parse_args()
    zygote.serve(args, program(args.runtime))


if __name__ == "__main__":
    main()
