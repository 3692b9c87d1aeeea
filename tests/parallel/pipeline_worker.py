"""PaLM in MindSpore's own pipeline, 1F1B: ``pipeline_worker.py OUT`` is a worker of msrun, or alone without it.

The table goes from the first stage to the last as an output of the first stage's Cell. A weight that two Cells of
different stages merely share is received by the last stage, and nobody sends it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

STAGES, MODEL, MICRO_BATCHES, STEPS = 2, 2, 2, 4
BATCH, LENGTH = 8, 6
SIZES = dict(layers=4, d_model=16, heads=2, head_dim=8, d_ff=32, vocab_size=32, vocab_multiple=4)


def main(out: Path, alone: bool) -> None:
    import mindspore as ms
    from mindspore import Parameter, Tensor, nn, ops
    from mindspore.communication import get_group_size, get_rank, init
    from mindspore.parallel.auto_parallel import AutoParallel
    from mindspore.parallel.nn import Pipeline

    from mindspore_palm import PaLMConfig
    from mindspore_palm.config import OptimizerConfig
    from mindspore_palm.model import initial
    from mindspore_palm.model.loss import Loss
    from mindspore_palm.model.palm import PaLM
    from mindspore_palm.optim import make_optimizer
    from mindspore_palm.parallel import host
    from mindspore_palm.parallel.axes import Layout, layout
    from mindspore_palm.parallel.context import use_graphs
    from mindspore_palm.parallel.mesh import Mesh

    use_graphs()
    ms.set_device("CPU")
    rank, model = 0, 1
    if not alone:
        init()
        rank, model = get_rank(), MODEL
        host.install(rank, get_group_size())
    # Weights are whole when they are made: their own shards are those of a mesh without stages.
    initial.make_weight = lambda name, shape, axes, draw, sharded=True: Parameter(Tensor(draw(None)), name=name)

    class First(nn.Cell):
        def __init__(self, palm):
            super().__init__(auto_prefix=False)
            self.table, self.lookup, self.to_compute = palm.embedding, palm.lookup, palm.to_compute
            self.residual, self.reshape = palm.residual, palm.reshape
            self.pipeline_stage = 0

        def construct(self, token_ids):
            rows = self.lookup(self.table, self.reshape(token_ids, (-1,)))
            return self.residual.write(self.to_compute(rows)), self.table

    class Last(nn.Cell):
        def __init__(self, palm):
            super().__init__(auto_prefix=False)
            self.norm, self.residual, self.matmul = palm.final_norm, palm.residual, palm.matmul
            self.times_scale, self.scale = palm.times_scale, palm.logit_scale
            self.pipeline_stage = STAGES - 1

        def construct(self, x, table):
            return self.matmul(self.times_scale(self.norm(self.residual.read(x)), self.scale), table)

    class Staged(nn.Cell):
        def __init__(self, palm):
            super().__init__(auto_prefix=False)
            self.config, self.blocks, self.split_mask = palm.config, palm.blocks, palm.split_mask
            self.first, self.last = First(palm), Last(palm)
            for i, block in enumerate(palm.blocks):
                block.pipeline_stage = i * STAGES // len(palm.blocks)

        def logits(self, token_ids, dropout_mask=None):
            masks = self.split_mask(dropout_mask)
            x, table = self.first(token_ids)
            for i in range(len(self.blocks)):
                x = self.blocks[i](x, token_ids.shape[0], masks[i + 1])
            return self.last(x, table)

    class Objective(nn.Cell):
        def __init__(self, loss):
            super().__init__(auto_prefix=False)
            self.loss = loss
            self.count = Tensor(float(BATCH * LENGTH), ms.float32)  # gradients are not too large here (MS-04)
            loss.token_loss.pipeline_stage = STAGES - 1

        def construct(self, inputs, targets):
            return self.loss(inputs, targets, self.count)[0]

    class Step(nn.Cell):
        def __init__(self, palm):
            super().__init__(auto_prefix=False)
            net = Objective(Loss(Staged(palm)))
            # A large eps: else a weight whose gradient is smaller than its rounding error moves by its sign.
            adamw = OptimizerConfig(name="adamw", schedule="constant", learning_rate=0.1, adamw_eps=0.1)
            self.optimizer = make_optimizer(palm.trainable_params(), adamw, STEPS)
            self.gradients = ops.value_and_grad(
                net if alone else Pipeline(net, MICRO_BATCHES), None, self.optimizer.parameters
            )
            self.reduce = nn.Identity() if alone else nn.PipelineGradReducer(self.optimizer.parameters)

        def construct(self, inputs, targets):
            loss, gradients = self.gradients(inputs, targets)
            return ops.depend(loss, self.optimizer(self.reduce(gradients)))

    with layout(Layout(Mesh(model=model))):
        palm = PaLM(PaLMConfig(**SIZES))
        step = Step(palm).set_train()
    if not alone:
        step = AutoParallel(step, parallel_mode="semi_auto")
        step.dataset_strategy("full_batch")
        step.pipeline(stages=STAGES, scheduler="1f1b")
    tokens = np.random.default_rng(0).integers(0, SIZES["vocab_size"], (2, BATCH, LENGTH)).astype(np.int32)
    losses = [float(step(*map(Tensor, tokens)).asnumpy()) for _ in range(STEPS)]
    weights = {parameter.name: parameter.asnumpy() for parameter in palm.trainable_params()}
    np.savez(out / f"rank_{'one' if alone else rank}.npz", losses=np.array(losses), **weights)


if __name__ == "__main__":
    main(Path(sys.argv[1]), alone="MS_ROLE" not in os.environ)
