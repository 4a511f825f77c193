#!/usr/bin/env bash
# Serves an index of several machines with Ray (docs/cluster.md). INDEX lies on storage that all
# nodes see under the same path.
#
#   bash launch/ray_index.sh head INDEX [CODES [SHARDS]]   # the first host: Ray's head and the index
#   bash launch/ray_index.sh node HOST:6379                # every other host
#   bash launch/ray_index.sh local INDEX [CODES [SHARDS]]  # one host alone: a single replica a shard
#   bash launch/ray_index.sh stop                          # this host's part
#
# With CODES, a run's codes/database.npz, the shards are written first.
set -e
usage() { sed -n '5,8s/^# *//p' "$0" >&2; exit 2; }
case "$1" in head | local | node | stop) ;; *) usage ;; esac
. "$(dirname "$0")/setup.sh" cluster
python=.venv/bin/python ray=.venv/bin/ray

write_shards() {  # INDEX CODES SHARDS
  [ -z "$2" ] || $python -m mch_jax.cluster --index="$1" --codes="$2" --shards="${3:-4}"
}

case "$1" in
  head | local)
    [ -n "$2" ] || usage
    write_shards "$2" "$3" "$4"
    $ray status > /dev/null 2>&1 || $ray start --head --port=6379
    if [ "$1" = local ]; then
      replicas=1
    else
      replicas=2
      echo "waiting for a second node: bash launch/ray_index.sh node $(hostname -i | cut -d' ' -f1):6379"
      until [ "$($ray status 2> /dev/null | grep -c '^ 1 node_')" -ge 2 ]; do sleep 2; done
    fi
    $python -m mch_jax.cluster --index="$2" --replicas=$replicas
    ;;
  node)
    [ -n "$2" ] || usage
    $ray start --address="$2"
    ;;
  stop) $ray stop ;;
esac
