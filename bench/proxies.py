"""The proxies of bench-activator: which processes each is, where it listens, how it is started and ended."""

from __future__ import annotations

import http.client
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from bench.loads import Target
from bench.peers import build, nginx
from bench.processes import START_S, wait_listening
from bench.setting import (
    CALLS_PORT,
    EVENTS_PORT,
    HTTP_PORT,
    INSTANCE_IP,
    PROXY_CPU,
    Setting,
    Site,
)

#: What a load goes to -> the port of its instance.
ROLES = {"http": HTTP_PORT, "events": EVENTS_PORT, "calls": CALLS_PORT}
ACTIVATORS = {"ours": "ours", "activator": "stock"}
PEERS = ("activator", "rust", "go", "nginx")


class Proxy:
    """Started and ended several times: what is held is measured in fresh processes."""

    def __init__(self, name: str, site: Site) -> None:
        self.name = name
        self.site = site
        self.ports: dict[str, int] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        raise NotImplementedError

    def end(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()
        self._processes.clear()

    def pid(self, role: str) -> int:
        process = self._processes[role]
        if process.poll() is not None:
            raise SystemExit(f"{self.name} ended with status {process.returncode}")
        return process.pid

    def target(self, role: str) -> Target:
        return Target(self.ports[role], self.site.prefix)


class Activator(Proxy):
    """One process for everything; ready when every revision with an instance has been reached through it."""

    def __init__(self, name: str, setting: Setting, folder: Path) -> None:
        super().__init__(name, setting.sites[ACTIVATORS[name]])
        self.ports = {"http": 8012, "events": 8012, "calls": 8013}
        self._setting = setting
        self._log = folder / f"{name}.log"

    def start(self) -> None:
        process = self._setting.activator(ACTIVATORS[self.name], self._log)
        self._processes = dict.fromkeys(ROLES, process)
        deadline = time.monotonic() + START_S
        for revision in ("bench-00001", "events-00001", "calls-00001"):
            while (status := self._ask(revision)) != 200:
                if process.poll() is not None or time.monotonic() > deadline:
                    tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])
                    raise SystemExit(f"{self.name} does not reach {revision} ({status}):\n{tail}")
                time.sleep(0.1)

    def _ask(self, revision: str) -> int | str:
        headers = {"Knative-Serving-Namespace": "default", "Knative-Serving-Revision": revision}
        connection = http.client.HTTPConnection(self.site.address, self.ports["http"], timeout=5)
        try:
            connection.request("GET", "/", headers=headers)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException) as error:
            return repr(error)
        finally:
            connection.close()


class Plain(Proxy):
    """A process for each role; `command` gives its arguments: (role, listen, target)."""

    def __init__(
        self, name: str, site: Site, port: int, command: Callable[[str, str, str], list[str]]
    ) -> None:
        super().__init__(name, site)
        self.ports = {role: port + index for index, role in enumerate(ROLES)}
        self._command = command

    def start(self) -> None:
        for role, instance in ROLES.items():
            argv = self._command(role, f"0.0.0.0:{self.ports[role]}", f"{INSTANCE_IP}:{instance}")
            self._processes[role] = self.site.start(PROXY_CPU, *argv)
        for role, port in self.ports.items():
            wait_listening(port, f"{self.name} for {role}", self.site.address)


def proxies(setting: Setting, folder: Path, names: list[str]) -> list[Proxy]:
    """Those of `names` whose programs are there, and ours first."""
    site = setting.sites["ours"]
    go, rust = build.reverse_proxy(), build.rust_hyper()

    def peer_nginx(role: str, listen: str, target: str) -> list[str]:
        if role == "calls":
            return nginx.calls_proxy(folder, f"nginx-{role}", listen, target)
        return nginx.proxy(folder, f"nginx-{role}", listen, target, buffering=role != "events")

    def h2c(role: str) -> list[str]:
        return ["h2c"] if role == "calls" else []

    found: list[Proxy] = [Activator("ours", setting, folder)]
    if "activator" in names:
        found.append(Activator("activator", setting, folder))
    if "rust" in names and rust:
        found.append(Plain("rust", site, 7010, lambda role, *where: [str(rust), *where, *h2c(role)]))
    if "go" in names and go:
        found.append(Plain("go", site, 7020, lambda role, *where: [str(go), *where, *h2c(role)]))
    if "nginx" in names:
        found.append(Plain("nginx", site, 7030, peer_nginx))
    return found
