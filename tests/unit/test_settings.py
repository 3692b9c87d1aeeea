"""Settings from files and overrides: what is right comes back the same, what is wrong is said in a sentence."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mindspore_palm.config import Settings
from mindspore_palm.errors import UserError, run_command
from mindspore_palm.settings import describe, load_settings, settings_to_yaml

ROOT = Path(__file__).resolve().parents[2]
COMMAND = ROOT / "run" / "train.py"
EVERY_YAML = sorted((ROOT / "yaml").glob("*.yaml"))


@pytest.fixture(scope="module")
def main():
    """The function behind ``python run/train.py``."""
    spec = importlib.util.spec_from_file_location("run_train", COMMAND)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture
def refused(main, monkeypatch, capsys):
    """Runs ``train.py --print-config`` on what must be refused; gives what it said."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["train.py", "--print-config", *map(str, arguments)])
        code = run_command(main)
        out, err = capsys.readouterr()
        assert code == 2, err
        assert out == ""
        check_sentence(err)
        return err

    return run


def check_sentence(err):
    assert err.startswith("error: ")
    assert len(err.rstrip("\n").split("\n")) <= 2, err
    assert "Traceback" not in err


NO_WHOLE_NUMBER = "must be a whole number"
# What stands in the file, and what the message must hold: key, value and the fix.
BROKEN = {
    "unknown section": ("modl: {layers: 2}", ["modl", "did you mean model?"]),
    "section in capitals": ("Train: {steps: 3}", ["Train", "did you mean train?"]),
    "section of another kind": ("3: {a: 2}", ["section 3", "model, optimizer, data, train"]),
    "unknown key": ("model: {layer: 2}", ["model.layer", "did you mean model.layers?"]),
    "key like no other": ("optimizer: {xyzzy: 2}", ["optimizer.xyzzy", "learning_rate"]),
    "key of another section": ("model: {batch_size: 2}", ["model.batch_size", "did you mean train.batch_size?"]),
    "key of another kind": ("model: {3: 2}", ["model.3", "layers"]),
    "key that is a list": ("model: {[a]: 2}", ["line 1"]),
    "text for a number": ("train: {steps: many}", ["train.steps", "'many'", NO_WHOLE_NUMBER, "Default 1000"]),
    "number in quotes": ("train: {steps: '10'}", ["train.steps", "'10'", "without quotes"]),
    "true for a number": ("train: {steps: true}", ["train.steps", "true", NO_WHOLE_NUMBER]),
    "point in a whole number": ("train: {steps: 10.0}", ["train.steps", "10.0", NO_WHOLE_NUMBER]),
    "exponent in a whole number": ("train: {steps: 1e3}", ["train.steps", NO_WHOLE_NUMBER]),
    "list for a number": ("train: {steps: [10]}", ["train.steps", "[10]", NO_WHOLE_NUMBER]),
    "group for a number": ("train: {steps: {a: 1}}", ["train.steps", "{'a': 1}", NO_WHOLE_NUMBER]),
    "nothing for a number": ("train: {steps: }", ["train.steps", "null", NO_WHOLE_NUMBER]),
    "text for a fraction": ("optimizer: {learning_rate: fast}", ["optimizer.learning_rate", "'fast'", "a number"]),
    "number for a truth": ("model: {scaled_logits: 1}", ["model.scaled_logits", "true or false"]),
    "text for a truth": ("model: {scaled_logits: 'true'}", ["model.scaled_logits", "'true'", "without quotes"]),
    "number for a name": ("data: {path: 5}", ["data.path = 5", "quotes"]),
    "date for a name": ("data: {path: 2020-01-01}", ["data.path", "quotes"]),
    "octal": ("train: {steps: 0100}", ["line 1", "0100", "do not start with 0"]),
    "base sixty": ("train: {steps: 1:30}", ["line 1", "1:30"]),
    "section twice": ("train: {steps: 1}\ntrain: {seed: 2}", ["line 2", "'train'", "keep one"]),
    "key twice": ("train:\n  steps: 1\n  steps: 2\n", ["line 3", "'steps'", "keep one"]),
    "d_ff and heads": ("model: {heads: 3}", ["model.d_ff = 512", "heads = 3", "set d_ff to 513"]),
    "preset and heads": ("model: {preset: palm_8b, heads: 5}", ["model.d_ff = 16384", "heads = 5", "16385"]),
    "odd head_dim": ("model: {head_dim: 31}", ["model.head_dim = 31", "set it to 32"]),
    "micro_batch": (
        "train: {batch_size: 10, micro_batch: 4}",
        ["train.batch_size = 10", "micro_batch = 4", "set it to 12"],
    ),
    "micro_batch in a ramp": (
        "train: {batch_size: [[0, 8], [10, 9]], micro_batch: 4}",
        ["train.batch_size has the size 9", "micro_batch = 4", "set it to 12"],
    ),
    "ramp from step 5": ("train: {batch_size: [[5, 8]]}", ["train.batch_size = [[5, 8]]", "start at step 0", "write"]),
    "ramp that stands": ("train: {batch_size: [[0, 8], [0, 9]]}", ["train.batch_size", "must rise", "write"]),
    "empty ramp": ("train: {batch_size: []}", ["train.batch_size = []", "write"]),
    "flat ramp": ("train: {batch_size: [0, 8]}", ["train.batch_size = [0, 8]", "list of pairs"]),
    "ramp of three": ("train: {batch_size: [[0, 8, 9]]}", ["train.batch_size = [[0, 8, 9]]", "list of pairs"]),
    "ramp of text": ("train: {batch_size: [[0, x]]}", ["train.batch_size = [[0, 'x']]", "list of pairs"]),
    "ramp to nothing": ("train: {batch_size: [[0, 0]]}", ["train.batch_size = [[0, 0]]", "below 1"]),
    "batch of zero": ("train: {batch_size: 0}", ["train.batch_size = 0", "greater than 0"]),
    "batch of text": ("train: {batch_size: big}", ["train.batch_size = 'big'", "list of pairs"]),
    "nan": ("optimizer: {learning_rate: .nan}", ["optimizer.learning_rate = nan", "finite"]),
    "inf": ("train: {z_loss: .inf}", ["train.z_loss = inf", "finite"]),
    "too large a float": ("train: {z_loss: 1e999}", ["train.z_loss", "finite"]),
    "negative rate": ("optimizer: {learning_rate: -1}", ["optimizer.learning_rate = -1", "greater than 0"]),
    "negative steps": ("train: {steps: -3}", ["train.steps = -3", "greater than 0"]),
    "absurd size": (f"model: {{d_model: 1{'0' * 400}}}", ["model.d_model", "less than"]),
    "too large a seed": ("train: {seed: 9223372036854775808}", ["train.seed", "less than 9223372036854775808"]),
    "all held out": ("data: {validation_fraction: 1.0}", ["data.validation_fraction = 1.0", "less than 1"]),
    "no output": ("train: {output: ''}", ["train.output = ''", "leave the setting out"]),
    "blank path": ("data: {path: '  '}", ["data.path", "leave the setting out"]),
    "no text field": ("data: {text_field: ''}", ["data.text_field", "leave the setting out"]),
    "no prepared": ("data: {prepared: ''}", ["data.prepared", "leave the setting out"]),
    "NUL in a path": ('train: {output: "a\\0b"}', ["train.output"]),
    "unknown preset": ("model: {preset: palm_9b}", ["model.preset = 'palm_9b'", "did you mean palm_8b?"]),
    "unknown optimizer": ("optimizer: {name: sgd}", ["optimizer.name = 'sgd'", "adafactor, adamw"]),
    "unknown device": ("train: {device: TPU}", ["train.device = 'TPU'", "GPU"]),
    "open brace": ("train: {steps: 1", ["line 1"]),
    "tab": ("train:\n\tsteps: 1", ["line 2"]),
    "colon": ("train: steps: 1", ["line 1"]),
    "unknown alias": ("train: *x", ["line 1", "'x'"]),
    "two documents": ("train: {steps: 1}\n---\ntrain: {steps: 2}", ["single document"]),
    "not UTF-8": (b"train: {output: \xff}", ["UTF-8", "byte 16"]),
    "UTF-16": ("train: {steps: 2}".encode("utf-16"), ["UTF-8"]),
    "a list": ("- train", ["sections (model, optimizer, data, train, finetune, parallel)", "['train']"]),
    "a word": ("hello", ["sections", "'hello'"]),
    "section that is a list": ("train: [1]", ["train = [1]", "'key: value' lines"]),
    "section that is a number": ("train: 5", ["train = 5", "'key: value' lines"]),
    "tag of ours": ("train: !foo {}", ["!foo", "plain values"]),
    "truth that is none": ("model: {parallel: !!bool maybe}", ["plain values"]),
    "time that is none": ("data: {path: !!timestamp soon}", ["plain values"]),
    "a group within itself": ("train: &a {steps: *a}", ["train.steps", NO_WHOLE_NUMBER]),
    # deeper than Python goes, also where MindSpore has raised the limit to 10,000
    "too deep": (f"train: {{steps: {'[' * 30000}{']' * 30000}}}", ["YAML"]),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files(case, refused, tmp_path):
    content, said = BROKEN[case]
    file = tmp_path / "broken.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    err = refused("--config", file)
    assert "broken.yaml" in err
    for part in said:
        assert part in err


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.steps", ["'train.steps'", "section.key=value"]),
        ("steps=5", ["'steps=5'", "section.key=value"]),
        (".=5", ["section.key=value"]),
        ("train.=5", ["section.key=value"]),
        ("train.step=5", ["train.step", "did you mean train.steps?"]),
        ("trian.steps=5", ["trian", "did you mean train?"]),
        ("train.steps.x=5", ["train.steps.x", "did you mean train.steps?"]),
        ("train.steps=", ["train.steps = null", NO_WHOLE_NUMBER]),
        ("train.steps=0", ["train.steps = 0", "greater than 0"]),
        ("train.batch_size=[1", ["train.batch_size=[1", "line 1"]),
        ("train.output=", ["train.output = ''", "leave the setting out"]),
        ("train.micro_batch=3", ["train.batch_size = 16", "micro_batch = 3", "set it to 18"]),
    ],
)
def test_broken_overrides(override, said, refused):
    err = refused(override)
    for part in said:
        assert part in err


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.mkdir", "!!python/object/new:os.mkdir"])
def test_tags_are_never_executed(tag, refused, tmp_path):
    trap = tmp_path / "trap"
    file = tmp_path / "evil.yaml"
    file.write_text(f"train: {{output: {tag} ['{trap}']}}")
    assert "plain values" in refused("--config", file)
    assert "plain values" in refused(f"train.steps={tag} ['{trap}']")
    load_settings(None, [f"train.output={tag} ['{trap}']"])  # text, and no more than that
    assert not trap.exists()


