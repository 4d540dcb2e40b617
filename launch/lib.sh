# Functions of the shell launchers. They source this file.
# shellcheck shell=bash

fail() { # CAUSE CURE
  printf 'error: %s\n  cure: %s\n' "$1" "$2" >&2
  exit 2
}

usage() { # print the head of the calling script
  sed -n '2,/^[^#]/ { /^#/! d; s/^# \{0,1\}//; p }' "$0"
  exit
}

say() { printf '%s %s\n' "$(date -u +%H:%M:%S)" "$1" >&2; }

show() { # print a command with the quotes that a shell needs
  local word line=
  for word; do
    [[ $word =~ ^[][A-Za-z0-9_./:=@%+,-]+$ ]] || word=${word@Q}
    line+=" $word"
  done
  printf '%s\n' "${line# }"
}
