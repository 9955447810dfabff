make() { xdelta3 -e -f -9 -S lzma -B 1073741824 -s "$OLD" "$NEW" "$OUT/patch"; }
apply() {
    fetch patch > "$WORK/patch"
    xdelta3 -d -c -B 1073741824 -s "$SEED" "$WORK/patch" | to_slot
}
