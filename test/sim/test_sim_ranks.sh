#!/bin/sh
# The whole trainer on two simulated GPUs, with the collectives of the simulated NCCL: the same losses as on one, at
# ZeRO 0 and 3, the latter with streams that do nothing until they must. Prints TAP.
#     [BUILD=build] test/sim/test_sim_ranks.sh
: "${BUILD:=build}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export SIM_GPUS=2 SIM_WORKERS=1 OMP_NUM_THREADS=1

train() { # NAME OPTION...
    name=$1
    shift
    timeout 120 "$BUILD/sim/plain/train_gpt" --device cuda --dtype fp32 --layers 2 --heads 2 --channels 32 --context 32 \
        --vocab-size 300 --stories 100 --batch-size 1 --seq-len 20 --tokens-per-step 80 --steps 3 --val-every 1 --val-batches 2 \
 --out "$work/$name" "$@" >"$work/$name.out" 2>&1
}
losses() { sed -n 's/.*"\(loss\|val_loss\)":\([0-9.e+-]*\).*/\2/p' "$work/$1/log.jsonl"; }

number=0
report() { # NAME OF WHAT, and the status of the command before says whether it is right
    status=$?
    number=$((number + 1))
    [ $status -eq 0 ] && echo "ok $number - $*" && return
    echo "not ok $number - $*"
    cat "$work"/*.out
}

# Equal to 1e-5, and as many of them as there must be: 3 steps, 3 validations.
same() {
    losses one >"$work/a"
    losses "$1" >"$work/b"
    paste "$work/a" "$work/b" | awk '{ d = $1 - $2; if (d < 0) d = -d; if (!($1 > 1 && d <= 1e-5 * $1)) bad = 1 }
        END { exit bad || NR != 6 }'
}

train one
report one GPU
for level in 0 3; do # test_cuda_zero has them all
    SIM_LAZY=$((level % 2)) train zero$level --gpus 2 --zero $level && grep -q 'NCCL 2' "$work/zero$level.out" && same zero$level
    report "two GPUs, --zero $level: the losses of one"
done
! train many --gpus 3 && grep -q -- '--gpus 3: this machine has 2' "$work/many.out"
report more processes than GPUs
echo "1..$number"
