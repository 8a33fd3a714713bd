"""What this worker tells the scheduler about itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sealane.errors import FailedPrecondition
from sealane.inference.v1 import sealed_inference_service_pb2 as sealed
from sealane.rpc.middleware import Limits
from sealane.scheduler.v1 import fleet_service_pb2, node_service_pb2
from sealane.security.sealing_messages import message_of
from sealane.security.sealing_policy import SealingPolicy
from sealane_worker import machine
from sealane_worker.link_meter import LinkMeter
from sealane_worker.offer import Offered
from sealane_worker.sealing import SealingKey


@dataclass(slots=True)
class Introduction:
    """Makes registrations and heartbeats.

    Attributes:
        node: node id.
        data_dir: folder whose disk counts.
        runtimes: what models are loaded with.
        price_per_hour: in units of currency.
        labels: ``key=value`` each.
        sealing: gives the sealing statement.
        limits: knows the calls in flight.
        sandbox: level that this machine's kernel gives models.
        endpoint: where clients in reach can call; known once the listener is bound.
        egress_per_gib: price of what leaves this machine.
        watts: what it draws while it works beyond what it draws idle; 0 where that is not known.
        meter: knows how fast the connection is.
    """

    node: str
    data_dir: Path
    runtimes: Mapping[str, Offered]
    price_per_hour: float
    labels: tuple[str, ...]
    sealing: SealingKey
    limits: Limits
    sandbox: str = "none"
    endpoint: str = ""
    egress_per_gib: float = 0.0
    watts: float = 0.0
    meter: LinkMeter = field(default_factory=LinkMeter)

    @property
    def tls_name(self) -> str:
        """Name in this worker's certificate."""
        return f"{self.node}.node.sealane"

    @property
    def accelerator(self) -> str:
        """The device beside the processor that most runtimes find here; empty where there is none."""
        found = [device for offer in self.runtimes.values() for device in offer.devices if device != "cpu"]
        return max(sorted(set(found)), key=found.count, default="")

    def candidate(self, variant_digest: str, policies: Iterable[SealingPolicy]) -> sealed.SealingCandidate:
        """This worker as somebody to seal to.

        Raises:
            FailedPrecondition: auth does not vouch for the key now; only unsealed calls are possible.
        """
        if not self.sealing.statement:
            raise FailedPrecondition(
                "this worker is cut off from auth, so nobody vouches for its sealing key; call it unsealed or wait",
                reason="NO_SEALING_STATEMENT",
            )
        return sealed.SealingCandidate(
            statement=self.sealing.statement,
            variant_digest=variant_digest,
            address=self.endpoint,
            tls_name=self.tls_name,
            policies=[message_of(policy) for policy in policies],
        )

    def register(self) -> fleet_service_pb2.Register:
        """The first message of a stream, what is served left out; measures the machine, which takes about 50 ms."""
        measured = machine.measure(self.data_dir)
        return fleet_service_pb2.Register(
            sealing_statement=self.sealing.statement,
            capacity=node_service_pb2.Capacity(
                cpu_milli=measured.cpu_milli,
                memory_bytes=measured.memory_bytes,
                disk_bytes=measured.disk_bytes,
                device_class=measured.device_class,
                accelerator=self.accelerator,
                speed=measured.speed,
            ),
            runtimes=[
                node_service_pb2.Runtime(name=name, version=offer.version, formats=offer.formats, devices=offer.devices)
                for name, offer in self.runtimes.items()
            ],
            price_per_hour=self.price_per_hour,
            egress_per_gib=self.egress_per_gib,
            watts=self.watts,
            labels={**dict(label.partition("=")[::2] for label in self.labels), "sandbox": self.sandbox},
            endpoint=self.endpoint,
            tls_name=self.tls_name,
        )

    def heartbeat(self) -> fleet_service_pb2.Heartbeat:
        """A sign of life."""
        down, up = self.meter.speeds
        link = node_service_pb2.Link(down_bytes_per_second=down, up_bytes_per_second=up)
        return fleet_service_pb2.Heartbeat(
            link=link if down or up else None,
            sealing_statement=self.sealing.statement,
            in_flight=self.limits.in_flight,
            free_memory_bytes=machine.free_memory_bytes(),
        )
