"""`python -m e2e.build`: the Go programs of the test stack, built once into the cache folder.

Each folder of e2e/go is a Go module that pins one family of programs by its go.mod and go.sum. What is built lies in
the cache under a name with a digest of everything that it was made from, so that clones share it and a changed pin
builds anew. Interrupted, it goes on with the program it was cut off in; Go's own caches keep what was compiled.
Also keeps the configuration files that the modules of Knative and KServe hold, so that starting a stack needs neither
Go nor network. KServe is a family that only its own tests need.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tools.setup import commands, steps
from tools.setup.layout import Layout, digest

GO = Path(__file__).resolve().parent / "go"
KUBERNETES_VERSION = "1.36.3"
KNATIVE_VERSION = "0.48.1"
KSERVE_VERSION = "0.20.0"
_COMPONENT = "k8s.io/component-base/version"
_MAJOR, _MINOR, _ = KUBERNETES_VERSION.split(".")
#: Without a version at link time clients see v0.0.0-master, and Knative refuses to run on that.
_KUBERNETES_FLAGS = " ".join(
    f"-X {_COMPONENT}.{name}={value}"
    for name, value in (("gitVersion", f"v{KUBERNETES_VERSION}"), ("gitMajor", _MAJOR), ("gitMinor", _MINOR))
)
#: Family -> module -> the folders of it that the stack reads.
CONFIGURATION: dict[str, dict[str, tuple[str, ...]]] = {
    "knative": {
        "knative.dev/serving": ("config/core",),
        "knative.dev/networking": ("config",),
        "knative.dev/caching": ("config",),
    },
    "kserve": {
        "github.com/kserve/kserve": tuple(
            f"config/{name}"
            for name in ("crd/full", "rbac", "manager", "webhook", "configmap", "storagecontainers")
        ),
    },
}


@dataclass(frozen=True, slots=True)
class Family:
    """The programs of one Go module: name -> package."""

    name: str
    programs: dict[str, str]
    link_flags: str = "-s -w"
    #: Not a part of every stack.
    apart: bool = False

    @property
    def module(self) -> Path:
        return GO / self.name

    def folder(self, layout: Layout) -> Path:
        made_from = [
            file for file in sorted(self.module.rglob("*")) if file.suffix in (".mod", ".sum", ".go")
        ]
        return (
            layout.cache
            / "e2e"
            / f"{self.name}-{digest(made_from, self.link_flags, *self.programs.values())}"
        )


FAMILIES = (
    Family("etcd", {"etcd": "go.etcd.io/etcd/server/v3"}),
    Family(
        "knative",
        {
            **{
                name: f"knative.dev/serving/cmd/{name}"
                for name in ("activator", "autoscaler", "controller", "webhook", "queue")
            },
            "server": "./server",
        },
    ),
    Family(
        "kubernetes",
        {
            name: f"k8s.io/kubernetes/cmd/{name}"
            for name in (
                "kube-apiserver",
                "kube-controller-manager",
                "kube-scheduler",
                "kube-proxy",
                "kubectl",
            )
        },
        f"-s -w {_KUBERNETES_FLAGS}",
    ),
    Family("differential", {"decisions": "."}),
    Family("kserve", {"kserve-manager": "github.com/kserve/kserve/cmd/manager"}, apart=True),
)
_BY_NAME = {family.name: family for family in FAMILIES}


def program(name: str, layout: Layout | None = None) -> Path:
    """Where the program lies, built or not."""
    layout = layout or Layout.of_user()
    family = next(family for family in FAMILIES if name in family.programs)
    return family.folder(layout) / name


def configuration(layout: Layout | None = None, family: str = "knative") -> Path:
    """The folder with a family's own configuration files, a folder each module: serving/, networking/, caching/."""
    return _BY_NAME[family].folder(layout or Layout.of_user()) / "config"


def missing(layout: Layout | None = None, *apart: str) -> list[str]:
    """What is still to be built for a stack, with the families named of those that are not a part of every one."""
    layout = layout or Layout.of_user()
    families = [family for family in FAMILIES if not family.apart or family.name in apart]
    names = [
        name for family in families for name in family.programs if not (family.folder(layout) / name).exists()
    ]
    return names + [
        f"{family.name}'s configuration"
        for family in families
        if family.name in CONFIGURATION and not configuration(layout, family.name).exists()
    ]


def build(layout: Layout, names: Iterable[str] = ()) -> None:
    wanted = frozenset(names)
    plan = [
        _compile(layout, family, name)
        for family in FAMILIES
        for name in family.programs
        if not wanted or name in wanted
    ]
    plan += [_keep(layout, name) for name in CONFIGURATION]
    if not all(step.done() for step in plan):
        if shutil.which("go") is None:
            raise steps.SetupError(
                "`go` not found: the e2e stack is built from Go modules (go.dev/dl, 1.26 or newer)"
            )
        steps.say("a cold build of the e2e stack takes about 16 minutes of two idle cores")
    # A lock of its own: the set-up of Python environments need not wait for a long build.
    steps.run(plan, layout.cache / "e2e" / "lock")


def _compile(layout: Layout, family: Family, name: str) -> steps.Step:
    target = family.folder(layout) / name

    def work() -> None:
        partial = target.with_suffix(".partial")
        partial.parent.mkdir(parents=True, exist_ok=True)
        commands.run(
            [
                "nice",
                "-n",
                "10",
                "go",
                "build",
                "-trimpath",
                "-ldflags",
                family.link_flags,
                "-o",
                partial,
                family.programs[name],
            ],
            layout.log / f"e2e-{name}.log",
            env={"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false"},
            cwd=family.module,
        )
        os.replace(partial, target)

    return steps.Step(f"building {name}", target.exists, work)


def _keep(layout: Layout, family: str) -> steps.Step:
    """Copies the modules' configuration folders; the rename makes them whole or absent."""
    target, module_of = configuration(layout, family), GO / family

    def work() -> None:
        partial = target.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        listing = layout.log / "e2e-modules.log"
        for module, folders in CONFIGURATION[family].items():
            commands.run(["go", "mod", "download", module], listing, cwd=module_of)
            commands.run(["go", "list", "-m", "-f", "{{.Dir}}", module], listing, cwd=module_of)
            source = Path(listing.read_text(encoding="utf-8").strip())
            for folder in folders:
                shutil.copytree(
                    source / folder,
                    partial / module.rpartition("/")[2] / folder,
                    copy_function=shutil.copyfile,
                )
        for path in (partial, *partial.rglob("*")):
            if path.is_dir():
                path.chmod(0o755)  # as in the module cache, they are read-only
        os.replace(partial, target)

    return steps.Step(f"the configuration of {family}", target.exists, work)


def main() -> int:
    try:
        build(Layout.of_user(), sys.argv[1:])
    except steps.SetupError as error:
        steps.say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
