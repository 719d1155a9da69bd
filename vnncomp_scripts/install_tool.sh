#!/usr/bin/env bash
# install_tool.sh v1: makes the environment .venv beside this folder and installs mucg4 into it. Needs Python 3.10 or
# newer with venv and no root; can be run again at any time. MUCG4_PYTHON names the Python to use.
set +x
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

fail() {
    printf 'install_tool.sh: %s\n' "$1" >&2
    exit 1
}

[ "${1:-}" = v1 ] || fail "the first argument must be v1, not '${1:-}'"

suitable() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1
}

python=
for candidate in ${MUCG4_PYTHON:+"$MUCG4_PYTHON"} python3 python3.12 python3.11 python3.13 python3.10; do
    if command -v "$candidate" >/dev/null 2>&1 && suitable "$candidate"; then
        python=$candidate
        break
    fi
done
[ -n "$python" ] || fail "no Python 3.10 or newer with venv found; on Debian and Ubuntu install python3-venv"

environment=$mucg4_home/.venv
if [ -e "$environment" ] && ! suitable "$environment/bin/python"; then
    rm -rf -- "$environment"
fi
[ -e "$environment" ] || "$python" -m venv "$environment" || fail "cannot make the environment $environment"
"$environment/bin/python" -m pip install --no-input --disable-pip-version-check "$mucg4_home" </dev/null ||
    fail "pip could not install mucg4"
# A second run installs the current files although the version number is the same.
"$environment/bin/python" -m pip install --no-input --disable-pip-version-check --force-reinstall --no-deps \
    "$mucg4_home" </dev/null || fail "pip could not install mucg4"
"$environment/bin/python" -I -m mucg4 --version || fail "the installed tool does not start"
