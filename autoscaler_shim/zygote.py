"""Forks Schedule and ClusterMgr functions: `python -m autoscaler_shim.zygote --socket PATH --name NAME`."""

from __future__ import annotations

import importlib

from autoscaler_shim.__main__ import PARTS, main
from kserve_ext.rpc import zygote

#: Of the parts, those that the controller has started while a cluster runs.
FORKED = ("schedule", "cluster-mgr")


def prepare() -> None:
    for part in FORKED:
        importlib.import_module(PARTS[part][0])


if __name__ == "__main__":
    args = zygote.command_line("autoscaler_shim").parse_args()
    zygote.serve(args, zygote.Program("autoscaler_shim", prepare, main))
