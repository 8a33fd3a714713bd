"""Models pushed out of the process that trained them: what the suite answers is what the object answers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from framework_models import TORCH_PYTHON, Array, Models, elsewhere
from framework_site import deployed, platform_of, serving
from light_site import LightSite

from sealane.errors import FailedPrecondition, InvalidArgument
from sealane.registry.v1 import model_service_pb2

pytestmark = [
    pytest.mark.stack,
    pytest.mark.tensorflow,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore"),  # the frameworks' own, while they train and convert
]
Pushed = tuple[object, object, Mapping[str, Array], Mapping[str, Array]]
"""A model, an example for the push, what is asked later, and what the object answers to it."""


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LightSite]:
    with serving(tmp_path_factory.mktemp("suite"), {}) as site:
        yield site


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


def functional(models: Models) -> Pushed:
    import keras

    keras.utils.set_random_seed(5)
    upper, lower = keras.Input((32,), name="upper"), keras.Input((32,), name="lower")
    hidden = keras.layers.Dense(32, activation="relu")(keras.layers.concatenate([upper, lower]))
    model = keras.Model([upper, lower], keras.layers.Dense(10, activation="softmax")(hidden))
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit([models.train[:, :32], models.train[:, 32:]], models.train_labels, epochs=8, verbose=0)
    halves = models.rows[:, :32], models.rows[:, 32:]
    wanted = {"output_0": np.asarray(model(list(halves)))}
    return model, halves, dict(zip(("upper", "lower"), halves, strict=True)), wanted


def subclassed(models: Models) -> Pushed:
    import keras

    class SimpleModel(keras.Model):
        """Whose .h5 nobody can load."""

        def __init__(self) -> None:
            super().__init__()
            self.hidden = keras.layers.Dense(32, activation="relu")
            self.drop = keras.layers.Dropout(0.5)
            self.last = keras.layers.Dense(10, activation="softmax")

        def call(self, pixels: object, training: bool = False) -> object:
            return {"probabilities": self.last(self.drop(self.hidden(pixels), training=training))}

    keras.utils.set_random_seed(5)
    model = SimpleModel()
    model.compile("adam", {"probabilities": "sparse_categorical_crossentropy"})
    model.fit(models.train, {"probabilities": models.train_labels}, epochs=8, verbose=0)
    # As numpy counts: in doubles.
    return model, models.rows.astype(np.float64), {"pixels": models.rows}, model(models.rows)


def module(models: Models) -> Pushed:
    import tensorflow as tf

    keras = models.keras

    class Module(tf.Module):
        """A function of one's own over a trained model."""

        def __init__(self) -> None:
            self.keras = keras

        def __call__(self, pixels: object) -> object:
            return {"log": tf.math.log(self.keras(pixels))}  # type: ignore[operator]

    model = Module()
    return model, {"pixels": models.rows}, {"pixels": models.rows}, {"log": model(models.rows)["log"].numpy()}


def classifier(models: Models) -> Pushed:
    from sklearn.linear_model import LogisticRegression

    return _estimator(LogisticRegression(max_iter=1000).fit(models.train, models.train_labels), models)


def pipeline(models: Models) -> Pushed:
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), MLPClassifier((32,), max_iter=60, random_state=3))
    return _estimator(model.fit(models.train, models.train_labels), models)


def regressor(models: Models) -> Pushed:
    from sklearn.linear_model import Ridge

    model = Ridge().fit(models.train, models.train_labels)
    return model, models.rows, {"X": models.rows}, {"variable": model.predict(models.rows).reshape(-1, 1)}


def onnx_model(models: Models) -> Pushed:
    import onnx

    built = models.build("onnx")
    return onnx.load(str(built.path)), models.rows, {"pixels": models.rows}, built.wanted


def _estimator(model: object, models: Models) -> Pushed:
    wanted = {
        "label": model.predict(models.rows),  # type: ignore[attr-defined]
        "probabilities": model.predict_proba(models.rows),  # type: ignore[attr-defined]
    }
    return model, models.rows, {"X": models.rows}, wanted


FRAMEWORKS = {"functional": "keras", "subclassed": "keras", "module": "tensorflow", "onnx_model": "onnx"}
BUILDERS = (functional, subclassed, module, classifier, pipeline, regressor, onnx_model)


