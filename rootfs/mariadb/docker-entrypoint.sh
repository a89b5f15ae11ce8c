#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Starts mysqld (MariaDB or MySQL); on an empty data directory it first makes the databases and accounts that these ask for:
#   MYSQL_ROOT_PASSWORD | MYSQL_RANDOM_ROOT_PASSWORD=1 | MYSQL_ALLOW_EMPTY_PASSWORD=1     one of the three
#   MYSQL_DATABASE, MYSQL_USER, MYSQL_PASSWORD      each also as …_FILE: the name of a file that holds it
#   /docker-entrypoint-initdb.d/*.sh, *.sql, *.sql.gz      run once, in the order of their names
set -eu

note() { echo "$(date -u +%FT%TZ) [entrypoint] $*"; }
fail() { note "ERROR: $*" >&2; exit 1; }

# from_file NAME: NAME from the file that NAME_FILE names
from_file() {
    eval "file=\${$1_FILE:-} value=\${$1:-}"
    [ -z "$file" ] || [ -z "$value" ] || fail "$1 and $1_FILE are both set"
    [ -z "$file" ] || value=$(cat "$file") || fail "$1_FILE: can't read $file"
    export "$1=$value"
    unset "$1_FILE"
}

# an option alone means: mysqld with it
case ${1:-} in
'' | -*) set -- mysqld "$@" ;;
esac
case $1 in
mysqld | mariadbd) ;;
*) exec "$@" ;;
esac

if [ "$(id -u)" = 0 ]; then
    mkdir -p /var/lib/mysql /run/mysqld
    chown mysql:mysql /run/mysqld
    find /var/lib/mysql ! -user mysql -exec chown mysql:mysql {} +
    exec gosu mysql "$0" "$@"
fi

data=/var/lib/mysql socket=/run/mysqld/mysqld.sock
sql_string() { printf "'%s'" "$(printf %s "$1" | sed "s/\\\\/\\\\\\\\/g; s/'/''/g")"; }
sql_name() { printf '`%s`' "$(printf %s "$1" | sed 's/`/``/g')"; }

if [ ! -d "$data/mysql" ]; then
    for name in MYSQL_ROOT_PASSWORD MYSQL_DATABASE MYSQL_USER MYSQL_PASSWORD; do from_file $name; done
    [ -n "$MYSQL_ROOT_PASSWORD${MYSQL_RANDOM_ROOT_PASSWORD:-}${MYSQL_ALLOW_EMPTY_PASSWORD:-}" ] ||
        fail "the data directory is empty: set MYSQL_ROOT_PASSWORD, MYSQL_RANDOM_ROOT_PASSWORD=1 or MYSQL_ALLOW_EMPTY_PASSWORD=1"
    [ -z "$MYSQL_USER" ] || [ -n "$MYSQL_PASSWORD" ] || fail "MYSQL_USER needs MYSQL_PASSWORD"
    if [ -n "${MYSQL_RANDOM_ROOT_PASSWORD:-}" ]; then
        MYSQL_ROOT_PASSWORD=$(od -An -N18 -tx1 /dev/urandom | tr -d ' \n')
        note "GENERATED ROOT PASSWORD: $MYSQL_ROOT_PASSWORD"
    fi

    note "making the system tables in $data"
    if command -v mariadb-install-db >/dev/null; then
        mariadb-install-db --user=mysql --datadir="$data" --skip-test-db --auth-root-authentication-method=normal >/dev/null
    else
        "$1" --initialize-insecure --datadir="$data"
    fi

    note "starting it once, without network, to make accounts"
    "$@" --skip-networking --socket="$socket" &
    server=$!
    client=$(command -v mariadb || command -v mysql)
    tries=0
    until "$client" --socket="$socket" -u root -e 'SELECT 1' >/dev/null 2>&1; do
        tries=$((tries + 1))
        kill -0 $server 2>/dev/null && [ $tries -lt 600 ] || fail "the server did not start"
        sleep 0.1
    done
    {
        if [ -n "$MYSQL_DATABASE" ]; then
            echo "CREATE DATABASE IF NOT EXISTS $(sql_name "$MYSQL_DATABASE");"
        fi
        if [ -n "$MYSQL_USER" ]; then
            echo "CREATE USER $(sql_string "$MYSQL_USER")@'%' IDENTIFIED BY $(sql_string "$MYSQL_PASSWORD");"
            [ -z "$MYSQL_DATABASE" ] || echo "GRANT ALL ON $(sql_name "$MYSQL_DATABASE").* TO $(sql_string "$MYSQL_USER")@'%';"
        fi
        if [ -n "$MYSQL_ROOT_PASSWORD" ]; then
            echo "CREATE USER 'root'@'%' IDENTIFIED BY $(sql_string "$MYSQL_ROOT_PASSWORD");"
            echo "GRANT ALL ON *.* TO 'root'@'%' WITH GRANT OPTION;"
            echo "ALTER USER 'root'@'localhost' IDENTIFIED BY $(sql_string "$MYSQL_ROOT_PASSWORD");"
        fi
    } | "$client" --socket="$socket" -u root
    export MYSQL_PWD="$MYSQL_ROOT_PASSWORD"
    for file in /docker-entrypoint-initdb.d/*; do
        case $file in
        *.sh) note "running $file" && . "$file" ;;
        *.sql) note "running $file" && "$client" --socket="$socket" -u root ${MYSQL_DATABASE:+"$MYSQL_DATABASE"} <"$file" ;;
        *.sql.gz) note "running $file" && gzip -dc "$file" | "$client" --socket="$socket" -u root ${MYSQL_DATABASE:+"$MYSQL_DATABASE"} ;;
        esac
    done
    echo SHUTDOWN | "$client" --socket="$socket" -u root
    wait $server
    unset MYSQL_PWD
    note "ready for the first start"
fi
unset MYSQL_ROOT_PASSWORD MYSQL_PASSWORD 2>/dev/null || :
exec "$@"
