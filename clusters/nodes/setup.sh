#!/usr/bin/env bash
# Makes this machine a node of a cluster: an environment in ~/raygrid-env with pinned versions, and variables for every shell.
#
#   setup.sh NAME=VALUE ...      variables are kept in ~/.raygrid.env; running it again changes only what differs
#
# An image that was made with it (same clusters/constraints.txt) installs nothing: nodes then start without the network.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
environment="$HOME/raygrid-env"
wanted="$(sha256sum < clusters/constraints.txt | cut -c1-16)"

if [ "$(cat "$environment/.complete" 2>/dev/null)" != "$wanted" ]; then
  rm -rf "$environment"
  if ! python3 -c 'import ensurepip, sys; assert sys.version_info >= (3, 11), sys.version'; then
    sudo apt-get update -q
    sudo apt-get install -y -q --no-install-recommends python3 python3-venv
  fi
  python3 -m venv "$environment"
  "$environment/bin/pip" install -q --no-input -c clusters/constraints.txt -e . boto3
  echo "$wanted" > "$environment/.complete"
fi

(
  umask 077
  touch "$HOME/.raygrid.env"
  {
    # shellcheck disable=SC2016
    echo 'case ":$PATH:" in *":$HOME/raygrid-env/bin:"*) ;; *) export PATH="$HOME/raygrid-env/bin:$PATH" ;; esac'
    echo 'export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 MLFLOW_DISABLE_TELEMETRY=true'
    grep '^export [A-Z_]*=' "$HOME/.raygrid.env" | grep -v '^export RAY_AUTH_MODE=' | while read -r line; do
      name="${line#export }"
      name="${name%%=*}"
      case " $* " in *" $name="*) ;; *) echo "$line" ;; esac
    done || true
    for pair in "$@"; do
      printf 'export %s=%q\n' "${pair%%=*}" "${pair#*=}"
    done
  } > "$HOME/.raygrid.env.new"
  mv "$HOME/.raygrid.env.new" "$HOME/.raygrid.env"
)
grep -qs 'raygrid.env' "$HOME/.bashrc" || echo '. "$HOME/.raygrid.env"' >> "$HOME/.bashrc"
if [ -e "$HOME/.ray/auth_token" ]; then
  chmod 700 "$HOME/.ray"
  chmod 600 "$HOME/.ray/auth_token"
else
  echo "raygrid: this node has no Ray token (~/.ray/auth_token): make one where you run ray up, then run it again:" >&2
  echo "  (umask 077; ray get-auth-token --generate)" >&2
  exit 1
fi
