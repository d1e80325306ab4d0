#!/bin/sh
# The database's password comes from a file, so that it stands in no URL, no `docker inspect` and no `fa-tune config`.
set -eu
if [ -n "${PGPASSWORD_FILE:-}" ]; then
    PGPASSWORD=$(cat "$PGPASSWORD_FILE")
    export PGPASSWORD
fi
exec "$@"
