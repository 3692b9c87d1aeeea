"""The chat: a model is talked with in the format of its training, from a pipe and in a terminal."""

from __future__ import annotations

import io
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli.signals import interrupted_at_start

from mindspore_palm import Generator, PaLM, Sampling, Tokenizer, load
from mindspore_palm.checkpoint.model_folder import save_model, weights_of
from mindspore_palm.config import Settings
from mindspore_palm.errors import UserError
from mindspore_palm.generate.chat import PAIRS, TEXT, Chat, ChatOptions, run
from mindspore_palm.generate.transcript import Transcript
from mindspore_palm.launch.interrupts import Interrupts

ROOT = Path(__file__).resolve().parents[2]
COMMAND = ROOT / "run" / "chat.py"
MODEL = {"layers": 1, "d_model": 16, "heads": 2, "head_dim": 8, "d_ff": 32, "vocab_size": 320}
CONTEXT = 48
FEW = Sampling(max_tokens=6)


def saved(folder, **sections):
    words = (f"import os{i}\ndef f{i}(a, b):\n    return a + {i} * b\n" for i in range(400))
    tokenizer = Tokenizer.train(words, 320, folder / "tokenizer.model")
    (folder / "tokenizer.model").unlink()
    settings = Settings.model_validate({"model": MODEL, "data": {"seq_len": CONTEXT}, **sections})
    save_model(folder / "final", weights_of(PaLM(settings.model, seed=3)), tokenizer.serialized, settings, step=1)
    return folder


@pytest.fixture(scope="module")
def base(device, tmp_path_factory):
    return saved(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def finetuned(device, tmp_path_factory):
    return saved(tmp_path_factory.mktemp("finetuned"), finetune={"checkpoint": "runs/base"})


@pytest.fixture(scope="module")
def generator(base):
    return Generator(load(base), Tokenizer(base / "final" / "tokenizer.model"), CONTEXT)


@pytest.fixture
def talk(monkeypatch, capsys, generator):
    """Output of a chat for lines on standard input: answers and hints."""

    def run_chat(text, style, sampling=FEW, template=""):
        data = text if isinstance(text, bytes) else text.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        Chat(generator, sampling, style, template, Interrupts()).talk()
        return capsys.readouterr()

    return run_chat


def test_a_model_of_pairs_gets_each_message_as_a_prompt_by_itself(talk, generator):
    """[eod], the prompt, and what was learned after it: no earlier message, no name of a speaker, no line break."""
    out, err = talk("import os1\ndef f\nimport os1\n", PAIRS)
    expected = [generator([prompt], FEW)[0].text for prompt in ("import os1", "def f", "import os1")]
    assert out == "".join(f"{text}\n" for text in expected)
    assert "each message is a prompt by itself" in err


def test_a_template_surrounds_a_message(talk, generator):
    out, _ = talk("import os1\n", PAIRS, template="def {}(a")
    assert out == generator(["def import os1(a"], FEW)[0].text + "\n"


def test_another_model_continues_the_text_of_both(talk, generator):
    tokenizer = generator.tokenizer
    out, err = talk("import os1\ndef f\n", TEXT)
    window = [tokenizer.eod, *tokenizer.encode("import os1")]
    (first,) = generator([window], FEW)
    window += [*first.token_ids, *tokenizer.encode("def f")]
    (second,) = generator([window], FEW)
    assert out == f"{first.text}\n{second.text}\n" and "continues the text" in err


def test_an_empty_line_lets_a_text_go_on(talk, generator):
    longer = Sampling(max_tokens=12)
    (whole,) = generator(["import os1"], longer)
    out, _ = talk("import os1\n\n", TEXT)
    assert out.replace("\n", "", 1).removesuffix("\n") == whole.text


def test_reset_forgets(talk, generator):
    """Drawn texts, so that a greedy loop cannot hide what the model saw."""
    drawn = Sampling(max_tokens=12, temperature=1.2)
    first, second = (one.text for one in generator(["import os1", "import os1"], drawn))
    out, err = talk("import os1\n/reset\nimport os1\n", TEXT, drawn)
    assert out == f"{first}\n{second}\n" and "forgotten" in err
    out, _ = talk("import os1\nimport os1\n", TEXT, drawn)
    assert out.startswith(f"{first}\n") and out != f"{first}\n{second}\n"  # the second continues the first


def test_a_text_that_outgrows_the_context_loses_its_beginning(generator):
    """Half of the context stays, and what is typed comes after it."""
    transcript, tokens = Transcript(generator.tokenizer, CONTEXT), list(range(10, 10 + CONTEXT))
    transcript.add_tokens(tokens)
    typed = generator.tokenizer.encode("import os1")
    assert transcript.add_text("import os1").context == (*tokens[-CONTEXT // 2 :], *typed)


def test_equal_messages_get_different_draws(talk):
    drawn = Sampling(max_tokens=12, temperature=1.2)
    lines = talk("def f\ndef f\n", PAIRS, drawn).out
    assert lines == talk("def f\ndef f\n", PAIRS, drawn).out  # of one seed
    half = len(lines) // 2
    assert lines[:half] != lines[half:]


def test_a_line_that_does_not_fit_or_is_no_text_does_not_end_the_chat(talk, generator):
    out, err = talk(b"x1" * 100 + b"\n\xff\n/what\nimport os1\n/help", TEXT)
    assert out == generator(["import os1"], FEW)[0].text + "\n"
    assert "error: the line has " in err and "at most 23 fit" in err
    assert "error: the line is not UTF-8 text: byte 0xff at 0" in err
    assert "error: there is no command /what; there are /reset, /help" in err
    assert "Ctrl-C   end an answer" in err


def test_a_template_is_for_pairs(base):
    options = ChatOptions(base, FEW, "auto", "{}!", 0, "CPU")
    with pytest.raises(UserError, match="--template is for models that were fine-tuned on pairs; leave it out"):
        run(options, Interrupts())


def command(*words, given=b""):
    line = [sys.executable, COMMAND, *map(str, words)]
    return subprocess.run(line, input=given, capture_output=True, timeout=120, cwd=ROOT)


def test_ctrl_c_before_the_chat_ends_the_command(base):
    """While the model is loaded."""
    line = [sys.executable, COMMAND, base]
    assert interrupted_at_start(line, stdin=subprocess.PIPE) == (130, b"", b"\nstopped\n")


def test_the_style_follows_from_the_training(finetuned, base, generator):
    """By the command itself, with a pipe: answers are its whole standard output."""
    words = ["--temperature", "0", "--max-tokens", "6"]
    expected = generator(["import os1"], FEW)[0].text
    for folder, hint in ((finetuned, b"fine-tuned on pairs"), (base, b"continues the text")):
        done = command(folder, *words, given=b"import os1\n")
        assert (done.returncode, done.stdout.decode()) == (0, f"{expected}\n"), done.stderr
        assert hint in done.stderr and b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "error: there is no folder nowhere"),
        ([".", "--template", "x"], "error: --template 'x': write {} where the message goes"),
        ([".", "--temperature", "-1"], "error: --temperature -1.0: must be 0"),
        ([".", "--max-tokens", "0"], "error: --max-tokens 0: must be 1 or more"),
    ],
)
def test_bad_options_are_refused_in_a_sentence(words, message):
    done = command(*words)
    said = done.stderr.decode()
    assert (done.returncode, done.stdout) == (2, b"") and said.startswith(message) and said.count("\n") == 1


