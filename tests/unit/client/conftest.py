"""A gateway-like front, two workers, auth and routing in this process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from client_site import SECRET, Auth, Deployments, Listener, Only, Routing, Worker, certificate

from sealane.auth.v1 import token_service_pb2
from sealane.client import Client, ClientCredentials, Credentials
from sealane.compat.openinference.v2 import openinference_pb2
from sealane.compat.tfserving.v1 import tfserving_pb2
from sealane.inference.v1 import sealed_inference_service_pb2
from sealane.rpc.dispatch import Served
from sealane.scheduler.v1 import deployment_service_pb2, routing_service_pb2
from sealane.security import tls


@dataclass
class Site:
    """Everything a client talks to, within reach of a test."""

    identity: tls.PeerIdentity
    auth: Auth
    routing: Routing
    workers: list[Worker]
    listeners: dict[str, Listener]

    def client(self, credentials: Credentials | None = None) -> Client:
        endpoints = {
            "auth": self.listeners["control"].address,
            "scheduler": self.listeners["control"].address,
            "inference": self.listeners["edge-1"].address,
        }
        return Client(
            endpoints,
            trust_bundle=self.identity.trust_bundle,
            credentials=credentials or ClientCredentials("camera@p", SECRET),
            timeout=5.0,
        )


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    services = [f"{name}.service.sealane" for name in ("auth", "scheduler", "inference")]
    identity = certificate(tmp_path / "tls", *services, "edge-1.node.sealane", "edge-2.node.sealane")
    auth, routing = Auth(), Routing()
    workers = [Worker("edge-1", auth), Worker("edge-2", auth)]
    listeners = {
        worker.node: Listener(
            identity,
            [
                Served(
                    Only(worker),
                    openinference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"],
                    foreign_name="inference.GRPCInferenceService",
                ),
                Served(
                    Only(worker),
                    tfserving_pb2.DESCRIPTOR.services_by_name["PredictionService"],
                    foreign_name="tensorflow.serving.PredictionService",
                ),
                Served(worker, sealed_inference_service_pb2.DESCRIPTOR.services_by_name["SealedInferenceService"]),
            ],
            "sealane-inference",
            auth,
        )
        for worker in workers
    }
    control = [
        Served(auth, token_service_pb2.DESCRIPTOR.services_by_name["TokenService"]),
        Served(Only(Deployments()), deployment_service_pb2.DESCRIPTOR.services_by_name["DeploymentService"]),
        Served(routing, routing_service_pb2.DESCRIPTOR.services_by_name["RoutingService"]),
    ]
    listeners["control"] = Listener(identity, control, "sealane-scheduler", auth)
    for worker in workers:
        endpoint = routing.route.endpoints.add(node=worker.node, tls_name=f"{worker.node}.node.sealane")
        worker.address = endpoint.address = listeners[worker.node].address
    yield Site(identity, auth, routing, workers, listeners)
    for listener in listeners.values():
        listener.close()


@pytest.fixture
def client(site: Site) -> Iterator[Client]:
    with site.client() as client:
        yield client
