"""``sealane predict``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

import click

from sealane.cli.context import Cli, common, note, print_json

if TYPE_CHECKING:
    from sealane.client import PredictOptions
    from sealane.client.inference import Inputs
    from sealane.tensors import Array


class _Predict(TypedDict):
    sealed: bool
    direct: bool
    trace: bool
    timeout: float
    save: Path | None


@click.command()
@click.argument("model")
@click.option("--inputs", required=True, metavar="FILE|JSON", help="A .npz or .json file, or JSON itself.")
@click.option("--sealed", is_flag=True, help="Seal the payload; only the workers can read it.")
@click.option("--direct", is_flag=True, help="Straight to a worker instead of through the gateway.")
@click.option("--trace", is_flag=True, help="Record the call in every hop and print the trace id.")
@click.option("--timeout", type=float, default=10.0, show_default=True, help="Seconds for everything.")
@click.option("--save", type=click.Path(dir_okay=False, path_type=Path), help="Write the outputs to a .npz file.")
@common
def predict(cli: Cli, model: str, inputs: str, **options: Unpack[_Predict]) -> None:
    """Run MODEL (a deployment, or a model with one deployment).

    A .npz holds arrays by input name; others in it are ignored. For a model with one input that
    array may also be called `x`, as in the test sets of jobs.

    Example: sealane predict camera --inputs '{"x": [[0.1, 0.2]]}' --sealed
    """
    wanted: PredictOptions = {
        "via": "direct" if options["direct"] else "gateway",
        "sealed": options["sealed"],
        "timeout": options["timeout"],
    }
    with cli.client() as client:
        arrays = _read(inputs, lambda: [spec.name for spec in client.inference.signature(model).inputs])
        if options["trace"]:
            outputs, trace_id = client.inference.predict_traced(model, arrays, **wanted)
            note(f"trace {trace_id}")
        else:
            outputs = client.inference.predict(model, arrays, **wanted)
    _write(cli, outputs, options["save"])


def _read(text: str, names: Callable[[], list[str]]) -> Inputs:
    """Arrays from a file or from JSON."""
    import json

    import numpy as np

    from sealane.errors import InvalidArgument

    if text.endswith(".npz"):
        with np.load(text, allow_pickle=False) as archive:
            arrays: dict[str, Array] = {name: archive[name] for name in archive.files}
        if len(arrays) == 1:
            return next(iter(arrays.values()))
        taken = names()
        found = {name: arrays[name] for name in taken if name in arrays}
        # A test set calls its rows `x`, whatever the model's one input is called.
        return arrays["x"] if not found and len(taken) == 1 and "x" in arrays else found
    try:
        parsed: Inputs = json.loads(Path(text).read_text() if text.endswith(".json") else text)
    except ValueError as error:
        if not text.lstrip().startswith(("{", "[")) and not Path(text).exists():
            raise InvalidArgument(
                f"--inputs: file {text!r} does not exist; name a .npz or .json file, or give JSON", field="inputs"
            ) from error
        raise InvalidArgument(
            f"--inputs is neither a .npz file nor JSON ({error}); give arrays by input name", field="inputs"
        ) from error
    return parsed


def _write(cli: Cli, outputs: Mapping[str, Array], save: Path | None) -> None:
    if save is not None:
        import numpy as np

        np.savez(save, allow_pickle=False, **outputs)
        note(f"outputs written to {save}")
    elif cli.output == "json":
        print_json({name: array.tolist() for name, array in outputs.items()})
    else:
        for name, array in outputs.items():
            click.echo(f"{name} {array.dtype} {list(array.shape)}\n{array}")
