#!/usr/bin/env bash
# cleanup_instance.sh: ends the leftovers of killed runs of this tool and removes their temporary files. Runs that are
# still within their time are left alone. Needs no arguments, always exits 0.
set +x
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
mucg4_clean
exit 0
