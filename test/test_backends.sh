#!/bin/sh
# With CUDA=1 every program that opens a device must contain the CUDA back end: its --help names the back ends.
# `make test` has linked them into build/link by the lines that CUDA=1 uses, with the simulated back end as the archive;
# `make test-long` compiles with nvcc. Prints TAP.
#     test/test_backends.sh [DIR]
dir=${1:-${BUILD:-build}/link}
number=0 failed=0
for program in train_gpt bench scaling; do
    number=$((number + 1)) result=ok
    devices=$("$dir/$program" --help | sed -n 's/^Devices of this build: //p')
    [ "$devices" = 'cpu, cuda' ] || { result='not ok'; failed=1; }
    echo "$result $number - $program: ${devices:-names no device}"
done
echo "1..$number"
exit $failed
