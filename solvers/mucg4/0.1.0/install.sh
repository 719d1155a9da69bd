#!/usr/bin/env bash
# Installs mucg4 0.1.0 into the Python environment on PATH: from the checkout that this file lies in, else the release.
set -euo pipefail

here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
source=mucg4==0.1.0
if grep -qx 'name = "mucg4"' "$here/../../../pyproject.toml" 2>/dev/null; then
    source=$here/../../..
fi
python -m pip install --no-input --disable-pip-version-check "$source"
mucg4 --version
