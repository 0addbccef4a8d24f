"""The nouns that the functions tell each other about: resources, revisions, instances, nodes, the view.

They are NamedTuples because every one of them crosses a process boundary: a tuple is what the wire format
encodes most compactly (kserve_ext/wire/messages/), and core/ may import nothing that knows about wires.
New fields go at the end and have a default, so that two releases can talk to each other.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from kserve_ext.core.ids import FunctionID, InstanceID, NodeID, RevisionKey

Kind = Literal["controller", "cluster_mgr", "schedule", "dispatch", "node", "objects"]
Role = Literal["unified", "prefill", "decode"]
Preload = Literal["none", "node", "fluid"]
Affinity = Literal["none", "session", "prefix"]
Placement = Literal["auto", "pack", "spread"]
Label = tuple[str, str]
InstanceState = Literal["reserved", "fetching", "starting", "ready", "draining", "failed", "gone"]


class Resources(NamedTuple):
    """What a node has, or an instance needs. All are counts of a unit that can't be over-committed."""

    cpu_milli: int = 0
    memory_mib: int = 0
    gpus: int = 0
    gpu_memory_mib: int = 0
    rdma: int = 0

    def fits(self, free: Resources) -> bool:
        return (  # written out: it is asked of every node for every placement
            self[0] <= free[0]
            and self[1] <= free[1]
            and self[2] <= free[2]
            and self[3] <= free[3]
            and self[4] <= free[4]
        )

    def most(self, other: Resources) -> Resources:
        """The larger of each: what fits into neither fits into nothing that is smaller than this."""
        a, b = self, other
        return Resources(
            a[0] if a[0] > b[0] else b[0],
            a[1] if a[1] > b[1] else b[1],
            a[2] if a[2] > b[2] else b[2],
            a[3] if a[3] > b[3] else b[3],
            a[4] if a[4] > b[4] else b[4],
        )

    def plus(self, other: Resources) -> Resources:
        a, b = self, other
        return Resources(a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3], a[4] + b[4])

    def minus(self, other: Resources) -> Resources:
        a, b = self, other
        return Resources(a[0] - b[0], a[1] - b[1], a[2] - b[2], a[3] - b[3], a[4] - b[4])

    def short_of(self, free: Resources) -> str:
        """Why this does not fit into `free`, for a person: "cpu: needs 2000m, 500m free; ..."; "" if it fits."""
        units = ("m", " MiB", "", " MiB", "")
        names = ("cpu", "memory", "gpus", "gpu memory", "rdma devices")
        return "; ".join(
            f"{name}: needs {need}{unit}, {have}{unit} free"
            for name, unit, need, have in zip(names, units, self, free, strict=True)
            if need > have
        )


class Hold(NamedTuple):
    """Bounds of holding requests while no slot is free (annotations hold-*)."""

    seconds: float = 300.0
    requests: int = 10_000
    bytes: int = 64 * 1024 * 1024


class Command(NamedTuple):
    """How an instance is started: argv after templating and concatenation, and its environment.

    The node agent replaces the mount path of the model (`model_mount`) in argv and env values by the folder
    in which it has the model, and appends nothing.
    """

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    runtime: str = ""  # name of the (Cluster)ServingRuntime, for people
    zygote: str = ""  # Python module that a zygote has imported (e.g. runtimes.vllm_pd); "" = plain exec
    port_arg: str = "--port"  # the option whose value the agent sets to the port that it chose
    drain_s: float = 30.0
    start_timeout_s: float = 300.0
    ready_path: str = ""  # of a plain exec'ed server: HTTP GET there must answer 200; "" = its port accepts


class Model(NamedTuple):
    """Where the model comes from, and what the node cache calls it."""

    uri: str = ""  # file:///path, or pvc://claim/path as written by the user
    path: str = ""  # the local folder that the URI stands for
    mount: str = "/mnt/models"  # the path that argv and env use for it
    preload: Preload = "none"

    @property
    def key(self) -> str:
        """What node status lists when the node holds this model."""
        return self.uri


class Scale(NamedTuple):
    """Bounds and KPA settings in the form that home hands to core/scaling (annotations of Knative)."""

    min: int = 0
    max: int = 0  # 0 = unbounded
    initial: int = 1
    activation: int = 1
    metric: Literal["concurrency", "rps"] = "concurrency"
    target: float = 0.0  # 0 = containerConcurrency if set, else 100
    utilization: float = 0.7
    target_burst_capacity: float = -1.0
    window_s: float = 60.0
    panic_window_percent: float = 10.0
    panic_threshold_percent: float = 200.0
    max_up_rate: float = 1000.0
    max_down_rate: float = 2.0
    scale_down_delay_s: float = 0.0
    grace_s: float = 30.0
    retention_s: float = 0.0
    algorithm: Literal["linear", "weighted-exponential"] = "linear"  # of the windows
    to_zero: bool = True  # config-autoscaler's enable-scale-to-zero


