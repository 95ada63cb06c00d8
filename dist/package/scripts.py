"""The package scripts as they are shipped: the text of scripts/ with the lines that the table of contents decides put in."""

import contents


def expand(release, folder, name, platform, parts, values=None):
    """Replaces `#INCLUDE file`, `#DIRECTORIES`, `#SEEDS` and `@WORD@`. A marker is a whole line."""
    base = f"dist/package/scripts/{folder}"
    lines = []
    for line in release.text(f"{base}/{name}").decode().splitlines():
        if line.startswith("#INCLUDE "):
            lines += release.text(f"{base}/{line.split()[1]}").decode().rstrip("\n").splitlines()
        elif line == "#DIRECTORIES":
            for d in contents.directories(platform, parts):
                # Five digits: with fewer, GNU programs leave an inherited set-gid bit alone.
                unless = f'[ -d "${{root:-}}/{d.path}" ] || ' if d.once else ""
                lines.append(f"{unless}directory {d.mode:05o} {d.user} {d.group} /{d.path}")
        elif line == "#SEEDS":
            for _, example, target, mode, group, original in contents.seeds(parts):
                lines.append(f"seed {example} /{target} {mode:04o} {group} /{original}")
        else:
            lines.append(line)
    text = "\n".join(lines) + "\n"
    for word, value in (values or {}).items():
        text = text.replace(f"@{word}@", value)
    return text.encode()
