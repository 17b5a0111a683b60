#!/bin/sh
# With CUDA=1 every program that opens a device must contain the CUDA back end: its --help names the back ends.
# `make test` links the programs by the rules of CUDA=1 with the simulated back end as the archive (LINKED=sim),
# `make test-long` with nvcc's. Prints TAP.
#     [BUILD=build] [LINKED=sim|nvcc] test/test_backends.sh
dir=${BUILD:-build}/backends/${LINKED:-sim}
number=0 failed=0
for program in train_gpt bench scaling; do
    number=$((number + 1)) result=ok
    devices=$("$dir/$program" --help | sed -n 's/^Devices of this build: //p')
    [ "$devices" = 'cpu, cuda' ] || result='not ok' failed=1
    echo "$result $number - $program: ${devices:-names no device}"
done
echo "1..$number"
exit $failed
