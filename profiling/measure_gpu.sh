#!/bin/sh
# The first minutes on a GPU: what is here, what is correct, how fast a training step is, and where its time goes. In
# stages, the most valuable first. A stage has a time limit, and so has every command in it; what fails, dies or hangs
# is reported and costs only itself.
#
#     1  device, driver, clocks, copy and matmul rates                     20 s
#     2  every operation x variant x type against the CPU, each in a process of its own
#                                                                         120 s
#     3  three training steps against the CPU, in fp32, bf16 and fp8; ten steps twice, and without a graph
#                                                                          60 s
#     4  124M, B=64, T=1024, 40 steps: tokens/s, MFU, memory; if it fails, the variant to blame
#                                                                          60 s
#     5  the step operation by operation, beside what was predicted         60 s
#     6  peers in the same minutes: PyTorch if python3 has it, llm.c if its train_gpt2cu is here
#                                                                          90 s
#     7  in the time that is left: compute-sanitizer on failed rows, autotuning, 1558M in bf16 and fp8, ncu, ladders
#
#     measure_gpu.sh [--only STAGES]        e.g. --only 2,4
#
# It runs in the folder of `make bundle CUDA=1`, or in a checkout after `make CUDA=1 gpu-programs`.
# OUT=DIR (gpu-results) receives a file for each stage with everything that was printed, and summary.txt, which is also
# the last screen. LIMIT=SECONDS for all (570). PYTHON=python3. LLMC_DIR: where train_gpt2cu is. SIM=1 runs every stage in
# small on the simulated device, which tests this script (test/test_measure_gpu.sh) and measures nothing.
# The exit status is 1 if something is wrong, but not if only a peer or a tool is missing.
# shellcheck disable=SC2086 # variables with several options in them
set -u
here=$(cd "$(dirname "$0")" && pwd) || exit 1
self=$here/$(basename "$0")

# --- one row of stage 2, in a process that xargs has started ---

# "DEAD sumsq:vec:bf16 | 0.8 | reason": what the row came to. The log says which case was running.
if [ "${1:-}" = --row ]; then
    row=$2 log=$WORK/rows/$2
    left=$((DEADLINE - $(date +%s)))
    [ $left -gt 0 ] || { echo "left-out $row | 0 | no time was left" >"$log.result"; exit 0; }
    limit=$ROW_LIMIT
    [ $left -ge $limit ] || limit=$left
    began=$(date +%s.%N)
    case $row in
    *:*) LLMC_TEST_ROW=$row LLMC_TEST_LADDERS=0 timeout -k 1 "$limit" "$TESTS/test_cuda_ops" "${row%%:*}" ;;
    *) LLMC_TEST_LADDERS=0 timeout -k 1 "$limit" "$TESTS/$row" ;;
    esac >"$log" 2>&1 </dev/null
    status=$?
    seconds=$(echo "$began $(date +%s.%N)" | awk '{ printf "%.1f", $2 - $1 }')
    last=$(grep '^# case ' "$log" | tail -n 1 | cut -c 8-)
    first=$(grep -E 'error|ERROR|: off by|should be|WRONG|Sanitizer|# .* is made for another' "$log" |
        grep -v -E '^ERROR: [0-9]* failures|\[  ERROR' | head -n 1)
    case $status in
    0)  verdict=pass reason=
        ! grep -q "^# ${row%:*} \(0 passed, 0 failed\|is made for another\)" "$log" || verdict=not-taken ;;
    124 | 137) verdict=HANG reason="no end after $limit s, in: ${last:-the start}" ;;
    1)  if grep -q '^\[  FAILED  \]' "$log"; then verdict=FAIL; else verdict=DEAD; fi
        reason=${first:-see the log} ;;
    *)  verdict=DEAD reason="status $status: ${first:-no message} in: ${last:-the start}" ;;
    esac
    echo "$verdict $row | $seconds | $reason" >"$log.result"
    exit 0
fi

only='1 2 3 4 5 6 7'
case ${1:-} in
--only) only=$(echo "${2:-}" | tr ',' ' ') ;;
'') ;;
*) sed -n '/^#!/d; /^# shellcheck/d; /^#/!q; p' "$0"; exit 2 ;;
esac
case $only in '' | *[!1-7\ ]*) echo "$0: --only takes stages from 1 to 7, such as 2,4"; exit 2 ;; esac

