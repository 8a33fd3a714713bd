"""``sealane benchmark`` and ``sealane models check``: what a model does on this very machine, in a worker's own box."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack, cast

import click

from sealane.cli.context import Cli, common, note
from sealane.errors import BY_KIND, Internal, SealaneError, Unimplemented

if TYPE_CHECKING:
    from sealane.registry.v1 import variant_service_pb2 as pb


class _Options(TypedDict):
    rows: Path | None
    seconds: float
    executable: bool
    record: bool


class _Tensor(TypedDict):
    name: str
    datatype: str
    shape: list[int]


class _Signature(TypedDict):
    name: str
    inputs: list[_Tensor]
    outputs: list[_Tensor]


@click.command()
@click.argument("variant")
@click.option("--rows", type=click.Path(exists=True, path_type=Path), help=".npz with rows of input by name.")
@click.option("--seconds", default=1.0, show_default=True, help="Time for each setting.")
@click.option("--executable", is_flag=True, help="Allow formats and steps that hold code.")
@click.option("--record/--no-record", default=True, show_default=True, help="Keep the figures with the variant.")
@common
def benchmark(cli: Cli, variant: str, **options: Unpack[_Options]) -> None:
    """Tune VARIANT on this machine and keep what was measured with it.

    Finds the threads, instances and batch size that suit it here, and stores latency by batch, memory and throughput.
    Needs the worker's packages and the model's runtime on this machine.

    Example: sealane benchmark digits@production/litert-int8
    """
    version, _, wanted = variant.partition("/")
    with cli.client() as client, tempfile.TemporaryDirectory(prefix="sealane-") as folder:
        found = client.models.pull(version, folder, variant=wanted)
        profile = _profile(Path(folder), found, options)
        if options["record"]:
            client.models.record_measurement(found.name, profile)
            note(f"recorded with {found.name}")
    _show(cli, profile)


def _profile(folder: Path, variant: pb.Variant, options: _Options) -> pb.Measurement:
    command = ["sealane_worker.profiling", str(folder), *_format_options(variant)]
    command += ["--seconds", str(options["seconds"])]
    command += ["--data", str(options["rows"])] if options["rows"] else []
    command += ["--executable"] if options["executable"] else []
    for line in run_module(command):
        if "progress" in line:
            note(f"{cast(float, line['progress']):4.0%}  {line['message']}")
        elif "profile" in line:
            return _measurement(cast(dict[str, object], line["profile"]))
    raise Internal("the benchmark ended without a profile; run it again")


def _measurement(profile: dict[str, object]) -> pb.Measurement:
    from google.protobuf.timestamp_pb2 import Timestamp

    from sealane.registry.v1 import variant_service_pb2 as pb

    laps = cast(list[dict[str, float]], profile["batches"])
    now = Timestamp()
    now.GetCurrentTime()
    return pb.Measurement(
        device_class=str(profile["device_class"]),
        batch_size=int(laps[0]["batch_size"]),
        latency_p50_us=laps[0]["p50_us"],
        latency_p99_us=laps[0]["p99_us"],
        utilisation=cast(float, profile["utilisation"]),
        measure_time=now,
        runtime=str(profile["runtime"]),
        threads=cast(int, profile["threads"]),
        instances=cast(int, profile["instances"]),
        batches=[
            pb.BatchLatency(
                batch_size=int(lap["batch_size"]), latency_p50_us=lap["p50_us"], latency_p99_us=lap["p99_us"]
            )
            for lap in laps
        ],
        memory_bytes=cast(int, profile["memory_bytes"]),
        rows_per_second=cast(float, profile["rows_per_second"]),
        joules_per_row=cast(float, profile["joules_per_row"]),
    )


def _show(cli: Cli, found: pb.Measurement) -> None:
    facts: list[tuple[str, object]] = [
        ("device", found.device_class),
        ("runtime", found.runtime),
        ("threads", found.threads),
        ("instances", found.instances),
        ("memory", f"{found.memory_bytes / (1 << 20):.0f} MiB"),
        ("throughput", f"{found.rows_per_second:.0f} rows/s"),
        ("energy", f"{found.joules_per_row * 1000:.2f} mJ/row" if found.joules_per_row else ""),
    ]
    facts += [
        (f"batch {lap.batch_size}", f"p50 {lap.latency_p50_us:.0f} us  p99 {lap.latency_p99_us:.0f} us")
        for lap in found.batches
    ]
    cli.facts(facts, found)


@click.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--executable", is_flag=True, help="Allow formats and steps that hold code.")
@common
def check(cli: Cli, path: Path, executable: bool) -> None:
    """Load the model at PATH once in a sandbox, as a worker would, and say whether it can be served.

    Prints what callers send and get, with the steps of its sealane.json. What --output json prints is a file for
    `sealane models push --signatures`.

    Example: sealane models check photos/ --output json > photos.json
    """
    from sealane.client import model_files
    from sealane.registry.v1 import variant_service_pb2 as pb

    local = model_files.collect(path)
    with tempfile.TemporaryDirectory(prefix="sealane-") as folder:
        for inside, file in local.files.items():
            target = Path(folder) / inside
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
        variant = pb.Variant(format=local.format, files=[pb.ModelFile(path=inside) for inside in local.files])
        command = ["sealane_worker.load_check", folder, *_format_options(variant)]
        found = next(run_module([*command, *(["--executable"] if executable else [])]), None)
    if found is None:
        raise Internal("the check ended without an answer, what it said is above; report it")
    if cli.output == "json":
        click.echo(json.dumps(found, indent=2))
    if not found["loadable"]:
        raise BY_KIND.get(str(found["kind"]), SealaneError)(str(found["message"]), reason=str(found["reason"]))
    if cli.output == "table":
        memory = cast(int, found["memory_bytes"]) / (1 << 20)
        click.echo(
            f"loadable: {found['runtime']}, {cast(float, found['load_seconds']):.2f} s, {memory:.0f} MiB, "
            f"sandbox {found['sandbox']}, {found['warmed_requests']} recorded requests answered"
        )
        for signature in cast(list[_Signature], found["signatures"]):
            _show_signature(signature)


def _show_signature(signature: _Signature) -> None:
    click.echo(signature["name"])
    for word, tensors in (("send", signature["inputs"]), ("get", signature["outputs"])):
        for tensor in tensors:
            click.echo(f"  {word:<4}  {tensor['name']} {tensor['datatype']} {tensor['shape']}")


def run_module(command: list[str]) -> Iterator[dict[str, object]]:
    """Run one of the worker's modules on this machine; the JSON objects that it prints.

    Raises:
        Unimplemented: the worker's packages are not installed here.
        SealaneError: what the module says went wrong.
    """
    from importlib.util import find_spec

    if find_spec("sealane_worker") is None:
        raise Unimplemented(
            "this needs the worker on this machine; run pip install 'sealane[worker,litert]' or the extra of your "
            "runtime",
            reason="WORKER_NOT_INSTALLED",
        )
    with subprocess.Popen([sys.executable, "-m", *command], stdout=subprocess.PIPE, text=True) as process:  # noqa: S603  # our own module
        assert process.stdout is not None
        for line in process.stdout:
            found = cast(dict[str, object], json.loads(line))
            error = found.get("error")
            if isinstance(error, dict):
                raise BY_KIND.get(str(error["kind"]), Internal)(str(error["message"]), reason=str(error["reason"]))
            yield found


def _format_options(variant: pb.Variant) -> list[str]:
    from sealane.registry.v1 import variant_service_pb2 as pb

    options = ["--format", pb.Format.Name(variant.format).removeprefix("FORMAT_")]
    return [*options, "--runtime", variant.runtime] if variant.runtime else options
