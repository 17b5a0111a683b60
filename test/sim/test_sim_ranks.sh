#!/bin/sh
# Runs the whole trainer on two simulated GPUs with the simulated NCCL. The losses must be those of one GPU,
# at ZeRO 0 and 3, the latter with lazy streams; a rank that is killed must end the run. Prints TAP.
#     [BUILD=build] test/sim/test_sim_ranks.sh
: "${BUILD:=build}"
. test/sim/runs.sh
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export SIM_GPUS=2 SIM_WORKERS=1 OMP_NUM_THREADS=1

shape='--layers 2 --heads 2 --channels 32 --context 32 --vocab-size 300'
train() { # NAME STEPS OPTION...
    name=$1 steps=$2
    shift 2
    timeout 120 "$BUILD/sim/plain/train_gpt" --device cuda --dtype fp32 $shape --stories 100 --batch-size 1 \
        --seq-len 20 --tokens-per-step 80 --val-batches 2 \
        --steps $steps --val-every $(((steps + 2) / 3)) --out "$work/$name" "$@" >"$work/$name.out" 2>&1
}

export LLMC_NCCL=/nonexistent/libnccl.so.2
train one 3
report one GPU, without NCCL
! train without 3 --gpus 2 && grep -q 'LLMC_NCCL=/path/to/libnccl.so.2' "$work/without.out"
report two GPUs, without NCCL: what to do
unset LLMC_NCCL

for level in 0 3; do # test_cuda_zero has them all
    SIM_LAZY=$((level % 2)) train zero$level 3 --gpus 2 --zero $level && grep -q 'NCCL 2' "$work/zero$level.out" && same_losses one zero$level
    report "two GPUs, --zero $level: the losses of one"
done
for level in 0 3; do
    shape='' SIM_LAZY=$((level % 2)) train lora$level 3 --gpus 2 --zero $level --model "$work/one" --lora 2 --learning-rate 0.01
done
cmp "$work/lora0/step-00000003/adapter_model.safetensors" "$work/lora3/step-00000003/adapter_model.safetensors"
report adapters beside a divided model: the bits of a whole one
! train many 3 --gpus 3 && grep -q -- '--gpus 3: this machine has 2' "$work/many.out"
report more processes than GPUs

# Rank 0 waits for its GPU, which waits for the killed rank 1: the wait must end.
train killed 100000 --gpus 2 --zero 3 --rank-logs &
launcher=$!
tries=0
until grep -q ' step 1 ' "$work/killed/rank-1.log" 2>/dev/null || [ $((tries += 1)) -gt 600 ]; do sleep 0.1; done
kill -9 "$(sed -n 's/.*rank 1 of 2,.* process \([0-9]*\),.*/\1/p' "$work/killed/rank-1.log")"
wait $launcher
[ $? -eq 137 ] && grep -q 'rank 0: error: rank 1 .*ended without a message' "$work/killed.out" &&
    grep -q 'error: rank 1 was killed by signal 9' "$work/killed.out"
report rank 1 is killed: the others end, and say why
echo "1..$number"
