#!/usr/bin/env bash
# Submit a job to a cluster that `ray up` started, and follow its log:
#   cluster/submit.sh cluster/aws/cluster.yaml rlaif --config configs/mine.yaml [key=value ...]
# The second argument is a file of jobs/. The job goes on when this is stopped. Needs ~/.ray/auth_token (docs/aws.md, docs/gcp.md);
# the dashboard is reached through an SSH tunnel on port 8265 of this machine, as it is open to nobody else.
set -euo pipefail
cd "$(dirname "$0")/.."
if (($# < 3)); then
    sed -n '2,5s/^# //p' "$0" >&2
    exit 2
fi
cluster=$1 job=$2
shift 2
if [[ ! -f jobs/$job.py ]]; then
    echo "submit: there is no jobs/$job.py" >&2
    exit 2
fi
export RAY_AUTH_MODE=token
ray=${RAY:-.venv/bin/ray}
"$ray" dashboard "$cluster" >/dev/null &
tunnel=$!
trap 'kill "$tunnel" 2>/dev/null || true' EXIT
for _ in {1..60}; do
    if (: </dev/tcp/127.0.0.1/8265) 2>/dev/null; then
        break
    fi
    sleep 1
done
# Code only is uploaded; data and models lie in the bucket. A job that is stopped gets a minute to leave its stage in order.
"$ray" job submit --address http://127.0.0.1:8265 --runtime-env-json '{
    "working_dir": ".",
    "excludes": ["/.git", "/.venv", "/build", "/runs", "/tests", "/benchmarks", "/docs"],
    "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}
}' -- python "jobs/$job.py" "$@"
