"""The real server, where /proc/PID/status doesn't say which memory nodes are allowed: the only one there is.

RUNG names the one that `--kv-transfer rdma` allows, where a test wants to know which it was.
"""

from __future__ import annotations

import os


def main(argv: list[str]) -> int:
    from vllm.utils import cpu_resource_utils

    from runtimes.vllm_pd import pair
    from tests.engine.faulty import server

    rung = os.environ.get("RUNG")
    if rung:
        pair.VERBS = (rung,)  # type: ignore[attr-defined, assignment]
    asked = cpu_resource_utils.get_memory_affinity
    cpu_resource_utils.get_memory_affinity = lambda pid=0: asked(pid) or [0]
    return server.main(argv)
