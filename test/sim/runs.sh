# Shared by the tests that train on simulated GPUs; sourced. They set `work`, a folder with NAME.out and the run NAME/, and
# `name`, the latest one.
losses() { sed -n 's/.*"\(loss\|val_loss\)":\([0-9.e+-]*\).*/\2/p' "$work/$1/log.jsonl"; }

# The six losses and validation losses of two runs are equal to 1e-5.
same_losses() {
    losses "$1" >"$work/a"
    losses "$2" >"$work/b"
    paste "$work/a" "$work/b" | awk '{ d = $1 - $2; if (d < 0) d = -d; if (!($1 > 1 && d <= 1e-5 * $1)) bad = 1 }
        END { exit bad || NR != 6 }'
}

number=0
report() { # TEXT: ok if the command before it succeeded
    status=$?
    number=$((number + 1))
    [ $status -eq 0 ] && echo "ok $number - $*" && return
    echo "not ok $number - $*"
    tail -n 30 "$work/$name.out"
}
