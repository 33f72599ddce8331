#!/usr/bin/env bash
# Install mmdat where it is not installed yet, make the demo data, train and evaluate Mask R-CNN and UperNet with a
# nano DAT on it, and draw predictions and sampling points. Ends with the measured figures.
#
#   bash tools/demo.sh [options of tools/install.sh]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash tools/install.sh "$@"
python=$(bash tools/install.sh "$@" --print-venv)/bin/python
"$python" tools/make_shapes.py

# The layers are small: a second thread gains little, and where other programs want the cores, threads that wait for
# each other make training ten times slower.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

report=
for name in maskrcnn_datnano_shapes upernet_datnano_shapes; do
  config=configs/demo/$name.py work=work_dirs/demo/$name
  rm -rf "$work"
  start=$SECONDS
  "$python" tools/train.py "$config" --work-dir "$work"
  trained=$((SECONDS - start))
  "$python" tools/test.py "$config" "$(<"$work/last_checkpoint")" --work-dir "$work" --show-dir "$work/predictions"
  tested=$((SECONDS - start - trained))
  # MMEngine leaves the figures of a test in DATE/DATE.json.
  figures=$("$python" - "$work" <<'PY'
import glob
import json
import sys

NAMES = {
    'coco/bbox_mAP': 'box AP', 'coco/bbox_mAP_50': 'box AP50', 'coco/segm_mAP': 'mask AP', 'coco/segm_mAP_50': 'mask AP50',
    'mIoU': 'mIoU (%)', 'mAcc': 'mean accuracy (%)'}
with open(sorted(glob.glob(f'{sys.argv[1]}/*_*/*.json'))[-1]) as file:
    metrics = json.load(file)
print(', '.join(f'{title} {metrics[key]:.3f}' for key, title in NAMES.items() if key in metrics))
PY
  )
  report+="
$name: $figures
  trained in $trained s (with evaluation), tested and drawn in $tested s
  predictions      $PWD/$work/predictions
  sampling points  $PWD/$work/sampling_points
"
done
printf '\nmeasured on the validation images of data/shapes, with %s CPU cores:\n%s' "$(nproc --all)" "$report"
