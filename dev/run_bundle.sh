#!/bin/sh
# Runs a program of this folder with the CUDA libraries of this machine, which the bundle does not contain:
#     ./run train_gpt --version         bin/train_gpt or test/train_gpt, whichever there is
#     ./run                             prints the folders of the libraries, as LD_LIBRARY_PATH has them
# Looks in LD_LIBRARY_PATH, in $CUDA_HOME and the other places of the toolkit, in the system's own folders, and in the
# packages of $PYTHON (python3). The first library that is missing is named, and the status is 1.
here=$(cd "$(dirname "$0")" && pwd) || exit 1

folders() {
    echo "${LD_LIBRARY_PATH:-}" | tr ':' '\n'
    nvcc=$(command -v nvcc) && nvcc=$(readlink -f "$nvcc") && echo "${nvcc%/bin/nvcc}/lib64"
    echo "${CUDA_HOME:+$CUDA_HOME/lib64}"
    ls -d /usr/local/cuda/lib64 /usr/local/cuda-*/lib64 /usr/local/cuda*/targets/*/lib /opt/cuda/lib64 2>/dev/null
    /sbin/ldconfig -p 2>/dev/null | sed -n 's|.*libcu.* => \(.*\)/[^/]*$|\1|p'
}
python_folders() {
    "${PYTHON:-python3}" -c 'import glob, sys
for path in sys.path: print(*glob.glob(path + "/nvidia/*/lib"), sep="\n")' 2>/dev/null
}
# holding PATTERN: the first of the folders on standard input that has such a file
holding() {
    while read -r folder; do
        # shellcheck disable=SC2086
        if [ -n "$folder" ] && ls "$folder"/$1 >/dev/null 2>&1; then echo "$folder" && return; fi
    done
    return 1
}

found=
while read -r library; do
    folder=$(folders | holding "$library") || folder=$(python_folders | holding "$library") || {
        stem=${library%.so.*} version=${library##*.so.}
        other=$({ folders; python_folders; } | holding "$stem.so.*") && other="; $other has that of another CUDA version"
        echo "error: $library of CUDA $version is not found$other: install that toolkit, or pip's nvidia-cublas and" \
            "nvidia-cuda-runtime, or set LD_LIBRARY_PATH" >&2
        exit 1
    }
    case ":$found:" in *":$folder:"*) ;; *) found=$found${found:+:}$folder ;; esac
done <"$here/lib/cuda" || exit 1

[ $# -gt 0 ] || { echo "$found" && exit; }
export LD_LIBRARY_PATH="$found${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
program=$here/bin/$1
[ -x "$program" ] || program=$here/test/$1
[ -x "$program" ] || { echo "error: $1: neither $here/bin nor $here/test has it" >&2; exit 1; }
shift
exec "$program" "$@"
