"""The command: help that is quick, errors of one line, exit codes, output for people and programs."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest

from sealane.cli import main
from sealane.errors import DeadlineExceeded, NotFound, PermissionDenied, SealaneError, Unauthenticated, Unavailable
from sealane.tensors import Array, Signature, TensorSpec


def walk(command: click.Command, *path: str) -> list[tuple[str, ...]]:
    """Paths of all commands below one."""
    if not isinstance(command, click.Group):
        return [path]
    context = click.Context(command)
    found = [path] if path else []
    for name in command.list_commands(context):
        below = command.get_command(context, name)
        assert below is not None, name
        found += walk(below, *path, name)
    return found


EVERY = [path for path in walk(main.cli) if path not in (("up",), ("restore",))]  # these start other programs


@pytest.mark.parametrize("path", EVERY, ids=" ".join)
def test_every_command_has_help_and_every_leaf_a_form_of_output(path: tuple[str, ...], capsys) -> None:
    assert main.run([*path, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Usage: sealane " + " ".join(path) in shown
    if "COMMAND" not in shown:
        assert "--output" in shown and "--data" in shown


def test_help_lists_commands_without_importing_them() -> None:
    code = (
        "import sys; from sealane.cli.main import run; run(['--help']);"
        "sys.exit(any(name in sys.modules for name in ('grpc', 'numpy', 'rich', 'sealane.client')))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in main.COMMANDS)
    # 150 ms is the aim with byte code written; without it the first import compiles everything.
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) < 1.0


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Unavailable("no worker"), 3),
        (Unauthenticated("no token"), 4),
        (PermissionDenied("no scope"), 4),
        (NotFound("no model"), 5),
        (DeadlineExceeded("over"), 124),
        (SealaneError("odd"), 1),
    ],
)
def test_exit_code_and_one_line(error: SealaneError, code: int, monkeypatch, capsys) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        error.message += "\nand the next step"
        raise error

    monkeypatch.setattr("sealane.client.connect", fail)
    assert main.run(["models", "list", "--data", "anywhere"]) == code
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and captured.err.startswith("error: ") and "next step" in captured.err
    assert not captured.out


def test_usage_errors_are_2(capsys) -> None:
    assert main.run(["models", "push"]) == 2
    assert main.run(["no-such-command"]) == 2
    assert main.run(["models", "push", "/does/not/exist", "digits"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_no_installation_says_the_next_step(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.delenv("SEALANE_HOME", raising=False)
    assert main.run(["models", "list"]) == 1
    assert "SEALANE_HOME" in capsys.readouterr().err
    assert main.run(["models", "list", "--data", str(tmp_path)]) == 1
    assert "sealane up" in capsys.readouterr().err


def test_unreachable_services_are_3_and_no_traceback(tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "pki").mkdir()
    (tmp_path / "pki" / "ca.pem").write_text("")
    (tmp_path / "admin.json").write_text(json.dumps({"client_id": "a@p", "client_secret": "s", "project": "p"}))
    (tmp_path / "endpoints.json").write_text(json.dumps({"auth": "127.0.0.1:1", "registry": "127.0.0.1:1"}))
    monkeypatch.setattr("sealane.cli.context._TIMEOUT_SECONDS", 0.3)
    monkeypatch.setenv("SEALANE_HOME", str(tmp_path))
    assert main.run(["models", "list"]) in (3, 124)
    assert capsys.readouterr().err.startswith("error: ")


def test_up_hands_all_arguments_over(monkeypatch) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr("os.execv", lambda path, arguments: called.append(list(arguments)))
    main.run(["up", "--data", "somewhere", "--edge"])
    assert called == [[sys.executable, "-m", "sealane_local", "--data", "somewhere", "--edge"]]


def test_bad_inputs_are_refused_before_anything_is_sent(monkeypatch, capsys) -> None:
    class Nothing:
        def __enter__(self) -> Nothing:
            return self

        def __exit__(self, *args: object) -> None:
            return None

    monkeypatch.setattr("sealane.client.connect", lambda *args, **kwargs: Nothing())
    assert main.run(["predict", "camera", "--inputs", "{x: 1", "--data", "x"]) == 2
    assert "neither a .npz file nor JSON" in capsys.readouterr().err
    assert main.run(["predict", "camera", "--inputs", "/no/such.npz", "--data", "x"]) == 1
    assert "No such file" in capsys.readouterr().err


def test_rows_of_a_test_set_go_to_the_one_input_whatever_its_name(tmp_path: Path, monkeypatch, capsys) -> None:
    rows = np.ones((2, 3), np.float32)
    sent: list[object] = []

    class Client:
        def __enter__(self) -> Client:
            self.inference = self
            return self

        def __exit__(self, *args: object) -> None:
            return None

        def signature(self, model: str) -> Signature:
            return Signature((TensorSpec("image", "FP32", (-1, 3)),), ())

        def predict(self, model: str, inputs: object, **options: object) -> dict[str, Array]:
            sent.append(inputs)
            return {"probabilities": rows}

    monkeypatch.setattr("sealane.client.connect", lambda *args, **kwargs: Client())
    np.savez(tmp_path / "test.npz", x=rows, y=np.zeros(2))
    np.savez(tmp_path / "named.npz", image=rows, y=np.zeros(2))
    for name in ("test.npz", "named.npz"):
        assert main.run(["predict", "camera", "--inputs", str(tmp_path / name), "-o", "json", "--data", "d"]) == 0
        assert json.loads(capsys.readouterr().out) == {"probabilities": rows.tolist()}
    assert np.array_equal(sent[0], rows) and list(sent[1]) == ["image"]
