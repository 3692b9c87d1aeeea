"""--device has one meaning for every command that computes."""

from __future__ import annotations

import re

import pytest

from mindspore_palm.devices import DEVICES

MODEL = ["--checkpoint", "{run}"]
COMMANDS = {
    "train": ["--config", "yaml/palm_tiny.yaml", "train.device=Ascend", "train.output={run}"],
    "generate": [*MODEL, "--device", "Ascend", "a"],
    "chat": ["{run}", "--device", "Ascend"],
    "serve": ["{run}", "--port", "0", "--device", "Ascend"],
    "evaluate": [*MODEL, "--device", "Ascend", "--data", "LICENSE"],
    "convert": ["--from", "{run}", "--to", "huggingface-safetensors", "{run}/elsewhere", "--device", "Ascend"],
}


@pytest.fixture(scope="module")
def run(device, tmp_path_factory):
    from mindspore_palm import PaLM, Tokenizer
    from mindspore_palm.checkpoint.model_folder import save_model, weights_of
    from mindspore_palm.config import Settings

    home = tmp_path_factory.mktemp("device")
    tokenizer = Tokenizer.train(["def f(a): return a\n" * 400], 280, home / "tokenizer.model")
    sizes = {"layers": 1, "d_model": 16, "heads": 2, "head_dim": 8, "d_ff": 32, "vocab_size": 280}
    settings = Settings.model_validate({"model": sizes, "data": {"seq_len": 32}})
    save_model(home / "run" / "final", weights_of(PaLM(settings.model)), tokenizer.serialized, settings, step=1)
    return home / "run"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_device_that_is_not_there_is_the_same_sentence_for_every_command(door, run, name):
    words = [word.format(run=run) for word in COMMANDS[name]]
    code, _, err = door(name, ".", *words)
    assert code == 2
    setting = "train.device" if name == "train" else "--device"
    said = rf"error: {setting} = Ascend: MindSpore [\d.]+ finds no Ascend on this machine \(it finds .*CPU\); set "
    said += f"{setting}=auto"
    assert re.search(said, err), err


@pytest.mark.harness
def test_names_of_devices_in_the_harness():
    from mindspore_palm.errors import UserError
    from mindspore_palm.evaluate.harness import device_of

    names = {None: "auto", "cuda": "GPU", "cuda:0": "GPU", "cpu": "CPU", "ascend": "Ascend", "Ascend": "Ascend"}
    assert {name: device_of(name) for name in names} == names
    assert set(names.values()) == {"auto", *DEVICES}
    with pytest.raises(UserError, match="--device mps must be auto, Ascend, GPU, CPU, or cuda for GPU"):
        device_of("mps")