# --- where the programs are, and how large everything is ---

began=$(date +%s) LIMIT=${LIMIT:-570}
OUT=${OUT:-gpu-results}
mkdir -p "$OUT" && OUT=$(cd "$OUT" && pwd) || exit 1
WORK=$(mktemp -d) || exit 1
trap 'rm -rf "$WORK"' EXIT
trap 'exit 130' INT TERM HUP
summary=$OUT/summary.txt wrong=$WORK/wrong
: >"$summary"
python=${PYTHON:-python3}
cores=$(nproc)
build=${BUILD:-build}
bundle=
if [ -n "${SIM:-}" ]; then
    cd "$here/.." || exit 1
    TRAIN=${TRAIN:-$build/sim/plain/train_gpt} TESTS=$build/sim/plain/test/cuda ROW_LIMIT=8
    S2=60 S3=60 S4=60 S5=30 S6=90
    small='--layers 1 --heads 2 --channels 32 --context 32 --vocab-size 300'
    tiny=$small
    compare='--layers 1 --heads 2 --channels 32 --context 16 --vocab-size 300 --batch-size 2 --seq-len 8'
    twice="$small --batch-size 2" model_124m="$small --batch-size 2" model_1558m=$model_124m
    steps=6 shard_tokens=4000 vocabulary=300 repeats=1 shapes=
    ROWS=${ROWS:-'^(fill|cast|sumsq|act_forward):'} PROGRAMS=test_cuda_device
    torch="$small --batch-size 2 --seq-len 32 --steps 4 --device cpu --no-compile"
    export LLMC_TEST_SIZE=small
else
    if [ -x "$here/bin/train_gpt" ]; then
        bundle=1
        TRAIN=$here/bin/train_gpt BENCH=$here/bin/llmc-bench TESTS=$here/test
    else
        cd "$here/.." || exit 1
        TRAIN=$build/train_gpt BENCH=$build/bench TESTS=$build/cuda/test/cuda
    fi
    ROW_LIMIT=10
    S2=120 S3=60 S4=60 S5=60 S6=90
    tiny='--layers 1'
    compare='--model gpt2 --layers 2 --batch-size 2 --seq-len 256'
    twice='--model gpt2 --layers 2 --batch-size 8'
    model_124m='--model gpt2 --batch-size 64' model_1558m='--model gpt2-xl --batch-size 16'
    steps=40 shard_tokens=2800000 vocabulary=50257 repeats=10 shapes=gpt2 bench='--seconds 0.05'
    ROWS=${ROWS:-.} PROGRAMS='test_cuda_hopper test_cuda_fp8 test_cuda_ranges test_cuda_kernel test_cuda_device'
    torch='--model gpt2 --batch-size 64 --seq-len 1024 --vocab-size 50304 --steps 30'
    export LLMC_TEST_SIZE=large
fi
export WORK TESTS ROW_LIMIT GOMP_SPINCOUNT=1000 CMOCKA_MESSAGE_OUTPUT=STDOUT

# --- how a command runs ---

