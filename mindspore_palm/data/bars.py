"""Progress bars of a preparation, on standard error if that is a terminal: one for each stage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from tqdm import tqdm

from mindspore_palm.data.corpus import Document
from mindspore_palm.data.files import CorpusFile


def bar(stage: str, total: int, progress: bool, unit: str = "B") -> tqdm:
    """The bar of a stage, which disappears when it is closed.

    Args:
        stage: its name.
        total: units of work.
        progress: whether to show it on a terminal; elsewhere it is never shown.
        unit: bytes by default.
    """
    hide = None if progress else True  # None: only on a terminal
    return tqdm(total=total, desc=stage, unit=unit, unit_scale=True, leave=False, disable=hide)


def counted(
    documents: Iterable[Document], files: Sequence[CorpusFile], stage: str, progress: bool
) -> Iterator[Document]:
    """Yields the documents of ``files``, and shows how much of them is done."""
    # Compressed text is larger than its file, so the bar may pass its total: tqdm then shows only the count.
    with bar(stage, sum(file.size for file in files), progress) as shown:
        for document in documents:
            yield document
            shown.update(document.part_size)
