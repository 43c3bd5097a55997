#!/usr/bin/env bash
# Make ~/venv hold exactly the pinned packages: setup_node.sh gpu.txt no-deps.txt
# Run on every node of a cluster. A second call with the same pins does nothing. Needs Python 3.11 or later with venv.
set -euo pipefail
if (($# < 1)); then
    echo "usage: setup_node.sh REQUIREMENTS..." >&2
    exit 2
fi
venv=$HOME/venv
pins=$(cat "$@" | sha256sum | cut -d' ' -f1)
if [[ -f $venv/.pins && $(<"$venv/.pins") == "$pins" ]]; then
    echo "setup: the pinned packages are installed"
    exit 0
fi
python=
for candidate in python3.11 python3.12 python3; do
    if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'; then
        python=$candidate
        break
    fi
done
if [[ -z $python ]]; then
    echo "setup: no Python 3.11 or later with venv here; take an image that has one (Ubuntu 24.04: python3-venv)" >&2
    exit 1
fi
rm -rf "$venv"
"$python" -m venv "$venv"
requirements=()
for file in "$@"; do
    requirements+=(-r "$file")
done
"$venv/bin/python" -m pip install --quiet --no-deps "${requirements[@]}"
echo "$pins" >"$venv/.pins"
