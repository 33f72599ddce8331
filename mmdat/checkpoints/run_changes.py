"""What differs between a run and the one that it goes on from."""

import ast
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config
from mmengine.dist import get_world_size

# What a training depends on; of the loop not the type, as mmdat has its own.
_MATTERS = (
    *('model', 'data_preprocessor', 'train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler'),
    *('randomness', 'custom_hooks', 'runner_type', 'strategy', 'compile'),
)
_NO_MATTER_IN_LOOP = ('type', 'by_epoch')
_SHOWN = 20


def changes(cfg: Config, checkpoint: dict[str, Any]) -> list[str]:
    """What a config trains otherwise than the run of a checkpoint did, as ``key: old -> new``.

    The config of that run is the text that MMEngine keeps in checkpoints; it is parsed, not run.
    """
    info = checkpoint['message_hub'].get('runtime_info') or {}
    try:
        old = _parsed(info['cfg'])
    except (KeyError, TypeError, ValueError, SyntaxError, RecursionError, MemoryError):
        return []
    before, after = [dict(_flat({key: of[key] for key in _MATTERS if key in of})) for of in (old, cfg.to_dict())]
    before.pop('randomness.seed', None)
    before['randomness.seed'] = checkpoint['meta'].get('seed')
    if 'world_size' in info:
        before['number of processes'], after['number of processes'] = info['world_size'], get_world_size()
    nothing = 'nothing'
    found = [
        f'{key}: {_short(before.get(key, nothing))} -> {_short(after.get(key, nothing))}'
        for key in [*after, *(key for key in before if key not in after)]
        if before.get(key, nothing) != after.get(key, nothing)
    ]
    return found[:_SHOWN] + ([f'and {len(found) - _SHOWN} more'] if len(found) > _SHOWN else [])


def _parsed(text: str) -> dict[str, Any]:
    """The assignments of a config's text, of plain values and ``dict(...)`` only."""
    found = {}
    for statement in ast.parse(text).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            found[statement.targets[0].id] = _value(statement.value)
    return found


def _value(node: ast.AST) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict' and not node.args:
        return {keyword.arg: _value(keyword.value) for keyword in node.keywords if keyword.arg}
    if isinstance(node, ast.Dict):
        return {_value(key): _value(value) for key, value in zip(node.keys, node.values) if key is not None}
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(child) for child in node.elts]
    return ast.literal_eval(node)


def _flat(node: Any, place: str = '') -> Iterator[tuple[str, Any]]:
    """The leaves of a config with their places; of what matters for training."""
    if isinstance(node, dict):
        for key, value in node.items():
            if not (place == 'train_cfg.' and key in _NO_MATTER_IN_LOOP):
                yield from _flat(value, f'{place}{key}.')
    elif isinstance(node, (list, tuple)) and any(isinstance(child, (dict, list, tuple)) for child in node):
        for number, child in enumerate(node):
            yield from _flat(child, f'{place}{number}.')
    else:
        yield place[:-1], list(node) if isinstance(node, (list, tuple)) else node


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, str) else value
    return text if len(text) <= 60 else text[:57] + '...'
