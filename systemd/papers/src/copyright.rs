//! The copyright file that every Debian package has (DEP-5).

use std::path::Path;

use crate::Paper;
use crate::program::Program;

const MIT: &str = include_str!("../../../LICENSE-MIT");

pub(crate) fn copyright(program: &Program) -> Paper {
    // The title, the owner and the licence stand in paragraphs of their own.
    let mut paragraphs = MIT.trim_end().splitn(3, "\n\n").skip(1);
    let owner = paragraphs.next().unwrap_or_default().trim_start_matches("Copyright (c) ");
    let licence: String = paragraphs.next().unwrap_or_default().lines().map(indented).collect();
    let text = format!(
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\
         Upstream-Name: Whimbrel\n\n\
         Files: *\nCopyright: {owner}\nLicense: Expat or Apache-2.0\n\n\
         License: Expat\n{licence}\n\
         License: Apache-2.0\n On Debian its text is /usr/share/common-licenses/Apache-2.0.\n"
    );
    let path = Path::new("doc").join(program.package()).join("copyright");
    Paper { path, text: text.into_bytes() }
}

fn indented(line: &str) -> String {
    if line.is_empty() { " .\n".to_owned() } else { format!(" {line}\n") }
}