stage_begin() { # NUMBER NAME SECONDS
    stage=$OUT/$1-$2.txt
    : >"$stage"
    : >"$WORK/lines"
    stage_began=$(date +%s)
    DEADLINE=$((stage_began + $3))
    [ $DEADLINE -le $((began + LIMIT)) ] || DEADLINE=$((began + LIMIT))
    export DEADLINE
    echo "== $1 $2"
}
stage_end() { # LINES: at most so many of the stage's reach the last screen
    { echo "== ${stage##*/}: $(($(date +%s) - stage_began)) s"; cut -c 1-170 "$WORK/lines" | head -n "$1"; } >>"$summary"
    count=$(wc -l <"$WORK/lines")
    [ "$count" -le "$1" ] || echo "   ... $((count - $1)) more lines in $stage" >>"$summary"
    { echo; echo "--- in short"; cat "$WORK/lines"; } >>"$stage"
}
say() { echo "   $*" >>"$WORK/lines"; }
bad() { say "$*"; echo "$*" >>"$wrong"; }
left() { echo $((DEADLINE - $(date +%s))); }
# run NAME SECONDS COMMAND...: the output goes to $WORK/NAME and to the stage's file; sets status and seconds
run() {
    name=$1 limit=$2 output=$WORK/$1
    shift 2
    [ "$(left)" -ge "$limit" ] || limit=$(left)
    if [ "$limit" -lt 1 ]; then
        status=125 seconds=0
        echo "no time was left" >"$output"
    else
        start=$(date +%s.%N)
        timeout -k 2 "$limit" "$@" >"$output" 2>&1 </dev/null
        status=$?
        seconds=$(echo "$start $(date +%s.%N)" | awk '{ printf "%.1f", $2 - $1 }')
    fi
    { echo; echo "\$ $*"; cat "$output"; echo "[status $status, $seconds s]"; } >>"$stage"
    return $status
}
# reason: why the last command failed, in a line
reason() {
    case $status in
    124 | 137) echo "no end after $limit s" ;;
    125) echo "left out: no time was left" ;;
    *) line=$(grep -a -E -i 'error|differ|wrong' "$output" | head -n 1)
       echo "status $status: ${line:-$(tail -n 1 "$output")}" ;;
    esac
}
# watch_gpu FIELDS FILE ... watch_end: what nvidia-smi says of the GPU meanwhile, a line several times a second
watch_gpu() {
    [ -n "$full_clock" ] || return
    # nvidia-smi's own loop might keep its lines in a buffer until it is killed
    timeout 90 sh -c 'while nvidia-smi --query-gpu="$0" --format=csv,noheader,nounits; do sleep 0.05; done' \
        "$1" >"$2" 2>/dev/null &
    watcher=$!
}
watch_end() {
    [ -n "$full_clock" ] || return
    kill $watcher 2>/dev/null
    wait $watcher 2>/dev/null
}

# shard FILE: random tokens below $vocabulary, as llm.c stores them
shard() {
    LC_ALL=C awk -v n=$shard_tokens -v v=$vocabulary '
        function word(x, k) { for (k = 0; k < 4; k++) { printf "%c", x % 256; x = int(x / 256) } }
        BEGIN { srand(1); word(20240520); word(1); word(n); for (i = 0; i < 253; i++) word(0)
                for (i = 0; i < n; i++) { t = int(rand() * v); printf "%c%c", t % 256, int(t / 256) } }' >"$1"
    [ "$(wc -c <"$1")" -eq $((1024 + 2 * shard_tokens)) ]
}
data() {
    [ -s "$WORK/x_train.bin" ] || shard "$WORK/x_train.bin" || bad "this awk cannot write bytes: there is no data to train on"
    echo --data "$WORK/x_train.bin"
}
# rows of test_cuda_ops that are made for one architecture, as LLMC_VARIANT leaves them out
made_for_one() { awk '$2 > 0 { split($1, a, ":"); print a[1] ":-" a[2] }' "$WORK/rows.all" 2>/dev/null | sort -u; }

# --- the stages ---

variant= # what train() passes on as LLMC_VARIANT
# MHz, or nothing where there is no nvidia-smi
full_clock=$(timeout 5 nvidia-smi --query-gpu=clocks.max.sm --format=csv,noheader,nounits 2>/dev/null |
    sed -n '1s/^\([0-9]*\)$/\1/p')
no_room= # why nothing can be trained
room=$(df -Pk "$WORK" | awk 'NR == 2 { print int($4 / 1024) }')
[ "$room" -ge "${ROOM:-4000}" ] ||
    no_room="$WORK has room for $room MB, and trained models need ${ROOM:-4000}: set TMPDIR to another directory"
users_path=${LD_LIBRARY_PATH:-}
unusable= # why no program can use the GPU
find_libraries() {
    [ -n "$bundle" ] || return
    folders=$(PYTHON=$python sh "$here/run" 2>"$WORK/missing") || { unusable=$(sed 's/^error: //' "$WORK/missing"); return; }
    export LD_LIBRARY_PATH="$folders${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
}

