#!/usr/bin/env bash
# The packaging hook of this example: makes the directory in which one pod, or worker, runs its training script.
#
#   ./package.sh -pod_id ID
#
# makes resnet50_pod/ID below the current directory, with the sources of this example and two links:
#   ImageNet           -> $EDL_IMAGENET_PATH    or $PADDLE_EDL_IMAGENET_PATH
#   fleet_checkpoints  -> $EDL_CHECKPOINT_PATH  or $PADDLE_EDL_FLEET_CHECKPOINT_PATH; made if missing.
# A checkpoint URL such as hdfs://host:8020/runs/a cannot be linked: train.py reads it from the variable.
# Called twice with the same ID it changes nothing.
set -euo pipefail

fail() {
  echo "package.sh: $1" >&2
  exit 2
}

[[ $# -eq 2 && $1 =~ ^--?pod_id$ ]] || fail "call it as: package.sh -pod_id ID"
pod_id=$2
[[ $pod_id =~ ^[A-Za-z0-9_][A-Za-z0-9._-]*$ ]] || fail "the pod id '$pod_id' cannot name a directory: use letters, digits, '.', '_' and '-'"

images=${EDL_IMAGENET_PATH:-${PADDLE_EDL_IMAGENET_PATH:-}}
checkpoints=${EDL_CHECKPOINT_PATH:-${PADDLE_EDL_FLEET_CHECKPOINT_PATH:-}}
[[ -n $images ]] || fail "set EDL_IMAGENET_PATH to the folder that holds train/ and val/"
[[ -n $checkpoints ]] || fail "set EDL_CHECKPOINT_PATH to a folder or a URL for the checkpoints"
[[ -d $images ]] || fail "EDL_IMAGENET_PATH is $images, which is not a folder on this machine"

sources=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
images=$(cd "$images" && pwd)
pod=resnet50_pod/$pod_id
mkdir -p "$pod"
cp "$sources"/*.py "$pod/"
ln -sfn "$images" "$pod/ImageNet"
if [[ $checkpoints != *://* ]]; then
  mkdir -p "$checkpoints" || fail "cannot make EDL_CHECKPOINT_PATH $checkpoints"
  checkpoints=$(cd "$checkpoints" && pwd)
  ln -sfn "$checkpoints" "$pod/fleet_checkpoints"
fi
