//! The command `fusec`.

fn main() -> std::process::ExitCode {
    fusec::cli::main()
}
