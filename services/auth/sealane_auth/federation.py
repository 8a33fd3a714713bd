"""The rules about external issuers: which a project trusts, and what their tokens are worth there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import quote, urlsplit

from sealane.clock import Clock
from sealane.errors import InvalidArgument, NotFound, Unauthenticated
from sealane.names import check_id, parse
from sealane.records.tables import Actor
from sealane.security import external_jwt, jws, permissions
from sealane.security.external_jwt import ExternalKey
from sealane.security.permissions import Bound
from sealane_auth.accounts import hash_secret
from sealane_auth.exchange import Federated
from sealane_auth.issuer_store import ClaimRule, TrustedIssuer
from sealane_auth.rights import check_prefix, demand
from sealane_auth.store import Store

ISSUER = "projects/*/trustedIssuers/*"
_HEADER = frozenset({"alg", "kid", "typ", "x5t", "x5t#S256"})
_MAX_URL = 512
_MAX_RULES = 32
_MAX_CLAIMS = 16
_MAX_PATTERN = 256
_MAX_VALUE = 1024
_MAX_JWKS_BYTES = 65_536
_SUBJECT_CHARACTERS = 160
_DEPTH = 4


class FederationRules:
    """Trusted issuers."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def trust(self, store: Store, actor: Actor, issuer: TrustedIssuer) -> TrustedIssuer:
        """Trust an issuer; its time is filled in.

        Raises:
            AlreadyExists: the id is taken.
            InvalidArgument: no https URL, a rule without a condition, a role that is not for federation.
            PermissionDenied: a rule gives more than the actor holds.
        """
        check_id(issuer.issuer_id, "trusted_issuer_id", label=True)
        check_url(issuer.issuer, "trusted_issuer.issuer")
        if issuer.jwks_uri:
            check_url(issuer.jwks_uri, "trusted_issuer.jwks_uri")
        if not 0 < len(issuer.audience) <= _MAX_URL:
            raise InvalidArgument("name the audience that its tokens are for", field="trusted_issuer.audience")
        if issuer.jwks and not _keys_of(issuer.jwks):
            raise InvalidArgument("the key set holds no key that verifies signatures", field="trusted_issuer.jwks")
        if not 0 < len(issuer.rules) <= _MAX_RULES:
            raise InvalidArgument(f"an issuer has 1 to {_MAX_RULES} rules", field="trusted_issuer.rules")
        for rule in issuer.rules:
            _check_rule(rule)
            demand(store, actor, permissions.grants_of(Bound(role, rule.model_prefix) for role in rule.roles))
        made = TrustedIssuer(
            project=issuer.project,
            issuer_id=issuer.issuer_id,
            issuer=issuer.issuer,
            audience=issuer.audience,
            jwks_uri=issuer.jwks_uri,
            jwks=issuer.jwks,
            rules=issuer.rules,
            create_time=self._clock.now(),
        )
        store.issuers.add_issuer(made)
        roles = sorted({role for rule in made.rules for role in rule.roles})
        store.record(
            actor, "CreateTrustedIssuer", made.name, made.create_time, issuer=made.issuer, roles=" ".join(roles)
        )
        return made

    def distrust(self, store: Store, actor: Actor, project: str, issuer_id: str) -> None:
        """End the trust; tokens that were exchanged are revoked.

        Raises:
            NotFound: no such trust.
        """
        name, now = f"projects/{project}/trustedIssuers/{issuer_id}", self._clock.now()
        if not store.issuers.delete_issuer(project, issuer_id):
            raise NotFound(f"{name} does not exist, or is not yours to see; check the name")
        for subject in store.issuers.subjects(name, now):
            store.revocations.revoke_subject(subject, now)
        store.record(actor, "DeleteTrustedIssuer", name, now)

    def candidates(self, store: Store, parent: str, token: str) -> list[TrustedIssuer]:
        """The trusts of a project that a token, not verified yet, may be of.

        Raises:
            Unauthenticated: none, or this is no token.
        """
        (project,) = parse(parent, "projects/*", "project")
        parts = jws.split(token, header_names=_HEADER, limit=external_jwt.MAX_TOKEN_BYTES)
        issuer = jws.strict_object(parts.payload).get("iss")
        found = store.issuers.issuers_of(project, issuer) if isinstance(issuer, str) else []
        if not found:
            raise Unauthenticated("the project does not trust the token's issuer", reason="ISSUER_UNKNOWN")
        return found

    def identify(self, trusted: TrustedIssuer, keys: Sequence[ExternalKey], token: str) -> Federated:
        """Verify an external token and say what it is worth.

        Raises:
            Unauthenticated: it does not verify; reason ``TOKEN_KEY`` where newer keys may help.
        """
        claims = external_jwt.verify(
            token, keys, issuer=trusted.issuer, audience=trusted.audience, now=self._clock.now()
        )
        bounds = [
            Bound(role, rule.model_prefix)
            for rule in trusted.rules
            if all(fits(claims, path, pattern) for path, pattern in rule.claims.items())
            for role in rule.roles
        ]
        return Federated(
            issuer_name=trusted.name,
            project=trusted.project,
            subject=f"projects/{trusted.project}/federated/{trusted.issuer_id}/{_subject(str(claims['sub']))}",
            client_id=f"federated/{trusted.issuer_id}@{trusted.project}",
            grants=permissions.grants_of(bounds),
            expires=float(str(claims["exp"])),
        )


