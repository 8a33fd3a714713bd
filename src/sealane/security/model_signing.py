"""Signatures of models in the OpenSSF model-signing format, made and verified with a key pair.

A bundle is a Sigstore bundle v0.3 (JSON) around a DSSE envelope around an in-toto statement (Statement v1) with the
predicate ``https://model_signing/signature/v1.0``, which lists path and SHA-256 of every file; the statement's subject
is the SHA-256 over these digests in order. Keys are ECDSA on P-256, P-384 or P-521. The public ``model_signing`` tool
verifies what this module signs, and the other way round.

Sources: https://github.com/ossf/model-signing-spec, https://github.com/secure-systems-lab/dsse/blob/v1.0.0/protocol.md.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from sealane.errors import FailedPrecondition, InvalidArgument

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
MAX_BUNDLE_BYTES = 4 << 20
_HASHES: Mapping[str, hashes.HashAlgorithm] = {
    "secp256r1": hashes.SHA256(),
    "secp384r1": hashes.SHA384(),
    "secp521r1": hashes.SHA512(),
}


@dataclass(frozen=True, slots=True)
class Signed:
    """What a bundle that verified says.

    Args:
        key_id: SHA-256 of the public key in PEM, hex.
        name: what the signer called the model.
        files: path -> SHA-256, hex.
    """

    key_id: str
    name: str
    files: Mapping[str, str]


def load_public_key(pem: bytes) -> ec.EllipticCurvePublicKey:
    """A public key that models can be signed for.

    Raises:
        InvalidArgument: it is none, or of another kind.
    """
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, TypeError) as error:
        raise InvalidArgument(
            "this is no public key in PEM; make one with 'openssl ec -in key.pem -pubout'", field="public_key"
        ) from error
    return _check_curve(key)


def load_private_key(pem: bytes, password: bytes | None = None) -> ec.EllipticCurvePrivateKey:
    """A private key to sign with.

    Raises:
        InvalidArgument: it is none, of another kind, or the password is wrong.
    """
    try:
        key = serialization.load_pem_private_key(pem, password)
    except (ValueError, TypeError) as error:
        raise InvalidArgument(
            "this is no private key in PEM, or its password is wrong; make one with "
            "'openssl ecparam -genkey -name prime256v1 -noout -out key.pem'",
            field="private_key",
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise _wrong_kind()
    _check_curve(key.public_key())
    return key


def key_id_of(key: ec.EllipticCurvePublicKey) -> str:
    """The name of a key in bundles: SHA-256 of its PEM, hex."""
    return hashlib.sha256(pem_of(key)).hexdigest()


def pem_of(key: ec.EllipticCurvePublicKey) -> bytes:
    """A public key in PEM."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def sign(files: Mapping[str, str], name: str, key: ec.EllipticCurvePrivateKey) -> bytes:
    """A bundle over these files.

    Args:
        files: path -> SHA-256, hex.
        name: what the model is called.
        key: of the signer.
    """
    ordered = sorted(files, key=lambda path: PurePosixPath(path).parts)
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": _root(files[path] for path in ordered)}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": []},
            "resources": [{"name": path, "algorithm": "sha256", "digest": files[path]} for path in ordered],
        },
    }
    payload = json.dumps(statement, sort_keys=True).encode()
    signature = key.sign(_encoded(payload), _algorithm(key.public_key()))
    bundle = {
        "mediaType": MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": key_id_of(key.public_key())}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
        },
    }
    return json.dumps(bundle).encode()


def key_id_in(bundle: bytes) -> str:
    """The key that a bundle says it was signed with; nothing is verified.

    Raises:
        InvalidArgument: it is no bundle of this format.
    """
    return str(_parse(bundle)["verificationMaterial"]["publicKey"]["hint"])


