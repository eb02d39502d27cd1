#!/bin/bash
# Start a private PostgreSQL cluster on loopback, run the given command with FEDLEARN_TEST_POSTGRES set, stop it.
# Installs Debian's server if there is none. The server refuses to run as root: then it runs as another user.
set -euo pipefail

programs() {
    local folder
    folder=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -1)
    if [ -n "$folder" ]; then echo "$folder"; elif command -v initdb >/dev/null; then dirname "$(command -v initdb)"; fi
}

if [ -z "$(programs)" ]; then
    echo "installing postgresql ..."
    ${SUDO:-} apt-get install --yes --no-install-recommends postgresql >/dev/null
fi
bin=$(programs)
folder=$(mktemp -d)
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
user() { "$@"; }
if [ "$(id -u)" = 0 ]; then
    account=$(id -un postgres 2>/dev/null || echo nobody)
    chown "$account" "$folder"
    user() { setpriv --reuid "$account" --regid "$(id -gn "$account")" --clear-groups env -C / HOME="$folder" "$@"; }
fi
stop() {
    user "$bin/pg_ctl" --pgdata="$folder/data" --mode=fast stop >/dev/null || true
    rm -rf "$folder"
}
trap stop EXIT

user "$bin/initdb" --pgdata="$folder/data" --username=fedlearn --auth=trust --encoding=UTF8 --no-locale >/dev/null
user "$bin/pg_ctl" --pgdata="$folder/data" --log="$folder/log" --wait \
    --options="-c listen_addresses=127.0.0.1 -c port=$port -c unix_socket_directories=$folder" start >/dev/null ||
    { cat "$folder/log"; exit 1; }
FEDLEARN_TEST_POSTGRES="postgresql://fedlearn@127.0.0.1:$port/postgres" "$@"
