#!/bin/sh
# Downloads data sets and published weights. `data/download.sh` without arguments lists them.
#
# A download is FILE.part until it is complete and verified; an interrupted one continues there. A file is verified
# by the size and SHA-256 that are pinned below; else by those that the Hugging Face Hub announces (the SHA-256 of
# large files, git's SHA-1 of small ones); else it cannot be verified, and the script says so. The SHA-256 of every
# file is stored beside it as FILE.sha256 and compared from then on.
#
# HF_ENDPOINT and GITHUB_RAW name other servers (mirrors). A connection that breaks without progress is tried
# DOWNLOAD_TRIES times, with DOWNLOAD_WAIT seconds between the tries.
set -u

hf=${HF_ENDPOINT:-https://huggingface.co}
github=${GITHUB_RAW:-https://raw.githubusercontent.com}
tries=${DOWNLOAD_TRIES:-5}
wait=${DOWNLOAD_WAIT:-5}

usage() {
    cat <<'END'
usage: data/download.sh NAME [--to DIR] [--shards N]

Data:
  tinyshakespeare   1 MB of text                          fineweb10B       103 shards of 100M tokens, 20 GB
  tinystories       2.2 GB of short stories               fineweb-edu10B    99 shards of 100M tokens, 20 GB
  hellaswag         10042 questions, 12 MB                lambada          5153 last words, 2 MB

Models with their tokenizers:
  gpt2              124M, 550 MB                          smollm2-135m     Llama-shaped, 270 MB
  gpt2-medium       355M, 1.5 GB                          smollm2-360m     Llama-shaped, 720 MB
  gpt2-large        774M, 3.2 GB                          qwen2.5-0.5b     494M, 990 MB
  gpt2-xl           1558M, 6.4 GB
  With -instruct behind the name, smollm2 and qwen2.5 are those that were trained to answer.

  --to DIR     where to put it (default data/NAME)
  --shards N   only the first N training shards (and the validation shard)

After an interruption the same command continues. Existing files are verified and kept.
END
}

die() {
    echo "error: $*" >&2
    exit 1
}

# "train with: COMMAND", which can be pasted into a shell: the program as it is reached from here, arguments quoted.
hint() { # label arguments
    case $0 in data/download.sh) line="$1 build/train_gpt" ;; *) line="$1 $(quote "$(dirname "$0")/../build/train_gpt")" ;; esac
    shift
    for argument in "$@"; do line="$line $(quote "$argument")"; done
    echo "$line"
}
quote() {
    case $1 in
    *[!A-Za-z0-9_+=:,./@%-]* | '') printf "'%s'" "$(printf %s "$1" | sed "s/'/'\\\\''/g")" ;;
    *) printf %s "$1" ;;
    esac
}

# --- verifying ---

size_of() { wc -c <"$1" | tr -d ' '; }
sha256_of() {
    if command -v sha256sum >/dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -c1-64
}
# The hash by which git, and so the Hub, names a file that it stores itself.
git_sha1_of() {
    { printf 'blob %s\0' "$(size_of "$1")" && cat "$1"; } |
        if command -v sha1sum >/dev/null; then sha1sum; else shasum -a 1; fi | cut -c1-40
}