class Terminal:
    """The command in a terminal of its own."""

    def __init__(self, *words):
        self.process, self.screen = None, b""
        parent, child = pty.openpty()
        line = [sys.executable, COMMAND, *map(str, words)]
        start = dict(stdin=child, stdout=child, stderr=child, cwd=ROOT, preexec_fn=lambda: own_terminal(child))
        self.process, self.end = subprocess.Popen(line, **start), parent
        os.close(child)

    def type(self, keys):
        os.write(self.end, keys)

    def wait_for(self, text, after=0):
        """Reads until the text is on the screen, after so many bytes; returns where it ends."""
        deadline = time.monotonic() + 90
        while (at := self.screen.find(text, after)) < 0:
            assert time.monotonic() < deadline, self.screen
            if select.select([self.end], [], [], 0.5)[0]:
                try:
                    self.screen += os.read(self.end, 4096)
                except OSError:  # the command has ended
                    raise AssertionError(self.screen) from None
        return at + len(text)


def own_terminal(child):
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(child, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_ctrl_c_ends_an_answer_and_ctrl_d_the_chat(base):
    terminal = Terminal(base, "--temperature", "0", "--max-tokens", "1000000")
    try:
        at = terminal.wait_for(b"> ")
        terminal.type(b"\x03")  # where nothing is to be ended, it says how to leave
        at = terminal.wait_for(b"Ctrl-D ends the chat\r\n> ", at)
        terminal.type(b"import os1\n")
        at = terminal.wait_for(b"import os1\r\n", at)
        while len(terminal.screen) < at + 30:  # it streams
            terminal.wait_for(b"", len(terminal.screen))
            terminal.screen += os.read(terminal.end, 100)
        terminal.type(b"\x03")
        at = terminal.wait_for(b"> ", at)
        terminal.type(b"/help\n")
        at = terminal.wait_for(b"Ctrl-D   end the chat", at)
        terminal.wait_for(b"> ", at)
        terminal.type(b"\x04")
        assert terminal.process.wait(30) == 0
        assert b"Traceback" not in terminal.screen
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.end)
