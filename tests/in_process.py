"""The command-line tools, run in this process: starting another takes longer than most of what is tested."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

from mmdat.cli import run

ROOT = Path(__file__).parents[1]


def load_script(path: str) -> Any:
    """The module of a script, by its path in the checkout; it finds the modules beside it."""
    folder = str((ROOT / path).parent)
    if folder not in sys.path:
        sys.path.append(folder)
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_tool(name: str) -> Any:
    """The module of tools/NAME.py, or dev/NAME.py."""
    return load_script(next(path for path in (f'tools/{name}.py', f'dev/{name}.py') if (ROOT / path).is_file()))


def call_tool(monkeypatch, tool: str, *args: Any) -> None:
    """Call the main function of a tool with a command line."""
    module = load_tool(tool)
    monkeypatch.setattr(sys, 'argv', [f'{tool}.py', *map(str, args)])
    module.main()


def run_tool(monkeypatch, tool: str, *args: Any) -> int:
    """What the command does, up to its exit; returns its exit code. Messages go to stderr, as there."""
    try:
        run(lambda: call_tool(monkeypatch, tool, *args))
    except SystemExit as exit:
        if isinstance(exit.code, str):
            print(exit.code, file=sys.stderr)
            return 1
        return exit.code or 0
    return 0
