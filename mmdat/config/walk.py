"""Finding things in a config, however deep."""

from collections.abc import Iterator
from typing import Any


def dicts(node: Any) -> Iterator[dict]:
    """All dicts in a config or a part of one, outermost first."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for child in node:
            yield from dicts(child)


def innermost_datasets(node: Any) -> Iterator[dict]:
    """The datasets of a dataset config that read files.

    Wrappers such as RepeatDataset have one below ``dataset``, ConcatDataset has several below ``datasets``; either may
    hold a list.
    """
    if isinstance(node, (list, tuple)):
        for child in node:
            yield from innermost_datasets(child)
    elif isinstance(node, dict):
        inner = [node[key] for key in ('dataset', 'datasets') if node.get(key)]
        if inner:
            yield from innermost_datasets(inner)
        else:
            yield node
