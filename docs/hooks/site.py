"""mkdocs hook: pages that are elsewhere in the repository, pages of linked sources, and generated parts.

README.md is the front page. A link to a source file leads to a page that shows the file, so the site stands alone.
"""

from __future__ import annotations

import ast
import posixpath
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from docs.hooks.links import links, relinked  # noqa: E402
from docs.hooks.outside import OUTSIDE  # noqa: E402
from docs.hooks.reference import filled  # noqa: E402

SOURCE = "source"  # folder of the pages of source files
LANGUAGES = {".py": "python", ".yaml": "yaml", ".txt": "text", ".cc": "cpp", ".h": "cpp", ".toml": "toml"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are not below docs/."""
    for path, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=_read(path)))
    sources = set()
    for file in files.documentation_pages():
        sources |= {target for target, _ in links(_path_of(file.src_uri), file.content_string) if _is_source(target)}
    for folder in [path for path in sources if (ROOT / path).is_dir()]:
        sources |= {f"{folder}/{file.name}" for file in (ROOT / folder).iterdir() if file.suffix in LANGUAGES}
    for path in sorted(sources):
        files.append(
            File.generated(config, _page_of(path), content=_folder(path) if (ROOT / path).is_dir() else _file(path))
        )
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fills in what is generated, and turns links of the repository into links of the site."""
    here = page.file.src_uri
    if here.startswith(f"{SOURCE}/"):
        return markdown

    def new_target(path: str) -> str:
        return posixpath.relpath(_page_of(path), posixpath.dirname(here) or ".")

    return relinked(_path_of(here), filled(markdown), new_target)


def _path_of(page: str) -> str:
    """Path in the repository of a page of the site."""
    return next((path for path, outside in OUTSIDE.items() if outside == page), f"docs/{page}")


def _page_of(path: str) -> str:
    """Page or picture of the site for a path in the repository."""
    if path in OUTSIDE:
        return OUTSIDE[path]
    return path.removeprefix("docs/") if path.startswith("docs/") else f"{SOURCE}/{path}.md"


def _is_source(path: str) -> bool:
    return not path.startswith("docs/") and path not in OUTSIDE and (ROOT / path).exists()


def _read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def _file(path: str) -> str:
    language = LANGUAGES.get(Path(path).suffix, "text")
    return f"# {path}\n\n``````{language}\n{_read(path)}``````\n"


def _folder(path: str) -> str:
    rows = [
        f"| [`{file.name}`]({posixpath.basename(path)}/{file.name}.md) | {_about(f'{path}/{file.name}')} |"
        for file in sorted((ROOT / path).iterdir())
        if file.suffix in LANGUAGES
    ]
    return "\n".join([f"# {path}", "", "| file | |", "|---|---|", *rows, ""])


def _about(path: str) -> str:
    """First line of a docstring, or of a comment at the start."""
    text = _read(path)
    if path.endswith(".py"):
        text = ast.get_docstring(ast.parse(text)) or ""
    elif not text.startswith(("# ", "// ")):
        text = ""
    return text.partition("\n")[0].lstrip("#/ ")