class Revision(NamedTuple):
    """Everything that the functions need to know of one revision. Immutable: a change is a new revision."""

    key: RevisionKey  # namespace/name
    service: str  # namespace/name of the InferenceService it belongs to
    generation: int
    command: Command
    model: Model
    needs: Resources
    scale: Scale
    hold: Hold = Hold()
    role: Role = "unified"
    group: str = ""  # namespace/name of its pd-group, "" = none
    concurrency: int = 0  # hard limit per instance (containerConcurrency), 0 = unlimited
    timeout_s: float = 300.0
    pd_ratio: tuple[int, int, int, int] | None = None  # min p:d, max p:d
    affinity: Affinity = "none"
    tenant_header: str = ""
    created_at: float = 0.0  # unix seconds
    continuation: bool = True  # a stream whose instance dies goes on at another
    node_selector: tuple[Label, ...] = ()  # labels that a node must have
    placement: Placement = "auto"  # pack: where it needs GPUs, else spread
    priority: int = 0  # of its PriorityClass
    preempts: bool = False  # lower priorities make room for it

    @property
    def namespace(self) -> str:
        return self.key.partition("/")[0]

    @property
    def home_key(self) -> str:
        """What the home is chosen by: both revisions of a group have one home, so that a gang is one decision."""
        return self.group or self.key


class Mark(NamedTuple):
    """One point in the life of an instance or request: a word and when (unix seconds)."""

    name: str
    at: float
    detail: str = ""


class Instance(NamedTuple):
    """What a node says of one of its instances."""

    id: InstanceID
    revision: RevisionKey
    node: NodeID
    state: InstanceState
    addr: str = ""  # host:port of its HTTP server, "" until it listens
    generation: int = 0  # incarnation of the process; a channel to another one is void
    epoch: int = 0  # of the view under which it was started
    reason: str = ""  # why it failed or is gone, with the remedy
    permanent: bool = False  # the same start would fail again (bad argument, broken model)
    marks: tuple[Mark, ...] = ()


class Holding(NamedTuple):
    """What the instances of one revision hold of a node, those that drain left out."""

    revision: RevisionKey
    home_key: str
    priority: int
    needs: Resources  # of each
    instances: int
    newest_at: float  # when the last of them was decided on, unix seconds


class NodeStatus(NamedTuple):
    """What a node agent says of its node; `seq` orders the statuses of one incarnation."""

    node: NodeID
    addr: str
    incarnation: int
    seq: int
    capacity: Resources
    free: Resources
    slots: tuple[tuple[str, int], ...] = ()  # zygotes ready, by module
    models: tuple[str, ...] = ()  # Model.key of those in the node's cache
    instances: int = 0
    accepting: bool = True
    labels: tuple[Label, ...] = ()
    holdings: tuple[Holding, ...] = ()


class Member(NamedTuple):
    """One function or node in the view."""

    id: FunctionID
    kind: Kind
    addr: str  # host:port of its rpc server
    incarnation: int  # unix nanoseconds at start: a higher one replaces a lower one
    info: tuple[tuple[str, str], ...] = ()  # e.g. ("http", "127.0.0.1:8081")
    draining: bool = False  # it hands over and goes: nobody routes to it any more


class Left(NamedTuple):
    """A Dispatch function or node that left the view so lately that it may still be alive.

    Who it is is UNKNOWN where the controller itself doesn't know which Dispatch functions left.
    """

    id: FunctionID
    incarnation: int
    addr: str
    age_s: float  # at the making of the view: since then it is longer
    kind: Kind = "dispatch"


UNKNOWN: Final = FunctionID("?")


class View(NamedTuple):
    """Who is in the cluster, and who has which node. Epochs only grow; members are in order of id.

    Who has a node is read with core/partitions.py: `owners(view, kind)`.
    """

    epoch: int = 0
    members: tuple[Member, ...] = ()
    partitions: tuple[int, ...] = ()  # of each node, in order: the index of its Schedule function among these
    shares: tuple[int, ...] = ()  # likewise its ClusterMgr function
    left: tuple[Left, ...] = ()  # in order of id; for those who weren't there to see it

    def of(self, kind: Kind) -> tuple[Member, ...]:
        """Those that work is divided among: a draining one is still a member, and gets none."""
        return tuple(m for m in self.members if m.kind == kind and not m.draining)

    def member(self, member_id: str) -> Member | None:
        return next((m for m in self.members if m.id == member_id), None)