def test_anchors_that_stand_for_gigabytes_are_shown_in_short(refused, tmp_path):
    lines = ["train:", "  steps:", "    - &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"    - &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30)]
    file = tmp_path / "bomb.yaml"
    file.write_text("\n".join(lines))
    assert len(refused("--config", file)) < 1000


def test_a_folder_as_file(refused, tmp_path):
    assert "directory" in refused("--config", tmp_path)


def test_a_file_below_a_file(refused, tmp_path):
    (tmp_path / "file").touch()
    assert "file" in refused("--config", tmp_path / "file" / "a.yaml")


def test_a_missing_file_with_a_near_name(refused, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert "did you mean yaml/palm_tiny.yaml?" in refused("--config", "yaml/palm_tinny.yaml")
    (tmp_path / "mine.yaml").touch()
    assert f"did you mean {tmp_path / 'mine.yaml'}?" in refused("--config", tmp_path / "mine.yml")
    assert "yaml/" in refused("--config", "nowhere/xyzzy.yaml")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--config", "yaml/palm_tiny.yaml", "train.steps=5"], 0),
        (["--config", "yaml/palm_tinny.yaml"], 2),
        (["train.stepz=5"], 2),
    ],
)
def test_the_real_command(arguments, code):
    done = subprocess.run(
        [sys.executable, COMMAND, "--print-config", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code
    if code:
        assert done.stdout == ""
        check_sentence(done.stderr)
    else:
        assert done.stderr == ""
        assert "steps: 5" in done.stdout


def test_nothing_given_is_the_defaults(tmp_path):
    empty = tmp_path / "empty.yaml"
    empty.write_text("# nothing\ntrain:\n")
    assert load_settings(None) == (Settings(), {})
    assert load_settings(empty) == (Settings(), {})


@pytest.mark.parametrize("number", ["1e-4", "1E-4", "0.0001", "1.0e-4", "+1e-4", ".1e-3"])
def test_exponents_are_numbers(number, tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(f"optimizer: {{learning_rate: {number}}}")
    assert load_settings(file)[0].optimizer.learning_rate == 1e-4
    assert load_settings(None, [f"optimizer.learning_rate={number}"])[0].optimizer.learning_rate == 1e-4


def test_overrides_come_after_the_file_and_the_last_one_wins(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("train: {steps: 3, seed: 4}")
    settings, origins = load_settings(file, ["train.steps=5", "train.steps=6"])
    assert (settings.train.steps, settings.train.seed) == (6, 4)
    assert origins == {"train.steps": "override train.steps=6", "train.seed": str(file)}


@pytest.mark.parametrize("text", ["*.txt", "a: b", "5", "[1", "no", "# a", "1e-4", "a=b"])
def test_a_command_line_gives_text_as_it_is(text):
    assert load_settings(None, [f"data.path={text}"])[0].data.path == text


def test_describe_names_origins(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("model: {preset: palm_8b, layers: 2}")
    lines = describe(*load_settings(file, ["train.steps=5"])).splitlines()
    found = {line.split(":")[0].strip(): line for line in lines}
    assert found["layers"].split() == ["layers:", "2", "#", str(file)]
    assert found["d_model"].split("#") == [found["d_model"].split("#")[0], " preset palm_8b"]
    assert "4096" in found["d_model"]
    assert found["steps"].endswith("# override train.steps=5")
    assert found["seed"].endswith("# default")
    fields = [name for group in Settings.model_fields.values() for name in group.annotation.model_fields]
    assert set(fields) <= set(found)


TEXTS = ["1e-4", "1e5", "0100", "1:30", "yes", "null", "a: b", "# a", "'", "漢字 😀", "a\nb", " a ", "2020-01-01", "~"]


@pytest.mark.parametrize("text", TEXTS)
def test_text_that_looks_like_something_else_comes_back(text, tmp_path):
    settings = Settings.model_validate({"data": {"path": text}, "train": {"output": text}})
    file = tmp_path / "a.yaml"
    file.write_text(settings_to_yaml(settings), encoding="utf-8")
    assert load_settings(file)[0] == settings
    shown = tmp_path / "shown.yaml"
    shown.write_text(describe(settings, {}), encoding="utf-8")
    assert load_settings(shown)[0] == settings


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["model.preset=palm_540b", "model.layers=2"],
        ["train.batch_size=[[0, 8], [5, 16]]", "train.micro_batch=4"],
        ["optimizer.adamw_eps=1e-30", "train.z_loss=0", "train.seed=9223372036854775807", "model.block=serial"],
    ],
)
def test_round_trip(overrides, tmp_path):
    settings, _ = load_settings(None, overrides)
    file = tmp_path / "a.yaml"
    file.write_text(settings_to_yaml(settings), encoding="utf-8")
    assert load_settings(file)[0] == settings
    assert (settings == Settings()) == (not overrides)


def test_every_setting_is_written():
    """Those that were left at their defaults, too: a later version may have others."""
    content = yaml.safe_load(settings_to_yaml(Settings()))
    fields = {section: set(group.annotation.model_fields) for section, group in Settings.model_fields.items()}
    assert {section: set(group) for section, group in content.items()} == fields


@pytest.mark.parametrize("file", EVERY_YAML, ids=[file.name for file in EVERY_YAML])
def test_the_files_of_the_project(file):
    settings, origins = load_settings(file)
    assert settings.train.output != Settings().train.output, "two runs would share a folder"
    assert origins


def test_there_are_files_of_the_project():
    assert "palm_tiny.yaml" in [file.name for file in EVERY_YAML]


def test_load_settings_raises_and_does_not_exit():
    with pytest.raises(UserError):
        load_settings("nowhere.yaml")
    with pytest.raises(UserError):
        load_settings("a\0b.yaml")


def test_a_home_is_followed_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.yaml").write_text("{train: {output: ~/runs/a}, data: {prepared: ~/p}}")
    overrides = ["data.path=~/t.txt", "data.tokenizer=~/t.model", "finetune.checkpoint=~/base"]
    settings, _ = load_settings("~/a.yaml", overrides)
    assert (settings.train.output, settings.data.prepared) == (f"{tmp_path}/runs/a", f"{tmp_path}/p")
    assert (settings.data.path, settings.data.tokenizer) == (f"{tmp_path}/t.txt", f"{tmp_path}/t.model")
    assert settings.finetune.checkpoint == f"{tmp_path}/base"
    with pytest.raises(
        UserError, match=r"override train\.output=~nobody_at_all/x: .* ~nobody_at_all names a home that"
    ):
        load_settings(None, ["train.output=~nobody_at_all/x"])
