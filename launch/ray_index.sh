#!/usr/bin/env bash
# Serves an index on several machines with Ray (docs/cluster.md). INDEX is a directory on storage that
# all nodes mount under the same path.
#
#   bash launch/ray_index.sh head INDEX [CODES [SHARDS]]   # on the first host: Ray's head and the index
#   bash launch/ray_index.sh node HOST:6379                # on every other host
#   bash launch/ray_index.sh local INDEX [CODES [SHARDS]]  # on a single host: one replica per shard
#   bash launch/ray_index.sh stop                          # stops Ray on this host
#
# With CODES, the codes/database.npz of a run, the shards are written first.
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
