"""What calls go through on their way to a worker."""

from __future__ import annotations

from dataclasses import dataclass

from sealane_inference.chains import Chains
from sealane_inference.forward import Forwarder
from sealane_inference.loads import Loads
from sealane_inference.present import Present
from sealane_inference.repository import Repository
from sealane_inference.sealed import SealedServicer
from sealane_inference.streams import Streams


@dataclass(frozen=True, slots=True)
class Way:
    """What the servicers of the protocols share."""

    present: Present
    loads: Loads
    forwarder: Forwarder
    chains: Chains
    repository: Repository
    streams: Streams
    sealed: SealedServicer
