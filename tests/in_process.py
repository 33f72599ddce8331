"""The command-line tools, run in this process: starting another takes longer than most of what is tested."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

from mmdet.visualization import DetLocalVisualizer
from mmengine.visualization import Visualizer
from mmpretrain.visualization import UniversalVisualizer
from mmseg.visualization import SegLocalVisualizer

from mmdat.engine.runner import run

ROOT = Path(__file__).parents[1]


def load_tool(name: str) -> Any:
    """The module of tools/NAME.py."""
    spec = importlib.util.spec_from_file_location(name, ROOT / 'tools' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_tool(monkeypatch, tool: str, *args: Any) -> int:
    """What the command does, up to its exit; returns its exit code. Messages go to stderr, as there."""
    module = load_tool(tool)
    monkeypatch.setattr(sys, 'argv', [f'{tool}.py', *map(str, args)])
    # One per process, kept by name: the next run would write into the directory of the last.
    for visualizer in (Visualizer, DetLocalVisualizer, SegLocalVisualizer, UniversalVisualizer):
        visualizer._instance_dict.clear()
    try:
        run(module.main)
    except SystemExit as exit:
        if isinstance(exit.code, str):
            print(exit.code, file=sys.stderr)
            return 1
        return exit.code or 0
    return 0
