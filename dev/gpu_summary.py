"""Write what README.md says of performance on GPUs from the JSON that benchmarks/gpu.py made.

python dev/gpu_summary.py          write it
python dev/gpu_summary.py --check  fail if it is not what the JSON says

The JSON of a run that is to be published lies at docs/measurements/gpu.json; without it, the README says so.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any, Optional

ROOT = Path(__file__).parents[1]
TARGET, SOURCE = ROOT / 'README.md', ROOT / 'docs/measurements/gpu.json'
MARKS = '<!-- begin: dev/gpu_summary.py -->\n', '<!-- end -->'
NOTHING = (
    '**No GPU has been measured.** [One command](docs/gpu.md#one-command) measures it on a machine that has one.\n'
)


def summary(report: Optional[dict[str, Any]]) -> str:
    """In Markdown; a run that only tried the script measured nothing."""
    if report is None or report['quick'] or report['machine']['device'] != 'cuda':
        return NOTHING
    here = report['machine']
    lines = [
        f'Measured on {here["card"]} with driver {here["driver"]}, PyTorch {here["torch"]} and Triton {here["triton"]}',
        '([all numbers](docs/measurements/gpu.json), [what they mean](docs/gpu.md)):',
        '',
        '| backbone | image, batch | precision | forward, images/s | training step, images/s | peak memory, GiB |',
        '|---|---|---|---|---|---|',
    ]
    found: dict[tuple, dict[str, dict[str, Any]]] = {}
    for row in report['parts'].get('backbones', dict(rows=[]))['rows']:
        # As users have them: with the form that is chosen.
        if 'error' not in row and not row['backbone'].endswith(('tiled', 'naive')):
            found.setdefault((row['backbone'], row['size'], row['precision']), {})[row['mode']] = row
    for (backbone, size, precision), modes in found.items():
        forward, training = modes.get('forward'), modes.get('training step')
        batches = ' and '.join(dict.fromkeys(str(row['batch']) for row in modes.values()))
        speeds = [f'{row["images_per_second"]:.0f}' if row else '' for row in (forward, training)]
        memory = f'{training["memory"] / 2**30:.1f}' if training else ''
        backbone = backbone.replace(', fast', '')
        lines.append(f'| {backbone} | {size}, {batches} | {precision} | {" | ".join(speeds)} | {memory} |')
    return '\n'.join(lines) + '\n'


def filled(text: str, report: Optional[dict[str, Any]]) -> str:
    """The page with the present summary."""
    begin, end = MARKS
    return re.sub(f'{begin}.*?{end}', lambda match: f'{begin}{summary(report)}{end}', text, flags=re.S)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='compare, do not write')
    args = parser.parse_args()
    report = json.loads(SOURCE.read_text()) if SOURCE.exists() else None
    text = TARGET.read_text()
    if not args.check:
        TARGET.write_text(filled(text, report))
    elif text != filled(text, report):
        sys.exit('gpu_summary.py: README.md does not say what was measured; run python dev/gpu_summary.py')


if __name__ == '__main__':
    main()
