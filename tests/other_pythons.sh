#!/usr/bin/env bash
# Run the suite on the other supported Pythons that are installed here, each in a virtual environment of its own.
set -euo pipefail
cd "$(dirname "$0")/.."

# From the PATH, or from pyenv. A name on the PATH is not enough: it may be a shim without a Python.
find_python() {
    local candidate
    for candidate in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/"python$1"; do
        if "$candidate" -c "" 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

passed=() failed=() missing=()
for version in 3.12 3.13; do
    if ! python=$(find_python "$version"); then
        missing+=("$version")
        continue
    fi
    environment=.venv-$version
    echo "== Python $version"
    if [ ! -x "$environment/bin/pip" ]; then
        rm -rf "$environment"
        "$python" -m venv "$environment"
    fi
    "$environment/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
    if "$environment/bin/python" -m pytest -n auto -m "not full" -p no:cacheprovider; then
        passed+=("$version")
    else
        failed+=("$version")
    fi
done

echo "other Pythons: passed on ${passed[*]:-none}; failed on ${failed[*]:-none};" \
    "not installed here, so not tested: ${missing[*]:-none}"
[ ${#failed[@]} -eq 0 ]
