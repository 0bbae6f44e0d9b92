#!/usr/bin/env bash
# Prepares a TPU VM for the zoo: Python, a virtual environment, the `tpu` extra, a device check. See --help.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: bash tpu_setup.sh [--venv DIR] [--skip-device-check] [--dry-run]
       bash tpu_setup.sh --all-workers NAME[,NAME...] --zone ZONE [--project PROJECT] [--venv DIR] [--skip-device-check]
                         [--dry-run]

On a TPU VM: finds Python 3.11 or newer (installs one where there is none), makes a virtual environment, installs this
checkout with the `tpu` extra and the versions of constraints.txt, and checks that jax sees the TPU. What is already
there is left alone, so it is safe to run again: after an update of the checkout, or after an interruption.

With --all-workers, on any machine that has gcloud: copies this checkout to ~/zoo on every worker of a TPU slice and
runs itself there, on all workers at the same time; the device check then counts the devices of the whole slice. Several
slices that will train together are named together, NAME,NAME: jax on one of them waits for the others.

  --venv DIR            the virtual environment [~/zoo-venv]; with --all-workers a relative DIR is below the home folder
  --skip-device-check   do not ask jax for the TPU at the end
  --dry-run             print the commands that would be run, run none
  --all-workers NAME    set up every worker of the TPU slice NAME, or of several slices, NAME,NAME,...
  --zone ZONE           the slices' zone (with --all-workers)
  --project PROJECT     the slices' project (with --all-workers) [gcloud's default]
  --distributed         the other workers of the slice run this too: check all devices together (--all-workers sets it)
  --help                this text

exit codes: 0 done; 2 wrong arguments; 1 anything else
TEXT
}

fail() { # fail CODE MESSAGE: one line on standard error
  echo "error: $2" >&2
  exit "$1"
}

shell_word() { # one argument as it could be typed
  if [[ $1 =~ ^[A-Za-z0-9_./:=@%+,~^-]+$ ]]; then
    printf '%s' "$1"
  elif [[ $1 != *"'"* ]]; then
    printf "'%s'" "$1"
  else
    printf '%q' "$1"
  fi
}

run() { # prints a command; runs it unless this is a dry run
  local word line=
  for word in "$@"; do line+=" $(shell_word "$word")"; done
  echo "+$line"
  if [[ $dry_run == no ]]; then "$@"; fi
}

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=
dry_run=no
device_check=yes
distributed=no
tpu_name=
zone=
project=

parse_arguments() {
  while (($#)); do
    case $1 in
      --venv | --all-workers | --zone | --project)
        [[ $# -ge 2 && -n $2 && $2 != --* ]] || fail 2 "$1 needs a value (see --help)"
        case $1 in
          --venv) venv=$2 ;;
          --all-workers) tpu_name=$2 ;;
          --zone) zone=$2 ;;
          --project) project=$2 ;;
        esac
        shift
        ;;
      --skip-device-check) device_check=no ;;
      --dry-run) dry_run=yes ;;
      --distributed) distributed=yes ;;
      -h | --help)
        usage
        exit 0
        ;;
      *) fail 2 "unknown argument '$1' (see --help)" ;;
    esac
    shift
  done
  if [[ -n $tpu_name && -z $zone ]]; then fail 2 "--all-workers needs --zone ZONE"; fi
  if [[ -n $tpu_name && ,$tpu_name, == *,,* ]]; then fail 2 "--all-workers '$tpu_name' holds an empty name"; fi
  if [[ -z $tpu_name && -n $zone$project ]]; then fail 2 "--zone and --project belong to --all-workers TPU_NAME"; fi
}

# ---- every worker of one or several slices ---------------------------------------------------------------------------

