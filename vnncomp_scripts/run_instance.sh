#!/usr/bin/env bash
# run_instance.sh v1 CATEGORY ONNX VNNLIB RESULTFILE TIMEOUT: decides one instance. ONNX is a path or a Python list of
# (name, path). Line 1 of RESULTFILE becomes sat, unsat, unknown or timeout, then the witness follows. The file holds
# a legal word from the first moment, on a full disk too, and is replaced atomically; the tool stops 1 s before TIMEOUT,
# counted from the start of this script, and ends with this script should that be killed. Always exits 0.
set +x
started=${EPOCHREALTIME:-$(date +%s.%N)}
started=${started/,/.}
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

say() {
    printf 'run_instance.sh: %s\n' "$1" >&2
}

if [ $# -lt 6 ]; then
    say "wants 6 arguments: v1 CATEGORY ONNX VNNLIB RESULTFILE TIMEOUT"
    [ -n "${5:-}" ] && { printf 'unknown\n' >"$5"; } 2>/dev/null
    exit 0
fi
[ "$1" = v1 ] || say "the first argument should be v1, not '$1'"
onnx=$3 vnnlib=$4 result=$5 limit=$6
case $result in /*) ;; *) result=$PWD/$result ;; esac
case $onnx in /* | \[*) ;; *) onnx=$PWD/$onnx ;; esac
case $vnnlib in /*) ;; *) vnnlib=$PWD/$vnnlib ;; esac

# Puts the word $1 into the result file: a new file moved over the old one, or in place where that cannot be.
put() {
    local part
    part=$(dirname -- "$result")/.$(basename -- "$result").mucg4-$$.tmp
    if [ -e "$result" ] && [ ! -f "$result" ]; then
        { printf '%s\n' "$1" >"$result"; } 2>/dev/null && return 0
    else
        if [ ! -L "$result" ] && { printf '%s\n' "$1" >"$part" && mv -f -- "$part" "$result"; } 2>/dev/null; then
            return 0
        fi
        rm -f -- "$part" 2>/dev/null
        put_over "$1" || put_elsewhere "$1" && return 0
    fi
    say "cannot write $result"
}

# Writes the word $1 over the old bytes before it cuts off the rest: a full disk has no room but theirs.
put_over() {
    { printf '%s\n' "$1" 1<>"$result"; } 2>/dev/null || return 1
    truncate -s "$((${#1} + 1))" -- "$result" 2>/dev/null
    return 0
}

# Where the disk takes not even a word, the result file becomes a link to a file in a folder that has room.
put_elsewhere() {
    local folder
    [ -d "$(dirname -- "$result")" ] && [ ! -d "$result" ] || return 1
    folder=$(mucg4_records) && put_link "$1" && return 0
    folder=$(mktemp -d -p /dev/shm mucg4.XXXXXX 2>/dev/null) && put_link "$1"
}

put_link() { # into $folder
    { printf '%s\n' "$1" >"$folder/result.$$" && ln -sfn -- "$folder/result.$$" "$result"; } 2>/dev/null && return 0
    rm -f -- "$folder/result.$$" 2>/dev/null
    return 1
}

put timeout
if [[ ! $limit =~ ^[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?$|^[0-9]+\.$ ]]; then
    say "not a number of seconds: '$limit'"
    put unknown
    exit 0
fi
if ! mucg4_find; then
    say "mucg4 is not installed: run install_tool.sh v1"
    put unknown
    exit 0
fi

record=
note() { # the record of this run, with the tool's process id once there is one
    [ -n "$record" ] || return 0
    local over
    over=$(LC_ALL=C; printf '%.0f' "$limit")
    {
        printf '%s %s\n' "$$" "$(mucg4_birth $$)"
        printf '%s %s\n' "${tool:-}" "${tool:+$(mucg4_birth "$tool")}"
        printf '%s\n%s\n' "$((${started%.*} + over + 5))" "$result"
    } >"$record.new" 2>/dev/null && mv -f -- "$record.new" "$record" 2>/dev/null
}
tool=
if records=$(mucg4_records); then
    record=$records/run.$$
fi
ended=
trap 'ended=1; [ -n "$tool" ] && kill -TERM "$tool" 2>/dev/null' TERM INT HUP
"${mucg4_command[@]}" verify "$onnx" "$vnnlib" --result "$result" --timeout "$limit" --headroom 1 \
    --started "$started" --caller "$$" </dev/null &
tool=$!
[ -n "$ended" ] && kill -TERM "$tool" 2>/dev/null # the signal came before there was a tool to pass it on to
note
while :; do # a trapped signal ends `wait` early
    wait "$tool"
    status=$?
    [ -n "$(mucg4_birth "$tool")" ] || break
done
[ "$status" -eq 0 ] || say "the tool ended with status $status"
[ -n "$record" ] && rm -f -- "$record" "$record.new"

word=
if [ -f "$result" ] || [ ! -e "$result" ]; then
    { IFS= read -r word <"$result"; } 2>/dev/null
    case $word in
        sat | unsat | unknown | timeout) ;;
        *) put unknown ;;
    esac
fi
exit 0
