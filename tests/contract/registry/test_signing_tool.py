"""REG-3: the public ``model_signing`` tool verifies what we sign and the other way round; a flipped bit is refused."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from sealane.errors import FailedPrecondition, SealaneError
from sealane.security import model_signing

PYTHON = Path(__file__).parents[3] / ".venv-signing" / "bin" / "python"
CURVES = {"P-256": ec.SECP256R1, "P-384": ec.SECP384R1, "P-521": ec.SECP521R1}


class Model:
    """A folder of files, and a key."""

    def __init__(self, folder: Path, curve: str) -> None:
        self.folder, self.bundle = folder / "model", folder / "model.sig"
        (self.folder / "variables").mkdir(parents=True)
        for path, content in (("saved_model.pb", b"graph"), ("variables/v.data", b"x" * 1000), ("variables.x", b"")):
            (self.folder / path).write_bytes(content)
        self.key = ec.generate_private_key(CURVES[curve]())
        self.private, self.public = folder / "key.pem", folder / "public.pem"
        plain = serialization.NoEncryption()
        pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        self.private.write_bytes(self.key.private_bytes(pem, pkcs8, plain))
        self.public.write_bytes(model_signing.pem_of(self.key.public_key()))

    def files(self) -> dict[str, str]:
        return {
            path.relative_to(self.folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in self.folder.rglob("*")
            if path.is_file()
        }

    def ours(self) -> None:
        self.bundle.write_bytes(model_signing.sign(self.files(), "model", self.key))

    def verify(self) -> model_signing.Signed:
        public = self.key.public_key()
        return model_signing.verify(self.bundle.read_bytes(), {model_signing.key_id_of(public): public}, self.files())

    def tool(self, action: str, *options: object) -> bool:
        if not PYTHON.exists():
            pytest.skip("the model_signing tool is not installed; make .venv-signing/.ready")
        command = [PYTHON, "-m", "model_signing", action, "key", self.folder, "--signature", self.bundle, *options]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=60, check=False)
        return done.returncode == 0


@pytest.fixture(params=CURVES)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Model:
    return Model(tmp_path, request.param)


def test_the_tool_verifies_what_we_sign(model: Model) -> None:
    model.ours()
    assert model.tool("verify", "--public_key", model.public)
    for path in sorted(model.folder.rglob("*")):
        if path.is_file() and path.stat().st_size:
            kept = path.read_bytes()
            path.write_bytes(bytes([kept[0] ^ 1]) + kept[1:])
            assert not model.tool("verify", "--public_key", model.public)
            path.write_bytes(kept)


def test_we_verify_what_the_tool_signs(model: Model) -> None:
    assert model.tool("sign", "--private_key", model.private)
    assert model.verify().files == model.files()


def test_a_flipped_bit_in_any_file_and_in_the_bundle_is_refused(model: Model) -> None:
    model.ours()
    for path in sorted(model.folder.rglob("*")):
        if path.is_file():
            kept = path.read_bytes()
            path.write_bytes(bytes([kept[0] ^ 1]) + kept[1:] if kept else b"x")
            with pytest.raises(FailedPrecondition) as refused:
                model.verify()
            assert refused.value.reason == "SIGNATURE_OTHER_FILES"
            path.write_bytes(kept)
    sound = model.bundle.read_bytes()
    accepted = []
    for place in range(len(sound)):
        for bit in (0, 3, 6):
            model.bundle.write_bytes(sound[:place] + bytes([sound[place] ^ 1 << bit]) + sound[place + 1 :])
            try:
                model.verify()
                accepted.append(place)
            except SealaneError:
                continue
    # What is not signed: the name of the field that says nothing, and the signature's own unused keyid.
    unsigned = {place for word in (b'"tlogEntries"', b'"keyid"') for place in _span(sound, word)}
    assert set(accepted) <= unsigned | _blanks(sound)


def _span(text: bytes, word: bytes) -> range:
    start = text.index(word)
    return range(start, start + len(word) + 4)


def _blanks(text: bytes) -> set[int]:
    return {place for place, byte in enumerate(text) if byte in b" "}
