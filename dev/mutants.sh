#!/bin/sh
# Mutation testing, `make mutants`: breaks the sources on purpose, one mistake at a time, and checks that a test
# notices. dev/mutants.txt lists the mistakes and describes its format.
#
# A mutant is a copy of one source with one mistake. It is compiled and linked before the library that holds the
# correct code, and then the test programs run until one fails. For a CUDA source that is the test on the simulated
# device, with threads in forward, reverse and random order and, if none of these fails, under ThreadSanitizer.
# Prints what noticed each mistake and ends with "N passed, N failed". A mistake that no test notices (ALIVE), one
# whose text is no longer found in the source, and one that does not compile count as failed.
#     sh dev/mutants.sh [WORD]        only the mistakes whose file, test or description contains WORD
#     sh dev/mutants.sh --check       compiles nothing: are all texts found? Prints TAP (make test runs it)
# The Makefile passes BUILD, and for the kinds of build host, plain and tsan (the last two of the simulated device):
# COMPILE_kind, LINK_kind, LIBS_kind. Without COMPILE_plain, the mistakes in CUDA sources are skipped. JOBS mutants
# are tried at a time.
set -u
: "${JOBS:=$(nproc)}" # which obeys OMP_NUM_THREADS
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive CMOCKA_MESSAGE_OUTPUT=STDOUT LLMC_TEST_LADDERS=0
export TSAN_OPTIONS=halt_on_error=1 # the first race is enough

# edit SOURCE <EDITS: prints the changed source; a text that is not found goes to stderr
edit() {
    awk -v source="$1" '
        function give_up(what) {
            print what ": " $0 >"/dev/stderr"
            failed = 1
            exit 1
        }
        BEGIN { while ((getline line <source) > 0) text = text line "\n" }
        {
            old = $0
            replaces = sub(/ =>( .*)?$/, "", old)
            if (!replaces) sub(/^after /, "", old)
            found = index(substr(text, at + 1), old)
            if (!found) give_up("NOT FOUND")
            if (replaces && !at && index(substr(text, found + 1), old)) give_up("FOUND TWICE")
            at += found - 1 # where `old` begins, from 0
        }
        replaces {
            text = substr(text, 1, at) substr($0, length(old) + 5) substr(text, at + length(old) + 1)
            at = 0
            next
        }
        { at += length(old) }
        END { if (!failed) printf "%s", text }'
}

# build KIND PROGRAM: links the mutant before the library with the source that it was made from
build() {
    eval "compile=\$COMPILE_$1 link=\$LINK_$1 libs=\$LIBS_$1"
    main=$BUILD/$2.o
    case $unit in "$2".*) main= ;; esac # the unit is the test program itself
    { eval "$compile -iquote $tree -c $tree/$unit -o $tree/mutant.o" &&
        $link -o "$tree/test_$1" "$tree/mutant.o" $main $libs; } >"$tree/log" 2>&1
}

# fails KIND PATTERN NAME=VALUE...: the simulated device ends a kernel that hangs. A run that is cut off has not failed.
fails() {
    kind=$1 pattern=$2
    shift 2
    noticed_by="$kind${*:+ $*}"
    env SIM_TIMEOUT=60 "$@" timeout 300 "$tree/test_$kind" ${pattern:+"$pattern"} >"$tree/log" 2>&1
    case $? in
    0) return 1 ;;
    124) result="ALIVE; cut off after 300 s: $noticed_by" && return 1 ;;
    esac
}

# Tries one program: 0 if it notices the mutant, 1 if not, 2 if there is nothing to run.
try() {
    case $1 in
    test/cuda/*) ;;
    *)
        build host "$1" || return 2
        fails host "$2" && noticed_by=$1
        return
        ;;
    esac
    build plain "$1" || return 2
    for order in forward reverse random "random SIM_SEED=2" "random SIM_SEED=3"; do
        fails plain "$2" SIM_ORDER=$order && return
    done
    build tsan "$1" || return 2
    fails tsan "$2" SIM_ORDER=forward
}

# One mutant from its own file: source, unit, tests, description, edits, a line each.
try_one() {
    tree=$1.tree
    { read -r source && read -r unit && read -r tests && read -r what; } <"$1"
    mkdir -p "$tree/${source%/*}" "$tree/${unit%/*}"
    result=ALIVE
    [ "$unit" = "$source" ] || cp "$unit" "$tree/$unit"
    if ! message=$(tail -n +5 "$1" | edit "$source" 2>&1 >"$tree/$source"); then
        result=$message
    else
        set -f
        IFS=,
        for test in $tests; do
            IFS=' '
            set -- "$1" $test
            try "$2" "${3:-}"
            case $? in
            0) result="killed by $noticed_by" ;;
            2) result="DOES NOT COMPILE$(printf '\n' && cat "$tree/log")" ;;
            *) continue ;;
            esac
            break
        done
    fi
    printf '%-32s %-56s %s\n' "${source#llmc/}" "$what" "$result"
    rm -rf "$tree"
}

# list DIR WORD DEVICE: a file for each mistake, as try_one reads it, and one with all programs
list() {
    awk -v dir="$1" -v word="$2" -v device="$3" '
        /^#|^$/ { next }
        /^\[/ {
            split(substr($0, 2, index($0, "]") - 2), name, " in ")
            tests = substr($0, index($0, "]") + 2)
            usable = device || tests !~ /^test\/cuda/
            next
        }
        /^    / { if (wanted) print substr($0, 5) >file; next }
        {
            wanted = index(name[1] " " tests " " $0, word) > 0
            if (wanted && !usable) skipped++
            wanted = wanted && usable
            if (!wanted) next
            if (file) close(file)
            file = sprintf("%s/%04d", dir, ++count)
            printf "%s\n%s\n%s\n%s\n", name[1], name[2] ? name[2] : name[1], tests, $0 >file
            programs[tests] = 1
        }
        END {
            for (tests in programs) print tests >(dir "/programs")
            if (skipped) print skipped " mistakes in CUDA sources are left out: the simulated device is not built"
        }' dev/mutants.txt
}

check() {
    list "$dir" "" 1
    for mutant in "$dir"/[0-9]*; do
        { read -r source && read -r unit && read -r tests && read -r what; } <"$mutant"
        message=$(tail -n +5 "$mutant" | edit "$source" 2>&1 >/dev/null) && continue
        echo "# dev/mutants.txt, $source, $what: $message"
        wrong=1
    done
    echo 1..1
    echo "${wrong:+not }ok 1 - every mistake of dev/mutants.txt fits its source"
}

if [ "${1:-}" = --one ]; then
    try_one "$2"
    exit 0
fi

dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
if [ "${1:-}" = --check ]; then
    check
    exit 0
fi
list "$dir" "${1:-}" "${COMPILE_plain:+1}"

# Without a mistake everything must pass; otherwise a kill means nothing.
[ -s "$dir/programs" ] || { echo "no mistake contains '${1:-}'"; exit 1; }
tr ',' '\n' <"$dir/programs" | sed 's/^ *//' | sort -u | while read -r program pattern; do
    case $program in test/cuda/*) program=sim/plain/$program ;; esac
    "$BUILD/$program" ${pattern:+"$pattern"} >"$dir/log" 2>&1 && continue
    tail -n 20 "$dir/log"
    echo "$program $pattern fails without a mistake: mend that first"
    exit 1
done || exit 1

ls "$dir"/[0-9]* | xargs -P "$JOBS" -n 1 sh "$0" --one | tee "$dir/results"
passed=$(grep -c 'killed by' "$dir/results")
failed=$(($(ls "$dir"/[0-9]* | wc -l) - passed))
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
