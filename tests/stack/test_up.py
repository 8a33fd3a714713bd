"""``sealane up``: what it prints, what it writes, what it keeps, how it ends."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from light_site import CAMERA_A, CAMERA_B, LightSite, eventually
from orphans import none_left

from sealane.client import connect

pytestmark = pytest.mark.stack
NAMES = {f"{name}{suffix}" for name in ("auth", "registry", "scheduler", "inference") for suffix in ("", "_mesh")}


@contextmanager
def up(data: Path) -> Iterator[subprocess.Popen[str]]:
    """The command, once it has printed ``ready``."""
    command = [str(Path(sys.executable).with_name("sealane")), "up", "--data", str(data)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    # A suite that never gets ready ends here, not at the end of the whole run.
    alarm = threading.Timer(60, process.terminate)
    alarm.start()
    try:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        yield process
    finally:
        alarm.cancel()
        if process.poll() is None:
            process.terminate()
            process.wait(20)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_up_and_up_again(tmp_path: Path) -> None:
    data = tmp_path / "installation"
    with none_left():
        with up(data) as process:
            first = json.loads((data / "endpoints.json").read_text())
            assert set(first) >= NAMES | {"auth_http"}
            assert mode(data / "admin.json") == 0o600
            admin = json.loads((data / "admin.json").read_text())
            assert set(admin) >= {"client_id", "client_secret", "token_url"}
            assert admin["token_url"] == f"https://{first['auth_http']}/oauth2/token"
            assert (data / "pki" / "ca.pem").read_text().startswith("-----BEGIN CERTIFICATE-----")
            assert mode(data) == 0o700
            # Whatever is secret is readable by its owner alone.
            for secret in (*data.rglob("*.key"), *data.rglob("*.token"), data / "auth" / "admin.json"):
                assert mode(secret) & 0o077 == 0, secret
            with connect(data) as client:
                site = LightSite(None, client)  # type: ignore[arg-type]  # no stack of ours
                site.deploy_cameras(site.push())
                expected = client.inference.predict(CAMERA_B, json.loads(LIST))
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
            assert process.stderr is not None and process.stderr.read() == ""
        with up(data) as process:
            assert json.loads((data / "endpoints.json").read_text()) == first, "no address has changed"
            with connect(data) as client:
                assert client.models.get_version("digits@latest").number == 1
                for camera in (CAMERA_A, CAMERA_B):
                    client.deployments.wait(camera, 20)
                eventually(lambda: bool(client.inference.predict(CAMERA_A, json.loads(LIST))), "camera A is answered")
                again = client.inference.predict(CAMERA_B, json.loads(LIST))
                assert (again["probabilities"] == expected["probabilities"]).all()
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0


def test_a_start_that_fails_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "auth").write_text("a file where auth wants its folder")
    command = [str(Path(sys.executable).with_name("sealane")), "up", "--data", str(tmp_path)]
    with none_left():
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and "auth" in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1, "no traceback"


LIST = json.dumps([[[[0.5]] * 8] * 8])


def test_kill_9_of_the_supervisor_leaves_nothing_and_the_next_up_finds_all(tmp_path: Path) -> None:
    with none_left():
        with up(tmp_path) as process:
            with connect(tmp_path) as client:
                name = LightSite(None, client).push()  # type: ignore[arg-type]  # no stack of ours
            process.kill()
            process.wait()
        with up(tmp_path), connect(tmp_path) as client:
            assert client.models.get_version(name).number == 1


def test_a_second_up_on_the_same_folder_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("sealane")), "up", "--data", str(tmp_path)]
    with none_left(), up(tmp_path) as process:
        second = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        assert second.returncode == 1
        assert f"already running (pid {process.pid})" in second.stderr and "Traceback" not in second.stderr
        with connect(tmp_path) as client:
            assert len(list(client.nodes.list())) == 2
