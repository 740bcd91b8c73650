#!/usr/bin/env bash
# What needs a GPU, in one run of less than ten minutes, on a machine that has one and no network:
# sections in order of worth, each with a time limit of its own, its results written at once.
#
#     bash benchmarks/gpu.sh [--rehearse] OUT [WHEELS]
#
# OUT         folder for sections.txt (how each section ended), log.txt (all that was said),
#             benchmarks.md (the tables) and results.tar.gz (the tables as JSON, rows and curves of
#             what was trained, a report); they grow as it goes on.
# WHEELS      folder of wheels of what the machine's Python lacks, made by gpu-wheels.sh.
# --rehearse  the same on the CPU with sizes as small as they go: does every section run to its end?
#
# $PYTHON names another interpreter than python3. Wheels are unpacked into a temporary folder, which
# is removed. The exit status is 1 if a section failed; the others are run all the same.
set -euo pipefail

rehearse=
if [ "${1:-}" = --rehearse ]; then
    rehearse=1
    shift
fi
if [ $# -lt 1 ] || [ $# -gt 2 ]; then
    echo "usage: $0 [--rehearse] OUT [WHEELS]" >&2
    exit 2
fi
mkdir -p "$1"
out=$(cd "$1" && pwd)
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ $# -eq 2 ]; then
    "$python" -m pip install --quiet --no-index --no-deps --target "$work/packages" "$2"/*.whl
fi
cd "$(dirname "$0")/.."
export PYTHONPATH="$work/packages:$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export HF_HUB_OFFLINE=1 # nothing may wait for a network
export MINARI_DATASETS_PATH="$work/minari" DECISION_SEQ_DATA="$work/library"
mkdir -p "$work/results"
: > "$out/sections.txt"
: > "$out/log.txt"
: > "$out/benchmarks.md"

if [ -n "$rehearse" ]; then
    device=cpu flags=(--rehearse) rest=(sampler) presets=(decision-mamba) seeds=(0 1) steps=2000
    changes=(
        train.steps=20 train.log_interval=10 eval.episodes=1 eval.targets=[3600] eval.max_steps=20
        agent.context_length=3 agent.backbone.width=8 agent.backbone.layers=1 train.batch_size=4)
else
    device=cuda flags=(--gpu) seeds=(0 1 2 3 4) steps=100000
    rest=(training mamba ablation backbones sampler simulators endless)
    presets=(decision-mamba decision-transformer)
    changes=(
        agent.backbone.width=128 train.learning_rate=1e-3 train.warmup_steps=2000
        train.log_interval=500)
fi

failed=0
section() { # NAME SECONDS COMMAND...: writes how it ended, and goes on
    local name=$1 limit=$2 began=$SECONDS how=0
    shift 2
    [ -z "$rehearse" ] || limit=$((5 * limit)) # a busy machine is no failure
    echo "== $name" | tee -a "$out/log.txt"
    timeout "$limit" "$@" 2>&1 | tee -a "$out/log.txt" || how=$?
    # without a GPU pytest finds nothing to do
    [ -z "$rehearse" ] || [ "$how" != 5 ] || how=0
    case $how in
        0) echo "$name: ended well in $((SECONDS - began)) s" ;;
        124) echo "$name: its $limit s were over" ;;
        *) echo "$name: failed with status $how after $((SECONDS - began)) s" ;;
    esac >> "$out/sections.txt"
    case $how in 0 | 124) ;; *) failed=1 ;; esac
    if [ -f "$work/results/$name/benchmarks.md" ]; then
        cat "$work/results/$name/benchmarks.md" >> "$out/benchmarks.md"
    fi
    tar -C "$work/results" -czf "$work/results.tar.gz" . && mv "$work/results.tar.gz" "$out"
}
benchmarks() { # NAME SECONDS BENCHMARK...: a third of the seconds are for starting and warming up
    local name=$1 limit=$2
    shift 2
    section "$name" "$limit" "$python" -m benchmarks "${flags[@]}" --minutes "$((limit * 10 / 9))e-2" \
        --out "$work/results/$name" --only "$@"
}
# in parallel: PYTHON COMMAND... of each line of its input; fails if one of them does
each='while read -r words; do "$0" -m decision_seq $words & pids+=($!); done
      for pid in "${pids[@]}"; do wait "$pid" || how=1; done; exit ${how:-0}'

section tests 110 "$python" -m pytest -q -p no:cacheprovider tests/test_gpu.py
benchmarks steps 45 steps
benchmarks seeds 60 seeds
benchmarks kernels 45 scan conv
benchmarks rollouts 60 rollouts lanes turns

# Real training: as many steps as fit, evaluated on the spot.
training=hopper-medium-expert
printf '%s\n' "collect hopper "{medium,expert}" --steps $steps" > "$work/collect"
section collect 30 bash -c "$each" "$python" < "$work/collect"
sources="data.sources=[decision-seq/hopper/medium-v0,decision-seq/hopper/expert-v0]"
for preset in "${presets[@]}"; do
    run="$work/results/$training/$preset"
    section "train-$preset" 50 "$python" -m decision_seq train configs/hopper.yaml --out "$run" \
        --device "$device" --seeds "${seeds[@]}" --set "$sources" --set "agent.preset=$preset" \
        "${changes[@]/#/--set=}"
    printf "evaluate $run/seed%s --device cpu\\n" "${seeds[@]}" > "$work/evaluate"
    OMP_NUM_THREADS=2 section "evaluate-$preset" 40 bash -c "$each" "$python" < "$work/evaluate"
    find "$run" -name "state.pt" -delete # weights come back, moments need not
    find "$run" -name tensorboard -exec rm -r {} +
done
section report 15 "$python" -m decision_seq report "$work/results/$training" \
    --out "$work/results/report.html"

benchmarks rest 60 "${rest[@]}"
exit $failed
