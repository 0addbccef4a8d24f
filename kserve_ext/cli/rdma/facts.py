"""What is known of a machine, as the checks see it: plain values, read by reading.py and judged by findings.py."""

from __future__ import annotations

from dataclasses import dataclass, field

from runtimes.transport.verbs.choice import Device, Port, Wanted


@dataclass(frozen=True, slots=True)
class PortFacts:
    """A port as the transport would see it, and what only people want to know."""

    port: Port
    state: str  # "ACTIVE", "DOWN"
    rate: str = ""  # "100 Gb/sec (4X EDR)"
    interface: str = ""  # the network interface below it; "" on InfiniBand
    interface_mtu: int = 0
    #: Priorities with priority flow control; None where nobody could be asked.
    pfc: tuple[int, ...] | None = None
    #: Priorities with congestion notification (ECN); None where the driver doesn't say.
    ecn: tuple[int, ...] | None = None
    #: Error and congestion counters that are not zero.
    counters: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    name: str
    ports: tuple[PortFacts, ...]
    driver: str = ""  # of the PCI device; "" for a device in software
    address: str = ""  # of the PCI device: "0000:3b:00.0"
    file: str = ""  # "uverbs0"; "" when the kernel offers none
    opens: bool = False  # whether this process may open it
    virtual: bool = False  # a virtual function
    #: Virtual functions that exist and that there may be; None where the device can't have any.
    functions: tuple[int, int] | None = None

    def device(self) -> Device:
        return Device(self.name, tuple(each.port for each in self.ports))


@dataclass(frozen=True, slots=True)
class Facts:
    devices: tuple[DeviceFacts, ...] = ()
    #: Network interfaces on hardware, with the driver of each.
    drivers: dict[str, str] = field(default_factory=dict)
    modules: frozenset[str] = frozenset()
    #: Why pyverbs can't be loaded; "" when it can.
    pyverbs: str = ""
    locked: int | None = None  # bytes that may be locked; None: any number
    ipc_lock: bool = False
    gpu: str = ""  # first line about NVIDIA's driver; "" without one
    #: PCI addresses that a device plugin gave to this container, by the variable that says so.
    granted: dict[str, tuple[str, ...]] = field(default_factory=dict)
    wanted: Wanted = field(default_factory=Wanted)
