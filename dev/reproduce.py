"""Test a config with the authors' weights, compare with the published results, and write down what came out.

python dev/reproduce.py configs/dat_t_300e_in1k.py
python dev/reproduce.py configs/upernet_dat_t_160k_ade20k.py upernet_dat_t.pth --tta

Does what tools/test.py does, and writes the results into docs/measurements/reproduced.yml and docs/model_zoo.md. Test
data other than the published ones are refused there; with --table FILE their results go into a file of their own.
"""

import datetime
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import model_zoo
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import DATASETS

from mmdat import __version__, list_weights
from mmdat.apis import evaluate
from mmdat.apis.toolbox import toolbox
from mmdat.cli import add_run_options, parser_of, read_config, run
from mmdat.errors import RunError
from mmdat.weights import SCHEME, find_weights

#: Published name of a result: what the evaluators call it, and what it is multiplied by to be in per cent.
METRICS = {
    'Top 1 Accuracy': ('accuracy/top1', 1),
    'box AP': ('coco/bbox_mAP', 100),
    'mask AP': ('coco/segm_mAP', 100),
    'mIoU': ('mIoU', 1),
    'mIoU ms+flip': ('mIoU', 1),
}
WITH_TTA = ('mIoU ms+flip',)
#: Images of the published test data.
IMAGES = {'ImageNet-1k': 50_000, 'COCO': 5_000, 'ADE20K': 2_000}


def published_results(name: str, tta: bool) -> tuple[dict[str, float], str]:
    """The papers' results of a config that can be compared, and the data that they are of.

    Raises:
        RunError: If there are none.
    """
    models = {model['Name']: model for metafile in model_zoo.metafiles() for model in metafile['Models']}
    results = models.get(name, {}).get('Results', [])
    values = {
        metric.replace(' (paper)', ''): value for result in results for metric, value in result['Metrics'].items()
    }
    values = {metric: value for metric, value in values.items() if (metric in WITH_TTA) == tta}
    if not values:
        raise RunError(
            f'no results of {name} {"with" if tta else "without"} test-time augmentation are published: choose a '
            f'config whose row of docs/model_zoo.md has some'
        )
    return values, results[0]['Dataset']


def official_weights(name: str) -> str:
    """The published weights of a config, by name.

    Raises:
        RunError: If the authors published none.
    """
    for weights in map(find_weights, list_weights()):
        if weights.config == name:
            return SCHEME + weights.name
    raise RunError(f'the authors published no weights of {name}: name a file of yours behind the config')


def count_images(cfg: Config) -> int:
    """How many images the test data have."""
    with toolbox(cfg.get('default_scope')):
        return len(DATASETS.build(cfg.test_dataloader.dataset))


def compare(measured: dict[str, float], published: dict[str, float]) -> dict[str, float]:
    """The results of the evaluators by the published names, in per cent."""
    found = {}
    for metric in published:
        name, factor = METRICS[metric]
        if name not in measured:
            raise RunError(f'the evaluators of the config give no {name}, but {", ".join(measured)}: correct them')
        found[metric] = round(float(measured[name]) * factor, 3)
    return found


def write_row(table: Path, name: str, results: dict[str, float], facts: dict[str, Any]) -> None:
    """Add the results of a config to a table, in place of older ones of the same names."""
    text = table.read_text() if table.exists() else ''
    comments = ''.join(line for line in text.splitlines(keepends=True) if line.startswith('#'))
    rows = yaml.safe_load(text) or {}
    rows.setdefault(name, {}).update({metric: dict(facts, result=result) for metric, result in results.items()})
    table.write_text(comments + yaml.safe_dump(rows, sort_keys=True))


def report(results: dict[str, float], published: dict[str, float]) -> str:
    lines = [f'{"":16}{"here":>10}{"published":>12}{"difference":>12}']
    for metric, result in results.items():
        lines.append(f'{metric:16}{result:10.2f}{published[metric]:12.2f}{result - published[metric]:+12.2f}')
    return '\n'.join(lines)


def main(argv: Optional[Sequence[str]] = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument('config', help='config file, one of configs/')
    parser.add_argument('checkpoint', nargs='?', help='checkpoint (default: the published weights of the config)')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation, for "mIoU ms+flip"')
    parser.add_argument('--table', type=Path, default=model_zoo.REPRODUCED, help='file to write (default: %(default)s)')
    add_run_options(parser)
    args = parser.parse_args(argv)
    name = Path(args.config).stem
    published, dataset = published_results(name, args.tta)
    checkpoint = args.checkpoint or official_weights(name)
    cfg = read_config(args.config, args.override, args.cfg_options, args.data, args.work_dir, args.launcher)
    images = count_images(cfg)
    if args.table == model_zoo.REPRODUCED and images != IMAGES[dataset]:
        raise RunError(
            f'the test data have {images} images, but those of {dataset} {IMAGES[dataset]}, so the published results '
            f'are of other data: correct the path of the data, or write into a table of your own with --table FILE'
        )
    measured = evaluate(cfg, checkpoint, tta=args.tta, compile=args.compile, trust_files=args.trust_files)
    results = compare(measured, published)
    facts = dict(
        checkpoint=checkpoint if checkpoint.startswith(SCHEME) else Path(checkpoint).name,
        images=images,
        date=datetime.date.today().isoformat(),
        versions=f'mmdat {__version__}, torch {torch.__version__}',
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else f'CPU ({platform.machine()})',
    )
    write_row(args.table, name, results, facts)
    if args.table == model_zoo.REPRODUCED:
        model_zoo.TARGET.write_text(model_zoo.build())
    print(report(results, published))


if __name__ == '__main__':
    run(main)
