#!/bin/sh
# The folders of llmc/ are floors: a file includes its own folder and the folders below it, never one above or beside
# it. Each line of `floors` names a folder and what stands directly below; what is below that is below, too.
# Programs, benchmarks and tests stand on the roof: nothing in llmc/ includes them. And test/README.md names only files
# that exist.
#     test/test_layout.sh [DIR]     of another checkout
floors='
base
ops      base
cpu      ops
cuda     ops
text     base
stories  base
corpus   text stories
model    ops corpus
process  base
ranks    model process
format   ranks
report   ops
serve    format report
run      format report
cli      run serve'
cd "${1:-$(dirname "$0")/..}" || exit 1
echo 1..2
missing=
for f in $(grep -o '`[a-z]*/[a-z_/]*\.[ch]`' test/README.md 2>/dev/null | tr -d '`'); do
    [ -f "$f" ] || missing="$missing $f"
done
[ -z "$missing" ] && echo "ok 2 - the files that test/README.md names exist" || echo "not ok 2 - test/README.md names$missing"
grep -rHo '^ *#include "[^"]*"' llmc | sed 's/: *#include "/ /; s/"$//' | awk -v floors="$floors" '
    BEGIN {
        lines = split(floors, line, "\n")
        for (i = 1; i <= lines; i++) {
            words = split(line[i], word, " ")
            folder = word[1]
            below[folder, folder] = known[folder] = 1
            for (k = 2; k <= words; k++)
                for (f in known) if ((word[k], f) in below) below[folder, f] = 1
        }
    }
    {
        split($1, from, "/")
        split($2, to, "/")
        if (!(from[2] in known)) what = "is in a folder that test/test_layout.sh does not know"
        else if (to[1] != "llmc" || !(to[2] in known)) what = "includes \"" $2 "\", which is not in a folder of llmc/"
        else if (!((from[2], to[2]) in below)) what = "includes \"" $2 "\": llmc/" to[2] " is not below llmc/" from[2]
        else next
        print "# " $1 " " what
        bad = 1
    }
    END { print (bad ? "not ok" : "ok") " 1 - folders include only what is below them"; exit bad }'
[ $? = 0 ] && [ -z "$missing" ]
