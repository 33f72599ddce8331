#!/usr/bin/env bash
# Install mmdat where it is not installed yet, then run its tests.
#
#   bash tools/test.sh [options of tools/install.sh] [options of pytest]
#
# Without options: everything but the tests marked slow, on the current stack. Add `-m slow` for those.
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
exec "$venv/bin/python" -m pytest "$@"
