make() {
    mkdir -p "$OUT/bundle"
    ln -f "$NEW" "$OUT/bundle/root.img"
    cat > "$OUT/bundle/manifest.raucm" <<MANIFEST
[update]
compatible=bench
version=2
[bundle]
format=plain
[image.rootfs]
filename=root.img
$ADAPTIVE
MANIFEST
    rauc --cert "$KEYS/cert.pem" --key "$KEYS/key.pem" bundle --mksquashfs-args="$SQUASHFS" "$OUT/bundle" "$OUT/new.raucb"
    rm -r "$OUT/bundle"
}

settings() {
    mkdir -p "$WORK/mnt" "$WORK/data"
    cat > "$WORK/system.conf" <<CONF
[system]
compatible=bench
bootloader=custom
data-directory=$WORK/data
mountprefix=$WORK/mnt
bundle-formats=+plain
[handlers]
bootloader-custom-backend=$WORK/backend
[keyring]
path=$KEYS/cert.pem
[slot.rootfs.0]
device=$SEED
type=raw
bootname=A
[slot.rootfs.1]
device=$SLOT
type=raw
bootname=B
CONF
    printf '#!/bin/sh\ncase "$1" in get-primary) echo A;; get-state) echo good;; esac\n' > "$WORK/backend"
    chmod +x "$WORK/backend"
    cat > "$WORK/bus.conf" <<CONF
<busconfig><type>system</type><listen>unix:path=$WORK/bus</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow receive_sender="*" eavesdrop="true"/>
<allow own="*"/></policy></busconfig>
CONF
}

apply() {
    settings
    dbus-daemon --config-file="$WORK/bus.conf" --nofork &
    bus=$!
    service=
    trap 'kill $service $bus 2>/dev/null || true; wait' EXIT
    until [ -S "$WORK/bus" ]; do kill -0 $bus; sleep 0.02; done
    export DBUS_SYSTEM_BUS_ADDRESS="unix:path=$WORK/bus"
    rauc --conf "$WORK/system.conf" --override-boot-slot=A service > "$WORK/service.log" 2>&1 &
    service=$!
    until rauc --conf "$WORK/system.conf" status > /dev/null 2>&1; do kill -0 $service; sleep 0.02; done
    # The service takes the first free loop device; its counters outlive its use.
    loop=$(basename "$(losetup -f)")
    before=$(awk '{print $3}' "/sys/block/$loop/stat")
    began=$EPOCHREALTIME
    rauc install "$OUT/new.raucb" || { cat "$WORK/service.log"; exit 1; }
    sync -d "$SLOT"
    ended=$EPOCHREALTIME
    awk -v begin="$began" -v end="$ended" 'BEGIN {print end - begin}' > "$WORK/wall_s"
    if grep -q "/dev/$loop'" "$WORK/service.log"; then
        awk -v before="$before" '{print ($3 - before) * 512}' "/sys/block/$loop/stat" > "$WORK/bundle_bytes"
    fi
}
