"""``sealane models``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

import click

from sealane.cli.benchmark import check
from sealane.cli.context import Cli, common, enum_word, note, progress_bar
from sealane.cli.model_reviews import COMMANDS, labels_of

if TYPE_CHECKING:
    from sealane.client.models import PushOptions
    from sealane.registry.v1 import model_service_pb2 as pb


@click.group()
def models() -> None:
    """Push, pull, import, export and name models.

    A version is written MODEL@NUMBER or MODEL@ALIAS.
    """


models.add_command(check)
for _command in COMMANDS:
    models.add_command(_command)


class _Push(TypedDict):
    variant: str
    alias: str
    description: str
    commit: str
    metric: tuple[str, ...]
    dataset: tuple[str, ...]
    source_version: str
    license: str
    label: tuple[str, ...]
    notes: str
    sign_key: Path | None
    signatures: Path | None
    require_sealed: bool
    sealed_to: tuple[str, ...]


class _Import(TypedDict):
    layout: str | None
    versions: str
    alias: str


class _Export(TypedDict):
    layout: str
    variant: str
    name: str


@models.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.argument("name")
@click.option("--variant", default="", help="Id of the variant; default by the files.")
@click.option("--alias", default="", help="Alias to point at the new version.")
@click.option("--description", default="", help="What the model is for, when it is new.")
@click.option("--commit", default="", help="Commit of the training code.")
@click.option("--metric", multiple=True, metavar="NAME=VALUE", help="Metric measured in training; may be repeated.")
@click.option("--dataset", multiple=True, metavar="NAME", help="Dataset it was trained on; may be repeated.")
@click.option("--source-version", default="", metavar="VERSION", help="Version that it was made from.")
@click.option("--license", default="", help="Licence, an SPDX expression.")
@click.option("--label", multiple=True, metavar="NAME=VALUE", help="Label of the version; may be repeated.")
@click.option("--notes", default="", help="What is new in the version.")
@click.option(
    "--sign-key", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Private key, PEM, to sign with."
)
@click.option(
    "--signatures",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="What callers send and get; default: signatures.json beside the model, or what the model says.",
)
@click.option("--require-sealed", is_flag=True, help="Refuse what is sent in plaintext, on every protocol.")
@click.option(
    "--sealed-to",
    multiple=True,
    metavar="NAME=VALUE",
    help="Who may open what is sealed: tier=, region=, zone=, pool=, lowest clearance=, or suite=; may be repeated.",
)
@common
def push(cli: Cli, path: Path, name: str, **options: Unpack[_Push]) -> None:
    """Make PATH the next version of model NAME.

    PATH is a SavedModel folder, or a .tflite, .onnx, .pt2, .pt, .keras or OpenVINO .xml file, or a folder with the
    files of an MXNet or Caffe model, which is turned into ONNX. A sealane.json, warmup.binpb and package/ beside it
    travel along.

    Where the model does not tell what callers send and get (TorchScript, remote.json, a sealane.json with steps),
    --signatures says it, or a signatures.json beside the model. `sealane models check PATH --output json` prints
    such a file.

    Example: sealane models push export/ digits --alias production

    Example: sealane models push export/ triage --require-sealed --sealed-to region=eu --sealed-to clearance=restricted
    """
    from sealane.client.model_signatures import read_signatures_file
    from sealane.security.sealing_policy import parse

    metrics = dict(_metric(text) for text in options["metric"])
    demands = options["require_sealed"] or options["sealed_to"]
    wanted: PushOptions = {
        "variant": options["variant"],
        "alias": options["alias"],
        "description": options["description"],
        "commit": options["commit"],
        "metrics": metrics,
        "datasets": options["dataset"],
        "source_version": options["source_version"],
        "license": options["license"],
        "labels": labels_of(options["label"]),
        "notes": options["notes"],
        "signatures": read_signatures_file(options["signatures"]) if options["signatures"] else (),
    }
    if options["sign_key"]:
        wanted["sign_key"] = options["sign_key"]
    if demands:
        wanted["sealing"] = parse(options["require_sealed"], options["sealed_to"])
    with cli.client() as client, progress_bar() as progress:
        wanted["progress"] = progress
        version = client.models.push(path, name, **wanted)
    _show(cli, version)


@models.command(name="import")
@click.argument("path", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("name")
@click.option(
    "--from",
    "layout",
    type=click.Choice(["mlflow", "tensorflow-serving", "triton"]),
    default=None,
    help="Layout of PATH; default: by what lies there.",
)
@click.option("--versions", default="", metavar="latest|all|N", help="Which of several; default: as the layout says.")
@click.option("--alias", default="", help="Alias to point at the last of the new versions.")
@common
def import_layout(cli: Cli, path: Path, name: str, **options: Unpack[_Import]) -> None:
    """Make what another system laid out in PATH the next versions of model NAME.

    PATH is a model folder of MLflow (with MLmodel), a base_path of TensorFlow Serving (with numbered folders), or a
    model of a Triton repository (with config.pbtxt). Nothing in it is run: pickles are refused with what to do instead.
    What does not come over is printed.

    Example: sealane models import mlruns/1/models/m-7f/artifacts digits

    Example: sealane models import /models/digits digits --from tensorflow-serving --versions all --alias production
    """
    with cli.client() as client, progress_bar() as progress:
        done = client.models.import_layout(
            path,
            name,
            layout=options["layout"] or "",
            versions=options["versions"],
            alias=options["alias"],
            progress=progress,
        )
    for item in done:
        for missed in item.notes:
            note(f"{item.source}: {missed}")
    rows = [
        (item.version.name, item.source, ", ".join(_last(one.name) for one in item.version.variants)) for item in done
    ]
    cli.table(("VERSION", "SOURCE", "VARIANT"), rows, [item.version for item in done])


@models.command(name="export")
@click.argument("version")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--to",
    "layout",
    type=click.Choice(["tensorflow-serving", "triton"]),
    required=True,
    help="Layout to write.",
)
@click.option("--variant", default="", help="Id of the variant; default: the one pushed first.")
@click.option("--name", default="", help="What the other server calls the model; default: as here.")
@common
def export_layout(cli: Cli, version: str, directory: Path, **options: Unpack[_Export]) -> None:
    """Write VERSION into DIRECTORY as another server wants it.

    TensorFlow Serving gets DIRECTORY/NUMBER, so DIRECTORY is its base_path; Triton gets DIRECTORY/NAME, so DIRECTORY is
    its model repository. What that server cannot hold is refused; what it does not need is printed.

    Example: sealane models export digits@production /models/digits --to tensorflow-serving
    """
    from google.protobuf.struct_pb2 import Struct

    with cli.client() as client:
        done = client.models.export_layout(version, directory, **options)
    for missed in done.notes:
        note(missed)
    told = Struct()
    told.update({"path": str(done.path), "notes": list(done.notes)})
    cli.facts((("path", done.path),), told)


@models.command(name="list")
@click.option("--filter", "filter_", default="", help="Such as 'labels.team = vision AND name : digits'.")
@click.option("--order-by", default="", help="name, create_time or update_time, with ' desc' behind it.")
@common
def list_models(cli: Cli, filter_: str, order_by: str) -> None:
    """List the models of the project."""
    with cli.client() as client:
        found = list(client.models.find(filter_, order_by))
    rows = [(_last(model.name), model.description, model.update_time.ToJsonString()) for model in found]
    cli.table(("MODEL", "DESCRIPTION", "UPDATED"), rows, found)


@models.command()
@click.argument("model")
@common
def versions(cli: Cli, model: str) -> None:
    """List the versions of MODEL with their variants, newest first."""
    with cli.client() as client:
        found = list(client.models.versions(model))
    from sealane.registry.v1 import model_service_pb2

    def state(version: pb.Version) -> str:
        return enum_word(model_service_pb2.Version.State.Name(version.state), "STATE_")

    rows = [
        (version.number, state(version), _last(variant.name), variant.size_bytes, _accuracy(version, index))
        for version in found
        for index, variant in enumerate(version.variants)
    ]
    cli.table(("VERSION", "STATE", "VARIANT", "BYTES", "ACCURACY"), rows, found)


@models.command()
@click.argument("version")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option("--variant", default="", help="Id of the variant; default: the one pushed first.")
@common
def pull(cli: Cli, version: str, directory: Path, variant: str) -> None:
    """Fetch the files of VERSION into DIRECTORY; digests are checked."""
    with cli.client() as client, progress_bar() as progress:
        found = client.models.pull(version, directory, variant=variant, progress=progress)
    cli.facts((("variant", found.name), ("bytes", found.size_bytes), ("digest", found.digest)), found)


@models.command()
@click.argument("model")
@click.argument("alias")
@click.argument("version", type=int)
@common
def alias(cli: Cli, model: str, alias: str, version: int) -> None:
    """Point ALIAS of MODEL at VERSION (a number)."""
    with cli.client() as client:
        found = client.models.move_alias(model, alias, version)
    cli.facts((("alias", found.name), ("version", found.version)), found)


def _metric(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no NAME=VALUE with a number", param_hint="--metric") from None


def _show(cli: Cli, version: pb.Version) -> None:
    from sealane.registry.v1 import variant_service_pb2

    for variant in version.variants:
        form = enum_word(variant_service_pb2.Format.Name(variant.format), "FORMAT_")
        note(f"{_last(variant.name)}: {form}, {variant.size_bytes} bytes, {variant.digest}")
    cli.facts((("version", version.name),), version)


def _accuracy(version: pb.Version, index: int) -> str:
    measured = [item.accuracy for item in version.variants[index].measurements if item.rows]
    return f"{measured[-1]:.4f}" if measured else "-"


def _last(name: str) -> str:
    return name.rpartition("/")[2]
