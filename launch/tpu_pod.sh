#!/usr/bin/env bash
# Run a job on a Cloud TPU slice.
#
#   launch/tpu_pod.sh create --name=clip --zone=us-west4-a --type=v5litepod-64 --spot
#   launch/tpu_pod.sh push   --name=clip --zone=us-west4-a --setup='sudo mount 10.0.0.2:/runs /mnt'
#   launch/tpu_pod.sh run    --name=clip --zone=us-west4-a -- --config=configs/clip_vitb16.py --workdir=/mnt/clip
#   launch/tpu_pod.sh tail | status | stop | delete   --name=clip --zone=us-west4-a
#   launch/tpu_pod.sh recreate [all of the options] -- FLAGS    delete, create, push and run, once
#   launch/tpu_pod.sh keep     [all of the options] -- FLAGS    the same after each pre-emption, until the job is done
#
# --dry_run prints the exact commands and runs nothing. --workdir must lie on storage that all hosts share.
# Options: --project=, --version= (TPU software; default: by type), --spot, --reserved, --direct (create at once or fail,
# without the queue), --setup= (a command for every host after each push), --poll= (seconds between status checks; 60),
# --max_restarts= (for keep: most restarts, and most failures in a row; 50).
set -euo pipefail
# shellcheck source=launch/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
verbs=' create push run tail status stop delete recreate keep '
dry_run='' verb='' name='' zone='' type='' version='' setup='' direct='' poll=60 max_restarts=50
where=() tier=() flags=()
while (($#)); do
  case $1 in
    -h | --help) usage ;;
    --dry_run) dry_run=1 ;;
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --project=?*) where+=("$1") ;;
    --type=*) type=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --setup=*) setup=${1#*=} ;;
    --poll=*) poll=${1#*=} ;;
    --max_restarts=*) max_restarts=${1#*=} ;;
    --direct) direct=1 ;;
    --spot | --reserved) tier+=("$1") ;;
    --) shift && flags=("$@") && break ;;
    -*) fail "launch/tpu_pod.sh has no option '$1'" "its head lists them; flags of nml_jax.main come after --" ;;
    *)
      [[ ! $verb ]] || fail "two commands, '$verb' and '$1'" "give one of:$verbs"
      verb=$1
      ;;
  esac
  shift
done
[[ $verb && $verbs == *" $verb "* ]] || fail "'$verb' is not a command" "give one of:$verbs"
[[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] ||
  fail "--name='$name' cannot name a TPU" "give lower-case letters, digits and -, as in --name=clip"
[[ $zone ]] || fail "no zone" "give --zone=ZONE, as in --zone=us-west4-a"
[[ $poll =~ ^[0-9]+$ && $max_restarts =~ ^[0-9]+$ ]] ||
  fail "--poll=$poll and --max_restarts=$max_restarts must be whole numbers" "as in --poll=60 --max_restarts=50"
if [[ ' create recreate keep ' == *" $verb "* ]]; then
  [[ $type ]] || fail "no type of TPU" "give --type=TYPE, as in --type=v5litepod-64"
  case $type in
    v5litepod-*) : "${version:=v2-alpha-tpuv5-lite}" ;;
    v5p-*) : "${version:=v2-alpha-tpuv5}" ;;
    v6e-*) : "${version:=v2-alpha-tpuv6e}" ;;
    v[234]-*) : "${version:=tpu-ubuntu2204-base}" ;;
    *) [[ $version ]] || fail "unknown TPU software for type '$type'" "give --version=VERSION" ;;
  esac
fi
if [[ ' run recreate keep ' == *" $verb "* ]] && ((${#flags[@]} == 0)); then
  fail "$verb without flags of nml_jax.main" "add -- --config=FILE --workdir=DIR"
fi
[[ ! $dry_run ]] || remote=1 check_config "${flags[@]}"
where=("--zone=$zone" "${where[@]}")
status='bash nml_jax/launch/on_worker.sh status 2>/dev/null || echo nml_jax: none'
files='git ls-files -z --cached --others --exclude-standard'
revision=$(git -C "$root" describe --always --dirty=+ 2>/dev/null || true)
archive=''

# Run a command, or print it.
run() {
  if [[ $dry_run ]]; then
    show "$@"
  else
    "$@"
  fi
}

on() { # HOSTS COMMAND: on these hosts, all at once
  run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker="$1" --command="$2"
}

create() {
  if [[ $direct ]]; then
    run gcloud compute tpus tpu-vm create "$name" "${where[@]}" --accelerator-type="$type" --version="$version" \
      "${tier[@]}"
  else
    run gcloud compute tpus queued-resources create "$name" "${where[@]}" --node-id="$name" --accelerator-type="$type" \
      --runtime-version="$version" "${tier[@]}"
  fi
}

delete() {
  if [[ $direct ]]; then
    run gcloud compute tpus tpu-vm delete "$name" "${where[@]}" --quiet
  else
    run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
  fi
}

describe() {
  if [[ $direct ]]; then
    run gcloud compute tpus tpu-vm describe "$name" "${where[@]}" --format='value(state)'
  else
    run gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format='value(state.state)'
  fi
}

# READY, GONE (pre-empted or failed), ABSENT, or what it is waiting for.
state() {
  local answer
  if answer=$(describe 2>&1); then
    case $answer in
      ACTIVE | READY) echo READY ;;
      SUSPENDED | FAILED | PREEMPTED | TERMINATED | STOPPED) echo GONE ;;
      *) echo "$answer" ;;
    esac
  elif [[ $answer == *NOT_FOUND* || $answer == *'not found'* ]]; then
    echo ABSENT
  else
    echo "UNKNOWN: ${answer//$'\n'/ }" # no network, say
  fi
}

