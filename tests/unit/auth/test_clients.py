"""How clients prove themselves, and what does not."""

from __future__ import annotations

import json
from collections.abc import Iterator

import jwt
import pytest
from auth_records import Auth, in_memory
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealane.errors import InvalidArgument, ResourceExhausted, SealaneError, Unauthenticated
from sealane.security.tokens import ISSUER
from sealane_auth.account_store import Account
from sealane_auth.clients import ASSERTION_TYPE, Proof
from sealane_auth.minting import Wanted
from sealane_auth.passphrases import WINDOW_SECONDS, WRONG_TRIES, Passphrases

ENDPOINT = "https://auth.example/oauth2/token"
PHRASE = "correct horse battery"
RSA = rsa.generate_private_key(65537, 2048)
KEYS = {"RS256": RSA, "ES256": ec.generate_private_key(ec.SECP256R1()), "EdDSA": Ed25519PrivateKey.generate()}


@pytest.fixture
def auth() -> Iterator[Auth]:
    with in_memory() as made:
        yield made


@pytest.fixture
def camera(auth: Auth) -> Account:
    return auth.account("camera", "invoker")[0]


def public_jwk(algorithm: str, **more: str) -> str:
    made = jwt.get_algorithm_by_name(algorithm).to_jwk(KEYS[algorithm].public_key(), as_dict=True)
    return json.dumps({name: value for name, value in made.items() if name != "key_ops"} | more)


def assertion(auth: Auth, algorithm: str = "EdDSA", header: dict[str, str] | None = None, **changes: object) -> Proof:
    now = int(auth.clock.now())
    claims = {"iss": "camera@p", "sub": "camera@p", "aud": ISSUER, "iat": now, "exp": now + 60, "jti": "one"} | changes
    claims = {name: value for name, value in claims.items() if value is not None}
    text = jwt.encode(claims, KEYS[algorithm], algorithm=algorithm, headers=header)
    return Proof("camera@p", assertion_type=ASSERTION_TYPE, assertion=text, endpoint=ENDPOINT)


def refusal(auth: Auth, proof: Proof) -> SealaneError:
    with pytest.raises(SealaneError) as caught:
        auth.prove(proof)
    return caught.value


def test_wrong_secrets_all_get_one_answer(auth: Auth, camera: Account) -> None:
    proofs = [Proof("camera@p", "x" * 43), Proof("nobody@p", "x" * 43), Proof("camera@p"), Proof("", "x" * 43)]
    refusals = [refusal(auth, proof) for proof in proofs]
    assert {(error.kind, error.message, error.reason) for error in refusals} == {
        ("UNAUTHENTICATED", "client id or secret is wrong; check both", "INVALID_CLIENT")
    }


def test_one_way_at_a_time(auth: Auth, camera: Account) -> None:
    auth.join(camera)
    two = Proof("camera@p", "secret", assertion="a.b.c", assertion_type=ASSERTION_TYPE)
    for proof in (two, Proof("camera@p", "secret", account=camera.name)):
        assert isinstance(refusal(auth, proof), InvalidArgument)
    assert isinstance(refusal(auth, Proof("camera@p", assertion="a.b.c", assertion_type="saml")), InvalidArgument)


def test_a_passphrase_is_hashed_slowly_and_locked_after_ten_wrong_ones(auth: Auth, camera: Account) -> None:
    hashed = Passphrases().hash(PHRASE)
    assert hashed.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    auth.add(camera, "passphrase", hashed)
    assert auth.prove(Proof("camera@p", PHRASE)).kind == "passphrase"
    for _ in range(WRONG_TRIES):
        assert isinstance(refusal(auth, Proof("camera@p", "wrong horse battery")), Unauthenticated)
    locked = refusal(auth, Proof("camera@p", PHRASE))
    assert isinstance(locked, ResourceExhausted) and 0 < (locked.retry_after or 0) <= WINDOW_SECONDS
    auth.clock.advance(WINDOW_SECONDS + 1)
    assert auth.prove(Proof("camera@p", PHRASE)).kind == "passphrase"


def test_a_lock_tells_not_who_exists_and_leaves_machine_secrets_alone(auth: Auth) -> None:
    camera, secret = auth.account("camera", "invoker")
    for client_id in ("nobody@p", "camera@p"):
        for _ in range(WRONG_TRIES):
            refusal(auth, Proof(client_id, "a guess that is wrong"))
        assert refusal(auth, Proof(client_id, "a guess that is wrong")).reason == "CLIENT_LOCKED"
    assert auth.prove(Proof("camera@p", secret)).account.name == camera.name


