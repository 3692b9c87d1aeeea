"""MindSpore's own pipeline in four workers, and the same network in NumPy: layers of matmul, ReLU, matmul, residual."""

from __future__ import annotations

import numpy as np

BATCH, WIDTH, HIDDEN = 8, 12, 16
LAYERS, STAGES, MODEL, MICRO_BATCHES = 4, 2, 2, 2
STEPS, RATE = 3, 1e-3


def batch() -> np.ndarray:
    """The input, [BATCH, WIDTH]."""
    return np.random.default_rng(3).standard_normal((BATCH, WIDTH)).astype(np.float32)


def layers() -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights of the pipeline's layers, [WIDTH, HIDDEN] and [HIDDEN, WIDTH]."""
    draw = np.random.default_rng(4)
    shapes = ((WIDTH, HIDDEN), (HIDDEN, WIDTH))
    return [tuple(draw.standard_normal(shape).astype(np.float32) / 4 for shape in shapes) for _ in range(LAYERS)]


def trained() -> tuple[list[float], list[tuple[np.ndarray, np.ndarray]]]:
    """The network of ``pipeline`` in NumPy: the loss of each step, and the weights after them."""
    losses, weights = [], [tuple(matrix.astype(np.float64) for matrix in layer) for layer in layers()]
    for _ in range(STEPS):
        x, inputs = batch().astype(np.float64), []
        for wide, narrow in weights:
            hidden = x @ wide
            inputs.append((x, hidden))
            x = x + np.maximum(hidden, 0) @ narrow
        losses.append((x**2).sum())
        d_x, new = 2 * x, []
        for (wide, narrow), (x, hidden) in zip(reversed(weights), reversed(inputs), strict=True):
            d_hidden = d_x @ narrow.T * (hidden > 0)
            d_narrow, d_wide = np.maximum(hidden, 0).T @ d_x, x.T @ d_hidden
            new.append((wide - RATE * d_wide, narrow - RATE * d_narrow))
            d_x = d_x + d_hidden @ wide.T
        weights = new[::-1]
    return losses, weights


def pipeline(rank: int) -> dict[str, np.ndarray]:
    """MindSpore's 1F1B: two stages of two model ranks, layers of matmul, ReLU, matmul and a residual."""
    from mindspore import Parameter, Tensor, nn, ops
    from mindspore.parallel.auto_parallel import AutoParallel
    from mindspore.parallel.nn import Pipeline

    class Layer(nn.Cell):
        def __init__(self, i):
            super().__init__()
            wide, narrow = layers()[i]
            self.wide = Parameter(Tensor(wide), name=f"wide{i}")
            self.narrow = Parameter(Tensor(narrow), name=f"narrow{i}")
            self.up = ops.MatMul().shard(((1, 1), (1, MODEL)))
            self.down = ops.MatMul().shard(((1, MODEL), (MODEL, 1)))
            self.relu, self.add = ops.ReLU().shard(((1, MODEL),)), ops.Add().shard(((1, 1), (1, 1)))
            self.pipeline_stage = i * STAGES // LAYERS

        def construct(self, x):
            return self.add(x, self.down(self.relu(self.up(x, self.wide)), self.narrow))

    class Net(nn.Cell):
        def __init__(self):
            super().__init__()
            self.layers = nn.CellList([Layer(i) for i in range(LAYERS)])
            self.square, self.sum = ops.Square().shard(((1, 1),)), ops.ReduceSum().shard(((1, 1),))

        def construct(self, x):
            for layer in self.layers:
                x = layer(x)
            return self.sum(self.square(x))

    class Step(nn.Cell):
        def __init__(self):
            super().__init__(auto_prefix=False)
            net = Net()
            self.net = Pipeline(net, MICRO_BATCHES)
            self.optimizer = nn.SGD(net.trainable_params(), RATE)
            self.gradients = ops.value_and_grad(self.net, None, self.optimizer.parameters)
            self.reduce = nn.PipelineGradReducer(self.optimizer.parameters)

        def construct(self, x):
            loss, gradients = self.gradients(x)
            return ops.depend(loss, self.optimizer(self.reduce(gradients)))

    network = Step().set_train()
    step = AutoParallel(network, parallel_mode="semi_auto")
    step.dataset_strategy("full_batch")
    step.pipeline(stages=STAGES, scheduler="1f1b")
    x = Tensor(batch())
    results = {"pipeline/loss": np.array([float(step(x).asnumpy()) for _ in range(STEPS)])}
    own = rank // MODEL  # the stage
    for i in range(own * LAYERS // STAGES, (own + 1) * LAYERS // STAGES):
        for name in ("wide", "narrow"):
            parameter = getattr(network.net.network.layers[i], name)
            results[f"pipeline/{name}{i}"] = parameter.asnumpy().copy()
    return results
