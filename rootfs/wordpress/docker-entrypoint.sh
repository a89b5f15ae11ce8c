#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Starts WordPress's web server; wp-config.php says which variables it reads.
set -eu
secret=/var/www/html/.nsrun-secret
if [ ! -s "$secret" ]; then
    (umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$secret")
    chown www-data:www-data "$secret"
fi
exec "$@"
