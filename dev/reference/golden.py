"""Shared by the reference scripts: random draws, the writer of golden files, and --check.

Goldens are safetensors files. This module writes them, not the safetensors package, because the package leaves the
order of metadata open and the bytes must depend on the values only. They are read back through the package, which
checks this writer. Random numbers come from numpy's RandomState, whose streams never change.
"""
import argparse
import json
import os
import struct
import sys

import numpy as np

GOLDEN_DIR = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "test", "golden")
DTYPES = {np.dtype("<f8"): "F64", np.dtype("<f4"): "F32", np.dtype("<i4"): "I32"}

# Another BLAS or torch version may round differently in float64, so recomputed values may differ from the committed
# file by this much, relative to the largest element of the tensor. Inputs (not F64) must be equal.
CHECK_TOLERANCE = 1e-11


def normal32(random, shape, std, mean=0.0):
    """Normal numbers rounded to fp32: the float64 run and the engine start from exactly these."""
    return (mean + std * random.standard_normal(shape)).astype(np.float32)


def encode(tensors, metadata):
    """The bytes of a safetensors file: widest type first, then by name, so that every tensor is aligned."""
    arrays = {}
    for name, value in tensors.items():
        array = np.asarray(value)
        if array.dtype not in DTYPES:
            sys.exit(f"{name}: dtype {array.dtype} has no place in a golden; use float64, float32 or int32")
        if array.dtype != np.int32 and not np.all(np.isfinite(array)):
            sys.exit(f"{name}: holds NaN or Inf; a golden of it would check nothing")
        arrays[name] = array
    header = {"__metadata__": {key: str(metadata[key]) for key in sorted(metadata)}}
    body = []
    offset = 0
    for name in sorted(arrays, key=lambda n: (-arrays[n].itemsize, n)):
        data = arrays[name].tobytes()  # row-major, whatever the strides
        header[name] = {
            "dtype": DTYPES[arrays[name].dtype],
            "shape": list(arrays[name].shape),
            "data_offsets": [offset, offset + len(data)],
        }
        offset += len(data)
        body.append(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(body)


def relative_error(found, expected):
    """Largest difference over the largest expected magnitude; NaN and Inf count as infinitely wrong."""
    found = np.asarray(found, dtype=np.float64)
    expected = np.asarray(expected, dtype=np.float64)
    if found.shape != expected.shape or not np.all(np.isfinite(found)):
        return np.inf
    if found.size == 0:
        return 0.0
    scale = np.max(np.abs(expected))
    return np.max(np.abs(found - expected)) / (scale if scale > 0 else 1.0)


def compare_file(path, tensors, metadata):
    """Prints how a committed golden differs from what was recomputed; True if it does not."""
    from safetensors import safe_open

    name = os.path.basename(path)
    if not os.path.exists(path):
        print(f"{name}: missing; run without --check to write it")
        return False
    with open(path, "rb") as file:
        same_bytes = file.read() == encode(tensors, metadata)
    problems = []
    worst = 0.0
    with safe_open(path, framework="numpy") as stored:
        wanted_metadata = {key: str(value) for key, value in metadata.items()}
        if stored.metadata() != wanted_metadata:
            problems.append(f"metadata is {stored.metadata()}, expected {wanted_metadata}")
        for missing in sorted(set(tensors) - set(stored.keys())):
            problems.append(f"{missing} is not in the file")
        for extra in sorted(set(stored.keys()) - set(tensors)):
            problems.append(f"{extra} is in the file but not recomputed")
        for key in sorted(set(tensors) & set(stored.keys())):
            ours, theirs = np.asarray(tensors[key]), stored.get_tensor(key)
            if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
                problems.append(f"{key} is {theirs.dtype}{theirs.shape}, expected {ours.dtype}{ours.shape}")
            elif ours.dtype == np.float64:
                # Gradients that are zero in exact arithmetic are pure rounding error: compare them with an absolute floor.
                close = np.max(np.abs(ours - theirs), initial=0.0) <= 1e-14
                error = 0.0 if close else relative_error(theirs, ours)
                worst = max(worst, error)
                if not error <= CHECK_TOLERANCE:
                    problems.append(f"{key} differs by {error:.2e}, allowed {CHECK_TOLERANCE:.0e}")
            elif not np.array_equal(ours, theirs):
                problems.append(f"{key} (an input) differs")
    verdict = "FAIL" if problems else "ok, same bytes" if same_bytes else f"ok, worst relative difference {worst:.1e}"
    print(f"{name}: {len(tensors)} tensors: {verdict}")
    for problem in problems:
        print(f"  {problem}")
    return not problems


def main(description, goldens, options=()):
    """The command line of a script that writes goldens.

    goldens: list of (file name, function returning (tensors, metadata)).
    options: list of (flag, help, function returning True on success); the function runs instead of writing.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=GOLDEN_DIR, metavar="DIR", help="directory of the goldens (default: test/golden)")
    parser.add_argument("--check", action="store_true", help="recompute and compare with the files; write nothing")
    for flag, text, _ in options:
        parser.add_argument(flag, action="store_true", help=text)
    arguments = vars(parser.parse_args())

    chosen = [function for flag, _, function in options if arguments[flag.lstrip("-").replace("-", "_")]]
    good = all([function() for function in chosen])
    if arguments["check"]:
        good &= all([compare_file(os.path.join(arguments["out"], name), *make()) for name, make in goldens])
    elif not chosen:
        os.makedirs(arguments["out"], exist_ok=True)
        for name, make in goldens:
            data = encode(*make())
            with open(os.path.join(arguments["out"], name), "wb") as file:
                file.write(data)
            print(f"{name}: {len(data)} bytes")
    sys.exit(0 if good else 1)
