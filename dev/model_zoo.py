"""Write docs/model_zoo.md from the metafiles that model-index.yml names, and from docs/measurements/reproduced.yml.

python dev/model_zoo.py          write it
python dev/model_zoo.py --check  fail if it is not what the metafiles say
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
TARGET = ROOT / 'docs/model_zoo.md'
#: What dev/reproduce.py has written.
REPRODUCED = ROOT / 'docs/measurements/reproduced.yml'

HEADER = """# Model zoo

Written by `dev/model_zoo.py` from `configs/metafiles/`; change those.

**Published** results are those of the papers, [DAT](https://arxiv.org/abs/2201.00520) and
[DAT++](https://arxiv.org/abs/2309.01430), and not of this project. **Reproduced here** is what the authors' file gave,
tested with this project by `dev/reproduce.py`; it is empty until somebody who has data and file has run that. Machine,
date and versions are in `docs/measurements/reproduced.yml`.

**Parameters** and **multiply-adds** are counted by `tools/get_flops.py` on what the configs build, for an image of the
stated size (height x width); the paper's figure, where it gives one, is behind the slash. A figure with a star is
second-hand: quoted elsewhere as the paper's, and not checked against its table. The papers' figures at ImageNet sizes
agree with ours to 0.1 G. Their figures for detectors and segmentors come from counters that hook modules and miss
products of attention: 253 G for RetinaNet DAT-T, where we count 285.8 G, 43.3 G of them products and sampling; which
part of these theirs have is not known. The products grow with the square of the number of pixels in deformable
attention. Two-stage detectors are counted with 1000 proposals and, for masks, 100 boxes.

All of the published sizes of DAT's whole models agree with ours but one: Semantic FPN DAT-B has 91.35 M here and 92 M
in the paper. The likely reason is that the authors' Semantic FPN had position-bias tables for 384-pixel images. With
those, all three sizes are the paper's at once (31.99, 53.47 and 91.58 M for 32, 53 and 92 M), while UperNet's 60, 81
and 121 M need the tables for 224 pixels. This is no proof: the segmentation code of DAT was not released, and the
released classification code makes tables for the size of its maps.
"""


def metafiles() -> list[dict[str, Any]]:
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    return [yaml.safe_load((ROOT / path).read_text()) for path in index['Import']]


def build() -> str:
    """The whole document."""
    parts = [HEADER]
    for metafile in metafiles():
        collections = metafile['Collections']
        parts.append(f'## {" and ".join(collection["Name"] for collection in collections)}\n')
        origins = {collection['Metadata'].get('Origin') for collection in collections} - {None}
        parts.extend(f'{origin}\n' for origin in sorted(origins))
        parts.append(table(metafile['Models']))
    return '\n'.join(parts)


def table(models: list[dict[str, Any]]) -> str:
    metrics = []
    rows_here = yaml.safe_load(REPRODUCED.read_text())
    for model in models:
        metrics += [metric for metric in published(model) if metric not in metrics]
    head = ['config', 'parameters (M)', 'multiply-adds (G)', 'image', *metrics, 'reproduced here']
    rows = [head, ['---'] * len(head)]
    for model in models:
        metadata = model['Metadata']
        values = published(model)
        rows.append(
            [
                f'[{model["Name"]}](../{model["Config"]})',
                beside_paper(metadata, 'Parameters', 1e6, '.2f'),
                beside_paper(metadata, 'FLOPs', 1e9, '.1f'),
                metadata['FLOPs Input Size'],
                *(str(values.get(metric, '–')) for metric in metrics),
                reproduced(rows_here.get(model['Name'], {})),
            ]
        )
    return '\n'.join('| ' + ' | '.join(row) + ' |' for row in rows) + '\n'


def published(model: dict[str, Any]) -> dict[str, float]:
    """The paper's results, by the name of their column."""
    return {
        metric.replace(' (paper)', ', published'): value
        for result in model.get('Results', [])
        for metric, value in result['Metrics'].items()
    }


def reproduced(results: dict[str, dict[str, Any]]) -> str:
    """What was measured here, such as ``box AP 46.8, mask AP 43.7``."""
    return ', '.join(f'{metric} {facts["result"]:.2f}' for metric, facts in results.items())


def beside_paper(metadata: dict[str, Any], name: str, unit: float, digits: str) -> str:
    """Our count and, behind a slash, the paper's; with a star if it is second-hand."""
    text = format(metadata[name] / unit, digits)
    for key, mark in ((f'{name} (paper)', ''), (f'{name} (paper, second-hand)', '*')):
        if key in metadata:
            text += f' / {metadata[key] / unit:g}{mark}'
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='compare, do not write')
    args = parser.parse_args()
    text = build()
    if not args.check:
        TARGET.write_text(text)
    elif TARGET.read_text() != text:
        sys.exit('model_zoo.py: docs/model_zoo.md does not say what the metafiles say; run python dev/model_zoo.py')


if __name__ == '__main__':
    main()
