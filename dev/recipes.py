"""Write docs/recipes.md from configs/recipes.yml.

python dev/recipes.py          write it
python dev/recipes.py --check  fail if it is not what configs/recipes.yml says
"""

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple, Optional

import yaml

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / 'configs/recipes.yml'
TARGET = ROOT / 'docs/recipes.md'

#: The fields in the order of the tables, with the words for them.
FIELDS = dict(
    optimizer='optimizer',
    learning_rate='learning rate',
    weight_decay='weight decay',
    length='length',
    warm_up='warm-up',
    schedule='learning rate over the run',
    clipping='gradient clipping',
    batch='batch',
    precision='precision',
    drop_path='drop path, last block',
    tables='sides of the position-bias tables',
    window='windows, neighbourhoods',
    neck='neck',
    heads='heads',
    losses='losses and their weights',
    anchors='anchors',
    matching='matching in training',
    proposals='proposals and results',
    training_sizes='sizes in training',
    augmentation='augmentation',
    test_sizes='sizes of a 480x640 image in testing',
    normalisation='normalisation',
    sliding_windows='sliding windows',
    test_time_augmentation='sizes with `--tta`',
)

HEADER = """# Recipes

Written by `dev/recipes.py` from `configs/recipes.yml`; change that. The tests compare every value below with what the
configs build: optimizers, models and transforms that were made from them, the rates that MMEngine's schedulers give,
images that were put through their pipelines.

The table of each family says what the configs have, where it comes from, and in what they differ from that:

{sources}

## All families

- **Pretrained weights.** The authors' detectors and segmentors start from their ImageNet classifiers; their files leave
  the path open. The configs here start from nothing unless told
  ([configs/README.md](../configs/README.md#pretrained-weights)).
- **Seeds.** The authors seed each process with the seed plus its rank. The rank is mixed into the seed here, too, in
  another way.
- **Precision.** The configs are in float32 and run on CPUs; `--amp` trains them in float16. The tables say which runs
  of the authors were in float16.
- **DAT's detectors and segmentors.** The authors released files for those of DAT++ only. What DAT's have comes from the
  paper, from Swin's configs, or is inferred, as said.
- **ImageNet.** timm's cosine counts from the first epoch, under the warm-up, and so does `mmdat.WarmupCosineLR`.
  MMEngine's own schedulers would start it after the warm-up, up to 6 % of the peak away (16 % for DAT-B). Compared with
  timm 1.0.31 in each of 375,300 iterations, the largest difference is 4e-19.
- **Warm-up and polynomial decay.** MMEngine's schedulers come to their last value one iteration before `end`, mmcv's at
  it. The configs have an `end` one larger, which makes the curves the same.
- **Ablations.** The rows of the papers' ablations have no configs. The fields of an arch dict make them
  ([from_official.md](from_official.md#options)).
"""


class Field(NamedTuple):
    value: Any  # a text, or a mapping from points of the run to learning rates
    source: str
    differs: Optional[str]


class Family(NamedTuple):
    name: str
    configs: list[str]
    fields: dict[str, list]

    def of(self, config: str, field: str) -> Field:
        """The field of one config."""
        value, source, differs = (*self.fields[field], None)[:3]
        if is_by_name(value):
            chosen = [one for part, one in value.items() if part in f'_{config}_']
            if len(chosen) != 1:
                raise ValueError(f'recipes.yml, {self.name}, {field}: {len(chosen)} of {list(value)} are in {config}')
            value = chosen[0]
        return Field(value, source, differs)


def is_by_name(value: Any) -> bool:
    """Whether a value differs by config; the keys of a learning-rate curve have a space."""
    return isinstance(value, dict) and not any(' ' in key for key in value)


def families() -> list[Family]:
    """The families with all of their fields: those of their parts, in this order, and their own."""
    content = yaml.safe_load(SOURCE.read_text())
    found = []
    for family in content['families']:
        fields: dict[str, list] = {}
        for part in family['parts']:
            fields.update(content['parts'][part])
        fields.update(family['fields'])
        instead = family.get('not_released')
        if instead:
            fields = {name: [field[0], *instead] if field[1] == 'released' else field for name, field in fields.items()}
        found.append(Family(family['name'], family['configs'], fields))
    return found


def build() -> str:
    """The whole document."""
    sources = yaml.safe_load(SOURCE.read_text())['sources']
    parts = [HEADER.format(sources='\n'.join(f'- **{name}**: {text}' for name, text in sources.items()))]
    for family in families():
        links = ', '.join(f'[{config}](../configs/{config}.py)' for config in family.configs)
        rows = ['| | value | from | difference |', '| --- | --- | --- | --- |']
        for field, words in FIELDS.items():
            value, source, differs = (*family.fields[field], '')[:3]
            rows.append(f'| {words} | {text(value)} | {source} | {differs} |')
        parts.append(f'## {family.name}\n\n{links}\n\n' + '\n'.join(rows) + '\n')
    return '\n'.join(parts)


def text(value: Any) -> str:
    if is_by_name(value):
        return '<br>'.join(f'{part.strip("_")}: {text(one)}' for part, one in value.items())
    if isinstance(value, dict):
        return ', '.join(f'{point}: {rate:.4g}' for point, rate in value.items())
    return str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='compare, do not write')
    args = parser.parse_args()
    document = build()
    if not args.check:
        TARGET.write_text(document)
    elif TARGET.read_text() != document:
        sys.exit('recipes.py: docs/recipes.md does not say what configs/recipes.yml says; run python dev/recipes.py')


if __name__ == '__main__':
    main()
