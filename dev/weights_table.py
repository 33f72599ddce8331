"""Write the table of docs/weights.md from mmdat/weights/table.json.

python dev/weights_table.py          write it
python dev/weights_table.py --check  fail if it is not what the data say
"""

import argparse
import re
import sys
from pathlib import Path

from mmdat.weights import Weights, find_weights, list_weights

TARGET = Path(__file__).parents[1] / 'docs/weights.md'
MARKS = '<!-- begin: dev/weights_table.py -->\n', '<!-- end -->'


def table(names: list[str]) -> str:
    head = ['name', 'arch', 'tables for', 'tested at', 'file', 'addresses', 'published in']
    rows = [head, ['---'] * len(head), *(row(find_weights(name)) for name in names)]
    return '\n'.join('| ' + ' | '.join(cells) + ' |' for cells in rows) + '\n'


def row(weights: Weights) -> list[str]:
    other = 'Google Drive' if 'google' in weights.other_page else 'OneDrive'
    repository, _, where = weights.published_in.partition(', ')
    whole = '512x2048' if weights.config.endswith('ade20k') else '800x1333'
    return [
        f'[{weights.name}](../configs/{weights.config}.py)',
        f"`'{weights.arch}'`",
        f'{weights.img_size}x{weights.img_size}',
        f'{weights.test_crop}x{weights.test_crop}' if weights.is_classifier else whole,
        f'`{weights.file}`',
        f'[Tsinghua Cloud]({weights.page}), [{other}]({weights.other_page})',
        f'[{where} of {repository.rsplit("/", 1)[1]}]({repository})',
    ]


def filled(text: str) -> str:
    """The page with the present table."""
    begin, end = MARKS
    return re.sub(f'{begin}.*?{end}', lambda match: f'{begin}{table(list_weights())}{end}', text, flags=re.S)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='compare, do not write')
    args = parser.parse_args()
    text = TARGET.read_text()
    if not args.check:
        TARGET.write_text(filled(text))
    elif text != filled(text):
        sys.exit('weights_table.py: docs/weights.md does not say what table.json says; run python dev/weights_table.py')


if __name__ == '__main__':
    main()
