"""What is compiled for TPU v4: the shipped configurations, on as many chips as they have devices."""

from __future__ import annotations

from pathlib import Path

from reference.palm import Shape
from tpu.case import Case

from mindspore_palm.config import Settings
from mindspore_palm.errors import UserError
from mindspore_palm.settings import load_settings

YAML = Path(__file__).resolve().parents[2] / "yaml"

# chips of a pod to how they are wired; 12 x 16 x 16 is one of PaLM's
TOPOLOGIES = {
    4: "2x2x1",
    8: "2x2x2",
    16: "2x2x4",
    32: "2x4x4",
    64: "4x4x4",
    128: "4x4x8",
    256: "4x8x8",
    512: "8x8x8",
    3072: "12x16x16",
}


def settings_of(config: str, *overrides: str) -> Settings:
    """A configuration of ``yaml/`` with settings changed."""
    return load_settings(YAML / f"{config}.yaml", list(overrides))[0]


def with_layers(settings: Settings, layers: int) -> Settings:
    """The same with another number of layers."""
    return settings.model_copy(update={"model": settings.model.model_copy(update={"layers": layers})})


def case_of(settings: Settings, recompute: str = "") -> Case:
    """The training step of one pass. ``recompute``: T5X's minimal, which MindSpore does not have.

    Raises:
        UserError: no pod of so many chips is listed.
    """
    model, mesh = settings.model, settings.parallel
    chips = mesh.data * mesh.model  # of a pod
    if chips not in TOPOLOGIES:
        listed = ", ".join(map(str, TOPOLOGIES))
        raise UserError(f"parallel.data x parallel.model = {chips}: pods here have {listed} chips")
    rows = -(-model.padded_vocab // chips) * chips  # of the table, so that the chips divide them
    return Case(
        Shape(model.layers, model.d_model, model.heads, model.head_dim, model.d_ff, model.vocab_size, rows),
        settings.data.seq_len,
        settings.train.micro_batch_of(settings.train.batch_ramp()[-1][1]) // (mesh.pods * mesh.data),
        mesh.pods,
        mesh.data,
        mesh.model,
        recompute or mesh.recompute,
        TOPOLOGIES[chips],
    )
