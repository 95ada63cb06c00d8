"""THE TABLE: which file goes where, with which mode and owner, in which part of the product, on which platform. Shared by all formats.

A part is what a host can have without the rest: `base` (the executable), `agent`, `dispatcher` (CLI and API). Formats decide which of their
packages has which parts; what lies where is decided here alone.
"""

import os

import archive
from archive import Node

DEBIAN, ALPINE, OPENWRT, IMAGE = "debian", "alpine", "openwrt", "image"
EVERYWHERE = frozenset((DEBIAN, ALPINE, OPENWRT, IMAGE))
BINARY = "binary"


class Row:
    """`source` is a path in the repository, BINARY, or the target of a link."""

    def __init__(self, part, kind, path, mode, source, platforms):
        self.part = part
        self.kind = kind
        self.path = path
        self.mode = mode
        self.source = source
        self.platforms = platforms


def _file(part, path, source, *platforms, mode=0o644):
    return Row(part, "file", path, mode, source, frozenset(platforms) or EVERYWHERE)


def _link(part, path, target, *platforms):
    return Row(part, "link", path, 0o777, target, frozenset(platforms) or EVERYWHERE)


# The same texts as `ctrl-exec install` has.
SEEDS = "src/applets/toolbox/install/seeds"

ROWS = (
    _file("base", "usr/bin/ctrl-exec", BINARY, mode=0o755),
    # Names. A link in another directory is relative too, so that it holds below any root.
    _link("agent", "usr/bin/cea", "ctrl-exec"),
    _link("agent", "usr/bin/ctrl-exec-agent", "ctrl-exec"),
    _link("agent", "usr/sbin/ctrl-exec-exec", "../bin/ctrl-exec"),
    _link("dispatcher", "usr/bin/ced", "ctrl-exec"),
    _link("dispatcher", "usr/bin/ctrl-exec-dispatcher", "ctrl-exec"),
    _link("dispatcher", "usr/bin/ced-api", "ctrl-exec"),
    _link("dispatcher", "usr/bin/ctrl-exec-api", "ctrl-exec"),
    # What a new host starts with: copied by the package scripts where nothing is yet, never a configuration file of the package manager.
    _file("agent", "usr/share/ctrl-exec/examples/agent.toml", f"{SEEDS}/agent.toml"),
    _file("agent", "usr/share/ctrl-exec/examples/scripts.toml", f"{SEEDS}/scripts.toml"),
    _file("dispatcher", "usr/share/ctrl-exec/examples/ctrl-exec.toml", f"{SEEDS}/ctrl-exec.toml"),
    _file("dispatcher", "usr/share/ctrl-exec/examples/auth-hook.example", f"{SEEDS}/auth-hook.example"),
    # systemd
    _file("agent", "usr/lib/systemd/system/ctrl-exec-agent.service", "init/ctrl-exec-agent.service", DEBIAN),
    _file("agent", "usr/lib/systemd/system/ctrl-exec-exec.service", "init/ctrl-exec-exec.service", DEBIAN),
    _file("agent", "usr/lib/systemd/system/ctrl-exec-agent-renew.service", "init/ctrl-exec-agent-renew.service", DEBIAN),
    _file("agent", "usr/lib/systemd/system/ctrl-exec-agent-renew.timer", "init/ctrl-exec-agent-renew.timer", DEBIAN),
    _file("agent", "usr/lib/sysusers.d/ctrl-exec-agent.conf", "init/sysusers/ctrl-exec-agent.conf", DEBIAN),
    _file("agent", "usr/lib/tmpfiles.d/ctrl-exec-agent.conf", "init/tmpfiles/ctrl-exec-agent.conf", DEBIAN),
    _file("dispatcher", "usr/lib/systemd/system/ctrl-exec-api.service", "init/ctrl-exec-api.service", DEBIAN),
    _file("dispatcher", "usr/share/ctrl-exec/examples/ctrl-exec-api.socket", "init/ctrl-exec-api.socket", DEBIAN),
    _file("dispatcher", "usr/lib/systemd/system/ctrl-exec-maintenance.service", "init/ctrl-exec-maintenance.service", DEBIAN),
    _file("dispatcher", "usr/lib/systemd/system/ctrl-exec-maintenance.timer", "init/ctrl-exec-maintenance.timer", DEBIAN),
    _file("dispatcher", "usr/lib/sysusers.d/ctrl-exec.conf", "init/sysusers/ctrl-exec.conf", DEBIAN),
    _file("dispatcher", "usr/lib/tmpfiles.d/ctrl-exec.conf", "init/tmpfiles/ctrl-exec.conf", DEBIAN),
    # OpenRC
    _file("agent", "etc/init.d/ctrl-exec-agent", "openrc/ctrl-exec-agent", ALPINE, mode=0o755),
    _file("agent", "etc/init.d/ctrl-exec-exec", "openrc/ctrl-exec-exec", ALPINE, mode=0o755),
    _file("dispatcher", "etc/init.d/ctrl-exec-api", "openrc/ctrl-exec-api", ALPINE, mode=0o755),
    _file("dispatcher", "etc/init.d/ctrl-exec-maintenance", "openrc/ctrl-exec-maintenance", ALPINE, mode=0o755),
    _file("agent", "etc/conf.d/ctrl-exec-agent", "openrc/conf.d/ctrl-exec-agent", ALPINE),
    _file("agent", "etc/conf.d/ctrl-exec-exec", "openrc/conf.d/ctrl-exec-exec", ALPINE),
    _file("dispatcher", "etc/conf.d/ctrl-exec-api", "openrc/conf.d/ctrl-exec-api", ALPINE),
    # procd
    _file("agent", "etc/init.d/ctrl-exec-agent", "procd/ctrl-exec-agent", OPENWRT, mode=0o755),
    _file("agent", "etc/init.d/ctrl-exec-exec", "procd/ctrl-exec-exec", OPENWRT, mode=0o755),
    _file("dispatcher", "etc/init.d/ctrl-exec-api", "procd/ctrl-exec-api", OPENWRT, mode=0o755),
    _file("dispatcher", "etc/init.d/ctrl-exec-maintenance", "procd/ctrl-exec-maintenance", OPENWRT, mode=0o755),
    _file("base", "lib/upgrade/keep.d/ctrl-exec", "procd/keep.d/ctrl-exec", OPENWRT),
    _file("base", "etc/config/ctrl-exec", "procd/ctrl-exec.config", OPENWRT),
    _file("agent", "etc/hotplug.d/ntp/90-ctrl-exec", "procd/hotplug-ntp/90-ctrl-exec", OPENWRT, mode=0o755),
    # Opens a port: nothing that a package does unasked. Copied to /etc/uci-defaults by whoever wants it.
    _file("agent", "usr/share/ctrl-exec/examples/99-ctrl-exec-firewall", "procd/uci-defaults/99-ctrl-exec-firewall", OPENWRT, mode=0o755),
)

