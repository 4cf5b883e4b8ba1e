"""YAML as recipes use it: without objects, each key once, 1e-3 a number."""

from __future__ import annotations

import re
from typing import Any

import yaml

# ------------------------------------------------------------------------------------------------------ reading


class RecipeLoader(yaml.SafeLoader):
    """YAML 1.1 without objects, that reads 1e-3 as a number and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if not isinstance(node, yaml.MappingNode):  # '!!set 0'
            raise yaml.constructor.ConstructorError(None, None, "this is no mapping", node.start_mark)
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(getattr(key_node, "value", key_node))
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError as error:  # a date or number that is none
            raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from None


class RecipeDumper(yaml.SafeDumper):
    """Writes what :class:`RecipeLoader` reads back: a text such as '1e3' in quotes."""


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # Unquoted, a line break that only Unicode knows (U+0085) would be read back as a space.
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


RecipeDumper.add_representer(str, _write_text)

for _each in (RecipeLoader, RecipeDumper):
    _each.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"), list("-+0123456789")
    )
