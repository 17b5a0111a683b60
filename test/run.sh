#!/bin/sh
# Runs test programs, cmocka's or others that print TAP, and shows what failed. Ends with "N passed, N failed". The tests
# that a program has planned but not reported, because it died, count as failed.
#     test/run.sh [NAME=VALUE | PROGRAM]...
# An assignment holds for the programs after it, until the next assignment to the same name; NAME= removes it. JOBS: how many
# programs run at a time. PREFIX: a command that starts each program. V=1: show all output.
cores=$(nproc 2>/dev/null || echo 2) # this obeys OMP_NUM_THREADS
: "${BUILD:=build}" "${JOBS:=$((cores + 1))}" # some programs only wait for processes, sockets and time-outs
export BUILD V PREFIX CMOCKA_MESSAGE_OUTPUT=TAP
# Two threads show what threads can show. More than there are cores make OpenMP's barriers a thousand times slower, and
# threads that spin at a barrier take the core from those that they wait for.
: "${OMP_NUM_THREADS:=$((cores < 2 ? cores : 2))}" "${OMP_WAIT_POLICY:=passive}"
export OMP_NUM_THREADS OMP_WAIT_POLICY

# One program, its settings in front: its block of the report, and a line "passed failed" for the sum.
run_one() {
    log=$work/$$.log
    settings=
    while [ $# -gt 1 ]; do
        export "$1"
        settings="$settings${settings:+ }$1"
        shift
    done
    start=$(date +%s)
    $PREFIX "$1" >"$log" 2>&1 </dev/null
    status=$?
    ok=$(grep -c '^ok ' "$log")
    skipped=$(grep -c '^not ok .*# SKIP' "$log") # so cmocka writes it
    bad=$(($(grep -c '^not ok ' "$log") - skipped))
    planned=$(sed -n 's/^1\.\.\([0-9]*\).*/\1/p' "$log" | awk '{ n += $1 } END { print n + 0 }')
    [ $((ok + bad + skipped)) -lt "$planned" ] && bad=$((planned - ok - skipped))
    [ $status -ne 0 ] && [ $bad -eq 0 ] && bad=1
    [ $status -eq 0 ] && [ $((ok + bad + skipped)) -eq 0 ] && bad=1 # a test program that tests nothing
    {
        printf '%-36s %3d passed' "${1#"$BUILD"/}" "$ok"
        [ "$skipped" -gt 0 ] && printf ', %d skipped' "$skipped"
        [ -n "$settings" ] && printf ' [%s]' "$settings"
        [ $bad -gt 0 ] && printf ', %d FAILED (exit status %d)' "$bad" $status
        printf '  %ds\n' $(($(date +%s) - start))
        if [ -n "$V" ] || [ $bad -gt 0 ]; then tail -n 200 "$log" | sed 's/^/    /'; fi
    } >"$work/$$.report"
    cat "$work/$$.report"
    echo "$ok $bad" >>"$work/sums"
}

if [ "${1:-}" = --one ]; then
    shift
    run_one "$@"
    exit 0
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export work
settings=
for argument in "$@"; do
    case $argument in
    *=*)
        settings=$(echo "$settings" | tr ' ' '\n' | grep -v "^${argument%%=*}=" | tr '\n' ' ')
        [ -n "${argument#*=}" ] && settings="$settings $argument" ;;
    *) echo $settings "$argument" ;;
    esac
done >"$work/list"
[ -s "$work/list" ] || { echo "no test programs given"; exit 1; }
xargs -P "$JOBS" -L 1 sh "$0" --one <"$work/list"
ran=$(cat "$work/sums" 2>/dev/null | wc -l)
awk -v lost=$(($(wc -l <"$work/list") - ran)) '{ passed += $1; failed += $2 }
    END { printf "%d passed, %d failed\n", passed, failed + lost; exit failed + lost > 0 }' "$work/sums"
