# Part of tools/install.sh: compile_mmcv makes a wheel of mmcv with its operators, or finds it in the cache, and
# leaves its path in $wheel.

# Which kind of operators this machine gets: 'cpu', or 'cu', torch's CUDA version and the architectures.
flavour() {
  "$py" - <<'PY'
import os, torch
wanted = torch.cuda.is_available() or os.environ.get('FORCE_CUDA') == '1'
if not (wanted and torch.version.cuda):
    print('cpu')
else:
    seen = range(torch.cuda.device_count())
    own = sorted({'.'.join(map(str, torch.cuda.get_device_capability(i))) for i in seen})
    print(f'cu{torch.version.cuda}', os.environ.get('TORCH_CUDA_ARCH_LIST') or ';'.join(own))
PY
}

# nvcc and the headers of torch's CUDA version from the package index, beside torch's own CUDA libraries, as a
# directory that can be CUDA_HOME.
nvcc_from_index() {
  local toolkit home
  toolkit=$("$py" -c 'from importlib.metadata import version; print(version("cuda-toolkit"))')
  pip_install "cuda-toolkit[nvcc,cccl]==$toolkit"
  home=$(dirname "$(dirname "$(find "$venv"/lib/python*/site-packages/nvidia -path '*/bin/nvcc')")")
  # The linker looks for libcudart.so; the wheel has the versioned file alone.
  mkdir -p "$venv/cuda-link"
  ln -sf "$(find "$home/lib" -name 'libcudart.so.*' | head -n 1)" "$venv/cuda-link/libcudart.so"
  echo "$home" >"$venv/cuda-home"
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
  if [[ $kind == cu* ]]; then
    export FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST=$architectures
    if [[ -f $venv/cuda-home ]]; then
      CUDA_HOME=$(<"$venv/cuda-home")
      export CUDA_HOME PATH=$CUDA_HOME/bin:$PATH LIBRARY_PATH=$venv/cuda-link${LIBRARY_PATH:+:$LIBRARY_PATH}
    fi
  else
    export FORCE_CUDA=0
  fi
  # Setting these flags drops Python's own -O3 -g: -g0 compiles a file in two thirds of the
  # time, and -O2 must be asked for, else the operators are built without any optimisation.
  MMCV_WITH_OPS=1 MAX_JOBS=$jobs CFLAGS="-O2 -g0 ${CFLAGS:-}" CXXFLAGS="-O2 -g0 ${CXXFLAGS:-}" \
    "$py" -m pip wheel --no-deps --no-build-isolation -w "$work/wheel" . -v
  mkdir -p "$out"
  mv "$work"/wheel/*.whl "$out/"
}

compile_mmcv() {
  local mmcv_name mmcv_version kind architectures jobs tag wheels minutes
  mmcv_name=$(sed -n -E 's/^((onedl-)?mmcv)(-lite)?==.*/\1/p' "$pins")
  mmcv_version=$(sed -n -E 's/^(onedl-)?mmcv(-lite)?==//p' "$pins")
  jobs=${MAX_JOBS:-$(nproc)}
  read -r kind architectures < <(flavour)
  [[ $kind == cpu || $architectures ]] || die 'FORCE_CUDA=1 without a GPU in sight: name the architectures in TORCH_CUDA_ARCH_LIST, such as 8.0'
  tag=$("$py" -c 'import platform, sys, torch; print(f"torch{torch.__version__}-cp{sys.version_info[0]}{sys.version_info[1]}-{platform.machine()}")')
  wheels=${MMDAT_CACHE:-$HOME/.cache/mmdat}/wheels/$stack-mmcv$mmcv_version-$tag-$kind${architectures:+-${architectures//[;, ]/_}}
  if ! compgen -G "$wheels/*.whl" >/dev/null; then
    # Measured on 2 cores: 78 C++ files of 13 s; 59 CUDA files of 25 s for each architecture.
    minutes=$((78 * 13 / jobs / 60 + 1))
    if [[ $kind == cu* ]]; then
      minutes=$((minutes + 59 * 25 * $(tr ';, ' '\n' <<<"$architectures" | grep -c .) / jobs / 60))
    fi
    echo "Compiling mmcv's operators ($kind${architectures:+ for $architectures}): about $minutes minutes with $jobs jobs, only this once; progress in $logs"
    step 'ninja' "$net" pip_install ninja psutil
    rm -f "$venv/cuda-home"
    if [[ $kind == cu* ]] && ! PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin command -v nvcc >/dev/null; then
      step 'nvcc' "PyTorch comes with no CUDA compiler for this version: install the CUDA toolkit ${kind#cu}, or leave --compile-ops out." nvcc_from_index
    fi
    step "compile mmcv ($kind)" "mmcv needs a C++ compiler (Debian: apt install g++) and about 2 GB of memory per job; with less, set MAX_JOBS=1." build_mmcv "$wheels"
  fi
  wheel=$(compgen -G "$wheels/*.whl")
}
