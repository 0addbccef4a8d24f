"""The real server, where /proc/PID/status doesn't say which memory nodes are allowed: the only one there is."""

from __future__ import annotations


def main(argv: list[str]) -> int:
    from vllm.utils import cpu_resource_utils

    from runtimes.vllm_pd import server

    asked = cpu_resource_utils.get_memory_affinity
    cpu_resource_utils.get_memory_affinity = lambda pid=0: asked(pid) or [0]
    return server.main(argv)
