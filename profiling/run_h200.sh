#!/bin/sh
# Builds, checks and measures everything that needs a GPU. Each run takes less than ten minutes and writes its
# output, unedited, to one file under profiling/results/:
#
#     profiling/run_h200.sh check     build, every CUDA test, comparison with the CPU, loss curve beside the CPU's,
#                                     compute-sanitizer
#     profiling/run_h200.sh bench     every operation and variant, the teaching ladders, the step operation by operation
#     profiling/run_h200.sh fp8       --matmul fp8: against the CPU's emulation, 124M's loss curve beside bf16's, the step
#                                     of 1558M in both, operation by operation
#     profiling/run_h200.sh speed     tokens/s, MFU and memory of 124M and 1558M; then, in the same run, the peers:
#                                     dev/reference/train_torch.py where python3 has torch, llm.c where LLMC_DIR has it
#     profiling/run_h200.sh peers     the peers alone
#     profiling/run_h200.sh all       check, bench, fp8 and speed
#
# BUDGET=SECONDS for a run (570; 0: no limit). Commands that no longer fit are named and left out, and the run fails.
# PYTHON=a python3 with torch. LLMC_DIR=an llm.c checkout with train_gpt2cu built. OUT=directory for the results.
# SIM=1 runs the same commands with small models on the simulated device: it tests the script and measures nothing.
# shellcheck disable=SC2086 # variables with several options in them
set -u
cd "$(dirname "$0")/.." || exit 1
part=${1:-all}
case $part in check | bench | fp8 | speed | peers | all) ;; *) sed -n '2,17p' "$0"; exit 2 ;; esac
if [ "$part" = all ]; then # every run has its own budget and its own file
    failed=0
    for part in check bench fp8 speed; do sh "$0" $part || failed=1; done
    exit $failed
fi

commit=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
python=${PYTHON:-python3}
budget=${BUDGET:-570}
began=$(date +%s)
if [ -n "${SIM:-}" ]; then
    device=simulated
    train=build/train_gpt_sim bench=build/bench_sim
    compare='--layers 2 --heads 2 --channels 64 --context 32 --vocab-size 300 --batch-size 2 --seq-len 24'
    small='--layers 1 --heads 2 --channels 32 --context 32 --vocab-size 300'
    curve="$small --stories 300 --batch-size 4 --steps 5" fp8_curve="$small --stories 300 --batch-size 2 --steps 12"
    step_124m="$small --batch-size 2" step_1558m="$small --batch-size 1" repeats=1 steps=4
    shapes='2,16,32,2,300' bench_args='--seconds 0.01' ladder='2,16,32,2,300'
    torch_124m="$small --batch-size 2 --seq-len 32 --steps 4 --device cpu --no-compile" torch_1558m=$torch_124m
else
    device=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1 | tr ' ' '-' | tr -cd 'A-Za-z0-9-')
    [ -n "$device" ] || { echo "no NVIDIA GPU found (nvidia-smi)"; exit 1; }
    train=build/train_gpt bench=build/bench
    compare='--model gpt2 --batch-size 2 --seq-len 256'
    curve='--model gpt2 --stories 20000 --batch-size 4 --seq-len 64 --steps 60'
    fp8_curve='--model gpt2 --stories 100000 --batch-size 16 --steps 600'
    step_124m='--model gpt2 --batch-size 64' step_1558m='--model gpt2-xl --batch-size 16' repeats=20 steps=50
    shapes='gpt2 gpt2-xl' bench_args='--variant all --seconds 0.2' ladder=gpt2
    # a padded vocabulary, so that no logits are cut off
    torch_124m='--model gpt2 --batch-size 64 --seq-len 1024 --vocab-size 50304 --steps 50'
    torch_1558m='--model gpt2-xl --batch-size 16 --seq-len 1024 --vocab-size 50304 --steps 15'
fi
out=${OUT:-profiling/results}
mkdir -p "$out" || exit 1
result=$out/$device-$(date +%Y%m%d)-$commit-$part.txt
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Runs a command within the time that is left. Records a failure and continues.
run() {
    echo
    echo "\$ $*"
    start=$(date +%s)
    left=$((budget - (start - began)))
    if [ "$budget" -gt 0 ] && [ $left -lt 5 ]; then
        echo "[left out: the $budget s of this run are used up]"
        echo "LEFT OUT: $*" >>"$work/failures"
        return
    fi
    if [ "$budget" -gt 0 ]; then timeout -k 5 $left "$@" 2>&1; else "$@" 2>&1; fi
    status=$?
    echo "[exit status $status, $(($(date +%s) - start)) s]"
    [ $status -eq 0 ] || echo "FAILED: $*" >>"$work/failures"
}

