#!/usr/bin/env bash
# The MLflow server of a cluster, on the head, for this machine alone: reach it through a tunnel.
#
#   mlflow.sh ARTIFACTS          where figures and tables go: s3://..., gs://... or a folder
#
# One process (more cost 44 ms a request), a pool larger than its threads (fewer connections than that deadlock), no job
# runner (which saves memory and an attack surface). Its database holds nothing that the store does not: after a loss,
# `python -m raygrid.track sync STUDY` writes it anew.
set -euo pipefail
folder="$HOME/mlflow"
port="${RAYGRID_MLFLOW_PORT:-5000}"
mkdir -p "$folder"
chmod 700 "$folder"
if (exec 3<> "/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
  echo "An MLflow server is on port $port already."
  exit 0
fi
MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false \
MLFLOW_SQLALCHEMYSTORE_POOL_SIZE=90 \
MLFLOW_DISABLE_TELEMETRY=true \
setsid nohup mlflow server \
  --host 127.0.0.1 --port "$port" --workers 1 \
  --backend-store-uri "${RAYGRID_MLFLOW_DATABASE:-sqlite:///$folder/mlflow.db}" \
  --artifacts-destination "$1" \
  > "$folder/server.log" 2>&1 < /dev/null &
