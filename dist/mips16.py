#!/usr/bin/env python3
"""Links a program for 24Kc and its kin, most of it of MIPS16e instructions: two bytes each where MIPS32 has four.

    mips16.py LLVM TOOLS BITCODE LLD... -- WORD...

LLVM: the directory of llvm-dis and llc, of the version that rustc has; TOOLS: what the names of GNU's assembler and linker begin with; BITCODE:
the optimised program, as rustc wrote it beside the object; LLD: the command of LLVM's linker; WORD: the line that links the program as it
would be without us, in which the object that was made of the bitcode has a name that ends in `.rcgu.o`.

LLVM writes MIPS16e assembler but cannot encode all of it, and its linker does not know it; GNU's tools know both. rustc has no way to ask for
it at all, so its bitcode is compiled here, in these steps:

1. Atomic operations, which MIPS16e has not, become calls of small functions made of MIPS32 instructions (`Atomics`).
2. Every function that holds nothing else which wants MIPS32 (`STAYS`) is marked as MIPS16e. The linker lets the one kind call the other.
3. llc and GNU's assembler make the object.
4. LLVM's linker says in which order functions and constants are best compressed (`--bp-compression-sort`): it links a copy of the object whose
   relocations have the names it knows. What it makes is thrown away, its order is kept.
5. GNU's linker links in that order.

A form that is not known here leaves its function as it was: the program is larger then, never wrong.
"""

import re
import struct
import subprocess
import sys
from pathlib import Path

# As rustc compiles. Then what makes the compressed program smaller, by measurement (docs/architectures.md): the plain register allocator costs 2 % of
# the program and takes as much of what is compressed, the others take from both. With eight registers, nothing is won by keeping a value that
# could be had again; and what is copied by more than two words is copied by memcpy.
LLC = """-O2 -function-sections -data-sections -relocation-model=static -filetype=asm
    -regalloc=basic -disable-machine-cse -disable-machine-licm -disable-lsr -disable-block-placement
    -pre-RA-sched=list-hybrid -join-splitedges -disable-copyprop -max-store-memcpy=2""".split()

# Stays of MIPS32 instructions: memory of a thread's own (rdhwr), assembler, floating point, and what LLVM's MIPS16e has no pattern for.
STAYS = re.compile(r"cmpxchg |atomicrmw |load atomic |store atomic |^ *fence |threadlocal\.address| asm |\b(?:float|double)\b|llvm\.cttz|llvm\.(?:frame|return)address")

# Relocations of MIPS16e and those of MIPS32 that ask for as much.
RELOCATIONS = {100: 4, 104: 5, 105: 6, 113: 10}


