make() { bsdiff "$OLD" "$NEW" "$OUT/patch"; }
apply() {
    fetch patch > "$WORK/patch"
    bspatch "$SEED" "$WORK/new" "$WORK/patch"
    to_slot < "$WORK/new"
}