stage1() {
    stage_begin 1 device 20
    run smi 5 nvidia-smi --format=csv,noheader \
        --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit,temperature.gpu
    if [ $status -eq 0 ]; then say "$(head -n 1 "$output")"; else say "nvidia-smi says nothing: $(reason)"; fi
    [ -z "$unusable" ] || bad "$unusable"
    run version 5 $TRAIN --version && sed 's/^/   /' "$output" | head -n 4 >>"$WORK/lines"
    run processor 2 sh -c "grep -m 1 'model name' /proc/cpuinfo; nproc; free -g"
    say "host: $(sed -n '1s/.*: //p' "$output"), $cores cores"
    watch_gpu clocks.sm,power.draw,temperature.gpu "$WORK/clocks"
    # profile measures both rates, each for 0.2 s on random numbers
    if [ -z "$unusable" ] && ! run rates 15 $TRAIN profile $tiny --device cuda --repeats 1; then
        unusable=$(reason)
        bad "the GPU cannot be used: $unusable"
    fi
    if [ -z "$unusable" ]; then
        say "$(sed -n 's/.* of the \(.*FLOP.s\) of matmul measured here; \(.*\)/matmul \1, \2, on random numbers/p' "$output")"
    fi
    watch_end
    if [ -n "$full_clock" ]; then
        awk -F ', *' -v full=$full_clock '$1 > top { top = $1 } $2 > power { power = $2 } $3 > hot { hot = $3 }
            END { if (!NR) exit
                  printf "   at work: %d of %d MHz at most, %.0f W, %d degrees C\n", top, full, power, hot
                  if (top < 0.85 * full) print "   the clock is held down, and every time below is that much too long" }' \
            "$WORK/clocks" >"$WORK/clock"
        cat "$WORK/clock" >>"$WORK/lines"
        ! grep -q 'held down' "$WORK/clock" || echo "the clock is held down" >>"$wrong"
        cat "$WORK/clocks" >>"$stage"
    fi
    [ -z "$no_room" ] || bad "$no_room"
    stage_end 16
}

list_rows() {
    run list 10 $TESTS/test_cuda_ops --rows && cp "$output" "$WORK/rows.all" || return
    grep -E "$ROWS" "$WORK/rows.all" >"$WORK/rows.list"
}
stage2() {
    stage_begin 2 ops $S2
    if ! list_rows; then
        bad "test_cuda_ops does not list its rows: $(reason)"
        stage_end 30
        return
    fi
    mkdir -p "$WORK/rows"
    threads=$((cores / 4))
    [ $threads -ge 1 ] || threads=1
    # those for one architecture first, then bf16, which training uses
    { sort -s -k 2,2nr "$WORK/rows.list" | awk '$2 > 0 { print $1 }'; awk '$2 == 0 && /:bf16 / { print $1 }' "$WORK/rows.list"
      echo "$PROGRAMS" | tr ' ' '\n'; awk '$2 == 0 && !/:bf16 / { print $1 }' "$WORK/rows.list"; } |
        OMP_NUM_THREADS=$threads OMP_WAIT_POLICY=passive xargs -P 4 -n 1 sh "$self" --row
    cat "$WORK"/rows/*.result | sort >"$WORK/results"
    for result in "$WORK"/rows/*.result; do
        { echo; echo "--- $(cat "$result")"; grep -v '^# case ' "${result%.result}" 2>/dev/null; } >>"$stage"
    done
    say "$(awk '{ n[$1]++ } END { printf "%d rows: %d pass, %d not taken, %d FAIL, %d DEAD, %d HANG, %d left out", NR,
        n["pass"], n["not-taken"], n["FAIL"], n["DEAD"], n["HANG"], n["left-out"] }' "$WORK/results")"
    say "slowest: $(sort -t '|' -k 2,2nr "$WORK/results" | head -n 3 | awk -F '[ |]+' '{ printf "%s %s s  ", $2, $3 }')"
    grep -E '^(FAIL|DEAD|HANG) ' "$WORK/results" | while IFS='|' read -r what _ why; do
        bad "$(printf '%-5s %-34s %s' "${what%% *}" "${what#* }" "${why# }")"
    done
    sed 's/^/   /' "$WORK/results" >>"$stage"
    stage_end 30
}

# train NAME SECONDS OPTION...: a run without validation in $WORK/NAME
train() {
    name=$1 limit=$2
    shift 2
    rm -rf "${WORK:?}/$name"
    run "$name.log" "$limit" env ${variant:+"LLMC_VARIANT=$variant"} $TRAIN "$@" $(data) --val-every 1000000 \
        --device cuda --out "$WORK/$name"
}
same() { # WHAT A B: the logs of two runs and their weights
    if cmp -s "$WORK/$2/log.jsonl" "$WORK/$3/log.jsonl" &&
        cmp -s "$WORK/$2"/step-*/model.safetensors "$WORK/$3"/step-*/model.safetensors; then
        say "$1: equal to the last bit"
    else
        step=$(diff "$WORK/$2/log.jsonl" "$WORK/$3/log.jsonl" | sed -n 's/^< .*"step":\([0-9]*\).*/\1/p' | head -n 1)
        bad "$1: DIFFERENT, from ${step:+step $step on}${step:-the weights on, not the losses}"
    fi
}
stage3() {
    stage_begin 3 compare $S3
    for dtype in fp32 bf16 fp8; do
        case $dtype in fp8) type='--dtype bf16 --matmul fp8' ;; *) type="--dtype $dtype" ;; esac
        run compare-$dtype 20 $TRAIN compare $compare --device cuda $type --steps 3
        if [ $status -eq 0 ]; then say "compare $dtype: $(tail -n 1 "$output"), $seconds s"; else
            bad "compare $dtype: $(grep -m 1 DIFFERS "$output" || reason)"; fi
    done
    if [ -n "$no_room" ]; then
        say "ten steps: left out: $no_room"
    elif train first 15 $twice --steps 10; then
        if train second 15 $twice --steps 10; then same "ten steps twice" first second; else bad "ten steps again: $(reason)"; fi
        if train eager 15 $twice --steps 10 --no-graph; then same "with and without a graph" first eager; else
            bad "ten steps without a graph: $(reason)"; fi
    else
        bad "ten steps: $(reason)"
    fi
    rm -rf "$WORK/first" "$WORK/second" "$WORK/eager"
    stage_end 10
}

