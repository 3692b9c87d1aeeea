"""Configurations that come with the package: the folder yaml/ of the project, to which the link ``configs`` leads.

A wheel holds the files themselves, so they are found in the same place with and without a checkout.
"""

from __future__ import annotations

from pathlib import Path

CONFIGS = Path(__file__).with_name("configs")
FOLDER = "yaml"  # their folder in a checkout, as documentation and help write it
ENDING = ".yaml"


def shipped_configs() -> dict[str, Path]:
    """The configurations by name, such as palm_tiny."""
    return {file.stem: file for file in sorted(CONFIGS.glob(f"*{ENDING}"))}


def find_config(path: Path) -> Path:
    """The file that ``--config`` means: the path itself if there is such a file, else a configuration of the package.

    ``palm_tiny``, ``palm_tiny.yaml`` and ``yaml/palm_tiny.yaml`` mean the package's ``palm_tiny``, in any folder.

    Args:
        path: as the user wrote it. It is returned unchanged if neither is there.
    """
    named = path.suffix in ("", ENDING) and path.parent in (Path("."), Path(FOLDER))
    if not named or path.is_file():
        return path
    return shipped_configs().get(path.stem, path)
