#!/usr/bin/env bash
# What needs a GPU in one run of less than eight minutes, on a machine that has one and no network:
# tests/test_gpu.py, then all benchmarks.
#
#     bash benchmarks/gpu.sh OUT [WHEELS]
#
# OUT     folder for tests.txt, benchmarks.md, benchmarks.json and log.txt; they grow as it goes on.
# WHEELS  folder of wheels of what the machine's Python lacks, and of nothing that it has, torch and
#         numpy above all: they would take the place of its own. Made where there is a network, by
#             pip download --no-deps --only-binary :all: --python-version 3.12 --dest WHEELS NAME==...
#         with names and versions from constraints.txt, those of pytest, pluggy and iniconfig, and
#         mambapy for one more peer. mamba-ssm takes longer to build than this run: a wheel built
#         for the machine's PyTorch goes there, too, and its scan is then timed beside ours.
#
# $PYTHON names another interpreter than python3. Wheels are unpacked into a temporary folder, which
# is removed. The exit status is 1 if a test or a benchmark failed; the others are run all the same.
set -euo pipefail

if [ $# -lt 1 ] || [ $# -gt 2 ]; then
    echo "usage: $0 OUT [WHEELS]" >&2
    exit 2
fi
mkdir -p "$1"
out=$(cd "$1" && pwd)
python=${PYTHON:-python3}
packages=$(mktemp -d)
trap 'rm -rf "$packages"' EXIT
if [ $# -eq 2 ]; then
    "$python" -m pip install --quiet --no-index --no-deps --target "$packages" "$2"/*.whl
fi
cd "$(dirname "$0")/.."
export PYTHONPATH="$packages:$PWD${PYTHONPATH:+:$PYTHONPATH}"
export HF_HUB_OFFLINE=1 # nothing may wait for a network

failed=0
timeout 120 "$python" -m pytest -q -p no:cacheprovider tests/test_gpu.py 2>&1 | tee "$out/tests.txt" ||
    failed=1

# The budget ends before the limit: the benchmark that is under way then is to finish.
timeout 345 "$python" -m benchmarks --gpu --minutes 5 --out "$out" 2>&1 | tee "$out/log.txt" ||
    failed=1
exit $failed
