"""A container for a process of a test: a root of its own, as a kubelet would make it for a pod without rights.

Another user, no capability and none to gain; its root may be read-only, /tmp and /dev/shm are its own. What Python
needs of this machine is bound at its own path. It takes root and util-linux.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
USER = 65532
_OF_THE_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/sys")
#: $1: where the root is made; $2: ro or rw; $3: working directory; folders bound read-only, "--", and others, "--".
_SCRIPT = f"""
new=$1 root=$2 cwd=$3 how=ro
shift 3
mount --make-rprivate /
mkdir -p "$new"
mount -t tmpfs -o mode=755 tmpfs "$new"
mkdir -p "$new/dev/shm" "$new/proc" "$new/tmp" "$new/etc" "$new/srv"
chmod 777 "$new/srv"
mount -t tmpfs -o mode=1777 tmpfs "$new/tmp"
mount -t tmpfs -o mode=1777 tmpfs "$new/dev/shm"
mount -t proc proc "$new/proc"
for device in null zero random urandom termination-log; do
    : > "$new/dev/$device"
    source=/dev/$device
    [ -e "$source" ] || source=/dev/null
    mount --bind "$source" "$new/dev/$device"
done
while [ $# -gt 0 ]; do
    path=$1
    shift
    if [ "$path" = -- ]; then
        [ $how = ro ] || break
        how=rw
    elif [ -L "$path" ]; then
        cp -P "$path" "$new$path"
    elif [ -d "$path" ]; then
        mkdir -p "$new$path"
        mount --bind "$path" "$new$path"
        mount -o remount,bind,$how "$new$path"
    fi
done
[ "$root" = rw ] || mount -o remount,bind,ro "$new"
exec chroot "$new" setpriv --reuid={USER} --regid={USER} --clear-groups --no-new-privs --bounding-set=-all \\
    --inh-caps=-all sh -ec 'cd "$1" && shift && exec "$@"' sh "$cwd" "$@"
"""


def restricted(folder: Path, *, read_only: bool = True) -> tuple[str, ...]:
    """What runs a command so; `folder` is the test's own, and can be written to."""
    folder.chmod(0o755)
    found = {str(ROOT), sys.base_prefix, *(path for path in sys.path if path.startswith("/"))}
    needed = sorted(path for path in found if not path.startswith(_OF_THE_SYSTEM))
    namespaces = ("unshare", "--mount", "--pid", "--fork", "--kill-child")
    made = (str(folder / "root"), "ro" if read_only else "rw", str(ROOT))
    return (
        *(*namespaces, "sh", "-ec", _SCRIPT, "sh", *made),
        *(*_OF_THE_SYSTEM, *needed, "--", str(folder), "--"),
    )


@functools.cache
def why_not() -> str:
    """Why no such container can be made here; "" = it can."""
    tools = ("unshare", "setpriv", "chroot", "mount")
    if os.getuid() != 0 or not all(map(shutil.which, tools)):
        return f"a container takes root and {', '.join(tools)}"
    trial = ["unshare", "--mount", "--pid", "--fork", "mount", "-t", "tmpfs", "x", "/mnt"]
    return (
        "" if subprocess.run(trial, capture_output=True).returncode == 0 else "no namespace can be made here"
    )
