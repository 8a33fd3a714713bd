"""The Python SDK.

::

    from sealane.client import connect

    with connect("var/local") as client:
        version = client.models.push("export/", "digits", alias="production")
        client.deployments.create("camera", "digits@production", tier="edge")
        client.deployments.wait("camera")
        outputs = client.inference.predict("camera", images, sealed=True)

Errors are those of :mod:`sealane.errors`; gRPC never shows.
"""

from __future__ import annotations

from sealane.client.accounts import NewCredential
from sealane.client.client import Client, connect
from sealane.client.credentials import ClientCredentials, Credentials, StaticToken
from sealane.client.inference import Inference, WorkerModel
from sealane.client.issuers import Rule
from sealane.client.logins import CertificateCredentials, ExternalToken, PrivateKeyCredentials, RefreshTokenFile
from sealane.client.operations import NodePlace
from sealane.client.prediction import PredictOptions
from sealane.ensembles import Step

__all__ = [
    "CertificateCredentials",
    "Client",
    "ClientCredentials",
    "Credentials",
    "ExternalToken",
    "Inference",
    "NewCredential",
    "NodePlace",
    "PredictOptions",
    "PrivateKeyCredentials",
    "RefreshTokenFile",
    "Rule",
    "StaticToken",
    "Step",
    "WorkerModel",
    "connect",
]
