"""``sealane predict`` with files: elements of BYTES, arrays that cannot be read, outputs of bytes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sealane.cli import main
from sealane.tensors import Array, Signature, TensorSpec


class Client:
    """Stands for a client; keeps what was sent."""

    def __init__(self) -> None:
        self.sent: list[object] = []
        self.takes = [TensorSpec("photo", "BYTES", (-1,)), TensorSpec("scale", "FP32", (-1,))]
        self.gives: dict[str, Array] = {"y": np.zeros(1, np.float32)}
        self.inference = self

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *args: object) -> None:
        return None

    def signature(self, model: str) -> Signature:
        return Signature(tuple(self.takes), ())

    def predict(self, model: str, inputs: object, **options: object) -> dict[str, Array]:
        self.sent.append(inputs)
        return self.gives


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    client = Client()
    monkeypatch.setattr("sealane.client.connect", lambda *args, **kwargs: client)
    return client


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"\xff\xd8 first\0")
    return path


def predict(*arguments: str) -> int:
    return main.run(["predict", "photos", "--data", "d", *arguments])


def test_a_file_is_one_element_as_it_is(client: Client, photo: Path, tmp_path: Path) -> None:
    other = tmp_path / "b=1.png"
    other.write_bytes(b"second")
    assert predict("--file", f"photo={photo}", "--file", f"photo={other}", "--file", f"mask={other}") == 0
    (sent,) = client.sent
    assert isinstance(sent, dict)
    assert sent["photo"].tolist() == [b"\xff\xd8 first\0", b"second"], "the zero byte at the end stays"
    assert sent["photo"].shape == (2,) and sent["mask"].shape == (1,)


def test_files_go_together_with_inputs(client: Client, photo: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", anything=np.ones(1, np.float32))
    for inputs in ('{"scale": [1]}', str(tmp_path / "one.npz"), "[1]"):
        assert predict("--file", f"photo={photo}", "--inputs", inputs) == 0
        sent = client.sent[-1]
        assert isinstance(sent, dict)
        assert sorted(sent) == ["photo", "scale"] and list(sent["scale"]) == [1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give --inputs or --file NAME=PATH"),
        (("--file", "a.jpg"), "is not NAME=PATH"),
        (("--file", "photo=/no/such.jpg"), "correct the path"),
        (("--file", "photo=PHOTO", "--inputs", '{"photo": [1]}'), "give each input once"),
        (("--file", "other=PHOTO", "--inputs", "[1]"), "give arrays by input name"),
    ],
)
def test_what_cannot_be_sent_says_the_next_step(
    arguments: tuple[str, ...], words: str, client: Client, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(*(word.replace("PHOTO", str(photo)) for word in arguments)) == 2
    shown = capsys.readouterr().err
    assert words in shown and shown.startswith("error: ") and shown.count("\n") == 1
    assert not client.sent


def test_an_array_of_objects_is_refused_with_the_next_step(
    client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.npz"
    np.savez(file, photo=np.array([b"one", b"three"], object), scale=np.ones(2, np.float32))
    assert predict("--inputs", str(file)) == 2
    shown = capsys.readouterr().err
    assert "'photo'" in shown and "--file NAME=PATH" in shown and shown.count("\n") == 1
    np.savez(file, photo=np.array([b"one"], "S"), scale=np.ones(1), remarks=np.array([{}], object))
    assert predict("--inputs", str(file)) == 0, "an array that the model does not take is not read"


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 cut"])
def test_a_file_that_is_no_archive_is_refused(
    content: bytes, client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    assert predict("--inputs", str(tmp_path / "x.npz")) == 2
    assert "write it with numpy.savez" in capsys.readouterr().err


def test_words_that_come_back_are_shown_and_kept(
    client: Client, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client.gives = {"labels": np.array([["cat", b"dog"], [b"\xff", b""]], object)}
    client.gives["labels"][0, 0] = "Käse".encode()
    assert predict("--file", f"photo={photo}", "-o", "json") == 0
    assert json.loads(capsys.readouterr().out) == {"labels": [["Käse", "dog"], [{"b64": "/w=="}, ""]]}
    assert predict("--file", f"photo={photo}", "--save", str(tmp_path / "out.npz")) == 0
    with np.load(tmp_path / "out.npz", allow_pickle=False) as kept:
        assert kept["labels"].tolist() == client.gives["labels"].tolist()
    client.gives["labels"][0, 0] = b"cut\0"
    assert predict("--file", f"photo={photo}", "--save", str(tmp_path / "out.npz")) == 2
    assert "use --output json" in capsys.readouterr().err
