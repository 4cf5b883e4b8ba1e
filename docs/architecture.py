"""Keep docs/en/architecture.md and docs/zh/architecture.md true to the code.

In:  the imports and definitions of hfgpt/.
Out: in both pages, the diagram of the folders between its markers, and each link of the form
     [`name`](../../hfgpt/folder/module.py) pointing at the module of that folder that defines the name.

    python docs/architecture.py
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "docs" / language / "architecture.md" for language in ("en", "zh")]
DIAGRAM = re.compile(r"(<!-- diagram: python docs/architecture.py -->\n).*?(<!-- end -->)", re.DOTALL)
LINK = re.compile(r"\[`(?P<name>[\w.]+)`\]\(\.\./\.\./hfgpt/(?P<folder>\w+)/\w+\.py\)")


def imports() -> dict[str, set[str]]:
    """Which folders each folder of hfgpt imports from."""
    out: dict[str, set[str]] = {}
    for module in sorted((ROOT / "hfgpt").glob("*/*.py")):
        folder = module.parent.name
        used = out.setdefault(folder, set())
        for node in ast.walk(ast.parse(module.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "hfgpt":
                names = [*(node.module or "").split(".")[1:2]] or [alias.name for alias in node.names]
                used.update(names)
        used.discard(folder)
    folders = out.keys() - {"locale"}  # the translations: files, and what compiles them
    return {folder: out[folder] & folders for folder in sorted(folders)}


def reduced(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The same graph without the arrows that follow from others."""

    def reach(folder: str) -> set[str]:
        return graph[folder] | {far for near in graph[folder] for far in reach(near)}

    return {
        folder: {near for near in used if not any(near in reach(other) for other in used - {near})}
        for folder, used in graph.items()
    }


def diagram() -> str:
    """The folders as a Mermaid flowchart: an arrow from a folder to one that it imports from."""
    graph = reduced(imports())
    lines = [f"    {folder} --> {near}" for folder in sorted(graph) for near in sorted(graph[folder])]
    return "\n".join(("```mermaid", "flowchart BT", *lines, "```")) + "\n"


def module_of(folder: str, name: str) -> Path:
    """The module of a folder that defines a function, class, method or constant.

    Raises:
        SystemExit: the folder does not define it.
    """
    outer, _, inner = name.partition(".")
    for module in sorted((ROOT / "hfgpt" / folder).glob("*.py")):
        for node in ast.parse(module.read_text("utf-8")).body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            names = {getattr(node, "name", ""), *(getattr(target, "id", "") for target in targets)}
            members = {getattr(member, "name", "") for member in getattr(node, "body", [])}
            if outer in names and (not inner or inner in members):
                return module
    sys.exit(f"docs/*/architecture.md names {name}, which hfgpt/{folder}/ does not define")


def current(text: str) -> str:
    """A page with its diagram and links as the code is now."""

    def link(found: re.Match[str]) -> str:
        module = module_of(found["folder"], found["name"]).relative_to(ROOT)
        return f"[`{found['name']}`](../../{module.as_posix()})"

    return LINK.sub(link, DIAGRAM.sub(lambda found: found[1] + diagram() + found[2], text))


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(current(page.read_text("utf-8")), encoding="utf-8")
        print(page.relative_to(ROOT))
