make() {
    zck -o "$OUT/new.zck" "$NEW"
    zck -o "$NODE/old.zck" "$OLD"
}
apply() {
    cd "$WORK"
    zckdl -q -s "$NODE/old.zck" "$URL/new.zck"
    unzck -c new.zck | to_slot
}