setup_all_workers() {
  local archive remote name process failed=
  local -a names processes=()
  local -a target=("--zone=$zone" "--worker=all") options=()
  if [[ -n $project ]]; then target+=("--project=$project"); fi
  if [[ $dry_run == no ]]; then
    command -v gcloud >/dev/null || fail 1 "--all-workers needs gcloud, and it is not on PATH"
  fi
  if [[ -n $venv ]]; then options+=(--venv "$venv"); fi
  if [[ $device_check == no ]]; then options+=(--skip-device-check); fi

  archive=${TMPDIR:-/tmp}/zoo-checkout.tar.gz
  run tar --create --gzip --file="$archive" --directory="$checkout" --exclude=./.git --exclude=./.venv --exclude=./runs \
    --exclude=./build --exclude='./.*_cache' --exclude=__pycache__ .
  IFS=, read -ra names <<<"$tpu_name"
  for name in "${names[@]}"; do
    run gcloud compute tpus tpu-vm scp "$archive" "$name:zoo-checkout.tar.gz" "${target[@]}"
  done
  remote='mkdir -p zoo && tar --extract --gzip --file=zoo-checkout.tar.gz --directory=zoo'
  remote+=' && bash zoo/tpu_setup.sh --distributed'
  if ((${#options[@]})); then remote+=$(printf ' %q' "${options[@]}"); fi
  if ((${#names[@]} == 1)); then
    run gcloud compute tpus tpu-vm ssh "$tpu_name" "${target[@]}" --command="$remote"
    return
  fi
  for name in "${names[@]}"; do # at the same time: the device check of each slice waits for the others
    run gcloud compute tpus tpu-vm ssh "$name" "${target[@]}" --command="$remote" &
    processes+=($!)
  done
  for process in "${!processes[@]}"; do
    wait "${processes[process]}" || failed+=" ${names[process]}"
  done
  if [[ -n $failed ]]; then fail 1 "not set up (see above):$failed"; fi
}

# ---- this machine ---------------------------------------------------------------------------------------------------

is_new_enough() { # is_new_enough PYTHON
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

can_make_venvs() { # Debian and Ubuntu ship ensurepip in a package of its own
  "$1" -c 'import ensurepip, venv' 2>/dev/null
}

as_root() {
  if [[ $(id -u) == 0 ]]; then run "$@"; else run sudo "$@"; fi
}

# Sets `python`. The distribution's own Python is preferred, and nothing is installed where a good one is there. Where
# none is (the images with Ubuntu 22.04 have 3.10), uv fetches a stand-alone build into the home folder: this adds no
# package source to the system and leaves the system's python3 as it is.
find_python() {
  local candidate
  for candidate in python3.13 python3.12 python3.11 python3; do
    if command -v "$candidate" >/dev/null && is_new_enough "$candidate"; then
      python=$(command -v "$candidate")
      if can_make_venvs "$python"; then return; fi
    fi
  done
  if [[ -n $python ]]; then
    candidate=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    as_root apt-get update
    as_root apt-get install --yes "$candidate"
    return
  fi
  if ! command -v python3 >/dev/null || ! python3 -c 'import pip' 2>/dev/null; then
    as_root apt-get update
    as_root apt-get install --yes python3-pip
  fi
  run python3 -m pip install --user uv
  run python3 -m uv python install 3.12
  if [[ $dry_run == yes ]]; then
    python=python3.12
    return
  fi
  python=$(python3 -m uv python find 3.12) || fail 1 "no Python >= 3.11, and uv could not install one"
}

make_venv() {
  if [[ -e $venv/bin/python ]]; then
    is_new_enough "$venv/bin/python" ||
      fail 1 "$venv holds a Python older than 3.11: remove it, or name another folder with --venv"
    if "$venv/bin/python" -c 'import pip' 2>/dev/null; then
      echo "virtual environment: $venv (already there)"
      return
    fi # else it was interrupted before pip was in; making it again completes it
  elif [[ -e $venv && ! -e $venv/pyvenv.cfg && -n $(ls -A "$venv") ]]; then
    fail 1 "$venv exists and is no virtual environment: name another folder with --venv"
  fi
  local python=
  find_python
  run "$python" -m venv "$venv"
}

# The stamp names what was installed; it is written last, so that an interrupted install is done again.
install_zoo() {
  local stamp_file=$venv/zoo-installed stamp
  stamp="$checkout $(cat "$checkout/pyproject.toml" "$checkout/constraints.txt" | cksum)"
  if [[ -e $stamp_file && $(cat "$stamp_file") == "$stamp" ]]; then
    echo "packages: installed (already there)"
    return
  fi
  run "$venv/bin/python" -m pip install --constraint "$checkout/constraints.txt" --editable "${checkout}[tpu]"
  if [[ $dry_run == no ]]; then echo "$stamp" >"$stamp_file"; fi
}

readonly check_local='import jax
devices = jax.devices()
print(f"{len(devices)} {devices[0].platform} devices ({devices[0].device_kind}); jax {jax.__version__}")
raise SystemExit(devices[0].platform != "tpu")'

readonly check_slice='import jax
jax.distributed.initialize()
devices = jax.devices()
print(f"worker {jax.process_index()} of {jax.process_count()}: {jax.local_device_count()} of {len(devices)}",
      f"{devices[0].platform} devices ({devices[0].device_kind}); jax {jax.__version__}")
raise SystemExit(devices[0].platform != "tpu")'

check_devices() {
  local program=$check_local
  if [[ $distributed == yes ]]; then program=$check_slice; fi
  # JAX_PLATFORMS: without it jax goes on with the CPU, and the reason why the TPU could not be had is lost.
  run env JAX_PLATFORMS=tpu timeout 300 "$venv/bin/python" -c "$program" ||
    fail 1 "jax did not get the TPU (is another process using it? a slice of several workers needs --all-workers)"
}

setup_this_machine() {
  venv=${venv:-$HOME/zoo-venv}
  case $venv in
    /*) ;;
    *) venv=$PWD/$venv ;;
  esac
  make_venv
  install_zoo
  if [[ $device_check == yes ]]; then check_devices; fi
  if [[ $dry_run == yes ]]; then
    echo "dry run: nothing was changed"
  else
    echo "ready: source $venv/bin/activate"
  fi
}

parse_arguments "$@"
if [[ -n $tpu_name ]]; then setup_all_workers; else setup_this_machine; fi
