"""Exact quantities of a network: parameters, FLOPs, bytes; and what the planner predicts for it."""

from __future__ import annotations

from mindspore_palm.config import PaLMConfig, Settings
from mindspore_palm.cost.workload import Workload
from mindspore_palm.model.weights import weights
from mindspore_palm.optim import optimizer_class
from mindspore_palm.plan.machines import load_machine
from mindspore_palm.plan.search import check_fits
from mindspore_palm.plan.step_time import step_time
from mindspore_palm.settings import load_settings

FLOAT = 4  # bytes
FORWARD_AND_BACKWARD = 6  # FLOPs per token of a parameter that is multiplied


def quantity(measure: str, settings: Settings, case: tuple[int, ...] = ()) -> int:
    """An exact quantity of a network.

    Args:
        measure: one of ``COUNTS``: parameters, FLOPs per token of training, parameters and FLOPs per token of the
            attention (projections, scores and their sum), FLOPs per token of the projections to keys and values, bytes
            of optimizer state, or bytes of the cache.
        settings: of the run.
        case: batch and context of a cache.
    """
    model, length = settings.model, settings.data.seq_len
    attention = model.parameters_by_kind()["attention"]
    values = {
        "parameters": model.parameter_count(),
        "flops": model.flops_per_token(length),
        "attention_parameters": attention,
        "attention_flops": FORWARD_AND_BACKWARD * attention + model.score_flops_per_token(length),
        "kv_flops": FORWARD_AND_BACKWARD * model.layers * model.d_model * kv_features(model),
    }
    if measure == "state_bytes":
        return state_bytes(settings)
    if measure == "cache_bytes":
        batch, context = case
        return FLOAT * model.layers * kv_features(model) * batch * context
    return values[measure]


def kv_features(model: PaLMConfig) -> int:
    """Numbers per token and layer that attention caches: keys and values of all their heads."""
    return 2 * model.kv_heads * model.head_dim


def state_bytes(settings: Settings) -> int:
    """Bytes of the moments that a checkpoint of a run holds, beside the weights."""
    optimizer = optimizer_class(settings.optimizer)
    return sum(optimizer.state_bytes(weight.shape) for weight in weights(settings.model))


def predicted_seconds(config: str, machine_name: str, model: PaLMConfig) -> float:
    """The planner's step of a configuration on a machine, with the block, attention and mlp of another network.

    Raises:
        UserError: there is no such file or machine, or the sizes do not fit it.
    """
    settings = load_settings(config)[0]
    settings = settings.model_copy(update={"model": settings.model.model_copy(update=model.departures())})
    machine = load_machine(machine_name)
    check_fits(settings, machine)
    return step_time(Workload.of(settings, machine.target), machine).seconds
