#!/usr/bin/env bash
# prepare_instance.sh v1 CATEGORY ONNX VNNLIB: ends what an earlier run of this tool left behind and brings the tool's own
# files into the page cache. It looks at neither the network nor the property. Always exits 0: harnesses skip the
# rest of a benchmark after a failure here.
set +x
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

mucg4_clean
if mucg4_find && [ "${mucg4_command[1]:-}" = -I ]; then
    timeout 60 "${mucg4_command[0]}" -I -c 'import mucg4.verify, mucg4.evidence, mucg4.precision, onnx, onnxruntime' \
        </dev/null >/dev/null 2>&1
fi
exit 0
