#!/bin/sh
# The batch size that the memory of a simulated GPU allows: steps, losses and validations must be those of any other, a
# resumed run keeps its own, and several processes take the smallest. Prints TAP.
#     [BUILD=build] test/sim/test_sim_batch.sh
: "${BUILD:=build}"
. test/sim/runs.sh
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export SIM_WORKERS=1 OMP_NUM_THREADS=1
shape='--device cuda --dtype fp32 --layers 2 --heads 2 --channels 32 --context 32 --vocab-size 300 --stories 100 --seq-len 20'
step='--schedule constant --warmup 2 --tokens-per-step 640 --val-every 2 --val-batches 2'

train() { # MEMORY NAME OPTION...
    memory=$1 name=$2
    shift 2
    SIM_MEM_MB=$memory timeout 120 "$BUILD/sim/plain/train_gpt" --out "$work/$name" "$@" >"$work/$name.out" 2>&1
}
says() { grep -q -- "$2" "$work/$1.out"; }
same_weights() { cmp "$work/$1/step-00000004/model.safetensors" "$work/$2/step-00000004/model.safetensors"; }

train 4096 usual $shape --steps 1 && says usual '^batch     all 8 sequences of a step at a time$' && says usual ' 1 step of 160 tokens'
report without --tokens-per-step a step is as on any device
train 4 little $shape $step --steps 4 &&
    says little '^batch     4 of a step.s 32 sequences at a time: the largest batch that fits (8 need .*, and 3.60 MiB may be used)$'
report a GPU with little memory
train 4096 much $shape $step --steps 4 && says much '^batch     all 32 sequences of a step at a time$' && same_losses much little
report one with much memory: the same losses and validations
train 4096 given $shape $step --steps 4 --batch-size 4 && ! says given '^batch  ' &&
    ! same_losses given little && [ "$(losses given | sed 3d\;6d)" = "$(losses little | sed 3d\;6d)" ]
report a --batch-size that is given is also the size of the batches of a validation
losses given >"$work/before" && rm -r "$work"/given/step-* && train 4096 given --resume --steps 4 &&
    ! says given '^batch  ' && losses given | cmp - "$work/before"
report and still is when the run begins again without a checkpoint

train 4 halves $shape $step --steps 2 && train 4096 halves --resume --steps 4 &&
    says halves 'batch     4 of a step.s 32 sequences at a time, as before' && same_weights halves little && same_losses halves little
report --resume with more memory keeps the batch size, bit by bit
train 4096 fewer $shape $step --steps 2 && train 4 fewer --resume --steps 4 &&
    says fewer 'batch     4 of a step.s 32 sequences at a time: the largest' && same_losses fewer little
report --resume with less memory chooses again
train 4096 fixed $shape $step --steps 2 --batch-size 32 && ! train 4 fixed --resume --steps 4 &&
    says fixed 'A smaller --batch-size (with the same --tokens-per-step)'
report a --batch-size that was given stays
! train 1 none $shape $step --steps 1 && says none 'One sequence alone does not fit: a shorter --seq-len' && [ ! -e "$work/none" ]
report not even one sequence fits
! train 4096 odd $shape --steps 1 --tokens-per-step 650 &&
    says odd '--tokens-per-step 650 is not a multiple of --seq-len 20 = 20; the nearest are 640 and 660'
report tokens per step that are no whole sequences

export SIM_GPUS=2 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=$((20000 + $$ % 20000))
RANK=1 train 3 two $shape $step --steps 4 & # prints nothing
RANK=0 train 4096 two $shape $step --steps 4 && wait $! &&
    says two 'batch     4 of a step.s 16 sequences at a time: the largest batch that fits (8 need .*, and 2.70 MiB' && same_losses two little
report of two GPUs the smaller one decides
echo "1..$number"
