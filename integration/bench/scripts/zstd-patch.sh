make() { zstd -q -f -19 --long=31 --patch-from="$OLD" "$NEW" -o "$OUT/patch"; }
apply() {
    fetch patch > "$WORK/patch"
    zstd -q -d --long=31 --patch-from="$SEED" "$WORK/patch" -c | to_slot
}
