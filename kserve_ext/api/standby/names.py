"""What a standby pod, its node's agent and the autoscaler call things: labels, variables, paths, ports."""

from __future__ import annotations

from typing import Final

from kserve_ext.api.annotations import PREFIX

#: On every standby pod, adopted or not: its pool.
POOL_LABEL: Final = PREFIX + "standby-pool"
COMPONENT_LABEL: Final = "app.kubernetes.io/component"
PART_LABEL: Final = "app.kubernetes.io/part-of"
PART: Final = "kserve-galaxy"
COMPONENT: Final = "standby"
#: Pods of the DaemonSet, in the system namespace.
AGENT_COMPONENT: Final = "node-agent"
#: The name of the port on which an agent answers autoscalers, and its number where the pod doesn't say.
AGENT_PORT_NAME: Final = "rpc"
AGENT_PORT: Final = 8015

ENGINE: Final = PREFIX + "engine"
SIZE: Final = PREFIX + "standby"
LEVEL: Final = PREFIX + "standby-level"
MODELS: Final = PREFIX + "standby-models"
ZYGOTE: Final = PREFIX + "zygote"

#: Of a PodAutoscaler's status: conditions, and an annotation with the last starts as JSON.
STANDBY_READY: Final = "StandbyReady"
STANDBY_USED: Final = "StandbyUsed"
STARTS: Final = PREFIX + "standby-starts"

#: The folder of the agent's socket, on the node and in its pods.
SOCKET_FOLDER: Final = "/run/kserve-galaxy"
SOCKET: Final = SOCKET_FOLDER + "/agent.sock"
TOKEN_FOLDER: Final = "/var/run/secrets/kserve-galaxy.io"
TOKEN: Final = TOKEN_FOLDER + "/token"
AUDIENCE: Final = "kserve-galaxy.io"
#: Below it each Secret and ConfigMap that a variable comes from, by kind and name.
VALUES: Final = "/var/run/galaxy-values"
#: Below it each PersistentVolumeClaim of the pool is mounted whole, by its name.
CLAIMS: Final = "/mnt/galaxy"

#: What a standby pod runs.
COMMAND: Final = ("python", "-m", "autoscaler_shim.slot")
#: Its environment.
ENV_POOL: Final = "GALAXY_POOL"
ENV_LEVEL: Final = "GALAXY_SLOT_LEVEL"
#: The package whose zygote it keeps.
ENV_RUNTIME: Final = "GALAXY_ZYGOTE"
#: Of S1: the engine's arguments as JSON, without those that name the model.
ENV_SHAPE: Final = "GALAXY_SLOT_SHAPE"
#: Of S2: the engines that sleep in the pod, as JSON, and how much memory it may have.
ENV_ENGINES: Final = "GALAXY_SLOT_ENGINES"
ENV_HOST_MIB: Final = "GALAXY_SLOT_HOST_MIB"
ENV_GPUS: Final = "GALAXY_SLOT_GPUS"
#: With ":" between them: folders that are the pod's alone, and mounts that aren't.
ENV_SCRATCH: Final = "GALAXY_SLOT_SCRATCH"
ENV_SHARED: Final = "GALAXY_SLOT_SHARED"
ENV_SOCKET: Final = "GALAXY_AGENT_SOCKET"
ENV_TOKEN: Final = "GALAXY_TOKEN_FILE"
#: With ":" between them: folders with the Secrets and ConfigMaps that its variables come from.
ENV_VALUES: Final = "GALAXY_SLOT_VALUES"
#: What no server is told, since it is the slot's: names, and how some begin.
OF_SLOTS: Final = (ENV_POOL, ENV_RUNTIME, ENV_SOCKET, ENV_TOKEN, "GALAXY_FRONT_HOST")
OF_SLOTS_PREFIX: Final = "GALAXY_SLOT_"

#: queue-proxy's, which the front answers.
HTTP_PORT: Final = 8012
HTTP2_PORT: Final = 8013
HTTPS_PORT: Final = 8112
ADMIN_PORT: Final = 8022
METRICS_PORT: Final = 9090
USER_METRICS_PORT: Final = 9091
DRAIN_PATH: Final = "/wait-for-drain"

#: While an adopted pod changes hands: what its ReplicaSet's controller may not do with it yet (settling.py). Once it
#: is its own for good, the label goes.
ADOPTION: Final = PREFIX + "adoption"
POLICY: Final = "galaxy-standby-adoption"
#: It can't become the ReplicaSet's, which does nothing at all meanwhile.
HELD: Final = "held"
#: It can, but is not deleted as one too many.
GUARDED: Final = "guarded"

REVISION_UID_LABEL: Final = "serving.knative.dev/revisionUID"
TEMPLATE_HASH: Final = "pod-template-hash"
DELETION_COST: Final = "controller.kubernetes.io/pod-deletion-cost"
#: An adopted pod goes before others of its revision when that shrinks.
GOES_FIRST: Final = "-100"
#: Of a Deployment: rises with its template, not with its scale.
TEMPLATE_REVISION: Final = "deployment.kubernetes.io/revision"
