# Sourced by the competition scripts: where the tool is, and the records of its runs.
#
# A record is a file `run.PID` in a folder of this user alone. Its lines: process id and start time of the script,
# those of the tool (once it runs), the moment (seconds since the epoch) when the run must be over, and the result
# file. A run is a leftover when its script is gone or its time is over; nothing else is ever killed or removed.
set +x
mucg4_home=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)

# The command that runs the tool, in the array mucg4_command: the environment made by install_tool.sh, else PATH.
mucg4_find() {
    if [ -x "$mucg4_home/.venv/bin/python" ] && [ -e "$mucg4_home/.venv/bin/mucg4" ]; then
        mucg4_command=("$mucg4_home/.venv/bin/python" -I -m mucg4)
    elif command -v mucg4 >/dev/null 2>&1; then
        mucg4_command=("$(command -v mucg4)")
    else
        mucg4_command=()
        return 1
    fi
}

# Prints the folder of run records, made if need be; fails where there is none that only this user can write.
mucg4_records() {
    local base=${XDG_RUNTIME_DIR:-}
    if [ -z "$base" ] || [ ! -d "$base" ] || [ ! -w "$base" ]; then
        base=$(dirname -- "$(mktemp -u -t mucg4.XXXXXX)") || return 1
    fi
    base=$base/mucg4-$(id -u)
    mkdir -m 700 "$base" 2>/dev/null
    [ -d "$base" ] && [ ! -L "$base" ] && [ -O "$base" ] && [ -w "$base" ] && printf '%s\n' "$base"
}

# Start time of process $1 in clock ticks: with the process id it names a process for good. Empty when it is gone.
mucg4_birth() {
    local line
    { read -r line <"/proc/$1/stat"; } 2>/dev/null || return 0
    line=${line##*) }
    set -- $line
    [ "$1" = Z ] || printf '%s\n' "${20}"
}

# True when process $1 still is the one that was started at $2.
mucg4_alive() {
    [ -n "$1" ] && [ -n "$2" ] && [ "$(mucg4_birth "$1")" = "$2" ]
}

# Ends process $1 started at $2, gently first.
mucg4_end() {
    mucg4_alive "$1" "$2" || return 0
    kill -TERM "$1" 2>/dev/null
    local _
    for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        mucg4_alive "$1" "$2" || return 0
        sleep 0.1
    done
    kill -KILL "$1" 2>/dev/null
}

# Removes the temporary files of result file $1 that no living process is writing.
mucg4_sweep() {
    local part pid
    for part in "$(dirname -- "$1")/.$(basename -- "$1").mucg4-"*.tmp; do
        [ -f "$part" ] && [ -O "$part" ] || continue
        pid=${part%.tmp}
        pid=${pid##*-}
        [ -n "$(mucg4_birth "$pid")" ] || rm -f -- "$part"
    done
}

# Ends the leftovers of earlier runs and removes their temporary files and records.
mucg4_clean() {
    local records record script script_birth tool tool_birth over result
    records=$(mucg4_records) || return 0
    for record in "$records"/run.*; do
        [ -f "$record" ] || continue
        { read -r script script_birth; read -r tool tool_birth; read -r over; IFS= read -r result; } <"$record"
        case $over in '' | *[!0-9]*) over=0 ;; esac
        if mucg4_alive "$script" "$script_birth" && [ "$(date +%s)" -le "$over" ]; then
            continue
        fi
        mucg4_end "$tool" "$tool_birth"
        mucg4_end "$script" "$script_birth"
        [ -n "$result" ] && mucg4_sweep "$result"
        rm -f -- "$record"
    done
    # Words that had no room beside their result file, and links whose owner has long read them.
    find "$records" -maxdepth 1 -name '*result.*' -mtime +0 -exec rm -f -- {} + 2>/dev/null
}
