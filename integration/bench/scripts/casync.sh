make() { casync make --chunk-size="$CHUNK" --store="$OUT/store.castr" "$OUT/new.caibx" "$NEW" > /dev/null; }
apply() {
    casync extract --store="$URL/store.castr" --seed="$SEED" "$URL/new.caibx" "$SLOT"
    sync -d "$SLOT"
}
