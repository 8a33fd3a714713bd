"""Aliases of models, what they pointed at when, and whether a version may have one."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from sealane.client import load_checks, references
from sealane.client.artifacts import Artifacts
from sealane.client.paging import pages
from sealane.client.session import Session
from sealane.errors import FailedPrecondition, NotFound
from sealane.registry.v1 import model_service_pb2 as pb
from sealane.registry.v1 import model_service_pb2_grpc, promotion_pb2
from sealane.security import alias_history
from sealane.security.alias_history import Check, Move

#: Conditions that a load check can meet.
_BY_LOADING = {"LOADABLE", "LOAD_CHECK"}


class ModelAliases:
    """Part of :class:`sealane.client.models.Models`."""

    def __init__(self, session: Session, artifacts: Artifacts) -> None:
        self._session = session
        self._artifacts = artifacts

    def get_alias(self, name: str, alias: str) -> pb.Alias:
        """An alias of a model."""
        request = pb.GetAliasRequest(name=self._alias_name(name, alias))
        return self._stub().GetAlias(request, timeout=self._session.timeout)

    def aliases(self, name: str) -> Iterator[pb.Alias]:
        """The aliases of a model, by name."""
        parent = references.resource(self._session.project, "models", name)

        def fetch(token: str) -> pb.ListAliasesResponse:
            request = pb.ListAliasesRequest(parent=parent, page_token=token)
            return self._stub().ListAliases(request, timeout=self._session.timeout)

        return pages(fetch, lambda page: page.aliases)

    def move_alias(
        self, name: str, alias: str, version: str | int, *, etag: str | None = None, load_check: bool = True
    ) -> pb.Alias:
        """Point an alias at a version, by compare-and-set.

        Args:
            name: id of the model.
            alias: the alias, such as ``production``.
            version: number or full name of the version.
            etag: the alias as it was seen; empty demands that it does not exist yet; None reads it first.
            load_check: have a worker load the version first, where the alias wants that and nobody did it yet.

        Raises:
            Aborted: somebody else moved it since (reason ETAG_MISMATCH).
            FailedPrecondition: the version does not pass the alias's gates (reason NOT_PROMOTABLE); :meth:`explain`
                tells all of it.
        """
        if etag is None:
            try:
                etag = self.get_alias(name, alias).etag
            except NotFound:
                etag = ""
        request = pb.MoveAliasRequest(
            name=self._alias_name(name, alias),
            version=self._version_name(name, version),
            etag=etag,
            request_id=str(uuid.uuid4()),
        )
        try:
            return self._stub().MoveAlias(request, timeout=self._session.timeout)
        except FailedPrecondition as error:
            kinds = set(error.metadata.get("kinds", "").split(","))
            if not load_check or error.reason != "NOT_PROMOTABLE" or not kinds <= _BY_LOADING:
                raise
        load_checks.ensure(self._session, request.version)
        request.request_id = str(uuid.uuid4())
        return self._stub().MoveAlias(request, timeout=self._session.timeout)

    def delete_alias(self, name: str, alias: str, *, etag: str | None = None) -> None:
        """Take an alias away; its history stays.

        Raises:
            FailedPrecondition: a deployment goes by it (reason ALIAS_IN_USE).
        """
        if etag is None:
            etag = self.get_alias(name, alias).etag
        request = pb.DeleteAliasRequest(name=self._alias_name(name, alias), etag=etag, request_id=str(uuid.uuid4()))
        self._stub().DeleteAlias(request, timeout=self._session.timeout)

    def explain(self, version: str, alias: str) -> promotion_pb2.GateReport:
        """Whether a version may have an alias, condition by condition, and what to do about those that fail.

        Args:
            version: ``digits@3`` or the full name.
            alias: the alias that it would get.
        """
        request = pb.ExplainPromotionRequest(name=references.version(self._session.project, version), alias=alias)
        return self._stub().ExplainPromotion(request, timeout=self._session.timeout)

    def as_of(self, name: str, alias: str, time: datetime | None = None) -> pb.AliasMove:
        """What an alias pointed at, at a time, who moved it there and what was known then.

        Raises:
            NotFound: it did not exist then.
        """
        request = pb.GetAliasAsOfRequest(name=self._alias_name(name, alias))
        if time is not None:
            stamp = Timestamp()
            stamp.FromDatetime(time)
            request.time.CopyFrom(stamp)
        return self._stub().GetAliasAsOf(request, timeout=self._session.timeout)

    def history(self, name: str, alias: str) -> Iterator[pb.AliasMove]:
        """All moves of an alias, newest first."""
        return self._moves(name, alias, "sequence desc")

    def verify_history(self, name: str, alias: str) -> int:
        """Check that no move of an alias was changed, left out or put in; returns how many there are.

        Raises:
            DataLoss: which one (reason HISTORY_BROKEN).
        """
        head = self.get_alias(name, alias).move_count if self._exists(name, alias) else 0
        count = alias_history.verify((_move(item), item.hash) for item in self._moves(name, alias, "sequence"))
        if count < head:
            raise alias_history.shortened(self._alias_name(name, alias), count, head)
        return count

    def watch(self, *, after: int = 0, resource: str = "") -> Iterator[pb.WatchModelsResponse]:
        """Every change to models and datasets, in order, for ever.

        Args:
            after: revision to go on after, from a message before; 0 begins now.
            resource: only what is at or below this name.
        """
        request = pb.WatchModelsRequest(parent=self._session.parent, after_revision=after, resource_prefix=resource)
        yield from self._stub().WatchModels(request)

    def _exists(self, name: str, alias: str) -> bool:
        try:
            self.get_alias(name, alias)
        except NotFound:
            return False
        return True

    def _moves(self, name: str, alias: str, order: str) -> Iterator[pb.AliasMove]:
        parent = self._alias_name(name, alias)

        def fetch(token: str) -> pb.ListAliasMovesResponse:
            request = pb.ListAliasMovesRequest(parent=parent, page_token=token, order_by=order, page_size=500)
            return self._stub().ListAliasMoves(request, timeout=self._session.timeout)

        return pages(fetch, lambda page: page.moves)

    def _alias_name(self, name: str, alias: str) -> str:
        return f"{references.resource(self._session.project, 'models', name)}/aliases/{alias}"

    def _version_name(self, name: str, version: str | int) -> str:
        if str(version).startswith("projects/"):
            return str(version)
        return f"{references.resource(self._session.project, 'models', name)}/versions/{version}"

    def _stub(self) -> model_service_pb2_grpc.ModelServiceStub:
        return model_service_pb2_grpc.ModelServiceStub(self._session.channel("registry"))


def _move(message: pb.AliasMove) -> Move:
    checks = [
        Check(
            promotion_pb2.GateCheck.Kind.Name(item.kind).removeprefix("KIND_"),
            item.passed,
            item.requirement,
            item.finding,
            item.remedy,
            tuple(item.evidence),
        )
        for item in message.evidence.checks
    ]
    alias, _, sequence = message.name.rpartition("/moves/")
    return Move(
        alias,
        int(sequence),
        int(references.last(message.version) or 0),
        int(references.last(message.previous_version) or 0),
        message.move_time.ToMicroseconds(),
        message.mover,
        alias_history.evidence_text(checks),
        message.previous_hash,
    )
