"""The real zygote, with this runtime."""

from __future__ import annotations

from kserve_ext.rpc import zygote
from runtimes.vllm_pd.zygote import program

if __name__ == "__main__":
    package = "tests.support.sleeping_runtime"
    zygote.serve(zygote.command_line(package).parse_args(), program(package))
