make() {
    python3 - "$OLD" "$NEW" "$OUT/patch" <<'PYTHON'
import sys, hdiffpatch
old, new, patch = sys.argv[1:]
with open(old, "rb") as before, open(new, "rb") as after, open(patch, "wb") as out:
    out.write(hdiffpatch.diff(before.read(), after.read(), compression="zstd"))
PYTHON
}
apply() {
    fetch patch > "$WORK/patch"
    python3 - "$SEED" "$WORK/patch" <<'PYTHON' | to_slot
import sys, hdiffpatch
old, patch = sys.argv[1:]
with open(old, "rb") as before, open(patch, "rb") as change:
    sys.stdout.buffer.write(hdiffpatch.apply(before.read(), change.read()))
PYTHON
}
