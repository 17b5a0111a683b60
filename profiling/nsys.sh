#!/bin/sh
# Records a timeline of a few training steps with Nsight Systems, and prints summaries of it.
#     profiling/nsys.sh [options of train_gpt]        e.g. --model gpt2 --batch-size 64
# Writes profiling/results/step.nsys-rep for the viewer. README.md says how to read both.
# NOT YET RUN ON A GPU.
set -eu
cd "$(dirname "$0")/.."
report=${OUT:-profiling/results}/step
mkdir -p "$(dirname "$report")"
# `profile` launches every kernel separately, as training does with --no-graph. The kernels of a recorded
# graph start together, outside the ranges of their operations.
nsys profile --trace=cuda,nvtx,osrt --sample=none --cpuctxsw=none --force-overwrite=true --output="$report" \
    build/train_gpt profile --device cuda --repeats 2 "$@"
nsys stats --force-export=true --report nvtx_gpu_proj_sum,nvtx_kern_sum,cuda_gpu_kern_sum,cuda_api_sum "$report.nsys-rep"
echo "timeline: $report.nsys-rep (nsys-ui opens it)"
