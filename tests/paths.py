"""Where the files are that tests read."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / 'configs'
DEMO = CONFIGS / 'demo'
TOOLS = ROOT / 'tools'
DATA = ROOT / 'tests' / 'data'  # compact files of the official models
