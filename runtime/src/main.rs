//! The command `fuserun`.

fn main() -> std::process::ExitCode {
    fuserun::cli::main()
}
