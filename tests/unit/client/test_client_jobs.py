"""Waiting for jobs and deployments: what is said when they fail, and what a broken stream does."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from client_site import certificate

from sealane.client import Client, StaticToken
from sealane.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, Unavailable
from sealane.scheduler.v1 import (
    deployment_service_pb2,
    deployment_service_pb2_grpc,
    job_service_pb2,
    job_service_pb2_grpc,
)
from sealane.security import tls

JOB = job_service_pb2.Job
DEPLOYMENT = deployment_service_pb2.Deployment


class Scheduler(job_service_pb2_grpc.JobServiceServicer, deployment_service_pb2_grpc.DeploymentServiceServicer):
    """Plays scripted states; a stream ends, or breaks, after each script."""

    def __init__(self) -> None:
        self.scripts: list[list[JOB]] = []
        self.deployments: list[DEPLOYMENT] = []
        self.created: list[deployment_service_pb2.CreateDeploymentRequest] = []

    def WatchJob(self, request: job_service_pb2.WatchJobRequest, context: grpc.ServicerContext) -> Iterator[JOB]:
        script = self.scripts.pop(0) if self.scripts else []
        yield from script
        if not script or script[-1].state == JOB.STATE_RUNNING:
            context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")

    def GetDeployment(self, request: object, context: grpc.ServicerContext) -> DEPLOYMENT:
        return self.deployments.pop(0) if len(self.deployments) > 1 else self.deployments[0]

    def CreateDeployment(
        self, request: deployment_service_pb2.CreateDeploymentRequest, context: grpc.ServicerContext
    ) -> DEPLOYMENT:
        self.created.append(request)
        return DEPLOYMENT(name=f"{request.parent}/deployments/{request.deployment_id}")


@pytest.fixture
def scheduler() -> Scheduler:
    return Scheduler()


@pytest.fixture
def client(scheduler: Scheduler, tmp_path, site) -> Iterator[Client]:
    identity = certificate(tmp_path / "scheduler", "scheduler.service.sealane")
    server = grpc.server(ThreadPoolExecutor(4))
    job_service_pb2_grpc.add_JobServiceServicer_to_server(scheduler, server)
    deployment_service_pb2_grpc.add_DeploymentServiceServicer_to_server(scheduler, server)
    port = server.add_secure_port("127.0.0.1:0", tls.server_credentials(identity, mesh=False))
    server.start()
    token = StaticToken(site.auth.token("sealane-scheduler"))
    with Client({"scheduler": f"127.0.0.1:{port}"}, trust_bundle=identity.trust_bundle, credentials=token) as client:
        yield client
    server.stop(None).wait()


def job(state: JOB.State.ValueType, etag: str, **fields: str) -> JOB:
    return JOB(name="projects/p/jobs/j", state=state, etag=etag, **fields)


def test_watch_goes_on_after_a_broken_stream_and_tells_each_state_once(client: Client, scheduler: Scheduler) -> None:
    running = job(JOB.STATE_RUNNING, "2")
    scheduler.scripts = [[job(JOB.STATE_PENDING, "1"), running], [], [running, job(JOB.STATE_SUCCEEDED, "3")]]
    assert [state.etag for state in client.jobs.watch("j")] == ["1", "2", "3"]


def test_wait_raises_with_the_jobs_own_error(client: Client, scheduler: Scheduler) -> None:
    scheduler.scripts = [[job(JOB.STATE_FAILED, "1", error="accuracy fell by 0.2, 0.02 is allowed")]]
    with pytest.raises(FailedPrecondition, match=r"accuracy fell by 0\.2") as failed:
        client.jobs.wait("j")
    assert failed.value.reason == "JOB_FAILED"


def test_wait_gives_up_in_time(client: Client, scheduler: Scheduler) -> None:
    with pytest.raises((DeadlineExceeded, Unavailable)):
        client.jobs.wait("j", timeout=0.5)


def test_deployment_that_serves_after_a_while(client: Client, scheduler: Scheduler) -> None:
    states = (DEPLOYMENT.STATE_PENDING, DEPLOYMENT.STATE_PREPARING, DEPLOYMENT.STATE_SERVING)
    scheduler.deployments = [
        DEPLOYMENT(name="projects/p/deployments/d", state=state, etag=str(state)) for state in states
    ]
    seen: list[int] = []
    assert client.deployments.wait("d", 5, lambda found: seen.append(found.state)).state == DEPLOYMENT.STATE_SERVING
    assert seen == list(states)


def test_deployment_that_nothing_can_run_names_constraint_and_rejections(client: Client, scheduler: Scheduler) -> None:
    rejection = deployment_service_pb2.Rejection(
        node="cloud-1", variant="litert-int8", filter="residency", detail="wanted site-a, is cloud"
    )
    decision = deployment_service_pb2.Decision(binding_constraint="residency", rejections=[rejection])
    name = "projects/p/deployments/d"
    scheduler.deployments = [DEPLOYMENT(name=name, state=DEPLOYMENT.STATE_PENDING, decision=decision)]
    with pytest.raises(Unavailable) as refused:
        client.deployments.wait("d", 0.2)
    assert refused.value.metadata["constraint"] == "residency"
    assert "cloud-1" in refused.value.message and "wanted site-a" in refused.value.message


def test_demand_in_plain_words(client: Client, scheduler: Scheduler) -> None:
    client.deployments.create(
        "camera", "digits@production", data_class="restricted", residency=["site-a"], tier="edge", latency_ms=50
    )
    (request,) = scheduler.created
    assert request.deployment.model_version == "projects/p/models/digits/versions/production"
    demand = request.deployment.demand
    assert demand.data_class == deployment_service_pb2.DATA_CLASS_RESTRICTED
    assert demand.tier_preference == deployment_service_pb2.TIER_PREFERENCE_EDGE
    assert list(demand.residency) == ["site-a"] and demand.latency_ms == 50
    assert demand.objective == deployment_service_pb2.OBJECTIVE_UNSPECIFIED and request.request_id
    with pytest.raises(InvalidArgument, match="cloud"):
        client.deployments.create("camera", "digits@1", tier="fog")
    with pytest.raises(InvalidArgument, match="MODEL@NUMBER"):
        client.deployments.create("camera", "digits")
