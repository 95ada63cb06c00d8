/* What takes the place of parts of Zig's libraries: of libunwind, and on MIPS of three functions of libc (at the end).
 *
 * What the standard library asks of an unwinder, for programs that end at a panic (panic = "abort") and carry no tables to unwind by:
 * there is no caller to be found. Linked before libunwind, which then has nothing to bring. The only one that is called is
 * _Unwind_Backtrace, if somebody sets RUST_BACKTRACE: the trace is empty, as it would be without tables. */

enum { END_OF_STACK = 5 };

int _Unwind_Backtrace(void *visit, void *with) {
    (void)visit;
    (void)with;
    return END_OF_STACK;
}

#define NEVER(name) \
    void *name(void) { __builtin_trap(); }

NEVER(_Unwind_GetDataRelBase)
NEVER(_Unwind_GetIP)
NEVER(_Unwind_GetIPInfo)
NEVER(_Unwind_GetLanguageSpecificData)
NEVER(_Unwind_GetRegionStart)
NEVER(_Unwind_GetTextRelBase)
NEVER(_Unwind_SetGR)
NEVER(_Unwind_SetIP)

#ifdef __arm__
/* The tables of C that was compiled with them name these. */
NEVER(_Unwind_VRS_Get)
NEVER(_Unwind_VRS_Set)
NEVER(__aeabi_unwind_cpp_pr0)
NEVER(__aeabi_unwind_cpp_pr1)
NEVER(__aeabi_unwind_cpp_pr2)
#endif

#ifdef __mips__
/* Three of the C library's functions are in assembler and want to be called as position-independent code calls: with their address in a register
 * (t9). This program is for fixed addresses, calls are direct, and they would jump to a wrong place. */

/* In a static program there is nothing to be found. The second name is the one for a time of 64 bits. */
void *dlsym(void *library, const char *name) {
    (void)library;
    (void)name;
    return 0;
}

void *__dlsym_time64(void *library, const char *name) { return dlsym(library, name); }

int pipe2(int *ends, int flags);
int pipe(int *ends) { return pipe2(ends, 0); }
#endif
