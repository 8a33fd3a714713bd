"""The peers bench's arithmetic and words: medians, what holds and what does not, requests that servers understand."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from bench.peers import processes, report
from bench.peers.foreign import peers
from bench.peers.models import MODELS
from bench.peers.rounds import Cell, Plan, Row
from bench.peers.servers import oip_answer, oip_request

from sealane.compat.openinference.v2 import openinference_pb2 as oip

PLAN = Plan(("mlp", "image", "mobilenetv2-int8", "mean-1k", "mean-150k"), (1, 8), 3, 1.0)


def cell(server: str, model: str, rps: float, *, callers: int = 8, p50: float = 100.0, cpu: float = 100.0) -> Cell:
    return Cell(server, model, callers, rps, p50, 2 * p50, cpu, 0)


def findings(*cells: Cell, others: float = 0.0) -> report.Findings:
    names = dict.fromkeys(each.server for each in cells)
    return report.Findings([Row(name, f"the {name}", "as it is") for name in names], list(cells), PLAN, others)


def test_numbers_are_medians_of_the_rounds_without_failed_ones() -> None:
    found = findings(*(cell("a", "mlp", rps) for rps in (10, 90, 20, 0)))
    assert found.median("a", "mlp", 8, "rps") == 20
    assert found.median("a", "image", 8, "rps") is None
    assert found.ratio("a", "b", "mlp", 8) is None


@pytest.mark.parametrize(("kserve_image", "holds"), [(1000 / 0.91, True), (1000 / 0.89, False)])
def test_work_4_needs_every_bound(kserve_image: float, holds: bool) -> None:
    slow = [cell(peer, model, 1000 / 1.6) for peer in report.BOUNDS for model in ("mlp", "image") if peer != "kserve"]
    ours = [cell("sealane", model, 1000) for model in ("mlp", "image")]
    found = findings(*ours, *slow, cell("kserve", "mlp", 1000 / 1.3), cell("kserve", "image", kserve_image))
    (promise,) = report.promises(found)
    assert (promise.id, promise.holds) == ("WORK-4", holds)
    assert f"kserve image {1000 / kserve_image:.2f}" in promise.figure


@pytest.mark.parametrize(("p50", "cpu", "holds"), [(1.4, 1.7, True), (1.6, 1.7, False), (1.4, 1.9, False)])
def test_work_2_is_latency_and_cpu(p50: float, cpu: float, holds: bool) -> None:
    cells = [cell("floor", model, 1, callers=1) for model in ("mean-1k", "mean-150k")]
    cells += [cell("sealane", model, 1, callers=1, p50=100 * p50, cpu=100 * cpu) for model in ("mean-1k", "mean-150k")]
    (promise,) = report.promises(findings(*cells))
    assert (promise.id, promise.holds) == ("WORK-2", holds)


def test_work_4_does_not_hold_where_a_peer_was_not_measured() -> None:
    slow = [cell(peer, model, 100) for peer in report.BOUNDS for model in ("mlp", "image") if peer != "pytriton"]
    (promise,) = report.promises(findings(*[cell("sealane", model, 1000) for model in ("mlp", "image")], *slow))
    assert not promise.holds
    assert "not measured: pytriton mlp, pytriton image" in promise.figure


def test_the_page_tells_who_was_left_out_and_that_the_machine_was_busy() -> None:
    found = findings(cell("sealane", "mlp", 1234, callers=1), cell("sealane", "mlp", 5678), others=0.4)
    found.rows.append(Row("ray", "Ray Serve", "", absent="cannot be installed: no wheel"))
    page = report.document(found)
    assert "**left out: cannot be installed: no wheel**" in page
    assert "Other work used 40%" in page
    assert "too much" in page
    assert "5,678" in page
    assert "23,320 requests/s" in page


def test_a_plot_is_svg_with_a_bar_for_every_server_measured() -> None:
    found = findings(cell("a", "mlp", 10), cell("a", "mlp", 10, callers=1), cell("b", "mlp", 20))
    drawn = ElementTree.fromstring(report.plot(found, "mlp"))
    bars = [each for each in drawn.iter("{http://www.w3.org/2000/svg}rect") if each.get("height") == "15"]
    assert sorted(float(bar.get("width", 0)) for bar in bars) == [190, 380, 380]


def test_the_json_holds_every_cell(tmp_path: Path) -> None:
    found = findings(cell("sealane", "mlp", 1), cell("sealane", "image", 2))
    assert [each["rps"] for each in json.loads(report.save(found, tmp_path).read_text())["cells"]] == [1, 2]


def test_requests_are_the_same_bytes_every_time_and_answers_are_read_either_way() -> None:
    model = MODELS["mlp"]
    request = oip.ModelInferRequest.FromString(oip_request(model))
    assert oip_request(model) == oip_request(model)
    assert np.array_equal(np.frombuffer(request.raw_input_contents[0], np.float32), model.sample().ravel())
    numbers = np.array([1, 2.5], np.float32)
    raw = oip.ModelInferResponse(raw_output_contents=[numbers.tobytes()])
    typed = oip.ModelInferResponse()
    typed.outputs.add(name="y").contents.fp32_contents.extend(numbers.tolist())
    for response in (raw, typed):
        assert oip_answer(response.SerializeToString()).tolist() == [1, 2.5]


def test_every_peer_of_a_promise_is_in_the_bench() -> None:
    assert set(report.BOUNDS) | {"triton", "floor", "echo"} == {peer.name for peer in peers()}


def test_processes_are_counted_with_what_they_started_and_ended_with_it() -> None:
    child = "import time; [i * i for i in range(3_000_000)]; print('spent', flush=True); time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}]).wait()"
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"spent\n"
        below = processes.tree([process.pid])
        assert len(below) == 2
        alone = sum(map(int, processes._stat(process.pid)[11:13])) * processes._TICK_US
        assert processes.cpu_us([process.pid]) > alone
        used = processes.memory([process.pid])
        assert used.rss >= used.pss > 1
    finally:
        processes.end(process)
        process.stdout.close()
    assert not any(processes._started(pid) for pid in below)


def test_orphans_of_a_server_end_with_it() -> None:
    """A process whose parent has gone is still in the session that was started for the server."""
    orphan = "import subprocess, sys, time; subprocess.Popen(['sleep', '60']); print('left', flush=True)"
    server = f"import subprocess, sys, time; subprocess.run([sys.executable, '-c', {orphan!r}]); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", server], stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"left\n"
        below = processes.tree([process.pid])
        assert len(below) >= 2
    finally:
        processes.end(process)
        process.stdout.close()
    assert not any(processes._started(pid) for pid in below)