is_hex() { # text length
    [ ${#1} -eq "$2" ] || return 1
    case $1 in *[!0-9a-f]*) return 1 ;; esac
}

# The value of a header without quotes and W/, from the first or the last response that has it.
header() { # file name first|last
    [ -f "$1" ] || return 0
    awk -v name="$2:" -v which="$3" 'tolower($1) == name { value = $2; if (which == "first") exit }
        END { gsub(/^W\/|["\r]|;.*$/, "", value); print value }' "$1"
}

# Verifies a file: sets `how` and `sha`, or sets `why` and fails.
verify() { # part file want_size want_sha
    sha=$(sha256_of "$1")
    size=$(size_of "$1")
    how="" why=""
    announced="" announced_size=""
    case $url in "$hf"/*)
        if [ -f "$1.headers" ]; then
            announced=$(header "$1.headers" x-linked-etag first)
            announced_size=$(header "$1.headers" x-linked-size first)
            [ -n "$announced" ] || announced=$(header "$1.headers" etag first)
        fi ;;
    esac
    if [ "$size" -eq 0 ]; then why="is empty"; return 1; fi
    if [ -n "$3" ] && [ "$size" != "$3" ]; then why="has $size bytes, expected $3"; return 1; fi
    if [ -n "$announced_size" ] && [ "$size" != "$announced_size" ]; then
        why="has $size bytes, the server announced $announced_size"
        return 1
    fi
    if [ -n "$4" ]; then
        if [ "$sha" != "$4" ]; then why="has SHA-256 $sha, expected $4"; return 1; fi
        how="SHA-256 as expected"
    elif is_hex "$announced" 64; then
        if [ "$sha" != "$announced" ]; then why="has SHA-256 $sha, the server announced $announced"; return 1; fi
        how="SHA-256 as announced by the server"
    elif is_hex "$announced" 40; then
        sha1=$(git_sha1_of "$1")
        if [ "$sha1" != "$announced" ]; then why="has git SHA-1 $sha1, the server announced $announced"; return 1; fi
        how="git SHA-1 as announced by the server"
    fi
    if [ -f "$2.sha256" ]; then
        recorded=$(cut -c1-64 "$2.sha256")
        if [ "$sha" != "$recorded" ]; then
            why="has SHA-256 $sha, but $2.sha256 says $recorded"
            return 1
        fi
        how=${how:-"SHA-256 as at the first download"}
    fi
    how=${how:-"no source publishes its SHA-256: recorded for later comparison"}
}

record() { # file
    echo "$sha  $(basename "$1")" >"$1.sha256.tmp" && mv "$1.sha256.tmp" "$1.sha256" ||
        die "$1.sha256: cannot write"
}

# --- one file ---

# Makes one connection. Sets `code` (HTTP) and `status` (of curl).
transfer() { # part
    quiet="--silent --show-error"
    [ -t 2 ] && quiet=--progress-bar
    # shellcheck disable=SC2086
    code=$(curl --fail --location $quiet --connect-timeout 30 --speed-limit 100 --speed-time 60 \
        --retry 3 --retry-delay "$wait" --continue-at - --dump-header "$1.headers" --output "$1" \
        --write-out '%{http_code}' "$url")
    status=$?
}

discard() { rm -f "$1" "$1.headers" "$1.etag"; }

restart() { # part reason
    restarts=$((restarts + 1))
    [ $restarts -lt "$tries" ] || die "$2; giving up after $tries tries"
    echo "$2: starting again" >&2
    discard "$1"
}

# Completes $part, with as many connections as necessary.
bring() { # part file
    left=$tries
    restarts=0
    while :; do
        before=0
        [ -f "$1" ] && before=$(size_of "$1")
        [ "$before" -gt 0 ] && pieces=yes
        transfer "$1"
        after=0
        [ -f "$1" ] && after=$(size_of "$1")
        case $(header "$1.headers" content-type last) in text/html*)
            if [ "$status" -eq 0 ]; then
                discard "$1"
                die "$url: the server sent a web page in place of the file (a login, a notice?)"
            fi ;;
        esac
        etag=$(header "$1.headers" etag last)
        if [ "$before" -gt 0 ] && [ "$code" = 206 ] && [ -f "$1.etag" ] && [ "$etag" != "$(cat "$1.etag")" ]; then
            restart "$1" "$2: the file on the server has changed since the download began"
            continue
        fi
        if [ "$status" -eq 0 ]; then return; fi
        [ "$after" -gt 0 ] && [ -n "$etag" ] && case $code in 200 | 206) echo "$etag" >"$1.etag" ;; esac
        case $status in
        22)
            case $code in
            416) return ;; # nothing is missing; verify decides whether it is right
            408 | 429 | 5??) ;;
            *) die "$url: the server answers $code; nothing was downloaded" ;;
            esac ;;
        23) die "$1: cannot write (is the disk full?); the same command continues it" ;;
        33 | 36)
            restart "$1" "$2: the server cannot continue a download"
            continue ;;
        3 | 6 | 60) die "$url: curl failed with status $status" ;;
        esac
        [ "$after" -gt "$before" ] && left=$tries
        left=$((left - 1))
        [ $left -gt 0 ] || die "$url: was interrupted $tries times (curl status $status, HTTP $code), $after bytes are" \
            "in $1; the same command continues it"
        echo "$2: interrupted after $after bytes (curl status $status): continuing" >&2
        sleep "$wait"
    done
}

fetch() { # url file [size [sha256]]
    [ -z "$limit" ] || die "--shards: $name has no shards; fineweb10B and fineweb-edu10B have"
    command -v curl >/dev/null || die "curl is missing; install it with: apt-get install curl"
    url=$1 file=$2 part=$2.part want_size=${3:-} want_sha=${4:-}
    mkdir -p "$(dirname "$file")" || die "$(dirname "$file"): cannot create directory"
    if [ -f "$file" ]; then
        verify "$file" "$file" "$want_size" "$want_sha" ||
            die "$file: $why; if it is not yours, delete it (and $file.sha256) to download it again"
        [ -f "$file.sha256" ] || record "$file"
        echo "$file: exists; $how"
        return
    fi
    while :; do
        pieces=no
        bring "$part" "$file"
        [ -f "$part" ] || : >"$part"
        verify "$part" "$file" "$want_size" "$want_sha" && break
        discard "$part"
        # Pieces of different files may have been joined, but a download in one piece must be right.
        [ $pieces = yes ] || die "$url: the download $why; it was deleted"
        echo "$file: the download $why: starting again" >&2
    done
    record "$file"
    mv "$part" "$file" || die "$file: cannot rename $part"
    discard "$part"
    echo "$file: $size bytes; $how"
}

# --- the data sets ---

shards() { # repository prefix count
    count=${limit:-$3} limit=""
    [ "$count" -le "$3" ] || die "--shards $count: $name has $3 training shards"
    fetch "$hf/datasets/$1/resolve/main/$2_val_000000.bin" "$dir/$2_val_000000.bin"
    i=1
    while [ $i -le "$count" ]; do
        shard=$(printf '%s_train_%06d.bin' "$2" $i)
        fetch "$hf/datasets/$1/resolve/main/$shard" "$dir/$shard"
        i=$((i + 1))
    done
    hint "train with:" --model gpt2 --data "$dir/$2_train_*.bin" --val "$dir/$2_val_*.bin"
}

model() { # repository [revision size sha256]
    at=$hf/$1/resolve/${2:-main}
    for item in config.json generation_config.json tokenizer.json tokenizer_config.json vocab.json merges.txt; do
        fetch "$at/$item" "$dir/$item"
    done
    fetch "$at/model.safetensors" "$dir/model.safetensors" "${3:-}" "${4:-}"
    hint "fine-tune with:" --model "$dir" --text FILE
}

[ $# -gt 0 ] || { usage; exit 2; }
name="" dir="" limit=""
while [ $# -gt 0 ]; do
    case $1 in
    -h | --help) usage; exit 0 ;;
    --to | --shards) [ $# -gt 1 ] || die "$1: a value is missing"
        if [ "$1" = --to ]; then dir=$2; else limit=$2; fi
        shift ;;
    -*) die "$1: unknown option; data/download.sh --help lists them" ;;
    *) [ -z "$name" ] || die "$1: one name at a time"
        name=$1 ;;
    esac
    shift
done
[ -n "$name" ] || { usage >&2; exit 2; }
case $limit in *[!0-9]* | 0) die "--shards $limit: expected a number from 1" ;; esac
dir=${dir:-data/$name}

case $name in
tinyshakespeare)
    fetch "$github/karpathy/char-rnn/master/data/tinyshakespeare/input.txt" "$dir/input.txt" 1115394 \
        86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed
    hint "train with:" --text "$dir/input.txt" ;;
tinystories)
    for side in valid train; do
        fetch "$hf/datasets/roneneldan/TinyStories/resolve/main/TinyStoriesV2-GPT4-$side.txt" \
            "$dir/TinyStoriesV2-GPT4-$side.txt"
    done
    hint "train with:" --text "$dir/TinyStoriesV2-GPT4-train.txt" ;;
fineweb10B) shards kjj0/fineweb10B-gpt2 fineweb 103 ;;
fineweb-edu10B) shards kjj0/finewebedu10B-gpt2 finewebedu 99 ;;
gpt2)
    model openai-community/gpt2 607a30d783dfa663caf39e06633721c8d4cfcd7e 548105171 \
        248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707 ;;
gpt2-medium | gpt2-large | gpt2-xl) model "openai-community/$name" ;;
smollm2-135m) model HuggingFaceTB/SmolLM2-135M ;;
smollm2-135m-instruct) model HuggingFaceTB/SmolLM2-135M-Instruct ;;
smollm2-360m) model HuggingFaceTB/SmolLM2-360M ;;
smollm2-360m-instruct) model HuggingFaceTB/SmolLM2-360M-Instruct ;;
qwen2.5-0.5b) model Qwen/Qwen2.5-0.5B ;;
qwen2.5-0.5b-instruct) model Qwen/Qwen2.5-0.5B-Instruct ;;
hellaswag)
    fetch "$github/rowanz/hellaswag/master/data/hellaswag_val.jsonl" "$dir/hellaswag_val.jsonl" '' \
        0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588
    hint "evaluate with:" eval --from DIR --tasks "$dir/hellaswag_val.jsonl" ;;
lambada)
    fetch "$hf/datasets/EleutherAI/lambada_openai/resolve/900124bf3b8235c6daf21033af9948b3f07346c4/data/lambada_test.jsonl" \
        "$dir/lambada_test.jsonl" 1819752 4aa8d02cd17c719165fc8a7887fddd641f43fcafa4b1c806ca8abc31fabdb226
    hint "evaluate with:" eval --from DIR --tasks "$dir/lambada_test.jsonl" ;;
*)
    usage >&2
    die "$name: no such data set or model; the names are listed above" ;;
esac
