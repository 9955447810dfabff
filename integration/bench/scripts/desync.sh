make() {
    mkdir "$OUT/store"
    desync make --chunk-size "$CHUNKS" --store "$OUT/store" "$OUT/new.caibx" "$NEW"
    desync make --chunk-size "$CHUNKS" "$NODE/old.caibx" "$OLD"
}
apply() {
    desync extract --in-place --store "$URL/store" --seed "$NODE/old.caibx:$SEED" "$URL/new.caibx" "$SLOT"
    sync -d "$SLOT"
}
