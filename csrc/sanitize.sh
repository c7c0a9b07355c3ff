#!/bin/sh
# Runs the CPU backend's tests under the address and undefined-behaviour sanitizers, in a copy of the package: first the
# program without Python (csrc/cpu/test), then those of PyTorch.
#
#     csrc/sanitize.sh [pytest arguments]
#
# To test another compiler: SANITIZE= CXX=clang++ csrc/sanitize.sh
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cxx=${CXX:-c++}
sanitize=${SANITIZE--fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -O1 -g1}

cp -r "$root/slt_kernels" "$root/python_tests" "$root/csrc" "$root/setup.py" "$root/pyproject.toml" "$copy"
for other in README.md LICENSE; do [ ! -e "$root/$other" ] || cp "$root/$other" "$copy"; done
rm -f "$copy"/slt_kernels/_cpu*.so
cd "$copy"
CXX=$cxx CXXFLAGS=$sanitize python setup.py --quiet build_ext --inplace
CXX=$cxx CXXFLAGS=$sanitize python python_tests/cpu_program.py
if [ -n "$sanitize" ]; then
    # The interpreter is not instrumented: the run-time library must be loaded first, and leaks are not checked.
    LD_PRELOAD="$($cxx -print-file-name=libasan.so) $($cxx -print-file-name=libstdc++.so.6)"
    export LD_PRELOAD ASAN_OPTIONS=detect_leaks=0:${ASAN_OPTIONS:-}
fi
PYTHONPATH=$copy python -m pytest -q -p no:cacheprovider python_tests/test_cpu_*.py python_tests/test_embedding.py \
    python_tests/test_int8.py python_tests/test_stored_signs.py "$@"
