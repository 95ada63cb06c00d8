"""What packages say about themselves: descriptions, change log, copyright."""

import datetime
import email.utils

from release import MAINTAINER

AGENT = (
    "allowlisted scripts over mutual TLS: agent",
    """Runs the scripts of this host's own allowlist, and nothing else, for paired
dispatchers. The part that listens to the network has no privileges; a root
executor without network runs each script in its security profile.""",
)
DISPATCHER = (
    "allowlisted scripts over mutual TLS: dispatcher and HTTP API",
    """Pairs hosts with a private certificate authority, runs allowlisted scripts
on them, and looks after certificates. The HTTP API is included and not
started unasked.""",
)
RUNTIME = (
    "allowlisted scripts over mutual TLS: the executable",
    """The one statically linked executable that is dispatcher, agent, executor
and HTTP API, depending on the name under which it is called. The packages
ctrl-exec-agent and ctrl-exec-dispatcher bring names and services.""",
)
WHOLE = (
    "Runs allowlisted scripts on remote hosts over mutual TLS: dispatcher, agent, executor and HTTP API in one static binary",
    """One statically linked executable under several names. Which role a host has
is decided by the services that are enabled.""",
)


def debian_changelog(release, source):
    return (
        f"{source} ({release.version.deb}) unstable; urgency=medium\n\n"
        f"  * Release {release.version.plain}. What has changed is in CHANGELOG.md of the sources.\n\n"
        f" -- {MAINTAINER}  {email.utils.format_datetime(_date(release))}\n"
    ).encode()


def _date(release):
    return datetime.datetime.fromtimestamp(release.epoch, datetime.timezone.utc)


def debian_copyright(release, crates=()):
    """Machine-readable; the licence of the program itself is what Cargo.toml states, and nothing if it states none."""
    licence = release.licence or "not-stated"
    lines = [
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/",
        "Upstream-Name: ctrl-exec",
        "",
        "Files: *",
        f"Copyright: {_date(release).year} the ctrl-exec maintainers",
        f"License: {licence}",
        "",
        f"License: {licence}",
    ]
    if release.licence:
        lines.append(" As stated in the sources.")
    else:
        lines.append(" The sources of this release state no licence. Ask the authors before you pass it on.")
    if crates:
        lines.append("Comment:")
        lines.append(" The executable contains these libraries, each under its own licence, as")
        lines.append(" /usr/share/ctrl-exec/sbom.json says in full:")
        lines.append(" .")
        lines += [f" {c.name} {c.version}: {c.licence or 'not stated'}" for c in crates]
    return ("\n".join(lines) + "\n").encode()
