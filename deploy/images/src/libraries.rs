//! The shared libraries of a program, as the loader of this machine finds them. Knows nothing of images.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

/// Paths of all shared libraries that `program` needs, its loader among them; none for a static program.
pub(crate) fn of(program: &Path) -> Result<Vec<PathBuf>> {
    ensure!(
        super::read(program)?.starts_with(b"\x7fELF"),
        "{} is not a program for this machine (not an ELF file)",
        program.display()
    );
    let output = Command::new("ldd")
        .arg(program)
        .env_remove("LD_LIBRARY_PATH") // what the image's loader will not know
        .env_remove("LD_PRELOAD")
        .env("LC_ALL", "C")
        .output()
        .context("failed to run ldd")?;
    let (found, complaint) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if found.contains("statically linked") || complaint.contains("not a dynamic executable") {
        return Ok(Vec::new());
    }
    ensure!(output.status.success(), "ldd failed on {}: {}", program.display(), complaint.trim());
    parse(&found).with_context(|| format!("libraries of {}", program.display()))
}

/// Reads the answer of `ldd`, whose lines are `name => path (address)`, `path (address)` for the loader,
/// `name (address)` for what the kernel brings itself, or `name => not found`.
fn parse(answer: &str) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for line in answer.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (name, place) = line.split_once(" => ").unwrap_or((line, line));
        if place.starts_with("not found") {
            bail!("shared library {name} is not installed");
        }
        if let Some((path, _)) = place.rsplit_once(" (")
            && path.starts_with('/')
        {
            paths.push(PathBuf::from(path));
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_libraries_and_the_loader_but_not_what_the_kernel_brings() {
        let answer = "\tlinux-vdso.so.1 (0x00007ffd)\n\
            \tlibgssapi_krb5.so.2 => /lib/x86_64-linux-gnu/libgssapi_krb5.so.2 (0x00007f01)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f02)\n";
        let expected = ["/lib/x86_64-linux-gnu/libgssapi_krb5.so.2", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(parse(answer).unwrap(), expected.map(PathBuf::from));
    }

    #[test]
    fn a_missing_library_is_an_error_that_names_it() {
        let answer = "\tlibc.so.6 => /lib/libc.so.6 (0x1)\n\tlibkrb5.so.3 => not found\n";
        assert_eq!(parse(answer).unwrap_err().to_string(), "shared library libkrb5.so.3 is not installed");
    }

    #[test]
    fn a_script_is_not_a_program() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "#!/bin/sh\n").unwrap();
        assert!(of(file.path()).unwrap_err().to_string().contains("not an ELF file"));
    }
}
