#!/bin/sh
# Runs a small grid from data to report in FOLDER, and removes it: what an image or a node must be able to do.
#
#   check.sh FOLDER
set -eu
status=0
python -m raygrid.launch icons --out "$1" \
  --set recipe.epochs=1 --set network.width=0.25 --set images_per_class=20 \
  --set 'splits=[{kind: random, seed: 0}]' --set 'layers=[1, 7]' || status=$?
if [ "$status" -gt 1 ] || ! [ -s "$1/icons/results.parquet" ] || ! [ -s "$1/icons/report/figure2.png" ]; then
  echo "raygrid: the check failed: exit code $status, and in $1:" >&2
  ls -R "$1" >&2 || true
  exit 1
fi
rm -rf "$1"