@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
def test_an_object_of_the_training_process_is_served_as_it_answers_itself(
    build: Callable[[Models], Pushed], suite: LightSite, models: Models
) -> None:
    model, example, inputs, wanted = build(models)
    version = suite.client.models.push(model, build.__name__.replace("_", "-"), example=example)
    made_with = version.lineage.framework
    assert made_with == FRAMEWORKS.get(build.__name__, "sklearn")
    assert version.lineage.framework_version == sys.modules[made_with].__version__
    answer, placement, platform = ask(suite, version, inputs)
    assert set(answer) == set(wanted)
    for output, array in wanted.items():
        np.testing.assert_allclose(answer[output], array, atol=1e-5, err_msg=output)
    # One row is asked as well: rows are free, whatever the example had.
    assert placement == 1, "the example was run before the model was called ready"
    assert platform == ("tensorflow_savedmodel" if build in (functional, subclassed, module) else "onnxruntime_onnx")


def ask(
    site: LightSite, version: model_service_pb2.Version, inputs: Mapping[str, Array]
) -> tuple[Mapping[str, Array], int, str]:
    """What a version answers, to all rows and to one; the requests that it was warmed with; its runtime."""
    with deployed(site, version.name, "pushed") as name:
        answer = site.client.inference.predict(name, inputs)
        alone = site.client.inference.predict(name, {key: array[:1] for key, array in inputs.items()})
        for output, array in alone.items():
            np.testing.assert_allclose(array, answer[output][:1], atol=1e-5)
        (placement,) = site.client.deployments.get(name).placements
        return answer, placement.warmed_requests, platform_of(site, name)


def test_an_object_that_answers_otherwise_once_exported_is_not_pushed(suite: LightSite, models: Models) -> None:
    import keras

    class Unsteady(keras.Model):
        """Counts its calls in Python, of which an export keeps one."""

        calls = 0

        def call(self, pixels: object) -> object:
            type(self).calls += 1
            return pixels * float(type(self).calls)  # type: ignore[operator]

    with pytest.raises(FailedPrecondition, match=r"off by up to \d") as caught:
        suite.client.models.push(Unsteady(), "unsteady", example=models.rows)
    assert caught.value.reason == "EXPORT_DIFFERS"
    assert "unsteady" not in {model.name.rpartition("/")[2] for model in suite.client.models.list()}


def test_a_subclassed_model_that_was_never_called_needs_an_example(suite: LightSite, models: Models) -> None:
    import keras

    class Fresh(keras.Model):
        """Of which nothing is known before it is called."""

        def __init__(self) -> None:
            super().__init__()
            self.last = keras.layers.Dense(10)

        def call(self, left: object, right: object) -> object:
            return self.last(left) + self.last(right)

    with pytest.raises(InvalidArgument, match="call it once on data or pass example="):
        suite.client.models.push(Fresh(), "fresh")
    version = suite.client.models.push(Fresh(), "fresh", example=(models.rows, models.rows))
    assert {spec.name: list(spec.shape) for spec in version.signatures[0].inputs} == {
        "left": [-1, 64],
        "right": [-1, 64],
    }


def test_a_torch_module_is_pushed_out_of_its_own_environment(suite: LightSite, models: Models, tmp_path: Path) -> None:
    if not TORCH_PYTHON.exists():
        pytest.skip("no environment with torch; make .venv-torch/.ready (4.5 GB) or set SEALANE_TORCH_PYTHON")
    script = Path(__file__).with_name("torch_push.py")
    elsewhere([TORCH_PYTHON, "-W", "ignore", script, models.digits_file(tmp_path), suite.data, tmp_path], tmp_path)
    with np.load(tmp_path / "answers.npz") as kept:
        wanted = dict(kept)
    for name in ("torch-module", "torch-older"):
        version = suite.client.models.get_version(f"{name}@1")
        answer, warmed, platform = ask(suite, version, {"pixels": models.rows})
        assert (set(answer), warmed, platform) == (set(wanted), 1, "onnxruntime_onnx")
        for output, array in wanted.items():
            np.testing.assert_allclose(answer[output], array, atol=1e-5, err_msg=output)
    both = {"left": models.rows, "right": models.rows}
    answer, _, _ = ask(suite, suite.client.models.get_version("torch-two@1"), both)
    np.testing.assert_allclose(answer["output_0"], models.rows * 3, atol=1e-5)
    assert np.array_equal(answer["output_1"], models.rows.argmax(-1))
    refusals = json.loads((tmp_path / "refusals.json").read_text())
    assert {name: told[:2] for name, told in refusals.items()} == {
        "unsteady": ["FAILED_PRECONDITION", "EXPORT_DIFFERS"],
        "none": ["INVALID_ARGUMENT", "EXAMPLE_NEEDED"],
        "branching": ["INVALID_ARGUMENT", "MODEL_NOT_EXPORTABLE"],
    }
