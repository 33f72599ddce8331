#!/usr/bin/env bash
# Install mmdat and everything it needs into a virtual environment.
#
#   bash tools/install.sh [--stack current|classic] [--python PYTHON] [--venv DIR] [--torch-index URL]
#                         [--compile-ops | --wheel FILE_OR_DIR] [--print-venv]
#
#   --stack        current  maintained forks of the OpenMMLab packages on current PyTorch (default)
#                  classic  OpenMMLab's own last releases on PyTorch 2.1
#   --python       the interpreter the environment is made with (default: python3)
#   --venv         where the environment lives (default: .venv in the checkout, or .venv-STACK
#                  when .venv already holds the other stack)
#   --torch-index  the package index that torch and torchvision come from, for another CUDA version or for CPUs only
#                  (default: pip's own)
#   --compile-ops  compile mmcv's own operators; without it torchvision and PyTorch take their place
#                  (mmcv-ops-torchvision/README.md) and nothing is compiled
#   --wheel        a prebuilt mmcv with operators: a wheel, or a directory with one
#   --print-venv   only print which directory that is
#
# --compile-ops takes minutes, which are estimated beforehand. The wheel is kept in $MMDAT_CACHE (default
# ~/.cache/mmdat) and used again. CUDA operators are compiled when torch sees a GPU or FORCE_CUDA=1 is set, for that
# GPU or for TORCH_CUDA_ARCH_LIST; without an nvcc, one of torch's CUDA version is taken from the package index.
# Running the script again on a finished environment does nothing.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

die() { printf 'install.sh: %s\n' "$*" >&2; exit 1; }

stack=current python= venv= torch_index= wheel= compile_ops= print_venv=
while (($#)); do
  case $1 in
    --stack | --python | --venv | --torch-index | --wheel)
      (($# > 1)) || die "$1 needs a value; see --help"
      name=${1#--}
      printf -v "${name//-/_}" %s "$2"
      shift 2 ;;
    --compile-ops) compile_ops=1; shift ;;
    --print-venv) print_venv=1; shift ;;
    -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" | sed '$d'; exit ;;
    *) die "unknown option '$1'; see --help" ;;
  esac
done
pins=$root/requirements/stacks/$stack.txt
[[ -f $pins ]] || die "unknown stack '$stack'; choose one of: $(basename -s .txt -a "$root"/requirements/stacks/*.txt | xargs)"
[[ -z $wheel || -z $compile_ops ]] || die '--wheel is a compiled mmcv already: leave --compile-ops or --wheel out'
if [[ -d $wheel ]]; then
  shopt -s nullglob
  found=("$wheel"/*mmcv*.whl)
  ((${#found[@]} == 1)) || die "$wheel holds ${#found[@]} wheels of mmcv, not one: name the file"
  wheel=${found[0]}
fi
[[ -z $wheel || ( -f $wheel && $wheel == *.whl ) ]] || die "there is no wheel $wheel"

if [[ -z $venv ]]; then
  venv=$root/.venv
  if [[ -f $venv/mmdat-stack && $(<"$venv/mmdat-stack") != "$stack" ]]; then venv=$root/.venv-$stack; fi
fi
if [[ $print_venv ]]; then echo "$venv"; exit; fi
py=$venv/bin/python
logs=$venv/install-logs

# --- already done? -------------------------------------------------------------------------
fingerprint=$(cat "$pins" "$root"/requirements/{runtime,tests}.txt "$root"/mmcv-ops-torchvision/*/*.py "${BASH_SOURCE[0]}" | cksum)
check='import mmcv.ops, mmengine, importlib.util as u
missing = [m for m in ("mmdat", "mmdet", "mmseg", "mmpretrain") if u.find_spec(m) is None]
assert not missing, f"not importable: {missing}"'
is_compiled='import sys, mmcv._ext; sys.exit(mmcv._ext.__file__.endswith("_ext.py"))'
if [[ -z $wheel && -f $venv/mmdat-installed && $(<"$venv/mmdat-installed") == "$fingerprint" ]] &&
  "$py" -c "$check" 2>/dev/null && { [[ -z $compile_ops ]] || "$py" -c "$is_compiled" 2>/dev/null; }; then
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
# Modules are compiled to bytecode when they are first imported: most of some 14,000 never are.
pip_install() { pip install --no-compile "$@"; }

# What is installed beside PyTorch: of the list everything, but mmcv where compiled operators are there or are to be.
packages() {
  if [[ $wheel ]] || "$py" -c "$is_compiled" 2>/dev/null; then
    grep -vE '^(onedl-mmcv|mmcv-lite)==' "$pins"
  else
    cat "$pins"
  fi
}

# From an index of its own first PyTorch alone: it need not hold what PyTorch requires, as PyTorch's own ones do.
install_torch() {
  if [[ $torch_index ]]; then pip_install --no-deps --index-url "$torch_index" torch torchvision; fi
  pip_install ${torch_index:+--extra-index-url "$torch_index"} torch torchvision
}

# Put a compiled mmcv in the place of any other.
replace_mmcv() {
  "$py" -m pip uninstall -y mmcv mmcv-lite onedl-mmcv
  pip_install "$1"
}

# The checkout itself, so that what is edited there takes effect. MMEngine 0.10.7 looks for mmdat.configs beside the
# metadata: with the classic stack these stay in the checkout, where setuptools' own way of old leaves them.
install_checkout() {
  pip_install --no-build-isolation -e "$root" -r "$root/requirements/tests.txt"
  if [[ $stack == classic ]]; then
    "$py" -m pip uninstall -y mmdat
    cd "$root"
    "$py" setup.py develop --no-deps
  fi
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

step 'build tools' "$net" pip_install 'setuptools<81' wheel
step 'torch and torchvision' "$net" install_torch

if [[ $compile_ops ]]; then
  # shellcheck source=tools/compile_mmcv.sh
  source "$root/tools/compile_mmcv.sh"
  compile_mmcv
fi
packages >"$venv/mmdat-packages.txt"
step 'mmengine, mmdet, mmseg, mmpretrain' "$net" pip_install -r "$venv/mmdat-packages.txt"
if [[ $wheel ]]; then
  step 'mmcv' "If the wheel is damaged, remove $wheel and run this command again." replace_mmcv "$wheel"
fi
step 'mmcv-ops-torchvision' "$net" pip_install --no-build-isolation --force-reinstall --no-deps "$root/mmcv-ops-torchvision"
step 'mmdat' "$net" install_checkout
hint='If libGL.so.1 is missing: apt install libgl1.'
[[ -z $wheel ]] || hint+=" If mmcv._ext cannot be imported, $wheel was compiled for another torch: remove it, and run this command with --compile-ops."
step 'check' "$hint" "$py" -c "$check
import mmdet.models, mmseg.models, mmpretrain.models, mmdat"
echo "$fingerprint" >"$venv/mmdat-installed"
operators=$("$py" -c "$is_compiled" && echo compiled || echo "torchvision's")
printf 'Done in %d s. mmcv operators: %s. Activate with: source %s/bin/activate\n' $((SECONDS - begin)) "$operators" "$venv"
