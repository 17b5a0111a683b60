#!/bin/sh
# With CUDA=1 every program that opens a device must contain the CUDA back end: its --help names the back ends.
# `make test` links the programs by the rules of CUDA=1 with the simulated back end as the archive (LINKED=sim),
# `make test-long` with nvcc's. The architecture to compile for is the GPU's, and never an error message. Prints TAP.
#     [BUILD=build] [LINKED=sim|nvcc] test/test_backends.sh
dir=${BUILD:-build}/backends/${LINKED:-sim}
number=0 failed=0
for program in train_gpt bench scaling; do
    number=$((number + 1)) result=ok
    devices=$("$dir/$program" --help | sed -n 's/^Devices of this build: //p')
    [ "$devices" = 'cpu, cuda' ] || result='not ok' failed=1
    echo "$result $number - $program: ${devices:-names no device}"
done
smi=$(mktemp -d)
trap 'rm -rf "$smi"' EXIT
while IFS='|' read -r says arch; do
    number=$((number + 1)) result=ok
    printf '#!/bin/sh\necho "%s"\n' "$says" >"$smi/nvidia-smi" && chmod +x "$smi/nvidia-smi"
    config=$(PATH=$smi:$PATH make --no-print-directory -C "$(dirname "$0")/.." config CUDA=1 NVCC=: 2>&1)
    echo "$config" | grep -q "for sm_$arch\$" || result='not ok' failed=1
    echo "$result $number - nvidia-smi says $says: sm_$arch"
done <<END
9.0|90a
8.9|89
12.0|120
NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.|90a
Failed to initialize NVML: Driver/library version mismatch|90a
No devices were found|90a
[N/A]|90a
END
echo "1..$number"
exit $failed
