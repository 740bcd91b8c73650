#!/usr/bin/env bash
# The folder of wheels that gpu.sh takes, made where there is a network: what the environments, the
# datasets and the command line need, and nothing that a Python with PyTorch for GPUs has: torch and
# numpy would take the place of its own.
#
#     bash benchmarks/gpu-wheels.sh WHEELS [PACKAGE...]
#
# WHEELS   folder; what it holds afterwards is named, with its size.
# PACKAGE  more of what that Python lacks, such as mambapy, or pytest with pluggy and iniconfig. A
#          mamba-ssm wheel has to be built for the machine's PyTorch; put it there by hand.
#
# $TARGET is that Python's version, 3.12 by default. Versions are those of constraints.txt.
set -euo pipefail

if [ $# -lt 1 ]; then
    echo "usage: $0 WHEELS [PACKAGE...]" >&2
    exit 2
fi
wheels=$1
shift
packages=(gymnasium farama-notifications mujoco mujoco-core glfw pyopengl minari tyro
    docstring-parser typeguard)
platforms=()
for glibc in 17 24 26 27 28 31 34; do
    platforms+=(--platform "manylinux_2_${glibc}_x86_64")
done
"${PYTHON:-python3}" -m pip download --quiet --no-deps --only-binary :all: --implementation cp \
    --python-version "${TARGET:-3.12}" "${platforms[@]}" --platform manylinux2014_x86_64 \
    --constraint "$(dirname "$0")/../constraints.txt" --dest "$wheels" "${packages[@]}" "$@"
du -sh "$wheels"/*.whl
du -sh "$wheels"