identify() {
    date -u '+%Y-%m-%d %H:%M UTC'
    echo "commit $commit$(git diff --quiet HEAD 2>/dev/null || echo ', with local changes')"
    [ -n "${SIM:-}" ] && echo "SIMULATED DEVICE: nothing below is a measurement of a GPU" && return
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit --format=csv
    nvcc --version | tail -n 2
}

build() { # programs
    if [ -n "${SIM:-}" ]; then
        run make -j"$(nproc)" build/train_gpt_sim build/bench_sim
    else
        run make -j"$(nproc)" CUDA=1 "$@"
    fi
}

check() {
    build all
    [ -n "${SIM:-}" ] || run env LLMC_TEST_SIZE=large make -j"$(nproc)" CUDA=1 test-gpu
    [ -n "${SIM:-}" ] || run build/cuda/test/cuda/test_cuda_comm # with the NCCL of this machine, one rank on each GPU
    run $train compare $compare --device cuda --dtype fp32 --steps 3
    run $train compare $compare --device cuda --dtype fp32 --tf32
    run $train compare $compare --device cuda --dtype bf16 --steps 3
    for where in cuda cpu; do
        run $train $curve --device $where --dtype "$([ $where = cpu ] && echo fp32 || echo bf16)" --out "$work/$where"
        for file in log.jsonl loss.svg; do
            [ ! -e "$work/$where/$file" ] || cp "$work/$where/$file" "${result%.txt}-$where.${file#*.}"
        done
    done
    [ -n "${SIM:-}" ] || for tool in memcheck racecheck initcheck synccheck; do
        run make CUDA=1 SANITIZE=1 TOOL=$tool test-gpu
    done
}

bench() {
    build build/train_gpt build/bench
    run $train profile $step_124m --device cuda --repeats $repeats
    run $train profile $step_124m --device cuda --repeats $repeats --autotune "$work/tune" --overwrite --html "${result%.txt}.html"
    run $train profile $step_1558m --device cuda --repeats $repeats --autotune "$work/tune"
    for shape in $shapes; do
        run $bench --device cuda --shape "$shape" $bench_args --overwrite --json "${result%.txt}-$shape.json"
    done
    run $bench --device cuda --shape "$ladder" --ladder $bench_args
}

fp8() {
    build build/train_gpt
    run $train compare $compare --device cuda --matmul fp8 --steps 3
    run profiling/fp8_loss.sh "$work/fp8" $train $fp8_curve --device cuda
    for matmul in bf16 fp8; do
        run $train profile $step_1558m --device cuda --repeats $repeats --matmul $matmul --autotune "$work/tune"
    done
}

# The log's tokens/s are of whole steps, including everything that training does between them.
speed() {
    build build/train_gpt
    for graph in --graph --no-graph; do
        run $train $step_124m --stories 20000 --steps $steps --val-every 1000 --device cuda $graph \
            --autotune "$work/tune" --out "$work/speed$graph"
        [ ! -e "$work/speed$graph/timing.jsonl" ] || tail -n 5 "$work/speed$graph/timing.jsonl"
    done
    run $train $step_1558m --stories 20000 --steps $((steps / 2)) --val-every 1000 --device cuda \
        --autotune "$work/tune" --out "$work/speed-xl"
    [ ! -e "$work/speed-xl/timing.jsonl" ] || tail -n 5 "$work/speed-xl/timing.jsonl"
    run $train plan $step_124m --device cuda
    peers
}

peers() {
    if $python -c 'import torch, numpy' 2>/dev/null; then
        run $python dev/reference/train_torch.py $torch_124m
        run $python dev/reference/train_torch.py $torch_1558m
    else
        echo
        echo "PyTorch: left out: $python has no torch (set PYTHON to one that has)"
    fi
    if [ -x "${LLMC_DIR:-/nonexistent}/train_gpt2cu" ]; then
        # it reads shards like ours; any tokens below 50257 will do
        run make build/stories build/prepare
        run sh -c "build/stories --count 60000 >$work/stories.txt"
        run build/prepare --tokenizer train:4096 --out "$work/shards" "$work/stories.txt"
        for model in 'd12 -b 64 -d 65536 -x 50' 'd48 -b 16 -d 16384 -x 20'; do
            run "$LLMC_DIR/train_gpt2cu" -e ${model} -t 1024 -i "$work/shards/*_train_*.bin" -j "$work/shards/*_val_*.bin" \
                -v 1000 -s 1000 -h 0 -n 0 -ge 1
        done
    else
        echo
        echo "llm.c: left out: LLMC_DIR does not name a checkout with train_gpt2cu built"
    fi
}

{
    identify
    $part
    echo
    echo "run '$part' took $(($(date +%s) - began)) s"
    if [ -s "$work/failures" ]; then cat "$work/failures"; else echo "every command succeeded"; fi
} | tee "$result"
echo "written to $result"
[ ! -s "$work/failures" ]
