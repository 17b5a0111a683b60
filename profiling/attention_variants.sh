#!/bin/sh
# Trains the model `tiny` with rotary positions on the built-in stories, once with every score and every mask of
# attention, and writes a table: the validation loss and its distance from the entropy of the stories, and of the
# stories that each model wrote, the shares of grammatical sentences and of references that are right. A model whose
# tokens see those after them sees the word that it has to predict: its loss falls below the entropy, and it writes no
# stories.
#
#     profiling/attention_variants.sh [DIR] >profiling/results/attention-variants.txt
#
# STEPS=N trains shorter (2600: some minutes for each of the rows), SEED=N chooses the seed,
# PROGRAM=FILE another trainer. The runs are left in DIR if it is given.
set -eu
steps=${STEPS:-2600} seed=${SEED:-1} program=${PROGRAM:-build/train_gpt}
if [ $# -gt 0 ]; then
    dir=$1
    mkdir -p "$dir"
else
    dir=$(mktemp -d)
    trap 'rm -rf "$dir"' EXIT
fi

# The first number of the first line that begins with a word and matches a pattern of sed.
of() { sed -n "s/^$1 .*[^0-9.]\\([0-9.]*\\) $2.*/\\1/p" "$dir/$name.txt" | head -n 1; }

row() {
    name=$1
    shift
    if ! "$program" --model tiny --positions rope "$@" --steps "$steps" --seed "$seed" --save-every 1000000 --overwrite \
        --out "$dir/$name" >"$dir/$name.txt" 2>&1; then
        tail -n 3 "$dir/$name.txt"
        exit 1
    fi
    loss=$(sed -n 's/^loss *\([0-9.]*\) nats.*/\1/p' "$dir/$name.txt")
    floor=$(sed -n 's/^loss .*lower bound \([0-9.]*\),.*/\1/p' "$dir/$name.txt")
    sentences=$(of grade '% of [0-9]* sentences') references=$(of grade '% of [0-9]* references')
    awk -v options="$*" -v loss="$loss" -v floor="$floor" -v sentences="${sentences:--}" -v references="${references:--}" '
        BEGIN { printf "%8.4f  %+8.1f %%  %9s  %10s   %s\n", loss, 100 * (loss / floor - 1), sentences, references,
                       options ? options : "(scaled dot product, causal)" }'
}

echo "$program --model tiny --positions rope --steps $steps --seed $seed ..."
[ "$steps" = 2600 ] || echo "(shortened: these figures do not compare what the variants can reach)"
echo
printf '%8s  %10s  %9s  %10s   %s\n' loss 'above' sentences references options
row plain
for score in dot cosine l2 dot2; do row "$score" --score "$score"; done
for window in 8 16 32 64; do row "window-$window" --window "$window"; done
for softcap in 5 50; do row "softcap-$softcap" --softcap "$softcap"; done
for mask in full anti-causal; do row "$mask" --mask "$mask"; done