def inline_keys(trusted: TrustedIssuer) -> tuple[ExternalKey, ...]:
    """The keys that stand in the trust itself; none where they are fetched."""
    return _keys_of(trusted.jwks) if trusted.jwks else ()


def fits(claims: Mapping[str, object], path: str, pattern: str) -> bool:
    """Whether a claim fits a pattern; one that is a list fits if an item does. A claim that is absent never fits.

    ``*`` stands for any text without a slash, ``**`` at the end for any text. Values of more than 1,024 characters fit
    nothing, and no pattern makes the match slow: a project's administrator writes it, and everybody waits for auth.

    A name with dots is looked up as it is before it is taken for a path, since issuers name claims by URL.
    """
    return any(_matches(value, pattern) for value in _values(claims, path))


def check_url(url: str, field: str) -> None:
    """Refuse what is no plain https URL.

    Raises:
        InvalidArgument: another scheme, user information, query or fragment.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    plain = parts.scheme == "https" and parts.hostname and not (parts.username or parts.password or parts.fragment)
    if not plain or parts.query or port == 0 or len(url) > _MAX_URL or not url.isprintable() or " " in url:
        raise InvalidArgument(f"{field} must be an https URL without query and fragment", field=field)


def _values(claims: Mapping[str, object], path: str) -> list[object]:
    found: object = claims.get(path)
    if path not in claims:
        found = claims
        for name in path.split("."):
            found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, list) else [found]


def _matches(value: object, pattern: str) -> bool:
    if isinstance(value, bool):
        value = "true" if value else "false"
    if isinstance(value, int):
        value = str(value)
    if not isinstance(value, str) or len(value) > _MAX_VALUE or len(pattern) > _MAX_PATTERN:
        return False
    wanted, found = pattern.split("/"), value.split("/")
    if pattern.endswith("**"):  # what follows is free, slashes too, so only its first part is looked at
        found = found[: len(wanted)]
    return len(found) == len(wanted) and all(map(_part_fits, found, wanted))


def _part_fits(text: str, pattern: str) -> bool:
    """Whether a text without slashes fits. Each piece is taken where it is first found: a later place never helps."""
    first, *pieces = pattern.split("*")
    if not pieces:
        return text == pattern
    last = pieces.pop()
    if not text.startswith(first) or not text.endswith(last) or len(text) < len(first) + len(last):
        return False
    at, end = len(first), len(text) - len(last)
    for piece in pieces:
        at = text.find(piece, at, end)
        if at < 0:
            return False
        at += len(piece)
    return True


def _check_rule(rule: ClaimRule) -> None:
    field = "trusted_issuer.rules"
    if not 0 < len(rule.claims) <= _MAX_CLAIMS:
        raise InvalidArgument("a rule needs a claim, else it lets in everybody who has an account there", field=field)
    for path, pattern in rule.claims.items():
        if not path or not pattern or len(pattern) > _MAX_PATTERN or path.count(".") > 32:
            raise InvalidArgument(f"the pattern of claim {path!r} is empty or too long", field=field)
        if not pattern.strip("*") or pattern.count("*") > _DEPTH * 2 or "**" in pattern.removesuffix("**"):
            raise InvalidArgument(f"the pattern of claim {path!r} fits everything, or has '**' inside", field=field)
    if set(rule.claims) <= {"iss", "aud"}:
        raise InvalidArgument("a rule needs a claim beside iss and aud, which every token has", field=field)
    if not rule.roles or "admin" in rule.roles:
        raise InvalidArgument("a rule grants one or more roles, and not admin", field=field)
    check_prefix(rule.model_prefix, "trusted_issuer.rules.model_prefix")
    for role in rule.roles:
        permissions.check(Bound(role, rule.model_prefix))


def _keys_of(document: str) -> tuple[ExternalKey, ...]:
    if len(document) > _MAX_JWKS_BYTES:
        raise InvalidArgument("the key set is too large", field="trusted_issuer.jwks")
    try:
        return external_jwt.parse_key_set(document.encode())
    except (InvalidArgument, Unauthenticated) as error:
        raise InvalidArgument(error.message, reason=error.reason, field="trusted_issuer.jwks") from error


def _subject(sub: str) -> str:
    """A subject as one part of a resource name: readable where it is short, and never two for one."""
    escaped = quote(sub, safe="")
    return escaped if len(escaped) <= _SUBJECT_CHARACTERS else f"sha256:{hash_secret(sub)}"
