"""PaLM as a model of EleutherAI's lm-evaluation-harness: ``pip install lm-eval``, then ``palm harness``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lm_eval.api.model import LM

from mindspore_palm.checkpoint.model_folder import find_model, load, load_tokenizer
from mindspore_palm.data.prompt import encode_pairs
from mindspore_palm.devices import DEVICES
from mindspore_palm.errors import UserError
from mindspore_palm.evaluate.scorer import Scorer, continuation, window_of
from mindspore_palm.evaluate.tasks import fit_prompt
from mindspore_palm.file_names import CONFIG
from mindspore_palm.generate import Generator, Sampling
from mindspore_palm.options import naming_options
from mindspore_palm.parallel.context import open_device
from mindspore_palm.settings import load_settings

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

MAX_TOKENS = 256  # of a generation, unless the task sets a number: as in the harness's own models
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # synonyms in the harness
NUMBERS = ("temperature", "top_k", "top_p", "repetition_penalty", "seed")
USED = ("until", *LENGTHS, "do_sample", *NUMBERS)
# Parameters that are accepted with the value that changes nothing.
NEUTRAL = {"num_beams": 1, "n": 1, "best_of": 1, "min_p": 0, "presence_penalty": 0, "frequency_penalty": 0}


def device_of(name: str | None) -> str:
    """The device type that the harness's option --device names.

    Raises:
        UserError: it names none.
    """
    names = {"auto": "auto", "cuda": "GPU", **{device.lower(): device for device in DEVICES}}
    known = names.get((name or "auto").lower().partition(":")[0])
    if known is None:
        raise UserError(f"--device {name} must be auto, {', '.join(DEVICES)}, or cuda for GPU")
    return known


class HarnessPaLM(LM):
    """A trained PaLM with the harness's model interface.

    Args:
        checkpoint: folder of a trained model, as for ``load``.
        window: tokens per window; None for the training sequence length.
        batch_size: sequences per batch.
        max_batch_size: no effect, because ``batch_size`` is a number. The harness passes it to every model.
        device: auto, CPU, GPU or Ascend, in any case; the harness's own name for a GPU is cuda. None for auto.
        unknown: refused.

    Raises:
        UserError: the checkpoint cannot be opened, or an argument is invalid or unknown.
    """

    def __init__(
        self,
        checkpoint: str = "",
        window: int | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        **unknown: object,
    ) -> None:
        super().__init__()
        if unknown:
            name, value = next(iter(unknown.items()))
            raise UserError(f"--model_args {name}={value}: there are checkpoint, window and batch_size; leave it out")
        if not checkpoint:
            raise UserError("--model_args names no model; write checkpoint=FOLDER, the folder of a trained model")
        batch = 8 if batch_size is None else batch_size
        if not str(batch).isdecimal() or int(batch) < 1:
            raise UserError(f"batch_size = {batch_size} must be a number, 1 or more")
        if max_batch_size is not None:
            print(f"note: max_batch_size = {max_batch_size} has no effect on this model", file=sys.stderr)
        folder = find_model(Path(checkpoint))
        window = window_of(window, load_settings(folder / CONFIG)[0].data.seq_len, "window = ")
        tokenizer = load_tokenizer(folder)
        open_device(device_of(device), "--device")
        palm = load(folder)
        self._scorer = Scorer(palm, tokenizer, window, int(batch), str(folder))
        self._generator = Generator(palm, tokenizer, window, int(batch), str(folder))

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation in nats, and whether greedy decoding would generate it.

        Context and continuation meet at the boundary of ``data.prompt``: all choices of a question have one context.

        Raises:
            UserError: a continuation does not fit the window, or the logits are not finite.
        """
        rows = []
        pairs = encode_pairs(self._scorer.tokenizer, (request.args for request in requests))
        for number, (context, tokens) in enumerate(pairs, 1):
            sequence = np.concatenate([context, tokens])
            rows.append(continuation(sequence, len(context), self._scorer.window, f"request {number}"))
        return [(-score.nats, score.greedy) for score in self._scorer(rows)]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each text in nats, in windows. The last window is full: it begins with context.

        Raises:
            UserError: the logits are not finite.
        """
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
        """The continuation of each prompt, up to the first stop text.

        Raises:
            UserError: a task sets an unsupported parameter, before anything is generated; or the logits are not finite.
        """
        texts, truncated = [""] * len(requests), 0
        groups: dict[Sampling, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(sampling_of(request.args[1]), []).append(number)
        context, tokenizer = self._generator.context, self._generator.tokenizer
        for sampling, numbers in groups.items():
            max_tokens = min(sampling.max_tokens, context // 2)
            fitted = [fit_prompt(tokenizer, context, requests[number].args[0], max_tokens) for number in numbers]
            truncated += sum(is_truncated for _, is_truncated in fitted)
            generations = self._generator([prompt for prompt, _ in fitted], sampling)
            for number, generation in zip(numbers, generations, strict=True):
                texts[number] = generation.text
        if truncated:
            print(f"note: {truncated:,} prompts were longer than the window and lost their start", file=sys.stderr)
        return texts


def with_task_checks(evaluate: Callable[..., Any]) -> Callable[..., Any]:
    """The harness's own ``evaluate``, which first checks the generation parameters of all tasks."""

    def checked(lm: LM, task_dict: dict[str, Any], *args: object, **kwargs: object) -> object:
        if isinstance(lm, HarnessPaLM):
            for task in (task_dict.get("tasks") or {}).values():
                if getattr(task, "OUTPUT_TYPE", "") == "generate_until":
                    sampling_of(dict(task.config.generation_kwargs or {}))
        return evaluate(lm, task_dict, *args, **kwargs)

    return checked


