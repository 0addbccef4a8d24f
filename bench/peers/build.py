"""Peers that are compiled: Go programs, and a proxy in Rust; built once into the cache folder.

A name with a digest says what a program was made from, so that clones share it and a change builds anew.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from tools.setup import commands, steps
from tools.setup.layout import Layout, digest

PEERS = Path(__file__).resolve().parent
_SERVING = "knative.dev/serving"
_LIMITS = {
    "cfg.QPS = controllerNum * rest.DefaultQPS": "cfg.QPS = 400 * rest.DefaultQPS",
    "cfg.Burst = controllerNum * rest.DefaultBurst": (
        "cfg.Burst, controller.DefaultThreadsPerController = 400 * rest.DefaultBurst, 32"
    ),
}
_GO = {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false"}


def calls() -> Path | None:
    """Both ends of gRPC calls. None, here and below: the compiler is missing."""
    folder = PEERS / "calls"
    return _go("calls", folder, ".", [folder / name for name in ("main.go", "go.mod", "go.sum")])


def reverse_proxy() -> Path | None:
    return _go("reverseproxy", PEERS, "reverseproxy.go", [PEERS / "reverseproxy.go"])


def rust_hyper() -> Path | None:
    folder = PEERS / "rust-hyper"
    made_from = [folder / "Cargo.toml", folder / "Cargo.lock", folder / "src" / "main.rs"]
    target = _place("rust-hyper", made_from)
    built = target.with_suffix(".build")

    def work(log: Path) -> None:
        argv: list[str | Path] = ["cargo", "build", "--release", "--locked", "--target-dir", built]
        commands.run(argv, log, cwd=folder)
        os.replace(built / "release" / "rust-hyper", target)
        shutil.rmtree(built)

    return _made("cargo", target, work)


def unlimited_autoscaler() -> Path | None:
    """Knative's autoscaler without the limit that its main sets over every flag: 10 requests a second.

    Built from the module as it is, with those two lines replaced for the compiler: what operators do who build their
    own. The text that is compiled lies beside the program, in the cache (go build -overlay).
    """
    module = Path(__file__).resolve().parents[2] / "e2e" / "go" / "knative"
    target = _place("autoscaler-unlimited", [module / "go.mod", module / "go.sum", Path(__file__)])
    partial = target.with_suffix(".partial")

    def work(log: Path) -> None:
        listing = log.with_name("bench-modules.log")
        commands.run(["go", "mod", "download", _SERVING], listing, cwd=module)
        commands.run(["go", "list", "-m", "-f", "{{.Dir}}", _SERVING], listing, cwd=module)
        source = Path(listing.read_text(encoding="utf-8").strip()) / "cmd" / "autoscaler"
        text = (source / "main.go").read_text(encoding="utf-8")
        for limited, unlimited in _LIMITS.items():
            if limited not in text:
                raise steps.SetupError(f"{_SERVING}: its autoscaler's main has no line {limited!r} any more")
            text = text.replace(limited, unlimited)
        changed, overlay = target.with_suffix(".go"), target.with_suffix(".json")
        changed.write_text(text, encoding="utf-8")
        files = {"main.go": changed, "leaderelection.go": source / "leaderelection.go"}
        replaced = {str(module / "unlimited" / name): str(file) for name, file in files.items()}
        overlay.write_text(json.dumps({"Replace": replaced}), encoding="utf-8")
        flags: list[str | Path] = ["-trimpath", "-overlay", overlay, "-ldflags", "-s -w"]
        commands.run(["go", "build", *flags, "-o", partial, "./unlimited"], log, env=_GO, cwd=module)
        os.replace(partial, target)

    return _made("go", target, work)


def _go(name: str, folder: Path, package: str, made_from: list[Path]) -> Path | None:
    target = _place(name, made_from)
    partial = target.with_suffix(".partial")

    def work(log: Path) -> None:
        commands.run(["go", "build", "-trimpath", "-o", partial, package], log, env=_GO, cwd=folder)
        os.replace(partial, target)

    return _made("go", target, work)


def _place(name: str, made_from: list[Path]) -> Path:
    return Layout.of_user().cache / "bench" / f"{name}-{digest(made_from)}"


def _made(compiler: str, target: Path, work: Callable[[Path], None]) -> Path | None:
    if not target.exists():
        if shutil.which(compiler) is None:
            return None
        target.parent.mkdir(parents=True, exist_ok=True)
        layout = Layout.of_user()
        step = steps.Step(f"building {target.name}", target.exists, lambda: work(layout.log / "bench.log"))
        steps.run([step], layout.cache / "bench" / "lock")
    return target
