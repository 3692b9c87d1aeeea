"""Kinds of values that settings have, and what a group of settings is."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

LARGEST = 2**63  # what a count stays below, so that no product of a few of them is beyond a float


def _named(text: str) -> str:
    if not text.strip() or "\0" in text:
        raise ValueError("must be a name; leave the setting out for its default")
    return text


def off_is_a_word(value: Any) -> Any:
    """YAML 1.1 reads off as false."""
    return "off" if value is False else value


Count = Annotated[int, Field(gt=0, lt=LARGEST)]
Layers = Annotated[int, Field(gt=0, le=10_000)]  # each is built and listed by itself
Devices = Annotated[int, Field(gt=0, le=1_000_000)]  # along one axis of a mesh
CountOrZero = Annotated[int, Field(ge=0, lt=LARGEST)]
Size = Annotated[int, Field(lt=LARGEST)]
Name = Annotated[str, AfterValidator(_named)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


class Departure:
    """Marks a setting whose default is PaLM's way, and whose other values depart from PaLM."""


class Section(BaseModel):
    """A group of settings: no unknown names, no silent conversions, unchangeable once made."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Contradiction(ValueError):
    """Settings of a section that do not go together.

    Args:
        text: names each of them with its value, and what to set.
        fields: their names in the section.
    """

    def __init__(self, text: str, *fields: str) -> None:
        super().__init__(text)
        self.fields = fields
