#!/usr/bin/env bash
# The comparison of docs/results.md over bodies: six agents, medium data alone and medium and expert together, five seeds each.
#   bash benchmarks/bodies.sh runs/bodies        # four hours of one core; told again, it goes on where it stopped
#   bash benchmarks/bodies.sh runs/bodies hopper # one body
set -euo pipefail
if [ $# -lt 1 ] || [ $# -gt 2 ]; then
    echo "bodies.sh: $# arguments; give the folder of the runs and, for a part of them, hopper, walker2d or halfcheetah" >&2
    exit 2
fi
out=$1
jobs=${JOBS:-2} # one thread each
export OMP_NUM_THREADS=1

body() { # name, the expert's return, the medium tier's
    local medium=decision-seq/$1/medium-v0 expert=decision-seq/$1/expert-v0 tier
    for tier in medium expert; do
        decision-seq data info "decision-seq/$1/$tier-v0" > /dev/null 2>&1 || decision-seq collect "$1" $tier --steps 100000
    done
    compare "$@" medium "$medium" --set train.steps=1500
    compare "$@" medium-expert "$medium,$expert"
}
compare() { # name, two targets, what the data are called and their ids, settings...
    decision-seq compare compare-bodies --jobs "$jobs" --out "$out/$1-$4" --set "base=$1" \
        --set "eval.targets=[$2,$3]" --set "datasets.data=[$5]" "${@:6}"
}

for name in ${2:-hopper walker2d halfcheetah}; do
    case $name in
        hopper) body hopper 3600 1500 ;;
        walker2d) body walker2d 5000 2500 ;;
        halfcheetah) body halfcheetah 9700 4900 ;;
        *)
            echo "bodies.sh: '$name' is no body; there are hopper, walker2d and halfcheetah" >&2
            exit 2
            ;;
    esac
done
