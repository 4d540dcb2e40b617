# What the shell launchers share. It is sourced, not run.
# shellcheck shell=bash

fail() { # CAUSE CURE
  printf 'error: %s\n  cure: %s\n' "$1" "$2" >&2
  exit 2
}

usage() { # the head of the script that has sourced this
  sed -n '2,/^[^#]/ { /^#/! d; s/^# \{0,1\}//; p }' "$0"
  exit
}

say() { printf '%s %s\n' "$(date -u +%H:%M:%S)" "$1" >&2; }

show() { # print a command as a shell reads it
  local word line=
  for word; do
    [[ $word =~ ^[][A-Za-z0-9_./:=@%+,-]+$ ]] || word=${word@Q}
    line+=" $word"
  done
  printf '%s\n' "${line# }"
}
