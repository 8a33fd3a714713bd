"""The keys that everything rests on: planned changes and emergencies."""

from __future__ import annotations

from collections.abc import Iterator

from sealane.auth.v1 import sealing_key_service_pb2 as sealing_pb
from sealane.auth.v1 import sealing_key_service_pb2_grpc, signing_key_service_pb2_grpc
from sealane.auth.v1 import signing_key_service_pb2 as pb
from sealane.client.paging import pages
from sealane.client.session import Session
from sealane.security import statements


class Keys:
    """Signing keys and the intermediate certificate."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def list(self) -> Iterator[pb.SigningKey]:
        """The signing keys, newest first."""

        def fetch(token: str) -> pb.ListSigningKeysResponse:
            request = pb.ListSigningKeysRequest(page_token=token)
            return self._stub().ListSigningKeys(request, timeout=self._session.timeout)

        return pages(fetch, lambda page: page.signing_keys)

    def sealing(self) -> Iterator[statements.Statement]:
        """Who could open sealed payloads now: statements of all nodes, each verified, by node.

        Raises:
            Unauthenticated: auth lists one that its own keys did not sign.
        """
        stub = sealing_key_service_pb2_grpc.SealingKeyServiceStub(self._session.channel("auth"))

        def fetch(token: str) -> sealing_pb.ListSealingKeysResponse:
            request = sealing_pb.ListSealingKeysRequest(page_token=token)
            return stub.ListSealingKeys(request, timeout=self._session.timeout)

        for item in pages(fetch, lambda page: page.statements):
            yield statements.verify(item.jws, self._session.keys)

    def rotate(self) -> pb.SigningKey:
        """Begin a planned rotation of the signing key; no call fails."""
        return self._stub().RotateSigningKey(pb.RotateSigningKeyRequest(), timeout=self._session.timeout)

    def retire(self, kid: str) -> pb.SigningKey:
        """Revoke a signing key at once: what it signed is refused by every connected service within a minute.

        Raises:
            NotFound: there is no such key.
        """
        return self._stub().RetireSigningKey(pb.RetireSigningKeyRequest(kid=kid), timeout=self._session.timeout)

    def rotate_intermediate(self, *, distrust: bool = False) -> pb.Intermediate:
        """Change the certificate that signs certificates.

        Args:
            distrust: refuse what the one before has signed; everybody gets a new certificate by device key.

        Raises:
            FailedPrecondition: the root's key is kept offline; bring it to auth first.
        """
        request = pb.RotateIntermediateRequest(distrust=distrust)
        return self._stub().RotateIntermediate(request, timeout=self._session.timeout)

    def _stub(self) -> signing_key_service_pb2_grpc.SigningKeyServiceStub:
        return signing_key_service_pb2_grpc.SigningKeyServiceStub(self._session.channel("auth"))
