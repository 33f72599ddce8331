#!/usr/bin/env bash
# Install mmdat where it is not installed yet, then run its tests.
#
#   bash tools/test.sh [options of tools/install.sh] [options of pytest]
#
# Without options: everything but the tests marked slow, on the current stack. Add `-m slow` for those. Up to four
# processes share the tests, each with one thread; `-n 0` is one process.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

install=()
while (($#)); do
  case $1 in
    --stack | --python | --venv | --torch-index | --wheel)
      install+=("$1" "${2:?$1 needs a value}")
      shift 2 ;;
    --compile-ops) install+=("$1"); shift ;;
    *) break ;;
  esac
done
bash tools/install.sh ${install[@]+"${install[@]}"}
venv=$(bash tools/install.sh ${install[@]+"${install[@]}"} --print-venv)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$venv/bin/python" -m pytest -n logical --maxprocesses 4 --dist worksteal "$@"
