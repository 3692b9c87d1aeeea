"""A model as a folder: loaded to the same bits, written completely or not at all, refused with a message if damaged."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mindspore_palm.config import Settings
from mindspore_palm.errors import UserError
from mindspore_palm.settings import load_settings

SIZES = {"layers": 2, "d_model": 16, "heads": 2, "head_dim": 4, "d_ff": 24, "vocab_size": 320}


@pytest.fixture(scope="module")
def settings():
    return Settings.model_validate({"model": SIZES})


@pytest.fixture(scope="module")
def palm(device, settings):
    from mindspore import Tensor

    from mindspore_palm import PaLM

    palm = PaLM(settings.model, seed=3)
    for number, weight in enumerate(palm.trainable_params()):  # norm scales as well, which start at zero
        weight.set_data(Tensor(np.random.default_rng(number).standard_normal(weight.shape).astype(np.float32)))
    return palm


@pytest.fixture
def folder(palm, settings, tokenizer, tmp_path):
    """A saved model that a test may damage."""
    from mindspore_palm.checkpoint.model_folder import save_model, weights_of

    save_model(tmp_path / "final", weights_of(palm), tokenizer.serialized, settings, step=7)
    return tmp_path / "final"


def refused(folder):
    from mindspore_palm import load

    with pytest.raises(UserError) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_round_trip_is_exact(folder, palm, tokenizer, settings):
    from mindspore import Tensor

    from mindspore_palm import Tokenizer, load

    assert sorted(path.name for path in folder.iterdir()) == [
        *("README.md", "config.yaml", "model.safetensors", "tokenizer.model")
    ]
    again = load(folder)
    assert again.config == settings.model
    before, after = ({p.name: p.asnumpy() for p in net.trainable_params()} for net in (palm, again))
    assert before.keys() == after.keys() == load_file(folder / "model.safetensors").keys()
    for name, weight in before.items():
        np.testing.assert_array_equal(weight, after[name], strict=True)
    tokens = Tensor(np.arange(10, dtype=np.int32).reshape(2, 5))
    np.testing.assert_array_equal(palm(tokens).asnumpy(), again(tokens).asnumpy())
    assert Tokenizer(folder / "tokenizer.model").serialized == tokenizer.serialized
    assert load_settings(folder / "config.yaml")[0] == settings


def test_a_run_opens_by_its_own_folder(folder, settings):
    from mindspore_palm import load

    assert load(str(folder.parent)).config == settings.model


@pytest.fixture
def run(palm, settings, tokenizer, tmp_path):
    """A run that has a checkpoint and no final model yet."""
    from mindspore_palm.checkpoint.manager import CheckpointManager
    from mindspore_palm.parallel.votes import Votes

    (tmp_path / "run").mkdir()
    state, path = palm.trainable_params(), tmp_path / "run" / "checkpoints"
    manager = CheckpointManager(path, state, settings, tokenizer.serialized, Votes(), lambda: None)
    manager.save(7, {"a": 1})
    assert manager.finish()
    return tmp_path / "run"


def test_a_checkpoint_opens_as_well(run, palm, settings, tokenizer):
    from mindspore_palm import Tokenizer, load

    step = run / "checkpoints" / "step_000007"
    for folder in (run, step):
        again = {p.name: p.asnumpy() for p in load(folder).trainable_params()}
        for weight in palm.trainable_params():
            np.testing.assert_array_equal(weight.asnumpy(), again[weight.name], strict=True)
    assert Tokenizer(step / "tokenizer.model").serialized == tokenizer.serialized
    file = step / "rank_0.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert "rank_0.safetensors was altered" in refused(run)


def test_a_checkpoint_becomes_a_model(run, palm, settings, tmp_path):
    from mindspore_palm.checkpoint.format import Checkpoint
    from mindspore_palm.checkpoint.model_folder import export, save_model, weights_of

    export(Checkpoint(run / "checkpoints" / "step_000007"), run / "final", settings)
    weights = weights_of(palm)
    tokenizer = (run / "final" / "tokenizer.model").read_bytes()
    save_model(tmp_path / "other", {name: weights[name] for name in sorted(weights)}, tokenizer, settings, 7)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (run / "final", tmp_path / "other"))
    assert ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)
    names = {"README.md", "config.yaml", "model.safetensors", "tokenizer.model"}
    assert {path.name for path in (run / "final").iterdir()} == names


def test_fine_tuning_starts_from_a_run_a_checkpoint_or_a_final(run, folder, palm, tmp_path):
    """With its weights, sizes and tokenizer."""
    from mindspore_palm import PaLM
    from mindspore_palm.train.finetune import load_base_model, open_data, with_model_of_checkpoint

    (tmp_path / "pairs.jsonl").write_text('{"prompt": "1", "target": "2"}\n' * 2)
    for path in (run, run / "checkpoints" / "step_000007", folder, folder.parent):
        more = {"finetune": {"checkpoint": str(path)}, "data": {"path": str(tmp_path / "pairs.jsonl")}}
        settings = with_model_of_checkpoint(Settings.model_validate({**more, "train": {"output": "elsewhere"}}))
        assert settings.model == palm.config
        assert open_data(settings).tokenizer.vocab_size == palm.config.vocab_size
        network = PaLM(settings.model, seed=99)
        load_base_model(network, settings)
        for theirs, ours in zip(palm.trainable_params(), network.trainable_params(), strict=True):
            np.testing.assert_array_equal(ours.asnumpy(), theirs.asnumpy(), strict=True)


def test_public_imports():
    from mindspore_palm import PaLM, PaLMConfig, Tokenizer, load

    assert [thing.__name__ for thing in (load, Tokenizer, PaLM, PaLMConfig)] == [
        "load",
        "Tokenizer",
        "PaLM",
        "PaLMConfig",
    ]


@pytest.mark.parametrize("number", [0, 1, 2, 3])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_midway_leaves_nothing(number, error, palm, settings, tmp_path, monkeypatch):
    from mindspore_palm.checkpoint import model_folder as saved
    from mindspore_palm.checkpoint.model_folder import weights_of

    written, write = [], saved.write_atomically

    def fail_at(path):
        if len(written) == number:
            raise error
        written.append(path)
        return write(path)

    monkeypatch.setattr(saved, "write_atomically", fail_at)
    with pytest.raises(type(error)):
        saved.save_model(tmp_path / "final", weights_of(palm), b"tokenizer", settings, step=1)
    assert len(written) == number
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_model_outlives_a_failed_write(folder, palm, settings, monkeypatch):
    from mindspore_palm import load
    from mindspore_palm.checkpoint import model_folder as saved
    from mindspore_palm.checkpoint.model_folder import weights_of

    def fail(path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(saved, "write_atomically", fail)
    with pytest.raises(OSError, match="No space left"):
        saved.save_model(folder, weights_of(palm), b"tokenizer", settings, step=1)
    assert load(folder).config == settings.model


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file(keep, folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert "model.safetensors: this is not a complete safetensors file" in refused(folder)


def test_garbage(folder):
    (folder / "model.safetensors").write_bytes(b"\xff" * 1000)
    assert "not a complete safetensors file" in refused(folder)


def test_weights_that_are_a_folder(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    assert "model.safetensors" in refused(folder)


def changed(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")
    return refused(folder)


@pytest.mark.parametrize("name", ["embedding", "blocks.1.kv", "blocks.0.norm.scale"])
def test_a_missing_weight(name, folder):
    assert f"the weights lack {name};" in changed(folder, lambda weights: weights.pop(name))


def test_a_weight_too_many(folder):
    message = changed(folder, lambda weights: weights.update({"blocks.9.kv": np.zeros(3, np.float32)}))
    assert "blocks.9.kv" in message


@pytest.mark.parametrize("name", ["blocks.0.kv", "blocks.0.norm.scale"])
def test_a_wrong_shape(name, folder):
    message = changed(folder, lambda weights: weights.update({name: np.zeros((3, 5), np.float32)}))
    assert f"{name} is float32 [3, 5]" in message
    assert "wants float32 [16" in message


def test_a_wrong_dtype(folder):
    message = changed(folder, lambda weights: weights.update(embedding=weights["embedding"].astype(np.float16)))
    assert "embedding is float16 [320, 16]" in message


def test_a_refused_file_changes_no_weight(palm):
    from mindspore_palm.checkpoint.model_folder import set_weights

    before = {p.name: p.asnumpy().copy() for p in palm.trainable_params()}
    weights = {name: weight + 1 for name, weight in before.items()}
    weights[list(weights)[-1]] = np.zeros((9, 9), np.float32)
    with pytest.raises(UserError):
        set_weights(palm, weights)
    for parameter in palm.trainable_params():
        np.testing.assert_array_equal(parameter.asnumpy(), before[parameter.name])


def test_weights_are_checked_before_the_network_is_built(folder, monkeypatch):
    from mindspore_palm.checkpoint import model_folder as saved

    (folder / "config.yaml").write_text("model: {preset: palm_540b}")
    monkeypatch.setattr(saved, "PaLM", lambda config: pytest.fail("2 TB were asked for"))
    assert "float32 [256000, 18432]" in refused(folder)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "'model' is missing"),
        ("- a", "'model' is missing"),
        ("data: {path: a}", "'model' is missing"),
        ("model: {layers: many}", "model.layers"),
        ("model: {head_dim: 31}", "head_dim = 31 is odd"),
        ("model: {layer: 2}", "model.layer"),
        ("model: {layers: 2", "line 1"),
        ("model: !!python/object/apply:os.getcwd []", "refused"),
        (b"\xff", "config.yaml"),
    ],
)
def test_a_broken_config(content, problem, folder):
    (folder / "config.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    message = refused(folder)
    assert "config.yaml" in message
    assert problem in message


def test_missing_files(folder, tmp_path):
    from mindspore_palm import Tokenizer

    (folder / "config.yaml").unlink()
    assert f"there is no {folder / 'config.yaml'}" in refused(folder)
    (folder / "tokenizer.model").unlink()
    with pytest.raises(UserError, match="there is no tokenizer"):
        Tokenizer(folder / "tokenizer.model")
    (folder / "model.safetensors").unlink()
    assert "name the folder of a finished run" in refused(folder)
    assert "there is no folder" in refused(tmp_path / "nowhere")


def test_a_model_exported_by_an_earlier_version_is_identified_by_its_weights(run, palm, settings, tokenizer, capsys):
    """Its metadata does not name its checkpoint: the weights must be the same, and the same step is not enough."""
    from mindspore_palm.checkpoint.model_folder import find_model, save_model, weights_of

    save_model(run / "final", weights_of(palm), tokenizer.serialized, settings, step=7)
    assert find_model(run) == run / "final" and capsys.readouterr().err == ""
    weights = weights_of(palm) | {"embedding": palm.embedding.asnumpy() + 1}
    save_model(run / "final", weights, tokenizer.serialized, settings, step=7)
    assert find_model(run) == run / "checkpoints" / "step_000007"
    assert "holds the model of step 7, and the run is at another checkpoint" in capsys.readouterr().err


def test_a_run_opens_where_it_went_back_to(run, palm, settings, tokenizer):
    """Even before the next start deletes the checkpoints that it went back from."""
    from mindspore_palm.checkpoint.manager import CheckpointManager
    from mindspore_palm.checkpoint.model_folder import find_model
    from mindspore_palm.checkpoint.progress import Rewind, write_rewinds
    from mindspore_palm.parallel.votes import Votes

    checkpoints = run / "checkpoints"
    manager = CheckpointManager(
        checkpoints, palm.trainable_params(), settings, tokenizer.serialized, Votes(), lambda: None
    )
    manager.save(9, {})
    assert manager.finish() and find_model(run) == checkpoints / "step_000009"
    write_rewinds(run, [Rewind("by hand", 9, 7, (0, 0), "--rewind-to 7")])
    assert find_model(run) == checkpoints / "step_000007"


def test_users_files_beside_a_model_survive(folder, palm, settings, tokenizer):
    from mindspore_palm.checkpoint.model_folder import save_model, weights_of

    (folder / "notes.txt").write_text("mine")
    (folder / ".ipynb_checkpoints").mkdir()
    save_model(folder, weights_of(palm), tokenizer.serialized, settings, step=8)
    assert (folder / "notes.txt").read_text() == "mine" and (folder / ".ipynb_checkpoints").is_dir()


def test_a_home_directory_is_expanded(folder, settings, monkeypatch):
    from mindspore_palm import load

    monkeypatch.setenv("HOME", str(folder.parent))
    assert load("~/final").config == settings.model


@pytest.fixture
def adapted(tokenizer, tmp_path, device):
    """A network, a checkpoint with LoRA adapters on it, and its settings."""
    from mindspore_palm import PaLM
    from mindspore_palm.checkpoint.manager import CheckpointManager
    from mindspore_palm.model.lora import adapt
    from mindspore_palm.parallel.votes import Votes

    tuned = Settings.model_validate({"model": SIZES, "finetune": {"checkpoint": "base", "lora_rank": 2}})
    network = PaLM(tuned.model, seed=3)
    adapt(network, 2, 16.0, 0)
    manager = CheckpointManager(
        tmp_path / "c", list(network.get_parameters()), tuned, tokenizer.serialized, Votes(), bool
    )
    manager.save(1, {})
    assert manager.finish(), manager.problem
    return manager.newest(), tuned


def test_an_adapter_is_tied_to_the_weights_it_was_trained_on(adapted, tmp_path):
    """By their content: a network of the same sizes may be another one."""
    from mindspore_palm import PaLM
    from mindspore_palm.checkpoint.adapter import save_adapter, with_adapter

    checkpoint, tuned = adapted
    save_adapter(checkpoint, tmp_path / "adapter.safetensors", tuned.model, tuned.finetune)
    with_adapter(PaLM(tuned.model, seed=3), tmp_path / "adapter.safetensors")
    with pytest.raises(UserError, match="it was trained on other weights than this network has"):
        with_adapter(PaLM(tuned.model, seed=4), tmp_path / "adapter.safetensors")


def test_fine_tuning_identifies_its_model_by_content(palm, settings, tokenizer, tmp_path):
    """A moved model is the same. Trained further it is another one, which matters to a run that goes back to step 0."""
    from mindspore_palm.checkpoint.manager import CheckpointManager
    from mindspore_palm.checkpoint.model_folder import save_model, weights_of
    from mindspore_palm.checkpoint.progress import Progress
    from mindspore_palm.parallel.votes import Votes
    from mindspore_palm.train.base_model import base_identity, check_base
    from mindspore_palm.train.continuation import StartOptions, check_unchanged

    def tuned(base):
        return settings.model_copy(update={"finetune": settings.finetune.model_copy(update={"checkpoint": str(base)})})

    for name in ("base", "moved"):
        save_model(tmp_path / name, weights_of(palm), tokenizer.serialized, settings, step=5)
    other = weights_of(palm) | {"embedding": palm.embedding.asnumpy() + 1}
    save_model(tmp_path / "other", other, tokenizer.serialized, settings, step=5)
    names = [base_identity(tuned(tmp_path / name)) for name in ("base", "moved", "other")]
    assert names[0] == names[1] != names[2]

    progress = Progress()
    check_base(tuned(tmp_path / "base"), progress)
    progress.step = 7
    state = {"progress": progress.to_json()}
    path, parameters = tmp_path / "run" / "checkpoints", palm.trainable_params()
    manager = CheckpointManager(path, parameters, tuned(tmp_path / "base"), tokenizer.serialized, Votes(), lambda: None)
    manager.save(7, state)
    assert manager.finish()
    before = tuned(tmp_path / "base")
    check_unchanged(before, tuned(tmp_path / "moved"), StartOptions(), tmp_path / "run")
    with pytest.raises(UserError, match=r"finetune\.checkpoint was .*base and is .*other now"):
        check_unchanged(before, tuned(tmp_path / "other"), StartOptions(), tmp_path / "run")

    check_base(tuned(tmp_path / "other"), progress)  # it has its own weights
    progress.step = 0
    with pytest.raises(UserError, match="holds another model than the one that this run started from"):
        check_base(tuned(tmp_path / "other"), progress)
