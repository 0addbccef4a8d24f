"""From pod files and kubeconfigs to a request that the server takes: tokens, certificates, plugins."""

from __future__ import annotations

import base64
import json
import ssl
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
import uvloop
import yaml

from kserve_ext.kube import access as access_module
from kserve_ext.kube.access import Access, AccessError, from_environment, from_kubeconfig, from_pod
from kserve_ext.kube.client import Client, KubeError, Unavailable
from kserve_ext.kube.kinds import PODS
from tests.support.api_server import ApiServer
from tests.support.certificates import Authority


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    made = Authority()
    (tmp_path / "ca.crt").write_bytes(made.pem)
    return made


def kubeconfig(folder: Path, cluster: dict[str, Any], user: dict[str, Any]) -> str:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
    }
    path = folder / "config"
    path.write_text(yaml.safe_dump(config))
    return str(path)


async def ask(access: Access) -> None:
    async with Client(access) as client:
        await client.list(PODS)


def test_a_pod_reads_its_token_again_when_the_kubelet_has_replaced_it(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with ApiServer(authority.server(tmp_path, "api")) as server:
            server.token = "first"
            (tmp_path / "token").write_text("first\n")
            port = server.url.rpartition(":")[2]
            environ = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": port}
            async with Client(from_pod(environ, tmp_path)) as client:
                await client.list(PODS)
                server.token = "second"
                (tmp_path / "token").write_text("second\n")
                await client.list(PODS)
                assert len(server.requests) == 3  # it found out by being refused
                monkeypatch.setattr(access_module, "KEEP_TOKEN_S", 0.0)
                server.token = "third"
                (tmp_path / "token").write_text("third\n")
                await client.list(PODS)
                assert len(server.requests) == 4  # it looked before it asked
                (tmp_path / "token").unlink()
                await client.list(PODS)  # the last token is better than none

    uvloop.run(main())


def test_what_a_pod_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(AccessError, match="automountServiceAccountToken"):
        from_pod({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, tmp_path)


def test_an_address_of_version_6_is_bracketed(tmp_path: Path, authority: Authority) -> None:
    (tmp_path / "token").write_text("t")
    access = from_pod({"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}, tmp_path)
    assert access.endpoint.url == "https://[fd00::1]:443"


def test_a_kubeconfig_with_a_token(tmp_path: Path) -> None:
    async def main() -> None:
        async with ApiServer() as server:
            server.token = "t"
            path = kubeconfig(tmp_path, {"server": server.url + "/"}, {"token": "t"})
            await ask(from_environment({"KUBECONFIG": path, "KUBERNETES_SERVICE_HOST": "not asked"}))
            with pytest.raises(KubeError, match="Unauthorized"):
                await ask(from_kubeconfig(kubeconfig(tmp_path, {"server": server.url}, {"token": "other"})))

    uvloop.run(main())


@pytest.mark.parametrize("inline", [True, False])
def test_a_kubeconfig_with_a_client_certificate(tmp_path: Path, authority: Authority, inline: bool) -> None:
    def entry(name: str, path: Path) -> dict[str, str]:
        if inline:
            return {f"{name}-data": base64.b64encode(path.read_bytes()).decode()}
        return {name: path.name}  # relative to the kubeconfig

    async def main() -> None:
        context = authority.server(tmp_path, "kubernetes")
        context.load_verify_locations(tmp_path / "ca.crt")
        context.verify_mode = ssl.CERT_REQUIRED
        for name, pem in zip(("me.crt", "me.key"), authority.issue("me"), strict=True):
            (tmp_path / name).write_bytes(pem)
        async with ApiServer(context) as server:
            cluster = {
                "server": server.url,
                "tls-server-name": "kubernetes",
                **entry("certificate-authority", tmp_path / "ca.crt"),
            }
            user = {
                **entry("client-certificate", tmp_path / "me.crt"),
                **entry("client-key", tmp_path / "me.key"),
            }
            await ask(from_kubeconfig(kubeconfig(tmp_path, cluster, user)))
            for broken in ({**cluster, "tls-server-name": "another"}, {"server": server.url}):
                with pytest.raises(Unavailable, match="certificate verify failed"):
                    await ask(from_kubeconfig(kubeconfig(tmp_path, broken, user)))
            careless = {"server": server.url, "insecure-skip-tls-verify": True}
            await ask(from_kubeconfig(kubeconfig(tmp_path, careless, user)))

    uvloop.run(main())


def test_a_kubeconfig_with_an_exec_plugin(tmp_path: Path) -> None:
    plugin = tmp_path / "plugin"
    credential = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": "from-plugin"},
    }
    plugin.write_text(f"#!{sys.executable}\nprint('''{json.dumps(credential)}''')\n")
    plugin.chmod(plugin.stat().st_mode | stat.S_IXUSR)

    async def main() -> None:
        async with ApiServer() as server:
            server.token = "from-plugin"
            run = {"apiVersion": credential["apiVersion"], "command": str(plugin), "interactiveMode": "Never"}
            await ask(from_kubeconfig(kubeconfig(tmp_path, {"server": server.url}, {"exec": run})))

    uvloop.run(main())


@pytest.mark.parametrize("text", [None, "", "just words", "apiVersion: v1\nkind: Config\n", "a: [b"])
def test_a_kubeconfig_of_no_use_is_named(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "config"
    if text is not None:
        path.write_text(text)
    with pytest.raises(AccessError, match=str(path)):
        from_kubeconfig(str(path))
