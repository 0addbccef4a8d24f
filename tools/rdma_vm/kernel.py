"""The kernel with soft-RoCE that the RDMA tests run on: User-Mode Linux, an ordinary program that is a kernel.

Built once from Debian's sources into the cache folder, under a name with a digest of its configuration; a build that
was cut off goes on where it stopped. One brought along is taken as it is: `GALAXY_UML_KERNEL` names it, or it lies in
the cache as rdma/uml-linux*.xz. Never installs a package: what is missing is named with the package that has it.
"""

from __future__ import annotations

import lzma
import os
import shutil
import sys
from pathlib import Path

from tools.rdma_vm import debian
from tools.setup import commands, steps
from tools.setup.layout import Layout, digest
from tools.setup.steps import SetupError

CHOSEN = "GALAXY_UML_KERNEL"
SOURCE = "linux-source-6.1"
#: Program -> the Debian package that has it.
BUILD_NEEDS = {
    "apt-get": "apt",
    "bc": "bc",
    "bison": "bison",
    "dpkg-deb": "dpkg",
    "flex": "flex",
    "gcc": "gcc",
    "make": "make",
    "nice": "coreutils",
    "tar": "tar",
    "xz": "xz-utils",
}
_XZ = b"\xfd7zXZ\0"

#: What is switched on over an empty configuration, by what it is for.
OPTIONS = {
    "programs of a Debian system": """64BIT MULTIUSER SYSVIPC POSIX_MQUEUE POSIX_TIMERS HIGH_RES_TIMERS NO_HZ_IDLE
        EPOLL EVENTFD SIGNALFD TIMERFD FUTEX SHMEM AIO ADVISE_SYSCALLS MEMBARRIER CROSS_MEMORY_ATTACH BINFMT_ELF
        BINFMT_SCRIPT FILE_LOCKING INOTIFY_USER TTY UNIX98_PTYS HW_RANDOM UML_RANDOM""",
    "what is said when it fails": "EXPERT PRINTK PRINTK_TIME BUG KALLSYMS CC_OPTIMIZE_FOR_PERFORMANCE",
    "the host's files, and an overlay": """PROC_FS PROC_SYSCTL SYSCTL SYSFS TMPFS TMPFS_XATTR DEVTMPFS HOSTFS
        OVERLAY_FS""",
    "namespaces": "NAMESPACES UTS_NS IPC_NS USER_NS PID_NS NET_NS",
    "network": """NET INET IPV6 UNIX PACKET NETDEVICES NET_CORE DUMMY VETH NET_SCHED NET_SCH_NETEM IP_ADVANCED_ROUTER
        IP_MULTIPLE_TABLES INET_DIAG UNIX_DIAG""",
    # Infiniband wants a bus that can do DMA; the one of virtio is enough, and nothing is on it.
    "RDMA": """VIRTIO_MENU VIRTIO_UML UML_PCI_OVER_VIRTIO PCI INFINIBAND INFINIBAND_USER_MAD INFINIBAND_USER_ACCESS
        INFINIBAND_ADDR_TRANS RDMA_RXE""",
    "consoles": "STDERR_CONSOLE SSL NULL_CHAN PTY_CHAN LD_SCRIPT_DYN",
}
VALUES = """CONFIG_UML_PCI_OVER_VIRTIO_DEVICE_ID=1234
CONFIG_CON_CHAN="null"
CONFIG_CON_ZERO_CHAN="null"
CONFIG_SSL_CHAN="null"
"""


def configuration() -> str:
    symbols = [symbol for words in OPTIONS.values() for symbol in words.split()]
    return "".join(f"CONFIG_{symbol}=y\n" for symbol in symbols) + VALUES


def folder(layout: Layout) -> Path:
    return layout.cache / "rdma"


def built(layout: Layout) -> Path:
    """Where the kernel of this configuration lies, built or not."""
    return folder(layout) / f"uml-{digest((), SOURCE, configuration())}" / "linux"


def find(layout: Layout) -> Path | None:
    """A kernel that can be started: the one that was chosen, else built, else brought along; None: none of them."""
    chosen = os.environ.get(CHOSEN)
    if chosen:
        path = Path(chosen).expanduser().absolute()
        if not path.is_file():
            raise SetupError(
                f"{CHOSEN} names {path}, which is no file: name a kernel (or its .xz), or unset it"
            )
        return _unpacked(path, layout)
    if built(layout).exists():
        return built(layout)
    brought = sorted(folder(layout).glob("uml-linux*.xz"))
    return _unpacked(brought[-1], layout) if brought else None


def build(layout: Layout) -> Path:
    """Builds it unless it is there: about six minutes of two idle cores."""
    target = built(layout)
    work = target.parent.with_suffix(".partial")
    source = work / SOURCE
    if not target.exists():
        require(BUILD_NEEDS, "building the kernel")
    plan = (
        steps.Step(
            f"sources of Linux ({SOURCE}, 135 MB)",
            lambda: target.exists() or (work / "unpacked").exists(),
            lambda: _unpack(work, layout),
            (work,),
        ),
        steps.Step(
            "kernel with soft-RoCE (User-Mode Linux)",
            target.exists,
            lambda: _compile(source, target, layout),
            (work,),
        ),
    )
    steps.run(plan, folder(layout) / "lock")
    return target


def require(needs: dict[str, str], what: str) -> None:
    missing = {program: package for program, package in needs.items() if shutil.which(program) is None}
    if missing:
        raise SetupError(
            f"{what} needs {', '.join(sorted(missing))}: apt install --no-install-recommends "
            f"{' '.join(sorted(set(missing.values())))}"
        )


def _unpack(work: Path, layout: Layout) -> None:
    log = layout.log / "rdma-sources.log"
    content = debian.unpack(SOURCE, work, log)
    commands.run(["tar", "-xf", content / "usr/src" / f"{SOURCE}.tar.xz", "-C", work], log)
    shutil.rmtree(content)
    (work / "fragment").write_text(configuration(), encoding="utf-8")
    (work / "unpacked").touch()


def _compile(source: Path, target: Path, layout: Layout) -> None:
    work = source.parent
    log = layout.log / "rdma-kernel.log"
    if not (source / ".config").exists():
        chosen = {"KCONFIG_ALLCONFIG": str(work / "fragment")}
        commands.run(["make", "ARCH=um", "allnoconfig"], log, env=chosen, cwd=source)
    jobs = f"-j{os.cpu_count() or 1}"
    commands.run(["nice", "-n", "10", "make", "ARCH=um", jobs, "linux"], log, cwd=source)
    commands.run(["strip", "-o", work / "linux", source / "linux"], log)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / ".config", target.parent / "config")
    os.replace(work / "linux", target)
    shutil.rmtree(work)


def _unpacked(path: Path, layout: Layout) -> Path:
    """The program behind the path; one that is compressed is unpacked into the cache, once."""
    with path.open("rb") as file:
        packed = file.read(len(_XZ)) == _XZ
    if not packed:
        return path
    target = folder(layout) / f"uml-brought-{digest([path])}" / "linux"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial")
        with lzma.open(path) as packed_file, partial.open("wb") as out:
            shutil.copyfileobj(packed_file, out)
        partial.chmod(0o755)
        os.replace(partial, target)
        print(f"rdma-vm: unpacked {path.name} into the cache", file=sys.stderr)
    return target
