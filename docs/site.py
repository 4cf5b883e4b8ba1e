"""What MkDocs needs beside mkdocs.yml: the page's own language, and links to files of the repository.

In:  the pages as they lie in the repository, whose links may leave docs/.
Out: those files beside the site's pages, as text, and the links pointing there.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<target>[^)#:]+)(?P<anchor>#[^)]*)?\)")


def outside(page: str, target: str) -> Path | None:
    """The file or folder of the repository that a link of a page of docs/ leads to, if it is outside of docs/."""
    path = Path(os.path.normpath(ROOT / "docs" / Path(page).parent / target))
    return path if path.exists() and not path.is_relative_to(ROOT / "docs") else None


def as_text(path: Path) -> str:
    """Where the site has a file of the repository."""
    return f"source/{path.relative_to(ROOT).as_posix()}.txt"


def on_files(files: Files, config: Any) -> Files:
    """Add the files that pages link to."""
    wanted = {}
    for page in files.documentation_pages():
        for link in LINK.finditer(page.content_string):
            path = outside(page.src_uri, link["target"])
            if path and path.is_file():
                wanted[as_text(path)] = path
    for uri, path in sorted(wanted.items()):
        files.append(File.generated(config, uri, content=path.read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point the links there; the name of a folder stays as text."""

    def pointed(link: re.Match[str]) -> str:
        path = outside(page.file.src_uri, link["target"])
        if path is None:
            return link[0]
        up = "../" * page.file.src_uri.count("/")
        return f"[{link['text']}]({up}{as_text(path)})" if path.is_file() else link["text"]

    return LINK.sub(pointed, markdown)


def on_page_context(context: Any, page: Any, config: Any, **_: Any) -> Any:
    """The theme speaks the language of the page's tree."""
    config.theme["language"] = "zh" if page.url.startswith("zh/") else "en"
    return context