# Man pages and completions: made from the command definitions into target/dist/share by another step of the build.
_SHARE = "target/dist/share"
_NAMES = {
    "base": ("ctrl-exec",),
    "agent": ("cea", "ctrl-exec-agent", "ctrl-exec-exec"),
    "dispatcher": ("ced", "ctrl-exec-dispatcher", "ced-api", "ctrl-exec-api"),
}
# Of the manual: 1 for what users call, 8 for what runs as a service or for root.
_SECTION = {name: 1 if name in ("ced", "ctrl-exec-dispatcher", "ced-api", "ctrl-exec-api") else 8 for names in _NAMES.values() for name in names}


def _documents(part, name):
    page = f"man{_SECTION[name]}/{name}.{_SECTION[name]}"
    yield _file(part, f"usr/share/man/{page}", f"{_SHARE}/man/{page}", DEBIAN, ALPINE)
    yield _file(part, f"usr/share/bash-completion/completions/{name}", f"{_SHARE}/completions/bash/{name}", DEBIAN, ALPINE)
    yield _file(part, f"usr/share/fish/vendor_completions.d/{name}.fish", f"{_SHARE}/completions/fish/{name}.fish", DEBIAN, ALPINE)


DOCUMENTS = (
    *(row for part, names in _NAMES.items() for name in names for row in _documents(part, name)),
    # One file serves every name.
    _file("base", "usr/share/zsh/vendor-completions/_ctrl-exec", f"{_SHARE}/completions/zsh/_ctrl-exec", DEBIAN),
    _file("base", "usr/share/zsh/site-functions/_ctrl-exec", f"{_SHARE}/completions/zsh/_ctrl-exec", ALPINE),
)

# The only sources that may be absent; the build says which are. Everything else that is missing ends it.
OPTIONAL = frozenset(row.source for row in DOCUMENTS)


class Directory:
    """A directory that the package scripts create (an image has it in its layer): never in the file list of a package.

    once: if it is there, its owner and mode are the administrator's.
    """

    def __init__(self, part, path, mode, user, group, platforms=EVERYWHERE, once=False):
        self.part = part
        self.path = path
        self.mode = mode
        self.user = user
        self.group = group
        self.platforms = frozenset(platforms)
        self.once = once


