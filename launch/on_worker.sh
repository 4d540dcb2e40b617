#!/usr/bin/env bash
# On one host of a pod, start nml_jax in the background, print its status, or ask it to save and stop. launch/tpu_pod.sh
# calls this on all hosts at once. Log, process id and exit code lie in ~/nml_jax_job.
#
#   launch/on_worker.sh [--dry_run] start -- --config=... | status | stop
set -euo pipefail
# shellcheck source=launch/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage="launch/on_worker.sh [--dry_run] start -- FLAGS OF nml_jax.main | status | stop"
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
job=$HOME/nml_jax_job
python=${NML_PYTHON:-$root/.venv/bin/python}
dry_run=
if [[ ${1:-} == --dry_run ]]; then dry_run=1 && shift; fi
(($#)) || fail "no command" "$usage"
verb=$1
shift

running() { [[ -f $job/pid ]] && kill -0 "$(<"$job/pid")" 2>/dev/null; }

case $verb in
  start)
    [[ ${1:-} == -- ]] || fail "no -- before the flags of nml_jax.main" "$usage"
    shift
    # shellcheck disable=SC2016  # the inner shell expands these
    command=(setsid bash -c 'echo $$ >"$0/pid"; trap : TERM; code=0; "$@" || code=$?; echo "$code" >"$0/code"'
      "$job" "$python" -m nml_jax.main "$@")
    if [[ $dry_run ]]; then
      check_config "$@"
      show cd "$root" && echo "$(show "${command[@]}") >>$(show "$job/log") 2>&1 </dev/null &"
      exit
    fi
    running && fail "nml_jax is already running on $HOSTNAME" "stop it first"
    mkdir -p "$job" && rm -f "$job/code" "$job/pid" && cd "$root"
    "${command[@]}" >>"$job/log" 2>&1 </dev/null &
    for _ in {1..50}; do [[ -f $job/pid ]] && exit; sleep 0.1; done
    fail "nml_jax did not start on $HOSTNAME" "see $job/log"
    ;;
  status)
    if running; then
      echo "nml_jax: running"
    elif [[ -f $job/code ]]; then
      echo "nml_jax: exit $(<"$job/code")"
    elif [[ -f $job/pid ]]; then
      echo "nml_jax: exit 137" # killed with its shell
    else
      echo "nml_jax: none"
    fi
    ;;
  stop)
    if [[ $dry_run ]]; then
      echo "kill -TERM -- -\$(<$(show "$job/pid"))"
    elif running; then
      kill -TERM -- "-$(<"$job/pid")" # the whole group: the shell waits, the program saves
    fi
    ;;
  *) fail "there is no command '$verb'" "$usage" ;;
esac