class Atomics:
    """Replaces atomic operations by calls, and makes the functions that are called: each is the operation itself and nothing else, so its
    order and its size stay what they were."""

    SIZES = {"i8": 1, "i16": 2, "i32": 4, "ptr": 4}
    ORDERS = "unordered|monotonic|acquire|release|acq_rel|seq_cst"
    LINE = re.compile(r"^( +)(?:(%[\w.]+|%\"[^\"]+\") = )?(load atomic|store atomic|atomicrmw|cmpxchg|fence) (.*)$")

    def __init__(self):
        self.functions = {}

    def line(self, line):
        """The line, or what takes its place."""
        found = self.LINE.match(line)
        if not found or "syncscope" in line:
            return line
        indent, result, operation, rest = found.groups()
        words = [word for word in split(rest) if not word.startswith(("!", "align "))]
        call = getattr(self, operation.replace(" ", "_"))(words)
        if call is None:
            return line
        kind, name, arguments = call
        return f"{indent}{result + ' = ' if result else ''}call {kind} @{name}({arguments})"

    def load_atomic(self, words):
        kind, last = words if len(words) == 2 else (None, "")
        found = re.fullmatch(rf"(ptr .*) ({self.ORDERS})", last)
        if kind not in self.SIZES or not found:
            return None
        address, order = found.groups()
        return self.call(kind, f"load.{kind}.{order}", "ptr %a", f"load atomic {kind}, ptr %a {order}, align {self.SIZES[kind]}", address)

    def store_atomic(self, words):
        value, last = words if len(words) == 2 else ("", "")
        kind = value.split(" ")[0]
        found = re.fullmatch(rf"(ptr .*) ({self.ORDERS})", last)
        if kind not in self.SIZES or not found:
            return None
        address, order = found.groups()
        return self.call("void", f"store.{kind}.{order}", f"{kind} %v, ptr %a", f"store atomic {kind} %v, ptr %a {order}, align {self.SIZES[kind]}", f"{value}, {address}")

    def atomicrmw(self, words):
        first, last = words if len(words) == 2 else ("", "")
        what = re.fullmatch(r"(\w+) (ptr .*)", first)
        found = re.fullmatch(rf"((\w+) .*) ({self.ORDERS})", last)
        if not what or not found or found[2] not in self.SIZES:
            return None
        value, kind, order = found.groups()
        does = f"atomicrmw {what[1]} ptr %a, {kind} %v {order}, align {self.SIZES[kind]}"
        return self.call(kind, f"{what[1]}.{kind}.{order}", f"ptr %a, {kind} %v", does, f"{what[2]}, {value}")

    def cmpxchg(self, words):
        address, old, last = words if len(words) == 3 else ("", "", "")
        where = re.fullmatch(r"(weak )?(ptr .*)", address)
        found = re.fullmatch(rf"((\w+) .*) ({self.ORDERS}) ({self.ORDERS})", last)
        if not where or not found or found[2] not in self.SIZES or not old.startswith(f"{found[2]} "):
            return None
        new, kind, order, otherwise = found.groups()
        weak = where[1] or ""
        does = f"cmpxchg {weak}ptr %a, {kind} %o, {kind} %n {order} {otherwise}, align {self.SIZES[kind]}"
        arguments = f"{where[2]}, {old}, {new}"
        return self.call(f"{{ {kind}, i1 }}", f"cmpxchg{weak.strip()}.{kind}.{order}.{otherwise}", f"ptr %a, {kind} %o, {kind} %n", does, arguments)

    def fence(self, words):
        found = re.fullmatch(self.ORDERS, words[0]) if len(words) == 1 else None
        return self.call("void", f"fence.{words[0]}", "", f"fence {words[0]}", "") if found else None

    def call(self, kind, name, parameters, does, arguments):
        name = f"ctrl_exec.atomic.{name}"
        body = f"  {does}\n  ret void" if kind == "void" else f"  %r = {does}\n  ret {kind} %r"
        # What rustc asks for of every function.
        self.functions[name] = f'define internal {kind} @{name}({parameters}) noinline nounwind minsize optsize "nomips16" "target-cpu"="mips32r2" "target-features"="+mips32r2,+soft-float" {{\n{body}\n}}\n'
        return kind, name, arguments


def split(text):
    """The parts of a line between commas that are in no brackets."""
    parts, depth, start = [], 0, 0
    for at, char in enumerate(text):
        if char in "([{<":
            depth += 1
        elif char in ")]}>":
            depth -= 1
        elif char == "," and depth == 0:
            parts.append(text[start:at].strip())
            start = at + 1
    return parts + [text[start:].strip()]


def mark(module):
    """The module with its functions marked, and how many are of MIPS16e and of MIPS32."""
    atomics, lines, short, long = Atomics(), [], 0, 0
    source = iter(module.split("\n"))
    for line in source:
        if not line.startswith("define "):
            lines.append(line)
            continue
        head, body = line, []
        for line in source:
            if line == "}":
                break
            body.append(line)
        changed = [atomics.line(line) for line in body]
        attributes = re.search(r" #\d+", head)
        if attributes and not any(STAYS.search(line) for line in changed):
            head, body, short = f'{head[: attributes.end()]} "mips16"{head[attributes.end() :]}', changed, short + 1
        else:
            long += 1
        lines += [head, *body, "}"]
    return "\n".join([*lines, *atomics.functions.values()]), short, long


