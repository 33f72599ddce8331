"""Try the newest releases of everything that mmdat depends on, and report what breaks.

An environment of its own gets ``mmdat[mm]`` (lower bounds, no pins) in the newest releases that pip finds, also
of what it has already; then the doctor and the tests run in it. It stays, and is used again.

    python dev/newest.py [--env DIR] [--python PYTHON] [--out FILE] [-- OPTIONS OF PYTEST]

Prints which releases are newer than those of requirements/stacks/current.txt, and which tests fail. Exit code 1 if the
installation, the doctor or a test fails.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def pinned() -> dict:
    """Distribution -> version of the current stack."""
    lines = (ROOT / 'requirements/stacks/current.txt').read_text().splitlines()
    return dict(line.split('==') for line in lines if '==' in line and not line.startswith('#'))


def installed(python: Path) -> dict:
    """Distribution -> version in an environment."""
    listed = subprocess.check_output([python, '-m', 'pip', 'list', '--format', 'json'], text=True)
    return {entry['name'].lower(): entry['version'] for entry in json.loads(listed)}


def failures(output: str) -> list:
    """Lines of pytest's summary that name what failed."""
    return re.findall(r'^(?:FAILED|ERROR) .+$', output, re.M)


def measure(environment: Path, interpreter: str, options: list) -> tuple:
    """The report's lines, and whether everything passed."""
    python = environment / ('Scripts' if os.name == 'nt' else 'bin') / 'python'
    if not python.exists():
        subprocess.check_call([interpreter, '-m', 'venv', str(environment)])
    newest = ['--upgrade', '--upgrade-strategy', 'eager', '-r', str(ROOT / 'requirements/tests.txt')]
    install = [python, '-m', 'pip', 'install', '--no-compile', *newest, '-e', f'{ROOT}[mm]']
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode:
        return ['installation failed:', *done.stderr.strip().splitlines()[-15:]], False
    found = installed(python)
    lines = ['| distribution | pinned | tried |', '| --- | --- | --- |']
    lines += [f'| {name} | {release} | {found.get(name, "none")} |' for name, release in pinned().items()]
    lines += [
        '',
        'All others: ' + ', '.join(f'{name} {found[name]}' for name in sorted(found) if name not in pinned()),
        '',
    ]
    environ = {**os.environ, 'PYTHONPATH': str(ROOT)}
    doctor = subprocess.run([python, '-m', 'mmdat.doctor'], env=environ, capture_output=True, text=True)
    lines += ['```text', *doctor.stdout.strip().splitlines(), '```', '']
    command = [python, '-m', 'pytest', '-p', 'no:cacheprovider', '-rfE', '--tb=line', *options]
    tests = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    summary = (tests.stdout.strip() or tests.stderr.strip()).splitlines()[-1]
    lines += [f'tests: {summary}', *(f'- {line}' for line in failures(tests.stdout))]
    return lines, doctor.returncode == 0 and tests.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--env', type=Path, default=ROOT / '.matrix' / 'newest', help='where the environment goes')
    parser.add_argument('--python', default=sys.executable, help='the interpreter it is made with')
    parser.add_argument('--out', type=Path, help='a Markdown file for the report, beside printing it')
    parser.add_argument('options', nargs='*', help='options and tests for pytest, behind --')
    args = parser.parse_args()
    lines, passed = measure(args.env, args.python, args.options)
    report = '\n'.join(lines)
    print(report)
    if args.out:
        args.out.write_text(report + '\n')
    sys.exit(not passed)


if __name__ == '__main__':
    main()
