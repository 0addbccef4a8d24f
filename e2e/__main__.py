"""`python -m e2e`: a stack by hand. See e2e/README.md."""

from __future__ import annotations

import argparse
import os
import shutil
import sys

from e2e import build
from e2e.stack import cluster, implementations, kserve, network, processes
from e2e.stack.place import Place

DEFAULT = "main"


def _up(args: argparse.Namespace) -> int:
    up = cluster.up(args.stack, owned=False)
    place = up.place
    if args.kserve:
        kserve.install(up.api)
    print(
        f"kubeconfig  {place.kubeconfig}\nnode        {place.node}\nlogs        {place.logs}\n"
        f"run inside  python -m e2e exec {_option(args)}-- COMMAND"
    )
    return 0


def _option(args: argparse.Namespace) -> str:
    return "" if args.stack == DEFAULT else f"--stack {args.stack} "


def _down(args: argparse.Namespace) -> int:
    network.require()
    for name in cluster.sweep():
        print(f"swept {name}, whose owner is gone")
    for place in processes.known():
        if args.all or place.name == args.stack:
            cluster.down(place)
            print(f"down: {place.name}")
    return 0


def _status(_: argparse.Namespace) -> int:
    for place in processes.known():
        record = processes.Record.read(place)
        if record is None:
            print(f"{place.name}: leftovers (python -m e2e down sweeps them)")
            continue
        owner = f"owned by process {record.owner.pid}" if record.owner else "stays until down"
        state = "ready" if record.ready else "starting"
        dead = f", ended: {', '.join(record.dead)}" if record.dead else ""
        pods = sum(place.owns(space) for space in network.namespaces()) - 1
        print(f"{place.name}: {state}, {owner}, {pods} pods{dead}; kubeconfig {place.kubeconfig}")
    return 0


def _check(_: argparse.Namespace) -> int:
    """Whether this machine can run a stack, and what is still to be built for it."""
    network.require()
    absent = build.missing()
    if absent and shutil.which("go") is None:
        raise cluster.StackError(f"`go` not found, and not built yet: {', '.join(absent)}")
    print(f"to be built: {', '.join(absent)}" if absent else "everything is built")
    return 0


def _kubeconfig(args: argparse.Namespace) -> int:
    print(Place(args.stack).kubeconfig)
    return 0


def _exec(args: argparse.Namespace) -> int:
    """In the node's namespace, with its DNS; `kubectl` is the stack's own."""
    place = Place(args.stack)
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        print("exec: which command?", file=sys.stderr)
        return 2
    if command[0] == "kubectl":
        command[0] = str(build.program("kubectl"))
    argv = network.command(place.node, command)
    os.execvpe(argv[0], argv, {**network.environment(), "KUBECONFIG": str(place.kubeconfig)})


def _use(args: argparse.Namespace) -> int:
    """Swap an implementation by its image, and wait for the rolling update."""
    api = cluster.attach(args.stack).api
    parts = implementations.PARTS if args.what == "both" else (args.what,)
    implementations.use(api, args.implementation, parts)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m e2e", description=__doc__)
    parser.set_defaults(stack=DEFAULT)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    up = verbs.add_parser("up", help="start a stack that stays")
    up.add_argument("--kserve", action="store_true", help="with KServe in it")
    up.set_defaults(act=_up)
    down = verbs.add_parser("down", help="end a stack, and whatever dead ones left")
    down.add_argument("--all", action="store_true", help="every stack on this machine")
    down.set_defaults(act=_down)
    verbs.add_parser("status", help="the stacks on this machine").set_defaults(act=_status)
    verbs.add_parser("check", help="can this machine run a stack, and is it built").set_defaults(act=_check)
    kubeconfig = verbs.add_parser("kubeconfig", help="where the administrator's kubeconfig lies")
    kubeconfig.set_defaults(act=_kubeconfig)
    run = verbs.add_parser(
        "exec", help="a command in the node's namespace, such as: exec kubectl get pods -A"
    )
    run.set_defaults(act=_exec)
    use = verbs.add_parser("use", help="swap the activator's or the autoscaler's implementation")
    use.add_argument("implementation", choices=implementations.IMPLEMENTATIONS)
    use.add_argument("what", nargs="?", default="both", choices=(*implementations.PARTS, "both"))
    use.set_defaults(act=_use)
    for verb in (up, down, kubeconfig, run, use):
        verb.add_argument("--stack", default=DEFAULT, help=f"its name ({DEFAULT})")
    run.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    try:
        status: int = args.act(args)
    except (cluster.StackError, network.NetworkError, TimeoutError, RuntimeError) as error:
        print(f"e2e: {error}", file=sys.stderr)
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
