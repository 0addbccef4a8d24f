"""The layer rule as a test: .importlinter's contracts, and what core and wire may use besides themselves."""

import subprocess
import sys
from pathlib import Path

import grimp
import pytest

CLONE = Path(__file__).resolve().parents[1]


def test_imports_keep_the_contracts() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.layers"], cwd=CLONE, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("package", "allowed"), [("core", set[str]()), ("wire", {"msgspec"})])
def test_pure_packages_need_only_the_standard_library(package: str, allowed: set[str]) -> None:
    graph = grimp.build_graph("kserve_ext", include_external_packages=True, cache_dir=None)
    name = f"kserve_ext.{package}"
    modules = {name, *graph.find_descendants(name)}
    imported = {
        root.partition(".")[0]
        for module in modules
        for root in graph.find_modules_directly_imported_by(module)
    }
    assert imported - allowed - {"kserve_ext"} <= sys.stdlib_module_names


def test_a_broken_layer_is_noticed(tmp_path: Path) -> None:
    """The contracts bite: in a copy of the tree where core imports a plane and a clock, both are named."""
    for root in ("kserve_ext", "autoscaler_shim", "activator_replacement", "runtimes"):
        for source in (CLONE / root).rglob("__init__.py"):
            target = tmp_path / source.relative_to(CLONE)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
    (tmp_path / ".importlinter").write_text((CLONE / ".importlinter").read_text())
    (tmp_path / "kserve_ext/core/bad.py").write_text("import time\nimport autoscaler_shim\n")
    program = "import sys; sys.path.append(sys.argv[1]); from tools.layers import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", program, str(CLONE)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "kserve_ext.core.bad -> autoscaler_shim" in done.stdout
    assert "kserve_ext.core.bad -> time" in done.stdout
