#!/bin/sh
# `make bench-cpu`: how near the CPU's operations are to what the machine can do, in shares of the sgemm and copy rates that
# the same run measures. Prints the profiles of three training steps and the benchmark of the operations that move memory,
# then one line per aim with its verdict. The machine should have nothing else to do.
#     sh dev/bench_cpu.sh [BUILD]        LLMC_VARIANT=cpu:avx2 OPENBLAS_CORETYPE=Haswell: as on a processor without AVX-512
set -eu
build=${1:-build}
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-2500}" # as train_gpt sets it
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# step NAME OPTIONS...: the profile of a step, kept under NAME
step() {
    name=$1
    shift
    "$build/train_gpt" profile --device cpu "$@" >"$work/$name"
    cat "$work/$name"
    echo
}

# aim SHARE WHAT LEAST: the verdict
aim() {
    awk -v share="$1" -v what="$2" -v least="$3" 'BEGIN {
        printf "%-8s %5.2f, at least %.2f   %s\n", (share >= least ? "reached" : "MISSED"), share, least, what }' >>"$work/aims"
}

# The share of the sgemm rate that the operations in a profile reach together whose names match a pattern. From the right,
# the columns of a profile are: gain, % of roofline, GFLOP/s, GB/s, % of the step, ms.
of_sgemm() {
    sgemm=$(sed -n 's/.* % of the \([0-9.]*\) GFLOP.*/\1/p' "$work/$1")
    awk -v pattern="$2" -v sgemm="$sgemm" '$0 ~ pattern && NF >= 8 { work += $(NF - 2) * $(NF - 5); ms += $(NF - 5) }
        END { print work / ms / sgemm }' "$work/$1"
}

step tiny --model tiny --batch-size 8 --seq-len 128
step short --model gpt2 --batch-size 4 --seq-len 64
step long --model gpt2 --batch-size 1 --seq-len 1024
for profile in tiny short long; do
    share=$(sed -n 's/.* = \([0-9.]*\) % of the .*/\1/p' "$work/$profile" | awk '{ print $1 / 100 }')
    case $profile in
    tiny) aim "$share" "step of tiny, B=8 T=128, of sgemm" 0.60 ;;
    short) aim "$share" "step of 124M, B=4 T=64, of sgemm" 0.85 ;;
    long) aim "$share" "step of 124M, B=1 T=1024, of sgemm" 0.85 ;;
    esac
done
aim "$(of_sgemm tiny '^attn_forward')" "attention forward in tiny's step, T=128, of sgemm" 0.55
aim "$(of_sgemm tiny '^attn_backward')" "attention backward in tiny's step, T=128, of sgemm" 0.55
aim "$(of_sgemm long '^attn_forward')" "attention forward, T=1024, of sgemm" 0.55
aim "$(of_sgemm long '^attn_backward')" "attention backward, T=1024, of sgemm" 0.55
aim "$(of_sgemm tiny '^matmul')" "matmuls of tiny, with bias and GELU, of sgemm" 0.75

# Cold, an operation waits for each of its operands, which are smaller than the caches, to begin to arrive, and memory is
# read before it is written. Warm is what a step of a small model sees, as each operation reads what the one before it wrote.
for op in act_forward act_backward norm residual_norm loss adamw embed; do
    for caches in warm cold; do
        "$build/bench" --device cpu --op $op --caches $caches --seconds 0.3 >"$work/bench"
        cat "$work/bench"
        # the least share among the operations: of the copy rate
        share=$(sed -n 's/.* fp32 .* \([0-9.]*\)%\( *$\|  faster.*\)/\1/p' "$work/bench" | sort -n | head -n 1)
        aim "$(awk "BEGIN { print $share / 100 }")" "$op, gpt2 B=4 T=64, $caches caches, of the copy rate" 0.70
    done
done

echo
cat "$work/aims"
awk '{ n[$1]++ } END { printf "%d reached, %d missed\n", n["reached"], n["MISSED"] }' "$work/aims"
