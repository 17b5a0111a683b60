#!/bin/sh
# Runs each test of a program by itself, then all of them in reverse and in a random order: a test must not need what
# another one leaves behind. Prints TAP. `make test-alone` does this with every program.
#     test/alone.sh PROGRAM
program=$1 seed=$(date +%j) number=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT

try() { # WHAT ARGUMENT...
    what=$1
    shift
    number=$((number + 1))
    "$program" "$@" >"$log" 2>&1 && echo "ok $number - $what" && return
    echo "not ok $number - $what"
    sed 's/^/# /' "$log"
}

for test in $("$program" --list); do try "$test alone" "$test"; done
try "in reverse order" --reverse
try "in random order: --shuffle $seed" --shuffle "$seed"
echo "1..$number"
