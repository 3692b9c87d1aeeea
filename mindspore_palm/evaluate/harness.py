"""EleutherAI's lm-evaluation-harness drives a PaLM: ``pip install lm-eval``, then ``run/harness.py``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lm_eval.api.model import LM

from mindspore_palm.errors import UserError
from mindspore_palm.evaluate.scorer import Scorer, continuation, window_of
from mindspore_palm.evaluate.tasks import fit_prompt, prompt_and_continuation
from mindspore_palm.generate import Generator, Sampling
from mindspore_palm.parallel.context import open_device
from mindspore_palm.settings import load_settings
from mindspore_palm.train.saved import CONFIG, find_model, load, load_tokenizer

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

MAX_TOKENS = 256  # of a generation, where a task does not say: as in the harness's own models


class HarnessPaLM(LM):
    """A trained PaLM as the harness wants a model.

    Args:
        checkpoint: the folder that training left.
        window: tokens that the network sees at once; None is the length it was trained on.
        batch_size: sequences at a time.
        max_batch_size: ignored: the harness gives it to every model.
        device: ignored: its names are PyTorch's. MindSpore takes the fastest device that it finds.

    Raises:
        UserError: the checkpoint does not open, or a number is none.
    """

    def __init__(
        self,
        checkpoint: str,
        window: int | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        if not str(batch_size or 8).isdecimal():
            raise UserError(f"batch_size = {batch_size} must be a number")
        open_device()
        folder = find_model(Path(checkpoint))
        palm, tokenizer = load(folder), load_tokenizer(folder)
        window = window_of(window, load_settings(folder / CONFIG)[0].data.seq_len)
        self._scorer = Scorer(palm, tokenizer, window, int(batch_size or 8))
        self._generator = Generator(palm, tokenizer, window, int(batch_size or 8))

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Natural log-likelihood of each continuation, and whether greedy decoding would give it."""
        rows = []
        for number, request in enumerate(requests, 1):
            tokens, first = prompt_and_continuation(self._scorer.tokenizer, *request.args)
            rows.append(continuation(tokens, first, self._scorer.window, f"request {number}"))
        return [(-score.nats, score.greedy) for score in self._scorer(rows)]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Natural log-likelihood of each text, in windows, the last of which is full."""
        rows, owners, window = [], [], self._scorer.window
        for number, request in enumerate(requests):
            tokens = np.array(self._scorer.tokenizer.encode(request.args[0]), np.int32)
            for start in range(0, len(tokens), window):
                rows.append(continuation(tokens[: start + window], start, window, f"request {number + 1}"))
                owners.append(number)
        sums = [0.0] * len(requests)
        for score, owner in zip(self._scorer(rows), owners, strict=True):
            sums[owner] -= score.nats
        return sums

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The continuation of each prompt, ended before the first of its stop texts."""
        texts = [""] * len(requests)
        groups: dict[Sampling, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(_sampling(request.args[1]), []).append(number)
        for sampling, numbers in groups.items():
            most = min(sampling.max_tokens, self._generator.context // 2)
            prompts = [fit_prompt(self._generator, requests[number].args[0], most)[0] for number in numbers]
            for number, generation in zip(numbers, self._generator(prompts, sampling), strict=True):
                texts[number] = generation.text
        return texts


def _sampling(wishes: dict[str, Any]) -> Sampling:
    """What a task wants of a generation, in the names that the harness has from transformers."""
    until = wishes.get("until") or []
    is_drawn = wishes.get("do_sample", wishes.get("temperature", 0) > 0)
    return Sampling(
        max_tokens=wishes.get("max_gen_toks", wishes.get("max_new_tokens", MAX_TOKENS)),
        temperature=float(wishes.get("temperature", 1.0)) if is_drawn else 0.0,
        top_k=wishes.get("top_k", 0) if is_drawn else 0,
        top_p=wishes.get("top_p", 1.0) if is_drawn else 1.0,
        stop=tuple([until] if isinstance(until, str) else (text for text in until if text)),
    )
