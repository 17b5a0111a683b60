#!/bin/sh
# Trains twice, with --matmul bf16 and fp8, and compares the losses: their means over every tenth of the
# run, and the losses on the validation set. Fails if fp8 ends more than 2 % above bf16.
#
#     profiling/fp8_loss.sh DIR PROGRAM OPTION...     e.g. runs/fp8 build/train_gpt --model gpt2 --steps 1000
#
# On the simulated device (600 steps, some minutes; results/fp8-loss-simulated.txt is its output):
#
#     make build/train_gpt_sim build/stories && profiling/fp8_loss.sh sim
set -eu
if [ "${1:-}" = sim ]; then
    dir=$(mktemp -d)
    trap 'rm -rf "$dir"' EXIT
    build/stories --count 2000 --seed 3 >"$dir/stories.txt"
    set -- "$dir" build/train_gpt_sim --device cuda --text "$dir/stories.txt" --vocab-size 300 --layers 2 --heads 2 \
        --channels 64 --context 32 --batch-size 4 --steps 600 --warmup 30 --learning-rate 3e-3
fi
[ $# -ge 2 ] || { sed -n '2,9p' "$0"; exit 2; }
dir=$1 program=$2
shift 2
mkdir -p "$dir"

echo "$ $program $* --matmul bf16|fp8" | sed "s|$dir|DIR|g"
for matmul in bf16 fp8; do
    $program "$@" --val-every 1000000 --save-every 1000000 --matmul $matmul --out "$dir/$matmul" >"$dir/$matmul.txt" 2>&1 &&
        continue
    tail -n 3 "$dir/$matmul.txt"
    exit 1
done

awk -F '[:,}]' '
    FNR == 1 { run++ }
    { for (i = 1; i < NF; i++) { if ($i ~ /"step"/) step = $(i + 1); if ($i ~ /"loss"/) loss[run, n[run] = step] = $(i + 1)
                                 if ($i ~ /"val_loss"/) val[run] = $(i + 1) } }
    function line(what, bf16, fp8) {
        off = 100 * (fp8 / bf16 - 1)
        printf "%-22s %8.4f %8.4f %+8.3f %%\n", what, bf16, fp8, off
        return off
    }
    END {
        if (n[1] != n[2] || !n[1]) { print "the logs have " n[1] + 0 " and " n[2] + 0 " steps"; exit 1 }
        printf "%-22s %8s %8s %10s\n", "steps", "bf16", "fp8", "distance"
        for (first = 1; first <= n[1]; first = last + 1) {
            last = first + int(n[1] / 10) - 1; if (last > n[1] || n[1] < 10) last = n[1]
            sum[1] = sum[2] = 0
            for (s = first; s <= last; s++) { sum[1] += loss[1, s]; sum[2] += loss[2, s]
                d = loss[2, s] / loss[1, s] - 1; largest = d > largest ? d : -d > largest ? -d : largest }
            off = line(first "-" last, sum[1] / (last - first + 1), sum[2] / (last - first + 1))
        }
        if (val[1]) { v = line("validation, at the end", val[1], val[2]); off = v > off ? v : off }
        printf "largest distance of one step: %.3f %%\n", 100 * largest
        if (!(off <= 2)) { print "fp8 is more than 2 % above bf16"; exit 1 }
    }' "$dir/bf16/log.jsonl" "$dir/fp8/log.jsonl"
