#!/bin/sh
# Compiles CUDA sources for several architectures and reads what ptxas says of them. An error ends it; so does, with the
# kernel's name, what costs a kernel its speed in silence: wgmma that the compiler serialises (the messages C75xx are no
# warnings, so that -Werror does not see them), and, in llmc/cuda, registers that are spilled to memory.
#     NVCC="nvcc and its flags" [BUILD=build] dev/cuda_all.sh "80 90a" FILE...        `make cuda-all`
set -u
archs=$1
shift
mkdir -p "${BUILD:=build}"
log=$BUILD/cuda-all.log
for arch in $archs; do
    for file in "$@"; do
        # shellcheck disable=SC2086
        if ! $NVCC -Xptxas -v -gencode "arch=compute_$arch,code=sm_$arch" -c "$file" -o "$BUILD/cuda-all.o" >"$log" 2>&1; then
            grep -v '^ptxas info' "$log"
            exit 1
        fi
        awk -v file="$file" -v arch="sm_$arch" '
            /Compiling entry function/ { split($0, part, "\047"); kernel = part[2] }
            /Function properties for/ { kernel = $NF }
            /C75[0-9][0-9]/ && (file ~ /^llmc/ || /serialized/) { print file ", " arch ": " $0; bad = 1 }
            /bytes spill/ && !/ 0 bytes spill stores, 0 bytes spill loads/ && file ~ /^llmc/ {
                sub(/^ */, ""); print file ", " arch ", " kernel ": " $0; bad = 1 }
            END { exit bad }' "$log" || failed=1
    done
    echo "sm_$arch: $# files"
done
rm -f "$BUILD/cuda-all.o" "$log"
exit "${failed:-0}"
