"""Entry of the control plane's processes: `python -m autoscaler_shim PART --id ID --data DIR --controller ADDR`."""

from __future__ import annotations

import argparse
import importlib
import sys

from kserve_ext.rpc.process import common_args

PARTS = {
    "controller": ("autoscaler_shim.controller", "the view, epochs, and the embedded state store"),
    "cluster-mgr": ("autoscaler_shim.cluster_mgr", "liveness and status of a share of the nodes"),
    "schedule": ("autoscaler_shim.schedule", "places instances on the nodes of its partition"),
    "node": ("autoscaler_shim.node.agent", "admits, starts and stops the instances of one node"),
    "objects": (
        "autoscaler_shim.objects.server",
        "KServe objects of the embedded cluster, and the admin API",
    ),
}


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="python -m autoscaler_shim", description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True)
    chosen = next((a for a in argv if a in PARTS), None)
    run = None
    for name, (module_name, what) in PARTS.items():
        sub = parts.add_parser(name, help=what)
        common_args(sub)
        if name == chosen:
            module = importlib.import_module(module_name)
            add = getattr(module, "add_args", None)
            if add is not None:
                add(sub)
            run = module.main
    args = parser.parse_args(argv)
    assert run is not None
    return int(run(args))


if __name__ == "__main__":
    sys.exit(main())
