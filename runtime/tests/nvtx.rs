//! Ranges reach a profiler's library, here a small one that writes down what it hears. It is named in a variable that is read once, so the test
//! starts itself again.

use std::path::Path;
use std::process::Command;

use fuserun::device::nvtx::range;

const PROFILER: &str = r#"
#include <stdio.h>
#include <stdlib.h>
typedef struct { size_t size; int (*functions_of)(unsigned, void****, unsigned*); } Callbacks;
static FILE* out(void) { static FILE* file; return file ? file : (file = fopen(getenv("HEARD"), "w")); }
static int push(const char* name) { return fprintf(out(), "push %s\n", name); }
static int pop(void) { return fprintf(out(), "pop\n"), fflush(out()); }
int InitializeInjectionNvtx2(const void* (*export_table)(unsigned)) {
    const Callbacks* callbacks = export_table(1);
    void*** table;
    unsigned size;
    if (callbacks->size < sizeof *callbacks || !export_table(3) || export_table(9)) return 0;
    if (callbacks->functions_of(0, &table, &size) || callbacks->functions_of(99, &table, &size)) return 0;
    if (!callbacks->functions_of(1, &table, &size) || size < 16 || table[size]) return 0;
    *table[9] = push;
    *table[11] = pop;
    return 1;
}
"#;

#[test]
fn a_profiler_hears_of_ranges() {
    const HEARD: &str = "HEARD";
    if std::env::var_os(HEARD).is_some() {
        let outer = range(|| "layer 3".into());
        drop(range(|| "inner\0name".into()));
        return drop(outer);
    }
    drop(range(|| panic!("where nobody listens no name is made")));

    let folder = std::env::current_exe().unwrap().with_file_name("scratch").join("nvtx");
    std::fs::create_dir_all(&folder).unwrap();
    let (source, library, heard) = (folder.join("tool.c"), folder.join("tool.so"), folder.join("heard.txt"));
    std::fs::write(&source, PROFILER).unwrap();
    let status = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status();
    assert!(status.as_ref().is_ok_and(|status| status.success()), "a C compiler is needed (cc): {status:?}");

    let again = |library: &Path| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "a_profiler_hears_of_ranges"]).env(HEARD, &heard);
        command.env("NVTX_INJECTION64_PATH", library).output().unwrap()
    };
    let output = again(&library);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = std::fs::read_to_string(&heard).unwrap();
    assert_eq!(text, "push layer 3\npush inner name\npop\npop\n");

    assert!(again(&folder.join("absent.so")).status.success(), "a profiler that is not there is no failure");
}
