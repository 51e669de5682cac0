"""A systemd that runs as process 1 of namespaces of its own, with scache installed in /opt."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.support.commands import ROOT, default_signals
from tests.support.wire import DEADLINE

SYSTEMD = Path("/lib/systemd/systemd")
UNITS = "/run/units"
INSTALLED_UNITS = "/etc/systemd/system"
COMMAND = "/opt/scache/bin/scache"
"""The installed command, inside."""

_NAMESPACES = ("--mount", "--pid", "--cgroup", "--uts", "--ipc", "--net")

_BOOT = f"""
mount --make-rprivate /
mount -t proc proc /proc
# Each may be below a directory that is hidden next, such as a clone in /tmp.
exec 3< "$PYTHON_PREFIX" 4< "$SITE_PACKAGES" 5< "$CHECKOUT"
for directory in /run /tmp /var/lib /var/log /opt; do
    mkdir -p $directory
    mount -t tmpfs tmpfs $directory
done
mkdir -p /run/device/pts /run/device/shm
cd /run/device
mknod -m 666 null c 1 3
mknod -m 666 zero c 1 5
mknod -m 666 full c 1 7
mknod -m 666 random c 1 8
mknod -m 666 urandom c 1 9
mknod -m 666 tty c 5 0
ln -s /proc/self/fd fd
ln -s pts/ptmx ptmx
mount --rbind /run/device /dev
mount -t devpts -o newinstance,ptmxmode=0666 devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
umount -R /sys || true
mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup

mkdir -p /opt/python /opt/scache/bin /opt/scache/site /opt/scache/checkout
mount --no-canonicalize --rbind /proc/self/fd/3 /opt/python
mount --no-canonicalize --rbind /proc/self/fd/4 /opt/scache/site
mount --no-canonicalize --rbind /proc/self/fd/5 /opt/scache/checkout
exec 3<&- 4<&- 5<&-
cat > {COMMAND} << 'END'
#!/bin/sh
# The interpreter may have been built to look for its library in its first directory.
LD_LIBRARY_PATH=/opt/python/lib exec /opt/python/bin/python3 -P /opt/scache/main.py "$@"
END
chmod 755 {COMMAND}
cat > /opt/scache/main.py << 'END'
import sys

sys.path[:0] = ["/opt/scache/checkout", "/opt/scache/site"]
from scache.cli import main

sys.exit(main())
END

# A copy, in which tests may make users and units.
cp -a /etc /run/etc
sed -i /^scache:/d /run/etc/passwd /run/etc/group /run/etc/shadow /run/etc/gshadow
rm -rf /run/etc/systemd/system
mkdir -p /run/etc/systemd/system
mount --bind /run/etc /etc

mkdir {UNITS}
for target in sysinit basic sockets shutdown umount multi-user; do
    printf '[Unit]\\nDefaultDependencies=no\\n' > {UNITS}/$target.target
done
for unit in systemd-journald.service systemd-journald.socket systemd-journald-dev-log.socket; do
    cp /lib/systemd/system/$unit {UNITS}
done
exec env -i container=scache PATH=/usr/sbin:/usr/bin:/sbin:/bin \\
    SYSTEMD_UNIT_PATH={INSTALLED_UNITS}:{UNITS} \\
    {SYSTEMD} --system --unit=multi-user.target --log-target=console --show-status=no
"""


class NoSystemd(Exception):
    """This machine cannot run systemd in namespaces; the text is the reason."""


class Machine(NamedTuple):
    """The namespaces of a running systemd."""

    pid: int
    """The process id of systemd, seen from outside."""

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command inside; return its output, with what it writes to stderr.

        Raises AssertionError with the output if it fails and ``check`` is true.
        """
        done = subprocess.run(
            ["nsenter", "-t", str(self.pid), *("-m", "-p", "-C", "-u", "-i", "-n"), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=DEADLINE,
            check=False,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}"
        return done.stdout

    def shell(self, script: str) -> str:
        """Run a shell script inside, with ``scache`` on the PATH; return its output."""
        path = f"{Path(COMMAND).parent}:/usr/sbin:/usr/bin:/sbin:/bin"
        return self.run("env", f"PATH={path}", "sh", "-ec", script)

    def path(self, inside: str) -> Path:
        """Return the path by which a file inside can be reached from outside."""
        return Path(f"/proc/{self.pid}/root{inside}")

    def install(self, name: str, text: str) -> None:
        """Write a unit file and make systemd read it."""
        self.path(f"{UNITS}/{name}").write_text(text)
        self.run("systemctl", "daemon-reload")

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit, such as ``MainPID`` or ``StatusText``."""
        return self.run("systemctl", "show", "-P", name, unit).strip()

    def journal(self, *options: str) -> list[str]:
        """Return the messages in the journal."""
        return self.run("journalctl", "--sync", check=False).splitlines() + (
            self.run("journalctl", "--no-pager", "-o", "cat", *options).splitlines()
        )


@contextmanager
def machine() -> Iterator[Machine]:
    """Boot systemd; raise NoSystemd if this machine cannot."""
    if os.geteuid() != 0:
        raise NoSystemd("only root can start systemd in namespaces")
    if not SYSTEMD.exists():
        raise NoSystemd("systemd is not installed")
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHON_PREFIX": sys.base_prefix,
        "SITE_PACKAGES": sysconfig.get_path("purelib"),
        "CHECKOUT": str(ROOT),
    }
    with (
        default_signals(),
        subprocess.Popen(
            ["unshare", *_NAMESPACES, "--fork", "--kill-child", "bash", "-ec", _BOOT],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        try:
            yield _booted(process)
        finally:
            process.kill()


def _booted(process: subprocess.Popen[str]) -> Machine:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        if process.poll() is not None:
            assert process.stdout is not None
            raise NoSystemd(f"this machine refuses namespaces: {process.stdout.read().strip()}")
        for child in children.read_text().split():
            found = Machine(int(child))
            if found.run("systemctl", "is-system-running", check=False).strip() == "running":
                return found
        time.sleep(0.02)  # there is no event to wait for
    os.kill(process.pid, signal.SIGKILL)
    assert process.stdout is not None
    raise TimeoutError(f"systemd did not boot: {process.stdout.read()}")
