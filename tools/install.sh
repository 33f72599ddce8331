#!/usr/bin/env bash
# Install mmdat and everything it needs into a virtual environment.
#
#   bash tools/install.sh [--stack current|classic] [--python PYTHON] [--venv DIR] [--print-venv]
#
#   --stack   current  maintained forks of the OpenMMLab packages on current PyTorch (default)
#             classic  OpenMMLab's own last releases on PyTorch 2.1
#   --python  the interpreter the environment is made with (default: python3)
#   --venv    where the environment lives (default: .venv in the checkout, or .venv-STACK
#             when .venv already holds the other stack)
#   --print-venv  only print which directory that is
#
# mmcv's operators are compiled once, 10 to 20 minutes on 2 cores; the wheel is kept in
# $MMDAT_CACHE (default ~/.cache/mmdat) and used again by later installs. CUDA operators are
# compiled when nvcc is found and torch sees a GPU (or FORCE_CUDA=1 is set and nvcc is found).
# Running the script again on a finished environment does nothing.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

die() { printf 'install.sh: %s\n' "$*" >&2; exit 1; }

stack=current python= venv= print_venv=
while (($#)); do
  case $1 in
    --stack | --python | --venv)
      (($# > 1)) || die "$1 needs a value; see --help"
      printf -v "${1#--}" %s "$2"
      shift 2 ;;
    --print-venv) print_venv=1; shift ;;
    -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;;
    *) die "unknown option '$1'; see --help" ;;
  esac
done
pins=$root/requirements/stacks/$stack.txt
[[ -f $pins ]] || die "unknown stack '$stack'; choose one of: $(basename -s .txt -a "$root"/requirements/stacks/*.txt | xargs)"

if [[ -z $venv ]]; then
  venv=$root/.venv
  if [[ -f $venv/mmdat-stack && $(<"$venv/mmdat-stack") != "$stack" ]]; then venv=$root/.venv-$stack; fi
fi
if [[ $print_venv ]]; then echo "$venv"; exit; fi
py=$venv/bin/python
logs=$venv/install-logs

# --- already done? -------------------------------------------------------------------------
fingerprint=$(cat "$pins" "$root"/requirements/{runtime,tests}.txt "${BASH_SOURCE[0]}" | cksum)
check='import mmcv.ops, mmengine, importlib.util as u
missing = [m for m in ("mmdat", "mmdet", "mmseg", "mmpretrain") if u.find_spec(m) is None]
assert not missing, f"not importable: {missing}"'
if [[ -f $venv/mmdat-installed && $(<"$venv/mmdat-installed") == "$fingerprint" ]] && "$py" -c "$check" 2>/dev/null; then
  echo "mmdat ($stack stack) is already installed in $venv"
  exit
fi

# --- helpers -------------------------------------------------------------------------------
# step NAME HINT COMMAND...: run one step, say how long it took; on failure show why and what to do.
step() {
  local name=$1 hint=$2 start=$SECONDS log status
  shift 2
  log=$logs/${name// /-}.log
  printf '%-44s' "$name ..."
  # In a subshell, as a step may change directory; outside of 'if', where -e would not hold in it.
  set +e
  (set -e; "$@") >"$log" 2>&1
  status=$?
  set -e
  if ((status == 0)); then
    printf '%6d s\n' $((SECONDS - start))
  else
    printf ' failed after %d s\n\n' $((SECONDS - start))
    tail -n 15 "$log" >&2
    printf '\ninstall.sh: step "%s" failed. %s\nThe full log is %s\n' "$name" "$hint" "$log" >&2
    exit 1
  fi
}
pip() { "$py" -m pip "$@" -c "$pins"; }

# Which kind of mmcv operators this machine gets: 'cpu', or 'cu' with torch's CUDA version.
flavour() {
  PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin command -v nvcc >/dev/null || { echo cpu; return; }
  "$py" - <<'PY'
import os, torch
wanted = torch.cuda.is_available() or os.environ.get('FORCE_CUDA') == '1'
print(f'cu{torch.version.cuda}' if wanted and torch.version.cuda else 'cpu')
PY
}

# Compile mmcv into the directory $1. Its setup needs torch, so no isolated build environment.
build_mmcv() {
  local out=$1 work
  work=$(mktemp -d)
  trap "rm -rf '$work'" EXIT
  pip download --no-deps --no-build-isolation --no-binary :all: -d "$work" "$mmcv_name==$mmcv_version"
  tar -xzf "$work"/*.tar.gz -C "$work"
  cd "$work"/*/
  # torch >= 2.10 has C++20 headers, while mmcv's setup asks for C++17.
  if "$py" -c 'import sys, torch; sys.exit(torch.__version__ < (2, 10))'; then
    sed -i 's/-std=c++17/-std=c++20/' setup.py
  fi
  # Setting these flags drops Python's own -O3 -g: -g0 compiles a file in two thirds of the
  # time, and -O2 must be asked for, else the operators are built without any optimisation.
  MMCV_WITH_OPS=1 FORCE_CUDA=$([[ $kind == cpu ]] && echo 0 || echo 1) MAX_JOBS=${MAX_JOBS:-$(nproc)} \
    CFLAGS="-O2 -g0 ${CFLAGS:-}" CXXFLAGS="-O2 -g0 ${CXXFLAGS:-}" \
    "$py" -m pip wheel --no-deps --no-build-isolation -w "$work/wheel" . -v
  mkdir -p "$out"
  mv "$work"/wheel/*.whl "$out/"
}

# --- the steps -----------------------------------------------------------------------------
begin=$SECONDS
net='Check the network connection (and proxy or mirror settings of pip), then run this command again: it continues where it stopped.'
version='import sys; print("Python %d.%d" % sys.version_info[:2])'
if [[ -x $py ]]; then
  [[ -z $python || $("$python" -c "$version") == $("$py" -c "$version") ]] ||
    die "$venv holds $("$py" -c "$version"), not the one of '$python': remove it, or name another directory with --venv"
else
  python=${python:-python3}
  command -v "$python" >/dev/null || die "no interpreter '$python'; name one with --python"
  "$python" -m venv "$venv" || die "'$python -m venv' failed; install the venv module (Debian: apt install python3-venv) or name another interpreter with --python"
fi
supported=$(sed -n 's/^# Python: *//p' "$pins")
[[ " $supported " == *" $("$py" -c "$version" | cut -d' ' -f2) "* ]] ||
  die "the $stack stack needs one of Python $supported, and $venv holds $("$py" --version): remove it and name another interpreter with --python"
mkdir -p "$logs"
echo "$stack" >"$venv/mmdat-stack"
echo "Installing mmdat with the $stack stack into $venv ($("$py" --version))"

step 'build tools' "$net" pip install 'setuptools<81' wheel ninja psutil
step 'torch and torchvision' "$net" pip install torch torchvision

mmcv_name=$(sed -n -E 's/^((onedl-)?mmcv)==.*/\1/p' "$pins")
mmcv_version=$(sed -n -E 's/^(onedl-)?mmcv==//p' "$pins")
kind=$(flavour)
tag=$("$py" -c 'import platform, sys, torch; print(f"torch{torch.__version__}-cp{sys.version_info[0]}{sys.version_info[1]}-{platform.machine()}")')
wheels=${MMDAT_CACHE:-$HOME/.cache/mmdat}/wheels/$stack-mmcv$mmcv_version-$tag-$kind
if ! compgen -G "$wheels/*.whl" >/dev/null; then
  echo "Compiling mmcv's operators ($kind): 10 to 20 minutes on 2 cores, only this once; progress in $logs"
  step "compile mmcv ($kind)" "mmcv needs a C++ compiler (Debian: apt install g++) and about 2 GB of memory per job; with less, set MAX_JOBS=1." build_mmcv "$wheels"
fi
step 'mmcv' "If the cached wheel is damaged, remove $wheels and run this command again." pip install "$wheels"/*.whl
step 'mmengine, mmdet, mmseg, mmpretrain' "$net" pip install -r "$pins"
step 'mmdat' "$net" pip install --no-build-isolation -e "$root" -r "$root/requirements/tests.txt"
step 'check' "If libGL.so.1 is missing: apt install libgl1. If mmcv._ext is missing, remove $wheels and run this command again." "$py" -c "$check
import mmdet.models, mmseg.models, mmpretrain.models, mmdat"
echo "$fingerprint" >"$venv/mmdat-installed"
printf 'Done in %d s. mmcv operators: %s. Activate with: source %s/bin/activate\n' $((SECONDS - begin)) "$kind" "$venv"