# speed RUN: the median of its steps but the first quarter
speed() {
    # step, seconds, tokens and FLOPs per second
    sed -n '/"tokens_per_second"/s/[{}]*"[a-z_]*"://gp' "$WORK/$1/timing.jsonl" | tr ',' ' ' |
        awk -v n=$steps '$1 > n / 4' | sort -k 2,2n | awk '{ line[NR] = $0 }
        END { if (!NR) exit 1
              split(line[int((NR + 1) / 2)], a, " "); split(line[1], b, " ")
              printf "%.0f tokens/s, step %.2f ms (best %.2f, of %d), ", a[3], 1e3 * a[2], 1e3 * b[2], NR
              printf "MFU %.1f %% of 989 TFLOP/s", a[4] / 989e10 }'
}
stage4() {
    stage_begin 4 train-124M $S4
    run plan 5 $TRAIN plan $model_124m --device cuda
    say "plan: $(sed -n 's/^  total  *//p' "$output" | head -n 1)"
    if [ -n "$no_room" ]; then
        say "left out: $no_room"
        stage_end 12
        return
    fi
    watch_gpu memory.used "$WORK/used"
    if train 124M 40 $model_124m --steps $steps; then
        say "124M: $(speed 124M || echo 'no timing.jsonl'),$(tail -n 1 "$WORK/124M/log.jsonl" |
            sed 's/.*"loss":\([0-9.]*\).*/ last loss \1/')"
    else
        bad "124M: $(reason)"
        blame
    fi
    watch_end
    [ -z "$full_clock" ] || say "memory in use at most, with CUDA's own: $(sort -n "$WORK/used" | tail -n 1) MiB"
    rm -rf "$WORK/124M"
    train eager 20 $model_124m --steps $((steps / 2)) --no-graph && say "without a graph: $(speed eager)"
    rm -rf "$WORK/eager"
    stage_end 12
}
# Does it fail without the variants that are made for this architecture, too? If not, which one must be left out?
blame() {
    [ -s "$WORK/rows.all" ] || list_rows || return
    special=$(made_for_one | tr '\n' ',')
    [ -n "$special" ] || return
    variant=${special%,}
    if ! train without 15 $model_124m --steps 5; then
        say "with LLMC_VARIANT=$variant it fails, too: $(reason)"
        variant=
        return
    fi
    guilty=
    for variant in $(echo "$special" | tr ',' ' '); do
        ! train without 15 $model_124m --steps 5 || guilty="$guilty $variant"
    done
    LLMC_VARIANT=$(echo "${guilty:-$special}" | sed 's/^[ ,]*//; s/[ ,]*$//; s/ /,/g') variant=
    guilty=$(echo "$guilty" | sed 's/:-/:/g')
    bad "to blame is${guilty:- no single variant}: it runs with LLMC_VARIANT=$LLMC_VARIANT, and so does what follows"
    export LLMC_VARIANT
    rm -rf "$WORK/without"
}

