"""dist/mips16.py: what becomes of a module's text before LLVM compiles it, and of what LLVM writes."""

import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import mips16

FUNCTION = """define internal fastcc i32 @"f"(ptr %p) unnamed_addr #7 !dbg !3 {
start:
BODY
  ret i32 0
}
attributes #7 = { nounwind }"""


def function(body):
    return FUNCTION.replace("BODY", body)


def marked(body):
    return mips16.mark(function(body))


class Atomics(unittest.TestCase):
    def becomes(self, line, call, does):
        text, short, long = marked(line)
        self.assertEqual((short, long), (1, 0), line)
        self.assertIn(f"\n{call}\n", text)
        self.assertIn(f"{does}\n", text.split("attributes")[1])
        self.assertIn('#7 "mips16" !dbg !3 {', text)

    def test_every_operation_becomes_a_call_of_a_function_that_does_the_same(self):
        self.becomes("  %x = load atomic i32, ptr %p acquire, align 4, !noundef !5", "  %x = call i32 @ctrl_exec.atomic.load.i32.acquire(ptr %p)", "  %r = load atomic i32, ptr %a acquire, align 4")
        self.becomes("  store atomic i8 %v, ptr %p release, align 1", "  call void @ctrl_exec.atomic.store.i8.release(i8 %v, ptr %p)", "  store atomic i8 %v, ptr %a release, align 1")
        self.becomes(
            "  %1 = atomicrmw sub ptr %p, i32 1 release, align 4, !dbg !9",
            "  %1 = call i32 @ctrl_exec.atomic.sub.i32.release(ptr %p, i32 1)",
            "  %r = atomicrmw sub ptr %a, i32 %v release, align 4",
        )
        self.becomes(
            "  %1 = cmpxchg weak ptr %p, i32 %o, i32 %n acq_rel acquire, align 4",
            "  %1 = call { i32, i1 } @ctrl_exec.atomic.cmpxchgweak.i32.acq_rel.acquire(ptr %p, i32 %o, i32 %n)",
            "  %r = cmpxchg weak ptr %a, i32 %o, i32 %n acq_rel acquire, align 4",
        )
        self.becomes("  fence seq_cst", "  call void @ctrl_exec.atomic.fence.seq_cst()", "  fence seq_cst")

    def test_an_address_may_hold_commas(self):
        where = "ptr getelementptr inbounds nuw (i8, ptr @g, i32 4)"
        self.becomes(f"  %x = load atomic ptr, {where} monotonic, align 4", f"  %x = call ptr @ctrl_exec.atomic.load.ptr.monotonic({where})", "  %r = load atomic ptr, ptr %a monotonic, align 4")
        self.becomes(
            f"  %x = cmpxchg {where}, i8 0, i8 1 acquire monotonic, align 1",
            f"  %x = call {{ i8, i1 }} @ctrl_exec.atomic.cmpxchg.i8.acquire.monotonic({where}, i8 0, i8 1)",
            "  %r = cmpxchg ptr %a, i8 %o, i8 %n acquire monotonic, align 1",
        )

    def test_two_of_a_kind_share_one_function(self):
        text, _, _ = marked("  fence acquire\n  fence acquire")
        self.assertEqual(text.count("define internal void @ctrl_exec.atomic.fence.acquire()"), 1)

    def test_what_is_not_known_stays_with_its_function_as_it_was(self):
        for line in (
            "  %x = load atomic i64, ptr %p acquire, align 8",
            "  %x = load atomic volatile i32, ptr %p acquire, align 4",
            '  %x = atomicrmw add ptr %p, i32 1 syncscope("singlethread") seq_cst, align 4',
            '  fence syncscope("singlethread") seq_cst',
            "  store atomic float %v, ptr %p release, align 4",
            "  %x = atomicrmw fadd ptr %p, float %v release, align 4",
            "  %x = cmpxchg ptr %p, i64 %o, i64 %n acquire monotonic, align 8",
        ):
            text, short, long = marked(line)
            self.assertEqual((short, long), (0, 1), line)
            self.assertEqual(text, function(line))


class Stays(unittest.TestCase):
    def test_what_mips16e_has_not(self):
        for line in (
            "  %t = call ptr @llvm.threadlocal.address.p0(ptr @slot)",
            '  %x = call i32 asm sideeffect "", "=r,0,~{memory}"(i32 %v)',
            "  %x = fadd double %a, %b",
            "  %x = call i32 @llvm.cttz.i32(i32 %v, i1 true)",
        ):
            self.assertEqual(marked(line), (function(line), 0, 1), line)

    def test_a_function_in_reach_of_one_that_stays_may_be_short(self):
        two = function("  fadd double 0.0, 0.0") + "\n" + function("  call void @g()")
        self.assertEqual(mips16.mark(two)[1:], (1, 1))


class Assembly(unittest.TestCase):
    def test_only_the_empty_place_behind_a_short_call_goes(self):
        call = "\tjal\tf\n\n\tnop\n\tnop"
        self.assertEqual(mips16.tidy(f"\t.set\tmips16\n{call}"), "\t.set\tmips16\n\tjal\tf\n\n\tnop".replace("\n\n\tnop", "\n"))
        self.assertEqual(mips16.tidy(f"\t.set\tnomips16\n{call}"), f"\t.set\tnomips16\n{call}")

    def test_order_is_that_of_the_table_without_what_comes_again(self):
        table = "  10 10 8 4   a/whole.o:(.text.b)\n  18 18 8 4   a/whole.o:(.text.a)\n  20 20 0 1   a\n  20 20 8 4   x.a(y.o):(.rodata.c)\n  28 28 8 4  y.o:(.text.a)\n  30 30 8 4  y.o:(.data.d)"
        self.assertEqual(mips16.order(table), [".text.b", ".text.a", ".rodata.c"])

    def test_the_linkers_script_takes_the_order_in_its_sections(self):
        text, rodata = "*(.text.unlikely .text.*_unlikely .text.unlikely.*)", "*(.rodata .rodata.* .gnu.linkonce.r.*)"
        default = f"GNU ld\n{'=' * 50}\n.text : {{\n    {text}\n}}\n.rodata : {{ {rodata} }}\n{'=' * 50}\n"
        made = mips16.script(default, [".text.b", ".rodata.$c", ".text.a"])
        self.assertIn(f'*(".text.b")\n    *(".text.a")\n    {text}', made)
        self.assertIn(f'*(".rodata.$c")\n    {rodata}', made)
        self.assertNotIn("=", made)
        with self.assertRaises(SystemExit):
            mips16.script(f"another\n{'=' * 50}\n.text\n{'=' * 50}\n", [])


if __name__ == "__main__":
    unittest.main()