def tidy(assembly):
    """Without the `nop` that LLVM writes behind each call of MIPS16e: the assembler fills the place behind a jump itself, mostly with an
    instruction that is wanted anyway, and would make one more of it."""
    lines, short = [], False
    last = ""
    for line in assembly.split("\n"):
        word = line.strip()
        if line.startswith("\t.set\tmips16"):
            short = True
        elif line.startswith("\t.set\tnomips16"):
            short = False
        if short and word == "nop" and last.startswith("jal\t"):
            continue
        if word:
            last = word
        lines.append(line)
    return "\n".join(lines)


def disguise(source, target):
    """A copy of the object for LLVM's linker: its relocations and symbols are those of MIPS32."""
    data = bytearray(source.read_bytes())
    start = struct.unpack_from("<I", data, 32)[0]
    size, count = struct.unpack_from("<HH", data, 46)
    for at in range(count):
        _, kind, _, _, offset, length = struct.unpack_from("<6I", data, start + at * size)
        if kind == 9:  # SHT_REL
            for place in range(offset + 4, offset + length, 8):
                data[place] = RELOCATIONS.get(data[place], data[place])
        elif kind == 2:  # SHT_SYMTAB: functions of MIPS16e have an odd address and a mark
            for place in range(offset, offset + length, 16):
                data[place + 13] &= 3
                if data[place + 12] & 15 == 2:
                    data[place + 4] &= 0xFE
    target.write_bytes(data)


def order(table):
    """Names of sections, as the linker's table has them."""
    names, seen = [], set()
    for line in table.split("\n"):
        found = re.search(r":\((\.(?:text|rodata)[^)]*)\)$", line)
        if found and found[1] not in seen:
            seen.add(found[1])
            names.append(found[1])
    return names


def script(default, names):
    """The linker's own script, with the sections named first in their order."""
    start, end = default.index("=" * 50) + 51, default.rindex("=" * 50)
    text = default[start:end]
    for kind, before in ((".text", "*(.text.unlikely .text.*_unlikely .text.unlikely.*)"), (".rodata", "*(.rodata .rodata.* .gnu.linkonce.r.*)")):
        if before not in text:
            raise SystemExit(f"mips16.py: the linker's script has no '{before}': is this GNU's linker?")
        wanted = "\n".join(f'    *("{name}")' for name in names if name.startswith(kind))
        text = text.replace(before, f"{wanted}\n    {before}", 1)
    return text


def run(*words):
    done = subprocess.run([str(word) for word in words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(f"mips16.py: {Path(words[0]).name} ended with {done.returncode}: {done.stderr[:4000]}")
    return done.stdout


def main(arguments):
    llvm, tools, bitcode = Path(arguments[0]), arguments[1], Path(arguments[2])
    cut = arguments.index("--")
    lld, line = arguments[3:cut], arguments[cut + 1 :]
    object_file = next(word for word in line if word.endswith(".rcgu.o"))
    output = line[line.index("-o") + 1]
    place = Path(f"{output}.mips16")
    place.mkdir(exist_ok=True)

    module, short, long = mark(run(llvm / "llvm-dis", bitcode, "-o", "-"))
    (place / "marked.ll").write_text(module)
    run(llvm / "llc", *LLC, place / "marked.ll", "-o", place / "whole.s")
    (place / "tidy.s").write_text(tidy((place / "whole.s").read_text()))
    run(f"{tools}as", "-mips32r2", "-msoft-float", place / "tidy.s", "-o", place / "whole.o")

    disguise(place / "whole.o", place / "disguised.o")
    ordered = [str(place / "disguised.o") if word == object_file else word for word in line]
    ordered[ordered.index("-o") + 1] = str(place / "ordered")
    run(*lld, *ordered, "--icf=none", "--bp-compression-sort=both", f"-Map={place / 'map'}")

    (place / "script").write_text(script(run(f"{tools}ld", "--verbose"), order((place / "map").read_text())))
    words = [str(place / "whole.o") if word == object_file else word for word in line]
    own = ("-mllvm", "-target-abi=o32", "-float-abi=soft")
    words = [word for word in words if word not in own and not word.startswith(("--image-base=", "--error-limit="))]
    run(f"{tools}ld", *words, "-T", place / "script")
    print(f"mips16.py: {short} functions of MIPS16e, {long} of MIPS32", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