# Milliseconds of a step of 124M, B=64, T=1024, in one micro-step on an H200. Products of matrices: their FLOPs at 560
# to 720 TFLOP/s by shape. Attention, loss: instructions of the compiled kernels (nvdisasm) per tile and scheduler. The
# others: the bytes of their contracts at 90 to 95 % of a copy rate of 4.3 TB/s. `gaps`: about 300 kernels of a graph,
# 1 us each.
predictions='matmul_forward 17.0
matmul_backward 34.9
head 21.7
attn_forward 4.1
attn_backward 8.6
loss 3.4
act 2.4
norm_forward 2.5
norm_backward 2.6
embed 0.2
update 0.95
gaps 0.35
step 99'
stage5() {
    stage_begin 5 profile $S5
    run profile 55 $TRAIN profile $model_124m --device cuda --repeats $repeats
    if [ $status -ne 0 ]; then
        bad "profile: $(reason)"
        stage_end 24
        return
    fi
    say "$(grep '^step ' "$output" | sed 's/; copy rate/\n   copy rate/')"
    { echo "$predictions"; cat "$output"; } | awk -v vocabulary=$vocabulary '
        NF == 2 && !seen { predicted[$1] = $2; order[++n] = $1; next }
        { seen = 1 }
        /^all operations/ { all = $3; next }
        /^[a-z_]+ .* [0-9.]+ +[0-9.]+ +[0-9.]+ +[0-9.]+ +[0-9.]+ +-?[0-9.]+$/ {
            op = $1
            width = $2
            sub(/.*->/, "", width)
            if ($2 ~ /->/ && width + 0 >= vocabulary && width < vocabulary + 128) op = "head"
            else if (op ~ /^(residual_)?norm_forward/) op = "norm_forward"
            else if (op ~ /^(act|embed|loss)_/) sub(/_.*/, "", op)
            else if (op ~ /^(adamw|sumsq|sum|fill|cast|randn)$/) op = "update"
            ms[op] += $(NF - 5)
        }
        /^step / { ms["step"] = $2 }
        END {
            ms["gaps"] = ms["step"] - all
            printf "   %-18s %10s %10s %7s\n", "milliseconds", "predicted", "measured", "ratio"
            for (i = 1; i <= n; i++) {
                o = order[i]
                printf "   %-18s %10.2f %10.2f %7.2f\n", o, predicted[o], ms[o], ms[o] / predicted[o]
            }
            for (o in ms) if (!(o in predicted)) printf "   %-18s %10s %10.2f\n", o, "-", ms[o]
        }' >>"$WORK/lines"
    sed -n '/^operation/,/^all/p' "$output" >"$WORK/profile.table"
    sed -n '2,6p' "$WORK/profile.table" | sed 's/^/   /' >>"$WORK/lines"
    stage_end 24
}

