"""Runs in MXNet's own environment: builds, trains and runs models and leaves files and answers in a folder.

``python mxnet_models.py DIGITS.npz FOLDER``
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import mxnet as mx
import numpy as np

sym = mx.sym


def mobile_block():
    """Convolutions, depthwise too, batch normalisation with and without gamma, additions, clipping."""
    x = sym.Variable("data")
    y = sym.Convolution(x, kernel=(3, 3), num_filter=8, pad=(1, 1), stride=(2, 2), no_bias=True, name="c1")
    y = sym.BatchNorm(y, fix_gamma=False, eps=1e-4, name="b1")
    y = sym.clip(sym.Activation(y, act_type="relu"), a_min=0, a_max=6)
    z = sym.Convolution(y, kernel=(3, 3), num_filter=8, num_group=8, pad=(1, 1), name="c2")
    z = sym.BatchNorm(z, name="b2")
    y = sym.Pooling(sym.elemwise_add(y, z), global_pool=True, pool_type="avg", kernel=(1, 1))
    return sym.softmax(sym.FullyConnected(sym.Flatten(y), num_hidden=5, name="fc"))


def pooled(**options):
    def make():
        return sym.Pooling(sym.Variable("data"), **options)

    return make


def heads():
    """Several outputs, cuts, joins."""
    x = sym.Variable("data")
    parts = sym.SliceChannel(x, num_outputs=3, axis=1)
    joined = sym.Concat(parts[2], parts[0] * 2 + 1, 1 - parts[1], dim=1)
    mean = sym.mean(joined, axis=(2, 3))
    return sym.Group([sym.transpose(joined, axes=(0, 2, 3, 1)), mean, sym.slice_axis(x, axis=2, begin=1, end=None)])


def activations():
    x = sym.Variable("data")
    return sym.Group(
        [
            sym.LeakyReLU(x, act_type="leaky", slope=0.1),
            sym.LeakyReLU(x, act_type="elu", slope=0.7),
            sym.LeakyReLU(x, act_type="gelu"),
            sym.LeakyReLU(x, act_type="prelu", name="p"),
            sym.Activation(x, act_type="softrelu"),
            sym.Activation(x, act_type="softsign"),
            sym.L2Normalization(x, mode="channel"),
            sym.LRN(x, nsize=3, alpha=0.01),
            sym.InstanceNorm(x, name="i"),
            sym.exp(sym.negative(sym.square(x))),
        ]
    )


def shapes():
    x = sym.Variable("data")
    y = sym.Reshape(x, shape=(0, -1, 2))
    z = sym.Pad(x, mode="constant", constant_value=0.5, pad_width=(0, 0, 0, 0, 1, 2, 3, 0))
    return sym.Group(
        [
            y,
            z,
            sym.UpSampling(x, scale=2, sample_type="nearest"),
            sym.slice(x, begin=(None, 1, 0), end=(None, 3, None)),
            sym.squeeze(sym.expand_dims(sym.max(x, axis=1), axis=1), axis=1),
            sym.SwapAxis(x, dim1=1, dim2=3),
            sym.stack(x, x, axis=1),
            sym.argmax(x, axis=1),
        ]
    )


def deconvolution():
    x = sym.Variable("data")
    y = sym.Deconvolution(
        x, kernel=(3, 3), stride=(2, 2), pad=(1, 1), adj=(1, 1), num_filter=4, name="d", no_bias=False
    )
    return sym.LayerNorm(y, name="n")


def sequence():
    x = sym.Variable("data")
    y = sym.Embedding(x, input_dim=7, output_dim=5, name="e")
    y = sym.FullyConnected(y, num_hidden=6, flatten=False, name="f")
    return sym.log_softmax(sym.batch_dot(y, y, transpose_b=True), axis=-1)


def labelled():
    return sym.SoftmaxOutput(sym.FullyConnected(sym.Variable("data"), num_hidden=4, name="f"), name="softmax")


IMAGE = (2, 3, 7, 9)
MODELS = {
    "mobile": (mobile_block, (2, 3, 16, 16)),
    "heads": (heads, IMAGE),
    "activations": (activations, IMAGE),
    "shapes": (shapes, (*IMAGE[:2], 8, 8)),
    "deconvolution": (deconvolution, IMAGE),
    "sequence": (sequence, (2, 6)),
    "labelled": (labelled, (2, 9)),
}
for pad in ((0, 0), (1, 1)):
    for convention in ("valid", "full"):
        for kind in ("max", "avg"):
            options = {"kernel": (3, 2), "stride": (2, 1), "pad": pad, "pool_type": kind}
            name = f"{kind}-{convention}-{pad[0]}"
            MODELS[name] = (pooled(pooling_convention=convention, **options), IMAGE)
MODELS["avg-inside"] = (
    pooled(kernel=(3, 3), stride=(2, 2), pad=(1, 1), pool_type="avg", count_include_pad=False),
    IMAGE,
)
MODELS["avg-inside-full"] = (
    pooled(
        kernel=(3, 3), stride=(2, 2), pad=(1, 1), pool_type="avg", count_include_pad=False, pooling_convention="full"
    ),
    IMAGE,
)
MODELS["sum"] = (pooled(kernel=(3, 3), stride=(2, 2), pad=(1, 1), pool_type="sum"), IMAGE)


def save(name, symbol, shape, folder, random):
    """Run a symbol with random weights and keep everything."""
    shapes, _, auxiliary = symbol.infer_shape_partial(data=shape)
    arguments = dict(zip(symbol.list_arguments(), shapes, strict=True))
    weights = {
        key: mx.nd.array(random.normal(0, 0.5, size))
        for key, size in arguments.items()
        if key != "data" and not key.endswith("label")
    }
    states = {
        key: mx.nd.array(random.uniform(0.5, 1.5, size))
        for key, size in zip(symbol.list_auxiliary_states(), auxiliary, strict=True)
    }
    rows = random.integers(0, 7, shape) if name == "sequence" else random.normal(0, 1, shape)
    data = mx.nd.array(rows.astype("float32"))
    labels = {key: mx.nd.zeros(size) for key, size in arguments.items() if key.endswith("label")}
    executor = symbol.bind(mx.cpu(), {"data": data, **labels, **weights}, aux_states=states, grad_req="null")
    outputs = executor.forward(is_train=False)
    symbol.save(str(folder / f"{name}-symbol.json"))
    saved = {f"arg:{key}": value for key, value in weights.items()}
    mx.nd.save(str(folder / f"{name}-0000.params"), {**saved, **{f"aux:{k}": v for k, v in states.items()}})
    np.savez(folder / f"{name}.npz", data=data.asnumpy(), **{f"o{i}": out.asnumpy() for i, out in enumerate(outputs)})


def train_digits(digits, folder):
    """Dense 64-32-10 on the digits by Gluon, exported as its users do."""
    mx.random.seed(3)
    net = mx.gluon.nn.HybridSequential()
    net.add(mx.gluon.nn.Dense(32, activation="relu"), mx.gluon.nn.Dense(10))
    net.initialize(mx.init.Xavier())
    net.hybridize()
    trainer = mx.gluon.Trainer(net.collect_params(), "adam", {"learning_rate": 0.003})
    loss = mx.gluon.loss.SoftmaxCrossEntropyLoss()
    rows, labels = mx.nd.array(digits["x"]), mx.nd.array(digits["y"])
    for _ in range(20):
        for start in range(0, len(rows), 32):
            with mx.autograd.record():
                wrong = loss(net(rows[start : start + 32]), labels[start : start + 32])
            wrong.backward()
            trainer.step(32)
    net.export(str(folder / "digits"))
    np.savez(folder / "digits.npz", data=digits["tx"], o0=net(mx.nd.array(digits["tx"])).asnumpy())


def main():
    digits, folder = np.load(sys.argv[1]), Path(sys.argv[2])
    random = np.random.default_rng(5)
    for name, (make, shape) in MODELS.items():
        save(name, make(), shape, folder, random)
    train_digits(digits, folder)
    print(json.dumps([*MODELS, "digits"]))


if __name__ == "__main__":
    main()
