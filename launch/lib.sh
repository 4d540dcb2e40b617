# Functions of the shell launchers. They source this file.
# shellcheck shell=bash

fail() { # CAUSE CURE
  printf 'error: %s\n  cure: %s\n' "$1" "$2" >&2
  exit 2
}

check_config() { # FLAGS OF nml_jax.main; remote=1: absolute paths are those of other machines
  local flag before='' file
  for flag; do
    file=''
    case $flag in --config=*) file=${flag#*=} ;; *) [[ $before == --config ]] && file=$flag ;; esac
    before=$flag file=${file%%:*}
    [[ ! $file || (${remote:-} && $file == /*) ]] && continue
    [[ -f $file || -f $(dirname "${BASH_SOURCE[0]}")/../$file ]] ||
      fail "there is no config file '$file'" "give --config=FILE, as in --config=configs/digits.py"
  done
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
