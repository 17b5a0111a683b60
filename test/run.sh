#!/bin/sh
# Runs test programs (cmocka, or anything that prints TAP) one after another, shows what failed, and ends with
# "N passed, N failed". A program that dies counts its unreported tests, at least one, as failed.
#     test/run.sh [NAME=VALUE | PROGRAM]...     V=1: show everything that the programs print
# An assignment holds for the programs that stand after it, up to the next assignment to that name.
: "${BUILD:=build}"
passed=0 failed=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT
export CMOCKA_MESSAGE_OUTPUT=TAP
# Threads beyond the cores make OpenMP's barriers a thousand times slower.
: "${OMP_NUM_THREADS:=$(nproc 2>/dev/null || echo 2)}"
export OMP_NUM_THREADS
# Threads that spin at a barrier take the core from the thread they wait for when anything else runs.
: "${OMP_WAIT_POLICY:=passive}"
export OMP_WAIT_POLICY
settings=
for program in "$@"; do
    case $program in *=*)
        export "$program"
        settings=$(echo "$settings" | tr ' ' '\n' | grep -v "^${program%%=*}=")
        if [ -n "${program#*=}" ]; then settings="$settings $program"; else unset "${program%%=*}"; fi
        settings=$(echo $settings)
        continue ;;
    esac
    start=$(date +%s)
    $PREFIX "$program" >"$log" 2>&1 </dev/null
    status=$?
    ok=$(grep -c '^ok ' "$log")
    skipped=$(grep -c '^not ok .*# SKIP' "$log") # so cmocka writes it
    bad=$(($(grep -c '^not ok ' "$log") - skipped))
    planned=$(sed -n 's/^1\.\.\([0-9]*\).*/\1/p' "$log" | awk '{ n += $1 } END { print n + 0 }')
    [ $((ok + bad + skipped)) -lt "$planned" ] && bad=$((planned - ok - skipped))
    [ $status -ne 0 ] && [ $bad -eq 0 ] && bad=1
    [ $status -eq 0 ] && [ $((ok + bad + skipped)) -eq 0 ] && bad=1 # a test program that tests nothing
    passed=$((passed + ok)) failed=$((failed + bad))
    printf '%-36s %3d passed' "${program#"$BUILD"/}" "$ok"
    [ "$skipped" -gt 0 ] && printf ', %d skipped' "$skipped"
    [ -n "$settings" ] && printf ' [%s]' "$settings"
    [ $bad -gt 0 ] && printf ', %d FAILED (exit status %d)' "$bad" $status
    printf '  %ds\n' $(($(date +%s) - start))
    if [ -n "$V" ] || [ $bad -gt 0 ]; then tail -n 200 "$log" | sed 's/^/    /'; fi
done
echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
