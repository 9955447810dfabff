#!/bin/bash
# Builds the Debian part of the reference root as root, inside a mount and PID namespace of its own.
# The first argument is a file of settings: see integration/images/base.py.
set -euo pipefail
set -a
# shellcheck source=/dev/null
. "$1"
set +a

say() { printf 'base tree: %s\n' "$*" >&2; }

say "first stage (debootstrap)"
debootstrap --variant=minbase --include="$FIRST_PACKAGES" --keyring="$KEYRING" "$SUITE" "$ROOT" "$MIRROR" \
    > "$WORK/debootstrap.log" 2>&1 || { tail -30 "$WORK/debootstrap.log" >&2; exit 1; }

# Services must not start in the chroot, and documents would only be thrown away again.
printf '#!/bin/sh\nexit 101\n' > "$ROOT/usr/sbin/policy-rc.d"
chmod 0755 "$ROOT/usr/sbin/policy-rc.d"
printf 'path-exclude=/usr/share/%s/*\n' doc man locale info > "$ROOT/etc/dpkg/dpkg.cfg.d/acl-slim"

mount -t proc proc "$ROOT/proc"
mount -t sysfs -o ro sysfs "$ROOT/sys"
mount --rbind /dev "$ROOT/dev"
mount -t tmpfs -o mode=1777 tmpfs "$ROOT/tmp"
mount -t tmpfs -o mode=755 tmpfs "$ROOT/run"

say "second stage (kernel, container runtime, initrd builder)"
# apt runs outside with this machine's network settings; only dpkg runs inside.
apt-get update --error-on=any > "$WORK/apt.log" 2>&1 || { tail -30 "$WORK/apt.log" >&2; exit 1; }
# shellcheck disable=SC2086
INITRD=No DEBIAN_FRONTEND=noninteractive apt-get install --yes $SECOND_PACKAGES $BUILD_PACKAGES \
    >> "$WORK/apt.log" 2>&1 || { tail -30 "$WORK/apt.log" >&2; exit 1; }

inside() { chroot "$ROOT" /usr/bin/env -i PATH=/usr/sbin:/usr/bin LC_ALL=C.UTF-8 SOURCE_DATE_EPOCH="$EPOCH" "$@"; }

kernel=$(ls "$ROOT/usr/lib/modules")

say "making the start short"
# Each generator costs every boot a process, and none of these has anything to do here.
for name in cryptsetup getty gpt-auto hibernate-resume integritysetup rc-local ssh system-update sysv tpm2; do
    rm -f "$ROOT/usr/lib/systemd/system-generators/systemd-$name-generator"
done
# What every boot loads should not have to be unpacked by every boot.
for driver in $INITRD_DRIVERS $EARLY_DRIVERS; do
    inside modprobe --set-version "$kernel" --show-depends "$driver" | sed -n 's/^insmod \([^ ]*\.xz\).*/\1/p'
done | sort -u > "$WORK/early-modules"
while read -r module; do
    inside xz --decompress "$module"
done < "$WORK/early-modules"
inside depmod "$kernel"

say "initrd for $kernel"
inside dracut --force --reproducible --no-hostonly --no-hostonly-cmdline --no-early-microcode --zstd \
    --kver "$kernel" --modules "$INITRD_MODULES" --drivers "$INITRD_DRIVERS" --install "$INITRD_INSTALL" \
    /tmp/initrd > "$WORK/dracut.log" 2>&1 || { tail -30 "$WORK/dracut.log" >&2; exit 1; }
install -m 0644 "$ROOT/tmp/initrd" "$OUT/initrd"
cp "$ROOT/boot/vmlinuz-$kernel" "$OUT/vmlinuz"
printf '%s\n' "$kernel" > "$OUT/kernel-version"

say "removing what only the build needed"
# shellcheck disable=SC2086
inside dpkg --purge --force-depends --force-remove-essential $BUILD_PACKAGES $UNUSED_PACKAGES > "$WORK/purge.log" 2>&1 \
    || { tail -30 "$WORK/purge.log" >&2; exit 1; }
inside systemd-sysusers
inside systemctl --quiet enable containerd systemd-networkd systemd-resolved systemd-pstore
inside systemctl --quiet disable dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer getty@tty1.service
inside sh -c 'cd /usr/lib/python3.13 && rm -rf test idlelib ensurepip tkinter turtledemo pydoc_data lib2to3 \
    && find . -name __pycache__ -prune -exec rm -rf {} +'
# The root is read-only and its times are clamped: bytecode that is checked against source times would be compiled anew
# at every start. By force: what the compiler itself imports is there by then, checked against times.
inside env PYTHONHASHSEED=0 python3.13 -m compileall -q -f -j 1 --invalidation-mode unchecked-hash \
    /usr/lib/python3.13 /usr/share/python3
umount "$ROOT/tmp" "$ROOT/run" "$ROOT/sys" "$ROOT/proc"
umount -R "$ROOT/dev"
cd "$ROOT"
rm -rf boot/* etc/.resolv.conf.systemd-resolved.bak etc/machine-id etc/hostname etc/resolv.conf etc/fstab etc/apt/sources.list* etc/dpkg/dpkg.cfg.d/acl-slim \
    etc/ld.so.cache~ usr/sbin/policy-rc.d root/.[!.]* var/cache/* var/log/* var/tmp/* var/lib/apt var/lib/systemd/* \
    etc/.pwd.lock etc/passwd- etc/group- etc/shadow- etc/gshadow- var/lib/dpkg/*-old var/lib/dpkg/lock* \
    var/lib/dpkg/triggers/Lock var/lib/dbus usr/share/{doc,man,info,lintian,bash-completion,locale,bug,perl5,menu,pixmaps} \
    usr/bin/{containerd-stress,containerd-shim,containerd-shim-runc-v1} usr/lib/udev/hwdb.{bin,d} \
    usr/lib/x86_64-linux-gnu/{gconv,perl-base,perl} etc/{init.d,cron.d,cron.daily,logrotate.d}
# dpkg's own folder is what an SBOM is made of; /var itself comes empty from the state partition.
mkdir -p usr/lib/sysimage
cp -a var/lib/dpkg usr/lib/sysimage/dpkg
rm -rf usr/lib/sysimage/dpkg/{alternatives,parts,updates,info/*.{postinst,prerm,postrm,preinst,triggers,templates,config}}
rm -rf var/* dev/* proc/* sys/* run/* tmp/* home srv opt root mnt media
mkdir mnt
ln -s var/home home
ln -s var/opt opt
ln -s var/srv srv
ln -s var/roothome root

say "packing"
tar --create --file "$OUT/base.tar" --sort=name --format=pax --numeric-owner --xattrs --xattrs-include='security.*' \
    --pax-option='exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime' --mtime="@$EPOCH" --clamp-mtime \
    --exclude='./lost+found' .
cd /
rm -rf --one-file-system "$ROOT"
chown -R "$OWNER" "$OUT"
