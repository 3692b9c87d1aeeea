"""Card of a converted model: README.md in a folder, or a Markdown file beside a single file."""

from __future__ import annotations

import os
from pathlib import Path

from mindspore_palm.checkpoint.model_card import keep_edited, model_card
from mindspore_palm.convert.model import Model
from mindspore_palm.errors import UserError
from mindspore_palm.file_names import CARD
from mindspore_palm.files import write_atomically

MARKDOWN = ".md"
GRAPH_USE = """```python
import mindspore as ms

palm = ms.nn.GraphCell(ms.load("FILE"))  # int32 [B, S] to float32 [B, S, vocabulary], for the one B and S of its export
```"""
FOREIGN_USE = """In the format `{format}`. mindspore_palm reads it back:

```
palm convert --from {format} PATH --to FOLDER
```

```python
from mindspore_palm import load

palm = load("FOLDER")
```"""


def card_of(path: Path) -> Path:
    """The path of the card of a model in a file or a folder."""
    return path / CARD if path.is_dir() else path.with_name(f"{path.name}{MARKDOWN}")


def write_card(path: Path, format_name: str, model: Model) -> None:
    """Writes the card of a model that was just written, unless its format has done that.

    Args:
        path: file or folder of the model.
        format_name: name of the format.
        model: that was written.

    Raises:
        OSError: it could not be written.
    """
    card = card_of(path)
    if not card.exists():
        use = GRAPH_USE if format_name == "mindir" else FOREIGN_USE.format(format=format_name)
        with write_atomically(card) as file:
            file.write(model_card(model.config, model.training, model.seq_len, use).encode())


def move_into_place(unchecked: Path, target: Path, replaced: Path) -> None:
    """Moves a written model and its card to their names. An earlier card stays under another name if it was edited.

    Args:
        unchecked: the model, with its card.
        target: its name.
        replaced: where an earlier model goes.

    Raises:
        UserError: a folder has the name of the card; nothing was moved.
        OSError: something could not be moved.
    """
    card = None if unchecked.is_dir() else target.with_name(f"{target.name}{MARKDOWN}")
    if card and card.is_dir():
        raise UserError(f"{card} is a folder, and the model's card goes there; move it away")
    if target.is_dir():
        keep_edited(target / CARD, target.parent if card else unchecked)
    if target.exists():
        os.replace(target, replaced)
    written = card_of(unchecked)
    os.replace(unchecked, target)
    if card:
        keep_edited(card)
        os.replace(written, card)
