#!/bin/sh
# Collects all hardware counters of one operation's kernels with Nsight Compute.
#     profiling/ncu.sh attn_backward [options of train_gpt]        e.g. --model gpt2 --batch-size 16
# Selects the kernels by the operation's NVTX range, which includes those of cuBLASLt. Writes
# profiling/results/OP.ncu-rep for the viewer and prints the details. README.md says how to read them.
# LAUNCHES=N kernels (4), after SKIP=N (0).
# NOT YET RUN ON A GPU.
set -eu
[ $# -ge 1 ] || { sed -n '2,7p' "$0"; exit 2; }
cd "$(dirname "$0")/.."
op=$1
shift
report=${OUT:-profiling/results}/$op
mkdir -p "$(dirname "$report")"
# ncu runs a kernel once for each group of counters, and before every pass flushes the caches and fixes the
# clocks: compare its times with each other, not with those of a training step.
ncu --set full --import-source yes --nvtx --nvtx-include "$op/" --launch-skip "${SKIP:-0}" \
    --launch-count "${LAUNCHES:-4}" --force-overwrite --export "$report" \
    build/train_gpt profile --device cuda --repeats 1 "$@"
ncu --import "$report.ncu-rep" --page details
echo "report: $report.ncu-rep (ncu-ui opens it)"
