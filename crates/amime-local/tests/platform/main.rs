//! The local platform with real namespaces, processes and packets.
//!
//! This program has three roles: the tests, the `amime` program that they
//! start (`up`, and the supervisor that it executes), and the applications in
//! the pods. Nothing leaves namespaces of its own and loopback.

mod app;
mod mesh;
mod proxy;
mod scenarios;

use std::panic::AssertUnwindSafe;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("up") => mesh::run_up(),
        Some(amime_local::supervisor::SUBCOMMAND) => {
            match amime_local::supervisor::main(&args[1..]) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            }
        }
        Some("app") => app::run(&args[1..]),
        Some("proxy") => proxy::run(&args[1]),
        _ => run_tests(&args),
    }
}

/// Runs the tests whose name contains one of the arguments, one by one, and
/// prints what libtest would.
fn run_tests(args: &[String]) -> ExitCode {
    let list = args.iter().any(|arg| arg == "--list");
    let exact = args.iter().any(|arg| arg == "--exact");
    let filters: Vec<_> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let wanted = |name: &str| {
        let fits = |filter: &&String| if exact { name == *filter } else { name.contains(*filter) };
        filters.is_empty() || filters.iter().any(fits)
    };
    let (mut passed_count, mut failed) = (0u32, 0u32);
    for (name, test) in scenarios::ALL.iter().filter(|(name, _)| wanted(name)) {
        if list {
            println!("{name}: test");
            continue;
        }
        let passed = std::panic::catch_unwind(AssertUnwindSafe(test)).is_ok();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        passed_count += u32::from(passed);
        failed += u32::from(!passed);
    }
    if !list {
        let verdict = if failed == 0 { "ok" } else { "FAILED" };
        println!("\ntest result: {verdict}. {passed_count} passed; {failed} failed; 0 ignored");
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(101) }
}
