"""``sealane predict``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

import click

from sealane.cli.context import Cli, common, note, print_json

if TYPE_CHECKING:
    from sealane.client import PredictOptions
    from sealane.tensors import Array


class _Predict(TypedDict):
    inputs: str
    file: tuple[str, ...]
    sealed: bool
    require: tuple[str, ...]
    direct: bool
    trace: bool
    timeout: float
    save: Path | None


@click.command()
@click.argument("model")
@click.option("--inputs", default="", metavar="FILE|JSON", help="A .npz or .json file, or JSON itself.")
@click.option(
    "--file",
    multiple=True,
    metavar="NAME=PATH",
    help="Send a file, such as a photo, as an element of BYTES input NAME; repeated, as the next element.",
)
@click.option("--sealed", is_flag=True, help="Seal the payload; only the workers can read it.")
@click.option(
    "--require", multiple=True, metavar="NAME=VALUE", help="With --sealed: what a worker's signed statement must say."
)
@click.option("--direct", is_flag=True, help="Straight to a worker instead of through the gateway.")
@click.option("--trace", is_flag=True, help="Record the call in every hop and print the trace id.")
@click.option("--timeout", type=float, default=10.0, show_default=True, help="Seconds for everything.")
@click.option("--save", type=click.Path(dir_okay=False, path_type=Path), help="Write the outputs to a .npz file.")
@common
def predict(cli: Cli, model: str, **options: Unpack[_Predict]) -> None:
    """Run MODEL (a deployment, or a model with one deployment).

    A .npz holds arrays by input name; others in it are ignored. For a model with one input that
    array may also be called `x`, as in the test sets of jobs.

    Files of one NAME are one input of shape [number of files].

    Example: sealane predict camera --inputs '{"x": [[0.1, 0.2]]}' --sealed

    Example: sealane predict photos --file photo=cat.jpg --file photo=dog.png
    """
    from sealane.cli import arrays
    from sealane.cli.proxy import requirement

    wanted: PredictOptions = {
        "via": "direct" if options["direct"] else "gateway",
        "sealed": options["sealed"],
        "require": requirement(options["require"]),
        "timeout": options["timeout"],
    }
    with cli.client() as client:
        inputs = arrays.read(
            options["inputs"],
            options["file"],
            lambda: [spec.name for spec in client.inference.signature(model).inputs],
        )
        if options["trace"]:
            outputs, trace_id = client.inference.predict_traced(model, inputs, **wanted)
            note(f"trace {trace_id}")
        else:
            outputs = client.inference.predict(model, inputs, **wanted)
    _write(cli, outputs, options["save"])


def _write(cli: Cli, outputs: Mapping[str, Array], save: Path | None) -> None:
    from sealane.cli import arrays

    if save is not None:
        arrays.save(save, outputs)
        note(f"outputs written to {save}")
    elif cli.output == "json":
        print_json({name: arrays.as_json(array) for name, array in outputs.items()})
    else:
        for name, array in outputs.items():
            click.echo(f"{name} {array.dtype} {list(array.shape)}\n{array}")
