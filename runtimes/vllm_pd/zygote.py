"""Forks instances of this runtime: `python -m runtimes.vllm_pd.zygote --socket PATH --name NAME [--runtime PACKAGE]`.

No torch operation runs before a fork. In a standby pod of level S1 (GALAXY_SLOT_LEVEL) it keeps a shaped engine ready
(shaped.py), of the shape that GALAXY_SLOT_SHAPE says in an instance's arguments: --model FOLDER --max-model-len 2048,
where FOLDER need have no more than config.json.
"""

from __future__ import annotations

import importlib
import os
import shlex
import sys
from collections.abc import Callable, Mapping

from kserve_ext.rpc import zygote


def program(package: str) -> zygote.Program:
    """A runtime: `preimport` has its imports, `server` is what a fork runs."""

    def prepare() -> None:
        importlib.import_module(f"{package}.preimport").preimport()

    def run(arguments: list[str]) -> int:
        return int(importlib.import_module(f"{package}.server").main(arguments))

    return zygote.Program(package, prepare, run, _keep())


def _keep(environ: Mapping[str, str] = os.environ) -> Callable[[str], int] | None:
    if environ.get("GALAXY_SLOT_LEVEL") != "S1":
        return None
    shape = environ.get("GALAXY_SLOT_SHAPE")
    if not shape:
        text = "no shaped engine is kept: GALAXY_SLOT_SHAPE is not set; give it an instance's arguments"
        print(f"warning: {text}", file=sys.stderr, flush=True)
        return None
    arguments = shlex.split(shape)

    def keep(path: str) -> int:
        from runtimes.vllm_pd.shaped import end_with_parent, serve

        end_with_parent(True)
        serve(path, arguments)

    return keep


def main() -> None:
    parser = zygote.command_line("runtimes.vllm_pd")
    parser.add_argument("--runtime", default="runtimes.vllm_pd", help="package with preimport and server")
    args = parser.parse_args()
    zygote.serve(args, program(args.runtime))


if __name__ == "__main__":
    main()
