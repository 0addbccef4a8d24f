"""Forks instances of this runtime: `python -m runtimes.vllm_pd.zygote --socket PATH --name NAME [--runtime PACKAGE]`.

No torch operation runs before a fork.
"""

from __future__ import annotations

import importlib

from kserve_ext.rpc import zygote


def program(package: str) -> zygote.Program:
    """A runtime: `preimport` has its imports, `server` is what a fork runs."""

    def prepare() -> None:
        importlib.import_module(f"{package}.preimport").preimport()

    def run(arguments: list[str]) -> int:
        return int(importlib.import_module(f"{package}.server").main(arguments))

    return zygote.Program(package, prepare, run)


def main() -> None:
    parser = zygote.command_line("runtimes.vllm_pd")
    parser.add_argument("--runtime", default="runtimes.vllm_pd", help="package with preimport and server")
    args = parser.parse_args()
    zygote.serve(args, program(args.runtime))


if __name__ == "__main__":
    main()
