#!/bin/sh
# The mistakes of `make mutants` must fit the sources that they change. Prints TAP.
exec sh dev/mutants.sh --check