def sampling_of(generation_kwargs: dict[str, Any]) -> Sampling:
    """Sampling parameters of a task, from the harness's names, which are those of transformers.

    Raises:
        UserError: names a parameter that is unknown or unsupported, or a value that is invalid.
    """
    for name, value in generation_kwargs.items():
        if name not in USED and (name not in NEUTRAL or value != NEUTRAL[name]):
            known = ", ".join(USED)
            raise UserError(f"the task asks for {name} = {value!r}, which this model does not have; there are {known}")
    lengths = {name: generation_kwargs[name] for name in LENGTHS if generation_kwargs.get(name) is not None}
    if len(set(lengths.values())) > 1:
        both = " and ".join(f"{name} = {value}" for name, value in lengths.items())
        raise UserError(f"the task asks for {both}, which are names of one thing; keep one")
    until = generation_kwargs.get("until") or []
    until = [until] if isinstance(until, str) else until
    if not isinstance(until, list | tuple) or not all(isinstance(text, str) for text in until):
        raise UserError(f"the task asks for until = {until!r}; it must be a text or a list of texts")
    numbers = {name: generation_kwargs[name] for name in NUMBERS if generation_kwargs.get(name) is not None}
    for name, value in (numbers | lengths).items():
        is_whole = name in (*LENGTHS, "top_k", "seed")
        if isinstance(value, bool) or not isinstance(value, int if is_whole else int | float):
            raise UserError(f"the task asks for {name} = {value!r}; it must be a {'whole ' if is_whole else ''}number")
    do_sample = generation_kwargs.get("do_sample")
    do_sample = numbers.get("temperature", 0) > 0 if do_sample is None else do_sample
    parameters = {"temperature": 1.0, **numbers} if do_sample else {"temperature": 0.0}
    if penalty := numbers.get("repetition_penalty"):
        parameters["repetition_penalty"] = penalty
    named = {name: name for name in NUMBERS} | {"max_tokens": next(iter(lengths), LENGTHS[0])}
    with naming_options({setting: f"the task asks for {name} =" for setting, name in named.items()}):
        return Sampling(
            max_tokens=next(iter(lengths.values()), MAX_TOKENS),
            stop=tuple(text for text in until if text),
            **parameters,
        )