def verify(bundle: bytes, keys: Mapping[str, ec.EllipticCurvePublicKey], files: Mapping[str, str]) -> Signed:
    """Verify a bundle by one of some keys, over exactly these files.

    Args:
        bundle: JSON.
        keys: by :func:`key_id_of`.
        files: path -> SHA-256, hex, of what there is.

    Raises:
        InvalidArgument: it is no bundle of this format.
        FailedPrecondition: of another key (SIGNER_UNKNOWN), not verified (SIGNATURE_INVALID), or over other files
            (SIGNATURE_OTHER_FILES).
    """
    parsed = _parse(bundle)
    key_id = str(parsed["verificationMaterial"]["publicKey"]["hint"])
    key = keys.get(key_id)
    if key is None:
        raise FailedPrecondition(
            f"the bundle is signed with a key that is not known here ({key_id[:16]}); add it to the project's policy, "
            "or sign with one of the policy's keys",
            reason="SIGNER_UNKNOWN",
            key_id=key_id,
        )
    payload = _decoded(parsed["dsseEnvelope"]["payload"])
    try:
        signature = _decoded(parsed["dsseEnvelope"]["signatures"][0]["sig"])
        key.verify(signature, _encoded(payload), _algorithm(key))
    except InvalidSignature as error:
        raise FailedPrecondition(
            "the signature does not verify with the key that it names; sign again", reason="SIGNATURE_INVALID"
        ) from error
    name, signed = _statement(payload)
    if signed != dict(files):
        raise FailedPrecondition(
            f"the bundle is over other files: {_difference(signed, files)}; sign what is pushed",
            reason="SIGNATURE_OTHER_FILES",
        )
    return Signed(key_id, name, signed)


def _statement(payload: bytes) -> tuple[str, dict[str, str]]:
    try:
        statement = _json(payload)
        predicate = statement["predicate"]
        (subject,) = statement["subject"]
        listed = [(item["name"], item["algorithm"], item["digest"]) for item in predicate["resources"]]
        if (
            statement["_type"] != STATEMENT_TYPE
            or statement["predicateType"] != PREDICATE_TYPE
            or predicate["serialization"]["method"] != "files"
            or any(algorithm != "sha256" for _, algorithm, _ in listed)
        ):
            raise ValueError("another kind of statement")
        files = {str(name): str(digest) for name, _, digest in listed}
        if len(files) != len(listed) or subject["digest"]["sha256"] != _root(digest for _, _, digest in listed):
            raise ValueError("the digest of all is not that of the files")
        return str(subject["name"]), files
    except (ValueError, KeyError, TypeError) as error:
        raise _not_a_bundle() from error


def _parse(bundle: bytes) -> dict[str, Any]:
    if len(bundle) > MAX_BUNDLE_BYTES:
        raise InvalidArgument(f"a bundle has at most {MAX_BUNDLE_BYTES} bytes", field="bundle")
    try:
        parsed: dict[str, Any] = _json(bundle)
        fits = (
            parsed["mediaType"] == MEDIA_TYPE
            and parsed["dsseEnvelope"]["payloadType"] == PAYLOAD_TYPE
            and isinstance(parsed["verificationMaterial"]["publicKey"]["hint"], str)
            and len(parsed["dsseEnvelope"]["signatures"]) == 1
            and isinstance(parsed["dsseEnvelope"]["signatures"][0]["sig"], str)
            and isinstance(parsed["dsseEnvelope"]["payload"], str)
        )
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise _not_a_bundle() from error
    if not fits:
        raise _not_a_bundle()
    return parsed


def _json(text: bytes) -> Any:
    """JSON in which no key stands twice: two readers of it must not see two things."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key stands twice")
        return found

    return json.loads(text, object_pairs_hook=once)


def _decoded(text: str) -> bytes:
    try:
        decoded = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _not_a_bundle() from error
    if base64.b64encode(decoded).decode() != text:  # one content, one text
        raise _not_a_bundle()
    return decoded


def _encoded(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)


def _root(digests: Iterable[str]) -> str:
    hasher = hashlib.sha256()
    for digest in digests:
        hasher.update(bytes.fromhex(digest))
    return hasher.hexdigest()


def _algorithm(key: ec.EllipticCurvePublicKey) -> ec.ECDSA:
    return ec.ECDSA(_HASHES[key.curve.name])


def _check_curve(key: object) -> ec.EllipticCurvePublicKey:
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _HASHES:
        raise _wrong_kind()
    return key


def _difference(signed: Mapping[str, str], files: Mapping[str, str]) -> str:
    for path in sorted(signed.keys() | files.keys()):
        if path not in files:
            return f"{path!r} is signed and not there"
        if path not in signed:
            return f"{path!r} is there and not signed"
        if signed[path] != files[path]:
            return f"{path!r} has other content than what was signed"
    return "none differ"


def _wrong_kind() -> InvalidArgument:
    return InvalidArgument(
        "keys that sign models are ECDSA on P-256, P-384 or P-521; make one of these", field="public_key"
    )


def _not_a_bundle() -> InvalidArgument:
    return InvalidArgument(
        "this is no model-signing bundle made with a key; make one with 'sealane models sign' or model_signing",
        reason="BUNDLE_INVALID",
        field="bundle",
    )
