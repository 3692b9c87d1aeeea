"""The convert command: its output, and its messages on bad input."""

from __future__ import annotations

import re

import pytest

from mindspore_palm.config import Settings

SIZES = {"layers": 1, "d_model": 16, "heads": 2, "head_dim": 8, "d_ff": 32, "vocab_size": 310}


@pytest.fixture(scope="module")
def home(device, tmp_path_factory):
    """A finished run."""
    from mindspore_palm import PaLM
    from mindspore_palm.checkpoint.model_folder import save_model, weights_of

    home = tmp_path_factory.mktemp("convert")
    settings = Settings.model_validate({"model": SIZES})
    save_model(home / "run" / "final", weights_of(PaLM(settings.model)), None, settings, step=1)
    return home


@pytest.fixture
def command(door, home):
    return lambda *arguments: door("convert", home, *arguments)


def test_there_and_back(command, home):
    code, out, err = command("--from", "run", "--to", "flaxformer", "made/tree.safetensors", "--length", 8)
    assert code == 0, err
    assert "7,264 parameters; layers 1, d_model 16, heads 2, head_dim 8, d_ff 32, 310 tokens" in out
    assert re.search(r"logits of both on 2 x 8 random tokens: largest difference \S+, largest logit \S+\n", out)
    assert "compared: run by the network of this package; made/tree.safetensors by NumPy code of this package" in out
    code, out, err = command("--from", "flaxformer", "made/tree.safetensors", "--to", "made/back", "--length", 8)
    assert code == 0, err
    assert "note: made/tree.safetensors does not record its training sequence length; 2,048 is used" in out
    assert {path.name for path in (home / "made" / "back").iterdir()} == {
        "README.md",
        "model.safetensors",
        "config.yaml",
    }
    assert {path.name for path in (home / "made").iterdir()} == {"tree.safetensors", "tree.safetensors.md", "back"}


def test_bad_input(command, home, monkeypatch):
    from mindspore_palm.convert import pytorch

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(pytorch, "import_module", missing)
    (home / "palm.safetensors").write_bytes(b"cut off")
    (home / "palm.pt").write_bytes(b"cut off")
    (home / "there").mkdir(exist_ok=True)
    to = ["--to", "out"]
    code, _, err = command("--from", "run", "--to", "flaxformer", "tree.safetensors", "--length", 8)
    assert code == 0, err
    cases = [
        (["--from", "nowhere", *to], "there is no folder nowhere"),
        (["--from", "lucidrains", "palm.pt", *to], "this needs torch; pip install torch"),
        (["--from", "lucidrains", "palm.safetensors", *to], "not a complete safetensors file"),
        (["--from", "flaxformer", "palm.safetensors", *to], "not a complete safetensors file"),
        (["--from", "flaxformer", "nowhere.safetensors", *to], "there is no nowhere.safetensors"),
        (["--from", "flaxformer", "there", *to], "T5X's own checkpoints are not read"),
        (["--from", "huggingface-safetensors", "there", *to], "there is no there/config.json"),
        (["--from", "mindir", "palm.mindir", *to], "name what it was made of"),
        (["--from", "flaxformer", "tree.safetensors", *to, "--vocab-size", 311], "the table has 310 rows"),
        (["--from", "t5x", "there", *to], "there is no format 't5x'; there are mindspore_palm, lucidrains"),
        (["--from", "a", "b", "c", *to], "write a format and a path"),
        (["--from", "run", "--to", "there"], "there exists already"),
        (["--from", "run", "--to", "run", "--overwrite"], "holds files that are not a converted model's"),
        (["--from", "run", "--to", "lucidrains", "out.pt"], "model.norm=layer_norm (here rms_norm)"),
        (["--from", "run", "--to", "conceptofmind", "out.pt"], "model.xpos_base=512 (here 0)"),
        (["--from", "run", "--to", "mindir", "out"], "the ending .mindir"),
        (["--from", "run", *to, "--tokenizer", "nowhere"], "there is no tokenizer nowhere"),
        (["--from", "run", *to, "--length", 0], "--length 0 must be above 0"),
        (["--from", "run", *to, "--shard-gb", -1], "--shard-gb -1.0 must be above 0"),
    ]
    for arguments, problem in cases:
        code, _, err = command(*arguments)
        assert code == 2, (arguments, err)
        assert re.fullmatch(r"error: .*\n", err), err
        assert problem in err
    assert not list(home.glob("out*")) and not list(home.glob(".out*"))