_DURABLE = (DEBIAN, ALPINE, IMAGE)
DIRECTORIES = (
    Directory("agent", "etc/ctrl-exec-agent", 0o750, "root", "ctrl-exec-agent"),
    Directory("agent", "var/lib/ctrl-exec-agent", 0o750, "ctrl-exec-agent", "ctrl-exec-agent", _DURABLE),
    Directory("agent", "var/lib/ctrl-exec-agent/runs", 0o750, "ctrl-exec-agent", "ctrl-exec-agent", _DURABLE),
    # /var is a RAM disk there.
    Directory("agent", "etc/ctrl-exec-agent/state", 0o750, "ctrl-exec-agent", "ctrl-exec-agent", (OPENWRT,)),
    # Open for reading: a script that runs as nobody, which is what the first configuration says, must get there.
    Directory("agent", "opt/ctrl-exec-scripts", 0o755, "root", "ctrl-exec-agent", once=True),
    # The set-gid bit gives to the group what root writes, so that the API can read it.
    Directory("dispatcher", "etc/ctrl-exec", 0o2750, "root", "ctrl-exec"),
    Directory("dispatcher", "var/lib/ctrl-exec", 0o2770, "root", "ctrl-exec", _DURABLE),
    # Who can write here can put requests in front of the operator.
    Directory("dispatcher", "var/lib/ctrl-exec/pairing", 0o700, "root", "root", _DURABLE),
    Directory("dispatcher", "var/lib/ctrl-exec/agents", 0o2770, "root", "ctrl-exec", _DURABLE),
    Directory("dispatcher", "var/lib/ctrl-exec/locks", 0o2770, "root", "ctrl-exec", _DURABLE),
    Directory("dispatcher", "var/lib/ctrl-exec/runs", 0o2770, "root", "ctrl-exec", _DURABLE),
    Directory("dispatcher", "etc/ctrl-exec/state", 0o2770, "root", "ctrl-exec", (OPENWRT,)),
    Directory("dispatcher", "etc/ctrl-exec/state/agents", 0o2770, "root", "ctrl-exec", (OPENWRT,)),
    Directory("dispatcher", "etc/ctrl-exec/state/pairing", 0o700, "root", "root", (OPENWRT,)),
)

# Seeds: (part, example, target, mode, group); copied only where neither the target nor the file of the original is there.
SEEDED = (
    ("agent", "agent.toml", "etc/ctrl-exec-agent/agent.toml", 0o640, "ctrl-exec-agent", "etc/ctrl-exec-agent/agent.conf"),
    ("agent", "scripts.toml", "etc/ctrl-exec-agent/scripts.toml", 0o640, "ctrl-exec-agent", "etc/ctrl-exec-agent/scripts.conf"),
    ("dispatcher", "ctrl-exec.toml", "etc/ctrl-exec/ctrl-exec.toml", 0o640, "ctrl-exec", "etc/ctrl-exec/ctrl-exec.conf"),
)


class Contents:
    """The table as it stands for one release: optional sources resolved once, what was absent remembered for the report."""

    def __init__(self, release):
        self.release = release
        self.absent = set()

    def nodes(self, platform, parts, binary, documents=None):
        """The files of these parts. `documents`: True for only man pages and completions, False for none, None for both."""
        nodes = []
        rows = () if documents is True else ROWS
        rows += DOCUMENTS if documents is not False else ()
        for row in rows:
            if row.part not in parts or platform not in row.platforms:
                continue
            if row.kind == "link":
                nodes.append(Node(row.path, "link", row.mode, target=row.source))
            elif row.source == BINARY:
                nodes.append(Node(row.path, "file", row.mode, data=binary.data))
            else:
                path = self.release.root / row.source
                if not path.is_file() and row.source in OPTIONAL:
                    self.absent.add(row.source)
                    continue
                nodes.append(self._page(row, path) if row.path.startswith("usr/share/man/") else self._plain(row, path))
        return nodes

    @staticmethod
    def _plain(row, path):
        if path.is_symlink():
            return Node(row.path, "link", 0o777, target=os.readlink(path))
        return Node(row.path, "file", row.mode, data=path.read_bytes())

    @staticmethod
    def _page(row, path):
        """Pages of the manual are compressed; that of a second name is a link."""
        if path.is_symlink():
            return Node(f"{row.path}.gz", "link", 0o777, target=os.readlink(path) + ".gz")
        return Node(f"{row.path}.gz", "file", row.mode, data=archive.gz(path.read_bytes()))


def directories(platform, parts):
    return [d for d in DIRECTORIES if d.part in parts and platform in d.platforms]


def seeds(parts):
    return [s for s in SEEDED if s[0] in parts]
