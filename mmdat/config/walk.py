"""Finding and changing things in a config, however deep."""

from typing import Any, Callable


def replace(node: Any, key: str, change: Callable[[Any], Any]) -> None:
    """Change each value of a key in a config, however deep."""
    if isinstance(node, dict):
        if key in node:
            node[key] = change(node[key])
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for child in node:
            replace(child, key, change)