await() { # STATE
  local now
  if [[ $dry_run ]]; then describe && return; fi
  while now=$(state) && [[ $now != "$1" ]]; do
    [[ $now != GONE || $1 == ABSENT ]] || return 1
    say "$name is $now" && sleep "$poll"
  done
}

pack() { # pack the checkout once, so that later pushes send the same files
  [[ ! $archive ]] || return 0
  if [[ $dry_run ]]; then
    archive=nml_jax.tgz
    echo "(cd $(show "$root") && $files | tar --null -T - -czf $(show "$PWD/$archive"))"
  else
    archive=$(mktemp -d)/nml_jax.tgz
    trap 'rm -rf "$(dirname "$archive")"' EXIT
    (cd "$root" && $files | tar --null -T - -czf "$archive")
  fi
}

# The TPU's images have an older Python; uv brings one.
# shellcheck disable=SC2016  # the hosts expand these
install='mkdir -p nml_jax && tar -xzf nml_jax.tgz -C nml_jax && cd nml_jax
echo '$revision' >REVISION
python3 -m pip install -q --user uv && export PATH=$HOME/.local/bin:$PATH
[ -d .venv ] || uv venv -q --python 3.11
uv pip install -q -c constraints.txt -e . "jax[tpu]"'

push() {
  pack || return
  run gcloud compute tpus tpu-vm scp "$archive" "$name:nml_jax.tgz" "${where[@]}" --worker=all || return
  on all "set -e; ${install//$'\n'/; }" || return
  [[ ! $setup ]] || on all "$setup"
}

start() { on all "bash nml_jax/launch/on_worker.sh start -- $(show "${flags[@]}")"; }

recreate() {
  if ! { delete && await ABSENT && create && await READY && push && start; }; then
    fail "$name could not be created or started" "see the message above and launch/tpu_pod.sh status"
  fi
}

# For keep: count a restart after a pre-emption or a lost process. After the last one, explain and exit.
again() {
  if ((restarts == max_restarts)); then
    say "not started again after $restarts restarts; find the reason, then the same command continues; $name costs \
money until launch/tpu_pod.sh delete"
    exit 76
  fi
  ((restarts += 1))
}

# For keep: count a failure. After too many in a row, exit.
failed() { # WHAT
  say "$1"
  ((failures += 1))
  ((failures <= max_restarts)) ||
    fail "$1, $failures times in a row" \
      "see above; $name costs money until launch/tpu_pod.sh delete; the same command continues"
}

keep() {
  local restarts=0 failures=0 now report codes answer
  if [[ $dry_run ]]; then
    create && await READY && push && start && on all "$status"
    echo '# after exit codes 75 and 76:' && start
    echo '# after a pre-emption:' && recreate
    return
  fi
  pack
  while :; do
    now=$(state)
    case $now in
      ABSENT) create || failed "$name could not be created" ;;
      GONE)
        again
        say "$name was pre-empted or failed; deleting and creating it again"
        if delete; then await ABSENT; else failed "$name could not be deleted"; fi
        ;;
      READY)
        if ! report=$(on all "$status"); then
          failed "$name does not answer"
        elif [[ $report == *'nml_jax: running'* ]]; then
          failures=0
          say "$name runs"
        elif [[ $report != *'nml_jax: exit'* ]]; then
          if ! { push && start; }; then failed "$name could not be started"; fi
        else
          codes=$(sed -n 's/.*nml_jax: exit //p' <<<"$report" | tr '\n' ' ')
          # shellcheck disable=SC2086  # a list of numbers
          answer=$(python3 "$root/launch/exits.py" $codes)
          say "$answer (exit codes: $codes)"
          [[ $answer != done* && $answer != stop* ]] || say "$name costs money until launch/tpu_pod.sh delete"
          case $answer in
            done*) return ;;
            stop*) answer=${answer#* } && return "${answer%%:*}" ;;
            *)
              again
              start || failed "$name could not be started"
              ;;
          esac
        fi
        ;;
      *) say "$name is $now" ;;
    esac
    sleep "$poll"
  done
}

case $verb in
  run) start ;;
  tail) on 0 'tail -n 100 -F nml_jax_job/log' ;;
  status)
    describe
    on all "$status"
    ;;
  stop) on all 'bash nml_jax/launch/on_worker.sh stop' ;;
  *)
    "$verb"
    exit # bash reads a script while it runs, so it must not read on if the file has changed
    ;;
esac
