//! Which name was I called by? Look it up in the applet table, call it. Nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    ctrl_exec::applets::main(std::env::args_os().collect())
}
