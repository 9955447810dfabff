make() { zstd -q -f -19 --long=27 -T0 "$NEW" -o "$OUT/new.zst"; }
apply() { fetch new.zst | zstd -q -d --long=27 -c | to_slot; }
