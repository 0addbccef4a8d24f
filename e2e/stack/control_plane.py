"""etcd, the API server, the controller manager, the scheduler and kube-proxy: how each is started.

All in the node's namespace, on their usual ports. Client-side rate limits of Kubernetes' own parts are raised, as
managed clusters do; Knative's are as shipped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from e2e import build
from e2e.stack import processes
from e2e.stack.api import Api, ApiError, wait_until
from e2e.stack.place import NODE_IP, NODE_NAME, POD_RANGE, SERVICE_RANGE, Place

_ETCD = "http://127.0.0.1:2379"
_PEER = "http://127.0.0.1:2380"
_RATES = ("--kube-api-qps=2000", "--kube-api-burst=4000")
BOOT_S = 120


def start(place: Place, record: processes.Record, api_flags: Sequence[str] = ()) -> Api:
    """Returns when the API server is ready and the controllers have done a first piece of work."""
    _start_etcd(place, record)
    start_api_server(place, record, api_flags)
    api = Api(place)
    watched = ("etcd", "kube-apiserver")
    wait_until(
        "the API server's /readyz",
        lambda: _running(place, record, *watched) and api.raw("GET", "/readyz")[0] == 200,
        BOOT_S,
        0.05,
    )
    kubeconfig = f"--kubeconfig={place.kubeconfig}"
    processes.start(
        place,
        record,
        "kube-controller-manager",
        [
            str(build.program("kube-controller-manager")),
            kubeconfig,
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            # Each controller is known by a name of its own, as in most clusters.
            "--use-service-account-credentials=true",
            # A node that can't be heard of because the API server is away is not dead, and its pods are ready.
            "--node-monitor-grace-period=10m",
            f"--service-account-private-key-file={place.certificates / 'accounts.key'}",
            f"--root-ca-file={place.certificates / 'ca.crt'}",
            *_RATES,
        ],
    )
    processes.start(
        place,
        record,
        "kube-scheduler",
        [
            str(build.program("kube-scheduler")),
            kubeconfig,
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            *_RATES,
        ],
    )
    _start_proxy(place, record)
    watched = ("kube-controller-manager", "kube-scheduler")

    def first_work() -> bool:
        if not _running(place, record, *watched):
            return False
        try:
            api.get("v1", "ServiceAccount", "default", "default")
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return True

    wait_until("the controller manager's first ServiceAccount", first_work, BOOT_S)
    return api


def start_api_server(place: Place, record: processes.Record, flags: Sequence[str] = ()) -> None:
    """Also again, after it has ended: what it knew is in etcd."""
    files = place.certificates
    processes.start(
        place,
        record,
        "kube-apiserver",
        [
            str(build.program("kube-apiserver")),
            f"--etcd-servers={_ETCD}",
            "--secure-port=6443",
            "--bind-address=0.0.0.0",
            f"--advertise-address={NODE_IP}",
            "--endpoint-reconciler-type=none",
            f"--service-cluster-ip-range={SERVICE_RANGE}",
            f"--tls-cert-file={files / 'apiserver.crt'}",
            f"--tls-private-key-file={files / 'apiserver.key'}",
            f"--client-ca-file={files / 'ca.crt'}",
            f"--service-account-key-file={files / 'accounts.pub'}",
            f"--service-account-signing-key-file={files / 'accounts.key'}",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--authorization-mode=RBAC",
            f"--token-auth-file={files / 'tokens.csv'}",
            # Webhooks are then called at their endpoints, and do not need kube-proxy.
            "--enable-aggregator-routing=true",
            "--allow-privileged=true",
            "--profiling=false",
            "--v=1",
            *flags,
        ],
    )


def _running(place: Place, record: processes.Record, *names: str) -> bool:
    """A process that ended while it starts ends the waiting, with what it said last."""
    for name in names:
        if not record.processes[name].alive:
            log = place.logs / f"{name}.log"
            tail = "\n  ".join(log.read_text(errors="replace").splitlines()[-8:])
            raise RuntimeError(f"{name} ended while starting:\n  {tail}\n(all of it: {log})")
    return True


def _start_etcd(place: Place, record: processes.Record) -> None:
    processes.start(
        place,
        record,
        "etcd",
        [
            str(build.program("etcd")),
            f"--data-dir={place.folder / 'etcd'}",
            f"--listen-client-urls={_ETCD}",
            f"--advertise-client-urls={_ETCD}",
            f"--listen-peer-urls={_PEER}",
            f"--initial-advertise-peer-urls={_PEER}",
            f"--initial-cluster=default={_PEER}",
            "--unsafe-no-fsync",
            "--log-level=warn",
        ],
    )


def _start_proxy(place: Place, record: processes.Record) -> None:
    settings = place.folder / "kube-proxy.json"
    settings.write_text(
        json.dumps(
            {
                "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
                "kind": "KubeProxyConfiguration",
                "mode": "nftables",
                "clusterCIDR": POD_RANGE,
                "hostnameOverride": NODE_NAME,
                "bindAddress": NODE_IP,
                "healthzBindAddress": "127.0.0.1:10256",
                "metricsBindAddress": "127.0.0.1:10249",
                "clientConnection": {"kubeconfig": str(place.kubeconfig)},
                "nftables": {"syncPeriod": "30s", "minSyncPeriod": "0.1s"},
                # The machine's connection tracking limits are not this stack's to set.
                "conntrack": {
                    "maxPerCore": 0,
                    "min": 0,
                    "tcpEstablishedTimeout": "0s",
                    "tcpCloseWaitTimeout": "0s",
                },
            }
        ),
        encoding="utf-8",
    )
    processes.start(
        place, record, "kube-proxy", [str(build.program("kube-proxy")), f"--config={settings}", "--v=1"]
    )
