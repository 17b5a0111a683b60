#!/bin/bash
# `make install` into a directory: the programs run and say their version, the manual page has every option of every
# command, the completions complete, and `make uninstall` leaves nothing. Prints TAP.
#     [BUILD=build] test/test_install.sh
cd "$(dirname "$0")/.." || exit 1
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
number=0 failed=0
report() { # STATUS WHAT
    number=$((number + 1))
    if [ "$1" -eq 0 ]; then echo "ok $number - $2"; else echo "not ok $number - $2" && failed=1; fi
}
installed() { make --no-print-directory BUILD="${BUILD:-build}" DESTDIR="$root" PREFIX=/usr "$1" 2>&1; }
# shellcheck disable=SC2086
complete_words() { # FUNCTION WORD...: what completes the last word
    local function=$1
    shift
    COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
    $function 2>/dev/null # compopt works only during a completion
    echo "${COMPREPLY[*]}"
}
expect() { # WANTED FUNCTION WORD...
    local wanted=$1 got
    shift
    got=$(complete_words "$@")
    [ "$got" = "$wanted" ]
    report $? "$* is completed by: ${got:-nothing}"
}

installed install
for program in train_gpt llmc-prepare llmc-stories; do
    "$root/usr/bin/$program" --version | grep -q "^$program [0-9.]*, commit [0-9a-z-]*$"
    report $? "$program --version"
    page=$root/usr/share/man/man1/$program.1
    commands=' '
    [ $program = train_gpt ] && commands=$(sed -n 's/^\.SH COMMAND //p' "$page")
    for command in $commands; do
        COLUMNS=80 "$root/usr/bin/$program" $command --help
    done >"$root/help"
    [ $program = train_gpt ] || "$root/usr/bin/$program" --help >"$root/help"
    missing=$(grep -o '^  --[^ ,]*' "$root/help" | sed 's/^  --\(\[no-\]\)\{0,1\}//' | sort -u | while read -r option; do
        sed 's/\\//g' "$page" | grep -q -e "--\(\[no-\]\)\{0,1\}$option\(fR\|\.\| \|$\)" || echo "$option"
    done)
    [ "$(wc -l <"$root/help")" -gt 10 ] && [ -z "$missing" ]
    report $? "$program.1 has every option${missing:+ but }$missing"
    if command -v man >/dev/null; then
        [ -z "$(LC_ALL=C man -l --warnings "$page" 2>&1 >"$root/page")" ] && grep -q "$program" "$root/page"
        report $? "$program.1 is formatted without warnings"
    fi
    if command -v zsh >/dev/null; then
        zsh -n "$root/usr/share/zsh/site-functions/_$program"
        report $? "_$program is zsh"
    fi
    . "$root/usr/share/bash-completion/completions/$program"
done
[ "$(grep -c '^\.SH COMMAND' "$root/usr/share/man/man1/train_gpt.1")" -ge 8 ]
report $? "train_gpt.1 has the commands"
expect sample _train_gpt train_gpt sa
expect "--prompt --prompt-file" _train_gpt train_gpt sample --prom
expect "auto fp32 bf16" _train_gpt train_gpt --dtype ""
expect bf16 _train_gpt train_gpt train --dtype = b
expect plan _train_gpt train_gpt help pl
expect --no-shuffle _train_gpt train_gpt plan --no-sh
expect "" _train_gpt train_gpt --steps ""
expect Makefile _train_gpt train_gpt --text Makef
expect "--tokenizer --tokenizer-text" _llmc-prepare llmc-prepare --token
expect Makefile _llmc-prepare llmc-prepare Makef
installed uninstall
left=$(find "$root/usr" -type f)
report "$([ -z "$left" ]; echo $?)" "uninstall removes every file${left:+ but }$left"
echo "1..$number"
exit $failed
