#!/bin/sh
# Checks what the README promises of a fresh Debian: installs Debian 12 and 13 in folders, copies the committed tree into
# each, and types `make train` and `make test` there as root, where nothing is installed but git, make and a compiler.
# Needs root, debootstrap and the network. Prints a line for each system, and "N passed, N failed" at the end.
#     dev/debian.sh [all] [cuda] [SYSTEM]...
# The systems are 12-gcc, 12-clang, 13-gcc and 13-clang. 13-gcc runs the tests; the others only build them, unless `all`
# is given. With `cuda` they see this machine's CUDA headers, and so build and test the simulated GPU, too.
# 12-bundle and 13-bundle, which are run only if they are named, have no compiler and no further package: there the
# programs of `make bundle` prepare a text, train and sample.
#
# The script has mounts and processes of its own, which end with it, however it ends. build/debian keeps the systems as
# they were before `make` and the packages that were downloaded, so that the next run is short.
set -u
cd "$(dirname "$0")/.." || exit 1
if [ "${DEBIAN_SH:-}" != "$$" ]; then # the first process of its namespace is number 1
    [ "$(id -u)" -eq 0 ] && command -v debootstrap >/dev/null || { echo "$0 needs root and debootstrap"; exit 1; }
    DEBIAN_SH=1 exec unshare --mount --pid --fork --kill-child --mount-proc sh "$0" "$@"
fi
trap 'exit 130' INT TERM HUP # as process 1 it would ignore them

cache=${BUILD:-build}/debian
cuda_home=${CUDA_HOME:-/usr/local/cuda}
full=13-gcc cuda= systems=
for word in "$@"; do
    case $word in
    all) full="12-gcc 12-clang 13-gcc 13-clang" ;;
    cuda) cuda=1 ;;
    12-gcc | 12-clang | 13-gcc | 13-clang | 12-bundle | 13-bundle) systems="$systems $word" ;;
    *) echo "$0: $word is neither all, cuda nor a system"; exit 1 ;;
    esac
done
: "${systems:=12-gcc 12-clang 13-gcc 13-clang}"

# The mirror that this machine installs from.
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' | head -n 1)
mkdir -p "$cache/packages"
rm -rf --one-file-system "$cache"/*.part "$cache/run"

enter() { # ROOT COMMAND...: in the system at ROOT, as a user of it would
    env -i HOME=/root TERM=dumb PATH=/usr/sbin:/usr/bin:/sbin:/bin ${http_proxy:+http_proxy="$http_proxy"} \
        chroot "$@" </dev/null
}

# base RELEASE COMPILER: the system before `make`, in $cache/RELEASE-COMPILER
base() {
    [ -d "$cache/$1-$2" ] && return
    part=$cache/$1-$2.part
    case $1 in 12) name=bookworm ;; 13) name=trixie ;; esac
    debootstrap --variant=minbase --cache-dir="$(realpath "$cache/packages")" "$name" "$part" $mirror || return
    if [ "$2" != bundle ]; then enter "$part" apt-get install -y --no-install-recommends git make "$2" || return; fi
    mv "$part" "$cache/$1-$2"
}

# bundle ROOT: unpacks the newest bundle there and uses it
bundle() {
    archive=$(ls -t "${BUILD:-build}"/train_gpt-*.tar.gz | head -n 1)
    mkdir "$1/root/bundle" && tar -xzf "$archive" -C "$1/root/bundle" --strip-components=1 || return
    enter "$1" sh -ec 'cd /root; b=bundle/bin
        (cd bundle && sha256sum --quiet -c SHA256SUMS)
        $b/llmc-stories --count 300 >text
        $b/llmc-prepare --tokenizer train:400 --out shards text
        $b/train_gpt --data "shards/*_train_*.bin" --val "shards/*_val_*.bin" --tokenizer shards/tokenizer.json \
            --steps 5 --out run
        $b/train_gpt sample --from run --prompt Once --tokens 20'
}

number=0 failed=0
for system in $systems; do
    start=$(date +%s)
    number=$((number + 1))
    release=${system%-*} cc=${system#*-}
    log=$cache/$system.log result=
    root=$cache/run
    if ! base "$release" "$cc" >"$log" 2>&1; then
        bad=1 result="cannot be installed: $log"
    else
        cp -a --reflink=auto "$cache/$system" "$root"
        mkdir -p "$root/root/gpt" "$root$cuda_home/include"
        git archive HEAD | tar -x -C "$root/root/gpt"
        mount -t proc proc "$root/proc" && mount -t devpts -o newinstance,ptmxmode=666 devpts "$root/dev/pts"
        mount --bind "$cache/packages" "$root/var/cache/apt/archives"
        [ -z "$cuda" ] || mount --rbind -o ro "$(realpath "$cuda_home/include")" "$root$cuda_home/include"
        [ "$cc" = gcc ] || with=" CC=$cc"
        case " $full " in *" $system "*) test=test ;; *) test=build-tests ;; esac
        targets="train $test"
        if [ "$cc" = bundle ]; then
            targets='' result="the bundle prepares, trains and samples"
            bundle "$root" >>"$log" 2>&1 || { bad=1 result="the bundle FAILED: $log"; }
        fi
        for target in $targets; do
            arguments="$target${with:-}$([ "$target" = train ] && echo " ARGS='--steps 20'")"
            echo "\$ make $arguments" >>"$log"
            enter "$root" sh -c "cd /root/gpt && make $arguments" >>"$log" 2>&1 && continue
            bad=1 result="make $target${with:-} FAILED: $log"
            break
        done
        [ $test = test ] && summary=$(grep '[0-9]* passed, [0-9]* failed$' "$log" | tail -n 1)
    fi
    failed=$((failed + ${bad:-0}))
    version=$(enter "$root" "$cc" --version 2>/dev/null | sed -n '1s/.* \([0-9]*\.[0-9.]*\).*/ \1/p')
    printf 'Debian %s, %s%s: %s  %ds\n' "$release" "$cc" "$version" \
        "${result:-make train, make $test${summary:+: $summary}}" $(($(date +%s) - start))
    umount -R "$root/proc" "$root/dev/pts" "$root/var/cache/apt/archives" 2>/dev/null
    [ -z "$cuda" ] || umount -R "$root$cuda_home/include"
    rm -rf --one-file-system "$root"
    unset with summary bad
done
echo "$((number - failed)) passed, $failed failed"
[ $failed -eq 0 ]
