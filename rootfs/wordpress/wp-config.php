<?php
// SPDX-License-Identifier: Apache-2.0
/* The settings come from the environment: WORDPRESS_DB_HOST, _USER, _PASSWORD, _NAME, WORDPRESS_TABLE_PREFIX; each also as …_FILE. */
function nsrun_setting($name, $default) {
    $file = getenv($name . '_FILE');
    if ($file !== false && $file !== '') {
        return rtrim(file_get_contents($file), "\r\n");
    }
    $value = getenv($name);
    return $value === false ? $default : $value;
}
define('DB_NAME', nsrun_setting('WORDPRESS_DB_NAME', 'wordpress'));
define('DB_USER', nsrun_setting('WORDPRESS_DB_USER', 'wordpress'));
define('DB_PASSWORD', nsrun_setting('WORDPRESS_DB_PASSWORD', ''));
define('DB_HOST', nsrun_setting('WORDPRESS_DB_HOST', '127.0.0.1'));
define('DB_CHARSET', 'utf8mb4');
define('DB_COLLATE', '');
/* The entrypoint makes these once, so that logins survive a restart. */
foreach (array('AUTH_KEY', 'SECURE_AUTH_KEY', 'LOGGED_IN_KEY', 'NONCE_KEY', 'AUTH_SALT', 'SECURE_AUTH_SALT', 'LOGGED_IN_SALT', 'NONCE_SALT') as $key) {
    define($key, hash('sha256', $key . @file_get_contents(__DIR__ . '/.nsrun-secret')));
}
$table_prefix = nsrun_setting('WORDPRESS_TABLE_PREFIX', 'wp_');
define('WP_DEBUG', (bool) nsrun_setting('WORDPRESS_DEBUG', ''));
define('AUTOMATIC_UPDATER_DISABLED', true);
define('WP_HTTP_BLOCK_EXTERNAL', (bool) nsrun_setting('WORDPRESS_OFFLINE', ''));
if (!defined('ABSPATH')) {
    define('ABSPATH', __DIR__ . '/');
}
require_once ABSPATH . 'wp-settings.php';
