#!/usr/bin/env bash
# Makes target/python, an environment with the Python clients that tests use, from PyPI. Does nothing
# where it is there already and the list has not changed.
set -euo pipefail
cd "$(dirname "$0")/.."
list=tests/ns_binding/requirements.txt
home="$(pwd)/target/python"
if [ -x "$home/bin/python" ] && cmp -s "$list" "$home/made-from.txt"; then exit 0; fi
echo "Making $home (Python clients for tests, from PyPI)"
rm -rf "$home"
/usr/bin/python3 -m venv "$home"
if ! "$home/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: -r "$list"; then
    echo "The Python packages of $list can't be had: is PyPI reachable from here?" >&2
    rm -rf "$home"
    exit 1
fi
cp "$list" "$home/made-from.txt"
