"""Repacks the ordinary (CUDA) wheel of torch for machines without a GPU: 155 MB, not 527 MB and 3 GB of nvidia's.

The GPU libraries are taken out, stand-ins (stubs.py) go where the kept libraries name them, and the metadata says
`+cpu` and asks for neither nvidia's packages nor triton. libtorch_cpu.so stays as it is.
The wheel is the same on every run with the same compiler. Needs gcc and binutils.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import re
import shutil
import subprocess
import tempfile
import zipfile
from pathlib import Path

from tools.setup import elf, stubs
from tools.setup.steps import SetupError

#: Build tag of the wheel; raise it when a change here or in stubs.py must reach caches that hold an older one.
RECIPE = "1"
GPU_LIBRARIES = ("libtorch_cuda.so", "libtorch_cuda_linalg.so", "libtorch_nvshmem.so", "libcaffe2_nvrtc.so")
GPU_REQUIREMENT = re.compile(r"Requires-Dist: (nvidia|cuda|triton)[-\w]*")
ZIP_TIME = (2020, 1, 1, 0, 0, 0)


def require_tools() -> None:
    missing = [tool for tool in ("gcc", "readelf") if shutil.which(tool) is None]
    if missing:
        raise SetupError(
            f"{' and '.join(missing)} not found: no configured index has a CPU build of torch, and repacking the "
            "ordinary one needs a C compiler and binutils. Install them (Debian, Ubuntu: "
            "`apt install gcc libc6-dev binutils`; Fedora: `dnf install gcc binutils`), then run it again."
        )


def repack(wheel: Path, folder: Path) -> Path:
    """Write the CPU wheel made of `wheel` into `folder`, complete or not at all."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="repack-") as scratch:
        root = Path(scratch) / "wheel"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(root)
        replace_gpu_libraries(root / "torch" / "lib", Path(scratch))
        version = rewrite_metadata(root)
        tags = wheel.name.removesuffix(".whl").split("-", 2)[2]
        name = f"torch-{version}-{RECIPE}-{tags}.whl"
        write_wheel(root, f"torch-{version}.dist-info/RECORD", Path(scratch) / name)
        os.replace(Path(scratch) / name, folder / name)
    return folder / name


def replace_gpu_libraries(lib: Path, scratch: Path) -> None:
    dropped: dict[str, elf.Symbol] = {}
    for name in GPU_LIBRARIES:
        dropped.update(elf.read(lib / name).defined)
        (lib / name).unlink()
    kept = [elf.read(path) for path in sorted(lib.glob("lib*.so*"))]
    for stub in stubs.plan(kept, dropped).values():
        compile_stub(stub, lib / stub.soname, scratch)


def compile_stub(stub: stubs.Stub, path: Path, scratch: Path) -> None:
    code, script = scratch / "stub.c", scratch / "stub.map"
    code.write_text(stubs.source(stub), encoding="utf-8")
    script.write_text(stubs.version_script(stub), encoding="utf-8")
    command = [
        "gcc",
        "-shared",
        "-fPIC",
        "-O1",
        "-w",
        f"-Wl,-soname,{stub.soname}",
        str(code),
        "-o",
        str(path),
    ]
    if script.stat().st_size:
        command.append(f"-Wl,--version-script={script}")
    # The run-time library by its file name: the development package of C++ is not needed.
    command.append("-l:libstdc++.so.6")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SetupError(f"gcc could not make the stand-in for {stub.soname}:\n{done.stderr}")


def rewrite_metadata(root: Path) -> str:
    """Mark the unpacked wheel as a CPU build; returns its new version."""
    (info,) = root.glob("torch-*.dist-info")
    plain = info.name.removeprefix("torch-").removesuffix(".dist-info")
    version = f"{plain}+cpu"
    info = info.rename(root / f"torch-{version}.dist-info")
    lines = (info / "METADATA").read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [f"Version: {version}\n" if line.strip() == f"Version: {plain}" else line for line in lines]
    (info / "METADATA").write_text(
        "".join(line for line in kept if not GPU_REQUIREMENT.match(line)), encoding="utf-8"
    )
    facts = root / "torch" / "version.py"
    text = re.sub(r"(?m)^__version__ = .*$", f"__version__ = '{version}'", facts.read_text(encoding="utf-8"))
    facts.write_text(re.sub(r"(?m)^cuda(: [^=]*)? = .*$", "cuda = None", text), encoding="utf-8")
    return version


def write_wheel(root: Path, record: str, wheel: Path) -> None:
    """Zip the folder with a fresh RECORD, in a fixed order and with fixed times."""
    rows = io.StringIO()
    table = csv.writer(rows, lineterminator="\n")
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path in sorted(file for file in root.rglob("*") if file.is_file()):
            name = path.relative_to(root).as_posix()
            if name == record:
                continue
            data = path.read_bytes()
            sha256 = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            table.writerow((name, f"sha256={sha256}", len(data)))
            archive.writestr(entry(name), data)
        table.writerow((record, "", ""))
        archive.writestr(entry(record), rows.getvalue())


def entry(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, ZIP_TIME)
    info.compress_type = zipfile.ZIP_DEFLATED
    runs = ".so" in name or name.startswith("torch/bin/")
    info.external_attr = (0o755 if runs else 0o644) << 16
    return info
