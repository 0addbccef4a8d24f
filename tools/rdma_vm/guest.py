"""What runs inside the machine before and after the command: shell, as the kernel's first process.

The first part sees the host's root, read-only, and puts a writable layer over it; the second one makes the links and
RDMA devices, runs the command and leaves its status. Needs only what every Debian has, and iproute2.

Soft-RoCE of Linux 6.1 receives in the first network namespace only, so both devices of a pair live there; a process
may have a network namespace of its own all the same and use them. Rules of their own keep the pair's packets on the
wire between them: without these the kernel would hand packets for its own addresses to itself.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

CONTROL = "/run/rdma-vm"
_OFF = "perl -e 'syscall(169, 0xfee1dead, 672274793, 0x4321fedc, 0)'"  # reboot(2): power off

_ONE = """
ip link add rd0 type dummy
ip link set rd0 address 02:00:00:00:00:01 mtu 9000 up
ip addr add 192.0.2.1/24 dev rd0
rdma link add rxe0 type rxe netdev rd0 || echo 'no rxe0' > /dev/console
"""

# Also run by tests after they have taken a link down: what goes with a link comes back here.
_PAIR_UP = """
for n in 1 2; do
    other=$((3 - n))
    ip link set rd$n up
    ip neigh replace 198.51.100.$other lladdr 02:00:00:00:01:0$other dev rd$n nud permanent
    ip route replace 198.51.100.$other dev rd$n src 198.51.100.$n table 10$n
done
"""

_PAIR = (
    """
ip link add rd1 type veth peer name rd2
for n in 1 2; do
    echo 1 > /proc/sys/net/ipv6/conf/rd$n/disable_ipv6
    echo 1 > /proc/sys/net/ipv4/conf/rd$n/accept_local
    echo 0 > /proc/sys/net/ipv4/conf/rd$n/rp_filter
    ip link set rd$n address 02:00:00:00:01:0$n mtu 9000 up
    ip addr add 198.51.100.$n/24 dev rd$n
    ip rule add pref $n iif rd$n lookup local
    ip rule add pref 1$n to 198.51.100.$((3 - n)) lookup 10$n
done
echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter
ip rule add pref 20 lookup local
ip rule del pref 0
"""
    + _PAIR_UP
    + """
for n in 1 2; do rdma link add rxe$n type rxe netdev rd$n || echo "no rxe$n" > /dev/console; done
"""
)

#: `one`: rxe0 on an interface of its own; `pair`: also rxe1 and rxe2 with a wire between them.
LINKS = {"none": "", "one": _ONE, "pair": _ONE + _PAIR}


def write(
    control: Path,
    command: Sequence[str],
    links: str,
    env: Mapping[str, str],
    cwd: Path,
    folders: Sequence[Path] = (),
) -> None:
    """Puts all scripts into the control folder. `folders` are the host's own, writable, where others are fresh."""
    _script(control / "first", _first(control, folders))
    _script(control / "second", _SECOND)
    _script(control / "links", LINKS[links])
    _script(control / "links-up", _PAIR_UP if links == "pair" else "")
    exports = [f"export {name}={shlex.quote(value)}" for name, value in env.items() if name.isidentifier()]
    into = f"cd {shlex.quote(str(cwd))} || exit 125"
    _script(control / "command", "\n".join([*exports, into, f"exec {shlex.join(command)}", ""]))


def _script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}", encoding="utf-8")
    path.chmod(0o755)


def _first(control: Path, folders: Sequence[Path]) -> str:
    mounts = "".join(
        f"mkdir -p {inside}\nmount -t hostfs -o {outside} own {inside} || {_OFF}\n"
        for outside, inside in ((shlex.quote(str(path)), shlex.quote(f"/run/root{path}")) for path in folders)
    )
    return f"""
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t tmpfs run /run || {_OFF}
mkdir /run/writable /run/root
mount -t tmpfs -o size=90% writable /run/writable
mkdir /run/writable/upper /run/writable/work
layers=lowerdir=/,upperdir=/run/writable/upper,workdir=/run/writable/work
mount -t overlay -o $layers,xino=off root /run/root || {_OFF}
mount -t tmpfs tmp /run/root/tmp
mount -t tmpfs run /run/root/run
mkdir {"/run/root" + CONTROL}
mount -t hostfs -o {shlex.quote(str(control))} control {"/run/root" + CONTROL} || {_OFF}
{mounts}cd /run/root
mount --move . / && exec chroot . {CONTROL}/second
{_OFF}
"""


_SECOND = f"""
C={CONTROL}
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev 2> /dev/null
mkdir -p /dev/pts /dev/shm
mount -t devpts -o ptmxmode=0666 devpts /dev/pts
ln -sfn /proc/self/fd /dev/fd
for n in 0:stdin 1:stdout 2:stderr; do ln -sfn /proc/self/fd/${{n%:*}} /dev/${{n#*:}}; done
mount -t tmpfs shm /dev/shm
chmod 1777 /tmp /dev/shm
mount --bind $C/cpuinfo /proc/cpuinfo
echo rdma-vm > /proc/sys/kernel/hostname
ulimit -l unlimited
ulimit -n 65536
ip link set lo up
. $C/links
mkfifo /run/out /run/err
for tty in 1 2; do stty raw -echo < /dev/tty$tty; done
cat < /run/out > /dev/tty1 & out=$!
cat < /run/err > /dev/tty2 & err=$!
setsid $C/command < /dev/null > /run/out 2> /run/err & command=$!
wait $command
echo $? > $C/status
# What the command left running may hold its output open.
(sleep 2; kill $out $err) 2> /dev/null &
wait $out $err
sync
umount $C 2> /dev/null || mount -o remount,ro $C
{_OFF}
"""
