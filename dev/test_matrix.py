"""Install and try mmdat with each stack and Python version that is there, and print what was measured as a table.

Only combinations whose interpreter is found (on PATH or by pyenv) are tried. Environments stay, and are used again.

    python dev/test_matrix.py --out matrix.md

Exit code 1 if a test failed.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Optional

ROOT = Path(__file__).parents[1]
STACKS = ('classic', 'current')
# The backbones, the official models' numbers, and training, resuming and testing of each task, for both generations.
TESTS = ('tests/test_dat.py', 'tests/test_parity.py', 'tests/test_tools.py::test_train_resume_test')
NOT_MEASURED = 'not measured'


def versions(stack: str) -> list:
    """The Python versions that a stack is made for, as its requirements say."""
    text = (ROOT / f'requirements/stacks/{stack}.txt').read_text()
    return re.search(r'^# Python: *(.+)$', text, re.M)[1].split()


def find_interpreter(version: str) -> Optional[str]:
    """An interpreter of this version that runs, from PATH or pyenv."""
    pyenv = Path(os.environ.get('PYENV_ROOT', Path.home() / '.pyenv')) / 'versions'
    found = [shutil.which(f'python{version}'), *sorted(map(str, pyenv.glob(f'{version}.*/bin/python')))]
    for path in filter(None, found):
        # pyenv puts programs on PATH that only say that no version is chosen.
        if subprocess.run([path, '-c', 'import venv, ensurepip'], capture_output=True).returncode == 0:
            return path
    return None


def measure(stack: str, version: str, environments: Path) -> dict:
    """A row of the table."""
    row = dict(stack=stack, Python=version, PyTorch='', mmcv='', tests=NOT_MEASURED)
    python = find_interpreter(version)
    if python is None:
        return dict(row, tests=f'{NOT_MEASURED}: no interpreter')
    venv = environments / f'{stack}-{version}'
    options = ['--stack', stack, '--python', python, '--venv', str(venv)]
    if subprocess.run(['bash', str(ROOT / 'tools/install.sh'), *options]).returncode:
        return dict(row, tests='installation failed')
    python = venv / 'bin/python'
    show = 'import sys, torch, mmcv; print(sys.version.split()[0], torch.__version__, mmcv.__version__)'
    row.update(zip(('Python', 'PyTorch', 'mmcv'), subprocess.check_output([python, '-c', show], text=True).split()))
    # Not from a checkout that another environment points to.
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    command = [python, '-m', 'pytest', '-p', 'no:cacheprovider', '-o', 'addopts=', '-m', 'not slow', *TESTS]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        print(done.stdout[-3000:], done.stderr[-1000:], file=sys.stderr)
    return dict(row, tests=re.sub(r'^=+ | in .*$', '', done.stdout.strip().splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--envs', type=Path, default=ROOT / '.matrix', help='where the environments go')
    parser.add_argument('--out', type=Path, help='a Markdown file for the table, beside printing it')
    args = parser.parse_args()
    rows = [measure(stack, version, args.envs) for stack in STACKS for version in versions(stack)]
    lines = ['| ' + ' | '.join(rows[0]) + ' |', '|' + ' --- |' * len(rows[0])]
    table = '\n'.join(lines + ['| ' + ' | '.join(row.values()) + ' |' for row in rows])
    print(table)
    if args.out:
        args.out.write_text(table + '\n')
    sys.exit(any('failed' in row['tests'] or 'error' in row['tests'] for row in rows))


if __name__ == '__main__':
    main()
