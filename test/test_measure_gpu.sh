#!/bin/sh
# profiling/measure_gpu.sh on the simulated device: every stage passes; with a wrong result, an illegal address and a hang
# planted in operations, a trainer that dies in one variant, and a clock that is held down, it ends in time and says so;
# with CUDA libraries that are missing or of another version it says which, and goes on with what needs none. Prints TAP.
#     [BUILD=build] test/test_measure_gpu.sh
cd "$(dirname "$0")/.." || exit 1
root=$PWD
export BUILD="${BUILD:-build}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
number=0 failed=0
ok() { # STATUS WHAT [FILE]
    number=$((number + 1))
    if [ "$1" -eq 0 ]; then echo "ok $number - $2"; else echo "not ok $number - $2"; sed 's/^/# /' "${3:-/dev/null}"; failed=1; fi
}
expect() { # FILE PATTERN...: each stands in the file
    file=$1
    shift
    for pattern in "$@"; do
        grep -q -e "$pattern" "$file"
        ok $? "says: $pattern" "$file"
    done
}
refuse() { # FILE PATTERN
    ! grep -q -e "$2" "$1"
    ok $? "does not say: $2" "$1"
}

mkdir "$work/no"
printf '#!/bin/sh\nexit 9\n' >"$work/no/nvidia-smi" # this machine's GPU is not asked
chmod +x "$work/no/nvidia-smi"
PATH=$work/no:$PATH
SIM=1 OUT=$work/good PYTHON=/nonexistent sh profiling/measure_gpu.sh >"$work/good.txt" 2>&1
ok $? "all is well on the simulated device" "$work/good.txt"
expect "$work/good.txt" 'matmul .*copy rate .*random numbers' ' 0 FAIL, 0 DEAD, 0 HANG, 0 left out' 'compare fp8: .* 0 differ' \
    'ten steps twice: equal to the last bit' 'with and without a graph: equal' '124M: [1-9][0-9]* tokens/s, step [0-9.]* ms (best [0-9.]*, of [45]), MFU 0.0 %.* last loss [5-6][.]' \
    'attn_backward *8.60 *[0-9.]* ' '1558M fp8: step' 'PyTorch: left out' 'nothing is wrong'
[ "$(find "$work/good" -type f | wc -l)" -eq 8 ]
ok $? "a file for each stage, and the summary"

# A trainer that runs only without attn_backward:hopper, and a GPU whose clock is held down.
mkdir "$work/bin"
cat >"$work/bin/trainer" <<'END'
#!/bin/sh
case "$*:${LLMC_VARIANT:-}" in
*--data*:*attn_backward:-hopper*) ;;
*--data*) echo "error: attn_backward: an illegal memory access was encountered"; exit 1 ;;
esac
exec "$BUILD/sim/plain/train_gpt" "$@"
END
cat >"$work/bin/nvidia-smi" <<'END'
#!/bin/sh
case "$*" in
*name*) echo "NVIDIA Test, 580.1, 143771 MiB, 1980 MHz, 700.00 W, 40" ;;
*clocks.max.sm*) echo 1980 ;;
*clocks.sm*) echo "345, 210.0, 45" ;;
*memory.used*) echo 30123 ;;
esac
END
chmod +x "$work"/bin/*
start=$(date +%s)
PATH=$work/bin:$PATH SIM=1 OUT=$work/bad TRAIN=$work/bin/trainer ROWS='^(fill|cast|sumsq):' PROGRAMS='' \
    LLMC_TEST_FAULT=fill:vec:bf16=wrong,cast:vec:fp32=illegal,sumsq:vec:bf16=hang \
    sh profiling/measure_gpu.sh --only 1,2,3,4,5 >"$work/bad.txt" 2>&1
[ $? -eq 1 ] && [ $(($(date +%s) - start)) -lt 120 ]
ok $? "with faults it ends in time, and with status 1" "$work/bad.txt"
expect "$work/bad.txt" 'at work: 345 of 1980 MHz' 'the clock is held down' '1 FAIL, 1 DEAD, 1 HANG, 0 left out' \
    'FAIL  fill:vec:bf16 .*should be exactly' 'DEAD  cast:vec:fp32 .*0x1000, is not device memory' \
    'HANG  sumsq:vec:bf16 .*no end after 8 s' 'compare bf16: .* 0 differ' \
    'ten steps: status 1: error: attn_backward: an illegal' '124M: status 1: error: attn_backward: an illegal' \
    'memory in use at most, .*: 30123 MiB' 'to blame is attn_backward:hopper: it runs with' \
    'attn_forward *4.10 *[0-9.]* ' '7 things are WRONG'
refuse "$work/bad.txt" 'to blame is.*attn_forward'
[ "$(sed -n '/^== 1-/,$p' "$work/bad.txt" | wc -l)" -le 100 ]
ok $? "the last screen has at most 100 lines"

# A bundle that does not find its libraries.
mkdir -p "$work/b/bin" "$work/b/lib" "$work/b/test" "$work/cuda"
cp profiling/measure_gpu.sh "$work/b/"
cp dev/run_bundle.sh "$work/b/run"
printf '#!/bin/sh\necho started: "$0" "$@" $LD_LIBRARY_PATH\n' | tee "$work/b/bin/train_gpt" >"$work/b/test/test_x"
chmod +x "$work/b/bin/train_gpt" "$work/b/test/test_x"
echo libcublasLt.so.99 >"$work/b/lib/cuda"
touch "$work/cuda/libcublasLt.so.12"
cd "$work" || exit 1
OUT=$work/none PYTHON=/nonexistent sh b/measure_gpu.sh >"$work/none.txt" 2>&1
expect "$work/none.txt" 'libcublasLt.so.99 of CUDA 99 is not found' 'can use: stages 2 3 4 5 7' 'PyTorch: left out' \
    '1 things are WRONG'
LD_LIBRARY_PATH=$work/cuda PYTHON=/nonexistent sh b/run train_gpt >"$work/other.txt" 2>&1
expect "$work/other.txt" 'libcublasLt.so.99 of CUDA 99 is not found; .*/cuda has that of another CUDA version: install'
touch "$work/cuda/libcublasLt.so.99"
LD_LIBRARY_PATH=$work/cuda sh b/run train_gpt a 'b c' >"$work/found.txt" 2>&1
expect "$work/found.txt" "^started: .*b/bin/train_gpt a b c $work/cuda"
LD_LIBRARY_PATH=$work/cuda sh b/run test_x >"$work/found.txt" 2>&1
expect "$work/found.txt" '^started: .*b/test/test_x'

# No GPU that this build can use, and no room: what needs neither goes on.
cd "$root" || exit 1
printf '#!/bin/sh\necho "error: --device cuda:0: this program was built for another GPU architecture"; exit 1\n' >"$work/bin/trainer"
SIM=1 OUT=$work/arch TRAIN=$work/bin/trainer PYTHON=/nonexistent sh profiling/measure_gpu.sh --only 1,2,6 \
    >"$work/arch.txt" 2>&1
expect "$work/arch.txt" 'the GPU cannot be used: .*another GPU architecture' 'can use: stages 2$' 'PyTorch: left out'
SIM=1 OUT=$work/room ROOM=1000000000 sh profiling/measure_gpu.sh --only 1,3,4 >"$work/room.txt" 2>&1
expect "$work/room.txt" 'has room for [0-9]* MB, and trained models need' 'ten steps: left out' 'compare bf16: .* 0 differ'
echo "1..$number"
exit $failed