@pytest.mark.parametrize("phrase", ["short", "x" * 257, "x" * 43])
def test_unfit_passphrases_are_refused(phrase: str) -> None:
    with pytest.raises(InvalidArgument):
        Passphrases().hash(phrase)


def test_two_passphrases_at_once_are_enough() -> None:
    phrases = Passphrases()
    with phrases._place(), phrases._place(), pytest.raises(ResourceExhausted) as caught:
        phrases.matching(PHRASE, [])
    assert caught.value.retry_after
    assert phrases.matching(PHRASE, []) == -1


@pytest.mark.parametrize("algorithm", list(KEYS))
def test_a_signed_assertion_proves_the_client(auth: Auth, camera: Account, algorithm: str) -> None:
    auth.add(camera, "public_key", public_jwk(algorithm, kid="k1"))
    for number, header in enumerate((None, {"kid": "k1"})):  # RFC 7523 asks for no key id
        for audience in (ISSUER, ENDPOINT, [ENDPOINT]):
            proof = assertion(auth, algorithm, header, aud=audience, jti=f"{number}{audience}")
            assert auth.prove(proof).account == auth.store.accounts.account("p", "camera")


def test_an_assertion_is_good_for_ten_minutes_whatever_it_says(auth: Auth, camera: Account) -> None:
    auth.add(camera, "public_key", public_jwk("EdDSA"))
    hour, later = (assertion(auth, exp=int(auth.clock.now()) + 3600, jti=jti) for jti in ("first", "second"))
    auth.prove(hour)
    auth.clock.advance(660)
    assert refusal(auth, later).reason == "INVALID_CLIENT"


def test_an_assertion_is_good_once(auth: Auth, camera: Account) -> None:
    auth.add(camera, "public_key", public_jwk("EdDSA"))
    proof = assertion(auth)
    auth.prove(proof)
    assert refusal(auth, proof).reason == "INVALID_CLIENT"


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "other@p"},
        {"sub": "other@p"},
        {"aud": "https://elsewhere/token"},
        {"aud": [ISSUER, "https://elsewhere/token"]},
        {"aud": None},
        {"jti": None},
        {"jti": 7},
        {"exp": None},
        {"exp": 1},
        {"exp": 1_800_000_000 + 7200, "iat": None},
        {"exp": 1_800_000_000 + 7200, "iat": 1_800_000_000 - 660},
        {"exp": 1_800_000_000 + 90_000},
    ],
)
def test_assertions_that_are_refused(auth: Auth, camera: Account, changes: dict[str, object]) -> None:
    auth.add(camera, "public_key", public_jwk("EdDSA"))
    assert isinstance(refusal(auth, assertion(auth, **changes)), Unauthenticated)


def test_an_assertion_by_another_key_or_algorithm_is_refused(auth: Auth, camera: Account) -> None:
    auth.add(camera, "public_key", public_jwk("EdDSA", kid="k1"))
    for proof in (assertion(auth, "ES256", {"kid": "k1"}), assertion(auth, header={"kid": "k2"})):
        assert isinstance(refusal(auth, proof), Unauthenticated)
    public = KEYS["EdDSA"].public_key()
    pem = public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    forged = jwt.encode({"iss": "camera@p", "sub": "camera@p", "aud": ISSUER, "exp": 2e9, "jti": "x"}, pem, "HS256")
    assert isinstance(
        refusal(auth, Proof("camera@p", assertion=forged, assertion_type=ASSERTION_TYPE)), Unauthenticated
    )


def test_a_certificate_proves_an_account_that_has_joined(auth: Auth, camera: Account) -> None:
    assert isinstance(refusal(auth, Proof(account=camera.name)), Unauthenticated)
    auth.join(camera)
    proven = auth.prove(Proof(account=camera.name))
    thumbprint = "A" * 43
    issued = auth.tokens.issue(auth.store, proven, Wanted("sealane-registry", certificate_thumbprint=thumbprint))
    assert auth.identity(issued.token).certificate_thumbprint == thumbprint
    assert isinstance(refusal(auth, Proof("other@p", account=camera.name)), Unauthenticated)


def test_a_credential_deleted_between_proof_and_token_gives_none(auth: Auth) -> None:
    camera, secret = auth.account("camera", "invoker")
    proven = auth.prove(Proof(camera.client_id, secret))
    auth.accounts.delete_credential(auth.store, auth.admin, camera.name, proven.credential_id)
    with pytest.raises(Unauthenticated):
        auth.tokens.issue(auth.store, proven, Wanted("sealane-inference"))
