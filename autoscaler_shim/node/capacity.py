"""What a node declares: options of the agent's process, and what the machine has where nothing is said."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Final, NamedTuple

from kserve_ext.api import quantities
from kserve_ext.api.node_labels import read_labels
from kserve_ext.core.facts import Label, Resources


class Declared(NamedTuple):
    resources: Resources
    devices: tuple[int, ...]
    zygote_mib: int
    model_cache_bytes: int
    labels: tuple[Label, ...] = ()
    #: modules whose functions may be started here: their zygotes are kept
    functions: frozenset[str] = frozenset()


#: What a zygote of control functions counts: they import no engine.
FUNCTION_ZYGOTE_MIB: Final = 64
FUNCTION_MODULES: Final = ("autoscaler_shim", "activator_replacement")


def add_args(parser: argparse.ArgumentParser) -> None:
    milli, mib, whole = (_quantity(f) for f in (quantities.milli, quantities.mebibytes, quantities.whole))
    group = parser.add_argument_group("capacity", "what instances on this node may use in all")
    group.add_argument("--cpu", type=milli, metavar="CPUS", help="default: all of this machine")
    group.add_argument("--memory", type=mib, metavar="SIZE", help="e.g. 16Gi; default: all of this machine")
    group.add_argument("--gpus", type=whole, default=0, help="whole GPUs (0)")
    group.add_argument("--gpu-devices", default="", metavar="I,J", help="their indices; default 0, 1, ...")
    group.add_argument("--gpu-memory", type=mib, default=0, metavar="SIZE", help="of all GPUs together")
    group.add_argument("--rdma", type=whole, default=0, help="RDMA devices (0)")
    group.add_argument(
        "--zygote-memory", type=mib, default=1024, metavar="SIZE", help="that a zygote counts (1Gi)"
    )
    group.add_argument(
        "--functions",
        action="append",
        default=[],
        choices=FUNCTION_MODULES,
        help="keep a zygote for control functions of this package; may come twice",
    )
    group.add_argument(
        "--model-cache", type=whole, default=64 << 30, metavar="SIZE", help="bound on disk (64Gi)"
    )

    group.add_argument(
        "--labels", default="", metavar="KEY=VALUE,...", help="such as topology.kubernetes.io/zone=a"
    )


def declared(args: argparse.Namespace) -> Declared:
    """Raises ValueError that names the option."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 1024**2
    resources = Resources(
        cpu_milli=args.cpu if args.cpu is not None else 1000 * (os.cpu_count() or 1),
        memory_mib=args.memory if args.memory is not None else memory,
        gpus=args.gpus,
        gpu_memory_mib=args.gpu_memory,
        rdma=args.rdma,
    )
    devices = tuple(range(args.gpus))
    if args.gpu_devices:
        try:
            devices = tuple(int(index) for index in args.gpu_devices.split(","))
        except ValueError:
            raise ValueError(f"--gpu-devices {args.gpu_devices!r}: write indices, e.g. 0,1") from None
        if len(set(devices)) != args.gpus:
            raise ValueError(
                f"--gpu-devices {args.gpu_devices}: name {args.gpus} different ones, as --gpus says"
            )
    try:
        labels = read_labels(args.labels)
    except ValueError as error:
        raise ValueError(f"--labels: {error}") from None
    functions = frozenset(args.functions)
    return Declared(resources, devices, args.zygote_memory, args.model_cache, labels, functions)


def _quantity(read: Callable[[object], int]) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        if value < 0:
            raise argparse.ArgumentTypeError(f"{text} is negative")
        return value

    return parse
