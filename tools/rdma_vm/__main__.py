"""`python -m tools.rdma_vm build | run [--links pair] -- COMMAND`: a command under a kernel that has soft-RoCE.

`run` gives the command Debian's pyverbs and two or three RDMA devices; its output and exit status come through.
`build` makes the kernel, once; `check` says what is missing for a run.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from tools.rdma_vm import guest, kernel, pyverbs
from tools.rdma_vm.machine import Machine
from tools.setup.layout import Layout
from tools.setup.steps import SetupError

_DROPPED = frozenset(("_", "PWD", "OLDPWD", "SHLVL", "TMPDIR"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.rdma_vm", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("build", help="build the kernel unless there is one")
    verbs.add_parser("check", help="say what is missing")
    run = verbs.add_parser("run", help="run a command; the kernel is built when there is none")
    run.add_argument("--links", choices=sorted(guest.LINKS), default="one")
    run.add_argument("--memory", default="4G")
    run.add_argument(
        "--seconds", type=float, default=600.0, help="after which it is given up, with status 124"
    )
    run.add_argument("command", nargs="+", metavar="-- COMMAND")
    arguments = parser.parse_args()
    layout = Layout.of_user()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if arguments.verb == "check":
            return check(layout)
        if arguments.verb == "build":
            print(kernel.find(layout) or kernel.build(layout))
            return 0
        path = str(pyverbs.bring(layout))
        machine = Machine(
            kernel.find(layout) or kernel.build(layout),
            arguments.links,
            arguments.memory,
            arguments.seconds,
            (layout.cache,),
        )
        env = {name: value for name, value in os.environ.items() if name not in _DROPPED}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (path, env.get("PYTHONPATH"))))
        return machine.run(arguments.command, env, Path.cwd(), sys.stdout.buffer, sys.stderr.buffer)
    except SetupError as error:
        print(f"rdma-vm: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def check(layout: Layout) -> int:
    """0 and nothing to say: a run would begin at once."""
    problems = []
    if kernel.find(layout) is None:
        problems.append("no kernel yet: python -m tools.rdma_vm build (six minutes of two idle cores)")
    if not pyverbs.folder(layout).exists():
        problems.append("no pyverbs yet: the first run fetches it")
    try:
        pyverbs.require_libraries()
    except SetupError as error:
        problems.append(str(error))
    print("\n".join(problems) or "everything is there")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
