"""MindSpore's own graph format: one file with the compiled network and its weights, for inference."""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from mindspore_palm.checkpoint.model_folder import set_weights
from mindspore_palm.convert.model import Computed, Model, Options
from mindspore_palm.errors import UserError
from mindspore_palm.model.palm import PaLM
from mindspore_palm.parallel.fused import portable
from mindspore_palm.parallel.weights import deferred_init

SUFFIX = ".mindir"
MAX_BYTES = 10**9  # MS-43: MindSpore writes networks with more bytes of weights in several files


class MindIR:
    """A graph from int32 [B, S] to float32 [B, S, vocab_size], for one B and S."""

    is_read = False

    def read(self, path: Path, options: Options) -> Model:
        raise UserError(f"{path}: MindIR is a compiled graph, not a PaLM to convert; name what it was made of")

    def write(self, model: Model, path: Path, options: Options) -> None:
        if path.suffix != SUFFIX:
            raise UserError(f"{path}: name the file with the ending {SUFFIX}")
        if (size := sum(array.nbytes for array in model.weights.values())) > MAX_BYTES:
            limit = f"{MAX_BYTES / 1e9:g} GB"
            raise UserError(f"{path}: {size / 1e9:.1f} GB of weights; one MindIR file holds at most {limit}")
        with deferred_init(), portable():  # never drawn: every weight is set
            palm = PaLM(model.config)
        set_weights(palm, model.weights)
        palm.set_train(False)
        ms.export(palm, Tensor(np.zeros(options.shape, np.int32)), file_name=str(path), file_format="MINDIR")

    def logits(self, path: Path, tokens: np.ndarray, options: Options) -> Computed:
        return Computed(nn.GraphCell(ms.load(str(path)))(Tensor(tokens)).asnumpy(), "MindSpore's GraphCell")