stage6() {
    stage_begin 6 peers $S6
    trainer=$here/train_torch.py
    [ -e "$trainer" ] || trainer=dev/reference/train_torch.py
    # with the libraries that it was made for, not the toolkit's
    torch_python="env LD_LIBRARY_PATH=$users_path $python"
    if run torch-version 15 $torch_python -c 'import torch, numpy; print(torch.__version__, torch.cuda.is_available())'; then
        run torch 70 $torch_python "$trainer" $torch
        if [ $status -eq 0 ]; then tail -n 2 "$output" | sed 's/^/   /' >>"$WORK/lines"; else say "PyTorch: $(reason)"; fi
    else
        say "PyTorch: left out, $python has no torch and numpy (PYTHON=...)"
    fi
    peer=$here/train_gpt2cu
    [ -x "$peer" ] || peer=${LLMC_DIR:-}/train_gpt2cu
    if [ -x "$peer" ]; then
        data >/dev/null
        run llm.c 40 "$peer" -e d12 -b 64 -d 65536 -x 20 -t 1024 -v 1000 -s 1000 -h 0 -n 0 -ge 1 \
            -i "$WORK/x_train.bin" -j "$WORK/x_train.bin"
        if [ $status -eq 0 ]; then say "llm.c: $(grep 'tok/s' "$output" | tail -n 1)"; else say "llm.c: $(reason)"; fi
    else
        say "llm.c: left out, neither $here nor LLMC_DIR has train_gpt2cu"
    fi
    stage_end 6
}

stage7() {
    stage_begin 7 further "$LIMIT"
    grep -E '^(FAIL|DEAD) .*:' "$WORK/results" 2>/dev/null | head -n 3 | while read -r _ row _; do
        command -v compute-sanitizer >/dev/null || { say "no compute-sanitizer here"; break; }
        run sanitizer 40 env LLMC_TEST_ROW=$row \
            compute-sanitizer --tool memcheck --print-limit 3 $TESTS/test_cuda_ops "${row%%:*}"
        say "memcheck $row: $(grep -m 1 -E '=========     (Invalid|at|Access)|ERROR SUMMARY' "$output")"
    done
    run autotune 60 $TRAIN profile $model_124m --device cuda --repeats $repeats --autotune off
    say "not autotuned: $(grep '^step ' "$output" || reason)"
    for matmul in bf16 fp8; do
        run 1558M-$matmul 50 $TRAIN profile $model_1558m --device cuda --repeats 5 --matmul $matmul
        say "1558M $matmul: $(grep '^step ' "$output" || reason)"
    done
    for op in $(awk 'NR > 1 && $1 != "all" { print $1 }' "$WORK/profile.table" 2>/dev/null | awk '!seen[$0]++' | head -n 3); do
        command -v ncu >/dev/null || { say "no ncu here"; break; }
        run ncu-$op 40 ncu --clock-control none --set full --nvtx --nvtx-include "$op/" --launch-count 1 \
            $TRAIN profile $model_124m --device cuda --repeats 1
        say "ncu $op: $(grep -E 'Duration|Memory Throughput .*%|SM Busy|Registers Per' "$output" |
            awk '{ printf "%s %s %s; ", $1, $(NF - 1), $NF }')"
    done
    if [ -n "${SIM:-}" ]; then # the simulated device takes minutes to flush its caches
        stage_end 14
        return
    fi
    run ladder 60 $BENCH --device cuda --shape $shapes --ladder $bench
    say "ladders: $([ $status -eq 0 ] && echo "in ${stage##*/}" || reason)"
    run bench 60 $BENCH --device cuda --shape $shapes --variant all $bench
    say "every variant alone: $([ $status -eq 0 ] && echo "in ${stage##*/}" || reason)"
    stage_end 14
}

find_libraries
late="" skipped=""
for number in $only; do
    if [ $(($(date +%s) - began)) -ge "$LIMIT" ]; then
        late="$late $number"
    elif [ -n "$unusable" ] && [ "$number" != 1 ] && [ "$number" != 6 ]; then
        skipped="$skipped $number"
    else
        stage$number
    fi
done
{
    [ -z "$late" ] || echo "== left out, because the $LIMIT s are used up: stages$late"
    [ -z "$skipped" ] || echo "== left out, because there is no GPU that the programs can use: stages$skipped"
    [ -z "${SIM:-}" ] || echo "SIMULATED DEVICE: nothing above is a measurement"
    printf '%s, stages %s, %d s, %s\n' "$(date -u '+%Y-%m-%d %H:%M UTC')" "$only" $(($(date +%s) - began)) \
        "$([ -s "$wrong" ] && echo "$(wc -l <"$wrong") things are WRONG" || echo 'nothing is wrong')"
} >>"$summary"
head -n 100 "$summary"
[ ! -s "$wrong" ]
