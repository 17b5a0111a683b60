#!/bin/sh
# Tests the simulated device: every deliberate bug of bugs.cu must be noticed by the detectors listed for
# it, and no detector may complain about the correct cases. Detectors whose program is not built are left out: `make test`
# builds the plain program and that for ThreadSanitizer, `make SANITIZE=1 test` that for AddressSanitizer. Prints TAP.
#     [ALL=1] [BUILD=build] test/sim/test_sim_bugs.sh [CASE...]      ALL=1: lists all detectors that noticed
: "${BUILD:=build}"
plain=$BUILD/sim/plain/test/sim/bugs asan=$BUILD/sim/asan/test/sim/bugs tsan=$BUILD/sim/tsan/test/sim/bugs
built=
[ -x "$plain" ] && list=$plain built="$built forward reverse random lazy protect"
[ -x "$asan" ] && list=$asan built="$built asan"
[ -x "$tsan" ] && list=$tsan built="$built tsan"
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# noticed PROGRAM CASE: did it fail with a detector's message? A case that cannot run at all has not.
noticed() {
    timeout 60 "$@" >"$log" 2>&1 && return 1
    grep -Eq 'SIM ERROR|AddressSanitizer|ThreadSanitizer|runtime error|wrong result' "$log"
}

detect() { # DETECTOR CASE
    case $1 in
    forward) noticed "$plain" "$2" ;;
    reverse) SIM_ORDER=reverse noticed "$plain" "$2" ;;
    random) for seed in 1 2 3 4 5 6; do
                SIM_ORDER=random SIM_SEED=$seed noticed "$plain" "$2" && return 0; done; return 1 ;;
    lazy) for seed in 1 2 3; do
              SIM_LAZY=1 SIM_SEED=$seed noticed "$plain" "$2" && return 0; done; return 1 ;;
    protect) SIM_PROTECT=1 noticed "$plain" "$2" ;;
    asan) noticed "$asan" "$2" ;;
    tsan) noticed "$tsan" "$2" ;;
    esac
}

number=0
report() { # RESULT TEXT
    number=$((number + 1))
    echo "$1 $number - $2"
}

while read -r name detectors; do
    [ $# -gt 0 ] && case " $* " in *" $name "*) ;; *) continue ;; esac
    who= wanted=
    for d in $detectors; do
        case "$built " in *" $d "*) wanted="$wanted $d" ;; esac
    done
    everybody=$wanted
    [ -z "$detectors" ] || [ -n "$ALL" ] && everybody=$built
    for d in $everybody; do
        # a loop that never ends costs a second each time: once is enough
        [ "$name" = endless_loop ] && [ $d != forward ] && continue
        detect $d "$name" && who="$who $d"
    done
    [ -n "$ALL" ] && echo "# $name:${who:- nobody}"
    if [ -z "$detectors" ]; then
        [ -z "$who" ] && report ok "$name is right" || report "not ok" "$name is right, but:$who"
    fi
    for d in $wanted; do
        case "$who " in *" $d "*) report ok "$name: $d" ;; *) report "not ok" "$name: $d" ;; esac
    done
done <<LIST
$("$list" list)
LIST
echo "1..$number"
