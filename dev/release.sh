#!/usr/bin/env bash
# Build what is published, check it, and use it in empty environments. Nothing is uploaded.
#
#   bash dev/release.sh [DIRECTORY]      the files go to DIRECTORY (default: dist)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=$(mkdir -p "${1:-dist}" && cd "${1:-dist}" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# From a clone, so that only committed files count.
git clone --quiet . "$work/source"
python3 -m venv "$work/build"
"$work/build/bin/pip" install --quiet build twine
# Each wheel is made of its source distribution.
"$work/build/bin/python" -m build --outdir "$out" "$work/source/mmcv-ops-torchvision"
"$work/build/bin/python" -m build --outdir "$out" "$work/source"
"$work/build/bin/twine" check --strict "$out"/*

cd "$work"
python3 -m venv core
core/bin/pip install --quiet "$out"/mmdat-*.whl
core/bin/python -c "
import torch
from mmdat import DAT
print([tuple(m.shape) for m in DAT('tiny++').eval()(torch.randn(1, 3, 224, 224))])"
core/bin/pip install --quiet --find-links "$out" "$(echo "$out"/mmdat-*.whl)[mm]"
core/bin/python -m mmdat.doctor
