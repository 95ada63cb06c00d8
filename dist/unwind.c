/* What the standard library asks of an unwinder, for programs that end at a panic (panic = "abort") and carry no tables to unwind by:
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
