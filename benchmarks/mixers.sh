#!/usr/bin/env bash
# The comparison of docs/mixers.md: seven tasks of memory and two of MuJoCo, 14 agents, five seeds each.
#   pip install -e '.[memory]'
#   bash benchmarks/mixers.sh runs/mixers          # five hours of one core; told again, it goes on where it stopped
#   bash benchmarks/mixers.sh runs/mixers mujoco   # a part: memory or mujoco
#   bash benchmarks/mixers.sh runs/rates rates     # what per_agent in the two configs was chosen by: validation loss
# Matrices of imixer and of the mixers grow with the window; their widths change with it, so that every agent
# stays within 5 % of Decision Mamba's size. On RepeatFirst no imixer does: the smallest is 17 % larger.
set -euo pipefail
if [ $# -lt 1 ] || [ $# -gt 2 ]; then
    echo "mixers.sh: $# arguments; give the folder of the runs and, for a part of them, memory, mujoco or rates" >&2
    exit 2
fi
out=$1
jobs=${JOBS:-2} # one thread each
export OMP_NUM_THREADS=1

data() { # environment, tier, steps, id
    decision-seq data info "decision-seq/$4/$2-v0" > /dev/null 2>&1 || decision-seq collect "$1" "$2" --steps "$3"
    source="decision-seq/$4/$2-v0"
}
memory() { # name, environment, context length, settings...
    decision-seq compare compare-memory --jobs "$jobs" --out "$out/$1" --set "datasets.memory=[$source]" \
        --set "env=$2" --set "agent.context_length=$3" "${@:4}"
}
mujoco() { # body, target, settings...
    data "$1" medium 100000 "$1"
    decision-seq compare compare-mixers-mujoco --jobs "$jobs" --out "$out/$1" --set "base=$1" \
        --set "eval.targets=[$2]" --set "datasets.medium=[$source]" "${@:3}"
}
imixer() { # its settings, as arguments of memory
    for setting; do echo "--set agents.decision-imixer.backbone.$setting"; done
}

three_rates() {
    local rates=()
    for rate in 1e-3 3e-3 1e-2; do rates+=(--set "options.lr-$rate.train.learning_rate=$rate"); done
    data t-maze-30 expert 30000 t-maze-30
    memory t-maze-30 t-maze-30 30 --set seeds=[0,1] "${rates[@]}"
    mujoco hopper 1400 --set seeds=[0] "${rates[@]}"
}
all_memory() {
    local task
    data t-maze-30 expert 30000 t-maze-30
    memory t-maze-30 t-maze-30 30
    data t-maze-9 expert 9000 t-maze-9
    memory t-maze-9 t-maze-9 9 --set train.steps=500 $(imixer width=24 hidden=4)
    data memory-8 medium 9000 memory-8
    memory memory-8 memory-8 9 --set train.steps=500 $(imixer width=24 hidden=4)
    data memory-32 medium 33000 memory-32
    memory memory-32 memory-32 33 --set train.steps=600 $(imixer layers=1 width=48)
    task=popgym:popgym-RepeatPreviousEasy-v0
    data $task expert 30000 popgym-popgym-repeatpreviouseasy-v0
    memory repeat-previous $task 10 --set train.steps=500 --set eval.episodes=20 $(imixer width=40 hidden=2)
    task=popgym:popgym-RepeatFirstEasy-v0
    data $task expert 30000 popgym-popgym-repeatfirsteasy-v0
    memory repeat-first $task 52 --set train.steps=500 --set train.batch_size=16 --set eval.episodes=20 \
        $(imixer layers=1 width=12)
    task=popgym:popgym-NoisyPositionOnlyCartPoleMedium-v0
    data $task expert 60000 popgym-popgym-noisypositiononlycartpolemedium-v0
    memory cart-pole $task 20 --set train.steps=500 --set 'agent.tokens=[return_to_go,observation,action]' \
        --set agents.decision-mixer.backbone.width=45 --set agents.decision-hopfield.backbone.width=61 \
        --set agents.decision-convformer.backbone.width=44 $(imixer width=24)
}

case "${2:-}" in
    rates) three_rates ;;
    memory) all_memory ;;
    mujoco | "")
        [ "${2:-}" ] || all_memory
        mujoco hopper 1400
        mujoco walker2d 2500
        ;;
    *)
        echo "mixers.sh: '$2' is no part; there are memory, mujoco and rates" >&2
        exit 2
        ;;
esac
