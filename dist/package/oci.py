"""OCI images without Docker: one layout, two indexes (`agent`, `dispatcher`), each for amd64, arm64 and arm/v7.

The lowest layer is the executable with its names, the same for both roles; the second has accounts, directories and the first configuration of the
role. There is no shell and nothing else: scripts of an agent that need one need an image built FROM this one.
"""

import datetime
import hashlib
import json

import archive
import contents as table
from archive import Node
from contents import IMAGE
from release import SUMMARY

# In an image the numbers are fixed, so that volumes keep their owners; they are those that the program falls back to without /etc/passwd.
IDS = {"root": 0, "ctrl-exec-agent": 9443, "ctrl-exec": 9445, "nobody": 65534}


class Role:
    def __init__(self, name, parts, account, volumes, ports):
        self.name = name
        self.parts = parts
        self.account = account
        self.volumes = volumes
        self.ports = ports


ROLES = (
    Role("agent", ("agent",), "ctrl-exec-agent", ("/etc/ctrl-exec-agent", "/var/lib/ctrl-exec-agent"), ("7443/tcp",)),
    Role("dispatcher", ("dispatcher",), "ctrl-exec", ("/etc/ctrl-exec", "/var/lib/ctrl-exec"), ("7444/tcp", "7445/tcp")),
)


def _canonical(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


class Layout:
    """The blobs of a layout by digest."""

    def __init__(self):
        self.blobs = {}

    def add(self, data, media, **more):
        digest = hashlib.sha256(data).hexdigest()
        self.blobs[digest] = data
        return {"mediaType": f"application/vnd.oci.{media}", "digest": f"sha256:{digest}", "size": len(data), **more}

    def tar(self, index, epoch):
        nodes = [
            Node("oci-layout", "file", 0o644, data=_canonical({"imageLayoutVersion": "1.0.0"})),
            Node("index.json", "file", 0o644, data=_canonical(index)),
            *(Node(f"blobs/sha256/{digest}", "file", 0o644, data=data) for digest, data in self.blobs.items()),
        ]
        return archive.tar(archive.with_parents(nodes), epoch, prefix="")


def build(release, contents, binaries):
    """The layout as a tar archive. `binaries` are those of the architectures that an image can have."""
    layout = Layout()
    entries = []
    for role in ROLES:
        manifests = [image(release, contents, layout, role, binary) for binary in binaries]
        index = _canonical({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": manifests,
            "annotations": labels(release, role),
        })
        entries.append(layout.add(index, "image.index.v1+json", annotations={"org.opencontainers.image.ref.name": role.name}))
    top = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries}
    return layout.tar(top, release.epoch)


def labels(release, role):
    found = {
        "org.opencontainers.image.title": f"ctrl-exec {role.name}",
        "org.opencontainers.image.description": SUMMARY,
        "org.opencontainers.image.version": release.version.plain,
        "org.opencontainers.image.created": _created(release),
    }
    if release.licence:
        found["org.opencontainers.image.licenses"] = release.licence
    if release.homepage:
        found["org.opencontainers.image.url"] = release.homepage
    return found


def _created(release):
    return datetime.datetime.fromtimestamp(release.epoch, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def image(release, contents, layout, role, binary):
    """Descriptor of one manifest."""
    lower = [n for n in contents.nodes(IMAGE, ("base", "agent", "dispatcher"), binary, documents=False) if n.path.startswith(("usr/bin/", "usr/sbin/"))]
    layers, diffs = [], []
    for nodes in (lower, role_nodes(contents, role, binary)):
        plain = archive.tar(archive.with_parents(nodes), release.epoch, prefix="", names=False)
        layers.append(layout.add(archive.gz(plain), "image.layer.v1.tar+gzip"))
        diffs.append(f"sha256:{hashlib.sha256(plain).hexdigest()}")
    platform = {"os": "linux", **binary.arch.oci}
    config = {
        "created": _created(release),
        **platform,
        "config": {
            # The program starts as root: it makes what a fresh volume lacks, and the executor of an agent needs it. It gives up what it does not need.
            "User": "0:0",
            "Env": ["PATH=/usr/sbin:/usr/bin", "CTRL_EXEC_LOG=stdout"],
            "Entrypoint": ["/usr/bin/ctrl-exec", "container", role.name],
            "WorkingDir": "/",
            "ExposedPorts": {port: {} for port in role.ports},
            "Volumes": {path: {} for path in role.volumes},
            "Labels": labels(release, role),
            "StopSignal": "SIGTERM",
            # Nanoseconds. Podman and Docker read it; the OCI specification has no health check of its own and allows the key.
            "Healthcheck": {
                "Test": ["CMD", "/usr/bin/ctrl-exec", "container", "healthcheck"],
                "Interval": 30_000_000_000,
                "Timeout": 10_000_000_000,
                "StartPeriod": 15_000_000_000,
                "Retries": 3,
            },
        },
        "rootfs": {"type": "layers", "diff_ids": diffs},
        "history": [
            {"created": _created(release), "created_by": "dist/package: executable and names"},
            {"created": _created(release), "created_by": f"dist/package: accounts and directories of the {role.name}"},
        ],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": layout.add(_canonical(config), "image.config.v1+json"),
        "layers": layers,
        "annotations": labels(release, role),
    }
    return layout.add(_canonical(manifest), "image.manifest.v1+json", platform=platform)


def role_nodes(contents, role, binary):
    """Accounts, directories with their owners, and the examples from which a first start seeds."""
    names = ("root", role.account, "nobody")
    homes = {"root": "/"}
    passwd = "".join(f"{n}:x:{IDS[n]}:{IDS[n]}:{n}:{homes.get(n, '/nonexistent')}:/sbin/nologin\n" for n in names)
    group = "".join(f"{n}:x:{IDS[n]}:\n" for n in names)
    nodes = [
        Node("etc/passwd", "file", 0o644, data=passwd.encode()),
        Node("etc/group", "file", 0o644, data=group.encode()),
        Node("tmp", "dir", 0o1777),
        Node("run", "dir", 0o755),
        # Where the kernel's file systems and the volumes are mounted.
        *(Node(name, "dir", 0o755) for name in ("dev", "proc", "sys")),
    ]
    if role.name == "agent":
        nodes.append(Node("run/ctrl-exec-agent", "dir", 0o711))
    for d in table.directories(IMAGE, role.parts):
        nodes.append(Node(d.path, "dir", d.mode, user=d.user, group=d.group, uid=IDS[d.user], gid=IDS[d.group]))
    nodes += [n for n in contents.nodes(IMAGE, role.parts, binary, documents=False) if n.path.startswith("usr/share/ctrl-exec/")]
    return nodes
