#!/bin/sh
# Builds, checks and measures everything that needs a GPU, and writes what was printed to one file under
# profiling/results/, unedited. In parts, so that each stays below ten minutes on an H200:
#
#     profiling/run_h200.sh check     build, every CUDA test, compute-sanitizer, compare with the CPU
#     profiling/run_h200.sh bench     every operation and variant, the training step operation by operation
#     profiling/run_h200.sh train     124M: loss curve beside the CPU's; tokens/s and MFU of 124M and 1558M
#     profiling/run_h200.sh all       the three of them
#
# SIM=1 runs the same commands, in small, on the simulated device: it shows that the script works, and measures nothing.
# OUT=DIR puts the results elsewhere.
set -u
cd "$(dirname "$0")/.." || exit 1
part=${1:-all}
case $part in check | bench | train | all) ;; *) sed -n '2,12p' "$0"; exit 2 ;; esac

commit=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
if [ -n "${SIM:-}" ]; then
    device=simulated
    train=build/train_gpt_sim bench=build/bench_sim
    compare='--layers 2 --heads 2 --channels 64 --context 32 --vocab-size 300 --batch-size 2 --seq-len 24'
    small='--layers 1 --heads 2 --channels 32 --context 32 --vocab-size 300'
    curve="$small --stories 300 --batch-size 4 --steps 5"
    step_124m="$small --batch-size 2" step_1558m="$small --batch-size 1" repeats=1
    shapes='2,16,32,2,300' bench_args='--seconds 0.01'
else
    device=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1 | tr ' ' '-' | tr -cd 'A-Za-z0-9-')
    [ -n "$device" ] || { echo "no NVIDIA GPU found (nvidia-smi)"; exit 1; }
    train=build/train_gpt bench=build/bench
    compare='--model gpt2 --batch-size 2 --seq-len 256'
    curve='--model gpt2 --stories 20000 --batch-size 4 --seq-len 64 --steps 300'
    step_124m='--model gpt2 --batch-size 64' step_1558m='--model gpt2-xl --batch-size 16' repeats=20
    shapes='gpt2 gpt2-xl' bench_args='--variant all'
fi
out=${OUT:-profiling/results}
mkdir -p "$out" || exit 1
result=$out/$device-$(date +%Y%m%d)-$commit-$part.txt
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Runs a command, shows and records what it prints, and goes on if it fails.
run() {
    echo
    echo "\$ $*"
    start=$(date +%s)
    "$@" 2>&1
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

build() {
    if [ -n "${SIM:-}" ]; then run make -j"$(nproc)" sim build/bench_sim; else run make -j"$(nproc)" CUDA=1 all; fi
}

check() {
    if [ -z "${SIM:-}" ]; then
        run env LLMC_TEST_SIZE=large make -j"$(nproc)" CUDA=1 test-gpu
        run make CUDA=1 SANITIZE=1 TOOL=memcheck test-gpu
        run make CUDA=1 SANITIZE=1 TOOL=racecheck test-gpu
        run make CUDA=1 SANITIZE=1 TOOL=initcheck test-gpu
        run make CUDA=1 SANITIZE=1 TOOL=synccheck test-gpu
    fi
    run $train compare $compare --device cuda --dtype fp32 --steps 3
    run $train compare $compare --device cuda --dtype fp32 --tf32
    run $train compare $compare --device cuda --dtype bf16 --steps 3
}

bench() {
    for shape in $shapes; do
        run $bench --device cuda --shape "$shape" $bench_args --json "${result%.txt}-$shape.json"
    done
    for autotune in '' "--autotune $work/tune"; do
        run $train profile $step_124m --device cuda --repeats $repeats $autotune --html "${result%.txt}.html"
    done
    run $train profile $step_1558m --device cuda --repeats $repeats --autotune "$work/tune"
}

train() {
    for where in cpu cuda; do
        run $train $curve --device $where --dtype "$([ $where = cpu ] && echo fp32 || echo bf16)" --out "$work/$where"
        cp "$work/$where/log.jsonl" "${result%.txt}-$where.jsonl"
        cp "$work/$where/loss.svg" "${result%.txt}-$where.svg"
    done
    for graph in --graph --no-graph; do
        run $train $step_124m --stories 20000 --steps 50 --val-every 1000 --device cuda $graph --out "$work/speed$graph"
        tail -n 5 "$work/speed$graph/timing.jsonl"
    done
}

{
    identify
    build
    case $part in all) check; bench; train ;; *) $part ;; esac
    echo
    if [ -s "$work/failures" ]; then cat "$work/failures"; else echo "every command succeeded"; fi
} | tee "$result"
echo "written to $result"
[ ! -s "$work/failures" ]
