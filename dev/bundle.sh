#!/bin/sh
# Completes the folder that `make bundle` has installed the programs in: adds the shared libraries that they need, except
# glibc's and CUDA's, their licences, checksums and, with CUDA, what measures a GPU; proves that the programs run in a
# root directory that holds nothing else than the folder and glibc (and the CUDA libraries); packs it.
#     dev/bundle.sh FOLDER [BUILD CUDA]     with the CUDA back end: BUILD has the benchmark and the CUDA tests, CUDA the
#                                           toolkit's libraries
# Fails if a program needs a newer glibc than Debian 12's, or if OpenBLAS is one for this processor only.
set -eu
newest_glibc=2.36
folder=$1 build=${2:-} cuda=${3:-}
[ -z "$cuda" ] || export LD_LIBRARY_PATH="$cuda"

if [ -n "$build" ]; then
    mkdir -p "$folder/test"
    strip -o "$folder/bin/llmc-bench" "$build/bench"
    for test in "$build"/cuda/test/cuda/test_cuda_*; do
        case $test in *.o | *.d) continue ;; esac
        strip -o "$folder/test/${test##*/}" "$test"
    done
    cp profiling/measure_gpu.sh dev/reference/train_torch.py "$folder/"
fi
cp dev/run_bundle.sh "$folder/run"

# Libraries. What ldd names comes with everything that it needs itself.
programs=$(find "$folder" -path '*/bin/*' -o -path '*/test/*')
mkdir -p "$folder/lib" "$folder/licenses"
# shellcheck disable=SC2086
ldd $programs | awk '/not found/ { print "missing: " $1 >"/dev/stderr"; bad = 1 } /=> \// { print $1, $3 } END { exit bad }' \
    >"$folder/libraries.new"
: >"$folder/lib/cuda"
sort -u "$folder/libraries.new" | while read -r name path; do
    case $name in
    ld-linux* | libc.so.* | libm.so.* | libdl.so.* | libpthread.so.* | librt.so.* | libmvec.so.*) continue ;;
    libcu* | libnv*) echo "$name" >>"$folder/lib/cuda" && continue ;;
    esac
    cp -L "$path" "$folder/lib/$name"
    file=$(realpath "$path")
    package=$(dpkg -S "$file" 2>/dev/null || dpkg -S "${file#/usr}" 2>/dev/null) || package=
    package=${package%%: *}
    licence=/usr/share/doc/${package%%:*}/copyright
    if [ -n "$package" ] && [ -e "$licence" ]; then
        cp -L "$licence" "$folder/licenses/${package%%:*}"
        printf '%-20s %s\n' "$name" "$(dpkg-query -W -f '${Package} ${Version}' "$package")" >>"$folder/licenses/LIST"
    else
        printf '%-20s %s\n' "$name" "of no package of this system: find its licence" >>"$folder/licenses/LIST"
    fi
done
rm "$folder/libraries.new"
[ -s "$folder/lib/cuda" ] || rm "$folder/lib/cuda" "$folder/run"
cp LICENSE "$folder/"
# shellcheck disable=SC2086
newest=$(objdump -T $programs "$folder"/lib/*.so* | grep -o 'GLIBC_[0-9.]*' | sort -u -V | tail -n 1)
[ "$(printf 'GLIBC_%s\n%s\n' $newest_glibc "$newest" | sort -V | tail -n 1)" = GLIBC_$newest_glibc ] || {
    echo "this system's libraries need $newest; make the bundle on Debian 12, whose programs run on newer systems"
    exit 1
}
"$folder/bin/train_gpt" --version >"$folder/VERSION"
grep -q 'OpenBLAS.*DYNAMIC_ARCH' "$folder/VERSION" || {
    echo "this OpenBLAS is made for one processor; the bundle needs one with DYNAMIC_ARCH, as Debian's is"
    exit 1
}

# The proof.
bare=$(mktemp -d)
trap 'rm -rf "$bare"' EXIT
if ! unshare -Urm true 2>/dev/null; then
    echo "  not tried in a bare root: this system allows no user namespaces"
else
    mkdir -p "$bare/tmp" "$bare/proc" "$bare/cuda"
    cp -a "$folder" "$bare/bundle"
    # shellcheck disable=SC2086
    ldd $programs | awk '/(ld-linux|libc|libm|libdl|libpthread|librt|libmvec)[-.a-z0-9_]*so/ { print ($2 == "=>" ? $3 : $1) }' | sort -u |
        while read -r path; do mkdir -p "$bare${path%/*}" && cp -L "$path" "$bare$path"; done
    # The dynamic linker reads in /proc where a program lies.
    bare() {
        unshare -Urm sh -c 'root=$0 chroot=$1 cuda=$2 && shift 2 && mount --rbind /proc "$root/proc" || exit
            [ -z "$cuda" ] || mount --rbind "$cuda" "$root/cuda" || exit
            exec env -i ${cuda:+LD_LIBRARY_PATH=/cuda} "$chroot" "$root" "$@"' "$bare" "$(command -v chroot)" "$cuda" "$@"
    }
    bare /bundle/bin/llmc-stories --count 200 >"$bare/tmp/text"
    bare /bundle/bin/llmc-prepare --tokenizer train:400 --out /tmp/shards /tmp/text >"$bare/tmp/log" 2>&1 &&
        bare /bundle/bin/train_gpt --stories 100 --steps 2 --layers 1 --out /tmp/run >"$bare/tmp/log" 2>&1 &&
        bare /bundle/bin/train_gpt sample --from /tmp/run --tokens 5 >"$bare/tmp/log" 2>&1 || {
        cat "$bare/tmp/log"
        echo "the bundle does not run in a bare root"
        exit 1
    }
    echo "  prepares, trains and samples in a root with nothing but it${cuda:+, the CUDA libraries} and glibc"
fi

(cd "$folder" && find . -type f ! -name SHA256SUMS | LC_ALL=C sort | xargs sha256sum) >"$folder/SHA256SUMS"
tar -C "${folder%/*}" --owner=0 --group=0 --sort=name -cf - "${folder##*/}" | gzip -9n >"$folder.tar.gz"
echo "  $folder.tar.gz: $(($(stat -c %s "$folder.tar.gz") / 1000000)) MB, unpacked $(du -sm "$folder" | cut -f 1) MiB"
