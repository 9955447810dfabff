make() { { cat "$OUT/../zstd/new.zst"; head -c "$BOOT_BYTES" /dev/urandom; } > "$OUT/all"; }
apply() { fetch all > /dev/null; }
